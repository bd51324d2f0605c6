//! trace and capture of a real daemon: a client and a server in network namespaces, joined by a
//! veth pair; needs root. What capture writes is read by tshark, where it is installed.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command};

use holdfast_net::checksum::checksum;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use serde_json::Value;
use support::daemon::Daemon;
use support::namespace::{Namespace, veth};
use support::session::{listen, open};
use support::{is_root, skipped};

const SERVICE: &str = "192.168.83.1:80";
const CLIENT: &str = "10.83.0.2";
const CONFIGURATION: &str = r#"
    node.locator = "10.83.0.1"
    uplink.device = "up0"
    service = [{ address = "192.168.83.1", ports = [80] }]
    dht.bootstrap = ["10.83.0.1:7000"]
    cluster.members = ["10.83.0.0/24"]
"#;

/// A client's and a server's namespace, and the server's daemon.
struct Lab {
    daemon: Daemon,
    client: Namespace,
    server: Namespace,
}

impl Lab {
    fn start() -> Lab {
        let [client, server] = ["client", "server"].map(Namespace::new);
        veth([(&client, "cl0"), (&server, "up0")]);
        server.set_up_uplink("up0");
        server.add_addresses("lo", ["10.83.0.1/32", "192.168.83.1/32"]);
        client.sysctl("net.ipv6.conf.cl0.disable_ipv6=1");
        client.add_addresses("cl0", [&format!("{CLIENT}/32")]);
        client.ip("link set cl0 up");
        client.ip("route add 192.168.83.1 dev cl0");
        let daemon = Daemon::start(Some(&server), CONFIGURATION);
        daemon.until("host0 is there", || server.try_ip("link set host0 up"));
        server.ip(&format!("route add {CLIENT} dev host0"));
        daemon.until("it has joined", || daemon.stats()["dht"]["gauges"]["joined"] == 1);
        Lab { daemon, client, server }
    }

    /// Starts a trace or a capture, and waits until it is under way.
    fn follow(&self, arguments: &str) -> Child {
        let child = self.daemon.holdfastctl(arguments).spawn().unwrap();
        let is_under_way = || self.daemon.stats()["control"]["gauges"]["streams"] == 1;
        self.daemon.until("it is under way", is_under_way);
        child
    }

    /// Sends a segment of a flow that nobody knows.
    fn stray(&self, port: u16) {
        let service: SocketAddrV4 = SERVICE.parse().unwrap();
        self.client.inside(|| {
            let (family, kind) = (AddressFamily::Inet, SockType::Raw);
            let socket = socket(family, kind, SockFlag::empty(), SockProtocol::Raw).unwrap();
            let packet = segment(CLIENT.parse().unwrap(), port, service);
            let to = SockaddrIn::from(service);
            sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
        });
    }
}

/// An IPv4 packet with an ACK; the kernel fills the IP header's checksum in.
fn segment(client: Ipv4Addr, port: u16, service: SocketAddrV4) -> Vec<u8> {
    let addresses = [client.octets(), service.ip().octets()].concat();
    let mut tcp = [port.to_be_bytes(), service.port().to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x10, 0, 0, 0, 0, 0]);
    let sum = checksum(&[&addresses[..], &[0, 6, 0, 20], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(addresses);
    packet.extend(tcp);
    packet
}

/// What a trace printed, as JSON: its items, and the last line.
fn items(child: Child) -> (Vec<Value>, Value) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let end = lines.pop().unwrap();
    (lines.into_iter().map(|line| line["item"].clone()).collect(), end["ok"].clone())
}

/// Where packets came from, their flags, and what became of them.
fn fates(items: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let of = |item: &Value| {
        let flags: Vec<_> = item["flags"].as_array().unwrap().iter().map(text).collect();
        let (origin, verdict) = (text(&item["origin"]), text(&item["verdict"]));
        format!("{origin} {} {verdict}", flags.join(","))
    };
    items.iter().map(of).collect()
}

