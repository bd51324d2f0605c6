//! Sealed control ports of real services on loopback addresses: keys are replaced under way, and
//! who has no key gets nowhere.
#![allow(clippy::unwrap_used)]

mod server;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use holdfast_dht::auth::{ClusterKey, SEALED_MAX, Sealer, Secret};
use holdfast_dht::message::{Datagram, Message, Sender};
use holdfast_dht::{Config, Counter, Keys, ReplicaReport, Statement};
use holdfast_handoff::{Resolution, unix_us};
use holdfast_net::FlowKey;
use server::{PATIENCE, Server, until, until_complete};

const PORT: u16 = 7100;
/// What members that have the right keys never cause.
const REFUSALS: [Counter; 6] = [
    Counter::UnknownKey,
    Counter::Unverified,
    Counter::Replayed,
    Counter::TooOld,
    Counter::OlderIncarnation,
    Counter::TooManyRuns,
];

/// Locator of a test's `n`-th server: none of `loopback.rs`, which may run at the same time.
fn locator(test: u8, n: u8) -> IpAddr {
    server::locator(100 + test, n)
}

fn address(test: u8, n: u8) -> SocketAddr {
    SocketAddr::new(locator(test, n), PORT)
}

fn key(id: u8) -> ClusterKey {
    ClusterKey { id, secret: Secret([id; 32]) }
}

/// The keys of a server in one phase of a replacement.
fn keys(sealing: u8, opening: Option<u8>) -> Keys {
    Keys { sealing: key(sealing), opening: opening.map(key), ids: Secret([1; 32]) }
}

fn start(test: u8, n: u8, keys: Keys) -> Server {
    let mut config = Config::new(locator(test, n), address(test, n));
    config.bootstrap = vec![address(test, 1), address(test, 2)];
    config.members = vec!["127.0.0.0/8".parse().unwrap()];
    config.id_key = keys.id_key();
    Server::start(config, keys)
}

/// Publishes a flow, and waits for all replicas.
fn publish(server: &mut Server, flow: FlowKey) {
    server.publish(flow);
    until("the replicas", || {
        let gauges = server.stats().gauges;
        gauges.published > 0 && gauges.published_unacked == 0
    });
}

fn flow(owner: usize) -> FlowKey {
    FlowKey::tcp_v4([20, 1, 1, 1], 1000 + owner as u16, [192, 168, 0, 1], 80)
}

fn cluster(test: u8, servers: u8, keys: &Keys) -> Vec<Server> {
    let servers: Vec<Server> = (1..=servers).map(|n| start(test, n, keys.clone())).collect();
    until_complete(&servers);
    servers
}

/// Restarts a server, and waits until the others have stored again what it held for them.
fn restart(servers: &mut [Server], test: u8, n: usize, keys: &Keys) {
    let noticed = |server: &Server| server.count(Counter::PeersRestarted);
    let before: Vec<u64> = servers.iter().map(noticed).collect();
    servers[n].stop();
    servers[n] = start(test, n as u8 + 1, keys.clone());
    until("the others to notice", || {
        let mut others = servers.iter().zip(&before).enumerate().filter(|(m, _)| *m != n);
        others.all(|(_, (server, before))| noticed(server) > *before)
    });
    until_complete(servers);
    let flows: Vec<FlowKey> = (0..servers.len()).filter(|m| *m != n).map(flow).collect();
    until("all records to be at three replicas", || {
        flows.iter().all(|flow| {
            let report = servers[n].handle.lookup(*flow).expect("running");
            let holds = |r: &&ReplicaReport| matches!(r.said, Statement::Holds(_));
            report.replicas.iter().filter(holds).count() == 3
        })
    });
}

/// All servers find the owner of each flow.
fn check_lookups(servers: &mut [Server], when: &str) {
    let owners: Vec<IpAddr> = servers.iter().map(|server| server.locator).collect();
    for (n, server) in servers.iter_mut().enumerate() {
        for (owned, owner) in owners.iter().enumerate() {
            let found = server.resolve(flow(owned));
            let right = matches!(found, Resolution::Owner { locator, .. } if locator == *owner);
            assert!(right, "{when}: {owned} from {n}: {found:?}");
        }
    }
    for server in servers {
        for counter in REFUSALS.iter().chain(&[Counter::LookupsTimedOut]) {
            assert_eq!(server.count(*counter), 0, "{when}: {}", counter.name());
        }
    }
}

