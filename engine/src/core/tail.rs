//! The newest part of the log in memory, and everything raft may ask of a log without waiting for a disk.
//!
//! Invariants: entries `tail_first..=last_index` are here, in `Arc`ed chunks that the log writer shares; every entry above
//! raft's hand-over cursor is here; the term of every index in `first_index - 1 ..= last_index` is known. Older entries come
//! from the log reader, later (`LogTemporarilyUnavailable`, S14).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::{self, ConfState, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, StorageError};

use crate::cluster::NodeId;
use crate::entry::Entry;
use crate::log::{LogState, SnapshotMeta};

use super::deadlines::Micros;
use super::run::Run;
use super::sweep::Sweep;
use super::turn::{Standing, Turn, FAR};

/// Entries of one append, `skip..skip + len` of them still valid.
struct Chunk {
    first: u64,
    skip: usize,
    len: usize,
    entries: Arc<Vec<Entry>>,
    bytes: u64,
}

impl Chunk {
    fn slice(&self) -> &[Entry] {
        self.entries.get(self.skip..self.skip.saturating_add(self.len)).unwrap_or(&[])
    }

    fn end(&self) -> u64 {
        self.first.saturating_add(self.len as u64)
    }
}

/// Raft waits for entries that are on the disk only.
#[derive(Debug)]
pub struct WantedEntries {
    pub low: u64,
    pub high: u64,
    pub max_bytes: u64,
    pub context: GetEntriesContext,
}

pub struct Tail {
    hard_state: HardState,
    conf_state: ConfState,
    first_index: u64,
    prev_term: u64,
    last_index: u64,
    /// (index, term) where each term begins; the first one is at or below `first_index`.
    terms: Vec<(u64, u64)>,
    chunks: VecDeque<Chunk>,
    bytes: u64,
    sweep: Sweep,
    snapshot: Option<Arc<SnapshotMeta>>,
    wanted: RefCell<Vec<WantedEntries>>,
    turn: Turn,
    fetched: RefCell<VecDeque<Arc<Vec<Entry>>>>,
    /// Raft wants to send a snapshot to this member and there is none that names it (S13).
    wanted_snapshot: Cell<Option<NodeId>>,
    /// (index, bytes of all entries up to it), coarse; for bounding the trailing log by bytes.
    sizes: VecDeque<(u64, u64)>,
    total_bytes: u64,
}

/// Runs of fetched entries kept for raft to pick up.
const FETCHED_KEPT: usize = 16;
const SIZE_STEP: u64 = 64 << 10;
/// Counted for each entry beside its data.
const ENTRY_BYTES: u64 = 64;
/// Entries that memory is taken for before they have been looked at, at most.
const RESERVED: u64 = 4096;

/// What raft is given: the bytes are taken from here when they are needed, for a peer ([`Tail::run`]) or for the state machine.
fn skeleton(entry: &Entry) -> eraftpb::Entry {
    eraftpb::Entry { entry_type: entry.entry_type, term: entry.term, index: entry.index, ..Default::default() }
}

fn data_bytes(entry: &Entry) -> u64 {
    entry.data.len() as u64
}

impl Tail {
    /// `entries` are all those above the stored configuration's index, from the log.
    pub fn new(state: &LogState, hard_state: HardState, conf_state: ConfState, entries: Vec<Entry>) -> Self {
        let mut tail = Tail {
            hard_state,
            conf_state,
            first_index: state.first_index,
            prev_term: state.prev_term,
            last_index: state.last_index,
            terms: state.terms.clone(),
            chunks: VecDeque::new(),
            bytes: 0,
            sweep: Sweep::default(),
            snapshot: state.snapshot.clone().map(Arc::new),
            wanted: RefCell::default(),
            turn: Turn::default(),
            fetched: RefCell::default(),
            wanted_snapshot: Cell::new(None),
            sizes: VecDeque::new(),
            total_bytes: 0,
        };
        if let Some(first) = entries.first().map(|e| e.index) {
            tail.push_chunk(first, Arc::new(entries));
        }
        tail
    }

    pub fn snapshot_meta(&self) -> Option<&Arc<SnapshotMeta>> {
        self.snapshot.as_ref()
    }

    pub fn set_snapshot_meta(&mut self, meta: Arc<SnapshotMeta>) {
        self.snapshot = Some(meta);
    }

    pub fn first(&self) -> u64 {
        self.first_index
    }

    pub fn last(&self) -> u64 {
        self.last_index
    }

