//! One sync a commit: how the newest commit of an LMDB log proves that all of it reached the disk.
//!
//! LMDB by itself syncs the pages of a commit, and then the meta page that makes it the newest: two flushes. Here both go to the page
//! cache, beside the meta page a checksum of the pages (`lmdb_changes`), and then one sync takes them all.
//!
//! ```text
//!  commit N:   pages ─► meta page N % 2 ─► proof beside it ─► fdatasync ─► believed
//!  at open:    newest meta page N ── its pages are what its proof says ──► N
//!                               ├── the other meta page is no longer ───► N: N + 1 was tried, so N was durable
//!                               │   the one that the proof names
//!                               └── else: nobody believed N ────────────► N - 1, and N becomes a commit that changes nothing
//! ```
//! Why that is enough: commit N is begun after the sync of N - 1, and leaves alone the pages that N - 1 and N - 2 lead to and the meta
//! page of N - 1 (LMDB uses pages of commit T again in T + 3 at the earliest). So whatever part of N a power loss leaves, N - 1
//! is there whole; N counts only if every page it wrote is what it wrote. Damage to the newest commit looks the same; the side file
//! tells it from a commit that nobody believed (S8).
//!
//! The proof also holds what changes with every commit (bounds and hard state), which as records of the tree would cost pages of
//! their own.

use raft::eraftpb::HardState;

use crate::error::{Error, ErrorCode, Result};
use crate::log::files;
use crate::log::lmdb_changes::Changes;
use crate::log::lmdb_file::PageFile;
use crate::log::lmdb_meta::{Root, Roots};
use crate::log::record::{self, Bounds, Fault, Proof};
use crate::log_syncs;

/// The newest commit of a file that may be believed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Newest {
    pub root: Root,
    pub bounds: Bounds,
    pub hard_state: HardState,
    /// A commit came after it and is not all there.
    pub unfinished: bool,
}

impl Newest {
    /// Reads and changes nothing.
    pub(crate) fn find(pages: &PageFile) -> Result<Self> {
        let Roots { newest, older } = pages.roots()?;
        let of = |root: Root, proof: Proof, unfinished| Newest {
            root,
            bounds: proof.bounds,
            hard_state: proof.hard_state,
            unfinished,
        };
        if let Some(proof) = proof_of(pages, &newest)? {
            if proof.before != older.crc {
                // A failed write of a meta page: LMDB puts old numbers back there, but not the trees.
                return Ok(of(newest, proof, false));
            }
            match Changes::check(pages, &older, &newest) {
                Ok(checksum) if checksum == proof.pages => return Ok(of(newest, proof, false)),
                // What the newest state leads to is not all there.
                Ok(_) => {}
                Err(error) if error.code == ErrorCode::CorruptData => {}
                Err(error) => return Err(error),
            }
        }
        match proof_of(pages, &older)? {
            Some(proof) => Ok(of(older, proof, true)),
            None if pages.proof(0)?.is_empty() && pages.proof(1)?.is_empty() => Err(Error::storage(
                ErrorCode::WrongDirectory,
                pages.path(),
                "an LMDB database, but not of this library; nothing was changed; name another directory",
            )),
            None => Err(pages.fault(older.txn % 2, "neither of the two last commits is proven")),
        }
    }

    /// Puts a commit that changes nothing in the place of the unfinished one, durably: LMDB follows the newest meta page.
    pub(crate) fn settle(&self, pages: &PageFile) -> Result<()> {
        if !self.unfinished {
            return Ok(());
        }
        let proof = Proof {
            txn: self.root.txn.saturating_add(1),
            pages: 0,
            before: self.root.crc,
            bounds: self.bounds,
            hard_state: self.hard_state.clone(),
        };
        pages.write_empty_commit(&self.root, &record::encode_proof(&proof))?;
        files::settle(pages.file(), pages.path(), false)
    }
}

/// `None`: there is none, or not for this commit, or it is damaged.
fn proof_of(pages: &PageFile, root: &Root) -> Result<Option<Proof>> {
    match record::decode_proof(&pages.proof(root.txn)?) {
        Ok(proof) => Ok(Some(proof).filter(|proof| proof.txn == root.txn)),
        Err(Fault::TooNew(format)) => Err(files::too_new(pages.path(), format.into())),
        Err(Fault::Damaged(_)) => Ok(None),
    }
}

/// Proves commit after commit.
pub(crate) struct Prover {
    pages: PageFile,
    /// The newest commit that is durable.
    last: Root,
    changes: Changes,
}

impl Prover {
    pub(crate) fn new(pages: PageFile, last: Root) -> Self {
        Prover { pages, last, changes: Changes::default() }
    }

    /// Makes the commit that LMDB has just written durable. After an error nobody knows whether it is.
    pub(crate) fn prove(&mut self, bounds: Bounds, hard_state: &HardState) -> Result<()> {
        let txn = self.last.txn.saturating_add(1);
        let root = self.pages.read_root(txn % 2)?;
        if root.txn != txn {
            return Err(self.pages.fault(txn % 2, format_args!("transaction {} where {txn} was written", root.txn)));
        }
        let pages = self.changes.checksum(&self.pages, &self.last, &root)?;
        let proof = Proof { txn, pages, before: self.last.crc, bounds, hard_state: hard_state.clone() };
        self.pages.write_proof(txn, &record::encode_proof(&proof))?;
        let synced = log_syncs::sync_data(self.pages.file());
        synced.map_err(|e| Error::io(self.pages.path(), "sync the log", &e))?;
        self.last = root;
        Ok(())
    }
}
