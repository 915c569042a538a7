//! A second reading of HTTP/1.1, which shares nothing with the engine's, and the laws that an exchange has to keep under it.
//!
//! The reader is small and knows whole byte strings only. What others send may have the forms that RFC 9112 lets a proxy take
//! ([`Manner::Theirs`]); what we send must have the one form that nobody reads differently ([`Manner::Ours`]). It takes all that the engine
//! takes and a little more (extensions of chunks are not looked into), so: what the engine forwards and this reader does not find is
//! a mistake of one of the two.

use super::pipes::{End, Given, Got};

/// Who wrote what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Theirs,
    Ours,
}

/// Name, in lower case, and value.
pub type Field = (String, Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    pub data: Vec<u8>,
    pub trailers: Vec<Field>,
    /// The end is there.
    pub whole: bool,
    /// It ends with the connection.
    pub until_close: bool,
    /// Bytes on the wire.
    length: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: Vec<u8>,
    pub target: Vec<u8>,
    pub minor: u8,
    pub fields: Vec<Field>,
    pub body: Body,
    /// Bytes on the wire.
    pub length: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub minor: u8,
    pub fields: Vec<Field>,
    pub body: Body,
    /// Bytes on the wire.
    pub length: usize,
}

/// What is at the front of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front<T> {
    /// A message; its body may lack its end.
    Message(T),
    /// What may become a head.
    Short,
    /// No message.
    Bad(String),
}

struct Head {
    line: Vec<u8>,
    fields: Vec<Field>,
    length: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Nothing,
    Length(u64),
    Chunked,
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

fn is_text(text: &[u8]) -> bool {
    text.iter().all(|byte| *byte == b'\t' || *byte >= b' ' && *byte != 127)
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// A line without its CRLF, and the bytes after it.
type Line<'b> = (&'b [u8], &'b [u8]);

/// The first line; `None`: there is none yet.
fn line(bytes: &[u8]) -> Result<Option<Line<'_>>, String> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    match bytes[..end].split_last() {
        Some((b'\r', line)) if !line.contains(&b'\r') => Ok(Some((line, &bytes[end + 1..]))),
        _ => Err("a line that does not end with CRLF, or a bare CR".into()),
    }
}

fn field(line: &[u8], manner: Manner, spaced: bool) -> Result<Field, String> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a field without a colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // Spaces at the end of an answer's name are to be removed by a proxy (RFC 9112, 5.1).
    let name = if spaced && manner == Manner::Theirs { name.trim_ascii_end() } else { name };
    if !is_token(name) {
        return Err(format!("a name that is none: {:?}", String::from_utf8_lossy(name)));
    }
    if !is_text(value) {
        return Err("a control byte in a value".into());
    }
    if manner == Manner::Ours && value.strip_prefix(b" ") != Some(trim(value)) {
        return Err(format!("a value that is not written plainly: {:?}", String::from_utf8_lossy(line)));
    }
    Ok((String::from_utf8_lossy(name).to_ascii_lowercase(), trim(value).to_vec()))
}

/// Field lines up to an empty one, and how many bytes that is.
fn fields(bytes: &[u8], manner: Manner, spaced: bool) -> Result<Option<(Vec<Field>, usize)>, String> {
    let (mut fields, mut rest) = (Vec::new(), bytes);
    while let Some((line, after)) = line(rest)? {
        rest = after;
        if line.is_empty() {
            return Ok(Some((fields, bytes.len() - rest.len())));
        }
        fields.push(field(line, manner, spaced)?);
    }
    Ok(None)
}

fn head(bytes: &[u8], manner: Manner, is_answer: bool) -> Result<Option<Head>, String> {
    let Some((first, rest)) = line(bytes)? else { return Ok(None) };
    let Some((fields, length)) = fields(rest, manner, is_answer)? else { return Ok(None) };
    Ok(Some(Head { line: first.to_vec(), fields, length: bytes.len() - rest.len() + length }))
}

/// All values of a field.
pub fn values<'a>(fields: &'a [Field], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_slice())
}

/// Whether a list field has that member.
pub fn has_member(fields: &[Field], name: &str, member: &str) -> bool {
    let mut members = values(fields, name).flat_map(|value| value.split(|byte| *byte == b','));
    members.any(|other| trim(other).eq_ignore_ascii_case(member.as_bytes()))
}

