//! What this node's commands came to, as a running sum that other nodes' sums can be compared with (S17).
//!
//! ```text
//!   commands    1 2 3 4 5 | 6 7 8 9 10 | 11 12 …      windows of fixed indexes: the sum starts anew at each
//!   raised          x           x                     an event: a command that raised, or (verify_results) a result's bytes
//!   sum         0 0 a a a   0 0 b b b    0  0         after each index; the same on nodes whose outcomes are the same
//! ```
//!
//! A command that returned normally adds nothing, so that a batch in which none raised costs nothing. The sum is a field of
//! each snapshot; a node that skipped a replay does not know its own until the next window begins.

use std::collections::{BTreeMap, VecDeque};

use crate::checksum;

/// Events that are remembered, and window ends: so far back a slow peer can still be compared.
const EVENTS: usize = 16_384;
const ENDS: usize = 4_096;

/// After this index the sum was this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub index: u64,
    pub sum: u64,
}

pub(super) struct Outcomes {
    /// Indexes in one window; part of the protocol.
    window: u64,
    applied: u64,
    /// After `applied`; `None`: part of this window was not seen here.
    sum: Option<u64>,
    /// After each remembered event, ascending by index.
    events: VecDeque<Mark>,
    /// From here on `events` has all there were.
    known_from: u64,
    /// Last index of each complete window → sum.
    ends: BTreeMap<u64, u64>,
}

fn mix(sum: u64, index: u64, digest: u64) -> u64 {
    let mut word = sum ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ digest.rotate_left(32);
    for (shift, factor) in [(30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)] {
        word = (word ^ (word >> shift)).wrapping_mul(factor);
    }
    // 0 is the sum of nothing.
    (word ^ (word >> 31)).max(1)
}

/// What stands for an outcome: that it raised (texts may name addresses), or the bytes.
pub(super) fn digest(outcome: Result<&[u8], ()>) -> u64 {
    match outcome {
        Err(()) => 1,
        Ok(bytes) => 1 << 63 | (bytes.len() as u64) << 32 | u64::from(checksum::crc32c(bytes)),
    }
}

impl Outcomes {
    /// A machine that stands at `applied`, with the sum that its snapshot names.
    pub fn new(window: u64, applied: u64, sum: Option<u64>) -> Self {
        let mut outcomes = Outcomes {
            window: window.max(1),
            applied: 0,
            sum: None,
            events: VecDeque::new(),
            known_from: 0,
            ends: BTreeMap::new(),
        };
        outcomes.restored(applied, sum);
        outcomes
    }

    pub fn applied(&self) -> u64 {
        self.applied
    }

    fn window_of(&self, index: u64) -> u64 {
        index / self.window
    }

    /// First index of the window that `index` lies in.
    pub fn window_start(&self, index: u64) -> u64 {
        self.window_of(index).saturating_mul(self.window)
    }

    fn window_end(&self, index: u64) -> u64 {
        self.window_start(index).saturating_add(self.window - 1)
    }

    /// The machine has another state now: what was known of the one before says nothing of it.
    pub fn restored(&mut self, index: u64, sum: Option<u64>) {
        self.events.clear();
        self.ends.clear();
        self.applied = index;
        self.sum = sum;
        self.known_from = index;
        match sum {
            Some(sum) => self.events.push_back(Mark { index, sum }),
            None => self.known_from = self.window_end(index).saturating_add(1),
        }
    }

    /// A command that raised, or whose result counts. Ascending; one out of turn is passed over.
    pub fn add(&mut self, index: u64, digest: u64) {
        if index <= self.applied {
            return;
        }
        self.advance(index.saturating_sub(1));
        self.enter(index);
        self.applied = index;
        let Some(sum) = &mut self.sum else { return };
        *sum = mix(*sum, index, digest);
        self.events.push_back(Mark { index, sum: *sum });
        if self.events.len() > EVENTS {
            self.events.pop_front();
            self.known_from = self.events.front().map_or(index, |mark| mark.index).max(self.known_from);
        }
    }

    /// Everything up to here is applied; what was not added returned normally.
    pub fn advance(&mut self, to: u64) {
        while self.window_of(self.applied) < self.window_of(to) {
            self.enter(self.window_end(self.applied).saturating_add(1));
        }
        self.applied = self.applied.max(to);
    }

    fn enter(&mut self, index: u64) {
        if self.window_of(index) == self.window_of(self.applied) {
            return;
        }
        if let Some(sum) = self.sum {
            self.ends.insert(self.window_end(self.applied), sum);
            if self.ends.len() > ENDS {
                self.ends.pop_first();
            }
        }
        self.sum = Some(0);
        self.applied = index;
    }

    /// The sum after this index; `None` when it is not known (any more, or yet).
    pub fn sum_at(&self, index: u64) -> Option<u64> {
        if index > self.applied {
            return None;
        }
        if index == self.applied {
            return self.sum;
        }
        if let Some(sum) = self.ends.get(&index) {
            return Some(*sum);
        }
        if index < self.known_from {
            return None;
        }
        let after = self.events.partition_point(|mark| mark.index <= index);
        let last = after.checked_sub(1).and_then(|at| self.events.get(at));
        Some(last.filter(|mark| mark.index >= self.window_start(index)).map_or(0, |mark| mark.sum))
    }

    /// Window ends after `from`, at most `limit`, and then the present one: what a peer is to be asked about.
    pub fn marks_after(&self, from: u64, limit: usize) -> Vec<Mark> {
        let ends = self.ends.range(from.saturating_add(1)..).map(|(index, sum)| Mark { index: *index, sum: *sum });
        let mut marks: Vec<Mark> = ends.take(limit).collect();
        if let Some(sum) = self.sum.filter(|_| self.applied > from && marks.len() < limit) {
            if marks.last().is_none_or(|mark| mark.index < self.applied) {
                marks.push(Mark { index: self.applied, sum });
            }
        }
        marks
    }

