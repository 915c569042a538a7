//! How much of its clients a region with a capacity sheds to the next along their walks.
//!
//! Nothing up to its target, all of them at its limit, in proportion between (as the acceptance of SEMANTICS says), by what it carried over the
//! last second. It falls at once, for a region that has too much has it now, and comes back by at most a tenth a second: what is given back at once
//! is what made it too much. Whom it sheds is the draw's to say, so it is always the same clients who go first and come back last.
//!
//! Taken by the letter that law swings: what is shed is missed a second later, by then far too much of it is gone, and the region fills up again
//! for ten seconds. So each step goes to where the law will hold once what is shed is gone: with all of its clients, of whom it took f, the
//! region would carry L ÷ f; the part f′ of them with f′ = (limit − f′ L ÷ f) ÷ (limit − target) is limit ÷ (limit − target + L ÷ f). Where the
//! load is not the draw's to move (clients with an affinity, long answers), the same steps end at the law's own (limit − L) ÷ (limit − target).
//!
//! A region to which others fail over is a different matter: their clients come all at once, and what it carried over the last second says nothing of
//! them. So when another region falls or is taken out, a region with a capacity takes of those who come from elsewhere only as many as have room
//! below its target, thought to be as many as the lost region carried at its own, and a tenth more of them each second.
//!
//! It must not know what a request is, nor who reads its result.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::steering::fleet::{Capacity, Unit};
use crate::steering::ids::{RegionId, RegionSet};
use crate::steering::load::Load;
use crate::steering::snapshot::RegionView;
use crate::steering::world::Now;

/// How long the time is whose load counts.
const WINDOW: Duration = Duration::from_secs(1);

/// How often it is computed anew.
const EVERY: Duration = Duration::from_millis(250);

/// How much of its clients a region takes back in a second.
const RISE: f64 = 0.1;

/// Steps of the result, so that a load that hardly moves publishes nothing.
const STEPS: f64 = 200.0;

/// The least part: of less it could not be known how much all of it is, and it would be long in coming back.
const LEAST: f64 = 0.02;

/// Below this part it is told that a region sheds; it is told to take all when it does again.
const TELLING: f64 = 0.95;

/// The load of one region as the writer looks at it.
#[derive(Debug)]
pub(super) struct Shedding {
    load: Arc<Load>,
    /// What was counted, the oldest first.
    samples: VecDeque<Sample>,
    /// When it was computed last.
    computed: Option<Now>,
    /// 1: all of its clients are taken.
    factor: f64,
    /// 1: all who come because their own region is lost are taken.
    intake: f64,
    /// The regions that are lost, until then.
    from: RegionSet,
    /// What they carried, as far as known.
    lost: f64,
    average: f64,
    /// Whether it was told that it sheds.
    told: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Now,
    in_flight: u32,
    entered: u32,
    /// What was taken until then.
    factor: f64,
}

impl Default for Shedding {
    fn default() -> Shedding {
        Shedding {
            load: Arc::default(),
            samples: VecDeque::new(),
            computed: None,
            factor: 1.0,
            intake: 1.0,
            from: RegionSet::EMPTY,
            lost: 0.0,
            average: 0.0,
            told: false,
        }
    }
}

impl Shedding {
    /// What is counted.
    pub(super) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// 0 … 1: the part of its clients that the region takes, as far as its load is concerned.
    pub(super) fn factor(&self) -> f64 {
        in_steps(self.factor)
    }

    /// As readers see it.
    pub(super) fn view(&self) -> RegionView {
        RegionView { load: Arc::clone(&self.load), shed: self.factor(), intake: in_steps(self.intake), from: self.from }
    }

    /// What it carried over the last second, in the unit of its capacity.
    pub(super) fn average(&self) -> f64 {
        self.average
    }

    /// A region is lost that carried about so much, if that is known, in this one's unit: its clients are on their way. Returns whether
    /// [`Shedding::view`] changed.
    pub(super) fn receive(&mut self, capacity: &Capacity, region: RegionId, lost: Option<u32>) -> bool {
        if self.from.contains(region) {
            // Lost to another service as well, or once more.
            return false;
        }
        let target = f64::from(capacity.target);
        // By now the first that move on may be here already: what counts is what it carried before.
        let carries = match capacity.unit {
            Unit::InFlight if self.computed.is_none() => f64::from(self.load.in_flight()),
            Unit::InFlight | Unit::Rps => self.average,
        };
        self.lost += lost.map_or(target, f64::from);
        self.from.insert(region);
        self.intake = self.intake.min((target - carries).max(0.0) / self.lost);
        true
    }

