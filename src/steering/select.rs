//! One endpoint within a pool: power of two choices on in-flight requests, weighted.
//!
//! Two endpoints are drawn in proportion to weight × warmth × what they ask for, and the one with fewer requests in flight for its
//! share is taken (Mitzenmacher's two choices, as in Envoy's least-request balancer). Down endpoints are taken in panic only, those that ask to
//! be drained when every region left is of that kind, those without a share when nothing else is left, and those that an operator
//! took out never. The random number is an argument.

use crate::steering::fleet::Intent;
use crate::steering::snapshot::{EndpointState, EndpointView};

/// How much of what was observed counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heed {
    /// Verdicts, and drains that endpoints ask for.
    All,
    /// Verdicts only: there is nobody else who could be sent what endpoints ask not to be sent.
    Verdicts,
    /// Neither: panic.
    Nothing,
}

/// The index of the endpoint to take among those that `tried` does not exclude, or `None`.
pub fn select(
    endpoints: &[EndpointView],
    heed: Heed,
    chance: u64,
    tried: impl Fn(usize) -> bool + Copy,
) -> Option<usize> {
    if let [only] = endpoints {
        return (eligible(only, heed) && !tried(0)).then_some(0);
    }
    let share = |index: usize, endpoint: &EndpointView| {
        let open = eligible(endpoint, heed) && !tried(index);
        if open { endpoint.share() } else { 0.0 }
    };
    let total: f64 = endpoints.iter().enumerate().map(|(i, e)| share(i, e)).sum();
    if total <= 0.0 {
        // Nothing with weight: whatever may still be tried, evenly.
        let open = |(index, endpoint): &(usize, &EndpointView)| eligible(endpoint, heed) && !tried(*index);
        let count = endpoints.iter().enumerate().filter(open).count();
        let nth = (chance % count.max(1) as u64) as usize;
        return endpoints.iter().enumerate().filter(open).nth(nth).map(|(index, _)| index);
    }
    let first = draw(endpoints, share, total, None, (chance >> 32) as u32)?;
    let rest = total - share(first, &endpoints[first]);
    if rest <= 0.0 {
        return Some(first);
    }
    let second = draw(endpoints, share, rest, Some(first), chance as u32)?;
    let load = |index: usize| {
        let endpoint = &endpoints[index];
        // +1: the request to be placed, so that empty endpoints of unequal weight differ.
        (f64::from(endpoint.meter.in_flight()) + 1.0) / share(index, endpoint)
    };
    Some(if load(second) < load(first) { second } else { first })
}

fn eligible(endpoint: &EndpointView, heed: Heed) -> bool {
    let up = endpoint.state == EndpointState::Up;
    let observed = match heed {
        Heed::All => up && !endpoint.asked.drain,
        Heed::Verdicts => up,
        Heed::Nothing => true,
    };
    endpoint.intent == Intent::Ready && observed
}

/// Draws an index with probability share ÷ total, leaving `without` out.
fn draw(
    endpoints: &[EndpointView],
    share: impl Fn(usize, &EndpointView) -> f64,
    total: f64,
    without: Option<usize>,
    chance: u32,
) -> Option<usize> {
    let mut left = total * (f64::from(chance) / 4_294_967_296.0);
    let mut last = None;
    for (index, endpoint) in endpoints.iter().enumerate() {
        let part = if Some(index) == without { 0.0 } else { share(index, endpoint) };
        if part > 0.0 {
            last = Some(index);
            left -= part;
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::steering::meter::Meter;
    use crate::steering::snapshot::{Asked, EndpointId};

    fn endpoint(weight: u32, state: EndpointState) -> EndpointView {
        EndpointView {
            id: EndpointId(0),
            address: ([127, 0, 0, 1], 80).into(),
            name: Arc::from("test"),
            weight,
            state,
            cause: None,
            ejected: crate::steering::snapshot::Ejected::default(),
            intent: Intent::Ready,
            warmth: 1.0,
            asked: Asked::default(),
            meter: Arc::new(Meter::default()),
        }
    }

    /// SplitMix64, so that tests need no random crate.
    fn chances(n: u64) -> impl Iterator<Item = u64> {
        (0..n).map(|i| {
            let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }

    #[test]
    fn requests_spread_by_weight_when_they_stay() {
        let pool = [3, 1].map(|w| endpoint(w, EndpointState::Up));
        for chance in chances(4000) {
            let taken = select(&pool, Heed::All, chance, |_| false).unwrap();
            pool[taken].meter.enter();
        }
        let share = f64::from(pool[0].meter.in_flight()) / 4000.0;
        assert!((share - 0.75).abs() < 0.01, "{share}");
    }

    #[test]
    fn a_busy_endpoint_is_spared() {
        let pool = [1, 1].map(|w| endpoint(w, EndpointState::Up));
        (0..50).for_each(|_| pool[0].meter.enter());
        assert!(chances(200).all(|c| select(&pool, Heed::All, c, |_| false) == Some(1)));
    }

    #[test]
    fn endpoints_get_what_they_ask_for() {
        let asks = |drain, weight| EndpointView { asked: Asked { drain, weight }, ..endpoint(2, EndpointState::Up) };
        let pool = [asks(false, 25), asks(false, 75)];
        for chance in chances(4000) {
            let taken = select(&pool, Heed::All, chance, |_| false).unwrap();
            pool[taken].meter.enter();
        }
        let share = f64::from(pool[0].meter.in_flight()) / 4000.0;
        assert!((share - 0.25).abs() < 0.01, "{share}");
        let pool = [asks(true, 100), asks(false, 1), asks(false, 0)];
        assert!(chances(200).all(|c| select(&pool, Heed::All, c, |_| false) == Some(1)));
        assert_eq!(select(&pool, Heed::All, 7, |i| i == 1), Some(2), "when nothing else is left");
        assert_eq!(select(&pool, Heed::All, 7, |i| i > 0), None, "not even then");
        let pool = [asks(true, 100), endpoint(1, EndpointState::Down)];
        assert!(chances(100).all(|c| select(&pool, Heed::Verdicts, c, |_| false) == Some(0)));
        assert_eq!(select(&pool[..1], Heed::All, 7, |_| false), None);
        assert!(chances(100).any(|c| select(&pool, Heed::Nothing, c, |_| false) == Some(0)));
    }

    #[test]
    fn down_and_tried_endpoints_are_left_out() {
        let pool = [EndpointState::Down, EndpointState::Up, EndpointState::Unknown].map(|s| endpoint(1, s));
        assert!(chances(100).all(|c| select(&pool, Heed::All, c, |_| false) == Some(1)));
        assert_eq!(select(&pool, Heed::All, 7, |i| i == 1), None);
        assert!(chances(100).all(|c| select(&pool, Heed::Nothing, c, |i| i == 1).is_some_and(|i| i != 1)));
        let drained = EndpointView { intent: Intent::Drain, ..endpoint(1, EndpointState::Up) };
        let pool = [drained.clone(), endpoint(1, EndpointState::Down)];
        assert!(chances(100).all(|c| select(&pool, Heed::Nothing, c, |_| false) == Some(1)), "not even in panic");
        assert_eq!(
            (select(&pool, Heed::All, 7, |_| false), select(&[drained], Heed::Nothing, 7, |_| false)),
            (None, None)
        );
        let zero = [endpoint(0, EndpointState::Up)];
        assert_eq!(select(&zero, Heed::All, 7, |_| false), Some(0));
        assert_eq!(select(&[], Heed::Nothing, 7, |_| false), None);
    }
}
