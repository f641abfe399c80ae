//! Members take their snapshots at different indexes.
//!
//! With one interval in all configurations they would all come to the same index at about the same time, and the proposals of just that
//! moment would wait for every machine's disk and processors at once. So each has indexes of its own within the interval:
//!
//! ```text
//! index     0              100,000            200,000            300,000
//! member 1  ──────────────────S──────────────────S──────────────────S───
//! member 2  ────────────S──────────────────S──────────────────S─────────
//! member 3  ──────S··················S··················S···············
//! ```
//!
//! Where entries decide, that only ever makes a snapshot earlier than its interval says, and never less than half an interval after one that
//! was asked for or received. The same where time does: members that were started together have one clock, and others no moment in common.
//!
//! Where bytes decide (`snapshot_bytes`, or the size of the last snapshot, S19) there is nothing to count from that all have in common.
//! There a member comes to its place by being late once, after its start or after one that it was sent, and again by so much as the interval
//! has grown:
//!
//! ```text
//! member 1  ───────S───────S───────S──────────S──────────S───
//! member 2  ─────────S───────S───────S───────────S───────────
//! member 3  ────────────S───────S───────S────────────S───────
//! ```

/// Where a member stands among all, in the order of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Phase {
    pub position: u64,
    pub members: u64,
}

impl Phase {
    /// Whether a snapshot is due by the number of entries: the last one is at `last`, and the machine has got to `at`. It is at the
    /// member's own index within each `interval`, but not sooner than half an interval after one that was asked for or received. By time
    /// likewise.
    pub fn is_due(self, interval: u64, last: u64, at: u64) -> bool {
        let grown = at.saturating_sub(last);
        if interval == 0 || grown < interval.div_ceil(2) {
            return false;
        }
        grown >= interval || (self.members > 1 && self.turns(interval, at) > self.turns(interval, last))
    }

    /// How many of its own indexes come up to `index`.
    fn turns(self, interval: u64, index: u64) -> u64 {
        let before = u128::from(interval) * u128::from(self.position) / u128::from(self.members.max(1));
        let before = u64::try_from(before).unwrap_or(u64::MAX);
        index.saturating_add(before).checked_div(interval).unwrap_or(0)
    }
}

/// Its place among the others where bytes decide.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// If it was never late it would take its snapshots together with the member at this position.
    with: u64,
    /// Bytes that it has been late in all.
    late: u64,
    /// One is due: the bytes at which it is taken, and how much later that is.
    next: Option<(u64, u64)>,
}

impl Place {
    /// After a start, when all may take their first one together.
    pub fn started() -> Self {
        Place::default()
    }

    /// One was received that the member at the position `with` took.
    pub fn received(with: u64) -> Self {
        Place { with, ..Place::default() }
    }

    /// One is due, with so many bytes since the last: whether it is time.
    pub fn is_time(&mut self, phase: Phase, bytes: u64) -> bool {
        let (until, _) = *self.next.get_or_insert_with(|| {
            let members = phase.members.max(1);
            let behind = phase.position.saturating_add(members).saturating_sub(self.with % members) % members;
            let place = u128::from(bytes) * u128::from(behind) / u128::from(members);
            let later = u64::try_from(place).unwrap_or(u64::MAX).saturating_sub(self.late);
            (bytes.saturating_add(later), later)
        });
        bytes >= until
    }

