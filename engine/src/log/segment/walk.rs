//! Reads the frames of one segment, one behind the other or wherever one may lie, in large blocks.

use crate::error::{Error, Result};
use crate::log::files::{corrupt, too_new};
use crate::log::record::Fault;

use super::frame::{self, Claim, Frame, ALIGN, HEADER, MAGIC};
use super::segment_file::SegmentFile;

/// What is read at once. Checking it takes some .3 ms; between two of them others may have the processor.
const BLOCK: usize = 1 << 20;

pub(crate) struct Walk<'f> {
    file: &'f SegmentFile,
    block: Vec<u8>,
    /// Where the block begins.
    at: u64,
}

impl<'f> Walk<'f> {
    pub(crate) fn new(file: &'f SegmentFile) -> Self {
        Walk { file, block: Vec::new(), at: 0 }
    }

    /// Bytes at `offset`; `None`: the segment ends before.
    pub(crate) fn bytes(&mut self, offset: u64, len: u64) -> Result<Option<&[u8]>> {
        let Some(end) = offset.checked_add(len).filter(|end| *end <= self.file.len()) else { return Ok(None) };
        if offset < self.at || end > self.at.saturating_add(self.block.len() as u64) {
            std::thread::yield_now();
            let wanted = len.max(BLOCK as u64).min(self.file.len().saturating_sub(offset));
            self.at = offset;
            self.block.resize(usize::try_from(wanted).unwrap_or(usize::MAX), 0);
            if let Err(error) = self.file.read(&mut self.block, offset) {
                self.block.clear();
                return Err(error);
            }
        }
        let from = usize::try_from(offset.saturating_sub(self.at)).unwrap_or(usize::MAX);
        Ok(self.block.get(from..).and_then(|rest| rest.get(..usize::try_from(len).unwrap_or(usize::MAX))))
    }

    /// What begins at `offset`, unchecked.
    pub(crate) fn claim(&mut self, offset: u64) -> Result<Option<Claim>> {
        Ok(self.bytes(offset, HEADER as u64)?.and_then(Claim::of))
    }

    /// The frame at `offset`; the inner error says why there is none.
    pub(crate) fn frame(&mut self, offset: u64) -> Result<Result<Frame<'_>, String>> {
        let Some(claim) = self.claim(offset)? else { return Ok(Err("no frame begins there".into())) };
        let path = self.file.path();
        let Some(bytes) = self.bytes(offset, claim.len)? else {
            return Ok(Err("it would reach beyond the end of the segment".into()));
        };
        match frame::decode(bytes) {
            Ok(frame) => Ok(Ok(frame)),
            Err(Fault::Damaged(what)) => Ok(Err(what)),
            Err(Fault::TooNew(format)) => Err(too_new(path, format.into())),
        }
    }

    /// Looks from `from` on for a whole frame of `directory` with a number above `above`: where, and its number.
    pub(crate) fn successor(&mut self, from: u64, directory: u64, above: u64) -> Result<Option<(u64, u64)>> {
        let magic = MAGIC.to_le_bytes();
        let mut at = from.next_multiple_of(ALIGN as u64);
        while at < self.file.len() {
            let len = (BLOCK as u64).min(self.file.len().saturating_sub(at));
            let Some(block) = self.bytes(at, len)? else { break };
            let found: Vec<u64> = block
                .chunks(ALIGN)
                .zip((at..).step_by(ALIGN))
                .filter(|(bytes, _)| bytes.starts_with(&magic))
                .map(|(_, offset)| offset)
                .collect();
            for offset in found {
                let claim = self.claim(offset)?.filter(|c| c.directory == directory && c.number > above);
                if let (Some(claim), Ok(_)) = (claim, self.frame(offset)?) {
                    return Ok(Some((offset, claim.number)));
                }
            }
            at = at.saturating_add(len);
        }
        Ok(None)
    }
}

/// Damage found at `offset` of a segment.
pub(crate) fn fault(file: &SegmentFile, offset: u64, what: impl std::fmt::Display) -> Error {
    corrupt(file.path(), format_args!("offset {offset}: {what}"))
}
