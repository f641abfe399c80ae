//! Descriptors that a forked child inherits and has to let go of: close-on-exec does nothing for a child that never execs, and what
//! it keeps open lives on after the parent has closed it (a port stays taken, a peer's stream does not end).
//!
//! Lives here: which numbers those are. May not live here: closing them, which is raw and for the forked child alone.
//!
//! Invariants: no lock (the thread that held it at the fork does not exist in the child); a number is given up before its descriptor
//! is closed, so that it is not closed again when it stands for something else.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

const NONE: RawFd = -1;

/// One that finds no slot is merely not closed in children.
static OPEN: [AtomicI32; 4096] = [const { AtomicI32::new(NONE) }; 4096];

/// Notes a descriptor as long as it lives. Declared before its descriptor in a struct, it is dropped before it, as it must be.
#[derive(Debug)]
pub struct Inherited(RawFd);

impl Inherited {
    pub fn note(descriptor: &impl AsRawFd) -> Self {
        let descriptor = descriptor.as_raw_fd();
        for slot in &OPEN {
            if slot.compare_exchange(NONE, descriptor, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                break;
            }
        }
        Inherited(descriptor)
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        for slot in &OPEN {
            if slot.compare_exchange(self.0, NONE, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                break;
            }
        }
    }
}

/// All that are noted, each given up by this: for a forked child, which closes them raw.
pub fn take_inherited() -> impl Iterator<Item = RawFd> {
    OPEN.iter().map(|slot| slot.swap(NONE, Ordering::AcqRel)).filter(|descriptor| *descriptor != NONE)
}
