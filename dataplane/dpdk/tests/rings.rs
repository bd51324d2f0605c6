//! Mempools, mbufs, ring ports and error texts on a real EAL without huge pages. The EAL
//! starts once per process, so all tests of this file share the one in `EAL`.

#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use arrayvec::ArrayVec;
use holdfast_dpdk::{
    Device, Eal, Error, HEADROOM, Mbuf, Mempool, MempoolConfig, Offloads, Port, PortConfig,
    Refusal, RxQueue, TxQueue, ring_pair,
};

static EAL: OnceLock<Eal> = OnceLock::new();

fn eal() -> &'static Eal {
    EAL.get_or_init(|| {
        let arguments = [
            "--no-huge",
            "-m64",
            "--no-pci",
            "--no-telemetry",
            "--lcores=0@(0-1)",
            "--log-level=*:error",
            "--no-shconf",
        ];
        Eal::init(&arguments).unwrap()
    })
}

fn pool(name: &str, mbufs: u32) -> Mempool {
    let config = MempoolConfig { mbufs, cache: 0, ..MempoolConfig::default() };
    Mempool::new(eal(), name, &config).unwrap()
}

type Started = (Port, Vec<RxQueue>, Vec<TxQueue>);

/// Both ends of a ring pair, started.
fn started_pair(name: &str, queues: u16, pool: &Mempool) -> (Started, Started) {
    let (a, b) = ring_pair(eal(), name, queues).unwrap();
    let config = PortConfig { rx_queues: queues, tx_queues: queues, ..PortConfig::default() };
    let pools = vec![pool.clone(); usize::from(queues)];
    let a = a.start(&config, &pools).unwrap();
    let b = b.start(&config, &pools).unwrap();
    (a, b)
}

#[test]
fn an_mbuf_changes_at_both_ends_and_returns_to_its_pool() {
    let pool = pool("round_trip", 63);
    assert_eq!((pool.count(), pool.available()), (63, 63));

    let mut mbuf = pool.alloc().unwrap();
    assert_eq!(pool.available(), 62);
    assert!(mbuf.is_empty() && mbuf.is_contiguous());
    assert_eq!(mbuf.headroom(), usize::from(HEADROOM));
    assert_eq!(mbuf.tailroom(), usize::from(pool.data_room()));
    assert_eq!(mbuf.rss_hash(), None);

    mbuf.append(4).unwrap().copy_from_slice(b"data");
    mbuf.prepend(5).unwrap().copy_from_slice(b"head:");
    mbuf.extend_from_slice(b":tail").unwrap();
    assert_eq!(mbuf.data(), b"head:data:tail");
    assert_eq!(mbuf.len(), 14);
    assert_eq!(mbuf.headroom(), usize::from(HEADROOM) - 5);

    mbuf.trim_front(5).unwrap();
    mbuf.trim_back(5).unwrap();
    assert_eq!(mbuf.data(), b"data");
    mbuf.data_mut()[0] = b'D';
    assert_eq!(mbuf.data(), b"Data");
    assert_eq!(mbuf.headroom(), usize::from(HEADROOM));

    drop(mbuf);
    assert_eq!(pool.available(), 63);
}

#[test]
fn an_mbuf_refuses_what_does_not_fit_and_stays_as_it_was() {
    let pool = pool("refuses", 63);
    let mut mbuf = pool.alloc_copy(b"frame").unwrap();
    let (headroom, tailroom) = (mbuf.headroom(), mbuf.tailroom());

    assert!(mbuf.prepend(headroom + 1).is_none());
    assert!(mbuf.append(tailroom + 1).is_none());
    assert!(mbuf.trim_front(6).is_none());
    assert!(mbuf.trim_back(6).is_none());
    // Would be accepted if a length were cut down to 16 bits.
    assert!(mbuf.prepend(1 << 16).is_none());
    assert!(mbuf.append(1 << 16).is_none());
    assert!(mbuf.trim_front(1 << 16).is_none());
    assert!(mbuf.trim_back(1 << 16).is_none());
    assert_eq!(mbuf.data(), b"frame");
    assert_eq!(mbuf.len(), 5);

    assert_eq!(mbuf.prepend(headroom).unwrap().len(), headroom);
    assert_eq!(mbuf.append(tailroom).unwrap().len(), tailroom);
    assert_eq!((mbuf.headroom(), mbuf.tailroom()), (0, 0));

    let oversize = vec![0; usize::from(pool.data_room()) + 1];
    assert!(pool.alloc_copy(&oversize).is_none());
    drop(mbuf);
    assert_eq!(pool.available(), 63, "the refused copy leaked its mbuf");
}

