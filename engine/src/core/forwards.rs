//! From a request to an entry of another node's log: forwarded to the leader, with one end for each of them (S15).
//!
//! ```text
//!                        ┌─ never left this process ──────────────► Unsent again, with the next tick
//!                        ├─ refused: leads no longer, or not now ─► Unsent again, with the next tick
//!   Unsent ─► Forwarded ─┼─ refused for a reason ─────────────────► certainly not done
//!                        ├─ taken at (index, term) ───────────────► Placed; if handed over here already, the entry there decides
//!                        ├─ no answer: lost with its stream ──────► outcome unknown, after a patience
//!                        └─ the leader lost meanwhile ────────────► outcome unknown, after a grace (`requests`)
//! ```
//!
//! A forward carries its number, the term of the leader that is meant, and the start of the one process of that leader that our
//! stream leads to. That process alone answers, once for each number. A copy that comes again, or comes to another process, is passed over
//! without a word: the one before may have taken it, so nobody else can say that it was not.

use prost::Message as _;

use super::bugs::{self, Bug};
use super::entry::{note_session, Kind};
use super::membership::{Awaited, Change};
use super::proposals::Proposed;
use super::requests::State;
use super::what::{Handed, What};
use super::{Body, Core, Outbound};
use crate::cluster::NodeId;
use crate::entry::{Entries, Entry};
use crate::error::{Error, ErrorCode, Result};
use crate::request::InSession;
use crate::wire::{Forward, ForwardAnswer, ForwardedPlace, ForwardedProposal};

/// A forward is cut here, so that one message stays small.
const FORWARD_BYTES: u64 = 4 << 20;
/// Starts of one other node whose forward numbers are remembered.
const STARTS_KEPT: usize = 8;

impl Core {
    pub(super) fn forward_unsent(&mut self) {
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
                let Some(handed) = pending.what.handed(|data| data.clone()) else {
                    self.requests.unsent.pop_front();
                    continue;
                };
                let alone = handed.goes_alone();
                let Handed { kind, data, place } = handed;
                bytes = bytes.saturating_add(data.len() as u64);
                if (alone || bytes > FORWARD_BYTES) && !proposals.is_empty() {
                    break;
                }
                self.requests.unsent.pop_front();
                pending.state = State::Forwarded { term };
                proposals.push(ForwardedProposal {
                    sequence: request,
                    data,
                    kind: kind.to_number(),
                    place: place.map(ForwardedPlace::from),
                });
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
                answer.lasting = error.lasting;
                answer.message = error.message;
            }
        }
        self.answer_forward(from, answer);
    }

    fn answer_forward(&mut self, to: NodeId, answer: ForwardAnswer) {
        self.out.messages.push(Outbound { to, body: Body::ForwardAnswer(answer) });
    }

    fn take_forward(&mut self, from: NodeId, forward: Forward) -> Result<Option<(u64, u64)>> {
        // In a memory of their own: what a forward came in may be much larger, and the log keeps them for long.
        let data_len = forward.proposals.iter().map(|proposal| proposal.data.len()).fold(0usize, usize::saturating_add);
        let mut entries = Entries::with_capacity(forward.proposals.len(), data_len);
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
                Some(
                    kind @ (Kind::Command
                    | Kind::CommandInSession
                    | Kind::OpenSession
                    | Kind::CloseSession
                    | Kind::ReserveId),
                ) => {
                    let mut context = self.context(kind, from, forward.start, proposal.sequence);
                    if kind == Kind::CommandInSession {
                        note_session(&mut context, proposal.place.map(InSession::from).unwrap_or_default());
                    }
                    entries.push(Entry { context, ..Entry::default() }, &proposal.data);
                }
                Some(Kind::ChangeMembers) => {
                    let change = Change::decode(proposal.data).map_err(|e| {
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
                    let to = proposal.data.as_ref().try_into().map(u64::from_le_bytes).unwrap_or(0);
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
        let entries = entries.whole();
        let count = entries.len() as u64;
        let at = if entries.is_empty() { None } else { self.append(entries) };
        if let Some((first, _)) = at {
            self.awaited_by(from, first.saturating_add(count).saturating_sub(1));
        }
        Ok(at)
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
                        let error = if answer.lasting { error.lasting() } else { error };
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
            self.await_transfer(request, to, true);
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
                    let committed = !matches!(pending.what, What::InSession(..));
                    pending.state = State::Placed { index, term, committed };
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
