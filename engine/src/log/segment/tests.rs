//! The segment log against crashes, power loss and damage: what was durable comes back, and nothing else is believed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::chain::frames;
use super::frame::{Claim, FrameHeader, ALIGN, HEADER};
use super::frame_builder::FrameBuilder;
use super::segment_file::SegmentFile;
use crate::config::LogEngine;
use crate::direct::Pace;
use crate::entry::Entry;
use crate::error::{Committed, Error, ErrorCode};
use crate::log::tests::{append, compact, entry, founding, hard_state, killed, meta, options, range};
use crate::log::{check, inspect, open_or_create, LogOptions, LogWrite, OpenedLog};

fn small() -> LogOptions {
    options(LogEngine::Segment)
}

fn open(dir: &Path) -> Result<OpenedLog, Error> {
    open_or_create(dir, &small(), || Ok(founding(1)))
}

/// Every file of a log. A segment that is just being made may be missing.
type Image = BTreeMap<String, Vec<u8>>;

/// A log may be at work there: a segment that goes loses its name, and then, piece by piece, what is in it.
fn image(dir: &Path) -> Image {
    let files = std::fs::read_dir(dir.join("log")).unwrap().map(|f| f.unwrap());
    let read = |path: PathBuf| std::fs::read(&path).ok().filter(|_| path.exists());
    files.filter_map(|f| Some((f.file_name().into_string().unwrap(), read(f.path())?))).collect()
}

fn put(image: &Image) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("log")).unwrap();
    for (name, bytes) in image {
        std::fs::write(dir.path().join("log").join(name), bytes).unwrap();
    }
    dir
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir.join("log")).unwrap().map(|f| f.unwrap().path());
    let mut found: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    found.sort();
    found
}

fn disk_use(dir: &Path) -> u64 {
    segments(dir).iter().filter_map(|path| std::fs::metadata(path).ok()).map(|found| found.len()).sum()
}

