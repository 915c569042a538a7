//! The fast door: from a question to steps, take this endpoint or pass this region and why.
//!
//! A walk goes along one sequence of regions: the one that the client's affinity names, those that a pin names, then those that a split or
//! band ranks, then the order. Its first pass takes the first region that is in the sets, has weight and accepts the client; its second pass, when
//! none accepts, the first in the sets. What follows serves retries: endpoints not tried yet, then a tried one once more. Every
//! region passed on the way gives its reason, and the reasons are the same values that metrics, the log and `explain` show.
//!
//! A region whose endpoints all ask to be drained (by their answers to probes) is passed like one that an operator drains, while another region
//! is in the sets; affinity does not hold there. When all that are left ask for it, none is heeded: they are still up.
//!
//! The sets are those of SEMANTICS, and no later stage re-admits what an earlier one removed. Freshness (S4) belongs between
//! health and acceptance in [`Walk::barrier`]. Capacity (S5) is looked at in [`Walk::visit`], and once more by who counts the request in:
//! [`Walk::had_no_room`].

use arrayvec::ArrayVec;

use crate::geo::location::{angle_km, km_angle};
use crate::geo::{Canonical, HalfAngles, Located, PlaceId};
use crate::steering::accept::{DrawKey, Tag, accepts};
use crate::steering::balance::{Balance, distance};
use crate::steering::decision::{PassReason, Refusal, Step, Take, TakeReason};
use crate::steering::fleet::{Blend, Fleet, Panic, Pool, Service, Steering};
use crate::steering::ids::{MAX_REGIONS, PoolId, RegionId, RegionSet, ServiceId};
use crate::steering::order::Topology;
use crate::steering::select::{Heed, select};
use crate::steering::snapshot::{Snapshot, View};

/// The most attempts a configuration may allow for one request.
pub const MAX_ATTEMPTS: usize = 10;

/// How many endpoints a walk can leave out because they are in doubt, beside those that are tried.
pub const MAX_SPARED: usize = 3;

/// One question.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Who asks.
    pub client: Canonical,
    /// For what.
    pub service: ServiceId,
    /// A random number, used for the endpoint choice only (and for the draw with `draw = "request"`).
    pub chance: u64,
    /// The region that the client was at before, as it could prove; one that the service lacks counts for nothing.
    pub affinity: Option<RegionId>,
    /// The regions that are at their limit now ([`Snapshot::full`]): S5, read once.
    pub full: RegionSet,
}

/// How an attempt failed, as far as the walk minds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Avoid {
    /// This endpoint: another one in the same region may do.
    Endpoint,
    /// The whole region first (connect error or timeout).
    Region,
}

/// A walk in progress: plain state, no borrow, no heap. It must be continued with the snapshot that began it.
#[derive(Clone, Debug)]
pub struct Walk {
    service: ServiceId,
    place: PlaceId,
    chance: u64,
    draw: DrawKey,
    affinity: Option<RegionId>,
    head: Head,
    ranked: ArrayVec<RegionId, MAX_REGIONS>,
    sets: Sets,
    /// S5: regions that have no room, as far as this request knows.
    full: RegionSet,
    pass: Pass,
    /// Where in the sequence the pass is, and what it saw of it already (the segments overlap).
    at: Position,
    seen: RegionSet,
    /// What was taken, in this order; empty until the first take.
    tried: ArrayVec<(PoolId, u16), { MAX_ATTEMPTS + MAX_SPARED }>,
    /// The region to look at first: its endpoint failed, but another of its endpoints may do.
    stay: Option<RegionId>,
    /// Whether the round of [`Pass::Untried`] took something.
    found: bool,
    /// What the first telling pass makes of every take after it.
    consequence: Option<TakeReason>,
    /// Regions that were passed for what happened to them.
    lost: RegionSet,
}

/// The regions before everything else but affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    None,
    /// A line of `[geoip.networks]`.
    Network(RegionId),
    /// An index into `Service::pins`.
    Pin(u16),
}

#[derive(Clone, Copy, Debug)]
struct Sets {
    /// S1.
    residency: RegionSet,
    /// S1 to S3 without the regions that ask to be drained; with them when that leaves nothing; S1 and S2 in panic.
    open: RegionSet,
    /// What of S3 holds: nothing of it when it was empty and is lifted.
    heed: Heed,
    /// Why `open` is empty, if it is.
    refusal: Refusal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    First,
    Second,
    /// Endpoints not tried yet, in whatever region of the sets.
    Untried,
    /// One that was tried, once more.
    Again,
    Done,
}

