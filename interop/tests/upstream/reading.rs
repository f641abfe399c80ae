//! `read`, `is_upstream` and `inspect` against what upstream itself says of its directory.

use std::path::Path;

use raftify::raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, HardState};
use raftify::StableStorage as _;
use raftify_engine::ErrorCode;
use raftify_interop::{inspect, is_upstream, read};

use crate::theirs::{conf, entry, files, plain, snapshot, storage, with_node};

#[test]
fn everything_upstream_wrote_is_read_as_upstream_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = storage(dir.path());
    storage.apply_snapshot(snapshot(0, 0, b"")).unwrap();
    // Values within pages, on pages of their own, and enough of them for a tree of several levels.
    let entries: Vec<Entry> =
        (1..=3000u64).map(|i| entry(i, 1 + i / 1000, &vec![i as u8; (i % 97) as usize])).collect();
    storage.append(&entries).unwrap();
    storage.append(&[entry(3001, 4, &vec![7; 3_000_000]), entry(3002, 4, &vec![8; 2037])]).unwrap();
    storage.set_hard_state(&HardState { term: 5, vote: 3, commit: 2999 }).unwrap();
    storage.set_conf_state(&conf(&[1, 2, 3])).unwrap();
    storage.create_snapshot(vec![9; 100_000], 40, 1).unwrap();
    storage.compact(30).unwrap();

    // Beside the open database.
    let log = read(dir.path()).unwrap();
    assert_eq!(log.entries, storage.all_entries().unwrap());
    assert_eq!(log.entries.len(), 2973);
    assert_eq!(log.hard_state, storage.hard_state().unwrap());
    assert_eq!(log.conf_state, storage.conf_state().unwrap());
    assert_eq!(log.last_index, 3002);
    let ours = log.snapshot.unwrap();
    assert_eq!((ours.index, ours.term, ours.data, ours.conf_state), (40, 1, vec![9; 100_000], conf(&[1, 2, 3])));
    drop(storage);
    let before = files(dir.path());
    assert_eq!(read(dir.path()).unwrap().entries.len(), 2973);
    assert!(is_upstream(dir.path()));
    inspect(dir.path(), 0, 10).unwrap();
    assert_eq!(files(dir.path()), before, "nothing was changed");
}

#[test]
fn an_empty_directory_of_upstreams_is_one_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    drop(storage(dir.path()));
    assert!(is_upstream(dir.path()));
    let log = read(dir.path()).unwrap();
    assert_eq!(log, raftify_interop::UpstreamLog::default());
    let shown = inspect(dir.path(), 0, 10).unwrap();
    assert_eq!(shown["entries"], serde_json::json!([]));
    assert_eq!((&shown["snapshot"], &shown["first_index"]), (&serde_json::Value::Null, &serde_json::Value::Null));
}

#[test]
fn strangers_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("absent");
    let noise = dir.path().join("noise");
    std::fs::create_dir(&noise).unwrap();
    std::fs::write(noise.join("data.mdb"), vec![0x5a; 9000]).unwrap();
    let mut log = plain_bytes();
    log.truncate(100);
    let short = dir.path().join("short");
    std::fs::create_dir(&short).unwrap();
    std::fs::write(short.join("data.mdb"), log).unwrap();
    for (dir, code) in [
        (dir.path(), ErrorCode::WrongDirectory),
        (&missing, ErrorCode::WrongDirectory),
        (&noise, ErrorCode::CorruptData),
        (&short, ErrorCode::CorruptData),
    ] {
        assert!(!is_upstream(dir));
        for error in [read(dir).unwrap_err(), inspect(dir, 0, 1).unwrap_err()] {
            assert_eq!(error.code, code, "{error}");
            assert!(error.path.is_some());
        }
    }
}

fn plain_bytes() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    plain(dir.path(), 400, 3);
    std::fs::read(dir.path().join("data.mdb")).unwrap()
}

