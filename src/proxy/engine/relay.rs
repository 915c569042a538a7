//! One request and its answer between a client and one upstream connection, both directions at once.
//!
//! No task, channel or lock: one poll moves what can be moved either way, then sets the connection's timer for whatever must happen next. Back
//! pressure is in the buffers: what was read is written before more is read. The answer's head is read, judged
//! by the phases, written anew, and its body passes straight from the buffer it was read into ([`Relay::download`]), or past us
//! ([`splice`](super::splice)).

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use http::Version;

use super::body::{self, Body, Step};
use super::buffer::{Buffer, SIZE, Scratch};
use super::draining::Draining;
use super::splice::{self, Broke, Pipe, Side};
use super::timer::Timer;
use super::tunnel::{Tunnel, Way};
use super::upload::{Upload, WINDOW, is_spent};
use super::upstream::Upstream;
use super::{date, head, write};
use crate::proxy::headers::Said;
use crate::proxy::retry::Failure;
use crate::proxy::{Exchange, Fields, Framing, Outcome, framing, headers};

/// How often a waiting request looks whether its endpoint was found down.
const LOOK: Duration = Duration::from_millis(100);

/// How often a stream looks whether its region is done with. It may be one of thousands that are silent.
const STREAM_LOOK: Duration = Duration::from_secs(1);

/// How long the ends of a tunnel have to finish the frame they are at, and to close, once it has to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a client that closed its side is thought to wait for an answer still to begin. It may have left altogether, which nothing shows.
const HALF_CLOSED: Duration = Duration::from_secs(3);

/// Payload behind a head that is copied to it; more is written beside it.
const COPIED: usize = 2 << 10;

/// The most informational answers before a final one.
const INTERIMS: u8 = 32;

/// Over how long the least rate of `[limits] min_rate` is measured, of bytes that a client sends.
const PACE_WINDOW: Duration = Duration::from_secs(5);

/// Bytes by which a client's taking may be seen too late: the kernel takes them from us in steps, and the client's kernel from ours.
const STEPS: u64 = 128 << 10;

/// The client's side of a connection.
pub(super) struct Client<S> {
    pub(super) stream: S,
    pub(super) input: Buffer,
    pub(super) timer: Timer,
    /// Since when its side is closed.
    pub(super) closed: Option<Instant>,
}

/// What of a request its relay has to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) version: Version,
    pub(super) to_head: bool,
    pub(super) websocket: bool,
    /// It waits for `100 Continue`.
    pub(super) expects: bool,
    /// The client's connection may serve another request.
    pub(super) keep_alive: bool,
    /// The client said that this is its last request.
    pub(super) closes: bool,
    /// It may be sent to another region as well, if its service wants that.
    pub(super) hedges: bool,
    pub(super) times: Times,
}

/// How long what may be silent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// A client inside its body.
    pub(super) body: Duration,
    /// Whoever has to take bytes, and an upstream inside its body.
    pub(super) idle: Duration,
    /// Both directions of a tunnel.
    pub(super) tunnel: Duration,
    /// Bytes a second that a client has to send or take; 0: any.
    pub(super) min_rate: u64,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The answer is with the client, whole.
    Complete,
    /// The attempt failed before anything of a final answer was passed on.
    Failed(Failure),
    /// The answer was thrown away, because another attempt is planned.
    Elsewhere,
    /// The upstream broke inside an answer that the client has begun to get.
    Broken,
    /// The request ends for another reason than its upstream.
    Over(Outcome),
}

/// Instead of an end: the request waits so long that another region is to be asked as well; nothing of an answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late;

/// Where an answer is.
#[derive(Debug)]
enum Phase {
    Head,
    Body(Body),
    /// Nothing more comes from the upstream; what is left is to be written.
    Over,
    Tunnel(Tunnel),
}

