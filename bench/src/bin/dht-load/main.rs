//! `dht-load`: measures holdfast's DHT as its workers meet it. Real services, each in a thread
//! with its own UDP socket on a loopback address and every datagram sealed, are driven through
//! the workers' rings, and every answer is checked. It prints one JSON object, and fails when an
//! answer was wrong or a lookup was lost; it judges no speed.

#![forbid(unsafe_code)]

mod announce;
mod cluster;
mod growth;
mod lookup;
mod meter;
mod report;
mod sessions;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use holdfast_dht::Counter;
use holdfast_handoff::{Version, unix_us};
use serde_json::{Value, json};

use cluster::{Cluster, Plan, total, totals};
use lookup::{Expect, Tally, Until};
use meter::round;
use report::{quantiles, say};
use sessions::Sessions;

/// Lookups in each check of flows that nobody owns.
const CHECKS: u64 = 20_000;

/// Measures sets, lookups and their cost on a cluster in this process.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Servers
    #[arg(long, default_value_t = 16)]
    nodes: usize,
    /// Sessions that each server publishes in a round
    #[arg(long, default_value_t = 20_000)]
    sessions: u64,
    /// Rounds of publishing, looking up and withdrawing
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Time of looking up in each round, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Lookups in flight at all servers together
    #[arg(long, default_value_t = 10_000)]
    in_flight: usize,
    /// Lookups, and sets, one at a time
    #[arg(long, default_value_t = 2000)]
    idle: u64,
    /// Instead of all that: fill so many records into each server, then let one more join
    #[arg(long)]
    records_per_node: Option<u64>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    ensure!((5..=1000).contains(&args.nodes), "--nodes is from 5 to 1000");
    ensure!((16..=1 << 20).contains(&args.in_flight), "--in-flight is from 16 to 1048576");
    ensure!((1..=100).contains(&args.rounds), "--rounds is from 1 to 100");
    ensure!((1..=600).contains(&args.seconds), "--seconds is from 1 to 600");
    ensure!((100..=10_000_000).contains(&args.sessions), "--sessions is from 100 to 10000000");
    let value = match args.records_per_node {
        None => measure(&args)?,
        Some(records) => fill(&args, records)?,
    };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{value:#}")?;
    let faults = |name: &str| value[name].as_u64().unwrap_or(u64::MAX);
    if faults("wrong") + faults("lost") > 0 {
        say(&format!(
            "FAILED: {} answers were wrong, {} lookups lost",
            faults("wrong"),
            faults("lost")
        ));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The servers' share of the lookups in flight.
fn plan(args: &Args, sessions: u64, records: u64) -> Result<Plan> {
    Ok(Plan {
        servers: args.nodes,
        in_flight: args.in_flight.div_ceil(args.nodes),
        published_max: usize::try_from(sessions)?,
        records_max: usize::try_from(records)?,
    })
}

/// Rounds of sets, lookups and withdraws; then single ones.
fn measure(args: &Args) -> Result<Value> {
    // A round's sessions and the last round's that are still being deleted.
    let records = 6 * args.sessions * 3;
    let mut cluster = Cluster::start(plan(args, 4 * args.sessions, records)?)?;
    let mut run = Run { wrong: 0, lost: 0, next: 0 };
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        let sessions = run.block(args.sessions * args.nodes as u64, args.nodes);
        let value = run.round(&mut cluster, &sessions, Duration::from_secs(args.seconds))?;
        say(&format!(
            "round {round}: {} sets/s, {} lookups/s over the network, {} with local ones",
            value["set"]["sets_per_s"],
            value["lookup"]["lookups_per_s"],
            value["lookup"]["lookups_with_local_per_s"],
        ));
        rounds.push(value);
    }
    let idle = run.idle(&mut cluster, args)?;
    let stats = cluster.stats()?;
    let counters: Value = totals(&stats)
        .into_iter()
        .map(|(name, sum)| (name.to_owned(), json!(sum)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let peers_dead = total(&stats, Counter::PeersDead);
    cluster.stop()?;
    Ok(json!({
        "nodes": args.nodes,
        "sessions": args.sessions * args.nodes as u64,
        "in_flight": args.in_flight.div_ceil(args.nodes) * args.nodes,
        "rounds": rounds,
        "idle": idle,
        "peers_dead": peers_dead,
        "counters": counters,
        "wrong": run.wrong,
        "lost": run.lost,
    }))
}

/// What a run has seen so far.
struct Run {
    wrong: u64,
    lost: u64,
    /// The next session number that was never used.
    next: u64,
}

impl Run {
    /// Sessions that never were before.
    fn block(&mut self, count: u64, owners: usize) -> Sessions {
        let sessions = Sessions::new(self.next, count, owners, Version(unix_us()));
        self.next = sessions.end();
        sessions
    }

    fn judge(&mut self, tally: &Tally) {
        self.wrong += tally.wrong;
        self.lost += tally.lost();
    }

    fn round(
        &mut self,
        cluster: &mut Cluster,
        sessions: &Sessions,
        time: Duration,
    ) -> Result<Value> {
        let count = sessions.count();
        let set = announce::publish(cluster, sessions, 0)?;
        let lookup = lookup::loaded_round(cluster, sessions, time)?;
        self.wrong += lookup["wrong"].as_u64().unwrap_or(1);
        self.lost += lookup["lost"].as_u64().unwrap_or(1);
        let strangers = self.block(count, sessions.owners());
        let unknown = lookup::load(cluster, &strangers, Expect::Nobody, Until::Asked(CHECKS))?;
        let withdraw = announce::withdraw(cluster, sessions, 0)?;
        let deleted = lookup::load(cluster, sessions, Expect::Nobody, Until::Asked(CHECKS))?;
        self.judge(&unknown);
        self.judge(&deleted);
        Ok(json!({
            "set": {
                "elapsed_s": round(set.elapsed_s),
                "sets_per_s": round(count as f64 / set.elapsed_s),
                "cores_busy": set.cores_busy(),
                "per_set": set.per(count),
            },
            "lookup": lookup,
            "withdraw": {
                "withdraws_per_s": round(count as f64 / withdraw.elapsed_s),
                "per_withdraw": withdraw.per(count),
            },
            "unknown": unknown.to_json(),
            "deleted": deleted.to_json(),
        }))
    }

    /// One at a time, with all of a round's sessions published.
    fn idle(&mut self, cluster: &mut Cluster, args: &Args) -> Result<Value> {
        let sessions = self.block(args.sessions * args.nodes as u64, args.nodes);
        announce::publish(cluster, &sessions, 0)?;
        let gets = lookup::idle_gets(cluster, &sessions, args.idle)?;
        self.judge(&gets);
        let each = args.idle.div_ceil(args.nodes as u64) * args.nodes as u64;
        let singles = self.block(2 * each, args.nodes);
        let sets = announce::idle_sets(cluster, &singles, args.sessions)?;
        Ok(json!({
            "get_us": quantiles(&gets.latency),
            "set_us": quantiles(&sets.stored),
            "set_seen_us": quantiles(&sets.seen),
            "gets": gets.to_json(),
        }))
    }
}

/// The large cluster.
fn fill(args: &Args, records_per_node: u64) -> Result<Value> {
    ensure!((1000..=100_000_000).contains(&records_per_node), "--records-per-node is from 1000");
    let nodes = args.nodes as u64;
    let count = records_per_node * nodes / 3;
    let mut cluster = Cluster::start(plan(args, count.div_ceil(nodes), 3 * records_per_node)?)?;
    let sessions = Sessions::new(0, count, args.nodes, Version(unix_us()));
    let value = growth::run(&mut cluster, &sessions, Duration::from_secs(args.seconds))?;
    cluster.stop()?;
    Ok(value)
}
