//! The way from a node's handles to its driver: what may be put in, and how the last of it is taken out.
//!
//! Lives here: acceptance, its bounds, and its end. May not live here: what an input means.
//!
//! Invariants: what was accepted is seen by the driver, or is among [`last`]: never neither, never both (the promise of exactly one
//! completion stands on it); what was refused reaches nobody.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::core::SnapshotFile;
use crate::entry::Entry;
use crate::error::{Error, ErrorCode, Result};
use crate::machine::MachineAnswer;
use crate::request::{Completion, Request, Ticket, Timeout, Token};

/// What the driver hears from this process.
pub(crate) enum Input {
    Request {
        token: Token,
        request: Request,
        timeout: Timeout,
    },
    Proposals {
        proposals: Vec<(Token, Bytes)>,
        timeout: Timeout,
    },
    Reads {
        tokens: Vec<Token>,
        timeout: Timeout,
    },
    Join {
        token: Token,
        ticket: Ticket,
        timeout: Timeout,
    },
    JoinFailed {
        token: Token,
        error: Error,
    },
    Answer(MachineAnswer),
    /// All of its state was given, or why not.
    SnapshotWhole {
        id: u64,
        result: Result<(), String>,
    },
    SnapshotDone {
        id: u64,
        result: Result<SnapshotFile, String>,
    },
    Written(u64),
    Fetched {
        id: u64,
        entries: Vec<Entry>,
    },
    /// The disk has failed: the node ends (S10).
    DiskFailed(Error),
    Panicked(String),
    Close(Duration),
    /// Runs on the driver, as if it were these requests; a test's way to make it wait or break.
    #[cfg(test)]
    Run(Vec<Token>, Box<dyn FnOnce() + Send>),
}

impl Input {
    /// Those that wait for a completion of it.
    pub(crate) fn tokens(&self, waiting: &mut Vec<Token>) {
        match self {
            Input::Request { token, .. } | Input::Join { token, .. } => waiting.push(*token),
            Input::Proposals { proposals, .. } => waiting.extend(proposals.iter().map(|(token, _)| *token)),
            Input::Reads { tokens, .. } => waiting.extend(tokens),
            #[cfg(test)]
            Input::Run(tokens, _) => waiting.extend(tokens),
            _ => {}
        }
    }
}

/// How much may wait for the driver (rules, F4).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub requests: u64,
    pub bytes: u64,
}

/// What handles and driver both know of the inbox.
#[derive(Default)]
pub(crate) struct Door {
    /// Requests and their bytes that the driver has not seen yet.
    queued: AtomicU64,
    queued_bytes: AtomicU64,
    closing: AtomicBool,
}

impl Door {
    /// The driver has seen them.
    pub(crate) fn taken(&self, requests: u64, bytes: u64) {
        self.queued.fetch_sub(requests, Ordering::AcqRel);
        self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// No request is accepted from now on. One that was let in before may still be on its way.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

fn closed() -> Error {
    Error::not_done(ErrorCode::Closed, "the node is closed")
}

/// The handles' side; any thread.
pub(crate) struct Inbox {
    inputs: mpsc::UnboundedSender<Input>,
    door: Arc<Door>,
    bounds: Bounds,
}

impl Inbox {
    pub(crate) fn new(inputs: mpsc::UnboundedSender<Input>, door: Arc<Door>, bounds: Bounds) -> Self {
        Inbox { inputs, door, bounds }
    }

    pub(crate) fn send(&self, input: Input) -> Result<()> {
        // While a node closes its machine may still answer: what it has applied is no longer lost on its proposer.
        let answer = matches!(
            input,
            Input::Close(_) | Input::Answer(_) | Input::SnapshotWhole { .. } | Input::SnapshotDone { .. }
        );
        if self.door.closing.load(Ordering::Acquire) && !answer {
            return Err(closed());
        }
        self.inputs.send(input).map_err(|_| closed())
    }

    /// Accepts `requests` requests of `bytes` bytes in one input. Past the bounds they fail at once (rules, F4).
    pub(crate) fn submit(&self, input: Input, requests: u64, bytes: u64) -> Result<()> {
        let queued = self.door.queued.fetch_add(requests, Ordering::AcqRel).saturating_add(requests);
        let queued_bytes = self.door.queued_bytes.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        if queued > self.bounds.requests.max(requests) || queued_bytes > self.bounds.bytes.max(bytes) {
            self.door.taken(requests, bytes);
            return Err(Error::not_done(
                ErrorCode::Overloaded,
                format!("{queued} requests of {queued_bytes} bytes wait for this node already; try again later"),
            ));
        }
        self.send(input).inspect_err(|_| self.door.taken(requests, bytes))
    }

    /// Asks the driver to end the node.
    pub(crate) fn close(&self, timeout: Duration) {
        // Already closed: nothing to end.
        let _ = self.send(Input::Close(timeout));
        self.door.close();
    }
}

/// The driver's last look: nothing is accepted any more, and whatever was accepted and not seen ends as `Closed`. `unseen`: what it has
/// taken out already and not looked at.
pub(crate) async fn last(
    unseen: Vec<Input>,
    mut inputs: mpsc::UnboundedReceiver<Input>,
    door: &Door,
) -> Vec<Completion> {
    door.close();
    inputs.close();
    let mut late = Vec::new();
    unseen.iter().for_each(|input| input.tokens(&mut late));
    // `recv`, not `try_recv`: that says "empty" also while a sender that was let in before the close has not laid its message
    // down yet, and its request would never complete.
    while let Some(input) = inputs.recv().await {
        input.tokens(&mut late);
    }
    late.into_iter().map(|token| Completion { token, result: Err(closed()) }).collect()
}
