//! Segments ready to be used: recycled ones first, new ones made ahead of need on a thread of their own.
//!
//! Invariants: a write with entries leaves one ready segment behind, so that a full disk or quota can still be compacted;
//! a segment that somebody still reads is not handed out; the pool is bounded, what is too much is deleted, on another thread of its own. What is
//! ready holds up no frame that does not go into it: it makes room. A refusal is found before anything is written and changes nothing.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::direct::Pace;
use crate::error::{Error, ErrorCode, Result};
use crate::log::batching::Failure;
use crate::log::files::disk_space;
use crate::own_thread;
use crate::removal::give_back;

use super::segment_file::SegmentFile;

/// Size of a log's first segments; later ones are a quarter of the log, up to `segment_size`.
const FIRST_SIZE: u64 = 1 << 20;
const SMALLEST_SIZE: u64 = 64 << 10;
const LARGEST_SIZE: u64 = 1 << 30;
/// Ready segments, at most; more while the log fills more than that from one compaction to the next, since it will need them again. With
/// large frames no more than it fills: each of them is large then, and a new one soon made.
const MOST: usize = 6;
const MOST_EVER: usize = 64;
/// Ready segments that are made ahead: one to use, one in reserve.
const AHEAD: usize = 2;
/// Frames so large are written as fast as the disk takes bytes: writing all of a new segment before costs as much again, and what it saves
/// each of them is little beside that (measured: half as many 16 KiB commands a second while a log grows).
const LARGE_FRAME: u64 = 512 << 10;
/// Frames smaller than this are so many to a segment, and each is so much dearer in one that is only allocated, that the log rather waits for
/// the zeros, once.
const SMALL_FRAME: u64 = 64 << 10;
/// Of the disk, what a log leaves for snapshots, without which it could not be compacted.
const DISK_RESERVE: u64 = 8 << 20;

/// Bytes of a segment, at most: as wished, and at least eight of them within the quota.
pub(crate) fn size_limit(segment_size: u64, quota: Option<u64>) -> u64 {
    let wished = segment_size.clamp(SMALLEST_SIZE, LARGEST_SIZE);
    quota.map_or(wished, |quota| wished.min(quota / 8).max(SMALLEST_SIZE)) & !4095
}

/// Bytes of a new log's first segment.
pub(crate) fn first_size(limit: u64, needed: u64) -> u64 {
    FIRST_SIZE.min(limit).max(needed.next_multiple_of(4096))
}

/// Work on a thread of its own, and how to hurry it.
type Paced<T> = (JoinHandle<T>, Arc<Pace>);

pub(crate) struct Pool {
    log_dir: PathBuf,
    ready: VecDeque<Arc<SegmentFile>>,
    making: Option<Paced<Result<SegmentFile>>>,
    /// What is too much, and who deletes it: the log must not wait for that.
    surplus: Vec<Arc<SegmentFile>>,
    deleting: Option<Paced<(u64, u64)>>,
    next_slot: u64,
    /// Taken since segments last came back; and in the fullest time between two compactions, which fades with each that needs less than half.
    taken: usize,
    span: usize,
    /// Bytes of the frame for which the last one was taken: one into which it would not go is of no use to those that follow.
    needed: u64,
    /// Bytes of all segments of the directory but those that are being deleted.
    held: u64,
    /// Bytes of those.
    leaving: u64,
    limit: u64,
    quota: Option<u64>,
}

impl Pool {
    /// `held` bytes of segments lie in the directory, in slots below `next_slot`; none of them is ready yet.
    pub(crate) fn new(log_dir: &Path, next_slot: u64, held: u64, limit: u64, quota: Option<u64>) -> Self {
        Pool {
            log_dir: log_dir.to_path_buf(),
            ready: VecDeque::new(),
            making: None,
            surplus: Vec::new(),
            deleting: None,
            next_slot,
            taken: 0,
            span: 0,
            needed: 0,
            held,
            leaving: 0,
            limit,
            quota,
        }
    }