#[test]
fn an_exhausted_pool_gives_none_until_an_mbuf_returns() {
    let pool = pool("exhausted", 15);
    let mut held: Vec<Mbuf> = Vec::new();
    while let Some(mbuf) = pool.alloc() {
        held.push(mbuf);
    }
    assert_eq!(held.len(), 15);
    assert_eq!(pool.available(), 0);
    held.pop();
    assert!(pool.alloc().is_some());
}

#[test]
fn an_mbuf_gets_others_from_its_own_pool() {
    let pool = pool("alike", 3);
    let mut mbuf = pool.alloc_copy(b"data").unwrap();
    mbuf.trim_front(2).unwrap();
    let like = mbuf.alloc_like().unwrap();
    assert!(like.is_empty() && like.is_contiguous());
    assert_eq!(like.headroom(), usize::from(HEADROOM));
    let third = like.alloc_like().unwrap();
    assert_eq!(pool.available(), 0);
    assert!(mbuf.alloc_like().is_none(), "the pool is empty");
    drop((like, third));
    assert_eq!(pool.available(), 2);
    assert_eq!(mbuf.data(), b"ta");
}

#[test]
fn a_bulk_is_all_or_nothing() {
    let pool = pool("bulk", 15);
    let mut eight = ArrayVec::<Mbuf, 8>::new();
    eight.push(pool.alloc_copy(b"first").unwrap());
    assert_eq!(pool.alloc_bulk(&mut eight), 7);
    assert_eq!(eight[0].data(), b"first");
    assert!(eight[1..].iter().all(Mbuf::is_empty));

    let mut eight_more = ArrayVec::<Mbuf, 8>::new();
    assert_eq!(pool.alloc_bulk(&mut eight_more), 0);
    assert!(eight_more.is_empty());
    assert_eq!(pool.available(), 7);
    drop(eight);
    assert_eq!(pool.available(), 15);
}

#[test]
fn an_mbuf_outlives_the_last_handle_of_its_pool() {
    let config = MempoolConfig { mbufs: 15, cache: 0, ..MempoolConfig::default() };
    let pool = Mempool::new(eal(), "outlived", &config).unwrap();
    let mbuf = pool.alloc_copy(b"still here").unwrap();
    drop(pool);
    assert_eq!(mbuf.data(), b"still here");
    // The name is free again only when the pool is gone.
    let taken = Mempool::new(eal(), "outlived", &config).unwrap_err();
    assert!(taken.to_string().contains("File exists"), "{taken}");

    drop(mbuf);
    // Pools that wait for their mbufs are looked at when another one is retired.
    drop(Mempool::new(eal(), "another", &config).unwrap());
    Mempool::new(eal(), "outlived", &config).unwrap();
}

