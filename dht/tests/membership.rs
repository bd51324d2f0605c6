//! Who notices what of whom, and when: crashes, slow and stopped nodes, leaving and coming back,
//! members that lie. What takes minutes without optimisation is left to release builds; with
//! `--nocapture` the tests print what they measured.
#![allow(clippy::print_stdout)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{EPOCH_US, MS, Network, SECOND, Weather, address, config, flow, locator, owner};
use holdfast_dht::message::{DATAGRAM_MAX, Datagram, Life, Message, Sender};
use holdfast_dht::{Counter, Event};
use holdfast_handoff::Resolution;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

fn losing(loss_percent: u32) -> Weather {
    Weather { loss_percent, ..Weather::fair() }
}

/// When the others noticed that a server had crashed, in µs since then.
#[derive(Default)]
struct Noticed {
    suspected_us: Vec<u64>,
    dead_us: Vec<u64>,
}

impl Noticed {
    /// Kills node `victim` and watches the others until all have given it up.
    fn watch(&mut self, network: &mut Network, victim: usize, others: &[usize]) {
        const STEP_US: u64 = 5 * MS;
        network.kill(victim);
        let killed_us = network.now_us;
        let mut trusting: BTreeSet<usize> = others.iter().copied().collect();
        let mut waiting = trusting.clone();
        while !waiting.is_empty() {
            network.run(STEP_US);
            let after_us = network.now_us - killed_us;
            assert!(after_us < 6 * SECOND, "{waiting:?} do not notice");
            let trusts = |n: &usize| network.peer(*n, victim).is_some_and(|peer| !peer.suspect);
            let (still, gone): (_, Vec<usize>) = trusting.into_iter().partition(trusts);
            trusting = still.into_iter().collect();
            self.suspected_us.extend(gone.iter().map(|_| after_us));
            let knows = |n: &usize| network.peer(*n, victim).is_some();
            let (still, gone): (_, Vec<usize>) = waiting.into_iter().partition(knows);
            waiting = still.into_iter().collect();
            self.dead_us.extend(gone.iter().map(|_| after_us));
        }
    }

    /// The greatest of each, and of the suspicions the one that 99 in 100 are not above.
    fn check(mut self, what: &str) {
        self.suspected_us.sort();
        let p99_us = self.suspected_us[self.suspected_us.len() * 99 / 100];
        let max_us = self.suspected_us.last().copied().unwrap_or(0);
        let (first, last) = (self.dead_us.iter().min(), self.dead_us.iter().max());
        let text = format!(
            "{what}: suspected p50 {} p99 {p99_us} max {max_us}, dead from {first:?} to {last:?} us",
            self.suspected_us[self.suspected_us.len() / 2],
        );
        println!("{text}");
        assert!(p99_us <= 500 * MS, "{text}");
        // With loss, one may be suspect already when it crashes, and is then dead sooner.
        let first_us = if what.contains(" 0% loss") { 2 * SECOND } else { SECOND };
        assert!(first.is_some_and(|first| *first >= first_us), "{text}");
        assert!(last.is_some_and(|last| *last <= 3 * SECOND), "{text}");
    }
}

/// Kills some nodes of a network one after the other, and checks when the rest noticed.
fn crashes(n: usize, seeds: u64, kills: usize, weather: &Weather, clocks_differ_us: u64) {
    let mut noticed = Noticed::default();
    for seed in 0..seeds {
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut network = Network::new(seed, Weather::fair());
        network.clocks_differ_us = clocks_differ_us;
        for n in 0..n {
            network.start(config(n));
        }
        network.until("all to know all", 10, |network| network.is_complete());
        network.weather = weather.clone();
        network.run(SECOND);
        let mut alive: Vec<usize> = (0..n).collect();
        for _ in 0..kills {
            network.run(rng.random_range(0..2 * SECOND));
            // Node 0 is the one that the others would join by.
            let victim = alive.swap_remove(rng.random_range(1..alive.len()));
            noticed.watch(&mut network, victim, &alive);
        }
        assert!(network.most_at_once <= 300, "{} datagrams at once", network.most_at_once);
        let died = network.total(Counter::PeersDead);
        let expected: usize = (1..=kills).map(|killed| n - killed).sum();
        // Those who died had seen some of the others die.
        assert!(died <= expected as u64, "{died} deaths, at most {expected} expected");
        for one in &alive {
            assert_eq!(network.node(*one).gauges().peers as usize, alive.len() - 1);
        }
    }
    let loss_percent = weather.loss_percent;
    let clocks_ms = clocks_differ_us / MS;
    noticed.check(&format!("{n} nodes, {loss_percent}% loss, clocks differ by {clocks_ms} ms"));
}

