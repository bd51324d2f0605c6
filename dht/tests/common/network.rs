//! The hosts of a simulated network and its time: whatever happens goes to a node as an event, and
//! what the node wants is done. One seed makes one run, to the byte: the fingerprint says so.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use holdfast_dht::message::{DATAGRAM_MAX, Datagram};
use holdfast_dht::{
    Action, Claim, Config, Counter, Event, Gauges, Id, LookupReport, Node, Peer, Statement,
};
use holdfast_handoff::{Announcement, Answer, Resolution, Resolve, Version};
use holdfast_net::FlowKey;
use rand::RngExt;

use super::air::{Air, Flight, Happening, Weather};
use super::{EPOCH_US, MS, SECOND, config, locator};

/// Datagrams that wait at a host at most, as in a socket's buffer.
const INBOX_MAX: usize = 4096;
/// Events at one moment at most: beyond, a node wants ticks without end.
const EVENTS_AT_ONCE_MAX: u64 = 10_000_000;
/// One in this many events is followed by a look at the node's limits.
const BOUNDS_EVERY: u64 = 64;
/// Requests in flight at one node, as its documentation says.
pub const REQUESTS_MAX: u64 = 1 << 18;

/// How wrong a server's clocks are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Skew {
    /// The wall clock is ahead by this, in µs.
    pub wall_us: i64,
    /// All clocks run fast by this, in millionths.
    pub drift_ppm: i64,
}

/// An answer to a worker's lookup.
#[derive(Debug, Clone, Copy)]
pub struct Resolved {
    pub at_us: u64,
    pub n: usize,
    pub flow: FlowKey,
    pub resolution: Resolution,
}

#[derive(Debug, Clone)]
struct Host {
    node: Node,
    /// Limits that the node was given.
    limits: Limits,
    /// How many nodes were at this address before.
    life: u32,
    started_us: u64,
    skew: Skew,
    /// The version given last, or the greatest seen: the server's hybrid logical clock.
    clock: u64,
    /// When the node wants a tick, and when it gets the next chance.
    wakes_us: u64,
    queued_us: u64,
    /// Takes nothing until then; and how long each datagram keeps it busy.
    busy_until_us: u64,
    service_us: u64,
    /// What it sends comes this much later.
    late_us: u64,
    inbox: VecDeque<u32>,
    answers: VecDeque<Answer>,
    /// Locators of servers that the workers were told are dead.
    dead: Vec<IpAddr>,
    /// Sessions that the workers were told are superseded: by which version, and where.
    superseded: Vec<(FlowKey, Version, IpAddr)>,
    reports: Vec<LookupReport>,
    observed: Vec<Version>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    records: u64,
    published: u64,
    lookups: u64,
}

impl Host {
    /// Time of the node at this time of the network.
    fn local_us(&self, now_us: u64) -> u64 {
        let elapsed_us = now_us.saturating_sub(self.started_us) as i128;
        let drift_us = elapsed_us * i128::from(self.skew.drift_ppm) / 1_000_000;
        (elapsed_us + drift_us) as u64
    }

    /// The first time of the network at which it is so late at the node.
    fn network_us(&self, local_us: u64) -> u64 {
        if self.skew.drift_ppm == 0 {
            return self.started_us.saturating_add(local_us);
        }
        let rate = 1_000_000 + i128::from(self.skew.drift_ppm);
        let elapsed_us = i128::from(local_us) * 1_000_000 / rate;
        let mut at_us = self.started_us + (elapsed_us as u64).saturating_sub(2);
        while self.local_us(at_us) < local_us {
            at_us += 1;
        }
        at_us
    }

    /// What the server's wall clock shows.
    fn unix_us(&self, now_us: u64) -> u64 {
        let started_us = (EPOCH_US + self.started_us).saturating_add_signed(self.skew.wall_us);
        started_us + self.local_us(now_us)
    }
}

