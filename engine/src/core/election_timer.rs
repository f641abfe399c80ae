//! How long a node that hears no leader waits before it campaigns, and when that time does not run at all.
//!
//! Raft draws election timeouts from the thread's random source; ours come from the core's seed, drawn whenever raft starts a new wait.

use raft::StateRole;

use super::Core;
use crate::cluster::NodeId;

#[derive(Default)]
pub(super) struct ElectionTimer {
    /// What raft waits in: another term, role or leader is another wait.
    epoch: Option<(u64, StateRole, NodeId)>,
    ticks: usize,
}

impl ElectionTimer {
    /// The next tick draws anew.
    pub fn restart(&mut self) {
        self.epoch = None;
    }
}

impl Core {
    /// Elections wait for the disk (S4), for a majority of fresh founders (S11), and for all of this node's log to be durable:
    /// a voter that wins at once must not lead over entries that a crash could take.
    pub(super) fn may_tick(&self) -> bool {
        if self.is_leader() {
            return true;
        }
        let log = &self.raw.raft.raft_log;
        !self.removed && !self.writes.hung() && log.last_index() == log.persisted && self.may_take_part()
    }

    pub(super) fn draw_election_timeout(&mut self) {
        let raft = &self.raw.raft;
        let epoch = (raft.term, raft.state, raft.leader_id);
        if self.timer.epoch != Some(epoch) {
            self.timer.epoch = Some(epoch);
            let (low, high) = self.config.election_range();
            self.timer.ticks = self.rng.range(low, high) as usize;
        }
        self.raw.raft.set_randomized_election_timeout(self.timer.ticks);
    }
}
