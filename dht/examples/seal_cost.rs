//! Measures what sealing and opening cost per datagram, for the sizes that the control port sees:
//! a FIND_VALUE, and the largest datagram. Prints the median of 301 rounds of 64 datagrams, as many
//! as the service seals and opens at once.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::net::IpAddr;
use std::time::Instant;

use holdfast_dht::auth::{OVERHEAD, Opener, SEALED_MAX, Sealer, Secret};
use holdfast_dht::{Keys, message::DATAGRAM_MAX};

const DATAGRAMS: usize = 64;
const ROUNDS: usize = 301;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let keys = Keys::single(0, Secret(rand::random()));
    let [from, to] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
    println!("bytes sealed   seal ns   open ns   first of a run, open ns");
    for len in [75, DATAGRAM_MAX] {
        let mut sealer = Sealer::new(&keys, from, 1, rand::random());
        let mut opener = Opener::new(&keys, to);
        let mut now_us = 0;
        let mut sealed = vec![[0x5a; SEALED_MAX]; DATAGRAMS];
        let [mut seals, mut opens, mut firsts] = [[0; ROUNDS]; 3];
        for round in seals.iter_mut().zip(&mut opens).zip(&mut firsts) {
            let ((seal_ns, open_ns), first_ns) = round;
            *seal_ns = ns_each(DATAGRAMS, || {
                sealed.iter_mut().try_for_each(|bytes| sealer.seal(to, bytes, len).map(|_| ()))
            })?;
            let mut first: Vec<_> = sealed[..16].to_vec();
            *open_ns = ns_each(DATAGRAMS, || {
                sealed.iter_mut().try_for_each(|bytes| {
                    // As many a second as a sender may send.
                    now_us += 20;
                    let datagram = opener.open(now_us, from, &mut bytes[..len + OVERHEAD])?;
                    black_box(datagram);
                    Ok::<(), holdfast_dht::auth::Refusal>(())
                })
            })?;
            let mut openers: Vec<Opener> = first.iter().map(|_| Opener::new(&keys, to)).collect();
            *first_ns = ns_each(first.len(), || {
                first.iter_mut().zip(&mut openers).try_for_each(|(bytes, opener)| {
                    opener.open(0, from, &mut bytes[..len + OVERHEAD]).map(|_| ())
                })
            })?;
        }
        let [seal, open, first] = [seals, opens, firsts].map(median);
        println!("{:>12} {seal:>9} {open:>9} {first:>9}", len + OVERHEAD);
    }
    Ok(())
}

fn ns_each<E>(count: usize, work: impl FnOnce() -> Result<(), E>) -> Result<u128, E> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_nanos() / count as u128)
}

fn median(mut times: [u128; ROUNDS]) -> u128 {
    times.sort_unstable();
    times[ROUNDS / 2]
}