#[test]
fn r13_a_crash_is_suspected_within_half_a_second_and_certain_within_three() {
    for loss_percent in [0, 5] {
        crashes(4, 20, 1, &losing(loss_percent), 0);
        crashes(16, 8, 3, &losing(loss_percent), 0);
        crashes(64, 1, 5, &losing(loss_percent), 0);
    }
    // However wrong the clocks are.
    crashes(16, 8, 3, &losing(1), 100 * SECOND);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "minutes without optimisation")]
fn r13_so_are_crashes_in_a_large_cluster() {
    for loss_percent in [0, 5] {
        for clocks_differ_us in [0, 10 * MS, 100 * SECOND] {
            crashes(4, 100, 1, &losing(loss_percent), clocks_differ_us);
            crashes(16, 20, 5, &losing(loss_percent), clocks_differ_us);
            crashes(64, 5, 10, &losing(loss_percent), clocks_differ_us);
        }
        crashes(250, 1, 20, &losing(loss_percent), 10 * MS);
        crashes(1000, 1, 20, &losing(loss_percent), 10 * MS);
    }
}

#[test]
fn a_thousand_nodes_that_start_at_once_find_each_other() {
    // Without optimisation, a tenth of them.
    let n = if cfg!(debug_assertions) { 100 } else { 1000 };
    let mut network = Network::new(1, Weather::fair());
    for n in 0..n {
        network.start(config(n));
    }
    network.until("all to know all", 10, |network| network.is_complete());
    println!("{n} nodes: complete after {} us, {} sent", network.now_us, network.delivered);
    assert!(network.now_us < 5 * SECOND, "{} us", network.now_us);
    network.run(2 * SECOND);
    // Nobody was suspected in the rush, and the load of probing is that of few nodes.
    assert_eq!(network.total(Counter::SuspicionsSpread), 0);
    assert!(network.most_at_once <= 300, "{}", network.most_at_once);
}

#[test]
fn all_probe_in_step_so_that_each_is_probed_every_50_ms_whatever_the_number_of_nodes() {
    for n in [4, 16, 64] {
        let mut network = Network::of(n, 1, Weather::fair());
        network.run(SECOND);
        let count = |network: &Network, counter| -> Vec<u64> {
            (0..n).map(|n| network.counter(n, counter)).collect()
        };
        let counters = [Counter::ProbesSent, Counter::PingsReceived];
        let before = counters.map(|counter| count(&network, counter));
        network.run(10 * SECOND);
        for (counter, before) in counters.into_iter().zip(before) {
            for (after, before) in count(&network, counter).into_iter().zip(before) {
                let probes = after - before;
                // At random times some would have 30 more or less.
                assert!((185..=205).contains(&probes), "{n} nodes: {counter:?} {probes} in 10 s");
            }
        }
        assert_eq!(network.total(Counter::ChecksSent), 0);
        assert_eq!(network.total(Counter::PeersSuspected), 0);
    }
}

