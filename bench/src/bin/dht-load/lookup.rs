//! Lookups through the workers' rings: a fixed number in flight, or one at a time. Every answer
//! is checked. It never publishes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_handoff::{Answer, Resolution, Resolve, unix_us};
use holdfast_net::FlowKey;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Server};
use crate::meter::{Meter, round};
use crate::report::{self, Times};
use crate::sessions::Sessions;

/// Sessions are asked for in strides, so that neighbours in time are none in owner.
const STRIDE: u64 = 1_000_003;
/// The driver's sleep when no server had an answer.
const NAP: Duration = Duration::from_micros(100);
/// How long an answer may take before it is missed: ten times what a lookup may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Wrong answers that are printed.
const COMPLAINTS_MAX: u64 = 10;

/// What the right answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The session's owner and version.
    Owner,
    /// Nobody owns it.
    Nobody,
}

/// How long to ask.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// For this time.
    Elapsed(Duration),
    /// So many lookups.
    Asked(u64),
}

/// What became of the lookups of a phase.
#[derive(Debug)]
pub struct Tally {
    /// Lookups asked for.
    pub asked: u64,
    /// Answered with the right owner and version.
    pub found: u64,
    /// Answered that nobody owns the flow.
    pub not_found: u64,
    /// Answered that too few replicas spoke in time.
    pub timed_out: u64,
    /// Answers that are not true, or to nothing that was asked.
    pub wrong: u64,
    /// Times that the ring took no more, though fewer than agreed were in flight.
    pub ring_full: u64,
    /// From asking until the driver sees the answer.
    pub latency: Times,
}

impl Tally {
    /// Lookups that got no answer at all.
    pub fn unanswered(&self) -> u64 {
        self.asked.saturating_sub(self.found + self.not_found + self.timed_out)
    }

    /// Lookups that told the worker nothing.
    pub fn lost(&self) -> u64 {
        self.unanswered() + self.timed_out
    }

    /// As it is reported.
    pub fn to_json(&self) -> Value {
        json!({
            "asked": self.asked,
            "found": self.found,
            "not_found": self.not_found,
            "timed_out": self.timed_out,
            "unanswered": self.unanswered(),
            "wrong": self.wrong,
            "lost": self.lost(),
            "ring_full": self.ring_full,
            "latency_us": report::quantiles(&self.latency),
        })
    }
}

/// One phase of lookups under way.
struct Load<'a> {
    sessions: &'a Sessions,
    expect: Expect,
    locators: Vec<IpAddr>,
    started: Instant,
    /// When each session was asked for, in µs since the start and not 0; 0: it is not in flight.
    asked_at_us: Vec<u32>,
    in_flight: Vec<usize>,
    next: u64,
    tally: Tally,
}

/// Keeps the agreed number of lookups in flight, spread over all servers, none of which asks for
/// a session of its own.
pub fn load(
    cluster: &mut Cluster,
    sessions: &Sessions,
    expect: Expect,
    until: Until,
) -> Result<Tally> {
    let quota = cluster.in_flight();
    let in_flight_max = (quota * cluster.servers.len()) as u64;
    ensure!(sessions.count() >= 2 * in_flight_max, "fewer than 2 sessions for a lookup in flight");
    ensure!(!sessions.count().is_multiple_of(STRIDE), "the stride must meet every session");
    let mut load = Load {
        sessions,
        expect,
        locators: cluster.servers.iter().map(|server| server.locator).collect(),
        started: Instant::now(),
        asked_at_us: vec![0; usize::try_from(sessions.count())?],
        in_flight: vec![0; cluster.servers.len()],
        next: 0,
        tally: Tally {
            asked: 0,
            found: 0,
            not_found: 0,
            timed_out: 0,
            wrong: 0,
            ring_full: 0,
            latency: report::no_times(),
        },
    };
    load.run(cluster, quota, until);
    Ok(load.tally)
}

