//! A message of a peer's: raft's, with the entries of an append beside it; and its way to raft.

use raft::eraftpb::{Message, MessageType};

use super::{bodies, check, Core};
use crate::cluster::NodeId;
use crate::entry::Entry;

/// What a peer has sent; nothing of it has been checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// Without entries.
    pub head: Message,
    pub entries: Vec<Entry>,
}

impl From<Message> for Received {
    fn from(mut head: Message) -> Self {
        let entries = std::mem::take(&mut head.entries);
        Received { head, entries: entries.into_iter().map(Entry::from).collect() }
    }
}

impl From<Received> for Message {
    fn from(Received { head, entries }: Received) -> Self {
        Message { entries: entries.iter().map(raft::eraftpb::Entry::from).collect(), ..head }
    }
}

impl Core {
    /// A message of a peer's stream. What cannot be is dropped and told (S16).
    pub fn receive(&mut self, from: NodeId, received: impl Into<Received>) {
        self.heard(from);
        if self.failed.is_some() {
            return;
        }
        if !self.admits(from) {
            return self.greet_anew(from);
        }
        let received: Received = received.into();
        let kind = received.head.msg_type;
        let log = &self.raw.raft.raft_log;
        let persisted = log.last_index() == log.persisted;
        if kind == MessageType::MsgReadIndex as i32 && !self.is_leader() {
            // Raft would send it on in the asker's name; the asker asks the right one soon (S16).
            return;
        }
        if kind == MessageType::MsgTimeoutNow as i32 && (!persisted || self.writes.hung()) {
            return;
        }
        if let Err(reason) = self.standing(|at| check::check(&received, from, at)) {
            self.refuse_peer(from, format!("a message of kind {kind} was dropped: {reason}"));
            return;
        }
        if !self.may_take_part()
            && !matches!(MessageType::from_i32(kind), Some(MessageType::MsgAppend | MessageType::MsgHeartbeat))
        {
            return;
        }
        if kind == MessageType::MsgAppend as i32 && !received.entries.is_empty() {
            return self.step_append(received);
        }
        let message = Message::from(received);
        if kind == MessageType::MsgRequestVote as i32 && message.term < self.raw.raft.term {
            return self.refuse_old_candidate(from);
        }
        if kind == MessageType::MsgReadIndex as i32 && self.answer_reader(&message) {
            return;
        }
        // An unknown sender's answer is of no use; nothing else can fail here.
        let _ = self.raw.step(message);
    }

    /// Shows what this node's raft stands at.
    pub(super) fn standing<T>(&self, show: impl FnOnce(&check::Standing<'_>) -> T) -> T {
        let log = &self.raw.raft.raft_log;
        show(&check::Standing {
            id: self.id,
            term: self.raw.raft.term,
            commit: log.committed,
            last_index: log.last_index(),
            leads: self.is_leader(),
            tail: log.store(),
            term_at: &|index| log.term(index).ok().filter(|t| *t != 0),
        })
    }

    /// Raft decides about the places of its entries; what they say waits beside it, if it takes them.
    fn step_append(&mut self, Received { head, entries }: Received) {
        let last = entries.last().map(|e| (e.index, e.term));
        let _ = self.raw.step(Message { entries: bodies::strip(&entries), ..head });
        if last.is_some_and(|(index, term)| self.raw.raft.raft_log.term(index).is_ok_and(|t| t == term)) {
            self.bodies.wait(entries);
        }
    }

    /// Tells a candidate of an earlier term where the others are (Raft paper, figure 2; raft says nothing). Two that need each other's
    /// vote and do not campaign in step would otherwise go on for long, each a term behind the other (found by seed 330254).
    fn refuse_old_candidate(&mut self, candidate: NodeId) {
        let term = self.raw.raft.term;
        // S1: what carries a term waits for it; the candidate asks again.
        if self.writes.durable_term() == term {
            self.post(Message {
                msg_type: MessageType::MsgRequestVoteResponse as i32,
                from: self.id,
                to: candidate,
                term,
                reject: true,
                ..Message::default()
            });
        }
    }
}
