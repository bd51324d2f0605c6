//! The DHT node: what to do about each datagram, each word of a worker and each moment. Never
//! opens a socket, reads a clock or starts a thread: time and datagrams come in as events,
//! answers go out as actions and datagrams by [`Node::transmit`], and one seed makes one run.
//!
//! Read down: [`Node::handle`] takes an event; `serving` answers the requests of others,
//! `reading` runs lookups, `publishing` keeps our records stored, `membership` knows the others.

mod inspect;
mod membership;
mod publishing;
mod reading;
mod serving;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use holdfast_handoff::{Announcement, Answer, Resolve, Version};
use holdfast_net::FlowKey;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::batch::{Header, Item, Outcome, Reader, Request};
use crate::config::{Config, ConfigError, us};
use crate::id::{Id, IdHasher};
use crate::id_map::IdMap;
use crate::link::{Begun, Class, Due, Links, Op};
use crate::message::{DATAGRAM_MAX, Datagram, Message, MessageError, Sender};
use crate::peer_slots::{PeerSlots, Slot};
use crate::placement::Placement;
use crate::publish::Entry;
use crate::read::{Reads, Token};
use crate::record::{Claim, State};
use crate::refusals::Refusals;
use crate::request::{LookupKey, Purpose, Requests};
use crate::routing_table::{Patience, RoutingTable};
use crate::stats::{Counter, Counters, Gauges, Journal, LookupRecord, Stats, Times};
use crate::store::{Store, Terms};

pub use inspect::{Limit, Routing, RoutingBucket};
pub use membership::{AbsentPeer, Peer};
pub use reading::{LookupReport, ReplicaReport, Statement};

use membership::{Membership, ping_timeout_us};
use reading::Running;

/// Pause between two turns of housekeeping, in µs.
const HOUSEKEEPING_US: u64 = 25_000;
/// Requests in flight at most.
const REQUESTS_MAX: usize = 1 << 18;
/// Control messages that wait to be sent, at most: the socket may take none for a while.
const OUTBOX_MAX: usize = 1 << 16;
/// Requests and lookups that time out in one call of [`Node::handle`], at most.
const TIMEOUTS_AT_ONCE: usize = 1024;
/// A version this far ahead of the wall clock is not believed, as in [`holdfast_handoff::Clock`].
const AHEAD_US_MAX: u64 = 3_600_000_000;
/// How long to wait for the answer to the PING of a node that we do not know, in µs.
const PING_TIMEOUT_US: u64 = 200_000;

/// What happens to a node.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A datagram came in.
    Datagram {
        /// Its source.
        from: SocketAddr,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// A worker asks who owns a flow; answered with [`Action::Answer`].
    Resolve {
        /// Which worker's rings.
        ring: usize,
        /// What it asks.
        resolve: Resolve,
    },
    /// A worker tells something.
    Announcement(Announcement),
    /// The control thread asks what each replica says; answered with [`Action::Report`].
    Survey {
        /// Comes back with the report.
        token: u64,
        /// The flow.
        flow: FlowKey,
    },
    /// This server stops: all others are told, and its replicas move. From then on the node does
    /// nothing else; [`Node::has_left`] says when it may be dropped.
    Leave,
    /// Time has passed: due when [`Node::next_deadline_us`] says so.
    Tick,
}

/// What a node wants done.
#[derive(Debug, Clone)]
pub enum Action {
    /// Give this to a worker.
    Answer {
        /// Which worker's rings.
        ring: usize,
        /// What.
        answer: Answer,
    },
    /// Tell the clock of a version ahead of it.
    Observe(Version),
    /// Give this to the control thread.
    Report {
        /// As it was asked.
        token: u64,
        /// What the replicas said.
        report: Box<LookupReport>,
    },
}

/// What a batch has answered so far.
#[derive(Debug, Clone, Default)]
struct Answered {
    count: usize,
    /// When the last of the operations that it answers was sent.
    sent_at_us: Option<u64>,
}

/// A datagram to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// To whom.
    pub to: SocketAddr,
    /// Its length in bytes.
    pub len: usize,
}

/// A node of the DHT.
#[derive(Debug, Clone)]
pub struct Node {
    config: Config,
    hasher: IdHasher,
    own: Sender,
    started_unix_us: u64,
    rng: Pcg64,
    /// Time of the event at hand; never goes back.
    now_us: u64,
    housekeeping_at_us: u64,
    actions: Vec<Action>,
    outbox: VecDeque<(SocketAddr, Datagram)>,

