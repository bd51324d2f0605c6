//! A real daemon whose kernel answers by another interface: what clients send comes by, and the
//! kernel's sockets tell the rest. A client and a server in network namespaces, joined by two veth
//! pairs, one for each direction; needs root.
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
use holdfast::protocol::{Limit, Request, SessionFilter};
use netns::{command_in, inside, ip, is_root};
use rustix::net::sockopt::set_socket_linger;
use serde_json::Value;

const HOST_MAC: &str = "02:00:00:00:81:01";
const SERVICES: [&str; 2] = ["192.168.81.1:80", "[fd81:80::1]:80"];

/// A client's and a server's namespace, and the server's daemon; gone when dropped.
struct Lab {
    directory: tempfile::TempDir,
    client: String,
    server: String,
    daemon: Child,
}

impl Lab {
    fn start() -> Lab {
        let [client, server] =
            ["client", "server"].map(|name| format!("holdfast-in-{}-{name}", std::process::id()));
        for namespace in [&client, &server] {
            assert!(ip(&format!("netns add {namespace}")));
            assert!(ip(&format!("-n {namespace} link set lo up")));
            for interface in ["all", "default"] {
                let key = format!("net.ipv4.conf.{interface}.rp_filter=0");
                command_in(namespace, "sysctl", &format!("-qw {key}"));
            }
        }
        for (there, here) in [("cl0", "up0"), ("in0", "out0")] {
            let link = format!("link add {there} netns {client} type veth peer {here}");
            assert!(ip(&format!("{link} netns {server}")));
            for (namespace, interface) in [(&client, there), (&server, here)] {
                let off = "tx off rx off sg off tso off gso off gro off";
                command_in(namespace, "ethtool", &format!("-K {interface} {off}"));
            }
        }
        command_in(&server, "sysctl", "-qw net.ipv6.conf.up0.disable_ipv6=1");
        assert!(ip(&format!("-n {server} link set up0 promisc on arp off up")));
        for (namespace, interface, number) in [(&server, "out0", 1), (&client, "in0", 2)] {
            for address in [format!("10.81.1.{number}/24"), format!("fd81:1::{number}/64 nodad")] {
                assert!(ip(&format!("-n {namespace} address add {address} dev {interface}")));
            }
            assert!(ip(&format!("-n {namespace} link set {interface} up")));
        }
        for address in ["10.81.0.1/32", "192.168.81.1/32", "fd81:80::1/128"] {
            assert!(ip(&format!("-n {server} address add {address} dev lo")));
        }
        assert!(ip(&format!("-n {client} link set cl0 up")));
        for (address, source) in [("192.168.81.1", "10.81.1.2"), ("fd81:80::1", "fd81:1::2")] {
            let neighbour = format!("neigh add {address} lladdr {HOST_MAC} dev cl0 nud permanent");
            assert!(ip(&format!("-n {client} {neighbour}")));
            assert!(ip(&format!("-n {client} route add {address} dev cl0 src {source}")));
        }

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("holdfast.toml");
        std::fs::write(&path, configuration(&directory, &server)).unwrap();
        let mut daemon = Command::new("ip");
        daemon.args(["netns", "exec", &server, env!("CARGO_BIN_EXE_holdfastd"), "run"]);
        daemon.arg(path).stdin(Stdio::null()).stdout(Stdio::null());
        let log = File::create(directory.path().join("log")).unwrap();
        let daemon = daemon.stderr(log).spawn().unwrap();
        let lab = Lab { directory, client, server, daemon };
        let up = || ip(&format!("-n {} link set host0 up", lab.server));
        lab.until("host0 is there", || up().then_some(()));
        lab.until("it answers", || ask(&lab.socket(), &Request::ShowVersion {}).ok());
        lab
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn stats(&self) -> Value {
        ask(&self.socket(), &Request::ShowStats {}).unwrap()
    }

    /// State of the session between two sockets; `None` when the daemon knows none.
    fn state(&self, client: SocketAddr, service: SocketAddr) -> Option<String> {
        let request =
            Request::SessionsList { filter: SessionFilter::default(), limit: Limit::default() };
        let reply = ask(&self.socket(), &request).unwrap();
        let flow = format!("{client}-{service}");
        let entries = reply["sessions"].as_array().unwrap().iter();
        let mut found = entries.filter(|entry| entry["flow"] == flow.as_str());
        Some(found.next()?["state"].as_str().unwrap().to_owned())
    }

    fn published(&self) -> u64 {
        self.stats()["dht"]["gauges"]["published"].as_u64().unwrap()
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
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for namespace in [&self.client, &self.server] {
            ip(&format!("netns delete {namespace}"));
        }
    }
}

fn configuration(directory: &tempfile::TempDir, prefix: &str) -> String {
    format!(
        r#"
        [node]
        locator = "10.81.0.1"
        control_socket = "{}"
        [dpdk]
        eal_args = ["--no-telemetry"]
        huge_pages = "off"
        file_prefix = "{prefix}"
        [uplink]
        device = "up0"
        [host_port]
        mac = "{HOST_MAC}"
        inbound_only = true
        [[service]]
        address = "192.168.81.1"
        ports = [80]
        [[service]]
        address = "fd81:80::1"
        ports = [80]
        [sessions]
        capacity = 2048
        half_open_max = 1024
        linger = "2s"
        kernel_check = "500ms"
        [dht]
        bootstrap = ["10.81.0.1:7000"]
        records_max = 2048
        [cluster]
        members = ["10.81.0.0/24"]
        insecure = true
        "#,
        directory.path().join("socket").display(),
    )
}

#[test]
fn r8_inbound_only_sessions_live_and_end_as_the_kernel_says() {
    if !is_root("inbound_only.rs") {
        return;
    }
    let lab = Lab::start();
    for service in SERVICES {
        let service: SocketAddr = service.parse().unwrap();
        let listener = inside(&lab.server, || TcpListener::bind(service).unwrap());
        // Who ends it: the client with a FIN, the server with one, or the server with a RST, of
        // which nothing at all comes by.
        for end in ["client", "server", "reset"] {
            let mut client = inside(&lab.client, || TcpStream::connect(service).unwrap());
            let address = client.local_addr().unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            let state = || lab.state(address, service);
            client.write_all(b"ping").unwrap();
            let mut bytes = [0; 4];
            accepted.read_exact(&mut bytes).unwrap();
            accepted.write_all(&bytes).unwrap();
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"ping");
            assert_eq!(state().as_deref(), Some("established"), "{service} {end}");
            lab.until("it is published", || (lab.published() == 1).then_some(()));

            match end {
                "client" => {
                    // Longer than it lingers: the check does not end what the kernel holds.
                    std::thread::sleep(Duration::from_secs(3));
                    assert_eq!(state().as_deref(), Some("established"), "{service}");
                    assert_eq!(lab.published(), 1);
                    drop(client);
                    assert_eq!(accepted.read(&mut bytes).unwrap(), 0);
                    drop(accepted);
                }
                "server" => {
                    drop(accepted);
                    assert_eq!(client.read(&mut bytes).unwrap(), 0);
                    drop(client);
                }
                _ => {
                    set_socket_linger(&accepted, Some(Duration::ZERO)).unwrap();
                    drop(accepted);
                    assert!(client.read(&mut bytes).is_err());
                }
            }
            let over = || (state().as_deref() == Some("closed")).then_some(());
            lab.until("it is closed", over);
            lab.until("it is withdrawn", || (lab.published() == 0).then_some(()));
            assert_eq!(state(), None);
        }
    }
    let stats = lab.stats();
    let found = &stats["kernel_check"]["counters"];
    assert_eq!((&found["ended"], &found["failures"]), (&6.into(), &0.into()), "{stats}");
    assert_eq!(stats["totals"]["session_opened"], 6);
    assert_eq!(stats["totals"]["session_learnt"], 0, "no answer of the kernel came by");
}
