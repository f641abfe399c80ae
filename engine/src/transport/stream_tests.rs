//! Streams that others open, one beside the other: whose they are, which one stays, and what each may say.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::ask::{ask, Sent};
use super::connect::{connect, Patience};
use super::tame::Tame;
use super::tests::{beside, greeting, header, run, sealed, settings, Host, Raw};
use super::{path, Incoming, Lane, TransportConfig};
use crate::error::{Committed, ErrorCode};
use crate::request::Request;
use crate::wire::{
    Body, Frame, Hello, Item, SnapshotChunk, SnapshotOpen, SnapshotUp, SnapshotUpBody, StreamKind, Verdict,
    PROTOCOL_VERSION,
};

/// A stream that node 7 has opened, greeted, whatever the answer was.
struct Talk {
    say: mpsc::Sender<Bytes>,
    answers: Streaming<Bytes>,
    _connection: Tame,
}

impl Talk {
    async fn say(&self, message: Bytes) {
        self.say.send(message).await.unwrap();
    }

    /// How the host ends it.
    async fn end(&mut self, host: &mut Host) -> Code {
        let ended = async {
            loop {
                match self.answers.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Code::Ok,
                    Err(status) => return status.code(),
                }
            }
        };
        beside(host, ended).await
    }

    /// The next items that the host hears; `None` if it ends this stream instead.
    async fn is_heard(&mut self, host: &mut Host) -> Option<Vec<(Lane, Vec<u8>)>> {
        tokio::select! {
            heard = host.received(1) => Some(heard),
            _ = self.answers.message() => None,
        }
    }
}

/// Opens a stream; `Err` if it was ended before its greeting had an answer.
async fn open(host: &mut Host, method: &'static str, greeting: Bytes) -> Result<Talk, Code> {
    let addr = host.transport.local_addr();
    let opened = async move {
        let connection = connect(&addr, Patience::from(&settings(7, "")), None).await.unwrap();
        let (say, body) = mpsc::channel(16);
        say.send(greeting).await.unwrap();
        let mut grpc = tonic::client::Grpc::new(connection.clone());
        grpc.ready().await.unwrap();
        let opened = grpc.streaming(tonic::Request::new(ReceiverStream::new(body)), path(method), Raw).await;
        let mut answers = opened.map_err(|status| status.code())?.into_inner();
        match answers.message().await {
            Ok(Some(_)) => Ok(Talk { say, answers, _connection: connection }),
            Ok(None) => Err(Code::Ok),
            Err(status) => Err(status.code()),
        }
    };
    beside(host, opened).await
}

fn hello(kind: StreamKind) -> Hello {
    Hello { node_id: 7, kind: kind.into(), ..Hello::default() }
}

fn frame(bytes: &'static [u8]) -> Bytes {
    let body = Some(Body::Raft(Bytes::from_static(bytes)));
    sealed(&Frame { items: vec![Item { body }] }.encode_to_vec())
}

fn up(body: SnapshotUpBody) -> Bytes {
    sealed(&SnapshotUp { body: Some(body) }.encode_to_vec())
}

#[test]
fn a_newer_stream_takes_the_place_of_the_older_and_outlives_its_end() {
    run(async {
        let mut host = Host::start(settings(1, "127.0.0.1:0")).await;
        let mut older = open(&mut host, "Peer", greeting()).await.unwrap();
        let mut bulk = open(&mut host, "Peer", sealed(&hello(StreamKind::Bulk).encode_to_vec())).await.unwrap();
        let mut newer = open(&mut host, "Peer", greeting()).await.unwrap();
        assert_eq!(older.end(&mut host).await, Code::Aborted);
        newer.say(frame(b"newer")).await;
        assert_eq!(newer.is_heard(&mut host).await, Some(vec![(Lane::Control, b"newer".to_vec())]));
        bulk.say(frame(b"beside")).await;
        assert_eq!(bulk.is_heard(&mut host).await, Some(vec![(Lane::Bulk, b"beside".to_vec())]), "another lane stays");
    });
}

#[test]
fn a_stream_that_waits_for_the_driver_ends_too_when_a_newer_one_takes_its_place() {
    run(async {
        // Each frame is above the whole budget, and passes alone.
        let config = TransportConfig { max_inflight_bytes: 1, ..settings(1, "127.0.0.1:0") };
        let mut host = Host::start(config).await;
        let greeting = sealed(&hello(StreamKind::Bulk).encode_to_vec());
        let mut older = open(&mut host, "Peer", greeting.clone()).await.unwrap();
        older.say(frame(b"first")).await;
        older.say(frame(b"second")).await;
        let held =
            host.until(|heard| if let Incoming::Frame { permit, .. } = heard { Some(permit) } else { None }).await;
        let mut newer = open(&mut host, "Peer", greeting).await.unwrap();
        assert_eq!(older.end(&mut host).await, Code::Aborted, "the second one must not come behind what is newer");
        newer.say(frame(b"third")).await;
        assert_eq!(newer.is_heard(&mut host).await, Some(vec![(Lane::Bulk, b"third".to_vec())]));
        drop(held);
    });
}

