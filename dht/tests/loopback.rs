//! Real services on loopback addresses, with the rings that workers use.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod server;

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_dht::auth::{HEADER_LEN, OVERHEAD, SEALED_MAX, SENDER_BURST, Sealer};
use holdfast_dht::id::IdHasher;
use holdfast_dht::message::{DATAGRAM_MAX, Datagram, Message, Sender};
use holdfast_dht::{
    Config, ConfigError, Counter, HandleError, Keys, Outcome, Service, Statement, auth,
};
use holdfast_handoff::{Announcement, Answer, Clock, Resolution, Resolve, Version, unix_us};
use holdfast_net::FlowKey;
use server::{PATIENCE, Server, locator, until, until_complete};

const PORT: u16 = 7000;
/// Shorter than the time after which a silent server is dead.
const LEASE: Duration = Duration::from_secs(2);

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

fn flow(port: u16) -> FlowKey {
    FlowKey::tcp_v4([20, 1, 1, 1], port, [192, 168, 0, 1], 80)
}

fn cluster(test: u8, servers: u8) -> Vec<Server> {
    together((1..=servers).map(|n| Server::start(config(test, n), keys(test))).collect())
}

/// The servers, when each knows all others and says of a flow that nobody owns it (R5).
fn together(mut servers: Vec<Server>) -> Vec<Server> {
    until_complete(&servers);
    for server in &mut servers {
        until("it to be settled", || server.resolve(flow(u16::MAX)) == Resolution::NotFound);
    }
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

/// What an operator asks of a node, and has it withdraw.
#[test]
fn r8_the_control_thread_sees_the_routing_table_and_limits_and_withdraws() {
    let mut servers = cluster(30, 4);
    let version = servers[0].publish(flow(1));
    until("the replicas", || {
        let gauges = servers[0].stats().gauges;
        gauges.published == 1 && gauges.published_unacked == 0
    });
    let routing = servers[0].handle.routing(100).expect("running");
    let peers: Vec<IpAddr> =
        routing.buckets.iter().flat_map(|bucket| &bucket.peers).map(|peer| peer.locator).collect();
    let others: BTreeSet<IpAddr> = servers[1..].iter().map(|server| server.locator).collect();
    assert_eq!(BTreeSet::from_iter(peers), others);
    let contacts: usize = routing.buckets.iter().map(|bucket| bucket.contacts).sum();
    assert_eq!((contacts, routing.absent.len()), (3, 0));
    let few = servers[0].handle.routing(1).expect("running");
    assert_eq!(few.buckets.iter().map(|bucket| bucket.peers.len()).sum::<usize>(), 1);
    assert_eq!(few.buckets.iter().map(|bucket| bucket.contacts).sum::<usize>(), 3);

    let limits = servers[0].handle.limits().expect("running");
    let used = |name| limits.iter().find(|limit| limit.name == name).expect("a limit").used;
    assert_eq!(used("published"), Some(1));
    assert_eq!(used("contacts"), Some(3));
    assert_eq!(used("senders"), Some(3));
    assert!(limits.iter().all(|limit| limit.used.is_none_or(|used| used <= limit.value)));
    let names: BTreeSet<&str> = limits.iter().map(|limit| limit.name).collect();
    assert_eq!(names.len(), limits.len(), "each has a name of its own");

    servers[0].handle.withdraw(flow(1), Version(version.0 - 1)).expect("running");
    assert_eq!(servers[0].count(Counter::WithdrawsIgnored), 1, "a later session is published");
    servers[0].handle.withdraw(flow(1), version).expect("running");
    until("the deletion", || servers[0].stats().gauges.published == 0);
    until("nobody owns it", || servers[1].resolve(flow(1)) == Resolution::NotFound);
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
    servers[killed].stop();
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
    servers[1].announce(Announcement::NotMine { flow, sender: Some(sender) });
    assert_eq!(servers[0].answer(), Answer::NotMine { flow, owner });
}

#[test]
fn r12_reuse_at_another_server_reaches_the_worker_of_the_old_one() {
    let mut servers = cluster(15, 3);
    let flow = flow(1);
    servers[1].publish(flow);
    until("the replicas", || {
        let gauges = servers[1].stats().gauges;
        gauges.published == 1 && gauges.published_unacked == 0
    });
    let owner = servers[0].locator;
    let version = servers[0].publish(flow);
    assert_eq!(servers[1].answer(), Answer::Superseded { flow, version, owner });
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

#[test]
fn members_and_bootstrap_nodes_change_while_it_runs() {
    let start = |n: u8| {
        let mut config = config(16, n);
        config.members = vec![single(locator(16, n))];
        config.bootstrap.clear();
        config.dead_after = Duration::from_millis(200);
        Server::start(config, keys(16))
    };
    let (one, other) = (start(1), start(2));
    let both = vec![ipnet(locator(16, 0))];
    let bootstrap = vec![(one.locator, PORT).into()];
    let wrong = one.handle.set_cluster(vec![single(other.locator)], Vec::new()).unwrap();
    assert_eq!(wrong, Err(ConfigError::NotMember(one.locator)));

    other.handle.set_cluster(both.clone(), bootstrap.clone()).unwrap().unwrap();
    until("the other to knock", || one.stats().counters.get(Counter::NotMember) > 0);
    assert_eq!(one.stats().gauges.peers, 0);
    one.handle.set_cluster(both, bootstrap.clone()).unwrap().unwrap();
    until("each to know the other", || {
        [&one, &other].iter().all(|server| server.stats().gauges.peers == 1)
    });

    one.handle.set_cluster(vec![single(one.locator)], Vec::new()).unwrap().unwrap();
    until("the other to be dead", || {
        let gauges = one.stats().gauges;
        (gauges.peers, gauges.peers_dead) == (0, 1)
    });
    assert!(one.stats().gauges.joined, "it stands alone");
}

fn single(address: IpAddr) -> holdfast_dht::IpNet {
    address.into()
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

/// A member that does not run a service: it says what the test wants.
struct Member {
    socket: UdpSocket,
    sealer: Sealer,
    sender: Sender,
}

impl Member {
    fn new(address: impl Into<SocketAddr>, keys: &Keys) -> Member {
        let socket = UdpSocket::bind(address.into()).unwrap();
        let locator = socket.local_addr().unwrap().ip();
        let incarnation = unix_us();
        let id = IdHasher::new(&keys.id_key()).node(locator);
        let sender = Sender { id, locator, incarnation };
        Member { socket, sealer: Sealer::new(keys, locator, incarnation, 1), sender }
    }

    /// A PING, sealed.
    fn ping(&mut self, to: IpAddr) -> Vec<u8> {
        let mut body = [0; DATAGRAM_MAX];
        let ping = Datagram { sender: self.sender, transaction: 1, message: Message::Ping };
        let len = ping.encode(&mut body).unwrap();
        self.seal(to, &body[..len])
    }

    fn seal(&mut self, to: IpAddr, body: &[u8]) -> Vec<u8> {
        let mut sealed = [0; SEALED_MAX];
        Sealer::body(&mut sealed)[..body.len()].copy_from_slice(body);
        let len = self.sealer.seal(to, &mut sealed, body.len()).unwrap();
        sealed[..len].to_vec()
    }
}

#[test]
fn a_control_port_on_ipv6_opens_what_is_sealed() {
    let own = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let port = 40_000 + (std::process::id() % 20_000) as u16;
    let mut config = Config::new(own, SocketAddr::new(own, port));
    config.members = vec!["::1/128".parse().unwrap()];
    config.id_key = keys(12).id_key();
    let server = Server::start(config, keys(12));
    // Loopback has one IPv6 address, so who speaks to the server bears its own locator.
    let mut member = Member::new((own, 0), &keys(12));
    for _ in 0..200 {
        let ping = member.ping(own);
        member.socket.send_to(&ping, (own, port)).unwrap();
    }
    until("the PINGs", || server.count(Counter::Reflected) == 200);
}

/// Needs more IPv6 addresses than loopback has:
/// ```text
/// ip netns add hf-v6
/// ip -n hf-v6 link set lo up
/// for n in 1 2 3 4; do ip -n hf-v6 addr add fd07::$n/128 dev lo nodad; done
/// ip netns exec hf-v6 cargo test -p holdfast-dht --test loopback on_ipv6 -- --ignored
/// ip netns del hf-v6
/// ```
#[test]
#[ignore = "needs a network namespace of its own"]
fn a_cluster_on_ipv6_finds_owners() {
    let locator = |n: u16| IpAddr::from([0xfd07, 0, 0, 0, 0, 0, 0, n]);
    let start = |n| {
        let mut config = Config::new(locator(n), (locator(n), PORT).into());
        config.bootstrap = vec![(locator(1), PORT).into()];
        config.members = vec!["fd07::/64".parse().unwrap()];
        config.id_key = keys(13).id_key();
        Server::start(config, keys(13))
    };
    let mut servers = together((1..=4).map(start).collect());
    let version = servers[1].publish(flow(1));
    until("the replicas", || {
        let gauges = servers[1].stats().gauges;
        gauges.published == 1 && gauges.published_unacked == 0
    });
    for server in &mut servers {
        let owner = Resolution::Owner { locator: locator(2), version };
        assert_eq!(server.resolve(flow(1)), owner);
        assert_eq!(server.resolve(flow(2)), Resolution::NotFound);
    }
}

#[test]
fn a_burst_of_ten_thousand_lookups_is_answered_one_by_one() {
    const TEST: u8 = 8;
    const LOOKUPS: u16 = 10_000;
    const OWNED: u16 = 100;
    let start = |n| Server::with_rings(config(TEST, n), keys(TEST), 128);
    let mut servers = together((1..=4).map(start).collect());
    for port in 0..OWNED {
        servers[1].publish(flow(port));
    }
    until("the replicas", || {
        let gauges = servers[1].stats().gauges;
        gauges.published == u64::from(OWNED) && gauges.published_unacked == 0
    });
    let owner = servers[1].locator;
    let server = &mut servers[3];
    let mut to_ask: VecDeque<u16> = (0..LOOKUPS).collect();
    let mut waiting = BTreeSet::new();
    let (mut found, mut timed_out) = (0, 0);
    let started = Instant::now();
    until("all answers", || {
        while let Some(port) = to_ask.pop_front() {
            let resolve = Resolve { flow: flow(port), asked_at_unix_us: unix_us() };
            if server.worker.resolve(resolve).is_err() {
                to_ask.push_front(port);
                break;
            }
            waiting.insert(port);
        }
        server.worker.ring_doorbell();
        while let Some(answer) = server.worker.answer() {
            let Answer::Resolved { flow, resolution, .. } = answer else {
                panic!("{answer:?}");
            };
            let port = flow.client().port();
            assert!(waiting.remove(&port), "answered once: {answer:?}");
            match resolution {
                Resolution::Owner { locator, .. } => {
                    assert!(port < OWNED && locator == owner, "{answer:?}");
                    found += 1;
                }
                Resolution::NotFound | Resolution::Orphaned => assert!(port >= OWNED, "{answer:?}"),
                // A slow machine is behind; the worker asks again.
                Resolution::TimedOut => {
                    timed_out += 1;
                    to_ask.push_back(port);
                }
            }
        }
        to_ask.is_empty() && waiting.is_empty()
    });
    println!("{LOOKUPS} lookups in {:?}, {timed_out} of them twice", started.elapsed());
    assert_eq!(found, OWNED);
    assert_eq!(server.worker.answer(), None);
    for counter in [Counter::AnswersDropped, Counter::LookupsRefused] {
        assert_eq!(server.count(counter), 0, "{}", counter.name());
    }
}

#[test]
fn a_flood_of_garbage_is_counted_by_reason_and_lookups_go_on() {
    const TEST: u8 = 9;
    const ROUNDS: u64 = 50;
    let start = |n| {
        let mut config = config(TEST, n);
        config.members = vec![ipnet(locator(TEST, 0))];
        Server::start(config, keys(TEST))
    };
    let mut servers = together((1..=3).map(start).collect());
    // Asked while they settled.
    let timed_out_before = servers[0].count(Counter::LookupsTimedOut);
    servers[1].publish(flow(1));
    until("the replicas", || servers[1].stats().gauges.published_unacked == 0);
    let target = servers[0].locator;
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut member = Member::new((locator(TEST, 9), 0), &keys(TEST));
    let whole = member.ping(target);
    member.socket.send_to(&whole, (target, PORT)).unwrap();
    until("the run to be known", || servers[0].count(Counter::PingsReceived) > 0);
    for round in 0..ROUNDS {
        let mut damaged = member.ping(target);
        *damaged.last_mut().unwrap() ^= 1;
        let mut truncated = member.ping(target);
        truncated.truncate(OVERHEAD + round as usize % 10);
        let oversized = [whole.clone(), vec![0; SEALED_MAX]].concat();
        let [older, other_key] = [0, 0xff]
            .map(|byte| [&[auth::MAGIC, auth::VERSION, TEST + 1], &[byte; 60][..]].concat());
        let other_version = vec![auth::MAGIC, auth::VERSION + 1, 0];
        for _ in 0..2 {
            for bytes in [
                &whole[..],
                &damaged,
                &truncated,
                &truncated[..HEADER_LEN],
                &oversized,
                &older,
                &other_key,
                &other_version,
                b"garbage",
                &[],
            ] {
                member.socket.send_to(bytes, (target, PORT)).unwrap();
                stranger.send_to(bytes, (target, PORT)).unwrap();
            }
        }
        let resolved = servers[0].resolve(flow(1));
        assert!(matches!(resolved, Resolution::Owner { .. }), "{resolved:?}");
        assert_eq!(servers[0].resolve(flow(2 + round as u16)), Resolution::NotFound);
    }
    let expected = [
        (Counter::NotMember, 20),
        (Counter::Replayed, 2),
        (Counter::Unverified, 4),
        (Counter::Malformed, 6),
        (Counter::OlderIncarnation, 2),
        (Counter::UnknownKey, 2),
        (Counter::UnknownVersion, 2),
        (Counter::NotOurs, 2),
    ];
    until("the flood's end", || servers[0].count(Counter::NotOurs) == 2 * ROUNDS);
    for (counter, each) in expected {
        assert_eq!(servers[0].count(counter), each * ROUNDS, "{}", counter.name());
    }
    for counter in [Counter::ReceiveDropped, Counter::ReceiveErrors] {
        assert_eq!(servers[0].count(counter), 0, "{}", counter.name());
    }
    assert_eq!(servers[0].count(Counter::LookupsTimedOut), timed_out_before);
}

#[test]
fn a_sender_over_its_limit_is_dropped_and_disturbs_nobody() {
    const TEST: u8 = 10;
    let start = |n| {
        let mut config = config(TEST, n);
        // A slow machine needs seconds for the flood, and then its peers' answers are late.
        config.dead_after = PATIENCE;
        Server::start(config, keys(TEST))
    };
    let mut servers = together((1..=3).map(start).collect());
    let version = servers[1].publish(flow(1));
    until("the replicas", || servers[1].stats().gauges.published_unacked == 0);
    let (target, owner) = (servers[0].locator, servers[1].locator);
    let mut member = Member::new((locator(TEST, 9), 0), &keys(TEST));
    // Verified, and of no more work than that. A machine that is too slow to take more than
    // 50,000 a second just now is tried again.
    until("the limit", || {
        let flood = 2 * SENDER_BURST - SENDER_BURST / 5;
        let flood: Vec<Vec<u8>> = (0..flood).map(|_| member.seal(target, &[])).collect();
        for sealed in &flood {
            member.socket.send_to(sealed, (target, PORT)).unwrap();
        }
        let limited = servers[0].count(Counter::SenderLimited) > 0;
        let resolution = servers[0].resolve(flow(1));
        assert_eq!(resolution, Resolution::Owner { locator: owner, version });
        limited
    });
    assert_eq!(servers[0].resolve(flow(2)), Resolution::NotFound);
    for server in &servers[1..] {
        assert_eq!(server.count(Counter::SenderLimited), 0);
    }
}

#[test]
fn what_the_kernel_drops_is_counted() {
    const TEST: u8 = 14;
    let service = Service::bind(config(TEST, 1), keys(TEST), Arc::new(Clock::default())).unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Nobody reads yet. The buffer holds 8 MiB of the largest datagrams, or fewer when it is small.
    for _ in 0..20_000 {
        stranger.send_to(&[0; SEALED_MAX], (locator(TEST, 1), PORT)).unwrap();
    }
    let handle = service.handle();
    let thread = std::thread::spawn(move || service.run(vec![]));
    let (dropped, received) = (Counter::ReceiveDropped, Counter::DatagramsReceived);
    until("the others", || {
        let stats = handle.stats().expect("running");
        assert!(stats.gauges.receive_buffer_bytes > 0 && stats.gauges.send_buffer_bytes > 0);
        let [dropped, received] = [dropped, received].map(|counter| stats.counters.get(counter));
        dropped > 0 && dropped + received >= 20_000
    });
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_busy_service_stops_soon() {
    const TEST: u8 = 11;
    let mut servers = cluster(TEST, 3);
    let target = SocketAddr::new(servers[0].locator, PORT);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ordering = std::sync::atomic::Ordering::Relaxed;
    let flood = std::thread::spawn({
        let stop = stop.clone();
        let mut member = Member::new((locator(TEST, 9), 0), &keys(TEST));
        move || {
            while !stop.load(ordering) {
                let ping = member.ping(target.ip());
                member.socket.send_to(&ping, target).unwrap();
            }
        }
    });
    let (mut asked, mut full) = (0u16, 0);
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(300) || full == 0 {
        assert!(started.elapsed() < PATIENCE, "never busy");
        asked = asked.wrapping_add(1);
        let resolve = Resolve { flow: flow(asked), asked_at_unix_us: unix_us() };
        let publish = Announcement::Publish { flow: flow(asked), version: Version(asked.into()) };
        full += u32::from(servers[0].worker.resolve(resolve).is_err());
        full += u32::from(servers[0].worker.announce(publish).is_err());
        servers[0].worker.ring_doorbell();
        while servers[0].worker.answer().is_some() {}
    }
    let stopped = Instant::now();
    servers[0].stop();
    let took = stopped.elapsed();
    stop.store(true, ordering);
    flood.join().unwrap();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(servers[0].handle.stats(), Err(HandleError::Stopped));
    assert_eq!(servers[1].resolve(flow(1)), servers[2].resolve(flow(1)));
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
    server.stop();
    assert_eq!(server.handle.stats(), Err(HandleError::Stopped));
}
