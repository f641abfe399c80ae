//! Carries what nodes and clients say to each other: tonic server and clients, one ordered stream per peer and lane.
//!
//! Lives here: listening, dialling, greeting, batching, snapshots' way over the wire, the calls of clients.
//! May not live here: any rule of Raft, any decision who may join: the driver answers greetings, this module obeys.
//!
//! Invariants:
//! - Everything received is hostile: sizes are limited before memory is taken, checksums are checked, a stream speaks only
//!   for the node of its greeting; what is wrong ends that stream, never the node.
//! - Frames of one peer and lane arrive in the order they were sent, or the stream ends. After [`Incoming::Disconnected`] nothing
//!   of the old stream's queue is sent any more.
//! - [`Incoming::NotSent`] and what [`Transport::send`] hands back certainly never left this process (S15).
//! - Each lane and each snapshot has a connection of its own: a full bulk lane never holds up heartbeats (S18).
//!
//! Threads: everything runs on the runtime, where [`Transport`] must be used, one task at a time. Disks of snapshots are
//! touched on blocking helper threads only.

pub(crate) mod ask;
pub mod call;
pub(crate) mod connect;
pub(crate) mod dial;
mod envelope;
mod gate;
pub mod limits;
mod listen;
mod outgoing;
mod queue;
mod raft_message;
mod room;
mod service;
mod snapshot;
mod socket;
#[cfg(test)]
mod stream_tests;
pub(crate) mod tame;
mod tcp;
#[cfg(test)]
pub(crate) mod test_ca;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tls;
mod tls_files;
mod tls_reason;
#[cfg(test)]
mod tls_tests;
mod turned_away;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{getrlimit, Resource};
use tokio::sync::{mpsc, oneshot, watch, Notify, OwnedSemaphorePermit};
use tokio::task::JoinHandle;

use crate::address;
use crate::cluster::NodeId;
use crate::config::Config;
use crate::error::{Error, ErrorCode, Result};
use crate::locks::lock;
use crate::request::{Reply, Request, Timeout};
use crate::wire::{Hello, Item, SnapshotHeader, StreamKind, Welcome};

pub use connect::Unreachable;
use dial::{Local, Slot, Target};
pub use outgoing::{Outgoing, What};
pub use raft_message::{decode_message, encode_entries, Encoded};
use service::Shared;
pub use snapshot::{IntakeFile, SnapshotIntake, SnapshotSource, CHUNK};
use tls::Tls;
pub use tls_files::TlsFiles;

/// Full name of the service.
pub const SERVICE: &str = "raftify.v1.Raft";
/// In a failed call's metadata: the [`ErrorCode`] of a request that was refused before anybody saw it.
const REFUSED: &str = "raftify-refused";
/// Limit of every message but frames, calls and answers to calls.
const SMALL: usize = 1 << 20;
/// Connections that others have opened.
const MAX_CONNECTIONS: usize = 1024;
/// Fewer would keep peers out.
const MIN_CONNECTIONS: usize = 16;
/// Bytes in the control lane's queues, on either side.
const CONTROL_BYTES: usize = 8 << 20;

/// Which of a peer's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Heartbeats, votes, answers: small, never behind a large append (S18).
    Control,
    /// Appends and forwarded proposals.
    Bulk,
}

impl Lane {
    pub const ALL: [Lane; 2] = [Lane::Control, Lane::Bulk];

    fn kind(self) -> StreamKind {
        match self {
            Lane::Control => StreamKind::Control,
            Lane::Bulk => StreamKind::Bulk,
        }
    }
}