#[test]
fn loss_kills_nobody() {
    let seconds = if cfg!(debug_assertions) { 15 } else { 600 };
    for n in [2, 3, if cfg!(debug_assertions) { 16 } else { 64 }] {
        let mut network = Network::of(n, 1, Weather::fair());
        network.weather = losing(20);
        let before = network.delivered;
        network.run(seconds * SECOND);
        let rate = (network.delivered - before) / seconds / n as u64;
        let spread = network.total(Counter::SuspicionsSpread);
        println!("{n} nodes, 20% loss: {rate} datagrams/s each, {spread} suspicions spread");
        assert_eq!(network.total(Counter::PeersDead), 0);
        assert_eq!(network.total(Counter::PeersVouchedFor) > 0, n > 2);
        assert!(rate < 400, "{rate} datagrams a second at each node");
    }
}

#[test]
fn a_slow_node_is_not_a_dead_node() {
    let (n, seconds) = if cfg!(debug_assertions) { (16, 15) } else { (64, 600) };
    let mut network = Network::of(n, 1, losing(1));
    network.delay(3, 800 * MS);
    network.run(seconds * SECOND);
    assert_eq!(network.total(Counter::PeersDead), 0);
    for at in (0..n).filter(|at| *at != 3) {
        assert!(network.peer(at, 3).is_some_and(|peer| peer.suspect), "others are asked first");
    }
    // All suspect it, so nobody has to be told again.
    let spread = network.total(Counter::SuspicionsSpread);
    println!("{n} nodes, one slow: {spread} suspicions spread");
    network.delay(3, 0);
    network.run(2 * SECOND);
    for at in (0..n).filter(|at| *at != 3) {
        assert!(network.peer(at, 3).is_some_and(|peer| !peer.suspect), "it is trusted again");
    }
}

#[test]
fn a_node_that_is_stopped_now_and_then_is_not_a_dead_node() {
    let (n, rounds) = if cfg!(debug_assertions) { (16, 4) } else { (64, 120) };
    let mut network = Network::of(n, 1, losing(1));
    let mut rng = Pcg64::seed_from_u64(1);
    for round in 0..rounds {
        let stopped = rng.random_range(0..n);
        network.stall(stopped, 1500 * MS);
        network.run(1400 * MS);
        let suspects = |at: &usize| network.peer(*at, stopped).is_some_and(|peer| peer.suspect);
        let suspecting = (0..n).filter(|at| *at != stopped).filter(suspects).count();
        assert!(suspecting * 10 >= (n - 1) * 9, "round {round}: {suspecting} suspect it");
        network.run(3600 * MS);
        assert_eq!(network.total(Counter::PeersDead), 0, "round {round}");
        let suspecting = (0..n)
            .filter(|at| *at != stopped)
            .filter(|at| network.peer(*at, stopped).is_none_or(|peer| peer.suspect));
        assert!(suspecting.count() <= 1, "round {round}");
    }
    assert!(network.total(Counter::Refutations) > 0);
}

#[test]
fn a_node_that_did_not_run_does_not_blame_the_others() {
    let mut network = Network::of(8, 1, Weather::fair());
    network.run(SECOND);
    network.stall(3, 20 * SECOND);
    network.run(20 * SECOND);
    for at in (0..8).filter(|at| *at != 3) {
        assert!(network.peer(at, 3).is_none(), "silent for so long, it is dead");
    }
    network.until("it to be found again", 5, |network| network.is_complete());
    assert_eq!(network.counter(3, Counter::PeersDead), 0);
    assert_eq!(network.counter(3, Counter::Stalls), 1);
    assert!(network.dead_owners(3).is_empty());
}

#[test]
fn a_broken_link_between_two_kills_neither() {
    let mut network = Network::of(12, 1, losing(2));
    network.run(SECOND);
    network.cut(3, 7);
    let seconds = if cfg!(debug_assertions) { 15 } else { 300 };
    network.run(seconds * SECOND);
    assert_eq!(network.total(Counter::PeersDead), 0);
    assert!(network.peer(3, 7).is_some_and(|peer| peer.suspect), "others are asked first");
    assert!(network.peer(7, 3).is_some_and(|peer| peer.suspect));
    assert!(network.counter(3, Counter::PeersVouchedFor) > 0);
    let trusting = |at: &usize| network.peer(*at, 7).is_some_and(|peer| !peer.suspect);
    assert!((0..12).filter(|at| ![3, 7].contains(at)).filter(trusting).count() >= 9);
    network.heal();
    network.run(SECOND);
    assert!(network.peer(3, 7).is_some_and(|peer| !peer.suspect));
}

