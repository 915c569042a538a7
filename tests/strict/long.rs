//! Long answers of a known length, whose payload the kernel moves: that it does, that nobody can tell, and how such an answer ends early.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use meridian::config::AccessLog;
use meridian::proxy::engine::{Connect, Destination, Downstream, Side};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::common::harness::{Script, config, status, until};
use super::common::pipes::World;
use super::common::process::{self, PATIENCE};
use super::kit::{GET, Peer, always, before, ended, field};

const MIB: usize = 1 << 20;

/// What a read takes at first: a body of which so much came at once may pass by us.
const FIRST: usize = 16 << 10;

/// So much of a body has to be left for that.
const LEAST: usize = 64 << 10;

/// A body of which no byte can be lost, doubled, moved or another body's without being noticed.
fn body(length: usize, seed: u64) -> Vec<u8> {
    let words = (0..length.div_ceil(8) as u64).map(|at| (seed << 32 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut body: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    body.truncate(length);
    body
}

fn get(length: usize, seed: u64) -> String {
    format!("GET /{length}/{seed} HTTP/1.1\r\nHost: test\r\n\r\n")
}

fn answer(length: usize, seed: u64) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    answer.extend(body(length, seed));
    answer
}

/// Length and seed of a request of [`get`].
fn asked(head: &str) -> (usize, u64) {
    let mut parts = head.split(' ').nth(1).unwrap().split('/').skip(1);
    (parts.next().unwrap().parse().unwrap(), parts.next().unwrap().parse().unwrap())
}

/// An upstream that answers as [`get`] asks.
async fn bodies() -> (SocketAddr, Script) {
    always(|mut peer, script| async move {
        while let Some(head) = script.request(&mut peer.0).await {
            let (length, seed) = asked(&head);
            let mut answer = answer(length, seed);
            if head.starts_with("HEAD ") {
                answer.truncate(answer.len() - length);
            }
            // Whether its client stays, and how long it takes, is not this upstream's business.
            if peer.0.write_all(&answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Reads an answer and holds it against what was asked for.
async fn takes(client: &mut Peer, length: usize, seed: u64) {
    let head = client.head().await;
    let wanted = length.to_string();
    assert_eq!((status(&head), field(&head, "content-length")), (200, Some(wanted.as_str())), "{head}");
    let mut got = vec![0; length];
    tokio::time::timeout(PATIENCE, client.0.read_exact(&mut got)).await.expect("a body in time").unwrap();
    assert!(got == body(length, seed), "a body of {length} bytes");
}

/// All that comes of a body before its connection ends.
async fn takes_to_the_end(client: &mut Peer) -> Vec<u8> {
    let mut got = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(PATIENCE, client.0.read_to_end(&mut got)).await.expect("an end in time");
    got
}

/// A socket that counts the bytes of answers that pass through this process: those read, or those written.
struct Counted {
    tcp: TcpStream,
    read: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    shows: bool,
}

impl Counted {
    /// One whose bytes are counted in `read`, if it is an upstream's, otherwise in `written`.
    fn new(tcp: TcpStream, passed: &Arc<AtomicU64>, is_upstreams: bool, shows: bool) -> Counted {
        let (passed, other) = (Arc::clone(passed), Arc::default());
        let (read, written) = if is_upstreams { (passed, other) } else { (other, passed) };
        Counted { tcp, read, written, shows }
    }
}

impl Side for Counted {
    fn socket(&self) -> Option<&TcpStream> {
        self.shows.then_some(&self.tcp)
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        self.read.fetch_add((buf.filled().len() - before) as u64, SeqCst);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = written {
            self.written.fetch_add(count as u64, SeqCst);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(count)) = written {
            self.written.fetch_add(count as u64, SeqCst);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// Connects to an upstream that may speak before it is asked.
struct Net {
    passed: Arc<AtomicU64>,
    shows: bool,
    /// So many bytes have to be there before the connection is.
    there: usize,
}

impl Connect for Net {
    type Stream = Counted;

    async fn connect(&self, Destination { address, .. }: Destination) -> io::Result<Counted> {
        let socket = TcpSocket::new_v4()?;
        if self.there > 0 {
            socket.set_recv_buffer_size(1 << 20)?;
        }
        let tcp = socket.connect(address).await?;
        let mut look = vec![0; self.there];
        while self.there > 0 && tcp.peek(&mut look).await? < self.there {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Counted::new(tcp, &self.passed, true, self.shows))
    }
}

/// The engine between sockets that count.
struct Line {
    address: SocketAddr,
    /// Bytes of answers that passed through this process: from the upstream, and to clients.
    up: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
    log: tempfile::TempDir,
}

impl Line {
    /// `shows`: whether the upstream's and the client's sockets may be seen.
    async fn start(upstream: SocketAddr, more: &str, shows: (bool, bool), there: usize) -> Line {
        let log = tempfile::tempdir().unwrap();
        let world =
            World::of(&config(more, "", &[("only", upstream)]), &AccessLog::File(log.path().join("access.log")));
        let (up, down) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mover = Arc::new(world.mover(Net { passed: Arc::clone(&up), shows: shows.0, there }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // As on our own listeners: without it the kernel takes megabytes at once, and then nothing for long.
        socket2::SockRef::from(&listener).set_tcp_notsent_lowat(64 << 10).unwrap();
        let address = listener.local_addr().unwrap();
        let passed = Arc::clone(&down);
        tokio::spawn(async move {
            let (_keep, draining) = watch::channel(false);
            let _world = world;
            while let Ok((tcp, peer)) = listener.accept().await {
                let (mover, draining) = (Arc::clone(&mover), draining.clone());
                let client = Counted::new(tcp, &passed, false, shows.1);
                tokio::spawn(async move {
                    let from = Downstream { peer: Some(peer), scheme: "http", http2: false, bound: &[] };
                    drop(mover.serve(client, from, &draining).await);
                });
            }
        });
        Line { address, up, down, log }
    }

    /// What passed through this process since it was asked last: from the upstream, and to the client.
    fn passed(&self) -> (u64, u64) {
        (self.up.swap(0, SeqCst), self.down.swap(0, SeqCst))
    }

    async fn logged(&self, count: usize) -> Value {
        let mut lines = Vec::new();
        until("a line in the log", || {
            let text = std::fs::read_to_string(self.log.path().join("access.log")).unwrap_or_default();
            lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            lines.len() >= count
        })
        .await;
        lines.swap_remove(count - 1)
    }
}

#[tokio::test]
async fn they_pass_by_us_between_plain_sockets_only() {
    let (upstream, script) = bodies().await;
    for shows in [(true, true), (true, false), (false, true)] {
        let line = Line::start(upstream, "", shows, 0).await;
        let mut client = Peer::connect(line.address).await;
        for (seed, length) in [(1, 10 * MIB), (2, 13), (3, 10 * MIB), (4, 3 * MIB + 1)] {
            line.passed();
            client.say(get(length, seed)).await;
            takes(&mut client, length, seed).await;
            let (from_upstream, to_client) = line.passed();
            let all = length as u64;
            if shows == (true, true) && length > MIB {
                // Not nearly all of it, even if the upstream was slower than we were for a while.
                assert!(from_upstream < all / 2 && to_client < all / 2, "{length}: {from_upstream} {to_client}");
            } else {
                assert!(from_upstream >= all && to_client >= all, "{length}: {from_upstream} {to_client}");
            }
        }
        let line = line.logged(4).await;
        assert_eq!((&line["outcome"], &line["bytes_out"]), (&"answered".into(), &(3 * MIB + 1).into()), "{line}");
    }
    assert_eq!(script.connections.load(SeqCst), 3, "each kept its connection");
}

#[tokio::test]
async fn they_pass_by_us_from_the_least_length_on() {
    let head = answer(LEAST, 0).len() - LEAST;
    // All of it is there before it is asked for, so that the first read is known.
    for more in [-1, 0, 1, 8_000] {
        let length = (LEAST + FIRST - head).checked_add_signed(more).unwrap();
        assert_eq!(answer(length, 7).len(), head + length, "so many digits");
        let (upstream, _) = always(move |mut peer, script| async move {
            peer.say(answer(length, 7)).await;
            script.request(&mut peer.0).await;
            peer.rest().await;
        })
        .await;
        let line = Line::start(upstream, "", (true, true), head + length).await;
        let mut client = Peer::connect(line.address).await;
        client.say(get(length, 7)).await;
        takes(&mut client, length, 7).await;
        let wanted = if more < 0 { head + length } else { FIRST };
        assert_eq!(line.passed().0, wanted as u64, "{more}");
    }
}

#[tokio::test]
async fn many_at_once_get_each_its_own() {
    let (upstream, _) = bodies().await;
    let proxy = before(upstream, "", "").await;
    let mut clients = Vec::new();
    for client in 0..24_u64 {
        let address = proxy.address;
        clients.push(tokio::spawn(async move {
            let mut peer = Peer::connect(address).await;
            for turn in 0..12 {
                let seed = client * 100 + turn;
                let length = [3 * MIB, 0, 100 << 10, MIB + 1, 13, LEAST, 84 << 10, 300_000][(seed % 8) as usize];
                peer.say(get(length, seed)).await;
                takes(&mut peer, length, seed).await;
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    ended(&proxy, 24 * 12, "answered", 200).await;
}

#[tokio::test]
async fn requests_behind_a_long_answer_are_answered_in_turn() {
    let (upstream, script) = bodies().await;
    let proxy = before(upstream, "", "").await;
    let mut client = Peer::connect(proxy.address).await;
    let head = |length, seed| get(length, seed).replace("GET", "HEAD");
    client.say([get(4 * MIB, 1), head(4 * MIB, 2), get(13, 3), head(MIB, 4), get(2 * MIB, 5)].concat()).await;
    takes(&mut client, 4 * MIB, 1).await;
    assert_eq!(field(&client.head().await, "content-length"), Some("4194304"));
    takes(&mut client, 13, 3).await;
    assert_eq!(field(&client.head().await, "content-length"), Some("1048576"));
    takes(&mut client, 2 * MIB, 5).await;
    ended(&proxy, 5, "answered", 200).await;
    assert_eq!(script.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_leaves_inside_one_leaves_nothing_behind() {
    let (upstream, _) = bodies().await;
    let proxy = before(upstream, "", "").await;
    let mut count = 0;
    for (seed, read) in [(1, 1), (2, 100_000), (3, 3 * MIB), (4, 8 * MIB)] {
        for resets in [false, true] {
            let mut client = Peer::connect(proxy.address).await;
            client.say(get(64 * MIB, seed)).await;
            assert_eq!(status(&client.head().await), 200);
            let mut got = vec![0; read];
            client.0.read_exact(&mut got).await.unwrap();
            assert!(got == body(read, seed));
            if read < MIB {
                // Until nothing moves: then bytes wait in a pipe.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            if resets {
                client.reset()
            } else {
                drop(client)
            }
            count += 1;
            ended(&proxy, count, "client_gone", 200).await;
            let line = proxy.lines_now().swap_remove(count - 1);
            let out = line["bytes_out"].as_u64().unwrap() as usize;
            assert!((read..64 * MIB).contains(&out), "{line}");
            // Whoever comes next gets his own.
            let mut client = Peer::connect(proxy.address).await;
            client.say(get(MIB, 99 + seed)).await;
            takes(&mut client, MIB, 99 + seed).await;
            count += 1;
            ended(&proxy, count, "answered", 200).await;
        }
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_inside_one_is_seen_to() {
    for sent in [LEAST, 100_000, MIB, 5 * MIB - 1] {
        for resets in [false, true] {
            let (upstream, _) = always(move |mut peer, script| async move {
                while let Some(head) = script.request(&mut peer.0).await {
                    let (length, seed) = asked(&head);
                    let mut answer = answer(length, seed);
                    if length == 5 * MIB {
                        answer.truncate(answer.len() - length + sent);
                        peer.say(answer).await;
                        if resets {
                            // Once all is taken, or the reset would take it away.
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            peer.reset();
                        }
                        return;
                    }
                    peer.say(answer).await;
                }
            })
            .await;
            let proxy = before(upstream, "", "").await;
            let mut client = Peer::connect(proxy.address).await;
            client.say(get(5 * MIB, 1)).await;
            let head = client.head().await;
            assert_eq!(field(&head, "content-length"), Some("5242880"), "{head}");
            let got = takes_to_the_end(&mut client).await;
            assert!(got == body(sent, 1), "{sent}: {} bytes", got.len());
            ended(&proxy, 1, "answer_broken", 200).await;
            assert_eq!(proxy.lines_now()[0]["bytes_out"], sent);
            let mut client = Peer::connect(proxy.address).await;
            client.say(get(MIB, 2)).await;
            takes(&mut client, MIB, 2).await;
        }
    }
}

#[tokio::test]
async fn what_comes_after_one_is_nobodys() {
    for late in [false, true] {
        let (upstream, script) = always(move |mut peer, script| async move {
            while let Some(head) = script.request(&mut peer.0).await {
                let (length, seed) = asked(&head);
                let more = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad";
                let mut answer = answer(length, seed);
                match late {
                    false => {
                        answer.extend_from_slice(more.as_bytes());
                        peer.say(answer).await;
                    }
                    true => {
                        peer.say(answer).await;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        let _ = peer.try_say(more).await;
                    }
                }
            }
        })
        .await;
        let proxy = before(upstream, "", "").await;
        let mut client = Peer::connect(proxy.address).await;
        for (count, length) in [2 * MIB, 100 << 10, FIRST + LEAST, 4 * MIB, 13].into_iter().enumerate() {
            client.say(get(length, count as u64)).await;
            takes(&mut client, length, count as u64).await;
            client.hears_nothing().await;
            assert_eq!(script.connections.load(SeqCst), count + 1, "not used again");
        }
        ended(&proxy, 5, "answered", 200).await;
    }
}

#[tokio::test]
async fn an_upstream_that_falls_silent_inside_one_breaks_it() {
    let (upstream, _) = always(|mut peer, script| async move {
        let (length, seed) = asked(&script.request(&mut peer.0).await.unwrap());
        let answer = answer(length, seed);
        let (first, rest) = answer.split_at(2 * MIB);
        peer.say(first).await;
        // Slow, and never silent for as long as may be; then it is.
        for piece in rest[..MIB].chunks(MIB / 8) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            peer.say(piece).await;
        }
        let _ = peer.rest().await;
    })
    .await;
    let proxy = before(upstream, "", "[services.web.timeouts]\nidle = \"400ms\"").await;
    let mut client = Peer::connect(proxy.address).await;
    client.say(get(5 * MIB, 1)).await;
    let head = client.head().await;
    let begun = Instant::now();
    let got = takes_to_the_end(&mut client).await;
    let sent = 3 * MIB - (answer(5 * MIB, 1).len() - 5 * MIB);
    assert!(got == body(sent, 1), "{head}: {} of {sent}", got.len());
    assert!(begun.elapsed() >= Duration::from_millis(1_100), "{:?}", begun.elapsed());
    ended(&proxy, 1, "answer_broken", 200).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_one_is_given_up() {
    let (upstream, _) = bodies().await;
    let line = Line::start(upstream, "", (true, true), 0).await;
    let proxy = before(upstream, "", "[services.web.timeouts]\nidle = \"300ms\"").await;
    // What waited in a pipe was not taken: what the log says is what the client gets.
    let mut client = Peer::connect(proxy.address).await;
    client.say(get(256 * MIB, 1)).await;
    assert_eq!(status(&client.head().await), 200);
    ended(&proxy, 1, "client_slow", 200).await;
    let got = takes_to_the_end(&mut client).await;
    assert!(got == body(got.len(), 1));
    assert_eq!(proxy.lines_now()[0]["bytes_out"], got.len());
    // That such a one does pass by us.
    let mut client = Peer::connect(line.address).await;
    client.say(get(256 * MIB, 1)).await;
    assert_eq!(status(&client.head().await), 200);
    let mut got = vec![0; 32 * MIB];
    client.0.read_exact(&mut got).await.unwrap();
    let (from_upstream, to_client) = line.passed();
    assert!(from_upstream < 16 << 20 && to_client < 16 << 20, "{from_upstream} {to_client}");
}

#[tokio::test]
#[ignore = "lasts half a minute: the least rate is measured over 8 s"]
async fn the_least_rate_holds_for_what_passes_by_us() {
    let (upstream, _) = bodies().await;
    let line = Line::start(upstream, "[limits]\nmin_rate = \"32KiB\"", (true, true), 0).await;
    let mut clients = Vec::new();
    // Bytes in a tenth of a second: a tenth above the rate, and far below.
    for piece in [3_600, 64] {
        let mut client = Peer::connect(line.address).await;
        client.say(get(64 * MIB, 1)).await;
        assert_eq!(status(&client.head().await), 200);
        clients.push(tokio::spawn(async move {
            let (begun, mut got) = (Instant::now(), vec![0; piece]);
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            while begun.elapsed() < Duration::from_secs(30) {
                tick.tick().await;
                if client.0.read_exact(&mut got).await.is_err() {
                    return;
                }
            }
        }));
    }
    let logged = line.logged(1).await;
    assert_eq!(logged["outcome"], "client_slow", "{logged}");
    let (from_upstream, to_client) = line.passed();
    assert!(from_upstream + to_client < 1 << 20, "{from_upstream} {to_client}");
    for client in clients {
        client.await.unwrap();
    }
    // The other one left by itself.
    let logged = line.logged(2).await;
    assert_eq!(logged["outcome"], "client_gone", "{logged}");
}

#[tokio::test]
async fn the_whole_process_does_so_too() {
    let (upstream, _) = bodies().await;
    let service = format!(
        "[regions.only]\n[services.web.health]\nkind = \"none\"\n[services.web.pools.only]\nendpoints = [\"{upstream}\"]\n"
    );
    let proxy = process::Proxy::start(&service, |_| {}).await;
    let pipes = || {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap();
        let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("pipe:")).count()
    };
    let before = pipes();
    let mut client = Peer::connect(proxy.listen).await;
    client.say(get(13, 1)).await;
    takes(&mut client, 13, 1).await;
    assert_eq!(pipes(), before, "a short answer needs none");
    client.say(get(4 * MIB, 1)).await;
    takes(&mut client, 4 * MIB, 1).await;
    until("a pipe is kept for the next one", || pipes() == before + 2).await;
    for seed in 2..20 {
        client.say(get(4 * MIB, seed)).await;
        takes(&mut client, 4 * MIB, seed).await;
    }
    until("it is used again", || pipes() == before + 2).await;
    // One with bytes in it is closed with its answer.
    let mut other = Peer::connect(proxy.listen).await;
    other.say(get(64 * MIB, 1)).await;
    assert_eq!(status(&other.head().await), 200);
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(other);
    until("it is closed", || pipes() <= before + 2).await;
    client.say(GET.replace("/ ", "/1000000/5 ")).await;
    takes(&mut client, 1_000_000, 5).await;
}