    /// Regions have other ids now.
    pub(super) fn rename(&mut self, now: impl FnOnce(RegionSet) -> RegionSet) {
        self.from = now(self.from);
    }

    /// Whether it is to be told that it sheds clients, or that it takes all of them again.
    pub(super) fn turned(&mut self) -> Option<bool> {
        let on = if self.told { self.factor() < 1.0 } else { self.factor() < TELLING };
        (std::mem::replace(&mut self.told, on) != on).then_some(on)
    }

    /// What was counted is of a time that says nothing.
    pub(super) fn forget(&mut self) {
        self.samples.clear();
        self.computed = None;
    }

    /// Looks at the load; returns whether [`Shedding::view`] changed.
    pub(super) fn look(&mut self, capacity: Option<&Capacity>, now: Now) -> bool {
        let before = (self.factor(), in_steps(self.intake));
        let Some(capacity) = capacity else {
            *self = Shedding { load: Arc::clone(&self.load), told: self.told, ..Shedding::default() };
            return (self.factor(), self.intake) != before;
        };
        let Shedding { load, factor, .. } = &*self;
        let sample = Sample { at: now, in_flight: load.in_flight(), entered: load.entered(), factor: *factor };
        self.samples.push_back(sample);
        // The one just before the window bounds it.
        while self.samples.get(1).is_some_and(|second| now.since(second.at) >= WINDOW) {
            self.samples.pop_front();
        }
        let spans = self.samples.front().map_or(Duration::ZERO, |first| now.since(first.at));
        if spans < EVERY || self.computed.is_some_and(|computed| now.since(computed) < EVERY) {
            return false;
        }
        let since = self.computed.replace(now).map_or(Duration::ZERO, |computed| now.since(computed));
        self.average = self.carried(capacity.unit);
        let parts: f64 = self.samples.iter().map(|sample| sample.factor).sum();
        let wanted = accepted(self.average, parts / self.samples.len() as f64, capacity);
        let risen = RISE * since.as_secs_f64();
        self.factor = wanted.min(self.factor + risen);
        self.intake = (self.intake + risen).min(1.0);
        if self.intake >= 1.0 {
            (self.from, self.lost) = (RegionSet::EMPTY, 0.0);
        }
        (self.factor(), in_steps(self.intake)) != before
    }

    /// Over the window.
    fn carried(&self, unit: Unit) -> f64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return 0.0 };
        match unit {
            Unit::InFlight => {
                let sum: f64 = self.samples.iter().map(|sample| f64::from(sample.in_flight)).sum();
                sum / self.samples.len() as f64
            }
            Unit::Rps => {
                let seconds = last.at.since(first.at).as_secs_f64();
                // Before there is a window, nothing is known of a rate.
                if seconds <= 0.0 { 0.0 } else { f64::from(last.entered.wrapping_sub(first.entered)) / seconds }
            }
        }
    }
}

fn in_steps(factor: f64) -> f64 {
    (factor * STEPS).round() / STEPS
}

