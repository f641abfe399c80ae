//! `raftify_error`: what a failed call says beyond its status.

use std::ffi::{c_char, CString};

use raftify_engine::{Error, ErrorCode};

use crate::json;

/// Status of every call: 0 is success, a negative number one of `RAFTIFY_ERR_*`. Newer libraries may add numbers.
#[allow(non_camel_case_types)]
pub type raftify_status = i32;

/// Success.
pub const RAFTIFY_OK: i32 = 0;
/// A setting is wrong; the error names its field.
pub const RAFTIFY_ERR_INVALID_CONFIG: i32 = -1;
/// An argument of the call is wrong.
pub const RAFTIFY_ERR_INVALID_ARGUMENT: i32 = -2;
/// Only the leader can do this; the error names it, if it is known.
pub const RAFTIFY_ERR_NOT_LEADER: i32 = -3;
/// The deadline came and nothing was ever sent to a leader.
pub const RAFTIFY_ERR_NO_LEADER: i32 = -4;
/// A queue is full. Try again later.
pub const RAFTIFY_ERR_OVERLOADED: i32 = -5;
/// The command is larger than `max_proposal_size`.
pub const RAFTIFY_ERR_PROPOSAL_TOO_LARGE: i32 = -6;
/// The leader was lost before it answered: the outcome is in the error's `committed`.
pub const RAFTIFY_ERR_LEADERSHIP_LOST: i32 = -7;
/// The deadline came: the outcome is in the error's `committed`.
pub const RAFTIFY_ERR_TIMEOUT: i32 = -8;
/// The command failed in the state machine, on every node alike.
pub const RAFTIFY_ERR_APPLY_FAILED: i32 = -9;
/// Committed, but a snapshot overtook the result.
pub const RAFTIFY_ERR_RESULT_LOST: i32 = -10;
/// A snapshot could not be taken.
pub const RAFTIFY_ERR_SNAPSHOT_FAILED: i32 = -11;
/// A command came to something else on this node than on the majority: the node has stopped. `index` names the command.
pub const RAFTIFY_ERR_STATE_DIVERGED: i32 = -12;
/// The membership change is impossible now or at all.
pub const RAFTIFY_ERR_MEMBERSHIP: i32 = -13;
/// This node was removed from its cluster.
pub const RAFTIFY_ERR_REMOVED: i32 = -14;
/// A file or directory cannot be used; the error names its path.
pub const RAFTIFY_ERR_STORAGE: i32 = -15;
/// The disk is full.
pub const RAFTIFY_ERR_DISK_FULL: i32 = -16;
/// What was read is not what was written.
pub const RAFTIFY_ERR_CORRUPT_DATA: i32 = -17;
/// The directory belongs to another node or cluster, or was wiped.
pub const RAFTIFY_ERR_WRONG_DIRECTORY: i32 = -18;
/// Another node has the directory open.
pub const RAFTIFY_ERR_DIRECTORY_IN_USE: i32 = -19;
/// The directory was written by a newer version.
pub const RAFTIFY_ERR_FORMAT_TOO_NEW: i32 = -20;
/// Nobody could be reached.
pub const RAFTIFY_ERR_CONNECTION_FAILED: i32 = -21;
/// Certificates: a file of them cannot be used, or one side does not take the other's; the error says which and why.
pub const RAFTIFY_ERR_TLS: i32 = -22;
/// The other side belongs to another cluster.
pub const RAFTIFY_ERR_CLUSTER_MISMATCH: i32 = -23;
/// The node, client or queue is closed.
pub const RAFTIFY_ERR_CLOSED: i32 = -24;
/// The handle was made before a fork, in the parent process.
pub const RAFTIFY_ERR_FORKED: i32 = -25;
/// A defect of the library: the node is closed. Please report it.
pub const RAFTIFY_ERR_INTERNAL: i32 = -26;
/// The call is not allowed inside a callback.
pub const RAFTIFY_ERR_REENTRANT: i32 = -27;
/// The state machine itself failed, and its node stopped.
pub const RAFTIFY_ERR_MACHINE_FAILED: i32 = -28;
/// The cluster knows the client's session no longer: whether a command of it was applied cannot be found out any more.
pub const RAFTIFY_ERR_SESSION_EXPIRED: i32 = -29;

/// A failure: its code, a text for people (what, why, what to do), and the facts a program acts on. Never changes;
/// may be read by many threads.
pub struct ErrorObject {
    code: i32,
    message: CString,
    json: CString,
}

/// Text for C: without a NUL inside.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

impl ErrorObject {
    pub(crate) fn new(error: &Error) -> Self {
        ErrorObject {
            code: error.code as i32,
            message: c_text(&error.message),
            json: c_text(&json::error(error).to_string()),
        }
    }
}

/// A thread did not end within the time that a free waits.
pub(crate) fn left_behind(what: &str) -> Error {
    Error::unknown(ErrorCode::Timeout, format!("{what} did not end in time and is left behind"))
}

