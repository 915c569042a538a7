//! Whether an endpoint fails far more often than the others of its service do.
//!
//! Failures in a row show what fails always. An endpoint that fails half of its requests hardly ever does it five times in a row, and yet nobody
//! should be sent there. How often is too often depends on what is normal: a service that fails everywhere has no better
//! place to go, and an endpoint is not left for two unlucky answers.
//!
//! So it is a test of likelihoods, in sequence (Page's CUSUM, with the logarithm of Wald's ratio as its sum). From the first failure on, what
//! came of its requests is held against two guesses: that it fails as often as the others do in the same time (or as it always did a little), and
//! that it fails as often as is too often. When the second is e^18 times as likely, and it did fail that often, it is found. When the first is the likelier one, it is
//! forgotten. At half of the requests that takes about 14 of them where nobody else fails; by chance it happens once in e^18
//! times (6 · 10⁷) that a good endpoint fails at all.
//!
//! It must not know clocks, pools or who is to be ejected: counts in, a judgement out.

use crate::steering::meter::Outcomes;

/// So much likelier (as a logarithm) has the worse guess to be.
const LIKELIER: f64 = 18.0;

/// Nobody is expected to fail less often than this: one in a hundred.
const LEAST: f64 = 0.01;

/// What was known of the others before counts as so many requests of them.
const PRIOR: f64 = 50.0;

/// Where this part of requests would be too often, there is nothing to choose.
const MOST: f64 = 0.9;

/// Others fail clearly less: a third of it.
const CLEARLY: f64 = 3.0;

/// What is remembered of an endpoint are about so many requests.
const MANY: f64 = 256.0;

/// Requests, and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// All.
    pub tried: f64,
    /// Those that failed.
    pub failed: f64,
}

impl Tally {
    fn of(outcomes: Outcomes) -> Tally {
        Tally { tried: f64::from(outcomes.tried), failed: f64::from(outcomes.failed) }
    }

    /// Both together.
    pub fn and(self, other: Tally) -> Tally {
        Tally { tried: self.tried + other.tried, failed: self.failed + other.failed }
    }

    /// What is left without those of `other`; nothing where that has more.
    pub fn without(self, other: Tally) -> Tally {
        Tally { tried: (self.tried - other.tried).max(0.0), failed: (self.failed - other.failed).max(0.0) }
    }
}

/// What is known of several endpoints together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peers {
    /// What came of all their requests since they are there.
    pub ever: Tally,
    /// What is remembered of each, added up.
    pub lately: Tally,
    /// How many of them are up.
    pub up: u32,
}

impl Peers {
    /// Both together.
    pub fn and(self, other: Peers) -> Peers {
        Peers {
            ever: self.ever.and(other.ever),
            lately: self.lately.and(other.lately),
            up: self.up.saturating_add(other.up),
        }
    }

    /// The others, if `one` is among these.
    pub fn without(self, one: Peers) -> Peers {
        Peers {
            ever: self.ever.without(one.ever),
            lately: self.lately.without(one.lately),
            up: self.up.saturating_sub(one.up),
        }
    }
}

/// What an endpoint was found to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// What came of its requests since the first that failed.
    pub own: Tally,
    /// The part that fails elsewhere, as far as is known.
    pub elsewhere: f64,
}

/// What came of the requests of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outlier {
    ever: Tally,
    lately: Tally,
    /// What came of them since the first failure that is not forgotten.
    own: Option<Tally>,
    /// What was normal for it until then.
    usual: f64,
    /// What had come of the others' by then, once that is known.
    others: Option<Tally>,
}

impl Outlier {
    /// Takes what came of its requests since the last time.
    pub fn take(&mut self, outcomes: Outcomes) {
        let new = Tally::of(outcomes);
        if self.own.is_none() {
            self.usual = self.lately.failed / (self.lately.tried + PRIOR);
        }
        self.ever = self.ever.and(new);
        self.lately = self.lately.and(new);
        if self.lately.tried > MANY {
            let part = MANY / 2.0 / self.lately.tried;
            self.lately = Tally { tried: self.lately.tried * part, failed: self.lately.failed * part };
        }
        if self.own.is_some() || outcomes.failed > 0 {
            self.own = Some(self.own.unwrap_or_default().and(new));
        }
    }

    /// As one among others; `up`: it is.
    pub fn peer(&self, up: bool) -> Peers {
        Peers { ever: self.ever, lately: self.lately, up: u32::from(up) }
    }

    /// Whether it fails far more often than `others`, and at least as often as this part of its requests.
    pub fn judge(&mut self, others: &Peers, too_often: f64) -> Option<Found> {
        let own = self.own?;
        let elsewhere = others.expected(*self.others.get_or_insert(others.ever));
        let too_often = too_often.max(CLEARLY * elsewhere);
        if others.up == 0 || too_often >= MOST {
            self.forget();
            return None;
        }
        // Whoever comes back from an ejection is used to a lot.
        let normal = elsewhere.max(self.usual.min(too_often / CLEARLY));
        let passed = own.tried - own.failed;
        let likelier = own.failed * (too_often / normal).ln() + passed * ((1.0 - too_often) / (1.0 - normal)).ln();
        if likelier <= 0.0 {
            self.forget();
            return None;
        }
        let found = likelier >= LIKELIER && own.failed >= too_often * own.tried;
        found.then_some(Found { own, elsewhere })
    }

