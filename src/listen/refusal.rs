//! What a connection is told that is one too many, before it is closed: an answer that costs next to nothing.
//!
//! No request is read, and only so many are closed with care at a time; whoever comes when those are busy is closed without a word.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::connection::linger;
use super::networks::Excess;

/// Connections at a time that are closed with care, where there are descriptors for them.
const MOST: usize = 256;

/// How long each of them may take, and how much of what it sends is read away: closing with unread bytes would take the answer from the client.
const LINGER: (Duration, usize) = (Duration::from_millis(500), 64 << 10);

/// Why there is no connection for this one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    /// Few descriptors are left.
    Descriptors,
    /// The process has as much memory as it may.
    Memory,
    /// There are as many as there may be.
    TooMany,
    /// Its network has as many as it may, or made them too quickly.
    Network(Excess),
}

impl Refusal {
    /// As the metric says it.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Refusal::Descriptors => "descriptors",
            Refusal::Memory => "memory",
            Refusal::TooMany => "too_many",
            Refusal::Network(excess) => excess.reason(),
        }
    }

    const fn answer(self) -> &'static [u8] {
        match self {
            Refusal::Descriptors | Refusal::Memory => {
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 45\r\n\
                  Cache-Control: no-store\r\nRetry-After: 1\r\nConnection: close\r\n\r\n503 overloaded: no room for more connections\n"
            }
            Refusal::TooMany => {
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 25\r\n\
                  Cache-Control: no-store\r\nRetry-After: 1\r\nConnection: close\r\n\r\n503 too many connections\n"
            }
            Refusal::Network(_) => {
                b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 43\r\n\
                  Cache-Control: no-store\r\nRetry-After: 1\r\nConnection: close\r\n\r\n429 too many connections from your network\n"
            }
        }
    }
}

/// Closes connections with care, so many at a time. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Farewell(Arc<Semaphore>);

impl Farewell {
    /// For at most so many at a time.
    pub(super) fn of(most: usize) -> Farewell {
        Farewell(Arc::new(Semaphore::new(most.min(MOST))))
    }

    /// Says it, and closes the connection.
    pub(super) fn say(&self, mut tcp: TcpStream, refusal: Refusal) {
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let close = async {
                // Who is gone has nothing to hear.
                if tcp.write_all(refusal.answer()).await.is_ok() {
                    linger(tcp, LINGER).await;
                }
            };
            let _ = timeout(LINGER.0, close).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_right() {
        for refusal in [Refusal::Memory, Refusal::TooMany, Refusal::Network(Excess::Open)] {
            let text = std::str::from_utf8(refusal.answer()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{text}");
        }
    }
}
