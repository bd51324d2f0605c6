//! The truth about sessions, to compare lookups and records with: which began where and when,
//! which are acknowledged, which have ended. Knows what the servers' kernels know; never what the
//! nodes think.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use holdfast_dht::id::IdHasher;
use holdfast_dht::{Id, Statement};
use holdfast_handoff::{Resolution, Version};
use holdfast_net::FlowKey;

use super::{ID_KEY, MS, Network, Resolved, SECOND, flow, locator, number};

/// After a server or a link has come or gone, this long the others may repair.
pub const REPAIR_US: u64 = 10 * SECOND;
/// What a server published is believed until it is known to be dead and its lease has ended.
pub const GHOST_US: u64 = super::churn::LEASE_US + REPAIR_US;

/// Promises that are checked. Each is on once the core keeps it; what is off is only counted.
#[derive(Debug, Clone, Copy)]
pub struct Promises {
    /// No lookup says NotFound of an acknowledged session while a replica lives, not even while
    /// the others notice that servers came or went, each in its own time.
    pub never_denied: bool,
    /// What was deleted stays so, also when a server that was cut off comes back.
    pub gone_for_good: bool,
    /// Former replicas drop what they hold: exactly the replicas hold a record.
    pub exact_copies: bool,
    /// What an earlier life of a server published ends with that life.
    pub leases: bool,
    /// A live session's record is not given up for a greater claim that is deleted already, though
    /// versions are in no order where two sides could not hear of each other, or where a server
    /// with a wrong clock has forgotten at its restart what it had seen.
    pub live_outlives_deleted: bool,
}

/// What the core keeps today.
pub const PROMISES: Promises = Promises {
    never_denied: false,
    gone_for_good: true,
    exact_copies: true,
    leases: true,
    live_outlives_deleted: false,
};

/// A session on a flow.
#[derive(Debug, Clone)]
struct Session {
    n: usize,
    life: u32,
    version: Version,
    acked_us: Option<u64>,
    /// Its server told its end.
    withdrawn_us: Option<u64>,
    /// And all replicas know it.
    gone_us: Option<u64>,
    /// A later session took the flow, or the server's daemon restarted and told it anew.
    superseded_us: Option<u64>,
    /// Its server crashed, and it with it.
    lost_us: Option<u64>,
    /// The same session was published before its daemon restarted.
    retold: bool,
}

impl Session {
    fn is_live(&self) -> bool {
        self.withdrawn_us.is_none() && self.superseded_us.is_none() && self.lost_us.is_none()
    }
}

/// How lookups ended.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub found: u64,
    pub not_found: u64,
    pub timed_out: u64,
    /// NotFound of an acknowledged session with a live replica, while others still repaired.
    pub denied: u64,
    /// Found a session whose end was acknowledged.
    pub returned: u64,
    /// Found an older session than an acknowledged one, as above.
    pub older: u64,
    /// NotFound of a session whose daemon has just restarted.
    pub denied_retold: u64,
    /// Found a session that was lost with an earlier life of its server.
    pub ghosts: u64,
    /// Copies at servers that are no replicas any more, at the last look.
    pub stray_copies: u64,
    /// Live sessions whose record was, or might have been, given up because of a greater version
    /// on the same flow that was deleted by then or soon after.
    pub given_up: u64,
    /// Sessions that were acknowledged, and ends that were.
    pub acked: u64,
    pub gone: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.found += other.found;
        self.not_found += other.not_found;
        self.timed_out += other.timed_out;
        self.denied += other.denied;
        self.returned += other.returned;
        self.older += other.older;
        self.denied_retold += other.denied_retold;
        self.ghosts += other.ghosts;
        self.given_up += other.given_up;
        self.stray_copies += other.stray_copies;
        self.acked += other.acked;
        self.gone += other.gone;
    }
}

/// All sessions on a pool of flows.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// By number of the flow, oldest first.
    flows: Vec<Vec<Session>>,
    numbers: HashMap<FlowKey, usize>,
    ids: Vec<Id>,
    /// Flows whose last session, or its end, is not acknowledged.
    pending: BTreeSet<(usize, usize)>,
    /// When which question was asked.
    asked: HashMap<(usize, usize), VecDeque<u64>>,
    /// When a server, a link or the weather last changed.
    pub disturbed_us: u64,
    pub tally: Tally,
}

