//! Balanced steering: each region gets the share that its weight says, and distances in all are the least that allows it.
//!
//! That is an optimal transport of clients to regions, and such a transport has a simple form: one number of kilometres for each region, its *offset*,
//! such that every client goes to the region with the least distance minus offset. Who turns 70/30 into 60/40 moves a border, and only those who
//! live at it.
//!
//! The offsets are found for a sample of clients ([`Sample`]). First each client of it goes to its nearest region; then, one client after
//! the other, what a region has too much of goes to one that lacks it over the cheapest chain of exchanges (successive shortest paths over the regions,
//! a minimum-cost flow), which ends at the least sum of distances for the shares wanted. The offsets are the dual of that flow: where they may lie anywhere
//! in an interval, in its middle.
//!
//! Places are points with many clients, a country perhaps. So that a border can run through one, each network has a distance of its own to each
//! region, up to [`SPREAD_KM`] more than its place's, by the same draw as in a split.
//!
//! Clients whom a pin or a network of the configuration sends somewhere, or who may be served by one region only, are there already; who has no place
//! is drawn by weight. It must not know who else is down: what is lost of a region goes to the next by the same numbers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::geo::{Atlas, Canonical, HalfAngles};
use crate::steering::accept::{DrawKey, Tag};
use crate::steering::clients;
use crate::steering::fleet::{Fleet, Service, Steering};
use crate::steering::ids::{RegionId, ServiceId};
use crate::steering::order::{Areas, Orders, Topology};
use crate::steering::snapshot::{Snapshot, View};
use crate::steering::walk::{Head, head};

/// How far the distances of two networks of one place may lie apart. Small beside what regions lie apart, and large enough that offsets of
/// doubles can tell the networks of a city from each other.
pub const SPREAD_KM: f64 = 10.0;

/// Networks of clients by the name of the service that they asked for; services that too few asked for are not in it.
pub type Sample = BTreeMap<String, Vec<Canonical>>;

/// Clients that are assigned in all, as far as that leaves [`LEAST`] for each balanced service: some seconds for fifty regions.
const CLIENTS: usize = 60_000;
const LEAST: usize = 300;

/// Clients that are assigned for each of so many services.
fn most(services: usize) -> usize {
    (CLIENTS / services.max(1)).max(LEAST)
}

/// Who asks for the balanced services of a snapshot, as far as enough were seen.
pub fn sample(snapshot: &Snapshot) -> Sample {
    let seen = snapshot.fleet().services.iter().zip(&snapshot.clients);
    let seen = seen.filter(|(service, _)| service.steering == Steering::Balanced);
    let enough = seen.map(|(service, clients)| (service.name.clone(), clients.networks()));
    enough.filter(|(_, networks)| networks.len() >= clients::ENOUGH).collect()
}

/// The offsets of one service, in kilometres by `RegionId`; 0 for regions without a share.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    offsets: Box<[f64]>,
}

impl Balance {
    /// What a region's distances are shortened by.
    pub fn offset(&self, region: RegionId) -> f64 {
        self.offsets[region.index()]
    }
}

/// A network's distance to a region for balanced steering, without the region's offset: that of its place, with the region's bias, and its own.
pub fn distance(topology: &Topology, from: &HalfAngles, region: RegionId, draw: impl FnOnce() -> f64) -> f64 {
    topology.biased_km(from, region) + SPREAD_KM * draw()
}

/// How often it is looked whether the traffic is where it was.
pub const EVERY: Duration = Duration::from_secs(900);

/// Part of a service's clients that may be at a wrong region before any are moved: twice what chance makes of a sample.
const TOLERANCE: f64 = 0.03;

/// The largest part that is moved at a time.
const STEP: f64 = 0.05;

/// The balances of a snapshot as its traffic wants them: where the shares are off by more than [`TOLERANCE`], some of the way to them. `None`: nothing is
/// to be moved. As long as [`Ground::balances`] takes.
pub fn follow(now: &Snapshot) -> Option<Arc<[Option<Balance>]>> {
    let (ground, sample) = (now.view.ground(), sample(now));
    let mut balances = now.view.balances.to_vec();
    let most = most(sample.len());
    let mut moved = false;
    for ((service, id), balance) in now.fleet().services.iter().zip(0..).zip(&mut balances) {
        let (Some(balance), Some(clients)) = (balance.as_mut(), sample.get(&service.name)) else { continue };
        let Some(wanted) = ground.shares(service) else { continue };
        let Some(rows) = ground.enough(ServiceId(id), clients, most) else { continue };
        // As near as pins and residency let it come.
        let can = loads(&transport(&rows, &wanted).to, wanted.len());
        let is = shares_of(&rows, balance);
        let off: f64 = is.iter().zip(&can).map(|(is, can)| (can - is).max(0.0)).sum();
        if off <= TOLERANCE {
            continue;
        }
        let part = (STEP / off).min(1.0);
        let next: Vec<f64> = is.iter().zip(&can).map(|(is, can)| is + (can - is) * part).collect();
        let offsets = transport(&rows, &next).offsets();
        moved |= offsets != balance.offsets;
        balance.offsets = offsets;
    }
    moved.then(|| balances.into())
}

