//! An entry of the log, as all but raft have it.
//!
//! Raft's own type owns two pieces of memory, so a cluster of three made and freed six for every proposal: a fifth of its CPU time under
//! load. Here the entries of one message, of one call or of one read of the log share the memory in which their data lie
//! ([`Entries`]), and who proposed an entry stands in the entry itself.

use bytes::Bytes;
use raft::eraftpb;
use smallvec::SmallVec;

use crate::gather::Gather;

/// Data of so many bytes and more are not copied together with what goes before and after them, on the way to a disk or a peer: one more
/// piece costs less.
pub(crate) const APART: usize = 8 << 10;

/// What the library writes around a command ([`crate::core::entry::Context`]). One of this version fits in place.
pub type EntryContext = SmallVec<[u8; 40]>;

/// The fields of `eraftpb.Entry` that mean something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// An [`eraftpb::EntryType`], or what a newer version knows.
    pub entry_type: i32,
    pub term: u64,
    pub index: u64,
    /// Kept alive in one with the data of the entries that came with it: what leaves memory leaves it together.
    pub data: Bytes,
    pub context: EntryContext,
}

impl From<eraftpb::Entry> for Entry {
    fn from(entry: eraftpb::Entry) -> Self {
        let eraftpb::Entry { entry_type, term, index, data, context, .. } = entry;
        Entry { entry_type, term, index, data: data.into(), context: context.into() }
    }
}

impl From<&Entry> for eraftpb::Entry {
    fn from(entry: &Entry) -> Self {
        let Entry { entry_type, term, index, data, context } = entry;
        let (data, context) = (data.to_vec(), context.to_vec());
        eraftpb::Entry { entry_type: *entry_type, term: *term, index: *index, data, context, sync_log: false }
    }
}

/// Entries, each without its data, and these in one memory.
pub type Entries = Gather<Entry>;

impl Entries {
    pub fn whole(self) -> Vec<Entry> {
        self.finish(|entry, data| entry.data = data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn raft_has_the_same_entry(entry_type: i32, term: u64, index: u64, data: Vec<u8>, context: Vec<u8>) {
            let entry = Entry { entry_type, term, index, data: data.into(), context: context.into() };
            prop_assert_eq!(Entry::from(eraftpb::Entry::from(&entry)), entry);
        }
    }

    #[test]
    fn a_context_of_this_version_lies_in_its_entry() {
        let context = crate::core::Context {
            kind: crate::core::Kind::Command,
            time_us: u64::MAX,
            origin: crate::core::Origin { node: u64::MAX, start: u64::MAX, sequence: u64::MAX },
        };
        assert!(!context.encode().spilled());
    }
}
