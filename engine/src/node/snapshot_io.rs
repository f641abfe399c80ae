//! Snapshot files as the node uses them: written by the state machine's thread, read by it and by the transport, received from a leader.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::cluster::ClusterState;
use crate::core::SnapshotFile;
use crate::error::{Error, ErrorCode, Result};
use crate::log::SnapshotMeta;
use crate::own_thread;
use crate::snapshots::{IncomingSnapshot, SnapshotDir, SnapshotReader, SnapshotWriter};
use crate::transport::{IntakeFile, SnapshotIntake, SnapshotSource};
use crate::wire::SnapshotHeader;
use crate::NodeId;

enum Making {
    Announced {
        index: u64,
        term: u64,
        cluster: Box<ClusterState>,
    },
    Writing(Box<SnapshotWriter>),
    Failed(String),
    /// All of the state was given.
    Whole(Box<Making>),
}

enum Reading {
    Named(Arc<SnapshotMeta>),
    Open(Box<SnapshotReader>),
}

/// All of one node's snapshot files. Clones share one state.
#[derive(Clone)]
pub(crate) struct SnapshotFiles {
    dir: SnapshotDir,
    making: Arc<Mutex<HashMap<u64, Making>>>,
    reading: Arc<Mutex<HashMap<u64, Reading>>>,
}

/// What a completed file holds, or why there is none.
type Completed = Result<SnapshotFile, String>;

/// Tells once how completing a snapshot ended. Dropped untold, as when no thread could be started or the one that was broke down, it
/// tells of a failure: otherwise the core would wait for this snapshot, and take no other, for ever.
struct Outcome<F: FnOnce(Completed)>(Option<F>);

impl<F: FnOnce(Completed)> Outcome<F> {
    fn tell(mut self, completed: Completed) {
        if let Some(done) = self.0.take() {
            done(completed);
        }
    }
}

impl<F: FnOnce(Completed)> Drop for Outcome<F> {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err("the thread that completes the file could not be started, or broke down".into()));
        }
    }
}

fn not_asked(id: u64) -> Error {
    Error::not_done(
        ErrorCode::InvalidArgument,
        format!("request {id} is not open: it was answered already, or never made"),
    )
}

impl SnapshotFiles {
    pub fn new(dir: SnapshotDir) -> Self {
        SnapshotFiles { dir, making: Arc::default(), reading: Arc::default() }
    }

    /// The machine is about to be asked for its state: what the file will say beside it.
    pub fn announce(&self, id: u64, index: u64, term: u64, cluster: ClusterState) {
        lock(&self.making).insert(id, Making::Announced { index, term, cluster: Box::new(cluster) });
    }

    /// `machine_waits`: the machine applies nothing until this returns.
    pub fn write_chunk(&self, id: u64, data: &[u8], machine_waits: bool) -> Result<()> {
        // Taken out while it writes: the driver must not wait for this thread's disk.
        let making = lock(&self.making).remove(&id).ok_or_else(|| not_asked(id))?;
        let (next, result) = self.advance(id, making, |writer| {
            if machine_waits {
                writer.through_cache();
            }
            writer.write(data)
        });
        lock(&self.making).insert(id, next);
        result
    }

    fn advance(
        &self,
        id: u64,
        making: Making,
        step: impl FnOnce(&mut SnapshotWriter) -> Result<()>,
    ) -> (Making, Result<()>) {
        let writer = match making {
            Making::Announced { index, term, cluster } => self.dir.create(index, term, &cluster).map(Box::new),
            Making::Writing(writer) => Ok(writer),
            Making::Whole(_) => return (making, Err(not_asked(id))),
            Making::Failed(reason) => {
                let error = Error::not_done(ErrorCode::SnapshotFailed, reason.clone());
                return (Making::Failed(reason), Err(error));
            }
        };
        let result = writer.and_then(|mut writer| step(&mut writer).map(|()| writer));
        match result {
            Ok(writer) => (Making::Writing(writer), Ok(())),
            Err(error) => (Making::Failed(error.message.clone()), Err(error)),
        }
    }

    /// The state is written to its end, or will not be: nothing more of it is taken.
    pub fn whole(&self, id: u64) -> Result<()> {
        let mut open = lock(&self.making);
        let making =
            open.get_mut(&id).filter(|making| !matches!(making, Making::Whole(_))).ok_or_else(|| not_asked(id))?;
        let given = std::mem::replace(making, Making::Failed(String::new()));
        *making = Making::Whole(Box::new(given));
        Ok(())
    }

    /// Completes the file with the table of client sessions, on a thread of its own: its sync may take long. `done` hears how that ended,
    /// whatever happens.
    pub fn complete(&self, id: u64, sessions: Result<Vec<u8>, String>, done: impl FnOnce(Completed) + Send + 'static) {
        let making = lock(&self.making).remove(&id);
        let files = self.clone();
        let complete = move || -> Completed {
            let sessions = sessions?;
            let Some(Making::Whole(making)) = making else { return Err("nothing was written".into()) };
            let (making, started) = files.advance(id, *making, |_| Ok(()));
            started.map_err(|e| e.message)?;
            let Making::Writing(writer) = making else { return Err("nothing was written".into()) };
            let meta = writer.finish(&sessions).map_err(|e| e.message)?;
            Ok(SnapshotFile { size: meta.size, sessions: meta.sessions, crc: meta.crc })
        };
        let outcome = Outcome(Some(done));
        // Without a thread it is dropped, and the unfinished file goes with it.
        let _ = own_thread::spawn("raftify-snapshot", move || outcome.tell(complete()));
    }

