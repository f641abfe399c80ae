//! Committed entries that nobody on a follower waits for: they come to its state machine together with those that follow.
//!
//! A follower hears of commits in every round. Handed on one by one they wake the state machine's thread, and with its answer the driver again,
//! just when the node should write the next entries, for which the leader waits.
//!
//! ```text
//!  committed, not with the machine ──► waits ──► handed on   a request is pending here: a read, a proposal, a snapshot
//!                                        ├─────► handed on   so many have come together, or no leader sends any more
//!                                        └─────► handed on   PATIENCE is over
//! ```
//!
//! Nothing of safety rests on it: a machine that is slow to take a batch looks the same.

use super::deadlines::Micros;
use super::Core;

/// Microseconds from the first of them on: two rounds of a busy Python program. A replica that is looked at without asking is older by so
/// much; it would be by the way of a message in any case.
const PATIENCE: Micros = 5000;
/// Entries next to which waking a thread is little, also one that runs Python.
const ENTRIES: u64 = 512;
/// Bytes of log behind the first of them, coarsely: they stay in memory meanwhile.
const BYTES: u64 = 256 << 10;

#[derive(Default)]
pub(super) struct Unawaited {
    due: Option<Micros>,
}

impl Unawaited {
    pub fn next_due(&self) -> Option<Micros> {
        self.due
    }

    /// Nothing waits.
    pub fn none(&mut self) {
        self.due = None;
    }
}

impl Core {
    /// Whether the committed entries from this one on wait for more.
    pub(super) fn may_gather(&mut self, low: u64) -> bool {
        let leader = self.leader_id();
        leader != raft::INVALID_ID
            && leader != self.id
            && self.requests.pending.is_empty()
            && self.handed.saturating_sub(low) < ENTRIES
            && self.raw.store().index_before_bytes(BYTES) < low
            && self.now < *self.unawaited.due.get_or_insert(self.now.saturating_add(PATIENCE))
    }
}

#[cfg(test)]
mod tests {
    use crate::core::Received;
    use crate::entry::Entry;
    use raft::eraftpb::{Message, MessageType};

    use super::super::test_cores::{chosen, command, follow, message};
    use super::super::Fetch;
    use super::*;
    use crate::machine::{MachineAnswer, MachineRequest};
    use crate::request::Request;

    const NONE: [Vec<u64>; 0] = [];

    /// Node 1, which follows node 2 in term 3 and has applied 9; node 2 has sent commands of so many bytes, up to `last`.
    fn follower(last: u64, bytes: usize) -> Core {
        let mut core = chosen();
        heard(&mut core);
        follow(&mut core, 9);
        let entries =
            (10..=last).map(|index| Entry { term: 3, data: vec![0; bytes].into(), ..command(index) }).collect();
        let head = Message { index: 9, log_term: 2, ..message(MessageType::MsgAppend, 2, 3) };
        core.receive(2, Received { head, entries });
        heard(&mut core);
        core.begin_turn(10_000, 1);
        assert_eq!((core.applied(), heard(&mut core)), (9, vec![]));
        core
    }

    fn commits(core: &mut Core, commit: u64) {
        core.receive(2, Message { commit, ..message(MessageType::MsgHeartbeat, 2, 3) });
    }

    /// Indexes that the machine is told, a list for each batch. What is written is synced at once.
    fn heard(core: &mut Core) -> Vec<Vec<u64>> {
        let mut heard = Vec::new();
        loop {
            let actions = core.poll();
            let before = heard.len();
            for request in actions.machine {
                if let MachineRequest::Apply(batch) = request {
                    heard.push(batch.entries.iter().map(|e| e.index).collect());
                    core.machine_answer(MachineAnswer::Applied { id: batch.id, outcomes: Vec::new() });
                }
            }
            let fetched = !actions.fetches.is_empty();
            for Fetch { id, low, high, .. } in actions.fetches {
                core.fetched(id, (low..high).map(command).collect());
            }
            match actions.writes.last() {
                Some(write) => core.written(write.number),
                None if !fetched && heard.len() == before => return heard,
                None => {}
            }
        }
    }

    #[test]
    fn what_nobody_waits_for_comes_together() {
        let mut core = follower(20, 1);
        commits(&mut core, 10);
        assert_eq!(heard(&mut core), NONE);
        assert_eq!(core.next_deadline(), Some(10_000 + PATIENCE));
        core.begin_turn(10_000 + PATIENCE - 1, 1);
        commits(&mut core, 12);
        assert_eq!(heard(&mut core), NONE, "the first one's time is not over");
        core.begin_turn(10_000 + PATIENCE, 1);
        assert_eq!(heard(&mut core), [[10, 11, 12]]);
        assert_eq!(core.next_deadline(), None, "and nobody is woken for nothing");
        // The next one waits anew.
        commits(&mut core, 13);
        assert_eq!(heard(&mut core), NONE);
        assert_eq!(core.next_deadline(), Some(10_000 + 2 * PATIENCE));
    }

    #[test]
    fn many_or_large_ones_do_not_wait() {
        for (last, bytes) in [(10 + ENTRIES, 1), (13, BYTES as usize)] {
            let mut core = follower(last, bytes);
            commits(&mut core, last);
            assert_eq!(heard(&mut core).concat(), (10..=last).collect::<Vec<_>>(), "{bytes} bytes");
        }
    }

    #[test]
    fn whoever_waits_here_hears_of_them_at_once() {
        let mut core = follower(20, 1);
        commits(&mut core, 10);
        assert_eq!(heard(&mut core), NONE);
        core.submit(1, Request::Read, None);
        assert_eq!(heard(&mut core), [[10]]);
        commits(&mut core, 11);
        assert_eq!(heard(&mut core), [[11]], "as long as it waits");
    }

    #[test]
    fn without_a_leader_nothing_more_comes() {
        let mut core = follower(20, 1);
        commits(&mut core, 10);
        assert_eq!(heard(&mut core), NONE);
        let term = core.term();
        core.raw.raft.become_follower(term, raft::INVALID_ID);
        assert_eq!(heard(&mut core), [[10]]);
    }
}