/// What is too much is deleted beside the writes.
fn settles(dir: &Path, most: u64) {
    let begun = std::time::Instant::now();
    while disk_use(dir) > most {
        assert!(begun.elapsed().as_secs() < 60, "{} bytes stay, above {most}", disk_use(dir));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// State and entries.
type Content = (String, Vec<Entry>);

/// What can be learnt from an opened log.
fn content(log: &OpenedLog) -> Content {
    (format!("{:?}", log.state), log.reader.entries(log.state.first_index, u64::MAX, u64::MAX).unwrap())
}

/// The whole frames of a segment: where, and what they claim.
fn frames_of(bytes: &[u8]) -> Vec<(usize, Claim)> {
    let mut found: Vec<(usize, Claim)> = Vec::new();
    let mut at = 0;
    while let Some(claim) = bytes.get(at..at + HEADER).and_then(Claim::of) {
        if found.last().is_some_and(|(_, last)| claim.generation != last.generation || claim.number != last.number + 1)
        {
            break;
        }
        found.push((at, claim));
        at += claim.len as usize;
        assert_eq!(at % ALIGN, 0);
    }
    found
}

/// The segment that holds the newest frame, and its frames.
fn newest(image: &Image) -> (String, Vec<(usize, Claim)>) {
    let segments = image.iter().filter(|(name, _)| name.ends_with(".seg"));
    let all = segments.map(|(name, bytes)| (name.clone(), frames_of(bytes)));
    all.max_by_key(|(_, frames)| frames.last().map_or(0, |(_, claim)| claim.number)).unwrap()
}

/// A log over several segments, some recycled, with all kinds of records; and what it held before its last write.
fn sample() -> (Image, Content, Image, Content) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    log.writer.write(&[range(2, 150, 1, 900)]).unwrap();
    for last in (150..400).step_by(10) {
        log.writer.write(&[range(last + 1, last + 10, 1, 900), hard_state(1, 1, last - 10)]).unwrap();
        if last % 50 == 0 {
            log.writer.write(&[compact(last - 20, 1, last - 100)]).unwrap();
        }
    }
    log.writer.write(&[hard_state(2, 2, 390), range(395, 420, 2, 500)]).unwrap();
    let before = image(dir.path());
    let copy = put(&before);
    let held_before = content(&open(copy.path()).unwrap());
    log.writer.write(&[range(415, 425, 2, 300), hard_state(2, 2, 400)]).unwrap();
    let after = image(dir.path());
    let copy = put(&after);
    let held = content(&open(copy.path()).unwrap());
    assert!(segments(dir.path()).len() >= 5);
    (before, held_before, after, held)
}

/// With the side file of before the write: it is written after the sync.
fn unacknowledged(before: &Image, after: &Image) -> Image {
    let mut image = after.clone();
    image.insert("durable".into(), before["durable"].clone());
    image
}

#[test]
fn s9_a_last_frame_torn_at_any_byte_is_dropped_and_everything_before_it_is_kept() {
    let (before, held_before, after, held) = sample();
    let (name, frames) = newest(&after);
    let (start, claim) = *frames.last().unwrap();
    let len = claim.len as usize;
    let torn = unacknowledged(&before, &after);
    for cut in (0..len).filter(|cut| *cut < 200 || cut % 61 == 0 || len - cut < 30) {
        for filler in [None, Some(0u8)] {
            let mut image = torn.clone();
            let bytes = image.get_mut(&name).unwrap();
            for at in start + cut..start + len {
                bytes[at] = filler.unwrap_or(before[&name][at]);
            }
            let same = *bytes == after[&name];
            let dir = put(&image);
            let shown = inspect(dir.path(), 0, 1).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            let log = open(dir.path()).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            assert_eq!(content(&log), if same { held.clone() } else { held_before.clone() }, "cut at {cut}");
            assert_eq!(shown["last_index"], log.state.last_index, "cut at {cut}");
        }
    }
    // The same frame torn after it was durable is damage.
    let mut image = after;
    image.get_mut(&name).unwrap()[start + len / 2] ^= 1;
    let error = open(put(&image).path()).unwrap_err();
    assert_eq!(error.code, ErrorCode::CorruptData);
    assert!(error.message.contains(&format!("offset {start}")) && error.message.contains("was durable"), "{error}");
    assert!(error.path.is_some_and(|path| path.ends_with(&name)));
}

#[test]
fn s9_a_flipped_bit_in_any_live_frame_is_found() {
    let (_, _, mut image, held) = sample();
    // A power loss may have taken the side file: then only the frames behind the damage tell.
    let (newest_name, newest_frames) = newest(&image);
    let last = *newest_frames.last().unwrap();
    let names: Vec<String> = image.keys().filter(|name| name.ends_with(".seg")).cloned().collect();
    let (mut found, mut harmless) = (0, 0);
    for with_side_file in [true, false] {
        if !with_side_file {
            image.remove("durable");
        }
        for name in &names {
            for (n, (start, claim)) in frames_of(&image[name]).into_iter().enumerate() {
                let end = start + claim.len as usize;
                let places = (start..end).filter(|at| at - start < HEADER + 24 || at % 401 == 0 || end - at < 3);
                for at in places.filter(|at| (at + n) % 7 == 0) {
                    let what = format!("bit {} of {name} at {at}, side file {with_side_file}", at % 8);
                    let mut damaged = image.clone();
                    damaged.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
                    let dir = put(&damaged);
                    match open(dir.path()) {
                        Err(error) => {
                            assert_eq!(error.code, ErrorCode::CorruptData, "{what}: {error}");
                            assert!(error.message.contains("offset") || error.message.contains("missing"), "{error}");
                            assert!(check(dir.path()).is_err(), "{what}");
                            found += 1;
                        }
                        // A free segment; or the very last frame, which looks torn without the side file.
                        Ok(log) if !with_side_file && *name == newest_name && start == last.0 => {
                            assert_ne!(content(&log), held, "{what}");
                        }
                        Ok(log) => {
                            assert_eq!(content(&log), held, "{what}");
                            harmless += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(found > 300 && harmless > 20, "{found} {harmless}");
}

#[test]
fn s9_an_inspection_finds_the_damage_that_a_node_finds() {
    let (_, _, image, _) = sample();
    let (name, frames) = newest(&image);
    assert!(frames.len() >= 3);
    let (start, claim) = frames[frames.len() / 2];
    let middle = start + claim.len as usize / 2;
    let flip = |image: &mut Image| image.get_mut(&name).unwrap()[middle] ^= 1;
    for (what, says) in [
        ("a flipped bit", "was durable here"),
        ("a flipped bit, and no side file", "stands at offset"),
        ("a flipped bit, and a side file from before it", "stands at offset"),
        ("a cut segment", "was durable here"),
        ("a missing segment", "was durable here"),
    ] {
        let mut damaged = image.clone();
        match what {
            "a flipped bit" => flip(&mut damaged),
            "a flipped bit, and no side file" => {
                flip(&mut damaged);
                damaged.remove("durable");
            }
            "a flipped bit, and a side file from before it" => {
                flip(&mut damaged);
                damaged.insert("durable".into(), image["clean"].clone());
            }
            "a cut segment" => damaged.get_mut(&name).unwrap().truncate(middle),
            _ => drop(damaged.remove(&name)),
        }
        let dir = put(&damaged);
        let shown = inspect(dir.path(), 0, 1).expect_err(what);
        assert_eq!(shown.code, ErrorCode::CorruptData, "{what}: {shown}");
        assert!(shown.message.contains(says), "{what}: {shown}");
        assert_eq!(shown, open(dir.path()).unwrap_err(), "{what}");
    }
}

#[test]
fn a_segment_that_is_missing_cut_or_emptied_is_found() {
    let (_, _, image, held) = sample();
    for name in image.keys().filter(|name| name.ends_with(".seg")) {
        for damage in 0..3 {
            let mut damaged = image.clone();
            match damage {
                0 => drop(damaged.remove(name)),
                1 => damaged.get_mut(name).unwrap().truncate(3000),
                _ => damaged.get_mut(name).unwrap().fill(0),
            }
            match open(put(&damaged).path()) {
                Err(error) => assert_eq!(error.code, ErrorCode::CorruptData, "{name} {damage}"),
                Ok(log) => assert_eq!(content(&log), held, "{name} {damage}"),
            }
        }
    }
}

#[test]
fn s9_old_content_of_a_recycled_segment_is_never_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    // All frames of the same length, so that old ones begin where new ones will.
    for index in 2..2000 {
        log.writer.write(&[range(index, index, 1, 700), hard_state(1, 1, index)]).unwrap();
        if index % 90 == 0 {
            log.writer.write(&[compact(index, 1, index - 10)]).unwrap();
        }
        if index % 173 == 0 {
            let copy = put(&image(dir.path()));
            let again = open(copy.path()).unwrap_or_else(|e| panic!("{index}: {e}"));
            assert_eq!(again.state.last_index, index);
            assert_eq!(again.reader.entries(index, index + 1, 1).unwrap(), [entry(index, 1, 700)]);
        }
    }
    settles(dir.path(), 8 << 16);
}

#[test]
fn recycling_keeps_the_disk_use_bounded_and_makes_no_new_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    let mut names = Vec::new();
    for round in 0..60u64 {
        let last = 1 + round * 100;
        log.writer.write(&[range(last + 1, last + 100, 1, 500)]).unwrap();
        log.writer.write(&[hard_state(1, 1, last + 100), compact(last + 90, 1, last + 50)]).unwrap();
        if round == 20 {
            names = segments(dir.path());
        }
    }
    assert_eq!(segments(dir.path()), names);
    settles(dir.path(), 8 << 16);
    drop(log);
    // Neither does opening it again and again.
    for _ in 0..10 {
        drop(open(dir.path()).unwrap());
    }
    settles(dir.path(), 8 << 16);
}

#[test]
fn a_batch_larger_than_a_segment_is_one_frame_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    log.writer.write(&[range(2, 40, 1, 100)]).unwrap();
    log.writer.write(&[range(41, 60, 1, 20_000), hard_state(1, 1, 50)]).unwrap();
    log.writer.write(&[range(61, 61, 1, 1 << 20)]).unwrap();
    log.writer.write(&[range(62, 70, 1, 100)]).unwrap();
    let copy = killed(dir.path(), log);
    let mut log = open(copy.path()).unwrap();
    let entries = log.reader.entries(2, 999, u64::MAX).unwrap();
    assert_eq!(entries.len(), 69);
    for found in &entries {
        let size = match found.index {
            41..=60 => 20_000,
            61 => 1 << 20,
            _ => 100,
        };
        assert_eq!(*found, entry(found.index, 1, size));
    }
    // Once compacted, the large ones go.
    log.writer.write(&[hard_state(1, 1, 70), compact(70, 1, 69)]).unwrap();
    for index in 71..300 {
        log.writer.write(&[range(index, index, 1, 900)]).unwrap();
    }
    log.writer.write(&[hard_state(1, 1, 299), compact(299, 1, 298)]).unwrap();
    settles(copy.path(), (1 << 20) - 1);
}

#[test]
fn what_a_crash_leaves_of_a_new_segment_is_no_part_of_the_log() {
    let (_, _, image, held) = sample();
    let some = image.keys().find(|name| name.ends_with(".seg")).unwrap().clone();
    let whole = image[&some].len();
    let leftovers: Vec<(&str, Vec<u8>)> = vec![
        ("00000099.new", vec![]),
        ("00000099.new", vec![0; 5000]),
        ("00000099.new", image[&some].clone()),
        ("00000099.seg", vec![]),
        ("00000099.seg", vec![0; 4096]),
        ("00000099.seg", vec![0; whole]),
        ("00000099.seg", vec![0xFF; whole]),
        // Not ours by its name.
        ("99.seg", vec![1; 10]),
        ("notes.txt", vec![1; 10]),
    ];
    for (name, bytes) in leftovers {
        let mut crashed = image.clone();
        crashed.insert(name.into(), bytes);
        let dir = put(&crashed);
        assert_eq!(crate::log::inspect(dir.path(), 0, 1).unwrap()["last_index"], 425, "{name}");
        let mut log = open(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(content(&log), held, "{name}");
        assert!(!dir.path().join("log/00000099.new").exists());
        // It goes on, over that file too.
        for index in 426..700 {
            log.writer.write(&[range(index, index, 2, 900), hard_state(2, 2, index)]).unwrap();
        }
        drop(log);
        assert_eq!(open(dir.path()).unwrap().state.last_index, 699, "{name}");
    }
}

#[test]
fn frames_of_another_directory_are_none() {
    let (_, _, image, held) = sample();
    // Another node's log that has gone further: its segment lies in this directory by mistake.
    let other = tempfile::tempdir().unwrap();
    let mut new = founding(1);
    new.identity.directory = crate::cluster::Uid(12345);
    let mut log = open_or_create(other.path(), &small(), || Ok(new)).unwrap();
    for index in 2..90 {
        log.writer.write(&[range(index, index, 1, 10)]).unwrap();
    }
    let foreign = std::fs::read(&segments(other.path())[1]).unwrap();
    assert!(frames_of(&foreign).len() > 50);
    // As the payload of an entry, and in the middle of a free segment.
    let mut mixed = image.clone();
    let mut free = vec![0; 8192];
    free.extend_from_slice(&foreign);
    mixed.insert("00000050.seg".into(), free);
    let dir = put(&mixed);
    let mut log = open(dir.path()).unwrap();
    assert_eq!(content(&log), held);
    let image_as_payload = Entry { data: foreign.clone().into(), ..entry(426, 2, 0) };
    log.writer.write(&[append(vec![image_as_payload.clone()])]).unwrap();
    let mut torn = self::image(dir.path());
    let (name, frames) = newest(&torn);
    let start = frames.last().unwrap().0;
    torn.get_mut(&name).unwrap()[start + 20] ^= 1;
    torn.remove("durable");
    drop(log);
    assert_eq!(content(&open(put(&torn).path()).unwrap()), held);
}

/// Whole, of this directory, and right behind the first: what a recycled segment, or a write that was given up, may have left there.
#[test]
fn s9_a_frame_goes_on_from_the_one_before_it_in_every_respect() {
    let dir = tempfile::tempdir().unwrap();
    let mut frame = FrameBuilder::default();
    frame.begin();
    let first = FrameHeader {
        generation: 5,
        first_of_segment: true,
        number: 7,
        directory: 9,
        first: 2,
        last: 1,
        oldest: 4,
        previous: 4,
        ..FrameHeader::default()
    };
    let (len, crc) = {
        let sealed = frame.seal(&first, 0).unwrap();
        (sealed.len, sealed.crc)
    };
    let next = FrameHeader { first_of_segment: false, number: 8, before: crc, ..first };
    for (story, header, goes_on) in [
        ("the next one", next, true),
        ("of another segment", FrameHeader { generation: 6, ..next }, false),
        ("the first of its segment", FrameHeader { first_of_segment: true, ..next }, false),
        ("with a gap", FrameHeader { number: 9, ..next }, false),
        ("with the number of the one before", FrameHeader { number: 7, ..next }, false),
        ("of another directory", FrameHeader { directory: 10, ..next }, false),
        ("behind another one", FrameHeader { before: crc ^ 1, ..next }, false),
        ("behind another segment", FrameHeader { previous: 3, ..next }, false),
    ] {
        let file = SegmentFile::create(dir.path(), 1, 4096, &Pace::hurried()).unwrap();
        for (header, at) in [(first, 0), (header, len)] {
            frame.begin();
            file.write_durably(&frame.seal(&header, at).unwrap().parts, at).unwrap();
        }
        let end = frames(&file, |_, _| Ok(())).unwrap().unwrap();
        assert_eq!(end.last, if goes_on { next } else { first }, "{story}: {}", end.why);
    }
}

#[test]
fn s9_a_frame_that_is_damaged_at_the_end_of_a_segment_is_missed_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    log.writer.write(&[range(2, 47, 1, 900)]).unwrap();
    // As many as it replaces: without it the log would go on all the same, and say something else.
    log.writer.write(&[hard_state(2, 2, 40), range(45, 47, 2, 900)]).unwrap();
    log.writer.write(&[range(48, 100, 2, 900)]).unwrap();
    let mut image = image(dir.path());
    drop(log);
    let (_, frames) = newest(&image);
    let number = frames[0].1.number - 1;
    let last_of = |bytes: &[u8]| frames_of(bytes).last().copied().filter(|(_, claim)| claim.number == number);
    let segments = image.iter_mut().filter(|(name, _)| name.ends_with(".seg"));
    let (bytes, (at, claim)) = segments.map(|(_, bytes)| bytes).find_map(|b| last_of(b).map(|last| (b, last))).unwrap();
    bytes[at + claim.len as usize / 2] ^= 1;
    let error = open(put(&image).path()).unwrap_err();
    assert_eq!(error.code, ErrorCode::CorruptData);
    assert!(error.message.contains("but the log goes on behind it"), "{error}");
}

#[test]
fn the_tail_is_written_again_at_open_and_does_without_the_old_one_from_then_on() {
    let (before, _, after, held) = sample();
    // Killed before its sync returned: the last frame can be read, but is perhaps not on the disk.
    let dir = put(&unacknowledged(&before, &after));
    let log = open(dir.path()).unwrap();
    assert_eq!(content(&log), held);
    let opened = image(dir.path());
    // Then the power fails: what was not synced is as before the write.
    let mut lost = opened.clone();
    for (name, bytes) in &before {
        if name.ends_with(".seg") && after[name] == opened[name] {
            lost.insert(name.clone(), bytes.clone());
        }
    }
    assert_ne!(lost, opened);
    let again = open(put(&lost).path()).unwrap();
    let (state, entries) = content(&again);
    assert_eq!((state, entries), held);
    // And the old tail may even be gone.
    let (tail, _) = newest(&after);
    lost.remove(&tail);
    assert_eq!(content(&open(put(&lost).path()).unwrap()), held);
}

#[test]
fn a_segment_given_up_by_a_frame_that_may_not_be_durable_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    for index in 2..300 {
        log.writer.write(&[range(index, index, 1, 900), hard_state(1, 1, index)]).unwrap();
    }
    let before = image(dir.path());
    let held_before = content(&open(put(&before).path()).unwrap());
    log.writer.write(&[compact(299, 1, 298)]).unwrap();
    let after = image(dir.path());
    // Killed in that write; opened, which may write; and then the power fails, with the compaction lost.
    let killed = put(&unacknowledged(&before, &after));
    drop(log);
    let log = open(killed.path()).unwrap();
    assert_eq!(log.state.first_index, 299);
    let mut lost = before.clone();
    for (name, bytes) in image(killed.path()) {
        let overwritten = after.get(&name).is_some_and(|old| *old != bytes) && name.ends_with(".seg");
        assert!(!overwritten, "{name}");
        lost.entry(name).or_insert(vec![0; 65536]);
    }
    lost.insert("durable".into(), before["durable"].clone());
    assert_eq!(content(&open(put(&lost).path()).unwrap()), held_before);
}

#[test]
fn a_failed_write_is_for_good() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let mut log = open(dir.path()).unwrap();
    log.writer.write(&[range(2, 5, 1, 100)]).unwrap();
    // No new segment can be made: a directory is in the way of its name.
    for slot in 1..60 {
        let _ = std::fs::create_dir(dir.path().join(format!("log/{slot:08}.new")));
    }
    let mut last = 5;
    let error = loop {
        match log.writer.write(&[range(last + 1, last + 1, 1, 30_000)]) {
            Ok(()) => last += 1,
            Err(error) => break error,
        }
        assert!(last < 100);
    };
    assert_eq!(error.code, ErrorCode::Storage);
    assert_eq!(log.writer.write(&[hard_state(1, 1, 2)]).unwrap_err(), error);
    for slot in 1..60 {
        let _ = std::fs::remove_dir(dir.path().join(format!("log/{slot:08}.new")));
    }
    assert_eq!(log.writer.write(&[hard_state(1, 1, 2)]).unwrap_err(), error);
    drop(log);
    let log = open(dir.path()).unwrap();
    assert!(!log.clean);
    assert_eq!(log.state.last_index, last);
}

#[test]
fn a_full_log_still_takes_what_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { disk_quota: Some(8 << 16), ..small() };
    let mut log = open_or_create(dir.path(), &options, || Ok(founding(1))).unwrap();
    let mut last = 1;
    for _ in 0..5 {
        let refused = loop {
            match log.writer.write(&[range(last + 1, last + 1, 1, 5000)]) {
                Ok(()) => last += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((refused.code, refused.committed), (ErrorCode::DiskFull, Committed::No));
        assert!(refused.message.contains("disk_quota"), "{refused}");
        // More small writes than the rest of the segment takes.
        for term in 0..60 {
            let state = hard_state(log.state.hard_state.term.max(1), 1, last - 3);
            let cluster = std::sync::Arc::new(crate::log::tests::cluster(last - 60 + term));
            log.writer.write(&[LogWrite { cluster: Some(cluster), ..state }]).unwrap();
        }
        // Opened while full, too.
        drop(log);
        log = open_or_create(dir.path(), &options, || Ok(founding(1))).unwrap();
        assert_eq!(log.state.last_index, last);
        log.writer.write(&[compact(last - 3, 1, last - 5)]).unwrap();
        settles(dir.path(), 8 << 16);
    }
}

#[test]
fn a_reader_beside_recycling_never_hands_out_a_wrong_entry() {
    let dir = tempfile::tempdir().unwrap();
    let OpenedLog { mut writer, reader, .. } = open(dir.path()).unwrap();
    let size = |index: u64| (index % 13 * 400) as usize;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for first in (2..4000).step_by(20) {
                let entries = (first..first + 20).map(|i| entry(i, 1, size(i))).collect();
                writer.write(&[append(entries), hard_state(1, 1, first + 19)]).unwrap();
                if first > 200 {
                    writer.write(&[compact(first, 1, first - 150)]).unwrap();
                }
            }
            done.store(true, Ordering::Release);
        });
        let (mut low, mut read) = (2, 0u64);
        while !done.load(Ordering::Acquire) || read == 0 {
            let found = reader.entries(low, low + 100, 50_000).unwrap();
            for (found, index) in found.iter().zip(low..) {
                assert_eq!(*found, entry(index, 1, size(index)));
                read += 1;
            }
            low = if found.is_empty() { low + 40 } else { low + found.len() as u64 / 2 + 1 };
            low %= 3990;
        }
    });
}

