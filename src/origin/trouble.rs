//! An origin that fails as it is told, in ways that no HTTP library lets a server fail.
//!
//! `POST /_control?trouble=WORD` sets what happens to every request from then on, `health=STATUS` what its health page says. Each
//! request that is executed is a line of the journal, `METHOD ID`, written before anything else happens, so that what was
//! executed is known even of a process that was killed. It reads HTTP/1.1 as a proxy in good order sends it, and nothing more.

use std::fs::File;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
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
            "garbage" => Trouble::Garbage,
            "drip" => Trouble::Drip,
            "half" => Trouble::Half,
            status => Trouble::Status(status.parse().ok().filter(|code| (200..600).contains(code)).ok_or(())?),
        })
    }
}

/// What is told and what was counted.
struct State {
    name: String,
    trouble: Mutex<Trouble>,
    health: AtomicU16,
    count: AtomicU64,
    journal: Option<File>,
}

impl State {
    fn trouble(&self) -> Trouble {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a request to be told something.
    fn control(&self, query: &str) -> Vec<u8> {
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match (key, value.parse(), value.parse()) {
                ("trouble", Ok(trouble), _) => *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble,
                ("health", _, Ok(status)) => self.health.store(status, Relaxed),
                _ => return self.answer(400, b"expected ?health=STATUS or ?trouble=WORD\n"),
            }
        }
        self.answer(200, b"ok\n")
    }

    fn answer(&self, status: u16, body: &[u8]) -> Vec<u8> {
        let name = &self.name;
        let head = format!("HTTP/1.1 {status} Told\r\nx-origin: {name}\r\ncontent-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    /// Notes that a request was executed.
    fn execute(&self, method: &str, id: &str) -> io::Result<()> {
        match &self.journal {
            // One write, so that lines of several connections do not mix.
            Some(file) => (&*file).write_all(format!("{method} {id}\n").as_bytes()),
            None => Ok(()),
        }
    }
}

/// Serves as origin `name` until the future is dropped.
pub(super) async fn serve(name: &str, listener: TcpListener, journal: Option<File>) -> io::Result<()> {
    let state = Arc::new(State {
        name: name.to_owned(),
        trouble: Mutex::new(Trouble::None),
        health: AtomicU16::new(200),
        count: AtomicU64::new(0),
        journal,
    });
    loop {
        let (stream, _) = listener.accept().await?;
        if state.trouble() == Trouble::Close {
            continue;
        }
        let state = Arc::clone(&state);
        // How a connection ends is what it is for.
        tokio::spawn(async move { drop(converse(stream, &state).await) });
    }
}

async fn converse(mut stream: TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    loop {
        let Some(length) = head(&mut stream, &mut input).await? else { return Ok(()) };
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
            _ => None,
        };
        if let Some(answer) = told {
            stream.write_all(&answer).await?;
            continue;
        }
        let trouble = state.trouble();
        let probe = target == "/healthz";
        if !probe && trouble != Trouble::Close {
            state.execute(method, field(&head, "x-id").unwrap_or("-"))?;
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
            Trouble::None | Trouble::Half => stream.write_all(&answer).await?,
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
