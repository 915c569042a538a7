//! An open-loop load: requests are due at fixed moments whatever the proxy does, and latency counts from the moment at which a request
//! was due, so that a proxy that stands still does not hide its own delay (coordinated omission).

#![expect(clippy::disallowed_methods, reason = "a shell: it asks by the clock")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::drill::http::{Connection, connect, send};
use crate::drill::seen::{Answer, REGIONS, Request};

/// Networks of clients and the region nearest to each, a third of the load for each region. Peers have them in their configurations.
pub(super) const NETWORKS: [(Ipv4Addr, usize); 6] = [
    (Ipv4Addr::new(128, 101, 0, 0), 0),
    (Ipv4Addr::new(140, 142, 0, 0), 1),
    (Ipv4Addr::new(81, 2, 69, 0), 2),
    (Ipv4Addr::new(128, 59, 0, 0), 0),
    (Ipv4Addr::new(133, 11, 0, 0), 1),
    (Ipv4Addr::new(46, 4, 0, 0), 2),
];

/// Every fourth request is a POST, as 120 GETs and 40 POSTs a second are.
const POST_EVERY: u64 = 4;

/// A client gives up after this.
const PATIENCE: Duration = Duration::from_secs(20);

/// A load that goes on until it is stopped or dropped.
pub(super) struct Load {
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
    /// When it began.
    began: Instant,
    /// The same in Unix milliseconds.
    pub(super) began_unix_ms: f64,
}

impl Load {
    /// So many requests a second; none at all if it is 0.
    pub(super) fn start(proxy: SocketAddr, rate: u32) -> Load {
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let began = Instant::now();
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let asking = ask_on(proxy, rate, began, Arc::clone(&seen), Arc::clone(&stop));
        Load { seen, stop, task: tokio::spawn(asking), began, began_unix_ms: unix.as_secs_f64() * 1000.0 }
    }

    /// Milliseconds since it began.
    pub(super) fn now_ms(&self) -> f64 {
        ms(self.began.elapsed())
    }

    /// Waits for that moment.
    pub(super) async fn sleep_until(&self, at_ms: f64) {
        tokio::time::sleep_until((self.began + Duration::from_secs_f64(at_ms.max(0.0) / 1000.0)).into()).await;
    }

    /// Ends it when every request has ended; everything that was seen, in the order in which it was due.
    pub(super) async fn stop(mut self) -> Result<Vec<Request>, String> {
        self.stop.store(true, Relaxed);
        (&mut self.task).await.map_err(|error| format!("the load broke off: {error}"))?;
        let mut seen = std::mem::take(&mut *lock(&self.seen));
        seen.sort_unstable_by_key(|request| request.n);
        Ok(seen)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask_on(proxy: SocketAddr, rate: u32, began: Instant, seen: Arc<Mutex<Vec<Request>>>, stop: Arc<AtomicBool>) {
    if rate == 0 {
        return;
    }
    let idle: Arc<Mutex<Vec<Connection>>> = Arc::default();
    let mut requests = JoinSet::new();
    let mut due = interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for n in 0u64.. {
        let at = due.tick().await.into_std();
        if stop.load(Relaxed) {
            break;
        }
        let (seen, idle) = (Arc::clone(&seen), Arc::clone(&idle));
        requests.spawn(async move {
            let (client, home) = client(n);
            let post = is_post(n);
            let answer = match timeout(PATIENCE, ask(proxy, &idle, client, n, post)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(wrong)) => Answer::Broken(wrong),
                Err(_) => Answer::Silence,
            };
            let due_ms = ms(at.saturating_duration_since(began));
            lock(&seen).push(Request { n, post, home, due_ms, took_ms: ms(at.elapsed()), answer });
        });
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
}

/// The client of a request: one network after the other, and other addresses of it each round.
fn client(n: u64) -> (IpAddr, usize) {
    let (network, home) = NETWORKS[(n % NETWORKS.len() as u64) as usize];
    let host = (n / NETWORKS.len() as u64 * 37 % 250) as u32;
    (IpAddr::V4(Ipv4Addr::from(u32::from(network) + 1 + host)), home)
}

/// Spread over all networks: a quarter of each network's requests.
fn is_post(n: u64) -> bool {
    (n / NETWORKS.len() as u64 + n % NETWORKS.len() as u64).is_multiple_of(POST_EVERY)
}

async fn ask(
    proxy: SocketAddr,
    idle: &Mutex<Vec<Connection>>,
    client: IpAddr,
    n: u64,
    post: bool,
) -> Result<Answer, String> {
    let kept = lock(idle).pop().filter(|connection| !connection.is_closed());
    let mut connection = match kept {
        Some(connection) => connection,
        None => connect(proxy).await?,
    };
    let method = if post { "POST" } else { "GET" };
    let (client, id) = (client.to_string(), format!("r{n}"));
    let answer = send(&mut connection, method, "/", &[("x-forwarded-for", &client), ("x-id", &id)]).await?;
    lock(idle).push(connection);
    Ok(Answer::Whole {
        status: answer.status,
        region: answer.origin().and_then(|name| REGIONS.iter().position(|region| *region == name)),
        retry_after: answer.headers.contains_key("retry-after"),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_the_load_is_each_regions_and_a_quarter_of_that_are_posts() {
        let mut counts = [[0; 2]; 3];
        for n in 0..2400 {
            counts[client(n).1][usize::from(is_post(n))] += 1;
        }
        assert_eq!(counts, [[600, 200]; 3]);
    }
}
