//! Which part of the log exists, for a reader beside the writer: the bounds lie outside of the tree that it reads.

use std::sync::Mutex;

use crate::locks::lock;
use crate::log::record::Bounds;

/// What the two newest commits hold, by LMDB's numbers: a reader sees one of them.
pub(crate) struct RecentBounds(Mutex<[(u64, Bounds); 2]>);

impl RecentBounds {
    pub(crate) fn new(txn: u64, bounds: Bounds) -> Self {
        RecentBounds(Mutex::new([(txn, bounds); 2]))
    }

    /// To be said before the commit: whoever sees it must find its bounds.
    pub(crate) fn add(&self, txn: u64, bounds: Bounds) {
        let mut recent = lock(&self.0);
        let [_, newest] = *recent;
        *recent = [newest, (txn, bounds)];
    }

    /// `None`: that commit is an older one by now.
    pub(crate) fn of(&self, txn: u64) -> Option<Bounds> {
        lock(&self.0).iter().rev().find(|(number, _)| *number == txn).map(|(_, bounds)| *bounds)
    }
}
