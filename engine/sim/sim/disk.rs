//! One node's disk: a log that keeps all of a write or nothing, and snapshot files ([`super::files`]). What is synced, what only the page cache has, what is lost.
//!
//! Invariants checked here: entries stay contiguous, a stored commit or term never goes back, nothing above the named snapshot is compacted.

use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::{EntryType, HardState};
use raftify_engine::cluster::ClusterState;
use raftify_engine::core::new_log;
use raftify_engine::entry::Entry;
use raftify_engine::log::{ClusterRecord, Identity, LogState, LogWrite, SnapshotMeta};
use serde::{Deserialize, Serialize};

use super::files::Files;

/// The log as a reader sees it.
#[derive(Clone)]
pub struct Image {
    pub identity: Identity,
    pub hard_state: HardState,
    pub cluster: ClusterRecord,
    pub snapshot: Option<SnapshotMeta>,
    pub first_index: u64,
    prev_term: u64,
    entries: VecDeque<(Arc<Vec<Entry>>, usize)>,
}

impl Image {
    pub fn born(identity: Identity, founding: &ClusterState) -> Self {
        let (hard_state, cluster, snapshot) = new_log(founding);
        let start = snapshot.as_ref().map_or((0, 0), |s| (s.index, s.term));
        Image {
            identity,
            hard_state,
            cluster,
            snapshot,
            first_index: start.0 + 1,
            prev_term: start.1,
            entries: VecDeque::new(),
        }
    }

    pub fn last_index(&self) -> u64 {
        self.first_index + self.entries.len() as u64 - 1
    }

    pub fn entry(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.first_index)? as usize;
        self.entries.get(at).map(|(chunk, i)| &chunk[*i])
    }

    pub fn term(&self, index: u64) -> Option<u64> {
        if index + 1 == self.first_index {
            return Some(self.prev_term);
        }
        self.entry(index).map(|e| e.term)
    }

    /// Holds this entry, or a snapshot that covers it.
    pub fn covers(&self, index: u64, term: u64) -> bool {
        match self.term(index) {
            Some(here) => here == term,
            None => index < self.first_index,
        }
    }

    pub fn apply(&mut self, write: &LogWrite) {
        if write.reset {
            let meta = write.snapshot.as_ref().expect("a reset names its snapshot");
            self.entries.clear();
            self.first_index = meta.index + 1;
            self.prev_term = meta.term;
        }
        if let Some(entries) = write.entries.as_ref().filter(|e| !e.is_empty()) {
            let first = entries[0].index;
            assert!(
                first >= self.first_index && first <= self.last_index() + 1,
                "VIOLATION: an append at {first} to a log of {}..={}",
                self.first_index,
                self.last_index()
            );
            self.entries.truncate((first - self.first_index) as usize);
            for i in 0..entries.len() {
                assert_eq!(entries[i].index, first + i as u64, "VIOLATION: entries of a write are not contiguous");
                self.entries.push_back((Arc::clone(entries), i));
            }
        }
        if let Some(hard_state) = &write.hard_state {
            assert!(
                hard_state.term >= self.hard_state.term && hard_state.commit >= self.hard_state.commit,
                "VIOLATION: the hard state goes back from {:?} to {hard_state:?}",
                self.hard_state
            );
            if hard_state.term == self.hard_state.term && self.hard_state.vote != 0 {
                assert_eq!(hard_state.vote, self.hard_state.vote, "VIOLATION: the vote changes within a term");
            }
            self.hard_state = hard_state.clone();
        }
        if let Some(record) = &write.cluster {
            assert!(record.index >= self.cluster.index, "VIOLATION: the stored configuration goes back");
            self.cluster = (**record).clone();
        }
        assert!(self.hard_state.commit >= self.cluster.index, "VIOLATION: commit below the stored configuration (S7)");
        if let Some(identity) = &write.identity {
            assert!(
                self.identity.directory == identity.directory
                    && (self.identity.incarnation.is_none() || self.identity.incarnation == identity.incarnation),
                "VIOLATION: a directory changes its identity (S11)"
            );
            self.identity = identity.clone();
        }
        if let Some(meta) = &write.snapshot {
            let old = self.snapshot.as_ref().map_or(0, |s| s.index);
            assert!(meta.index >= old, "VIOLATION: the named snapshot goes back from {old} to {}", meta.index);
            assert!(
                meta.index + 1 >= self.first_index && meta.index <= self.last_index(),
                "VIOLATION: snapshot {} of a log of {}..={}",
                meta.index,
                self.first_index,
                self.last_index()
            );
            self.snapshot = Some((**meta).clone());
        }
        if let Some(upto) = write.compact_to {
            let snapshot = self.snapshot.as_ref().map_or(0, |s| s.index);
            assert!(upto <= snapshot, "VIOLATION: compaction to {upto} above the snapshot at {snapshot}");
            if upto >= self.first_index {
                let term = self.term(upto).expect("the log holds what is compacted");
                self.entries.drain(..(upto + 1 - self.first_index) as usize);
                self.first_index = upto + 1;
                self.prev_term = term;
            }
        }
        assert!(
            self.hard_state.commit <= self.last_index(),
            "VIOLATION: commit {} stored with a log that ends at {}",
            self.hard_state.commit,
            self.last_index()
        );
    }

    pub fn read(&self, low: u64, high: u64, max_bytes: u64) -> Vec<Entry> {
        let mut bytes = 0;
        let mut out = Vec::new();
        let mut index = low;
        while let Some(entry) = (index < high).then(|| self.entry(index)).flatten() {
            bytes += entry.data.len() as u64;
            out.push(entry.clone());
            if bytes > max_bytes {
                break;
            }
            index += 1;
        }
        out
    }

    /// Entries that this log does not know to be committed.
    fn uncommitted(&self) -> impl Iterator<Item = &Entry> {
        (self.hard_state.commit + 1..=self.last_index()).filter_map(|index| self.entry(index))
    }

    /// What an opened log says, and its entries above the stored configuration.
    pub fn open(&self) -> (LogState, Vec<Entry>) {
        let mut terms: Vec<(u64, u64)> = Vec::new();
        for (chunk, i) in &self.entries {
            let entry = &chunk[*i];
            if terms.last().is_none_or(|(_, term)| *term != entry.term) {
                terms.push((entry.index, entry.term));
            }
        }
        let state = LogState {
            identity: self.identity.clone(),
            hard_state: self.hard_state.clone(),
            cluster: self.cluster.clone(),
            snapshot: self.snapshot.clone(),
            first_index: self.first_index,
            prev_term: self.prev_term,
            last_index: self.last_index(),
            terms,
            bytes: self.entries.iter().map(|(chunk, i)| chunk[*i].data.len() as u64).sum(),
        };
        let entries = self.read(self.cluster.index + 1, u64::MAX, u64::MAX);
        (state, entries)
    }
}