/// The part of the clients that goes to each region.
fn loads(to: &[usize], count: usize) -> Vec<f64> {
    let mut shares = vec![0.0; count];
    to.iter().for_each(|region| shares[*region] += 1.0 / to.len() as f64);
    shares
}

/// The shares `is`, shifted as those `before` are to become those `after`.
fn shifted(is: &[f64], before: &[f64], after: &[f64]) -> Vec<f64> {
    let shifted = is.iter().zip(before).zip(after);
    // A share of nothing is nothing, whatever has drifted there.
    let shifted = shifted.map(|((is, before), after)| if *after > 0.0 { (is + after - before).max(0.0) } else { 0.0 });
    let shifted: Vec<f64> = shifted.collect();
    let sum: f64 = shifted.iter().sum();
    if sum > 0.0 { shifted.iter().map(|share| share / sum).collect() } else { after.to_vec() }
}

/// How the offsets share out these clients.
fn shares_of(rows: &[Row], balance: &Balance) -> Vec<f64> {
    let mut shares = vec![0.0; balance.offsets.len()];
    for row in rows {
        let cost = |region: &usize| row[*region] - balance.offsets[*region];
        if let Some(region) = (0..shares.len()).min_by(|a, b| cost(a).total_cmp(&cost(b))) {
            shares[region] += 1.0 / rows.len() as f64;
        }
    }
    shares
}

/// What offsets are worked out from.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// The configuration.
    pub fleet: &'a Fleet,
    /// Where clients are.
    pub atlas: &'a Atlas,
    /// Where regions are.
    pub orders: &'a Orders,
    /// Where clients may go.
    pub areas: &'a Areas,
}