fn framing(fields: &[Field], minor: u8, manner: Manner) -> Result<Framing, String> {
    let lengths: Vec<_> = values(fields, "content-length").collect();
    let codings: Vec<_> = values(fields, "transfer-encoding").collect();
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(Framing::Nothing),
        ([digits], []) if (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) => {
            if manner == Manner::Ours && digits.len() > 1 && digits[0] == b'0' {
                return Err("a length that begins with 0".into());
            }
            let number = String::from_utf8_lossy(digits).parse();
            number.map(Framing::Length).map_err(|error| error.to_string())
        }
        ([], [coding]) if minor == 1 && coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        _ => Err("framing that can be read in two ways".into()),
    }
}

/// A chunk's size.
fn size(line: &[u8], manner: Manner) -> Result<u64, String> {
    let end = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let (mut digits, extension) = line.split_at(end);
    if let ([_, ..], Some(last)) = (extension, digits.iter().rposition(|byte| !b" \t".contains(byte))) {
        digits = &digits[..=last];
    }
    let hex = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    if !hex || !is_text(extension) {
        return Err(format!("a chunk without a size: {:?}", String::from_utf8_lossy(line)));
    }
    let size = u64::from_str_radix(&String::from_utf8_lossy(digits), 16).map_err(|error| error.to_string())?;
    if manner == Manner::Ours && format!("{size:x}").as_bytes() != line {
        return Err(format!("a size that is not written plainly: {:?}", String::from_utf8_lossy(line)));
    }
    Ok(size)
}

/// A chunked body at the front of `bytes`. An error comes with the payload before it.
pub fn chunked(bytes: &[u8], manner: Manner) -> (Body, Option<String>) {
    let mut body =
        Body { data: Vec::new(), trailers: Vec::new(), whole: false, until_close: false, length: bytes.len() };
    let result = chunks(bytes, manner, &mut body);
    (body, result.err())
}

fn chunks(bytes: &[u8], manner: Manner, body: &mut Body) -> Result<(), String> {
    let mut rest = bytes;
    loop {
        let Some((first, after)) = line(rest)? else { return Ok(()) };
        rest = after;
        let size = size(first, manner)?;
        if size == 0 {
            if let Some((trailers, length)) = fields(rest, manner, false)? {
                body.trailers = trailers;
                body.whole = true;
                body.length = bytes.len() - rest.len() + length;
            }
            return Ok(());
        }
        let there = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
        body.data.extend_from_slice(&rest[..there]);
        rest = match &rest[there..] {
            [b'\r', b'\n', after @ ..] => after,
            [] | [b'\r'] => return Ok(()),
            _ => return Err("a chunk that does not end with its size".into()),
        };
    }
}

/// A body at the front of `bytes`. What breaks a rule inside is an error of ours, and an end that never comes of theirs.
fn body(bytes: &[u8], framing: Framing, manner: Manner) -> Result<Body, String> {
    let take = |count: usize, whole| Body {
        data: bytes[..count].to_vec(),
        trailers: Vec::new(),
        whole,
        until_close: false,
        length: count,
    };
    match framing {
        Framing::Nothing => Ok(take(0, true)),
        Framing::Length(length) if length <= bytes.len() as u64 => Ok(take(length as usize, true)),
        Framing::Length(_) => Ok(take(bytes.len(), false)),
        Framing::Chunked => match chunked(bytes, manner) {
            (_, Some(error)) if manner == Manner::Ours => Err(error),
            (body, _) => Ok(body),
        },
    }
}

fn front<T>(read: Result<Option<T>, String>) -> Front<T> {
    match read {
        Ok(Some(message)) => Front::Message(message),
        Ok(None) => Front::Short,
        Err(error) => Front::Bad(error),
    }
}

/// The request at the front of `bytes`.
pub fn request(bytes: &[u8], manner: Manner) -> Front<Request> {
    front(read_request(bytes, manner))
}

fn read_request(bytes: &[u8], manner: Manner) -> Result<Option<Request>, String> {
    let Some(head) = head(bytes, manner, false)? else { return Ok(None) };
    let parts: Vec<_> = head.line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else { return Err("a request line with other spaces".into()) };
    let minor = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" if manner == Manner::Theirs => 0,
        _ => return Err("another version".into()),
    };
    let good_target = !target.is_empty() && target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
    if !is_token(method) || !good_target {
        return Err("an odd method or target".into());
    }
    if values(&head.fields, "host").count() > 1 || minor == 1 && values(&head.fields, "host").count() == 0 {
        return Err("not one Host".into());
    }
    let body = body(&bytes[head.length..], framing(&head.fields, minor, manner)?, manner)?;
    let length = head.length + body.length;
    let (method, target) = (method.to_vec(), target.to_vec());
    Ok(Some(Request { method, target, minor, fields: head.fields, body, length }))
}

