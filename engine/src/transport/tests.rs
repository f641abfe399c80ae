//! Two transports in one runtime, and strangers.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::Status;

use super::ask::{ask, Sent};
use super::connect::{connect, Patience};
use super::envelope::Envelope;
use super::*;
use crate::wire::{Body, Frame, Verdict};

/// Runs on a thread like the node's; a test that hangs fails.
pub fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs");
    });
    runtime.shutdown_background();
}

#[derive(Default)]
struct Files {
    data: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// The disk fails once at this offset.
    fail_at: Mutex<Option<u64>>,
    begun_at: Mutex<Vec<u64>>,
    /// The disk fails once when what has arrived is to be made durable.
    fail_finish: Mutex<bool>,
    finished: Mutex<u32>,
}

struct Intake(Arc<Files>);
struct File(Arc<Files>, u64, u64);

impl SnapshotIntake for Intake {
    fn begin(&self, _: NodeId, header: &SnapshotHeader) -> Result<(Box<dyn IntakeFile>, u64)> {
        let at = self.0.data.lock().unwrap().entry(header.index).or_default().len() as u64;
        self.0.begun_at.lock().unwrap().push(at);
        Ok((Box::new(File(Arc::clone(&self.0), header.index, header.size)), at))
    }
}

impl IntakeFile for File {
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        if self.0.fail_at.lock().unwrap().take_if(|at| *at <= offset).is_some() {
            return Err(Error::not_done(ErrorCode::DiskFull, "no space"));
        }
        let mut files = self.0.data.lock().unwrap();
        let file = files.get_mut(&self.1).unwrap();
        assert_eq!(file.len() as u64, offset, "in order, without a gap");
        file.extend_from_slice(data);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        assert_eq!(self.0.data.lock().unwrap()[&self.1].len() as u64, self.2);
        if std::mem::take(&mut *self.0.fail_finish.lock().unwrap()) {
            return Err(Error::not_done(ErrorCode::Storage, "no sync"));
        }
        *self.0.finished.lock().unwrap() += 1;
        Ok(())
    }
}

impl SnapshotSource for Vec<u8> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let rest = self.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

pub struct Host {
    pub transport: Transport,
    pub heard: mpsc::UnboundedReceiver<Incoming>,
    files: Arc<Files>,
    pub(super) verdict: Verdict,
}

pub fn settings(id: NodeId, addr: &str) -> TransportConfig {
    TransportConfig::new(id, addr, &Config::default())
}

impl Host {
    pub async fn start(config: TransportConfig) -> Host {
        let (tell, heard) = mpsc::unbounded_channel();
        let files = Arc::<Files>::default();
        let transport = Transport::bind(config, tell, Arc::new(Intake(Arc::clone(&files)))).await.unwrap();
        transport.set_hello(Hello::default(), BTreeMap::new());
        Host { transport, heard, files, verdict: Verdict::Accepted }
    }

    /// What has arrived of a snapshot.
    pub fn file(&self, index: u64) -> Vec<u8> {
        self.files.data.lock().unwrap()[&index].clone()
    }

    pub(super) async fn pair() -> (Host, Host) {
        let a = Host::start(settings(1, "127.0.0.1:0")).await;
        let b = Host::start(settings(2, "127.0.0.1:0")).await;
        (a, b)
    }

    pub fn dial(&mut self, id: NodeId, addr: &str) {
        self.transport.set_peers(&BTreeMap::from([(id, addr.to_owned())]));
    }

    /// The next thing that is no greeting; greetings are answered.
    pub(super) async fn next(&mut self) -> Incoming {
        loop {
            match self.heard.recv().await.expect("the transport has ended") {
                Incoming::Hello { answer, .. } => {
                    let welcome =
                        Welcome { verdict: self.verdict.into(), reason: "so it is".into(), ..Welcome::default() };
                    let _ = answer.send(welcome);
                }
                Incoming::Welcomed { answer, .. } => {
                    let _ = answer.send(true);
                }
                Incoming::SnapshotHeader { answer, .. } => {
                    let _ = answer.send(Ok(()));
                }
                other => return other,
            }
        }
    }

    /// Goes on until `wanted` gives something.
    pub async fn until<T>(&mut self, mut wanted: impl FnMut(Incoming) -> Option<T>) -> T {
        loop {
            let incoming = self.next().await;
            if let Some(found) = wanted(incoming) {
                return found;
            }
        }
    }

