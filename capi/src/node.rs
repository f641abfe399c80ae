//! `raftify_node`: its start, its status and its end. Requests to it are in `requests`, answers of its machine in
//! `answers`.

use std::collections::BTreeMap;
use std::ffi::c_char;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raftify_engine::machine_thread::MachineThread;
use raftify_engine::node::{Node, NodeOptions};
use raftify_engine::{Error, ErrorCode, Result, Runtime};

use crate::config::{log_level, ConfigHandle};
use crate::error::{c_text, left_behind, raftify_status, ErrorObject};
use crate::fork::Owner;
use crate::machine::{CMachine, Machine};
use crate::open_requests::OpenRequests;
use crate::panic::{catch, refuse_in_callback};
use crate::pointer::{call, finish, free, invalid, live, place, slice, text, Handle};
use crate::queue::QueueHandle;
use crate::requests::RAFTIFY_TIMEOUT_DEFAULT;
use crate::runtime::{RuntimeHandle, JOIN};
use crate::sink::{left, next_number, Ending, NodeSink};

/// What raftify_node_close gives a node to end in when the caller names no time.
const CLOSE: Duration = Duration::from_secs(5);
/// "No timeout", for a deadline that a clock can still name.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// One member of a cluster, running in this process.
pub struct NodeHandle {
    owner: Owner,
    number: u64,
    node: Node,
    sink: Arc<NodeSink>,
    machine: Option<Arc<MachineThread>>,
    /// Keeps the runtime from being freed under the node.
    _runtime: Arc<Runtime>,
}

impl Handle for NodeHandle {
    const NAME: &'static str = "node";

    fn owner(&self) -> &Owner {
        &self.owner
    }

    fn poison(&self) {
        self.node.close(Duration::ZERO);
    }
}

impl NodeHandle {
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    pub(crate) fn open(&self) -> &OpenRequests {
        &self.sink.open
    }
}

/// A member that the cluster begins with, or that is to be contacted.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Peer {
    /// Above 0.
    pub id: u64,
    /// host:port, UTF-8.
    pub addr: *const c_char,
    pub addr_len: usize,
}

unsafe fn peers(peers: *const Peer, count: usize, given: i32) -> Result<Option<BTreeMap<u64, String>>> {
    // SAFETY: passed on to our caller.
    let list = unsafe { slice(peers, count, "peers") }?;
    if given == 0 {
        if !list.is_empty() {
            return Err(invalid("there are peers, but peers_given is 0"));
        }
        return Ok(None);
    }
    let mut map = BTreeMap::new();
    for peer in list {
        // SAFETY: the header demands of each peer what it demands of every text.
        let addr = unsafe { text(peer.addr, peer.addr_len, "a peer's addr") }?;
        if map.insert(peer.id, addr.to_owned()).is_some() {
            return Err(invalid(format!("peers name id {} twice", peer.id)));
        }
    }
    Ok(Some(map))
}

