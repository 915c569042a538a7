//! The line per request, written off the request path through a bounded queue.
//!
//! A request must never wait for a disk, a full pipe or a log collector. So it moves its record into a queue and is done; one
//! thread makes the lines ([`super::line`]), batches and writes. When the queue is full the record is dropped and counted: a gap in
//! the log is better than a gap in the service. A thread, not a task: a write to a pipe blocks, and no runtime worker may. Where others wait behind
//! it, the file beside standard output and spans, a pipe that takes nothing is not waited for long.
//!
//! Where a share of the requests is enough (`access_sample`), those with trouble are written all the same. Which of the others are is
//! decided by the request's id: two PoPs that a request passes through write it or leave it out together, and no dice are thrown.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::retry_on_intr;

use crate::config::{self, Share};
use crate::geo::Place;
use crate::steering::{RegionId, ServiceId, Snapshot, TakeReason};
use crate::telemetry::line::Lines;
use crate::telemetry::metrics::{AccessLines, SpanResults};
use crate::telemetry::{Metrics, Spans};

/// Records that may wait: at 50,000 requests a second the writer may be stuck for 160 ms before one is lost.
const QUEUE: usize = 8192;

/// Bytes gathered for one write.
const BATCH: usize = 64 * 1024;

/// How long the writer rests after it has emptied the queue. Under load this turns a wake-up per request, paid by the request,
/// into a hundred a second; a line is never later than this.
const REST: Duration = Duration::from_millis(10);

/// How long an output may take nothing while others wait; then it is only asked whether it takes anything again.
const PATIENCE: Duration = Duration::from_millis(250);

/// What a pipe that takes anything takes without waiting (pipe(7), `PIPE_BUF`).
const PIECE: usize = 4096;

/// Between two complaints about an output that refuses lines.
const COMPLAIN: Duration = Duration::from_secs(60);

/// The outcome of a request that an upstream's answer ended.
const ANSWERED: &str = "answered";

/// How long the end of the process waits for the last lines.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Who moves the bytes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mover {
    /// Our engine.
    Native,
    /// pingora-proxy.
    Pingora,
}

impl Mover {
    /// Every mover, in the order of its number.
    pub const ALL: [Mover; 2] = [Mover::Native, Mover::Pingora];

    /// The word of logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mover::Native => "native",
            Mover::Pingora => "pingora",
        }
    }
}

/// Everything the line, the metrics and nothing else need to know of a finished request.
#[derive(Debug)]
pub struct AccessRecord {
    /// Unix time in microseconds at which the request head was complete.
    pub at_us: u64,
    /// The connecting peer.
    pub peer: Option<SocketAddr>,
    /// The client, canonical.
    pub client: Option<IpAddr>,
    /// Its place.
    pub place: Option<Place>,
    /// Request id, as forwarded.
    pub request_id: u128,
    /// Method.
    pub method: http::Method,
    /// What the client wrote.
    pub text: Text,
    /// `HTTP/1.1` and so on.
    pub protocol: &'static str,
    /// Who moved the bytes.
    pub mover: Mover,
    /// The service, if one was found.
    pub service: Option<ServiceId>,
    /// The last region tried.
    pub region: Option<RegionId>,
    /// The last endpoint tried.
    pub endpoint: Option<SocketAddr>,
    /// Why that region.
    pub reason: Option<TakeReason>,
    /// Attempts made, 0 when none was.
    pub attempts: u8,
    /// Status sent to the client; 0 when none was.
    pub status: u16,
    /// The outcome's label when it was not the upstream's answer (`no_region`, `connect_timeout` …); see `proxy::outcome`.
    pub outcome: &'static str,
    /// Why nothing was tried after the last failure, if there was one; see `proxy::retry`.
    pub gave_up: Option<&'static str>,
    /// Request body bytes received.
    pub bytes_in: u64,
    /// Response body bytes sent.
    pub bytes_out: u64,
    /// Microseconds from the complete request head to the end of the answer.
    pub total_us: u64,
    /// Microseconds to the final upstream response head, if one came.
    pub first_byte_us: Option<u64>,
    /// Microseconds connecting, over all attempts.
    pub connect_us: u64,
    /// Its place in a trace.
    pub traced: Traced,
}

