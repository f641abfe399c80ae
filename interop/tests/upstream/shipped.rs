//! What a user gets holds nothing of upstream, and `ADVISORIES.md` says the truth about what is in the lock file.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// "name version" of every package in the lock file.
fn locked() -> BTreeSet<String> {
    let lock = std::fs::read_to_string(Path::new(HERE).join("../Cargo.lock")).unwrap();
    let value = |line: &str, key: &str| Some(line.strip_prefix(key)?.trim_matches('"').to_owned());
    let lines: Vec<&str> = lock.lines().collect();
    lines
        .windows(2)
        .filter_map(|two| Some(format!("{} {}", value(two[0], "name = ")?, value(two[1], "version = ")?)))
        .collect()
}

/// "name version" of every package that is compiled into, or for, anything of the workspace but tests; on any platform.
fn shipped() -> BTreeSet<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--all-features", "--offline", "--target", "all"])
        .args(["-e", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(HERE)
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let words = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ").replacen(" v", " ", 1);
    String::from_utf8(tree.stdout).unwrap().lines().map(words).collect()
}

/// Rows of the table: advisory, package, what it comes with.
fn advisories() -> Vec<[String; 3]> {
    let text = std::fs::read_to_string(Path::new(HERE).join("ADVISORIES.md")).unwrap();
    let rows: Vec<[String; 3]> = text
        .lines()
        .filter(|line| line.starts_with("| RUSTSEC-"))
        .map(|line| {
            let mut cells = line.split('|').skip(1).map(|cell| cell.trim().to_owned());
            std::array::from_fn(|_| cells.next().unwrap())
        })
        .collect();
    assert!(!rows.is_empty());
    rows
}

#[test]
fn upstreams_code_and_its_network_stack_are_dependencies_of_tests_alone() {
    let (locked, shipped) = (locked(), shipped());
    assert!(shipped.contains(&format!("raftify-interop {}", env!("CARGO_PKG_VERSION"))), "{shipped:?}");
    for upstream in ["raftify ", "jopemachine-raft ", "tonic 0.9.", "h2 0.3.", "hyper 0.14.", "heed 0.20.", "bincode "]
    {
        assert!(locked.iter().any(|package| package.starts_with(upstream)), "{upstream} is gone: correct this list");
        let found: Vec<&String> = shipped.iter().filter(|package| package.starts_with(upstream)).collect();
        assert!(found.is_empty(), "{found:?} would reach users");
    }
}

#[test]
fn every_listed_advisory_is_about_a_package_in_the_lock_file_and_says_whether_it_ships() {
    let (locked, shipped) = (locked(), shipped());
    for [advisory, package, comes_with] in advisories() {
        assert!(locked.contains(&package), "{advisory}: {package} is not in the lock file any more");
        assert_eq!(
            shipped.contains(&package),
            comes_with != "raftify",
            "{advisory}: {package} comes with {comes_with}"
        );
    }
    for webpki in locked.iter().filter_map(|package| package.strip_prefix("rustls-webpki ")) {
        let line: Vec<u32> = webpki.split('.').map(|part| part.parse().unwrap_or(0)).collect();
        assert!(line >= vec![0, 103, 13], "rustls-webpki {webpki}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_check_of_the_library_finds_upstream_where_it_is() {
    let check =
        |file: &Path| Command::new("sh").arg(Path::new(HERE).join("check_symbols.sh")).arg(file).output().unwrap();
    // This program has all of upstream in it.
    let found = check(&std::env::current_exe().unwrap());
    assert_eq!(found.status.code(), Some(1));
    let listed = String::from_utf8(found.stderr).unwrap();
    for part in ["raftify-0.1.82/src", "jopemachine", "tonic-0.9.", "h2-0.3."] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    // What is no library of ours shows nothing.
    assert_eq!(check(&Path::new(HERE).join("Cargo.toml")).status.code(), Some(2));
}
