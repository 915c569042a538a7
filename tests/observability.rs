//! What a running meridian tells of itself: the shapes of its logs, and traces, from a client's `traceparent` to what a collector gets.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::process::{Origin, Proxy};
use common::{http, http2};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::Value;
use tokio::net::TcpListener;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// One region with that origin; `more` comes first.
fn config(more: &str, origin: SocketAddr) -> String {
    format!(
        "[pop]\nname = \"lab\"\n[client_ip]\ntrusted = [\"127.0.0.1\"]\n{more}\n[regions.a]\n[services.web.health]\nkind = \"none\"\n\
         [services.web.pools.a]\nendpoints = [\"{origin}\"]\n"
    )
}

/// What the origin of a request with these fields saw of that one.
async fn seen(proxy: &Proxy, fields: &[(&str, &str)], name: &str) -> Option<String> {
    let answer = http::request(proxy.listen, "GET", "/a?b=c", fields).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    said(&answer.text(), name)
}

fn said(report: &str, name: &str) -> Option<String> {
    let report: Value = serde_json::from_str(report).unwrap();
    let lines = report["headers"][name].as_array()?;
    assert_eq!(lines.len(), 1, "{report}");
    Some(lines[0].as_str().unwrap().to_owned())
}

/// The fields of that name in the lines of the access log, once there are so many lines.
async fn logged(proxy: &Proxy, count: usize, field: &str) -> Vec<Value> {
    proxy.until("the lines", async || proxy.access_log().lines().count() == count).await;
    let lines = proxy.access_log();
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()[field].clone()).collect()
}

#[tokio::test]
async fn lines_look_as_they_are_wanted_and_go_where_they_are_wanted() {
    let (origin, outside) = (Origin::start("a"), tempfile::tempdir().unwrap());
    let file = outside.path().join("access.log");
    for format in ["json", "logfmt"] {
        let access = format!("access = [\"stdout\", \"{}\"]\naccess_format = \"{format}\"", file.display());
        let log = format!("[log]\nlevel = \"warn,meridian=debug\"\nformat = \"{format}\"\n{access}");
        let mut proxy = Proxy::start(&config(&log, origin.address), |_| ()).await;
        assert!(seen(&proxy, &[], "host").await.is_some());
        proxy.signal("HUP");
        proxy.logged(&["published"]).await;
        proxy.signal("TERM");
        assert_eq!(proxy.ended().await, Some(0));
        // What came to an end was written.
        let text = proxy.log();
        assert!(
            text.contains("listening") && text.contains("published") && text.contains("limit of open files"),
            "{text}"
        );
        for line in text.lines() {
            match format {
                "json" => {
                    let line: Value = serde_json::from_str(line).unwrap();
                    assert!(
                        line["at"].is_string() && line["level"].is_string() && line["message"].is_string(),
                        "{line}"
                    );
                }
                _ => {
                    assert!(line.starts_with("at=") && line.contains(" level=") && line.contains(" message="), "{line}")
                }
            }
        }
        let (lines, same) = (proxy.access_log(), fs::read_to_string(&file).unwrap());
        assert_eq!((lines.lines().count(), &lines), (1, &same));
        assert!(lines.starts_with(if format == "json" { "{\"ts\":\"" } else { "ts=" }), "{lines}");
        fs::remove_file(&file).unwrap();
    }
}

#[tokio::test]
async fn of_requests_without_trouble_a_share_is_logged() {
    let origin = Origin::start("a");
    let proxy = Proxy::start(&config("[log]\naccess_sample = 0", origin.address), |_| ()).await;
    for _ in 0..3 {
        seen(&proxy, &[], "host").await;
    }
    // It breaks a rule.
    let refused = http::request(proxy.listen, "GET", "/", &[("connection", "host")]).await.unwrap();
    assert_eq!(refused.status, 400);
    assert_eq!(logged(&proxy, 1, "outcome").await, ["bad_request"]);
    let left_out = "meridian_access_log_lines_total{result=\"sampled_out\"}";
    assert_eq!(proxy.metric(left_out).await, Some(3.0));
}

