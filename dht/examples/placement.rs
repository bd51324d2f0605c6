//! Measures placement: what choosing a record's replicas costs, how even the load is over the
//! servers, and how many copies move when a server leaves; beside it the same for plain Kademlia
//! and for several ids per server. Prints the tables of `docs/adr/0007`.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use holdfast_dht::id::IdHasher;
use holdfast_dht::routing_table::{Contact, Patience, RoutingTable};
use holdfast_dht::{Id, Placement, Slot};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

const REPLICAS: usize = 3;
const LOOKUPS: usize = 5_000;
const ROUNDS: usize = 201;
const LEAVERS: usize = 20;

fn main() {
    println!(
        "bytes per contact: {}",
        size_of::<Contact>() + size_of::<Id>() + 2 * size_of::<u16>()
    );
    costs();
    loads();
    loads_of_virtual_ids();
    moves();
}

fn locator(server: usize) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + server as u32 + 1).into()
}

fn ids(key: u8, servers: usize) -> Vec<Id> {
    let hasher = IdHasher::new(&[key; 16]);
    (0..servers).map(|server| hasher.node(locator(server))).collect()
}

/// The table of the first of these nodes.
fn table(ids: &[Id], spread: usize) -> RoutingTable {
    let patience = Patience { failures_max: 3, dead_after_us: 2_000_000 };
    let placement = Placement::new(spread, REPLICAS);
    let mut table =
        RoutingTable::new(ids[0], SocketAddr::new(locator(0), 7000), 4096, 8, patience, placement);
    for (server, id) in ids.iter().enumerate().skip(1) {
        let address = SocketAddr::new(locator(server), 7000);
        table.insert(Contact::new(0, *id, address, 0, Slot::OWN, 1));
    }
    table
}

fn costs() {
    println!("\nns, lowest decile of {ROUNDS} rounds of {LOOKUPS} random records");
    println!("servers  replicas(3)  spread 3  get(id)  covers");
    for servers in [4, 16, 100, 128, 200, 1000, 5000, 20_000] {
        let ids = ids(1, servers);
        let (drawn, plain) = (table(&ids, 128), table(&ids, REPLICAS));
        let best = |table: &RoutingTable, id| table.replicas(id, REPLICAS);
        println!(
            "{servers:>7} {:>12.0} {:>9.0} {:>8.0} {:>7.1}",
            ns_each(|id| _ = black_box(&best(&drawn, id))),
            ns_each(|id| _ = black_box(&best(&plain, id))),
            ns_each(|id| _ = black_box(drawn.get(ids[id.0 as usize % servers]))),
            ns_each(|id| _ = black_box(drawn.covers(id, 128))),
        );
    }
}

fn ns_each(mut work: impl FnMut(Id)) -> f64 {
    let mut rng = Pcg64::seed_from_u64(1);
    let records: Vec<Id> = (0..LOOKUPS).map(|_| Id(rng.random())).collect();
    let mut times = [0.0; ROUNDS];
    for time in &mut times {
        let started = Instant::now();
        records.iter().for_each(|id| work(black_box(*id)));
        *time = started.elapsed().as_nanos() as f64 / LOOKUPS as f64;
    }
    times.sort_unstable_by(f64::total_cmp);
    times[ROUNDS / 10]
}

fn loads() {
    println!("\nmax/mean of copies per server: mean and worst of many keys");
    let spreads = [3, 8, 16, 32, 64, 128, 256, 512];
    print!("servers ");
    spreads.iter().for_each(|spread| print!("  spread {spread:<4}"));
    println!();
    for servers in [16, 100, 1000, 5000] {
        print!("{servers:>7} ");
        for spread in spreads {
            let load = |key| {
                let table = table(&ids(key, servers), spread);
                unevenness(servers, |id, count| {
                    for replica in table.replicas(id, REPLICAS) {
                        count(replica.id);
                    }
                })
            };
            print!("  {}", mean_and_worst(servers, load));
        }
        println!();
    }
}