    /// The table of client sessions of a snapshot that is here whole.
    pub fn sessions(&self, meta: &SnapshotMeta) -> Result<Vec<u8>> {
        self.dir.sessions(meta)
    }

    /// The machine is about to be told to restore this snapshot. It may still be reading an earlier one, which stays open until it has
    /// answered that request.
    pub fn name_restore(&self, id: u64, meta: Arc<SnapshotMeta>) -> PathBuf {
        let path = self.dir.path(&meta);
        lock(&self.reading).insert(id, Reading::Named(meta));
        path
    }

    pub fn read(&self, id: u64, offset: u64, out: &mut [u8]) -> Result<usize> {
        let reading = lock(&self.reading).remove(&id).ok_or_else(|| not_asked(id))?;
        let mut reader = match reading {
            Reading::Named(meta) => Box::new(self.dir.open_reader(&meta)?),
            Reading::Open(reader) => reader,
        };
        let read = reader.read_state_at(offset, out);
        lock(&self.reading).insert(id, Reading::Open(reader));
        read
    }

    pub fn restored(&self, id: u64) {
        lock(&self.reading).remove(&id);
    }

    pub fn path(&self, meta: &SnapshotMeta) -> PathBuf {
        self.dir.path(meta)
    }

    pub fn prune(&self, keep: &SnapshotMeta, first_index: u64) {
        // What cannot be removed now is tried again with the next snapshot.
        if let Ok(removed) = self.dir.prune(keep, first_index) {
            removed.give_back_aside();
        }
    }

    /// For the transport, which sends it.
    pub fn source(&self, meta: &SnapshotMeta) -> Result<Arc<dyn SnapshotSource>> {
        if !meta.has_file {
            return Ok(Arc::new(Nothing));
        }
        Ok(Arc::new(Source(Mutex::new(self.dir.open_reader(meta)?))))
    }

    pub fn intake(&self) -> Arc<dyn SnapshotIntake> {
        Arc::new(Intake(self.dir.clone()))
    }
}

struct Source(Mutex<SnapshotReader>);

impl SnapshotSource for Source {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        lock(&self.0).read_at(offset, buf).map_err(std::io::Error::other)
    }
}

/// A cluster record without a state: there is no file on either side.
struct Nothing;

impl SnapshotSource for Nothing {
    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }
}

impl IntakeFile for Nothing {
    fn write_at(&mut self, _offset: u64, _data: &[u8]) -> Result<()> {
        Err(Error::not_done(
            ErrorCode::SnapshotFailed,
            "the sender announced a snapshot without a state, and then sent one",
        ))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct Intake(SnapshotDir);

impl SnapshotIntake for Intake {
    fn begin(&self, _from: NodeId, header: &SnapshotHeader) -> Result<(Box<dyn IntakeFile>, u64)> {
        if !header.has_file {
            return Ok((Box::new(Nothing), 0));
        }
        let file = self.0.receive(header)?;
        let offset = file.offset();
        Ok((Box::new(Received(file)), offset))
    }
}

struct Received(IncomingSnapshot);

impl IntakeFile for Received {
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.write_at(offset, data)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.0.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::faults::{fail_next, Fault};

    #[test]
    fn a_snapshot_that_no_thread_completes_has_failed() {
        let root = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(SnapshotDir::open(root.path()).unwrap());
        for (id, fails) in [(1, false), (2, true), (3, false)] {
            files.announce(id, 5, 2, ClusterState::default());
            files.write_chunk(id, b"state", false).unwrap();
            if fails {
                fail_next(Fault::Thread);
            }
            let (tell, told) = mpsc::channel();
            files.whole(id).unwrap();
            files.complete(id, Ok(Vec::new()), move |result| tell.send(result).unwrap());
            let result = told.recv_timeout(Duration::from_secs(60)).expect("it is always told");
            assert_eq!(result.is_err(), fails, "{result:?}");
        }
        assert_eq!(std::fs::read_dir(root.path().join("snapshots")).unwrap().count(), 1, "the failed one left nothing");
    }

    #[test]
    fn how_a_snapshot_ended_is_told_once_also_by_a_thread_that_panics() {
        let file = SnapshotFile { size: 3, sessions: 0, crc: 4 };
        for (panics, told) in [(false, [Ok(file)]), (true, [Err(())])] {
            let (tell, heard) = mpsc::channel();
            let outcome = Outcome(Some(move |completed: Completed| tell.send(completed.map_err(drop)).unwrap()));
            let thread = std::thread::spawn(move || outcome.tell(if panics { panic!("a disk") } else { Ok(file) }));
            assert_eq!(thread.join().is_err(), panics);
            assert!(heard.iter().eq(told), "{panics}");
        }
    }
}
