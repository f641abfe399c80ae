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
//! It only ever makes a snapshot earlier than its interval says, so no log grows further than it was told to.

/// Where a member stands among all, in the order of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Phase {
    pub position: u64,
    pub members: u64,
}

impl Phase {
    /// Whether a snapshot is due by the number of entries: the last one is at `last`, and the machine has got to `at`. It is at the
    /// member's own index within each `interval`, but not sooner than half an interval after one that was asked for or received.
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

#[cfg(test)]
mod tests {
    use super::Phase;

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

    #[test]
    fn numbers_at_their_limits_are_taken_as_they_are() {
        assert!(!of(1, 3).is_due(0, 0, u64::MAX), "0 is never");
        assert!(of(1, 3).is_due(u64::MAX, 0, u64::MAX));
        assert!(of(0, 0).is_due(1, 4, 5));
        assert!(!of(0, 3).is_due(1, 5, 5));
        assert!(!of(2, 3).is_due(10, 9, 5), "a machine behind the snapshot");
    }
}
