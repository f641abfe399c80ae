//! What nodes and clients say to each other. Encoded with prost: a newer version may add fields that an older one skips (N-1).
//!
//! Peer streams carry [`Frame`]s; the first thing on a stream is a [`Hello`], answered by a [`Welcome`] before anything else counts.

use bytes::Bytes;

use crate::cluster::Member;
use crate::request::InSession;

/// Raised only when an older node could no longer follow.
pub const PROTOCOL_VERSION: u32 = 1;

/// First words of a stream, and of its answer: who speaks, and from which directory (S11).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
    /// Who the speaker believes to have reached.
    #[prost(uint64, tag = "3")]
    pub to: u64,
    #[prost(string, tag = "4")]
    pub addr: String,
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "5")]
    pub directory: Vec<u8>,
    #[prost(uint64, tag = "6")]
    pub digest: u64,
    /// 16 bytes, or none while the cluster is not founded (for the speaker).
    #[prost(bytes = "vec", tag = "7")]
    pub incarnation: Vec<u8>,
    /// Nothing was ever written there: no term, no vote, no entry.
    #[prost(bool, tag = "8")]
    pub fresh: bool,
    /// The directory that the speaker's log records for the listener, 16 bytes; none if it records none.
    #[prost(bytes = "vec", tag = "9")]
    pub recorded: Vec<u8>,
    /// Drawn at the speaker's start.
    #[prost(uint64, tag = "10")]
    pub start: u64,
    /// What the stream is for: a [`StreamKind`]. Set by the transport.
    #[prost(enumeration = "StreamKind", tag = "11")]
    pub kind: i32,
    /// The speaker knows that it was removed from its cluster.
    #[prost(bool, tag = "12")]
    pub removed: bool,
}

/// What a stream between two nodes carries. Each has a connection of its own, so that none waits behind another (S18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum StreamKind {
    Control = 0,
    Bulk = 1,
    Snapshot = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Verdict {
    /// Frames may follow.
    Accepted = 0,
    /// Not now: ask again (for instance: not recorded yet).
    Later = 1,
    /// Another cluster.
    ClusterMismatch = 2,
    /// This id is recorded with another directory: it was wiped.
    WrongDirectory = 3,
    /// This id was removed by an entry of the log.
    Removed = 4,
    /// You reached somebody else.
    WrongNode = 5,
    /// No common protocol version.
    Version = 6,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    #[prost(enumeration = "Verdict", tag = "1")]
    pub verdict: i32,
    #[prost(string, tag = "2")]
    pub reason: String,
    #[prost(message, optional, tag = "3")]
    pub hello: Option<Hello>,
    /// From a node that was removed: the members it knew last, for one that knows none of them and may have been removed as well.
    #[prost(message, repeated, tag = "4")]
    pub members: Vec<Member>,
}

/// One batch on a peer stream. Its checksum lies in the envelope of every message (`transport::envelope`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Frame {
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<Item>,
}

/// One thing in a frame: exactly one of its fields is set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Item {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5")]
    pub body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// A raft message (eraftpb.Message, encoded).
    #[prost(bytes = "bytes", tag = "1")]
    Raft(Bytes),
    #[prost(message, tag = "2")]
    Forward(Forward),
    #[prost(message, tag = "3")]
    ForwardAnswer(ForwardAnswer),
    #[prost(message, tag = "4")]
    OutcomeReport(OutcomeReport),
    #[prost(message, tag = "5")]
    OutcomeAnswer(OutcomeAnswer),
}

/// Proposals of a follower for its leader (S15). Taken only by the leader of exactly this term; a number is taken once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Forward {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// The proposer's start number.
    #[prost(uint64, tag = "2")]
    pub start: u64,
    /// Rises with each forward of this start.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    #[prost(message, repeated, tag = "4")]
    pub proposals: Vec<ForwardedProposal>,
    /// The start number of the leader's process that it is meant for: only that one may say that it has not taken it.
    #[prost(uint64, tag = "5")]
    pub to_start: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardedProposal {
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
    /// 0: a command. Others: `core::entry::Kind`.
    #[prost(uint32, tag = "3")]
    pub kind: u32,
    /// Of a command within a session.
    #[prost(message, optional, tag = "4")]
    pub place: Option<ForwardedPlace>,
}

/// An [`InSession`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ForwardedPlace {
    #[prost(uint64, tag = "1")]
    pub session: u64,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    #[prost(uint64, tag = "3")]
    pub first_open: u64,
}

impl From<InSession> for ForwardedPlace {
    fn from(InSession { session, sequence, first_open }: InSession) -> Self {
        ForwardedPlace { session, sequence, first_open }
    }
}

