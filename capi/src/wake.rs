//! How the owner of a queue hears that it is no longer empty.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};

use raftify_engine::descriptors::Inherited;
use raftify_engine::{Error, ErrorCode, Result};
use rustix::io::Errno;

use crate::panic::CallbackScope;

pub(crate) type WakeFn = unsafe extern "C" fn(user_data: *mut c_void);
pub(crate) type DestroyFn = unsafe extern "C" fn(user_data: *mut c_void);

/// `user_data` and its end. Whatever becomes of it, `destroy` runs exactly once.
pub(crate) struct UserData {
    pub(crate) pointer: *mut c_void,
    destroy: Option<DestroyFn>,
}

// SAFETY: the pointer is never looked into here, only handed to the caller's functions, and the header demands of
// these that they
// may be called from any thread.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

impl UserData {
    pub(crate) fn new(pointer: *mut c_void, destroy: Option<DestroyFn>) -> Self {
        UserData { pointer, destroy }
    }
}

impl Drop for UserData {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy.take() {
            let _scope = CallbackScope::enter();
            // SAFETY: the caller's function with the caller's pointer, once, after the last other use of it.
            unsafe { destroy(self.pointer) };
        }
    }
}

pub(crate) enum Wake {
    /// By nothing but the condition variable of `raftify_queue_wait`.
    None,
    Descriptor(Descriptor),
    Callback(WakeFn),
}

/// A descriptor that is readable while it is set. Set and reset only under the queue's lock.
pub(crate) struct Descriptor {
    /// First of all, so that it is given up before the descriptors are closed.
    _inherited: Vec<Inherited>,
    read: OwnedFd,
    /// None where one descriptor is both ends (eventfd).
    write: Option<OwnedFd>,
}

impl Descriptor {
    pub(crate) fn new() -> Result<Self> {
        Self::open().map_err(|e| {
            Error::not_done(
                ErrorCode::Internal,
                format!("cannot make a descriptor to wake the queue's owner with: {e}"),
            )
        })
    }

    fn of(read: OwnedFd, write: Option<OwnedFd>) -> Self {
        let ends = [Some(&read), write.as_ref()].into_iter().flatten();
        Descriptor { _inherited: ends.map(Inherited::note).collect(), read, write }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn open() -> Result<Self, Errno> {
        use rustix::event::{eventfd, EventfdFlags};
        Ok(Self::of(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?, None))
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn open() -> Result<Self, Errno> {
        Self::open_pipe()
    }

    #[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
    fn open_pipe() -> Result<Self, Errno> {
        use rustix::fs::{fcntl_setfl, OFlags};
        use rustix::io::{fcntl_setfd, FdFlags};
        let (read, write) = rustix::pipe::pipe()?;
        for end in [&read, &write] {
            fcntl_setfd(end, FdFlags::CLOEXEC)?;
            fcntl_setfl(end, OFlags::NONBLOCK)?;
        }
        Ok(Self::of(read, Some(write)))
    }

    pub(crate) fn number(&self) -> i32 {
        self.read.as_raw_fd()
    }

    /// Makes it readable. A full pipe or counter is readable already.
    pub(crate) fn set(&self) {
        let end = self.write.as_ref().unwrap_or(&self.read);
        while rustix::io::write(end, &1u64.to_ne_bytes()) == Err(Errno::INTR) {}
    }

    /// Takes all that was set.
    pub(crate) fn reset(&self) {
        let mut bytes = [0; 64];
        loop {
            match rustix::io::read(&self.read, &mut bytes) {
                Err(Errno::INTR) => {}
                // One read empties an eventfd; of a pipe there may be more.
                Ok(n) if n == bytes.len() => {}
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{poll, PollFd, PollFlags, Timespec};

    fn readable(descriptor: &Descriptor) -> bool {
        let mut polled = [PollFd::new(&descriptor.read, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn a_descriptor_is_readable_from_set_to_reset() {
        for descriptor in [Descriptor::open().unwrap(), Descriptor::open_pipe().unwrap()] {
            assert!(!readable(&descriptor));
            for times in [1, 2, 100] {
                for _ in 0..times {
                    descriptor.set();
                }
                assert!(readable(&descriptor));
                descriptor.reset();
                assert!(!readable(&descriptor));
            }
            descriptor.reset();
        }
    }
}
