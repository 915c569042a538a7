//! Endpoint names to addresses, in the background: a request never waits for a name.
//!
//! One task for each distinct host name of the fleet asks for A and AAAA records as often as their TTL says, within 5 to 300 s. A
//! failure is no change: the last addresses stay, and the name is asked again after 1 s, 2 s … 30 s. The system's configuration
//! (`/etc/resolv.conf`, `/etc/hosts`) is read again when its files change.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::state::{Reader, Sender};
use crate::steering::Fleet;
use crate::steering::fleet::EndpointAddress;

/// The shortest and the longest a set of addresses is believed, whatever its TTL.
const TTL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// The first and the longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the system resolver is made of.
const SYSTEM: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Resolves the names of every published fleet until the future is dropped.
pub async fn run(mut reader: Reader, sender: Sender) {
    let system = Arc::new(System::default());
    let mut tasks = JoinSet::new();
    let mut running: HashMap<String, AbortHandle> = HashMap::new();
    let mut generation = 0;
    loop {
        let snapshot = reader.load().snapshot.clone();
        if snapshot.generation != generation {
            generation = snapshot.generation;
            let mut wanted = names(snapshot.fleet());
            running.retain(|host, task| {
                let kept = wanted.iter().position(|name| name == host).map(|at| wanted.swap_remove(at)).is_some();
                if !kept {
                    task.abort();
                }
                kept
            });
            for host in wanted {
                let task = tasks.spawn(keep_resolving(host.clone(), system.clone(), sender.clone()));
                running.insert(host, task);
            }
            while tasks.try_join_next().is_some() {}
        }
        reader.changed().await;
    }
}

/// The distinct host names of a fleet.
fn names(fleet: &Fleet) -> Vec<String> {
    let specs = fleet.pools.iter().flat_map(|pool| &pool.endpoints);
    let mut names: Vec<String> = specs
        .filter_map(|spec| match &spec.address {
            EndpointAddress::Name { host, .. } => Some(host.clone()),
            EndpointAddress::Socket(_) => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

async fn keep_resolving(host: String, system: Arc<System>, sender: Sender) {
    let mut known: Vec<IpAddr> = Vec::new();
    let mut pause = RETRY.0;
    loop {
        match system.resolve(&host).await {
            Ok((addresses, ttl)) => {
                pause = RETRY.0;
                if addresses != known {
                    tracing::info!(%host, ?addresses, "name resolved");
                    known.clone_from(&addresses);
                    sender.resolved(host.clone(), addresses).await;
                }
                sleep(ttl).await;
            }
            Err(error) => {
                let kept = known.len();
                if kept == 0 {
                    // Who waits for the first round need not wait for this name.
                    sender.resolved(host.clone(), Vec::new()).await;
                }
                tracing::warn!(%host, error, kept, "name not resolved; the last addresses stay");
                sleep(pause.mul_f64(0.9 + 0.1 * fastrand::f64())).await;
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }
}

/// The resolver as the system configures it, made anew when the files it is made of changed.
#[derive(Default)]
struct System {
    made: Mutex<Option<(Stamp, Arc<TokioResolver>)>>,
}

type Stamp = [Option<SystemTime>; SYSTEM.len()];

impl System {
    /// Addresses in ascending order, at least one, and how long to believe them.
    async fn resolve(&self, host: &str) -> Result<(Vec<IpAddr>, Duration), String> {
        let resolver = self.resolver()?;
        let found = resolver.lookup_ip(host).await.map_err(|error| error.to_string())?;
        let mut addresses: Vec<IpAddr> = found.iter().collect();
        addresses.sort();
        addresses.dedup();
        if addresses.is_empty() {
            return Err("no addresses".to_owned());
        }
        let left = found.valid_until().saturating_duration_since(tokio::time::Instant::now().into_std());
        Ok((addresses, left.clamp(TTL.0, TTL.1)))
    }

    fn resolver(&self) -> Result<Arc<TokioResolver>, String> {
        let stamp = SYSTEM.map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok());
        // A poisoned lock holds a whole value all the same: it is only ever replaced.
        let mut made = self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, resolver)) = made.as_ref().filter(|(of, _)| *of == stamp) {
            return Ok(resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
            tracing::warn!(%error, "no system resolver; only /etc/hosts answers");
            TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
        });
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // Each name has one task that asks when the TTL has passed: a cache would only answer it with what it knows.
        options.cache_size = 0;
        let resolver = Arc::new(builder.build().map_err(|error| error.to_string())?);
        *made = Some((stamp, resolver.clone()));
        Ok(resolver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn localhost_resolves_without_a_network() {
        let (addresses, ttl) = System::default().resolve("localhost").await.unwrap();
        assert!(addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
        assert!((TTL.0..=TTL.1).contains(&ttl), "{ttl:?}");
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_says_so() {
        assert!(System::default().resolve("no such name").await.is_err());
    }
}
