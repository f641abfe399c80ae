//! Nodes with certificates, and those who have none, or others.

use std::time::Duration;

use rcgen::{date_time_ymd, ExtendedKeyUsagePurpose, SanType};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{self, RootCertStore};

use super::test_ca::{write, Ca, Pair};
use super::tests::{beside, header, item, run, sent, settings, Host};
use super::tls::Tls;
use super::*;
use crate::request::Request;

fn as_node(files: &TlsFiles) -> Option<Arc<Tls>> {
    Tls::of_node(files, "127.0.0.1:0").unwrap()
}

fn with(id: NodeId, tls: Option<Arc<Tls>>) -> TransportConfig {
    TransportConfig { tls, ..settings(id, "127.0.0.1:0") }
}

/// Two nodes, each with certificates of its own.
struct Two {
    ca: Ca,
    dirs: [TempDir; 2],
    a: Host,
    b: Host,
}

async fn two() -> Two {
    let ca = Ca::new("ours");
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let a = Host::start(with(1, as_node(&ca.files(dirs[0].path())))).await;
    let b = Host::start(with(2, as_node(&ca.files(dirs[1].path())))).await;
    Two { ca, dirs, a, b }
}

/// What `host` says for the log, or about somebody it cannot dial.
async fn told(host: &mut Host) -> String {
    host.until(|i| match i {
        Incoming::Said { message, .. } => Some(message),
        Incoming::DialFailed { why, .. } => Some(format!("{:?} {}", why.code, why.reason)),
        _ => None,
    })
    .await
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name() {
    let (ca, other) = (Ca::new("ours"), Ca::new("theirs"));
    let good = || ca.issue(|_| {});
    let named = |name: &str| ca.issue(|p| p.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())]);
    let swapped = || Pair { key: good().key, ..good() };
    let encrypted = || Pair {
        key: "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n".into(),
        ..good()
    };
    let only = |purpose| ca.issue(|p| p.extended_key_usages = vec![purpose]);
    let cases: [(&str, Pair, &str, &str, &str); 12] = [
        ("not PEM", Pair { cert: "hello".into(), ..good() }, &ca.pem, "tls_cert", "holds no certificate"),
        ("a key for a certificate", Pair { cert: good().key, ..good() }, &ca.pem, "tls_cert", "holds no certificate"),
        ("no key", Pair { key: String::new(), ..good() }, &ca.pem, "tls_key", "holds no private key"),
        ("another's key", swapped(), &ca.pem, "tls_key", "is not the key of the certificate in"),
        ("an encrypted key", encrypted(), &ca.pem, "tls_key", "without a pass phrase"),
        ("no CA", good(), "", "tls_ca", "holds no certificate"),
        ("another's CA", good(), &other.pem, "tls_cert", "is not signed by a CA in tls_ca"),
        ("expired", ca.issue(|p| p.not_after = date_time_ymd(2020, 1, 1)), &ca.pem, "tls_cert", "has expired"),
        ("too early", ca.issue(|p| p.not_before = date_time_ymd(4000, 1, 1)), &ca.pem, "tls_cert", "is not valid yet"),
        ("another host", named("a.example"), &ca.pem, "tls_cert", "a.example\"), not 127.0.0.1"),
        ("a client's", only(ExtendedKeyUsagePurpose::ClientAuth), &ca.pem, "tls_cert", "serverAuth"),
        ("a server's", only(ExtendedKeyUsagePurpose::ServerAuth), &ca.pem, "tls_cert", "from a node that dials them"),
    ];
    for (what, pair, ca, field, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let files = write(dir.path(), &pair, ca);
        let error = Tls::of_node(&files, "127.0.0.1:7").err().unwrap();
        assert_eq!((error.code, error.field.as_deref()), (ErrorCode::Tls, Some(field)), "{what}: {error}");
        let path = error.path.unwrap();
        assert!(error.message.contains(says) && error.message.contains(path.to_str().unwrap()), "{}", error.message);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut files = ca.files(dir.path());
    std::fs::remove_file(&files.key).unwrap();
    let error = Tls::of_node(&files, "127.0.0.1:7").err().unwrap();
    assert!(error.message.contains("key.pem: cannot be read: No such file"), "{}", error.message);
    // A client's certificate need name nobody, and need not be of the CA that it believes.
    let pair = other.issue(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert!(Tls::of_client(&write(dir.path(), &pair, &ca.pem)).is_ok());
    // Where one certificate serves all nodes, its name is given.
    files = write(dir.path(), &named("nodes.example"), &ca.pem);
    files.server_name = "nodes.example".into();
    assert!(Tls::of_node(&files, "127.0.0.1:7").is_ok());
}

#[test]
fn settings_of_tls_go_together_or_not_at_all() {
    let cases: [(&[&str], Option<&str>); 5] = [
        (&[], None),
        (&["tls_cert", "tls_key", "tls_ca"], None),
        (&["tls_cert", "tls_ca"], Some("tls_key")),
        (&["tls_key"], Some("tls_cert")),
        (&["tls_server_name"], Some("tls_cert")),
    ];
    for (given, missing) in cases {
        let mut config = Config::default();
        given.iter().for_each(|name| config.set(name, "x").unwrap());
        assert_eq!(config.validate().err().and_then(|e| e.field).as_deref(), missing, "{given:?}");
    }
}

#[test]
fn nodes_with_certificates_of_one_ca_exchange_frames_snapshots_and_calls() {
    run(async {
        let Two { ca, dirs, mut a, mut b } = two().await;
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        for n in 0..100u8 {
            a.transport.send(2, Lane::Bulk, vec![item(vec![n; 100_000])]).unwrap();
        }
        let got = b.received(100).await;
        assert_eq!(got, (0..100u8).map(|n| (Lane::Bulk, vec![n; 100_000])).collect::<Vec<_>>());
        let data: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        a.transport.send_snapshot(2, header(10, data.len()), vec![1], Arc::new(data.clone()));
        assert_eq!(beside(&mut b, sent(&mut a)).await, Ok(()));
        assert_eq!(b.file(10), data);
        let tls = Tls::of_client(&ca.files(dirs[0].path())).unwrap().unwrap();
        let addr = b.transport.local_addr();
        let asked = tokio::spawn(async move {
            crate::client::call(&addr, Some(&tls), Request::Status, Duration::from_secs(10)).await
        });
        b.until(|i| match i {
            Incoming::Call { answer, .. } => answer.send(Ok(Reply::Applied { index: 7, term: 1, data: vec![] })).ok(),
            _ => None,
        })
        .await;
        assert_eq!(asked.await.unwrap(), Ok(Reply::Applied { index: 7, term: 1, data: vec![] }));
    });
}

#[test]
fn who_has_no_good_certificate_gets_nowhere_and_both_sides_say_why() {
    run(async {
        let Two { ca, mut a, mut b, .. } = two().await;
        let other = Ca::new("theirs");
        let dir = tempfile::tempdir().unwrap();
        let strange = other.issue(|_| {});
        let expired = ca.issue(|p| p.not_after = date_time_ymd(2020, 1, 1));
        // The dialler's certificates; what it is told; what the one that it dials says.
        let cases = [
            (None, "Tls", "wants TLS; give this side tls_cert", "it does not speak TLS"),
            (
                Some((&strange, &ca.pem)),
                "Tls",
                "does not take this side's certificate",
                "is not signed by a CA in tls_ca",
            ),
            (
                Some((&strange, &other.pem)),
                "Tls",
                "is not signed by a CA in tls_ca",
                "does not take this node's certificate",
            ),
            (Some((&expired, &ca.pem)), "Tls", "does not take this side's certificate", "has expired"),
        ];
        for (certificates, code, dialler, dialled) in cases {
            // A node that checks nothing of its own: it would not have started.
            let tls = certificates.and_then(|(pair, ca)| Tls::of_client(&write(dir.path(), pair, ca)).unwrap());
            let mut stranger = Host::start(with(3, tls)).await;
            // Another one for each: the log takes one line in a while.
            let own = ca.files(dir.path());
            let mut host = Host::start(with(1, as_node(&own))).await;
            stranger.dial(1, &host.transport.local_addr());
            let (to_stranger, to_host) = tokio::join!(told(&mut stranger), told(&mut host));
            assert!(to_stranger.starts_with(code) && to_stranger.contains(dialler), "{to_stranger}");
            assert!(to_host.contains("was turned away") && to_host.contains(dialled), "{to_host}");
        }
        // Without a certificate, by a program that is none of ours.
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(a.transport.listen_addr()).await.unwrap();
        let connecting =
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect("127.0.0.1".try_into().unwrap(), tcp);
        if let Ok(mut stream) = connecting.await {
            let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
            assert!(stream.read(&mut [0; 64]).await.is_err());
        }
        assert!(told(&mut a).await.contains("it shows no certificate"));
        // And all the while the members get on.
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
    });
}

#[test]
fn a_node_that_shows_nothing_good_is_not_talked_to() {
    run(async {
        let ca = Ca::new("ours");
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = ca.issue(|p| p.subject_alt_names = vec![SanType::DnsName("a.example".try_into().unwrap())]);
        let cases = [
            (None, "does not speak TLS"),
            (Some(elsewhere), "names"),
            (Some(Ca::new("theirs").issue(|_| {})), "is not signed by a CA in tls_ca"),
        ];
        for (pair, says) in cases {
            let mut own = Host::start(with(1, as_node(&ca.files(dir.path())))).await;
            let tls = pair.and_then(|pair| Tls::of_client(&write(dir.path(), &pair, &ca.pem)).unwrap());
            let mut listener = Host::start(with(2, tls)).await;
            own.dial(2, &listener.transport.local_addr());
            let reason = beside(&mut listener, told(&mut own)).await;
            assert!(reason.starts_with("Tls") && reason.contains(says), "{reason}");
        }
    });
}

#[test]
fn certificates_are_replaced_while_the_node_runs_and_broken_ones_are_not_taken() {
    run(async {
        let Two { ca, dirs, mut a, mut b } = two().await;
        let next = Ca::new("next");
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        let both = format!("{}{}", ca.pem, next.pem);
        // One CA after the other, as it is done without a gap: believe both, show the new one, believe the new one alone.
        let steps: [(&Ca, &str); 3] = [(&ca, &both), (&next, &both), (&next, &next.pem)];
        for (issuer, believed) in steps {
            for dir in &dirs {
                write(dir.path(), &issuer.issue(|_| {}), believed);
            }
            tokio::time::sleep(Duration::from_millis(1100)).await;
            a.transport.hang_up(2);
            beside(&mut b, a.connected()).await;
        }
        // Whoever has the old certificate has no way in any more.
        let old = Tls::of_client(&write(dirs[0].path(), &ca.issue(|_| {}), &both)).unwrap();
        let mut old = Host::start(with(3, old)).await;
        old.dial(2, &b.transport.local_addr());
        let reason = beside(&mut b, told(&mut old)).await;
        assert!(reason.contains("does not take this side's certificate"), "{reason}");
        // Half of a new pair: those before stay in use, and it is said.
        write(dirs[0].path(), &next.issue(|_| {}), &next.pem);
        std::fs::write(dirs[1].path().join("cert.pem"), next.issue(|_| {}).cert).unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        a.transport.hang_up(2);
        let trouble = b.until(|i| match i {
            Incoming::Said { level: slog::Level::Error, message } => Some(message),
            _ => None,
        });
        let trouble = beside(&mut a, trouble).await;
        assert!(trouble.contains("is not the key") && trouble.contains("stay in use"), "{trouble}");
        a.transport.hang_up(2);
        beside(&mut b, a.connected()).await;
    });
}

#[test]
fn a_disk_that_hangs_under_the_files_does_not_keep_nodes_apart() {
    run(async {
        let Two { dirs, mut a, mut b, .. } = two().await;
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        // Whoever opens a pipe that nobody writes to waits for ever.
        let ca = dirs[0].path().join("ca.pem");
        std::fs::remove_file(&ca).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&ca).status().unwrap().success());
        tokio::time::sleep(Duration::from_millis(1100)).await;
        a.transport.hang_up(2);
        beside(&mut b, a.connected()).await;
        // Lets the one who waits go, or the test would not end.
        std::fs::OpenOptions::new().write(true).open(&ca).unwrap();
    });
}

