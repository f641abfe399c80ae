//! A client through the C ABI, of a real cluster of one.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::ptr::{null, null_mut};

use common::*;
use raftify_capi::*;

/// The records of a queue that only a client fills, up to the token's completion.
fn completion(queue: *mut QueueHandle, token: u64) -> (i32, String) {
    loop {
        ok(unsafe { raftify_queue_wait(queue, 60_000) }, null_mut());
        let mut event = std::mem::MaybeUninit::<Event>::uninit();
        assert_eq!(unsafe { raftify_queue_drain(queue, event.as_mut_ptr(), 1) }, 1);
        let event = unsafe { event.assume_init() };
        if event.kind == RAFTIFY_EVENT_COMPLETION && event.token == token {
            let data = if event.len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(event.data, event.len) } };
            return (event.status, String::from_utf8_lossy(data).into_owned());
        }
        assert_ne!(event.kind, RAFTIFY_EVENT_CLOSED);
    }
}

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

/// Files of a CA and of a certificate for 127.0.0.1, as settings.
fn certificates(dir: &std::path::Path) -> [(&'static str, String); 3] {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let put = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name).to_str().unwrap().to_owned()
    };
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let own = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let cert = own.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    [
        ("tls_ca", put("ca.pem", ca.self_signed(&ca_key).unwrap().pem())),
        ("tls_cert", put("cert.pem", cert.pem())),
        ("tls_key", put("key.pem", key.serialize_pem())),
    ]
}

#[test]
fn a_client_of_nodes_with_certificates_has_one_too() {
    let mut rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in certificates(dir.path()) {
        set(rig.config, name, &value);
    }
    rig.start(null());
    let queue = new_queue(RAFTIFY_WAKE_NONE);
    let (addrs, len) = text(&rig.addr);
    let (mut plain, mut client, mut error) = (null_mut(), null_mut(), null_mut());
    ok(unsafe { raftify_client_new(rig.runtime, queue, addrs, len, &mut plain, &mut error) }, error);
    ok(unsafe { raftify_client_propose(plain, 1, null(), 0, 60_000, &mut error) }, error);
    let (status, said) = completion(queue, 1);
    assert_eq!(status, RAFTIFY_ERR_TLS, "{said}");
    assert!(said.contains("wants TLS"), "{said}");
    ok(unsafe { raftify_client_new_with(rig.runtime, queue, rig.config, addrs, len, &mut client, &mut error) }, error);
    ok(unsafe { raftify_client_status(client, 2, RAFTIFY_TIMEOUT_DEFAULT, &mut error) }, error);
    assert_eq!(completion(queue, 2).0, 0);
    // What is wrong with a file is known before there is a client.
    let lacks = raftify_config_new();
    for name in ["tls_ca", "tls_cert", "tls_key"] {
        set(lacks, name, "/nowhere/x.pem");
    }
    let mut none = null_mut();
    let status = unsafe { raftify_client_new_with(rig.runtime, queue, lacks, addrs, len, &mut none, &mut error) };
    assert_eq!((status, none.is_null()), (RAFTIFY_ERR_TLS, true));
    assert!(message(error).contains("tls_cert: /nowhere/x.pem: cannot be read"));
    unsafe { raftify_config_free(lacks) };
    for client in [plain, client] {
        ok(unsafe { raftify_client_free(client) }, null_mut());
    }
    ok(unsafe { raftify_queue_free(queue) }, null_mut());
    rig.stop();
}