impl Load<'_> {
    fn run(&mut self, cluster: &mut Cluster, quota: usize, until: Until) {
        let mut progress = Instant::now();
        loop {
            let now = Instant::now();
            let now_us = u32::try_from((now - self.started).as_micros()).unwrap_or(u32::MAX).max(1);
            let asking = match until {
                Until::Elapsed(time) => now - self.started < time,
                Until::Asked(count) => self.tally.asked < count,
            };
            let asked_at_unix_us = unix_us();
            let mut answers = 0;
            for (index, server) in cluster.servers.iter_mut().enumerate() {
                answers += self.take(index, server, now_us);
                if asking {
                    self.ask(index, server, quota, now_us, asked_at_unix_us);
                }
            }
            if answers > 0 {
                progress = now;
            } else if progress.elapsed() > PATIENCE {
                return;
            } else {
                std::thread::sleep(NAP);
            }
            if !asking && self.in_flight.iter().all(|in_flight| *in_flight == 0) {
                return;
            }
        }
    }

    fn ask(
        &mut self,
        index: usize,
        server: &mut Server,
        quota: usize,
        now_us: u32,
        asked_at_unix_us: u64,
    ) {
        while self.in_flight[index] < quota {
            let at = self.next * STRIDE % self.sessions.count();
            let asked_at_us = &mut self.asked_at_us[at as usize];
            if self.sessions.owner(at) == index || *asked_at_us != 0 {
                self.next += 1;
                continue;
            }
            let flow = self.sessions.flow(at);
            if server.worker.resolve(Resolve { flow, asked_at_unix_us }).is_err() {
                self.tally.ring_full += 1;
                break;
            }
            *asked_at_us = now_us;
            self.next += 1;
            self.in_flight[index] += 1;
            self.tally.asked += 1;
        }
        server.worker.ring_doorbell();
    }

    fn take(&mut self, index: usize, server: &mut Server, now_us: u32) -> u64 {
        let mut answers = 0;
        while let Some(answer) = server.worker.answer() {
            if let Answer::Resolved { flow, resolution, .. } = answer {
                answers += 1;
                self.check(index, flow, resolution, now_us);
            }
        }
        answers
    }

    fn check(&mut self, index: usize, flow: FlowKey, resolution: Resolution, now_us: u32) {
        let at = self.sessions.at(flow).filter(|at| self.asked_at_us[*at as usize] != 0);
        let Some(at) = at else {
            return self.complain(flow, resolution, "was not asked for");
        };
        let asked_at_us = std::mem::take(&mut self.asked_at_us[at as usize]);
        let latency_us = u64::from(now_us.saturating_sub(asked_at_us)).max(1);
        self.tally.latency.saturating_record(latency_us);
        self.in_flight[index] -= 1;
        match resolution {
            Resolution::Owner { locator, version } => {
                self.tally.found += 1;
                let right = self.locators[self.sessions.owner(at)] == locator
                    && self.sessions.version(at) == version;
                if self.expect == Expect::Nobody {
                    self.complain(flow, resolution, "nobody owns: never published, or deleted");
                } else if !right {
                    self.complain(flow, resolution, "has another owner or version");
                }
            }
            Resolution::NotFound | Resolution::Orphaned => {
                self.tally.not_found += 1;
                if self.expect == Expect::Owner {
                    self.complain(flow, resolution, "is published");
                }
            }
            Resolution::TimedOut => self.tally.timed_out += 1,
        }
    }

    fn complain(&mut self, flow: FlowKey, resolution: Resolution, why: &str) {
        self.tally.wrong += 1;
        if self.tally.wrong <= COMPLAINTS_MAX {
            report::say(&format!("wrong: {resolution:?} for {flow}, which {why}"));
        }
    }
}

