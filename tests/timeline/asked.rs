//! What endpoints ask for by their answers: observed, but no failure.

use std::sync::Arc;
use std::time::Duration;

use meridian::geo::Canonical;
use meridian::steering::fleet::Intent;
use meridian::steering::snapshot::{Asked, EndpointId, EndpointState, PoolState};
use meridian::steering::world::ProbeResult;
use meridian::steering::{
    Change, Now, Override, PassReason, Query, RegionId, RegionSet, ServiceId, Step, TakeReason, Target, Word, World,
};

use crate::{probe, two_regions};

const DRAIN: Asked = Asked { drain: true, weight: 100 };
const NOTHING: Asked = Asked { drain: false, weight: 100 };

fn asks(world: &mut World, endpoint: EndpointId, asked: Asked, ms: u64) -> Vec<String> {
    let change = Change::Probed { endpoint, result: ProbeResult::Pass(asked), began: Now(ms) };
    world.apply(change, Now(ms)).iter().map(ToString::to_string).collect()
}

/// The steps of `client` up to the first take, by region and reason.
fn steps(world: &World, client: u32, affinity: Option<RegionId>) -> Vec<(u8, Result<TakeReason, PassReason>)> {
    let client = Canonical::new(std::net::Ipv4Addr::from(client << 8).into());
    let query = Query {
        client,
        service: ServiceId(0),
        chance: u64::from(client_hash(client)) << 32,
        affinity,
        full: RegionSet::EMPTY,
    };
    let snapshot = world.snapshot();
    let mut walk = snapshot.walk(&query);
    let mut steps = Vec::new();
    while let Some(step) = walk.step(&snapshot) {
        match step {
            Step::Pass(region, reason) => steps.push((region.0, Err(reason))),
            Step::Take(take) => {
                let endpoint = &snapshot.pool(take.pool).endpoints[usize::from(take.endpoint)];
                assert!(endpoint.state == EndpointState::Up && endpoint.intent == Intent::Ready);
                steps.push((take.region.0, Ok(take.reason)));
                return steps;
            }
        }
    }
    steps
}

fn client_hash(client: Canonical) -> u32 {
    format!("{client:?}").bytes().fold(7, |hash: u32, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)))
}

