//! The durable log: one trait for writing, one for reading, and what a log says when it is opened.
//!
//! Lives here: [`LogWriter`] and [`LogReader`], the record codec, the LMDB log, the segment log. The simulated log lives in `engine/sim`.
//! May not live here: any rule of Raft. A log stores what the core says, all of a [`LogWrite`] or nothing of it.
//!
//! Invariants: entries are contiguous; an append at index `i` removes every entry at or above `i` first, in the same
//! transaction; a batch of writes is one transaction with one sync; after the first error nothing is written any more (S10).

mod batching;
#[cfg(test)]
mod crash_tests;
mod draft;
pub(crate) mod files;
mod held;
mod inspect;
mod lmdb;
mod lmdb_bounds;
mod lmdb_changes;
mod lmdb_env;
mod lmdb_file;
mod lmdb_format;
mod lmdb_meta;
mod lmdb_page;
mod lmdb_pages;
mod lmdb_proof;
mod lmdb_reader;
#[cfg(test)]
mod lmdb_tests;
mod lmdb_view;
mod lmdb_writer;
mod load;
mod lock;
#[cfg(test)]
mod model_tests;
mod open;
pub(crate) mod record;
mod segment;
#[cfg(test)]
mod tests;

pub use inspect::inspect;
pub use lock::DirectoryLock;
pub use open::{check, open_or_create, LogOptions, NewLog, OpenedLog};

use std::sync::Arc;

use raft::eraftpb::HardState;

use crate::cluster::{ClusterState, NodeId, Uid};
use crate::entry::Entry;
use crate::error::Error;

/// Who a directory belongs to. Written when it is born; only `incarnation` changes, once, from nothing to something (S11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub node_id: NodeId,
    /// Random, drawn when the directory was made.
    pub directory: Uid,
    /// Digest of `cluster_id` and the initial member map; 0 for a node that waits to be joined.
    pub digest: u64,
    /// The `cluster_id` it was born with; empty: not known.
    pub cluster_id: String,
    /// The cluster this directory has become part of.
    pub incarnation: Option<Uid>,
}

/// Names one snapshot: the log continues right after its index.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotMeta {
    pub index: u64,
    pub term: u64,
    /// The cluster at exactly `index` (S13).
    pub cluster: ClusterState,
    /// Bytes in the file: the state, and behind it the table of client sessions. 0 for the founding snapshot, which has no file.
    pub size: u64,
    /// Bytes at the end of `size` that are that table.
    pub sessions: u64,
    /// CRC32C of all of them.
    pub crc: u32,
    /// False for the founding "snapshot" at index 1: nothing to restore.
    pub has_file: bool,
    /// The running sum of outcomes at `index`; `None`: not known (S17).
    pub outcomes: Option<u64>,
}

impl SnapshotMeta {
    /// One that has no file: there is nothing to restore.
    pub fn without_file(index: u64, term: u64, cluster: ClusterState) -> Self {
        SnapshotMeta { index, term, cluster, size: 0, sessions: 0, crc: 0, has_file: false, outcomes: None }
    }

    /// Bytes of the state machine's own.
    pub fn state_size(&self) -> u64 {
        self.size.saturating_sub(self.sessions)
    }
}

/// The configuration with its index (S13): it holds for every index from that of its last change up to `index`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterRecord {
    pub index: u64,
    pub cluster: ClusterState,
}

/// One atomic change of the log. Several may be merged into one transaction, in order.
#[derive(Clone, Debug, Default)]
pub struct LogWrite {
    /// Rises by at least one with each write; echoed when it is durable.
    pub number: u64,
    /// Appended; the first one's index says from where older entries are removed (a conflicting suffix).
    pub entries: Option<Arc<Vec<Entry>>>,
    pub hard_state: Option<HardState>,
    /// The cluster as of an applied index; `hard_state.commit` on disk is never below that index afterwards.
    pub cluster: Option<Arc<ClusterRecord>>,
    pub identity: Option<Identity>,
    /// Names a snapshot whose file is complete and synced. With `reset`, the whole log goes and starts anew after it.
    pub snapshot: Option<Arc<SnapshotMeta>>,
    pub reset: bool,
    /// Entries up to and including this index may go (never above the named snapshot's index).
    pub compact_to: Option<u64>,
    /// False when nothing in it promises anything (a commit index alone): may wait for the next write.
    pub must_sync: bool,
}

/// What an opened log knows.
#[derive(Clone, Debug)]
pub struct LogState {
    pub identity: Identity,
    pub hard_state: HardState,
    /// The newest stored configuration and the index up to which it holds.
    pub cluster: ClusterRecord,
    /// The snapshot the log names. Every log has one: the founding one if no other.
    pub snapshot: Option<SnapshotMeta>,
    /// First index that can be read. `snapshot.index + 1` or lower (a trailing log is kept).
    pub first_index: u64,
    /// Term of the entry before `first_index`.
    pub prev_term: u64,
    /// `first_index - 1` when the log is empty.
    pub last_index: u64,
    /// (index, term) at which each term begins, ascending; covers `first_index..=last_index`.
    pub terms: Vec<(u64, u64)>,
    /// Bytes of all entries' data.
    pub bytes: u64,
}

impl LogState {
    /// The term of the entry at `index`, from the one before the first that is held to the last.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index.saturating_add(1) == self.first_index {
            return Some(self.prev_term);
        }
        let held = self.first_index <= index && index <= self.last_index;
        let begun = self.terms.iter().take_while(|(start, _)| *start <= index).last();
        begun.filter(|_| held).map(|(_, term)| *term)
    }
}

impl LogState {
    /// S6: whether this older snapshot may stand in for the one that the log names: the log goes on from it without a gap, so that the
    /// two together are all there ever was.
    pub fn goes_on_from(&self, older: &SnapshotMeta) -> bool {
        self.snapshot.as_ref().is_some_and(|named| {
            older.index < named.index
                && self.term(older.index) == Some(older.term)
                && older.cluster.incarnation() == named.cluster.incarnation()
        })
    }
}

/// The writing half. Owned by the writer thread alone.
pub trait LogWriter: Send {
    /// Makes all writes durable in one transaction with one sync. After an error the log refuses everything (S10), with the
    /// same error. One exception: `DiskFull` with `committed` No was found before anything was written; the same batch may be
    /// tried again, and writes without entries (which compact, for instance) still work.
    fn write(&mut self, writes: &[LogWrite]) -> Result<(), Error>;
}

/// The reading half. Owned by the reader thread; sees what has been written.
pub trait LogReader: Send {
    /// Entries `low..high` in order, cut after the first one that brings their data above `max_bytes` (at least one is returned).
    /// `Ok` with fewer or none when the log does not hold them (any more).
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, Error>;
}
