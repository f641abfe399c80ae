//! The walk over an LMDB file before LMDB may map it (S8).
//!
//! LMDB believes every byte of its meta and tree pages: a flipped bit there brings back an old tree, hands out a page
//! twice, ends in an abort or, with a truncated file, in a SIGBUS. So all pages that LMDB would follow are read with
//! pread first, both trees as a whole: each in bounds, of the right kind and depth, its keys in order and between the
//! separators above it, and no page used twice or used and free. A page that is neither used nor free is only lost space.

use std::collections::HashSet;
use std::ops::ControlFlow;

use crate::error::Result;
use crate::log::lmdb_file::PageFile;
use crate::log::lmdb_format::{compare_keys, word_at, PageKind, MAX_DEPTH, PAGE_HEADER, WORD};
use crate::log::lmdb_meta::{Root, Tree};
use crate::log::lmdb_page::Value;

/// Called for each key of the main tree, in order.
pub(crate) type Visit<'v> = dyn FnMut(&[u8], Value<'_>) -> Result<ControlFlow<()>> + 'v;

/// Checks the whole file at its newest commit, and shows every record of the main tree to `visit`.
pub(crate) fn check(pages: &PageFile, root: &Root, visit: &mut Visit<'_>) -> Result<()> {
    let file_pages = pages.page_count()?;
    let mut walker =
        Walker { pages, root, seen: Some(Seen::new(file_pages)), numbers: false, counts: Counts::default() };
    walker.tree(&root.main, None, &mut |key, value| {
        // A check that ends early would check nothing behind that point.
        let _ = visit(key, value)?;
        Ok(ControlFlow::Continue(()))
    })?;
    walker.numbers = true;
    let mut free = Vec::new();
    walker.tree(&root.free, None, &mut |key, value| {
        let whole = match value {
            Value::Here(bytes) => bytes.to_vec(),
            Value::Far { page, size, .. } => pages.far_value(page, size)?,
        };
        if word_at(key, 0).is_none_or(|txn| txn > root.txn) {
            return Err(pages.fault(0, "pages freed by a transaction that never was"));
        }
        free.push(whole);
        Ok(ControlFlow::Continue(()))
    })?;
    let Some(mut seen) = walker.seen else { return Ok(()) };
    for list in free {
        seen.mark_free(&list, root).ok_or_else(|| pages.fault(0, "the list of free pages is damaged"))?;
    }
    // The file may be shorter than the last page only where the pages beyond its end are free.
    if root.last_page.saturating_add(1).saturating_sub(file_pages) != seen.beyond.len() as u64 {
        return Err(pages.fault(root.last_page, "the file has been cut off"));
    }
    Ok(())
}

/// Shows the records of the main tree from key `from` on to `visit`, until it breaks off; checks what it meets.
pub(crate) fn scan(pages: &PageFile, root: &Root, from: &[u8], visit: &mut Visit<'_>) -> Result<()> {
    let mut walker = Walker { pages, root, seen: None, numbers: false, counts: Counts::default() };
    walker.tree(&root.main, Some(from), visit)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    branch: u64,
    leaf: u64,
    overflow: u64,
    entries: u64,
}

/// Pages met so far.
struct Seen {
    bits: Vec<u64>,
    file_pages: u64,
    /// Free pages behind the end of the file.
    beyond: HashSet<u64>,
}

impl Seen {
    fn new(file_pages: u64) -> Self {
        Seen { bits: vec![0; (file_pages / 64) as usize + 1], file_pages, beyond: HashSet::new() }
    }

    /// `None` when one of the pages is a meta page, lies beyond the file, or was met before.
    fn mark(&mut self, first: u64, count: u64, last_page: u64) -> Option<()> {
        let end = first.checked_add(count)?;
        if first < 2 || end > self.file_pages || end > last_page.checked_add(1)? {
            return None;
        }
        for page in first..end {
            let word = self.bits.get_mut((page / 64) as usize)?;
            let bit = 1 << (page % 64);
            if *word & bit != 0 {
                return None;
            }
            *word |= bit;
        }
        Some(())
    }

    /// One list of the free tree: a count, then page numbers that fall.
    fn mark_free(&mut self, list: &[u8], root: &Root) -> Option<()> {
        let count = usize::try_from(word_at(list, 0)?).ok()?;
        let mut above = root.last_page.checked_add(1)?;
        for n in 1..=count {
            let page = word_at(list, n.checked_mul(WORD)?)?;
            if page >= above || page < 2 {
                return None;
            }
            above = page;
            if page < self.file_pages {
                self.mark(page, 1, root.last_page)?;
            } else if !self.beyond.insert(page) {
                return None;
            }
        }
        Some(())
    }
}

