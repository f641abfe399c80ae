//! From a request to an entry of the log, appended here when this node leads. When another does it goes the way of `forwards`.

use bytes::Bytes;
use raft::eraftpb::{EntryType, Message, MessageType};

use super::bodies;
use super::bugs::{self, Bug};
use super::change_plan::plan;
use super::deadlines::Micros;
use super::entry::{note_session, Context, Kind, Origin};
use super::membership::{bounded, Awaited, Change, Step, StepKind};
use super::requests::State;
use super::what::{Handed, What};
use super::Core;
use crate::cluster::{Member, NodeId};
use crate::entry::{Entry, EntryContext};
use crate::error::{Error, ErrorCode, Result};
use crate::request::{Completion, MemberChange, Token};

/// What became of a change that the leader was asked for.
pub(super) enum Proposed {
    At(u64, u64),
    /// Nothing is left to do.
    Already,
    /// Another change is in progress: not now.
    Later,
}

fn overloaded(what: String) -> Result<()> {
    Err(Error::not_done(ErrorCode::Overloaded, format!("{what}; try again later")))
}

impl Core {
    /// Takes commands; all completions come later, one for each.
    pub fn propose(&mut self, proposals: Vec<(Token, Bytes)>, timeout: Option<Micros>) {
        let not_serving = self.not_serving();
        for (token, data) in proposals {
            if let Some(error) = &not_serving {
                self.out.completions.push(Completion { token, result: Err(error.clone()) });
                continue;
            }
            self.accept_if(self.room_for(data.len() as u64), token, What::Command(data), timeout);
        }
    }

    /// For one more request, however small.
    pub(super) fn room(&self) -> Result<()> {
        let pending = self.requests.pending.len() as u64;
        if pending >= self.config.max_pending_proposals {
            return overloaded(format!("{pending} requests are pending on this node"));
        }
        Ok(())
    }

    pub(super) fn room_for(&self, bytes: u64) -> Result<()> {
        let config = &self.config;
        if bytes > config.max_proposal_size {
            return Err(Error::not_done(
                ErrorCode::ProposalTooLarge,
                format!(
                    "{bytes} bytes are above max_proposal_size ({}); split the command or raise it",
                    config.max_proposal_size
                ),
            ));
        }
        self.room()?;
        if self.requests.bytes.saturating_add(bytes) > config.max_pending_bytes {
            return overloaded(format!("commands of {} bytes are pending on this node", self.requests.bytes));
        }
        let behind = self.raw.raft.raft_log.committed.saturating_sub(self.machine.applied());
        if behind > config.max_unapplied_entries {
            return overloaded(format!("the state machine is {behind} entries behind"));
        }
        Ok(())
    }

    /// A leader that takes proposals: not handing over, and with a disk that answers (S4).
    pub(super) fn takes_proposals(&self) -> bool {
        self.is_leader()
            && self.raw.raft.lead_transferee.is_none()
            && !self.writes.hung()
            && self.cluster.is_voter(self.id)
    }

    /// Everything that waits goes: as one MsgPropose into our own log, or as one message to the leader.
    pub(super) fn flush_proposals(&mut self) {
        if self.requests.unsent.is_empty() {
            return;
        }
        if self.takes_proposals() {
            self.append_unsent();
        } else if !self.is_leader() && self.leader_id() != 0 && self.admits(self.leader_id()) {
            self.forward_unsent();
        }
    }

    pub(super) fn context(&mut self, kind: Kind, node: NodeId, start: u64, sequence: u64) -> EntryContext {
        // Counts at once: the next entry may be made before raft has put this one into the log.
        self.newest_time_us = self.newest_time_us.max(self.wall_us);
        let time_us = if bugs::on(Bug::ClockGoesBack) { self.wall_us } else { self.newest_time_us };
        Context { kind, time_us, origin: Origin { node, start, sequence } }.encode()
    }

