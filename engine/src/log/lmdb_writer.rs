//! The writing half of the LMDB log: what is queued becomes one transaction with one commit and one sync.
//!
//! Invariants: all of a batch or nothing of it; the
//! stored commit index is never below what is compacted, named by a snapshot or applied to the cluster record (S7).
//! A write that contradicts the log is a fault of the caller's and stops the log too: it would break a promise.

use std::sync::Arc;

use heed::{PutFlags, RwTxn};

use crate::error::{Error, ErrorCode, Result};
use crate::log::batching::{Failure, Store};
use crate::log::draft::{Draft, Step};
use crate::log::files::{self, disk_space, NumberFile};
use crate::log::lmdb::Shared;
use crate::log::lmdb_env::write_error;
use crate::log::lmdb_proof::Prover;
use crate::log::record::{self, Meta};
use crate::log::LogWrite;

/// Compacted entries deleted by one commit, at least; a commit that appends more deletes twice as many as it appends.
/// A thousand take about a millisecond, which the entries waiting for this commit wait too.
const DELETIONS: u64 = 256;
/// The same for commits that only make room.
const DELETIONS_FOR_ROOM: u64 = 4096;
/// Of a byte quota, or of the disk, what only compaction may use: LMDB copies pages in order to delete.
const RESERVE: u64 = 8 << 20;
/// Bytes of pages that one commit copies beside the data itself, generously.
const COPIED: u64 = 256 << 10;
/// Bytes written without looking how much room there is, at most, and never more than a quarter of it: others may use the disk.
const UNLOOKED: u64 = 16 << 20;

pub(crate) struct LmdbWriter {
    shared: Arc<Shared>,
    /// The log as it is on the disk.
    state: Draft,
    prover: Prover,
    durable: NumberFile,
    quota: Option<u64>,
    /// Bytes that may be written before it is looked again how many there are.
    room: u64,
    buffer: Vec<u8>,
}

impl LmdbWriter {
    pub(crate) fn new(
        shared: Arc<Shared>,
        state: Draft,
        prover: Prover,
        durable: NumberFile,
        quota: Option<u64>,
    ) -> Self {
        LmdbWriter { shared, state, prover, durable, quota, room: 0, buffer: Vec::new() }
    }

    fn failed(&self, attempted: &str, error: heed::Error) -> Error {
        write_error(&self.shared.data_path, attempted, error)
    }

    /// One transaction. Nothing of `self.state` changes unless it is durable.
    fn transact(&mut self, writes: &[LogWrite], deletions: u64) -> Result<()> {
        let mut draft = self.state.clone();
        let mut buffer = std::mem::take(&mut self.buffer);
        let env = self.shared.db.env.clone();
        let mut txn = env.write_txn().map_err(|e| self.failed("begin a write", e))?;
        let mut changes = false;
        for write in writes {
            let steps = draft.take(write).map_err(|what| self.contradiction(what))?;
            for step in steps {
                changes = true;
                self.carry_out(&mut txn, &step, write, &mut buffer)?;
            }
        }
        draft.settle().map_err(|what| self.contradiction(what))?;
        let floor = draft.bounds.floor;
        draft.bounds.floor = draft.bounds.first.min(floor.saturating_add(deletions));
        self.delete(&mut txn, floor, draft.bounds.floor)?;
        changes |= floor < draft.bounds.floor || draft.changed().next().is_some();
        draft.bounds.number = draft.bounds.number.saturating_add(1);
        self.put_changed(&mut txn, &draft)?;
        if !changes {
            // LMDB makes no commit of nothing, and a vote is nothing to it.
            self.put(&mut txn, Meta::Identity, &record::encode_identity(&draft.identity))?;
        }
        self.shared.bounds.add(txn.id() as u64, draft.bounds);
        txn.commit().map_err(|e| self.failed("write the log", e))?;
        self.prover.prove(draft.bounds, &draft.hard_state).map_err(files::outcome_unknown)?;
        self.buffer = buffer;
        draft.all_stored();
        self.state = draft;
        // After the commit, and unsynced (S8): what this names was durable before.
        self.durable.write(self.state.bounds.number).map_err(files::outcome_unknown)
    }

    fn carry_out(&self, txn: &mut RwTxn<'_>, step: &Step, write: &LogWrite, buffer: &mut Vec<u8>) -> Result<()> {
        match step {
            Step::Clear => self.shared.db.records.clear(txn).map_err(|e| self.failed("clear the log", e)),
            Step::Delete { from, to } => self.delete(txn, *from, *to),
            Step::Append => {
                for entry in write.entries.iter().flat_map(|entries| entries.iter()) {
                    record::encode_entry(entry, buffer).map_err(|fault| self.contradiction(format!("{fault:?}")))?;
                    let key = record::entry_key(entry.index);
                    // Behind all keys: fills pages to the end, and fails should anything lie there.
                    let put = self.shared.db.records.put_with_flags(txn, PutFlags::APPEND, &key, buffer);
                    put.map_err(|e| self.failed("append to the log", e).with_index(entry.index))?;
                }
                Ok(())
            }
        }
    }

