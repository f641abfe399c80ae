//! The asking half of the method `Call`, and what its failures mean for the command (S15).

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio_stream::Stream;
use tonic::client::Grpc;
use tonic::Status;

use super::call::{decode_answer, encode_call, MAX_REPLY};
use super::envelope::{Envelope, OVERHEAD};
use super::tame::Tame;
use super::{path, REFUSED};
use crate::error::{Error, ErrorCode, Result};
use crate::request::{Reply, Request};

/// True once the request's bytes were handed to the connection: from then on nobody can say whether they arrived.
#[derive(Clone, Default)]
pub struct Sent(Arc<AtomicBool>);

impl Sent {
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One message, which marks its own leaving.
struct Once {
    message: Option<Bytes>,
    sent: Sent,
}

impl Stream for Once {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let message = self.message.take();
        if message.is_some() {
            self.sent.0.store(true, Ordering::Relaxed);
        }
        Poll::Ready(message)
    }
}

/// A request that changes nothing: whatever happens to it, nothing was done.
pub fn changes_nothing(request: &Request) -> bool {
    matches!(request, Request::Read | Request::Status)
}

/// Asks once, without a deadline of its own: `timeout` is what the node is told.
pub async fn ask(channel: Tame, request: &Request, timeout: Option<Duration>, sent: &Sent) -> Result<Reply> {
    let message = Some(Bytes::from(encode_call(request, timeout)));
    let failed = |status: Status| failure(&status, sent.get() && !changes_nothing(request));
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_REPLY.saturating_add(OVERHEAD));
    grpc.ready().await.map_err(|e| failed(Status::unavailable(super::connect::chain(&e))))?;
    let body = Once { message, sent: sent.clone() };
    let answer =
        grpc.client_streaming(tonic::Request::new(body), path("Call"), Envelope::default()).await.map_err(failed)?;
    decode_answer(answer.get_ref()).map_err(|mut error| {
        if changes_nothing(request) {
            error.committed = crate::error::Committed::No;
        }
        error
    })?
}

/// `doubt`: it may have been carried out.
fn failure(status: &Status, doubt: bool) -> Error {
    // Only our own service writes this, and only where it has not passed the request on.
    let refused = status.metadata().get(REFUSED).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<i32>().ok());
    if let Some(code) = refused.and_then(ErrorCode::from_i32) {
        return Error::not_done(code, status.message());
    }
    if status.code() == tonic::Code::Unimplemented {
        return Error::not_done(
            ErrorCode::ConnectionFailed,
            "what listens there is not a node of this library, or of an older version; check the address",
        );
    }
    // Not the status' own Display, which is Rust's debug output of everything in it.
    let mut text = format!("the connection failed: {}", status.message());
    if let Some(cause) = std::error::Error::source(status) {
        text = format!("{text}: {}", super::connect::chain(cause));
    }
    if doubt {
        Error::unknown(ErrorCode::ConnectionFailed, text)
    } else {
        Error::not_done(ErrorCode::ConnectionFailed, text)
    }
}
