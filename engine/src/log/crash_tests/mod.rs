//! Crashes and failing disks under the real log: a child process writes a story that follows from a number, while `shim.c` kills it,
//! fails its calls, or writes them down; then the log is opened as a restart would, and must be what the story says.
//!
//! ```text
//!  child:  open ─► which part of the story is this? ─► acknowledge ─► write the next part ─► acknowledge ─► …
//!  parent: breaks change number n, for every n; or takes the power at any moment ─► opens: at least what was acknowledged,
//!          at most what was being written, and nothing else
//! ```

mod disk;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::model_tests::{write_of, Model, Op};
use super::tests::{open, with_both_engines};
use super::{check, LogWrite, OpenedLog};
use crate::config::LogEngine;
use crate::core::Rng;
use crate::error::{Committed, ErrorCode};
use disk::{read_trace, Change, Disk, Kept};

with_both_engines!(
    child_that_writes_its_story,
    a_process_killed_at_any_change_loses_nothing,
    a_failing_disk_stops_the_log_for_good_and_loses_nothing,
    a_power_loss_at_any_moment_loses_nothing_that_was_acknowledged,
    a_kill_and_then_a_power_loss_lose_nothing_that_was_believed,
    a_directory_that_was_made_with_its_parents_is_found_after_a_power_loss,
    a_directory_that_was_put_there_by_hand_is_durable_once_it_is_believed,
    a_log_that_does_not_sync_is_found_out,
);

const CHILD: &str = "RAFTIFY_TEST_CRASH_CHILD";
const STORY: &str = "RAFTIFY_TEST_CRASH_STORY";
const ACKS: &str = "DISK_ACKS";

/// What is written, part by part, and what the log holds before the first and after each.
struct Story {
    parts: Vec<Vec<LogWrite>>,
    models: Vec<Model>,
}

impl Story {
    fn new(seed: u64, parts: usize) -> Self {
        let mut rng = Rng::new(seed);
        let mut model = Model::new();
        let mut story = Story { parts: Vec::new(), models: vec![model.clone()] };
        for _ in 0..parts {
            let mut part: Vec<LogWrite> =
                (0..rng.range(1, 4)).map(|_| write_of(&drawn(&mut rng), &mut model)).collect();
            // Every part says something that no other says: its length would not tell them apart.
            let back = rng.range(0, 3);
            part.push(write_of(
                &Op::Append { back, count: rng.range(1, 9), size: size(&mut rng), new_term: true },
                &mut model,
            ));
            story.parts.push(part);
            story.models.push(model.clone());
        }
        story
    }

    /// How many parts this log has in it.
    fn place(&self, log: &OpenedLog) -> Option<usize> {
        self.models.iter().position(|model| model.difference(log).is_none())
    }
}

fn size(rng: &mut Rng) -> usize {
    match rng.range(0, 4) {
        0 => 0,
        1 => rng.range(1500, 9000) as usize,
        _ => rng.range(1, 300) as usize,
    }
}

fn drawn(rng: &mut Rng) -> Op {
    match rng.range(0, 10) {
        0..5 => {
            Op::Append { back: rng.range(0, 4), count: rng.range(1, 20), size: size(rng), new_term: rng.chance(0.2) }
        }
        5 | 6 => Op::Commit { up: rng.range(0, 30), sync: true },
        7 => Op::Cluster { up: rng.range(0, 9) },
        8 => Op::Compact { snapshot: rng.range(0, 40), to: rng.range(0, 40) },
        _ => Op::Install { beyond: rng.range(0, 4) },
    }
}

/// The process under the shim. Does nothing as an ordinary test.
fn child_that_writes_its_story(engine: LogEngine) {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let numbers: Vec<u64> = std::env::var(STORY).unwrap().split(',').map(|n| n.parse().unwrap()).collect();
    let story = Story::new(numbers[0], numbers[1] as usize);
    let acks = std::env::var_os(ACKS).unwrap();
    let mut acks = std::fs::OpenOptions::new().append(true).create(true).open(acks).unwrap();
    let mut say = |what: String| acks.write_all(format!("{what}\n").as_bytes()).unwrap();
    let mut log = match open(engine, Path::new(&dir)) {
        Ok(log) => log,
        Err(error) => return say(format!("refused {}", error.code.name())),
    };
    let place = story.place(&log).expect("the log is at some part of its story");
    say(format!("{place}"));
    for (number, part) in story.parts.iter().enumerate().skip(place) {
        let mut result = log.writer.write(part);
        if result.as_ref().is_err_and(|e| (e.code, e.committed) == (ErrorCode::DiskFull, Committed::No)) {
            // Found before anything was written: the same may be tried again.
            result = log.writer.write(part);
        }
        if let Err(error) = result {
            say(format!("failed {}", error.code.name()));
            // S10: it stays so, whatever the disk does now.
            let again = log.writer.write(part);
            let stays = again.as_ref().err().is_some_and(|e| e.code == error.code);
            return say(format!("{} {:?}", if stays { "stays" } else { "goes on" }, again));
        }
        say(format!("{}", number + 1));
    }
}

