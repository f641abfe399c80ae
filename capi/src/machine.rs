//! `raftify_machine`: the push form of a state machine, as a struct of functions.

use std::ffi::c_void;
use std::mem::offset_of;

use raftify_engine::machine::ApplyBatch;
use raftify_engine::machine_thread::{Results, SnapshotIn, SnapshotOut, StateMachine};
use raftify_engine::{Error, ErrorCode, Result};

use crate::error::raftify_status;
use crate::panic::{catch, CallbackScope};
use crate::pointer::{finish, invalid, null, place, slice, slice_mut};
use crate::record::Entry;
use crate::wake::UserData;

/// The results of one batch, while `apply` runs.
pub struct ResultsHandle {
    results: *mut Results,
}

/// Where a machine writes its state, while `snapshot` runs.
pub struct SnapshotWriter {
    /// Outlives the call it is made for; see `CMachine::snapshot`.
    out: *mut (dyn SnapshotOut + 'static),
}

/// Where a machine reads its state from, while `restore` runs.
pub struct SnapshotReader {
    /// Outlives the call it is made for; see `CMachine::restore`.
    input: *mut (dyn SnapshotIn + 'static),
}

/// Push form of a state machine. All functions are called from one thread of the node's own, in log order, never two
/// at a time, and must not unwind (no C++ exception, no longjmp). Inside them requests may be submitted; close, free,
/// wait and start are refused (RAFTIFY_ERR_REENTRANT).
///
/// Zero the struct first, then set struct_size to its size: the library takes what a shorter one lacks as NULL, and
/// refuses a longer one whose tail is not zero.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Machine {
    /// sizeof(raftify_machine).
    pub struct_size: u32,
    pub reserved: u32,
    /// Handed to every function.
    pub user_data: *mut c_void,
    /// Applies `count` commands, in order; the bytes of entries[i] lie at data + entries[i].offset. All pointers are
    /// borrowed for the call. Write what command i came to with raftify_results_set(results, i, ...); without it the
    /// result is empty. A command that fails, does so on every node alike: say it in its result. Return 0; any other
    /// number says that this machine itself has failed (its disk, its memory): the node stops. Required.
    pub apply: Option<
        unsafe extern "C" fn(
            user_data: *mut c_void,
            entries: *const Entry,
            count: usize,
            data: *const u8,
            results: *mut ResultsHandle,
        ) -> i32,
    >,
    /// Writes out the state with raftify_snapshot_write, any number of times. Return 0; on any other number there is
    /// no snapshot, the node goes on and tries later. Without this function there are no snapshots, and the log is
    /// never shortened.
    pub snapshot: Option<unsafe extern "C" fn(user_data: *mut c_void, writer: *mut SnapshotWriter) -> i32>,
    /// Replaces the state by what raftify_snapshot_read gives. Return 0; any other number stops the node.
    pub restore: Option<unsafe extern "C" fn(user_data: *mut c_void, reader: *mut SnapshotReader) -> i32>,
    /// Optional; called exactly once, on any thread, after the last call of the others; also if raftify_node_start
    /// fails (then before it returns).
    pub destroy: Option<unsafe extern "C" fn(user_data: *mut c_void)>,
}

/// No version of the struct is longer than this; a larger size is a mistake, and its tail is not read.
const MAX_STRUCT_SIZE: usize = 1024;

impl Machine {
    /// Copies the caller's struct by the rules of struct_size. The user data is owned from here on: destroyed also on
    /// a refusal, as far as the struct could be read.
    pub(crate) unsafe fn take(machine: *const Machine) -> (Option<CMachine>, Result<()>) {
        // SAFETY: every version of the struct begins with its size (header).
        let size = usize::try_from(unsafe { machine.cast::<u32>().read() }).unwrap_or(usize::MAX);
        let word = size_of::<usize>();
        let required = offset_of!(Machine, apply).saturating_add(word);
        if size < required || size > MAX_STRUCT_SIZE || size % word != 0 {
            return (None, Err(invalid(format!("machine.struct_size is {size}; set it to sizeof(raftify_machine)"))));
        }
        let none = std::ptr::null_mut();
        let mut copy = Machine {
            struct_size: 0,
            reserved: 0,
            user_data: none,
            apply: None,
            snapshot: None,
            restore: None,
            destroy: None,
        };
        let known = size.min(size_of::<Machine>());
        // SAFETY: the caller says that `size` bytes are there (header); `known` is no more than that nor than the
        // copy, and holds whole
        // fields. Any bytes of a pointer are a valid optional function pointer as far as the header's demand goes:
        // NULL or a function of that type.
        unsafe { std::ptr::copy_nonoverlapping(machine.cast::<u8>(), (&raw mut copy).cast::<u8>(), known) };
        // SAFETY: as above, the bytes after the known ones, if there are any.
        let tail = unsafe { std::slice::from_raw_parts(machine.cast::<u8>().add(known), size.saturating_sub(known)) };
        let newer = tail.iter().any(|byte| *byte != 0);
        let (reserved, no_apply) = (copy.reserved, copy.apply.is_none());
        let machine = CMachine { functions: copy, user_data: UserData::new(copy.user_data, copy.destroy) };
        let checked = if newer || reserved != 0 {
            Err(invalid(
                "machine has fields that this library does not know; use a newer library, or zero the struct first",
            ))
        } else if no_apply {
            Err(null("machine.apply"))
        } else {
            Ok(())
        };
        (Some(machine), checked)
    }
}

/// A machine of a C program.
pub(crate) struct CMachine {
    functions: Machine,
    user_data: UserData,
}

// SAFETY: the struct holds function pointers and the caller's own pointer; the header demands that they may be used
// from a thread of ours.
unsafe impl Send for CMachine {}

fn verdict(function: &str, returned: i32) -> Result<(), String> {
    match returned {
        0 => Ok(()),
        other => Err(format!("{function} returned {other}")),
    }
}

impl StateMachine for CMachine {
    fn apply(&mut self, batch: &ApplyBatch, results: &mut Results) -> Result<(), String> {
        let apply = self.functions.apply.ok_or("there is no apply")?;
        let mut entries = Vec::with_capacity(batch.entries.len());
        let mut data = Vec::with_capacity(batch.bytes());
        for (entry, command) in batch.commands() {
            entries.push(Entry::new(entry, data.len(), command));
            data.extend_from_slice(command);
        }
        let mut handle = ResultsHandle { results };
        let _scope = CallbackScope::enter();
        // SAFETY: the caller's function; every pointer lives until it returns, which is as long as it may use them
        // (header).
        let returned =
            unsafe { apply(self.user_data.pointer, entries.as_ptr(), entries.len(), data.as_ptr(), &raw mut handle) };
        verdict("apply", returned)
    }

