//! One HTTP/2 stream as an HTTP/1.1 connection with one request on it: what is read is the request, what is written becomes the answer.
//!
//! Who serves it frames bodies as HTTP/1.1 does, by a length or in chunks, and here that framing is put around a request's body and taken off an answer's. Windows are
//! opened as a body is taken, and a written answer is taken as its client's windows open, so that one who is slow on either side is seen to be slow. Once the answer is whole the
//! connection is at its end; dropped before that, the stream is reset. A client that resets the stream is one that left.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::meter::Told;
use super::receiving::Receiving;
use super::sending::Sending;
use super::{fields, gone, request};
use crate::proxy::engine::body::Body;
use crate::proxy::engine::head;
use crate::proxy::framing;

/// How long, and how many bytes, are read away of a request that was answered before its end.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 4 << 20);

/// The longest answer's head that is taken: longer ones are not passed on from upstreams either.
const HEAD: usize = 128 << 10;

/// What all streams of a connection have around them.
#[derive(Debug)]
pub(super) struct Around {
    told: Arc<Told>,
    tls: Option<Arc<SslDigest>>,
    socket: Option<Arc<SocketDigest>>,
    id: UniqueIDType,
}

impl Around {
    pub(super) fn of(stream: &Stream, told: Arc<Told>) -> Around {
        Around { told, tls: stream.get_ssl_digest(), socket: stream.get_socket_digest(), id: stream.id() }
    }
}

/// See the module.
pub struct H2Stream {
    around: Arc<Around>,
    /// Streams under way on the connection.
    open: Arc<AtomicUsize>,
    to_head: bool,
    /// The request.
    request: Receiving,
    answer: Answer,
    /// What an answer that does not become whole is broken off with.
    fault: Reason,
    is_given_up: bool,
}

/// How far the answer is.
enum Answer {
    /// Its head is not whole; what there is of it.
    Head(SendResponse<Bytes>, Vec<u8>),
    Body(Sending),
    Failed,
}

impl H2Stream {
    /// `None`: the request was malformed, and is answered.
    pub(super) fn new(
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        around: Arc<Around>,
        open: Arc<AtomicUsize>,
    ) -> Option<H2Stream> {
        let (parts, body) = request.into_parts();
        let ends = body.is_end_stream();
        let Ok((ahead, following)) = request::head(&parts, ends) else {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return None;
        };
        open.fetch_add(1, Relaxed);
        Some(H2Stream {
            around,
            open,
            to_head: parts.method == Method::HEAD,
            request: Receiving::new(ahead, following, body),
            answer: Answer::Head(respond, Vec::new()),
            fault: Reason::INTERNAL_ERROR,
            is_given_up: false,
        })
    }

