//! One pool as the writer holds it: its endpoints, its health, and the view of both that readers get.
//!
//! The view is rebuilt piece by piece, so that publishing a probe's verdict costs one slice of endpoints, not the fleet's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::steering::endpoints::{Accusation, Endpoint, Ids, Names, Turned, stand_for};
use crate::steering::fleet::{EndpointSpec, HealthPolicy, Intent, Probe};
use crate::steering::handover::EndpointHandover;
use crate::steering::load::Load;
use crate::steering::outlier::Peers;
use crate::steering::pool_health::{Finding, PoolHealth, Return, Tally, Voice};
use crate::steering::snapshot::{EndpointId, EndpointState, PoolState, PoolView};
use crate::steering::trip::Trip;
use crate::steering::world::{Now, ProbeResult};

/// A pool, its endpoints and their health.
#[derive(Debug)]
pub(crate) struct Pool {
    endpoints: Vec<Endpoint>,
    tally: Tally,
    health: PoolHealth,
    view: PoolView,
    moves: bool,
    trip: Trip,
}

impl Pool {
    /// A pool of which nothing was observed, without endpoints yet.
    pub(crate) fn new(now: Now) -> Pool {
        let health = PoolHealth::new(now);
        let view = PoolView {
            endpoints: Arc::from([]),
            state: health.state(),
            ramp: health.ramp(),
            spill: 0.0,
            epoch: health.epoch(),
            changed_ms: now.0,
            rtt_ms: None,
        };
        Pool { endpoints: Vec::new(), tally: Tally::default(), health, view, moves: false, trip: Trip::default() }
    }

    /// Gives it the endpoints that `specs` stand for.
    pub(crate) fn refit(
        &mut self,
        specs: &[EndpointSpec],
        names: &Names,
        probe: &Probe,
        ids: &mut Ids,
        load: &Arc<Load>,
    ) {
        self.endpoints = stand_for(specs, names, probe, std::mem::take(&mut self.endpoints), ids, load);
        self.recount();
        self.show_endpoints();
    }

    /// Gives its endpoints what operators want of them; returns whether that changes anything.
    pub(crate) fn ordain(&mut self, wanted: impl Fn(&Endpoint) -> Intent) -> bool {
        let mut changed = false;
        for endpoint in &mut self.endpoints {
            let intent = wanted(endpoint);
            changed |= std::mem::replace(&mut endpoint.intent, intent) != intent;
        }
        if changed {
            self.recount();
            self.show_endpoints();
        }
        changed
    }

    /// What operators want of all its endpoints together: the pool is in while one of them is.
    pub(crate) fn intent(&self) -> Intent {
        self.endpoints.iter().map(|endpoint| endpoint.intent).min().unwrap_or_default()
    }

    /// What is known of it as a whole.
    pub(crate) fn health(&self) -> &PoolHealth {
        &self.health
    }