    fn append_unsent(&mut self) {
        let mut entries = Vec::with_capacity(self.requests.unsent.len());
        let mut requests = Vec::with_capacity(self.requests.unsent.len());
        let mut others = Vec::new();
        let mut refused = Vec::new();
        let mut bytes = self.requests.uncommitted_bytes;
        let most = self.config.max_uncommitted_size;
        while let Some(request) = self.requests.unsent.pop_front() {
            let Some(pending) = self.requests.pending.get_mut(&request) else { continue };
            let command = pending.what.command_len();
            if command > 0 && bytes.saturating_add(command) > most {
                bytes = bytes.saturating_add(command);
                refused.push(request);
                continue;
            }
            let handed = pending.what.handed(std::mem::take);
            let Some(Handed { kind, data, place }) = handed.filter(|it| !it.goes_alone()) else {
                others.push(request);
                continue;
            };
            bytes = bytes.saturating_add(data.len() as u64);
            let mut context = self.context(kind, self.id, self.start, request);
            if let Some(place) = place {
                note_session(&mut context, place);
            }
            entries.push(Entry { data, context, ..Entry::default() });
            requests.push(request);
        }
        for request in refused {
            let error = Error::not_done(
                ErrorCode::Overloaded,
                format!("{} bytes wait for a majority to store them; try again later", self.requests.uncommitted_bytes),
            );
            self.complete(request, Err(error));
        }
        if !entries.is_empty() {
            match self.append(entries) {
                Some((first, term)) => {
                    for (index, request) in (first..).zip(requests) {
                        self.place(request, index, term);
                    }
                }
                None => {
                    // Cannot be: a leader that takes proposals takes this one. It was certainly not appended, and its bytes are gone.
                    for request in requests {
                        let error =
                            Error::not_done(ErrorCode::LeadershipLost, "raft refused the proposal; send it again");
                        self.complete(request, Err(error));
                    }
                }
            }
        }
        for request in others {
            self.propose_other(request);
        }
    }

    pub(super) fn place(&mut self, request: u64, index: u64, term: u64) {
        if let Some(pending) = self.requests.pending.get_mut(&request) {
            pending.state = State::Placed { index, term, committed: false };
            self.requests.placed.insert(index, request);
        }
    }

    /// Appends to our own log as its leader: index of the first, and the term.
    pub(super) fn append(&mut self, mut entries: Vec<Entry>) -> Option<(u64, u64)> {
        let count = entries.len() as u64;
        let bytes: u64 = entries.iter().map(|e| e.data.len() as u64).sum();
        let last = self.raw.raft.raft_log.last_index();
        let message = Message {
            msg_type: MessageType::MsgPropose as i32,
            from: self.id,
            entries: bodies::strip(&entries),
            ..Message::default()
        };
        let taken =
            self.raw.raft.step(message).is_ok() && self.raw.raft.raft_log.last_index() == last.saturating_add(count);
        if !taken {
            return None;
        }
        let term = self.raw.raft.term;
        for (entry, index) in entries.iter_mut().zip(last.saturating_add(1)..) {
            (entry.index, entry.term) = (index, term);
        }
        self.bodies.wait(entries);
        self.requests.uncommitted_bytes = self.requests.uncommitted_bytes.saturating_add(bytes);
        Some((last.saturating_add(1), term))
    }

    /// Membership and leadership: one at a time, as their leader.
    fn propose_other(&mut self, request: u64) {
        let Some(pending) = self.requests.pending.get(&request) else { return };
        match &pending.what {
            What::Change(change) => {
                let change = change.clone();
                match self.propose_change(&change, self.id, self.start, request) {
                    Ok(Proposed::At(index, term)) => {
                        self.place(request, index, term);
                        self.requests
                            .goals
                            .insert(request, Awaited { since: u64::MAX, goals: change.goals().collect() });
                    }
                    Ok(Proposed::Already) => {
                        if let Some(pending) = self.requests.pending.get_mut(&request) {
                            pending.state = State::Following;
                        }
                        self.requests
                            .goals
                            .insert(request, Awaited { since: self.handed, goals: change.goals().collect() });
                        self.check_goals();
                    }
                    Ok(Proposed::Later) => self.requests.later.push(request),
                    Err(error) => self.complete(request, Err(error)),
                }
            }
            What::Transfer(to) => {
                let to = *to;
                match self.transfer(to) {
                    Ok(target) => self.await_transfer(request, target, false),
                    Err(error) => self.complete(request, Err(error)),
                }
            }
            _ => {}
        }
    }

