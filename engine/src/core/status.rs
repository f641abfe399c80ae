//! What the core says of itself.

use std::collections::BTreeMap;

use raft::StateRole;

use super::Core;
use crate::cluster::NodeId;
use crate::status::{PeerStatus, Role, Status};

/// How far the node has got. `snapshot <= handed` and `applied <= handed <= commit <= last`, but for the moment of installing a
/// received snapshot. `applied` is below `snapshot` only while a durable state machine hears what it had not kept (S7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    pub term: u64,
    /// 0: none known.
    pub leader: NodeId,
    pub snapshot: u64,
    /// Where the state machine stands.
    pub applied: u64,
    /// Up to here the core itself has acted on the log (membership).
    pub handed: u64,
    pub commit: u64,
    pub last: u64,
}

impl Core {
    /// The cheap part of [`Core::status`].
    pub fn positions(&self) -> Positions {
        let raft = &self.raw.raft;
        Positions {
            term: raft.term,
            leader: raft.leader_id,
            snapshot: self.snapshot_index(),
            applied: self.applied(),
            handed: self.handed,
            commit: raft.raft_log.committed,
            last: raft.raft_log.last_index(),
        }
    }

    pub(super) fn role(&self) -> Role {
        if self.removed {
            return Role::Removed;
        }
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if self.cluster.is_learner(self.id) => Role::Learner,
            StateRole::Follower if !self.may_take_part() || !self.cluster.is_voter(self.id) => Role::Waiting,
            StateRole::Follower => Role::Follower,
        }
    }

    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let leads = self.is_leader();
        let last = raft.raft_log.last_index();
        let peers: BTreeMap<u64, PeerStatus> = self
            .cluster
            .members()
            .iter()
            .filter(|m| m.id != self.id)
            .map(|m| {
                let matched = leads.then(|| raft.prs().get(m.id).map(|p| p.matched)).flatten();
                let seen = self.greetings.seen(m.id);
                let status = PeerStatus {
                    addr: m.addr.clone(),
                    match_index: matched,
                    lag: matched.map(|i| last.saturating_sub(i)),
                    connected: seen.is_some_and(|s| s.connected),
                    last_seen: seen.map(|s| self.now.saturating_sub(s.at) as f64 / 1e6),
                };
                (m.id, status)
            })
            .collect();
        Status {
            node_id: self.id,
            addr: self.addr.clone(),
            role: self.role(),
            term: raft.term,
            leader_id: (raft.leader_id != 0).then_some(raft.leader_id),
            last_index: last,
            commit_index: raft.raft_log.committed,
            applied_index: self.applied(),
            snapshot_index: self.snapshot_index(),
            voters: self.cluster.voters.clone(),
            learners: self.cluster.learners.clone(),
            peers,
            error: self.failed.as_ref().map(ToString::to_string),
        }
    }
}