fn opens(index: u64, size: usize) -> Bytes {
    up(SnapshotUpBody::Open(SnapshotOpen { header: Some(header(index, size)), raft_message: vec![] }))
}

#[test]
fn whoever_sends_a_snapshot_anew_is_not_held_up_by_the_stream_before() {
    run(async {
        let mut host = Host::start(settings(1, "127.0.0.1:0")).await;
        let greeting = up(SnapshotUpBody::Hello(hello(StreamKind::Snapshot)));
        let mut broken_off = open(&mut host, "Snapshot", greeting.clone()).await.unwrap();
        broken_off.say(opens(5, 10)).await;
        let mut anew = open(&mut host, "Snapshot", greeting).await.unwrap();
        assert_eq!(broken_off.end(&mut host).await, Code::Aborted);
        anew.say(opens(5, 10)).await;
        anew.say(up(SnapshotUpBody::Chunk(SnapshotChunk { offset: 0, data: vec![9; 10] }))).await;
        assert_eq!(anew.end(&mut host).await, Code::Ok);
        assert_eq!(host.file(5), [9; 10]);
    });
}

#[test]
fn a_snapshot_of_which_nothing_more_comes_is_given_up() {
    run(async {
        let config = TransportConfig { snapshot_stall: Duration::from_millis(100), ..settings(1, "127.0.0.1:0") };
        let mut host = Host::start(config).await;
        for said in [vec![], vec![opens(5, 10)]] {
            let greeting = up(SnapshotUpBody::Hello(hello(StreamKind::Snapshot)));
            let mut silent = open(&mut host, "Snapshot", greeting).await.unwrap();
            for message in said {
                silent.say(message).await;
            }
            assert_eq!(silent.end(&mut host).await, Code::DeadlineExceeded);
        }
    });
}

#[test]
fn whoever_is_refused_ends_no_stream_of_the_node_that_it_claims_to_be() {
    run(async {
        let mut host = Host::start(settings(1, "127.0.0.1:0")).await;
        let mut member = open(&mut host, "Peer", greeting()).await.unwrap();
        host.verdict = Verdict::WrongDirectory;
        let mut impostor = open(&mut host, "Peer", greeting()).await.unwrap();
        assert_eq!(impostor.end(&mut host).await, Code::Ok, "it was told in the answer");
        member.say(frame(b"still here")).await;
        assert_eq!(member.is_heard(&mut host).await, Some(vec![(Lane::Control, b"still here".to_vec())]));
    });
}

#[test]
fn a_place_among_the_streams_is_taken_as_long_as_the_stream_lasts() {
    run(async {
        let config = TransportConfig { max_streams: 1, ..settings(1, "127.0.0.1:0") };
        let mut host = Host::start(config).await;
        for _ in 0..3 {
            let mut only = open(&mut host, "Peer", greeting()).await.unwrap();
            assert_eq!(open(&mut host, "Peer", greeting()).await.err(), Some(Code::ResourceExhausted));
            only.say = mpsc::channel(1).0;
            assert_eq!(only.end(&mut host).await, Code::Ok);
        }
    });
}

#[test]
fn each_method_takes_its_own_kind_of_stream_and_its_own_size_of_messages() {
    run(async {
        let mut host = Host::start(settings(1, "127.0.0.1:0")).await;
        for (method, greeting) in [
            ("Peer", sealed(&hello(StreamKind::Snapshot).encode_to_vec())),
            ("Snapshot", up(SnapshotUpBody::Hello(hello(StreamKind::Control)))),
            ("Snapshot", up(SnapshotUpBody::Hello(hello(StreamKind::Bulk)))),
        ] {
            assert_eq!(open(&mut host, method, greeting).await.err(), Some(Code::InvalidArgument), "{method}");
        }
        let mut talk =
            open(&mut host, "Snapshot", up(SnapshotUpBody::Hello(hello(StreamKind::Snapshot)))).await.unwrap();
        talk.say(opens(5, 8 << 20)).await;
        talk.say(up(SnapshotUpBody::Chunk(SnapshotChunk { offset: 0, data: vec![0; 2 << 20] }))).await;
        talk.say = mpsc::channel(1).0;
        assert_eq!(talk.end(&mut host).await, Code::OutOfRange, "a chunk of two mebibytes");
    });
}

