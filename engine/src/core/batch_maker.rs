//! Entries of the log, in their order, made into one batch for the state machine.

use std::sync::Arc;

use raft::eraftpb::EntryType;

use super::bugs::{self, Bug};
use super::entry::{in_session, Context, Kind};
use super::sessions::{self, Name, Sessions, Verdict};
use crate::entry::Entry;
use crate::machine::{ApplyBatch, ApplyEntry, Place};
use crate::request::Token;

/// A batch, and what is to be remembered of its entries until it is applied.
#[derive(Default)]
pub(super) struct Made {
    pub batch: ApplyBatch,
    /// (index, term, request) of those whose proposer waits here.
    pub wanted: Vec<(u64, u64, u64)>,
    /// (index, term, name) of those of sessions: what they came to is kept.
    pub named: Vec<(u64, u64, Name)>,
    pub settled: Vec<Settled>,
    /// (index, term) of the last entry that was taken.
    pub last: Option<(u64, u64)>,
}

/// A request of this node's that the table of sessions decides, for the entry at this index.
pub(super) struct Settled {
    pub request: u64,
    pub index: u64,
    pub term: u64,
    pub how: How,
}

pub(super) enum How {
    Opened(u64),
    Closed,
    /// Not applied.
    Passed(Verdict),
}

pub(super) struct BatchMaker<'a> {
    /// Whose own proposals are told from others': (node, start) of their origin.
    pub proposer: (u64, u64),
    /// Of one batch, but for a single entry that is larger.
    pub max_entries: u64,
    pub max_bytes: u64,
    pub verify_results_after: u64,
    pub sessions: &'a mut Sessions,
    /// Up to here the machine has every command.
    pub has: u64,
    pub made: Made,
}

impl BatchMaker<'_> {
    /// Takes one entry; false when it belongs into the next batch.
    pub fn add(&mut self, chunk: &Arc<Vec<Entry>>, at: usize, token_of: impl Fn(u64) -> Option<Token>) -> bool {
        let Some(entry) = chunk.get(at) else { return false };
        let context = (entry.entry_type == EntryType::EntryNormal as i32).then(|| Context::of(entry)).flatten();
        if let Some(context) = context.filter(|c| c.kind.is_of_machine()) {
            let bytes = self.made.batch.bytes().saturating_add(entry.data.len()) as u64;
            let full = self.made.batch.entries.len() as u64 >= self.max_entries || bytes > self.max_bytes;
            if full && !self.made.batch.entries.is_empty() {
                return false;
            }
            let origin = context.origin;
            let ours = (origin.node, origin.start) == self.proposer || bugs::on(Bug::RepliesByBareCounter);
            let token = ours.then(|| token_of(origin.sequence)).flatten();
            let is_command = context.kind == Kind::Command;
            let applies = is_command || self.is_to_be_applied(entry, &context, token.is_some());
            if applies && entry.index > self.has {
                if token.is_some() {
                    self.made.wanted.push((entry.index, entry.term, origin.sequence));
                }
                let verified = verified_after(self.verify_results_after)(entry.index);
                let command = ApplyEntry {
                    index: entry.index,
                    term: entry.term,
                    time_us: context.time_us,
                    // What a command of a session came to is kept on every node.
                    wanted: token.is_some() || verified || !is_command,
                    // A result that is compared (S17), or kept, has to come here.
                    token: token.filter(|_| is_command && !verified).unwrap_or(0),
                    place: Place::default(),
                };
                self.made.batch.push(chunk, at, command);
            }
        }
        self.made.last = Some((entry.index, entry.term));
        true
    }

    /// What the table of sessions says of this entry; `waits`: somebody does, here.
    fn is_to_be_applied(&mut self, entry: &Entry, context: &Context, waits: bool) -> bool {
        let (index, term) = (entry.index, entry.term);
        let how = match context.kind {
            Kind::OpenSession => {
                let session = sessions::number(index, context.origin);
                self.sessions.open(index, session);
                How::Opened(session)
            }
            Kind::CloseSession => {
                let session = entry.data.as_ref().try_into().map_or(0, u64::from_le_bytes);
                self.sessions.close(index, session);
                How::Closed
            }
            _ => {
                // One that cannot be read is passed over by every node alike.
                let Some(place) = in_session(entry) else { return false };
                match self.sessions.decide(index, term, place) {
                    Verdict::Apply => {
                        let name = (place.session, place.sequence);
                        match index > self.has {
                            true => self.made.named.push((index, term, name)),
                            false => self.sessions.came_to(index, name, None),
                        }
                        return true;
                    }
                    verdict => How::Passed(verdict),
                }
            }
        };
        if waits {
            self.made.settled.push(Settled { request: context.origin.sequence, index, term, how });
        }
        false
    }
}

/// Which commands' results are compared: those after the entry that says so. 0: none.
pub(super) fn verified_after(since: u64) -> impl Fn(u64) -> bool {
    move |index| since != 0 && index > since
}