    /// Goes on from what another process knew of it and of its endpoints, as far as it has them.
    pub(crate) fn go_on(&mut self, health: PoolHealth, endpoints: Vec<EndpointHandover>) {
        let mut known: HashMap<SocketAddr, EndpointHandover> =
            endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint)).collect();
        for endpoint in &mut self.endpoints {
            if let Some(handover) = known.remove(&endpoint.address) {
                endpoint.go_on(handover);
            }
        }
        self.health = health;
        self.recount();
        self.show_endpoints();
    }

    /// Ends a hold that only an operator ends; returns the state before if it was in one.
    pub(crate) fn release(&mut self, now: Now) -> Option<PoolState> {
        let from = self.health.release(now)?;
        self.view.state = self.health.state();
        Some(from)
    }

    /// Takes the result of the probe of its `index`-th endpoint: `passed` with what the answer asked for, or not. Returns the turn of its
    /// verdict, if it turned, and whether the view changed (the verdict over one that is ejected does not show).
    pub(crate) fn observe(
        &mut self,
        index: usize,
        result: &ProbeResult,
        policy: &HealthPolicy,
        now: Now,
    ) -> (Option<Turned>, bool) {
        let endpoint = &mut self.endpoints[index];
        let before = endpoint.face();
        let turned = endpoint.observe(result, policy, now);
        let changed = endpoint.face() != before;
        if changed {
            self.recount();
            self.show_endpoints();
        }
        (turned, changed)
    }

    /// Takes what the traffic of its endpoints told since the last look.
    pub(crate) fn look(&mut self) {
        self.endpoints.iter_mut().for_each(Endpoint::look);
    }

    /// Whether it has another endpoint that takes requests.
    pub(crate) fn has_beside(&self, index: usize) -> bool {
        self.endpoints.iter().enumerate().any(|(other, endpoint)| other != index && endpoint.peer().up > 0)
    }

    /// What is known of its endpoints together.
    pub(crate) fn peers(&self) -> Peers {
        self.endpoints.iter().map(Endpoint::peer).fold(Peers::default(), Peers::and)
    }

    /// Returns those of its endpoints that their traffic speaks against, and why; `others`: all of the service, and those beside this pool.
    pub(crate) fn accused(&mut self, policy: &HealthPolicy, others: [&Peers; 2], now: Now) -> Vec<(usize, Accusation)> {
        let accused = |(index, endpoint): (usize, &mut Endpoint)| Some((index, endpoint.accused(policy, others, now)?));
        // Nearly always there is none, and then nothing is allocated.
        self.endpoints.iter_mut().enumerate().filter_map(accused).collect()
    }

    /// Ejects its `index`-th endpoint unless too many are out; `all`: every one may be. Returns for how long.
    pub(crate) fn eject(
        &mut self,
        index: usize,
        cause: &str,
        all: bool,
        policy: &HealthPolicy,
        now: Now,
    ) -> Option<Duration> {
        // What an operator took out is as good as not there.
        let there = || self.endpoints.iter().filter(|endpoint| endpoint.intent == Intent::Ready);
        let most = if all { there().count() } else { there().count().div_ceil(2) };
        if there().filter(|endpoint| endpoint.is_out()).count() >= most {
            return None;
        }
        let time = self.endpoints[index].eject(cause, policy, now);
        self.recount();
        self.show_endpoints();
        Some(time)
    }

    /// The result of the last probe of its `index`-th endpoint does not count.
    pub(crate) fn probe_anew(&mut self, index: usize) {
        self.endpoints[index].anew = true;
    }

    /// Forgets what the traffic of its endpoints told.
    pub(crate) fn forget(&mut self) {
        self.endpoints.iter_mut().for_each(Endpoint::forget);
    }

    /// Lets time pass for ejections; returns the endpoints whose ejection is over.
    pub(crate) fn tick(&mut self, policy: &HealthPolicy, now: Now) -> Vec<usize> {
        let mut over = Vec::new();
        for (index, endpoint) in self.endpoints.iter_mut().enumerate() {
            if endpoint.tick(policy, now) {
                over.push(index);
            }
        }
        if !over.is_empty() {
            self.recount();
            self.show_endpoints();
        }
        over
    }

    /// Lets time pass for slow starts; returns whether the view changed.
    pub(crate) fn warm(&mut self, policy: &HealthPolicy, now: Now) -> bool {
        let mut changed = false;
        for endpoint in &mut self.endpoints {
            changed |= endpoint.warm(policy, now);
        }
        if changed {
            self.show_endpoints();
        }
        changed
    }

    /// What its endpoints say together.
    pub(crate) fn finding(&self, policy: &HealthPolicy) -> Finding {
        self.tally.finding(policy.min_healthy)
    }

    /// Whether other regions may count on it, as things are now.
    pub(crate) fn serves(&self, policy: &HealthPolicy) -> bool {
        self.health.serves(self.finding(policy)) && !self.leaves()
    }

    /// Whether every endpoint that could be taken asks to be drained, and there is one.
    pub(crate) fn leaves(&self) -> bool {
        let up = |endpoint: &&Endpoint| endpoint.intent == Intent::Ready && endpoint.state() == EndpointState::Up;
        let mut up = self.endpoints.iter().filter(up).peekable();
        up.peek().is_some() && up.all(|endpoint| endpoint.asked.drain)
    }

    /// Moves its state to where its endpoints and time put it; `others` says whether another region passes the sets. Returns the state
    /// before if it changed, and whether the view did.
    pub(crate) fn settle(
        &mut self,
        policy: &HealthPolicy,
        back: &Return,
        others: bool,
        now: Now,
    ) -> (Option<PoolState>, bool) {
        let from = self.health.settle(self.finding(policy), back, others, now);
        self.moves = self.health.moves(back) || self.endpoints.iter().any(|e| e.warms() || e.moves());
        let view = PoolView {
            endpoints: Arc::clone(&self.view.endpoints),
            state: self.health.state(),
            ramp: self.health.ramp(),
            spill: self.tally.spill(policy.overprovision),
            epoch: self.health.epoch(),
            changed_ms: self.health.changed().0,
            rtt_ms: self.trip.shown_ms(),
        };
        let numbers = |view: &PoolView| (view.state, view.ramp, view.spill, view.epoch, view.changed_ms);
        let changed = numbers(&view) != numbers(&self.view);
        self.view = view;
        (from, changed)
    }

    /// Looks at how long connections to it took to open; returns whether the view changed.
    pub(crate) fn look_at_trips(&mut self, policy: &HealthPolicy, now: Now) -> bool {
        let sum = self.endpoints.iter_mut().map(Endpoint::take_trips);
        let sum = sum.fold((0_u64, 0_u64), |(a, b), (micros, count)| (a.saturating_add(micros), b + count));
        let interval = (self.view.state != PoolState::Down).then_some(policy.interval);
        let changed = self.trip.look(sum, interval, now);
        self.view.rtt_ms = self.trip.shown_ms();
        changed
    }

    /// Whether time alone moves it.
    pub(crate) fn moves(&self) -> bool {
        self.moves
    }

    /// Its endpoints, in the order of the view.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Their ids.
    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> + '_ {
        self.endpoints.iter().map(|endpoint| endpoint.id)
    }

    /// As readers see it.
    pub(crate) fn view(&self) -> &PoolView {
        &self.view
    }

    fn recount(&mut self) {
        // What an operator took out counts as if it were not there. Where that is all, they all count: what was observed of the pool
        // goes on, and its service has it drained.
        let all_out = self.intent() != Intent::Ready;
        let counted = self.endpoints.iter().filter(|endpoint| all_out || endpoint.intent == Intent::Ready);
        self.tally = Tally::of(counted.map(|e| Voice { state: e.state(), weight: e.weight, asked: e.asked }));
    }

    fn show_endpoints(&mut self) {
        self.view.endpoints = self.endpoints.iter().map(Endpoint::view).collect();
    }
}
