//! What the library writes around a command: who proposed it, when, and what kind it is (the context of a raft entry).

use raft::eraftpb::EntryType;

use crate::cluster::NodeId;
use crate::entry::{Entry, EntryContext};
use crate::request::InSession;

/// Identity of a proposal: unique for ever, whatever node or start it came from (rules, P3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    pub node: NodeId,
    /// Drawn at that node's start.
    pub start: u64,
    pub sequence: u64,
}

/// What a normal entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command for the state machine.
    Command,
    /// The first entry: incarnation and directories (S11). Data: [`Founding`].
    Founding,
    /// A latecomer's directory (S11). Data: [`crate::cluster::Member`] with id and directory.
    RecordDirectory,
    /// Spends the next id (S12). Data: the address it is for.
    ReserveId,
    /// On its way to the leader only: a membership change that the leader turns into a conf change. Data: [`super::membership::Change`].
    ChangeMembers,
    /// On its way to the leader only: hand over leadership. Data: u64, the target.
    TransferLeader,
    /// A command for the state machine, once within its client's session ([`in_session`]).
    CommandInSession,
    /// Begins a client's session.
    OpenSession,
    /// Data: u64, the session.
    CloseSession,
}

impl Kind {
    pub fn to_number(self) -> u32 {
        match self {
            Kind::Command => 0,
            Kind::Founding => 1,
            Kind::RecordDirectory => 2,
            Kind::ReserveId => 3,
            Kind::ChangeMembers => 4,
            Kind::TransferLeader => 5,
            Kind::CommandInSession => 6,
            Kind::OpenSession => 7,
            Kind::CloseSession => 8,
        }
    }

    pub fn from_number(number: u32) -> Option<Kind> {
        Some(match number {
            0 => Kind::Command,
            1 => Kind::Founding,
            2 => Kind::RecordDirectory,
            3 => Kind::ReserveId,
            4 => Kind::ChangeMembers,
            5 => Kind::TransferLeader,
            6 => Kind::CommandInSession,
            7 => Kind::OpenSession,
            8 => Kind::CloseSession,
            _ => return None,
        })
    }

    /// Takes effect in the order of the state machine's commands, not where membership does.
    pub fn is_of_machine(self) -> bool {
        matches!(self, Kind::Command | Kind::CommandInSession | Kind::OpenSession | Kind::CloseSession)
    }
}

/// Data of the first entry.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Founding {
    #[prost(bytes = "vec", tag = "1")]
    pub incarnation: Vec<u8>,
    /// Members with the directories heard so far.
    #[prost(message, repeated, tag = "2")]
    pub heard: Vec<crate::cluster::Member>,
    /// From here on the bytes that commands return are compared (S17).
    #[prost(bool, tag = "3")]
    pub verify_results: bool,
    /// What the initial members agree on.
    #[prost(uint64, tag = "4")]
    pub digest: u64,
}

/// The context of an entry of ours. Entries of raft's own (no-op, leaving a joint configuration) have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub kind: Kind,
    pub time_us: u64,
    pub origin: Origin,
}

const VERSION: u8 = 1;
const LENGTH: usize = 34;

impl Context {
    pub fn encode(&self) -> EntryContext {
        let mut out = EntryContext::from_slice(&[VERSION, self.kind.to_number() as u8]);
        for number in [self.time_us, self.origin.node, self.origin.start, self.origin.sequence] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out
    }

    /// `None` for anything that is not ours: such an entry is passed over by every node alike.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, numbers) = bytes.split_at_checked(2)?;
        if head.first() != Some(&VERSION) || bytes.len() < LENGTH {
            return None;
        }
        let kind = Kind::from_number(u32::from(*head.get(1)?))?;
        let mut words = numbers.chunks_exact(8).map(|w| w.try_into().map(u64::from_le_bytes).unwrap_or(0));
        Some(Context {
            kind,
            time_us: words.next()?,
            origin: Origin { node: words.next()?, start: words.next()?, sequence: words.next()? },
        })
    }

    pub fn of(entry: &Entry) -> Option<Self> {
        Self::decode(&entry.context)
    }
}

/// Puts the place of a [`Kind::CommandInSession`] behind what the library writes around every command.
pub fn note_session(context: &mut EntryContext, place: InSession) {
    for number in [place.session, place.sequence, place.first_open] {
        context.extend_from_slice(&number.to_le_bytes());
    }
}

/// What [`note_session`] has put there.
pub fn in_session(entry: &Entry) -> Option<InSession> {
    let mut words =
        entry.context.get(LENGTH..)?.chunks_exact(8).map(|w| w.try_into().map(u64::from_le_bytes).unwrap_or(0));
    Some(InSession { session: words.next()?, sequence: words.next()?, first_open: words.next()? })
}

/// A configuration change, in either of raft's forms.
pub fn is_conf_change(entry: &Entry) -> bool {
    entry.entry_type == EntryType::EntryConfChange as i32 || entry.entry_type == EntryType::EntryConfChangeV2 as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_survives_the_log_and_noise_is_none() {
        let context =
            Context { kind: Kind::ReserveId, time_us: 17, origin: Origin { node: 3, start: u64::MAX, sequence: 9 } };
        assert_eq!(Context::decode(&context.encode()), Some(context));
        for noise in [&b""[..], b"x", &[1, 99, 0, 0], &[0; 40], &context.encode()[..33]] {
            assert_eq!(Context::decode(noise), None);
        }
    }

    #[test]
    fn a_place_in_a_session_lies_behind_the_context_and_is_whole_or_none() {
        let origin = Origin { node: 3, start: 4, sequence: 5 };
        let context = Context { kind: Kind::CommandInSession, time_us: 17, origin };
        let place = InSession { session: u64::MAX, sequence: 8, first_open: 7 };
        let mut noted = context.encode();
        note_session(&mut noted, place);
        assert_eq!(Context::decode(&noted), Some(context));
        for (bytes, read) in [(noted.len(), Some(place)), (noted.len() - 1, None), (LENGTH, None), (0, None)] {
            let entry = Entry { context: EntryContext::from_slice(&noted[..bytes]), ..Entry::default() };
            assert_eq!(in_session(&entry), read, "{bytes}");
        }
    }
}
