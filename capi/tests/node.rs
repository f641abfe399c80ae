//! A real node through the C ABI: every token completes once, restarts keep what was acknowledged, both forms of the machine.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::Mutex;

use common::*;
use raftify_capi::*;

fn command(token: u64) -> Vec<u8> {
    format!("command {token}").into_bytes()
}

#[test]
fn every_accepted_request_completes_exactly_once_and_closed_comes_last() {
    let mut rig = Rig::new();
    rig.start(null());
    for token in 1..=500 {
        rig.propose(token, &command(token));
    }
    let commands: Vec<(u64, Vec<u8>)> = (501..=750).map(|token| (token, command(token))).collect();
    let proposals: Vec<Proposal> =
        commands.iter().map(|(token, data)| Proposal { token: *token, data: data.as_ptr(), len: data.len() }).collect();
    let mut error = null_mut();
    ok(unsafe { raftify_propose_many(rig.node, proposals.as_ptr(), proposals.len(), -2, &mut error) }, error);
    let row: Vec<Vec<u8>> = (751..=1000).map(command).collect();
    let lens: Vec<u64> = row.iter().map(|command| command.len() as u64).collect();
    let data = row.concat();
    let (lens, count) = (lens.as_ptr(), lens.len());
    ok(unsafe { raftify_propose_row(rig.node, 751, data.as_ptr(), data.len(), lens, count, -2, &mut error) }, error);
    let mut last = 0;
    for token in 1..=1000 {
        let done = rig.completion(token);
        assert_eq!((done.status, &done.data), (0, &command(token)), "{}", done.text());
        assert!(done.index > last && done.term > 0, "in the order they were proposed");
        last = done.index;
    }
    rig.propose(1001, b"refuse me");
    let refused = rig.completion(1001);
    assert_eq!(refused.status, RAFTIFY_ERR_APPLY_FAILED);
    let json: serde_json::Value = serde_json::from_slice(&refused.data).unwrap();
    assert_eq!((json["committed"].as_bool(), json["retryable"].as_bool()), (Some(true), Some(false)));

    ok(unsafe { raftify_read(rig.node, 1002, -2, &mut error) }, error);
    let read = rig.completion(1002);
    assert!(read.status == 0 && read.index >= last);
    let tokens: Vec<u64> = (2000..2100).collect();
    ok(unsafe { raftify_read_many(rig.node, tokens.as_ptr(), tokens.len(), -2, &mut error) }, error);
    for token in tokens {
        let read = rig.completion(token);
        assert!(read.status == 0 && read.index >= last);
    }
    ok(unsafe { raftify_read_many(rig.node, null(), 0, -2, &mut error) }, error);
    assert_eq!(rig.state, (1..=1000).map(command).collect::<Vec<_>>());

    ok(unsafe { raftify_snapshot(rig.node, 1003, -1, &mut error) }, error);
    let snapshot: serde_json::Value = serde_json::from_slice(&rig.completion(1003).data).unwrap();
    assert!(snapshot["index"].as_u64().unwrap() >= last, "{snapshot}");

    let (mut text, mut len) = (null_mut(), 0);
    let (dir, dir_len) = common::text(rig.dir.path().to_str().unwrap());
    ok(unsafe { raftify_inspect(dir, dir_len, 0, 5, &mut text, &mut len, &mut error) }, error);
    let inside: serde_json::Value =
        serde_json::from_slice(unsafe { std::ffi::CStr::from_ptr(text) }.to_bytes()).unwrap();
    unsafe { raftify_string_free(text) };
    assert_eq!(
        (inside["identity"]["node_id"].as_u64(), inside["entries"].as_array().map(Vec::len)),
        (Some(1), Some(5))
    );

    // What is in flight at a close ends too: with its result or with what is known.
    for token in 2001..=2100 {
        rig.propose(token, &command(token));
    }
    let rest = rig.stop();
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    for record in &rest[..rest.len() - 1] {
        assert_eq!(record.kind, RAFTIFY_EVENT_COMPLETION);
        *seen.entry(record.token).or_default() += 1;
    }
    assert_eq!(seen, (2001..=2100).map(|token| (token, 1)).collect());
    assert_eq!((rest[rest.len() - 1].kind, rest[rest.len() - 1].status), (RAFTIFY_EVENT_CLOSED, 0));
    assert_eq!(unsafe { raftify_queue_len(rig.queue) }, 0, "nothing after CLOSED");
}

