//! The exposition of a made-up daemon, held against what it has to say.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::commands::stats::dht_stats;
use crate::kernel_check::Totals;
use crate::protocol::{LimitScope, VersionReply, WorkerStats};

/// Everything that a daemon can say, with another value for each.
fn snapshot() -> Snapshot {
    let mut next = 100;
    let mut numbered = |names: &mut dyn Iterator<Item = &str>| -> Counters {
        let mut value = || {
            next += 1;
            next
        };
        names.map(|name| (name.to_owned(), value())).collect()
    };
    let worker = |core, counters| WorkerStats { core, counters };
    let of_workers = |numbered: &mut dyn FnMut(&mut dyn Iterator<Item = &str>) -> Counters| {
        numbered(&mut Counter::ALL.iter().map(|counter| counter.name()))
    };
    let workers = vec![worker(2, of_workers(&mut numbered)), worker(5, of_workers(&mut numbered))];
    let mut dht = dht_stats(&dht::Stats::default());
    dht.counters = numbered(&mut dht.counters.keys().map(String::as_str));
    dht.gauges = numbered(&mut dht.gauges.keys().map(String::as_str));
    let times = Distribution {
        count: 6,
        min: 7,
        p50: 100,
        p90: 3_000_000,
        p99: 3_000_000,
        max: 60_000_000,
        buckets: vec![(7, 1), (100, 2), (101, 1), (3_000_000, 1), (60_000_000, 1)],
    };
    dht.distributions.values_mut().for_each(|distribution| *distribution = times.clone());
    let mut kernel_check = Totals::default().stats();
    kernel_check.counters = numbered(&mut kernel_check.counters.keys().map(String::as_str));
    kernel_check.gauges = [("held".to_owned(), 9), ("duration_us".to_owned(), 1_500_000)].into();
    let mut control = crate::socket::ControlCounters::default().stats();
    control.counters.insert("changes_lost".to_owned(), 0);
    let port = |role: &str, name: &str, speed_mbps| PortStats {
        role: role.to_owned(),
        name: name.to_owned(),
        link_up: true,
        speed_mbps,
        mtu: 1500,
        rx_bytes: 77,
        ..PortStats::default()
    };
    let table =
        ["capacity", "local", "half_open", "lingering", "redirect", "displaced", "page_bytes"];
    let sessions =
        SessionCounts { at_risk: 15, saved: 5, kept: 4, reset: 3, dropped: 2, unanswered: 1 };
    Snapshot {
        stats: StatsReply {
            daemon: VersionReply {
                version: "1.2.3".to_owned(),
                dpdk_version: "DPDK \"x\"".to_owned(),
                locator: "10.0.0.1".parse().unwrap(),
                pid: 7,
                uptime_ms: 12_345,
            },
            totals: Counters::new(),
            workers,
            ports: vec![
                port("uplink", "0000:3b:02.0", Some(25_000)),
                port("host_port", "net_tap1", None),
            ],
            table: numbered(&mut table.into_iter()),
            kernel_check,
            health: health(),
            reload: ReloadStats {
                counters: numbered(&mut help::RELOAD.iter().map(|(name, _)| *name)),
                gauges: [("unconfirmed_ms".to_owned(), 250)].into(),
            },
            dht,
            control,
            incidents: IncidentStats {
                counters: numbered(&mut help::INCIDENTS.iter().map(|(name, ..)| *name)),
                sessions,
                losses: numbered(&mut LossReason::ALL.iter().map(|reason| reason.name())),
                open: Some(SessionCounts { at_risk: 1, saved: 1, ..SessionCounts::default() }),
                forward_time_us: times.clone(),
                lookup_time_us: times.clone(),
                detection_time_us: times,
            },
        },
        limits: vec![
            limit("worker.parked", LimitScope::Worker, Some(5)),
            limit("worker.lookups", LimitScope::Worker, None),
        ],
        tsc_hz: 1000,
        http: http::Counts::default(),
    }
}

fn limit(name: &str, scope: LimitScope, used: Option<u64>) -> LimitEntry {
    LimitEntry {
        name: name.to_owned(),
        key: None,
        scope,
        value: 2048,
        unit: "packets".to_owned(),
        used,
        hits: 3,
        counters: Vec::new(),
    }
}

/// Of a server with one service, which is down.
fn health() -> HealthStats {
    let mut config = crate::config::tests::minimal_config();
    let service = "192.168.0.1:80".parse().unwrap();
    let second = std::time::Duration::from_secs(1);
    config.checks.push(crate::config::Check {
        service,
        target: service,
        kind: crate::config::CheckKind::Tcp,
        interval: second,
        timeout: second,
        rise: 1,
        fall: 1,
    });
    let now = std::time::Instant::now();
    let mut stats = crate::health::Health::new(&config, now).stats(412, now);
    let mut next = 50;
    for value in stats.counters.values_mut() {
        next += 1;
        *value = next;
    }
    (stats.checks[0].checks, stats.checks[0].failures, stats.checks[0].changes) = (7, 5, 3);
    stats
}

