//! A snapshot on its way here from a peer. What has arrived survives a broken stream and a restart.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checksum;
use crate::error::{Error, ErrorCode, Result};
use crate::locks::lock;
use crate::log::SnapshotMeta;
use crate::snapshots::file::{chunk_offset, read_chunk, Body, ChunkWriter, CHUNK};
use crate::snapshots::{remove, SnapshotDir, PART};
use crate::wire::SnapshotHeader;

/// Takes a peer's snapshot in order. Dropped before [`finish`](Self::finish), it leaves a `.part` file, from which the next
/// [`SnapshotDir::receive`] of the same snapshot goes on. Once another has been begun, or its file has been pruned, this one writes
/// nothing any more.
#[derive(Debug)]
pub struct IncomingSnapshot {
    dir: SnapshotDir,
    meta: SnapshotMeta,
    path: PathBuf,
    /// Of this transfer.
    number: u64,
    /// `None`: there is nothing to receive.
    chunks: Option<ChunkWriter>,
}

impl IncomingSnapshot {
    pub(super) fn begin(dir: SnapshotDir, header: &SnapshotHeader) -> Result<Self> {
        let meta = SnapshotMeta {
            index: header.index,
            term: header.term,
            cluster: header.cluster.clone().unwrap_or_default(),
            size: if header.has_file { header.size } else { 0 },
            sessions: if header.has_file { header.sessions } else { 0 },
            crc: if header.has_file { header.crc } else { 0 },
            has_file: header.has_file,
            outcomes: header.outcomes,
        };
        let path = dir.part_path(header);
        if meta.sessions > meta.size {
            let text = format_args!(
                "the peer announced {} bytes of sessions in {} of its snapshot: refused",
                meta.sessions, meta.size
            );
            return Err(Error::storage(ErrorCode::SnapshotFailed, &path, text).with_index(meta.index));
        }
        let transfer = Arc::clone(&dir.transfer);
        let mut newest = lock(&transfer);
        *newest = newest.saturating_add(1);
        for (other, _) in dir.files(PART)? {
            if other != path {
                remove(&other)?;
            }
        }
        // It may have arrived whole before a crash, with no log to name it yet.
        let chunks = match header.has_file && dir.verify(&meta).is_err() {
            true => Some(open_part(&path, &meta).inspect_err(|_| drop(remove(&path)))?),
            false => None,
        };
        Ok(IncomingSnapshot { dir, meta, path, number: *newest, chunks })
    }

    /// Bytes of the state that have arrived: where the sender goes on.
    pub fn offset(&self) -> u64 {
        self.chunks.as_ref().map_or(self.meta.size, ChunkWriter::size)
    }

