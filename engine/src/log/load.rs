//! From the records of a checked file to what the log knows: everything read once, in key order, before LMDB maps it.
//!
//! Invariants checked here: each record proves itself (CRC, format, key); entries are exactly `floor..=last` without a
//! gap, their terms never fall; commit lies between what is compacted and the last entry (S7).

use std::ops::ControlFlow;
use std::path::Path;

use raft::eraftpb::HardState;

use crate::error::{Error, ErrorCode, Result};
use crate::log::files::{corrupt, too_new};
use crate::log::lmdb_format::{PageFile, Root, Value};
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

/// Checks the file at `root` and reads the log out of it. With `deep`, payloads that lie on pages of their own are checked
/// too; those within the tree's pages always are.
pub(crate) fn load(pages: &PageFile, root: &Root, deep: bool) -> Result<Loaded> {
    let mut loader = Loader::default();
    lmdb_pages::check(pages, root, &mut |key, value| {
        loader.record(pages, key, value, deep)?;
        Ok(ControlFlow::Continue(()))
    })?;
    loader.finish(pages.path())
}

#[derive(Default)]
struct Loader {
    identity: Option<Identity>,
    hard_state: Option<HardState>,
    cluster: Option<ClusterRecord>,
    snapshot: Option<SnapshotMeta>,
    bounds: Option<Bounds>,
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
            Meta::HardState => self.hard_state = Some(record::decode_hard_state(value)?),
            Meta::Cluster => self.cluster = Some(record::decode_cluster(value)?),
            Meta::Snapshot => self.snapshot = Some(record::decode_snapshot(value)?),
            Meta::Bounds => self.bounds = Some(record::decode_bounds(value)?),
        }
        Ok(())
    }

    fn entry(&mut self, pages: &PageFile, index: u64, value: Value<'_>, deep: bool) -> Result<Result<(), Fault>> {
        let damaged = |what: String| Ok(Err(Fault::Damaged(what)));
        // The bounds sort before all entries.
        let Some(bounds) = self.bounds else { return damaged("there are entries, but no bounds".into()) };
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
        let nothing = self.identity.is_none() && self.hard_state.is_none() && self.bounds.is_none();
        if nothing && self.foreign {
            return Err(Error::storage(
                ErrorCode::WrongDirectory,
                path,
                "an LMDB database of another program; nothing was changed; name another directory",
            ));
        }
        if self.foreign {
            return Err(corrupt(path, "it holds a record of an unknown kind"));
        }
        let (Some(identity), Some(hard_state), Some(cluster), Some(bounds)) =
            (self.identity, self.hard_state, self.cluster, self.bounds)
        else {
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

/// The running number of the commit at `root`, as far as it can be read; what the whole check finds is not found here.
pub(crate) fn number(pages: &PageFile, root: &Root) -> Result<Option<u64>> {
    let mut number = None;
    let key = Meta::Bounds.key();
    lmdb_pages::scan(pages, root, &key, &mut |found, value| {
        if let (true, Value::Here(bytes)) = (found == key, value) {
            number = record::decode_bounds(bytes).ok().map(|bounds| bounds.number);
        }
        Ok(ControlFlow::Break(()))
    })?;
    Ok(number)
}
