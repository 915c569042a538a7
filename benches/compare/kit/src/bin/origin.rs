//! The origins of `make compare`: as many regions as asked for, a port each, in one thread.
//!
//! It answers a GET of `/b/N` with N bytes and any other with 13, and says in `x-region` which region answered, so that the load
//! generator can check where a request went. It knows no more of HTTP than proxies send to it here: requests without a body, one at
//! a time, on connections that stay. Prints `{"ports":[…]}` once it listens.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::rc::Rc;

use clap::Parser;
use meridian_compare_kit::{Interest, Poller};
use slab::Slab;

/// The longest body that is answered.
const LONGEST: usize = 16 << 20;

/// Origins for a comparison, on loopback.
#[derive(Parser)]
struct Arguments {
    /// Regions, a port each.
    #[arg(long, default_value_t = 3)]
    regions: usize,
}

struct Connection {
    stream: TcpStream,
    region: usize,
    /// What came and is not a whole request yet.
    input: Vec<u8>,
    /// What is being written, and how much of it was.
    output: Option<(Rc<[u8]>, usize)>,
}

/// Answers are made once for each region and length.
#[derive(Default)]
struct Answers(HashMap<(usize, usize), Rc<[u8]>>);

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let mut listeners = Vec::new();
    let mut poller = Poller::new()?;
    for region in 0..arguments.regions {
        let listener = listen()?;
        poller.add(&listener, region, Interest::Read)?;
        listeners.push(listener);
    }
    let ports = listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect::<io::Result<Vec<_>>>()?;
    println!("{}", serde_json::json!({ "ports": ports }));

    let mut connections: Slab<Connection> = Slab::new();
    let mut answers = Answers::default();
    let mut scratch = vec![0; 64 << 10];
    let mut ready = Vec::new();
    loop {
        poller.wait(&mut ready, None)?;
        for &number in &ready {
            if let Some(listener) = listeners.get(number) {
                accept(listener, number, listeners.len(), &poller, &mut connections)?;
                continue;
            }
            let key = number - listeners.len();
            let Some(connection) = connections.get_mut(key) else { continue };
            if connection.go_on(number, &poller, &mut answers, &mut scratch).is_err() {
                connections.remove(key);
            }
        }
    }
}

fn listen() -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(8192)?;
    Ok(socket.into())
}

fn accept(
    listener: &TcpListener,
    region: usize,
    first: usize,
    poller: &Poller,
    connections: &mut Slab<Connection>,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let entry = connections.vacant_entry();
        poller.add(&stream, first + entry.key(), Interest::Read)?;
        entry.insert(Connection { stream, region, input: Vec::new(), output: None });
    }
}

impl Connection {
    /// Reads and writes what can be; an error means that the connection is over.
    fn go_on(&mut self, number: usize, poller: &Poller, answers: &mut Answers, scratch: &mut [u8]) -> io::Result<()> {
        if self.output.is_some() {
            if !self.write()? {
                return Ok(());
            }
            poller.change(&self.stream, number, Interest::Read)?;
        }
        match self.stream.read(scratch) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.input.extend_from_slice(&scratch[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some((length, body)) = request(&self.input)? {
            self.input.drain(..length);
            self.output = Some((answers.of(self.region, body), 0));
            if !self.write()? {
                return poller.change(&self.stream, number, Interest::Write);
            }
        }
        Ok(())
    }

    /// Whether all of the answer is written.
    fn write(&mut self) -> io::Result<bool> {
        while let Some((answer, written)) = &mut self.output {
            match self.stream.write(&answer[*written..]) {
                Ok(n) => *written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            if *written == answer.len() {
                self.output = None;
            }
        }
        Ok(true)
    }
}

/// The length of the request that `input` begins with, and of the body that it asks for.
fn request(input: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(input) {
        Ok(httparse::Status::Complete(length)) => {
            let asked = request.path.and_then(|path| path.strip_prefix("/b/"));
            let body = asked.map_or(Some(0), |n| n.parse().ok().filter(|n| (1..=LONGEST).contains(n)));
            match (request.method, body) {
                (Some("GET"), Some(body)) => Ok(Some((length, body))),
                _ => Err(ErrorKind::InvalidData.into()),
            }
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(io::Error::new(ErrorKind::InvalidData, error)),
    }
}

impl Answers {
    fn of(&mut self, region: usize, body: usize) -> Rc<[u8]> {
        Rc::clone(self.0.entry((region, body)).or_insert_with(|| {
            let body = if body == 0 { b"hello, world\n".to_vec() } else { vec![b'x'; body] };
            // With the fields that every server sends; a proxy would add a missing Date, and not every proxy does.
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\nserver: origin\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
                 content-type: text/plain\r\nx-region: {region}\r\ncontent-length: {}\r\n\r\n",
                body.len()
            )
            .into_bytes();
            answer.extend(body);
            answer.into()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let two = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /b/70 HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(request(two).unwrap(), Some((27, 0)));
        assert_eq!(request(&two[27..]).unwrap(), Some((31, 70)));
        assert_eq!(request(&two[..20]).unwrap(), None);
        assert!(request(b"POST / HTTP/1.1\r\nhost: a\r\n\r\n").is_err());
        assert!(request(b"GET /b/x HTTP/1.1\r\nhost: a\r\n\r\n").is_err());
    }

    #[test]
    fn an_answer_names_its_region_and_length() {
        let answer = Answers::default().of(2, 70);
        let text = String::from_utf8(answer.to_vec()).unwrap();
        assert!(text.contains("x-region: 2\r\ncontent-length: 70\r\n\r\n"));
        assert!(text.ends_with(&"x".repeat(70)));
    }
}
