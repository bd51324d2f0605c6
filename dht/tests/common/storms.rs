//! Storms: what a cluster meets on its worst days, one at a time. Each says what was seen and what
//! was wrong.

use std::collections::HashSet;

use holdfast_dht::Counter;
use holdfast_handoff::Resolution;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::sessions::Sessions;
use super::{MS, Network, SECOND, Skew, Weather, config, flow, locator, number};

/// What a storm left.
#[derive(Debug, Clone, Default)]
pub struct Storm {
    pub name: &'static str,
    pub seen: String,
    pub faults: Vec<String>,
}

/// A joined network and its sessions, `a_server` at each.
fn cluster(nodes: usize, a_server: usize, seed: u64) -> (Network, Sessions) {
    let mut network = Network::large(nodes, seed, Weather::lossy(1));
    let mut sessions = Sessions::new(2 * nodes * a_server);
    for f in 0..nodes * a_server {
        sessions.begin(&mut network, f % nodes, f);
    }
    acknowledge(&mut network, &mut sessions);
    (network, sessions)
}

fn acknowledge(network: &mut Network, sessions: &mut Sessions) {
    if !network.comes(60, Network::is_settled) {
        network.fault("not all was acknowledged within 60 s".into());
    }
    network.run(100 * MS);
    sessions.look(network);
}

/// All meet, all is acknowledged, every record is where it should be. Says how long it took, in ms.
fn recover(network: &mut Network, sessions: &mut Sessions, nodes: usize) -> u64 {
    let started_us = network.now_us;
    let meets = |network: &Network| network.is_complete() && network.is_tidy();
    if !network.comes(120, meets) {
        network.fault("not all know all, or not all is acknowledged, after 120 s".into());
    }
    let took_ms = (network.now_us - started_us) / MS;
    network.weather = Weather::lossy(0);
    network.run(5 * SECOND);
    sessions.look(network);
    let alive: Vec<usize> = (0..nodes).filter(|n| network.is_alive(*n)).collect();
    network.take_resolved();
    sessions.check_at_peace(network, &alive);
    took_ms
}

/// All daemons restart at the same instant; the kernels keep their sessions.
pub fn all_restart(nodes: usize, a_server: usize, seed: u64) -> Storm {
    let (mut network, mut sessions) = cluster(nodes, a_server, seed);
    for n in 0..nodes {
        sessions.stop_daemon(&mut network, n);
    }
    network.run(100 * MS);
    for n in 0..nodes {
        network.start_skewed(config(n), Skew::default());
        sessions.retell(&mut network, n);
    }
    let took_ms = recover(&mut network, &mut sessions, nodes);
    Storm {
        name: "all restart at once",
        seen: format!(
            "{nodes} servers with {} sessions: all known and acknowledged again after {took_ms} ms",
            nodes * a_server
        ),
        faults: network.faults,
    }
}

/// A worker asks one node a million times as fast as it can.
pub fn many_lookups(nodes: usize, lookups: usize, seed: u64) -> Storm {
    // More than a node takes on at once.
    const BURST: usize = 200_000;
    const BURST_EVERY_US: u64 = 10 * MS;
    let (mut network, sessions) = cluster(nodes, 64, seed);
    let mut rng = Pcg64::seed_from_u64(seed);
    let known = sessions.len() / 2;
    let (mut asked, mut answered, mut found, mut timed_out) = (0, 0, 0, 0);
    let (mut in_flight_max, mut wrong) = (0, 0);
    let mut count = |network: &mut Network| {
        for resolved in network.take_resolved() {
            answered += 1;
            match resolved.resolution {
                Resolution::Owner { locator: l, .. } => {
                    found += 1;
                    wrong += usize::from(!network.is_alive(number(l)));
                }
                Resolution::NotFound | Resolution::Orphaned => {}
                Resolution::TimedOut => timed_out += 1,
            }
        }
    };
    while asked < lookups {
        // Half of them of flows that nobody knows, each another one.
        let burst = BURST.min(lookups - asked);
        let flows: Vec<_> = (asked..asked + burst)
            .map(|nth| match nth % 2 {
                0 => flow(rng.random_range(0..known)),
                _ => flow(10_000_000 + nth),
            })
            .collect();
        network.ask_all(0, flows);
        in_flight_max = in_flight_max.max(network.node(0).gauges().lookups_in_flight);
        asked += burst;
        network.run(BURST_EVERY_US);
        count(&mut network);
    }
    network.run(2 * SECOND);
    count(&mut network);
    if answered != lookups || wrong > 0 {
        network.fault(format!("{answered} of {lookups} lookups answered, {wrong} wrongly"));
    }
    let refused = network.counter(0, Counter::LookupsRefused);
    if lookups >= BURST && refused == 0 {
        network.fault("the limit of lookups in flight was never reached".into());
    }
    let after = network.node(0).gauges();
    if after.lookups_in_flight > 0 || !network.is_complete() {
        network.fault(format!("the node has not come to rest: {after:?}"));
    }
    Storm {
        name: "many lookups at one node",
        seen: format!(
            "{lookups} lookups at one of {nodes} servers, {BURST} every {BURST_EVERY_US} us: \
             {found} found, {timed_out} TimedOut, of which {refused} refused; \
             {in_flight_max} in flight at most"
        ),
        faults: network.faults,
    }
}

