//! What the state machine is asked, in log order, and how far it has got. The driver never waits for it (S14).
//!
//! At most a few batches are outstanding; what is committed beyond that stays an index range, read back from memory or disk.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use super::batch_maker::{verified_after, BatchMaker, How, Made, Settled};
use super::bugs::{self, Bug};
use super::requests::State;
use super::sessions::{Again, Name, Sessions, Verdict};
use super::{outcomes, Core, Fetch};
use crate::entry::Entry;
use crate::error::{Committed, Error, ErrorCode};
use crate::log::SnapshotMeta;
use crate::machine::{ApplyBatch, MachineAnswer, MachineRequest, Outcome};
use crate::request::Reply;

enum Outstanding {
    Apply {
        id: u64,
        last_index: u64,
        /// (index, term, request) of those whose proposer waits here.
        wanted: Vec<(u64, u64, u64)>,
        /// (index, term, name) of those of sessions: what they came to is kept.
        named: Vec<(u64, u64, Name)>,
    },
    /// It keeps what names the file: the log may name another snapshot before this one is restored.
    Restore { id: u64, meta: Arc<SnapshotMeta> },
    /// Entries the machine need not hear of.
    Skip { last_index: u64 },
}

pub(super) struct MachineStream {
    next_id: u64,
    outstanding: VecDeque<Outstanding>,
    /// First index that has not been put into a batch.
    next_index: u64,
    applied: u64,
    /// The snapshot to restore before anything else.
    start_from: Option<Arc<SnapshotMeta>>,
    /// The machine has a state: none is to be restored, or the first one is. Before that `applied` is where it will stand.
    begun: bool,
    told_restored: bool,
    /// A received snapshot is being written: what lies before it will not be applied any more.
    overtaken: bool,
    fetching: Option<u64>,
    /// In order; those before `next_index` are in a batch already.
    fetched: Arc<Vec<Entry>>,
    /// Commands of the newest batch: the next one will have about as many.
    last_batch: usize,
    /// Up to here a durable machine has every command; what the table of sessions does not know of them is looked at alone.
    has: u64,
    /// Requests that wait for what an earlier entry comes to, as the same command of the same session: its index → they.
    echoes: BTreeMap<u64, Vec<u64>>,
}

impl MachineStream {
    /// S7: a durable machine goes on right behind the index it names, wherever the snapshot ends. One that the log does not reach back
    /// to takes the snapshot, as does one that starts empty: the log ends only behind a snapshot whose file is on the disk.
    ///
    /// `sessions`: the table as of the snapshot; `looks`: there may have been sessions since. What a durable machine has beyond the snapshot
    /// is then looked at once more, for the table alone; what it lacks before it had a verdict each, which the table must remember.
    pub fn new(
        snapshot: Option<&SnapshotMeta>,
        first_index: u64,
        machine_applied: Option<u64>,
        sessions: &Sessions,
        looks: bool,
    ) -> Self {
        let reaches =
            |index: &u64| index.saturating_add(1) >= first_index && sessions.remembers(index.saturating_add(1));
        let durable = machine_applied.filter(reaches);
        let applied = durable.unwrap_or(snapshot.map_or(0, |s| s.index));
        let from = if looks && !bugs::on(Bug::SkipsSessions) { applied.min(sessions.at()) } else { applied };
        MachineStream {
            next_id: 0,
            outstanding: VecDeque::new(),
            next_index: from.saturating_add(1),
            applied,
            has: applied,
            echoes: BTreeMap::new(),
            start_from: snapshot
                .filter(|s| s.has_file && durable.is_none() && !bugs::on(Bug::DoesNotRestoreAtStart))
                .map(|s| Arc::new(s.clone())),
            begun: durable.is_some() || !snapshot.is_some_and(|s| s.has_file),
            told_restored: false,
            overtaken: false,
            fetching: None,
            fetched: Arc::default(),
            last_batch: 0,
        }
    }

    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// What may be said of where the machine stands: nothing before it has a state.
    pub fn stands_at(&self) -> u64 {
        if self.begun {
            self.applied
        } else {
            0
        }
    }

    /// Everything up to here is on its way to the machine.
    pub fn queued(&self) -> u64 {
        self.next_index.saturating_sub(1)
    }

    pub fn next_id(&mut self) -> u64 {
        self.next_id = self.next_id.saturating_add(1);
        self.next_id
    }

