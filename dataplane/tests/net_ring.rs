//! Two workers on real DPDK: mbufs of a mempool, ports of rings in memory, two queue pairs each,
//! one shared session table. The test holds the far ends of the rings and the DHT core's ends.
//! The EAL starts once per process, so this file has one test.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arrayvec::ArrayVec;
use holdfast_dataplane::port::DpdkPort;
use holdfast_dataplane::session::table::SessionTable;
use holdfast_dataplane::stats::{Counter, WorkerCounters};
use holdfast_dataplane::switch::Switch;
use holdfast_dataplane::time::TscClock;
use holdfast_dataplane::worker::{Settings, Shared, Worker};
use holdfast_dpdk::{
    Device, Eal, Mbuf, Mempool, MempoolConfig, Port, PortConfig, RxQueue, TxQueue, ring_pair, tsc,
};
use holdfast_handoff::{Announcement, Answer, Clock, CoreEnd, Doorbell, rings};
use holdfast_net::HashKey;
use support::fragments::{cut, payload, reassembled, with_flags};
use support::{ACK, FIN_ACK, Net, RST, SYN, SYN_ACK, TIMEOUTS, inside, nets, owner, settings};

const WORKERS: u16 = 2;
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a frame goes in or comes out, seen from the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Uplink,
    Host,
}

/// The far end of one side: a ring port with a queue per worker.
struct Far {
    _ports: [Port; 2],
    rx: Vec<RxQueue>,
    tx: Vec<TxQueue>,
    pool: Mempool,
}

impl Far {
    fn new(eal: &Eal, name: &str, pool: &Mempool) -> (Far, Vec<DpdkPort>) {
        let (near, far) = ring_pair(eal, name, WORKERS).unwrap();
        let config = PortConfig { rx_queues: WORKERS, tx_queues: WORKERS, ..PortConfig::default() };
        let start = |device: Device| device.start(&config, &[pool.clone(), pool.clone()]).unwrap();
        let (near_port, near_rx, near_tx) = start(near);
        let (far_port, rx, tx) = start(far);
        let pair = |(receive, transmit)| DpdkPort { receive, transmit };
        let queues = near_rx.into_iter().zip(near_tx).map(pair).collect();
        (Far { _ports: [near_port, far_port], rx, tx, pool: pool.clone() }, queues)
    }

    fn send(&mut self, queue: usize, frame: &[u8]) {
        let mut burst = ArrayVec::<Mbuf, 1>::new();
        burst.push(self.pool.alloc_copy(frame).unwrap());
        assert_eq!(self.tx[queue].transmit(&mut burst), 1);
    }

    /// The next frame out of a queue; waits for it.
    fn receive(&mut self, queue: usize) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        let mut burst = ArrayVec::<Mbuf, 1>::new();
        while self.rx[queue].receive(&mut burst) == 0 {
            assert!(Instant::now() < end, "nothing came out");
            std::thread::yield_now();
        }
        burst[0].data().to_vec()
    }
}

/// What a row expects to come out.
enum Out {
    /// The frame itself.
    Same(Side),
    /// The frame in a tunnel to the other server.
    Tunnelled,
    /// What was inside.
    Inside(Vec<u8>),
    /// The frame in two fragments, each in a tunnel to the other server.
    Fragmented,
    /// Nothing yet.
    Waits,
    /// The frame itself, to the host, and then one that waited for it.
    And(Vec<u8>),
    /// Nothing; the core is asked, and answers that the other server owns the flow. Then the
    /// parked frame comes out in a tunnel.
    Asked,
}

struct Row {
    shows: &'static str,
    /// The queue it comes in by, and so the worker that takes it.
    worker: usize,
    side: Side,
    frame: Vec<u8>,
    out: Out,
}

