//! A real daemon whose kernel answers by another interface: what clients send comes by, and the
//! kernel's sockets tell the rest. A client and a server in network namespaces, joined by two veth
//! pairs, one for each direction; needs root.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::time::Duration;

use holdfast::protocol::{Limit, Request, SessionFilter};
use rustix::net::sockopt::set_socket_linger;
use support::daemon::Daemon;
use support::is_root;
use support::namespace::{Namespace, veth};
use support::session::{echo, listen, open};

const HOST_MAC: &str = "02:00:00:00:81:01";
const SERVICES: [&str; 2] = ["192.168.81.1:80", "[fd81:80::1]:80"];

/// A client's and a server's namespace, and the server's daemon.
struct Lab {
    daemon: Daemon,
    client: Namespace,
    server: Namespace,
}

impl Lab {
    fn start() -> Lab {
        let [client, server] = ["client", "server"].map(Namespace::new);
        for (there, here) in [("cl0", "up0"), ("in0", "out0")] {
            veth([(&client, there), (&server, here)]);
        }
        server.set_up_uplink("up0");
        server.add_addresses("out0", ["10.81.1.1/24", "fd81:1::1/64 nodad"]);
        server.ip("link set out0 up");
        client.add_addresses("in0", ["10.81.1.2/24", "fd81:1::2/64 nodad"]);
        client.ip("link set in0 up");
        server.add_addresses("lo", ["10.81.0.1/32", "192.168.81.1/32", "fd81:80::1/128"]);
        client.ip("link set cl0 up");
        for (address, source) in [("192.168.81.1", "10.81.1.2"), ("fd81:80::1", "fd81:1::2")] {
            client.ip(&format!("neigh add {address} lladdr {HOST_MAC} dev cl0 nud permanent"));
            client.ip(&format!("route add {address} dev cl0 src {source}"));
        }
        let daemon = Daemon::start(Some(&server), &configuration());
        daemon.until("host0 is there", || server.try_ip("link set host0 up"));
        Lab { daemon, client, server }
    }

    /// State of the session between two sockets; `None` when the daemon knows none.
    fn state(&self, client: SocketAddr, service: SocketAddr) -> Option<String> {
        let request =
            Request::SessionsList { filter: SessionFilter::default(), limit: Limit::default() };
        let reply = self.daemon.ask(&request);
        let flow = format!("{client}-{service}");
        let entries = reply["sessions"].as_array().unwrap().iter();
        let mut found = entries.filter(|entry| entry["flow"] == flow.as_str());
        Some(found.next()?["state"].as_str().unwrap().to_owned())
    }
}

fn configuration() -> String {
    format!(
        r#"
        node.locator = "10.81.0.1"
        uplink.device = "up0"
        host_port = {{ mac = "{HOST_MAC}", inbound_only = true }}
        service = [
            {{ address = "192.168.81.1", ports = [80] }},
            {{ address = "fd81:80::1", ports = [80] }},
        ]
        sessions.linger = "2s"
        sessions.kernel_check = "500ms"
        dht.bootstrap = ["10.81.0.1:7000"]
        cluster.members = ["10.81.0.0/24"]
        "#
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
        let listener = listen(&lab.server, service);
        // Who ends it: the client with a FIN, the server with one, or the server with a RST, of
        // which nothing at all comes by.
        for end in ["client", "server", "reset"] {
            let (mut client, mut accepted) = open(&lab.client, &listener);
            let address = client.local_addr().unwrap();
            let state = || lab.state(address, service);
            echo(&mut client, &mut accepted);
            assert_eq!(state().as_deref(), Some("established"), "{service} {end}");
            lab.daemon.until("it is published", || lab.daemon.published() == 1);

            match end {
                "client" => {
                    // Longer than it lingers: the check does not end what the kernel holds.
                    std::thread::sleep(Duration::from_secs(3));
                    assert_eq!(state().as_deref(), Some("established"), "{service}");
                    assert_eq!(lab.daemon.published(), 1);
                    drop(client);
                    assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
                    drop(accepted);
                }
                "server" => {
                    drop(accepted);
                    assert_eq!(client.read(&mut [0]).unwrap(), 0);
                    drop(client);
                }
                _ => {
                    set_socket_linger(&accepted, Some(Duration::ZERO)).unwrap();
                    drop(accepted);
                    let error = client.read(&mut [0]).expect_err("it is reset");
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                }
            }
            lab.daemon.until("it is closed", || state().as_deref() == Some("closed"));
            lab.daemon.until("it is withdrawn", || lab.daemon.published() == 0);
            assert_eq!(state(), None);
        }
    }
    let stats = lab.daemon.stats();
    let found = &stats["kernel_check"]["counters"];
    assert_eq!((&found["ended"], &found["failures"]), (&6.into(), &0.into()), "{stats}");
    assert_eq!(stats["totals"]["session_opened"], 6);
    assert_eq!(stats["totals"]["session_learnt"], 0, "no answer of the kernel came by");
}