#[test]
fn half_of_the_nodes_die_at_once() {
    for loss_percent in [0, 5] {
        let mut network = Network::of(32, 1, Weather::fair());
        network.weather = losing(loss_percent);
        network.run(SECOND);
        for n in 16..32 {
            network.kill(n);
        }
        network.run(500 * MS);
        let suspected: u64 = (0..16).map(|n| network.node(n).gauges().peers_suspect).sum();
        assert!(suspected >= 16 * 16 * 95 / 100, "{suspected}");
        network.run(2500 * MS);
        for n in 0..16 {
            assert_eq!(network.node(n).gauges().peers, 15, "node {n}");
        }
    }
}

/// Tells node `to` something as node `from`.
fn say(network: &mut Network, from: usize, incarnation: u64, to: usize, message: Message) {
    let id = network.peer_id(to, from);
    let sender = Sender { id, locator: locator(from), incarnation };
    let mut bytes = [0; DATAGRAM_MAX];
    let datagram = Datagram { sender, transaction: 1, message };
    let len = datagram.encode(&mut bytes).expect("fits");
    network.tell(to, Event::Datagram { from: address(from), bytes: &bytes[..len] });
}

fn life(n: usize, incarnation: u64) -> Life {
    Life { address: address(n), incarnation }
}

fn ping_req(life: Life) -> Message {
    Message::PingReq { life, within_us: 1000 }
}

#[test]
fn a_members_lie_kills_nobody_and_moves_few_datagrams() {
    let mut network = Network::of(12, 1, Weather::fair());
    network.run(SECOND);
    let before = network.counter(0, Counter::ChecksSent);
    let mut suspect_us = 0;
    for _ in 0..5_000 {
        say(&mut network, 1, EPOCH_US, 0, Message::Suspect(life(2, EPOCH_US)));
        network.run(MS);
        suspect_us += MS * u64::from(network.peer(0, 2).is_some_and(|peer| peer.suspect));
    }
    // One PING in 300 ms.
    let checks = network.counter(0, Counter::ChecksSent) - before;
    assert!((5..=17).contains(&checks), "{checks} PINGs in 5 s");
    assert_eq!(network.total(Counter::PeersDead), 0);
    assert_eq!(network.total(Counter::SuspicionsSpread), 0);
    assert!(network.counter(0, Counter::SuspicionsIgnored) > 1000);
    // Although it is denounced all the time.
    assert!(suspect_us < 2 * SECOND, "suspect for {suspect_us} us of 5 s");
    // Of a life that is over, of one that is not here, and of nobody.
    let ignored = network.counter(0, Counter::SuspicionsIgnored);
    network.run(SECOND);
    for told in [life(2, EPOCH_US - 1), life(500, EPOCH_US)] {
        say(&mut network, 1, EPOCH_US, 0, Message::Suspect(told));
    }
    assert_eq!(network.counter(0, Counter::SuspicionsIgnored), ignored + 2);
    assert!(network.peer(0, 2).is_some_and(|peer| !peer.suspect));
}

#[test]
fn who_is_suspected_refutes_it_but_not_too_often() {
    let mut network = Network::of(12, 1, Weather::fair());
    network.run(SECOND);
    for _ in 0..1_100 {
        say(&mut network, 1, EPOCH_US, 0, Message::Suspect(life(0, EPOCH_US)));
        network.run(MS);
    }
    assert_eq!(network.counter(0, Counter::Refutations), 3);
    network.run(SECOND);
    // Once more, for those that came since the last.
    assert_eq!(network.counter(0, Counter::Refutations), 4);
    assert_eq!(network.counter(5, Counter::AlivesReceived), 4);
}

