//! Messages are checked before raft sees them: it panics on what cannot be (S16, rules, P7).

use std::collections::BTreeSet;

use raft::eraftpb::{ConfState, MessageType};

use super::entry::is_conf_change;
use super::received::Received;
use super::tail::Tail;
use crate::cluster::NodeId;

/// No log gets this far: what is added to such an index cannot overflow.
const LAST_INDEX: u64 = u64::MAX - (1 << 32);

/// What this node's raft stands at.
pub struct Standing<'a> {
    pub id: NodeId,
    pub term: u64,
    pub commit: u64,
    pub last_index: u64,
    pub leads: bool,
    pub tail: &'a Tail,
    /// The term at an index, also of entries that raft has not handed to the tail yet.
    pub term_at: &'a dyn Fn(u64) -> Option<u64>,
}

/// Why a message must not reach raft; `Ok` for one that may.
pub fn check(received: &Received, from: NodeId, at: &Standing<'_>) -> Result<(), &'static str> {
    let message = &received.head;
    match check_any(received, from, at)? {
        MessageType::MsgAppend => check_append(received, at),
        MessageType::MsgHeartbeat => {
            if message.commit > at.last_index {
                return Err("its commit lies beyond our log");
            }
            Ok(())
        }
        MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => {
            if at.leads && message.term == at.term {
                if message.index > at.last_index && !message.reject {
                    return Err("it acknowledges what was never sent");
                }
                if message.reject && (message.reject_hint > message.index || message.index > at.last_index) {
                    return Err("its hint lies beyond what was sent");
                }
            }
            Ok(())
        }
        MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow => Ok(()),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => match received.entries.as_slice() {
            [entry] if entry.data.len() == 24 => Ok(()),
            _ => Err("its read context is malformed"),
        },
        // A snapshot comes by its own stream, once its file is whole.
        MessageType::MsgSnapshot
        | MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader => Err("its kind never comes over the wire"),
    }
}

/// The same for the message that comes with a snapshot's stream.
pub fn check_snapshot(received: &Received, from: NodeId, at: &Standing<'_>) -> Result<(), &'static str> {
    let message = &received.head;
    if check_any(received, from, at)? != MessageType::MsgSnapshot {
        return Err("its kind is not that of a snapshot");
    }
    if at.leads && message.term == at.term {
        return Err("two leaders in one term");
    }
    let Some(named) = message.snapshot.as_ref().and_then(|s| s.metadata.as_ref()) else {
        return Err("it names no snapshot");
    };
    if named.index == 0 || named.index > LAST_INDEX {
        return Err("its snapshot's index is impossible");
    }
    if named.term == 0 || named.term > message.term {
        return Err("its snapshot's term is impossible");
    }
    if named.index <= at.commit && (at.term_at)(named.index).is_some_and(|term| term != named.term) {
        return Err("its snapshot contradicts a committed entry");
    }
    if !named.conf_state.as_ref().is_some_and(restorable) {
        return Err("its snapshot's members are no configuration");
    }
    Ok(())
}

/// Whether raft makes exactly this configuration of it (its `confchange::restore`, which is not public, and the comparison that follows:
/// it panics on any other).
fn restorable(conf: &ConfState) -> bool {
    let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
    let sets = lists.map(|ids| ids.iter().copied().collect::<BTreeSet<NodeId>>());
    let proper = lists.iter().zip(&sets).all(|(list, set)| list.len() == set.len() && !set.contains(&0));
    let [voters, learners, outgoing, next] = &sets;
    proper
        && !voters.is_empty()
        && learners.is_disjoint(voters)
        && learners.is_disjoint(outgoing)
        && next.is_disjoint(voters)
        && next.is_subset(outgoing)
        && !(conf.auto_leave && outgoing.is_empty())
}

/// What holds for messages of every kind; the kind.
fn check_any(received: &Received, from: NodeId, at: &Standing<'_>) -> Result<MessageType, &'static str> {
    let message = &received.head;
    if message.from != from {
        return Err("it names another sender than its stream");
    }
    if message.to != at.id {
        return Err("it is for another node");
    }
    // Only a forwarded read names no term.
    if (message.term == 0) != (message.msg_type == MessageType::MsgReadIndex as i32) || message.term == u64::MAX {
        return Err("its term is impossible");
    }
    if message.log_term > message.term && message.term != 0 && message.msg_type != MessageType::MsgRequestPreVote as i32
    {
        return Err("its log term is above its term");
    }
    if message.index > LAST_INDEX || message.commit > LAST_INDEX {
        return Err("its index is impossible");
    }
    if message.request_snapshot != 0 {
        return Err("it asks for a snapshot in a way that no node of ours does");
    }
    let Some(kind) = MessageType::from_i32(message.msg_type) else { return Err("its kind is unknown") };
    let only_append =
        !matches!(kind, MessageType::MsgAppend | MessageType::MsgReadIndex | MessageType::MsgReadIndexResp);
    if only_append && !received.entries.is_empty() {
        return Err("it carries entries");
    }
    Ok(kind)
}

fn check_append(received: &Received, at: &Standing<'_>) -> Result<(), &'static str> {
    let message = &received.head;
    if at.leads && message.term == at.term {
        return Err("two leaders in one term");
    }
    if message.term < at.term {
        // Of a deposed leader: raft takes nothing from it, and it may well contradict what is committed by now.
        return Ok(());
    }
    let mut index = message.index;
    let mut term = message.log_term;
    for entry in &received.entries {
        index = index.saturating_add(1);
        if entry.index != index {
            return Err("its entries are not contiguous");
        }
        if entry.term < term || entry.term > message.term {
            return Err("its entries' terms do not ascend");
        }
        if raft::eraftpb::EntryType::from_i32(entry.entry_type).is_none() {
            return Err("an entry's kind is unknown");
        }
        if is_conf_change(entry) && super::conf_change_of(entry).is_none() {
            return Err("a membership entry cannot be read");
        }
        term = entry.term;
        // Raft panics when a leader contradicts what is committed; so does our trust in that leader.
        if index <= at.commit && index >= at.tail.first() && (at.term_at)(index).is_some_and(|t| t != entry.term) {
            return Err("it contradicts a committed entry");
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
