//! The push form: the machine's thread, its C functions, and the end.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::time::Duration;

use raftify_engine::machine::{ApplyBatch, MachineAnswer, MachineRequest};
use raftify_engine::node::Sink as _;
use raftify_engine::Result;
use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

use super::machine::{raftify_results_set, Machine, ResultsHandle, SnapshotReader, SnapshotWriter};
use super::machine_thread::{Answers, MachineThread, Results, SnapshotIn, SnapshotOut, StateMachine};
use super::queue::RAFTIFY_WAKE_NONE;
use super::queueing::new_queue;
use super::record::{Entry, RAFTIFY_EVENT_CLOSED};
use super::sink::{Ending, NodeSink};

/// What the C functions saw. They cannot assert: they may not unwind.
#[derive(Default)]
struct Seen {
    inside: AtomicUsize,
    calls: AtomicUsize,
    destroyed: AtomicUsize,
    /// Two calls at a time, or one after `destroy`.
    wrong: AtomicUsize,
}

impl Seen {
    fn call(&self) {
        self.wrong.fetch_add(self.inside.fetch_add(1, SeqCst) + self.destroyed.load(SeqCst), SeqCst);
        self.calls.fetch_add(1, SeqCst);
        thread::yield_now();
        self.wrong.fetch_add(self.destroyed.load(SeqCst), SeqCst);
        self.inside.fetch_sub(1, SeqCst);
    }
}

unsafe fn seen<'a>(user_data: *mut c_void) -> &'a Seen {
    // SAFETY: the scenario holds it until its end.
    unsafe { &*user_data.cast::<Seen>() }
}

unsafe extern "C" fn apply(
    user_data: *mut c_void,
    _entries: *const Entry,
    count: usize,
    _data: *const u8,
    results: *mut ResultsHandle,
) -> i32 {
    // SAFETY: the scenario's pointer, and the library's while `apply` runs.
    unsafe {
        seen(user_data).call();
        (0..count).map(|i| raftify_results_set(results, i, 0, b"x".as_ptr(), 1)).sum()
    }
}

unsafe extern "C" fn snapshot(user_data: *mut c_void, _writer: *mut SnapshotWriter) -> i32 {
    // SAFETY: the scenario's pointer.
    unsafe { seen(user_data) }.call();
    0
}

unsafe extern "C" fn restore(user_data: *mut c_void, _reader: *mut SnapshotReader) -> i32 {
    // SAFETY: the scenario's pointer.
    unsafe { seen(user_data) }.call();
    0
}

unsafe extern "C" fn destroy(user_data: *mut c_void) {
    // SAFETY: the scenario's pointer.
    let seen = unsafe { seen(user_data) };
    seen.wrong.fetch_add(seen.inside.load(SeqCst), SeqCst);
    thread::yield_now();
    seen.destroyed.fetch_add(1, SeqCst);
}

/// The node as its machine sees it: the numbers that were answered.
#[derive(Clone, Default)]
struct Answered(Arc<Mutex<Vec<u64>>>);

impl Answered {
    fn note(&self, id: u64) -> Result<()> {
        self.0.lock().expect("no one panics with it").push(id);
        Ok(())
    }
}

impl Answers for Answered {
    fn answer(&self, answer: MachineAnswer) -> Result<()> {
        match answer {
            MachineAnswer::Applied { id, .. }
            | MachineAnswer::AppliedAndTold { id, .. }
            | MachineAnswer::Snapshot { id, .. }
            | MachineAnswer::Restored { id }
            | MachineAnswer::Failed { id, .. } => self.note(id),
        }
    }

    fn snapshot_chunk(&self, _id: u64, _data: &[u8]) -> Result<()> {
        Ok(())
    }

    fn snapshot_done(&self, id: u64, _result: Result<(), String>) -> Result<()> {
        self.note(id)
    }

    fn restore_read(&self, _id: u64, _offset: u64, _out: &mut [u8]) -> Result<usize> {
        Ok(0)
    }
}

fn batch(id: u64) -> MachineRequest {
    let mut batch = ApplyBatch::of(id, 1, &[&[0]]);
    batch.id = id;
    batch.entries.iter_mut().for_each(|entry| entry.wanted = true);
    MachineRequest::Apply(batch)
}

