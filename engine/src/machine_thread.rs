//! The push form of the border to the state machine: a [`StateMachine`] is called, on one thread of its own, for every
//! [`MachineRequest`], and its answers go back to the node.
//!
//! Lives here: the trait, the thread, what a failing or panicking machine means. May not live here: any rule of Raft.
//!
//! Invariants: one call at a time, in the order of the requests; after the first failure, and after [`MachineThread::stop`],
//! the machine is not called again; it is dropped on its thread, exactly once, before `on_end` runs.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crate::error::{Committed, Error, ErrorCode, Result};
use crate::machine::{ApplyBatch, MachineAnswer, MachineRequest, Outcome};
use crate::mailbox::{mailbox, Receiver, Sender};
use crate::node::Node;

/// Small writes and reads of a machine are gathered into pieces of this size.
const PIECE: usize = 64 << 10;

/// What a replicated program does: commands in, state out, state in. All of it is called from one thread, never two calls at a time.
///
/// A returned text says what failed and why. It must be the machine's own failure (its disk, its memory): the node stops on
/// it, because a node whose state is not that of the log must not answer. The failure of a *command*, which is the same on
/// every node, is an outcome: `results.set(i, Err(text))`.
pub trait StateMachine: Send {
    /// Applies the entries of the batch, in order. An entry without a result counts as done with an empty one.
    fn apply(&mut self, batch: &ApplyBatch, results: &mut Results) -> Result<(), String>;
    /// Writes out the state as it is. On a text the node goes on and tries again later.
    fn snapshot(&mut self, out: &mut dyn SnapshotOut) -> Result<(), String>;
    /// Replaces the state by what `input` holds.
    fn restore(&mut self, input: &mut dyn SnapshotIn) -> Result<(), String>;
}

/// Where a machine writes its state, in any number of pieces.
pub trait SnapshotOut {
    /// May block on the disk. After an error the snapshot is lost, whatever `snapshot` returns.
    fn write(&mut self, data: &[u8]) -> Result<()>;
}

/// Where a machine reads its state from.
pub trait SnapshotIn {
    /// Fills the front of `out`; 0 at the end. After an error the state is not restored, whatever `restore` returns.
    fn read(&mut self, out: &mut [u8]) -> Result<usize>;
}

/// What the commands of one batch came to.
pub struct Results {
    outcomes: Vec<Option<Outcome>>,
}

impl Results {
    fn new(entries: usize) -> Self {
        Results { outcomes: vec![None; entries] }
    }

    /// The outcome of entry `position` of the batch; set again, the later one holds.
    pub fn set(&mut self, position: usize, outcome: Outcome) -> Result<()> {
        let entries = self.outcomes.len();
        let slot = self.outcomes.get_mut(position).ok_or_else(|| {
            Error::not_done(
                ErrorCode::InvalidArgument,
                format!("a result was set for entry {position} of a batch of {entries}"),
            )
        })?;
        *slot = Some(outcome);
        Ok(())
    }

    /// The first entry that has no result yet: where a machine that sets results as it goes has stopped.
    fn reached(&self) -> usize {
        self.outcomes.iter().position(Option::is_none).unwrap_or(self.outcomes.len().saturating_sub(1))
    }

    /// Only what the core asks for: failures, and the results that somebody waits for.
    fn into_answer(self, batch: &ApplyBatch) -> Vec<(u64, Outcome)> {
        batch
            .entries
            .iter()
            .zip(self.outcomes)
            .filter_map(|(entry, outcome)| match outcome {
                Some(Err(text)) => Some((entry.index, Err(text))),
                Some(Ok(data)) => entry.wanted.then_some((entry.index, Ok(data))),
                None => entry.wanted.then(|| (entry.index, Ok(Vec::new()))),
            })
            .collect()
    }
}

/// The node, as its machine sees it.
pub trait Answers: Send + 'static {
    fn answer(&self, answer: MachineAnswer) -> Result<()>;
    fn snapshot_chunk(&self, id: u64, data: &[u8]) -> Result<()>;
    fn snapshot_done(&self, id: u64, result: Result<(), String>) -> Result<()>;
    fn restore_read(&self, id: u64, offset: u64, out: &mut [u8]) -> Result<usize>;
}

impl Answers for Node {
    fn answer(&self, answer: MachineAnswer) -> Result<()> {
        Node::answer(self, answer)
    }

    fn snapshot_chunk(&self, id: u64, data: &[u8]) -> Result<()> {
        self.snapshot_chunk_of_waiting_machine(id, data)
    }

    fn snapshot_done(&self, id: u64, result: Result<(), String>) -> Result<()> {
        Node::snapshot_done(self, id, result)
    }

