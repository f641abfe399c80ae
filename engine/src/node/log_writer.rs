//! The log's writer, and the two threads that may have it: its own, and the runtime's for the moment of a small write.
//!
//! ```text
//!   driver ──┬─ queue ──► log thread ───────────── sync ──► Written
//!            └─ pen ────► job, aside (`Aside`) ─── sync ──► Written        (nothing else is under way)
//! ```
//!
//! Invariants: writes are made in the order in which the driver hands them over: only one that finds none before it takes the other
//! way, with the pen in its hand from then on, which the log thread waits for (F3: never two syncs in flight). Nothing is written
//! after the first failure (S10). The log thread ends last, when the directory has been let go of. A job is run or dropped, at some time.

use std::panic::{catch_unwind, AssertUnwindSafe};

use tokio::sync::mpsc::UnboundedSender;

use super::inbox::Input;
use crate::baton::{Baton, Held};
use crate::log::LogWrite;
use crate::log::LogWriter as Log;
use crate::mailbox::{mailbox, Receiver, Sender};

/// Writes are merged up to this many bytes, so that one transaction stays within memory.
const BATCH_BYTES: usize = 64 << 20;
/// A write of more data than this goes to the log thread: next to the CPU time that is in it, waking a thread is nothing, and the
/// runtime can have the next one ready meanwhile.
const ASIDE_BYTES: usize = 8 << 10;

type Pen = Baton<Box<dyn Log>>;

/// A write that the driver's own thread makes, once it has nothing else to do.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// The driver's end. Dropped, the log is let go of once everything handed over has been written.
pub(super) struct LogWriter {
    queue: Sender<LogWrite>,
    pen: Pen,
    tell: UnboundedSender<Input>,
    /// Numbers of the last write that was handed over, and of the last that is durable.
    last: u64,
    durable: u64,
}

/// The log thread's end.
pub(super) struct LogThread {
    queue: Receiver<LogWrite>,
    pen: Pen,
    tell: UnboundedSender<Input>,
}

pub(super) fn log_writer(log: Box<dyn Log>, tell: UnboundedSender<Input>) -> (LogWriter, LogThread) {
    let (queue, receiver) = mailbox();
    let pen = Pen::new(log);
    let thread = LogThread { queue: receiver, pen: pen.clone(), tell: tell.clone() };
    (LogWriter { queue, pen, tell, last: 0, durable: 0 }, thread)
}

fn size(write: &LogWrite) -> usize {
    write.entries.iter().flat_map(|entries| entries.iter()).map(|e| e.data.len()).sum()
}

/// Writes these, tells, and lays the pen down. False: nothing is written any more.
fn write(mut pen: Held<Box<dyn Log>>, batch: &[LogWrite], tell: &UnboundedSender<Input>) -> bool {
    let last = batch.last().map_or(0, |write| write.number);
    match pen.thing.write(batch) {
        Ok(()) => {
            let heard = tell.send(Input::Written(last)).is_ok();
            // Not before: what the next one has written would be told first.
            pen.lay();
            heard
        }
        Err(error) => {
            // S10: nothing is written after the first failure; what waits is never acknowledged.
            drop(pen);
            let _ = tell.send(Input::DiskFailed(error));
            false
        }
    }
}

impl LogWriter {
    /// `aside` takes a job, where this node has nothing else to do before this write is durable.
    pub(super) fn write(&mut self, write: LogWrite, aside: Option<&dyn Fn(Job)>) {
        let alone = self.last == self.durable;
        self.last = write.number;
        if let Some(aside) = aside.filter(|_| alone && size(&write) <= ASIDE_BYTES) {
            if let Some(pen) = self.pen.take() {
                let tell = self.tell.clone();
                aside(Box::new(move || {
                    let wrote = catch_unwind(AssertUnwindSafe(|| self::write(pen, &[write], &tell)));
                    if wrote.is_err() {
                        let _ = tell.send(Input::Panicked("writing the log panicked".into()));
                    }
                }));
                return;
            }
        }
        // A log thread that has ended has told why.
        let _ = self.queue.send(write);
    }

    pub(super) fn written(&mut self, number: u64) {
        self.durable = number;
    }
}

impl LogThread {
    /// Everything queued becomes one transaction with one sync; what arrives meanwhile is the next one (group commit).
    pub(super) fn run(self) {
        let LogThread { queue, pen, tell } = self;
        let mut waiting = Vec::new();
        'queue: while queue.recv_all(&mut waiting) {
            let mut rest = waiting.as_slice();
            while let Some((first, others)) = rest.split_first() {
                let mut bytes = size(first);
                let more = others.iter().take_while(|next| {
                    let fits = bytes < BATCH_BYTES;
                    bytes = bytes.saturating_add(size(next));
                    fits
                });
                let (batch, left) = rest.split_at(more.count().saturating_add(1));
                rest = left;
                if !pen.wait().is_some_and(|pen| write(pen, batch, &tell)) {
                    break 'queue;
                }
            }
            waiting.clear();
        }
        drop(queue);
        // A job may still have it.
        drop(pen.wait());
    }
}

#[cfg(test)]
#[path = "log_writer_tests.rs"]
mod tests;
