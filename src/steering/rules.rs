//! What a service changes in what passes: header fields, the front of paths, and whether it is to be reached by https only.
//!
//! Most services change nothing and have no [`Rules`], so that a request for them pays a look at a pointer. What is in them was checked by
//! `config::compile`: a rule never touches a field that frames a message, concerns one connection or is written by us.

use crate::secret::Secret;
use crate::steering::route::{self, NoRoute};

/// The rules of one service. At least one of them is no default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Fields of requests as upstreams get them.
    pub request: FieldRules,
    /// Fields of upstreams' final answers as clients get them.
    pub response: FieldRules,
    /// What becomes of a request that did not come by https.
    pub https: Https,
    /// The value of `Strict-Transport-Security`, for answers to what came by https.
    pub hsts: Option<String>,
    /// What upstreams do not get of the front of a path: plain, without a `/` at its end, not empty.
    pub strip_prefix: Option<String>,
    /// What they get before it: plain, not empty, and with a `/` at its end, which the path has as well.
    pub add_prefix: Option<String>,
}

/// What becomes of the fields of a head: some go, then some are set, then some are added. A name is in one of the three lists only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldRules {
    /// Every line of these names goes.
    pub remove: Vec<String>,
    /// One line in place of every line of the name.
    pub set: Vec<(String, Secret)>,
    /// A line beside those that are there.
    pub add: Vec<(String, Secret)>,
}

/// What becomes of a request that did not come by https.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Https {
    /// It is served.
    #[default]
    Off,
    /// It is sent to the same place by https, at this port.
    Redirect(u16),
}

/// How much of the front of a path (as it came, without its query) says `prefix`, so that what follows can go without it; 0: it is not below
/// that, and stays as it is.
///
/// Services are chosen by a copy of the path in its plain form ([`route::normalise`]). The cut is made in what came, and only where all
/// readings agree: what is left has to mean what is left of the plain form, also to an upstream that decodes delimiters. Otherwise
/// `/api/../x` without `/api` would leave the root, and `/x/../api` keep what it must lose: [`NoRoute::BadPath`].
pub fn cut(path: &str, prefix: &str) -> Result<usize, NoRoute> {
    if !route::is_odd(path) {
        return Ok(if route::covers(prefix, path) { prefix.len() } else { 0 });
    }
    let plain = route::normalise(path).ok_or(NoRoute::BadPath)?;
    let is_below = route::covers(prefix, &plain);
    let revealed = route::revealed(path)?;
    if revealed.iter().flatten().any(|reading| route::covers(prefix, reading) != is_below) {
        return Err(NoRoute::BadPath);
    }
    if !is_below {
        return Ok(0);
    }
    // As many segments as the prefix has, in whatever spelling.
    let mut borders = path.match_indices('/').map(|(at, _)| at).skip(prefix.matches('/').count());
    let end = borders.next().unwrap_or(path.len());
    let (front, rest) = path.split_at(end);
    if route::normalise(front).as_deref() != Some(prefix) {
        return Err(NoRoute::BadPath);
    }
    let revealed_rest = route::revealed(rest)?;
    let rest = route::normalise(rest).ok_or(NoRoute::BadPath)?;
    let means = |whole: &str, rest: &str| whole[prefix.len()..] == *rest || whole.len() == prefix.len() && rest == "/";
    let agree = match (&revealed, &revealed_rest) {
        (Some(wholes), Some(rests)) => wholes.iter().zip(rests).all(|(whole, rest)| means(whole, rest)),
        (whole, rest) => whole.is_none() && rest.is_none(),
    };
    if agree && means(&plain, &rest) { Ok(end) } else { Err(NoRoute::BadPath) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prefix_is_cut_where_every_reading_agrees() {
        for (path, prefix, want) in [
            ("/api", "/api", Ok(4)),
            ("/api/", "/api", Ok(4)),
            ("/api/x", "/api", Ok(4)),
            ("/api//x", "/api", Ok(4)),
            ("/a/b/c", "/a/b", Ok(4)),
            // Not below it.
            ("/", "/api", Ok(0)),
            ("/apix", "/api", Ok(0)),
            ("/x/api", "/api", Ok(0)),
            ("/API/x", "/api", Ok(0)),
            ("/api/..", "/api", Ok(0)),
            ("/api/../x", "/api", Ok(0)),
            ("/x%2fy", "/api", Ok(0)),
            // Other spellings.
            ("/%61pi/x", "/api", Ok(6)),
            ("/caf%c3%a9/x", "/caf%C3%A9", Ok(10)),
            ("/api/%7Ex/a.b", "/api", Ok(4)),
            ("/api/a/../b/./c", "/api", Ok(4)),
            ("/api/a%2fb", "/api", Ok(4)),
            ("/api/a%2f..%2fb", "/api", Ok(4)),
            ("/api/100%", "/api", Ok(4)),
            // Dots before the prefix, or across its end.
            ("/./api/x", "/api", Err(NoRoute::BadPath)),
            ("/x/../api/y", "/api", Err(NoRoute::BadPath)),
            ("/api/../api/y", "/api", Err(NoRoute::BadPath)),
            ("/api/%2e%2e/api", "/api", Err(NoRoute::BadPath)),
            // What one upstream reads within it and another one does not.
            ("/api%2fx", "/api", Err(NoRoute::BadPath)),
            ("/api/..%2fx", "/api", Err(NoRoute::BadPath)),
            ("/api/..%5cx", "/api", Err(NoRoute::BadPath)),
            ("/x/..%2fapi/y", "/api", Err(NoRoute::BadPath)),
            // Dots that take a delimiter away before it is seen.
            ("/api%2fx/../y", "/api", Err(NoRoute::BadPath)),
            ("/api/v1%00/../x", "/api", Ok(4)),
            ("/api/a%2fb/../c", "/api", Ok(4)),
            ("/api/..%2fapi/y", "/api", Err(NoRoute::BadPath)),
            ("/..", "/api", Err(NoRoute::BadPath)),
        ] {
            assert_eq!(cut(path, prefix), want, "{path} {prefix}");
        }
    }

    /// Pieces that paths are attacked with, in any order.
    fn paths() -> impl Strategy<Value = String> {
        let pieces =
            ["/", "/api", "/..", "/.", "%2e", "%2f", "%5c", "%00", "%", "a", "api", "%61pi", "é", "%25", "\\", "v1"];
        let front = proptest::sample::select(vec!["/", "/api", "/%61pi/v1", "/./api", "/api%2f.."]);
        let rest = proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..10);
        (front, rest).prop_map(|(front, rest)| format!("{front}{}", rest.concat()))
    }

    proptest! {
        #[test]
        fn what_is_left_means_what_is_left(path in paths(), prefix in proptest::sample::select(vec!["/api", "/api/v1", "/a"])) {
            let plain = route::normalise(&path);
            let Ok(cut) = cut(&path, prefix) else { return Ok(()) };
            let plain = plain.expect("it has a plain form");
            prop_assert_eq!(cut > 0, route::covers(prefix, &plain));
            if cut > 0 {
                let rest = &path[cut..];
                prop_assert!(rest.is_empty() || rest.starts_with('/'));
                let whole = format!("{prefix}{rest}");
                let again = route::normalise(&whole);
                prop_assert_eq!(again.as_deref(), Some(&*plain));
                // Nor does it leave the root, however it is read.
                let rest = route::normalise(rest).expect("it stays below the root");
                prop_assert!(route::revealed(&rest).is_ok());
            }
        }
    }
}
