//! `raftify_client`: a cluster from outside.

use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftify_engine::client::{Client, ClientOptions};
use raftify_engine::request::Request;
use raftify_engine::transport::TlsFiles;
use raftify_engine::{Result, Runtime};

use crate::config::{ConfigHandle, Settings};
use crate::error::{left_behind, raftify_status, ErrorObject};
use crate::fork::Owner;
use crate::panic::catch;
use crate::pointer::{call, finish, free, invalid, live, place, slice, text, timeout, token, Handle};
use crate::queue::QueueHandle;
use crate::requests::{changes, transferee, MemberChange};
use crate::runtime::{RuntimeHandle, JOIN};
use crate::sink::{next_number, Ending, OutsideSink};

/// `RAFTIFY_TIMEOUT_DEFAULT` of a client's calls.
const DEFAULT: Duration = Duration::from_secs(5);

/// A client: finds the leader, follows it, and repeats what was certainly not done.
pub struct ClientHandle {
    owner: Owner,
    number: u64,
    client: Client,
    ending: Arc<Ending>,
    /// Keeps the runtime from being freed under the client.
    _runtime: Arc<Runtime>,
}

impl Handle for ClientHandle {
    const NAME: &'static str = "client";

    fn owner(&self) -> &Owner {
        &self.owner
    }

    fn poison(&self) {
        self.client.close();
    }
}

unsafe fn submit(
    client: *mut ClientHandle,
    token: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
    request: impl FnOnce() -> Result<Request>,
) -> raftify_status {
    // SAFETY: passed on to our caller.
    unsafe { call(client, error, |client| client.client.submit(self::token(token)?, request()?, timeout(timeout_ms)?)) }
}

/// Makes a client of a cluster. It connects when it is first asked something.
///
/// runtime, queue: borrowed for the call; the client keeps the queue itself alive; the runtime must be freed after
///   the client.
/// addrs: host:port of one or more members, separated by commas, UTF-8, copied. out: receives the client on success;
///   owned, free with raftify_client_free.
/// error: optional; receives an error object on failure.
/// Threads: any. Blocks: no. Errors: INVALID_ARGUMENT, INVALID_CONFIG, CLOSED (the runtime has ended), FORKED,
///   INTERNAL. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_new(
    runtime: *mut RuntimeHandle,
    queue: *mut QueueHandle,
    addrs: *const c_char,
    len: usize,
    out: *mut *mut ClientHandle,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: passed on to our caller.
    let made = || unsafe { make(runtime, queue, None, addrs, len, out) };
    // SAFETY: `error` is NULL or writable (preface of the header).
    unsafe { finish(catch(made), error) }
}

/// As raftify_client_new, with settings: "tls_cert", "tls_key", "tls_ca" and "tls_server_name" where the cluster's
/// nodes have certificates; "request_timeout", which RAFTIFY_TIMEOUT_DEFAULT then stands for; and "session". The others
/// are not looked at.
///
/// "session": "true" makes each command of raftify_client_propose count once, however often it has to be sent: it is
/// sent again until its deadline also where it may have been applied, and ends with what it came to the first time. The
/// first command opens the session, raftify_client_free closes it. A cluster keeps the 4096 sessions that were used
/// last; up to 1024 commands of a session are under way at a time, counted from the oldest without an answer on, and
/// the others wait their turn. What a command came to is kept for as long as the client waits for it. Every node of the
/// cluster has to be of a version that knows sessions.
///
/// config: borrowed for the call; the client has its own copy. The rest as for raftify_client_new.
/// Threads: any. Blocks: while the files of certificates are read. Errors: as of raftify_client_new, INVALID_CONFIG (a
///   timeout of 0) and TLS (a file cannot be used); both name the field. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_new_with(
    runtime: *mut RuntimeHandle,
    queue: *mut QueueHandle,
    config: *const ConfigHandle,
    addrs: *const c_char,
    len: usize,
    out: *mut *mut ClientHandle,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    let made = || {
        // SAFETY: NULL or a live config (preface of the header).
        let settings = unsafe { live(config) }?.settings();
        // SAFETY: passed on to our caller.
        unsafe { make(runtime, queue, Some(settings), addrs, len, out) }
    };
    // SAFETY: `error` is NULL or writable (preface of the header).
    unsafe { finish(catch(made), error) }
}

unsafe fn make(
    runtime: *mut RuntimeHandle,
    queue: *mut QueueHandle,
    settings: Option<Settings>,
    addrs: *const c_char,
    len: usize,
    out: *mut *mut ClientHandle,
) -> Result<()> {
    // SAFETY: NULL or writable (preface of the header).
    let out = unsafe { place(out, "out") }?;
    // SAFETY: each is NULL or a live handle (preface of the header).
    let (runtime, queue) = unsafe { (live(runtime)?, live(queue)?) };
    // SAFETY: NULL or `len` bytes (preface of the header).
    let addrs = unsafe { text(addrs, len, "addrs") }?;
    let addrs: Vec<String> =
        addrs.split(',').map(str::trim).filter(|addr| !addr.is_empty()).map(str::to_owned).collect();
    if addrs.is_empty() {
        return Err(invalid("addrs name nobody; name at least one member as host:port"));
    }
    let options = match settings {
        Some(Settings { config, session, .. }) => {
            config.timeouts()?;
            ClientOptions { tls: config.tls, default_timeout: config.request_timeout, session }
        }
        None => ClientOptions { tls: TlsFiles::default(), default_timeout: DEFAULT, session: false },
    };
    let (runtime, queue, number) = (runtime.share(), queue.share(), next_number());
    let ending = Arc::new(Ending::new(Arc::clone(&queue), number, false));
    let sink = Arc::new(OutsideSink { queue, number, ending: Arc::clone(&ending) });
    let client = Client::new(&runtime, addrs, &options, sink)?;
    let handle = ClientHandle { owner: Owner::here(), number, client, ending, _runtime: runtime };
    *out = Box::into_raw(Box::new(handle));
    Ok(())
}

