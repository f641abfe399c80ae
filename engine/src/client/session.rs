//! The session of one client (Raft thesis §6.3): opened by the first command, numbers for the commands in it, and its end.
//!
//! Invariants: a number is given to one command only, and is the same each time that is sent; `first_open` never passes one that somebody
//! waits for; no number is given out that lies [`WINDOW`] or more above the lowest that is waited for.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{watch, Notify};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::attempts::{attempt, attempts, Errand, Progress};
use super::cluster::Cluster;
use crate::error::{Committed, Error, ErrorCode, Result};
use crate::locks::lock;
use crate::request::{InSession, Reply, Request, SESSION_WINDOW};

/// Numbers under way: above it the cluster would not take a command, since it keeps what each came to.
pub(super) const WINDOW: u64 = SESSION_WINDOW;
/// An opening that nobody waits for any more is given up after this, not at once: calls with short deadlines follow each other, and each
/// would begin another.
const UNWANTED: Duration = Duration::from_secs(2);
/// What saying that the session is over may take.
const FAREWELL: Duration = Duration::from_millis(300);

/// Which numbers of a session are taken.
#[derive(Debug)]
struct Window {
    next: u64,
    /// Given out and waited for.
    outstanding: BTreeSet<u64>,
    /// The cluster does not know the session any more.
    expired: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Number(u64),
    Full,
    Expired,
}

impl Window {
    fn first_open(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next)
    }

    fn take(&mut self) -> Taken {
        if self.expired {
            return Taken::Expired;
        }
        let number = self.next;
        if number >= self.first_open().saturating_add(WINDOW) {
            return Taken::Full;
        }
        self.next = number.saturating_add(1);
        self.outstanding.insert(number);
        Taken::Number(number)
    }
}

impl Default for Window {
    fn default() -> Self {
        Window { next: 1, outstanding: BTreeSet::new(), expired: false }
    }
}

/// A session that the cluster has opened.
pub(super) struct Open {
    session: u64,
    window: Mutex<Window>,
    /// Who waits for a number, in the order in which they came; the first looks at the window.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

impl Open {
    fn new(session: u64) -> Self {
        Open { session, window: Mutex::default(), turn: tokio::sync::Mutex::default(), changed: Notify::new() }
    }

    /// None: it has expired meanwhile.
    async fn take(self: &Arc<Self>) -> Option<Place> {
        let _turn = self.turn.lock().await;
        loop {
            match lock(&self.window).take() {
                Taken::Number(sequence) => return Some(Place { open: Arc::clone(self), sequence }),
                Taken::Expired => return None,
                Taken::Full => {}
            }
            self.changed.notified().await;
        }
    }
}

/// A command's number in its session; given back when nobody waits for the command any more.
pub(super) struct Place {
    open: Arc<Open>,
    sequence: u64,
}

impl Place {
    /// As it is sent now.
    pub(super) fn now(&self) -> InSession {
        let first_open = lock(&self.open.window).first_open();
        InSession { session: self.open.session, sequence: self.sequence, first_open }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.open.window).outstanding.remove(&self.sequence);
        self.open.changed.notify_one();
    }
}

/// An opening under way, shared by all who wait for it.
#[derive(Default)]
pub(super) struct Opening {
    outcome: watch::Sender<Option<Result<Arc<Open>>>>,
    pub(super) progress: Progress,
}

#[derive(Default)]
enum State {
    #[default]
    Closed,
    Opening(Arc<Opening>, AbortHandle),
    Open(Arc<Open>),
}

/// The session that a client's commands go through; another one takes its place when the cluster has forgotten it.
#[derive(Default)]
pub(super) struct Session {
    state: Mutex<State>,
}

impl Session {
    /// A number for a command, once there is a session and room in it. Errors: why there can be no session; the command was not sent.
    pub(super) async fn take(self: &Arc<Self>, cluster: &Arc<Cluster>) -> Result<Place> {
        loop {
            if let Some(place) = self.open(cluster).await?.take().await {
                return Ok(place);
            }
        }
    }

    /// The cluster does not know the session of this place any more. Of all who find that out the first counts.
    pub(super) fn expired(&self, place: &Place) {
        let mut state = lock(&self.state);
        if matches!(&*state, State::Open(open) if Arc::ptr_eq(open, &place.open)) {
            *state = State::Closed;
        }
        lock(&place.open.window).expired = true;
        place.open.changed.notify_one();
    }

    /// The opening under way, if any.
    pub(super) fn opening(&self) -> Option<Arc<Opening>> {
        match &*lock(&self.state) {
            State::Opening(opening, _) => Some(Arc::clone(opening)),
            _ => None,
        }
    }

