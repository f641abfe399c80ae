//! A request body with a gate in front: what a stranger may make us hold.
//!
//! tonic's limit of a stream is fixed at its start and it reserves what a message announces. So the gate reads the first
//! announcement itself: before a greeting is accepted only [`GREETING`] bytes pass; a call's bytes are booked as a whole.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::Status;

use super::refuse;
use crate::error::ErrorCode;

/// Bytes that a stream may send before its greeting was accepted.
pub const GREETING: usize = 64 << 10;
/// gRPC's prefix: compressed or not, length.
const PREFIX: usize = 5;
/// Booked for each call beside its bytes, as soon as its headers are there: those that are empty, or never go on, are bounded in number too.
pub const PER_CALL: u32 = 1024;

/// The budget of calls is used up.
pub fn overloaded() -> Status {
    refuse(ErrorCode::Overloaded, "this node holds as many bytes of client calls as it may; try later")
}

/// Who decides what may pass.
pub enum Rule {
    /// Little, until the flag is set.
    Greeting(Arc<AtomicBool>),
    /// One message of at most `max`; its bytes are taken from the budget and given back with the slot.
    Call { max: usize, budget: Arc<Semaphore>, slot: Arc<OnceLock<OwnedSemaphorePermit>> },
}

pub struct Gate {
    inner: tonic::body::Body,
    rule: Rule,
    seen: usize,
    prefix: Vec<u8>,
    announced: Option<usize>,
    /// Until the whole of a call has arrived.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Gate {
    pub fn greeting(inner: tonic::body::Body, open: Arc<AtomicBool>) -> Self {
        Self::new(inner, Rule::Greeting(open), None)
    }

    pub fn call(
        inner: tonic::body::Body,
        max: usize,
        budget: Arc<Semaphore>,
        slot: Arc<OnceLock<OwnedSemaphorePermit>>,
        within: Duration,
    ) -> Self {
        Self::new(inner, Rule::Call { max, budget, slot }, Some(Box::pin(tokio::time::sleep(within))))
    }

    fn new(inner: tonic::body::Body, rule: Rule, deadline: Option<Pin<Box<Sleep>>>) -> Self {
        Gate { inner, rule, seen: 0, prefix: Vec::with_capacity(PREFIX), announced: None, deadline }
    }

