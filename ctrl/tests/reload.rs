//! A real daemon that is told to read its configuration again, by holdfastctl and by SIGHUP. Its
//! ports lead nowhere; what it knows of sessions, it has from this machine's own sockets.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use holdfast::client::ask;
use holdfast::protocol::Request;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    directory: tempfile::TempDir,
    process: Child,
    /// Address of its services.
    service: String,
}

impl Daemon {
    /// The daemon of test `number`.
    fn start(number: u8) -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let service = format!("127.{}.{number}.1", 20 + std::process::id() % 200);
        std::fs::write(directory.path().join("c.toml"), text(&directory, &service, "")).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_holdfastd"))
            .arg("run")
            .arg(directory.path().join("c.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Daemon { directory, process, service };
        daemon.until("it answers", || ask(&daemon.path("s"), &Request::ShowVersion {}).is_ok());
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration with `more` in it.
    fn write(&self, more: &str) {
        std::fs::write(self.path("c.toml"), text(&self.directory, &self.service, more)).unwrap();
    }

    fn reload(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
        command.arg("--socket").arg(self.path("s")).arg("reload");
        command.args(arguments.split_whitespace()).output().unwrap()
    }

    /// What `reload` prints when all is well.
    fn reloaded(&self, arguments: &str) -> String {
        let output = self.reload(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn count(&self, counter: &str) -> Value {
        let stats = ask(&self.path("s"), &Request::ShowStats {}).unwrap();
        stats["reload"]["counters"][counter].clone()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < end, "{what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A configuration; `more` can begin in `[sessions]`.
fn text(directory: &tempfile::TempDir, service: &str, more: &str) -> String {
    let locator = format!("{service}00");
    let directory = directory.path();
    format!(
        r#"
        [node]
        locator = "{locator}"
        control_socket = "{}"
        [dpdk]
        eal_args = ["--no-telemetry"]
        huge_pages = "off"
        file_prefix = "holdfast-reload-{service}"
        [uplink]
        device = "net_null0,no-rx=1"
        [host_port]
        device = "net_null1,no-rx=1"
        [[service]]
        address = "{service}"
        ports = [1]
        [dht]
        records_max = 2048
        [cluster]
        members = ["127.0.0.0/8"]
        insecure = true
        [sessions]
        capacity = 2048
        half_open_max = 1024
        {more}
        "#,
        directory.join("s").display(),
    )
}

#[test]
fn a_daemon_goes_by_its_configuration_as_it_is_by_now() {
    let daemon = Daemon::start(80);
    let path = daemon.path("c.toml").display().to_string();
    assert_eq!(daemon.reloaded("").lines().next(), Some(&*format!("{path}: nothing changed")));

    // Sessions of a service that is added are found, and withdrawn when it is removed.
    let listener = TcpListener::bind((daemon.service.as_str(), 0)).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let _client = TcpStream::connect(address).unwrap();
    let _accepted = listener.accept().unwrap();
    let local =
        || ask(&daemon.path("s"), &Request::ShowStats {}).unwrap()["table"]["local"].clone();
    assert_eq!(local(), 0);
    let ports = format!("ports = [1, {}]", address.port());
    let with_service = text(&daemon.directory, &daemon.service, "").replace("ports = [1]", &ports);
    std::fs::write(daemon.path("c.toml"), with_service).unwrap();
    let more = daemon.reloaded("");
    assert!(more.contains(": 1 key changed\n\nKEY      BEFORE"), "{more}");
    daemon.write("kernel_check = \"500ms\"\nlinger = \"2s\"");
    let with_service = std::fs::read_to_string(&path).unwrap().replace("ports = [1]", &ports);
    std::fs::write(&path, with_service).unwrap();
    daemon.reloaded("");
    daemon.until("the session is learnt", || local() == 1);
    daemon.write("kernel_check = \"500ms\"\nlinger = \"2s\"");
    daemon.reloaded("");
    daemon.until("the session is withdrawn", || local() == 0);
    let totals = ask(&daemon.path("s"), &Request::ShowStats {}).unwrap()["totals"].clone();
    assert_eq!(totals["entry_retired"], 1);

    // SIGHUP does the same, and the log says what came of it.
    let applied = daemon.count("applied");
    daemon.write("[admission]\nburst = 8192");
    let pid = Pid::from_child(&daemon.process);
    kill_process(pid, Signal::HUP).unwrap();
    daemon.until("it has reloaded", || daemon.count("applied") != applied);
    let log = daemon.log();
    assert!(log.contains("configuration reloaded: admission.burst from 4096 to 8192, "), "{log}");
    daemon.write("[workers]\ncores = [0, 1]");
    kill_process(pid, Signal::HUP).unwrap();
    daemon.until("it has refused", || daemon.count("refused") == 1);
    let log = daemon.log();
    assert!(log.contains("configuration not reloaded: workers.cores needs a restart"), "{log}");
}

#[test]
fn a_reload_that_nobody_confirms_is_rolled_back() {
    let daemon = Daemon::start(81);
    daemon.write("[admission]\nburst = 8192");
    let text = daemon.reloaded("--confirm 1s");
    assert!(text.contains("admission.burst  4096    8192"), "{text}");
    assert!(text.contains("\nrolled back in "), "{text}");
    daemon.until("it is rolled back", || daemon.count("rolled_back") == 1);
    let log = daemon.log();
    assert!(log.contains("the reloaded configuration was not confirmed in time"), "{log}");

    daemon.reloaded("--confirm 1h");
    let refused = daemon.reload("--confirm 1h");
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("confirm it or roll it back (conflict)"), "{error}");
    assert!(daemon.reloaded("--confirmed").starts_with("confirmed: "));
    assert!(daemon.reloaded("--dry-run").contains("c.toml: nothing would change\n\nwarning: "));
    daemon.write("");
    daemon.reloaded("--confirm 1h");
    assert!(daemon.reloaded("--roll-back").contains("admission.burst  4096    8192"));

    daemon.write("half_open_mux = 3");
    let refused = daemon.reload("");
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("c.toml:24:9: unknown key 'half_open_mux' in [sessions]"), "{error}");
}
