//! How much peers are given of the log in one turn, and who goes on in the next.
//!
//! Raft asks for everything that a peer may have under way, hundreds of messages, once that peer has caught up with what was sent. Made
//! in one turn they kept all others waiting for 100 ms and more.
//!
//! A peer that is far behind is given entries that all who answer to clients have. It must not take the processors and the disk from
//! those, so each measure of such entries is followed by a rest, as long as others get on:
//!
//! ```text
//!            a measure was given to peers far behind, and entries were committed of late
//!  gives ───────────────────────────────────────────────────────────────────────────────► rests
//!    ▲                                                                                      │
//!    └────── `REST` is over, or half as many bytes were appended: they come nearer ─────────┘
//! ```

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use raft::GetEntriesContext;

use super::deadlines::Micros;

/// Bytes in one turn: copying them takes about a millisecond.
const MEASURE: u64 = 256 << 10;
/// Raft asks for those beyond again, with their peers' next answers.
const LATER: usize = 64;
/// Microseconds: at most so long after each measure for those far behind, which get 64 MiB a second or more.
const REST: Micros = 4000;
/// Bytes behind what is newest: from here on it is far.
pub const FAR: u64 = 1 << 20;
/// Microseconds without a commit: nobody is disturbed, or somebody waits for just that peer.
const QUIET: Micros = 10_000;

/// Where the log stands when a turn begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    pub committed: u64,
    /// All bytes that were ever appended here.
    pub appended: u64,
    /// Whoever lacks this index or one below is far behind.
    pub far: u64,
}

/// Until one of them is reached.
#[derive(Clone, Copy)]
struct Rest {
    until: Micros,
    appended: u64,
}

/// Who was put off, the longest waiting first.
#[derive(Default)]
pub struct Waiting(RefCell<VecDeque<GetEntriesContext>>);

impl Waiting {
    pub fn push(&self, context: GetEntriesContext) {
        let mut waiting = self.0.borrow_mut();
        if waiting.len() < LATER {
            waiting.push_back(context);
        }
    }

    fn pop(&mut self) -> Option<GetEntriesContext> {
        self.0.get_mut().pop_front()
    }

    fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

pub struct Turn {
    measure: u64,
    given: Cell<u64>,
    /// Who goes on in the next turn.
    later: Waiting,
    now: Micros,
    standing: Standing,
    committed_at: Micros,
    /// Bytes since the last rest for those far behind.
    given_far: Cell<u64>,
    rest: Cell<Option<Rest>>,
    /// Who waits for its end.
    resting: Waiting,
}

impl Default for Turn {
    fn default() -> Self {
        Turn {
            measure: MEASURE,
            given: Cell::new(0),
            later: Waiting::default(),
            now: 0,
            standing: Standing::default(),
            committed_at: 0,
            given_far: Cell::new(0),
            rest: Cell::new(None),
            resting: Waiting::default(),
        }
    }
}

impl Turn {
    /// Never more than so many bytes.
    pub fn limit(&mut self, bytes: u64) {
        self.measure = bytes.min(MEASURE);
    }

    pub fn measure(&self) -> u64 {
        self.measure
    }

    pub fn begin(&mut self, now: Micros, standing: Standing) {
        self.given.set(0);
        self.now = now;
        if standing.committed > self.standing.committed {
            self.committed_at = now;
        }
        self.standing = standing;
        let rest = self.rest.get().filter(|rest| now < rest.until && standing.appended < rest.appended);
        self.rest.set(rest);
    }

    /// Gives bytes that begin at this index.
    pub fn give(&self, low: u64, bytes: u64) {
        self.given.set(self.given.get().saturating_add(bytes));
        if low > self.standing.far {
            return;
        }
        let far = self.given_far.get().saturating_add(bytes);
        self.given_far.set(far);
        // A full measure even where a turn's is smaller: with messages of a kilobyte it would get a kilobyte in 4 ms.
        if far >= MEASURE {
            self.given_far.set(0);
            let busy = self.now.saturating_sub(self.committed_at) < QUIET;
            let appended = self.standing.appended.saturating_add(far / 2);
            self.rest.set(busy.then_some(Rest { until: self.now.saturating_add(REST), appended }));
        }
    }

    /// Where the peer that lacks this index and what follows has to wait, if it has to.
    pub fn waits_in(&self, low: u64) -> Option<&Waiting> {
        if self.rest.get().is_some() && low <= self.standing.far {
            Some(&self.resting)
        } else {
            self.is_over().then_some(&self.later)
        }
    }

    fn is_over(&self) -> bool {
        self.given.get() >= self.measure
    }

    /// Somebody goes on in the next turn.
    pub fn has_later(&self) -> bool {
        !self.later.is_empty() || (self.rest.get().is_none() && !self.resting.is_empty())
    }

    /// When somebody goes on at the latest who waits for the end of a rest.
    pub fn rests_until(&self) -> Option<Micros> {
        self.rest.get().filter(|_| !self.resting.is_empty()).map(|rest| rest.until)
    }

    /// Who has waited longest, as long as there is something to give.
    pub fn next(&mut self) -> Option<GetEntriesContext> {
        if self.is_over() {
            return None;
        }
        let rests = self.rest.get().is_some();
        self.later.pop().or_else(|| if rests { None } else { self.resting.pop() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_messages_bring_one_far_behind_as_many_bytes_until_it_rests() {
        for limit in [1, 4096, 1 << 20] {
            let mut turn = Turn::default();
            turn.limit(limit);
            let (mut given, low) = (0, 1);
            turn.begin(1000, Standing { committed: 1, appended: 2 * FAR, far: 100 });
            while turn.rests_until().is_none() {
                turn.begin(1000, turn.standing);
                turn.give(low, 1024);
                given += 1024;
                assert!(given <= MEASURE, "limit {limit}: it never rests");
                // Somebody waits for whatever there is to wait for.
                if let Some(waiting) = turn.waits_in(low) {
                    waiting.push(GetEntriesContext::empty(true));
                }
            }
            assert_eq!((given, turn.rests_until()), (MEASURE, Some(1000 + REST)), "limit {limit}");
        }
    }
}
