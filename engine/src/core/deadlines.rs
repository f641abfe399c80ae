//! When pending requests must end. Most share one of a few timeouts, so each timeout has a queue that is in order by itself.

use std::collections::{BTreeSet, VecDeque};

/// Microseconds of the monotonic clock the core is told.
pub type Micros = u64;

const QUEUES: usize = 8;

#[derive(Default)]
pub struct Deadlines {
    /// (timeout, requests by deadline): with one timeout, a later request has a later deadline.
    queues: Vec<(Micros, VecDeque<(Micros, u64)>)>,
    rest: BTreeSet<(Micros, u64)>,
}

impl Deadlines {
    pub fn add(&mut self, now: Micros, timeout: Micros, request: u64) {
        let at = now.saturating_add(timeout);
        if let Some((_, queue)) = self.queues.iter_mut().find(|(t, _)| *t == timeout) {
            if queue.back().is_none_or(|(last, _)| *last <= at) {
                queue.push_back((at, request));
                return;
            }
        } else if self.queues.len() < QUEUES {
            self.queues.push((timeout, VecDeque::from([(at, request)])));
            return;
        }
        self.rest.insert((at, request));
    }

    /// Lets go of the oldest ones that are not pending any more, so that memory follows what is in flight.
    pub fn forget(&mut self, pending: impl Fn(u64) -> bool) {
        for (_, queue) in &mut self.queues {
            while queue.front().is_some_and(|(_, request)| !pending(*request)) {
                queue.pop_front();
            }
        }
        while self.rest.first().is_some_and(|(_, request)| !pending(*request)) {
            self.rest.pop_first();
        }
        self.queues.retain(|(_, queue)| !queue.is_empty());
    }

    /// The next request whose deadline has come.
    pub fn pop_expired(&mut self, now: Micros) -> Option<u64> {
        for (_, queue) in &mut self.queues {
            if queue.front().is_some_and(|(at, _)| *at <= now) {
                return queue.pop_front().map(|(_, request)| request);
            }
        }
        if self.rest.first().is_some_and(|(at, _)| *at <= now) {
            return self.rest.pop_first().map(|(_, request)| request);
        }
        None
    }

    pub fn next(&self) -> Option<Micros> {
        let queued = self.queues.iter().filter_map(|(_, q)| q.front().map(|(at, _)| *at)).min();
        let rest = self.rest.first().map(|(at, _)| *at);
        queued.into_iter().chain(rest).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_expire_in_order_of_their_deadlines_whatever_their_timeouts() {
        let mut deadlines = Deadlines::default();
        for (i, timeout) in [50u64, 10, 50, 30, 1, 2, 3, 4, 5, 6, 7].into_iter().enumerate() {
            deadlines.add(0, timeout, i as u64);
        }
        let mut now = 0;
        let mut order = Vec::new();
        while let Some(next) = deadlines.next() {
            assert!(next >= now);
            now = next;
            while let Some(request) = deadlines.pop_expired(now) {
                order.push((now, request));
            }
        }
        assert_eq!(order.first(), Some(&(1, 4)));
        assert_eq!(order.len(), 11);
        assert!(order.windows(2).all(|w| w[0].0 <= w[1].0));
    }

    #[test]
    fn what_is_done_is_forgotten() {
        let mut deadlines = Deadlines::default();
        (0..100).for_each(|i| deadlines.add(i, 1000, i));
        deadlines.forget(|request| request >= 99);
        assert_eq!(deadlines.next(), Some(1099));
    }
}
