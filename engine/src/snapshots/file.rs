//! The format of a snapshot file, and the writing of one.
//!
//! ```text
//! header  magic (8)  format u32  body length u32  body (index, term, cluster)  CRC32C u32 over all of it
//! chunk   length u32  CRC32C u32 over the chunk's number and bytes  bytes; all but the last are CHUNK bytes
//! footer  magic (8)  size of all chunks' bytes u64  how many of them are the table of client sessions u64  CRC32C of all u32
//!         CRC32C u32 over the footer before it
//! ```
//! The chunks hold the state, and behind it the table of client sessions. Format 1 knew no sessions: its footer lacks their number.
//! Numbers are little-endian. Chunks have a fixed size, so the place of any byte of the state is known.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use prost::Message;

use crate::checksum;
use crate::cluster::ClusterState;
use crate::error::{Error, Result};
use crate::log::files::{corrupt, too_new};
use crate::snapshots::appender::Appender;

/// State bytes in one chunk.
pub(super) const CHUNK: usize = 256 << 10;
/// Bytes before a chunk's own.
pub(super) const CHUNK_HEADER: usize = 8;
const FORMAT: u32 = 2;
const MAGIC: [u8; 8] = *b"RFYSNAP1";
const END_MAGIC: [u8; 8] = *b"RFYSEND2";
const END_MAGIC_1: [u8; 8] = *b"RFYSEND1";
const HEADER_START: usize = 16;
const FOOTER: usize = 32;
const FOOTER_1: usize = 24;
/// A header larger than this is damage: the cluster record of a hundred thousand members is smaller.
const MAX_BODY: usize = 64 << 20;
/// A table of client sessions larger than this is damage: what it may hold is bounded far below.
const MAX_SESSIONS: u64 = 256 << 20;

/// What the header says.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Body {
    #[prost(uint64, tag = "1")]
    pub index: u64,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(message, optional, tag = "3")]
    pub cluster: Option<ClusterState>,
}

impl Body {
    pub(super) fn encode_header(&self) -> Vec<u8> {
        let body = self.encode_to_vec();
        let mut bytes = Vec::with_capacity(HEADER_START + body.len() + 4);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&checksum::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads and checks a file's header; returns it and its length.
    pub(super) fn read(file: &File, path: &Path) -> Result<(Self, u64)> {
        let mut start = [0; HEADER_START];
        read_exact(file, path, &mut start, 0)?;
        let body_len = u32_at(&start, 12) as usize;
        if start.get(..8) != Some(&MAGIC) || body_len > MAX_BODY {
            return Err(corrupt(path, "the file does not begin as a snapshot"));
        }
        let mut bytes = vec![0; HEADER_START + body_len + 4];
        read_exact(file, path, &mut bytes, 0)?;
        let (covered, crc) = bytes.split_at_checked(HEADER_START + body_len).unwrap_or_default();
        if checksum::crc32c(covered) != u32_at(crc, 0) {
            return Err(corrupt(path, "the checksum of the snapshot's header does not match"));
        }
        let format = u32_at(&start, 8);
        if format > FORMAT {
            return Err(too_new(path, format));
        }
        let body = Body::decode(covered.get(HEADER_START..).unwrap_or_default());
        let body = body.map_err(|e| corrupt(path, format_args!("the snapshot's header does not decode: {e}")))?;
        Ok((body, bytes.len() as u64))
    }
}

/// Size of what the chunks hold, how much of it is the table of client sessions, and its CRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub size: u64,
    pub sessions: u64,
    pub crc: u32,
}

impl Footer {
    fn encode(self) -> Vec<u8> {
        let mut bytes = END_MAGIC.to_vec();
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.sessions.to_le_bytes());
        bytes.extend_from_slice(&self.crc.to_le_bytes());
        bytes.extend_from_slice(&checksum::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// `None`: it is no footer, or damaged.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (covered, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if checksum::crc32c(covered) != u32_at(crc, 0) {
            return None;
        }
        match (covered.split_at_checked(8)?, bytes.len()) {
            ((magic, body), FOOTER) if magic == END_MAGIC => {
                Some(Footer { size: u64_at(body, 0), sessions: u64_at(body, 8), crc: u32_at(body, 16) })
            }
            ((magic, body), FOOTER_1) if magic == END_MAGIC_1 => {
                Some(Footer { size: u64_at(body, 0), sessions: 0, crc: u32_at(body, 8) })
            }
            _ => None,
        }
    }

    /// Reads the last bytes of a file and checks that its length is right for them.
    pub(super) fn read(file: &File, path: &Path, header_len: u64) -> Result<Self> {
        let length = file.metadata().map_err(|e| Error::io(path, "look at the file", &e))?.len();
        for footer_len in [FOOTER, FOOTER_1] {
            let Some(at) = length.checked_sub(footer_len as u64) else { continue };
            let mut bytes = vec![0; footer_len];
            read_exact(file, path, &mut bytes, at)?;
            let Some(footer) = Footer::decode(&bytes) else { continue };
            let end = chunk_at(header_len, footer.size.div_ceil(CHUNK as u64), footer.size);
            if end == Some(at) && footer.sessions <= footer.size.min(MAX_SESSIONS) {
                return Ok(footer);
            }
        }
        Err(corrupt(path, "the snapshot is cut off, or its end is damaged"))
    }
}

