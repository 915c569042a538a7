//! A request's place in a trace (W3C Trace Context, version 00).
//!
//! Three ways to treat `traceparent` and `tracestate`. `pass`: both go on byte for byte, whatever they are; whoever takes part in the trace
//! judges them. `off`: both are removed, for operators who want no client's word on their traces. `start`: we take part. A trace is
//! continued with our span as the parent of what follows, or begun where there is none; a `traceparent` that the specification calls invalid
//! begins a new one, and its `tracestate` goes with it (3.2.4, 4.3).
//!
//! Whether a trace is recorded is up to the peer if it is trusted, else to `[trace] sample`: a stranger must not be able to have every request
//! recorded, here and behind us, nor by choosing ids. So the choice is made by the request's own number, which is the trace's where it begins here.
//!
//! A trace that begins here has the request's id: one number finds all of it. Must not know what becomes of spans.

use crate::config::{Trace, Traceparent};
use crate::proxy::Fields;
use crate::telemetry::Traced;
use crate::text::hexadecimal_digit;

/// The length of a `traceparent` of version 00.
const LENGTH: usize = 55;

/// The flag that says that the trace is recorded.
const SAMPLED: u8 = 1;

/// Whose parent a request is told to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parent {
    trace: u128,
    span: u64,
    sampled: bool,
}

/// The place of a request, which came from a peer that is `trusted` or not. `id` and `chance` are random; the trace has that id if it begins here.
pub fn of(rules: &Trace, fields: &impl Fields, trusted: bool, id: u128, chance: u64) -> Traced {
    match rules.traceparent {
        Traceparent::Off => Traced::default(),
        Traceparent::Pass if !fields.has("traceparent") => Traced::default(),
        Traceparent::Pass => {
            parent(fields).map_or_else(Traced::default, |parent| Traced { trace: parent.trace, ..Traced::default() })
        }
        Traceparent::Start => started(rules, parent(fields), trusted, id, chance),
    }
}

fn started(rules: &Trace, parent: Option<Parent>, trusted: bool, id: u128, chance: u64) -> Traced {
    // No id is all zeros (3.2.2.3).
    let trace = parent.map_or(id.max(1), |parent| parent.trace);
    let sampled = match parent {
        Some(parent) if trusted => parent.sampled,
        // Not by the trace's id, which may be a stranger's choice.
        _ => rules.sample.takes(id as u64),
    };
    // Chance has chosen endpoints, and the id is told: of the two a third number.
    let span = (chance ^ id as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31).max(1);
    Traced { trace, parent: parent.map_or(0, |parent| parent.span), span, sampled }
}

/// What a `traceparent` says, if there is one, and it is valid: of a later version, what it shares with ours.
fn parent(fields: &impl Fields) -> Option<Parent> {
    let mut lines = fields.values("traceparent");
    let (Some(value), None) = (lines.next(), lines.next()) else { return None };
    let value = value.trim_ascii();
    let (known, rest) = value.split_at_checked(LENGTH)?;
    let [version, trace, span, flags] = [0..2, 3..35, 36..52, 53..55].map(|part| digits(&known[part]));
    let (version, trace, span, flags) = (version?, trace?, span?, flags?);
    let is_divided = [2, 35, 52].iter().all(|dash| known[*dash] == b'-');
    let ends = if version == 0 { rest.is_empty() } else { rest.is_empty() || rest[0] == b'-' };
    let is_valid = is_divided && ends && version != 0xff && trace != 0 && span != 0;
    is_valid.then_some(Parent { trace, span: span as u64, sampled: flags as u8 & SAMPLED != 0 })
}