    async fn open(self: &Arc<Self>, cluster: &Arc<Cluster>) -> Result<Arc<Open>> {
        let mut outcome = {
            let mut state = lock(&self.state);
            match &*state {
                State::Open(open) => return Ok(Arc::clone(open)),
                State::Opening(opening, _) => opening.outcome.subscribe(),
                State::Closed => {
                    let opening = Arc::<Opening>::default();
                    let outcome = opening.outcome.subscribe();
                    let task = open(Arc::clone(self), Arc::clone(cluster), Arc::clone(&opening));
                    *state = State::Opening(opening, tokio::spawn(task).abort_handle());
                    outcome
                }
            }
        };
        let result = outcome.wait_for(Option::is_some).await.ok().and_then(|result| result.clone());
        result.unwrap_or_else(|| Err(Error::not_done(ErrorCode::Closed, "the client was closed before this was sent")))
    }

    /// Tells the cluster that the session is not needed any more, if it can be told in a moment; otherwise it is forgotten there in time.
    pub(super) async fn close(&self, cluster: &Cluster) {
        let state = std::mem::take(&mut *lock(&self.state));
        match state {
            State::Closed => {}
            State::Opening(_, task) => task.abort(),
            State::Open(open) => {
                let (request, addr, progress) =
                    (Request::CloseSession(open.session), cluster.pick(), Progress::default());
                let _ = timeout(FAREWELL, attempt(cluster, &request, &addr, None, Some(FAREWELL), &progress)).await;
            }
        }
    }
}

/// Opens a session, for as long as anybody waits for it.
async fn open(session: Arc<Session>, cluster: Arc<Cluster>, opening: Arc<Opening>) {
    let unwanted = async {
        loop {
            opening.outcome.closed().await;
            sleep(UNWANTED).await;
            // Whoever comes now waits for this one, or, if it is given up here, begins another.
            let mut state = lock(&session.state);
            if opening.outcome.is_closed() {
                *state = State::Closed;
                return;
            }
        }
    };
    let result = tokio::select! {
        biased;
        result = attempts(&cluster, &Errand::OpenSession, None, &opening.progress) => result,
        () = unwanted => return,
    };
    let result = match result {
        Ok(Reply::Session(number)) => Ok(Arc::new(Open::new(number))),
        Ok(_) => Err(Error::not_done(ErrorCode::Internal, "what was answered is no session")),
        // Whatever became of the session: of the command nothing was sent.
        Err(error) => Err(Error { committed: Committed::No, ..error }),
    };
    let result = result.map_err(|error: Error| {
        let message = format!("no session for this client: {}", error.message);
        Error { message, ..error }
    });
    *lock(&session.state) = match &result {
        Ok(open) => State::Open(Arc::clone(open)),
        Err(_) => State::Closed,
    };
    opening.outcome.send_replace(Some(result));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(window: &mut Window, count: u64) {
        for _ in 0..count {
            assert!(matches!(window.take(), Taken::Number(_)));
        }
    }

    #[test]
    fn numbers_are_given_out_in_order_and_never_again() {
        let mut window = Window::default();
        for number in 1..=10 {
            assert_eq!(window.take(), Taken::Number(number));
            window.outstanding.remove(&number);
        }
        assert_eq!((window.take(), window.first_open()), (Taken::Number(11), 11));
    }

    #[test]
    fn the_first_open_number_is_the_lowest_that_is_waited_for() {
        let mut window = Window::default();
        assert_eq!(window.first_open(), 1);
        taken(&mut window, 5);
        for (ended, first_open) in [(2, 1), (1, 3), (4, 3), (3, 5), (5, 6)] {
            window.outstanding.remove(&ended);
            assert_eq!(window.first_open(), first_open, "after {ended}");
        }
    }

    #[test]
    fn the_window_lies_above_the_lowest_that_is_waited_for() {
        let mut window = Window::default();
        taken(&mut window, WINDOW);
        assert_eq!(window.take(), Taken::Full);
        for later in 2..=WINDOW {
            window.outstanding.remove(&later);
            assert_eq!(window.take(), Taken::Full, "{later}");
        }
        window.outstanding.remove(&1);
        taken(&mut window, WINDOW);
        assert_eq!(window.take(), Taken::Full);
    }

    #[test]
    fn one_that_has_expired_gives_out_no_more_numbers() {
        let mut window = Window::default();
        taken(&mut window, WINDOW);
        window.expired = true;
        assert_eq!(window.take(), Taken::Expired);
    }

    #[test]
    fn of_all_places_of_a_forgotten_session_the_first_brings_about_another() {
        let session = Session::default();
        let place = |open: &Arc<Open>, sequence| Place { open: Arc::clone(open), sequence };
        let (first, second) = (Arc::new(Open::new(7)), Arc::new(Open::new(8)));
        *lock(&session.state) = State::Open(Arc::clone(&first));
        session.expired(&place(&first, 1));
        assert!(matches!(*lock(&session.state), State::Closed));
        *lock(&session.state) = State::Open(Arc::clone(&second));
        session.expired(&place(&first, 2));
        assert!(matches!(&*lock(&session.state), State::Open(open) if Arc::ptr_eq(open, &second)));
    }
}
