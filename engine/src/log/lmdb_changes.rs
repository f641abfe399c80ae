//! The pages that one commit wrote, and one checksum over what is in them.
//!
//! LMDB copies a page before it changes it, under another number: what two neighbouring states both lead to is the same in both. So the
//! pages that a commit wrote are those that its trees lead to and the trees before it do not; to find them, only the pages that
//! differ are read, some from the root down to a leaf. Pages of the state before are still what they were: LMDB uses the pages of commit
//! T again in T + 3 at the earliest.
//!
//! Where a commit drops a great part of the tree, all pages below may count as written: more than was written, but the same
//! pages whenever it is asked.

use std::collections::{HashMap, HashSet};

use crate::checksum;
use crate::error::Result;
use crate::log::lmdb_file::PageFile;
use crate::log::lmdb_format::{MAX_DEPTH, PAGE_HEADER};
use crate::log::lmdb_meta::{Root, Tree};
use crate::log::lmdb_page::Links;
use crate::log::record::{self, ENTRY_HEADER};

/// Pages of a height that are gone, beside as many as came: beyond that they are not looked at.
const GONE: usize = 1024;
/// Pages whose links are kept for the next commit, at most.
const KNOWN: usize = 256;
/// Bytes of a far value read at once.
const PIECE: usize = 64 << 10;

/// Finds what one commit after the other has written.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// What the pages lead to that the last commit wrote: most of them are gone with the next one, and need not be read for it.
    known: HashMap<u64, Links>,
    page: Vec<u8>,
}

impl Changes {
    /// The checksum of a commit that has just been written: of the pages that `new` leads to and `old`, the state before it, does not.
    pub(crate) fn checksum(&mut self, pages: &PageFile, old: &Root, new: &Root) -> Result<u32> {
        self.walk(pages, old, new, new.last_page.saturating_add(1), false)
    }

    /// The same of one that was found; and whatever it wrote that the checksum does not cover must be whole, or it is `CorruptData`.
    pub(crate) fn check(pages: &PageFile, old: &Root, new: &Root) -> Result<u32> {
        Changes::default().walk(pages, old, new, pages.page_count()?, true)
    }

    fn walk(&mut self, pages: &PageFile, old: &Root, new: &Root, left: u64, payloads: bool) -> Result<u32> {
        self.page.resize(pages.page_size(), 0);
        let known = std::mem::take(&mut self.known);
        let mut walk = Walk { pages, crc: 0, left, payloads, known, found: HashMap::new(), page: &mut self.page };
        walk.tree(&old.main, &new.main, false)?;
        walk.tree(&old.free, &new.free, true)?;
        let (crc, found) = (walk.crc, walk.found);
        self.known = if found.len() <= KNOWN { found } else { HashMap::new() };
        Ok(crc)
    }
}

struct Walk<'a> {
    pages: &'a PageFile,
    crc: u32,
    /// Pages that may still be met: no more than the file has.
    left: u64,
    /// Payloads of entries are checked too.
    payloads: bool,
    known: HashMap<u64, Links>,
    found: HashMap<u64, Links>,
    page: &'a mut [u8],
}

