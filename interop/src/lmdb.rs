//! Reads the named databases of an LMDB file with pread: no map, no lock file, no LMDB.
//!
//! LMDB believes every byte of its file; one that was cut off or damaged would end in a SIGBUS or an abort of the host
//! process. Here it ends in `CorruptData`. Nothing is checked that is not read.
//! Layout as in LMDB 0.9/1.0 data version 1: native byte order, page numbers and sizes as wide as a pointer.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use raftify_engine::{Error, ErrorCode, Result};

/// Width of page numbers, sizes and transaction numbers.
const WORD: usize = size_of::<usize>();
const PAGE_HEADER: usize = WORD + 8;
const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
const TREE_SIZE: usize = 8 + 5 * WORD;
/// Behind magic, version, address and map size.
const FREE_TREE: usize = PAGE_HEADER + 8 + 2 * WORD;
const MAIN_TREE: usize = FREE_TREE + TREE_SIZE;
const LAST_TRANSACTION: usize = MAIN_TREE + TREE_SIZE + WORD;
const META_END: usize = LAST_TRANSACTION + WORD;
const NODE_HEADER: usize = 8;
/// Kinds of pages.
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
const META: u16 = 8;
/// Kinds of values: on pages of their own; a named database.
const BIG_DATA: u16 = 1;
const SUB_TREE: u16 = 2;
/// LMDB's own limit on the depth of a tree.
const MAX_DEPTH: u16 = 32;
/// Tries to read a part while a node writes; each needs to be faster than two of its commits.
const TRIES: usize = 1000;

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_ne_bytes)
}

fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(|word| usize::from_ne_bytes(word) as u64)
}

/// One B+tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    depth: u16,
    /// 0 for a plain tree; upstream's are.
    flags: u16,
    /// `None`: empty.
    root: Option<u64>,
}

impl Tree {
    fn parse(bytes: &[u8], at: usize) -> Option<Self> {
        let root = word_at(bytes, at.checked_add(8 + 4 * WORD)?)?;
        Some(Tree {
            depth: u16_at(bytes, at.checked_add(6)?)?,
            flags: u16_at(bytes, at.checked_add(4)?)?,
            root: (root != usize::MAX as u64).then_some(root),
        })
    }
}

/// A data file as one commit left it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    number: u64,
    main: Tree,
}

/// Called for each key of a tree, in order.
pub(crate) type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>> + 'v;

pub(crate) struct DataFile {
    file: File,
    path: PathBuf,
    page_size: usize,
}

