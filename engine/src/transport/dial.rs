//! Our side of the streams to peers: connect, greet, send, and again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{oneshot, watch, Notify};
use tokio::time::{timeout, Instant};
use tonic::client::Grpc;
use tonic::Streaming;

use super::connect::{chain, connect, Patience, Unreachable};
use super::envelope::{Envelope, Parts, OVERHEAD};
use super::limits;
use super::queue::{LaneBody, LaneQueue};
use super::service::Shared;
use super::tame::Tame;
use super::{path, Incoming, Lane, CONTROL_BYTES, SMALL};
use crate::cluster::NodeId;
use crate::locks::lock;
use crate::wire::{Hello, StreamKind, Verdict, Welcome, PROTOCOL_VERSION};

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Items in one lane's queue.
const MAX_QUEUED: usize = 1 << 20;
/// Most that a frame adds around its one item.
const FRAME_OVERHEAD: usize = 64;

/// The template, and the directory that the log records for each peer.
pub type Greeting = (Hello, BTreeMap<NodeId, Vec<u8>>);

/// What the tasks on the runtime's thread share.
pub struct Local {
    pub shared: Arc<Shared>,
    pub hello: Mutex<Option<Greeting>>,
    pub hello_set: Notify,
}

impl Local {
    pub fn hello(&self, to: NodeId, kind: StreamKind) -> Option<Hello> {
        let hello = lock(&self.hello);
        let (template, recorded) = hello.as_ref()?;
        let mut hello = template.clone();
        hello.version = PROTOCOL_VERSION;
        hello.node_id = self.shared.config.node_id;
        hello.to = to;
        hello.recorded = recorded.get(&to).cloned().unwrap_or_default();
        hello.kind = kind.into();
        Some(hello)
    }
}

/// The queue of the present stream of a lane, if there is one.
pub type Slot = Arc<Mutex<Option<Arc<LaneQueue>>>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub addr: String,
    /// Raised to have it dialled anew.
    pub dial: u64,
}

/// Between half of `span` and all of it.
pub fn jitter(span: Duration) -> Duration {
    let part = getrandom::u32().unwrap_or(0) % 1024;
    span / 2 + span / 2 * part / 1024
}

/// How long to wait before a peer is dialled again.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Backoff(BACKOFF_MIN)
    }

    /// A session has ended that lasted so long; `connected`: the peer had taken it. One that takes us and drops us at once is not dialled
    /// in a circle.
    fn ended(&mut self, connected: bool, lasted: Duration) {
        if connected && lasted > BACKOFF_MAX {
            self.0 = BACKOFF_MIN;
        }
    }

    /// All of it was waited for.
    fn waited(&mut self) {
        self.0 = self.0.saturating_mul(2).min(BACKOFF_MAX);
    }
}

/// Asks the driver whether to go on with a listener that answered so.
pub async fn agree(shared: &Shared, peer: NodeId, kind: StreamKind, welcome: Welcome) -> Result<(), String> {
    let refused = match Verdict::try_from(welcome.verdict) {
        Ok(Verdict::Accepted) => None,
        Ok(verdict) => Some(format!("refused: {verdict:?}: {}", welcome.reason)),
        Err(_) => Some(format!("refused (number {} of a newer version): {}", welcome.verdict, welcome.reason)),
    };
    let (answer, answered) = oneshot::channel();
    let _ = shared.incoming.send(Incoming::Welcomed { peer, kind, welcome, answer });
    match (answered.await, refused) {
        (_, Some(reason)) => Err(reason),
        (Ok(true), None) => Ok(()),
        _ => Err("this node does not want to send there".into()),
    }
}

