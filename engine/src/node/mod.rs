//! The node on its threads: the shell that carries out what the core asks for.
//!
//! ```text
//!   any thread ──Input──► driver task ◄──Incoming── transport        (the runtime, shared)
//!                          │  ▲  │
//!              LogWrite ───┘  │  └─── Work ──► worker thread          (reads entries, finishes and prunes snapshot files)
//!                 ▼           │                    │
//!             log thread ─────┴────────────────────┘
//! ```
//!
//! A node that only waits for its disk writes on the runtime's own thread (`log_writer`).
//!
//! Lives here: threads, channels, clocks, files by name. May not live here: any rule of Raft.
//!
//! Invariants: the core is touched by the driver alone; one transaction and one sync for all writes that wait (rules, F3); a
//! panic in the core stops this node, and only it (rules, P7); `closed` is the last thing a sink hears.

mod driver;
mod inbox;
mod log_writer;
mod open;
mod snapshot_io;
mod threads;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::cluster::NodeId;
use crate::config::Config;
use crate::error::{Error, ErrorCode, Result};
use crate::locks::lock;
use crate::machine::{MachineAnswer, MachineRequest};
use crate::request::{Completion, Request, Ticket, Timeout, Token};
use crate::runtime::Runtime;
use crate::status::{Event, Role, Status};
use inbox::{Bounds, Door, Inbox, Input};
use open::Opened;
use snapshot_io::SnapshotFiles;

/// Something worth a line in a log.
#[derive(Clone, Debug)]
pub struct LogRecord {
    pub level: slog::Level,
    /// `raft`, `storage` or `transport`.
    pub target: &'static str,
    pub message: String,
    pub node_id: NodeId,
    pub term: u64,
}

/// Receives what a node has to say. Called from the node's threads, never two at a time for one kind; must not block, must not panic.
pub trait Sink: Send + Sync + 'static {
    /// All that has completed in one turn of the driver.
    fn completions(&self, batch: Vec<Completion>);
    /// The next thing for the state machine to do, in log order.
    fn machine(&self, request: MachineRequest);
    fn event(&self, event: Event);
    fn log(&self, record: LogRecord);
    /// Records below this level are not made.
    fn log_level(&self) -> slog::Level;
    /// The snapshot is restored and the node listens at this address; said once.
    fn started(&self, addr: &str);
    /// The last call: `Ok` after `close`, otherwise what ended the node.
    fn closed(&self, why: Result<(), Error>);
}

/// What a node is made of.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub config: Config,
    pub node_id: NodeId,
    /// host:port that the others dial.
    pub raft_addr: String,
    /// The initial members, or contacts: with oneself among them the cluster is founded, without it is joined.
    pub peers: Option<BTreeMap<NodeId, String>>,
    /// Of a state machine that is durable by itself: it has applied everything up to this index, and has that on its disk. It is told
    /// what comes after it. `None`: it starts empty, and is told everything.
    pub machine_applied: Option<u64>,
}

/// Tokens from here on are the shell's own.
pub(crate) const FIRST_INTERNAL_TOKEN: Token = 1 << 63;

/// What the handles and the driver share.
pub(crate) struct Shared {
    pub status: Mutex<Status>,
    pub files: SnapshotFiles,
    pub door: Arc<Door>,
    pub ended: Mutex<bool>,
    pub end: Condvar,
}

struct Inner {
    inbox: Inbox,
    shared: Arc<Shared>,
    config: Config,
    pid: u32,
}

/// A handle; any thread may use it. The node runs until [`Node::close`], or until it has to end.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

impl Node {
    /// Opens and checks the directory, listens, and sets the node to work; blocks for that long. Not to be called on the runtime's
    /// own thread.
    ///
    /// Errors: `InvalidConfig` (field, value and remedy), and those of the directory: `WrongDirectory`, `DirectoryInUse`,
    /// `CorruptData`, `FormatTooNew`, `DiskFull`, `Storage`. After an error nothing runs and nothing is held.
    pub fn start(runtime: &Runtime, options: NodeOptions, sink: Arc<dyn Sink>) -> Result<Node> {
        Self::start_with(runtime, open::open(&options)?, options, sink)
    }

    fn start_with(runtime: &Runtime, opened: Opened, options: NodeOptions, sink: Arc<dyn Sink>) -> Result<Node> {
        let (inbox, outbox) = mpsc::unbounded_channel();
        let status = Status {
            node_id: options.node_id,
            addr: options.raft_addr.clone(),
            role: Role::Waiting,
            term: opened.log.hard_state.term,
            leader_id: None,
            last_index: opened.log.last_index,
            commit_index: opened.log.hard_state.commit,
            applied_index: 0,
            snapshot_index: opened.log.snapshot.as_ref().map_or(0, |s| s.index),
            voters: Vec::new(),
            learners: Vec::new(),
            peers: BTreeMap::new(),
            error: None,
        };
        let shared = Arc::new(Shared {
            status: Mutex::new(status),
            files: SnapshotFiles::new(opened.snapshots.clone()),
            door: Arc::default(),
            ended: Mutex::new(false),
            end: Condvar::new(),
        });
        let config = options.config.clone();
        let (tell, told) = std::sync::mpsc::channel();
        let parts = driver::Parts {
            options,
            opened,
            aside: runtime.aside(),
            inbox: inbox.clone(),
            outbox,
            shared: Arc::clone(&shared),
            sink,
        };
        runtime.spawn(driver::run(parts, tell))?;
        match told.recv() {
            Ok(started) => started?,
            Err(_) => return Err(Error::not_done(ErrorCode::Closed, "the runtime ended while the node was starting")),
        }
        let bounds = Bounds { requests: config.max_pending_proposals, bytes: config.max_pending_bytes };
        let inbox = Inbox::new(inbox, Arc::clone(&shared.door), bounds);
        Ok(Node(Arc::new(Inner { inbox, shared, config, pid: std::process::id() })))
    }

