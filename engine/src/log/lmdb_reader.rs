//! The reading half of the LMDB log: one short read transaction a call, so that no old page is kept from being reused.

use std::ops::Bound;
use std::sync::Arc;

use crate::entry::{Entries, Entry};
use crate::error::Result;
use crate::log::files::corrupt;
use crate::log::lmdb::Shared;
use crate::log::lmdb_env::translate;
use crate::log::load::record_error;
use crate::log::record;
use crate::log::LogReader;

pub(crate) struct LmdbReader {
    shared: Arc<Shared>,
}

impl LmdbReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        LmdbReader { shared }
    }
}

impl LogReader for LmdbReader {
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>> {
        let path = self.shared.data_path.as_path();
        let failed = |e| translate(path, "read the log", e);
        let records = &self.shared.db.records;
        let (txn, bounds) = loop {
            let txn = self.shared.db.env.read_txn().map_err(failed)?;
            // `None` after two commits between these lines: there is a newer state to read.
            if let Some(bounds) = self.shared.bounds.of(txn.id() as u64) {
                break (txn, bounds);
            }
        };
        let high = high.min(bounds.last.saturating_add(1));
        if low < bounds.first || low >= high {
            return Ok(Vec::new());
        }
        let mut entries = Entries::default();
        let (from, to) = (record::entry_key(low), record::entry_key(high));
        let range: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(&from), Bound::Excluded(&to));
        let mut expected = low;
        for item in records.range(&txn, &range).map_err(failed)? {
            let (key, value) = item.map_err(failed)?;
            if key != record::entry_key(expected) {
                break;
            }
            record::gather_entry(expected, value, &mut entries).map_err(|f| record_error(path, Some(expected), f))?;
            expected = expected.saturating_add(1);
            if entries.bytes() as u64 > max_bytes {
                return Ok(entries.whole());
            }
        }
        if expected < high {
            return Err(corrupt(path, format_args!("entry {expected} is missing")).with_index(expected));
        }
        Ok(entries.whole())
    }
}
