//! gRPC probes: `grpc.health.v1.Health/Check`, the standard health checking protocol, over HTTP/2: within TLS if requests are, else by prior knowledge.
//!
//! It is asked for the empty service name, which stands for the server as a whole. The question is an empty message and the answer has one
//! field, so both are written and read here: a code generator and a gRPC stack for that would weigh more than the rest of the
//! probes. Whatever an answer holds beside its status is skipped, as protobuf wants it.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use super::{Target, USER_AGENT, authority, carried, words};

/// The longest answer that is read.
const MOST: usize = 4096;

/// A `HealthCheckRequest` without a service name, in its frame: not compressed, 0 bytes long.
const QUESTION: [u8; 5] = [0; 5];

/// The values of `HealthCheckResponse.ServingStatus`.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// The one that passes.
const SERVING: u64 = 1;

/// The names of `grpc-status`.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Asks the server how it is.
pub(super) async fn check(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
    host: &str,
) -> Result<(), String> {
    let request = request(target, host)?;
    let tasks = Tasks::default();
    let _end = End(tasks.clone());
    let (mut sender, connection) =
        http2::handshake(tasks, TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        if answer.status() != http::StatusCode::OK {
            return Err(format!("status {}", answer.status().as_u16()));
        }
        let (head, mut body) = answer.into_parts();
        let kind = head.headers.get("content-type").map_or(&b""[..], |kind| kind.as_bytes());
        if !kind.starts_with(b"application/grpc") {
            return Err("an answer that is not gRPC".to_owned());
        }
        let mut read = Vec::new();
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(&error))?;
            if let Some(data) = frame.data_ref() {
                if read.len() + data.len() > MOST {
                    return Err("an answer of more than 4 KiB".to_owned());
                }
                read.extend_from_slice(data);
            } else if let Ok(fields) = frame.into_trailers() {
                trailers = Some(fields);
            }
        }
        // An answer without a message has its status in the head.
        outcome(trailers.as_ref().unwrap_or(&head.headers))?;
        verdict(&read)
    };
    carried(exchange, connection).await
}

fn request(target: &Target, host: &str) -> Result<Request<Full<Bytes>>, String> {
    let none = |error: http::Error| format!("no such request: {error}");
    let uri = Uri::builder()
        .scheme(target.scheme())
        .authority(authority(target, host))
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()
        .map_err(none)?;
    Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        // At most eight digits: an hour has seven.
        .header("grpc-timeout", format!("{}m", target.policy.timeout.as_millis()))
        .body(Full::new(Bytes::from_static(&QUESTION)))
        .map_err(none)
}

/// How the call ended, by `grpc-status`.
fn outcome(fields: &HeaderMap) -> Result<(), String> {
    let Some(status) = fields.get("grpc-status") else {
        return Err("an answer without grpc-status".to_owned());
    };
    match status.to_str().ok().and_then(|text| text.parse::<usize>().ok()) {
        Some(0) => Ok(()),
        Some(code) => {
            Err(format!("grpc-status {code}{}", CODES.get(code).map_or(String::new(), |n| format!(" ({n})"))))
        }
        None => Err("a grpc-status that is no number".to_owned()),
    }
}

/// What the message in its frame says.
fn verdict(body: &[u8]) -> Result<(), String> {
    let message = message(body).ok_or("an answer without a whole message")?;
    let status = status(message).ok_or("a message that is no HealthCheckResponse")?;
    if status == SERVING {
        return Ok(());
    }
    let name = usize::try_from(status).ok().and_then(|status| STATUSES.get(status));
    Err(name.map_or_else(|| format!("serving status {status}"), |name| (*name).to_owned()))
}

/// The one message of a body: a byte that says whether it is compressed (nobody was told that it may be), four for its length, and it.
fn message(body: &[u8]) -> Option<&[u8]> {
    let (head, message) = body.split_first_chunk::<5>()?;
    let [compressed, length @ ..] = *head;
    (compressed == 0 && u32::from_be_bytes(length) as usize == message.len()).then_some(message)
}

/// Field 1 of a message, a number; 0 when it is not there, as protobuf has it. Of several the last one counts.
fn status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match (key >> 3, key & 7) {
            (0, _) => return None,
            (1, 0) => status = varint(&mut message)?,
            (1, _) => return None,
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => skip(&mut message, 8)?,
            (_, 2) => {
                let length = varint(&mut message)?;
                skip(&mut message, length)?;
            }
            (_, 5) => skip(&mut message, 4)?,
            // Groups have been out of use for longer than this protocol exists.
            _ => return None,
        }
    }
    Some(status)
}

