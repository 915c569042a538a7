//! What a connection is told that is one too many, before it is closed: an answer that costs nothing.
//!
//! No request is read, no task is made but for a few at a time; whoever comes when all of those are busy is closed without a word.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connections at a time that are closed with care.
const MOST: usize = 256;

/// How long each of them may take, and how much of what it sends is read away: closing with unread bytes would take the answer from the client.
const LINGER: (Duration, usize) = (Duration::from_millis(500), 64 << 10);

static LINGERING: AtomicUsize = AtomicUsize::new(0);

/// Why there is no connection for this one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    /// There are as many as there may be.
    TooMany,
    /// Its network has as many as it may, or made them too quickly.
    OfNetwork,
}

impl Refusal {
    const fn answer(self) -> &'static [u8] {
        match self {
            Refusal::TooMany => {
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 25\r\n\
                  Cache-Control: no-store\r\nRetry-After: 1\r\nConnection: close\r\n\r\n503 too many connections\n"
            }
            Refusal::OfNetwork => {
                b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 43\r\n\
                  Cache-Control: no-store\r\nRetry-After: 1\r\nConnection: close\r\n\r\n429 too many connections from your network\n"
            }
        }
    }

    /// Says it, and closes the connection.
    pub(super) fn say(self, tcp: TcpStream) {
        struct Busy;
        impl Drop for Busy {
            fn drop(&mut self) {
                LINGERING.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let busy = Busy;
        if LINGERING.fetch_add(1, Ordering::Relaxed) >= MOST {
            return;
        }
        tokio::spawn(async move {
            let _busy = busy;
            // Who is gone has nothing to hear.
            let _ = timeout(LINGER.0, close(tcp, self.answer())).await;
        });
    }
}

async fn close(mut tcp: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    tcp.write_all(answer).await?;
    tcp.shutdown().await?;
    let (mut left, mut away) = (LINGER.1, [0; 4096]);
    while left > 0 {
        tcp.readable().await?;
        match tcp.try_read(&mut away) {
            Ok(0) => break,
            Ok(read) => left = left.saturating_sub(read),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_right() {
        for refusal in [Refusal::TooMany, Refusal::OfNetwork] {
            let text = std::str::from_utf8(refusal.answer()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{text}");
        }
    }
}
