//! `meridian origin`: a small, real HTTP origin for demos and tests, hidden in help.
//!
//! It answers who it is and what it saw, can be told to be unhealthy or to fail, and serves bodies of any size slowly or fast. It is
//! no part of the proxy and shares no code with it, so that what it reports is what an upstream would see.

mod trouble;

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// Bodies that are read before they are answered, and for how long.
const SHORT: u64 = 64 << 10;
const SHORTLY: Duration = Duration::from_secs(1);

/// Binds `address`; an error says what is wrong with it. Only loopback addresses are allowed unless `anywhere`, since an
/// origin shows every header that it gets to whoever asks.
pub async fn bind(address: SocketAddr, anywhere: bool) -> io::Result<TcpListener> {
    if !address.ip().is_loopback() && !anywhere {
        let message = format!("{address} is not a loopback address; a demo origin shows what it sees to everybody");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    TcpListener::bind(address).await
}

/// An origin that fails as it is told.
#[derive(Debug)]
pub struct Troubles {
    /// Gets a line for each request that was executed.
    pub journal: Option<PathBuf>,
}

/// `meridian origin NAME`: serves until the process is ended.
pub fn main(name: &str, address: SocketAddr, anywhere: bool, troubles: Option<Troubles>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|runtime| runtime.block_on(run(name, address, anywhere, troubles)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: origin {name} at {address}: {error}");
            ExitCode::from(1)
        }
    }
}

/// The address that an origin started as a child says it listens at; an error is what it said instead.
pub fn announced(child: &mut Child) -> Result<SocketAddr, String> {
    let mut line = String::new();
    let read = child.stdout.take().map(|stdout| io::BufReader::new(stdout).read_line(&mut line));
    let address = line.trim().strip_prefix("listening ").and_then(|address| address.parse().ok());
    match (read, address) {
        (Some(Ok(_)), Some(address)) => Ok(address),
        _ => Err(format!("did not say where it listens (it said {line:?})")),
    }
}

/// Prints `listening ADDRESS` and serves as origin `name` until the future is dropped.
async fn run(name: &str, address: SocketAddr, anywhere: bool, troubles: Option<Troubles>) -> io::Result<()> {
    let listener = bind(address, anywhere).await?;
    let journal = match troubles.as_ref().and_then(|troubles| troubles.journal.as_deref()) {
        Some(path) => Some(File::options().create(true).append(true).open(path)?),
        None => None,
    };
    let mut out = io::stdout().lock();
    writeln!(out, "listening {}", listener.local_addr()?)?;
    out.flush()?;
    drop(out);
    match troubles {
        Some(_) => trouble::serve(name, listener, journal).await,
        None => serve(name, listener).await,
    }
}

