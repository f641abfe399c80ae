//! One single-threaded runtime: the drivers and the network of all nodes and clients that share it (rules, F1).
//!
//! ```text
//!   raftify-net ── runs tasks ──┬──────────────► runs tasks
//!                               │ lays the runtime down, does a job that blocks (`Aside`), takes it up again
//!                               │
//!   raftify-watch               └ job takes longer than PATIENCE: starts another raftify-net, which takes it up;
//!                                 the first one ends with its job
//! ```
//!
//! A thread that is woken for a sync and wakes another after it costs more than the sync's system calls, so a node may have its own
//! thread do it. What the disk then takes longer holds up nobody: one thread at a time drives, but not always the same.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::baton::Baton;
use crate::error::{Error, ErrorCode, Result};
use crate::locks::lock;
use crate::own_thread;

/// How long a job may keep the runtime from its tasks, until the watch looks next.
const PATIENCE: Duration = Duration::from_millis(5);

pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Set once the thread has left its loop, so that a join can be bounded.
#[derive(Default)]
struct Ended {
    flag: Mutex<bool>,
    changed: Condvar,
}

/// The runtime, and what is said to whoever drives it.
struct Seat {
    runtime: tokio::runtime::Runtime,
    jobs: mpsc::UnboundedReceiver<Job>,
    stopped: watch::Receiver<bool>,
}

impl Seat {
    /// Runs tasks until there is a job. None: the end.
    fn drive(&mut self) -> Option<Job> {
        let Seat { runtime, jobs, stopped } = self;
        runtime.block_on(async move {
            let job = tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => None,
                job = jobs.recv() => job,
            };
            // What is ready beside it goes first: messages that were given to the network in the same turn.
            tokio::task::yield_now().await;
            job
        })
    }
}

/// What the threads share.
struct Shared {
    seat: Baton<Seat>,
    ended: Ended,
    /// Of the present driver, and of the watch.
    threads: Mutex<[Option<JoinHandle<()>>; 2]>,
}

impl Shared {
    /// Drives until the end, or until another thread has taken over.
    fn drive(&self) {
        while let Some(mut seat) = self.seat.take() {
            match seat.thing.drive() {
                Some(job) => {
                    seat.lay();
                    job();
                }
                None => {
                    seat.keep().runtime.shutdown_background();
                    *lock(&self.ended.flag) = true;
                    self.ended.changed.notify_all();
                }
            }
        }
    }

    /// A thread to drive. One that finds the seat taken ends at once.
    fn hire(self: &Arc<Self>) -> std::io::Result<()> {
        let shared = Arc::clone(self);
        let thread = own_thread::spawn("raftify-net", move || shared.drive())?;
        let [driver, _] = &mut *lock(&self.threads);
        *driver = Some(thread);
        Ok(())
    }

    fn watch(self: &Arc<Self>) -> std::io::Result<()> {
        let shared = Arc::clone(self);
        let watch = move || {
            // Without memory for a thread the one that drove goes on after its job, or the next look finds some.
            shared.seat.watch(PATIENCE, || drop(shared.hire()));
        };
        let thread = own_thread::spawn("raftify-watch", watch)?;
        let [_, watch] = &mut *lock(&self.threads);
        *watch = Some(thread);
        Ok(())
    }
}

struct Inner {
    handle: tokio::runtime::Handle,
    jobs: mpsc::UnboundedSender<Job>,
    nodes: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    shared: Arc<Shared>,
}

/// A handle; its threads end with `shutdown` or with the last handle.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

/// A node's leave to block its runtime for a job.
pub(crate) struct Aside {
    jobs: mpsc::UnboundedSender<Job>,
    nodes: Arc<AtomicUsize>,
}

impl Aside {
    /// Another node shares the runtime, and would wait for this one's disk.
    pub(crate) fn shared(&self) -> bool {
        self.nodes.load(Ordering::Relaxed) > 1
    }

    /// Once the tasks that are ready have run. Dropped undone if the runtime ends first.
    pub(crate) fn run(&self, job: Job) {
        let _ = self.jobs.send(job);
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.nodes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Runtime {
    pub fn new() -> Result<Self> {
        let failed =
            |e: std::io::Error| Error::not_done(ErrorCode::Internal, format!("cannot start the network thread: {e}"));
        // Those that it starts read and write snapshots, and look up names.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_start(own_thread::step_back)
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let seat = Baton::new(Seat { runtime, jobs: inbox, stopped });
        let shared = Arc::new(Shared { seat, ended: Ended::default(), threads: Mutex::default() });
        // From here on an error ends what has been started, with `stop`.
        shared.hire().map_err(failed)?;
        shared.watch().map_err(failed)?;
        Ok(Runtime(Arc::new(Inner { handle, jobs, nodes: Arc::default(), stop, shared })))
    }

    /// Runs the task on the runtime, of which one thread at a time runs the tasks.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        if *self.0.stop.borrow() {
            return Err(Error::not_done(ErrorCode::Closed, "the runtime has been shut down"));
        }
        self.0.handle.spawn(task);
        Ok(())
    }

