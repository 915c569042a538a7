//! What operators want, joined to the world: their words put in force, matched to what there is, and over in time.
//!
//! What is wanted of a region is the word that rules over it, else what the configuration says; of an endpoint, its word, else that it
//! is ready. Both are worked out when a word, the configuration or an endpoint changes, never when health does. A pool all of
//! whose endpoints are out is out for its service, though its region is not.
//!
//! A word touches nothing that was observed, with one exception that is asked for: `ready` over a region ends the hold of a service
//! whose `failback` is manual.

use std::sync::Arc;

use super::{Event, Now, World};
use crate::steering::endpoints::Endpoint;
use crate::steering::event::{Spoken, Utterance};
use crate::steering::fleet::{Failback, Intent, Region, Service};
use crate::steering::ids::{PoolId, RegionSet, ServiceId};
use crate::steering::overrides::{MOST, Objection, Override, Overrides, Target, Word};
use crate::steering::snapshot::PoolState;

/// What operators want of an endpoint.
pub(super) fn wanted(overrides: &Overrides, endpoint: &Endpoint) -> Intent {
    if overrides.lacks(Target::Endpoint) {
        return Intent::Ready;
    }
    let address = endpoint.address.to_string();
    overrides.ruling(Target::Endpoint, &[&address, endpoint.name()]).map_or(Intent::Ready, |word| word.state)
}

fn wanted_region(overrides: &Overrides, region: &Region) -> Intent {
    overrides.of_region(&region.name).map_or(region.intent, |word| word.state)
}

impl World {
    /// Operators' words in force.
    pub fn overrides(&self) -> &Arc<Overrides> {
        &self.overrides
    }

    /// Why an operator's word should not be taken, if anything that is known here speaks against it.
    pub fn objection(&self, word: &Word) -> Option<Objection> {
        let (kind, name) = word.target();
        match word {
            Word::Set(word) => {
                if !self.fits_something(word) {
                    return Some(Objection::NoSuchName);
                }
                if self.overrides.iter().len() >= MOST && !self.overrides.has(kind, name) {
                    return Some(Objection::TooMany);
                }
            }
            Word::Auto { .. } => {
                if !self.overrides.has(kind, name) {
                    return Some(Objection::NotSet);
                }
            }
        }
        // What is taken back may have kept a region in.
        let after = self.overrides.with(word);
        let fleet = &self.view.fleet;
        let loses_the_last = |service: &&Service| {
            let (ready, left) = (self.ready(service, &self.overrides), self.ready(service, &after));
            // Not known to be up is not up: it may be a name that does not resolve.
            let is_alive = |state| !matches!(state, PoolState::Down | PoolState::Unknown);
            let alive = self.regions(service, |pool, _| is_alive(pool.view().state), fleet);
            // Of all, or of those that could serve.
            [RegionSet::ALL, alive].iter().any(|of| !ready.and(*of).is_empty() && left.and(*of).is_empty())
        };
        let services: Vec<String> = fleet.services.iter().filter(loses_the_last).map(|s| s.name.clone()).collect();
        (!services.is_empty()).then_some(Objection::LastRegion(services))
    }

    /// What operators want of a pool: of its region and of its endpoints, whichever takes more away.
    pub(super) fn intent(&self, id: PoolId) -> Intent {
        let region = self.view.fleet.pool(id).region;
        self.intents[region.index()].max(self.pools[id.index()].intent())
    }

    /// Works out what is wanted of the regions that there are.
    pub(super) fn intend(&mut self, now: Now) {
        let regions = &self.view.fleet.regions;
        self.intents = regions.iter().map(|region| wanted_region(&self.overrides, region)).collect();
        let draining = regions.iter().zip(&self.intents).filter(|(_, intent)| **intent == Intent::Drain);
        self.drains.follow(draining.map(|(region, _)| region.name.as_str()), now);
    }

