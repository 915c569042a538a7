//! From a place to regions, best first; and from a place to what pins and residency say of it.
//!
//! Both are tables over the atlas's places, compiled aside. `Orders` depends on the atlas and the topology (coordinates, biases,
//! default point), `Areas` on the atlas and the areas that the configuration names; each is taken over by the next
//! configuration when its inputs did not change, so that turning a weight rebuilds neither. Health, weights and overrides are in
//! neither: they are applied at the walk.

use std::collections::HashMap;
use std::sync::Arc;

use crate::geo::location::angle_km;
use crate::geo::{Area, Atlas, Continent, Country, HalfAngles, Place, PlaceId, Point, Subdivision};
use crate::steering::fleet::{Fleet, Service};
use crate::steering::ids::{RegionId, RegionSet, ServiceId};

/// Place to order.
#[derive(Debug)]
pub struct Orders {
    topology: Topology,
    /// Place id to order id.
    order_of: Box<[u32]>,
    /// All distinct orders, one after the other, each of as many regions as there are.
    regions: Box<[RegionId]>,
}

/// What orders depend on, besides the places.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    regions: Vec<(Option<HalfAngles>, i8)>,
    /// Where unknown places are thought to be.
    unknown: Option<Point>,
    /// Whether distances must be known as such: without biases their haversines order the same.
    biased: bool,
}

impl Topology {
    /// The topology of a fleet.
    pub fn of(fleet: &Fleet) -> Topology {
        Topology {
            regions: fleet.regions.iter().map(|r| (r.location.map(HalfAngles::of), r.bias)).collect(),
            unknown: fleet.geo_default.or(fleet.pop.location),
            biased: fleet.regions.iter().any(|r| r.bias != 0),
        }
    }

    /// Where a place is thought to be: its own point, or the default for unknown ones.
    pub fn point_of(&self, place: &Place) -> Option<Point> {
        place.point.or(self.unknown)
    }

    /// The haversine of the unbiased distance from `from` to a region; infinite for one without coordinates.
    pub fn haversine(&self, from: &HalfAngles, region: RegionId) -> f64 {
        self.regions[region.index()].0.map_or(f64::INFINITY, |at| from.haversine(&at))
    }

    /// All regions, best first, seen from `point`: by biased great-circle distance, ties in configuration order, regions
    /// without coordinates last. Without a point: configuration order.
    pub fn order(&self, point: Option<Point>) -> Vec<RegionId> {
        let mut sorter = Sorter::new(self);
        sorter.sort(point);
        sorter.order
    }

    /// The distance to a region in kilometres, with its bias; infinite for one without coordinates.
    pub fn biased_km(&self, from: &HalfAngles, region: RegionId) -> f64 {
        let haversine = self.haversine(from, region);
        if haversine.is_finite() { biased(angle_km(haversine), self.regions[region.index()].1) } else { haversine }
    }

    fn key(&self, from: &HalfAngles, region: RegionId) -> f64 {
        if self.biased { self.biased_km(from, region) } else { self.haversine(from, region) }
    }
}

/// Orders one point after the other. Each order is begun with the one before it: databases list neighbours together,
/// so that hardly anything is left to move.
struct Sorter<'t> {
    topology: &'t Topology,
    order: Vec<RegionId>,
    keys: Vec<f64>,
}

impl<'t> Sorter<'t> {
    fn new(topology: &'t Topology) -> Sorter<'t> {
        let count = topology.regions.len();
        let order = (0..count).map(|index| RegionId(index as u8)).collect();
        Sorter { topology, order, keys: vec![0.0; count] }
    }

    fn sort(&mut self, point: Option<Point>) {
        let Sorter { topology, order, keys } = self;
        match point.map(HalfAngles::of) {
            Some(from) => {
                for (index, key) in keys.iter_mut().enumerate() {
                    *key = topology.key(&from, RegionId(index as u8));
                }
            }
            None => keys.fill(0.0),
        }
        let before = |a: RegionId, b: RegionId| {
            // Ties keep configuration order, whatever the order that this began with.
            keys[a.index()].total_cmp(&keys[b.index()]).then(a.cmp(&b)).is_lt()
        };
        for end in 1..order.len() {
            let region = order[end];
            let mut at = end;
            while at > 0 && before(region, order[at - 1]) {
                order[at] = order[at - 1];
                at -= 1;
            }
            order[at] = region;
        }
    }
}

/// Route 53's geoproximity bias: b ≥ 0 shrinks the distance to (1 − b/100) of it, b < 0 divides it by (1 − |b|/100).
pub fn biased(distance_km: f64, bias: i8) -> f64 {
    let bias = f64::from(bias) / 100.0;
    if bias >= 0.0 { distance_km * (1.0 - bias) } else { distance_km / (1.0 + bias) }
}

impl Orders {
    /// Computes the order of every place; takes `previous` over when neither the topology nor the atlas changed.
    pub fn compile(fleet: &Fleet, atlas: &Arc<Atlas>, previous: Option<(&Arc<Orders>, &Arc<Atlas>)>) -> Arc<Orders> {
        let topology = Topology::of(fleet);
        if let Some((orders, of)) = previous
            && Arc::ptr_eq(of, atlas)
            && orders.topology == topology
        {
            return Arc::clone(orders);
        }
        let mut ids: HashMap<Box<[RegionId]>, u32> = HashMap::new();
        let mut regions: Vec<RegionId> = Vec::new();
        let mut sorter = Sorter::new(&topology);
        let mut id_of = |point: Option<Point>| {
            sorter.sort(point);
            if let Some(id) = ids.get(sorter.order.as_slice()) {
                return *id;
            }
            let id = ids.len() as u32;
            ids.insert(sorter.order.as_slice().into(), id);
            regions.extend_from_slice(&sorter.order);
            id
        };
        let order_of = atlas.places().map(|place| id_of(topology.point_of(&place))).collect();
        Arc::new(Orders { topology, order_of, regions: regions.into() })
    }

