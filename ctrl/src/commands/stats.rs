//! Answers `show_version` and `show_stats`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use holdfast_dataplane::stats::{Counter, WorkerCounters};
use holdfast_dht as dht;
use holdfast_dpdk::{self as dpdk, Port};

use super::{Commands, as_u64, unavailable};
use crate::appliance::Appliance;
use crate::protocol::{
    ControlStats, Counters, DhtStats, Distribution, ErrorCode, PortStats, ProtocolError,
    StatsReply, VersionReply, WorkerStats,
};
use crate::uplink::Link;

impl Commands {
    pub(super) fn version(&self) -> VersionReply {
        VersionReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dpdk_version: dpdk::version(),
            locator: self.appliance.config.node.locator,
            pid: std::process::id(),
            uptime_ms: as_u64(self.appliance.started.elapsed().as_millis()),
        }
    }

    fn control(&self) -> ControlStats {
        let mut stats = self.appliance.control.stats();
        let (_, _, lost) = self.appliance.table.changes().usage();
        stats.counters.insert("changes_lost".to_owned(), lost);
        stats
    }

    pub(crate) fn stats(&self) -> Result<StatsReply, ProtocolError> {
        let Appliance { config, counters, table, kernel_check, ports, dht, .. } = &*self.appliance;
        let gauges = table.gauges();
        let table = [
            ("capacity", gauges.capacity),
            ("local", gauges.local),
            ("half_open", gauges.half_open),
            ("lingering", gauges.lingering),
            ("redirect", gauges.redirects),
            ("displaced", gauges.displaced),
            ("page_bytes", table.page_bytes() as u64),
        ];
        let cores = config.workers.cores.iter();
        let workers = cores.zip(counters).map(|(core, counters)| WorkerStats {
            core: (*core).into(),
            counters: worker_counters(&[counters]),
        });
        Ok(StatsReply {
            daemon: self.version(),
            workers: workers.collect(),
            totals: worker_counters(&counters.iter().collect::<Vec<_>>()),
            ports: ports
                .uplink
                .iter()
                .map(|port| port_stats("uplink", port, Some(&ports.link)))
                .chain(ports.host_port.iter().map(|port| port_stats("host_port", port, None)))
                .collect::<Result<_, _>>()?,
            table: table.map(|(name, value)| (name.to_owned(), value)).into(),
            kernel_check: kernel_check.stats(),
            health: self.health_stats(),
            reload: self.appliance.reload.stats(Instant::now()),
            control: self.control(),
            dht: dht_stats(&dht.stats().map_err(unavailable)?),
            incidents: self.appliance.incidents.stats(),
        })
    }
}

fn worker_counters(workers: &[&Arc<WorkerCounters>]) -> Counters {
    let sum = |counter| workers.iter().map(|counters| counters.get(counter)).sum();
    Counter::ALL.iter().map(|&counter| (counter.name().to_owned(), sum(counter))).collect()
}

fn port_stats(role: &str, port: &Port, link: Option<&Link>) -> Result<PortStats, ProtocolError> {
    let internal = |error: dpdk::Error| ProtocolError::new(ErrorCode::Internal, error.to_string());
    let info = port.info();
    let stats = port.stats().map_err(internal)?;
    let now = port.link().map_err(internal)?;
    Ok(PortStats {
        role: role.to_owned(),
        name: port.name().to_owned(),
        driver: info.device.driver.clone(),
        mac: info.device.mac.to_string(),
        link_up: link.map_or(now.up, Link::is_up),
        link_downs: link.map_or(0, Link::downs),
        lacks: info.lacks().map(ToString::to_string).collect(),
        speed_mbps: now.speed_mbps,
        mtu: info.mtu.into(),
        rx_packets: stats.rx_packets,
        rx_bytes: stats.rx_bytes,
        rx_missed: stats.rx_missed,
        rx_errors: stats.rx_errors,
        rx_no_mbuf: stats.rx_no_mbuf,
        tx_packets: stats.tx_packets,
        tx_bytes: stats.tx_bytes,
        tx_errors: stats.tx_errors,
    })
}

/// All gauges: a new one does not compile before it is here.
fn dht_gauges(gauges: dht::Gauges) -> Counters {
    let dht::Gauges {
        peers,
        peers_suspect,
        peers_away,
        peers_dead,
        records,
        tombstones,
        records_max,
        owners,
        published,
        published_unacked,
        published_moving,
        withdrawing,
        lookups_in_flight,
        walks_in_flight,
        requests_in_flight,
        operations_in_flight,
        operations_queued,
        joined,
        receive_buffer_bytes,
        send_buffer_bytes,
    } = gauges;
    let gauges = [
        ("peers", peers),
        ("peers_suspect", peers_suspect),
        ("peers_away", peers_away),
        ("peers_dead", peers_dead),
        ("records", records),
        ("tombstones", tombstones),
        ("records_max", records_max),
        ("owners", owners),
        ("published", published),
        ("published_unacked", published_unacked),
        ("published_moving", published_moving),
        ("withdrawing", withdrawing),
        ("lookups_in_flight", lookups_in_flight),
        ("walks_in_flight", walks_in_flight),
        ("requests_in_flight", requests_in_flight),
        ("operations_in_flight", operations_in_flight),
        ("operations_queued", operations_queued),
        ("joined", joined.into()),
        ("receive_buffer_bytes", receive_buffer_bytes),
        ("send_buffer_bytes", send_buffer_bytes),
    ];
    gauges.map(|(name, value)| (name.to_owned(), value)).into()
}

pub(crate) fn dht_stats(stats: &dht::Stats) -> DhtStats {
    let distributions = [
        ("setting_time_us", &stats.setting_time_us),
        ("lookup_time_us", &stats.lookup_time_found_us),
        ("lookup_time_not_found_us", &stats.lookup_time_not_found_us),
    ];
    DhtStats {
        counters: stats
            .counters
            .iter()
            .map(|(counter, value)| (counter.name().to_owned(), value))
            .collect(),
        gauges: dht_gauges(stats.gauges),
        distributions: BTreeMap::from(
            distributions.map(|(name, times)| (name.to_owned(), distribution(times))),
        ),
    }
}

pub(crate) fn distribution(times: &dht::Distribution) -> Distribution {
    Distribution {
        count: times.count,
        min: times.min,
        p50: times.p50,
        p90: times.p90,
        p99: times.p99,
        max: times.max,
        buckets: times.buckets.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SPECIFICATION: &str = include_str!("../../../docs/specification/control-protocol.md");

    #[test]
    fn the_specification_lists_every_gauge() {
        let gauges = dht_gauges(dht::Gauges::default());
        let check = crate::kernel_check::Totals::default().stats();
        let control = crate::socket::ControlCounters::default().stats();
        let checked = check.counters.keys().chain(check.gauges.keys());
        let controlled = control.counters.keys().chain(control.gauges.keys());
        let config = crate::config::tests::minimal_config();
        let health = crate::health::Health::new(&config, Instant::now()).stats(0, Instant::now());
        let health = health.counters.keys().chain(health.gauges.keys());
        for name in gauges.keys().chain(checked).chain(controlled).chain(health) {
            let row = format!("| `{name}` |");
            let is_there = SPECIFICATION.lines().any(|line| line.starts_with(&row));
            assert!(is_there, "{name} has no row in the specification");
        }
    }
}
