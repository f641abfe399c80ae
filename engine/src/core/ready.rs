//! Raft's Ready: what of it leaves at once, what is written, and what leaves only behind that write.
//!
//! Kept here: on a node that does not lead, messages wait for the write that they promise (S1); heartbeat and pre-vote responses of a
//! durable term do not (S2); a Ready without a write waits for the one in flight, and the tail is filled before raft lets go of its
//! entries (S3). What happens when a write is done stands in `writes`.

use std::sync::Arc;

use raft::eraftpb::{Message, MessageType};

use super::bugs::{self, Bug};
use super::entry::{self, Context, Kind};
use super::run::Append;
use super::{appends, founding, Body, Core, Outbound};
use crate::entry::Entry;
use crate::error::{Error, ErrorCode};

impl Core {
    pub(super) fn take_ready(&mut self) {
        let leads = self.is_leader();
        let mut ready = self.raw.ready();
        let number = ready.number();
        let hard_state = self.raw.raft.hard_state();
        let new_vote = self.writes.changes_vote(&hard_state);
        let term_is_durable = self.writes.durable_term() == hard_state.term;
        let installed = (!ready.snapshot().is_empty()).then(|| self.install_snapshot(ready.snapshot())).flatten();
        #[cfg_attr(not(feature = "known-bugs"), allow(unused_mut))]
        let mut entries = match self.bodies.restore(ready.take_entries()) {
            Ok(entries) => entries,
            Err(index) => {
                return self.fail(Error::unknown(
                    ErrorCode::Internal,
                    format!("what entry {index} says was not kept until raft handed it over; the node has stopped before it wrote it; please report this"),
                ));
            }
        };
        if bugs::on(Bug::KeepsConflictingSuffix) {
            self.keep_conflicting_suffix(&mut entries);
        }
        let entries = Arc::new(entries);
        if !entries.is_empty() {
            self.note_appended(&entries);
            // S3: readable from memory before raft lets go of them.
            self.raw.mut_store().append(Arc::clone(&entries));
            if bugs::on(Bug::MembersAtAppend) {
                for entry in entries.iter().filter(|e| entry::is_conf_change(e)) {
                    self.apply_own(entry);
                }
            }
        }
        self.note_transfers(ready.messages().iter().chain(ready.persisted_messages()));
        let mut held = Vec::new();
        for message in appends::merge(ready.take_messages()) {
            // S1: a leader's messages go at once, but not before its term and vote are durable (a single voter wins inside `campaign()`).
            if (new_vote || !term_is_durable) && !bugs::on(Bug::SendsBeforeItsTermIsDurable) {
                self.hold(&mut held, message);
            } else if leads {
                self.post_as_leader(message);
            } else {
                self.post(message);
            }
        }
        for message in ready.take_persisted_messages() {
            // S2: a slow disk topples nobody. Nor does a question promise anything: a reader waits for no write.
            let passes = matches!(
                MessageType::from_i32(message.msg_type),
                Some(
                    MessageType::MsgHeartbeatResponse
                        | MessageType::MsgRequestPreVoteResponse
                        | MessageType::MsgReadIndex
                )
            );
            let passes_by_mistake = bugs::on(Bug::AcknowledgesBeforeSync)
                || (bugs::on(Bug::VotesPassTheDisk) && message.msg_type == MessageType::MsgRequestVoteResponse as i32);
            if (passes && term_is_durable && !leads && !new_vote) || passes_by_mistake {
                self.post(message);
            } else {
                self.hold(&mut held, message);
            }
        }
        self.raw.mut_store().trim_fetched();
        let read_states = ready.take_read_states();
        let committed = ready.committed_entries().last().map(|e| e.index);
        let must_write = ready.must_sync() || installed.is_some();
        self.raw.advance_append_async(ready);
        if must_write {
            let entries = (!entries.is_empty()).then_some(entries);
            self.write_ready(number, hard_state, entries, installed, held);
        } else if bugs::on(Bug::ReadyWithoutWriteDoesNotWait) {
            self.out.messages.extend(held);
            self.raw.on_persist_ready(number);
        } else if let Some(held) = self.writes.hold_behind(number, held) {
            // Nothing is being written: it is as durable as it will be.
            self.raw.on_persist_ready(number);
            self.out.messages.extend(held);
        }
        self.reads_confirmed(read_states);
        if let Some(upto) = committed {
            self.hand_over(upto);
        }
    }