    /// First index held in memory; `last + 1` when none is.
    pub fn tail_first(&self) -> u64 {
        self.chunks.front().map_or(self.last_index.saturating_add(1), |c| c.first)
    }

    fn push_chunk(&mut self, first: u64, entries: Arc<Vec<Entry>>) {
        let mut bytes = 0u64;
        for entry in entries.iter() {
            bytes = bytes.saturating_add(data_bytes(entry));
            self.total_bytes = self.total_bytes.saturating_add(data_bytes(entry)).saturating_add(ENTRY_BYTES);
            if self.sizes.back().is_none_or(|(_, sum)| self.total_bytes.saturating_sub(*sum) >= SIZE_STEP) {
                self.sizes.push_back((entry.index, self.total_bytes));
            }
        }
        self.bytes = self.bytes.saturating_add(bytes);
        let len = entries.len();
        self.chunks.push_back(Chunk { first, skip: 0, len, entries, bytes });
    }

    /// Appends; whatever stood at or above the first of them goes (a conflicting suffix).
    pub fn append(&mut self, entries: Arc<Vec<Entry>>) {
        let (Some(first), Some(last)) = (entries.first().map(|e| e.index), entries.last().map(|e| e.index)) else {
            return;
        };
        if first <= self.last_index {
            self.truncate_from(first);
        }
        for entry in entries.iter() {
            if self.terms.last().is_none_or(|(_, term)| *term != entry.term) {
                self.terms.push((entry.index, entry.term));
            }
        }
        self.sweep.came(entries.len());
        self.push_chunk(first, entries);
        self.last_index = last;
    }

    fn truncate_from(&mut self, index: u64) {
        while let Some(chunk) = self.chunks.back_mut() {
            if chunk.first >= index {
                self.bytes = self.bytes.saturating_sub(chunk.bytes);
                self.chunks.pop_back();
                continue;
            }
            if chunk.end() > index {
                chunk.len = index.saturating_sub(chunk.first) as usize;
                let left: u64 = chunk.slice().iter().map(data_bytes).sum();
                self.bytes = self.bytes.saturating_sub(chunk.bytes.saturating_sub(left));
                chunk.bytes = left;
            }
            break;
        }
        self.terms.retain(|(start, _)| *start < index);
        while self.sizes.back().is_some_and(|(i, _)| *i >= index) {
            self.sizes.pop_back();
        }
        self.fetched.borrow_mut().clear();
        self.last_index = index.saturating_sub(1);
    }

    /// The log starts anew after a snapshot.
    pub fn reset(&mut self, meta: &Arc<SnapshotMeta>) {
        while !self.chunks.is_empty() {
            self.pop_front_chunk();
        }
        self.bytes = 0;
        self.sizes.clear();
        self.fetched.borrow_mut().clear();
        self.terms.clear();
        self.first_index = meta.index.saturating_add(1);
        self.prev_term = meta.term;
        self.last_index = meta.index;
        self.conf_state = meta.cluster.conf_state();
        self.snapshot = Some(Arc::clone(meta));
    }

    /// Entries up to and including `index` are gone from the log.
    pub fn compact(&mut self, index: u64) {
        if index < self.first_index || index > self.last_index {
            return;
        }
        let Some(term) = self.known_term(index) else { return };
        self.prev_term = term;
        self.first_index = index.saturating_add(1);
        while self.chunks.front().is_some_and(|c| c.end() <= self.first_index) {
            self.pop_front_chunk();
        }
        let keep = self.terms.partition_point(|(start, _)| *start <= self.first_index).saturating_sub(1);
        self.terms.drain(..keep.min(self.terms.len()));
        while self.sizes.front().is_some_and(|(i, _)| *i <= index) {
            self.sizes.pop_front();
        }
    }

    fn pop_front_chunk(&mut self) {
        if let Some(chunk) = self.chunks.pop_front() {
            self.bytes = self.bytes.saturating_sub(chunk.bytes);
            self.sweep.give(chunk.entries);
        }
    }

    /// Frees something of what has left memory.
    pub fn sweep(&mut self) {
        self.sweep.some();
    }

    /// Lets go of what is at or below `upto`, oldest first, until at most `budget` bytes stay.
    pub fn evict(&mut self, upto: u64, budget: u64) {
        while self.bytes > budget
            && self.chunks.len() > 1
            && self.chunks.front().is_some_and(|c| c.end() <= upto.saturating_add(1))
        {
            self.pop_front_chunk();
        }
    }

