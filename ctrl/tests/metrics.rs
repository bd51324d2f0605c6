//! The metrics of a real daemon, and what is built on them: the dashboard and the alerts. Its ports are
//! DPDK's null devices, so that it needs no network of its own; needs root.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use holdfast::protocol::Request;
use support::PATIENCE;
use support::daemon::Daemon;

/// A daemon, and the port of its metrics.
struct Measured {
    daemon: Daemon,
    metrics: u16,
}

impl Measured {
    fn start() -> Measured {
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let measured = Measured { daemon: start_with(metrics), metrics };
        let is_well = |answer: String| answer.starts_with("HTTP/1.1 200 ");
        measured
            .daemon
            .until("it is well", || measured.get("/healthz", "*/*").is_some_and(is_well));
        measured
    }

    /// The whole answer, if there is one.
    fn get(&self, target: &str, accept: &str) -> Option<String> {
        let mut client = TcpStream::connect(("127.0.0.1", self.metrics)).ok()?;
        client.set_read_timeout(Some(PATIENCE)).ok()?;
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
        client.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn metrics(&self, accept: &str) -> String {
        let answer = self.get("/metrics", accept).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

/// A daemon that is to have its metrics at this port.
fn start_with(metrics: u16) -> Daemon {
    let dht = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut daemon = Daemon::new(None);
    daemon.configure(&format!(
        r#"
        node.locator = "127.0.0.1"
        uplink.device = "net_null0"
        host_port.device = "net_null1"
        service = [{{ address = "192.168.79.1", ports = [80] }}]
        dht.listen = "127.0.0.1:{dht}"
        cluster.members = ["127.0.0.0/8"]
        incidents.journal = {:?}
        metrics.listen = "127.0.0.1:{metrics}"
        "#,
        daemon.path("state/incidents.jsonl"),
    ));
    daemon.run();
    daemon
}

/// The names that a text is about.
fn names_in(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c| !is_name(c)).filter(|word| word.starts_with("holdfast_"));
    words.map(str::to_owned).collect()
}

#[test]
fn the_dashboard_and_the_alerts_use_metrics_that_a_daemon_has() {
    let measured = Measured::start();
    let text = measured.metrics("application/openmetrics-text");
    assert!(text.ends_with("# EOF\n"));
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples: BTreeSet<_> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();
    // A null device has no speed, for one; but every family is there.
    assert!(samples.len() > 200, "{}", samples.len());
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for file in ["packaging/grafana/holdfast.json", "packaging/prometheus/holdfast.rules.yml"] {
        let used = names_in(&repository.join(file));
        assert!(used.len() > 15, "{file}: {used:?}");
        let missing: Vec<_> = used.iter().filter(|name| !samples.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "{file} uses what there is not: {missing:?}");
    }
    let dashboard = std::fs::read(repository.join("packaging/grafana/holdfast.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&dashboard).unwrap();

    // For scripts/check-metrics.
    let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(place.join("metrics.openmetrics"), &text).unwrap();
    std::fs::write(place.join("metrics.txt"), measured.metrics("text/plain")).unwrap();

    // The same as the control socket says.
    let daemon = &measured.daemon;
    let stats = daemon.stats();
    let capacity = stats["table"]["capacity"].as_u64().unwrap();
    assert!(text.contains(&format!("\nholdfast_table_capacity {capacity}\n")), "{capacity}");
    assert_eq!(stats["incidents"]["counters"]["journal_errors"], 0);
    let incidents = daemon.ask(&Request::IncidentsList { limit: Default::default() });
    assert_eq!(incidents, serde_json::json!({"incidents": []}));
    assert!(daemon.path("state/incidents.jsonl").exists());
}

/// What a test of the guide's table is made of is made up; this is real.
#[test]
fn the_guide_lists_what_a_daemon_has_and_nothing_else() {
    let text = Measured::start().metrics("text/plain");
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let families: BTreeSet<&str> = families.collect();
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide/metrics.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let rows = guide.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let listed: BTreeSet<&str> = rows.filter(|name| name.starts_with("holdfast_")).collect();
    assert_eq!(listed, families);
}

#[test]
fn a_daemon_whose_metrics_cannot_be_runs_without_them() {
    let first = Measured::start();
    let said = start_with(first.metrics).log();
    assert!(said.contains("no metrics: metrics.listen = \"127.0.0.1:"), "{said}");
}
