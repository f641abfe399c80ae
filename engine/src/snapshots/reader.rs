//! A snapshot being read: for the state machine, or for a peer.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::checksum;
use crate::direct::read_no_further;
use crate::error::{Error, ErrorCode, Result};
use crate::log::files::corrupt;
use crate::log::SnapshotMeta;
use crate::snapshots::file::{read_chunk, Body, Footer, CHUNK};
use crate::snapshots::readers::{Readers, Reading};

/// Reads the state in a snapshot file; holds one chunk. Every byte handed out has been checked against its chunk's checksum.
#[derive(Debug)]
pub struct SnapshotReader {
    file: File,
    path: PathBuf,
    header_len: u64,
    footer: Footer,
    /// The chunk in memory.
    number: Option<u64>,
    chunk: Vec<u8>,
    position: u64,
    /// Last: the file is closed by then.
    _reading: Reading,
}

fn open_file(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => corrupt(path, "the snapshot is missing"),
        _ => Error::io(path, "open the snapshot", &e),
    })
}

/// What a file says about itself in its first and last bytes.
pub(super) fn read_meta(path: &Path) -> Result<SnapshotMeta> {
    let file = open_file(path)?;
    let (body, header_len) = Body::read(&file, path)?;
    let footer = Footer::read(&file, path, header_len)?;
    Ok(SnapshotMeta {
        index: body.index,
        term: body.term,
        cluster: body.cluster.unwrap_or_default(),
        size: footer.size,
        sessions: footer.sessions,
        crc: footer.crc,
        has_file: true,
        outcomes: None,
    })
}

impl SnapshotReader {
    pub(super) fn open(path: &Path, meta: &SnapshotMeta, readers: &Readers) -> Result<Self> {
        if !meta.has_file {
            return Err(Error::storage(
                ErrorCode::Internal,
                path,
                format_args!("the snapshot at {} has no file: there is no state in it", meta.index),
            ));
        }
        let reading = readers.begin(path);
        let file = open_file(path)?;
        read_no_further(&file);
        let (body, header_len) = Body::read(&file, path)?;
        let footer = Footer::read(&file, path, header_len)?;
        let same = (body.index, body.term) == (meta.index, meta.term)
            && (footer.size, footer.sessions, footer.crc) == (meta.size, meta.sessions, meta.crc)
            && body.cluster.as_ref() == Some(&meta.cluster);
        if !same {
            return Err(corrupt(path, "the file holds another snapshot than its name says"));
        }
        let path = path.to_path_buf();
        Ok(SnapshotReader {
            file,
            path,
            header_len,
            footer,
            number: None,
            chunk: Vec::new(),
            position: 0,
            _reading: reading,
        })
    }

    /// Bytes of the state.
    pub fn state_size(&self) -> u64 {
        self.footer.size.saturating_sub(self.footer.sessions)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The table of client sessions behind the state.
    pub fn sessions(&mut self) -> Result<Vec<u8>> {
        let mut table = vec![0; usize::try_from(self.footer.sessions).unwrap_or(0)];
        let mut filled = 0usize;
        while let Some(rest) = table.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let count = self.read_at(self.state_size().saturating_add(filled as u64), rest)?;
            if count == 0 {
                return Err(corrupt(&self.path, "the table of client sessions is cut off"));
            }
            filled = filled.saturating_add(count);
        }
        Ok(table)
    }

    /// Reads the state from `offset` on, at most up to the end of a chunk; 0 at or behind its end.
    pub fn read_state_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let rest = usize::try_from(self.state_size().saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        self.read_at(offset, buffer.get_mut(..rest).unwrap_or_default())
    }

    /// Reads on from where the last `read` ended; 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.read_at(self.position, buffer)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }

    /// Reads state and table from `offset` on, as a peer gets them, at most up to the end of a chunk; 0 at or behind the end.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if offset >= self.footer.size || buffer.is_empty() {
            return Ok(0);
        }
        let number = offset / CHUNK as u64;
        if self.number != Some(number) {
            self.number = None;
            let rest = self.footer.size.saturating_sub(number.saturating_mul(CHUNK as u64));
            let length = usize::try_from(rest).unwrap_or(usize::MAX).min(CHUNK);
            read_chunk(&self.file, &self.path, self.header_len, number, length, &mut self.chunk)?;
            self.number = Some(number);
        }
        let from = self.chunk.get((offset % CHUNK as u64) as usize..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(count)
    }

    /// Reads everything from the start and checks the checksum of the whole.
    pub fn verify(&mut self) -> Result<()> {
        let (mut offset, mut crc) = (0, 0);
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = self.read_at(offset, &mut buffer)?;
            if count == 0 {
                break;
            }
            crc = checksum::crc32c_append(crc, buffer.get(..count).unwrap_or_default());
            offset = offset.saturating_add(count as u64);
        }
        if (offset, crc) != (self.footer.size, self.footer.crc) {
            return Err(corrupt(&self.path, "the checksum of the whole snapshot does not match"));
        }
        Ok(())
    }
}