/// A request's place in a trace; of one that is in none all is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// The trace's id.
    pub trace: u128,
    /// The span of who sent the request; 0: it began the trace.
    pub parent: u64,
    /// Our own span; 0: we have none.
    pub span: u64,
    /// The trace is recorded.
    pub sampled: bool,
}

impl Traced {
    /// Whether a span of ours is wanted.
    pub(super) fn is_recorded(&self) -> bool {
        self.sampled && self.span != 0
    }
}

impl AccessRecord {
    /// Whether it ended with an upstream's answer.
    pub(super) fn is_answered(&self) -> bool {
        self.outcome == ANSWERED
    }

    /// Whether an operator wants to see it whatever is sampled: it was refused or failed, was answered with a status of 500 or above, was
    /// tried more than once, or took as long as `slow`.
    fn has_trouble(&self, slow: Duration) -> bool {
        !self.is_answered() || self.status >= 500 || self.attempts > 1 || u128::from(self.total_us) >= slow.as_micros()
    }

    /// A number that is as good as random, the same wherever the request's id is known.
    fn draw(&self) -> u64 {
        // Some ids begin with a time.
        ((self.request_id >> 64) as u64 ^ self.request_id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Host and request target as a client wrote them.
#[derive(Debug, Default)]
pub struct Text {
    /// The target, then the host.
    both: String,
    target: usize,
}

impl Text {
    /// Of a request to that host (empty: not known yet).
    pub fn new(host: &str, target: &str) -> Text {
        let mut text = Text::default();
        text.set_target(target);
        text.push_host(host);
        text
    }

    /// The host; at most 255 bytes.
    pub fn host(&self) -> &str {
        &self.both[self.target..]
    }

    /// The target, cut to 2,048 bytes.
    pub fn target(&self) -> &str {
        &self.both[..self.target]
    }

    /// The target and the host.
    pub(super) fn both(&self) -> &str {
        &self.both
    }

    /// Begins anew with that target, and no host.
    pub fn set_target(&mut self, target: &str) {
        self.both.clear();
        self.both.push_str(target);
        self.target = self.both.len();
    }

    /// Adds to the host.
    pub fn push_host(&mut self, host: &str) {
        self.both.push_str(host);
    }
}

impl AccessRecord {
    /// Of no request yet.
    pub(crate) fn unused() -> AccessRecord {
        AccessRecord {
            at_us: 0,
            peer: None,
            client: None,
            place: None,
            request_id: 0,
            method: http::Method::GET,
            text: Text::default(),
            protocol: "",
            mover: Mover::Native,
            service: None,
            region: None,
            endpoint: None,
            reason: None,
            attempts: 0,
            status: 0,
            outcome: "",
            gave_up: None,
            bytes_in: 0,
            bytes_out: 0,
            total_us: 0,
            first_byte_us: None,
            connect_us: 0,
            traced: Traced::default(),
        }
    }
}

/// Records kept for requests to come, so that in the long run none is allocated. Boxed, because a record is handed on five times.
const RECORDS: usize = 4096;

/// The longest text of one that is kept.
const KEPT_TEXT: usize = 1024;

/// The request path's end of the access log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLogger {
    /// `None`: the log is off.
    queue: Option<Queue>,
    records: Records,
}

/// Records of requests that are over.
#[derive(Clone, Debug)]
struct Records(Arc<ArrayQueue<Box<AccessRecord>>>);

impl Records {
    fn new() -> Records {
        Records(Arc::new(ArrayQueue::new(RECORDS)))
    }

    fn keep(&self, record: Box<AccessRecord>) {
        if record.text.both.capacity() <= KEPT_TEXT {
            // When there are enough, it is freed.
            let _ = self.0.push(record);
        }
    }
}

#[derive(Clone, Debug)]
struct Queue {
    sender: SyncSender<Message>,
    asked: Arc<Asked>,
    lines: AccessLines,
    wanted: config::AccessLines,
    /// Whether there is an access log at all.
    has_lines: bool,
    /// What becomes of spans, if there are any.
    spans: Option<SpanResults>,
}

/// What was asked of the writer besides lines. Flags, because a question must not be lost when the queue is full.
#[derive(Debug, Default)]
struct Asked {
    reopen: AtomicBool,
    stop: AtomicBool,
}

/// A finished request, the snapshot it was served by (names come from it), and whether it gets a line. `None`: look at the flags.
type Message = Option<(Arc<Snapshot>, Box<AccessRecord>, bool)>;

impl AccessLogger {
    /// Room for a record; what is in it is to be written over.
    pub fn record(&self) -> Box<AccessRecord> {
        self.records.0.pop().unwrap_or_else(|| Box::new(AccessRecord::unused()))
    }

    /// Queues the record of a request that was served by this snapshot; when the queue is full the record is dropped and counted, never waited
    /// for.
    pub fn log(&self, snapshot: &Arc<Snapshot>, record: Box<AccessRecord>) {
        let Some(queue) = &self.queue else { return self.records.keep(record) };
        let line = queue.has_lines && queue.wants(&record);
        if !line && queue.has_lines {
            queue.lines.sampled_out.inc();
        }
        let span = queue.spans.as_ref().filter(|_| record.traced.is_recorded());
        if !line && span.is_none() {
            return self.records.keep(record);
        }
        match queue.sender.try_send(Some((Arc::clone(snapshot), record, line))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                queue.lines.dropped.inc_by(line.into());
                span.into_iter().for_each(|span| span.dropped.inc());
            }
        }
    }

    /// Opens the file anew, after somebody moved it away. Nothing happens on standard output.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            queue.ask(&queue.asked.reopen);
        }
    }
}