#[derive(Debug, Clone)]
pub struct Network {
    pub now_us: u64,
    pub weather: Weather,
    /// Whether damaged datagrams are dropped, as the seal does, or reach the node.
    pub sealed: bool,
    pub delivered: u64,
    /// Datagrams that a host had no room for, and that the seal refused.
    pub overflowed: u64,
    pub refused: u64,
    /// Changes with everything that happens.
    pub fingerprint: u64,
    /// What must not be and was; only the first are kept.
    pub faults: Vec<String>,
    /// Wall clocks of servers that start from now on are ahead by up to this.
    pub clocks_differ_us: u64,
    /// The most datagrams that a node sent at once.
    pub most_at_once: usize,
    /// Datagrams are decoded on sending, for [`Network::last_transaction_to`] and
    /// [`Network::tell_counting_answers`].
    pub inspects: bool,
    air: Air,
    hosts: Vec<Option<Host>>,
    alive: usize,
    numbers: HashMap<IpAddr, u32>,
    addresses: Vec<SocketAddr>,
    /// Lives of each host that are over.
    lives: Vec<u32>,
    /// The newest life of a sender that a host has heard: the seal refuses older ones.
    heard: HashMap<(u32, u32), u32>,
    /// Answers to workers' lookups, when they are collected.
    resolved: Option<Vec<Resolved>>,
    actions: Vec<Action>,
    events: u64,
    events_at_once: u64,
    answers_sent: usize,
    /// Of the last request to whom.
    transactions: HashMap<IpAddr, u64>,
}

