//! Snapshot files as the node uses them: written by the state machine's thread, read by it and by the transport, received from a leader.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::cluster::ClusterState;
use crate::error::{Error, ErrorCode, Result};
use crate::log::SnapshotMeta;
use crate::own_thread;
use crate::snapshots::{IncomingSnapshot, SnapshotDir, SnapshotReader, SnapshotWriter};
use crate::transport::{IntakeFile, SnapshotIntake, SnapshotSource};
use crate::wire::SnapshotHeader;
use crate::NodeId;

enum Making {
    Announced { index: u64, term: u64, cluster: Box<ClusterState> },
    Writing(Box<SnapshotWriter>),
    Failed(String),
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
        let (next, result) = self.advance(making, |writer| {
            if machine_waits {
                writer.through_cache();
            }
            writer.write(data)
        });
        lock(&self.making).insert(id, next);
        result
    }

    fn advance(&self, making: Making, step: impl FnOnce(&mut SnapshotWriter) -> Result<()>) -> (Making, Result<()>) {
        let writer = match making {
            Making::Announced { index, term, cluster } => self.dir.create(index, term, &cluster).map(Box::new),
            Making::Writing(writer) => Ok(writer),
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

    /// Completes the file on a thread of its own: its sync may take long.
    pub fn finish(
        &self,
        id: u64,
        result: Result<(), String>,
        done: impl FnOnce(Result<(u64, u32), String>) + Send + 'static,
    ) -> Result<()> {
        let making = lock(&self.making).remove(&id).ok_or_else(|| not_asked(id))?;
        let files = self.clone();
        let complete = move || -> Result<(u64, u32), String> {
            result?;
            let (making, started) = files.advance(making, |_| Ok(()));
            started.map_err(|e| e.message)?;
            match making {
                Making::Writing(writer) => writer.finish().map(|meta| (meta.size, meta.crc)).map_err(|e| e.message),
                Making::Failed(reason) => Err(reason),
                Making::Announced { .. } => Err("nothing was written".into()),
            }
        };
        own_thread::spawn("raftify-snapshot", move || done(complete()))
            .map(drop)
            .map_err(|e| Error::not_done(ErrorCode::Internal, format!("cannot start a thread: {e}")))
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
        let read = reader.read_at(offset, out);
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
