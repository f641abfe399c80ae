//! Entries for followers that lag, on their way from the disk to raft (S14).
//!
//! Raft asks with every answer and every heartbeat of a peer, and again when it was given some: what is being read already is not read a
//! second time, whoever asks, and all who asked go on once it is there. And it asks for all that a peer may have under way at once: what is
//! more than a turn's measure ([`Turn`](super::turn::Turn)) is given in the turns that follow.

use raft::GetEntriesContext;

use super::actions::Fetch;
use super::tail::WantedEntries;
use super::Core;
use crate::entry::Entry;

/// Reads at a time.
const MOST: usize = 64;
/// Who goes on after one read. Raft asks for the others again with their next answer.
const WAITING: usize = 8;

struct Fetching {
    id: u64,
    low: u64,
    /// Whom they are for, which raft alone can tell; the same one may be there more than once.
    waiting: Vec<GetEntriesContext>,
}

#[derive(Default)]
pub(super) struct Fetches {
    under_way: Vec<Fetching>,
}

impl Core {
    pub(super) fn fetch_wanted(&mut self) {
        for WantedEntries { low, high, max_bytes, context } in self.raw.mut_store().take_wanted() {
            if let Some(fetching) = self.fetches.under_way.iter_mut().find(|f| f.low == low) {
                if fetching.waiting.len() < WAITING {
                    fetching.waiting.push(context);
                }
                continue;
            }
            if self.fetches.under_way.len() >= MOST {
                // Raft asks again with the peer's next answer.
                continue;
            }
            let id = self.machine.next_id();
            self.out.fetches.push(Fetch { id, low, high, max_bytes });
            self.fetches.under_way.push(Fetching { id, low, waiting: vec![context] });
        }
    }

    /// Peers are owed entries that the turn before had no room for. What it gave them should leave first.
    pub fn owes_entries(&self) -> bool {
        self.failed.is_none() && self.raw.store().turn().has_later()
    }

    /// A new turn: those who were told to come again, the longest waiting first.
    pub(super) fn go_on_sending(&mut self) {
        let (now, committed) = (self.now, self.raw.raft.raft_log.committed);
        self.raw.mut_store().begin_turn(now, committed);
        if self.failed.is_some() {
            return;
        }
        while let Some(context) = self.raw.mut_store().turn_mut().next() {
            self.raw.on_entries_fetched(context);
        }
    }