impl Network {
    pub fn new(seed: u64, weather: Weather) -> Network {
        Network {
            now_us: 0,
            weather,
            sealed: true,
            delivered: 0,
            overflowed: 0,
            refused: 0,
            fingerprint: seed,
            faults: Vec::new(),
            clocks_differ_us: 0,
            most_at_once: 0,
            inspects: true,
            air: Air::new(seed),
            hosts: Vec::new(),
            alive: 0,
            numbers: HashMap::new(),
            addresses: Vec::new(),
            lives: Vec::new(),
            heard: HashMap::new(),
            resolved: None,
            actions: Vec::new(),
            events: 0,
            events_at_once: 0,
            answers_sent: 0,
            transactions: HashMap::new(),
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

    /// The same, for many nodes and lookups: answers are collected, datagrams not inspected.
    pub fn large(nodes: usize, seed: u64, weather: Weather) -> Network {
        let mut network = Network::new(seed, weather);
        network.inspects = false;
        network.collect();
        for n in 0..nodes {
            network.start(config(n));
        }
        network.until("all to know all", 120, |network| network.is_complete());
        network
    }

    /// Whether all know all, and nobody else.
    pub fn is_complete(&self) -> bool {
        let all = self.alive as u64;
        self.hosts().all(|host| {
            let gauges = host.node.gauges();
            gauges.joined && gauges.peers + 1 == all
        })
    }

    fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().flatten()
    }

    // --- servers come and go ----------------------------------------------------------------

    pub fn start(&mut self, config: Config) {
        let mut skew = Skew::default();
        if self.clocks_differ_us > 0 {
            let ahead_us = self.air.rng().random_range(0..self.clocks_differ_us);
            skew.wall_us = ahead_us.cast_signed();
        }
        self.start_skewed(config, skew);
    }

    pub fn start_skewed(&mut self, config: Config, skew: Skew) {
        let address = config.listen;
        let host = self.number_of(config.locator);
        assert!(self.hosts[host as usize].is_none(), "{} is alive", config.locator);
        self.addresses[host as usize] = address;
        let started_unix_us = self.unix_us().saturating_add_signed(skew.wall_us);
        let limits = Limits {
            records: config.records_max as u64,
            published: config.published_max as u64,
            lookups: config.lookups_max as u64,
        };
        let seed = self.air.rng().random();
        let node = Node::new(config, seed, started_unix_us).expect("a right configuration");
        self.hosts[host as usize] = Some(Host {
            node,
            limits,
            life: self.lives[host as usize],
            started_us: self.now_us,
            skew,
            clock: 0,
            wakes_us: self.now_us,
            queued_us: self.now_us,
            busy_until_us: 0,
            service_us: 0,
            late_us: 0,
            inbox: VecDeque::new(),
            answers: VecDeque::new(),
            dead: Vec::new(),
            superseded: Vec::new(),
            reports: Vec::new(),
            observed: Vec::new(),
        });
        self.alive += 1;
        self.air.schedule(self.now_us, Happening::Wakes(host));
    }

    fn number_of(&mut self, locator: IpAddr) -> u32 {
        let next = self.hosts.len() as u32;
        let host = *self.numbers.entry(locator).or_insert(next);
        if host == next {
            self.hosts.push(None);
            self.lives.push(0);
            self.addresses.push(SocketAddr::new(locator, 7000));
        }
        host
    }

    /// The server is gone, with all it had.
    pub fn kill(&mut self, n: usize) {
        let host = self.numbers[&locator(n)];
        let gone = self.hosts[host as usize].take().expect("alive");
        for place in gone.inbox {
            let flight = self.air.take(place);
            self.air.land(place, flight);
        }
        self.alive -= 1;
        self.lives[host as usize] += 1;
    }

    pub fn is_alive(&self, n: usize) -> bool {
        let host = self.numbers.get(&locator(n));
        host.is_some_and(|host| self.hosts[*host as usize].is_some())
    }

    pub fn alive(&self) -> usize {
        self.alive
    }

    /// The server takes nothing and does nothing for a while; datagrams wait for it.
    pub fn stall(&mut self, n: usize, time_us: u64) {
        let until_us = self.now_us + time_us;
        let host = self.host(locator(n));
        host.busy_until_us = host.busy_until_us.max(until_us);
    }

    /// What a server sends comes later by this, in µs.
    pub fn delay(&mut self, n: usize, late_us: u64) {
        let host = self.numbers[&locator(n)];
        self.hosts[host as usize].as_mut().expect("alive").late_us = late_us;
    }

    /// What server `at` knows of server `n`, when that is in its routing table.
    pub fn peer(&self, at: usize, n: usize) -> Option<Peer> {
        self.node(at).peer(locator(n))
    }

    pub fn is_stalled(&self, n: usize) -> bool {
        self.host_of(n).busy_until_us > self.now_us + 10 * MS
    }

    /// Each datagram keeps the server busy this long.
    pub fn slow_down(&mut self, n: usize, service_us: u64) {
        self.host(locator(n)).service_us = service_us;
    }

    // --- cuts -------------------------------------------------------------------------------

    /// Nothing passes between these any more.
    pub fn cut(&mut self, one: usize, other: usize) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    pub fn cut_one_way(&mut self, from: usize, to: usize) {
        let (from, to) = (self.number_of(locator(from)), self.number_of(locator(to)));
        self.air.cut_one_way(from, to);
    }

    pub fn mend(&mut self, one: usize, other: usize) {
        let (one, other) = (self.number_of(locator(one)), self.number_of(locator(other)));
        self.air.mend_one_way(one, other);
        self.air.mend_one_way(other, one);
    }

    /// Divides the network: nothing passes from side 0 to side 1, nor back unless `one_way`.
    pub fn divide(&mut self, side: impl Fn(usize) -> u8, nodes: usize, one_way: bool) {
        for n in 0..nodes {
            let host = self.number_of(locator(n));
            self.air.set_side(host, side(n));
        }
        self.air.wall(0, 1);
        if !one_way {
            self.air.wall(1, 0);
        }
    }

    pub fn heal(&mut self) {
        self.air.heal();
    }

    /// Whether datagrams pass both ways.
    pub fn passes(&self, one: usize, other: usize) -> bool {
        let (one, other) = (self.numbers[&locator(one)], self.numbers[&locator(other)]);
        self.air.passes(one, other) && self.air.passes(other, one)
    }

    // --- what is seen -----------------------------------------------------------------------

    pub fn unix_us(&self) -> u64 {
        EPOCH_US + self.now_us
    }

    pub fn version(&self) -> Version {
        Version(self.unix_us())
    }

    fn host_of(&self, n: usize) -> &Host {
        self.hosts[self.numbers[&locator(n)] as usize].as_ref().expect("alive")
    }

    fn host(&mut self, locator: IpAddr) -> &mut Host {
        let host = self.numbers[&locator];
        self.hosts[host as usize].as_mut().expect("alive")
    }

    pub fn node(&self, n: usize) -> &Node {
        &self.host_of(n).node
    }

    /// Which life of this server it is: 0 for the first.
    pub fn life(&self, n: usize) -> u32 {
        self.numbers.get(&locator(n)).map_or(0, |host| self.lives[*host as usize])
    }

    pub fn counter(&self, n: usize, counter: Counter) -> u64 {
        self.node(n).counters().get(counter)
    }

    pub fn total(&self, counter: Counter) -> u64 {
        self.hosts().map(|host| host.node.counters().get(counter)).sum()
    }

    pub fn observed(&self, n: usize) -> &[Version] {
        &self.host_of(n).observed
    }

    /// The live servers that hold a live record under an id, of at least this version.
    pub fn holders_in_truth(&self, id: Id, version: Version) -> Vec<usize> {
        let holds = |host: &&Host| host.node.record(id).is_some_and(|c| c.version >= version);
        self.hosts().filter(holds).map(|host| super::number(host.node.locator())).collect()
    }

    /// All live records in truth, and the servers that hold them.
    pub fn all_records(&self) -> impl Iterator<Item = (usize, Id, Claim)> {
        self.hosts().flat_map(|host| {
            let n = super::number(host.node.locator());
            host.node.records().map(move |(id, claim)| (n, id, claim))
        })
    }

    /// Who holds which live record under an id.
    pub fn copies(&self, id: Id) -> Vec<(usize, Claim)> {
        self.all_records().filter(|(_, held, _)| *held == id).map(|(n, _, c)| (n, c)).collect()
    }

    pub fn gauges(&self) -> impl Iterator<Item = Gauges> {
        self.hosts().map(|host| host.node.gauges())
    }

    // --- events -----------------------------------------------------------------------------

    /// Gives an event to node `n` and does what it wants done.
    pub fn tell(&mut self, n: usize, event: Event<'_>) {
        self.handle(locator(n), event);
    }

    /// The same, and says how many answers the node sends to other nodes at once.
    pub fn tell_counting_answers(&mut self, n: usize, event: Event<'_>) -> usize {
        assert!(self.inspects);
        let before = self.answers_sent;
        self.tell(n, event);
        self.answers_sent - before
    }

    pub fn handle(&mut self, locator: IpAddr, event: Event<'_>) {
        self.handle_at(self.numbers[&locator], event);
    }

    fn handle_at(&mut self, number: u32, event: Event<'_>) {
        self.give(number, event);
        self.follow_up(number);
    }

    /// Gives an event to a node. [`Network::follow_up`] does what it wants done.
    fn give(&mut self, number: u32, event: Event<'_>) {
        let host = self.hosts[number as usize].as_mut().expect("alive");
        let local_us = host.local_us(self.now_us);
        self.actions.extend(host.node.handle(local_us, event));
    }

    fn follow_up(&mut self, number: u32) {
        let mut body = [0; DATAGRAM_MAX];
        let mut sent = 0;
        loop {
            let host = self.hosts[number as usize].as_mut().expect("alive");
            let (life, local_us) = (host.life, host.local_us(self.now_us));
            let Some(transmit) = host.node.transmit(local_us, &mut body) else {
                break;
            };
            self.send((number, life), transmit.to, &body[..transmit.len]);
            sent += 1;
        }
        self.most_at_once = self.most_at_once.max(sent);
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            self.act(number, action);
        }
        self.actions = actions;
        self.wake_later(number);
        self.events += 1;
        if self.events.is_multiple_of(BOUNDS_EVERY) {
            self.check_bounds(number);
        }
    }

