//! A message of a peer's: raft's, with the entries of an append beside it.

use raft::eraftpb::Message;

use crate::entry::Entry;

/// What a peer has sent; nothing of it has been checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// Without entries.
    pub head: Message,
    pub entries: Vec<Entry>,
}

impl From<Message> for Received {
    fn from(mut head: Message) -> Self {
        let entries = std::mem::take(&mut head.entries);
        Received { head, entries: entries.into_iter().map(Entry::from).collect() }
    }
}

impl From<Received> for Message {
    fn from(Received { head, entries }: Received) -> Self {
        Message { entries: entries.iter().map(raft::eraftpb::Entry::from).collect(), ..head }
    }
}
