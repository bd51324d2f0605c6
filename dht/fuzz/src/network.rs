//! A few nodes on a network in memory, where after everything that happens it is checked that they
//! keep their limits and send nothing that they should not. Knows no chance: all datagrams take
//! equally long.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use holdfast_dht::batch::{Item, Reader};
use holdfast_dht::message::{DATAGRAM_MAX, Datagram, Message, Sender};
use holdfast_dht::{Action, Config, Event, Gauges, Id, Node, id::IdHasher};
use holdfast_handoff::{Answer, Resolution, Version};
use ipnet::IpNet;

use super::Tally;

/// Addresses of members: the first few are nodes, behind the others is only what an input sends.
pub const MEMBERS: usize = 16;
/// Microseconds since the Unix epoch at the network's time 0.
pub const EPOCH_US: u64 = 1_700_000_000_000_000;
const ID_KEY: [u8; 16] = *b"a fuzzer's key..";
const PORT: u16 = 7000;
/// How long a datagram is on its way, in µs.
const DELAY_US: u64 = 100;
/// Events of one input at most: then it ends.
const EVENTS_MAX: usize = 10_000;
/// Datagrams and requests that are remembered.
const REMEMBERED_MAX: usize = 32;
/// Ticks that a node may want in one moment, and datagrams that it may send after one event.
const TICKS_AT_ONCE_MAX: usize = 64;
const SENT_AT_ONCE_MAX: usize = 512;
/// Workers that can wait for one lookup.
const ASKERS_MAX: usize = 64;
/// Names of owners in a store.
const OWNERS_MAX: u64 = 1 << 16;

/// What an input chooses once.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// 2 to 4.
    pub nodes: usize,
    /// IPv6 or IPv4.
    pub is_v6: bool,
    /// 1 to 3.
    pub replicas: usize,
    /// Plain Kademlia's placement.
    pub is_plain: bool,
    /// Room for a few records, published sessions and lookups only, or for more.
    pub is_tight: bool,
    /// k-buckets of one contact.
    pub has_small_buckets: bool,
}

/// A datagram on its way, or a copy of it.
#[derive(Debug, Clone)]
pub struct Flight {
    /// Its source.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A node and what it owes.
struct Host {
    node: Node,
    config: Config,
    started_us: u64,
    incarnation: u64,
    has_left: bool,
    /// Lookups that its workers asked for, and how many were answered; the same of surveys.
    asked: u64,
    answered: u64,
    surveyed: u64,
    reported: u64,
    /// Datagrams that came from each address, and answers that went there.
    received: BTreeMap<SocketAddr, usize>,
    answers: BTreeMap<SocketAddr, usize>,
}

/// The network.
pub struct Network {
    /// Time in µs.
    pub now_us: u64,
    /// Datagrams to lose next.
    pub to_lose: usize,
    /// Members without a node, by bits, that answer each PING.
    pub echoing: u16,
    shape: Shape,
    hasher: IdHasher,
    hosts: Vec<Host>,
    flying: BTreeMap<(u64, u64), Flight>,
    sent: u64,
    events: usize,
    captured: VecDeque<Flight>,
    /// Requests by nodes: who asked whom, with which transaction or number.
    requests: VecDeque<(SocketAddr, SocketAddr, u64)>,
    operations: VecDeque<(SocketAddr, SocketAddr, u64)>,
    counted: Tally,
}

/// Address of the `n`-th member.
pub fn address(shape: Shape, n: usize) -> SocketAddr {
    let host = (n % MEMBERS) as u16 + 1;
    let ip: IpAddr = match shape.is_v6 {
        true => [0xfd00, 0, 0, 0, 0, 0, 0, host].into(),
        false => [10, 0, 0, host as u8].into(),
    };
    SocketAddr::new(ip, PORT)
}

fn config(shape: Shape, n: usize) -> Config {
    let own = address(shape, n);
    let mut config = Config::new(own.ip(), own);
    if n > 0 {
        config.bootstrap = vec![address(shape, 0)];
    }
    config.members = vec![IpNet::new(own.ip(), if shape.is_v6 { 64 } else { 24 }).expect("fits")];
    config.id_key = ID_KEY;
    config.replicas = shape.replicas;
    config.spread = if shape.is_plain { shape.replicas } else { 128 };
    (config.records_max, config.published_max, config.lookups_max) =
        if shape.is_tight { (8, 4, 3) } else { (256, 64, 32) };
    if shape.has_small_buckets {
        (config.k, config.bucket_bits) = (1, 1);
    }
    let ms = Duration::from_millis;
    config.lease = ms(1000);
    config.record_ttl = ms(2000);
    config.tombstone_ttl = ms(100);
    config.lookup_timeout = ms(50);
    config.dead_after = ms(300);
    config.probe_interval = ms(100);
    config.refresh_interval = ms(1000);
    config.failures_max = 2;
    config
}

impl Host {
    fn new(shape: Shape, n: usize, now_us: u64) -> Host {
        let config = config(shape, n);
        let incarnation = EPOCH_US + now_us;
        let node = Node::new(config.clone(), n as u64, incarnation).expect("a right one");
        Host {
            node,
            config,
            started_us: now_us,
            incarnation,
            has_left: false,
            asked: 0,
            answered: 0,
            surveyed: 0,
            reported: 0,
            received: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    fn wakes_us(&self) -> u64 {
        self.started_us.saturating_add(self.node.next_deadline_us())
    }

    fn note(&mut self, event: &Event<'_>) {
        match event {
            Event::Datagram { from, .. } => *self.received.entry(*from).or_default() += 1,
            Event::Resolve { .. } => self.asked += 1,
            Event::Survey { .. } => self.surveyed += 1,
            Event::Leave => self.has_left = true,
            Event::Announcement(_) | Event::Tick => {}
        }
    }

    fn check_actions(&mut self, actions: Vec<Action>) {
        let actions_max = ASKERS_MAX * self.config.lookups_max + DATAGRAM_MAX;
        assert!(actions.len() <= actions_max, "{} actions after one event", actions.len());
        for action in actions {
            match action {
                Action::Answer { ring, answer } => {
                    assert_eq!(ring, 0);
                    self.check_answer(answer);
                }
                Action::Observe(version) => assert_ne!(version, Version(u64::MAX)),
                Action::Report { report, .. } => {
                    self.reported += 1;
                    assert!(report.replicas.len() <= MEMBERS);
                }
            }
        }
        assert!(self.answered <= self.asked, "a lookup was answered twice");
        assert!(self.reported <= self.surveyed, "a survey was answered twice");
    }

    fn check_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Resolved { resolution, .. } => {
                self.answered += 1;
                if let Resolution::Owner { locator, .. } = resolution {
                    assert!(self.config.is_member(locator), "packets would go to {locator}");
                }
            }
            Answer::NotMine { owner, .. }
            | Answer::OwnerDead { owner }
            | Answer::Superseded { owner, .. } => {
                assert!(self.config.is_member(owner) && owner != self.config.locator);
            }
        }
    }

