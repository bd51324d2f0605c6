//! Metrics for Prometheus: what `show stats` shows, as OpenMetrics. Never counts anything itself,
//! but for what its own HTTP server does.
//!
//! Names follow Prometheus' conventions: `holdfast_`, the part, what it is, the base unit; counters
//! end in `_total`. `docs/guide/metrics.md` lists them all.

mod help;
pub mod http;

use std::fmt;
use std::sync::Arc;

use holdfast_dataplane::stats::Counter;
use holdfast_dht as dht;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::appliance::Appliance;
use crate::commands::Commands;
use crate::protocol::{
    CheckReport, ControlStats, Counters, Distribution, HealthStats, IncidentStats, LimitEntry,
    LossReason, PortStats, ReloadStats, SessionCounts, StatsReply,
};

/// The form that metrics are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' older text, for readers that know nothing else.
    Text,
}

impl Format {
    /// Its media type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Upper bounds of the histograms' buckets, in microseconds: from what a lookup takes on an idle
/// network to what a client that repeats itself waits.
const BOUNDS_US: [u64; 17] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000,
];

/// What is written: one answer of `show stats`, and what is beside it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The answer of `show stats`.
    pub stats: StatsReply,
    /// The answer of `show limits`.
    pub limits: Vec<LimitEntry>,
    /// Cycles of the time stamp counter in a second.
    pub tsc_hz: u64,
    /// What the HTTP server did.
    pub http: http::Counts,
}

impl Snapshot {
    /// Writes it.
    ///
    /// # Errors
    /// When a value cannot be written.
    pub fn write(self, format: Format) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("holdfast");
        registry.register_collector(Box::new(self));
        let mut written = String::new();
        match format {
            Format::OpenMetrics => text::encode(&mut written, &registry)?,
            Format::Text => prometheus_text::encode(&mut written, &registry)?,
        }
        Ok(written)
    }
}

/// The metrics of one appliance.
#[derive(Debug)]
pub struct Readings {
    commands: Commands,
    tsc_hz: u64,
}

impl Readings {
    /// Of `appliance`.
    #[must_use]
    pub fn new(appliance: &Arc<Appliance>) -> Readings {
        Readings { commands: Commands::new(Arc::clone(appliance)), tsc_hz: appliance.tsc_hz }
    }
}

impl http::Source for Readings {
    fn metrics(&self, format: Format, counts: http::Counts) -> Result<String, http::Unavailable> {
        let stats = self.commands.stats().map_err(|error| error.message)?;
        let limits = self.commands.limits().map_err(|error| error.message)?.limits;
        let snapshot = Snapshot { stats, limits, tsc_hz: self.tsc_hz, http: counts };
        snapshot.write(format).map_err(|error| error.to_string())
    }

    fn health(&self) -> Result<(), http::Unavailable> {
        self.commands.stats().map(|_| ()).map_err(|error| error.message)
    }
}

type Labels = Vec<(&'static str, String)>;
/// Labels and a value.
type Sample<T> = (Labels, T);

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer(encoder);
        let stats = &self.stats;
        daemon(&mut to, stats)?;
        workers(&mut to, stats, self.tsc_hz)?;
        ports(&mut to, &stats.ports)?;
        for (name, value) in &stats.table {
            to.gauge_by_name("table", name, help::TABLE, *value)?;
        }
        kernel_check(&mut to, &stats.kernel_check.counters, &stats.kernel_check.gauges)?;
        health(&mut to, &stats.health)?;
        dht_core(&mut to, stats)?;
        incidents(&mut to, &stats.incidents)?;
        control(&mut to, &stats.control)?;
        limits(&mut to, &self.limits)?;
        reload(&mut to, &stats.reload)?;
        self.http.write(&mut to)
    }
}

fn daemon(to: &mut Writer<'_>, stats: &StatsReply) -> fmt::Result {
    let daemon = &stats.daemon;
    let labels: Labels = vec![
        ("version", daemon.version.clone()),
        ("dpdk_version", daemon.dpdk_version.clone()),
        ("locator", daemon.locator.to_string()),
    ];
    let mut metric = to.descriptor("build", help::BUILD, None, MetricType::Info)?;
    metric.encode_info(&labels)?;
    let seconds = Some(Unit::Seconds);
    to.gauge("uptime", help::UPTIME, seconds, [(vec![], daemon.uptime_ms as f64 / 1e3)])
}

