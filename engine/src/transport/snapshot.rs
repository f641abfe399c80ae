//! A snapshot's way from file to file: header, offset to resume from, chunks, and the receiver's last word.
//!
//! Memory: a few chunks on each side. Disks are touched on blocking threads only. Every chunk travels in a checksummed message; the
//! whole is checked by the receiving file's `finish`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{timeout, Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::connect::{self, Patience};
use super::dial::{self, Local};
use super::limits;
use super::service::{Inbound, Registration};
use super::Incoming;
use crate::cluster::NodeId;
use crate::error::{Error, ErrorCode, Result};
use crate::wire::{
    Hello, SnapshotChunk, SnapshotDown, SnapshotDownBody, SnapshotHeader, SnapshotOpen, SnapshotUp, SnapshotUpBody,
    StreamKind, Welcome,
};

/// Bytes in one chunk.
pub const CHUNK: usize = 256 << 10;
/// The receiver says this often that it is still at it, while its disk works.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Where received snapshots go. Called on blocking threads.
pub trait SnapshotIntake: Send + Sync + 'static {
    /// Opens the file for this snapshot and says how many of its bytes are already there from an earlier attempt; 0 if none,
    /// at most `header.size`. Never called again for the same sender before the file given out has been dropped;
    /// for another one it may be, and what was given out before may fail from then on.
    fn begin(&self, from: NodeId, header: &SnapshotHeader) -> Result<(Box<dyn IntakeFile>, u64)>;
}

/// A snapshot being received. Dropped unfinished, it may keep what it has for the next attempt.
pub trait IntakeFile: Send + 'static {
    /// Chunks come in order, without gaps, from the offset named at the beginning.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    /// All bytes are there: check them against the header and make them durable (S6).
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Where a snapshot is read from to be sent. Called on blocking threads.
pub trait SnapshotSource: Send + Sync + 'static {
    /// Fills `buf` from `offset` on as far as the file goes; 0 at its end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize>;
}

fn up(body: SnapshotUpBody) -> Bytes {
    SnapshotUp { body: Some(body) }.encode_to_vec().into()
}

fn down(body: SnapshotDownBody) -> Vec<u8> {
    SnapshotDown { body: Some(body) }.encode_to_vec()
}

/// The first message of an incoming stream.
pub fn hello(message: &[u8]) -> Result<Hello, Status> {
    match limits::decode::<SnapshotUp>(message)?.body {
        Some(SnapshotUpBody::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("no greeting")),
    }
}

pub fn welcome(welcome: Welcome) -> Vec<u8> {
    down(SnapshotDownBody::Welcome(welcome))
}

/// Runs on a blocking thread; a panic there is that snapshot's failure.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::not_done(ErrorCode::Internal, "the snapshot file's thread broke down")))
}

// ---- sending ----

async fn answer(answers: &mut Streaming<Bytes>, patience: Duration) -> Result<SnapshotDownBody, String> {
    let message = dial::next(answers, patience).await?;
    let message = limits::decode::<SnapshotDown>(&message).map_err(|e| connect::chain(&e))?;
    message.body.ok_or_else(|| "the peer's answer is not known here; it may be of a newer version".into())
}

