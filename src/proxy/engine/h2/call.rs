//! A request to an endpoint that speaks HTTP/2, as an HTTP/1.1 connection with that one request on it: what is written is the request, what is read is the answer.
//!
//! The mirror image of a client's [stream](super::stream), so that whatever holds for HTTP/1.1 endpoints holds for these: strictness, deadlines, retries, hedges,
//! back pressure. Dropped before its answer was read whole, the stream is reset. It tells what only HTTP/2 can say: that an endpoint did not look at
//! the request, which may therefore be sent again whatever it does (RFC 9113, 8.7).

use std::fmt;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, HOST, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::receiving::{Following, Receiving};
use super::sending::Sending;
use super::session::Ticket;
use super::{OF_CONNECTIONS, field, fields, gone};
use crate::proxy::engine::body::Body;
use crate::proxy::engine::buffer::Scratch;
use crate::proxy::engine::splice::Broke;
use crate::proxy::engine::{head, now};
use crate::proxy::{Fields, framing};
use crate::text;

/// The longest request's head that is taken. What clients may send is bounded before, and we add a few fields.
const HEAD: usize = 1 << 20;

/// See the module.
pub struct Call {
    ticket: Ticket,
    /// The endpoint's address, for requests without a host.
    address: std::net::SocketAddr,
    to_head: bool,
    asked: Option<Instant>,
    request: Outgoing,
    answer: Answer,
    broke: Broke,
}

/// How far the request is.
enum Outgoing {
    /// Its head is not whole; what there is of it.
    Head(Vec<u8>),
    Body(Sending),
}

/// How far the answer is.
enum Answer {
    /// Nothing was asked.
    Unasked,
    /// What was not read of an informational answer, before the final one.
    Awaited(ResponseFuture, Vec<u8>),
    Coming(Receiving),
    Failed,
}

impl Call {
    /// For one request to the endpoint with that address.
    pub(super) fn new(ticket: Ticket, address: std::net::SocketAddr) -> Call {
        Call {
            ticket,
            address,
            to_head: false,
            asked: None,
            request: Outgoing::Head(Vec::new()),
            answer: Answer::Unasked,
            broke: Broke::Connection,
        }
    }

    /// What broke, once something did.
    pub(in crate::proxy::engine) fn broke(&self) -> Broke {
        self.broke
    }

    /// Takes what was written of the request's head, and what follows it.
    fn take_head(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<()>> {
        let Outgoing::Head(begun) = &mut self.request else { return Poll::Ready(Err(ErrorKind::BrokenPipe.into())) };
        let mut all = match begun.is_empty() {
            true => Bytes::copy_from_slice(bytes),
            false => Bytes::from([begun, bytes].concat()),
        };
        let (request, length) = match head::read_request(&all, usize::MAX) {
            Ok(Some(read)) => read,
            Ok(None) if all.len() < HEAD => {
                *begun = all.to_vec();
                return Poll::Ready(Ok(()));
            }
            _ => return Poll::Ready(Err(ErrorKind::InvalidData.into())),
        };
        let Some(mut send) = self.ticket.session.send() else {
            return Poll::Ready(Err(ErrorKind::NotConnected.into()));
        };
        let framing = framing::request(&request.lines, false).map_err(|_| ErrorKind::InvalidData)?;
        let body = Body::new(framing);
        let message = message(&all, &request, self.ticket.session.scheme, &self.address.to_string())?;
        self.to_head = request.method == Method::HEAD;
        let sent = send.send_request(message, body.is_done());
        let (answer, stream) = sent.map_err(|error| self.failed(&error))?;
        self.asked = Some(now());
        self.answer = Answer::Awaited(answer, Vec::new());
        all.advance(length);
        let mut sending = Sending::new(stream, body);
        let taken = if sending.is_whole() { Ok(()) } else { sending.begin(cx, &all) };
        self.request = Outgoing::Body(sending);
        Poll::Ready(taken)
    }

    /// The stream ended by a fault.
    fn failed(&mut self, error: &h2::Error) -> io::Error {
        self.broke = match (error.is_remote(), error.is_reset(), error.is_go_away()) {
            // RFC 9113, 8.7.
            (true, true, _) if error.reason() == Some(Reason::REFUSED_STREAM) => Broke::RequestUnseen,
            (true, true, _) => Broke::Request,
            // A farewell that names an earlier stream as the last one (RFC 9113, 6.8).
            (true, _, true) => Broke::ConnectionUnseen,
            // The library's own word.
            (false, true, _) | (false, _, true) => Broke::Nonsense,
            _ => Broke::Connection,
        };
        self.answer = Answer::Failed;
        gone()
    }

    /// Waits for an answer's head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Answer::Awaited(answer, ahead) = &mut self.answer else { return Poll::Ready(Ok(())) };
        while let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
            first_line(ahead, interim.status());
            lines(ahead, interim.headers());
            ahead.extend_from_slice(b"\r\n");
        }
        if !ahead.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(answer).poll(cx)) {
            Ok(response) => {
                let (head, following, body) = answer_head(response, self.to_head);
                self.answer = Answer::Coming(Receiving::new(head, following, body));
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(self.failed(&error))),
        }
    }
}