    /// Takes state bytes that begin at `offset`. What has arrived already is skipped; a gap, or more than was announced, is
    /// `SnapshotFailed` and changes nothing, as is anything once another transfer has been begun or the file pruned.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let transfer = Arc::clone(&self.dir.transfer);
        let newest = lock(&transfer);
        self.check_turn(*newest)?;
        let arrived = self.offset();
        let end = offset.checked_add(bytes.len() as u64);
        if offset > arrived || end.is_none_or(|end| end > self.meta.size) {
            let what = format!("the peer sent bytes {offset} and on, {} of them", bytes.len());
            return Err(self.refused(format_args!("{what}; {arrived} of {} have arrived", self.meta.size)));
        }
        let known = usize::try_from(arrived.saturating_sub(offset)).unwrap_or(usize::MAX);
        let written = match (&mut self.chunks, bytes.get(known..)) {
            (Some(chunks), Some(fresh)) => chunks.write(fresh),
            _ => Ok(()),
        };
        written.inspect_err(|_| drop(self.throw_away()))
    }

    /// Makes the snapshot durable under its final name (S6), when all of it has arrived as announced; otherwise
    /// `SnapshotFailed`. What arrived damaged is thrown away.
    pub fn finish(mut self) -> Result<SnapshotMeta> {
        self.complete()?;
        Ok(self.meta.clone())
    }

    fn complete(&mut self) -> Result<()> {
        let transfer = Arc::clone(&self.dir.transfer);
        let newest = lock(&transfer);
        self.check_turn(*newest)?;
        if let Some(chunks) = &mut self.chunks {
            let (size, crc) = (chunks.size(), chunks.crc());
            if size != self.meta.size {
                return Err(self.refused(format_args!("{size} of {} bytes have arrived", self.meta.size)));
            }
            if crc != self.meta.crc {
                self.throw_away()?;
                return Err(
                    self.refused(format_args!("what has arrived does not match its checksum; it is sent again"))
                );
            }
            chunks.finish(self.meta.sessions).inspect_err(|_| drop(self.throw_away()))?;
            let path = self.dir.path(&self.meta);
            std::fs::rename(&self.path, &path).map_err(|e| Error::io(&path, "put the snapshot in place", &e))?;
        }
        // S6: also if it was there whole. Its name may be that of an attempt that got no further than here.
        if self.meta.has_file {
            self.dir.sync()?;
        }
        Ok(())
    }

    /// After a write or sync that failed the page cache may say what the disk does not know (S5): the next attempt begins from nothing.
    fn throw_away(&mut self) -> Result<()> {
        if let Some(chunks) = &mut self.chunks {
            chunks.forget();
        }
        remove(&self.path)
    }

    /// The file is another's once another transfer has been begun, and gone once it has been pruned.
    fn check_turn(&self, newest: u64) -> Result<()> {
        match newest == self.number {
            true => Ok(()),
            false => Err(self.refused(format_args!(
                "another transfer was begun after this one and goes on instead of it, or one as new is here already"
            ))),
        }
    }

    fn refused(&self, what: std::fmt::Arguments<'_>) -> Error {
        Error::storage(ErrorCode::SnapshotFailed, &self.path, what).with_index(self.meta.index)
    }
}

impl Drop for IncomingSnapshot {
    fn drop(&mut self) {
        // Not waited for: this may be the thread that drives the node, and whoever holds it may be inside the disk. What is held back is
        // then asked for again.
        let transfer = Arc::clone(&self.dir.transfer);
        let newest = transfer.try_lock();
        let ours = newest.as_ref().is_ok_and(|newest| **newest == self.number);
        if let Some(chunks) = self.chunks.as_mut().filter(|_| !ours) {
            chunks.forget();
        }
        // What it holds is in the file before another looks how much has arrived.
        self.chunks = None;
    }
}

/// Goes on with what is there, up to its first chunk that is cut off or damaged; or begins anew.
fn open_part(path: &Path, meta: &SnapshotMeta) -> Result<ChunkWriter> {
    let body = Body { index: meta.index, term: meta.term, cluster: Some(meta.cluster.clone()) };
    let failed = |e: &std::io::Error| Error::io(path, "receive the snapshot", e);
    if let Ok(file) = OpenOptions::new().read(true).write(true).open(path) {
        if let Some((size, crc, header_len)) = arrived(&file, path, &body, meta.size) {
            let end = chunk_offset(header_len, size / CHUNK as u64).unwrap_or(header_len);
            file.set_len(end).map_err(|e| failed(&e))?;
            return ChunkWriter::at(file, path.to_path_buf(), end, size, crc);
        }
    }
    remove(path)?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(|e| failed(&e))?;
    ChunkWriter::begin(file, path.to_path_buf(), &body)
}

/// State bytes in the whole chunks of a part file, their CRC, and the header's length; `None`: nothing usable.
fn arrived(file: &File, path: &Path, body: &Body, size: u64) -> Option<(u64, u32, u64)> {
    let (found, header_len) = Body::read(file, path).ok()?;
    if found != *body {
        return None;
    }
    let (mut arrived, mut crc) = (0u64, 0);
    let mut chunk = Vec::new();
    // The last, shorter chunk is asked for again: only whole ones are ever written before the end.
    while size.saturating_sub(arrived) >= CHUNK as u64 {
        let number = arrived / CHUNK as u64;
        if read_chunk(file, path, header_len, number, CHUNK, &mut chunk).is_err() {
            break;
        }
        crc = checksum::crc32c_append(crc, &chunk);
        arrived = arrived.saturating_add(CHUNK as u64);
    }
    Some((arrived, crc, header_len))
}
