//! The mover of bytes on pingora-proxy: thin and untuned. It owns the clock and the dice of a request; everything it decides, it asks
//! the phases.
//!
//! Pingora reads heads, frames bodies, keeps connections on both sides and calls the hooks below in turn. Each hook is a few
//! lines: from pingora's values to a phase and back. What pingora has no word for, one deadline for the first byte and another
//! for silence, is done by [`watched`].
#![expect(clippy::disallowed_methods, reason = "a shell: it tells the phases the time")]

mod fields;
mod peer;
mod watched;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, Version};
use pingora::apps::ServerApp;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::{Digest, Stream};
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result, RetryType};

use crate::proxy::retry::Failure;
use crate::proxy::{Exchange, Head, Outcome, Shared, framing, grpc, headers};
use crate::steering::walk::MAX_ATTEMPTS;
use crate::telemetry;
use watched::{Alarm, Watched};

/// Unused upstream connections kept, over all endpoints and for each thread: a pool smaller than the concurrency costs more than
/// twice the CPU time per request.
const POOL_SIZE: usize = 16_384;

/// The mover.
pub struct Mover {
    proxy: Arc<HttpProxy<Hooks>>,
}

impl Mover {
    /// A mover for a runtime of `threads` threads.
    pub fn new(shared: Arc<Shared>, threads: usize) -> Mover {
        let conf = ServerConf {
            threads: threads.max(1),
            upstream_keepalive_pool_size: POOL_SIZE,
            // The phases bound attempts; this only must not come before them.
            max_retries: MAX_ATTEMPTS + 1,
            ..ServerConf::default()
        };
        let mut proxy = HttpProxy::new(Hooks { shared }, Arc::new(conf));
        proxy.handle_init_modules();
        Mover { proxy: Arc::new(proxy) }
    }

    /// Serves a connection to its end. Once `shutdown` is true it closes after the request it is at.
    pub async fn serve(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let mut next: Option<Stream> = Some(Box::new(Watched::new(stream, Instant::now())));
        while let Some(stream) = next {
            next = self.proxy.process_new(stream, shutdown).await;
        }
    }

    /// Closes the connections that wait for a request, now and from now on.
    pub async fn close_idle(&self) {
        ServerApp::cleanup(&*self.proxy).await;
    }
}

struct Hooks {
    shared: Arc<Shared>,
}

/// What pingora carries for us through a request.
#[derive(Default)]
struct Carried {
    exchange: Option<Exchange>,
    alarm: Option<Arc<Alarm>>,
    /// An answer was thrown away because another attempt is planned.
    discarded: bool,
    upgraded: bool,
}

impl Carried {
    fn exchange(&mut self) -> Result<&mut Exchange> {
        self.exchange.as_mut().ok_or_else(|| Error::explain(ErrorType::InternalError, "no request has begun"))
    }

    fn alarm(&self, with: impl FnOnce(&Alarm)) {
        if let Some(alarm) = &self.alarm {
            with(alarm);
        }
    }

    /// In a tunnel: something moved.
    fn stir(&mut self) {
        if self.upgraded
            && let Some(idle) = self.exchange.as_ref().and_then(Exchange::service).map(|s| s.timeouts.tunnel_idle)
        {
            self.alarm(|alarm| alarm.set(Instant::now() + idle));
        }
    }
}

#[async_trait]
impl ProxyHttp for Hooks {
    type CTX = Carried;

