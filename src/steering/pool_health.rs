//! Whether a region is up for a service, and how it comes back after an outage.
//!
//! The endpoints of a pool speak together: enough of their weight up, too little, or not known yet. An endpoint without a verdict
//! counts for neither side, so that adding endpoints moves no client; while the proven ones cannot decide, the state
//! stays. After an observed outage a region waits (`hold`), then takes its clients back little by little (`ramp`), because a
//! data center that returns is often not done returning; never for a first verdict, and not while no other region
//! could serve instead.
//!
//! What endpoints ask for by their answers (a drain, a weight) is no failure, so that it alone turns no region down and brings none
//! back: for `min_healthy`, one that asks for less counts for less on both sides, and one that asks to be drained counts in full.
//! What they ask for lowers what the region takes instead: its spill counts all of the weight against what is left of it.
//!
//! It must not know operators' words: whether another region passes the sets arrives as an argument.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::steering::fleet::{Failback, HealthPolicy};
use crate::steering::snapshot::{Asked, EndpointState, PoolState};
use crate::steering::world::Now;

/// The weight behind each verdict in a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    up: Side,
    down: Side,
    unknown: Side,
    /// What those that are up take of it, as they ask for it.
    taking: Side,
    /// Those that have a verdict, whatever they ask for.
    proven: Side,
}

/// One endpoint's part in what its pool's endpoints say together.
#[derive(Clone, Copy, Debug)]
pub struct Voice {
    /// Its verdict.
    pub state: EndpointState,
    /// Its configured weight.
    pub weight: u32,
    /// What it asks for.
    pub asked: Asked,
}

/// Weights are in hundredths, so that percentages of them are whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Side {
    weight: u64,
    count: u64,
}

impl Side {
    /// `percent` of an endpoint.
    fn part(weight: u32, percent: u8) -> Side {
        Side { weight: u64::from(weight) * u64::from(percent), count: 1 }
    }

    fn plus(self, other: Side) -> Side {
        Side { weight: self.weight + other.weight, count: self.count + other.count }
    }

    /// Its part of `whole`, as a fraction: by weight, or by number when nothing in `whole` has weight.
    fn of(self, whole: Side) -> (u64, u64) {
        if whole.weight > 0 { (self.weight, whole.weight) } else { (self.count, whole.count) }
    }
}

/// What the endpoints of a pool say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// At least `min_healthy` of the weight is up, and at least one endpoint.
    Up,
    /// Less could be up, even if every endpoint without a verdict were.
    Down,
    /// Endpoints without a verdict decide, but one is up.
    Open,
    /// No endpoint is up, and those without a verdict decide; or there is no endpoint.
    Unproven,
}

impl Tally {
    /// Of all endpoints of a pool.
    pub fn of(endpoints: impl Iterator<Item = Voice>) -> Tally {
        let mut tally = Tally::default();
        for Voice { state, weight, asked } in endpoints {
            let side = match state {
                EndpointState::Up => &mut tally.up,
                EndpointState::Down => &mut tally.down,
                EndpointState::Unknown => &mut tally.unknown,
            };
            *side = side.plus(Side::part(weight, asked.weight));
            if state != EndpointState::Unknown {
                tally.proven = tally.proven.plus(Side::part(weight, 100));
            }
            if state == EndpointState::Up && !asked.drain {
                tally.taking = tally.taking.plus(Side::part(weight, asked.weight));
            }
        }
        tally
    }

    /// Where `min_healthy` (percent) puts the pool.
    pub fn finding(&self, min_healthy: u8) -> Finding {
        let whole = self.up.plus(self.down).plus(self.unknown);
        let enough = |side: Side| {
            let (part, whole) = side.of(whole);
            side.count > 0 && part * 100 >= whole * u64::from(min_healthy)
        };
        if whole.count == 0 {
            Finding::Unproven
        } else if enough(self.up) {
            Finding::Up
        } else if !enough(self.up.plus(self.unknown)) {
            Finding::Down
        } else if self.up.count > 0 {
            Finding::Open
        } else {
            Finding::Unproven
        }
    }

