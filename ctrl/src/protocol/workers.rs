//! How busy the workers are, as the protocol shows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How busy the workers are.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct WorkersReply {
    /// Cycles of the time stamp counter in a second.
    pub tsc_hz: u64,
    /// Size of the pages that the session table lies in, in bytes.
    pub table_page_bytes: u64,
    /// The last second that the daemon measured; `None` before it has measured one.
    pub last_second: Option<LoadPeriod>,
    /// From the daemon's start until now.
    pub since_start: LoadPeriod,
}

/// What the workers did in a period.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LoadPeriod {
    /// How long it was, in microseconds.
    pub duration_us: u64,
    /// Each worker, in the order of the configuration.
    pub workers: Vec<WorkerLoad>,
}

/// What one worker did in a period. Figures are rounded, ratios to one decimal; `None` where
/// there is nothing to divide by.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct WorkerLoad {
    /// Its CPU.
    pub core: u32,
    /// Share of its time spent in turns that found something to do, 0 to 100.
    pub busy_percent: Option<f64>,
    /// Packets received per turn that found something to do.
    pub packets_per_burst: Option<f64>,
    /// Cycles of the time stamp counter spent in such turns, per packet received.
    pub cycles_per_packet: Option<f64>,
    /// Packets received from the uplink in a second.
    pub uplink_packets_per_s: Option<u64>,
    /// Packets received from the host in a second.
    pub host_packets_per_s: Option<u64>,
    /// Packets that it dropped in the period: a mean hides the few that a long one has.
    pub drops: u64,
    /// The same in a second.
    pub drops_per_s: Option<u64>,
    /// Turns of its loop in a second, those that found nothing too.
    pub turns_per_s: Option<u64>,
}
