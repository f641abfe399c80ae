//! What can be asked of a node. Each accepted request is answered by exactly one COMPLETION.

use std::ffi::c_char;

use bytes::Bytes;
use raftify_engine::gather::Gather;
use raftify_engine::request::{MemberChange as Change, Request, Ticket};
use raftify_engine::Result;

use crate::error::{raftify_status, ErrorObject};
use crate::node::NodeHandle;
use crate::pointer::{call, invalid, slice, text, timeout, token};

/// No deadline: the request ends when its fate is decided, or the node closes.
pub const RAFTIFY_TIMEOUT_NONE: i64 = -1;
/// The default of its kind: `conf_change_request_timeout` for membership, 600 s for a snapshot, otherwise
/// `request_timeout`.
pub const RAFTIFY_TIMEOUT_DEFAULT: i64 = -2;

/// Add `id` at `addr` as a voter: first a learner, promoted when it has caught up.
pub const RAFTIFY_MEMBER_ADD: i32 = 1;
/// Add `id` at `addr` as a learner, which has no vote.
pub const RAFTIFY_MEMBER_ADD_LEARNER: i32 = 2;
/// Make the learner `id` a voter.
pub const RAFTIFY_MEMBER_PROMOTE: i32 = 3;
/// Make the voter `id` a learner.
pub const RAFTIFY_MEMBER_DEMOTE: i32 = 4;
/// Remove `id`, which is spent for good.
pub const RAFTIFY_MEMBER_REMOVE: i32 = 5;
/// The member `id` is dialled at `addr` from now on.
pub const RAFTIFY_MEMBER_UPDATE_ADDRESS: i32 = 6;

/// Bytes of memory taken for several commands before they have been looked at, at most.
const RESERVED: usize = 1 << 20;

/// One command of several.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Proposal {
    /// 1 to 2^63 - 1.
    pub token: u64,
    pub data: *const u8,
    pub len: usize,
}

/// One change of membership.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemberChange {
    /// RAFTIFY_MEMBER_*.
    pub kind: i32,
    /// 0.
    pub reserved: u32,
    pub id: u64,
    /// host:port, UTF-8; for the kinds that name an address.
    pub addr: *const c_char,
    pub addr_len: usize,
}

/// Checked and copied.
pub(crate) unsafe fn changes(changes: *const MemberChange, count: usize) -> Result<Vec<Change>> {
    // SAFETY: passed on to our caller.
    let list = unsafe { slice(changes, count, "changes") }?;
    if list.is_empty() {
        return Err(invalid("changes are none; name at least one"));
    }
    let change = |change: &MemberChange| -> Result<Change> {
        let id = change.id;
        // SAFETY: the header demands of each change what it demands of every text.
        let addr = unsafe { text(change.addr, change.addr_len, "a change's addr") }?.to_owned();
        match change.kind {
            RAFTIFY_MEMBER_ADD => Ok(Change::Add { id, addr, learner: false }),
            RAFTIFY_MEMBER_ADD_LEARNER => Ok(Change::Add { id, addr, learner: true }),
            RAFTIFY_MEMBER_PROMOTE => Ok(Change::Promote { id }),
            RAFTIFY_MEMBER_DEMOTE => Ok(Change::Demote { id }),
            RAFTIFY_MEMBER_REMOVE => Ok(Change::Remove { id }),
            RAFTIFY_MEMBER_UPDATE_ADDRESS => Ok(Change::UpdateAddress { id, addr }),
            other => Err(invalid(format!("a change is of kind {other}; use one of RAFTIFY_MEMBER_*"))),
        }
    };
    list.iter().map(change).collect()
}

/// 0: whoever is most up to date.
pub(crate) fn transferee(to: u64) -> Option<u64> {
    (to != 0).then_some(to)
}

/// The frame of all that is asked of a node under a token and with a deadline.
unsafe fn submit(
    node: *mut NodeHandle,
    token: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
    request: impl FnOnce() -> Result<Request>,
) -> raftify_status {
    // SAFETY: passed on to our caller.
    unsafe { call(node, error, |node| node.node().submit(self::token(token)?, request()?, timeout(timeout_ms)?)) }
}

