//! The log's writer goes from hand to hand: the driver's own thread writes, the log thread writes, and the node ends meanwhile.

use std::sync::Arc as StdArc;

use raftify_engine::entry::Entry;
use raftify_engine::log::{LogWrite, LogWriter as Log};
use raftify_engine::{Error, ErrorCode};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

use super::inbox::Input;
use super::log_writer::{log_writer, Job};

/// What the log was given, in order. It takes its time, and two at once never happen.
#[derive(Default)]
struct Disk {
    numbers: Mutex<Vec<u64>>,
    busy: AtomicBool,
    let_go: AtomicBool,
    /// This write fails.
    fails: u64,
}

struct OnDisk(Arc<Disk>);

impl Log for OnDisk {
    fn write(&mut self, writes: &[LogWrite]) -> Result<(), Error> {
        let disk = &self.0;
        assert!(!disk.busy.swap(true, Ordering::SeqCst), "two syncs in flight");
        thread::yield_now();
        disk.numbers.lock().unwrap().extend(writes.iter().map(|write| write.number));
        disk.busy.store(false, Ordering::SeqCst);
        match writes.iter().any(|write| write.number == disk.fails) {
            true => Err(Error::not_done(ErrorCode::Storage, "as told")),
            false => Ok(()),
        }
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        self.0.let_go.store(true, Ordering::SeqCst);
    }
}

fn write(number: u64) -> LogWrite {
    LogWrite { number, entries: Some(StdArc::new(vec![Entry::default()])), must_sync: true, ..LogWrite::default() }
}

/// A driver hands over `count` writes, hears some of what became of them in between, and ends. Returned: the last number told, and
/// whether the disk was said to have failed.
fn hand_over(disk: &Arc<Disk>, count: u64) -> (u64, bool) {
    let (tell, mut told) = crate::channel::mpsc::unbounded_channel();
    let (mut writer, log_thread) = log_writer(Box::new(OnDisk(Arc::clone(disk))), tell);
    let thread = thread::spawn(move || log_thread.run());
    let (mut durable, mut failed) = (0, false);
    let mut jobs = Vec::new();
    for number in 1..=count {
        // One of the two ways each: a job is run by a thread of its own, at some time.
        let ran = std::cell::RefCell::new(None);
        writer.write(write(number), Some(&|job: Job| *ran.borrow_mut() = Some(thread::spawn(job))));
        jobs.extend(ran.into_inner());
        while let Ok(input) = told.try_recv() {
            match input {
                Input::Written(number) => {
                    assert!(number > durable, "told in order");
                    durable = number;
                    writer.written(number);
                }
                Input::DiskFailed(_) => failed = true,
                _ => panic!("nothing else is told"),
            }
        }
    }
    drop(writer);
    thread.join().unwrap();
    assert!(disk.let_go.load(Ordering::SeqCst), "the log thread has ended and the directory is in use");
    jobs.into_iter().for_each(|job| job.join().unwrap());
    while let Ok(input) = told.try_recv() {
        match input {
            Input::Written(number) => durable = number,
            Input::DiskFailed(_) => failed = true,
            _ => panic!("nothing else is told"),
        }
    }
    (durable, failed)
}

/// Everything that was handed over is written, once, in order, one sync at a time; then the directory is free.
pub fn writes_keep_their_order_whoever_makes_them() {
    let disk = Arc::new(Disk::default());
    assert_eq!(hand_over(&disk, 4), (4, false));
    assert_eq!(*disk.numbers.lock().unwrap(), [1, 2, 3, 4]);
}

/// S10: nothing is written after the first failure, whoever met it, and everybody hears of the end.
pub fn the_first_failure_is_the_last_write() {
    let disk = Arc::new(Disk { fails: 2, ..Disk::default() });
    let (durable, failed) = hand_over(&disk, 4);
    assert!(durable < 2 && failed);
    let numbers = disk.numbers.lock().unwrap().clone();
    // What is in one batch with it has been tried with it.
    assert!(numbers.starts_with(&[1, 2]) && numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
}
