//! A real daemon that is told to read its configuration again, by holdfastctl and by SIGHUP. Its
//! ports lead nowhere; what it knows of sessions, it has from this machine's own sockets.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;

use rustix::process::Signal;
use serde_json::Value;
use support::daemon::Daemon;

/// A daemon whose configuration changes.
struct Server {
    daemon: Daemon,
    /// Address of its services.
    service: String,
}

impl Server {
    /// The daemon of test `number`.
    fn start(number: u8) -> Server {
        let service = format!("127.{}.{number}.1", 20 + std::process::id() % 200);
        let mut server = Server { daemon: Daemon::new(None), service };
        server.write("");
        server.daemon.run();
        server
    }

    /// Writes the configuration with `more` in it.
    fn write(&self, more: &str) {
        std::fs::write(self.daemon.path("c.toml"), self.text(more)).unwrap();
    }

    fn reload(&self, arguments: &str) -> Output {
        self.daemon.holdfastctl(&format!("reload {arguments}")).output().unwrap()
    }

    /// What `reload` prints when all is well.
    fn reloaded(&self, arguments: &str) -> String {
        let output = self.reload(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn count(&self, counter: &str) -> Value {
        self.daemon.stats()["reload"]["counters"][counter].clone()
    }

    /// The configuration with `more` in it, which can begin in `[sessions]`.
    fn text(&self, more: &str) -> String {
        let (service, socket) = (&self.service, self.daemon.socket());
        format!(
            r#"
        [node]
        locator = "{service}00"
        control_socket = {socket:?}
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
        "#
        )
    }
}

#[test]
fn a_daemon_goes_by_its_configuration_as_it_is_by_now() {
    let server = Server::start(80);
    let path = server.daemon.path("c.toml").display().to_string();
    assert_eq!(server.reloaded("").lines().next(), Some(&*format!("{path}: nothing changed")));

    // Sessions of a service that is added are found, and withdrawn when it is removed.
    let listener = TcpListener::bind((server.service.as_str(), 0)).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let _client = TcpStream::connect(address).unwrap();
    let _accepted = listener.accept().unwrap();
    let local = || server.daemon.stats()["table"]["local"].clone();
    assert_eq!(local(), 0);
    let ports = format!("ports = [1, {}]", address.port());
    let with_service = server.text("").replace("ports = [1]", &ports);
    std::fs::write(server.daemon.path("c.toml"), with_service).unwrap();
    let more = server.reloaded("");
    assert!(more.contains(": 1 key changed\n\nKEY      BEFORE"), "{more}");
    server.write("kernel_check = \"500ms\"\nlinger = \"2s\"");
    let with_service = std::fs::read_to_string(&path).unwrap().replace("ports = [1]", &ports);
    std::fs::write(&path, with_service).unwrap();
    server.reloaded("");
    server.daemon.until("the session is learnt", || local() == 1);
    server.write("kernel_check = \"500ms\"\nlinger = \"2s\"");
    server.reloaded("");
    server.daemon.until("the session is withdrawn", || local() == 0);
    assert_eq!(server.daemon.stats()["totals"]["entry_retired"], 1);

    // SIGHUP does the same, and the log says what came of it.
    let applied = server.count("applied");
    server.write("[admission]\nburst = 8192");
    server.daemon.signal(Signal::HUP);
    server.daemon.until("it has reloaded", || server.count("applied") != applied);
    let log = server.daemon.log();
    assert!(log.contains("configuration reloaded: admission.burst from 4096 to 8192, "), "{log}");
    server.write("[workers]\ncores = [0, 1]");
    server.daemon.signal(Signal::HUP);
    server.daemon.until("it has refused", || server.count("refused") == 1);
    let log = server.daemon.log();
    assert!(log.contains("configuration not reloaded: workers.cores needs a restart"), "{log}");
}

#[test]
fn a_reload_that_nobody_confirms_is_rolled_back() {
    let server = Server::start(81);
    server.write("[admission]\nburst = 8192");
    let text = server.reloaded("--confirm 1s");
    assert!(text.contains("admission.burst  4096    8192"), "{text}");
    assert!(text.contains("\nrolled back in "), "{text}");
    server.daemon.until("it is rolled back", || server.count("rolled_back") == 1);
    let log = server.daemon.log();
    assert!(log.contains("the reloaded configuration was not confirmed in time"), "{log}");

    server.reloaded("--confirm 1h");
    let refused = server.reload("--confirm 1h");
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("confirm it or roll it back (conflict)"), "{error}");
    assert!(server.reloaded("--confirmed").starts_with("confirmed: "));
    assert!(server.reloaded("--dry-run").contains("c.toml: nothing would change\n\nwarning: "));
    server.write("");
    server.reloaded("--confirm 1h");
    assert!(server.reloaded("--roll-back").contains("admission.burst  4096    8192"));

    server.write("half_open_mux = 3");
    let refused = server.reload("");
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("c.toml:24:9: unknown key 'half_open_mux' in [sessions]"), "{error}");
}
