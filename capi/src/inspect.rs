//! A look into a directory, without a node.

use std::ffi::c_char;
use std::path::Path;

use raftify_engine::Result;

use crate::error::{c_text, raftify_status, ErrorObject};
use crate::panic::catch;
use crate::pointer::{finish, place, text};

/// Shows what the log in a directory holds, as JSON: {"identity", "hard_state":{"term","vote","commit"}, "snapshot",
/// "membership", "first_index", "last_index", "entries":[{"index","term","type","kind","time_us","proposer",
/// "session","size","data","context"}], "next_index"}; bytes are in hexadecimal. "kind" is "command" for the program's
/// own, otherwise "founding", "record_directory", "reserve_id", "open_session", "close_session", "membership", "empty"
/// or "unknown"; "time_us" and "proposer" are null where raft itself appended the entry, "session" is null where no
/// client sent it in one. Reads only, takes no lock: a node may run in that directory meanwhile.
///
/// dir: a node's directory, or a log_dir that holds exactly one; UTF-8, borrowed for the call.
/// from: index of the first entry to show; 0: the first there is. limit: how many at most; "next_index" says where to
///   go on, or is null.
/// out: receives UTF-8 text, NUL-terminated; owned, free with raftify_string_free. out_len: optional; receives its
///   length without the NUL.
/// error: optional; receives an error object on failure.
/// Threads: any. Blocks: on the disk. Errors: INVALID_ARGUMENT, STORAGE, WRONG_DIRECTORY, CORRUPT_DATA,
///   FORMAT_TOO_NEW. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_inspect(
    dir: *const c_char,
    len: usize,
    from: u64,
    limit: u64,
    out: *mut *mut c_char,
    out_len: *mut usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    let look = || -> Result<()> {
        // SAFETY: NULL or writable (preface of the header).
        let out = unsafe { place(out, "out") }?;
        // SAFETY: NULL or `len` bytes (preface of the header).
        let dir = unsafe { text(dir, len, "dir") }?;
        let json = c_text(&look_into(Path::new(dir), from, limit)?.to_string());
        // SAFETY: NULL or writable (preface of the header).
        if let Some(out_len) = unsafe { out_len.as_mut() } {
            *out_len = json.as_bytes().len();
        }
        *out = json.into_raw();
        Ok(())
    };
    // SAFETY: `error` is NULL or writable (preface of the header).
    unsafe { finish(catch(look), error) }
}

#[cfg(feature = "interop")]
fn look_into(dir: &Path, from: u64, limit: u64) -> Result<serde_json::Value> {
    if raftify_interop::is_upstream(dir) {
        return raftify_interop::inspect(dir, from, limit);
    }
    raftify_engine::log::inspect(dir, from, limit)
}

#[cfg(not(feature = "interop"))]
fn look_into(dir: &Path, from: u64, limit: u64) -> Result<serde_json::Value> {
    raftify_engine::log::inspect(dir, from, limit)
}
