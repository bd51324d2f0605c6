//! A real daemon whose kernel is behind the NIC's switch. A bridge stands for the switch: the wire, the
//! appliance's function and the kernel's are its ports, each a veth. The client finds the next hops by
//! the kernel's own ARP and Neighbour Discovery. Network namespaces; needs root.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

#[path = "support/netns.rs"]
mod netns;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast::client::ask;
use holdfast::protocol::Request;
use netns::{command_in, inside, ip, is_root};
use serde_json::Value;

const OURS: &str = "02:00:00:00:82:01";
const KERNELS: &str = "02:00:00:00:82:02";
const SERVICES: [&str; 2] = ["192.168.82.1:80", "[fd82:80::1]:80"];
const NEXT_HOPS: [&str; 2] = ["10.82.1.11", "fd82:1::11"];

/// A client's namespace, the switch's and a server's, and the server's daemon; gone when dropped.
struct Lab {
    directory: tempfile::TempDir,
    client: String,
    switch: String,
    server: String,
    daemon: Child,
}

impl Lab {
    fn start() -> Lab {
        let [client, switch, server] = ["client", "switch", "server"]
            .map(|name| format!("holdfast-sw-{}-{name}", std::process::id()));
        for namespace in [&client, &switch, &server] {
            assert!(ip(&format!("netns add {namespace}")));
            assert!(ip(&format!("-n {namespace} link set lo up")));
            for interface in ["all", "default"] {
                let key = format!("net.ipv4.conf.{interface}.rp_filter=0");
                command_in(namespace, "sysctl", &format!("-qw {key}"));
            }
        }
        assert!(ip(&format!("-n {switch} link add br0 type bridge mcast_snooping 0")));
        assert!(ip(&format!("-n {switch} link set br0 up")));
        let ports = [(&client, "cl0", "wire"), (&server, "vf0", "p0"), (&server, "vf1", "p1")];
        for (namespace, interface, port) in ports {
            let link = format!("link add {port} netns {switch} type veth peer {interface}");
            assert!(ip(&format!("{link} netns {namespace}")));
            assert!(ip(&format!("-n {switch} link set {port} master br0 up")));
            for (namespace, interface) in [(namespace, interface), (&switch, port)] {
                let off = "tx off rx off sg off tso off gso off gro off";
                command_in(namespace, "ethtool", &format!("-K {interface} {off}"));
            }
        }
        command_in(&server, "sysctl", "-qw net.ipv6.conf.vf0.disable_ipv6=1");
        assert!(ip(&format!("-n {server} link set vf0 address {OURS} arp off up")));
        assert!(ip(&format!("-n {server} link set vf1 address {KERNELS}")));
        for (namespace, interface, number) in [(&server, "vf1", 1), (&client, "cl0", 2)] {
            for address in [format!("10.82.1.{number}/24"), format!("fd82:1::{number}/64 nodad")] {
                assert!(ip(&format!("-n {namespace} address add {address} dev {interface}")));
            }
            assert!(ip(&format!("-n {namespace} link set {interface} up")));
        }
        for address in ["10.82.0.1/32", "192.168.82.1/32", "fd82:80::1/128"] {
            assert!(ip(&format!("-n {server} address add {address} dev lo")));
        }
        for (service, next_hop) in ["192.168.82.1", "fd82:80::1"].iter().zip(NEXT_HOPS) {
            assert!(ip(&format!("-n {client} route add {service} via {next_hop}")));
        }

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("holdfast.toml");
        std::fs::write(&path, configuration(&directory, &server)).unwrap();
        let mut daemon = Command::new("ip");
        daemon.args(["netns", "exec", &server, env!("CARGO_BIN_EXE_holdfastd"), "run"]);
        daemon.arg(path).stdin(Stdio::null()).stdout(Stdio::null());
        let log = File::create(directory.path().join("log")).unwrap();
        let daemon = daemon.stderr(log).spawn().unwrap();
        let lab = Lab { directory, client, switch, server, daemon };
        lab.until("it answers", || ask(&lab.socket(), &Request::ShowVersion {}).ok());
        lab
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn stats(&self) -> Value {
        ask(&self.socket(), &Request::ShowStats {}).unwrap()
    }

    fn count(&self, counter: &str) -> u64 {
        self.stats()["totals"][counter].as_u64().unwrap()
    }

    fn until<T>(&self, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(done) = done() {
                return done;
            }
            let log = || std::fs::read_to_string(self.directory.path().join("log"));
            assert!(start.elapsed() < Duration::from_secs(30), "not so: {what}\n{:?}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A session: what the client sends comes back.
    fn session(&self, listener: &TcpListener, service: SocketAddr, bytes: &[u8]) {
        let mut client = inside(&self.client, || TcpStream::connect(service).unwrap());
        let (mut accepted, _) = listener.accept().unwrap();
        let echo = std::thread::spawn(move || {
            let mut received = Vec::new();
            accepted.read_to_end(&mut received).unwrap();
            accepted.write_all(&received).unwrap();
        });
        client.write_all(bytes).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        echo.join().unwrap();
        assert!(back == bytes, "{} bytes of {} came back", back.len(), bytes.len());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for namespace in [&self.client, &self.switch, &self.server] {
            ip(&format!("netns delete {namespace}"));
        }
    }
}

fn configuration(directory: &tempfile::TempDir, prefix: &str) -> String {
    format!(
        r#"
        [node]
        locator = "10.82.0.1"
        control_socket = "{}"
        [dpdk]
        eal_args = ["--no-telemetry"]
        huge_pages = "off"
        file_prefix = "{prefix}"
        [uplink]
        device = "vf0"
        [host_port]
        device = "switch"
        mac = "{KERNELS}"
        next_hops = {NEXT_HOPS:?}
        [[service]]
        address = "192.168.82.1"
        ports = [80]
        [[service]]
        address = "fd82:80::1"
        ports = [80]
        [sessions]
        capacity = 2048
        half_open_max = 1024
        [dht]
        bootstrap = ["10.82.0.1:7000"]
        records_max = 2048
        [cluster]
        members = ["10.82.0.0/24"]
        insecure = true
        "#,
        directory.path().join("socket").display(),
    )
}

#[test]
fn sessions_go_through_the_switch_and_stop_while_the_link_is_down() {
    if !is_root("switch.rs") {
        return;
    }
    let lab = Lab::start();
    let services = SERVICES.map(|service| service.parse::<SocketAddr>().unwrap());
    let listeners =
        services.map(|service| inside(&lab.server, || TcpListener::bind(service).unwrap()));
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n * 7919) as u8).collect();
    for (listener, service) in listeners.iter().zip(services) {
        lab.session(listener, service, &bytes);
    }
    // The client learnt where the next hops are.
    for next_hop in NEXT_HOPS {
        let neighbour =
            Command::new("ip").args(["-n", &lab.client, "neigh", "show", next_hop]).output();
        let shown = String::from_utf8(neighbour.unwrap().stdout).unwrap();
        assert!(shown.contains(OURS), "{next_hop}: {shown}");
    }
    assert!(lab.count("neighbour_answered") >= 2);
    // Those of the kernel and the client for each other.
    assert!(lab.count("neighbour_other") >= 1);
    assert_eq!(lab.count("session_opened"), 2);
    assert!(lab.count("host_sent") > 200, "{}", lab.count("host_sent"));
    assert_eq!(lab.count("host_received"), 0);
    for counter in ["neighbour_conflict", "neighbour_malformed", "switch_from_host", "host_unsent"]
    {
        assert_eq!(lab.count(counter), 0, "{counter}");
    }

    let link = |lab: &Lab| {
        let ports = lab.stats()["ports"].as_array().unwrap().clone();
        assert_eq!(ports.len(), 1, "the uplink is the only port");
        (ports[0]["link_up"].as_bool().unwrap(), ports[0]["link_downs"].as_u64().unwrap())
    };
    assert_eq!(link(&lab), (true, 0));
    assert!(ip(&format!("-n {} link set p0 down", lab.switch)));
    lab.until("the link is down", || (link(&lab) == (false, 1)).then_some(()));
    assert!(ip(&format!("-n {} link set p0 up", lab.switch)));
    lab.until("the link is up", || (link(&lab) == (true, 1)).then_some(()));
    lab.session(&listeners[0], services[0], &bytes);
}