impl Ground<'_> {
    /// The offsets of each service that is balanced, by `ServiceId`; those of `previous` where nothing changed that they depend on but who asks. Tenths of a
    /// second for a service in the worst case.
    pub fn balances(&self, sample: &Sample, previous: Option<&View>) -> Arc<[Option<Balance>]> {
        let mut addresses = None;
        let balanced = self.fleet.services.iter().filter(|service| service.steering == Steering::Balanced).count();
        let most = most(balanced);
        let services = self.fleet.services.iter().zip(0..);
        let balances = services.map(|(service, id)| {
            let wanted = self.shares(service)?;
            let before = previous.and_then(|previous| self.comparable(service, previous));
            if let Some((balance, shares)) = &before
                && *shares == wanted
            {
                return Some(balance.clone());
            }
            let seen = sample.get(&service.name).and_then(|clients| self.enough(ServiceId(id), clients, most));
            let rows = seen.unwrap_or_else(|| {
                let clients = addresses.get_or_insert_with(|| clients::addresses(self.atlas));
                self.rows(ServiceId(id), clients, most)
            });
            // Who changes a share moves that, and not what traffic has drifted: that is followed slowly.
            let wanted = match before {
                Some((balance, shares)) => shifted(&shares_of(&rows, &balance), &shares, &wanted),
                None => wanted,
            };
            Some(Balance { offsets: transport(&rows, &wanted).offsets() })
        });
        balances.collect()
    }

    /// What `previous` has for the service, and the shares that it was for, if nothing else is different now.
    fn comparable(&self, service: &Service, previous: &View) -> Option<(Balance, Vec<f64>)> {
        let before = previous.ground();
        let id = before.fleet.service_named(&service.name)?;
        let old = before.fleet.service(id);
        let is_same = std::ptr::eq(self.atlas, before.atlas)
            && self.orders.topology() == before.orders.topology()
            && self.fleet.networks == before.fleet.networks
            && (&service.seeds, service.draw, &service.pins, &service.residency, service.unknown_allowed)
                == (&old.seeds, old.draw, &old.pins, &old.residency, old.unknown_allowed);
        let balance = previous.balances[id.index()].clone().filter(|_| is_same)?;
        Some((balance, before.shares(old)?))
    }

    /// The share of each region that a service wants; `None`: it is not balanced.
    fn shares(&self, service: &Service) -> Option<Vec<f64>> {
        if service.steering != Steering::Balanced {
            return None;
        }
        let mut shares = vec![0.0; self.fleet.regions.len()];
        for pool in &service.pools {
            let pool = self.fleet.pool(*pool);
            shares[pool.region.index()] = f64::from(pool.weight);
        }
        let sum: f64 = shares.iter().sum();
        shares.iter_mut().for_each(|share| *share /= sum.max(1.0));
        Some(shares)
    }

    /// The same as [`Ground::rows`], if they are enough to go by.
    fn enough(&self, id: ServiceId, clients: &[Canonical], most: usize) -> Option<Vec<Row>> {
        Some(self.rows(id, clients, most)).filter(|rows| rows.len() >= clients::ENOUGH.min(most))
    }

    /// The distances of clients to the regions that they could go to by them; those who could not go anywhere else, or who have no place, are left out or
    /// have one region only.
    fn rows(&self, id: ServiceId, clients: &[Canonical], most: usize) -> Vec<Row> {
        let (fleet, topology) = (self.fleet, self.orders.topology());
        let service = fleet.service(id);
        let row = |(client, n): (&Canonical, u64)| {
            let located = self.atlas.locate(*client);
            let policy = self.areas.policy(id, located.place);
            let from = HalfAngles::of(topology.point_of(&self.atlas.place(located.place))?);
            let mut open = service.weighted.and(policy.residency);
            let sent = |region: &RegionId| open.contains(*region);
            let sent = match head(fleet, service, *client, located, policy.pin) {
                Head::None => None,
                Head::Network(region) => Some(region).filter(sent),
                Head::Pin(pin) => service.pins[usize::from(pin)].to.iter().copied().find(sent),
            };
            if let Some(region) = sent {
                open = [region].into_iter().collect();
            }
            let key = DrawKey::new(service.draw, *client, clients::scatter(n));
            let km = |region: RegionId| {
                let seed = service.seeds[region.index()][Tag::Split as usize];
                let km = || distance(topology, &from, region, || key.draw(seed));
                if open.contains(region) { km() } else { f64::INFINITY }
            };
            let row: Row = (0..fleet.regions.len()).map(|index| km(RegionId(index as u8))).collect();
            row.iter().any(|km| km.is_finite()).then_some(row)
        };
        let every = clients.len().div_ceil(most.max(1)).max(1);
        clients.iter().zip(1..).step_by(every).filter_map(row).collect()
    }
}

/// Times that offsets are put in the middle of the room that the others leave them.
const SWEEPS: usize = 4;

/// What one client's way to each region costs; infinite: it cannot go there.
type Row = Box<[f64]>;

/// The cheapest way to give each region its share of the clients, as far as they may go there. Shares are of 1; every row has a finite cost.
fn transport<'a>(rows: &'a [Row], shares: &[f64]) -> Flow<'a> {
    let mut flow = Flow::new(rows, shares);
    while flow.improve() {}
    flow
}

/// A transport of clients to regions.
struct Flow<'a> {
    rows: &'a [Row],
    /// Where each client goes.
    to: Vec<usize>,
    /// The clients of each region.
    at: Vec<Vec<usize>>,
    wanted: Vec<usize>,
    /// The least that one of a region's clients would pay for a move to another region, and who that is.
    least: Vec<Vec<(f64, usize)>>,
}

const NOBODY: (f64, usize) = (f64::INFINITY, usize::MAX);

