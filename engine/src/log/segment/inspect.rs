//! A segment log read beside its writer: no lock, nothing written.
//!
//! How it stays consistent: the whole chain is walked, and every frame proves itself and its place in it. A segment that
//! was recycled meanwhile breaks the chain, and all is read again. An entry is believed only while the segment it was
//! found in still begins with the same frame. The chain must reach what was known to be there before the walk began (S9).

use std::path::{Path, PathBuf};

use crate::entry::{Entries, Entry};
use crate::error::Result;
use crate::log::files::NumberFile;
use crate::log::inspect::{Small, View};
use crate::log::load::record_error;
use crate::log::record;

use super::open::{read, Found};
use super::reader::Block;
use super::walk::Walk;

/// Tries to walk the chain before damage is believed.
const TRIES: usize = 100;

pub(crate) struct SegmentView {
    log_dir: PathBuf,
    found: Found,
}

impl SegmentView {
    pub(crate) fn open(log_dir: &Path) -> Result<Self> {
        let mut found = look(log_dir);
        for _ in 1..TRIES {
            if found.is_ok() {
                break;
            }
            found = look(log_dir);
        }
        Ok(SegmentView { log_dir: log_dir.to_path_buf(), found: found? })
    }

    /// Entries as they were found; `None` when their segment is another one by now.
    fn try_entries(&self, low: u64, high: u64) -> Result<Option<Vec<Entry>>> {
        let mut entries = Entries::default();
        let mut block = Block::new(u64::MAX);
        for (place, index) in self.found.places.from(low).zip(low..high) {
            let links = &self.found.chain.links;
            let Some(link) = links.iter().find(|link| link.first.generation == place.segment) else { break };
            let value = block.value(&link.file, place, index);
            let gathered = value.and_then(|value| {
                let gathered = record::gather_entry(index, value, &mut entries);
                gathered.map_err(|fault| record_error(link.file.path(), Some(index), fault))
            });
            let claim = Walk::new(&link.file).claim(0)?;
            if claim.is_none_or(|c| (c.generation, c.number) != (link.first.generation, link.first.number)) {
                return Ok(None);
            }
            gathered?;
        }
        Ok(Some(entries.whole()))
    }
}

/// The log, and that it does not end too early (S9): checked as at open, but for what is written meanwhile.
fn look(log_dir: &Path) -> Result<Found> {
    // Before the walk: the writer names a commit here when all of it can be read, and the number only grows.
    let marker = NumberFile::read(&NumberFile::clean(log_dir));
    let durable = NumberFile::read(&NumberFile::durable(log_dir)).max(marker);
    let found = read(log_dir, false, false)?;
    found.must_reach(log_dir, durable)?;
    if marker == Some(found.number()) {
        return Ok(found);
    }
    let Some((later, error)) = found.successor(log_dir)? else { return Ok(found) };
    // Written since, or behind damage: only the first can be reached now.
    let again = read(log_dir, false, false)?;
    if again.number() < later {
        return Err(error);
    }
    Ok(again)
}

impl View for SegmentView {
    fn small(&mut self) -> Result<Small> {
        let state = self.found.loaded.state.clone();
        Ok(Small {
            identity: state.identity,
            hard_state: state.hard_state,
            cluster: state.cluster,
            snapshot: state.snapshot,
            first: state.first_index,
            last: state.last_index,
        })
    }

    fn entries(&mut self, low: u64, high: u64) -> Result<Vec<Entry>> {
        for _ in 0..TRIES {
            let bounds = &self.found.loaded.bounds;
            if low < bounds.first {
                break;
            }
            if let Some(entries) = self.try_entries(low, high)? {
                return Ok(entries);
            }
            *self = SegmentView::open(&self.log_dir)?;
        }
        Ok(Vec::new())
    }
}
