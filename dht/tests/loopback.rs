//! Real services on loopback addresses, with the rings that workers use.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_dht::{
    Config, Counter, Error, Handle, HandleError, Keys, Outcome, Service, Statement, Stats, auth,
};
use holdfast_handoff::{
    Announcement, Answer, Clock, Resolution, Resolve, Version, WorkerEnd, rings, unix_us,
};
use holdfast_net::FlowKey;

const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_secs(20);
/// Shorter than the time after which a silent server is dead.
const LEASE: Duration = Duration::from_secs(2);

/// A server: a service in a thread, and its one worker's rings.
struct Server {
    locator: IpAddr,
    clock: Arc<Clock>,
    handle: Handle,
    worker: WorkerEnd,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

/// Locator of a test's `n`-th server. Runs of this test at the same time do not meet.
fn locator(test: u8, n: u8) -> IpAddr {
    let run = 20 + (std::process::id() % 200) as u8;
    IpAddr::from(Ipv4Addr::new(127, run, test, n))
}

fn config(test: u8, n: u8) -> Config {
    let mut config = Config::new(locator(test, n), (locator(test, n), PORT).into());
    config.bootstrap = vec![(locator(test, 1), PORT).into()];
    config.members = vec!["127.0.0.0/8".parse().unwrap()];
    config.id_key = keys(test).id_key();
    config.lease = LEASE;
    config
}

fn keys(test: u8) -> Keys {
    Keys::single(test, auth::Secret([test; 32]))
}

impl Server {
    fn start(config: Config, keys: Keys) -> Server {
        let clock = Arc::new(Clock::default());
        let locator = config.locator;
        let service = Service::bind(config, keys, clock.clone()).expect("bind");
        let (worker, core) = rings(64, 4096, service.doorbell());
        let handle = service.handle();
        Server {
            locator,
            clock,
            handle,
            worker,
            thread: Some(std::thread::spawn(move || service.run(vec![core]))),
        }
    }

    fn announce(&mut self, announcement: Announcement) {
        self.worker.announce(announcement).expect("room");
        self.worker.ring_doorbell();
    }

    fn publish(&mut self, flow: FlowKey) -> Version {
        let version = self.clock.next();
        self.announce(Announcement::Publish { flow, version });
        version
    }

    fn answer(&mut self) -> Answer {
        let mut answer = None;
        until("an answer", || {
            answer = self.worker.answer();
            answer.is_some()
        });
        answer.expect("waited for")
    }

    fn resolve(&mut self, flow: FlowKey) -> Resolution {
        let asked_at_unix_us = unix_us();
        let resolve = Resolve { flow, asked_at_unix_us };
        self.worker.resolve(resolve).expect("room");
        self.worker.ring_doorbell();
        match self.answer() {
            Answer::Resolved { flow: answered, resolution } => {
                assert_eq!(answered, flow);
                resolution
            }
            other => panic!("expected a resolution, got {other:?}"),
        }
    }

    fn stats(&self) -> Stats {
        self.handle.stats().expect("running")
    }

