//! Where each entry lies: eight bytes of memory an entry, shared by writer and reader.
//!
//! Invariants: places stand for consecutive indexes, and their segments never fall; a segment that a reader has been
//! handed stays the same file with the same content until the reader lets go of it (see `pool`). The lock is held for
//! memory work alone, never for the disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::segment_file::SegmentFile;

/// Where the value of one entry begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Generation of the segment.
    pub segment: u32,
    pub offset: u32,
}

/// Places of the entries from `first` on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    first: u64,
    places: VecDeque<Place>,
}

impl Places {
    /// Index of the next entry, if it is known yet.
    pub(crate) fn next(&self) -> u64 {
        self.first.saturating_add(self.places.len() as u64)
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn get(&self, index: u64) -> Option<Place> {
        self.places.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    pub(crate) fn from(&self, index: u64) -> impl Iterator<Item = Place> + '_ {
        let skip = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.places.len());
        self.places.range(skip..).copied()
    }

    /// The next entry is `index`: what lies at or above it goes; with a gap before it, everything does.
    pub(crate) fn cut(&mut self, index: u64) {
        if index > self.next() || index < self.first {
            self.places.clear();
            self.first = index;
        }
        let keep = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.places.truncate(keep);
    }

    pub(crate) fn push(&mut self, place: Place) {
        self.places.push_back(place);
    }

    /// What lies below `first` goes.
    pub(crate) fn drop_below(&mut self, first: u64) {
        let gone = usize::try_from(first.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.places.len());
        self.places.drain(..gone);
        self.first = self.first.max(first);
        if self.places.len() < self.places.capacity() / 4 {
            self.places.shrink_to(self.places.len().saturating_mul(2));
        }
    }

    /// First index that lies in `segment` or a later one; the next one if there is none.
    pub(crate) fn begin_of(&self, segment: u32) -> u64 {
        self.first.saturating_add(self.places.partition_point(|place| place.segment < segment) as u64)
    }
}

/// What a reader is handed at once.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// Rises whenever entries were replaced: parts of different numbers do not belong together.
    pub cuts: u64,
    /// The next entry that will be written.
    pub next: u64,
    pub places: Vec<(Place, Arc<SegmentFile>)>,
}

#[derive(Debug)]
struct Inner {
    places: Places,
    segments: BTreeMap<u32, Arc<SegmentFile>>,
    cuts: u64,
}

#[derive(Debug)]
pub(crate) struct Index(Mutex<Inner>);

impl Index {
    pub(crate) fn new(places: Places, segments: BTreeMap<u32, Arc<SegmentFile>>) -> Self {
        Index(Mutex::new(Inner { places, segments, cuts: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change of it is a few steps that cannot panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn place(&self, index: u64) -> Option<Place> {
        self.lock().places.get(index)
    }

    /// Places of `low..high`, at most `limit`; none when the log does not hold `low`.
    pub(crate) fn part(&self, low: u64, high: u64, limit: usize) -> Part {
        let inner = self.lock();
        let wanted = usize::try_from(high.saturating_sub(low)).unwrap_or(usize::MAX).min(limit);
        let mut part = Part { cuts: inner.cuts, next: inner.places.next(), places: Vec::new() };
        if inner.places.get(low).is_none() {
            return part;
        }
        for place in inner.places.from(low).take(wanted) {
            let Some(file) = inner.segments.get(&place.segment) else { break };
            part.places.push((place, file.clone()));
        }
        part
    }

    /// Takes over a frame that is durable: its entries, and the bounds after it. Returns the segments that are free now.
    pub(crate) fn apply(&self, change: &Change<'_>) -> Vec<Arc<SegmentFile>> {
        let mut inner = self.lock();
        inner.segments.entry(change.generation).or_insert_with(|| change.file.clone());
        for (index, at) in change.entries {
            if *index != inner.places.next() {
                inner.places.cut(*index);
                inner.cuts = inner.cuts.saturating_add(1);
            }
            inner.places.push(Place { segment: change.generation, offset: change.offset.saturating_add(*at) });
        }
        if inner.places.next() != change.last.saturating_add(1) {
            inner.places.cut(change.last.saturating_add(1));
            inner.cuts = inner.cuts.saturating_add(1);
        }
        inner.places.drop_below(change.first);
        let needed = inner.segments.split_off(&change.oldest);
        std::mem::replace(&mut inner.segments, needed).into_values().collect()
    }
}

/// A durable frame, as the index sees it.
#[derive(Debug)]
pub(crate) struct Change<'b> {
    pub generation: u32,
    pub file: &'b Arc<SegmentFile>,
    /// Where the frame begins.
    pub offset: u32,
    pub entries: &'b [(u64, u32)],
    pub first: u64,
    pub last: u64,
    pub oldest: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(first: u64, segments: &[u32]) -> Places {
        let mut places = Places::default();
        places.cut(first);
        segments.iter().zip(0..).for_each(|(segment, offset)| places.push(Place { segment: *segment, offset }));
        places
    }

    #[test]
    fn places_are_cut_behind_and_before() {
        let table: &[(u64, &[u64])] =
            &[(15, &[10, 11, 12, 13, 14]), (13, &[10, 11, 12]), (10, &[]), (9, &[]), (16, &[]), (99, &[])];
        for (cut, left) in table {
            let mut places = places(10, &[1, 1, 2, 2, 3]);
            places.cut(*cut);
            let found: Vec<u64> = (0..200).filter(|i| places.get(*i).is_some()).collect();
            assert_eq!(&found, left, "{cut}");
            assert_eq!(places.next(), *cut);
        }
        for (first, left) in [(9, 5), (10, 5), (12, 3), (15, 0), (40, 0)] {
            let mut places = places(10, &[1, 1, 2, 2, 3]);
            places.drop_below(first);
            assert_eq!((places.len(), places.first()), (left, first.max(10)), "{first}");
        }
    }

    #[test]
    fn the_begin_of_a_segment_is_its_first_entry() {
        let places = places(10, &[1, 1, 3, 3]);
        for (segment, begin) in [(0, 10), (1, 10), (2, 12), (3, 12), (4, 14)] {
            assert_eq!(places.begin_of(segment), begin, "{segment}");
        }
    }

    #[test]
    fn a_million_entries_take_less_than_20_megabytes() {
        let mut places = Places::default();
        (0..1_000_000).for_each(|offset| places.push(Place { segment: 1, offset }));
        assert!(places.places.capacity() * size_of::<Place>() < 20_000_000);
        places.drop_below(999_000);
        assert!(places.places.capacity() < 10_000);
    }
}