#[tokio::test]
async fn a_place_in_a_trace_is_passed_on_left_out_or_taken() {
    let origin = Origin::start("a");
    for engine in ["native", "pingora"] {
        let start = async |traceparent: &str| {
            let more = format!("[trace]\ntraceparent = \"{traceparent}\"\nsample = 0");
            Proxy::start_on(engine, &config(&more, origin.address), |_| ()).await
        };
        let client = [("traceparent", PARENT), ("tracestate", "a=b")];

        let proxy = start("pass").await;
        assert_eq!(seen(&proxy, &client, "traceparent").await.as_deref(), Some(PARENT));
        assert_eq!(seen(&proxy, &client, "tracestate").await.as_deref(), Some("a=b"));
        assert_eq!(seen(&proxy, &[], "traceparent").await, None);
        assert_eq!(logged(&proxy, 3, "trace_id").await, [Value::from(TRACE), Value::from(TRACE), Value::Null]);

        let proxy = start("off").await;
        assert_eq!(seen(&proxy, &client, "traceparent").await, None);
        assert_eq!(seen(&proxy, &client, "tracestate").await, None);
        assert_eq!(logged(&proxy, 2, "trace_id").await, [Value::Null, Value::Null]);

        let proxy = start("start").await;
        let continued = seen(&proxy, &client, "traceparent").await.unwrap();
        assert!(continued.starts_with(&format!("00-{TRACE}-")) && continued.ends_with("-01"), "{continued}");
        assert_ne!(continued, PARENT);
        assert_eq!(seen(&proxy, &client, "tracestate").await.as_deref(), Some("a=b"));
        let begun = seen(&proxy, &[], "traceparent").await.unwrap();
        assert!(begun.ends_with("-00") && begun.len() == PARENT.len(), "{begun}");
        let odd = [("traceparent", "nonsense"), ("tracestate", "a=b")];
        assert_eq!(seen(&proxy, &odd, "tracestate").await, None);
        let ids = logged(&proxy, 4, "trace_id").await;
        assert_eq!((ids[0].as_str(), ids[2].as_str()), (Some(TRACE), begun.get(3..35)));
        assert_eq!(ids[2], logged(&proxy, 4, "request_id").await[2]);
    }
}

#[tokio::test]
async fn http2_is_no_different() {
    let origin = Origin::start("a");
    let more = "[trace]\ntraceparent = \"start\"";
    let proxy = Proxy::start_with("http2 = true\n", &config(more, origin.address), |_| ()).await;
    let (mut client, _connection) = http2::connect(proxy.listen).await;
    let mut request = http2::request("GET", "/");
    request.headers_mut().insert("traceparent", PARENT.parse().unwrap());
    let mut answer = http2::send(&mut client, request, b"").await.unwrap();
    let report = String::from_utf8(http2::take(answer.body_mut()).await.unwrap()).unwrap();
    let told = said(&report, "traceparent").unwrap();
    assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-01") && told != PARENT, "{told}");
    assert_eq!(logged(&proxy, 1, "trace_id").await, [TRACE]);
    assert_eq!(logged(&proxy, 1, "protocol").await, ["HTTP/2.0"]);
}

/// What a collector got: the resource's attributes and the spans.
type Got = Arc<Mutex<Vec<(Vec<KeyValue>, Span)>>>;

