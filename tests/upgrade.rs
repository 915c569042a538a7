//! Another process takes the place of the running one: nobody notices, and it knows what the one before knew.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use common::harness::{answering_once, scripted};
use common::http::{connect, request, send};
use common::process::{Origin, PATIENCE, Proxy, kill, meridian, write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const UPGRADE: &str = "GET /socket HTTP/1.1\r\nHost: slow.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn config(near: SocketAddr, slow: SocketAddr, service: &str) -> String {
    format!(
        "[regions.near]\n[services.slow]\nhosts = [\"slow.test\"]\n[services.slow.health]\nkind = \"none\"\n\
         [services.slow.pools.near]\nendpoints = [\"{slow}\"]\n\
         [services.web]\n{service}\n[services.web.health]\npath = \"/healthz\"\n\
         [services.web.pools.near]\nendpoints = [\"{near}\"]\n"
    )
}

/// An upstream of which each download goes on as it is told, and which echoes WebSockets.
async fn slow() -> (SocketAddr, Arc<AtomicU64>) {
    let allowed = Arc::new(AtomicU64::new(0));
    let shared = Arc::clone(&allowed);
    let (address, _) = scripted(move |mut stream, script| {
        let allowed = Arc::clone(&shared);
        async move {
            let Some(head) = script.request(&mut stream).await else { return };
            if head.starts_with("GET /socket") {
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                               Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                return;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
            for sent in 0..1000 {
                while allowed.load(Ordering::SeqCst) <= sent {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                if stream.write_all(b"x").await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, allowed)
}

/// POSTs at a fixed pace, on one connection as long as it may be used or on a new one each, until stopped. Returns how many were answered.
struct Posts {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Posts {
    fn start(address: SocketAddr, keep: bool) -> Posts {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let task = tokio::spawn(async move {
            let mut open = None;
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            while !stopped.load(Ordering::SeqCst) {
                pace.tick().await;
                let connection = match &mut open {
                    Some(connection) => connection,
                    None => open.insert(connect(address).await.expect("nobody is refused")),
                };
                let answer = send(connection, "POST", "/", &[("content-length", "0")]).await;
                let answer = answer.unwrap_or_else(|why| panic!("after {}: {why}", count.load(Ordering::SeqCst)));
                assert_eq!(answer.status, 200);
                count.fetch_add(1, Ordering::SeqCst);
                if !keep || answer.headers.get("connection").is_some_and(|value| value == "close") {
                    open = None;
                }
            }
        });
        Posts { stop, answered, task }
    }

    async fn more(&self, count: u64) {
        let (begun, before) = (Instant::now(), self.answered.load(Ordering::SeqCst));
        while self.answered.load(Ordering::SeqCst) < before + count {
            assert!(begun.elapsed() < PATIENCE && !self.task.is_finished(), "the load stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
        self.answered.load(Ordering::SeqCst)
    }
}

/// A download by [`slow`], of which ten bytes have come and 990 are to come.
async fn download_begun(address: SocketAddr, allowed: &AtomicU64) -> TcpStream {
    let mut download = TcpStream::connect(address).await.unwrap();
    download.write_all(b"GET /file HTTP/1.1\r\nHost: slow.test\r\n\r\n").await.unwrap();
    allowed.store(10, Ordering::SeqCst);
    let mut begun = Vec::new();
    while !begun.ends_with(b"\r\n\r\nxxxxxxxxxx") {
        begun.push(download.read_u8().await.unwrap());
    }
    download
}

async fn echoed(socket: &mut TcpStream, text: &[u8]) {
    socket.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    socket.read_exact(&mut back).await.unwrap();
    assert_eq!(back, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_an_upgrade_and_the_new_state_is_there() {
    let near = Origin::start("near");
    let (slow, allowed) = slow().await;
    let mut proxy = Proxy::start(&config(near.address, slow, ""), |_| {}).await;
    let (first, address) = (proxy.pid(), proxy.listen);

    let mut download = download_begun(address, &allowed).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(UPGRADE.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    echoed(&mut socket, b"before").await;

    let loads: Vec<Posts> = [true, true, false].map(|keep| Posts::start(address, keep)).into();
    loads[0].more(20).await;

    // Another socket needs another process; and a reload of what does not must be seen, too.
    let reloaded = config(near.address, slow, "headers = { response = { set = { \"x-state\" = \"new\" } } }");
    proxy.write_config(&reloaded);
    proxy
        .until("the reload is seen", async || {
            let answer = request(address, "GET", "/", &[]).await.unwrap();
            answer.headers.get("x-state").is_some_and(|value| value == "new")
        })
        .await;
    proxy.write_config(&format!("{reloaded}[[listen]]\naddress = \"127.0.0.1:0\"\n"));
    proxy.logged(&["needs a restart: listen"]).await;
    for round in 0..2 {
        let pid = proxy.upgrade().await.unwrap();
        let status = proxy.status().await;
        assert_eq!(status["pid"], pid, "round {round}");
        assert_eq!(status["listen"][0], address.to_string());
        let more: SocketAddr = status["listen"][1].as_str().unwrap().parse().unwrap();
        let answer = request(more, "GET", "/", &[]).await.unwrap();
        assert_eq!((answer.status, answer.headers["x-state"].to_str().unwrap()), (200, "new"));
        for load in &loads {
            load.more(20).await;
        }
    }
    echoed(&mut socket, b"after").await;

    // The first one lives as long as they do, also when it is told to end, which it is about to.
    assert!(proxy.alive());
    proxy.signal("TERM");
    proxy.logged(&["told to end: it does when its connections have"]).await;
    allowed.store(1000, Ordering::SeqCst);
    let mut rest = vec![0; 990];
    download.read_exact(&mut rest).await.unwrap();
    drop((download, socket));
    assert_eq!(proxy.ended().await, Some(0), "{}", proxy.log());
    assert_ne!(proxy.status().await["pid"], first);

    let mut answered = 0;
    for load in loads {
        answered += load.stop().await;
    }
    // Each once. Threads of their own write the lines, of three processes.
    let posts = || proxy.access_log().matches("\"method\":\"POST\"").count() as u64;
    proxy.until("a line for each", async || posts() >= answered).await;
    assert!(answered > 100 && posts() == answered, "{} lines of {answered}", posts());
    let gets = proxy.access_log().matches("\"service\":\"web\"").count() as u64 - answered;
    assert_eq!(near.requests().await, answered + gets);
    assert_eq!(proxy.log().matches("connections are cut").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_known_goes_on() {
    let (near, mut far) = (Origin::start("near"), Origin::start("far"));
    let mut names = String::new();
    let pools: String = [("near", near.address), ("far", far.address)]
        .map(|(name, address)| {
            names += &format!("[regions.{name}]\n");
            format!("[services.web.pools.{name}]\nendpoints = [\"{address}\"]\n")
        })
        .concat();
    let config = format!("{names}[services.web]\n[services.web.health]\ninterval = \"100ms\"\nhold = \"1h\"\n{pools}");
    let mut proxy = Proxy::start(&config, |_| {}).await;
    far.kill();
    let region = async |proxy: &Proxy| proxy.status().await["services"][0]["regions"][1].clone();
    proxy.until("it is down", async || region(&proxy).await["state"] == "down").await;
    let path = proxy.config_path();
    let set = |args: &[&str]| {
        let output = meridian().arg("set").args(args).arg("--config").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    // There is no state directory: only the process knows.
    set(&["region", "far", "maint", "--reason", "a test"]);
    let before = region(&proxy).await;
    assert_eq!(before["intent"], "maint");

    // Whoever speaks while another takes over is heard by one of them.
    let mut word = tokio::process::Command::from(meridian());
    word.args(["set", "region", "near", "drain", "--force", "--config"]).arg(&path);
    let (upgraded, said) = tokio::join!(proxy.upgrade(), word.output());
    upgraded.unwrap();
    let said = said.unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(proxy.status().await["services"][0]["regions"][0]["intent"], "drain");
    let after = region(&proxy).await;
    for key in ["state", "since", "intent", "override"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    set(&["region", "near", "auto"]);
    set(&["region", "far", "auto"]);
    // It was down, so that it holds when it is back: a process that knew nothing would take it for up.
    let _far = Origin::start_at("far", far.address);
    proxy.until("it holds", async || region(&proxy).await["state"] == "holding").await;
    let holding = region(&proxy).await;

    proxy.upgrade().await.unwrap();
    let after = region(&proxy).await;
    assert_eq!((&after["state"], &after["since"]), (&holding["state"], &holding["since"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nobody_can_take_over_everything_goes_on_and_it_is_told_why() {
    let near = Origin::start("near");
    let good = config(near.address, near.address, "");
    let mut proxy = Proxy::start(&good, |_| {}).await;
    let address = proxy.listen;
    let load = Posts::start(address, true);
    proxy.write_config(&good.replace("[services.web.health]", "[services.web.helth]"));
    let why = proxy.upgrade().await.unwrap_err();
    assert!(why.contains("helth") && why.contains("meridian.toml:"), "{why}");
    proxy.signal("USR2");
    proxy.logged(&["no process took over; this one goes on", "starting a process that is to take over who=\"\""]).await;
    load.more(20).await;
    assert_eq!(proxy.status().await["pid"], proxy.pid());

    // Words wait for the end of it, and no longer.
    let mut set = meridian();
    set.args(["set", "region", "near", "ready", "--config"]).arg(proxy.config_path());
    proxy.write_config(&good);
    assert!(set.output().unwrap().status.success());
    proxy.signal("USR2");
    assert_eq!(proxy.ended().await, Some(0));
    let pid = proxy.status().await["pid"].as_u64().unwrap() as u32;
    proxy.succeeded_by(pid);
    assert_ne!(pid, proxy.pid());
    load.more(20).await;
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_told_to_end_while_another_is_about_to_take_over_ends_with_it() {
    let near = Origin::start("near");
    let (slow, allowed) = slow().await;
    let (gate, opened) = tokio::sync::watch::channel(false);
    let (gated, probes) = answering_once(opened, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let first = config(near.address, slow, "");
    let mut proxy = Proxy::start(&first, |_| {}).await;
    let address = proxy.listen;
    let mut download = download_begun(address, &allowed).await;
    // The one that is to take over is not ready before its first probe is answered.
    let second = config(gated, slow, "").replace("path = \"/healthz\"", "path = \"/healthz\"\ntimeout = \"50s\"");
    proxy.write_config(&second);
    proxy.until("the running one probes it", async || probes.count() == 1).await;
    proxy.signal("USR2");
    proxy.until("so does the other", async || probes.count() == 2).await;
    proxy.signal("TERM");
    proxy.logged(&["no process took over; this one goes on: this process was told to end"]).await;
    proxy.signal("USR2");
    proxy.until("nor does a third", async || proxy.log().matches("this process was told to end").count() == 2).await;
    gate.send_replace(true);
    allowed.store(1000, Ordering::SeqCst);
    let mut rest = vec![0; 990];
    download.read_exact(&mut rest).await.unwrap();
    drop(download);
    assert_eq!(proxy.ended().await, Some(0), "{}", proxy.log());
    assert!(TcpStream::connect(address).await.is_err(), "nobody is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_a_service_manager_are_used_and_it_is_told_who_is_the_main_process() {
    let near = Origin::start("near");
    let folder = tempfile::tempdir().unwrap();
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let notified = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    let until = |word: &str| {
        let mut message = [0; 4096];
        loop {
            let length = notified.recv(&mut message).expect("the manager is told");
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            if let Some(line) = text.lines().find(|line| line.starts_with(word)) {
                return line.to_owned();
            }
        }
    };
    let text = config(near.address, near.address, "");
    let more = format!("[[listen]]\naddress = \"{address}\"\n[admin]\naddress = \"\"\nsocket = \"admin.sock\"\n");
    write(&folder.path().join("meridian.toml"), &(more + &text));
    // It waits in the queue until there is somebody.
    let mut early = TcpStream::connect(address).await.unwrap();
    early.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut command = meridian();
    command.args(["run", "--config", "meridian.toml"]).current_dir(folder.path()).stdout(Stdio::null());
    command.env("LISTEN_FDS", "1").env("NOTIFY_SOCKET", folder.path().join("notify")).env("WATCHDOG_USEC", "200000");
    command.fd_mappings(vec![FdMapping { parent_fd: listener.into(), child_fd: 3 }]).unwrap();
    let mut child = command.spawn().unwrap();
    // It holds the listener.
    drop(command);
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, early.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    until("READY=1");
    until("WATCHDOG=1");

    assert!(kill(child.id(), "USR2"));
    let main: u32 = until("MAINPID=")["MAINPID=".len()..].parse().unwrap();
    assert_ne!(main, child.id());
    until("READY=1");
    until("WATCHDOG=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(request(address, "GET", "/", &[]).await.unwrap().status, 200);
    assert!(kill(main, "TERM"));
    until("STOPPING=1");
    let begun = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(begun.elapsed() < PATIENCE, "nobody listens after the end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
