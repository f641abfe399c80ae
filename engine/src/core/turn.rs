//! How much peers are given of the log in one turn, and who goes on in the next.
//!
//! Raft asks for everything that a peer may have under way, hundreds of messages, once that peer has caught up with what was sent. Made
//! in one turn they kept all others waiting for 100 ms and more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use raft::GetEntriesContext;

/// Bytes in one turn: copying them takes about a millisecond.
const MEASURE: u64 = 256 << 10;
/// Raft asks for those beyond again, with their peers' next answers.
const LATER: usize = 64;

pub struct Turn {
    measure: u64,
    given: Cell<u64>,
    /// Who was put off, the longest waiting first.
    later: RefCell<VecDeque<GetEntriesContext>>,
}

impl Default for Turn {
    fn default() -> Self {
        Turn { measure: MEASURE, given: Cell::new(0), later: RefCell::default() }
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

    pub fn begin(&mut self) {
        self.given.set(0);
    }

    pub fn give(&self, bytes: u64) {
        self.given.set(self.given.get().saturating_add(bytes));
    }

    pub fn is_over(&self) -> bool {
        self.given.get() >= self.measure
    }

    pub fn put_off(&self, context: GetEntriesContext) {
        let mut later = self.later.borrow_mut();
        if later.len() < LATER {
            later.push_back(context);
        }
    }

    /// Somebody goes on in the next turn.
    pub fn has_later(&self) -> bool {
        !self.later.borrow().is_empty()
    }

    /// Who has waited longest, as long as there is something to give.
    pub fn next(&mut self) -> Option<GetEntriesContext> {
        if self.is_over() {
            return None;
        }
        self.later.get_mut().pop_front()
    }
}