async fn collector() -> (SocketAddr, Got) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, got) = (listener.local_addr().unwrap(), Got::default());
    let kept = Arc::clone(&got);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let kept = Arc::clone(&kept);
            let service = service_fn(move |request: Request<Incoming>| {
                let kept = Arc::clone(&kept);
                async move {
                    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
                    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let told = ExportTraceServiceRequest::decode(body).unwrap();
                    for of in told.resource_spans {
                        let resource = of.resource.unwrap().attributes;
                        let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
                        kept.lock().unwrap().extend(spans.map(|span| (resource.clone(), span)));
                    }
                    Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, got)
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|pair| pair.key == key)?;
    match found.value.clone()? {
        AnyValue { value: Some(Any::StringValue(text)) } => Some(text),
        AnyValue { value: Some(Any::IntValue(number)) } => Some(number.to_string()),
        other => panic!("{other:?}"),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_collector_gets_the_span_that_the_origin_knows_as_its_parent() {
    let (origin, (collector, got)) = (Origin::start("a"), collector().await);
    for engine in ["native", "pingora"] {
        got.lock().unwrap().clear();
        // No access log: spans need none.
        let more = format!(
            "[log]\naccess = \"off\"\n[trace]\ntraceparent = \"start\"\nsample = 0\notlp = \"http://{collector}/\""
        );
        let mut proxy = Proxy::start_on(engine, &config(&more, origin.address), |_| ()).await;
        assert!(seen(&proxy, &[], "traceparent").await.unwrap().ends_with("-00"), "not to be recorded");
        let fields = [("traceparent", PARENT), ("x-forwarded-for", "198.51.100.7"), ("host", "www.test:8080")];
        let told = seen(&proxy, &fields, "traceparent").await.unwrap();
        // What is queued is sent at the end.
        proxy.signal("TERM");
        assert_eq!(proxy.ended().await, Some(0));
        let got = got.lock().unwrap();
        assert_eq!(got.len(), 1, "{got:?}\n{}", proxy.log());
        let (resource, span) = &got[0];
        assert_eq!(text(resource, "service.name").as_deref(), Some("meridian"));
        assert_eq!(text(resource, "meridian.pop").as_deref(), Some("lab"));
        assert_eq!(told, format!("00-{}-{}-01", hexadecimal(&span.trace_id), hexadecimal(&span.span_id)));
        assert_eq!(
            (hexadecimal(&span.trace_id).as_str(), hexadecimal(&span.parent_span_id).as_str()),
            (TRACE, &PARENT[36..52])
        );
        assert_eq!((span.name.as_str(), span.kind()), ("GET", SpanKind::Server));
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
        let address = origin.address.to_string();
        for (key, want) in [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("url.path", "/a"),
            ("url.query", "b=c"),
            ("server.address", "www.test"),
            ("server.port", "8080"),
            ("client.address", "198.51.100.7"),
            ("network.peer.address", "127.0.0.1"),
            ("network.protocol.version", "1.1"),
            ("meridian.service", "web"),
            ("meridian.region", "a"),
            ("meridian.endpoint", address.as_str()),
            ("meridian.reason", "nearest"),
            ("meridian.outcome", "answered"),
            ("meridian.attempts", "1"),
        ] {
            assert_eq!(text(&span.attributes, key).as_deref(), Some(want), "{key}");
        }
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let origin = Origin::start("a");
    // Bound, so that nobody else has it, and not listened to.
    let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    nobody.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let nobody = nobody.local_addr().unwrap().as_socket().unwrap();
    let more = format!("[trace]\ntraceparent = \"start\"\nsample = 1\notlp = \"http://{nobody}\"");
    let proxy = Proxy::start(&config(&more, origin.address), |_| ()).await;
    for _ in 0..3 {
        assert!(seen(&proxy, &[], "traceparent").await.unwrap().ends_with("-01"));
    }
    let failed = "meridian_trace_spans_total{result=\"failed\"}";
    proxy.until("all are lost", async || proxy.metric(failed).await == Some(3.0)).await;
    let log = proxy.logged(&["spans are lost"]).await;
    assert_eq!(log.matches("spans are lost").count(), 1, "{log}");
    assert_eq!(proxy.metric("meridian_trace_spans_total{result=\"exported\"}").await, Some(0.0));
}
