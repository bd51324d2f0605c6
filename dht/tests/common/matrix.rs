//! The matrix: how many sessions are found when a part of all servers dies at one instant, before
//! anybody can repair and after, for networks of several sizes and losses.
//!
//! A session with `r` replicas is lost to its lookups when all of them die. With a fraction `f`
//! dead that is `f^r` for many servers; for few it is the exact chance that all of a session's
//! replicas are among the dead, given that its owner and who asks are not.

use std::collections::{BTreeMap, HashMap};

use holdfast_dht::Id;
use holdfast_dht::id::IdHasher;
use holdfast_handoff::{Resolution, Version};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::{ID_KEY, MS, Network, SECOND, Weather, flow, locator};

/// After this, a lookup at the instant of the deaths has ended.
const LOOKUP_US: u64 = 600 * MS;
/// When all must be repaired.
const REPAIR_US: u64 = 10 * SECOND;
/// Pause between the looks while they repair, and lookups in each.
const LOOK_EVERY_US: u64 = 250 * MS;
const LOOKUPS_A_LOOK: usize = 64;

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub sessions: usize,
    /// Sets of servers that die, each in a network of its own.
    pub kills: usize,
    /// Lookups after each.
    pub lookups: usize,
    /// Of these networks, as many are watched until they are repaired.
    pub repairs: usize,
}

/// One joined network with published sessions.
#[derive(Clone)]
pub struct Row {
    pub nodes: usize,
    pub loss_percent: u32,
    pub network: Network,
    sessions: Vec<Session>,
}

#[derive(Debug, Clone)]
struct Session {
    owner: usize,
    version: Version,
    replicas: Vec<usize>,
}

/// What came of a part of the servers dying.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    pub nodes: usize,
    pub loss_percent: u32,
    pub killed_percent: u32,
    pub killed: usize,
    pub lookups: usize,
    /// Chance that a replica lives, for these sessions' replicas and any set of dead servers.
    pub expected: f64,
    /// Lookups of sessions of which a replica did live.
    pub alive: usize,
    pub found: usize,
    pub not_found: usize,
    pub timed_out: usize,
    /// Answered NotFound although a replica lived.
    pub denied: usize,
    /// Found although no replica lived: the owner was asked itself.
    pub told_by_owner: usize,
    /// Found with another owner or an older version than was acknowledged.
    pub wrong: usize,
    /// Lookups while the survivors repair, and those of them answered NotFound.
    pub looks: usize,
    pub looks_denied: usize,
    /// When the last of those was, in µs after the deaths.
    pub denied_until_us: u64,
    /// All sessions of survivors, asked when repaired.
    pub repaired: usize,
    pub repaired_found: usize,
    pub repaired_found_at_once: usize,
}

impl Row {
    /// Joins a network and publishes its sessions in the weather that they will be asked in.
    pub fn new(nodes: usize, loss_percent: u32, sessions: usize, seed: u64) -> Row {
        let mut network = Network::new(seed, Weather::lossy(loss_percent));
        network.inspects = false;
        network.collect();
        for n in 0..nodes {
            network.start(super::config(n));
        }
        network.until("all to know nearly all", 120, |network| network.is_nearly_complete());
        let versions: Vec<Version> =
            (0..sessions).map(|s| network.publish(s % nodes, flow(s))).collect();
        network.until("nearly all to be acknowledged", 60, |network| network.is_nearly_settled());
        network.run(2 * SECOND);
        let hasher = IdHasher::new(&ID_KEY);
        let holders = network.all_holders();
        let session = |(s, version): (usize, Version)| Session {
            owner: s % nodes,
            version,
            replicas: holders.get(&hasher.flow(&flow(s))).cloned().unwrap_or_default(),
        };
        let sessions = versions.into_iter().enumerate().map(session).collect();
        Row { nodes, loss_percent, network, sessions }
    }

    /// Kills this part of the servers, as often as the effort says.
    pub fn kill(&self, killed_percent: u32, effort: Effort, seed: u64) -> Cell {
        let killed = self.killed(killed_percent);
        let mut cell = Cell {
            nodes: self.nodes,
            loss_percent: self.loss_percent,
            killed_percent,
            killed,
            expected: self.expected(killed),
            ..Cell::default()
        };
        for kill in 0..effort.kills {
            let mut rng = Pcg64::seed_from_u64(seed ^ (kill as u64) << 32);
            self.kill_once(&mut cell, effort, kill < effort.repairs, &mut rng);
        }
        cell
    }

