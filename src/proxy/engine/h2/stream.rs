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
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::meter::Told;
use super::request::{self, Following};
use crate::proxy::Fields;
use crate::proxy::engine::body::{Body, Step};
use crate::proxy::engine::head;
use crate::proxy::framing;

/// Bytes of an answer that wait here for a window: while there are as many, nothing more is taken.
const WAITING: usize = 64 << 10;

/// How long, and how many bytes, are read away of a request that was answered before its end.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 4 << 20);

/// The longest answer's head that is taken: longer ones are not passed on from upstreams either.
const HEAD: usize = 128 << 10;

/// Fields that concern an HTTP/1.1 connection (RFC 9113, 8.2.2).
const OF_CONNECTIONS: [HeaderName; 5] = [
    CONNECTION,
    TRANSFER_ENCODING,
    http::header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

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
    /// What is to be read before anything else: the head, then framing.
    ahead: Vec<u8>,
    /// How much of it was.
    taken: usize,
    /// Taken only when dropped.
    body: Option<RecvStream>,
    coming: Coming,
    /// What came of the body and was not read yet.
    piece: Bytes,
    answer: Answer,
    is_given_up: bool,
}

/// What comes of the request after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coming {
    /// Data; in chunks or not.
    Data { chunks: bool },
    /// What follows the last chunk.
    Trailers,
    /// Nothing more.
    Nothing,
}

/// How far the answer is.
enum Answer {
    /// Its head is not whole; what there is of it.
    Head(SendResponse<Bytes>, Vec<u8>),
    Body(Sending),
    /// All of it was given to the library.
    Whole,
    Failed,
}

struct Sending {
    stream: SendStream<Bytes>,
    body: Body,
    /// Payload that waits for a window.
    waiting: BytesMut,
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
        let coming = match following {
            Following::Nothing => Coming::Nothing,
            Following::Length => Coming::Data { chunks: false },
            Following::Chunks => Coming::Data { chunks: true },
        };
        open.fetch_add(1, Relaxed);
        Some(H2Stream {
            around,
            open,
            to_head: parts.method == Method::HEAD,
            ahead,
            taken: 0,
            body: Some(body),
            coming,
            piece: Bytes::new(),
            answer: Answer::Head(respond, Vec::new()),
            is_given_up: false,
        })
    }

    /// Whether the client gave the stream up. For who has nothing else to read.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let reset = match &mut self.answer {
            Answer::Head(respond, _) => respond.poll_reset(cx),
            Answer::Body(sending) => sending.stream.poll_reset(cx),
            // The one request of this connection is over.
            Answer::Whole => return Poll::Ready(Ok(())),
            Answer::Failed => return Poll::Ready(Err(gone())),
        };
        reset.map(|_| Err(self.given_up()))
    }

    /// The client gave the stream up.
    fn given_up(&mut self) -> io::Error {
        if matches!(self.answer, Answer::Head(..)) && !std::mem::replace(&mut self.is_given_up, true) {
            self.around.told.cancelled();
        }
        gone()
    }

    /// Puts more of the request ahead. Ready: there is more to read, or there will never be (`false`).
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.ahead.clear();
        self.taken = 0;
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(false)) };
        loop {
            match self.coming {
                Coming::Data { chunks } => match ready!(body.poll_data(cx)) {
                    Some(Ok(piece)) if piece.is_empty() => {}
                    Some(Ok(piece)) => {
                        if chunks {
                            self.ahead.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                        }
                        self.piece = piece;
                        return Poll::Ready(Ok(true));
                    }
                    Some(Err(_)) => return Poll::Ready(Err(self.given_up())),
                    None if chunks => self.coming = Coming::Trailers,
                    // Trailers after a length have no place in HTTP/1.1.
                    None => self.coming = Coming::Nothing,
                },
                Coming::Trailers => {
                    let trailers = ready!(body.poll_trailers(cx)).map_err(|_| gone())?;
                    self.ahead.extend_from_slice(b"0\r\n");
                    for (name, value) in trailers.iter().flatten() {
                        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                            self.ahead.extend_from_slice(part);
                        }
                    }
                    self.ahead.extend_from_slice(b"\r\n");
                    self.coming = Coming::Nothing;
                    return Poll::Ready(Ok(true));
                }
                Coming::Nothing => return Poll::Ready(Ok(false)),
            }
        }
    }

    /// Takes what was written of the answer's head, and what follows it.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Answer::Head(respond, head) = &mut self.answer else { return Err(ErrorKind::BrokenPipe.into()) };
        head.extend_from_slice(bytes);
        loop {
            let (answer, length) = match head::read_response(head) {
                Ok(Some(read)) => read,
                Ok(None) if head.len() < HEAD => return Ok(()),
                _ => return Err(ErrorKind::InvalidData.into()),
            };
            let status = StatusCode::from_u16(answer.status).map_err(|_| ErrorKind::InvalidData)?;
            let mut message = Response::new(());
            *message.status_mut() = status;
            *message.headers_mut() = fields(answer.fields())?;
            if status.is_informational() {
                respond.send_informational(message).map_err(|_| gone())?;
                head.drain(..length);
                continue;
            }
            let framing = framing::response(self.to_head, answer.status, &answer.lines, false);
            let body = Body::of_answer(framing.map_err(|_| ErrorKind::InvalidData)?);
            let is_whole = body.is_done();
            let stream = respond.send_response(message, is_whole).map_err(|_| gone())?;
            let rest = head.split_off(length);
            if is_whole {
                self.answer = Answer::Whole;
                return Ok(());
            }
            let mut sending = Sending { stream, body, waiting: BytesMut::new() };
            let taken = sending.take(&rest);
            self.answer = Answer::Body(sending);
            return taken;
        }
    }

    /// Gives the library what windows are open for. Ready: nothing waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Answer::Body(sending) = &mut self.answer else { return Poll::Ready(Ok(())) };
        ready!(sending.poll_send(cx))?;
        if sending.body.is_done() {
            self.answer = Answer::Whole;
        }
        Poll::Ready(Ok(()))
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
            Answer::Head(mut respond, _) => respond.send_reset(Reason::INTERNAL_ERROR),
            Answer::Body(mut sending) => sending.stream.send_reset(Reason::INTERNAL_ERROR),
            Answer::Whole => self.answer = Answer::Whole,
            Answer::Failed => {}
        }
    }
}

