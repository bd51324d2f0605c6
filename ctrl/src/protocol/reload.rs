//! Reloading the configuration, as the protocol shows it.

use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::Counters;

/// Longest time that a reload waits for its confirmation, in milliseconds: an hour.
pub const CONFIRM_MS_MAX: u64 = 3_600_000;
/// And the shortest: nobody confirms faster.
pub const CONFIRM_MS_MIN: u64 = 1000;

/// How long a reload waits for its confirmation before it is rolled back:
/// [`CONFIRM_MS_MIN`] to [`CONFIRM_MS_MAX`] milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schemars(extend("minimum" = CONFIRM_MS_MIN, "maximum" = CONFIRM_MS_MAX))]
pub struct ConfirmTime(u64);

/// Why a time is none to wait for a confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected a time from 1s to 1h, as in \"60s\"")]
pub struct ConfirmTimeError;

impl ConfirmTime {
    /// The time.
    #[must_use]
    pub const fn get(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl TryFrom<u64> for ConfirmTime {
    type Error = ConfirmTimeError;

    fn try_from(ms: u64) -> Result<ConfirmTime, ConfirmTimeError> {
        let sound = (CONFIRM_MS_MIN..=CONFIRM_MS_MAX).contains(&ms);
        if sound { Ok(ConfirmTime(ms)) } else { Err(ConfirmTimeError) }
    }
}

impl From<ConfirmTime> for u64 {
    fn from(time: ConfirmTime) -> u64 {
        time.0
    }
}

impl FromStr for ConfirmTime {
    type Err = ConfirmTimeError;

    fn from_str(text: &str) -> Result<ConfirmTime, ConfirmTimeError> {
        let time = humantime_serde::re::humantime::parse_duration(text);
        let ms = time.ok().and_then(|time| u64::try_from(time.as_millis()).ok());
        ms.ok_or(ConfirmTimeError)?.try_into()
    }
}

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ReloadReply {
    /// The configuration file.
    pub path: String,
    /// What is otherwise than before; by key.
    pub changes: Vec<ConfigChange>,
    /// Whether that holds now: not of a dry run.
    pub applied: bool,
    /// Time until it is rolled back unless it is confirmed, in milliseconds; `None` when it
    /// stays.
    pub confirm_within_ms: Option<u64>,
    /// What works in the file but is probably not meant.
    pub warnings: Vec<String>,
}

/// A key of the configuration that has another value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigChange {
    /// The key, as in `admission.burst`; or the name of tables that there can be several of, as in
    /// `service`.
    pub key: String,
    /// Its value before, as in the file; `null` when it had none.
    pub before: Value,
    /// Its value after; `null` when it has none.
    pub after: Value,
}

/// A reload that waits for its confirmation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UnconfirmedReload {
    /// Time until it is rolled back, in milliseconds.
    pub left_ms: u64,
    /// What is otherwise than before.
    pub changes: Vec<ConfigChange>,
}

/// Reloads of the configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ReloadStats {
    /// Since the daemon's start, as the specification lists them.
    pub counters: Counters,
    /// Now: `unconfirmed_ms`.
    pub gauges: Counters,
}
