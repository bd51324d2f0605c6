//! A network of nodes in memory: virtual time, and loss, delay, reordering, duplication and
//! partitions from one seed. The same seed gives the same run.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;

use holdfast_dht::message::{DATAGRAM_MAX, Datagram};
use holdfast_dht::{Action, Config, Counter, Event, Id, LookupReport, Node, Peer, Statement};
use holdfast_handoff::{Announcement, Answer, Resolution, Resolve, Version};
use holdfast_net::FlowKey;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

pub const MS: u64 = 1000;
pub const SECOND: u64 = 1_000_000;
/// Microseconds since the Unix epoch at the network's time 0.
pub const EPOCH_US: u64 = 1_700_000_000_000_000;

/// What the network does to datagrams.
#[derive(Debug, Clone)]
pub struct Weather {
    pub loss_percent: u32,
    pub duplicate_percent: u32,
    pub delay_us: Range<u64>,
}

impl Weather {
    pub fn fair() -> Weather {
        Weather { loss_percent: 0, duplicate_percent: 0, delay_us: 50..200 }
    }

    /// Loses one in ten, duplicates one in ten, and lets any overtake any other.
    pub fn foul() -> Weather {
        Weather { loss_percent: 10, duplicate_percent: 10, delay_us: 50..5000 }
    }
}

struct Host {
    node: Node,
    started_us: u64,
    wakes_us: u64,
    answers: VecDeque<Answer>,
    /// Locators of servers that the workers were told are dead.
    dead: Vec<IpAddr>,
    reports: Vec<LookupReport>,
    observed: Vec<Version>,
}

pub struct Network {
    pub now_us: u64,
    pub weather: Weather,
    pub delivered: u64,
    /// Changes with everything that happens.
    pub fingerprint: u64,
    hosts: BTreeMap<IpAddr, Host>,
    wakes: BTreeSet<(u64, IpAddr)>,
    flying: BTreeMap<(u64, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    cut: BTreeSet<(IpAddr, IpAddr)>,
    /// Up to how much the clocks of nodes that are started are ahead, in µs.
    pub clocks_differ_us: u64,
    /// What these send comes this much later, in µs.
    slow_us: BTreeMap<IpAddr, u64>,
    /// Until when these do not run.
    stopped_us: BTreeMap<IpAddr, u64>,
    /// The most datagrams that a node sent at once.
    pub most_at_once: usize,
    sent: u64,
    answers_sent: usize,
    /// Of the last request to whom.
    transactions: BTreeMap<IpAddr, u64>,
    rng: Pcg64,
}

pub fn locator(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, (n / 250) as u8, (n % 250 + 1) as u8))
}

pub fn address(n: usize) -> SocketAddr {
    SocketAddr::new(locator(n), 7000)
}

pub fn flow(n: usize) -> FlowKey {
    let client = SocketAddr::from(([20, (n >> 16) as u8, (n >> 8) as u8, n as u8], 1234));
    FlowKey::tcp(client, ([192, 168, 0, 1], 80).into()).expect("IPv4")
}

/// Node `n` joins by node 0.
pub fn config(n: usize) -> Config {
    let mut config = Config::new(locator(n), address(n));
    config.bootstrap = vec![address(0)];
    config.members = vec!["10.0.0.0/16".parse().expect("net")];
    config.id_key = *b"a test's id key.";
    // What is reserved at start, for hundreds of nodes in one process.
    config.records_max = 1 << 16;
    config.published_max = 1 << 16;
    config
}

impl Network {
    pub fn new(seed: u64, weather: Weather) -> Network {
        Network {
            now_us: 0,
            weather,
            delivered: 0,
            fingerprint: seed,
            hosts: BTreeMap::new(),
            wakes: BTreeSet::new(),
            flying: BTreeMap::new(),
            cut: BTreeSet::new(),
            clocks_differ_us: 0,
            slow_us: BTreeMap::new(),
            stopped_us: BTreeMap::new(),
            most_at_once: 0,
            sent: 0,
            answers_sent: 0,
            transactions: BTreeMap::new(),
            rng: Pcg64::seed_from_u64(seed),
        }
    }