#[test]
fn ring_pair_keeps_the_order_of_each_queue() {
    let pool = pool("order", 255);
    let ((port_a, mut rx_a, mut tx_a), (port_b, mut rx_b, mut tx_b)) =
        started_pair("ord", 2, &pool);
    assert!(port_a.link().unwrap().up);

    // Different traffic on every queue and direction, in bursts of 8.
    for burst in 0..4_u8 {
        for queue in 0..2_u8 {
            let index = usize::from(queue);
            let ways = [(b'a', &mut tx_a[index]), (b'b', &mut tx_b[index])];
            for (from, tx) in ways {
                let frame = |n: u8| pool.alloc_copy(&[from, queue, burst * 8 + n]).unwrap();
                let mut frames: ArrayVec<Mbuf, 8> = (0..8).map(frame).collect();
                assert_eq!(tx.transmit(&mut frames), 8);
                assert!(frames.is_empty());
            }
        }
    }
    for queue in 0..2_u8 {
        let index = usize::from(queue);
        let ways = [(b'b', &mut rx_a[index]), (b'a', &mut rx_b[index])];
        for (from, rx) in ways {
            let mut frames = ArrayVec::<Mbuf, 64>::new();
            assert_eq!(rx.receive(&mut frames), 32);
            for (n, frame) in (0_u8..).zip(&frames) {
                assert_eq!(frame.data(), [from, queue, n]);
                assert_eq!(frame.headroom(), usize::from(HEADROOM));
            }
            assert_eq!(rx.receive(&mut frames), 0);
        }
    }
    let (a, b) = (port_a.stats().unwrap(), port_b.stats().unwrap());
    assert_eq!((a.tx_packets, a.rx_packets), (64, 64));
    assert_eq!((b.tx_packets, b.rx_packets), (64, 64));
    assert_eq!(pool.available(), 255);
}

#[test]
fn receive_fills_only_the_room_that_is_left() {
    let pool = pool("room", 63);
    let ((_, _, mut tx), (_, mut rx, _)) = started_pair("room", 1, &pool);
    let mut frames: ArrayVec<Mbuf, 16> = (0..16).map(|n| pool.alloc_copy(&[n]).unwrap()).collect();
    assert_eq!(tx[0].transmit(&mut frames), 16);

    let mut burst = ArrayVec::<Mbuf, 8>::new();
    burst.push(pool.alloc_copy(b"mine").unwrap());
    assert_eq!(rx[0].receive(&mut burst), 7);
    assert_eq!(burst[0].data(), b"mine");
    assert_eq!(burst[1].data(), [0]);
    assert_eq!(burst[7].data(), [6]);
    assert_eq!(rx[0].receive(&mut burst), 0, "there was no room");
    burst.clear();
    assert_eq!(rx[0].receive(&mut burst), 8);
    assert_eq!(burst[0].data(), [7]);
}

#[test]
fn transmit_leaves_the_unsent_in_order() {
    let pool = pool("full", 1_023);
    let ((_, _, mut tx), (_, mut rx, _)) = started_pair("full", 1, &pool);
    let mut next = 0_u16;
    let mut sent = 0;
    let mut frames = ArrayVec::<Mbuf, 100>::new();
    while frames.is_empty() {
        while !frames.is_full() {
            frames.push(pool.alloc_copy(&next.to_be_bytes()).unwrap());
            next += 1;
        }
        sent += tx[0].transmit(&mut frames);
    }
    assert_eq!(sent, 512);
    assert_eq!(frames.len(), 600 - 512);
    for (n, frame) in (512_u16..).zip(&frames) {
        assert_eq!(frame.data(), n.to_be_bytes());
    }
    assert_eq!(tx[0].transmit(&mut frames), 0, "the ring is full");
    assert_eq!(frames.len(), 600 - 512);

    let mut received = ArrayVec::<Mbuf, 512>::new();
    assert_eq!(rx[0].receive(&mut received), 512);
    assert_eq!(tx[0].transmit(&mut frames), 600 - 512);
    received.clear();
    assert_eq!(rx[0].receive(&mut received), 600 - 512);
    assert_eq!(received[0].data(), 512_u16.to_be_bytes());
    assert_eq!(received[87].data(), 599_u16.to_be_bytes());
}

#[test]
fn frames_in_flight_are_freed_with_their_ports() {
    let pool = pool("flight", 63);
    let (a, b) = started_pair("fly", 1, &pool);
    let (port_a, rx_a, mut tx_a) = a;
    let mut frames: ArrayVec<Mbuf, 8> = (0..8).map(|n| pool.alloc_copy(&[n]).unwrap()).collect();
    tx_a[0].transmit(&mut frames);
    assert_eq!(pool.available(), 55);

    // A queue alone keeps its port: B still receives after A's other handles are gone.
    drop((port_a, rx_a, tx_a));
    let (port_b, mut rx_b, tx_b) = b;
    drop((port_b, tx_b));
    let mut received = ArrayVec::<Mbuf, 2>::new();
    assert_eq!(rx_b[0].receive(&mut received), 2);
    drop(received);
    assert_eq!(pool.available(), 57);
    assert!(Device::names(eal()).contains(&"net_ring_flyb".to_owned()));
    drop(rx_b);
    assert_eq!(pool.available(), 63);

    // Ports and rings are gone: the same names can be used again.
    assert!(!Device::names(eal()).iter().any(|name| name.contains("fly")));
    ring_pair(eal(), "fly", 1).unwrap();
}