#[test]
fn a_daemon_traces_and_captures() {
    if !is_root("packets_daemon.rs") {
        return;
    }
    let lab = Lab::start();
    traces_a_session(&lab);
    traces_a_stray_and_one_at_a_time(&lab);
    captures_strays(&lab);
    let stats = lab.daemon.stats();
    assert_eq!(stats["control"]["gauges"]["streams"], 0);
}

fn traces_a_session(lab: &Lab) {
    let listener = listen(&lab.server, SERVICE.parse().unwrap());
    let (mut client, mut accepted) = open(&lab.client, &listener);
    let flow = format!("{}-{SERVICE}", client.local_addr().unwrap());
    let trace = lab.follow(&format!("--json trace {flow} --for 20s --count 4"));
    // Another flow of the same client is not in it.
    drop(open(&lab.client, &listener));
    let mut bytes = [0; 4];
    client.write_all(b"ping").unwrap();
    accepted.read_exact(&mut bytes).unwrap();
    accepted.write_all(b"pong").unwrap();
    client.read_exact(&mut bytes).unwrap();
    let (packets, end) = items(trace);
    let expected = [
        "uplink psh,ack to_host",
        "host ack to_uplink",
        "host psh,ack to_uplink",
        "uplink ack to_host",
    ];
    assert_eq!(fates(&packets), expected);
    assert!(packets.iter().all(|packet| packet["flow"] == flow.as_str()), "{packets:?}");
    assert_eq!(packets[0]["counters"], serde_json::json!(["local_hit"]));
    assert_eq!(packets[0]["rules"], serde_json::json!(["R4"]));
    let now_us = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
    let age_us = now_us - packets[0]["at_unix_us"].as_u64().unwrap();
    assert!(age_us < 60_000_000, "{age_us}");
    assert_eq!(end, serde_json::json!({"items": 4, "missed": 0, "ended": "count"}));
}

fn traces_a_stray_and_one_at_a_time(lab: &Lab) {
    let flow = format!("{CLIENT}:7-{SERVICE}");
    let trace = lab.follow(&format!("--json trace {flow} --for 20s --count 3"));
    let output = lab.daemon.holdfastctl(&format!("trace {flow}")).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("is under way"), "{error}");
    lab.stray(7);
    let (packets, _) = items(trace);
    // Nobody owns it: the host answers, and the first answer is withheld (R5).
    let expected = ["uplink ack parked", "waited ack to_host", "host rst withheld"];
    assert_eq!(fates(&packets), expected);
    assert_eq!(packets[2]["counter"], "rst_withheld");
}

fn captures_strays(lab: &Lab) {
    let file = lab.daemon.path("strays.pcapng");
    let arguments =
        "--filter strays,client=10.83.0.0/24,service=192.168.83.1:80 --count 2 --for 20s";
    let capture = lab.follow(&format!("capture {arguments} -w {}", file.display()));
    lab.stray(9);
    let output = capture.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("2 packets as 3 frames of 162 bytes in "), "{text}");
    if Command::new("tshark").arg("--version").output().is_err() {
        return skipped("packets_daemon.rs reads with tshark");
    }
    let comments = tshark(&file);
    let expected = [
        ("uplink in|9|parked (R5); counters: miss parked lookup_asked", 54),
        ("waited|9|released to the host (R5); counters: released_host", 54),
        ("host out|9|released to the host (R5); counters: released_host", 54),
    ];
    assert_eq!(comments.len(), expected.len(), "{comments:?}");
    for (line, (expected, length)) in comments.iter().zip(expected) {
        assert!(line.starts_with(&format!("{length}|{expected}; worker on core")), "{line}");
    }
}

fn tshark(file: &Path) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-T", "fields", "-E", "separator=|"]);
    for field in ["frame.len", "frame.interface_name", "tcp.srcport", "frame.comment"] {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