    /// min(1, overprovision × weight up ÷ weight), of the endpoints that have a verdict; the weight up is what they ask for.
    pub fn spill(&self, overprovision: f64) -> f64 {
        let (part, whole) = self.taking.of(self.proven);
        if whole == 0 { 0.0 } else { (overprovision * part as f64 / whole as f64).min(1.0) }
    }
}

/// How a region comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Return {
    hold: Duration,
    ramp: Duration,
    failback: Failback,
}

impl Return {
    /// As a service's policies say.
    pub fn new(health: &HealthPolicy, failback: Failback) -> Return {
        Return { hold: health.hold, ramp: health.ramp, failback }
    }
}

/// Where a pool stands, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Phase {
    Unknown,
    Up,
    Holding {
        since: Now,
    },
    Ramping {
        since: Now,
        /// How far it got: a longer `ramp` by reload takes no client away.
        reached: f64,
    },
    Down,
}

/// The state of one pool and its history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolHealth {
    phase: Phase,
    epoch: u32,
    changed: Now,
}

impl PoolHealth {
    /// A pool of which nothing was observed.
    pub fn new(now: Now) -> PoolHealth {
        PoolHealth { phase: Phase::Unknown, epoch: 0, changed: now }
    }

    /// Its state.
    pub fn state(&self) -> PoolState {
        match self.phase {
            Phase::Unknown => PoolState::Unknown,
            Phase::Up => PoolState::Up,
            Phase::Holding { .. } => PoolState::Holding,
            Phase::Ramping { .. } => PoolState::Ramping,
            Phase::Down => PoolState::Down,
        }
    }

    /// 0 … 1: 0 while holding, rising while ramping, else 1.
    pub fn ramp(&self) -> f64 {
        match self.phase {
            Phase::Holding { .. } => 0.0,
            Phase::Ramping { reached, .. } => reached,
            Phase::Unknown | Phase::Up | Phase::Down => 1.0,
        }
    }

    /// How often it went down.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// When its state changed last.
    pub fn changed(&self) -> Now {
        self.changed
    }

    /// Ends a hold at once, on an operator's word; it ramps from now. Returns the state before, if it held.
    pub fn release(&mut self, now: Now) -> Option<PoolState> {
        let before = self.state();
        if before != PoolState::Holding {
            return None;
        }
        self.phase = Phase::Ramping { since: now, reached: 0.0 };
        self.changed = now;
        Some(before)
    }

    /// Whether time alone moves it.
    pub fn moves(&self, back: &Return) -> bool {
        match self.phase {
            Phase::Holding { .. } => back.failback == Failback::Auto,
            Phase::Ramping { .. } => true,
            Phase::Unknown | Phase::Up | Phase::Down => false,
        }
    }

    /// Whether, with this finding, other regions may count on it: it is up and neither just back nor waiting.
    pub fn serves(&self, finding: Finding) -> bool {
        match self.phase {
            Phase::Unknown => finding == Finding::Up,
            Phase::Up | Phase::Ramping { .. } => matches!(finding, Finding::Up | Finding::Open),
            Phase::Holding { .. } | Phase::Down => false,
        }
    }

