//! One errand, sent until there is an answer that is final, and what all its sendings together say of it.
//!
//! Invariants (S15): what counts each time is not sent again unless it certainly was not carried out; and once a sending of a command was in
//! doubt, no later one makes it certainly not done.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout, Instant};

use super::cluster::Cluster;
use super::session::Place;
use super::{for_the_node, was_removed};
use crate::error::{Committed, Error, ErrorCode, Result};
use crate::locks::lock;
use crate::request::{Reply, Request};
use crate::transport::ask::{ask, changes_nothing, Sent};
use crate::transport::dial::jitter;

pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(20);
pub(super) const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// What one node is given for an errand that may be sent again, before the next is asked; twice as much each time, so that a cluster that
/// is merely slow is not buried under repetitions.
const ONE_ATTEMPT: Duration = Duration::from_millis(1500);
/// And what its way there may take, for each byte of a command.
const ONE_BYTE: Duration = Duration::from_micros(1);

/// What is asked, and how often that may be.
pub(super) enum Errand<'a> {
    /// Done as often as it is carried out: sent again only if it certainly was not.
    CountsEachTime(&'a Request),
    /// A command that its session makes count once: sent again until it is known what it came to.
    InSession(&'a Place, &'a Bytes),
    /// A session that nobody uses does no harm: the cluster forgets it in time.
    OpenSession,
}

impl Errand<'_> {
    /// As it is sent now.
    fn request(&self) -> Cow<'_, Request> {
        match self {
            Errand::CountsEachTime(request) => Cow::Borrowed(request),
            Errand::InSession(place, data) => Cow::Owned(Request::ProposeInSession(place.now(), Bytes::clone(data))),
            Errand::OpenSession => Cow::Owned(Request::OpenSession),
        }
    }

    /// What the first attempt is given; none: as long as there is.
    fn patience(&self) -> Option<Duration> {
        match self {
            Errand::CountsEachTime(_) => None,
            Errand::InSession(_, data) => {
                let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
                Some(ONE_ATTEMPT.saturating_add(ONE_BYTE.saturating_mul(bytes)))
            }
            Errand::OpenSession => Some(ONE_ATTEMPT),
        }
    }

    fn counts_once(&self) -> bool {
        !matches!(self, Errand::CountsEachTime(_))
    }

    /// Another attempt may come to something better than this.
    fn goes_on_after(&self, error: &Error) -> bool {
        match error.committed {
            Committed::No => error.retryable() && error.code != ErrorCode::Membership,
            Committed::Unknown => self.counts_once() && !error.lasting,
            // Asked again for what it came to.
            Committed::Yes => self.counts_once() && !error.lasting && error.code != ErrorCode::ApplyFailed,
        }
    }
}

/// What is known of an errand so far, for the one who has to end it.
#[derive(Default)]
pub(super) struct Progress {
    /// Somebody is being asked, or was.
    begun: AtomicBool,
    /// Of the attempt under way.
    sent: Mutex<Sent>,
    /// What those before it say of the command. None: nothing, it was certainly not done by them.
    earlier: Mutex<Option<Committed>>,
    /// Why the last attempt came to nothing.
    last: Mutex<Option<Error>>,
}

impl Progress {
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    pub(super) fn is_sent(&self) -> bool {
        lock(&self.sent).get()
    }

    pub(super) fn last(&self) -> Option<Error> {
        lock(&self.last).clone()
    }

    /// Of all attempts before the one under way.
    pub(super) fn earlier(&self) -> Committed {
        lock(&self.earlier).unwrap_or(Committed::No)
    }

    /// Of all attempts, if it ends now.
    pub(super) fn committed(&self) -> Committed {
        match self.is_sent() {
            true => self.earlier().and(Committed::Unknown),
            false => self.earlier(),
        }
    }

    fn attempt_failed(&self, error: &Error) {
        let known = self.earlier().and(error.committed);
        *lock(&self.earlier) = Some(known);
        *lock(&self.sent) = Sent::default();
    }

    /// The last answer, as that of all attempts.
    fn settled(&self, result: Result<Reply>) -> Result<Reply> {
        result.map_err(|mut error| {
            *lock(&self.sent) = Sent::default();
            let all = self.earlier().and(error.committed);
            if all != error.committed {
                let more = match all {
                    Committed::Yes => "it was carried out when it was sent before",
                    _ => "it was sent before, and that may still be carried out",
                };
                error.message = format!("{}; {more}", error.message);
                error.committed = all;
            }
            error
        })
    }
}

/// Asks until there is an answer that is final.
pub(super) async fn attempts(
    cluster: &Cluster,
    errand: &Errand<'_>,
    deadline: Option<Instant>,
    progress: &Progress,
) -> Result<Reply> {
    progress.begun.store(true, Ordering::Relaxed);
    progress.settled(until_final(cluster, errand, deadline, progress).await)
}

