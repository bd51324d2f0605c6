//! A real daemon whose kernel is behind the NIC's switch. A bridge stands for the switch: the wire, the
//! appliance's function and the kernel's are its ports, each a veth. The client finds the next hops by
//! the kernel's own ARP and Neighbour Discovery. Network namespaces; needs root.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use support::daemon::Daemon;
use support::is_root;
use support::namespace::{Namespace, veth};
use support::session::{listen, open};

const OURS: &str = "02:00:00:00:82:01";
const KERNELS: &str = "02:00:00:00:82:02";
const SERVICES: [&str; 2] = ["192.168.82.1:80", "[fd82:80::1]:80"];
const NEXT_HOPS: [&str; 2] = ["10.82.1.11", "fd82:1::11"];

/// A client's namespace, the switch's and a server's, and the server's daemon.
struct Lab {
    daemon: Daemon,
    client: Namespace,
    switch: Namespace,
    server: Namespace,
}

impl Lab {
    fn start() -> Lab {
        let [client, switch, server] = ["client", "switch", "server"].map(Namespace::new);
        switch.ip("link add br0 type bridge mcast_snooping 0");
        switch.ip("link set br0 up");
        let ports = [(&client, "cl0", "wire"), (&server, "vf0", "p0"), (&server, "vf1", "p1")];
        for (namespace, interface, port) in ports {
            veth([(&switch, port), (namespace, interface)]);
            switch.ip(&format!("link set {port} master br0 up"));
        }
        server.sysctl("net.ipv6.conf.vf0.disable_ipv6=1");
        server.ip(&format!("link set vf0 address {OURS} arp off up"));
        server.ip(&format!("link set vf1 address {KERNELS}"));
        server.add_addresses("vf1", ["10.82.1.1/24", "fd82:1::1/64 nodad"]);
        server.ip("link set vf1 up");
        client.add_addresses("cl0", ["10.82.1.2/24", "fd82:1::2/64 nodad"]);
        client.ip("link set cl0 up");
        server.add_addresses("lo", ["10.82.0.1/32", "192.168.82.1/32", "fd82:80::1/128"]);
        for (service, next_hop) in ["192.168.82.1", "fd82:80::1"].iter().zip(NEXT_HOPS) {
            client.ip(&format!("route add {service} via {next_hop}"));
        }
        let daemon = Daemon::start(Some(&server), &configuration());
        Lab { daemon, client, switch, server }
    }

    fn count(&self, counter: &str) -> u64 {
        self.daemon.stats()["totals"][counter].as_u64().unwrap()
    }

    /// A session: what the client sends comes back.
    fn session(&self, listener: &TcpListener, bytes: &[u8]) {
        let (mut client, mut accepted) = open(&self.client, listener);
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

fn configuration() -> String {
    format!(
        r#"
        node.locator = "10.82.0.1"
        uplink.device = "vf0"
        host_port = {{ device = "switch", mac = "{KERNELS}", next_hops = {NEXT_HOPS:?} }}
        service = [
            {{ address = "192.168.82.1", ports = [80] }},
            {{ address = "fd82:80::1", ports = [80] }},
        ]
        dht.bootstrap = ["10.82.0.1:7000"]
        cluster.members = ["10.82.0.0/24"]
        "#
    )
}

#[test]
fn sessions_go_through_the_switch_and_stop_while_the_link_is_down() {
    if !is_root("switch.rs") {
        return;
    }
    let lab = Lab::start();
    let services = SERVICES.map(|service| service.parse::<SocketAddr>().unwrap());
    let listeners = services.map(|service| listen(&lab.server, service));
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n * 7919) as u8).collect();
    for listener in &listeners {
        lab.session(listener, &bytes);
    }
    // The client learnt where the next hops are.
    for next_hop in NEXT_HOPS {
        let client = lab.client.name();
        let neighbour = Command::new("ip").args(["-n", client, "neigh", "show", next_hop]).output();
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
        let ports = lab.daemon.stats()["ports"].as_array().unwrap().clone();
        assert_eq!(ports.len(), 1, "the uplink is the only port");
        (ports[0]["link_up"].as_bool().unwrap(), ports[0]["link_downs"].as_u64().unwrap())
    };
    assert_eq!(link(&lab), (true, 0));
    lab.switch.ip("link set p0 down");
    lab.daemon.until("the link is down", || link(&lab) == (false, 1));
    lab.switch.ip("link set p0 up");
    lab.daemon.until("the link is up", || link(&lab) == (true, 1));
    lab.session(&listeners[0], &bytes);
}