/// Hexadecimal digits, small ones only (3.2.1).
fn digits(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0, |number: u128, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// Makes the fields of a request in that place as the upstream gets them.
pub fn forward(fields: &mut impl Fields, rules: &Trace, traced: &Traced) {
    match rules.traceparent {
        Traceparent::Pass => {}
        Traceparent::Off => {
            fields.remove("traceparent");
            fields.remove("tracestate");
        }
        Traceparent::Start => {
            if traced.parent == 0 {
                fields.remove("tracestate");
            }
            fields.set("traceparent", &written(traced));
        }
    }
}

/// What follows is told that we are its parent.
fn written(traced: &Traced) -> [u8; LENGTH] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    text[3..35].copy_from_slice(&crate::text::hexadecimal(traced.trace));
    text[36..52].copy_from_slice(&crate::text::hexadecimal(u128::from(traced.span))[16..]);
    text[54] = hexadecimal_digit(u8::from(traced.sampled));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Share;
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn fields(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn rules(traceparent: Traceparent, sample: f64) -> Trace {
        Trace { traceparent, sample: Share::of(sample) }
    }

    /// What the upstream gets of the two fields, and the trace of the log's line.
    fn forwarded(
        rules: Trace,
        lines: &[(&'static str, &str)],
        trusted: bool,
    ) -> (Option<String>, Option<String>, u128) {
        let mut fields = fields(lines);
        let traced = of(&rules, &fields, trusted, 0xabc, 7);
        forward(&mut fields, &rules, &traced);
        let get = |name| fields.get(name).map(|value: &HeaderValue| value.to_str().unwrap().to_owned());
        (get("traceparent"), get("tracestate"), traced.trace)
    }

    #[test]
    fn a_place_passes_untouched_or_not_at_all() {
        for odd in ["00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "nonsense", ""] {
            let lines = [("traceparent", odd), ("tracestate", "a=b")];
            let passed = forwarded(rules(Traceparent::Pass, 1.0), &lines, true);
            assert_eq!(passed, (Some(odd.to_owned()), Some("a=b".to_owned()), 0));
        }
        let lines = [("traceparent", GOOD), ("tracestate", "a=b")];
        let passed = forwarded(rules(Traceparent::Pass, 1.0), &lines, false);
        assert_eq!(passed, (Some(GOOD.to_owned()), Some("a=b".to_owned()), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736));
        assert_eq!(forwarded(rules(Traceparent::Pass, 1.0), &[], true), (None, None, 0));
        assert_eq!(forwarded(rules(Traceparent::Off, 1.0), &lines, true), (None, None, 0));
    }

    #[test]
    fn a_trace_is_continued_with_us_as_the_parent() {
        let lines = [("traceparent", GOOD), ("tracestate", "a=b")];
        // Its own word counts if it is trusted, else the share of ours.
        for (trusted, sample, flag) in [(true, 0.0, "01"), (false, 0.0, "00"), (false, 1.0, "01")] {
            let (parent, state, trace) = forwarded(rules(Traceparent::Start, sample), &lines, trusted);
            let parent = parent.unwrap();
            assert!(parent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && parent.ends_with(flag), "{parent}");
            assert!(!parent.contains("00f067aa0ba902b7"), "{parent}");
            assert_eq!((state.as_deref(), trace), (Some("a=b"), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736));
        }
        // A stranger's choice of an id chooses nothing.
        let chosen = "00-00000000000000010000000000000001-00f067aa0ba902b7-01";
        let recorded = (0..1_000u64).filter(|n| {
            let (fields, id) = (fields(&[("traceparent", chosen)]), n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            of(&rules(Traceparent::Start, 0.1), &fields, false, u128::from(id), 7).sampled
        });
        assert!((50..200).contains(&recorded.count()));
        let unsampled = GOOD.replace("-01", "-00");
        let (parent, ..) = forwarded(rules(Traceparent::Start, 1.0), &[("traceparent", &unsampled)], true);
        assert!(parent.unwrap().ends_with("-00"));
    }

    #[test]
    fn what_is_invalid_begins_a_new_trace() {
        let odd = [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        ];
        for odd in odd {
            let lines = [("traceparent", odd), ("tracestate", "a=b")];
            let (parent, state, trace) = forwarded(rules(Traceparent::Start, 0.0), &lines, true);
            assert!(parent.unwrap().starts_with("00-00000000000000000000000000000abc-"), "{odd}");
            assert_eq!((state, trace), (None, 0xabc), "{odd}");
        }
        let twice = [("traceparent", GOOD), ("traceparent", GOOD)];
        assert_eq!(forwarded(rules(Traceparent::Start, 0.0), &twice, true).2, 0xabc);
        // A later version may say more.
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        let (parent, _, trace) = forwarded(rules(Traceparent::Start, 0.0), &[("traceparent", later)], true);
        assert_ne!(trace, 0xabc);
        assert!(parent.unwrap().starts_with("00-"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1u128.., parent in 1u64.., span in 1u64.., sampled: bool) {
            let text = written(&Traced { trace, parent, span, sampled });
            let fields = fields(&[("traceparent", std::str::from_utf8(&text).unwrap())]);
            prop_assert_eq!(super::parent(&fields), Some(Parent { trace, span, sampled }));
        }

        #[test]
        fn no_value_makes_it_panic(value in prop::collection::vec(32u8..=255, 0..80), trusted: bool) {
            let mut fields = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                fields.append("traceparent", value);
            }
            let traced = of(&rules(Traceparent::Start, 0.5), &fields, trusted, 0, 0);
            prop_assert!(traced.trace != 0 && traced.span != 0);
        }
    }
}