/// What regions are scored by; the least wins.
enum Scale<'s> {
    /// Not at all: the order alone counts.
    Order,
    /// By weight.
    Draw,
    /// By distance from there, if that is known, and round trips.
    Blend(&'s Topology, Option<HalfAngles>, Blend),
    /// By distance from there, less what is shifted for balance.
    Distance(&'s Topology, HalfAngles, &'s Balance),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    segment: u8,
    index: u8,
}

/// The segments of the sequence, in this order.
const AFFINITY: u8 = 0;
const HEAD: u8 = 1;
const RANKED: u8 = 2;
const ORDER: u8 = 3;

impl Snapshot {
    /// Begins a walk for `query`. Pure: no clock, lock, I/O or allocation.
    pub fn walk(&self, query: &Query) -> Walk {
        let located = self.view.atlas.locate(query.client);
        let service = self.fleet().service(query.service);
        let policy = self.view.areas.policy(query.service, located.place);
        let draw = DrawKey::new(service.draw, query.client, query.chance);
        let sets = Sets::new(self, query.service, policy.residency, query.affinity);
        let mut walk = Walk {
            service: query.service,
            place: located.place,
            chance: query.chance,
            draw,
            affinity: query.affinity,
            head: head(self.fleet(), service, query.client, located, policy.pin),
            ranked: ArrayVec::new(),
            sets,
            full: query.full,
            pass: Pass::First,
            at: start(query.affinity),
            seen: RegionSet::EMPTY,
            tried: ArrayVec::new(),
            stay: None,
            found: false,
            consequence: None,
            lost: RegionSet::EMPTY,
        };
        walk.rank(self, service);
        walk
    }
}

/// Where a pass begins: few clients have an affinity.
fn start(affinity: Option<RegionId>) -> Position {
    Position { segment: if affinity.is_some() { AFFINITY } else { HEAD }, index: 0 }
}

/// A network's region if the service has it, else the pin of the place.
pub(super) fn head(fleet: &Fleet, service: &Service, client: Canonical, located: Located, pin: Option<u16>) -> Head {
    let network = fleet.networks.lookup(client);
    // Longest prefix wins between networks and geofeeds; at equal length the operator's own line does.
    let network = network
        .filter(|(region, len)| located.feed_len.is_none_or(|feed| feed <= *len) && service.regions.contains(*region));
    match (network, pin) {
        (Some((region, _)), _) => Head::Network(region),
        (None, Some(pin)) => Head::Pin(pin),
        (None, None) => Head::None,
    }
}

impl Sets {
    fn new(snapshot: &Snapshot, id: ServiceId, residency: RegionSet, affinity: Option<RegionId>) -> Sets {
        let service = snapshot.fleet().service(id);
        let view = snapshot.service(id);
        let resident = service.regions.and(residency);
        let mut ready = resident.without(view.drained.or(view.maint));
        if let Some(affinity) = affinity.filter(|region| resident.and(view.finishing).contains(*region)) {
            // For this client, who is there already, a drain counts as in until its time is up.
            ready.insert(affinity);
        }
        let live = ready.and(view.up);
        let serves_on = service.panic == Panic::Serve || snapshot.suspects_itself;
        let staying = live.without(view.leaving);
        let (open, heed) = if !staying.is_empty() {
            (staying, Heed::All)
        } else if !live.is_empty() {
            (live, Heed::Verdicts)
        } else if serves_on {
            (ready, Heed::Nothing)
        } else {
            (live, Heed::All)
        };
        let refusal = if resident.is_empty() {
            Refusal::Residency
        } else if ready.is_empty() {
            Refusal::NoRegion
        } else {
            Refusal::Unhealthy
        };
        Sets { residency: resident, open, heed, refusal }
    }
}

impl Walk {
    /// The client's place in the snapshot's atlas.
    pub fn place(&self) -> PlaceId {
        self.place
    }

    /// Whether the service panics for this client: no region it may use is up.
    pub fn panics(&self) -> bool {
        self.sets.heed == Heed::Nothing && !self.sets.open.is_empty()
    }

    /// The next endpoint to take, or why there is none.
    pub fn take(&mut self, snapshot: &Snapshot) -> Result<Take, Refusal> {
        loop {
            match self.step(snapshot) {
                Some(Step::Take(take)) => return Ok(take),
                Some(Step::Pass(..)) => {}
                None => return Err(self.refusal()),
            }
        }
    }