/// Where chunk `number` begins when `state_before` bytes of state lie in the chunks before it.
fn chunk_at(header_len: u64, number: u64, state_before: u64) -> Option<u64> {
    header_len.checked_add(number.checked_mul(CHUNK_HEADER as u64)?)?.checked_add(state_before)
}

/// Where chunk `number` of a file begins.
pub(super) fn chunk_offset(header_len: u64, number: u64) -> Option<u64> {
    chunk_at(header_len, number, number.checked_mul(CHUNK as u64)?)
}

fn chunk_crc(number: u64, bytes: &[u8]) -> u32 {
    checksum::crc32c_append(checksum::crc32c(&number.to_le_bytes()), bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..).and_then(|tail| tail.get(..4)).and_then(|four| four.try_into().ok());
    four.map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at.saturating_add(4))) << 32
}

fn read_exact(file: &File, path: &Path, buffer: &mut [u8], at: u64) -> Result<()> {
    file.read_exact_at(buffer, at).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => corrupt(path, "the snapshot is cut off"),
        _ => Error::io(path, "read the snapshot", &e),
    })
}

/// Reads chunk `number`, which must hold `length` bytes, into `buffer`.
pub(super) fn read_chunk(
    file: &File,
    path: &Path,
    header_len: u64,
    number: u64,
    length: usize,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let damaged = || corrupt(path, format_args!("chunk {number} of the snapshot is damaged"));
    let at = chunk_offset(header_len, number).ok_or_else(damaged)?;
    buffer.clear();
    buffer.resize(CHUNK_HEADER + length, 0);
    read_exact(file, path, buffer, at)?;
    let (said, crc) = (u32_at(buffer, 0), u32_at(buffer, 4));
    buffer.drain(..CHUNK_HEADER);
    if said as usize != length || crc != chunk_crc(number, buffer) {
        buffer.clear();
        return Err(damaged());
    }
    Ok(())
}

/// Writes chunks one after the other; holds less than one in memory.
#[derive(Debug)]
pub(super) struct ChunkWriter {
    out: Appender,
    path: PathBuf,
    /// The chunk being filled, after room for its header.
    buffer: Vec<u8>,
    size: u64,
    crc: u32,
    failed: Option<Error>,
}

fn unwritten(path: &Path, error: &std::io::Error) -> Error {
    Error::io(path, "write the snapshot", error)
}

impl ChunkWriter {
    /// Begins a file that has just been created.
    pub(super) fn begin(file: File, path: PathBuf, body: &Body) -> Result<Self> {
        let mut writer = Self::at(file, path, 0, 0, 0)?;
        writer.put(&body.encode_header())?;
        Ok(writer)
    }

    /// Goes on at `end` of a file that can be read, behind `size` bytes of state, a multiple of `CHUNK`.
    pub(super) fn at(file: File, path: PathBuf, end: u64, size: u64, crc: u32) -> Result<Self> {
        let out = Appender::new(file, &path, end).map_err(|e| unwritten(&path, &e))?;
        Ok(ChunkWriter { out, path, buffer: vec![0; CHUNK_HEADER], size, crc, failed: None })
    }

    pub(super) fn through_cache(&mut self) {
        self.out.through_cache();
    }

    /// The file gets nothing more of what is held here.
    pub(super) fn forget(&mut self) {
        self.out.forget();
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// CRC of what was written.
    pub(super) fn crc(&self) -> u32 {
        self.crc
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        while !bytes.is_empty() {
            let room = (CHUNK_HEADER + CHUNK).saturating_sub(self.buffer.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.buffer.extend_from_slice(now);
            self.crc = checksum::crc32c_append(self.crc, now);
            self.size = self.size.saturating_add(now.len() as u64);
            bytes = later;
            if self.buffer.len() == CHUNK_HEADER + CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let length = self.buffer.len().saturating_sub(CHUNK_HEADER);
        if length == 0 {
            return Ok(());
        }
        let number = self.size.saturating_sub(1) / CHUNK as u64;
        let crc = chunk_crc(number, self.buffer.get(CHUNK_HEADER..).unwrap_or_default());
        let head = (length as u32).to_le_bytes().into_iter().chain(crc.to_le_bytes());
        self.buffer.iter_mut().zip(head).for_each(|(byte, new)| *byte = new);
        let mut chunk = std::mem::take(&mut self.buffer);
        let put = self.put(&chunk);
        chunk.truncate(CHUNK_HEADER);
        self.buffer = chunk;
        put
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.append(bytes).map_err(|e| {
            let error = unwritten(&self.path, &e);
            self.failed = Some(error.clone());
            error
        })
    }

    /// Ends the file, whose last `sessions` bytes are the table of client sessions, and makes it durable.
    pub(super) fn finish(&mut self, sessions: u64) -> Result<Footer> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.flush()?;
        let footer = Footer { size: self.size, sessions, crc: self.crc };
        self.put(&footer.encode())?;
        self.out.sync().map_err(|e| Error::io(&self.path, "sync the snapshot", &e))?;
        Ok(footer)
    }
}
