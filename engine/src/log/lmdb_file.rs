//! The data file of LMDB, read with pread: never through a map, so that no byte on the disk can become a SIGBUS or an abort.
//!
//! Of what LMDB leaves free of a meta page, 320 bytes are ours (`lmdb_proof`); nothing else is ever written here.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::log::files::corrupt;

use super::lmdb_format::{page_flags, u16_at, u32_at, word_at, PageKind, PAGE_HEADER, WORD};
use super::lmdb_meta::{Root, Roots, META_SIZE, TXN_AT};
use super::lmdb_page::{Links, Page};

/// What a disk writes whole. Of a meta page it holds all that LMDB writes, and behind it, from `PROOF_AT` on, our own part.
const SECTOR: usize = 512;
const PROOF_AT: usize = 192;
const _: () = assert!(PAGE_HEADER + META_SIZE <= PROOF_AT, "the proof would lie in what LMDB writes");

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
        Links::of(bytes, branch).ok_or_else(|| self.fault(number, "its nodes do not fit together"))
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
        Page::parse(kind, bytes).ok_or_else(|| self.fault(number, "its nodes do not fit together"))
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
