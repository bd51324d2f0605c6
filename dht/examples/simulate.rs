//! The simulator at full size, as `scripts/simulate` runs it: prints what it has seen as Markdown,
//! and what was wrong, with the seed that brings it back. Exit code 1 when anything was.
//!
//! ```text
//! simulate matrix [--servers N,N] [--loss P,P] [--killed P,P] [--seed S] [--threads T]
//! simulate storms [--servers N] [--lookups L] [--seed S]
//! simulate churn [--seeds COUNT] [--first SEED] [--minutes M] [--threads T]
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use common::churn::{Churn, Outcome};
use common::matrix::{Cell, Effort, Row};
use common::sessions::{PROMISES, Tally};
use common::storms::{self, Storm};
use common::{MS, SECOND};

const KILLED_PERCENT: [u32; 5] = [1, 5, 10, 25, 50];
const LOSS_PERCENT: [u32; 4] = [0, 1, 5, 20];
/// How far from the chance that a replica lives the part of sessions found may be.
const POINTS_MAX: f64 = 1.0;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = match Options::of(&arguments) {
        Ok(options) => options,
        Err(what) => {
            eprintln!("simulate: {what}\nusage: simulate matrix|storms|churn [--OPTION VALUE]...");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let faults = match options.what.as_str() {
        "matrix" => matrix(&options),
        "storms" => run_storms(&options),
        _ => churn(&options),
    };
    println!("\n{} faults; {} s.", faults.len(), started.elapsed().as_secs());
    for fault in &faults {
        println!("- {fault}");
    }
    ExitCode::from(u8::from(!faults.is_empty()))
}

struct Options {
    what: String,
    servers: Vec<usize>,
    loss: Vec<u32>,
    killed: Vec<u32>,
    seed: u64,
    seeds: u64,
    minutes: u64,
    lookups: usize,
    threads: usize,
}

impl Options {
    fn of(arguments: &[String]) -> Result<Options, String> {
        let (what, rest) = arguments.split_first().ok_or("say what to simulate")?;
        if !["matrix", "storms", "churn"].contains(&what.as_str()) {
            return Err(format!("{what}: unknown, expected matrix, storms or churn"));
        }
        let mut options = Options {
            what: what.clone(),
            servers: Vec::new(),
            loss: LOSS_PERCENT.to_vec(),
            killed: KILLED_PERCENT.to_vec(),
            seed: 1,
            seeds: 10,
            minutes: 10,
            lookups: 1_000_000,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        };
        for pair in rest.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{}: its value is missing", pair[0]));
            };
            let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: no number"));
            match name.as_str() {
                "--servers" => options.servers = numbers(name, value)?,
                "--loss" => options.loss = numbers(name, value)?,
                "--killed" => options.killed = numbers(name, value)?,
                "--seed" | "--first" => options.seed = number()?,
                "--seeds" => options.seeds = number()?,
                "--minutes" => options.minutes = number()?,
                "--lookups" => options.lookups = number()? as usize,
                "--threads" => options.threads = (number()? as usize).max(1),
                _ => return Err(format!("{name}: unknown option")),
            }
        }
        Ok(options)
    }
}

fn numbers<N: std::str::FromStr>(name: &str, value: &str) -> Result<Vec<N>, String> {
    let numbers: Result<Vec<N>, _> = value.split(',').map(str::parse).collect();
    numbers.map_err(|_| format!("{name} {value}: no numbers"))
}