/// The request as the library has it, of what is in `head`.
fn message(head: &Bytes, request: &head::Request<'_>, scheme: &str, address: &str) -> io::Result<Request<()>> {
    let invalid = |_| io::Error::from(ErrorKind::InvalidData);
    let host = request.lines.values("host").next().filter(|host| !host.is_empty());
    let authority = match host {
        Some(host) => Authority::try_from(host),
        None => Authority::try_from(address),
    };
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::try_from(scheme).map_err(invalid)?);
    parts.authority = Some(authority.map_err(invalid)?);
    parts.path_and_query = Some(target(request.target)?);
    let mut message = Request::new(());
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = Uri::from_parts(parts).map_err(|_| ErrorKind::InvalidData)?;
    *message.version_mut() = Version::HTTP_2;
    let trailers = request.lines.lists("te", b"trailers");
    let mut map = fields(head, request.lines.lines())?;
    map.remove(HOST);
    map.remove(TE);
    if trailers {
        map.insert(TE, HeaderValue::from_static("trailers"));
    }
    *message.headers_mut() = map;
    Ok(message)
}

/// What no target may have (RFC 3986, 2), and some clients send.
const ODD: &AsciiSet =
    &CONTROLS.add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// The target as the library has it. With what it does not take of what we do, all that is odd is written as it should have been.
fn target(target: &[u8]) -> io::Result<PathAndQuery> {
    let encoded = |_| PathAndQuery::try_from(percent_encode(target, ODD).to_string());
    PathAndQuery::try_from(target).or_else(encoded).map_err(|_| ErrorKind::InvalidData.into())
}

/// An answer's head as HTTP/1.1 writes it, and what follows it.
fn answer_head(response: Response<RecvStream>, to_head: bool) -> (Scratch, Following, RecvStream) {
    let (parts, body) = response.into_parts();
    let mut head = Scratch::take();
    first_line(&mut head, parts.status);
    lines(&mut head, &parts.headers);
    let bare = to_head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let ends = body.is_end_stream();
    let following = match parts.headers.contains_key(CONTENT_LENGTH) {
        _ if bare => Following::Nothing,
        true => Following::Length,
        false if ends => {
            field(&mut head, b"Content-Length", b"0");
            Following::Nothing
        }
        false => {
            field(&mut head, b"Transfer-Encoding", b"chunked");
            Following::Chunks
        }
    };
    // This connection is this request's.
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    (head, following, body)
}

fn first_line(out: &mut Vec<u8>, status: StatusCode) {
    out.extend_from_slice(b"HTTP/1.1 ");
    text::three_digits(out, status.as_u16().into());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn lines(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        if !OF_CONNECTIONS.contains(name) {
            field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let (Some(asked), Answer::Awaited(..)) = (self.asked, &self.answer) {
            self.ticket.session.unanswered(asked);
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("address", &self.address).finish_non_exhaustive()
    }
}

impl AsyncRead for Call {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Who waits for an answer is told of windows for the request too. Whether it can become whole, the answer decides.
        if let Outgoing::Body(sending) = &mut this.request {
            let _ = sending.poll_send(cx);
        }
        ready!(this.poll_head(cx))?;
        match &mut this.answer {
            Answer::Awaited(_, ahead) => {
                let count = ahead.len().min(buf.remaining());
                buf.put_slice(&ahead[..count]);
                ahead.drain(..count);
                Poll::Ready(Ok(()))
            }
            Answer::Coming(receiving) => match ready!(receiving.poll_read(cx, buf)) {
                // After the end there is nothing to be read: the end of the connection.
                Ok(_) => Poll::Ready(Ok(())),
                Err(error) => Poll::Ready(Err(self.failed(&error))),
            },
            Answer::Unasked => Poll::Pending,
            Answer::Failed => Poll::Ready(Err(gone())),
        }
    }
}

impl AsyncWrite for Call {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.request {
            Outgoing::Head(_) => {
                let taken = ready!(self.take_head(cx, buf));
                if taken.is_err() {
                    // Nobody will answer what was not sent.
                    self.answer = Answer::Failed;
                }
                taken?;
            }
            Outgoing::Body(sending) => ready!(sending.poll_take(cx, buf))?,
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.request {
            Outgoing::Body(sending) => sending.poll_send(cx),
            Outgoing::Head(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(text: &str) -> Request<()> {
        let head = Bytes::copy_from_slice(text.as_bytes());
        let (request, _) = head::read_request(&head, 100).unwrap().unwrap();
        message(&head, &request, "https", "192.0.2.1:443").unwrap()
    }

    #[test]
    fn heads_become_what_http_2_has() {
        let sent = request(
            "POST /a?b=1 HTTP/1.1\r\nHost: a.test:8443\r\nConnection: te\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nX-One: 1\r\n\r\n",
        );
        assert_eq!(sent.uri(), "https://a.test:8443/a?b=1");
        let mut names: Vec<_> = sent.headers().keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["te", "x-one"]);
        assert_eq!(request("GET / HTTP/1.1\r\nHost: \r\n\r\n").uri(), "https://192.0.2.1:443/");
        assert_eq!(request("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").uri().path(), "*");
        assert_eq!(request("GET /<a> HTTP/1.1\r\nHost: a\r\n\r\n").uri().path(), "/%3Ca%3E");
        assert!(!request("GET / HTTP/1.1\r\nHost: a\r\nTE: gzip\r\n\r\n").headers().contains_key("te"));
    }

    proptest! {
        /// Whatever passes for a target here is one for the library.
        #[test]
        fn every_target_can_be_sent(rest in prop::collection::vec(33u8..=126, 0..30)) {
            let rest: Vec<u8> = rest.into_iter().filter(|byte| *byte != b'#').collect();
            prop_assert!(target(&[b"/", rest.as_slice()].concat()).is_ok());
        }
    }
}