    pub async fn connected(&mut self) {
        let mut lanes = 0;
        self.until(|i| {
            lanes += i32::from(matches!(i, Incoming::Connected { .. }));
            (lanes == 2).then_some(())
        })
        .await;
    }

    pub async fn received(&mut self, n: usize) -> Vec<(Lane, Vec<u8>)> {
        let mut got = Vec::new();
        while got.len() < n {
            if let Incoming::Frame { lane, items, .. } = self.next().await {
                got.extend(items.into_iter().map(|i| (lane, raw(i))));
            }
        }
        got
    }
}

pub fn item(bytes: Vec<u8>) -> Outgoing {
    Body::Raft(bytes.into()).into()
}

fn raw(item: Item) -> Vec<u8> {
    match item.body {
        Some(Body::Raft(bytes)) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// Lets `other` answer greetings while `task` runs.
pub async fn beside<T>(other: &mut Host, task: impl Future<Output = T>) -> T {
    tokio::select! {
        done = task => done,
        () = async { loop { other.next().await; } } => unreachable!(),
    }
}

#[test]
fn frames_of_both_lanes_arrive_in_order() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        a.dial(2, &b.transport.local_addr());
        assert_eq!(a.transport.send(2, Lane::Control, vec![item(vec![1])]), Err(vec![item(vec![1])]), "not connected");
        beside(&mut b, a.connected()).await;
        for n in 0..100u8 {
            a.transport.send(2, Lane::Bulk, vec![item(vec![n; 10_000]), item(vec![n])]).unwrap();
            a.transport.send(2, Lane::Control, vec![item(vec![n, n])]).unwrap();
        }
        let got = b.received(300).await;
        let of = |lane| got.iter().filter(move |(l, _)| *l == lane).map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>();
        assert_eq!(of(Lane::Bulk), (0..100u8).flat_map(|n| [vec![n; 10_000], vec![n]]).collect::<Vec<_>>());
        assert_eq!(of(Lane::Control), (0..100u8).map(|n| vec![n, n]).collect::<Vec<_>>());
    });
}

#[test]
fn two_that_dial_each_other_at_once_both_get_through() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        a.dial(2, &b.transport.local_addr());
        b.dial(1, &a.transport.local_addr());
        let mut lanes = [0, 0];
        while lanes != [2, 2] {
            tokio::select! {
                heard = a.next() => lanes[0] += i32::from(matches!(heard, Incoming::Connected { .. })),
                heard = b.next() => lanes[1] += i32::from(matches!(heard, Incoming::Connected { .. })),
            }
        }
        a.transport.send(2, Lane::Control, vec![item(vec![1])]).unwrap();
        b.transport.send(1, Lane::Control, vec![item(vec![2])]).unwrap();
        assert_eq!(b.received(1).await, [(Lane::Control, vec![1])]);
        assert_eq!(a.received(1).await, [(Lane::Control, vec![2])]);
    });
}

#[test]
fn a_frame_of_sixteen_mebibytes_passes() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        a.transport.send(2, Lane::Bulk, vec![item(vec![7; 16 << 20])]).unwrap();
        assert_eq!(b.received(1).await, [(Lane::Bulk, vec![7; 16 << 20])]);
    });
}

#[test]
fn a_restarted_peer_on_the_same_port_is_found_again() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        let addr = b.transport.local_addr();
        a.dial(2, &addr);
        beside(&mut b, a.connected()).await;
        b.transport.shutdown().await;
        let mut gone = 0;
        a.until(|i| {
            gone += i32::from(matches!(i, Incoming::Disconnected { .. }));
            (gone == 2).then_some(())
        })
        .await;
        assert!(a.transport.send(2, Lane::Control, vec![item(vec![1])]).is_err());
        let mut b = Host::start(settings(2, &addr)).await;
        beside(&mut b, a.connected()).await;
        a.transport.send(2, Lane::Control, vec![item(vec![9])]).unwrap();
        assert_eq!(b.received(1).await, [(Lane::Control, vec![9])]);
    });
}