#[test]
fn a_program_may_give_out_the_results_of_its_own_proposals_itself() {
    let mut rig = Rig::new();
    rig.start(null());
    rig.propose(1, b"first");
    assert_eq!(rig.completion(1).status, 0);
    rig.tells = Some(Vec::new());
    for token in 2..=300 {
        rig.propose(token, &command(token));
    }
    // A failure comes as a completion; so does what is no command.
    rig.propose(301, b"refuse me");
    assert_eq!(rig.completion(301).status, RAFTIFY_ERR_APPLY_FAILED);
    let mut error = null_mut();
    ok(unsafe { raftify_read(rig.node, 302, -2, &mut error) }, error);
    assert_eq!(rig.completion(302).status, 0);
    assert_eq!(rig.tells, Some((2..=300).collect()), "each once, in order");
    // Answered the other way again: one completion each.
    rig.tells = None;
    rig.propose(303, &command(303));
    assert_eq!(rig.completion(303).data, command(303));
    let rest = rig.stop();
    assert!(rest.iter().all(|record| record.kind != RAFTIFY_EVENT_COMPLETION), "none was told twice");
}

#[test]
fn a_node_that_was_freed_hard_comes_back_with_all_that_was_acknowledged() {
    let mut rig = Rig::new();
    rig.start(null());
    for token in 1..=50 {
        rig.propose(token, &command(token));
        assert_eq!(rig.completion(token).status, 0);
        if token == 30 {
            let mut error = null_mut();
            ok(unsafe { raftify_snapshot(rig.node, 1000, -1, &mut error) }, error);
            assert_eq!(rig.completion(1000).status, 0);
        }
    }
    assert_eq!(unsafe { raftify_node_free(rig.node) }, 0);
    rig.node = null_mut();
    rig.until_closed();
    rig.state.clear();
    rig.start(null());
    let mut error = null_mut();
    ok(unsafe { raftify_read(rig.node, 1, -2, &mut error) }, error);
    assert_eq!(rig.completion(1).status, 0);
    assert_eq!(rig.state, (1..=50).map(command).collect::<Vec<_>>());
    rig.stop();
}

