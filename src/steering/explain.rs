//! A decision told in full: the place, the order with distances, every step with its reason, the choice and what is left.
//!
//! There is no second matcher: an explanation is a walk of the same code that serves requests, written down. It is a plain value, so that a running
//! process can send it and the command line can print it either way.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::geo::{Atlas, Canonical, Place, PlaceId, Source};
use crate::steering::decision::{Step, Take};
use crate::steering::fleet::{Fleet, Intent};
use crate::steering::ids::{RegionId, RegionSet, ServiceId};
use crate::steering::order::biased;
use crate::steering::overrides::Shown;
use crate::steering::route::{NoRoute, normalise};
use crate::steering::snapshot::Snapshot;
use crate::steering::walk::{Avoid, Query};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The client, as given.
    pub client: IpAddr,
    /// Host; `None`: see [`service_for`].
    pub host: Option<String>,
    /// Path of the request target.
    pub path: String,
    /// Method.
    pub method: String,
    /// The region that the client was at before; counts for services with affinity.
    pub affinity: Option<String>,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Where the state of health is from.
    pub basis: String,
    /// The configuration's generation.
    pub generation: u64,
    /// The client, as given.
    pub ip: IpAddr,
    /// The client without its IPv6 wrapping.
    pub canonical: IpAddr,
    /// What is known of it.
    pub place: ExplainedPlace,
    /// Host, path and method asked for.
    pub request: String,
    /// The region that the client was at before, if that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<String>,
    /// The service, unless none was found.
    pub service: Option<String>,
    /// `nearest`, `split`, `band` or `balanced`.
    pub steering: Option<String>,
    /// All regions, best first.
    pub order: Vec<ExplainedRegion>,
    /// The steps up to the endpoint taken.
    pub steps: Vec<ExplainedStep>,
    /// The region taken.
    pub region: Option<String>,
    /// The endpoint taken.
    pub endpoint: Option<String>,
    /// Why that region, or why none.
    pub reason: String,
    /// The status that the client gets when nothing is taken.
    pub status: Option<u16>,
    /// The regions that would be tried next, one after the other.
    pub failover: Vec<String>,
}

/// A place in words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainedPlace {
    /// ISO 3166-1 code.
    pub country: Option<String>,
    /// ISO 3166-2 code without the country.
    pub subdivision: Option<String>,
    /// Two-letter code.
    pub continent: Option<String>,
    /// Degrees north.
    pub latitude: Option<f64>,
    /// Degrees east.
    pub longitude: Option<f64>,
    /// `unknown`, `special`, or the database or geofeed that knew it.
    pub source: String,
}

/// A region of the order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainedRegion {
    /// Its name.
    pub region: String,
    /// Great-circle distance; `None` where either end has no point.
    pub km: Option<f64>,
    /// Its bias, if any; the order counts with it.
    pub bias: i8,
    /// Kilometres that its distances are shortened by, where the service is balanced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
    /// The round trip from here in milliseconds, where that counts for the service and is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// The distance that decides, where an offset or a round trip counts for the service: the order is by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts_km: Option<f64>,
    /// What operators want of it, for the service asked for: by the configuration, or since.
    #[serde(default)]
    pub intent: Intent,
    /// The operator's word that rules over it, if any does.
    #[serde(default, rename = "override")]
    pub word: Option<Shown>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainedStep {
    /// `take` or `pass`.
    pub step: String,
    /// The region.
    pub region: String,
    /// The word of the contract.
    pub reason: String,
}

impl Question {
    /// The region that the client was at before: one of `service`'s, if it has affinity at all.
    pub fn affinity(&self, fleet: &Fleet, service: ServiceId) -> Option<RegionId> {
        let service = fleet.service(service);
        service.affinity.as_ref()?;
        fleet.region_named(self.affinity.as_deref()?).filter(|region| service.regions.contains(*region))
    }
}

/// The service a question is for. Without a host, the services for every host are asked; the first service of all is meant where there
/// are none of these, or none with `/`, which is also what a question without a path asks for.
pub fn service_for(fleet: &Fleet, host: Option<&str>, path: &str) -> Result<ServiceId, NoRoute> {
    let found = fleet.router.route(host.unwrap_or_default(), path);
    match (found, host) {
        (Err(NoRoute::Host), None) if normalise(path).is_none() => Err(NoRoute::BadPath),
        (Err(NoRoute::Host), None) if !fleet.services.is_empty() => Ok(ServiceId(0)),
        (Err(NoRoute::Path), None) if path == "/" => Ok(ServiceId(0)),
        _ => found,
    }
}

