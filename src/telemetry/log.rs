//! Set-up of the process log: compact lines on standard error, where journald, Docker and people look for them.
//!
//! What pingora and other crates say through the `log` crate goes the same way. A closed or full standard error costs lines, never
//! the process: the subscriber's own complaints about it, which would panic, are off.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::Subscriber;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Where to look when `[log] level` should be overruled without touching the configuration.
const OVERRULE: &str = "RUST_LOG";

/// Before the operator's own directive, which may say otherwise: the file watcher warns of folders that went away, which is our daily
/// business; pingora tells of its own start and end in words of its own, and of each failed request, which the access log has.
const QUIET: &str = "notify=error,pingora_core=warn,pingora_proxy=error";

/// Why there is no process log.
#[derive(Debug)]
pub enum LogError {
    /// The directive is none; what was expected.
    Directive(String),
    /// Somebody else set up a log in this process before.
    Taken(TryInitError),
}

impl std::fmt::Display for LogError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LogError::Directive(text) => f.write_str(text),
            LogError::Taken(error) => write!(f, "the process log is set up already: {error}"),
        }
    }
}

impl std::error::Error for LogError {}

/// Starts the process log at `level`, a `tracing` directive such as `info` or `info,meridian::probe=debug`; the environment's `RUST_LOG`
/// wins when it is set. To be called once, before anything is logged.
pub fn start(level: &str) -> Result<(), LogError> {
    let overruled = std::env::var(OVERRULE).ok().filter(|value| !value.is_empty());
    let (name, directive) = match &overruled {
        Some(value) => (OVERRULE, value.as_str()),
        None => ("[log] level", level),
    };
    let filter = filter(name, directive)?;
    let builder = Subscriber::builder().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    builder.log_internal_errors(false).compact().finish().try_init().map_err(LogError::Taken)
}

/// `name` is where the directive was written.
fn filter(name: &str, directive: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(format!("{QUIET},{directive}")).map_err(|error| {
        LogError::Directive(format!(
            "{name} = \"{directive}\": {error}; expected error, warn, info, debug or trace, as in `info` or `info,meridian::probe=debug`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directive_that_is_none_says_what_was_expected() {
        assert!(filter("[log] level", "info,meridian::probe=debug").is_ok());
        let error = filter("[log] level", "info,meridian=loud").unwrap_err().to_string();
        assert!(error.starts_with("[log] level = \"info,meridian=loud\": "), "{error}");
        assert!(error.contains("expected error, warn, info"), "{error}");
    }
}