    fn kill_once(&self, cell: &mut Cell, effort: Effort, repairs: bool, rng: &mut Pcg64) {
        let mut network = self.network.clone();
        let (dead, alive) = divide(self.nodes, cell.killed, rng);
        for n in &dead {
            network.kill(*n);
        }
        let killed_us = network.now_us;
        let owned: Vec<usize> =
            (0..self.sessions.len()).filter(|s| !dead.contains(&self.sessions[*s].owner)).collect();
        let asked = self.ask(&mut network, &alive, &owned, effort.lookups, rng);
        network.run(LOOKUP_US);
        self.judge(cell, &asked, &dead, &mut network);
        if repairs {
            self.watch(cell, &mut network, &alive, &owned, killed_us, rng);
            self.ask_all_again(cell, &mut network, &alive, &owned, rng);
        }
    }

    /// Asks random survivors for random sessions of other survivors, and says which and whom.
    fn ask(
        &self,
        network: &mut Network,
        alive: &[usize],
        owned: &[usize],
        lookups: usize,
        rng: &mut Pcg64,
    ) -> Vec<(usize, usize)> {
        let mut asked: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for _ in 0..lookups {
            let s = owned[rng.random_range(0..owned.len())];
            let others = alive.iter().filter(|n| **n != self.sessions[s].owner);
            if let Some(asker) = others.clone().nth(rng.random_range(0..others.count())) {
                asked.entry(*asker).or_default().push(s);
            }
        }
        for (asker, sessions) in &asked {
            network.ask_all(*asker, sessions.iter().map(|s| flow(*s)));
        }
        let each =
            |(asker, sessions): (usize, Vec<usize>)| sessions.into_iter().map(move |s| (asker, s));
        asked.into_iter().flat_map(each).collect()
    }

    fn judge(
        &self,
        cell: &mut Cell,
        asked: &[(usize, usize)],
        dead: &[usize],
        network: &mut Network,
    ) {
        let answers: HashMap<_, _> =
            network.take_resolved().into_iter().map(|r| ((r.n, r.flow), r.resolution)).collect();
        for (asker, s) in asked {
            let session = &self.sessions[*s];
            let lives = session.replicas.iter().any(|n| !dead.contains(n));
            cell.lookups += 1;
            cell.alive += usize::from(lives);
            match answers.get(&(*asker, flow(*s))) {
                Some(Resolution::Owner { locator: l, version }) => {
                    cell.found += 1;
                    cell.told_by_owner += usize::from(!lives);
                    let right = *l == locator(session.owner) && *version >= session.version;
                    cell.wrong += usize::from(!right);
                }
                Some(Resolution::NotFound | Resolution::Orphaned) => {
                    cell.not_found += 1;
                    cell.denied += usize::from(lives);
                }
                Some(Resolution::TimedOut) => cell.timed_out += 1,
                None => panic!("no answer to a lookup of session {s} at {asker}"),
            }
        }
    }

    /// Asks again and again while the survivors repair.
    fn watch(
        &self,
        cell: &mut Cell,
        network: &mut Network,
        alive: &[usize],
        owned: &[usize],
        killed_us: u64,
        rng: &mut Pcg64,
    ) {
        while network.now_us < killed_us + REPAIR_US {
            let asked = self.ask(network, alive, owned, LOOKUPS_A_LOOK, rng);
            network.run(LOOK_EVERY_US);
            cell.looks += asked.len();
            for resolved in network.take_resolved() {
                if resolved.resolution == Resolution::NotFound {
                    cell.looks_denied += 1;
                    cell.denied_until_us = cell.denied_until_us.max(resolved.at_us - killed_us);
                }
            }
        }
        network.run(LOOKUP_US);
        network.take_resolved();
    }

    /// Asks for each session, as often as TCP would send again within a second.
    fn ask_all_again(
        &self,
        cell: &mut Cell,
        network: &mut Network,
        alive: &[usize],
        owned: &[usize],
        rng: &mut Pcg64,
    ) {
        let mut missing: Vec<usize> = owned.to_vec();
        cell.repaired += missing.len();
        for attempt in 0..3 {
            let mut asked = BTreeMap::new();
            for s in missing.drain(..) {
                let asker = alive[rng.random_range(0..alive.len())];
                asked.insert(flow(s), s);
                network.ask(asker, flow(s));
            }
            network.run(LOOKUP_US);
            for resolved in network.take_resolved() {
                let s = asked[&resolved.flow];
                match resolved.resolution {
                    Resolution::Owner { .. } => {
                        cell.repaired_found += 1;
                        cell.repaired_found_at_once += usize::from(attempt == 0);
                    }
                    Resolution::NotFound | Resolution::Orphaned | Resolution::TimedOut => {
                        missing.push(s);
                    }
                }
            }
        }
    }