/// Bounds that the tree above sets to the keys of a page.
#[derive(Clone, Copy)]
struct Between<'k> {
    low: Option<&'k [u8]>,
    high: Option<&'k [u8]>,
}

struct Walker<'a> {
    pages: &'a PageFile,
    root: &'a Root,
    seen: Option<Seen>,
    /// Keys are numbers: the free tree.
    numbers: bool,
    counts: Counts,
}

impl Walker<'_> {
    fn tree(&mut self, tree: &Tree, from: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        self.counts = Counts::default();
        match tree.root {
            Some(page) if tree.depth <= MAX_DEPTH => {
                let _ = self.descend(tree, page, 1, Between { low: None, high: None }, from, visit)?;
            }
            None if tree.depth == 0 => {}
            _ => return Err(self.pages.fault(0, "the depth of a tree is damaged")),
        }
        let said = Counts {
            branch: tree.branch_pages,
            leaf: tree.leaf_pages,
            overflow: tree.overflow_pages,
            entries: tree.entries,
        };
        if self.seen.is_some() && self.counts != said {
            return Err(self.pages.fault(0, "a tree does not hold what its meta page says"));
        }
        Ok(())
    }

    fn mark(&mut self, page: u64, count: u64) -> Result<()> {
        match self.seen.as_mut().map(|seen| seen.mark(page, count, self.root.last_page)) {
            Some(None) => Err(self.pages.fault(page, "used twice, or beyond the end")),
            _ => Ok(()),
        }
    }

    fn descend(
        &mut self,
        tree: &Tree,
        number: u64,
        level: u16,
        between: Between<'_>,
        from: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>> {
        self.mark(number, 1)?;
        let page = self.pages.tree_page(number)?;
        let damaged = |what: &str| self.pages.fault(number, what);
        if (page.kind == PageKind::Leaf) != (level == tree.depth) {
            return Err(damaged("stands at the wrong depth of its tree"));
        }
        // LMDB itself allows thin pages only in the free tree, where it may be caught while rebalancing.
        if page.len() < if page.kind == PageKind::Branch { 2 } else { 1 } && !self.numbers {
            return Err(damaged("holds too few nodes"));
        }
        let numbers = self.numbers;
        let less = |a: &[u8], b: &[u8]| compare_keys(numbers, a, b).is_lt();
        if page.kind == PageKind::Branch {
            self.counts.branch += 1;
            for n in 0..page.len() {
                let Some(child) = page.child(n) else { return Err(damaged("a child is missing")) };
                let low = if n == 0 { between.low } else { page.key(n) };
                let high = page.key(n + 1).or(between.high);
                if numbers && n > 0 && low.is_none_or(|key| key.len() != WORD) {
                    return Err(damaged("a key is not a number"));
                }
                if let (Some(high), Some(from)) = (high, from) {
                    if !less(from, high) {
                        continue;
                    }
                }
                if self.descend(tree, child, level + 1, Between { low, high }, from, visit)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            return Ok(ControlFlow::Continue(()));
        }
        self.counts.leaf += 1;
        let mut previous: Option<&[u8]> = None;
        for n in 0..page.len() {
            let Some(key) = page.key(n) else { return Err(damaged("a key is missing")) };
            let ascending = previous.is_none_or(|previous| less(previous, key));
            let inside =
                between.low.is_none_or(|low| !less(key, low)) && between.high.is_none_or(|high| less(key, high));
            if !ascending || !inside || (numbers && key.len() != WORD) {
                return Err(damaged("its keys are out of order"));
            }
            previous = Some(key);
            self.counts.entries += 1;
            let skip = from.is_some_and(|from| less(key, from));
            let flow = match page.value(n) {
                Some(_) if skip => continue,
                Some(Ok(bytes)) => visit(key, Value::Here(bytes))?,
                Some(Err((far, size))) => {
                    let (count, first) = self.pages.overflow_page(far, size)?;
                    self.mark(far, count)?;
                    self.counts.overflow += count;
                    let first = first.get(PAGE_HEADER..).unwrap_or_default();
                    let here = usize::try_from(size).unwrap_or(usize::MAX).min(first.len());
                    visit(key, Value::Far { page: far, size, first: first.get(..here).unwrap_or_default() })?
                }
                None => return Err(damaged("a value is missing")),
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