    /// The machine has to take this state before anything that comes later.
    fn restore(&mut self, meta: Arc<SnapshotMeta>) -> u64 {
        let (id, index) = (self.next_id(), meta.index);
        self.outstanding.push_back(Outstanding::Restore { id, meta });
        let replayed = if bugs::on(Bug::ReplaysOverTheSnapshot) { 1 } else { 0 };
        self.next_index = index.saturating_add(1).saturating_sub(replayed);
        self.fetched = Arc::default();
        self.fetching = None;
        id
    }

    /// Nothing more is to be queued: a snapshot is about to replace it.
    pub fn overtake(&mut self) {
        self.overtaken = true;
        self.fetching = None;
        self.fetched = Arc::default();
    }

    /// The snapshot that overtook is in the log: state or not, the machine goes on behind it.
    pub fn resume_after(&mut self, index: u64) {
        self.overtaken = false;
        if self.next_index <= index {
            self.next_index = index.saturating_add(1);
            self.outstanding.push_back(Outstanding::Skip { last_index: index });
        }
    }

    /// Requests whose result is on its way.
    pub fn answering(&self) -> HashSet<u64> {
        let batches = self.outstanding.iter().map(|o| match o {
            Outstanding::Apply { wanted, .. } => wanted.as_slice(),
            _ => &[],
        });
        let applied = batches.flatten().map(|(_, _, request)| *request);
        applied.chain(self.echoes.values().flatten().copied()).collect()
    }

    fn restores_below(&self, limit: u64) -> bool {
        self.outstanding.iter().any(|o| matches!(o, Outstanding::Restore { meta, .. } if meta.index < limit))
    }

    fn restoring(&self) -> bool {
        self.overtaken || self.outstanding.iter().any(|o| matches!(o, Outstanding::Restore { .. }))
    }
}

impl Core {
    pub(super) fn pump_machine(&mut self) {
        if let Some(meta) = self.machine.start_from.take() {
            self.restore_machine(meta);
        }
        let mut gathers = false;
        while !self.machine.restoring()
            && (self.machine.outstanding.len() as u64) < self.config.machine_batches
            && self.machine.next_index <= self.handed
        {
            gathers = self.may_gather(self.machine.next_index);
            if gathers || !self.queue_batch() {
                break;
            }
        }
        if !gathers {
            self.unawaited.none();
        }
        self.pass_skips();
        if !self.machine.told_restored && !self.machine.restoring() && self.machine.start_from.is_none() {
            self.machine.told_restored = true;
            self.out.restored = true;
        }
        // S6: a file that a restore still has to read stays.
        if let Some(meta) = self.prune.take_if(|meta| !self.machine.restores_below(meta.index)) {
            self.out.prune = Some(meta);
        }
        let applied = self.machine.applied;
        while self.versions.get(1).is_some_and(|(index, _)| *index <= applied) {
            self.versions.pop_front();
        }
        // Memory holds what raft and the machine still need, and a bounded part for followers that lag a little.
        let free = self.machine.queued().min(self.raw.raft.raft_log.persisted).min(self.handed);
        self.raw.mut_store().evict(free, self.config.tail_bytes);
    }

    pub(super) fn restore_machine(&mut self, meta: Arc<SnapshotMeta>) {
        let (index, term, size) = (meta.index, meta.term, meta.state_size());
        let id = self.machine.restore(meta);
        self.out.machine.push(MachineRequest::Restore { id, index, term, path: Default::default(), size });
    }

    /// The snapshot that this request, which is not answered yet, tells the machine to restore. Its file stays until then (S6).
    pub fn snapshot_to_restore(&self, request: u64) -> Option<Arc<SnapshotMeta>> {
        self.machine.outstanding.iter().find_map(|o| match o {
            Outstanding::Restore { id, meta } if *id == request => Some(Arc::clone(meta)),
            _ => None,
        })
    }