    /// Whether the client gave the stream up. For who has nothing else to read.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let reset = match &mut self.answer {
            Answer::Head(respond, _) => respond.poll_reset(cx).map(drop),
            Answer::Body(sending) if !sending.is_whole() => sending.poll_reset(cx),
            // The one request of this connection is over.
            Answer::Body(_) => return Poll::Ready(Ok(())),
            Answer::Failed => return Poll::Ready(Err(gone())),
        };
        reset.map(|()| Err(self.given_up()))
    }

    /// The client gave the stream up.
    fn given_up(&mut self) -> io::Error {
        if matches!(self.answer, Answer::Head(..)) && !std::mem::replace(&mut self.is_given_up, true) {
            self.around.told.cancelled();
        }
        gone()
    }

    /// Takes what was written of the answer's head, and what follows it. Usually all of it comes at once.
    fn take_head(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        let Answer::Head(respond, begun) = &mut self.answer else { return Err(ErrorKind::BrokenPipe.into()) };
        let mut all = match begun.is_empty() {
            true => Bytes::copy_from_slice(bytes),
            false => Bytes::from([begun, bytes].concat()),
        };
        loop {
            let (answer, length) = match head::read_response(&all) {
                Ok(Some(read)) => read,
                Ok(None) if all.len() < HEAD => {
                    *begun = all.to_vec();
                    return Ok(());
                }
                _ => return Err(ErrorKind::InvalidData.into()),
            };
            let status = StatusCode::from_u16(answer.status).map_err(|_| ErrorKind::InvalidData)?;
            let mut message = Response::new(());
            *message.status_mut() = status;
            *message.headers_mut() = fields(&all, answer.fields())?;
            if status.is_informational() {
                respond.send_informational(message).map_err(|_| gone())?;
                all.advance(length);
                continue;
            }
            let framing = framing::response(self.to_head, answer.status, &answer.lines, false);
            let body = Body::of_answer(framing.map_err(|_| ErrorKind::InvalidData)?);
            let stream = respond.send_response(message, body.is_done()).map_err(|_| gone())?;
            all.advance(length);
            let mut sending = Sending::new(stream, body);
            let taken = if sending.is_whole() { Ok(()) } else { sending.begin(cx, &all) };
            self.answer = Answer::Body(sending);
            return taken;
        }
    }

    /// Gives the library what windows are open for. Ready: nothing waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.answer {
            Answer::Body(sending) => sending.poll_send(cx),
            Answer::Head(..) | Answer::Failed => Poll::Ready(Ok(())),
        }
    }

    fn failed<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.reset();
        }
        result
    }

    /// The answer cannot become whole.
    fn reset(&mut self) {
        match std::mem::replace(&mut self.answer, Answer::Failed) {
            Answer::Head(mut respond, _) => respond.send_reset(self.fault),
            Answer::Body(sending) if sending.is_whole() => self.answer = Answer::Body(sending),
            Answer::Body(mut sending) => sending.reset(self.fault),
            Answer::Failed => {}
        }
    }
}

/// Reads away what still comes of a request that is answered.
async fn linger(mut body: RecvStream) {
    let read_away = async {
        let mut left = LINGER.1;
        while let Some(Ok(piece)) = poll_fn(|cx| body.poll_data(cx)).await {
            left = left.saturating_sub(piece.len());
            if left == 0 || body.flow_control().release_capacity(piece.len()).is_err() {
                return;
            }
        }
    };
    // Whether it ends or not, it is dropped then.
    let _ = tokio::time::timeout(LINGER.0, read_away).await;
}

impl Drop for H2Stream {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
        self.reset();
        let Some(body) = self.request.take_body() else { return };
        // An answer that came before the request's end: dropping the rest resets the stream, for which some clients forget the answer.
        if matches!(&self.answer, Answer::Body(sending) if sending.is_whole())
            && !body.is_end_stream()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(linger(body));
        }
    }
}

impl fmt::Debug for H2Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2Stream").field("id", &self.request.body().map(RecvStream::stream_id)).finish_non_exhaustive()
    }
}

impl AsyncRead for H2Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(self.request.poll_read(cx, buf));
        if self.request.body().is_some_and(|body| self.around.told.is_malformed(body.stream_id().as_u32())) {
            self.fault = Reason::PROTOCOL_ERROR;
            return Poll::Ready(Err(gone()));
        }
        match read {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => self.poll_gone(cx),
            Err(_) => Poll::Ready(Err(self.given_up())),
        }
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let taken = match &mut this.answer {
            Answer::Head(..) => this.take_head(cx, buf),
            Answer::Body(sending) => ready!(sending.poll_take(cx, buf)),
            Answer::Failed => Err(ErrorKind::BrokenPipe.into()),
        };
        Poll::Ready(this.failed(taken.map(|()| buf.len())))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = ready!(self.poll_send(cx));
        Poll::Ready(self.failed(sent))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[async_trait]
impl Shutdown for H2Stream {
    async fn shutdown(&mut self) {
        // Given up either way.
        let _ = tokio::io::AsyncWriteExt::flush(self).await;
    }
}

impl UniqueID for H2Stream {
    fn id(&self) -> UniqueIDType {
        self.around.id
    }
}

impl Ssl for H2Stream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.around.tls.clone()
    }
}

#[async_trait]
impl Peek for H2Stream {}

impl GetTimingDigest for H2Stream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for H2Stream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for H2Stream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.around.socket.clone()
    }
}
