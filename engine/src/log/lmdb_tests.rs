//! Damage to LMDB's file: found before LMDB maps it, or harmless.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::HardState;

use super::tests::{append, compact, entry, hard_state, killed, meta, open, range};
use super::*;
use crate::config::LogEngine;
use crate::entry::Entry;
use crate::error::ErrorCode;

fn data_file(dir: &Path) -> PathBuf {
    dir.join("log/data.mdb")
}

#[test]
fn s8_a_log_older_than_its_side_file_says_has_lost_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(LogEngine::Lmdb, dir.path()).unwrap();
    log.writer.write(&[range(2, 3, 1, 10)]).unwrap();
    let old = std::fs::read(data_file(dir.path())).unwrap();
    log.writer.write(&[range(4, 5, 1, 10)]).unwrap();
    let copy = killed(dir.path(), log);
    std::fs::write(data_file(copy.path()), &old).unwrap();
    for error in [inspect(copy.path(), 0, 9).unwrap_err(), open(LogEngine::Lmdb, copy.path()).unwrap_err()] {
        assert_eq!(error.code, ErrorCode::CorruptData);
        assert!(error.message.contains("ends at commit 2, but commit 3 was durable"), "{error}");
    }
}

/// A small log with branch pages, far values, a free list and both kinds of records.
fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(LogEngine::Lmdb, dir.path()).unwrap();
    log.writer.write(&[range(2, 120, 1, 60)]).unwrap();
    log.writer.write(&[range(121, 130, 1, 6000)]).unwrap();
    log.writer.write(&[hard_state(2, 1, 100), range(110, 160, 2, 300)]).unwrap();
    log.writer.write(&[compact(90, 1, 60)]).unwrap();
    log.writer.write(&[range(161, 163, 2, 9000)]).unwrap();
    killed(dir.path(), log)
}

/// Opens a damaged copy. Either it is found, or everything is as it was and stays so through further writes.
fn found_or_harmless(dir: &Path, expected: &(String, Vec<Entry>), what: &str) -> bool {
    let mut log = match open(LogEngine::Lmdb, dir) {
        Ok(log) => log,
        Err(error) => {
            assert!(matches!(error.code, ErrorCode::CorruptData | ErrorCode::FormatTooNew), "{what}: {error}");
            return true;
        }
    };
    assert_eq!(format!("{:?}", log.state), expected.0, "{what}");
    assert_eq!(log.reader.entries(61, 999, u64::MAX).unwrap(), expected.1, "{what}");
    let more = range(164, 190, 2, 700);
    log.writer.write(std::slice::from_ref(&more)).unwrap();
    log.writer.write(&[range(191, 193, 2, 9000), compact(100, 1, 80)]).unwrap();
    drop(log);
    let log = open(LogEngine::Lmdb, dir).unwrap_or_else(|e| panic!("{what}: {e}"));
    let entries = log.reader.entries(81, 999, u64::MAX).unwrap();
    assert_eq!(entries.len(), 113, "{what}");
    assert_eq!(&entries[..83], &expected.1[20..], "{what}");
    false
}

fn sample_with_content() -> (tempfile::TempDir, Vec<u8>, (String, Vec<Entry>)) {
    let dir = sample();
    let bytes = std::fs::read(data_file(dir.path())).unwrap();
    let log = open(LogEngine::Lmdb, dir.path()).unwrap();
    let expected = (format!("{:?}", log.state), log.reader.entries(61, 999, u64::MAX).unwrap());
    drop(log);
    let _ = std::fs::remove_file(dir.path().join("log/clean"));
    (dir, bytes, expected)
}

fn put_back(dir: &Path, bytes: &[u8], durable: &[u8]) {
    let _ = std::fs::remove_file(dir.join("log/clean"));
    std::fs::write(data_file(dir), bytes).unwrap();
    std::fs::write(dir.join("log/durable"), durable).unwrap();
}

#[test]
fn s8_a_flipped_bit_is_found_before_the_file_is_mapped_or_harmless() {
    let (dir, bytes, expected) = sample_with_content();
    let durable = durable_of(dir.path());
    let mut found = 0u32;
    // Every byte of both meta pages' content and of page headers and pointers, a sample of the rest.
    let places = (0..bytes.len()).filter(|at| at % 4096 < if *at < 8192 { 160 } else { 40 } || at % 97 == 0);
    // The meta pages' tree records bit by bit: their high bits name places that no file has.
    let metas = (20..160).flat_map(|at| [(at * 8, at), (at * 8 + 3, at), (at * 8 + 7, at)]);
    for (n, at) in places.enumerate().filter(|(n, _)| n % 3 == 0).chain(metas) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (n % 8);
        put_back(dir.path(), &damaged, &durable);
        found += u32::from(found_or_harmless(dir.path(), &expected, &format!("bit {} of byte {at}", n % 8)));
    }
    assert!(found > 100, "{found}");
}

