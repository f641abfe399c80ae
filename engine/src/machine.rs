//! The border between the core and the user's state machine: requests in log order, answers from any thread.

use std::path::PathBuf;
use std::sync::Arc;

use crate::entry::Entry;
use crate::error::Error;
use crate::request::Token;

/// One command within an [`ApplyBatch`], whose bytes [`ApplyBatch::command`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyEntry {
    pub index: u64,
    pub term: u64,
    /// The leader's clock when it took the command, microseconds since 1970; never goes back in the log.
    pub time_us: u64,
    /// Somebody waits for the result on this node, or the cluster compares results; the others' results are not needed.
    pub wanted: bool,
    /// Of the request that waits for the result on this node, if `wanted`; 0 when none does.
    pub token: Token,
    pub(crate) place: Place,
}

/// Where an entry lies in the pieces of the log that its batch holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    piece: usize,
    at: usize,
}

/// Committed commands, in order. Their bytes lie where the log has them: none is copied.
#[derive(Clone, Debug, Default)]
pub struct ApplyBatch {
    /// Rises by one with each request to the machine; the answer names it.
    pub id: u64,
    /// The machine stands at this index once the batch is done (entries of the library's own lie between the commands).
    pub last_index: u64,
    pub last_term: u64,
    pub entries: Vec<ApplyEntry>,
    pieces: Vec<Arc<Vec<Entry>>>,
    bytes: usize,
}

impl ApplyBatch {
    /// One that holds these commands, in one term, from that index on. For tests of state machines.
    pub fn of(first_index: u64, term: u64, commands: &[&[u8]]) -> Self {
        let entry =
            |(index, command): (u64, &&[u8])| Entry { index, term, data: command.to_vec().into(), ..Entry::default() };
        let piece = Arc::new((first_index..).zip(commands).map(entry).collect::<Vec<_>>());
        let mut batch = ApplyBatch { last_index: first_index, last_term: term, ..ApplyBatch::default() };
        for (at, Entry { index, .. }) in piece.iter().enumerate() {
            let place = Place::default();
            batch.push(&piece, at, ApplyEntry { index: *index, term, time_us: 0, wanted: false, token: 0, place });
        }
        batch.last_index = batch.entries.last().map_or(first_index, |entry| entry.index);
        batch
    }

    /// Room for so many entries.
    pub(crate) fn with_capacity(entries: usize) -> Self {
        ApplyBatch { entries: Vec::with_capacity(entries), ..ApplyBatch::default() }
    }

    /// The entry of the log that lies there, as the machine is to have it; its place is set here.
    pub(crate) fn push(&mut self, piece: &Arc<Vec<Entry>>, at: usize, command: ApplyEntry) {
        let Some(entry) = piece.get(at) else { return };
        if !self.pieces.last().is_some_and(|last| Arc::ptr_eq(last, piece)) {
            self.pieces.push(Arc::clone(piece));
        }
        let place = Place { piece: self.pieces.len().saturating_sub(1), at };
        self.bytes = self.bytes.saturating_add(entry.data.len());
        self.entries.push(ApplyEntry { place, ..command });
    }

    /// The bytes of one of this batch's entries.
    pub fn command(&self, entry: &ApplyEntry) -> &[u8] {
        self.pieces.get(entry.place.piece).and_then(|piece| piece.get(entry.place.at)).map_or(&[], |entry| &entry.data)
    }

    /// Every entry with its bytes, in order.
    pub fn commands(&self) -> impl Iterator<Item = (&ApplyEntry, &[u8])> {
        self.entries.iter().map(|entry| (entry, self.command(entry)))
    }

    /// Of all commands together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Something for the machine to do. At most a few are outstanding; each is answered once, in order.
#[derive(Clone, Debug)]
pub enum MachineRequest {
    Apply(ApplyBatch),
    /// Hand over the state at exactly `index`.
    Snapshot {
        id: u64,
        index: u64,
        term: u64,
    },
    /// Replace the state by this file's.
    Restore {
        id: u64,
        index: u64,
        term: u64,
        path: PathBuf,
        size: u64,
    },
}

impl MachineRequest {
    pub fn id(&self) -> u64 {
        match self {
            MachineRequest::Apply(batch) => batch.id,
            MachineRequest::Snapshot { id, .. } | MachineRequest::Restore { id, .. } => *id,
        }
    }
}

/// What a command came to: the bytes for the proposer, or that it raised (type name and text).
pub type Outcome = Result<Vec<u8>, String>;

/// The machine's answer to the request of that id.
#[derive(Debug)]
pub enum MachineAnswer {
    /// Outcomes of every command that raised, and of every `wanted` one; ascending by index. The others returned normally.
    Applied {
        id: u64,
        outcomes: Vec<(u64, Outcome)>,
    },
    /// The same, where the machine's side has itself told those who waited for commands that `outcomes` does not name: their
    /// requests end here, without a completion.
    AppliedAndTold {
        id: u64,
        outcomes: Vec<(u64, Outcome)>,
    },
    /// The state was captured; its bytes are being written, or are written, to a file by the shell.
    Snapshot {
        id: u64,
        result: Result<(), String>,
    },
    Restored {
        id: u64,
    },
    /// The machine cannot go on: the node stops. `index` is the command it stopped at, which counts as not applied.
    Failed {
        id: u64,
        index: u64,
        error: Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(first: u64, says: &[&'static str]) -> Arc<Vec<Entry>> {
        let entry =
            |(index, data): (u64, &&'static str)| Entry { index, data: data.as_bytes().into(), ..Entry::default() };
        Arc::new((first..).zip(says).map(entry).collect())
    }

    #[test]
    fn commands_are_read_where_the_log_has_them() {
        let pieces = [piece(3, &["a", "not for the machine", "bc"]), piece(6, &["", "def"])];
        let mut batch = ApplyBatch::default();
        for (piece, at) in [(0, 0), (0, 2), (1, 0), (1, 1), (1, 9)] {
            let index = pieces[piece].get(at).map_or(0, |entry| entry.index);
            let place = Place::default();
            batch.push(&pieces[piece], at, ApplyEntry { index, term: 1, time_us: 2, wanted: false, token: 0, place });
        }
        let said: Vec<_> = batch.commands().map(|(entry, command)| (entry.index, command)).collect();
        assert_eq!(said, [(3, &b"a"[..]), (5, b"bc"), (6, b""), (7, b"def")], "what is in no piece is no command");
        assert_eq!(batch.bytes(), 6);
        assert_eq!(batch.pieces.len(), 2, "each piece is held once");
        assert_eq!(batch.command(&batch.entries[3]).as_ptr(), pieces[1][1].data.as_ptr(), "nothing is copied");
        drop(pieces);
        assert_eq!(batch.command(&batch.entries[1]), b"bc", "the batch keeps its pieces alive");
    }

    #[test]
    fn a_batch_of_given_commands_ends_at_the_last_of_them() {
        for (commands, last) in [(vec![], 7), (vec![&b"x"[..]], 7), (vec![b"x", b"yz", b""], 9)] {
            let batch = ApplyBatch::of(7, 3, &commands);
            assert_eq!((batch.last_index, batch.last_term), (last, 3));
            assert!(batch.commands().map(|(_, command)| command).eq(commands));
            assert!(batch.entries.iter().map(|entry| entry.index).eq((7..).take(batch.entries.len())));
        }
    }
}
