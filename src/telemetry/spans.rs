//! Spans of recorded requests, sent to a collector by OTLP over HTTP.
//!
//! The data model, its protobuf and the exporter are OpenTelemetry's own crates. What is not theirs: a span is not opened and closed around a
//! request but made from its record once it is over, because the record has all of it and costs the request nothing; and spans are gathered here and not by
//! their batch processor, which neither tells how many it dropped nor lets its exporter wait on a runtime. The exporter sends through a client of ours, as theirs would bring a second stack of HTTP and TLS.
//!
//! Nothing waits for a collector: what finds no room, or cannot be sent, is counted and gone. Must not know how a request was served.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::timeout;

use crate::steering::{Snapshot, TakeReason};
use crate::telemetry::metrics::SpanResults;
use crate::telemetry::{AccessRecord, Metrics};
use crate::text::hexadecimal;

/// Spans that may wait.
const QUEUE: usize = 2048;

/// Spans in one request to the collector.
const BATCH: usize = 512;

/// How long a batch is gathered.
const GATHER: Duration = Duration::from_secs(1);

/// For one batch, tries that follow a refusal included.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of the process waits for the last spans.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// No answer of a collector is longer.
const MOST: usize = 1 << 20;

/// Takes finished requests. Not for the request path: it makes texts.
#[derive(Debug)]
pub struct Spans {
    queue: tokio::sync::mpsc::Sender<SpanData>,
    results: SpanResults,
    scope: InstrumentationScope,
}

/// Keeps the sender; when dropped, after whoever has [`Spans`] is done with them, what is queued is still sent, for at most two seconds.
#[derive(Debug)]
pub struct SpansGuard(mpsc::Receiver<()>);

impl Drop for SpansGuard {
    fn drop(&mut self) {
        // An error is what is waited for: the thread dropped its end.
        let _ = self.0.recv_timeout(LAST_WORDS);
    }
}

impl Spans {
    /// Starts the thread that sends spans of the PoP of that name to that address.
    pub fn start(to: &str, pop: &str, metrics: &Metrics) -> io::Result<(Spans, SpansGuard)> {
        let resource = Resource::builder()
            .with_service_name("meridian")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("meridian.pop", pop.to_owned()),
            ])
            .build();
        let mut exporter = exporter(to).map_err(io::Error::other)?;
        exporter.set_resource(&resource);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (queue, spans) = tokio::sync::mpsc::channel(QUEUE);
        let (finished, done) = mpsc::sync_channel(0);
        let results = metrics.span_results();
        let counted = results.clone();
        thread::Builder::new().name("spans".to_owned()).spawn(move || {
            runtime.block_on(send(spans, &exporter, &counted));
            drop(finished);
        })?;
        let scope = InstrumentationScope::builder("meridian").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok((Spans { queue, results, scope }, SpansGuard(done)))
    }

    /// Counts of what becomes of spans.
    pub(super) fn results(&self) -> &SpanResults {
        &self.results
    }

    /// Queues the span of a request that was served by this snapshot, if it has one.
    pub(super) fn take(&self, record: &AccessRecord, snapshot: &Snapshot) {
        if !record.traced.is_recorded() {
            return;
        }
        match self.queue.try_send(span(record, snapshot, &self.scope)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => self.results.dropped.inc(),
        }
    }
}

fn exporter(to: &str) -> Result<SpanExporter, ExporterBuildError> {
    SpanExporter::builder()
        .with_http()
        .with_http_client(Collector)
        .with_endpoint(to)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(PATIENCE)
        .build()
}

/// Sends what is queued until nobody can queue any more.
async fn send(mut spans: tokio::sync::mpsc::Receiver<SpanData>, exporter: &SpanExporter, results: &SpanResults) {
    let (mut batch, mut fails) = (Vec::new(), false);
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        let more = async {
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                if spans.recv_many(&mut batch, room).await == 0 {
                    break;
                }
            }
        };
        // Over when the batch is full, nothing more can come, or it is time.
        let _ = timeout(GATHER, more).await;
        let count = batch.len() as u64;
        let sent = timeout(PATIENCE, exporter.export(std::mem::take(&mut batch))).await;
        let error = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        match error {
            None => {
                results.exported.inc_by(count);
                if std::mem::take(&mut fails) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Some(error) => {
                results.failed.inc_by(count);
                // Once, until it is well again.
                if !std::mem::replace(&mut fails, true) {
                    tracing::warn!(error, "spans are lost: the collector does not take them");
                }
            }
        }
    }
}

