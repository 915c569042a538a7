//! What a service's own rules make of a request and its answer, after all that every proxy must do: [`headers`](super::headers).

use http::Method;

use crate::proxy::client::Client;
use crate::proxy::headers::{self, Forward};
use crate::proxy::{Fields, Head, Outcome};
use crate::steering::rules::{FieldRules, Https, Rules};

/// What its service's rules make of a request. Of one whose service has none: the default.
#[derive(Debug, Default)]
pub struct Ruled {
    /// It came by https, as far as we know.
    is_https: bool,
    /// How many bytes of its path upstreams do not get.
    cut: usize,
    /// Where it is sent instead of being served.
    location: Option<String>,
}

impl Ruled {
    /// By the rules of the service that this head was found to be for, whose host and path they were. What stands against it is an error.
    pub fn by<F: Fields>(
        &mut self,
        rules: &Rules,
        head: &Head<'_, F>,
        client: Option<&Client>,
        (host, path): (&str, &str),
    ) -> Result<(), Outcome> {
        self.is_https = headers::scheme(client, head.fields, head.scheme) == "https";
        if let (Https::Redirect(port), false) = (rules.https, self.is_https) {
            self.location = Some(location(head.method, head.target, host, port)?);
            return Err(Outcome::Redirected);
        }
        if let Some(prefix) = &rules.strip_prefix {
            self.cut = crate::steering::rules::cut(path, prefix)?;
        }
        Ok(())
    }

    /// How many bytes of its path upstreams do not get.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Fields of an answer of our own: name and value. Rules for fields are for upstreams' answers: what they say of a content, or of how long
    /// it may be kept, is not true of ours.
    pub fn own<'a>(&'a self, rules: Option<&'a Rules>) -> impl Iterator<Item = (&'static str, &'a str)> {
        let hsts = rules.and_then(|rules| rules.hsts.as_deref()).filter(|_| self.is_https);
        let location = self.location.as_deref().map(|location| ("Location", location));
        location.into_iter().chain(hsts.map(|hsts| ("Strict-Transport-Security", hsts)))
    }

    /// Makes the fields of an upstream's final answer as the client gets them.
    pub fn response(&self, fields: &mut impl Fields, rules: &Rules) {
        apply(fields, &rules.response);
        if let Some(hsts) = &rules.hsts {
            match self.is_https {
                true => fields.set("strict-transport-security", hsts.as_bytes()),
                // Nobody may believe it there (RFC 6797, 7.2 and 8.1), and what an upstream says of it is not the service's word.
                false => fields.remove("strict-transport-security"),
            }
        }
    }
}

/// Makes the fields of a request as the upstream gets them.
pub fn request(fields: &mut impl Fields, rules: &Rules, forward: &Forward<'_>) {
    if let (Some(prefix), 1..) = (&rules.strip_prefix, forward.cut) {
        let trusted = forward.client.is_some_and(|client| client.peer_trusted);
        headers::continue_list(fields, "x-forwarded-prefix", prefix.as_bytes(), trusted);
    }
    apply(fields, &rules.request);
}

fn apply(fields: &mut impl Fields, rules: &FieldRules) {
    rules.remove.iter().for_each(|name| fields.remove(name));
    rules.set.iter().for_each(|(name, value)| fields.put(name, value.reveal().as_bytes()));
    rules.add.iter().for_each(|(name, value)| fields.add(name, value.reveal().as_bytes()));
}

/// What goes before the rest of a target in origin form, and that rest: what is stripped of its path is gone, what is added is there.
pub fn target<'a>(rules: &'a Rules, cut: usize, before: &'a str, rest: &'a [u8]) -> (&'a str, &'a [u8]) {
    if before == "*" || rest == b"*" {
        return (before, rest);
    }
    let rest = rest.get(cut..).unwrap_or_default();
    let has_slash = before.is_empty() && rest.starts_with(b"/");
    match &rules.add_prefix {
        // `/api` without `/api`, but with `/v2`, is `/v2`; `/` with it is `/v2/`.
        Some(prefix) if has_slash || cut > 0 => (&prefix[..prefix.len() - 1], rest),
        Some(prefix) => (prefix, rest),
        None if has_slash => ("", rest),
        None => ("/", rest),
    }
}

