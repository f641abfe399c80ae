//! Every function refuses NULL, short and wrong arguments by name, and leaves its out parameters alone.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::ffi::{c_void, CStr};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use raftify_capi::*;

const INVALID: i32 = RAFTIFY_ERR_INVALID_ARGUMENT;

/// Runs one call that must be refused; its message must say `says`.
fn refused(says: &str, call: impl FnOnce(*mut *mut ErrorObject) -> i32) {
    let mut error = null_mut();
    assert_eq!((call(&mut error), says), (INVALID, says));
    let message = message(error);
    assert!(message.contains(says), "{message:?} does not say {says:?}");
}

#[test]
fn every_function_that_takes_a_handle_takes_null_for_a_mistake_and_not_for_a_crash() {
    let (n, e, a): (*mut NodeHandle, _, _) = (null_mut(), null_mut(), c"x".as_ptr());
    let c: *mut ClientHandle = null_mut();
    let (mut text, mut size) = (null_mut(), 0usize);
    let change = MemberChange { kind: 1, reserved: 0, id: 1, addr: a, addr_len: 1 };
    let (change, d) = (&raw const change, a.cast::<u8>());
    let proposal = Proposal { token: 1, data: null(), len: 0 };
    let mut buffer = [0u8; 4];
    macro_rules! table {
        ($($function:ident($($argument:expr),*);)*) => {
            vec![$((stringify!($function), unsafe { $function($($argument),*) })),*]
        };
    }
    let results = table! {
        raftify_config_set(null_mut(), a, 1, a, 1, e);
        raftify_config_validate(null(), e);
        raftify_queue_wait(null_mut(), 0);
        raftify_node_status(n, &mut text, &mut size, e);
        raftify_node_set_log_level(n, a, 1, e);
        raftify_propose(n, 1, d, 1, -2, e);
        raftify_propose_many(n, &proposal, 1, -2, e);
        raftify_propose_row(n, 1, d, 1, &1, 1, -2, e);
        raftify_read(n, 1, -2, e);
        raftify_read_many(n, &1, 1, -2, e);
        raftify_reserve_id(n, 1, a, 1, -2, e);
        raftify_join(n, 1, a, 1, -2, e);
        raftify_change_members(n, 1, change, 1, -2, e);
        raftify_leave(n, 1, -2, e);
        raftify_transfer_leader(n, 1, 2, -2, e);
        raftify_step_down(n, 1, -2, e);
        raftify_snapshot(n, 1, -2, e);
        raftify_send_message(n, 1, d, 1, -2, e);
        raftify_apply_done(n, 1, null(), 0, e);
        raftify_apply_done_packed(n, 1, null(), 0, e);
        raftify_apply_told_packed(n, 1, null(), 0, e);
        raftify_snapshot_chunk(n, 1, d, 1, e);
        raftify_snapshot_done(n, 1, 0, null(), 0, e);
        raftify_restore_read(n, 1, 0, buffer.as_mut_ptr(), 4, &mut size, e);
        raftify_restore_done(n, 1, e);
        raftify_machine_failed(n, 1, 1, a, 1, e);
        raftify_node_close(n, 0);
        raftify_results_set(null_mut(), 0, 0, d, 1);
        raftify_snapshot_write(null_mut(), d, 1);
        raftify_snapshot_read(null_mut(), buffer.as_mut_ptr(), 4, &mut size);
        raftify_client_propose(c, 1, d, 1, -2, e);
        raftify_client_reserve_id(c, 1, a, 1, -2, e);
        raftify_client_change_members(c, 1, change, 1, -2, e);
        raftify_client_transfer_leader(c, 1, 2, -2, e);
        raftify_client_snapshot(c, 1, -2, e);
        raftify_client_status(c, 1, -2, e);
        raftify_client_send_message(c, 1, d, 1, -2, e);
        raftify_runtime_new(null_mut(), e);
        raftify_queue_new(0, None, null_mut(), None, null_mut(), e);
        raftify_node_start(null_mut(), null_mut(), null(), 1, a, 1, null(), 0, 0, null(), null_mut(), e);
        raftify_client_new(null_mut(), null_mut(), a, 1, null_mut(), e);
        raftify_client_new_with(null_mut(), null_mut(), null(), a, 1, null_mut(), e);
        raftify_inspect(a, 1, 0, 1, null_mut(), &mut size, e);
        raftify_inspect(null(), 1, 0, 1, &mut text, &mut size, e);
        raftify_import(a, 1, a, 1, 1, a, 1, a, 1, null(), 0, null_mut(), &mut size, e);
        raftify_import(null(), 1, a, 1, 1, a, 1, a, 1, null(), 0, &mut text, &mut size, e);
        raftify_import(a, 1, a, 1, 1, a, 1, a, 1, null(), 1, &mut text, &mut size, e);
    };
    for (function, status) in &results {
        assert_eq!((*function, *status), (*function, INVALID));
    }
    assert!(text.is_null() && size == 0, "out parameters are left alone");
    let harmless = table! {
        raftify_runtime_free(null_mut());
        raftify_queue_free(null_mut());
        raftify_node_free(null_mut());
        raftify_client_free(null_mut());
        raftify_error_code(null());
    };
    for (function, status) in &harmless {
        assert_eq!((*function, *status), (*function, 0));
    }
    unsafe {
        raftify_config_free(null_mut());
        raftify_error_free(null_mut());
        raftify_string_free(null_mut());
        assert_eq!(raftify_queue_fd(null()), -1);
        assert_eq!((raftify_queue_drain(null_mut(), null_mut(), 9), raftify_node_number(n)), (0, 0));
        assert_eq!((raftify_client_number(c), raftify_queue_len(null())), (0, 0));
        assert_eq!(CStr::from_ptr(raftify_error_message(null())), c"");
        assert_eq!(CStr::from_ptr(raftify_error_json(null())), c"null");
        assert_eq!((CStr::from_ptr(raftify_version()), raftify_abi_version()), (c"0.1.0", RAFTIFY_ABI_VERSION));
        assert_eq!(CStr::from_ptr(raftify_status_name(0)), c"ok");
    }
    // Not forgotten when a function is added: everything in the header is named in this file.
    let (header, here) = (include_str!("../../include/raftify.h"), include_str!("arguments.rs"));
    for word in header.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '(') {
        if let Some((name, _)) = word.split_once('(').filter(|(name, _)| name.starts_with("raftify_")) {
            let elsewhere = ["raftify_struct_layout", "raftify_after_fork_in_child"].contains(&name);
            assert!(elsewhere || here.contains(name), "{name} is not tested for NULL");
        }
    }
}

