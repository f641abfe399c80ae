//! `raftify_queue`: where completions, notices and a node's requests to its machine arrive.
//!
//! Invariants: a signal is given when the queue turns from empty to non-empty, and only then; a drain takes the
//! signal back before
//! it pops, under the same lock, and gives it again if records remain: so no wake-up is lost. The bytes of drained
//! records
//! live until the next drain. Completions are never dropped; log lines are, past a bound.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use raftify_engine::node::LogRecord;
use raftify_engine::{Error, ErrorCode, Result};

use crate::error::{raftify_status, ErrorObject};
use crate::fork::Owner;
use crate::panic::{catch, in_callback, refuse_in_callback, CallbackScope};
use crate::pointer::{call, finish, free, invalid, place, Handle};
use crate::record::{Event, Payload, Record, RAFTIFY_EVENT_LOG};
use crate::wake::{Descriptor, DestroyFn, UserData, Wake, WakeFn};

/// By polling, or by raftify_queue_wait.
pub const RAFTIFY_WAKE_NONE: i32 = 0;
/// The descriptor raftify_queue_fd becomes readable (level: it stays so until a drain leaves the queue empty).
pub const RAFTIFY_WAKE_FD: i32 = 1;
/// The function `wake` is called once for each time that the queue turns non-empty.
pub const RAFTIFY_WAKE_CALLBACK: i32 = 2;

/// Log lines waiting in one queue; more are left out and counted.
const MAX_LOG_LINES: usize = 10_000;

#[derive(Default)]
struct State {
    records: VecDeque<Record>,
    /// Bytes of what the last drain handed out.
    lent: Vec<Payload>,
    /// The descriptor is set.
    signalled: bool,
    /// Threads in [`Queue::wait`]: without one nobody is woken.
    waiting: usize,
    log_lines: usize,
    log_lines_left_out: u64,
    /// Its handle was freed: nobody will drain any more.
    freed: bool,
}

/// A queue, held by its handle and by every node and client that fills it.
pub(crate) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    wake: Wake,
    /// After `wake`: its destroy runs last.
    user_data: UserData,
}

impl Queue {
    fn new(wake: Wake, user_data: UserData) -> Self {
        Queue { state: Mutex::default(), filled: Condvar::new(), wake, user_data }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, record: Record) {
        self.push_all([record]);
    }

    /// A batch: one lock, at most one signal.
    pub(crate) fn push_all(&self, records: impl IntoIterator<Item = Record>) {
        let mut state = self.lock();
        if state.freed {
            return;
        }
        let was_empty = state.records.is_empty();
        state.records.extend(records);
        if was_empty && !state.records.is_empty() {
            self.signal(state);
        }
    }

    /// A line for the log: left out if too many wait.
    pub(crate) fn push_log(&self, source: u64, record: &LogRecord) {
        let line = Record::log(source, record);
        let mut state = self.lock();
        if state.freed {
            return;
        }
        if state.log_lines >= MAX_LOG_LINES {
            state.log_lines_left_out = state.log_lines_left_out.saturating_add(1);
            return;
        }
        let was_empty = state.records.is_empty();
        let left_out = std::mem::take(&mut state.log_lines_left_out);
        if left_out > 0 {
            state.log_lines = state.log_lines.saturating_add(1);
            let message = format!("{left_out} log lines were left out: nobody drained the queue");
            let told = LogRecord { level: slog::Level::Warning, message, ..*record };
            state.records.push_back(Record::log(source, &told));
        }
        state.log_lines = state.log_lines.saturating_add(1);
        state.records.push_back(line);
        if was_empty {
            self.signal(state);
        }
    }

