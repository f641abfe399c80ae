//! The log as a whole: what is written comes back, whatever happens between.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use raft::eraftpb::HardState;

use super::*;
use crate::cluster::ClusterState;
use crate::config::LogEngine;
use crate::error::{Committed, ErrorCode};

pub(super) fn identity(node_id: u64) -> Identity {
    Identity { node_id, directory: Uid(99), digest: 5, cluster_id: String::new(), incarnation: None }
}

pub(super) fn cluster(index: u64) -> ClusterRecord {
    let mut cluster = ClusterState::founding(&BTreeMap::from([(1, "a:1".into()), (2, "b:2".into())]));
    cluster.time_us = index;
    ClusterRecord { index, cluster }
}

pub(super) fn meta(index: u64, term: u64) -> SnapshotMeta {
    SnapshotMeta {
        index,
        term,
        cluster: cluster(index).cluster,
        size: 0,
        sessions: 0,
        crc: 0,
        has_file: index > 1,
        outcomes: None,
    }
}

/// A log as an initial member begins it: a founding snapshot at 1.
pub(super) fn founding(node_id: u64) -> NewLog {
    NewLog {
        identity: identity(node_id),
        cluster: cluster(1),
        hard_state: HardState { term: 1, vote: 0, commit: 1 },
        snapshot: Some(meta(1, 1)),
    }
}

/// Small segments, so that tests have several.
pub(super) fn options(engine: LogEngine) -> LogOptions {
    LogOptions { engine, segment_size: 64 << 10, ..LogOptions::of(1) }
}

pub(super) fn open(engine: LogEngine, dir: &Path) -> Result<OpenedLog, Error> {
    open_or_create(dir, &options(engine), || Ok(founding(1)))
}

/// Runs each test with both engines.
macro_rules! with_both_engines {
    ($($name:ident),* $(,)?) => {
        mod lmdb {
            $(#[test] fn $name() { super::$name(crate::config::LogEngine::Lmdb) })*
        }
        mod segment {
            $(#[test] fn $name() { super::$name(crate::config::LogEngine::Segment) })*
        }
    };
}
pub(super) use with_both_engines;

with_both_engines!(
    a_new_log_begins_after_its_founding_snapshot,
    a_waiting_node_begins_with_nothing,
    what_was_written_is_read_back_here_and_after_a_kill,
    a_read_is_cut_after_the_entry_that_exceeds_its_bytes,
    compaction_moves_the_first_index_at_once_and_deletes_in_steps,
    a_log_can_be_compacted_to_its_last_entry,
    what_promises_nothing_waits_for_the_next_write_or_the_stop,
    a_write_that_contradicts_the_log_stops_it_for_good,
    a_commit_beyond_the_log_and_an_older_configuration_are_not_stored,
    a_full_quota_refuses_appends_but_lets_the_log_be_compacted,
    each_wrong_directory_is_told_apart,
    an_unfinished_beginning_is_begun_again,
    an_inspection_shows_the_log_beside_a_live_node,
    an_inspection_beside_a_busy_writer_is_always_whole,
    an_inspection_beside_a_node_that_starts_again_and_again_is_always_whole,
    an_inspection_says_that_the_log_is_missing,
    a_reader_beside_a_busy_writer_gets_what_is_there,
    an_inspection_of_the_wrong_place_says_what_is_there,
    an_inspection_says_which_directory_it_cannot_look_at,
);

pub(super) fn entry(index: u64, term: u64, size: usize) -> Entry {
    let data: Vec<u8> = (0..size).map(|n| (n as u64 ^ index.wrapping_mul(31)) as u8).collect();
    Entry { entry_type: 0, term, index, data: data.into(), context: vec![index as u8; 3].into() }
}

pub(super) fn append(entries: Vec<Entry>) -> LogWrite {
    LogWrite { entries: Some(Arc::new(entries)), must_sync: true, ..Default::default() }
}

pub(super) fn range(from: u64, to: u64, term: u64, size: usize) -> LogWrite {
    append((from..=to).map(|i| entry(i, term, size)).collect())
}

pub(super) fn hard_state(term: u64, vote: u64, commit: u64) -> LogWrite {
    LogWrite { hard_state: Some(HardState { term, vote, commit }), must_sync: true, ..Default::default() }
}

pub(super) fn compact(index: u64, term: u64, to: u64) -> LogWrite {
    LogWrite {
        snapshot: Some(Arc::new(meta(index, term))),
        compact_to: Some(to),
        must_sync: true,
        ..Default::default()
    }
}

/// Ends the log as a kill would: no flush, no marker, the files as they are. Returns the directory to open next.
pub(super) fn killed(dir: &Path, log: OpenedLog) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("log")).unwrap();
    for file in std::fs::read_dir(dir.join("log")).unwrap() {
        let file = file.unwrap();
        // A segment that was just being made may have got its name meanwhile.
        let _ = std::fs::copy(file.path(), copy.path().join("log").join(file.file_name()));
    }
    drop(log);
    copy
}