fn shim() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    &BUILT
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let (source, library) = (dir.path().join("shim.c"), dir.path().join("shim.so"));
            std::fs::write(&source, include_str!("shim.c")).unwrap();
            let built = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .arg(&library)
                .arg(&source)
                .args(["-ldl", "-lpthread"])
                .status();
            assert!(built.is_ok_and(|status| status.success()), "a C compiler is needed");
            (dir, library)
        })
        .1
}

/// In memory where there is such a place: what a sync is worth is the shim's business here, not the disk's.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// One log, and the runs of processes on it.
struct Bench {
    engine: LogEngine,
    root: tempfile::TempDir,
    /// Where the node's directory lies below what is watched.
    below: &'static str,
    seed: u64,
    story: Story,
}

impl Bench {
    fn new(engine: LogEngine, seed: u64, parts: usize) -> Self {
        Bench { engine, root: directory(), below: "", seed, story: Story::new(seed, parts) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.path("node")
    }

    /// Runs the child on the log; breaks change number `at` if asked for. What it said.
    fn run(&self, fault: Option<(&str, usize)>) -> Vec<String> {
        let acks = self.path("acks");
        let _ = std::fs::remove_file(&acks);
        let module = if self.engine == LogEngine::Lmdb { "lmdb" } else { "segment" };
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", &format!("log::crash_tests::{module}::child_that_writes_its_story"), "--nocapture"])
            .env("LD_PRELOAD", shim())
            .env("DISK_DIR", self.log())
            .env("DISK_TRACE", self.path("trace"))
            .env(ACKS, &acks)
            .env(CHILD, self.log().join(self.below))
            .env(STORY, format!("{},{}", self.seed, self.story.parts.len()))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some((fault, at)) = fault {
            child.env("DISK_FAULT", fault).env("DISK_AT", at.to_string());
        }
        let status = child.status().unwrap();
        let said = std::fs::read_to_string(&acks).unwrap_or_default();
        let said: Vec<String> = said.lines().map(str::to_string).collect();
        use std::os::unix::process::ExitStatusExt;
        assert!(status.success() || status.signal() == Some(9), "the child ended with {status}: {said:?}");
        said
    }

    fn trace(&self) -> Vec<Change> {
        let bytes = std::fs::read(self.path("trace")).unwrap_or_default();
        read_trace(&bytes, self.log().to_str().unwrap())
    }

    /// Changes that can be broken: marks are not.
    fn changes(&self) -> usize {
        self.trace().iter().filter(|change| !matches!(change, Change::Mark(_) | Change::Create(_))).count()
    }

    /// The log in `dir` has at least the acknowledged parts, at most one more, and takes the rest of the story.
    fn must_hold(&self, dir: &Path, acknowledged: Option<usize>, what: &dyn std::fmt::Display) {
        let dir = &dir.join(self.below);
        let mut log = open(self.engine, dir).unwrap_or_else(|e| panic!("{what}: the log does not open: {e}"));
        let Some(place) = self.story.place(&log) else {
            let model = &self.story.models[acknowledged.unwrap_or(0)];
            panic!("{what}: no part of the story; after part {acknowledged:?}: {:?}", model.difference(&log));
        };
        let least = acknowledged.unwrap_or(0);
        assert!(
            (least..=least + 1).contains(&place),
            "{what}: {acknowledged:?} was acknowledged and the log is at {place}"
        );
        for part in self.story.parts.iter().skip(place).take(2) {
            log.writer.write(part).unwrap_or_else(|e| panic!("{what}: the log takes nothing any more: {e}"));
        }
        drop(log);
        let log = open(self.engine, dir).unwrap();
        let end = (place + 2).min(self.story.parts.len());
        assert_eq!(self.story.models[end].difference(&log), None, "{what}");
        drop(log);
        check(dir).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

/// The last part that was acknowledged.
fn acknowledged(said: &[String]) -> Option<usize> {
    said.iter().rev().find_map(|line| line.parse().ok())
}

fn a_process_killed_at_any_change_loses_nothing(engine: LogEngine) {
    let whole = Bench::new(engine, 1, 12);
    whole.run(None);
    let changes = whole.changes();
    assert!(changes > 40, "{changes}");
    for fault in ["kill", "killed", "torn"] {
        for at in 0..changes {
            let bench = Bench::new(engine, 1, 12);
            let said = bench.run(Some((fault, at)));
            bench.must_hold(&bench.log(), acknowledged(&said), &format!("{fault} at change {at}"));
        }
    }
}

fn a_failing_disk_stops_the_log_for_good_and_loses_nothing(engine: LogEngine) {
    let whole = Bench::new(engine, 2, 12);
    whole.run(None);
    let changes = whole.changes();
    for fault in ["eio", "enospc", "short"] {
        for at in 0..changes {
            let bench = Bench::new(engine, 2, 12);
            let what = format!("{fault} at change {at}");
            let said = bench.run(Some((fault, at)));
            for line in &said {
                assert!(!line.starts_with("goes on"), "{what}: {said:?} (S10)");
                if let Some(code) = line.strip_prefix("refused ").or(line.strip_prefix("failed ")) {
                    let codes = [ErrorCode::Storage, ErrorCode::DiskFull].map(ErrorCode::name);
                    assert!(codes.contains(&code), "{what}: {line}");
                }
            }
            bench.must_hold(&bench.log(), acknowledged(&said), &what);
        }
    }
}

/// Takes the power at every change of a trace, in several ways.
fn lose_power_everywhere(bench: &Bench, changes: &[Change], from: usize, rng: &mut Rng) {
    let mut disk = Disk::default();
    let mut acked = None;
    for (at, change) in changes.iter().enumerate() {
        if at >= from {
            for kept in [Kept::Nothing, Kept::All, Kept::Some, Kept::Some] {
                let crashed = directory();
                disk.lose_power(Some(change), kept, rng, crashed.path());
                bench.must_hold(
                    crashed.path(),
                    acked,
                    &format!("power loss ({kept:?}) at change {at}, {}", brief(change)),
                );
            }
        }
        disk.carry_out(change);
        if let Change::Mark(line) = change {
            acked = line.trim().parse().ok().or(acked);
        }
    }
}

fn brief(change: &Change) -> String {
    let mut text = format!("{change:?}");
    text.truncate(120);
    text
}

fn a_power_loss_at_any_moment_loses_nothing_that_was_acknowledged(engine: LogEngine) {
    for seed in [3, 4] {
        let bench = Bench::new(engine, seed, 20);
        let said = bench.run(None);
        assert_eq!(acknowledged(&said), Some(20), "{said:?}");
        lose_power_everywhere(&bench, &bench.trace(), 0, &mut Rng::new(seed));
    }
}

/// S5: a name that is not in its parent for good takes all below it along.
fn a_directory_that_was_made_with_its_parents_is_found_after_a_power_loss(engine: LogEngine) {
    let bench = || {
        let bench = Bench { below: "raft/logs/node-1", ..Bench::new(engine, 7, 2) };
        std::fs::create_dir(bench.log()).unwrap();
        bench
    };
    let mut rng = Rng::new(7);
    let whole = bench();
    let said = whole.run(None);
    assert_eq!(acknowledged(&said), Some(2), "{said:?}");
    lose_power_everywhere(&whole, &whole.trace(), 0, &mut rng);
    // Also one that a process before was killed in the middle of making.
    for at in 0..10 {
        let bench = bench();
        bench.run(Some(("killed", at)));
        let said = bench.run(None);
        assert_eq!(acknowledged(&said), Some(2), "after a kill behind change {at}: {said:?}");
        let trace = bench.trace();
        lose_power_everywhere(&bench, &trace, trace.len() - 1, &mut rng);
    }
}

/// S5: a copy of a directory is put back, as a damaged one tells its owner to do, and whoever did it synced nothing.
fn a_directory_that_was_put_there_by_hand_is_durable_once_it_is_believed(engine: LogEngine) {
    let origin = Bench::new(engine, 8, 24);
    origin.run(None);
    let bench = Bench { below: "node-1", ..Bench::new(engine, 8, 27) };
    std::fs::create_dir(bench.log()).unwrap();
    let mut changes = Vec::new();
    copy(&origin.log(), &bench.log(), bench.below, &mut changes);
    let said = bench.run(None);
    assert_eq!(acknowledged(&said), Some(27), "{said:?}");
    changes.extend(bench.trace());
    let believed = changes.iter().position(|change| matches!(change, Change::Mark(_))).unwrap();
    lose_power_everywhere(&bench, &changes, believed + 1, &mut Rng::new(8));
}

/// Copies a directory to `name` below `root`, and writes down how.
fn copy(from: &Path, root: &Path, name: &str, changes: &mut Vec<Change>) {
    let to = root.join(name);
    std::fs::create_dir(&to).unwrap();
    changes.push(Change::Mkdir(name.into()));
    for item in std::fs::read_dir(from).unwrap() {
        let from = item.unwrap().path();
        let path = format!("{name}/{}", from.file_name().unwrap().to_str().unwrap());
        if from.is_dir() {
            copy(&from, root, &path, changes);
            continue;
        }
        let data = std::fs::read(&from).unwrap();
        std::fs::write(root.join(&path), &data).unwrap();
        changes.push(Change::Create(path.clone()));
        changes.push(Change::Write { path, offset: 0, data, through: false });
    }
}

/// S5: what is readable after a kill need not be on the disk; a process that has opened it may promise it.
fn a_kill_and_then_a_power_loss_lose_nothing_that_was_believed(engine: LogEngine) {
    let whole = Bench::new(engine, 5, 8);
    whole.run(None);
    let changes = whole.changes();
    let mut rng = Rng::new(5);
    for _ in 0..12 {
        let at = rng.range(0, changes as u64) as usize;
        let bench = Bench::new(engine, 5, 8);
        bench.run(Some((["kill", "killed", "torn"][at % 3], at)));
        let before = bench.trace().len();
        let said = bench.run(None);
        assert_eq!(acknowledged(&said), Some(8), "after a kill at change {at}: {said:?}");
        lose_power_everywhere(&bench, &bench.trace(), before, &mut rng);
    }
}

/// LMDB follows its newest meta page, and writes the next commit over that of the one before: what was never proven must be out of the way
/// by then, durably.
#[test]
fn lmdb_a_commit_that_was_never_proven_is_out_of_the_way_before_the_next_one_is_begun() {
    let whole = Bench::new(LogEngine::Lmdb, 9, 6);
    whole.run(None);
    let is_proof = |change: &Change| match change {
        Change::Write { path, offset, .. } => path == "log/data.mdb" && offset % 4096 == 192,
        _ => false,
    };
    let trace = whole.trace();
    let changes = trace.iter().filter(|change| !matches!(change, Change::Mark(_) | Change::Create(_)));
    let proofs: Vec<usize> = changes.enumerate().filter(|(_, change)| is_proof(change)).map(|(at, _)| at).collect();
    assert!(proofs.len() >= 5, "{proofs:?}");
    let mut rng = Rng::new(9);
    for at in proofs {
        let bench = Bench::new(LogEngine::Lmdb, 9, 6);
        // Its pages and its meta page are there, and nothing that says so.
        bench.run(Some(("kill", at)));
        let before = bench.trace().len();
        let said = bench.run(None);
        assert_eq!(acknowledged(&said), Some(6), "after a kill at change {at}: {said:?}");
        // Up to when the next commit is acknowledged.
        let mut trace = bench.trace();
        let mut marks = (before..trace.len()).filter(|n| matches!(trace[*n], Change::Mark(_)));
        let end = marks.nth(1).unwrap_or(trace.len());
        trace.truncate(end);
        for _ in 0..3 {
            lose_power_everywhere(&bench, &trace, before, &mut rng);
        }
    }
}

/// The net is worth something: a log that does not sync, or that names its files without syncing their directory, is found out.
fn a_log_that_does_not_sync_is_found_out(engine: LogEngine) {
    let bench = Bench::new(engine, 6, 6);
    bench.run(None);
    let honest = bench.trace();
    type Lie = fn(&Change) -> Option<Change>;
    let lies: [(&str, Lie); 2] = [
        ("no sync", |change| match change {
            Change::Sync(_) => None,
            Change::Write { path, offset, data, .. } => {
                Some(Change::Write { path: path.clone(), offset: *offset, data: data.clone(), through: false })
            }
            other => Some(other.clone()),
        }),
        ("no sync of directories", |change| match change {
            Change::SyncDir(_) => None,
            other => Some(other.clone()),
        }),
    ];
    for (what, lie) in lies {
        let changes: Vec<Change> = honest.iter().filter_map(lie).collect();
        assert!(changes.len() < honest.len(), "{what}: there was nothing to leave out");
        let run = || lose_power_everywhere(&bench, &changes, 0, &mut Rng::new(6));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err(), "{what} is not found");
    }
}