#[test]
fn wrong_arguments_on_a_live_node_are_refused_without_a_completion() {
    let mut rig = Rig::new();
    rig.start(null());
    let n = rig.node;
    let (bad, good) = (c"\xff".as_ptr(), c"127.0.0.1:9".as_ptr());
    let change = |kind, addr, addr_len| MemberChange { kind, reserved: 0, id: 2, addr, addr_len };
    let (unknown, not_text) = (change(7, good, 11), change(RAFTIFY_MEMBER_ADD, bad, 1));
    let (zero, no_data) = (Proposal { token: 0, data: null(), len: 0 }, Proposal { token: 1, data: null(), len: 1 });
    let (mut text, mut size, mut buffer) = (null_mut(), 0, [0u8; 4]);
    macro_rules! refused {
        ($($says:literal $function:ident($($argument:expr),*);)*) => {$(
            let mut error = null_mut();
            let status = unsafe { $function(n, $($argument),*, &mut error) };
            let says = message(error);
            assert_eq!((stringify!($function), status), (stringify!($function), RAFTIFY_ERR_INVALID_ARGUMENT));
            assert!(says.contains($says), "{}: {says}", stringify!($function));
        )*};
    }
    refused! {
        "token is 0" raftify_propose(0, null(), 0, -2);
        "token is 9223372036854775808" raftify_propose(1 << 63, null(), 0, -2);
        "data is NULL" raftify_propose(1, null(), 1, -2);
        "timeout_ms is -3" raftify_propose(1, null(), 0, -3);
        "token is 0" raftify_propose_many(&zero, 1, -2);
        "data is NULL" raftify_propose_many(&no_data, 1, -2);
        "proposals is NULL" raftify_propose_many(null(), 1, -2);
        "timeout_ms" raftify_propose_many(null(), 0, i64::MIN);
        "token is 0" raftify_propose_row(0, null(), 0, &0, 1, -2);
        "token is 9223372036854775808" raftify_propose_row((1 << 63) - 1, null(), 0, [0, 0].as_ptr(), 2, -2);
        "data is NULL" raftify_propose_row(1, null(), 1, &1, 1, -2);
        "lens is NULL" raftify_propose_row(1, null(), 0, null(), 1, -2);
        "the command at 1 is longer than what is left of data" raftify_propose_row(1, good.cast(), 3, [2, 2].as_ptr(), 2, -2);
        "1 bytes of data belong to no command" raftify_propose_row(1, good.cast(), 3, [2, 0].as_ptr(), 2, -2);
        "timeout_ms" raftify_propose_row(1, null(), 0, null(), 0, i64::MIN);
        "token is 0" raftify_read(0, -2);
        "token is 0" raftify_read_many([1, 0].as_ptr(), 2, -2);
        "tokens is NULL" raftify_read_many(null(), 1, -2);
        "timeout_ms" raftify_read_many(null(), 0, i64::MIN);
        "token is 0" raftify_reserve_id(0, good, 11, -2);
        "addr is not UTF-8" raftify_reserve_id(1, bad, 1, -2);
        "ticket_json is no ticket" raftify_join(1, good, 11, -2);
        "ticket_json is NULL" raftify_join(1, null(), 11, -2);
        "changes are none" raftify_change_members(1, null(), 0, -2);
        "changes is NULL" raftify_change_members(1, null(), 1, -2);
        "a change is of kind 7" raftify_change_members(1, &unknown, 1, -2);
        "a change's addr is not UTF-8" raftify_change_members(1, &not_text, 1, -2);
        "token is 0" raftify_leave(0, -2);
        "token is 0" raftify_transfer_leader(0, 0, -2);
        "token is 0" raftify_step_down(0, -2);
        "timeout_ms" raftify_snapshot(1, -9);
        "outcomes is NULL" raftify_apply_done(1, null(), 1);
        "outcomes end within" raftify_apply_done_packed(1, good.cast(), 5);
        "outcomes end within" raftify_apply_told_packed(1, good.cast(), 5);
        "data is NULL" raftify_snapshot_chunk(1, null(), 1);
        "reason is not UTF-8" raftify_snapshot_done(1, 1, bad, 1);
        "n is NULL" raftify_restore_read(1, 0, buffer.as_mut_ptr(), 4, null_mut());
        "out is NULL" raftify_restore_read(1, 0, null_mut(), 4, &mut size);
        "capacity is 0" raftify_restore_read(1, 0, buffer.as_mut_ptr(), 0, &mut size);
        "reason is NULL" raftify_machine_failed(1, 1, null(), 1);
        "out is NULL" raftify_node_status(null_mut(), &mut size);
        "level is not UTF-8" raftify_node_set_log_level(bad, 1);
    }
    // An answer to nothing that was asked.
    for status in unsafe {
        [
            raftify_apply_done(n, 1 << 60, null(), 0, null_mut()),
            raftify_snapshot_chunk(n, 1 << 60, c"x".as_ptr().cast(), 1, null_mut()),
            raftify_snapshot_done(n, 1 << 60, 0, null(), 0, null_mut()),
            raftify_restore_read(n, 1 << 60, 0, buffer.as_mut_ptr(), 4, &mut size, null_mut()),
            raftify_restore_done(n, 1 << 60, null_mut()),
            raftify_machine_failed(n, 1 << 60, 1, null(), 0, null_mut()),
        ]
    } {
        assert_eq!(status, RAFTIFY_ERR_INVALID_ARGUMENT);
    }
    assert_eq!(unsafe { raftify_node_close(n, -3) }, RAFTIFY_ERR_INVALID_ARGUMENT);
    assert_eq!(unsafe { raftify_runtime_free(rig.runtime) }, RAFTIFY_ERR_INVALID_ARGUMENT, "a node is on it");

    // The node is unhurt, and says how it is.
    rig.propose(5, b"x");
    assert_eq!(rig.completion(5).status, 0);
    let mut error = null_mut();
    ok(unsafe { raftify_node_status(n, &mut text, &mut size, &mut error) }, error);
    let status = unsafe { std::ffi::CStr::from_ptr(text) }.to_bytes().to_vec();
    unsafe { raftify_string_free(text) };
    let json: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!((json["node_id"].as_u64(), json["role"].as_str(), status.len()), (Some(1), Some("leader"), size));

    ok(unsafe { raftify_node_close(n, 0) }, null_mut());
    let rest = rig.until_closed();
    assert_eq!(rest.len(), 1, "nothing that was refused completes: {rest:?}");
    ok(unsafe { raftify_node_close(n, 0) }, null_mut());
    assert_eq!(unsafe { raftify_propose(n, 6, null(), 0, -2, null_mut()) }, RAFTIFY_ERR_CLOSED);
    assert_eq!(unsafe { raftify_read(n, 6, -2, null_mut()) }, RAFTIFY_ERR_CLOSED);
    assert_eq!(unsafe { raftify_read_many(n, [6].as_ptr(), 1, -2, null_mut()) }, RAFTIFY_ERR_CLOSED);
    assert_eq!(unsafe { raftify_queue_len(rig.queue) }, 0);
}