fn rows(net: &Net) -> Vec<Row> {
    use Out::{And, Asked, Fragmented, Inside, Same, Tunnelled, Waits};
    use Side::{Host, Uplink};
    let row = |shows, worker, side, frame, out| Row { shows, worker, side, frame, out };
    let c = |port, flags, payload: &[u8]| net.client_segment(port, flags, payload);
    let h = |port, flags, payload: &[u8]| net.host_segment(port, flags, payload);
    let tunnelled = |frame: &[u8]| net.tunnelled(frame, net.other);
    let data = c(1, ACK, b"by the other way");
    let fragments = cut(&c(1, ACK, &[7; 100]), 9, &[40]);
    let mut rows = vec![
        row("ARP passes in", 0, Uplink, arp(), Same(Host)),
        row("ARP passes out", 1, Host, arp(), Same(Uplink)),
        row("R2: SYN to the host", 0, Uplink, c(1, SYN, b""), Same(Host)),
        row("R3: SYN-ACK goes out, by the other worker", 1, Host, h(1, SYN_ACK, b""), Same(Uplink)),
        row("R4: the ACK to the host", 0, Uplink, c(1, ACK, b""), Same(Host)),
        row("R4: the other worker knows the session too", 1, Uplink, c(1, ACK, b"x"), Same(Host)),
        row(
            "R6: a tunnelled segment to the host",
            1,
            Uplink,
            tunnelled(&data),
            Inside(data.clone()),
        ),
        row("R5: a stray waits for its owner", 0, Uplink, c(2, ACK, b"stray"), Asked),
        row("R4: the redirect serves the other worker", 1, Uplink, c(2, ACK, b"more"), Tunnelled),
        row("R2: a SYN supersedes it", 1, Uplink, c(2, SYN, b""), Same(Host)),
        row("R5: and the flow is a stray again", 0, Uplink, c(2, ACK, b"stray"), Asked),
        row("R12: the host's session is an older one", 1, Host, h(2, ACK, b"old"), Same(Uplink)),
        row("R4: so the redirect stays", 0, Uplink, c(2, ACK, b"new"), Tunnelled),
        row("R2: a SYN supersedes it again", 0, Uplink, c(2, SYN, b""), Same(Host)),
        row("R12: the host's is the later one now", 1, Host, h(2, SYN_ACK, b""), Same(Uplink)),
        row("R4: so it gets the segments", 0, Uplink, c(2, ACK, b"good"), Same(Host)),
        row("R8: FIN passes", 0, Uplink, c(1, FIN_ACK, b""), Same(Host)),
        row("R8: RST passes", 1, Host, h(2, RST | ACK, b""), Same(Uplink)),
        row("a full-size segment", 0, Uplink, c(1, ACK, &[7; 1400]), Same(Host)),
        row("R10: a fragment waits for the first", 0, Uplink, fragments[1].clone(), Waits),
        row("R10: and follows it", 0, Uplink, fragments[0].clone(), And(fragments[1].clone())),
        row("R5: a stray of a third flow", 1, Uplink, c(3, ACK, b"stray"), Asked),
    ];
    if net.client.is_ipv4() {
        let large = with_flags(&c(3, ACK, &[7; 1450]), 0);
        rows.push(row("R11: without DF it is fragmented", 1, Uplink, large, Fragmented));
    }
    rows
}

fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06]);
    frame.resize(60, 7);
    frame
}

struct Server {
    uplink: Far,
    host: Far,
    cores: Vec<CoreEnd>,
}

impl Server {
    fn far(&mut self, side: Side) -> &mut Far {
        match side {
            Side::Uplink => &mut self.uplink,
            Side::Host => &mut self.host,
        }
    }