/// Each counter of the workers; cycles as time.
fn workers(to: &mut Writer<'_>, stats: &StatsReply, tsc_hz: u64) -> fmt::Result {
    let of = |counter: Counter| {
        let workers = stats.workers.iter().enumerate();
        workers.map(move |(index, worker)| {
            let labels = vec![("worker", index.to_string()), ("core", worker.core.to_string())];
            (labels, worker.counters.get(counter.name()).copied().unwrap_or(0))
        })
    };
    for &counter in Counter::ALL {
        let (name, help) = match counter {
            Counter::CyclesBusy => ("worker_busy", help::WORKER_BUSY),
            Counter::CyclesIdle => ("worker_idle", help::WORKER_IDLE),
            counter => {
                let name = format!("worker_{}", counter.name());
                to.counter(&name, counter.help(), None, of(counter))?;
                continue;
            }
        };
        let seconds = |cycles: u64| cycles as f64 / tsc_hz.max(1) as f64;
        let samples = of(counter).map(|(labels, cycles)| (labels, seconds(cycles)));
        to.counter(name, help, Some(Unit::Seconds), samples)?;
    }
    Ok(())
}

/// A counter of a port: its name, its unit, what it counts, and where that stands.
type PortCounter = (&'static str, Option<Unit>, &'static str, fn(&PortStats) -> u64);

fn ports(to: &mut Writer<'_>, ports: &[PortStats]) -> fmt::Result {
    let labels =
        |port: &PortStats| vec![("port", port.role.clone()), ("device", port.name.clone())];
    let counters: [PortCounter; 10] = [
        ("port_receive_packets", None, help::RX_PACKETS, |port| port.rx_packets),
        ("port_receive", Some(Unit::Bytes), help::RX_BYTES, |port| port.rx_bytes),
        ("port_receive_missed_packets", None, help::RX_MISSED, |port| port.rx_missed),
        ("port_receive_errors", None, help::RX_ERRORS, |port| port.rx_errors),
        ("port_receive_no_mbuf_packets", None, help::RX_NO_MBUF, |port| port.rx_no_mbuf),
        ("port_transmit_packets", None, help::TX_PACKETS, |port| port.tx_packets),
        ("port_transmit", Some(Unit::Bytes), help::TX_BYTES, |port| port.tx_bytes),
        ("port_transmit_errors", None, help::TX_ERRORS, |port| port.tx_errors),
        ("port_link_downs", None, help::LINK_DOWNS, |port| port.link_downs),
        ("port_link_up", None, help::LINK_UP, |port| port.link_up.into()),
    ];
    for (name, unit, help, value) in counters {
        let samples = ports.iter().map(|port| (labels(port), value(port)));
        match name {
            "port_link_up" => to.gauge(name, help, unit, samples)?,
            _ => to.counter(name, help, unit, samples)?,
        }
    }
    let mtus = ports.iter().map(|port| (labels(port), u64::from(port.mtu)));
    to.gauge("port_mtu", help::MTU, Some(Unit::Bytes), mtus)?;
    let speeds = ports.iter().filter_map(|port| {
        let speed_mbps = u64::from(port.speed_mbps?);
        Some((labels(port), speed_mbps * 1_000_000 / 8))
    });
    let unit = Unit::Other("bytes_per_second".to_owned());
    to.gauge("port_speed", help::SPEED, Some(unit), speeds)
}

fn kernel_check(to: &mut Writer<'_>, counters: &Counters, gauges: &Counters) -> fmt::Result {
    for (name, value) in counters {
        let help = help::of(help::KERNEL_CHECK, name);
        to.counter(&format!("kernel_check_{name}"), help, None, [(vec![], *value)])?;
    }
    for (name, value) in gauges {
        to.gauge_by_name("kernel_check", name, help::KERNEL_CHECK, *value)?;
    }
    Ok(())
}