    fn new_ctx(&self) -> Carried {
        Carried::default()
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, carried: &mut Carried) -> Result<bool> {
        carried.alarm = alarm_of(session);
        let exchange = begin(&self.shared, session);
        prepare_session(session, &exchange);
        let refusal = exchange.refusal();
        carried.exchange = Some(exchange);
        match refusal {
            Some(outcome) => answer(session, outcome, carried).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, carried: &mut Carried) -> Result<Box<HttpPeer>> {
        match carried.exchange()?.next_attempt(Instant::now()) {
            Ok(attempt) => Ok(Box::new(peer::of(&attempt, fastrand::u64(..)))),
            Err(outcome) => Error::e_explain(ErrorType::InternalError, outcome.label()),
        }
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        carried: &mut Carried,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let failure = match error.etype() {
            ErrorType::ConnectTimedout => Failure::ConnectTimeout,
            _ => Failure::NotConnected,
        };
        error.set_retry(failed(session, carried, failure));
        error
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::fd::RawFd,
        _digest: Option<&Digest>,
        carried: &mut Carried,
    ) -> Result<()> {
        let now = Instant::now();
        let exchange = carried.exchange()?;
        exchange.connected(now);
        let complete = session.is_body_done();
        if complete {
            exchange.asked(now);
        }
        let due = exchange.answer_due(complete, now);
        // What is not complete yet may not be sent twice in the end.
        let replayable = complete && !session.as_ref().retry_buffer_truncated();
        let vigil = exchange.vigil().filter(|_| replayable);
        carried.alarm(|alarm| {
            alarm.set(due);
            alarm.set_complete(complete);
            alarm.look_after(vigil, now);
        });
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        carried: &mut Carried,
    ) -> Result<()> {
        let exchange = carried.exchange()?;
        // Pingora carries no trailers of HTTP/1.1 answers.
        let forward = exchange.forward(false);
        headers::request(request, exchange.edge(), &forward);
        let (before, rest) = forward.target(&request.method, request.raw_path());
        if !before.is_empty() || rest.len() != request.raw_path().len() {
            let target = [before.as_bytes(), rest].concat();
            request.set_raw_path(&target)?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        _body: &mut Option<Bytes>,
        end: bool,
        carried: &mut Carried,
    ) -> Result<()> {
        carried.stir();
        if carried.upgraded {
            return Ok(());
        }
        if end {
            let now = Instant::now();
            let exchange = carried.exchange()?;
            if !exchange.has_begun() {
                exchange.asked(now);
            }
            let due = exchange.answer_due(true, now);
            carried.alarm(|alarm| alarm.set_due_at_end(due));
        }
        let exchange = carried.exchange()?;
        if exchange.service().is_some_and(|service| session.body_bytes_read() as u64 > service.max_body) {
            exchange.end(Outcome::BodyTooLarge);
            return Error::e_explain(ErrorType::HTTPStatus(413), Outcome::BodyTooLarge.label());
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        carried: &mut Carried,
    ) -> Result<()> {
        let replayable = !session.as_ref().retry_buffer_truncated();
        let status = response.status.as_u16();
        let (to_head, is_http_10) =
            (session.req_header().method == http::Method::HEAD, response.version == Version::HTTP_10);
        if framing::response(to_head, status, response, is_http_10).is_err() {
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "ambiguous framing").into_up());
        }
        let switches = response.status == StatusCode::SWITCHING_PROTOCOLS;
        if switches && !(carried.exchange()?.websocket() && headers::is_upgrade(response)) {
            // The client would take what follows for an answer, or for whatever the upstream likes.
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "a protocol that nobody asked for").into_up());
        }
        if carried.exchange()?.response_head(status, replayable, Instant::now()) {
            carried.discarded = true;
            let mut error = Error::explain(ErrorType::HTTPStatus(status), "the answer is taken elsewhere");
            error.set_retry(true);
            return Err(error);
        }
        if !response.status.is_informational() {
            carried.alarm(Alarm::off);
        } else if response.status == StatusCode::SWITCHING_PROTOCOLS {
            carried.alarm(Alarm::off);
            carried.upgraded = true;
            carried.stir();
            // From here on the alarm alone says how long both sides may be silent.
            session.set_read_timeout(None);
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        _end: bool,
        carried: &mut Carried,
    ) -> Result<Option<std::time::Duration>> {
        carried.stir();
        if let Some(exchange) = &carried.exchange {
            exchange.heard();
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        carried: &mut Carried,
    ) -> Result<()> {
        let upgraded = carried.upgraded;
        let exchange = carried.exchange()?;
        let interim = response.status.is_informational() && !upgraded;
        match interim {
            true => exchange.interim_passed_on(),
            false => exchange.passed_on(),
        }
        let version = if response.version == Version::HTTP_10 { "1.0" } else { "1.1" };
        headers::response(response, exchange.via(), version, upgraded);
        if !interim {
            exchange.complete(response, upgraded);
        }
        // What we speak, not what the upstream spoke (RFC 9110, 2.5).
        response.set_version(Version::HTTP_11);
        // What frames no body has no fields for it (RFC 9112, 6.1; RFC 9110, 8.6).
        let bare = response.status.is_informational() || response.status == StatusCode::NO_CONTENT;
        if bare {
            response.remove_header(&http::header::CONTENT_LENGTH);
        }
        let to_head = session.req_header().method == http::Method::HEAD;
        if bare || to_head || response.status == StatusCode::NOT_MODIFIED {
            response.remove_header(&http::header::TRANSFER_ENCODING);
        }
        if session.req_header().version == Version::HTTP_10 {
            // A client of HTTP/1.0 cannot read chunks: the end of the connection ends the body.
            response.remove_header(&http::header::TRANSFER_ENCODING);
            if !response.headers.contains_key(http::header::CONTENT_LENGTH) {
                // Nor is it to be told that the connection is kept.
                session.set_keepalive(None);
            }
        }
        if session.is_process_shutting_down() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        carried: &mut Carried,
        reused: bool,
    ) -> Box<Error> {
        let again = if std::mem::take(&mut carried.discarded) {
            true
        } else {
            match cause(&error, session, carried, reused) {
                Cause::Upstream(failure) => failed(session, carried, failure),
                Cause::Final(outcome) => {
                    if let Some(exchange) = &mut carried.exchange {
                        exchange.end(outcome);
                    }
                    false
                }
            }
        };
        carried.alarm(Alarm::off);
        error.retry = RetryType::Decided(again);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, _error: &Error, carried: &mut Carried) -> FailToProxy {
        let outcome = carried.exchange.as_ref().map_or(Outcome::Internal, Exchange::outcome);
        let outcome = if outcome == Outcome::Answered { Outcome::Internal } else { outcome };
        // Pingora closes after a failed attempt, whatever is said here: the client must not be told otherwise.
        session.set_keepalive(None);
        // A client that does not take the answer is gone; the log says what the answer was.
        let _ = answer(session, outcome, carried).await;
        FailToProxy { error_code: outcome.status(), can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, carried: &mut Carried) {
        let Some(mut exchange) = carried.exchange.take() else { return };
        let sent = session.response_written().map(|response| response.status);
        let status = sent.filter(|s| !s.is_informational() || *s == StatusCode::SWITCHING_PROTOCOLS);
        // A tunnel has no other end than one side's leaving.
        if error.is_some() && exchange.outcome() == Outcome::Answered && !carried.upgraded {
            exchange.end(Outcome::Internal);
        }
        let (bytes_in, bytes_out) = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
        exchange.finish(status.map_or(0, |s| s.as_u16()), bytes_in, bytes_out, Instant::now());
    }

    fn suppress_error_log(&self, _session: &Session, _carried: &Carried, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _s: &Session, _c: &Carried, _e: &Error, _context: ProxyWarnLogContext) -> bool {
        true
    }
}

/// The alarm of the client's connection.
fn alarm_of(session: &Session) -> Option<Arc<Alarm>> {
    let stream = session.as_http1()?.stream();
    (**stream).as_any().downcast_ref::<Watched>().map(Watched::alarm)
}

fn begin(shared: &Arc<Shared>, session: &Session) -> Exchange {
    let request = session.req_header();
    let tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    let head = Head {
        method: &request.method,
        target: request.raw_path(),
        version: request.version,
        fields: request,
        peer: session.client_addr().and_then(|address| address.as_inet()).copied(),
        scheme: if tls { "https" } else { "http" },
        // A listener that binds hosts to certificates has the other mover, which looked before it handed anything over.
        bound: &[],
        mover: telemetry::Mover::Pingora,
        now: Instant::now(),
        at_us: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64),
        chance: fastrand::u64(..),
        id: fastrand::u128(..),
    };
    Exchange::begin(shared, shared.reader.load(), &head)
}

/// Limits of the client's connection, anew for every request: pingora forgets some of them, and a reload may have changed them.
fn prepare_session(session: &mut Session, exchange: &Exchange) {
    let limits = &exchange.edge().limits;
    if session.get_keepalive().is_some() {
        let idle = limits.idle_timeout;
        // Whole seconds, and 0 would mean for ever.
        session.set_keepalive(Some((idle.as_secs() + u64::from(idle.subsec_nanos() > 0)).max(1)));
    }
    if session.is_process_shutting_down() {
        session.set_keepalive(None);
    }
    if limits.requests > 0 && session.get_keepalive_reuses_remaining().is_none() {
        session.set_keepalive_reuses_remaining(Some(limits.requests - 1));
    }
    session.set_pipelining_enabled(true);
    session.set_read_timeout(Some(limits.body_timeout));
    session.set_write_timeout(Some(exchange.service().map_or(limits.body_timeout, |service| service.timeouts.idle)));
    session.set_total_drain_timeout(Some(limits.body_timeout));
}

/// Tells the exchange of a failed attempt; returns whether there is another one.
fn failed(session: &Session, carried: &mut Carried, failure: Failure) -> bool {
    let replayable = !session.as_ref().retry_buffer_truncated();
    carried.exchange.as_mut().is_some_and(|exchange| exchange.attempt_failed(failure, replayable, Instant::now()))
}

/// Whose doing an error is.
enum Cause {
    /// The attempt's.
    Upstream(Failure),
    /// The client's, or ours: no other attempt would help.
    Final(Outcome),
}

fn cause(error: &Error, session: &Session, carried: &Carried, reused: bool) -> Cause {
    use ErrorType::{ConnectionClosed, InternalError, ReadError, ReadTimedout, WriteError, WriteTimedout};
    if let Some(outcome) = carried.exchange.as_ref().and_then(Exchange::refusal) {
        return Cause::Final(outcome);
    }
    if carried.upgraded {
        // A tunnel has no other end than one side's leaving, or a silence of both; which of them pingora hears of first is chance.
        return Cause::Final(Outcome::Answered);
    }
    if let Some(alarm) = carried.alarm.as_ref().filter(|alarm| alarm.rang()) {
        // Until the request is complete, nobody but the client was waited for.
        let complete = alarm.is_complete();
        return if complete { Cause::Upstream(Failure::Silent) } else { Cause::Final(Outcome::RequestTimeout) };
    }
    let broken = matches!(error.etype(), ConnectionClosed | ReadError | WriteError | WriteTimedout);
    match (error.esource(), error.etype()) {
        (ErrorSource::Upstream, ReadTimedout) => Cause::Upstream(Failure::Silent),
        (ErrorSource::Upstream, _) if broken => Cause::Upstream(Failure::Lost { reused }),
        (ErrorSource::Upstream, _) => Cause::Upstream(Failure::BadAnswer),
        (_, ReadTimedout) if session.response_written().is_none() => Cause::Final(Outcome::RequestTimeout),
        (ErrorSource::Downstream | ErrorSource::Unset, _) if broken || *error.etype() == ReadTimedout => {
            Cause::Final(Outcome::ClientGone)
        }
        (_, InternalError) | (ErrorSource::Internal, _) => Cause::Final(Outcome::Internal),
        _ => Cause::Final(Outcome::BadRequest),
    }
}

/// Sends the answer that an outcome calls for, unless an answer went out already or nobody is left to read one.
async fn answer(session: &mut Session, outcome: Outcome, carried: &Carried) -> Result<()> {
    let answered = |r: &ResponseHeader| !r.status.is_informational() || r.status == StatusCode::SWITCHING_PROTOCOLS;
    if outcome.status() == 0 || session.response_written().is_some_and(answered) {
        session.set_keepalive(None);
        return Ok(());
    }
    let is_call = carried.exchange.as_ref().is_some_and(Exchange::is_call);
    let body = carried.exchange.as_ref().map_or(outcome.body(), |exchange| exchange.own_body(outcome));
    let mut head = ResponseHeader::build(if is_call { 200 } else { outcome.status() }, Some(8))?;
    if is_call {
        head.insert_header(http::header::CONTENT_TYPE, "application/grpc")?;
        head.insert_header(http::header::CONTENT_LENGTH, 0)?;
        head.insert_header("grpc-status", u16::from(grpc::status(outcome)))?;
        head.insert_header("grpc-message", outcome.body().trim_end())?;
    } else {
        head.insert_header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
        head.insert_header(http::header::CONTENT_LENGTH, body.len())?;
    }
    head.insert_header(http::header::CACHE_CONTROL, "no-store")?;
    if let Some(seconds) = outcome.retry_after_s() {
        head.insert_header(http::header::RETRY_AFTER, seconds)?;
    }
    for (name, value) in carried.exchange.iter().flat_map(Exchange::own_fields) {
        head.insert_header(name, value)?;
    }
    if !outcome.keeps_connection() || !session.is_body_empty() {
        session.set_keepalive(None);
    }
    let has_body = session.req_header().method != http::Method::HEAD && !is_call;
    session.write_response_header(Box::new(head), !has_body).await?;
    if has_body {
        session.write_response_body(Some(Bytes::copy_from_slice(body.as_bytes())), true).await?;
    }
    Ok(())
}