    membership: Membership,
    table: RoutingTable,
    slots: PeerSlots,
    requests: Requests,

    store: Store,

    links: Links,
    /// What the batch at hand says, and which records it is about; empty between batches.
    items: Vec<Item>,
    ids_held: Vec<Id>,
    ids_published: Vec<Id>,

    reads: Reads<reading::Asker>,
    refusals: Refusals,
    /// All reads may take equally long, so this is in order; as below.
    read_deadlines: VecDeque<(u64, Token)>,
    lookups: HashMap<LookupKey, Running>,
    /// All lookups may take equally long, so this is in order.
    lookup_deadlines: VecDeque<(u64, LookupKey)>,

    published: IdMap<Entry>,
    publishing: publishing::Queues,

    counters: Counters,
    setting_time: Times,
    lookup_time_found: Times,
    lookup_time_not_found: Times,
    journal: Journal,
}

impl Node {
    /// A node that starts now, at its time 0, which is `started_unix_us` microseconds since the
    /// Unix epoch: its incarnation. All its randomness comes from `seed`.
    ///
    /// # Errors
    /// [`ConfigError`] when the configuration cannot work.
    pub fn new(config: Config, seed: u64, started_unix_us: u64) -> Result<Node, ConfigError> {
        config.check()?;
        let hasher = IdHasher::new(&config.id_key);
        let own = Sender {
            id: hasher.node(config.locator),
            locator: config.locator,
            incarnation: started_unix_us,
        };
        let patience =
            Patience { failures_max: config.failures_max, dead_after_us: us(config.dead_after) };
        let terms = Terms {
            lease_us: us(config.lease),
            record_ttl_us: us(config.record_ttl),
            tombstone_ttl_us: us(config.tombstone_ttl),
        };
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut store = Store::new(config.records_max, terms, rng.random());
        // Ours ends with us.
        store.begin_lease(0, own.locator, own.incarnation);
        Ok(Node {
            membership: Membership::new(&config),
            table: RoutingTable::new(
                own.id,
                config.listen,
                config.k,
                config.bucket_bits,
                patience,
                Placement::new(config.spread, config.replicas),
            ),
            slots: PeerSlots::new(config.listen),
            requests: Requests::default(),
            store,
            links: Links::new(),
            items: Vec::new(),
            ids_held: Vec::new(),
            ids_published: Vec::new(),
            reads: Reads::new(),
            refusals: Refusals::default(),
            read_deadlines: VecDeque::new(),
            lookups: HashMap::new(),
            lookup_deadlines: VecDeque::new(),
            published: IdMap::new(config.published_max, rng.random()),
            publishing: publishing::Queues::default(),
            counters: Counters::default(),
            setting_time: Times::new(),
            lookup_time_found: Times::new(),
            lookup_time_not_found: Times::new(),
            journal: Journal::default(),
            hasher,
            own,
            started_unix_us,
            rng,
            now_us: 0,
            housekeeping_at_us: 0,
            actions: Vec::new(),
            outbox: VecDeque::new(),
            config,
        })
    }

    /// Goes on with this configuration's members and bootstrap nodes; all else in it must be as in
    /// the first one.
    pub fn set_cluster(&mut self, config: &Config) {
        self.config.members.clone_from(&config.members);
        self.config.bootstrap.clone_from(&config.bootstrap);
        self.membership.set_bootstrap(config, self.now_us);
    }

