//! From a request to an entry of the log: appended here when this node leads, forwarded to the leader otherwise (S15).

use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::bugs::{self, Bug};
use super::deadlines::Micros;
use super::entry::{Context, Kind, Origin};
use super::membership::{plan, Awaited, Change, Step};
use super::requests::{State, What};
use super::{Body, Core, Outbound};
use crate::cluster::{Member, NodeId};
use crate::error::{Error, ErrorCode, Result};
use crate::request::{Completion, MemberChange, Token};
use crate::wire::{Forward, ForwardAnswer, ForwardedProposal};

/// A forward is cut here, so that one message stays small.
const FORWARD_BYTES: u64 = 4 << 20;
/// Starts of one other node whose forward numbers are remembered.
const STARTS_KEPT: usize = 8;

/// What became of a change that the leader was asked for.
enum Proposed {
    At(u64, u64),
    /// Nothing is left to do.
    Already,
    /// Another change is in progress: not now.
    Later,
}

impl Core {
    /// Takes commands; all completions come later, one for each.
    pub fn propose(&mut self, proposals: Vec<(Token, Vec<u8>)>, timeout: Option<Micros>) {
        let not_serving = self.not_serving();
        for (token, data) in proposals {
            if let Some(error) = &not_serving {
                self.out.completions.push(Completion { token, result: Err(error.clone()) });
                continue;
            }
            if let Err(error) = self.room_for(data.len() as u64) {
                self.answer(token, Err(error));
                continue;
            }
            self.accept(token, What::Command(data), timeout);
        }
    }

