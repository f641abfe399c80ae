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

use raft::eraftpb::Entry;

use super::entry::is_conf_change;

/// Bodies of entries that raft was given since its last Ready.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    /// Each with its first index; the others follow on it.
    runs: Vec<(u64, Vec<Entry>)>,
}

/// Raft reads what a change of members says when it is proposed; of all others it needs the place alone.
fn skeleton(entry: &Entry) -> Entry {
    Entry {
        entry_type: entry.entry_type,
        term: entry.term,
        index: entry.index,
        data: if is_conf_change(entry) { entry.data.clone() } else { Vec::new() },
        context: Vec::new(),
        // Nothing else uses this field: raft-rs has given it up.
        sync_log: true,
    }
}

/// In place of these entries, for raft.
pub(super) fn strip(entries: &[Entry]) -> Vec<Entry> {
    entries.iter().map(skeleton).collect()
}

/// Its body stands elsewhere.
pub(super) fn is_skeleton(entry: &Entry) -> bool {
    entry.sync_log
}

impl Bodies {
    /// Raft has taken the skeletons of these, whose indexes and terms are set.
    pub fn wait(&mut self, mut entries: Vec<Entry>) {
        // Of an entry that came over the wire or from a disk, whatever it says.
        entries.iter_mut().for_each(|entry| entry.sync_log = false);
        if let Some(first) = entries.first().map(|e| e.index) {
            self.runs.push((first, entries));
        }
    }

    /// Makes the entries of a Ready whole; `Err` is the index of one whose body is not here.
    pub fn restore(&mut self, entries: &mut [Entry]) -> Result<(), u64> {
        let mut near = 0usize;
        for entry in entries.iter_mut().filter(|entry| is_skeleton(entry)) {
            let body = self.take(entry, &mut near).ok_or(entry.index)?;
            *entry = body;
        }
        self.runs.clear();
        Ok(())
    }

    /// Entries come in order, and nearly always from the run that the last one came from, or the next.
    fn take(&mut self, wanted: &Entry, near: &mut usize) -> Option<Entry> {
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
        range.map(|index| Entry { index, term, data: vec![says], context: vec![says; 2], ..Entry::default() }).collect()
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
        ready.push(Entry { index: 8, term: 2, ..Entry::default() });
        bodies.restore(&mut ready).unwrap();
        assert_eq!(said(&ready[..5]), [(3, 1, 1), (4, 1, 1), (5, 2, 3), (6, 2, 3), (7, 2, 3)]);
        assert!(ready[5].data.is_empty() && ready.iter().all(|e| !is_skeleton(e)));
        assert_eq!(bodies.restore(&mut strip(&run(3..4, 1, 0))), Err(3));
    }

    #[test]
    fn a_body_is_missing_for_another_term_and_after_it_was_forgotten() {
        let mut bodies = Bodies::default();
        bodies.wait(run(3..6, 1, 1));
        assert_eq!(bodies.restore(&mut strip(&run(4..5, 2, 0))), Err(4));
        bodies.wait(run(3..6, 1, 1));
        bodies.forget();
        assert_eq!(bodies.restore(&mut strip(&run(3..4, 1, 0))), Err(3));
    }

    #[test]
    fn of_two_that_claim_the_same_the_first_counts_and_a_peers_marks_do_not() {
        let mut bodies = Bodies::default();
        let mut first = run(3..5, 1, 1);
        first[0].sync_log = true;
        bodies.wait(first);
        bodies.wait(run(3..6, 1, 9));
        let mut ready = strip(&run(3..6, 1, 0));
        bodies.restore(&mut ready).unwrap();
        assert_eq!(said(&ready), [(3, 1, 1), (4, 1, 1), (5, 1, 9)]);
        assert!(ready.iter().all(|e| !is_skeleton(e)));
    }
}