impl Flow<'_> {
    fn new<'a>(rows: &'a [Row], shares: &[f64]) -> Flow<'a> {
        let count = shares.len();
        let mut flow = Flow {
            rows,
            to: vec![0; rows.len()],
            at: vec![Vec::new(); count],
            wanted: apportion(rows.len(), shares),
            least: vec![vec![NOBODY; count]; count],
        };
        for (client, row) in rows.iter().enumerate() {
            let nearest = (0..count).min_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
            flow.enter(client, nearest);
        }
        flow
    }

    fn enter(&mut self, client: usize, region: usize) {
        self.to[client] = region;
        self.at[region].push(client);
        for (other, least) in self.least[region].iter_mut().enumerate() {
            let cost = self.rows[client][other] - self.rows[client][region];
            if other != region && cost < least.0 {
                *least = (cost, client);
            }
        }
    }

    fn leave(&mut self, client: usize) {
        let region = self.to[client];
        self.at[region].retain(|other| *other != client);
        for other in 0..self.least.len() {
            if self.least[region][other].1 == client {
                let cost = |client: &usize| (self.rows[*client][other] - self.rows[*client][region], *client);
                let least = self.at[region].iter().map(cost).min_by(|a, b| a.0.total_cmp(&b.0));
                self.least[region][other] = least.filter(|(cost, _)| cost.is_finite()).unwrap_or(NOBODY);
            }
        }
    }

    /// Moves one client along each edge of the cheapest chain from a region that has too many to one that has too few; `false`: there is none.
    fn improve(&mut self) -> bool {
        let count = self.least.len();
        let has_more = |region: &usize| self.at[*region].len() > self.wanted[*region];
        let sources: Vec<usize> = (0..count).filter(has_more).collect();
        let (costs, before) = self.paths(&sources);
        let lacks = |region: &usize| self.at[*region].len() < self.wanted[*region] && costs[*region].is_finite();
        let Some(end) = (0..count).filter(lacks).min_by(|a, b| costs[*a].total_cmp(&costs[*b])) else { return false };
        let mut chain = Vec::new();
        let mut region = end;
        while let Some(previous) = before[region].filter(|_| chain.len() < count) {
            chain.push((self.least[previous][region].1, region));
            region = previous;
        }
        // Each mover is chosen by now; what it leaves behind changes the costs of others only.
        for (client, region) in chain {
            self.leave(client);
            self.enter(client, region);
        }
        true
    }

    /// The cheapest chains of moves from any of `sources`: what each costs, and the region before (Bellman and Ford).
    fn paths(&self, sources: &[usize]) -> (Vec<f64>, Vec<Option<usize>>) {
        let count = self.least.len();
        let (mut costs, mut before) = (vec![f64::INFINITY; count], vec![None; count]);
        sources.iter().for_each(|source| costs[*source] = 0.0);
        for _ in 0..count {
            let mut shorter = false;
            for from in (0..count).filter(|from| !self.at[*from].is_empty()) {
                for to in 0..count {
                    let cost = costs[from] + self.least[from][to].0;
                    // Rounding must not go round in a ring.
                    if cost < costs[to] - 1e-9 && from != to {
                        (costs[to], before[to]) = (cost, Some(from));
                        shorter = true;
                    }
                }
            }
            if !shorter {
                break;
            }
        }
        (costs, before)
    }

    /// Offsets under which every client is where it would go by itself: that of b may be above that of a by no more than the cheapest move from a to b costs.
    /// Where that leaves room, the middle of it, so that clients who were not asked fall to both sides alike.
    fn offsets(&self) -> Box<[f64]> {
        let count = self.least.len();
        let all: Vec<usize> = (0..count).collect();
        // The costs of the cheapest chains from anywhere are such offsets.
        let (mut offsets, _) = self.paths(&all);
        for _ in 0..SWEEPS {
            for region in 0..count {
                let others = || (0..count).filter(|other| *other != region);
                let lowest = others()
                    .map(|other| offsets[other] - self.least[region][other].0)
                    .fold(f64::NEG_INFINITY, f64::max);
                let highest =
                    others().map(|other| offsets[other] + self.least[other][region].0).fold(f64::INFINITY, f64::min);
                offsets[region] = match (lowest.is_finite(), highest.is_finite()) {
                    (true, true) => (lowest + highest) / 2.0,
                    // Nobody is there, and nobody is to come; or nobody can.
                    (false, true) => highest - SPREAD_KM,
                    (true, false) => lowest + SPREAD_KM,
                    (false, false) => offsets[region],
                };
            }
        }
        // Only differences count; shown are those to the largest region.
        let anchor = all.iter().max_by_key(|region| self.at[**region].len()).map_or(0.0, |region| offsets[*region]);
        offsets.iter().map(|offset| offset - anchor).collect()
    }
}

