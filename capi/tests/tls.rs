//! Certificates through the C ABI. Apart from the client's tests because those run under valgrind, which does not follow ring's
//! assembly: it takes what that has decrypted for memory that was never written.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::ptr::{null, null_mut};

use common::*;
use raftify_capi::*;

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
    for client in [plain, client] {
        ok(unsafe { raftify_client_free(client) }, null_mut());
    }
    ok(unsafe { raftify_queue_free(queue) }, null_mut());
    rig.stop();
}