#[test]
fn queues_work_on_threads_that_are_registered() {
    let config = MempoolConfig { mbufs: 255, cache: 32, ..MempoolConfig::default() };
    let pool = Mempool::new(eal(), "threads", &config).unwrap();
    let ((_port_a, _rx_a, mut tx), (_port_b, mut rx, _tx_b)) = started_pair("thr", 1, &pool);
    const FRAMES: u32 = 10_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let registration = eal().register_thread().unwrap();
            let again = eal().register_thread().unwrap();
            assert_eq!(registration.lcore(), again.lcore());
            let mut burst = ArrayVec::<Mbuf, 32>::new();
            let mut next = 0_u32;
            while next < FRAMES || !burst.is_empty() {
                while next < FRAMES && !burst.is_full() {
                    let Some(mbuf) = pool.alloc_copy(&next.to_be_bytes()) else {
                        break;
                    };
                    burst.push(mbuf);
                    next += 1;
                }
                if tx[0].transmit(&mut burst) == 0 {
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            let _registration = eal().register_thread().unwrap();
            let mut burst = ArrayVec::<Mbuf, 32>::new();
            let mut next = 0_u32;
            while next < FRAMES {
                if rx[0].receive(&mut burst) == 0 {
                    std::thread::yield_now();
                }
                for frame in burst.drain(..) {
                    assert_eq!(frame.data(), next.to_be_bytes());
                    next += 1;
                }
            }
        });
    });
    assert_eq!(pool.available(), 255);
}

#[test]
fn errors_say_what_is_wrong_and_what_there_is() {
    let eal = eal();
    let again = Eal::init(&["--no-huge"]).unwrap_err();
    assert_eq!(again, Error::AlreadyInitialised);

    let (a, b) = ring_pair(eal, "err", 2).unwrap();
    let unknown = Device::by_name(eal, "net_tap7").unwrap_err().to_string();
    assert!(unknown.contains("\"net_tap7\""), "{unknown}");
    assert!(unknown.contains("net_ring_erra"), "{unknown}");
    let unknown = Device::by_index(eal, 31).unwrap_err().to_string();
    assert!(unknown.contains("\"31\""), "{unknown}");

    let in_use = Device::by_name(eal, "net_ring_erra").unwrap_err();
    let port = "net_ring_erra".to_owned();
    assert_eq!(in_use, Error::PortInUse { port });
    let index = a.info().unwrap().index;
    assert!(matches!(Device::by_index(eal, index), Err(Error::PortInUse { .. })));

    let pool = pool("errors", 63);
    let config = PortConfig { rx_queues: 3, ..PortConfig::default() };
    let few = a.start(&config, &vec![pool.clone(); 3]).unwrap_err();
    let said = "DPDK port \"net_ring_erra\" has 2 receive queue(s), 3 are wanted";
    assert!(few.to_string().starts_with(said), "{few}");

    let attach = Device::attach(eal, "net_nonesuch0").unwrap_err().to_string();
    assert!(attach.contains("rte_dev_probe failed for \"net_nonesuch0\""), "{attach}");
    // Attaching what is there must not touch the one in use.
    let twice = Device::attach(eal, "net_ring_errb,nodeaction=x:0:CREATE").unwrap_err();
    let port = "net_ring_errb".to_owned();
    assert_eq!(twice, Error::PortInUse { port });
    assert_eq!(b.info().unwrap().driver, "net_ring");

    let nul = Device::by_name(eal, "a\0b").unwrap_err();
    assert!(matches!(nul, Error::NulByte { .. }));
    let none = ring_pair(eal, "none", 0).unwrap_err();
    assert!(matches!(none, Error::InvalidConfig { .. }));
}

