//! In a forked child every handle of the parent is dead, and nothing hangs; the parent does not notice.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::ptr::null_mut;

use common::*;
use raftify_capi::*;

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
