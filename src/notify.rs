//! What the service manager is told: `sd_notify(3)`.
//!
//! Outside systemd (no `NOTIFY_SOCKET`) everything here does nothing. A manager that does not listen is logged and never
//! stops us.

use std::time::Duration;

use sd_notify::NotifyState;

/// What to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage<'a> {
    /// Up and ready, or ready again after a reload; with a line for `systemctl status`.
    Ready(&'a str),
    /// Reading the configuration anew. Followed by [`Stage::Ready`] however that ends.
    Reloading,
    /// On the way out; with a line for `systemctl status`.
    Stopping(&'a str),
    /// A line for `systemctl status`.
    Status(&'a str),
    /// This process is the main one from now on, not the one that says so.
    MainPid(u32),
    /// Everything moves still.
    Alive,
}

/// Within which time the service manager wants to hear [`Stage::Alive`] each time; `None`: it does not.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Tells the service manager.
pub fn tell(stage: Stage<'_>) {
    let told = match stage {
        Stage::Ready(status) => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]),
        // `Type=notify-reload` wants the time beside the word, or it takes the message for an older one.
        Stage::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now, NotifyState::Status("reloading")])),
        Stage::Stopping(status) => sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(status)]),
        Stage::MainPid(pid) => sd_notify::notify(&[NotifyState::MainPid(pid)]),
        Stage::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
        Stage::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told how we are");
    }
}
