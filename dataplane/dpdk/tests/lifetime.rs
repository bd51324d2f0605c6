//! What happens when the EAL's handle goes first. It starts once per process, so this file
//! has one test.

#![allow(clippy::unwrap_used)]

use arrayvec::ArrayVec;
use holdfast_dpdk::{Eal, Error, Mbuf, Mempool, MempoolConfig, PortConfig, ring_pair};

#[test]
fn queues_and_mbufs_outlive_every_other_handle() {
    let arguments =
        ["--no-huge", "-m32", "--no-pci", "--no-shconf", "--no-telemetry", "--lcores=0@(0-1)"];
    let eal = Eal::init(&arguments).unwrap();
    let config = MempoolConfig { mbufs: 63, cache: 0, ..MempoolConfig::default() };
    let pool = Mempool::new(&eal, "lifetime", &config).unwrap();
    let (a, b) = ring_pair(&eal, "life", 1).unwrap();
    let pools = [pool];
    let (port_a, rx_a, mut tx_a) = a.start(&PortConfig::default(), &pools).unwrap();
    let (port_b, mut rx_b, tx_b) = b.start(&PortConfig::default(), &pools).unwrap();

    let mut burst = ArrayVec::<Mbuf, 2>::new();
    burst.push(pools[0].alloc_copy(b"first").unwrap());
    burst.push(pools[0].alloc_copy(b"second").unwrap());
    drop((eal, pools, port_a, port_b, rx_a, tx_b));

    // Two queues are left, and with them their ports, the pool and the EAL.
    assert_eq!(tx_a[0].transmit(&mut burst), 2);
    drop(tx_a);
    assert_eq!(rx_b[0].receive(&mut burst), 2);
    drop(rx_b);

    // Two mbufs are left, and with them the memory they are in.
    assert_eq!(burst[0].data(), b"first");
    assert_eq!(burst[1].data(), b"second");
    drop(burst);
    assert_eq!(Eal::init(&arguments).unwrap_err(), Error::AlreadyInitialised);
}