    /// Moves to where the finding and time put it; `others` says whether another region passes the sets. Returns the state before if
    /// it changed.
    pub fn settle(&mut self, finding: Finding, back: &Return, others: bool, now: Now) -> Option<PoolState> {
        let before = self.state();
        self.phase = match (self.phase, finding) {
            (_, Finding::Down) => Phase::Down,
            (Phase::Unknown, Finding::Up) => Phase::Up,
            (Phase::Unknown, Finding::Open | Finding::Unproven) => Phase::Unknown,
            (Phase::Up, Finding::Up | Finding::Open) => Phase::Up,
            // Every proven endpoint left, by reload or resolution. Nothing failed, so the first pass brings it back.
            (Phase::Up, Finding::Unproven) => Phase::Unknown,
            // An outage is not forgotten because the endpoints were exchanged.
            (Phase::Down | Phase::Holding { .. } | Phase::Ramping { .. }, Finding::Unproven) => Phase::Down,
            (Phase::Down, Finding::Open) => Phase::Down,
            (Phase::Down, Finding::Up) => returning(Phase::Holding { since: now }, back, others, now),
            (phase @ (Phase::Holding { .. } | Phase::Ramping { .. }), Finding::Up | Finding::Open) => {
                returning(phase, back, others, now)
            }
        };
        let after = self.state();
        if after == before {
            return None;
        }
        self.changed = now;
        if after == PoolState::Down {
            self.epoch = self.epoch.wrapping_add(1);
        }
        Some(before)
    }
}