impl Walk<'_> {
    /// From the roots down, height by height: leaves stand at 1 in both trees.
    fn tree(&mut self, old: &Tree, new: &Tree, numbers: bool) -> Result<()> {
        if old.depth.max(new.depth) > MAX_DEPTH {
            return Err(self.pages.fault(0, "the depth of a tree is damaged"));
        }
        let (mut gone, mut fresh) = (Links::default(), Links::default());
        for height in (1..=old.depth.max(new.depth)).rev() {
            let (mut before, mut after) = (std::mem::take(&mut gone).children, std::mem::take(&mut fresh).children);
            before.extend(old.root.filter(|_| height == old.depth));
            after.extend(new.root.filter(|_| height == new.depth));
            keep_differences(&mut before, &mut after);
            for number in after {
                self.meet(1, number)?;
                let links = self.read(number, height)?;
                self.crc = checksum::crc32c_append(self.crc, self.page);
                fresh.extend(&links);
                self.found.insert(number, links);
            }
            if height <= new.depth && fresh.children.is_empty() && fresh.far.is_empty() {
                return Ok(());
            }
            // Below a height without any pages of the new tree only the old one goes on, towards the new root.
            if before.len() <= fresh.children.len().max(GONE) {
                for number in before {
                    let links = match self.known.remove(&number) {
                        Some(links) => links,
                        None => self.read(number, height)?,
                    };
                    gone.extend(&links);
                }
            }
        }
        keep_differences(&mut gone.far, &mut fresh.far);
        fresh.far.into_iter().try_for_each(|first| self.far(first, numbers))
    }

    fn read(&mut self, number: u64, height: u16) -> Result<Links> {
        self.pages.read_at(self.page, number)?;
        let links = self.pages.links(number, self.page)?;
        if links.children.is_empty() != (height == 1) {
            return Err(self.pages.fault(number, "stands at the wrong depth of its tree"));
        }
        Ok(links)
    }

    /// An entry on pages of its own proves itself: its header, with the checksum of its payload, stands for it.
    fn far(&mut self, first: u64, numbers: bool) -> Result<()> {
        let mut head = [0; PAGE_HEADER + ENTRY_HEADER];
        self.pages.read_at(&mut head, first)?;
        let count = self.pages.far_length(first, &head)?;
        self.meet(count, first)?;
        let value = head.get(PAGE_HEADER..).unwrap_or_default();
        if numbers || !record::may_be_entry(value) {
            return self.pieces(first, count);
        }
        self.crc = checksum::crc32c_append(self.crc, &head);
        if self.payloads && !self.is_whole(first, count, value)? {
            return Err(self.pages.fault(first, "an entry is not what its header says"));
        }
        Ok(())
    }

    fn is_whole(&self, first: u64, count: u64, head: &[u8]) -> Result<bool> {
        let Some(index) = record::stored_index(head) else { return Ok(false) };
        let Ok(header) = record::decode_entry_header(index, head) else { return Ok(false) };
        let room = count.saturating_mul(self.page.len() as u64);
        if header.value_len().saturating_add(PAGE_HEADER as u64) > room {
            return Ok(false);
        }
        Ok(record::check_payload(&header, &self.pages.far_value(first, header.value_len())?).is_ok())
    }

    fn pieces(&mut self, first: u64, count: u64) -> Result<()> {
        let per_piece = (PIECE / self.page.len().max(1)).max(1) as u64;
        let mut piece = Vec::new();
        let mut done = 0;
        while done < count {
            let part = per_piece.min(count - done);
            piece.resize(part as usize * self.page.len(), 0);
            self.pages.read_at(&mut piece, first + done)?;
            self.crc = checksum::crc32c_append(self.crc, &piece);
            done += part;
        }
        Ok(())
    }

    fn meet(&mut self, count: u64, number: u64) -> Result<()> {
        self.left =
            self.left.checked_sub(count).ok_or_else(|| self.pages.fault(number, "the tree leads in circles"))?;
        Ok(())
    }
}

/// Of two lists of pages in the order of their tree, leaves what is in one of them only.
fn keep_differences(before: &mut Vec<u64>, after: &mut Vec<u64>) {
    let same = before.iter().zip(after.iter()).take_while(|(a, b)| a == b).count();
    before.drain(..same);
    after.drain(..same);
    let same = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
    before.truncate(before.len() - same);
    after.truncate(after.len() - same);
    if before.is_empty() || after.is_empty() {
        return;
    }
    let (old, new): (HashSet<u64>, HashSet<u64>) = (before.iter().copied().collect(), after.iter().copied().collect());
    before.retain(|page| !new.contains(page));
    after.retain(|page| !old.contains(page));
}