    /// The next step; `None` when nothing is left (see [`Walk::refusal`]).
    pub fn step(&mut self, snapshot: &Snapshot) -> Option<Step> {
        if self.tried.is_full() {
            return None;
        }
        if let Some(region) = self.stay.take()
            && !self.full.contains(region)
            && let Ok(take) = self.enter(snapshot, region, self.reason(snapshot))
        {
            return Some(Step::Take(take));
        }
        while self.pass != Pass::Done {
            let Some(region) = self.advance(snapshot) else {
                self.pass = self.next_pass();
                self.found = false;
                self.at = start(self.affinity);
                self.seen = RegionSet::EMPTY;
                continue;
            };
            match self.visit(snapshot, region) {
                Ok(take) => return Some(Step::Take(take)),
                Err(reason) if self.pass == Pass::First => {
                    self.consequence = self.consequence.or(reason.consequence());
                    if reason.consequence() == Some(TakeReason::Failover) {
                        self.lost.insert(region);
                    }
                    return Some(Step::Pass(region, reason));
                }
                // The first pass gave this region's reason already.
                Err(_) => {}
            }
        }
        None
    }

    /// Says that what was taken last failed. The next take is elsewhere as far as `avoid` says, untried endpoints first; when none is
    /// left, a tried one once more.
    pub fn failed(&mut self, snapshot: &Snapshot, avoid: Avoid) {
        self.consequence = self.consequence.or(PassReason::Tried.consequence());
        self.stay = match (avoid, self.tried.last()) {
            (Avoid::Endpoint, Some((pool, _))) => Some(snapshot.fleet().pool(*pool).region),
            _ => None,
        };
    }

    /// Says that the region taken last had no room when it came to it: nothing was tried there, and it is passed until [`Walk::look_again`].
    pub fn had_no_room(&mut self, snapshot: &Snapshot) {
        if let Some((pool, _)) = self.tried.pop() {
            self.full.insert(snapshot.fleet().pool(pool).region);
            self.consequence = self.consequence.or(PassReason::Full.consequence());
            if self.pass == Pass::Done {
                // The one take of that round was none.
                self.pass = Pass::Again;
            }
        }
    }

    /// Whether what was taken last is in a region that accepts the client, so that it goes there for no want of another.
    pub fn accepts(&self) -> bool {
        self.pass == Pass::First
    }

    /// Says which regions are at their limit now, before another attempt.
    pub fn look_again(&mut self, full: RegionSet) {
        self.full = full;
    }

    /// Whether there is a region in the sets that has no room.
    pub fn lacks_room(&self) -> bool {
        !self.sets.open.and(self.full).is_empty()
    }

    /// Why there is nothing (more) to take.
    pub fn refusal(&self) -> Refusal {
        if !self.tried.is_empty() {
            Refusal::Exhausted
        } else if self.lacks_room() {
            Refusal::Full
        } else {
            self.sets.refusal
        }
    }

    fn next_pass(&self) -> Pass {
        match self.pass {
            Pass::First => Pass::Second,
            Pass::Second if !self.tried.is_empty() => Pass::Untried,
            // A region avoided in this round may hold further endpoints.
            Pass::Untried if self.found => Pass::Untried,
            Pass::Untried => Pass::Again,
            Pass::Second | Pass::Again | Pass::Done => Pass::Done,
        }
    }

    /// Puts the regions that a split or band chooses among in `ranked`, the best score first. Most walks end with that one, so the rest
    /// is sorted by [`Walk::sort_ranked`] when it is asked for.
    fn rank(&mut self, snapshot: &Snapshot, service: &Service) {
        let scale = self.scale(snapshot, service);
        let members = match service.steering {
            Steering::Nearest if matches!(scale, Scale::Order) => return,
            Steering::Nearest => service.regions,
            Steering::Split | Steering::Balanced => service.weighted,
            Steering::Band(km) => service.weighted.and(self.band(snapshot, km)),
        };
        let mut best = (f64::INFINITY, 0);
        for pool in &service.pools {
            let pool = snapshot.fleet().pool(*pool);
            if members.contains(pool.region) {
                let score = self.score(snapshot, service, pool, &scale);
                if score < best.0 {
                    best = (score, self.ranked.len());
                }
                self.ranked.push(pool.region);
            }
        }
        if !self.ranked.is_empty() {
            self.ranked.swap(0, best.1);
        }
    }

