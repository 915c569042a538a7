//! An origin that fails as it is told, in ways that no HTTP library lets a server fail.
//!
//! `POST /_control?trouble=WORD` sets what happens to every request from then on, `health=STATUS` what its health page says, and
//! `service=MILLISECONDS&capacity=N` that it works on N requests at a time, so long on each: what comes beyond that waits its turn, as at
//! any server. With `grow=SECONDS` before `capacity` it begins cold, with a tenth of that, and has all of it when they are over.
//!
//! Each request that is executed is a line of the journal, `METHOD ID MILLISECONDS` (Unix time), written before anything else happens, so
//! that what was executed is known even of a process that was killed. `/_stats` tells how many there were and how many at once. It reads
//! HTTP/1.1 as a proxy in good order sends it, and nothing more.

#![expect(clippy::disallowed_methods, reason = "a shell: its journal says when")]

use std::fs::File;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

/// The longest head, and the longest body, that it reads.
const MOST: usize = 1 << 20;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// It is answered.
    None,
    /// It is executed, and the connection reset.
    Executed,
    /// Its answer begins, and the connection is reset in the middle of the body.
    Body,
    /// The connection is closed as soon as it is accepted, and at the next request.
    Close,
    /// Nobody listens any more, and what is idle is closed; there is no way back.
    Refuse,
    /// What comes back is no HTTP.
    Garbage,
    /// A byte of the answer comes each second.
    Drip,
    /// Every other one gets a 503.
    Half,
    /// It gets this status.
    Status(u16),
}

impl FromStr for Trouble {
    type Err = ();

    fn from_str(word: &str) -> Result<Trouble, ()> {
        Ok(match word {
            "none" => Trouble::None,
            "executed" => Trouble::Executed,
            "body" => Trouble::Body,
            "close" => Trouble::Close,
            "refuse" => Trouble::Refuse,
            "garbage" => Trouble::Garbage,
            "drip" => Trouble::Drip,
            "half" => Trouble::Half,
            status => Trouble::Status(status.parse().ok().filter(|code| (200..600).contains(code)).ok_or(())?),
        })
    }
}

/// What it can do at a time.
struct Capacity {
    slots: Semaphore,
    service: Duration,
}

impl Capacity {
    /// As many slots, or a tenth of them now and one more at a time until all are there after `grow`.
    fn of(slots: usize, service: Duration, grow: Duration) -> Arc<Capacity> {
        let first = if grow.is_zero() { slots } else { slots.div_ceil(10) };
        let capacity = Arc::new(Capacity { slots: Semaphore::new(first), service });
        let (left, growing) = (slots - first, Arc::clone(&capacity));
        tokio::spawn(async move {
            for _ in 0..left {
                sleep(grow / left as u32).await;
                growing.slots.add_permits(1);
            }
        });
        capacity
    }

    /// Waits for a slot and works.
    async fn work(&self) {
        let _slot = self.slots.acquire().await;
        sleep(self.service).await;
    }
}

/// The most slots: what is more than that is as good as no bound.
const SLOTS: usize = 10_000;

/// What is told and what was counted.
struct State {
    name: String,
    trouble: Mutex<Trouble>,
    health: AtomicU16,
    capacity: Mutex<Option<Arc<Capacity>>>,
    refuses: watch::Sender<bool>,
    /// For every other one.
    count: AtomicU64,
    executed: AtomicU64,
    in_flight: AtomicU64,
    /// The most in flight since `peak=0` was told.
    peak: AtomicU64,
    journal: Option<File>,
}

/// A request that is here, counted as long as it is.
struct Here<'s>(&'s State);

