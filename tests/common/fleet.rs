//! Fleets made by hand, with the defaults of the configuration, for tests that need no text.
//!
//! ```ignore
//! let fleet = fleet()
//!     .region("us-east", 38.95, -77.45)
//!     .region("eu-west", 53.35, -6.26)
//!     .service(service("web").pool("us-east", pool(&["192.0.2.1:80"]).weight(3)).pool("eu-west", pool(&["eu.example:80"])))
//!     .build();
//! ```

use std::sync::Arc;
use std::time::Duration;

use meridian::geo::{Area, Atlas, Point, Prefix};
use meridian::steering::accept;
use meridian::steering::fleet::{
    Draw, EndpointAddress, EndpointSpec, Failback, Fleet, HealthPolicy, HostRule, Intent, Panic, Passive, Pin, Pool,
    Probe, Protocol, Region, Residency, RetryPolicy, Service, Steering, Timeouts, Upstream,
};
use meridian::steering::ids::{PoolId, RegionId, RegionSet, ServiceId};
use meridian::steering::networks::Networks;
use meridian::steering::snapshot::View;

/// An empty fleet: regions first, then services.
pub fn fleet() -> FleetBuilder {
    FleetBuilder { fleet: Fleet::default(), services: Vec::new(), networks: Vec::new() }
}

/// A service with every default and no pool.
pub fn service(name: &str) -> ServiceBuilder {
    ServiceBuilder { service: default_service(name), pools: Vec::new(), pins: Vec::new(), residency: Vec::new() }
}

/// A pool of weight 1 and dial 100 with these endpoints (`address:port` or `name:port`), each of weight 1.
pub fn pool(endpoints: &[&str]) -> PoolBuilder {
    let pool = PoolBuilder { weight: 1, dial: 100, endpoints: Vec::new() };
    endpoints.iter().fold(pool, |pool, endpoint| pool.endpoint(endpoint, 1))
}

/// The tables of a fleet over `atlas`, with what `previous` can give.
pub fn view_over(fleet: Fleet, atlas: &Arc<Atlas>, previous: Option<&View>) -> View {
    View::compile(Arc::new(fleet), Arc::clone(atlas), previous)
}

/// The tables of a fleet where no address is known.
pub fn view(fleet: Fleet) -> View {
    view_over(fleet, &Arc::new(Atlas::empty()), None)
}

pub struct FleetBuilder {
    fleet: Fleet,
    services: Vec<ServiceBuilder>,
    networks: Vec<(Prefix, String)>,
}

impl FleetBuilder {
    /// A ready region at these coordinates.
    pub fn region(self, name: &str, latitude: f64, longitude: f64) -> FleetBuilder {
        let location = Point::new(latitude, longitude);
        assert!(location.is_some(), "{latitude}, {longitude} is not on earth");
        self.region_with(name, |region| region.location = location)
    }

    /// A region that is ready and nowhere but for what `set` says.
    pub fn region_with(mut self, name: &str, set: impl FnOnce(&mut Region)) -> FleetBuilder {
        let mut region =
            Region { name: name.to_owned(), location: None, bias: 0, intent: Intent::Ready, capacity: None };
        set(&mut region);
        if region.capacity.is_some() {
            self.fleet.bounded.insert(RegionId(self.fleet.regions.len() as u8));
        }
        self.fleet.regions.push(region);
        self
    }

    pub fn service(mut self, service: ServiceBuilder) -> FleetBuilder {
        self.services.push(service);
        self
    }

    /// A line of `[geoip.networks]`.
    pub fn network(mut self, prefix: &str, region: &str) -> FleetBuilder {
        let (address, len) = prefix.split_once('/').unwrap();
        let prefix = Prefix::new(address.parse().unwrap(), len.parse().unwrap()).unwrap();
        self.networks.push((prefix, region.to_owned()));
        self
    }

    /// Whatever has no method of its own.
    pub fn set(mut self, set: impl FnOnce(&mut Fleet)) -> FleetBuilder {
        set(&mut self.fleet);
        self
    }

    pub fn build(self) -> Fleet {
        let mut fleet = self.fleet;
        let region = |fleet: &Fleet, name: &str| {
            fleet.region_named(name).unwrap_or_else(|| panic!("the test names region `{name}`, which it does not make"))
        };
        fleet.networks = Networks::new(self.networks.iter().map(|(prefix, name)| (*prefix, region(&fleet, name))));
        for (index, builder) in self.services.into_iter().enumerate() {
            let id = ServiceId(index as u16);
            let mut service = builder.service;
            let mut pools: Vec<(RegionId, PoolBuilder)> =
                builder.pools.into_iter().map(|(name, pool)| (region(&fleet, &name), pool)).collect();
            pools.sort_by_key(|(region, _)| *region);
            service.pool_of = vec![None; fleet.regions.len()];
            for (region, pool) in pools {
                let pool_id = PoolId(fleet.pools.len() as u16);
                service.pools.push(pool_id);
                assert!(service.pool_of[region.index()].replace(pool_id).is_none(), "one pool a region");
                service.regions.insert(region);
                if pool.weight > 0 {
                    service.weighted.insert(region);
                }
                let PoolBuilder { weight, dial, endpoints } = pool;
                fleet.pools.push(Pool { service: id, region, weight, dial, endpoints });
            }
            service.seeds = fleet.regions.iter().map(|region| accept::seeds(&service.name, &region.name)).collect();
            let all = |names: &[String]| -> Vec<RegionId> { names.iter().map(|name| region(&fleet, name)).collect() };
            service.pins.extend(builder.pins.iter().map(|(area, to)| Pin { area: *area, to: all(to) }));
            let rule = |(from, to): &(Vec<Area>, Vec<String>)| Residency {
                from: from.clone(),
                to: all(to).into_iter().collect::<RegionSet>(),
            };
            service.residency.extend(builder.residency.iter().map(rule));
            fleet.services.push(service);
        }
        fleet
    }
}

