//! The load generator of `make compare`: one thread, and every answer is checked.
//!
//! * Closed loop: each connection sends its next request when its answer is there. Shows what a proxy can do at most.
//! * Open loop (`--rate`): requests are due at fixed moments whatever the proxy does, and latency counts from the moment a request was
//!   due, not from when there was a connection free to send it. A proxy that stalls is charged for all who had to wait.
//! * `--close`: a connection for each request, latency counts from the attempt to connect. They come from many loopback addresses, for
//!   one alone runs out of ports while closed connections linger.
//!
//! Each request carries a client's address in `X-Forwarded-For`; the answer must be a 200 of the right length from the region that
//! `--clients` names for that address. Sending ends when the time is over and then all answers are awaited, so that the
//! counts are exact: what the proxy served is what is counted here. The result is one JSON object.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use meridian_compare_kit::{Interest, Poller};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

/// How long answers are awaited after the end.
const GRACE: Duration = Duration::from_secs(3);

/// After so many errors a run says nothing any more.
const TOO_MANY: u64 = 1_000;

/// Source addresses for `--close`: 127.0.1.1 and up.
const SOURCES: u8 = 240;

/// A load on an HTTP proxy, on loopback.
#[derive(Parser)]
struct Arguments {
    /// The proxy.
    #[arg(long)]
    target: SocketAddr,
    /// Lines `ADDRESS REGION`: a client, and the region (0 to 9) that must answer it.
    #[arg(long)]
    clients: PathBuf,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value = "/")]
    path: String,
    /// The length of a right answer.
    #[arg(long, default_value_t = 13)]
    body: usize,
    /// Requests per second, open loop.
    #[arg(long)]
    rate: Option<f64>,
    /// A connection for each request.
    #[arg(long, conflicts_with = "rate")]
    close: bool,
    /// Keeps the connections open after the result is printed, until standard input ends.
    #[arg(long)]
    hold: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Figures {
    /// Complete answers, right or of the wrong region.
    answered: u64,
    per_second: f64,
    /// Requests without a right answer: refused, cut off, another status or length, none in time.
    errors: u64,
    /// What was wrong with the first of them.
    first_error: Option<String>,
    /// Answers of another region than the client's.
    misrouted: u64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

/// A request, ready to send.
struct Question {
    bytes: Vec<u8>,
    region: u8,
}

enum State {
    /// No request is due on it.
    Idle,
    /// The connection is being made, for `--close`.
    Connecting,
    /// A request is sent, the answer's head is not complete.
    Head(Vec<u8>),
    /// So many bytes of the body are to come.
    Body(usize),
}

struct Connection {
    /// None: given up, the end is near.
    stream: Option<TcpStream>,
    state: State,
    /// When the request it works on was due.
    due: Instant,
    /// Its right answer.
    region: u8,
}

struct Load {
    arguments: Arguments,
    questions: Vec<Question>,
    next_question: usize,
    next_source: u8,
    poller: Poller,
    connections: Vec<Connection>,
    /// Connections without a request, and requests without a connection: for the open loop.
    idle: VecDeque<usize>,
    waiting: VecDeque<Instant>,
    in_flight: usize,
    begin: Instant,
    end: Instant,
    last_answer: Instant,
    latencies: Histogram<u64>,
    answered: u64,
    misrouted: u64,
    errors: u64,
    first_error: Option<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> io::Result<()> {
    // By default the kernel may wake a sleeper 50 microseconds late.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let hold = arguments.hold;
    let mut load = Load::new(arguments)?;
    load.run()?;
    println!("{}", serde_json::to_string(&load.figures())?);
    if hold {
        io::copy(&mut io::stdin(), &mut io::sink())?;
    }
    Ok(())
}

impl Load {
    /// With all connections made.
    fn new(arguments: Arguments) -> io::Result<Load> {
        let now = Instant::now();
        let mut load = Load {
            questions: questions(&arguments.clients, &arguments.path, arguments.close)?,
            next_question: 0,
            next_source: 0,
            poller: Poller::new()?,
            connections: Vec::new(),
            idle: (0..arguments.connections).collect(),
            waiting: VecDeque::new(),
            in_flight: 0,
            begin: now,
            end: now,
            last_answer: now,
            latencies: Histogram::new_with_max(60_000_000_000, 3).map_err(io::Error::other)?,
            answered: 0,
            misrouted: 0,
            errors: 0,
            first_error: None,
            arguments,
        };
        for number in 0..load.arguments.connections {
            let stream = Some(load.connect(number, Interest::Read)?);
            load.connections.push(Connection { stream, state: State::Idle, due: now, region: 0 });
        }
        Ok(load)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        let mut scratch = vec![0; 256 << 10];
        self.begin = Instant::now();
        self.end = self.begin + Duration::from_secs_f64(self.arguments.seconds);
        let mut offered = 0_u64;
        if self.arguments.rate.is_none() {
            while let Some(number) = self.idle.pop_front() {
                self.send(number, Instant::now())?;
            }
        }
        loop {
            let now = Instant::now();
            let mut wake = if now < self.end { self.end } else { self.end + GRACE };
            if let Some(rate) = self.arguments.rate {
                // From the count, not from the request before: such a schedule never drifts.
                let due = |offered: u64| self.begin + Duration::from_secs_f64(offered as f64 / rate);
                while due(offered) <= now && due(offered) < self.end {
                    self.waiting.push_back(due(offered));
                    offered += 1;
                }
                if due(offered) < self.end {
                    wake = due(offered);
                }
                self.send_waiting()?;
            }
            let over = now >= self.end && self.in_flight == 0 && self.waiting.is_empty();
            if over || now >= self.end + GRACE {
                break;
            }
            self.poller.wait(&mut ready, Some(wake.saturating_duration_since(Instant::now())))?;
            for &number in &ready {
                self.go_on(number, &mut scratch)?;
            }
        }
        for _ in 0..self.in_flight + self.waiting.len() {
            self.error("no answer in time".to_owned())?;
        }
        Ok(())
    }

    /// Gives the requests that wait to connections that are free, those first that have been free for longest.
    fn send_waiting(&mut self) -> io::Result<()> {
        while let (Some(&due), Some(&number)) = (self.waiting.front(), self.idle.front()) {
            self.waiting.pop_front();
            self.idle.pop_front();
            self.send(number, due)?;
        }
        Ok(())
    }

    fn send(&mut self, number: usize, due: Instant) -> io::Result<()> {
        let question = &self.questions[self.next_question];
        self.next_question = (self.next_question + 1) % self.questions.len();
        let connection = &mut self.connections[number];
        connection.due = due;
        connection.region = question.region;
        connection.state = State::Head(Vec::new());
        self.in_flight += 1;
        let Some(stream) = &mut connection.stream else { return Ok(()) };
        // Nothing else is under way on this connection, so its buffer has room for all of it.
        match stream.write(&question.bytes) {
            Ok(n) if n == question.bytes.len() => Ok(()),
            Ok(_) => self.failed(number, "a request was written in part".to_owned()),
            Err(error) => self.failed(number, format!("sending: {error}")),
        }
    }

    /// Something happened to a connection.
    fn go_on(&mut self, number: usize, scratch: &mut [u8]) -> io::Result<()> {
        let connection = &mut self.connections[number];
        let Some(stream) = &mut connection.stream else { return Ok(()) };
        if let State::Connecting = connection.state {
            if let Some(error) = stream.take_error()? {
                return self.failed(number, format!("connecting: {error}"));
            }
            self.poller.change(stream, number, Interest::Read)?;
            self.in_flight -= 1;
            let due = connection.due;
            return self.send(number, due);
        }
        let bytes = match stream.read(scratch) {
            Ok(0) => return self.failed(number, "the proxy closed the connection".to_owned()),
            Ok(n) => &scratch[..n],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return self.failed(number, format!("receiving: {error}")),
        };
        let left = match &mut connection.state {
            State::Head(head) => {
                let answer = if head.is_empty() {
                    Answer::read(bytes)
                } else {
                    head.extend_from_slice(bytes);
                    Answer::read(head)
                };
                match answer {
                    Ok(Some(answer)) if answer.status == 200 && answer.body == self.arguments.body => {
                        if answer.region != connection.region {
                            self.misrouted += 1;
                        }
                        answer.body.checked_sub(answer.have)
                    }
                    Ok(Some(answer)) => {
                        let what = format!("status {} with {} bytes", answer.status, answer.body);
                        return self.failed(number, what);
                    }
                    Ok(None) => {
                        if head.is_empty() {
                            head.extend_from_slice(bytes);
                        }
                        return Ok(());
                    }
                    Err(what) => return self.failed(number, what),
                }
            }
            State::Body(left) => left.checked_sub(bytes.len()),
            State::Idle | State::Connecting => None,
        };
        match left {
            Some(0) => self.done(number),
            Some(left) => {
                connection.state = State::Body(left);
                Ok(())
            }
            None => self.failed(number, "bytes that belong to no answer".to_owned()),
        }
    }

    /// The answer is complete.
    fn done(&mut self, number: usize) -> io::Result<()> {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.connections[number].due);
        self.latencies.saturating_record(took.as_nanos() as u64);
        self.answered += 1;
        self.last_answer = now;
        self.in_flight -= 1;
        self.next(number, self.arguments.close)
    }

    /// The connection is of no use any more, and its request, if there was one, failed.
    fn failed(&mut self, number: usize, what: String) -> io::Result<()> {
        if let State::Idle = self.connections[number].state {
            self.idle.retain(|&idle| idle != number);
        } else {
            self.in_flight -= 1;
        }
        self.error(what)?;
        self.next(number, true)
    }

    fn error(&mut self, what: String) -> io::Result<()> {
        self.errors += 1;
        let first = self.first_error.get_or_insert(what);
        if self.errors >= TOO_MANY {
            Err(io::Error::other(format!("too many errors; the first: {first}")))
        } else {
            Ok(())
        }
    }

    /// A connection whose request is over turns to the next one, on a new connection if `anew`.
    fn next(&mut self, number: usize, anew: bool) -> io::Result<()> {
        let now = Instant::now();
        let over = now >= self.end;
        self.connections[number].state = State::Idle;
        if anew {
            self.connections[number].stream = None;
            if over {
                return Ok(());
            }
            let at_once = self.arguments.close;
            let stream = self.connect(number, if at_once { Interest::Write } else { Interest::Read })?;
            self.connections[number].stream = Some(stream);
            if at_once {
                self.connections[number].due = now;
                self.connections[number].state = State::Connecting;
                self.in_flight += 1;
                return Ok(());
            }
        }
        if self.arguments.rate.is_some() {
            self.idle.push_back(number);
            self.send_waiting()
        } else if over {
            Ok(())
        } else {
            self.send(number, now)
        }
    }

    /// A connection, and with `Write` one that is still in the making.
    fn connect(&mut self, number: usize, interest: Interest) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_tcp_nodelay(true)?;
        if self.arguments.close {
            self.next_source = self.next_source % SOURCES + 1;
            socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 1, self.next_source), 0)).into())?;
        }
        socket.set_nonblocking(interest == Interest::Write)?;
        match socket.connect(&self.arguments.target.into()) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            made => made?,
        }
        socket.set_nonblocking(true)?;
        self.poller.add(&socket, number, interest)?;
        Ok(socket.into())
    }

    fn figures(&self) -> Figures {
        let micros = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        let seconds = self.last_answer.saturating_duration_since(self.begin).as_secs_f64();
        Figures {
            answered: self.answered,
            per_second: if seconds > 0.0 { self.answered as f64 / seconds } else { 0.0 },
            errors: self.errors,
            first_error: self.first_error.clone(),
            misrouted: self.misrouted,
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            max_us: self.latencies.max() as f64 / 1000.0,
        }
    }
}