fn health(to: &mut Writer<'_>, stats: &HealthStats) -> fmt::Result {
    // Those of the checks are there by service.
    let counters = stats.counters.iter().filter(|(name, _)| !name.starts_with("health_"));
    for (name, value) in counters {
        let help = help::of(help::HEALTH, name);
        to.counter(&format!("health_{name}"), help, None, [(vec![], *value)])?;
    }
    for (name, value) in &stats.gauges {
        to.gauge_by_name("health", name, help::HEALTH, *value)?;
    }
    let labels = |check: &CheckReport| {
        vec![("service", check.service.to_string()), ("kind", check.kind.clone())]
    };
    let up = stats.checks.iter().map(|check| (labels(check), u64::from(check.up == Some(true))));
    to.gauge("check_up", help::CHECK_UP, None, up)?;
    let checks = stats.checks.iter().map(|check| (labels(check), check.checks));
    to.counter("checks", help::CHECKS, None, checks)?;
    let failures = stats.checks.iter().map(|check| (labels(check), check.failures));
    to.counter("check_failures", help::CHECK_FAILURES, None, failures)?;
    let changes = stats.checks.iter().map(|check| (labels(check), check.changes));
    to.counter("check_changes", help::CHECK_CHANGES, None, changes)
}

fn dht_core(to: &mut Writer<'_>, stats: &StatsReply) -> fmt::Result {
    for counter in dht::Counter::ALL {
        let value = stats.dht.counters.get(counter.name()).copied().unwrap_or(0);
        to.counter(&format!("dht_{}", counter.name()), counter.help(), None, [(vec![], value)])?;
    }
    for (name, value) in &stats.dht.gauges {
        to.gauge_by_name("dht", name, help::DHT, *value)?;
    }
    let none = Distribution::default();
    let times = |name: &str| stats.dht.distributions.get(name).unwrap_or(&none);
    to.histogram("dht_setting_time", help::SETTING_TIME, [(vec![], times("setting_time_us"))])?;
    let found = (vec![("result", "found".to_owned())], times("lookup_time_us"));
    let not_found = vec![("result", "not_found".to_owned())];
    let not_found = (not_found, times("lookup_time_not_found_us"));
    to.histogram("dht_lookup_time", help::LOOKUP_TIME, [found, not_found])
}

fn incidents(to: &mut Writer<'_>, stats: &IncidentStats) -> fmt::Result {
    let counter = |name: &str| stats.counters.get(name).copied().unwrap_or(0);
    for (name, metric, help) in help::INCIDENTS {
        to.counter(metric, help, None, [(vec![], counter(name))])?;
    }
    let by_outcome = |counts: &SessionCounts| {
        counts.outcomes().map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count))
    };
    to.counter("stray_sessions", help::STRAY_SESSIONS, None, by_outcome(&stats.sessions))?;
    let losses = LossReason::ALL.map(|reason| {
        let count = stats.losses.get(reason.name()).copied().unwrap_or(0);
        (vec![("reason", reason.name().to_owned())], count)
    });
    to.counter("lost_sessions", help::LOST_SESSIONS, None, losses)?;
    to.gauge(
        "incident_open",
        help::INCIDENT_OPEN,
        None,
        [(vec![], u64::from(stats.open.is_some()))],
    )?;
    let open = by_outcome(&stats.open.unwrap_or_default());
    to.gauge("incident_open_sessions", help::OPEN_SESSIONS, None, open)?;
    to.histogram("stray_forward_time", help::FORWARD_TIME, [(vec![], &stats.forward_time_us)])?;
    to.histogram("stray_lookup_time", help::STRAY_LOOKUP_TIME, [(vec![], &stats.lookup_time_us)])?;
    to.histogram(
        "incident_detection_time",
        help::DETECTION_TIME,
        [(vec![], &stats.detection_time_us)],
    )
}