    fn kill(&mut self) {
        self.handle.stop();
        let thread = self.thread.take().expect("killed once");
        thread.join().expect("no panic").expect("no error");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || matches!(ended, Ok(Ok(()))));
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn flow(port: u16) -> FlowKey {
    FlowKey::tcp_v4([20, 1, 1, 1], port, [192, 168, 0, 1], 80)
}

fn cluster(test: u8, servers: u8) -> Vec<Server> {
    let servers: Vec<Server> =
        (1..=servers).map(|n| Server::start(config(test, n), keys(test))).collect();
    until("all to know all", || {
        servers.iter().all(|server| {
            let gauges = server.stats().gauges;
            gauges.joined && gauges.peers == servers.len() as u64 - 1
        })
    });
    servers
}

#[test]
fn r3_a_published_session_is_found_from_everywhere_until_it_is_withdrawn() {
    let mut servers = cluster(1, 5);
    let owner = servers[1].locator;
    let version = servers[1].publish(flow(1));
    until("the replicas", || {
        let gauges = servers[1].stats().gauges;
        gauges.published == 1 && gauges.published_unacked == 0
    });
    for server in &mut servers {
        let resolution = server.resolve(flow(1));
        let locator = owner;
        assert_eq!(resolution, Resolution::Owner { locator, version });
        assert_eq!(server.resolve(flow(2)), Resolution::NotFound);
    }
    let setting_time = servers[1].stats().setting_time_us;
    assert_eq!(setting_time.count, 1);

    let report = servers[0].handle.lookup(flow(1)).expect("running");
    assert_eq!(report.outcome, Outcome::Owner);
    assert_eq!((report.owner, report.version), (Some(owner), Some(version)));
    let holds = |said: &Statement| matches!(said, Statement::Holds(_));
    assert_eq!(report.replicas.len(), 3);
    assert!(report.replicas.iter().all(|r| holds(&r.said)), "{report:?}");

    let flow = flow(1);
    servers[1].announce(Announcement::Withdraw { flow, version });
    until("the deletion", || {
        let report = servers[0].handle.lookup(flow).expect("running");
        !report.replicas.iter().any(|r| holds(&r.said))
    });
    for server in &mut servers {
        assert_eq!(server.resolve(flow), Resolution::NotFound);
    }
    let journal = servers[4].handle.recent_lookups(2).expect("running");
    assert_eq!(journal.len(), 2);
    assert_eq!(journal[0].flow, flow);
    assert_eq!(journal[0].outcome, Outcome::NotFound);
    assert!(journal[0].asked_at_unix_us >= journal[1].asked_at_unix_us);
}

#[test]
fn a_stopped_servers_records_move_and_its_sessions_are_nobodys_when_its_lease_ends() {
    let mut servers = cluster(2, 5);
    let flows: Vec<FlowKey> = (100..200).map(flow).collect();
    for flow in &flows {
        servers[1].publish(*flow);
    }
    let killed_owns = flow(1);
    let killed = servers.len() - 1;
    servers[killed].publish(killed_owns);
    until("the replicas", || {
        let [one, other] = [1, killed].map(|s| servers[s].stats().gauges);
        one.published == 100 && one.published_unacked == 0 && other.published_unacked == 0
    });
    let before = servers[1].stats().counters.get(Counter::RecordsMoved);
    assert_eq!(before, 0);
    let stopped = servers[killed].locator;
    let left = Instant::now();
    servers[killed].kill();
    until("all to be told", || servers[..killed].iter().all(|s| s.stats().gauges.peers == 3));
    assert!(left.elapsed() < LEASE, "not by its silence");
    // Its kernel still has them.
    assert!(matches!(
        servers[0].resolve(killed_owns),
        Resolution::Owner { locator, .. } if locator == stopped
    ));
    until("records to move", || {
        let stats = servers[1].stats();
        let moved = stats.counters.get(Counter::RecordsMoved);
        moved > 0 && stats.gauges.published_unacked == 0
    });
    until("all records to be at three replicas", || {
        flows.iter().all(|flow| {
            let report = servers[0].handle.lookup(*flow).expect("running");
            let holds = |r: &&holdfast_dht::ReplicaReport| matches!(r.said, Statement::Holds(_));
            report.replicas.iter().filter(holds).count() == 3
        })
    });
    assert_eq!(servers[0].answer(), Answer::OwnerDead { owner: stopped }, "workers are told");
    assert!(left.elapsed() >= LEASE);
    assert_eq!(servers[0].resolve(killed_owns), Resolution::NotFound);
}

#[test]
fn r6_not_mine_reaches_the_server_that_tunnelled() {
    let mut servers = cluster(3, 2);
    let sender = servers[0].locator;
    let owner = servers[1].locator;
    let flow = flow(1);
    servers[1].announce(Announcement::NotMine { flow, sender });
    assert_eq!(servers[0].answer(), Answer::NotMine { flow, owner });
}

#[test]
fn a_lone_bootstrap_node_answers_and_strangers_are_dropped() {
    let mut config = config(4, 1);
    config.members = vec![ipnet(locator(4, 0))];
    let mut server = Server::start(config, keys(4));
    until("it to stand alone", || server.stats().gauges.joined);
    assert_eq!(server.resolve(flow(1)), Resolution::NotFound);
    let version = server.publish(flow(1));
    let own = Resolution::Owner { locator: server.locator, version };
    until("its own record", || server.resolve(flow(1)) == own);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let member = UdpSocket::bind((locator(4, 9), 0)).unwrap();
    let long = [[auth::MAGIC, auth::VERSION]; 750];
    for bytes in [&b"hdht"[..], &[auth::MAGIC, auth::VERSION], long.as_flattened()] {
        stranger.send_to(bytes, (server.locator, PORT)).unwrap();
        member.send_to(bytes, (server.locator, PORT)).unwrap();
    }
    until("the datagrams", || {
        let counters = server.stats().counters;
        counters.get(Counter::NotMember) == 3
            && counters.get(Counter::Malformed) == 2
            && counters.get(Counter::NotOurs) == 1
    });
}

fn ipnet(address: IpAddr) -> holdfast_dht::IpNet {
    holdfast_dht::IpNet::new(address, 24).unwrap()
}

#[test]
fn a_service_on_ipv6_answers() {
    let own = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let port = 20_000 + (std::process::id() % 20_000) as u16;
    let mut config = Config::new(own, SocketAddr::new(own, port));
    config.members = vec!["::/0".parse().unwrap()];
    let mut server = Server::start(config, keys(6));
    let flow: FlowKey = "[2001:db8:1::1]:1234-[2001:db8:2::1]:80".parse().unwrap();
    assert_eq!(server.resolve(flow), Resolution::NotFound);
    let version = server.publish(flow);
    let locator = own;
    let owner = Resolution::Owner { locator, version };
    until("its own record", || server.resolve(flow) == owner);
    let stranger = UdpSocket::bind((own, 0)).unwrap();
    stranger.send_to(&[auth::MAGIC], (own, port)).unwrap();
    until("the datagram", || server.stats().counters.get(Counter::Malformed) == 1);
}

#[test]
fn a_missing_locator_is_explained() {
    let missing: IpAddr = [192, 0, 2, 1].into();
    let mut config = Config::new(missing, SocketAddr::new(missing, PORT));
    config.members = vec![ipnet(missing)];
    let error = Service::bind(config, keys(7), Arc::new(Clock::default()))
        .expect_err("TEST-NET-1 is nobody's")
        .to_string();
    assert!(error.contains("192.0.2.1:7000"), "{error}");
    assert!(error.contains("ip addr add 192.0.2.1/32 dev lo"), "{error}");
}

#[test]
fn a_stopped_service_says_so() {
    let mut server = Server::start(config(5, 1), keys(5));
    assert!(server.handle.stats().is_ok());
    server.kill();
    assert_eq!(server.handle.stats(), Err(HandleError::Stopped));
}