/// The samples, by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    let all: Vec<_> = samples.collect();
    let by_name: BTreeMap<_, _> = all.iter().cloned().collect();
    assert_eq!(by_name.len(), all.len(), "a sample twice");
    by_name
}

#[test]
fn says_what_show_stats_says() {
    let snapshot = snapshot();
    let stats = snapshot.stats.clone();
    let text = snapshot.write(Format::OpenMetrics).unwrap();
    let samples = samples(&text);
    let is = |name: &str, value: f64| assert_eq!(samples.get(name), Some(&value), "{name}");
    for (index, worker) in stats.workers.iter().enumerate() {
        for (name, value) in &worker.counters {
            let labels = format!("{{worker=\"{index}\",core=\"{}\"}}", worker.core);
            match name.as_str() {
                "cycles_busy" => {
                    is(&format!("holdfast_worker_busy_seconds_total{labels}"), *value as f64 / 1e3)
                }
                "cycles_idle" => {
                    is(&format!("holdfast_worker_idle_seconds_total{labels}"), *value as f64 / 1e3)
                }
                name => is(&format!("holdfast_worker_{name}_total{labels}"), *value as f64),
            }
        }
    }
    for (name, value) in &stats.dht.counters {
        is(&format!("holdfast_dht_{name}_total"), *value as f64);
    }
    for (part, gauges) in [("dht", &stats.dht.gauges), ("table", &stats.table)] {
        for (name, value) in gauges {
            let name = match name.as_str() {
                "published" => "published_sessions",
                "peers_dead" => "peers_dead_lately",
                name => name,
            };
            is(&format!("holdfast_{part}_{name}"), *value as f64);
        }
    }
    is("holdfast_control_requests_total{command=\"incidents_show\"}", 0.0);
    is("holdfast_control_clients_now", 0.0);
    let labels = "{limit=\"worker.parked\",scope=\"worker\",unit=\"packets\"}";
    is(&format!("holdfast_limit{labels}"), 2048.0);
    is(&format!("holdfast_limit_used{labels}"), 5.0);
    is(&format!("holdfast_limit_hits_total{labels}"), 3.0);
    for (name, value) in &stats.kernel_check.counters {
        is(&format!("holdfast_kernel_check_{name}_total"), *value as f64);
    }
    is("holdfast_kernel_check_held", 9.0);
    is("holdfast_kernel_check_duration_seconds", 1.5);
    for (name, value) in &stats.health.counters {
        if !name.starts_with("health_") {
            is(&format!("holdfast_health_{name}_total"), *value as f64);
        }
    }
    is("holdfast_health_sessions_left", 412.0);
    is("holdfast_check_up{service=\"192.168.0.1:80\",kind=\"tcp\"}", 0.0);
    is("holdfast_checks_total{service=\"192.168.0.1:80\",kind=\"tcp\"}", 7.0);
    is("holdfast_check_failures_total{service=\"192.168.0.1:80\",kind=\"tcp\"}", 5.0);
    is("holdfast_uptime_seconds", 12.345);
    is("holdfast_port_receive_bytes_total{port=\"uplink\",device=\"0000:3b:02.0\"}", 77.0);
    is("holdfast_port_speed_bytes_per_second{port=\"uplink\",device=\"0000:3b:02.0\"}", 3.125e9);
    is("holdfast_port_link_up{port=\"host_port\",device=\"net_tap1\"}", 1.0);
    is("holdfast_incidents_total", stats.incidents.counters["incidents"] as f64);
    is("holdfast_stray_sessions_total{outcome=\"reset\"}", 3.0);
    is(
        "holdfast_lost_sessions_total{reason=\"not_found\"}",
        stats.incidents.losses["not_found"] as f64,
    );
    for (name, value) in &stats.reload.counters {
        is(&format!("holdfast_reload_{name}_total"), *value as f64);
    }
    is("holdfast_reload_unconfirmed", 1.0);
    is("holdfast_incident_open", 1.0);
    is("holdfast_incident_open_sessions{outcome=\"saved\"}", 1.0);
    assert!(text.contains("holdfast_build_info{version=\"1.2.3\",dpdk_version=\"DPDK \\\"x\\\"\",locator=\"10.0.0.1\"} 1\n"));
}

