//! A node's directory, made or opened: what both engines have in common, in the order that S5 demands.
//!
//! Open: look at the directory, lock it, see which engine's log it is, and let that engine sync and check it. A new log is
//! made under another name and renamed when everything in it is durable.

use std::path::Path;

use raft::eraftpb::HardState;

use crate::cluster::NodeId;
use crate::config::LogEngine;
use crate::error::{Error, ErrorCode, Result};
use crate::log::files::{self, Contents};
use crate::log::lock::DirectoryLock;
use crate::log::record::{self, Bounds, Meta};
use crate::log::segment::{self, SEGMENT_SIZE};
use crate::log::{lmdb, ClusterRecord, Identity, LogReader, LogState, LogWriter, SnapshotMeta};

/// How to open a node's directory.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The node that may live there; any other directory is `WrongDirectory`.
    pub node_id: NodeId,
    /// Bytes that the log may take on disk; `None`: what the disk has. What deletes or compacts may go a little above.
    pub disk_quota: Option<u64>,
    /// Keeps the log of a directory that is made now. One that exists is opened as what it is.
    pub engine: LogEngine,
    /// Bytes of one segment, once a log has grown; 64 KiB to 1 GiB, and never more than an eighth of `disk_quota`.
    pub segment_size: u64,
}

impl LogOptions {
    /// The defaults, for this node.
    pub fn of(node_id: NodeId) -> Self {
        LogOptions { node_id, disk_quota: None, engine: LogEngine::default(), segment_size: SEGMENT_SIZE }
    }

    /// Another node's directory is left alone.
    pub(crate) fn must_own(&self, directory: &Path, found: &LogState) -> Result<()> {
        if found.identity.node_id == self.node_id {
            return Ok(());
        }
        Err(Error::storage(
            ErrorCode::WrongDirectory,
            directory,
            format_args!(
                "the directory belongs to node {}, not to node {}; nothing was changed; give each node a directory of its own",
                found.identity.node_id, self.node_id
            ),
        ))
    }
}

/// What a new directory begins with.
#[derive(Clone, Debug)]
pub struct NewLog {
    pub identity: Identity,
    pub cluster: ClusterRecord,
    /// Its commit is raised to the snapshot's index.
    pub hard_state: HardState,
    /// The founding snapshot of an initial member (the log goes on right after it); `None` for a node that waits to be joined.
    pub snapshot: Option<SnapshotMeta>,
}

/// An opened log: what it knows, and its two halves. The directory is held until both are dropped.
pub struct OpenedLog {
    pub state: LogState,
    pub writer: Box<dyn LogWriter>,
    pub reader: Box<dyn LogReader>,
    /// The directory was made by this call.
    pub created: bool,
    /// The node had been stopped in order; otherwise it crashed, was killed, or lost power.
    pub clean: bool,
}

impl std::fmt::Debug for OpenedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenedLog").field("state", &self.state).field("clean", &self.clean).finish_non_exhaustive()
    }
}

/// What an engine makes of a directory.
pub(crate) struct EngineLog {
    pub state: LogState,
    pub writer: Box<dyn LogWriter>,
    pub reader: Box<dyn LogReader>,
    pub clean: bool,
}

/// Opens the log of a node in `directory`, or makes it from `new` (called only then) if there is none. Blocks for disk and checks.
///
/// Errors: `WrongDirectory` (another node's, or something else lies there), `DirectoryInUse`, `CorruptData`, `FormatTooNew`,
/// `DiskFull`, `Storage`; and what `new` returns.
pub fn open_or_create(
    directory: &Path,
    options: &LogOptions,
    new: impl FnOnce() -> Result<NewLog>,
) -> Result<OpenedLog> {
    // Looked at before the lock file is made: a stranger's directory gets none.
    files::classify(directory)?;
    files::make_directory(directory)?;
    let lock = DirectoryLock::acquire(directory)?;
    let created = files::classify(directory)? == Contents::Nothing;
    if created {
        create(directory, options, &new()?)?;
    }
    let log = match files::engine_of(&directory.join(files::LOG_DIR))? {
        LogEngine::Lmdb => lmdb::open(directory, options, lock)?,
        LogEngine::Segment => segment::open(directory, options, lock)?,
    };
    Ok(OpenedLog { state: log.state, writer: log.writer, reader: log.reader, created, clean: log.clean })
}

/// Builds the log under another name and renames it when everything in it is durable.
fn create(directory: &Path, options: &LogOptions, new: &NewLog) -> Result<()> {
    let fresh = directory.join(files::NEW_LOG_DIR);
    match std::fs::remove_dir_all(&fresh) {
        // A beginning that was never finished: nobody was ever told of it.
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(&fresh, "remove an unfinished log", &e)),
    }
    files::make_directory(&fresh)?;
    let (index, term) = new.snapshot.as_ref().map_or((0, 0), |s| (s.index, s.term));
    let first = index.saturating_add(1);
    let bounds = Bounds { number: FIRST_COMMIT, first, prev_term: term, last: index, floor: first };
    let mut hard_state = new.hard_state.clone();
    hard_state.commit = hard_state.commit.max(index);
    match options.engine {
        LogEngine::Lmdb => {
            let mut records = vec![
                (Meta::Identity, record::encode_identity(&new.identity)),
                (Meta::Cluster, record::encode_cluster(&new.cluster)),
            ];
            records.extend(new.snapshot.as_ref().map(|s| (Meta::Snapshot, record::encode_snapshot(s))));
            lmdb::create(&fresh, &records, bounds, &hard_state)?;
        }
        LogEngine::Segment => segment::create(&fresh, options, new, &hard_state, &bounds)?,
    }
    files::mark_clean(&fresh, FIRST_COMMIT)?;
    let log_dir = directory.join(files::LOG_DIR);
    std::fs::rename(&fresh, &log_dir).map_err(|e| Error::io(&log_dir, "put the new log in place", &e))?;
    files::sync_directory(directory)
}

const FIRST_COMMIT: u64 = 1;

/// Checks the log in `directory` down to every payload, for `raftify_cli check`. The node must not run; nothing is changed
/// but the lock. Returns what the log holds.
pub fn check(directory: &Path) -> Result<LogState> {
    if files::classify(directory)? == Contents::Nothing {
        return Err(Error::storage(ErrorCode::WrongDirectory, directory, "there is no log in this directory"));
    }
    let _lock = DirectoryLock::acquire(directory)?;
    let log_dir = directory.join(files::LOG_DIR);
    match files::engine_of(&log_dir)? {
        LogEngine::Lmdb => lmdb::check(&log_dir),
        LogEngine::Segment => segment::check(&log_dir),
    }
}
