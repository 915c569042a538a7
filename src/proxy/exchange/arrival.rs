//! A request arrives: its head is checked, its client and service are found, and its first attempt is planned.
//!
//! Must not know of: attempts after the first.

use std::sync::Arc;

use http::Method;
use http::uri::Authority;

use super::takes::{InFlight, with_room, with_room_out_of_doubt};
use super::{Exchange, Head, Shared, UnderWay};
use crate::proxy::affinity::Claim;
use crate::proxy::client::{self, Client};
use crate::proxy::framing::{self, Framing};
use crate::proxy::rates;
use crate::proxy::retry;
use crate::proxy::rules::Ruled;
use crate::proxy::{Fields, Outcome, grpc, headers, trace};
use crate::state::Published;
use crate::steering::Query;
use crate::steering::fleet::Protocol;
use crate::telemetry::{AccessRecord, AffinityResult, Traced};

/// The most bytes of a target that the log keeps.
const TARGET_BYTES: usize = 2_048;

impl Exchange {
    pub(super) fn new<F: Fields>(shared: &Arc<Shared>, published: Arc<Published>, head: &Head<'_, F>) -> Exchange {
        let client = head.peer.map(|peer| client::client(peer.ip(), &published.edge, head.fields));
        let kept = headers::request_id(client.as_ref(), head.fields);
        let is_http_11 = head.version == http::Version::HTTP_11;
        let trusted = client.is_some_and(|client| client.peer_trusted);
        let traced = trace::of(&published.edge.trace, head.fields, trusted, head.id, head.chance);
        Exchange {
            record: record(shared, head, client.as_ref(), kept.unwrap_or(head.id), traced),
            client,
            request_id_kept: kept.is_some(),
            scheme: head.scheme,
            version: match head.version {
                http::Version::HTTP_2 => "2.0",
                http::Version::HTTP_11 => "1.1",
                _ => "1.0",
            },
            framing: Framing::None,
            websocket: headers::is_websocket(head.method, head.fields, is_http_11),
            is_call: grpc::is_call(head.method, head.fields),
            max_forwards: None,
            ruled: Ruled::default(),
            challenge: None,
            preamble: None,
            idempotent: retry::is_idempotent(head.method),
            claim: Claim::Absent,
            affinity: None,
            walk: None,
            started: head.now,
            deadline: head.now,
            current: None,
            connecting: None,
            planned: None,
            rival: None,
            counted: None,
            in_flight: None,
            under_way: None,
            limited: None,
            permits: Vec::new(),
            fresh: 0,
            answered: None,
            interim: false,
            passed_on: false,
            outcome: Outcome::Answered,
            published,
            shared: Arc::clone(shared),
        }
    }