/// A third is cut off, sessions come and go on both sides, and the cut heals.
pub fn partition_heals(nodes: usize, a_server: usize, seed: u64) -> Storm {
    let (mut network, mut sessions) = cluster(nodes, a_server, seed);
    let side = |n: usize| u8::from(n.is_multiple_of(3));
    network.divide(side, nodes, false);
    let mut rng = Pcg64::seed_from_u64(seed);
    let (mut begun, mut ended) = (0, 0);
    for f in 0..sessions.len() {
        network.run(20 * SECOND / sessions.len() as u64);
        let n = rng.random_range(0..nodes);
        if f % 4 == 0 {
            sessions.end(&mut network, f);
            ended += 1;
        } else if f >= nodes * a_server {
            sessions.begin(&mut network, n, f);
            begun += 1;
        }
    }
    network.heal();
    sessions.disturbed_us = network.now_us;
    let took_ms = recover(&mut network, &mut sessions, nodes);
    Storm {
        name: "a partition heals",
        seen: format!(
            "{nodes} servers, a third cut off for 20 s while {begun} sessions began and {ended} \
             ended: one cluster again {took_ms} ms after it healed"
        ),
        faults: network.faults,
    }
}

/// The link between two servers goes down and up again, over and over.
pub fn flapping_link(nodes: usize, a_server: usize, seed: u64) -> Storm {
    let (mut network, mut sessions) = cluster(nodes, a_server, seed);
    let mut rng = Pcg64::seed_from_u64(seed);
    let dead = |network: &Network| network.total(Counter::PeersDead);
    let before = dead(&network);
    let (one, other) = (1, 2);
    let end_us = network.now_us + 60 * SECOND;
    let mut asked = HashSet::new();
    let mut flaps = 0;
    while network.now_us < end_us {
        network.cut(one, other);
        network.run(rng.random_range(100 * MS..3 * SECOND));
        network.mend(one, other);
        network.run(rng.random_range(100 * MS..2 * SECOND));
        flaps += 1;
        // The others do not mind.
        for _ in 0..nodes {
            let (n, f) = (rng.random_range(3..nodes), rng.random_range(0..nodes * a_server));
            if asked.insert((n, f)) {
                network.ask(n, flow(f));
            }
        }
    }
    network.run(SECOND);
    for resolved in network.take_resolved() {
        if resolved.resolution == Resolution::NotFound {
            network.fault(format!("{:?} is denied at {}", resolved.flow, resolved.n));
        }
    }
    let died = dead(&network) - before;
    let third = (3..nodes).map(|n| network.counter(n, Counter::PeersDead)).sum::<u64>();
    if third > 0 {
        network.fault(format!("servers that the link does not touch lost {third} peers"));
    }
    let took_ms = recover(&mut network, &mut sessions, nodes);
    Storm {
        name: "a link flaps",
        seen: format!(
            "the link between two of {nodes} servers down and up {flaps} times in 60 s: its ends \
             gave each other up {died} times, the others nobody; {} lookups of the others; all \
             known {took_ms} ms after",
            asked.len()
        ),
        faults: network.faults,
    }
}

/// The flipped bits reach the parser, as they would without the seal.
pub fn damage(nodes: usize, seconds: u64, seed: u64) -> Storm {
    let (mut network, mut sessions) = cluster(nodes, 8, seed);
    network.sealed = false;
    network.weather.damage_percent = 30;
    let mut rng = Pcg64::seed_from_u64(seed);
    let end_us = network.now_us + seconds * SECOND;
    while network.now_us < end_us {
        network.run(rng.random_range(1..5 * MS));
        let (n, f) = (rng.random_range(0..nodes), rng.random_range(0..sessions.len()));
        match rng.random_range(0..4) {
            0 => sessions.begin(&mut network, n, f),
            1 => sessions.end(&mut network, f),
            _ => network.ask(n, flow(f)),
        }
    }
    network.take_resolved();
    let malformed = network.total(Counter::Malformed) + network.total(Counter::NotOurs);
    // Lies are told and believed: only that all live, and meet again, can be asked for.
    network.weather.damage_percent = 0;
    network.faults.clear();
    if !network.comes(120, Network::is_complete) {
        network.fault("not all know all 120 s after the damage ended".into());
    }
    for n in 0..nodes {
        assert!(network.is_alive(n), "{}", locator(n));
    }
    Storm {
        name: "damaged datagrams without the seal",
        seen: format!(
            "{nodes} servers for {seconds} s with a bit flipped in 30 % of all datagrams: \
             {malformed} refused by the parser, all servers there and known after"
        ),
        faults: network.faults,
    }
}