#[test]
fn one_that_asks_for_a_drain_gets_nothing_new_and_comes_back_at_once() {
    let (mut world, ids) = two_regions();
    let before = world.snapshot();
    let told = asks(&mut world, ids[0], DRAIN, 1000);
    assert_eq!(told, ["service web: endpoint 192.0.2.1:80 in us-east asks to be drained"]);
    let snapshot = world.snapshot();
    let pool = &snapshot.pools[0];
    assert_eq!((pool.state, pool.spill, pool.epoch), (PoolState::Up, 0.7, before.pools[0].epoch));
    assert_eq!((pool.endpoints[0].state, pool.endpoints[0].asked), (EndpointState::Up, DRAIN));
    assert_eq!(pool.endpoints[0].intent, Intent::Ready, "what is observed is no operator's word");
    assert!(snapshot.services[0].leaving.is_empty());
    // Half of the region is left, so that three in ten clients go to the other one.
    let mut away = 0;
    for client in 0..4000 {
        match steps(&world, client, None).as_slice() {
            [(0, Ok(TakeReason::Nearest))] => {}
            [(0, Err(PassReason::OverTarget)), (1, Ok(TakeReason::Spillover))] => away += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((1100..1300).contains(&away), "{away}");
    // The same answer again is no news, and a failure takes nothing back.
    assert!(asks(&mut world, ids[0], DRAIN, 2000).is_empty());
    assert!(world.apply(probe(ids[0], false, Now(2100)), Now(2100)).is_empty());
    assert!(Arc::ptr_eq(&snapshot, &world.snapshot()));
    let told = asks(&mut world, ids[0], NOTHING, 3000);
    assert_eq!(told, ["service web: endpoint 192.0.2.1:80 in us-east asks for traffic again"]);
    let pool = &world.snapshot().pools[0];
    assert_eq!((pool.state, pool.spill, pool.ramp, pool.endpoints[0].warmth), (PoolState::Up, 1.0, 1.0, 1.0));
    assert!(!world.wants_tick());
}

#[test]
fn a_region_that_asks_as_a_whole_is_passed_while_another_is_left() {
    let (mut world, ids) = two_regions();
    let told: Vec<_> = ids[..2].iter().flat_map(|id| asks(&mut world, *id, DRAIN, 1000)).collect();
    assert_eq!(told.len(), 2, "the region did not move: {told:?}");
    let snapshot = world.snapshot();
    let (view, pool) = (&snapshot.services[0], &snapshot.pools[0]);
    assert!(view.leaving.contains(RegionId(0)) && view.up.contains(RegionId(0)) && view.drained.is_empty());
    assert_eq!((pool.state, pool.epoch, view.panicking), (PoolState::Up, 0, false));
    let passed = [(0, Err(PassReason::Drained)), (1, Ok(TakeReason::Failover))];
    assert_eq!(steps(&world, 7, None), passed);
    assert_eq!(steps(&world, 7, Some(RegionId(0))), passed, "affinity does not hold there");
    // When all ask, none is heeded: everybody is where they would be anyway.
    ids[2..].iter().for_each(|id| drop(asks(&mut world, *id, DRAIN, 2000)));
    assert!((0..200).all(|client| steps(&world, client, None) == [(0, Ok(TakeReason::Nearest))]));
    assert!(!world.snapshot().services[0].panicking);
    // The other one fails: what asks and is up is better than what is down.
    for ms in [3000, 3100, 3200] {
        ids[2..].iter().for_each(|id| drop(world.apply(probe(*id, false, Now(ms)), Now(ms))));
    }
    assert_eq!(steps(&world, 7, None), [(0, Ok(TakeReason::Nearest))]);
    assert!(world.snapshot().pools[1].endpoints.iter().all(|e| e.asked == NOTHING), "what is down asks for nothing");
    // Back again, without hold or ramp.
    ids[..2].iter().for_each(|id| drop(asks(&mut world, *id, NOTHING, 4000)));
    assert_eq!((world.snapshot().pools[0].state, world.snapshot().pools[0].ramp), (PoolState::Up, 1.0));
}

#[test]
fn a_region_that_would_wait_takes_over_from_one_that_asks_to_leave() {
    let (mut world, ids) = two_regions();
    for ms in [1000, 1100, 1200] {
        ids[..2].iter().for_each(|id| drop(world.apply(probe(*id, false, Now(ms)), Now(ms))));
    }
    for ms in [5000, 5100] {
        ids[..2].iter().for_each(|id| drop(world.apply(probe(*id, true, Now(ms)), Now(ms))));
    }
    assert_eq!(world.snapshot().pools[0].state, PoolState::Holding);
    ids[2..].iter().for_each(|id| drop(asks(&mut world, *id, DRAIN, 6000)));
    assert_eq!(world.snapshot().pools[0].state, PoolState::Up, "there is nobody else");
    assert_eq!(steps(&world, 7, None), [(0, Ok(TakeReason::Nearest))]);
}

#[test]
fn a_weight_that_is_asked_for_scales_the_share() {
    let (mut world, ids) = two_regions();
    let quarter = Asked { drain: false, weight: 25 };
    assert!(asks(&mut world, ids[0], quarter, 1000).is_empty(), "weights are no news");
    let pool = &world.snapshot().pools[0];
    assert_eq!((pool.endpoints[0].share(), pool.endpoints[1].share()), (0.25, 1.0));
    assert_eq!((pool.endpoints[0].weight, pool.spill), (1, 1.4 * 1.25 / 2.0));
    // Nothing of both is no outage: the region is taken when nobody else is there.
    ids[..2].iter().for_each(|id| drop(asks(&mut world, *id, Asked { drain: false, weight: 0 }, 2000)));
    let pool = &world.snapshot().pools[0];
    assert_eq!((pool.state, pool.spill), (PoolState::Up, 0.0));
    assert_eq!(steps(&world, 7, None), [(0, Err(PassReason::OverTarget)), (1, Ok(TakeReason::Spillover))]);
    for ms in [3000, 3100, 3200] {
        ids[2..].iter().for_each(|id| drop(world.apply(probe(*id, false, Now(ms)), Now(ms))));
    }
    assert_eq!(steps(&world, 7, None).last().map(|(region, _)| *region), Some(0));
}

#[test]
fn an_operators_word_stands_beside_it() {
    let (mut world, ids) = two_regions();
    let word = |state| {
        Word::Set(Override {
            kind: Target::Endpoint,
            name: "192.0.2.11:80".to_owned(),
            state,
            reason: String::new(),
            who: "alice".to_owned(),
            set_ms: 0,
            until_ms: None,
        })
    };
    world.apply(Change::Said(word(Intent::Maint)), Now(1000));
    asks(&mut world, ids[0], DRAIN, 1000);
    let snapshot = world.snapshot();
    let intents: Vec<_> = snapshot.pools[0].endpoints.iter().map(|e| (e.intent, e.asked.drain)).collect();
    assert_eq!(intents, [(Intent::Ready, true), (Intent::Maint, false)]);
    assert!(snapshot.services[0].leaving.contains(RegionId(0)), "of those that are left, all ask");
    // An operator's word that it is ready changes nothing of what it asks for.
    world.apply(Change::Said(word(Intent::Ready)), Now(2000));
    assert!(world.snapshot().services[0].leaving.is_empty());
    assert!(world.snapshot().pools[0].endpoints[0].asked.drain);
    world.apply(Change::Tick, Now(2000 + Duration::from_secs(3600).as_millis() as u64));
    assert!(world.snapshot().pools[0].endpoints[0].asked.drain, "time takes nothing back: the next answer does");
}