/// Does all jobs on some threads; the results are in the order of the jobs.
fn on_threads<J: Sync, R: Send>(
    threads: usize,
    jobs: &[J],
    work: impl Fn(&J) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { return };
                    let result = work(job);
                    results.lock().expect("no panic").push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no panic");
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

// --- the matrix ----------------------------------------------------------------------------------

/// As many sets of dead servers that the mean is exact to a third of a point, and 10,000 lookups.
fn effort(servers: usize, killed_percent: u32) -> Effort {
    let kills = match (servers, killed_percent) {
        (0..8, _) => 400,
        (8..32, _) => 1000,
        (32..200, 0..10) => 60,
        (32..200, _) => 400,
        (_, 0..10) => 2,
        (_, 10..50) => 3,
        _ => 10,
    };
    let repairs = match servers {
        0..32 => 20,
        32..200 => 5,
        _ => 1,
    };
    let lookups = 10_000_usize.div_ceil(kills);
    Effort { sessions: 2000.max(2 * servers), kills, lookups, repairs }
}

fn matrix(options: &Options) -> Vec<String> {
    let servers = match options.servers.as_slice() {
        [] => &[4, 16, 64, 1000][..],
        servers => servers,
    };
    let mut jobs: Vec<(usize, u32)> =
        servers.iter().flat_map(|n| options.loss.iter().map(|loss| (*n, *loss))).collect();
    // The large ones first, or one thread waits for the other in the end.
    jobs.sort_by_key(|(n, _)| usize::MAX - n);
    let rows = on_threads(options.threads, &jobs, |(n, loss)| {
        let row = Row::new(*n, *loss, effort(*n, 0).sessions, options.seed);
        eprintln!("{n} servers, {loss} % lost: joined after {} ms", row.network.now_us / MS);
        let cell = |killed: u32| {
            let seed = options.seed ^ u64::from(*loss) << 8 ^ u64::from(killed) << 16;
            row.kill(killed, effort(*n, killed), seed)
        };
        options.killed.iter().map(|killed| cell(*killed)).collect::<Vec<Cell>>()
    });
    let mut cells: Vec<Cell> = rows.into_iter().flatten().collect();
    cells.sort_by_key(|c| (c.nodes, c.loss_percent, c.killed_percent));
    println!("{}", Cell::HEADINGS);
    for cell in &cells {
        println!("{}", cell.line());
    }
    cells.iter().flat_map(faults_of).collect()
}

fn faults_of(cell: &Cell) -> Vec<String> {
    let percent = |count: usize| 100.0 * count as f64 / cell.lookups.max(1) as f64;
    let (found, alive) = (percent(cell.found), percent(cell.alive));
    let by_replicas = percent(cell.found - cell.told_by_owner);
    let expected = 100.0 * cell.expected;
    // Where one in five datagrams is lost, so are some lookups within their time.
    let by_loss = if cell.loss_percent < 20 { 0.0 } else { 2.0 };
    let repaired = cell.repaired_found == cell.repaired;
    let promised = !PROMISES.never_denied || cell.looks_denied == 0;
    let checks = [
        ((alive - expected).abs() <= POINTS_MAX, "replicas live otherwise than by chance"),
        (found >= expected - POINTS_MAX - by_loss, "fewer are found than have a replica"),
        (by_replicas <= expected + POINTS_MAX, "more are found than have a replica"),
        (cell.denied == 0, "a session with a live replica is denied"),
        (cell.wrong == 0, "a wrong owner or an older version is told"),
        (promised, "a live session is denied while the others repair"),
        (repaired, "not all are found after the repair"),
    ];
    let failed = checks.into_iter().filter(|(holds, _)| !holds);
    failed.map(|(_, what)| format!("{what}: {}", cell.line())).collect()
}

// --- storms --------------------------------------------------------------------------------------

fn run_storms(options: &Options) -> Vec<String> {
    let nodes = options.servers.first().copied().unwrap_or(200);
    let (seed, lookups) = (options.seed, options.lookups);
    let storms: [Box<dyn Fn() -> Storm + Sync>; 5] = [
        Box::new(move || storms::all_restart(nodes, 50, seed)),
        Box::new(move || storms::many_lookups(nodes.min(64), lookups, seed)),
        Box::new(move || storms::partition_heals(nodes, 50, seed)),
        Box::new(move || storms::flapping_link(nodes.min(64), 50, seed)),
        Box::new(move || storms::damage(nodes.min(32), 120, seed)),
    ];
    let storms = on_threads(options.threads, &storms, |storm| storm());
    for storm in &storms {
        println!("- *{}*: {}.", storm.name, storm.seen);
    }
    let faults = |storm: Storm| {
        storm.faults.into_iter().map(move |fault| format!("{}, seed {seed}: {fault}", storm.name))
    };
    storms.into_iter().flat_map(faults).collect()
}

// --- churn ---------------------------------------------------------------------------------------

/// Every other seed has wrong clocks, and every other one partitions.
fn churn(options: &Options) -> Vec<String> {
    let seeds: Vec<u64> = (options.seed..options.seed + options.seeds).collect();
    let outcomes = on_threads(options.threads, &seeds, |seed| {
        let divides = seed % 2 == 0;
        let outcome = Churn {
            seed: *seed,
            nodes: options.servers.first().copied().unwrap_or(10),
            flows: 100,
            seconds: 60 * options.minutes,
            peace_every_s: 60,
            pause_us: 5 * MS,
            skew_us: if divides { 2 * MS } else { 120 * SECOND },
            divides,
        }
        .run();
        eprintln!("seed {seed}: {} faults", outcome.faults.len());
        outcome
    });
    let mut total = Tally::default();
    outcomes.iter().for_each(|outcome| total.add(&outcome.tally));
    let sum = |part: fn(&Outcome) -> u64| outcomes.iter().map(part).sum::<u64>();
    println!(
        "{} seeds from {} on, {} virtual minutes each: {} datagrams; {} joins, {} crashes, {} \
         restarts of a daemon, {} leaves, {} partitions; {} peaces at which all records were looked \
         at.\n\n\
         | sessions acknowledged | ends acknowledged | found | NotFound | TimedOut |\n\
         |---:|---:|---:|---:|---:|\n| {} | {} | {} | {} | {} |",
        seeds.len(),
        options.seed,
        options.minutes,
        sum(|o| o.delivered),
        sum(|o| o.joins),
        sum(|o| o.crashes),
        sum(|o| o.restarts),
        sum(|o| o.leaves),
        sum(|o| o.partitions),
        sum(|o| o.peaces),
        total.acked,
        total.gone,
        total.found,
        total.not_found,
        total.timed_out,
    );
    println!(
        "\nCounted, and faults where they are promised not to be: {} lookups denied and {} answered with an older \
         session within 10 s of a change; {} answered with a session whose end was acknowledged, \
         {} with one lost with its server; {} denied right after their daemon restarted; {} live \
         sessions whose record was given up; {} stray copies at the last looks.",
        total.denied,
        total.older,
        total.returned,
        total.ghosts,
        total.denied_retold,
        total.given_up,
        total.stray_copies,
    );
    let faults = |outcome: Outcome| {
        let seed = outcome.seed;
        outcome.faults.into_iter().take(3).map(move |fault| format!("seed {seed}: {fault}"))
    };
    outcomes.into_iter().flat_map(faults).collect()
}
