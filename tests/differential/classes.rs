//! Differences of one kind that pingora makes in many cases, each evened out in both transcripts of a case by a function, with the reason why
//! it stands. A class evens out no more than its reason covers: what it does not know stays a difference of the case.

/// One kind of difference.
pub struct Class {
    pub name: &'static str,
    pub why: &'static str,
    /// Both transcripts without it: the native engine's and pingora's.
    pub even: fn(&mut String, &mut String),
}

pub const CLASSES: &[Class] = &[
    Class {
        name: "date",
        why: "pingora writes its own Date over one that came; the native engine adds one to answers without it, and leaves the others alone",
        even: without_date,
    },
    Class {
        name: "keep-alive",
        why: "pingora tells clients of HTTP/1.1 that their connection is kept, which they know (RFC 9112, 9.3)",
        even: without_keep_alive,
    },
    Class {
        name: "order",
        why: "the framing and connection fields come last from the native engine, where they were or before Date from pingora; between names order means nothing (RFC 9110, 5.3)",
        even: sorted,
    },
    Class {
        name: "own refusal",
        why: "pingora refuses what it cannot read before our phases see it, and answers without a body or our fields",
        even: without_own_refusal,
    },
    Class {
        name: "head first",
        why: "pingora sends a request's head before it has looked at its body, so that the upstream sees the beginning of a request that is then refused; the native engine looks at what came with the head first",
        even: without_head_first,
    },
    Class {
        name: "closes after a failure",
        why: "pingora closes the client's connection when an attempt failed, the native engine keeps it after a whole request (tests/proxy holds both)",
        even: without_close_after_failure,
    },
];

fn retain(text: &mut String, keep: impl Fn(&str) -> bool) {
    *text = text.lines().filter(|line| keep(line)).map(|line| format!("{line}\n")).collect();
}

fn has(text: &str, wanted: &str) -> bool {
    text.lines().any(|line| line == wanted)
}

/// The name of a field's line, in small letters.
fn name(line: &str) -> Option<String> {
    let (name, _) = line[2..].split_once(": ").or_else(|| line[2..].split_once(':'))?;
    (!name.contains([' ', '|', '('])).then(|| name.to_ascii_lowercase())
}

fn without_date(native: &mut String, pingora: &mut String) {
    [native, pingora].into_iter().for_each(|text| {
        retain(text, |line| !(line.starts_with('<') && name(line).is_some_and(|name| name == "date")));
    });
}

fn without_keep_alive(_: &mut String, pingora: &mut String) {
    // For a client of HTTP/1.0 the line says something.
    if !pingora.contains("> via: 1.0 meridian-lab") {
        retain(pingora, |line| line != "< Connection: keep-alive");
    }
}

fn sorted(native: &mut String, pingora: &mut String) {
    for text in [native, pingora] {
        let mut lines: Vec<_> = text.lines().collect();
        for head in lines.chunk_by_mut(|a, b| a[..1] == b[..1] && name(a).is_some() && name(b).is_some()) {
            // Stable: lines of one name stay as they are.
            head.sort_by_key(|line| name(line));
        }
        *text = lines.iter().map(|line| format!("{line}\n")).collect();
    }
}

fn without_own_refusal(native: &mut String, pingora: &mut String) {
    if !has(pingora, "< Server: Pingora") || !has(native, "< Cache-Control: no-store") {
        return;
    }
    let gone = ["cache-control", "content-length", "content-type", "server"];
    for text in [native, pingora] {
        let bodies = |line: &str| line.starts_with("< | 40") && line.ends_with("\\n");
        let fields = |line: &str| line.starts_with('<') && name(line).is_some_and(|name| gone.contains(&name.as_str()));
        retain(text, |line| !bodies(line) && !fields(line));
    }
}

#[expect(clippy::ptr_arg, reason = "it is one of several")]
fn without_head_first(native: &mut String, pingora: &mut String) {
    let lone = pingora.lines().filter(|line| line.ends_with(" HTTP/1.1") && line.starts_with('>')).count() == 1;
    if lone && has(native, "> (nothing)") && has(pingora, "> (its body never ended)") {
        retain(pingora, |line| !line.starts_with('>'));
        pingora.insert_str(0, "> (nothing)\n");
    }
}

fn without_close_after_failure(native: &mut String, pingora: &mut String) {
    let failed = |text: &str| has(text, "< HTTP/1.1 502 Bad Gateway");
    let closes = has(pingora, "< Connection: close") && has(pingora, "< (closed)");
    if failed(native) && failed(pingora) && has(native, "< (kept)") && closes {
        retain(native, |line| line != "> (over another connection: the probe)" && line != "< (kept)");
        retain(pingora, |line| line != "< Connection: close" && line != "< (closed)");
    }
}
