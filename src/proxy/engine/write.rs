//! Heads as we write them: requests to upstreams, the lines of answers that are ours to say, and answers of our own.

use std::time::SystemTime;

use http::{StatusCode, Version};

use super::lines::Lines;
use super::relay::Asked;
use super::{date, head};
use crate::config::Edge;
use crate::proxy::headers::Forward;
use crate::proxy::{Fields, Framing, Outcome, grpc, headers};
use crate::text;

impl head::Request<'_> {
    /// Appends the head as it goes upstream: always HTTP/1.1, in origin form, framed by what was understood. Its fields are changed to what
    /// upstreams get. `expects`: its client waits for `100 Continue`.
    pub fn rewrite(&mut self, out: &mut Vec<u8>, edge: &Edge, forward: &Forward<'_>, framing: Framing, expects: bool) {
        headers::request(&mut self.lines, edge, forward);
        if !expects {
            self.lines.remove("expect");
        }
        remove_framing(&mut self.lines);
        let (before, target) = forward.target(&self.method, self.target);
        for part in [self.method.as_str().as_bytes(), b" ", before.as_bytes(), target, b" HTTP/1.1\r\n"] {
            out.extend_from_slice(part);
        }
        self.lines.write_to(out);
        match framing {
            Framing::Length(bytes) => length(out, bytes),
            Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Framing::None | Framing::UntilClose => {}
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// An answer of our own with that body, and what it says besides what all of them do: name and value. Returns its status and its body's length. A call of gRPC is told what became of it
/// by a status of its own, in the head of an answer without a body.
pub(super) fn answer<'a>(
    out: &mut Vec<u8>,
    (outcome, body): (Outcome, &str),
    keep: bool,
    asked: Asked,
    is_call: bool,
    now: SystemTime,
    more: impl Iterator<Item = (&'static str, &'a str)>,
) -> (u16, u64) {
    let status = if is_call { 200 } else { outcome.status() };
    let (length_of, body) = (body.len() as u64, if asked.to_head || is_call { "" } else { body });
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
    let kind = if is_call { "application/grpc" } else { "text/plain; charset=utf-8" };
    let first = format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\n");
    out.extend_from_slice(first.as_bytes());
    length(out, if is_call { 0 } else { length_of });
    if is_call {
        let (code, message) = (grpc::status(outcome), outcome.body().trim_end());
        out.extend_from_slice(format!("grpc-status: {code}\r\ngrpc-message: {message}\r\n").as_bytes());
    }
    out.extend_from_slice(b"Cache-Control: no-store\r\n");
    date::line(out, now);
    if outcome.status() == 405 {
        // Any method but that one passes; these are the registered ones (RFC 9110, 15.5.6, wants a list).
        out.extend_from_slice(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE\r\n");
    }
    if let Some(seconds) = outcome.retry_after_s() {
        out.extend_from_slice(format!("Retry-After: {seconds}\r\n").as_bytes());
    }
    for part in more.flat_map(|(name, value)| [name, ": ", value, "\r\n"]) {
        out.extend_from_slice(part.as_bytes());
    }
    connection(out, keep, asked.version);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.as_bytes());
    (status, body.len() as u64)
}

/// What a client has to know of its connection: that it closes, or, for HTTP/1.0, that it does not.
pub(super) fn connection(out: &mut Vec<u8>, keep: bool, version: Version) {
    match (keep, version) {
        (false, _) => out.extend_from_slice(b"Connection: close\r\n"),
        (true, Version::HTTP_10) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (true, _) => {}
    }
}

/// Removes the fields that frame a body: those are ours to write.
pub(super) fn remove_framing(lines: &mut Lines<'_>) {
    lines.remove("content-length");
    lines.remove("transfer-encoding");
}

/// The status line of an upstream's answer, as we say it.
pub(super) fn status(out: &mut Vec<u8>, head: &head::Response<'_>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    text::three_digits(out, head.status.into());
    out.push(b' ');
    out.extend_from_slice(head.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends a Content-Length line.
pub(super) fn length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    text::number(out, length);
    out.extend_from_slice(b"\r\n");
}