    /// It is out: what it did last is what is remembered of it.
    pub fn ejected(&mut self) {
        self.lately = self.own.unwrap_or(self.lately);
        self.forget();
    }

    /// Forgets what speaks against it.
    pub fn forget(&mut self) {
        (self.own, self.others) = (None, None);
    }
}

impl Peers {
    /// The part of requests that fails among these, by what came of them since `began` and by what was known before.
    fn expected(&self, began: Tally) -> f64 {
        let (since, before) = (self.ever.without(began), self.lately);
        let known = if before.tried > 0.0 { before.failed / before.tried } else { 0.0 };
        ((since.failed + known * PRIOR) / (since.tried + PRIOR)).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOO_OFTEN: f64 = 0.2;

    /// Endpoints and how often each fails, of a thousand.
    struct Scene {
        endpoints: Vec<(u64, Outlier)>,
        state: u64,
    }

    impl Scene {
        fn new(rates: &[u64], seed: u64) -> Scene {
            Scene { endpoints: rates.iter().map(|rate| (*rate, Outlier::default())).collect(), state: seed }
        }

        fn chance(&mut self) -> u64 {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) >> 11
        }

        /// So many requests for each, judged after each `batch`; which one was found first, and after how many.
        fn run(&mut self, requests: u32, batch: u32) -> Option<(usize, u32)> {
            let mut done = 0;
            while done < requests {
                for at in 0..self.endpoints.len() {
                    let failed = (0..batch).filter(|_| self.chance() % 1000 < self.endpoints[at].0).count() as u32;
                    self.endpoints[at].1.take(Outcomes { tried: batch, failed });
                }
                done += batch;
                let all = self.endpoints.iter().map(|(_, one)| one.peer(true)).fold(Peers::default(), Peers::and);
                for (at, (_, one)) in self.endpoints.iter_mut().enumerate() {
                    if one.judge(&all.without(one.peer(true)), TOO_OFTEN).is_some() {
                        return Some((at, done));
                    }
                }
            }
            None
        }
    }

    proptest! {
        #[test]
        fn who_fails_half_is_found_soon(seed: u64, batch in 1u32..40) {
            let mut scene = Scene::new(&[2, 500, 2], seed);
            let (who, after) = scene.run(2000, batch).unwrap();
            prop_assert!(who == 1 && after <= 80 + batch, "{who} after {after}");
        }

        #[test]
        fn who_fails_a_third_is_found(seed: u64, batch in 1u32..40) {
            let found = Scene::new(&[10, 333, 10], seed).run(2000, batch).unwrap();
            prop_assert_eq!(found.0, 1);
        }

        #[test]
        fn nobody_is_found_where_all_are_alike(seed: u64, rate in 0u64..1000, batch in 1u32..40) {
            prop_assert_eq!(Scene::new(&[rate, rate, rate], seed).run(3000, batch), None);
        }

        #[test]
        fn nobody_is_found_for_a_few(seed: u64, rate in 0u64..80, batch in 1u32..40) {
            prop_assert_eq!(Scene::new(&[rate, 0, 0], seed).run(3000, batch), None);
        }

        #[test]
        fn who_is_alone_is_never_found(seed: u64, rate in 0u64..=1000) {
            prop_assert_eq!(Scene::new(&[rate], seed).run(1000, 5), None);
        }

        #[test]
        fn beside_others_that_are_not_asked_it_is_found(seed: u64) {
            let mut scene = Scene::new(&[500], seed);
            let idle = Peers { up: 1, ..Peers::default() };
            let mut one = scene.endpoints.remove(0).1;
            let mut found = None;
            for n in 1..200 {
                let failed = u32::from(scene.chance().is_multiple_of(2));
                one.take(Outcomes { tried: 1, failed });
                found = one.judge(&idle, TOO_OFTEN).map(|_| n);
                if found.is_some() {
                    break;
                }
            }
            prop_assert!(found.is_some_and(|n| (6..80).contains(&n)), "{found:?}");
        }
    }

    #[test]
    fn every_other_one_takes_fourteen() {
        let idle = Peers { up: 1, ..Peers::default() };
        let mut one = Outlier::default();
        let mut after = 0;
        loop {
            after += 1;
            one.take(Outcomes { tried: 1, failed: after % 2 });
            if one.judge(&idle, TOO_OFTEN).is_some() {
                break;
            }
        }
        assert_eq!(after, 13);
    }

    #[test]
    fn what_was_ejected_is_remembered_while_it_is_not_asked() {
        let mut scene = Scene::new(&[0, 500], 7);
        assert!(scene.run(200, 1).is_some());
        let mut left = scene.endpoints.remove(1).1;
        left.ejected();
        assert!(left.peer(false).lately.failed / left.peer(false).lately.tried > 0.3);
        // The next one that fails like that has nowhere better to send its clients.
        let mut next = scene.endpoints.remove(0).1;
        let others = Peers { up: 1, ..left.peer(false) };
        for n in 0..500 {
            next.take(Outcomes { tried: 1, failed: n % 2 });
            assert_eq!(next.judge(&others, TOO_OFTEN), None);
        }
    }
}
