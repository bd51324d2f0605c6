//! Replicas against a plain model, that all servers agree on them, how even the load is and how
//! little moves.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::*;
use crate::config::REPLICAS_MAX;
use crate::id::IdHasher;
use crate::peer_slots::{PeerSlots, Slot};
use crate::routing_table::{Contact, Inserted, Patience, RoutingTable};

const R: usize = 3;
const SPREAD: usize = 128;

fn locator(server: usize) -> IpAddr {
    Ipv4Addr::from(0x0a00_0001 + server as u32).into()
}

fn address(server: usize) -> SocketAddr {
    SocketAddr::new(locator(server), 7000)
}

fn contact(id: Id, address: SocketAddr, slot: Slot) -> Contact {
    Contact::new(0, id, address, 0, slot, 1)
}

/// What the server `own` of these knows, when it knows all: slots are numbered by who is met.
fn table_of(own: usize, ids: &[Id], placement: Placement) -> RoutingTable {
    let patience = Patience { failures_max: 3, dead_after_us: 1 };
    let mut table = RoutingTable::new(ids[own], address(own), 4096, 8, patience, placement);
    let mut slots = PeerSlots::new(address(own));
    for (server, id) in ids.iter().enumerate().filter(|(server, _)| *server != own) {
        let slot = slots.begin(address(server)).unwrap();
        assert_eq!(table.insert(contact(*id, address(server), slot)), Inserted::Yes);
    }
    table
}

fn ids(key: u8, servers: usize) -> Vec<Id> {
    let hasher = IdHasher::new(&[key; 16]);
    (0..servers).map(|server| hasher.node(locator(server))).collect()
}

/// The definition, word for word.
fn model(target: Id, nodes: &[Id], spread: usize, replicas: usize, count: usize) -> Vec<Id> {
    let mut nodes = nodes.to_vec();
    nodes.sort_by_key(|id| target.0 ^ id.0);
    if spread > replicas {
        nodes.truncate(spread);
        nodes.sort_by_key(|id| (std::cmp::Reverse(weight(target, *id)), *id));
    }
    nodes.truncate(count);
    nodes
}

/// Ids of which many are near the target, and some have the same weight for it: none at all.
fn nodes(target: u128) -> impl Strategy<Value = Vec<Id>> {
    let id = prop_oneof![
        4 => (any::<u128>(), 0..128u32).prop_map(move |(random, depth)| target ^ random >> depth),
        3 => any::<u128>(),
        1 => any::<u64>().prop_map(move |random| target << 64 | u128::from(random)),
    ];
    prop::collection::btree_set(id.prop_map(Id), 1..120).prop_map(|ids| ids.into_iter().collect())
}

proptest! {
    #[test]
    fn replicas_are_those_of_the_definition(
        (target, nodes) in any::<u128>().prop_flat_map(|t| (Just(Id(t)), nodes(t))),
        own in any::<prop::sample::Index>(),
        spread in 1..70usize,
        replicas in 1..=REPLICAS_MAX,
        count in 0..=REPLICAS_MAX + 1,
    ) {
        let placement = Placement::new(spread, replicas);
        let own = own.index(nodes.len());
        let table = table_of(own, &nodes, placement);
        let chosen = table.replicas(target, count);
        let chosen_ids: Vec<Id> = chosen.iter().map(|replica| replica.id).collect();
        let count = count.min(REPLICAS_MAX);
        prop_assert_eq!(&chosen_ids, &model(target, &nodes, spread, replicas, count));
        for replica in &chosen {
            prop_assert_eq!(replica.slot == Slot::OWN, replica.id == nodes[own]);
            let server = nodes.iter().position(|id| *id == replica.id);
            prop_assert_eq!(Some(replica.address), server.map(address));
        }
        // A walk comes to the same from whatever nodes it has found.
        let mut found: Vec<(Id, u8)> = nodes.iter().map(|id| (*id, 7)).collect();
        placement.retain_best(target, &mut found, count, |(id, _)| *id);
        prop_assert_eq!(chosen_ids, found.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        prop_assert!(chosen.is_sorted_by_key(|r| table.rank(target, r.id)));
    }

    #[test]
    fn plain_ranks_are_distances(target in any::<u128>(), a in any::<u128>(), b in any::<u128>()) {
        let [target, a, b] = [target, a, b].map(Id);
        let plain = Placement::new(3, 3);
        let ranks = plain.rank(target, a).cmp(&plain.rank(target, b));
        prop_assert_eq!(ranks, target.distance(a).cmp(&target.distance(b)));
    }
}

#[test]
fn weights_are_pinned() {
    // Servers of different builds must agree on them. Computed apart from the words above
    // `weight`, in Python.
    let hasher = IdHasher::new(b"0123456789abcdef");
    let record = Id(0x0299_b851_9a11_c4a8_3354_63e4_45e5_7359);
    let node = hasher.node([10, 0, 0, 1].into());
    assert_eq!(weight(record, node), 0x01ea_2f6d_ff57);
    assert_eq!(
        Placement::new(128, 3).rank(record, node),
        Rank(0xfe15_d092_00a8_40a5_58f0_65cc_acb6_abda)
    );
    assert_eq!(Placement::new(3, 3).rank(record, node), Rank(record.0 ^ node.0));
}

#[test]
fn all_servers_agree() {
    for (servers, spread) in [(16, SPREAD), (150, SPREAD), (150, 20), (150, R)] {
        let ids = ids(1, servers);
        let placement = Placement::new(spread, R);
        let tables: Vec<RoutingTable> =
            (0..servers).map(|own| table_of(own, &ids, placement)).collect();
        let mut own = 0;
        for record in records(9, 200) {
            let expected = model(record, &ids, spread, R, R);
            for (server, table) in tables.iter().enumerate() {
                let chosen = table.replicas(record, R);
                assert_eq!(chosen.iter().map(|r| r.id).collect::<Vec<_>>(), expected);
                let we = chosen.iter().find(|replica| replica.slot == Slot::OWN);
                assert_eq!(we.is_some(), expected.contains(&ids[server]));
                assert!(we.is_none_or(|we| we.address == address(server)));
                own += usize::from(we.is_some());
            }
        }
        // Each record is somebody's own R times.
        assert_eq!(own, 200 * R);
    }
}

#[test]
fn a_suspect_is_told_apart_and_keeps_its_rank() {
    let ids = ids(1, 10);
    let mut table = table_of(0, &ids, Placement::new(SPREAD, R));
    let record = Id(12345);
    let before = table.replicas(record, REPLICAS_MAX);
    let suspect = before.iter().find(|replica| replica.slot != Slot::OWN).unwrap().id;
    table.missed(10, suspect, 5);
    let after = table.replicas(record, REPLICAS_MAX);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.id, after.id);
        assert_eq!((before.suspect, after.suspect), (false, after.id == suspect));
    }
}

