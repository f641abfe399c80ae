//! Makes the worlds that are checked: the sources of the border, word for word, on the checker's locks, threads and channels;
//! once as they are, and once for each known mistake put back.
//!
//! The product knows nothing of this: no feature, no hook, no second implementation. A source that changes so that a mistake no
//! longer fits, or that uses a primitive not listed here, fails this build and says so.
// A panic is how a build says what is wrong.
#![allow(clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "mistakes.rs"]
mod mistakes;
use mistakes::{Mistake, MISTAKES};

/// Sources of the border, by the name of their module, and whether they belong to capi (whose `crate::` is the world itself) or to
/// the engine (whose `crate::` is the engine as built).
const SOURCES: [(&str, &str); 16] = [
    ("error", "capi/src/error.rs"),
    ("fork", "capi/src/fork.rs"),
    ("json", "capi/src/json.rs"),
    ("machine", "capi/src/machine.rs"),
    ("open_requests", "capi/src/open_requests.rs"),
    ("panic", "capi/src/panic.rs"),
    ("pointer", "capi/src/pointer.rs"),
    ("queue", "capi/src/queue.rs"),
    ("record", "capi/src/record.rs"),
    ("sink", "capi/src/sink.rs"),
    ("wake", "capi/src/wake.rs"),
    ("machine_thread", "engine/src/machine_thread.rs"),
    ("mailbox", "engine/src/mailbox.rs"),
    ("inbox", "engine/src/node/inbox.rs"),
    ("baton", "engine/src/baton.rs"),
    ("log_writer", "engine/src/node/log_writer.rs"),
];

/// What is checked in each world; `src/scenarios`.
const SCENARIOS: [&str; 7] = ["answering", "ending", "machines", "mailing", "node", "queueing", "writing"];

/// A table of numbers that are never waited for; and it is static, which would outlive one execution of the checker.
const AS_IT_IS: &str = "fork";

fn main() {
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo names OUT_DIR"));
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo names the crate"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=mistakes.rs");
    let mut tree = world(&out, &here, "right", None);
    for mistake in &MISTAKES {
        tree.push_str(&world(&out, &here, mistake.name, Some(mistake)));
    }
    fs::write(out.join("worlds.rs"), tree).expect("OUT_DIR can be written");
}

fn world(out: &Path, here: &Path, name: &str, mistake: Option<&Mistake>) -> String {
    let dir = out.join(name);
    fs::create_dir_all(&dir).expect("OUT_DIR can be written");
    let mut tree = format!("#[allow(warnings, clippy::all, clippy::restriction)]\npub mod {name} {{\n");
    tree.push_str("    pub const RAFTIFY_TIMEOUT_NONE: i64 = -1;\n    pub const RAFTIFY_TIMEOUT_DEFAULT: i64 = -2;\n");
    let mut made = false;
    for (module, path) in SOURCES {
        let source = here.join("..").join(path);
        println!("cargo:rerun-if-changed={}", source.display());
        let mut text = fs::read_to_string(&source).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
        if let Some(mistake) = mistake.filter(|mistake| mistake.file == path) {
            for (right, wrong) in mistake.changes {
                let times = text.matches(right).count();
                assert_eq!(
                    times, 1,
                    "{path} has changed: the mistake {name:?} must be put into it anew; not found once:\n{right}"
                );
                text = text.replace(right, wrong);
            }
            made = true;
        }
        let file = dir.join(format!("{module}.rs"));
        let text = translate(name, module, path, &text);
        if fs::read_to_string(&file).ok().as_deref() != Some(&text) {
            fs::write(&file, text).expect("OUT_DIR can be written");
        }
        writeln!(tree, "    #[path = {:?}]\n    pub mod {module};", file.display().to_string()).expect("a string");
    }
    assert!(made || mistake.is_none(), "the mistake {name:?} is in no source of the border");
    for scenario in SCENARIOS {
        let file = here.join("src/scenarios").join(format!("{scenario}.rs"));
        println!("cargo:rerun-if-changed={}", file.display());
        writeln!(tree, "    #[path = {:?}]\n    pub mod {scenario};", file.display().to_string()).expect("a string");
    }
    tree.push_str("}\n");
    tree
}

fn translate(world: &str, module: &str, path: &str, text: &str) -> String {
    // Their own tests are no part of a world.
    let own = ["#[cfg(test)]\nmod tests", "#[cfg(test)]\n#[path"];
    let text = own.iter().fold(text, |text, tests| text.split(tests).next().unwrap_or_default());
    let mut text = text.replace("#[no_mangle]\n", "");
    let home = if path.starts_with("engine/") { "raftify_engine::".into() } else { format!("crate::{world}::") };
    text = text.replace("crate::", &home);
    for own in ["baton", "machine_thread", "mailbox"] {
        text = text.replace(&format!("raftify_engine::{own}::"), &format!("crate::{world}::{own}::"));
    }
    if module != AS_IT_IS {
        text = text.replace("std::sync::", "shuttle::sync::").replace("std::thread::", "shuttle::thread::");
        text = text.replace("thread_local!", "shuttle::thread_local!");
        text = text.replace("tokio::sync::mpsc", "crate::channel::mpsc");
        text = text
            .replace("rustix::io::read(", "crate::system::read(")
            .replace("rustix::io::write(", "crate::system::write(");
        for left in ["std::sync", "std::thread", "tokio::", "parking_lot", "crossbeam"] {
            assert!(!text.contains(left), "{path} uses {left}, which the checker does not see: teach border/build.rs");
        }
    }
    text
}
