//! Snapshot files as a whole.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::file::CHUNK;
use super::*;
use crate::checksum;
use crate::direct::{Pace, PIECE};
use crate::error::ErrorCode;
use crate::faults::{fail_next, Fault};

fn cluster() -> ClusterState {
    ClusterState::founding(&BTreeMap::from([(1, "a:1".into()), (2, "b:2".into())]))
}

fn state(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n ^ ((n >> 8) * 31)) as u8).collect()
}

fn written(dir: &SnapshotDir, index: u64, state: &[u8]) -> SnapshotMeta {
    let mut writer = dir.create(index, 2, &cluster()).unwrap();
    state.chunks(100_000).for_each(|part| writer.write(part).unwrap());
    writer.finish(b"").unwrap()
}

/// Also what it gives back later is gone when this returns.
fn prune(dir: &SnapshotDir, keep: &SnapshotMeta, first_index: u64) {
    dir.prune(keep, first_index).unwrap().give_back(&Pace::hurried());
}

fn read_all(dir: &SnapshotDir, meta: &SnapshotMeta) -> Result<Vec<u8>> {
    let mut reader = dir.open_reader(meta)?;
    let (mut all, mut buffer) = (Vec::new(), vec![0; 70_001]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
}

#[test]
fn a_state_of_any_size_comes_back_and_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(dir.path()).unwrap();
    for (index, size) in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 77].into_iter().enumerate() {
        let state = state(size);
        let meta = written(&dir, index as u64 + 1, &state);
        assert_eq!((meta.size, meta.crc, meta.has_file), (size as u64, crc32c::crc32c(&state), true));
        assert_eq!(meta.cluster, cluster());
        assert!(read_all(&dir, &meta).unwrap() == state, "{size}");
        dir.verify(&meta).unwrap();
        assert_eq!(dir.list().unwrap()[0], meta);
        let mut tail = [0; 9];
        let from = (size as u64).saturating_sub(4);
        let count = dir.open_reader(&meta).unwrap().read_at(from, &mut tail).unwrap();
        assert_eq!(tail[..count], state[from as usize..][..count]);
    }
}

#[test]
fn what_is_not_finished_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let mut writer = dir.create(5, 1, &cluster()).unwrap();
    writer.write(&state(CHUNK * 2)).unwrap();
    assert_eq!(writer.size(), CHUNK as u64 * 2);
    drop(writer);
    assert_eq!(std::fs::read_dir(&dir.path).unwrap().count(), 0);
    // A crash leaves the temporary file; the next start removes it.
    std::mem::forget(dir.create(6, 1, &cluster()).unwrap());
    assert_eq!(std::fs::read_dir(&dir.path).unwrap().count(), 1);
    SnapshotDir::open(root.path()).unwrap();
    assert_eq!(std::fs::read_dir(&dir.path).unwrap().count(), 0);
}

#[test]
fn a_second_snapshot_of_an_index_does_not_replace_the_first() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let first = written(&dir, 5, b"one state");
    let second = written(&dir, 5, b"the same state, other bytes");
    assert_eq!(read_all(&dir, &first).unwrap(), b"one state");
    assert_eq!(read_all(&dir, &second).unwrap(), b"the same state, other bytes");
    prune(&dir, &second, 3);
    assert_eq!(dir.list().unwrap(), [second]);
}

#[test]
fn any_flipped_bit_or_cut_is_found_by_the_check() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let meta = written(&dir, 5, &state(CHUNK + 5000));
    let path = dir.path(&meta);
    let whole = std::fs::read(&path).unwrap();
    let places = (0..whole.len()).filter(|at| *at < 200 || *at + 60 > whole.len() || at % 4099 == 0);
    for (n, at) in places.enumerate() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (n % 8);
        std::fs::write(&path, &damaged).unwrap();
        let error = dir.verify(&meta).expect_err("a flipped bit");
        assert_eq!((error.code, error.path.as_ref()), (ErrorCode::CorruptData, Some(&path)), "{at}");
    }
    for length in [0, 7, 30, 4000, CHUNK, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(dir.verify(&meta).unwrap_err().code, ErrorCode::CorruptData, "{length}");
    }
    std::fs::write(&path, [whole.as_slice(), b"x"].concat()).unwrap();
    assert_eq!(dir.verify(&meta).unwrap_err().code, ErrorCode::CorruptData);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(dir.verify(&meta).unwrap_err().code, ErrorCode::CorruptData);
    std::fs::write(&path, &whole).unwrap();
    dir.verify(&meta).unwrap();
    let other = SnapshotMeta { cluster: ClusterState::default(), ..meta };
    assert_eq!(dir.verify(&other).unwrap_err().code, ErrorCode::CorruptData);
}