fn records(seed: u64, count: usize) -> impl Iterator<Item = Id> {
    let mut rng = Pcg64::seed_from_u64(seed);
    std::iter::repeat_with(move || Id(rng.random())).take(count)
}

/// The greatest number of copies that a server holds over the mean.
fn unevenness(key: u8, servers: usize, spread: usize, count: usize) -> f64 {
    let table = table_of(0, &ids(key, servers), Placement::new(spread, R));
    let mut copies = vec![0_u32; servers];
    for record in records(u64::from(key), count) {
        for replica in table.replicas(record, R) {
            copies[replica.slot.index()] += 1;
        }
    }
    assert_eq!(copies.iter().sum::<u32>() as usize, count * R);
    let most = copies.iter().max().copied().unwrap_or(0);
    f64::from(most) * servers as f64 / (count * R) as f64
}

#[test]
fn the_load_is_even() {
    const RECORDS: usize = 200_000;
    println!("max/mean of {R} × {RECORDS} copies, by spread:  {SPREAD}  {R}");
    for (servers, keys) in [(16, 4), (1000, 3)] {
        for key in 0..keys {
            let load = unevenness(key, servers, SPREAD, RECORDS);
            let plain = unevenness(key, servers, R, RECORDS);
            println!("{servers:>5} servers, key {key}: {load:.2}  {plain:.2}");
            assert!(load <= 1.5, "{servers} servers, key {key}: {load}");
            // Otherwise there would be no need of a draw.
            assert!(plain > load);
        }
    }
}

/// Copies per record that are on a server of `after` which had none before.
fn moved(before: &RoutingTable, after: &RoutingTable, seed: u64, count: usize) -> f64 {
    let moved = |record| {
        let old = before.replicas(record, R);
        let new = after.replicas(record, R);
        new.iter().filter(|new| old.iter().all(|old| old.id != new.id)).count()
    };
    records(seed, count).map(moved).sum::<usize>() as f64 / count as f64
}

#[test]
fn little_moves_when_a_server_joins_or_leaves() {
    const RECORDS: usize = 10_000;
    for (servers, others) in [(16, 8), (1000, 12)] {
        let placement = Placement::new(SPREAD, R);
        // The last ones join; then the ones before them leave.
        let ids = ids(5, servers + others);
        let before = table_of(0, &ids[..servers], placement);
        let (mut joined, mut left) = (0.0, 0.0);
        for other in 0..others {
            let mut after = table_of(0, &ids[..servers], placement);
            let (newcomer, slot) = (servers + other, before.contacts()[0].slot);
            after.insert(contact(ids[newcomer], address(newcomer), slot));
            joined += moved(&before, &after, other as u64, RECORDS);
            after.remove(ids[newcomer]);
            after.remove(ids[newcomer - others]);
            left += moved(&before, &after, other as u64, RECORDS);
        }
        let ideal = R as f64 / servers as f64;
        for (event, sum) in [("joins", joined), ("leaves", left)] {
            let ratio = sum / f64::from(others as u32) / ideal;
            println!("{servers} servers, one {event}: {ratio:.2} times the least that can move");
            // Nothing moved would be no placement.
            assert!((0.8..=2.2).contains(&ratio), "{ratio}");
        }
    }
}
