//! The LMDB log: making a directory, and opening one, in the order that S5 and S8 demand.
//!
//! Open: look at the directory, lock it, sync everything, check the whole file with pread, compare with the number of the
//! newest durable commit, and only then let LMDB map it. Nothing is deleted or repaired on the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::HardState;

use crate::cluster::NodeId;
use crate::error::{Error, ErrorCode, Result};
use crate::log::draft::Draft;
use crate::log::files::{self, corrupt, Contents, NumberFile};
use crate::log::lmdb_env::{self, translate};
use crate::log::lmdb_format::PageFile;
use crate::log::lmdb_reader::LmdbReader;
use crate::log::lmdb_writer::LmdbWriter;
use crate::log::load::{self, Loaded};
use crate::log::lock::DirectoryLock;
use crate::log::record::{self, Bounds, Meta};
use crate::log::{ClusterRecord, Identity, LogReader, LogState, LogWriter, SnapshotMeta};

/// How to open a node's directory.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The node that may live there; any other directory is `WrongDirectory`.
    pub node_id: NodeId,
    /// Bytes that the log may take on disk; `None`: what the disk has. What deletes or compacts may go a little above.
    pub disk_quota: Option<u64>,
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

/// What writer and reader share. The fields go in order: the database is closed before the directory is given up.
pub(crate) struct Shared {
    pub db: lmdb_env::Opened,
    pub data_path: PathBuf,
    log_dir: PathBuf,
    _lock: DirectoryLock,
}

impl Shared {
    /// The log was stopped in order at this commit. Any later commit makes the marker void by its number.
    pub(crate) fn mark_clean(&self, number: u64) -> Result<()> {
        let marker = NumberFile::open(NumberFile::clean(&self.log_dir))?;
        marker.write(number)?;
        marker.sync()?;
        files::sync_directory(&self.log_dir)
    }
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
        create(directory, &new()?)?;
    }
    open(directory, options, lock, created)
}

/// Builds the log under another name and renames it when everything in it is durable.
fn create(directory: &Path, new: &NewLog) -> Result<()> {
    let fresh = directory.join(files::NEW_LOG_DIR);
    match std::fs::remove_dir_all(&fresh) {
        // A beginning that was never finished: nobody was ever told of it.
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(&fresh, "remove an unfinished log", &e)),
    }
    files::make_directory(&fresh)?;
    files::prepare_lmdb_lock(&fresh)?;
    let failed = |e| translate(&fresh, "make the log", e);
    let db = lmdb_env::open(&fresh, 0)?;
    let mut txn = db.env.write_txn().map_err(failed)?;
    for (meta, value) in founding_records(new) {
        db.records.put(&mut txn, &meta.key(), &value).map_err(failed)?;
    }
    txn.commit().map_err(failed)?;
    let closing = db.env.prepare_for_closing();
    closing.wait();
    let marker = NumberFile::open(NumberFile::clean(&fresh))?;
    marker.write(FIRST_COMMIT)?;
    marker.sync()?;
    let data = fresh.join(files::DATA_FILE);
    let file = std::fs::File::open(&data).map_err(|e| Error::io(&data, "open the file", &e))?;
    files::settle(&file, &data, false)?;
    files::sync_directory(&fresh)?;
    let log_dir = directory.join(files::LOG_DIR);
    std::fs::rename(&fresh, &log_dir).map_err(|e| Error::io(&log_dir, "put the new log in place", &e))?;
    files::sync_directory(directory)
}

const FIRST_COMMIT: u64 = 1;