/// Sends one snapshot; returns when the receiver has it whole and durable.
pub async fn send(
    local: &Local,
    to: NodeId,
    addr: &str,
    header: SnapshotHeader,
    raft_message: Vec<u8>,
    source: Arc<dyn SnapshotSource>,
) -> Result<(), String> {
    let config = &local.shared.config;
    let stall = config.snapshot_stall;
    let size = if header.has_file { header.size } else { 0 };
    let hello = local.hello(to, StreamKind::Snapshot).ok_or("not ready to greet")?;
    let channel = connect::connect(addr, Patience::from(config), local.shared.dialling().await)
        .await
        .map_err(|why| why.reason)?;
    let (chunks, body) = mpsc::channel(2);
    let push = |message: Bytes| async {
        match timeout(stall, chunks.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("the connection ended".to_owned()),
            Err(_) => Err(format!("the peer took no byte for {stall:?}")),
        }
    };
    push(up(SnapshotUpBody::Hello(hello))).await?;
    let mut answers = dial::open(channel, "Snapshot", ReceiverStream::new(body), config.hello_timeout).await?;
    match answer(&mut answers, config.hello_timeout.saturating_mul(2)).await? {
        SnapshotDownBody::Welcome(welcome) => dial::agree(&local.shared, to, StreamKind::Snapshot, welcome).await?,
        _ => return Err("the peer did not greet".into()),
    }
    push(up(SnapshotUpBody::Open(SnapshotOpen { header: Some(header), raft_message }))).await?;
    let mut offset = loop {
        match answer(&mut answers, stall).await? {
            SnapshotDownBody::Resume(offset) if offset <= size => break offset,
            SnapshotDownBody::Working(_) => {}
            other => return Err(unexpected(other)),
        }
    };
    while offset < size {
        let want = usize::try_from(size.saturating_sub(offset)).unwrap_or(CHUNK).min(CHUNK);
        let from = Arc::clone(&source);
        // Encoded there as well: what is copied here keeps the network waiting.
        let (read, chunk) = blocking(move || {
            let mut data = vec![0; want];
            let read = from.read_at(offset, &mut data).map_err(|e| {
                Error::not_done(ErrorCode::Storage, format!("cannot read the snapshot at {offset}: {e}"))
            })?;
            data.truncate(read);
            Ok((read, up(SnapshotUpBody::Chunk(SnapshotChunk { offset, data }))))
        })
        .await
        .map_err(|e| e.to_string())?;
        if read == 0 {
            return Err(format!("the snapshot file ends at {offset}, its header says {size}"));
        }
        let length = u64::try_from(read).unwrap_or(u64::MAX);
        // A slow disk over there says so; only silence is a stall.
        let mut pushing = std::pin::pin!(chunks.send(chunk));
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                pushed = &mut pushing => match pushed {
                    Ok(()) => break,
                    // Its last words say why.
                    Err(_) => return Err(match answer(&mut answers, config.hello_timeout).await {
                        Ok(said) => unexpected(said),
                        Err(reason) => reason,
                    }),
                },
                said = answer(&mut answers, stall) => match said? {
                    SnapshotDownBody::Working(_) => heard = Instant::now(),
                    other => return Err(unexpected(other)),
                },
                () = tokio::time::sleep_until(heard + stall) => return Err(format!("the peer took no byte for {stall:?}")),
            }
        }
        offset = offset.saturating_add(length);
    }
    loop {
        match answer(&mut answers, stall).await? {
            SnapshotDownBody::Done(true) => return Ok(()),
            SnapshotDownBody::Working(_) => {}
            other => return Err(unexpected(other)),
        }
    }
}

fn unexpected(said: SnapshotDownBody) -> String {
    match said {
        SnapshotDownBody::Refused(reason) => format!("the peer refused it: {reason}"),
        _ => "the peer's answer makes no sense here".into(),
    }
}

// ---- receiving ----

/// What comes after the greeting.
pub async fn receive(stream: &mut Inbound, from: NodeId, mut registration: Registration) -> Result<(), Status> {
    // The stream before this one (it has been told to end) may still have a write under way.
    let turn = stream.shared.intake_lock(from);
    let _turn = turn.lock_owned().await;
    let stall = stream.shared.config.snapshot_stall;
    let SnapshotUpBody::Open(SnapshotOpen { header: Some(header), raft_message }) =
        next(stream, &mut registration, stall).await?
    else {
        return Err(Status::invalid_argument("no header"));
    };
    if let Err(reason) = asked(stream, from, &header).await? {
        return stream.say(down(SnapshotDownBody::Refused(reason)));
    }
    let size = if header.has_file { header.size } else { 0 };
    let mut at = 0;
    let taken = take(stream, from, &header, size, &mut at, &mut registration).await;
    match taken {
        Ok(()) => {
            let received = Incoming::SnapshotReceived { from, header, raft_message };
            stream.shared.incoming.send(received).map_err(|_| Status::unavailable("the node is closing"))?;
            stream.say(down(SnapshotDownBody::Done(true)))
        }
        Err(Broken::Stream(status)) => Err(status),
        Err(Broken::Disk(error)) => {
            let told = stream.say(down(SnapshotDownBody::Refused(error.to_string())));
            let failed = Incoming::SnapshotIntakeFailed { from, index: header.index, error };
            let _ = stream.shared.incoming.send(failed);
            told
        }
    }
}