/// The answer at the front of `bytes`, an informational one too, to a request of that method. `closed`: the connection ends after
/// the bytes, in good order.
pub fn answer(bytes: &[u8], method: &[u8], closed: bool, manner: Manner) -> Front<Answer> {
    front(read_answer(bytes, method, closed, manner))
}

fn read_answer(bytes: &[u8], method: &[u8], closed: bool, manner: Manner) -> Result<Option<Answer>, String> {
    let Some(head) = head(bytes, manner, true)? else { return Ok(None) };
    let (version, rest) = head.line.split_at(head.line.len().min(8));
    let minor = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" if manner == Manner::Theirs => 0,
        _ => return Err("another version".into()),
    };
    let (code, reason) = match rest {
        [b' ', a, b, c, b' ', reason @ ..] => ([*a, *b, *c], reason),
        [b' ', a, b, c] if manner == Manner::Theirs => ([*a, *b, *c], &[][..]),
        _ => return Err("an odd status line".into()),
    };
    if !code.iter().all(u8::is_ascii_digit) || !(b'1'..=b'5').contains(&code[0]) || !is_text(reason) {
        return Err("an odd status line".into());
    }
    let status = code.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    let declared = framing(&head.fields, minor, manner)?;
    let bodiless = method == b"HEAD" || status < 200 || matches!(status, 204 | 304);
    if manner == Manner::Ours {
        let describes = method == b"HEAD" || status == 304;
        if bodiless && (declared == Framing::Chunked || declared != Framing::Nothing && !describes) {
            return Err(format!("framing in a {status}"));
        }
    }
    let rest = &bytes[head.length..];
    let body = match declared {
        _ if bodiless => body(rest, Framing::Nothing, manner)?,
        Framing::Nothing => {
            let data = rest.to_vec();
            Body { data, trailers: Vec::new(), whole: closed, until_close: true, length: rest.len() }
        }
        framing => body(rest, framing, manner)?,
    };
    let length = head.length + body.length;
    Ok(Some(Answer { status, minor, fields: head.fields, body, length }))
}

/// Informational answers, and the final one (or 101) after them. What is no answer any more ends the list.
pub fn answers(bytes: &[u8], method: &[u8], closed: bool, manner: Manner) -> (Vec<Answer>, Front<Answer>) {
    let (mut interims, mut rest) = (Vec::new(), bytes);
    loop {
        match answer(rest, method, closed, manner) {
            Front::Message(one) if one.status < 200 && one.status != 101 => {
                rest = &rest[one.length..];
                interims.push(one);
            }
            last => return (interims, last),
        }
    }
}

/// All requests in what a client sent, and where the last one ends. Only that may lack its end.
pub fn requests(bytes: &[u8]) -> (Vec<Request>, usize) {
    let (mut requests, mut at) = (Vec::new(), 0);
    loop {
        let ended = at;
        while bytes[at..].starts_with(b"\r\n") {
            at += 2;
        }
        let Front::Message(request) = request(&bytes[at..], Manner::Theirs) else { return (requests, ended) };
        at += request.length;
        let whole = request.body.whole;
        requests.push(request);
        if !whole {
            return (requests, at);
        }
    }
}

/// The target as an origin server gets it.
fn origin_form(request: &Request) -> Vec<u8> {
    let target = &request.target;
    let after = [&b"http://"[..], b"https://"].iter().find_map(|scheme| {
        let start = target.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then(|| &target[scheme.len()..])
    });
    let Some(rest) = after else { return target.clone() };
    let rest = &rest[rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len())..];
    match rest {
        [] if request.method == b"OPTIONS" => b"*".to_vec(),
        [b'/', ..] => rest.to_vec(),
        _ => [b"/", rest].concat(),
    }
}

/// Whether all of `some` are in `all`, in this order.
fn is_part<T: PartialEq>(some: &[T], all: &[T]) -> bool {
    let mut all = all.iter();
    some.iter().all(|one| all.any(|other| one == other))
}

/// Whether every field is one of `theirs`, unless it is one that we write.
fn adds_only(fields: &[Field], theirs: &[Field], ours: &[&str]) -> bool {
    let passed: Vec<_> = fields.iter().filter(|(name, _)| !ours.contains(&name.as_str())).cloned().collect();
    is_part(&passed, theirs)
}

