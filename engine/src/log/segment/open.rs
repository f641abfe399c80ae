//! Makes a segment log, and opens one: found, checked to its last frame, its tail written again elsewhere (S5, S9).
//!
//! A crash leaves at most the one frame that was in flight torn, and perhaps one that can be read from the page cache and
//! is not on the disk. So the frames of the newest segment that the log still needs are written as one frame into another
//! segment and synced before anybody sees the log; the old one stays as it is until then. A segment that was given up by
//! a frame of which nobody knows whether it is durable is not overwritten for that, either.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use raft::eraftpb::HardState;

use crate::direct::{read_ahead, read_no_further, Pace};
use crate::error::{Error, Result};
use crate::log::batching::Batching;
use crate::log::draft::Draft;
use crate::log::files::{self, corrupt, NumberFile};
use crate::log::load::{record_error, Loaded};
use crate::log::lock::DirectoryLock;
use crate::log::open::{EngineLog, LogOptions, NewLog};
use crate::log::record::{self, Bounds, Fault, Meta};
use crate::log::LogState;

use super::chain::{frames, Chain, End};
use super::frame::FrameHeader;
use super::frame_builder::FrameBuilder;
use super::index::{Index, Places};
use super::pool::{self, Pool};
use super::reader::{Block, SegmentReader};
use super::replay::Replay;
use super::segment_file::SegmentFile;
use super::walk::{fault, Walk};
use super::writer::{SegmentWriter, Tail};
use super::{header_of, small_record, Shared};

/// Makes a log of one segment with one frame in the empty directory `fresh`; durable when this returns.
pub(crate) fn create(
    fresh: &Path,
    options: &LogOptions,
    new: &NewLog,
    hard_state: &HardState,
    bounds: &Bounds,
) -> Result<()> {
    let state = LogState {
        identity: new.identity.clone(),
        hard_state: hard_state.clone(),
        cluster: new.cluster.clone(),
        snapshot: new.snapshot.clone(),
        first_index: bounds.first,
        prev_term: bounds.prev_term,
        last_index: bounds.last,
        terms: Vec::new(),
        bytes: 0,
    };
    let draft = Draft::new(&Loaded { state, bounds: *bounds });
    let mut frame = FrameBuilder::default();
    let wrong = |fault: Fault| record_error(fresh, None, fault);
    small_records(&mut frame, &draft).map_err(wrong)?;
    let header = FrameHeader { generation: 1, first_of_segment: true, oldest: 1, ..header_of(&draft) };
    let limit = pool::size_limit(options.segment_size, options.disk_quota);
    let file = SegmentFile::create(fresh, 1, pool::first_size(limit, frame.len()), &Pace::hurried())?;
    file.write_durably(&frame.seal(&header, 0).map_err(wrong)?.parts, 0)
}

fn small_records(frame: &mut FrameBuilder, draft: &Draft) -> Result<(), Fault> {
    frame.begin();
    for meta in Meta::ALL {
        if let Some(value) = small_record(meta, draft) {
            frame.small(meta, &value)?;
        }
    }
    Ok(())
}

/// A log that has been read and checked.
pub(crate) struct Found {
    pub loaded: Loaded,
    pub places: Places,
    pub chain: Chain,
    pub end: End,
}

/// Reads the log in `log_dir` from its oldest segment on and checks every frame of it. What lies behind the last whole
/// frame is not looked at.
pub(crate) fn read(log_dir: &Path, write: bool, deep: bool) -> Result<Found> {
    let chain = Chain::find(log_dir, SegmentFile::list(log_dir, write)?)?;
    let mut replay = Replay::new(deep);
    let mut before: Option<(&SegmentFile, End)> = None;
    for link in &chain.links {
        if let Some((file, end)) = &before {
            let follows = link.first.before == end.crc
                && link.first.number > end.last.number
                && link.first.directory == end.last.directory;
            if !follows {
                return Err(fault(file, end.offset, format_args!("{}, but the log goes on behind it", end.why)));
            }
        }
        let newest = chain.links.last().is_some_and(|last| last.first.generation == link.first.generation);
        if !newest {
            // Somebody waits for all of it. The newest one is empty behind its last frame, and the spare ones are altogether.
            read_ahead(link.file.file());
        }
        let end = frames(&link.file, |frame, offset| {
            let taken = replay.frame(frame, offset);
            taken.map_err(|fault| record_error(link.file.path(), None, at(offset, fault)))
        })?;
        let end = end.map_err(|why| fault(&link.file, 0, why))?;
        // From now on it is read for what a follower lacks.
        read_no_further(link.file.file());
        before = Some((&link.file, end));
    }
    let (loaded, places) = replay.finish().map_err(|fault| record_error(log_dir, None, fault))?;
    let Some((_, end)) = before else { return Err(corrupt(log_dir, "it holds no segment")) };
    Ok(Found { loaded, places, chain, end })
}