fn founding_records(new: &NewLog) -> Vec<(Meta, Vec<u8>)> {
    let (index, term) = new.snapshot.as_ref().map_or((0, 0), |s| (s.index, s.term));
    let first = index.saturating_add(1);
    let bounds = Bounds { number: FIRST_COMMIT, first, prev_term: term, last: index, floor: first };
    let mut hard_state = new.hard_state.clone();
    hard_state.commit = hard_state.commit.max(index);
    let mut records = vec![
        (Meta::Identity, record::encode_identity(&new.identity)),
        (Meta::HardState, record::encode_hard_state(&hard_state)),
        (Meta::Cluster, record::encode_cluster(&new.cluster)),
        (Meta::Bounds, record::encode_bounds(&bounds)),
    ];
    records.extend(new.snapshot.as_ref().map(|s| (Meta::Snapshot, record::encode_snapshot(s))));
    records
}

fn open(directory: &Path, options: &LogOptions, lock: DirectoryLock, created: bool) -> Result<OpenedLog> {
    let log_dir = directory.join(files::LOG_DIR);
    let data_path = log_dir.join(files::DATA_FILE);
    let (loaded, clean) = settle_and_check(directory)?;
    if loaded.state.identity.node_id != options.node_id {
        return Err(Error::storage(
            ErrorCode::WrongDirectory,
            directory,
            format_args!(
                "the directory belongs to node {}, not to node {}; nothing was changed; give each node a directory of its own",
                loaded.state.identity.node_id, options.node_id
            ),
        ));
    }
    files::prepare_lmdb_lock(&log_dir)?;
    // Twice the quota: the map must never be what stops the log.
    let db = lmdb_env::open(&log_dir, options.disk_quota.unwrap_or(0).saturating_mul(2))?;
    let durable = NumberFile::open(NumberFile::durable(&log_dir))?;
    // Its block exists from now on, so that writing it cannot fail for want of space.
    durable.write(loaded.bounds.number)?;
    let draft = Draft::new(&loaded);
    let shared = Arc::new(Shared { db, data_path, log_dir, _lock: lock });
    Ok(OpenedLog {
        state: loaded.state,
        writer: Box::new(LmdbWriter::new(shared.clone(), draft, durable, options.disk_quota)),
        reader: Box::new(LmdbReader::new(shared)),
        created,
        clean,
    })
}

/// S5, then S8. Returns the log, and whether it had been stopped in order.
fn settle_and_check(directory: &Path) -> Result<(Loaded, bool)> {
    let log_dir = directory.join(files::LOG_DIR);
    let data_path = log_dir.join(files::DATA_FILE);
    let pages = PageFile::open(&data_path)?;
    // Read before the sync: a page of the marker that never reached the disk must not speak for the data.
    let marker = NumberFile::read(&NumberFile::clean(&log_dir));
    files::settle(pages.file(), &data_path, false)?;
    for path in [log_dir.as_path(), directory] {
        files::sync_directory(path)?;
    }
    files::sync_parent(directory)?;
    let root = pages.newest_root()?;
    let number = load::number(&pages, &root)?;
    let clean = number.is_some() && number == marker;
    if !clean {
        files::settle(pages.file(), &data_path, true)?;
    }
    let loaded = load::load(&pages, &pages.newest_root()?, !clean)?;
    let newest = NumberFile::read(&NumberFile::durable(&log_dir)).max(marker);
    if let Some(newest) = newest.filter(|newest| *newest > loaded.bounds.number) {
        return Err(corrupt(
            &data_path,
            format_args!(
                "the log ends at commit {}, but commit {newest} was durable here: writes have been lost",
                loaded.bounds.number
            ),
        ));
    }
    Ok((loaded, clean))
}

/// Checks the log in `directory` down to every payload, for `raftify_cli check`. The node must not run; nothing is changed
/// but the lock. Returns what the log holds.
pub fn check(directory: &Path) -> Result<LogState> {
    if files::classify(directory)? == Contents::Nothing {
        return Err(Error::storage(ErrorCode::WrongDirectory, directory, "there is no log in this directory"));
    }
    let _lock = DirectoryLock::acquire(directory)?;
    let data_path = directory.join(files::LOG_DIR).join(files::DATA_FILE);
    let pages = PageFile::open(&data_path)?;
    Ok(load::load(&pages, &pages.newest_root()?, true)?.state)
}
