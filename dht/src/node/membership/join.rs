//! Finding the other nodes: by the bootstrap nodes, by being told of them, by searching the id
//! space, and by looking for those that were lost. Never keeps more addresses in mind than its
//! limits say.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

use rand::RngExt;

use crate::config::{Config, us};
use crate::id::Id;
use crate::message::NODES_MAX;
use crate::node::Node;
use crate::node::membership::Membership;
use crate::request::Purpose;
use crate::stats::Counter;

/// Unknown addresses that wait to be looked into, and those asked at the same time.
pub(super) const MEETINGS_MAX: usize = 4096;
const MEETINGS_AT_ONCE: usize = 64;
/// First and longest pause between attempts to join, in µs.
const JOIN_US_MIN: u64 = 200_000;
const JOIN_US_MAX: u64 = 5_000_000;
/// How long a bootstrap node that nobody answers waits before it stands alone, in µs.
const ALONE_US: u64 = 2_000_000;
/// Pause between look-outs for an absent peer, in µs: at least this, and more the more peers
/// look out for it too, so that it hears some hundred a second at most.
const LOOK_OUT_US_MIN: u64 = 250_000;
const LOOK_OUT_US_PER_PEER: u64 = 5_000;
/// And at most.
const LOOK_OUT_US_MAX: u64 = 60_000_000;
/// Pause after the first refresh, in µs.
const REFRESH_US_MIN: u64 = 1_000_000;
/// Searches at the same time.
const SEARCHES_AT_ONCE: usize = 2;
/// Searches over the id space in one refresh, at most.
const SEARCHES_MAX: usize = 256;
/// The least recently heard node of a full bucket is pinged when that was longer ago than this,
/// in µs.
const OLD_US: u64 = 250_000;

/// What is under way to find nodes.
#[derive(Debug, Clone)]
pub(super) struct Join {
    pub(super) joined: bool,
    /// When to count as joined although nobody answered.
    alone_at_us: Option<u64>,
    at_us: u64,
    pause_us: u64,
    /// Waiting to be looked into, and these with the ones being looked into.
    meetings: VecDeque<SocketAddr>,
    meeting: BTreeSet<SocketAddr>,
    /// Ids to search for, and how many searches are under way.
    targets: VecDeque<Id>,
    searches: usize,
    refresh_at_us: u64,
    /// Pause after the next refresh: grows to the configured one, as meeting someone may fail.
    refresh_pause_us: u64,
    /// Contacts known when the last refresh began.
    refreshed_len: usize,
}

impl Join {
    /// Addresses that wait to be looked into, or are being looked into.
    pub(super) fn meetings(&self) -> usize {
        self.meeting.len()
    }

    pub(super) fn new(config: &Config) -> Join {
        Join {
            joined: config.bootstrap.is_empty(),
            alone_at_us: alone_at_us(config, 0),
            at_us: 0,
            pause_us: JOIN_US_MIN,
            meetings: VecDeque::new(),
            meeting: BTreeSet::new(),
            targets: VecDeque::new(),
            searches: 0,
            refresh_at_us: 0,
            refresh_pause_us: REFRESH_US_MIN,
            refreshed_len: 0,
        }
    }
}

/// One that is among the bootstrap nodes may stand alone some time after it began to ask them.
fn alone_at_us(config: &Config, now_us: u64) -> Option<u64> {
    config.bootstrap.contains(&config.listen).then_some(now_us + ALONE_US)
}

impl Membership {
    /// There are other bootstrap nodes. Who has joined stays so; who has not asks them.
    pub(in crate::node) fn set_bootstrap(&mut self, config: &Config, now_us: u64) {
        self.join.alone_at_us = alone_at_us(config, now_us);
        self.join.joined |= config.bootstrap.is_empty();
        self.join.at_us = now_us;
    }
}

/// Pause between look-outs for a peer that has been absent for `age_us`.
pub(super) fn look_out_pause_us(pause_us_min: u64, age_us: u64) -> u64 {
    (age_us / 4).clamp(pause_us_min, LOOK_OUT_US_MAX)
}

impl Node {
    pub(super) fn look_out_pause_us(&self, age_us: u64) -> u64 {
        let pause_us_min = LOOK_OUT_US_MIN + LOOK_OUT_US_PER_PEER * self.table.len() as u64;
        look_out_pause_us(pause_us_min, age_us)
    }

    /// Pings the least recently heard node of a full bucket, if that was not just now: it loses
    /// its place only when it does not answer.
    pub(super) fn bucket_full(&mut self, oldest: Id) {
        self.count(Counter::BucketsFull);
        let old = self.table.get(oldest).is_some_and(|c| c.heard_at_us + OLD_US <= self.now_us);
        if old {
            self.check(oldest);
        }
    }

    /// Looks into an address of a node that we do not know, if there is a place for it.
    pub(in crate::node) fn heard_of(&mut self, id: Id, address: SocketAddr) {
        if self.table.wants(id) {
            self.meet(address);
        }
    }