    /// The highest index below which, from memory of sizes, more than `limit` bytes of log lie after it up to the end.
    pub fn index_before_bytes(&self, limit: u64) -> u64 {
        let floor = self.total_bytes.saturating_sub(limit);
        let at = self.sizes.partition_point(|(_, sum)| *sum <= floor);
        at.checked_sub(1).and_then(|i| self.sizes.get(i)).map_or(0, |(index, _)| *index)
    }

    /// The term at an index from `first_index - 1` on; `None` outside the log.
    pub fn known_term(&self, index: u64) -> Option<u64> {
        if index.saturating_add(1) == self.first_index {
            return Some(self.prev_term);
        }
        if index < self.first_index || index > self.last_index {
            return None;
        }
        let run = self.terms.partition_point(|(start, _)| *start <= index).checked_sub(1)?;
        self.terms.get(run).map(|(_, term)| *term)
    }

    /// Calls `visit` for each entry of `low..=high` held in memory, in order, until it says `false`. Does nothing when `low` is not held.
    pub fn for_each(&self, low: u64, high: u64, mut visit: impl FnMut(&Entry) -> bool) {
        self.for_each_place(low, high, |chunk, at| chunk.get(at).is_some_and(&mut visit));
    }

    /// The same, with the chunk that holds the entry, and where it lies in there.
    pub fn for_each_place(&self, low: u64, high: u64, mut visit: impl FnMut(&Arc<Vec<Entry>>, usize) -> bool) {
        let at = self.chunks.partition_point(|c| c.end() <= low);
        for chunk in self.chunks.iter().skip(at) {
            if chunk.first > high {
                return;
            }
            let from = low.saturating_sub(chunk.first) as usize;
            for (at, entry) in chunk.slice().iter().enumerate().skip(from) {
                if entry.index > high || !visit(&chunk.entries, chunk.skip.saturating_add(at)) {
                    return;
                }
            }
        }
    }

    /// What peers are given in each turn.
    pub fn turn(&self) -> &Turn {
        &self.turn
    }

    pub fn turn_mut(&mut self) -> &mut Turn {
        &mut self.turn
    }

    /// Peers may be given a turn's measure again; how far each is behind is judged by where the log stands now.
    pub fn begin_turn(&mut self, now: Micros, committed: u64) {
        let far = self.index_before_bytes(FAR).min(committed);
        self.turn.begin(now, Standing { committed, appended: self.total_bytes, far });
    }

    pub fn take_wanted(&mut self) -> Vec<WantedEntries> {
        std::mem::take(self.wanted.get_mut())
    }

    pub fn take_wanted_snapshot(&mut self) -> Option<NodeId> {
        self.wanted_snapshot.take()
    }

    /// Entries that the reader brought: raft asks for them again at once.
    pub fn put_fetched(&mut self, entries: Vec<Entry>) {
        if !entries.is_empty() {
            self.fetched.get_mut().push_back(Arc::new(entries));
        }
    }

    /// What raft was given of them has been sent: the oldest may go.
    pub fn trim_fetched(&mut self) {
        let fetched = self.fetched.get_mut();
        while fetched.len() > FETCHED_KEPT {
            fetched.pop_front();
        }
    }

    /// The entries that these skeletons of raft's stand for, unless one of them is not in memory (any more).
    pub fn run(&self, skeletons: &[eraftpb::Entry]) -> Option<Run> {
        let mut run = Run::default();
        let mut rest = skeletons;
        let fetched = self.fetched.borrow();
        while let Some(index) = rest.first().map(|e| e.index) {
            let at = self.chunks.partition_point(|c| c.end() <= index);
            let chunk = self.chunks.get(at).filter(|c| c.first <= index).map(|c| (&c.entries, c.skip, c.len, c.first));
            let fetched = || {
                let holds = |run: &&Arc<Vec<Entry>>| {
                    run.first().is_some_and(|e| e.index <= index) && run.last().is_some_and(|e| e.index >= index)
                };
                fetched.iter().find(holds).and_then(|run| Some((run, 0, run.len(), run.first()?.index)))
            };
            let (entries, skip, len, first) = chunk.or_else(fetched)?;
            let from = usize::try_from(index.checked_sub(first)?).ok()?;
            let count = len.checked_sub(from)?.min(rest.len());
            let (from, to) = (skip.checked_add(from)?, skip.checked_add(from)?.checked_add(count)?);
            let (taken, left) = rest.split_at_checked(count)?;
            let same = |(a, b): (&Entry, &eraftpb::Entry)| a.index == b.index && a.term == b.term;
            if count == 0 || !entries.get(from..to)?.iter().zip(taken).all(same) {
                return None;
            }
            run.push(entries, from, to);
            rest = left;
        }
        Some(run)
    }

