//! Whether an endpoint fails far more often than the others of its service do.
//!
//! Failures in a row show what fails always. An endpoint that fails half of its requests hardly ever does it five times in a row, and yet nobody
//! should be sent there. How often is too often depends on what is normal: a service that fails everywhere has no better
//! place to go, and an endpoint is not left for two unlucky answers.
//!
//! So it is a test of likelihoods, in sequence (after Page's CUSUM, with the logarithm of Wald's ratio as its sum). From the first failure on, what
//! came of its last requests is held against two guesses: that it fails as often as the others do in the same time (or as it always did a
//! little), and that it fails as often as is too often. The others are those of its service, or those of other pools if they do better: where a
//! whole region fails, its endpoints are no measure of each other. When the second is e^18 times as likely, and it did fail that often, it is
//! found. When the first is the likelier one, it is forgotten. At half of the requests that takes about 14 of them where nobody else fails; by
//! chance it happens once in e^18 times (6 · 10⁷) that a good endpoint fails at all.
//!
//! It must not know clocks, pools or who is to be ejected: counts in, a judgement out.

use crate::steering::meter::Outcomes;

/// So much likelier (as a logarithm) has the worse guess to be.
const LIKELIER: f64 = 18.0;

/// Nobody is expected to fail less often than this: one in a hundred.
const LEAST: f64 = 0.01;

/// What was known of the others before counts as so many requests of them.
const PRIOR: f64 = 20.0;

/// How unlucky the others are taken to be, in standard deviations of a count.
const DEVIATIONS: f64 = 2.0;

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

    fn part(self, part: f64) -> Tally {
        Tally { tried: self.tried * part, failed: self.failed * part }
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
    /// The same up to the look before.
    pub before: Tally,
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
            before: self.before.and(other.before),
            lately: self.lately.and(other.lately),
            up: self.up.saturating_add(other.up),
        }
    }

    /// The others, if `one` is among these.
    pub fn without(self, one: Peers) -> Peers {
        Peers {
            ever: self.ever.without(one.ever),
            before: self.before.without(one.before),
            lately: self.lately.without(one.lately),
            up: self.up.saturating_sub(one.up),
        }
    }
}

/// What an endpoint was found to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// What came of its requests since the first that failed, or of the last of them.
    pub own: Tally,
    /// The part that fails elsewhere, as far as is known.
    pub elsewhere: f64,
}

/// What came of the requests of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outlier {
    ever: Tally,
    before: Tally,
    lately: Tally,
    /// What came of them since the first failure that is not forgotten.
    own: Option<Tally>,
    /// What was normal for it until then.
    usual: f64,
    /// What had come of the others' by then, once that is known: of all, and of those of other pools.
    others: [Option<Tally>; 2],
}

impl Outlier {
    /// Takes what came of its requests since the last time.
    pub fn take(&mut self, outcomes: Outcomes) {
        let new = Tally::of(outcomes);
        if self.own.is_none() {
            self.usual = self.lately.failed / (self.lately.tried + PRIOR);
        }
        self.before = self.ever;
        self.ever = self.ever.and(new);
        self.lately = self.lately.and(new);
        if self.lately.tried > MANY {
            self.lately = self.lately.part(MANY / 2.0 / self.lately.tried);
        }
        if self.own.is_some() || outcomes.failed > 0 {
            self.own = Some(self.own.unwrap_or_default().and(new));
        }
    }

    /// As one among others; `up`: it is.
    pub fn peer(&self, up: bool) -> Peers {
        Peers { ever: self.ever, before: self.before, lately: self.lately, up: u32::from(up) }
    }