fn a_new_log_begins_after_its_founding_snapshot(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("logs/node-1");
    let log = open(engine, &node).unwrap();
    assert!(log.created);
    let state = log.state.clone();
    assert_eq!((state.first_index, state.prev_term, state.last_index), (2, 1, 1));
    assert_eq!(state.identity, identity(1));
    assert_eq!(state.snapshot, Some(meta(1, 1)));
    assert_eq!((state.hard_state.term, state.hard_state.commit, state.terms.len()), (1, 1, 0));
    drop(log);
    let again = open(engine, &node).unwrap();
    assert!(!again.created && again.clean);
    assert_eq!(format!("{:?}", again.state), format!("{state:?}"));
}

fn a_waiting_node_begins_with_nothing(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let new = NewLog {
        snapshot: None,
        hard_state: HardState::default(),
        cluster: ClusterRecord { index: 0, cluster: ClusterState::default() },
        identity: identity(1),
    };
    let mut log = open_or_create(dir.path(), &options(engine), || Ok(new)).unwrap();
    assert_eq!((log.state.first_index, log.state.prev_term, log.state.last_index), (1, 0, 0));
    assert!(log.state.snapshot.is_none());
    // Its first content is a snapshot from the leader.
    let install =
        LogWrite { snapshot: Some(Arc::new(meta(40, 3))), reset: true, must_sync: true, ..Default::default() };
    log.writer.write(&[install, range(41, 43, 3, 10), hard_state(3, 0, 41)]).unwrap();
    drop(log);
    let log = open(engine, dir.path()).unwrap();
    assert_eq!((log.state.first_index, log.state.prev_term, log.state.last_index), (41, 3, 43));
    assert_eq!((log.state.hard_state.commit, log.state.cluster.index), (41, 40));
}

fn what_was_written_is_read_back_here_and_after_a_kill(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(engine, dir.path()).unwrap();
    log.writer.write(&[range(2, 50, 1, 100)]).unwrap();
    log.writer.write(&[hard_state(2, 2, 30), range(40, 60, 2, 5000)]).unwrap();
    let expected: Vec<Entry> = (2..40).map(|i| entry(i, 1, 100)).chain((40..=60).map(|i| entry(i, 2, 5000))).collect();
    assert_eq!(log.reader.entries(2, 61, u64::MAX).unwrap(), expected);
    let copy = killed(dir.path(), log);
    let log = open(engine, copy.path()).unwrap();
    assert!(!log.clean);
    assert_eq!(log.reader.entries(2, 999, u64::MAX).unwrap(), expected);
    assert_eq!(log.state.terms, [(2, 1), (40, 2)]);
    assert_eq!(log.state.bytes, 38 * 100 + 21 * 5000);
    assert_eq!((log.state.hard_state.term, log.state.hard_state.vote, log.state.hard_state.commit), (2, 2, 30));
}

fn a_read_is_cut_after_the_entry_that_exceeds_its_bytes(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(engine, dir.path()).unwrap();
    log.writer.write(&[range(2, 20, 1, 100)]).unwrap();
    for (low, high, max_bytes, count) in [
        (2, 21, 0, 1),
        (2, 21, 100, 2),
        (2, 21, 250, 3),
        (2, 21, u64::MAX, 19),
        (2, 5, u64::MAX, 3),
        (20, 99, 1, 1),
        (21, 99, 1, 0),
        (1, 21, u64::MAX, 0),
        (9, 9, 1, 0),
        (9, 3, 1, 0),
    ] {
        assert_eq!(log.reader.entries(low, high, max_bytes).unwrap().len(), count, "{low}..{high} {max_bytes}");
    }
}

