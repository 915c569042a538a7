//! One endpoint within a pool: power of two choices on in-flight requests, weighted.
//!
//! Two endpoints are drawn in proportion to weight × warmth, and the one with fewer requests in flight for its weight is
//! taken (Mitzenmacher's two choices, as in Envoy's least-request balancer). Down endpoints are taken in panic only, unproven ones and
//! those of weight 0 when nothing else is left, and those that an operator took out never. The random number is an argument.

use crate::steering::fleet::Intent;
use crate::steering::snapshot::{EndpointState, EndpointView};

/// The index of the endpoint to take among those that `tried` does not exclude, or `None`. With `panic`,
/// verdicts do not count.
pub fn select(
    endpoints: &[EndpointView],
    panic: bool,
    chance: u64,
    tried: impl Fn(usize) -> bool + Copy,
) -> Option<usize> {
    if let [only] = endpoints {
        return (eligible(only, panic) && !tried(0)).then_some(0);
    }
    let share = |index: usize, endpoint: &EndpointView| {
        let open = eligible(endpoint, panic) && !tried(index);
        if open { f64::from(endpoint.weight) * f64::from(endpoint.warmth) } else { 0.0 }
    };
    let total: f64 = endpoints.iter().enumerate().map(|(i, e)| share(i, e)).sum();
    if total <= 0.0 {
        // Nothing with weight: whatever may still be tried, evenly.
        let open = |(index, endpoint): &(usize, &EndpointView)| eligible(endpoint, panic) && !tried(*index);
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

fn eligible(endpoint: &EndpointView, panic: bool) -> bool {
    endpoint.intent == Intent::Ready && (panic || endpoint.state == EndpointState::Up)
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
    use crate::steering::snapshot::EndpointId;

    fn endpoint(weight: u32, state: EndpointState) -> EndpointView {
        EndpointView {
            id: EndpointId(0),
            address: ([127, 0, 0, 1], 80).into(),
            name: Arc::from("test"),
            weight,
            state,
            ejected: crate::steering::snapshot::Ejected::default(),
            intent: Intent::Ready,
            warmth: 1.0,
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
            let taken = select(&pool, false, chance, |_| false).unwrap();
            pool[taken].meter.enter();
        }
        let share = f64::from(pool[0].meter.in_flight()) / 4000.0;
        assert!((share - 0.75).abs() < 0.01, "{share}");
    }

    #[test]
    fn a_busy_endpoint_is_spared() {
        let pool = [1, 1].map(|w| endpoint(w, EndpointState::Up));
        (0..50).for_each(|_| pool[0].meter.enter());
        assert!(chances(200).all(|c| select(&pool, false, c, |_| false) == Some(1)));
    }

    #[test]
    fn down_and_tried_endpoints_are_left_out() {
        let pool = [EndpointState::Down, EndpointState::Up, EndpointState::Unknown].map(|s| endpoint(1, s));
        assert!(chances(100).all(|c| select(&pool, false, c, |_| false) == Some(1)));
        assert_eq!(select(&pool, false, 7, |i| i == 1), None);
        assert!(chances(100).all(|c| select(&pool, true, c, |i| i == 1).is_some_and(|i| i != 1)));
        let drained = EndpointView { intent: Intent::Drain, ..endpoint(1, EndpointState::Up) };
        let pool = [drained.clone(), endpoint(1, EndpointState::Down)];
        assert!(chances(100).all(|c| select(&pool, true, c, |_| false) == Some(1)), "not even in panic");
        assert_eq!((select(&pool, false, 7, |_| false), select(&[drained], true, 7, |_| false)), (None, None));
        let zero = [endpoint(0, EndpointState::Up)];
        assert_eq!(select(&zero, false, 7, |_| false), Some(0));
        assert_eq!(select(&[], true, 7, |_| false), None);
    }
}
