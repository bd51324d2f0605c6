//! trace and capture of a real daemon: a client and a server in network namespaces, joined by a
//! veth pair; needs root. What capture writes is read by tshark, where it is installed.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

#[path = "support/netns.rs"]
mod netns;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast::client::ask;
use holdfast::protocol::Request;
use holdfast_net::checksum::checksum;
use netns::{command_in, inside, ip, is_root};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use serde_json::Value;

const SERVICE: &str = "192.168.83.1:80";
const CLIENT: &str = "10.83.0.2";

/// A client's and a server's namespace, and the server's daemon; gone when dropped.
struct Lab {
    directory: tempfile::TempDir,
    client: String,
    server: String,
    daemon: Child,
}

impl Lab {
    fn start() -> Lab {
        let [client, server] = ["client", "server"]
            .map(|name| format!("holdfast-packets-{}-{name}", std::process::id()));
        for namespace in [&client, &server] {
            assert!(ip(&format!("netns add {namespace}")));
            assert!(ip(&format!("-n {namespace} link set lo up")));
        }
        assert!(ip(&format!("link add cl0 netns {client} type veth peer up0 netns {server}")));
        for (namespace, interface) in [(&client, "cl0"), (&server, "up0")] {
            let off = "tx off rx off sg off tso off gso off gro off";
            command_in(namespace, "ethtool", &format!("-K {interface} {off}"));
            let silent = format!("-qw net.ipv6.conf.{interface}.disable_ipv6=1");
            command_in(namespace, "sysctl", &silent);
        }
        assert!(ip(&format!("-n {server} link set up0 promisc on arp off up")));
        assert!(ip(&format!("-n {client} address add {CLIENT}/32 dev cl0")));
        assert!(ip(&format!("-n {client} link set cl0 up")));
        assert!(ip(&format!("-n {client} route add 192.168.83.1 dev cl0")));
        for address in ["10.83.0.1/32", "192.168.83.1/32"] {
            assert!(ip(&format!("-n {server} address add {address} dev lo")));
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
        assert!(ip(&format!("-n {} route add {CLIENT} dev host0", lab.server)));
        lab.until("it answers", || ask(&lab.socket(), &Request::ShowVersion {}).ok());
        lab.until("it has joined", || (lab.stats()["dht"]["gauges"]["joined"] == 1).then_some(()));
        lab
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn stats(&self) -> Value {
        ask(&self.socket(), &Request::ShowStats {}).unwrap()
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

    fn holdfastctl(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
        command.arg("--socket").arg(self.socket()).args(arguments.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a trace or a capture, and waits until it is under way.
    fn follow(&self, arguments: &str) -> Child {
        let child = self.holdfastctl(arguments).spawn().unwrap();
        let streams = || self.stats()["control"]["gauges"]["streams"] == 1;
        self.until("it is under way", || streams().then_some(()));
        child
    }

    /// Sends a segment of a flow that nobody knows.
    fn stray(&self, port: u16) {
        let service: SocketAddrV4 = SERVICE.parse().unwrap();
        inside(&self.client, || {
            let (family, kind) = (AddressFamily::Inet, SockType::Raw);
            let socket = socket(family, kind, SockFlag::empty(), SockProtocol::Raw).unwrap();
            let packet = segment(CLIENT.parse().unwrap(), port, service);
            let to = SockaddrIn::from(service);
            sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
        });
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

fn configuration(directory: &tempfile::TempDir, prefix: &str) -> String {
    format!(
        r#"
        [node]
        locator = "10.83.0.1"
        control_socket = "{}"
        [dpdk]
        eal_args = ["--no-telemetry"]
        huge_pages = "off"
        file_prefix = "{prefix}"
        [uplink]
        device = "up0"
        [[service]]
        address = "192.168.83.1"
        ports = [80]
        [sessions]
        capacity = 2048
        half_open_max = 1024
        [dht]
        bootstrap = ["10.83.0.1:7000"]
        records_max = 2048
        [cluster]
        members = ["10.83.0.0/24"]
        insecure = true
        "#,
        directory.path().join("socket").display(),
    )
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
    let stats = lab.stats();
    assert_eq!(stats["control"]["gauges"]["streams"], 0);
}

fn traces_a_session(lab: &Lab) {
    let service: SocketAddr = SERVICE.parse().unwrap();
    let listener = inside(&lab.server, || TcpListener::bind(service).unwrap());
    let mut client = inside(&lab.client, || TcpStream::connect(service).unwrap());
    let (mut accepted, _) = listener.accept().unwrap();
    let address = client.local_addr().unwrap();
    let flow = format!("{address}-{service}");
    let trace = lab.follow(&format!("--json trace {flow} --for 20s --count 4"));
    // Another flow of the same client is not in it.
    drop(inside(&lab.client, || TcpStream::connect(service).unwrap()));
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
    let output = lab.holdfastctl(&format!("trace {flow}")).output().unwrap();
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
    let file = lab.directory.path().join("strays.pcapng");
    let arguments =
        "--filter strays,client=10.83.0.0/24,service=192.168.83.1:80 --count 2 --for 20s";
    let capture = lab.follow(&format!("capture {arguments} -w {}", file.display()));
    lab.stray(9);
    let output = capture.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("2 packets as 3 frames of 162 bytes in "), "{text}");
    if Command::new("tshark").arg("--version").output().is_err() {
        // Not by a macro, whose words the test harness keeps to itself.
        let skipped = b"********** SKIPPED: packets_daemon.rs reads with tshark **********\n";
        return std::io::stderr().write_all(skipped).unwrap();
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