#[test]
fn s8_a_truncated_file_is_found_before_it_is_mapped() {
    let (dir, bytes, expected) = sample_with_content();
    let durable = durable_of(dir.path());
    for length in (0..bytes.len()).step_by(1531).chain([1, 4096, 8192, bytes.len() - 1]) {
        put_back(dir.path(), &bytes[..length], &durable);
        let found = found_or_harmless(dir.path(), &expected, &format!("cut at {length}"));
        // The tail may be free pages only.
        assert!(found || length > bytes.len() / 2, "{length}");
    }
}

#[test]
fn a_flipped_payload_is_found_when_read_even_after_a_clean_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(LogEngine::Lmdb, dir.path()).unwrap();
    log.writer.write(&[append(vec![Entry { data: vec![0xA7; 20_000].into(), ..entry(2, 1, 0) }])]).unwrap();
    log.writer.write(&[range(3, 3, 1, 10)]).unwrap();
    drop(log);
    let mut bytes = std::fs::read(data_file(dir.path())).unwrap();
    let at = bytes.windows(64).rposition(|w| w.iter().all(|b| *b == 0xA7)).unwrap();
    bytes[at] ^= 1;
    std::fs::write(data_file(dir.path()), &bytes).unwrap();
    let log = open(LogEngine::Lmdb, dir.path()).unwrap();
    let error = log.reader.entries(2, 3, 1).unwrap_err();
    assert_eq!((error.code, error.index), (ErrorCode::CorruptData, Some(2)));
    drop(log);
    let error = check(dir.path()).unwrap_err();
    assert_eq!((error.code, error.index), (ErrorCode::CorruptData, Some(2)));
}

#[test]
fn s8_a_flipped_payload_is_found_at_once_after_a_stop_out_of_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(LogEngine::Lmdb, dir.path()).unwrap();
    log.writer.write(&[append(vec![Entry { data: vec![0xA7; 20_000].into(), ..entry(2, 1, 0) }])]).unwrap();
    // Two commits that leave its pages alone: they prove nothing of them.
    log.writer.write(&[range(3, 5, 1, 10)]).unwrap();
    log.writer.write(&[range(6, 9, 1, 10)]).unwrap();
    let copy = killed(dir.path(), log);
    let mut bytes = std::fs::read(data_file(copy.path())).unwrap();
    let at = bytes.windows(64).rposition(|w| w.iter().all(|b| *b == 0xA7)).unwrap();
    bytes[at] ^= 1;
    std::fs::write(data_file(copy.path()), &bytes).unwrap();
    let error = open(LogEngine::Lmdb, copy.path()).unwrap_err();
    assert_eq!((error.code, error.index), (ErrorCode::CorruptData, Some(2)), "{error}");
}

#[test]
fn damage_to_the_newest_commit_is_told_from_one_that_nobody_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(LogEngine::Lmdb, dir.path()).unwrap();
    log.writer.write(&[append(vec![Entry { data: vec![0xA7; 20_000].into(), ..entry(2, 1, 0) }])]).unwrap();
    let copy = killed(dir.path(), log);
    let mut bytes = std::fs::read(data_file(copy.path())).unwrap();
    let at = bytes.windows(64).rposition(|w| w.iter().all(|b| *b == 0xA7)).unwrap();
    bytes[at] ^= 1;
    std::fs::write(data_file(copy.path()), &bytes).unwrap();
    let checked = [inspect(copy.path(), 0, 9).unwrap_err(), check(copy.path()).unwrap_err()];
    for error in checked.into_iter().chain([open(LogEngine::Lmdb, copy.path()).unwrap_err()]) {
        assert_eq!(error.code, ErrorCode::CorruptData);
        assert!(error.message.contains("ends at commit 1, but commit 2 was durable here, and what it"), "{error}");
    }
    std::fs::remove_file(copy.path().join("log/durable")).unwrap();
    assert_eq!(inspect(copy.path(), 0, 9).unwrap()["last_index"], 1);
    assert_eq!(check(copy.path()).unwrap().last_index, 1);
    assert_eq!(open(LogEngine::Lmdb, copy.path()).unwrap().state.last_index, 1);
}