/// Keeps one lane to one peer connected until `target` is dropped or the node stops.
pub async fn keep_dialling(
    local: Arc<Local>,
    peer: NodeId,
    lane: Lane,
    mut target: watch::Receiver<Target>,
    slot: Slot,
    poke: Arc<Notify>,
) {
    let shared = Arc::clone(&local.shared);
    let mut stop = shared.stop.clone();
    let mut backoff = Backoff::new();
    loop {
        let addr = target.borrow_and_update().addr.clone();
        let begun = Instant::now();
        let end = tokio::select! {
            why = session(&local, peer, lane, &addr, &slot) => Some(why),
            changed = target.changed() => changed.is_ok().then(|| "to be dialled anew".into()),
            () = poked_while_connecting(&slot, &poke) => {
                // A connect to a host that was cut off may hang in its own timers while the peer is back already.
                finish(&shared, peer, lane, &slot, "the peer is there: to be dialled anew".into());
                backoff = Backoff::new();
                continue;
            }
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let over = end.is_none();
        let connected = finish(&shared, peer, lane, &slot, end.unwrap_or_else(|| "closing".into()));
        if over {
            return;
        }
        backoff.ended(connected, begun.elapsed());
        tokio::select! {
            _ = tokio::time::sleep(jitter(backoff.0)) => backoff.waited(),
            // It dials us: it is there.
            _ = poke.notified() => backoff = Backoff::new(),
            changed = target.changed() => match changed {
                Ok(()) => backoff = Backoff::new(),
                Err(_) => return,
            },
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Ready when the peer has dialled us while we do not even have a connection.
async fn poked_while_connecting(slot: &Slot, poke: &Notify) {
    loop {
        poke.notified().await;
        if lock(slot).is_none() {
            return;
        }
    }
}

/// After a session: hands back what never left, then says that the lane is gone. True if it had been connected.
fn finish(shared: &Shared, peer: NodeId, lane: Lane, slot: &Slot, why: Unreachable) -> bool {
    let (items, connected) = lock(slot).take().map(|queue| queue.close()).unwrap_or_default();
    if !items.is_empty() {
        let _ = shared.incoming.send(Incoming::NotSent { to: peer, lane, items });
    }
    let _ = shared.incoming.send(match connected {
        true => Incoming::Disconnected { peer, lane, reason: why.reason },
        false => Incoming::DialFailed { peer, lane, why },
    });
    connected
}

/// One stream from connecting to its end; returns why it ended.
async fn session(local: &Local, peer: NodeId, lane: Lane, addr: &str, slot: &Slot) -> Unreachable {
    match greet_and_send(local, peer, lane, addr, slot).await {
        Ok(()) => "the peer ended the stream".into(),
        Err(why) => why,
    }
}

async fn greet_and_send(local: &Local, peer: NodeId, lane: Lane, addr: &str, slot: &Slot) -> Result<(), Unreachable> {
    let shared = &local.shared;
    let config = &shared.config;
    let hello = loop {
        let set = local.hello_set.notified();
        match local.hello(peer, lane.kind()) {
            Some(hello) => break hello,
            None => set.await,
        }
    };
    let channel = connect(addr, Patience::from(config), shared.dialling().await).await?;
    let max_bytes = match lane {
        Lane::Control => CONTROL_BYTES,
        Lane::Bulk => config.max_inflight_bytes,
    };
    let queue = LaneQueue::new(max_bytes, MAX_QUEUED, config.max_frame.saturating_sub(FRAME_OVERHEAD));
    // From here on the session's end closes the queue, and that ends the body, whoever holds it.
    *lock(slot) = Some(Arc::clone(&queue));
    let body = LaneBody::new(Bytes::from(hello.encode_to_vec()), Arc::clone(&queue));
    let mut answers = open(channel, "Peer", body, config.hello_timeout).await?;
    let welcome = next(&mut answers, config.hello_timeout.saturating_mul(2)).await?;
    let welcome = limits::decode::<Welcome>(&welcome).map_err(|e| chain(&e))?;
    agree(shared, peer, lane.kind(), welcome).await?;
    queue.open();
    let _ = shared.incoming.send(Incoming::Connected { peer, lane });
    loop {
        match answers.message().await {
            // Nothing else is said on this side; a newer version may.
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(status) => return Err(chain(&status).into()),
        }
    }
}

/// Opens a stream in both directions.
pub async fn open<S, T>(
    channel: Tame,
    method: &'static str,
    body: S,
    patience: Duration,
) -> Result<Streaming<Bytes>, String>
where
    S: tokio_stream::Stream<Item = T> + Send + 'static,
    T: Into<Parts> + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel).max_decoding_message_size(SMALL.saturating_add(OVERHEAD));
    let opened = async {
        grpc.ready().await.map_err(|e| chain(&e))?;
        grpc.streaming(tonic::Request::new(body), path(method), Envelope::default()).await.map_err(|e| chain(&e))
    };
    match timeout(patience, opened).await {
        Ok(opened) => Ok(opened?.into_inner()),
        Err(_) => Err(format!("no answer to the stream within {patience:?}")),
    }
}

/// The next message of a stream that owes us one.
pub async fn next(stream: &mut Streaming<Bytes>, patience: Duration) -> Result<Bytes, String> {
    match timeout(patience, stream.message()).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err("the peer ended the stream".into()),
        Ok(Err(status)) => Err(chain(&status)),
        Err(_) => Err(format!("nothing heard within {patience:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_cannot_be_reached_is_dialled_less_and_less_often_and_at_least_once_a_second() {
        let mut backoff = Backoff::new();
        let mut waits = Vec::new();
        for _ in 0..7 {
            backoff.ended(false, Duration::from_secs(60));
            waits.push(backoff.0.as_millis());
            backoff.waited();
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
        for wait in [BACKOFF_MIN, BACKOFF_MAX] {
            assert!((wait / 2..=wait).contains(&jitter(wait)));
        }
    }

    #[test]
    fn only_a_stream_that_has_lasted_makes_dialling_begin_anew() {
        for (connected, lasted, waits) in [
            (true, BACKOFF_MAX, 100), // it takes us, and drops us at once
            (true, BACKOFF_MAX + Duration::from_millis(1), 50),
            (false, BACKOFF_MAX * 60, 100), // nobody answered for long
        ] {
            let mut backoff = Backoff::new();
            backoff.waited();
            backoff.ended(connected, lasted);
            assert_eq!(backoff.0.as_millis(), waits, "{connected} {lasted:?}");
        }
    }
}
