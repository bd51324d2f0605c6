//! Answers of many lines: items, how many were missed, and the last line.

use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::PROTOCOL_VERSION;

/// Longest time that a stream can be asked for, in milliseconds: an hour.
pub const STREAM_MS_MAX: u64 = 3_600_000;
/// Most items that a stream can be asked for.
pub const STREAM_ITEMS_MAX: u64 = 10_000_000;

/// How long a stream is at most, 1 to [`STREAM_MS_MAX`] milliseconds: the longest unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schemars(extend("minimum" = 1, "maximum" = STREAM_MS_MAX))]
pub struct StreamTime(u64);

/// How many items a stream has at most, 1 to [`STREAM_ITEMS_MAX`]: the most unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schemars(extend("minimum" = 1, "maximum" = STREAM_ITEMS_MAX))]
pub struct StreamCount(u64);

/// Why a number bounds no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StreamBoundsError {
    /// No time.
    #[error("expected a time from 1 ms to 1 h")]
    Time,
    /// No number of items.
    #[error("expected a number from 1 to {STREAM_ITEMS_MAX}")]
    Count,
}

impl Default for StreamTime {
    fn default() -> StreamTime {
        StreamTime(STREAM_MS_MAX)
    }
}

impl Default for StreamCount {
    fn default() -> StreamCount {
        StreamCount(STREAM_ITEMS_MAX)
    }
}

impl TryFrom<u64> for StreamTime {
    type Error = StreamBoundsError;

    fn try_from(ms: u64) -> Result<StreamTime, StreamBoundsError> {
        let sound = (1..=STREAM_MS_MAX).contains(&ms);
        if sound { Ok(StreamTime(ms)) } else { Err(StreamBoundsError::Time) }
    }
}

impl TryFrom<u64> for StreamCount {
    type Error = StreamBoundsError;

    fn try_from(items: u64) -> Result<StreamCount, StreamBoundsError> {
        let sound = (1..=STREAM_ITEMS_MAX).contains(&items);
        if sound { Ok(StreamCount(items)) } else { Err(StreamBoundsError::Count) }
    }
}

impl From<StreamTime> for u64 {
    fn from(time: StreamTime) -> u64 {
        time.0
    }
}

impl From<StreamCount> for u64 {
    fn from(count: StreamCount) -> u64 {
        count.0
    }
}

/// As people write times: `30s`, `5m`, `1h`.
impl FromStr for StreamTime {
    type Err = StreamBoundsError;

    fn from_str(text: &str) -> Result<StreamTime, StreamBoundsError> {
        let time = humantime_serde::re::humantime::parse_duration(text);
        let ms = time.ok().and_then(|time| u64::try_from(time.as_millis()).ok());
        ms.unwrap_or(0).try_into()
    }
}

impl FromStr for StreamCount {
    type Err = StreamBoundsError;

    fn from_str(text: &str) -> Result<StreamCount, StreamBoundsError> {
        text.parse().unwrap_or(0u64).try_into()
    }
}

/// How long a stream may be, in time and in items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamBounds {
    /// In time.
    pub time: StreamTime,
    /// In items.
    pub count: StreamCount,
}

impl StreamBounds {
    /// The most time that it takes.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.time.0)
    }

    /// The most items that it has.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.count.0
    }
}

/// The last line of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamReply {
    /// Items that were sent.
    pub items: u64,
    /// Items that the client missed, as it did not read them in time.
    pub missed: u64,
    /// Why the stream ended.
    pub ended: StreamEnd,
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamEnd {
    /// There are no more items.
    Done,
    /// It had as many as were asked for.
    Count,
    /// It had as many bytes as were asked for.
    Bytes,
    /// It took as long as was asked for.
    Time,
    /// The daemon stops.
    Stopped,
    /// The client is gone, or does not read: nobody is told.
    Lost,
}

/// The line, without newline, of an item.
#[must_use]
pub fn item_line<T: Serialize>(item: &T) -> String {
    #[derive(Serialize)]
    struct Line<'a, T> {
        version: u64,
        item: &'a T,
    }
    // As of `answer_line`: types of this protocol have a form in JSON.
    serde_json::to_string(&Line { version: PROTOCOL_VERSION, item }).unwrap_or_default()
}

/// The line, without newline, that says that items were missed.
#[must_use]
pub fn missed_line(count: u64) -> String {
    format!(r#"{{"version":{PROTOCOL_VERSION},"missed":{count}}}"#)
}