    /// The edge. The descriptor is set under the lock (a drain cannot come between), the callback is called outside
    /// of it.
    fn signal(&self, mut state: MutexGuard<'_, State>) {
        if let Wake::Descriptor(descriptor) = &self.wake {
            descriptor.set();
            state.signalled = true;
        }
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.filled.notify_all();
        }
        if let Wake::Callback(wake) = self.wake {
            let _scope = CallbackScope::enter();
            // SAFETY: the caller's function with the caller's pointer, which `self` keeps from being destroyed.
            unsafe { wake(self.user_data.pointer) };
        }
    }

    /// Pops up to `capacity` records into `out`; their bytes live until the next drain.
    pub(crate) fn drain(&self, capacity: usize, mut out: impl FnMut(Event)) -> usize {
        let mut state = self.lock();
        if state.signalled {
            if let Wake::Descriptor(descriptor) = &self.wake {
                descriptor.reset();
            }
            state.signalled = false;
        }
        let n = state.records.len().min(capacity);
        let mut lent = Vec::with_capacity(n);
        let State { records, log_lines, .. } = &mut *state;
        for record in records.drain(..n) {
            out(record.event());
            *log_lines = log_lines.saturating_sub(usize::from(record.kind == RAFTIFY_EVENT_LOG));
            // Moving the payload does not move its bytes.
            lent.push(record.data);
        }
        let before = std::mem::replace(&mut state.lent, lent);
        if state.records.is_empty() {
            drop(state);
        } else {
            self.signal(state);
        }
        drop(before);
        n
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().records.len()
    }

    /// Waits until there is a record; no timeout: for ever.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        // A deadline beyond what the clock can name is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.lock();
        loop {
            if state.freed {
                return Err(Error::not_done(ErrorCode::Closed, "the queue was freed while a thread waited on it"));
            }
            if !state.records.is_empty() {
                return Ok(());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Error::not_done(ErrorCode::Timeout, "nothing came into the queue in time"));
            }
            state.waiting = state.waiting.saturating_add(1);
            state = match left {
                None => self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
            state.waiting = state.waiting.saturating_sub(1);
        }
    }

    /// Its handle is gone: nothing is kept or signalled any more.
    fn retire(&self) {
        let mut state = self.lock();
        state.freed = true;
        let dropped = (std::mem::take(&mut state.records), std::mem::take(&mut state.lent));
        drop(state);
        self.filled.notify_all();
        drop(dropped);
    }
}

/// Where completions, notices and the pull form's requests arrive. One queue may serve any number of nodes and
/// clients.
pub struct QueueHandle {
    owner: Owner,
    shared: Arc<Queue>,
}

impl Handle for QueueHandle {
    const NAME: &'static str = "queue";

    fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl QueueHandle {
    pub(crate) fn share(&self) -> Arc<Queue> {
        Arc::clone(&self.shared)
    }
}

/// Makes a queue.
///
/// wake_kind: RAFTIFY_WAKE_*; how its owner hears that it has turned non-empty.
/// wake: for RAFTIFY_WAKE_CALLBACK; called from threads of the library, or from within raftify_queue_drain when that
///   leaves records behind. It must not block nor unwind, and should only pass the word on (raftify_queue_drain
///   returns 0 inside it). It may come once too often, never too seldom.
/// user_data: handed to `wake` and `destroy`.
/// destroy: optional; called exactly once, on any thread, after the last use of `user_data`; also if this call fails
///   (then before it returns).
/// out: receives the queue on success; owned, free with raftify_queue_free.
/// error: optional; receives an error object on failure.
/// Threads: any. Blocks: no. Errors: INVALID_ARGUMENT, INTERNAL (no descriptor to be had). Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_queue_new(
    wake_kind: i32,
    wake: Option<unsafe extern "C" fn(user_data: *mut c_void)>,
    user_data: *mut c_void,
    destroy: Option<unsafe extern "C" fn(user_data: *mut c_void)>,
    out: *mut *mut QueueHandle,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // First of all: from here on it is destroyed on every way out.
    let user_data = UserData::new(user_data, destroy as Option<DestroyFn>);
    let made = move || -> Result<()> {
        // SAFETY: NULL or writable (preface of the header).
        let out = unsafe { place(out, "out") }?;
        let wake = match (wake_kind, wake as Option<WakeFn>) {
            (RAFTIFY_WAKE_NONE, _) => Wake::None,
            (RAFTIFY_WAKE_FD, _) => Wake::Descriptor(Descriptor::new()?),
            (RAFTIFY_WAKE_CALLBACK, Some(wake)) => Wake::Callback(wake),
            (RAFTIFY_WAKE_CALLBACK, None) => {
                return Err(invalid("wake is NULL, but wake_kind is RAFTIFY_WAKE_CALLBACK"))
            }
            (other, _) => return Err(invalid(format!("wake_kind is {other}; use one of RAFTIFY_WAKE_*"))),
        };
        let shared = Arc::new(Queue::new(wake, user_data));
        *out = Box::into_raw(Box::new(QueueHandle { owner: Owner::here(), shared }));
        Ok(())
    };
    // SAFETY: `error` is NULL or writable (preface of the header).
    unsafe { finish(catch(made), error) }
}

