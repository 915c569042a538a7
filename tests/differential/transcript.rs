//! What came out of a case, as lines to compare.
//!
//! `>` is what the upstream got, `<` what the client got, byte for byte in the notation of the corpus. Replaced is what is chance by nature: the
//! request id, dates, and where a chunked body is cut, which depends on how its bytes come in: its payload is shown in one piece.
//! Of a request that never became whole only the head is shown: how much of the rest goes out before a mistake in it is found is a
//! matter of timing.

use std::fmt::Write;

use crate::run::{Came, Ending, Seen};

/// How much of a message is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Not even the head.
    Part,
    Head,
    /// All of it, so many bytes.
    Whole(usize),
}

impl Message {
    /// Reads a request, as an upstream that takes what it gets by the letter.
    pub fn request(bytes: &[u8]) -> Message {
        let Some(head) = head_length(bytes) else { return Message::Part };
        match body_end(bytes, head, Body::of(&bytes[..head], Body::None)) {
            Some(end) => Message::Whole(end),
            None => Message::Head,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

impl Body {
    /// What a head says of its body; `otherwise` when it says nothing.
    fn of(head: &[u8], otherwise: Body) -> Body {
        let is_chunked = value(head, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        match value(head, "content-length").and_then(|length| length.parse().ok()) {
            _ if is_chunked => Body::Chunked,
            Some(length) => Body::Length(length),
            None => otherwise,
        }
    }

    fn of_answer(head: &[u8], to_head: bool) -> Body {
        match status(head) {
            _ if to_head => Body::None,
            100..=199 | 204 | 304 => Body::None,
            _ => Body::of(head, Body::UntilClose),
        }
    }
}

fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn status(head: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(head);
    text.split(' ').nth(1).and_then(|code| code.trim().parse().ok()).unwrap_or(0)
}

/// The value of the first field of that name.
fn value(head: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head).into_owned();
    let mut fields = text.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
}

/// Where the body that begins at `start` ends, if it is whole.
fn body_end(bytes: &[u8], start: usize, body: Body) -> Option<usize> {
    match body {
        Body::None => Some(start),
        Body::Length(length) => (bytes.len() >= start + length).then_some(start + length),
        Body::Chunked => chunks(&bytes[start..]).map(|chunks| start + chunks.length),
        Body::UntilClose => None,
    }
}

/// A chunked body without its cuts.
struct Chunks {
    payload: Vec<u8>,
    /// With their CRLFs.
    trailers: Vec<u8>,
    length: usize,
}

/// Reads chunks that are as plain as a mover writes them.
fn chunks(bytes: &[u8]) -> Option<Chunks> {
    let (mut at, mut payload) = (0, Vec::new());
    loop {
        let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
        at += line + 2;
        if size == 0 {
            break;
        }
        payload.extend_from_slice(bytes.get(at..at + size)?);
        at += size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    let begin = at;
    loop {
        let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
        at += line + 2;
        if line == 0 {
            return Some(Chunks { payload, trailers: bytes[begin..at - 2].to_vec(), length: at });
        }
    }
}

/// Whether a request waits for `100 Continue`.
pub fn expects(request: &[u8]) -> bool {
    value(request, "expect").is_some_and(|what| what.eq_ignore_ascii_case("100-continue"))
}

pub fn is_websocket(request: &[u8]) -> bool {
    value(request, "upgrade").is_some_and(|what| what.eq_ignore_ascii_case("websocket"))
}

/// Heads at the front of an answer: any number of informational ones, then a final one.
fn front(bytes: &[u8]) -> (usize, Option<(usize, usize)>) {
    let (mut count, mut at) = (0, 0);
    while let Some(length) = head_length(&bytes[at..]) {
        count += 1;
        if !(100..200).contains(&status(&bytes[at..])) || status(&bytes[at..]) == 101 {
            return (count, Some((at, length)));
        }
        at += length;
    }
    (count, None)
}

/// How many heads there are up to the first final one.
pub fn heads(bytes: &[u8]) -> usize {
    front(bytes).0
}

pub fn has_final_head(bytes: &[u8]) -> bool {
    front(bytes).1.is_some()
}

/// Whether the first final answer is whole.
pub fn answer_ends(bytes: &[u8], to_head: bool) -> bool {
    let Some((at, length)) = front(bytes).1 else { return false };
    let head = &bytes[at..at + length];
    body_end(bytes, at + length, Body::of_answer(head, to_head)).is_some()
}

/// Where the last answer begins.
pub fn last_answer(bytes: &[u8]) -> usize {
    let mark = b"HTTP/1.1 ";
    bytes.windows(mark.len()).rposition(|nine| nine == mark).unwrap_or(0)
}

/// The transcript.
pub fn write(came: &Came, seen: &[Seen]) -> String {
    let mut out = String::new();
    let mut last = None;
    for request in seen {
        if request.bytes.starts_with(b"GET /probe ") {
            let same = if last == Some(request.connection) { "the same" } else { "another" };
            let _ = writeln!(out, "> (over {same} connection: the probe)");
            continue;
        }
        last = Some(request.connection);
        write_request(&mut out, request);
    }
    if last.is_none() {
        out.push_str("> (nothing)\n");
    }
    write_answers(&mut out, &came.bytes, came.to_head);
    out.push_str(match came.ending {
        Ending::Kept => "< (kept)\n",
        Ending::Closed => "< (closed)\n",
        Ending::Reset => "< (reset)\n",
    });
    out
}

fn write_request(out: &mut String, request: &Seen) {
    let bytes = &request.bytes;
    let Some(length) = head_length(bytes) else {
        out.push_str("> (part of a head)\n");
        return;
    };
    write_head(out, '>', &bytes[..length]);
    if request.whole {
        write_body(out, '>', &bytes[length..], Body::of(&bytes[..length], Body::None));
    } else {
        out.push_str("> (its body never ended)\n");
    }
}

fn write_answers(out: &mut String, mut bytes: &[u8], mut to_head: bool) {
    // The last head and how often it came in a row: many informational ones are one line more, not many.
    let (mut last, mut times) = (&b""[..], 1);
    while let Some(length) = head_length(bytes).filter(|_| bytes.starts_with(b"HTTP/1.")) {
        let head = &bytes[..length];
        // Final ones may be alike by chance: their dates are.
        let again = head == last && (102..200).contains(&status(head));
        times = if again { times + 1 } else { write_times(out, times) };
        last = head;
        if times == 1 {
            write_head(out, '<', head);
        }
        let (body, code) = (Body::of_answer(head, to_head), status(head));
        let end = body_end(bytes, length, body).unwrap_or(bytes.len());
        write_body(out, '<', &bytes[length..end], body);
        bytes = &bytes[end..];
        if code == 101 {
            break;
        }
        // Only the first of several requests of a case may be HEAD.
        to_head &= (100..200).contains(&code);
    }
    write_times(out, times);
    if !bytes.is_empty() {
        write_data(out, '<', bytes);
    }
}

/// Ends a row of equal heads; returns the length of the next one.
fn write_times(out: &mut String, times: usize) -> usize {
    if times > 1 {
        let _ = writeln!(out, "< ({times} times)");
    }
    1
}

fn write_head(out: &mut String, side: char, head: &[u8]) {
    for line in head[..head.len() - 4].split(|byte| *byte == b'\n') {
        let line = escaped(line.strip_suffix(b"\r").unwrap_or(line));
        let _ = writeln!(out, "{side} {}", without_chance(&line));
    }
}

fn write_body(out: &mut String, side: char, bytes: &[u8], body: Body) {
    match body {
        Body::Chunked => match chunks(bytes) {
            Some(chunks) => {
                write_data(out, side, &chunks.payload);
                for line in chunks.trailers.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let _ = writeln!(out, "{side} (trailer) {}", escaped(line.strip_suffix(b"\r").unwrap_or(line)));
                }
            }
            None => {
                let _ = writeln!(out, "{side} (chunks without their end)");
            }
        },
        Body::Length(length) if bytes.len() < length => {
            write_data(out, side, bytes);
            let _ = writeln!(out, "{side} (less than its length)");
        }
        _ => write_data(out, side, bytes),
    }
}

fn write_data(out: &mut String, side: char, bytes: &[u8]) {
    if !bytes.is_empty() {
        let _ = writeln!(out, "{side} | {}", escaped(bytes));
    }
}

/// One line whatever the bytes, long runs of one byte shortened.
fn escaped(bytes: &[u8]) -> String {
    let mut out = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        let one: String = run[..1].iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
        let one = if matches!(run[0], b'"' | b'\'') { (run[0] as char).to_string() } else { one };
        match run.len() {
            ..=20 => out.push_str(&one.repeat(run.len())),
            many => {
                let _ = write!(out, "\\{{{one}*{many}}}");
            }
        }
    }
    out
}

/// Without what is another one in every run.
fn without_chance(line: &str) -> String {
    let Some((name, value)) = line.split_once(": ") else { return line.to_owned() };
    let random = value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    match name.to_ascii_lowercase().as_str() {
        "x-request-id" if random && !value.contains("0123456789abcdef") => format!("{name}: (random)"),
        "date" if value.ends_with(" GMT") && !value.contains(" 1970 ") => format!("{name}: (now)"),
        _ => line.to_owned(),
    }
}