fn control(to: &mut Writer<'_>, stats: &ControlStats) -> fmt::Result {
    for (name, value) in &stats.counters {
        let help = help::of(help::CONTROL, name);
        to.counter(&format!("control_{name}"), help, None, [(vec![], *value)])?;
    }
    for (name, value) in &stats.gauges {
        let now = format!("{name}_now");
        let help = help::of(help::CONTROL, &now);
        to.gauge(&format!("control_{now}"), help, None, [(vec![], *value)])?;
    }
    let requests = stats.requests.iter();
    let requests = requests.map(|(name, value)| (vec![("command", name.clone())], *value));
    to.counter("control_requests", help::CONTROL_REQUESTS, None, requests)
}

fn limits(to: &mut Writer<'_>, limits: &[LimitEntry]) -> fmt::Result {
    let labels = |limit: &LimitEntry| {
        vec![
            ("limit", limit.name.clone()),
            ("scope", limit.scope.to_string()),
            ("unit", limit.unit.clone()),
        ]
    };
    let values = limits.iter().map(|limit| (labels(limit), limit.value));
    to.gauge("limit", help::LIMIT, None, values)?;
    let used = limits.iter().filter_map(|limit| Some((labels(limit), limit.used?)));
    to.gauge("limit_used", help::LIMIT_USED, None, used)?;
    let hits = limits.iter().map(|limit| (labels(limit), limit.hits));
    to.counter("limit_hits", help::LIMIT_HITS, None, hits)
}

fn reload(to: &mut Writer<'_>, stats: &ReloadStats) -> fmt::Result {
    for (name, value) in &stats.counters {
        let help = help::of(help::RELOAD, name);
        to.counter(&format!("reload_{name}"), help, None, [(vec![], *value)])?;
    }
    let waits = stats.gauges.get("unconfirmed_ms").is_some_and(|left_ms| *left_ms > 0);
    to.gauge("reload_unconfirmed", help::UNCONFIRMED, None, [(vec![], u64::from(waits))])
}

/// Writes families of metrics.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn descriptor<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, unit, kind)
    }

    fn counter<T>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = Sample<T>>,
    ) -> fmt::Result
    where
        ConstCounter<T>: EncodeMetric,
    {
        let mut metric = self.descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge<T>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = Sample<T>>,
    ) -> fmt::Result
    where
        ConstGauge<T>: EncodeMetric,
    {
        let mut metric = self.descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// A gauge of a part, whose name ends in its unit if it has one.
    fn gauge_by_name(
        &mut self,
        part: &str,
        name: &str,
        help: &[(&str, &str)],
        value: u64,
    ) -> fmt::Result {
        let help = help::of(help, name);
        // Counters have these names, and a family has one type.
        let name = match (part, name) {
            ("dht", "published") => "published_sessions",
            ("dht", "peers_dead") => "peers_dead_lately",
            (_, name) => name,
        };
        if let Some(stem) = name.strip_suffix("_us") {
            let samples = [(vec![], value as f64 / 1e6)];
            return self.gauge(&format!("{part}_{stem}"), help, Some(Unit::Seconds), samples);
        }
        let (stem, unit) = match name.strip_suffix("_bytes") {
            Some(stem) => (stem, Some(Unit::Bytes)),
            None => (name, None),
        };
        self.gauge(&format!("{part}_{stem}"), help, unit, [(vec![], value)])
    }

    /// A histogram of times.
    fn histogram<'d>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample<&'d Distribution>>,
    ) -> fmt::Result {
        let mut metric =
            self.descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, times) in samples {
            let (sum, buckets) = histogram(times);
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                sum,
                times.count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

/// The sum in seconds, and how many lie in each bucket, by its upper bound in seconds.
fn histogram(times: &Distribution) -> (f64, Vec<(f64, u64)>) {
    let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
    let mut buckets: Vec<(f64, u64)> = bounds.map(|bound| (bound, 0)).collect();
    let mut sum_us = 0.0;
    for &(us, count) in &times.buckets {
        sum_us += us as f64 * count as f64;
        let place = BOUNDS_US.partition_point(|bound| *bound < us);
        buckets[place].1 += count;
    }
    (sum_us / 1e6, buckets)
}

#[cfg(test)]
mod tests;