#[test]
fn settings_are_checked_by_name_text_and_value() {
    let config = raftify_config_new();
    let set = |name: &[u8], value: &[u8], e: *mut *mut ErrorObject| unsafe {
        raftify_config_set(config, name.as_ptr().cast(), name.len(), value.as_ptr().cast(), value.len(), e)
    };
    refused("name is not UTF-8", |e| set(b"\xff", b"1", e));
    refused("value is not UTF-8 from byte 1", |e| set(b"election_tick", b"1\xff", e));
    refused("name is NULL, but its length is 3", |e| unsafe {
        raftify_config_set(config, null(), 3, c"1".as_ptr(), 1, e)
    });
    refused("cannot have a length of", |e| unsafe {
        raftify_config_set(config, c"x".as_ptr(), usize::MAX, c"1".as_ptr(), 1, e)
    });
    for (name, value) in [("nonsense", "1"), ("", ""), ("election_tick", "x"), ("log_level", "loud")] {
        let mut error = null_mut();
        assert_eq!(set(name.as_bytes(), value.as_bytes(), &mut error), RAFTIFY_ERR_INVALID_CONFIG);
        let json: serde_json::Value =
            unsafe { serde_json::from_slice(CStr::from_ptr(raftify_error_json(error)).to_bytes()) }.unwrap();
        assert_eq!((json["field"].as_str(), json["committed"].as_bool()), (Some(name), Some(false)));
        assert_eq!(unsafe { raftify_error_code(error) }, RAFTIFY_ERR_INVALID_CONFIG);
        message(error);
        // No place for an error is right.
        assert_eq!(set(name.as_bytes(), value.as_bytes(), null_mut()), RAFTIFY_ERR_INVALID_CONFIG);
    }
    for level in ["off", "critical", "error", "warning", "info", "debug", "trace"] {
        common::set(config, "log_level", level);
    }
    assert_eq!(unsafe { raftify_config_validate(config, null_mut()) }, 0);
    common::set(config, "heartbeat_tick", "10");
    assert_eq!(unsafe { raftify_config_validate(config, null_mut()) }, RAFTIFY_ERR_INVALID_CONFIG);
    unsafe { raftify_config_free(config) };
}

