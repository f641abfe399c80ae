//! include/raftify.h is what cbindgen makes of this crate, is clean C99 and C++11, and lays out its structs as Rust does.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn header() -> PathBuf {
    root().join("include/raftify.h")
}

fn compiler(variable: &str, default: &str) -> Command {
    generated();
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| default.into()));
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]).arg(root().join("include"));
    command
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What cbindgen makes of the crate; written out first of all, where that is asked for.
fn generated() -> &'static str {
    static HEADER: OnceLock<String> = OnceLock::new();
    HEADER.get_or_init(generate)
}

fn generate() -> String {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(crate_dir.join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_crate(crate_dir).with_config(config).generate().unwrap();
    let mut generated = Vec::new();
    bindings.write(&mut generated);
    let generated = String::from_utf8(generated).unwrap();
    if std::env::var_os("RAFTIFY_WRITE_HEADER").is_some_and(|on| on == "1") {
        std::fs::write(header(), &generated).unwrap();
    }
    generated
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let (generated, path) = (generated(), header());
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "{} is stale: run RAFTIFY_WRITE_HEADER=1 cargo test -p raftify-capi --test header",
        path.display()
    );
}

#[test]
fn the_header_is_clean_c_and_cpp() {
    let dir = tempfile::tempdir().unwrap();
    for (variable, default, standard, name) in [
        ("CC", "cc", "-std=c99", "h.c"),
        ("CC", "cc", "-std=c17", "h.c"),
        ("CXX", "c++", "-std=c++11", "h.cpp"),
        ("CXX", "c++", "-std=c++17", "h.cpp"),
    ] {
        let source = dir.path().join(name);
        // Twice: the guard holds. Alone: it includes what it needs.
        std::fs::write(&source, "#include <raftify.h>\n#include <raftify.h>\nint main(void) { return RAFTIFY_OK; }\n")
            .unwrap();
        run(compiler(variable, default).args([standard, "-fsyntax-only"]).arg(&source));
    }
}

/// The structs in the order of raftify_struct_layout.
const STRUCTS: [(&str, &[&str]); 7] = [
    ("raftify_event", &["token", "index", "term", "data", "len", "source", "kind", "status", "count", "reserved"]),
    ("raftify_entry", &["index", "term", "time_us", "offset", "len", "wanted", "token"]),
    ("raftify_proposal", &["token", "data", "len"]),
    ("raftify_peer", &["id", "addr", "addr_len"]),
    ("raftify_member_change", &["kind", "reserved", "id", "addr", "addr_len"]),
    ("raftify_machine", &["struct_size", "reserved", "user_data", "apply", "snapshot", "restore", "destroy"]),
    ("raftify_outcome", &["index", "data", "len", "failed", "reserved"]),
];

fn layout(which: u32) -> Vec<usize> {
    let mut numbers = vec![0; 32];
    // SAFETY: there is room for 32 numbers.
    let n = unsafe { raftify_capi::raftify_struct_layout(which, numbers.as_mut_ptr(), numbers.len()) };
    numbers.truncate(n);
    numbers
}

/// A C program that does not compile unless its structs lie as the library says.
#[test]
fn the_structs_lie_in_c_as_the_library_reports() {
    let mut source = String::from("#include <raftify.h>\n");
    let mut assertion = |condition: String| {
        source += &format!("typedef char a{}[({condition}) ? 1 : -1];\n", source.len());
    };
    for (which, (name, fields)) in STRUCTS.iter().enumerate() {
        let numbers = layout(u32::try_from(which).unwrap());
        assert_eq!(numbers.len(), 1 + fields.len(), "{name}");
        assertion(format!("sizeof({name}) == {}", numbers[0]));
        for (field, offset) in fields.iter().zip(&numbers[1..]) {
            assertion(format!("offsetof({name}, {field}) == {offset}"));
        }
    }
    source += "int main(void) { return 0; }\n";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layout.c");
    std::fs::write(&file, source).unwrap();
    run(compiler("CC", "cc").args(["-std=c99", "-fsyntax-only"]).arg(&file));
}

/// Growing a struct breaks every program that was compiled before: these numbers stay.
#[cfg(target_pointer_width = "64")]
#[test]
fn the_layout_of_abi_1_is_as_it_was() {
    let table: [&[usize]; 7] = [
        &[64, 0, 8, 16, 24, 32, 40, 48, 52, 56, 60],
        &[48, 0, 8, 16, 24, 32, 36, 40],
        &[24, 0, 8, 16],
        &[24, 0, 8, 16],
        &[32, 0, 4, 8, 16, 24],
        &[48, 0, 4, 8, 16, 24, 32, 40],
        &[32, 0, 8, 16, 24, 28],
    ];
    for (which, numbers) in (0..).zip(table) {
        assert_eq!(layout(which), numbers, "{}", STRUCTS[which as usize].0);
    }
    assert!(layout(7).is_empty());
    // SAFETY: with a capacity of 0 nothing is written.
    assert_eq!(unsafe { raftify_capi::raftify_struct_layout(0, std::ptr::null_mut(), 0) }, 11);
}

/// Bindings in cffi's ABI mode cut their declarations out of the header: comments and preprocessor lines off, numbers kept.
#[test]
fn every_line_of_the_header_is_within_what_a_binding_can_parse() {
    let header = generated();
    for line in header.lines().filter(|line| line.starts_with("#define") && !line.contains("RAFTIFY_H")) {
        let value = line.split_whitespace().nth(2).unwrap_or_default();
        assert!(value.parse::<i64>().is_ok(), "not a plain number: {line}");
    }
    assert!(!header.contains("enum "), "an enum has no fixed size");
    assert!(!header.contains("# Safety"), "a heading for Rust in a text for C");
}
