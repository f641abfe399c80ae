//! Writes on their way to the disk, and what waits for each of them (S1–S4).

use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::HardState;

use super::bugs::{self, Bug};
use super::deadlines::Micros;
use super::{Core, Outbound};
use crate::entry::Entry;
use crate::log::{ClusterRecord, LogWrite, SnapshotMeta};
use crate::status::Event;

/// One write in flight.
struct InFlight {
    number: u64,
    /// The newest Ready that is durable once this is.
    ready: Option<u64>,
    held: Vec<Outbound>,
    issued: Micros,
    term: u64,
    /// A received snapshot that replaces log and state.
    installed: Option<Arc<SnapshotMeta>>,
    /// A snapshot of our own that the log names from now on, and up to where the log goes.
    named: Option<(Arc<SnapshotMeta>, u64)>,
}

pub(super) struct Writes {
    next: u64,
    in_flight: VecDeque<InFlight>,
    durable_term: u64,
    /// What the disk will say once all is written.
    saved: HardState,
    saved_cluster_index: u64,
    cluster_dirty: bool,
    extra: LogWrite,
    extra_named: Option<(Arc<SnapshotMeta>, u64)>,
    hung: bool,
    /// Last index that was written.
    newest_index: u64,
}

/// The stored configuration's index may lag behind this far: so many entries are read into memory at start.
const CLUSTER_INDEX_LAG: u64 = 1024;

impl Writes {
    pub fn new(durable_term: u64, saved: HardState, saved_cluster_index: u64) -> Self {
        Writes {
            next: 0,
            in_flight: VecDeque::new(),
            durable_term,
            saved,
            saved_cluster_index,
            cluster_dirty: false,
            extra: LogWrite::default(),
            extra_named: None,
            hung: false,
            newest_index: 0,
        }
    }

    pub fn durable_term(&self) -> u64 {
        self.durable_term
    }

    pub fn changes_vote(&self, hard_state: &HardState) -> bool {
        hard_state.term != self.saved.term || hard_state.vote != self.saved.vote
    }

    pub fn cluster_changed(&mut self) {
        self.cluster_dirty = true;
    }

    pub fn hung(&self) -> bool {
        self.hung
    }

    /// Puts a Ready without a write behind the newest write; gives the messages back when nothing is being written.
    pub fn hold_behind(&mut self, ready: u64, held: Vec<Outbound>) -> Option<Vec<Outbound>> {
        match self.in_flight.back_mut() {
            Some(last) => {
                last.ready = Some(ready);
                last.held.extend(held);
                None
            }
            None => Some(held),
        }
    }

    /// Will go with the next write, which will not be long in coming.
    pub fn extra(&mut self) -> &mut LogWrite {
        self.extra.must_sync = true;
        &mut self.extra
    }

    pub fn name_snapshot(&mut self, meta: Arc<SnapshotMeta>, compact_to: u64) {
        let extra = self.extra();
        extra.snapshot = Some(Arc::clone(&meta));
        extra.compact_to = Some(compact_to);
        self.extra_named = Some((meta, compact_to));
        self.cluster_dirty = true;
    }
}

impl Core {
    pub(super) fn write_ready(
        &mut self,
        ready: u64,
        hard_state: HardState,
        entries: Option<Arc<Vec<Entry>>>,
        installed: Option<Arc<SnapshotMeta>>,
        held: Vec<Outbound>,
    ) {
        let mut write = std::mem::take(&mut self.writes.extra);
        write.entries = entries;
        if let Some(meta) = &installed {
            // What was to be said about the old log is void.
            write.snapshot = Some(Arc::clone(meta));
            write.compact_to = None;
            write.reset = !bugs::on(Bug::InstallKeepsTheLog) || meta.index >= self.writes.newest_index;
            self.writes.extra_named = None;
        }
        self.issue(write, hard_state, Some(ready), installed, held);
    }

    /// A write of our own that no Ready asks for.
    pub(super) fn write_extra(&mut self) {
        let lag = self.handed.saturating_sub(self.writes.saved_cluster_index);
        if self.writes.extra.must_sync || self.writes.cluster_dirty || lag >= CLUSTER_INDEX_LAG {
            let write = std::mem::take(&mut self.writes.extra);
            let hard_state = self.raw.raft.hard_state();
            self.issue(write, hard_state, None, None, Vec::new());
        }
    }

    fn issue(
        &mut self,
        mut write: LogWrite,
        hard_state: HardState,
        ready: Option<u64>,
        installed: Option<Arc<SnapshotMeta>>,
        held: Vec<Outbound>,
    ) {
        self.writes.next = self.writes.next.saturating_add(1);
        write.number = self.writes.next;
        write.must_sync = true;
        if self.writes.saved != hard_state {
            write.hard_state = Some(hard_state.clone());
        }
        let lag = self.handed.saturating_sub(self.writes.saved_cluster_index);
        if self.writes.cluster_dirty || lag >= CLUSTER_INDEX_LAG || write.compact_to.is_some() || installed.is_some() {
            let (index, mut cluster) = match &installed {
                Some(meta) => (meta.index, meta.cluster.clone()),
                None => (self.handed, (*self.cluster).clone()),
            };
            cluster.time_us = self.time_us;
            write.cluster = Some(Arc::new(ClusterRecord { index, cluster }));
            // S13: configuration and a commit at or above its index in the same write.
            write.hard_state = (!bugs::on(Bug::StoresMembersAboveCommit)).then(|| hard_state.clone());
            self.writes.saved_cluster_index = index;
            self.writes.cluster_dirty = false;
        }
        if let Some(state) = write.hard_state.as_mut().filter(|_| bugs::on(Bug::ForgetsItsVote)) {
            state.vote = 0;
        }
        if let Some(last) = write.entries.as_ref().and_then(|e| e.last()) {
            self.writes.newest_index = last.index;
        }
        self.writes.in_flight.push_back(InFlight {
            number: write.number,
            ready,
            held,
            issued: self.now,
            term: hard_state.term,
            installed,
            named: self.writes.extra_named.take(),
        });
        self.writes.saved = hard_state;
        self.out.writes.push(write);
    }

    /// Everything up to write `number` is durable: what it promises may leave now, in order (S3).
    pub fn written(&mut self, number: u64) {
        while self.writes.in_flight.front().is_some_and(|w| w.number <= number) {
            let Some(done) = self.writes.in_flight.pop_front() else { return };
            self.writes.durable_term = self.writes.durable_term.max(done.term);
            if let Some(ready) = done.ready {
                self.raw.on_persist_ready(ready);
            }
            self.out.messages.extend(done.held);
            if let Some(meta) = done.installed {
                self.snapshot_installed(meta);
            }
            if let Some((meta, compact_to)) = done.named {
                self.snapshot_named(meta, compact_to);
            }
        }
        if self.writes.hung {
            self.writes.hung = false;
            self.out.events.push(Event::DiskRecovered);
        }
    }

    /// S4: a leader whose disk has hung gives up leadership, and does not campaign until a write has finished.
    pub(super) fn watch_disk(&mut self) {
        let limit = u64::try_from(self.config.hung_write_after().as_micros()).unwrap_or(u64::MAX);
        let Some(oldest) = self.writes.in_flight.front() else { return };
        let age = self.now.saturating_sub(oldest.issued);
        if age > limit && !self.writes.hung {
            self.writes.hung = true;
            self.out.events.push(Event::DiskHung { millis: age / 1000 });
            if !bugs::on(Bug::LeadsWithHungDisk) {
                self.abdicate();
            }
        }
    }
}
