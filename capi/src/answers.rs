//! Answers of a state machine in pull form, to the requests that its node has put into the queue.

use std::ffi::c_char;

use raftify_engine::machine::{MachineAnswer, Outcome};
use raftify_engine::{Committed, Error, ErrorCode, Result};

use crate::error::{raftify_status, ErrorObject};
use crate::machine::outcome;
use crate::node::NodeHandle;
use crate::open_requests::Kind;
use crate::pointer::{call, invalid, place, slice, slice_mut, text};

/// What one command came to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MachineOutcome {
    /// The entry's.
    pub index: u64,
    /// The result for the proposer; if `failed`, the UTF-8 text of the failure.
    pub data: *const u8,
    pub len: usize,
    /// Not 0: the command failed, on every node alike.
    pub failed: i32,
    /// 0.
    pub reserved: u32,
}

/// Answers APPLY: the whole batch was applied, in order.
///
/// request: the record's token. outcomes, count: of every command that failed and of every one that was `wanted`,
///   ascending by index; copied with all they point to.
/// error: optional; receives an error object on failure.
/// Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
///   1.
#[no_mangle]
pub unsafe extern "C" fn raftify_apply_done(
    node: *mut NodeHandle,
    request: u64,
    outcomes: *const MachineOutcome,
    count: usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands, also those within the outcomes.
    unsafe {
        call(node, error, |node| {
            let copy =
                |o: &MachineOutcome| Ok((o.index, outcome(o.failed, slice(o.data, o.len, "an outcome's data")?)));
            let outcomes = slice(outcomes, count, "outcomes")?.iter().map(copy).collect::<Result<Vec<_>>>()?;
            node.open().answered(request, &[Kind::Apply])?;
            node.node().answer(MachineAnswer::Applied { id: request, outcomes })
        })
    }
}

/// One number of `N` bytes off the front.
fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>().ok_or_else(|| invalid("outcomes end within an outcome"))?;
    *rest = after;
    Ok(*first)
}

fn unpack(mut rest: &[u8]) -> Result<Vec<(u64, Outcome)>> {
    let mut outcomes = Vec::new();
    while !rest.is_empty() {
        let index = u64::from_le_bytes(take(&mut rest)?);
        let failed = u32::from_le_bytes(take(&mut rest)?);
        let len = usize::try_from(u32::from_le_bytes(take(&mut rest)?)).unwrap_or(usize::MAX);
        let (data, after) = rest
            .split_at_checked(len)
            .ok_or_else(|| invalid(format!("the outcome of index {index} is longer than what is left")))?;
        rest = after;
        outcomes.push((index, outcome(i32::from(failed != 0), data)));
    }
    Ok(outcomes)
}

/// SAFETY: every pointer is NULL or as the preface of the header demands.
unsafe fn answer_packed(
    node: *mut NodeHandle,
    request: u64,
    outcomes: *const u8,
    len: usize,
    error: *mut *mut ErrorObject,
    answer: fn(u64, Vec<(u64, Outcome)>) -> MachineAnswer,
) -> raftify_status {
    // SAFETY: see above.
    unsafe {
        call(node, error, |node| {
            let outcomes = unpack(slice(outcomes, len, "outcomes")?)?;
            node.open().answered(request, &[Kind::Apply])?;
            node.node().answer(answer(request, outcomes))
        })
    }
}

/// As raftify_apply_done, with the outcomes as one buffer: repeated { uint64 index; uint32 failed; uint32 len; uint8
/// data[len] }, little-endian, without padding.
///
/// outcomes, len: copied. request, error: as for raftify_apply_done.
/// Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
///   1.
#[no_mangle]
pub unsafe extern "C" fn raftify_apply_done_packed(
    node: *mut NodeHandle,
    request: u64,
    outcomes: *const u8,
    len: usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: as this function's own caller must see to it.
    unsafe {
        answer_packed(node, request, outcomes, len, error, |id, outcomes| MachineAnswer::Applied { id, outcomes })
    }
}

/// As raftify_apply_done_packed, where the program has itself given their results to those who waited for commands with a
/// `token` that `outcomes` does not name: these proposals end here, and no COMPLETION comes for their tokens (one that
/// had failed before, by its deadline for instance, has had its own). Saves the way of each result through the library.
///
/// outcomes, len: copied. request, error: as for raftify_apply_done.
/// Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
///   1.
#[no_mangle]
pub unsafe extern "C" fn raftify_apply_told_packed(
    node: *mut NodeHandle,
    request: u64,
    outcomes: *const u8,
    len: usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: as this function's own caller must see to it.
    unsafe {
        answer_packed(node, request, outcomes, len, error, |id, outcomes| MachineAnswer::AppliedAndTold {
            id,
            outcomes,
        })
    }
}