/// The part to take, of a region that carried so much while it took `part`: see the module.
fn accepted(carried: f64, part: f64, capacity: &Capacity) -> f64 {
    let (target, limit) = (f64::from(capacity.target), f64::from(capacity.limit));
    let all = carried / part;
    if all <= target {
        return 1.0;
    }
    (limit / (limit - target + all)).clamp(LEAST, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Capacity = Capacity { target: 80, limit: 100, unit: Unit::InFlight };

    /// Looks every 50 ms for so long.
    fn pass(shedding: &mut Shedding, capacity: &Capacity, now: &mut Now, ms: u64) {
        for _ in 0..ms / 50 {
            *now = now.after(Duration::from_millis(50));
            shedding.look(Some(capacity), *now);
        }
    }

    fn carry(shedding: &Shedding, count: u32) {
        let load = shedding.load();
        while load.in_flight() < count {
            load.enter();
        }
        while load.in_flight() > count {
            load.leave();
        }
    }

    #[test]
    fn a_load_that_stays_is_shed_in_proportion_between_target_and_limit() {
        for (carried, want) in
            [(0, 1.0), (80, 1.0), (85, 0.75), (90, 0.5), (99, 0.05), (100, 0.0), (150, 0.0), (300, 0.0)]
        {
            let (mut shedding, mut now) = (Shedding::default(), Now(0));
            carry(&shedding, carried);
            pass(&mut shedding, &BOUND, &mut now, 120_000);
            assert!((shedding.factor() - want).abs() < 0.03, "{carried}: {}", shedding.factor());
            assert_eq!(shedding.average(), f64::from(carried));
        }
    }

    #[test]
    fn a_load_that_follows_settles_without_a_swing() {
        for clients in [81, 100, 160, 400, 1_000] {
            let (mut shedding, mut now) = (Shedding::default(), Now(0));
            let want = 100.0 / (20.0 + f64::from(clients));
            for tenth in 0..300 {
                carry(&shedding, (f64::from(clients) * shedding.factor()).round() as u32);
                pass(&mut shedding, &BOUND, &mut now, 100);
                let off = (shedding.factor() - want).abs();
                assert!(tenth < 20 || off < 0.05, "{clients} after {tenth}00 ms: {}", shedding.factor());
            }
        }
    }

    #[test]
    fn it_falls_at_once_and_comes_back_slowly() {
        let (mut shedding, mut now) = (Shedding::default(), Now(0));
        carry(&shedding, 10);
        pass(&mut shedding, &BOUND, &mut now, 2_000);
        carry(&shedding, 200);
        pass(&mut shedding, &BOUND, &mut now, 1_000);
        assert!(shedding.factor() < 0.6, "{}", shedding.factor());
        pass(&mut shedding, &BOUND, &mut now, 9_000);
        assert!(shedding.factor() < 0.03, "{}", shedding.factor());
        carry(&shedding, 0);
        let mut before = shedding.factor();
        for _ in 0..12 {
            pass(&mut shedding, &BOUND, &mut now, 1_000);
            assert!(shedding.factor() - before <= 0.101, "{before} -> {}", shedding.factor());
            before = shedding.factor();
        }
        assert_eq!(shedding.factor(), 1.0);
    }

    #[test]
    fn a_rate_is_what_came_in_the_last_second() {
        let bound = Capacity { target: 800, limit: 1000, unit: Unit::Rps };
        let (mut shedding, mut now) = (Shedding::default(), Now(0));
        for step in 0..80 {
            let endless = Capacity { target: 800, limit: u32::MAX, unit: Unit::InFlight };
            for _ in 0..if step < 40 { 45 } else { 10 } {
                assert!(shedding.load().try_enter(&endless, || 0));
                shedding.load().leave();
            }
            pass(&mut shedding, &bound, &mut now, 50);
            if step == 39 {
                assert!((shedding.average() - 900.0).abs() < 50.0, "{}", shedding.average());
                assert!((0.4..0.95).contains(&shedding.factor()), "{}", shedding.factor());
            }
        }
        assert!((shedding.average() - 200.0).abs() < 20.0, "{}", shedding.average());
    }

    #[test]
    fn newcomers_are_let_in_little_by_little() {
        let (mut shedding, mut now) = (Shedding::default(), Now(0));
        carry(&shedding, 60);
        pass(&mut shedding, &BOUND, &mut now, 2_000);
        assert_eq!(shedding.view().intake, 1.0);
        // There is room for 20 of 40; twice is no worse than once.
        let lost = RegionId(3);
        assert!(shedding.receive(&BOUND, lost, Some(40)) && !shedding.receive(&BOUND, lost, Some(40)));
        assert_eq!((shedding.view().intake, shedding.view().shed), (0.5, 1.0));
        assert_eq!(shedding.view().from, RegionSet::from_iter([lost]));
        pass(&mut shedding, &BOUND, &mut now, 2_000);
        assert!((shedding.view().intake - 0.7).abs() < 0.03, "{}", shedding.view().intake);
        pass(&mut shedding, &BOUND, &mut now, 4_000);
        assert_eq!((shedding.view().intake, shedding.view().from), (1.0, RegionSet::EMPTY));
        // Of one that says nothing of itself, as much is expected as this one is to carry; two are twice as many.
        assert!(shedding.receive(&BOUND, lost, None));
        assert_eq!(shedding.view().intake, 0.25);
        assert!(shedding.receive(&BOUND, RegionId(4), None));
        assert_eq!(shedding.view().intake, 0.125);
        // What was seen before a pause says nothing after it, and brings nobody back.
        shedding.forget();
        now = now.after(Duration::from_secs(60));
        pass(&mut shedding, &BOUND, &mut now, 300);
        assert!(shedding.view().intake < 0.2, "{}", shedding.view().intake);
    }

    #[test]
    fn without_a_capacity_nothing_is_shed() {
        let (mut shedding, mut now) = (Shedding::default(), Now(0));
        carry(&shedding, 100);
        pass(&mut shedding, &BOUND, &mut now, 1_500);
        assert!(shedding.look(None, now) && shedding.factor() == 1.0 && shedding.load().in_flight() == 100);
        assert!(!shedding.look(None, now));
    }
}
