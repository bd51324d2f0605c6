//! Health, announcing and drain.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use humantime_serde::re::humantime::parse_duration;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Counters;

/// Where a prefix stands; `docs/guide/announce.md` draws how it gets there.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// The kernel's sockets are being read (R7).
    Starting,
    /// The server joins the DHT and publishes what the kernel held, and the services are checked
    /// for the first time.
    Joining,
    /// The prefix is announced.
    Ready,
    /// A service does not answer, or the uplink has no carrier: the prefix is withdrawn.
    Unhealthy,
    /// New sessions are to go elsewhere, and those that are there go on.
    Draining,
    /// No session is left, or there was no more time: the prefix is withdrawn.
    Drained,
    /// The daemon ends; what is announced stays as it is.
    Stopping,
    /// A state of a later daemon.
    #[serde(other)]
    Unknown,
}

impl HealthState {
    /// All states that a prefix can be in, in the order of their numbers, from 0.
    pub const ALL: [HealthState; 7] = [
        HealthState::Starting,
        HealthState::Joining,
        HealthState::Ready,
        HealthState::Unhealthy,
        HealthState::Draining,
        HealthState::Drained,
        HealthState::Stopping,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            HealthState::Starting => "starting",
            HealthState::Joining => "joining",
            HealthState::Ready => "ready",
            HealthState::Unhealthy => "unhealthy",
            HealthState::Draining => "draining",
            HealthState::Drained => "drained",
            HealthState::Stopping => "stopping",
            HealthState::Unknown => "unknown",
        }
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How new sessions are sent elsewhere while those that are there go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainMode {
    /// The routes say that they will be gone soon (RFC 8326): whoever has another one takes that.
    #[default]
    GracefulShutdown,
    /// The routes are withdrawn.
    Withdraw,
}

impl fmt::Display for DrainMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DrainMode::GracefulShutdown => "graceful shutdown",
            DrainMode::Withdraw => "withdraw",
        })
    }
}

/// Longest time that a drain can be given, in milliseconds: a day.
pub const DRAIN_MS_MAX: u64 = 86_400_000;

/// How long a drain may take, 0 to [`DRAIN_MS_MAX`] milliseconds: ten minutes unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schemars(extend("minimum" = 0, "maximum" = DRAIN_MS_MAX))]
pub struct DrainTimeout(u64);

impl DrainTimeout {
    /// The time.
    #[must_use]
    pub const fn get(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl Default for DrainTimeout {
    /// Ten minutes.
    fn default() -> DrainTimeout {
        DrainTimeout(10 * 60 * 1000)
    }
}

/// Why a time is none for a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected a time with its unit, as in 90s or 10m, of at most one day")]
pub struct DrainTimeoutError;

impl TryFrom<u64> for DrainTimeout {
    type Error = DrainTimeoutError;

    fn try_from(ms: u64) -> Result<DrainTimeout, DrainTimeoutError> {
        if ms <= DRAIN_MS_MAX { Ok(DrainTimeout(ms)) } else { Err(DrainTimeoutError) }
    }
}

impl From<DrainTimeout> for u64 {
    fn from(timeout: DrainTimeout) -> u64 {
        timeout.0
    }
}

impl FromStr for DrainTimeout {
    type Err = DrainTimeoutError;

    fn from_str(text: &str) -> Result<DrainTimeout, DrainTimeoutError> {
        let time = parse_duration(text).map_err(|_| DrainTimeoutError)?;
        u64::try_from(time.as_millis()).map_err(|_| DrainTimeoutError)?.try_into()
    }
}

/// What the daemon knows of this server's health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HealthReply {
    /// The server's state: its prefixes'; where they differ, that of the one that is worse off.
    pub state: HealthState,
    /// Local sessions that are not over.
    pub sessions_left: u64,
    /// What keeps all prefixes from being announced for the first time, a sentence each.
    pub awaited: Vec<String>,
    /// The prefixes that are announced together with what lies in them.
    pub prefixes: Vec<PrefixReport>,
    /// The checks of the services, in the order of the configuration.
    pub checks: Vec<CheckReport>,
    /// The order to drain, if there is one.
    pub drain: Option<DrainReport>,
    /// Who announces.
    pub announcer: AnnouncerReport,
}

/// A prefix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PrefixReport {
    /// The prefix.
    #[schemars(with = "String")]
    pub prefix: IpNet,
    /// Where it stands.
    pub state: HealthState,
    /// Since when, in milliseconds.
    pub since_ms: u64,
    /// What the announcer was told last and took: `announced`, `graceful_shutdown` or `withdrawn`;
    /// `unknown` when it was not told or failed.
    pub route: String,
    /// What speaks against announcing it, a sentence each.
    pub because: Vec<String>,
}

/// The check of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckReport {
    /// The service.
    #[schemars(with = "String")]
    pub service: SocketAddr,
    /// Where to the check connects.
    #[schemars(with = "String")]
    pub target: SocketAddr,
    /// `tcp` or `http`.
    pub kind: String,
    /// Whether the service is up; `None` until the first check.
    pub up: Option<bool>,
    /// Since when, in milliseconds; `None` until the first check.
    pub since_ms: Option<u64>,
    /// Checks that were made.
    pub checks: u64,
    /// Of these, the ones that failed.
    pub failures: u64,
    /// Times that the service went down or came up.
    pub changes: u64,
    /// How long the last check took, in microseconds.
    pub duration_us: u64,
    /// Why the last check failed, if it did.
    pub trouble: Option<String>,
}

/// An order to drain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrainReport {
    /// How new sessions are sent elsewhere.
    pub mode: DrainMode,
    /// Since when, in milliseconds.
    pub since_ms: u64,
    /// How long it may take, in milliseconds from its begin.
    pub timeout_ms: u64,
    /// Whether it outlives the daemon.
    pub persist: bool,
}

/// Who announces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnnouncerReport {
    /// `none`, `frr` or `exabgp`.
    pub kind: String,
    /// Why it does not know what it was told last, if it does not.
    pub trouble: Option<String>,
    /// Why what is announced cannot be written down for the next daemon, if it cannot.
    pub state_file_trouble: Option<String>,
}

/// Counters and gauges of the health checks, of announcing and of drain.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct HealthStats {
    /// Since the daemon's start.
    pub counters: Counters,
    /// Now.
    pub gauges: Counters,
    /// Each check.
    pub checks: Vec<CheckReport>,
}
