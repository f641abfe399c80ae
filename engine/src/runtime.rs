//! One thread with one single-threaded runtime: the drivers and the network of all nodes and clients that share it (rules, F1).

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::error::{Error, ErrorCode, Result};

type Task = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Set once the thread has left its loop, so that a join can be bounded.
#[derive(Default)]
struct Ended {
    flag: Mutex<bool>,
    changed: Condvar,
}

struct Inner {
    tasks: mpsc::UnboundedSender<Task>,
    stop: tokio::sync::watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ended: Arc<Ended>,
}

/// A handle; the thread ends with `shutdown` or with the last handle.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

impl Runtime {
    pub fn new() -> Result<Self> {
        let failed =
            |e: std::io::Error| Error::not_done(ErrorCode::Internal, format!("cannot start the network thread: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (tasks, mut inbox) = mpsc::unbounded_channel::<Task>();
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        let ended = Arc::new(Ended::default());
        let tell = Arc::clone(&ended);
        let thread = std::thread::Builder::new()
            .name("raftify-net".into())
            .spawn(move || {
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, async move {
                    loop {
                        tokio::select! {
                            task = inbox.recv() => match task {
                                Some(task) => { tokio::task::spawn_local(task()); }
                                None => break,
                            },
                            _ = stopped.wait_for(|stop| *stop) => break,
                        }
                    }
                });
                drop(local);
                runtime.shutdown_background();
                *tell.flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
                tell.changed.notify_all();
            })
            .map_err(failed)?;
        Ok(Runtime(Arc::new(Inner { tasks, stop, thread: Mutex::new(Some(thread)), ended })))
    }

    /// Runs the future that `task` makes, on the runtime's thread. It need not be `Send`.
    pub fn spawn<F, Fut>(&self, task: F) -> Result<()>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.0
            .tasks
            .send(Box::new(move || Box::pin(task())))
            .map_err(|_| Error::not_done(ErrorCode::Closed, "the runtime has been shut down"))
    }

    /// Ends the thread: every task on it is dropped where it stands. Waits no longer than `timeout`; true if it ended.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        self.0.stop.send_replace(true);
        // A deadline beyond what the clock can name is none.
        let deadline = Instant::now().checked_add(timeout);
        let mut ended = self.0.ended.flag.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            let left = deadline.map_or(timeout, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            ended = self.0.ended.changed.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(ended);
        if let Some(thread) = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
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

    #[test]
    fn runs_tasks_and_ends() {
        let runtime = Runtime::new().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        runtime.spawn(move || async move { tell.send(7).unwrap() }).unwrap();
        assert_eq!(told.recv().unwrap(), 7);
        assert!(runtime.shutdown(Duration::from_secs(5)));
        assert!(runtime.spawn(|| async {}).is_err() || runtime.shutdown(Duration::ZERO));
    }
}
