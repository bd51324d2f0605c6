//! Who else is there: joining, meeting nodes that we hear of, noticing that one is dead, and
//! looking for the ones that we do not know. Never takes a node at another's word: it is in the
//! routing table when it has answered us.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use holdfast_handoff::Answer;
use rand::RngExt;

use super::{Action, Node};
use crate::config::{Config, us};
use crate::id::Id;
use crate::message::{NODES_MAX, Sender};
use crate::request::Purpose;
use crate::routing_table::{Contact, Inserted, Missed};
use crate::rtt::Rtt;
use crate::stats::Counter;

/// Unknown addresses that wait to be looked into, and those asked at the same time.
const MEETINGS_MAX: usize = 4096;
const MEETINGS_AT_ONCE: usize = 64;
/// Contacts looked at in one turn of housekeeping, and those of them that are pinged.
const CHECKS_WALK: usize = 1024;
const CHECKS_PER_TURN: usize = 64;
/// Pause between pings of a contact that does not answer, in µs: often enough that the loss of some
/// does not kill it.
const SUSPECT_PING_US: u64 = 100_000;
/// First and longest pause between attempts to join, in µs.
const JOIN_US_MIN: u64 = 200_000;
const JOIN_US_MAX: u64 = 5_000_000;
/// How long a bootstrap node that nobody answers waits before it stands alone, in µs.
const ALONE_US: u64 = 2_000_000;
/// Dead peers remembered, for how long and how often at least they are looked for, in µs.
const DEAD_MAX: usize = 1024;
const DEAD_US_MAX: u64 = 3_600_000_000;
const DEAD_PING_US_MIN: u64 = 2_000_000;
const DEAD_PING_US_MAX: u64 = 60_000_000;
/// Pause after the first refresh, in µs.
const REFRESH_US_MIN: u64 = 1_000_000;
/// Searches at the same time.
const SEARCHES_AT_ONCE: usize = 2;
/// Searches over the id space in one refresh, at most.
const SEARCHES_MAX: usize = 256;

/// A peer that died, and may come back.
#[derive(Debug, Clone)]
struct Dead {
    address: SocketAddr,
    died_at_us: u64,
    ping_at_us: u64,
}

/// What is known of the others beyond the routing table.
#[derive(Debug, Clone)]
pub(super) struct Membership {
    joined: bool,
    /// When to count as joined although nobody answered.
    alone_at_us: Option<u64>,
    join_at_us: u64,
    join_pause_us: u64,
    /// Waiting to be looked into, and these with the ones being looked into.
    meetings: VecDeque<SocketAddr>,
    meeting: BTreeSet<SocketAddr>,
    dead: BTreeMap<IpAddr, Dead>,
    /// Ids to search for, and how many searches are under way.
    targets: VecDeque<Id>,
    searches: usize,
    refresh_at_us: u64,
    /// Pause after the next refresh: grows to the configured one, as meeting someone may fail.
    refresh_pause_us: u64,
    /// Contacts known when the last refresh began.
    refreshed_len: usize,
    check_cursor: usize,
}

/// A node in the routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: Id,
    /// Its locator.
    pub locator: IpAddr,
    /// Its control socket.
    pub address: SocketAddr,
    /// When it started, in microseconds since the Unix epoch, as it says.
    pub incarnation: u64,
    /// Smoothed round-trip time to it, in µs, once measured.
    pub srtt_us: Option<u64>,
    /// How long ago it last answered, in µs.
    pub heard_ago_us: u64,
    /// Requests in a row that it missed; a suspect missed one.
    pub failures: u8,
}

impl Membership {
    pub(super) fn new(config: &Config) -> Membership {
        let named = config.bootstrap.contains(&config.listen);
        Membership {
            joined: config.bootstrap.is_empty(),
            alone_at_us: named.then_some(ALONE_US),
            join_at_us: 0,
            join_pause_us: JOIN_US_MIN,
            meetings: VecDeque::new(),
            meeting: BTreeSet::new(),
            dead: BTreeMap::new(),
            targets: VecDeque::new(),
            searches: 0,
            refresh_at_us: 0,
            refresh_pause_us: REFRESH_US_MIN,
            refreshed_len: 0,
            check_cursor: 0,
        }
    }