/// Known faults, put back to prove that they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sabotage {
    /// S5: what the page cache holds is believed at open without a sync.
    OpenDoesNotSync,
    /// S1: a write counts as durable when it is issued.
    WrittenTooEarly,
    /// A wiped directory comes back under its old identity (S11).
    WipedKeepsItsName,
    /// S6: the file of a snapshot is restored as it is found.
    RestoresUnchecked,
    /// The last two files of snapshots are kept, and the older one stands in also where the log does not go on from it (S6).
    StandsInOverAGap,
}

pub struct Disk {
    /// What survives a power loss.
    pub synced: Image,
    /// Written by a process that died before its sync was done: readable, and gone with a power loss (S5).
    pub page_cache: Vec<LogWrite>,
    pub files: Files,
    /// In the writer's hands: one transaction.
    pub in_flight: Vec<LogWrite>,
    /// Waiting in the process for the writer.
    pub queued: Vec<LogWrite>,
    /// No write finishes before this moment.
    pub hung_until: u64,
    /// The next sync fails (S10).
    pub fails: bool,
    /// Each sync takes so much longer, until then.
    pub slow: (u64, u64),
    /// Nothing can be appended before this moment; the node is stopped by that, or its writer waits for room.
    pub full: (u64, bool),
    /// A bit has turned: the next read finds it.
    pub flipped: bool,
    /// Since when the oldest write that is not durable waits.
    pub waits_since: Option<u64>,
    queued_since: Option<u64>,
    /// Put back on purpose: what open found in the page cache was believed and not synced; this is what the disk says.
    unsynced: Option<Image>,
}