    /// Makes one batch from memory, or asks the disk for it. False when it has to wait.
    fn queue_batch(&mut self) -> bool {
        let low = self.machine.next_index;
        let high = self.handed;
        let mut batch = BatchMaker {
            proposer: (self.id, self.start),
            max_entries: self.config.machine_batch_entries,
            max_bytes: self.config.machine_batch_bytes,
            verify_results_after: self.cluster.verify_results_after,
            sessions: &mut self.sessions,
            has: self.machine.has,
            made: Made { batch: ApplyBatch::with_capacity(self.machine.last_batch), ..Made::default() },
        };
        if self.raw.store().tail_first() <= low {
            let requests = &self.requests.pending;
            let token_of = |request: u64| requests.get(&request).map(|p| p.token);
            self.raw.store().for_each_place(low, high, |chunk, at| batch.add(chunk, at, token_of));
        } else {
            let fetched = Arc::clone(&self.machine.fetched);
            let Ok(from) = fetched.binary_search_by_key(&low, |e| e.index) else {
                self.machine.fetched = Arc::default();
                if self.machine.fetching.is_none() {
                    let id = self.machine.next_id();
                    self.machine.fetching = Some(id);
                    let high = high.saturating_add(1).min(self.raw.store().tail_first().max(low.saturating_add(1)));
                    self.out.fetches.push(Fetch { id, low, high, max_bytes: self.config.machine_batch_bytes });
                }
                return false;
            };
            let requests = &self.requests.pending;
            let token_of = |request: u64| requests.get(&request).map(|p| p.token);
            let upto = fetched.partition_point(|e| e.index <= high);
            let _ = (from..upto).all(|at| batch.add(&fetched, at, token_of));
        }
        let Made { mut batch, wanted, named, settled, last } = batch.made;
        let Some((last_index, last_term)) = last else { return false };
        self.sessions.advance(last_index);
        self.machine.next_index = last_index.saturating_add(1);
        if self.machine.fetched.last().is_some_and(|e| e.index <= last_index) {
            self.machine.fetched = Arc::default();
        }
        for (index, term, request) in &wanted {
            if let Some(pending) = self.requests.pending.get_mut(request) {
                pending.state = State::Placed { index: *index, term: *term, committed: true };
            }
        }
        self.settle(settled);
        if batch.entries.is_empty() {
            self.machine.outstanding.push_back(Outstanding::Skip { last_index });
            return true;
        }
        let id = self.machine.next_id();
        self.machine.last_batch = batch.entries.len();
        batch.id = id;
        batch.last_index = last_index;
        batch.last_term = last_term;
        self.machine.outstanding.push_back(Outstanding::Apply { id, last_index, wanted, named });
        self.out.machine.push(MachineRequest::Apply(batch));
        true
    }

    pub(super) fn machine_fetched(&mut self, id: u64, entries: Vec<Entry>) -> bool {
        if self.machine.fetching != Some(id) {
            return false;
        }
        self.machine.fetching = None;
        if entries.first().map(|e| e.index) == Some(self.machine.next_index) {
            self.machine.fetched = Arc::new(entries);
        }
        true
    }

    fn pass_skips(&mut self) {
        while let Some(Outstanding::Skip { last_index }) = self.machine.outstanding.front() {
            // A durable machine stands further than what is looked at for the table of sessions.
            self.machine.applied = self.machine.applied.max(*last_index);
            self.outcomes.advance(*last_index);
            self.machine.outstanding.pop_front();
            self.reads_applied();
        }
    }

    /// The state machine's answer. One that answers nothing that was asked, or out of turn, is at fault and stops its node.
    pub fn machine_answer(&mut self, answer: MachineAnswer) {
        if self.failed.is_some() {
            return;
        }
        match answer {
            MachineAnswer::Applied { id, outcomes } => self.batch_applied(id, outcomes, false),
            MachineAnswer::AppliedAndTold { id, outcomes } => self.batch_applied(id, outcomes, true),
            MachineAnswer::Restored { id } => match self.machine.outstanding.front() {
                Some(Outstanding::Restore { id: expected, meta }) if *expected == id => {
                    self.machine.applied = meta.index;
                    self.machine.begun = true;
                    self.outcomes.restored(meta.index, meta.outcomes);
                    self.machine.outstanding.pop_front();
                    self.reads_applied();
                }
                _ => self.machine_out_of_turn(id),
            },
            MachineAnswer::Snapshot { id, result } => {
                if let Err(reason) = result {
                    self.snapshot_failed(id, reason);
                }
            }
            MachineAnswer::Failed { error, index, .. } => {
                // The command it stopped at counts as not applied here; the cluster has it all the same.
                self.fail(Error { committed: Committed::Unknown, ..error }.with_index(index));
            }
        }
        self.pass_skips();
        self.note_outcomes();
    }

    fn batch_applied(&mut self, id: u64, outcomes: Vec<(u64, Outcome)>, told: bool) {
        match self.machine.outstanding.front() {
            Some(Outstanding::Apply { id: expected, .. }) if *expected == id => self.machine_applied(outcomes, told),
            _ => self.machine_out_of_turn(id),
        }
    }

    fn machine_out_of_turn(&mut self, id: u64) {
        self.fail(Error::unknown(
            ErrorCode::MachineFailed,
            format!("the state machine answered request {id}, which is not the one it was asked next; answer each once, in order"),
        ));
    }