fn compaction_moves_the_first_index_at_once_and_deletes_in_steps(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(engine, dir.path()).unwrap();
    log.writer.write(&[range(2, 5000, 1, 20), hard_state(1, 1, 4000)]).unwrap();
    log.writer.write(&[compact(4500, 1, 4000)]).unwrap();
    assert!(log.reader.entries(4000, 4100, 1).unwrap().is_empty());
    assert_eq!(log.reader.entries(4001, 4002, 1).unwrap(), [entry(4001, 1, 20)]);
    let copy = killed(dir.path(), log);
    let mut log = open(engine, copy.path()).unwrap();
    assert_eq!((log.state.first_index, log.state.prev_term, log.state.last_index), (4001, 1, 5000));
    // S7: commit is at or above what is compacted and named by the snapshot.
    assert_eq!((log.state.hard_state.commit, log.state.cluster.index), (4500, 4500));
    for n in 0..6 {
        log.writer.write(&[range(5001 + n, 5001 + n, 1, 20)]).unwrap();
    }
    drop(log);
    let log = open(engine, copy.path()).unwrap();
    assert_eq!((log.state.first_index, log.state.last_index), (4001, 5006));
    assert_eq!(log.reader.entries(4001, 9999, u64::MAX).unwrap().len(), 1006);
}

fn a_log_can_be_compacted_to_its_last_entry(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(engine, dir.path()).unwrap();
    log.writer.write(&[range(2, 9, 1, 20), hard_state(3, 1, 9), range(10, 10, 3, 1), compact(10, 3, 10)]).unwrap();
    drop(log);
    let mut log = open(engine, dir.path()).unwrap();
    let state = &log.state;
    assert_eq!((state.first_index, state.prev_term, state.last_index, state.terms.len()), (11, 3, 10, 0));
    log.writer.write(&[range(11, 12, 3, 1)]).unwrap();
    drop(log);
    assert_eq!(open(engine, dir.path()).unwrap().state.terms, [(11, 3)]);
}

fn what_promises_nothing_waits_for_the_next_write_or_the_stop(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(engine, dir.path()).unwrap();
    log.writer.write(&[range(2, 9, 1, 20)]).unwrap();
    let commit = LogWrite { must_sync: false, ..hard_state(1, 0, 5) };
    log.writer.write(std::slice::from_ref(&commit)).unwrap();
    let copy = killed(dir.path(), log);
    assert_eq!(open(engine, copy.path()).unwrap().state.hard_state.commit, 1);
    // `killed` also stopped the first one in order, afterwards.
    assert_eq!(open(engine, dir.path()).unwrap().state.hard_state.commit, 5);
    // A vote is a promise, whatever the flag says.
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(engine, dir.path()).unwrap();
    log.writer.write(&[LogWrite { must_sync: false, ..hard_state(2, 2, 1) }]).unwrap();
    let copy = killed(dir.path(), log);
    assert_eq!(open(engine, copy.path()).unwrap().state.hard_state.vote, 2);
}

