//! What happened, as values: a line in the log, a count in the metrics, and nothing that those would have to look up.
//!
//! An event's JSON is its kind and its fields; names of fields are a contract. When it happened is added by who has a calendar.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::steering::fleet::{Capacity, Intent};
use crate::steering::overrides::Target;
use crate::steering::snapshot::PoolState;
use crate::text::rfc3339;

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
    /// An endpoint asks to be drained, by its answers to probes, or does not any more.
    Asked {
        /// Service name.
        service: Arc<str>,
        /// Region name.
        region: Arc<str>,
        /// Address.
        address: SocketAddr,
        /// Whether it asks for it now.
        drain: bool,
    },
    /// A region began to shed clients for what it carries, or takes all of them again.
    Shedding {
        /// Region name.
        region: Arc<str>,
        /// Whether it began.
        on: bool,
        /// What it carried over the last second.
        carried: u64,
        /// What it should carry at most; `None`: that is not bounded any more.
        capacity: Option<Capacity>,
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
    /// A configuration or new geo data was refused, as a whole or in part.
    ReloadRefused {
        /// The generation that stays.
        generation: u64,
        /// What is wrong with it.
        error: String,
    },
    /// An operator's word came into force, or is not in force any more.
    Override(Box<Utterance>),
    /// The operators' words of before could not be read: none of them is in force.
    OverridesLost {
        /// Where they were kept.
        file: String,
        /// Why, and what to do.
        error: String,
    },
}

/// A word of an operator and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Utterance {
    /// What became of it.
    pub how: Spoken,
    /// Over regions or endpoints.
    pub target: Target,
    /// Its pattern.
    pub name: String,
    /// What it says; `None`: that the configuration rules again.
    pub state: Option<Intent>,
    /// Who said it.
    pub who: String,
    /// Why; may be empty.
    pub reason: String,
    /// When it will be over, Unix milliseconds.
    pub until_ms: Option<u64>,
}

/// What became of an operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// It was said.
    Set,
    /// It was taken back.
    Lifted,
    /// Its time is over.
    Expired,
    /// It is in force again after a restart.
    Recalled,
}

impl Spoken {
    /// The word of logs and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Spoken::Set => "set",
            Spoken::Lifted => "lifted",
            Spoken::Expired => "expired",
            Spoken::Recalled => "recalled",
        }
    }
}

impl Event {
    /// The word for its kind, as a metric's label or a filter.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::Endpoint { .. } => "endpoint",
            Event::Region { .. } => "region",
            Event::Ejection { .. } => "ejection",
            Event::Asked { .. } => "asked",
            Event::Shedding { .. } => "shedding",
            Event::Late { .. } => "late",
            Event::SelfSuspicion { .. } => "self_suspicion",
            Event::Panic { .. } => "panic",
            Event::Published { .. } => "published",
            Event::ReloadRefused { .. } => "reload_refused",
            Event::Override(_) => "override",
            Event::OverridesLost { .. } => "overrides_lost",
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
            Event::Asked { service, region, address, drain: true } => {
                write!(f, "service {service}: endpoint {address} in {region} asks to be drained")
            }
            Event::Asked { service, region, address, drain: false } => {
                write!(f, "service {service}: endpoint {address} in {region} asks for traffic again")
            }
            Event::Shedding { region, on, carried, capacity } => {
                let what = if *on { "sheds clients" } else { "takes all its clients again" };
                match capacity {
                    Some(Capacity { target, limit, unit }) => {
                        let unit = unit.as_str();
                        write!(f, "region {region} {what}: it carries {carried} {unit}, target {target}, limit {limit}")
                    }
                    None => write!(f, "region {region} {what}: it has no capacity any more"),
                }
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
            Event::ReloadRefused { generation, error } => {
                write!(f, "reload refused, generation {generation} stays: {}", error.trim_end())
            }
            Event::Override(utterance) => utterance.fmt(f),
            Event::OverridesLost { file, error } => write!(f, "operators' words in {file} are lost: {error}"),
        }
    }
}