impl From<ForwardedPlace> for InSession {
    fn from(ForwardedPlace { session, sequence, first_open }: ForwardedPlace) -> Self {
        InSession { session, sequence, first_open }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardAnswer {
    #[prost(uint64, tag = "1")]
    pub start: u64,
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// Taken: the proposals stand at `first_index`.. in `term`. Otherwise certainly not appended.
    #[prost(bool, tag = "3")]
    pub taken: bool,
    #[prost(uint64, tag = "4")]
    pub first_index: u64,
    #[prost(uint64, tag = "5")]
    pub term: u64,
    /// An [`crate::ErrorCode`] for a refusal that should reach the caller (overload, a refused membership change); 0: try again.
    #[prost(int32, tag = "6")]
    pub code: i32,
    #[prost(string, tag = "7")]
    pub message: String,
    /// With `first_index` 0: the cluster was as asked at this index.
    #[prost(uint64, tag = "8")]
    pub already_at: u64,
    /// Of a refusal: asking again comes to the same.
    #[prost(bool, tag = "9")]
    pub lasting: bool,
}

/// What commands came to on a follower, for its leader to compare (S17): the running sum after some indexes, ascending.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OutcomeReport {
    /// The leader's.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(message, repeated, tag = "2")]
    pub sums: Vec<OutcomeMark>,
    /// Asked for by [`OutcomeAnswer::details_for`]: the sums after each event of that index's window, up to it, known from
    /// `details_from` on. 0: none.
    #[prost(uint64, tag = "3")]
    pub details_for: u64,
    #[prost(uint64, tag = "4")]
    pub details_from: u64,
    #[prost(message, repeated, tag = "5")]
    pub details: Vec<OutcomeMark>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct OutcomeMark {
    #[prost(uint64, tag = "1")]
    pub index: u64,
    #[prost(fixed64, tag = "2")]
    pub sum: u64,
}

/// What the leader found.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct OutcomeAnswer {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Compared up to here.
    #[prost(uint64, tag = "2")]
    pub upto: u64,
    /// The sum after this index differs: send the events before it. 0: none.
    #[prost(uint64, tag = "3")]
    pub details_for: u64,
    /// The receiver is the minority from this index on: it stops. 0: it is not.
    #[prost(uint64, tag = "4")]
    pub diverged_at: u64,
}

/// Ahead of a snapshot's chunks: what it is. The receiver makes the file whole before raft hears of it (S6).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotHeader {
    #[prost(uint64, tag = "1")]
    pub index: u64,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub size: u64,
    #[prost(uint32, tag = "4")]
    pub crc: u32,
    #[prost(message, optional, tag = "5")]
    pub cluster: Option<crate::cluster::ClusterState>,
    /// False: no state, the cluster record alone.
    #[prost(bool, tag = "6")]
    pub has_file: bool,
    /// The running sum of outcomes at `index`, if the sender knows it (S17).
    #[prost(fixed64, optional, tag = "7")]
    pub outcomes: Option<u64>,
    /// Bytes at the end of `size` that are the table of client sessions.
    #[prost(uint64, tag = "8")]
    pub sessions: u64,
}

/// From the sender of a snapshot, in this order: the stream's [`Hello`], one [`SnapshotOpen`], chunks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotUp {
    #[prost(oneof = "SnapshotUpBody", tags = "1, 2, 3")]
    pub body: Option<SnapshotUpBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum SnapshotUpBody {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Open(SnapshotOpen),
    #[prost(message, tag = "3")]
    Chunk(SnapshotChunk),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotOpen {
    #[prost(message, optional, tag = "1")]
    pub header: Option<SnapshotHeader>,
    /// The MsgSnapshot (eraftpb.Message, encoded), given to raft once the file is whole.
    #[prost(bytes = "vec", tag = "2")]
    pub raft_message: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotChunk {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

/// From the receiver of a snapshot: Welcome, Resume, then Working now and then, at last Done or Refused.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotDown {
    #[prost(oneof = "SnapshotDownBody", tags = "1, 2, 3, 4, 5")]
    pub body: Option<SnapshotDownBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum SnapshotDownBody {
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// Send from this offset on.
    #[prost(uint64, tag = "2")]
    Resume(u64),
    /// Still at it (a slow disk); bytes written so far.
    #[prost(uint64, tag = "3")]
    Working(u64),
    /// The file is whole, checked and durable.
    #[prost(bool, tag = "4")]
    Done(bool),
    /// Not taken, or broken off: why.
    #[prost(string, tag = "5")]
    Refused(String),
}

/// The context of a membership entry: the records of the members it adds or changes, and who asked.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MembershipContext {
    #[prost(message, repeated, tag = "1")]
    pub members: Vec<Member>,
}
