//! One frame: all of one batch of writes, and what proves it. Decoding and checking of bytes; how they are
//! made is `frame_builder`.
//!
//! ```text
//!  0 magic u32        4 generation u32   8 CRC32C u32     12 length of the body u32
//! 16 number u64      24 directory u64   32 CRC of the frame before u32
//! 36 format u8  37 flags u8  38 0 u16
//! 40 term u64        48 vote u64        56 commit u64
//! 64 first u64       72 prev_term u64   80 last u64
//! 88 oldest u32      92 previous u32
//! 96 body: records, each [kind u8, 0 0 0, length u32, bytes]; filled up with zeros to a multiple of 8
//! ```
//!
//! Invariants: the CRC covers header and body, all but itself, and stands at this place in every format there will ever
//! be, so it is checked before the format number is believed. The CRC of the frame before makes a chain of them (S9).
//! Every frame carries the whole hard state and the bounds of the log as they are after it.

use crate::checksum;
use crate::log::record::{u32_at, u64_at, Fault, Meta};

/// Highest format this version reads, and the one it writes.
pub(crate) const FORMAT: u8 = 1;
/// Every frame begins with it, at a multiple of `ALIGN`.
pub(crate) const MAGIC: u32 = 0x4D47_5352;
pub(crate) const ALIGN: usize = 8;
/// Bytes before the body.
pub(crate) const HEADER: usize = 96;
/// Bytes before the content of a record of the body.
pub(super) const RECORD_HEADER: usize = 8;

pub(super) const CRC_AT: usize = 8;
pub(super) const FIRST_OF_SEGMENT: u8 = 1;
pub(super) const KIND_CLEAR: u8 = 16;
pub(super) const KIND_CUT: u8 = 17;
pub(super) const KIND_ENTRIES: u8 = 18;

/// What a frame says beside its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// Of the segment; rises with each one that is begun, and is never used twice.
    pub generation: u32,
    /// It stands at the beginning of its segment, and its records hold all small records there are.
    pub first_of_segment: bool,
    /// Rises by one with each frame.
    pub number: u64,
    /// Low half of the directory's random number: a frame of another directory is none here.
    pub directory: u64,
    /// CRC of the frame before this one, which may stand in another segment.
    pub before: u32,
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
    /// First index that can be read, the term before it, and the last index; after this frame.
    pub first: u64,
    pub prev_term: u64,
    pub last: u64,
    /// The oldest segment that the log needs after this frame.
    pub oldest: u32,
    /// The segment before this one; 0: none.
    pub previous: u32,
}

/// What the beginning of a frame claims before anything of it has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub generation: u32,
    pub number: u64,
    pub directory: u64,
    /// Bytes of the whole frame.
    pub len: u64,
}

impl Claim {
    /// `None`: no frame begins here.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        if u32_at(bytes, 0)? != MAGIC {
            return None;
        }
        Some(Claim {
            generation: u32_at(bytes, 4)?,
            number: u64_at(bytes, 16)?,
            directory: u64_at(bytes, 24)?,
            len: u64::from(u32_at(bytes, 12)?).saturating_add(HEADER as u64),
        })
    }
}

/// A frame that has proved itself; its place in the chain has not been looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'b> {
    pub header: FrameHeader,
    pub crc: u32,
    pub body: &'b [u8],
}

pub(super) fn crc_of(frame: &[u8]) -> u32 {
    let (head, tail) = frame.split_at(frame.len().min(CRC_AT));
    checksum::crc32c_append(checksum::crc32c(head), tail.get(4..).unwrap_or_default())
}

/// Checks the bytes of one whole frame.
pub(crate) fn decode(bytes: &[u8]) -> Result<Frame<'_>, Fault> {
    let damaged = |what: &str| Err(Fault::Damaged(what.into()));
    let (Some(claim), Some((head, body))) = (Claim::of(bytes), bytes.split_at_checked(HEADER)) else {
        return damaged("no frame begins there");
    };
    let crc = crc_of(bytes);
    if claim.len != bytes.len() as u64 || u32_at(head, CRC_AT) != Some(crc) {
        return damaged("the checksum of the frame does not match");
    }
    match head.get(36) {
        Some(&FORMAT) => {}
        Some(&newer) if newer > FORMAT => return Err(Fault::TooNew(newer)),
        _ => return damaged("the frame has no valid format number"),
    }
    let long = |at| u64_at(head, at).unwrap_or_default();
    let short = |at| u32_at(head, at).unwrap_or_default();
    let header = FrameHeader {
        generation: claim.generation,
        first_of_segment: head.get(37).is_some_and(|flags| flags & FIRST_OF_SEGMENT != 0),
        number: claim.number,
        directory: claim.directory,
        before: short(32),
        term: long(40),
        vote: long(48),
        commit: long(56),
        first: long(64),
        prev_term: long(72),
        last: long(80),
        oldest: short(88),
        previous: short(92),
    };
    let whole = header.first >= 1 && header.last.checked_add(1).is_some_and(|next| header.first <= next);
    if !whole || header.oldest > header.generation || header.previous >= header.generation {
        return damaged("the numbers of the frame contradict each other");
    }
    Ok(Frame { header, crc, body })
}