impl Sessions {
    pub fn new(flows: usize) -> Sessions {
        let hasher = IdHasher::new(&ID_KEY);
        Sessions {
            flows: vec![Vec::new(); flows],
            numbers: (0..flows).map(|f| (flow(f), f)).collect(),
            ids: (0..flows).map(|f| hasher.flow(&flow(f))).collect(),
            pending: BTreeSet::new(),
            asked: HashMap::new(),
            disturbed_us: 0,
            tally: Tally::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    fn live(&self, f: usize) -> Option<&Session> {
        self.flows[f].last().filter(|s| s.is_live())
    }

    /// Flows with a live session, and its server.
    pub fn all_live(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.flows.len()).filter_map(|f| self.live(f).map(|s| (f, s.n)))
    }

    // --- what happens -----------------------------------------------------------------------

    /// A session begins at server `n`. The flow may have had another one elsewhere.
    pub fn begin(&mut self, network: &mut Network, n: usize, f: usize) {
        self.publish(network, n, f, false);
    }

    fn publish(&mut self, network: &mut Network, n: usize, f: usize, retold: bool) {
        let version = network.publish_by_clock(n, flow(f));
        let life = network.life(n);
        if let Some(last) = self.flows[f].last_mut() {
            last.superseded_us.get_or_insert(network.now_us);
        }
        self.flows[f].push(Session {
            n,
            life,
            version,
            acked_us: None,
            withdrawn_us: None,
            gone_us: None,
            superseded_us: None,
            lost_us: None,
            retold,
        });
        self.pending.insert((f, self.flows[f].len() - 1));
    }

    /// Whether another session can begin on a flow at server `n`. While the last one lives and is
    /// being stored, or cannot be heard of, two servers whose clocks differ cannot know which of
    /// their sessions is the newer one: a client does not use its port again that soon.
    pub fn may_begin(&self, network: &Network, n: usize, f: usize) -> bool {
        self.live(f).is_none_or(|last| last.acked_us.is_some() && network.passes(n, last.n))
    }

    /// The last session on a flow ends.
    pub fn end(&mut self, network: &mut Network, f: usize) {
        let last = self.flows[f].len().checked_sub(1);
        if let Some(s) = last.filter(|_| self.live(f).is_some()) {
            self.withdraw(network, f, s);
        }
    }

    /// Sessions that a later one elsewhere has superseded end sooner or later.
    pub fn end_superseded(&mut self, network: &mut Network, f: usize) {
        for s in 0..self.flows[f].len() {
            let session = &self.flows[f][s];
            let over = session.withdrawn_us.is_some() || session.lost_us.is_some();
            if session.superseded_us.is_some() && !over && network.life(session.n) == session.life {
                self.withdraw(network, f, s);
            }
        }
    }

    fn withdraw(&mut self, network: &mut Network, f: usize, s: usize) {
        let session = &mut self.flows[f][s];
        session.withdrawn_us = Some(network.now_us);
        network.withdraw(session.n, flow(f), session.version);
        self.pending.insert((f, s));
    }

    /// A server crashes with all its sessions.
    pub fn crash(&mut self, network: &mut Network, n: usize) {
        network.kill(n);
        self.disturbed_us = network.now_us;
        for session in self.flows.iter_mut().flatten().filter(|s| s.n == n) {
            session.lost_us.get_or_insert(network.now_us);
        }
    }

    /// A server's daemon stops; its kernel keeps the sessions.
    pub fn stop_daemon(&mut self, network: &mut Network, n: usize) {
        network.kill(n);
        self.disturbed_us = network.now_us;
    }

    /// It has started again and reads the kernel's sessions (R7). What it had withdrawn and not
    /// told everywhere is forgotten.
    pub fn retell(&mut self, network: &mut Network, n: usize) {
        self.disturbed_us = network.now_us;
        for f in 0..self.flows.len() {
            if self.live(f).is_some_and(|s| s.n == n) {
                self.publish(network, n, f, true);
            }
        }
    }

    // --- what is acknowledged ---------------------------------------------------------------

    /// Takes note of what the owners say that all replicas have acknowledged.
    pub fn look(&mut self, network: &mut Network) {
        let pending: Vec<_> = self.pending.iter().copied().collect();
        for (f, s) in pending {
            if self.is_decided(network, f, s) {
                self.pending.remove(&(f, s));
            }
        }
    }

    fn is_decided(&mut self, network: &Network, f: usize, s: usize) -> bool {
        let later_here = self.flows[f][s + 1..].iter().any(|l| l.n == self.flows[f][s].n);
        let session = &mut self.flows[f][s];
        let same_life = network.is_alive(session.n) && network.life(session.n) == session.life;
        if session.lost_us.is_some() || !same_life || later_here {
            return true;
        }
        match (network.node(session.n).is_settled(&flow(f)), session.withdrawn_us) {
            (Some(true), None) => {
                session.acked_us.get_or_insert(network.now_us);
                self.tally.acked += 1;
                true
            }
            (Some(true), Some(_)) => {
                session.gone_us.get_or_insert(network.now_us);
                self.tally.gone += 1;
                true
            }
            (Some(false), _) => false,
            // Given up, which is right where a later session has the flow.
            (None, _) => true,
        }
    }

    // --- lookups ----------------------------------------------------------------------------

    pub fn ask(&mut self, network: &mut Network, n: usize, f: usize) {
        self.asked.entry((n, f)).or_default().push_back(network.now_us);
        network.ask(n, flow(f));
    }

    /// Judges the answers that have come.
    pub fn judge(&mut self, network: &mut Network) {
        for resolved in network.take_resolved() {
            let f = self.numbers[&resolved.flow];
            let waiting = self.asked.get_mut(&(resolved.n, f));
            let Some(asked_us) = waiting.and_then(VecDeque::pop_front) else {
                network.fault(format!("an answer that nobody asked for: {resolved:?}"));
                continue;
            };
            match resolved.resolution {
                Resolution::TimedOut => self.tally.timed_out += 1,
                Resolution::NotFound | Resolution::Orphaned => {
                    self.judge_not_found(network, resolved, f, asked_us);
                }
                Resolution::Owner { locator, version } => {
                    self.tally.found += 1;
                    let owner = number(locator);
                    self.judge_found(network, resolved, f, asked_us, owner, version);
                }
            }
        }
    }

    /// What the workers of a server that goes have asked is never answered.
    pub fn forget_questions_at(&mut self, network: &mut Network, n: usize) {
        self.judge(network);
        self.asked.retain(|(asker, _), _| *asker != n);
    }

    pub fn questions(&self) -> usize {
        self.asked.values().map(VecDeque::len).sum()
    }

    /// The session that was live and acknowledged from one moment to another.
    fn acknowledged(&self, f: usize, from_us: u64, to_us: u64) -> Option<usize> {
        let held = |us: Option<u64>| us.is_none_or(|us| us > to_us);
        self.flows[f].iter().rposition(|s| {
            s.acked_us.is_some_and(|us| us <= from_us)
                && held(s.withdrawn_us)
                && held(s.superseded_us)
                && held(s.lost_us)
        })
    }

    fn judge_not_found(&mut self, network: &mut Network, r: Resolved, f: usize, asked_us: u64) {
        self.tally.not_found += 1;
        let Some(s) = self.acknowledged(f, asked_us, r.at_us) else {
            let retold = self.live(f).is_some_and(|s| s.retold && s.acked_us.is_none());
            self.tally.denied_retold += u64::from(retold);
            return;
        };
        let session = self.flows[f][s].clone();
        let owner_is_there = network.is_alive(session.n) && network.passes(r.n, session.n);
        let replicas: Vec<usize> = network
            .holders_in_truth(self.ids[f], session.version)
            .into_iter()
            .filter(|holder| network.passes(r.n, *holder) && network.passes(session.n, *holder))
            .collect();
        if !owner_is_there || replicas.is_empty() {
            return;
        }
        let calm_us = asked_us.saturating_sub(self.disturbed_us);
        if PROMISES.never_denied || calm_us > REPAIR_US {
            network.fault(format!(
                "flow {f} of server {} is denied at {} although {replicas:?} hold it, \
                 {} ms after the last change",
                session.n,
                r.n,
                calm_us / MS
            ));
        } else {
            self.tally.denied += 1;
        }
    }

    fn judge_found(
        &mut self,
        network: &mut Network,
        r: Resolved,
        f: usize,
        asked_us: u64,
        owner: usize,
        version: Version,
    ) {
        let sessions = &self.flows[f];
        let Some(told) = sessions.iter().rposition(|s| s.n == owner && s.version <= version) else {
            return network.fault(format!("flow {f} is said to be of {owner}: it never was"));
        };
        let session = &sessions[told];
        if owner == r.n && session.withdrawn_us.is_none() && session.lost_us.is_none() {
            // Its own kernel holds the socket, whatever others say (R1).
            return;
        }
        if let Some(newest) = self.acknowledged(f, asked_us, r.at_us)
            && sessions[newest].n != owner
            && told < newest
        {
            let newest = sessions[newest].clone();
            self.judge_older(network, r, f, asked_us, &newest);
        } else if session.gone_us.is_some_and(|us| us <= asked_us) {
            self.tally.returned += 1;
            let gone_us = session.gone_us;
            if PROMISES.gone_for_good {
                network.fault(format!(
                    "flow {f} is said at {} to be of {owner} {version:?}, where it ended: deleted \
                     everywhere at {gone_us:?} us; held by {:?}; {}",
                    r.n,
                    network.copies(self.ids[f]),
                    self.story(f)
                ));
            }
        } else if let Some(lost_us) = session.lost_us
            && lost_us + GHOST_US < asked_us
        {
            self.judge_lost(network, r, f, owner);
        }
    }

    /// An older session was found than one that is acknowledged.
    fn judge_older(
        &mut self,
        network: &mut Network,
        r: Resolved,
        f: usize,
        asked_us: u64,
        newest: &Session,
    ) {
        let calm_us = asked_us.saturating_sub(self.disturbed_us);
        let calm = calm_us > REPAIR_US;
        // Copies that should not be there answer at any time.
        if PROMISES.never_denied || calm && PROMISES.exact_copies {
            network.fault(format!(
                "flow {f} is answered with {:?} at {}, but is of {} since {:?}, acknowledged at \
                 {:?} us",
                r.resolution, r.n, newest.n, newest.version, newest.acked_us
            ));
        } else {
            self.tally.older += 1;
        }
    }

    /// A session was found that was lost long ago with its server (R13).
    fn judge_lost(&mut self, network: &mut Network, r: Resolved, f: usize, owner: usize) {
        self.tally.ghosts += 1;
        if PROMISES.leases {
            network.fault(format!(
                "flow {f} is said at {} to be of {owner}, which lost it; it is {}",
                r.n,
                if network.is_alive(owner) { "another life" } else { "dead" }
            ));
        }
    }

    /// The last sessions on a flow, for who has to find out what went wrong.
    fn story(&self, f: usize) -> String {
        let sessions = &self.flows[f];
        format!("{:#?}", &sessions[sessions.len().saturating_sub(4)..])
    }

    // --- at peace ---------------------------------------------------------------------------

    /// Checks all records and sessions. All servers know each other, nothing is lost or on its
    /// way, and time enough has passed.
    pub fn check_at_peace(&mut self, network: &mut Network, alive: &[usize]) {
        self.look(network);
        self.check_given_up(network);
        self.check_copies(network, alive);
        self.check_published(network, alive);
        self.check_agreement(network, alive);
        self.check_lookups(network, alive);
        self.tally.stray_copies = self.count_stray_copies(network);
    }

    /// No server gives up the record of a live session. What one has given up is published anew,
    /// as the worker's sweep does.
    fn check_given_up(&mut self, network: &mut Network) {
        let live: Vec<(usize, usize)> = self.all_live().collect();
        for (f, n) in live {
            let outrun = self.outrun(f);
            if network.node(n).is_settled(&flow(f)).is_some() && outrun.is_none() {
                continue;
            }
            self.tally.given_up += 1;
            if PROMISES.live_outlives_deleted {
                network.fault(format!("{n} has given up flow {f}, which lives: {}", self.story(f)));
            }
            network.observe(n, outrun.unwrap_or(Version(0)));
            self.publish(network, n, f, true);
        }
        network.run(2 * SECOND);
        self.look(network);
        network.take_resolved();
    }

    /// The greatest version that the flow ever had, if the live session's is less: a server whose
    /// clock is behind has forgotten at its restart which versions it had seen.
    fn outrun(&self, f: usize) -> Option<Version> {
        let greatest = self.flows[f].iter().map(|s| s.version).max();
        greatest.filter(|g| self.live(f).is_some_and(|s| s.retold && s.version < *g))
    }

    /// Each live session has as many copies as it should, no other session has any.
    fn check_copies(&mut self, network: &mut Network, alive: &[usize]) {
        let numbers: HashMap<Id, usize> =
            self.ids.iter().enumerate().map(|(f, id)| (*id, f)).collect();
        let mut copies: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut dead: Vec<String> = Vec::new();
        for (holder, id, claim) in network.all_records() {
            let f = numbers[&id];
            let owner = number(claim.owner);
            match self.live(f) {
                Some(s) if s.n == owner && claim.version >= s.version => {
                    copies.entry(f).or_default().push(holder);
                }
                _ if PROMISES.exact_copies => {
                    dead.push(format!("{holder} holds a dead record of flow {f}: {claim:?}"));
                }
                _ => {}
            }
        }
        dead.into_iter().for_each(|what| network.fault(what));
        let wanted = 3.min(alive.len());
        for f in 0..self.flows.len() {
            let held = copies.get(&f).map_or(0, Vec::len);
            let right = if PROMISES.exact_copies { held == wanted } else { held >= wanted };
            if self.live(f).is_some() && !right {
                let (copies, story) = (copies.get(&f), self.story(f));
                network.fault(format!("flow {f} has copies at {copies:?}, not {wanted}: {story}"));
            }
        }
    }

    /// Each server publishes its live sessions and no others.
    fn check_published(&mut self, network: &mut Network, alive: &[usize]) {
        let mut owned: BTreeMap<usize, u64> = BTreeMap::new();
        for (_, n) in self.all_live() {
            *owned.entry(n).or_default() += 1;
        }
        for n in alive {
            let published = network.node(*n).gauges().published;
            let owned = owned.get(n).copied().unwrap_or(0);
            if published != owned {
                network.fault(format!("{n} publishes {published} sessions and has {owned}"));
            }
        }
    }

    /// Servers agree who the replicas of a session are, and all of these hold it.
    fn check_agreement(&mut self, network: &mut Network, alive: &[usize]) {
        const SURVEYS: usize = 100;
        let live: Vec<(usize, usize)> = self.all_live().collect();
        let every = (live.len() / SURVEYS).max(1);
        for (place, (f, n)) in live.iter().step_by(every).enumerate() {
            let askers = [alive[place % alive.len()], alive[(7 * place + 3) % alive.len()]];
            let [one, other] = askers.map(|asker| network.survey(asker, flow(*f)));
            let replicas = |report: &holdfast_dht::LookupReport| {
                report.replicas.iter().map(|r| r.locator).collect::<BTreeSet<_>>()
            };
            if replicas(&one) != replicas(&other) {
                network.fault(format!(
                    "{askers:?} name other replicas of flow {f}: {:?} and {:?}",
                    one.replicas, other.replicas
                ));
            }
            for replica in one.replicas.iter().chain(&other.replicas) {
                if !matches!(replica.said, Statement::Holds(c) if c.owner == locator(*n)) {
                    network.fault(format!("a replica of flow {f} of {n} says {replica:?}"));
                }
            }
        }
    }

    fn check_lookups(&mut self, network: &mut Network, alive: &[usize]) {
        let mut answers = BTreeMap::new();
        for f in 0..self.flows.len() {
            let asker = alive[f % alive.len()];
            self.ask(network, asker, f);
            answers.insert(f, None);
        }
        network.run(SECOND);
        let resolved = network.take_resolved();
        for r in &resolved {
            let f = self.numbers[&r.flow];
            self.asked.get_mut(&(r.n, f)).and_then(VecDeque::pop_front);
            answers.insert(f, Some(r.resolution));
        }
        for (f, answer) in answers {
            let last = self.flows[f].last();
            let right = match (last.filter(|s| s.is_live()), answer) {
                (Some(s), Some(Resolution::Owner { locator: l, version })) => {
                    l == locator(s.n) && version >= s.version
                }
                (None, Some(Resolution::NotFound)) => true,
                (None, Some(Resolution::Owner { .. })) => match last {
                    Some(s) if s.gone_us.is_some() => !PROMISES.gone_for_good,
                    // Lost with its server, or with the daemon that was to tell its end.
                    Some(_) => !PROMISES.leases,
                    None => false,
                },
                _ => false,
            };
            if !right {
                let copies = network.copies(self.ids[f]);
                network.fault(format!(
                    "flow {f}, {last:?}, is answered with {answer:?}; copies: {copies:?}"
                ));
            }
        }
    }

    fn count_stray_copies(&self, network: &Network) -> u64 {
        let wanted = 3.min(network.alive()) as u64;
        let held = network.all_records().count() as u64;
        held.saturating_sub(wanted * self.all_live().count() as u64)
    }
}
