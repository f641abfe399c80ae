//! A snapshot of our own state machine, on its way to the disk.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cluster::ClusterState;
use crate::error::{Error, Result};
use crate::log::SnapshotMeta;
use crate::snapshots::file::{Body, ChunkWriter};
use crate::snapshots::{remove, SnapshotDir, UNFINISHED};

/// Keeps the temporary files of one process apart.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Takes the state's bytes in order. Dropped before [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct SnapshotWriter {
    dir: SnapshotDir,
    body: Body,
    chunks: ChunkWriter,
    /// The temporary file; `None` once it has its final name.
    unfinished: Option<PathBuf>,
}

impl SnapshotWriter {
    pub(super) fn begin(dir: SnapshotDir, index: u64, term: u64, cluster: &ClusterState) -> Result<Self> {
        let body = Body { index, term, cluster: Some(cluster.clone()) };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.path.join(format!("{index:020}-{term}-{number}.{UNFINISHED}"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| Error::io(&path, "begin the snapshot", &e))?;
        let chunks = ChunkWriter::begin(file, path.clone(), &body);
        match chunks {
            Ok(chunks) => Ok(SnapshotWriter { dir, body, chunks, unfinished: Some(path) }),
            Err(error) => {
                let _ = remove(&path);
                Err(error)
            }
        }
    }

    /// Bytes of the state taken so far.
    pub fn size(&self) -> u64 {
        self.chunks.size()
    }

    /// From now on [`write`](Self::write) waits for no disk: whoever calls it keeps others waiting. [`finish`](Self::finish) waits for all of it.
    pub fn through_cache(&mut self) {
        self.chunks.through_cache();
    }

    /// Takes the next bytes of the state. After an error every call fails the same way.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.chunks.write(bytes)
    }

    /// Puts the table of client sessions behind the state and makes the file durable under its final name (S6). The log may name what is
    /// returned.
    pub fn finish(mut self, sessions: &[u8]) -> Result<SnapshotMeta> {
        self.chunks.write(sessions)?;
        let footer = self.chunks.finish(sessions.len() as u64)?;
        let meta = SnapshotMeta {
            index: self.body.index,
            term: self.body.term,
            cluster: self.body.cluster.clone().unwrap_or_default(),
            size: footer.size,
            sessions: footer.sessions,
            crc: footer.crc,
            has_file: true,
            outcomes: None,
        };
        if let Some(unfinished) = self.unfinished.as_ref() {
            let path = self.dir.path(&meta);
            std::fs::rename(unfinished, &path).map_err(|e| Error::io(&path, "put the snapshot in place", &e))?;
        }
        self.unfinished = None;
        self.dir.sync()?;
        Ok(meta)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if let Some(path) = &self.unfinished {
            let _ = remove(path);
        }
    }
}