    /// Takes an event of the moment `now_us`, in µs since the node started, and returns what is
    /// to be done about it, in order.
    pub fn handle(&mut self, now_us: u64, event: Event<'_>) -> std::vec::Drain<'_, Action> {
        self.woken(now_us);
        self.now_us = self.now_us.max(now_us);
        if self.membership.is_leaving() {
            self.after_leave(event);
            return self.actions.drain(..);
        }
        match event {
            Event::Datagram { from, bytes } => self.datagram(from, bytes),
            Event::Resolve { ring, resolve } => self.resolve(ring, resolve),
            Event::Announcement(announcement) => self.announcement(announcement),
            Event::Survey { token, flow } => self.survey(token, flow),
            Event::Leave => self.leave(),
            Event::Tick => self.tick(),
        }
        self.send_published();
        self.actions.drain(..)
    }

    /// Takes an event after this server said that it stops.
    fn after_leave(&mut self, event: Event<'_>) {
        match event {
            Event::Datagram { .. } => {
                self.count(Counter::DatagramsReceived);
                self.count(Counter::AfterLeave);
            }
            Event::Resolve { ring, resolve } => self.refuse_lookup(ring, resolve),
            Event::Announcement(_) | Event::Survey { .. } => self.count(Counter::CommandsRefused),
            Event::Leave | Event::Tick => self.spread(),
        }
    }

    /// Writes the next datagram that is due to the start of `body`. Call it after the events of a
    /// moment, until it returns `None`.
    pub fn transmit(&mut self, now_us: u64, body: &mut [u8; DATAGRAM_MAX]) -> Option<Transmit> {
        self.now_us = self.now_us.max(now_us);
        if let Some((to, datagram)) = self.outbox.pop_front() {
            // Only a message that this module cannot express does not fit.
            let len = datagram.encode(body).unwrap_or(0);
            return Some(Transmit { to, len });
        }
        if self.membership.is_leaving() {
            return None;
        }
        let (table, hasher) = (&self.table, &self.hasher);
        let life = |to: SocketAddr| {
            let contact = table.get(hasher.node(to.ip()));
            contact.map_or(0, |contact| contact.life)
        };
        let (to, len) = self.links.transmit(self.now_us, body, self.own.incarnation, life)?;
        Some(Transmit { to, len })
    }

    /// When the node next wants an [`Event::Tick`], in µs since it started.
    #[must_use]
    pub fn next_deadline_us(&self) -> u64 {
        let requests = self.requests.next_deadline_us();
        let lookups = self.lookup_deadlines.front().map(|(at_us, _)| *at_us);
        let reads = self.read_deadlines.front().map(|(at_us, _)| *at_us);
        let links = self.links.next_deadline_us();
        let publishing = self.is_publishing_due().then_some(self.now_us);
        let membership = self.membership.next_deadline_us();
        if self.membership.is_leaving() {
            return membership.unwrap_or(self.now_us + HOUSEKEEPING_US);
        }
        [requests, lookups, reads, links, publishing, membership]
            .into_iter()
            .flatten()
            .fold(self.housekeeping_at_us, u64::min)
    }

    fn tick(&mut self) {
        for _ in 0..TIMEOUTS_AT_ONCE {
            let Some((key, request)) = self.requests.timed_out(self.now_us) else {
                break;
            };
            self.request_timed_out(key, request);
        }
        self.time_out_lookups(TIMEOUTS_AT_ONCE);
        for _ in 0..TIMEOUTS_AT_ONCE {
            let Some((link, due)) = self.links.due(self.now_us) else {
                break;
            };
            match due {
                Due::Hedge(token) => self.hedge(token),
                Due::Expired(op, sent_at_us) => self.expired(link, op, sent_at_us),
            }
        }
        self.probe();
        self.spread();
        if self.now_us >= self.housekeeping_at_us {
            self.housekeeping_at_us = self.now_us + HOUSEKEEPING_US;
            self.keep_members();
            self.keep_records();
            self.keep_published();
        }
    }

    fn datagram(&mut self, from: SocketAddr, bytes: &[u8]) {
        self.count(Counter::DatagramsReceived);
        if !self.config.is_member(from.ip()) {
            return self.count(Counter::NotMember);
        }
        if let Some(batch) = Reader::new(bytes) {
            return match batch {
                Ok((header, reader)) => self.batch(from, &header, reader),
                Err(error) => self.refused(error),
            };
        }
        let datagram = match Datagram::decode(bytes) {
            Ok(datagram) => datagram,
            Err(error) => return self.refused(error),
        };
        let sender = datagram.sender;
        if sender.locator != from.ip() {
            self.count(Counter::ForgedLocator);
        } else if sender.locator == self.own.locator {
            self.count(Counter::Reflected);
        } else if sender.id != self.hasher.node(sender.locator) {
            self.count(Counter::WrongId);
        } else if self.is_of_the_past(&sender) {
            // Counted there.
        } else if datagram.message.is_answer() {
            self.answer(from, datagram);
        } else {
            self.serve(from, datagram);
        }
    }

    fn refused(&mut self, error: MessageError) {
        self.count(match error {
            MessageError::NotOurs => Counter::NotOurs,
            MessageError::UnknownVersion(_) => Counter::UnknownVersion,
            MessageError::Malformed => Counter::Malformed,
        });
    }

    /// Takes a batch of operations and results.
    fn batch(&mut self, from: SocketAddr, header: &Header, mut reader: Reader<'_>) {
        let locator = from.ip();
        let incarnation = header.incarnation;
        let sender = Sender { id: self.hasher.node(locator), locator, incarnation };
        if locator == self.own.locator {
            return self.count(Counter::Reflected);
        }
        if self.is_of_the_past(&sender) {
            return;
        }
        self.seen(sender, from);
        if header.receiver != self.own.incarnation {
            // What was said to a former life of ours. Our PING tells the sender of this one.
            self.count(Counter::OtherIncarnation);
            return self.check_soon(sender.id);
        }
        // One server has one way: it cannot use up those of others by changing its port.
        if self.table.get(sender.id).is_some_and(|contact| contact.address != from) {
            return self.count(Counter::OtherPort);
        }
        let Some(link) = self.links.of(from) else {
            return self.count(Counter::PeersRefused);
        };
        match self.links.begin(link, header) {
            Begun::Known => {}
            Begun::Restarted => self.begun_anew(sender, from, link),
            Begun::Forgotten => {
                self.count(Counter::Forgotten);
                self.store.supersede_leases(self.now_us, locator);
                self.begun_anew(sender, from, link);
            }
            Begun::Older => return self.count(Counter::OlderIncarnation),
        }
        let mut items = std::mem::take(&mut self.items);
        while let Some(item) = reader.next() {
            match item {
                Ok(item) => items.push(item),
                Err(error) => self.refused(error),
            }
        }
        self.warm(link, &items);
        let mut answered = Answered::default();
        for item in items.drain(..) {
            match item {
                Item::Request(number, request) => self.requested(&sender, link, number, request),
                Item::Result(number, outcome) => self.result(link, number, outcome, &mut answered),
            }
        }
        self.items = items;
        if let Some(sent_at_us) = answered.sent_at_us {
            let rtt_us = self.now_us.saturating_sub(sent_at_us);
            self.links.measured(link, rtt_us, answered.count);
            self.heard(sender, from, Some(rtt_us));
        }
    }

    /// Touches what a batch is about before it is worked on, one item after the other.
    fn warm(&mut self, link: u32, items: &[Item]) {
        let (mut held, mut published) = (Vec::new(), Vec::new());
        std::mem::swap(&mut held, &mut self.ids_held);
        std::mem::swap(&mut published, &mut self.ids_published);
        for item in items {
            match item {
                Item::Request(_, request) => held.push(request.id()),
                Item::Result(number, _) => published.extend(self.links.record_of(link, *number)),
            }
        }
        self.store.warm(held.iter().copied());
        self.published.warm(published.iter().copied());
        held.clear();
        published.clear();
        (self.ids_held, self.ids_published) = (held, published);
    }

    /// Carries out an operation of a batch.
    fn requested(&mut self, sender: &Sender, link: u32, number: u32, request: Request) {
        if !self.links.is_wanted(link, number) {
            return self.count(Counter::OperationsLate);
        }
        let outcome = self.carry_out(sender, request);
        if !self.links.push_result(link, number, outcome) {
            self.count(Counter::ResultsDropped);
        }
    }

    /// Takes the result of an operation of ours.
    fn result(&mut self, link: u32, number: u32, outcome: Outcome, answered: &mut Answered) {
        let Some((op, sent_at_us)) = self.links.answered(link, number) else {
            return self.count(Counter::UnmatchedAnswers);
        };
        answered.count += 1;
        answered.sent_at_us = answered.sent_at_us.max(Some(sent_at_us));
        match op.class {
            Class::Lookup => self.replica_said(op.token, link, outcome),
            _ => self.settled(op.request, Slot::from_token(op.token), outcome),
        }
    }

    /// An operation was not answered in time: sends it again or gives it up.
    fn expired(&mut self, link: u32, op: Op, sent_at_us: u64) {
        let peer = self.hasher.node(self.links.address(link).ip());
        self.missed(peer, sent_at_us);
        let wanted = match op.class {
            Class::Lookup => self.reads.get(op.token).is_some(),
            Class::Delete => self.is_current(&op.request),
            Class::Background if matches!(op.request, Request::Release(..)) => true,
            _ => self.is_current(&op.request) && self.slots.is_current(Slot::from_token(op.token)),
        };
        if !wanted {
            self.count(Counter::RequestsAbandoned);
        } else if op.transmissions < crate::link::TRANSMISSIONS_MAX && self.links.push(link, op) {
            return self.count(Counter::Retransmissions);
        } else {
            self.count(Counter::RequestsFailed);
        }
        self.failed(link, op);
    }

    /// An operation will have no result.
    fn failed(&mut self, link: u32, op: Op) {
        match op.class {
            Class::Lookup => self.replica_failed(op.token, link),
            _ => self.unanswered(op.request, Slot::from_token(op.token)),
        }
    }

    /// Nothing that was sent on this way will be answered: the peer has restarted, or is dead.
    fn give_up(&mut self, link: u32) {
        while let Some(op) = self.links.give_up(link) {
            self.failed(link, op);
        }
    }

    /// Takes an answer to one of our requests.
    fn answer(&mut self, from: SocketAddr, datagram: Datagram) {
        let Datagram { sender, transaction, message } = datagram;
        let request = self.requests.get(transaction, from);
        if !request.is_some_and(|request| answers(&message, request.purpose)) {
            // Too late, but alive.
            self.seen(sender, from);
            return self.count(Counter::UnmatchedAnswers);
        }
        let Some((request, rtt_us)) = self.requests.answered(self.now_us, transaction) else {
            return;
        };
        // A PING_REQ waits for another node.
        let is_vouching = matches!(request.purpose, Purpose::Vouch(_) | Purpose::LastCall(_));
        self.heard(sender, from, (!is_vouching).then_some(rtt_us));
        match request.purpose {
            Purpose::Probe | Purpose::Check => {}
            Purpose::Vouch(suspect) | Purpose::LastCall(suspect) => {
                if let Message::PongRelayed { incarnation, ago_us } = message {
                    self.vouched_for(suspect, incarnation, ago_us);
                }
            }
            Purpose::Meet => self.met(from),
            Purpose::Find(key) => self.found(key, request.peer, message, rtt_us),
        }
    }

    /// Sends a request for the first time. Returns whether it was sent.
    fn request(&mut self, to: SocketAddr, purpose: Purpose) -> bool {
        if self.requests.len() >= REQUESTS_MAX {
            self.count(Counter::RequestsRefused);
            return false;
        }
        self.count(Counter::RequestsSent);
        let peer = self.hasher.node(to.ip());
        let random = self.rng.random();
        self.send_request(random, crate::request::Request::new(to, peer, purpose));
        true
    }

    fn send_request(&mut self, random: u64, request: crate::request::Request) {
        let rtt = self.table.get(request.peer).map(|c| c.rtt).unwrap_or_default();
        let timeout_us = match request.purpose {
            Purpose::Meet => PING_TIMEOUT_US,
            Purpose::Probe | Purpose::Check | Purpose::Vouch(_) | Purpose::LastCall(_) => {
                ping_timeout_us(rtt)
            }
            _ => rtt.timeout_us(request.transmissions as u32),
        };
        let (to, purpose) = (request.to, request.purpose);
        let transaction = self.requests.sent(self.now_us, random, request, timeout_us);
        let message = self.message(purpose);
        self.send(to, transaction, message);
    }

    fn message(&self, purpose: Purpose) -> Message {
        match purpose {
            Purpose::Probe | Purpose::Check | Purpose::Meet => Message::Ping,
            Purpose::Vouch(_) | Purpose::LastCall(_) => self.ping_req(purpose),
            Purpose::Find(key) => reading::message(key),
        }
    }

    fn send(&mut self, to: SocketAddr, transaction: u64, message: Message) {
        if self.outbox.len() == OUTBOX_MAX {
            return self.count(Counter::MessagesDropped);
        }
        let datagram = Datagram { sender: self.own, transaction, message };
        self.outbox.push_back((to, datagram));
    }

    fn request_timed_out(&mut self, key: u64, request: crate::request::Request) {
        let sent_at_us = request.last_sent_at_us();
        match request.purpose {
            Purpose::Vouch(suspect) => self.not_vouched_for(suspect, sent_at_us),
            Purpose::LastCall(_) => {}
            _ => self.missed(request.peer, sent_at_us),
        }
        let transmissions_max = match request.purpose {
            Purpose::Probe | Purpose::Check | Purpose::Vouch(_) | Purpose::LastCall(_) => 1,
            Purpose::Meet | Purpose::Find(_) => 4,
        };
        if !self.is_still_wanted(request.purpose) {
            self.count(Counter::RequestsAbandoned);
        } else if request.transmissions < transmissions_max {
            self.count(Counter::Retransmissions);
            return self.send_request(key, request);
        } else {
            self.count(Counter::RequestsFailed);
        }
        match request.purpose {
            Purpose::Probe | Purpose::Check => {
                self.ping_missed(request.purpose, request.peer, sent_at_us);
            }
            Purpose::Vouch(_) | Purpose::LastCall(_) => {}
            Purpose::Meet => self.met(request.to),
            Purpose::Find(key) => self.not_found_out(key, request.peer),
        }
    }

    fn is_still_wanted(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Find(key) => self.lookups.contains_key(&key),
            _ => true,
        }
    }

