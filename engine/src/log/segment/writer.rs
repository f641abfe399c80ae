//! The writing half of the segment log: what is queued becomes one frame, one write and one sync.
//!
//! Invariants: a frame lies in one segment; a segment's first frame holds all small records, so that the log can be read
//! from any segment on; a segment is given back only after the frame that no longer needs it is durable.

use std::sync::Arc;

use crate::error::{Error, ErrorCode, Result};
use crate::log::batching::{Failure, Store};
use crate::log::draft::{Draft, Step};
use crate::log::files::{self, NumberFile};
use crate::log::record::{Fault, Meta};
use crate::log::LogWrite;

use super::frame::FrameHeader;
use super::frame_builder::FrameBuilder;
use super::index::Change;
use super::pool::Pool;
use super::segment_file::SegmentFile;
use super::{small_record, Shared};

/// Where the next frame goes.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pub file: Arc<SegmentFile>,
    pub generation: u32,
    pub previous: u32,
    /// Behind the last frame.
    pub offset: u64,
    /// CRC of the last frame.
    pub crc: u32,
}

pub(crate) struct SegmentWriter {
    /// Before `shared`: it ends its thread while the directory is still held.
    pool: Pool,
    shared: Arc<Shared>,
    /// The log as it is on the disk.
    state: Draft,
    durable: NumberFile,
    tail: Tail,
    frame: FrameBuilder,
}

impl SegmentWriter {
    pub(crate) fn new(shared: Arc<Shared>, state: Draft, durable: NumberFile, pool: Pool, tail: Tail) -> Self {
        SegmentWriter { shared, state, durable, pool, tail, frame: FrameBuilder::default() }
    }

    fn contradiction(&self, what: impl std::fmt::Display) -> Error {
        Error::storage(
            ErrorCode::Internal,
            &self.shared.log_dir,
            format_args!("a write contradicts the log: {what}; the node has stopped; please report this"),
        )
    }

    /// Puts the records of a frame together; with `all`, every small record there is.
    fn encode(&mut self, writes: &[LogWrite], steps: &[Vec<Step>], draft: &Draft, all: bool) -> Result<(), Fault> {
        self.frame.begin();
        for meta in Meta::ALL.into_iter().filter(|meta| all || draft.changed().any(|changed| changed == *meta)) {
            if let Some(value) = small_record(meta, draft) {
                self.frame.small(meta, &value)?;
            }
        }
        for (write, steps) in writes.iter().zip(steps) {
            for step in steps {
                match step {
                    Step::Clear => {
                        self.frame.clear(write.snapshot.as_ref().map_or(1, |s| s.index.saturating_add(1)))?
                    }
                    Step::Delete { from, .. } => self.frame.cut(*from)?,
                    Step::Append => {
                        let entries = || write.entries.iter().flat_map(|entries| entries.iter());
                        let mut queue = entries();
                        self.frame.entries(
                            entries().map(|entry| entry.index),
                            |fault| fault,
                            |_, out| queue.next().map_or(Ok(()), |entry| out.entry(entry)),
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The oldest segment needed once the frame of `generation` is durable.
    fn oldest(&self, draft: &Draft, appended: Option<u64>, generation: u32) -> u32 {
        let bounds = &draft.bounds;
        if bounds.first > bounds.last || appended.is_some_and(|from| from <= bounds.first) {
            return generation;
        }
        self.shared.index.place(bounds.first).map_or(generation, |place| place.segment)
    }

    /// A segment to go on in when the frame does not fit any more.
    fn roll(&mut self, reserve: bool) -> Result<Tail, Failure> {
        let Some(generation) = self.tail.generation.checked_add(1) else {
            return Err(Failure::Broken(Error::storage(
                ErrorCode::Internal,
                &self.shared.log_dir,
                "the log has used all numbers of segments; let the node join again with an empty directory",
            )));
        };
        let file = self.pool.take(self.frame.len(), reserve)?;
        Ok(Tail { file, generation, previous: self.tail.generation, offset: 0, crc: self.tail.crc })
    }
}

impl Store for SegmentWriter {
    fn state(&self) -> &Draft {
        &self.state
    }

    fn commit(&mut self, writes: &[LogWrite]) -> Result<(), Failure> {
        let mut draft = self.state.clone();
        let steps: Result<Vec<Vec<Step>>, String> = writes.iter().map(|write| draft.take(write)).collect();
        let steps = steps.map_err(|what| self.contradiction(what))?;
        draft.settle().map_err(|what| self.contradiction(what))?;
        draft.bounds.floor = draft.bounds.first;
        draft.bounds.number = draft.bounds.number.saturating_add(1);

        let contradicts = |fault| format!("{fault:?}");
        self.encode(writes, &steps, &draft, false).map_err(|fault| self.contradiction(contradicts(fault)))?;
        let appends = steps.iter().flatten().any(|step| *step == Step::Append);
        let fits = self.tail.offset.saturating_add(self.frame.len()) <= self.tail.file.len();
        let mut tail = if fits {
            self.tail.clone()
        } else {
            self.encode(writes, &steps, &draft, true).map_err(|fault| self.contradiction(contradicts(fault)))?;
            self.roll(appends)?
        };
        let appended = writes.iter().filter_map(|w| w.entries.as_ref()?.first()).map(|entry| entry.index).min();
        let header = FrameHeader {
            generation: tail.generation,
            first_of_segment: tail.offset == 0,
            before: tail.crc,
            oldest: self.oldest(&draft, appended, tail.generation),
            previous: tail.previous,
            ..super::header_of(&draft)
        };
        let sealed = self.frame.seal(&header, tail.offset);
        let sealed = match sealed {
            Ok(sealed) => sealed,
            Err(fault) => {
                let what = contradicts(fault);
                return Err(Failure::Broken(self.contradiction(what)));
            }
        };
        let Ok(offset) = u32::try_from(tail.offset) else {
            return Err(Failure::Broken(self.contradiction("a segment of more than 4 GiB")));
        };
        tail.file.write_durably(&sealed.parts, tail.offset)?;

        tail.offset = tail.offset.saturating_add(sealed.len);
        tail.crc = sealed.crc;
        let free = self.shared.index.apply(&Change {
            generation: tail.generation,
            file: &tail.file,
            offset,
            entries: sealed.entries,
            first: draft.bounds.first,
            last: draft.bounds.last,
            oldest: header.oldest,
        });
        self.frame.forget();
        self.tail = tail;
        draft.all_stored();
        self.state = draft;
        // After the sync, and unsynced (S8): what this names was durable before.
        self.durable.write(self.state.bounds.number).map_err(files::outcome_unknown)?;
        free.into_iter().for_each(|file| self.pool.give(file));
        self.pool.clear_surplus();
        if self.tail.offset > self.tail.file.len() / 2 {
            self.pool.hurry();
        }
        Ok(())
    }

    fn mark_clean(&mut self) -> Result<()> {
        files::mark_clean(&self.shared.log_dir, self.state.bounds.number)
    }
}
