//! What a device does with tags and checksums, and what is done in software where it does not, give
//! the same bytes on the wire. On real drivers: `net_af_packet` takes tags off and puts them in,
//! `net_tap` fills in IPv4 checksums, and ring ports do neither. In a network namespace; needs root.
//! The EAL starts once per process, so this file has one test.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use holdfast_dataplane::encap::{Encapsulation, Tunnel};
use holdfast_dpdk::{
    Device, Eal, Mbuf, Mempool, MempoolConfig, Offloads, Port, PortConfig, RxQueue, TxQueue, Vlan,
    ring_pair,
};
use holdfast_net::Packet;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::{ACK, nets};

const PATIENCE: Duration = Duration::from_secs(10);

/// A namespace that this thread is in, and those that it starts.
struct Namespace(String);

impl Namespace {
    fn enter() -> Namespace {
        let name = format!("holdfast-off-{}", std::process::id());
        ip(&format!("netns add {name}"));
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        Namespace(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns delete {}", self.0));
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// A port with one queue each way.
struct Wire {
    port: Port,
    rx: RxQueue,
    tx: TxQueue,
    pool: Mempool,
}

impl Wire {
    fn start(device: Device, pool: &Mempool, offloads: bool) -> Wire {
        Wire::start_in(None, device, pool, offloads)
    }

    fn start_in(port_vlan: Option<u16>, device: Device, pool: &Mempool, offloads: bool) -> Wire {
        let config = PortConfig {
            offloads,
            port_vlan,
            promiscuous: false,
            all_multicast: false,
            ..PortConfig::default()
        };
        let (port, mut rx, mut tx) = device.start(&config, std::slice::from_ref(pool)).unwrap();
        Wire { port, rx: rx.remove(0), tx: tx.remove(0), pool: pool.clone() }
    }

    fn attach(eal: &Eal, arguments: &str, pool: &Mempool, offloads: bool) -> Wire {
        Wire::start(Device::attach(eal, arguments).unwrap().remove(0), pool, offloads)
    }

    fn send(&mut self, mbuf: Mbuf) {
        let mut burst = ArrayVec::<_, 1>::new();
        burst.push(mbuf);
        let end = Instant::now() + PATIENCE;
        while self.tx.transmit(&mut burst) == 0 {
            assert!(Instant::now() < end, "it takes no frame");
        }
    }

    fn send_bytes(&mut self, frame: &[u8]) {
        let mbuf = self.pool.alloc_copy(frame).unwrap();
        self.send(mbuf);
    }

    /// The next frame for which `wanted` says so: the kernel sends some of its own.
    fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Mbuf {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut burst = ArrayVec::<Mbuf, 32>::new();
            self.rx.receive(&mut burst);
            if let Some(mbuf) = burst.into_iter().find(|mbuf| wanted(mbuf.data())) {
                return mbuf;
            }
            assert!(Instant::now() < end, "nothing came");
            std::thread::yield_now();
        }
    }
}

fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let tags: Vec<u8> =
        tags.iter().flat_map(|tag| [[0x81, 0x00], tag.to_be_bytes()].concat()).collect();
    [&frame[..12], &tags, &frame[12..]].concat()
}

#[test]
fn the_same_bytes_with_the_device_and_without() {
    if !rustix::process::geteuid().is_root() {
        let skipped = b"********** SKIPPED: offloads.rs needs root for namespaces **********\n";
        std::io::stderr().write_all(skipped).unwrap();
        return;
    }
    let _namespace = Namespace::enter();
    ip("link add v0 type veth peer v1");
    for interface in ["v0", "v1"] {
        let key = format!("net.ipv6.conf.{interface}.disable_ipv6=1");
        assert!(Command::new("sysctl").args(["-qw", &key]).status().unwrap().success());
        ip(&format!("link set {interface} up"));
    }
    let prefix = format!("--file-prefix=holdfast-offloads-{}", std::process::id());
    let arguments = [
        "--no-huge",
        "-m",
        "96",
        "--no-pci",
        "--no-telemetry",
        "--lcores=0@(0-1)",
        "--log-level=*:error",
        &prefix,
    ];
    let eal = Eal::init(&arguments).unwrap();
    let config = MempoolConfig { mbufs: 8191, cache: 0, ..MempoolConfig::default() };
    let pool = Mempool::new(&eal, "pool", &config).unwrap();
    tags(&eal, &pool);
    port_vlan(&eal, &pool);
    checksums(&eal, &pool);
}

fn tags(eal: &Eal, pool: &Mempool) {
    let plain = nets()[0].client_segment(1000, ACK, b"tags");
    let mut wire = Wire::attach(eal, "net_af_packet1,iface=v1", pool, false);
    assert_eq!(wire.port.info().offloads, Offloads::default());
    let (ring, far) = ring_pair(eal, "tags", 1).unwrap();
    let (mut ring, mut far) = (Wire::start(ring, pool, true), Wire::start(far, pool, false));
    assert_eq!(ring.port.info().offloads, Offloads::default(), "a ring port offers nothing");
    for offloads in [false, true] {
        let mut near = Wire::attach(eal, "net_af_packet0,iface=v0", pool, offloads);
        let vlan = Vlan { strip: offloads, insert: offloads };
        assert_eq!(near.port.info().offloads.vlan, vlan);
        for (tags, left) in [(&[][..], 0), (&[7], usize::from(!offloads)), (&[0x6005, 9], 2)] {
            let frame = tagged(&plain, tags);
            let is_it = |bytes: &[u8]| bytes.ends_with(b"tags");
            wire.send_bytes(&frame);
            let came = near.receive(is_it);
            assert_eq!(came.data(), tagged(&plain, &tags[tags.len() - left..]), "{tags:?}");
            // A frame made of another has its tag.
            let mut copy = came.alloc_like().unwrap();
            copy.extend_from_slice(came.data()).unwrap();

            near.send(came);
            assert_eq!(wire.receive(is_it).data(), frame, "back on the wire, {tags:?}");
            near.send(copy);
            assert_eq!(wire.receive(is_it).data(), frame, "a copy, {tags:?}");

            // Out of a port whose device puts none in.
            wire.send_bytes(&frame);
            ring.send(near.receive(is_it));
            assert_eq!(far.receive(is_it).data(), frame, "by another port, {tags:?}");
        }
    }
}

/// The tag of the VLAN that a function is in is no part of a frame; other tags are.
fn port_vlan(eal: &Eal, pool: &Mempool) {
    let plain = nets()[0].client_segment(1000, ACK, b"vlan");
    let is_it = |bytes: &[u8]| bytes.ends_with(b"vlan");
    let mut wire = Wire::attach(eal, "net_af_packet3,iface=v1", pool, false);
    for offloads in [false, true] {
        let device = Device::attach(eal, "net_af_packet4,iface=v0").unwrap().remove(0);
        let mut near = Wire::start_in(Some(7), device, pool, offloads);
        assert_eq!(near.port.info().offloads.vlan, Vlan { strip: true, insert: offloads });
        for (tags, left) in [(&[][..], &[][..]), (&[0x6007], &[]), (&[9], &[9]), (&[7, 9], &[9])] {
            wire.send_bytes(&tagged(&plain, tags));
            let came = near.receive(is_it);
            near.send(came);
            assert_eq!(wire.receive(is_it).data(), tagged(&plain, left), "{tags:x?}");
        }
    }
}

fn checksums(eal: &Eal, pool: &Mempool) {
    let mut near = Wire::attach(eal, "net_tap0,iface=tap0", pool, true);
    assert!(near.port.info().offloads.ipv4_checksum);
    let key = "net.ipv6.conf.tap0.disable_ipv6=1";
    assert!(Command::new("sysctl").args(["-qw", key]).status().unwrap().success());
    ip("link set tap0 up");
    let mut wire = Wire::attach(eal, "net_af_packet2,iface=tap0", pool, false);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let owners = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")];
    for encapsulation in [Encapsulation::Gue, Encapsulation::Ipip, Encapsulation::Rewrite] {
        for net in nets() {
            for (local, remote) in owners {
                let (local, remote) = (address(local), address(remote));
                let is_v4 = net.client.is_ipv4();
                if encapsulation == Encapsulation::Rewrite && remote.is_ipv4() != is_v4 {
                    continue;
                }
                for tags in [&[][..], &[7]] {
                    let frame = tagged(&net.client_segment(1000, ACK, b"checksums"), tags);
                    let headers = Packet::from_ethernet(&frame).unwrap().unwrap().headers();
                    let tunnel = Tunnel::new(encapsulation, local, remote, 6080);
                    let sent = [false, true].map(|offload| {
                        let mut mbuf = pool.alloc_copy(&frame).unwrap();
                        let tunnel = tunnel.with_checksum_offload(offload);
                        tunnel.encapsulate(&mut mbuf, &headers, 9, 1500).unwrap();
                        near.send(mbuf);
                        wire.receive(|bytes| bytes.ends_with(b"checksums")).data().to_vec()
                    });
                    assert_eq!(sent[0], sent[1], "{encapsulation:?} to {remote}, {tags:?}");
                }
            }
        }
    }
}
