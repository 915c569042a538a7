//! HTTP probes: a request is answered with a status, and a body, as expected.
//!
//! The answer may also ask for something, in fields as HAProxy's agents (`drain`, `50%`) and Envoy's upstreams
//! (`x-envoy-immediate-health-check-fail`, `x-envoy-degraded`) have it: `x-meridian-drain: yes` to be sent no new requests, and
//! `x-meridian-weight: 40` to be sent 40 % of what the endpoint's weight gives it. Whoever answers probes may take its own traffic away, but
//! never more than its weight gives it, nor anybody else's.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;

use tokio::io::{AsyncRead, AsyncWrite};

use super::grpc::{self, End, Tasks};
use super::{Learned, Target, USER_AGENT, authority, carried, words};

/// Bytes of a body that are searched.
const BODY: usize = 64 * 1024;

/// The field that asks for a drain.
const DRAIN: &str = "x-meridian-drain";

/// The field that asks for a part of the weight.
const WEIGHT: &str = "x-meridian-weight";

/// Sends the request, by its version, and looks at the answer: its status in one of the ranges, its body with `wanted` in it.
pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
    status: &[(u16, u16)],
    wanted: &[u8],
    learned: &mut Learned,
) -> Result<(), String> {
    let mut judge = async |answer: Response<Incoming>| {
        let code = answer.status().as_u16();
        if !status.iter().any(|(from, to)| (*from..=*to).contains(&code)) {
            return Err(format!("status {code}"));
        }
        listen(answer.headers(), learned);
        if wanted.is_empty() { Ok(()) } else { contains(answer.into_body(), wanted).await }
    };
    if request.version() == Version::HTTP_2 {
        let tasks = Tasks::default();
        let _end = End(tasks.clone());
        let broken = |error| grpc::broken(&error);
        let (mut sender, connection) = http2::handshake(tasks, TokioIo::new(stream)).await.map_err(broken)?;
        let exchange = async { judge(sender.send_request(request).await.map_err(broken)?).await };
        return carried(exchange, connection).await;
    }
    let broken = |error| broken(&error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let exchange = async { judge(sender.send_request(request).await.map_err(broken)?).await };
    carried(exchange, connection).await
}

/// The request as configured.
pub(super) fn request(
    target: &Target,
    path: &str,
    method: &str,
    host: &str,
    headers: &[(String, String)],
    http2: bool,
) -> Result<Request<Empty<Bytes>>, String> {
    let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    let authority = authority(target, host);
    let mut request = Request::builder().method(method);
    if http2 {
        let scheme = target.scheme();
        request = request.version(Version::HTTP_2).uri(format!("{scheme}://{authority}{path}"));
    } else {
        request = request.uri(path).header("connection", "close").header("host", authority);
    }
    if !given("user-agent") {
        request = request.header("user-agent", USER_AGENT);
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(Empty::new()).map_err(|error| format!("no such request: {error}"))
}

/// Learns what an answer asks for.
fn listen(fields: &HeaderMap, learned: &mut Learned) {
    let mut odd = Vec::new();
    if let Some(drain) = field(fields, DRAIN, "neither yes nor no", read_drain, &mut odd) {
        learned.asked.drain = drain;
    }
    if let Some(weight) = field(fields, WEIGHT, "no whole number from 0 to 100", read_weight, &mut odd) {
        learned.asked.weight = weight;
    }
    learned.odd = (!odd.is_empty()).then(|| odd.join("; "));
}

/// The value of a field that is there once; why not goes to `odd`.
fn field<T>(
    fields: &HeaderMap,
    name: &str,
    else_it_is: &str,
    read: fn(&str) -> Option<T>,
    odd: &mut Vec<String>,
) -> Option<T> {
    let mut values = fields.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        odd.push(format!("{name} comes more than once"));
        return None;
    }
    let read = value.to_str().ok().and_then(read);
    if read.is_none() {
        odd.push(format!("{name} is {else_it_is}: {}", shown(value)));
    }
    read
}

fn read_drain(text: &str) -> Option<bool> {
    let is_one_of = |words: [&str; 3]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_one_of(["yes", "true", "1"]) { Some(true) } else { is_one_of(["no", "false", "0"]).then_some(false) }
}

fn read_weight(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|percent| digits && *percent <= 100)
}

