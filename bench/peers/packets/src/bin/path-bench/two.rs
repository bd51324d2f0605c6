//! One worker and two over one table, each with its own queues and on its own core. Every packet
//! is as likely to reach the other worker's core as the one that put its session in.

use std::sync::Barrier;

use anyhow::{Context, Result, anyhow};
use holdfast_bench_packets::flows::Family;
use holdfast_bench_packets::frames::Kind;
use holdfast_bench_packets::machine::pin;
use holdfast_bench_packets::meter::{Spread, Taken, overhead};
use holdfast_bench_packets::ours::{self, Ours};
use serde_json::{Value, json};

use crate::feed::{BATCH, Expect, Feed, Frames, Rings};
use crate::lane::{Engine, Lane, OurWorker};
use crate::{Bench, Size};

/// What a worker's thread owns.
struct Place {
    core: usize,
    lane: Lane,
    frames: Frames,
}

// SAFETY: a place is made on one thread, then moved to the worker's and stays there; its lane
// holds one of our workers, whose parts all may move, and never the peers that may not.
unsafe impl Send for Place {}

/// Speeds of redirects through one worker, and through both.
pub fn measure(bench: &Bench, size: &Size, family: Family) -> Result<Value> {
    let table = filled_by_two(size, family)?;
    let rings = |side: &str| {
        let name = format!("{side}w{}{}", size.name, family.name());
        Rings::new(&bench.eal, &name, 2, &bench.pool)
    };
    let (mut uplink, mut host) = (rings("u")?, rings("h")?);
    let mut places = Vec::new();
    for core in 0..2 {
        let tunnel = ours::TUNNELS[0];
        let ports = uplink.port(core).zip(host.port(core)).context("no queue")?;
        let worker: Box<OurWorker> =
            crate::our_worker(bench, &table, (tunnel, family), (core, 2), ports.0, ports.1)?;
        let far = uplink.far(core).zip(host.far(core)).context("no queue")?;
        let what = (family, Kind::Segment, Expect::Tunnelled(tunnel));
        let mut feed = Feed::new(far.0, far.1, what, size.sessions as u32, 0);
        feed.skip(core * size.sessions / 2);
        let lane =
            Lane { name: format!("worker {core}"), engine: Engine::Ours(worker), feed: Some(feed) };
        places.push(Place { core, lane, frames: bench.frames()? });
    }
    let rounds = bench.args.rounds as usize;
    let batches = bench.args.packets / BATCH;
    let meeting = Barrier::new(2);
    let taken: Vec<Result<Vec<Round>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = places
            .into_iter()
            .map(|place| scope.spawn(|| run(bench, place, rounds, batches, &meeting)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|ended| ended.map_err(|_| anyhow!("a worker panicked"))?).collect()
    });
    let taken: Vec<Vec<Round>> = taken.into_iter().collect::<Result<_>>()?;
    report(&taken, batches * BATCH)
}

/// The flows' sessions, every other one put in by the other core.
fn filled_by_two(size: &Size, family: Family) -> Result<Ours> {
    let table = Ours::new(size.sessions, family)?;
    let fill = |core: usize| {
        pin(core)?;
        for number in (core as u32..size.sessions as u32).step_by(2) {
            let flow = holdfast_bench_packets::flows::flow(number, family);
            anyhow::ensure!(
                table.put(&flow, ours::redirect(number, ours::TUNNELS[0], family)),
                "our table is full"
            );
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|core| scope.spawn(move || fill(core))).collect();
        let mut joined = threads.into_iter().map(|thread| thread.join());
        joined.try_for_each(|ended| ended.map_err(|_| anyhow!("filling panicked"))?)
    })?;
    Ok(table)
}

/// A worker's slices of a round: alone, if it was its turn, and beside the other.
#[derive(Clone, Copy, Default)]
struct Round {
    alone: Option<Taken>,
    beside: Taken,
}

fn run(
    bench: &Bench,
    mut place: Place,
    rounds: usize,
    batches: usize,
    meeting: &Barrier,
) -> Result<Vec<Round>> {
    pin(place.core)?;
    let registration = bench.eal.register_thread();
    let overhead = overhead();
    let mut all = Vec::new();
    // A worker that fails goes on meeting the other, which would wait for ever.
    let mut failed = registration.as_ref().err().map(|error| anyhow!("{error}"));
    for round in 0..rounds {
        let mut this = Round::default();
        let mut slice = || {
            if failed.is_some() {
                return Taken::default();
            }
            match place.lane.slice(&mut place.frames, batches, overhead) {
                Ok(taken) => taken,
                Err(error) => {
                    failed = Some(error);
                    Taken::default()
                }
            }
        };
        meeting.wait();
        if round % 2 == place.core {
            this.alone = Some(slice());
        }
        meeting.wait();
        this.beside = slice();
        all.push(this);
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(all),
    }
}

fn report(taken: &[Vec<Round>], packets: usize) -> Result<Value> {
    let (mut one, mut two, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..taken.first().map_or(0, Vec::len) {
        let of_round = || taken.iter().map(|worker| worker[round]);
        let mpps = |taken: Taken| taken.millions_per_second(packets);
        let alone = of_round().find_map(|round| round.alone).map(mpps).context("nobody's turn")?;
        let both: f64 = of_round().map(|round| mpps(round.beside)).sum();
        one.push(alone);
        two.push(both);
        ratio.push(both / alone);
    }
    let spread = |values: Vec<f64>| Spread::of(values).map(Spread::json);
    Ok(json!({
        "one_worker_mpps": spread(one),
        "two_workers_mpps": spread(two),
        "ratio": spread(ratio),
    }))
}