#[test]
fn what_goes_to_all_goes_in_portions() {
    let mut network = Network::of(150, 1, Weather::fair());
    network.run(SECOND);
    network.most_at_once = 0;
    say(&mut network, 1, EPOCH_US, 0, Message::Suspect(life(0, EPOCH_US)));
    assert_eq!(network.most_at_once, 149, "ALIVE to all");
    network.most_at_once = 0;
    network.tell(0, Event::Leave);
    assert_eq!(network.most_at_once, 256 - 149, "LEAVE to some");
    network.run(5 * MS);
    let left = |n: &usize| network.peer(*n, 0).is_none();
    assert_eq!((1..150).filter(left).count(), 149, "the others have heard of it soon after");
    assert!(!network.node(0).has_left(), "they will hear it again");
    network.run(SECOND);
    assert!(network.node(0).has_left());
}

#[test]
fn ping_req_is_answered_when_the_other_answers() {
    let mut network = Network::of(5, 1, Weather::fair());
    network.run(SECOND);
    let relayed = |network: &Network| network.counter(0, Counter::PongsRelayed);
    say(&mut network, 1, EPOCH_US, 0, ping_req(life(2, EPOCH_US)));
    network.run(2 * MS);
    assert_eq!(relayed(&network), 1);
    // Nobody is there, and nobody can be there.
    let checks = network.counter(0, Counter::ChecksSent);
    for _ in 0..20 {
        say(&mut network, 1, EPOCH_US, 0, ping_req(life(400, 0)));
        network.run(MS);
    }
    let foreign = Life { address: ([192, 0, 2, 1], 7000).into(), incarnation: 0 };
    say(&mut network, 1, EPOCH_US, 0, ping_req(foreign));
    assert_eq!(relayed(&network), 1);
    assert_eq!(network.counter(0, Counter::ChecksSent), checks + 1);
    assert_eq!(network.counter(0, Counter::PingReqsIgnored), 20 - 8 + 1);
}

#[test]
fn who_leaves_is_away_at_once_and_its_sessions_are_its_own_for_the_lease() {
    for loss_percent in [0, 5] {
        let mut network = Network::of(12, 1, Weather::fair());
        let version = network.publish(3, flow(1));
        let other = network.publish(4, flow(2));
        network.settle();
        network.weather = losing(loss_percent);
        network.tell(3, Event::Leave);
        assert!(!network.node(3).has_left());
        network.until("all to be told", 1, |network| network.node(3).has_left());
        network.run(5 * MS);
        network.kill(3);
        let left_us = network.now_us;
        network.weather = Weather::fair();
        for n in (0..12).filter(|n| *n != 3) {
            assert!(network.peer(n, 3).is_none());
            assert!(network.node(n).is_away(locator(3)));
            assert_eq!(network.node(n).life_of(address(3)), 0);
        }
        network.run(2 * SECOND);
        network.settle();
        assert_eq!(network.holders(0, flow(2)), 3, "what it held has moved");
        network.run(50 * SECOND - (network.now_us - left_us));
        for n in (0..12).filter(|n| *n != 3) {
            assert_eq!(network.resolve(n, flow(1)), owner(3, version));
            assert!(network.dead_owners(n).is_empty());
        }
        network.run(15 * SECOND);
        for n in (0..12).filter(|n| *n != 3) {
            assert_eq!(network.dead_owners(n), [locator(3)]);
            assert_eq!(network.resolve(n, flow(1)), Resolution::NotFound);
            assert_eq!(network.resolve(n, flow(2)), owner(4, other));
            assert_eq!(network.counter(n, Counter::LeasesEnded), 1);
            assert_eq!(network.counter(n, Counter::PeersDead), 0);
        }
    }
}