#[test]
fn a_start_is_refused_before_it_can_lose_frames() {
    let small = MempoolConfig { mbufs: 63, cache: 0, data_room: 1_000, socket: None };
    let small = Mempool::new(eal(), "small", &small).unwrap();
    let (a, b) = ring_pair(eal(), "sml", 1).unwrap();
    let error = a.start(&PortConfig::default(), &[small]).unwrap_err();
    let expected = Error::BufferTooSmall {
        port: "net_ring_smla".to_owned(),
        mtu: 1_500,
        frame_bytes: 1_522,
        room_bytes: 1_000,
    };
    assert_eq!(error, expected);
    let (c, d) = ring_pair(eal(), "mtu", 1).unwrap();
    let config = PortConfig { mtu: Some(45), ..PortConfig::default() };
    let error = c.start(&config, &[pool("mtu", 63)]).unwrap_err().to_string();
    assert!(error.contains("MTU 45 is not within the device's 46 to 65535 bytes"), "{error}");
    let config = PortConfig { tx_queues: 0, ..PortConfig::default() };
    let error = d.start(&config, &[pool("tx", 63)]).unwrap_err().to_string();
    assert!(error.contains("it needs at least one transmit queue"), "{error}");
    let error = b.start(&PortConfig::default(), &[]).unwrap_err();
    assert!(error.to_string().contains("1 receive queues need 1 mempools, not 0"), "{error}");
}

#[test]
fn a_started_port_tells_how() {
    let pool = pool("tells", 63);
    let (a, _b) = ring_pair(eal(), "tel", 2).unwrap();
    let config =
        PortConfig { rx_queues: 2, tx_queues: 1, mtu: Some(1_400), ..PortConfig::default() };
    let (port, rx, tx) = a.start(&config, &[pool.clone(), pool]).unwrap();
    assert_eq!((rx.len(), tx.len()), (2, 1));
    assert_eq!((rx[1].index(), rx[1].port_name()), (1, port.name()));
    let info = port.info();
    assert_eq!(info.device.driver, "net_ring");
    assert_eq!((info.rx_queues, info.tx_queues, info.mtu), (2, 1, 1_400));
    assert!(!info.rss);
    let line = info.to_string();
    assert!(line.starts_with("net_ring_tela (net_ring) mac 00:00:00:00:00:00, mtu 1400"), "{line}");
    assert!(line.contains("; no RSS"), "{line}");
    port.set_link(false).unwrap();
    assert!(!port.link().unwrap().up);
    port.set_link(true).unwrap();
    assert!(port.link().unwrap().up);
}

#[test]
fn a_device_that_does_not_tell_of_its_link_says_so() {
    let pool = pool("no_interrupt", 127);
    let (device, _far) = ring_pair(eal(), "no_interrupt", 1).unwrap();
    let config = PortConfig { link_interrupt: true, offloads: true, ..PortConfig::default() };
    let (port, _rx, _tx) = device.start(&config, &[pool]).unwrap();
    assert!(port.info().lacks().any(|refusal| *refusal == Refusal::LinkInterrupt));
    assert_eq!(port.info().offloads, Offloads::default());
    assert_eq!((port.link_changes(), port.loss()), (0, None));
}

#[test]
fn the_time_stamp_counter_runs_at_its_frequency() {
    let hz = eal().tsc_hz();
    let (clock, ticks) = (std::time::Instant::now(), holdfast_dpdk::tsc());
    std::thread::sleep(std::time::Duration::from_millis(50));
    let (elapsed, ticks) = (clock.elapsed(), holdfast_dpdk::tsc() - ticks);
    let measured = ticks as f64 / elapsed.as_secs_f64();
    assert!((measured / hz as f64 - 1.0).abs() < 0.05, "{measured} Hz, not {hz}");
    assert!(holdfast_dpdk::version().starts_with("DPDK 2"));
}
