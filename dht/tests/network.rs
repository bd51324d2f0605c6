//! Some dozens of nodes on a network in memory that loses, delays, reorders and duplicates.

mod common;

use common::{MS, Network, Resolved, SECOND, Weather, address, config, flow, locator, owner};
use holdfast_dht::batch;
use holdfast_dht::id::IdHasher;
use holdfast_dht::message::{DATAGRAM_MAX, Datagram, Life, Message, Sender};
use holdfast_dht::{Claim, Config, Counter, Event, Id, Outcome, Statement};
use holdfast_handoff::{Announcement, Answer, Resolution, Resolve, Version};
use holdfast_net::FlowKey;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use std::net::IpAddr;
use std::time::Duration;

#[test]
fn nodes_find_each_other_through_one() {
    for seed in 0..5 {
        let network = Network::of(40, seed, Weather::foul());
        assert!(network.now_us < 10 * SECOND, "took {} us", network.now_us);
    }
}

#[test]
fn one_seed_makes_one_run() {
    let run = |seed| {
        let mut network = Network::of(12, seed, Weather::foul());
        for n in 0..50 {
            network.publish(n % 12, flow(n));
        }
        network.settle();
        network.kill(3);
        network.run(5 * SECOND);
        (network.fingerprint, network.delivered, network.now_us)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn r3_r8_a_session_is_found_from_everywhere_until_it_is_withdrawn() {
    for weather in [Weather::fair(), Weather::foul()] {
        let mut network = Network::of(30, 1, weather);
        let version = network.publish(4, flow(1));
        network.settle();
        assert_eq!(network.holders(9, flow(1)), 3);
        for n in 0..30 {
            assert_eq!(network.resolve_patiently(n, flow(1)), owner(4, version));
            assert_eq!(network.resolve_patiently(n, flow(2)), Resolution::NotFound);
        }
        network.withdraw(4, flow(1), version);
        network.settle();
        for n in 0..30 {
            assert_eq!(network.resolve_patiently(n, flow(1)), Resolution::NotFound);
        }
        assert_eq!(network.holders(9, flow(1)), 0);
    }
}

#[test]
fn with_all_nodes_known_a_lookup_is_one_hop() {
    let mut network = Network::of(30, 1, Weather::fair());
    let version = network.publish(4, flow(1));
    network.settle();
    for n in 0..30 {
        let before_us = network.now_us;
        assert_eq!(network.resolve(n, flow(1)), owner(4, version));
        // There and back.
        assert!(network.now_us - before_us < 2 * network.weather.delay_us.end);
    }
    let stats = network.node(4).stats();
    assert_eq!(stats.setting_time_us.count, 1);
    let found: u64 = (0..30).map(|n| network.node(n).stats().lookup_time_found_us.count).sum();
    // The replicas, and the owner itself, need not ask.
    assert!((26..=29).contains(&found), "{found}");
}

#[test]
fn r8_a_record_withdrawn_before_it_was_stored_is_deleted_all_the_same() {
    for seed in 0..20 {
        let mut network = Network::of(10, seed, Weather::foul());
        let version = network.publish(4, flow(1));
        network.run(seed % 4 * 100);
        network.withdraw(4, flow(1), version);
        network.settle();
        assert_eq!(network.holders(9, flow(1)), 0, "seed {seed}");
        network.run(15 * SECOND);
        assert_eq!(network.holders(9, flow(1)), 0, "seed {seed}");
    }
}

#[test]
fn r8_a_withdraw_may_overtake_its_publish_between_workers() {
    let mut network = Network::of(5, 1, Weather::fair());
    let version = network.version();
    network.withdraw(1, flow(1), version);
    network.run(SECOND);
    network.publish_version(1, flow(1), version);
    network.settle();
    assert_eq!(network.holders(0, flow(1)), 0);
    assert_eq!(network.counter(1, Counter::PublishesRepeated), 1);
}

#[test]
fn r12_the_newer_session_wins_and_the_old_owner_cannot_touch_it() {
    for seed in 0..10 {
        let mut network = Network::of(10, seed, Weather::foul());
        let old = network.publish(1, flow(1));
        network.settle();
        network.run(SECOND);
        let new = network.publish(2, flow(1));
        network.settle();
        // The old owner's late withdraw.
        network.withdraw(1, flow(1), old);
        network.settle();
        for n in [0, 1, 2, 5, 9] {
            let resolution = network.resolve_patiently(n, flow(1));
            assert_eq!(resolution, owner(2, new), "seed {seed}, node {n}");
        }
        assert_eq!(network.holders(9, flow(1)), 3);
    }
}

#[test]
fn r12_an_old_owners_refresh_does_not_take_the_flow_back() {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..6 {
        let mut config = config(n);
        config.record_ttl = Duration::from_secs(4);
        network.start(config);
    }
    network.until("all to know all", 20, |network| network.is_complete());
    network.publish(1, flow(1));
    network.publish(1, flow(2));
    network.settle();
    network.run(SECOND / 2);
    // Whether the new owner's clock is right or ahead.
    let new = network.publish(2, flow(1));
    let ahead = Version(network.unix_us() + 60 * SECOND);
    network.publish_version(2, flow(2), ahead);
    network.run(6 * SECOND);
    assert_eq!(network.counter(1, Counter::PublishesSuperseded), 2);
    assert_eq!(network.counter(1, Counter::PublishesRaised), 0);
    assert_eq!(network.counter(2, Counter::PublishesRaised), 0);
    assert!(network.counter(2, Counter::RecordsRefreshed) >= 2);
    assert_eq!(network.resolve(5, flow(1)), owner(2, new));
    assert_eq!(network.resolve(5, flow(2)), owner(2, ahead));
    assert_eq!(network.node(1).gauges().published, 0);
}

/// A network of `n` nodes in which each record is stored again within 4 seconds.
fn network_of_refreshes(n: usize) -> Network {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..n {
        let mut config = config(n);
        config.record_ttl = Duration::from_secs(4);
        network.start(config);
    }
    network.until("all to know all", 20, |network| network.is_complete());
    network
}

/// The replicas of a flow.
fn replicas(network: &mut Network, flow: FlowKey) -> Vec<usize> {
    let report = network.survey(0, flow);
    report.replicas.iter().map(|replica| common::number(replica.locator)).collect()
}

#[test]
fn a_survey_says_how_long_each_replica_took() {
    let mut network = Network::of(8, 1, Weather::even(100));
    network.publish(1, flow(1));
    network.settle();
    for asker in 0..8 {
        let report = network.survey(asker, flow(1));
        assert_eq!(report.replicas.len(), 3);
        for replica in report.replicas {
            let expected = (replica.locator != locator(asker)).then_some(200);
            assert_eq!(replica.rtt_us, expected, "{asker}: {replica:?}");
        }
    }
}

#[test]
fn r12_reuse_at_another_server_tells_the_old_owner_at_once() {
    let mut network = Network::of(8, 1, Weather::even(100));
    for n in 0..40 {
        network.publish(1, flow(n));
    }
    network.settle();
    network.run(SECOND);
    let new: Vec<Version> = (0..40).map(|n| network.publish(2, flow(n))).collect();
    // There, and on from there; more than 40 records do not leave in one batch.
    network.run(5 * 100);
    let mut told = network.superseded(1).to_vec();
    told.sort_unstable_by_key(|(_, version, owner)| (*version, *owner));
    told.sort_by_key(|(told, ..)| (0..40).position(|n| flow(n) == *told));
    let expected: Vec<_> = (0..40).map(|n| (flow(n), new[n], locator(2))).collect();
    assert_eq!(told, expected, "each once");
    assert_eq!(network.node(1).gauges().published, 0);
    network.settle();
    for n in [0, 2, 3, 4, 5, 6, 7] {
        assert_eq!(network.superseded(n), [], "node {n}");
    }
    // The old owner is a replica of some itself; all others tell it.
    let at_home = (0..40).filter(|n| replicas(&mut network, flow(*n)).contains(&1)).count() as u64;
    assert!((1..39).contains(&at_home), "{at_home}");
    let sent = network.total(Counter::SupersededSent);
    // No replica does that heard the old owner's DELETE before the STORE.
    assert!((60..=3 * 40 - at_home).contains(&sent), "{sent}");
    assert_eq!(network.counter(1, Counter::SupersededReceived), sent);
    assert_eq!(network.counter(1, Counter::PublishesSuperseded), 40);
    assert!(network.counter(1, Counter::SupersededIgnored) >= sent - 40);
    for (n, new) in new.into_iter().enumerate() {
        assert_eq!(network.resolve(1, flow(n)), owner(2, new));
        assert_eq!(network.holders(1, flow(n)), 3);
    }
}

#[test]
fn r12_a_servers_own_records_and_what_is_deleted_tell_nobody() {
    let mut network = network_of_refreshes(6);
    for n in 0..20 {
        network.publish(1, flow(n));
    }
    network.settle();
    network.run(SECOND);
    // Sessions anew at the same server, refreshes, another replica, and a restart.
    for n in 0..10 {
        network.publish(1, flow(n));
    }
    network.run(5 * SECOND);
    assert!(network.counter(1, Counter::RecordsRefreshed) >= 20);
    network.start(config(6));
    network.run(3 * SECOND);
    assert!(network.counter(1, Counter::RecordsMoved) > 0);
    network.kill(1);
    network.start(config(1));
    network.run(3 * SECOND);
    let versions: Vec<Version> = (0..20).map(|n| network.publish(1, flow(n))).collect();
    network.settle();
    // A flow whose last session has ended.
    for (n, version) in versions.into_iter().enumerate() {
        network.withdraw(1, flow(n), version);
    }
    network.settle();
    for n in 0..20 {
        network.publish(2, flow(n));
    }
    network.settle();
    assert_eq!(network.total(Counter::SupersededSent), 0);
    for n in 0..7 {
        assert_eq!(network.superseded(n), [], "node {n}");
    }
}

#[test]
fn r12_a_superseded_owner_does_not_store_again() {
    let mut network = network_of_refreshes(6);
    network.publish(1, flow(1));
    network.settle();
    network.run(SECOND / 2);
    let new = network.publish(2, flow(1));
    network.run(3 * SECOND);
    assert_eq!(network.superseded(1), [(flow(1), new, locator(2))]);
    assert_eq!(network.node(1).is_settled(&flow(1)), None, "nothing is left to look after");
    let sent = network.counter(1, Counter::RequestsSent);
    network.run(6 * SECOND);
    assert!(network.counter(2, Counter::RecordsRefreshed) >= 2);
    assert_eq!(network.counter(1, Counter::RecordsRefreshed), 0);
    assert_eq!(network.counter(1, Counter::PublishesStale), 0);
    assert!(network.counter(1, Counter::RequestsSent) > sent, "probes only, but these");
    assert_eq!(network.total(Counter::SupersededSent), network.total(Counter::SupersededReceived));
    assert_eq!(network.holders(5, flow(1)), 3);
    assert_eq!(network.resolve(1, flow(1)), owner(2, new));
    // The flow's next session here is as good as any.
    let newest = network.publish(1, flow(1));
    network.settle();
    assert_eq!(network.superseded(2), [(flow(1), newest, locator(1))]);
    assert_eq!(network.superseded(1).len(), 1);
    assert_eq!(network.resolve(5, flow(1)), owner(1, newest));
}

#[test]
fn r12_the_loss_of_a_word_that_a_session_is_superseded_is_harmless() {
    let mut network = network_of_refreshes(8);
    let f = (0..100).find(|f| !replicas(&mut network, flow(*f)).iter().any(|r| [1, 2].contains(r)));
    let f = flow(f.expect("a flow with other replicas"));
    let replicas = replicas(&mut network, f);
    network.publish(1, f);
    network.settle();
    network.run(SECOND / 2);
    let before = network;
    for lost in [&replicas[..1], &replicas[1..2], &replicas[2..], &replicas[1..]] {
        let mut network = before.clone();
        lost.iter().for_each(|replica| network.cut_one_way(*replica, 1));
        let new = network.publish(2, f);
        network.run(10 * MS);
        assert_eq!(network.superseded(1), [(f, new, locator(2))]);
        lost.iter().for_each(|replica| network.mend(*replica, 1));
        network.settle();
        assert_eq!(network.resolve(1, f), owner(2, new));
    }
    // Of all of them: the owner hears it when it stores again.
    let mut network = before;
    replicas.iter().for_each(|replica| network.cut_one_way(*replica, 1));
    let new = network.publish(2, f);
    network.run(10 * MS);
    replicas.iter().for_each(|replica| network.mend(*replica, 1));
    assert_eq!(network.superseded(1), []);
    network.run(4 * SECOND);
    assert_eq!(network.superseded(1), [(f, new, locator(2))]);
    assert!(network.counter(1, Counter::PublishesStale) > 0);
}

#[test]
fn r12_a_late_publish_of_a_superseded_session_is_answered_with_the_newer_one() {
    let mut network = Network::of(6, 1, Weather::fair());
    let old = network.version();
    network.run(SECOND);
    let new = network.publish(2, flow(1));
    network.settle();
    network.publish_version(1, flow(1), old);
    network.run(10 * MS);
    assert_eq!(network.superseded(1), [(flow(1), new, locator(2))]);
    assert_eq!(network.total(Counter::SupersededSent), 0, "the answers say it");
    assert_eq!(network.node(1).gauges().published, 0);
}

#[test]
fn r12_only_a_greater_claim_of_another_living_member_supersedes() {
    let mut network = Network::of(4, 1, Weather::fair());
    let version = network.publish(0, flow(1));
    network.settle();
    let hasher = IdHasher::new(&common::ID_KEY);
    let sender = Sender {
        id: network.node(1).id(),
        locator: locator(1),
        incarnation: network.peer(0, 1).expect("known").incarnation,
    };
    let tell = |network: &mut Network, flow_n: usize, version: u64, owner: IpAddr| {
        let claim = Claim { version: Version(version), owner };
        let message = Message::Superseded { id: hasher.flow(&flow(flow_n)), claim };
        let datagram = Datagram { sender, transaction: 0, message };
        let mut bytes = [0; DATAGRAM_MAX];
        let len = datagram.encode(&mut bytes).expect("fits");
        network.tell(0, Event::Datagram { from: address(1), bytes: &bytes[..len] });
    };
    let greater = version.0 + 1;
    let far = network.unix_us() + 3601 * SECOND;
    let refused = [
        (2, greater, locator(3)),
        (1, version.0 - 1, locator(3)),
        (1, greater, locator(0)),
        (1, greater, [192, 0, 2, 1].into()),
        (1, far, locator(3)),
        (1, u64::MAX, locator(3)),
    ];
    for (flow, version, owner) in refused {
        tell(&mut network, flow, version, owner);
    }
    assert_eq!(network.counter(0, Counter::SupersededIgnored), refused.len() as u64);
    assert_eq!(network.superseded(0), []);
    assert_eq!(network.node(0).gauges().published, 1);
    // Of equal versions the greater owner's.
    tell(&mut network, 1, version.0, locator(3));
    assert_eq!(network.superseded(0), [(flow(1), version, locator(3))]);
    assert_eq!(network.node(0).gauges().published, 0);
    // Nobody tunnels to a server that is dead.
    let version = network.publish(0, flow(2));
    network.settle();
    network.kill(3);
    network.until("the death to be noticed", 10, |network| network.is_complete());
    tell(&mut network, 2, version.0 + 1, locator(3));
    assert_eq!(network.superseded(0).len(), 1);
    assert_eq!(network.node(0).gauges().published, 0);
}

#[test]
fn r12_words_that_sessions_are_superseded_do_not_fill_the_queue() {
    let mut network = Network::of(3, 1, Weather::fair());
    let batch = |network: &Network, from: usize, base: u32| {
        let header = batch::Header {
            incarnation: network.peer(0, from).expect("known").incarnation,
            receiver: network.peer(1, 0).expect("known").incarnation,
            base,
            life: 0,
        };
        let mut bytes = [0; DATAGRAM_MAX];
        let mut writer = batch::Writer::new(&header, &mut bytes);
        for n in base..base + 50 {
            let store = batch::Request::Store(Id(n.into()), Version(from as u64));
            assert!(writer.request(n, &store));
        }
        (writer.len(), bytes)
    };
    // A socket that takes nothing: what the node wants to send waits.
    let mut node = network.node(0).clone();
    let mut tell = |from: usize, base| {
        let (len, bytes) = batch(&network, from, base);
        let from = address(from);
        node.handle(0, Event::Datagram { from, bytes: &bytes[..len] }).for_each(drop);
    };
    for base in (0..5000).step_by(50) {
        tell(1, base);
        tell(2, base);
    }
    let sent = node.counters().get(Counter::SupersededSent);
    let unsent = node.counters().get(Counter::SupersededUnsent);
    assert_eq!(sent + unsent, 5000);
    assert!((4000..=4096).contains(&sent), "{sent}");
    assert_eq!(node.counters().get(Counter::MessagesDropped), 0);
    network.run(MS);
}

#[test]
fn r12_a_publish_from_a_server_whose_clock_is_behind_is_raised() {
    let mut network = Network::of(6, 1, Weather::fair());
    let ahead = Version(network.unix_us() + 60 * SECOND);
    network.publish_version(1, flow(1), ahead);
    network.settle();
    let behind = network.publish(2, flow(1));
    network.settle();
    let raised = Version(ahead.0 + 1);
    assert_eq!(network.resolve(5, flow(1)), owner(2, raised));
    assert_eq!(network.counter(2, Counter::PublishesRaised), 1);
    assert!(network.observed(2).contains(&ahead));
    // The worker knows its session by the version that it gave.
    network.withdraw(2, flow(1), behind);
    network.settle();
    assert_eq!(network.resolve(5, flow(1)), Resolution::NotFound);
}

/// It is not known to be later than the session of the claim, whosever clock is behind.
#[test]
fn r12_what_was_learnt_is_not_raised_above_another_servers_session() {
    let mut network = Network::of(6, 1, Weather::fair());
    let ahead = Version(network.unix_us() + SECOND);
    network.publish_version(1, flow(1), ahead);
    network.settle();
    network.publish_version(2, flow(1), Version::UNKNOWN);
    network.settle();
    assert_eq!(network.resolve(5, flow(1)), owner(1, ahead));
    assert_eq!(network.counter(2, Counter::PublishesRaised), 0);
    assert_eq!(network.counter(2, Counter::PublishesSuperseded), 1);
    // Above a record of its own, from before a restart, it is.
    let old = network.publish(3, flow(2));
    network.settle();
    network.kill(3);
    network.run(300 * MS);
    network.start(config(3));
    network.until("it to be known", 4, |network| network.is_complete());
    network.publish_version(3, flow(2), Version::UNKNOWN);
    network.settle();
    assert_eq!(network.resolve(5, flow(2)), owner(3, Version(old.0 + 1)));
}

/// The host has shown that the session lives, when its entry was gone already.
#[test]
fn r7_what_is_learnt_after_it_was_withdrawn_is_published_again() {
    let mut network = Network::of(5, 1, Weather::fair());
    let version = network.publish(1, flow(1));
    network.settle();
    network.withdraw(1, flow(1), version);
    network.run(10 * MS);
    network.publish_version(1, flow(1), Version::UNKNOWN);
    network.settle();
    assert_eq!(network.resolve(3, flow(1)), owner(1, Version(version.0 + 1)));
}

#[test]
fn r12_a_version_from_the_far_future_is_refused() {
    let mut network = Network::of(6, 1, Weather::fair());
    network.publish_version(1, flow(1), Version(u64::MAX));
    network.run(2 * SECOND);
    assert!(network.total(Counter::StoresAhead) > 0);
    assert_eq!(network.resolve(5, flow(1)), Resolution::NotFound);
    let version = network.publish(2, flow(1));
    network.run(2 * SECOND);
    assert_eq!(network.resolve(5, flow(1)), owner(2, version));
}

#[test]
fn r12_a_withdraw_of_an_older_session_is_ignored() {
    let mut network = Network::of(5, 1, Weather::fair());
    let old = network.publish(1, flow(1));
    network.run(SECOND);
    let new = network.publish(1, flow(1));
    network.withdraw(1, flow(1), old);
    network.settle();
    assert_eq!(network.counter(1, Counter::WithdrawsIgnored), 1);
    assert_eq!(network.resolve(0, flow(1)), owner(1, new));
}

#[test]
fn r13_a_dead_server_is_noticed_and_its_records_move() {
    for seed in 0..5 {
        let mut network = Network::of(20, seed, Weather::fair());
        let versions: Vec<Version> = (0..200).map(|n| network.publish(n % 20, flow(n))).collect();
        network.settle();
        assert_eq!(network.total(Counter::RecordsMoved), 0);
        network.kill(7);
        let killed_us = network.now_us;
        network.until("the death to be noticed", 4, |network| network.is_complete());
        let noticed_us = network.now_us - killed_us;
        assert!(noticed_us < 3500 * MS, "took {noticed_us} us");
        for n in (0..20).filter(|n| *n != 7) {
            assert_eq!(network.dead_owners(n), [locator(7)], "workers drop their redirects");
        }
        network.run(SECOND);
        network.settle();
        let moved = network.total(Counter::RecordsMoved);
        for (n, version) in versions.into_iter().enumerate() {
            if n % 20 == 7 {
                assert_eq!(network.resolve(3, flow(n)), Resolution::TimedOut, "it may come back");
            } else {
                assert_eq!(network.resolve(3, flow(n)), owner(n % 20, version));
                assert_eq!(network.holders(3, flow(n)), 3);
            }
        }
        network.run(killed_us + 10 * SECOND + 100 * MS - network.now_us);
        for n in (7..200).step_by(20) {
            assert_eq!(network.resolve(3, flow(n)), Resolution::Orphaned);
        }
        // Only what moved: the dead server held 3 of 20 records.
        assert!((10..=60).contains(&moved), "{moved}");
    }
}

#[test]
fn a_new_server_gets_the_records_that_it_is_closest_to() {
    let mut network = Network::of(10, 3, Weather::fair());
    let versions: Vec<Version> = (0..200).map(|n| network.publish(n % 10, flow(n))).collect();
    network.settle();
    network.start(config(10));
    network.until("it to be known", 20, |network| network.is_complete());
    network.run(SECOND);
    network.settle();
    let moved = network.total(Counter::RecordsMoved);
    let held = network.node(10).gauges().records;
    assert_eq!(moved, held);
    assert!((15..=120).contains(&held), "{held}");
    for (n, version) in versions.into_iter().enumerate() {
        assert_eq!(network.holders(10, flow(n)), 3);
        // Former replicas hear of the deletion too.
        network.withdraw(n % 10, flow(n), version);
    }
    network.settle();
    for n in 0..11 {
        assert_eq!(network.node(n).gauges().records, 0, "node {n}");
    }
}

#[test]
fn a_restarted_server_gets_its_records_back() {
    let mut network = Network::of(5, 1, Weather::fair());
    for n in 0..100 {
        network.publish(n % 4, flow(n));
    }
    network.settle();
    let held = network.node(4).gauges().records;
    assert!(held > 20, "{held}");
    network.kill(4);
    network.run(100 * MS);
    network.start(config(4));
    network.run(3 * SECOND);
    assert_eq!(network.total(Counter::PeersDead), 0);
    assert_eq!(network.total(Counter::PeersRestarted), 4);
    assert_eq!(network.node(4).gauges().records, held);
}

#[test]
fn r5_a_server_that_has_not_joined_does_not_say_not_found() {
    let mut network = Network::new(1, Weather::fair());
    network.start(config(1));
    network.run(20 * SECOND);
    assert_eq!(network.resolve(1, flow(1)), Resolution::TimedOut);
    assert_eq!(network.counter(1, Counter::LookupsNotJoined), 1);
    // Published meanwhile, stored when it has joined.
    let version = network.publish(1, flow(2));
    network.start(config(0));
    network.until("the two to meet", 10, |network| network.is_complete());
    network.settle();
    assert_eq!(network.resolve_patiently(1, flow(1)), Resolution::NotFound);
    assert_eq!(network.resolve(0, flow(2)), owner(1, version));
    assert_eq!(network.holders(0, flow(2)), 2);
}

#[test]
fn r5_a_server_cut_off_from_the_replicas_does_not_say_not_found() {
    let mut network = Network::of(12, 1, Weather::fair());
    network.publish(1, flow(1));
    network.settle();
    let replicas: Vec<_> = network.survey(11, flow(1)).replicas;
    let asker = (2..12)
        .find(|n| replicas.iter().all(|r| r.locator != locator(*n)))
        .expect("more nodes than replicas");
    for n in (0..12).filter(|n| replicas.iter().any(|r| r.locator == locator(*n))) {
        network.cut(asker, n);
    }
    // Asked anew each time, until the replicas count as dead: then nobody can tell.
    let cut_us = network.now_us;
    while network.now_us < cut_us + SECOND {
        assert_eq!(network.resolve(asker, flow(1)), Resolution::TimedOut);
    }
}

#[test]
fn r5_a_server_that_has_lost_all_others_does_not_say_not_found() {
    let mut network = Network::of(2, 1, Weather::fair());
    assert_eq!(network.resolve_patiently(1, flow(1)), Resolution::NotFound);
    network.kill(0);
    network.run(6 * SECOND);
    assert_eq!(network.resolve(1, flow(1)), Resolution::TimedOut);
    assert_eq!(network.counter(1, Counter::LookupsNotJoined), 1);
    network.start(config(0));
    network.until("the two to meet", 20, |network| network.is_complete());
    assert_eq!(network.resolve_patiently(1, flow(1)), Resolution::NotFound);
}

#[test]
fn r5_just_after_a_restart_nobody_says_not_found() {
    let mut unsettled = 0;
    for seed in 0..10 {
        let mut network = Network::of(8, seed, Weather::fair());
        let f = (0..100).map(flow).find(|f| !replicas(&mut network, *f).contains(&1));
        let f = f.expect("a flow with other replicas than its owner");
        let version = network.publish(1, f);
        network.settle();
        network.run(2 * SECOND);
        network.collect();
        let replicas = replicas(&mut network, f);
        let asker = (2..8).find(|n| !replicas.contains(n)).expect("more nodes than replicas");
        // The replicas restart one after the other, and all ask all the time.
        for replica in replicas {
            network.kill(replica);
            network.run(10 * MS);
            network.start(config(replica));
            for _ in 0..10 {
                (0..8).for_each(|n| network.ask(n, f));
                network.run(4 * MS);
            }
        }
        for _ in 0..50 {
            (0..8).for_each(|n| network.ask(n, f));
            network.run(40 * MS);
        }
        unsettled += network.counter(asker, Counter::LookupsUnsettled);
        network.run(SECOND);
        let resolved = network.take_resolved();
        for Resolved { n, at_us, resolution, .. } in resolved {
            let is_sound = [owner(1, version), Resolution::TimedOut].contains(&resolution);
            assert!(is_sound, "{resolution:?} at node {n} at {at_us} us, seed {seed}");
        }
        for n in 0..8 {
            assert_eq!(network.resolve(n, f), owner(1, version), "seed {seed}, node {n}");
        }
        // When all is calm it is said again.
        assert_eq!(network.resolve(asker, flow(1000)), Resolution::NotFound);
    }
    assert!(unsettled > 0, "no record was missing anywhere");
}

#[test]
fn r12_former_replicas_drop_what_has_moved() {
    let mut network = Network::of(8, 1, Weather::fair());
    for n in 0..40 {
        network.publish(1, flow(n));
    }
    network.settle();
    let held = |network: &Network, n| network.node(n).gauges().records;
    assert_eq!((0..8).map(|n| held(&network, n)).sum::<u64>(), 3 * 40);
    network.start(config(8));
    network.until("the new one to be known", 20, |network| network.is_complete());
    network.run(SECOND);
    network.settle();
    // Whoever is no replica any more has dropped what moved to the new server.
    assert!(held(&network, 8) > 0);
    assert_eq!((0..9).map(|n| held(&network, n)).sum::<u64>(), 3 * 40);
    // The owner forgets whom it ever told, and the flows go to another server.
    network.kill(1);
    network.start(config(1));
    network.run(2 * SECOND);
    let versions: Vec<Version> = (0..40).map(|n| network.publish(2, flow(n))).collect();
    network.settle();
    for n in 0..9 {
        for (flow_n, version) in versions.iter().enumerate() {
            assert_eq!(network.resolve(n, flow(flow_n)), owner(2, *version), "node {n}");
        }
    }
}

/// A network of `n` nodes in which a lease lasts 5 seconds.
fn network_of_leases(n: usize) -> Network {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..n {
        let mut config = config(n);
        config.lease = Duration::from_secs(5);
        network.start(config);
    }
    network.until("all to know all", 20, |network| network.is_complete());
    network
}

#[test]
fn r13_the_records_of_a_dead_server_go_when_its_lease_ends() {
    let mut network = network_of_leases(6);
    for n in 0..200 {
        network.publish(n % 2, flow(n));
    }
    network.settle();
    let held = |network: &Network| -> u64 {
        (0..6).filter(|n| *n != 1).map(|n| network.node(n).gauges().records).sum()
    };
    let owners = |network: &Network| network.node(5).gauges().owners;
    assert_eq!(owners(&network), 6, "the contacts and itself");
    network.kill(1);
    network.until("the death to be noticed", 4, |network| network.is_complete());
    network.run(SECOND);
    network.settle();
    // Those of server 0 have moved from server 1 to others, those of server 1 are there yet.
    let before = held(&network);
    assert!((300 + 220..300 + 280).contains(&before), "{before}");
    assert_eq!(network.total(Counter::RecordsExpired), 0);
    network.run(6 * SECOND);
    assert_eq!(held(&network), 300);
    assert_eq!(network.total(Counter::RecordsExpired), before - 300);
    assert_eq!(owners(&network), 5);
}

#[test]
fn r13_a_restarted_servers_sessions_are_found_until_it_has_published_them_again() {
    let mut network = network_of_leases(6);
    let versions: Vec<Version> = (0..20).map(|n| network.publish(1, flow(n))).collect();
    network.settle();
    network.kill(1);
    network.run(300 * MS);
    network.start(config(1));
    let restarted_us = network.now_us;
    // It reads its sessions from the kernel, but half of them have ended meanwhile.
    network.until("it to be known", 4, |network| network.is_complete());
    while network.now_us < restarted_us + 4 * SECOND {
        for (n, version) in versions.iter().enumerate() {
            assert_eq!(network.resolve(3, flow(n)), owner(1, *version));
        }
        if network.node(1).gauges().published == 0 {
            let half = versions[..10].iter().enumerate();
            half.for_each(|(n, version)| network.publish_version(1, flow(n), *version));
        }
        network.run(200 * MS);
    }
    network.settle();
    network.run(4 * SECOND);
    for (n, version) in versions.into_iter().enumerate() {
        let expected = if n < 10 { owner(1, version) } else { Resolution::NotFound };
        assert_eq!(network.resolve(3, flow(n)), expected, "flow {n}");
    }
    assert_eq!(network.total(Counter::PeersDead), 0);
}

#[test]
fn r13_a_servers_sessions_are_nobodys_only_when_a_restart_would_take_no_longer() {
    for within_s in [0, 5, 20] {
        let mut network = Network::new(within_s, Weather::fair());
        for n in 0..6 {
            let restart_within = Duration::from_secs(within_s);
            network.start(Config { restart_within, ..config(n) });
        }
        network.until("all to know all", 20, |network| network.is_complete());
        let version = network.publish(1, flow(1));
        network.settle();
        network.kill(1);
        let killed_us = network.now_us;
        let (mut trusting, mut awaiting) = (0, 0);
        let unsettled_before = network.counter(3, Counter::LookupsUnsettled);
        loop {
            let dead = network.peer(3, 1).is_none();
            let since_us = network.now_us - killed_us;
            match network.resolve(3, flow(1)) {
                Resolution::Orphaned => break,
                Resolution::TimedOut => {
                    assert!(dead, "after {since_us} us");
                    awaiting += 1;
                }
                found => {
                    assert_eq!(found, owner(1, version));
                    assert!(!dead, "nobody tunnels into the void: after {since_us} us");
                    trusting += 1;
                }
            }
            assert!(since_us < 25 * SECOND);
            network.run(50 * MS);
        }
        assert!(trusting > 20, "{trusting}");
        // Since its last sign of life, which was up to a probe before it died.
        let took_us = network.now_us - killed_us;
        let least_us = (within_s * SECOND).saturating_sub(SECOND / 2).max(2 * SECOND);
        // The others are settled again a second after the death.
        assert!((least_us..=(within_s + 1).max(5) * SECOND).contains(&took_us), "{took_us} us");
        let awaited = network.counter(3, Counter::OwnersAwaited);
        let unsettled = network.counter(3, Counter::LookupsUnsettled) - unsettled_before;
        assert_eq!(awaited + unsettled, awaiting);
        assert_eq!(awaited > 0, within_s > 2, "{awaited}");
        assert_eq!(unsettled, 0, "that its owner has died is sure");
        assert_eq!(network.counter(3, Counter::PeersGivenUp), 1);
        assert_eq!(network.dead_owners(3), [locator(1)], "once, when nobody may tunnel to it");
    }
}

#[test]
fn r13_an_answer_says_whose_death_is_why() {
    let mut network = Network::of(6, 1, Weather::fair());
    network.publish(1, flow(1));
    network.settle();
    network.kill(1);
    network.run(4 * SECOND);
    // While it may come back it may have sessions that nobody else knows of.
    for (pause_s, its, nobodys) in [
        (0, Resolution::TimedOut, Resolution::TimedOut),
        (8, Resolution::Orphaned, Resolution::NotFound),
    ] {
        network.run(pause_s * SECOND);
        let why = [(flow(1), its, Some(locator(1))), (flow(2), nobodys, None)];
        for (flow, resolution, dead) in why {
            network.ask(3, flow);
            network.run(SECOND);
            assert_eq!(network.answer(3), Some(Answer::Resolved { flow, resolution, dead }));
        }
    }
}

#[test]
fn r13_a_server_that_was_dead_leads_to_its_sessions_before_it_has_stored_them_again() {
    for dead_s in [4, 8] {
        let mut network = Network::of(6, dead_s, Weather::fair());
        let versions: Vec<Version> = (0..20).map(|n| network.publish(1, flow(n))).collect();
        network.settle();
        network.kill(1);
        network.run(dead_s * SECOND);
        for n in (0..6).filter(|n| *n != 1) {
            assert!(network.peer(n, 1).is_none());
            assert_eq!(network.resolve(n, flow(n)), Resolution::TimedOut);
        }
        network.start(config(1));
        network.until("it to be known", 4, |network| network.is_complete());
        assert_eq!(network.node(1).gauges().published, 0);
        for (n, version) in versions.iter().enumerate() {
            assert_eq!(network.resolve(3, flow(n)), owner(1, *version), "flow {n}");
        }
        // It reads them from its kernel, under versions of their own.
        let anew: Vec<Version> = (0..20).map(|n| network.publish(1, flow(n))).collect();
        network.settle();
        network.run(70 * SECOND);
        for (n, version) in anew.into_iter().enumerate() {
            assert_eq!(network.resolve(3, flow(n)), owner(1, version), "flow {n}");
        }
        assert_eq!(network.total(Counter::PeersGivenUp), 0);
        assert_eq!(network.total(Counter::OwnersDead), 0);
    }
}

#[test]
fn r13_a_daemon_that_crashes_again_and_again_keeps_its_sessions_and_harms_nobody() {
    let mut network = Network::of(4, 1, Weather::fair());
    let version = network.publish(1, flow(1));
    let others: Vec<Version> =
        (2..40).map(|n| network.publish([0, 2, 3][n % 3], flow(n))).collect();
    network.settle();
    for crash in 0..20 {
        network.kill(1);
        // Some crashes are noticed as a death.
        network.run(if crash % 3 == 0 { 4 * SECOND } else { 300 * MS });
        network.start(config(1));
        network.run([50 * MS, 300 * MS, SECOND][crash % 3]);
        network.publish_version(1, flow(1), version);
        for n in [0, 2, 3] {
            let resolved = network.resolve(n, flow(1));
            let is_sound = [owner(1, version), Resolution::TimedOut].contains(&resolved);
            assert!(is_sound, "{resolved:?} after crash {crash}");
            for (f, version) in (2..40).zip(&others) {
                let resolved = network.resolve_patiently(n, flow(f));
                assert_eq!(resolved, owner([0, 2, 3][f % 3], *version), "after crash {crash}");
            }
        }
    }
    network.settle();
    network.run(5 * SECOND);
    assert_eq!(network.resolve(2, flow(1)), owner(1, version));
    assert_eq!(network.total(Counter::PeersGivenUp), 0);
}

#[test]
fn a_partition_shorter_than_a_lease_costs_no_record() {
    let mut network = network_of_leases(6);
    for n in 0..60 {
        network.publish(n % 6, flow(n));
    }
    network.settle();
    (0..3).for_each(|one| (3..6).for_each(|other| network.cut(one, other)));
    network.until("them to part", 5, |network| (0..6).all(|n| network.node(n).gauges().peers == 2));
    network.heal();
    network.until("the halves to meet", 4, |network| network.is_complete());
    network.run(10 * SECOND);
    network.settle();
    assert_eq!(network.total(Counter::RecordsExpired), 0);
    assert!((0..60).all(|n| network.holders(5, flow(n)) == 3));
}

#[test]
fn more_nodes_than_an_answer_names_are_all_found() {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..200 {
        let mut config = config(n);
        config.probe_interval = Duration::from_secs(3600);
        network.start(config);
    }
    network.until("all to know all", 5, |network| network.is_complete());
}

#[test]
fn the_requests_in_flight_are_bounded() {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..8 {
        let mut config = config(n);
        config.lookups_max = 1 << 20;
        network.start(config);
    }
    network.until("all to know all", 20, |network| network.is_complete());
    network.weather.loss_percent = 100;
    for n in 0..120_000 {
        network.ask(1, flow(n));
    }
    let in_flight = network.node(1).gauges().requests_in_flight;
    assert!((3_000..20_000).contains(&in_flight), "{in_flight}");
    network.weather.loss_percent = 0;
    network.run(5 * SECOND);
    assert_eq!(network.node(1).gauges().lookups_in_flight, 0);
    assert!(network.node(1).gauges().requests_in_flight < 20);
    let answers = std::iter::from_fn(|| network.answer(1)).count();
    assert_eq!(answers, 120_000);
}

#[test]
fn a_suspect_is_not_waited_for() {
    let mut network = Network::of(12, 1, Weather::fair());
    let version = network.publish(1, flow(1));
    network.settle();
    let replicas = network.survey(11, flow(1)).replicas;
    let killed = (0..12).find(|n| *n != 1 && replicas[0].locator == locator(*n));
    let killed = killed.expect("another seed: the owner is the first replica");
    network.kill(killed);
    network.run(1700 * MS);
    let alive: Vec<usize> = (0..12).filter(|n| *n != killed).collect();
    for n in alive {
        assert_eq!(network.counter(n, Counter::PeersDead), 0);
        let before_us = network.now_us;
        assert_eq!(network.resolve(n, flow(1)), owner(1, version));
        assert!(network.now_us - before_us < MS, "node {n}");
    }
    assert!(network.total(Counter::PeersSuspected) >= 11);
}

#[test]
fn two_halves_become_one_again() {
    let mut network = Network::of(10, 1, Weather::fair());
    let versions: Vec<Version> = (0..50).map(|n| network.publish(n % 10, flow(n))).collect();
    network.settle();
    for one in 0..5 {
        for other in 5..10 {
            network.cut(one, other);
        }
    }
    network.run(20 * SECOND);
    for n in 0..10 {
        assert_eq!(network.node(n).gauges().peers, 4);
    }
    assert_eq!(network.resolve(0, flow(9)), Resolution::Orphaned);
    network.heal();
    network.until("the halves to meet", 60, |network| network.is_complete());
    network.run(SECOND);
    network.settle();
    for (n, version) in versions.into_iter().enumerate() {
        assert_eq!(network.resolve(0, flow(n)), owner(n % 10, version));
        assert_eq!(network.holders(9, flow(n)), 3);
    }
}

#[test]
fn a_flow_is_looked_up_once_however_many_ask() {
    let mut network = Network::of(12, 1, Weather::fair());
    let version = network.publish(1, flow(1));
    network.settle();
    let replicas = network.survey(11, flow(1)).replicas;
    let asker = (2..12)
        .find(|n| replicas.iter().all(|r| r.locator != locator(*n)))
        .expect("more nodes than replicas");
    let sent = |network: &Network| network.counter(asker, Counter::RequestsSent);
    let before = sent(&network);
    for _ in 0..10 {
        network.ask(asker, flow(1));
    }
    assert_eq!(sent(&network) - before, 1);
    network.run(10 * MS);
    for _ in 0..10 {
        let resolution = owner(1, version);
        let expected = Answer::Resolved { flow: flow(1), resolution, dead: None };
        assert_eq!(network.answer(asker), Some(expected));
    }
    assert_eq!(network.answer(asker), None);
    assert_eq!(network.counter(asker, Counter::LookupsShared), 9);
    assert_eq!(network.counter(asker, Counter::LookupsFound), 1);
}

#[test]
fn the_lookups_in_flight_are_bounded() {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..8 {
        let mut config = config(n);
        config.lookups_max = 5;
        network.start(config);
    }
    network.until("all to know all", 20, |network| network.is_complete());
    network.run(SECOND);
    for n in 0..20 {
        network.ask(1, flow(n));
    }
    network.run(SECOND);
    let mut outcomes = [0; 2];
    while let Some(answer) = network.answer(1) {
        let Answer::Resolved { resolution, .. } = answer else {
            panic!("unexpected {answer:?}");
        };
        outcomes[usize::from(resolution == Resolution::NotFound)] += 1;
    }
    assert_eq!(outcomes, [15, 5]);
    assert_eq!(network.counter(1, Counter::LookupsRefused), 15);
    assert_eq!(network.node(1).recent_lookups(100).len(), 20);
}

#[test]
fn a_full_store_and_a_full_published_set_are_counted() {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..4 {
        let mut config = config(n);
        config.records_max = 10;
        config.published_max = 20;
        network.start(config);
    }
    network.until("all to know all", 20, |network| network.is_complete());
    for n in 0..30 {
        network.publish(1, flow(n));
    }
    network.run(SECOND);
    assert_eq!(network.counter(1, Counter::PublishesRefused), 10);
    assert!(network.total(Counter::StoresFull) > 0);
    assert!(network.counter(1, Counter::StoresRefusedByPeer) > 0);
    for n in 0..4 {
        assert_eq!(network.node(n).gauges().records, 10);
    }
    assert!(network.node(1).gauges().published_unacked > 0);
}

#[test]
fn r6_not_mine_is_told_and_repairs_what_we_publish() {
    let mut network = Network::of(5, 1, Weather::fair());
    network.publish(1, flow(1));
    network.settle();
    let not_mine = Announcement::NotMine { flow: flow(1), sender: Some(locator(2)) };
    let expected = Answer::NotMine { flow: flow(1), owner: locator(1) };
    // Just published: the word of the worker may be older than that.
    network.tell(1, Event::Announcement(not_mine));
    network.run(10 * MS);
    assert_eq!(network.answer(2), Some(expected));
    assert_eq!(network.counter(1, Counter::PublishesRepaired), 0);
    network.run(3 * SECOND);
    network.tell(1, Event::Announcement(not_mine));
    network.settle();
    assert_eq!(network.answer(2), Some(expected));
    assert_eq!(network.counter(1, Counter::PublishesRepaired), 1);
    assert_eq!(network.resolve(2, flow(1)), Resolution::NotFound);
}

#[test]
fn r6_of_a_rewritten_segment_all_are_told() {
    let mut network = Network::of(5, 1, Weather::fair());
    network.settle();
    let not_mine = Announcement::NotMine { flow: flow(1), sender: None };
    network.tell(1, Event::Announcement(not_mine));
    network.run(10 * MS);
    let expected = Answer::NotMine { flow: flow(1), owner: locator(1) };
    for other in [0, 2, 3, 4] {
        assert_eq!(network.answer(other), Some(expected));
    }
    assert_eq!(network.counter(1, Counter::NotMineToAll), 1);
}

#[test]
fn forged_datagrams_are_dropped_and_counted() {
    let mut network = Network::of(3, 1, Weather::fair());
    let id = network.node(1).id();
    let incarnation = network.node(0).peers()[0].incarnation;
    let mut datagram = Datagram {
        sender: Sender { id, locator: locator(1), incarnation },
        transaction: 1,
        message: Message::Pong,
    };
    let mut tell = |from: usize, datagram: &Datagram| {
        let mut bytes = [0; DATAGRAM_MAX];
        let len = datagram.encode(&mut bytes).expect("fits");
        let from = address(from);
        let bytes = &bytes[..len];
        network.tell(0, Event::Datagram { from, bytes });
    };
    // An answer to nothing; node 1's words from node 2; another cluster's id; words of a node 1
    // that ran before; our own words.
    tell(1, &datagram);
    tell(2, &datagram);
    datagram.sender.id.0 ^= 1;
    tell(1, &datagram);
    datagram.sender.id.0 ^= 1;
    datagram.sender.incarnation -= 1;
    tell(1, &datagram);
    datagram.sender.incarnation += 1;
    datagram.sender.locator = locator(0);
    tell(0, &datagram);
    for counter in [
        Counter::UnmatchedAnswers,
        Counter::ForgedLocator,
        Counter::WrongId,
        Counter::OlderIncarnation,
        Counter::Reflected,
    ] {
        assert_eq!(network.counter(0, counter), 1, "{counter:?}");
    }
}

#[test]
fn plain_kademlia_finds_records_with_tables_that_do_not_know_all() {
    let mut network = Network::new(1, Weather::fair());
    for n in 0..100 {
        let mut config = config(n);
        config.k = 8;
        config.bucket_bits = 1;
        config.spread = config.replicas;
        network.start(config);
        network.run(50 * MS);
    }
    network.run(10 * SECOND);
    for n in 0..100 {
        let peers = network.node(n).gauges().peers;
        assert!((8..80).contains(&peers), "{peers}");
    }
    let versions: Vec<Version> = (0..60).map(|n| network.publish(n, flow(n))).collect();
    network.settle();
    for (n, version) in versions.iter().enumerate() {
        assert_eq!(network.resolve(99 - n, flow(n)), owner(n, *version));
        assert_eq!(network.holders(99, flow(n)), 3, "flow {n}");
        assert_eq!(network.resolve(n, flow(1000 + n)), Resolution::NotFound);
    }
    for (n, version) in versions.into_iter().enumerate() {
        network.withdraw(n, flow(n), version);
    }
    network.settle();
    for n in 0..60 {
        assert_eq!(network.resolve(99 - n, flow(n)), Resolution::NotFound);
    }
}

#[test]
fn r12_after_any_history_the_last_session_is_found() {
    // Sessions come and go on few flows at many servers, in foul weather. The clocks are right,
    // so the model is one line: the last session on a flow owns it until it is withdrawn.
    for seed in 0..8 {
        let mut network = Network::of(8, seed, Weather::foul());
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut last: Vec<Option<(usize, Version)>> = vec![None; 10];
        let mut sessions: Vec<(usize, usize, Version)> = Vec::new();
        for _ in 0..200 {
            network.run(rng.random_range(1..20 * MS));
            if sessions.is_empty() || rng.random_bool(0.6) {
                let (flow_n, n) = (rng.random_range(0..10), rng.random_range(0..8));
                let version = network.publish(n, flow(flow_n));
                sessions.push((flow_n, n, version));
                last[flow_n] = Some((n, version));
            } else {
                let ended = rng.random_range(0..sessions.len());
                let (flow_n, n, version) = sessions.swap_remove(ended);
                network.withdraw(n, flow(flow_n), version);
                if last[flow_n] == Some((n, version)) {
                    last[flow_n] = None;
                }
            }
        }
        // Sessions that a newer one elsewhere has superseded end sooner or later.
        for (flow_n, n, version) in sessions {
            if last[flow_n] != Some((n, version)) {
                network.withdraw(n, flow(flow_n), version);
            }
        }
        network.settle();
        for (flow_n, last) in last.iter().enumerate() {
            for n in 0..8 {
                let expected = last.map_or(Resolution::NotFound, |(n, version)| owner(n, version));
                let resolution = network.resolve_patiently(n, flow(flow_n));
                assert_eq!(resolution, expected, "seed {seed}, flow {flow_n}, node {n}");
            }
        }
    }
}

/// What a lookup of node 0 amounts to when the only other node gives this result.
fn resolve_with_result(outcome: batch::Outcome) -> (Option<Answer>, Network) {
    let mut network = Network::of(2, 1, Weather::fair());
    network.run(SECOND);
    network.kill(1);
    network.ask(0, flow(1));
    // Node 1 is dead: we answer in its place.
    let header = batch::Header {
        incarnation: common::EPOCH_US,
        receiver: common::EPOCH_US,
        base: 0,
        life: 1,
    };
    let mut bytes = [0; DATAGRAM_MAX];
    let mut writer = batch::Writer::new(&header, &mut bytes);
    assert!(writer.result(0, &outcome));
    let len = writer.len();
    let (from, bytes) = (address(1), &bytes[..len]);
    network.tell(0, Event::Datagram { from, bytes });
    (network.answer(0), network)
}

#[test]
fn r6_an_owner_that_is_no_member_is_not_believed() {
    let resolved = |resolution| {
        let flow = flow(1);
        Some(Answer::Resolved { flow, resolution, dead: None })
    };
    let version = Version(1);
    let claim = |owner| batch::Outcome::Found(Claim { version, owner });
    let (answer, _) = resolve_with_result(claim(locator(5)));
    assert_eq!(answer, resolved(owner(5, version)));
    let (answer, network) = resolve_with_result(claim([192, 0, 2, 1].into()));
    assert_eq!(answer, resolved(Resolution::NotFound));
    assert_eq!(network.counter(0, Counter::OwnersForeign), 1);
}

#[test]
fn whatever_members_say_nodes_live_and_answer_once() {
    let mut rng = Pcg64::seed_from_u64(1);
    let mut network = Network::of(3, 1, Weather::fair());
    for n in 0..20 {
        network.publish(n % 3, flow(n));
    }
    network.settle();
    let ids = [0, 1, 2].map(|n| network.node(n).id());
    // All were started at the same time.
    let incarnation = network.node(0).peers()[0].incarnation;
    for round in 0..20_000 {
        let from = rng.random_range(1..3);
        let datagram = Datagram {
            sender: Sender {
                id: ids[from],
                locator: locator(from),
                incarnation: if rng.random_bool(0.1) {
                    rng.random_range(0..3)
                } else {
                    incarnation
                },
            },
            transaction: match rng.random_bool(0.5) {
                true => network.last_transaction_to(from),
                false => rng.random(),
            },
            message: any_message(&mut rng),
        };
        let mut bytes = [0; DATAGRAM_MAX];
        let mut len = match rng.random_bool(0.5) {
            true => datagram.encode(&mut bytes).expect("fits"),
            false => any_batch(&mut rng, &mut bytes),
        };
        if rng.random_bool(0.2) {
            bytes[rng.random_range(0..len)] = rng.random();
            len = rng.random_range(0..=len);
        }
        let (from, bytes) = (address(from), &bytes[..len]);
        let relayed = network.counter(0, Counter::PongsRelayed);
        let answers = network.tell_counting_answers(0, Event::Datagram { from, bytes });
        // Several may have asked for the one that this is heard from: an answer to each of them.
        let relayed = network.counter(0, Counter::PongsRelayed) - relayed;
        assert!(answers as u64 <= 1 + relayed, "{answers} answers to {datagram:?}");
        if round % 100 == 0 {
            network.ask(0, flow(round % 30));
            network.run(10 * MS);
        }
    }
    let [asked, relayed] = [Counter::PingReqsReceived, Counter::PongsRelayed];
    assert!(network.counter(0, relayed) <= network.counter(0, asked));
    network.run(5 * SECOND);
    network.until("peace", 60, |network| network.is_complete());
}

/// A batch with small numbers, so that it meets what is there.
fn any_batch(rng: &mut Pcg64, bytes: &mut [u8; DATAGRAM_MAX]) -> usize {
    let incarnation = |rng: &mut Pcg64| match rng.random_range(0..4) {
        0 => rng.random_range(0..3),
        1 => common::EPOCH_US + rng.random_range(0..100),
        _ => common::EPOCH_US,
    };
    let header = batch::Header {
        incarnation: incarnation(rng),
        receiver: incarnation(rng),
        base: rng.random_range(0..3),
        life: rng.random_range(0..3),
    };
    let mut writer = batch::Writer::new(&header, bytes);
    let hasher = IdHasher::new(b"a test's id key.");
    for _ in 0..rng.random_range(0..20) {
        let id = hasher.flow(&flow(rng.random_range(0..30)));
        let version = match rng.random_range(0..3) {
            0 => Version(rng.random_range(0..5)),
            1 => Version(common::EPOCH_US + rng.random_range(0..100 * SECOND)),
            _ => Version(rng.random()),
        };
        let claim = Claim { version, owner: locator(rng.random_range(0..300)) };
        let number = rng.random_range(0..200);
        use batch::{Outcome, Request};
        match rng.random_range(0..12) {
            0 => writer.request(number, &Request::Lookup(id)),
            1 => writer.request(number, &Request::Store(id, version)),
            2 => writer.request(number, &Request::Delete(id, version)),
            3 => writer.request(number, &Request::Release(id, version)),
            4 => writer.result(number, &Outcome::Done),
            5 => writer.result(number, &Outcome::Full),
            6 => writer.result(number, &Outcome::Ahead),
            7 => writer.result(number, &Outcome::Stale(claim)),
            8 => writer.result(number, &Outcome::Found(claim)),
            9 => writer.result(number, &Outcome::Gone(claim)),
            10 => writer.result(number, &Outcome::NotHeld),
            _ => writer.result(number, &Outcome::NotReplica),
        };
    }
    writer.len()
}

/// A message with small numbers, so that it meets what is there.
fn any_message(rng: &mut Pcg64) -> Message {
    let hasher = IdHasher::new(b"a test's id key.");
    let id = hasher.flow(&flow(rng.random_range(0..30)));
    let version = Version(common::EPOCH_US + rng.random_range(0..100 * SECOND));
    let claim = Claim { version, owner: locator(rng.random_range(0..300)) };
    let contacts = rng.random_range(0..8);
    let contacts: Vec<_> = (0..contacts).map(|_| address(rng.random_range(0..6))).collect();
    // LEAVE is left out: who says that is not heard any more.
    let life = Life {
        address: address(rng.random_range(0..6)),
        incarnation: common::EPOCH_US + rng.random_range(0..2),
    };
    match rng.random_range(0..13) {
        0 => Message::Ping,
        1 => Message::Pong,
        2 => {
            let want = rng.random();
            Message::FindNode { target: id, want }
        }
        3 => Message::Nodes(Box::new(contacts.into_iter().collect())),
        4 => Message::FindValue { id },
        5 => Message::Found(claim),
        6 => Message::Gone(claim),
        7 => Message::NotHeld(Box::new(contacts.into_iter().collect())),
        8 => {
            let within_us = rng.random_range(0..1000);
            Message::PingReq { life, within_us }
        }
        9 => {
            let ago_us = rng.random();
            Message::PongRelayed { incarnation: life.incarnation, ago_us }
        }
        10 => Message::Suspect(life),
        11 => Message::Alive,
        _ => Message::NotMine(flow(rng.random_range(0..30))),
    }
}

#[test]
fn servers_on_ipv6_are_no_different() {
    let mut network = Network::new(1, Weather::fair());
    let v6 = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]);
    for n in 1..=5 {
        let mut config = Config::new(v6(n), (v6(n), 7000).into());
        config.bootstrap = vec![(v6(1), 7000).into()];
        config.members = vec!["2001:db8::/64".parse().expect("net")];
        network.start(config);
    }
    network.until("all to know all", 20, |network| network.is_complete());
    let flow = "[2001:db8:1::1]:1234-[2001:db8:2::1]:80".parse().expect("flow");
    let version = network.version();
    let publish = Announcement::Publish { flow, version };
    network.handle(v6(2), Event::Announcement(publish));
    network.settle();
    let asked_at_unix_us = network.unix_us();
    for n in 1..=5 {
        let resolve = Resolve { flow, asked_at_unix_us };
        network.handle(v6(n), Event::Resolve { ring: 0, resolve });
        network.run(10 * MS);
        let locator = v6(2);
        let resolution = Resolution::Owner { locator, version };
        let expected = Answer::Resolved { flow, resolution, dead: None };
        assert_eq!(network.answer_at(v6(n)), Some(expected));
    }
    network.run(SECOND);
    let version = network.version();
    network.handle(v6(3), Event::Announcement(Announcement::Publish { flow, version }));
    network.run(10 * MS);
    assert_eq!(network.superseded_at(v6(2)), [(flow, version, v6(3))]);
}