    /// A network of `n` nodes that all know each other.
    pub fn of(n: usize, seed: u64, weather: Weather) -> Network {
        let mut network = Network::new(seed, weather);
        for n in 0..n {
            network.start(config(n));
        }
        network.until("all to know all", 60, |network| network.is_complete());
        network
    }

    pub fn is_complete(&self) -> bool {
        self.hosts.values().all(|host| {
            let gauges = host.node.gauges();
            gauges.joined && gauges.peers + 1 == self.hosts.len() as u64
        })
    }

    pub fn start(&mut self, config: Config) {
        let locator = config.locator;
        let ahead_us = match self.clocks_differ_us {
            0 => 0,
            differ_us => self.rng.random_range(0..differ_us),
        };
        let started_unix_us = self.unix_us() + ahead_us;
        let node = Node::new(config, self.rng.random(), started_unix_us).expect("right");
        let host = Host {
            node,
            started_us: self.now_us,
            wakes_us: self.now_us,
            answers: VecDeque::new(),
            dead: Vec::new(),
            reports: Vec::new(),
            observed: Vec::new(),
        };
        assert!(self.hosts.insert(locator, host).is_none());
        self.wakes.insert((self.now_us, locator));
    }

    /// The server is gone, with all it had.
    pub fn kill(&mut self, n: usize) {
        let host = self.hosts.remove(&locator(n)).expect("alive");
        self.wakes.remove(&(host.wakes_us, locator(n)));
    }

