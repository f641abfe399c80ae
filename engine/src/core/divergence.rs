//! Finding nodes whose commands came to something else, and stopping the minority (S17). It travels beside the log, never in it.
//!
//! ```text
//!  follower                                leader (compares with its own sums)
//!    report: sums after these indexes ───►  equal ──► "compared up to I" ──► the follower reports from there on
//!                                           differs ──► "tell me the events before I"
//!    report: those events ───────────────►  names the first index that differs: D
//!                                             a majority of the voters differs from it ──► steps down and stops itself
//!    stops: StateDiverged(D) ◄──────────────  a majority agrees with it at D, or has not spoken in time
//! ```
//!
//! Reports go with each tick and again until they are answered, so a lost message costs a tick. A new leader starts from nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::outcomes::Mark;
use super::{Body, Core, Outbound};
use crate::cluster::NodeId;
use crate::error::{Committed, Error, ErrorCode};
use crate::status::Event;
use crate::wire::{OutcomeAnswer, OutcomeMark, OutcomeReport};

/// Sums in one report.
const MARKS: usize = 256;
/// A new leader is told of so many windows again.
const WINDOWS_AGAIN: u64 = 64;

/// What a leader knows of one peer.
#[derive(Clone, Copy, Debug, Default)]
struct Compared {
    /// Its outcomes are the leader's from here …
    from: u64,
    /// … up to here.
    upto: u64,
    /// The first index at which they are not, and since when that is known.
    differs: Option<(u64, u64)>,
    told: bool,
}

#[derive(Default)]
pub(super) struct Divergence {
    /// As a leader: in this term.
    term: u64,
    peers: BTreeMap<NodeId, Compared>,
    /// As a follower: the leader's term, and how far it has compared us.
    leader_term: u64,
    upto: u64,
}

fn to_wire(mark: &Mark) -> OutcomeMark {
    OutcomeMark { index: mark.index, sum: mark.sum }
}

fn majority(half: &[NodeId], of: impl Fn(&NodeId) -> bool) -> bool {
    half.iter().filter(|id| of(id)).count() > half.len() / 2
}

impl Core {
    /// As a follower: what was applied here since the leader last compared.
    pub(super) fn tick_outcomes(&mut self) {
        if self.is_leader() {
            return self.judge();
        }
        let (term, leader) = (self.raw.raft.term, self.leader_id());
        if leader == 0 || !self.admits(leader) {
            return;
        }
        if self.divergence.leader_term != term {
            self.divergence.leader_term = term;
            let again = self.outcomes_window.saturating_mul(WINDOWS_AGAIN);
            self.divergence.upto = self.outcomes.window_start(self.outcomes.applied().saturating_sub(again));
        }
        let marks = self.outcomes.marks_after(self.divergence.upto, MARKS);
        if !marks.is_empty() {
            let sums = marks.iter().map(to_wire).collect();
            self.tell_outcomes(leader, OutcomeReport { term, sums, ..Default::default() });
        }
    }

    fn tell_outcomes(&mut self, to: NodeId, report: OutcomeReport) {
        self.out.messages.push(Outbound { to, body: Body::OutcomeReport(report) });
    }

    /// As a leader: somebody's sums. Those of another term are of no use, what was not applied here comes again.
    pub fn receive_outcome_report(&mut self, from: NodeId, report: &OutcomeReport) {
        self.heard(from);
        let term = self.raw.raft.term;
        if self.failed.is_some() || !self.admits(from) || !self.is_leader() || report.term != term {
            return;
        }
        if self.divergence.term != term {
            self.divergence.term = term;
            self.divergence.peers.clear();
        }
        let mut compared = self.divergence.peers.get(&from).copied().unwrap_or_default();
        let mut answer = OutcomeAnswer { term, ..Default::default() };
        for mark in report.sums.iter().take(MARKS) {
            if mark.index > self.outcomes.applied() || mark.index < compared.upto {
                continue;
            }
            match self.outcomes.sum_at(mark.index) {
                Some(ours) if ours == mark.sum => {
                    let start = self.outcomes.window_start(mark.index);
                    if compared.differs.is_some_and(|(index, _)| start <= index && index <= mark.index) {
                        // It has started again, and came to the same this time.
                        compared = Compared::default();
                    }
                    if compared.upto == 0 {
                        compared.from = start;
                    }
                    compared.upto = mark.index;
                }
                Some(_) if report.details_for == mark.index => {
                    let limit = usize::try_from(self.outcomes_window).unwrap_or(usize::MAX);
                    let mut details: Vec<Mark> =
                        report.details.iter().take(limit).map(|m| Mark { index: m.index, sum: m.sum }).collect();
                    details.sort_unstable_by_key(|mark| mark.index);
                    let first = self.outcomes.first_difference(mark.index, report.details_from, &details);
                    compared.differs.get_or_insert((first, self.now));
                    break;
                }
                Some(_) if compared.differs.is_some() => break,
                Some(_) => {
                    answer.details_for = mark.index;
                    break;
                }
                // Nothing is known here of what was before: nothing can be said about it.
                None => {
                    compared = Compared { from: mark.index.saturating_add(1), upto: mark.index, ..compared };
                }
            }
        }
        answer.upto = compared.upto;
        self.divergence.peers.insert(from, compared);
        self.judge();
        if self.failed.is_some() {
            return;
        }
        if let Some(peer) = self.divergence.peers.get(&from).filter(|peer| peer.told) {
            answer.diverged_at = peer.differs.map_or(0, |(index, _)| index);
        }
        self.out.messages.push(Outbound { to: from, body: Body::OutcomeAnswer(answer) });
    }