/// Serves as origin `name` until the future is dropped.
pub async fn serve(name: &str, listener: TcpListener) -> io::Result<()> {
    let origin = Arc::new(Origin {
        name: name.to_owned(),
        header: HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("origin")),
        health: AtomicU16::new(200),
        traffic: AtomicU16::new(200),
        requests: AtomicU64::new(0),
        connections: AtomicU64::new(0),
    });
    let mut pause = Duration::from_millis(5);
    loop {
        let (tcp, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the origin cannot accept");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
                continue;
            }
        };
        pause = Duration::from_millis(5);
        // An answer is small: without this, its last packet may wait for an acknowledgement.
        let _ = tcp.set_nodelay(true);
        let origin = Arc::clone(&origin);
        tokio::spawn(async move {
            let used = Arc::new(AtomicBool::new(false));
            let service = service_fn(move |request| {
                let (origin, used) = (Arc::clone(&origin), Arc::clone(&used));
                async move { Ok::<_, Infallible>(origin.answer(request, &used).await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            // A client that leaves in the middle of something is its own business.
            let _ = builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(tcp), service).await;
        });
    }
}

/// What an origin remembers: the statuses it was told to answer with, and what it counted.
struct Origin {
    name: String,
    header: HeaderValue,
    health: AtomicU16,
    traffic: AtomicU16,
    /// Requests that were neither probes nor for the origin itself.
    requests: AtomicU64,
    /// Connections that carried at least one of them.
    connections: AtomicU64,
}

impl Origin {
    /// `used` is the connection's: whether it carried a request that counts.
    async fn answer(&self, mut request: Request<Incoming>, used: &AtomicBool) -> Response<Content> {
        let path = request.uri().path().to_owned();
        if path != "/healthz" && !path.starts_with("/_") {
            self.requests.fetch_add(1, Relaxed);
            if !used.swap(true, Relaxed) {
                self.connections.fetch_add(1, Relaxed);
            }
        }
        if !path.starts_with("/echo") {
            read_away(request.body_mut()).await;
        }
        let mut segments = path.trim_start_matches('/').splitn(2, '/');
        let (first, rest) = (segments.next().unwrap_or(""), segments.next().unwrap_or(""));
        let mut response = match (first, request.method()) {
            ("healthz", _) => status(self.health.load(Relaxed), "health\n"),
            ("_stats", _) => self.stats(),
            ("_control", &Method::POST) => self.control(request.uri().query().unwrap_or("")),
            _ if self.traffic.load(Relaxed) != 200 => status(self.traffic.load(Relaxed), "told to\n"),
            ("bytes", _) => match rest.parse() {
                Ok(count) => Response::new(Content::Zeroes(count)),
                Err(_) => status(400, "expected /bytes/N\n"),
            },
            ("slow", _) => match rest.parse() {
                Ok(ms) => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    self.report(&request)
                }
                Err(_) => status(400, "expected /slow/MILLISECONDS\n"),
            },
            ("status", _) => match rest.parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok()) {
                Some(code) => status(code.as_u16(), "asked to\n"),
                None => status(400, "expected /status/CODE\n"),
            },
            ("echo", &Method::POST | &Method::PUT) => Response::new(Content::Echo(request.into_body())),
            _ => self.report(&request),
        };
        response.headers_mut().insert("x-origin", self.header.clone());
        response
    }

    /// `?health=500&traffic=503`: what to answer from now on; 200 is as usual.
    fn control(&self, query: &str) -> Response<Content> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (switch, value) = match pair.split_once('=') {
                Some(("health", value)) => (&self.health, value),
                Some(("traffic", value)) => (&self.traffic, value),
                _ => return status(400, "expected ?health=STATUS or ?traffic=STATUS\n"),
            };
            match value.parse::<u16>() {
                Ok(code @ 200..=599) => switch.store(code, Relaxed),
                _ => return status(400, "expected a status from 200 to 599\n"),
            }
        }
        status(200, "ok\n")
    }

    /// What it counted.
    fn stats(&self) -> Response<Content> {
        let (requests, connections) = (self.requests.load(Relaxed), self.connections.load(Relaxed));
        json(&serde_json::json!({ "requests": requests, "connections": connections }))
    }

    /// Who answers, and what came.
    fn report(&self, request: &Request<Incoming>) -> Response<Content> {
        let mut headers = serde_json::Map::new();
        for (name, value) in request.headers() {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let lines = headers.entry(name.as_str()).or_insert_with(|| serde_json::Value::Array(Vec::new()));
            if let serde_json::Value::Array(lines) = lines {
                lines.push(value.into());
            }
        }
        json(&serde_json::json!({
            "region": self.name,
            "pid": std::process::id(),
            "method": request.method().as_str(),
            "target": request.uri().to_string(),
            "headers": headers,
        }))
    }
}

/// Reads a short body. Left where it is, it costs the connection, unless it came with its head.
async fn read_away(body: &mut Incoming) {
    if body.size_hint().exact().is_some_and(|bytes| bytes <= SHORT) {
        let all = async { while let Some(Ok(_)) = body.frame().await {} };
        let _ = tokio::time::timeout(SHORTLY, all).await;
    }
}

fn json(value: &serde_json::Value) -> Response<Content> {
    let mut response = Response::new(Content::from(format!("{value}\n")));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn status(code: u16, text: &'static str) -> Response<Content> {
    let mut response = Response::new(Content::from(text.to_owned()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// The body of an answer.
enum Content {
    Text(Full<Bytes>),
    /// As many zero bytes.
    Zeroes(u64),
    /// What came, sent back as it comes.
    Echo(Incoming),
}

impl From<String> for Content {
    fn from(text: String) -> Content {
        Content::Text(Full::new(text.into()))
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        static ZEROES: [u8; 16 << 10] = [0; 16 << 10];
        match self.get_mut() {
            Content::Text(text) => Pin::new(text).poll_frame(cx).map_err(|never| match never {}),
            Content::Zeroes(0) => Poll::Ready(None),
            Content::Zeroes(left) => {
                let now = (*left).min(ZEROES.len() as u64);
                *left -= now;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROES[..now as usize])))))
            }
            Content::Echo(incoming) => Pin::new(incoming).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Content::Text(text) => text.is_end_stream(),
            Content::Zeroes(left) => *left == 0,
            Content::Echo(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Content::Text(text) => text.size_hint(),
            Content::Zeroes(left) => SizeHint::with_exact(*left),
            Content::Echo(incoming) => incoming.size_hint(),
        }
    }
}
