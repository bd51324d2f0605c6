//! Counters, gauges and who answers, as the protocol shows them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Counters, HealthStats, IncidentStats, ReloadStats};

/// Who answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VersionReply {
    /// Version of holdfast.
    pub version: String,
    /// Version of DPDK, as it names itself.
    pub dpdk_version: String,
    /// The server's locator.
    pub locator: IpAddr,
    /// The daemon's process id.
    pub pid: u32,
    /// Time since the daemon's start, in milliseconds.
    pub uptime_ms: u64,
}

/// Counters and gauges of the whole daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatsReply {
    /// Who answers.
    #[serde(flatten)]
    pub daemon: VersionReply,
    /// Each worker, in the order of the configuration.
    pub workers: Vec<WorkerStats>,
    /// The workers' counters added up.
    pub totals: Counters,
    /// The DPDK ports: uplink, then host port.
    pub ports: Vec<PortStats>,
    /// Gauges of the session table: at least `capacity`, `local` and `redirect`, in entries.
    pub table: Counters,
    /// The comparison of the table with the kernel's sockets.
    #[serde(default)]
    pub kernel_check: KernelCheckStats,
    /// Checks of the services, announcing and drain.
    #[serde(default)]
    pub health: HealthStats,
    /// Reloads of the configuration.
    #[serde(default)]
    pub reload: ReloadStats,
    /// The DHT core.
    pub dht: DhtStats,
    /// The control socket.
    #[serde(default)]
    pub control: ControlStats,
    /// What strays did to sessions.
    #[serde(default)]
    pub incidents: IncidentStats,
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ControlStats {
    /// Since the daemon's start, as the specification lists them.
    pub counters: Counters,
    /// Now: `clients` and `streams`.
    pub gauges: Counters,
    /// Requests since the daemon's start, by command.
    pub requests: Counters,
}

/// The comparison of the session table with the kernel's sockets.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct KernelCheckStats {
    /// Since the daemon's start, as the specification lists them.
    pub counters: Counters,
    /// Of the last check: `held` and `duration_us`.
    pub gauges: Counters,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStats {
    /// Its CPU.
    pub core: u32,
    /// Its counters since the daemon's start.
    pub counters: Counters,
}
/// One DPDK port. Counters run since the daemon's start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PortStats {
    /// `uplink` or `host_port`.
    pub role: String,
    /// DPDK's name of the device.
    pub name: String,
    /// DPDK's name of the driver.
    pub driver: String,
    /// Ethernet address, as in `02:00:00:00:00:01`.
    pub mac: String,
    /// Whether the link is up.
    pub link_up: bool,
    /// How often the uplink's link went down; 0 of the host port.
    #[serde(default)]
    pub link_downs: u64,
    /// What the device was asked for and cannot do, in words.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// Speed of the link in Mbit/s, if it has one.
    pub speed_mbps: Option<u32>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets that the device dropped since no descriptor was free.
    pub rx_missed: u64,
    /// Broken packets received.
    pub rx_errors: u64,
    /// Packets for which there was no mbuf.
    pub rx_no_mbuf: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that the device failed to send.
    pub tx_errors: u64,
}

/// The DHT core.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DhtStats {
    /// Since the daemon's start.
    pub counters: Counters,
    /// Now, as the specification lists them: at least `peers` and `records`.
    pub gauges: Counters,
    /// At least `setting_time_us` (STORE sent until all replicas acknowledged it),
    /// `lookup_time_us` (first request sent until the owner is known) and
    /// `lookup_time_not_found_us` (until it is known that there is none).
    pub distributions: BTreeMap<String, Distribution>,
}

/// How a measured value is distributed; its unit is at the end of its name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Distribution {
    /// How many were measured. When none, all values below are 0.
    pub count: u64,
    /// Least.
    pub min: u64,
    /// Median.
    pub p50: u64,
    /// Nine of ten are not above.
    pub p90: u64,
    /// 99 of 100 are not above.
    pub p99: u64,
    /// Greatest.
    pub max: u64,
    /// `[value, count]`: a value, exact to two digits, and how many had it; ascending, at most
    /// some 2,500. Distributions of several servers merge by adding the counts of equal values.
    pub buckets: Vec<(u64, u64)>,
}