/// The descriptor that is readable while the queue may hold records. Add it to poll, epoll, kqueue or an event loop;
/// do not read or close it.
///
/// Returns: the descriptor, which lives as long as the queue; -1 if the queue is not of RAFTIFY_WAKE_FD, for NULL,
///   and in a forked child.
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_queue_fd(queue: *const QueueHandle) -> i32 {
    // SAFETY: NULL or a live queue (preface of the header).
    match unsafe { queue.as_ref() } {
        Some(QueueHandle { owner, shared }) if owner.is_here() => match &shared.wake {
            Wake::Descriptor(descriptor) => descriptor.number(),
            _ => -1,
        },
        _ => -1,
    }
}

/// Takes up to `capacity` records, oldest first. Takes the signal back, and gives it again if records remain. What
/// the records of the drain before pointed to is freed.
///
/// out: receives the records; their `data` is borrowed until the next drain of this queue, or its free.
/// Returns: how many; 0 if there was none, for NULL, for capacity 0, inside `wake`, and in a forked child.
/// Threads: any, but one at a time per queue. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_queue_drain(queue: *mut QueueHandle, out: *mut Event, capacity: usize) -> usize {
    // SAFETY: NULL or a live queue (preface of the header).
    let Some(handle) = (unsafe { queue.as_ref() }) else { return 0 };
    if out.is_null() || capacity == 0 || in_callback() || !handle.owner.is_here() {
        return 0;
    }
    let mut next = out;
    catch(|| {
        Ok(handle.shared.drain(capacity, |event| {
            // SAFETY: `out` has room for `capacity` records (preface of the header), and this runs at most that
            // often.
            unsafe {
                next.write(event);
                next = next.add(1);
            }
        }))
    })
    .unwrap_or(0)
}

/// How many records wait.
///
/// Returns: their number; 0 for NULL and in a forked child.
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_queue_len(queue: *const QueueHandle) -> usize {
    // SAFETY: NULL or a live queue (preface of the header).
    match unsafe { queue.as_ref() } {
        Some(handle) if handle.owner.is_here() => handle.shared.len(),
        _ => 0,
    }
}

/// Waits until the queue holds a record. Of use with every kind of queue.
///
/// timeout_ms: milliseconds; below 0: for ever.
/// Threads: any number. Blocks: yes.
/// Returns: 0 when there is a record; RAFTIFY_ERR_TIMEOUT; INVALID_ARGUMENT for NULL; REENTRANT inside a callback;
///   FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_queue_wait(queue: *mut QueueHandle, timeout_ms: i64) -> raftify_status {
    // SAFETY: NULL or a live queue (preface of the header); no error slot.
    unsafe {
        call(queue, std::ptr::null_mut(), |queue| {
            refuse_in_callback("raftify_queue_wait")?;
            queue.share().wait(u64::try_from(timeout_ms).ok().map(Duration::from_millis))
        })
    }
}

/// Frees the queue and drops the records that are still in it; NULL is ignored. Nodes and clients that fill it may
/// live on: what they say goes nowhere, and nobody is woken for it. (A call of `wake` that another thread had set out to
/// make before may still come, also when this has returned; `destroy` comes after it.)
///
/// Threads: any, once, and no other call on this queue at the same time. Blocks: no.
/// Returns: 0; REENTRANT inside a callback: then nothing was done; FORKED in a forked child: the handle is gone.
///   Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_queue_free(queue: *mut QueueHandle) -> raftify_status {
    let end = |handle: Box<QueueHandle>| {
        handle.shared.retire();
        Ok(())
    };
    // SAFETY: NULL or a live queue, given back once (preface of the header).
    unsafe { free(queue, end) }
}

#[cfg(test)]
mod tests;