#[test]
fn another_engine_in_the_settings_does_not_change_a_directory() {
    for (born, said) in [(LogEngine::Segment, LogEngine::Lmdb), (LogEngine::Lmdb, LogEngine::Segment)] {
        let dir = tempfile::tempdir().unwrap();
        drop(open_or_create(dir.path(), &options(born), || Ok(founding(1))).unwrap());
        let mut log = open_or_create(dir.path(), &options(said), || Ok(founding(1))).unwrap();
        assert!(!log.created);
        log.writer.write(&[range(2, 9, 1, 10)]).unwrap();
        drop(log);
        assert_eq!(segments(dir.path()).is_empty(), born == LogEngine::Lmdb);
        assert_eq!(check(dir.path()).unwrap().last_index, 9);
        assert_eq!(inspect(dir.path(), 0, 1).unwrap()["last_index"], 9);
        std::fs::write(dir.path().join("log/data.mdb"), b"x").unwrap();
        std::fs::write(dir.path().join("log/00000077.seg"), b"x").unwrap();
        assert_eq!(open(dir.path()).unwrap_err().code, ErrorCode::CorruptData);
    }
}

/// Of each sector that a write changed, whether it reached the disk.
fn torn(before: &Image, after: &Image, sectors: &[bool]) -> Image {
    const SECTOR: usize = 512;
    let mut choices = sectors.iter().cycle();
    let mut image = before.clone();
    for (name, new) in after.iter().filter(|(name, _)| name.ends_with(".seg")) {
        let old = image.entry(name.clone()).or_insert_with(|| vec![0; new.len()]);
        for (old, new) in old.chunks_mut(SECTOR).zip(new.chunks(SECTOR)) {
            if old != new && *choices.next().unwrap() {
                old.copy_from_slice(new);
            }
        }
    }
    image
}

