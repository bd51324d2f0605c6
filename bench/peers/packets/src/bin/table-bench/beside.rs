//! A reader beside a writer: what a reader loses while another core inserts and removes. Rounds
//! with and without the writer take turns, so that the machine's own noise hits both.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use holdfast_bench_packets::flows::{Family, Walk, flow};
use holdfast_bench_packets::hash_peer::{HashPeer, Keys};
use holdfast_bench_packets::machine::pin;
use holdfast_bench_packets::meter::{Spread, measure};
use holdfast_bench_packets::ours::Ours;
use holdfast_dataplane::service::SessionKey;
use holdfast_dpdk::tsc;
use holdfast_net::FlowKey;
use serde_json::{Value, json};

/// What the writer is to do, insertions and removals together.
const OPS_PER_SECOND: u64 = 2_000_000;
/// Flows that the writer inserts and removes, over and over.
const WRITTEN: u32 = 1 << 16;
/// Operations between two looks at the clock.
const BATCH: usize = 64;
/// The writer's core; the reader stays on the first.
const WRITER_CORE: usize = 1;

/// A table that one thread reads while another writes.
pub trait Shared: Sync {
    /// A slice of flows as it takes them.
    type Slice: Send + Sync;
    /// Makes one.
    fn slice(&self, flows: &[FlowKey]) -> Self::Slice;
    /// Looks them up; how many are there.
    fn hits(&self, slice: &Self::Slice) -> usize;
    /// Inserts them, on the only thread that writes.
    fn insert(&self, slice: &Self::Slice) -> usize;
    /// Removes them, on the only thread that writes.
    fn remove(&self, slice: &Self::Slice) -> usize;
}

impl Shared for Ours {
    type Slice = Vec<SessionKey>;

    fn slice(&self, flows: &[FlowKey]) -> Vec<SessionKey> {
        flows.iter().map(|flow| self.key(flow)).collect()
    }

    fn hits(&self, slice: &Vec<SessionKey>) -> usize {
        Ours::hits(self, slice)
    }

    fn insert(&self, slice: &Vec<SessionKey>) -> usize {
        // As the worker does, so that the writer keeps up with what it is to do.
        self.insert_in_bursts(slice)
    }

    fn remove(&self, slice: &Vec<SessionKey>) -> usize {
        self.remove_in_bursts(slice)
    }
}

/// An rte_hash, and the family of its keys.
pub struct SharedHash<'a>(pub &'a HashPeer, pub Family);

impl Shared for SharedHash<'_> {
    type Slice = Keys;

    fn slice(&self, flows: &[FlowKey]) -> Keys {
        let mut keys = Keys::new(self.1);
        keys.set(flows);
        keys
    }

    fn hits(&self, slice: &Keys) -> usize {
        self.0.hits(slice).0 as usize
    }

    fn insert(&self, slice: &Keys) -> usize {
        // SAFETY: only the writer's thread comes here.
        unsafe { self.0.insert_beside_readers(slice, 1) }
    }

    fn remove(&self, slice: &Keys) -> usize {
        // SAFETY: only the writer's thread comes here.
        unsafe { self.0.remove_beside_readers(slice) }
    }
}

/// How a measurement is cut.
pub struct Plan {
    pub family: Family,
    /// Sessions in the table.
    pub sessions: usize,
    /// Lookups in a slice.
    pub slice: usize,
    pub rounds: usize,
    pub tsc_hz: u64,
}

#[derive(Default)]
struct Signals {
    write: AtomicBool,
    idle: AtomicBool,
    stop: AtomicBool,
    gone: AtomicBool,
    operations: AtomicU64,
}

/// Measures a table that holds flows 0 to `plan.sessions`. The last of them are the writer's: it
/// takes them out and puts them in again, so that the table is never fuller than it was.
pub fn measure_beside<T: Shared>(table: &T, plan: &Plan) -> Result<Value> {
    let signals = Signals::default();
    let slices = writers_flows(table, plan);
    for slice in &slices {
        ensure!(table.remove(slice) == BATCH, "the table lacks flows of the writer's");
    }
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let wrote = write(table, &slices, plan, &signals);
            signals.gone.store(true, Ordering::Release);
            wrote
        });
        let read = read(table, plan, &signals);
        signals.stop.store(true, Ordering::Release);
        let wrote = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        wrote.and(read)
    })
}

