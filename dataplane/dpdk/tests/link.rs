//! A device that says by itself that its link has changed: a TAP, whose interface is taken down and up.
//! In a network namespace; needs root. The EAL starts once per process, so this file has one test.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_dpdk::{Device, Eal, Mempool, MempoolConfig, Port, PortConfig, Refusal, ring_pair};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

fn until_more_than(changes: u64, port: &Port) -> u64 {
    let end = Instant::now() + Duration::from_secs(10);
    while port.link_changes() <= changes {
        assert!(Instant::now() < end, "nothing was said after {changes} changes");
        std::thread::sleep(Duration::from_millis(5));
    }
    port.link_changes()
}

#[test]
fn a_change_of_the_link_is_told() {
    if !rustix::process::geteuid().is_root() {
        let skipped = b"********** SKIPPED: link.rs needs root for namespaces **********\n";
        std::io::stderr().write_all(skipped).unwrap();
        return;
    }
    let namespace = format!("holdfast-link-{}", std::process::id());
    ip(&format!("netns add {namespace}"));
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    // It is gone with the last thread in it.
    ip(&format!("netns delete {namespace}"));
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();

    let arguments =
        ["--no-huge", "-m64", "--no-pci", "--no-telemetry", "--lcores=0@(0-1)", "--no-shconf"];
    let eal = Eal::init(&[&arguments[..], &["--log-level=*:error"]].concat()).unwrap();
    let config = MempoolConfig { mbufs: 4095, cache: 0, ..MempoolConfig::default() };
    let pool = Mempool::new(&eal, "pool", &config).unwrap();
    let config = PortConfig { link_interrupt: true, ..PortConfig::default() };

    let tap = Device::attach(&eal, "net_tap0,iface=tap0").unwrap().remove(0);
    assert!(tap.info().unwrap().link_interrupt);
    let (port, _rx, _tx) = tap.start(&config, std::slice::from_ref(&pool)).unwrap();
    assert_eq!(port.info().refused, []);
    ip("link set tap0 up");
    let before = port.link_changes();
    ip("link set tap0 down");
    let down = until_more_than(before, &port);
    assert!(!port.link().unwrap().up);
    ip("link set tap0 up");
    until_more_than(down, &port);
    assert_eq!(port.loss(), None);

    // A device that cannot says nothing, and that it cannot.
    let (ring, _far) = ring_pair(&eal, "ring", 1).unwrap();
    let (ring, _rx, _tx) = ring.start(&config, &[pool]).unwrap();
    assert!(ring.info().refused.contains(&Refusal::LinkInterrupt));
    assert_eq!((ring.link_changes(), ring.loss()), (0, None));
}