/// Entries and hard state, which the tail written again at open must not change.
fn same(found: &OpenedLog, held: &Content) -> bool {
    content(found) == *held
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..Default::default() })]
    /// Each write is cut short by a power loss: the log is as before it or as after it. Then the start is cut short as well.
    #[test]
    fn a_power_loss_in_any_write_or_open_leaves_all_or_nothing_of_it(
        sizes in proptest::collection::vec((1u64..12, 0usize..4000, 0u64..6), 3..9),
        sectors in proptest::collection::vec(any::<bool>(), 1..40),
        at_open in proptest::collection::vec(any::<bool>(), 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path()).unwrap();
        let (mut last, mut term, mut snapshot) = (1, 1, 1);
        for (n, (count, size, kind)) in sizes.iter().enumerate() {
            let before = image(dir.path());
            let write = match kind {
                0 if last > 1 => {
                    let index = last;
                    snapshot = index;
                    LogWrite { compact_to: Some(index - 1), ..compact(index, term, index - 1) }
                }
                1 => {
                    term += 1;
                    let start = (last + 1).saturating_sub(3).max(snapshot + 1);
                    let entries = (start..start + count).map(|i| entry(i, term, *size)).collect();
                    last = start + count - 1;
                    LogWrite { hard_state: hard_state(term, 1, 1).hard_state, ..append(entries) }
                }
                2 => {
                    last += 5;
                    snapshot = last;
                    LogWrite { snapshot: Some(std::sync::Arc::new(meta(last, term))), reset: true, must_sync: true, ..Default::default() }
                }
                _ => {
                    let entries = (last + 1..=last + count).map(|i| entry(i, term, *size)).collect();
                    last += count;
                    append(entries)
                }
            };
            log.writer.write(&[write]).unwrap();
            let after = image(dir.path());
            let held = [&before, &after].map(|image| content(&open(put(image).path()).unwrap()));
            let crashed = torn(&before, &after, &sectors[n % sectors.len()..]);
            let dir = put(&crashed);
            let shown = inspect(dir.path(), 0, 1).unwrap();
            let found = open(dir.path()).unwrap();
            prop_assert!(held.iter().any(|held| same(&found, held)));
            prop_assert_eq!(&shown["last_index"], found.state.last_index);

            // Killed instead: all of it can be read; opened; and the power fails in the middle of that.
            let killed = put(&unacknowledged(&before, &after));
            let reopened = open(killed.path()).unwrap();
            prop_assert!(same(&reopened, &held[1]));
            let opened = image(killed.path());
            drop(reopened);
            let crashed = torn(&crashed, &opened, &at_open);
            let found = open(put(&crashed).path()).unwrap();
            prop_assert!(held.iter().any(|held| same(&found, held)));
        }
    }
}