    fn sort_ranked(&mut self, snapshot: &Snapshot) {
        let service = snapshot.fleet().service(self.service);
        let scale = self.scale(snapshot, service);
        let scored = self.ranked.iter().filter_map(|region| {
            let pool = service.pool_of[region.index()]?;
            Some((self.score(snapshot, service, snapshot.fleet().pool(pool), &scale), *region))
        });
        let mut scored: ArrayVec<(f64, RegionId), MAX_REGIONS> = scored.collect();
        scored.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        self.ranked = scored.into_iter().map(|(_, region)| region).collect();
    }

    /// What regions are scored by.
    fn scale<'s>(&self, snapshot: &'s Snapshot, service: &Service) -> Scale<'s> {
        let View { atlas, orders, balances, .. } = &snapshot.view;
        let topology = orders.topology();
        let from = || topology.point_of(&atlas.place(self.place)).map(HalfAngles::of);
        match service.steering {
            Steering::Nearest => {
                self.blend(snapshot, service).map_or(Scale::Order, |blend| Scale::Blend(topology, from(), blend))
            }
            Steering::Split | Steering::Band(_) => Scale::Draw,
            Steering::Balanced => match (&balances[self.service.index()], from()) {
                (Some(balance), Some(from)) => Scale::Distance(topology, from, balance),
                _ => Scale::Draw,
            },
        }
    }

    /// How round trips count for this client: not if that of a region that it could go to is not known.
    fn blend(&self, snapshot: &Snapshot, service: &Service) -> Option<Blend> {
        let blend = service.blend?;
        let is_known =
            |region: RegionId| service.pool_of[region.index()].is_some_and(|p| snapshot.pool(p).rtt_ms.is_some());
        // A region that only failover goes to may be unknown: it comes last.
        self.sets.open.and(service.weighted).iter().all(is_known).then_some(blend)
    }

    fn score(&self, snapshot: &Snapshot, service: &Service, pool: &Pool, scale: &Scale<'_>) -> f64 {
        let seed = service.seeds[pool.region.index()][Tag::Split as usize];
        match scale {
            Scale::Order | Scale::Draw => self.draw.score(seed, pool.weight),
            Scale::Blend(topology, from, blend) => {
                let km = from.as_ref().map_or(0.0, |from| topology.biased_km(from, pool.region));
                let rtt_ms = service.pool_of[pool.region.index()].and_then(|pool| snapshot.pool(pool).rtt_ms);
                // Not known is not open: it comes after all that are.
                rtt_ms.map_or(f64::INFINITY, |rtt_ms| blend.km(km, rtt_ms))
            }
            Scale::Distance(topology, from, balance) => {
                distance(topology, from, pool.region, || self.draw.draw(seed)) - balance.offset(pool.region)
            }
        }
    }

    /// The regions about as near as the nearest in the sets, whether they are in the sets themselves or not.
    fn band(&self, snapshot: &Snapshot, band_km: f64) -> RegionSet {
        let topology = snapshot.view.orders.topology();
        let Some(point) = topology.point_of(&snapshot.view.atlas.place(self.place)) else {
            // Without a point nothing is near or far, so the order alone rules.
            return RegionSet::EMPTY;
        };
        let from = HalfAngles::of(point);
        let haversine = |region: RegionId| topology.haversine(&from, region);
        let nearest = self.sets.open.iter().map(haversine).fold(f64::INFINITY, f64::min);
        // The nearest itself is a member, whatever rounding makes of a band of 0 km.
        let most = if nearest.is_finite() { km_angle(angle_km(nearest) + band_km).max(nearest) } else { f64::INFINITY };
        let service = snapshot.fleet().service(self.service);
        service.regions.iter().filter(|region| haversine(*region) <= most).collect()
    }

    /// The next region of the sequence that this pass has not seen.
    fn advance(&mut self, snapshot: &Snapshot) -> Option<RegionId> {
        let service = snapshot.fleet().service(self.service);
        loop {
            if self.at == (Position { segment: RANKED, index: 1 }) {
                self.sort_ranked(snapshot);
            }
            let network;
            let segment: &[RegionId] = match (self.at.segment, self.head) {
                (AFFINITY, _) => self.affinity.as_slice(),
                (HEAD, Head::Network(region)) => {
                    network = [region];
                    &network
                }
                (HEAD, Head::Pin(pin)) => &service.pins[usize::from(pin)].to,
                (HEAD, Head::None) => &[],
                (RANKED, _) => &self.ranked,
                (ORDER, _) => snapshot.view.orders.order(self.place),
                _ => return None,
            };
            let Some(region) = segment.get(usize::from(self.at.index)).copied() else {
                self.at = Position { segment: self.at.segment + 1, index: 0 };
                continue;
            };
            self.at.index += 1;
            if service.regions.contains(region) && !self.seen.contains(region) {
                self.seen.insert(region);
                return Some(region);
            }
        }
    }

    /// Takes an endpoint of `region` if this pass allows it, or says why not.
    fn visit(&mut self, snapshot: &Snapshot, region: RegionId) -> Result<Take, PassReason> {
        if !self.sets.open.contains(region) {
            return Err(self.barrier(snapshot, region));
        }
        if self.full.contains(region) {
            return Err(PassReason::Full);
        }
        let been = || self.tried.iter().any(|(pool, _)| snapshot.fleet().pool(*pool).region == region);
        match self.pass {
            Pass::First if been() => return Err(PassReason::Tried),
            // In the sets is all it takes: weight, dial and ramp are about who comes, not about who is there.
            Pass::First if self.at.segment == AFFINITY => {}
            Pass::First => self.accept(snapshot, region)?,
            Pass::Second if been() => return Err(PassReason::Tried),
            Pass::Second | Pass::Untried | Pass::Again | Pass::Done => {}
        }
        let reason = self.reason(snapshot);
        self.enter(snapshot, region, reason)
    }

    /// Why a region is not in the sets: the first set that it is missing from.
    fn barrier(&self, snapshot: &Snapshot, region: RegionId) -> PassReason {
        let view = snapshot.service(self.service);
        if !self.sets.residency.contains(region) {
            PassReason::Residency
        } else if view.maint.contains(region) {
            PassReason::Maint
        } else if view.drained.or(view.leaving).contains(region) {
            PassReason::Drained
        } else {
            PassReason::Unhealthy
        }
    }

    /// Whether the region takes normal traffic of this client.
    fn accept(&self, snapshot: &Snapshot, region: RegionId) -> Result<(), PassReason> {
        let service = snapshot.fleet().service(self.service);
        if !service.weighted.contains(region) {
            return Err(PassReason::WeightZero);
        }
        let Some(pool) = service.pool_of[region.index()] else { return Err(PassReason::Unhealthy) };
        let seed = service.seeds[region.index()][Tag::Accept as usize];
        let (dial, view) = (snapshot.fleet().pool(pool).dial, snapshot.region(region));
        // Those who have been here since their own region was lost are at home.
        let is_new = !self.lost.and(view.from).is_empty();
        let room = if is_new { view.shed * view.intake } else { view.shed };
        accepts(dial, snapshot.pool(pool), room, self.sets.heed, || self.draw.draw(seed))
    }

    /// Picks an endpoint of `region` and notes it as tried, whatever the pass.
    fn enter(&mut self, snapshot: &Snapshot, region: RegionId, reason: TakeReason) -> Result<Take, PassReason> {
        let service = snapshot.fleet().service(self.service);
        let Some(pool) = service.pool_of[region.index()] else { return Err(PassReason::Unhealthy) };
        let tried = &self.tried;
        let again = self.pass == Pass::Again;
        let excluded = |index: usize| !again && tried.contains(&(pool, index as u16));
        // Each attempt draws anew from the one number it was given.
        let chance = self.chance.rotate_left(23 * tried.len() as u32);
        let Some(endpoint) = select(&snapshot.pool(pool).endpoints, self.sets.heed, chance, excluded) else {
            let been = tried.iter().any(|(of, _)| *of == pool);
            return Err(if been { PassReason::Tried } else { PassReason::Unhealthy });
        };
        let endpoint = endpoint as u16;
        // `step` ends a walk whose list is full before it comes here.
        let _ = self.tried.try_push((pool, endpoint));
        match self.pass {
            Pass::Again => self.pass = Pass::Done,
            Pass::Untried => self.found = true,
            _ => {}
        }
        Ok(Take { region, pool, endpoint, reason })
    }

    fn reason(&self, snapshot: &Snapshot) -> TakeReason {
        if self.panics() {
            return TakeReason::Panic;
        }
        if let Some(consequence) = self.consequence {
            return consequence;
        }
        match (self.pass, self.at.segment, self.head) {
            (Pass::Second, ..) => TakeReason::LastResort,
            (_, AFFINITY, _) => TakeReason::Affinity,
            (_, HEAD, Head::Network(_)) => TakeReason::Network,
            (_, HEAD, Head::Pin(_)) => TakeReason::Pin,
            _ => match snapshot.fleet().service(self.service).steering {
                Steering::Nearest => TakeReason::Nearest,
                Steering::Split => TakeReason::Split,
                Steering::Band(_) => TakeReason::Band,
                Steering::Balanced => TakeReason::Balanced,
            },
        }
    }
}