    pub(super) fn post(&mut self, message: Message) {
        let mut now = Vec::new();
        self.hold(&mut now, message);
        self.out.messages.append(&mut now);
    }

    /// Turns raft's message into what is sent; a snapshot goes its own way.
    fn hold(&mut self, held: &mut Vec<Outbound>, message: Message) {
        let to = message.to;
        if message.msg_type == MessageType::MsgSnapshot as i32 {
            self.send_snapshot(message);
        } else if message.msg_type == MessageType::MsgAppend as i32 && self.admits(to) {
            self.hold_append(held, message);
        } else if self.admits(to) {
            held.push(Outbound { to, body: Body::Raft(message) });
        }
    }

    /// Raft names the entries, the tail has them.
    fn hold_append(&mut self, held: &mut Vec<Outbound>, mut head: Message) {
        let skeletons = std::mem::take(&mut head.entries);
        let to = head.to;
        match self.raw.store().run(&skeletons) {
            Some(run) => {
                let appends = Append { head, run }.split(self.config.max_size_per_msg);
                held.extend(appends.into_iter().map(|append| Outbound { to, body: Body::Append(append) }));
            }
            // Overwritten or compacted since raft meant to send them: it looks again where that peer stands.
            None => self.raw.report_unreachable(to),
        }
    }

    /// Entries raft has just put into the log: what they say about time and founding counts from now on.
    fn note_appended(&mut self, entries: &[Entry]) {
        for entry in entries {
            if let Some(context) = Context::of(entry) {
                self.newest_time_us = self.newest_time_us.max(context.time_us);
                if context.kind == Kind::Founding && self.cluster.incarnation.is_empty() {
                    self.greetings.set_heard(founding::founding_of(entry));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::Entry;

    use super::*;
    use crate::core::forward_tests::follower;
    use crate::core::test_cores::message;

    /// What leaves now, and the number of what is written.
    fn polled(core: &mut Core) -> (Vec<MessageType>, Option<u64>) {
        let actions = core.poll();
        let kind = |message: &Outbound| match &message.body {
            Body::Raft(raft) => MessageType::from_i32(raft.msg_type).unwrap(),
            other => panic!("{other:?}"),
        };
        (actions.messages.iter().map(kind).collect(), actions.writes.last().map(|write| write.number))
    }

    #[test]
    fn s2_heartbeats_of_a_durable_term_pass_the_disk_and_nothing_else_does() {
        use MessageType::{MsgAppend, MsgAppendResponse, MsgHeartbeat, MsgHeartbeatResponse};
        let mut core = follower();
        polled(&mut core);
        let term = core.term() + 1;
        core.receive(2, message(MsgHeartbeat, 2, term));
        let (left, write) = polled(&mut core);
        assert!(left.is_empty(), "its term is not on the disk: {left:?}");
        core.receive(2, message(MsgHeartbeat, 2, term));
        assert_eq!(polled(&mut core), (vec![], None), "nor is it with the next one");
        core.written(write.unwrap());
        assert_eq!(polled(&mut core).0, [MsgHeartbeatResponse, MsgHeartbeatResponse]);

        let (index, log_term) = (core.raw.raft.raft_log.last_index(), core.raw.raft.raft_log.last_term());
        let entries = vec![Entry { term, index: index + 1, ..Entry::default() }];
        core.receive(2, Message { index, log_term, entries, ..message(MsgAppend, 2, term) });
        let (left, write) = polled(&mut core);
        assert!(left.is_empty(), "{left:?}");
        core.receive(2, message(MsgHeartbeat, 2, term));
        assert_eq!(polled(&mut core).0, [MsgHeartbeatResponse], "a slow disk topples nobody");
        core.written(write.unwrap());
        assert_eq!(polled(&mut core).0, [MsgAppendResponse]);
    }
}