/// Proposes a command. COMPLETION: `data` is what the state machine of this node returned for it, `index` and `term`
/// are its entry's.
///
/// token: 1 to 2^63 - 1; the caller's number for this request, best not used twice at a time. data: copied; NULL is
///   right for len 0.
/// timeout_ms: milliseconds, RAFTIFY_TIMEOUT_NONE or RAFTIFY_TIMEOUT_DEFAULT. error: optional; receives an error
///   object on failure.
/// Threads: any, also inside a callback. Blocks: no.
/// Errors, then without a COMPLETION: INVALID_ARGUMENT, PROPOSAL_TOO_LARGE, OVERLOADED, CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_propose(
    node: *mut NodeHandle,
    token: u64,
    data: *const u8,
    len: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        submit(node, token, timeout_ms, error, || {
            Ok(Request::Propose(Bytes::copy_from_slice(slice(data, len, "data")?)))
        })
    }
}

/// Proposes several commands, in this order, with one hand-over: either all are accepted or none. Each has its own
/// COMPLETION.
///
/// proposals, count: copied with all they point to. timeout_ms, error: as for raftify_propose, for all of them.
/// Threads: any, also inside a callback. Blocks: no.
/// Errors, then without a COMPLETION: INVALID_ARGUMENT, PROPOSAL_TOO_LARGE, OVERLOADED, CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_propose_many(
    node: *mut NodeHandle,
    proposals: *const Proposal,
    count: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands, also those within the proposals.
    unsafe {
        call(node, error, |node| {
            let timeout = timeout(timeout_ms)?;
            let proposals = slice(proposals, count, "proposals")?;
            let bytes = proposals.iter().map(|proposal| proposal.len).fold(0usize, usize::saturating_add);
            let mut commands = Gather::with_capacity(proposals.len(), bytes.min(RESERVED));
            for proposal in proposals {
                commands.push(
                    (token(proposal.token)?, Bytes::new()),
                    slice(proposal.data, proposal.len, "a proposal's data")?,
                );
            }
            node.node().propose_many(commands.finish(|(_, to), bytes| *to = bytes), timeout)
        })
    }
}

/// As raftify_propose_many for commands whose tokens follow one another, which lie one behind the other in one buffer.
///
/// first_token: of the first. data, len: all commands; copied; NULL is right for len 0. lens, count: how long each is, in
///   order, together `len`; copied. timeout_ms, error: as for raftify_propose, for all of them.
/// Threads: any, also inside a callback. Blocks: no.
/// Errors, then without a COMPLETION: INVALID_ARGUMENT, PROPOSAL_TOO_LARGE, OVERLOADED, CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_propose_row(
    node: *mut NodeHandle,
    first_token: u64,
    data: *const u8,
    len: usize,
    lens: *const u64,
    count: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            let timeout = timeout(timeout_ms)?;
            let (data, lens) = (slice(data, len, "data")?, slice(lens, count, "lens")?);
            node.node().propose_many(row(first_token, data, lens)?, timeout)
        })
    }
}

fn row(first_token: u64, data: &[u8], lens: &[u64]) -> Result<Vec<(u64, Bytes)>> {
    let mut rest = Bytes::copy_from_slice(data);
    let mut commands = Vec::with_capacity(lens.len());
    for (len, number) in lens.iter().zip(0u64..) {
        let len = usize::try_from(*len).ok().filter(|len| *len <= rest.len());
        let len = len.ok_or_else(|| invalid(format!("the command at {number} is longer than what is left of data")))?;
        commands.push((token(first_token.saturating_add(number))?, rest.split_to(len)));
    }
    if !rest.is_empty() {
        return Err(invalid(format!("{} bytes of data belong to no command", rest.len())));
    }
    Ok(commands)
}

/// Linearizable read. COMPLETION: the state machine of this node now holds everything that was acknowledged anywhere
/// before this call; `index` says up to where. `data` is empty: the caller reads its own state machine.
///
/// token, timeout_ms, error: as for raftify_propose.
/// Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
///   CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_read(
    node: *mut NodeHandle,
    token: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { submit(node, token, timeout_ms, error, || Ok(Request::Read)) }
}

/// Several linearizable reads with one hand-over: either all are accepted or none. Each has its own COMPLETION.
///
/// tokens, count: copied; each as for raftify_propose. timeout_ms, error: as for raftify_propose, for all of them.
/// Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
///   CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_read_many(
    node: *mut NodeHandle,
    tokens: *const u64,
    count: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            let timeout = timeout(timeout_ms)?;
            let tokens = slice(tokens, count, "tokens")?.iter().map(|t| token(*t)).collect::<Result<Vec<_>>>()?;
            node.node().read_many(tokens, timeout)
        })
    }
}

