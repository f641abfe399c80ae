//! Snapshot files: written, checked, streamed, received, pruned. They lie in `<node directory>/snapshots/`.
//!
//! Lives here: files and their format. May not live here: when to take or send one, and what the log names.
//!
//! Invariants: a file under its final name is whole and synced, its name durable (S6); a name carries size and checksum, so
//! a second snapshot of the same index never replaces the one that the log names; every byte read has been checked; a few
//! chunks are in memory, never a whole state. The file that the log names is never removed. One transfer at a time writes: the one begun last.

mod appender;
mod file;
mod incoming;
mod reader;
mod readers;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use readers::Readers;

pub use incoming::IncomingSnapshot;
pub use reader::SnapshotReader;
pub use writer::SnapshotWriter;

use crate::cluster::ClusterState;
use crate::error::{Error, Result};
use crate::locks::lock;
use crate::log::files::{make_directory, sync_directory, SNAPSHOTS_DIR};
use crate::log::SnapshotMeta;
use crate::removal::{remove_name, Removed};
use crate::wire::SnapshotHeader;

/// A whole snapshot.
const WHOLE: &str = "snapshot";
/// One being written here; worthless after a crash.
const UNFINISHED: &str = "new";
/// One being received; what is in it is kept for the rest.
const PART: &str = "part";

/// What a peer is told ahead of a snapshot's bytes.
pub fn wire_header(meta: &SnapshotMeta) -> SnapshotHeader {
    SnapshotHeader {
        index: meta.index,
        term: meta.term,
        size: meta.size,
        sessions: meta.sessions,
        crc: meta.crc,
        cluster: Some(meta.cluster.clone()),
        has_file: meta.has_file,
        outcomes: meta.outcomes,
    }
}

/// The snapshots of one node. Cheap to clone; may be used from several threads. Of several that receive only the last one gets to its end.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    path: PathBuf,
    readers: Readers,
    /// Number of the transfer begun last; the next one if what that one received has been removed. Whoever touches what is being
    /// received holds it, so no other comes between.
    transfer: Arc<Mutex<u64>>,
}

impl SnapshotDir {
    /// Opens, or makes, `snapshots/` in a node's directory, whose lock the caller holds. What was being written at a crash
    /// is removed; what was being received stays.
    pub fn open(node_directory: &Path) -> Result<Self> {
        let dir = SnapshotDir {
            path: node_directory.join(SNAPSHOTS_DIR),
            readers: Readers::default(),
            transfer: Arc::default(),
        };
        make_directory(&dir.path)?;
        for (path, _) in dir.files(UNFINISHED)? {
            remove(&path)?;
        }
        // S5: the names that are read from now on are durable.
        dir.sync()?;
        Ok(dir)
    }

    /// Makes names durable.
    fn sync(&self) -> Result<()> {
        #[cfg(test)]
        crate::faults::due(crate::faults::Fault::SyncDirectory)
            .map_err(|e| Error::io(&self.path, "sync the directory", &e))?;
        sync_directory(&self.path)
    }

    /// Begins the snapshot of the state at exactly `index`, with the cluster as of that index (S13).
    pub fn create(&self, index: u64, term: u64, cluster: &ClusterState) -> Result<SnapshotWriter> {
        SnapshotWriter::begin(self.clone(), index, term, cluster)
    }

    /// Opens a snapshot's state for reading. `CorruptData` when the file is missing, damaged, or another one.
    pub fn open_reader(&self, meta: &SnapshotMeta) -> Result<SnapshotReader> {
        SnapshotReader::open(&self.path(meta), meta, &self.readers)
    }

    /// The table of client sessions that a snapshot carries; empty for one without a file.
    pub fn sessions(&self, meta: &SnapshotMeta) -> Result<Vec<u8>> {
        if !meta.has_file || meta.sessions == 0 {
            return Ok(Vec::new());
        }
        self.open_reader(meta)?.sessions()
    }

    /// Reads and checks every byte of a snapshot. One without a file is whole.
    pub fn verify(&self, meta: &SnapshotMeta) -> Result<()> {
        if meta.has_file {
            self.open_reader(meta)?.verify()?;
        }
        Ok(())
    }