#[test]
fn a_key_is_replaced_without_a_failed_lookup() {
    const TEST: u8 = 1;
    let mut servers = cluster(TEST, 5, &keys(1, None));
    for (n, server) in servers.iter_mut().enumerate() {
        publish(server, flow(n));
    }
    check_lookups(&mut servers, "before");
    for phase in [keys(1, Some(2)), keys(2, Some(1)), keys(2, None)] {
        for n in 0..servers.len() {
            restart(&mut servers, TEST, n, &phase);
            // As the daemon does with what it learns from the kernel (R7).
            publish(&mut servers[n], flow(n));
            check_lookups(&mut servers, &format!("{phase:?} on {n}"));
        }
    }
}

#[test]
fn a_server_with_another_key_never_joins() {
    const TEST: u8 = 2;
    let mut servers = cluster(TEST, 2, &keys(1, None));
    publish(&mut servers[0], flow(0));
    let other = Keys { sealing: ClusterKey { id: 1, secret: Secret([9; 32]) }, ..keys(1, None) };
    for (n, keys, counter) in [
        (3, other, Counter::Unverified),
        (4, keys(3, None), Counter::UnknownKey),
        (5, Keys { ids: Secret([1; 32]), ..Keys::insecure() }, Counter::UnknownKey),
    ] {
        let before = servers[0].count(counter) + servers[1].count(counter);
        let mut outsider = start(TEST, n, keys);
        until("it to knock", || servers[0].count(counter) + servers[1].count(counter) > before + 3);
        assert_eq!(outsider.resolve(flow(0)), Resolution::TimedOut);
        let gauges = outsider.stats().gauges;
        assert_eq!((gauges.joined, gauges.peers), (false, 0));
    }
    for server in &servers {
        assert_eq!(server.stats().gauges.peers, 1);
    }
}

#[test]
fn who_does_not_verify_is_never_answered_and_disturbs_nobody() {
    const TEST: u8 = 3;
    let mut servers = cluster(TEST, 3, &keys(1, None));
    for (n, server) in servers.iter_mut().enumerate() {
        publish(server, flow(n));
    }
    // A PING as a member sends it, sealed with another key, and one in the clear.
    let forger = UdpSocket::bind((locator(TEST, 9), 0)).unwrap();
    let sender = Sender {
        id: holdfast_dht::id::IdHasher::new(&keys(1, None).id_key()).node(locator(TEST, 9)),
        locator: locator(TEST, 9),
        incarnation: unix_us(),
    };
    let ping = Datagram { sender, transaction: 1, message: Message::Ping };
    let mut sealed = [0; SEALED_MAX];
    let clear_len = ping.encode(Sealer::body(&mut sealed)).unwrap();
    let clear = Sealer::body(&mut sealed)[..clear_len].to_vec();
    let to = address(TEST, 1);
    let wrong = Keys::single(1, Secret([9; 32]));
    let mut sealer = Sealer::new(&wrong, sender.locator, sender.incarnation, 1);
    let len = sealer.seal(to.ip(), &mut sealed, clear_len).unwrap();
    for _ in 0..20 {
        for _ in 0..100 {
            forger.send_to(&sealed[..len], to).unwrap();
            forger.send_to(&clear, to).unwrap();
        }
        for server in &mut servers {
            for owned in 0..3 {
                let found = server.resolve(flow(owned));
                assert!(matches!(found, Resolution::Owner { .. }), "{owned}: {found:?}");
            }
        }
    }
    until("the flood's end", || servers[0].count(Counter::NotOurs) == 2000);
    let [unverified, many] =
        [Counter::Unverified, Counter::TooManyRuns].map(|counter| servers[0].count(counter));
    assert_eq!(unverified + many, 2000);
    assert!(unverified >= 16 && many > unverified, "{unverified} were looked into");

    // The right key opens the door: the answer proves that the silence was not for want of a way.
    forger.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut answer = [0; SEALED_MAX];
    assert!(forger.recv_from(&mut answer).is_err(), "nothing is answered");
    std::thread::sleep(Duration::from_secs(1));
    let mut sealer = Sealer::new(&keys(1, None), sender.locator, sender.incarnation, 1);
    let len = ping.encode(Sealer::body(&mut sealed)).unwrap();
    let len = sealer.seal(to.ip(), &mut sealed, len).unwrap();
    forger.set_read_timeout(Some(PATIENCE)).unwrap();
    forger.send_to(&sealed[..len], to).unwrap();
    assert_eq!(forger.recv_from(&mut answer).unwrap().1, to);

    // The same once more, and the same to another server: dropped.
    forger.send_to(&sealed[..len], to).unwrap();
    until("the copy", || servers[0].count(Counter::Replayed) == 1);
    forger.send_to(&sealed[..len], address(TEST, 2)).unwrap();
    until("the copy", || servers[1].count(Counter::Unverified) == 1);
}
