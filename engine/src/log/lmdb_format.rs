//! LMDB's file format: how wide things are, and single fields of a page.
//!
//! Layout as in LMDB 0.9/1.0 data version 1: native byte order, page numbers and sizes as wide as a pointer. Meta pages are `lmdb_meta`'s,
//! pages of a tree `lmdb_page`'s, the file is `lmdb_file`'s.

use std::cmp::Ordering;

/// Width of page numbers, sizes and transaction numbers in the file.
pub(crate) const WORD: usize = size_of::<usize>();
/// Bytes before the content of a page.
pub(crate) const PAGE_HEADER: usize = WORD + 8;

/// LMDB's own limit on the depth of a tree.
pub(crate) const MAX_DEPTH: u16 = 32;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(usize::from_ne_bytes(bytes.get(at..at.checked_add(WORD)?)?.try_into().ok()?) as u64)
}

pub(super) fn page_flags(bytes: &[u8]) -> Option<u16> {
    u16_at(bytes, WORD + 2)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum PageKind {
    Branch = 1,
    Leaf = 2,
    Overflow = 4,
    Meta = 8,
}

/// Order of keys in the main tree (bytes) or in the free tree (numbers).
pub(crate) fn compare_keys(numbers: bool, a: &[u8], b: &[u8]) -> Ordering {
    if numbers {
        word_at(a, 0).cmp(&word_at(b, 0))
    } else {
        a.cmp(b)
    }
}
