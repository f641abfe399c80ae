//! Linearizable reads: many share one ReadIndex round; a context is used once and never again (etcd-io/etcd#20418, S16).

use std::collections::BTreeMap;

use raft::ReadState;

use super::bugs::{self, Bug};
use super::deadlines::Micros;
use super::Core;
use crate::request::Reply;

struct Round {
    counter: u64,
    started: Micros,
    requests: Vec<u64>,
}

#[derive(Default)]
pub(super) struct Reads {
    waiting: Vec<u64>,
    rounds: Vec<Round>,
    counter: u64,
    /// Confirmed, and waiting for the state machine to reach this index.
    confirmed: BTreeMap<u64, Vec<u64>>,
}

/// Rounds on their way at the same time; what comes meanwhile shares the next one.
const ROUNDS: usize = 4;

impl Reads {
    pub fn add(&mut self, request: u64) {
        self.waiting.push(request);
    }
}

impl Core {
    fn read_context(&self, counter: u64) -> Vec<u8> {
        let mut context = Vec::with_capacity(24);
        let counter = if bugs::on(Bug::ReusesReadContext) { 1 } else { counter };
        for number in [self.id, self.start, counter] {
            context.extend_from_slice(&number.to_le_bytes());
        }
        context
    }

    pub(super) fn pump_reads(&mut self) {
        if self.reads.waiting.is_empty() || self.reads.rounds.len() >= ROUNDS || self.leader_id() == 0 {
            return;
        }
        // A leader drops the question as long as it has committed nothing in its term; so does a node with a hung disk, in effect.
        if self.is_leader() && !self.raw.raft.commit_to_current_term() {
            return;
        }
        self.reads.counter = self.reads.counter.saturating_add(1);
        let counter = self.reads.counter;
        let requests = std::mem::take(&mut self.reads.waiting);
        self.reads.rounds.push(Round { counter, started: self.now, requests });
        if bugs::on(Bug::ReadsWithoutAsking) && self.is_leader() {
            let commit = self.raw.raft.raft_log.committed;
            if let Some(round) = self.reads.rounds.pop() {
                self.reads.confirmed.entry(commit).or_default().extend(round.requests);
            }
            self.reads_applied();
            return;
        }
        let context = self.read_context(counter);
        self.raw.read_index(context);
    }

    /// Rounds without an answer are asked again, with a context of their own (S16).
    pub(super) fn tick_reads(&mut self) {
        let patience = u64::try_from(self.config.tick_interval.as_micros()).unwrap_or(u64::MAX).saturating_mul(2);
        let now = self.now;
        let (old, young) = std::mem::take(&mut self.reads.rounds)
            .into_iter()
            .partition(|r: &Round| now.saturating_sub(r.started) >= patience);
        self.reads.rounds = young;
        self.retry_rounds(old);
    }

    pub(super) fn reads_restart(&mut self) {
        let rounds = std::mem::take(&mut self.reads.rounds);
        self.retry_rounds(rounds);
    }

    fn retry_rounds(&mut self, rounds: Vec<Round>) {
        for round in rounds {
            let pending = &self.requests.pending;
            self.reads.waiting.extend(round.requests.into_iter().filter(|r| pending.contains_key(r)));
        }
    }

    pub(super) fn reads_confirmed(&mut self, states: Vec<ReadState>) {
        for state in states {
            let counter = match self.reads.rounds.iter().find(|r| self.read_context(r.counter) == state.request_ctx) {
                Some(round) => round.counter,
                None => continue,
            };
            let at = self.reads.rounds.iter().position(|r| r.counter == counter);
            if let Some(round) = at.map(|i| self.reads.rounds.remove(i)) {
                self.reads.confirmed.entry(state.index).or_default().extend(round.requests);
            }
        }
        self.reads_applied();
    }

    /// The state machine has moved: what waited for it is ready.
    pub(super) fn reads_applied(&mut self) {
        // Not before the snapshot at start is restored, whatever index it is for (found by seed 230232).
        let applied = self.machine.stands_at();
        let limit = if bugs::on(Bug::ReadsBeforeApplied) { u64::MAX } else { applied };
        while self.reads.confirmed.first_key_value().is_some_and(|(index, _)| *index <= limit) {
            let Some((_, requests)) = self.reads.confirmed.pop_first() else { return };
            for request in requests {
                self.complete(request, Ok(Reply::ReadIndex(applied)));
            }
        }
    }
}
