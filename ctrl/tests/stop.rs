//! The end of a real daemon: what it says to the other servers goes through its own workers, and what
//! it leaves behind is there for the next one. Two daemons in network namespaces, their uplinks joined by a veth pair; needs root.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use holdfast::client::ask;
use holdfast::protocol::Request;
use rustix::process::Signal;
use serde_json::Value;
use support::daemon::{Daemon, Process};
use support::is_root;
use support::namespace::{Namespace, veth};

const LOCATORS: [&str; 2] = ["10.79.0.1", "10.79.0.2"];

/// A server: its daemon and its namespace.
struct Server {
    daemon: Daemon,
    namespace: Namespace,
    /// Its place in [`LOCATORS`].
    number: usize,
}

/// Two servers.
fn start() -> [Server; 2] {
    let mut servers = [0, 1].map(|number| {
        let namespace = Namespace::new(&format!("server-{number}"));
        Server { daemon: Daemon::new(Some(&namespace)), namespace, number }
    });
    veth(servers.each_ref().map(|server| (&server.namespace, "up0")));
    for server in &mut servers {
        let locator = LOCATORS[server.number];
        server.namespace.add_addresses("lo", [locator]);
        server.namespace.set_up_uplink("up0");
        server.daemon.configure(&configuration(locator));
        server.daemon.run();
        server.set_up_host_port();
    }
    servers
}

fn configuration(locator: &str) -> String {
    let [one, other] = LOCATORS;
    format!(
        r#"
        node.locator = "{locator}"
        uplink.device = "up0"
        service = [{{ address = "192.168.79.1", ports = [80] }}]
        dht.bootstrap = ["{one}:7000", "{other}:7000"]
        cluster.members = ["10.79.0.0/24"]
        "#
    )
}

impl Server {
    fn set_up_host_port(&self) {
        self.daemon.until("host0 is there", || self.namespace.try_ip("link set host0 up"));
        let (own, other) = (LOCATORS[self.number], LOCATORS[1 - self.number]);
        self.namespace.ip(&format!("route add {other}/32 dev host0 src {own}"));
    }

    /// State of the other server, as this one sees it; `None` when it does not know it.
    fn state_of_other(&self) -> Option<String> {
        let reply = ask(&self.daemon.socket(), &Request::ShowPeers {}).ok()?;
        Some(reply["peers"].get(0)?["state"].as_str()?.to_owned())
    }

    fn until_other_is_alive(&self) {
        let is_alive = || self.state_of_other().is_some_and(|state| state == "alive");
        self.daemon.until("the other is alive", is_alive);
    }

    /// The last second of its workers; null before there is one.
    fn last_second(&self) -> Value {
        self.daemon.ask(&Request::ShowWorkers {})["last_second"].clone()
    }

    /// Flags, Ethernet address and IP addresses of its host port.
    fn host_port(&self) -> Option<(String, String, String)> {
        let mut command = self.namespace.command("ip");
        let output = command.args(["-json", "address", "show", "host0"]).output().unwrap();
        let value: Value = serde_json::from_slice(&output.stdout).ok()?;
        let text = |key: &str| value[0][key].to_string();
        // An address of IPv6 is tentative for its first second (RFC 4862 §5.4).
        let addresses = text("addr_info").replace("\"tentative\":true,", "");
        Some((text("flags"), text("address"), addresses))
    }

    fn has_carrier(&self) -> bool {
        self.host_port().is_some_and(|(flags, ..)| flags.contains("LOWER_UP"))
    }

    fn until_carrier_is_lost(&self) {
        self.daemon.until("the carrier is lost", || !self.has_carrier());
    }
}

#[test]
fn the_host_port_outlives_its_daemon_and_keeps_its_carrier_while_it_is_held() {
    if !is_root("stop.rs") {
        return;
    }
    let [mut server, other] = start();
    server.until_other_is_alive();
    other.until_other_is_alive();
    server.namespace.add_addresses("host0", ["10.79.1.1/24"]);
    let before = server.host_port().unwrap();
    assert!(before.2.contains("10.79.1.1"), "{before:?}");

    // Nobody holds it: it stays, without carrier, and the next daemon takes it over.
    server.daemon.kill();
    server.until_carrier_is_lost();
    assert_eq!(server.host_port().unwrap().2, before.2);
    server.daemon.run();
    server.daemon.until("the carrier is back", || server.has_carrier());
    // The other forgets at once what it held against the one before.
    server.until_other_is_alive();
    other.until_other_is_alive();

    // Held: its daemon's end changes nothing. The holder takes none of its packets.
    let holder = Process::spawn(&mut server.daemon.command("hold"));
    server.daemon.until("it is held", || server.daemon.log().contains("holding tap:host0"));
    for _ in 0..2 {
        let held = server.host_port();
        server.daemon.kill();
        for _ in 0..10 {
            assert_eq!(server.host_port(), held);
            std::thread::sleep(Duration::from_millis(20));
        }
        server.daemon.run();
        server.until_other_is_alive();
        other.until_other_is_alive();
    }
    // The one goes, then the other: then nobody is left.
    drop(holder);
    assert!(server.has_carrier());
    server.daemon.kill();
    server.until_carrier_is_lost();
    let (_, mac, addresses) = server.host_port().unwrap();
    assert_eq!((&mac, addresses), (&before.1, before.2));

    // The holder makes it as the daemon needs it.
    server.namespace.ip("link delete host0");
    let _holder = Process::spawn(&mut server.daemon.command("hold"));
    server.set_up_host_port();
    assert_eq!(server.host_port().unwrap().1, mac);
    server.daemon.run();
    server.until_other_is_alive();
}

#[test]
fn r13_a_daemon_that_is_stopped_says_so_through_its_workers() {
    if !is_root("stop.rs") {
        return;
    }
    let [mut server, other] = start();
    server.until_other_is_alive();
    other.until_other_is_alive();
    server.daemon.until("a second is measured", || !server.last_second().is_null());
    let second = server.last_second();
    assert!(second["duration_us"].as_u64().unwrap() >= 1_000_000, "{second}");
    let worker = &second["workers"][0];
    assert!((0.0..=100.0).contains(&worker["busy_percent"].as_f64().unwrap()), "{second}");
    assert!(worker["turns_per_s"].as_u64().unwrap() > 0, "{second}");
    server.daemon.signal(Signal::TERM);
    let start = Instant::now();
    // Well before it could be taken for dead.
    while other.state_of_other().is_none_or(|state| state != "away") {
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", other.state_of_other());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(server.daemon.wait().success());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let stats = &other.daemon.stats()["dht"];
    assert_eq!(stats["gauges"]["peers_away"], 1);
    assert_eq!(stats["counters"]["peers_left"], 1);
    assert_eq!(stats["counters"]["peers_dead"], 0);
    // It is in its own list of nodes to join by: it stands alone now.
    assert_eq!(stats["gauges"]["joined"], 1);
}
