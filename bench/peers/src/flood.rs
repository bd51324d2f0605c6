//! Drives another DHT as holdfast's own bench drives holdfast: single sets and gets, then many
//! in flight; every value got is compared. It knows no DHT.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// Nodes of every peer.
pub const NODES: usize = 16;
const VALUE_BYTES: usize = 48;
const IN_FLIGHT: usize = 64;
const IN_FLIGHT_MANY: usize = 1000;
const IDLE_MAX: u64 = 1000;
/// An operation without an answer after this time is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a get came to.
pub enum Got {
    /// A value, over the network.
    Value(Vec<u8>),
    /// The node held it itself: the network was not asked, and it does not count.
    Local,
    /// No value.
    Nothing,
}

/// A DHT of [`NODES`] nodes on loopback, in this process, that know each other.
pub trait Peer {
    /// Version of the crate.
    const VERSION: &'static str;
    /// What is not as it comes.
    const SETTINGS: &'static str;

    /// Stores a value at a node. Returns whether it was stored.
    fn set(&self, node: usize, n: u64, value: [u8; VALUE_BYTES]) -> impl Future<Output = bool>;

    /// Gets the `n`-th value from a node.
    fn get(&self, node: usize, n: u64, value: [u8; VALUE_BYTES]) -> impl Future<Output = Got>;
}

#[derive(Debug, Parser)]
struct Args {
    /// Of each phase
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

#[derive(Default)]
struct Phase {
    asked: u64,
    done: u64,
    local: u64,
    wrong: u64,
    times_us: Vec<u64>,
}

struct Bench<P> {
    peer: P,
    phase_time: Duration,
    next: u64,
    random: u64,
    stored: Vec<u64>,
}

#[derive(Clone, Copy)]
enum Operation {
    Set,
    Get,
}

type Shared<P> = Rc<RefCell<Bench<P>>>;

/// The `n`-th value: like no other.
fn value(n: u64) -> [u8; VALUE_BYTES] {
    let mut value = [b'.'; VALUE_BYTES];
    value[..8].copy_from_slice(&n.to_be_bytes());
    value
}

/// Measures a peer and prints one JSON object a line; the last one counts.
pub async fn run<P: Peer + Clone + 'static>(peer: P) -> Result<()> {
    let phase_time = Duration::from_secs(Args::parse().seconds);
    let bench = Bench { peer, phase_time, next: 0, random: 1, stored: Vec::new() };
    let bench = Rc::new(RefCell::new(bench));
    let idle_sets = one_at_a_time(&bench, Operation::Set).await;
    let idle_gets = one_at_a_time(&bench, Operation::Get).await;
    let sets = many(&bench, Operation::Set, IN_FLIGHT).await?;
    ensure!(!bench.borrow().stored.is_empty(), "nothing could be stored");
    let gets = many(&bench, Operation::Get, IN_FLIGHT).await?;
    report::<P>(&idle_sets, &idle_gets, &sets, std::slice::from_ref(&gets));
    let more = many(&bench, Operation::Get, IN_FLIGHT_MANY).await?;
    report::<P>(&idle_sets, &idle_gets, &sets, &[gets, more]);
    Ok(())
}

async fn one<P: Peer + Clone>(bench: &Shared<P>, operation: Operation, phase: &RefCell<Phase>) {
    let peer = bench.borrow().peer.clone();
    phase.borrow_mut().asked += 1;
    let (n, node) = match operation {
        Operation::Set => bench.borrow_mut().fresh(),
        Operation::Get => bench.borrow_mut().remote(),
    };
    let started = Instant::now();
    let got = match operation {
        Operation::Set => timeout(PATIENCE, peer.set(node, n, value(n)))
            .await
            .map(|stored| if stored { Got::Value(value(n).to_vec()) } else { Got::Nothing }),
        Operation::Get => timeout(PATIENCE, peer.get(node, n, value(n))).await,
    };
    let time_us = started.elapsed().as_micros() as u64;
    let mut phase = phase.borrow_mut();
    match got {
        Ok(Got::Value(bytes)) => {
            phase.done += 1;
            phase.wrong += u64::from(bytes != value(n));
            phase.times_us.push(time_us);
            if let Operation::Set = operation {
                bench.borrow_mut().stored.push(n);
            }
        }
        Ok(Got::Local) => {
            phase.asked -= 1;
            phase.local += 1;
        }
        Ok(Got::Nothing) | Err(_) => {}
    }
}

async fn one_at_a_time<P: Peer + Clone>(bench: &Shared<P>, operation: Operation) -> Phase {
    let (phase, started) = (RefCell::new(Phase::default()), Instant::now());
    let time = bench.borrow().phase_time;
    while phase.borrow().asked < IDLE_MAX && started.elapsed() < time {
        one(bench, operation, &phase).await;
    }
    phase.into_inner()
}