/// Opens the node's directory `<log_dir>/node-<id>`, checks it, and starts the node. Afterwards the node restores its
/// own snapshot, listens, and says so with a COMPLETION of token 0; only then does it serve. Its records may be in
/// the queue before this call has returned. Which cluster it joins or founds follows from the directory and `peers`:
/// see docs/settings.md.
///
/// runtime, queue, config: borrowed for the call. The node keeps the queue itself alive, and copies the settings; the
///   runtime must be freed after the node.
/// node_id: above 0. raft_addr: host:port that other members dial; UTF-8, borrowed for the call.
/// peers, peer_count: borrowed for the call. peers_given: 0 says that none were named (then peer_count must be 0), 1
///   that these were, even if they are none.
/// machine: push form of the state machine, copied; NULL: pull form (APPLY, SNAPSHOT and RESTORE arrive in the
///   queue). Its `destroy` runs exactly once, also if this call fails.
/// out: receives the node on success; owned, free with raftify_node_free.
/// error: optional; receives an error object on failure.
/// Threads: any; not inside a callback. Blocks: while the directory is opened and read through.
/// Errors: INVALID_CONFIG, INVALID_ARGUMENT, STORAGE, DISK_FULL, CORRUPT_DATA, WRONG_DIRECTORY, DIRECTORY_IN_USE,
///   FORMAT_TOO_NEW, TLS, CLOSED (the runtime has ended), REENTRANT, FORKED, INTERNAL. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_node_start(
    runtime: *mut RuntimeHandle,
    queue: *mut QueueHandle,
    config: *const ConfigHandle,
    node_id: u64,
    raft_addr: *const c_char,
    raft_addr_len: usize,
    peers: *const Peer,
    peer_count: usize,
    peers_given: i32,
    machine: *const Machine,
    out: *mut *mut NodeHandle,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // First of all: from here on the machine is destroyed on every way out.
    let (machine, machine_ok) = if machine.is_null() {
        (None, Ok(()))
    } else {
        // SAFETY: not NULL; as long as it says (header of the struct).
        unsafe { Machine::take(machine) }
    };
    let start = move || -> Result<()> {
        machine_ok?;
        refuse_in_callback("raftify_node_start")?;
        // SAFETY: NULL or writable (preface of the header).
        let out = unsafe { place(out, "out") }?;
        // SAFETY: each is NULL or a live handle (preface of the header).
        let (runtime, queue, config) = unsafe { (live(runtime)?, live(queue)?, live(config)?) };
        let settings = config.settings();
        // SAFETY: NULL or `raft_addr_len` bytes (preface of the header).
        let raft_addr = unsafe { text(raft_addr, raft_addr_len, "raft_addr") }?.to_owned();
        // SAFETY: NULL or `peer_count` peers (preface of the header).
        let peers = unsafe { self::peers(peers, peer_count, peers_given) }?;
        let machine_applied = settings.applied_index;
        let options = NodeOptions { config: settings.config, node_id, raft_addr, peers, machine_applied };
        let handle = open(runtime, queue, options, settings.log_level, machine)?;
        *out = Box::into_raw(Box::new(handle));
        Ok(())
    };
    // SAFETY: `error` is NULL or writable (preface of the header).
    unsafe { finish(catch(start), error) }
}

fn open(
    runtime: &RuntimeHandle,
    queue: &QueueHandle,
    options: NodeOptions,
    level: slog::FilterLevel,
    machine: Option<CMachine>,
) -> Result<NodeHandle> {
    let (runtime, queue) = (runtime.share(), queue.share());
    let number = next_number();
    let ending = Arc::new(Ending::new(Arc::clone(&queue), number, machine.is_some()));
    let machine = match machine {
        None => None,
        Some(machine) => {
            let ending = Arc::clone(&ending);
            Some(Arc::new(MachineThread::spawn(Box::new(machine), move || ending.machine_gone())?))
        }
    };
    let sink = Arc::new(NodeSink::new(queue, number, Arc::clone(&ending), machine.clone(), level));
    let started = catch(|| Node::start(&runtime, options, Arc::clone(&sink) as Arc<_>));
    match started {
        Ok(node) => {
            if let Some(machine) = &machine {
                machine.attach(node.clone());
            }
            Ok(NodeHandle { owner: Owner::here(), number, node, sink, machine, _runtime: runtime })
        }
        Err(error) => {
            ending.cancel();
            if let Some(machine) = &machine {
                // Nothing was asked of it yet, so nothing holds it up: destroyed when this returns.
                machine.stop();
                machine.wait(FOR_EVER);
            }
            Err(error)
        }
    }
}

/// The number that records of this node carry as `source`; unique among all nodes and clients of this process.
///
/// Returns: above 0; 0 for NULL.
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_node_number(node: *const NodeHandle) -> u64 {
    // SAFETY: NULL or a live node (preface of the header).
    unsafe { node.as_ref() }.map_or(0, |node| node.number)
}