pub struct ServiceBuilder {
    service: Service,
    pools: Vec<(String, PoolBuilder)>,
    pins: Vec<(Area, Vec<String>)>,
    residency: Vec<(Vec<Area>, Vec<String>)>,
}

impl ServiceBuilder {
    pub fn pool(mut self, region: &str, pool: PoolBuilder) -> ServiceBuilder {
        self.pools.push((region.to_owned(), pool));
        self
    }

    pub fn steering(self, steering: Steering) -> ServiceBuilder {
        self.set(|service| service.steering = steering)
    }

    pub fn pin(mut self, area: &str, to: &[&str]) -> ServiceBuilder {
        self.pins.push((area.parse().unwrap(), owned(to)));
        self
    }

    pub fn residency(mut self, from: &[&str], to: &[&str]) -> ServiceBuilder {
        self.residency.push((from.iter().map(|area| area.parse().unwrap()).collect(), owned(to)));
        self
    }

    pub fn health(self, set: impl FnOnce(&mut HealthPolicy)) -> ServiceBuilder {
        self.set(|service| set(&mut service.health))
    }

    /// Whatever has no method of its own.
    pub fn set(mut self, set: impl FnOnce(&mut Service)) -> ServiceBuilder {
        set(&mut self.service);
        self
    }
}

#[derive(Clone)]
pub struct PoolBuilder {
    weight: u32,
    dial: u8,
    endpoints: Vec<EndpointSpec>,
}

impl PoolBuilder {
    pub fn weight(self, weight: u32) -> PoolBuilder {
        PoolBuilder { weight, ..self }
    }

    pub fn dial(self, dial: u8) -> PoolBuilder {
        PoolBuilder { dial, ..self }
    }

    pub fn endpoint(mut self, address: &str, weight: u32) -> PoolBuilder {
        let address = address.parse().map(EndpointAddress::Socket).unwrap_or_else(|_| {
            let (host, port) = address.rsplit_once(':').unwrap();
            EndpointAddress::Name { host: host.to_owned(), port: port.parse().unwrap() }
        });
        self.endpoints.push(EndpointSpec { address, weight });
        self
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn default_service(name: &str) -> Service {
    Service {
        name: name.to_owned(),
        steering: Steering::Nearest,
        blend: None,
        draw: Draw::Network,
        residency: Vec::new(),
        unknown_allowed: false,
        panic: Panic::Serve,
        failback: Failback::Auto,
        drain_timeout: Duration::from_secs(300),
        pins: Vec::new(),
        affinity: None,
        rate_limit: None,
        health: default_health(),
        timeouts: Timeouts {
            connect: Duration::from_millis(300),
            first_byte: Duration::from_secs(5),
            request: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            tunnel_idle: Duration::from_secs(3600),
        },
        upstream: Upstream {
            protocol: Protocol::Http1,
            tls: 0,
            proxy_protocol: None,
            idle: Duration::from_secs(60),
            max_age: Duration::from_secs(3600),
            max_connections: 0,
        },
        retry: RetryPolicy {
            attempts: 3,
            budget: 20,
            on: vec![502, 503, 504],
            idempotency_key: false,
            race: true,
            hedge: false,
            replay: 65_536,
        },
        max_body: 1 << 30,
        host: HostRule::Pass,
        rules: None,
        pools: Vec::new(),
        pool_of: Vec::new(),
        regions: RegionSet::EMPTY,
        weighted: RegionSet::EMPTY,
        seeds: Vec::new(),
    }
}

/// `[services.NAME.health]` as it is when nothing is written.
pub fn default_health() -> HealthPolicy {
    HealthPolicy {
        probe: Probe::Http {
            path: "/healthz".to_owned(),
            method: "GET".to_owned(),
            host: String::new(),
            headers: Vec::new(),
            status: vec![(200, 299)],
            body: String::new(),
        },
        port: None,
        interval: Duration::from_secs(1),
        fast_interval: Duration::from_millis(200),
        timeout: Duration::from_millis(500),
        rise: 2,
        fall: 3,
        min_healthy: 50,
        overprovision: 1.4,
        hold: Duration::from_secs(30),
        ramp: Duration::from_secs(60),
        passive: Passive::default(),
        stall: true,
    }
}
