//! Entries that have left memory, freed at an even pace.
//!
//! Freeing those of a snapshot's whole span in one go took 20 ms and more, a sixteenth of it in each turn still 2 ms.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entry::Entry;

/// Freed each time, at least: some 50 µs.
const LEAST: usize = 512;

#[derive(Default)]
pub(super) struct Sweep {
    /// The oldest first.
    chunks: VecDeque<Arc<Vec<Entry>>>,
    /// Entries in them.
    entries: usize,
    /// Entries that have come into memory since something was last freed.
    came: usize,
}

impl Sweep {
    pub fn give(&mut self, chunk: Arc<Vec<Entry>>) {
        self.entries = self.entries.saturating_add(chunk.len());
        self.chunks.push_back(chunk);
    }

    pub fn came(&mut self, entries: usize) {
        self.came = self.came.saturating_add(entries);
    }

    /// Frees a few entries, and two for each one that has come since the last time: it keeps up with whatever comes, and no turn waits
    /// long for it. Chunks are freed whole.
    pub fn some(&mut self) {
        let came = std::mem::take(&mut self.came);
        let kept = self.entries.saturating_sub(came.saturating_mul(2).max(LEAST));
        while self.entries > kept {
            let Some(chunk) = self.chunks.pop_front() else { return };
            self.entries = self.entries.saturating_sub(chunk.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_left_memory_is_freed_little_by_little_and_does_not_pile_up() {
        let mut sweep = Sweep::default();
        (0..90).for_each(|_| sweep.give(Arc::new(vec![Entry::default(); 100])));
        for (came, left) in [(0, 8400), (100, 7800), (1000, 5800), (0, 5200), (10_000, 0), (0, 0)] {
            sweep.came(came);
            sweep.some();
            assert_eq!((sweep.entries, sweep.chunks.len()), (left, left / 100), "{came} came");
        }
    }
}
