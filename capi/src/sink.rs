//! Between an engine's node or client and a queue: turns what they say into records.
//!
//! Invariant: CLOSED is pushed exactly once, last, and after the last call of the machine.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use raftify_engine::client::ClientSink;
use raftify_engine::machine::MachineRequest;
use raftify_engine::machine_thread::MachineThread;
use raftify_engine::node::{LogRecord, Sink};
use raftify_engine::request::Completion;
use raftify_engine::status::Event;
use raftify_engine::Result;
use slog::{FilterLevel, Level};

use crate::open_requests::OpenRequests;
use crate::queue::Queue;
use crate::record::Record;

/// Names nodes and clients in records, over all of this process.
pub(crate) fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

enum Fate {
    /// What ended the engine's part, once it has ended; whether the machine is gone.
    Open(Option<Result<()>>, bool),
    /// CLOSED is being pushed: outside of the lock, because that calls the queue's owner.
    Telling,
    /// CLOSED was pushed, or there is nobody to push it to.
    Over,
}

/// Both ends that CLOSED waits for.
pub(crate) struct Ending {
    queue: Arc<Queue>,
    number: u64,
    fate: Mutex<Fate>,
    over: Condvar,
}

impl Ending {
    /// `machine`: there is a machine of the push form, whose end is waited for.
    pub(crate) fn new(queue: Arc<Queue>, number: u64, machine: bool) -> Self {
        Ending { queue, number, fate: Mutex::new(Fate::Open(None, !machine)), over: Condvar::new() }
    }

    fn advance(&self, step: impl FnOnce(&mut Option<Result<()>>, &mut bool)) {
        let mut fate = self.fate.lock().unwrap_or_else(PoisonError::into_inner);
        let Fate::Open(why, machine_gone) = &mut *fate else { return };
        step(why, machine_gone);
        let (Some(why), true) = (&*why, *machine_gone) else { return };
        let record = Record::closed(self.number, why);
        *fate = Fate::Telling;
        drop(fate);
        self.queue.push(record);
        self.cancel();
        self.over.notify_all();
    }

    /// The first reason holds.
    pub(crate) fn engine_ended(&self, reason: Result<()>) {
        self.advance(|why, _| {
            why.get_or_insert(reason);
        });
    }

    pub(crate) fn machine_gone(&self) {
        self.advance(|_, gone| *gone = true);
    }

    /// It never started: no CLOSED.
    pub(crate) fn cancel(&self) {
        *self.fate.lock().unwrap_or_else(PoisonError::into_inner) = Fate::Over;
    }

    /// Waits for CLOSED; true if it was pushed.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let fate = self.fate.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |fate: &mut Fate| !matches!(fate, Fate::Over);
        let (fate, _) = self.over.wait_timeout_while(fate, timeout, waiting).unwrap_or_else(PoisonError::into_inner);
        matches!(*fate, Fate::Over)
    }
}

/// The ears of one node.
pub(crate) struct NodeSink {
    queue: Arc<Queue>,
    number: u64,
    ending: Arc<Ending>,
    /// Push form; without one, requests to the machine go to the queue.
    machine: Option<Arc<MachineThread>>,
    /// Of the pull form.
    pub(crate) open: OpenRequests,
    log_level: AtomicUsize,
}

impl NodeSink {
    pub(crate) fn new(
        queue: Arc<Queue>,
        number: u64,
        ending: Arc<Ending>,
        machine: Option<Arc<MachineThread>>,
        log_level: FilterLevel,
    ) -> Self {
        let log_level = AtomicUsize::new(log_level.as_usize());
        NodeSink { queue, number, ending, machine, open: OpenRequests::default(), log_level }
    }

    pub(crate) fn set_log_level(&self, level: FilterLevel) {
        self.log_level.store(level.as_usize(), Ordering::Relaxed);
    }
}

impl Sink for NodeSink {
    fn completions(&self, batch: Vec<Completion>) {
        // Built outside the queue's lock.
        let records: Vec<Record> = batch.into_iter().map(|c| Record::completion(self.number, c)).collect();
        self.queue.push_all(records);
    }

    fn machine(&self, request: MachineRequest) {
        match &self.machine {
            Some(machine) => machine.request(request),
            None => {
                self.open.opened(&request);
                self.queue.push(Record::machine(self.number, request));
            }
        }
    }

    fn event(&self, event: Event) {
        self.queue.push(Record::notice(self.number, &event));
    }

    fn log(&self, record: LogRecord) {
        if record.level.as_usize() <= self.log_level.load(Ordering::Relaxed) {
            self.queue.push_log(self.number, &record);
        }
    }

    fn log_level(&self) -> Level {
        // "off" is no level of a record: the filter in `log` does the rest.
        Level::from_usize(self.log_level.load(Ordering::Relaxed)).unwrap_or(Level::Critical)
    }

    fn started(&self, addr: &str) {
        self.queue.push(Record::started(self.number, addr));
    }

    fn closed(&self, why: Result<()>) {
        self.ending.engine_ended(why);
        if let Some(machine) = &self.machine {
            machine.stop();
        }
    }
}

/// The ears of one client.
pub(crate) struct OutsideSink {
    pub(crate) queue: Arc<Queue>,
    pub(crate) number: u64,
    pub(crate) ending: Arc<Ending>,
}

impl ClientSink for OutsideSink {
    fn completions(&self, batch: Vec<Completion>) {
        let records: Vec<Record> = batch.into_iter().map(|c| Record::completion(self.number, c)).collect();
        self.queue.push_all(records);
    }

    fn closed(&self) {
        self.ending.engine_ended(Ok(()));
    }
}

/// What is left of a time to wait that several share.
pub(crate) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