async fn until_final(
    cluster: &Cluster,
    errand: &Errand<'_>,
    deadline: Option<Instant>,
    progress: &Progress,
) -> Result<Reply> {
    let mut backoff = BACKOFF_MIN;
    let mut patience = errand.patience();
    // Moves to another node that cost no waiting: each address once, then patience.
    let mut free = cluster.addrs.len().max(3);
    // Who was removed and still runs; nobody else has answered since.
    let mut gone: HashSet<String> = HashSet::new();
    loop {
        let addr = cluster.pick();
        let error = match attempt(cluster, &errand.request(), &addr, deadline, patience, progress).await {
            Err(error) if errand.goes_on_after(&error) => error,
            // One node's certificate is not all of theirs; but what is wrong here does not pass by waiting.
            Err(error) if error.code == ErrorCode::Tls && cluster.addrs.len() > 1 && free > 0 => error,
            Err(error) if was_removed(&error) => {
                gone.insert(addr.clone());
                if cluster.addrs.iter().all(|addr| gone.contains(addr)) {
                    return Err(error);
                }
                error
            }
            result => return result,
        };
        progress.attempt_failed(&error);
        let moved = match (error.code, &error.leader) {
            (ErrorCode::NotLeader | ErrorCode::NoLeader | ErrorCode::LeadershipLost, Some((_, leader)))
                if cluster.follow(&addr, leader) =>
            {
                true
            }
            // A leader that is paused or cut off: the others replace it.
            (ErrorCode::Timeout, _) if errand.counts_once() => {
                patience = patience.map(|patience| patience.saturating_mul(2));
                cluster.avoid(&addr);
                cluster.addrs.len() > 1
            }
            (ErrorCode::Overloaded | ErrorCode::Timeout | ErrorCode::ResultLost, _) => false,
            _ => {
                cluster.leave(&addr);
                cluster.addrs.len() > 1
            }
        };
        match error.code {
            // That somebody was removed says more than that the others cannot be reached.
            ErrorCode::ConnectionFailed if !gone.is_empty() => {}
            _ => {
                if error.code != ErrorCode::Removed {
                    gone.clear();
                }
                *lock(&progress.last) = Some(error);
            }
        }
        if moved && free > 0 {
            free = free.saturating_sub(1);
            continue;
        }
        sleep(jitter(backoff)).await;
        backoff = backoff.saturating_mul(2).min(BACKOFF_MAX);
    }
}

/// Asks one node once. `patience`: how long it may take with its answer.
pub(super) async fn attempt(
    cluster: &Cluster,
    request: &Request,
    addr: &str,
    deadline: Option<Instant>,
    patience: Option<Duration>,
    progress: &Progress,
) -> Result<Reply> {
    let (number, channel) = cluster.channel(addr).await?;
    let sent = lock(&progress.sent).clone();
    let until = patience.and_then(|patience| Instant::now().checked_add(patience));
    let until = until.into_iter().chain(deadline).min();
    let asked = ask(channel, request, until.map(for_the_node), &sent);
    let result = match patience {
        Some(patience) => {
            timeout(patience, asked).await.unwrap_or_else(|_| Err(unanswered(addr, patience, &sent, request)))
        }
        None => asked.await,
    };
    match &result {
        Err(error) if error.code == ErrorCode::ConnectionFailed => {
            cluster.forget(addr, number).await;
            // Whoever cannot be reached leads nobody; also when this request may not be sent again.
            cluster.leave(addr);
        }
        Err(_) => {}
        Ok(_) => cluster.trust(addr),
    }
    result
}

fn unanswered(addr: &str, patience: Duration, sent: &Sent, request: &Request) -> Error {
    let committed = if sent.get() && !changes_nothing(request) { Committed::Unknown } else { Committed::No };
    Error::new(ErrorCode::Timeout, committed, format!("{addr} has not answered within {patience:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_once_is_asked_again_until_its_fate_is_known() {
        use ErrorCode::*;
        let new = Error::new;
        let table = [
            // error, sent again: where it counts each time, where it counts once
            (new(NotLeader, Committed::No, ""), true, true),
            (new(Overloaded, Committed::No, ""), true, true),
            (new(ConnectionFailed, Committed::No, ""), true, true),
            (new(Timeout, Committed::No, ""), true, true),
            (new(LeadershipLost, Committed::Unknown, ""), false, true),
            (new(ConnectionFailed, Committed::Unknown, ""), false, true),
            (new(Timeout, Committed::Unknown, ""), false, true),
            (new(Closed, Committed::Unknown, ""), false, true),
            (new(Storage, Committed::Unknown, ""), false, true),
            (new(ResultLost, Committed::Yes, ""), false, true),
            (new(Timeout, Committed::Yes, ""), false, true),
            (new(ResultLost, Committed::Yes, "").lasting(), false, false),
            (new(ApplyFailed, Committed::Yes, ""), false, false),
            (new(SessionExpired, Committed::No, "").lasting(), false, false),
            (new(SessionExpired, Committed::Unknown, "").lasting(), false, false),
            (new(ProposalTooLarge, Committed::No, ""), false, false),
            (new(InvalidArgument, Committed::No, ""), false, false),
            (new(Tls, Committed::No, ""), false, false),
        ];
        for (error, each_time, once) in table {
            assert_eq!(Errand::CountsEachTime(&Request::StepDown).goes_on_after(&error), each_time, "{error:?}");
            assert_eq!(Errand::OpenSession.goes_on_after(&error), once, "{error:?}");
        }
    }

    #[test]
    fn a_doubt_stays_whatever_comes_later_and_what_is_known_to_be_done_stays_done() {
        use Committed::*;
        for (attempts, last, all) in [
            (&[][..], No, No),
            (&[No, No], No, No),
            (&[No], Unknown, Unknown),
            (&[Unknown, No], No, Unknown),
            (&[Unknown, Yes, No], Unknown, Yes),
            (&[Unknown, No], Yes, Yes),
        ] {
            let progress = Progress::default();
            for committed in attempts {
                progress.attempt_failed(&Error::new(ErrorCode::Timeout, *committed, ""));
            }
            let result = progress.settled(Err(Error::new(ErrorCode::Overloaded, last, "full")));
            assert_eq!(result.unwrap_err().committed, all, "{attempts:?} {last:?}");
        }
    }
}
