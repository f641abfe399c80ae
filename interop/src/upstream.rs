//! One directory of upstream's, read as it is: [`UpstreamLog`]. Nothing is judged here but whether it decodes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use prost_raft::Message;
use raft::eraftpb::{ConfChangeType, ConfState, Entry, HardState, Snapshot};
use raftify_engine::{Error, ErrorCode, Result};

use crate::format;
use crate::lmdb::{Commit, DataFile, Tree};

const DATA_FILE: &str = "data.mdb";

/// The newest snapshot; its data is what the state machine's `snapshot` had returned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpstreamSnapshot {
    pub index: u64,
    pub term: u64,
    pub conf_state: ConfState,
    pub data: Vec<u8>,
}

/// What a directory of upstream's holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpstreamLog {
    /// Its commit lags: upstream stores the one that comes with a later write.
    pub hard_state: HardState,
    pub conf_state: ConfState,
    /// `None` as long as none was taken: upstream stores an empty one at index 0 when it starts.
    pub snapshot: Option<UpstreamSnapshot>,
    /// Every entry found, by ascending index; there may be gaps, and leftovers that a later leader had replaced.
    pub entries: Vec<Entry>,
    /// What upstream took for the index of the last entry.
    pub last_index: u64,
    /// Addresses of members, as far as membership entries in the log name them; initial members are not in the log.
    pub peers: BTreeMap<u64, String>,
}

/// The small records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    pub hard_state: HardState,
    pub conf_state: ConfState,
    pub snapshot: Option<UpstreamSnapshot>,
    pub last_index: u64,
}

/// An open directory.
pub(crate) struct Directory {
    data: DataFile,
}

/// Whether `dir` is a log directory of the crate `raftify`: an LMDB file with upstream's two databases. Never an error.
pub fn is_upstream(dir: &Path) -> bool {
    Directory::open(dir).is_ok()
}

/// Reads the whole of upstream's directory `dir`. Writes nothing and takes no lock; beside a live node it succeeds where
/// the node leaves it the time.
///
/// Errors: `WrongDirectory` (not one of upstream's), `CorruptData` (damaged; names the page or index), `DirectoryInUse` (a
/// node writes faster than it can be read), `Storage`.
pub fn read(dir: &Path) -> Result<UpstreamLog> {
    let directory = Directory::open(dir)?;
    let (meta, entries) = directory.data.consistent(|commit| {
        let mut entries = Vec::new();
        directory.entries_at(commit, 0, &mut |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        })?;
        Ok((directory.meta_at(commit)?, entries))
    })?;
    let mut entries: Vec<Entry> = entries;
    // Keys of more than ten digits do not sort as numbers.
    entries.sort_by_key(|entry| entry.index);
    let peers = peers(&entries);
    Ok(UpstreamLog {
        hard_state: meta.hard_state,
        conf_state: meta.conf_state,
        snapshot: meta.snapshot,
        entries,
        last_index: meta.last_index,
        peers,
    })
}

/// Addresses that membership entries name, in order; a removal takes one away.
pub(crate) fn peers<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> BTreeMap<u64, String> {
    let mut peers = BTreeMap::new();
    for (single, addr) in entries.into_iter().flat_map(format::changes_of) {
        if single.change_type == ConfChangeType::RemoveNode as i32 {
            peers.remove(&single.node_id);
        } else if let Some(addr) = addr {
            peers.insert(single.node_id, addr.to_string());
        }
    }
    peers
}

impl Directory {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path: PathBuf = dir.join(DATA_FILE);
        let stranger = |what: &str| {
            Error::storage(
                ErrorCode::WrongDirectory,
                dir,
                format_args!(
                    "not a log directory of the crate raftify 0.1.x: {what}; name the one that holds its {DATA_FILE}"
                ),
            )
        };
        if !path.is_file() {
            return Err(stranger("there is no data.mdb in it"));
        }
        let directory = Directory { data: DataFile::open(&path)? };
        let both = directory.data.consistent(|commit| {
            let of = |name| directory.data.named(commit, name);
            Ok(of(format::ENTRIES)?.is_some() && of(format::META)?.is_some())
        })?;
        if both {
            Ok(directory)
        } else {
            Err(stranger("its database is another program's"))
        }
    }

    fn tree(&self, commit: &Commit, name: &str) -> Result<Tree> {
        self.data.named(commit, name)?.ok_or_else(|| self.data.fault(0, format_args!("the database {name:?} is gone")))
    }

    fn corrupt(&self, what: impl std::fmt::Display) -> Error {
        self.data.fault(0, what)
    }

    /// The small records of one commit.
    pub(crate) fn meta(&self) -> Result<Meta> {
        self.data.consistent(|commit| self.meta_at(commit))
    }

    fn meta_at(&self, commit: &Commit) -> Result<Meta> {
        let mut meta = Meta::default();
        self.data.scan(&self.tree(commit, format::META)?, b"", &mut |key, value| {
            match key {
                format::HARD_STATE => meta.hard_state = self.decode("hard state", value)?,
                format::CONF_STATE => meta.conf_state = self.decode("membership", value)?,
                format::SNAPSHOT => meta.snapshot = snapshot_of(self.decode("snapshot", value)?),
                format::LAST_INDEX => {
                    let bytes = value.try_into().map_err(|_| self.corrupt("last_index is not 8 bytes"))?;
                    meta.last_index = u64::from_le_bytes(bytes);
                }
                // Of a later upstream; nothing of ours depends on it.
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(meta)
    }

    fn decode<M: Message + Default>(&self, what: &str, value: &[u8]) -> Result<M> {
        M::decode(value).map_err(|e| self.corrupt(format_args!("the {what} does not decode: {e}")))
    }

    /// Entries from index `from` on, in the order of their keys, of one commit: at most `limit`.
    pub(crate) fn entries(&self, from: u64, limit: usize) -> Result<Vec<Entry>> {
        self.data.consistent(|commit| {
            let mut entries = Vec::new();
            if limit > 0 {
                self.entries_at(commit, from, &mut |entry| {
                    entries.push(entry);
                    if entries.len() < limit {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                })?;
            }
            Ok(entries)
        })
    }

    fn entries_at(&self, commit: &Commit, from: u64, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let tree = self.tree(commit, format::ENTRIES)?;
        self.data.scan(&tree, format::entry_key(from).as_bytes(), &mut |key, value| {
            let Some(index) = format::parse_entry_key(key) else {
                return Err(self.corrupt(format_args!("an entry has the key {:?}", String::from_utf8_lossy(key))));
            };
            let entry: Entry = Entry::decode(value)
                .map_err(|e| self.corrupt(format_args!("entry {index} does not decode: {e}")).with_index(index))?;
            if entry.index != index {
                let what = format_args!("the entry stored as {index} says that it is {}", entry.index);
                return Err(self.corrupt(what).with_index(index));
            }
            Ok(visit(entry))
        })
    }
}

/// Upstream writes one at index 0 at its first start, for the membership alone.
fn snapshot_of(snapshot: Snapshot) -> Option<UpstreamSnapshot> {
    let metadata = snapshot.metadata.unwrap_or_default();
    (metadata.index > 0).then(|| UpstreamSnapshot {
        index: metadata.index,
        term: metadata.term,
        conf_state: metadata.conf_state.unwrap_or_default(),
        data: snapshot.data,
    })
}
