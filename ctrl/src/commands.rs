//! Answers the control socket's requests from what the running appliance shows. Never changes
//! it, and never keeps a worker waiting: tables and counters are read while they are written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use holdfast_dataplane::session::{Listed, Session};
use holdfast_dataplane::stats::{Counter, WorkerCounters};
use holdfast_dataplane::time::Tick;
use holdfast_dht::{self as dht, HandleError};
use holdfast_dpdk::{self as dpdk, Port};
use holdfast_net::FlowKey;

use crate::appliance::Appliance;
use crate::health::Server;
use crate::load;
use crate::protocol::{
    Counters, DhtStats, Distribution, ErrorCode, JournalEntry, LookupOutcome, LookupReply,
    LookupReport, LookupsReply, Peer, PeersReply, PortStats, ProtocolError, ReplicaAnswer, Reply,
    Request, SessionEntry, SessionKind, SessionsReply, StatsReply, VersionReply, WorkerStats,
    WorkersReply,
};

/// Answers requests about one appliance.
#[derive(Debug)]
pub struct Commands {
    appliance: Arc<Appliance>,
}

impl Commands {
    /// Answers about `appliance`.
    #[must_use]
    pub fn new(appliance: Arc<Appliance>) -> Commands {
        Commands { appliance }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// The refusal to send back.
    pub fn answer(&self, request: Request) -> Result<Reply, ProtocolError> {
        Ok(match request {
            Request::ShowStats {} => Reply::Stats(Box::new(self.stats()?)),
            Request::ShowWorkers {} => Reply::Workers(self.workers()),
            Request::ShowSessions { .. } => Reply::Sessions(self.sessions(&request)),
            Request::ShowPeers {} => Reply::Peers(self.peers()?),
            Request::ShowLookups { limit } => Reply::Lookups(self.lookups(limit.get())?),
            Request::ShowVersion {} => Reply::Version(self.version()),
            Request::Lookup { flow } => Reply::Lookup(self.lookup(flow)?),
        })
    }

    fn version(&self) -> VersionReply {
        VersionReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dpdk_version: dpdk::version(),
            locator: self.appliance.config.node.locator,
            pid: std::process::id(),
            uptime_ms: as_u64(self.appliance.started.elapsed().as_millis()),
        }
    }

