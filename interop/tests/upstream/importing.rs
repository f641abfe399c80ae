//! `import`, and a node of ours that goes on from what upstream left.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command as Process, Stdio};

use raftify::raft::eraftpb::{Entry, EntryType, HardState};
use raftify::StableStorage as _;
use raftify_engine::log::check;
use raftify_engine::{ErrorCode, Result};
use raftify_interop::{import, read, ImportOptions, ImportReport};

use crate::ours::{until, Ours};
use crate::theirs::{conf, encode, entry, files, free_addr, plain, snapshot, storage, with_node};

fn options(addr: &str, peers: &[(u64, &str)]) -> ImportOptions {
    ImportOptions {
        node_id: 1,
        raft_addr: addr.into(),
        cluster_id: "default".into(),
        peers: peers.iter().map(|(id, addr)| (*id, addr.to_string())).collect(),
    }
}

fn import_at(old: &Path, new: &Path) -> Result<ImportReport> {
    import(old, new, &options("127.0.0.1:60061", &[]))
}

fn command(n: usize) -> Vec<u8> {
    format!("command {n}").into_bytes()
}

#[test]
fn a_whole_node_of_upstreams_goes_on_as_one_of_ours() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let theirs = with_node(old.path(), |node| async move {
        for n in 1..=40 {
            node.propose(command(n)).await.unwrap();
        }
    });
    let commands: Vec<Vec<u8>> = (1..=40).map(command).collect();
    assert_eq!(*theirs.0.lock().unwrap(), commands);
    let upstream = read(old.path()).unwrap();
    assert!(upstream.hard_state.commit < upstream.last_index, "upstream's stored commit lags");

    let before = files(old.path());
    let addr = free_addr();
    let report = import(old.path(), new.path(), &options(&addr, &[])).unwrap();
    assert_eq!(report.newly_committed, upstream.last_index - upstream.hard_state.commit);
    assert_eq!((report.commands, report.snapshot), (40, None));
    assert!(report.to_string().contains("they are committed now"), "{report}");
    assert_eq!(report.to_json()["newly_committed"], report.newly_committed);
    assert_eq!(files(old.path()), before, "upstream's directory stays as it was");

    let node = Ours::start(new.path(), 1, &addr, &[(1, &addr)]);
    node.propose(b"first of ours");
    assert_eq!(node.lines(), [commands, vec![b"first of ours".to_vec()]].concat());
    let times = node.times();
    assert!(times[0] > 0 && times.is_sorted(), "entries bear the time of their import");
    node.close();
    let log = check(&new.path().join("node-1")).unwrap();
    assert_eq!(log.snapshot.unwrap().index, 1);
}

#[test]
fn a_snapshot_is_restored_before_the_entries_behind_it() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = old.path();
    with_node(path, |node| async move {
        for n in 1..=20 {
            node.propose(command(n)).await.unwrap();
        }
        let log = read(path).unwrap();
        node.make_snapshot(log.last_index, log.hard_state.term).await.unwrap();
        for n in 21..=30 {
            node.propose(command(n)).await.unwrap();
        }
    });
    let upstream = read(old.path()).unwrap().snapshot.unwrap();
    assert!(!upstream.data.is_empty());
    let addr = free_addr();
    let report = import(old.path(), new.path(), &options(&addr, &[])).unwrap();
    assert_eq!(report.snapshot, Some((upstream.index, upstream.data.len() as u64)));
    assert_eq!((report.first_index, report.commands, report.shift), (upstream.index + 1, 10, 0));
    let node = Ours::start(new.path(), 1, &addr, &[(1, &addr)]);
    until("all is applied", || node.lines().len() >= 30);
    assert_eq!(node.lines(), (1..=30).map(command).collect::<Vec<_>>());
    node.close();
    // And once more, from our own directory alone.
    let node = Ours::start(new.path(), 1, &addr, &[(1, &addr)]);
    node.propose(b"after a restart");
    assert_eq!(node.lines().len(), 31);
    node.close();
}