    /// Whether it fails far more often than the others do, all of its service and those of other pools, and at least as often as this part of
    /// its requests. What was found is found once.
    pub fn judge(&mut self, others: [&Peers; 2], too_often: f64) -> Option<Found> {
        let own = self.own?;
        let mut elsewhere = f64::INFINITY;
        for (peers, began) in others.into_iter().zip(&mut self.others) {
            let began = began.get_or_insert(peers.before);
            if peers.up > 0 {
                elsewhere = elsewhere.min(peers.expected(*began));
            }
        }
        let too_often = too_often.max(CLEARLY * elsewhere);
        if too_often >= MOST {
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
        if likelier >= LIKELIER && own.failed >= too_often * own.tried {
            // Should it stay, it begins anew; should it go, this is what is remembered of it while nobody asks it.
            self.lately = own;
            self.forget();
            return Some(Found { own, elsewhere });
        }
        if own.tried > MANY {
            // What is long ago must not hide what is now.
            self.own = Some(own.part(0.5));
            for (peers, began) in others.into_iter().zip(&mut self.others) {
                *began = began.map(|began| peers.ever.without(peers.ever.without(began).part(0.5)));
            }
        }
        None
    }

    /// Forgets what speaks against it.
    pub fn forget(&mut self) {
        (self.own, self.others) = (None, [None; 2]);
    }
}

impl Peers {
    /// The part of requests that fails among these at most, by what came of them since `began` and by what was known before.
    fn expected(&self, began: Tally) -> f64 {
        let (since, before) = (self.ever.without(began), self.lately);
        let known = if before.tried > 0.0 { before.failed / before.tried } else { 0.0 };
        // So few failures could as well have been more by chance.
        let failed = since.failed + DEVIATIONS * since.failed.sqrt();
        ((failed + known * PRIOR) / (since.tried + PRIOR)).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

        fn below(&mut self, from: u64, to: u64) -> u64 {
            from + self.chance() % (to - from)
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
                    let others = all.without(one.peer(true));
                    if one.judge([&others, &Peers::default()], TOO_OFTEN).is_some() {
                        return Some((at, done));
                    }
                }
            }
            None
        }
    }

    /// So many scenes by chance, the same ones each time: what is unlikely is not impossible.
    fn dice(scenes: u64) -> impl Iterator<Item = (u64, Scene)> {
        (0..scenes).map(|seed| (seed, Scene::new(&[], seed.wrapping_mul(0x5851_f42d_4c95_7f2d))))
    }

    #[test]
    fn who_fails_half_is_found_soon() {
        for (seed, mut dice) in dice(2000) {
            let batch = dice.below(1, 40) as u32;
            let (who, after) = Scene::new(&[2, 500, 2], seed).run(2000, batch).unwrap();
            assert!(who == 1 && after <= 100 + batch, "{seed}: {who} after {after}");
        }
    }

    #[test]
    fn who_fails_a_third_is_found() {
        for (seed, mut dice) in dice(2000) {
            let found = Scene::new(&[10, 333, 10], seed).run(2000, dice.below(1, 40) as u32).unwrap();
            assert_eq!(found.0, 1, "{seed}");
        }
    }

    #[test]
    fn nobody_is_found_where_all_are_alike() {
        for (seed, mut dice) in dice(2000) {
            let (rate, batch) = (dice.below(0, 1001), dice.below(1, 40) as u32);
            assert_eq!(Scene::new(&[rate, rate, rate], seed).run(3000, batch), None, "{seed}: {rate} by {batch}");
        }
    }

    #[test]
    fn who_always_fails_a_few_is_not_found() {
        for (seed, mut dice) in dice(2000) {
            let (rate, batch) = (dice.below(0, 60), dice.below(1, 40) as u32);
            let mut scene = Scene::new(&[rate, 0, 0], seed);
            // What is normal has to be known first.
            for (rate, one) in &mut scene.endpoints {
                one.take(Outcomes { tried: 1000, failed: *rate as u32 });
                one.forget();
            }
            assert_eq!(scene.run(3000, batch), None, "{seed}: {rate} by {batch}");
        }
    }

    #[test]
    fn nobody_is_found_where_all_begin_to_fail_at_once() {
        for (seed, mut dice) in dice(4000) {
            let (rate, batch, count) = (dice.below(0, 1001), dice.below(1, 200) as u32, dice.below(2, 6));
            let mut scene = Scene::new(&vec![1; count as usize], seed);
            assert_eq!(scene.run(2000, batch), None, "{seed}");
            scene.endpoints.iter_mut().for_each(|(now, _)| *now = rate);
            assert_eq!(scene.run(2000, batch), None, "{seed}: {rate} by {batch} at {count}");
        }
    }

    #[test]
    fn what_was_bad_for_long_does_not_hide_what_is_worse() {
        let mut hidden = 0;
        for (seed, mut dice) in dice(200) {
            let batch = dice.below(1, 40) as u32;
            let mut scene = Scene::new(&[80, 2, 2], seed);
            if scene.run(20_000, batch).is_none() {
                hidden += 1;
                scene.endpoints[0].0 = 500;
                let (who, after) = scene.run(2000, batch).unwrap();
                assert!(who == 0 && after <= 400 + batch, "{seed}: {who} after {after}");
            }
        }
        assert!(hidden > 10, "{hidden}");
    }

    #[test]
    fn a_pool_that_fails_as_a_whole_is_no_measure_of_itself() {
        for (seed, mut dice) in dice(200) {
            // The first half of the endpoints is one pool, the other half another.
            let size = dice.below(2, 9) as usize;
            let rates: Vec<u64> = (0..2 * size).map(|at| if at < size { 500 } else { 2 }).collect();
            let mut scene = Scene::new(&rates, seed);
            let mut found = vec![false; 2 * size];
            for _ in 0..200 {
                for at in 0..2 * size {
                    let failed = u32::from(scene.chance() % 1000 < scene.endpoints[at].0);
                    scene.endpoints[at].1.take(Outcomes { tried: 1, failed });
                }
                let sum =
                    |of: &[(u64, Outlier)]| of.iter().map(|(_, one)| one.peer(true)).fold(Peers::default(), Peers::and);
                let pools = [sum(&scene.endpoints[..size]), sum(&scene.endpoints[size..])];
                for (at, (_, one)) in scene.endpoints.iter_mut().enumerate() {
                    let others = pools[0].and(pools[1]).without(one.peer(true));
                    found[at] |= one.judge([&others, &pools[usize::from(at < size)]], TOO_OFTEN).is_some();
                }
            }
            assert!(found[..size].iter().all(|found| *found), "{seed}: {found:?}");
            assert!(!found[size..].iter().any(|found| *found), "{seed}: {found:?}");
        }
    }

    #[test]
    fn who_is_alone_is_never_found() {
        for (seed, mut dice) in dice(200) {
            assert_eq!(Scene::new(&[dice.below(0, 1001)], seed).run(1000, 5), None);
        }
    }

    #[test]
    fn beside_others_that_are_not_asked_it_is_found() {
        let idle = Peers { up: 1, ..Peers::default() };
        for (seed, mut dice) in dice(2000) {
            let mut one = Outlier::default();
            let after = (1..200).find(|_| {
                one.take(Outcomes { tried: 1, failed: dice.below(0, 2) as u32 });
                one.judge([&idle, &idle], TOO_OFTEN).is_some()
            });
            assert!(after.is_some_and(|after| (6..100).contains(&after)), "{seed}: {after:?}");
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
            if one.judge([&idle, &idle], TOO_OFTEN).is_some() {
                break;
            }
        }
        assert_eq!(after, 13);
    }

    #[test]
    fn what_was_ejected_is_remembered_while_it_is_not_asked() {
        let mut scene = Scene::new(&[0, 500], 7);
        assert!(scene.run(200, 1).is_some());
        let left = scene.endpoints.remove(1).1;
        assert!(left.peer(false).lately.failed / left.peer(false).lately.tried > 0.3);
        // The next one that fails like that has nowhere better to send its clients.
        let mut next = scene.endpoints.remove(0).1;
        let others = Peers { up: 1, ..left.peer(false) };
        for n in 0..500 {
            next.take(Outcomes { tried: 1, failed: n % 2 });
            assert_eq!(next.judge([&others, &others], TOO_OFTEN), None);
        }
    }
}
