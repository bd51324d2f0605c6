//! The DHT node: what to do about each datagram, each word of a worker and each moment. Never
//! opens a socket, reads a clock or starts a thread: time and datagrams come in as events,
//! answers go out as actions and datagrams by [`Node::transmit`], and one seed makes one run.
//!
//! Read down: [`Node::handle`] takes an event; `serving` answers the requests of others,
//! `reading` runs lookups, `publishing` keeps our records stored, `membership` knows the others.

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

use crate::config::{Config, ConfigError, us};
use crate::id::{Id, IdHasher};
use crate::id_map::IdMap;
use crate::message::{DATAGRAM_MAX, Datagram, Message, MessageError, Sender};
use crate::peer_slots::PeerSlots;
use crate::publish::Entry;
use crate::record::{Claim, State};
use crate::request::{LookupKey, Purpose, Request, Requests, TRANSMISSIONS_MAX};
use crate::routing_table::{Patience, RoutingTable};
use crate::stats::{Counter, Counters, Gauges, Journal, LookupRecord, Stats, Times};
use crate::store::Store;

pub use membership::Peer;
pub use reading::{LookupReport, ReplicaReport, Statement};

use membership::Membership;
use reading::Running;

/// Pause between two turns of housekeeping, in µs.
const HOUSEKEEPING_US: u64 = 25_000;
/// Requests in flight at most.
const REQUESTS_MAX: usize = 1 << 18;
/// Requests and lookups that time out in one call of [`Node::handle`], at most.
const TIMEOUTS_AT_ONCE: usize = 1024;
/// A version this far ahead of the wall clock is not believed, as in [`holdfast_handoff::Clock`].
const AHEAD_US_MAX: u64 = 3_600_000_000;
/// How long to wait for the answer to a PING, in µs.
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
        Ok(Node {
            membership: Membership::new(&config),
            table: RoutingTable::new(own.id, config.k, config.bucket_bits, patience),
            slots: PeerSlots::new(config.listen),
            requests: Requests::default(),
            store: Store::new(config.records_max, us(config.tombstone_ttl)),
            lookups: HashMap::new(),
            lookup_deadlines: VecDeque::new(),
            published: IdMap::new(),
            publishing: publishing::Queues::default(),
            counters: Counters::default(),
            setting_time: Times::new(),
            lookup_time_found: Times::new(),
            lookup_time_not_found: Times::new(),
            journal: Journal::default(),
            hasher,
            own,
            started_unix_us,
            rng: Pcg64::seed_from_u64(seed),
            now_us: 0,
            housekeeping_at_us: 0,
            actions: Vec::new(),
            outbox: VecDeque::new(),
            config,
        })
    }

    /// Takes an event of the moment `now_us`, in µs since the node started, and returns what is
    /// to be done about it, in order.
    pub fn handle(&mut self, now_us: u64, event: Event<'_>) -> std::vec::Drain<'_, Action> {
        self.now_us = self.now_us.max(now_us);
        match event {
            Event::Datagram { from, bytes } => self.datagram(from, bytes),
            Event::Resolve { ring, resolve } => self.resolve(ring, resolve),
            Event::Announcement(announcement) => self.announcement(announcement),
            Event::Survey { token, flow } => self.survey(token, flow),
            Event::Tick => self.tick(),
        }
        self.send_published();
        self.actions.drain(..)
    }

    /// Writes the next datagram that is due to the start of `body`. Call it after the events of a
    /// moment, until it returns `None`.
    pub fn transmit(&mut self, now_us: u64, body: &mut [u8; DATAGRAM_MAX]) -> Option<Transmit> {
        self.now_us = self.now_us.max(now_us);
        let (to, datagram) = self.outbox.pop_front()?;
        // Only a message that this module cannot express does not fit.
        let len = datagram.encode(body).unwrap_or(0);
        Some(Transmit { to, len })
    }

    /// When the node next wants an [`Event::Tick`], in µs since it started.
    #[must_use]
    pub fn next_deadline_us(&self) -> u64 {
        let requests = self.requests.next_deadline_us();
        let lookups = self.lookup_deadlines.front().map(|(at_us, _)| *at_us);
        let publishing = self.is_publishing_due().then_some(self.now_us);
        [requests, lookups, publishing]
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
        let datagram = match Datagram::decode(bytes) {
            Ok(datagram) => datagram,
            Err(MessageError::NotOurs) => return self.count(Counter::NotOurs),
            Err(MessageError::UnknownVersion(_)) => return self.count(Counter::UnknownVersion),
            Err(MessageError::Malformed) => return self.count(Counter::Malformed),
        };
        let sender = datagram.sender;
        if sender.locator != from.ip() {
            self.count(Counter::ForgedLocator);
        } else if sender.locator == self.own.locator {
            self.count(Counter::Reflected);
        } else if sender.id != self.hasher.node(sender.locator) {
            self.count(Counter::WrongId);
        } else if datagram.message.is_answer() {
            self.answer(from, datagram);
        } else {
            self.serve(from, datagram);
        }
    }

    /// Takes an answer to one of our requests.
    fn answer(&mut self, from: SocketAddr, datagram: Datagram) {
        let Datagram { sender, transaction, message } = datagram;
        let request = self.requests.get(transaction, from);
        if !request.is_some_and(|request| answers(&message, request.purpose)) {
            return self.count(Counter::UnmatchedAnswers);
        }
        let Some((request, rtt_us)) = self.requests.answered(self.now_us, transaction) else {
            return;
        };
        self.heard(sender, from, rtt_us);
        match request.purpose {
            Purpose::Check => {}
            Purpose::Meet => self.met(from),
            Purpose::Find(key) => self.found(key, request.peer, message),
            Purpose::Store(..) | Purpose::Delete(..) => self.settled(request.purpose, &message),
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
        self.send_request(random, Request::new(to, peer, purpose));
        true
    }

    fn send_request(&mut self, random: u64, request: Request) {
        let timeout_us = match request.purpose {
            Purpose::Check | Purpose::Meet => PING_TIMEOUT_US,
            _ => {
                let rtt = self.table.get(request.peer).map(|c| c.rtt);
                let transmission = request.transmissions as u32;
                rtt.unwrap_or_default().timeout_us(transmission)
            }
        };
        let (to, purpose) = (request.to, request.purpose);
        let transaction = self.requests.sent(self.now_us, random, request, timeout_us);
        let message = self.message(purpose);
        self.send(to, transaction, message);
    }

    fn message(&self, purpose: Purpose) -> Message {
        match purpose {
            Purpose::Check | Purpose::Meet => Message::Ping,
            Purpose::Find(key) => reading::message(key),
            Purpose::Store(id, version, _) => Message::Store {
                id,
                version,
                ttl_s: u32::try_from(self.config.record_ttl.as_secs()).unwrap_or(u32::MAX),
            },
            Purpose::Delete(id, version, _) => Message::Delete { id, version },
        }
    }

    fn send(&mut self, to: SocketAddr, transaction: u64, message: Message) {
        let datagram = Datagram { sender: self.own, transaction, message };
        self.outbox.push_back((to, datagram));
    }

    fn request_timed_out(&mut self, key: u64, request: Request) {
        self.missed(request.peer, request.last_sent_at_us());
        let transmissions_max = match request.purpose {
            Purpose::Check => 1,
            Purpose::Meet | Purpose::Find(_) => 4,
            Purpose::Store(..) | Purpose::Delete(..) => TRANSMISSIONS_MAX,
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
            Purpose::Check => {}
            Purpose::Meet => self.met(request.to),
            Purpose::Find(key) => self.not_found_out(key, request.peer),
            Purpose::Store(..) | Purpose::Delete(..) => self.unanswered(request.purpose),
        }
    }

    fn is_still_wanted(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Check | Purpose::Meet => true,
            Purpose::Find(key) => self.lookups.contains_key(&key),
            Purpose::Store(id, version, _) | Purpose::Delete(id, version, _) => {
                self.is_current(purpose, id, version)
            }
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
        Gauges {
            peers: contacts.len() as u64,
            peers_suspect: suspects as u64,
            records: self.store.live() as u64,
            tombstones: self.store.tombstones() as u64,
            published: self.publishing.live as u64,
            published_unacked: (self.publishing.live - self.publishing.settled) as u64,
            withdrawing: (self.published.len() - self.publishing.live) as u64,
            lookups_in_flight: self.lookups.len() as u64,
            requests_in_flight: self.requests.len() as u64,
            joined: self.membership.is_joined(),
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
        Purpose::Check | Purpose::Meet => matches!(message, Message::Pong),
        Purpose::Find(key) => reading::answers(message, key),
        Purpose::Store(..) => {
            matches!(message, Message::Stored | Message::Stale(_) | Message::Full | Message::Ahead)
        }
        Purpose::Delete(..) => {
            matches!(message, Message::Deleted | Message::Stale(_) | Message::Ahead)
        }
    }
}
