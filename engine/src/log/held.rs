//! The directories that nodes of this process hold.
//!
//! Lives here: which ones, and one at a time who may change that. May not live here: the lock that keeps other processes out.
//!
//! Invariants: true in a forked child too, which has this memory but holds none of these directories, and must not wait for a thread
//! that it does not have. So everything is tagged with a process: an entry counts in its own process alone, and the turn of
//! another process is over. Hence numbers in atomics, and no mutex of the standard library, which nobody could open again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Device and inode: a directory stays the same one under another name.
pub(super) type DirectoryKey = (u64, u64);

/// No process has this number.
const NOBODY: u32 = 0;
/// A turn takes some system calls of which none waits for another process.
const PATIENCE: Duration = Duration::from_micros(50);

static DIRECTORIES: Held<4096> = Held::new();

struct Slot {
    /// Written last and cleared first: a turn cut off by a fork leaves no half of an entry.
    process: AtomicU32,
    device: AtomicU64,
    inode: AtomicU64,
}

struct Held<const N: usize> {
    turn: AtomicU32,
    slots: [Slot; N],
}

/// Waits for a turn of this process.
pub(super) fn turn() -> Turn<'static> {
    DIRECTORIES.wait(std::process::id())
}

/// Nobody else of its process changes what is held until this is dropped.
pub(super) struct Turn<'a> {
    turn: &'a AtomicU32,
    slots: &'a [Slot],
    process: u32,
}

impl<const N: usize> Held<N> {
    const fn new() -> Self {
        let slots = [const { Slot { process: AtomicU32::new(NOBODY), device: AtomicU64::new(0), inode: AtomicU64::new(0) } };
            N];
        Held { turn: AtomicU32::new(NOBODY), slots }
    }

    fn wait(&self, process: u32) -> Turn<'_> {
        let mut seen = NOBODY;
        // Taken from nobody, or from the process that this one was forked from.
        while let Err(now) = self.turn.compare_exchange(seen, process, Ordering::Acquire, Ordering::Relaxed) {
            seen = now;
            if now == process {
                std::thread::sleep(PATIENCE);
                seen = NOBODY;
            }
        }
        Turn { turn: &self.turn, slots: &self.slots, process }
    }
}

impl Turn<'_> {
    fn find(&self, (device, inode): DirectoryKey) -> Option<&Slot> {
        self.slots.iter().find(|slot| {
            slot.process.load(Ordering::Relaxed) == self.process
                && slot.device.load(Ordering::Relaxed) == device
                && slot.inode.load(Ordering::Relaxed) == inode
        })
    }

    pub(super) fn holds(&self, key: DirectoryKey) -> bool {
        self.find(key).is_some()
    }

    /// False if there is no room for another.
    #[must_use]
    pub(super) fn add(&mut self, (device, inode): DirectoryKey) -> bool {
        let Some(slot) = self.slots.iter().find(|slot| slot.process.load(Ordering::Relaxed) != self.process) else {
            return false;
        };
        slot.process.store(NOBODY, Ordering::Relaxed);
        slot.device.store(device, Ordering::Release);
        slot.inode.store(inode, Ordering::Release);
        slot.process.store(self.process, Ordering::Release);
        true
    }

    pub(super) fn remove(&mut self, key: DirectoryKey) {
        if let Some(slot) = self.find(key) {
            slot.process.store(NOBODY, Ordering::Relaxed);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turn.store(NOBODY, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: u32 = 10;
    const CHILD: u32 = 11;

    #[test]
    fn what_is_held_is_held_until_it_is_removed_and_there_is_room_for_so_many() {
        let held = Held::<2>::new();
        let mut turn = held.wait(PARENT);
        assert!(turn.add((1, 2)) && turn.add((1, 3)) && !turn.add((1, 4)));
        assert!(turn.holds((1, 2)) && turn.holds((1, 3)) && !turn.holds((1, 4)));
        turn.remove((1, 2));
        assert!(!turn.holds((1, 2)) && turn.add((1, 4)) && turn.holds((1, 4)));
    }

    #[test]
    fn a_forked_child_holds_nothing_and_does_not_wait_for_a_turn_of_its_parent() {
        let held = Held::<1>::new();
        let mut parent = held.wait(PARENT);
        assert!(parent.add((1, 2)));
        // The fork copies the memory in the middle of the turn, which here never ends.
        std::mem::forget(parent);
        let mut child = held.wait(CHILD);
        assert!(!child.holds((1, 2)));
        assert!(child.add((1, 2)) && child.holds((1, 2)));
    }

    #[test]
    fn threads_take_turns() {
        let held = Held::<4>::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let held = &held;
                scope.spawn(move || {
                    for round in 0..200 {
                        let mut turn = held.wait(PARENT);
                        assert!(!turn.holds((0, 0)), "round {round} of thread {thread} is not alone");
                        assert!(turn.add((0, 0)));
                        std::thread::yield_now();
                        turn.remove((0, 0));
                    }
                });
            }
        });
    }
}
