//! One measurement: traffic at a rate for a time, what came out, what the daemon says of it, and
//! whether the two agree. Never changes the daemon.

use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_dpdk::{PortStats, tsc};
use serde_json::{Value, json};

use crate::books;
use crate::cpu_time::Threads;
use crate::daemon::{Daemon, Stats, Values, growth, nonzero};
use crate::door::{BURST, Door, Sent};
use crate::flows::Class;
use crate::generator::{Generator, Handshakes};
use crate::latency::Latencies;
use crate::pace::Pace;
use crate::traffic::{Draw, RunName};

/// Packets that are made up for after the generator was held up, at most.
const BEHIND_MAX: u64 = 512;
/// After the last packet sent, this long without one received ends a measurement when all are back,
const QUIET: Duration = Duration::from_millis(50);
/// and this long when some are not: parked ones may wait for a second.
const QUIET_MISSING: Duration = Duration::from_millis(1300);
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The run.
    pub run: RunName,
    /// Measured packets per second.
    pub rate: u64,
    /// For how long.
    pub seconds: f64,
    /// Sessions opened and closed per second meanwhile.
    pub churn: u64,
}

/// How a measurement went.
pub struct Outcome {
    plan: Plan,
    seconds: f64,
    offered: u64,
    refused: u64,
    delivered: u64,
    skipped: u64,
    churn: Handshakes,
    checked: u64,
    damaged: u64,
    misplaced: u64,
    late: u64,
    foreign: u64,
    first_wrong: Option<String>,
    cpu_percent: Value,
    latency_us: Value,
    latency_us_by_kind: Value,
    near: Value,
    drops: Value,
    imbalances: Vec<String>,
}

/// The generator's own counts of frames, before and after.
struct Own {
    uplink: Sent,
    host: Sent,
    from_uplink: u64,
    from_host: u64,
    data: Sent,
    handshakes: Handshakes,
    nic: PortStats,
}

impl Own {
    fn read(generator: &Generator) -> Result<Own> {
        Ok(Own {
            uplink: generator.uplink.sent,
            host: generator.host.sent,
            from_uplink: generator.uplink.received,
            from_host: generator.host.received,
            data: data(&generator.uplink),
            handshakes: generator.handshakes,
            nic: generator.uplink.stats()?,
        })
    }
}

fn data(door: &Door) -> Sent {
    door.data.iter().fold(Sent::default(), |sum, sent| Sent {
        offered: sum.offered + sent.offered,
        refused: sum.refused + sent.refused,
    })
}

/// Measures, with the daemon at rest before and after.
pub fn measure(
    generator: &mut Generator,
    draw: &mut Draw,
    near: &Daemon,
    plan: Plan,
) -> Result<Outcome> {
    generator.begin()?;
    let before = near.stats()?;
    let own_before = Own::read(generator)?;
    let threads = Threads::of_daemon(before.pid)?;
    let cpu_before = threads.read()?;
    let (ticks, skipped) = send(generator, draw, plan);
    let cpu = threads.read()?;
    drain(generator, own_before.data);
    let after = near.stats()?;
    let own = Own::read(generator)?;

    let values = accounts(&before, &after, &own_before, &own);
    let tally = &generator.tally;
    let (opened, closed) = (own.handshakes.churn_open, own.handshakes.churn_closed);
    let seconds = ticks as f64 / generator.hz() as f64;
    Ok(Outcome {
        plan,
        seconds,
        cpu_percent: cpu.since(&cpu_before, seconds),
        offered: own.data.offered - own_before.data.offered,
        refused: own.data.refused - own_before.data.refused,
        delivered: tally.delivered.iter().sum(),
        skipped,
        churn: Handshakes {
            churn_open: opened - own_before.handshakes.churn_open,
            churn_closed: closed - own_before.handshakes.churn_closed,
            ..Handshakes::default()
        },
        checked: tally.checked,
        damaged: tally.damaged,
        misplaced: tally.misplaced.iter().sum(),
        late: tally.late,
        foreign: tally.foreign,
        first_wrong: tally.first_wrong.clone(),
        latency_us: Latencies::all(&tally.latencies)?.to_json(),
        latency_us_by_kind: by_kind(&tally.latencies),
        near: daemon_side(&before, &after),
        drops: books::drops(&values)?,
        imbalances: books::imbalances(&values)?,
    })
}

/// Sends for the plan's time. Returns how long that was in ticks, and how many packets were never
/// sent because the generator was held up.
fn send(generator: &mut Generator, draw: &mut Draw, plan: Plan) -> (u64, u64) {
    let hz = generator.hz();
    let start = tsc();
    let end = start + (plan.seconds * hz as f64) as u64;
    let mut traffic = Pace::new(start, hz, plan.rate, BEHIND_MAX);
    let mut churn = Pace::new(start, hz, plan.churn, BEHIND_MAX);
    loop {
        let now = tsc();
        if now >= end {
            return (now - start, traffic.skipped());
        }
        let due = traffic.take(now, BURST as u64);
        for _ in 0..due {
            let flow = draw.flow(plan.run);
            generator.send_data(flow, now);
        }
        let opening = churn.take(now, BURST as u64 / 4);
        for _ in 0..opening {
            generator.open_churn();
        }
        if !generator.poll() && due + opening == 0 {
            // Where CPUs are few the DHT cores run on this one.
            std::thread::yield_now();
        }
    }
}