pub fn the_node_ends_while_the_machine_works() {
    let queue = new_queue(RAFTIFY_WAKE_NONE);
    let seen = Arc::new(Seen::default());
    let functions = Machine {
        struct_size: u32::try_from(size_of::<Machine>()).expect("small"),
        reserved: 0,
        user_data: Arc::as_ptr(&seen).cast_mut().cast(),
        apply: Some(apply),
        snapshot: Some(snapshot),
        restore: Some(restore),
        destroy: Some(destroy),
    };
    // SAFETY: the struct is whole.
    let (machine, taken) = unsafe { Machine::take(&functions) };
    taken.expect("the struct is right");
    let ending = Arc::new(Ending::new(queue.queue(), 1, true));
    let gone = Arc::clone(&ending);
    let machine = Box::new(machine.expect("the struct is right"));
    let machine = Arc::new(MachineThread::spawn(machine, move || gone.machine_gone()).expect("a thread"));
    let sink = NodeSink::new(queue.queue(), 1, ending, Some(Arc::clone(&machine)), slog::FilterLevel::Off);
    let answered = Answered::default();
    // The driver: it asks, and ends at any moment.
    let driver = thread::spawn(move || {
        sink.machine(batch(1));
        sink.machine(MachineRequest::Snapshot { id: 2, index: 1, term: 1 });
        sink.machine(batch(3));
        sink.closed(Ok(()));
        sink.machine(batch(4));
    });
    machine.attach(answered.clone());
    assert_eq!(queue.wait(), 0);
    let last = queue.drain(4);
    assert_eq!(last.iter().map(|s| s.kind).collect::<Vec<_>>(), [RAFTIFY_EVENT_CLOSED]);
    assert_eq!(seen.destroyed.load(SeqCst), 1, "CLOSED says that the machine is gone");
    let calls = seen.calls.load(SeqCst);
    assert!(machine.wait(Duration::MAX));
    driver.join().expect("a thread of the scenario");
    drop(machine);
    assert_eq!(seen.calls.load(SeqCst), calls, "a call after CLOSED");
    assert_eq!((seen.destroyed.load(SeqCst), seen.wrong.load(SeqCst)), (1, 0));
    let answered = answered.0.lock().expect("no one panics with it").clone();
    assert_eq!(answered, (1..=3).take(calls).collect::<Vec<u64>>(), "each call answered once, in order");
    assert!(queue.drain(4).is_empty(), "something after CLOSED");
    queue.free();
}

/// Holds its own thread, and waits for the end of it in a call.
struct Impatient(Arc<Mutex<Option<Arc<MachineThread>>>>, Arc<AtomicUsize>);

impl StateMachine for Impatient {
    fn apply(&mut self, _batch: &ApplyBatch, _results: &mut Results) -> std::result::Result<(), String> {
        let own = self.0.lock().map_err(|e| e.to_string())?.take();
        if own.is_some_and(|own| !own.wait(Duration::MAX)) {
            self.1.fetch_add(1, SeqCst);
        }
        Ok(())
    }

    fn snapshot(&mut self, _out: &mut dyn SnapshotOut) -> std::result::Result<(), String> {
        Ok(())
    }

    fn restore(&mut self, _input: &mut dyn SnapshotIn) -> std::result::Result<(), String> {
        Ok(())
    }
}

pub fn the_machine_waits_for_itself() {
    let (own, refused) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
    let machine = Impatient(Arc::clone(&own), Arc::clone(&refused));
    let machine = Arc::new(MachineThread::spawn(Box::new(machine), || ()).expect("a thread"));
    *own.lock().expect("no one panics with it") = Some(Arc::clone(&machine));
    let answered = Answered::default();
    machine.attach(answered.clone());
    machine.request(batch(1));
    machine.request(batch(2));
    let other = Arc::clone(&machine);
    let other = thread::spawn(move || assert!(other.wait(Duration::MAX)));
    while answered.0.lock().expect("no one panics with it").is_empty() {
        thread::yield_now();
    }
    machine.stop();
    assert!(machine.wait(Duration::MAX));
    other.join().expect("a thread of the scenario");
    assert_eq!(refused.load(SeqCst), 1, "on its own thread a wait ends at once, with false");
}