    pub(super) fn said(&mut self, word: Word, now: Now, events: &mut Vec<Event>) {
        let mut overrides = Overrides::clone(&self.overrides);
        let mut readied = None;
        match word {
            Word::Set(word) => {
                events.push(told(Spoken::Set, &word));
                readied = (word.kind == Target::Region && word.state == Intent::Ready).then(|| word.clone());
                overrides.set(word);
            }
            Word::Auto { kind, name, reason, who } => {
                if overrides.take(kind, &name).is_none() {
                    return;
                }
                let utterance =
                    Utterance { how: Spoken::Lifted, target: kind, name, state: None, who, reason, until_ms: None };
                events.push(Event::Override(Box::new(utterance)));
            }
        }
        self.overrides = Arc::new(overrides);
        self.intend(now);
        if let Some(word) = readied {
            self.release(&word, now, events);
        }
        self.obey(now, events);
    }

    pub(super) fn recalled(&mut self, words: Vec<Override>, now: Now, events: &mut Vec<Event>) {
        if words.is_empty() {
            return;
        }
        events.extend(words.iter().map(|word| told(Spoken::Recalled, word)));
        self.overrides = Arc::new(words.into_iter().collect());
        self.intend(now);
        self.obey(now, events);
    }

    pub(super) fn date(&mut self, unix_ms: u64, now: Now, events: &mut Vec<Event>) {
        if self.overrides.next_expiry().is_none_or(|next| next > unix_ms) {
            return;
        }
        let mut overrides = Overrides::clone(&self.overrides);
        for word in overrides.expire(unix_ms) {
            events.push(told(Spoken::Expired, &word));
        }
        self.overrides = Arc::new(overrides);
        self.intend(now);
        self.obey(now, events);
    }

    /// Ends the holds that wait for this word. Where another word keeps the region out, it waits on.
    fn release(&mut self, word: &Override, now: Now, events: &mut Vec<Event>) {
        let fleet = Arc::clone(&self.view.fleet);
        for (spec, pool) in fleet.pools.iter().zip(&mut self.pools) {
            let (service, region) = (fleet.service(spec.service), fleet.region(spec.region));
            if service.failback != Failback::Manual
                || self.intents[spec.region.index()] != Intent::Ready
                || !word.is_over(Target::Region, &[&region.name])
            {
                continue;
            }
            if let Some(from) = pool.release(now) {
                events.push(Event::Region {
                    service: service.name.as_str().into(),
                    region: region.name.as_str().into(),
                    from,
                    to: pool.view().state,
                });
            }
        }
    }

    /// Puts changed words in force everywhere.
    fn obey(&mut self, now: Now, events: &mut Vec<Event>) {
        self.snapshot.take();
        for pool in &mut self.pools {
            pool.ordain(|endpoint| wanted(&self.overrides, endpoint));
        }
        for service in 0..self.view.fleet.services.len() {
            self.settle(ServiceId(service as u16), now, events);
        }
    }

    fn fits_something(&self, word: &Override) -> bool {
        let fleet = &self.view.fleet;
        match word.kind {
            Target::Region => fleet.regions.iter().any(|region| word.is_over(word.kind, &[&region.name])),
            // By line as well: a name may not have resolved yet.
            Target::Endpoint => {
                let fits = |name: String| word.is_over(word.kind, &[&name]);
                let endpoints = self.pools.iter().flat_map(|pool| pool.endpoints());
                fleet.pools.iter().flat_map(|pool| &pool.endpoints).any(|spec| fits(spec.address.to_string()))
                    || endpoints.map(|endpoint| endpoint.address.to_string()).any(fits)
            }
        }
    }

    /// The regions of a service that would be ready under these words.
    fn ready(&self, service: &Service, overrides: &Overrides) -> RegionSet {
        let fleet = &self.view.fleet;
        let is_ready = |pool: &&PoolId| {
            let region = fleet.region(fleet.pool(**pool).region);
            let endpoints = self.pools[pool.index()].endpoints();
            wanted_region(overrides, region) == Intent::Ready
                && (endpoints.is_empty() || endpoints.iter().any(|e| wanted(overrides, e) == Intent::Ready))
        };
        service.pools.iter().filter(is_ready).map(|pool| fleet.pool(*pool).region).collect()
    }
}

fn told(how: Spoken, word: &Override) -> Event {
    Event::Override(Box::new(Utterance {
        how,
        target: word.kind,
        name: word.name.clone(),
        state: Some(word.state),
        who: word.who.clone(),
        reason: word.reason.clone(),
        until_ms: word.until_ms,
    }))
}