/// What we write in a request.
const SAID_UPSTREAM: [&str; 11] = [
    "via",
    "host",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-request-id",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
];
/// What we write in an answer.
const SAID_DOWNSTREAM: [&str; 5] = ["via", "content-length", "transfer-encoding", "connection", "date"];

/// Whether a date is theirs, or ours where a final answer has none.
fn is_dated(got: &Answer, given: &Answer) -> bool {
    let ours: Vec<_> = values(&got.fields, "date").collect();
    let theirs: Vec<_> = values(&given.fields, "date").collect();
    let none = theirs.is_empty() || has_member(&given.fields, "connection", "date");
    match (none, got.status) {
        (false, _) => ours == theirs,
        (true, ..200) => ours.is_empty(),
        (true, _) => ours.len() == 1 && ours[0].ends_with(b" GMT"),
    }
}

/// Whether `sent` is what a proxy makes of `asked`.
fn forwards(sent: &Request, asked: &Request) -> bool {
    let body = match sent.body.whole {
        true => {
            asked.body.whole && sent.body.data == asked.body.data && is_part(&sent.body.trailers, &asked.body.trailers)
        }
        false => asked.body.data.starts_with(&sent.body.data),
    };
    body && sent.method == asked.method
        && sent.target == origin_form(asked)
        && adds_only(&sent.fields, &asked.fields, &SAID_UPSTREAM)
}