    pub(super) fn is_joined(&self) -> bool {
        self.joined
    }

    /// Whether the server with this locator died and has not come back (R13).
    pub(super) fn is_dead(&self, locator: IpAddr) -> bool {
        self.dead.contains_key(&locator)
    }
}

impl Node {
    /// All nodes in the routing table, in the order of their ids.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        let peer = |contact: &Contact| Peer {
            id: contact.id,
            locator: contact.address.ip(),
            address: contact.address,
            incarnation: contact.incarnation,
            srtt_us: contact.rtt.smoothed_us(),
            heard_ago_us: self.now_us.saturating_sub(contact.heard_at_us),
            failures: contact.failures,
        };
        self.table.contacts().iter().map(peer).collect()
    }

    /// Whether there can be another node at this address.
    pub(super) fn is_possible_peer(&self, address: SocketAddr) -> bool {
        address.ip() != self.own.locator
            && address.is_ipv4() == self.own.locator.is_ipv4()
            && address.port() != 0
            && self.config.is_member(address.ip())
    }

    /// A node has answered us.
    pub(super) fn heard(&mut self, sender: Sender, address: SocketAddr, rtt_us: u64) {
        let ping_at_us = self.now_us + self.jittered(us(self.config.ping_interval));
        if !self.table.heard(self.now_us, sender.id, Some(rtt_us), ping_at_us) {
            return self.found_peer(sender, address, rtt_us, ping_at_us);
        }
        let contact = self.table.get(sender.id);
        let same = |c: &Contact| c.incarnation == sender.incarnation && c.address == address;
        if !contact.is_some_and(same) {
            self.restarted(sender, address);
        }
    }

    fn found_peer(&mut self, sender: Sender, address: SocketAddr, rtt_us: u64, ping_at_us: u64) {
        let Some(slot) = self.slots.begin(address) else {
            return self.count(Counter::PeersRefused);
        };
        let mut rtt = Rtt::default();
        rtt.measured(rtt_us);
        let inserted = self.table.insert(Contact {
            id: sender.id,
            address,
            incarnation: sender.incarnation,
            slot,
            rtt,
            heard_at_us: self.now_us,
            failures: 0,
            missed_at_us: 0,
            ping_at_us,
        });
        self.membership.dead.remove(&address.ip());
        match inserted {
            Inserted::Yes => self.added(address),
            Inserted::BucketFull { oldest } => self.bucket_full(oldest),
            Inserted::No => {}
        }
    }

    /// Pings the least recently heard node of a full bucket, if that was not just now: it loses
    /// its place only when it does not answer.
    fn bucket_full(&mut self, oldest: Id) {
        self.count(Counter::BucketsFull);
        let recent_us = us(self.config.ping_interval) / 4;
        if let Some(contact) = self.table.get_mut(oldest)
            && contact.heard_at_us + recent_us <= self.now_us
        {
            contact.ping_at_us = contact.ping_at_us.min(self.now_us);
        }
    }

    fn added(&mut self, address: SocketAddr) {
        self.count(Counter::PeersAdded);
        tracing::info!(peer = %address, peers = self.table.len(), "peer found");
        self.table_changed();
        if !self.membership.joined {
            self.search_own();
        }
    }

    /// A contact is a new incarnation: it holds nothing of what it held.
    fn restarted(&mut self, sender: Sender, address: SocketAddr) {
        let Some(slot) = self.slots.begin(address) else {
            return self.count(Counter::PeersRefused);
        };
        if let Some(contact) = self.table.get_mut(sender.id) {
            contact.incarnation = sender.incarnation;
            contact.address = address;
            contact.slot = slot;
        }
        self.count(Counter::PeersRestarted);
        tracing::info!(peer = %address, "peer restarted");
        self.table_changed();
    }

    /// A node has asked us something. That proves nothing, but is worth a ping if it is new.
    pub(super) fn seen(&mut self, sender: Sender, address: SocketAddr) {
        let contact = self.table.get_mut(sender.id);
        match contact {
            Some(contact) if contact.address != address => self.meet(address),
            Some(contact) if contact.incarnation != sender.incarnation => {
                contact.ping_at_us = self.now_us;
            }
            Some(_) => {}
            None => self.heard_of(sender.id, address),
        }
    }

    /// Looks into an address of a node that we do not know, if there is a place for it.
    pub(super) fn heard_of(&mut self, id: Id, address: SocketAddr) {
        if self.table.wants(id) {
            self.meet(address);
        }
    }

    /// Looks into an address.
    fn meet(&mut self, address: SocketAddr) {
        if !self.is_possible_peer(address) || self.membership.meeting.contains(&address) {
            return;
        }
        if self.membership.meeting.len() >= MEETINGS_MAX {
            return self.count(Counter::ContactsIgnored);
        }
        self.membership.meeting.insert(address);
        self.membership.meetings.push_back(address);
        self.meet_next();
    }

    fn meet_next(&mut self) {
        loop {
            let membership = &mut self.membership;
            let waiting = membership.meetings.len();
            if membership.meeting.len() - waiting >= MEETINGS_AT_ONCE {
                return;
            }
            let Some(address) = membership.meetings.pop_front() else {
                return;
            };
            if !self.request(address, Purpose::Meet) {
                self.membership.meeting.remove(&address);
            }
        }
    }

    /// An address was looked into, with or without an answer.
    pub(super) fn met(&mut self, address: SocketAddr) {
        self.membership.meeting.remove(&address);
        self.meet_next();
    }

    /// A request to a peer was not answered in time.
    pub(super) fn missed(&mut self, peer: Id, sent_at_us: u64) {
        match self.table.missed(self.now_us, peer, sent_at_us) {
            Missed::Nothing => return,
            Missed::Suspect => self.count(Counter::PeersSuspected),
            Missed::StillSuspect => {}
            Missed::Dead => return self.lost(peer),
        }
        let ping_at_us = self.now_us + SUSPECT_PING_US;
        if let Some(contact) = self.table.get_mut(peer) {
            contact.ping_at_us = contact.ping_at_us.min(ping_at_us);
        }
    }

    fn lost(&mut self, peer: Id) {
        let Some((contact, successor)) = self.table.remove(peer) else {
            return;
        };
        self.count(Counter::PeersDead);
        tracing::warn!(peer = %contact.address, peers = self.table.len(), "peer lost");
        self.remember_dead(contact.address);
        let answer = Answer::OwnerDead { owner: contact.address.ip() };
        self.actions.push(Action::Answer { ring: 0, answer });
        if let Some(contact) = successor.and_then(|id| self.table.get_mut(id)) {
            contact.ping_at_us = self.now_us;
        }
        self.table_changed();
        let stands_alone =
            self.config.bootstrap.is_empty() || self.membership.alone_at_us.is_some();
        if self.table.is_empty() && !stands_alone {
            tracing::warn!("no peer is left: joining again");
            self.membership.joined = false;
            self.membership.join_at_us = self.now_us;
            self.membership.join_pause_us = JOIN_US_MIN;
        }
    }

    fn remember_dead(&mut self, address: SocketAddr) {
        let dead = &mut self.membership.dead;
        if dead.len() == DEAD_MAX {
            let oldest = dead.iter().min_by_key(|(_, d)| d.died_at_us).map(|(ip, _)| *ip);
            oldest.and_then(|ip| dead.remove(&ip));
        }
        let died_at_us = self.now_us;
        let ping_at_us = died_at_us + DEAD_PING_US_MIN;
        dead.insert(address.ip(), Dead { address, died_at_us, ping_at_us });
    }

    /// Housekeeping: checks contacts, joins, looks for the dead and the unknown.
    pub(super) fn keep_members(&mut self) {
        self.check_contacts();
        if self.now_us >= self.membership.join_at_us {
            self.join();
        }
        self.look_for_dead();
        self.refresh();
    }

    fn check_contacts(&mut self) {
        let mut pings = 0;
        for _ in 0..self.table.len().min(CHECKS_WALK) {
            self.membership.check_cursor = (self.membership.check_cursor + 1) % self.table.len();
            let next_us = self.now_us + us(self.config.ping_interval).min(SUSPECT_PING_US);
            let contact = self.table.get_at(self.membership.check_cursor);
            let Some(contact) = contact.filter(|c| c.ping_at_us <= self.now_us) else {
                continue;
            };
            // Put off by the answer, or by a miss.
            contact.ping_at_us = next_us;
            let address = contact.address;
            self.request(address, Purpose::Check);
            pings += 1;
            if pings == CHECKS_PER_TURN {
                return;
            }
        }
    }

    /// Pings the bootstrap nodes that we do not know: to join, or to join two halves of a
    /// cluster that do not know each other.
    fn join(&mut self) {
        for place in 0..self.config.bootstrap.len() {
            let address = self.config.bootstrap[place];
            if self.table.get(self.hasher.node(address.ip())).is_none() {
                self.meet(address);
            }
        }
        let membership = &mut self.membership;
        if membership.alone_at_us.is_some_and(|at_us| at_us <= self.now_us)
            && self.table.is_empty()
            && !membership.joined
        {
            tracing::info!("no other bootstrap node answers: standing alone");
            membership.joined = true;
        }
        membership.join_pause_us = match membership.joined {
            true => JOIN_US_MAX,
            false => (2 * membership.join_pause_us).min(JOIN_US_MAX),
        };
        let pause_us = membership.join_pause_us;
        self.membership.join_at_us = self.now_us + self.jittered(pause_us);
        if !self.membership.joined && !self.table.is_empty() {
            self.search_own();
        }
    }

    fn look_for_dead(&mut self) {
        let now_us = self.now_us;
        self.membership.dead.retain(|_, dead| now_us < dead.died_at_us + DEAD_US_MAX);
        let mut due = Vec::new();
        for dead in self.membership.dead.values_mut() {
            if dead.ping_at_us <= now_us {
                let age_us = now_us - dead.died_at_us;
                let pause_us = (age_us / 4).clamp(DEAD_PING_US_MIN, DEAD_PING_US_MAX);
                dead.ping_at_us = now_us + pause_us;
                due.push(dead.address);
            }
        }
        for address in due {
            self.meet(address);
        }
    }

    fn search_own(&mut self) {
        if self.membership.searches == 0 {
            self.membership.targets.push_front(self.own.id);
            self.search_next();
        }
    }

    fn search_next(&mut self) {
        while self.membership.searches < SEARCHES_AT_ONCE {
            let Some(target) = self.membership.targets.pop_front() else {
                return;
            };
            self.membership.searches += 1;
            if !self.search(target) {
                self.membership.searches -= 1;
                return;
            }
        }
    }

    /// A search has ended: the nodes that it was told of are being met.
    pub(super) fn search_ended(&mut self, target: Id) {
        self.membership.searches -= 1;
        let first = target == self.own.id && !self.membership.joined && !self.table.is_empty();
        if first {
            self.membership.joined = true;
            self.membership.refresh_at_us = self.now_us;
            self.membership.refresh_pause_us = REFRESH_US_MIN;
            tracing::info!(peers = self.table.len(), "joined");
        }
    }

    /// Searches the id space for unknown nodes: around ourselves, at each level of the table
    /// (section 2.3 of the paper), and evenly all over, more densely the more nodes there are.
    fn refresh(&mut self) {
        self.search_next();
        let membership = &self.membership;
        let idle = membership.targets.is_empty() && membership.searches == 0;
        // Many more nodes than before: there may be yet more.
        let grown = self.table.len() > 2 * membership.refreshed_len.max(NODES_MAX / 4);
        let due = self.now_us >= membership.refresh_at_us || grown;
        if !membership.joined || !idle || !due || self.table.is_empty() {
            return;
        }
        let pause_us = self.membership.refresh_pause_us;
        let pause_us = pause_us.min(us(self.config.refresh_interval));
        self.membership.refresh_pause_us = 2 * pause_us;
        self.membership.refresh_at_us = self.now_us + self.jittered(pause_us);
        self.membership.refreshed_len = self.table.len();
        self.membership.targets.push_back(self.own.id);
        for level in 0..self.table.levels() {
            let random = self.rng.random();
            let target = self.table.id_at_level(level, random);
            self.membership.targets.push_back(target);
        }
        let parts = (4 * self.table.len() / NODES_MAX).clamp(1, SEARCHES_MAX) as u128;
        for part in 0..parts {
            let within: u128 = self.rng.random_range(0..u128::MAX / parts);
            let target = Id(u128::MAX / parts * part + within);
            self.membership.targets.push_back(target);
        }
    }
}