fn at(offset: u64, fault: Fault) -> Fault {
    match fault {
        Fault::Damaged(what) => Fault::Damaged(format!("offset {offset}: {what}")),
        newer => newer,
    }
}

impl Found {
    fn newest(&self) -> Option<&SegmentFile> {
        self.chain.links.last().map(|link| &link.file)
    }

    /// Number of the last commit.
    pub(crate) fn number(&self) -> u64 {
        self.loaded.bounds.number
    }

    /// S9: what follows the last whole frame may be one torn frame and nothing else.
    fn must_end_here(&self, log_dir: &Path, durable: Option<u64>, search: bool) -> Result<()> {
        self.must_reach(log_dir, durable)?;
        match search {
            true => self.successor(log_dir)?.map_or(Ok(()), |(_, error)| Err(error)),
            false => Ok(()),
        }
    }

    /// What was durable is there.
    pub(crate) fn must_reach(&self, log_dir: &Path, durable: Option<u64>) -> Result<()> {
        let Some(durable) = durable.filter(|durable| *durable > self.number()) else { return Ok(()) };
        let what = format_args!("commit {durable} was durable here: writes have been lost");
        Err(self.ends_too_early(log_dir, what))
    }

    /// A whole frame that the log does not lead to: its number, and what that means if nobody has just written it.
    pub(crate) fn successor(&self, log_dir: &Path) -> Result<Option<(u64, Error)>> {
        let directory = self.end.last.directory;
        let tail = self.newest().map(|newest| (newest, self.end.offset));
        for (file, from) in tail.into_iter().chain(self.chain.free.iter().map(|file| (file, 0))) {
            if let Some((found, later)) = Walk::new(file).successor(from, directory, self.number())? {
                let path = file.path().display();
                let what = format_args!("commit {later} stands at offset {found} of {path}");
                return Ok(Some((later, self.ends_too_early(log_dir, what))));
            }
        }
        Ok(None)
    }

    fn ends_too_early(&self, log_dir: &Path, what: std::fmt::Arguments<'_>) -> Error {
        let Some(newest) = self.newest() else { return corrupt(log_dir, "it holds no segment") };
        let (why, number) = (&self.end.why, self.number());
        fault(newest, self.end.offset, format_args!("{why}: the log ends at commit {number}, but {what}"))
    }
}

/// Everything that can be checked; the caller holds the directory's lock.
pub(crate) fn check(log_dir: &Path) -> Result<LogState> {
    let found = read(log_dir, false, true)?;
    found.must_end_here(log_dir, NumberFile::newest(log_dir), true)?;
    Ok(found.loaded.state)
}

/// Opens the log in `directory`, whose lock is held.
pub(crate) fn open(directory: &Path, options: &LogOptions, lock: DirectoryLock) -> Result<EngineLog> {
    let log_dir = directory.join(files::LOG_DIR);
    // Read before any sync: a page of the marker that never reached the disk must not speak for the data.
    let marker = NumberFile::read(&NumberFile::clean(&log_dir));
    let durable = NumberFile::read(&NumberFile::durable(&log_dir)).max(marker);
    let found = read(&log_dir, true, false)?;
    options.must_own(directory, &found.loaded.state)?;
    let number = found.number();
    let clean = marker == Some(number);
    found.must_end_here(&log_dir, durable, !clean)?;
    for link in &found.chain.links {
        files::settle(link.file.file(), link.file.path(), false)?;
    }
    for path in [log_dir.as_path(), directory] {
        files::sync_directory(path)?;
    }
    files::sync_parent(directory)?;
    SegmentFile::remove_unfinished(&log_dir)?;

    let durable_file = NumberFile::open(NumberFile::durable(&log_dir))?;
    // Only what says that the last frame was synced makes the segments free that it gave up.
    let known_durable = durable == Some(number);
    let log = rewrite(&log_dir, options, found, known_durable)?;
    durable_file.write(log.draft.bounds.number)?;
    let shared = Arc::new(Shared { index: log.index, log_dir, _lock: lock });
    let mut pool = log.pool;
    log.free.into_iter().for_each(|file| pool.give(file));
    pool.clear_surplus();
    pool.prepare();
    let writer = SegmentWriter::new(shared.clone(), log.draft, durable_file, pool, log.tail);
    Ok(EngineLog {
        state: log.state,
        writer: Box::new(Batching::new(writer)),
        reader: Box::new(SegmentReader::new(shared)),
        clean,
    })
}