impl Disk {
    /// A change of members stands in this log, or is being written to it, which it does not know to be committed.
    pub fn may_change_members(&self) -> bool {
        let writes = self.page_cache.iter().chain(&self.in_flight).chain(&self.queued);
        let unsynced = writes.flat_map(|write| write.entries.iter().flat_map(|entries| entries.iter()));
        self.synced.uncommitted().chain(unsynced).any(|entry| entry.entry_type != EntryType::EntryNormal as i32)
    }

    pub fn new(image: Image) -> Self {
        Disk {
            synced: image,
            page_cache: Vec::new(),
            files: Files::default(),
            in_flight: Vec::new(),
            queued: Vec::new(),
            hung_until: 0,
            fails: false,
            slow: (0, 0),
            full: (0, false),
            flipped: false,
            waits_since: None,
            queued_since: None,
            unsynced: None,
        }
    }

    pub fn calm(&mut self) {
        self.hung_until = 0;
        self.fails = false;
        self.slow = (0, 0);
        self.full = (0, false);
    }

    /// Nothing can be appended now; what appends nothing (a compaction) still goes.
    pub fn is_full(&self, now: u64) -> bool {
        now < self.full.0 && self.in_flight.iter().any(|w| w.entries.as_ref().is_some_and(|e| !e.is_empty()))
    }

    pub fn enqueue(&mut self, writes: Vec<LogWrite>, now: u64) {
        if !writes.is_empty() {
            self.waits_since.get_or_insert(now);
            self.queued_since.get_or_insert(now);
            self.queued.extend(writes);
        }
    }

    /// All that waits becomes one transaction; false when one is under way, or nothing waits.
    pub fn begin(&mut self) -> bool {
        if !self.in_flight.is_empty() || self.queued.is_empty() {
            return false;
        }
        self.in_flight = std::mem::take(&mut self.queued);
        self.waits_since = self.queued_since.take();
        true
    }

    /// The transaction in flight is durable; the number of its last write.
    pub fn sync(&mut self) -> u64 {
        let mut last = 0;
        self.unsynced = None;
        for write in std::mem::take(&mut self.in_flight) {
            self.synced.apply(&write);
            last = write.number;
        }
        self.waits_since = self.queued_since;
        last
    }

    /// The process dies with `readable` of the writes in flight in the page cache.
    pub fn process_died(&mut self, readable: usize) {
        self.forget_queue();
        let mut writes = std::mem::take(&mut self.in_flight);
        writes.truncate(readable);
        self.page_cache = writes;
    }

    /// The power goes; `survive` of what was not synced happens to be on the disk.
    /// The write after those was torn, or reached the disk as noise: it is as if it had never been written.
    pub fn power_lost(&mut self, survive: usize) {
        self.forget_queue();
        let writes = std::mem::take(&mut self.page_cache).into_iter().chain(std::mem::take(&mut self.in_flight));
        let survivors: Vec<LogWrite> = writes.take(survive).collect();
        if let Some(old) = self.unsynced.take() {
            self.synced = old;
            return;
        }
        survivors.iter().for_each(|w| self.synced.apply(w));
    }

    fn forget_queue(&mut self) {
        self.queued.clear();
        self.waits_since = None;
        self.queued_since = None;
    }

    /// S5: opening syncs what it finds, before anybody believes it. S6: none when the snapshot that the log names is spoiled, and no
    /// older one can stand in.
    pub fn open(&mut self, sabotage: Option<Sabotage>, spares: bool) -> Option<(LogState, Vec<Entry>)> {
        if sabotage == Some(Sabotage::OpenDoesNotSync) && !self.page_cache.is_empty() {
            self.unsynced.get_or_insert(self.synced.clone());
        } else {
            self.unsynced = None;
        }
        for write in std::mem::take(&mut self.page_cache) {
            self.synced.apply(&write);
        }
        let named = self.synced.snapshot.clone();
        if !spares {
            self.files.keep_only(named.as_ref());
        }
        let (mut log, entries) = self.synced.open();
        if let Some(meta) =
            named.filter(|meta| !self.files.is_whole(meta) && sabotage != Some(Sabotage::RestoresUnchecked))
        {
            assert!(
                self.files.is_spoiled(&meta),
                "VIOLATION: the snapshot file {} that the log names is missing or another one (S6)",
                meta.index
            );
            log.snapshot = Some(self.files.stand_in(&log, sabotage)?);
        }
        Some((log, entries))
    }
}
