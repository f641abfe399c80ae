//! LMDB's file format, read with pread: never through a map, so that no byte on the disk can become a SIGBUS or an abort.
//!
//! Lives here: meta pages, single pages and their nodes, each checked by itself. The tree above them is `lmdb_pages`.
//! Of what LMDB leaves free of a meta page, 320 bytes are ours (`lmdb_proof`); nothing else is ever written here.
//! Layout as in LMDB 0.9/1.0 data version 1: native byte order, page numbers and sizes as wide as a pointer.

use std::cmp::Ordering;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::checksum;
use crate::error::{Error, Result};
use crate::log::files::corrupt;

/// Width of page numbers, sizes and transaction numbers in the file.
pub(crate) const WORD: usize = size_of::<usize>();
/// Bytes before the content of a page.
pub(crate) const PAGE_HEADER: usize = WORD + 8;

/// LMDB's own limit on the depth of a tree.
pub(crate) const MAX_DEPTH: u16 = 32;

const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
/// The only flag of the free tree: integer keys. The main tree has none.
const FREE_TREE_FLAGS: u16 = 0x08;
const TREE_SIZE: usize = 8 + 5 * WORD;
const META_SIZE: usize = 8 + 2 * WORD + 2 * TREE_SIZE + 2 * WORD;
const NODE_HEADER: usize = 8;
/// What a disk writes whole. Of a meta page it holds all that LMDB writes, and behind it, from `PROOF_AT` on, our own part.
const SECTOR: usize = 512;
const PROOF_AT: usize = 192;
const TXN_AT: usize = PAGE_HEADER + META_SIZE - WORD;
const _: () = assert!(PAGE_HEADER + META_SIZE <= PROOF_AT, "the proof would lie in what LMDB writes");
const BIG_DATA: u16 = 0x01;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(usize::from_ne_bytes(bytes.get(at..at.checked_add(WORD)?)?.try_into().ok()?) as u64)
}

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
    pad: u32,
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
    fn parse(bytes: &[u8]) -> Option<Self> {
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

fn page_flags(bytes: &[u8]) -> Option<u16> {
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

impl Links {
    pub(crate) fn extend(&mut self, more: &Links) {
        self.children.extend_from_slice(&more.children);
        self.far.extend_from_slice(&more.far);
    }
}

/// The two newest committed states: a database's two meta pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    pub newest: Root,
    pub older: Root,
}

/// What a tree page leads to.
#[derive(Debug, Default)]
pub(crate) struct Links {
    pub children: Vec<u64>,
    /// First pages of far values.
    pub far: Vec<u64>,
}

/// An open data file.
#[derive(Debug)]
pub(crate) struct PageFile {
    file: File,
    path: PathBuf,
    page_size: usize,
}

impl PageFile {
    /// Opens the file for reading and learns its page size from the first meta page.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, OpenOptions::new().read(true))
    }

    /// The same, and for writing what of the meta pages is ours. The caller holds the directory's lock.
    pub(crate) fn open_to_prove(path: &Path) -> Result<Self> {
        Self::open_as(path, OpenOptions::new().read(true).write(true))
    }

    fn open_as(path: &Path, how: &OpenOptions) -> Result<Self> {
        let file = match how.open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(corrupt(path, "the file is missing")),
            Err(e) => return Err(Error::io(path, "open the file", &e)),
        };
        let mut pages = PageFile { file, path: path.to_path_buf(), page_size: 0 };
        let size = pages.read_root(0)?.free.pad;
        if !(512..=32768).contains(&size) || !size.is_power_of_two() {
            return Err(pages.fault(0, format_args!("a page size of {size}")));
        }
        pages.page_size = size as usize;
        Ok(pages)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whole pages that the file holds.
    pub(crate) fn page_count(&self) -> Result<u64> {
        let length = self.file.metadata().map_err(|e| Error::io(&self.path, "look at the file", &e))?.len();
        Ok(length / self.page_size as u64)
    }

    /// Damage found on a page.
    pub(crate) fn fault(&self, page: u64, what: impl std::fmt::Display) -> Error {
        corrupt(&self.path, format_args!("page {page}: {what}"))
    }

    /// Fills the buffer from the beginning of a page on.
    pub(crate) fn read_at(&self, buffer: &mut [u8], page: u64) -> Result<()> {
        // The system refuses places that no file can have, instead of calling them the end.
        let possible =
            |offset: &u64| offset.checked_add(buffer.len() as u64).is_some_and(|end| i64::try_from(end).is_ok());
        let Some(offset) = page.checked_mul(self.page_size as u64).filter(possible) else {
            return Err(self.fault(page, "there is no page of this number"));
        };
        self.file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.fault(page, "lies beyond the end of the file"),
            _ => Error::io(&self.path, "read the file", &e),
        })
    }

    pub(crate) fn page_size(&self) -> usize {
        self.page_size
    }

    /// What lies in our part of the meta page that belongs to `txn`; empty if nothing does.
    pub(crate) fn proof(&self, txn: u64) -> Result<Vec<u8>> {
        let mut sector = [0; SECTOR];
        self.read_at(&mut sector, txn % 2)?;
        let ours = sector.get(PROOF_AT..).unwrap_or_default();
        let length = usize::from(u16_at(ours, 0).unwrap_or_default());
        Ok(ours.get(2..).and_then(|ours| ours.get(..length)).unwrap_or_default().to_vec())
    }

    /// Writes our part of the meta page that belongs to `txn`, unsynced.
    pub(crate) fn write_proof(&self, txn: u64, proof: &[u8]) -> Result<()> {
        let mut sector = [0; SECTOR];
        self.put_proof(&mut sector, proof)?;
        let place = (txn % 2) * self.page_size as u64 + PROOF_AT as u64;
        self.write_at(sector.get(PROOF_AT..).unwrap_or_default(), place)
    }

    /// Puts a commit that changes nothing in the place of the one after `root`: its meta page says the same, with `proof` beside
    /// it. One sector, so that it is there or not; unsynced.
    pub(crate) fn write_empty_commit(&self, root: &Root, proof: &[u8]) -> Result<()> {
        let txn = root.txn.saturating_add(1);
        let mut sector = [0; SECTOR];
        self.read_at(&mut sector, root.txn % 2)?;
        let mut put = |at: usize, number: u64| {
            if let (Ok(number), Some(to)) = (usize::try_from(number), sector.get_mut(at..at + WORD)) {
                to.copy_from_slice(&number.to_ne_bytes());
            }
        };
        put(0, txn % 2);
        put(TXN_AT, txn);
        self.put_proof(&mut sector, proof)?;
        self.write_at(&sector, (txn % 2) * self.page_size as u64)
    }

    fn put_proof(&self, sector: &mut [u8; SECTOR], proof: &[u8]) -> Result<()> {
        let (Some(ours), Ok(length)) = (sector.get_mut(PROOF_AT..), u16::try_from(proof.len())) else {
            return Err(self.fault(0, "a proof that is too long"));
        };
        ours.fill(0);
        for (to, from) in ours.iter_mut().zip(length.to_ne_bytes().iter().chain(proof)) {
            *to = *from;
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| Error::io(&self.path, "write the file", &e))
    }

    pub(crate) fn read_root(&self, slot: u64) -> Result<Root> {
        let mut bytes = [0; PAGE_HEADER + META_SIZE];
        self.read_at(&mut bytes, slot)?;
        Root::parse(&bytes).ok_or_else(|| self.fault(slot, "not a meta page of LMDB"))
    }

    /// The newest committed states, in the order in which LMDB has them. Both meta pages must be whole and belong together.
    pub(crate) fn roots(&self) -> Result<Roots> {
        let (even, odd) = (self.read_root(0)?, self.read_root(1)?);
        if even.free.pad != odd.free.pad || even.free.pad as usize != self.page_size {
            return Err(self.fault(1, "the meta pages name different page sizes"));
        }
        // Transaction N writes meta page N % 2, so they are neighbours; both 0 only in a file without any commit.
        let fresh = even.txn == 0 && odd.txn == 0;
        if !fresh && (even.txn % 2 != 0 || odd.txn % 2 != 1 || even.txn.abs_diff(odd.txn) != 1) {
            return Err(self.fault(0, format_args!("meta pages of transactions {} and {}", even.txn, odd.txn)));
        }
        Ok(if even.txn < odd.txn { Roots { newest: odd, older: even } } else { Roots { newest: even, older: odd } })
    }

    /// What the tree page in `bytes`, read from page `number`, leads to. Checked is only what keeps the reading within the page.
    pub(crate) fn links(&self, number: u64, bytes: &[u8]) -> Result<Links> {
        let branch = match page_flags(bytes) {
            Some(1) => true,
            Some(2) => false,
            flags => return Err(self.fault(number, format_args!("flags {flags:?} of no tree page"))),
        };
        links_of(bytes, branch).ok_or_else(|| self.fault(number, "its nodes do not fit together"))
    }

    /// Pages in the far value whose first page is in `bytes`, read from page `number`.
    pub(crate) fn far_length(&self, number: u64, bytes: &[u8]) -> Result<u64> {
        let pages = u64::from(u32_at(bytes, WORD + 4).unwrap_or_default());
        let right = page_flags(bytes) == Some(PageKind::Overflow as u16) && word_at(bytes, 0) == Some(number);
        if !right || pages == 0 {
            return Err(self.fault(number, "not the overflow page of a value"));
        }
        Ok(pages)
    }

    /// Reads a page that must be a branch or leaf, and checks its nodes.
    pub(crate) fn tree_page(&self, number: u64) -> Result<Page> {
        let mut bytes = vec![0; self.page_size];
        self.read_at(&mut bytes, number)?;
        let kind = match page_flags(&bytes) {
            Some(1) => PageKind::Branch,
            Some(2) => PageKind::Leaf,
            flags => return Err(self.fault(number, format_args!("flags {flags:?} of no tree page"))),
        };
        if word_at(&bytes, 0) != Some(number) {
            return Err(self.fault(number, "carries another page's number"));
        }
        let mut page = Page { kind, bytes, nodes: Vec::new() };
        page.parse_nodes().ok_or_else(|| self.fault(number, "its nodes do not fit together"))?;
        Ok(page)
    }

    /// Reads the first page of a far value and checks that its run is long enough; returns pages in the run and the page.
    pub(crate) fn overflow_page(&self, number: u64, size: u64) -> Result<(u64, Vec<u8>)> {
        let mut bytes = vec![0; self.page_size];
        self.read_at(&mut bytes, number)?;
        let pages = self.far_length(number, &bytes)?;
        if pages.saturating_mul(self.page_size as u64) < size.saturating_add(PAGE_HEADER as u64) {
            return Err(self.fault(number, "not the overflow page of its value"));
        }
        if number.checked_add(pages).is_none_or(|end| self.page_count().is_ok_and(|count| end > count)) {
            return Err(self.fault(number, "its value ends beyond the end of the file"));
        }
        Ok((pages, bytes))
    }

    /// The whole of a far value that `overflow_page` has accepted.
    pub(crate) fn far_value(&self, number: u64, size: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(size.saturating_add(PAGE_HEADER as u64)).unwrap_or(usize::MAX);
        if size > self.page_count()?.saturating_mul(self.page_size as u64) {
            return Err(self.fault(number, "a value larger than the file"));
        }
        let mut bytes = vec![0; length];
        self.read_at(&mut bytes, number)?;
        bytes.drain(..PAGE_HEADER);
        Ok(bytes)
    }
}

