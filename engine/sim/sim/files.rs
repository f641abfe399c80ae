//! Snapshot files of one node (S6): complete and synced as they are here, until a fault spoils one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raftify_engine::log::{LogState, SnapshotMeta};
use serde::{Deserialize, Serialize};

use super::disk::Sabotage;

/// What has become of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spoil {
    /// A bit has turned, so many thousandths into the file.
    Flip(u64),
    /// Only so many thousandths of it are left.
    Cut(u64),
    Gone,
}

struct SnapshotFile {
    meta: SnapshotMeta,
    bytes: Arc<Vec<u8>>,
}

#[derive(Default)]
pub struct Files {
    /// By index and checksum, as files are named: what nodes know of results, behind the same state, may differ.
    by_name: BTreeMap<Name, SnapshotFile>,
    spoiled: BTreeSet<Name>,
}

type Name = (u64, u32);

fn name(meta: &SnapshotMeta) -> Name {
    (meta.index, meta.crc)
}

/// The table of client sessions, behind the state.
pub fn table<'a>(meta: &SnapshotMeta, file: &'a [u8]) -> &'a [u8] {
    &file[file.len().min(meta.state_size() as usize)..]
}

impl Files {
    pub fn insert(&mut self, meta: SnapshotMeta, bytes: Arc<Vec<u8>>) {
        self.spoiled.remove(&name(&meta));
        self.by_name.insert(name(&meta), SnapshotFile { meta, bytes });
    }

    pub fn get(&self, meta: &SnapshotMeta) -> Option<&Arc<Vec<u8>>> {
        self.by_name.get(&name(meta)).map(|file| &file.bytes)
    }

    pub fn newest(&self) -> u64 {
        self.by_name.keys().next_back().map_or(0, |(index, _)| *index)
    }

    /// The file is the one that was written.
    pub fn is_whole(&self, meta: &SnapshotMeta) -> bool {
        !meta.has_file || self.get(meta).is_some_and(|f| f.len() as u64 == meta.size && crc32c::crc32c(f) == meta.crc)
    }

    pub fn is_spoiled(&self, meta: &SnapshotMeta) -> bool {
        self.spoiled.contains(&name(meta))
    }

    /// Older ones go, but for the newest from which a log that begins at `first_index` goes on, if such a one is kept.
    pub fn prune(&mut self, keep: &SnapshotMeta, first_index: u64, spare: bool, sabotage: Option<Sabotage>) {
        let first_index = if sabotage == Some(Sabotage::StandsInOverAGap) { 0 } else { first_index };
        let keep = name(keep);
        let older = self.by_name.keys().filter(|(index, _)| *index < keep.0).copied();
        let spare = older.filter(|(index, _)| index + 1 >= first_index).max().filter(|_| spare);
        self.by_name.retain(|at, _| at.0 > keep.0 || *at == keep || Some(*at) == spare);
    }

    pub fn keep_only(&mut self, meta: Option<&SnapshotMeta>) {
        self.by_name.retain(|at, _| meta.is_some_and(|meta| name(meta) == *at));
    }

    /// The newest whole one that may stand in for the one that this log names.
    pub fn stand_in(&self, log: &LogState, sabotage: Option<Sabotage>) -> Option<SnapshotMeta> {
        // What it says itself: the sum of outcomes is not in the file.
        let metas = self.by_name.values().rev().map(|file| SnapshotMeta { outcomes: None, ..file.meta.clone() });
        let any = |older: &SnapshotMeta| {
            sabotage == Some(Sabotage::StandsInOverAGap) && log.snapshot.as_ref().is_some_and(|n| older.index < n.index)
        };
        metas.into_iter().find(|older| (log.goes_on_from(older) || any(older)) && self.is_whole(older))
    }

    pub fn spoil(&mut self, meta: &SnapshotMeta, how: Spoil) {
        let Some(file) = self.by_name.get_mut(&name(meta)) else { return };
        self.spoiled.insert(name(meta));
        let len = file.bytes.len();
        let at = |thousandths: u64| (len as u64 * thousandths.min(999) / 1000) as usize;
        match how {
            Spoil::Flip(place) => {
                if let Some(byte) = Arc::make_mut(&mut file.bytes).get_mut(at(place)) {
                    *byte ^= 1 << (place % 8);
                }
            }
            Spoil::Cut(left) => Arc::make_mut(&mut file.bytes).truncate(at(left)),
            Spoil::Gone => drop(self.by_name.remove(&name(meta))),
        }
    }
}