    /// It is taken, because it was time or `out_of_turn`: then that was no step to its place.
    pub fn taken(&mut self, out_of_turn: bool) {
        if let Some((_, later)) = self.next.take().filter(|_| !out_of_turn) {
            self.late = self.late.saturating_add(later);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Phase, Place};

    /// The indexes at which snapshots are taken while the log grows by `step` entries at a time.
    fn taken(phase: Phase, interval: u64, from: u64, to: u64, step: usize) -> Vec<u64> {
        let mut last = from;
        let mut taken = Vec::new();
        for at in (from..=to).step_by(step) {
            if phase.is_due(interval, last, at) {
                taken.push(at);
                last = at;
            }
        }
        taken
    }

    const fn of(position: u64, members: u64) -> Phase {
        Phase { position, members }
    }

    #[test]
    fn each_member_has_indexes_of_its_own() {
        for (phase, expected) in [
            (of(0, 1), vec![100, 200, 300, 400]),
            (of(0, 3), vec![100, 200, 300, 400]),
            (of(1, 3), vec![67, 167, 267, 367]),
            // 34 would be less than half an interval: once later, in its place from then on.
            (of(2, 3), vec![50, 134, 234, 334]),
            (of(4, 5), vec![50, 120, 220, 320]),
        ] {
            assert_eq!(taken(phase, 100, 0, 400, 1), expected, "{phase:?}");
        }
    }

    #[test]
    fn large_batches_do_not_bring_them_together() {
        let together: Vec<_> = (0..3).map(|i| taken(of(i, 3), 100_000, 0, 3_000_000, 777)).collect();
        for (i, mine) in together.iter().enumerate() {
            assert!(mine.windows(2).all(|pair| pair[1] - pair[0] <= 100_000 + 777), "{mine:?}");
            for other in together.iter().skip(i + 1) {
                let nearest = mine.iter().flat_map(|a| other.iter().map(move |b| a.abs_diff(*b))).min().unwrap();
                assert!(nearest >= 16_000, "{nearest} between {mine:?} and {other:?}");
            }
        }
    }

    #[test]
    fn one_taken_out_of_turn_is_not_followed_at_once_by_the_next() {
        assert_eq!(taken(of(0, 3), 100, 95, 400, 1), [145, 200, 300, 400]);
        assert_eq!(taken(of(0, 3), 100, 40, 400, 1), [100, 200, 300, 400]);
        assert_eq!(taken(of(0, 1), 100, 40, 400, 1), [140, 240, 340], "nobody to keep apart from");
    }

    /// The bytes at which snapshots are taken by a member that has one when as many have come as `interval` says of those in all.
    fn taken_by_bytes(phase: Phase, mut place: Place, interval: fn(u64) -> u64, upto: u64) -> Vec<u64> {
        let mut last = 0;
        let mut taken = Vec::new();
        for at in 0..=upto {
            let bytes = at - last;
            if bytes >= interval(last) && place.is_time(phase, bytes) {
                place.taken(false);
                taken.push(at);
                last = at;
            }
        }
        taken
    }

    #[test]
    fn who_is_late_once_by_bytes_is_not_together_with_the_others_again() {
        for (phase, place, expected) in [
            (of(0, 3), Place::started(), [100, 200, 300]),
            (of(1, 3), Place::started(), [133, 233, 333]),
            (of(2, 3), Place::started(), [166, 266, 366]),
            (of(0, 1), Place::started(), [100, 200, 300]),
            // The leader is where the second is; each goes from there to where it would be.
            (of(0, 3), Place::received(1), [166, 266, 366]),
            (of(1, 3), Place::received(1), [100, 200, 300]),
            (of(2, 3), Place::received(1), [133, 233, 333]),
            // It has left since, and its position with it.
            (of(1, 3), Place::received(4), [100, 200, 300]),
        ] {
            let case = format!("{phase:?} {place:?}");
            assert_eq!(taken_by_bytes(phase, place, |_| 100, 399), expected, "{case}");
        }
    }

    #[test]
    fn whose_interval_grows_with_the_state_is_late_by_as_much_more() {
        let all: Vec<Vec<u64>> =
            (0..3).map(|i| taken_by_bytes(of(i, 3), Place::started(), |state| 100 + state / 4, 20_000)).collect();
        for mine in &all {
            let &[.., before, at, _] = mine.as_slice() else { panic!("{all:?}") };
            for theirs in all.iter().filter(|theirs| *theirs != mine) {
                let nearest = theirs.iter().map(|theirs| theirs.abs_diff(at)).min().unwrap();
                assert!(nearest * 8 > at - before, "{nearest}: {all:?}");
            }
        }
    }

    #[test]
    fn one_that_was_asked_for_is_no_step_to_its_place() {
        let mut place = Place::started();
        assert!(!place.is_time(of(1, 2), 100));
        place.taken(true);
        assert!(!place.is_time(of(1, 2), 100));
        assert!(place.is_time(of(1, 2), 150));
        place.taken(false);
        assert!(place.is_time(of(1, 2), 100));
    }

    #[test]
    fn numbers_at_their_limits_are_taken_as_they_are() {
        assert!(!of(1, 3).is_due(0, 0, u64::MAX), "0 is never");
        assert!(of(1, 3).is_due(u64::MAX, 0, u64::MAX));
        assert!(of(0, 0).is_due(1, 4, 5));
        assert!(!of(0, 3).is_due(1, 5, 5));
        assert!(!of(2, 3).is_due(10, 9, 5), "a machine behind the snapshot");
        assert!(Place::received(u64::MAX).is_time(of(0, 0), u64::MAX));
        assert!(Place::started().is_time(of(2, 3), u64::MAX));
    }
}