impl Queue {
    /// Whether the request gets a line.
    fn wants(&self, record: &AccessRecord) -> bool {
        let config::AccessLines { sample, slow, .. } = self.wanted;
        sample == Share::ALL || sample.takes(record.draw()) || record.has_trouble(slow)
    }

    fn ask(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
        // A full queue needs no wake-up: its writer is awake.
        let _ = self.sender.try_send(None);
    }
}

/// Keeps the writer; when dropped, what is queued is still written, for at most two seconds.
#[derive(Debug)]
pub struct AccessLogGuard {
    queue: Option<Queue>,
    done: Receiver<()>,
}

impl Drop for AccessLogGuard {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.ask(&queue.asked.stop);
            // An error is what is waited for: the writer dropped its end. A pipe that nobody empties must not hold the exit up.
            let _ = self.done.recv_timeout(LAST_WORDS);
        }
    }
}

impl AccessLogger {
    /// Starts the writer, which makes spans of recorded requests, too, if there is somewhere to send them. An error: the file cannot be opened, or no thread started.
    pub fn start(
        to: &config::AccessLog,
        wanted: config::AccessLines,
        spans: Option<Spans>,
        metrics: &Metrics,
    ) -> io::Result<(AccessLogger, AccessLogGuard)> {
        let stdout = || io::Result::Ok(Output::Stdout(io::stdout().as_fd().try_clone_to_owned()?.into()));
        let file = |path: &Path| io::Result::Ok(Output::File { path: path.into(), file: open(path)? });
        let outputs = match to {
            config::AccessLog::Off => Vec::new(),
            config::AccessLog::Stdout => vec![stdout()?],
            config::AccessLog::File(path) => vec![file(path)?],
            config::AccessLog::StdoutAndFile(path) => vec![stdout()?, file(path)?],
        };
        AccessLogger::start_with(outputs, wanted, spans, QUEUE, metrics)
    }

