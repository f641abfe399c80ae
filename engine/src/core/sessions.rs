//! Client sessions: a command that is sent again counts once (Raft thesis §6.3).
//!
//! A client opens a session, numbers its commands in it and sends one again, with the same number, until it is answered. Entries of the log
//! say all that this table needs, so each node comes to the same verdict on each of them:
//!
//! ```text
//!   entry of (session 7, command 3)        session 7:  first_open 2, done {2, 3, 5}
//!      │ session known?                no ─► not applied: the session has expired
//!      │ command >= first_open?        no ─► not applied: its client waits for it no longer
//!      │ done before?                 yes ─► not applied: answered with what it came to then
//!      │ command < first_open + 1024?  no ─► not applied: too many at once
//!      └─────────────────────────────────► applied, and done
//! ```
//!
//! Invariants: verdicts follow from the log alone, never from what this node knows beside it (results that it has let go of, say). The table
//! stands where the machine's batches end; a snapshot carries the one of exactly its own index, with the results (S13).
//!
//! What is kept is bounded: sessions by number (the one that was used least recently is forgotten), commands by number, results by bytes.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost::Message;

use super::bugs::{self, Bug};
use super::entry::Origin;
use crate::machine::Outcome;
use crate::request::{InSession, SESSION_WINDOW};

/// Commands that are known to be done, in all sessions; part of the protocol.
const COMMANDS: usize = 256 << 10;
/// Bytes of results.
const RESULTS: usize = 16 << 20;
/// Entries that were not applied and are remembered, for a machine that is behind the snapshot; part of what a snapshot says.
const PASSED: usize = 4096;

/// What becomes of an entry of a session.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    Apply,
    Again(Again),
    /// No such session, or not any more.
    Expired,
    /// Its client waits for this command no longer.
    Past,
    /// Too many above the first open one.
    Beyond,
}

