//! A long time of churn: sessions come and go on few flows, servers join, crash, restart and leave,
//! links break one way or both, clocks are wrong and the weather changes; from time to time there
//! is peace, and then every record must be where it should.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::sessions::{Sessions, Tally};
use super::{MS, Network, SECOND, Skew, Weather, address, config};

/// How long peace may take to come, in seconds.
const PEACE_S_MAX: u64 = 120;
/// Longer than daemons are down.
pub const LEASE_US: u64 = 10 * SECOND;
/// Servers that others join by.
const BOOTSTRAP: usize = 3;

/// What to try.
#[derive(Debug, Clone, Copy)]
pub struct Churn {
    pub seed: u64,
    /// Servers at the start; up to twice as many come.
    pub nodes: usize,
    pub flows: usize,
    pub seconds: u64,
    /// Time between two peaces, in seconds.
    pub peace_every_s: u64,
    /// Mean pause between two things that the sessions do, in µs.
    pub pause_us: u64,
    /// Wall clocks are wrong by up to this, in µs.
    pub skew_us: u64,
    /// Whether the network is divided at times.
    pub divides: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub seed: u64,
    pub fingerprint: u64,
    pub delivered: u64,
    pub tally: Tally,
    pub peaces: u64,
    pub joins: u64,
    pub crashes: u64,
    pub restarts: u64,
    pub leaves: u64,
    pub partitions: u64,
    pub faults: Vec<String>,
}

struct Run {
    churn: Churn,
    network: Network,
    sessions: Sessions,
    rng: Pcg64,
    /// By server: alive, its daemon down until then, never there or gone.
    daemons_down: Vec<(usize, u64)>,
    skews: Vec<Skew>,
    /// Servers that withdraw everything and then stop, at the latest then.
    leaving: Vec<(usize, u64)>,
    heals_us: Option<u64>,
    outcome: Outcome,
}

impl Churn {
    /// Runs it to the end, or until something is wrong.
    pub fn run(self) -> Outcome {
        let mut run = Run::new(self);
        let mut peace_us = self.peace_every_s * SECOND;
        let end_us = run.network.now_us + self.seconds * SECOND;
        while run.network.now_us < end_us && run.network.faults.is_empty() {
            run.turn();
            if run.network.now_us >= peace_us {
                run.peace();
                peace_us = run.network.now_us + self.peace_every_s * SECOND;
            }
        }
        run.finish()
    }
}

impl Run {
    fn new(churn: Churn) -> Run {
        let mut rng = Pcg64::seed_from_u64(churn.seed ^ 0xc0ff_ee00);
        let wall_us = churn.skew_us as i64;
        let skew = |_| Skew {
            wall_us: rng.random_range(-wall_us..=wall_us),
            drift_ppm: rng.random_range(-200..=200),
        };
        let skews = (0..2 * churn.nodes).map(skew).collect();
        let mut network = Network::new(churn.seed, Weather::lossy(0));
        network.inspects = false;
        network.collect();
        let mut run = Run {
            churn,
            network,
            sessions: Sessions::new(churn.flows),
            rng,
            daemons_down: Vec::new(),
            skews,
            leaving: Vec::new(),
            heals_us: None,
            outcome: Outcome { seed: churn.seed, ..Outcome::default() },
        };
        for n in 0..churn.nodes {
            run.start(n);
        }
        if !run.network.comes(PEACE_S_MAX, Network::is_complete) {
            run.network.fault("the servers do not find each other".into());
        }
        run
    }

