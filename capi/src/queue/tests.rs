use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use raftify_engine::request::{Completion, Reply};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

fn record(token: u64) -> Record {
    let data = token.to_string().into_bytes();
    Record::completion(1, Completion { token, result: Ok(Reply::Applied { index: token, term: 1, data }) })
}

fn tokens(queue: &Queue, capacity: usize) -> Vec<u64> {
    let mut tokens = Vec::new();
    queue.drain(capacity, |event| {
        // SAFETY: the record's bytes live until the next drain.
        let data = unsafe { std::slice::from_raw_parts(event.data, event.len) };
        assert_eq!(data, event.token.to_string().as_bytes());
        tokens.push(event.token);
    });
    tokens
}

fn by_descriptor() -> Queue {
    Queue::new(Wake::Descriptor(Descriptor::new().unwrap()), UserData::new(std::ptr::null_mut(), None))
}

fn readable(queue: &Queue, wait_ms: i64) -> bool {
    let Wake::Descriptor(descriptor) = &queue.wake else { unreachable!() };
    // SAFETY: the queue owns the descriptor and outlives this.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor.number()) };
    let wait = Timespec { tv_sec: wait_ms / 1000, tv_nsec: wait_ms % 1000 * 1_000_000 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap() == 1
}

#[derive(Default)]
struct Counts {
    wakes: AtomicUsize,
    destroyed: AtomicUsize,
    inside: AtomicUsize,
}

unsafe extern "C" fn count_wake(user_data: *mut c_void) {
    // SAFETY: `by_callback` hands in counts that outlive the queue.
    let counts = unsafe { &*user_data.cast::<Counts>() };
    counts.wakes.fetch_add(1, Ordering::SeqCst);
    counts.inside.fetch_add(usize::from(in_callback()), Ordering::SeqCst);
}

unsafe extern "C" fn count_destroy(user_data: *mut c_void) {
    // SAFETY: as in `count_wake`.
    unsafe { &*user_data.cast::<Counts>() }.destroyed.fetch_add(1, Ordering::SeqCst);
}

fn by_callback(counts: &Counts) -> Queue {
    let pointer = std::ptr::from_ref(counts).cast_mut().cast();
    Queue::new(Wake::Callback(count_wake), UserData::new(pointer, Some(count_destroy)))
}

#[test]
fn the_descriptor_is_readable_exactly_while_records_wait() {
    let queue = by_descriptor();
    assert!(!readable(&queue, 0));
    queue.push_all((1..=5).map(record));
    queue.push(record(6));
    assert!(readable(&queue, 0));
    assert_eq!(tokens(&queue, 4), [1, 2, 3, 4]);
    assert!(readable(&queue, 0), "two remain: armed again");
    assert_eq!(tokens(&queue, 4), [5, 6]);
    assert!(!readable(&queue, 0));
    assert!(tokens(&queue, 4).is_empty());
    queue.push_all([]);
    assert!(!readable(&queue, 0), "nothing was pushed");
}

#[test]
fn the_callback_comes_once_for_each_turn_to_non_empty_and_for_each_drain_that_leaves_records() {
    let counts = Counts::default();
    let queue = by_callback(&counts);
    let wakes = || counts.wakes.load(Ordering::SeqCst);
    queue.push_all((1..=5).map(record));
    queue.push(record(6));
    assert_eq!(wakes(), 1);
    tokens(&queue, 4);
    assert_eq!(wakes(), 2);
    tokens(&queue, 4);
    assert_eq!(wakes(), 2);
    queue.push(record(7));
    assert_eq!(wakes(), 3);
    assert_eq!(counts.inside.load(Ordering::SeqCst), 3, "each is known to be a callback");
    queue.retire();
    queue.push(record(8));
    assert_eq!((wakes(), queue.len()), (3, 0), "nobody is woken for a freed queue");
    assert_eq!(counts.destroyed.load(Ordering::SeqCst), 0);
    drop(queue);
    assert_eq!(counts.destroyed.load(Ordering::SeqCst), 1);
}

#[test]
fn bytes_of_drained_records_live_until_the_next_drain() {
    let queue = by_descriptor();
    queue.push_all((1..=100).map(record));
    let mut events = Vec::new();
    assert_eq!(queue.drain(60, |event| events.push(event)), 60);
    queue.push_all((101..=1000).map(record));
    for event in events {
        // SAFETY: no drain came since.
        let data = unsafe { std::slice::from_raw_parts(event.data, event.len) };
        assert_eq!(data, event.token.to_string().as_bytes());
    }
}

#[test]
fn no_wake_up_is_lost_between_threads() {
    const EACH: u64 = 20_000;
    let queue = Arc::new(by_descriptor());
    let pushers: Vec<_> = (0..3)
        .map(|pusher| {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || {
                let mut next = pusher * EACH + 1;
                let end = (pusher + 1) * EACH;
                while next <= end {
                    let last = end.min(next + next % 7);
                    queue.push_all((next..=last).map(record));
                    next = last + 1;
                }
            })
        })
        .collect();
    let mut seen = BTreeSet::new();
    // Drains only when told to: a lost wake-up ends in the poll's timeout.
    while seen.len() < 3 * EACH as usize {
        assert!(readable(&queue, 60_000), "lost a wake-up after {} records", seen.len());
        for token in tokens(&queue, 1 + seen.len() % 50) {
            assert!(seen.insert(token), "{token} came twice");
        }
    }
    for pusher in pushers {
        pusher.join().unwrap();
    }
    assert!(!readable(&queue, 0));
}

#[test]
fn a_wait_ends_with_a_record_with_its_time_or_with_the_queue() {
    let queue = Arc::new(Queue::new(Wake::None, UserData::new(std::ptr::null_mut(), None)));
    assert_eq!(queue.wait(Some(Duration::ZERO)).unwrap_err().code, ErrorCode::Timeout);
    assert_eq!(queue.wait(Some(Duration::from_millis(5))).unwrap_err().code, ErrorCode::Timeout);
    let waiter = |timeout| {
        let queue = Arc::clone(&queue);
        std::thread::spawn(move || queue.wait(timeout))
    };
    let waiting = [waiter(None), waiter(Some(Duration::MAX)), waiter(Some(Duration::from_secs(60)))];
    queue.push(record(1));
    for thread in waiting {
        assert_eq!(thread.join().unwrap(), Ok(()));
    }
    queue.wait(Some(Duration::ZERO)).unwrap();
    tokens(&queue, 9);
    let waiting = waiter(None);
    queue.retire();
    assert_eq!(waiting.join().unwrap().unwrap_err().code, ErrorCode::Closed);
}

#[test]
fn log_lines_are_left_out_past_their_bound_and_counted_and_completions_never_are() {
    let queue = by_descriptor();
    let line = LogRecord { level: slog::Level::Info, target: "raft", message: "x".into(), node_id: 1, term: 2 };
    for _ in 0..MAX_LOG_LINES + 5 {
        queue.push_log(1, &line);
    }
    queue.push(record(1));
    assert_eq!(queue.len(), MAX_LOG_LINES + 1);
    assert_eq!(queue.drain(10, |_| ()), 10);
    queue.push_log(1, &line);
    let mut texts = Vec::new();
    queue.drain(usize::MAX, |event| {
        // SAFETY: no drain came since.
        let data = unsafe { std::slice::from_raw_parts(event.data, event.len) };
        texts.push(String::from_utf8(data.to_vec()).unwrap());
    });
    let told = &texts[texts.len() - 2];
    assert!(told.contains("5 log lines were left out") && told.contains("\"warning\""), "{told}");
    assert_eq!(queue.lock().log_lines, 0);
}