fn a_write_that_contradicts_the_log_stops_it_for_good(engine: LogEngine) {
    let table: Vec<(&str, LogWrite)> = vec![
        ("gap", range(13, 14, 2, 1)),
        ("replaces committed", range(5, 13, 2, 1)),
        ("term falls", range(12, 12, 1, 1)),
        ("unordered", append(vec![entry(12, 2, 1), entry(14, 2, 1)])),
        (
            "cluster record beyond the log",
            LogWrite { cluster: Some(Arc::new(cluster(12))), must_sync: true, ..Default::default() },
        ),
        ("second vote", hard_state(2, 1, 6)),
        ("term goes back", hard_state(1, 0, 6)),
        ("entries of a later term", range(12, 12, 3, 1)),
        ("compaction beyond the snapshot", LogWrite { compact_to: Some(5), must_sync: true, ..Default::default() }),
        ("reset without snapshot", LogWrite { reset: true, must_sync: true, ..Default::default() }),
        ("snapshot beyond the log", compact(12, 2, 3)),
        ("identity", LogWrite { identity: Some(identity(2)), must_sync: true, ..Default::default() }),
    ];
    for (what, write) in table {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(engine, dir.path()).unwrap();
        log.writer.write(&[range(2, 10, 1, 10)]).unwrap();
        log.writer.write(&[hard_state(2, 2, 6), range(9, 10, 2, 10)]).unwrap();
        let before = log.reader.entries(2, 99, u64::MAX).unwrap();
        let error = log.writer.write(&[range(11, 11, 2, 1), write]).expect_err(what);
        assert_eq!(error.code, ErrorCode::Internal, "{what}: {error}");
        assert_eq!(log.writer.write(&[range(11, 11, 2, 1)]).unwrap_err(), error, "{what}");
        drop(log);
        let log = open(engine, dir.path()).unwrap();
        assert!(!log.clean, "{what}");
        assert_eq!(log.reader.entries(2, 99, u64::MAX).unwrap(), before, "{what}");
    }
}

fn a_commit_beyond_the_log_and_an_older_configuration_are_not_stored(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(engine, dir.path()).unwrap();
    let with_cluster =
        |index| LogWrite { cluster: Some(Arc::new(cluster(index))), must_sync: true, ..Default::default() };
    log.writer.write(&[range(2, 10, 1, 1), with_cluster(7), with_cluster(5), hard_state(1, 1, 99)]).unwrap();
    drop(log);
    let log = open(engine, dir.path()).unwrap();
    assert_eq!((log.state.cluster.index, log.state.hard_state.commit), (7, 10));
}

fn a_full_quota_refuses_appends_but_lets_the_log_be_compacted(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { disk_quota: Some(4 << 20), ..options(engine) };
    let mut log = open_or_create(dir.path(), &options, || Ok(founding(1))).unwrap();
    let mut last = 1;
    let error = loop {
        match log.writer.write(&[range(last + 1, last + 4, 1, 10_000)]) {
            Ok(()) => last += 4,
            Err(error) => break error,
        }
        assert!(last < 1000);
    };
    assert_eq!((error.code, error.committed), (ErrorCode::DiskFull, Committed::No));
    assert!(error.path.is_some_and(|path| path.starts_with(dir.path())));
    assert!(log.writer.write(&[range(last + 1, last + 4, 1, 10_000)]).is_err_and(|e| e.code == ErrorCode::DiskFull));
    log.writer.write(&[hard_state(1, 1, last)]).unwrap();
    log.writer.write(&[compact(last, 1, last - 5)]).unwrap();
    log.writer.write(&[range(last + 1, last + 4, 1, 10_000)]).unwrap();
    let files = std::fs::read_dir(dir.path().join("log")).unwrap().map(|f| f.unwrap());
    let log_bytes =
        |f: &std::fs::DirEntry| f.path().extension().is_some_and(|e| e == "seg") || f.file_name() == "data.mdb";
    // What is too much is deleted meanwhile: one that was listed may be gone.
    assert!(files.filter(log_bytes).filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum::<u64>() <= 4 << 20);
    drop(log);
    assert_eq!(open(engine, dir.path()).unwrap().state.last_index, last + 4);
}

fn each_wrong_directory_is_told_apart(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(engine, dir.path()).unwrap();
    assert_eq!(open(engine, dir.path()).unwrap_err().code, ErrorCode::DirectoryInUse);
    drop(log);
    let other = LogOptions { node_id: 2, ..options(engine) };
    let error = open_or_create(dir.path(), &other, || Ok(founding(2))).unwrap_err();
    assert_eq!(error.code, ErrorCode::WrongDirectory);
    assert!(error.message.contains("belongs to node 1, not to node 2"), "{error}");

    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("precious.txt"), b"x").unwrap();
    let error = open(engine, foreign.path()).unwrap_err();
    assert_eq!(error.code, ErrorCode::WrongDirectory);
    assert!(error.message.contains("precious.txt"), "{error}");
    assert_eq!(std::fs::read_dir(foreign.path()).unwrap().count(), 1);

    let file = foreign.path().join("precious.txt");
    assert_eq!(open(engine, &file.join("node-1")).unwrap_err().code, ErrorCode::Storage);
    for file in std::fs::read_dir(dir.path().join("log")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "seg" || e == "mdb") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(open(engine, dir.path()).unwrap_err().code, ErrorCode::CorruptData);
}