    fn send(&mut self, (from, life): (u32, u32), to: SocketAddr, bytes: &[u8]) {
        if self.inspects
            && let Ok(datagram) = Datagram::decode(bytes)
        {
            self.answers_sent += usize::from(datagram.message.is_answer());
            if !datagram.message.is_answer() {
                self.transactions.insert(to.ip(), datagram.transaction);
            }
        }
        if let Some(to) = self.numbers.get(&to.ip()) {
            let late_us = self.hosts[from as usize].as_ref().map_or(0, |host| host.late_us);
            self.air.send(self.now_us + late_us, &self.weather, (from, *to, life), bytes);
        }
    }

    fn act(&mut self, number: u32, action: Action) {
        self.note_text(&format!("{action:?}"));
        let at_us = self.now_us;
        let host = self.hosts[number as usize].as_mut().expect("alive");
        match action {
            Action::Answer { ring, answer } => {
                assert_eq!(ring, 0);
                match (answer, &mut self.resolved) {
                    (Answer::OwnerDead { owner }, _) => host.dead.push(owner),
                    (Answer::Superseded { flow, version, owner }, _) => {
                        host.superseded.push((flow, version, owner));
                    }
                    (Answer::Resolved { flow, resolution, .. }, Some(resolved)) => {
                        let n = super::number(host.node.locator());
                        resolved.push(Resolved { at_us, n, flow, resolution });
                    }
                    (answer, _) => host.answers.push_back(answer),
                }
            }
            Action::Observe(version) => {
                host.clock = host.clock.max(version.0);
                host.observed.push(version);
            }
            Action::Report { report, .. } => host.reports.push(*report),
        }
    }

