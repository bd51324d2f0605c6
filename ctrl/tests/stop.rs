//! The end of a real daemon: what it says to the other servers goes through its own workers, and what
//! it leaves behind is there for the next one. Two daemons in network namespaces, their uplinks joined by a veth pair; needs root.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast::client::ask;
use holdfast::protocol::Request;
use serde_json::Value;

/// Two namespaces, and a daemon in each; gone when dropped.
struct Pair {
    directory: tempfile::TempDir,
    daemons: Vec<Child>,
}

/// Of this test's thread, as tests run side by side.
fn namespace(n: usize) -> String {
    let thread = rustix::thread::gettid().as_raw_nonzero();
    format!("holdfast-stop-{}-{thread}-{n}", std::process::id())
}

fn locator(n: usize) -> String {
    format!("10.79.0.{}", n + 1)
}

fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace()).stderr(Stdio::null());
    command.status().unwrap().success()
}

/// A command in a namespace: the process itself, no shell around it.
fn command_in(n: usize, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace(n), program]);
    command
}

impl Pair {
    fn start() -> Pair {
        let mut pair = Pair { directory: tempfile::tempdir().unwrap(), daemons: Vec::new() };
        for n in 0..2 {
            assert!(ip(&format!("netns add {}", namespace(n))));
            assert!(ip(&format!("-n {} link set lo up", namespace(n))));
            assert!(ip(&format!("-n {} address add {}/32 dev lo", namespace(n), locator(n))));
        }
        let [one, other] = [0, 1].map(namespace);
        assert!(ip(&format!("link add up0 netns {one} type veth peer up0 netns {other}")));
        for n in 0..2 {
            pair.start_one(n);
        }
        pair
    }

    fn start_one(&mut self, n: usize) {
        // The kernel must not speak on the uplink, and leaves no checksums to a veth.
        let offloads = "-K up0 tx off rx off sg off tso off gso off gro off";
        let mut ethtool = command_in(n, "ethtool");
        ethtool.args(offloads.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(ethtool.status().unwrap().success());
        let mut sysctl = command_in(n, "sysctl");
        sysctl.args(["-qw", "net.ipv6.conf.up0.disable_ipv6=1"]);
        assert!(sysctl.status().unwrap().success());
        assert!(ip(&format!("-n {} link set up0 promisc on arp off up", namespace(n))));

        std::fs::write(self.path(n, "toml"), self.configuration(n)).unwrap();
        let daemon = self.holdfastd(n, "run", "log");
        self.daemons.push(daemon);

        self.set_up_host_port(n);
    }

    fn set_up_host_port(&self, n: usize) {
        let name = namespace(n);
        self.until("host0 is there", n, || ip(&format!("-n {name} link set host0 up")));
        let (own, other) = (locator(n), locator(1 - n));
        assert!(ip(&format!("-n {name} route add {other}/32 dev host0 src {own}")));
    }

    fn path(&self, n: usize, extension: &str) -> PathBuf {
        self.directory.path().join(format!("{n}.{extension}"))
    }

    /// Starts holdfastd with server `n`'s configuration.
    fn holdfastd(&self, n: usize, verb: &str, log: &str) -> Child {
        let log = std::fs::File::create(self.path(n, log)).unwrap();
        let mut holdfastd = command_in(n, env!("CARGO_BIN_EXE_holdfastd"));
        holdfastd.arg(verb).arg(self.path(n, "toml")).stdin(Stdio::null()).stdout(Stdio::null());
        holdfastd.stderr(log).spawn().unwrap()
    }

    fn kill(&mut self, n: usize) {
        self.daemons[n].kill().unwrap();
        self.daemons[n].wait().unwrap();
    }

    fn until_alive(&self, n: usize) {
        let alive = || self.state_of_other(n).is_some_and(|state| state == "alive");
        self.until("the other is alive", n, alive);
    }

    fn configuration(&self, n: usize) -> String {
        let (own, [one, other]) = (locator(n), [0, 1].map(locator));
        let socket = self.socket(n);
        format!(
            r#"
            [node]
            locator = "{own}"
            control_socket = "{}"
            [dpdk]
            eal_args = ["--no-telemetry"]
            huge_pages = "off"
            file_prefix = "{}"
            [uplink]
            device = "up0"
            [[service]]
            address = "192.168.79.1"
            ports = [80]
            [sessions]
            capacity = 2048
            half_open_max = 1024
            [dht]
            bootstrap = ["{one}:7000", "{other}:7000"]
            records_max = 2048
            [cluster]
            members = ["10.79.0.0/24"]
            insecure = true
            "#,
            socket.display(),
            namespace(n),
        )
    }

    fn socket(&self, n: usize) -> PathBuf {
        self.path(n, "sock")
    }

    /// State of the other server, as server `n` sees it; `None` when it does not know it.
    fn state_of_other(&self, n: usize) -> Option<String> {
        let reply = ask(&self.socket(n), &Request::ShowPeers {}).ok()?;
        Some(reply["peers"].get(0)?["state"].as_str()?.to_owned())
    }

    fn stats(&self, n: usize) -> Value {
        ask(&self.socket(n), &Request::ShowStats {}).unwrap()["dht"].clone()
    }

    /// The last second of server `n`'s workers; null before there is one.
    fn last_second(&self, n: usize) -> Value {
        ask(&self.socket(n), &Request::ShowWorkers {}).unwrap()["last_second"].clone()
    }

    fn until(&self, what: &str, n: usize, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            let log = self.path(n, "log");
            let log = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(start.elapsed() < Duration::from_secs(30), "not so: {what}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // It may have ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for n in 0..2 {
            ip(&format!("netns delete {}", namespace(n)));
        }
    }
}

/// Whether there can be namespaces; says so when not.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // Not by a macro, whose words the test harness keeps to itself.
        let skipped = b"********** SKIPPED: stop.rs needs root for network namespaces **********\n";
        std::io::stderr().write_all(skipped).unwrap();
    }
    is_root
}