/// A machine of the push form: keeps the commands, and tries what is not allowed inside a callback.
#[derive(Default)]
struct Pushed {
    state: Mutex<Vec<Vec<u8>>>,
    node: AtomicPtr<NodeHandle>,
    queue: AtomicPtr<QueueHandle>,
    runtime: AtomicPtr<RuntimeHandle>,
    refused: AtomicUsize,
    destroyed: AtomicUsize,
}

impl Pushed {
    fn machine(&self) -> Machine {
        Machine {
            struct_size: u32::try_from(size_of::<Machine>()).unwrap(),
            reserved: 0,
            user_data: std::ptr::from_ref(self).cast_mut().cast(),
            apply: Some(push_apply),
            snapshot: Some(push_snapshot),
            restore: Some(push_restore),
            destroy: Some(push_destroy),
        }
    }

    /// What may wait for this callback is refused; what does not is done.
    unsafe fn try_what_is_refused(&self) {
        let node = self.node.load(Ordering::SeqCst);
        if node.is_null() {
            return;
        }
        let statuses = [
            raftify_node_close(node, 0),
            raftify_node_free(node),
            raftify_queue_wait(self.queue.load(Ordering::SeqCst), 0),
            raftify_queue_free(self.queue.load(Ordering::SeqCst)),
            raftify_runtime_free(self.runtime.load(Ordering::SeqCst)),
        ];
        let refused = statuses.iter().filter(|status| **status == RAFTIFY_ERR_REENTRANT).count();
        self.refused.fetch_add(refused, Ordering::SeqCst);
        let (mut text, mut len) = (null_mut(), 0);
        assert_eq!(raftify_node_status(node, &mut text, &mut len, null_mut()), 0);
        raftify_string_free(text);
    }
}

unsafe fn pushed<'a>(user_data: *mut c_void) -> &'a Pushed {
    &*user_data.cast::<Pushed>()
}

unsafe extern "C" fn push_apply(
    user_data: *mut c_void,
    entries: *const Entry,
    count: usize,
    data: *const u8,
    results: *mut ResultsHandle,
) -> i32 {
    let this = pushed(user_data);
    this.try_what_is_refused();
    for (i, entry) in std::slice::from_raw_parts(entries, count).iter().enumerate() {
        let at = data.add(usize::try_from(entry.offset).unwrap());
        let command = std::slice::from_raw_parts(at, entry.len as usize);
        if command == b"break" {
            return 7;
        }
        let refused = command == b"refuse me";
        if !refused {
            this.state.lock().unwrap().push(command.to_vec());
        }
        assert_eq!(raftify_results_set(results, i, i32::from(refused), command.as_ptr(), command.len()), 0);
    }
    assert_eq!(raftify_results_set(results, count, 0, null(), 0), RAFTIFY_ERR_INVALID_ARGUMENT);
    assert_eq!(raftify_results_set(results, 0, 0, null(), 1), RAFTIFY_ERR_INVALID_ARGUMENT);
    0
}

