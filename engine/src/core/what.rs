//! What a request asks for, and the form in which it goes to a leader's log.

use bytes::Bytes;

use super::entry::Kind;
use super::membership::Change;
use crate::cluster::NodeId;
use crate::request::InSession;

/// What is to be done. The payload stays until it has been handed to a leader for good.
#[derive(Debug)]
pub(super) enum What {
    Command(Bytes),
    InSession(InSession, Bytes),
    OpenSession,
    CloseSession(u64),
    ReserveId(String),
    Change(Change),
    Transfer(NodeId),
    Read,
    /// This node waits to become a voter.
    BecomeMember,
    Snapshot,
}

/// A request as a leader is handed it: by this node in its own log, or by a forward.
pub(super) struct Handed {
    pub kind: Kind,
    pub data: Bytes,
    pub place: Option<InSession>,
}

impl Handed {
    /// The leader decides what comes of it: it shares neither a batch nor a message with others.
    pub fn goes_alone(&self) -> bool {
        matches!(self.kind, Kind::ChangeMembers | Kind::TransferLeader)
    }
}

impl What {
    /// Bytes of the user's command in it.
    pub fn command_len(&self) -> u64 {
        match self {
            What::Command(data) | What::InSession(_, data) => data.len() as u64,
            _ => 0,
        }
    }

    /// `None` for what no log is asked for. `hand_over` takes a command's bytes, or shares them when they may have to be sent again.
    pub fn handed(&mut self, hand_over: impl FnOnce(&mut Bytes) -> Bytes) -> Option<Handed> {
        let mut place = None;
        let (kind, data) = match self {
            What::Command(data) => (Kind::Command, hand_over(data)),
            What::InSession(at, data) => {
                place = Some(*at);
                (Kind::CommandInSession, hand_over(data))
            }
            What::OpenSession => (Kind::OpenSession, Bytes::new()),
            What::CloseSession(session) => (Kind::CloseSession, Bytes::copy_from_slice(&session.to_le_bytes())),
            What::ReserveId(addr) => (Kind::ReserveId, addr.clone().into_bytes().into()),
            What::Change(change) => (Kind::ChangeMembers, prost::Message::encode_to_vec(change).into()),
            What::Transfer(to) => (Kind::TransferLeader, Bytes::copy_from_slice(&to.to_le_bytes())),
            What::Read | What::BecomeMember | What::Snapshot => return None,
        };
        Some(Handed { kind, data, place })
    }
}