    /// A segment for a frame of `needed` bytes. With `reserve` one stays ready.
    pub(crate) fn take(&mut self, needed: u64, reserve: bool) -> Result<Arc<SegmentFile>, Failure> {
        self.needed = needed;
        let keep = usize::from(reserve);
        if self.usable(needed).is_none() || self.ready.len() <= keep {
            self.finish_making();
        }
        let recycled = self.usable(needed).filter(|_| self.ready.len() > keep).and_then(|n| self.ready.remove(n));
        let file = match recycled {
            Some(file) => file,
            None => self.grow(needed, reserve).map_err(|error| match error.code {
                ErrorCode::DiskFull => Failure::Refused(error),
                _ => Failure::Broken(error),
            })?,
        };
        self.taken = self.taken.saturating_add(1);
        self.let_go(disk_space(&self.log_dir));
        self.prepare();
        Ok(file)
    }

    /// Bytes of the next new segment: small ones for a small log, so that it takes little more than it holds, and large enough for a frame
    /// like the last.
    fn next_size(&self) -> u64 {
        let ready = self.ready.iter().map(|file| file.len()).fold(0, u64::saturating_add);
        let live = self.held.saturating_sub(ready);
        let wished = (live / 4).next_multiple_of(4096);
        let least = self.needed.next_multiple_of(4096);
        wished.clamp(FIRST_SIZE.min(self.limit), self.limit).max(least)
    }

    /// Ready ones into which a frame like the last does not go.
    fn too_small(&self) -> usize {
        self.ready.iter().filter(|file| file.len() < self.needed).count()
    }

    /// Enough are ready, and one of them at least takes what is written lately. The others may be smaller: what makes room is small.
    fn is_ahead(&self) -> bool {
        self.ready.len() >= AHEAD.max(self.too_small().saturating_add(1))
    }

    fn grow(&mut self, needed: u64, reserve: bool) -> Result<Arc<SegmentFile>> {
        let size = self.next_size();
        if self.may_grow(size).is_err() {
            // What is on its way out makes room, and then what is ready and too small.
            self.finish_deleting();
            self.make_room(self.lack(size, disk_space(&self.log_dir)), needed, reserve);
            self.may_grow(size)?;
        }
        // The log stands meanwhile.
        self.make_at(size, &if needed < SMALL_FRAME { Pace::hurried() } else { Pace::least() })
    }

    /// Makes a new segment here and now, whatever the quota says.
    pub(crate) fn make(&mut self, size: u64) -> Result<Arc<SegmentFile>> {
        self.make_at(size, &Pace::hurried())
    }

    fn make_at(&mut self, size: u64, pace: &Pace) -> Result<Arc<SegmentFile>> {
        let slot = self.new_slot();
        let made = SegmentFile::create(&self.log_dir, slot, size.next_multiple_of(4096), pace)?;
        self.held = self.held.saturating_add(made.len());
        Ok(Arc::new(made))
    }

    fn new_slot(&mut self) -> u64 {
        let slot = self.next_slot;
        self.next_slot = slot.saturating_add(1);
        slot
    }

    /// The one that has been ready longest, which no reader holds and into which the frame goes.
    fn usable(&self, needed: u64) -> Option<usize> {
        // The pool has the only way to a new holder, so a count of one stays one.
        self.ready.iter().position(|file| Arc::strong_count(file) == 1 && file.len() >= needed)
    }

    /// Ready segments to keep. Past the least number only where the disk has as much free again: a snapshot, without which the log cannot be
    /// compacted, needs that room more.
    fn most(&self, space: Option<(u64, u64)>) -> usize {
        let ready = self.ready.iter().map(|file| file.len()).fold(0, u64::saturating_add);
        let ample = space.is_none_or(|(free, _)| free > ready);
        let most = if self.needed < LARGE_FRAME { MOST } else { AHEAD };
        if ample {
            self.span.clamp(most, MOST_EVER)
        } else {
            most
        }
    }