    fn stats(&self) -> Result<StatsReply, ProtocolError> {
        let Appliance { config, counters, table, kernel_check, ports, health, dht, .. } =
            &*self.appliance;
        let gauges = table.gauges();
        let table = [
            ("capacity", gauges.capacity),
            ("local", gauges.local),
            ("half_open", gauges.half_open),
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
                .map(|port| port_stats("uplink", port))
                .chain(ports.host_port.iter().map(|port| port_stats("host_port", port)))
                .collect::<Result<_, _>>()?,
            table: table.map(|(name, value)| (name.to_owned(), value)).into(),
            kernel_check: kernel_check.stats(),
            health: health.stats(self.appliance.sessions_left(), Instant::now()),
            dht: dht_stats(&dht.stats().map_err(unavailable)?),
        })
    }

    fn workers(&self) -> WorkersReply {
        let Appliance { config, counters, samples, started, .. } = &*self.appliance;
        let cores = &config.workers.cores;
        WorkersReply {
            tsc_hz: self.appliance.tsc_hz,
            table_page_bytes: self.appliance.table.page_bytes() as u64,
            last_second: samples.last(cores),
            since_start: load::since_start(cores, counters, started.elapsed()),
        }
    }

    /// Walks over the whole table, so that `total` is right; lists what the limit allows.
    fn sessions(&self, request: &Request) -> SessionsReply {
        let Request::ShowSessions { limit, .. } = request else {
            return SessionsReply::default();
        };
        let table = &self.appliance.table;
        let now = self.now();
        let mut reply = SessionsReply::default();
        for bucket in 0..table.buckets() {
            table.visit(bucket, |entry| {
                let Some(listed) = table.listed(&entry, now) else {
                    return;
                };
                let entry = self.entry(&listed);
                if !matches(request, &entry) {
                    return;
                }
                reply.total += 1;
                if reply.sessions.len() < limit.get() {
                    reply.sessions.push(entry);
                }
            });
        }
        reply.truncated = reply.total > reply.sessions.len() as u64;
        reply
    }

    /// The time as the table keeps it.
    fn now(&self) -> Tick {
        self.appliance.clock.at(dpdk::tsc()).tick()
    }

    fn entry(&self, listed: &Listed) -> SessionEntry {
        let (kind, state, owner, version) = match listed.session {
            Session::Local { state, version, .. } => (
                SessionKind::Local,
                state.name(),
                self.appliance.config.node.locator,
                Some(version.0),
            ),
            // The table keeps no version of redirects: the owner's record has it.
            Session::Redirect { owner } => (SessionKind::Redirect, "redirected", owner, None),
        };
        SessionEntry {
            flow: listed.flow,
            kind,
            state: state.to_owned(),
            owner,
            version,
            idle_ms: listed.idle_ms,
        }
    }

    fn peers(&self) -> Result<PeersReply, ProtocolError> {
        let (present, absent) = self.appliance.dht.peers().map_err(unavailable)?;
        let present = present.iter().map(peer);
        let mut peers: Vec<Peer> = present.chain(absent.iter().map(absent_peer)).collect();
        peers.sort_by_key(|peer| peer.locator);
        Ok(PeersReply { peers })
    }

    fn lookups(&self, limit: usize) -> Result<LookupsReply, ProtocolError> {
        let lookups = self.appliance.dht.recent_lookups(limit).map_err(unavailable)?;
        let lookups = lookups.into_iter().map(|lookup| JournalEntry {
            flow: lookup.flow,
            asked_at_unix_us: lookup.asked_at_unix_us,
            duration_us: lookup.duration_us,
            outcome: outcome(lookup.outcome),
            owner: lookup.owner,
        });
        Ok(LookupsReply { lookups: lookups.collect() })
    }

    fn lookup(&self, flow: FlowKey) -> Result<LookupReply, ProtocolError> {
        let table = self.appliance.table.lookup(&flow, self.now()).map(|found| {
            self.entry(&Listed { flow, session: found.session, idle_ms: found.idle_ms })
        });
        let report = self.appliance.dht.lookup(flow).map_err(unavailable)?;
        let dht = LookupReport {
            outcome: outcome(report.outcome),
            owner: report.owner,
            version: report.version.map(|version| version.0),
            duration_us: report.duration_us,
            replicas: report.replicas.iter().map(replica_answer).collect(),
        };
        Ok(LookupReply { flow, table, dht })
    }
}

fn matches(request: &Request, entry: &SessionEntry) -> bool {
    let Request::ShowSessions { kind, state, client, service, owner, limit: _ } = request else {
        return false;
    };
    kind.is_none_or(|kind| kind == entry.kind)
        && state.as_ref().is_none_or(|state| *state == entry.state)
        && client.as_ref().is_none_or(|client| client.admits(&entry.flow))
        && service.as_ref().is_none_or(|service| service.admits(&entry.flow))
        && owner.is_none_or(|owner| owner == entry.owner)
}

fn worker_counters(workers: &[&Arc<WorkerCounters>]) -> Counters {
    let sum = |counter| workers.iter().map(|counters| counters.get(counter)).sum();
    Counter::ALL.iter().map(|&counter| (counter.name().to_owned(), sum(counter))).collect()
}

