//! Linearizable reads: many share one ReadIndex round; a context is used once and never again (etcd-io/etcd#20418, S16).
//!
//! A leader confirms a round by hearing, after the reads were asked, from a majority that it has voted for nobody in a later term (Raft
//! thesis §6.4). The question of a follower *is* such a word, as of when it asked: where the two are a majority, it is answered at once,
//! by one round trip and without the others. It speaks for the reads that it brings and for no others: what was asked elsewhere
//! meanwhile may be younger than it.

use std::collections::BTreeMap;

use raft::eraftpb::{Message, MessageType};
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
    /// How many these are.
    unapplied: usize,
}

/// Rounds on their way at the same time; what comes meanwhile shares the next one.
const ROUNDS: usize = 4;

impl Reads {
    pub fn add(&mut self, request: u64) {
        self.waiting.push(request);
    }

    fn confirm(&mut self, index: u64, requests: Vec<u64>) {
        self.unapplied = self.unapplied.saturating_add(requests.len());
        self.confirmed.entry(index).or_default().extend(requests);
    }

    /// Lets go of requests that have ended, where more than `limit` wait.
    pub fn forget(&mut self, limit: usize, pending: impl Fn(&u64) -> bool) {
        if self.waiting.len() > limit {
            self.waiting.retain(&pending);
        }
        if self.unapplied > limit {
            self.confirmed.retain(|_, requests| {
                requests.retain(&pending);
                !requests.is_empty()
            });
            self.unapplied = self.confirmed.values().map(Vec::len).sum();
        }
    }

    /// Requests that no round has asked for yet.
    #[cfg(test)]
    pub fn waits(&self) -> usize {
        self.waiting.len()
    }

    /// Requests of all rounds under way.
    #[cfg(test)]
    pub fn rounds(&self) -> Vec<u64> {
        self.rounds.iter().flat_map(|round| round.requests.iter().copied()).collect()
    }

    /// Requests that only the state machine keeps waiting.
    #[cfg(test)]
    pub fn unapplied(&self) -> usize {
        self.confirmed.values().map(Vec::len).sum()
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
                self.reads.confirm(commit, round.requests);
            }
            self.reads_applied();
            return;
        }
        let context = self.read_context(counter);
        self.raw.read_index(context);
    }

    /// Answers a follower's question for which its asker and this leader suffice. False: raft must ask the others.
    ///
    /// The asker named us, so it followed us in a term of ours (durable before anybody heard of it) up to this one, and had voted in no
    /// later one when it asked; we have not to this moment. Whoever was elected in a later term before the question had a majority with
    /// one of the two in it, also where its members and ours are one change apart: there was nobody, and nothing was committed elsewhere.
    pub(super) fn answer_reader(&mut self, question: &Message) -> bool {
        let asker = question.from;
        let raft = &mut self.raw.raft;
        let enough =
            raft.prs().has_quorum(&[self.id, asker].into_iter().collect()) || bugs::on(Bug::AnswersWithoutMajority);
        if !enough || !raft.commit_to_current_term() {
            return false;
        }
        raft.msgs.push(Message {
            msg_type: MessageType::MsgReadIndexResp as i32,
            from: self.id,
            to: asker,
            term: raft.term,
            index: raft.raft_log.committed,
            entries: question.entries.clone(),
            ..Message::default()
        });
        true
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
                self.reads.confirm(state.index, round.requests);
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
            self.reads.unapplied = self.reads.unapplied.saturating_sub(requests.len());
            for request in requests {
                self.complete(request, Ok(Reply::ReadIndex(applied)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_cores::{chosen_of, follow, leader, message, sent};
    use super::super::Body;
    use super::*;
    use crate::cluster::NodeId;
    use crate::request::Request;

    fn question(asker: NodeId, context: u8) -> Message {
        let entry = raft::eraftpb::Entry { data: vec![context; 24], ..Default::default() };
        Message { entries: vec![entry], ..message(MessageType::MsgReadIndex, asker, 0) }
    }

    fn kinds(sent: &[(NodeId, Message)]) -> Vec<(NodeId, MessageType)> {
        sent.iter().map(|(to, m)| (*to, MessageType::from_i32(m.msg_type).unwrap())).collect()
    }

    #[test]
    fn a_followers_question_is_answered_at_once_where_the_two_are_a_majority() {
        let mut core = leader(3, true);
        core.receive(3, question(3, 7));
        let answers = sent(&mut core);
        assert_eq!(kinds(&answers), [(3, MessageType::MsgReadIndexResp)], "nobody else is asked");
        let (_, answer) = answers.first().unwrap();
        assert_eq!((answer.term, answer.index, answer.entries.first().unwrap().data.as_slice()), (3, 10, &[7; 24][..]));
    }

    #[test]
    fn it_waits_for_the_others_where_they_are_none() {
        let mut core = leader(5, true);
        core.receive(3, question(3, 7));
        let asked = sent(&mut core);
        let mut to: Vec<_> = asked.iter().map(|(to, _)| *to).collect();
        to.sort_unstable();
        assert_eq!(to, [2, 3, 4, 5]);
        assert!(kinds(&asked).iter().all(|(_, kind)| *kind == MessageType::MsgHeartbeat));
        let (_, beat) = asked.first().unwrap();
        let heard =
            |from| Message { context: beat.context.clone(), ..message(MessageType::MsgHeartbeatResponse, from, 3) };
        core.receive(2, heard(2));
        assert!(!kinds(&sent(&mut core)).contains(&(3, MessageType::MsgReadIndexResp)));
        core.receive(4, heard(4));
        assert!(kinds(&sent(&mut core)).contains(&(3, MessageType::MsgReadIndexResp)));
    }

    #[test]
    fn nothing_is_answered_before_something_is_committed_in_the_term() {
        let mut core = leader(3, false);
        core.receive(3, question(3, 7));
        assert!(!kinds(&sent(&mut core)).contains(&(3, MessageType::MsgReadIndexResp)));
    }

    #[test]
    fn a_question_confirms_no_read_but_its_own() {
        let mut core = leader(3, true);
        core.submit(1, Request::Read, None);
        let beats = sent(&mut core);
        assert!(kinds(&beats).contains(&(2, MessageType::MsgHeartbeat)));
        // It may have been under way since before the leader's own read was asked.
        core.receive(3, question(3, 7));
        sent(&mut core);
        assert_eq!(core.reads.rounds.len(), 1);
        let context = beats.first().unwrap().1.context.clone();
        core.receive(2, Message { context, ..message(MessageType::MsgHeartbeatResponse, 2, 3) });
        sent(&mut core);
        assert!(core.reads.rounds.is_empty(), "the heartbeat's answer has confirmed it");
    }

    #[test]
    fn a_followers_question_waits_for_no_write() {
        let mut core = chosen_of(3);
        sent(&mut core);
        follow(&mut core, 0);
        let head = Message { index: 9, log_term: 2, ..message(MessageType::MsgAppend, 2, 3) };
        let entry = raft::eraftpb::Entry { term: 3, index: 10, ..Default::default() };
        core.receive(2, Message { entries: vec![entry], ..head });
        assert_eq!(core.poll().writes.len(), 1, "which is under way from here on");
        core.submit(1, Request::Read, None);
        let asked: Vec<_> = core.poll().messages.into_iter().map(|m| m.body).collect();
        assert!(
            matches!(asked.as_slice(), [Body::Raft(m)] if m.msg_type == MessageType::MsgReadIndex as i32),
            "{asked:?}"
        );
    }
}