    /// The disk has become short of space since they were kept, or the log needs fewer, or larger ones: of those that are too small the reserve
    /// is all that is of use, best one that nobody reads.
    fn let_go(&mut self, space: Option<(u64, u64)>) {
        loop {
            let too_many = (self.ready.len() > self.most(space)).then(|| self.ready.len().saturating_sub(1));
            let small = |file: &Arc<SegmentFile>| file.len() < self.needed;
            let read = |file: &Arc<SegmentFile>| small(file) && Arc::strong_count(file) > 1;
            let too_small = self.ready.iter().rposition(read).or_else(|| self.ready.iter().rposition(small));
            let too_small = too_small.filter(|_| self.too_small() > 1);
            let Some(file) = too_small.or(too_many).and_then(|n| self.ready.remove(n)) else { return };
            self.give_up(file);
        }
    }

    /// It is too much.
    fn give_up(&mut self, file: Arc<SegmentFile>) {
        self.held = self.held.saturating_sub(file.len());
        self.leaving = self.leaving.saturating_add(file.len());
        self.surplus.push(file);
    }

    /// Deletes ready segments into which this frame does not go, the smallest first, until `lack` bytes are free. If all of them would not do, none.
    fn make_room(&mut self, lack: u64, needed: u64, reserve: bool) {
        // As in `usable`: one that is still read makes no room before its last reader is done.
        let idle = self.ready.iter().filter(|file| file.len() < needed && Arc::strong_count(file) == 1);
        let mut idle: Vec<(u64, u64)> = idle.map(|file| (file.len(), file.slot())).collect();
        idle.sort_unstable();
        let (mut room, mut gone) = (0u64, Vec::new());
        // The smallest is enough of a reserve: what makes room is small.
        for (len, slot) in idle.into_iter().skip(usize::from(reserve)) {
            if room >= lack {
                break;
            }
            room = room.saturating_add(len);
            gone.push(slot);
        }
        if room < lack || gone.is_empty() {
            return;
        }
        let ready = std::mem::take(&mut self.ready).into_iter();
        let (gone, ready): (VecDeque<_>, _) = ready.partition(|file| gone.contains(&file.slot()));
        self.ready = ready;
        gone.into_iter().for_each(|file| self.give_up(file));
        self.finish_deleting();
    }

    /// Bytes that a segment of that size would take beyond what the quota and the disk (bytes free, of how many) have left.
    fn lack(&self, size: u64, space: Option<(u64, u64)>) -> u64 {
        self.over_quota(size).max(space.map_or(0, |space| short(size, space)))
    }

    fn over_quota(&self, by: u64) -> u64 {
        let after = self.held.saturating_add(self.leaving).saturating_add(by);
        self.quota.map_or(0, |quota| after.saturating_sub(quota))
    }

    fn may_grow(&self, by: u64) -> Result<()> {
        if let Some(quota) = self.quota.filter(|_| self.over_quota(by) > 0) {
            return Err(Error::storage(
                ErrorCode::DiskFull,
                &self.log_dir,
                format_args!(
                    "the log takes {} of {quota} bytes allowed and a segment of {by} more does not fit; take a snapshot so that it is compacted, or raise disk_quota",
                    self.held
                ),
            ));
        }
        match disk_space(&self.log_dir) {
            Some((free, size)) if short(by, (free, size)) > 0 => Err(Error::storage(
                ErrorCode::DiskFull,
                &self.log_dir,
                format_args!("{free} bytes are free on this disk and a segment of {by} does not fit; free space, or take a snapshot so that the log is compacted"),
            )),
            _ => Ok(()),
        }
    }

    /// Has a segment made, if too few are ready and there is room. What fails shows when it is needed.
    pub(crate) fn prepare(&mut self) {
        let size = self.next_size();
        if self.is_ahead() || self.making.is_some() || self.may_grow(size).is_err() {
            return;
        }
        let (log_dir, slot) = (self.log_dir.clone(), self.new_slot());
        let pace = Arc::new(if self.needed < LARGE_FRAME { Pace::default() } else { Pace::least() });
        let its_pace = Arc::clone(&pace);
        let make = move || SegmentFile::create(&log_dir, slot, size, &its_pace);
        let thread = own_thread::spawn("raftify-segment", make);
        self.making = thread.ok().map(|thread| (thread, pace));
    }

