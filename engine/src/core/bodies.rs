//! What entries say, kept beside raft: it orders skeletons (kind, term and index), and never copies a command.
//!
//! ```text
//!  proposed, or received ──► stripped ──► raft.step ──► Ready ──► whole again ──► tail and log writer ──► apply, peers (one copy of it)
//!                               └─ bodies wait here ───────────────┘
//! ```
//!
//! Invariants: a skeleton is marked, so that one whose body is missing is found and never written; bodies wait only from a step
//! to the Ready after it, which takes all entries that raft has taken; index and term together name one entry (Log Matching, Raft
//! §5.3), and where two bodies claim the same, the one that raft took first counts.

use raft::eraftpb;

use super::entry::is_conf_change;
use crate::entry::Entry;

/// Bodies of entries that raft was given since its last Ready.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    /// Each with its first index; the others follow on it.
    runs: Vec<(u64, Vec<Entry>)>,
}

/// Raft reads what a change of members says when it is proposed; of all others it needs the place alone.
fn skeleton(entry: &Entry) -> eraftpb::Entry {
    eraftpb::Entry {
        entry_type: entry.entry_type,
        term: entry.term,
        index: entry.index,
        data: if is_conf_change(entry) { entry.data.to_vec() } else { Vec::new() },
        context: Vec::new(),
        // Nothing else uses this field: raft-rs has given it up.
        sync_log: true,
    }
}

/// In place of these entries, for raft.
pub(super) fn strip(entries: &[Entry]) -> Vec<eraftpb::Entry> {
    entries.iter().map(skeleton).collect()
}

/// Its body stands elsewhere.
pub(super) fn is_skeleton(entry: &eraftpb::Entry) -> bool {
    entry.sync_log
}

fn joined(mut first: Vec<Entry>, mut second: Vec<Entry>) -> Vec<Entry> {
    first.append(&mut second);
    first
}

impl Bodies {
    /// Raft has taken the skeletons of these, whose indexes and terms are set.
    pub fn wait(&mut self, entries: Vec<Entry>) {
        if let Some(first) = entries.first().map(|e| e.index) {
            self.runs.push((first, entries));
        }
    }

    /// The entries of a Ready as they are; `Err` is the index of one whose body is not here.
    pub fn restore(&mut self, ready: Vec<eraftpb::Entry>) -> Result<Vec<Entry>, u64> {
        if self.are_exactly(&ready) {
            return Ok(self.runs.drain(..).map(|(_, entries)| entries).reduce(joined).unwrap_or_default());
        }
        let mut near = 0usize;
        let mut whole = |entry: eraftpb::Entry| {
            if !is_skeleton(&entry) {
                // Of raft's own.
                return Ok(entry.into());
            }
            self.take(&entry, &mut near).ok_or(entry.index)
        };
        let entries = ready.into_iter().map(&mut whole).collect();
        self.runs.clear();
        entries
    }

    /// Raft has taken all that waits, and nothing else: the usual case, in which no entry need be touched.
    fn are_exactly(&self, ready: &[eraftpb::Entry]) -> bool {
        let bodies = self.runs.iter().flat_map(|(_, entries)| entries);
        let same = |(a, b): (&eraftpb::Entry, &Entry)| is_skeleton(a) && (a.index, a.term) == (b.index, b.term);
        let count: usize = self.runs.iter().map(|(_, entries)| entries.len()).sum();
        count == ready.len() && ready.iter().zip(bodies).all(same)
    }

    /// Entries come in order, and nearly always from the run that the last one came from, or the next.
    fn take(&mut self, wanted: &eraftpb::Entry, near: &mut usize) -> Option<Entry> {
        let count = self.runs.len();
        let order = (*near..count).chain(0..(*near).min(count));
        for run in order {
            let found = self.runs.get_mut(run).and_then(|(first, entries)| {
                let at = wanted.index.checked_sub(*first)?;
                entries.get_mut(usize::try_from(at).ok()?)
            });
            if let Some(body) = found.filter(|b| b.index == wanted.index && b.term == wanted.term) {
                *near = run;
                return Some(std::mem::take(body));
            }
        }
        None
    }