    fn restore_read(&self, id: u64, offset: u64, out: &mut [u8]) -> Result<usize> {
        Node::restore_read(self, id, offset, out)
    }
}

/// Gathers small writes; keeps the first error, so that a machine that ignores it does not end in half a snapshot.
struct ChunkedOut<'a> {
    node: &'a dyn Answers,
    id: u64,
    piece: Vec<u8>,
    failed: Option<Error>,
}

impl ChunkedOut<'_> {
    fn send(&mut self, data: &[u8]) -> Result<()> {
        self.node.snapshot_chunk(self.id, data).inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn flush(&mut self) -> Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        self.send(&piece)
    }
}

impl SnapshotOut for ChunkedOut<'_> {
    fn write(&mut self, data: &[u8]) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.piece.len().saturating_add(data.len()) < PIECE {
            self.piece.extend_from_slice(data);
            return Ok(());
        }
        self.flush()?;
        self.send(data)
    }
}

/// Reads ahead in pieces; keeps the first error.
struct ChunkedIn<'a> {
    node: &'a dyn Answers,
    id: u64,
    /// Where in the state the next piece begins.
    offset: u64,
    piece: Vec<u8>,
    taken: usize,
    failed: Option<Error>,
}

impl SnapshotIn for ChunkedIn<'_> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.taken >= self.piece.len() {
            self.piece.resize(PIECE, 0);
            let n = match self.node.restore_read(self.id, self.offset, &mut self.piece) {
                Ok(n) => n.min(PIECE),
                Err(error) => {
                    self.piece.clear();
                    self.failed = Some(error.clone());
                    return Err(error);
                }
            };
            self.piece.truncate(n);
            self.taken = 0;
            self.offset = self.offset.saturating_add(n as u64);
        }
        let left = self.piece.get(self.taken..).unwrap_or_default();
        let n = left.len().min(out.len());
        for (to, from) in out.iter_mut().zip(left) {
            *to = *from;
        }
        self.taken = self.taken.saturating_add(n);
        Ok(n)
    }
}

/// What a panic carried, as text.
fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a text".to_owned()
    }
}

fn failed(index: u64, doing: &str, reason: &str) -> (u64, Error) {
    let text = format!("the state machine failed to {doing} at index {index}: {reason}; the node stops");
    (index, Error::new(ErrorCode::MachineFailed, Committed::Unknown, text).with_index(index))
}

/// One request carried out; the error is the machine's own failure and the index at which it stands still.
fn serve(
    machine: &mut dyn StateMachine,
    node: &dyn Answers,
    request: MachineRequest,
) -> std::result::Result<(), (u64, Error)> {
    // The node refuses an answer only when it closes: then nobody waits for it any more.
    match request {
        MachineRequest::Apply(batch) => {
            let mut results = Results::new(batch.entries.len());
            if !batch.entries.is_empty() {
                let called = catch_unwind(AssertUnwindSafe(|| machine.apply(&batch, &mut results)))
                    .unwrap_or_else(|panic| Err(format!("it panicked: {}", panic_text(&*panic))));
                if let Err(reason) = called {
                    let stopped_at = batch.entries.get(results.reached()).map_or(batch.last_index, |e| e.index);
                    return Err(failed(stopped_at, "apply", &reason));
                }
            }
            let _ = node.answer(MachineAnswer::Applied { id: batch.id, outcomes: results.into_answer(&batch) });
            Ok(())
        }
        MachineRequest::Snapshot { id, index, .. } => {
            let mut out = ChunkedOut { node, id, piece: Vec::with_capacity(PIECE), failed: None };
            let called = catch_unwind(AssertUnwindSafe(|| machine.snapshot(&mut out)))
                .map_err(|panic| failed(index, "take a snapshot", &format!("it panicked: {}", panic_text(&*panic))))?;
            let result = match out.failed.take() {
                Some(error) => Err(error.to_string()),
                None => called.and_then(|()| out.flush().map_err(|error| error.to_string())),
            };
            let _ = node.snapshot_done(id, result);
            Ok(())
        }
        MachineRequest::Restore { id, index, .. } => {
            let mut input = ChunkedIn { node, id, offset: 0, piece: Vec::new(), taken: 0, failed: None };
            let called = catch_unwind(AssertUnwindSafe(|| machine.restore(&mut input)))
                .unwrap_or_else(|panic| Err(format!("it panicked: {}", panic_text(&*panic))));
            if let Some(error) = input.failed {
                return Err((index, error));
            }
            called.map_err(|reason| failed(index, "restore a snapshot", &reason))?;
            let _ = node.answer(MachineAnswer::Restored { id });
            Ok(())
        }
    }
}