    fn start(&mut self, n: usize) {
        let mut config = config(n);
        config.lease = Duration::from_micros(LEASE_US);
        config.bootstrap = (0..BOOTSTRAP).map(address).collect();
        self.network.start_skewed(config, self.skews[n]);
        self.sessions.disturbed_us = self.network.now_us;
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.skews.len()).filter(|n| self.network.is_alive(*n)).collect()
    }

    /// Servers that take new sessions and questions.
    fn working(&self) -> Vec<usize> {
        let leaves = |n: &usize| self.leaving.iter().any(|(l, _)| l == n);
        let working = |n: &usize| !leaves(n) && !self.network.is_stalled(*n);
        self.alive().into_iter().filter(working).collect()
    }

    /// A little time passes, and something happens.
    fn turn(&mut self) {
        let pause_us = self.rng.random_range(1..2 * self.churn.pause_us);
        self.network.run(pause_us);
        self.sessions.look(&mut self.network);
        self.sessions.judge(&mut self.network);
        self.start_daemons();
        self.finish_leaving();
        self.heal_when_due();
        let working = self.working();
        if working.is_empty() {
            return;
        }
        let n = working[self.rng.random_range(0..working.len())];
        let f = self.rng.random_range(0..self.sessions.len());
        match self.rng.random_range(0..1000) {
            0..250 => self.begin(n, f),
            250..430 => self.end(f),
            430..500 => self.end_superseded(f),
            500..990 => self.sessions.ask(&mut self.network, n, f),
            _ => self.disturb(n),
        }
    }

    fn begin(&mut self, n: usize, f: usize) {
        if self.sessions.may_begin(&self.network, n, f) {
            self.sessions.begin(&mut self.network, n, f);
        }
    }

    /// A stopped daemon cannot tell the end of a session, and a stalled one not yet.
    fn end(&mut self, f: usize) {
        let owner = self.sessions.all_live().find(|(live, _)| *live == f);
        if owner.is_some_and(|(_, n)| self.network.is_alive(n)) {
            self.sessions.end(&mut self.network, f);
        }
    }

    fn end_superseded(&mut self, f: usize) {
        self.sessions.end_superseded(&mut self.network, f);
    }

    /// Something happens to servers or links.
    fn disturb(&mut self, n: usize) {
        match self.rng.random_range(0..100) {
            0..25 => self.join(),
            25..35 => self.crash(n),
            35..50 => self.restart(n),
            50..60 => self.leave(n),
            60..70 => self.network.stall(n, SECOND),
            70..75 => {
                let service_us = self.rng.random_range(0..200);
                self.network.slow_down(n, service_us);
            }
            75..85 => self.divide(),
            _ => self.change_weather(),
        }
    }

    fn join(&mut self) {
        let down = |n: &usize| self.daemons_down.iter().any(|(d, _)| d == n);
        let absent = |n: &usize| !self.network.is_alive(*n) && !down(n);
        if let Some(n) = (0..self.skews.len()).find(absent) {
            self.outcome.joins += 1;
            self.start(n);
        }
    }

    /// A few must stay, or there is nothing left to test.
    fn may_go(&self) -> bool {
        self.alive().len() > 4.max(self.churn.nodes / 2)
    }

    fn crash(&mut self, n: usize) {
        if self.may_go() {
            self.outcome.crashes += 1;
            self.sessions.forget_questions_at(&mut self.network, n);
            self.sessions.crash(&mut self.network, n);
        }
    }

    fn restart(&mut self, n: usize) {
        if self.may_go() {
            self.outcome.restarts += 1;
            self.sessions.forget_questions_at(&mut self.network, n);
            self.sessions.stop_daemon(&mut self.network, n);
            let down_us = self.rng.random_range(10 * MS..2 * SECOND);
            self.daemons_down.push((n, self.network.now_us + down_us));
        }
    }

    fn start_daemons(&mut self) {
        let now_us = self.network.now_us;
        let due: Vec<usize> =
            self.daemons_down.iter().filter(|(_, us)| *us <= now_us).map(|(n, _)| *n).collect();
        self.daemons_down.retain(|(_, us)| *us > now_us);
        for n in due {
            self.start(n);
            self.sessions.retell(&mut self.network, n);
        }
    }

    /// The server's sessions end, and when that is told it stops.
    fn leave(&mut self, n: usize) {
        if !self.may_go() {
            return;
        }
        self.outcome.leaves += 1;
        let owned: Vec<usize> =
            self.sessions.all_live().filter(|(_, owner)| *owner == n).map(|(f, _)| f).collect();
        for f in owned {
            self.sessions.end(&mut self.network, f);
        }
        self.leaving.push((n, self.network.now_us + 5 * SECOND));
    }

    fn finish_leaving(&mut self) {
        let now_us = self.network.now_us;
        let network = &self.network;
        let told = |n: usize| network.is_alive(n) && network.node(n).gauges().withdrawing == 0;
        let over = |(n, until_us): &(usize, u64)| *until_us <= now_us || told(*n);
        let due: Vec<usize> = self.leaving.iter().filter(|l| over(l)).map(|(n, _)| *n).collect();
        self.leaving.retain(|(n, _)| !due.contains(n));
        for n in due {
            self.sessions.forget_questions_at(&mut self.network, n);
            self.sessions.crash(&mut self.network, n);
        }
    }

    fn divide(&mut self) {
        if self.heals_us.is_some() || !self.churn.divides {
            return;
        }
        self.outcome.partitions += 1;
        let seed: u64 = self.rng.random();
        let one_way = self.rng.random_bool(0.3);
        let nodes = self.skews.len();
        self.network.divide(
            |n| (super::air::mixed(seed ^ n as u64).is_multiple_of(3)).into(),
            nodes,
            one_way,
        );
        self.sessions.disturbed_us = self.network.now_us;
        self.heals_us = Some(self.network.now_us + self.rng.random_range(SECOND / 5..20 * SECOND));
    }

    fn heal_when_due(&mut self) {
        if self.heals_us.is_some_and(|us| us <= self.network.now_us) {
            self.heals_us = None;
            self.network.heal();
            self.sessions.disturbed_us = self.network.now_us;
        }
    }

    fn change_weather(&mut self) {
        let mut weather = match self.rng.random_range(0..4) {
            0 => Weather::fair(),
            1 => Weather::foul(),
            2 => Weather::lossy(1),
            _ => Weather::lossy(5),
        };
        weather.damage_percent = self.rng.random_range(0..3);
        self.network.weather = weather;
        self.sessions.disturbed_us = self.network.now_us;
    }

    /// Everything heals, everyone meets, every record is looked at.
    fn peace(&mut self) {
        self.network.heal();
        self.heals_us = None;
        self.network.weather = Weather::lossy(0);
        for n in self.alive() {
            self.network.slow_down(n, 0);
        }
        while !self.daemons_down.is_empty() || !self.leaving.is_empty() {
            self.network.run(100 * MS);
            self.start_daemons();
            self.finish_leaving();
        }
        // Who knows nobody can only be met by a server that it was told of at its start.
        if !(0..BOOTSTRAP).any(|n| self.network.is_alive(n)) {
            self.start(0);
        }
        for f in 0..self.sessions.len() {
            self.sessions.end_superseded(&mut self.network, f);
        }
        self.sessions.disturbed_us = self.network.now_us;
        for (what, comes) in [
            ("all to know all", Network::is_complete as fn(&Network) -> bool),
            ("all to be acknowledged", Network::is_tidy),
        ] {
            if !self.network.comes(PEACE_S_MAX, comes) {
                let strangers = self.strangers();
                return self
                    .network
                    .fault(format!("waited {PEACE_S_MAX} s for {what}: {strangers}"));
            }
            self.sessions.look(&mut self.network);
        }
        // What earlier lives left behind ends with their leases, and the last lookups end.
        self.network.run(LEASE_US + 10 * SECOND);
        self.sessions.look(&mut self.network);
        self.sessions.judge(&mut self.network);
        if self.sessions.questions() > 0 {
            self.network.fault(format!("{} questions have no answer", self.sessions.questions()));
        }
        let alive = self.alive();
        self.sessions.check_at_peace(&mut self.network, &alive);
        self.outcome.peaces += 1;
    }

    /// Who does not know whom, and whom that is not there.
    fn strangers(&self) -> String {
        let alive = self.alive();
        let mut strangers = Vec::new();
        for n in &alive {
            let peers: Vec<usize> =
                self.network.node(*n).peers().iter().map(|p| super::number(p.locator)).collect();
            let unknown = alive.iter().filter(|a| *a != n && !peers.contains(a));
            strangers.extend(unknown.map(|a| format!("{n} does not know {a}")));
            let ghosts = peers.iter().filter(|p| !alive.contains(p));
            strangers.extend(ghosts.map(|p| format!("{n} knows {p}, which is dead")));
        }
        strangers.join(", ")
    }

    fn finish(mut self) -> Outcome {
        if self.network.faults.is_empty() {
            self.peace();
        }
        Outcome {
            fingerprint: self.network.fingerprint,
            delivered: self.network.delivered,
            tally: self.sessions.tally,
            faults: self.network.faults,
            ..self.outcome
        }
    }
}
