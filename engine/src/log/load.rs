//! From the records of a checked file to what the log knows: everything read once, in key order, before LMDB maps it.
//!
//! Invariants checked here: each record proves itself (CRC, format, key); entries are exactly `floor..=last` without a
//! gap, their terms never fall; commit lies between what is compacted and the last entry (S7).

use std::ops::ControlFlow;
use std::path::Path;

use raft::eraftpb::HardState;

use crate::error::{Error, Result};
use crate::log::files::{corrupt, too_new};
use crate::log::lmdb_file::PageFile;
use crate::log::lmdb_page::Value;
use crate::log::lmdb_proof::Newest;
use crate::log::record::{self, Bounds, Fault, Key, Meta};
use crate::log::{lmdb_pages, ClusterRecord, Identity, LogState, SnapshotMeta};

/// A log as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub state: LogState,
    pub bounds: Bounds,
}

/// A fault of a record as an error of the file.
pub(crate) fn record_error(path: &Path, index: Option<u64>, fault: Fault) -> Error {
    let error = match (fault, index) {
        (Fault::TooNew(format), _) => too_new(path, format.into()),
        (Fault::Damaged(what), Some(index)) => corrupt(path, format_args!("entry {index}: {what}")),
        (Fault::Damaged(what), None) => corrupt(path, what),
    };
    match index {
        Some(index) => error.with_index(index),
        None => error,
    }
}

/// Checks the file at its `newest` commit and reads the log out of it. With `deep`, payloads that lie on pages of their own are checked
/// too; those within the tree's pages always are.
pub(crate) fn load(pages: &PageFile, newest: &Newest, deep: bool) -> Result<Loaded> {
    let mut loader = Loader {
        hard_state: newest.hard_state.clone(),
        bounds: newest.bounds,
        identity: None,
        cluster: None,
        snapshot: None,
        entries: None,
        last_term: 0,
        terms: Vec::new(),
        bytes: 0,
        foreign: false,
    };
    lmdb_pages::check(pages, &newest.root, &mut |key, value| {
        loader.record(pages, key, value, deep)?;
        Ok(ControlFlow::Continue(()))
    })?;
    loader.finish(pages.path())
}

struct Loader {
    hard_state: HardState,
    bounds: Bounds,
    identity: Option<Identity>,
    cluster: Option<ClusterRecord>,
    snapshot: Option<SnapshotMeta>,
    /// First and last entry met.
    entries: Option<(u64, u64)>,
    last_term: u64,
    terms: Vec<(u64, u64)>,
    bytes: u64,
    foreign: bool,
}

impl Loader {
    fn record(&mut self, pages: &PageFile, key: &[u8], value: Value<'_>, deep: bool) -> Result<()> {
        match record::parse_key(key) {
            Some(Key::Entry(index)) => {
                self.entry(pages, index, value, deep)?.map_err(|fault| record_error(pages.path(), Some(index), fault))
            }
            Some(Key::Meta(meta)) => {
                let whole = match value {
                    Value::Here(bytes) => bytes.to_vec(),
                    Value::Far { page, size, .. } => pages.far_value(page, size)?,
                };
                self.meta(meta, &whole).map_err(|fault| record_error(pages.path(), None, fault))
            }
            None => {
                self.foreign = true;
                Ok(())
            }
        }
    }

    fn meta(&mut self, meta: Meta, value: &[u8]) -> Result<(), Fault> {
        match meta {
            Meta::Identity => self.identity = Some(record::decode_identity(value)?),
            Meta::Cluster => self.cluster = Some(record::decode_cluster(value)?),
            Meta::Snapshot => self.snapshot = Some(record::decode_snapshot(value)?),
        }
        Ok(())
    }

    fn entry(&mut self, pages: &PageFile, index: u64, value: Value<'_>, deep: bool) -> Result<Result<(), Fault>> {
        let damaged = |what: String| Ok(Err(Fault::Damaged(what)));
        let bounds = self.bounds;
        let expected = self.entries.map_or(bounds.floor, |(_, last)| last.saturating_add(1));
        if index != expected || index > bounds.last {
            return damaged(format!("found where entry {expected} of {} must be", bounds.last));
        }
        let (head, size) = match value {
            Value::Here(bytes) => (bytes, bytes.len() as u64),
            Value::Far { first, size, .. } => (first, size),
        };
        let header = match record::decode_entry_header(index, head) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let payload = match value {
            Value::Here(bytes) => record::check_payload(&header, bytes).map(|_| ()),
            Value::Far { page, size, .. } if deep => {
                record::check_payload(&header, &pages.far_value(page, size)?).map(|_| ())
            }
            Value::Far { .. } if size == header.value_len() => Ok(()),
            Value::Far { .. } => Err(Fault::Damaged("not as long as its header says".into())),
        };
        if let Err(fault) = payload {
            return Ok(Err(fault));
        }
        if header.term < self.last_term || (index >= bounds.first && header.term < bounds.prev_term) {
            return damaged(format!("its term {} is below the one before", header.term));
        }
        if index >= bounds.first {
            if self.terms.last().is_none_or(|(_, term)| *term != header.term) {
                self.terms.push((index, header.term));
            }
            self.bytes = self.bytes.saturating_add(header.data_len.into());
        }
        self.last_term = header.term;
        self.entries = Some((self.entries.map_or(index, |(first, _)| first), index));
        Ok(Ok(()))
    }

    fn finish(self, path: &Path) -> Result<Loaded> {
        if self.foreign {
            return Err(corrupt(path, "it holds a record of an unknown kind"));
        }
        let Loader { bounds, hard_state, .. } = self;
        let (Some(identity), Some(cluster)) = (self.identity, self.cluster) else {
            return Err(corrupt(path, "one of the log's own records is missing"));
        };
        let expected = (bounds.floor <= bounds.last).then_some((bounds.floor, bounds.last));
        if self.entries != expected {
            let last = self.entries.map_or(bounds.floor, |(_, last)| last.saturating_add(1));
            return Err(corrupt(path, format_args!("entry {last} is missing")).with_index(last));
        }
        let state = LogState {
            identity,
            hard_state,
            cluster,
            snapshot: self.snapshot,
            first_index: bounds.first,
            prev_term: bounds.prev_term,
            last_index: bounds.last,
            terms: self.terms,
            bytes: self.bytes,
        };
        if !is_consistent(&state) {
            return Err(corrupt(path, "commit index, snapshot and entries contradict each other"));
        }
        Ok(Loaded { state, bounds })
    }
}

/// What must hold between the parts of every log (S7).
pub(crate) fn is_consistent(state: &LogState) -> bool {
    let snapshot = state.snapshot.as_ref().map_or(0, |s| s.index);
    let compacted = state.first_index.saturating_sub(1);
    let commit = state.hard_state.commit;
    commit <= state.last_index
        && commit >= compacted.max(snapshot).max(state.cluster.index)
        && compacted <= snapshot
        && state.terms.last().is_none_or(|(_, term)| state.hard_state.term >= *term)
}