/// What a command came to that was applied before, at this index.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Again {
    /// Its result is on its way from the machine.
    Pending {
        index: u64,
    },
    Known {
        index: u64,
        term: u64,
        result: Result<Bytes, String>,
    },
    /// It was done; its result is not kept.
    Lost {
        index: u64,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Told {
    Pending,
    Known(Result<Bytes, String>),
    Lost,
}

#[derive(Clone, Debug, PartialEq)]
struct Done {
    index: u64,
    term: u64,
    told: Told,
}

impl Done {
    fn bytes(&self) -> usize {
        match &self.told {
            Told::Known(Ok(bytes)) => bytes.len(),
            Told::Known(Err(text)) => text.len(),
            Told::Pending | Told::Lost => 0,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Session {
    first_open: u64,
    /// Index of its newest entry.
    used: u64,
    done: BTreeMap<u64, Done>,
}

/// The number of the session that this entry opens. The index alone would name another client's session in a cluster that was founded
/// anew at the same addresses; the start of the node that proposed it was drawn at random.
pub(super) fn number(index: u64, origin: Origin) -> u64 {
    origin.start ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Names one command: its session, and its number there.
pub(super) type Name = (u64, u64);

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sessions {
    /// Sessions that may be open; part of the protocol.
    most: usize,
    open: BTreeMap<u64, Session>,
    /// Index of a session's newest entry → the session.
    used: BTreeMap<u64, u64>,
    /// Of all sessions.
    commands: usize,
    /// Index → the command whose result is known.
    results: BTreeMap<u64, Name>,
    result_bytes: usize,
    /// Every entry up to here has its verdict.
    at: u64,
    /// Entries of commands that were not applied, ascending; all from `passed_from` on.
    passed: VecDeque<u64>,
    passed_from: u64,
}

impl Sessions {
    /// Of a log that begins behind `at`, without sessions.
    pub fn new(most: u64, at: u64) -> Self {
        Sessions {
            most: usize::try_from(most).unwrap_or(usize::MAX).max(1),
            open: BTreeMap::new(),
            used: BTreeMap::new(),
            commands: 0,
            results: BTreeMap::new(),
            result_bytes: 0,
            at,
            passed: VecDeque::new(),
            passed_from: 0,
        }
    }

    /// Every entry up to here has its verdict.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// There was no entry of a session in between.
    pub fn advance(&mut self, to: u64) {
        self.at = self.at.max(to);
    }

    /// Whether entries from this index on, that had their verdict before, can have it once more.
    pub fn remembers(&self, index: u64) -> bool {
        index >= self.passed_from
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.passed.is_empty()
    }

    /// The entry at `index` opens the session of this number.
    pub fn open(&mut self, index: u64, session: u64) {
        if index <= self.at {
            return;
        }
        self.at = index;
        self.forget(session);
        self.open.insert(session, Session { used: index, ..Session::default() });
        self.used.insert(index, session);
        self.bound();
    }

    pub fn close(&mut self, index: u64, session: u64) {
        if index <= self.at {
            return;
        }
        self.at = index;
        self.forget(session);
    }

    /// The verdict on the entry at `index`. Each is asked for once, in order; before `at` it says only whether to apply.
    pub fn decide(&mut self, index: u64, term: u64, place: InSession) -> Verdict {
        if index <= self.at {
            let passed = self.passed.binary_search(&index).is_ok();
            return if passed { Verdict::Past } else { Verdict::Apply };
        }
        self.at = index;
        let verdict = self.judge(index, term, place);
        if verdict != Verdict::Apply {
            self.passed.push_back(index);
            if self.passed.len() > PASSED {
                self.passed_from = self.passed.pop_front().unwrap_or(index).saturating_add(1);
            }
        }
        verdict
    }

    fn judge(&mut self, index: u64, term: u64, place: InSession) -> Verdict {
        let InSession { session: id, sequence, first_open } = place;
        let Some(session) = self.open.get_mut(&id) else { return Verdict::Expired };
        self.used.remove(&session.used);
        session.used = index;
        self.used.insert(index, id);
        if first_open > session.first_open {
            session.first_open = first_open;
            let open = session.done.split_off(&first_open);
            let ended = std::mem::replace(&mut session.done, open);
            self.commands = self.commands.saturating_sub(ended.len());
            ended.values().for_each(|done| self.let_go(done));
        }
        let Some(session) = self.open.get_mut(&id) else { return Verdict::Expired };
        let Some(above) = sequence.checked_sub(session.first_open) else { return Verdict::Past };
        let before = session.done.get(&sequence).filter(|_| !bugs::on(Bug::AppliesAgain));
        if let Some(Done { index, term, told }) = before.cloned() {
            return Verdict::Again(match told {
                Told::Pending => Again::Pending { index },
                Told::Known(result) => Again::Known { index, term, result },
                Told::Lost => Again::Lost { index },
            });
        }
        if above >= SESSION_WINDOW {
            return Verdict::Beyond;
        }
        session.done.insert(sequence, Done { index, term, told: Told::Pending });
        self.commands = self.commands.saturating_add(1);
        self.bound();
        Verdict::Apply
    }

    /// Whoever was used least recently is forgotten, until what is kept is within its bounds.
    fn bound(&mut self) {
        while self.open.len() > self.most || self.commands > COMMANDS {
            let Some((_, session)) = self.used.first_key_value().map(|(used, id)| (*used, *id)) else { return };
            self.forget(session);
        }
    }

    fn forget(&mut self, session: u64) {
        let Some(gone) = self.open.remove(&session) else { return };
        self.used.remove(&gone.used);
        self.commands = self.commands.saturating_sub(gone.done.len());
        gone.done.values().for_each(|done| self.let_go(done));
    }

    fn let_go(&mut self, done: &Done) {
        if self.results.remove(&done.index).is_some() {
            self.result_bytes = self.result_bytes.saturating_sub(done.bytes());
        }
    }

    /// What the command that was applied at `index` came to; `None`: it was applied before this start, by a machine that kept its state.
    pub fn came_to(&mut self, index: u64, name: Name, outcome: Option<&Outcome>) {
        let of = self.open.get_mut(&name.0).and_then(|session| session.done.get_mut(&name.1));
        let Some(done) = of.filter(|done| done.index == index && done.told == Told::Pending) else { return };
        done.told = match outcome {
            Some(outcome) => Told::Known(outcome.clone().map(Bytes::from)),
            None => Told::Lost,
        };
        if outcome.is_some() {
            self.result_bytes = self.result_bytes.saturating_add(done.bytes());
            self.results.insert(index, name);
        }
        while self.result_bytes > RESULTS {
            let Some((_, (session, sequence))) = self.results.pop_first() else { return };
            let oldest = self.open.get_mut(&session).and_then(|session| session.done.get_mut(&sequence));
            if let Some(done) = oldest {
                self.result_bytes = self.result_bytes.saturating_sub(done.bytes());
                done.told = Told::Lost;
            }
        }
    }

    /// For the file of a snapshot at exactly [`at`](Self::at). Empty: there is nothing to say.
    pub fn encode(&self) -> Vec<u8> {
        if self.is_empty() || bugs::on(Bug::SnapshotForgetsSessions) {
            return Vec::new();
        }
        let sessions = self.open.iter().map(|(id, session)| SessionRecord {
            id: *id,
            first_open: session.first_open,
            used: session.used,
            done: session.done.iter().map(|(sequence, done)| DoneRecord::of(*sequence, done)).collect(),
        });
        let passed = self.passed.iter().copied().collect();
        Table { sessions: sessions.collect(), passed, passed_from: self.passed_from }.encode_to_vec()
    }

    /// The table of a snapshot at `at`.
    pub fn decode(bytes: &[u8], most: u64, at: u64) -> Result<Self, String> {
        let table = Table::decode(bytes).map_err(|e| format!("its table of client sessions cannot be read: {e}"))?;
        let mut sessions = Sessions::new(most, at);
        for record in table.sessions {
            let mut session = Session { first_open: record.first_open, used: record.used, done: BTreeMap::new() };
            for DoneRecord { sequence, index, term, result } in record.done {
                let told = match result {
                    Some(DoneResult::Returned(bytes)) => Told::Known(Ok(bytes)),
                    Some(DoneResult::Raised(text)) => Told::Known(Err(text)),
                    None => Told::Lost,
                };
                let done = Done { index, term, told };
                if matches!(done.told, Told::Known(_)) {
                    sessions.result_bytes = sessions.result_bytes.saturating_add(done.bytes());
                    sessions.results.insert(index, (record.id, sequence));
                }
                session.done.insert(sequence, done);
            }
            sessions.commands = sessions.commands.saturating_add(session.done.len());
            sessions.used.insert(session.used, record.id);
            sessions.open.insert(record.id, session);
        }
        if sessions.used.len() != sessions.open.len() {
            return Err("its table of client sessions contradicts itself".into());
        }
        (sessions.passed, sessions.passed_from) = (table.passed.into(), table.passed_from);
        Ok(sessions)
    }
}

/// [`Sessions`], in a snapshot's file.
#[derive(Clone, PartialEq, prost::Message)]
struct Table {
    #[prost(message, repeated, tag = "1")]
    sessions: Vec<SessionRecord>,
    #[prost(uint64, repeated, tag = "2")]
    passed: Vec<u64>,
    #[prost(uint64, tag = "3")]
    passed_from: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionRecord {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    first_open: u64,
    #[prost(uint64, tag = "3")]
    used: u64,
    #[prost(message, repeated, tag = "4")]
    done: Vec<DoneRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DoneRecord {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint64, tag = "3")]
    term: u64,
    /// None: not kept.
    #[prost(oneof = "DoneResult", tags = "4, 5")]
    result: Option<DoneResult>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum DoneResult {
    #[prost(bytes = "bytes", tag = "4")]
    Returned(Bytes),
    #[prost(string, tag = "5")]
    Raised(String),
}

impl DoneRecord {
    fn of(sequence: u64, done: &Done) -> Self {
        let result = match &done.told {
            Told::Known(Ok(bytes)) => Some(DoneResult::Returned(bytes.clone())),
            Told::Known(Err(text)) => Some(DoneResult::Raised(text.clone())),
            Told::Pending | Told::Lost => None,
        };
        DoneRecord { sequence, index: done.index, term: done.term, result }
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
