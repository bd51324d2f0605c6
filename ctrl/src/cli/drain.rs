//! `drain` and `undrain`.

use std::time::Duration;

use clap::Args;

use super::{Daemon, Failure};
use crate::protocol::{DrainMode, DrainTimeout, HealthReply, HealthState, PrefixReport, Request};
use crate::show;

/// Pause between two looks at a drain under way.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the announcer may take to withdraw the prefixes of a drained server, in milliseconds:
/// as long as it pauses at most when it has failed.
const WITHDRAWN_WITHIN_MS: u64 = 60_000;

/// Send new sessions to other servers, and let those that are there go on.
///
/// Over when the last session has ended, or the timeout; then the prefixes are withdrawn.
#[derive(Debug, Args)]
pub struct Drain {
    /// How long sessions may go on, as in 90s or 10m; at most a day.
    #[arg(long, value_name = "TIME", default_value = "10m")]
    timeout: DrainTimeout,
    /// Announce the prefixes with the community GRACEFUL_SHUTDOWN meanwhile (RFC 8326): the default.
    #[arg(long, conflicts_with = "withdraw")]
    graceful_shutdown: bool,
    /// Withdraw the prefixes at once.
    #[arg(long)]
    withdraw: bool,
    /// Start drained from now on, until `undrain`.
    #[arg(long)]
    persist: bool,
    /// Wait until the server is drained and its prefixes are withdrawn, and say how far it is. Exit
    /// status 4 when the time is over and sessions are left, 5 when a prefix may still be announced.
    #[arg(long)]
    wait: bool,
}

impl Drain {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        let mode = if self.withdraw { DrainMode::Withdraw } else { DrainMode::GracefulShutdown };
        let request = Request::Drain { timeout: self.timeout, mode, persist: self.persist };
        if self.wait {
            let ordered = daemon.ask(&request)?;
            return wait(daemon, ordered);
        }
        daemon.show(&request, show::health)
    }
}

/// Says how far the drain is whenever that changes, and how it ended.
fn wait(daemon: &Daemon, mut reply: HealthReply) -> Result<(), Failure> {
    let mut said = None;
    loop {
        let left = reply.sessions_left;
        if reply.drain.is_none() {
            return Err(Failure::Undrained);
        }
        if reply.state == HealthState::Drained {
            let announced = still_announced(&reply);
            if announced.is_empty() {
                daemon.print(&reply, show::drained)?;
                return if left == 0 { Ok(()) } else { Err(Failure::SessionsLeft(left)) };
            }
            if announced.iter().all(|prefix| prefix.since_ms >= WITHDRAWN_WITHIN_MS) {
                daemon.print(&reply, show::drained)?;
                return Err(Failure::Announced(announced[0].prefix));
            }
        }
        let how_far = Some((reply.state, left));
        if !daemon.json && said != how_far {
            super::print(&show::draining(&reply))?;
            said = how_far;
        }
        std::thread::sleep(PAUSE);
        reply = daemon.ask(&Request::ShowHealth {})?;
    }
}

/// The prefixes that routing was not told to withdraw yet: its announcer takes a moment, or fails.
fn still_announced(reply: &HealthReply) -> Vec<&PrefixReport> {
    reply.prefixes.iter().filter(|prefix| prefix.route != "withdrawn").collect()
}

/// Take traffic again, after `drain`.
#[derive(Debug, Args)]
pub struct Undrain {}

impl Undrain {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        daemon.show(&Request::Undrain {}, show::health)
    }
}