#[test]
fn histograms_are_cumulative() {
    let text = snapshot().write(Format::OpenMetrics).unwrap();
    let samples = samples(&text);
    let bucket =
        |le: &str| samples[&format!("holdfast_dht_setting_time_seconds_bucket{{le=\"{le}\"}}")];
    // A value that is a bound belongs below it.
    let expected = [
        ("0.0001", 3.0),
        ("0.0002", 4.0),
        ("2.0", 4.0),
        ("5.0", 5.0),
        ("30.0", 5.0),
        ("+Inf", 6.0),
    ];
    for (le, count) in expected {
        assert_eq!(bucket(le), count, "{le}");
    }
    assert_eq!(samples["holdfast_dht_setting_time_seconds_count"], 6.0);
    assert_eq!(
        samples["holdfast_dht_setting_time_seconds_sum"],
        (7.0 + 200.0 + 101.0 + 63e6) / 1e6
    );
    assert!(text.contains("# UNIT holdfast_dht_setting_time_seconds seconds\n"));
}

#[test]
fn every_metric_has_a_type_a_unit_and_a_sentence() {
    let text = snapshot().write(Format::OpenMetrics).unwrap();
    assert!(text.ends_with("# EOF\n"));
    let mut families = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').unwrap();
        assert!(families.insert(name), "{name} twice");
        assert!(help.ends_with('.') && help.len() > 10, "{name}: {help:?}");
        // These would have to be escaped.
        assert!(!help.contains(['\\', '"']), "{name}: {help}");
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.starts_with("holdfast_") && name.chars().all(is_name), "{name}");
        assert!(!name.ends_with("_us") && !name.ends_with("_ms"), "{name} is in no base unit");
        let unit = ["seconds", "bytes", "bytes_per_second"]
            .into_iter()
            .find(|unit| name.ends_with(&format!("_{unit}")));
        let said = text.contains(&format!("# UNIT {name} {}\n", unit.unwrap_or("")));
        assert_eq!(unit.is_some(), said, "{name}");
    }
    assert!(families.len() > 200, "{}", families.len());
}

#[test]
fn the_older_text_has_the_same_samples() {
    // Both write a bucket's bound in their own way.
    let samples_of = |format| {
        let mut samples = samples(&snapshot().write(format).unwrap());
        samples.retain(|name, _| !name.contains("le=\""));
        samples
    };
    let (new, old) = (samples_of(Format::OpenMetrics), samples_of(Format::Text));
    for (name, value) in &new {
        assert_eq!(old.get(name), Some(value), "{name}");
    }
    assert_eq!(new.len(), old.len());
    let text = snapshot().write(Format::Text).unwrap();
    assert!(text.contains("# TYPE holdfast_incidents_total counter\n"));
}

/// Whoever adds to `show stats` decides what of it is a metric.
#[test]
fn every_part_of_show_stats_is_known_here() {
    let stats = serde_json::to_value(snapshot().stats).unwrap();
    let known = [
        "control",
        "dht",
        "dpdk_version",
        "health",
        "incidents",
        "kernel_check",
        "locator",
        "pid",
        "ports",
        "reload",
        "table",
        "totals",
        "uptime_ms",
        "version",
        "workers",
    ];
    let keys: Vec<_> = stats.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, known);
}

const GUIDE: &str = include_str!("../../../docs/guide/metrics.md");

/// A row of the guide for each metric: its name as Prometheus has it, type, labels, meaning.
fn rows(text: &str) -> Vec<String> {
    let families = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    let row = |line: &str| {
        let (name, help) = line.split_once(' ').unwrap();
        let kind = text.split_once(&format!("# TYPE {name} ")).unwrap().1.lines().next().unwrap();
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket"] } else { &[""] };
        let labels = suffixes.iter().find_map(|suffix| {
            let begin = format!("{name}{suffix}{{");
            text.lines().find_map(|line| Some(line.strip_prefix(&begin)?.split_once('}')?.0))
        });
        // No value has a comma.
        let labels =
            labels.unwrap_or_default().split(',').filter_map(|label| label.split('=').next());
        let labels: Vec<_> = labels.filter(|label| !label.is_empty() && *label != "le").collect();
        format!("| `{name}` | {kind} | {} | {help} |", labels.join(", "))
    };
    families.map(row).collect()
}

#[test]
fn the_guide_lists_every_metric() {
    let expected = rows(&snapshot().write(Format::Text).unwrap());
    let documented: Vec<&str> =
        GUIDE.lines().filter(|line| line.starts_with("| `holdfast_")).collect();
    assert!(
        documented == expected,
        "docs/guide/metrics.md wants these rows:\n{}",
        expected.join("\n")
    );
}
