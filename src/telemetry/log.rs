//! Set-up of the process log: lines on standard error, where journald, Docker and people look for them, in the shape that `[log] format`
//! asks for ([`super::shape`]), without endless repeats ([`super::repeats`]). An event of the world is
//! one line of JSON among them (in text: `grep '^{'`), the same that `/api/events` has.
//!
//! What pingora and other crates say through the `log` crate goes the same way. A closed or full standard error costs lines, never
//! the process: the subscriber's own complaints about it, which would panic, are off; and the writing is done by a thread of its own
//! behind a bounded queue, because the one who logs most is the one who must never wait, the writer of the world.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::LogFormat;
use crate::telemetry::repeats::Repeats;
use crate::telemetry::shape::{Shape, line_of, moment};

/// Where to look when `[log] level` should be overruled without touching the configuration.
const OVERRULE: &str = "RUST_LOG";

/// Before the operator's own directive, which may say otherwise: the file watcher warns of folders that went away, which is our daily
/// business; pingora tells of its own start and end in words of its own, and of each failed request, which the access log has; the HTTP/2 library of
/// each oddity of a client, which could fill a disk with them.
const QUIET: &str = "notify=error,pingora_core=warn,pingora_proxy=error,h2=error";

/// Lines that may wait. A broken configuration makes one long line; a lost data center, one for each endpoint.
const QUEUE: usize = 4096;

/// Between two looks whether there is something to say of repeats.
const LOOK: Duration = Duration::from_secs(1);

/// How long the end of the process waits for the last lines, in steps.
const LAST_WORDS: (u32, Duration) = (100, Duration::from_millis(10));

/// Why there is no process log.
#[derive(Debug)]
pub enum LogError {
    /// The directive is none; what was expected.
    Directive(String),
    /// Somebody else set up a log in this process before.
    Taken(TryInitError),
    /// No thread to write it.
    Thread(io::Error),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Directive(text) => f.write_str(text),
            LogError::Taken(error) => write!(f, "the process log is set up already: {error}"),
            LogError::Thread(error) => write!(f, "the process log has no thread: {error}"),
        }
    }
}

impl std::error::Error for LogError {}

/// Starts the process log in that format at `level`, a `tracing` directive such as `info` or `info,meridian::probe=debug`; the environment's `RUST_LOG`
/// wins when it is set. To be called once, before anything is logged. Lines are written until the guard is dropped.
pub fn start(level: &str, format: LogFormat) -> Result<LogGuard, LogError> {
    let overruled = std::env::var(OVERRULE).ok().filter(|value| !value.is_empty());
    let (name, directive) = match &overruled {
        Some(value) => (OVERRULE, value.as_str()),
        None => ("[log] level", level),
    };
    let filter = filter(name, directive)?;
    let repeats = Arc::new(Repeats::default());
    let left_out = Arc::clone(&repeats);
    let (lines, guard) = writer(io::stderr(), QUEUE, move |is_end| {
        let over = left_out.over((!is_end).then(moment));
        over.iter().map(|left_out| line_of(left_out, format)).collect()
    })
    .map_err(LogError::Thread)?;
    let layer = tracing_subscriber::fmt::layer().with_writer(lines).with_ansi(false).log_internal_errors(false);
    let layer = layer.event_format(Shape::new(format, repeats));
    tracing_subscriber::registry().with(filter).with(layer).try_init().map_err(LogError::Taken)?;
    Ok(guard)
}

/// Keeps the writer; when dropped, what is queued is still written, for at most a second.
#[derive(Debug)]
pub struct LogGuard {
    queue: SyncSender<Option<Vec<u8>>>,
    done: Receiver<()>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (steps, step) = LAST_WORDS;
        for _ in 0..steps {
            match self.queue.try_send(None) {
                Err(TrySendError::Full(_)) => thread::sleep(step),
                // An error is what is waited for: the thread dropped its end.
                _ => {
                    let _ = self.done.recv_timeout(steps * step);
                    return;
                }
            }
        }
    }
}

/// Where the subscriber writes: a line for each call.
#[derive(Clone, Debug)]
struct Lines {
    queue: SyncSender<Option<Vec<u8>>>,
    lost: Arc<AtomicU64>,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Some(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

/// Starts the thread that writes to `output`, behind a queue of `room` lines. `more` makes lines that are due whatever else is said, for the
/// last time at the end.
fn writer(
    mut output: impl Write + Send + 'static,
    room: usize,
    more: impl Fn(bool) -> String + Send + 'static,
) -> io::Result<(Lines, LogGuard)> {
    let (queue, lines) = sync_channel::<Option<Vec<u8>>>(room);
    let (finished, done) = sync_channel(0);
    let lost = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&lost);
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        let mut looked = moment();
        loop {
            // Nobody can be told that standard error is closed.
            let is_end = match lines.recv_timeout(LOOK) {
                Ok(Some(line)) => {
                    let _ = output.write_all(&line);
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Ok(None) | Err(RecvTimeoutError::Disconnected) => true,
            };
            if is_end || moment().saturating_duration_since(looked) >= LOOK {
                looked = moment();
                let _ = output.write_all(more(is_end).as_bytes());
            }
            if is_end {
                break;
            }
            let lost = counted.swap(0, Relaxed);
            if lost > 0 {
                let _ = output.write_all(format!("({lost} lines of this log were lost: nobody read it)\n").as_bytes());
            }
        }
        drop(finished);
    })?;
    Ok((Lines { queue: queue.clone(), lost }, LogGuard { queue, done }))
}

/// `name` is where the directive was written.
fn filter(name: &str, directive: &str) -> Result<Targets, LogError> {
    format!("{QUIET},{directive}").parse::<Targets>().map_err(|error| {
        LogError::Directive(format!(
            "{name} = \"{directive}\": {error}; expected error, warn, info, debug or trace, as in `info` or `info,meridian::probe=debug`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that takes a line only when told to.
    struct Stuck(Receiver<()>, std::sync::mpsc::Sender<String>);

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_output_that_takes_nothing_costs_lines_and_no_time() {
        let (go, stuck) = sync_channel(1);
        let (taken, written) = std::sync::mpsc::channel();
        let (mut lines, guard) = writer(Stuck(stuck, taken), 2, |_| String::new()).unwrap();
        for n in 0..100 {
            // Would never return if it waited.
            lines.write_all(format!("{n}\n").as_bytes()).unwrap();
        }
        // From here on the output takes everything.
        drop(go);
        drop(guard);
        let written: Vec<String> = written.iter().collect();
        assert_eq!(written.first().map(String::as_str), Some("0\n"));
        let lost: usize = written[1].trim_start_matches('(').split(' ').next().unwrap().parse().unwrap();
        assert_eq!(written.len() - 1 + lost, 100, "{written:?}");
    }

    #[test]
    fn a_directive_that_is_none_says_what_was_expected() {
        assert!(filter("[log] level", "info,meridian::probe=debug").is_ok());
        let error = filter("[log] level", "info,meridian=loud").unwrap_err().to_string();
        assert!(error.starts_with("[log] level = \"info,meridian=loud\": "), "{error}");
        assert!(error.contains("expected error, warn, info"), "{error}");
    }
}
