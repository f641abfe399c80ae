//! Calls of the system that threads hear each other by. The kernel carries them out; others may run before each.

use shuttle::sync::atomic::{AtomicBool, Ordering};

/// Where the checker may switch, and nothing else.
fn switch() {
    AtomicBool::new(false).load(Ordering::SeqCst);
}

pub fn read(fd: impl std::os::fd::AsFd, bytes: &mut [u8]) -> rustix::io::Result<usize> {
    switch();
    rustix::io::read(fd, bytes)
}

pub fn write(fd: impl std::os::fd::AsFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    switch();
    rustix::io::write(fd, bytes)
}