fn is_idempotent(method: &[u8]) -> bool {
    [&b"GET"[..], b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"].contains(&method)
}

/// A request that an upstream got.
struct Sent {
    request: Request,
    /// When its first byte went out, as a number of writes.
    at: usize,
    interims: Vec<Answer>,
    /// What the upstream answered.
    answer: Option<Answer>,
    /// Bytes each way after a 101.
    tunnel: Option<(Vec<u8>, Vec<u8>)>,
}

/// What the upstream of one connection got, and what it answered to that.
fn sent(given: &Given, got: &Got, connection: usize) -> Result<Vec<Sent>, String> {
    let (script, bytes) = (&given.upstreams[connection], &got.upstreams[connection]);
    let (mut all, mut at) = (Vec::<Sent>::new(), 0);
    while at < bytes.len() {
        let request = match request(&bytes[at..], Manner::Ours) {
            Front::Message(request) => request,
            // It broke off.
            Front::Short => return Ok(all),
            Front::Bad(why) => return Err(format!("forwarded over connection {connection}: {why}")),
        };
        let turn = all.len();
        let answered = script.turns.get(turn).map(|turn| turn.pieces.concat()).unwrap_or_default();
        let closed = script.end == End::Closes && turn + 1 >= script.turns.len();
        let (interims, last) = answers(&answered, &request.method, closed, Manner::Theirs);
        let answer = if let Front::Message(answer) = last { Some(answer) } else { None };
        let when = got.order.iter().rposition(|(on, from)| *on == connection && *from <= at).unwrap_or(0);
        let end = at + request.length;
        let upgraded = answer.as_ref().is_some_and(|answer| answer.status == 101)
            && has_member(&request.fields, "upgrade", "websocket");
        let tunnel = upgraded.then(|| {
            let used: usize = interims.iter().chain(&answer).map(|answer| answer.length).sum();
            // What a client sends through it may look like requests, so that further turns come.
            let later = script.turns.iter().skip(turn + 1).flat_map(|turn| turn.pieces.concat());
            (bytes[end..].to_vec(), answered[used..].iter().copied().chain(later).collect())
        });
        if end < bytes.len() && !upgraded {
            let used: usize = interims.iter().chain(&answer).map(|answer| answer.length).sum();
            let clean = answer.as_ref().is_some_and(|answer| {
                answer.body.whole
                    && !answer.body.until_close
                    && answer.minor == 1
                    && !has_member(&answer.fields, "connection", "close")
            });
            if !clean || used < answered.len() || !request.body.whole {
                return Err(format!("connection {connection} is used again after an exchange that was not clean"));
            }
        }
        at = if upgraded { bytes.len() } else { end };
        all.push(Sent { request, at: when, interims, answer, tunnel });
    }
    Ok(all)
}

/// The forwarded requests, in order, are requests of the client's, in order.
fn nothing_is_smuggled(sent: &[Sent], asked: &[Request]) -> Result<(), String> {
    let mut from = 0;
    for one in sent {
        let Some(position) = (from..asked.len()).find(|position| forwards(&one.request, &asked[*position])) else {
            return Err(format!("no request of the client's: {:?}, from {from} of {asked:?}", one.request));
        };
        // Sending it again is for what may be sent twice only.
        from = position + usize::from(!is_idempotent(&asked[position].method));
    }
    Ok(())
}

const OWN: [u16; 14] = [400, 404, 405, 408, 413, 414, 421, 431, 451, 502, 503, 504, 508, 500];

/// Whether it is an answer of meridian's own, which says so by not having come over anybody.
fn is_own(answer: &Answer, to_head: bool) -> bool {
    let text = answer.body.data.starts_with(format!("{} ", answer.status).as_bytes()) || to_head;
    OWN.contains(&answer.status)
        && text
        && answer.body.whole
        && values(&answer.fields, "via").next().is_none()
        && values(&answer.fields, "cache-control").any(|value| value == b"no-store")
}

/// Whether `got` is what a proxy makes of `given`.
fn passes_on(got: &Answer, given: &Answer) -> bool {
    let body = match got.body.whole {
        true => {
            given.body.whole && got.body.data == given.body.data && is_part(&got.body.trailers, &given.body.trailers)
        }
        false => given.body.data.starts_with(&got.body.data),
    };
    body && got.status == given.status
        && adds_only(&got.fields, &given.fields, &SAID_DOWNSTREAM)
        && is_dated(got, given)
}

/// All laws.
pub fn check(given: &Given, got: &Got) -> Result<(), String> {
    let bytes = given.client.concat();
    let (asked, stopped) = requests(&bytes);
    let mut all = Vec::new();
    for connection in 0..got.upstreams.len() {
        all.extend(sent(given, got, connection)?);
    }
    all.sort_by_key(|sent| sent.at);
    nothing_is_smuggled(&all, &asked).or_else(|error| {
        // What a client sends through a tunnel may look like requests: those end with the one that opened it.
        let opener = all.iter().rfind(|sent| sent.tunnel.is_some()).ok_or(error)?;
        let position =
            asked.iter().rposition(|asked| forwards(&opener.request, asked)).ok_or("an opener of nobody's")?;
        nothing_is_smuggled(&all, &asked[..=position])
    })?;

    let (mut rest, mut next, mut k) = (&got.client[..], 0, 0);
    while !rest.is_empty() {
        let request = asked.get(k);
        let mut method = request.map_or(&b"-"[..], |request| &request.method);
        let (mut interims, mut last) = answers(rest, method, !got.reset, Manner::Ours);
        let lacks = |last: &Front<Answer>| matches!(last, Front::Message(answer) if !answer.body.whole);
        if request.is_none() && bytes[stopped..].trim_ascii_start().starts_with(b"HEAD ") && lacks(&last) {
            // What is refused as a whole may still be known to be HEAD.
            method = b"HEAD";
            (interims, last) = answers(rest, method, !got.reset, Manner::Ours);
        }
        let interim_bytes: usize = interims.iter().map(|answer| answer.length).sum();
        let answer = match last {
            Front::Message(answer) => answer,
            // It broke off, which anybody sees.
            Front::Short => return Ok(()),
            Front::Bad(why) => return Err(format!("answer {k}: {why}")),
        };
        rest = &rest[interim_bytes + answer.length..];
        let own = is_own(&answer, method == b"HEAD");
        if own && answer.status == 500 {
            return Err("a mistake of meridian's own: 500".into());
        }
        let Some(request) = request else {
            let refusable = stopped < bytes.len() || asked.last().is_some_and(|asked| !asked.body.whole);
            if !own || !refusable || !rest.is_empty() {
                return Err(format!("answer {k} to no request: {answer:?}, then {} bytes", rest.len()));
            }
            return Ok(());
        };
        if !interims.is_empty() && request.minor == 0 {
            return Err("an informational answer to HTTP/1.0".into());
        }
        if request.minor == 0 && values(&answer.fields, "transfer-encoding").next().is_some() {
            return Err("chunks to HTTP/1.0".into());
        }
        if request.minor == 1 && answer.body.until_close {
            return Err("an answer to HTTP/1.1 that ends with the connection".into());
        }
        let is_tunnel = answer.status == 101;
        if !own {
            // Several upstreams may have offered a tunnel: the one that was taken passes all bytes.
            let passes_all =
                |(up, down): &(Vec<u8>, Vec<u8>)| rest_after(&bytes, k).starts_with(up) && down.starts_with(rest);
            let fits = |sent: &Sent| {
                forwards(&sent.request, request)
                    && sent.answer.as_ref().is_some_and(|given| passes_on(&answer, given))
                    && (!is_tunnel || sent.tunnel.as_ref().is_some_and(passes_all))
            };
            let Some(position) = all[next..].iter().position(fits).map(|at| next + at) else {
                let given: Vec<_> = all[next..].iter().map(|sent| (&sent.request, &sent.answer)).collect();
                return Err(format!("answer {k} is nobody's: {answer:?}, of {given:?}"));
            };
            next = position + 1;
        }
        let statuses: Vec<_> = interims.iter().map(|answer| answer.status).collect();
        let passes = |sent: &Sent| {
            let given: Vec<_> = sent.interims.iter().map(|answer| answer.status).collect();
            forwards(&sent.request, request) && is_part(&statuses, &given)
        };
        if !statuses.is_empty() && !all.iter().any(passes) {
            return Err(format!("informational answers of nobody: {statuses:?}"));
        }
        if is_tunnel {
            return Ok(());
        }
        let closes = has_member(&answer.fields, "connection", "close")
            || request.minor == 0 && !has_member(&answer.fields, "connection", "keep-alive")
            || !answer.body.whole
            || !request.body.whole;
        if closes && !rest.is_empty() {
            return Err(format!("{} bytes after the last answer", rest.len()));
        }
        k += 1;
    }
    Ok(())
}

/// What follows the request of that number.
fn rest_after(bytes: &[u8], number: usize) -> &[u8] {
    let mut at = 0;
    for _ in 0..=number {
        while bytes[at..].starts_with(b"\r\n") {
            at += 2;
        }
        if let Front::Message(request) = request(&bytes[at..], Manner::Theirs) {
            at += request.length;
        }
    }
    &bytes[at..]
}

/// What both sides understood, apart from where bytes were cut: to compare exchanges with each other.
pub fn understood(given: &Given, got: &Got) -> (Vec<Request>, Vec<Answer>, Vec<u8>) {
    let (asked, _) = requests(&given.client.concat());
    let mut sent = Vec::new();
    let mut tunnels = Vec::new();
    for bytes in &got.upstreams {
        let mut at = 0;
        while let Front::Message(mut request) = request(&bytes[at..], Manner::Ours) {
            at += request.length;
            // Lengths on the wire are those of chunks.
            (request.length, request.body.length) = (0, 0);
            sent.push(request);
        }
        tunnels.extend_from_slice(&bytes[at..]);
    }
    let (mut answered, mut rest) = (Vec::new(), &got.client[..]);
    for k in 0.. {
        let method = asked.get(k).map_or(&b"-"[..], |request| &request.method);
        let (interims, last) = answers(rest, method, !got.reset, Manner::Ours);
        let last = if let Front::Message(answer) = last { Some(answer) } else { None };
        let over = last.as_ref().is_none_or(|answer| answer.status == 101);
        for mut answer in interims.into_iter().chain(last) {
            rest = &rest[answer.length..];
            (answer.length, answer.body.length) = (0, 0);
            // Ours are of their second; [`is_dated`] looks at them.
            answer.fields.retain(|(name, _)| name != "date");
            answered.push(answer);
        }
        if over {
            break;
        }
    }
    tunnels.extend_from_slice(rest);
    (sent, answered, tunnels)
}

/// A request's head alone: its fields, and `method target version`.
pub fn request_parts(bytes: &[u8]) -> Result<(Vec<Field>, String), String> {
    let head = head(bytes, Manner::Theirs, false)?.filter(|head| head.length == bytes.len()).ok_or("no whole head")?;
    Ok((head.fields, String::from_utf8_lossy(&head.line).into_owned()))
}

/// An answer's head alone: its fields, status and minor version. Whatever it says of a body is left aside.
pub fn answer_parts(bytes: &[u8]) -> Result<(Vec<Field>, u16, u8), String> {
    let head = head(bytes, Manner::Theirs, true)?.filter(|head| head.length == bytes.len()).ok_or("no whole head")?;
    let bare = [&head.line[..], b"\r\n\r\n"].concat();
    let answer = read_answer(&bare, b"HEAD", true, Manner::Theirs)?.ok_or("no status line")?;
    Ok((head.fields, answer.status, answer.minor))
}