fn links_of(bytes: &[u8], branch: bool) -> Option<Links> {
    let count = usize::from(u16_at(bytes, WORD + 4)?).checked_sub(PAGE_HEADER)? / 2;
    let mut links = Links::default();
    for n in 0..count {
        let at = usize::from(u16_at(bytes, PAGE_HEADER + 2 * n)?);
        let (low, flags) = (u32_at(bytes, at)?, u16_at(bytes, at + 4)?);
        if branch {
            links.children.push(child_page(low, flags));
        } else if flags & BIG_DATA != 0 {
            let key = usize::from(u16_at(bytes, at + 6)?);
            links.far.push(word_at(bytes, at + NODE_HEADER + key)?);
        }
    }
    Some(links)
}

/// A branch node's child, in the place of size and flags.
fn child_page(low: u32, flags: u16) -> u64 {
    let top = if WORD == 8 { u64::from(flags) << 32 } else { 0 };
    u64::from(low) | top
}

/// Where a node's parts lie in its page.
#[derive(Clone, Debug)]
struct Node {
    key: Range<usize>,
    data: Range<usize>,
    big: bool,
    /// Size of the data on a leaf, page number of the child on a branch.
    number: u64,
}

/// What a leaf holds under a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'p> {
    Here(&'p [u8]),
    /// In an overflow run; `first` is as much of it as the first page holds.
    Far {
        page: u64,
        size: u64,
        first: &'p [u8],
    },
}