    /// Our claim of this version.
    fn claim(&self, version: Version) -> Claim {
        Claim { version, owner: self.own.locator }
    }

    /// Microseconds since the Unix epoch, as far as a node without a clock can tell.
    fn unix_us(&self) -> u64 {
        self.started_unix_us.saturating_add(self.now_us)
    }

    /// Takes note of a version from another server. Returns whether it can be believed.
    fn observe(&mut self, version: Version) -> bool {
        let unix_us = self.unix_us();
        if version.0 > unix_us.saturating_add(AHEAD_US_MAX) {
            return false;
        }
        if version.0 > unix_us {
            self.actions.push(Action::Observe(version));
        }
        true
    }

    /// A time up to a quarter shorter or longer, so that servers do not march in step.
    fn jittered(&mut self, time_us: u64) -> u64 {
        time_us - time_us / 4 + self.rng.random_range(0..=time_us / 2)
    }

    fn count(&mut self, counter: Counter) {
        self.counters.count(counter);
    }

    /// Everything that is counted and measured.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            counters: self.counters.clone(),
            gauges: self.gauges(),
            setting_time_us: self.setting_time.distribution(),
            lookup_time_found_us: self.lookup_time_found.distribution(),
            lookup_time_not_found_us: self.lookup_time_not_found.distribution(),
        }
    }

    /// What is counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How things stand.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let contacts = self.table.contacts();
        let suspects = contacts.iter().filter(|c| c.is_suspect()).count();
        let (away, dead) = self.membership.absent();
        Gauges {
            peers: contacts.len() as u64,
            peers_suspect: suspects as u64,
            peers_away: away as u64,
            peers_dead: dead as u64,
            records: self.store.live() as u64,
            tombstones: self.store.tombstones() as u64,
            records_max: self.store.capacity() as u64,
            owners: self.store.owners() as u64,
            published: self.publishing.live as u64,
            published_unacked: (self.publishing.live - self.publishing.settled) as u64,
            published_moving: self.publishing.moving as u64,
            withdrawing: (self.published.len() - self.publishing.live) as u64,
            lookups_in_flight: (self.reads.len() + self.lookups.len()) as u64,
            walks_in_flight: self.lookups.len() as u64,
            requests_in_flight: (self.requests.len() + self.links.in_flight()) as u64,
            operations_in_flight: self.links.in_flight() as u64,
            operations_queued: self.links.queued() as u64,
            joined: self.membership.is_joined(),
            ..Gauges::default()
        }
    }

    /// The live records held for the cluster, in no order.
    pub fn records(&self) -> impl Iterator<Item = (Id, Claim)> + '_ {
        self.store.iter(self.now_us)
    }

    /// The live record held under an id.
    #[must_use]
    pub fn record(&self, id: Id) -> Option<Claim> {
        let record = self.store.get(self.now_us, id)?;
        (record.state == State::Live).then_some(record.claim)
    }

    /// Whether all replicas have acknowledged what the workers last announced of a flow; `None`
    /// when nothing of it is left to look after.
    #[must_use]
    pub fn is_settled(&self, flow: &FlowKey) -> Option<bool> {
        self.published.get(self.hasher.flow(flow)).map(|entry| entry.settled)
    }

    /// The last `limit` lookups that workers asked for, the newest first.
    #[must_use]
    pub fn recent_lookups(&self, limit: usize) -> Vec<LookupRecord> {
        self.journal.recent(limit)
    }

    /// Id of this node.
    #[must_use]
    pub fn id(&self) -> Id {
        self.own.id
    }

    /// This node's locator.
    #[must_use]
    pub fn locator(&self) -> IpAddr {
        self.own.locator
    }
}

/// Whether a message is the kind of answer that a request for this purpose gets.
fn answers(message: &Message, purpose: Purpose) -> bool {
    match purpose {
        Purpose::Probe | Purpose::Check | Purpose::Meet => matches!(message, Message::Pong),
        Purpose::Vouch(_) | Purpose::LastCall(_) => {
            matches!(message, Message::PongRelayed { .. })
        }
        Purpose::Find(key) => reading::answers(message, key),
    }
}