    fn check_process(&self) -> Result<()> {
        if self.0.pid == std::process::id() {
            return Ok(());
        }
        Err(Error::not_done(
            ErrorCode::Forked,
            "this node belongs to the parent process; start one of your own after fork",
        ))
    }

    fn check_tokens(tokens: impl IntoIterator<Item = Token>) -> Result<()> {
        for token in tokens {
            if token >= FIRST_INTERNAL_TOKEN {
                return Err(Error::not_done(ErrorCode::InvalidArgument, format!("token {token} is not below 2^63")));
            }
        }
        Ok(())
    }

    fn submit_input(&self, input: Input, requests: u64, bytes: u64) -> Result<()> {
        self.check_process()?;
        self.0.inbox.submit(input, requests, bytes)
    }

    /// Accepts a request: exactly one completion with this token follows, never before this call has returned an `Ok`
    /// that the caller could not have seen. Tokens are below 2^63.
    pub fn submit(&self, token: Token, request: Request, timeout: Timeout) -> Result<()> {
        Self::check_tokens([token])?;
        let bytes = request.command_bytes() as u64;
        self.check_size(bytes)?;
        self.submit_input(Input::Request { token, request, timeout }, 1, bytes)
    }

    /// Accepts all of these commands, or none.
    pub fn propose_many(&self, proposals: Vec<(Token, Bytes)>, timeout: Timeout) -> Result<()> {
        Self::check_tokens(proposals.iter().map(|(token, _)| *token))?;
        let mut bytes = 0u64;
        for (_, data) in &proposals {
            self.check_size(data.len() as u64)?;
            bytes = bytes.saturating_add(data.len() as u64);
        }
        let count = proposals.len() as u64;
        if count == 0 {
            return Ok(());
        }
        self.submit_input(Input::Proposals { proposals, timeout }, count, bytes)
    }

    /// Accepts all of these linearizable reads, or none.
    pub fn read_many(&self, tokens: Vec<Token>, timeout: Timeout) -> Result<()> {
        Self::check_tokens(tokens.iter().copied())?;
        let count = tokens.len() as u64;
        if count == 0 {
            return Ok(());
        }
        self.submit_input(Input::Reads { tokens, timeout }, count, 0)
    }

    fn check_size(&self, bytes: u64) -> Result<()> {
        let limit = self.0.config.max_proposal_size;
        if bytes > limit {
            return Err(Error::not_done(
                ErrorCode::ProposalTooLarge,
                format!(
                    "{bytes} bytes are above max_proposal_size ({limit}); split the command or raise it on every node"
                ),
            ));
        }
        Ok(())
    }

    /// Joins the ticket's cluster; completes when this node is a voter there. One that is a member already is answered at once.
    pub fn join(&self, token: Token, ticket: Ticket, timeout: Timeout) -> Result<()> {
        Self::check_tokens([token])?;
        self.submit_input(Input::Join { token, ticket, timeout }, 1, 0)
    }

    /// The state machine's answer to one of its requests.
    pub fn answer(&self, answer: MachineAnswer) -> Result<()> {
        self.check_process()?;
        self.0.inbox.send(Input::Answer(answer))
    }

    /// One piece of the state for snapshot request `id`; may block on the disk.
    pub fn snapshot_chunk(&self, id: u64, data: &[u8]) -> Result<()> {
        self.0.shared.files.write_chunk(id, data, false)
    }

    /// The same from the thread of a machine that applies nothing meanwhile: the disk is waited for at the end, in the background.
    pub fn snapshot_chunk_of_waiting_machine(&self, id: u64, data: &[u8]) -> Result<()> {
        self.0.shared.files.write_chunk(id, data, true)
    }

    /// All pieces were given, or the state could not be captured (`Err` with the reason). The file is completed in the background.
    pub fn snapshot_done(&self, id: u64, result: Result<(), String>) -> Result<()> {
        self.0.shared.files.whole(id)?;
        // The core knows what stands in the file behind the state. A node that has ended needs no snapshot.
        let _ = self.0.inbox.send(Input::SnapshotWhole { id, result });
        Ok(())
    }

    /// Reads from the state that restore request `id` names; 0 at its end. Checked; may block on the disk.
    pub fn restore_read(&self, id: u64, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.0.shared.files.read(id, offset, out)
    }

    /// What this node knows of itself, as of the driver's last turn.
    pub fn status(&self) -> Status {
        lock(&self.0.shared.status).clone()
    }

    /// Ends the node: what is pending completes with `Closed`, then the sink hears `closed`. Returns at once; waits in the
    /// background for the disk, no longer than `timeout`.
    pub fn close(&self, timeout: Duration) {
        // A child's copy ends nothing: the driver is the parent's.
        if self.check_process().is_ok() {
            self.0.inbox.close(timeout);
        }
    }

    /// Waits until the node has ended, threads and port included; false when it has not within `timeout`.
    pub fn wait_closed(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let mut ended = lock(&self.0.shared.ended);
        while !*ended {
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return false;
            }
            ended = self.0.shared.end.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

#[cfg(test)]
mod inbox_tests;
#[cfg(test)]
mod tests;