    fn check_gauges(&self) {
        let Gauges { peers, peers_suspect, records, tombstones, owners, published, .. } =
            self.node.gauges();
        let Gauges {
            published_unacked, withdrawing, lookups_in_flight, requests_in_flight, ..
        } = self.node.gauges();
        let Config { records_max, published_max, lookups_max, .. } = self.config;
        assert!(peers < MEMBERS as u64 && peers_suspect <= peers);
        assert!(records + tombstones <= records_max as u64);
        assert!(owners <= OWNERS_MAX);
        assert!(published_unacked <= published);
        assert!(published + withdrawing <= published_max as u64);
        assert!(lookups_in_flight <= lookups_max as u64);
        // For each lookup and each session one to each member, and some to each by themselves.
        let requests_max = MEMBERS * (lookups_max + published_max + 64);
        assert!(requests_in_flight <= requests_max as u64, "{requests_in_flight} requests");
    }

    /// What is sent is ours, and for a member; answers are no more than what was asked.
    fn check_sent(&mut self, to: SocketAddr, bytes: &[u8], is_v6: bool) {
        assert!(!bytes.is_empty() && bytes.len() <= DATAGRAM_MAX);
        assert!(self.config.is_member(to.ip()), "a datagram to {to}");
        assert_ne!(to.ip(), self.config.locator);
        let is_answer = match Reader::new(bytes) {
            Some(batch) => {
                let (header, mut reader) = batch.expect("a batch of ours has a header");
                assert_eq!(header.incarnation, self.incarnation);
                let (mut items, mut results) = (0, 0);
                while let Some(item) = reader.next() {
                    let item = item.expect("a batch of ours is whole");
                    items += 1;
                    results += usize::from(matches!(item, Item::Result(..)));
                }
                assert!(items > 0, "an empty batch");
                results > 0
            }
            None => {
                let datagram = Datagram::decode(bytes).expect("a message of ours is one");
                assert_eq!(datagram.sender.id, self.node.id());
                assert_eq!(datagram.sender.incarnation, self.incarnation);
                datagram.message.is_answer()
            }
        };
        if is_answer {
            let answers = self.answers.entry(to).or_default();
            *answers += 1;
            let received = self.received.get(&to).copied().unwrap_or_default();
            // The results of a batch full of lookups take two when the owners are on IPv6.
            let answers_max = if is_v6 { 2 * received } else { received };
            assert!(*answers <= answers_max, "{answers} answers to {received} datagrams of {to}");
        }
    }