#[test]
fn s18_a_slow_driver_pushes_back_and_the_control_lane_still_passes() {
    run(async {
        let mut a = Host::start(TransportConfig { max_inflight_bytes: 4 << 20, ..settings(1, "127.0.0.1:0") }).await;
        let mut b = Host::start(TransportConfig { max_inflight_bytes: 4 << 20, ..settings(2, "127.0.0.1:0") }).await;
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        // Nobody gives a permit back: the sockets fill, then the queue, then `send` hands back.
        let mut permits = Vec::new();
        let (mut sent, mut refusals, mut received) = (0u64, 0, 0u64);
        while refusals < 200 {
            match a.transport.send(2, Lane::Bulk, vec![item(vec![0; 1 << 20])]) {
                Ok(()) => (sent, refusals) = (sent + 1, 0),
                Err(back) => {
                    assert_eq!(back.len(), 1);
                    refusals += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            while let Ok(incoming) = b.heard.try_recv() {
                if let Incoming::Frame { permit, items, .. } = incoming {
                    received += items.len() as u64;
                    permits.push(permit);
                }
            }
        }
        assert!(received < sent, "some are held up: {received} of {sent}");
        a.transport.send(2, Lane::Control, vec![item(vec![5])]).unwrap();
        assert_eq!(b.received(1).await, [(Lane::Control, vec![5])]);
        drop(permits);
        while received < sent {
            if let Incoming::Frame { items, .. } = b.next().await {
                received += items.len() as u64;
            }
        }
    });
}

#[test]
fn what_is_queued_when_the_peer_is_given_up_certainly_never_left() {
    run(async {
        let mut a = Host::start(settings(1, "127.0.0.1:0")).await;
        let mut b = Host::start(TransportConfig { max_inflight_bytes: 4 << 20, ..settings(2, "127.0.0.1:0") }).await;
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        // Nobody takes anything in: the sockets fill, then the queue, and what is in that is still there at the end.
        let numbered = |n: u8| item(vec![n; 1 << 20]);
        let (mut sent, mut refusals) = (0u8, 0);
        while refusals < 200 {
            match a.transport.send(2, Lane::Bulk, vec![numbered(sent)]) {
                Ok(()) => (sent, refusals) = (sent + 1, 0),
                Err(_) => refusals += 1,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        a.transport.set_peers(&BTreeMap::new());
        let items = a.until(|i| if let Incoming::NotSent { items, .. } = i { Some(items) } else { None }).await;
        let first = sent - items.len() as u8;
        assert!(!items.is_empty());
        assert_eq!(items, (first..sent).map(numbered).collect::<Vec<_>>(), "the last ones, in order");
        // What left may still arrive, until the next stream has brought something.
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        a.transport.send(2, Lane::Bulk, vec![item(vec![])]).unwrap();
        b.until(|incoming| {
            let Incoming::Frame { items, .. } = incoming else { return None };
            items.into_iter().map(raw).find_map(|item| match item.first() {
                Some(n) => {
                    assert!(*n < first, "{n} arrived, and certainly never left");
                    None
                }
                None => Some(()),
            })
        })
        .await;
    });
}

#[test]
fn a_refused_greeting_carries_nothing_and_its_reason() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        b.verdict = Verdict::WrongDirectory;
        a.dial(2, &b.transport.local_addr());
        let wanted = |i| match i {
            Incoming::DialFailed { why, .. } => Some(why.reason),
            Incoming::Connected { .. } => panic!("refused, yet connected"),
            _ => None,
        };
        let reason = beside(&mut b, a.until(wanted)).await;
        assert!(reason.contains("WrongDirectory") && reason.contains("so it is"), "{reason}");
    });
}

#[test]
fn hanging_up_ends_streams_both_ways_and_greets_anew() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        b.transport.hang_up(1);
        beside(&mut b, a.connected()).await;
        a.transport.hang_up(2);
        beside(&mut b, a.connected()).await;
    });
}

// ---- addresses ----

#[test]
fn an_address_that_cannot_be_listened_on_names_field_value_and_remedy() {
    run(async {
        let held = Host::start(settings(1, "127.0.0.1:0")).await;
        let used = held.transport.local_addr();
        let table = [
            ("", used.as_str(), "raft_addr", "take another port"),
            (used.as_str(), "127.0.0.1:1", "listen_addr", "take another port"),
            ("", "nonsense", "raft_addr", "write host:port"),
            ("nonsense", "127.0.0.1:1", "listen_addr", "write host:port"),
            ("", "0.0.0.0:7", "raft_addr", "listen_addr"),
            ("", "203.0.113.7:7", "raft_addr", "listen_addr"),
        ];
        for (listen_addr, raft_addr, field, remedy) in table {
            let (tell, _heard) = mpsc::unbounded_channel();
            let config = TransportConfig { listen_addr: listen_addr.into(), ..settings(2, raft_addr) };
            let error = Transport::bind(config, tell, Arc::new(Intake(Arc::default()))).await.err().unwrap();
            assert_eq!((error.code, error.field.as_deref()), (ErrorCode::InvalidConfig, Some(field)), "{error}");
            assert!(error.message.contains(remedy), "{error}");
        }
    });
}