/// Answers SNAPSHOT, first part: the next bytes of the state, in pieces of any size (64 KiB or more is best).
///
/// request: the record's token. data: copied or written before the call returns; NULL is right for len 0. error:
///   optional; receives an error object on failure.
/// Threads: any, one at a time per request. Blocks: may wait for the disk.
/// Errors: STORAGE, DISK_FULL, INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED; after one end it
///   with raftify_snapshot_done, as failed. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_snapshot_chunk(
    node: *mut NodeHandle,
    request: u64,
    data: *const u8,
    len: usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            let data = slice(data, len, "data")?;
            node.open().check(request, Kind::Snapshot)?;
            node.node().snapshot_chunk(request, data)
        })
    }
}

/// Answers SNAPSHOT, last part: the state is complete, or could not be had. In the latter case the node goes on and
/// tries again later.
///
/// request: the record's token. failed: 0: complete; otherwise `reason` says why not. reason: UTF-8, copied. error:
///   optional; receives an error object on failure.
/// Threads: any. Blocks: may wait for the disk. Errors: STORAGE, DISK_FULL, INVALID_ARGUMENT (also if no such request
///   is open), CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_snapshot_done(
    node: *mut NodeHandle,
    request: u64,
    failed: i32,
    reason: *const c_char,
    len: usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            let reason = text(reason, len, "reason")?;
            let result = if failed == 0 { Ok(()) } else { Err(reason.to_owned()) };
            node.open().answered(request, &[Kind::Snapshot])?;
            node.node().snapshot_done(request, result)
        })
    }
}

/// While a RESTORE is open: reads bytes of the state, which are checked as they are read.
///
/// request: the record's token. offset: where to begin. out: borrowed for the call; gets up to `capacity` bytes,
///   which must be above 0.
/// n: receives how many; 0 at the end. There may be fewer than `capacity` before the end. error: optional; receives
///   an error object on failure.
/// Threads: any. Blocks: on the disk. Errors: CORRUPT_DATA, STORAGE, INVALID_ARGUMENT (also if no such request is
///   open), CLOSED, FORKED. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_restore_read(
    node: *mut NodeHandle,
    request: u64,
    offset: u64,
    out: *mut u8,
    capacity: usize,
    n: *mut usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            let n = place(n, "n")?;
            let out = slice_mut(out, capacity, "out")?;
            if out.is_empty() {
                return Err(invalid("capacity is 0"));
            }
            node.open().check(request, Kind::Restore)?;
            *n = node.node().restore_read(request, offset, out)?;
            Ok(())
        })
    }
}

/// Answers RESTORE: the state machine now holds that state.
///
/// request: the record's token. error: optional; receives an error object on failure.
/// Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
///   1.
#[no_mangle]
pub unsafe extern "C" fn raftify_restore_done(
    node: *mut NodeHandle,
    request: u64,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            node.open().answered(request, &[Kind::Restore])?;
            node.node().answer(MachineAnswer::Restored { id: request })
        })
    }
}

/// Answers APPLY or RESTORE: the state machine itself has failed (its disk, its memory), not a command. The node
/// stops; CLOSED carries RAFTIFY_ERR_MACHINE_FAILED with this reason.
///
/// request: the record's token. index: the entry it stopped at, which counts as not applied. reason: UTF-8, copied.
/// error: optional; receives an error object on failure.
/// Threads: any. Blocks: no. Errors: INVALID_ARGUMENT (also if no such request is open), CLOSED, FORKED. Since: ABI
///   1.
#[no_mangle]
pub unsafe extern "C" fn raftify_machine_failed(
    node: *mut NodeHandle,
    request: u64,
    index: u64,
    reason: *const c_char,
    len: usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    // SAFETY: every pointer is NULL or as the preface of the header demands.
    unsafe {
        call(node, error, |node| {
            let reason = text(reason, len, "reason")?;
            let error = Error::new(ErrorCode::MachineFailed, Committed::Unknown, reason).with_index(index);
            node.open().answered(request, &[Kind::Apply, Kind::Restore])?;
            node.node().answer(MachineAnswer::Failed { id: request, index, error })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(index: u64, failed: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = index.to_le_bytes().to_vec();
        bytes.extend(failed.to_le_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn packed_outcomes_are_taken_whole_or_refused() {
        let good = [packed(1, 0, b"one"), packed(2, 1, b"no\xff"), packed(3, 0, b"")].concat();
        assert_eq!(
            unpack(&good).unwrap(),
            [(1, Ok(b"one".to_vec())), (2, Err("no\u{fffd}".to_string())), (3, Ok(vec![]))]
        );
        assert_eq!(unpack(b"").unwrap(), []);
        let whole = [0, packed(1, 0, b"one").len(), packed(1, 0, b"one").len() + packed(2, 1, b"no\xff").len()];
        for cut in (0..good.len()).filter(|cut| !whole.contains(cut)) {
            assert_eq!(unpack(&good[..cut]).unwrap_err().code, ErrorCode::InvalidArgument, "cut at {cut}");
        }
    }
}
