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
