//! A queue to one thread, which takes all that waits at once.
//!
//! ```text
//!   any thread ──send──► [ … ] ──recv_all──► one thread
//! ```
//!
//! Lives here: handing things over, in order, and the end of either side. May not live here: what the things mean.
//!
//! Invariants: what was accepted is received, in the order in which it was accepted, or dropped with the receiver; a sender
//! holds the lock for a push and never while it wakes: whoever wakes first would find it taken, and sleep again.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

struct State<T> {
    waiting: Vec<T>,
    /// The receiver sleeps.
    asleep: bool,
    senders: usize,
    received: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A push or a swap is whole, or has not happened.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiver is gone; what was sent comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gone<T>(pub T);

pub(crate) struct Sender<T>(Arc<Shared<T>>);

pub(crate) struct Receiver<T>(Arc<Shared<T>>);

pub(crate) fn mailbox<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { waiting: Vec::new(), asleep: false, senders: 1, received: true };
    let shared = Arc::new(Shared { state: Mutex::new(state), filled: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    /// Never waits for the receiver.
    pub(crate) fn send(&self, thing: T) -> Result<(), Gone<T>> {
        let mut state = self.0.lock();
        if !state.received {
            return Err(Gone(thing));
        }
        state.waiting.push(thing);
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.0.filled.notify_one();
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders = state.senders.saturating_sub(1);
        let last = state.senders == 0 && std::mem::take(&mut state.asleep);
        drop(state);
        if last {
            self.0.filled.notify_one();
        }
    }
}

impl<T> Receiver<T> {
    /// Waits until there is something and puts all of it into `out`, which must be empty. False: there is nothing, and no sender is left.
    pub(crate) fn recv_all(&self, out: &mut Vec<T>) -> bool {
        let mut state = self.0.lock();
        while state.waiting.is_empty() {
            if state.senders == 0 {
                return false;
            }
            state.asleep = true;
            state = self.0.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        // The two take turns: neither is allocated anew once it has grown.
        std::mem::swap(&mut state.waiting, out);
        true
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.received = false;
        let dropped = std::mem::take(&mut state.waiting);
        drop(state);
        drop(dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_waits_comes_at_once_and_in_order() {
        let (send, receive) = mailbox();
        let other = send.clone();
        for n in 0..10 {
            let sender = if n % 2 == 0 { &send } else { &other };
            sender.send(n).unwrap();
        }
        let mut out = Vec::new();
        assert!(receive.recv_all(&mut out));
        assert_eq!(out, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_sent_before_the_last_sender_went_is_received() {
        let (send, receive) = mailbox();
        send.send(1).unwrap();
        drop(send);
        let mut out = Vec::new();
        assert!(receive.recv_all(&mut out));
        assert_eq!(std::mem::take(&mut out), [1]);
        assert!(!receive.recv_all(&mut out));
    }

    #[test]
    fn one_that_sleeps_hears_of_the_end() {
        let (send, receive) = mailbox::<u8>();
        let waits = std::thread::spawn(move || receive.recv_all(&mut Vec::new()));
        // Whether it sleeps already or not, it ends.
        drop(send);
        assert!(!waits.join().unwrap());
    }

    #[test]
    fn without_a_receiver_it_comes_back_and_what_waited_is_dropped() {
        let (send, receive) = mailbox();
        let waiting = Arc::new(());
        send.send(Arc::clone(&waiting)).unwrap();
        drop(receive);
        assert_eq!(Arc::strong_count(&waiting), 1);
        assert!(send.send(waiting).is_err());
    }

    #[test]
    fn two_threads_hand_everything_over() {
        let (send, receive) = mailbox();
        let sends = std::thread::spawn(move || (0..100_000u32).for_each(|n| send.send(n).unwrap()));
        let mut seen = 0;
        let mut out = Vec::new();
        while receive.recv_all(&mut out) {
            for n in out.drain(..) {
                assert_eq!(n, seen);
                seen += 1;
            }
        }
        sends.join().unwrap();
        assert_eq!(seen, 100_000);
    }
}