#[test]
fn a_survey_says_what_each_replica_said() {
    let mut network = Network::of(5, 1, Weather::fair());
    let version = network.publish(1, flow(1));
    network.settle();
    let report = network.survey(0, flow(1));
    assert_eq!(report.outcome, Outcome::Owner);
    assert_eq!(report.owner, Some(locator(1)));
    assert_eq!(report.version, Some(version));
    assert_eq!(report.replicas.len(), 3);
    network.withdraw(1, flow(1), version);
    network.settle();
    let report = network.survey(0, flow(1));
    assert_eq!((report.outcome, report.owner), (Outcome::NotFound, None));
    let deleted = |said: &Statement| matches!(said, Statement::Deleted(_));
    assert!(report.replicas.iter().all(|r| deleted(&r.said)), "{report:?}");
    network.run(15 * SECOND);
    let report = network.survey(0, flow(1));
    assert!(report.replicas.iter().all(|r| r.said == Statement::NotHeld));
}

#[test]
fn the_absent_are_counted_and_named_until_they_are_back() {
    let mut network = Network::of(4, 1, Weather::fair());
    network.run(SECOND);
    let absent = |network: &Network| {
        let gauges = network.node(0).gauges();
        assert_eq!(gauges.peers + gauges.peers_away + gauges.peers_dead, 3);
        (gauges.peers_away, gauges.peers_dead)
    };
    assert_eq!(absent(&network), (0, 0));
    assert!(network.node(0).peers().iter().all(|p| p.life == network.node(0).life_of(p.address)));
    network.tell(1, Event::Leave);
    network.run(SECOND / 2);
    assert_eq!(absent(&network), (1, 0));
    let peer = network.node(0).absent_peers()[0];
    assert_eq!((peer.locator, peer.away), (locator(1), true));
    assert!(peer.absent_us > 0 && peer.absent_us < SECOND, "{peer:?}");
    network.kill(1);
    network.kill(2);
    network.run(5 * SECOND);
    assert_eq!(absent(&network), (1, 1));
    // The lease of the one that left ends.
    network.run(60 * SECOND);
    assert_eq!(absent(&network), (0, 2));
    assert_eq!(network.counter(0, Counter::LeasesEnded), 1);
    network.start(config(2));
    network.run(30 * SECOND);
    assert_eq!(absent(&network), (0, 1));
}
