//! From the frames of a log to what it holds: each frame is carried out in order, as it was when it was written.
//!
//! Invariants checked here: what one frame says about the log must follow from its records and the frames before;
//! entries are contiguous, their terms, and the hard state's term and commit, never fall.

use std::collections::VecDeque;

use raft::eraftpb::HardState;

use crate::log::load::{self, Loaded};
use crate::log::record::{self, Bounds, Fault, Meta};
use crate::log::{ClusterRecord, Identity, LogState, SnapshotMeta};

use super::frame::{records, Frame, FrameHeader, Record, HEADER};
use super::index::{Place, Places};

fn damaged<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(what.into()))
}

#[derive(Default)]
pub(crate) struct Replay {
    /// Entries' payloads are compared with their own checksums, too.
    deep: bool,
    identity: Option<Identity>,
    cluster: Option<ClusterRecord>,
    snapshot: Option<SnapshotMeta>,
    places: Places,
    /// Bytes of data of each entry in `places`.
    sizes: VecDeque<u32>,
    /// (index, term) at which each term begins, over all of `places` at least.
    terms: Vec<(u64, u64)>,
    last: Option<FrameHeader>,
}

impl Replay {
    pub(crate) fn new(deep: bool) -> Self {
        Replay { deep, ..Replay::default() }
    }

    /// Carries out a frame that stands at `offset` of its segment.
    pub(crate) fn frame(&mut self, frame: &Frame<'_>, offset: u64) -> Result<(), Fault> {
        let header = frame.header;
        // Before the first frame nothing is known of the entries that it goes on from.
        let mut known = self.last.is_some();
        let body_at = offset.saturating_add(HEADER as u64);
        for record in records(frame.body) {
            match record? {
                Record::Small(meta, value) => self.small(meta, value)?,
                Record::Clear(next) => {
                    self.cut(0);
                    self.cut(next);
                    known = true;
                }
                Record::Cut(from) => {
                    self.cut(from);
                    known = true;
                }
                Record::Entries(block, at) => {
                    self.entries(block, body_at.saturating_add(at as u64), header.generation, &mut known)?;
                }
            }
        }
        if !known {
            self.cut(header.last.saturating_add(1));
        }
        self.follows(&header)?;
        let gone = header.first.saturating_sub(self.places.first());
        self.sizes.drain(..usize::try_from(gone).unwrap_or(usize::MAX).min(self.sizes.len()));
        self.places.drop_below(header.first);
        self.last = Some(header);
        Ok(())
    }

    fn follows(&self, header: &FrameHeader) -> Result<(), Fault> {
        if self.places.next() != header.last.saturating_add(1) {
            return damaged(format!(
                "the frame says that entry {} is the last, but it is {}",
                header.last,
                self.places.next().saturating_sub(1)
            ));
        }
        if self.last.is_some_and(|old| {
            header.term < old.term
                || header.commit < old.commit
                || header.first < old.first
                || header.oldest < old.oldest
        }) {
            return damaged("the frame goes back behind the one before it");
        }
        Ok(())
    }

    fn small(&mut self, meta: Meta, value: &[u8]) -> Result<(), Fault> {
        match meta {
            Meta::Identity => self.identity = Some(record::decode_identity(value)?),
            Meta::Cluster => self.cluster = Some(record::decode_cluster(value)?),
            Meta::Snapshot => self.snapshot = Some(record::decode_snapshot(value)?),
            // These two stand in every frame's header.
        }
        Ok(())
    }

    fn cut(&mut self, index: u64) {
        self.places.cut(index);
        self.sizes.truncate(self.places.len());
        self.terms.retain(|(begin, _)| *begin < index);
    }

    fn entries(&mut self, block: &[u8], at: u64, segment: u32, known: &mut bool) -> Result<(), Fault> {
        let mut rest = block;
        while !rest.is_empty() {
            let Some(index) = record::stored_index(rest) else { return damaged("an entry is cut off") };
            let header = record::decode_entry_header(index, rest)?;
            let split = usize::try_from(header.value_len()).ok().and_then(|len| rest.split_at_checked(len));
            let Some((value, behind)) = split else { return damaged(format!("entry {index} is cut off")) };
            if self.deep {
                record::check_payload(&header, value)?;
            }
            if !*known {
                self.cut(index);
                *known = true;
            }
            if index != self.places.next() {
                return damaged(format!("entry {index} stands where entry {} must be", self.places.next()));
            }
            let term = self.terms.last().map_or(0, |(_, term)| *term);
            if header.term < term {
                return damaged(format!("the term {} of entry {index} is below the one before", header.term));
            }
            if header.term > term || self.terms.is_empty() {
                self.terms.push((index, header.term));
            }
            let offset = at.saturating_add((block.len() - rest.len()) as u64);
            let Ok(offset) = u32::try_from(offset) else { return damaged("a segment of more than 4 GiB") };
            self.places.push(Place { segment, offset });
            self.sizes.push_back(header.data_len);
            rest = behind;
        }
        Ok(())
    }

    /// What the log holds after the last frame.
    pub(crate) fn finish(self) -> Result<(Loaded, Places), Fault> {
        let (Some(header), Some(identity), Some(cluster)) = (self.last, self.identity, self.cluster) else {
            return damaged("one of the log's own records is missing");
        };
        if u128::from(header.directory) != identity.directory.0 & u128::from(u64::MAX) {
            return damaged("the frames are of another directory than the identity");
        }
        let held = self.places.first();
        if held > header.first && header.first <= header.last {
            return damaged(format!("entry {} is missing", header.first));
        }
        let mut terms = self.terms;
        let begun = terms.partition_point(|(begin, _)| *begin <= header.first);
        terms.drain(..begun.saturating_sub(1));
        if let Some(run) = terms.first_mut() {
            run.0 = run.0.max(header.first);
        }
        if header.first > header.last {
            terms.clear();
        }
        let state = LogState {
            identity,
            hard_state: HardState { term: header.term, vote: header.vote, commit: header.commit },
            cluster,
            snapshot: self.snapshot,
            first_index: header.first,
            prev_term: header.prev_term,
            last_index: header.last,
            terms,
            bytes: self.sizes.iter().map(|size| u64::from(*size)).sum(),
        };
        if !load::is_consistent(&state) {
            return damaged("commit index, snapshot and entries contradict each other");
        }
        let bounds = Bounds {
            number: header.number,
            first: header.first,
            prev_term: header.prev_term,
            last: header.last,
            floor: header.first,
        };
        Ok((Loaded { state, bounds }, self.places))
    }
}
