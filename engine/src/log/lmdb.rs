//! The LMDB log: making a directory, and opening one, in the order that S5 and S8 demand.
//!
//! Open: sync everything, check the whole file with pread, compare with the number of the newest durable commit, and only
//! then let LMDB map it. Nothing is deleted or repaired on the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::log::batching::Batching;
use crate::log::draft::Draft;
use crate::log::files::{self, corrupt, NumberFile};
use crate::log::lmdb_env::{self, translate};
use crate::log::lmdb_format::PageFile;
use crate::log::lmdb_reader::LmdbReader;
use crate::log::lmdb_writer::LmdbWriter;
use crate::log::load::{self, Loaded};
use crate::log::lock::DirectoryLock;
use crate::log::open::{EngineLog, LogOptions};
use crate::log::record::Meta;
use crate::log::LogState;

/// What writer and reader share. The fields go in order: the database is closed before the directory is given up.
pub(crate) struct Shared {
    pub db: lmdb_env::Opened,
    pub data_path: PathBuf,
    pub log_dir: PathBuf,
    _lock: DirectoryLock,
}

/// Makes a log of `records` in the empty directory `fresh`; durable when this returns, but for the directory itself.
pub(crate) fn create(fresh: &Path, records: &[(Meta, Vec<u8>)]) -> Result<()> {
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
    let data = fresh.join(files::DATA_FILE);
    let file = std::fs::File::open(&data).map_err(|e| Error::io(&data, "open the file", &e))?;
    files::settle(&file, &data, false)
}

/// Opens the log in `directory`, whose lock is held.
pub(crate) fn open(directory: &Path, options: &LogOptions, lock: DirectoryLock) -> Result<EngineLog> {
    let log_dir = directory.join(files::LOG_DIR);
    let data_path = log_dir.join(files::DATA_FILE);
    let (loaded, clean) = settle_and_check(directory)?;
    options.must_own(directory, &loaded.state)?;
    files::prepare_lmdb_lock(&log_dir)?;
    // Twice the quota: the map must never be what stops the log.
    let db = lmdb_env::open(&log_dir, options.disk_quota.unwrap_or(0).saturating_mul(2))?;
    let durable = NumberFile::open(NumberFile::durable(&log_dir))?;
    // Its block exists from now on, so that writing it cannot fail for want of space.
    durable.write(loaded.bounds.number)?;
    let draft = Draft::new(&loaded);
    let shared = Arc::new(Shared { db, data_path, log_dir, _lock: lock });
    let writer = LmdbWriter::new(shared.clone(), draft, durable, options.disk_quota);
    Ok(EngineLog {
        state: loaded.state,
        writer: Box::new(Batching::new(writer)),
        reader: Box::new(LmdbReader::new(shared)),
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

/// Everything that can be checked; the caller holds the directory's lock.
pub(crate) fn check(log_dir: &Path) -> Result<LogState> {
    let pages = PageFile::open(&log_dir.join(files::DATA_FILE))?;
    Ok(load::load(&pages, &pages.newest_root()?, true)?.state)
}