/// Lookups over the network, as one phase of a round reports them.
pub fn loaded_round(cluster: &mut Cluster, sessions: &Sessions, time: Duration) -> Result<Value> {
    let meter = Meter::read(cluster)?;
    let tally = load(cluster, sessions, Expect::Owner, Until::Elapsed(time))?;
    let cost = meter.cost(cluster, meter.at().elapsed().as_secs_f64())?;
    let answered = tally.found + tally.not_found;
    let remote = answered.saturating_sub(cost.lookups_local);
    let per_second = |count: u64| round(count as f64 / cost.elapsed_s);
    let mut value = tally.to_json();
    value["elapsed_s"] = json!(round(cost.elapsed_s));
    value["lookups_per_s"] = json!(per_second(remote));
    value["lookups_with_local_per_s"] = json!(per_second(answered));
    value["local_share"] = json!(round(cost.lookups_local as f64 / answered.max(1) as f64));
    value["cores_busy"] = json!(cost.cores_busy());
    value["per_lookup"] = cost.per(remote);
    Ok(value)
}

/// A lookup to be timed: who asks, and for which session.
#[derive(Debug, Clone, Copy)]
struct Question {
    asker: usize,
    at: u64,
}

/// Asks `count` times, one at a time, always a server that is neither owner nor replica, so that
/// the network is always asked.
pub fn idle_gets(cluster: &mut Cluster, sessions: &Sessions, count: u64) -> Result<Tally> {
    let questions = questions(cluster, sessions, count)?;
    let mut load = Tally {
        asked: 0,
        found: 0,
        not_found: 0,
        timed_out: 0,
        wrong: 0,
        ring_full: 0,
        latency: report::no_times(),
    };
    for question in questions {
        let owner = cluster.servers[sessions.owner(question.at)].locator;
        let version = sessions.version(question.at);
        let right = Resolution::Owner { locator: owner, version };
        let flow = sessions.flow(question.at);
        let server = &mut cluster.servers[question.asker];
        load.asked += 1;
        let started = Instant::now();
        let Some(resolution) = resolve(server, flow, started)? else { continue };
        report::record(&mut load.latency, started.elapsed());
        match resolution {
            Resolution::Owner { .. } => load.found += 1,
            Resolution::NotFound | Resolution::Orphaned => load.not_found += 1,
            Resolution::TimedOut => load.timed_out += 1,
        }
        if resolution != right && resolution != Resolution::TimedOut {
            load.wrong += 1;
            report::say(&format!("wrong: {resolution:?} for {flow}, not {right:?}"));
        }
    }
    Ok(load)
}

/// One lookup; `None` when there is no answer.
fn resolve(server: &mut Server, flow: FlowKey, started: Instant) -> Result<Option<Resolution>> {
    if server.worker.resolve(Resolve { flow, asked_at_unix_us: unix_us() }).is_err() {
        bail!("the ring of an idle server is full");
    }
    server.worker.ring_doorbell();
    while started.elapsed() < PATIENCE {
        match server.worker.answer() {
            Some(Answer::Resolved { flow: answered, resolution, .. }) if answered == flow => {
                return Ok(Some(resolution));
            }
            Some(_) => {}
            // The worker it stands for polls; but here two cores are shared with all servers.
            None => std::thread::yield_now(),
        }
    }
    Ok(None)
}

fn questions(cluster: &Cluster, sessions: &Sessions, count: u64) -> Result<Vec<Question>> {
    let servers = cluster.servers.len();
    (0..count)
        .map(|n| {
            let at = n * STRIDE % sessions.count();
            let owner = sessions.owner(at);
            let report = cluster.servers[owner].survey(sessions.flow(at))?;
            let replicas = report.replicas.iter().filter_map(|r| cluster.index(r.locator));
            let near: Vec<usize> = replicas.chain([owner]).collect();
            let asker = (0..servers).map(|step| (n as usize + step) % servers);
            let mut strangers = asker.filter(|index| !near.contains(index));
            let asker = strangers.next().context("every server is a replica: give more --nodes")?;
            Ok(Question { asker, at })
        })
        .collect()
}