/// The same place by https. The path and query are as they came; without a host there is no such place.
fn location(method: &Method, target: &[u8], host: &str, port: u16) -> Result<String, Outcome> {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.find(']').map(|end| &host[..end + 2]),
        None => host.split(':').next(),
    };
    let name = name.filter(|name| !name.is_empty()).ok_or(Outcome::BadHost)?;
    let mut location = format!("https://{name}");
    if port != 443 {
        location.push_str(&format!(":{port}"));
    }
    let (before, rest) = headers::forwarded_target(method, target);
    if before == "*" || rest == b"*" {
        // It stands for the host itself (RFC 9112, 3.2.4).
        return Ok(location);
    }
    location.push_str(before);
    for byte in rest {
        match byte {
            b'!'..=b'~' if *byte != b'#' => location.push(char::from(*byte)),
            // One mover takes more than the other; a field value takes none of it.
            _ => location.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(location)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_same_place_by_https() {
        let get = |target: &str, host: &str, port: u16| location(&Method::GET, target.as_bytes(), host, port);
        for (target, host, port, want) in [
            ("/a?b=c", "example.com", 443, "https://example.com/a?b=c"),
            ("/", "Example.com:8080", 443, "https://Example.com/"),
            ("/", "example.com:", 8443, "https://example.com:8443/"),
            ("/", "[2001:db8::1]:80", 443, "https://[2001:db8::1]/"),
            ("/", "[2001:db8::1]", 8443, "https://[2001:db8::1]:8443/"),
            ("//evil.example/x", "example.com", 443, "https://example.com//evil.example/x"),
            ("/a%0d%0ab/../%2e", "example.com", 443, "https://example.com/a%0d%0ab/../%2e"),
            ("http://example.com?x", "example.com", 443, "https://example.com/?x"),
            ("http://example.com/y", "example.com", 443, "https://example.com/y"),
            ("/é#\r\n ", "example.com", 443, "https://example.com/%C3%A9%23%0D%0A%20"),
        ] {
            assert_eq!(get(target, host, port).as_deref(), Ok(want), "{target} {host}");
        }
        assert_eq!(get("/", "", 443), Err(Outcome::BadHost));
        assert_eq!(location(&Method::OPTIONS, b"*", "a", 443).as_deref(), Ok("https://a"));
        assert_eq!(location(&Method::OPTIONS, b"http://a", "a", 443).as_deref(), Ok("https://a"));
    }

    fn with(strip: Option<&str>, add: Option<&str>) -> Rules {
        Rules {
            strip_prefix: strip.map(str::to_owned),
            add_prefix: add.map(|add| format!("{add}/")),
            ..Rules::default()
        }
    }

    #[test]
    fn prefixes_go_and_come() {
        let ask = |method: Method, asked: &str, strip, add| {
            let rules = with(strip, add);
            let path = headers::path(&method, asked.as_bytes()).unwrap();
            let cut = rules.strip_prefix.as_deref().map_or(Ok(0), |prefix| crate::steering::rules::cut(path, prefix));
            let (before, rest) = headers::forwarded_target(&method, asked.as_bytes());
            let (before, rest) = target(&rules, cut.unwrap(), before, rest);
            format!("{before}{}", std::str::from_utf8(rest).unwrap())
        };
        let get = |asked: &str, strip, add| ask(Method::GET, asked, strip, add);
        for (asked, stripped, added, both) in [
            ("/api/x?y", "/x?y", "/v2/api/x?y", "/v2/x?y"),
            ("/api", "/", "/v2/api", "/v2"),
            ("/api?y", "/?y", "/v2/api?y", "/v2?y"),
            ("/api/", "/", "/v2/api/", "/v2/"),
            ("/api/?y=/api", "/?y=/api", "/v2/api/?y=/api", "/v2/?y=/api"),
            ("/apix", "/apix", "/v2/apix", "/v2/apix"),
            ("/", "/", "/v2/", "/v2/"),
            ("/?", "/?", "/v2/?", "/v2/?"),
            ("/a%2Fb/%41", "/a%2Fb/%41", "/v2/a%2Fb/%41", "/v2/a%2Fb/%41"),
            ("/%61pi/%41", "/%41", "/v2/%61pi/%41", "/v2/%41"),
            ("http://a/api/x", "/x", "/v2/api/x", "/v2/x"),
            ("http://a/api", "/", "/v2/api", "/v2"),
            ("http://a?y", "/?y", "/v2/?y", "/v2/?y"),
            ("http://a", "/", "/v2/", "/v2/"),
        ] {
            assert_eq!(get(asked, Some("/api"), None), stripped, "{asked}");
            assert_eq!(get(asked, None, Some("/v2")), added, "{asked}");
            assert_eq!(get(asked, Some("/api"), Some("/v2")), both, "{asked}");
        }
        for asked in ["*", "http://a"] {
            assert_eq!(ask(Method::OPTIONS, asked, Some("/api"), Some("/v2")), "*", "{asked}");
        }
    }

    #[test]
    fn some_go_then_some_are_set_then_some_are_added() {
        let secret = |(name, value): (&str, &str)| (name.to_owned(), crate::secret::Secret::new(value));
        let rules = FieldRules {
            remove: vec!["X-Gone".to_owned()],
            set: [("X-Set", "new"), ("x-fresh", "1")].map(secret).into(),
            add: [("X-Added", "2")].map(secret).into(),
        };
        let mut fields = http::HeaderMap::new();
        for (name, value) in [("x-gone", "a"), ("x-gone", "b"), ("x-set", "a"), ("x-set", "b"), ("x-added", "1")] {
            fields.append(name, http::HeaderValue::from_static(value));
        }
        apply(&mut fields, &rules);
        let of = |name: &str| Fields::values(&fields, name).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert!(of("x-gone").is_empty());
        assert_eq!((of("x-set"), of("x-fresh")), (vec![b"new".to_vec()], vec![b"1".to_vec()]));
        assert_eq!(of("x-added"), [b"1", b"2"]);
    }

    proptest! {
        #[test]
        fn no_target_leaves_the_host_or_the_field(target in prop::collection::vec(any::<u8>(), 0..40)) {
            let asked = [b"/", &target[..]].concat();
            let location = location(&Method::GET, &asked, "example.com", 443).unwrap();
            prop_assert!(location.starts_with("https://example.com/"));
            prop_assert!(location.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