/// Several ids per server, and plain Kademlia over them: the closest distinct servers.
fn loads_of_virtual_ids() {
    println!("\nthe same with several ids per server, by distance alone");
    for (servers, each) in [16, 1000].into_iter().flat_map(|n| [1, 8, 16, 32, 64].map(|v| (n, v))) {
        let load = |key| {
            let ids = ids(key, servers * each);
            let owners: HashMap<Id, usize> =
                ids.iter().enumerate().map(|(place, id)| (*id, place % servers)).collect();
            let owners = &owners;
            // Seen by a node that is no server: a table does not list its own.
            let table = table(&[&[Id(0)], &ids[..]].concat(), 1);
            unevenness(servers, |id, count| {
                let mut found: Vec<usize> = Vec::new();
                for limit in [8, 64, 512] {
                    found.clear();
                    for contact in table.closest(id, limit) {
                        let owner = owners[&contact.id];
                        if !found.contains(&owner) && found.len() < REPLICAS {
                            found.push(owner);
                        }
                    }
                    if found.len() == REPLICAS {
                        break;
                    }
                }
                found.into_iter().for_each(|owner| count(Id(owner as u128)));
            })
        };
        println!("{servers:>7} servers × {each:>2} ids {}", mean_and_worst(servers, load));
    }
}

/// The fewer servers, the more does chance decide: then more keys.
fn mean_and_worst(servers: usize, load: impl Fn(u8) -> f64) -> String {
    let keys = (3000 / servers).clamp(5, 100) as u8;
    let loads: Vec<f64> = (0..keys).map(load).collect();
    let mean = loads.iter().sum::<f64>() / f64::from(keys);
    format!("{mean:.2} {:.2}  ", loads.iter().fold(0.0, |worst: f64, load| worst.max(*load)))
}

/// The greatest number of copies that a server holds over the mean, for at least 1,000 copies
/// per server.
fn unevenness(servers: usize, place: impl Fn(Id, &mut dyn FnMut(Id))) -> f64 {
    let mut rng = Pcg64::seed_from_u64(servers as u64);
    let records = 200_000.max(servers * 400);
    let mut copies: HashMap<Id, usize> = HashMap::new();
    for _ in 0..records {
        place(Id(rng.random()), &mut |id| *copies.entry(id).or_default() += 1);
    }
    let most = copies.values().max().copied().unwrap_or(0);
    most as f64 * servers as f64 / (records * REPLICAS) as f64
}

fn moves() {
    println!("\ncopies moved per copy that the server that leaves held: mean of {LEAVERS}, worst");
    for (servers, spread) in [(16, 3), (16, 128), (1000, 3), (1000, 128), (5000, 128)] {
        let all = ids(1, servers);
        let before = table(&all, spread);
        let mut rng = Pcg64::seed_from_u64(2);
        let (mut sum, mut held_in_all, mut worst) = (0, 0, 0.0_f64);
        for _ in 0..LEAVERS.min(servers - 1) {
            let leaver = all[rng.random_range(1..servers)];
            let mut after = table(&all, spread);
            after.remove(leaver);
            let (mut moved, mut held) = (0, 0);
            for _ in 0..20_000.max(200 * servers) {
                let record = Id(rng.random());
                let old = before.replicas(record, REPLICAS);
                let new = after.replicas(record, REPLICAS);
                let is_new = |id: Id| old.iter().all(|r| r.id != id);
                moved += new.iter().filter(|r| is_new(r.id)).count();
                held += usize::from(old.iter().any(|r| r.id == leaver));
            }
            sum += moved;
            held_in_all += held;
            worst = worst.max(moved as f64 / held as f64);
        }
        let mean = sum as f64 / held_in_all as f64;
        println!("{servers:>7} servers, spread {spread:<4} {mean:.2} {worst:.2}");
    }
}
