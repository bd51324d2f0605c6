//! The deterministic simulator: thousands of nodes in virtual time, what it promises of itself, and
//! a part of what `scripts/simulate` tries at full size.

mod common;

use common::churn::Churn;
use common::matrix::{Effort, Row};
use common::sessions::Sessions;
use common::storms::{self, Storm};
use common::{MS, Network, SECOND, Skew, Weather, config, flow, owner};
use holdfast_dht::Counter;
use holdfast_dht::id::IdHasher;
use holdfast_handoff::{Resolution, Version};

fn churn(seed: u64) -> Churn {
    Churn {
        seed,
        nodes: 8,
        flows: 60,
        seconds: 60,
        peace_every_s: 30,
        pause_us: 4 * MS,
        skew_us: 120 * SECOND,
        divides: false,
    }
}

// --- the simulator itself ------------------------------------------------------------------------

#[test]
fn one_seed_makes_one_run_to_the_byte() {
    let run = |seed| {
        let outcome = Churn { seconds: 20, ..churn(seed) }.run();
        (outcome.fingerprint, outcome.delivered)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn a_clone_goes_the_same_way() {
    let mut network = Network::of(12, 1, Weather::foul());
    for n in 0..40 {
        network.publish(n % 12, flow(n));
    }
    let mut clone = network.clone();
    for network in [&mut network, &mut clone] {
        network.kill(5);
        network.run(5 * SECOND);
    }
    assert_eq!(network.fingerprint, clone.fingerprint);
    clone.ask(1, flow(1));
    clone.run(SECOND);
    network.run(SECOND);
    assert_ne!(network.fingerprint, clone.fingerprint);
}

#[test]
fn damage_does_not_pass_the_seal() {
    let mut network = Network::of(6, 1, Weather::fair());
    network.weather.damage_percent = 20;
    network.run(5 * SECOND);
    assert!(network.refused > 0);
    assert_eq!(network.total(Counter::Malformed) + network.total(Counter::WrongId), 0);
    network.sealed = false;
    network.run(5 * SECOND);
    assert!(network.total(Counter::Malformed) + network.total(Counter::WrongId) > 0);
}

#[test]
fn a_stalled_host_takes_its_datagrams_late() {
    let mut network = Network::of(3, 1, Weather::fair());
    let version = network.publish(1, flow(1));
    network.settle();
    network.run(SECOND);
    for n in [0, 2] {
        network.stall(n, 300 * MS);
    }
    let delivered = network.delivered;
    network.run(200 * MS);
    assert_eq!(network.delivered, delivered, "only node 1 is awake, and nobody speaks to it");
    network.run(200 * MS);
    assert!(network.delivered > delivered);
    assert_eq!(network.resolve(0, flow(1)), owner(1, version));
    assert_eq!(network.total(Counter::PeersDead), 0, "a slow node is not a dead node");
}

#[test]
fn a_slow_host_takes_one_datagram_after_the_other() {
    let mut network = Network::of(2, 1, Weather::even(100));
    for n in 0..50 {
        network.publish(1, flow(n));
    }
    network.settle();
    network.run(SECOND);
    network.slow_down(0, 10 * MS);
    let before = network.counter(0, Counter::DatagramsReceived);
    for n in 0..100 {
        network.ask(1, flow(1000 + n));
    }
    network.run(500 * MS);
    let taken = network.counter(0, Counter::DatagramsReceived) - before;
    assert!((1..=51).contains(&taken), "{taken}");
}

#[test]
fn clocks_drift_and_wall_clocks_are_wrong() {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..6 {
        let skew = Skew { wall_us: (n as i64 - 3) * 60 * SECOND as i64, drift_ppm: n as i64 * 40 };
        network.start_skewed(config(n), skew);
    }
    network.until("all to know all", 20, |network| network.is_complete());
    network.run(100 * SECOND);
    let ahead = network.publish_by_clock(5, flow(1));
    let behind = network.publish_by_clock(0, flow(2));
    // Five minutes apart, and 200 millionths of 100 s.
    let apart_us = ahead.0 - behind.0;
    assert!(apart_us.abs_diff(300 * SECOND + 20 * MS) < 2 * MS, "{apart_us}");
    network.settle();
    assert_eq!(network.resolve(3, flow(1)), owner(5, ahead));
    assert_eq!(network.resolve(3, flow(2)), owner(0, behind));
    // A server whose clock is behind, and has not heard of the version, takes the flow over all
    // the same.
    let id = IdHasher::new(&common::ID_KEY).flow(&flow(1));
    let holders = network.holders_in_truth(id, ahead);
    let stranger = (0..5).find(|n| !holders.contains(n)).expect("three of six hold it");
    let taken = network.publish_by_clock(stranger, flow(1));
    assert!(taken < ahead);
    network.settle();
    let resolution = network.resolve(3, flow(1));
    let is_strangers = |r| {
        matches!(r, Resolution::Owner { locator, version }
        if locator == common::locator(stranger) && version > ahead)
    };
    assert!(is_strangers(resolution), "{resolution:?}");
}

#[test]
fn a_wall_stops_one_direction_only() {
    let mut network = Network::of(4, 1, Weather::fair());
    network.divide(|n| u8::from(n == 3), 4, true);
    assert!(!network.passes(0, 3));
    network.run(5 * SECOND);
    // Nothing reaches node 3, so it counts as dead, and hears nobody.
    assert_eq!(network.node(3).gauges().peers, 0);
    assert!(!network.is_complete());
    network.heal();
    network.until("all to meet again", 60, |network| network.is_complete());
}

#[test]
fn the_model_notices_what_is_wrong() {
    let mut network = Network::large(6, 1, Weather::fair());
    let mut sessions = Sessions::new(20);
    for f in 0..10 {
        sessions.begin(&mut network, f % 6, f);
    }
    network.settle();
    sessions.look(&mut network);
    assert_eq!(sessions.tally.acked, 10);
    network.run(15 * SECOND);
    sessions.check_at_peace(&mut network, &[0, 1, 2, 3, 4, 5]);
    assert_eq!(network.faults, Vec::<String>::new());
    // A session ends that the model does not know the end of, and another is taken over without a
    // word to its server.
    let version = network.version();
    network.withdraw(1, flow(1), version);
    let hasher = IdHasher::new(&common::ID_KEY);
    let holds = |n: usize| network.node(n).record(hasher.flow(&flow(n))).is_some();
    let taken = [0, 2, 4].into_iter().find(|f| !holds(*f)).expect("a server that is no replica");
    (0..6).filter(|n| *n != taken).for_each(|n| network.cut_one_way(n, taken));
    let version = network.version();
    network.publish_version(3, flow(taken), version);
    network.run(10 * MS);
    (0..6).filter(|n| *n != taken).for_each(|n| network.mend(n, taken));
    network.settle();
    network.run(SECOND);
    for f in [1, taken] {
        sessions.ask(&mut network, 5, f);
        network.run(SECOND);
        sessions.judge(&mut network);
    }
    assert!(network.faults.iter().any(|f| f.contains("it never was")), "{:?}", network.faults);
    let (mut copy, mut same_sessions) = (network.clone(), sessions.clone());
    same_sessions.check_at_peace(&mut copy, &[0, 1, 2, 3, 4, 5]);
    assert_eq!(same_sessions.tally.given_up, 1, "{:?}", copy.faults);
    let copies = format!("flow {taken} has copies at None");
    for what in [&copies, "3 publishes 3 sessions and has 2", "a replica of"] {
        assert!(copy.faults.iter().any(|f| f.contains(what)), "{:?}", copy.faults);
    }
    // A session that is stored nowhere.
    network.weather.loss_percent = 100;
    sessions.begin(&mut network, 0, 15);
    sessions.check_at_peace(&mut network, &[0, 1, 2, 3, 4, 5]);
    assert!(
        network.faults.iter().any(|f| f.contains("flow 15 has copies at None")),
        "{:?}",
        network.faults
    );
}

// --- what it has found ---------------------------------------------------------------------------

#[test]
fn r8_what_an_earlier_life_stored_above_our_clock_is_deleted() {
    // Churn with wrong clocks, seed 1: the versions of others had pushed the server's clock ahead.
    let mut network = Network::of(8, 1, Weather::fair());
    let ahead = Version(network.unix_us() + 60 * SECOND);
    network.publish_version(1, flow(1), ahead);
    network.settle();
    network.kill(1);
    network.start(config(1));
    network.run(3 * SECOND);
    let version = network.publish(1, flow(1));
    assert!(version < ahead);
    network.withdraw(1, flow(1), version);
    network.settle();
    for n in 0..8 {
        assert_eq!(network.resolve(n, flow(1)), Resolution::NotFound, "node {n}");
    }
}

// --- the matrix ----------------------------------------------------------------------------------

/// A row of the matrix, with all that must hold in each cell whatever its size.
fn check_row(nodes: usize, loss_percent: u32, killed: &[u32], effort: Effort) {
    let row = Row::new(nodes, loss_percent, effort.sessions, 7);
    assert!(1000 * row.irregular() <= effort.sessions, "{} irregular", row.irregular());
    for killed_percent in killed {
        let cell = row.kill(*killed_percent, effort, 7);
        let what = format!("{}\n{}", common::matrix::Cell::HEADINGS, cell.line());
        assert_eq!(cell.wrong, 0, "{what}");
        assert_eq!(cell.denied, 0, "denied although a replica lives\n{what}");
        assert!(cell.not_found == 0, "nobody has repaired yet: too few answer\n{what}");
        // Whoever has a live replica is found; where datagrams are lost, nearly.
        let missed = cell.alive.saturating_sub(cell.found - cell.told_by_owner);
        let may_miss = if loss_percent < 5 { 0 } else { cell.lookups / 50 };
        assert!(missed <= may_miss, "{missed} missed\n{what}");
        assert_eq!(cell.repaired_found, cell.repaired, "not all found when repaired\n{what}");
    }
}

#[test]
fn matrix_of_4_servers() {
    let effort = Effort { sessions: 200, kills: 12, lookups: 100, repairs: 3 };
    for loss in [0, 1, 5, 20] {
        check_row(4, loss, &[1, 50], effort);
    }
}

#[test]
fn matrix_of_16_servers() {
    let effort = Effort { sessions: 400, kills: 4, lookups: 200, repairs: 1 };
    for loss in [0, 5, 20] {
        check_row(16, loss, &[10, 25, 50], effort);
    }
}

#[test]
fn matrix_of_64_servers() {
    let effort = Effort { sessions: 1000, kills: 2, lookups: 1000, repairs: 1 };
    for loss in [0, 5, 20] {
        check_row(64, loss, &[10, 50], effort);
    }
}

#[test]
fn survival_is_one_minus_the_cube_of_the_dead() {
    // Of the replicas as they are stored, not of lookups: exact, and cheap for many servers.
    for (nodes, killed_percent) in [(16, 25), (64, 25), (64, 50), (128, 50)] {
        let row = Row::new(nodes, 0, 2000, 3);
        let (expected, limit) = row.survival(killed_percent);
        let survived = row.survival_of_samples(killed_percent, 2000, 5);
        assert!((survived - expected).abs() < 0.01, "{nodes}: {survived}, not {expected}");
        if nodes >= 64 {
            assert!((expected - limit).abs() < 0.01, "{nodes}: {expected}, not {limit}");
        }
    }
}

// --- storms and churn ----------------------------------------------------------------------------

fn passes(storm: Storm) {
    assert!(storm.faults.is_empty(), "{}: {}\n{:#?}", storm.name, storm.seen, storm.faults);
}

#[test]
fn all_restart_at_once() {
    passes(storms::all_restart(24, 10, 1));
}

#[test]
fn many_lookups_at_one_node() {
    passes(storms::many_lookups(12, 200_000, 1));
}

#[test]
fn a_partition_heals() {
    passes(storms::partition_heals(15, 10, 1));
}

#[test]
fn a_link_flaps() {
    passes(storms::flapping_link(12, 10, 1));
}

#[test]
fn damaged_datagrams_crash_nobody() {
    passes(storms::damage(8, 20, 1));
}

#[test]
fn churn_with_wrong_clocks() {
    for seed in 0..4 {
        let outcome = churn(seed).run();
        assert!(outcome.faults.is_empty(), "{outcome:#?}");
        assert!(outcome.peaces >= 2 && outcome.tally.acked > 500, "{outcome:#?}");
    }
}

#[test]
fn churn_with_partitions() {
    for seed in 0..4 {
        let outcome = Churn { skew_us: 2 * MS, divides: true, ..churn(seed) }.run();
        assert!(outcome.faults.is_empty(), "{outcome:#?}");
        assert!(outcome.partitions > 0, "{outcome:#?}");
    }
}