    pub(super) fn propose_change(
        &mut self,
        change: &Change,
        node: NodeId,
        start: u64,
        sequence: u64,
    ) -> Result<Proposed> {
        bounded(change)?;
        // Raft would turn a second change into an empty entry and still say Ok.
        if self.raw.raft.has_pending_conf() || self.cluster.is_joint() || !self.raw.raft.commit_to_current_term() {
            return Ok(Proposed::Later);
        }
        // S11: who has joined is known once the founding entry is applied; before that a plan could leave the voting to the absent.
        if self.cluster.incarnation.is_empty() {
            return Ok(Proposed::Later);
        }
        // A leader does not remove itself: the others would wait out an election. It hands over, and the next one removes it.
        let leaving: Vec<NodeId> = change
            .goals()
            .filter(|(_, goal)| matches!(goal, super::membership::Goal::Gone | super::membership::Goal::Learner))
            .map(|(id, _)| id)
            .collect();
        let change = &self.postponed(change);
        let Some(planned) = plan(change, &self.cluster)? else { return Ok(Proposed::Already) };
        if leaving.contains(&self.id) && self.cluster.voters.len() > 1 {
            // Not to one that would have to hand over as well: they would pass it on for ever (found by seed 616821).
            self.transfer(self.successor(&leaving)?)?;
            return Ok(Proposed::Later);
        }
        let context = self.context(Kind::ChangeMembers, node, start, sequence);
        let data = prost_raft::Message::encode_to_vec(&planned).into();
        let entry = Entry { entry_type: EntryType::EntryConfChangeV2 as i32, data, context, ..Entry::default() };
        match self.append(vec![entry]) {
            Some((index, term)) => {
                self.awaited_by_all(index);
                Ok(Proposed::At(index, term))
            }
            None => Ok(Proposed::Later),
        }
    }

    /// A learner that has not caught up is not made a voter at once: while it has no log it votes for nobody (S11), and the
    /// cluster could not elect. It is marked, and promoted later.
    fn postponed(&self, change: &Change) -> Change {
        let mut change = change.clone();
        for step in change.steps.iter_mut().filter(|s| s.kind() == StepKind::Promote) {
            let waits = self.cluster.is_learner(step.id) && !self.has_caught_up(step.id);
            if let Some(member) = self.cluster.member(step.id).filter(|_| waits) {
                *step = Step::new(StepKind::AddVoter, step.id, &member.addr);
            }
        }
        change
    }

    fn has_caught_up(&self, id: NodeId) -> bool {
        let last = self.raw.raft.raft_log.last_index();
        let progress = self.raw.raft.prs().get(id);
        progress.is_some_and(|p| p.recent_active && p.matched > 0 && last.saturating_sub(p.matched) <= 1000)
    }

    /// Learners that are to be voters, once they have caught up.
    pub(super) fn promote_learners(&mut self) {
        if !self.takes_proposals() || self.raw.raft.has_pending_conf() || self.cluster.is_joint() {
            return;
        }
        let waiting = |m: &&Member| m.promote && self.cluster.is_learner(m.id) && self.has_caught_up(m.id);
        let ready = self.cluster.members().iter().find(waiting);
        if let Some(id) = ready.map(|m| m.id) {
            // Refused only when it has just become untrue; the next tick looks again.
            let _ = self.propose_change(&Change::of(&[MemberChange::Promote { id }]), self.id, self.start, u64::MAX);
        }
    }

    /// An entry of the library's own.
    pub(super) fn append_own(&mut self, kind: Kind, data: Vec<u8>) -> bool {
        if !self.takes_proposals() {
            return false;
        }
        let context = self.context(kind, self.id, self.start, u64::MAX);
        match self.append(vec![Entry { data: data.into(), context, ..Entry::default() }]) {
            Some((index, _)) => {
                self.awaited_by_all(index);
                true
            }
            None => false,
        }
    }
}