#[test]
fn a_greeting_names_its_stream_its_addressee_and_what_the_log_records_of_that() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        a.transport.set_hello(Hello { start: 5, ..Hello::default() }, BTreeMap::from([(2, vec![2]), (3, vec![3])]));
        a.dial(2, &b.transport.local_addr());
        let mut kinds = Vec::new();
        while kinds.len() < 2 {
            let Some(Incoming::Hello { hello, .. }) = b.heard.recv().await else { panic!("no greeting") };
            assert_eq!((hello.version, hello.node_id, hello.to, hello.start), (PROTOCOL_VERSION, 1, 2, 5));
            assert_eq!(hello.recorded, [2]);
            kinds.push(hello.kind);
        }
        kinds.sort_unstable();
        assert_eq!(kinds, [StreamKind::Control as i32, StreamKind::Bulk as i32]);
    });
}

#[test]
fn nothing_goes_to_a_listener_that_the_driver_does_not_want() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        a.dial(2, &b.transport.local_addr());
        let unwanted = async {
            loop {
                match a.heard.recv().await.unwrap() {
                    Incoming::Welcomed { answer, welcome, .. } => {
                        assert_eq!(welcome.verdict, Verdict::Accepted as i32);
                        answer.send(false).unwrap();
                    }
                    Incoming::DialFailed { why, .. } => return why.reason,
                    other => panic!("{other:?}"),
                }
            }
        };
        let reason = beside(&mut b, unwanted).await;
        assert!(reason.contains("does not want to send"), "{reason}");
    });
}

#[test]
fn streams_of_one_that_is_no_peer_any_more_end_and_one_that_has_moved_is_dialled_where_it_is() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        let mut from_peer = open(&mut a, "Peer", greeting()).await.unwrap();
        a.dial(7, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        let mut moved = Host::start(settings(2, "127.0.0.1:0")).await;
        a.dial(7, &moved.transport.local_addr());
        beside(&mut moved, a.connected()).await;
        a.transport.set_peers(&BTreeMap::new());
        assert_eq!(from_peer.end(&mut a).await, Code::Aborted);
    });
}

#[test]
fn a_connection_above_the_limit_is_closed_at_once_and_those_before_it_stay() {
    run(async {
        let config = TransportConfig { max_connections: 1, ..settings(1, "127.0.0.1:0") };
        let host = Host::start(config).await;
        let connect = || tokio::net::TcpStream::connect(host.transport.listen_addr());
        let (mut first, mut second) = (connect().await.unwrap(), connect().await.unwrap());
        tokio::select! {
            biased;
            () = closed(&mut first) => panic!("the first one is closed"),
            () = closed(&mut second) => {}
        }
    });
}

#[test]
fn a_node_whose_places_are_taken_refuses_calls_by_name_and_lets_members_in() {
    run(async {
        let hello_timeout = Duration::from_secs(1);
        let config = TransportConfig { max_connections: 8, hello_timeout, ..settings(1, "127.0.0.1:0") };
        let mut host = Host::start(config).await;
        let mut taken = Vec::new();
        for _ in 0..8 {
            taken.push(open(&mut host, "Peer", greeting()).await.unwrap());
        }
        let addr = host.transport.local_addr();
        let refused = async {
            // Each is closed then, and makes room for the next one.
            for _ in 0..3 {
                loop {
                    let Ok(connection) = connect(&addr, Patience::from(&settings(7, "")), None).await else { continue };
                    let asked = ask(connection, &Request::Status, None, &Sent::default()).await;
                    let error = asked.expect_err("it has no place");
                    assert_eq!((error.code, error.committed), (ErrorCode::ConnectionFailed, Committed::No), "{error}");
                    if error.message.contains("this node has 8 connections") {
                        break;
                    }
                }
            }
        };
        beside(&mut host, refused).await;
        let mut member = loop {
            if let Ok(member) = open(&mut host, "Peer", greeting()).await {
                break member;
            }
        };
        // Longer than one that is not kept.
        beside(&mut host, tokio::time::sleep(2 * hello_timeout)).await;
        member.say(frame(b"still here")).await;
        assert_eq!(member.is_heard(&mut host).await, Some(vec![(Lane::Control, b"still here".to_vec())]));
    });
}

async fn closed(tcp: &mut tokio::net::TcpStream) {
    while tcp.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
}
