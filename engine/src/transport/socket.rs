//! A TCP connection: one that a forked child lets go of, and that its taker may end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::Connected;

use super::listen::Guard;
use crate::descriptors::Inherited;

/// A TCP connection, taken or dialled. Every one of the library goes through this.
pub struct Socket {
    _inherited: Inherited,
    tcp: TcpStream,
    /// Of one that was taken; who dialled one ends it.
    guard: Option<Guard>,
}

impl Socket {
    pub fn dialled(tcp: TcpStream) -> Self {
        Socket { _inherited: Inherited::note(&tcp), tcp, guard: None }
    }

    pub fn taken(tcp: TcpStream, guard: Guard) -> Self {
        Socket { guard: Some(guard), ..Socket::dialled(tcp) }
    }
}

impl Connected for Socket {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(guard) = &mut self.guard {
            guard.before_read(cx)?;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.tcp).poll_read(cx, buf);
        if let Some(guard) = &mut self.guard {
            guard.after_read(cx, buf.filled().len().saturating_sub(before))?;
        }
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}
