//! Measures what the replica's store costs per operation when it holds 1 Mi and 4 Mi records, and
//! its memory, one operation at a time and in batches. Ids come in an order that has nothing to do
//! with the order in which they were stored, so that the caches help as little as they would for
//! strays. Times are of the processor, so that other programs disturb little.
#![allow(clippy::print_stdout)]

use std::net::IpAddr;

use holdfast_dht::Id;
use holdfast_dht::store::{Deleted, Store, Stored, Terms};
use holdfast_handoff::Version;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

const SECOND: u64 = 1_000_000;
const TERMS: Terms =
    Terms { lease_us: 60 * SECOND, record_ttl_us: 3600 * SECOND, tombstone_ttl_us: 10 * SECOND };
/// Servers that own the records.
const OWNERS: u64 = 1000;
const VERSION: Version = Version(1);

/// Operations of a batch: about what a datagram holds.
const BATCH: usize = 32;

fn main() {
    println!("{} bytes a record", bytes_of_a_record(1 << 20));
    println!("ns per operation; second line of each size: after warming its batch of {BATCH}");
    println!("  records    get  miss  store new  store again  release  delete");
    for records_max in [1 << 20, 4 << 20] {
        for batch in [1, BATCH] {
            measure(records_max, batch);
        }
    }
}

fn bytes_of_a_record(records_max: usize) -> u64 {
    let before = resident_bytes();
    let mut store = Store::new(records_max, TERMS, 1);
    let mut rng = Pcg64::seed_from_u64(1);
    for _ in 0..records_max {
        store.store(0, Id(rng.random()), VERSION, locator(0), 1);
    }
    (resident_bytes() - before) / records_max as u64
}

fn measure(records_max: usize, batch: usize) {
    let mut rng = Pcg64::seed_from_u64(1);
    let mut draw = || (0..records_max).map(|_| Id(rng.random())).collect::<Vec<Id>>();
    let (held, absent) = (draw(), draw());
    let shuffled = shuffled(&held);
    let mut store = Store::new(records_max, TERMS, 1);
    (0..OWNERS).for_each(|owner| store.begin_lease(0, locator(owner), 1));
    let put = |store: &mut Store, id| {
        assert_eq!(store.store(0, id, VERSION, owner(id), 1), Stored::Yes);
    };
    let mut each = |ids: &[Id], work: &mut dyn FnMut(&mut Store, Id)| {
        let started_ns = cpu_ns();
        for ids in ids.chunks(batch) {
            if batch > 1 {
                store.warm(ids.iter().copied());
            }
            ids.iter().for_each(|id| work(&mut store, *id));
        }
        (cpu_ns() - started_ns) / ids.len() as u64
    };
    let new_ns = each(&held, &mut |store, id| put(store, id));
    let get_ns = each(&shuffled, &mut |store, id| assert!(store.get(0, id).is_some()));
    let miss_ns = each(&absent, &mut |store, id| assert!(store.get(0, id).is_none()));
    let again_ns = each(&shuffled, &mut |store, id| put(store, id));
    let (gone, left) = shuffled.split_at(records_max / 2);
    let release_ns = each(gone, &mut |store, id| assert!(store.release(0, id, VERSION, owner(id))));
    let delete_ns = each(left, &mut |store, id| {
        assert_eq!(store.delete(0, id, VERSION, owner(id)), Deleted::Yes);
    });
    println!(
        "{records_max:>9} {get_ns:>6} {miss_ns:>5} {new_ns:>10} {again_ns:>12} {release_ns:>8} {delete_ns:>7}"
    );
}

fn locator(owner: u64) -> IpAddr {
    [10, 0, (owner >> 8) as u8, owner as u8].into()
}

fn owner(id: Id) -> IpAddr {
    locator(id.0 as u64 % OWNERS)
}

fn shuffled(ids: &[Id]) -> Vec<Id> {
    let mut ids = ids.to_vec();
    let mut rng = Pcg64::seed_from_u64(2);
    for last in (1..ids.len()).rev() {
        ids.swap(last, rng.random_range(0..=last));
    }
    ids
}

/// Time that this thread was on a processor, by the kernel's word; 0 where there is none.
fn cpu_ns() -> u64 {
    field("/proc/thread-self/schedstat", 0)
}

/// Memory of this process that is there, likewise.
fn resident_bytes() -> u64 {
    field("/proc/self/statm", 1) * 4096
}

fn field(path: &str, place: usize) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split(' ').nth(place).and_then(|field| field.trim().parse().ok()).unwrap_or(0)
}
