//! A thing that one thread at a time has, and lays down for whoever takes it up next.
//!
//! ```text
//!            lay                     take, wait
//!   Lying ◄──────── Held ◄────────────────────── Lying
//!                    │ dropped instead of laid down
//!                    ▼
//!                   Gone       whoever waits for it hears so
//! ```
//!
//! Lives here: who has it, and since when nobody has. May not live here: what it is, and what a thread does with it.
//!
//! Invariants: never two have it; it is gone only after it was dropped, so that what it held is free by then; one thread at a time
//! sleeps in [`Baton::wait`] or [`Baton::watch`], and no lock is held while it is woken.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Rounds that a watch goes on for after the last laying down before it sleeps.
const QUIET: u32 = 20;

enum Place<T> {
    Lying(T),
    Held,
    Gone,
}

struct State<T> {
    place: Place<T>,
    /// When it was last laid down.
    since: Instant,
    /// Somebody sleeps until it is laid down, or gone.
    asleep: bool,
    /// Rounds of the watch since it was last laid down.
    quiet: u32,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A change of place is whole, or has not happened.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, place: Place<T>) {
        let mut state = self.lock();
        state.place = place;
        state.since = Instant::now();
        state.quiet = 0;
        let wake = std::mem::take(&mut state.asleep) || matches!(state.place, Place::Gone);
        drop(state);
        if wake {
            self.changed.notify_one();
        }
    }
}

impl<T> State<T> {
    fn take(&mut self) -> Option<T> {
        match std::mem::replace(&mut self.place, Place::Held) {
            Place::Lying(thing) => Some(thing),
            other => {
                self.place = other;
                None
            }
        }
    }
}

pub(crate) struct Baton<T>(Arc<Shared<T>>);

impl<T> Clone for Baton<T> {
    fn clone(&self) -> Self {
        Baton(Arc::clone(&self.0))
    }
}

/// The thing, in the hands of one thread. Dropped without [`Held::lay`], it is gone for all.
pub(crate) struct Held<T> {
    // In this order: dropped first, said to be gone then.
    pub(crate) thing: T,
    claim: Claim<T>,
}

struct Claim<T> {
    shared: Arc<Shared<T>>,
    laid: bool,
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        if !self.laid {
            self.shared.put(Place::Gone);
        }
    }
}

impl<T> Held<T> {
    pub(crate) fn lay(self) {
        let Held { thing, mut claim } = self;
        claim.laid = true;
        claim.shared.put(Place::Lying(thing));
    }

    /// The thing itself, which nobody takes up again.
    pub(crate) fn keep(self) -> T {
        self.thing
    }
}

impl<T> Baton<T> {
    /// It lies there.
    pub(crate) fn new(thing: T) -> Self {
        // The watch sleeps until it is laid down for the first time.
        let state = State { place: Place::Lying(thing), since: Instant::now(), asleep: false, quiet: QUIET };
        Baton(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }))
    }

    fn held(&self, thing: T) -> Held<T> {
        Held { thing, claim: Claim { shared: Arc::clone(&self.0), laid: false } }
    }

    /// None while somebody else has it, and when it is gone.
    pub(crate) fn take(&self) -> Option<Held<T>> {
        let thing = self.0.lock().take()?;
        Some(self.held(thing))
    }

    /// Waits until it lies there. None: it is gone.
    pub(crate) fn wait(&self) -> Option<Held<T>> {
        let mut state = self.0.lock();
        loop {
            if let Some(thing) = state.take() {
                drop(state);
                return Some(self.held(thing));
            }
            if let Place::Gone = state.place {
                return None;
            }
            state.asleep = true;
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls `overdue` whenever it has lain there for `patience`, until it is gone. Looks once in `patience` as long as it is in use,
    /// and sleeps when it has not been laid down for a while: who has nothing to do costs nothing.
    pub(crate) fn watch(&self, patience: Duration, overdue: impl Fn()) {
        let mut state = self.0.lock();
        loop {
            match state.place {
                Place::Gone => return,
                Place::Lying(_) if state.since.elapsed() >= patience => {
                    // Whoever was called has as long again.
                    state.since = Instant::now();
                    drop(state);
                    overdue();
                    state = self.0.lock();
                    continue;
                }
                Place::Held if state.quiet >= QUIET => {
                    state.asleep = true;
                    state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                Place::Lying(_) | Place::Held => {}
            }
            state.quiet = state.quiet.saturating_add(1);
            state = self.0.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn one_has_it_at_a_time() {
        let baton = Baton::new(1);
        let mut held = baton.take().unwrap();
        assert!(baton.take().is_none());
        held.thing += 1;
        held.lay();
        assert_eq!(baton.take().unwrap().thing, 2);
    }

    #[test]
    fn who_waits_gets_it_when_it_is_laid_down() {
        let baton = Baton::new(());
        let held = baton.take().unwrap();
        let other = baton.clone();
        let waits = std::thread::spawn(move || other.wait().is_some());
        held.lay();
        assert!(waits.join().unwrap());
    }

    #[test]
    fn it_is_gone_for_all_once_it_has_been_dropped() {
        struct Tells(mpsc::Sender<()>);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let (tell, told) = mpsc::channel();
        let baton = Baton::new(Tells(tell));
        let held = baton.take().unwrap();
        let other = baton.clone();
        // What it held is free when the waiter goes on.
        let waits = std::thread::spawn(move || other.wait().is_none() && told.try_recv().is_ok());
        drop(held);
        assert!(waits.join().unwrap());
        assert!(baton.take().is_none());
        baton.watch(LONG, || unreachable!());
    }

    #[test]
    fn who_keeps_it_ends_the_watch() {
        let baton = Baton::new(7);
        let other = baton.clone();
        let watches = std::thread::spawn(move || other.watch(LONG, || {}));
        assert_eq!(baton.take().unwrap().keep(), 7);
        watches.join().unwrap();
    }

    #[test]
    fn one_that_is_left_lying_is_called_for_until_somebody_takes_it() {
        let baton = Baton::new(());
        let calls = AtomicU32::new(0);
        baton.take().unwrap().lay();
        baton.watch(Duration::from_millis(1), || {
            // More often than it would look for one that is in use.
            if calls.fetch_add(1, Ordering::Relaxed) == 2 * QUIET {
                drop(baton.take());
            }
        });
        assert_eq!(calls.into_inner(), 2 * QUIET + 1);
    }
}
