//! Leadership handed over on request: what has to happen, and when waiting for it ends (S15: every call ends).
//!
//! Whoever has been told to take over may do so at any later time: that it was not done is said only where nobody can have been told.

use raft::eraftpb::{Message, MessageType};

use super::deadlines::Micros;
use super::requests::State;
use super::Core;
use crate::cluster::NodeId;
use crate::error::{Error, ErrorCode, Result};
use crate::request::Reply;

/// A transfer that a leader has begun.
pub(super) struct Transfer {
    request: u64,
    /// 0: to whoever is most up to date.
    target: NodeId,
    from: NodeId,
    until: Micros,
    /// The target may have been told to take over.
    told: bool,
    /// Which of the hand-overs that raft has begun here this is.
    number: u64,
}

fn tells(message: &Message, target: NodeId) -> bool {
    message.msg_type == MessageType::MsgTimeoutNow as i32 && message.to == target
}

impl Core {
    /// Starts handing over leadership; 0: to the voter that is most up to date. The target's id.
    pub(super) fn transfer(&mut self, to: NodeId) -> Result<NodeId> {
        let refuse = |message: String| Err(Error::not_done(ErrorCode::Membership, message).lasting());
        let target = if to != 0 { to } else { self.successor(&[])? };
        if !self.cluster.is_voter(target) {
            return refuse(format!("node {target} is no voter; leadership can only go to a voter"));
        }
        if target != self.id {
            // Raft goes on with one to the same node that is under way.
            let under_way = self.raw.raft.lead_transferee == Some(target);
            self.raw.transfer_leader(target);
            if !under_way {
                self.requests.handed_over = self.requests.handed_over.saturating_add(1);
            }
        }
        Ok(target)
    }

    /// The other voter that is most up to date, and not one of those that are about to leave the voting as well.
    pub(super) fn successor(&self, leaving: &[NodeId]) -> Result<NodeId> {
        let refuse = |message: &str| Error::not_done(ErrorCode::Membership, message);
        let stays = |id: &&NodeId| **id != self.id && !leaving.contains(id);
        let progress = |id: &NodeId| self.raw.raft.prs().get(*id).map(|p| (p.recent_active, p.matched, *id));
        match self.cluster.voters.iter().filter(stays).filter_map(progress).max() {
            Some((true, _, id)) => Ok(id),
            Some(_) => Err(refuse("no other voter has been heard of lately; leadership stays here")),
            None => Err(refuse("there is no other voter to hand over to").lasting()),
        }
    }

    /// Before it closes, a leader hands over: the others need not wait out an election. False when there is nobody to take over.
    pub fn retire(&mut self) -> bool {
        self.is_leader() && self.transfer(0).is_ok()
    }

    /// The leader has begun; the request ends with the next leader, or when the old one has given up waiting. `elsewhere`: the leader
    /// is another node, and when it tells the target is not known here.
    pub(super) fn await_transfer(&mut self, request: u64, target: NodeId, elsewhere: bool) {
        let from = self.leader_id();
        if target != 0 && from == target {
            self.complete(request, Ok(Reply::Leader(target)));
            return;
        }
        if let Some(pending) = self.requests.pending.get_mut(&request) {
            pending.state = State::Following;
            // Raft gives up after one election timeout; its word may take a while to get here.
            let patience = self.config.election_timeout().saturating_mul(2);
            let until = self.now.saturating_add(u64::try_from(patience.as_micros()).unwrap_or(u64::MAX));
            let number = self.requests.handed_over;
            self.requests.transfers.push(Transfer { request, target, from, until, told: elsewhere, number });
        }
    }