    /// Begins to receive, or goes on where a broken-off transfer of exactly this snapshot ended. Others begun are dropped, and one
    /// that is still coming in fails from now on: its sender may be dead, and must not hold up one that is not.
    pub fn receive(&self, header: &SnapshotHeader) -> Result<IncomingSnapshot> {
        IncomingSnapshot::begin(self.clone(), header)
    }

    /// All whole snapshots whose first and last bytes are right, newest first.
    pub fn list(&self) -> Result<Vec<SnapshotMeta>> {
        let mut found: Vec<_> =
            self.files(WHOLE)?.iter().filter_map(|(path, _)| reader::read_meta(path).ok()).collect();
        found.sort_by_key(|meta| std::cmp::Reverse((meta.index, meta.term)));
        Ok(found)
    }

    /// Removes snapshots older than `keep`, but for the newest one that a log beginning at `first_index` goes on from without a
    /// gap: it can stand in for a damaged `keep` (S6). Newer ones stay: the log may be about to name one. What is being read here is read to
    /// its end; the space of the others is what is returned. What is being received goes too, unless it is newer than `keep`.
    pub fn prune(&self, keep: &SnapshotMeta, first_index: u64) -> Result<Removed> {
        let kept = self.path(keep);
        let mut older: Vec<_> =
            self.files(WHOLE)?.into_iter().filter(|(path, index)| *index <= keep.index && *path != kept).collect();
        let continued = |index: u64| index < keep.index && index.saturating_add(1) >= first_index;
        let spare = older.iter().map(|(_, index)| *index).filter(|index| continued(*index)).max();
        older.retain(|(_, index)| Some(*index) != spare);
        let mut removed = Removed::default();
        for (path, _) in older {
            let done = self.readers.while_none_begins(&path, |read| match read {
                true => remove_name(&path),
                false => removed.take(&path),
            });
            done.map_err(|e| not_removed(&path, &e))?;
        }
        self.prune_received(keep.index, &mut removed)?;
        Ok(removed)
    }

    /// Removes what has been received of a snapshot that is not newer than `index`.
    fn prune_received(&self, index: u64, removed: &mut Removed) -> Result<()> {
        let useless = || Ok(self.files(PART)?.into_iter().filter(move |(_, of)| *of <= index));
        if useless()?.next().is_none() {
            // Waits for no transfer that goes on.
            return Ok(());
        }
        let mut newest = lock(&self.transfer);
        for (path, _) in useless()? {
            // There is no other part than of the transfer begun last: should it still come in, it must not write there any more.
            *newest = newest.saturating_add(1);
            removed.take(&path).map_err(|e| not_removed(&path, &e))?;
        }
        Ok(())
    }

    /// Where a snapshot with a file lies.
    pub fn path(&self, meta: &SnapshotMeta) -> PathBuf {
        self.path.join(format!("{}.{WHOLE}", name(meta.index, meta.term, meta.size, meta.crc)))
    }

    fn part_path(&self, header: &SnapshotHeader) -> PathBuf {
        self.path.join(format!("{}.{PART}", name(header.index, header.term, header.size, header.crc)))
    }

    /// Files of a kind, with the index in their names.
    fn files(&self, kind: &str) -> Result<Vec<(PathBuf, u64)>> {
        let listed = std::fs::read_dir(&self.path).and_then(|listing| listing.collect::<std::io::Result<Vec<_>>>());
        let listed = listed.map_err(|e| Error::io(&self.path, "list the snapshots", &e))?;
        let index_of = |path: &Path| {
            let name = path.file_name()?.to_str()?.strip_suffix(kind)?.strip_suffix('.')?.to_string();
            name.split('-').next()?.parse().ok()
        };
        Ok(listed.into_iter().filter_map(|item| Some((item.path(), index_of(&item.path())?))).collect())
    }
}

/// Index first and of fixed width: names sort by age.
fn name(index: u64, term: u64, size: u64, crc: u32) -> String {
    format!("{index:020}-{term}-{size}-{crc:08x}")
}

fn not_removed(path: &Path, error: &std::io::Error) -> Error {
    Error::io(path, "remove the file", error)
}

/// Removes a file that nobody reads.
fn remove(path: &Path) -> Result<()> {
    let mut removed = Removed::default();
    removed.take(path).map_err(|e| not_removed(path, &e))?;
    removed.give_back_aside();
    Ok(())
}