#[test]
fn a_whole_file_under_the_name_of_another_snapshot_is_damage() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let meta = written(&dir, 5, b"state");
    let bytes = std::fs::read(dir.path(&meta)).unwrap();
    // The log names one that lies where a copy of this one was put.
    for other in [
        SnapshotMeta { index: 6, ..meta.clone() },
        SnapshotMeta { term: 3, ..meta.clone() },
        SnapshotMeta { size: 6, ..meta.clone() },
        SnapshotMeta { crc: 6, ..meta },
    ] {
        std::fs::write(dir.path(&other), &bytes).unwrap();
        assert_eq!(dir.verify(&other).unwrap_err().code, ErrorCode::CorruptData, "{other:?}");
    }
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let meta = written(&dir, 5, b"state");
    let path = dir.path(&meta);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] += 1;
    let body = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let crc = crc32c::crc32c(&bytes[..16 + body]);
    bytes[16 + body..20 + body].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(dir.verify(&meta).unwrap_err().code, ErrorCode::FormatTooNew);
}

#[test]
fn pruning_keeps_the_named_one_all_newer_and_the_newest_older_one_that_the_log_goes_on_from() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let metas: Vec<SnapshotMeta> = (1..=7).map(|index| written(&dir, index * 10, &state(10))).collect();
    std::fs::write(dir.path.join("notes.txt"), b"").unwrap();
    let left = |dir: &SnapshotDir| dir.list().unwrap().iter().map(|m| m.index).collect::<Vec<_>>();
    prune(&dir, &metas[4], 11);
    assert_eq!(left(&dir), [70, 60, 50, 40], "the log goes on from 10 to 40: the newest is enough");
    prune(&dir, &metas[4], 41);
    assert_eq!(left(&dir), [70, 60, 50, 40]);
    prune(&dir, &metas[4], 42);
    assert_eq!(left(&dir), [70, 60, 50], "entry 41 is gone: 40 is of no use any more");
    let founding = SnapshotMeta { index: 65, has_file: false, ..metas[0].clone() };
    prune(&dir, &founding, 66);
    assert_eq!(left(&dir), [70]);
    assert!(dir.path.join("notes.txt").exists());
}

#[test]
fn pruning_removes_what_a_broken_off_transfer_left_of_one_that_is_no_newer() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let metas: Vec<SnapshotMeta> = [50, 60].into_iter().map(|index| written(&dir, index, &state(10))).collect();
    let content = state(2 * CHUNK + 10);
    for (index, stays) in [(49, false), (50, false), (51, true), (60, true)] {
        let header = SnapshotHeader { index, ..announced(&content) };
        let mut incoming = dir.receive(&header).unwrap();
        incoming.write_at(0, &content[..CHUNK + 5]).unwrap();
        drop(incoming);
        prune(&dir, &metas[0], 51);
        assert_eq!(dir.part_path(&header).exists(), stays, "{index}");
        assert_eq!(dir.receive(&header).unwrap().offset(), if stays { CHUNK as u64 } else { 0 }, "{index}");
    }
    prune(&dir, &metas[1], 61);
    assert_eq!(std::fs::read_dir(&dir.path).unwrap().count(), 1, "what is left is 60");
}

#[test]
fn a_transfer_whose_file_is_pruned_writes_nothing_more_and_a_newer_one_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let kept = written(&dir, 50, &state(10));
    let content = state(2 * CHUNK + 10);
    for (index, sent) in [(50, CHUNK + 5), (50, content.len()), (51, CHUNK + 5), (51, content.len())] {
        let header = SnapshotHeader { index, ..announced(&content) };
        let mut incoming = dir.receive(&header).unwrap();
        incoming.write_at(0, &content[..sent]).unwrap();
        prune(&dir, &kept, 51);
        let more = incoming.write_at(sent as u64, &content[sent..]);
        let finished = incoming.finish();
        if index > kept.index {
            more.unwrap();
            let meta = finished.unwrap();
            assert!(read_all(&dir, &meta).unwrap() == content, "{sent}");
            std::fs::remove_file(dir.path(&meta)).unwrap();
        } else {
            assert_eq!(more.unwrap_err().code, ErrorCode::SnapshotFailed, "{sent}");
            assert_eq!(finished.unwrap_err().code, ErrorCode::SnapshotFailed, "{sent}");
        }
        assert_eq!(dir.list().unwrap(), std::slice::from_ref(&kept), "{index} {sent}");
        assert_eq!(std::fs::read_dir(&dir.path).unwrap().count(), 1, "{index} {sent}");
    }
}

