//! What a phase costs: CPU time, datagrams and bytes on the loopback interface, memory. It reads
//! the kernel's counters and changes nothing.

use std::time::Instant;

use anyhow::{Context, Result};
use holdfast_dht::Counter;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::cluster::{Cluster, total};

/// The counters at one moment. Taken while the cluster is at rest.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    at: Instant,
    process_cpu_us: f64,
    driver_cpu_us: f64,
    wire: Wire,
    datagrams: u64,
    lookups_local: u64,
    retransmissions: u64,
}

/// What has gone over the loopback interface of this network namespace.
#[derive(Debug, Clone, Copy)]
struct Wire {
    /// From the IP header on: the kernel counts no link header here.
    bytes: u64,
    packets: u64,
}

/// What happened between two moments.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Wall time.
    pub elapsed_s: f64,
    /// CPU time of the process without the driver's thread.
    pub cpu_us: f64,
    /// CPU time of the driver's thread, which calls this.
    pub driver_cpu_us: f64,
    /// Lookups that the nodes answered from their own records.
    pub lookups_local: u64,
    datagrams: u64,
    retransmissions: u64,
    wire: Wire,
}

impl Meter {
    /// Reads all counters. Called by the driver's thread.
    pub fn read(cluster: &Cluster) -> Result<Meter> {
        let stats = cluster.stats()?;
        Ok(Meter {
            datagrams: total(&stats, Counter::DatagramsSent),
            lookups_local: total(&stats, Counter::LookupsLocal),
            retransmissions: total(&stats, Counter::Retransmissions),
            wire: Wire::read()?,
            driver_cpu_us: clock_us(ClockId::ThreadCPUTime),
            process_cpu_us: clock_us(ClockId::ProcessCPUTime),
            at: Instant::now(),
        })
    }

    /// What was spent since; `elapsed_s` ends when the phase did, before this is called.
    pub fn cost(&self, cluster: &Cluster, elapsed_s: f64) -> Result<Cost> {
        let process_cpu_us = clock_us(ClockId::ProcessCPUTime) - self.process_cpu_us;
        let driver_cpu_us = clock_us(ClockId::ThreadCPUTime) - self.driver_cpu_us;
        let wire = Wire::read()?;
        let stats = cluster.stats()?;
        Ok(Cost {
            elapsed_s,
            cpu_us: process_cpu_us - driver_cpu_us,
            driver_cpu_us,
            lookups_local: total(&stats, Counter::LookupsLocal) - self.lookups_local,
            datagrams: total(&stats, Counter::DatagramsSent) - self.datagrams,
            retransmissions: total(&stats, Counter::Retransmissions) - self.retransmissions,
            wire: Wire {
                bytes: wire.bytes - self.wire.bytes,
                packets: wire.packets - self.wire.packets,
            },
        })
    }

    /// When it was read.
    pub fn at(&self) -> Instant {
        self.at
    }
}

impl Cost {
    /// The cost of each of `operations`.
    pub fn per(&self, operations: u64) -> Value {
        let each = |value: f64| round(value / operations.max(1) as f64);
        json!({
            "cpu_us": each(self.cpu_us),
            "cpu_us_with_driver": each(self.cpu_us + self.driver_cpu_us),
            "wire_bytes": each(self.wire.bytes as f64),
            "wire_packets": each(self.wire.packets as f64),
            "datagrams_sent": each(self.datagrams as f64),
            "retransmissions": each(self.retransmissions as f64),
        })
    }

    /// How many of the machine's cores were busy, the driver included.
    pub fn cores_busy(&self) -> f64 {
        round((self.cpu_us + self.driver_cpu_us) / 1e6 / self.elapsed_s)
    }
}

impl Wire {
    fn read() -> Result<Wire> {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").context("net/dev")?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"));
        let line = line.context("this network namespace has no interface lo")?;
        let mut columns = line.split_whitespace().map(str::parse);
        let bytes = columns.next().context("net/dev")??;
        let packets = columns.next().context("net/dev")??;
        Ok(Wire { bytes, packets })
    }
}

/// Memory of the process that is in RAM, in bytes.
pub fn resident_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}

/// Three digits after the point are more than any of these measurements has.
pub fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn clock_us(id: ClockId) -> f64 {
    let time = clock_gettime(id);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
