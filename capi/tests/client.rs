//! A client through the C ABI, of a real cluster of one.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::ptr::{null, null_mut};

use common::*;
use raftify_capi::*;

#[test]
fn a_client_proposes_asks_and_ends_with_closed() {
    let mut rig = Rig::new();
    rig.start(null());
    let queue = new_queue(RAFTIFY_WAKE_NONE);
    let (addrs, len) = text(&rig.addr);
    let (mut client, mut error) = (null_mut(), null_mut());
    ok(unsafe { raftify_client_new(rig.runtime, queue, addrs, len, &mut client, &mut error) }, error);
    assert!(unsafe { raftify_client_number(client) } > 0);
    for status in unsafe {
        [
            raftify_client_propose(client, 0, null(), 0, -2, null_mut()),
            raftify_client_propose(client, 1, null(), 1, -2, null_mut()),
            raftify_client_propose(client, 1, null(), 0, -3, null_mut()),
            raftify_client_reserve_id(client, 1, c"\xff".as_ptr(), 1, -2, null_mut()),
            raftify_client_change_members(client, 1, null(), 0, -2, null_mut()),
            raftify_client_transfer_leader(client, 0, 0, -2, null_mut()),
            raftify_client_snapshot(client, 0, -2, null_mut()),
            raftify_client_status(client, 0, -2, null_mut()),
        ]
    } {
        assert_eq!(status, RAFTIFY_ERR_INVALID_ARGUMENT);
    }
    ok(unsafe { raftify_client_propose(client, 7, c"abc".as_ptr().cast(), 3, 60_000, &mut error) }, error);
    // The node's machine is in this thread.
    while rig.state.is_empty() {
        rig.turn();
    }
    assert_eq!(completion(queue, 7), (0, "abc".to_string()));
    assert_eq!(rig.state, [b"abc".to_vec()]);
    ok(unsafe { raftify_client_status(client, 8, 60_000, &mut error) }, error);
    let (status, said) = completion(queue, 8);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((status, json["node_id"].as_u64()), (0, Some(1)));
    ok(unsafe { raftify_client_free(client) }, null_mut());
    let mut event = std::mem::MaybeUninit::<Event>::uninit();
    assert_eq!(unsafe { raftify_queue_drain(queue, event.as_mut_ptr(), 1) }, 1);
    assert_eq!(unsafe { event.assume_init() }.kind, RAFTIFY_EVENT_CLOSED);
    ok(unsafe { raftify_queue_free(queue) }, null_mut());
    rig.stop();
}

#[test]
fn settings_of_a_client_are_checked_before_there_is_one() {
    let (runtime, queue) = (new_runtime(), new_queue(RAFTIFY_WAKE_NONE));
    let (addrs, len) = text("127.0.0.1:1");
    let (mut client, mut error) = (null_mut(), null_mut());
    let config = raftify_config_new();
    set(config, "request_timeout", "0.1");
    ok(unsafe { raftify_client_new_with(runtime, queue, config, addrs, len, &mut client, &mut error) }, error);
    ok(unsafe { raftify_client_propose(client, 1, null(), 0, RAFTIFY_TIMEOUT_DEFAULT, &mut error) }, error);
    let (status, said) = completion(queue, 1);
    assert_eq!(status, RAFTIFY_ERR_NO_LEADER);
    assert!(said.contains("within 100ms"), "{said}");
    ok(unsafe { raftify_client_free(client) }, null_mut());
    let refused = |says: &str| {
        let (mut none, mut error) = (null_mut(), null_mut());
        let status = unsafe { raftify_client_new_with(runtime, queue, config, addrs, len, &mut none, &mut error) };
        assert!(none.is_null());
        let message = message(error);
        assert!(message.contains(says), "{message}");
        status
    };
    set(config, "tls_cert", "/nowhere/x.pem");
    assert_eq!(refused("tls_key: is not set"), RAFTIFY_ERR_INVALID_CONFIG);
    for name in ["tls_ca", "tls_key"] {
        set(config, name, "/nowhere/x.pem");
    }
    assert_eq!(refused("tls_cert: /nowhere/x.pem: cannot be read"), RAFTIFY_ERR_TLS);
    unsafe {
        raftify_config_free(config);
        ok(raftify_queue_free(queue), null_mut());
        ok(raftify_runtime_free(runtime), null_mut());
    }
}