    /// Nothing passes between these any more.
    pub fn cut(&mut self, one: usize, other: usize) {
        self.cut.insert((locator(one), locator(other)));
        self.cut.insert((locator(other), locator(one)));
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// All that node `n` sends comes this much later.
    pub fn slow(&mut self, n: usize, delay_us: u64) {
        self.slow_us.insert(locator(n), delay_us);
    }

    /// Node `n` does not run for a while; what is sent to it waits.
    pub fn stop(&mut self, n: usize, time_us: u64) {
        self.stopped_us.insert(locator(n), self.now_us + time_us);
    }

    pub fn unix_us(&self) -> u64 {
        EPOCH_US + self.now_us
    }

    pub fn version(&self) -> Version {
        Version(self.unix_us())
    }

    pub fn node(&self, n: usize) -> &Node {
        &self.hosts[&locator(n)].node
    }

    pub fn counter(&self, n: usize, counter: Counter) -> u64 {
        self.node(n).counters().get(counter)
    }

    pub fn total(&self, counter: Counter) -> u64 {
        let count = |host: &Host| host.node.counters().get(counter);
        self.hosts.values().map(count).sum()
    }

    /// How node `at` knows node `n`.
    pub fn peer(&self, at: usize, n: usize) -> Option<Peer> {
        self.node(at).peer(locator(n))
    }

    pub fn observed(&self, n: usize) -> &[Version] {
        &self.hosts[&locator(n)].observed
    }

    fn host(&mut self, locator: IpAddr) -> &mut Host {
        self.hosts.get_mut(&locator).expect("alive")
    }

    /// Gives an event to node `n` and does what it wants done.
    pub fn tell(&mut self, n: usize, event: Event<'_>) {
        self.handle(locator(n), event);
    }

    /// The same, and says how many answers the node sends to other nodes at once.
    pub fn tell_counting_answers(&mut self, n: usize, event: Event<'_>) -> usize {
        let before = self.answers_sent;
        self.tell(n, event);
        self.answers_sent - before
    }

    pub fn handle(&mut self, locator: IpAddr, event: Event<'_>) {
        let now_us = self.now_us;
        let host = self.host(locator);
        let started_us = host.started_us;
        let actions: Vec<Action> = host.node.handle(now_us - started_us, event).collect();
        let mut datagrams = Vec::new();
        let mut body = [0; DATAGRAM_MAX];
        while let Some(transmit) = host.node.transmit(now_us - started_us, &mut body) {
            datagrams.push((transmit.to, body[..transmit.len].to_vec()));
        }
        let wakes_us = (started_us + host.node.next_deadline_us()).max(now_us);
        let wakes_before_us = std::mem::replace(&mut host.wakes_us, wakes_us);
        self.wakes.remove(&(wakes_before_us, locator));
        self.wakes.insert((wakes_us, locator));
        self.most_at_once = self.most_at_once.max(datagrams.len());
        for (to, bytes) in datagrams {
            self.send(SocketAddr::new(locator, 7000), to, bytes);
        }
        for action in actions {
            match action {
                Action::Answer { ring, answer } => {
                    assert_eq!(ring, 0);
                    let host = self.host(locator);
                    match answer {
                        Answer::OwnerDead { owner } => host.dead.push(owner),
                        answer => host.answers.push_back(answer),
                    }
                }
                Action::Observe(version) => self.host(locator).observed.push(version),
                Action::Report { report, .. } => self.host(locator).reports.push(*report),
            }
        }
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        if let Ok(datagram) = Datagram::decode(&bytes) {
            self.answers_sent += usize::from(datagram.message.is_answer());
            if !datagram.message.is_answer() {
                self.transactions.insert(to.ip(), datagram.transaction);
            }
        }
        let lost = self.rng.random_range(0..100) < self.weather.loss_percent;
        if lost || self.cut.contains(&(from.ip(), to.ip())) {
            return;
        }
        let twice = self.rng.random_range(0..100) < self.weather.duplicate_percent;
        for _ in 0..1 + u32::from(twice) {
            let slow_us = self.slow_us.get(&from.ip()).copied().unwrap_or(0);
            let delay_us = self.rng.random_range(self.weather.delay_us.clone()) + slow_us;
            let at_us = self.now_us + delay_us;
            self.sent += 1;
            let key = (at_us, self.sent);
            self.flying.insert(key, (from, to, bytes.clone()));
        }
    }

    /// Goes to the next thing that happens, at `until_us` at the latest.
    fn step(&mut self, until_us: u64) {
        let arrives_us = self.flying.first_key_value().map(|((at_us, _), _)| *at_us);
        let wake = self.wakes.first().copied();
        let wakes_us = wake.map(|(at_us, _)| at_us);
        let next_us = [arrives_us, wakes_us].into_iter().flatten().min();
        let Some(next_us) = next_us.filter(|at_us| *at_us <= until_us) else {
            self.now_us = until_us;
            return;
        };
        self.now_us = self.now_us.max(next_us);
        self.fingerprint = self.fingerprint.wrapping_mul(0x0100_0000_01b3) ^ next_us;
        if arrives_us == Some(next_us) {
            let ((_, sent), (from, to, bytes)) = self.flying.pop_first().expect("there is one");
            if let Some(runs_us) = self.runs_again_us(to.ip()) {
                self.flying.insert((runs_us, sent), (from, to, bytes));
                return;
            }
            self.fingerprint ^= bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
            if self.hosts.contains_key(&to.ip()) {
                self.delivered += 1;
                let bytes = &bytes;
                self.handle(to.ip(), Event::Datagram { from, bytes });
            }
        } else if let Some((_, locator)) = wake {
            if let Some(runs_us) = self.runs_again_us(locator) {
                self.wakes.remove(&(wakes_us.expect("it is awake"), locator));
                self.wakes.insert((runs_us, locator));
                self.host(locator).wakes_us = runs_us;
                return;
            }
            self.handle(locator, Event::Tick);
        }
    }

    /// When a node that is stopped runs again. What waits for it comes before its own wakes.
    fn runs_again_us(&self, locator: IpAddr) -> Option<u64> {
        self.stopped_us.get(&locator).copied().filter(|at_us| self.now_us < *at_us)
    }

    pub fn run(&mut self, time_us: u64) {
        let until_us = self.now_us + time_us;
        while self.now_us < until_us {
            self.step(until_us);
        }
    }

    pub fn until(&mut self, what: &str, seconds: u64, mut done: impl FnMut(&mut Network) -> bool) {
        let until_us = self.now_us + seconds * SECOND;
        while !done(self) {
            assert!(self.now_us < until_us, "waited too long for {what}");
            self.run(20 * MS);
        }
    }

    pub fn publish(&mut self, n: usize, flow: FlowKey) -> Version {
        let version = self.version();
        self.publish_version(n, flow, version);
        version
    }

    pub fn publish_version(&mut self, n: usize, flow: FlowKey, version: Version) {
        let publish = Announcement::Publish { flow, version };
        self.tell(n, Event::Announcement(publish));
    }

    pub fn withdraw(&mut self, n: usize, flow: FlowKey, version: Version) {
        let withdraw = Announcement::Withdraw { flow, version };
        self.tell(n, Event::Announcement(withdraw));
    }

    /// Waits until all that is published is acknowledged.
    pub fn settle(&mut self) {
        self.until("all replicas to acknowledge", 30, |network| {
            network.hosts.values().all(|host| {
                let gauges = host.node.gauges();
                gauges.published_unacked == 0 && gauges.withdrawing == 0
            })
        });
    }

    pub fn ask(&mut self, n: usize, flow: FlowKey) {
        let asked_at_unix_us = self.unix_us();
        let resolve = Resolve { flow, asked_at_unix_us };
        self.tell(n, Event::Resolve { ring: 0, resolve });
    }

    pub fn answer(&mut self, n: usize) -> Option<Answer> {
        self.answer_at(locator(n))
    }

    pub fn answer_at(&mut self, locator: IpAddr) -> Option<Answer> {
        self.host(locator).answers.pop_front()
    }

    /// The servers that node `n` told its workers are dead, in order.
    pub fn dead_owners(&mut self, n: usize) -> Vec<IpAddr> {
        self.host(locator(n)).dead.clone()
    }

    /// Transaction of the last request that anyone sent to node `n`.
    pub fn last_transaction_to(&self, n: usize) -> u64 {
        self.transactions[&locator(n)]
    }

    /// Id of node `n`, as node `at` knows it.
    pub fn peer_id(&self, at: usize, n: usize) -> Id {
        let peers = self.node(at).peers();
        let peer = peers.iter().find(|peer| peer.locator == locator(n));
        peer.expect("known").id
    }

    pub fn resolve(&mut self, n: usize, flow: FlowKey) -> Resolution {
        self.ask(n, flow);
        let until_us = self.now_us + SECOND;
        loop {
            match self.answer(n) {
                Some(Answer::Resolved { flow: f, resolution }) if f == flow => return resolution,
                Some(other) => panic!("expected a resolution of {flow}, got {other:?}"),
                None => {
                    assert!(self.now_us < until_us, "no answer from the node");
                    self.step(until_us);
                }
            }
        }
    }

    /// Asks until the replicas answer in time, which in foul weather may need a second try.
    pub fn resolve_patiently(&mut self, n: usize, flow: FlowKey) -> Resolution {
        for _ in 0..10 {
            match self.resolve(n, flow) {
                Resolution::TimedOut => {}
                resolution => return resolution,
            }
        }
        panic!("ten lookups of {flow} timed out");
    }

    pub fn survey(&mut self, n: usize, flow: FlowKey) -> LookupReport {
        self.tell(n, Event::Survey { token: 7, flow });
        let until_us = self.now_us + SECOND;
        loop {
            if let Some(report) = self.host(locator(n)).reports.pop() {
                return report;
            }
            assert!(self.now_us < until_us, "no report from the node");
            self.step(until_us);
        }
    }

    /// How many of the replicas hold the flow.
    pub fn holders(&mut self, n: usize, flow: FlowKey) -> usize {
        let report = self.survey(n, flow);
        let holds = |said: &Statement| matches!(said, Statement::Holds(_));
        report.replicas.iter().filter(|r| holds(&r.said)).count()
    }
}

pub fn owner(n: usize, version: Version) -> Resolution {
    Resolution::Owner { locator: locator(n), version }
}