    fn wake_later(&mut self, number: u32) {
        let now_us = self.now_us;
        let host = self.hosts[number as usize].as_mut().expect("alive");
        let wakes_us = host.network_us(host.node.next_deadline_us());
        host.wakes_us = wakes_us.max(now_us).max(host.busy_until_us);
        if host.wakes_us < host.queued_us {
            host.queued_us = host.wakes_us;
            self.air.schedule(host.wakes_us, Happening::Wakes(number));
        }
    }

    /// Goes to the next thing that happens, at `until_us` at the latest.
    fn step(&mut self, until_us: u64) {
        let Some(next_us) = self.air.next_us().filter(|at_us| *at_us <= until_us) else {
            self.now_us = self.now_us.max(until_us);
            return;
        };
        self.events_at_once = if next_us > self.now_us { 0 } else { self.events_at_once + 1 };
        assert!(self.events_at_once < EVENTS_AT_ONCE_MAX, "time stands still at {next_us} us");
        self.now_us = self.now_us.max(next_us);
        match self.air.next() {
            Some((_, Happening::Arrives(place))) => self.arrives(place),
            Some((_, Happening::Takes(number))) => self.takes(number),
            Some((at_us, Happening::Wakes(number))) => self.wakes(at_us, number),
            None => {}
        }
    }

    fn arrives(&mut self, place: u32) {
        let now_us = self.now_us;
        let to = self.air.look(place).to;
        let Some(host) = self.hosts[to as usize].as_mut() else {
            return self.drop_flight(place);
        };
        let is_free = host.inbox.is_empty() && host.busy_until_us <= now_us;
        if is_free && host.service_us == 0 {
            return self.deliver(place);
        }
        if host.inbox.len() == INBOX_MAX {
            self.overflowed += 1;
            return self.drop_flight(place);
        }
        host.inbox.push_back(place);
        if host.inbox.len() == 1 {
            self.air.schedule(host.busy_until_us.max(now_us), Happening::Takes(to));
        }
    }

