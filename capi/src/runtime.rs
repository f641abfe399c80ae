//! `raftify_runtime`: the thread that nodes and clients share.

use std::sync::Arc;
use std::time::Duration;

use raftify_engine::{Result, Runtime};

use crate::error::{left_behind, raftify_status, ErrorObject};
use crate::fork::Owner;
use crate::panic::catch;
use crate::pointer::{finish, free, invalid, place, Handle};

/// How long a free waits for threads to end.
pub(crate) const JOIN: Duration = Duration::from_secs(2);

/// One thread that drives nodes and clients and carries their network traffic. A program needs one; more spread nodes
/// over processors.
pub struct RuntimeHandle {
    owner: Owner,
    shared: Arc<Runtime>,
}

impl Handle for RuntimeHandle {
    const NAME: &'static str = "runtime";

    fn owner(&self) -> &Owner {
        &self.owner
    }

    fn in_use(&self) -> Result<()> {
        match Arc::strong_count(&self.shared).saturating_sub(1) {
            0 => Ok(()),
            users => Err(invalid(format!("{users} nodes or clients still use this runtime; free them before it"))),
        }
    }
}

impl RuntimeHandle {
    /// What a node or client holds for as long as it lives: the runtime is not freed under it.
    pub(crate) fn share(&self) -> Arc<Runtime> {
        Arc::clone(&self.shared)
    }
}

/// Starts a runtime: one thread, and one that starts another should a disk hold it up.
///
/// out: receives the runtime on success; owned, free with raftify_runtime_free.
/// error: optional; receives an error object on failure.
/// Threads: any. Blocks: no. Errors: INVALID_ARGUMENT, INTERNAL (no thread or descriptor to be had). Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_runtime_new(
    out: *mut *mut RuntimeHandle,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    let made = || -> Result<()> {
        // SAFETY: NULL or writable (preface of the header).
        let out = unsafe { place(out, "out") }?;
        let shared = Arc::new(Runtime::new()?);
        *out = Box::into_raw(Box::new(RuntimeHandle { owner: Owner::here(), shared }));
        Ok(())
    };
    // SAFETY: `error` is NULL or writable (preface of the header).
    unsafe { finish(catch(made), error) }
}

/// Ends the runtime's thread and frees the runtime; NULL is ignored. All nodes and clients on it must have been freed
/// before.
///
/// Threads: any, once. Blocks: until the thread has ended, at most 2 s.
/// Returns: 0; INVALID_ARGUMENT while a node or client uses it, and REENTRANT inside a callback: then nothing was
///   done; TIMEOUT if the thread had not ended: it is left behind and the handle is gone; FORKED in a forked child:
///   the handle is gone. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_runtime_free(runtime: *mut RuntimeHandle) -> raftify_status {
    let end = |handle: Box<RuntimeHandle>| {
        if handle.shared.shutdown(JOIN) {
            return Ok(());
        }
        Err(left_behind("the runtime's thread"))
    };
    // SAFETY: NULL or a live runtime, given back once (preface of the header).
    unsafe { free(runtime, end) }
}
