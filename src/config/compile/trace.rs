//! `[trace]`: a request's place in a trace, and where spans go.

use crate::config::file::Value;
use crate::config::reader::{Section, Text};
use crate::config::{Share, Trace, Traceparent};

/// Where OTLP takes traces, beneath the collector's address (OTLP/HTTP, "OTLP/HTTP Request").
const TRACES: &str = "/v1/traces";

/// What is reloadable, and where spans go.
pub(super) fn trace(section: &Section<'_>) -> (Trace, Option<String>) {
    let words = [("off", Traceparent::Off), ("pass", Traceparent::Pass), ("start", Traceparent::Start)];
    let traceparent = section.choice("traceparent", Traceparent::Pass, &words);
    let sample = Share::of(section.number("sample", 0.01, 0.0..=1.0));
    let otlp = section.text("otlp").filter(|text| !text.value.is_empty());
    // Of another word it is said already what is wrong.
    let takes_no_part = match section.node("traceparent").map(|node| &node.value) {
        None => true,
        Some(Value::Text { value, .. }) => ["off", "pass"].contains(&value.as_str()),
        Some(_) => false,
    };
    if let Some(text) = otlp
        && takes_no_part
    {
        section
            .scribe
            .error(
                text.place,
                "there are no spans unless `traceparent = \"start\"`: what follows ours would not know it",
            )
            .hint("write `traceparent = \"start\"`, or leave `otlp` out");
    }
    let otlp = otlp.and_then(|text| collector(section, text));
    section.finish();
    (Trace { traceparent, sample }, otlp)
}

/// The address to which traces are sent.
fn collector(section: &Section<'_>, text: Text<'_>) -> Option<String> {
    let address = text.value.trim_end_matches('/');
    let uri = address.parse::<http::Uri>().ok().filter(|uri| {
        let is_whole = uri.query().is_none() && uri.authority().is_some_and(|whom| !whom.as_str().contains('@'));
        uri.scheme_str() == Some("http") && is_whole
    });
    if uri.is_some() {
        return Some(format!("{address}{TRACES}"));
    }
    let found = section.scribe.written(text.place);
    let written = section.scribe.error(
        text.place,
        format!("`otlp` must be the address of a collector, such as `\"http://127.0.0.1:4318\"`, not `{found}`"),
    );
    if text.value.starts_with("https:") && !text.secret {
        written.hint("spans are sent without TLS: run a collector on this host, which can send them on with it");
    }
    None
}
