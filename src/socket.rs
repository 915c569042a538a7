//! A TCP stream that is read and written by the bare system calls.
//!
//! The C library's `recv` and `send` are places where a thread can be cancelled, and look each time whether it is: a hundredth of a request's
//! instructions, four times over, for something that nobody here does. Readiness is the runtime's. As with its own stream, a read or write
//! that did not use all of its buffer has used up what there was, and the next one waits until there is more, without asking the kernel in vain.
//!
//! Must not know what the bytes mean.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// See the module.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl Socket {
    /// The runtime's stream.
    pub fn stream(&self) -> &TcpStream {
        &self.0
    }

    /// Does `call`, which wants to use `wanted` bytes and says how many it did, once the socket is ready for it. 0 is an end, of which there is no less.
    #[inline(always)]
    fn poll(
        &self,
        interest: Interest,
        cx: &mut Context<'_>,
        wanted: usize,
        mut call: impl FnMut(&TcpStream) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match interest.is_readable() {
                true => ready!(self.0.poll_read_ready(cx))?,
                false => ready!(self.0.poll_write_ready(cx))?,
            }
            let mut used = None;
            let tried = self.0.try_io(interest, || {
                let count = call(&self.0)?;
                used = Some(count);
                // Which tells the runtime that it is not ready any more.
                if (1..wanted).contains(&count) { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (used, tried) {
                (Some(count), _) => return Poll::Ready(Ok(count)),
                (None, Err(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                (None, tried) => return Poll::Ready(tried.map(|()| 0)),
            }
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Socket {
        Socket(stream)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.initialize_unfilled();
        let wanted = room.len();
        if wanted == 0 {
            return Poll::Ready(Ok(()));
        }
        let receive = |stream: &TcpStream| Ok(recv(stream, &mut *room, RecvFlags::empty())?.0);
        let count = ready!(self.poll(Interest::READABLE, cx, wanted, receive))?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // A peer that is gone is an error, not the end of the process.
        self.poll(Interest::WRITABLE, cx, buf.len(), |stream| send(stream, buf, SendFlags::NOSIGNAL))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near.into(), listener.accept().await.unwrap().0.into())
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_and_then_the_end() {
        let (mut near, mut far) = pair().await;
        // More than the kernel holds, so that both sides have to wait.
        let sent: Vec<u8> = (0..8_u32 << 20).map(|n| (n / 251) as u8).collect();
        let want = sent.clone();
        let sender = tokio::spawn(async move {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
            near
        });
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert!(got == want);
        drop(far);
        let mut near = sender.await.unwrap();
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_comes_after_a_part_is_noticed() {
        let (mut near, mut far) = pair().await;
        let mut buffer = [0; 16];
        for piece in [&b"one"[..], b"two", b"sixteen bytes..."] {
            near.write_all(piece).await.unwrap();
            assert_eq!(far.read(&mut buffer).await.unwrap(), piece.len());
            assert_eq!(&buffer[..piece.len()], piece);
            let more = tokio::time::timeout(Duration::from_millis(5), far.read(&mut buffer)).await;
            assert!(more.is_err(), "{more:?}");
        }
        assert_eq!(far.read(&mut []).await.unwrap(), 0);
        near.write_all(b"last").await.unwrap();
        drop(near);
        assert_eq!(far.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(far.read(&mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error() {
        let (mut near, far) = pair().await;
        socket2::SockRef::from(far.stream()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        let error = loop {
            match near.write(b"hello").await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    }
}
