//! A client's connection: one request after the other, until one side has had enough.
//!
//! What a request needs beyond its relay is here: the wait for a head, the attempts, answers of our own, the line in the log. The request
//! under way is held outside the future that serves it, so that it is counted, logged and, if nothing went out yet, answered even if serving it
//! panics.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, UNIX_EPOCH};

use http::{Method, Version};
use tokio::sync::watch;

use super::buffer::{Buffer, Scratch};
use super::connecting::{Connecting, Entrant, Won, race};
use super::draining::Draining;
use super::hedge::{Hedged, hedge};
use super::lines::Lines;
use super::relay::{Asked, Client, End, Late, Relay, Times};
use super::splice::Side;
use super::timer::Timer;
use super::upload::Upload;
use super::upstream::{Connect, Upstream};
use super::{Core, Downstream, Served, head, now, wall, write};
use crate::config::names::is_token_byte;
use crate::proxy::caught::caught;
use crate::proxy::headers::Said;
use crate::proxy::retry::Failure;
use crate::proxy::{Attempt, Exchange, Fields, Head, Outcome};
use crate::telemetry::Mover;
use crate::turn::{self, Begun};

/// Empty lines before a request line that are left out.
const EMPTY_LINES: u8 = 2;

/// What the line ends and spaces of a head may add to what `header_bytes` counts.
const SLACK: usize = 1 << 10;

/// What the log keeps of a head that could not be read.
const GARBLED: usize = 200;

/// How long after it was accepted a connection's first request is awaited although the process drains.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// How long a connection that was kept is open still when the process drains, so that its client may send what it was about to; the answer says that it was
/// the last one. Closing at once loses what crosses our end on its way, and a client may not send that again if it was a POST.
const LAST_WORD: Duration = Duration::from_secs(1);

pub(super) struct Connection<'a, C: Connect, S> {
    core: &'a Arc<Core<C>>,
    client: Client<S>,
    from: Downstream<'a>,
    draining: Draining<'a>,
    accepted: Instant,
    /// When something happened last: the clock is read once for each time that the task is woken.
    at: Instant,
    requests: u32,
    /// The request under way.
    exchange: Option<Exchange>,
    /// Counts it at its worker.
    turn: Option<Begun>,
    /// What the request under way has of a connection for its next attempt.
    beside: Option<Entrant<C>>,
    /// What is left of informational answers: one that has begun ends before another answer begins.
    owed: Scratch,
}

/// What waiting for a head came to.
enum Waited {
    /// A whole head is at the front of the input.
    Head,
    Refused(Outcome),
    /// Nobody is there, or nothing is wanted any more.
    Closed,
}

/// A request that is not one to send on, why, and whether the connection can go on.
struct Refused(Asked, Outcome, bool);

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Request,
    Close,
    /// As the client wished, who sent nothing after its request.
    Finish,
    Reset,
}

impl<'a, C: Connect, S: Side> Connection<'a, C, S> {
    pub(super) fn new(
        core: &'a Arc<Core<C>>,
        stream: S,
        from: Downstream<'a>,
        draining: &'a watch::Receiver<bool>,
    ) -> Self {
        let at = now();
        Connection {
            core,
            client: Client { stream, input: Buffer::default(), timer: Timer::default(), closed: None },
            from,
            draining: Draining::new(draining),
            accepted: at,
            at,
            requests: 0,
            exchange: None,
            turn: None,
            beside: None,
            owed: Scratch::default(),
        }
    }

    /// Serves to the end.
    pub(super) async fn run(mut self) -> Served<S> {
        loop {
            let caught = caught(pin!(self.next())).await;
            let next = match caught {
                Ok(next) => next,
                Err(panic) => self.panicked(&panic).await,
            };
            match next {
                Next::Request => self.requests = self.requests.saturating_add(1),
                Next::Close => {
                    self.client.stream.close();
                    return Served::Closed;
                }
                Next::Finish => return Served::Finished(self.client.stream),
                Next::Reset => return Served::Reset(self.client.stream),
            }
        }
    }