unsafe extern "C" fn count(user_data: *mut c_void) {
    (*user_data.cast::<AtomicUsize>()).fetch_add(1, Ordering::SeqCst);
}

#[test]
fn a_queue_that_is_refused_has_destroyed_its_user_data_and_a_freed_one_too() {
    let destroyed = AtomicUsize::new(0);
    let user_data = std::ptr::from_ref(&destroyed).cast_mut().cast::<c_void>();
    let mut queue = null_mut();
    refused("wake is NULL", |e| unsafe {
        raftify_queue_new(RAFTIFY_WAKE_CALLBACK, None, user_data, Some(count), &mut queue, e)
    });
    refused("wake_kind is 3", |e| unsafe { raftify_queue_new(3, Some(count), user_data, Some(count), &mut queue, e) });
    refused("out is NULL", |e| unsafe { raftify_queue_new(0, None, user_data, Some(count), null_mut(), e) });
    assert_eq!((destroyed.load(Ordering::SeqCst), queue.is_null()), (3, true));
    for (kind, has_fd) in [(RAFTIFY_WAKE_NONE, false), (RAFTIFY_WAKE_FD, true), (RAFTIFY_WAKE_CALLBACK, false)] {
        let before = destroyed.load(Ordering::SeqCst);
        unsafe {
            ok(raftify_queue_new(kind, Some(count), user_data, Some(count), &mut queue, null_mut()), null_mut());
            assert_eq!(raftify_queue_fd(queue) >= 0, has_fd);
            assert_eq!((raftify_queue_wait(queue, 0), raftify_queue_len(queue)), (TIMEOUT, 0));
            let mut out = std::mem::MaybeUninit::<Event>::uninit();
            assert_eq!(raftify_queue_drain(queue, out.as_mut_ptr(), 1), 0);
            assert_eq!(raftify_queue_drain(queue, out.as_mut_ptr(), 0), 0);
            assert_eq!(raftify_queue_drain(queue, null_mut(), 1), 0);
            assert_eq!(raftify_queue_free(queue), 0);
        }
        assert_eq!(destroyed.load(Ordering::SeqCst), before + 1);
    }
}

unsafe extern "C" fn no_apply(_: *mut c_void, _: *const Entry, _: usize, _: *const u8, _: *mut ResultsHandle) -> i32 {
    0
}

/// A struct of a newer program: longer than this library knows.
#[repr(C)]
struct Longer {
    known: Machine,
    unknown: [u64; 2],
}