impl fmt::Display for Utterance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, name, who) = (self.target.as_str(), &self.name, &self.who);
        let state = self.state.map_or("auto", Intent::as_str);
        match self.how {
            Spoken::Set | Spoken::Lifted => write!(f, "{who} set {target} {name} {state}")?,
            Spoken::Expired => {
                write!(f, "{target} {name} is no longer {state}, as {who} had set it: its time is over")?
            }
            Spoken::Recalled => write!(f, "{target} {name} is {state} as before, set by {who}")?,
        }
        if let Some(until) = self.until_ms.filter(|_| self.how != Spoken::Expired) {
            write!(f, " until {}", rfc3339(until))?;
        }
        if !self.reason.is_empty() && self.how != Spoken::Expired {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", self.kind())?;
        match self {
            Event::Endpoint { service, region, address, up, first, cause } => {
                map.serialize_entry("service", &**service)?;
                map.serialize_entry("region", &**region)?;
                map.serialize_entry("endpoint", address)?;
                map.serialize_entry("to", if *up { "up" } else { "down" })?;
                map.serialize_entry("first", first)?;
                map.serialize_entry("reason", cause)?;
            }
            Event::Region { service, region, from, to } => {
                map.serialize_entry("service", &**service)?;
                map.serialize_entry("region", &**region)?;
                map.serialize_entry("from", from.as_str())?;
                map.serialize_entry("to", to.as_str())?;
            }
            Event::Ejection { service, region, address, time, cause } => {
                map.serialize_entry("service", &**service)?;
                map.serialize_entry("region", &**region)?;
                map.serialize_entry("endpoint", address)?;
                map.serialize_entry("on", &time.is_some())?;
                map.serialize_entry("seconds", &time.map(|time| time.as_secs()))?;
                map.serialize_entry("reason", cause)?;
            }
            Event::Asked { service, region, address, drain } => {
                map.serialize_entry("service", &**service)?;
                map.serialize_entry("region", &**region)?;
                map.serialize_entry("endpoint", address)?;
                map.serialize_entry("drain", drain)?;
            }
            Event::Shedding { region, on, carried, capacity } => {
                map.serialize_entry("region", &**region)?;
                map.serialize_entry("on", on)?;
                map.serialize_entry("carried", carried)?;
                map.serialize_entry("target", &capacity.map(|capacity| capacity.target))?;
                map.serialize_entry("limit", &capacity.map(|capacity| capacity.limit))?;
                map.serialize_entry("unit", &capacity.map(|capacity| capacity.unit.as_str()))?;
            }
            Event::Late { by } => map.serialize_entry("ms", &(by.as_millis() as u64))?,
            Event::SelfSuspicion { on } => map.serialize_entry("on", on)?,
            Event::Panic { service, on } => {
                map.serialize_entry("service", &**service)?;
                map.serialize_entry("on", on)?;
            }
            Event::Published { generation } => map.serialize_entry("generation", generation)?,
            Event::ReloadRefused { generation, error } => {
                map.serialize_entry("generation", generation)?;
                map.serialize_entry("error", error.trim_end())?;
            }
            Event::Override(utterance) => {
                map.serialize_entry("how", utterance.how.as_str())?;
                map.serialize_entry("target", utterance.target.as_str())?;
                map.serialize_entry("name", &utterance.name)?;
                map.serialize_entry("state", utterance.state.map_or("auto", Intent::as_str))?;
                map.serialize_entry("who", &utterance.who)?;
                map.serialize_entry("reason", &utterance.reason)?;
                map.serialize_entry("until", &utterance.until_ms.map(rfc3339))?;
            }
            Event::OverridesLost { file, error } => {
                map.serialize_entry("file", file)?;
                map.serialize_entry("error", error)?;
            }
        }
        map.end()
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
        let utterance = |how, state, until_ms| {
            Event::Override(Box::new(Utterance {
                how,
                target: Target::Region,
                name: "eu-*".to_owned(),
                state,
                who: "alice".to_owned(),
                reason: "new switch".to_owned(),
                until_ms,
            }))
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
                Event::Asked {
                    service: Arc::from("web"),
                    region: Arc::from("eu-west"),
                    address: ([192, 0, 2, 1], 80).into(),
                    drain: true,
                },
                "asked",
                "service web: endpoint 192.0.2.1:80 in eu-west asks to be drained",
            ),
            (
                Event::Late { by: Duration::from_millis(1500) },
                "late",
                "this process stood still for 1500 ms: what it saw meanwhile does not count",
            ),
            (Event::SelfSuspicion { on: false }, "self_suspicion", "not everything is down any more"),
            (Event::Published { generation: 3 }, "published", "generation 3 is published"),
            (
                utterance(Spoken::Set, Some(Intent::Drain), Some(1_000)),
                "override",
                "alice set region eu-* drain until 1970-01-01T00:00:01.000Z: new switch",
            ),
            (utterance(Spoken::Lifted, None, None), "override", "alice set region eu-* auto: new switch"),
            (
                utterance(Spoken::Expired, Some(Intent::Maint), Some(1_000)),
                "override",
                "region eu-* is no longer maint, as alice had set it: its time is over",
            ),
            (
                utterance(Spoken::Recalled, Some(Intent::Drain), None),
                "override",
                "region eu-* is drain as before, set by alice: new switch",
            ),
        ];
        for (event, kind, line) in rows {
            assert_eq!((event.kind(), event.to_string().as_str()), (kind, line));
            let json = serde_json::to_value(&event).unwrap();
            assert_eq!(json["kind"], kind);
        }
        let json = serde_json::to_string(&utterance(Spoken::Set, Some(Intent::Drain), Some(1_000))).unwrap();
        assert_eq!(
            json,
            r#"{"kind":"override","how":"set","target":"region","name":"eu-*","state":"drain","who":"alice","reason":"new switch","until":"1970-01-01T00:00:01.000Z"}"#
        );
    }
}