    /// Looks into an address.
    pub(super) fn meet(&mut self, address: SocketAddr) {
        if !self.is_possible_peer(address) || self.membership.join.meeting.contains(&address) {
            return;
        }
        let join = &mut self.membership.join;
        if join.meeting.len() >= MEETINGS_MAX {
            return self.count(Counter::ContactsIgnored);
        }
        join.meeting.insert(address);
        join.meetings.push_back(address);
        self.meet_next();
    }

    fn meet_next(&mut self) {
        loop {
            let join = &mut self.membership.join;
            let waiting = join.meetings.len();
            if join.meeting.len() - waiting >= MEETINGS_AT_ONCE {
                return;
            }
            let Some(address) = join.meetings.pop_front() else {
                return;
            };
            if !self.request(address, Purpose::Meet) {
                self.membership.join.meeting.remove(&address);
            }
        }
    }

    /// An address was looked into, with or without an answer.
    pub(in crate::node) fn met(&mut self, address: SocketAddr) {
        self.membership.join.meeting.remove(&address);
        self.meet_next();
    }

    pub(super) fn keep_joining(&mut self) {
        if self.now_us >= self.membership.join.at_us {
            self.join();
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
        let join = &mut self.membership.join;
        if join.alone_at_us.is_some_and(|at_us| at_us <= self.now_us)
            && self.table.is_empty()
            && !join.joined
        {
            tracing::info!("no other bootstrap node answers: standing alone");
            join.joined = true;
        }
        join.pause_us = match join.joined {
            true => JOIN_US_MAX,
            false => (2 * join.pause_us).min(JOIN_US_MAX),
        };
        let pause_us = join.pause_us;
        self.membership.join.at_us = self.now_us + self.jittered(pause_us);
        if !self.membership.join.joined && !self.table.is_empty() {
            self.search_own();
        }
    }

    /// A node that has lost all others cannot speak for the cluster any more, unless it may
    /// stand alone.
    pub(super) fn join_again_if_alone(&mut self) {
        let join = &mut self.membership.join;
        let stands_alone = self.config.bootstrap.is_empty() || join.alone_at_us.is_some();
        if self.table.is_empty() && !stands_alone {
            tracing::warn!("no peer is left: joining again");
            join.joined = false;
            join.at_us = self.now_us;
            join.pause_us = JOIN_US_MIN;
        }
    }

    pub(super) fn search_own(&mut self) {
        if self.membership.join.searches == 0 {
            self.membership.join.targets.push_front(self.own.id);
            self.search_next();
        }
    }

    fn search_next(&mut self) {
        while self.membership.join.searches < SEARCHES_AT_ONCE {
            let Some(target) = self.membership.join.targets.pop_front() else {
                return;
            };
            self.membership.join.searches += 1;
            if !self.search(target) {
                self.membership.join.searches -= 1;
                return;
            }
        }
    }

    /// A search has ended: the nodes that it was told of are being met.
    pub(in crate::node) fn search_ended(&mut self, target: Id) {
        let join = &mut self.membership.join;
        join.searches -= 1;
        let first = target == self.own.id && !join.joined && !self.table.is_empty();
        if first {
            join.joined = true;
            join.refresh_at_us = self.now_us;
            join.refresh_pause_us = REFRESH_US_MIN;
            tracing::info!(peers = self.table.len(), "joined");
        }
    }

    /// Searches the id space for unknown nodes: around ourselves, at each level of the table
    /// (section 2.3 of the paper), and evenly all over, more densely the more nodes there are.
    pub(super) fn refresh(&mut self) {
        self.search_next();
        let join = &self.membership.join;
        let idle = join.targets.is_empty() && join.searches == 0;
        // Many more nodes than before: there may be yet more.
        let grown = self.table.len() > 2 * join.refreshed_len.max(NODES_MAX / 4);
        let due = self.now_us >= join.refresh_at_us || grown;
        if !join.joined || !idle || !due || self.table.is_empty() {
            return;
        }
        let pause_us = join.refresh_pause_us.min(us(self.config.refresh_interval));
        let refresh_at_us = self.now_us + self.jittered(pause_us);
        let join = &mut self.membership.join;
        join.refresh_pause_us = 2 * pause_us;
        join.refresh_at_us = refresh_at_us;
        join.refreshed_len = self.table.len();
        join.targets.push_back(self.own.id);
        for level in 0..self.table.levels() {
            let random = self.rng.random();
            join.targets.push_back(self.table.id_at_level(level, random));
        }
        let parts = (4 * self.table.len() / NODES_MAX).clamp(1, SEARCHES_MAX) as u128;
        for part in 0..parts {
            let within: u128 = self.rng.random_range(0..u128::MAX / parts);
            join.targets.push_back(Id(u128::MAX / parts * part + within));
        }
    }
}