    /// With what they take.
    fn fetched_from(&self, low: u64, high: u64, max: u64) -> Option<(Vec<eraftpb::Entry>, u64)> {
        let fetched = self.fetched.borrow();
        let held = fetched
            .iter()
            .find(|run| run.first().is_some_and(|e| e.index <= low) && run.last().is_some_and(|e| e.index >= low))?;
        let mut bytes = 0u64;
        let mut out = Vec::new();
        for entry in held.iter().skip_while(|e| e.index < low).take_while(|e| e.index < high) {
            bytes = bytes.saturating_add(data_bytes(entry)).saturating_add(ENTRY_BYTES);
            if bytes > max && !out.is_empty() {
                break;
            }
            out.push(skeleton(entry));
        }
        (!out.is_empty()).then_some((out, bytes))
    }

    pub fn set_conf_state(&mut self, conf: ConfState) {
        self.conf_state = conf;
    }
}

impl raft::Storage for Tail {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low < self.first_index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last_index.saturating_add(1) {
            return Err(StorageError::Unavailable.into());
        }
        let wish = max_size.into().unwrap_or(u64::MAX);
        let for_a_peer = context.can_async();
        if let Some(waiting) = self.turn.waits_in(low).filter(|_| for_a_peer) {
            waiting.push(context);
            return Err(StorageError::LogTemporarilyUnavailable.into());
        }
        let max = if for_a_peer { wish.min(self.turn.measure()) } else { wish };
        if low < self.tail_first() {
            if !for_a_peer {
                return Err(StorageError::Unavailable.into());
            }
            if let Some((entries, bytes)) = self.fetched_from(low, high, max) {
                self.turn.give(low, bytes);
                return Ok(entries);
            }
            // At most up to the tail: what is in memory needs no reading.
            let high = high.min(self.tail_first());
            self.wanted.borrow_mut().push(WantedEntries { low, high, max_bytes: wish, context });
            return Err(StorageError::LogTemporarilyUnavailable.into());
        }
        let most = high.saturating_sub(low).min(max / ENTRY_BYTES).saturating_add(1).min(RESERVED);
        let mut out = Vec::with_capacity(usize::try_from(most).unwrap_or_default());
        let mut bytes = 0u64;
        self.for_each(low, high.saturating_sub(1), |entry| {
            bytes = bytes.saturating_add(data_bytes(entry)).saturating_add(ENTRY_BYTES);
            if bytes > max && !out.is_empty() {
                return false;
            }
            out.push(skeleton(entry));
            true
        });
        if for_a_peer {
            self.turn.give(low, bytes);
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.known_term(index) {
            Some(term) => Ok(term),
            None if index < self.first_index => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first_index)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        if let Some(meta) = &self.snapshot {
            // The log must go on right after it, and it must name the receiver: raft drops one that does not, in silence (S13).
            let named =
                meta.cluster.is_voter(to) || meta.cluster.is_learner(to) || meta.cluster.voters_outgoing.contains(&to);
            if named && meta.index >= request_index && meta.index.saturating_add(1) >= self.first_index {
                return Ok(raft_snapshot(meta));
            }
        }
        self.wanted_snapshot.set(Some(to));
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

/// What raft sends in place of log entries: the metadata alone, the state goes in a stream of its own.
pub fn raft_snapshot(meta: &SnapshotMeta) -> Snapshot {
    Snapshot {
        data: Vec::new(),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(meta.cluster.conf_state()),
            index: meta.index,
            term: meta.term,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{ClusterState, Uid};
    use crate::log::{ClusterRecord, Identity};
    use raft::Storage;

    fn entries(range: std::ops::Range<u64>, term: u64) -> Arc<Vec<Entry>> {
        Arc::new(range.map(|index| Entry { index, term, data: vec![0; 10].into(), ..Entry::default() }).collect())
    }

    fn empty() -> Tail {
        let cluster = ClusterRecord { index: 1, cluster: ClusterState::default() };
        let identity =
            Identity { node_id: 1, directory: Uid(1), digest: 0, cluster_id: String::new(), incarnation: None };
        let state = LogState {
            identity,
            hard_state: HardState::default(),
            cluster,
            snapshot: None,
            first_index: 2,
            prev_term: 1,
            last_index: 1,
            terms: vec![],
            bytes: 0,
        };
        Tail::new(&state, HardState::default(), ConfState::default(), vec![])
    }

    #[test]
    fn an_append_removes_the_conflicting_suffix() {
        let mut tail = empty();
        tail.append(entries(2..8, 1));
        tail.append(entries(5..7, 2));
        assert_eq!(
            (tail.last_index, tail.known_term(4), tail.known_term(5), tail.known_term(7)),
            (6, Some(1), Some(2), None)
        );
        let got = tail.entries(2, 7, None, GetEntriesContext::empty(true)).unwrap();
        assert_eq!(got.iter().map(|e| e.term).collect::<Vec<_>>(), [1, 1, 1, 2, 2]);
        assert_eq!(tail.bytes, 50);
    }

    #[test]
    fn what_was_evicted_is_asked_of_the_reader_and_then_served() {
        let mut tail = empty();
        tail.append(entries(2..6, 1));
        tail.append(entries(6..9, 1));
        tail.evict(8, 0);
        assert_eq!(tail.tail_first(), 6);
        let asked = tail.entries(3, 9, None, GetEntriesContext::empty(true));
        assert_eq!(asked, Err(StorageError::LogTemporarilyUnavailable.into()));
        let wanted = tail.take_wanted();
        assert_eq!((wanted[0].low, wanted[0].high), (3, 6));
        tail.put_fetched(entries(3..6, 1).to_vec());
        let skeletons = tail.entries(3, 9, None, GetEntriesContext::empty(true)).unwrap();
        assert_eq!(skeletons.iter().map(|e| (e.index, e.data.len())).collect::<Vec<_>>(), [(3, 0), (4, 0), (5, 0)]);
        let all = [skeletons, tail.entries(6, 9, None, GetEntriesContext::empty(true)).unwrap()].concat();
        let run = tail.run(&all).unwrap();
        assert_eq!(
            run.iter().map(|e| (e.index, e.data.len())).collect::<Vec<_>>(),
            (3..9).map(|i| (i, 10)).collect::<Vec<_>>()
        );
        assert_eq!(tail.known_term(3), Some(1), "terms are known without the entries");
    }

    #[test]
    fn a_run_is_what_raft_means_or_nothing() {
        let mut tail = empty();
        tail.append(entries(2..8, 1));
        tail.append(entries(5..9, 2));
        let skeletons = |range, term| entries(range, term).iter().map(skeleton).collect::<Vec<_>>();
        for (story, wanted, found) in [
            ("over two appends", [skeletons(3..5, 1), skeletons(5..7, 2)].concat(), Some(4)),
            ("overwritten since", skeletons(3..7, 1), None),
            ("beyond the end", skeletons(8..10, 2), None),
            ("before the start", skeletons(1..3, 1), None),
            ("nothing", vec![], Some(0)),
        ] {
            let run = tail.run(&wanted);
            assert_eq!(run.as_ref().map(Run::len), found, "{story}");
            let same = run.iter().flat_map(Run::iter).zip(&wanted).all(|(a, b)| (a.index, a.term) == (b.index, b.term));
            assert!(same, "{story}");
        }
    }

    #[test]
    fn compaction_moves_the_start_and_keeps_the_term_before_it() {
        let mut tail = empty();
        tail.append(entries(2..5, 1));
        tail.append(entries(5..9, 3));
        tail.compact(5);
        assert_eq!(
            (tail.first(), tail.known_term(5), tail.known_term(6), tail.known_term(4)),
            (6, Some(3), Some(3), None)
        );
        assert_eq!(tail.entries(4, 9, None, GetEntriesContext::empty(false)), Err(StorageError::Compacted.into()));
    }

    #[test]
    fn a_snapshot_that_does_not_name_its_receiver_is_not_offered() {
        let mut tail = empty();
        let cluster = ClusterState::founding(&[(1, "a:1".to_string())].into());
        tail.set_snapshot_meta(Arc::new(SnapshotMeta::without_file(1, 1, cluster)));
        assert!(tail.snapshot(0, 1).is_ok());
        assert_eq!(tail.snapshot(0, 2), Err(StorageError::SnapshotTemporarilyUnavailable.into()));
        assert_eq!(tail.take_wanted_snapshot(), Some(2));
    }
}