    fn peers_are_right(&self) {
        for peer in self.node.peers() {
            assert!(self.config.is_member(peer.locator) && peer.locator != self.config.locator);
            assert_eq!(peer.address.ip(), peer.locator);
            assert_ne!(peer.address.port(), 0);
        }
    }
}

impl Network {
    /// Nodes that begin to look for each other now.
    #[must_use]
    pub fn new(shape: Shape) -> Network {
        Network {
            now_us: 0,
            to_lose: 0,
            echoing: 0,
            shape,
            hasher: IdHasher::new(&ID_KEY),
            hosts: (0..shape.nodes).map(|n| Host::new(shape, n, 0)).collect(),
            flying: BTreeMap::new(),
            sent: 0,
            events: 0,
            captured: VecDeque::new(),
            requests: VecDeque::new(),
            operations: VecDeque::new(),
            counted: Tally::default(),
        }
    }

    /// Whether the input has made enough happen.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.events >= EVENTS_MAX
    }

    /// Address of the `n`-th member.
    #[must_use]
    pub fn address(&self, n: usize) -> SocketAddr {
        address(self.shape, n)
    }

    /// Address of the `n`-th node.
    #[must_use]
    pub fn node(&self, n: usize) -> SocketAddr {
        self.address(n % self.hosts.len())
    }

    /// Who the server at this address says that it is, or would if it were a node.
    #[must_use]
    pub fn sender(&self, address: SocketAddr) -> Sender {
        let locator = address.ip();
        let incarnation = self.place(address).map_or(EPOCH_US, |n| self.hosts[n].incarnation);
        Sender { id: self.hasher.node(locator), locator, incarnation }
    }

    /// Id of the record of a flow.
    #[must_use]
    pub fn record(&self, flow: &holdfast_net::FlowKey) -> Id {
        self.hasher.flow(flow)
    }

    /// One of the last datagrams that were sent.
    #[must_use]
    pub fn captured(&self, n: usize) -> Option<&Flight> {
        self.captured.get(n.checked_rem(self.captured.len())?)
    }

    /// Transaction of the last request but `n` that the node at `by` sent to `to`; 0 if none.
    #[must_use]
    pub fn transaction(&self, by: SocketAddr, to: SocketAddr, n: usize) -> u64 {
        last(&self.requests, by, to, n)
    }

    /// Number of the first operation in the last batch but `n` that the node at `by` sent to `to`;
    /// 0 if none.
    #[must_use]
    pub fn operation(&self, by: SocketAddr, to: SocketAddr, n: usize) -> u64 {
        last(&self.operations, by, to, n)
    }

    fn place(&self, address: SocketAddr) -> Option<usize> {
        (0..self.hosts.len()).find(|n| self.address(*n) == address)
    }

    /// Lets time pass.
    pub fn run(&mut self, time_us: u64) {
        let until_us = self.now_us + time_us;
        while !self.is_over() {
            let arrives_us =
                self.flying.first_key_value().map_or(u64::MAX, |((at_us, _), _)| *at_us);
            let wakes = self.hosts.iter().enumerate().map(|(n, host)| (host.wakes_us(), n)).min();
            let (wakes_us, n) = wakes.unwrap_or((u64::MAX, 0));
            if arrives_us.min(wakes_us) > until_us {
                break;
            }
            self.now_us = self.now_us.max(arrives_us.min(wakes_us));
            if arrives_us <= wakes_us {
                self.arrive();
            } else {
                self.wake(n);
            }
        }
        self.now_us = until_us;
    }

    fn arrive(&mut self) {
        if let Some((_, Flight { from, to, bytes })) = self.flying.pop_first() {
            match self.place(to) {
                Some(n) => self.handle(n, Event::Datagram { from, bytes: &bytes }),
                None => self.echo(from, to, &bytes),
            }
        }
    }

    /// Ticks until the node does not want any more for now.
    fn wake(&mut self, n: usize) {
        let mut ticks = 0;
        while self.hosts[n].wakes_us() <= self.now_us {
            self.handle(n, Event::Tick);
            ticks += 1;
            assert!(ticks <= TICKS_AT_ONCE_MAX, "a node does not come to rest");
        }
    }