#[test]
fn port_zero_becomes_the_real_one_and_is_free_again_after_shutdown() {
    run(async {
        let config = TransportConfig { listen_addr: "127.0.0.1:0".into(), ..settings(1, "localhost:0") };
        let host = Host::start(config).await;
        let addr = host.transport.local_addr();
        assert_eq!(addr, format!("localhost:{}", host.transport.listen_addr().port()));
        // A connection that is open does not hold the port.
        let mut tcp = tokio::net::TcpStream::connect(host.transport.listen_addr()).await.unwrap();
        let listen = host.transport.listen_addr().to_string();
        host.transport.shutdown().await;
        while tcp.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
        Host::start(settings(1, &listen)).await;
    });
}

// ---- strangers ----

/// Bytes as they are: no checksum, no format.
#[derive(Clone, Copy)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

pub(super) fn sealed(body: &[u8]) -> Bytes {
    let mut bytes = vec![1];
    bytes.extend(crc32c::crc32c(body).to_le_bytes());
    bytes.extend(body);
    bytes.into()
}

pub(super) fn greeting() -> Bytes {
    sealed(&Hello { node_id: 7, ..Default::default() }.encode_to_vec())
}

/// Opens a stream, says these things, and returns how the stream ended.
async fn stranger(host: &mut Host, method: &'static str, messages: Vec<Bytes>) -> tonic::Code {
    let addr = host.transport.local_addr();
    let talk = async move {
        let channel = connect::connect(&addr, connect::Patience::from(&settings(7, "")), None).await.unwrap();
        let (say, body) = mpsc::channel(16);
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        // A call is answered only when it has been said.
        let mut messages = VecDeque::from(messages);
        if method == "Call" {
            for message in messages.drain(..) {
                say.send(message).await.unwrap();
            }
        }
        let opened = grpc.streaming(tonic::Request::new(ReceiverStream::new(body)), path(method), Raw).await;
        let mut answers = match opened {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status.code(),
        };
        for message in messages {
            let _ = say.send(message).await;
            // The greeting is answered before anything else is said.
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return tonic::Code::Ok,
                Err(status) => return status.code(),
            }
        }
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return tonic::Code::Ok,
                Err(status) => return status.code(),
            }
        }
    };
    let heard = async {
        loop {
            let incoming = host.next().await;
            assert!(!matches!(incoming, Incoming::Frame { .. }), "{incoming:?}");
        }
    };
    tokio::select! {
        code = talk => code,
        () = heard => unreachable!(),
    }
}

async fn lives(host: &mut Host) {
    let mut friend = Host::start(settings(8, "127.0.0.1:0")).await;
    friend.dial(1, &host.transport.local_addr());
    beside(host, friend.connected()).await;
    friend.transport.send(1, Lane::Control, vec![item(vec![3])]).unwrap();
    assert_eq!(host.received(1).await, [(Lane::Control, vec![3])]);
}