    fn start_with(
        outputs: Vec<Output>,
        wanted: config::AccessLines,
        spans: Option<Spans>,
        room: usize,
        metrics: &Metrics,
    ) -> io::Result<(AccessLogger, AccessLogGuard)> {
        let (finished, done) = sync_channel(0);
        if outputs.is_empty() && spans.is_none() {
            let logger = AccessLogger { queue: None, records: Records::new() };
            return Ok((logger, AccessLogGuard { queue: None, done }));
        }
        let (sender, receiver) = sync_channel(room);
        let queue = Queue {
            sender,
            asked: Arc::default(),
            lines: metrics.access_lines(),
            wanted,
            has_lines: !outputs.is_empty(),
            spans: spans.as_ref().map(|spans| spans.results().clone()),
        };
        let records = Records::new();
        let mut writer = Writer {
            outputs: {
                let alone = outputs.len() == 1 && spans.is_none();
                outputs.into_iter().map(|to| Sink::new(to, alone)).collect()
            },
            spans,
            records: records.clone(),
            written: Lines::new(wanted.format),
            asked: queue.asked.clone(),
            lines: queue.lines.clone(),
            batch: Vec::with_capacity(BATCH + 4096),
            batched: 0,
            complained: None,
        };
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            writer.run(&receiver);
            // Nothing more is recorded: what is queued there is sent now.
            drop(writer.spans.take());
            // Before it is said: whoever logs after that must find that nobody reads.
            drop(receiver);
            drop(finished);
        })?;
        Ok((AccessLogger { queue: Some(queue.clone()), records }, AccessLogGuard { queue: Some(queue), done }))
    }
}

#[derive(Debug)]
enum Output {
    /// Not through `io::stdout`, whose lock and line buffer would write each line on its own.
    Stdout(File),
    File {
        path: Box<Path>,
        file: File,
    },
    #[cfg(test)]
    Test(tests::Gate),
}

/// Appends, so that several processes (an old and a new meridian during an upgrade) may share a file.
fn open(path: &Path) -> io::Result<File> {
    let said = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    // A pipe without a reader is a mistake to be told, and not one to be waited for.
    let how = libc::O_NONBLOCK;
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(how).open(path).map_err(said)?;
    let flags = fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags - OFlags::NONBLOCK));
    flags.map_err(io::Error::from).map_err(said)?;
    Ok(file)
}