    /// Waits for a request and serves it.
    async fn next(&mut self) -> Next {
        match self.wait().await {
            Waited::Closed => Next::Close,
            Waited::Refused(outcome) => {
                self.exchange = Some(self.garbled(outcome));
                self.refuse(Asked::unknown(), outcome, false).await
            }
            Waited::Head => self.request().await,
        }
    }

    /// Waits for a whole head. Nothing is held while nothing came.
    async fn wait(&mut self) -> Waited {
        let (most, uri, header_timeout, idle_timeout) = {
            let limits = &self.core.shared.reader.load().edge.limits;
            (limits.header_bytes as usize + SLACK, limits.uri, limits.header_timeout, limits.idle_timeout)
        };
        let begun = self.at;
        let first = self.requests == 0;
        let (mut seen, mut empty_lines) = (0, 0);
        // A new connection is expected to say something, one that was kept may be silent for longer.
        let head_due = if first { self.accepted + header_timeout } else { begun + header_timeout };
        let silent = self.client.input.is_empty();
        let idle_due = if first || !silent { head_due } else { begun + idle_timeout };
        self.client.timer.set(Some(idle_due));
        let accepted = self.accepted;
        // Once the process drains: until when a request may begin.
        let mut last_to_begin = None;
        let Connection { client, draining, at, .. } = self;
        // What is there already is read; who is woken by what came then may have to wait for a turn, once.
        let mut may_begin = true;
        poll_fn(|cx: &mut Context<'_>| {
            let comes = !may_begin && seen == 0 && client.input.is_empty();
            // In a drain it would wait for nothing but its end.
            if comes && !turn::is_free() && !draining.is_on() {
                may_begin = true;
                turn::wait(cx.waker());
                return Poll::Pending;
            }
            may_begin = false;
            loop {
                while seen == 0 && client.input.bytes().starts_with(b"\r\n") {
                    empty_lines += 1;
                    if empty_lines > EMPTY_LINES {
                        return Poll::Ready(Waited::Refused(Outcome::BadRequest));
                    }
                    client.input.consume(2);
                }
                if let Some(waited) = look(client.input.bytes(), &mut seen, most, uri) {
                    return Poll::Ready(waited);
                }
                let nothing_yet = client.input.is_empty();
                if client.closed.is_some() {
                    return Poll::Ready(Waited::Closed);
                }
                if !client.input.has_room() {
                    client.input.grow();
                }
                match client.input.poll_fill(&mut client.stream, cx) {
                    Poll::Ready(Ok(1..)) => {
                        *at = now();
                        if nothing_yet {
                            client.timer.set(Some(if first { head_due } else { *at + header_timeout }));
                        }
                        continue;
                    }
                    Poll::Ready(_) if client.input.is_empty() => return Poll::Ready(Waited::Closed),
                    Poll::Ready(_) => return Poll::Ready(Waited::Refused(Outcome::ClientGone)),
                    Poll::Pending => {}
                }
                if nothing_yet && draining.poll(cx).is_ready() {
                    // Its client could not know of the drain when it connected, or sent what is on its way.
                    let last = || if first { accepted + FIRST_WORD } else { idle_due.min(now() + LAST_WORD) };
                    let last_to_begin = *last_to_begin.get_or_insert_with(last);
                    if now() >= last_to_begin {
                        return Poll::Ready(Waited::Closed);
                    }
                    client.timer.set(Some(last_to_begin));
                }
                return match client.timer.poll(cx) {
                    Poll::Ready(()) if nothing_yet => Poll::Ready(Waited::Closed),
                    Poll::Ready(()) => Poll::Ready(Waited::Refused(Outcome::RequestTimeout)),
                    Poll::Pending => Poll::Pending,
                };
            }
        })
        .await
    }

    /// Serves the request whose head is at the front of the input.
    async fn request(&mut self) -> Next {
        self.turn = Some(turn::begin());
        let (mut asked, mut upload) = match self.begin() {
            Ok(begun) => begun,
            Err(Refused(asked, outcome, keep)) => return self.refuse(asked, outcome, keep).await,
        };
        'attempts: loop {
            let Some(exchange) = &mut self.exchange else { return Next::Close };
            let attempt = match exchange.next_attempt(self.at) {
                Ok(attempt) => attempt,
                Err(outcome) => return self.refuse_after(asked, &mut upload, outcome).await,
            };
            upload.rewind();
            let connected = self.connect(&attempt).await;
            let Some(exchange) = &mut self.exchange else { return Next::Close };
            let mut upstream = match connected {
                Ok(Some(upstream)) => upstream,
                Ok(None) => continue,
                Err(failure) => {
                    if exchange.attempt_failed(failure, upload.replayable(), self.at) {
                        continue;
                    }
                    let outcome = exchange.outcome();
                    return self.refuse_after(asked, &mut upload, outcome).await;
                }
            };
            exchange.connected(self.at);
            loop {
                let Some(exchange) = &mut self.exchange else { return Next::Close };
                let (client, draining) = (&mut self.client, &self.draining);
                let mut relay = Relay::new(client, &mut upstream, exchange, &mut upload, asked, draining, self.at);
                let end = relay.run().await;
                self.at = relay.now;
                let (clean, keep, until_close) = (relay.upstream_is_clean(), relay.keep_client, relay.until_close);
                let (status, payload_out, tunnel_in) = (relay.status, relay.payload_out(), relay.tunnel_in);
                let unsent = relay.take_unsent();
                let end = match end {
                    Ok(end) => end,
                    Err(Late) => {
                        asked.hedges = false;
                        match self.hedge(&mut upstream, &upload).await {
                            Ok(()) => continue,
                            Err(end) => end,
                        }
                    }
                };
                let Some(exchange) = &mut self.exchange else { return Next::Close };
                let outcome = match end {
                    End::Elsewhere => continue 'attempts,
                    End::Failed(failure) => {
                        if exchange.attempt_failed(failure, upload.replayable(), self.at) {
                            continue 'attempts;
                        }
                        exchange.outcome()
                    }
                    End::Broken => Outcome::AnswerBroken,
                    End::Over(outcome) => outcome,
                    End::Complete => Outcome::Answered,
                };
                let Some(status) = status else {
                    self.owed = unsent;
                    return self.refuse_after(asked, &mut upload, outcome).await;
                };
                exchange.end(outcome);
                if end == End::Complete && clean {
                    self.core.pool.put(upstream, self.at);
                }
                self.finish(status, upload.payload() + tunnel_in, payload_out);
                return match end {
                    End::Complete if keep => Next::Request,
                    End::Complete if asked.closes && upload.ended() && self.is_quiet().await => Next::Finish,
                    End::Complete => Next::Close,
                    _ if until_close => Next::Reset,
                    _ => Next::Close,
                };
            }
        }
    }

    /// Whether the client sent nothing after its request, as far as is known now.
    async fn is_quiet(&mut self) -> bool {
        let Client { stream, input, .. } = &mut self.client;
        if !input.is_empty() {
            return false;
        }
        let read = poll_fn(|cx| Poll::Ready(input.poll_fill(stream, cx))).await;
        matches!(read, Poll::Pending | Poll::Ready(Ok(0)))
    }

    /// From the head to a planned attempt and the bytes to send.
    fn begin(&mut self) -> Result<(Asked, Upload), Refused> {
        let shared = &self.core.shared;
        let published = shared.reader.load();
        let most = published.edge.limits.headers;
        let read = head::read_request(self.client.input.bytes(), most);
        let (mut request, length) = match read.and_then(|read| read.ok_or(Outcome::BadRequest)) {
            Ok(read) => read,
            Err(outcome) => {
                self.exchange = Some(self.garbled(outcome));
                return Err(Refused(Asked::unknown(), outcome, false));
            }
        };
        let head = self.head(&request.method, request.target, request.version, &request.lines);
        let exchange = Exchange::begin_in(&mut self.exchange, shared, published, &head);
        let framing = exchange.framing();
        let requests = exchange.edge().limits.requests;
        let last = requests > 0 && self.requests + 1 >= requests;
        let said = Said::of(&request.lines);
        let wants = |option: &[u8]| said.has(option, &request.lines);
        let is_http_11 = request.version == Version::HTTP_11;
        let expects = request.lines.lists("expect", b"100-continue");
        if let Some(version) = exchange.service().and_then(|service| service.upstream.proxy_protocol) {
            exchange.announce(version, self.client.stream.local_address());
        }
        let service = exchange.service();
        let limits = &exchange.edge().limits;
        let asked = Asked {
            version: request.version,
            to_head: request.method == Method::HEAD,
            websocket: exchange.websocket(),
            // Nominated, it does not reach the upstream, and nobody would answer it.
            expects: expects && is_http_11 && !framing.is_empty() && !wants(b"expect"),
            keep_alive: !last && !wants(b"close") && (is_http_11 || wants(b"keep-alive")),
            closes: wants(b"close"),
            hedges: true,
            times: Times {
                body: limits.body_timeout,
                idle: service.map_or(limits.body_timeout, |service| service.timeouts.idle),
                tunnel: service.map_or(limits.body_timeout, |service| service.timeouts.tunnel_idle),
                min_rate: limits.min_rate,
            },
        };
        if let Some(outcome) = exchange.refusal() {
            let keep = asked.keep_alive && framing.is_empty() && outcome.keeps_connection();
            self.client.input.consume(length);
            return Err(Refused(asked, outcome, keep));
        }
        let (max_body, replay) = service.map_or((0, 0), |service| (service.max_body, service.retry.replay));
        let nominates = said.nominates(&request.lines);
        let mut out = Scratch::take();
        request.rewrite(&mut out, exchange.edge(), &exchange.forward(true), framing, asked.expects);
        self.client.input.consume(length);
        let mut upload = Upload::new(out, framing, max_body, replay);
        if nominates {
            upload.drop_trailers();
        }
        Ok((asked, upload))
    }

    /// A connection for that attempt: a kept one, or a new one in time. `None`: another region has its first, and is the next attempt.
    async fn connect(&mut self, attempt: &Attempt) -> Result<Option<Box<Upstream<C::Stream>>>, Failure> {
        let begun = self.at;
        let first = match self.beside.take() {
            Some(Entrant::Kept(upstream)) => return Ok(Some(upstream)),
            Some(Entrant::New(connecting)) if connecting.is_for(attempt) => connecting,
            _ => {
                if !attempt.fresh
                    && let Some(upstream) = self.core.kept(attempt, begun)
                {
                    return Ok(Some(upstream));
                }
                let exchange = self.exchange.as_ref();
                match exchange.and_then(|exchange| Connecting::begin(self.core, exchange, attempt, begun)) {
                    Some(connecting) => connecting,
                    // No more are allowed, but another worker may have one that it does not use.
                    None if attempt.fresh => return Err(Failure::NoRoom),
                    None => {
                        return self.core.kept_by_others(attempt, begun).map(Some).ok_or(Failure::NoRoom);
                    }
                }
            }
        };
        let patience = self.exchange.as_ref().and_then(Exchange::race_after);
        let Connection { core, client, exchange, at, .. } = self;
        let enter = |now| {
            let exchange = exchange.as_mut()?;
            let rival = exchange.rival(now)?;
            let entrant = Entrant::enter(core, exchange, &rival, now);
            if entrant.is_none() {
                exchange.hedge_lost();
            }
            entrant
        };
        match race(first, patience, &mut client.timer, at, enter).await {
            Won::First(upstream) => Ok(Some(upstream)),
            Won::Failed(failure, rival) => {
                self.beside = rival.map(Entrant::New);
                Err(failure)
            }
            Won::Rival(upstream, first) => {
                first.leave(self.core);
                if let Some(exchange) = &mut self.exchange {
                    exchange.overtaken(self.at);
                }
                self.beside = Some(Entrant::Kept(upstream));
                Ok(None)
            }
        }
    }

    /// Asks another region as well, if one may be asked; without one, the first goes on alone. Leaves in `upstream` who answers, or
    /// returns how the attempt ended.
    async fn hedge(&mut self, upstream: &mut Box<Upstream<C::Stream>>, upload: &Upload) -> Result<(), End> {
        let Connection { core, client, exchange, at, .. } = self;
        let (Some(exchange), Some(request)) = (exchange.as_mut(), upload.kept()) else { return Ok(()) };
        let Some(attempt) = exchange.hedge(*at) else { return Ok(()) };
        let Some(second) = Entrant::enter(core, exchange, &attempt, *at) else {
            exchange.hedge_lost();
            return Ok(());
        };
        let due = exchange.answer_due(true, *at);
        match hedge(client, upstream, second, request, due, at, || exchange.rival_lost()).await {
            Hedged::First => exchange.hedge_lost(),
            Hedged::Second(second) => {
                // Which closes the other's connection.
                *upstream = second;
                exchange.hedge_won();
            }
            Hedged::Failed(failure) => {
                exchange.hedge_failed();
                return Err(End::Failed(failure));
            }
            Hedged::ClientGone => {
                exchange.hedge_lost();
                return Err(End::Over(Outcome::ClientGone));
            }
        }
        Ok(())
    }

    /// The request ends with an answer of ours, after attempts or while its body was on its way.
    async fn refuse_after(&mut self, asked: Asked, upload: &mut Upload, outcome: Outcome) -> Next {
        if let Some(exchange) = &mut self.exchange {
            exchange.end(outcome);
        }
        if outcome.keeps_connection() {
            // A body that is at hand need not cost the connection; whether it was a good one shows in whether it ended.
            let _ = upload.stage(&mut self.client.input);
        }
        let keep = asked.keep_alive && upload.ended() && outcome.keeps_connection() && !self.draining.is_on();
        self.answer(asked, outcome, keep, upload.payload()).await
    }

    async fn refuse(&mut self, asked: Asked, outcome: Outcome, keep: bool) -> Next {
        let keep = keep && !self.draining.is_on();
        self.answer(asked, outcome, keep, 0).await
    }

    /// Sends what an outcome calls for, and ends the request.
    async fn answer(&mut self, asked: Asked, outcome: Outcome, keep: bool, bytes_in: u64) -> Next {
        let mut bytes = std::mem::take(&mut self.owed);
        if outcome.status() == 0 {
            self.finish(0, bytes_in, 0);
            return Next::Close;
        }
        let is_call = self.exchange.as_ref().is_some_and(Exchange::is_call);
        let more = self.exchange.iter().flat_map(Exchange::own_fields);
        let body = self.exchange.as_ref().map_or(outcome.body(), |exchange| exchange.own_body(outcome));
        let (status, length) = write::answer(&mut bytes, (outcome, body), keep, asked, is_call, wall(), more);
        let sent = self.send(&bytes, asked.times.idle).await;
        self.at = now();
        match sent {
            true => self.finish(status, bytes_in, length),
            false => self.finish(0, bytes_in, 0),
        }
        if keep && sent { Next::Request } else { Next::Close }
    }

    /// Writes all of `bytes`, as long as the client takes some of them from time to time.
    async fn send(&mut self, mut bytes: &[u8], patience: Duration) -> bool {
        let Client { stream, timer, .. } = &mut self.client;
        timer.set(Some(now() + patience));
        poll_fn(|cx| {
            while !bytes.is_empty() {
                match Pin::new(&mut *stream).poll_write(cx, bytes) {
                    Poll::Ready(Ok(count @ 1..)) => bytes = &bytes[count..],
                    Poll::Ready(_) => return Poll::Ready(false),
                    Poll::Pending => return timer.poll(cx).map(|()| false),
                }
            }
            match Pin::new(&mut *stream).poll_flush(cx) {
                Poll::Ready(flushed) => Poll::Ready(flushed.is_ok()),
                Poll::Pending => timer.poll(cx).map(|()| false),
            }
        })
        .await
    }

    /// Serving the request panicked: a mistake of ours, and of this request only.
    async fn panicked(&mut self, panic: &str) -> Next {
        self.core.metrics.panicked(Mover::Native, panic);
        let Some(exchange) = &mut self.exchange else { return Next::Close };
        let begun = exchange.has_begun();
        exchange.end(Outcome::Internal);
        if begun {
            self.finish(0, 0, 0);
            return Next::Reset;
        }
        self.answer(Asked::unknown(), Outcome::Internal, false, 0).await
    }

    fn finish(&mut self, status: u16, bytes_in: u64, bytes_out: u64) {
        self.beside = None;
        self.turn = None;
        if let Some(exchange) = self.exchange.take() {
            exchange.finish(status, bytes_in, bytes_out, self.at);
        }
    }

    /// A head as the phases see it, complete at this moment.
    fn head<'h, 'b>(
        &self,
        method: &'h Method,
        target: &'h [u8],
        version: Version,
        fields: &'h Lines<'b>,
    ) -> Head<'h, Lines<'b>>
    where
        'a: 'h,
    {
        Head {
            method,
            target,
            version: if self.from.http2 { Version::HTTP_2 } else { version },
            fields,
            peer: self.from.peer,
            scheme: self.from.scheme,
            bound: self.from.bound,
            mover: Mover::Native,
            now: self.at,
            at_us: unix_us(),
            chance: fastrand::u64(..),
            id: fastrand::u128(..),
        }
    }

    /// A request of which only the beginning of what came is known.
    fn garbled(&self, outcome: Outcome) -> Exchange {
        let bytes = self.client.input.bytes();
        let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        let shown = &line[..line.len().min(GARBLED)];
        let (method, lines) = (Method::from_bytes(b"-").unwrap_or_default(), Lines::of(b""));
        let head = self.head(&method, shown, Version::HTTP_09, &lines);
        Exchange::refused(&self.core.shared, &head, outcome)
    }
}