enum Broken {
    Stream(Status),
    Disk(Error),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Broken::Stream(status)
    }
}

/// The driver's word on a header.
async fn asked(stream: &Inbound, from: NodeId, header: &SnapshotHeader) -> Result<Result<(), String>, Status> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let closing = |_| Status::unavailable("the node is closing");
    let ask = Incoming::SnapshotHeader { from, header: header.clone(), answer };
    stream.shared.incoming.send(ask).map_err(|_| Status::unavailable("the node is closing"))?;
    answered.await.map_err(closing)
}

async fn take(
    stream: &mut Inbound,
    from: NodeId,
    header: &SnapshotHeader,
    size: u64,
    at: &mut u64,
    registration: &mut Registration,
) -> Result<(), Broken> {
    let stall = stream.shared.config.snapshot_stall;
    if !header.has_file {
        return Ok(stream.say(down(SnapshotDownBody::Resume(0)))?);
    }
    let (intake, wanted) = (Arc::clone(&stream.shared.intake), header.clone());
    let (mut file, offset) = at_work(stream, 0, move || intake.begin(from, &wanted)).await?;
    if offset > size {
        return Err(Broken::Disk(Error::not_done(
            ErrorCode::Internal,
            format!("{offset} bytes of a snapshot of {size} are there already"),
        )));
    }
    *at = offset;
    stream.say(down(SnapshotDownBody::Resume(offset)))?;
    while *at < size {
        let SnapshotUpBody::Chunk(SnapshotChunk { offset, data }) = next(stream, registration, stall).await? else {
            return Err(Status::invalid_argument("no chunk").into());
        };
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let end = offset.checked_add(length).filter(|end| *end <= size && *end > offset);
        let (Some(end), true) = (end, offset == *at) else {
            return Err(Status::invalid_argument("a chunk is empty, out of order or beyond the end").into());
        };
        file = at_work(stream, *at, move || file.write_at(offset, &data).map(|()| file)).await?;
        *at = end;
    }
    at_work(stream, *at, move || file.finish()).await
}

/// Disk work, with a word to the sender now and then. Always waited for: the file is not touched by two.
async fn at_work<T: Send + 'static>(
    stream: &Inbound,
    at: u64,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, Broken> {
    let mut work = std::pin::pin!(blocking(work));
    loop {
        tokio::select! {
            done = &mut work => return done.map_err(Broken::Disk),
            () = tokio::time::sleep(SIGN_OF_LIFE.min(stream.shared.config.snapshot_stall / 3)) => {
                // Whether it is read shows at the next message.
                let _ = stream.say(down(SnapshotDownBody::Working(at)));
            }
        }
    }
}

async fn next(
    stream: &mut Inbound,
    registration: &mut Registration,
    stall: Duration,
) -> Result<SnapshotUpBody, Status> {
    let message = tokio::select! {
        message = timeout(stall, stream.stream.message()) => message,
        _ = &mut registration.replaced => return Err(Status::aborted("a newer stream took its place")),
    };
    match message {
        Ok(Ok(Some(message))) => {
            limits::decode::<SnapshotUp>(&message)?.body.ok_or_else(|| Status::invalid_argument("unknown message"))
        }
        Ok(Ok(None)) => Err(Status::aborted("the sender ended the stream")),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("the sender said nothing for too long")),
    }
}