/// A fixed number in flight for the phase's time; then what is left may end.
async fn many<P: Peer + Clone>(
    bench: &Shared<P>,
    operation: Operation,
    in_flight: usize,
) -> Result<Value> {
    let (phase, started) = (RefCell::new(Phase::default()), Instant::now());
    let time = bench.borrow().phase_time;
    let (cpu_us, wire) = (cpu_us()?, lo_bytes()?);
    let worker = async || {
        while started.elapsed() < time {
            one(bench, operation, &phase).await;
        }
    };
    let watch = async {
        sleep(time).await;
        (phase.borrow().done, started.elapsed().as_secs_f64())
    };
    let workers = join_all((0..in_flight).map(|_| worker()));
    let (_, (in_time, elapsed_s)) = futures::join!(workers, watch);
    let phase = phase.into_inner();
    let done = phase.done.max(1) as f64;
    Ok(json!({
        "in_flight": in_flight,
        "per_s": (in_time as f64 / elapsed_s * 10.0).round() / 10.0,
        "asked": phase.asked,
        "lost": phase.asked - phase.done,
        "local": phase.local,
        "wrong": phase.wrong,
        "latency_us": quantiles(&phase.times_us),
        "cpu_us": ((self::cpu_us()? - cpu_us) / done * 10.0).round() / 10.0,
        "wire_bytes": ((lo_bytes()? - wire) as f64 / done).round(),
    }))
}

impl<P> Bench<P> {
    fn fresh(&mut self) -> (u64, usize) {
        self.next += 1;
        (self.next - 1, ((self.next - 1) % NODES as u64) as usize)
    }

    /// A stored value, and a node that did not store it for us.
    fn remote(&mut self) -> (u64, usize) {
        let mut draw = |below: u64| {
            // A linear congruential generator, its upper half: enough to pick by.
            self.random =
                self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.random >> 33) % below
        };
        let n = self.stored[draw(self.stored.len() as u64) as usize];
        let node = (n + 1 + draw(NODES as u64 - 1)) % NODES as u64;
        (n, node as usize)
    }
}

#[allow(clippy::print_stdout)]
fn report<P: Peer>(idle_sets: &Phase, idle_gets: &Phase, sets: &Value, gets: &[Value]) {
    let per_s = |phase: &&Value| phase["per_s"].as_f64().unwrap_or(0.0);
    let best = gets.iter().max_by(|a, b| per_s(a).total_cmp(&per_s(b))).unwrap_or(&Value::Null);
    let many = gets.get(1);
    let wrong: u64 = gets.iter().filter_map(|phase| phase["wrong"].as_u64()).sum();
    let value = json!({
        "version": P::VERSION,
        "settings": P::SETTINGS,
        "nodes": NODES,
        "value_bytes": VALUE_BYTES,
        "sets_per_s": sets["per_s"],
        "lookups_per_s": best["per_s"],
        "idle_get_us": quantiles(&idle_gets.times_us),
        "idle_set_us": quantiles(&idle_sets.times_us),
        "idle_lost": idle_sets.asked - idle_sets.done + idle_gets.asked - idle_gets.done,
        "in_flight": IN_FLIGHT_MANY,
        "lost": many.map(|many| many["lost"].clone()),
        "lost_share": many.map(lost_share),
        // The driver is in the same process, and contained.
        "cpu_us_per_set": sets["cpu_us"],
        "cpu_us_per_lookup": best["cpu_us"],
        "wire_bytes_per_set": sets["wire_bytes"],
        "wire_bytes_per_lookup": best["wire_bytes"],
        "wrong": wrong + idle_gets.wrong,
        "phases": { "sets": sets, "gets": gets },
    });
    println!("{value}");
}

fn lost_share(phase: &Value) -> f64 {
    let count = |name: &str| phase[name].as_f64().unwrap_or(0.0);
    (count("lost") / count("asked").max(1.0) * 1e4).round() / 1e4
}

fn quantiles(times_us: &[u64]) -> Value {
    let mut sorted = times_us.to_vec();
    sorted.sort_unstable();
    let at = |q: f64| sorted.get(((q * sorted.len() as f64) as usize).min(sorted.len().max(1) - 1));
    json!({ "p50": at(0.5), "p99": at(0.99), "n": sorted.len() })
}

/// CPU time of the process, from its scheduler statistics.
fn cpu_us() -> Result<f64> {
    let mut sum_ns = 0.0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        sum_ns += text.split(' ').next().context("schedstat")?.parse::<f64>()?;
    }
    Ok(sum_ns / 1e3)
}

/// Bytes that have gone over the loopback interface, IP headers included.
fn lo_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let first = line.and_then(|line| line.split_whitespace().next());
    Ok(first.context("this network namespace has no interface lo")?.parse()?)
}
