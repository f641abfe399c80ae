//! Leadership handed over on request: what has to happen, and when waiting for it ends (S15: every call ends).

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
}

impl Core {
    /// Starts handing over leadership; 0: to the voter that is most up to date. The target's id.
    pub(super) fn transfer(&mut self, to: NodeId) -> Result<NodeId> {
        let refuse = |message: String| Err(Error::not_done(ErrorCode::Membership, message));
        let target = if to != 0 { to } else { self.successor(&[])? };
        if !self.cluster.is_voter(target) {
            return refuse(format!("node {target} is no voter; leadership can only go to a voter"));
        }
        if target != self.id {
            self.raw.transfer_leader(target);
        }
        Ok(target)
    }

    /// The other voter that is most up to date, and not one of those that are about to leave the voting as well.
    pub(super) fn successor(&self, leaving: &[NodeId]) -> Result<NodeId> {
        let refuse = |message: &str| Err(Error::not_done(ErrorCode::Membership, message));
        let stays = |id: &&NodeId| **id != self.id && !leaving.contains(id);
        let progress = |id: &NodeId| self.raw.raft.prs().get(*id).map(|p| (p.recent_active, p.matched, *id));
        match self.cluster.voters.iter().filter(stays).filter_map(progress).max() {
            Some((true, _, id)) => Ok(id),
            Some(_) => refuse("no other voter has been heard of lately; leadership stays here"),
            None => refuse("there is no other voter to hand over to"),
        }
    }

    /// Before it closes, a leader hands over: the others need not wait out an election. False when there is nobody to take over.
    pub fn retire(&mut self) -> bool {
        self.is_leader() && self.transfer(0).is_ok()
    }

    /// The leader has begun; the request ends with the next leader, or when the old one has given up waiting.
    pub(super) fn await_transfer(&mut self, request: u64, target: NodeId) {
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
            self.requests.transfers.push(Transfer { request, target, from, until });
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
            let refuse = |message: String| Err(Error::not_done(ErrorCode::Membership, message));
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