/// So many of `count` for each share, by the largest remainder.
fn apportion(count: usize, shares: &[f64]) -> Vec<usize> {
    let exact: Vec<f64> = shares.iter().map(|share| share * count as f64).collect();
    let mut whole: Vec<usize> = exact.iter().map(|exact| exact.floor() as usize).collect();
    let mut by_rest: Vec<usize> = (0..shares.len()).filter(|index| shares[*index] > 0.0).collect();
    by_rest.sort_by(|a, b| exact[*b].fract().total_cmp(&exact[*a].fract()).then(a.cmp(b)));
    let left = count.saturating_sub(whole.iter().sum());
    by_rest.iter().cycle().take(if by_rest.is_empty() { 0 } else { left }).for_each(|index| whole[*index] += 1);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(rows: &[Row], to: &[usize]) -> f64 {
        rows.iter().zip(to).map(|(row, to)| row[*to]).sum()
    }

    fn counts(to: &[usize], count: usize) -> Vec<usize> {
        (0..count).map(|region| to.iter().filter(|at| **at == region).count()).collect()
    }

    fn nearest(row: &Row, offsets: &[f64]) -> f64 {
        row.iter().zip(offsets).map(|(km, offset)| km - offset).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn shares_are_apportioned_by_the_largest_remainder() {
        for (count, shares, want) in [
            (10, &[0.5, 0.5][..], &[5, 5][..]),
            (10, &[0.333, 0.333, 0.334], &[3, 3, 4]),
            (7, &[0.7, 0.3, 0.0], &[5, 2, 0]),
            (0, &[1.0], &[0]),
            (3, &[0.0, 1.0], &[0, 3]),
            (2, &[0.0, 0.0], &[0, 0]),
        ] {
            assert_eq!(apportion(count, shares), want, "{count} {shares:?}");
        }
    }

    #[test]
    fn who_may_not_go_stays() {
        let far = f64::INFINITY;
        let rows: Vec<Row> = [[1.0, far], [1.0, far], [1.0, far], [5.0, 1.0]].map(Box::from).to_vec();
        let done = transport(&rows, &[0.5, 0.5]);
        assert_eq!(done.to, [0, 0, 0, 1], "half of them cannot be had");
        assert!(done.offsets().iter().all(|offset| offset.is_finite()));
    }

    fn clients(count: usize, regions: usize) -> impl Strategy<Value = Vec<Row>> {
        let row = proptest::collection::vec(0.0..20_000.0_f64, regions).prop_map(Vec::into_boxed_slice);
        proptest::collection::vec(row, count)
    }

    fn case() -> impl Strategy<Value = (Vec<Row>, Vec<f64>)> {
        (1usize..60, 1usize..6).prop_flat_map(|(count, regions)| {
            let weights =
                proptest::collection::vec(0u32..10, regions).prop_filter("a share", |w| w.iter().any(|w| *w > 0));
            let shares = weights.prop_map(|weights| {
                let sum: u32 = weights.iter().sum();
                weights.iter().map(|weight| f64::from(*weight) / f64::from(sum)).collect::<Vec<f64>>()
            });
            (clients(count, regions), shares)
        })
    }

    /// The least cost of a transport with these loads, by a linear program.
    fn linear_program(rows: &[Row], wanted: &[usize]) -> f64 {
        let mut problem = microlp::Problem::new(microlp::OptimizationDirection::Minimize);
        let ways: Vec<Vec<microlp::Variable>> =
            rows.iter().map(|row| row.iter().map(|km| problem.add_var(*km, (0.0, 1.0))).collect()).collect();
        for client in &ways {
            let all: Vec<_> = client.iter().map(|way| (*way, 1.0)).collect();
            problem.add_constraint(all, microlp::ComparisonOp::Eq, 1.0);
        }
        for (region, wanted) in wanted.iter().enumerate() {
            let all: Vec<_> = ways.iter().map(|client| (client[region], 1.0)).collect();
            problem.add_constraint(all, microlp::ComparisonOp::Eq, *wanted as f64);
        }
        match problem.solve().unwrap() {
            microlp::SolveOutcome::Solution(solution) => solution.objective(),
            microlp::SolveOutcome::Interrupted(_) => panic!("no solution in time"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// No other assignment with the same shares has less distance, and the offsets alone say who goes where.
        #[test]
        fn nothing_is_cheaper((rows, shares) in case()) {
            let done = transport(&rows, &shares);
            let wanted = apportion(rows.len(), &shares);
            prop_assert_eq!(counts(&done.to, shares.len()), wanted.clone());
            let (cost, least) = (total(&rows, &done.to), linear_program(&rows, &wanted));
            prop_assert!(cost <= least * (1.0 + 1e-6) + 1e-3, "{} instead of {}", cost, least);
            let offsets = done.offsets();
            for (row, to) in rows.iter().zip(&done.to) {
                let own = row[*to] - offsets[*to];
                prop_assert!(own <= nearest(row, &offsets) + 1e-3, "{:?} goes to {} with {:?}", row, to, offsets);
            }
        }

        /// More weight for one region of two takes clients from the other and gives none.
        #[test]
        fn a_border_moves_one_way(rows in clients(40, 2), first in 0usize..40, more in 0usize..40) {
            let at = |n: usize| transport(&rows, &[n as f64 / 40.0, (40 - n) as f64 / 40.0]).to;
            let (before, after) = (at(first.min(more)), at(first.max(more)));
            prop_assert!(before.iter().zip(&after).all(|(before, after)| before >= after));
        }
    }
}