/// Seven bits a byte, the lowest first; the top bit says that more follow. At most ten bytes.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        // Of the tenth byte there is room for one bit.
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn skip(bytes: &mut &[u8], count: u64) -> Option<()> {
    *bytes = bytes.get(usize::try_from(count).ok()?..)?;
    Some(())
}

/// What a connection of HTTP/2 broke by.
pub(super) fn broken(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return format!("connection {}", words(io));
        }
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The tasks of a probe's connection: what hyper needs to speak HTTP/2, and must not outlive the probe.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    handles: Arc<Mutex<Vec<AbortHandle>>>,
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let task = tokio::spawn(async { drop(future.await) });
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(task.abort_handle());
    }
}

/// Ends them all. Not by dropping the last of [`Tasks`]: the tasks hold some themselves.
pub(super) struct End(pub(super) Tasks);

impl Drop for End {
    fn drop(&mut self) {
        self.0.handles.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(AbortHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::{once, target_of};
    use crate::steering::fleet::Probe;
    use http::Response;
    use hyper::body::Frame;
    use hyper::server::conn::http2 as server;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioExecutor;
    use proptest::prelude::*;
    use std::convert::Infallible;
    use std::net::SocketAddr;
    use tokio::net::TcpListener;

    type Answer = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

    /// What a server answers: status, content type, fields of the head, body, trailers.
    #[derive(Clone, Default)]
    struct Says {
        status: u16,
        kind: &'static str,
        head: Option<&'static str>,
        body: Vec<u8>,
        trailer: Option<&'static str>,
    }

    fn says(body: &[u8], trailer: &'static str) -> Says {
        Says { status: 200, kind: "application/grpc+proto", head: None, body: body.to_vec(), trailer: Some(trailer) }
    }

    /// A frame around a message.
    fn framed(message: &[u8]) -> Vec<u8> {
        let mut frame = vec![0];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(message);
        frame
    }

    fn answer(says: &Says) -> Answer {
        let mut frames: Vec<Result<Frame<Bytes>, Infallible>> = Vec::new();
        // In pieces, as it may come.
        frames.extend(says.body.chunks(3).map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk)))));
        if let Some(status) = says.trailer {
            let mut fields = HeaderMap::new();
            fields.insert("grpc-status", http::HeaderValue::from_static(status));
            frames.push(Ok(Frame::trailers(fields)));
        }
        let mut answer = Response::builder().status(says.status).header("content-type", says.kind);
        if let Some(status) = says.head {
            answer = answer.header("grpc-status", status);
        }
        answer.body(Pieces(frames.into()).boxed()).unwrap()
    }

    /// A body of given frames.
    struct Pieces(std::collections::VecDeque<Result<Frame<Bytes>, Infallible>>);

    impl hyper::body::Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            std::task::Poll::Ready(self.0.pop_front())
        }
    }

    type Asked = (http::request::Parts, Bytes);

    /// An HTTP/2 server that says that to everything; returns also what it was asked.
    async fn serve(says: Says) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<Asked>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heads, received) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (says, heads) = (says.clone(), heads.clone());
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (says, heads) = (says.clone(), heads.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let _ = heads.send((head, body));
                        Ok::<_, Infallible>(answer(&says))
                    }
                });
                tokio::spawn(async move {
                    let _ = server::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        (address, received)
    }

    fn target(address: SocketAddr, host: &str) -> Target {
        let mut target = target_of(address, Probe::Grpc { host: host.to_owned() });
        target.policy.timeout = std::time::Duration::from_secs(10);
        target
    }

    #[tokio::test]
    async fn only_a_server_that_serves_passes() {
        let rows = [
            (says(&framed(&[8, 1]), "0"), Ok(())),
            (says(&framed(&[8, 0]), "0"), Err("UNKNOWN")),
            (says(&framed(&[]), "0"), Err("UNKNOWN")),
            (says(&framed(&[8, 2]), "0"), Err("NOT_SERVING")),
            (says(&framed(&[8, 3]), "0"), Err("SERVICE_UNKNOWN")),
            (says(&framed(&[8, 9]), "0"), Err("serving status 9")),
            (says(&framed(&[8, 1]), "14"), Err("grpc-status 14 (UNAVAILABLE)")),
            (says(&framed(&[8, 1]), "99"), Err("grpc-status 99")),
            (says(&framed(&[8, 1]), "x"), Err("a grpc-status that is no number")),
            (Says { trailer: None, ..says(&framed(&[8, 1]), "") }, Err("an answer without grpc-status")),
            // The whole answer in the head, as servers without that service say it.
            (Says { trailer: None, head: Some("12"), ..says(&[], "") }, Err("grpc-status 12 (UNIMPLEMENTED)")),
            (says(&[], "0"), Err("an answer without a whole message")),
            (says(&framed(&[8, 1])[..6], "0"), Err("an answer without a whole message")),
            (says(&[1, 0, 0, 0, 2, 8, 1], "0"), Err("an answer without a whole message")),
            (says(&framed(&[9, 1]), "0"), Err("a message that is no HealthCheckResponse")),
            (says(&framed(&[0; 5000]), "0"), Err("an answer of more than 4 KiB")),
            (Says { status: 503, ..says(&[], "0") }, Err("status 503")),
            (Says { kind: "text/html", ..says(b"hello", "0") }, Err("an answer that is not gRPC")),
        ];
        for (says, want) in rows {
            let (address, _asked) = serve(says.clone()).await;
            assert_eq!(once(&target(address, "")).await.0, want.map_err(str::to_owned), "{:?}", says.body);
        }
    }

    #[tokio::test]
    async fn the_question_is_the_standard_one() {
        let (address, mut asked) = serve(says(&framed(&[8, 1]), "0")).await;
        for (host, authority) in
            [("", format!("origin.example:{}", address.port())), ("www.example", "www.example".to_owned())]
        {
            once(&target(address, host)).await.0.unwrap();
            let (head, body) = asked.recv().await.unwrap();
            assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/grpc.health.v1.Health/Check"));
            assert_eq!(head.uri.authority().unwrap().as_str(), authority);
            assert_eq!(head.headers["content-type"], "application/grpc");
            assert_eq!(head.headers["te"], "trailers");
            assert_eq!(head.headers["grpc-timeout"], "10000m");
            assert_eq!(body, QUESTION.as_slice());
        }
    }

    #[tokio::test]
    async fn a_server_of_another_kind_fails_and_a_silent_one_too() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut target = target(listener.local_addr().unwrap(), "");
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut preface = [0; 24];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut preface).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            // Kept open until the probe has read it.
            stream
        };
        let ((result, _), _stream) = tokio::join!(once(&target), answering);
        assert!(result.is_err_and(|why| why.starts_with("http2 error") || why.starts_with("connection")));
        target.policy.timeout = std::time::Duration::from_millis(100);
        assert_eq!(once(&target).await.0, Err("timeout after 100 ms".to_owned()));
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let rows: [(&[u8], Option<u64>); 12] = [
            (&[8, 1], Some(1)),
            (&[8, 2, 8, 1], Some(1)),
            (&[8, 0x81, 0], Some(1)),
            (&[16, 7, 8, 1], Some(1)),
            (&[18, 2, 8, 2, 8, 1], Some(1)),
            (&[17, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1], Some(1)),
            (&[21, 1, 2, 3, 4, 8, 1], Some(1)),
            (&[18, 9, 1], None),
            (&[0, 1], None),
            (&[10, 1, 1], None),
            (&[19, 20], None),
            (&[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], None),
        ];
        for (message, want) in rows {
            assert_eq!(status(message), want, "{message:?}");
        }
    }

    fn written(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_reader(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = verdict(&body);
            let _ = status(&body);
        }

        #[test]
        fn numbers_come_back(number: u64, rest: Vec<u8>) {
            let mut bytes = written(number);
            bytes.extend(&rest);
            let mut left = bytes.as_slice();
            prop_assert_eq!(varint(&mut left), Some(number));
            prop_assert_eq!(left, rest.as_slice());
        }

        #[test]
        fn a_status_is_found_among_other_fields(
            want: u64,
            before in prop::collection::vec((2u64..1000, prop::collection::vec(any::<u8>(), 0..20)), 0..5),
        ) {
            let mut message = Vec::new();
            for (field, bytes) in &before {
                message.extend(written(field << 3 | 2));
                message.extend(written(bytes.len() as u64));
                message.extend(bytes);
            }
            message.push(8);
            message.extend(written(want));
            prop_assert_eq!(status(&message), Some(want));
            let frame = framed(&message);
            prop_assert_eq!(super::message(&frame), Some(message.as_slice()));
        }
    }
}