impl DataFile {
    /// Opens a data file for reading. `CorruptData` when it is none.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "open the file", &e))?;
        let mut data = DataFile { file, path: path.to_path_buf(), page_size: META_END };
        let size = data.meta_page(0)?.1;
        if !(512..=32768).contains(&size) || !size.is_power_of_two() {
            return Err(data.fault(0, format_args!("a page size of {size}")));
        }
        data.page_size = size as usize;
        Ok(data)
    }

    pub(crate) fn fault(&self, page: u64, what: impl std::fmt::Display) -> Error {
        Error::storage(
            ErrorCode::CorruptData,
            &self.path,
            format_args!("page {page}: {what}; read the directory of another member, or a backup of this one"),
        )
    }

    /// Runs `read` until the pages it saw cannot have changed meanwhile: those that commit T leaves are used again by
    /// commit T + 3 at the earliest.
    pub(crate) fn consistent<T>(&self, mut read: impl FnMut(&Commit) -> Result<T>) -> Result<T> {
        let mut last = None;
        for _ in 0..TRIES {
            let (before, outcome) = match self.newest() {
                Ok(commit) => (commit.number, read(&commit)),
                Err(error) => {
                    last = Some(error);
                    continue;
                }
            };
            match (outcome, self.newest()) {
                (Ok(part), Ok(now)) if now.number <= before.saturating_add(1) => return Ok(part),
                // Nobody writes: damage is damage. Otherwise it may be a page that was just used again.
                (Err(error), Ok(now)) if now.number == before => return Err(error),
                (Err(error), _) | (_, Err(error)) => last = Some(error),
                _ => {}
            }
        }
        Err(last.unwrap_or_else(|| {
            Error::storage(
                ErrorCode::DirectoryInUse,
                &self.path,
                "the node writes too fast to be read beside it; stop it and try again",
            )
        }))
    }

    /// The database of this name, if it is one of plain keys and values; otherwise `None`.
    pub(crate) fn named(&self, commit: &Commit, name: &str) -> Result<Option<Tree>> {
        let mut found = None;
        self.walk(&commit.main, name.as_bytes(), &mut |key, value| {
            if let (true, Value::Tree(tree)) = (key == name.as_bytes(), value) {
                found = (tree.flags == 0).then_some(tree);
            }
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// Shows the records of a tree from key `from` on, until `visit` breaks off.
    pub(crate) fn scan(&self, tree: &Tree, from: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        self.walk(tree, from, &mut |key, value| match value {
            Value::Bytes(bytes) => visit(key, bytes),
            Value::Far { page, size } => visit(key, &self.far_value(page, size)?),
            Value::Tree(_) => Err(self.fault(0, "a database within a database")),
        })
    }

    fn pages(&self) -> Result<u64> {
        let length = self.file.metadata().map_err(|e| Error::io(&self.path, "look at the file", &e))?.len();
        Ok(length / self.page_size as u64)
    }

    fn read_at(&self, page: u64, length: usize) -> Result<Vec<u8>> {
        let Some(offset) = page.checked_mul(self.page_size as u64) else {
            return Err(self.fault(page, "there is no page of this number"));
        };
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.fault(page, "lies beyond the end of the file"),
            _ => Error::io(&self.path, "read the file", &e),
        })?;
        Ok(bytes)
    }

    /// A meta page: the commit it describes, and the size of pages.
    fn meta_page(&self, slot: u64) -> Result<(Commit, u32)> {
        let bytes = self.read_at(slot, META_END)?;
        let parse = || {
            let right = u16_at(&bytes, WORD + 2)? & META != 0
                && u32_at(&bytes, PAGE_HEADER)? == MAGIC
                && u32_at(&bytes, PAGE_HEADER + 4)? == DATA_VERSION;
            let commit = Commit { number: word_at(&bytes, LAST_TRANSACTION)?, main: Tree::parse(&bytes, MAIN_TREE)? };
            (right && commit.main.flags == 0).then_some((commit, u32_at(&bytes, FREE_TREE)?))
        };
        parse().ok_or_else(|| self.fault(slot, "not a meta page of LMDB"))
    }

    /// Chosen as LMDB chooses: both meta pages must be whole, the one of the later commit counts.
    fn newest(&self) -> Result<Commit> {
        let (even, odd) = (self.meta_page(0)?.0, self.meta_page(1)?.0);
        Ok(if even.number < odd.number { odd } else { even })
    }

    fn walk(&self, tree: &Tree, from: &[u8], visit: &mut RawVisit<'_>) -> Result<()> {
        let Some(root) = tree.root else { return Ok(()) };
        if tree.depth == 0 || tree.depth > MAX_DEPTH {
            return Err(self.fault(root, "the depth of its tree is damaged"));
        }
        // A tree whose branches lead to the same page again and again must not keep us for ever.
        let mut budget = self.pages()?;
        self.descend(root, tree.depth, from, visit, &mut budget).map(drop)
    }

    fn descend(
        &self,
        number: u64,
        levels: u16,
        from: &[u8],
        visit: &mut RawVisit<'_>,
        budget: &mut u64,
    ) -> Result<ControlFlow<()>> {
        *budget = budget.checked_sub(1).ok_or_else(|| self.fault(number, "is met again in its own tree"))?;
        let page = self.read_at(number, self.page_size)?;
        let kind = if levels > 1 { BRANCH } else { LEAF };
        if u16_at(&page, WORD + 2) != Some(kind) || word_at(&page, 0) != Some(number) {
            return Err(self.fault(number, "is not the page that its tree needs here"));
        }
        let nodes = nodes(&page).ok_or_else(|| self.fault(number, "its nodes do not fit into it"))?;
        let damaged = || self.fault(number, "a node does not fit into it");
        for (n, node) in nodes.iter().enumerate() {
            if levels > 1 {
                // The first key of a branch page stands for "all that is lower".
                let next = nodes.get(n.saturating_add(1)).map(|next| next.key);
                if next.is_some_and(|next| next <= from) {
                    continue;
                }
                let top = if WORD == 8 { u64::from(node.flags) << 32 } else { 0 };
                let child = u64::from(node.size) | top;
                if self.descend(child, levels.saturating_sub(1), from, visit, budget)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            } else if node.key >= from {
                let value = match node.flags {
                    BIG_DATA => Value::Far { page: word_at(node.rest, 0).ok_or_else(damaged)?, size: node.size },
                    SUB_TREE => Value::Tree(Tree::parse(node.rest, 0).ok_or_else(damaged)?),
                    0 => Value::Bytes(node.rest.get(..node.size as usize).ok_or_else(damaged)?),
                    _ => return Err(self.fault(number, "a value of a kind that upstream does not write")),
                };
                if visit(node.key, value)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A value on pages of its own.
    fn far_value(&self, number: u64, size: u32) -> Result<Vec<u8>> {
        let head = self.read_at(number, PAGE_HEADER)?;
        let room = u64::from(u32_at(&head, WORD + 4).unwrap_or_default()).saturating_mul(self.page_size as u64);
        let length = (PAGE_HEADER as u64).saturating_add(size.into());
        let right = u16_at(&head, WORD + 2) == Some(OVERFLOW) && word_at(&head, 0) == Some(number);
        // Looked at before memory is taken for it.
        let held = number.checked_mul(self.page_size as u64).and_then(|start| start.checked_add(length));
        let whole = held.is_some_and(|end| end <= self.pages().unwrap_or(0).saturating_mul(self.page_size as u64));
        if !right || room < length || !whole {
            return Err(self.fault(number, "not the pages of the value that they are said to hold"));
        }
        let mut bytes = self.read_at(number, PAGE_HEADER.saturating_add(size as usize))?;
        bytes.drain(..PAGE_HEADER);
        Ok(bytes)
    }
}

type RawVisit<'v> = dyn FnMut(&[u8], Value<'_>) -> Result<ControlFlow<()>> + 'v;

enum Value<'p> {
    Bytes(&'p [u8]),
    Far { page: u64, size: u32 },
    Tree(Tree),
}

struct Node<'p> {
    key: &'p [u8],
    flags: u16,
    /// Of the value on a leaf; the low half of the child's page number on a branch.
    size: u32,
    /// From the value on to the end of the page.
    rest: &'p [u8],
}

/// `None` when one of them reaches beyond the page.
fn nodes(page: &[u8]) -> Option<Vec<Node<'_>>> {
    let lower = usize::from(u16_at(page, WORD + 4)?);
    let count = lower.checked_sub(PAGE_HEADER)? / 2;
    let node = |n: usize| {
        let at = usize::from(u16_at(page, PAGE_HEADER + 2 * n)?);
        let body = page.get(at.checked_add(NODE_HEADER)?..)?;
        let (key, rest) = body.split_at_checked(u16_at(page, at + 6)?.into())?;
        Some(Node { key, flags: u16_at(page, at + 4)?, size: u32_at(page, at)?, rest })
    };
    (0..count).map(node).collect()
}
