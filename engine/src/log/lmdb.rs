//! The LMDB log: making a directory, and opening one, in the order that S5 and S8 demand.
//!
//! Open: sync everything, find the newest commit that is proven, check the whole file with pread, compare with the number of the
//! newest durable commit, and only then let LMDB map it. Nothing is deleted or repaired on the way, but a commit that nobody believed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::HardState;

use crate::error::Result;
use crate::log::batching::Batching;
use crate::log::draft::Draft;
use crate::log::files::{self, corrupt, NumberFile};
use crate::log::lmdb_bounds::RecentBounds;
use crate::log::lmdb_env::{self, translate};
use crate::log::lmdb_file::PageFile;
use crate::log::lmdb_proof::{Newest, Prover};
use crate::log::lmdb_reader::LmdbReader;
use crate::log::lmdb_writer::LmdbWriter;
use crate::log::load::{self, Loaded};
use crate::log::lock::DirectoryLock;
use crate::log::open::{EngineLog, LogOptions};
use crate::log::record::{Bounds, Meta};
use crate::log::LogState;

/// What writer and reader share. The fields go in order: the database is closed before the directory is given up.
pub(crate) struct Shared {
    pub db: lmdb_env::Opened,
    pub data_path: PathBuf,
    pub log_dir: PathBuf,
    pub bounds: RecentBounds,
    _lock: DirectoryLock,
}

/// Makes a log of `records` in the empty directory `fresh`; durable when this returns, but for the directory itself.
pub(crate) fn create(fresh: &Path, records: &[(Meta, Vec<u8>)], bounds: Bounds, hard_state: &HardState) -> Result<()> {
    files::prepare_lmdb_lock(fresh)?;
    let failed = |e| translate(fresh, "make the log", e);
    let db = lmdb_env::open(fresh, 0)?;
    let mut txn = db.env.write_txn().map_err(failed)?;
    for (meta, value) in records {
        db.records.put(&mut txn, &meta.key(), value).map_err(failed)?;
    }
    txn.commit().map_err(failed)?;
    let closing = db.env.prepare_for_closing();
    closing.wait();
    let pages = PageFile::open_to_prove(&fresh.join(files::DATA_FILE))?;
    let before = pages.roots()?.older;
    Prover::new(pages, before).prove(bounds, hard_state)
}

/// Opens the log in `directory`, whose lock is held.
pub(crate) fn open(directory: &Path, options: &LogOptions, lock: DirectoryLock) -> Result<EngineLog> {
    let log_dir = directory.join(files::LOG_DIR);
    let data_path = log_dir.join(files::DATA_FILE);
    let pages = PageFile::open_to_prove(&data_path)?;
    let (newest, loaded, clean) = settle_and_check(directory, &pages)?;
    options.must_own(directory, &loaded.state)?;
    newest.settle(&pages)?;
    let root = pages.roots()?.newest;
    files::prepare_lmdb_lock(&log_dir)?;
    // Twice the quota: the map must never be what stops the log.
    let db = lmdb_env::open(&log_dir, options.disk_quota.unwrap_or(0).saturating_mul(2))?;
    let durable = NumberFile::open(NumberFile::durable(&log_dir))?;
    // Its block exists from now on, so that writing it cannot fail for want of space.
    durable.write(loaded.bounds.number)?;
    let draft = Draft::new(&loaded);
    let bounds = RecentBounds::new(root.txn, loaded.bounds);
    let shared = Arc::new(Shared { db, data_path, log_dir, bounds, _lock: lock });
    let writer = LmdbWriter::new(shared.clone(), draft, Prover::new(pages, root), durable, options.disk_quota);
    Ok(EngineLog {
        state: loaded.state,
        writer: Box::new(Batching::new(writer)),
        reader: Box::new(LmdbReader::new(shared)),
        clean,
    })
}

/// S5, then S8. Returns the newest commit, the log, and whether it had been stopped in order.
fn settle_and_check(directory: &Path, pages: &PageFile) -> Result<(Newest, Loaded, bool)> {
    let log_dir = directory.join(files::LOG_DIR);
    let data_path = pages.path();
    // Read before the sync: a page of the marker that never reached the disk must not speak for the data.
    let marker = NumberFile::read(&NumberFile::clean(&log_dir));
    files::settle(pages.file(), data_path, false)?;
    for path in [log_dir.as_path(), directory] {
        files::sync_directory(path)?;
    }
    files::sync_parent(directory)?;
    let mut newest = Newest::find(pages)?;
    let clean = marker == Some(newest.bounds.number) && !newest.unfinished;
    if !clean {
        files::settle(pages.file(), data_path, true)?;
        newest = Newest::find(pages)?;
    }
    must_be_the_last(&newest, pages, NumberFile::read(&NumberFile::durable(&log_dir)).max(marker))?;
    let loaded = load::load(pages, &newest, !clean)?;
    Ok((newest, loaded, clean))
}

/// S8: no later commit was durable here.
pub(crate) fn must_be_the_last(newest: &Newest, pages: &PageFile, durable: Option<u64>) -> Result<()> {
    let number = newest.bounds.number;
    let Some(durable) = durable.filter(|durable| *durable > number) else { return Ok(()) };
    let why = if newest.unfinished && durable == number.saturating_add(1) {
        "and what it wrote is damaged"
    } else {
        "and writes have been lost"
    };
    let what = format_args!("the log ends at commit {number}, but commit {durable} was durable here, {why}");
    Err(corrupt(pages.path(), what))
}

/// Everything that can be checked; the caller holds the directory's lock.
pub(crate) fn check(log_dir: &Path) -> Result<LogState> {
    let pages = PageFile::open(&log_dir.join(files::DATA_FILE))?;
    let newest = Newest::find(&pages)?;
    must_be_the_last(&newest, &pages, NumberFile::newest(log_dir))?;
    Ok(load::load(&pages, &newest, true)?.state)
}