/// Takes what is still under way.
fn drain(generator: &mut Generator, before: Sent) {
    let start = Instant::now();
    let mut last = start;
    loop {
        if generator.poll() {
            last = Instant::now();
            continue;
        }
        let under_way = data(&generator.uplink).put() - before.put() > generator.tally.seen();
        let quiet = if under_way { QUIET_MISSING } else { QUIET };
        if last.elapsed() > quiet || start.elapsed() > DRAIN_MAX {
            return;
        }
        std::thread::yield_now();
    }
}

/// What the books are made from.
fn accounts(before: &Stats, after: &Stats, own_before: &Own, own: &Own) -> Values {
    let mut values = growth(&before.counters, &after.counters);
    values.extend(growth(&before.ports, &after.ports));
    let missed = |stats: &PortStats| stats.rx_missed + stats.rx_errors;
    for (name, value) in [
        ("generator.to_uplink", own.uplink.put() - own_before.uplink.put()),
        ("generator.to_host", own.host.put() - own_before.host.put()),
        ("generator.from_uplink", own.from_uplink - own_before.from_uplink),
        ("generator.from_host", own.from_host - own_before.from_host),
        ("generator.from_uplink_missed", missed(&own.nic) - missed(&own_before.nic)),
    ] {
        values.insert(name.to_owned(), value);
    }
    values
}

fn by_kind(latencies: &[Latencies; Class::COUNT]) -> Value {
    let of = |class: Class| latencies[class as usize].to_json();
    json!({
        "hits": of(Class::Local),
        "redirects": of(Class::Redirect),
        "misses": of(Class::Miss),
    })
}

fn daemon_side(before: &Stats, after: &Stats) -> Value {
    json!({
        "counters": nonzero(&growth(&before.counters, &after.counters)),
        "ports": nonzero(&growth(&before.ports, &after.ports)),
        "dht_counters": nonzero(&growth(&before.dht_counters, &after.dht_counters)),
        "table_before": before.table,
        "table_after": after.table,
    })
}

impl Outcome {
    /// Lost packets in percent of those offered.
    pub fn lost_percent(&self) -> f64 {
        let lost = self.offered.saturating_sub(self.delivered);
        lost as f64 * 100.0 / self.offered.max(1) as f64
    }

    /// Whether the generator did not reach the rate that it was told.
    pub fn generator_limited(&self) -> bool {
        (self.offered as f64) < 0.95 * self.plan.rate as f64 * self.seconds
    }

    /// What must never be, at whatever load: in words.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.imbalances.clone();
        let first = self.first_wrong.as_deref().unwrap_or("-");
        for (what, count) in [
            ("came out at the wrong side", self.misplaced),
            ("had changed on the way", self.damaged),
        ] {
            if count > 0 {
                faults.push(format!("{count} packets {what}; the first wrong frame: {first}"));
            }
        }
        if self.delivered > self.offered {
            let (delivered, offered) = (self.delivered, self.offered);
            faults.push(format!("{delivered} packets came out of {offered}"));
        }
        let name = self.plan.run.as_str();
        let rate = self.plan.rate;
        faults.into_iter().map(|fault| format!("{name} at {rate}/s: {fault}")).collect()
    }

    /// All of it.
    pub fn to_json(&self) -> Value {
        let mut json = self.summary();
        let more = json!({
            "offered": self.offered,
            "forwarded": self.delivered,
            "ring_full": self.refused,
            "not_sent_in_time": self.skipped,
            "compared": self.checked,
            "changed": self.damaged,
            "misplaced": self.misplaced,
            "late": self.late,
            "foreign": self.foreign,
            "first_wrong": self.first_wrong,
            "sessions_opened": self.churn.churn_open,
            "sessions_closed": self.churn.churn_closed,
            "books_balance": self.imbalances.is_empty(),
            "imbalances": self.imbalances,
            "near": self.near,
        });
        merge(&mut json, more);
        json
    }

    /// What one wants to know first.
    pub fn summary(&self) -> Value {
        let mpps = |packets: u64| (packets as f64 / self.seconds / 10.0).round() / 1e5;
        json!({
            "wanted_mpps": self.plan.rate as f64 / 1e6,
            "offered_mpps": mpps(self.offered),
            "forwarded_mpps": mpps(self.delivered),
            "lost_percent": (self.lost_percent() * 1e4).round() / 1e4,
            "generator_limited": self.generator_limited(),
            "latency_us": self.latency_us,
            "latency_us_by_kind": self.latency_us_by_kind,
            "cpu_percent": self.cpu_percent,
            "dropped": merged(json!({"ring_full": self.refused}), self.drops.clone()),
            "seconds": (self.seconds * 1e3).round() / 1e3,
        })
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn merged(mut into: Value, from: Value) -> Value {
    merge(&mut into, from);
    into
}