#[test]
fn one_that_is_being_read_is_read_to_its_end_and_one_that_nobody_reads_gives_its_space_back() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let metas: Vec<SnapshotMeta> = (1..=3).map(|index| written(&dir, index, &state(3 * CHUNK))).collect();
    let mut read = dir.clone().open_reader(&metas[0]).unwrap();
    let given_back = std::fs::File::open(dir.path(&metas[1])).unwrap();
    read.read(&mut [0; 10]).unwrap();
    prune(&dir, &metas[2], 4);
    assert_eq!(dir.list().unwrap(), metas[2..]);
    read.verify().unwrap();
    assert_eq!(given_back.metadata().unwrap().len(), 0);
    // Names can come again, read or not.
    assert_eq!(written(&dir, 1, &state(3 * CHUNK)), metas[0]);
    drop(read);
    dir.verify(&metas[0]).unwrap();
}

#[test]
fn a_broken_off_transfer_goes_on_after_a_restart() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sender = SnapshotDir::open(from.path()).unwrap();
    let content = state(3 * CHUNK + 500);
    let meta = written(&sender, 9, &content);
    let header = wire_header(&meta);
    let receiver = SnapshotDir::open(to.path()).unwrap();
    let mut incoming = receiver.receive(&header).unwrap();
    assert_eq!(incoming.offset(), 0);
    incoming.write_at(0, &content[..2 * CHUNK + 70]).unwrap();
    assert_eq!(incoming.offset(), 2 * CHUNK as u64 + 70);
    drop(incoming);

    let receiver = SnapshotDir::open(to.path()).unwrap();
    let mut incoming = receiver.receive(&header).unwrap();
    assert_eq!(incoming.offset(), 2 * CHUNK as u64);
    let gap = incoming.write_at(2 * CHUNK as u64 + 1, b"x").unwrap_err();
    let more = incoming.write_at(2 * CHUNK as u64, &vec![0; 2 * CHUNK]).unwrap_err();
    assert_eq!((gap.code, more.code), (ErrorCode::SnapshotFailed, ErrorCode::SnapshotFailed));
    // Bytes that have arrived already are skipped.
    incoming.write_at(CHUNK as u64, &content[CHUNK..3 * CHUNK]).unwrap();
    let mut source = sender.open_reader(&meta).unwrap();
    let mut buffer = vec![0; 1000];
    while incoming.offset() < meta.size {
        let count = source.read_at(incoming.offset(), &mut buffer).unwrap();
        incoming.write_at(incoming.offset(), &buffer[..count]).unwrap();
    }
    assert_eq!(incoming.finish().unwrap(), meta);
    assert!(read_all(&receiver, &meta).unwrap() == content);
    assert_eq!(std::fs::read_dir(&receiver.path).unwrap().count(), 1);
    // Whole already, but perhaps not yet named by the log: nothing is asked for again.
    let again = receiver.receive(&header).unwrap();
    assert_eq!(again.offset(), meta.size);
    assert_eq!(again.finish().unwrap(), meta);
}

