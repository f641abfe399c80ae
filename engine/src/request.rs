//! What can be asked of a node, locally or by a client over the wire, and what it answers.

use bytes::Bytes;

use crate::cluster::{ClusterState, NodeId};
use crate::error::Error;

/// Caller's name for a pending request. Drawn by the caller; echoed in its completion.
pub type Token = u64;

/// Changes in one membership request: what it takes to plan them grows with their square.
pub(crate) const MAX_CHANGES: usize = 1024;

/// One change of membership; several in one request are one step (joint consensus).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A voter is first a learner and is promoted once it has caught up.
    Add {
        id: NodeId,
        addr: String,
        learner: bool,
    },
    Promote {
        id: NodeId,
    },
    /// A voter becomes a learner.
    Demote {
        id: NodeId,
    },
    Remove {
        id: NodeId,
    },
    UpdateAddress {
        id: NodeId,
        addr: String,
    },
}

/// Commands of one session above its first open one; part of the protocol.
pub(crate) const SESSION_WINDOW: u64 = 1024;

/// Where a command stands within its client's session, which makes it count once however often it is sent (Raft thesis §6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InSession {
    /// What [`Request::OpenSession`] was answered with.
    pub session: u64,
    /// Of the command within its session; the same each time it is sent.
    pub sequence: u64,
    /// The lowest one that the client still waits for: what is known of those below is let go of, and none of them is applied any more.
    pub first_open: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Replicate this command; answered with what `apply` returned here.
    Propose(Bytes),
    /// The same within a session: applied once, and answered each time with what that came to.
    ProposeInSession(InSession, Bytes),
    /// Begin a session; answered with its number.
    OpenSession,
    /// The client needs this session no longer.
    CloseSession(u64),
    /// Answered when everything acknowledged anywhere before the call is applied here.
    Read,
    /// Reserve an id for the node at this address (or learn the id it has).
    ReserveId {
        addr: String,
    },
    /// Make the node at `addr` a voter: as a learner first, promoted when it has caught up.
    Join {
        id: NodeId,
        addr: String,
        directory: Vec<u8>,
        learner: bool,
    },
    ChangeMembers(Vec<MemberChange>),
    /// Leave the cluster for good.
    Leave,
    /// To this node, or to the one that is most up to date.
    TransferLeader(Option<NodeId>),
    /// Give up leadership without naming a successor.
    StepDown,
    /// Take a snapshot now.
    Snapshot,
    /// The node's status as JSON.
    Status,
    /// A raft message (eraftpb.Message, encoded), as if it had come over the wire; checked like one. For programs written for
    /// earlier releases; nothing new should need it.
    Message(Vec<u8>),
}

impl Request {
    /// Of the command that it carries, if any.
    pub fn command_bytes(&self) -> usize {
        match self {
            Request::Propose(data) | Request::ProposeInSession(_, data) => data.len(),
            _ => 0,
        }
    }
}

/// A ticket: the id that was reserved, and where the cluster is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ticket {
    pub reserved_id: NodeId,
    /// The address it was reserved for; empty if none was named.
    #[serde(default)]
    pub raft_addr: String,
    pub leader_id: NodeId,
    pub leader_addr: String,
    pub peers: std::collections::BTreeMap<NodeId, String>,
    /// Hexadecimal number of the cluster (S11).
    pub incarnation: String,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SnapshotInfo {
    pub index: u64,
    pub term: u64,
    pub size: u64,
    pub path: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Of a proposal: what `apply` returned, and where the entry stands.
    Applied {
        index: u64,
        term: u64,
        data: Vec<u8>,
    },
    /// Of a read: everything up to `index` is applied.
    ReadIndex(u64),
    Ticket(Ticket),
    /// Of a membership change: the cluster after it.
    Cluster(Box<ClusterState>),
    Snapshot(SnapshotInfo),
    /// Of `OpenSession`.
    Session(u64),
    /// Of a leader transfer: the new leader.
    Leader(NodeId),
    /// Of `Status`: JSON.
    Text(String),
    Done,
}

/// The one answer to a request.
#[derive(Clone, Debug)]
pub struct Completion {
    pub token: Token,
    pub result: Result<Reply, Error>,
}

/// How long a call may take. Every call ends by its deadline; with `None` it still ends when its fate is decided or the node closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// The configured default of its kind.
    Default,
    None,
    After(std::time::Duration),
}
