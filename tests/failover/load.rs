//! An open-loop load: requests are due at fixed moments whatever the proxy does, and latency counts from the moment at which a request
//! was due, so that a proxy that stands still does not hide its own delay (coordinated omission).

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::common::http::{Connection, connect, send};

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Done {
    pub id: String,
    pub post: bool,
    /// When it was due.
    pub due: Instant,
    /// From then to the end of its answer.
    pub took: Duration,
    /// Status and origin, or what was wrong.
    pub result: Result<(u16, String), String>,
}

impl Done {
    pub fn failed(&self) -> bool {
        !matches!(&self.result, Ok((200, _)))
    }
}

/// Every fourth request is a POST, as 120 GETs and 40 POSTs a second are.
const POST_EVERY: u64 = 4;

/// A client gives up after this.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct OpenLoad {
    done: Arc<Mutex<Vec<Done>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl OpenLoad {
    /// So many requests a second, each for the next of these clients.
    pub fn start(proxy: SocketAddr, rate: u32, clients: Arc<Vec<IpAddr>>) -> OpenLoad {
        let (done, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let idle: Arc<Mutex<Vec<Connection>>> = Arc::default();
        let task = tokio::spawn({
            let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
            async move {
                let mut requests = JoinSet::new();
                let mut due = interval(Duration::from_secs(1) / rate);
                due.set_missed_tick_behavior(MissedTickBehavior::Burst);
                for n in 0u64.. {
                    let at = due.tick().await.into_std();
                    if stop.load(Relaxed) {
                        break;
                    }
                    let client = clients[(n * 7 % clients.len() as u64) as usize];
                    let (done, idle) = (Arc::clone(&done), Arc::clone(&idle));
                    requests.spawn(async move {
                        let (id, post) = (format!("r{n}"), n % POST_EVERY == 0);
                        let asked = timeout(PATIENCE, ask(proxy, &idle, client, &id, post)).await;
                        let result = asked.unwrap_or_else(|_| Err("no answer in 20 s".to_owned()));
                        done.lock().unwrap().push(Done { id, post, due: at, took: at.elapsed(), result });
                    });
                    while requests.try_join_next().is_some() {}
                }
                while requests.join_next().await.is_some() {}
            }
        });
        OpenLoad { done, stop, task }
    }

    /// Ends it when every request has ended; everything that was seen, in the order in which it was due.
    pub async fn stop(self) -> Vec<Done> {
        self.stop.store(true, Relaxed);
        self.task.await.expect("no client panics");
        let mut done = std::mem::take(&mut *self.done.lock().unwrap());
        done.sort_by_key(|done| done.due);
        done
    }
}

async fn ask(
    proxy: SocketAddr,
    idle: &Mutex<Vec<Connection>>,
    client: IpAddr,
    id: &str,
    post: bool,
) -> Result<(u16, String), String> {
    let kept = idle.lock().unwrap().pop().filter(|connection| !connection.is_closed());
    let mut connection = match kept {
        Some(connection) => connection,
        None => connect(proxy).await?,
    };
    let method = if post { "POST" } else { "GET" };
    let client = client.to_string();
    let answer = send(&mut connection, method, "/", &[("x-forwarded-for", &client), ("x-id", id)]).await?;
    let origin = answer.origin().unwrap_or_default();
    idle.lock().unwrap().push(connection);
    Ok((answer.status, origin))
}
