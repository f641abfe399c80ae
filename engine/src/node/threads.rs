//! The node's two threads beside the runtime's: the log's, and the worker that reads entries and prunes files.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::inbox::Input;
use super::log_writer::{log_writer, LogWriter};
use super::snapshot_io::SnapshotFiles;
use crate::core::Fetch;
use crate::error::{Error, ErrorCode, Result};
use crate::log::{LogReader, SnapshotMeta};
use crate::mailbox::{mailbox, Receiver, Sender};
use crate::own_thread;

pub(super) enum Work {
    Fetch(Fetch),
    /// Snapshots before this one, of a log that begins there.
    Prune {
        keep: Arc<SnapshotMeta>,
        first_index: u64,
    },
}

/// When dropped, the threads end after what they have.
pub(super) struct Threads {
    pub log: LogWriter,
    pub work: Sender<Work>,
    /// Both threads have ended and let go of the directory.
    pub ended: Vec<oneshot::Receiver<()>>,
}

pub(super) fn start(
    name: &str,
    log: Box<dyn crate::log::LogWriter>,
    reader: Box<dyn LogReader>,
    files: SnapshotFiles,
    inbox: UnboundedSender<Input>,
) -> Result<Threads> {
    let (log, log_thread) = log_writer(log, inbox.clone());
    let (work, to_do) = mailbox();
    let wrote = spawn(format!("{name}-log"), inbox.clone(), move || log_thread.run())?;
    let worked = spawn(format!("{name}-io"), inbox.clone(), move || do_work(reader, &to_do, &files, &inbox))?;
    Ok(Threads { log, work, ended: vec![wrote, worked] })
}

fn spawn(
    name: String,
    inbox: UnboundedSender<Input>,
    body: impl FnOnce() + Send + 'static,
) -> Result<oneshot::Receiver<()>> {
    let (ended, wait) = oneshot::channel();
    own_thread::spawn(name.clone(), move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            let _ = inbox.send(Input::Panicked(format!("thread {name} panicked")));
        }
        let _ = ended.send(());
    })
    .map_err(|e| Error::not_done(ErrorCode::Internal, format!("cannot start a thread: {e}")))?;
    Ok(wait)
}

fn do_work(reader: Box<dyn LogReader>, queue: &Receiver<Work>, files: &SnapshotFiles, tell: &UnboundedSender<Input>) {
    own_thread::step_back();
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

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::entry::Entry;
    use crate::snapshots::SnapshotDir;

    #[test]
    fn a_thread_that_panics_says_so_before_it_has_ended() {
        let (tell, mut told) = unbounded_channel();
        let mut ended = spawn("raft-9-io".into(), tell, || panic!("as a test wants it")).unwrap();
        assert!(matches!(told.blocking_recv(), Some(Input::Panicked(what)) if what.contains("raft-9-io")));
        assert!(told.blocking_recv().is_none());
        assert!(ended.try_recv().is_ok(), "whoever waits for the directory hears it");
    }

    struct Damaged;

    impl LogReader for Damaged {
        fn entries(&self, low: u64, _: u64, _: u64) -> Result<Vec<Entry>> {
            match low {
                1 => Ok(vec![Entry { index: 1, ..Entry::default() }]),
                _ => Err(Error::not_done(ErrorCode::CorruptData, "as a test wants it")),
            }
        }
    }

    /// S10: a node that has found corruption neither votes nor acknowledges.
    #[test]
    fn entries_that_cannot_be_read_are_told_as_the_failure_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(SnapshotDir::open(dir.path()).unwrap());
        let (tell, mut told) = unbounded_channel();
        let (work, to_do) = mailbox();
        for low in [1, 2] {
            let fetch = Fetch { id: 10 + low, low, high: low + 1, max_bytes: 1 };
            assert!(work.send(Work::Fetch(fetch)).is_ok());
        }
        drop(work);
        do_work(Box::new(Damaged), &to_do, &files, &tell);
        assert!(matches!(told.try_recv(), Ok(Input::Fetched { id: 11, entries }) if entries.len() == 1));
        assert!(matches!(told.try_recv(), Ok(Input::DiskFailed(error)) if error.code == ErrorCode::CorruptData));
    }
}