fn writers_flows<T: Shared>(table: &T, plan: &Plan) -> Vec<T::Slice> {
    let sessions = plan.sessions as u32;
    let numbers = sessions - WRITTEN..sessions;
    let flows: Vec<FlowKey> = numbers.map(|n| flow(n, plan.family)).collect();
    flows.chunks_exact(BATCH).map(|chunk| table.slice(chunk)).collect()
}

fn read<T: Shared>(table: &T, plan: &Plan, signals: &Signals) -> Result<Value> {
    let mut walk = Walk::new(plan.sessions as u32 - WRITTEN);
    let (mut alone, mut beside, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        // Each order as often as the other; other flows for each, so that neither finds in the
        // cache what the other brought there.
        for with_writer in [round % 2 == 0, round % 2 != 0] {
            let numbers = walk.by_ref().take(plan.slice);
            let flows: Vec<FlowKey> = numbers.map(|n| flow(n, plan.family)).collect();
            let slice = table.slice(&flows);
            signals.write.store(with_writer, Ordering::Release);
            while signals.idle.load(Ordering::Acquire) == with_writer {
                ensure!(!signals.gone.load(Ordering::Acquire), "the writer has gone");
                spin_loop();
            }
            let (start, before) = (tsc(), signals.operations.load(Ordering::Relaxed));
            let (found, taken) = measure(|| table.hits(&slice));
            let wrote = signals.operations.load(Ordering::Relaxed) - before;
            ensure!(found == flows.len(), "the reader missed {}", flows.len() - found);
            let speed = taken.millions_per_second(flows.len());
            if with_writer {
                rates.push(wrote as f64 * plan.tsc_hz as f64 / (tsc() - start) as f64 / 1e6);
                beside.push(speed);
            } else {
                alone.push(speed);
            }
        }
    }
    let loss = beside.iter().zip(&alone).map(|(beside, alone)| (1.0 - beside / alone) * 100.0);
    let spread = |values: &[f64]| Spread::of(values.iter().copied()).map(Spread::json);
    Ok(json!({
        "loss_percent": Spread::of(loss).context("no round")?.json(),
        "alone": spread(&alone),
        "beside_writer": spread(&beside),
        "writer_million_ops_per_second": spread(&rates),
    }))
}

fn write<T: Shared>(table: &T, slices: &[T::Slice], plan: &Plan, signals: &Signals) -> Result<()> {
    pin(WRITER_CORE)?;
    let cycles_per_batch = plan.tsc_hz * BATCH as u64 / OPS_PER_SECOND;
    let mut due = tsc();
    let mut pace = || {
        due = due.max(tsc().saturating_sub(16 * cycles_per_batch)) + cycles_per_batch;
        while tsc() < due {
            spin_loop();
        }
        signals.operations.fetch_add(BATCH as u64, Ordering::Relaxed);
    };
    // Some stay in, so that removals follow insertions at a distance.
    const LAG: usize = 8;
    let mut next = 0;
    loop {
        if signals.stop.load(Ordering::Acquire) {
            return Ok(());
        }
        while !signals.write.load(Ordering::Acquire) {
            signals.idle.store(true, Ordering::Release);
            if signals.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        signals.idle.store(false, Ordering::Release);
        let slice = &slices[next % slices.len()];
        let inserted = black_box(table.insert(slice));
        ensure!(inserted == BATCH, "the writer inserted {inserted} of {BATCH}");
        pace();
        if next >= LAG {
            let removed = table.remove(&slices[(next - LAG) % slices.len()]);
            ensure!(removed == BATCH, "the writer removed {removed} of {BATCH}");
            pace();
        }
        next += 1;
    }
}