/// The span of a request (semantic conventions for HTTP servers, 1.23 and later).
fn span(record: &AccessRecord, snapshot: &Snapshot, scope: &InstrumentationScope) -> SpanData {
    let traced = record.traced;
    let start = UNIX_EPOCH + Duration::from_micros(record.at_us);
    let failed = record.status >= 500 || record.status == 0;
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(traced.trace.to_be_bytes()),
            SpanId::from_bytes(traced.span.to_be_bytes()),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from_bytes(traced.parent.to_be_bytes()),
        parent_span_is_remote: traced.parent != 0,
        span_kind: SpanKind::Server,
        // What a path is a kind of nobody knows here: a name must not be one of endlessly many.
        name: record.method.to_string().into(),
        start_time: start,
        end_time: start + Duration::from_micros(record.total_us),
        attributes: attributes(record, snapshot, failed),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if failed { Status::error("") } else { Status::Unset },
        instrumentation_scope: scope.clone(),
    }
}

fn attributes(record: &AccessRecord, snapshot: &Snapshot, failed: bool) -> Vec<KeyValue> {
    let fleet = snapshot.fleet();
    let service = record.service.and_then(|id| Some(fleet.services.get(id.index())?.name.clone()));
    let region = record.region.and_then(|id| Some(fleet.regions.get(id.index())?.name.clone()));
    let (path, query) = path(record.text.target());
    let (host, port) = host(record.text.host());
    let protocol = record.protocol.trim_start_matches("HTTP/");
    let text = |text: &str| Value::from(text.to_owned());
    let all = [
        ("http.request.method", Some(text(record.method.as_str()))),
        ("url.path", Some(text(path))),
        ("url.query", query.map(text)),
        ("server.address", Some(host).filter(|host| !host.is_empty()).map(text)),
        ("server.port", port.map(|port| Value::from(i64::from(port)))),
        ("client.address", record.client.map(|client| text(&client.to_string()))),
        ("network.peer.address", record.peer.map(|peer| text(&peer.ip().to_string()))),
        ("network.peer.port", record.peer.map(|peer| Value::from(i64::from(peer.port())))),
        ("network.protocol.version", Some(text(if protocol == "2.0" { "2" } else { protocol }))),
        ("http.response.status_code", (record.status > 0).then(|| Value::from(i64::from(record.status)))),
        (
            "error.type",
            failed.then(|| match record.outcome {
                // It was the upstream's own.
                "answered" => text(&record.status.to_string()),
                outcome => text(outcome),
            }),
        ),
        ("meridian.outcome", Some(text(record.outcome))),
        ("meridian.attempts", Some(Value::from(i64::from(record.attempts)))),
        ("meridian.request_id", Some(text(&String::from_utf8_lossy(&hexadecimal(record.request_id))))),
        ("meridian.service", service.map(Value::from)),
        ("meridian.region", region.map(Value::from)),
        ("meridian.endpoint", record.endpoint.map(|endpoint| text(&endpoint.to_string()))),
        ("meridian.reason", record.reason.map(|reason| text(TakeReason::as_str(reason)))),
        ("meridian.gave_up", record.gave_up.map(text)),
    ];
    all.into_iter().filter_map(|(key, value)| Some(KeyValue::new(key, value?))).collect()
}

/// Path and query of a target.
fn path(target: &str) -> (&str, Option<&str>) {
    let origin = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find(['/', '?']).map_or("/", |at| &rest[at..]),
        _ => target,
    };
    match origin.split_once('?') {
        Some((path, query)) => (if path.is_empty() { "/" } else { path }, Some(query)),
        None => (origin, None),
    }
}

/// Name and port of a host.
fn host(host: &str) -> (&str, Option<u16>) {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()),
        _ => (host, None),
    };
    (name.trim_start_matches('[').trim_end_matches(']'), port)
}

/// Sends what the exporter asks for: HTTP/1.1, one connection a batch, of which there is one in a second.
#[derive(Debug)]
struct Collector;

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        timeout(PATIENCE, exchange(request)).await?
    }
}