/// Where time has brought a pool that is coming back.
fn returning(phase: Phase, back: &Return, others: bool, now: Now) -> Phase {
    // The walk would take it as the last resort anyway; the state must not say that it waits.
    if !others {
        return Phase::Up;
    }
    let phase = match phase {
        // From now, not from when `hold` ended: after a pause of the process it still ramps.
        Phase::Holding { since } if back.failback == Failback::Auto && now.since(since) >= back.hold => {
            Phase::Ramping { since: now, reached: 0.0 }
        }
        other => other,
    };
    match phase {
        Phase::Ramping { since, .. } if now.since(since) >= back.ramp => Phase::Up,
        Phase::Ramping { since, reached } => {
            let elapsed = now.since(since).as_secs_f64() / back.ramp.as_secs_f64();
            Phase::Ramping { since, reached: reached.max(elapsed) }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACK: Return =
        Return { hold: Duration::from_secs(30), ramp: Duration::from_secs(60), failback: Failback::Auto };

    /// Endpoints as verdict and weight, then `%` and what is asked for, or `!` for a drain.
    fn tally(text: &str) -> Tally {
        Tally::of(text.split_whitespace().map(|endpoint| {
            let (state, rest) = endpoint.split_at(1);
            let (rest, drain) = rest.strip_suffix('!').map_or((rest, false), |rest| (rest, true));
            let (weight, asked) = rest.split_once('%').unwrap_or((rest, "100"));
            let state = match state {
                "u" => EndpointState::Up,
                "d" => EndpointState::Down,
                _ => EndpointState::Unknown,
            };
            let asked = Asked { drain, weight: asked.parse().unwrap() };
            Voice { state, weight: weight.parse().unwrap(), asked }
        }))
    }

    #[test]
    fn endpoints_speak_together() {
        // (endpoints: verdict and weight, min_healthy, finding, spill with 1.4)
        let rows = [
            ("", 50, Finding::Unproven, 0.0),
            ("?1", 50, Finding::Unproven, 0.0),
            ("u1", 50, Finding::Up, 1.0),
            ("d1", 50, Finding::Down, 0.0),
            ("u1 d1", 50, Finding::Up, 0.7),
            ("u1 d1 d1", 50, Finding::Down, 1.4 / 3.0),
            ("u2 d1 d1", 50, Finding::Up, 0.7),
            ("u1 ?2", 50, Finding::Open, 1.0),
            ("u1 ?1 d3", 50, Finding::Down, 0.35),
            ("d1 ?2", 50, Finding::Unproven, 0.0),
            ("u3 d1", 100, Finding::Down, 1.0),
            // Without weight, heads are counted; with weight, those without it are not enough.
            ("u0 d0", 50, Finding::Up, 0.7),
            ("u0 d0 d0", 50, Finding::Down, 1.4 / 3.0),
            ("u0 d5", 50, Finding::Down, 0.0),
            ("u5 d0 d0", 50, Finding::Up, 1.0),
            // However little is asked, one endpoint must be up.
            ("d1", 0, Finding::Down, 0.0),
            ("u1 d99", 0, Finding::Up, 0.014),
            // What is asked for turns nobody down, but is taken from what the region takes.
            ("u1!", 50, Finding::Up, 0.0),
            ("u1! u1 u1 u1", 50, Finding::Up, 1.0),
            ("u1! u1! u1! u1", 50, Finding::Up, 0.35),
            ("u1! d1", 50, Finding::Up, 0.0),
            ("u1! d2", 50, Finding::Down, 0.0),
            ("u1%50 u1%50", 50, Finding::Up, 0.7),
            ("u1%0 u1%0", 50, Finding::Up, 0.0),
            ("u1%0 ?1", 50, Finding::Open, 0.0),
            ("u1%50 u1", 100, Finding::Up, 1.0),
            ("u1%10 d1", 50, Finding::Down, 0.07),
            ("u3 d4%10", 50, Finding::Up, 0.6),
            ("u0%50 u0!", 50, Finding::Up, 0.7),
        ];
        for (endpoints, min_healthy, finding, spill) in rows {
            let tally = tally(endpoints);
            assert_eq!(tally.finding(min_healthy), finding, "{endpoints}");
            assert!((tally.spill(1.4) - spill).abs() < 1e-9, "{endpoints}: {}", tally.spill(1.4));
        }
    }

    /// Runs (second, finding, others) rows and gives the states with their ramp.
    fn states(back: &Return, rows: &[(u64, Finding, bool)]) -> Vec<(PoolState, f64)> {
        let mut health = PoolHealth::new(Now(0));
        rows.iter()
            .map(|(second, finding, others)| {
                let before = health.state();
                let epoch = health.epoch();
                let from = health.settle(*finding, back, *others, Now(second * 1000));
                assert_eq!(from, (health.state() != before).then_some(before));
                let fell = from.is_some() && health.state() == PoolState::Down;
                assert_eq!(health.epoch(), epoch + u32::from(fell));
                (health.state(), health.ramp())
            })
            .collect()
    }

    #[test]
    fn a_first_verdict_waits_for_nothing() {
        use Finding::{Down, Open, Unproven, Up};
        let rows = [(1, Unproven, true), (2, Open, true), (3, Up, true), (4, Open, true), (5, Unproven, true)];
        let got = states(&BACK, &rows);
        let expected = [PoolState::Unknown, PoolState::Unknown, PoolState::Up, PoolState::Up, PoolState::Unknown];
        assert_eq!(got.iter().map(|(s, _)| *s).collect::<Vec<_>>(), expected);
        assert_eq!(states(&BACK, &[(1, Down, true)])[0].0, PoolState::Down);
    }

    #[test]
    fn a_return_holds_then_ramps() {
        use Finding::{Down, Up};
        let rows = [
            (0, Down, true),
            (10, Up, true),
            (39, Up, true),
            (41, Up, true),
            (71, Up, true),
            (86, Up, true),
            (101, Up, true),
        ];
        let expected = [
            (PoolState::Down, 1.0),
            (PoolState::Holding, 0.0),
            (PoolState::Holding, 0.0),
            (PoolState::Ramping, 0.0),
            (PoolState::Ramping, 0.5),
            (PoolState::Ramping, 0.75),
            (PoolState::Up, 1.0),
        ];
        assert_eq!(states(&BACK, &rows), expected);
    }

    #[test]
    fn a_return_that_fails_begins_again() {
        use Finding::{Down, Unproven, Up};
        let rows = [(0, Down, true), (1, Up, true), (2, Down, true), (3, Up, true), (4, Unproven, true), (5, Up, true)];
        let expected = [
            PoolState::Down,
            PoolState::Holding,
            PoolState::Down,
            PoolState::Holding,
            PoolState::Down,
            PoolState::Holding,
        ];
        assert_eq!(states(&BACK, &rows).iter().map(|(s, _)| *s).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_last_region_does_not_wait() {
        use Finding::{Down, Up};
        let holding = [(0, Down, true), (1, Up, true), (2, Up, false), (3, Up, true)];
        let expected = [PoolState::Down, PoolState::Holding, PoolState::Up, PoolState::Up];
        assert_eq!(states(&BACK, &holding).iter().map(|(s, _)| *s).collect::<Vec<_>>(), expected);
        let ramping = [(0, Down, true), (1, Up, true), (31, Up, true), (35, Up, false)];
        assert_eq!(states(&BACK, &ramping)[3], (PoolState::Up, 1.0));
        assert_eq!(states(&BACK, &[(0, Down, true), (1, Up, false)])[1].0, PoolState::Up);
    }

    #[test]
    fn hold_and_ramp_may_be_zero() {
        use Finding::{Down, Up};
        let rows = [(0, Down, true), (1, Up, true), (61, Up, true)];
        let no_hold = Return { hold: Duration::ZERO, ..BACK };
        let expected = [(PoolState::Down, 1.0), (PoolState::Ramping, 0.0), (PoolState::Up, 1.0)];
        assert_eq!(states(&no_hold, &rows), expected);
        let no_ramp = Return { ramp: Duration::ZERO, ..BACK };
        let expected = [(PoolState::Down, 1.0), (PoolState::Holding, 0.0), (PoolState::Up, 1.0)];
        assert_eq!(states(&no_ramp, &rows), expected);
        let neither = Return { ramp: Duration::ZERO, ..no_hold };
        assert_eq!(states(&neither, &rows)[1], (PoolState::Up, 1.0));
    }

    #[test]
    fn a_manual_return_waits_for_ever() {
        use Finding::{Down, Up};
        let manual = Return { failback: Failback::Manual, ..BACK };
        let rows = [(0, Down, true), (1, Up, true), (1_000_000, Up, true), (1_000_001, Up, false)];
        let expected = [PoolState::Down, PoolState::Holding, PoolState::Holding, PoolState::Up];
        assert_eq!(states(&manual, &rows).iter().map(|(s, _)| *s).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_operator_ends_a_manual_hold_and_it_ramps() {
        let manual = Return { failback: Failback::Manual, ..BACK };
        let mut health = PoolHealth::new(Now(0));
        assert_eq!(health.release(Now(0)), None);
        health.settle(Finding::Down, &manual, true, Now(0));
        assert_eq!(health.release(Now(1)), None, "what is down stays down");
        health.settle(Finding::Up, &manual, true, Now(2));
        health.settle(Finding::Up, &manual, true, Now(1_000_000));
        assert_eq!(health.release(Now(1_000_000)), Some(PoolState::Holding));
        assert_eq!((health.state(), health.ramp(), health.changed()), (PoolState::Ramping, 0.0, Now(1_000_000)));
        health.settle(Finding::Up, &manual, true, Now(1_030_000));
        assert_eq!((health.state(), health.ramp()), (PoolState::Ramping, 0.5));
        health.settle(Finding::Up, &manual, true, Now(1_060_000));
        assert_eq!(health.state(), PoolState::Up);
    }

    #[test]
    fn a_longer_ramp_takes_nobody_away() {
        let mut health = PoolHealth::new(Now(0));
        health.settle(Finding::Down, &BACK, true, Now(0));
        health.settle(Finding::Up, &BACK, true, Now(0));
        health.settle(Finding::Up, &BACK, true, Now(30_000));
        health.settle(Finding::Up, &BACK, true, Now(60_000));
        let longer = Return { ramp: Duration::from_secs(600), ..BACK };
        health.settle(Finding::Up, &longer, true, Now(61_000));
        assert_eq!((health.state(), health.ramp()), (PoolState::Ramping, 0.5));
    }
}
