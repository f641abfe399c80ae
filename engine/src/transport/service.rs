//! The listening side of the three methods, by hand: no generated code.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, oneshot, watch, Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Response, Status, Streaming};
use tower::Service;

use super::call::{decode_call, encode_answer};
use super::envelope::{Envelope, OVERHEAD};
use super::gate::{overloaded, Gate, PER_CALL};
use super::limits;
use super::room::Standing;
use super::snapshot::{self, SnapshotIntake};
use super::tls::{Dialling, News};
use super::turned_away::TurnedAway;
use super::{path, refuse, Incoming, Lane, Permit, TransportConfig, CONTROL_BYTES, SERVICE, SMALL};
use crate::cluster::NodeId;
use crate::error::{Error, ErrorCode, Result};
use crate::locks::lock;
use crate::request::Reply;
use crate::wire::{Hello, StreamKind, Verdict};

/// Time in which the whole of a call must have arrived.
const CALL_ARRIVES: Duration = Duration::from_secs(30);
/// Charged for each frame and each of its items beside their bytes.
const PER_FRAME: usize = 256;
const PER_ITEM: usize = 64;

type Key = (NodeId, StreamKind);

/// What the listening side needs everywhere. Shared with tonic's tasks, hence `Send`.
pub struct Shared {
    pub config: TransportConfig,
    pub incoming: mpsc::UnboundedSender<Incoming>,
    pub intake: Arc<dyn SnapshotIntake>,
    pub stop: watch::Receiver<bool>,
    streams: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    /// The accepted stream of each peer and kind; dropping the sender ends that stream.
    accepted: Mutex<HashMap<Key, (u64, oneshot::Sender<()>)>>,
    numbers: AtomicU64,
    pub turned_away: TurnedAway,
    pokes: Mutex<HashMap<NodeId, Arc<Notify>>>,
    /// One intake at a time from each sender.
    intakes: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<()>>>>,
}

/// A semaphore counts bytes with `u32`.
fn bytes_budget(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(bytes.clamp(1, u32::MAX as usize).min(Semaphore::MAX_PERMITS)))
}

impl Shared {
    pub fn new(
        config: TransportConfig,
        incoming: mpsc::UnboundedSender<Incoming>,
        intake: Arc<dyn SnapshotIntake>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Shared {
            streams: Arc::new(Semaphore::new(config.max_streams.min(Semaphore::MAX_PERMITS))),
            calls: bytes_budget(config.max_inflight_bytes.max(config.max_call.saturating_mul(2))),
            accepted: Mutex::default(),
            numbers: AtomicU64::new(0),
            turned_away: TurnedAway::default(),
            pokes: Mutex::default(),
            intakes: Mutex::default(),
            config,
            incoming,
            intake,
            stop,
        }
    }

    pub fn say(&self, level: slog::Level, message: String) {
        let _ = self.incoming.send(Incoming::Said { level, message });
    }

    fn tell(&self, news: Option<News>) {
        match news {
            Some(Ok(message)) => self.say(slog::Level::Info, message),
            Some(Err(message)) => self.say(slog::Level::Error, message),
            None => {}
        }
    }

    /// How to dial, when certificates are in use.
    pub async fn dialling(&self) -> Option<Dialling> {
        let (dialling, news) = self.config.tls.as_ref()?.dialling().await;
        self.tell(news);
        Some(dialling)
    }

    /// How to take a connection, when certificates are in use.
    pub async fn taking(&self) -> Option<Arc<ServerConfig>> {
        let (config, news) = self.config.tls.as_ref()?.taking().await;
        self.tell(news);
        Some(config)
    }

    /// Ends the streams that this peer has opened to us.
    pub fn hang_up(&self, peer: NodeId) {
        lock(&self.accepted).retain(|(id, _), _| *id != peer);
    }

    pub fn poke(&self, peer: NodeId) -> Arc<Notify> {
        Arc::clone(lock(&self.pokes).entry(peer).or_default())
    }

    pub fn forget_poke(&self, peer: NodeId) {
        lock(&self.pokes).remove(&peer);
        lock(&self.intakes).remove(&peer);
    }

    pub fn intake_lock(&self, peer: NodeId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.intakes).entry(peer).or_default())
    }
}

/// An accepted stream's entry; a newer one of the same peer and kind ends the older.
pub struct Registration {
    shared: Arc<Shared>,
    key: Key,
    number: u64,
    /// Ready when this stream has to end.
    pub replaced: oneshot::Receiver<()>,
}

impl Registration {
    fn new(shared: &Arc<Shared>, key: Key) -> Self {
        let (held, replaced) = oneshot::channel();
        let number = shared.numbers.fetch_add(1, Ordering::Relaxed);
        lock(&shared.accepted).insert(key, (number, held));
        Registration { shared: Arc::clone(shared), key, number, replaced }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut accepted = lock(&self.shared.accepted);
        if accepted.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            accepted.remove(&self.key);
        }
    }
}

