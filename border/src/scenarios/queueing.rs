//! The completion queue through its C functions: producers, a consumer, each way of being woken, and the end.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;

use raftify_engine::request::{Completion, Reply};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread::{self, JoinHandle};

use super::queue::*;
use super::record::{Event, Record};

/// A handle that goes to other threads, as one of C would.
#[derive(Clone, Copy)]
pub struct Shared(pub *mut QueueHandle);

// SAFETY: the header lets every function be called from any thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub fn get(&self) -> *mut QueueHandle {
        self.0
    }

    pub fn queue(&self) -> std::sync::Arc<Queue> {
        // SAFETY: the scenario frees the queue last.
        unsafe { &*self.0 }.share()
    }

    pub fn wait(&self) -> i32 {
        // SAFETY: the scenario frees the queue last.
        unsafe { raftify_queue_wait(self.0, -1) }
    }

    pub fn free(self) {
        // SAFETY: the scenario's last use.
        assert_eq!(unsafe { raftify_queue_free(self.0) }, 0);
    }

    /// One batch, with copies of the bytes.
    pub fn drain(&self, capacity: usize) -> Vec<Seen> {
        let mut events: Vec<Event> = Vec::with_capacity(capacity);
        // SAFETY: there is room for `capacity` records, and as many are written as it says.
        unsafe {
            let n = raftify_queue_drain(self.0, events.as_mut_ptr(), capacity);
            events.set_len(n);
        }
        events.iter().map(Seen::of).collect()
    }
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub token: u64,
    pub kind: i32,
    pub status: i32,
    pub index: u64,
    pub count: u32,
    pub data: Vec<u8>,
}

impl Seen {
    fn of(event: &Event) -> Self {
        let data = match event.len {
            0 => Vec::new(),
            // SAFETY: borrowed until the next drain.
            len => unsafe { std::slice::from_raw_parts(event.data, len) }.to_vec(),
        };
        Seen { token: event.token, kind: event.kind, status: event.status, index: event.index, count: event.count, data }
    }
}

pub fn record(token: u64) -> Record {
    let data = token.to_string().into_bytes();
    Record::completion(1, Completion { token, result: Ok(Reply::Applied { index: token, term: 1, data }) })
}

/// The caller's side of a wake callback: counts, and lets one thread sleep until it comes.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
    wakes: AtomicUsize,
    destroyed: AtomicUsize,
    /// A wake that began after `destroy`.
    too_late: AtomicUsize,
}

unsafe extern "C" fn wake(user_data: *mut c_void) {
    // SAFETY: the scenario's bell outlives the queue.
    let bell = unsafe { &*user_data.cast::<Bell>() };
    bell.too_late.fetch_add(bell.destroyed.load(SeqCst), SeqCst);
    bell.wakes.fetch_add(1, SeqCst);
    if let Ok(mut rung) = bell.rung.lock() {
        *rung = true;
    }
    bell.ring.notify_all();
}

unsafe extern "C" fn destroy(user_data: *mut c_void) {
    // SAFETY: as in `wake`.
    unsafe { &*user_data.cast::<Bell>() }.destroyed.fetch_add(1, SeqCst);
}

pub fn new_queue(kind: i32) -> Shared {
    let mut queue = null_mut();
    // SAFETY: pointers are as the header demands.
    assert_eq!(unsafe { raftify_queue_new(kind, None, null_mut(), None, &mut queue, null_mut()) }, 0);
    Shared(queue)
}

fn with_bell() -> (Shared, Arc<Bell>) {
    let bell = Arc::new(Bell::default());
    let user_data = Arc::as_ptr(&bell).cast_mut().cast();
    let mut queue = null_mut();
    // SAFETY: the bell is held until after the free.
    let made =
        unsafe { raftify_queue_new(RAFTIFY_WAKE_CALLBACK, Some(wake), user_data, Some(destroy), &mut queue, null_mut()) };
    assert_eq!(made, 0);
    (Shared(queue), bell)
}

const PRODUCERS: u64 = 2;
const EACH: u64 = 4;

/// Producers that push their tokens in order: one alone, then two at once, then one.
fn producers(queue: Shared) -> Vec<JoinHandle<()>> {
    (0..PRODUCERS)
        .map(|producer| {
            let queue = queue.queue();
            thread::spawn(move || {
                let token = |i: u64| record(producer * 100 + i);
                queue.push(token(1));
                queue.push_all([token(2), token(3)]);
                queue.push(token(4));
            })
        })
        .collect()
}