    /// From a head to a service, and to the first attempt.
    pub(super) fn route<F: Fields>(&mut self, head: &Head<'_, F>) -> Result<(), Outcome> {
        let edge = &self.published.edge;
        let is_http_10 = head.version < http::Version::HTTP_11;
        headers::check(head.method, head.target, head.fields, &edge.limits, &edge.via)?;
        self.framing = framing::request(head.fields, is_http_10)?;
        // As early as may be: who has too much to do must not do more to say so. Not before it is known where the request ends, for the connection may be kept.
        if self.shared.pressure.is_on() {
            return Err(Outcome::Memory);
        }
        if edge.limits.in_flight > 0 {
            self.under_way = Some(UnderWay::enter(&self.shared.under_way, edge.limits.in_flight)?);
        }
        let host = headers::host(head.target, head.fields, is_http_10)?;
        let path = headers::path(head.method, head.target)?;
        self.max_forwards = headers::max_forwards(head.method, head.fields);
        if self.max_forwards == Some(0) {
            return Err(Outcome::MaxForwards);
        }
        self.record.text.push_host(host);
        // Before any rule of a service, one that sends clients to https above all: that is what a certificate is still needed for.
        if self.shared.challenges.any() && head.scheme == "http" && *head.method == Method::GET {
            self.challenge = self.shared.challenges.request(path);
            if self.challenge.is_some() {
                return Err(Outcome::Challenge);
            }
        }
        // Whichever of them it was.
        if !head.bound.iter().all(|certificate| certificate.is_for(host)) {
            return Err(Outcome::Misdirected);
        }
        let id = self.published.snapshot.fleet().router.route(host, path)?;
        self.record.service = Some(id);
        self.counted = Some(self.published.handles.in_flight(id));

        let published = Arc::clone(&self.published);
        let service = published.snapshot.fleet().service(id);
        if let (Some(limit), Some(client)) = (&service.rate_limit, self.client)
            && let Err(wait) = self.shared.rates.take(&service.name, limit, client.address)
        {
            self.limited = Some(Box::new(rates::told(limit, wait)));
            return Err(Outcome::RateLimited);
        }
        if let Some(rules) = &service.rules {
            self.ruled.by(rules, head, self.client.as_ref(), (host, path))?;
        }
        if matches!(self.framing, Framing::Length(length) if length > service.max_body) {
            return Err(Outcome::BodyTooLarge);
        }
        self.idempotent |= service.retry.idempotency_key
            && head.fields.values("idempotency-key").next().is_some_and(|key| !key.is_empty());
        if service.upstream.protocol != Protocol::Http1 {
            // HTTP/2 has another way, which we do not go: the upstream gets a plain GET, as from a proxy that knows no upgrades.
            self.websocket = false;
            // Percent-encoded names, which are as good as never used, cannot be said there by the library.
            if !host.is_empty() && Authority::try_from(host.as_bytes()).is_err() {
                return Err(Outcome::BadHost);
            }
        }
        let patience = if self.is_call { grpc::timeout(head.fields) } else { None };
        let request = patience.map_or(service.timeouts.request, |patience| patience.min(service.timeouts.request));
        self.deadline = head.now + request;
        // A peer without an address (a Unix socket) is nowhere, as any unlisted special-purpose address is.
        let address = self.client.map(|client| client.address);
        let client = address.unwrap_or(crate::geo::Canonical::new(std::net::Ipv4Addr::UNSPECIFIED.into()));
        if let Some(affinity) = &service.affinity {
            let fleet = published.snapshot.fleet();
            self.claim = Claim::of(affinity, service, fleet, head.fields, head.at_us / 1_000_000);
        }
        let affinity = self.claim.region();
        let snapshot = &published.snapshot;
        snapshot.clients[id.index()].see(client, head.chance);
        let now = || self.shared.reader.clock().nanos(head.now);
        let full = snapshot.full(service.regions, now);
        let query = Query { client, service: id, chance: head.chance, affinity, full };
        let once = self.goes_once(service);
        let walk = self.walk.insert(snapshot.walk(&query));
        self.record.place = Some(snapshot.view.atlas.place(walk.place()));
        let enter = |take| InFlight::enter(snapshot, take, true, now);
        let taken = match once {
            false => with_room(walk, snapshot, |walk| walk.take(snapshot), enter),
            true => {
                let (taken, left) = with_room_out_of_doubt(walk, snapshot, affinity, enter);
                left.into_iter().for_each(|region| published.handles.doubted(id, region));
                taken
            }
        };
        if service.affinity.is_some() {
            self.affinity = Some(match self.claim {
                Claim::Region { id, .. } if taken.as_ref().is_ok_and(|(take, _)| take.region == id) => {
                    AffinityResult::Honoured
                }
                Claim::Region { .. } | Claim::Gone => AffinityResult::Unavailable,
                Claim::Expired => AffinityResult::Expired,
                Claim::Broken => AffinityResult::Broken,
                Claim::Absent => AffinityResult::Absent,
            });
        }
        let (take, in_flight) = taken?;
        let attempt = self.plan(service, take, false, request);
        self.planned = Some((attempt, in_flight));
        Ok(())
    }
}

fn record<F>(
    shared: &Shared,
    head: &Head<'_, F>,
    client: Option<&Client>,
    request_id: u128,
    traced: Traced,
) -> Box<AccessRecord> {
    let mut record = shared.access.record();
    let mut text = std::mem::take(&mut record.text);
    let target = &head.target[..head.target.len().min(TARGET_BYTES)];
    match std::str::from_utf8(target) {
        Ok(target) => text.set_target(target),
        Err(_) => text.set_target(&String::from_utf8_lossy(target)),
    }
    *record = AccessRecord {
        at_us: head.at_us,
        peer: head.peer,
        client: client.map(|client| client.address.ip()),
        request_id,
        method: head.method.clone(),
        text,
        protocol: match head.version {
            http::Version::HTTP_10 => "HTTP/1.0",
            http::Version::HTTP_11 => "HTTP/1.1",
            http::Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP",
        },
        mover: head.mover,
        traced,
        outcome: Outcome::Answered.label(),
        ..AccessRecord::unused()
    };
    record
}