fn an_unfinished_beginning_is_begun_again(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let error =
        open_or_create(dir.path(), &options(engine), || Err(Error::not_done(ErrorCode::Internal, "no"))).unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal);
    std::fs::create_dir(dir.path().join("log.new")).unwrap();
    std::fs::write(dir.path().join("log.new/data.mdb"), b"half").unwrap();
    assert!(open(engine, dir.path()).unwrap().created);
}

fn an_inspection_shows_the_log_beside_a_live_node(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node-1");
    let mut log = open(engine, &node).unwrap();
    log.writer.write(&[range(2, 300, 1, 20), hard_state(2, 2, 250), range(301, 303, 2, 9000)]).unwrap();
    log.writer.write(&[compact(200, 1, 100)]).unwrap();
    for path in [dir.path(), node.as_path()] {
        let shown = inspect(path, 0, 2).unwrap();
        assert_eq!(shown["identity"]["node_id"], 1);
        assert_eq!(shown["identity"]["directory"], Uid(99).to_string());
        assert!(shown["identity"]["incarnation"].is_null());
        assert_eq!(shown["hard_state"], serde_json::json!({"term": 2, "vote": 2, "commit": 250}));
        assert_eq!(
            shown["snapshot"],
            serde_json::json!({"index": 200, "term": 1, "size": 0, "sessions": 0, "has_file": true})
        );
        assert_eq!(shown["membership"]["members"], serde_json::json!({"1": "a:1", "2": "b:2"}));
        assert_eq!((&shown["membership"]["index"], &shown["membership"]["voters"][1]), (&200.into(), &2.into()));
        assert_eq!((&shown["first_index"], &shown["last_index"]), (&101.into(), &303.into()));
        assert_eq!(shown["next_index"], 103);
        let first = &shown["entries"][0];
        assert_eq!((&first["index"], &first["size"], &first["type"]), (&101.into(), &20.into(), &"EntryNormal".into()));
        assert_eq!(first["data"].as_str().unwrap().len(), 40);
    }
    let all = inspect(&node, 0, u64::MAX).unwrap();
    assert_eq!(all["entries"].as_array().unwrap().len(), 203);
    assert!(all["next_index"].is_null());
    assert_eq!(inspect(&node, 303, 9).unwrap()["entries"][0]["size"], 9000);
    assert_eq!(inspect(&node, 304, 9).unwrap()["entries"].as_array().unwrap().len(), 0);
    // The lock is still held: nothing has opened and closed its file.
    assert_eq!(open(engine, &node).unwrap_err().code, ErrorCode::DirectoryInUse);
    log.writer.write(&[range(304, 304, 2, 5)]).unwrap();
}

/// Entries 2 to 500, then 400 writes that each append one entry and compact one, while `look` is called again and again.
fn beside_a_busy_writer(engine: LogEngine, mut look: impl FnMut(&Path, &dyn LogReader)) {
    let dir = tempfile::tempdir().unwrap();
    let OpenedLog { mut writer, reader, .. } = open(engine, dir.path()).unwrap();
    writer.write(&[range(2, 500, 1, 100)]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for last in 500..900 {
                let write = LogWrite {
                    hard_state: Some(HardState { term: 1, vote: 0, commit: last }),
                    ..compact(last, 1, last - 400)
                };
                writer.write(&[write, range(last + 1, last + 1, 1, size_beside(last + 1))]).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut looked = false;
        while !looked || !done.load(std::sync::atomic::Ordering::Acquire) {
            look(dir.path(), reader.as_ref());
            looked = true;
        }
    });
}

fn size_beside(index: u64) -> usize {
    if index > 500 {
        100 + (index - 1) as usize % 3 * 3000
    } else {
        100
    }
}