    fn play(&mut self, net: &Net, row: &Row) {
        self.far(row.side).send(row.worker, &row.frame);
        let what = row.shows;
        match &row.out {
            Out::Same(side) => {
                assert_eq!(self.far(*side).receive(row.worker), row.frame, "{what}");
            }
            Out::Inside(inside) => assert_eq!(&self.host.receive(row.worker), inside, "{what}"),
            Out::Tunnelled => self.tunnelled(net, row),
            Out::Waits => {}
            Out::And(waited) => {
                assert_eq!(self.host.receive(row.worker), row.frame, "{what}");
                assert_eq!(&self.host.receive(row.worker), waited, "{what}");
            }
            Out::Fragmented => {
                let sent = [(); 2].map(|()| self.uplink.receive(row.worker));
                let inner = sent.map(|frame| [&row.frame[..14], &inside(&frame).2].concat());
                let whole = reassembled(&inner, net.client, net.service);
                assert_eq!(whole.as_deref(), Some(payload(&row.frame)), "{what}");
            }
            Out::Asked => {
                let end = Instant::now() + PATIENCE;
                let flow = loop {
                    match self.cores[row.worker].resolves.pop() {
                        Ok(resolve) => break resolve.flow,
                        Err(_) => assert!(Instant::now() < end, "{what}: nothing was asked"),
                    }
                };
                let answer = Answer::Resolved { flow, resolution: owner(net.other), dead: None };
                self.cores[row.worker].answers.push(answer).unwrap();
                self.tunnelled(net, row);
            }
        }
    }

    fn tunnelled(&mut self, net: &Net, row: &Row) {
        let frame = self.uplink.receive(row.worker);
        assert_eq!(inside(&frame), (net.me, net.other, row.frame[14..].to_vec()), "{}", row.shows);
    }
}

#[test]
fn fixtures_through_two_workers() {
    let prefix = format!("--file-prefix=holdfast-net-ring-{}", std::process::id());
    let arguments = [
        "--no-huge",
        "-m",
        "64",
        "--no-pci",
        "--no-telemetry",
        "--lcores=0@(0-1)",
        "--log-level=*:error",
        &prefix,
    ];
    let eal = Eal::init(&arguments).unwrap();
    for (index, net) in nets().into_iter().enumerate() {
        let pool_config = MempoolConfig { mbufs: 2047, cache: 0, ..MempoolConfig::default() };
        let pool = Mempool::new(&eal, &format!("pool{index}"), &pool_config).unwrap();
        let before = pool.available();
        play_all(&eal, index, &pool, &net);
        if index == 0 {
            play_switched(&eal, &pool, &net);
        }
        assert_eq!(pool.available(), before, "every mbuf has come back");
    }
}

/// The host behind the NIC's switch: one port, and what is for the kernel leaves by it.
fn play_switched(eal: &Eal, pool: &Mempool, net: &Net) {
    let (mut far, queues) = Far::new(eal, "s", pool);
    let settings = Settings { inbound_only: true, ..settings(net, 16) };
    let services = settings.classifier.services.clone();
    let table = SessionTable::new(services, 64, &TIMEOUTS, HashKey([5, 6])).unwrap();
    let shared = Shared {
        settings: Arc::new(settings),
        table: Arc::new(table),
        clock: Arc::new(Clock::default()),
        closing: Arc::default(),
    };
    let latest = ArcSwap::new(Arc::clone(&shared.settings));
    let (ours, kernel, router) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 0x4e], [2, 0, 0, 0, 0, 0xaa]);
    let next_hops = [IpAddr::from([10, 1, 0, 11])].into_iter().collect();
    let switch = Switch { ours, kernel, next_hops };
    let poll = mio::Poll::new().unwrap();
    let doorbell =
        Arc::new(Doorbell::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap()));
    let counters: Vec<Arc<WorkerCounters>> = (0..WORKERS).map(|_| Arc::default()).collect();
    let clock = TscClock::start(tsc(), eal.tsc_hz());
    let stop = AtomicBool::new(false);

    let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0];
    let arp = |from: [u8; 6], to: [u8; 6], rest: &[&[u8]]| {
        let mut frame = [&to[..], &from, &head, &rest.concat()].concat();
        frame.resize(60, 0);
        frame
    };
    let (asker, asked) = ([10, 1, 0, 1], [10, 1, 0, 11]);
    let question = arp(router, [0xff; 6], &[&[1], &router, &asker, &[0; 6], &asked]);
    let answer = arp(ours, router, &[&[2], &ours, &asked, &router, &asker]);
    let syn = net.client_segment(1, SYN, b"");
    let to_kernel = [&kernel[..], &ours, &syn[12..]].concat();
    let group = [&[0xff; 6], &syn[6..]].concat();
    std::thread::scope(|scope| {
        let mut cores = Vec::new();
        for (worker, uplink) in queues.into_iter().enumerate() {
            let (end, core) = rings(16, 64, Arc::clone(&doorbell));
            cores.push(core);
            let (counters, place) = (Arc::clone(&counters[worker]), (worker, usize::from(WORKERS)));
            let (shared, switch) = (shared.clone(), switch.clone());
            let (latest, stop) = (&latest, &stop);
            scope.spawn(move || {
                let _registration = eal.register_thread().unwrap();
                let worker: Worker<DpdkPort, DpdkPort> =
                    Worker::through_switch(shared, place, counters, end, uplink, switch);
                worker.run(clock, latest, stop);
            });
        }
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for worker in 0..usize::from(WORKERS) {
                far.send(worker, &group);
                far.send(worker, &question);
                assert_eq!(far.receive(worker), answer);
                far.send(worker, &syn);
                assert_eq!(far.receive(worker), to_kernel);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = played {
            std::panic::resume_unwind(panic);
        }
    });
    let total = |counter| counters.iter().map(|counters| counters.get(counter)).sum::<u64>();
    let counts =
        [Counter::SwitchGroup, Counter::NeighbourAnswered, Counter::HostSent, Counter::UplinkSent];
    assert_eq!(counts.map(total), [2; 4]);
}

