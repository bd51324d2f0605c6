//! Answers `show_limits`: everything that is bounded, how much there is of it, and how often the
//! bound was reached.

use std::sync::Arc;

use holdfast_dataplane::fragments::{LIMITS, WAITING_PER_DATAGRAM_MAX};
use holdfast_dataplane::service::SERVICES_MAX;
use holdfast_dataplane::session::owners::OwnerId;
use holdfast_dataplane::session::table::SessionTable;
use holdfast_dataplane::stats::{Counter, Gauge, WorkerCounters};
use holdfast_dataplane::worker::{
    NEIGHBOUR_ANSWERS_PER_SECOND, NOT_MINE_TO_ALL_PER_SECOND, OUT_MAX, TOO_BIG_PER_SECOND,
};
use holdfast_dht as dht;
use holdfast_dpdk::Mempool;

use super::{Commands, unavailable};
use crate::appliance::{ANNOUNCEMENTS, Appliance, STRAY_REPORTS};
use crate::config::{CHECKS_MAX, Config};
use crate::protocol::{ControlStats, LimitEntry, LimitScope, LimitsReply, ProtocolError};
use crate::socket::{CLIENTS_MAX, ITEMS_PER_S_MAX, REQUESTS_PER_S_MAX, STREAMS_MAX};

impl Commands {
    pub(crate) fn limits(&self) -> Result<LimitsReply, ProtocolError> {
        let appliance = &self.appliance;
        let dht = &appliance.dht;
        let config = appliance.reload.config();
        let mut limits = packet_path(&config, &appliance.counters, &appliance.table);
        let refused = appliance.kernel_check.stats().counters.get("table_full").copied();
        limits[0].hits += refused.unwrap_or(0);
        limits.push(self.mbufs());
        let counters = dht.stats().map_err(unavailable)?.counters;
        let of_dht = dht.limits().map_err(unavailable)?;
        limits.extend(of_dht.iter().map(|limit| dht_limit(limit, &counters)));
        limits.extend(control_socket(&appliance.control.stats()));
        limits.extend(self.incident_limits());
        limits.push(LimitEntry {
            used: Some(config.checks.len() as u64),
            ..entry("health.checks", None, LimitScope::Server, CHECKS_MAX as u64, "checks")
        });
        Ok(LimitsReply { limits })
    }

    /// The workers' packet buffers: the ports count what they dropped for want of one.
    fn mbufs(&self) -> LimitEntry {
        let Appliance { config, ports, .. } = &*self.appliance;
        let used = |pool: &Mempool| u64::from(pool.count().saturating_sub(pool.available()));
        let all = ports.uplink.iter().chain(ports.host_port.iter());
        let stats = all.filter_map(|port| port.stats().ok());
        let (key, value) = ("dpdk.mbufs_per_worker", config.dpdk.mbufs_per_worker);
        LimitEntry {
            used: ports.mempools.iter().map(used).max(),
            hits: stats.map(|stats| stats.rx_no_mbuf).sum(),
            counters: vec!["rx_no_mbuf".to_owned()],
            ..entry("worker.mbufs", Some(key), LimitScope::Worker, value.into(), "mbufs")
        }
    }
}

pub(super) fn entry(
    name: &str,
    key: Option<&str>,
    scope: LimitScope,
    value: u64,
    unit: &str,
) -> LimitEntry {
    LimitEntry {
        name: name.to_owned(),
        key: key.map(str::to_owned),
        scope,
        value,
        unit: unit.to_owned(),
        used: None,
        hits: 0,
        counters: Vec::new(),
    }
}