    /// Raft holds no entry that it has not handed over: what waits was not taken.
    pub fn forget(&mut self) {
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::EntryType;

    fn run(range: std::ops::Range<u64>, term: u64, says: u8) -> Vec<Entry> {
        range
            .map(|index| Entry {
                index,
                term,
                data: vec![says].into(),
                context: vec![says; 2].into(),
                ..Entry::default()
            })
            .collect()
    }

    fn said(entries: &[Entry]) -> Vec<(u64, u64, u8)> {
        entries.iter().map(|e| (e.index, e.term, e.data[0])).collect()
    }

    #[test]
    fn raft_is_given_no_bytes_but_those_of_changes_of_members() {
        let mut change = run(5..6, 1, 7);
        change[0].entry_type = EntryType::EntryConfChangeV2 as i32;
        let entries = [run(3..5, 1, 7), change].concat();
        let skeletons = strip(&entries);
        assert!(skeletons.iter().all(|e| is_skeleton(e) && e.context.is_empty()));
        assert_eq!(skeletons.iter().map(|e| e.data.len()).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(skeletons.iter().map(|e| (e.index, e.term)).collect::<Vec<_>>(), [(3, 1), (4, 1), (5, 1)]);
    }

    #[test]
    fn what_raft_hands_over_is_whole_again_and_nothing_stays() {
        let mut bodies = Bodies::default();
        bodies.wait(run(3..6, 1, 1));
        bodies.wait(run(6..7, 1, 2));
        // A new leader overwrites from 5 on.
        bodies.wait(run(5..8, 2, 3));
        let kept = [run(3..5, 1, 0), run(5..8, 2, 0)].concat();
        let mut ready = strip(&kept);
        // An entry of raft's own has no body.
        ready.push(eraftpb::Entry { index: 8, term: 2, ..Default::default() });
        let whole = bodies.restore(ready).unwrap();
        assert_eq!(said(&whole[..5]), [(3, 1, 1), (4, 1, 1), (5, 2, 3), (6, 2, 3), (7, 2, 3)]);
        assert_eq!(whole[5], Entry { index: 8, term: 2, ..Entry::default() });
        assert_eq!(bodies.restore(strip(&run(3..4, 1, 0))), Err(3));
    }

    #[test]
    fn what_raft_takes_as_it_came_is_not_touched() {
        let mut bodies = Bodies::default();
        for (story, came) in [
            ("nothing", vec![]),
            ("one run", vec![run(3..6, 1, 1)]),
            ("several", vec![run(3..6, 1, 1), run(6..7, 1, 2), run(7..9, 2, 3)]),
        ] {
            let all = came.concat();
            let at = came.first().map(|entries| entries[0].data.as_ptr());
            came.into_iter().for_each(|entries| bodies.wait(entries));
            let whole = bodies.restore(strip(&all)).unwrap();
            assert_eq!(whole, all, "{story}");
            assert_eq!(whole.first().map(|entry| entry.data.as_ptr()), at, "{story}");
            assert!(bodies.runs.is_empty(), "{story}");
        }
    }

    #[test]
    fn a_body_is_missing_for_another_term_and_after_it_was_forgotten() {
        let mut bodies = Bodies::default();
        bodies.wait(run(3..6, 1, 1));
        assert_eq!(bodies.restore(strip(&run(4..5, 2, 0))), Err(4));
        bodies.wait(run(3..6, 1, 1));
        bodies.forget();
        assert_eq!(bodies.restore(strip(&run(3..4, 1, 0))), Err(3));
    }

    #[test]
    fn of_two_that_claim_the_same_the_first_counts() {
        let mut bodies = Bodies::default();
        bodies.wait(run(3..5, 1, 1));
        bodies.wait(run(3..6, 1, 9));
        let whole = bodies.restore(strip(&run(3..6, 1, 0))).unwrap();
        assert_eq!(said(&whole), [(3, 1, 1), (4, 1, 1), (5, 1, 9)]);
    }
}