impl ExplainedPlace {
    /// Of a place of an atlas.
    pub fn new(atlas: &Atlas, place: &Place) -> ExplainedPlace {
        ExplainedPlace {
            country: place.country.map(|c| c.as_str().to_owned()),
            subdivision: place.subdivision.map(|s| s.as_str().to_owned()),
            continent: place.continent.map(|c| c.as_str().to_owned()),
            latitude: place.point.map(|p| p.latitude()),
            longitude: place.point.map(|p| p.longitude()),
            source: source_name(atlas, place.source).to_owned(),
        }
    }
}

/// `unknown`, `special`, or the name of the database or geofeed.
pub fn source_name(atlas: &Atlas, source: Source) -> &str {
    match source {
        Source::Unknown => "unknown",
        Source::Special => "special",
        Source::Database(index) => atlas.databases().get(usize::from(index)).map_or("unknown", |info| &info.name),
        Source::Geofeed(index) => atlas.geofeeds().get(usize::from(index)).map_or("unknown", |info| &info.name),
    }
}

impl Snapshot {
    /// Answers `question` in full. `basis` says where this snapshot's health is from; `full` are the regions at their limit.
    pub fn explain(&self, question: &Question, basis: &str, full: RegionSet) -> Explanation {
        let fleet = self.fleet();
        let canonical = Canonical::new(question.client);
        let located = self.view.atlas.locate(canonical);
        let place = self.view.atlas.place(located.place);
        let host = question.host.as_deref();
        let mut answer = Explanation {
            basis: basis.to_owned(),
            generation: self.generation,
            ip: question.client,
            canonical: canonical.ip(),
            place: ExplainedPlace::new(&self.view.atlas, &place),
            request: format!("{} {}{}", question.method, host.unwrap_or("*"), question.path),
            affinity: None,
            service: None,
            steering: None,
            order: self.explain_order(located.place, &place),
            steps: Vec::new(),
            region: None,
            endpoint: None,
            reason: String::new(),
            status: None,
            failover: Vec::new(),
        };
        match service_for(fleet, host, &question.path) {
            Ok(service) => {
                answer.service = Some(fleet.service(service).name.clone());
                answer.steering = Some(fleet.service(service).steering.as_str().to_owned());
                for (region, id) in answer.order.iter_mut().zip(self.view.orders.order(located.place)) {
                    // A service without a pool there says nothing of it.
                    if fleet.service(service).regions.contains(*id) {
                        region.intent = self.service(service).intent(*id);
                    }
                    let pool = fleet.service(service).pool_of[id.index()];
                    let blended = pool.filter(|_| fleet.service(service).blend.is_some());
                    let rtt_ms = blended.and_then(|pool| self.pool(pool).rtt_ms);
                    region.rtt_ms = rtt_ms.map(|rtt_ms| (rtt_ms * 10.0).round() / 10.0);
                    if fleet.service(service).weighted.contains(*id) {
                        let balance = self.view.balances[service.index()].as_ref();
                        region.offset = balance.map(|balance| balance.offset(*id).round());
                    }
                    let km = region.km.map(|km| biased(km, region.bias));
                    region.counts_km = match (fleet.service(service).blend.zip(region.rtt_ms), region.offset.zip(km)) {
                        (Some((blend, rtt_ms)), _) => Some(blend.km(km.unwrap_or(0.0), rtt_ms)),
                        (None, Some((offset, km))) => Some(km - offset),
                        (None, None) => None,
                    };
                }
                let theirs = |region: &ExplainedRegion| {
                    fleet.region_named(&region.region).is_some_and(|id| fleet.service(service).regions.contains(id))
                };
                // Only if all are known does it decide; the sort keeps what is equal.
                if answer.order.iter().filter(|region| theirs(region)).all(|region| region.counts_km.is_some()) {
                    let key = |region: &ExplainedRegion| region.counts_km.unwrap_or(f64::INFINITY);
                    answer.order.sort_by(|a, b| key(a).total_cmp(&key(b)));
                }
                let affinity = question.affinity(fleet, service);
                answer.affinity = affinity.map(|region| fleet.region(region).name.clone());
                self.explain_walk(Query { client: canonical, service, chance: 0, affinity, full }, &mut answer);
            }
            Err(refused) => {
                answer.reason = refused.as_str().to_owned();
                answer.status = Some(refused.status());
            }
        }
        answer
    }

    /// What operators want of a region, whatever the service.
    pub fn intent(&self, id: RegionId) -> Intent {
        let region = self.fleet().region(id);
        self.overrides.of_region(&region.name).map_or(region.intent, |word| word.state)
    }

    fn explain_order(&self, id: PlaceId, place: &Place) -> Vec<ExplainedRegion> {
        let point = self.view.orders.topology().point_of(place);
        let regions = self.view.orders.order(id).iter().map(|id| (*id, self.fleet().region(*id)));
        regions
            .map(|(id, region)| ExplainedRegion {
                region: region.name.clone(),
                km: point.zip(region.location).map(|(a, b)| (a.distance_km(b) * 10.0).round() / 10.0),
                bias: region.bias,
                offset: None,
                rtt_ms: None,
                counts_km: None,
                intent: self.intent(id),
                word: self.overrides.of_region(&region.name).map(|word| Shown::from(&**word)),
            })
            .collect()
    }

