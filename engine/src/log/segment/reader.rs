//! The reading half of the segment log: places from the index, bytes by pread, each entry checked by its own checksum.
//!
//! Invariants: all entries of one answer were in the log at the same time, when the first of them was looked up: a block that was read
//! since then holds all of them that lie in it. The segments they lie in are held while they are read, so what is read is what the index meant.

use std::sync::Arc;

use crate::entry::{Entries, Entry};
use crate::error::Result;
use crate::log::load::record_error;
use crate::log::record::{self, Fault, ENTRY_HEADER};
use crate::log::LogReader;

use super::index::Place;
use super::segment_file::SegmentFile;
use super::Shared;

/// Entries between which others may have the processor; their places are taken from the index at once.
const PART: usize = 512;
/// Bytes read at once, when the answer may be that long.
const SMALLEST_BLOCK: u64 = 4 << 10;
const LARGEST_BLOCK: u64 = 1 << 20;

pub(crate) struct SegmentReader {
    shared: Arc<Shared>,
}

impl SegmentReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        SegmentReader { shared }
    }
}

impl LogReader for SegmentReader {
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>> {
        let mut block = Block::new(max_bytes);
        let mut entries = Entries::default();
        let (mut next, mut high, mut cuts) = (low, high, None);
        while next < high {
            if next > low {
                std::thread::yield_now();
            }
            let part = self.shared.index.part(next, high, PART);
            if part.places.is_empty() || *cuts.get_or_insert(part.cuts) != part.cuts {
                break;
            }
            high = high.min(part.next);
            for (place, file) in part.places {
                let value = block.value(&file, place, next)?;
                let gathered = record::gather_entry(next, value, &mut entries);
                gathered.map_err(|fault| record_error(file.path(), Some(next), fault))?;
                next = next.saturating_add(1);
                if entries.bytes() as u64 > max_bytes {
                    return Ok(entries.whole());
                }
            }
        }
        Ok(entries.whole())
    }
}

/// A stretch of one segment in memory: entries that lie side by side are read together.
#[derive(Debug)]
pub(crate) struct Block {
    slot: u64,
    at: u64,
    bytes: Vec<u8>,
    size: u64,
}

impl Block {
    /// For answers of about `size` bytes.
    pub(crate) fn new(size: u64) -> Self {
        Block { slot: 0, at: 0, bytes: Vec::new(), size: size.clamp(SMALLEST_BLOCK, LARGEST_BLOCK) }
    }

    /// The whole value of entry `index`, whose header has been checked.
    pub(crate) fn value(&mut self, file: &SegmentFile, place: Place, index: u64) -> Result<&[u8]> {
        let at = u64::from(place.offset);
        let damage = |fault| record_error(file.path(), Some(index), fault);
        let header = self.bytes(file, at, ENTRY_HEADER as u64)?;
        let header = record::decode_entry_header(index, header).map_err(damage)?;
        let len = header.value_len();
        if at.saturating_add(len) > file.len() {
            return Err(damage(Fault::Damaged("it would reach beyond the end of its segment".into())));
        }
        self.bytes(file, at, len)
    }

    fn bytes(&mut self, file: &SegmentFile, at: u64, len: u64) -> Result<&[u8]> {
        let held = self.at..self.at.saturating_add(self.bytes.len() as u64);
        if self.slot != file.slot() || at < held.start || at.saturating_add(len) > held.end {
            let wanted = len.max(self.size.min(file.len().saturating_sub(at)));
            self.bytes.clear();
            self.bytes.resize(usize::try_from(wanted).unwrap_or(usize::MAX), 0);
            (self.slot, self.at) = (file.slot(), at);
            if let Err(error) = file.read(&mut self.bytes, at) {
                self.bytes.clear();
                return Err(error);
            }
        }
        let from = usize::try_from(at.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Ok(self.bytes.get(from..).and_then(|rest| rest.get(..len)).unwrap_or_default())
    }
}
