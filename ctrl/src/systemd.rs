//! What the service manager is told of the daemon's state, as sd_notify(3) says it. Does nothing
//! where no service manager listens (`NOTIFY_SOCKET`).

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

/// The daemon does what it is there for; also after [`reloading`].
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is read again; [`ready`] ends it.
///
/// # Errors
/// When the kernel has no monotonic clock.
pub fn reloading() -> io::Result<()> {
    // From systemd 253 on the time is not optional.
    tell(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]);
    Ok(())
}

/// The daemon begins to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// One line for a person, as `systemctl status` shows it.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The daemon is alive; for once per half of [`watchdog`]'s time at least.
pub fn feed_watchdog(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}

/// How long the service manager waits for the next [`feed_watchdog`] before it kills the daemon;
/// `None` when it does not.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("the service manager cannot be told: {error}");
    }
}