fn a_reader_beside_a_busy_writer_gets_what_is_there(engine: LogEngine) {
    let (mut low, mut read) = (2, 0);
    beside_a_busy_writer(engine, |_, reader| {
        // To the end, whatever that is.
        let entries = reader.entries(low, u64::MAX, 1_000_000).unwrap();
        for (found, index) in entries.iter().zip(low..) {
            assert_eq!(*found, entry(index, 1, size_beside(index)));
        }
        read += entries.len();
        low = low % 900 + 7;
    });
    assert!(read > 0);
}

fn an_inspection_beside_a_busy_writer_is_always_whole(engine: LogEngine) {
    let mut last = 0;
    beside_a_busy_writer(engine, |dir, _| {
        let json = inspect(dir, 0, 100).unwrap();
        let before = std::mem::replace(&mut last, json["last_index"].as_u64().unwrap());
        assert!(before <= last, "{before} was there, and {last} is the last one now");
        for listed in json["entries"].as_array().unwrap() {
            let index = listed["index"].as_u64().unwrap();
            assert_eq!(listed["size"], size_beside(index), "{index}");
        }
    });
}

fn an_inspection_beside_a_node_that_starts_again_and_again_is_always_whole(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    drop(open(engine, dir.path()).unwrap());
    let durable = std::sync::atomic::AtomicU64::new(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for last in 1..80 {
                let mut log = open(engine, dir.path()).unwrap();
                log.writer.write(&[range(last + 1, last + 1, 1, 9000), hard_state(1, 1, last)]).unwrap();
                durable.store(last + 1, std::sync::atomic::Ordering::Release);
                if last % 20 == 0 {
                    log.writer.write(&[compact(last, 1, last - 1)]).unwrap();
                }
            }
            durable.store(u64::MAX, std::sync::atomic::Ordering::Release);
        });
        loop {
            let before = durable.load(std::sync::atomic::Ordering::Acquire);
            if before == u64::MAX {
                break;
            }
            let last = inspect(dir.path(), 0, 1).unwrap()["last_index"].as_u64().unwrap();
            assert!(before <= last, "{before} was durable, and {last} is shown as the last one");
        }
    });
    assert_eq!(inspect(dir.path(), 0, 1).unwrap()["last_index"], 80);
}

fn an_inspection_says_that_the_log_is_missing(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    drop(open(engine, dir.path()).unwrap());
    for file in std::fs::read_dir(dir.path().join("log")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "seg" || e == "mdb") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(inspect(dir.path(), 0, 1).unwrap_err(), open(engine, dir.path()).unwrap_err());
}

fn an_inspection_of_the_wrong_place_says_what_is_there(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let says = |path: &Path, text: &str| {
        let error = inspect(path, 0, 1).unwrap_err();
        assert_eq!(error.code, ErrorCode::WrongDirectory, "{error}");
        assert!(error.message.contains(text), "{error}");
    };
    says(&dir.path().join("absent"), "no such directory");
    says(dir.path(), "is empty");
    std::fs::write(dir.path().join("file"), b"").unwrap();
    says(dir.path(), "no log of this library");
    says(&dir.path().join("file"), "not a directory");
    for id in [1, 2] {
        open_or_create(&dir.path().join(format!("node-{id}")), &LogOptions { node_id: id, ..options(engine) }, || {
            Ok(founding(id))
        })
        .unwrap();
    }
    says(dir.path(), "several nodes lie there (node-1, node-2)");
}

/// As one that the user may not read; this one nobody can.
fn an_inspection_says_which_directory_it_cannot_look_at(engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node-1");
    open_or_create(&node, &options(engine), || Ok(founding(1))).unwrap();
    let log = node.join("log");
    std::fs::remove_dir_all(&log).unwrap();
    std::os::unix::fs::symlink(&log, &log).unwrap();
    for named in [&node, dir.path()] {
        let error = inspect(named, 0, 1).unwrap_err();
        assert_eq!((error.code, error.path.as_deref()), (ErrorCode::Storage, Some(log.as_path())), "{error}");
    }
    let beside = LogOptions { node_id: 2, ..options(engine) };
    open_or_create(&dir.path().join("node-2"), &beside, || Ok(founding(2))).unwrap();
    assert!(inspect(dir.path(), 0, 1).is_ok(), "it is not the one that is meant");
}
