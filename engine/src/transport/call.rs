//! [`Request`], [`Reply`] and [`Error`] as they travel in the method `Call`, and their conversions.
//!
//! Whatever a newer version sends that is not known here becomes a typed error, never a guess.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message;

use super::limits;
use crate::cluster::ClusterState;
use crate::error::{Committed, Error, ErrorCode, Result};
use crate::request::{InSession, MemberChange, Reply, Request, SnapshotInfo, Ticket, Timeout, MAX_CHANGES};

/// Largest answer to a call; what `apply` returned above it is said to be lost on the way.
pub const MAX_REPLY: usize = 64 << 20;
/// Largest encoded ticket or cluster state in an answer: their many small parts take more memory than their bytes.
const MAX_RECORD: usize = 4 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct CallWire {
    /// None: no deadline.
    #[prost(uint64, optional, tag = "1")]
    timeout_ms: Option<u64>,
    #[prost(oneof = "RequestWire", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23")]
    request: Option<RequestWire>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum RequestWire {
    #[prost(bytes, tag = "10")]
    Propose(Vec<u8>),
    #[prost(message, tag = "11")]
    Read(()),
    #[prost(string, tag = "12")]
    ReserveId(String),
    #[prost(message, tag = "13")]
    Join(JoinWire),
    #[prost(message, tag = "14")]
    ChangeMembers(ChangesWire),
    #[prost(message, tag = "15")]
    Leave(()),
    /// 0: the one most up to date.
    #[prost(uint64, tag = "16")]
    TransferLeader(u64),
    #[prost(message, tag = "17")]
    StepDown(()),
    #[prost(message, tag = "18")]
    Snapshot(()),
    #[prost(message, tag = "19")]
    Status(()),
    #[prost(bytes, tag = "20")]
    Message(Vec<u8>),
    #[prost(message, tag = "21")]
    ProposeInSession(InSessionWire),
    #[prost(message, tag = "22")]
    OpenSession(()),
    #[prost(uint64, tag = "23")]
    CloseSession(u64),
}

#[derive(Clone, PartialEq, prost::Message)]
struct InSessionWire {
    #[prost(uint64, tag = "1")]
    session: u64,
    #[prost(uint64, tag = "2")]
    sequence: u64,
    #[prost(uint64, tag = "3")]
    first_open: u64,
    #[prost(bytes = "vec", tag = "4")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct JoinWire {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    addr: String,
    #[prost(bytes = "vec", tag = "3")]
    directory: Vec<u8>,
    #[prost(bool, tag = "4")]
    learner: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ChangesWire {
    #[prost(message, repeated, tag = "1")]
    changes: Vec<ChangeWire>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum ChangeKind {
    None = 0,
    Add = 1,
    AddLearner = 2,
    Promote = 3,
    Demote = 4,
    Remove = 5,
    UpdateAddress = 6,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ChangeWire {
    #[prost(enumeration = "ChangeKind", tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(string, tag = "3")]
    addr: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnswerWire {
    #[prost(oneof = "ReplyWire", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 15")]
    reply: Option<ReplyWire>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ReplyWire {
    #[prost(message, tag = "1")]
    Applied(AppliedWire),
    #[prost(uint64, tag = "2")]
    ReadIndex(u64),
    #[prost(message, tag = "3")]
    Ticket(TicketWire),
    #[prost(message, tag = "4")]
    Cluster(ClusterState),
    #[prost(message, tag = "5")]
    Snapshot(SnapshotWire),
    #[prost(uint64, tag = "6")]
    Leader(u64),
    #[prost(string, tag = "7")]
    Text(String),
    #[prost(message, tag = "8")]
    Done(()),
    #[prost(uint64, tag = "9")]
    Session(u64),
    #[prost(message, tag = "15")]
    Error(ErrorWire),
}

#[derive(Clone, PartialEq, prost::Message)]
struct AppliedWire {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(bytes = "vec", tag = "3")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TicketWire {
    #[prost(uint64, tag = "1")]
    reserved_id: u64,
    #[prost(string, tag = "2")]
    raft_addr: String,
    #[prost(uint64, tag = "3")]
    leader_id: u64,
    #[prost(string, tag = "4")]
    leader_addr: String,
    #[prost(btree_map = "uint64, string", tag = "5")]
    peers: BTreeMap<u64, String>,
    #[prost(string, tag = "6")]
    incarnation: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SnapshotWire {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    size: u64,
    #[prost(string, tag = "4")]
    path: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ErrorWire {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    /// 0: nobody can say, 1: yes, 2: certainly not.
    #[prost(uint32, tag = "3")]
    committed: u32,
    #[prost(uint64, tag = "4")]
    leader_id: u64,
    #[prost(string, optional, tag = "5")]
    leader_addr: Option<String>,
    #[prost(uint64, optional, tag = "6")]
    index: Option<u64>,
    #[prost(string, optional, tag = "7")]
    field: Option<String>,
    /// On the node that answered.
    #[prost(string, optional, tag = "8")]
    path: Option<String>,
    #[prost(bool, tag = "9")]
    lasting: bool,
}

/// A request with the time the node may take; `None`: as long as it needs.
pub fn encode_call(request: &Request, timeout: Option<Duration>) -> Vec<u8> {
    let timeout_ms = timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX).max(1));
    CallWire { timeout_ms, request: Some(request_to_wire(request)) }.encode_to_vec()
}

/// What a client asks. The error says what is wrong with it and can be answered to it.
pub fn decode_call(bytes: &[u8]) -> Result<(Request, Timeout)> {
    let bad = |_| Error::not_done(ErrorCode::InvalidArgument, "the request is not well formed");
    let mut changes = 0usize;
    limits::walk(bytes, &mut |tag, body| match tag {
        14 => limits::walk(body, &mut |_, _| {
            changes = changes.saturating_add(1);
            Ok(())
        }),
        _ => Ok(()),
    })
    .map_err(bad)?;
    if changes > MAX_CHANGES {
        return Err(Error::not_done(
            ErrorCode::InvalidArgument,
            format!("{changes} membership changes in one request; at most {MAX_CHANGES}"),
        ));
    }
    let call = CallWire::decode(bytes).map_err(|_| bad(tonic::Status::internal("")))?;
    let timeout = call.timeout_ms.map_or(Timeout::None, |ms| Timeout::After(Duration::from_millis(ms)));
    let request = call.request.ok_or_else(|| {
        Error::not_done(
            ErrorCode::InvalidArgument,
            "this node does not know the request; it may be of an older version",
        )
    })?;
    Ok((request_from_wire(request)?, timeout))
}

pub fn encode_answer(answer: &Result<Reply>) -> Vec<u8> {
    let reply = match answer {
        Ok(reply) => reply_to_wire(reply),
        Err(error) => ReplyWire::Error(error_to_wire(error)),
    };
    let bytes = AnswerWire { reply: Some(reply) }.encode_to_vec();
    if bytes.len() <= MAX_REPLY {
        return bytes;
    }
    let lost = Error::new(
        ErrorCode::ResultLost,
        match answer {
            Ok(_) => Committed::Yes,
            Err(error) => error.committed,
        },
        format!("the result of {} bytes is above the {MAX_REPLY} that an answer carries", bytes.len()),
    )
    .lasting();
    AnswerWire { reply: Some(ReplyWire::Error(error_to_wire(&lost))) }.encode_to_vec()
}

/// The outer error: the answer itself cannot be understood, so nobody can say what was done.
pub fn decode_answer(bytes: &[u8]) -> Result<Result<Reply>> {
    let unknown = || {
        Error::unknown(ErrorCode::ConnectionFailed, "the node's answer is not known here; it may be of a newer version")
    };
    limits::walk(bytes, &mut |tag, body| match tag {
        3..=5 if body.len() > MAX_RECORD => Err(tonic::Status::out_of_range("")),
        _ => Ok(()),
    })
    .map_err(|_| unknown())?;
    let answer = AnswerWire::decode(bytes).map_err(|_| unknown())?;
    Ok(match answer.reply.ok_or_else(unknown)? {
        ReplyWire::Error(error) => Err(error_from_wire(error)),
        reply => Ok(reply_from_wire(reply).ok_or_else(unknown)?),
    })
}

fn request_to_wire(request: &Request) -> RequestWire {
    match request {
        Request::Propose(data) => RequestWire::Propose(data.to_vec()),
        Request::ProposeInSession(InSession { session, sequence, first_open }, data) => {
            let data = data.to_vec();
            let (session, sequence, first_open) = (*session, *sequence, *first_open);
            RequestWire::ProposeInSession(InSessionWire { session, sequence, first_open, data })
        }
        Request::OpenSession => RequestWire::OpenSession(()),
        Request::CloseSession(session) => RequestWire::CloseSession(*session),
        Request::Read => RequestWire::Read(()),
        Request::ReserveId { addr } => RequestWire::ReserveId(addr.clone()),
        Request::Join { id, addr, directory, learner } => {
            RequestWire::Join(JoinWire { id: *id, addr: addr.clone(), directory: directory.clone(), learner: *learner })
        }
        Request::ChangeMembers(changes) => {
            RequestWire::ChangeMembers(ChangesWire { changes: changes.iter().map(change_to_wire).collect() })
        }
        Request::Leave => RequestWire::Leave(()),
        Request::TransferLeader(to) => RequestWire::TransferLeader(to.unwrap_or(0)),
        Request::StepDown => RequestWire::StepDown(()),
        Request::Snapshot => RequestWire::Snapshot(()),
        Request::Status => RequestWire::Status(()),
        Request::Message(bytes) => RequestWire::Message(bytes.clone()),
    }
}

fn request_from_wire(request: RequestWire) -> Result<Request> {
    Ok(match request {
        RequestWire::Propose(data) => Request::Propose(data.into()),
        RequestWire::ProposeInSession(InSessionWire { session, sequence, first_open, data }) => {
            Request::ProposeInSession(InSession { session, sequence, first_open }, data.into())
        }
        RequestWire::OpenSession(()) => Request::OpenSession,
        RequestWire::CloseSession(session) => Request::CloseSession(session),
        RequestWire::Read(()) => Request::Read,
        RequestWire::ReserveId(addr) => Request::ReserveId { addr },
        RequestWire::Join(JoinWire { id, addr, directory, learner }) => Request::Join { id, addr, directory, learner },
        RequestWire::ChangeMembers(ChangesWire { changes }) => {
            Request::ChangeMembers(changes.into_iter().map(change_from_wire).collect::<Result<_>>()?)
        }
        RequestWire::Leave(()) => Request::Leave,
        RequestWire::TransferLeader(to) => Request::TransferLeader((to != 0).then_some(to)),
        RequestWire::StepDown(()) => Request::StepDown,
        RequestWire::Snapshot(()) => Request::Snapshot,
        RequestWire::Status(()) => Request::Status,
        RequestWire::Message(bytes) => Request::Message(bytes),
    })
}

fn change_to_wire(change: &MemberChange) -> ChangeWire {
    let (kind, id, addr) = match change {
        MemberChange::Add { id, addr, learner: false } => (ChangeKind::Add, *id, addr.clone()),
        MemberChange::Add { id, addr, learner: true } => (ChangeKind::AddLearner, *id, addr.clone()),
        MemberChange::Promote { id } => (ChangeKind::Promote, *id, String::new()),
        MemberChange::Demote { id } => (ChangeKind::Demote, *id, String::new()),
        MemberChange::Remove { id } => (ChangeKind::Remove, *id, String::new()),
        MemberChange::UpdateAddress { id, addr } => (ChangeKind::UpdateAddress, *id, addr.clone()),
    };
    ChangeWire { kind: kind.into(), id, addr }
}

fn change_from_wire(change: ChangeWire) -> Result<MemberChange> {
    let ChangeWire { kind, id, addr } = change;
    match ChangeKind::try_from(kind) {
        Ok(ChangeKind::Add) => Ok(MemberChange::Add { id, addr, learner: false }),
        Ok(ChangeKind::AddLearner) => Ok(MemberChange::Add { id, addr, learner: true }),
        Ok(ChangeKind::Promote) => Ok(MemberChange::Promote { id }),
        Ok(ChangeKind::Demote) => Ok(MemberChange::Demote { id }),
        Ok(ChangeKind::Remove) => Ok(MemberChange::Remove { id }),
        Ok(ChangeKind::UpdateAddress) => Ok(MemberChange::UpdateAddress { id, addr }),
        Ok(ChangeKind::None) | Err(_) => Err(Error::not_done(
            ErrorCode::InvalidArgument,
            format!("membership change of kind {kind} is not known here; this node may be of an older version"),
        )),
    }
}

fn reply_to_wire(reply: &Reply) -> ReplyWire {
    match reply {
        Reply::Applied { index, term, data } => {
            ReplyWire::Applied(AppliedWire { index: *index, term: *term, data: data.clone() })
        }
        Reply::ReadIndex(index) => ReplyWire::ReadIndex(*index),
        Reply::Ticket(t) => ReplyWire::Ticket(TicketWire {
            reserved_id: t.reserved_id,
            raft_addr: t.raft_addr.clone(),
            leader_id: t.leader_id,
            leader_addr: t.leader_addr.clone(),
            peers: t.peers.clone(),
            incarnation: t.incarnation.clone(),
        }),
        Reply::Cluster(cluster) => ReplyWire::Cluster((**cluster).clone()),
        Reply::Snapshot(s) => {
            ReplyWire::Snapshot(SnapshotWire { index: s.index, term: s.term, size: s.size, path: s.path.clone() })
        }
        Reply::Session(session) => ReplyWire::Session(*session),
        Reply::Leader(id) => ReplyWire::Leader(*id),
        Reply::Text(text) => ReplyWire::Text(text.clone()),
        Reply::Done => ReplyWire::Done(()),
    }
}

fn reply_from_wire(reply: ReplyWire) -> Option<Reply> {
    Some(match reply {
        ReplyWire::Applied(AppliedWire { index, term, data }) => Reply::Applied { index, term, data },
        ReplyWire::ReadIndex(index) => Reply::ReadIndex(index),
        ReplyWire::Ticket(t) => Reply::Ticket(Ticket {
            reserved_id: t.reserved_id,
            raft_addr: t.raft_addr,
            leader_id: t.leader_id,
            leader_addr: t.leader_addr,
            peers: t.peers,
            incarnation: t.incarnation,
        }),
        ReplyWire::Cluster(cluster) => Reply::Cluster(Box::new(cluster)),
        ReplyWire::Snapshot(s) => {
            Reply::Snapshot(SnapshotInfo { index: s.index, term: s.term, size: s.size, path: s.path })
        }
        ReplyWire::Session(session) => Reply::Session(session),
        ReplyWire::Leader(id) => Reply::Leader(id),
        ReplyWire::Text(text) => Reply::Text(text),
        ReplyWire::Done(()) => Reply::Done,
        ReplyWire::Error(_) => return None,
    })
}

fn error_to_wire(error: &Error) -> ErrorWire {
    let (leader_id, leader_addr) = match &error.leader {
        Some((id, addr)) => (*id, Some(addr.clone())),
        None => (0, None),
    };
    ErrorWire {
        code: error.code as i32,
        message: error.message.clone(),
        committed: match error.committed {
            Committed::Unknown => 0,
            Committed::Yes => 1,
            Committed::No => 2,
        },
        leader_id,
        leader_addr,
        index: error.index,
        field: error.field.clone(),
        path: error.path.as_ref().map(|path| path.to_string_lossy().into_owned()),
        lasting: error.lasting,
    }
}

fn error_from_wire(wire: ErrorWire) -> Error {
    let committed = match wire.committed {
        1 => Committed::Yes,
        2 => Committed::No,
        _ => Committed::Unknown,
    };
    let mut error = match ErrorCode::from_i32(wire.code) {
        Some(code) => Error::new(code, committed, wire.message),
        None => Error::new(
            ErrorCode::Internal,
            committed,
            format!("error number {} of a newer version: {}", wire.code, wire.message),
        ),
    };
    error.leader = wire.leader_addr.map(|addr| (wire.leader_id, addr));
    error.index = wire.index;
    error.field = wire.field;
    error.path = wire.path.map(PathBuf::from);
    error.lasting = wire.lasting;
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Member;
    use proptest::prelude::*;

    fn any_change() -> impl Strategy<Value = MemberChange> {
        (0..5, any::<u64>(), any::<String>(), any::<bool>()).prop_map(|(kind, id, addr, learner)| match kind {
            0 => MemberChange::Add { id, addr, learner },
            1 => MemberChange::Promote { id },
            2 => MemberChange::Demote { id },
            3 => MemberChange::Remove { id },
            _ => MemberChange::UpdateAddress { id, addr },
        })
    }

    fn any_request() -> impl Strategy<Value = Request> {
        prop_oneof![
            any::<Vec<u8>>().prop_map(|data| Request::Propose(data.into())),
            (any::<[u64; 3]>(), any::<Vec<u8>>()).prop_map(|([session, sequence, first_open], data)| {
                Request::ProposeInSession(InSession { session, sequence, first_open }, data.into())
            }),
            Just(Request::OpenSession),
            any::<u64>().prop_map(Request::CloseSession),
            Just(Request::Read),
            any::<String>().prop_map(|addr| Request::ReserveId { addr }),
            (any::<u64>(), any::<String>(), any::<Vec<u8>>(), any::<bool>())
                .prop_map(|(id, addr, directory, learner)| Request::Join { id, addr, directory, learner }),
            prop::collection::vec(any_change(), 0..5).prop_map(Request::ChangeMembers),
            Just(Request::Leave),
            prop::option::of(1..u64::MAX).prop_map(Request::TransferLeader),
            Just(Request::StepDown),
            Just(Request::Snapshot),
            Just(Request::Status),
            proptest::collection::vec(any::<u8>(), 0..64).prop_map(Request::Message),
        ]
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        let text = any::<String>;
        prop_oneof![
            (any::<u64>(), any::<u64>(), any::<Vec<u8>>()).prop_map(|(index, term, data)| Reply::Applied {
                index,
                term,
                data
            }),
            any::<u64>().prop_map(Reply::ReadIndex),
            (any::<[u64; 2]>(), text(), text(), text(), prop::collection::btree_map(any::<u64>(), text(), 0..4))
                .prop_map(|(n, raft_addr, leader_addr, incarnation, peers)| Reply::Ticket(Ticket {
                    reserved_id: n[0],
                    raft_addr,
                    leader_id: n[1],
                    leader_addr,
                    peers,
                    incarnation
                })),
            (any::<u64>(), text(), any::<Vec<u8>>()).prop_map(|(id, addr, directory)| {
                let mut cluster = ClusterState::default();
                cluster.put_member(Member { id, addr, directory, promote: false });
                Reply::Cluster(Box::new(cluster))
            }),
            (any::<[u64; 3]>(), text()).prop_map(|(n, path)| Reply::Snapshot(SnapshotInfo {
                index: n[0],
                term: n[1],
                size: n[2],
                path
            })),
            any::<u64>().prop_map(Reply::Session),
            any::<u64>().prop_map(Reply::Leader),
            text().prop_map(Reply::Text),
            Just(Reply::Done),
        ]
    }

    fn any_error() -> impl Strategy<Value = Error> {
        let text = any::<String>;
        let committed = prop_oneof![Just(Committed::Yes), Just(Committed::No), Just(Committed::Unknown)];
        (
            0..ErrorCode::ALL.len(),
            text(),
            committed,
            prop::option::of((any::<u64>(), text())),
            prop::option::of(any::<u64>()),
            prop::option::of(text()),
            prop::option::of(text()),
            any::<bool>(),
        )
            .prop_map(|(code, message, committed, leader, index, field, path, lasting)| {
                let mut error = Error::new(ErrorCode::ALL[code], committed, message).with_leader(leader);
                error.index = index;
                error.field = field;
                error.path = path.map(PathBuf::from);
                error.lasting = lasting;
                error
            })
    }

    proptest! {
        #[test]
        fn a_request_arrives_as_it_was(request in any_request(), ms in prop::option::of(1..u64::MAX)) {
            let bytes = encode_call(&request, ms.map(Duration::from_millis));
            let timeout = ms.map_or(Timeout::None, |ms| Timeout::After(Duration::from_millis(ms)));
            prop_assert_eq!(decode_call(&bytes).unwrap(), (request, timeout));
        }

        #[test]
        fn an_answer_arrives_as_it_was(answer in prop_oneof![any_reply().prop_map(Ok), any_error().prop_map(Err)]) {
            prop_assert_eq!(decode_answer(&encode_answer(&answer)).unwrap(), answer);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode_call(&bytes);
            let _ = decode_answer(&bytes);
        }
    }

    #[test]
    fn what_a_newer_version_says_becomes_a_typed_error() {
        let unknown_request = CallWire { timeout_ms: None, request: None }.encode_to_vec();
        assert_eq!(decode_call(&unknown_request).unwrap_err().code, ErrorCode::InvalidArgument);
        let change = ChangeWire { kind: 99, id: 1, addr: String::new() };
        let request = Some(RequestWire::ChangeMembers(ChangesWire { changes: vec![change] }));
        let unknown_change = CallWire { timeout_ms: None, request }.encode_to_vec();
        assert_eq!(decode_call(&unknown_change).unwrap_err().committed, Committed::No);
        let error = ErrorWire { code: -9999, committed: 2, ..Default::default() };
        let unknown_code = AnswerWire { reply: Some(ReplyWire::Error(error)) }.encode_to_vec();
        let error = decode_answer(&unknown_code).unwrap().unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::Internal, Committed::No));
        assert_eq!(decode_answer(&[]).unwrap_err().committed, Committed::Unknown);
    }

    #[test]
    fn a_request_with_too_many_changes_is_refused_before_it_is_decoded() {
        let changes = vec![MemberChange::Promote { id: 1 }; MAX_CHANGES + 1];
        let error = decode_call(&encode_call(&Request::ChangeMembers(changes), None)).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }

    #[test]
    fn a_result_too_large_for_an_answer_says_so_and_stays_committed() {
        let answer = Ok(Reply::Applied { index: 1, term: 1, data: vec![0; MAX_REPLY] });
        let error = decode_answer(&encode_answer(&answer)).unwrap().unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::ResultLost, Committed::Yes));
    }
}