impl Output {
    fn file(&self) -> Option<&File> {
        match self {
            Output::Stdout(file) | Output::File { file, .. } => Some(file),
            #[cfg(test)]
            Output::Test(_) => None,
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stdout(file) | Output::File { file, .. } => file.write(bytes),
            #[cfg(test)]
            Output::Test(gate) => gate.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output, and how far its lines are.
#[derive(Debug)]
struct Sink {
    to: Output,
    /// The last write ended inside a line.
    torn: bool,
    /// It may make others wait.
    waits: bool,
    /// It took nothing for long.
    stuck: bool,
}

impl Sink {
    fn new(to: Output, alone: bool) -> Sink {
        let waits = !alone && !to.file().is_some_and(|file| file.metadata().is_ok_and(|data| data.is_file()));
        Sink { to, torn: false, waits, stuck: false }
    }

    /// Waits until it takes a piece of that many bytes at once, if it has to be waited for; an error: it takes nothing.
    fn room(&mut self, for_all: usize) -> io::Result<usize> {
        let Some(file) = self.to.file().filter(|_| self.waits) else { return Ok(for_all) };
        let patience = if self.stuck { Duration::ZERO } else { PATIENCE };
        let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut asked = [PollFd::new(file, PollFlags::OUT)];
        self.stuck = retry_on_intr(|| poll(&mut asked, Some(&patience)))? == 0;
        match self.stuck {
            true => Err(io::Error::new(io::ErrorKind::WouldBlock, "nobody reads standard output")),
            false => Ok(for_all.min(PIECE)),
        }
    }

    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        if self.torn {
            self.room(1)?;
            // The rest of the torn line is lost; this ends what is there of it.
            self.to.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = batch;
        while !rest.is_empty() {
            let piece = self.room(rest.len())?;
            match self.to.write(&rest[..piece]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.torn = rest[written - 1] != b'\n';
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

struct Writer {
    outputs: Vec<Sink>,
    spans: Option<Spans>,
    records: Records,
    written: Lines,
    asked: Arc<Asked>,
    lines: AccessLines,
    batch: Vec<u8>,
    batched: u64,
    complained: Option<Instant>,
}

impl Writer {
    fn run(&mut self, queue: &Receiver<Message>) {
        loop {
            // Read before the queue: when it was set, all that had been queued by then is still met below.
            let stopping = self.asked.stop.load(Ordering::Acquire);
            match queue.try_recv() {
                Ok(message) => self.take(message),
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    self.write();
                    if stopping {
                        break;
                    }
                    if self.asked.reopen.swap(false, Ordering::AcqRel) {
                        self.reopen();
                    }
                    thread::sleep(REST);
                    // The timeout only bounds how long a question asked in the instant before could wait.
                    match queue.recv_timeout(Duration::from_secs(1)) {
                        Ok(message) => self.take(message),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => break,
                    }
                }
            }
        }
        self.write();
    }

    fn take(&mut self, message: Message) {
        let Some((snapshot, record, line)) = message else { return };
        if let Some(spans) = &self.spans {
            spans.take(&record, &snapshot);
        }
        if line {
            self.written.append(&mut self.batch, &record, &snapshot);
            self.batched += 1;
        }
        self.records.keep(record);
        if self.batch.len() >= BATCH {
            self.write();
            // A queue that never runs empty must not keep a moved file open for ever.
            if self.asked.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
        }
    }

    fn write(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        // Each takes what it can: one that refuses lines is none of the other's business.
        for at in 0..self.outputs.len() {
            match self.outputs[at].write(&self.batch) {
                Ok(()) => self.lines.written.inc_by(self.batched),
                Err(error) => {
                    self.lines.failed.inc_by(self.batched);
                    self.complain(&format!("{} access log lines lost: {error}", self.batched));
                }
            }
        }
        self.batch.clear();
        self.batched = 0;
    }

    fn reopen(&mut self) {
        for at in 0..self.outputs.len() {
            let sink = &mut self.outputs[at];
            let Output::File { path, file } = &mut sink.to else { continue };
            match open(path) {
                Ok(new) => {
                    *file = new;
                    sink.torn = false;
                }
                Err(error) => self.complain(&format!("{error}; the old file stays in use")),
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a shell: complaints are spaced by the clock")]
    fn complain(&mut self, what: &str) {
        let now = Instant::now();
        if self.complained.is_none_or(|at| now.duration_since(at) >= COMPLAIN) {
            self.complained = Some(now);
            tracing::error!("{what}");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{AccessFormat, AccessLines};
    use crate::geo::Atlas;
    use crate::steering::{Fleet, RegionSet, View};
    use std::sync::Mutex;

    /// An output whose every write waits to be let through, and can be told how to fail.
    #[derive(Clone, Debug, Default)]
    pub(super) struct Gate(Arc<(Mutex<State>, std::sync::Condvar)>);

    #[derive(Debug, Default)]
    struct State {
        open: bool,
        waiting: bool,
        /// Bytes taken before the next error.
        fail_after: Option<usize>,
        bytes: Vec<u8>,
    }

    impl Gate {
        pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
            let (state, signal) = &*self.0;
            let mut state = state.lock().unwrap();
            state.waiting = true;
            signal.notify_all();
            let mut state = signal.wait_while(state, |state| !state.open).unwrap();
            match state.fail_after.take() {
                Some(0) => Err(io::Error::other("full")),
                Some(some) => {
                    state.bytes.extend_from_slice(&bytes[..some]);
                    state.fail_after = Some(0);
                    Ok(some)
                }
                None => {
                    state.bytes.extend_from_slice(bytes);
                    Ok(bytes.len())
                }
            }
        }

        fn wait_for_writer(&self) {
            let (state, signal) = &*self.0;
            drop(signal.wait_while(state.lock().unwrap(), |state| !state.waiting).unwrap());
        }

        fn open(&self, fail_after: Option<usize>) {
            let (state, signal) = &*self.0;
            let mut state = state.lock().unwrap();
            (state.open, state.fail_after) = (true, fail_after);
            signal.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().bytes.clone()).unwrap()
        }
    }

    pub(in crate::telemetry) fn snapshot() -> Arc<Snapshot> {
        let view = View::compile(Arc::new(Fleet::default()), Arc::new(Atlas::empty()), None);
        Arc::new(Snapshot::assuming(view, RegionSet::EMPTY))
    }

    /// A request that was refused.
    pub(in crate::telemetry) fn record(target: &str) -> AccessRecord {
        AccessRecord {
            at_us: 1_769_903_999_999_000,
            peer: Some("[2001:db8::1]:443".parse().unwrap()),
            client: None,
            place: None,
            request_id: 0xabc,
            method: http::Method::GET,
            text: Text::new("a\"b\\\u{7}", target),
            protocol: "HTTP/1.1",
            mover: Mover::Pingora,
            service: None,
            region: None,
            endpoint: None,
            reason: None,
            attempts: 0,
            status: 400,
            outcome: "bad_request",
            gave_up: None,
            bytes_in: 0,
            bytes_out: 12,
            total_us: 1234,
            first_byte_us: None,
            connect_us: 0,
            traced: Traced::default(),
        }
    }

    fn numbers(text: &str) -> Vec<String> {
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| line["path"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_what_is_queued_is_written_at_the_end() {
        let (gate, metrics) = (Gate::default(), Metrics::new());
        let (logger, guard) =
            AccessLogger::start_with(vec![Output::Test(gate.clone())], AccessLines::default(), None, 4, &metrics)
                .unwrap();
        logger.log(&snapshot(), Box::new(record("first")));
        gate.wait_for_writer();
        // The writer is stuck with the first one: four wait, five are lost.
        for n in 0..9 {
            logger.log(&snapshot(), Box::new(record(&n.to_string())));
        }
        assert_eq!(metrics.access_lines().dropped.get(), 5);
        gate.open(None);
        drop(guard);
        assert_eq!(numbers(&gate.text()), ["first", "0", "1", "2", "3"]);
        assert_eq!(metrics.access_lines().written.get(), 5);
        assert_eq!(metrics.access_lines().failed.get(), 0);
        logger.log(&snapshot(), Box::new(record("late")));
        assert_eq!(metrics.access_lines().dropped.get(), 6, "after the end, records are dropped like any other");
    }

    #[test]
    fn a_line_torn_by_an_error_does_not_spoil_the_next() {
        let (gate, metrics) = (Gate::default(), Metrics::new());
        gate.open(Some(10));
        let (logger, guard) =
            AccessLogger::start_with(vec![Output::Test(gate.clone())], AccessLines::default(), None, 4, &metrics)
                .unwrap();
        logger.log(&snapshot(), Box::new(record("torn")));
        while metrics.access_lines().failed.get() == 0 {
            thread::yield_now();
        }
        logger.log(&snapshot(), Box::new(record("whole")));
        drop(guard);
        let text = gate.text();
        let (torn, rest) = text.split_once('\n').unwrap();
        assert_eq!(torn.len(), 10);
        assert_eq!(numbers(rest), ["whole"]);
        assert_eq!(metrics.access_lines().failed.get(), 1);
    }

    #[test]
    fn each_output_has_all_lines_and_one_that_fails_spoils_no_other() {
        let (stuck, good, metrics) = (Gate::default(), Gate::default(), Metrics::new());
        stuck.open(Some(0));
        good.open(None);
        let outputs = vec![Output::Test(stuck.clone()), Output::Test(good.clone())];
        let (logger, guard) = AccessLogger::start_with(outputs, AccessLines::default(), None, 4, &metrics).unwrap();
        logger.log(&snapshot(), Box::new(record("one")));
        drop(guard);
        assert_eq!((stuck.text().as_str(), numbers(&good.text())), ("", vec!["one".to_owned()]));
        let lines = metrics.access_lines();
        assert_eq!((lines.written.get(), lines.failed.get()), (1, 1));
    }

    #[test]
    fn a_pipe_that_nobody_reads_keeps_no_other_output_waiting() {
        let (reader, pipe) = io::pipe().unwrap();
        let (good, metrics) = (Gate::default(), Metrics::new());
        good.open(None);
        let outputs = vec![Output::Stdout(std::os::fd::OwnedFd::from(pipe).into()), Output::Test(good.clone())];
        let (logger, guard) = AccessLogger::start_with(outputs, AccessLines::default(), None, QUEUE, &metrics).unwrap();
        // Several times what the pipe holds, which is 64 KiB.
        let (snapshot, target) = (snapshot(), "x".repeat(1_000));
        (0..400).for_each(|_| logger.log(&snapshot, Box::new(record(&target))));
        drop(guard);
        let lines = metrics.access_lines();
        assert_eq!(numbers(&good.text()).len(), 400);
        assert!(lines.failed.get() > 0 && lines.written.get() + lines.failed.get() == 800, "{lines:?}");
        drop(reader);
    }

    #[test]
    fn a_pipe_at_a_path_has_to_have_a_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let why = open(&path).unwrap_err().to_string();
        assert!(why.starts_with(&format!("{}: ", path.display())), "{why}");
        let reader = thread::spawn({
            let path = path.clone();
            move || std::fs::read_to_string(path).unwrap()
        });
        let mut pipe = loop {
            match open(&path) {
                Ok(pipe) => break pipe,
                Err(_) => thread::yield_now(),
            }
        };
        // It is waited for as before, once it is there.
        let long = "x".repeat(1 << 20);
        pipe.write_all(long.as_bytes()).unwrap();
        drop(pipe);
        assert_eq!(reader.join().unwrap().len(), long.len());
    }

    /// A request without trouble.
    fn fine(request_id: u128) -> AccessRecord {
        AccessRecord { status: 200, outcome: ANSWERED, attempts: 1, request_id, ..record("/") }
    }

    fn sampled(sample: Share, records: impl IntoIterator<Item = AccessRecord>) -> (Vec<String>, u64) {
        let (gate, metrics) = (Gate::default(), Metrics::new());
        gate.open(None);
        let lines = AccessLines { sample, format: AccessFormat::Json, slow: Duration::from_secs(1) };
        let (logger, guard) =
            AccessLogger::start_with(vec![Output::Test(gate.clone())], lines, None, 4096, &metrics).unwrap();
        let snapshot = snapshot();
        records.into_iter().for_each(|record| logger.log(&snapshot, Box::new(record)));
        drop(guard);
        let ids = gate.text().lines().map(|line| line.split('"').nth(7).unwrap().to_owned()).collect();
        (ids, metrics.access_lines().sampled_out.get())
    }

    #[test]
    fn a_share_is_written_and_it_is_the_same_each_time() {
        // Ids that count up, and ones that begin with a time, as UUIDs of version 7 do.
        let records = || (0..1_000).map(fine).chain((0..1_000).map(|n| fine((n + (1 << 40)) << 80 | 7)));
        let (written, left_out) = sampled(Share::of(0.1), records());
        assert_eq!(written.len() as u64 + left_out, 2_000);
        assert!((100..300).contains(&written.len()), "{}", written.len());
        assert_eq!(sampled(Share::of(0.1), records()).0, written);
        assert_eq!(sampled(Share::of(0.0), records()), (Vec::new(), 2_000));
        assert_eq!(sampled(Share::of(1.0), records()).1, 0);
    }

    #[test]
    fn trouble_is_always_written() {
        let trouble = [
            AccessRecord { status: 500, ..fine(1) },
            AccessRecord { status: 404, outcome: "no_path", attempts: 0, ..fine(2) },
            AccessRecord { status: 0, outcome: "client_gone", ..fine(3) },
            AccessRecord { attempts: 2, ..fine(4) },
            AccessRecord { total_us: 1_000_000, ..fine(5) },
        ];
        let none = [AccessRecord { total_us: 999_999, ..fine(6) }, AccessRecord { status: 404, ..fine(7) }];
        let (written, left_out) = sampled(Share::of(0.0), trouble.into_iter().chain(none));
        assert_eq!((written.len(), left_out), (5, 2), "{written:?}");
    }
}
