//! A connection, plain or with certificates, that its taker may end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use super::listen::Guard;
use super::room::Standing;
use super::tcp::Tcp;
use super::tls_reason;

enum Carrier {
    Plain(Tcp),
    Secured(Box<TlsStream<Tcp>>),
}

/// Told what became of the first read: before that nobody knows whether the other side is one of ours, and took our certificate.
pub type FirstWord = oneshot::Sender<io::Result<()>>;

/// A connection, taken or dialled.
pub struct Socket {
    carrier: Carrier,
    /// Of one that was taken; who dialled one ends it.
    guard: Option<Guard>,
    /// Of one that was dialled, until it is told.
    first_word: Option<FirstWord>,
}

impl Socket {
    pub fn plain(tcp: Tcp) -> Self {
        Socket { carrier: Carrier::Plain(tcp), guard: None, first_word: None }
    }

    pub fn secured(stream: impl Into<TlsStream<Tcp>>) -> Self {
        Socket { carrier: Carrier::Secured(Box::new(stream.into())), guard: None, first_word: None }
    }

    pub fn guarded(self, guard: Guard) -> Self {
        Socket { guard: Some(guard), ..self }
    }

    pub fn telling(self, first_word: FirstWord) -> Self {
        Socket { first_word: Some(first_word), ..self }
    }

    /// What the first read came to, for who dialled and for who reads.
    fn first(&self, read: io::Result<&[u8]>) -> io::Result<()> {
        match (read?, &self.carrier) {
            ([], _) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up")),
            (bytes, Carrier::Plain(_)) if tls_reason::is_alert(bytes) => Err(io::Error::other(tls_reason::Expected)),
            _ => Ok(()),
        }
    }
}

impl Carrier {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Carrier::Secured(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Connected for Socket {
    type ConnectInfo = Standing;

    fn connect_info(&self) -> Standing {
        self.guard.as_ref().map(Guard::standing).unwrap_or_default()
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(guard) = &mut this.guard {
            guard.before_read(cx)?;
        }
        let before = buf.filled().len();
        let polled = this.carrier.poll_read(cx, buf);
        if let Some(guard) = &mut this.guard {
            guard.after_read(cx, buf.filled().len().saturating_sub(before))?;
        }
        match polled {
            Poll::Ready(read) if this.first_word.is_some() => {
                let first = this.first(read.map(|()| buf.filled().get(before..).unwrap_or_default()));
                let copy = first.as_ref().copied().map_err(|e| io::Error::new(e.kind(), e.to_string()));
                if let Some(tell) = this.first_word.take() {
                    let _ = tell.send(first);
                }
                Poll::Ready(copy)
            }
            polled => polled,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_write(cx, data),
            Carrier::Secured(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Carrier::Secured(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Carrier::Secured(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, data),
            Carrier::Secured(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.carrier {
            Carrier::Plain(tcp) => tcp.is_write_vectored(),
            Carrier::Secured(stream) => stream.is_write_vectored(),
        }
    }
}