/// The number that records of this client carry as `source`; unique among all nodes and clients of this process.
///
/// Returns: above 0; 0 for NULL.
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_number(client: *const ClientHandle) -> u64 {
    // SAFETY: NULL or a live client (preface of the header).
    unsafe { client.as_ref() }.map_or(0, |client| client.number)
}

/// As raftify_propose, through the cluster's leader: `data` of the COMPLETION is what the leader's state machine
/// returned. Without a session (raftify_client_new_with) it is sent again only where it certainly was not done. With one
/// it ends with RAFTIFY_ERR_SESSION_EXPIRED where the cluster has forgotten the session while the outcome of a sending
/// was unknown: then nobody can say whether it was applied. One that was certainly not applied is sent in a new session.
///
/// token: 1 to 2^63 - 1. data: copied; NULL is right for len 0. timeout_ms: milliseconds, RAFTIFY_TIMEOUT_NONE or
///   RAFTIFY_TIMEOUT_DEFAULT (5 s). error: optional; receives an error object on failure.
/// Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
///   ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_propose(
    client: *mut ClientHandle,
    token: u64,
    data: *const u8,
    len: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        submit(client, token, timeout_ms, error, || {
            Ok(Request::Propose(Bytes::copy_from_slice(slice(data, len, "data")?)))
        })
    }
}

/// As raftify_reserve_id, through the cluster's leader: `data` of the COMPLETION is a ticket as JSON.
///
/// addr: UTF-8, copied; empty: not known yet. token, timeout_ms, error: as for raftify_client_propose.
/// Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
///   ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_reserve_id(
    client: *mut ClientHandle,
    token: u64,
    addr: *const c_char,
    addr_len: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        submit(client, token, timeout_ms, error, || {
            Ok(Request::ReserveId { addr: text(addr, addr_len, "addr")?.to_owned() })
        })
    }
}

/// As raftify_change_members, through the cluster's leader.
///
/// changes, count: at least one; copied with all they point to. token, timeout_ms, error: as for
///   raftify_client_propose.
/// Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
///   ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_change_members(
    client: *mut ClientHandle,
    token: u64,
    changes: *const MemberChange,
    count: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands, also those within the changes.
    unsafe { submit(client, token, timeout_ms, error, || Ok(Request::ChangeMembers(self::changes(changes, count)?))) }
}

/// As raftify_transfer_leader, through the cluster's leader.
///
/// to: the id of the next leader; 0: the one that is most up to date. token, timeout_ms, error: as for
///   raftify_client_propose.
/// Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
///   ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_transfer_leader(
    client: *mut ClientHandle,
    token: u64,
    to: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { submit(client, token, timeout_ms, error, || Ok(Request::TransferLeader(transferee(to)))) }
}

/// As raftify_snapshot, on the cluster's leader.
///
/// token, timeout_ms, error: as for raftify_client_propose.
/// Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
///   ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_snapshot(
    client: *mut ClientHandle,
    token: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { submit(client, token, timeout_ms, error, || Ok(Request::Snapshot)) }
}

/// Asks for the status of the first member that answers. COMPLETION: `data` is JSON as of raftify_node_status.
///
/// token, timeout_ms, error: as for raftify_client_propose.
/// Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
///   ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_status(
    client: *mut ClientHandle,
    token: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { submit(client, token, timeout_ms, error, || Ok(Request::Status)) }
}

/// Hands the first node that answers a raft message, as raftify_send_message does.
///
/// message: in, an encoded eraftpb.Message of len bytes. token, timeout_ms, error: as for raftify_client_propose.
/// Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED. Since:
///   ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_send_message(
    client: *mut ClientHandle,
    token: u64,
    message: *const u8,
    len: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        submit(client, token, timeout_ms, error, || Ok(Request::Message(slice(message, len, "message")?.to_vec())))
    }
}

/// Frees the client; NULL is ignored. What is pending ends with RAFTIFY_ERR_CLOSED, then CLOSED comes.
///
/// Threads: any, once, and no other call on this client at the same time or later; not inside a callback. Blocks:
///   until CLOSED is in the queue, at most 2 s.
/// Returns: 0; TIMEOUT if CLOSED had not come: the handle is gone; REENTRANT inside a callback: then nothing was
///   done; FORKED in a forked child: the handle is gone. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_client_free(client: *mut ClientHandle) -> raftify_status {
    let end = |handle: Box<ClientHandle>| {
        handle.client.close();
        if handle.ending.wait(JOIN) {
            return Ok(());
        }
        Err(left_behind("the client"))
    };
    // SAFETY: NULL or a live client, given back once (preface of the header).
    unsafe { free(client, end) }
}
