//! The listening socket and the connections it accepts.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{timeout, Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Server;

use super::room::{full, Place, Room, Standing};
use super::service::{RaftService, Shared};
use super::socket::Socket;
use super::tcp::Tcp;
use super::tls_reason::{handshake, Side};
use super::TransportConfig;
use crate::address;
use crate::descriptors::Inherited;
use crate::error::{Error, Result};

/// Of what a connection must say before anything else (HTTP/2's preface).
const PREFACE: usize = 24;
/// In which a refusal reaches the other side, and it sends nothing more on a connection that is ended then.
const LINGER: Duration = Duration::from_secs(1);

pub async fn bind(config: &TransportConfig) -> Result<(TcpListener, SocketAddr)> {
    let (field, addr) = match config.listen_addr.as_str() {
        "" => ("raft_addr", config.raft_addr.as_str()),
        addr => ("listen_addr", addr),
    };
    address::split(field, addr)?;
    let refuse = |e: io::Error| {
        let remedy = match e.kind() {
            ErrorKind::AddrInUse => {
                "another process, or another node of this one, listens there; stop it or take another port".to_owned()
            }
            ErrorKind::AddrNotAvailable => {
                "no interface of this machine has this address; let listen_addr name one that it has, or 0.0.0.0"
                    .to_owned()
            }
            ErrorKind::PermissionDenied => "not permitted; take a port from 1024 on".to_owned(),
            _ => "check host and port".to_owned(),
        };
        Error::config(field, format!("cannot listen on {addr:?}: {e}: {remedy}"))
    };
    let listener = TcpListener::bind(addr).await.map_err(refuse)?;
    let real = listener.local_addr().map_err(refuse)?;
    Ok((listener, real))
}

/// The one place where connections are taken. Returns its tasks; they end when the node stops.
pub fn serve(shared: Arc<Shared>, listener: TcpListener) -> Vec<JoinHandle<()>> {
    let config = &shared.config;
    let server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(config.keepalive))
        .http2_keepalive_timeout(Some(config.keepalive))
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20)
        .max_concurrent_streams(4096)
        .max_frame_size(256 << 10)
        .http2_max_header_list_size(16 << 10);
    let (connections, incoming) = mpsc::channel(16);
    let accepting = tokio::spawn(accept(Arc::clone(&shared), listener, connections));
    let service = RaftService::new(shared);
    let serving = tokio::spawn(async move {
        // Ends when `accept` ends; what a single connection suffers never comes out here.
        let _ = server.serve_with_incoming(service, ReceiverStream::new(incoming)).await;
    });
    vec![accepting, serving]
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, connections: mpsc::Sender<io::Result<Socket>>) {
    let room = Room::new(shared.config.max_connections);
    let mut stop = shared.stop.clone();
    // Dropped before the listener, which came first.
    let _inherited = Inherited::note(&listener);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(_) => {
                // Out of descriptors, mostly: the connection stays in the backlog, trying at once would only burn the thread.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = room.place(from) else {
            shared.turned_away.tell(&shared, from, full(shared.config.max_connections));
            continue;
        };
        let _ = tcp.set_nodelay(true);
        let tcp = Tcp::new(tcp);
        if shared.config.tls.is_some() {
            let (shared, connections) = (Arc::clone(&shared), connections.clone());
            tokio::spawn(async move {
                if let Err(reason) = secure(&shared, tcp, place, connections).await {
                    shared.turned_away.tell(&shared, from, reason);
                }
            });
            continue;
        }
        let io = Socket::plain(tcp).guarded(Guard::new(&shared, place));
        if connections.send(Ok(io)).await.is_err() {
            return;
        }
    }
}

/// Hands on a connection once its other side has shown a certificate that is good here.
async fn secure(
    shared: &Shared,
    tcp: Tcp,
    place: Place,
    connections: mpsc::Sender<io::Result<Socket>>,
) -> Result<(), String> {
    let mut stop = shared.stop.clone();
    let patience = shared.config.hello_timeout;
    let shake_hands = async {
        let Some(config) = shared.taking().await else { return Ok(None) };
        match timeout(patience, TlsAcceptor::from(config).accept(tcp)).await {
            Ok(Ok(stream)) => Ok(Some(stream)),
            // One who hangs up before that only looked whether somebody listens.
            Ok(Err(e)) => handshake(&e, Side::Taken).map_or(Ok(None), Err),
            Err(_) => Err(format!("it showed no certificate within {patience:?}")),
        }
    };
    let stream = tokio::select! {
        shaken = shake_hands => shaken?,
        _ = stop.wait_for(|stop| *stop) => None,
    };
    if let Some(stream) = stream {
        let _ = connections.send(Ok(Socket::secured(stream).guarded(Guard::new(shared, place)))).await;
    }
    Ok(())
}

/// Ends a connection when the node stops, or when it says nothing at first.
pub struct Guard {
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Until the preface is there.
    greeting: Option<Pin<Box<Sleep>>>,
    read: usize,
    /// Of one with a spare place, until it is kept: when it ends.
    spare: Option<Pin<Box<Sleep>>>,
    place: Place,
}

impl Guard {
    fn new(shared: &Shared, place: Place) -> Self {
        let mut stop = shared.stop.clone();
        let patience = shared.config.hello_timeout;
        Guard {
            stopped: Box::pin(async move {
                let _ = stop.wait_for(|stop| *stop).await;
            }),
            greeting: Some(Box::pin(tokio::time::sleep(patience))),
            read: 0,
            spare: place.standing.waits().then(|| Box::pin(tokio::time::sleep(patience))),
            place,
        }
    }

    pub fn standing(&self) -> Standing {
        self.place.standing.clone()
    }

    /// An error ends the connection.
    pub fn before_read(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            // Polled again it would panic; an error ends the connection, so one that never ends takes its place.
            self.stopped = Box::pin(std::future::ready(()));
            return Err(io::Error::new(ErrorKind::ConnectionAborted, "the node is closing"));
        }
        if !self.place.standing.waits() {
            self.spare = None;
        }
        if let Some(end) = &mut self.spare {
            let soon = Instant::now() + LINGER;
            if self.place.standing.is_refused() && end.deadline() > soon {
                end.as_mut().reset(soon);
            }
            if end.as_mut().poll(cx).is_ready() {
                return Err(io::Error::new(ErrorKind::ConnectionAborted, "the node has no place for it"));
            }
        }
        Ok(())
    }

    /// So many bytes were read. An error ends the connection.
    pub fn after_read(&mut self, cx: &mut Context<'_>, bytes: usize) -> io::Result<()> {
        if self.greeting.is_some() {
            self.read = self.read.saturating_add(bytes);
            if self.read >= PREFACE {
                self.greeting = None;
            } else if self.greeting.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
                return Err(io::Error::new(ErrorKind::TimedOut, "nothing was said on the connection"));
            }
        }
        Ok(())
    }
}