#[test]
fn hostile_streams_end_with_an_error_and_the_node_lives() {
    run(async {
        let mut host = Host::start(TransportConfig {
            hello_timeout: Duration::from_secs(1),
            max_frame: 2 << 20,
            ..settings(1, "127.0.0.1:0")
        })
        .await;
        let mut wrong_crc = greeting().to_vec();
        wrong_crc[1] ^= 1;
        let mut wrong_format = greeting().to_vec();
        wrong_format[0] = 9;
        let body = Some(Body::Raft(vec![0; 100].into()));
        let frame = Frame { items: vec![Item { body }] }.encode_to_vec();
        let mut damaged = sealed(&frame).to_vec();
        damaged[60] ^= 0x40;
        use tonic::Code::*;
        let table: Vec<(&str, &'static str, Vec<Bytes>, tonic::Code)> = vec![
            ("wrong checksum", "Peer", vec![wrong_crc.into()], DataLoss),
            ("unknown format", "Peer", vec![wrong_format.into()], InvalidArgument),
            ("empty message", "Peer", vec![Bytes::new()], InvalidArgument),
            ("garbage for a greeting", "Peer", vec![sealed(&[0xff; 40])], InvalidArgument),
            ("no id", "Peer", vec![sealed(&[])], InvalidArgument),
            ("a greeting of a mebibyte", "Peer", vec![vec![1; 1 << 20].into()], PermissionDenied),
            ("silence", "Peer", vec![], DeadlineExceeded),
            ("silence", "Snapshot", vec![], DeadlineExceeded),
            ("a peer's greeting for a snapshot", "Snapshot", vec![greeting()], InvalidArgument),
            ("damaged frame", "Peer", vec![greeting(), damaged.into()], DataLoss),
            ("garbage frame", "Peer", vec![greeting(), sealed(&[0x0a, 0xff, 0xff, 0x03])], InvalidArgument),
            ("a million empty items", "Peer", vec![greeting(), sealed(&[0x0a, 0].repeat(1_000_000))], InvalidArgument),
            ("oversized frame", "Peer", vec![greeting(), sealed(&vec![0; 3 << 20])], OutOfRange),
            ("garbage call", "Call", vec![vec![0xff; 100].into()], InvalidArgument),
        ];
        for (what, method, messages, code) in table {
            let heard = stranger(&mut host, method, messages).await;
            assert_eq!(heard, code, "{what}");
        }
        lives(&mut host).await;
    });
}

#[test]
fn hostile_bytes_on_the_bare_socket_leave_the_node_alive() {
    run(async {
        let config = TransportConfig { hello_timeout: Duration::from_secs(1), ..settings(1, "127.0.0.1:0") };
        let mut host = Host::start(config).await;
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let garbage: Vec<Vec<u8>> = vec![
            vec![],
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0xff; 100_000],
            [preface.clone(), vec![0xff; 10_000]].concat(),
            [preface.clone(), vec![0; 10_000]].concat(),
            preface,
        ];
        for bytes in garbage {
            let mut tcp = tokio::net::TcpStream::connect(host.transport.listen_addr()).await.unwrap();
            let _ = tcp.write_all(&bytes).await;
            if bytes.len() < 24 {
                // Closed by the other side, within its time for a greeting.
                while tcp.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
            }
        }
        lives(&mut host).await;
    });
}

#[test]
fn streams_and_connections_are_bounded_in_number() {
    run(async {
        let mut host = Host::start(TransportConfig { max_streams: 0, ..settings(1, "127.0.0.1:0") }).await;
        assert_eq!(stranger(&mut host, "Peer", vec![greeting()]).await, tonic::Code::ResourceExhausted);
        let host = Host::start(TransportConfig { max_connections: 0, ..settings(1, "127.0.0.1:0") }).await;
        let mut tcp = tokio::net::TcpStream::connect(host.transport.listen_addr()).await.unwrap();
        assert!(tcp.read(&mut [0; 10]).await.is_ok_and(|n| n == 0) || tcp.read(&mut [0; 10]).await.is_err());
    });
}

#[test]
fn a_node_listens_on_a_port_from_which_somebody_has_dialled() {
    run(async {
        for still_connected in [true, false] {
            let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = silent.local_addr().unwrap().to_string();
            let patience = Patience { connect: Duration::from_secs(5), keepalive: Duration::from_secs(5) };
            let dialling = tokio::spawn(async move { connect(&addr, patience, None).await.map(|_| ()) });
            let (accepted, dialler) = silent.accept().await.unwrap();
            if !still_connected {
                // It is the first to close, so its port is the one that waits.
                dialling.abort();
                assert!(dialling.await.unwrap_err().is_cancelled());
                let mut accepted = accepted;
                while accepted.read(&mut [0; 100]).await.is_ok_and(|n| n > 0) {}
                drop(accepted);
            }
            let host = Host::start(settings(1, &dialler.to_string())).await;
            assert_eq!(host.transport.listen_addr(), dialler);
        }
    });
}

#[test]
fn connections_take_half_of_the_descriptors_at_most() {
    for (descriptors, connections) in
        [(Some(1024), 512), (Some(256), 128), (Some(0), 16), (Some(20), 16), (Some(1 << 20), 1024), (None, 1024)]
    {
        assert_eq!(connections_for(descriptors), connections, "{descriptors:?}");
    }
}

