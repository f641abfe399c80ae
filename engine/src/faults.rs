//! What fails once because a test says so, on the thread that says it.

use std::cell::Cell;
use std::io;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A thread cannot be started.
    Thread,
    /// Bytes of a snapshot are not written.
    Write,
    /// A snapshot's file is not synced.
    Sync,
    /// The directory of the snapshots is not synced.
    SyncDirectory,
}

thread_local! {
    static NEXT: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// The next time that this is done on this thread it fails.
pub(crate) fn fail_next(fault: Fault) {
    NEXT.set(Some(fault));
}

/// This is about to be done.
pub(crate) fn due(fault: Fault) -> io::Result<()> {
    if NEXT.get() == Some(fault) {
        NEXT.set(None);
        return Err(io::Error::other("injected"));
    }
    Ok(())
}