#[test]
fn damage_in_what_has_arrived_is_asked_for_again() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let content = state(3 * CHUNK);
    let header = SnapshotHeader {
        index: 9,
        term: 2,
        size: content.len() as u64,
        crc: crc32c::crc32c(&content),
        cluster: Some(cluster()),
        has_file: true,
        outcomes: None,
        sessions: 0,
    };
    let mut incoming = dir.receive(&header).unwrap();
    incoming.write_at(0, &content[..2 * CHUNK]).unwrap();
    let early = incoming.finish().unwrap_err();
    assert_eq!((early.code, early.index), (ErrorCode::SnapshotFailed, Some(9)));
    let part = dir.part_path(&header);
    let mut bytes = std::fs::read(&part).unwrap();
    let at = bytes.len() - 10;
    bytes[at] ^= 1;
    std::fs::write(&part, &bytes).unwrap();
    let mut incoming = dir.receive(&header).unwrap();
    assert_eq!(incoming.offset(), CHUNK as u64);
    // A peer that sends other bytes than it announced: found at the end, and not kept.
    incoming.write_at(CHUNK as u64, &vec![7; 2 * CHUNK]).unwrap();
    assert_eq!(incoming.finish().unwrap_err().code, ErrorCode::SnapshotFailed);
    assert_eq!(dir.receive(&header).unwrap().offset(), 0);
    // Another snapshot drops the part of this one.
    let other = dir.receive(&SnapshotHeader { index: 10, ..header }).unwrap();
    assert_eq!(std::fs::read_dir(&dir.path).unwrap().count(), 1);
    drop(other);
}

#[test]
fn what_has_arrived_of_one_with_other_members_is_not_gone_on_with() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let content = state(2 * CHUNK + 10);
    let header = announced(&content);
    // Another sender: the same state, and what it says of the cluster is not the same to the byte.
    let mut theirs = cluster();
    theirs.time_us = 7;
    let other = SnapshotHeader { cluster: Some(theirs), ..header.clone() };
    let mut incoming = dir.receive(&header).unwrap();
    incoming.write_at(0, &content[..CHUNK]).unwrap();
    drop(incoming);
    let mut incoming = dir.receive(&other).unwrap();
    assert_eq!(incoming.offset(), 0);
    incoming.write_at(0, &content).unwrap();
    let meta = incoming.finish().unwrap();
    assert_eq!(Some(&meta.cluster), other.cluster.as_ref());
    dir.verify(&meta).unwrap();
}

#[test]
fn a_peer_that_announces_more_of_sessions_than_there_is_at_all_is_refused_before_a_byte() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    for (sessions, taken) in [(0, true), (10, true), (11, false), (u64::MAX, false)] {
        let header = SnapshotHeader { sessions, ..announced(&state(10)) };
        match dir.receive(&header) {
            Ok(incoming) => assert_eq!((taken, incoming.offset()), (true, 0), "{sessions}"),
            Err(error) => {
                assert_eq!((taken, error.code, error.index), (false, ErrorCode::SnapshotFailed, Some(9)), "{sessions}");
                assert!(error.message.contains(&format!("{sessions} bytes of sessions in 10")), "{error}");
            }
        }
    }
}

/// What a peer says ahead of this state.
fn announced(content: &[u8]) -> SnapshotHeader {
    SnapshotHeader {
        index: 9,
        term: 2,
        size: content.len() as u64,
        crc: crc32c::crc32c(content),
        cluster: Some(cluster()),
        has_file: true,
        outcomes: None,
        sessions: 0,
    }
}

#[test]
fn of_two_transfers_at_once_the_later_one_goes_on_and_no_file_gets_a_hole() {
    let content = state(6 * CHUNK + CHUNK / 2);
    let header = announced(&content);
    let middle = 3 * CHUNK + CHUNK / 2;
    // What the second one takes before the first one goes on, and whether it lives on.
    for (taken, lives) in [(0, false), (0, true), (CHUNK, false), (5 * CHUNK, false), (5 * CHUNK, true)] {
        let root = tempfile::tempdir().unwrap();
        let dir = SnapshotDir::open(root.path()).unwrap();
        let mut first = dir.receive(&header).unwrap();
        first.write_at(0, &content[..middle]).unwrap();
        let mut second = dir.receive(&header).unwrap();
        let at = second.offset() as usize;
        second.write_at(at as u64, &content[at..taken.max(at)]).unwrap();
        let second = lives.then_some(second);
        let late = first.write_at(middle as u64, &content[middle..]);
        let finished = first.finish();
        assert!(
            finished.is_err() || dir.list().unwrap().iter().all(|meta| dir.verify(meta).is_ok()),
            "{taken} {lives}"
        );
        assert_eq!(late.unwrap_err().code, ErrorCode::SnapshotFailed, "{taken} {lives}");
        assert_eq!(finished.unwrap_err().code, ErrorCode::SnapshotFailed, "{taken} {lives}");
        let mut last = second.unwrap_or_else(|| dir.receive(&header).unwrap());
        let at = last.offset() as usize;
        last.write_at(at as u64, &content[at..]).unwrap();
        let meta = last.finish().unwrap();
        assert!(read_all(&dir, &meta).unwrap() == content, "{taken} {lives}");
    }
}

