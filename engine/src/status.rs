//! What a node says of itself: one value, the same keys in Python, in JSON and on the command line.

use std::collections::BTreeMap;

use crate::cluster::NodeId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
    /// Not a member yet: waits for the other initial members, or to be joined.
    Waiting,
    Removed,
    Stopped,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PeerStatus {
    pub addr: String,
    /// What the leader knows to be in that peer's log; none on a node that does not lead.
    pub match_index: Option<u64>,
    /// Entries it is behind; none on a node that does not lead.
    pub lag: Option<u64>,
    pub connected: bool,
    /// Seconds since something was heard of it; none if nothing was.
    pub last_seen: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    pub node_id: NodeId,
    pub addr: String,
    pub role: Role,
    pub term: u64,
    pub leader_id: Option<NodeId>,
    pub last_index: u64,
    pub commit_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    pub peers: BTreeMap<NodeId, PeerStatus>,
    /// What ended the node.
    pub error: Option<String>,
}

/// Something a program may want to react to.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    LeaderChanged {
        term: u64,
        leader_id: Option<NodeId>,
    },
    RoleChanged {
        term: u64,
        role: Role,
    },
    MembersChanged {
        index: u64,
        voters: Vec<NodeId>,
        learners: Vec<NodeId>,
        addresses: BTreeMap<NodeId, String>,
    },
    SnapshotTaken {
        index: u64,
        size: u64,
    },
    SnapshotInstalled {
        index: u64,
        size: u64,
    },
    SnapshotFailed {
        index: u64,
        reason: String,
    },
    /// At start: the file of the snapshot at `index`, which the log names, is damaged or missing; the older one at `stands_in` is
    /// restored, from which the log goes on without a gap (S6). Nothing is lost, and the next snapshot takes the place of both.
    SnapshotDamaged {
        index: u64,
        stands_in: u64,
        reason: String,
    },
    /// A snapshot on its way to a peer was given up; a newer one follows (S19).
    SnapshotNotSent {
        peer: NodeId,
        index: u64,
        reason: String,
    },
    /// A peer was refused, or refuses us, for good.
    PeerRefused {
        peer: NodeId,
        reason: String,
    },
    /// The disk does not answer; the node leads no longer until it does (S4).
    DiskHung {
        millis: u64,
    },
    DiskRecovered,
    /// The commands of this node came to something else than the majority's, first at this index; it stops (S17).
    StateDiverged {
        node_id: NodeId,
        index: u64,
    },
}