    /// From which index on the window of `index` is remembered event by event, and those events up to `index`.
    pub fn details(&self, index: u64) -> (u64, Vec<Mark>) {
        let from = self.window_start(index).max(self.known_from);
        let marks = self.events.iter().filter(|mark| mark.index >= from && mark.index <= index).copied();
        (from, marks.collect())
    }

    /// The first index at or before `index` at which somebody else's sums (ascending) differ from ours, as far as both remember.
    pub fn first_difference(&self, index: u64, from: u64, theirs: &[Mark]) -> u64 {
        let (ours_from, ours) = self.details(index);
        let from = from.max(ours_from);
        let mut at: Vec<u64> = ours.iter().chain(theirs).map(|mark| mark.index).collect();
        at.sort_unstable();
        let sum_of_theirs = |index: u64| {
            let after = theirs.partition_point(|mark| mark.index <= index);
            after.checked_sub(1).and_then(|last| theirs.get(last)).map_or(0, |mark| mark.sum)
        };
        let differs = |at: &u64| self.sum_at(*at) != Some(sum_of_theirs(*at));
        at.into_iter().filter(|at| *at >= from && *at <= index).find(differs).unwrap_or(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAISED: u64 = 1;

    /// A node to whose commands 1..=upto these raised.
    fn node(upto: u64, raised: &[u64]) -> Outcomes {
        let mut outcomes = Outcomes::new(10, 0, Some(0));
        raised.iter().for_each(|index| outcomes.add(*index, RAISED));
        outcomes.advance(upto);
        outcomes
    }

    #[test]
    fn the_sum_depends_on_what_raised_in_its_window_and_on_nothing_else() {
        let (plain, raised) = (node(25, &[]), node(25, &[3, 7, 21]));
        for (index, same) in [(2, true), (3, false), (9, false), (10, true), (20, true), (21, false), (25, false)] {
            assert_eq!(plain.sum_at(index) == raised.sum_at(index), same, "{index}");
        }
        assert_eq!(raised.sum_at(26), None, "not applied yet");
        // However the applying was cut into batches.
        let mut cut = Outcomes::new(10, 0, Some(0));
        for index in 1..=25 {
            if [3, 7, 21].contains(&index) {
                cut.add(index, RAISED);
            }
            cut.advance(index);
        }
        assert!((1..=25).all(|index| cut.sum_at(index) == raised.sum_at(index)));
        assert_eq!(cut.marks_after(0, 9), raised.marks_after(0, 9));
        assert_eq!(cut.marks_after(0, 9).iter().map(|mark| mark.index).collect::<Vec<_>>(), [9, 19, 25]);
    }

    #[test]
    fn whoever_restores_a_snapshot_goes_on_with_its_sum_and_who_skips_starts_with_the_next_window() {
        let whole = node(25, &[3, 7, 15, 21]);
        let mut restored = Outcomes::new(10, 12, whole.sum_at(12));
        let mut skipped = Outcomes::new(10, 12, None);
        for outcomes in [&mut restored, &mut skipped] {
            outcomes.add(15, RAISED);
            outcomes.add(21, RAISED);
            outcomes.advance(25);
        }
        assert_eq!(restored.sum_at(11), None);
        assert_eq!(skipped.sum_at(19), None);
        for index in 20..=25 {
            assert_eq!(skipped.sum_at(index), whole.sum_at(index), "{index}");
        }
        for index in 12..=25 {
            assert_eq!(restored.sum_at(index), whole.sum_at(index), "{index}");
        }
        assert_eq!(skipped.marks_after(0, 9).len(), 1);
    }

    #[test]
    fn the_first_difference_is_named() {
        let ours = node(19, &[12, 14, 17]);
        for (theirs, first) in [
            (vec![12, 14], 17),
            (vec![12, 14, 16, 17], 16),
            (vec![14, 17], 12),
            (vec![], 12),
            (vec![12, 14, 17, 18], 18),
        ] {
            let other = node(19, &theirs);
            assert_ne!(ours.sum_at(19), other.sum_at(19));
            let (from, marks) = other.details(19);
            assert_eq!(ours.first_difference(19, from, &marks), first, "{theirs:?}");
            let (from, marks) = ours.details(19);
            assert_eq!(other.first_difference(19, from, &marks), first, "{theirs:?}");
        }
    }

    #[test]
    fn results_count_by_their_bytes() {
        assert_ne!(digest(Ok(b"a")), digest(Ok(b"b")));
        assert_ne!(digest(Ok(b"")), digest(Err(())));
        assert_eq!(digest(Ok(b"a")), digest(Ok(&[97])));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut outcomes = Outcomes::new(10, 0, Some(0));
        for index in 1..=100_000 {
            outcomes.add(index, RAISED);
        }
        assert_eq!((outcomes.events.len(), outcomes.ends.len()), (EVENTS, ENDS));
        assert!(outcomes.sum_at(99_995).is_some());
        assert_eq!(outcomes.sum_at(50_003), None, "forgotten, not wrong");
    }

    #[test]
    fn an_outcome_out_of_turn_changes_nothing() {
        let mut outcomes = node(15, &[12]);
        let before = outcomes.sum_at(15);
        outcomes.add(12, RAISED);
        outcomes.add(15, RAISED);
        assert_eq!(outcomes.sum_at(15), before);
    }
}