    /// All regions, best first, for a place of the atlas it was compiled with.
    pub fn order(&self, place: PlaceId) -> &[RegionId] {
        let count = self.topology.regions.len();
        let start = self.order_of[place.index()] as usize * count;
        &self.regions[start..start + count]
    }

    /// What the orders were made for.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// How many distinct orders there are.
    pub fn distinct(&self) -> usize {
        self.regions.len() / self.topology.regions.len().max(1)
    }
}

/// Place to policies.
#[derive(Debug)]
pub struct Areas {
    classes: Arc<Classes>,
    /// By service, then class.
    policies: Box<[Policy]>,
}

/// Places that no named area tells apart share a class.
#[derive(Debug)]
struct Classes {
    /// The named areas, sorted.
    named: Vec<Area>,
    class_of: Box<[u16]>,
    classes: Vec<Class>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Class {
    known: bool,
    continent: Option<Continent>,
    country: Option<Country>,
    subdivision: Option<(Country, Subdivision)>,
}

/// What a service's configuration says of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Set S1: where the place's clients may be served.
    pub residency: RegionSet,
    /// Index into `Service::pins` of the narrowest pin of the place.
    pub pin: Option<u16>,
}

impl Areas {
    /// Classifies every place by the areas that the fleet names and works out each service's policy for each class; takes the
    /// classes of `previous` over when neither the named areas nor the atlas changed.
    pub fn compile(fleet: &Fleet, atlas: &Arc<Atlas>, previous: Option<(&Arc<Areas>, &Arc<Atlas>)>) -> Arc<Areas> {
        let mut named: Vec<Area> = fleet.services.iter().flat_map(named_by).collect();
        named.sort_unstable();
        named.dedup();
        let classes = match previous {
            Some((areas, of)) if Arc::ptr_eq(of, atlas) && areas.classes.named == named => Arc::clone(&areas.classes),
            _ => Arc::new(Classes::compile(named, atlas)),
        };
        let policies =
            fleet.services.iter().flat_map(|s| classes.classes.iter().map(|class| class.policy(s))).collect();
        Arc::new(Areas { classes, policies })
    }

    /// A service's policy for a place of the atlas it was compiled with.
    pub fn policy(&self, service: ServiceId, place: PlaceId) -> Policy {
        if self.classes.named.is_empty() {
            // Nothing is said of any place: not worth a look into a large table.
            return Policy { residency: RegionSet::ALL, pin: None };
        }
        let class = usize::from(self.classes.class_of[place.index()]);
        self.policies[service.index() * self.classes.classes.len() + class]
    }
}

fn named_by(service: &Service) -> impl Iterator<Item = Area> + '_ {
    let residency = service.residency.iter().flat_map(|rule| rule.from.iter().copied());
    residency.chain(service.pins.iter().map(|pin| pin.area))
}

impl Classes {
    fn compile(named: Vec<Area>, atlas: &Atlas) -> Classes {
        let is_named = |area: Area| named.binary_search(&area).is_ok();
        let mut ids: HashMap<Class, u16> = HashMap::new();
        let mut classes = Vec::new();
        let class_of = atlas
            .places()
            .map(|place| {
                let class = Class {
                    known: place.country.is_some() || place.continent.is_some(),
                    continent: place.continent.filter(|c| is_named(Area::Continent(*c))),
                    country: place.country.filter(|c| is_named(Area::Country(*c))),
                    subdivision: place
                        .country
                        .zip(place.subdivision)
                        .filter(|(c, s)| is_named(Area::Subdivision(*c, *s))),
                };
                *ids.entry(class).or_insert_with(|| {
                    classes.push(class);
                    // Areas are ISO codes, some thousands at most, so their combinations fit.
                    u16::try_from(classes.len() - 1).unwrap_or(u16::MAX)
                })
            })
            .collect();
        Classes { named, class_of, classes }
    }
}

impl Class {
    fn is_in(&self, area: Area) -> bool {
        match area {
            Area::Continent(continent) => self.continent == Some(continent),
            Area::Country(country) => self.country == Some(country),
            Area::Subdivision(country, subdivision) => self.subdivision == Some((country, subdivision)),
        }
    }

    fn policy(&self, service: &Service) -> Policy {
        let mut residency = RegionSet::ALL;
        for rule in &service.residency {
            if rule.from.iter().any(|area| self.is_in(*area)) {
                residency = residency.and(rule.to);
            }
        }
        if !self.known && !service.residency.is_empty() && !service.unknown_allowed {
            residency = RegionSet::EMPTY;
        }
        // `Area` sorts from the widest kind to the narrowest, and a class is in at most one area of each kind.
        let pins = service.pins.iter().enumerate().filter(|(_, pin)| self.is_in(pin.area));
        let pin = pins.max_by_key(|(_, pin)| pin.area);
        Policy { residency, pin: pin.map(|(index, _)| index as u16) }
    }
}