    /// A member without a node answers a PING, if the input wants that.
    fn echo(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let place = (0..MEMBERS).find(|n| self.address(*n) == to);
        let echoes = place.is_some_and(|n| self.echoing >> n & 1 == 1);
        if let Ok(Datagram { transaction, message: Message::Ping, .. }) = Datagram::decode(bytes)
            && echoes
        {
            let sender = self.sender(to);
            let pong = Datagram { sender, transaction, message: Message::Pong };
            let mut room = [0; DATAGRAM_MAX];
            let len = pong.encode(&mut room).expect("fits");
            self.fly(Flight { from: to, to: from, bytes: room[..len].to_vec() });
        }
    }

    fn fly(&mut self, flight: Flight) {
        if self.to_lose > 0 {
            self.to_lose -= 1;
            return;
        }
        self.sent += 1;
        self.flying.insert((self.now_us + DELAY_US, self.sent), flight);
    }

    /// A datagram comes to a node, wherever it is from.
    pub fn deliver(&mut self, n: usize, from: SocketAddr, bytes: &[u8]) {
        let n = n % self.hosts.len();
        self.handle(n, Event::Datagram { from, bytes: &bytes[..bytes.len().min(DATAGRAM_MAX)] });
        self.hosts[n].peers_are_right();
    }

    /// Something happens to the `n`-th node. Then it sends what it wants to.
    pub fn handle(&mut self, n: usize, event: Event<'_>) {
        self.events += 1;
        let place = n % self.hosts.len();
        let (from, now_us) = (self.address(place), self.now_us);
        let host = &mut self.hosts[place];
        host.note(&event);
        let node_us = now_us - host.started_us;
        let actions: Vec<Action> = host.node.handle(node_us, event).collect();
        host.check_actions(actions);
        let mut body = [0; DATAGRAM_MAX];
        let mut datagrams = Vec::new();
        while let Some(transmit) = host.node.transmit(node_us, &mut body) {
            let bytes = body[..transmit.len].to_vec();
            host.check_sent(transmit.to, &bytes, self.shape.is_v6);
            datagrams.push(Flight { from, to: transmit.to, bytes });
            assert!(datagrams.len() <= SENT_AT_ONCE_MAX, "a node sends and sends");
        }
        host.check_gauges();
        for flight in datagrams {
            self.capture(&flight);
            self.fly(flight);
        }
    }

    fn capture(&mut self, flight: &Flight) {
        remember(&mut self.captured, flight.clone());
        if let Ok(datagram) = Datagram::decode(&flight.bytes)
            && !datagram.message.is_answer()
        {
            remember(&mut self.requests, (flight.from, flight.to, datagram.transaction));
        }
        if let Some(Ok((_, mut reader))) = Reader::new(&flight.bytes) {
            while let Some(Ok(item)) = reader.next() {
                if let Item::Request(number, _) = item {
                    let operation = (flight.from, flight.to, number.into());
                    return remember(&mut self.operations, operation);
                }
            }
        }
    }

    /// The `n`-th node is gone, and begins anew.
    pub fn restart(&mut self, n: usize) {
        let place = n % self.hosts.len();
        self.count(place);
        self.hosts[place] = Host::new(self.shape, place, self.now_us);
    }

    /// Lets all that workers have asked for come to its end, and tells what the nodes counted.
    #[must_use]
    pub fn end(mut self) -> Tally {
        self.events = 0;
        self.run(2 * self.hosts[0].config.lookup_timeout.as_micros() as u64);
        for place in 0..self.hosts.len() {
            let host = &self.hosts[place];
            let waiting = host.asked - host.answered;
            assert!(waiting == 0 || host.has_left || self.is_over(), "{waiting} never answered");
            let waiting = host.surveyed - host.reported;
            assert!(waiting == 0 || host.has_left || self.is_over(), "{waiting} never reported");
            self.count(place);
        }
        self.counted
    }

    fn count(&mut self, place: usize) {
        for (counter, count) in self.hosts[place].node.counters().iter() {
            self.counted.add(counter.name(), count);
        }
    }
}

/// The last but `n` of what was sent from one address to another; 0 if there is none.
fn last(
    all: &VecDeque<(SocketAddr, SocketAddr, u64)>,
    by: SocketAddr,
    to: SocketAddr,
    n: usize,
) -> u64 {
    let sent = all.iter().rev().filter(|sent| (sent.0, sent.1) == (by, to));
    sent.map(|sent| sent.2).nth(n).unwrap_or_default()
}

/// Keeps the last few.
fn remember<T>(all: &mut VecDeque<T>, one: T) {
    if all.len() == REMEMBERED_MAX {
        all.pop_front();
    }
    all.push_back(one);
}