#[test]
fn what_an_earlier_transfer_holds_back_never_gets_into_a_file_that_a_later_one_has_finished() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let content = state(3 * PIECE);
    let header = announced(&content);
    let mut earlier = dir.receive(&header).unwrap();
    earlier.write_at(0, &content[..2 * PIECE]).unwrap();
    // Its sender goes on with something else. The end of that is not in the file yet.
    earlier.write_at(2 * PIECE as u64, &[9; PIECE]).unwrap();
    let mut later = dir.receive(&header).unwrap();
    let at = later.offset() as usize;
    assert_eq!(at, 2 * CHUNK, "both have the same file");
    later.write_at(at as u64, &content[at..]).unwrap();
    let meta = later.finish().unwrap();
    drop(earlier);
    dir.verify(&meta).unwrap();
}

#[test]
fn whoever_drops_a_transfer_waits_for_nobodys_disk() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let content = state(3 * CHUNK + 500);
    let header = announced(&content);
    let mut incoming = dir.receive(&header).unwrap();
    incoming.write_at(0, &content[..CHUNK + 500]).unwrap();
    // Another is inside the disk.
    let held = dir.transfer.lock().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(incoming);
        tell.send(()).unwrap();
    });
    told.recv_timeout(std::time::Duration::from_secs(60)).expect("it does not wait");
    drop(held);
    let mut again = dir.receive(&header).unwrap();
    let at = again.offset() as usize;
    again.write_at(at as u64, &content[at..]).unwrap();
    assert!(read_all(&dir, &again.finish().unwrap()).unwrap() == content);
}

#[test]
fn s5_of_what_a_write_or_sync_failed_for_nothing_is_believed_afterwards() {
    let content = state(3 * CHUNK + 500);
    let header = announced(&content);
    for fault in [Fault::Write, Fault::Sync] {
        let root = tempfile::tempdir().unwrap();
        let dir = SnapshotDir::open(root.path()).unwrap();
        let mut incoming = dir.receive(&header).unwrap();
        incoming.write_at(0, &content[..2 * CHUNK]).unwrap();
        fail_next(fault);
        let written = incoming.write_at(2 * CHUNK as u64, &content[2 * CHUNK..]);
        assert_eq!(written.is_err(), fault == Fault::Write);
        incoming.finish().unwrap_err();
        assert_eq!(std::fs::read_dir(&dir.path).unwrap().count(), 0, "{fault:?}");
        let mut again = dir.receive(&header).unwrap();
        assert_eq!(again.offset(), 0, "{fault:?}: it is in the page cache, and perhaps nowhere else");
        again.write_at(0, &content).unwrap();
        let meta = again.finish().unwrap();
        assert!(read_all(&dir, &meta).unwrap() == content);
    }
}

#[test]
fn s6_a_snapshot_is_received_only_once_its_name_is_durable() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let content = state(CHUNK + 500);
    let header = announced(&content);
    let mut incoming = dir.receive(&header).unwrap();
    incoming.write_at(0, &content).unwrap();
    for _ in 0..3 {
        fail_next(Fault::SyncDirectory);
        incoming.finish().unwrap_err();
        incoming = dir.receive(&header).unwrap();
        assert_eq!(incoming.offset(), header.size, "it is there under its name");
    }
    dir.verify(&incoming.finish().unwrap()).unwrap();
}

#[test]
fn s6_a_snapshot_of_our_own_is_made_only_once_file_and_name_are_durable() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    for fault in [Fault::Sync, Fault::SyncDirectory] {
        let mut writer = dir.create(5, 2, &cluster()).unwrap();
        writer.write(b"state").unwrap();
        fail_next(fault);
        assert!(writer.finish(b"").is_err(), "{fault:?}: the log would name it, and let go of what comes before it");
    }
    dir.verify(&written(&dir, 5, b"state")).unwrap();
}

#[test]
fn s5_the_names_that_a_start_believes_are_durable() {
    let root = tempfile::tempdir().unwrap();
    written(&SnapshotDir::open(root.path()).unwrap(), 5, b"state");
    fail_next(Fault::SyncDirectory);
    assert!(SnapshotDir::open(root.path()).is_err(), "a crash may have left the name in the page cache alone");
    SnapshotDir::open(root.path()).unwrap();
}