/// See the module.
pub(super) struct Relay<'a, S, U> {
    client: &'a mut Client<S>,
    upstream: &'a mut Upstream<U>,
    exchange: &'a mut Exchange,
    upload: &'a mut Upload,
    asked: Asked,
    draining: &'a Draining<'a>,
    /// When it was looked last whether the endpoint was found down, for a request that may leave it, or whether a stream has to end.
    looked: Option<Instant>,
    phase: Phase,
    /// When it was looked at last.
    pub(super) now: Instant,
    is_new: bool,
    /// How much of the upstream's input was searched for the end of a head.
    seen: usize,
    interims: u8,
    continued: bool,
    /// Bytes for the client: heads, and bodies that do not pass as they are.
    out: Scratch,
    out_sent: usize,
    /// Payload that passes as it is: at the front of the upstream's input, or in `pipe`.
    ready: usize,
    /// There only with bytes in it; then the upstream's input is empty, and so is `out`.
    pipe: Option<Pipe>,
    /// The kernel does not move this answer's payload: it is copied.
    copies: bool,
    /// The last read filled its buffer.
    is_rich: bool,
    chunk: bool,
    broken: bool,
    unflushed: bool,
    /// When another region is to be asked as well.
    hedge_at: Option<Instant>,
    /// When the last byte of the request was sent.
    asked_at: Option<Instant>,
    head_sent_at: Option<Instant>,
    up_moved: Instant,
    down_moved: Instant,
    up_pace: Pace,
    down_pace: Pace,
    /// Status of the final answer, once its head is on its way to the client.
    pub(super) status: Option<u16>,
    /// Body bytes for the client, written or about to be.
    payload_out: u64,
    /// Bytes from the client in a tunnel.
    pub(super) tunnel_in: u64,
    pub(super) keep_client: bool,
    keep_upstream: bool,
    /// The end of the connection is the end of the answer.
    pub(super) until_close: bool,
}

/// Bytes since a moment.
#[derive(Clone, Copy, Debug)]
struct Pace {
    since: Instant,
    bytes: u64,
}

/// What a deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Answer,
    Hedge,
    Look,
    LookForEnd,
    Farewell,
    HalfClosed,
    ClientBody,
    UpstreamTakes,
    ClientTakes,
    UpstreamBody,
    UpPace,
    DownPace,
    Tunnel,
}