    /// The segment in use is half full: if the next one is still being made, that must not take its time any more.
    pub(crate) fn hurry(&self) {
        if let Some((_, pace)) = self.making.as_ref().filter(|_| !self.is_ahead()) {
            pace.hurry();
        }
    }

    fn finish_making(&mut self) {
        let Some((thread, pace)) = self.making.take() else { return };
        if self.needed < SMALL_FRAME {
            pace.hurry();
        } else {
            pace.cut_short();
        }
        if let Ok(Ok(file)) = thread.join() {
            self.held = self.held.saturating_add(file.len());
            self.ready.push_back(Arc::new(file));
        }
    }

    /// Takes back a segment that no longer belongs to the log, or has it deleted ([`Pool::clear_surplus`]).
    pub(crate) fn give(&mut self, file: Arc<SegmentFile>) {
        if self.taken > 0 {
            let fades = usize::from(self.taken.saturating_mul(2) < self.span);
            self.span = self.taken.saturating_add(AHEAD).max(self.span.saturating_sub(fades));
            self.taken = 0;
        }
        let size = self.limit.min(FIRST_SIZE);
        let fits = file.len() >= size && file.len() <= self.limit.saturating_mul(4);
        let within = self.quota.is_none_or(|quota| self.held <= quota);
        // Somewhat smaller than a new one would be is better than a new one.
        let useful = !self.is_ahead() || file.len() >= self.next_size() / 2;
        let space = disk_space(&self.log_dir);
        if fits && useful && self.ready.len() < self.most(space) && (within || self.ready.is_empty()) {
            self.ready.push_back(file);
        } else {
            self.give_up(file);
        }
    }

    /// Deletes what is too much, on a thread of its own: each may take milliseconds, and all of a snapshot's span come at once.
    pub(crate) fn clear_surplus(&mut self) {
        if self.deleting.as_ref().is_some_and(|(thread, _)| thread.is_finished()) {
            self.finish_deleting();
        }
        if self.surplus.is_empty() || self.deleting.is_some() {
            return;
        }
        let surplus = std::mem::take(&mut self.surplus);
        let bytes = surplus.iter().map(|file| file.len()).sum();
        let pace = Arc::new(Pace::default());
        let its_pace = Arc::clone(&pace);
        match own_thread::spawn("raftify-segment", move || delete(&surplus, &its_pace)) {
            Ok(thread) => self.deleting = Some((thread, pace)),
            // The next open finds them.
            Err(_) => self.deleted(0, bytes),
        }
    }

    /// All that was too much is gone.
    fn finish_deleting(&mut self) {
        if let Some((thread, pace)) = self.deleting.take() {
            pace.hurry();
            if let Ok((gone, left)) = thread.join() {
                self.deleted(gone, left);
            }
        }
        let (gone, left) = delete(&std::mem::take(&mut self.surplus), &Pace::hurried());
        self.deleted(gone, left);
    }

    /// One that cannot be deleted stays and counts.
    fn deleted(&mut self, gone: u64, left: u64) {
        self.leaving = self.leaving.saturating_sub(gone.saturating_add(left));
        self.held = self.held.saturating_add(left);
    }
}

/// What a disk with so many bytes free, of so many, lacks for `by` bytes more.
fn short(by: u64, (free, size): (u64, u64)) -> u64 {
    by.saturating_add(DISK_RESERVE.min(size / 8)).saturating_sub(free)
}

