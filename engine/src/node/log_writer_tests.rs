use std::collections::VecDeque;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver};

use super::*;
use crate::entry::Entry;
use crate::error::{Error, ErrorCode, Result};

/// What became of the writes, in the order in which the log saw them.
#[derive(Debug, PartialEq)]
enum Saw {
    Batch(Vec<u64>),
    Dropped,
}

type Fault = Box<dyn FnMut(u64) -> Result<()> + Send>;

/// A log that tells what it is given, and fails as it is told.
struct Told {
    saw: std_mpsc::Sender<Saw>,
    fault: Fault,
}

impl Log for Told {
    fn write(&mut self, writes: &[LogWrite]) -> Result<()> {
        self.saw.send(Saw::Batch(writes.iter().map(|write| write.number).collect())).unwrap();
        writes.iter().try_for_each(|write| (self.fault)(write.number))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.saw.send(Saw::Dropped).unwrap();
    }
}

struct Bench {
    writer: LogWriter,
    thread: JoinHandle<()>,
    saw: std_mpsc::Receiver<Saw>,
    told: UnboundedReceiver<Input>,
    /// Jobs wait here until they are run.
    jobs: Arc<Mutex<VecDeque<Job>>>,
}

fn bench(fault: impl FnMut(u64) -> Result<()> + Send + 'static) -> Bench {
    let (tell, saw) = std_mpsc::channel();
    let (told_to, told) = unbounded_channel();
    let (writer, thread) = log_writer(Box::new(Told { saw: tell, fault: Box::new(fault) }), told_to);
    Bench { writer, thread: std::thread::spawn(move || thread.run()), saw, told, jobs: Arc::default() }
}

fn write(number: u64, bytes: usize) -> LogWrite {
    let entry = Entry { index: number, data: vec![0; bytes].into(), ..Entry::default() };
    LogWrite { number, entries: Some(Arc::new(vec![entry])), must_sync: true, ..LogWrite::default() }
}

impl Bench {
    /// Hands a write over as a node does that only waits for its disk; true if it became a job.
    fn aside(&mut self, number: u64, bytes: usize) -> bool {
        let jobs = Arc::clone(&self.jobs);
        let before = jobs.lock().unwrap().len();
        self.writer.write(write(number, bytes), Some(&|job| jobs.lock().unwrap().push_back(job)));
        let after = self.jobs.lock().unwrap().len();
        after > before
    }

    fn run_job(&self) {
        let job = self.jobs.lock().unwrap().pop_front().unwrap();
        job();
    }

    /// The next thing told, which the driver passes on.
    fn told(&mut self) -> Input {
        let input = self.told.blocking_recv().unwrap();
        if let Input::Written(number) = input {
            self.writer.written(number);
        }
        input
    }

    /// The writer is dropped, the thread ends, and then the log has been dropped. What it saw, all in all.
    fn end(self) -> Vec<Saw> {
        drop((self.writer, self.jobs));
        self.thread.join().unwrap();
        self.saw.try_iter().collect()
    }
}

fn batches(batches: &[&[u64]]) -> Vec<Saw> {
    batches.iter().map(|batch| Saw::Batch(batch.to_vec())).chain([Saw::Dropped]).collect()
}

#[test]
fn a_write_with_nothing_before_it_is_made_aside() {
    let mut bench = bench(|_| Ok(()));
    for number in 1..4 {
        assert!(bench.aside(number, 100));
        bench.run_job();
        assert!(matches!(bench.told(), Input::Written(n) if n == number));
    }
    assert_eq!(bench.end(), batches(&[&[1], &[2], &[3]]));
}

#[test]
fn a_large_one_and_one_of_a_busy_node_go_to_the_thread() {
    let mut bench = bench(|_| Ok(()));
    assert!(!bench.aside(1, ASIDE_BYTES + 1));
    assert!(matches!(bench.told(), Input::Written(1)));
    bench.writer.write(write(2, 1), None);
    assert!(matches!(bench.told(), Input::Written(2)));
    assert_eq!(bench.end(), batches(&[&[1], &[2]]));
}

#[test]
fn what_follows_waits_for_the_job_and_is_one_batch() {
    let mut bench = bench(|_| Ok(()));
    assert!(bench.aside(1, 1));
    // Not yet run, or hanging in its sync: the order stays, whichever way the next ones go.
    assert!(!bench.aside(2, 1));
    bench.writer.write(write(3, 1), None);
    assert!(!bench.aside(4, 1));
    assert!(bench.saw.recv_timeout(std::time::Duration::from_millis(50)).is_err());
    bench.run_job();
    let mut durable = 0;
    while durable < 4 {
        let Input::Written(number) = bench.told() else { panic!("not written") };
        durable = number;
    }
    let saw = bench.end();
    assert_eq!(saw.first(), Some(&Saw::Batch(vec![1])));
    let numbers: Vec<u64> =
        saw.into_iter().flat_map(|saw| if let Saw::Batch(numbers) = saw { numbers } else { Vec::new() }).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
}

#[test]
fn what_follows_one_that_waits_in_the_queue_does_not_overtake_it() {
    let (tell, saw) = std_mpsc::channel();
    let (told_to, _told) = unbounded_channel();
    let (mut writer, thread) = log_writer(Box::new(Told { saw: tell, fault: Box::new(|_| Ok(())) }), told_to);
    writer.write(write(1, 1), None);
    // The log thread has not begun: nobody holds the pen.
    writer.write(write(2, 1), Some(&|_| panic!("it would be written first")));
    drop(writer);
    thread.run();
    assert_eq!(saw.try_iter().collect::<Vec<_>>(), batches(&[&[1, 2]]));
}

#[test]
fn the_first_failure_is_the_last_write_on_either_way() {
    for (first_aside, second_aside) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut bench = bench(|_| Err(Error::not_done(ErrorCode::Storage, "the disk has failed")));
        match first_aside {
            true => {
                assert!(bench.aside(1, 1));
                bench.run_job();
            }
            false => bench.writer.write(write(1, 1), None),
        }
        assert!(matches!(bench.told(), Input::DiskFailed(error) if error.code == ErrorCode::Storage));
        // As if it had heard that the first one is durable: the pen is gone all the same.
        bench.writer.written(1);
        match second_aside {
            true => assert!(!bench.aside(2, 1)),
            false => bench.writer.write(write(2, 1), None),
        }
        assert_eq!(bench.end(), batches(&[&[1]]));
    }
}

#[test]
fn a_job_that_panics_stops_the_node_and_lets_go_of_the_directory() {
    let mut bench = bench(|_| panic!("as told"));
    assert!(bench.aside(1, 1));
    bench.run_job();
    assert!(matches!(bench.told(), Input::Panicked(_)));
    assert_eq!(bench.end(), batches(&[&[1]]));
}

#[test]
fn a_job_that_is_dropped_undone_lets_go_of_the_directory() {
    let mut bench = bench(|_| Ok(()));
    assert!(bench.aside(1, 1));
    bench.writer.write(write(2, 1), None);
    assert_eq!(bench.end(), [Saw::Dropped]);
}

#[test]
fn the_thread_ends_after_a_job_that_is_under_way() {
    let mut bench = bench(|_| Ok(()));
    assert!(bench.aside(1, 1));
    let job = bench.jobs.lock().unwrap().pop_front().unwrap();
    drop(bench.writer);
    let Bench { thread, saw, .. } = bench;
    assert!(!thread.is_finished());
    job();
    thread.join().unwrap();
    assert_eq!(saw.try_iter().collect::<Vec<_>>(), batches(&[&[1]]));
}