/// A value that somebody else chose, fit for a log.
fn shown(value: &HeaderValue) -> String {
    const MOST: usize = 40;
    let text = String::from_utf8_lossy(value.as_bytes());
    let cut: String = text.chars().take(MOST).collect();
    format!("{cut:?}{}", if cut.len() < text.len() { "…" } else { "" })
}

async fn contains(mut body: hyper::body::Incoming, wanted: &[u8]) -> Result<(), String> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        if let Some(data) = frame.data_ref() {
            // Where it may begin that ends in what came now.
            let from = (read.len() + 1).saturating_sub(wanted.len());
            read.extend_from_slice(&data[..data.len().min(BODY - read.len())]);
            if read[from..].windows(wanted.len()).any(|window| window == wanted) {
                return Ok(());
            }
            if read.len() == BODY {
                return Err("the wanted text is not in the first 64 KiB of the body".to_owned());
            }
        }
    }
    Err("the wanted text is not in the body".to_owned())
}

fn broken(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    match cause {
        Some(cause) => format!("connection {}", words(cause)),
        None if error.is_incomplete_message() || error.is_closed() => "connection closed before the answer".to_owned(),
        None if error.is_parse() => "an answer that is not HTTP/1.1".to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steering::snapshot::Asked;
    use proptest::prelude::*;

    type Fields = &'static [(&'static str, &'static str)];

    fn heard(fields: &[(&str, &str)]) -> Learned {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let mut learned = Learned::default();
        listen(&map, &mut learned);
        learned
    }

    #[test]
    fn what_answers_ask_for() {
        let rows: &[(Fields, bool, u8)] = &[
            (&[], false, 100),
            (&[("x-meridian-drain", "yes")], true, 100),
            (&[("X-Meridian-Drain", "TRUE"), ("x-meridian-weight", "40")], true, 40),
            (&[("x-meridian-drain", "1")], true, 100),
            (&[("x-meridian-drain", "no"), ("x-meridian-weight", "0")], false, 0),
            (&[("x-meridian-drain", "false"), ("x-meridian-weight", "100")], false, 100),
            (&[("x-meridian-weight", "007")], false, 7),
        ];
        for (fields, drain, weight) in rows {
            let learned = heard(fields);
            assert_eq!((learned.asked, learned.odd), (Asked { drain: *drain, weight: *weight }, None), "{fields:?}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_ignored_and_told() {
        let rows: &[(Fields, &str)] = &[
            (&[("x-meridian-drain", "maybe")], "x-meridian-drain is neither yes nor no: \"maybe\""),
            (&[("x-meridian-drain", "")], "x-meridian-drain is neither yes nor no: \"\""),
            (&[("x-meridian-weight", "101")], "x-meridian-weight is no whole number from 0 to 100: \"101\""),
            (&[("x-meridian-weight", "+5")], "x-meridian-weight is no whole number from 0 to 100: \"+5\""),
            (&[("x-meridian-weight", "50%")], "x-meridian-weight is no whole number from 0 to 100: \"50%\""),
            (&[("x-meridian-weight", "1"), ("x-meridian-weight", "2")], "x-meridian-weight comes more than once"),
            (
                &[("x-meridian-drain", "?"), ("x-meridian-weight", "-1")],
                "x-meridian-drain is neither yes nor no: \"?\"; x-meridian-weight is no whole number from 0 to 100: \"-1\"",
            ),
        ];
        for (fields, odd) in rows {
            let learned = heard(fields);
            assert_eq!((learned.asked, learned.odd.as_deref()), (Asked::default(), Some(*odd)), "{fields:?}");
        }
        let long = heard(&[("x-meridian-drain", &"ü".repeat(100))]).odd.unwrap();
        assert!(long.ends_with("ü\"…") && long.chars().count() < 90, "{long}");
    }

    proptest! {
        #[test]
        fn no_value_asks_for_more(drain in "\\PC{0,12}", weight in "[0-9a-z%+ -]{0,6}") {
            let learned = heard(&[("x-meridian-drain", &drain), ("x-meridian-weight", &weight)]);
            prop_assert!(learned.asked.weight <= 100);
            prop_assert!(learned.asked == Asked::default() || learned.odd.is_none() || learned.odd.as_ref().unwrap().len() < 400);
        }
    }
}