type HttpAnswer = http::Response<Body>;

#[derive(Clone)]
pub struct RaftService {
    shared: Arc<Shared>,
}

impl RaftService {
    pub fn new(shared: Arc<Shared>) -> Self {
        RaftService { shared }
    }
}

impl NamedService for RaftService {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for RaftService {
    type Response = HttpAnswer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<HttpAnswer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            Ok(match request.uri().path() {
                method if method == path("Peer").path() => stream(shared, request, Method::Peer).await,
                method if method == path("Snapshot").path() => stream(shared, request, Method::Snapshot).await,
                method if method == path("Call").path() => call(shared, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Peer,
    Snapshot,
}

async fn stream(shared: Arc<Shared>, request: http::Request<Body>, method: Method) -> HttpAnswer {
    let Ok(slot) = Arc::clone(&shared.streams).try_acquire_owned() else {
        return Status::resource_exhausted("this node has as many streams as it takes").into_http();
    };
    let open = Arc::new(AtomicBool::new(false));
    let standing = request.extensions().get::<Standing>().cloned().unwrap_or_default();
    let limit = match method {
        Method::Peer => shared.config.max_frame,
        Method::Snapshot => SMALL,
    };
    let request = request.map(|body| Gate::greeting(body, Arc::clone(&open)));
    let service = StreamService { shared, method, held: Some((open, standing, slot)) };
    Grpc::new(Envelope::default())
        .max_decoding_message_size(limit.saturating_add(OVERHEAD))
        .streaming(service, request)
        .await
}

struct StreamService {
    shared: Arc<Shared>,
    method: Method,
    held: Option<(Arc<AtomicBool>, Standing, OwnedSemaphorePermit)>,
}

impl Service<tonic::Request<Streaming<Bytes>>> for StreamService {
    type Response = Response<ReceiverStream<Result<Bytes, Status>>>;
    type Error = Status;
    type Future = std::future::Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let (answers, body) = mpsc::channel(4);
        if let Some((open, standing, slot)) = self.held.take() {
            let accepted =
                Inbound { shared: Arc::clone(&self.shared), stream: request.into_inner(), answers, open, standing };
            let method = self.method;
            tokio::spawn(async move {
                accepted.run(method).await;
                drop(slot);
            });
        }
        std::future::ready(Ok(Response::new(ReceiverStream::new(body))))
    }
}

/// A stream that somebody has opened to us.
pub struct Inbound {
    pub shared: Arc<Shared>,
    pub stream: Streaming<Bytes>,
    pub answers: mpsc::Sender<Result<Bytes, Status>>,
    open: Arc<AtomicBool>,
    standing: Standing,
}

impl Inbound {
    async fn run(mut self, method: Method) {
        let mut stop = self.shared.stop.clone();
        let end = tokio::select! {
            end = self.serve(method) => end,
            _ = stop.wait_for(|stop| *stop) => Err(Status::unavailable("the node is closing")),
        };
        if let Err(status) = end {
            let _ = self.answers.try_send(Err(status));
        }
    }

    async fn serve(&mut self, method: Method) -> Result<(), Status> {
        let hello = match timeout(self.shared.config.hello_timeout, self.stream.message()).await {
            Ok(Ok(Some(hello))) => hello,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(status)) => return Err(status),
            Err(_) => return Err(Status::deadline_exceeded("no greeting in time")),
        };
        let hello = match method {
            Method::Peer => limits::decode::<Hello>(&hello)?,
            Method::Snapshot => snapshot::hello(&hello)?,
        };
        let kind = StreamKind::try_from(hello.kind).map_err(|_| Status::invalid_argument("unknown kind of stream"))?;
        if hello.node_id == 0 || (kind == StreamKind::Snapshot) != (method == Method::Snapshot) {
            return Err(Status::invalid_argument("the greeting makes no sense here"));
        }
        let peer = hello.node_id;
        let (answer, answered) = oneshot::channel();
        let closing = || Status::unavailable("the node is closing");
        self.shared.incoming.send(Incoming::Hello { hello, kind, answer }).map_err(|_| closing())?;
        let welcome = tokio::select! {
            welcome = answered => welcome.map_err(|_| Status::unavailable("the node does not answer greetings now"))?,
            () = self.answers.closed() => return Ok(()),
        };
        let accepted = welcome.verdict == i32::from(Verdict::Accepted);
        let registration = accepted.then(|| Registration::new(&self.shared, (peer, kind)));
        self.say(match method {
            Method::Peer => welcome.encode_to_vec(),
            Method::Snapshot => snapshot::welcome(welcome),
        })?;
        let Some(registration) = registration else { return Ok(()) };
        self.open.store(true, Ordering::Relaxed);
        self.standing.keep();
        // Only for peers that are dialled anyway: the map grows by nobody's greeting.
        if let Some(poke) = lock(&self.shared.pokes).get(&peer) {
            poke.notify_waiters();
        }
        match kind {
            StreamKind::Control => self.frames(peer, Lane::Control, registration).await,
            StreamKind::Bulk => self.frames(peer, Lane::Bulk, registration).await,
            StreamKind::Snapshot => snapshot::receive(self, peer, registration).await,
        }
    }

    /// Never waits: few messages are sent this way, and one that does not read them is cut off.
    pub fn say(&self, message: Vec<u8>) -> Result<(), Status> {
        self.answers.try_send(Ok(message.into())).map_err(|_| Status::aborted("the answers are not read"))
    }

    async fn frames(&mut self, from: NodeId, lane: Lane, mut registration: Registration) -> Result<(), Status> {
        let capacity = match lane {
            Lane::Control => CONTROL_BYTES,
            Lane::Bulk => self.shared.config.max_inflight_bytes,
        }
        .clamp(1, u32::MAX as usize);
        let budget = bytes_budget(capacity);
        loop {
            // Replaced comes first: once the newer stream's frames may come, none of this one does.
            let message = tokio::select! {
                biased;
                _ = &mut registration.replaced => return Err(Status::aborted("a newer stream took its place")),
                message = self.stream.message() => message?,
                () = self.answers.closed() => return Ok(()),
            };
            let Some(message) = message else { return Ok(()) };
            let items = limits::decode_frame(&message)?;
            let bytes = message.len();
            let cost = bytes.saturating_add(PER_FRAME).saturating_add(items.len().saturating_mul(PER_ITEM));
            drop(message);
            // A frame above the whole budget passes alone.
            let cost = u32::try_from(cost.min(capacity)).unwrap_or(u32::MAX);
            let permit = tokio::select! {
                biased;
                _ = &mut registration.replaced => return Err(Status::aborted("a newer stream took its place")),
                permit = Arc::clone(&budget).acquire_many_owned(cost) => permit,
            };
            let permit = Permit(permit.map_err(|_| Status::unavailable("closing"))?);
            let frame = Incoming::Frame { from, lane, items, bytes, permit };
            self.shared.incoming.send(frame).map_err(|_| Status::unavailable("the node is closing"))?;
        }
    }
}

async fn call(shared: Arc<Shared>, request: http::Request<Body>) -> HttpAnswer {
    if let Some((from, why)) = request.extensions().get::<Standing>().and_then(Standing::refusal) {
        shared.turned_away.tell(&shared, from, why.clone());
        return refuse(ErrorCode::ConnectionFailed, &why).into_http();
    }
    let Ok(place) = Arc::clone(&shared.calls).try_acquire_many_owned(PER_CALL) else {
        return overloaded().into_http();
    };
    let slot = Arc::new(OnceLock::new());
    let limit = shared.config.max_call;
    let budget = Arc::clone(&shared.calls);
    let request =
        request.map(|body| Gate::call(body, limit.saturating_add(OVERHEAD), budget, Arc::clone(&slot), CALL_ARRIVES));
    // The budget's shares are held until the answer is there.
    let service = CallService { shared, _place: place, _slot: slot };
    Grpc::new(Envelope::default())
        .max_decoding_message_size(limit.saturating_add(OVERHEAD))
        .unary(service, request)
        .await
}

struct CallService {
    shared: Arc<Shared>,
    _place: OwnedSemaphorePermit,
    _slot: Arc<OnceLock<OwnedSemaphorePermit>>,
}

impl Service<tonic::Request<Bytes>> for CallService {
    type Response = Response<Bytes>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let answer = answer(&shared, request.into_inner()).await;
            Ok(Response::new(encode_answer(&answer).into()))
        })
    }
}

async fn answer(shared: &Shared, message: Bytes) -> Result<Reply> {
    let (request, timeout) = decode_call(&message)?;
    drop(message);
    let (answer, answered) = oneshot::channel();
    shared
        .incoming
        .send(Incoming::Call { request, timeout, answer })
        .map_err(|_| Error::not_done(ErrorCode::Closed, "the node is closed"))?;
    let mut stop = shared.stop.clone();
    let unknown = || Error::unknown(ErrorCode::Closed, "the node closed while it worked on the request");
    tokio::select! {
        biased;
        answer = answered => answer.map_err(|_| unknown())?,
        _ = stop.wait_for(|stop| *stop) => Err(unknown()),
    }
}