    fn explain_walk(&self, query: Query, answer: &mut Explanation) {
        let fleet = self.fleet();
        let name = |region| fleet.region(region).name.clone();
        let mut walk = self.walk(&query);
        let taken = loop {
            match walk.step(self) {
                Some(Step::Pass(region, reason)) => answer.steps.push(ExplainedStep {
                    step: "pass".to_owned(),
                    region: name(region),
                    reason: reason.as_str().to_owned(),
                }),
                Some(Step::Take(take)) => break Some(take),
                None => break None,
            }
        };
        let Some(Take { region, pool, endpoint, reason }) = taken else {
            let refusal = walk.refusal();
            answer.reason = refusal.as_str().to_owned();
            answer.status = Some(refusal.status());
            return;
        };
        let word = reason.as_str().to_owned();
        answer.steps.push(ExplainedStep { step: "take".to_owned(), region: name(region), reason: word.clone() });
        answer.region = Some(name(region));
        answer.endpoint = self.pool(pool).endpoints.get(usize::from(endpoint)).map(|e| e.name.to_string());
        answer.reason = word;
        let mut been: RegionSet = [region].into_iter().collect();
        walk.failed(self, Avoid::Region);
        while let Ok(next) = walk.take(self) {
            if been.contains(next.region) {
                break;
            }
            been.insert(next.region);
            answer.failover.push(name(next.region));
            walk.failed(self, Avoid::Region);
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "health    {}", self.basis)?;
        write!(f, "client    {}", self.ip)?;
        if self.ip != self.canonical {
            write!(f, " (that is {})", self.canonical)?;
        }
        writeln!(f, "\nplace     {}", self.place)?;
        write!(f, "request   {}", self.request)?;
        if let (Some(service), Some(steering)) = (&self.service, &self.steering) {
            write!(f, "  ->  service {service} ({steering})")?;
        }
        writeln!(f)?;
        if let Some(affinity) = &self.affinity {
            writeln!(f, "affinity  {affinity}")?;
        }
        let width = self.order.iter().map(|r| r.region.len()).max().unwrap_or(0);
        for (index, region) in self.order.iter().enumerate() {
            let label = if index == 0 { "order" } else { "" };
            write!(f, "{label:<9} {:>3}  {:<width$}", index + 1, region.region)?;
            match region.km {
                Some(km) => write!(f, "  {km:>8.0} km")?,
                None => write!(f, "  {:>8}", "no distance")?,
            }
            if region.bias != 0 {
                write!(f, "  bias {:+}", region.bias)?;
            }
            if let Some(offset) = region.offset {
                write!(f, "  {} {:.0} km", if offset < 0.0 { "plus" } else { "less" }, offset.abs())?;
            }
            if let Some(rtt_ms) = region.rtt_ms {
                write!(f, "  {rtt_ms:.1} ms")?;
            }
            if let Some(counts) = region.counts_km {
                write!(f, "  counts as {counts:.0} km")?;
            }
            match (&region.word, region.intent) {
                (Some(word), _) => write!(f, "  {word}")?,
                (None, Intent::Ready) => {}
                (None, intent) => write!(f, "  {}", intent.as_str())?,
            }
            writeln!(f)?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            let label = if index == 0 { "steps" } else { "" };
            writeln!(f, "{label:<9} {}  {:<width$}  {}", step.step, step.region, step.reason)?;
        }
        match (&self.region, &self.endpoint, self.status) {
            (Some(region), Some(endpoint), _) => writeln!(f, "choice    {region}, {endpoint} ({})", self.reason)?,
            (_, _, Some(status)) => writeln!(f, "choice    none: {} (status {status})", self.reason)?,
            _ => writeln!(f, "choice    none: {}", self.reason)?,
        }
        if !self.failover.is_empty() {
            writeln!(f, "failover  {}", self.failover.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for ExplainedPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.country, &self.subdivision, &self.continent) {
            (Some(country), Some(subdivision), _) => write!(f, "{country}-{subdivision}")?,
            (Some(country), None, _) => write!(f, "{country}")?,
            (None, _, Some(continent)) => write!(f, "continent {continent}")?,
            (None, _, None) => return write!(f, "{}", self.source),
        }
        match self.latitude.zip(self.longitude) {
            Some((latitude, longitude)) => write!(f, " at {latitude:.4}, {longitude:.4}")?,
            None => write!(f, ", no coordinates")?,
        }
        write!(f, ", from {}", self.source)
    }
}