enum Message {
    Attach(Box<dyn Answers>),
    Request(MachineRequest),
    Stop,
}

/// Set once the thread has dropped the machine, so that a join can be bounded.
#[derive(Default)]
struct Ended {
    flag: Mutex<bool>,
    changed: Condvar,
}

/// One thread with one machine.
pub struct MachineThread {
    inbox: Sender<Message>,
    stopping: Arc<AtomicBool>,
    own: ThreadId,
    thread: Mutex<Option<JoinHandle<()>>>,
    ended: Arc<Ended>,
}

impl MachineThread {
    /// Starts the thread. Requests wait until [`attach`](Self::attach) says whom to answer. `on_end` runs on the thread, last:
    /// no call of the machine follows. If the thread cannot be started the machine is dropped and `on_end` does not run.
    pub fn spawn(machine: Box<dyn StateMachine>, on_end: impl FnOnce() + Send + 'static) -> Result<Self> {
        let (inbox, messages) = mailbox();
        let stopping = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(Ended::default());
        let (stop_seen, tell) = (Arc::clone(&stopping), Arc::clone(&ended));
        let thread = std::thread::Builder::new()
            .name("raftify-machine".into())
            .spawn(move || {
                run(machine, &messages, &stop_seen);
                // A panic here has no one to go to, and the thread must say that it ended.
                let _ = catch_unwind(AssertUnwindSafe(on_end));
                *tell.flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
                tell.changed.notify_all();
            })
            .map_err(|e| {
                Error::not_done(ErrorCode::Internal, format!("cannot start the state machine's thread: {e}"))
            })?;
        Ok(MachineThread { inbox, stopping, own: thread.thread().id(), thread: Mutex::new(Some(thread)), ended })
    }

    /// Whom the machine answers. Once.
    pub fn attach(&self, node: impl Answers) {
        let _ = self.inbox.send(Message::Attach(Box::new(node)));
    }

    /// Queues a request; dropped if the machine was stopped or has failed.
    pub fn request(&self, request: MachineRequest) {
        let _ = self.inbox.send(Message::Request(request));
    }

    /// No call begins after this; the one in progress, if any, is not interrupted. Does not wait.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = self.inbox.send(Message::Stop);
    }

    /// Waits until the machine is gone, no longer than `timeout`; true if it is. Called on the machine's own thread: false at once.
    pub fn wait(&self, timeout: Duration) -> bool {
        if self.own == std::thread::current().id() {
            return false;
        }
        let deadline = Instant::now().checked_add(timeout);
        let mut ended = self.ended.flag.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            let left = deadline.map_or(PATIENCE, |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            ended = self.ended.changed.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(ended);
        // Only now: a lock held through the wait would make other waiters, and the machine's own thread, outwait their time.
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It has run to its end: nothing more than its stack is waited for.
            let _ = thread.join();
        }
        true
    }
}

/// One wait of a caller without a deadline.
const PATIENCE: Duration = Duration::from_secs(3600);

impl Drop for MachineThread {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(machine: Box<dyn StateMachine>, messages: &Receiver<Message>, stopping: &AtomicBool) {
    let mut machine = Some(machine);
    let mut node: Option<Box<dyn Answers>> = None;
    let mut heard = Vec::new();
    // Until it is known whom to answer.
    let mut early = Vec::new();
    'life: while messages.recv_all(&mut heard) {
        for message in heard.drain(..) {
            match message {
                Message::Attach(answers) => {
                    for request in early.drain(..) {
                        step(&mut machine, &*answers, request, stopping);
                    }
                    node = Some(answers);
                }
                Message::Request(request) => match &node {
                    Some(node) => step(&mut machine, &**node, request, stopping),
                    None => early.push(request),
                },
                Message::Stop => break 'life,
            }
        }
    }
    drop_machine(machine);
}

/// One request, unless the machine has been stopped or has failed.
fn step(
    machine: &mut Option<Box<dyn StateMachine>>,
    node: &dyn Answers,
    request: MachineRequest,
    stopping: &AtomicBool,
) {
    if stopping.load(Ordering::SeqCst) {
        return;
    }
    let Some(present) = machine.as_deref_mut() else { return };
    let id = request.id();
    if let Err((index, error)) = serve(present, node, request) {
        // Its state is no longer that of the log: it is not called again.
        drop_machine(machine.take());
        let _ = node.answer(MachineAnswer::Failed { id, index, error });
    }
}

fn drop_machine(machine: Option<Box<dyn StateMachine>>) {
    // A panic in its destructor ends nothing but the destructor.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(machine)));
}

#[cfg(test)]
mod tests;