/// Flags, Ethernet address and IP addresses of server `n`'s host port.
fn host_port(n: usize) -> Option<(String, String, String)> {
    let mut command = command_in(n, "ip");
    let output = command.args(["-json", "address", "show", "host0"]).output().unwrap();
    let value: Value = serde_json::from_slice(&output.stdout).ok()?;
    let text = |key: &str| value[0][key].to_string();
    // An address of IPv6 is tentative for its first second (RFC 4862 §5.4).
    let addresses = text("addr_info").replace("\"tentative\":true,", "");
    Some((text("flags"), text("address"), addresses))
}

fn has_carrier(n: usize) -> bool {
    host_port(n).is_some_and(|(flags, ..)| flags.contains("LOWER_UP"))
}

#[test]
fn the_host_port_outlives_its_daemon_and_keeps_its_carrier_while_it_is_held() {
    if !is_root() {
        return;
    }
    let mut pair = Pair::start();
    (0..2).for_each(|n| pair.until_alive(n));
    assert!(ip(&format!("-n {} address add 10.79.1.1/24 dev host0", namespace(0))));
    let before = host_port(0).unwrap();
    assert!(before.2.contains("10.79.1.1"), "{before:?}");

    // Nobody holds it: it stays, without carrier, and the next daemon takes it over.
    pair.kill(0);
    pair.until("the carrier is lost", 0, || !has_carrier(0));
    assert_eq!(host_port(0).unwrap().2, before.2);
    pair.daemons[0] = pair.holdfastd(0, "run", "log");
    pair.until("the carrier is back", 0, || has_carrier(0));
    // Server 1 forgets at once what it held against the one before.
    (0..2).for_each(|n| pair.until_alive(n));

    // Held: its daemon's end changes nothing. The holder takes none of its packets.
    let mut holder = pair.holdfastd(0, "hold", "hold.log");
    let held = || {
        let log = std::fs::read_to_string(pair.path(0, "hold.log")).unwrap();
        log.contains("holding tap:host0")
    };
    pair.until("it is held", 0, held);
    for _ in 0..2 {
        let held = host_port(0);
        pair.kill(0);
        for _ in 0..10 {
            assert_eq!(host_port(0), held);
            std::thread::sleep(Duration::from_millis(20));
        }
        pair.daemons[0] = pair.holdfastd(0, "run", "log");
        let known = || pair.state_of_other(0).is_some_and(|state| state == "alive");
        pair.until("the daemon runs and hears the other", 0, known);
        pair.until_alive(1);
    }
    // The one goes, then the other: then nobody is left.
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(has_carrier(0));
    pair.kill(0);
    pair.until("the carrier is lost", 0, || !has_carrier(0));
    let (_, mac, addresses) = host_port(0).unwrap();
    assert_eq!((&mac, addresses), (&before.1, before.2));

    // The holder makes it as the daemon needs it.
    assert!(ip(&format!("-n {} link delete host0", namespace(0))));
    let mut holder = pair.holdfastd(0, "hold", "hold.log");
    pair.set_up_host_port(0);
    assert_eq!(host_port(0).unwrap().1, mac);
    pair.daemons[0] = pair.holdfastd(0, "run", "log");
    let known = || pair.state_of_other(0).is_some_and(|state| state == "alive");
    pair.until("the daemon runs and hears the other", 0, known);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn r13_a_daemon_that_is_stopped_says_so_through_its_workers() {
    if !is_root() {
        return;
    }
    let mut pair = Pair::start();
    (0..2).for_each(|n| pair.until_alive(n));
    pair.until("a second is measured", 0, || !pair.last_second(0).is_null());
    let second = pair.last_second(0);
    assert!(second["duration_us"].as_u64().unwrap() >= 1_000_000, "{second}");
    let worker = &second["workers"][0];
    assert!((0.0..=100.0).contains(&worker["busy_percent"].as_f64().unwrap()), "{second}");
    assert!(worker["turns_per_s"].as_u64().unwrap() > 0, "{second}");
    let pid = rustix::process::Pid::from_child(&pair.daemons[0]);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let start = Instant::now();
    // Well before it could be taken for dead.
    while pair.state_of_other(1).is_none_or(|state| state != "away") {
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", pair.state_of_other(1));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(pair.daemons[0].wait().unwrap().success());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let stats = pair.stats(1);
    assert_eq!(stats["gauges"]["peers_away"], 1);
    assert_eq!(stats["counters"]["peers_left"], 1);
    assert_eq!(stats["counters"]["peers_dead"], 0);
    // It is in its own list of nodes to join by: it stands alone now.
    assert_eq!(stats["gauges"]["joined"], 1);
}
