//! What the core asks its shell to do. Nothing in here is optional: a shell that drops one breaks a promise, except messages, which may be lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::eraftpb::Message;

use super::run::Append;
use crate::cluster::NodeId;
use crate::log::{LogWrite, SnapshotMeta};
use crate::machine::MachineRequest;
use crate::request::Completion;
use crate::status::Event;
use crate::wire::{Forward, ForwardAnswer, OutcomeAnswer, OutcomeReport};

// Nearly all of them are raft's: a box for each would cost more than it saves.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum Body {
    /// Any message of raft's but an append.
    Raft(Message),
    Append(Append),
    Forward(Forward),
    ForwardAnswer(ForwardAnswer),
    OutcomeReport(OutcomeReport),
    OutcomeAnswer(OutcomeAnswer),
}

#[derive(Debug)]
pub struct Outbound {
    pub to: NodeId,
    pub body: Body,
}

impl Body {
    /// As a peer sees it: an append is a message of raft's like any other.
    pub fn whole(self) -> Body {
        match self {
            Body::Append(append) => Body::Raft(append.received().into()),
            other => other,
        }
    }
}

/// Read entries from the disk; the answer names `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub id: u64,
    pub low: u64,
    pub high: u64,
    pub max_bytes: u64,
}

/// Send a snapshot's file, then the message that lets raft know of it.
#[derive(Debug)]
pub struct SnapshotSend {
    pub to: NodeId,
    pub meta: Arc<SnapshotMeta>,
    pub message: Message,
}

#[derive(Debug, Default)]
pub struct Actions {
    /// Send now, in order for each peer.
    pub messages: Vec<Outbound>,
    /// Make durable, in order.
    pub writes: Vec<LogWrite>,
    /// Hand to the state machine, in order.
    pub machine: Vec<MachineRequest>,
    pub fetches: Vec<Fetch>,
    pub snapshot_sends: Vec<SnapshotSend>,
    /// Break off the snapshots on their way to these (S19).
    pub cancel_sends: Vec<NodeId>,
    /// The log names this snapshot now; older files may go (S6).
    pub prune: Option<Arc<SnapshotMeta>>,
    pub completions: Vec<Completion>,
    pub events: Vec<Event>,
    /// Whom to dial from now on.
    pub peers: Option<BTreeMap<NodeId, String>>,
    /// What this node says of itself has changed.
    pub hello_changed: bool,
    /// Close the streams of these, both ways; who is still to be dialled is greeted anew.
    pub disconnect: Vec<NodeId>,
    /// The state machine stands where the snapshot at start left it (told once).
    pub restored: bool,
    /// The node ends here: removed, failed.
    pub stop: Option<crate::error::Result<()>>,
}