    fn room_for(&self, bytes: u64) -> Result<()> {
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
        let overloaded = |what: String| Err(Error::not_done(ErrorCode::Overloaded, format!("{what}; try again later")));
        if self.requests.pending.len() as u64 >= config.max_pending_proposals {
            return overloaded(format!("{} requests are pending on this node", self.requests.pending.len()));
        }
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
    fn takes_proposals(&self) -> bool {
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

    fn context(&mut self, kind: Kind, node: NodeId, start: u64, sequence: u64) -> Vec<u8> {
        let time_us = if bugs::on(Bug::ClockGoesBack) { self.wall_us } else { self.newest_time_us.max(self.wall_us) };
        Context { kind, time_us, origin: Origin { node, start, sequence } }.encode()
    }

    fn append_unsent(&mut self) {
        let mut entries = Vec::new();
        let mut requests = Vec::new();
        let mut others = Vec::new();
        let mut refused = Vec::new();
        let mut bytes = self.requests.uncommitted_bytes;
        while let Some(request) = self.requests.unsent.pop_front() {
            let Some(pending) = self.requests.pending.get_mut(&request) else { continue };
            let (kind, data) = match &mut pending.what {
                What::Command(data) => {
                    bytes = bytes.saturating_add(data.len() as u64);
                    if bytes > self.config.max_uncommitted_size {
                        refused.push(request);
                        continue;
                    }
                    (Kind::Command, std::mem::take(data))
                }
                What::ReserveId(addr) => (Kind::ReserveId, addr.clone().into_bytes()),
                _ => {
                    others.push(request);
                    continue;
                }
            };
            let context = self.context(kind, self.id, self.start, request);
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

    fn place(&mut self, request: u64, index: u64, term: u64) {
        if let Some(pending) = self.requests.pending.get_mut(&request) {
            pending.state = State::Placed { index, term, committed: false };
            self.requests.placed.insert(index, request);
        }
    }

    /// Appends to our own log as its leader: index of the first, and the term.
    pub(super) fn append(&mut self, entries: Vec<Entry>) -> Option<(u64, u64)> {
        let count = entries.len() as u64;
        let bytes: u64 = entries.iter().map(|e| e.data.len() as u64).sum();
        let last = self.raw.raft.raft_log.last_index();
        let message =
            Message { msg_type: MessageType::MsgPropose as i32, from: self.id, entries, ..Message::default() };
        let taken =
            self.raw.raft.step(message).is_ok() && self.raw.raft.raft_log.last_index() == last.saturating_add(count);
        if !taken {
            return None;
        }
        self.requests.uncommitted_bytes = self.requests.uncommitted_bytes.saturating_add(bytes);
        Some((last.saturating_add(1), self.raw.raft.term))
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
                    Ok(target) => self.await_transfer(request, target),
                    Err(error) => self.complete(request, Err(error)),
                }
            }
            _ => {}
        }
    }

    fn propose_change(&mut self, change: &Change, node: NodeId, start: u64, sequence: u64) -> Result<Proposed> {
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
        let data = prost_raft::Message::encode_to_vec(&planned);
        let entry = Entry { entry_type: EntryType::EntryConfChangeV2 as i32, data, context, ..Entry::default() };
        match self.append(vec![entry]) {
            Some((index, term)) => Ok(Proposed::At(index, term)),
            None => Ok(Proposed::Later),
        }
    }

    /// A learner that has not caught up is not made a voter at once: while it has no log it votes for nobody (S11), and the
    /// cluster could not elect. It is marked, and promoted later.
    fn postponed(&self, change: &Change) -> Change {
        let mut change = change.clone();
        for step in change.steps.iter_mut().filter(|s| s.kind == 3) {
            let waits = self.cluster.is_learner(step.id) && !self.has_caught_up(step.id);
            if let Some(member) = self.cluster.member(step.id).filter(|_| waits) {
                *step = Step { kind: 1, id: step.id, addr: member.addr.clone(), directory: Vec::new() };
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
        self.append(vec![Entry { data, context, ..Entry::default() }]).is_some()
    }

    fn forward_unsent(&mut self) {
        let (leader, term) = (self.leader_id(), self.raw.raft.term);
        // A leader that has not let our stream in yet could not be sent anything.
        let Some(to_start) = self.greetings.seen(leader).and_then(|seen| seen.listener) else { return };
        while !self.requests.unsent.is_empty() {
            let mut proposals = Vec::new();
            let mut requests = Vec::new();
            let mut bytes = 0u64;
            while let Some(request) = self.requests.unsent.front().copied() {
                let Some(pending) = self.requests.pending.get_mut(&request) else {
                    self.requests.unsent.pop_front();
                    continue;
                };
                let (kind, data) = match &pending.what {
                    What::Command(data) => (Kind::Command, data.clone()),
                    What::ReserveId(addr) => (Kind::ReserveId, addr.clone().into_bytes()),
                    What::Change(change) => (Kind::ChangeMembers, change.encode_to_vec()),
                    What::Transfer(to) => (Kind::TransferLeader, to.to_le_bytes().to_vec()),
                    What::Read | What::BecomeMember | What::Snapshot => {
                        self.requests.unsent.pop_front();
                        continue;
                    }
                };
                let alone = matches!(kind, Kind::ChangeMembers | Kind::TransferLeader);
                bytes = bytes.saturating_add(data.len() as u64);
                if (alone || bytes > FORWARD_BYTES) && !proposals.is_empty() {
                    break;
                }
                self.requests.unsent.pop_front();
                pending.state = State::Forwarded { term };
                proposals.push(ForwardedProposal { sequence: request, data, kind: kind.to_number() });
                requests.push(request);
                if alone {
                    break;
                }
            }
            if proposals.is_empty() {
                return;
            }
            self.requests.next_forward = self.requests.next_forward.saturating_add(1);
            let number = self.requests.next_forward;
            self.requests.forwards.insert(number, (self.now, requests));
            let forward = Forward { term, start: self.start, number, proposals, to_start };
            self.out.messages.push(Outbound { to: leader, body: Body::Forward(forward) });
        }
    }

    /// The transport says that this forward certainly never left this process.
    pub fn forward_not_sent(&mut self, number: u64) {
        for request in self.requests.forwards.remove(&number).unwrap_or_default().1 {
            self.try_again(request);
        }
    }

    /// A forward or its answer that was lost with its stream, while the leader stays: nobody will say any more (S15).
    pub(super) fn give_up_forwards(&mut self) {
        let patience = u64::try_from(self.config.election_timeout().as_micros()).unwrap_or(u64::MAX).saturating_mul(5);
        while let Some(oldest) = self.requests.forwards.first_entry() {
            if oldest.get().0.saturating_add(patience) > self.now || bugs::on(Bug::ForwardsWithoutEnd) {
                return;
            }
            let (_, requests) = oldest.remove();
            for request in requests {
                if bugs::on(Bug::SendsForwardsAgain) {
                    self.try_again(request);
                    continue;
                }
                if matches!(self.requests.pending.get(&request).map(|p| p.state), Some(State::Forwarded { .. })) {
                    let error = Error::unknown(
                        ErrorCode::ConnectionFailed,
                        "it was sent to the leader, who has not answered: the outcome is unknown",
                    );
                    self.complete(request, Err(error.with_leader(self.leader_hint())));
                }
            }
        }
    }

    fn try_again(&mut self, request: u64) {
        if let Some(pending) = self.requests.pending.get_mut(&request) {
            if matches!(pending.state, State::Forwarded { .. }) {
                pending.state = State::Unsent;
                self.requests.later.push(request);
            }
        }
    }

    /// Another node's proposals, for this node as the leader it believes us to be.
    pub fn receive_forward(&mut self, from: NodeId, forward: Forward) {
        self.heard(from);
        if !self.admits(from) {
            return;
        }
        if forward.to_start != self.start {
            // Meant for a process before this one, which may have taken it: only that one could say that it has not (S15, seed 700489).
            return;
        }
        let (start, number) = (forward.start, forward.number);
        let at = self.requests.taken.iter().position(|(node, s, _)| *node == from && *s == start);
        let newest = at.and_then(|i| self.requests.taken.get(i)).map_or(0, |(_, _, n)| *n);
        if number <= newest && !bugs::on(Bug::TakesForwardsTwice) {
            // A duplicate: it was answered before, and must not be taken twice (S15).
            return;
        }
        match at.and_then(|i| self.requests.taken.get_mut(i)) {
            Some(entry) => entry.2 = number,
            None => {
                self.requests.taken.push_back((from, start, number));
                let of_it = self.requests.taken.iter().filter(|(node, _, _)| *node == from).count();
                let oldest = self.requests.taken.iter().position(|(node, _, _)| *node == from);
                if let Some(oldest) = oldest.filter(|_| of_it > STARTS_KEPT) {
                    self.requests.taken.remove(oldest);
                }
            }
        }
        let mut answer = ForwardAnswer { start, number, ..Default::default() };
        if !self.takes_proposals() || forward.term != self.raw.raft.term || self.not_serving().is_some() {
            self.answer_forward(from, answer);
            return;
        }
        match self.take_forward(from, forward) {
            Ok(Some((first_index, term))) => {
                answer.taken = true;
                answer.first_index = first_index;
                answer.already_at = if first_index == 0 { self.handed } else { 0 };
                answer.term = term;
            }
            Ok(None) => {}
            Err(error) => {
                answer.code = error.code as i32;
                answer.message = error.message;
            }
        }
        self.answer_forward(from, answer);
    }

    fn answer_forward(&mut self, to: NodeId, answer: ForwardAnswer) {
        self.out.messages.push(Outbound { to, body: Body::ForwardAnswer(answer) });
    }

    fn take_forward(&mut self, from: NodeId, forward: Forward) -> Result<Option<(u64, u64)>> {
        let mut entries = Vec::with_capacity(forward.proposals.len());
        let mut bytes = self.requests.uncommitted_bytes;
        let behind = self.raw.raft.raft_log.committed.saturating_sub(self.machine.applied());
        for proposal in forward.proposals {
            bytes = bytes.saturating_add(proposal.data.len() as u64);
            let size = proposal.data.len() as u64;
            if size > self.config.max_proposal_size {
                return Err(Error::not_done(
                    ErrorCode::ProposalTooLarge,
                    format!(
                        "{size} bytes are above the leader's max_proposal_size ({})",
                        self.config.max_proposal_size
                    ),
                ));
            }
            if bytes > self.config.max_uncommitted_size || behind > self.config.max_unapplied_entries {
                return Err(Error::not_done(
                    ErrorCode::Overloaded,
                    "the leader has too much in progress; try again later",
                ));
            }
            match Kind::from_number(proposal.kind) {
                Some(kind @ (Kind::Command | Kind::ReserveId)) => {
                    let context = self.context(kind, from, forward.start, proposal.sequence);
                    entries.push(Entry { data: proposal.data, context, ..Entry::default() });
                }
                Some(Kind::ChangeMembers) => {
                    let change = Change::decode(proposal.data.as_slice()).map_err(|e| {
                        Error::not_done(ErrorCode::InvalidArgument, format!("the change cannot be read: {e}"))
                    })?;
                    return Ok(match self.propose_change(&change, from, forward.start, proposal.sequence)? {
                        Proposed::At(index, term) => Some((index, term)),
                        // Index 0: nothing to append, it is so already.
                        Proposed::Already => Some((0, self.raw.raft.term)),
                        Proposed::Later => None,
                    });
                }
                Some(Kind::TransferLeader) => {
                    let to = proposal.data.as_slice().try_into().map(u64::from_le_bytes).unwrap_or(0);
                    self.transfer(to)?;
                    return Ok(Some((0, self.raw.raft.term)));
                }
                _ => {
                    return Err(Error::not_done(
                        ErrorCode::InvalidArgument,
                        "the leader does not know this kind of proposal; upgrade it",
                    ))
                }
            }
        }
        Ok(if entries.is_empty() { None } else { self.append(entries) })
    }

    /// The leader's word on one of our forwards.
    pub fn receive_forward_answer(&mut self, from: NodeId, answer: ForwardAnswer) {
        self.heard(from);
        if answer.start != self.start {
            return;
        }
        let (_, requests) = self.requests.forwards.remove(&answer.number).unwrap_or_default();
        if !answer.taken {
            let code = ErrorCode::from_i32(answer.code);
            for request in requests {
                match code {
                    Some(code) => {
                        let error = Error::not_done(code, answer.message.clone()).with_leader(self.leader_hint());
                        self.complete(request, Err(error));
                    }
                    None => self.try_again(request),
                }
            }
            return;
        }
        for (offset, request) in (0u64..).zip(requests) {
            let index = if answer.first_index == 0 { 0 } else { answer.first_index.saturating_add(offset) };
            self.taken_at(request, index, answer.term, answer.already_at);
        }
    }

    fn taken_at(&mut self, request: u64, index: u64, term: u64, already_at: u64) {
        let Some(pending) = self.requests.pending.get_mut(&request) else { return };
        if !matches!(pending.state, State::Forwarded { .. }) {
            // Its entry came before the answer.
            return;
        }
        if let What::Change(change) = &pending.what {
            let since = if index == 0 { already_at } else { u64::MAX };
            self.requests.goals.insert(request, Awaited { since, goals: change.goals().collect() });
        }
        if let What::Transfer(to) = pending.what {
            self.await_transfer(request, to);
            return;
        }
        if index == 0 {
            pending.state = State::Following;
            self.check_goals();
            return;
        }
        if index > self.handed {
            self.place(request, index, term);
            return;
        }
        // It has been handed over here before the answer came: what stands at the index decides.
        let here = self.raw.raft.raft_log.term(index).ok().filter(|t| *t != 0);
        match here {
            Some(here) if here != term => {
                let error =
                    Error::not_done(ErrorCode::LeadershipLost, "another leader's entry took its place; send it again");
                self.complete(request, Err(error));
            }
            Some(_) => {
                if let Some(pending) = self.requests.pending.get_mut(&request) {
                    pending.state = State::Placed { index, term, committed: true };
                }
                // A batch that was made meanwhile would have known it: only one that is still to be made brings its result.
                if index <= self.machine.queued() {
                    self.result_lost(request, index);
                }
            }
            None => self.result_lost(request, index),
        }
    }

    /// A snapshot overtook it, or its result came before anybody here knew whom it was for.
    pub(super) fn result_lost(&mut self, request: u64, index: u64) {
        let committed = match self.requests.pending.get(&request).map(|p| p.state) {
            Some(State::Placed { committed: true, .. }) => true,
            Some(_) | None => false,
        };
        let error = if bugs::on(Bug::OvertakenMeansNotDone) && !committed {
            Error::not_done(ErrorCode::LeadershipLost, "a snapshot overtook it")
        } else if committed {
            Error::new(
                ErrorCode::ResultLost,
                crate::Committed::Yes,
                "it is committed, but a snapshot overtook its result",
            )
        } else {
            Error::unknown(ErrorCode::LeadershipLost, "a snapshot overtook it: the outcome is unknown")
        };
        self.complete(request, Err(error.with_index(index)));
    }
}