    fn machine_applied(&mut self, outcomes: Vec<(u64, Outcome)>, told: bool) {
        let Some(Outstanding::Apply { last_index, wanted, named, .. }) = self.machine.outstanding.pop_front() else {
            return;
        };
        self.machine.applied = last_index;
        self.sum_up(&outcomes, last_index);
        for (index, term, name) in named {
            self.keep_outcome(index, term, name, &outcomes);
        }
        let mut outcomes = outcomes.into_iter().peekable();
        for (index, term, request) in wanted {
            while outcomes.peek().is_some_and(|(at, _)| *at < index) {
                outcomes.next();
            }
            let outcome = match outcomes.next_if(|(at, _)| *at == index) {
                Some((_, outcome)) => outcome,
                None if told && !bugs::on(Bug::AnswersTwice) => {
                    self.forget(request);
                    continue;
                }
                None => Ok(Vec::new()),
            };
            self.complete(request, came_to(index, term, outcome));
        }
        self.reads_applied();
    }

    /// What a command of a session came to, for whoever sends it again, and for those who have done so.
    fn keep_outcome(&mut self, index: u64, term: u64, name: Name, outcomes: &[(u64, Outcome)]) {
        // Every one was wanted: a result that is not named is empty.
        let found = outcomes.binary_search_by_key(&index, |(at, _)| *at).ok().and_then(|at| outcomes.get(at));
        let outcome = found.map_or_else(|| Ok(Vec::new()), |(_, outcome)| outcome.clone());
        self.sessions.came_to(index, name, Some(&outcome));
        self.snapshots.came_to(index, name, &outcome);
        for request in self.machine.echoes.remove(&index).unwrap_or_default() {
            self.complete(request, came_to(index, term, outcome.clone()));
        }
    }

    /// Ends the requests that the table of sessions has decided.
    fn settle(&mut self, settled: Vec<Settled>) {
        for Settled { request, index, term, how } in settled {
            let result = match how {
                How::Opened(session) => Ok(Reply::Session(session)),
                How::Closed => Ok(Reply::Done),
                How::Passed(Verdict::Again(Again::Pending { index: before })) => {
                    // It is committed, and on its way to the machine: as much as its first sending.
                    if let Some(pending) = self.requests.pending.get_mut(&request) {
                        pending.state = State::Placed { index, term, committed: true };
                    }
                    self.machine.echoes.entry(before).or_default().push(request);
                    continue;
                }
                How::Passed(verdict) => passed(index, verdict),
            };
            self.complete(request, result);
        }
    }

    /// S17: that a command raised counts, and what it returned if the cluster says so.
    fn sum_up(&mut self, outcomes: &[(u64, Outcome)], last_index: u64) {
        let verified = verified_after(self.cluster.verify_results_after);
        for (index, outcome) in outcomes.iter().filter(|(index, _)| *index <= last_index) {
            match outcome {
                Err(_) => self.outcomes.add(*index, outcomes::digest(Err(()))),
                Ok(bytes) if verified(*index) => self.outcomes.add(*index, outcomes::digest(Ok(bytes))),
                Ok(_) => {}
            }
        }
        self.outcomes.advance(last_index);
    }
}

/// What its proposer hears of a command that was applied.
fn came_to(index: u64, term: u64, outcome: Outcome) -> Result<Reply, Error> {
    match outcome {
        Ok(data) => Ok(Reply::Applied { index, term, data }),
        Err(text) => Err(Error::new(ErrorCode::ApplyFailed, Committed::Yes, text).with_index(index)),
    }
}

/// What the sender of a command of a session hears whose entry at `index` was not applied.
fn passed(index: u64, verdict: Verdict) -> Result<Reply, Error> {
    Err(match verdict {
        Verdict::Again(Again::Known { index, term, result }) => return came_to(index, term, result.map(Vec::from)),
        Verdict::Again(Again::Lost { index } | Again::Pending { index }) => {
            let text = "it was applied when it was sent before, and what it returned then is not kept any more";
            Error::new(ErrorCode::ResultLost, Committed::Yes, text).with_index(index).lasting()
        }
        Verdict::Expired => {
            let text = "the cluster does not know this session (any more): it was closed, or others were used since; the client's next command opens another";
            Error::not_done(ErrorCode::SessionExpired, text).with_index(index).lasting()
        }
        Verdict::Past | Verdict::Apply => {
            let text = "its client has said that it waits for this command no longer: the outcome is unknown";
            Error::unknown(ErrorCode::SessionExpired, text).with_index(index).lasting()
        }
        Verdict::Beyond => {
            let text =
                "more commands of this session are under way than the cluster keeps apart; wait for the oldest one";
            Error::not_done(ErrorCode::Overloaded, text).with_index(index)
        }
    })
}
