//! A meta page of LMDB: one committed state of the whole database.

use crate::checksum;

use super::lmdb_format::{page_flags, u16_at, u32_at, word_at, PageKind, PAGE_HEADER, WORD};

const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
/// The only flag of the free tree: integer keys. The main tree has none.
const FREE_TREE_FLAGS: u16 = 0x08;
const TREE_SIZE: usize = 8 + 5 * WORD;
/// Bytes of it behind the header.
pub(super) const META_SIZE: usize = 8 + 2 * WORD + 2 * TREE_SIZE + 2 * WORD;
/// Where the number of its transaction lies.
pub(super) const TXN_AT: usize = PAGE_HEADER + META_SIZE - WORD;

/// One B+tree as a meta page describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    pub depth: u16,
    pub branch_pages: u64,
    pub leaf_pages: u64,
    pub overflow_pages: u64,
    pub entries: u64,
    /// `None`: empty.
    pub root: Option<u64>,
    flags: u16,
    /// Of the free tree: the size of a page.
    pub(super) pad: u32,
}

impl Tree {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |n: usize| word_at(bytes, 8 + n * WORD);
        let root = word(4)?;
        Some(Tree {
            pad: u32_at(bytes, 0)?,
            flags: u16_at(bytes, 4)?,
            depth: u16_at(bytes, 6)?,
            branch_pages: word(0)?,
            leaf_pages: word(1)?,
            overflow_pages: word(2)?,
            entries: word(3)?,
            root: (root != usize::MAX as u64).then_some(root),
        })
    }
}

/// One committed state of the whole database: what a meta page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub txn: u64,
    pub last_page: u64,
    pub free: Tree,
    pub main: Tree,
    /// CRC32C of all that the meta page says.
    pub crc: u32,
}

impl Root {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let free_at = PAGE_HEADER + 8 + 2 * WORD;
        let free = Tree::parse(bytes.get(free_at..)?)?;
        let main = Tree::parse(bytes.get(free_at + TREE_SIZE..)?)?;
        let tail = free_at + 2 * TREE_SIZE;
        let crc = checksum::crc32c(bytes.get(PAGE_HEADER..tail + 2 * WORD)?);
        let root = Root { last_page: word_at(bytes, tail)?, txn: word_at(bytes, tail + WORD)?, free, main, crc };
        let right = page_flags(bytes)? & PageKind::Meta as u16 != 0
            && u32_at(bytes, PAGE_HEADER)? == MAGIC
            && u32_at(bytes, PAGE_HEADER + 4)? == DATA_VERSION
            && root.free.flags == FREE_TREE_FLAGS
            && root.main.flags == 0;
        right.then_some(root)
    }
}

/// The two newest committed states: a database's two meta pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    pub newest: Root,
    pub older: Root,
}
