//! The large cluster: a million records a node, and what happens when one more server joins.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_dht::{Gauges, Statement};
use serde_json::{Value, json};

use crate::announce;
use crate::cluster::Cluster;
use crate::lookup::{self, Expect, Until};
use crate::meter::{resident_bytes, round};
use crate::report::say;
use crate::sessions::Sessions;

/// Between two looks at all gauges while the join is repaired.
const POLL: Duration = Duration::from_millis(100);
/// Gauges that do not change for so long have come to rest.
const REST: Duration = Duration::from_secs(3);
/// A repair that takes longer is given up.
const REPAIR_MAX: Duration = Duration::from_secs(600);
/// Flows whose replicas are asked one by one.
const SURVEYS: u64 = 2000;

/// Fills the cluster, lets one more server join, and checks that all is where it belongs.
pub fn run(cluster: &mut Cluster, sessions: &Sessions, time: Duration) -> Result<Value> {
    let resident_before = resident_bytes()?;
    say(&format!("publishing {} sessions", sessions.count()));
    let published = announce::publish(cluster, sessions, 0)?;
    let records: Vec<u64> = cluster.gauges()?.iter().map(|gauges| gauges.records).collect();
    let held: u64 = records.iter().sum();
    let resident = resident_bytes()?;
    let before = lookup::load(cluster, sessions, Expect::Owner, Until::Elapsed(time))?;
    say("one more server joins");
    let repair = join(cluster, sessions)?;
    let after = lookup::load(cluster, sessions, Expect::Owner, Until::Elapsed(time))?;
    let nodes = records.len() as f64;
    let mean = held as f64 / nodes;
    Ok(json!({
        "nodes": records.len(),
        "sessions": sessions.count(),
        "records_per_node": { "mean": mean.round(), "min": records.iter().min(),
            "max": records.iter().max(), "max_by_mean":
            round(records.iter().max().copied().unwrap_or(0) as f64 / mean) },
        "sets_per_s": round(sessions.count() as f64 / published.elapsed_s),
        "per_set": published.per(sessions.count()),
        "resident_bytes": resident,
        "resident_bytes_per_record": round((resident - resident_before) as f64 / held as f64),
        "repair_after_join_s": repair["repair_s"],
        "join": repair,
        "resident_bytes_after_join": resident_bytes()?,
        "lookups_before_join": before.to_json(),
        "lookups_after_join": after.to_json(),
        "wrong": before.wrong + after.wrong,
        "lost": before.lost() + after.lost(),
    }))
}

/// Adds a server and waits until no gauge changes any more. The repair ends with the last change,
/// not with the rest that shows it was the last.
fn join(cluster: &mut Cluster, sessions: &Sessions) -> Result<Value> {
    let started = Instant::now();
    cluster.add()?;
    cluster.wait_complete()?;
    let joined_s = started.elapsed().as_secs_f64();
    let (mut seen, mut changed) = (Vec::new(), started.elapsed());
    loop {
        let now: Vec<_> = cluster.gauges()?.iter().map(movement).collect();
        let settled = now.iter().all(|(_, unacked, withdrawing)| unacked + withdrawing == 0);
        if now != seen {
            (seen, changed) = (now, started.elapsed());
        } else if settled && started.elapsed() - changed > REST {
            break;
        }
        ensure!(started.elapsed() < REPAIR_MAX, "not repaired within {REPAIR_MAX:?}: {seen:?}");
        std::thread::sleep(POLL);
    }
    let expected = sessions.count() * cluster.replicas() as u64;
    let full = surveys(cluster, sessions)?;
    Ok(json!({
        "joined_s": round(joined_s),
        "repair_s": round(changed.as_secs_f64()),
        "records": seen.iter().map(|(records, ..)| records).sum::<u64>(),
        "records_expected": expected,
        "records_of_new_node": seen.last().map(|(records, ..)| records),
        "records_of_new_node_if_even": expected / cluster.servers.len() as u64,
        "surveyed": SURVEYS.min(sessions.count()),
        "surveyed_at_all_replicas": full,
    }))
}

fn movement(gauges: &Gauges) -> (u64, u64, u64) {
    (gauges.records, gauges.published_unacked, gauges.withdrawing)
}

/// How many flows of a sample all their replicas hold, as the new server sees it.
fn surveys(cluster: &Cluster, sessions: &Sessions) -> Result<u64> {
    let asker = &cluster.servers[cluster.servers.len() - 1];
    let count = SURVEYS.min(sessions.count());
    let mut full = 0;
    for n in 0..count {
        let report = asker.survey(sessions.flow(n * (sessions.count() / count)))?;
        let holds = report.replicas.iter().filter(|r| matches!(r.said, Statement::Holds(_)));
        full += u64::from(holds.count() == cluster.replicas());
    }
    Ok(full)
}