#[derive(Clone, Debug)]
pub struct TransportConfig {
    pub node_id: NodeId,
    /// Where to listen; empty: `raft_addr`.
    pub listen_addr: String,
    /// What others dial; port 0 becomes the real one.
    pub raft_addr: String,
    /// Largest encoded frame, in bytes, sent or taken.
    pub max_frame: usize,
    /// Largest encoded call of a client, in bytes.
    pub max_call: usize,
    /// Bytes queued to one peer's bulk lane, and received from it and not yet given back by the driver.
    pub max_inflight_bytes: usize,
    pub connect_timeout: Duration,
    /// A stream that has not greeted by then is closed.
    pub hello_timeout: Duration,
    /// A connection is asked for a sign of life after this silence, and closed after as long again without one.
    pub keepalive: Duration,
    /// A snapshot that moves no byte for this long is broken off.
    pub snapshot_stall: Duration,
    pub max_connections: usize,
    /// Streams of peers and snapshots, greeted or not.
    pub max_streams: usize,
    /// Certificates of all connections; `None`: they are plain.
    pub tls: Option<Arc<Tls>>,
}

impl TransportConfig {
    /// The transport's part of a node's settings, but for its certificates.
    pub fn new(node_id: NodeId, raft_addr: impl Into<String>, config: &Config) -> Self {
        let proposal = usize::try_from(config.max_proposal_size).unwrap_or(usize::MAX);
        TransportConfig {
            node_id,
            listen_addr: config.listen_addr.clone(),
            raft_addr: raft_addr.into(),
            // The length field of gRPC has 32 bits.
            max_frame: proposal.saturating_mul(4).max(64 << 20).min(u32::MAX as usize - 1024),
            max_call: proposal.saturating_add(1 << 20),
            max_inflight_bytes: usize::try_from(config.max_inflight_bytes).unwrap_or(usize::MAX),
            connect_timeout: Duration::from_secs(2),
            hello_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(5),
            snapshot_stall: Duration::from_secs(30),
            max_connections: connections_for(getrlimit(Resource::Nofile).current),
            max_streams: 256,
            tls: None,
        }
    }
}

