//! The replicated facts about the cluster itself: members, ids, incarnation. Changed only by entries of the log, in order; carried by snapshots.
//!
//! Encoded with prost, so a newer version may add fields that an older one skips.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::ConfState;

/// A node's number: above 0, never handed out twice within one cluster.
pub type NodeId = u64;

/// Random identity of a directory (born with it) or of a cluster (fixed by its first entry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(pub u128);

impl Uid {
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }

    /// `None` unless it is exactly 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Uid(u128::from_be_bytes(bytes.try_into().ok()?)))
    }
}

impl std::fmt::Display for Uid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One member as the log knows it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Member {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// host:port that the others dial.
    #[prost(string, tag = "2")]
    pub addr: String,
    /// The directory this id lives in; empty until an entry has recorded it (S11).
    #[prost(bytes = "vec", tag = "3")]
    pub directory: Vec<u8>,
    /// A learner that becomes a voter by itself once it has caught up.
    #[prost(bool, tag = "4")]
    pub promote: bool,
}

/// The cluster's own state at one index of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterState {
    #[prost(message, repeated, tag = "1")]
    members: Vec<Member>,
    #[prost(uint64, repeated, tag = "2")]
    pub voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    pub voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    pub learners_next: Vec<u64>,
    #[prost(bool, tag = "6")]
    pub auto_leave: bool,
    /// Every id ever used or named lies below this one (S12).
    #[prost(uint64, tag = "7")]
    pub next_id: u64,
    /// Ids that were removed: spent for good (S12).
    #[prost(uint64, repeated, tag = "8")]
    pub removed: Vec<u64>,
    /// Random number of this cluster, 16 bytes; empty until its first entry is applied (S11).
    #[prost(bytes = "vec", tag = "9")]
    pub incarnation: Vec<u8>,
    /// The leader's clock at the newest entry, microseconds since 1970; never goes back in the log.
    #[prost(uint64, tag = "10")]
    pub time_us: u64,
    /// The bytes that commands above this index return are compared (S17). 0: only whether they raised.
    #[prost(uint64, tag = "11")]
    pub verify_results_after: u64,
    /// Digest that the initial members were founded with: also a member that joined later knows a stranger among them (S11). 0: not known.
    #[prost(uint64, tag = "12")]
    pub founding_digest: u64,
    /// A client session was opened some time: who skips a replay has to look at what it skips.
    #[prost(bool, tag = "13")]
    pub sessions: bool,
}

impl ClusterState {
    /// The state before the first entry of a cluster with these initial voters.
    pub fn founding(initial: &BTreeMap<NodeId, String>) -> Self {
        Self::founding_with(initial, &BTreeSet::new())
    }

    /// The same, of whom these begin as learners.
    pub fn founding_with(initial: &BTreeMap<NodeId, String>, learners: &BTreeSet<NodeId>) -> Self {
        let (learners, voters) = initial.keys().copied().partition(|id| learners.contains(id));
        ClusterState {
            members: initial
                .iter()
                .map(|(id, addr)| Member { id: *id, addr: addr.clone(), directory: Vec::new(), promote: false })
                .collect(),
            voters,
            learners,
            next_id: initial.keys().max().copied().unwrap_or(0).saturating_add(1),
            ..Default::default()
        }
    }

    pub fn conf_state(&self) -> ConfState {
        ConfState {
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            voters_outgoing: self.voters_outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: self.auto_leave,
        }
    }

    /// Raft keeps sets: their order differs from node to node, that of a state must not.
    pub fn set_conf_state(&mut self, conf: &ConfState) {
        let sorted = |ids: &[NodeId]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        self.voters = sorted(&conf.voters);
        self.learners = sorted(&conf.learners);
        self.voters_outgoing = sorted(&conf.voters_outgoing);
        self.learners_next = sorted(&conf.learners_next);
        self.auto_leave = conf.auto_leave;
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.iter().find(|m| m.id == id)
    }

    pub fn member_mut(&mut self, id: NodeId) -> Option<&mut Member> {
        self.members.iter_mut().find(|m| m.id == id)
    }

    pub fn member_at(&self, addr: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.addr == addr)
    }

    /// Adds or replaces the record of one member; the id counts as used from now on.
    pub fn put_member(&mut self, member: Member) {
        self.next_id = self.next_id.max(member.id.saturating_add(1));
        match self.member_mut(member.id) {
            Some(present) => *present = member,
            None => {
                self.members.push(member);
                self.members.sort_by_key(|m| m.id);
            }
        }
    }

    /// Records a removal: the id is spent.
    pub fn drop_member(&mut self, id: NodeId) {
        self.members.retain(|m| m.id != id);
        if !self.removed.contains(&id) {
            self.removed.push(id);
        }
    }

    pub fn is_removed(&self, id: NodeId) -> bool {
        self.removed.contains(&id)
    }

    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains(&id)
    }

    pub fn is_learner(&self, id: NodeId) -> bool {
        self.learners.contains(&id) || self.learners_next.contains(&id)
    }

    /// In joint consensus: two configurations at once, left again by an entry of its own.
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    pub fn incarnation(&self) -> Option<Uid> {
        Uid::from_bytes(&self.incarnation)
    }

    pub fn recorded_directory(&self, id: NodeId) -> Option<Uid> {
        Uid::from_bytes(&self.member(id)?.directory)
    }
}
