//! One case through one mover, over real sockets, and what came out of it.
//!
//! Nothing here waits for time to pass. A client that got its answer asks for `/probe` over the same connection: whether that is
//! answered says whether the connection was kept, and over which upstream connection it came says whether that one was.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use meridian::config::Engine;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::common::harness::{Proxy, config, until};
use crate::common::process::PATIENCE;
use crate::corpus::{Case, Side};
use crate::transcript::{self, Message};

const PROBE: &[u8] = b"GET /probe HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
const PROBED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nprobe";

/// What a websocket's client says; the upstream says it back.
const THROUGH: &[u8] = b"through the tunnel";

/// Small enough to be reached by a corpus that people read.
const LIMITS: &str = "[pop]\nname = \"lab\"\n[limits]\nuri = \"1KiB\"\nheaders = 30\nheader_bytes = \"4KiB\"\n";
const TRUSTED: &str = "[client_ip]\ntrusted = [\"127.0.0.0/8\"]\n";

/// One attempt, so that an answer which no other endpoint could replace is seen as it is.
const SERVICE: &str = "paths = [\"/\"]\nmax_body = \"1KiB\"\n[services.web.retry]\nattempts = 1\n";

/// Runs a case and returns its transcript.
pub async fn run(case: &Case, engine: Engine) -> String {
    let (address, upstream) = Upstream::start(case).await;
    let more = if case.has("trusted") { format!("{LIMITS}{TRUSTED}") } else { LIMITS.to_owned() };
    let proxy = Proxy::start_on(engine, &config(&more, SERVICE, &[("only", address)]), &[]).await;
    // The proxy itself cannot be looked at from two threads.
    let (at, pools) = (proxy.address, proxy.snapshot.pools.clone());
    let came = match case.side {
        Side::Requests => Client::new(case).ask(at, &case.parts).await,
        Side::Answers => Client::new(case).ask(at, &[request_for(case)]).await,
    };
    until("nothing is in flight", || {
        pools.iter().flat_map(|pool| pool.endpoints.iter()).all(|endpoint| endpoint.meter.in_flight() == 0)
    })
    .await;
    upstream.settle(address).await;
    transcript::write(&came, &upstream.seen())
}

/// What is over is to leave nothing behind: thousands of connections a minute that wait for their last packets would use up the ports of a
/// machine on which this test runs again and again.
fn vanish(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// The request whose answer a case is.
fn request_for(case: &Case) -> Vec<u8> {
    let method = ["HEAD", "POST", "OPTIONS"].into_iter().find(|method| case.has(method)).unwrap_or("GET");
    let version = if case.has("1.0") || case.has("1.0-keep") { "1.0" } else { "1.1" };
    let more = match () {
        () if case.has("1.0-keep") => "Connection: keep-alive\r\n",
        () if case.has("websocket") => "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        () if case.has("expect") => "Expect: 100-continue\r\n",
        () if case.has("te") => "TE: trailers\r\nConnection: TE\r\n",
        () => "",
    };
    let body = if method == "POST" { "Content-Length: 2\r\n\r\nhi" } else { "\r\n" };
    format!("{method} / HTTP/{version}\r\nHost: test\r\n{more}{body}").into_bytes()
}

/// How a connection ended for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The probe was answered.
    Kept,
    Closed,
    /// Looked at only where the client had sent nothing that might be unread: then it means something.
    Reset,
}

/// What a client got.
pub struct Came {
    pub bytes: Vec<u8>,
    pub to_head: bool,
    pub ending: Ending,
}

struct Client<'a> {
    case: &'a Case,
    to_head: bool,
    bytes: Vec<u8>,
    reset: bool,
}

impl<'a> Client<'a> {
    fn new(case: &'a Case) -> Client<'a> {
        let to_head = match case.side {
            Side::Requests => case.parts[0].starts_with(b"HEAD "),
            Side::Answers => case.has("HEAD"),
        };
        Client { case, to_head, bytes: Vec::new(), reset: false }
    }

    async fn ask(mut self, address: SocketAddr, parts: &[Vec<u8>]) -> Came {
        let mut stream = TcpStream::connect(address).await.expect("it accepts");
        let mut heads = 0;
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                heads += 1;
                self.read_until(&mut stream, |bytes| transcript::heads(bytes) >= heads).await;
                if transcript::has_final_head(&self.bytes) {
                    break;
                }
            }
            // A side that refuses closes before it has read everything.
            let _ = stream.write_all(part).await;
        }
        let mut tunnel = false;
        if self.case.has("websocket") {
            self.read_until(&mut stream, transcript::has_final_head).await;
            tunnel = self.bytes.starts_with(b"HTTP/1.1 101");
        }
        if tunnel {
            let _ = stream.write_all(THROUGH).await;
            self.read_until(&mut stream, |bytes| bytes.ends_with(THROUGH)).await;
        }
        let mut ending = Ending::Closed;
        if self.case.has("leave") || tunnel {
            let _ = stream.shutdown().await;
        } else if !self.case.has("end") {
            let to_head = self.to_head;
            let ended = !self.read_until(&mut stream, |bytes| transcript::answer_ends(bytes, to_head)).await;
            if !ended {
                let before = self.bytes.len();
                let _ = stream.write_all(PROBE).await;
                self.read_until(&mut stream, |_| false).await;
                self.reset = false;
                if self.bytes[before..].ends_with(b"probe") {
                    ending = Ending::Kept;
                    let start = transcript::last_answer(&self.bytes);
                    self.bytes.truncate(start.max(before));
                }
            }
        }
        if ending != Ending::Kept {
            self.read_until(&mut stream, |_| false).await;
            // Bytes that nobody read make a close a reset, which then says nothing.
            if self.reset && self.case.side == Side::Answers {
                ending = Ending::Reset;
            }
        }
        vanish(&stream);
        Came { bytes: self.bytes, to_head: self.to_head, ending }
    }

    /// Reads until what came meets the condition (true) or the connection ends (false).
    async fn read_until(&mut self, stream: &mut TcpStream, enough: impl Fn(&[u8]) -> bool) -> bool {
        while !enough(&self.bytes) {
            let mut piece = [0; 4096];
            let read = timeout(PATIENCE, stream.read(&mut piece)).await;
            match read.unwrap_or_else(|_| {
                panic!("{}: silence after {:?}", self.case.name, String::from_utf8_lossy(&self.bytes))
            }) {
                Ok(0) => return false,
                Ok(count) => self.bytes.extend_from_slice(&piece[..count]),
                Err(_) => {
                    self.reset = true;
                    return false;
                }
            }
        }
        true
    }
}