#[test]
fn who_comes_back_within_the_lease_keeps_its_sessions() {
    // Node 0 is the one that the others join by, so nobody looks for it but those it has left.
    for restarted in [0, 3] {
        let mut network = Network::of(12, 1, Weather::fair());
        let version = network.publish(restarted, flow(1));
        network.settle();
        network.tell(restarted, Event::Leave);
        network.until("all to be told", 1, |network| network.node(restarted).has_left());
        network.kill(restarted);
        network.run(SECOND);
        let started_us = network.now_us;
        network.start(config(restarted));
        network.until("all to know all", 5, |network| network.is_complete());
        assert!(network.now_us - started_us <= 1500 * MS, "{}", network.now_us - started_us);
        for n in (0..12).filter(|n| *n != restarted) {
            assert!(!network.node(n).is_away(locator(restarted)));
            assert_eq!(network.counter(n, Counter::PeersRestarted), 1);
        }
        network.publish_version(restarted, flow(1), version);
        network.run(70 * SECOND);
        for n in 0..12 {
            assert_eq!(network.resolve(n, flow(1)), owner(restarted, version));
            assert!(network.dead_owners(n).is_empty());
        }
    }
}

#[test]
fn after_leave_a_node_is_silent() {
    let mut network = Network::of(3, 1, Weather::fair());
    network.tell(1, Event::Leave);
    network.tell(1, Event::Leave);
    network.run(SECOND);
    let delivered = network.delivered;
    assert!(network.node(1).has_left());
    assert_eq!(network.counter(0, Counter::PeersLeft), 1, "the other times it had left already");
    assert_eq!(network.counter(0, Counter::AfterLeave), 2);
    say(&mut network, 2, EPOCH_US, 1, Message::Ping);
    assert_eq!(network.resolve(1, flow(1)), Resolution::TimedOut);
    network.publish(1, flow(1));
    network.run(SECOND);
    assert_eq!(network.counter(1, Counter::AfterLeave), network.counter(1, Counter::AfterLeave));
    assert_eq!(network.node(1).gauges().published, 0);
    // The others look for it, and are not answered.
    assert!(network.delivered > delivered);
    assert_eq!(network.node(0).gauges().peers, 1);
}

#[test]
fn a_new_incarnation_is_noticed_by_its_first_datagram_and_an_older_one_is_not_heard() {
    let mut network = Network::of(4, 1, Weather::fair());
    network.run(SECOND);
    let incarnation = |network: &Network| network.peer(0, 1).map(|peer| peer.incarnation);
    let life_before = network.node(0).life_of(address(1));
    say(&mut network, 1, EPOCH_US + 5, 0, Message::Alive);
    assert_eq!(incarnation(&network), Some(EPOCH_US + 5));
    assert_eq!(network.counter(0, Counter::PeersRestarted), 1);
    assert_eq!(network.node(0).life_of(address(1)), life_before, "it never was away");
    // The real node 1 is older now, and dead to node 0 for a minute.
    network.run(3500 * MS);
    assert_eq!(incarnation(&network), None);
    assert!(network.counter(0, Counter::OlderIncarnation) > 0);
    network.run(50 * SECOND);
    assert_eq!(incarnation(&network), None);
    network.run(20 * SECOND);
    assert_eq!(incarnation(&network), Some(EPOCH_US));
    assert_ne!(network.node(0).life_of(address(1)), life_before);
}

#[test]
fn each_entry_into_the_table_is_another_life() {
    let mut network = Network::of(4, 1, Weather::fair());
    assert_eq!(network.node(0).life_of(address(9)), 0);
    let mut lives = BTreeSet::from([0]);
    for _ in 0..3 {
        assert!(lives.insert(network.node(0).life_of(address(1))));
        for other in [0, 2, 3] {
            network.cut(1, other);
        }
        network.run(4 * SECOND);
        assert_eq!(network.node(0).life_of(address(1)), 0);
        network.heal();
        network.until("all to know all", 5, |network| network.is_complete());
    }
}

#[test]
fn the_lease_is_configured() {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..4 {
        let mut config = config(n);
        config.lease = Duration::from_secs(3);
        network.start(config);
    }
    network.until("all to know all", 5, |network| network.is_complete());
    network.tell(1, Event::Leave);
    network.run(2900 * MS);
    assert!(network.dead_owners(0).is_empty());
    network.run(200 * MS);
    assert_eq!(network.dead_owners(0), [locator(1)]);
}
