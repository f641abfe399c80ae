//! An LMDB log read beside its writer, with pread only.
//!
//! How it stays consistent without LMDB's reader table: pages of commit T are reused by commit T + 3 at the earliest. A
//! part that was read while the newest commit was still T or T + 1 is whole; otherwise it is read again. What the side file
//! named before is there (S8).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::entry::{Entries, Entry};
use crate::error::{Error, ErrorCode, Result};
use crate::log::files::{self, corrupt, NumberFile};
use crate::log::inspect::{Small, View};
use crate::log::lmdb_file::PageFile;
use crate::log::lmdb_page::Value;
use crate::log::lmdb_proof::Newest;
use crate::log::load::record_error;
use crate::log::record::{self, Key, Meta};
use crate::log::{lmdb, lmdb_pages, ClusterRecord, Identity, SnapshotMeta};

/// Tries per part; each needs to be faster than two commits.
const TRIES: usize = 1000;

#[derive(Default)]
struct Records {
    identity: Option<Identity>,
    cluster: Option<ClusterRecord>,
    snapshot: Option<SnapshotMeta>,
}

pub(crate) struct LmdbView {
    log_dir: PathBuf,
    pages: PageFile,
}

impl LmdbView {
    pub(crate) fn open(log_dir: &Path) -> Result<Self> {
        let pages = PageFile::open(&log_dir.join(files::DATA_FILE))?;
        Ok(LmdbView { log_dir: log_dir.to_path_buf(), pages })
    }

    /// Reads a part of the newest commit that is proven, until no other can have changed its pages meanwhile.
    fn consistent<T>(&self, mut read: impl FnMut(&PageFile, &Newest) -> Result<T>) -> Result<(Newest, T)> {
        let pages = &self.pages;
        let mut last = None;
        for _ in 0..TRIES {
            // Before the newest commit is looked for: the writer names one here when all of it can be read, and the number only grows.
            let durable = NumberFile::newest(&self.log_dir);
            let outcome = Newest::find(pages).and_then(|newest| {
                lmdb::must_be_the_last(&newest, pages, durable)?;
                let part = read(pages, &newest)?;
                Ok((newest, part))
            });
            let now = pages.roots().map(|roots| roots.newest.txn);
            match (outcome, now) {
                (Ok(found), Ok(now)) if now <= found.0.root.txn.saturating_add(1) => return Ok(found),
                // Damage that stays is damage; under a busy node it may be a page that was just reused.
                (Err(error), _) | (_, Err(error)) => last = Some(error),
                _ => {}
            }
        }
        Err(last.unwrap_or_else(|| {
            Error::storage(
                ErrorCode::Overloaded,
                pages.path(),
                "the node writes too fast to be read beside it; try again",
            )
        }))
    }
}

impl View for LmdbView {
    fn small(&mut self) -> Result<Small> {
        let (newest, Records { identity, cluster, snapshot }) = self.consistent(small_records)?;
        let Newest { hard_state, bounds, .. } = newest;
        let (Some(identity), Some(cluster)) = (identity, cluster) else {
            return Err(corrupt(self.pages.path(), "one of the log's own records is missing"));
        };
        Ok(Small { identity, hard_state, cluster, snapshot, first: bounds.first, last: bounds.last })
    }

    fn entries(&mut self, low: u64, high: u64) -> Result<Vec<Entry>> {
        Ok(self.consistent(|pages, newest| some_entries(pages, newest, low, high))?.1)
    }
}

fn whole(pages: &PageFile, value: Value<'_>) -> Result<Vec<u8>> {
    match value {
        Value::Here(bytes) => Ok(bytes.to_vec()),
        Value::Far { page, size, .. } => pages.far_value(page, size),
    }
}

fn small_records(pages: &PageFile, newest: &Newest) -> Result<Records> {
    let mut records = Records::default();
    lmdb_pages::scan(pages, &newest.root, &[], &mut |key, value| {
        let Some(Key::Meta(meta)) = record::parse_key(key) else { return Ok(ControlFlow::Break(())) };
        let value = whole(pages, value)?;
        let decoded = match meta {
            Meta::Identity => record::decode_identity(&value).map(|v| records.identity = Some(v)),
            Meta::Cluster => record::decode_cluster(&value).map(|v| records.cluster = Some(v)),
            Meta::Snapshot => record::decode_snapshot(&value).map(|v| records.snapshot = Some(v)),
        };
        decoded.map_err(|fault| record_error(pages.path(), None, fault))?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(records)
}

/// Entries `low..high`; none if they have been compacted meanwhile.
fn some_entries(pages: &PageFile, newest: &Newest, low: u64, high: u64) -> Result<Vec<Entry>> {
    let mut entries = Entries::default();
    let mut expected = low;
    lmdb_pages::scan(pages, &newest.root, &record::entry_key(low), &mut |key, value| {
        if expected >= high || record::parse_key(key) != Some(Key::Entry(expected)) {
            return Ok(ControlFlow::Break(()));
        }
        let value = whole(pages, value)?;
        let gathered = record::gather_entry(expected, &value, &mut entries);
        gathered.map_err(|fault| record_error(pages.path(), Some(expected), fault))?;
        expected = expected.saturating_add(1);
        Ok(ControlFlow::Continue(()))
    })?;
    // All from the first to the last one are there: one that is not has not been compacted, either.
    if low >= newest.bounds.first && expected < high.min(newest.bounds.last.saturating_add(1)) {
        return Err(corrupt(pages.path(), format_args!("entry {expected} is missing")).with_index(expected));
    }
    let entries = entries.whole();
    match entries.last() {
        Some(last) if last.index >= high => Err(corrupt(pages.path(), "entries out of order")),
        _ => Ok(entries),
    }
}
