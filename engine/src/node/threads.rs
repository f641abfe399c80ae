//! The node's two threads beside the runtime's: the log writer, and the worker that reads entries and prunes files.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::inbox::Input;
use super::snapshot_io::SnapshotFiles;
use crate::core::Fetch;
use crate::error::{Error, ErrorCode, Result};
use crate::log::{LogReader, LogWrite, LogWriter, SnapshotMeta};
use crate::mailbox::{mailbox, Receiver, Sender};

/// Writes are merged up to this many bytes, so that one transaction stays within memory.
const BATCH_BYTES: usize = 64 << 20;

pub(super) enum Work {
    Fetch(Fetch),
    /// Snapshots before this one, of a log that begins there.
    Prune {
        keep: Arc<SnapshotMeta>,
        first_index: u64,
    },
}

/// Hands writes to the writer; when dropped, the writer ends after what it has.
pub(super) struct Threads {
    pub writes: Sender<LogWrite>,
    pub work: Sender<Work>,
    /// Both threads have ended and let go of the directory.
    pub ended: Vec<oneshot::Receiver<()>>,
}

pub(super) fn start(
    name: &str,
    writer: Box<dyn LogWriter>,
    reader: Box<dyn LogReader>,
    files: SnapshotFiles,
    inbox: UnboundedSender<Input>,
) -> Result<Threads> {
    let (writes, to_write) = mailbox();
    let (work, to_do) = mailbox();
    let tell = inbox.clone();
    let wrote = spawn(format!("{name}-log"), inbox.clone(), move || write_log(writer, &to_write, &tell))?;
    let worked = spawn(format!("{name}-io"), inbox.clone(), move || do_work(reader, &to_do, &files, &inbox))?;
    Ok(Threads { writes, work, ended: vec![wrote, worked] })
}

fn spawn(
    name: String,
    inbox: UnboundedSender<Input>,
    body: impl FnOnce() + Send + 'static,
) -> Result<oneshot::Receiver<()>> {
    let (ended, wait) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                let _ = inbox.send(Input::Panicked(format!("thread {name} panicked")));
            }
            let _ = ended.send(());
        })
        .map_err(|e| Error::not_done(ErrorCode::Internal, format!("cannot start a thread: {e}")))?;
    Ok(wait)
}

fn size(write: &LogWrite) -> usize {
    write.entries.iter().flat_map(|entries| entries.iter()).map(|e| e.data.len()).sum()
}

/// Everything queued becomes one transaction with one sync; what arrives meanwhile is the next one (group commit).
fn write_log(mut writer: Box<dyn LogWriter>, queue: &Receiver<LogWrite>, tell: &UnboundedSender<Input>) {
    let mut waiting = Vec::new();
    while queue.recv_all(&mut waiting) {
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
            let last = batch.last().map_or(0, |w| w.number);
            let input = match writer.write(batch) {
                Ok(()) => Input::Written(last),
                Err(error) => {
                    // S10: nothing is written after the first failure; what waits is never acknowledged.
                    let _ = tell.send(Input::DiskFailed(error));
                    return;
                }
            };
            if tell.send(input).is_err() {
                return;
            }
        }
        waiting.clear();
    }
}

fn do_work(reader: Box<dyn LogReader>, queue: &Receiver<Work>, files: &SnapshotFiles, tell: &UnboundedSender<Input>) {
    let mut waiting = Vec::new();
    while queue.recv_all(&mut waiting) {
        for work in waiting.drain(..) {
            match work {
                Work::Fetch(fetch) => {
                    let input = match reader.entries(fetch.low, fetch.high, fetch.max_bytes) {
                        Ok(entries) => Input::Fetched { id: fetch.id, entries },
                        Err(error) => Input::DiskFailed(error),
                    };
                    if tell.send(input).is_err() {
                        return;
                    }
                }
                // Files that stay behind cost space, nothing else; the next snapshot tries again.
                Work::Prune { keep, first_index } => files.prune(&keep, first_index),
            }
        }
    }
}