/// The session table's limits and the workers'. The table's entries come first.
fn packet_path(
    config: &Config,
    workers: &[Arc<WorkerCounters>],
    table: &SessionTable,
) -> Vec<LimitEntry> {
    let hits = |counters: &[Counter]| {
        let sum = |counter| workers.iter().map(move |worker| worker.get(counter));
        let names = counters.iter().map(|counter| counter.name().to_owned());
        (counters.iter().flat_map(|counter| sum(*counter)).sum::<u64>(), names.collect())
    };
    // A worker's gauge says nothing of the others': the fullest counts.
    let most = |gauge| workers.iter().map(|worker| worker.gauge(gauge)).max();
    let (gauges, (changes, changes_max, changes_lost)) = (table.gauges(), table.changes().usage());
    let (sessions, parking, admission) = (&config.sessions, &config.parking, &config.admission);
    let services = table.services().numbers() as u64;
    use LimitScope::{Datagram, Flow, Server, SourcePrefix, Worker};
    let of_table = [
        (
            entry(
                "table.entries",
                Some("sessions.capacity"),
                Server,
                sessions.capacity as u64,
                "entries",
            ),
            Some(gauges.local + gauges.redirects),
            hits(&[Counter::TableFull]),
        ),
        (
            entry(
                "table.half_open",
                Some("sessions.half_open_max"),
                Server,
                sessions.half_open_max as u64,
                "sessions",
            ),
            Some(gauges.half_open),
            hits(&[Counter::HalfOpenOverLimit]),
        ),
        (
            entry("table.owners", None, Server, OwnerId::COUNT as u64, "servers"),
            Some(table.owners().count() as u64),
            hits(&[Counter::OwnersFull]),
        ),
        (
            entry("table.services", None, Server, SERVICES_MAX as u64, "sockets"),
            Some(services),
            hits(&[]),
        ),
        (
            entry("table.changes_queued", None, Server, changes_max as u64, "changes"),
            Some(changes as u64),
            (changes_lost, vec!["changes_lost".to_owned()]),
        ),
    ];
    let of_workers = [
        (
            entry(
                "worker.parked",
                Some("parking.packets_max"),
                Worker,
                parking.packets_max as u64,
                "packets",
            ),
            most(Gauge::Parked),
            hits(&[Counter::ParkFull]),
        ),
        (
            entry(
                "worker.parked_per_flow",
                Some("parking.packets_per_flow_max"),
                Flow,
                parking.packets_per_flow_max as u64,
                "packets",
            ),
            None,
            hits(&[Counter::ParkFlowFull]),
        ),
        (
            entry(
                "worker.lookups",
                Some("admission.lookups_per_second"),
                Worker,
                admission.lookups_per_second.into(),
                "per_second",
            ),
            None,
            hits(&[Counter::LookupRefusedWorker]),
        ),
        (
            entry(
                "worker.lookups_at_once",
                Some("admission.burst"),
                Worker,
                admission.burst.into(),
                "lookups",
            ),
            most(Gauge::AdmissionUsed),
            hits(&[Counter::LookupRefusedWorker]),
        ),
        (
            entry(
                "worker.source_lookups",
                Some("admission.per_source_per_second"),
                SourcePrefix,
                admission.per_source_per_second.into(),
                "per_second",
            ),
            None,
            hits(&[Counter::LookupRefusedSource]),
        ),
        (
            entry(
                "worker.source_lookups_at_once",
                Some("admission.per_source_burst"),
                SourcePrefix,
                admission.per_source_burst.into(),
                "lookups",
            ),
            None,
            hits(&[Counter::LookupRefusedSource]),
        ),
        (
            entry(
                "worker.lookups_queued",
                Some("parking.packets_max"),
                Worker,
                parking.packets_max as u64,
                "lookups",
            ),
            most(Gauge::ResolvesQueued),
            hits(&[Counter::LookupRingFull]),
        ),
        (
            entry(
                "worker.announcements_queued",
                None,
                Worker,
                ANNOUNCEMENTS as u64,
                "announcements",
            ),
            most(Gauge::AnnouncementsQueued),
            hits(&[Counter::PublishDeferred, Counter::WithdrawDeferred, Counter::NotMineUnsent]),
        ),
        (
            entry("worker.stray_reports_queued", None, Worker, STRAY_REPORTS as u64, "reports"),
            None,
            hits(&[Counter::StrayUnreported]),
        ),
        (
            entry(
                "worker.not_mine_to_all",
                None,
                Worker,
                NOT_MINE_TO_ALL_PER_SECOND.into(),
                "per_second",
            ),
            None,
            hits(&[Counter::NotMineUnsent]),
        ),
        (
            entry("worker.fragments_waiting", None, Worker, LIMITS.waiting as u64, "packets"),
            most(Gauge::FragmentsWaiting),
            hits(&[Counter::FragmentFull]),
        ),
        (
            entry(
                "worker.fragments_per_datagram",
                None,
                Datagram,
                WAITING_PER_DATAGRAM_MAX as u64,
                "packets",
            ),
            None,
            hits(&[Counter::FragmentFull]),
        ),
        (
            entry("worker.fragment_datagrams", None, Worker, LIMITS.datagrams as u64, "datagrams"),
            most(Gauge::FragmentDatagrams),
            hits(&[]),
        ),
        (
            entry("worker.too_big_answers", None, Worker, TOO_BIG_PER_SECOND.into(), "per_second"),
            None,
            hits(&[Counter::TunnelTooBig]),
        ),
        (
            entry(
                "worker.neighbour_answers",
                None,
                Worker,
                NEIGHBOUR_ANSWERS_PER_SECOND.into(),
                "per_second",
            ),
            None,
            hits(&[Counter::NeighbourUnanswered]),
        ),
        (
            entry("worker.uplink_waiting", None, Worker, OUT_MAX as u64, "packets"),
            None,
            hits(&[Counter::UplinkUnsent]),
        ),
        (
            entry("worker.host_waiting", None, Worker, OUT_MAX as u64, "packets"),
            None,
            hits(&[Counter::HostUnsent]),
        ),
    ];
    let with = |(entry, used, (hits, counters))| LimitEntry { used, hits, counters, ..entry };
    of_table.into_iter().chain(of_workers).map(with).collect()
}