/// Bytes that are free now, and those that are not.
fn delete(files: &[Arc<SegmentFile>], pace: &Pace) -> (u64, u64) {
    files.iter().fold((0, 0), |(gone, left), file| match file.remove() {
        Ok(()) => {
            // As in `usable`: a count of one stays one. What is still read is given back by its last reader.
            if Arc::strong_count(file) == 1 {
                give_back(file.file(), pace);
            }
            (file.len().saturating_add(gone), left)
        }
        Err(_) => (gone, file.len().saturating_add(left)),
    })
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The directory must not change any more once its lock is given up.
        if let Some((_, pace)) = &self.making {
            pace.cut_short();
        }
        self.finish_making();
        self.finish_deleting();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::faults::{fail_next, Fault};
    use crate::log::segment::SEGMENT_SIZE;

    const SIZE: u64 = 64 << 10;

    /// A pool with so many segments ready.
    fn pool(dir: &Path, ready: usize, quota: Option<u64>) -> Pool {
        let mut pool = Pool::new(dir, 1, 0, SIZE, quota);
        for _ in 0..ready {
            let file = pool.make(SIZE).unwrap();
            pool.give(file);
        }
        pool
    }

    #[test]
    fn a_segment_that_is_still_read_is_not_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = pool(dir.path(), 3, Some(3 * SIZE));
        let read: Vec<Arc<SegmentFile>> = pool.ready.iter().take(2).cloned().collect();
        let taken = pool.take(100, true).unwrap();
        assert!(read.iter().all(|file| file.slot() != taken.slot()));
        assert!(matches!(pool.take(100, false), Err(Failure::Refused(_))));
        drop(read);
        pool.take(100, false).unwrap();
    }

    #[test]
    fn the_next_segment_is_hurried_when_it_is_the_only_one_besides_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        for (ready, hurried) in [(0, true), (1, true), (2, false)] {
            let mut pool = pool(dir.path(), ready, None);
            let pace = Arc::new(Pace::default());
            let made = pool.make(SIZE).unwrap();
            pool.making = Some((std::thread::spawn(move || Ok(Arc::into_inner(made).unwrap())), Arc::clone(&pace)));
            pool.hurry();
            assert_eq!(pace.is_hurried(), hurried, "{ready}");
        }
    }

    #[test]
    fn once_frames_are_larger_than_what_is_ready_segments_for_them_are_made_ahead() {
        for (frame, only_allocated) in [(LARGE_FRAME - 1, false), (LARGE_FRAME, true)] {
            let dir = tempfile::tempdir().unwrap();
            let mut pool = pool(dir.path(), 2, None);
            pool.limit = SEGMENT_SIZE;
            let mut made_waiting = 0;
            for _ in 0..5 {
                let before = pool.next_slot;
                assert!(pool.take(frame, true).unwrap().len() >= frame);
                let (_, pace) = pool.making.as_ref().expect("the next one is on its way");
                assert_eq!(pace.is_cut_short(), only_allocated);
                made_waiting += pool.next_slot - before - 1;
            }
            assert_eq!(made_waiting, 1, "the first one alone was waited for");
            pool.finish_making();
            let taken = pool.take(frame, false).unwrap();
            pool.give(taken);
            assert!(pool.is_ahead());
            assert_eq!((pool.ready.len(), pool.too_small()), (2, 1), "one to use, and of the small ones the reserve");
        }
    }

    #[test]
    fn a_log_waits_for_zeros_only_if_many_frames_have_something_of_them() {
        for (needed, zeros) in [(SMALL_FRAME - 1, true), (SMALL_FRAME, false)] {
            let dir = tempfile::tempdir().unwrap();
            let mut pool = pool(dir.path(), 1, None);
            let pace = Arc::new(Pace::default());
            let made = pool.make(SIZE).unwrap();
            pool.making = Some((std::thread::spawn(move || Ok(Arc::into_inner(made).unwrap())), Arc::clone(&pace)));
            pool.take(needed, true).unwrap();
            assert_eq!((pace.is_hurried(), pace.is_cut_short()), (true, !zeros), "{needed}");
        }
    }

    #[test]
    fn one_segment_stays_ready_for_what_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = pool(dir.path(), 2, Some(2 * SIZE));
        let first = pool.take(100, true).unwrap();
        for _ in 0..2 {
            let refused = pool.take(100, true);
            assert!(matches!(refused, Err(Failure::Refused(e)) if e.code == ErrorCode::DiskFull));
        }
        pool.take(100, false).unwrap();
        assert!(matches!(pool.take(100, false), Err(Failure::Refused(_))));
        pool.give(first);
        pool.take(100, false).unwrap();
    }

    #[test]
    fn what_is_ready_but_too_small_for_a_frame_makes_room_for_it() {
        // Ready, still read, quota, larger by; with a reserve; how many stay, of a frame that has room in the end.
        for (ready, read, quota, larger, reserve, stay) in [
            (6, 0, 7 * SIZE, 1, true, Some(1)),
            (6, 0, 7 * SIZE, 5 * SIZE, true, Some(1)),
            (6, 0, 7 * SIZE, 5 * SIZE + 1, true, None),
            (6, 0, 7 * SIZE, 6 * SIZE, false, Some(0)),
            (6, 0, 7 * SIZE, 6 * SIZE + 1, false, None),
            (6, 2, 7 * SIZE, 3 * SIZE, true, Some(1)),
            (6, 2, 7 * SIZE, 3 * SIZE + 1, true, None),
            (1, 0, SIZE, 1, true, None),
            (1, 1, SIZE, 1, false, None),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut pool = pool(dir.path(), ready, Some(quota));
            let readers: Vec<Arc<SegmentFile>> = pool.ready.iter().take(read).cloned().collect();
            let case = format!("{ready} {read} {quota} {larger} {reserve}");
            match (pool.take(SIZE + larger, reserve), stay) {
                (Ok(taken), Some(stay)) => {
                    assert!(taken.len() >= SIZE + larger, "{case}");
                    // Of those that are still read the pool lets go as well, once it has the segment.
                    assert_eq!(pool.ready.len(), stay, "{case}");
                    assert!(pool.ready.iter().all(|file| Arc::strong_count(file) == 1), "{case}");
                    assert_eq!(pool.held, taken.len() + stay as u64 * SIZE, "{case}");
                }
                (Err(Failure::Refused(error)), None) => {
                    assert_eq!(error.code, ErrorCode::DiskFull, "{case}");
                    let lie_there = std::fs::read_dir(dir.path()).unwrap().count();
                    assert_eq!(
                        (pool.ready.len(), lie_there, pool.leaving),
                        (ready, ready, 0),
                        "{case}: nothing changed"
                    );
                    assert_eq!(pool.held, ready as u64 * SIZE, "{case}");
                }
                (other, _) => panic!("{case}: {other:?}"),
            }
            drop(readers);
        }
    }

    #[test]
    fn what_is_ready_makes_room_on_a_full_disk_too_and_only_as_much_as_is_needed() {
        const MIB: u64 = 1 << 20;
        for (size, space, lack) in [
            (MIB, (9 * MIB, 100 * MIB), 0),
            (MIB, (9 * MIB - 1, 100 * MIB), 1),
            (MIB, (0, 8 * MIB), 2 * MIB),
            (u64::MAX, (0, u64::MAX), u64::MAX),
        ] {
            let pool = Pool::new(Path::new("."), 1, 0, SIZE, None);
            assert_eq!(pool.lack(size, Some(space)), lack, "{size} {space:?}");
        }
        for (lack, reserve, gone) in [
            (0, true, 0),
            (1, true, 2),
            (2 * SIZE, true, 2),
            (2 * SIZE + 1, true, 5),
            (5 * SIZE, true, 5),
            (5 * SIZE + 1, true, 0),
            (1, false, 1),
            (6 * SIZE, false, 6),
            (6 * SIZE + 1, false, 0),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut pool = pool(dir.path(), 0, None);
            for size in [3, 1, 2, 4] {
                let file = pool.make(size * SIZE).unwrap();
                pool.ready.push_back(file);
            }
            pool.make_room(lack, 4 * SIZE, reserve);
            let ready: u64 = pool.ready.iter().map(|file| file.len()).sum();
            assert_eq!((ready, pool.held, pool.leaving), (ready, ready, 0));
            assert_eq!(10 - ready / SIZE, gone, "{lack} {reserve}");
        }
    }

    #[test]
    fn the_pool_is_bounded_and_keeps_no_giants() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = pool(dir.path(), 9, None);
        assert_eq!((pool.ready.len(), pool.held), (MOST, MOST as u64 * SIZE));
        let giant = pool.make(10 * SIZE).unwrap();
        pool.ready.clear();
        pool.held = giant.len();
        let path = giant.path().to_path_buf();
        pool.give(giant);
        assert_eq!((pool.ready.len(), pool.held, pool.leaving), (0, 0, (9 - MOST as u64 + 10) * SIZE));
        pool.clear_surplus();
        drop(pool);
        assert!(!path.exists());
    }

    #[test]
    fn what_one_compaction_frees_is_kept_for_the_next_time_the_log_grows_so_far() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = pool(dir.path(), 2, None);
        let mut grow_and_compact = |segments: usize| {
            let taken: Vec<_> = (0..segments).map(|_| pool.take(100, true).unwrap()).collect();
            let made = pool.next_slot;
            taken.into_iter().for_each(|file| pool.give(file));
            pool.finish_making();
            (pool.ready.len(), made)
        };
        let (kept, made) = grow_and_compact(20);
        assert_eq!(kept, 20 + AHEAD);
        let (kept, again) = grow_and_compact(20);
        assert_eq!((kept, again), (20 + AHEAD, made), "nothing new is made");
        let last = (0..40).map(|_| grow_and_compact(1)).last();
        assert_eq!(last.map(|(kept, _)| kept), Some(MOST), "with little to write it fades");
        assert!(grow_and_compact(2 * MOST_EVER).0 <= MOST_EVER + AHEAD);
    }

    #[test]
    fn with_large_frames_no_more_is_kept_than_is_filled_between_compactions() {
        for (frame, kept) in [(LARGE_FRAME - 1, MOST), (LARGE_FRAME, 1 + AHEAD)] {
            let dir = tempfile::tempdir().unwrap();
            let mut pool = pool(dir.path(), 0, None);
            pool.limit = SEGMENT_SIZE;
            let taken = pool.take(frame, true).unwrap();
            let others: Vec<_> = (0..MOST).map(|_| pool.make(FIRST_SIZE).unwrap()).collect();
            others.into_iter().chain([taken]).for_each(|file| pool.give(file));
            assert_eq!(pool.ready.len(), kept, "{frame}");
        }
    }

    #[test]
    fn on_a_disk_that_is_nearly_full_no_more_is_kept_than_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = pool(dir.path(), 0, None);
        let taken: Vec<_> = (0..20).map(|_| pool.make(SIZE).unwrap()).collect();
        (pool.taken, pool.held) = (20, 20 * SIZE);
        taken.into_iter().for_each(|file| pool.give(file));
        assert_eq!((pool.ready.len(), pool.most(Some((100 * SIZE, 0)))), (20, 20 + AHEAD));
        assert_eq!(pool.most(Some((20 * SIZE, 0))), MOST);
        pool.let_go(Some((100 * SIZE, 0)));
        assert_eq!(pool.ready.len(), 20);
        pool.let_go(Some((10 * SIZE, 0)));
        let ready = pool.ready.len();
        assert!(ready as u64 * SIZE <= 10 * SIZE && ready >= MOST, "{ready} stay, as large together as what is free");
        assert_eq!((pool.held, pool.leaving), (ready as u64 * SIZE, (20 - ready as u64) * SIZE));
    }

    #[test]
    fn what_is_deleted_gives_its_space_back_unless_it_is_still_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = pool(dir.path(), 0, None);
        let (read, unread) = (pool.make(10 * SIZE).unwrap(), pool.make(10 * SIZE).unwrap());
        let seen = File::open(unread.path()).unwrap();
        pool.give(Arc::clone(&read));
        pool.give(unread);
        drop(pool);
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
        assert_eq!(seen.metadata().unwrap().len(), 0);
        read.read(&mut [0; 100], 10 * SIZE - 100).unwrap();
    }

    #[test]
    fn s10_a_segment_that_cannot_be_made_is_a_failure_of_the_disk_and_no_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = Pool::new(&dir.path().join("gone"), 1, 0, SIZE, None);
        assert!(matches!(pool.take(100, true), Err(Failure::Broken(error)) if error.code == ErrorCode::Storage));
    }

    #[test]
    fn what_cannot_be_deleted_stays_and_counts() {
        for (story, stays) in [("it goes", 0), ("no thread to do it", 1), ("the system refuses", 1)] {
            let dir = tempfile::tempdir().unwrap();
            let mut pool = pool(dir.path(), 0, Some(2 * SIZE));
            let giant = pool.make(10 * SIZE).unwrap();
            match story {
                "no thread to do it" => fail_next(Fault::Thread),
                "the system refuses" => {
                    std::fs::remove_file(giant.path()).unwrap();
                    std::fs::create_dir(giant.path()).unwrap();
                }
                _ => {}
            }
            pool.give(giant);
            pool.clear_surplus();
            pool.finish_deleting();
            assert_eq!((pool.held, pool.leaving), (stays * 10 * SIZE, 0), "{story}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count() as u64, stays, "{story}");
            assert_eq!(pool.take(100, false).is_err(), stays > 0, "{story}: it is above the quota");
        }
    }

    #[test]
    fn what_is_made_ahead_counts_and_is_whole_before_the_directory_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = pool(dir.path(), 0, None);
        pool.prepare();
        pool.finish_making();
        assert_eq!((pool.ready.len(), pool.held), (1, SIZE));
        let pace = Arc::new(Pace::default());
        let (log_dir, its_pace) = (dir.path().to_path_buf(), Arc::clone(&pace));
        // It comes to nothing else before it is told to be quick.
        let make = move || {
            while !its_pace.is_cut_short() {
                std::thread::yield_now();
            }
            SegmentFile::create(&log_dir, 99, SIZE, &its_pace)
        };
        pool.making = Some((std::thread::spawn(make), pace));
        drop(pool);
        let names = || std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name());
        assert!(names().any(|name| name == "00000099.seg"), "{:?}", names().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_on_its_way_out_takes_room_until_room_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = pool(dir.path(), 0, Some(3 * SIZE));
        let giant = pool.make(3 * SIZE).unwrap();
        pool.held = 10 * SIZE; // beyond its quota it keeps nothing but one
        let other = pool.make(SIZE).unwrap();
        pool.give(other);
        pool.give(giant);
        pool.held = 0;
        assert!(pool.may_grow(SIZE).is_err());
        pool.ready.clear();
        pool.take(100, false).unwrap();
        assert_eq!(pool.leaving, 0);
    }

    #[test]
    fn new_segments_grow_with_the_log_up_to_the_limit() {
        let mut pool = Pool::new(Path::new("."), 1, 0, 16 << 20, None);
        for (held, size) in [(0, 1 << 20), (3 << 20, 1 << 20), (20 << 20, 5 << 20), (1 << 30, 16 << 20)] {
            pool.held = held;
            assert_eq!(pool.next_size(), size, "{held}");
        }
        for (wished, quota, limit) in [
            (16 << 20, None, 16 << 20),
            (0, None, SMALLEST_SIZE),
            (u64::MAX, None, LARGEST_SIZE),
            (16 << 20, Some(8 << 20), 1 << 20),
            (16 << 20, Some(1), SMALLEST_SIZE),
        ] {
            assert_eq!(size_limit(wished, quota), limit, "{wished} {quota:?}");
        }
    }
}
