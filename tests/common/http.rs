//! A small HTTP/1.1 client for tests, and a load of many clients on keep-alive connections.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

pub use meridian::drill::http::{Answer, Connection, connect, get_unix as request_unix};

/// One request on an open connection; `Host: test` unless given.
pub async fn send(
    connection: &mut Connection,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<Answer, String> {
    let has_host = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
    let host = (!has_host).then_some(("host", "test"));
    let headers: Vec<_> = host.into_iter().chain(headers.iter().copied()).collect();
    meridian::drill::http::send(connection, method, target, &headers).await
}

/// One request on a connection of its own.
pub async fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<Answer, String> {
    send(&mut connect(address).await?, method, target, headers).await
}

/// What a load saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub by_origin: BTreeMap<String, u64>,
    pub failures: Vec<String>,
    pub slowest: Duration,
}

impl Seen {
    pub fn total(&self) -> u64 {
        self.by_origin.values().sum()
    }

    pub fn share(&self, origin: &str) -> f64 {
        self.by_origin.get(origin).copied().unwrap_or(0) as f64 / self.total().max(1) as f64
    }
}

/// Between the requests of one connection: a load leaves room for what is being tested, on two cores.
const PACE: Duration = Duration::from_millis(8);

/// GETs on keep-alive connections, each for the next of some client addresses, until stopped.
pub struct Load {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(proxy: SocketAddr, connections: usize, clients: Arc<Vec<IpAddr>>) -> Load {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..connections).map(|n| {
            let (seen, stop, clients) = (Arc::clone(&seen), Arc::clone(&stop), Arc::clone(&clients));
            tokio::spawn(async move {
                let mut connection = None;
                let mut pace = tokio::time::interval(PACE);
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                for client in clients.iter().cycle().skip(n * clients.len() / connections) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    pace.tick().await;
                    let begun = Instant::now();
                    let answer = one(proxy, &mut connection, *client).await;
                    let mut seen = seen.lock().unwrap();
                    seen.slowest = seen.slowest.max(begun.elapsed());
                    match answer {
                        Ok(origin) => *seen.by_origin.entry(origin).or_default() += 1,
                        Err(failure) => {
                            seen.failures.push(format!("{client}: {failure}"));
                            connection = None;
                        }
                    }
                }
            })
        });
        let tasks = tasks.collect();
        Load { seen, stop, tasks }
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// Waits until `count` more answers came, and returns what was seen since the last take.
    pub async fn more(&self, count: u64) -> Seen {
        let begun = Instant::now();
        loop {
            {
                let mut seen = self.seen.lock().unwrap();
                if seen.total() + seen.failures.len() as u64 >= count {
                    return std::mem::take(&mut *seen);
                }
            }
            assert!(begun.elapsed() < super::process::PATIENCE, "the load stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets every connection finish its request, and returns what was seen since the last take.
    pub async fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no client panics");
        }
        Arc::into_inner(self.seen).expect("all clients ended").into_inner().unwrap()
    }
}

async fn one(proxy: SocketAddr, connection: &mut Option<Connection>, client: IpAddr) -> Result<String, String> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(connect(proxy).await?),
    };
    let answer = send(open, "GET", "/", &[("x-forwarded-for", &client.to_string())]).await?;
    match answer.origin() {
        Some(origin) if answer.status == 200 => Ok(origin),
        _ => Err(format!("status {}: {}", answer.status, answer.text())),
    }
}