fn dht_limit(limit: &dht::Limit, counters: &dht::Counters) -> LimitEntry {
    let (key, scope, unit) = match limit.name {
        "records" => (Some("dht.records_max"), LimitScope::Server, "records"),
        "published" => (Some("sessions.capacity"), LimitScope::Server, "sessions"),
        "contacts_per_bucket" => (Some("dht.k"), LimitScope::Bucket, "servers"),
        "operations_per_peer" | "results_per_peer" => (None, LimitScope::Peer, "operations"),
        _ => (None, LimitScope::Server, "entries"),
    };
    LimitEntry {
        used: limit.used,
        hits: limit.hits.iter().map(|counter| counters.get(*counter)).sum(),
        counters: limit.hits.iter().map(|counter| counter.name().to_owned()).collect(),
        ..entry(&format!("dht.{}", limit.name), key, scope, limit.value, unit)
    }
}

fn control_socket(stats: &ControlStats) -> [LimitEntry; 4] {
    let of = |entry: LimitEntry, used: Option<&str>, hits: Option<&str>| LimitEntry {
        used: used.and_then(|name| stats.gauges.get(name)).copied(),
        hits: hits.and_then(|name| stats.counters.get(name)).copied().unwrap_or(0),
        counters: hits.into_iter().map(str::to_owned).collect(),
        ..entry
    };
    use LimitScope::{Server, Stream};
    let clients = entry("control.clients", None, Server, CLIENTS_MAX, "clients");
    let requests = entry("control.requests", None, Server, REQUESTS_PER_S_MAX.into(), "per_second");
    let streams = entry("control.streams", None, Server, STREAMS_MAX, "streams");
    let items = entry("control.stream_items", None, Stream, ITEMS_PER_S_MAX, "per_second");
    [
        of(clients, Some("clients"), Some("refused")),
        of(requests, None, Some("paced")),
        of(streams, Some("streams"), Some("streams_refused")),
        of(items, None, None),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_dataplane::service::Services;
    use holdfast_dataplane::session::expiry::Timeouts;
    use holdfast_net::HashKey;

    fn config() -> Config {
        let text = "[node]\nlocator = \"10.0.0.1\"\n[uplink]\ndevice = \"eth1\"\n[[service]]\n\
                    address = \"192.168.0.1\"\nports = [80]\n[cluster]\n\
                    members = [\"10.0.0.0/24\"]\ninsecure = true\n";
        Config::parse("c.toml", text).expect("valid")
    }

    fn limits(workers: &[Arc<WorkerCounters>]) -> Vec<LimitEntry> {
        let timeouts =
            Timeouts { half_open_ms: 1, established_ms: 1, linger_ms: 1, redirect_ms: 1 };
        let services = Services::new(config().service_sockets()).expect("few");
        let table = SessionTable::new(services, 1024, &timeouts, HashKey([1, 2])).expect("memory");
        packet_path(&config(), workers, &table)
    }

    /// What is dropped or put off because there is too much of something is a limit that is shown.
    #[test]
    fn every_counter_of_a_limit_is_among_the_limits() {
        let limits = limits(&[Arc::default()]);
        let words = ["full", "no room", "as many", "above the limit", "no number left", "no frame"];
        for counter in Counter::ALL {
            let is_limit = words.iter().any(|word| counter.help().contains(word));
            // The room in front of a frame has no number, and mbufs are counted by the ports.
            let others = [Counter::TunnelNoHeadroom, Counter::TunnelNoFrame];
            if is_limit && !others.contains(counter) {
                let is_shown =
                    limits.iter().any(|limit| limit.counters.iter().any(|c| c == counter.name()));
                assert!(is_shown, "{}: {}", counter.name(), counter.help());
            }
        }
    }

    #[test]
    fn the_fullest_worker_counts_and_hits_add_up() {
        let workers: Vec<Arc<WorkerCounters>> = vec![Arc::default(), Arc::default()];
        for (worker, (parked, full)) in workers.iter().zip([(7, 1), (3, 4)]) {
            worker.set_gauge(Gauge::Parked, parked);
            worker.add(Counter::ParkFull, full);
        }
        let limits = limits(&workers);
        let parked = limits.iter().find(|limit| limit.name == "worker.parked").expect("there");
        assert_eq!((parked.value, parked.used, parked.hits), (2048, Some(7), 5));
        assert_eq!(parked.key.as_deref(), Some("parking.packets_max"));
        assert_eq!(limits[0].name, "table.entries");
    }

    #[test]
    fn keys_are_keys_of_the_configuration() {
        let guide = include_str!("../../../docs/guide/configuration.md");
        for limit in limits(&[Arc::default()]) {
            if let Some(key) = limit.key {
                assert!(guide.contains(&format!("| `{key}` |")), "{key}");
            }
        }
    }
}
