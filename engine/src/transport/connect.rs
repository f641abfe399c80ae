//! A connection to somebody else: made, and known to be one of ours, or the reason why not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;
use tower::Service as _;

use super::socket::Socket;
use super::tame::Tame;
use super::tcp::Tcp;
use super::tls::Dialling;
use super::tls_reason::{handshake, Side};
use super::TransportConfig;
use crate::error::ErrorCode;
use crate::locks::lock;

/// Timings of a connection that we open.
#[derive(Clone, Copy)]
pub struct Patience {
    pub connect: Duration,
    pub keepalive: Duration,
}

impl From<&TransportConfig> for Patience {
    fn from(config: &TransportConfig) -> Self {
        Patience { connect: config.connect_timeout, keepalive: config.keepalive }
    }
}

/// An error with its causes, which tonic leaves out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Why somebody cannot be dialled, or is not who was meant: `Tls` or `ConnectionFailed`. Nothing was asked of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unreachable {
    pub code: ErrorCode,
    pub reason: String,
}

impl From<String> for Unreachable {
    fn from(reason: String) -> Self {
        Unreachable { code: ErrorCode::ConnectionFailed, reason }
    }
}

impl From<&str> for Unreachable {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl Unreachable {
    fn at(addr: &str, error: &std::io::Error) -> Self {
        match handshake(error, Side::Dialled) {
            Some(reason) => Unreachable { code: ErrorCode::Tls, reason: format!("{addr}: {reason}") },
            None => format!("{addr}: {}", chain(error)).into(),
        }
    }

    /// Ours, from within one of tonic's.
    fn within(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<Unreachable>() {
                return Some(found.clone());
            }
            cause = error.source();
        }
        None
    }
}

async fn open_socket(
    mut tcp: HttpConnector,
    uri: Uri,
    addr: &str,
    tls: Option<&Dialling>,
) -> Result<Socket, Unreachable> {
    let connected = tcp.call(uri).await.map_err(|e| Unreachable::from(format!("{addr}: {}", chain(&e))))?;
    let tcp = Tcp::new(connected.into_inner());
    let Some(tls) = tls else { return Ok(Socket::plain(tcp)) };
    let shaken = TlsConnector::from(Arc::clone(&tls.config)).connect(tls.name(addr)?, tcp).await;
    shaken.map(Socket::secured).map_err(|e| Unreachable::at(addr, &e))
}

/// The one place where connections are opened. Host names are resolved each time. On return the other side has spoken: it is one of
/// ours, and each has taken the other's certificate, where there are any.
pub async fn connect(addr: &str, patience: Patience, tls: Option<Dialling>) -> Result<Tame, Unreachable> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|e| Unreachable::from(format!("{addr}: {}", chain(&e))))?
        .connect_timeout(patience.connect)
        .http2_keep_alive_interval(patience.keepalive)
        .keep_alive_timeout(patience.keepalive)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .http2_max_header_list_size(16 << 10);
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    // The system takes a port for this end of it, maybe one that a node is about to listen on: that must not be kept from it, nor for the
    // minute after.
    tcp.set_reuse_address(true);
    tcp.set_connect_timeout(Some(patience.connect));
    let to = addr.to_owned();
    let hears = Arc::new(Mutex::new(None));
    let heard = Arc::clone(&hears);
    let once = Arc::new(AtomicBool::new(true));
    let connector = tower::service_fn(move |uri| {
        let (tcp, to, tls, hears, once) = (tcp.clone(), to.clone(), tls.clone(), Arc::clone(&hears), Arc::clone(&once));
        async move {
            // The channel would connect again by itself: with the certificates of then, and without waiting for the first word, so that
            // a request that was certainly not taken would be of unknown outcome. Whoever asks makes a connection anew instead.
            if !once.swap(false, Ordering::Relaxed) {
                return Err(Unreachable::from(format!("{to}: the connection is gone")));
            }
            let socket = open_socket(tcp, uri, &to, tls.as_ref()).await?;
            let (first_word, heard) = oneshot::channel();
            *lock(&hears) = Some(heard);
            Ok::<_, Unreachable>(TokioIo::new(socket.telling(first_word)))
        }
    });
    let connected = async {
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|e| Unreachable::within(&e).unwrap_or_else(|| format!("{addr}: {}", chain(&e)).into()))?;
        let heard = lock(&heard).take();
        if let Some(heard) = heard {
            if let Ok(Err(e)) = heard.await {
                return Err(Unreachable::at(addr, &e));
            }
        }
        Ok(Tame(channel))
    };
    match timeout(patience.connect, connected).await {
        Ok(connected) => connected,
        Err(_) => Err(format!("{addr}: no connection within {:?}", patience.connect).into()),
    }
}