#[test]
fn calls_of_which_only_the_headers_come_are_bounded_in_number() {
    run(async {
        // There is room for two that are empty.
        let config = TransportConfig { max_inflight_bytes: 1, max_call: 1024, ..settings(1, "127.0.0.1:0") };
        let mut host = Host::start(config).await;
        let addr = host.transport.local_addr();
        let patience = Patience { connect: Duration::from_secs(5), keepalive: Duration::from_secs(5) };
        let channel = connect(&addr, patience, None).await.unwrap();
        for _ in 0..2 {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            tokio::spawn(async move {
                grpc.ready().await.unwrap();
                let body = tokio_stream::pending::<Bytes>();
                let _ = grpc.client_streaming(tonic::Request::new(body), path("Call"), Envelope::default()).await;
            });
        }
        let refused = async {
            for _ in 0..20 {
                // Their headers come first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                let asked = ask(channel.clone(), &Request::Status, None, &Sent::default()).await;
                if asked.is_err_and(|error| error.code == ErrorCode::Overloaded) {
                    return true;
                }
            }
            false
        };
        let answering = host.until(|incoming| {
            if let Incoming::Call { answer, .. } = incoming {
                let _ = answer.send(Ok(Reply::Done));
            }
            None::<()>
        });
        let refused = tokio::select! {
            refused = refused => refused,
            () = answering => false,
        };
        assert!(refused);
    });
}

#[test]
fn a_listener_with_a_poisoned_header_does_not_end_the_dialling() {
    #[derive(Clone)]
    struct Poison;
    impl tower::Service<http::Request<tonic::body::Body>> for Poison {
        type Response = http::Response<tonic::body::Body>;
        type Error = std::convert::Infallible;
        type Future = std::future::Ready<Result<Self::Response, Self::Error>>;
        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
            std::task::Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: http::Request<tonic::body::Body>) -> Self::Future {
            let answer = http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "13")
                .header("grpc-status-details-bin", "!no base64!");
            std::future::ready(Ok(answer.body(tonic::body::Body::empty()).unwrap()))
        }
    }
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(async move {
            tonic::transport::Server::builder().serve_with_incoming(Poison, incoming).await.unwrap();
        });
        let mut host = Host::start(settings(1, "127.0.0.1:0")).await;
        host.dial(2, &addr);
        let mut failures = 0;
        host.until(|i| {
            failures += i32::from(matches!(i, Incoming::DialFailed { .. }));
            (failures == 6).then_some(())
        })
        .await;
    });
}

// ---- snapshots ----

pub fn header(index: u64, size: usize) -> SnapshotHeader {
    SnapshotHeader { index, term: 1, size: size as u64, has_file: true, ..Default::default() }
}

pub async fn sent(host: &mut Host) -> Result<(), String> {
    host.until(|i| if let Incoming::SnapshotSent { result, .. } = i { Some(result) } else { None }).await
}

#[test]
fn a_snapshot_that_broke_off_is_resumed_where_it_stopped() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        let data: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
        let source = Arc::new(data.clone());
        *b.files.fail_at.lock().unwrap() = Some(2_000_000);
        a.transport.send_snapshot(2, header(10, data.len()), vec![1, 2, 3], source.clone());
        let refused = beside(&mut b, sent(&mut a)).await.unwrap_err();
        assert!(refused.contains("no space"), "{refused}");
        a.transport.send_snapshot(2, header(10, data.len()), vec![1, 2, 3], source.clone());
        a.transport.send_snapshot(2, header(11, data.len()), vec![], source);
        assert!(sent(&mut a).await.unwrap_err().contains("another snapshot"));
        let received = b.until(|i| match i {
            Incoming::SnapshotReceived { from, header, raft_message } => Some((from, header.index, raft_message)),
            _ => None,
        });
        assert_eq!(beside(&mut a, received).await, (1, 10, vec![1, 2, 3]));
        let begun = b.files.begun_at.lock().unwrap().clone();
        assert!(begun[0] == 0 && begun[1] >= 2_000_000 - CHUNK as u64, "{begun:?}");
        assert_eq!(b.files.data.lock().unwrap()[&10], data);
    });
}