/// One record of a frame's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record<'b> {
    /// A small record, sealed as `crate::log::record` does it.
    Small(Meta, &'b [u8]),
    /// All entries go; the next one has this index.
    Clear(u64),
    /// Entries from this index on go.
    Cut(u64),
    /// Entries one behind the other, and where in the body they begin.
    Entries(&'b [u8], usize),
}

/// The records of a body that has been checked. Ends after the first fault.
pub(crate) struct Records<'b> {
    rest: &'b [u8],
    /// Bytes of the body before `rest`.
    at: usize,
}

pub(crate) fn records(body: &[u8]) -> Records<'_> {
    Records { rest: body, at: 0 }
}

impl<'b> Records<'b> {
    fn take(&mut self) -> Option<Record<'b>> {
        let (head, rest) = self.rest.split_at_checked(RECORD_HEADER)?;
        let (content, rest) = rest.split_at_checked(u32_at(head, 4)? as usize)?;
        let begin = self.at.checked_add(RECORD_HEADER)?;
        self.at = begin.checked_add(content.len())?.checked_add(padding(content.len()))?;
        self.rest = rest.get(padding(content.len())..)?;
        let index = || u64_at(content, 0).filter(|_| content.len() == 8);
        match *head.first()? {
            KIND_CLEAR => index().map(Record::Clear),
            KIND_CUT => index().map(Record::Cut),
            KIND_ENTRIES => Some(Record::Entries(content, begin)),
            kind => Meta::ALL.into_iter().find(|m| *m as u8 == kind).map(|meta| Record::Small(meta, content)),
        }
    }
}

impl<'b> Iterator for Records<'b> {
    type Item = Result<Record<'b>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.take().ok_or_else(|| Fault::Damaged("the records of a frame do not fit together".into()));
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

/// Zeros behind a record's content.
pub(super) fn padding(len: usize) -> usize {
    len.wrapping_neg() % ALIGN
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame_builder::FrameBuilder;
    use super::*;
    use crate::entry::{Entries, Entry};
    use crate::log::record;

    fn header() -> FrameHeader {
        FrameHeader {
            generation: 7,
            first_of_segment: true,
            number: u64::MAX - 1,
            directory: 3,
            before: 4,
            term: 5,
            vote: 6,
            commit: 12,
            first: 8,
            prev_term: 4,
            last: 13,
            oldest: 2,
            previous: 6,
        }
    }

    fn sample(data: &[u8]) -> FrameBuilder {
        let mut frame = FrameBuilder::default();
        frame.begin();
        frame.small(Meta::Cluster, b"abc").unwrap();
        frame.cut(12).unwrap();
        frame
            .entries(
                [12, 13],
                |fault| fault,
                |index, out| out.entry(&Entry { index, term: 5, data: data.to_vec().into(), ..Entry::default() }),
            )
            .unwrap();
        frame
    }

    #[test]
    fn a_frame_comes_back_as_it_was() {
        for data in [&b"hello"[..], &[7; 20_000]] {
            let mut frame = sample(data);
            let sealed = frame.seal(&header(), 0).unwrap();
            let bytes = sealed.bytes();
            assert_eq!(bytes.len() % ALIGN, 0);
            let back = decode(&bytes).unwrap();
            assert_eq!((back.header, back.crc), (header(), sealed.crc));
            let found: Vec<_> = records(back.body).map(Result::unwrap).collect();
            assert_eq!(found[..2], [Record::Small(Meta::Cluster, b"abc"), Record::Cut(12)]);
            for (index, at) in sealed.entries {
                let size = record::ENTRY_HEADER + data.len();
                let value = &bytes[*at as usize..*at as usize + size];
                let mut entries = Entries::default();
                record::gather_entry(*index, value, &mut entries).unwrap();
                assert_eq!(entries.whole()[0].data.as_ref(), data);
            }
            let (magic, generation) = (Claim::of(&bytes).unwrap(), header().generation);
            assert_eq!((magic.generation, magic.len), (generation, bytes.len() as u64));
        }
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut frame = sample(b"x");
        let mut bytes = frame.seal(&header(), 0).unwrap().bytes();
        bytes[36] = FORMAT + 1;
        assert!(matches!(decode(&bytes), Err(Fault::Damaged(_))));
        let crc = crc_of(&bytes);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes).unwrap_err(), Fault::TooNew(FORMAT + 1));
    }

    #[test]
    fn numbers_that_contradict_each_other_are_damage() {
        let good = header();
        for bad in [
            FrameHeader { first: 0, ..good },
            FrameHeader { first: 15, ..good },
            FrameHeader { last: u64::MAX, ..good },
            FrameHeader { oldest: 8, ..good },
            FrameHeader { previous: 7, ..good },
        ] {
            assert!(matches!(decode(&sample(b"x").seal(&bad, 0).unwrap().bytes()), Err(Fault::Damaged(_))), "{bad:?}");
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut frame = sample(b"data of an entry");
        let bytes = frame.seal(&header(), 0).unwrap().bytes();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&damaged), Err(Fault::Damaged(_))), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(bytes: Vec<u8>) {
            let _ = (decode(&bytes), Claim::of(&bytes));
            let _ = records(&bytes).count();
        }
    }
}
