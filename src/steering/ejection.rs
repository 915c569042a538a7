//! Taken out by what its traffic told: whether an endpoint is ejected, until when, and how often it was lately.
//!
//! Real requests see what a probe cannot: a health page that says 200 before a service that says 503, or a process that accepts and never
//! answers. An endpoint that fails them is left out for a while, longer each time (as Envoy's outlier detection does it: `eject` × n,
//! at most `eject_max`, n falling by one for each calm `eject`). If its probes fail meanwhile and then pass, they know better
//! and it returns at once; if they never failed, they are blind to what is wrong, and the time runs.
//!
//! It must not know pools: how many may be out at once is theirs to say.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::steering::fleet::Passive;
use crate::steering::world::Now;

/// The ejections of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ejection {
    until: Option<Now>,
    /// The probes turned it down meanwhile.
    confirmed: bool,
    /// How often it was ejected lately.
    times: u32,
    /// Since when it is calm, or until when time was given back.
    calm_since: Now,
}

impl Ejection {
    /// Whether it is out.
    pub fn is_out(&self) -> bool {
        self.until.is_some()
    }

    /// Until when, if it is out.
    pub fn until(&self) -> Option<Now> {
        self.until
    }

    /// Whether time alone moves it.
    pub fn moves(&self) -> bool {
        self.until.is_some() || self.times > 0
    }

    /// Takes it out; returns for how long.
    pub fn eject(&mut self, policy: &Passive, now: Now) -> Duration {
        self.times = self.times.saturating_add(1);
        let time = policy.eject.saturating_mul(self.times).min(policy.eject_max.max(policy.eject));
        self.until = Some(now.after(time));
        self.confirmed = false;
        time
    }

    /// The probes' verdict turned: to up, or to down. Returns whether that ends the ejection.
    pub fn turned(&mut self, up: bool, now: Now) -> bool {
        if self.until.is_none() {
            return false;
        }
        if !up {
            self.confirmed = true;
            return false;
        }
        std::mem::take(&mut self.confirmed) && self.end(now)
    }

    /// Time went by. Returns whether that ends the ejection.
    pub fn tick(&mut self, policy: &Passive, now: Now) -> bool {
        if let Some(until) = self.until {
            return now >= until && self.end(now);
        }
        while self.times > 0 && now.since(self.calm_since) >= policy.eject {
            self.times -= 1;
            self.calm_since = self.calm_since.after(policy.eject);
        }
        false
    }

    /// Nothing ejects it any more. Returns whether that ends the ejection.
    pub fn lift(&mut self, now: Now) -> bool {
        self.until.is_some() && self.end(now)
    }

    fn end(&mut self, now: Now) -> bool {
        self.until = None;
        self.calm_since = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Passive =
        Passive { failures: 5, rate: 20, eject: Duration::from_secs(30), eject_max: Duration::from_secs(300) };

    fn s(seconds: u64) -> Now {
        Now(seconds * 1000)
    }

    #[test]
    fn each_time_is_longer_and_calm_forgives() {
        let mut ejection = Ejection::default();
        let mut now = 0;
        let mut times = Vec::new();
        for _ in 0..12 {
            let time = ejection.eject(&POLICY, s(now)).as_secs();
            times.push(time);
            assert!(!ejection.tick(&POLICY, s(now + time - 1)) && ejection.is_out());
            now += time;
            assert!(ejection.tick(&POLICY, s(now)) && !ejection.is_out());
        }
        assert_eq!(times, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
        // Twelve times it was; ten calm spans leave two.
        assert!(!ejection.tick(&POLICY, s(now + 300)) && ejection.moves());
        assert_eq!(ejection.eject(&POLICY, s(now + 300)).as_secs(), 90);
        now += 390;
        assert!(ejection.tick(&POLICY, s(now)));
        ejection.tick(&POLICY, s(now + 3 * 30));
        assert!(!ejection.moves());
        assert_eq!(ejection.eject(&POLICY, s(now + 100)).as_secs(), 30);
    }

    #[test]
    fn probes_that_failed_and_rose_end_it() {
        let mut ejection = Ejection::default();
        assert!(!ejection.turned(true, s(0)) && !ejection.turned(false, s(0)));
        ejection.eject(&POLICY, s(1));
        assert!(!ejection.turned(true, s(2)), "they never failed: blind");
        assert!(!ejection.turned(false, s(3)));
        assert!(ejection.turned(true, s(4)) && !ejection.is_out());
        ejection.eject(&POLICY, s(5));
        assert!(!ejection.turned(true, s(6)), "what they said of the last time does not count");
    }

    #[test]
    fn a_bound_below_one_ejection_is_one_ejection() {
        let policy = Passive { eject_max: Duration::from_secs(1), ..POLICY };
        let mut ejection = Ejection::default();
        assert_eq!(ejection.eject(&policy, s(0)).as_secs(), 30);
    }
}
