//! A configuration that changes at random, in a form that is easy to change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian::geo::Atlas;
use meridian::steering::fleet::{HealthPolicy, Intent, Probe};
use meridian::steering::snapshot::View;

use crate::common::dice::Dice;
use crate::common::fleet::{default_health, fleet, pool, service, view_over};

/// What the configuration says, in a form that is easy to change at random.
#[derive(Clone)]
pub struct Plan {
    pub regions: Vec<(String, Intent)>,
    pub services: Vec<ServicePlan>,
}

#[derive(Clone)]
pub struct ServicePlan {
    pub name: String,
    pub health: HealthPolicy,
    pub pools: BTreeMap<String, PoolPlan>,
}

#[derive(Clone)]
pub struct PoolPlan {
    pub weight: u32,
    /// `address:port` or `name:port`, and a weight.
    pub endpoints: Vec<(String, u32)>,
}

impl Plan {
    pub fn view(&self, atlas: &Arc<Atlas>, previous: Option<&View>) -> View {
        let mut made = fleet();
        for (name, intent) in &self.regions {
            made = made.region_with(name, |region| region.intent = *intent);
        }
        for plan in &self.services {
            let mut of = service(&plan.name).set(|service| service.health = plan.health.clone());
            for (region, planned) in &plan.pools {
                let empty = pool(&[]).weight(planned.weight);
                of = of.pool(region, planned.endpoints.iter().fold(empty, |pool, (to, w)| pool.endpoint(to, *w)));
            }
            made = made.service(of);
        }
        view_over(made.build(), atlas, previous)
    }

    pub fn policy(&self, service: &str) -> &HealthPolicy {
        &self.services.iter().find(|s| s.name == service).unwrap().health
    }

    pub fn names(&self, host: &str) -> bool {
        let mut all = self.services.iter().flat_map(|s| s.pools.values()).flat_map(|p| &p.endpoints);
        all.any(|(address, _)| address.split(':').next() == Some(host))
    }

    /// One or two edits, as an operator makes them.
    pub fn change(&mut self, dice: &mut Dice) {
        let plan = self;
        for _ in 0..dice.roll(1..3) {
            let which = dice.roll(0..plan.services.len() as u64) as usize;
            match dice.roll(0..9) {
                0 => plan.services[which].health = random_policy(dice),
                1 => {
                    let at = dice.roll(0..plan.regions.len() as u64) as usize;
                    plan.regions.rotate_left(at);
                }
                2 => plan.services.reverse(),
                3 => {
                    let name = *dice.pick(&REGIONS);
                    if plan.regions.iter().any(|(region, _)| region == name) {
                        if plan.regions.len() > 1 {
                            plan.regions.retain(|(region, _)| region != name);
                            plan.services.iter_mut().for_each(|s| drop(s.pools.remove(name)));
                        }
                    } else {
                        plan.regions.push((name.to_owned(), Intent::Ready));
                        plan.services[which].pools.insert(name.to_owned(), random_pool(dice));
                    }
                }
                4 => {
                    let region = plan.regions[dice.roll(0..plan.regions.len() as u64) as usize].0.clone();
                    plan.services[which].pools.insert(region, random_pool(dice));
                }
                5 => {
                    for endpoint in plan.services[which].pools.values_mut().flat_map(|pool| &mut pool.endpoints) {
                        endpoint.1 = dice.roll(1..4) as u32;
                    }
                }
                6 => plan.services[which].pools.values_mut().for_each(|pool| pool.weight = dice.roll(0..5) as u32),
                // An operator's word: as likely as two others.
                _ => {
                    let at = dice.roll(0..plan.regions.len() as u64) as usize;
                    plan.regions[at].1 = *dice.pick(&[Intent::Ready, Intent::Ready, Intent::Drain, Intent::Maint]);
                }
            }
        }
    }
}

pub const HOSTS: [&str; 3] = ["a.example", "b.example", "c.example"];
pub const REGIONS: [&str; 5] = ["us-east", "us-west", "eu-west", "ap-south", "sa-east"];

pub fn random_policy(dice: &mut Dice) -> HealthPolicy {
    let probes = [Probe::Tcp, Probe::Tcp, Probe::Tcp, default_health().probe, Probe::None];
    HealthPolicy {
        probe: dice.pick(&probes).clone(),
        rise: dice.roll(1..4) as u32,
        fall: dice.roll(1..5) as u32,
        min_healthy: *dice.pick(&[1, 34, 50, 100]),
        hold: Duration::from_secs(*dice.pick(&[0, 2, 8, 30])),
        ramp: Duration::from_secs(*dice.pick(&[0, 3, 10, 60])),
        ..default_health()
    }
}

pub fn random_pool(dice: &mut Dice) -> PoolPlan {
    let mut endpoints = Vec::new();
    for _ in 0..dice.roll(1..4) {
        // A name's line has weight: a resolution always changes something then.
        endpoints.push(if dice.percent(25) {
            (format!("{}:80", dice.pick(&HOSTS)), dice.roll(1..4) as u32)
        } else {
            (format!("192.0.2.{}:80", dice.roll(1..7)), dice.roll(0..4) as u32)
        });
    }
    PoolPlan { weight: dice.roll(0..3) as u32, endpoints }
}

pub fn random_service(dice: &mut Dice, name: &str, regions: &[(String, Intent)]) -> ServicePlan {
    let mut pools = BTreeMap::new();
    for (region, _) in regions {
        if pools.is_empty() || dice.percent(80) {
            pools.insert(region.clone(), random_pool(dice));
        }
    }
    ServicePlan { name: name.to_owned(), health: random_policy(dice), pools }
}