    /// Looks at the next bytes and says whether they may pass.
    fn admit(&mut self, data: &[u8]) -> Result<(), Status> {
        if let Rule::Greeting(open) = &self.rule {
            if open.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        self.seen = self.seen.saturating_add(data.len());
        if self.announced.is_none() {
            let missing = PREFIX.saturating_sub(self.prefix.len());
            self.prefix.extend(data.iter().take(missing));
            if let [_, a, b, c, d] = self.prefix[..] {
                let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                self.announced = Some(length);
                self.announce(length)?;
            }
        }
        match &self.rule {
            Rule::Greeting(_) if self.seen > GREETING => Err(Status::permission_denied("too much before the greeting")),
            Rule::Call { .. } if self.announced.is_some_and(|n| self.seen > n.saturating_add(PREFIX)) => {
                Err(refuse(ErrorCode::InvalidArgument, "more than one message in a call"))
            }
            _ => Ok(()),
        }
    }

    fn announce(&mut self, length: usize) -> Result<(), Status> {
        match &self.rule {
            Rule::Greeting(_) if length > GREETING => Err(Status::permission_denied("the greeting is too long")),
            Rule::Greeting(_) => Ok(()),
            Rule::Call { max, .. } if length > *max => Err(refuse(
                ErrorCode::ProposalTooLarge,
                &format!(
                    "a call of {length} bytes is above the {max} that this node takes (its max_proposal_size and what goes around a \
                     command); split the command, or raise max_proposal_size on every node"
                ),
            )),
            Rule::Call { budget, slot, .. } => {
                let cost = u32::try_from(length).unwrap_or(u32::MAX);
                let permit = Arc::clone(budget).try_acquire_many_owned(cost).map_err(|_| overloaded())?;
                let _ = slot.set(permit);
                Ok(())
            }
        }
    }
}

impl http_body::Body for Gate {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let data = data.clone();
                    if let Err(status) = self.admit(&data) {
                        return Poll::Ready(Some(Err(status)));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => {
                if self.deadline.as_mut().is_none_or(|deadline| deadline.as_mut().poll(cx).is_pending()) {
                    return Poll::Pending;
                }
                self.deadline = None;
                Poll::Ready(Some(Err(refuse(ErrorCode::ConnectionFailed, "the call did not arrive in time"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What gRPC puts before a message of so many bytes.
    fn prefix(length: usize) -> Vec<u8> {
        [&[0], &(length as u32).to_be_bytes()[..]].concat()
    }

    fn code(admitted: Result<(), Status>) -> Option<ErrorCode> {
        ErrorCode::from_i32(admitted.err()?.metadata().get(crate::transport::REFUSED)?.to_str().ok()?.parse().ok()?)
    }

    #[test]
    fn a_greeting_that_is_too_long_is_refused_as_soon_as_it_is_announced() {
        for (length, passes) in [(GREETING, true), (GREETING + 1, false), (u32::MAX as usize, false)] {
            for piece in 1..=PREFIX {
                let mut gate = Gate::greeting(tonic::body::Body::empty(), Arc::default());
                let bytes = prefix(length);
                let admitted: Result<Vec<()>, Status> = bytes.chunks(piece).map(|piece| gate.admit(piece)).collect();
                assert_eq!(admitted.is_ok(), passes, "{length} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn no_more_than_a_greeting_passes_before_it_is_accepted() {
        let open = Arc::new(AtomicBool::new(false));
        let mut gate = Gate::greeting(tonic::body::Body::empty(), Arc::clone(&open));
        gate.admit(&prefix(10)).unwrap();
        gate.admit(&vec![0; GREETING - PREFIX]).unwrap();
        assert!(gate.admit(&[0]).is_err());
        open.store(true, Ordering::Relaxed);
        gate.admit(&vec![0; 2 * GREETING]).unwrap();
    }

    fn call(
        budget: &Arc<Semaphore>,
        slot: &Arc<OnceLock<OwnedSemaphorePermit>>,
        within: Duration,
        body: Silent,
    ) -> Gate {
        let body = tonic::body::Body::new(body);
        Gate::call(body, 1000, Arc::clone(budget), Arc::clone(slot), within)
    }

    /// Sends nothing and does not end.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[test]
    fn a_call_is_one_message_that_is_booked_as_a_whole_until_it_is_answered() {
        crate::transport::tests::run(async {
            let budget = Arc::new(Semaphore::new(1500));
            for (story, bytes, refused) in [
                ("one message", [prefix(1000), vec![0; 1000]].concat(), None),
                ("more than is taken", prefix(1001), Some(ErrorCode::ProposalTooLarge)),
                ("more than one", [prefix(10), vec![0; 11]].concat(), Some(ErrorCode::InvalidArgument)),
            ] {
                let mut gate = call(&budget, &Arc::default(), Duration::from_secs(60), Silent);
                assert_eq!(code(gate.admit(&bytes)), refused, "{story}");
                drop(gate);
                assert_eq!(budget.available_permits(), 1500, "{story}");
            }
            let slot = Arc::default();
            let mut first = call(&budget, &slot, Duration::from_secs(60), Silent);
            first.admit(&prefix(1000)).unwrap();
            drop(first);
            // Its bytes are decoded, and wait for the answer.
            let mut second = call(&budget, &Arc::default(), Duration::from_secs(60), Silent);
            assert_eq!(code(second.admit(&prefix(501))), Some(ErrorCode::Overloaded));
            drop(slot);
            call(&budget, &Arc::default(), Duration::from_secs(60), Silent).admit(&prefix(501)).unwrap();
        });
    }

    #[test]
    fn a_call_that_does_not_go_on_is_given_up() {
        crate::transport::tests::run(async {
            let mut gate = call(&Arc::new(Semaphore::new(1)), &Arc::default(), Duration::ZERO, Silent);
            let end = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut gate), cx)).await;
            let refused = end.and_then(Result::err).map(Err);
            assert_eq!(refused.and_then(code), Some(ErrorCode::ConnectionFailed));
        });
    }
}