    /// What raft sends from here.
    pub(super) fn note_transfers<'a>(&mut self, messages: impl Iterator<Item = &'a Message> + Clone) {
        for transfer in self.requests.transfers.iter_mut().filter(|t| !t.told) {
            transfer.told = messages.clone().any(|message| tells(message, transfer.target));
        }
    }

    /// Transfers that are decided: there is a new leader, or there will be none.
    pub(super) fn settle_transfers(&mut self) {
        let (leader, now) = (self.leader_id(), self.now);
        let decided = |t: &Transfer| (leader != 0 && (leader == t.target || leader != t.from)) || t.until <= now;
        let (ended, open) = std::mem::take(&mut self.requests.transfers).into_iter().partition(decided);
        self.requests.transfers = open;
        let ended: Vec<Transfer> = ended;
        for transfer in ended {
            // Also where it goes with the next Ready.
            let told = transfer.told || self.raw.raft.msgs.iter().any(|message| tells(message, transfer.target));
            let under_way = self.raw.raft.lead_transferee == Some(transfer.target);
            // One that was begun later may tell it yet: it is not ours to end.
            let told = told || (under_way && transfer.number != self.requests.handed_over);
            if !told && under_way {
                // Nor is it told from now on.
                self.raw.raft.abort_leader_transfer();
            }
            let refuse = |message: String| {
                Err(match told {
                    true => Error::unknown(
                        ErrorCode::Membership,
                        format!("{message}; it may still be done, or have been: look who leads before you ask again"),
                    ),
                    false => Error::not_done(ErrorCode::Membership, message),
                })
            };
            let result = if leader == 0 || leader == transfer.from {
                refuse(format!("node {} did not hand over in time", transfer.from))
            } else if transfer.target == 0 || transfer.target == leader {
                Ok(Reply::Leader(leader))
            } else {
                refuse(format!("leadership went to node {leader}, not to node {}", transfer.target))
            };
            let result = result.map_err(|error| error.with_leader(self.leader_hint()));
            self.complete(transfer.request, result);
        }
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::{Message, MessageType};

    use super::super::forward_tests::{follower, forwarded, let_in};
    use super::super::test_cores::{leader, message, sent};
    use super::*;
    use crate::error::Committed;
    use crate::request::Request;
    use crate::wire::ForwardAnswer;

    const HOUR: Micros = 3_600_000_000;

    fn is_told(core: &mut Core) -> bool {
        sent(core).iter().any(|(to, message)| *to == 3 && message.msg_type == MessageType::MsgTimeoutNow as i32)
    }

    fn acknowledge(core: &mut Core, from: NodeId, index: u64) {
        core.receive(from, Message { index, ..message(MessageType::MsgAppendResponse, from, 3) });
    }

    /// Node 1 leads and is to hand over to node 3, which lacks an entry.
    fn handing_over() -> Core {
        let mut core = leader(3, true);
        core.submit(1, Request::Propose("x".into()), None);
        sent(&mut core);
        acknowledge(&mut core, 2, 11);
        sent(&mut core);
        core.submit(2, Request::TransferLeader(Some(3)), None);
        assert!(!is_told(&mut core));
        core
    }

    fn outcome(core: &mut Core) -> Error {
        let ended = core.poll().completions.into_iter().find(|completion| completion.token == 2);
        ended.unwrap().result.unwrap_err()
    }

    fn other_leads(core: &mut Core) {
        core.receive(2, message(MessageType::MsgHeartbeat, 2, 4));
    }

    fn patience_ends(core: &mut Core) {
        core.begin_turn(HOUR, 1);
        core.tick();
    }

    #[test]
    fn a_transfer_is_certainly_not_done_only_where_nobody_was_told_to_take_over() {
        for (told, end, why) in [
            (false, patience_ends as fn(&mut Core), "did not hand over in time"),
            (true, patience_ends, "did not hand over in time"),
            (false, other_leads, "leadership went to node 2, not to node 3"),
            (true, other_leads, "leadership went to node 2, not to node 3"),
        ] {
            let mut core = handing_over();
            if told {
                acknowledge(&mut core, 3, 11);
                assert!(is_told(&mut core));
            }
            end(&mut core);
            let error = outcome(&mut core);
            let fate = if told { Committed::Unknown } else { Committed::No };
            assert_eq!(
                (error.code, error.committed, error.retryable()),
                (ErrorCode::Membership, fate, !told),
                "{error}"
            );
            assert!(error.message.contains(why), "{error}");
            // What is said not to be done is not done later either.
            acknowledge(&mut core, 3, 11);
            assert!(!is_told(&mut core));
        }
    }

    #[test]
    fn a_transfer_that_is_asked_for_again_is_not_ended_by_the_one_before() {
        let mut core = handing_over();
        // Raft gives the first one up after an election timeout; who asked for it asks again, and then its patience ends.
        let timeout = u64::try_from(core.config.election_timeout().as_micros()).unwrap();
        for _ in 0..core.config.election_tick {
            core.tick();
            sent(&mut core);
        }
        core.begin_turn(timeout * 3 / 2, 1);
        core.submit(4, Request::TransferLeader(Some(3)), None);
        sent(&mut core);
        core.begin_turn(timeout * 2 + 1, 1);
        core.settle_transfers();
        acknowledge(&mut core, 3, 11);
        assert!(is_told(&mut core), "the second one goes on");
    }

    #[test]
    fn nobody_but_the_old_leader_knows_whether_it_told_its_successor() {
        for end in [patience_ends as fn(&mut Core), |core| core.receive(3, message(MessageType::MsgHeartbeat, 3, 4))] {
            let mut core = follower();
            let_in(&mut core, 20);
            core.submit(2, Request::TransferLeader(Some(1)), None);
            let forward = forwarded(&mut core).remove(0);
            let taken = ForwardAnswer { start: 7, number: forward.number, taken: true, term: 3, ..Default::default() };
            core.receive_forward_answer(2, taken);
            end(&mut core);
            let error = outcome(&mut core);
            assert_eq!((error.committed, error.retryable()), (Committed::Unknown, false), "{error}");
        }
    }
}