    /// Chance that a lookup's session has a live replica when `killed` servers die, any set of
    /// them, but neither the owner nor who asks.
    fn expected(&self, killed: usize) -> f64 {
        let chance = |session: &Session| {
            let replicas = session.replicas.len();
            if session.replicas.contains(&session.owner) {
                return 1.0;
            }
            // The asker is one of the others; if it is a replica, that one lives.
            let asker_holds = replicas as f64 / (self.nodes - 1) as f64;
            let others = self.nodes - 2;
            // All replicas dead: one after the other is among the dead.
            let all_dead = (0..replicas).fold(1.0, |chance, nth| {
                chance * killed.saturating_sub(nth) as f64
                    / (others.saturating_sub(nth)).max(1) as f64
            });
            1.0 - (1.0 - asker_holds) * all_dead
        };
        self.sessions.iter().map(chance).sum::<f64>() / self.sessions.len() as f64
    }

    /// The chance that a session survives this part of the servers dying, by its replicas and for
    /// a great many servers.
    pub fn survival(&self, killed_percent: u32) -> (f64, f64) {
        let killed = self.killed(killed_percent);
        let fraction = killed as f64 / self.nodes as f64;
        (self.expected(killed), 1.0 - fraction.powi(3))
    }

    /// The part of sessions that survived in so many samples, of sets of dead servers.
    pub fn survival_of_samples(&self, killed_percent: u32, samples: usize, seed: u64) -> f64 {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (mut asked, mut survived) = (0, 0_usize);
        for _ in 0..samples {
            let (dead, alive) = divide(self.nodes, self.killed(killed_percent), &mut rng);
            for session in self.sessions.iter().filter(|s| !dead.contains(&s.owner)) {
                let asker = alive[rng.random_range(0..alive.len())];
                if asker != session.owner {
                    asked += 1;
                    let lives = session.replicas.iter().any(|n| !dead.contains(n));
                    survived += usize::from(lives);
                }
            }
        }
        survived as f64 / asked as f64
    }

    fn killed(&self, killed_percent: u32) -> usize {
        (self.nodes * killed_percent as usize).div_ceil(100).max(1)
    }

    /// How many sessions have other than three replicas.
    pub fn irregular(&self) -> usize {
        let wanted = 3.min(self.nodes);
        self.sessions.iter().filter(|s| s.replicas.len() != wanted).count()
    }
}

impl Cell {
    fn percent(&self, count: usize) -> f64 {
        100.0 * count as f64 / self.lookups.max(1) as f64
    }

    pub const HEADINGS: &str = "| servers | loss % | killed | lookups | 1-f³ % | expected % \
        | a replica lives % | found % | NotFound % | TimedOut % | denied | asked while repairing, \
        NotFound | until, ms | found when repaired, at once / in 3 tries, of |\n\
        |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|";

    /// A line of the table.
    pub fn line(&self) -> String {
        let fraction = self.killed as f64 / self.nodes as f64;
        format!(
            "| {} | {} | {} ({} %) | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {}, {} | {} | {} / {}, {} |",
            self.nodes,
            self.loss_percent,
            self.killed,
            self.killed_percent,
            self.lookups,
            100.0 * (1.0 - fraction.powi(3)),
            100.0 * self.expected,
            self.percent(self.alive),
            self.percent(self.found),
            self.percent(self.not_found),
            self.percent(self.timed_out),
            self.denied,
            self.looks,
            self.looks_denied,
            self.denied_until_us / MS,
            self.repaired_found_at_once,
            self.repaired_found,
            self.repaired,
        )
    }
}

/// `chosen` of the numbers below `of`, and the others.
fn divide(of: usize, chosen: usize, rng: &mut Pcg64) -> (Vec<usize>, Vec<usize>) {
    let mut numbers: Vec<usize> = (0..of).collect();
    for place in 0..chosen {
        let other = rng.random_range(place..of);
        numbers.swap(place, other);
    }
    let mut alive = numbers.split_off(chosen);
    numbers.sort_unstable();
    alive.sort_unstable();
    (numbers, alive)
}

impl Network {
    /// Whether all know 99 in 100 of the others: where many datagrams are lost there are always
    /// some who miss each other.
    pub fn is_nearly_complete(&self) -> bool {
        let all = self.alive() as u64;
        self.gauges().all(|gauges| gauges.joined && 100 * (gauges.peers + 1) >= 99 * all)
    }

    /// Whether 999 in 1,000 of what is published is acknowledged.
    pub fn is_nearly_settled(&self) -> bool {
        let (mut published, mut missing) = (0, 0);
        for gauges in self.gauges() {
            published += gauges.published;
            missing += gauges.published_unacked + gauges.withdrawing;
        }
        1000 * missing <= published
    }

    /// Who holds which record in truth.
    pub fn all_holders(&self) -> HashMap<Id, Vec<usize>> {
        let mut holders: HashMap<Id, Vec<usize>> = HashMap::new();
        for (n, id, _) in self.all_records() {
            holders.entry(id).or_default().push(n);
        }
        holders
    }
}
