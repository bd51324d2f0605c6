//! Who else is there: taking in nodes, noticing that one has restarted, left or died, and what to
//! remember of those. Never takes a node at another's word: it is in the routing table when it
//! has answered us, and dead when it no longer answers us.
//!
//! `join` finds nodes, `probe` finds out which of them do not answer, `spread` tells all of it.

mod join;
mod probe;
mod spread;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use holdfast_handoff::Answer;
use rand::RngExt;

use super::{Action, Node};
use crate::config::{Config, us};
use crate::id::Id;
use crate::message::Sender;
use crate::routing_table::{Contact, Heard, Inserted};
use crate::stats::Counter;

pub(super) use probe::ping_timeout_us;

use join::{Join, MEETINGS_MAX};
use probe::{Probes, RELAYS_MAX};
use spread::{BROADCASTS_MAX, Broadcasts};

/// Peers that died or left remembered, and for how long the dead ones, in µs.
const ABSENT_MAX: usize = 8192;
const ABSENT_US_MAX: u64 = 3_600_000_000;
/// After this much silence, in µs, a peer may come back with an older incarnation: its clock was
/// set back ([`crate::auth`] says the same).
const OLDER_US: u64 = 60_000_000;
/// A node asks for ticks much more often than this, in µs: when none came, it did not run.
const STALL_US: u64 = 200_000;
/// How long after a change of servers a replica's not having a record says nothing: its owner
/// stores it there within a moment drawn by chance and the time that many records take.
const SETTLING_US: u64 = 1_000_000;
/// Changes that follow one another count for this long at most: a server that begins anew again
/// and again does not keep the others from ever saying that nobody owns a flow.
const SETTLING_US_MAX: u64 = 30_000_000;
/// A suspect that has been silent for so long, in µs, has not just lost a message or two.
const CUT_OFF_US: u64 = 500_000;

/// Why a peer is not in the routing table any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absence {
    /// It said that it stops. Its kernel may still have its sessions: they are nobody's only
    /// when it does not come back within the lease.
    Away,
    /// It does not answer. Nobody tunnels to it, but it may be a daemon that is started again:
    /// its sessions are its own for as long as a restart may take.
    Dead,
    /// It did not come back in time: its sessions are nobody's (R13).
    GivenUp,
}

/// A peer that was in the routing table, and may come back.
#[derive(Debug, Clone)]
struct Absent {
    absence: Absence,
    address: SocketAddr,
    incarnation: u64,
    since_us: u64,
    /// Its last sign of life.
    alive_at_us: u64,
    ping_at_us: u64,
}

/// What is known of the others beyond the routing table.
#[derive(Debug, Clone)]
pub(super) struct Membership {
    join: Join,
    probes: Probes,
    broadcasts: Broadcasts,
    absent: BTreeMap<IpAddr, Absent>,
    /// Life of the last node that entered the routing table.
    last_life: u32,
    /// When this node last began to run again after a stall.
    woke_at_us: u64,
    /// When the servers are the same for long enough, and when that is not waited for any more.
    settled_at_us: u64,
    settled_at_us_max: u64,
    leaving: bool,
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
    /// Requests in a row that it missed.
    pub failures: u8,
    /// Whether it is suspect: it missed a request, or others say so.
    pub suspect: bool,
    /// Which of its lives this is, see [`Node::life_of`].
    pub life: u32,
}

/// A node that was in the routing table, and is looked out for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbsentPeer {
    /// Its id.
    pub id: Id,
    /// Its locator.
    pub locator: IpAddr,
    /// The control socket that it had.
    pub address: SocketAddr,
    /// When its last known incarnation started, as [`Peer::incarnation`].
    pub incarnation: u64,
    /// Whether it is away: it said that it stops, and its lease has not ended, so its sessions are
    /// still its own. Else it is dead.
    pub away: bool,
    /// How long ago it left the routing table, in µs.
    pub absent_us: u64,
    /// How long ago its last sign of life was, in µs: of one that died, before it left the routing
    /// table.
    pub silent_us: u64,
}

impl Membership {
    pub(super) fn new(config: &Config) -> Membership {
        Membership {
            join: Join::new(config),
            probes: Probes::default(),
            broadcasts: Broadcasts::default(),
            absent: BTreeMap::new(),
            last_life: 0,
            woke_at_us: 0,
            settled_at_us: 0,
            settled_at_us_max: 0,
            leaving: false,
        }
    }