#[test]
fn a_caller_that_says_nothing_holds_its_place_for_a_while_only_and_no_port() {
    run(async {
        let ca = Ca::new("ours");
        let dir = tempfile::tempdir().unwrap();
        let config = TransportConfig {
            hello_timeout: Duration::from_millis(500),
            max_connections: 1,
            ..with(1, as_node(&ca.files(dir.path())))
        };
        let mut host = Host::start(config).await;
        let addr = host.transport.listen_addr();
        let mut silent = TcpStream::connect(addr).await.unwrap();
        let mut second = TcpStream::connect(addr).await.unwrap();
        assert!(!second.read(&mut [0; 8]).await.is_ok_and(|n| n > 0), "there is room for one");
        assert!(!silent.read(&mut [0; 8]).await.is_ok_and(|n| n > 0), "and that one has to show a certificate");
        assert!(told(&mut host).await.contains("this node has 1 connections, as many as it takes"));
        assert!(told(&mut host).await.contains("it showed no certificate within 500ms"));
        // Who only looks whether somebody listens is nobody to speak of.
        drop(TcpStream::connect(addr).await.unwrap());
        let held = TcpStream::connect(addr).await.unwrap();
        let said = tokio::time::timeout(Duration::from_millis(100), told(&mut host)).await;
        assert!(said.is_err(), "{said:?}");
        host.transport.shutdown().await;
        Host::start(settings(1, &addr.to_string())).await;
        drop(held);
    });
}