#[test]
fn a_damaged_file_is_an_error_and_never_a_crash() {
    let whole = plain_bytes();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data.mdb");
    let mut refused = 0;
    let mut look = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let codes = [ErrorCode::CorruptData, ErrorCode::WrongDirectory];
        for error in [read(dir.path()).err(), inspect(dir.path(), 0, u64::MAX).err()].into_iter().flatten() {
            assert!(codes.contains(&error.code), "{error}");
            refused += 1;
        }
        is_upstream(dir.path());
    };
    for end in (0..whole.len()).step_by(1024) {
        look(&whole[..end]);
    }
    // Headers, node tables and the beginnings of values lie at the ends of a page.
    for page in 0..whole.len() / 4096 {
        for at in (0..40).chain((40..4096).step_by(113)).chain(4070..4096) {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[page * 4096 + at] ^= flip;
                look(&bytes);
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

/// The directory that the Python tests show and import; `RAFTIFY_WRITE_FIXTURE=1` writes it anew.
#[test]
fn the_directory_of_the_python_tests_is_one_that_upstream_wrote() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/upstream");
    let dir = tempfile::tempdir().unwrap();
    let mut storage = storage(dir.path());
    storage.apply_snapshot(snapshot(0, 0, b"")).unwrap();
    let entries: Vec<Entry> = (1..=5)
        .map(|n| entry(n, 1, if n == 1 { String::new() } else { format!(r#"["k{n}", "{n}"]"#) }.as_bytes()))
        .collect();
    storage.append(&entries).unwrap();
    storage.set_hard_state(&HardState { term: 1, vote: 1, commit: 3 }).unwrap();
    storage.set_conf_state(&conf(&[1])).unwrap();
    drop(storage);
    if std::env::var_os("RAFTIFY_WRITE_FIXTURE").is_some_and(|on| on == "1") {
        std::fs::create_dir_all(&committed).unwrap();
        std::fs::copy(dir.path().join("data.mdb"), committed.join("data.mdb")).unwrap();
    }
    assert_eq!(read(&committed).unwrap(), read(dir.path()).unwrap());
    assert!(!committed.join("lock.mdb").exists(), "looking leaves nothing behind");
}

#[test]
fn a_log_is_shown_page_by_page_with_the_keys_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = storage(dir.path());
    storage.set_conf_state(&conf(&[1, 2])).unwrap();
    storage.set_hard_state(&HardState { term: 2, vote: 1, commit: 1 }).unwrap();
    let mut change = ConfChangeV2::default();
    for (id, kind) in [(2, ConfChangeType::AddNode), (3, ConfChangeType::AddLearnerNode)] {
        change.changes.push(ConfChangeSingle { node_id: id, change_type: kind as i32 });
    }
    let addrs: Vec<std::net::SocketAddr> = vec!["127.0.0.1:60062".parse().unwrap(), "[::1]:60063".parse().unwrap()];
    change.context = raftify::bincode::serialize(&addrs).unwrap();
    let mut added = entry(2, 2, &prost_raft::Message::encode_to_vec(&change));
    added.entry_type = EntryType::EntryConfChangeV2 as i32;
    storage.append(&[entry(1, 1, b"\x01\xff"), added, entry(3, 2, b"")]).unwrap();
    drop(storage);

    let shown = inspect(dir.path(), 0, 2).unwrap();
    assert_eq!(shown["format"], "raftify 0.1.x");
    assert_eq!(shown["hard_state"], serde_json::json!({"term": 2, "vote": 1, "commit": 1}));
    assert_eq!(
        shown["membership"],
        serde_json::json!({
            "index": null, "voters": [1, 2], "learners": [], "members": {"2": "127.0.0.1:60062", "3": "[::1]:60063"},
        })
    );
    assert_eq!((&shown["first_index"], &shown["last_index"], &shown["next_index"]), (&1.into(), &3.into(), &3.into()));
    assert_eq!(
        shown["entries"][0],
        serde_json::json!({
            "index": 1, "term": 1, "type": "EntryNormal", "size": 2, "data": "01ff", "context": "0000000000000000",
        })
    );
    assert_eq!(shown["entries"][1]["type"], "EntryConfChangeV2");
    let rest = inspect(dir.path(), 3, 2).unwrap();
    assert_eq!((rest["entries"].as_array().unwrap().len(), &rest["next_index"]), (1, &serde_json::Value::Null));
    let none = inspect(dir.path(), 3, 0).unwrap();
    assert_eq!((none["entries"].as_array().unwrap().len(), &none["next_index"]), (0, &3.into()));
    assert_eq!(read(dir.path()).unwrap().peers[&3], "[::1]:60063");
}

#[test]
fn a_live_node_can_be_looked_at_without_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let lines = with_node(path, |node| async move {
        for n in 0..30u8 {
            node.propose(vec![n; 5000]).await.unwrap();
            if n % 3 == 0 {
                assert_eq!(inspect(path, 0, 5).unwrap()["membership"]["voters"], serde_json::json!([1]));
                read(path).unwrap();
            }
        }
    });
    assert_eq!(lines.0.lock().unwrap().len(), 30);
}