#[test]
fn a_node_that_is_refused_has_destroyed_its_machine_exactly_once() {
    let destroyed = AtomicUsize::new(0);
    let user_data = std::ptr::from_ref(&destroyed).cast_mut().cast::<c_void>();
    let machine = |size: usize| Machine {
        struct_size: u32::try_from(size).unwrap(),
        reserved: 0,
        user_data,
        apply: Some(no_apply),
        snapshot: None,
        restore: None,
        destroy: Some(count),
    };
    let whole = size_of::<Machine>();
    let (runtime, queue, config) = (new_runtime(), new_queue(RAFTIFY_WAKE_NONE), raftify_config_new());
    let dir = tempfile::tempdir().unwrap();
    common::set(config, "log_dir", dir.path().to_str().unwrap());
    // Whatever else is right: these settings are refused.
    common::set(config, "heartbeat_tick", "10");
    let (addr, addr_len) = text("127.0.0.1:1");
    let start = |peers: &[Peer], given: i32, machine: *const Machine, e: *mut *mut ErrorObject| unsafe {
        let mut node = null_mut();
        let (p, n) = (peers.as_ptr(), peers.len());
        let status = raftify_node_start(runtime, queue, config, 1, addr, addr_len, p, n, given, machine, &mut node, e);
        assert!(node.is_null());
        status
    };
    let destroyed_by = |body: &dyn Fn()| {
        let before = destroyed.load(Ordering::SeqCst);
        body();
        destroyed.load(Ordering::SeqCst) - before
    };
    let mut with_reserved = machine(whole);
    with_reserved.reserved = 1;
    let mut without_apply = machine(whole);
    without_apply.apply = None;
    let newer = Longer { known: machine(size_of::<Longer>()), unknown: [0, 7] };
    for (says, machine) in [
        ("does not know", &raw const with_reserved),
        ("machine.apply is NULL", &raw const without_apply),
        ("does not know", (&raw const newer).cast::<Machine>()),
    ] {
        assert_eq!(destroyed_by(&|| refused(says, |e| start(&[], 0, machine, e))), 1, "{says}");
    }
    // Nothing can be known of what such a struct holds.
    for size in [0, 4, 8, 16, 23, whole - 1, whole + 1, 1 << 20] {
        let machine = machine(size);
        assert_eq!(destroyed_by(&|| refused("machine.struct_size is", |e| start(&[], 0, &machine, e))), 0);
    }
    let (bad, bad_len) = (c"\xff".as_ptr(), 1);
    let peer = |id, addr, addr_len| Peer { id, addr, addr_len };
    let twice = [peer(1, addr, addr_len), peer(1, addr, addr_len)];
    for (says, peers, given) in [
        ("peers name id 1 twice", &twice[..], 1),
        ("peers_given is 0", &twice[..1], 0),
        ("a peer's addr is not UTF-8", &[peer(1, bad, bad_len)][..], 1),
        ("a peer's addr is NULL", &[peer(1, null(), 3)][..], 1),
    ] {
        let machine = machine(whole);
        assert_eq!(destroyed_by(&|| refused(says, |e| start(peers, given, &machine, e))), 1, "{says}");
    }
    let longer = Longer { known: machine(size_of::<Longer>()), unknown: [0; 2] };
    let known = machine(whole);
    for machine in [(&raw const longer).cast::<Machine>(), &raw const known, null()] {
        let status_is_negative = || assert!(start(&[], 0, machine, null_mut()) < 0);
        assert_eq!(destroyed_by(&status_is_negative), usize::from(!machine.is_null()));
    }
    // A shorter struct of an older program: without destroy, nothing is destroyed.
    let shorter = machine(std::mem::offset_of!(Machine, snapshot));
    assert_eq!(destroyed_by(&|| assert!(start(&[], 0, &shorter, null_mut()) < 0)), 0);
    unsafe {
        assert_eq!((raftify_queue_free(queue), raftify_runtime_free(runtime)), (0, 0));
        raftify_config_free(config);
    }
}

#[test]
fn a_client_needs_somebody_to_ask() {
    let (runtime, queue) = (new_runtime(), new_queue(RAFTIFY_WAKE_NONE));
    let mut client = null_mut();
    for (says, addrs) in [("addrs name nobody", ""), ("addrs name nobody", " , ,")] {
        let (addrs, len) = text(addrs);
        refused(says, |e| unsafe { raftify_client_new(runtime, queue, addrs, len, &mut client, e) });
    }
    refused("addrs is NULL", |e| unsafe { raftify_client_new(runtime, queue, null(), 1, &mut client, e) });
    refused("out is NULL", |e| unsafe { raftify_client_new(runtime, queue, c"a:1".as_ptr(), 3, null_mut(), e) });
    refused("runtime is NULL", |e| unsafe {
        raftify_client_new(null_mut(), queue, c"a:1".as_ptr(), 3, &mut client, e)
    });
    refused("queue is NULL", |e| unsafe {
        raftify_client_new(runtime, null_mut(), c"a:1".as_ptr(), 3, &mut client, e)
    });
    refused("config is NULL", |e| unsafe {
        raftify_client_new_with(runtime, queue, null(), c"a:1".as_ptr(), 3, &mut client, e)
    });
    assert!(client.is_null());
    unsafe { assert_eq!((raftify_queue_free(queue), raftify_runtime_free(runtime)), (0, 0)) };
}