#[test]
fn an_inspection_does_not_show_a_damaged_key_as_the_end_of_the_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(LogEngine::Lmdb, dir.path()).unwrap();
    log.writer.write(&[range(2, 120, 1, 100)]).unwrap();
    // Two commits that leave its page alone: they prove nothing of it.
    log.writer.write(&[hard_state(2, 1, 50)]).unwrap();
    log.writer.write(&[hard_state(3, 1, 60)]).unwrap();
    let copy = killed(dir.path(), log);
    assert_eq!(inspect(copy.path(), 0, 200).unwrap()["entries"].as_array().unwrap().len(), 119);
    let mut bytes = std::fs::read(data_file(copy.path())).unwrap();
    let key = record::entry_key(120);
    let places: Vec<usize> = (0..bytes.len() - key.len()).filter(|at| bytes[*at..].starts_with(&key)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| bytes[at + key.len() - 1] ^= 1);
    std::fs::write(data_file(copy.path()), &bytes).unwrap();
    let error = inspect(copy.path(), 0, 200).unwrap_err();
    assert_eq!((error.code, error.index), (ErrorCode::CorruptData, Some(120)), "{error}");
    open(LogEngine::Lmdb, copy.path()).unwrap_err();
}

fn after_reset(index: u64) -> LogWrite {
    LogWrite {
        snapshot: Some(Arc::new(meta(index, 2))),
        reset: true,
        hard_state: Some(HardState { term: 2, vote: 1, commit: index }),
        must_sync: true,
        ..Default::default()
    }
}

#[test]
fn a_commit_of_which_any_page_is_missing_was_believed_by_nobody() {
    let commits: [(&str, Vec<LogWrite>); 8] = [
        ("an entry", vec![range(131, 131, 1, 60)]),
        ("a hundred entries", vec![range(131, 230, 1, 60)]),
        ("so many that the tree grows", vec![range(131, 5000, 1, 60)]),
        ("entries on pages of their own", vec![range(131, 134, 1, 9000)]),
        ("others in their place", vec![hard_state(2, 1, 100), range(110, 125, 2, 6000)]),
        ("entries go", vec![compact(90, 1, 90)]),
        ("everything goes", vec![after_reset(500)]),
        ("a vote", vec![hard_state(3, 1, 100)]),
    ];
    for (what, writes) in commits {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(LogEngine::Lmdb, dir.path()).unwrap();
        log.writer.write(&[range(2, 120, 1, 60)]).unwrap();
        log.writer.write(&[range(121, 130, 1, 6000), hard_state(1, 1, 100)]).unwrap();
        log.writer.write(&[compact(40, 1, 20)]).unwrap();
        let (before, durable) = (std::fs::read(data_file(dir.path())).unwrap(), durable_of(dir.path()));
        let as_before = content(killed(dir.path(), log).path());
        let mut log = open(LogEngine::Lmdb, dir.path()).unwrap();
        log.writer.write(&writes).unwrap();
        let after = std::fs::read(data_file(dir.path())).unwrap();
        let copy = killed(dir.path(), log);
        let as_after = content(copy.path());
        assert_ne!(as_before, as_after, "{what}");

        let mut lost = 0;
        for page in (0..after.len() / PAGE).filter(|n| at(&before, *n) != at(&after, *n)) {
            // Of a great many, some.
            lost += 1;
            if lost > 40 && lost % 17 > 0 {
                continue;
            }
            let mut torn = after.clone();
            torn[page * PAGE..][..PAGE].copy_from_slice(&at(&before, page));
            put_back(copy.path(), &torn, &durable);
            assert_eq!(content(copy.path()), as_before, "{what}: page {page} is missing");
            // And it goes on from there.
            let mut log = open(LogEngine::Lmdb, copy.path()).unwrap();
            log.writer.write(&writes).unwrap();
            drop(log);
            assert_eq!(content(copy.path()), as_after, "{what}: page {page} was missing");
        }
        assert!(lost >= 3, "{what}: {lost}");
    }
}

const PAGE: usize = 4096;

/// A page, or what a page is that no one has written.
fn at(bytes: &[u8], page: usize) -> Vec<u8> {
    bytes.get(page * PAGE..(page + 1) * PAGE).map_or_else(|| vec![0; PAGE], <[u8]>::to_vec)
}

fn durable_of(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("log/durable")).unwrap()
}

/// Everything that a log says.
fn content(dir: &Path) -> (String, Vec<Entry>) {
    let log = open(LogEngine::Lmdb, dir).unwrap();
    (format!("{:?}", log.state), log.reader.entries(log.state.first_index, u64::MAX, u64::MAX).unwrap())
}