async fn exchange(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or("an address without a host")?.clone();
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((name, authority.port_u16().unwrap_or(80))).await?;
    parts.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>()?;
    parts.headers.insert(HOST, HeaderValue::try_from(authority.as_str())?);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asked = async {
        let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
        let (parts, body) = answer.into_parts();
        Ok(Response::from_parts(parts, Limited::new(body, MOST).collect().await?.to_bytes()))
    };
    tokio::pin!(asked, connection);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // It ended, for good or ill: what was asked knows which.
        _ = &mut connection => asked.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Traced;
    use crate::telemetry::access::tests::{record, snapshot};

    fn recorded() -> AccessRecord {
        let mut record = record("/a?b=c");
        record.traced = Traced { trace: 1, parent: 2, span: 3, sampled: true };
        record
    }

    fn scope() -> InstrumentationScope {
        InstrumentationScope::builder("test").build()
    }

    #[test]
    fn a_span_tells_what_the_record_tells() {
        let span = span(&recorded(), &snapshot(), &scope());
        let get = |key: &str| {
            let found = span.attributes.iter().find(|pair| pair.key.as_str() == key);
            found.map(|pair| pair.value.to_string())
        };
        for (key, want) in [
            ("http.request.method", "GET"),
            ("url.path", "/a"),
            ("url.query", "b=c"),
            ("network.peer.address", "2001:db8::1"),
            ("network.peer.port", "443"),
            ("network.protocol.version", "1.1"),
            ("http.response.status_code", "400"),
            ("meridian.outcome", "bad_request"),
            ("meridian.request_id", "00000000000000000000000000000abc"),
        ] {
            assert_eq!(get(key).as_deref(), Some(want), "{key}");
        }
        assert_eq!((get("meridian.region"), get("error.type")), (None, None));
        assert_eq!(span.end_time.duration_since(span.start_time).unwrap(), Duration::from_micros(1234));
        assert_eq!(
            (span.parent_span_id.to_string(), span.status.clone()),
            ("0000000000000002".to_owned(), Status::Unset)
        );
        let page = include_str!("../../docs/logs-and-traces.md");
        for pair in &span.attributes {
            assert!(page.contains(&format!("`{}`", pair.key)), "{} is not in the page", pair.key);
        }
    }

    #[test]
    fn what_failed_is_an_error() {
        for (status, outcome, kind) in
            [(502, "reset", "reset"), (500, "answered", "500"), (0, "client_gone", "client_gone")]
        {
            let span = span(&AccessRecord { status, outcome, ..recorded() }, &snapshot(), &scope());
            let found = span.attributes.iter().find(|pair| pair.key.as_str() == "error.type").unwrap();
            assert_eq!((found.value.to_string().as_str(), span.status), (kind, Status::error("")));
        }
    }

    #[test]
    fn targets_and_hosts_are_taken_apart() {
        for (target, want) in [
            ("/", ("/", None)),
            ("/a?", ("/a", Some(""))),
            ("http://a:1/b?c", ("/b", Some("c"))),
            ("http://a?c=://", ("/", Some("c=://"))),
            ("http://a", ("/", None)),
            ("/?u=http://b/", ("/", Some("u=http://b/"))),
            ("*", ("*", None)),
            ("", ("", None)),
        ] {
            assert_eq!(path(target), want, "{target}");
        }
        for (text, want) in [
            ("a.test", ("a.test", None)),
            ("a.test:8080", ("a.test", Some(8080))),
            ("[2001:db8::1]", ("2001:db8::1", None)),
            ("[2001:db8::1]:80", ("2001:db8::1", Some(80))),
            ("", ("", None)),
        ] {
            assert_eq!(host(text), want, "{text}");
        }
    }

    #[test]
    fn when_there_is_no_room_spans_are_dropped_and_counted() {
        let metrics = Metrics::new();
        let (queue, mut waiting) = tokio::sync::mpsc::channel(3);
        let spans = Spans { queue, results: metrics.span_results(), scope: scope() };
        for _ in 0..5 {
            spans.take(&recorded(), &snapshot());
        }
        // Not to be recorded.
        spans.take(&record("/"), &snapshot());
        assert_eq!(metrics.span_results().dropped.get(), 2);
        assert!(waiting.try_recv().is_ok());
        spans.take(&recorded(), &snapshot());
        assert_eq!(metrics.span_results().dropped.get(), 2);
    }
}