/// The node's status as JSON: {"node_id", "addr", "role", "term", "leader_id", "last_index", "commit_index",
/// "applied_index", "snapshot_index", "voters", "learners", "peers":{"2":{"addr", "match_index", "lag", "connected",
/// "last_seen"}}, "error"}. Newer libraries may add keys.
///
/// out: receives UTF-8 text, NUL-terminated; owned, free with raftify_string_free. len: optional; receives its length
///   without the NUL.
/// error: optional; receives an error object on failure.
/// Threads: any, also inside a callback. Blocks: no. Errors: INVALID_ARGUMENT, FORKED, INTERNAL. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_node_status(
    node: *mut NodeHandle,
    out: *mut *mut c_char,
    len: *mut usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            let out = place(out, "out")?;
            let text = serde_json::to_string(&node.node.status())
                .map_err(|e| Error::not_done(ErrorCode::Internal, format!("the status has no JSON form: {e}")))?;
            let text = c_text(&text);
            if let Some(len) = len.as_mut() {
                *len = text.as_bytes().len();
            }
            *out = text.into_raw();
            Ok(())
        })
    }
}

/// From now on records of RAFTIFY_EVENT_LOG are made up to this level: the names of the setting "log_level".
///
/// level: UTF-8, borrowed for the call. error: optional; receives an error object on failure.
/// Threads: any. Blocks: no. Errors: INVALID_CONFIG, INVALID_ARGUMENT, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_node_set_log_level(
    node: *mut NodeHandle,
    level: *const c_char,
    level_len: usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            node.sink.set_log_level(log_level(text(level, level_len, "level")?)?);
            Ok(())
        })
    }
}

/// Begins to close the node: pending requests end (with RAFTIFY_ERR_CLOSED, if nothing else becomes known of them),
/// and CLOSED comes as its last record. Again: no effect.
///
/// timeout_ms: what the node may take to end in order (finish a write, hand over leadership); after it the node ends
///   hard. -1: no limit, -2: 5 s.
/// Threads: any; not inside a callback. Blocks: no. Errors: INVALID_ARGUMENT, REENTRANT, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_node_close(node: *mut NodeHandle, timeout_ms: i64) -> raftify_status {
    // SAFETY: NULL or a live node (preface of the header); no error slot.
    unsafe {
        call(node, std::ptr::null_mut(), |node| {
            refuse_in_callback("raftify_node_close")?;
            let timeout = match timeout_ms {
                RAFTIFY_TIMEOUT_DEFAULT => CLOSE,
                ms => match crate::pointer::timeout(ms)? {
                    raftify_engine::request::Timeout::After(time) => time.min(FOR_EVER),
                    _ => FOR_EVER,
                },
            };
            node.node.close(timeout);
            Ok(())
        })
    }
}

/// Frees the node; NULL is ignored. One that is still open is closed hard: what is pending ends with
/// RAFTIFY_ERR_CLOSED. For an end in order call raftify_node_close before and drain until CLOSED.
///
/// Threads: any, once, and no other call on this node at the same time or later; not inside a callback. Blocks: until
///   its threads have ended, at most 2 s.
/// Returns: 0; TIMEOUT if a thread had not ended (a write on a hung disk, a callback that does not return): it is
///   left behind and the handle is gone; REENTRANT inside a callback: then nothing was done; FORKED in a forked
/// child: the handle is gone. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_node_free(node: *mut NodeHandle) -> raftify_status {
    let end = |handle: Box<NodeHandle>| {
        let deadline = Instant::now().checked_add(JOIN).unwrap_or_else(Instant::now);
        handle.node.close(Duration::ZERO);
        let ended = handle.node.wait_closed(left(deadline));
        let machine_ended = handle.machine.as_ref().is_none_or(|machine| {
            machine.stop();
            machine.wait(left(deadline))
        });
        if ended && machine_ended {
            return Ok(());
        }
        Err(left_behind("a thread of the node"))
    };
    // SAFETY: NULL or a live node, given back once (preface of the header).
    unsafe { free(node, end) }
}