    /// A host takes the next datagram of those that wait.
    fn takes(&mut self, number: u32) {
        let now_us = self.now_us;
        let Some(host) = self.hosts[number as usize].as_mut() else {
            return;
        };
        if host.busy_until_us > now_us {
            return self.air.schedule(host.busy_until_us, Happening::Takes(number));
        }
        let Some(place) = host.inbox.pop_front() else {
            return;
        };
        host.busy_until_us = now_us + host.service_us;
        if !host.inbox.is_empty() {
            self.air.schedule(host.busy_until_us, Happening::Takes(number));
        }
        self.deliver(place);
    }

    fn drop_flight(&mut self, place: u32) {
        let flight = self.air.take(place);
        self.air.land(place, flight);
    }

    fn deliver(&mut self, place: u32) {
        let flight = self.air.take(place);
        if self.opens(&flight) {
            self.delivered += 1;
            self.note(u64::from(flight.to));
            self.note_bytes(&flight.bytes);
            let from = self.addresses[flight.from as usize];
            self.handle_at(flight.to, Event::Datagram { from, bytes: &flight.bytes });
        } else {
            self.refused += 1;
        }
        self.air.land(place, flight);
    }

    /// Whether the seal lets a datagram through: not a damaged one, nor one of an older life of
    /// its sender than the newest heard. Copies pass, although the seal would drop them: the node
    /// must not rely on it.
    fn opens(&mut self, flight: &Flight) -> bool {
        if !self.sealed {
            return true;
        }
        if flight.damaged {
            return false;
        }
        if self.lives[flight.from as usize] == 0 {
            return true;
        }
        let newest = self.heard.entry((flight.from, flight.to)).or_insert(flight.life);
        *newest = flight.life.max(*newest);
        *newest == flight.life
    }

    fn wakes(&mut self, at_us: u64, number: u32) {
        let Some(host) = self.hosts[number as usize].as_mut() else {
            return;
        };
        if host.queued_us != at_us {
            return;
        }
        host.queued_us = u64::MAX;
        host.wakes_us = host.wakes_us.max(host.busy_until_us);
        if host.wakes_us > self.now_us {
            host.queued_us = host.wakes_us;
            return self.air.schedule(host.wakes_us, Happening::Wakes(number));
        }
        self.note(u64::from(number));
        self.handle_at(number, Event::Tick);
    }

    fn note(&mut self, word: u64) {
        const K: u64 = 0x517c_c1b7_2722_0a95;
        self.fingerprint = (self.fingerprint.rotate_left(5) ^ word ^ self.now_us).wrapping_mul(K);
    }

    fn note_bytes(&mut self, bytes: &[u8]) {
        self.note(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.note(u64::from_le_bytes(word));
        }
    }

    fn note_text(&mut self, text: &str) {
        self.note_bytes(text.as_bytes());
    }

    // --- what must be -----------------------------------------------------------------------

    pub fn fault(&mut self, what: String) {
        if self.faults.len() < 100 {
            self.faults.push(format!("at {} us: {what}", self.now_us));
        }
    }

