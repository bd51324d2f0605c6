//! The metrics of a real daemon, and what is built on them: the dashboard and the alerts. Its ports are
//! DPDK's null devices, so that it needs no network of its own; needs root.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast::client::ask;
use holdfast::protocol::Request;

struct Daemon {
    process: Child,
    directory: tempfile::TempDir,
    metrics: u16,
}

impl Daemon {
    fn start() -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dht = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = directory.path().join("holdfast.toml");
        let configuration = format!(
            r#"
            [node]
            locator = "127.0.0.1"
            control_socket = "{}"
            [dpdk]
            eal_args = ["--no-telemetry"]
            huge_pages = "off"
            file_prefix = "metrics-{}"
            [uplink]
            device = "net_null0"
            [host_port]
            device = "net_null1"
            [[service]]
            address = "192.168.79.1"
            ports = [80]
            [sessions]
            capacity = 2048
            half_open_max = 1024
            [dht]
            listen = "127.0.0.1:{dht}"
            records_max = 2048
            [cluster]
            members = ["127.0.0.0/8"]
            insecure = true
            [incidents]
            journal = "{}"
            [metrics]
            listen = "127.0.0.1:{metrics}"
            "#,
            directory.path().join("s").display(),
            rustix::thread::gettid().as_raw_nonzero(),
            directory.path().join("state/incidents.jsonl").display(),
        );
        std::fs::write(&path, configuration).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_holdfastd"))
            .arg("run")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Daemon { process, directory, metrics };
        daemon.until_well();
        daemon
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    fn until_well(&mut self) {
        let start = Instant::now();
        while self.get("/healthz", "*/*").is_none_or(|answer| !answer.starts_with("HTTP/1.1 200 "))
        {
            let ended = self.process.try_wait().unwrap();
            let in_time = ended.is_none() && start.elapsed() < Duration::from_secs(120);
            assert!(in_time, "{ended:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The whole answer, if there is one.
    fn get(&self, target: &str, accept: &str) -> Option<String> {
        let mut client = TcpStream::connect(("127.0.0.1", self.metrics)).ok()?;
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

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
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
    let daemon = Daemon::start();
    let text = daemon.metrics("application/openmetrics-text");
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
    std::fs::write(place.join("metrics.txt"), daemon.metrics("text/plain")).unwrap();

    // The same as the control socket says.
    let stats = ask(&daemon.directory.path().join("s"), &Request::ShowStats {}).unwrap();
    let capacity = stats["table"]["capacity"].as_u64().unwrap();
    assert!(text.contains(&format!("\nholdfast_table_capacity {capacity}\n")), "{capacity}");
    assert_eq!(stats["incidents"]["counters"]["journal_errors"], 0);
    let incidents = ask(
        &daemon.directory.path().join("s"),
        &Request::IncidentsList { limit: Default::default() },
    );
    assert_eq!(incidents.unwrap(), serde_json::json!({"incidents": []}));
    assert!(daemon.directory.path().join("state/incidents.jsonl").exists());
}

/// What a test of the guide's table is made of is made up; this is real.
#[test]
fn the_guide_lists_what_a_daemon_has_and_nothing_else() {
    let text = Daemon::start().metrics("text/plain");
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
    let first = Daemon::start();
    let text = std::fs::read_to_string(first.directory.path().join("holdfast.toml")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let dht = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let other = text
        .replace(first.directory.path().to_str().unwrap(), directory.path().to_str().unwrap())
        .replace("file_prefix = \"metrics-", "file_prefix = \"metrics-other-");
    let listen = other.lines().find(|line| line.contains("listen")).unwrap().to_owned();
    let other = other.replace(&listen, &format!("listen = \"127.0.0.1:{dht}\""));
    std::fs::write(directory.path().join("holdfast.toml"), other).unwrap();
    let log = directory.path().join("log");
    let mut second = Command::new(env!("CARGO_BIN_EXE_holdfastd"))
        .arg("run")
        .arg(directory.path().join("holdfast.toml"))
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while ask(&socket, &Request::ShowVersion {}).is_err() {
        assert!(start.elapsed() < Duration::from_secs(120) && second.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = std::fs::read_to_string(&log).unwrap();
    second.kill().unwrap();
    second.wait().unwrap();
    assert!(said.contains("no metrics: metrics.listen = \"127.0.0.1:"), "{said}");
}