/// Reserves an id for the node at `addr`, or finds the one it has. COMPLETION: `data` is a ticket as JSON, for
/// raftify_join.
///
/// addr: host:port of the node that will join, UTF-8, copied; empty: not known yet. token, timeout_ms, error: as for
///   raftify_propose.
/// Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
///   CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_reserve_id(
    node: *mut NodeHandle,
    token: u64,
    addr: *const c_char,
    addr_len: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        submit(node, token, timeout_ms, error, || {
            Ok(Request::ReserveId { addr: text(addr, addr_len, "addr")?.to_owned() })
        })
    }
}

/// Joins the cluster that the ticket names: as a learner first, as a voter once caught up. COMPLETION: it is a
/// member; `data` is JSON. At once for one who is a member.
///
/// ticket_json: UTF-8, copied. token, timeout_ms, error: as for raftify_propose.
/// Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, CLOSED,
///   FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_join(
    node: *mut NodeHandle,
    token: u64,
    ticket_json: *const c_char,
    len: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            let ticket: Ticket = serde_json::from_str(text(ticket_json, len, "ticket_json")?)
                .map_err(|e| invalid(format!("ticket_json is no ticket: {e}")))?;
            node.node().join(self::token(token)?, ticket, timeout(timeout_ms)?)
        })
    }
}

/// Changes the membership, all in one step (joint consensus). COMPLETION: `data` is the cluster after it as JSON.
///
/// changes, count: at least one; copied with all they point to. token, timeout_ms, error: as for raftify_propose.
/// Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
///   CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_change_members(
    node: *mut NodeHandle,
    token: u64,
    changes: *const MemberChange,
    count: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands, also those within the changes.
    unsafe { submit(node, token, timeout_ms, error, || Ok(Request::ChangeMembers(self::changes(changes, count)?))) }
}

/// Takes this node out of its cluster for good; its id is spent. COMPLETION: it is out.
///
/// token, timeout_ms, error: as for raftify_propose.
/// Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
///   CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_leave(
    node: *mut NodeHandle,
    token: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { submit(node, token, timeout_ms, error, || Ok(Request::Leave)) }
}

/// Makes another member the leader. COMPLETION: `data` is {"leader_id":2}.
///
/// to: its id; 0: the one that is most up to date. token, timeout_ms, error: as for raftify_propose.
/// Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
///   CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_transfer_leader(
    node: *mut NodeHandle,
    token: u64,
    to: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { submit(node, token, timeout_ms, error, || Ok(Request::TransferLeader(transferee(to)))) }
}

/// Gives up leadership without naming a successor. COMPLETION: this node does not lead (any more).
///
/// token, timeout_ms, error: as for raftify_propose.
/// Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
///   CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_step_down(
    node: *mut NodeHandle,
    token: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { submit(node, token, timeout_ms, error, || Ok(Request::StepDown)) }
}

/// Takes a snapshot on this node; with nothing new since the last one, that one is named. COMPLETION: `data` is
/// {"index","term","size","path"}.
///
/// token, timeout_ms, error: as for raftify_propose.
/// Threads: any, also inside a callback. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED,
///   CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_snapshot(
    node: *mut NodeHandle,
    token: u64,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { submit(node, token, timeout_ms, error, || Ok(Request::Snapshot)) }
}

/// Hands the node a raft message as if it had come over the wire: for programs written for earlier releases. It is
/// checked like one from the wire, and dropped if it cannot be; COMPLETION says only that it was looked at.
///
/// message: in, an encoded eraftpb.Message of len bytes. token, timeout_ms, error: as for raftify_propose.
/// Threads: any. Blocks: no. Errors, then without a COMPLETION: INVALID_ARGUMENT, OVERLOADED, CLOSED, FORKED; in the
///   COMPLETION: INVALID_ARGUMENT if it cannot be decoded. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_send_message(
    node: *mut NodeHandle,
    token: u64,
    message: *const u8,
    len: usize,
    timeout_ms: i64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe { submit(node, token, timeout_ms, error, || Ok(Request::Message(slice(message, len, "message")?.to_vec()))) }
}