/// A log whose tail is new and durable.
struct Rewritten {
    state: LogState,
    draft: Draft,
    index: Index,
    tail: Tail,
    pool: Pool,
    /// For the pool, once the number of the new frame is in the side file.
    free: Vec<Arc<SegmentFile>>,
}

/// S5: what the newest segment holds of the log goes into another one, as one frame that stands in the chain instead of it.
fn rewrite(log_dir: &Path, options: &LogOptions, found: Found, known_durable: bool) -> Result<Rewritten> {
    let Found { loaded, mut places, chain, .. } = found;
    let Chain { mut links, free } = chain;
    let Some(old) = links.pop() else { return Err(corrupt(log_dir, "it holds no segment")) };
    let Some(generation) = old.first.generation.checked_add(1) else {
        return Err(corrupt(log_dir, "it has used all numbers of segments"));
    };
    let mut draft = Draft::new(&loaded);
    draft.bounds.number = draft.bounds.number.saturating_add(1);

    let mut frame = FrameBuilder::default();
    let wrong = |fault: Fault| record_error(old.file.path(), None, fault);
    small_records(&mut frame, &draft).map_err(wrong)?;
    let bounds = draft.bounds;
    let from = places.begin_of(old.first.generation);
    if from <= bounds.first {
        frame.clear(from).map_err(wrong)?;
    } else {
        frame.cut(from).map_err(wrong)?;
    }
    let mut block = Block::new(u64::MAX);
    frame.entries(from..bounds.last.saturating_add(1), wrong, |index, out| {
        let place = places.get(index).ok_or_else(|| wrong(Fault::Damaged(format!("entry {index} is missing"))))?;
        // Read a second time, so checked a second time.
        let value = block.value(&old.file, place, index)?;
        let header = record::decode_entry_header(index, value).map_err(wrong)?;
        record::check_payload(&header, value).map_err(wrong)?;
        out.own().extend_from_slice(value);
        Ok::<(), Error>(())
    })?;
    let oldest = places.get(bounds.first).map_or(generation, |p| {
        if p.segment < old.first.generation {
            p.segment
        } else {
            generation
        }
    });
    let header = FrameHeader {
        generation,
        first_of_segment: true,
        before: old.first.before,
        oldest,
        previous: old.first.previous,
        ..header_of(&draft)
    };
    let sealed = frame.seal(&header, 0).map_err(wrong)?;

    let limit = pool::size_limit(options.segment_size, options.disk_quota);
    let all = || links.iter().map(|link| &link.file).chain(&free).chain(std::iter::once(&old.file));
    let next_slot = all().map(SegmentFile::slot).max().unwrap_or_default().saturating_add(1);
    let held = all().map(SegmentFile::len).fold(0, u64::saturating_add);
    let mut pool = Pool::new(log_dir, next_slot, held, limit, options.disk_quota);
    let mut free: Vec<Arc<SegmentFile>> = free.into_iter().map(Arc::new).collect();
    let needed = sealed.len;
    let safe = free.iter().position(|file| known_durable && file.len() >= needed);
    let file = match safe {
        Some(n) => free.swap_remove(n),
        // Even above the quota: the old tail is free right after.
        None => pool.make(needed.max(old.file.len().min(limit)))?,
    };
    file.write_durably_in_parts(&sealed.parts, 0)?;

    places.cut(from);
    let mut segments: BTreeMap<u32, Arc<SegmentFile>> = BTreeMap::new();
    for link in links {
        segments.insert(link.first.generation, Arc::new(link.file));
    }
    segments.insert(generation, file.clone());
    // What only the old tail linked to goes with it.
    let needed = segments.split_off(&oldest);
    free.extend(std::mem::replace(&mut segments, needed).into_values());
    for (_, at) in sealed.entries {
        places.push(super::index::Place { segment: generation, offset: *at });
    }
    free.push(Arc::new(old.file));
    let tail = Tail { file, generation, previous: header.previous, offset: sealed.len, crc: sealed.crc };
    Ok(Rewritten { state: loaded.state, draft, index: Index::new(places, segments), tail, pool, free })
}
