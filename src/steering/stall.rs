//! Whether an endpoint that still accepts has ceased to answer.
//!
//! A frozen process completes handshakes and takes requests; a vanished machine takes them too, as far as the sender can see. What
//! shows is that requests wait: several of them, for longer than answers ever take there, and not a byte came meanwhile.
//! A slow endpoint still says something; a long poll waits long always, which its own 99th percentile knows.
//!
//! Nobody notes when each request began. Looks at the meter, some dozens of milliseconds apart, are enough: those that waited at an old
//! look and have not left since wait still, if nothing was heard.
//!
//! It must not know clocks or who looks: a look is a value.

use std::time::Duration;

use arrayvec::ArrayVec;

use crate::steering::meter::{Meter, Waiting};
use crate::steering::world::Now;

/// So many requests have to wait.
const MANY: u32 = 5;

/// Whoever answers in less waits this long all the same.
const LEAST: Duration = Duration::from_millis(250);

/// Waiting is too long beyond so many times the 99th percentile of the first byte.
const TIMES: u32 = 3;

/// Off until so many answers are known.
const SAMPLES: u32 = 100;

/// Looks that are kept; they are so far apart that these span the time that is too long.
const LOOKS: usize = 16;

/// What was seen of one endpoint since something was heard from it.
#[derive(Clone, Debug, Default)]
pub struct Stall {
    looks: ArrayVec<(Now, Waiting), LOOKS>,
}

impl Stall {
    /// Looks at the meter; returns how long requests wait in vain when it is too long for too many.
    pub fn look(&mut self, meter: &Meter, now: Now) -> Option<Duration> {
        let seen = meter.waiting();
        if self.looks.last().is_some_and(|(_, last)| last.heard != seen.heard) || seen.waiting == 0 {
            self.looks.clear();
        }
        if seen.waiting == 0 {
            return None;
        }
        let p99 = meter.first_bytes().p99(SAMPLES)?;
        let too_long = LEAST.max(p99.saturating_mul(TIMES));
        let vain = self.looks.iter().rev().find(|(at, _)| now.since(*at) >= too_long);
        let stalled = vain.filter(|(_, then)| {
            let left = seen.left.wrapping_sub(then.left);
            then.waiting.saturating_sub(left) >= MANY
        });
        if let Some((at, _)) = stalled {
            return Some(now.since(*at));
        }
        let apart = too_long / (LOOKS as u32 - 2);
        if self.looks.last().is_none_or(|(at, _)| now.since(*at) >= apart) {
            if self.looks.is_full() {
                self.looks.remove(0);
            }
            self.looks.push((now, seen));
        }
        None
    }

    /// Forgets what was seen: the time since was not what it seemed.
    pub fn forget(&mut self) {
        self.looks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        meter: Meter,
        stall: Stall,
        now: u64,
    }

    impl Scene {
        /// An endpoint that answered `count` requests within `ms` each.
        fn new(count: u32, ms: u64) -> Scene {
            let meter = Meter::default();
            for _ in 0..count {
                meter.waits();
                meter.answers(Duration::from_millis(ms));
            }
            Scene { meter, stall: Stall::default(), now: 0 }
        }

        fn wait(&self, requests: u32) {
            (0..requests).for_each(|_| self.meter.waits());
        }

        /// Looks every 50 ms for so long; when it was found stalled.
        fn watch(&mut self, ms: u64) -> Option<u64> {
            let until = self.now + ms;
            while self.now < until {
                self.now += 50;
                if self.stall.look(&self.meter, Now(self.now)).is_some() {
                    return Some(self.now);
                }
            }
            None
        }
    }

    #[test]
    fn five_that_wait_in_vain_are_a_stall() {
        let mut scene = Scene::new(200, 5);
        scene.wait(5);
        assert_eq!(scene.watch(1000), Some(300));
        let mut scene = Scene::new(200, 5);
        scene.wait(4);
        assert_eq!(scene.watch(60_000), None);
        scene.wait(1);
        assert_eq!(scene.watch(1000), Some(60_300), "the fifth counts from its own beginning");
    }

    #[test]
    fn a_byte_from_it_begins_anew() {
        let mut scene = Scene::new(200, 5);
        scene.wait(50);
        for _ in 0..100 {
            assert_eq!(scene.watch(200), None);
            scene.meter.heard();
        }
        assert!(scene.watch(350).is_some());
    }

    #[test]
    fn slow_endpoints_have_their_time() {
        let mut scene = Scene::new(200, 1000);
        scene.wait(50);
        assert_eq!(scene.watch(3000), None);
        let found = scene.watch(1500).unwrap();
        assert!((3000..=4000).contains(&found), "{found}");
        assert_eq!(Scene::new(99, 5).meter.first_bytes().p99(SAMPLES), None);
        let mut scene = Scene::new(99, 5);
        scene.wait(50);
        assert_eq!(scene.watch(60_000), None, "too little is known of it");
    }

    #[test]
    fn who_left_does_not_wait() {
        let mut scene = Scene::new(200, 5);
        scene.wait(8);
        assert_eq!(scene.watch(200), None);
        (0..4).for_each(|_| scene.meter.gives_up());
        scene.wait(40);
        // Four of the eight are left; the forty wait since a moment.
        assert_eq!(scene.watch(200), None);
        assert!(scene.watch(200).is_some());
        let mut scene = Scene::new(200, 5);
        scene.wait(8);
        assert_eq!(scene.watch(200), None);
        scene.stall.forget();
        assert_eq!(scene.watch(250), None);
    }
}