    /// For one node, which shares the runtime from here on until it drops this.
    pub(crate) fn aside(&self) -> Aside {
        self.0.nodes.fetch_add(1, Ordering::Relaxed);
        Aside { jobs: self.0.jobs.clone(), nodes: Arc::clone(&self.0.nodes) }
    }

    /// Ends its threads: every task is dropped where it stands. Waits no longer than `timeout`; true if they ended. A job that blocks
    /// is not waited for.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        self.0.stop.send_replace(true);
        // A deadline beyond what the clock can name is none.
        let deadline = Instant::now().checked_add(timeout);
        let shared = &self.0.shared;
        let mut ended = lock(&shared.ended.flag);
        while !*ended {
            let left = deadline.map_or(timeout, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            ended = shared.ended.changed.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(ended);
        let threads = std::mem::take(&mut *lock(&shared.threads));
        for thread in threads.into_iter().flatten() {
            if thread.thread().id() != std::thread::current().id() {
                // It has left its loop: nothing more than its stack is waited for. A panic in it has been reported by its tasks.
                let _ = thread.join();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const ENOUGH: Duration = Duration::from_secs(30);

    /// What a task tells, run after all that was given to the runtime before.
    fn answers(runtime: &Runtime) -> bool {
        let (tell, told) = channel();
        runtime.spawn(async move { tell.send(()).unwrap() }).is_ok() && told.recv_timeout(ENOUGH).is_ok()
    }

    #[test]
    fn runs_tasks_and_ends() {
        let runtime = Runtime::new().unwrap();
        assert!(answers(&runtime));
        assert!(runtime.shutdown(ENOUGH));
        assert!(runtime.spawn(async {}).is_err());
    }

    #[test]
    fn a_job_is_done_between_the_tasks() {
        let runtime = Runtime::new().unwrap();
        let aside = runtime.aside();
        let (tell, told) = channel();
        for n in 0..1000 {
            let tell = tell.clone();
            aside.run(Box::new(move || tell.send(n).unwrap()));
        }
        for n in 0..1000 {
            assert_eq!(told.recv_timeout(ENOUGH).unwrap(), n);
        }
        assert!(runtime.shutdown(ENOUGH));
    }

    #[test]
    fn a_job_that_hangs_holds_up_neither_tasks_nor_jobs_nor_the_end() {
        let runtime = Runtime::new().unwrap();
        let aside = runtime.aside();
        let (let_go, wait) = channel::<()>();
        let (tell, told) = channel();
        let hangs = tell.clone();
        aside.run(Box::new(move || {
            let _ = wait.recv();
            hangs.send("the one that hung").unwrap();
        }));
        assert!(answers(&runtime));
        aside.run(Box::new(move || tell.send("the next").unwrap()));
        assert_eq!(told.recv_timeout(ENOUGH).unwrap(), "the next");
        assert!(runtime.shutdown(ENOUGH));
        // The first thread still stands in its job, and ends with it.
        drop(let_go);
        assert_eq!(told.recv_timeout(ENOUGH).unwrap(), "the one that hung");
    }

    #[test]
    fn a_thread_that_is_late_takes_its_seat_again_or_finds_it_taken() {
        let runtime = Runtime::new().unwrap();
        let aside = runtime.aside();
        for pause in [0, 1, 4, 5, 6, 9, 10, 11, 20] {
            aside.run(Box::new(move || std::thread::sleep(Duration::from_millis(pause))));
            assert!(answers(&runtime), "after a job of {pause} ms");
        }
        assert!(runtime.shutdown(ENOUGH));
    }

    #[test]
    fn a_node_knows_whether_it_is_alone() {
        let runtime = Runtime::new().unwrap();
        let one = runtime.aside();
        assert!(!one.shared());
        let other = runtime.aside();
        assert!(one.shared());
        drop(other);
        assert!(!one.shared());
    }

    #[test]
    fn the_last_handle_ends_the_threads() {
        let runtime = Runtime::new().unwrap();
        assert!(answers(&runtime));
        let shared = Arc::clone(&runtime.0.shared);
        drop(runtime);
        let ended = lock(&shared.ended.flag);
        let (ended, _) = shared.ended.changed.wait_timeout_while(ended, ENOUGH, |ended| !*ended).unwrap();
        assert!(*ended);
    }
}