/// A request as it came to the upstream.
#[derive(Clone, Debug)]
pub struct Seen {
    pub bytes: Vec<u8>,
    /// It came to its end.
    pub whole: bool,
    /// Which connection, in the order in which they were made.
    pub connection: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing came yet.
    New,
    /// Between requests.
    Idle,
    Busy,
    Closed,
}

#[derive(Default)]
struct Inner {
    seen: Vec<Seen>,
    connections: Vec<(SocketAddr, State)>,
}

/// The upstream of a case.
#[derive(Clone)]
struct Upstream {
    case: Arc<Case>,
    inner: Arc<Mutex<Inner>>,
}

impl Upstream {
    async fn start(case: &Case) -> (SocketAddr, Upstream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("it can listen");
        let address = listener.local_addr().expect("an address");
        let upstream = Upstream { case: Arc::new(case.clone()), inner: Arc::default() };
        let accepting = upstream.clone();
        tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let connection = {
                    let mut inner = accepting.inner.lock().unwrap();
                    inner.connections.push((from, State::New));
                    inner.connections.len() - 1
                };
                let serving = accepting.clone();
                tokio::spawn(async move {
                    serving.serve(stream, connection).await;
                    serving.enter(connection, State::Closed);
                });
            }
        });
        (address, upstream)
    }

    fn enter(&self, connection: usize, state: State) {
        self.inner.lock().unwrap().connections[connection].1 = state;
    }

    fn seen(&self) -> Vec<Seen> {
        self.inner.lock().unwrap().seen.clone()
    }

    /// Waits until all that was sent here was read: connections are accepted in order, so that one of ours is the last.
    async fn settle(&self, address: SocketAddr) {
        let last = TcpStream::connect(address).await.expect("it accepts");
        let from = last.local_addr().unwrap();
        vanish(&last);
        drop(last);
        until("the upstream has read everything", || {
            let inner = self.inner.lock().unwrap();
            inner.connections.iter().any(|(other, _)| *other == from)
                && inner.connections.iter().all(|(_, state)| matches!(state, State::Idle | State::Closed))
        })
        .await;
    }

    async fn serve(&self, mut stream: TcpStream, connection: usize) {
        loop {
            let mut bytes = Vec::new();
            let mut continued = false;
            let whole = loop {
                match Message::request(&bytes) {
                    Message::Whole(length) if length == bytes.len() => break true,
                    Message::Whole(_) => panic!("{}: more than a request at once", self.case.name),
                    Message::Head if !continued && self.answers_itself() && transcript::expects(&bytes) => {
                        continued = true;
                        let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
                    }
                    // An answer may come before the body that it is an answer to.
                    Message::Head if self.case.has("early") => break true,
                    _ => {}
                }
                // One byte more at most than the head, so that what follows a request stays where it is.
                match stream.read_u8().await {
                    Ok(byte) => bytes.push(byte),
                    Err(_) => break false,
                }
                if bytes.len() == 1 {
                    self.enter(connection, State::Busy);
                }
            };
            if !whole {
                vanish(&stream);
            }
            if !whole && bytes.is_empty() {
                return;
            }
            let (is_probe, to_head) = (bytes.starts_with(b"GET /probe "), bytes.starts_with(b"HEAD "));
            let websocket = transcript::is_websocket(&bytes);
            self.inner.lock().unwrap().seen.push(Seen { bytes, whole, connection });
            if !whole {
                return;
            }
            let answer: &[u8] = match () {
                () if is_probe => PROBED,
                () if !self.answers_itself() => &self.case.parts[0],
                () if websocket => {
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
                }
                () if to_head => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
                () => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            if stream.write_all(answer).await.is_err() {
                return;
            }
            if websocket && answer.starts_with(b"HTTP/1.1 101") {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                return;
            }
            if self.case.has("early") && !is_probe {
                // The body that was not waited for is nobody's next request.
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                return;
            }
            if self.case.has("close") && !is_probe {
                return;
            }
            self.enter(connection, State::Idle);
        }
    }

    /// The case is a request: what answers it is of no interest.
    fn answers_itself(&self) -> bool {
        self.case.side == Side::Requests
    }
}