    pub(super) fn is_joined(&self) -> bool {
        self.join.joined
    }

    /// Servers have come, gone or begun anew.
    pub(super) fn changed(&mut self, now_us: u64) {
        if now_us >= self.settled_at_us {
            self.settled_at_us_max = now_us + SETTLING_US_MAX;
        }
        self.settled_at_us = now_us + SETTLING_US;
    }

    /// Whether replicas may lack records that their owners are storing there just now, for the
    /// servers are others than a moment ago.
    pub(super) fn is_unsettled(&self, now_us: u64) -> bool {
        now_us < self.settled_at_us.min(self.settled_at_us_max)
    }

    fn absence(&self, locator: IpAddr) -> Option<Absence> {
        self.absent.get(&locator).map(|absent| absent.absence)
    }

    /// Whether the server with this locator died, or left and its lease has ended, and has not
    /// come back.
    pub(super) fn is_dead(&self, locator: IpAddr) -> bool {
        matches!(self.absence(locator), Some(Absence::Dead | Absence::GivenUp))
    }

    /// Whether the server with this locator is dead, and a restart of its daemon would take no
    /// longer: who owns its sessions cannot be said now.
    pub(super) fn is_awaited(&self, locator: IpAddr) -> bool {
        self.absence(locator) == Some(Absence::Dead)
    }

    /// Whether the server with this locator has not come back in time: its sessions are nobody's
    /// (R13).
    pub(super) fn is_given_up(&self, locator: IpAddr) -> bool {
        self.absence(locator) == Some(Absence::GivenUp)
    }

    /// How long the server with this locator has been dead or away, in µs; `None` when it is not.
    pub(super) fn absent_for_us(&self, now_us: u64, locator: IpAddr) -> Option<u64> {
        let absent = self.absent.get(&locator)?;
        Some(now_us.saturating_sub(absent.since_us))
    }

    /// How many of the absent are away, and how many dead.
    pub(super) fn absent(&self) -> (usize, usize) {
        let away = self.absent.values().filter(|a| a.absence == Absence::Away).count();
        (away, self.absent.len() - away)
    }

    /// What is bounded here: its name, how many there can be and are, and what is counted then.
    pub(super) fn limits(&self) -> [(&'static str, usize, usize, &'static [Counter]); 4] {
        [
            ("absent_peers", ABSENT_MAX, self.absent.len(), &[]),
            ("meetings", MEETINGS_MAX, self.join.meetings(), &[Counter::ContactsIgnored]),
            ("broadcasts", BROADCASTS_MAX, self.broadcasts.len(), &[Counter::BroadcastsRefused]),
            ("relays", RELAYS_MAX, self.probes.relays(), &[Counter::PingReqsIgnored]),
        ]
    }

    /// Whether this node has been told to leave.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// When there is next something to do, in µs.
    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        let probe = (!self.leaving).then(|| self.probes.next_at_us());
        [probe, self.broadcasts.next_at_us()].into_iter().flatten().min()
    }

    fn next_life(&mut self) -> u32 {
        self.last_life = self.last_life.checked_add(1).unwrap_or(1);
        self.last_life
    }
}

