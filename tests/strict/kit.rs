//! What these tests share: a client and an upstream that say exactly what a test tells them, byte by byte.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::common::harness::{Proxy, Script, config, scripted};
use super::common::process::PATIENCE;

pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
pub const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
pub const POST: &str = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi";

/// One side of a connection, with every wait bounded.
pub struct Peer(pub TcpStream);

impl Peer {
    pub async fn connect(address: SocketAddr) -> Peer {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Peer(stream)
    }

    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let said = self.0.write_all(bytes.as_ref());
        tokio::time::timeout(PATIENCE, said).await.expect("it is taken in time").unwrap();
    }

    /// Says it, whether or not the other side still listens.
    pub async fn try_say(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        tokio::time::timeout(PATIENCE, self.0.write_all(bytes.as_ref())).await.expect("it is taken in time")
    }

    pub async fn end(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// Closes with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Reads to the end of a head. Empty when the connection ends before.
    pub async fn head(&mut self) -> String {
        let mut head = Vec::new();
        let reading = async {
            while !head.ends_with(b"\r\n\r\n") {
                match self.0.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("a head in time");
        String::from_utf8_lossy(&head).into_owned()
    }

    pub async fn exactly(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        let reading = self.0.read_exact(&mut bytes);
        tokio::time::timeout(PATIENCE, reading).await.expect("bytes in time").unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// An answer with a Content-Length: its head and body.
    pub async fn answer(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = field(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let body = self.exactly(length).await;
        (head, body)
    }

    /// All that comes before the end, and whether that is a reset.
    pub async fn rest(&mut self) -> (String, bool) {
        let (mut bytes, mut reset) = (Vec::new(), false);
        let reading = async {
            let mut piece = [0; 4096];
            loop {
                match self.0.read(&mut piece).await {
                    Ok(0) => return,
                    Ok(count) => bytes.extend_from_slice(&piece[..count]),
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                        reset = true;
                        return;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("an end in time");
        (String::from_utf8_lossy(&bytes).into_owned(), reset)
    }

    /// Nothing comes for a while, nor does the end.
    pub async fn hears_nothing(&mut self) {
        let mut byte = [0];
        let heard = tokio::time::timeout(Duration::from_millis(150), self.0.read(&mut byte)).await;
        assert!(heard.is_err(), "{heard:?} {byte:?}");
    }
}

/// Says it on a connection of its own and returns all that comes back, and whether a reset ended it.
pub async fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> (String, bool) {
    let mut client = Peer::connect(address).await;
    client.say(request).await;
    client.rest().await
}

/// The value of a field in a head, `None` unless there is exactly one.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = fields(head, name);
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value),
        _ => None,
    }
}

pub fn fields<'a>(head: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let head = head.split("\r\n\r\n").next().unwrap_or_default();
    let lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    lines.filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// An upstream that remembers every byte it got, and answers [`OK`] to whatever looks like a request without a body.
pub async fn witness() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let (address, _) = scripted(move |mut stream, _| {
        let heard = Arc::clone(&hears);
        async move {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut piece).await {
                heard.lock().unwrap().extend_from_slice(&piece[..count]);
                let text = String::from_utf8_lossy(&piece[..count]).into_owned();
                let has_body = ["content-length", "transfer-encoding"].iter().any(|name| field(&text, name).is_some());
                if text.ends_with("\r\n\r\n") && !has_body && stream.write_all(OK.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, heard)
}

/// An upstream that on its first connection does as `serve` says, and on later ones answers [`OK`] to requests without a body.
pub async fn at_first<F, T>(serve: F) -> (SocketAddr, Script)
where
    F: Fn(Peer, Script) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let first = Arc::new(std::sync::atomic::AtomicBool::new(true));
    scripted(move |stream, script| {
        let is_first = first.swap(false, std::sync::atomic::Ordering::SeqCst);
        let serve = serve.clone();
        async move {
            stream.set_nodelay(true).unwrap();
            let mut peer = Peer(stream);
            if is_first {
                return serve(peer, script).await;
            }
            while script.request(&mut peer.0).await.is_some() {
                peer.say(OK).await;
            }
        }
    })
    .await
}

/// An upstream that does the same with every connection.
pub async fn always<F, T>(serve: F) -> (SocketAddr, Script)
where
    F: Fn(Peer, Script) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    scripted(move |stream, script| {
        stream.set_nodelay(true).unwrap();
        serve(Peer(stream), script)
    })
    .await
}

/// A proxy before one upstream.
pub async fn before(upstream: SocketAddr, more: &str, service: &str) -> Proxy {
    Proxy::start(&config(more, service, &[("only", upstream)]), &[]).await
}

/// That many requests were counted as this engine's, the last line of the log has this outcome and status, and nothing is left in flight.
pub async fn ended(proxy: &Proxy, count: usize, outcome: &str, status: u16) {
    let lines = proxy.lines(count).await;
    let line = &lines[count - 1];
    assert_eq!((&line["outcome"], &line["status"]), (&outcome.into(), &status.into()), "{line}");
    assert_eq!(line["mover"], "native", "{line}");
    let page = proxy.metrics.render(SystemTime::now());
    assert!(page.contains("meridian_requests_by_mover_total{mover=\"native\"}"), "{page}");
    let unanswered = format!("meridian_requests_unanswered_total{{outcome=\"{outcome}\"");
    assert_eq!(page.contains(&unanswered), outcome != "answered", "{page}");
    assert_eq!(proxy.in_flight(), 0);
}