    fn snapshot(&mut self, out: &mut dyn SnapshotOut) -> Result<(), String> {
        let snapshot = self.functions.snapshot.ok_or("the state machine has no snapshot function")?;
        // SAFETY: only the lifetime changes. The pointer is used by raftify_snapshot_write alone, which the header
        // allows only until
        // `snapshot` returns; `out` lives longer than that.
        let out = unsafe { std::mem::transmute::<*mut dyn SnapshotOut, *mut (dyn SnapshotOut + 'static)>(out) };
        let mut writer = SnapshotWriter { out };
        let _scope = CallbackScope::enter();
        // SAFETY: the caller's function; the writer lives until it returns.
        verdict("snapshot", unsafe { snapshot(self.user_data.pointer, &raw mut writer) })
    }

    fn restore(&mut self, input: &mut dyn SnapshotIn) -> Result<(), String> {
        let restore = self.functions.restore.ok_or("the state machine has no restore function")?;
        // SAFETY: as in `snapshot`.
        let input = unsafe { std::mem::transmute::<*mut dyn SnapshotIn, *mut (dyn SnapshotIn + 'static)>(input) };
        let mut reader = SnapshotReader { input };
        let _scope = CallbackScope::enter();
        // SAFETY: the caller's function; the reader lives until it returns.
        verdict("restore", unsafe { restore(self.user_data.pointer, &raw mut reader) })
    }
}

/// Inside `apply`: what command `i` of the batch came to. Set again, the later one holds.
///
/// failed: 0: `data` is the result for the proposer; otherwise the UTF-8 text of the command's failure.
/// data: copied; NULL is right for len 0.
/// Threads: the one that runs `apply`, until it returns. Blocks: no. Errors: INVALID_ARGUMENT (also for an `i` beyond
///   the batch). Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_results_set(
    results: *mut ResultsHandle,
    i: usize,
    failed: i32,
    data: *const u8,
    len: usize,
) -> raftify_status {
    let set = || -> Result<()> {
        // SAFETY: NULL, or the pointer that `apply` was given, while it runs: then what it holds is alive and used
        // by nobody else.
        let results = unsafe { place(place(results, "results")?.results, "results") }?;
        // SAFETY: NULL or `len` bytes (preface of the header).
        let data = unsafe { slice(data, len, "data") }?;
        results.set(i, outcome(failed, data))
    };
    // SAFETY: no error slot.
    unsafe { finish(catch(set), std::ptr::null_mut()) }
}

/// The outcome of a command from its two parts. A failure's text that is not UTF-8 is taken as far as it can be.
pub(crate) fn outcome(failed: i32, data: &[u8]) -> raftify_engine::machine::Outcome {
    match failed {
        0 => Ok(data.to_vec()),
        _ => Err(String::from_utf8_lossy(data).into_owned()),
    }
}

/// Inside `snapshot`: appends bytes to the snapshot, in pieces of any size.
///
/// data: copied; NULL is right for len 0.
/// Threads: the one that runs `snapshot`, until it returns. Blocks: on the disk.
/// Errors: what the disk says (STORAGE, DISK_FULL), CLOSED; after one the snapshot is lost, whatever `snapshot`
///   returns. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_snapshot_write(
    writer: *mut SnapshotWriter,
    data: *const u8,
    len: usize,
) -> raftify_status {
    let write = || -> Result<()> {
        // SAFETY: NULL, or the pointer that `snapshot` was given, while it runs: then what it holds is alive and
        // used by nobody else.
        let out = unsafe { place(place(writer, "writer")?.out, "writer") }?;
        // SAFETY: NULL or `len` bytes (preface of the header).
        out.write(unsafe { slice(data, len, "data") }?)
    };
    // SAFETY: no error slot.
    unsafe { finish(catch(write), std::ptr::null_mut()) }
}

/// Inside `restore`: reads the next bytes of the state, which were checked.
///
/// out: borrowed for the call; gets up to `capacity` bytes, which must be above 0.
/// n: receives how many; 0 at the end. There may be fewer than `capacity` before the end.
/// Threads: the one that runs `restore`, until it returns. Blocks: on the disk.
/// Errors: CORRUPT_DATA, STORAGE, CLOSED; after one the node stops, whatever `restore` returns. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_snapshot_read(
    reader: *mut SnapshotReader,
    out: *mut u8,
    capacity: usize,
    n: *mut usize,
) -> raftify_status {
    let read = || -> Result<()> {
        // SAFETY: NULL or writable (preface of the header).
        let n = unsafe { place(n, "n") }?;
        // SAFETY: NULL, or the pointer that `restore` was given, while it runs: then what it holds is alive and
        // used by nobody else.
        let input = unsafe { place(place(reader, "reader")?.input, "reader") }?;
        // SAFETY: NULL or room for `capacity` bytes (preface of the header).
        let out = unsafe { slice_mut(out, capacity, "out") }?;
        if out.is_empty() {
            return Err(Error::not_done(ErrorCode::InvalidArgument, "capacity is 0"));
        }
        *n = input.read(out)?;
        Ok(())
    };
    // SAFETY: no error slot.
    unsafe { finish(catch(read), std::ptr::null_mut()) }
}