impl Sending {
    /// Takes what was written of the body.
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.body.step(bytes).map_err(|_| ErrorKind::InvalidData)? {
                Step::Data { skip, len } => {
                    self.waiting.extend_from_slice(&bytes[skip..skip + len]);
                    bytes = &bytes[skip + len..];
                }
                Step::More(_) | Step::End(_) => return Ok(()),
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            self.stream.reserve_capacity(self.waiting.len());
            while self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    _ => return Poll::Ready(Err(gone())),
                }
            }
            let count = self.stream.capacity().min(self.waiting.len());
            let piece = self.waiting.split_to(count).freeze();
            let is_last = self.waiting.is_empty() && self.body.is_done() && self.body.trailers().is_none();
            self.stream.send_data(piece, is_last).map_err(|_| gone())?;
            if is_last {
                return Poll::Ready(Ok(()));
            }
        }
        if self.body.is_done() {
            let sent = match self.body.trailers() {
                Some(lines) => self.stream.send_trailers(fields(lines.lines())?),
                None => self.stream.send_data(Bytes::new(), true),
            };
            sent.map_err(|_| gone())?;
        }
        Poll::Ready(Ok(()))
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

/// Fields as the library has them, without those that concern a connection.
fn fields<'a>(lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> io::Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name).map_err(|_| ErrorKind::InvalidData)?;
        if !OF_CONNECTIONS.contains(&name) {
            map.append(name, HeaderValue::from_bytes(value).map_err(|_| ErrorKind::InvalidData)?);
        }
    }
    Ok(map)
}

/// The client is not there any more.
fn gone() -> io::Error {
    ErrorKind::ConnectionReset.into()
}

impl Drop for H2Stream {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
        self.reset();
        let Some(body) = self.body.take() else { return };
        // An answer that came before the request's end: dropping the rest resets the stream, for which some clients forget the answer.
        if matches!(self.answer, Answer::Whole)
            && !body.is_end_stream()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(linger(body));
        }
    }
}

impl fmt::Debug for H2Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2Stream").field("id", &self.body.as_ref().map(RecvStream::stream_id)).finish_non_exhaustive()
    }
}

impl AsyncRead for H2Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let ahead = &this.ahead[this.taken..];
            if !ahead.is_empty() {
                let count = ahead.len().min(buf.remaining());
                buf.put_slice(&ahead[..count]);
                this.taken += count;
                return Poll::Ready(Ok(()));
            }
            if !this.piece.is_empty() {
                let count = this.piece.len().min(buf.remaining());
                buf.put_slice(&this.piece.split_to(count));
                // More than was taken is never released.
                if let Some(body) = &mut this.body {
                    let _ = body.flow_control().release_capacity(count);
                }
                if this.piece.is_empty() && this.coming == (Coming::Data { chunks: true }) {
                    this.ahead.clear();
                    this.ahead.extend_from_slice(b"\r\n");
                    this.taken = 0;
                }
                return Poll::Ready(Ok(()));
            }
            match ready!(this.poll_more(cx)) {
                Ok(true) => {}
                Ok(false) => return this.poll_gone(cx),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let taken = match &mut this.answer {
            Answer::Head(..) => this.take_head(buf),
            Answer::Body(sending) => {
                if sending.waiting.len() >= WAITING {
                    match sending.poll_send(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(this.failed(Err(error))),
                        Poll::Pending if sending.waiting.len() >= WAITING => return Poll::Pending,
                        Poll::Pending => {}
                    }
                }
                sending.take(buf)
            }
            Answer::Whole | Answer::Failed => Err(ErrorKind::BrokenPipe.into()),
        };
        this.failed(taken)?;
        // What there is no window for waits for the next write, or a flush.
        match this.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(this.failed(Err(error))),
            _ => Poll::Ready(Ok(buf.len())),
        }
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