#[test]
fn a_snapshot_without_a_file_needs_none() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    let header = SnapshotHeader { index: 1, term: 1, cluster: Some(cluster()), ..Default::default() };
    let meta = dir.receive(&header).unwrap().finish().unwrap();
    assert!(!meta.has_file);
    dir.verify(&meta).unwrap();
    assert_eq!(dir.open_reader(&meta).unwrap_err().code, ErrorCode::Internal);
    assert_eq!(std::fs::read_dir(&dir.path).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]
    #[test]
    fn a_transfer_in_any_pieces_with_any_restarts_is_the_same_file(
        size in 0..3 * CHUNK, pieces in proptest::collection::vec((1..CHUNK, 0u64..4), 1..20)
    ) {
        let root = tempfile::tempdir().unwrap();
        let dir = SnapshotDir::open(root.path()).unwrap();
        let content = state(size);
        let header = SnapshotHeader {
            index: 3, term: 1, size: size as u64, crc: crc32c::crc32c(&content), cluster: Some(cluster()), has_file: true, outcomes: None,
            sessions: (size / 3) as u64,
        };
        let mut incoming = dir.receive(&header).unwrap();
        for (length, restart) in pieces {
            let at = incoming.offset() as usize;
            incoming.write_at(at as u64, &content[at..(at + length).min(size)]).unwrap();
            if restart == 0 {
                drop(incoming);
                incoming = dir.receive(&header).unwrap();
                prop_assert!(incoming.offset() as usize + CHUNK > at);
            }
        }
        let at = incoming.offset();
        incoming.write_at(at, &content[at as usize..]).unwrap();
        let meta = incoming.finish().unwrap();
        prop_assert!(read_all(&dir, &meta).unwrap() == content);
        dir.verify(&meta).unwrap();
        // The state machine gets the state alone.
        let (state, table) = content.split_at(meta.state_size() as usize);
        prop_assert_eq!(table.len() as u64, header.sessions);
        prop_assert!(dir.sessions(&meta).unwrap() == table);
        let mut reader = dir.open_reader(&meta).unwrap();
        let (mut restored, mut buffer) = (Vec::new(), vec![0; 70_001]);
        while let count @ 1.. = reader.read_state_at(restored.len() as u64, &mut buffer).unwrap() {
            restored.extend_from_slice(&buffer[..count]);
        }
        prop_assert!(restored == state);
        prop_assert_eq!(dir.list().unwrap(), [meta]);
    }
}

#[test]
fn a_file_carries_the_table_of_sessions_behind_the_state_and_one_of_format_1_has_none() {
    let root = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open(root.path()).unwrap();
    for (index, state, table) in [(3, &b"state"[..], &b"table"[..]), (4, b"", b"table"), (5, b"state", b"")] {
        let mut writer = dir.create(index, 2, &cluster()).unwrap();
        writer.write(state).unwrap();
        let meta = writer.finish(table).unwrap();
        assert_eq!((meta.state_size(), meta.sessions), (state.len() as u64, table.len() as u64));
        assert_eq!(dir.sessions(&meta).unwrap(), table);
        assert!(dir.sessions(&SnapshotMeta { sessions: meta.sessions + 1, ..meta }).is_err(), "it is another file");
    }
    let meta = written(&dir, 9, b"state");
    let path = dir.path(&meta);
    let mut old = std::fs::read(&path).unwrap();
    let sealed = |mut part: Vec<u8>| {
        part.extend(checksum::crc32c(&part).to_le_bytes());
        part
    };
    let mut footer = old.split_off(old.len() - 32);
    footer.truncate(28);
    footer[7] = b'1';
    footer.drain(16..24);
    let header_len = old.len() - 8 - b"state".len();
    let chunk = old.split_off(header_len);
    old.truncate(header_len - 4);
    old[8] = 1;
    let old = [sealed(old), chunk, sealed(footer)].concat();
    std::fs::write(&path, &old).unwrap();
    assert_eq!(dir.list().unwrap()[0], meta);
    assert_eq!(read_all(&dir, &meta).unwrap(), b"state");
    for damaged in [old.len() - 30, old.len() - 20, old.len() - 10, old.len() - 1] {
        let mut bytes = old.clone();
        bytes[damaged] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(dir.verify(&meta).is_err(), "{damaged}");
    }
}