/// The name of a status: "ok", "InvalidConfig", "Timeout", ...; "unknown" for a number this library does not know.
///
/// Returns: static text, NUL-terminated; never freed.
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub extern "C" fn raftify_status_name(status: i32) -> *const c_char {
    macro_rules! names {
        ($($code:ident)*) => {
            match ErrorCode::from_i32(status) {
                $(Some(ErrorCode::$code) => concat!(stringify!($code), "\0"),)*
                None if status == 0 => "ok\0",
                None => "unknown\0",
            }
        };
    }
    let name = names! {
        InvalidConfig InvalidArgument NotLeader NoLeader Overloaded ProposalTooLarge LeadershipLost Timeout ApplyFailed
        ResultLost SnapshotFailed StateDiverged Membership Removed Storage DiskFull CorruptData WrongDirectory DirectoryInUse
        FormatTooNew ConnectionFailed Tls ClusterMismatch Closed Forked Internal Reentrant MachineFailed SessionExpired
    };
    name.as_ptr().cast()
}

/// The status that this error stands for; 0 for NULL.
///
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_error_code(error: *const ErrorObject) -> i32 {
    // SAFETY: NULL or a live error object (preface of the header).
    unsafe { error.as_ref() }.map_or(0, |error| error.code)
}

/// What happened, to what, why, and what to do about it, as UTF-8.
///
/// Returns: text, NUL-terminated, that lives as long as `error`; "" for NULL.
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_error_message(error: *const ErrorObject) -> *const c_char {
    // SAFETY: NULL or a live error object (preface of the header).
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// Everything the error knows, as one JSON object: {"code":-8, "name":"Timeout", "message":"...",
/// "committed":true|false|null, "retryable":false, "leader_id":1|null, "leader_addr":"..."|null, "path":"..."|null,
/// "index":7|null, "field":"..."|null}. `committed`: the command is in the log for good (true), certainly is not and
/// never will be (false), nobody can say (null). `retryable`: it certainly was not done, and the cause may pass.
/// Newer libraries may add keys.
///
/// Returns: text, NUL-terminated, that lives as long as `error`; "null" for NULL.
/// Threads: any. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_error_json(error: *const ErrorObject) -> *const c_char {
    // SAFETY: NULL or a live error object (preface of the header).
    unsafe { error.as_ref() }.map_or(c"null".as_ptr(), |error| error.json.as_ptr())
}

/// Frees an error object; NULL is ignored. Its texts end with it.
///
/// Threads: any, once. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_error_free(error: *mut ErrorObject) {
    if !error.is_null() {
        // SAFETY: made by Box::into_raw in `finish`, and the caller gives it back once (preface of the header).
        drop(unsafe { Box::from_raw(error) });
    }
}

/// Frees a text that a function of this library handed out as `char **`; NULL is ignored.
///
/// Threads: any, once. Blocks: no. Errors: none. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: made by CString::into_raw, not changed in length, and given back once (preface of the header).
        drop(unsafe { CString::from_raw(text) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn name_of(status: i32) -> &'static str {
        // SAFETY: raftify_status_name returns static text.
        unsafe { CStr::from_ptr(raftify_status_name(status)) }.to_str().unwrap()
    }

    #[test]
    fn every_code_of_the_engine_has_its_constant_and_its_name() {
        let constants = [
            RAFTIFY_ERR_INVALID_CONFIG,
            RAFTIFY_ERR_INVALID_ARGUMENT,
            RAFTIFY_ERR_NOT_LEADER,
            RAFTIFY_ERR_NO_LEADER,
            RAFTIFY_ERR_OVERLOADED,
            RAFTIFY_ERR_PROPOSAL_TOO_LARGE,
            RAFTIFY_ERR_LEADERSHIP_LOST,
            RAFTIFY_ERR_TIMEOUT,
            RAFTIFY_ERR_APPLY_FAILED,
            RAFTIFY_ERR_RESULT_LOST,
            RAFTIFY_ERR_SNAPSHOT_FAILED,
            RAFTIFY_ERR_STATE_DIVERGED,
            RAFTIFY_ERR_MEMBERSHIP,
            RAFTIFY_ERR_REMOVED,
            RAFTIFY_ERR_STORAGE,
            RAFTIFY_ERR_DISK_FULL,
            RAFTIFY_ERR_CORRUPT_DATA,
            RAFTIFY_ERR_WRONG_DIRECTORY,
            RAFTIFY_ERR_DIRECTORY_IN_USE,
            RAFTIFY_ERR_FORMAT_TOO_NEW,
            RAFTIFY_ERR_CONNECTION_FAILED,
            RAFTIFY_ERR_TLS,
            RAFTIFY_ERR_CLUSTER_MISMATCH,
            RAFTIFY_ERR_CLOSED,
            RAFTIFY_ERR_FORKED,
            RAFTIFY_ERR_INTERNAL,
            RAFTIFY_ERR_REENTRANT,
            RAFTIFY_ERR_MACHINE_FAILED,
            RAFTIFY_ERR_SESSION_EXPIRED,
        ];
        assert_eq!(constants.to_vec(), ErrorCode::ALL.map(|code| code as i32).to_vec());
        for code in ErrorCode::ALL {
            assert_eq!(name_of(code as i32), code.name());
        }
        assert_eq!((name_of(0), name_of(1), name_of(-1000)), ("ok", "unknown", "unknown"));
    }

    #[test]
    fn a_text_with_a_nul_inside_stays_whole_for_c() {
        let object = ErrorObject::new(&Error::not_done(ErrorCode::Storage, "a\0b").with_index(3));
        assert_eq!(object.message.to_str().unwrap(), "a\u{fffd}b");
        let json: serde_json::Value = serde_json::from_str(object.json.to_str().unwrap()).unwrap();
        assert_eq!(
            (json["code"].as_i64(), json["index"].as_u64(), json["committed"].as_bool()),
            (Some(-15), Some(3), Some(false))
        );
    }
}