    fn check_bounds(&mut self, number: u32) {
        let host = self.hosts[number as usize].as_ref().expect("alive");
        let (gauges, limits) = (host.node.gauges(), host.limits);
        let address = self.addresses[number as usize];
        for (what, value, max) in [
            ("records", gauges.records + gauges.tombstones, limits.records),
            ("published", gauges.published + gauges.withdrawing, limits.published),
            ("lookups in flight", gauges.lookups_in_flight, limits.lookups),
            ("requests in flight", gauges.requests_in_flight, REQUESTS_MAX),
        ] {
            if value > max {
                self.fault(format!("{address} has {value} {what}, and {max} is the limit"));
            }
        }
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

    /// The same without panic: whether it came.
    pub fn comes(&mut self, seconds: u64, done: impl Fn(&Network) -> bool) -> bool {
        let until_us = self.now_us + seconds * SECOND;
        while !done(self) {
            if self.now_us >= until_us {
                return false;
            }
            self.run(20 * MS);
        }
        true
    }

    // --- sessions ---------------------------------------------------------------------------

    pub fn publish(&mut self, n: usize, flow: FlowKey) -> Version {
        let version = self.version();
        self.publish_version(n, flow, version);
        version
    }

    /// Publishes with a version by the server's own clock.
    pub fn publish_by_clock(&mut self, n: usize, flow: FlowKey) -> Version {
        let now_us = self.now_us;
        let host = self.host(locator(n));
        host.clock = host.unix_us(now_us).max(host.clock + 1);
        let version = Version(host.clock);
        self.publish_version(n, flow, version);
        version
    }

    /// The server's clock takes note of a version.
    pub fn observe(&mut self, n: usize, version: Version) {
        let host = self.host(locator(n));
        host.clock = host.clock.max(version.0);
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
        self.until("all replicas to acknowledge", 30, |network| network.is_settled());
    }

    pub fn is_settled(&self) -> bool {
        self.hosts().all(|host| {
            let gauges = host.node.gauges();
            gauges.published_unacked == 0 && gauges.withdrawing == 0
        })
    }

    /// The same, and no former replica holds anything any more.
    pub fn is_tidy(&self) -> bool {
        self.is_settled() && self.hosts().all(|host| host.node.gauges().published_moving == 0)
    }

    // --- lookups ----------------------------------------------------------------------------

    /// From now on answers to lookups are collected for [`Network::take_resolved`].
    pub fn collect(&mut self) {
        self.resolved.get_or_insert_default();
    }

    pub fn take_resolved(&mut self) -> Vec<Resolved> {
        self.resolved.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub fn ask(&mut self, n: usize, flow: FlowKey) {
        self.ask_all(n, [flow]);
    }

    /// A worker's burst of questions.
    pub fn ask_all(&mut self, n: usize, flows: impl IntoIterator<Item = FlowKey>) {
        let number = self.numbers[&locator(n)];
        let asked_at_unix_us = self.unix_us();
        for flow in flows {
            let resolve = Resolve { flow, asked_at_unix_us };
            self.give(number, Event::Resolve { ring: 0, resolve });
        }
        self.follow_up(number);
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

    /// The sessions that node `n` told its workers are superseded, in order.
    pub fn superseded(&self, n: usize) -> &[(FlowKey, Version, IpAddr)] {
        self.superseded_at(locator(n))
    }

    pub fn superseded_at(&self, locator: IpAddr) -> &[(FlowKey, Version, IpAddr)] {
        let host = self.hosts[self.numbers[&locator] as usize].as_ref();
        &host.expect("alive").superseded
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
            let answer = match &mut self.resolved {
                Some(resolved) => resolved.pop().map(|Resolved { flow, resolution, .. }| {
                    Answer::Resolved { flow, resolution, dead: None }
                }),
                None => self.answer(n),
            };
            match answer {
                Some(Answer::Resolved { flow: f, resolution, .. }) if f == flow => {
                    return resolution;
                }
                Some(other) => panic!("expected a resolution of {flow}, got {other:?}"),
                None => {
                    assert!(self.now_us < until_us, "no answer from the node");
                    self.step(until_us);
                }
            }
        }
    }

    /// Asks until there is an answer: in foul weather that may need a second try, and right after
    /// servers have come or gone, or were silent, nobody says NotFound; but after 30 s again.
    pub fn resolve_patiently(&mut self, n: usize, flow: FlowKey) -> Resolution {
        for _ in 0..250 {
            match self.resolve(n, flow) {
                Resolution::TimedOut => self.run(150 * MS),
                resolution => return resolution,
            }
        }
        panic!("all lookups of {flow} timed out");
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
