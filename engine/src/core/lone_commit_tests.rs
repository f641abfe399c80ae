//! Which commit indexes are told at once, which wait, and which are never told alone.

use raft::eraftpb::{Message, MessageType};

use super::test_cores::{chosen, message};
use super::{Body, Core};
use crate::cluster::NodeId;
use crate::request::Request;
use crate::wire::{Forward, ForwardedProposal};

/// Node 1, which leads term 3, and to which nodes 2 and 3 answer.
struct Leader {
    core: Core,
    now: u64,
}

impl Leader {
    fn elected() -> Self {
        let core = chosen();
        let mut leader = Leader { core, now: 1 };
        leader.sent();
        leader.core.receive(2, message(MessageType::MsgRequestVoteResponse, 2, 3));
        leader.sent();
        assert!(leader.core.is_leader());
        for peer in [2, 3] {
            leader.acknowledge(peer, 10);
        }
        leader.later(10_000);
        leader.sent();
        leader
    }

    /// Appends that went to peers: to whom, how many entries, commit index. What is written is synced at once.
    fn sent(&mut self) -> Vec<(NodeId, usize, u64)> {
        let mut appends = Vec::new();
        loop {
            let actions = self.core.poll();
            for message in actions.messages {
                if let Body::Append(append) = message.body {
                    appends.push((message.to, append.run.len(), append.head.commit));
                }
            }
            match actions.writes.last() {
                Some(write) => self.core.written(write.number),
                None => return appends,
            }
        }
    }

    fn acknowledge(&mut self, peer: NodeId, index: u64) {
        let answer = Message { index, ..message(MessageType::MsgAppendResponse, peer, 3) };
        self.core.receive(peer, answer);
    }

    fn propose(&mut self) {
        self.core.submit(1, Request::Propose("x".into()), None);
    }

    fn later(&mut self, microseconds: u64) {
        self.now += microseconds;
        self.core.begin_turn(self.now, 1);
    }
}

#[test]
fn a_commit_waits_for_the_next_entries_and_goes_with_them() {
    let mut leader = Leader::elected();
    leader.propose();
    assert_eq!(leader.sent(), [(2, 1, 10), (3, 1, 10)]);
    leader.acknowledge(2, 11);
    assert_eq!(leader.sent(), [], "11 is committed: told with what comes next");
    leader.propose();
    assert_eq!(leader.sent(), [(2, 1, 11), (3, 1, 11)]);
    assert_eq!(leader.core.next_deadline(), None);
}

#[test]
fn a_commit_that_nothing_follows_is_told_when_its_time_is_over() {
    let mut leader = Leader::elected();
    leader.propose();
    leader.sent();
    leader.acknowledge(2, 11);
    leader.sent();
    let due = leader.core.next_deadline().unwrap();
    leader.acknowledge(3, 11);
    leader.later(due - leader.now - 1);
    assert_eq!(leader.sent(), []);
    leader.later(1);
    assert_eq!(leader.sent(), [(2, 0, 11), (3, 0, 11)]);
    assert_eq!((leader.core.next_deadline(), leader.sent()), (None, vec![]));
}

#[test]
fn whoever_proposed_it_hears_of_its_commit_at_once() {
    let mut leader = Leader::elected();
    let proposals = vec![ForwardedProposal { sequence: 1, data: "x".into(), kind: 0, place: None }];
    leader.core.receive_forward(3, Forward { term: 3, start: 5, number: 1, proposals, to_start: 7 });
    assert_eq!(leader.sent(), [(2, 1, 10), (3, 1, 10)]);
    leader.acknowledge(2, 11);
    assert_eq!(leader.sent(), [(3, 0, 11)], "its caller waits there; nobody waits on node 2");
    // What came before does not make the next one urgent.
    leader.propose();
    leader.sent();
    leader.acknowledge(2, 12);
    assert_eq!(leader.sent(), []);
}

#[test]
fn a_deposed_leader_tells_nothing_any_more() {
    let mut leader = Leader::elected();
    leader.propose();
    leader.sent();
    leader.acknowledge(2, 11);
    leader.sent();
    leader.core.receive(3, message(MessageType::MsgHeartbeat, 3, 4));
    leader.later(10_000);
    assert_eq!(leader.sent(), []);
    assert_eq!(leader.core.next_deadline(), None);
}