#[test]
fn the_other_members_join_empty_and_become_voters() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut upstream = storage(old.path());
    let state: Vec<Vec<u8>> = (1..=5).map(command).collect();
    upstream.set_conf_state(&conf(&[1, 2, 9])).unwrap();
    upstream.append(&(1..=9).map(|i| entry(i, 1, &command(i as usize))).collect::<Vec<Entry>>()).unwrap();
    upstream.create_snapshot(encode(&state), 5, 1).unwrap();
    drop(upstream);
    let (one, two) = (free_addr(), free_addr());
    let peers = [(1, one.as_str()), (2, two.as_str())];
    let report = import(old.path(), new.path(), &options(&one, &peers)).unwrap();
    assert_eq!(report.joining, [2]);
    let state = check(&new.path().join("node-1")).unwrap();
    assert_eq!(state.cluster.cluster.voters, [1]);
    assert_eq!(state.cluster.cluster.next_id, 10, "no id of the old cluster is given to another node");

    let first = Ours::start(new.path(), 1, &one, &peers);
    first.propose(b"alone");
    let status = first.node.status();
    assert_eq!((status.voters, status.learners), (vec![1], vec![2]));
    let second = Ours::start(new.path(), 2, &two, &[(1, &one)]);
    until("node 2 is a voter", || first.node.status().voters == [1, 2]);
    first.propose(b"together");
    until("node 2 has applied it", || second.lines().last().is_some_and(|line| line == b"together"));
    assert_eq!(second.lines(), first.lines());
    assert_eq!(first.lines().len(), 11);
    second.close();
    first.close();
}

#[test]
fn an_empty_snapshot_leaves_the_state_machine_as_it_is() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut upstream = storage(old.path());
    upstream.append(&(1..=7).map(|i| entry(i, 2, &command(i as usize))).collect::<Vec<Entry>>()).unwrap();
    upstream.create_snapshot(Vec::new(), 5, 2).unwrap();
    drop(upstream);
    let (one, two) = (free_addr(), free_addr());
    let report = import(old.path(), new.path(), &options(&one, &[(2, &two)])).unwrap();
    assert_eq!((report.snapshot, report.first_index, report.commands), (None, 6, 2));
    let first = Ours::start(new.path(), 1, &one, &[(1, &one)]);
    first.propose(b"more");
    assert_eq!(first.lines(), [command(6), command(7), b"more".to_vec()]);
    let second = Ours::start(new.path(), 2, &two, &[(1, &one)]);
    until("node 2 has the same", || second.lines() == first.lines());
    second.close();
    first.close();
}

#[test]
fn leftovers_that_upstream_never_removes_are_left_out() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut upstream = storage(old.path());
    upstream.append(&(1..=6).map(|i| entry(i, 1, b"old leader")).collect::<Vec<Entry>>()).unwrap();
    upstream.append(&[entry(4, 2, b"new leader")]).unwrap();
    drop(upstream);
    assert_eq!(read(old.path()).unwrap().entries.len(), 6, "upstream keeps the conflicting suffix");
    let report = import_at(old.path(), new.path()).unwrap();
    assert_eq!((report.left_out, report.last_index, report.shift, report.term), (Some((5, 2)), 5, 1, 2));
    let log = check(&new.path().join("node-1")).unwrap();
    assert_eq!((log.last_index, log.hard_state.commit, log.terms), (5, 5, vec![(2, 1), (5, 2)]));
}

#[test]
fn empty_and_membership_entries_keep_their_place_and_lose_their_meaning() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut upstream = storage(old.path());
    let mut change = entry(2, 1, b"\x0a\x02\x10\x02");
    change.entry_type = EntryType::EntryConfChangeV2 as i32;
    upstream.append(&[entry(1, 1, b""), change, entry(3, 1, b"x")]).unwrap();
    drop(upstream);
    let addr = free_addr();
    let report = import(old.path(), new.path(), &options(&addr, &[])).unwrap();
    assert_eq!((report.commands, report.first_index, report.last_index), (1, 2, 4));
    let node = Ours::start(new.path(), 1, &addr, &[(1, &addr)]);
    node.propose(b"y");
    assert_eq!(node.lines(), [b"x".to_vec(), b"y".to_vec()]);
    assert_eq!(node.node.status().voters, [1]);
    node.close();
}