unsafe extern "C" fn push_snapshot(user_data: *mut c_void, writer: *mut SnapshotWriter) -> i32 {
    assert_eq!(raftify_snapshot_write(writer, null(), 1), RAFTIFY_ERR_INVALID_ARGUMENT);
    for command in pushed(user_data).state.lock().unwrap().iter() {
        let line = [command.as_slice(), b"\n"].concat();
        if raftify_snapshot_write(writer, line.as_ptr(), line.len()) != 0 {
            return 1;
        }
    }
    0
}

unsafe extern "C" fn push_restore(user_data: *mut c_void, reader: *mut SnapshotReader) -> i32 {
    let mut all = Vec::new();
    let mut piece = [0u8; 64];
    let mut n = 0;
    assert_eq!(raftify_snapshot_read(reader, piece.as_mut_ptr(), 0, &mut n), RAFTIFY_ERR_INVALID_ARGUMENT);
    loop {
        if raftify_snapshot_read(reader, piece.as_mut_ptr(), piece.len(), &mut n) != 0 {
            return 1;
        }
        if n == 0 {
            break;
        }
        all.extend_from_slice(&piece[..n]);
    }
    let lines = all.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
    *pushed(user_data).state.lock().unwrap() = lines;
    0
}

unsafe extern "C" fn push_destroy(user_data: *mut c_void) {
    pushed(user_data).destroyed.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn the_push_form_applies_snapshots_restores_and_is_destroyed_once_before_closed() {
    let mut rig = Rig::new();
    let first = Pushed::default();
    rig.start(&first.machine());
    first.queue.store(rig.queue, Ordering::SeqCst);
    first.runtime.store(rig.runtime, Ordering::SeqCst);
    first.node.store(rig.node, Ordering::SeqCst);
    for token in 1..=200 {
        rig.propose(token, &command(token));
    }
    for token in 1..=200 {
        assert_eq!(rig.completion(token).data, command(token));
    }
    rig.propose(201, b"refuse me");
    assert_eq!(rig.completion(201).status, RAFTIFY_ERR_APPLY_FAILED);
    let refused = first.refused.load(Ordering::SeqCst);
    assert!(refused > 0 && refused % 5 == 0, "{refused}");
    let mut error = null_mut();
    ok(unsafe { raftify_snapshot(rig.node, 300, -1, &mut error) }, error);
    assert_eq!(rig.completion(300).status, 0);
    rig.propose(301, &command(301));
    assert_eq!(rig.completion(301).status, 0);
    assert_eq!(first.destroyed.load(Ordering::SeqCst), 0);
    ok(unsafe { raftify_node_close(rig.node, -2) }, null_mut());
    rig.until_closed();
    assert_eq!(first.destroyed.load(Ordering::SeqCst), 1, "before CLOSED, not after");
    ok(unsafe { raftify_node_free(rig.node) }, null_mut());
    rig.node = null_mut();

    let second = Pushed::default();
    rig.start(&second.machine());
    ok(unsafe { raftify_read(rig.node, 1, -2, &mut error) }, error);
    assert_eq!(rig.completion(1).status, 0);
    assert_eq!(*second.state.lock().unwrap(), *first.state.lock().unwrap());
    // Freed while open: the same end, without the wait for CLOSED.
    ok(unsafe { raftify_node_free(rig.node) }, null_mut());
    rig.node = null_mut();
    assert_eq!((first.destroyed.load(Ordering::SeqCst), second.destroyed.load(Ordering::SeqCst)), (1, 1));
}

#[test]
fn a_machine_that_fails_stops_its_node_which_says_so_last() {
    let mut rig = Rig::new();
    let machine = Pushed::default();
    rig.start(&machine.machine());
    rig.propose(1, b"good");
    assert_eq!(rig.completion(1).status, 0);
    rig.propose(2, b"break");
    let rest = rig.until_closed();
    assert_eq!(rest.iter().filter(|r| r.kind == RAFTIFY_EVENT_COMPLETION).map(|r| r.token).collect::<Vec<_>>(), [2]);
    assert!(rest[0].status < 0);
    let closed = &rest[rest.len() - 1];
    assert_eq!(closed.status, RAFTIFY_ERR_MACHINE_FAILED);
    assert!(closed.text().contains("apply returned 7"), "{}", closed.text());
    assert_eq!(machine.destroyed.load(Ordering::SeqCst), 1);
}
