//! Makes frames: records one behind the other, then the header in front of them, sealed by its CRC.

use crate::checksum;
use crate::direct::PAGE;
use crate::log::record::{Fault, Meta};

use super::frame::{
    crc_of, padding, FrameHeader, CRC_AT, FIRST_OF_SEGMENT, FORMAT, HEADER, KIND_CLEAR, KIND_CUT, KIND_ENTRIES, MAGIC,
    RECORD_HEADER,
};
use super::pieces::Pieces;

/// Builds one frame after the other in the same memory.
#[derive(Debug, Default)]
pub(crate) struct FrameBuilder {
    bytes: Pieces,
    /// Index and place within the frame of each entry, in the order in which they were put in.
    entries: Vec<(u64, u32)>,
}

impl FrameBuilder {
    /// Memory kept from one frame to the next.
    const KEPT: usize = 4 << 20;

    pub(crate) fn begin(&mut self) {
        self.forget();
        self.bytes.own().resize(HEADER, 0);
    }

    /// The frame is not needed any more: neither are the data it keeps alive.
    pub(crate) fn forget(&mut self) {
        self.entries.clear();
        self.entries.shrink_to(Self::KEPT / 16);
        self.bytes.clear(Self::KEPT);
    }

    fn open(&mut self, kind: u8) -> Record {
        let record = Record { header: self.bytes.own().len(), start: self.bytes.len() };
        self.bytes.own().extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
        record
    }

    /// `None`: the record is too large for the format.
    fn close(&mut self, record: Record) -> Option<()> {
        let len = self.bytes.len().checked_sub(record.start)?.checked_sub(RECORD_HEADER)?;
        let own = self.bytes.own();
        let field = own.get_mut(record.header.checked_add(4)?..record.header.checked_add(RECORD_HEADER)?)?;
        field.copy_from_slice(&u32::try_from(len).ok()?.to_le_bytes());
        own.resize(own.len().checked_add(padding(len))?, 0);
        Some(())
    }

    fn too_large<T>() -> Result<T, Fault> {
        Err(Fault::Damaged("it is larger than 4 GiB".into()))
    }

    pub(crate) fn small(&mut self, meta: Meta, value: &[u8]) -> Result<(), Fault> {
        let record = self.open(meta as u8);
        self.bytes.own().extend_from_slice(value);
        self.close(record).map_or_else(Self::too_large, Ok)
    }

    pub(crate) fn clear(&mut self, next: u64) -> Result<(), Fault> {
        self.index(KIND_CLEAR, next)
    }

    pub(crate) fn cut(&mut self, from: u64) -> Result<(), Fault> {
        self.index(KIND_CUT, from)
    }

    fn index(&mut self, kind: u8, index: u64) -> Result<(), Fault> {
        let record = self.open(kind);
        self.bytes.own().extend_from_slice(&index.to_le_bytes());
        self.close(record).map_or_else(Self::too_large, Ok)
    }

    /// One record of entries; `append` puts the value of each behind the bytes it is given. `too_large` makes the error of
    /// what the format cannot hold.
    pub(crate) fn entries<E>(
        &mut self,
        indexes: impl IntoIterator<Item = u64>,
        too_large: impl Fn(Fault) -> E,
        mut append: impl FnMut(u64, &mut Pieces) -> Result<(), E>,
    ) -> Result<(), E> {
        let record = self.open(KIND_ENTRIES);
        for index in indexes {
            let Ok(at) = u32::try_from(self.bytes.len()) else { return Self::too_large().map_err(too_large) };
            append(index, &mut self.bytes)?;
            self.entries.push((index, at));
        }
        self.close(record).map_or_else(|| Self::too_large().map_err(too_large), Ok)
    }

    /// Bytes of the frame as it is.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The finished frame for this place in its file, its CRC, and its entries.
    pub(crate) fn seal(&mut self, header: &FrameHeader, at: u64) -> Result<Sealed<'_>, Fault> {
        let Ok(body) = u32::try_from(self.bytes.len().saturating_sub(HEADER)) else { return Self::too_large() };
        let mut head = Vec::with_capacity(HEADER);
        let FrameHeader { generation, first_of_segment, number, directory, before, .. } = *header;
        for word in [MAGIC, generation, 0, body] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        for word in [number, directory] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        head.extend_from_slice(&before.to_le_bytes());
        head.extend_from_slice(&[FORMAT, if first_of_segment { FIRST_OF_SEGMENT } else { 0 }, 0, 0]);
        for word in [header.term, header.vote, header.commit, header.first, header.prev_term, header.last] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        for word in [header.oldest, header.previous] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        if let Some(place) = self.bytes.own().get_mut(..HEADER).filter(|_| head.len() == HEADER) {
            place.copy_from_slice(&head);
        }
        let parts = self.bytes.parts();
        let crc = match parts.split_first() {
            Some((first, rest)) => rest.iter().fold(crc_of(first), |crc, part| checksum::crc32c_append(crc, part)),
            None => 0,
        };
        drop(parts);
        let len = self.bytes.len();
        let own = self.bytes.own();
        if let Some(place) = own.get_mut(CRC_AT..CRC_AT + 4) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        own.resize(own.len().saturating_add(rest_of_page(at, len)), 0);
        Ok(Sealed { len: len as u64, parts: self.bytes.parts(), crc, entries: &self.entries })
    }
}

/// A record that is being written.
#[derive(Clone, Copy)]
struct Record {
    /// Where its header lies among the frame's own bytes.
    header: usize,
    /// Where it begins in the frame.
    start: usize,
}

/// Zeros that belong behind a frame of `len` bytes at `at`: to the end of a page that it is the first to reach, so that no part of that
/// page has to be read from the disk before it is written. A frame within the page of the one before it needs none.
fn rest_of_page(at: u64, len: usize) -> usize {
    let into = usize::try_from(at % PAGE as u64).unwrap_or_default();
    let end = into.saturating_add(len);
    if into > 0 && end <= PAGE {
        return 0;
    }
    end.next_multiple_of(PAGE).saturating_sub(end)
}

/// A frame ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Sealed<'b> {
    /// Bytes of the frame.
    pub len: u64,
    /// The frame and the zeros behind it.
    pub parts: Vec<&'b [u8]>,
    pub crc: u32,
    /// Index and place within the frame of each entry.
    pub entries: &'b [(u64, u32)],
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Sealed<'_> {
        /// The frame in one piece.
        pub(crate) fn bytes(&self) -> Vec<u8> {
            let mut bytes = self.parts.concat();
            bytes.truncate(usize::try_from(self.len).unwrap());
            bytes
        }
    }

    #[test]
    fn a_frame_that_reaches_a_new_page_fills_it() {
        for (at, len, zeros) in [
            (0, 96, 4000),        // the first of a segment
            (96, 304, 0),         // within the page of the one before
            (4000, 96, 0),        // to its last byte
            (4000, 97, 4095),     // one byte into the next
            (8192, 4096, 0),      // a page of its own
            (8192, 4097, 4095),   // and one byte more
            (100, 1 << 20, 3996), // many pages
        ] {
            assert_eq!(rest_of_page(at, len), zeros, "{len} bytes at {at}");
            assert!(zeros == 0 || (at + (len + zeros) as u64).is_multiple_of(PAGE as u64));
        }
    }
}