/// One request for each client.
fn questions(clients: &Path, path: &str, close: bool) -> io::Result<Vec<Question>> {
    let wrong = |line: &str| io::Error::new(ErrorKind::InvalidData, format!("not `ADDRESS REGION`: {line:?}"));
    let last = if close { "Connection: close\r\n" } else { "" };
    let mut questions = Vec::new();
    for line in std::fs::read_to_string(clients)?.lines() {
        let (address, region) = line.split_once(' ').ok_or_else(|| wrong(line))?;
        let region = region.parse().ok().filter(|r| *r < 10).ok_or_else(|| wrong(line))?;
        let bytes = format!(
            "GET {path} HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: load\r\nAccept: */*\r\nX-Forwarded-For: {address}\r\n{last}\r\n"
        );
        questions.push(Question { bytes: bytes.into_bytes(), region });
    }
    if questions.is_empty() { Err(wrong("")) } else { Ok(questions) }
}

/// What there is to know of an answer once its head is complete.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    region: u8,
    body: usize,
    /// Bytes of the body that came with the head.
    have: usize,
}

impl Answer {
    /// The answer that `bytes` begins with, if its head is complete.
    fn read(bytes: &[u8]) -> Result<Option<Answer>, String> {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("an answer that is not HTTP: {error}")),
        };
        let (mut region, mut body) = (u8::MAX, None);
        for field in response.headers.iter() {
            if field.name.eq_ignore_ascii_case("x-region") {
                region = number(field.value).and_then(|n| n.try_into().ok()).unwrap_or(u8::MAX);
            } else if field.name.eq_ignore_ascii_case("content-length") {
                body = number(field.value);
            }
        }
        let body = body.ok_or("an answer without Content-Length")?;
        Ok(Some(Answer { status: response.code.unwrap_or(0), region, body, have: bytes.len() - length }))
    }
}

fn number(value: &[u8]) -> Option<usize> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nX-Region: 2\r\nContent-Length: 13\r\n\r\nhello";

    #[test]
    fn an_answer_is_read_once_its_head_is_complete() {
        assert_eq!(Answer::read(&HEAD[..30]), Ok(None));
        let answer = Answer { status: 200, region: 2, body: 13, have: 5 };
        assert_eq!(Answer::read(HEAD), Ok(Some(answer)));
    }

    #[test]
    fn an_answer_of_no_region_is_of_no_right_one() {
        let answer = Answer::read(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap().unwrap();
        assert_eq!(answer.region, u8::MAX);
        assert!(Answer::read(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(Answer::read(b"hello\r\n\r\n").is_err());
    }
}