fn play_all(eal: &Eal, index: usize, pool: &Mempool, net: &Net) {
    let (uplink, uplink_queues) = Far::new(eal, &format!("u{index}"), pool);
    let (host, host_queues) = Far::new(eal, &format!("h{index}"), pool);
    let settings = settings(net, 16);
    let services = settings.classifier.services.clone();
    let table = SessionTable::new(services, 64, &TIMEOUTS, HashKey([5, 6])).unwrap();
    let shared = Shared {
        settings: Arc::new(settings),
        table: Arc::new(table),
        clock: Arc::new(Clock::default()),
        closing: Arc::default(),
    };
    let poll = mio::Poll::new().unwrap();
    let doorbell =
        Arc::new(Doorbell::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap()));
    let counters: Vec<Arc<WorkerCounters>> = (0..WORKERS).map(|_| Arc::default()).collect();
    let mut server = Server { uplink, host, cores: Vec::new() };
    let clock = TscClock::start(tsc(), eal.tsc_hz());
    let stop = AtomicBool::new(false);
    let settings = ArcSwap::new(Arc::clone(&shared.settings));

    std::thread::scope(|scope| {
        let queues = uplink_queues.into_iter().zip(host_queues).enumerate();
        for (worker, (uplink, host)) in queues {
            let (end, core) = rings(16, 64, Arc::clone(&doorbell));
            server.cores.push(core);
            let counters = Arc::clone(&counters[worker]);
            let place = (worker, usize::from(WORKERS));
            let shared = shared.clone();
            let (settings, stop) = (&settings, &stop);
            scope.spawn(move || {
                let _registration = eal.register_thread().unwrap();
                let worker = Worker::new(shared, place, counters, end, uplink, host);
                worker.run(clock, settings, stop);
            });
        }
        // A failed row must not leave the workers turning for ever.
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for row in rows(net) {
                server.play(net, &row);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = played {
            std::panic::resume_unwind(panic);
        }
    });

    let total = |counter| counters.iter().map(|counters| counters.get(counter)).sum::<u64>();
    let in_and_out = total(Counter::UplinkReceived) + total(Counter::HostReceived);
    let made = total(Counter::TooBigFragments);
    assert_eq!(made, u64::from(net.client.is_ipv4()));
    assert_eq!(in_and_out + made, total(Counter::UplinkSent) + total(Counter::HostSent));
    assert_eq!(total(Counter::TunnelSent), 5 + 2 * made);
    assert_eq!(total(Counter::RedirectInstalled), 3);
    assert_eq!(total(Counter::RedirectSuperseded), 2);
    let published = server
        .cores
        .iter_mut()
        .flat_map(|core| std::iter::from_fn(|| core.announcements.pop().ok()));
    let published = published.filter(|said| matches!(said, Announcement::Publish { .. })).count();
    assert_eq!(published, 2);
}
