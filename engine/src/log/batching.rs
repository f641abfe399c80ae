//! What every log's writer does around its own transaction: what promises nothing waits, the first failure is for good.
//!
//! Invariants: a write that waits is never lost but by a crash, and goes before what comes later; after the first failed
//! write nothing is written any more (S10), not even the mark of a clean stop.

use crate::error::{Error, Result};
use crate::log::draft::Draft;
use crate::log::{LogWrite, LogWriter};

/// Writes that promise nothing and wait for the next one, at most.
const WAITING: usize = 256;

/// Why a batch was not written.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Found before anything was written: the same batch may be tried again.
    Refused(Error),
    Broken(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Broken(error)
    }
}

/// Where batches become durable.
pub(crate) trait Store: Send {
    /// The log as it is on the disk.
    fn state(&self) -> &Draft;

    /// All of `writes` in one transaction with one sync, or nothing of them.
    fn commit(&mut self, writes: &[LogWrite]) -> Result<(), Failure>;

    /// Leaves the mark of a clean stop.
    fn mark_clean(&mut self) -> Result<()>;
}

pub(crate) struct Batching<S: Store> {
    store: S,
    /// Writes that promise nothing, for the next transaction.
    waiting: Vec<LogWrite>,
    /// The first failure; for good.
    poison: Option<Error>,
}

impl<S: Store> Batching<S> {
    pub(crate) fn new(store: S) -> Self {
        Batching { store, waiting: Vec::new(), poison: None }
    }

    fn write_all(&mut self, writes: &[LogWrite]) -> Result<(), Failure> {
        let may_wait = writes.iter().all(|w| self.store.state().may_wait(w));
        if may_wait && self.waiting.len().saturating_add(writes.len()) <= WAITING {
            self.waiting.extend_from_slice(writes);
            return Ok(());
        }
        if self.waiting.is_empty() {
            return self.store.commit(writes);
        }
        let all: Vec<LogWrite> = self.waiting.iter().chain(writes).cloned().collect();
        self.store.commit(&all)?;
        self.waiting.clear();
        Ok(())
    }
}

impl<S: Store> LogWriter for Batching<S> {
    fn write(&mut self, writes: &[LogWrite]) -> Result<()> {
        if let Some(error) = &self.poison {
            return Err(error.clone());
        }
        if writes.is_empty() {
            return Ok(());
        }
        self.write_all(writes).map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Broken(error) => {
                self.poison = Some(error.clone());
                error
            }
        })
    }
}

impl<S: Store> Drop for Batching<S> {
    fn drop(&mut self) {
        // A log that has failed is not clean, whatever is on the disk.
        if self.poison.is_none() && (self.waiting.is_empty() || self.store.commit(&self.waiting).is_ok()) {
            let _ = self.store.mark_clean();
        }
    }
}