#[test]
fn nothing_is_left_of_an_import_that_cannot_be() {
    let (old, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(storage(empty.path()));
    let mut upstream = storage(old.path());
    upstream.append(&[entry(1, 1, b"a"), entry(2, 1, b"b"), entry(3, 1, b"c")]).unwrap();
    upstream.compact(2).unwrap();
    drop(upstream);
    let new = tempfile::tempdir().unwrap();
    for (dir, code, text) in [
        (old.path(), ErrorCode::CorruptData, "entry 1 is missing"),
        (empty.path(), ErrorCode::InvalidArgument, "nothing to import"),
        (new.path(), ErrorCode::WrongDirectory, "data.mdb"),
    ] {
        let error = import_at(dir, new.path()).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(text), "{error}");
    }
    assert_eq!(std::fs::read_dir(new.path()).unwrap().count(), 0);
}

#[test]
fn a_place_that_is_taken_stays_as_it_is() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plain(old.path(), 3, 3);
    let node = new.path().join("node-1");
    std::fs::create_dir(&node).unwrap();
    import_at(old.path(), new.path()).unwrap();
    let before = files(new.path());
    let error = import_at(old.path(), new.path()).unwrap_err();
    assert_eq!(error.code, ErrorCode::WrongDirectory);
    assert_eq!(files(new.path()), before);
    let busy = tempfile::tempdir().unwrap();
    std::fs::create_dir(busy.path().join("node-1.importing")).unwrap();
    let error = import_at(old.path(), busy.path()).unwrap_err();
    assert_eq!(error.code, ErrorCode::DirectoryInUse);
    assert!(busy.path().join("node-1.importing").exists());
}

#[test]
fn wrong_members_are_refused_by_field() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plain(old.path(), 3, 3);
    let good = options("a:1", &[(2, "b:2")]);
    let table = [
        (ImportOptions { node_id: 0, ..good.clone() }, "node_id"),
        (ImportOptions { raft_addr: "nonsense".into(), ..good.clone() }, "raft_addr"),
        (ImportOptions { raft_addr: "0.0.0.0:1".into(), ..good.clone() }, "raft_addr"),
        (ImportOptions { peers: BTreeMap::from([(2, "b".into())]), ..good.clone() }, "peers"),
        (ImportOptions { peers: BTreeMap::from([(2, "a:1".into())]), ..good.clone() }, "peers"),
        (ImportOptions { peers: BTreeMap::from([(1, "c:1".into())]), ..good }, "peers"),
    ];
    for (options, field) in table {
        let error = import(old.path(), new.path(), &options).unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (ErrorCode::InvalidConfig, Some(field)), "{options:?}");
    }
}

#[test]
fn many_large_entries_are_imported_in_several_writes() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut upstream = storage(old.path());
    upstream.apply_snapshot(snapshot(0, 0, b"")).unwrap();
    upstream.append(&(1..=9000).map(|i| entry(i, 1, &[i as u8; 9])).collect::<Vec<Entry>>()).unwrap();
    upstream.append(&(9001..=9010).map(|i| entry(i, 1, &vec![i as u8; 2 << 20])).collect::<Vec<Entry>>()).unwrap();
    upstream.set_hard_state(&HardState { term: 3, vote: 2, commit: 9000 }).unwrap();
    drop(upstream);
    let report = import_at(old.path(), new.path()).unwrap();
    assert_eq!((report.commands, report.newly_committed, report.term), (9010, 10, 3));
    let log = check(&new.path().join("node-1")).unwrap();
    assert_eq!((log.last_index, log.hard_state.commit, log.bytes), (9011, 9011, 9 * 9000 + (20 << 20)));
}

const HELD: &str = "RAFTIFY_INTEROP_HELD_DIRECTORY";

/// Not a test by itself: the process below runs it, to be one that has upstream's database open.
#[test]
fn holds_a_directory_until_its_input_ends() {
    let Some(dir) = std::env::var_os(HELD) else { return };
    let _storage = storage(Path::new(&dir));
    println!("held");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

#[test]
fn the_directory_of_a_running_node_is_not_imported() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plain(old.path(), 3, 3);
    let mut holder = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "importing::holds_a_directory_until_its_input_ends", "--nocapture"])
        .env(HELD, old.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(holder.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("held") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "the holder has ended");
    }
    let error = import_at(old.path(), new.path()).unwrap_err();
    assert_eq!(error.code, ErrorCode::DirectoryInUse);
    assert!(error.message.contains(&holder.id().to_string()), "{error}");
    drop(holder.stdin.take());
    // So that it can write the rest of its report.
    std::io::copy(&mut said, &mut std::io::sink()).unwrap();
    assert!(holder.wait().unwrap().success());
    import_at(old.path(), new.path()).unwrap();
}
