//! Descriptors: what to do where there are none left; and those that a forked child inherits and has to let go of. Close-on-exec does
//! nothing for a child that never execs, and what it keeps open lives on after the parent has closed it (a port stays taken, a peer's
//! stream does not end).
//!
//! Lives here: which numbers those are, and how long a lack is waited out. May not live here: closing them, which is raw and for the
//! forked child alone.
//!
//! Invariants: no lock (the thread that held it at the fork does not exist in the child); a number is given up before its descriptor
//! is closed, so that it is not closed again when it stands for something else.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::io::Errno;

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

/// Between two tries, and how many of them.
const PAUSE: Duration = Duration::from_millis(50);
const TRIES: u32 = 200;

/// Tries an opening again for ten seconds while the process, or the system, has no descriptor left: nothing was done, others let go of theirs,
/// and for a log this is a slow disk. Blocks.
pub(crate) fn retry_while_out_of_descriptors<T>(open: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    retry(open, PAUSE)
}

fn retry<T>(mut open: impl FnMut() -> std::io::Result<T>, pause: Duration) -> std::io::Result<T> {
    for _ in 0..TRIES {
        match open() {
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::MFILE | Errno::NFILE)) => {
                std::thread::sleep(pause)
            }
            opened => return opened,
        }
    }
    open()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_is_waited_out_for_a_while_and_nothing_else_is() {
        for (errno, fails, tries, ends_well) in [
            (Errno::MFILE, 3, 4, true),
            (Errno::NFILE, 3, 4, true),
            (Errno::MFILE, 1000, TRIES + 1, false),
            (Errno::NOSPC, 3, 1, false),
        ] {
            let mut tried = 0;
            let open = || {
                tried += 1;
                if tried > fails {
                    Ok(())
                } else {
                    Err(errno.into())
                }
            };
            let opened = retry(open, Duration::ZERO);
            assert_eq!((opened.is_ok(), tried), (ends_well, tries), "{errno}");
        }
    }
}
