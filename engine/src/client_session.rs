//! A client's session with the cluster (Raft thesis §6.3): which commands are under way, and how the next one is named.
//!
//! ```text
//!                    open            first_open = the lowest of them
//!   number 1 2 3 4 5 6 7 …           a number is given once, and leaves when its call ends, however that was
//!          · · x · x x               3, 5 and 6 are waited for; the cluster keeps what they came to, and nothing of 1, 2 and 4
//! ```
//!
//! Invariant: a command is sent under one name only, and under no other once one of its sendings may have been taken.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::locks::lock;
use crate::request::{InSession, SESSION_WINDOW};

#[derive(Default)]
struct State {
    session: Option<u64>,
    next: u64,
    /// (session, sequence) of what is under way: some may be of a session before this one.
    open: BTreeSet<(u64, u64)>,
}

#[derive(Default)]
pub(crate) struct ClientSession {
    state: Mutex<State>,
    /// Somebody has left.
    left: Notify,
    /// Held by the one who opens it; the others wait for the same.
    opening: tokio::sync::Mutex<()>,
}

/// One command's name, for as long as it is waited for.
pub(crate) struct Seat {
    session: u64,
    sequence: u64,
    of: Arc<ClientSession>,
}

impl ClientSession {
    /// The session's number, if one is open.
    pub fn number(&self) -> Option<u64> {
        lock(&self.state).session
    }

    /// The number, opened by `open` if there is none; whoever comes meanwhile waits for the same.
    pub async fn opened<E>(&self, open: impl AsyncFnOnce() -> Result<u64, E>) -> Result<u64, E> {
        if let Some(session) = self.number() {
            return Ok(session);
        }
        let _opening = self.opening.lock().await;
        if let Some(session) = self.number() {
            return Ok(session);
        }
        let session = open().await?;
        let mut state = lock(&self.state);
        (state.session, state.next) = (Some(session), 0);
        Ok(session)
    }

    /// The cluster does not know this one any more: the next command opens another.
    pub fn expired(&self, session: u64) {
        lock(&self.state).session.take_if(|open| *open == session);
    }

    /// A name in this session; `None` if it is not the open one any more.
    pub fn seat(self: &Arc<Self>, session: u64) -> Option<Seat> {
        let mut state = lock(&self.state);
        if state.session != Some(session) {
            return None;
        }
        state.next = state.next.saturating_add(1);
        let sequence = state.next;
        state.open.insert((session, sequence));
        Some(Seat { session, sequence, of: Arc::clone(self) })
    }
}

impl Seat {
    pub fn session(&self) -> u64 {
        self.session
    }

    /// How the command is named when it is sent now.
    pub fn place(&self) -> InSession {
        let state = lock(&self.of.state);
        let first = state.open.range((self.session, 0)..).next().map_or(self.sequence, |(_, sequence)| *sequence);
        InSession { session: self.session, sequence: self.sequence, first_open: first }
    }

    /// Waits until the cluster can keep it apart from those before it.
    pub async fn turn(&self) {
        loop {
            let left = self.of.left.notified();
            let mut left = std::pin::pin!(left);
            // Before the look: nobody leaves unheard in between.
            left.as_mut().enable();
            let InSession { sequence, first_open, .. } = self.place();
            if sequence.saturating_sub(first_open) < SESSION_WINDOW {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.of.state).open.remove(&(self.session, self.sequence));
        self.of.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn a_command_is_named_by_its_number_and_by_the_lowest_that_is_waited_for() {
        runtime().block_on(async {
            let session = Arc::new(ClientSession::default());
            assert_eq!(session.opened(async || Ok::<u64, ()>(7)).await, Ok(7));
            let mut seats: Vec<Option<Seat>> = (0..4).map(|_| session.seat(7)).collect();
            let place = |seat: &Option<Seat>| seat.as_ref().map(|seat| seat.place());
            let named = |sequence, first_open| Some(InSession { session: 7, sequence, first_open });
            assert_eq!(place(&seats[2]), named(3, 1));
            seats[1] = None;
            assert_eq!(place(&seats[2]), named(3, 1));
            seats[0] = None;
            assert_eq!(place(&seats[2]), named(3, 3));
            assert_eq!(place(&session.seat(7)), named(5, 3));
            session.expired(6);
            assert_eq!(session.number(), Some(7));
            session.expired(7);
            assert!(session.number().is_none() && session.seat(7).is_none());
            // Another one begins anew, beside what is still under way in the one before.
            assert_eq!(session.opened(async || Ok::<u64, ()>(9)).await, Ok(9));
            assert_eq!(place(&session.seat(9)), Some(InSession { session: 9, sequence: 1, first_open: 1 }));
            assert_eq!(place(&seats[3]), named(4, 3));
        });
    }

    #[test]
    fn one_opens_it_for_all_and_the_next_one_if_that_fails() {
        runtime().block_on(async {
            let session = Arc::new(ClientSession::default());
            let slow = async |result: Result<u64, &'static str>| {
                tokio::time::sleep(Duration::from_millis(20)).await;
                result
            };
            let (first, second, third) = tokio::join!(
                session.opened(async || slow(Err("no leader")).await),
                session.opened(async || slow(Ok(5)).await),
                session.opened(async || slow(Ok(6)).await),
            );
            assert_eq!((first, second, third), (Err("no leader"), Ok(5), Ok(5)));
        });
    }

    #[test]
    fn who_is_too_far_above_the_lowest_waits_until_that_one_has_ended() {
        runtime().block_on(async {
            let session = Arc::new(ClientSession::default());
            session.opened(async || Ok::<u64, ()>(7)).await.unwrap();
            let mut seats: Vec<Seat> = (0..=SESSION_WINDOW).map(|_| session.seat(7).unwrap()).collect();
            let last = seats.pop().unwrap();
            seats.last().unwrap().turn().await;
            assert!(tokio::time::timeout(Duration::from_millis(50), last.turn()).await.is_err());
            let ((), ()) = tokio::join!(last.turn(), async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(seats.remove(0));
            });
        });
    }
}