    fn delete(&self, txn: &mut RwTxn<'_>, from: u64, to: u64) -> Result<()> {
        for index in from..to {
            let found = self.shared.db.records.delete(txn, &record::entry_key(index));
            if !found.map_err(|e| self.failed("delete from the log", e))? {
                return Err(crate::log::files::corrupt(
                    &self.shared.data_path,
                    format_args!("entry {index} is missing"),
                )
                .with_index(index));
            }
        }
        Ok(())
    }

    fn put(&self, txn: &mut RwTxn<'_>, meta: Meta, value: &[u8]) -> Result<()> {
        let put = self.shared.db.records.put(txn, &meta.key(), value);
        put.map_err(|e| self.failed("write the log", e))
    }

    /// The records that have changed.
    fn put_changed(&self, txn: &mut RwTxn<'_>, draft: &Draft) -> Result<()> {
        for meta in draft.changed() {
            match meta {
                Meta::Identity => self.put(txn, meta, &record::encode_identity(&draft.identity))?,
                Meta::Cluster => self.put(txn, meta, &record::encode_cluster(&draft.cluster))?,
                Meta::Snapshot => {
                    if let Some(snapshot) = &draft.snapshot {
                        self.put(txn, meta, &record::encode_snapshot(snapshot))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn contradiction(&self, what: impl std::fmt::Display) -> Error {
        Error::storage(
            ErrorCode::Internal,
            &self.shared.data_path,
            format_args!("a write contradicts the log: {what}; the node has stopped; please report this"),
        )
    }

    /// Refuses an append for which there may be no room, before LMDB tries: nothing is written, nothing is poisoned, and a
    /// write that compacts still works, on the reserve. `Ok(Some)` is the refusal, an error a failure like any other.
    fn check_room(&mut self, writes: &[LogWrite]) -> Result<Option<Error>> {
        let data: u64 = writes.iter().filter_map(|w| w.entries.as_ref()).flat_map(|e| e.iter()).map(entry_room).sum();
        if data == 0 {
            return Ok(None);
        }
        let need = data.saturating_add(COPIED);
        if let Some(left) = self.room.checked_sub(need) {
            self.room = left;
            return Ok(None);
        }
        loop {
            let refusal = self.refusal(data, need)?;
            if refusal.is_none() || self.state.bounds.floor >= self.state.bounds.first {
                return Ok(refusal);
            }
            // What is compacted already can go now.
            self.transact(&[], DELETIONS_FOR_ROOM)?;
        }
    }

    fn refusal(&mut self, data: u64, need: u64) -> Result<Option<Error>> {
        self.room = 0;
        let path = &self.shared.data_path;
        let db = &self.shared.db;
        let txn = db.env.read_txn().map_err(|e| self.failed("look at the log", e))?;
        let stat = db.records.stat(&txn).map_err(|e| self.failed("look at the log", e))?;
        drop(txn);
        let page = u64::from(stat.page_size);
        let pages = (stat.branch_pages as u64).saturating_add(stat.leaf_pages as u64);
        let used = pages.saturating_add(stat.overflow_pages as u64).saturating_mul(page);
        let quota = self.quota.unwrap_or(u64::MAX).min(db.map_size);
        let allowed = quota.saturating_sub(RESERVE.min(quota / 4)).saturating_sub(used);
        if need > allowed {
            return Ok(Some(Error::storage(
                ErrorCode::DiskFull,
                path,
                format_args!(
                    "the log takes {used} of {quota} bytes allowed and {data} more do not fit; take a snapshot so that it is compacted, or raise disk_quota"
                ),
            )));
        }
        // LMDB reuses free pages inside the file first; half of them, because a large value needs them side by side.
        let inside = std::fs::metadata(path).map_or(0, |m| m.len()).saturating_sub(used) / 2;
        let growth = need.saturating_sub(inside);
        let (free, size) = disk_space(path).unwrap_or((u64::MAX, u64::MAX));
        let spare = free.saturating_sub(RESERVE.min(size / 8));
        if growth > spare {
            return Ok(Some(Error::storage(
                ErrorCode::DiskFull,
                path,
                format_args!("{free} bytes are free on this disk and {data} more of log do not fit; free space, or take a snapshot so that the log is compacted"),
            )));
        }
        self.room = (allowed.min(spare) / 4).min(UNLOOKED);
        Ok(None)
    }
}

/// Bytes of pages that an entry may take: its own pages if large, else its share of a leaf.
fn entry_room(entry: &crate::entry::Entry) -> u64 {
    let size = (entry.data.len() as u64).saturating_add(entry.context.len() as u64).saturating_add(80);
    if size > 1900 {
        size.div_ceil(4096).saturating_add(1).saturating_mul(4096)
    } else {
        size.saturating_mul(2)
    }
}

impl Store for LmdbWriter {
    fn state(&self) -> &Draft {
        &self.state
    }

    fn commit(&mut self, writes: &[LogWrite]) -> Result<(), Failure> {
        if let Some(refusal) = self.check_room(writes)? {
            return Err(Failure::Refused(refusal));
        }
        let appended: usize = writes.iter().filter_map(|w| w.entries.as_ref()).map(|e| e.len()).sum();
        self.transact(writes, DELETIONS.max((appended as u64).saturating_mul(2)))?;
        Ok(())
    }

    fn mark_clean(&mut self) -> Result<()> {
        files::mark_clean(&self.shared.log_dir, self.state.bounds.number)
    }
}