impl<'a, S, U> Relay<'a, S, U>
where
    S: Side,
    U: Side,
{
    pub(super) fn new(
        client: &'a mut Client<S>,
        upstream: &'a mut Upstream<U>,
        exchange: &'a mut Exchange,
        upload: &'a mut Upload,
        asked: Asked,
        draining: &'a Draining<'a>,
        now: Instant,
    ) -> Relay<'a, S, U> {
        let sent_at = upload.is_sent().then_some(now);
        let looked = exchange.may_leave().then_some(now);
        let pace = Pace { since: now, bytes: 0 };
        Relay {
            client,
            upstream,
            exchange,
            upload,
            asked,
            draining,
            looked,
            phase: Phase::Head,
            now,
            is_new: true,
            seen: 0,
            interims: 0,
            continued: false,
            out: Scratch::take(),
            out_sent: 0,
            ready: 0,
            pipe: None,
            copies: false,
            is_rich: false,
            chunk: false,
            broken: false,
            unflushed: false,
            hedge_at: None,
            asked_at: sent_at,
            head_sent_at: sent_at,
            up_moved: now,
            down_moved: now,
            up_pace: pace,
            down_pace: pace,
            status: None,
            payload_out: 0,
            tunnel_in: 0,
            keep_client: false,
            keep_upstream: false,
            until_close: false,
        }
    }

    /// Whether the upstream's connection can serve another request: the answer ended where its framing says, nothing came
    /// after it, and all of the request was taken.
    pub(super) fn upstream_is_clean(&self) -> bool {
        self.keep_upstream && !self.broken && self.upstream.input.is_empty() && self.upload.is_sent()
    }

    /// Body bytes that the client took: what waited in the end does not count, its chunks' framing with it.
    pub(super) fn payload_out(&self) -> u64 {
        self.payload_out.saturating_sub((self.out.len() - self.out_sent + self.ready) as u64)
    }

    /// What was to be written to the client and was not.
    pub(super) fn take_unsent(&mut self) -> Scratch {
        let mut unsent = std::mem::take(&mut self.out);
        unsent.drain(..std::mem::take(&mut self.out_sent));
        unsent
    }

    /// Runs to the end, or until another region is to be asked as well; then it can be made anew and run on.
    pub(super) async fn run(&mut self) -> Result<End, Late> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, Late>> {
        loop {
            // The clock is read once for each time that the task is woken; the first time, who made this has just read it.
            if !std::mem::take(&mut self.is_new) {
                self.now = super::now();
            }
            if let Err(end) = self.advance(cx, self.now) {
                return Poll::Ready(Ok(end));
            }
            let mut first = None;
            self.deadlines(|at, _| first = Some(first.map_or(at, |first: Instant| first.min(at))));
            self.client.timer.set(first);
            if self.client.timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.now = super::now();
            if let Some(end) = self.expire(self.now) {
                return Poll::Ready(end);
            }
        }
    }

    /// Moves whatever can be moved.
    fn advance(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        // Each direction goes as far as it can, whatever the other does, so once is enough; but a tunnel may begin.
        loop {
            let again = match self.phase {
                Phase::Tunnel(_) if self.out.is_empty() => self.tunnel(cx, now)?,
                // An answer that is all there is the end: nobody needs to look at the client before it is written.
                _ if self.upload.is_sent() => {
                    let opens = self.download(cx, now)?;
                    self.upload(cx, now)?;
                    opens
                }
                _ => {
                    self.upload(cx, now)?;
                    self.download(cx, now)?
                }
            };
            if !again {
                break;
            }
        }
        // Rates are measured while the client is waited for, and only then.
        if !self.waits_for_body() {
            self.up_pace = Pace { since: now, bytes: 0 };
        }
        if !self.is_blocked() {
            self.down_pace = Pace { since: now, bytes: 0 };
        }
        Ok(())
    }

    /// Whether the client has to send more of its body before anything goes on.
    fn waits_for_body(&self) -> bool {
        self.upload.wants() && self.upload.pending().is_empty() && !self.awaits_continue()
    }

    /// Whether the client has to take bytes before anything goes on.
    fn is_blocked(&self) -> bool {
        self.out_sent < self.out.len() || self.ready > 0 || self.unflushed
    }

    /// From the client to the upstream, as far as it goes; then a look whether the client is still there.
    fn upload(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        loop {
            let mut again = false;
            self.upload.stage(&mut self.client.input).map_err(End::Over)?;
            if self.upload.waits_to_send() {
                match Pin::new(&mut self.upstream.stream).poll_write(cx, self.upload.pending()) {
                    Poll::Ready(Ok(count @ 1..)) => {
                        self.upload.advance(count);
                        self.up_moved = now;
                        self.head_sent_at.get_or_insert(now);
                        // Unless that was all there is to send now.
                        again = self.upload.waits_to_send() || !self.upload.ended() && !self.client.input.is_empty();
                    }
                    // It may have answered before it stopped reading: the answer decides.
                    Poll::Ready(_) => self.upload.refuse(),
                    Poll::Pending => {}
                }
                if self.upload.is_sent() {
                    self.asked_at = Some(now);
                    if self.status.is_none() {
                        self.exchange.asked(now);
                        if self.asked.hedges {
                            self.hedge_at = self.exchange.hedge_after().map(|after| now + after);
                        }
                    }
                    // What cannot be flushed now is flushed by reading: streams that buffer flush when they are read.
                    let _ = Pin::new(&mut self.upstream.stream).poll_flush(cx);
                }
            }
            let wants = self.upload.wants();
            let listens = self.upload.ended() && self.client.closed.is_none();
            if (wants || listens) && self.client.input.has_room() {
                match self.client.input.poll_fill(&mut self.client.stream, cx) {
                    Poll::Ready(Ok(0)) if wants => return Err(End::Over(Outcome::ClientGone)),
                    Poll::Ready(Ok(0)) => self.client.closed = Some(now),
                    Poll::Ready(Ok(count)) => {
                        self.up_moved = now;
                        self.up_pace.bytes += count as u64;
                        // Read on until there is nothing: only then is the next byte, or the client's leaving, noticed.
                        again = true;
                    }
                    Poll::Ready(Err(_)) => return Err(End::Over(Outcome::ClientGone)),
                    Poll::Pending => {}
                }
            }
            if !again {
                return Ok(());
            }
        }
    }

    /// From the upstream to the client, as far as it goes. Returns whether a tunnel is open: its head is written.
    fn download(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        loop {
            while let Phase::Head = self.phase {
                // Usually all of it came at once: then reading it is finding its end.
                if self.seen == 0 && self.head(now)? {
                    continue;
                }
                match head::end(self.upstream.input.bytes(), &mut self.seen) {
                    Ok(Some(_)) if self.head(now)? => {}
                    Ok(None) if self.upstream.input.len() < head::RESPONSE_BYTES => break,
                    _ => return Err(End::Failed(Failure::BadAnswer)),
                }
            }
            self.take_payload();
            let mut again = self.write(cx, now)?;
            if let Phase::Tunnel(_) = self.phase
                && self.out.is_empty()
            {
                return Ok(true);
            }
            let reads = match &self.phase {
                Phase::Head => true,
                // A body that is all there is not read on: that the connection ends after it is no fault.
                Phase::Body(body) => self.upstream.input.is_empty() && self.pipe.is_none() && !body.is_done(),
                Phase::Over | Phase::Tunnel(_) => false,
            };
            if reads && self.out.len() - self.out_sent < WINDOW {
                again |= self.read(cx, now)?;
            }
            if !again {
                return Ok(false);
            }
        }
    }

    /// Reads once from the upstream.
    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if !self.upstream.input.has_room() {
            // A head that does not fit: bodies are taken as they come.
            self.upstream.input.grow();
        }
        let mut spliced = None;
        if self.is_rich {
            spliced = self.splice(cx);
            if spliced.is_none() {
                self.upstream.input.widen();
            }
        }
        let begun = !self.upstream.input.is_empty() || self.interims > 0;
        let read = match spliced {
            Some(spliced) => spliced,
            None => self.upstream.input.poll_fill(&mut self.upstream.stream, cx),
        };
        match read {
            Poll::Ready(Ok(count @ 1..)) => {
                self.down_moved = now;
                if begun || self.status.is_some() {
                    self.exchange.heard();
                }
                // More came than there was room for: a long body, of which large pieces cost less.
                self.is_rich = if self.pipe.is_some() { count >= SIZE } else { !self.upstream.input.has_room() };
                Ok(true)
            }
            Poll::Ready(ended) => {
                match &self.phase {
                    Phase::Head => return Err(End::Failed(self.lost(begun))),
                    Phase::Body(body) => self.broken = ended.is_err() || !body.ends_with_connection(),
                    Phase::Over | Phase::Tunnel(_) => {}
                }
                self.over();
                Ok(true)
            }
            Poll::Pending => Ok(false),
        }
    }

    /// Lets the kernel take what comes, if it may pass by us. `None`: it is to be read.
    fn splice(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Result<usize>>> {
        let Phase::Body(body) = &mut self.phase else { return None };
        let left = body.left().filter(|left| *left >= splice::LEAST)?;
        if self.copies || !self.out.is_empty() {
            return None;
        }
        let (from, Some(_)) = (self.upstream.stream.socket()?, self.client.stream.socket()) else { return None };
        let Some(mut pipe) = Pipe::take() else {
            self.copies = true;
            return None;
        };
        match pipe.poll_fill(from, left, cx) {
            Poll::Ready(Ok(count @ 1..)) => {
                body.went_by(count as u64);
                self.payload_out += count as u64;
                self.ready = count;
                self.pipe = Some(pipe);
                Some(Poll::Ready(Ok(count)))
            }
            Poll::Ready(Err(_)) => {
                // If it is the connection that is broken, reading fails too, or finds its end too early.
                self.copies = true;
                None
            }
            read => Some(read),
        }
    }

    /// What it means that the upstream's connection ended before a final head.
    fn lost(&self, begun: bool) -> Failure {
        let reused = self.upstream.reused && !begun;
        match self.upload.begun() {
            true => match self.upstream.stream.broke() {
                Broke::Connection => Failure::Lost { reused },
                Broke::ConnectionUnseen => Failure::Stale,
                Broke::Request => Failure::Lost { reused: false },
                Broke::RequestUnseen => Failure::NoRoom,
                Broke::Nonsense => Failure::BadAnswer,
            },
            false if reused => Failure::Stale,
            false => Failure::NotConnected,
        }
    }

    /// Takes the payload that is at hand: into `out`, or as it is when nothing but a head waits before it.
    fn take_payload(&mut self) {
        let Phase::Body(body) = &mut self.phase else { return };
        while !self.upstream.input.is_empty() && self.ready == 0 && self.out.len() - self.out_sent < WINDOW {
            match body.step(self.upstream.input.bytes()) {
                Ok(Step::Data { skip, len }) => {
                    self.upstream.input.consume(skip);
                    self.payload_out += len as u64;
                    if self.chunk {
                        body::write_chunk(&mut self.out, &self.upstream.input.bytes()[..len]);
                    } else if !self.out.is_empty() && (len <= COPIED || self.out_sent > 0) {
                        self.out.extend_from_slice(&self.upstream.input.bytes()[..len]);
                    } else {
                        self.ready = len;
                        break;
                    }
                    self.upstream.input.consume(len);
                }
                Ok(Step::More(skip)) => self.upstream.input.consume(skip),
                Ok(Step::End(skip)) => {
                    self.upstream.input.consume(skip);
                    break;
                }
                Err(_) => {
                    self.broken = true;
                    return self.over();
                }
            }
        }
        if body.is_done() && self.ready == 0 {
            self.over();
        }
    }

    /// Nothing more comes.
    fn over(&mut self) {
        if let Phase::Body(body) = std::mem::replace(&mut self.phase, Phase::Over)
            && self.chunk
            && !self.broken
        {
            body.write_end(&mut self.out);
        }
    }

    /// Writes to the client what waits; ends the relay when the answer is over and written.
    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let waited = self.ready;
        let drained = self.drain(cx, now)?;
        let mut moved = self.ready < waited;
        if !drained {
            return Ok(moved);
        }
        loop {
            let waits = &self.out[self.out_sent..];
            let direct = &self.upstream.input.bytes()[..self.ready];
            let stream = Pin::new(&mut self.client.stream);
            let written = match (waits, direct) {
                ([], []) => break,
                (waits, []) => stream.poll_write(cx, waits),
                ([], direct) => stream.poll_write(cx, direct),
                (waits, direct) => stream.poll_write_vectored(cx, &[IoSlice::new(waits), IoSlice::new(direct)]),
            };
            match written {
                Poll::Ready(Ok(count @ 1..)) => {
                    let first = count.min(self.out.len() - self.out_sent);
                    self.out_sent += first;
                    is_spent(&mut self.out, &mut self.out_sent);
                    self.ready -= count - first;
                    self.upstream.input.consume(count - first);
                    self.took(count, now);
                    moved = true;
                }
                Poll::Ready(_) => return Err(End::Over(Outcome::ClientGone)),
                Poll::Pending => return Ok(moved),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.client.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(_)) => return Err(End::Over(Outcome::ClientGone)),
                Poll::Pending => return Ok(moved),
            }
        }
        match self.phase {
            Phase::Over if self.broken => Err(End::Broken),
            Phase::Over => Err(End::Complete),
            _ => Ok(moved),
        }
    }

    /// Lets the kernel pass on what is in the pipe. Returns whether that was all.
    #[inline]
    fn drain(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        while let (Some(pipe), Some(to)) = (&mut self.pipe, self.client.stream.socket()) {
            match pipe.poll_drain(to, cx) {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.ready -= count;
                    if self.ready == 0 {
                        self.pipe = None;
                    }
                    self.took(count, now);
                }
                Poll::Ready(_) => return Err(End::Over(Outcome::ClientGone)),
                Poll::Pending => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The client took so many bytes.
    fn took(&mut self, count: usize, now: Instant) {
        self.down_moved = now;
        self.down_pace.bytes += count as u64;
        self.unflushed = true;
    }

    /// If a whole head is there: an informational one goes by, a final one decides what follows.
    fn head(&mut self, now: Instant) -> Result<bool, End> {
        let bad = End::Failed(Failure::BadAnswer);
        let asked = self.asked;
        let (mut head, length) = match head::read_response(self.upstream.input.bytes()) {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(false),
            Err(head::NoAnswer) => return Err(bad),
        };
        let (status, from_http_10) = (head.status, head.version == Version::HTTP_10);
        let Ok(framing) = framing::response(asked.to_head, status, &head.lines, from_http_10) else { return Err(bad) };
        let version = if from_http_10 { "1.0" } else { "1.1" };
        let upgraded = status == 101;
        if status < 200 && !upgraded {
            self.interims += 1;
            if self.interims > INTERIMS || from_http_10 {
                return Err(bad);
            }
            let to_http_11 = asked.version == Version::HTTP_11;
            if to_http_11 && (status != 100 || asked.expects) {
                self.exchange.interim_passed_on();
                // It cannot go elsewhere any more, so there is nothing to look out for.
                self.looked = None;
                headers::response(&mut head.lines, self.exchange.via(), version, false);
                write::remove_framing(&mut head.lines);
                write::status(&mut self.out, &head);
                head.lines.write_to(&mut self.out);
                self.out.extend_from_slice(b"\r\n");
            }
            if status == 100 {
                // The client's time for its body begins now.
                self.continued = true;
                self.up_moved = now;
            }
        } else {
            if upgraded && !(asked.websocket && headers::is_upgrade(&head.lines)) {
                return Err(bad);
            }
            if self.exchange.response_head(status, self.upload.replayable(), now) {
                return Err(End::Elsewhere);
            }
            self.exchange.passed_on();
            self.upload.give_back();
            self.status = Some(status);
            let said = Said::of(&head.lines);
            let closes = said.has(b"close", &head.lines);
            self.keep_upstream = !closes && !from_http_10 && !upgraded && framing != Framing::UntilClose;
            let has_body = matches!(framing, Framing::Chunked | Framing::UntilClose);
            self.chunk = has_body && asked.version == Version::HTTP_11;
            self.until_close = has_body && !self.chunk;
            self.keep_client =
                asked.keep_alive && self.upload.ended() && !upgraded && !self.until_close && !self.draining.is_on();
            let nominates = said.nominates(&head.lines);
            headers::response(&mut head.lines, self.exchange.via(), version, upgraded);
            self.exchange.complete(&mut head.lines, upgraded);
            // What a body would have been is told too, in our own digits.
            let described = if asked.to_head || status == 304 { framing::described(&head.lines) } else { None };
            write::remove_framing(&mut head.lines);
            write::status(&mut self.out, &head);
            head.lines.write_to(&mut self.out);
            match (framing, described) {
                (Framing::Length(length), _) | (_, Some(length)) => write::length(&mut self.out, length),
                _ if self.chunk => self.out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
                _ => {}
            }
            if !head.lines.has("date") && !upgraded {
                date::line(&mut self.out, super::wall());
            }
            if !upgraded {
                write::connection(&mut self.out, self.keep_client, asked.version);
            }
            self.out.extend_from_slice(b"\r\n");
            self.phase = match upgraded {
                true => Phase::Tunnel(Tunnel::default()),
                false => {
                    let mut body = Body::of_answer(framing);
                    if nominates {
                        body.drop_trailers();
                    }
                    Phase::Body(body)
                }
            };
            self.looked = Some(now);
        }
        self.upstream.input.consume(length);
        self.seen = 0;
        Ok(true)
    }

    /// Bytes both ways, until both sides closed theirs.
    fn tunnel(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let Phase::Tunnel(tunnel) = &mut self.phase else { return Ok(false) };
        let (client, upstream) = (&mut *self.client, &mut *self.upstream);
        let leaving = tunnel.leaving.is_some();
        let up = tunnel.up.pass(&mut client.stream, &mut client.input, &mut upstream.stream, leaving, cx);
        let down = tunnel.down.pass(&mut upstream.stream, &mut upstream.input, &mut client.stream, leaving, cx);
        self.tunnel_in += up.bytes;
        self.payload_out += down.bytes;
        if leaving {
            let is_over = |way: &Way| way.told && way.ended;
            let over = up.broken || down.broken || is_over(&tunnel.up) && is_over(&tunnel.down);
            return if over { Err(End::Over(Outcome::Drained)) } else { Ok(false) };
        }
        // A tunnel has no other end than one side's leaving, in whatever way it leaves.
        if up.broken || down.broken || tunnel.up.told && tunnel.down.told {
            return Err(End::Complete);
        }
        if up.moved || down.moved {
            self.down_moved = now;
        }
        Ok(up.moved || down.moved)
    }

    /// Tells what is due when, as things are.
    fn deadlines(&self, mut each: impl FnMut(Instant, Due)) {
        let times = &self.asked.times;
        if let Phase::Tunnel(tunnel) = &self.phase {
            if let Some(since) = tunnel.leaving {
                each(since + FAREWELL, Due::Farewell);
                return;
            }
            let half = tunnel.up.ended || tunnel.down.ended;
            if let Some(looked) = self.looked {
                each(looked + STREAM_LOOK, Due::LookForEnd);
            }
            each(self.down_moved + if half { times.idle.min(times.tunnel) } else { times.tunnel }, Due::Tunnel);
            return;
        }
        if let Phase::Head = self.phase {
            each(self.answer_due(), Due::Answer);
            // An answer that has begun to come is waited for.
            let waits = self.upload.replayable() && self.upstream.input.is_empty();
            if let (Some(looked), true) = (self.looked, waits) {
                each(looked + LOOK, Due::Look);
            }
            if let (Some(at), true) = (self.hedge_at, waits && self.upload.is_sent() && self.interims == 0) {
                each(at, Due::Hedge);
            }
            if let Some(closed) = self.client.closed {
                each(closed.max(self.exchange.started()) + HALF_CLOSED, Due::HalfClosed);
            }
        }
        if let (Phase::Body(_), Some(looked)) = (&self.phase, self.looked) {
            each(looked + STREAM_LOOK, Due::LookForEnd);
        }
        let (waits_for_body, blocked) = (self.waits_for_body(), self.is_blocked());
        if self.upload.waits_to_send() {
            each(self.up_moved + times.idle, Due::UpstreamTakes);
        } else if waits_for_body {
            each(self.up_moved + times.body, Due::ClientBody);
        }
        if blocked {
            each(self.down_moved + times.idle, Due::ClientTakes);
        } else if let Phase::Body(_) = self.phase {
            // An upstream that answered early may wait for the rest of the request before it goes on.
            let moved = if self.upload.is_sent() { self.down_moved } else { self.down_moved.max(self.up_moved) };
            each(moved + times.idle, Due::UpstreamBody);
        }
        if times.min_rate > 0 {
            if waits_for_body {
                each(self.up_pace.since + PACE_WINDOW, Due::UpPace);
            }
            if blocked {
                each(self.down_pace.since + taking_window(times.min_rate), Due::DownPace);
            }
        }
    }

    /// The client holds its body back until the upstream says something.
    fn awaits_continue(&self) -> bool {
        self.asked.expects && !self.continued && self.upload.payload() == 0 && !self.upload.ended()
    }

    /// By when a final answer must begin: its share runs from the moment at which nothing but the upstream was waited for.
    fn answer_due(&self) -> Instant {
        let from = match self.asked_at {
            Some(at) => Some(at),
            None if self.awaits_continue() => self.head_sent_at,
            None => None,
        };
        from.map_or_else(|| self.exchange.deadline(), |from| self.exchange.answer_due(true, from))
    }

    /// The timer went off: what is over, if anything.
    fn expire(&mut self, now: Instant) -> Option<Result<End, Late>> {
        let mut due = ArrayVec::<_, 10>::new();
        self.deadlines(|at, what| {
            if at <= now {
                due.push(what);
            }
        });
        due.into_iter().find_map(|due| self.pass_due(due, now))
    }

    fn pass_due(&mut self, due: Due, now: Instant) -> Option<Result<End, Late>> {
        match due {
            // Until the request is complete, nobody but the client was waited for.
            Due::Answer if self.waits_for_body() => Some(Ok(End::Over(Outcome::RequestTimeout))),
            Due::Answer => Some(Ok(End::Failed(Failure::Silent))),
            Due::UpstreamTakes if self.status.is_some() => {
                // It has answered, and wants no more of the request.
                self.upload.refuse();
                None
            }
            Due::UpstreamTakes => Some(Ok(End::Failed(Failure::Silent))),
            Due::Look => {
                self.looked = Some(now);
                let leaves =
                    self.exchange.vigil()?.is_lost(now) && self.exchange.evacuate(self.upload.replayable(), now);
                leaves.then_some(Ok(End::Elsewhere))
            }
            Due::LookForEnd => {
                self.looked = Some(now);
                match (self.exchange.has_to_end(), &mut self.phase) {
                    (true, Phase::Tunnel(tunnel)) => tunnel.leave(now, fastrand::u32(..).to_ne_bytes()),
                    (true, Phase::Body(_)) => return Some(Ok(End::Over(Outcome::Drained))),
                    _ => {}
                }
                None
            }
            Due::Farewell => Some(Ok(End::Over(Outcome::Drained))),
            Due::Hedge => {
                self.hedge_at = None;
                Some(Err(Late))
            }
            Due::HalfClosed => Some(Ok(End::Over(Outcome::ClientGone))),
            Due::ClientTakes => Some(Ok(End::Over(Outcome::ClientSlow))),
            Due::ClientBody => self.give_up_upload().map(Ok),
            Due::UpstreamBody => {
                self.broken = true;
                Some(Ok(End::Broken))
            }
            Due::UpPace => {
                let slow = self.up_pace.is_slow(self.asked.times.min_rate, PACE_WINDOW, 0, now);
                if slow { self.give_up_upload().map(Ok) } else { None }
            }
            Due::DownPace => {
                let rate = self.asked.times.min_rate;
                let slow = self.down_pace.is_slow(rate, taking_window(rate), STEPS, now);
                slow.then_some(Ok(End::Over(Outcome::ClientSlow)))
            }
            Due::Tunnel => Some(Ok(End::Complete)),
        }
    }
}

impl<S, U> Relay<'_, S, U> {
    /// The client is too slow with its body: that ends the request, unless its answer is on the way already and needs no more of it.
    fn give_up_upload(&mut self) -> Option<End> {
        self.upload.refuse();
        self.status.is_none().then_some(End::Over(Outcome::RequestTimeout))
    }
}

impl Pace {
    /// At the end of a window: whether it was too slow, so many bytes forgiven. Begins the next one.
    fn is_slow(&mut self, min_rate: u64, window: Duration, forgiven: u64, now: Instant) -> bool {
        let bytes = std::mem::replace(self, Pace { since: now, bytes: 0 }).bytes;
        u128::from(bytes) + u128::from(forgiven) < u128::from(min_rate) * window.as_millis() / 1000
    }
}

/// How long the window is in which a client that takes at `min_rate` takes two [`STEPS`].
fn taking_window(min_rate: u64) -> Duration {
    PACE_WINDOW.max(Duration::from_millis((2 * STEPS).saturating_mul(1000) / min_rate.max(1)))
}