    /// Entries from the disk; none of them when the log does not hold them any more.
    pub fn fetched(&mut self, id: u64, entries: Vec<Entry>) {
        if self.failed.is_some() {
            return;
        }
        if let Some(at) = self.fetches.under_way.iter().position(|f| f.id == id) {
            let fetching = self.fetches.under_way.swap_remove(at);
            let fits = entries.iter().all(|e| self.raw.store().known_term(e.index) == Some(e.term));
            if fits {
                self.raw.mut_store().put_fetched(entries);
            }
            for context in fetching.waiting {
                self.raw.on_entries_fetched(context);
            }
        } else {
            self.machine_fetched(id, entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::NodeId;
    use crate::core::test_cores::{chosen, command, message};
    use crate::core::{Actions, Body};
    use raft::eraftpb::{Message, MessageType};

    /// What it asks for once all its writes are durable.
    fn settle(core: &mut Core) -> (Vec<Fetch>, Vec<(NodeId, u64, usize)>) {
        let (mut fetches, mut appends) = (Vec::new(), Vec::new());
        loop {
            let Actions { messages, fetches: more, writes, .. } = core.poll();
            fetches.extend(more);
            appends.extend(messages.into_iter().filter_map(|m| match m.body {
                Body::Append(append) => Some((m.to, append.head.index, append.run.len())),
                _ => None,
            }));
            match writes.last() {
                Some(write) => core.written(write.number),
                None => return (fetches, appends),
            }
        }
    }

    /// Node 1 leads term 3; its entries up to 9 are on the disk alone, 10 is in memory.
    fn leader() -> Core {
        let mut core = chosen();
        settle(&mut core);
        core.receive(2, message(MessageType::MsgRequestVoteResponse, 2, 3));
        settle(&mut core);
        assert!(core.is_leader());
        core
    }

    /// This peer has entries up to `last` alone.
    fn lags(core: &mut Core, peer: NodeId, last: u64) {
        let answer = message(MessageType::MsgAppendResponse, peer, 3);
        core.receive(peer, Message { reject: true, index: 9, reject_hint: last, log_term: 2, ..answer });
    }

    #[test]
    fn what_is_being_read_is_not_read_again_and_all_who_wait_for_it_go_on() {
        let mut core = leader();
        for peer in [2, 3] {
            lags(&mut core, peer, 4);
        }
        let (fetches, appends) = settle(&mut core);
        assert_eq!(fetches.iter().map(|f| (f.low, f.high)).collect::<Vec<_>>(), [(5, 10)], "one read for both");
        assert_eq!(appends, []);
        // Raft asks again with each answer.
        for peer in [2, 3, 2, 3] {
            core.receive(peer, message(MessageType::MsgHeartbeatResponse, peer, 3));
        }
        assert_eq!(settle(&mut core), (vec![], vec![]));
        core.fetched(fetches[0].id, (5..=9).map(command).collect());
        let (fetches, mut appends) = settle(&mut core);
        appends.sort_unstable();
        appends.dedup();
        assert_eq!((fetches, appends), (vec![], vec![(2, 4, 5), (3, 4, 5)]));
    }

    #[test]
    fn a_read_that_finds_nothing_is_asked_for_again() {
        let mut core = leader();
        lags(&mut core, 3, 4);
        let (fetches, _) = settle(&mut core);
        core.fetched(fetches[0].id, vec![]);
        let (again, appends) = settle(&mut core);
        assert_eq!((again.len(), appends), (1, vec![]));
        assert!(again[0].id != fetches[0].id && again[0].low == 5);
    }

    /// Turns after which nothing is owed, and what went to whom in each: from, entries.
    fn turns(core: &mut Core) -> Vec<Vec<(NodeId, u64, usize)>> {
        let mut turns = Vec::new();
        while turns.is_empty() || core.owes_entries() {
            assert!(turns.len() < 100);
            core.begin_turn(1, 1);
            turns.push(settle(core).1);
        }
        turns
    }

    #[test]
    fn what_a_peer_lacks_is_given_turn_by_turn_and_peers_take_turns() {
        let mut core = leader();
        for peer in [2, 3] {
            // In memory, and nobody else has them yet.
            lags(&mut core, peer, 9);
        }
        settle(&mut core);
        // 100 KiB each: a turn gives two of them and says "later" to the rest.
        let proposals = (1..=8).map(|token| (token, vec![0; 100 << 10].into())).collect();
        core.propose(proposals, None);
        let _lost = settle(&mut core);
        for peer in [2, 3] {
            core.unreachable(peer);
            core.receive(peer, Message { index: 10, ..message(MessageType::MsgAppendResponse, peer, 3) });
        }
        let turns = turns(&mut core);
        let sent = |peer| turns.iter().flatten().filter(move |(to, ..)| *to == peer);
        for peer in [2, 3] {
            assert_eq!(sent(peer).map(|(_, _, entries)| entries).sum::<usize>(), 8, "{turns:?}");
            // Each goes on where the one before ended.
            let mut next = 10;
            for (_, from, entries) in sent(peer) {
                assert_eq!(*from, next, "{turns:?}");
                next += *entries as u64;
            }
        }
        // Begun with less than its measure, a turn gives one message more.
        assert!(turns.iter().all(|turn| turn.iter().map(|(_, _, entries)| entries).sum::<usize>() <= 4), "{turns:?}");
        assert!(turns.len() >= 4, "{turns:?}");
        // The one that has waited longest goes first: neither waits until the other has everything.
        let first = turns.iter().flatten().take(3).map(|(to, ..)| *to).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(first.len(), 2, "{turns:?}");
    }

    /// A leader whose peer 3 lacks ten commands of 256 KiB that peer 2 has, and the entries that peer 3 was sent since it is back.
    fn leads_while_one_is_far_behind() -> (Core, usize) {
        let mut core = leader();
        lags(&mut core, 2, 9);
        settle(&mut core);
        core.begin_turn(1000, 1);
        let proposals = (1..=10).map(|token| (token, vec![0; 256 << 10].into())).collect();
        core.propose(proposals, None);
        turns_until_quiet(&mut core, 1000);
        // Committed now, and the next turn hears of it.
        core.receive(2, Message { index: 20, ..message(MessageType::MsgAppendResponse, 2, 3) });
        settle(&mut core);
        core.unreachable(3);
        core.begin_turn(2000, 1);
        core.receive(3, Message { index: 10, ..message(MessageType::MsgAppendResponse, 3, 3) });
        let sent = turns_until_quiet(&mut core, 2000);
        (core, sent)
    }

    /// Entries that peer 3 was sent in turns that all begin at this moment, until nothing is owed.
    fn turns_until_quiet(core: &mut Core, now: u64) -> usize {
        let mut sent = 0;
        for _ in 0..100 {
            core.begin_turn(now, 1);
            sent += settle(core).1.iter().filter(|(to, ..)| *to == 3).map(|(_, _, entries)| entries).sum::<usize>();
            if !core.owes_entries() {
                return sent;
            }
        }
        panic!("it never rests");
    }

    #[test]
    fn one_far_behind_is_given_a_measure_and_a_rest_as_long_as_others_get_on() {
        let (mut core, first) = leads_while_one_is_far_behind();
        assert!((1..=2).contains(&first), "{first}");
        // Nothing more at this moment; and nobody forgets that it waits.
        assert_eq!(turns_until_quiet(&mut core, 2001), 0);
        core.tell_lone_commits();
        turns_until_quiet(&mut core, 5999);
        core.tell_lone_commits();
        assert_eq!(core.next_deadline(), Some(6000));
        assert!((1..=2).contains(&turns_until_quiet(&mut core, 6000)), "the rest is over");
        // Ten milliseconds without a commit: it gets everything at once.
        assert!(turns_until_quiet(&mut core, 20_000) >= 4);
        core.tell_lone_commits();
        assert_eq!(core.next_deadline(), None);
    }

    #[test]
    fn one_far_behind_gets_twice_what_others_propose() {
        let (mut core, _) = leads_while_one_is_far_behind();
        core.propose(vec![(11, vec![0; 100 << 10].into())], None);
        assert_eq!(turns_until_quiet(&mut core, 2001), 0, "not half of a measure");
        core.propose(vec![(12, vec![0; 200 << 10].into())], None);
        settle(&mut core);
        assert!(turns_until_quiet(&mut core, 2002) > 0, "half of a measure came");
    }
}
