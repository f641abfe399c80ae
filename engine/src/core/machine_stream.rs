//! What the state machine is asked, in log order, and how far it has got. The driver never waits for it (S14).
//!
//! At most a few batches are outstanding; what is committed beyond that stays an index range, read back from memory or disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use raft::eraftpb::EntryType;

use super::bugs::{self, Bug};
use super::entry::{in_session, Context, Kind};
use super::requests::State;
use super::sessions::{Again, Name, Sessions, Verdict};
use super::{outcomes, sessions, Core, Fetch};
use crate::config::Config;
use crate::entry::Entry;
use crate::error::{Committed, Error, ErrorCode};
use crate::log::SnapshotMeta;
use crate::machine::{ApplyBatch, ApplyEntry, MachineAnswer, MachineRequest, Outcome, Place};
use crate::request::{Reply, Token};

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

    /// The result of this request is on its way.
    pub fn answers(&self, request: u64) -> bool {
        let echoes = self.echoes.values().any(|requests| requests.contains(&request));
        echoes
            || self.outstanding.iter().any(|o| match o {
                Outstanding::Apply { wanted, .. } => wanted.iter().any(|(_, _, r)| *r == request),
                _ => false,
            })
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
        self.raw.mut_store().evict(free, super::snapshotting::TAIL_BYTES);
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
        let verified = self.cluster.verify_results_after;
        let (sessions, has) = (&mut self.sessions, self.machine.has);
        let mut batch =
            BatchMaker::new(self.id, self.start, verified, &self.config, self.machine.last_batch, sessions, has);
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
        let Some(last_index) = batch.last else { return false };
        batch.sessions.advance(last_index);
        let BatchMaker { mut batch, wanted, named, settled, last_term, .. } = batch;
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
            let text = "the cluster does not know this session (any more): it was closed, or others were used since; open a new one";
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

/// Which commands' results are compared: those after the entry that says so. 0: none.
fn verified_after(since: u64) -> impl Fn(u64) -> bool {
    move |index| since != 0 && index > since
}

/// A request of this node's that the table of sessions decides, for the entry at this index.
struct Settled {
    request: u64,
    index: u64,
    term: u64,
    how: How,
}

enum How {
    Opened(u64),
    Closed,
    /// Not applied.
    Passed(Verdict),
}

struct BatchMaker<'a> {
    node: u64,
    start: u64,
    max_entries: u64,
    max_bytes: u64,
    verify_results_after: u64,
    sessions: &'a mut Sessions,
    /// Up to here the machine has every command.
    has: u64,
    batch: ApplyBatch,
    wanted: Vec<(u64, u64, u64)>,
    named: Vec<(u64, u64, Name)>,
    settled: Vec<Settled>,
    last: Option<u64>,
    last_term: u64,
}

impl<'a> BatchMaker<'a> {
    fn new(
        node: u64,
        start: u64,
        verify_results_after: u64,
        config: &Config,
        entries: usize,
        sessions: &'a mut Sessions,
        has: u64,
    ) -> Self {
        BatchMaker {
            node,
            start,
            verify_results_after,
            max_entries: config.machine_batch_entries,
            max_bytes: config.machine_batch_bytes,
            sessions,
            has,
            batch: ApplyBatch::with_capacity(entries),
            wanted: Vec::new(),
            named: Vec::new(),
            settled: Vec::new(),
            last: None,
            last_term: 0,
        }
    }

    /// Takes one entry; false when it belongs into the next batch.
    fn add(&mut self, chunk: &Arc<Vec<Entry>>, at: usize, token_of: impl Fn(u64) -> Option<Token>) -> bool {
        let Some(entry) = chunk.get(at) else { return false };
        let context = (entry.entry_type == EntryType::EntryNormal as i32).then(|| Context::of(entry)).flatten();
        if let Some(context) = context.filter(|c| c.kind.is_of_machine()) {
            let bytes = self.batch.bytes().saturating_add(entry.data.len()) as u64;
            let full = self.batch.entries.len() as u64 >= self.max_entries || bytes > self.max_bytes;
            if full && !self.batch.entries.is_empty() {
                return false;
            }
            let origin = context.origin;
            let ours = (origin.node == self.node && origin.start == self.start) || bugs::on(Bug::RepliesByBareCounter);
            let token = ours.then(|| token_of(origin.sequence)).flatten();
            let is_command = context.kind == Kind::Command;
            let applies = is_command || self.is_to_be_applied(entry, &context, token.is_some());
            if applies && entry.index > self.has {
                if token.is_some() {
                    self.wanted.push((entry.index, entry.term, origin.sequence));
                }
                let verified = verified_after(self.verify_results_after)(entry.index);
                let command = ApplyEntry {
                    index: entry.index,
                    term: entry.term,
                    time_us: context.time_us,
                    // What a command of a session came to is kept on every node.
                    wanted: token.is_some() || verified || !is_command,
                    // A result that is compared (S17), or kept, has to come here.
                    token: token.filter(|_| is_command && !verified).unwrap_or(0),
                    place: Place::default(),
                };
                self.batch.push(chunk, at, command);
            }
        }
        self.last = Some(entry.index);
        self.last_term = entry.term;
        true
    }

    /// What the table of sessions says of this entry; `waits`: somebody does, here.
    fn is_to_be_applied(&mut self, entry: &Entry, context: &Context, waits: bool) -> bool {
        let (index, term) = (entry.index, entry.term);
        let how = match context.kind {
            Kind::OpenSession => {
                let session = sessions::number(index, context.origin);
                self.sessions.open(index, session);
                How::Opened(session)
            }
            Kind::CloseSession => {
                let session = entry.data.as_ref().try_into().map_or(0, u64::from_le_bytes);
                self.sessions.close(index, session);
                How::Closed
            }
            _ => {
                // One that cannot be read is passed over by every node alike.
                let Some(place) = in_session(entry) else { return false };
                match self.sessions.decide(index, term, place) {
                    Verdict::Apply => {
                        let name = (place.session, place.sequence);
                        match index > self.has {
                            true => self.named.push((index, term, name)),
                            false => self.sessions.came_to(index, name, None),
                        }
                        return true;
                    }
                    verdict => How::Passed(verdict),
                }
            }
        };
        if waits {
            self.settled.push(Settled { request: context.origin.sequence, index, term, how });
        }
        false
    }
}
