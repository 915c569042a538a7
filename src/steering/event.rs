//! What happened, as values: a line in the log, a count in the metrics, and nothing that those would have to look up.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::steering::snapshot::PoolState;

/// Something that happened, worth a line in the log and a count. Its `Display` is that line.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An endpoint got a verdict, or another one.
    Endpoint {
        /// Service name.
        service: Arc<str>,
        /// Region name.
        region: Arc<str>,
        /// Address.
        address: SocketAddr,
        /// Whether it is up now.
        up: bool,
        /// Whether this is its first verdict.
        first: bool,
        /// Why, in a few words.
        cause: String,
    },
    /// A region's pool changed its state for a service.
    Region {
        /// Service name.
        service: Arc<str>,
        /// Region name.
        region: Arc<str>,
        /// Before.
        from: PoolState,
        /// Now.
        to: PoolState,
    },
    /// An endpoint was ejected for what its traffic told, or its ejection is over.
    Ejection {
        /// Service name.
        service: Arc<str>,
        /// Region name.
        region: Arc<str>,
        /// Address.
        address: SocketAddr,
        /// For how long; `None`: it is over.
        time: Option<Duration>,
        /// Why, in a few words.
        cause: String,
    },
    /// This process stood still: its results of that time are thrown away.
    Late {
        /// For about so long.
        by: Duration,
    },
    /// Everything that is probed went down at once, so that this PoP thinks itself the cause; or something is up again.
    SelfSuspicion {
        /// Whether it began.
        on: bool,
    },
    /// A service began or ceased to have no region that is up. A service that never had one begins when every ready region
    /// has a verdict, not while the first probes are under way.
    Panic {
        /// Service name.
        service: Arc<str>,
        /// Whether it began.
        on: bool,
    },
    /// A view was published.
    Published {
        /// Its generation.
        generation: u64,
    },
}

impl Event {
    /// The word for its kind, as a metric's label or a filter.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::Endpoint { .. } => "endpoint",
            Event::Region { .. } => "region",
            Event::Ejection { .. } => "ejection",
            Event::Late { .. } => "late",
            Event::SelfSuspicion { .. } => "self_suspicion",
            Event::Panic { .. } => "panic",
            Event::Published { .. } => "published",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Endpoint { service, region, address, up, first, cause } => {
                let verdict = if *up { "up" } else { "down" };
                let first = if *first { ", its first verdict" } else { "" };
                write!(f, "service {service}: endpoint {address} in {region} is {verdict}{first}: {cause}")
            }
            Event::Region { service, region, from, to } => {
                write!(f, "service {service}: region {region} is {}, was {}", to.as_str(), from.as_str())
            }
            Event::Ejection { service, region, address, time: Some(time), cause } => {
                write!(
                    f,
                    "service {service}: endpoint {address} in {region} is ejected for {} s: {cause}",
                    time.as_secs()
                )
            }
            Event::Ejection { service, region, address, time: None, cause } => {
                write!(f, "service {service}: endpoint {address} in {region} is no longer ejected: {cause}")
            }
            Event::Late { by } => {
                write!(f, "this process stood still for {} ms: what it saw meanwhile does not count", by.as_millis())
            }
            Event::SelfSuspicion { on: true } => {
                f.write_str("everything went down at once: the cause may be here, so all is served on as if it were up")
            }
            Event::SelfSuspicion { on: false } => f.write_str("not everything is down any more"),
            Event::Panic { service, on: true } => write!(f, "service {service}: no ready region is up"),
            Event::Panic { service, on: false } => write!(f, "service {service}: a ready region is up again"),
            Event::Published { generation } => write!(f, "generation {generation} is published"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let (service, region) = (Arc::from("web"), Arc::from("eu-west"));
        let endpoint = |up, first, cause: &str| Event::Endpoint {
            service: Arc::clone(&service),
            region: Arc::clone(&region),
            address: ([192, 0, 2, 1], 80).into(),
            up,
            first,
            cause: cause.to_owned(),
        };
        let rows = [
            (
                endpoint(false, false, "3 failures in a row: connection refused"),
                "endpoint",
                "service web: endpoint 192.0.2.1:80 in eu-west is down: 3 failures in a row: connection refused",
            ),
            (
                endpoint(true, true, "first pass"),
                "endpoint",
                "service web: endpoint 192.0.2.1:80 in eu-west is up, its first verdict: first pass",
            ),
            (
                Event::Region {
                    service: Arc::clone(&service),
                    region: Arc::clone(&region),
                    from: PoolState::Down,
                    to: PoolState::Holding,
                },
                "region",
                "service web: region eu-west is holding, was down",
            ),
            (Event::Panic { service: Arc::clone(&service), on: true }, "panic", "service web: no ready region is up"),
            (Event::Panic { service, on: false }, "panic", "service web: a ready region is up again"),
            (
                Event::Ejection {
                    service: Arc::from("web"),
                    region: Arc::from("eu-west"),
                    address: ([192, 0, 2, 1], 80).into(),
                    time: Some(Duration::from_secs(30)),
                    cause: "5 failures in a row of its traffic".to_owned(),
                },
                "ejection",
                "service web: endpoint 192.0.2.1:80 in eu-west is ejected for 30 s: 5 failures in a row of its traffic",
            ),
            (
                Event::Late { by: Duration::from_millis(1500) },
                "late",
                "this process stood still for 1500 ms: what it saw meanwhile does not count",
            ),
            (Event::SelfSuspicion { on: false }, "self_suspicion", "not everything is down any more"),
            (Event::Published { generation: 3 }, "published", "generation 3 is published"),
        ];
        for (event, kind, line) in rows {
            assert_eq!((event.kind(), event.to_string().as_str()), (kind, line));
        }
    }
}