    /// Who differs from whom is decided by the majority of the voters.
    fn judge(&mut self) {
        if self.divergence.term != self.raw.raft.term || self.divergence.peers.values().all(|p| p.differs.is_none()) {
            return;
        }
        let cluster = std::sync::Arc::clone(&self.cluster);
        self.divergence.peers.retain(|id, _| cluster.member(*id).is_some());
        let halves = [&cluster.voters, &cluster.voters_outgoing];
        let peers = &self.divergence.peers;
        let differing: BTreeSet<NodeId> =
            peers.iter().filter(|(_, p)| p.differs.is_some()).map(|(id, _)| *id).collect();
        let first = peers.values().filter_map(|p| p.differs).map(|(index, _)| index).min().unwrap_or(0);
        if halves.iter().any(|half| majority(half, |id| differing.contains(id))) {
            self.abdicate();
            return self
                .diverged(first, "a majority of the voters came to another outcome than this node, which led them");
        }
        let patience = u64::try_from(self.config.election_timeout().as_micros()).unwrap_or(u64::MAX).saturating_mul(2);
        let mut verdicts = Vec::new();
        for (id, peer) in peers {
            let Some((index, since)) = peer.differs.filter(|_| !peer.told) else { continue };
            let agrees = |voter: &NodeId| {
                *voter == self.id
                    || peers.get(voter).is_some_and(|p| p.differs.is_none() && p.from <= index && index <= p.upto)
            };
            let agreed = halves.iter().all(|half| half.is_empty() || majority(half, agrees));
            if agreed || self.now.saturating_sub(since) > patience {
                verdicts.push((*id, index));
            }
        }
        for (node_id, index) in verdicts {
            if let Some(peer) = self.divergence.peers.get_mut(&node_id) {
                peer.told = true;
            }
            self.out.events.push(Event::StateDiverged { node_id, index });
        }
    }

    /// As a follower: how far the leader has compared, what it wants to know, and that we are the minority.
    pub fn receive_outcome_answer(&mut self, from: NodeId, answer: &OutcomeAnswer) {
        self.heard(from);
        let term = self.raw.raft.term;
        let ours = answer.term == term && from == self.leader_id() && !self.is_leader();
        if self.failed.is_some() || !self.admits(from) || !ours {
            return;
        }
        self.divergence.upto = self.divergence.upto.max(answer.upto.min(self.outcomes.applied()));
        if answer.diverged_at != 0 {
            self.diverged(answer.diverged_at, "the majority of the voters came to another outcome than this node");
        } else if let Some(sum) = self.outcomes.sum_at(answer.details_for).filter(|_| answer.details_for != 0) {
            let (details_from, details) = self.outcomes.details(answer.details_for);
            let report = OutcomeReport {
                term,
                sums: vec![OutcomeMark { index: answer.details_for, sum }],
                details_for: answer.details_for,
                details_from,
                details: details.iter().map(to_wire).collect(),
            };
            self.tell_outcomes(from, report);
        }
    }

    fn diverged(&mut self, index: u64, what: &str) {
        self.out.events.push(Event::StateDiverged { node_id: self.id, index });
        let text = format!(
            "{what} for the command at index {index}: its state is not the others' any more. Find out what `apply` depends on beside the \
             command and the state (time, chance, a file, a version), then remove this member and let it join again with an empty directory"
        );
        self.fail(Error::new(ErrorCode::StateDiverged, Committed::Unknown, text).with_index(index));
    }
}

#[cfg(test)]
#[path = "divergence_tests.rs"]
mod tests;