fn port_stats(role: &str, port: &Port) -> Result<PortStats, ProtocolError> {
    let internal = |error: dpdk::Error| ProtocolError::new(ErrorCode::Internal, error.to_string());
    let info = port.info();
    let stats = port.stats().map_err(internal)?;
    let link = port.link().map_err(internal)?;
    Ok(PortStats {
        role: role.to_owned(),
        name: port.name().to_owned(),
        driver: info.device.driver.clone(),
        mac: info.device.mac.to_string(),
        link_up: link.up,
        speed_mbps: link.speed_mbps,
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

fn peer(peer: &dht::Peer) -> Peer {
    Peer {
        id: peer.id.to_string(),
        locator: peer.locator,
        address: peer.address,
        state: if peer.suspect { "suspect" } else { "alive" }.to_owned(),
        srtt_us: peer.srtt_us,
        last_seen_ms: Some(peer.heard_ago_us / 1000),
        absent_ms: None,
        missed: Some(peer.failures.into()),
        started_unix_us: Some(peer.incarnation),
        life: Some(peer.life.into()),
    }
}

fn absent_peer(peer: &dht::AbsentPeer) -> Peer {
    Peer {
        id: peer.id.to_string(),
        locator: peer.locator,
        address: peer.address,
        state: if peer.away { "away" } else { "dead" }.to_owned(),
        srtt_us: None,
        last_seen_ms: None,
        absent_ms: Some(peer.absent_us / 1000),
        missed: None,
        started_unix_us: Some(peer.incarnation),
        life: None,
    }
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

fn dht_stats(stats: &dht::Stats) -> DhtStats {
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

fn distribution(times: &dht::Distribution) -> Distribution {
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

fn outcome(outcome: dht::Outcome) -> LookupOutcome {
    match outcome {
        dht::Outcome::Owner => LookupOutcome::Owner,
        dht::Outcome::NotFound => LookupOutcome::NotFound,
        dht::Outcome::TimedOut => LookupOutcome::TimedOut,
    }
}

fn replica_answer(report: &dht::ReplicaReport) -> ReplicaAnswer {
    let (answer, claim) = match &report.said {
        dht::Statement::Holds(claim) => ("owner", Some(claim)),
        dht::Statement::Deleted(claim) => ("deleted", Some(claim)),
        dht::Statement::NotHeld => ("not_found", None),
        dht::Statement::NoAnswer => ("no_answer", None),
    };
    ReplicaAnswer {
        locator: report.locator,
        answer: answer.to_owned(),
        owner: claim.map(|claim| claim.owner),
        version: claim.map(|claim| claim.version.0),
        rtt_us: None,
    }
}

fn unavailable(error: HandleError) -> ProtocolError {
    let code = match error {
        HandleError::Busy => ErrorCode::Busy,
        HandleError::Stopped | HandleError::TimedOut => ErrorCode::Unavailable,
    };
    ProtocolError::new(code, error.to_string())
}

fn as_u64(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIFICATION: &str = include_str!("../../docs/specification/control-protocol.md");

    #[test]
    fn the_specification_lists_every_gauge() {
        let gauges = dht_gauges(dht::Gauges::default());
        let check = crate::kernel_check::Totals::default().stats();
        for name in gauges.keys().chain(check.counters.keys()).chain(check.gauges.keys()) {
            let row = format!("| `{name}` |");
            let is_there = SPECIFICATION.lines().any(|line| line.starts_with(&row));
            assert!(is_there, "{name} has no row in the specification");
        }
    }

    #[test]
    fn a_peer_is_alive_suspect_away_or_dead() {
        let present = |suspect| dht::Peer {
            id: dht::Id(1),
            locator: [10, 0, 0, 2].into(),
            address: ([10, 0, 0, 2], 7000).into(),
            incarnation: 7,
            srtt_us: Some(90),
            heard_ago_us: 1_500,
            failures: u8::from(suspect),
            suspect,
            life: 3,
        };
        let absent = |away| dht::AbsentPeer {
            id: dht::Id(1),
            locator: [10, 0, 0, 2].into(),
            address: ([10, 0, 0, 2], 7000).into(),
            incarnation: 7,
            away,
            absent_us: 2_500,
        };
        let peers = [
            peer(&present(false)),
            peer(&present(true)),
            absent_peer(&absent(true)),
            absent_peer(&absent(false)),
        ];
        let states = peers.each_ref().map(|peer| peer.state.as_str());
        assert_eq!(states, ["alive", "suspect", "away", "dead"]);
        assert_eq!(peers.each_ref().map(|p| p.last_seen_ms), [Some(1), Some(1), None, None]);
        assert_eq!(peers.each_ref().map(|p| p.absent_ms), [None, None, Some(2), Some(2)]);
        assert_eq!(peers.each_ref().map(|p| p.missed), [Some(0), Some(1), None, None]);
        assert!(peers.iter().all(|peer| peer.started_unix_us == Some(7)));
    }
}
