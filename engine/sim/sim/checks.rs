//! What must hold of one node after each step, with its disk in view. What must hold between nodes is in [`super::oracle`].

use raft::eraftpb::{Message, MessageType};
use raftify_engine::core::{Body, Core, Outbound};
use raftify_engine::status::Role;

use super::machine;
use super::world::{Place, World};

impl World {
    /// `snapshot <= applied <= handed <= commit <= last`, nothing goes back, and all that is committed is the same everywhere.
    pub(super) fn check_positions(&mut self, at: Place, voters_before: &[Vec<u64>]) {
        let host = self.hosts.get_mut(&at.0).expect("a running host");
        let Some(life) = host.life.as_mut() else { return };
        let p = life.core.positions();
        assert!(
            p.applied <= p.handed && p.handed <= p.commit && p.commit <= p.last,
            "VIOLATION: node {}: applied {} <= handed {} <= commit {} <= last {}",
            at.0,
            p.applied,
            p.handed,
            p.commit,
            p.last
        );
        let old = std::mem::replace(&mut life.positions, (p.term, p.commit, p.applied, p.snapshot));
        assert!(
            old.0 <= p.term && old.1 <= p.commit && old.2 <= p.applied && old.3 <= p.snapshot,
            "VIOLATION: node {} goes back: (term, commit, applied, snapshot) {old:?} -> {p:?}",
            at.0
        );
        self.trace = machine::mix(self.trace, p.term ^ p.commit.rotate_left(16) ^ p.applied.rotate_left(32) ^ self.now);
        let fresh = self.oracle.commits(at.0, &mut life.shadow, p.commit, p.term);
        let voters_after = voters_of(&life.core);
        for (index, term) in fresh {
            let durable = |voters: &[Vec<u64>]| {
                voters.iter().all(|half| {
                    let have = half
                        .iter()
                        .filter(|id| self.hosts.get(id).is_some_and(|h| h.wiped || h.disk.synced.covers(index, term)));
                    half.is_empty() || have.count() > half.len() / 2
                })
            };
            assert!(
                durable(voters_before) || durable(&voters_after),
                "VIOLATION: node {} commits {index} of term {term}, which no majority has on its disks",
                at.0
            );
            let voters = if durable(voters_before) { voters_before } else { &voters_after };
            if let Some(other) = self.could_lead_without(index, term, voters) {
                panic!(
                    "VIOLATION: node {} commits {index} of term {term}, and node {other} could be elected without it",
                    at.0
                );
            }
        }
    }

    /// A voter whose disk does not hold this entry, and for whom a majority would vote by what is on their disks.
    fn could_lead_without(&self, index: u64, term: u64, voters: &[Vec<u64>]) -> Option<u64> {
        let newest = |id: &u64| {
            let disk = &self.hosts.get(id)?.disk.synced;
            Some((disk.term(disk.last_index())?, disk.last_index()))
        };
        voters.iter().flatten().copied().find(|id| {
            let Some(host) = self.hosts.get(id).filter(|h| !h.wiped && !h.disk.synced.covers(index, term)) else {
                return false;
            };
            let own = newest(id);
            host.life.is_some()
                && voters.iter().filter(|half| !half.is_empty()).all(|half| {
                    // Who was wiped votes for nobody (S11).
                    let may = |v: &&u64| self.hosts.get(v).is_some_and(|h| !h.wiped);
                    let votes = half.iter().filter(may).filter(|v| newest(v) <= own);
                    votes.count() > half.len() / 2
                })
        })
    }

    /// S11: a directory that was wiped takes part in nothing.
    pub(super) fn check_wiped(&self, at: Place) {
        let host = &self.hosts[&at.0];
        if let Some(life) = host.life.as_ref().filter(|_| host.wiped) {
            let role = life.core.status().role;
            assert!(
                !matches!(role, Role::Candidate | Role::Leader),
                "VIOLATION: node {} was wiped and is a {role:?} (S11)",
                at.0
            );
        }
    }

    /// Nothing leaves that a crash could make untrue (S1, S2).
    pub(super) fn check_promise(&mut self, at: Place, outbound: &Outbound) {
        let Body::Raft(message) = &outbound.body else { return };
        let Some(kind) = MessageType::from_i32(message.msg_type) else { return };
        let host = self.hosts.get(&at.0).expect("a running host");
        let disk = &host.disk.synced;
        let hard_state = &disk.hard_state;
        let asks_first = matches!(kind, MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse);
        if !asks_first && message.term != 0 {
            assert!(
                hard_state.term >= message.term,
                "VIOLATION: node {} sends {kind:?} of term {} before that term is on its disk (S1)",
                at.0,
                message.term
            );
        }
        match kind {
            MessageType::MsgAppendResponse if !message.reject => {
                assert!(
                    // An acceptance of an earlier term stays true: what a later leader took away again was never committed.
                    disk.last_index() >= message.index || hard_state.term > message.term,
                    "VIOLATION: node {} acknowledges {} and has {} on its disk (S1)",
                    at.0,
                    message.index,
                    disk.last_index()
                );
            }
            MessageType::MsgRequestVoteResponse if !message.reject => {
                self.check_vote(at, message, message.to);
            }
            MessageType::MsgRequestVote => self.check_vote(at, message, at.0),
            MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                let host = self.hosts.get_mut(&at.0).expect("a running host");
                let Some(life) = host.life.as_mut() else { return };
                self.oracle.leads(at.0, at.1, message.term, &life.shadow);
                self.oracle.settles(at.0, &mut life.shadow, message.index + message.entries.len() as u64);
            }
            _ => {}
        }
    }

    fn check_vote(&mut self, at: Place, message: &Message, candidate: u64) {
        let hard_state = &self.hosts[&at.0].disk.synced.hard_state;
        assert!(
            hard_state.term > message.term || (hard_state.term == message.term && hard_state.vote == candidate),
            "VIOLATION: node {} votes for {candidate} in term {} and its disk says {hard_state:?} (S1)",
            at.0,
            message.term
        );
        let directory = self.hosts[&at.0].disk.synced.identity.directory.0;
        self.oracle.votes(at.0, directory, message.term, candidate);
    }

    /// S4: nobody leads with a disk that has hung for longer than it may.
    pub(super) fn check_hung(&self, at: Place) {
        let host = &self.hosts[&at.0];
        let (Some(since), Some(life)) = (host.disk.waits_since, host.life.as_ref()) else { return };
        let limit = self.profile.config.hung_write_after().as_micros() as u64;
        let age = u128::from(self.now - since) * u128::from(host.rate) / 1000;
        assert!(
            !life.core.is_leader() || age <= u128::from(limit + 2 * self.profile.tick),
            "VIOLATION: node {} leads with a write that hangs since {age} µs (S4)",
            at.0
        );
    }
}

/// The halves of the configuration, each of which must agree.
pub(super) fn voters_of(core: &Core) -> Vec<Vec<u64>> {
    let cluster = core.cluster();
    vec![cluster.voters.clone(), cluster.voters_outgoing.clone()]
}