/// What the bytes at hand come to, if anything yet: a head of at most so many bytes, or nothing that could become one. `seen` is what was
/// searched for its end before.
fn look(bytes: &[u8], seen: &mut usize, most: usize, uri: usize) -> Option<Waited> {
    let bad = Some(Waited::Refused(Outcome::BadRequest));
    match bytes {
        [] | [b'\r'] => return None,
        // No method begins like this: whatever speaks here, it is not HTTP.
        [byte, ..] if !is_token_byte(*byte) => return bad,
        _ => {}
    }
    // Usually all of it comes at once, and nothing else: then reading it is finding its end.
    if *seen == 0 && bytes.len() <= most && bytes.ends_with(b"\r\n\r\n") {
        return Some(Waited::Head);
    }
    match head::end(bytes, seen) {
        Err(head::BareLine) => bad,
        Ok(Some(length)) if length <= most => Some(Waited::Head),
        // Not HTTP, or HTTP/0.9: whoever sent that may wait for an answer instead of going on.
        Ok(None) if !head::may_begin(bytes) => bad,
        Ok(None) if bytes.len() < most => None,
        _ => {
            let one_line = memchr::memchr(b'\n', bytes).is_none_or(|end| end > uri + SLACK);
            Some(Waited::Refused(if one_line { Outcome::TargetTooLong } else { Outcome::HeadTooLarge }))
        }
    }
}

impl Asked {
    /// Nothing is known of the request but that it came.
    fn unknown() -> Asked {
        let patience = Duration::from_secs(10);
        Asked {
            version: Version::HTTP_11,
            to_head: false,
            websocket: false,
            expects: false,
            keep_alive: false,
            closes: false,
            hedges: false,
            times: Times { body: patience, idle: patience, tunnel: patience, min_rate: 0 },
        }
    }
}

fn unix_us() -> u64 {
    wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