impl Node {
    /// All nodes in the routing table, in the order of their ids.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        let contacts = self.table.contacts().iter();
        let mut peers: Vec<Peer> = contacts.map(|contact| self.describe(contact)).collect();
        peers.sort_unstable_by_key(|peer| peer.id);
        peers
    }

    /// The node with this locator in the routing table.
    #[must_use]
    pub fn peer(&self, locator: IpAddr) -> Option<Peer> {
        let contact = self.table.get(self.hasher.node(locator))?;
        Some(self.describe(contact))
    }

    pub(in crate::node) fn describe(&self, contact: &Contact) -> Peer {
        Peer {
            id: contact.id,
            locator: contact.address.ip(),
            address: contact.address,
            incarnation: contact.incarnation,
            srtt_us: contact.rtt.smoothed_us(),
            heard_ago_us: self.now_us.saturating_sub(contact.heard_at_us),
            failures: contact.failures,
            suspect: contact.is_suspect(),
            life: contact.life,
        }
    }

    /// The nodes that are looked out for, by their locators: at most some thousand, the dead ones
    /// of the last hour.
    #[must_use]
    pub fn absent_peers(&self) -> Vec<AbsentPeer> {
        let peer = |(locator, absent): (&IpAddr, &Absent)| AbsentPeer {
            id: self.hasher.node(*locator),
            locator: *locator,
            address: absent.address,
            incarnation: absent.incarnation,
            away: absent.absence == Absence::Away,
            absent_us: self.now_us.saturating_sub(absent.since_us),
            silent_us: self.now_us.saturating_sub(absent.alive_at_us),
        };
        self.membership.absent.iter().map(peer).collect()
    }

    /// Which life of the peer with this address is in the routing table: another number each
    /// time that it enters, 0 when it is not there. Who is told another one than before knows
    /// that we had given it up in between.
    #[must_use]
    pub fn life_of(&self, address: SocketAddr) -> u32 {
        let contact = self.table.get(self.hasher.node(address.ip()));
        contact.filter(|c| c.address == address).map_or(0, |c| c.life)
    }

    /// Whether the server with this locator said that it stops, and its lease has not ended: its
    /// sessions are still its own, but there is nobody to ask.
    #[must_use]
    pub fn is_away(&self, locator: IpAddr) -> bool {
        self.membership.absence(locator) == Some(Absence::Away)
    }

    /// Whether there can be another node at this address.
    pub(super) fn is_possible_peer(&self, address: SocketAddr) -> bool {
        address.ip() != self.own.locator
            && address.is_ipv4() == self.own.locator.is_ipv4()
            && address.port() != 0
            && self.config.is_member(address.ip())
    }

    /// Time has gone on to `now_us`. When it jumped, this node did not run: its peers did not
    /// miss what it did not hear.
    pub(super) fn woken(&mut self, now_us: u64) {
        let asleep_us = now_us.saturating_sub(self.now_us);
        if asleep_us < STALL_US {
            return;
        }
        // Nor could it hear who came back.
        for absent in self.membership.absent.values_mut() {
            absent.alive_at_us += asleep_us;
        }
        if self.table.is_empty() {
            return;
        }
        self.count(Counter::Stalls);
        self.membership.woke_at_us = now_us;
        for &suspect in &self.membership.probes.suspects {
            if let Some(contact) = self.table.get_mut(suspect) {
                contact.suspected_at_us = contact.silent_since_us() + asleep_us;
            }
        }
    }

    /// Whether a datagram is of a life of its sender that is over: of an older incarnation, or
    /// of one that has left. Counts it then.
    pub(super) fn is_of_the_past(&mut self, sender: &Sender) -> bool {
        let (incarnation, alive_at_us, left) = match self.table.get(sender.id) {
            Some(contact) => (contact.incarnation, contact.alive_at_us, false),
            None => match self.membership.absent.get(&sender.locator) {
                Some(Absent { incarnation, since_us, absence, .. }) => {
                    (*incarnation, *since_us, *absence == Absence::Away)
                }
                None => return false,
            },
        };
        let older = sender.incarnation < incarnation;
        if older && self.now_us < alive_at_us + OLDER_US {
            self.count(Counter::OlderIncarnation);
            return true;
        }
        if left && sender.incarnation == incarnation {
            self.count(Counter::AfterLeave);
            return true;
        }
        false
    }

    /// A node has sent us something. For one that is unknown, that is worth a ping; for the
    /// others it is a sign of life.
    pub(super) fn seen(&mut self, sender: Sender, address: SocketAddr) {
        match self.table.get(sender.id) {
            Some(contact) if contact.address != address => self.meet(address),
            Some(contact) if contact.incarnation != sender.incarnation => {
                self.restarted(sender, address);
            }
            Some(_) => {
                if self.table.seen(self.now_us, sender.id) == Heard::Cleared {
                    self.cleared(sender.id);
                }
            }
            None => self.heard_of(sender.id, address),
        }
    }

    /// A node has answered us; the round-trip time is unknown when the answer had to wait for
    /// another node.
    pub(super) fn heard(&mut self, sender: Sender, address: SocketAddr, rtt_us: Option<u64>) {
        self.relay_pong(&sender);
        match self.table.heard(self.now_us, sender.id, rtt_us) {
            Heard::Unknown => return self.found_peer(sender, address, rtt_us),
            Heard::Cleared => self.cleared(sender.id),
            Heard::Trusted => {}
        }
        let contact = self.table.get(sender.id);
        let same = |c: &Contact| c.incarnation == sender.incarnation && c.address == address;
        if !contact.is_some_and(same) {
            self.restarted(sender, address);
        }
    }

    fn found_peer(&mut self, sender: Sender, address: SocketAddr, rtt_us: Option<u64>) {
        // One that has to wait for a place is in the life that it was in.
        let slot = match self.table.has_room(sender.id) {
            true => self.slots.begin(address),
            false => self.slots.of(address),
        };
        let Some(slot) = slot else {
            return self.count(Counter::PeersRefused);
        };
        let (now_us, life) = (self.now_us, self.membership.next_life());
        let Sender { id, incarnation, .. } = sender;
        let mut contact = Contact::new(now_us, id, address, incarnation, slot, life);
        if let Some(rtt_us) = rtt_us {
            contact.rtt.measured(rtt_us);
        }
        let inserted = self.table.insert(contact);
        if let Some(absent) = self.membership.absent.remove(&address.ip())
            && absent.incarnation != sender.incarnation
        {
            self.count(Counter::PeersRestarted);
        }
        if let Some(link) = self.links.of(address) {
            self.links.incarnate(link, sender.incarnation);
        }
        match inserted {
            Inserted::Yes => self.added(sender, address),
            Inserted::BucketFull { oldest } => self.bucket_full(oldest),
            Inserted::No => {}
        }
    }

    fn added(&mut self, sender: Sender, address: SocketAddr) {
        self.count(Counter::PeersAdded);
        self.store.begin_lease(self.now_us, sender.locator, sender.incarnation);
        tracing::info!(peer = %address, peers = self.table.len(), "peer found");
        self.table_changed();
        if !self.membership.is_joined() {
            self.search_own();
        }
    }

    /// A contact is a new incarnation: it holds nothing of what it held.
    fn restarted(&mut self, sender: Sender, address: SocketAddr) {
        let Some(slot) = self.slots.begin(address) else {
            return self.count(Counter::PeersRefused);
        };
        self.table.renew(self.now_us, sender.id, sender.incarnation, address, slot);
        self.membership.probes.forget(sender.id);
        if let Some(link) = self.links.of(address) {
            self.give_up(link);
            self.links.incarnate(link, sender.incarnation);
        }
        self.store.begin_lease(self.now_us, sender.locator, sender.incarnation);
        self.count(Counter::PeersRestarted);
        tracing::info!(peer = %address, "peer restarted");
        self.table_changed();
    }

    /// A peer has restarted, or had taken us for dead: it may hold nothing of what it held, and
    /// answers nothing that was asked before.
    pub(super) fn begun_anew(&mut self, sender: Sender, address: SocketAddr, link: u32) {
        self.give_up(link);
        if self.table.get(sender.id).is_some() {
            self.restarted(sender, address);
        }
    }

    /// A suspect is dead: nobody may tunnel to it (R13).
    fn lost(&mut self, peer: Id) {
        if let Some(contact) = self.drop_contact(peer, Absence::Dead) {
            self.count(Counter::PeersDead);
            let peer = contact.address;
            tracing::warn!(%peer, peers = self.table.len(), "peer lost");
            self.owner_dead(peer.ip());
        }
    }

    /// A node says that it stops: its replicas move at once, its sessions stay its own.
    pub(super) fn left(&mut self, sender: Sender, address: SocketAddr) {
        self.drop_contact(sender.id, Absence::Away);
        // Claims of a server that is no contact may be told to us all the same.
        self.remember_absent(Absence::Away, address, sender.incarnation, self.now_us);
        self.count(Counter::PeersLeft);
        tracing::info!(peer = %address, peers = self.table.len(), "peer left");
    }

    fn owner_dead(&mut self, owner: IpAddr) {
        self.actions.push(Action::Answer { ring: 0, answer: Answer::OwnerDead { owner } });
    }

    fn drop_contact(&mut self, peer: Id, absence: Absence) -> Option<Contact> {
        let (contact, successor) = self.table.remove(peer)?;
        self.membership.probes.forget(peer);
        let Contact { address, incarnation, alive_at_us, .. } = contact;
        self.remember_absent(absence, address, incarnation, alive_at_us);
        self.store.end_lease(self.now_us, contact.address.ip());
        if let Some(link) = self.links.of(contact.address) {
            self.give_up(link);
        }
        if let Some(successor) = successor {
            if let Some(Contact { address, incarnation, .. }) = self.table.get(successor).cloned() {
                let Some(slot) = self.slots.begin(address) else {
                    return Some(contact);
                };
                self.table.renew(self.now_us, successor, incarnation, address, slot);
                self.store.begin_lease(self.now_us, address.ip(), incarnation);
            }
            self.check(successor);
        }
        self.table_changed();
        self.join_again_if_alone();
        Some(contact)
    }

    fn remember_absent(
        &mut self,
        absence: Absence,
        address: SocketAddr,
        incarnation: u64,
        alive_at_us: u64,
    ) {
        let absent = &mut self.membership.absent;
        if absent.len() == ABSENT_MAX && !absent.contains_key(&address.ip()) {
            let oldest = absent.iter().min_by_key(|(_, a)| a.since_us).map(|(ip, _)| *ip);
            oldest.and_then(|ip| absent.remove(&ip));
        }
        let since_us = self.now_us;
        let ping_at_us = since_us + self.look_out_pause_us(0);
        let absent = Absent { absence, address, incarnation, since_us, alive_at_us, ping_at_us };
        self.membership.absent.insert(address.ip(), absent);
    }

    /// Looks for those who are absent, and gives up those who stay away: the dead when no restart
    /// takes that long, those who said that they stop when their leases end.
    fn keep_absent(&mut self) {
        let (now_us, lease_us) = (self.now_us, us(self.config.lease));
        let restart_us = us(self.config.restart_within);
        self.membership.absent.retain(|_, absent| now_us < absent.since_us + ABSENT_US_MAX);
        let pause_us_min = self.look_out_pause_us(0);
        let (mut due, mut ended, mut given_up) = (Vec::new(), Vec::new(), Vec::new());
        for (locator, absent) in &mut self.membership.absent {
            let age_us = now_us - absent.since_us;
            let silent_us = now_us.saturating_sub(absent.alive_at_us);
            match absent.absence {
                Absence::Away if age_us >= lease_us => {
                    absent.absence = Absence::GivenUp;
                    ended.push(*locator);
                }
                Absence::Dead if silent_us >= restart_us => {
                    absent.absence = Absence::GivenUp;
                    given_up.push(*locator);
                }
                _ => {}
            }
            if absent.ping_at_us <= now_us {
                absent.ping_at_us = now_us + join::look_out_pause_us(pause_us_min, age_us);
                due.push(absent.address);
            }
        }
        for owner in ended {
            self.count(Counter::LeasesEnded);
            self.owner_dead(owner);
        }
        for owner in given_up {
            self.count(Counter::PeersGivenUp);
            tracing::warn!(peer = %owner, "peer not back in time: its sessions are nobody's");
        }
        for address in due {
            self.meet(address);
        }
    }

    /// Housekeeping: looks after suspects, joins, looks for the absent and the unknown.
    pub(super) fn keep_members(&mut self) {
        // Whom we do not reach may not reach the replicas either: sessions may have begun there of
        // which they know nothing yet.
        let Membership { probes, absent, .. } = &self.membership;
        let is_silent = |suspect: &Id| {
            let contact = self.table.get(*suspect);
            contact.is_some_and(|c| c.silent_since_us() + CUT_OFF_US <= self.now_us)
        };
        let is_awaited = |absent: &Absent| absent.absence == Absence::Dead;
        if probes.suspects.iter().any(is_silent) || absent.values().any(is_awaited) {
            self.membership.changed(self.now_us);
        }
        if self.membership.leaving {
            return;
        }
        self.keep_suspects();
        self.keep_joining();
        self.keep_absent();
        self.refresh();
    }

    /// A time up to `spread_us` from now, so that servers do not all do the same at once.
    fn soon_us(&mut self, spread_us: u64) -> u64 {
        self.now_us + self.rng.random_range(0..=spread_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_unsettle_for_a_while_and_not_without_end() {
        let config = Config::new([10, 0, 0, 1].into(), ([10, 0, 0, 1], 7000).into());
        let mut membership = Membership::new(&config);
        assert!(!membership.is_unsettled(0), "there were no others");
        membership.changed(0);
        assert!(membership.is_unsettled(SETTLING_US - 1));
        assert!(!membership.is_unsettled(SETTLING_US));
        let begun_us = 10 * SETTLING_US;
        for at_us in (begun_us..begun_us + 2 * SETTLING_US_MAX).step_by(SETTLING_US as usize / 2) {
            membership.changed(at_us);
            assert_eq!(membership.is_unsettled(at_us), at_us < begun_us + SETTLING_US_MAX);
        }
        let quiet_us = begun_us + 2 * SETTLING_US_MAX + SETTLING_US;
        membership.changed(quiet_us);
        assert!(membership.is_unsettled(quiet_us));
    }
}
