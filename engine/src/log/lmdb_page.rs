//! A page of one of LMDB's trees: its nodes, each checked by itself. The tree above them is `lmdb_pages`.

use std::ops::Range;

use crate::error::Result;

use super::lmdb_format::{u16_at, u32_at, word_at, PageKind, PAGE_HEADER, WORD};

const NODE_HEADER: usize = 8;
const BIG_DATA: u16 = 0x01;

/// What a tree page leads to.
#[derive(Debug, Default)]
pub(crate) struct Links {
    pub children: Vec<u64>,
    /// First pages of far values.
    pub far: Vec<u64>,
}

impl Links {
    pub(crate) fn extend(&mut self, more: &Links) {
        self.children.extend_from_slice(&more.children);
        self.far.extend_from_slice(&more.far);
    }

    /// Of the page in `bytes`. Checked is only what keeps the reading within it.
    pub(super) fn of(bytes: &[u8], branch: bool) -> Option<Links> {
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
    /// `None`: its nodes do not fit together.
    pub(super) fn parse(kind: PageKind, bytes: Vec<u8>) -> Option<Self> {
        let mut page = Page { kind, bytes, nodes: Vec::new() };
        page.parse_nodes()?;
        Some(page)
    }

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