/// Strangers' connections leave half of the process's descriptors to its log, its own connections and its host. `None`: no limit.
fn connections_for(descriptors: Option<u64>) -> usize {
    let half = descriptors.and_then(|limit| usize::try_from(limit / 2).ok()).unwrap_or(MAX_CONNECTIONS);
    half.clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

/// Bytes of received frames that count against their stream's budget until this is dropped. A driver that keeps it stops the peer.
#[derive(Debug)]
pub struct Permit(#[allow(dead_code)] OwnedSemaphorePermit);

/// What the driver hears.
#[derive(Debug)]
pub enum Incoming {
    /// Somebody dialled us. Its frames count only after [`crate::wire::Verdict::Accepted`]. Dropping `answer` refuses.
    Hello {
        hello: Hello,
        kind: StreamKind,
        answer: oneshot::Sender<Welcome>,
    },
    /// A listener answered our dial, whatever its verdict. Only with `Accepted` and `true` does anything go there.
    Welcomed {
        peer: NodeId,
        kind: StreamKind,
        welcome: Welcome,
        answer: oneshot::Sender<bool>,
    },
    /// Items for this lane are taken from now on.
    Connected {
        peer: NodeId,
        lane: Lane,
    },
    Disconnected {
        peer: NodeId,
        lane: Lane,
        reason: String,
    },
    /// A dial came to nothing; it goes on, once a second at most.
    DialFailed {
        peer: NodeId,
        lane: Lane,
        why: Unreachable,
    },
    /// For the log: of nobody's lane.
    Said {
        level: slog::Level,
        message: String,
    },
    /// What lies in the channel already still comes after a [`Transport::hang_up`].
    Frame {
        from: NodeId,
        lane: Lane,
        items: Vec<Item>,
        /// Of the whole frame, in which the items lie still.
        bytes: usize,
        permit: Permit,
    },
    /// Certainly never left this process: proposals in it may be sent again (S15). Precedes the lane's `Disconnected`.
    NotSent {
        to: NodeId,
        lane: Lane,
        items: Vec<Outgoing>,
    },
    /// A peer wants to send a snapshot; `Err` says why not.
    SnapshotHeader {
        from: NodeId,
        header: SnapshotHeader,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Its file is whole and finished (S6); now raft may hear of it.
    SnapshotReceived {
        from: NodeId,
        header: SnapshotHeader,
        raft_message: Vec<u8>,
    },
    /// Receiving failed on this side's disk.
    SnapshotIntakeFailed {
        from: NodeId,
        index: u64,
        error: Error,
    },
    SnapshotSent {
        to: NodeId,
        index: u64,
        result: Result<(), String>,
    },
    /// A client, or a node that joins, asks. `answer.is_closed()`: nobody waits any more.
    Call {
        request: Request,
        timeout: Timeout,
        answer: oneshot::Sender<Result<Reply>>,
    },
}

struct Peer {
    target: watch::Sender<Target>,
    lanes: [Slot; 2],
}

/// The network of one node. Dropping it ends everything at once; [`Transport::shutdown`] also waits for the port to be free.
pub struct Transport {
    local: Arc<Local>,
    stop: watch::Sender<bool>,
    peers: BTreeMap<NodeId, Peer>,
    tasks: Vec<JoinHandle<()>>,
    sending: Arc<Mutex<BTreeMap<NodeId, oneshot::Sender<()>>>>,
    listen_addr: std::net::SocketAddr,
    raft_addr: String,
}

impl Transport {
    /// Listens. Nothing is dialled before [`Transport::set_peers`] and [`Transport::set_hello`].
    ///
    /// Errors: `InvalidConfig` naming `listen_addr` or `raft_addr` (not host:port, in use, not of this machine, not permitted).
    pub async fn bind(
        config: TransportConfig,
        incoming: mpsc::UnboundedSender<Incoming>,
        intake: Arc<dyn SnapshotIntake>,
    ) -> Result<Transport> {
        let (raft_host, raft_port) = address::dialable("raft_addr", &config.raft_addr, true)?;
        let (listener, listen_addr) = listen::bind(&config).await?;
        let port = if raft_port == 0 { listen_addr.port() } else { raft_port };
        let raft_addr = format!("{raft_host}:{port}");
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared::new(config, incoming, intake, stopped));
        let tasks = listen::serve(Arc::clone(&shared), listener);
        let local = Arc::new(Local { shared, hello: Mutex::default(), hello_set: Notify::new() });
        Ok(Transport { local, stop, peers: BTreeMap::new(), tasks, sending: Arc::default(), listen_addr, raft_addr })
    }

    /// What others dial, with the real port.
    pub fn local_addr(&self) -> String {
        self.raft_addr.clone()
    }

    /// The socket that listens.
    pub fn listen_addr(&self) -> std::net::SocketAddr {
        self.listen_addr
    }

    /// Whom to keep streams to. Streams to others end; a changed address is dialled anew. The own id is skipped.
    pub fn set_peers(&mut self, peers: &BTreeMap<NodeId, String>) {
        let own = self.local.shared.config.node_id;
        let (shared, own_peers) = (&self.local.shared, &mut self.peers);
        own_peers.retain(|id, _| {
            let stays = peers.contains_key(id);
            if !stays {
                shared.hang_up(*id);
                shared.forget_poke(*id);
            }
            stays
        });
        for (id, addr) in peers.iter().filter(|(id, _)| **id != own) {
            match self.peers.get(id) {
                Some(peer) => {
                    peer.target.send_if_modified(|target| {
                        let changed = target.addr != *addr;
                        target.addr.clone_from(addr);
                        changed
                    });
                }
                None => {
                    let (target, _) = watch::channel(Target { addr: addr.clone(), dial: 0 });
                    let poke = self.local.shared.poke(*id);
                    let lanes = Lane::ALL.map(|lane| {
                        let slot = Slot::default();
                        let local = Arc::clone(&self.local);
                        let task = dial::keep_dialling(
                            local,
                            *id,
                            lane,
                            target.subscribe(),
                            Arc::clone(&slot),
                            Arc::clone(&poke),
                        );
                        self.tasks.push(tokio::spawn(task));
                        slot
                    });
                    self.tasks.retain(|task| !task.is_finished());
                    self.peers.insert(*id, Peer { target, lanes });
                }
            }
        }
    }

    /// How to greet: the template (its `to`, `recorded` and `kind` are filled in per stream) and the directories that the log
    /// records. Streams that exist stay; [`Transport::hang_up`] makes them greet anew.
    pub fn set_hello(&self, hello: Hello, recorded: BTreeMap<NodeId, Vec<u8>>) {
        *lock(&self.local.hello) = Some((hello, recorded));
        self.local.hello_set.notify_waiters();
    }

    /// Ends all streams with this peer, both ways, and dials and greets it again at once.
    pub fn hang_up(&self, peer: NodeId) {
        self.local.shared.hang_up(peer);
        if let Some(peer) = self.peers.get(&peer) {
            peer.target.send_modify(|target| target.dial = target.dial.wrapping_add(1));
        }
    }

    /// Takes items from the front as long as they fit; hands back the rest in order (not connected, or full).
    pub fn send(&self, to: NodeId, lane: Lane, items: Vec<Outgoing>) -> Result<(), Vec<Outgoing>> {
        let [control, bulk] = match self.peers.get(&to) {
            Some(peer) => &peer.lanes,
            None => return Err(items),
        };
        let slot = match lane {
            Lane::Control => control,
            Lane::Bulk => bulk,
        };
        match &*lock(slot) {
            Some(queue) => queue.push(items),
            None => Err(items),
        }
    }

    /// Streams a snapshot; [`Incoming::SnapshotSent`] tells how it ended, always and once. One to each peer at a time.
    pub fn send_snapshot(
        &self,
        to: NodeId,
        header: SnapshotHeader,
        raft_message: Vec<u8>,
        source: Arc<dyn SnapshotSource>,
    ) {
        let index = header.index;
        let tell = self.local.shared.incoming.clone();
        let refuse = |reason: &str| {
            let _ = tell.send(Incoming::SnapshotSent { to, index, result: Err(reason.into()) });
        };
        let Some(peer) = self.peers.get(&to) else {
            return refuse("no such peer");
        };
        if lock(&self.sending).contains_key(&to) {
            return refuse("another snapshot is on its way there");
        }
        let (cancel, cancelled) = oneshot::channel();
        lock(&self.sending).insert(to, cancel);
        let addr = peer.target.borrow().addr.clone();
        let (local, sending) = (Arc::clone(&self.local), Arc::clone(&self.sending));
        tokio::spawn(async move {
            let mut stop = local.shared.stop.clone();
            let result = tokio::select! {
                result = snapshot::send(&local, to, &addr, header, raft_message, source) => result,
                _ = cancelled => Err("cancelled".into()),
                _ = stop.wait_for(|stop| *stop) => Err("the node is closing".into()),
            };
            lock(&sending).remove(&to);
            let _ = local.shared.incoming.send(Incoming::SnapshotSent { to, index, result });
        });
    }

    /// Breaks off the snapshot on its way to this peer, if there is one (S19).
    pub fn cancel_snapshot(&self, to: NodeId) {
        if let Some(cancel) = lock(&self.sending).remove(&to) {
            let _ = cancel.send(());
        }
    }

    /// Ends all streams and connections and frees the port. Waits a short bounded time for it.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        self.peers.clear();
        let tasks = std::mem::take(&mut self.tasks);
        let ended = async {
            for task in tasks {
                let _ = task.await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), ended).await;
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// The failure of a call that nobody has seen.
fn refuse(code: ErrorCode, message: &str) -> tonic::Status {
    let mut status = tonic::Status::failed_precondition(message);
    status.metadata_mut().insert(REFUSED, (code as i32).into());
    status
}

/// `/raftify.v1.Raft/<method>`
fn path(method: &'static str) -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static(match method {
        "Peer" => "/raftify.v1.Raft/Peer",
        "Snapshot" => "/raftify.v1.Raft/Snapshot",
        _ => "/raftify.v1.Raft/Call",
    })
}