/// A branch or leaf page whose nodes lie within it and do not overlap.
#[derive(Debug)]
pub(crate) struct Page {
    pub kind: PageKind,
    bytes: Vec<u8>,
    nodes: Vec<Node>,
}

impl Page {
    fn parse_nodes(&mut self) -> Option<()> {
        let lower = usize::from(u16_at(&self.bytes, WORD + 4)?);
        let upper = usize::from(u16_at(&self.bytes, WORD + 6)?);
        if lower < PAGE_HEADER || lower % 2 != 0 || lower > upper || upper > self.bytes.len() {
            return None;
        }
        let count = (lower - PAGE_HEADER) / 2;
        let mut extents = Vec::with_capacity(count);
        self.nodes.reserve(count);
        for n in 0..count {
            let at = usize::from(u16_at(&self.bytes, PAGE_HEADER + 2 * n)?);
            let flags = u16_at(&self.bytes, at + 4)?;
            let size = u32_at(&self.bytes, at)?;
            let key = at + NODE_HEADER..at + NODE_HEADER + usize::from(u16_at(&self.bytes, at + 6)?);
            let (node, end) = match self.kind {
                PageKind::Branch => {
                    let end = key.end;
                    (Node { key, data: end..end, big: false, number: child_page(size, flags) }, end)
                }
                _ => {
                    // Sub-databases and duplicates are never ours.
                    if flags & !BIG_DATA != 0 {
                        return None;
                    }
                    let big = flags & BIG_DATA != 0;
                    let end = key.end.checked_add(if big { WORD } else { size as usize })?;
                    (Node { data: key.end..end, key, big, number: size.into() }, end)
                }
            };
            // Nodes take even sizes.
            extents.push((at, end.checked_add(end % 2)?));
            self.nodes.push(node);
        }
        // LMDB leaves no holes: the nodes tile the page from `upper` to its end.
        extents.sort_unstable();
        let end = extents.iter().try_fold(upper, |at, (start, end)| (at == *start).then_some(*end));
        (end == Some(self.bytes.len())).then_some(())
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn key(&self, n: usize) -> Option<&[u8]> {
        self.bytes.get(self.nodes.get(n)?.key.clone())
    }

    /// The page that branch node `n` leads to.
    pub(crate) fn child(&self, n: usize) -> Option<u64> {
        self.nodes.get(n).map(|node| node.number)
    }

    /// The bytes in leaf node `n`; or the page and size of its far value.
    pub(crate) fn value(&self, n: usize) -> Option<Result<&[u8], (u64, u64)>> {
        let node = self.nodes.get(n)?;
        let data = self.bytes.get(node.data.clone())?;
        Some(if node.big { Err((word_at(data, 0)?, node.number)) } else { Ok(data) })
    }
}

/// Order of keys in the main tree (bytes) or in the free tree (numbers).
pub(crate) fn compare_keys(numbers: bool, a: &[u8], b: &[u8]) -> Ordering {
    if numbers {
        word_at(a, 0).cmp(&word_at(b, 0))
    } else {
        a.cmp(b)
    }
}