/// What came, and that it is all, once, whole, and in each producer's order.
#[derive(Default)]
struct Got {
    last: BTreeMap<u64, u64>,
    number: u64,
    drains: usize,
}

impl Got {
    fn take(&mut self, batch: &[Seen]) {
        self.drains += usize::from(!batch.is_empty());
        for seen in batch {
            assert_eq!(seen.data, seen.token.to_string().as_bytes());
            let last = self.last.entry(seen.token / 100).or_default();
            assert_eq!(seen.token % 100, *last + 1, "lost, twice or out of order");
            *last += 1;
            self.number += 1;
        }
    }

    fn all(&self) -> bool {
        self.number == PRODUCERS * EACH
    }
}

fn capacity() -> usize {
    use shuttle::rand::Rng;
    shuttle::rand::thread_rng().gen_range(1..=3)
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("a thread of the scenario");
    }
}

pub fn drains_only_when_called_back() {
    let (queue, bell) = with_bell();
    let producers = producers(queue);
    let mut got = Got::default();
    while !got.all() {
        let mut rung = bell.rung.lock().expect("no one panics with it");
        while !*rung {
            // A wake-up that is lost ends here, as a deadlock.
            rung = bell.ring.wait(rung).expect("no one panics with it");
        }
        *rung = false;
        drop(rung);
        got.take(&queue.drain(capacity()));
    }
    join(producers);
    // Each drain that took something may be followed by one turn to non-empty, or has left something itself.
    let wakes = bell.wakes.load(SeqCst);
    assert!(wakes <= got.drains, "{wakes} wake-ups for {} drains", got.drains);
    queue.free();
    assert_eq!(bell.destroyed.load(SeqCst), 1);
}

pub fn drains_only_after_a_wait() {
    let queue = new_queue(RAFTIFY_WAKE_NONE);
    let producers = producers(queue);
    let mut got = Got::default();
    while !got.all() {
        assert_eq!(queue.wait(), 0);
        let batch = queue.drain(capacity());
        assert!(!batch.is_empty(), "the only consumer was told of nothing");
        got.take(&batch);
    }
    join(producers);
    queue.free();
}

fn readable(queue: Shared) -> bool {
    // SAFETY: the scenario's queue lives.
    let fd = unsafe { BorrowedFd::borrow_raw(raftify_queue_fd(queue.get())) };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") == 1
}

pub fn drains_only_what_the_descriptor_says() {
    let queue = new_queue(RAFTIFY_WAKE_FD);
    let producers = producers(queue);
    let mut got = Got::default();
    for turn in 0..6 {
        // A program may also look without having been told.
        if turn % 2 == 0 || readable(queue) {
            got.take(&queue.drain(capacity()));
        }
        thread::yield_now();
    }
    join(producers);
    // At rest it says exactly what is so.
    while readable(queue) {
        let batch = queue.drain(capacity());
        assert!(!batch.is_empty(), "readable with nothing there: a busy loop");
        got.take(&batch);
    }
    assert!(got.all(), "not readable with {} records there", PRODUCERS * EACH - got.number);
    queue.free();
}

pub fn all_who_wait_are_woken() {
    let queue = new_queue(RAFTIFY_WAKE_NONE);
    let waiters: Vec<_> = (0..3).map(|_| thread::spawn(move || assert_eq!(queue.wait(), 0))).collect();
    let inner = queue.queue();
    let producer = thread::spawn(move || inner.push(record(1)));
    join(waiters);
    join(vec![producer]);
    assert_eq!(queue.drain(2).len(), 1);
    queue.free();
}

/// The header forbids to free a queue in which a thread waits; that such a thread goes on all the same is a net below it, so the wait is
/// entered here on a share of the queue.
pub fn free_races_push_and_wait() {
    let (queue, bell) = with_bell();
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let inner = queue.queue();
            thread::spawn(move || drop(inner.wait(None)))
        })
        .collect();
    let inner = queue.queue();
    let producer = thread::spawn(move || {
        inner.push(record(1));
        inner.push_all([record(2), record(3)]);
    });
    queue.free();
    join(waiters);
    join(vec![producer]);
    assert_eq!(bell.destroyed.load(SeqCst), 1, "destroyed exactly once, with the last who fills it");
    assert_eq!(bell.too_late.load(SeqCst), 0, "a wake after destroy");
}
