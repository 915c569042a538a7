//! Requests to the directory: HTTP/1.1 by TLS, one a connection.
//!
//! The library speaks ACME and leaves this to us, so that the authorities are those that the rest of meridian trusts, and every request and its answer have a bound. There are a dozen of
//! them in two months: nothing is kept open.
//!
//! The library reads answers as what they should be. Those that are refusals, and not in its words, are told here; and that one wants to be left alone for a while.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// For one request, from the name's look-up to the answer's last byte.
const PATIENCE: Duration = Duration::from_secs(30);

/// No answer of a directory is longer.
const MOST: usize = 1 << 20;

/// Who we are (RFC 8555, 6.1).
const US: &str = concat!("meridian/", env!("CARGO_PKG_VERSION"), " instant-acme");

/// The longest time for which a directory is left alone because it wants that.
const MOST_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Sends what the library asks for.
pub(super) struct Client {
    pub(super) config: Arc<ClientConfig>,
    pub(super) pause: Pause,
}

/// For how long a directory wants to be left alone (`Retry-After`): the longest that it said. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Pause(Arc<AtomicU64>);

impl Pause {
    pub(super) fn get(&self) -> Duration {
        Duration::from_secs(self.0.load(Relaxed))
    }

    fn note(&self, wanted: Duration) {
        self.0.fetch_max(wanted.min(MOST_PAUSE).as_secs(), Relaxed);
    }
}

impl HttpClient for Client {
    #[expect(clippy::disallowed_methods, reason = "a shell: directories name dates")]
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (config, pause) = (Arc::clone(&self.config), self.pause.clone());
        let is_post = request.method() == Method::POST;
        Box::pin(async move {
            match timeout(PATIENCE, exchange(config, request)).await {
                Ok(Ok(answer)) => {
                    if let Some(wanted) = retry_after(&answer, SystemTime::now()) {
                        pause.note(wanted);
                    }
                    match refusal(&answer, is_post) {
                        Some(why) => Err(Error::Other(why.into())),
                        None => {
                            let (parts, body) = answer.into_parts();
                            Ok(BytesResponse::from(Response::from_parts(parts, Full::new(body))))
                        }
                    }
                }
                Ok(Err(why)) => Err(Error::Other(why.into())),
                Err(_) => Err(Error::Other(format!("no answer within {} s", PATIENCE.as_secs()).into())),
            }
        })
    }
}

async fn exchange(config: Arc<ClientConfig>, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Bytes>, String> {
    let (mut parts, body) = request.into_parts();
    // What a directory says of where to go on is not believed to be what was configured.
    if parts.uri.scheme_str() != Some("https") {
        return Err("the directory wants to be asked without TLS".to_owned());
    }
    let authority = parts.uri.authority().ok_or("an address without a host")?.clone();
    let bare = authority.host();
    let host = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(bare);
    let name =
        ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is not a name that TLS can ask for"))?;
    let connected = TcpStream::connect((host, authority.port_u16().unwrap_or(443))).await;
    let stream = connected.map_err(|error| format!("no connection to {authority}: {error}"))?;
    let stream = TlsConnector::from(config).connect(name, stream).await;
    let stream = stream.map_err(|error| format!("no TLS with {authority}: {error}"))?;

    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri: Uri = path.parse().map_err(|_| "an address that is none")?;
    let host = HeaderValue::try_from(authority.as_str()).map_err(|_| "a host that is none")?;
    parts.uri = uri;
    parts.headers.insert(HOST, host);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    parts.headers.insert(USER_AGENT, HeaderValue::from_static(US));

    let broken = |error: hyper::Error| format!("HTTP with {authority}: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let asked = async {
        let answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(broken)?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MOST).collect().await;
        let body = body.map_err(|error| format!("the answer of {authority}: {error}"))?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    tokio::pin!(asked, connection);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // It ended, for good or ill: what was asked knows which.
        _ = &mut connection => asked.await,
    }
}

/// Why that is not what was asked for, where the library would not see it: of a POST it reads the problems itself.
fn refusal(answer: &Response<Bytes>, is_post: bool) -> Option<String> {
    let status = answer.status();
    let is_answer = status.is_success() || is_post && status.is_redirection();
    let problem = serde_json::from_slice::<Problem>(answer.body()).ok();
    if is_answer || is_post && problem.is_some() {
        return None;
    }
    let detail = problem.filter(|problem| problem.detail.is_some() || problem.r#type.is_some());
    Some(match detail {
        Some(detail) => format!("the directory answers {status}: {detail}"),
        None => format!("the directory answers {status}"),
    })
}

/// How long who is refused for now is to wait (RFC 9110, 10.2.3).
fn retry_after(answer: &Response<Bytes>, now: SystemTime) -> Option<Duration> {
    if !matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // What no number holds is long, too.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(now).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: &str, body: &'static str) -> Response<Bytes> {
        let answer = Response::builder().status(status);
        let answer = if retry_after.is_empty() { answer } else { answer.header(RETRY_AFTER, retry_after) };
        answer.body(Bytes::from(body)).unwrap()
    }

    #[test]
    fn a_refusal_is_told_by_its_status_and_its_problem() {
        const BUSY: &str = r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too busy"}"#;
        let busy = "API error: too busy (urn:ietf:params:acme:error:rateLimited)";
        let rows: &[(u16, &'static str, bool, Option<String>)] = &[
            (200, "{}", false, None),
            (204, "", false, None),
            (503, BUSY, false, Some(format!("the directory answers 503 Service Unavailable: {busy}"))),
            (404, "<html>", false, Some("the directory answers 404 Not Found".to_owned())),
            (404, "{}", false, Some("the directory answers 404 Not Found".to_owned())),
            (302, "", false, Some("the directory answers 302 Found".to_owned())),
            // The library knows what to do about some of these.
            (400, BUSY, true, None),
            (429, BUSY, true, None),
            (201, "{}", true, None),
            (502, "<html>", true, Some("the directory answers 502 Bad Gateway".to_owned())),
        ];
        for (status, body, is_post, expected) in rows {
            assert_eq!(&refusal(&answer(*status, "", body), *is_post), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_pause_is_seconds_or_a_date_and_has_a_bound() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (status, text, expected) in [
            (503, "120", Some(120)),
            (429, " 7200 ", Some(7200)),
            (503, "Sun, 06 Nov 1994 09:49:37 GMT", Some(3600)),
            (503, "Sun, 06 Nov 1994 07:49:37 GMT", None),
            (503, "99999999999999999999999", Some(u64::MAX)),
            (503, "-1", None),
            (503, "soon", None),
            (503, "", None),
            (500, "120", None),
            (200, "120", None),
        ] {
            let found = retry_after(&answer(status, text, ""), now);
            assert_eq!(found, expected.map(Duration::from_secs), "{status} {text}");
        }
        let pause = Pause::default();
        assert_eq!(pause.get(), Duration::ZERO);
        [7, 5].into_iter().for_each(|seconds| pause.clone().note(Duration::from_secs(seconds)));
        assert_eq!(pause.get().as_secs(), 7);
        pause.note(Duration::MAX);
        assert_eq!(pause.get(), MOST_PAUSE);
    }
}