#[test]
fn s6_the_driver_hears_of_a_snapshot_only_once_its_file_is_finished() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        let source = Arc::new(vec![7; 1000]);
        *b.files.fail_finish.lock().unwrap() = true;
        for (failed, finished) in [(true, 0), (false, 1)] {
            a.transport.send_snapshot(2, header(10, 1000), vec![], source.clone());
            let heard = b.until(|incoming| match incoming {
                Incoming::SnapshotReceived { .. } => Some(None),
                Incoming::SnapshotIntakeFailed { from, index, error } => Some(Some((from, index, error.code))),
                _ => None,
            });
            assert_eq!(beside(&mut a, heard).await, failed.then_some((1, 10, ErrorCode::Storage)));
            assert_eq!(*b.files.finished.lock().unwrap(), finished);
            assert_eq!(beside(&mut b, sent(&mut a)).await.is_err(), failed, "and so does the sender");
        }
    });
}

#[test]
fn a_snapshot_that_the_driver_does_not_want_is_refused_before_its_bytes_are_sent() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        a.dial(2, &b.transport.local_addr());
        beside(&mut b, a.connected()).await;
        a.transport.send_snapshot(2, header(10, 1000), vec![], Arc::new(vec![7; 1000]));
        let refuse = async {
            loop {
                match b.heard.recv().await.unwrap() {
                    Incoming::Hello { answer, .. } => drop(answer.send(Welcome::default())),
                    Incoming::SnapshotHeader { from, header, answer } => {
                        assert_eq!((from, header.index), (1, 10));
                        answer.send(Err("as a test wants it".into())).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
        };
        let refused = tokio::select! {
            sent = sent(&mut a) => sent.unwrap_err(),
            () = refuse => unreachable!(),
        };
        assert!(refused.contains("as a test wants it"), "{refused}");
        assert!(b.files.begun_at.lock().unwrap().is_empty());
    });
}

#[test]
fn how_a_snapshot_ended_is_told_once_whether_cancelled_or_without_a_file() {
    run(async {
        let (mut a, mut b) = Host::pair().await;
        let source: Arc<Vec<u8>> = Arc::default();
        a.transport.send_snapshot(2, header(1, 0), vec![], source.clone());
        assert!(sent(&mut a).await.unwrap_err().contains("no such peer"));
        a.dial(2, &b.transport.local_addr());
        a.transport.send_snapshot(2, header(1, 100), vec![], source.clone());
        a.transport.cancel_snapshot(2);
        assert_eq!(sent(&mut a).await, Err("cancelled".into()));
        a.transport.send_snapshot(2, header(1, 100), vec![], source.clone());
        assert!(beside(&mut b, sent(&mut a)).await.unwrap_err().contains("its header says 100"));
        let bare = SnapshotHeader { has_file: false, ..header(1, 0) };
        a.transport.send_snapshot(2, bare, vec![4], source);
        assert_eq!(beside(&mut b, sent(&mut a)).await, Ok(()));
        assert_eq!(*b.files.finished.lock().unwrap(), 0);
    });
}

#[test]
fn hostile_snapshot_chunks_end_their_stream() {
    use crate::wire::{SnapshotChunk, SnapshotOpen, SnapshotUp, SnapshotUpBody};
    let up = |body| sealed(&SnapshotUp { body: Some(body) }.encode_to_vec());
    let hello = || {
        let kind = StreamKind::Snapshot.into();
        up(SnapshotUpBody::Hello(Hello { node_id: 7, kind, ..Default::default() }))
    };
    let open = |size| {
        let header = Some(header(5, size));
        up(SnapshotUpBody::Open(SnapshotOpen { header, raft_message: vec![] }))
    };
    let chunk = |offset, n| up(SnapshotUpBody::Chunk(SnapshotChunk { offset, data: vec![0; n] }));
    run(async {
        let mut host = Host::start(settings(1, "127.0.0.1:0")).await;
        for messages in [
            vec![hello(), hello()],
            vec![hello(), chunk(0, 10)],
            vec![hello(), open(100), open(100)],
            vec![hello(), open(100), chunk(1, 10)],
            vec![hello(), open(100), chunk(0, 0)],
            vec![hello(), open(100), chunk(0, 101)],
            vec![hello(), open(100), chunk(u64::MAX, 10)],
        ] {
            assert_eq!(stranger(&mut host, "Snapshot", messages).await, tonic::Code::InvalidArgument);
        }
        assert_eq!(*host.files.finished.lock().unwrap(), 0);
    });
}
