//! A forked child has our memory but not our threads: what was made before the fork is dead in it, and must neither
//! hang nor touch what the parent goes on using.

use std::sync::atomic::{AtomicU32, Ordering};

use raftify_engine::{Error, ErrorCode, Result};

/// The process in which a handle was made.
pub(crate) struct Owner(u32);

impl Owner {
    pub(crate) fn here() -> Self {
        Owner(std::process::id())
    }

    pub(crate) fn is_here(&self) -> bool {
        self.0 == std::process::id()
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_here() {
            return Ok(());
        }
        Err(Error::not_done(
            ErrorCode::Forked,
            format!("this handle was made in process {}, before a fork; make a new one in this process", self.0),
        ))
    }
}

/// The process in which the inherited descriptors were closed last: there their numbers may already stand for others.
static CLOSED_IN: AtomicU32 = AtomicU32::new(0);

fn close_raw(descriptor: i32) {
    // SAFETY: the number is of a descriptor that this library opened and the parent has not closed (it is unregistered before that); its
    // owner in this process is a handle that is dead here and never dropped, so nobody else closes it.
    unsafe { rustix::io::close(descriptor) };
}

/// To be called in a child right after fork(), when the parent had used this library (`pthread_atfork`, Python's
/// `os.register_at_fork`). Closes the descriptors that the child inherited from queues, from the locks of directories,
/// and of every socket: without it a port stays taken, and a peer's connection open, after the parent has closed them,
/// until the child ends. Needless before an exec: every descriptor of this library is close-on-exec. Also without this call
/// every handle of the parent is dead in the child: calls return `RAFTIFY_ERR_FORKED`, a free returns it too and
/// leaks, and no thread is waited for. Called again: no effect.
///
/// Threads: the one that forked, which is the only one of the child. Blocks: no; waits for no lock. Errors: none.
///   Since: ABI 1.
#[no_mangle]
pub extern "C" fn raftify_after_fork_in_child() {
    let here = std::process::id();
    if CLOSED_IN.swap(here, Ordering::AcqRel) == here {
        return;
    }
    // Locks of directories are POSIX record locks, which the child does not hold: closing its copy leaves the parent's lock alone.
    for descriptor in raftify_engine::descriptors::take_inherited() {
        close_raw(descriptor);
    }
}