impl<'s> Here<'s> {
    fn new(state: &'s State) -> Here<'s> {
        let now = state.in_flight.fetch_add(1, Relaxed) + 1;
        state.peak.fetch_max(now, Relaxed);
        Here(state)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl State {
    fn trouble(&self) -> Trouble {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn capacity(&self) -> Option<Arc<Capacity>> {
        self.capacity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The answer to a request to be told something.
    fn control(&self, query: &str) -> Vec<u8> {
        let (mut service, mut grow) = (Duration::ZERO, Duration::ZERO);
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let number = value.parse::<u32>().ok();
            match (key, value.parse(), number) {
                ("trouble", Ok(trouble), _) => {
                    *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
                    self.refuses.send_if_modified(|refuses| {
                        *refuses |= trouble == Trouble::Refuse;
                        *refuses
                    });
                }
                ("health", _, Some(status @ 200..=599)) => self.health.store(status as u16, Relaxed),
                ("service", _, Some(ms)) => service = Duration::from_millis(ms.into()),
                ("grow", _, Some(seconds)) => grow = Duration::from_secs(seconds.into()),
                ("capacity", _, Some(slots)) if (1..=SLOTS).contains(&(slots as usize)) => {
                    let capacity = Capacity::of(slots as usize, service, grow);
                    *self.capacity.lock().unwrap_or_else(PoisonError::into_inner) = Some(capacity);
                }
                ("peak", _, Some(0)) => self.peak.store(self.in_flight.load(Relaxed), Relaxed),
                _ => {
                    let expected =
                        b"expected ?health=STATUS, ?trouble=WORD, ?service=MS&grow=SECONDS&capacity=N or ?peak=0\n";
                    return self.answer(400, expected);
                }
            }
        }
        self.answer(200, b"ok\n")
    }

    /// What it counted.
    fn stats(&self) -> Vec<u8> {
        let of = |count: &AtomicU64| count.load(Relaxed);
        let (requests, in_flight, peak) = (of(&self.executed), of(&self.in_flight), of(&self.peak));
        let stats = serde_json::json!({ "requests": requests, "in_flight": in_flight, "peak": peak });
        self.answer(200, format!("{stats}\n").as_bytes())
    }

    fn answer(&self, status: u16, body: &[u8]) -> Vec<u8> {
        let name = &self.name;
        let head = format!("HTTP/1.1 {status} Told\r\nx-origin: {name}\r\ncontent-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    /// Notes that a request was executed.
    fn execute(&self, method: &str, id: &str) -> io::Result<()> {
        self.executed.fetch_add(1, Relaxed);
        let Some(file) = &self.journal else { return Ok(()) };
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // One write, so that lines of several connections do not mix.
        (&*file).write_all(format!("{method} {id} {}\n", since.as_millis()).as_bytes())
    }
}

/// Serves as origin `name` until the future is dropped.
pub(super) async fn serve(name: &str, listener: TcpListener, journal: Option<File>) -> io::Result<()> {
    let state = Arc::new(State {
        name: name.to_owned(),
        trouble: Mutex::new(Trouble::None),
        health: AtomicU16::new(200),
        capacity: Mutex::new(None),
        refuses: watch::Sender::new(false),
        count: AtomicU64::new(0),
        executed: AtomicU64::new(0),
        in_flight: AtomicU64::new(0),
        peak: AtomicU64::new(0),
        journal,
    });
    let mut refuses = state.refuses.subscribe();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = refuses.wait_for(|refuses| *refuses) => break,
        };
        if state.trouble() == Trouble::Close {
            continue;
        }
        let state = Arc::clone(&state);
        // How a connection ends is what it is for.
        tokio::spawn(async move { drop(converse(stream, &state).await) });
    }
    drop(listener);
    std::future::pending().await
}

async fn converse(mut stream: TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    let mut refuses = state.refuses.subscribe();
    loop {
        let length = tokio::select! {
            length = head(&mut stream, &mut input) => length?,
            _ = refuses.wait_for(|refuses| *refuses) => None,
        };
        let Some(length) = length else { return Ok(()) };
        let head: Vec<u8> = input.drain(..length).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let body = field(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0).min(MOST);
        while input.len() < body {
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
        }
        input.drain(..body);
        let told = match target.split_once('?') {
            Some(("/_control", query)) => Some(state.control(query)),
            _ if target == "/_stats" => Some(state.stats()),
            _ => None,
        };
        if let Some(answer) = told {
            stream.write_all(&answer).await?;
            continue;
        }
        let trouble = state.trouble();
        let probe = target == "/healthz";
        let mut _here = None;
        if !probe && trouble != Trouble::Close {
            state.execute(method, field(&head, "x-id").unwrap_or("-"))?;
            _here = Some(Here::new(state));
            if let Some(capacity) = state.capacity() {
                capacity.work().await;
            }
        }
        let answer = match probe {
            true => state.answer(state.health.load(Relaxed), b"health\n"),
            false => state.answer(200, format!("{{\"region\":\"{}\"}}\n", state.name).as_bytes()),
        };
        match trouble {
            Trouble::Close => return Ok(()),
            Trouble::Garbage => {
                stream.write_all(b"\x16\x03\x01 SSH-2.0 ??\0\r\n\r\n").await?;
                return Ok(());
            }
            Trouble::Drip => {
                for byte in &answer {
                    stream.write_all(&[*byte]).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            // These do not touch the health page: what fails is what is behind it.
            _ if probe => stream.write_all(&answer).await?,
            Trouble::Executed => return reset(&stream),
            Trouble::Body => {
                let head = format!("HTTP/1.1 200 OK\r\nx-origin: {}\r\ncontent-length: 100000\r\n\r\n", state.name);
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(&[b'.'; 1000]).await?;
                // The proxy is to have it before the reset overtakes it.
                sleep(Duration::from_millis(5)).await;
                return reset(&stream);
            }
            Trouble::Half if state.count.fetch_add(1, Relaxed).is_multiple_of(2) => {
                stream.write_all(&state.answer(503, b"told to\n")).await?;
            }
            Trouble::Status(status) => stream.write_all(&state.answer(status, b"told to\n")).await?,
            Trouble::None | Trouble::Half | Trouble::Refuse => stream.write_all(&answer).await?,
        }
    }
}

/// Reads until a head is at the front; its length, or `None` at the end of the connection.
async fn head(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(at) = memchr::memmem::find(input, b"\r\n\r\n") {
            return Ok(Some(at + 4));
        }
        if input.len() > MOST || stream.read_buf(input).await? == 0 {
            return Ok(None);
        }
    }
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// The connection is reset when it is dropped.
fn reset(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}
