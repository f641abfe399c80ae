//! In a forked child every handle of the parent is dead, and nothing hangs; the parent does not notice.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::ptr::null_mut;

use common::*;
use raftify_capi::*;
use raftify_engine::log::DirectoryLock;
use raftify_engine::ErrorCode;

/// What a child must see. No test macro in it: a panic there would unwind into the harness of a process that is not whole.
fn in_child(runtime: *mut RuntimeHandle, queue: *mut QueueHandle, config: *mut ConfigHandle) -> i32 {
    let (name, len) = text("election_tick");
    let mut out = std::mem::MaybeUninit::<Event>::uninit();
    let mut node = null_mut();
    // Before and after the child was told: the same.
    for round in 0..2 {
        let seen = unsafe {
            [
                raftify_config_set(config, name, len, name, len, null_mut()) == RAFTIFY_ERR_FORKED,
                raftify_queue_wait(queue, -1) == RAFTIFY_ERR_FORKED,
                raftify_queue_fd(queue) == -1,
                raftify_queue_drain(queue, out.as_mut_ptr(), 1) == 0,
                raftify_node_start(
                    runtime,
                    queue,
                    config,
                    1,
                    name,
                    len,
                    std::ptr::null(),
                    0,
                    0,
                    std::ptr::null(),
                    &mut node,
                    null_mut(),
                ) == RAFTIFY_ERR_FORKED,
                raftify_runtime_free(runtime) == RAFTIFY_ERR_FORKED,
                raftify_queue_free(queue) == RAFTIFY_ERR_FORKED,
            ]
        };
        if let Some(at) = seen.iter().position(|right| !right) {
            return 1 + 10 * round + i32::try_from(at).unwrap_or(9);
        }
        raftify_after_fork_in_child();
    }
    0
}

#[test]
fn a_forked_child_gets_an_error_and_not_a_hang_and_the_parent_goes_on() {
    let (runtime, queue, config) = (new_runtime(), new_queue(RAFTIFY_WAKE_FD), raftify_config_new());
    let fd = unsafe { raftify_queue_fd(queue) };
    // SAFETY: the child runs `in_child` and leaves without running anything of the harness.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = in_child(runtime, queue, config);
        // The descriptor is closed in the child.
        let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1;
        unsafe { libc::_exit(if open { 99 } else { code }) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 0));
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
    unsafe {
        assert_eq!((raftify_queue_wait(queue, 0), raftify_queue_fd(queue)), (TIMEOUT, fd));
        assert_eq!((raftify_queue_free(queue), raftify_runtime_free(runtime)), (0, 0));
        raftify_config_free(config);
    }
}

fn tell(end: i32) -> bool {
    // SAFETY: one byte is read from.
    unsafe { libc::write(end, b"x".as_ptr().cast(), 1) == 1 }
}

fn hears(end: i32) -> bool {
    let mut byte = 0_u8;
    // SAFETY: one byte is written to.
    unsafe { libc::read(end, (&raw mut byte).cast(), 1) == 1 }
}

fn pipe() -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: two numbers are written to.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    ends
}

/// What the parent holds, and held, is no node of the child's.
fn looks_for_directory(directory: &std::path::Path, parent: u32, [refused, dropped]: [i32; 2]) -> i32 {
    match DirectoryLock::acquire(directory) {
        Err(e) if e.code == ErrorCode::DirectoryInUse && e.to_string().contains(&format!("by process {parent};")) => {}
        _ => return 1,
    }
    if !(tell(refused) && hears(dropped)) {
        return 2;
    }
    i32::from(DirectoryLock::acquire(directory).is_err()) * 3
}

#[test]
fn a_forked_child_is_kept_out_of_its_parents_directory_as_any_process_is_and_only_as_long() {
    let directory = tempfile::tempdir().unwrap();
    let lock = DirectoryLock::acquire(directory.path()).unwrap();
    let parent = std::process::id();
    let ([hear_refused, refused], [hear_dropped, dropped]) = (pipe(), pipe());
    // SAFETY: the child leaves without running anything of the harness.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = looks_for_directory(directory.path(), parent, [refused, hear_dropped]);
        unsafe { libc::_exit(code) };
    }
    unsafe { libc::close(refused) };
    // False if the child has ended, which its code says.
    let _ = hears(hear_refused);
    drop(lock);
    assert!(tell(dropped));
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 0));
    for end in [hear_refused, hear_dropped, dropped] {
        unsafe { libc::close(end) };
    }
}
