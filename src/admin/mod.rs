//! What an operator and a scraper may ask over HTTP: metrics, liveness, readiness, status, events; and what an operator may say.
//!
//! On a TCP address of its own and on a unix socket, never on a proxy's port. Three pages take something, `/api/overrides`, `/api/reload` and
//! `/api/upgrade`: from whom file permissions let use the socket, or who has the token. Everything else is reading only, so there is nothing a forged request could
//! do; what it could read is kept from web pages by refusing any Host that is a name (DNS rebinding).

mod accept;
mod explain;
mod listen;
mod overrides;
mod reload;
mod status;
mod upgrade;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::secret::Secret;
use crate::state::{Reader, ReloadRequest, Sender, UpgradeRequest};
use crate::telemetry::Metrics;

pub use listen::{Doors, Given, open, open_given};

/// What answers are made of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    /// What is published.
    pub reader: Reader,
    /// Where operators' words go.
    pub sender: Sender,
    /// What operators who come over TCP must know; `None`: they can change nothing.
    pub token: Option<Secret>,
    /// What was counted.
    pub metrics: Metrics,
    /// Whether this process is on its way out: not ready any more.
    pub draining: watch::Receiver<bool>,
    /// Where reloads are asked for.
    pub ask: mpsc::Sender<ReloadRequest>,
    /// Where another process is asked for that takes the place of this one.
    pub upgrade: mpsc::Sender<UpgradeRequest>,
    /// The addresses on which requests to proxy are accepted.
    pub listen: Arc<[SocketAddr]>,
    /// The path of the configuration.
    pub config: Arc<Path>,
}

/// Through which door a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// The network, where a web page in somebody's browser may be the one who asks; and the peer.
    Tcp(SocketAddr),
    /// The socket, which file permissions guard; and the peer's user, where the system says.
    Unix(Option<u32>),
}

type Answer = Response<Full<Bytes>>;

const PAGES: &str = "there are /metrics, /healthz, /readyz, /api/status, /api/explain, /api/overrides, /api/reload, /api/upgrade and /api/events\n";

impl Admin {
    /// The answer to one request.
    async fn answer(&self, door: Door, request: Request<Incoming>) -> Answer {
        if matches!(door, Door::Tcp(_)) && !is_addressed_directly(request.uri(), request.headers()) {
            return text(StatusCode::MISDIRECTED_REQUEST, "the Host must be an address or localhost\n");
        }
        let is_post = request.method() == Method::POST;
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/api/overrides" if is_post => return self.operate(door, request).await,
            "/api/overrides" if !reads => return not_allowed("only GET, HEAD and POST\n", "GET, HEAD, POST"),
            "/api/reload" if is_post => return self.reload(door, request).await,
            "/api/upgrade" if is_post => return self.upgrade(door, request).await,
            "/api/upgrade" => return not_allowed("only POST\n", "POST"),
            "/api/reload" => return not_allowed("only POST\n", "POST"),
            _ if !reads => return not_allowed("only GET and HEAD\n", "GET, HEAD"),
            _ => {}
        }
        match request.uri().path() {
            "/metrics" => self.metrics_page(),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.not_ready() {
                None => text(StatusCode::OK, "ready\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            "/api/status" => self.status_page(),
            "/api/explain" => self.explain_page(request.uri().query().unwrap_or("")),
            "/api/overrides" => self.overrides_page(),
            "/api/events" => self.events_page(request.uri().query().unwrap_or("")),
            _ => text(StatusCode::NOT_FOUND, PAGES),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a shell: ages are as of now")]
    fn metrics_page(&self) -> Answer {
        let page = self.metrics.render(SystemTime::now());
        typed(StatusCode::OK, prometheus::TEXT_FORMAT, page.into())
    }

    #[expect(clippy::disallowed_methods, reason = "a shell: ages are as of now")]
    fn status_page(&self) -> Answer {
        page(&status::of(self, SystemTime::now()))
    }

    fn explain_page(&self, query: &str) -> Answer {
        match explain::of(&self.reader.load().snapshot, query, || self.reader.clock().nanos_now()) {
            Ok(explanation) => page(&explanation),
            Err(wrong) => text(StatusCode::BAD_REQUEST, &wrong),
        }
    }

    /// What happened, the newest last: all that is remembered, or what came after the event of that number.
    fn events_page(&self, query: &str) -> Answer {
        let since = match query.strip_prefix("since=") {
            None if query.is_empty() => 0,
            Some(number) if number.parse::<u64>().is_ok() => number.parse().unwrap_or(0),
            _ => return text(StatusCode::BAD_REQUEST, "expected /api/events or /api/events?since=NUMBER\n"),
        };
        let (last, lines) = self.metrics.journal().since(since);
        let mut page = format!("{{\"last\":{last},\"events\":[");
        for (index, line) in lines.iter().enumerate() {
            page.push_str(if index == 0 { "\n" } else { ",\n" });
            page.push_str(line);
        }
        page.push_str("\n]}\n");
        json(StatusCode::OK, page.into_bytes())
    }

    /// Why new connections should go elsewhere, if they should.
    fn not_ready(&self) -> Option<&'static str> {
        if *self.draining.borrow() {
            return Some("draining\n");
        }
        (!self.reader.is_ready()).then_some("waiting for the first round of probes\n")
    }
}

fn not_allowed(said: &str, allow: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, said);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

fn text(status: StatusCode, body: &str) -> Answer {
    typed(status, "text/plain; charset=utf-8", body.to_owned().into())
}

/// A page of JSON.
fn page(content: &impl Serialize) -> Answer {
    match serde_json::to_vec(content) {
        Ok(page) => json(StatusCode::OK, page),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("no answer: {error}\n")),
    }
}

fn json(status: StatusCode, body: Vec<u8>) -> Answer {
    typed(status, "application/json", body.into())
}

fn typed(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Whether the request names us by address or as localhost. A browser that a page tricked into asking us sends the page's own name.
/// HTTP/1.0 without a Host is no browser.
fn is_addressed_directly(uri: &Uri, headers: &HeaderMap) -> bool {
    let fields = headers.get_all(HOST).iter().map(|value| value.to_str().unwrap_or("?"));
    uri.authority().map(|authority| authority.as_str()).into_iter().chain(fields).all(|host| {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => host.split(':').next().unwrap_or(host),
        };
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_us() {
        for (host, want) in [
            ("127.0.0.1", true),
            ("127.0.0.1:9180", true),
            ("[::1]:9180", true),
            ("[::1]", true),
            ("localhost:9180", true),
            ("LOCALHOST", true),
            ("evil.example", false),
            ("evil.example:9180", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_str(host).unwrap());
            assert_eq!(is_addressed_directly(&Uri::from_static("/metrics"), &headers), want, "{host}");
        }
        let both = HeaderMap::new();
        assert!(!is_addressed_directly(&Uri::from_static("http://evil.example/metrics"), &both));
        assert!(is_addressed_directly(&Uri::from_static("/metrics"), &both));
    }
}
