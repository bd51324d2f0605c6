//! Finding out which contacts do not answer, after SWIM (Das, Gupta and Motivala 2002): one
//! contact in turn is pinged; when it does not answer, three others are asked whether it answers
//! them; when it does not, all are told to look for themselves. Never believes a death that it
//! did not see, and never sends more probes the more nodes there are.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use arrayvec::ArrayVec;
use rand::RngExt;
use smallvec::SmallVec;

use crate::config::us;
use crate::id::Id;
use crate::message::{Life, Message, Sender};
use crate::node::Node;
use crate::request::Purpose;
use crate::routing_table::{Contact, Missed};
use crate::rtt::Rtt;
use crate::stats::Counter;

/// A contact that answered this recently, in µs, need not be probed.
const FRESH_US: u64 = 100_000;
/// How long to wait for the answer to a PING or PING_REQ at least and at most, in µs.
const PING_US_MIN: u64 = 100_000;
const PING_US_MAX: u64 = 400_000;
/// Contacts that are asked whether one answers them.
const VOUCHERS: usize = 3;
/// Who says that a contact is suspect pinged it this long ago at least, in µs: one that has
/// answered us since is none.
const HEARSAY_US: u64 = 2 * PING_US_MIN;
/// Pause between pings of a suspect, in µs, and how much it is spread.
const CHECK_US: u64 = 300_000;
const CHECK_SPREAD_US: u64 = 100_000;
/// All who hear of a suspect ping it within this time, in µs.
const HEARSAY_SPREAD_US: u64 = 50_000;
/// PINGs to suspects in one turn of housekeeping.
const CHECKS_PER_TURN: usize = 256;
/// PING_REQs about those that all have been told of, in one turn of housekeeping; how recently the
/// others must have heard from these, in µs.
const LAST_CALLS_PER_TURN: usize = 96;
const LAST_CALL_US: u64 = 1_000_000;
/// Peers that others wait to hear from by us, and how many wait for one.
pub(super) const RELAYS_MAX: usize = 256;
const WAITERS_MAX: usize = 8;

/// Those who asked us whether a peer answers us.
#[derive(Debug, Clone)]
struct Relay {
    asked_at_us: u64,
    /// Whom to tell, with their transactions.
    waiters: ArrayVec<(SocketAddr, u64), WAITERS_MAX>,
}

/// What is under way to find out who answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Probes {
    at_us: u64,
    /// The contacts that are suspect, in no order.
    pub(super) suspects: Vec<Id>,
    /// Where in these the next turn begins.
    cursor: usize,
    last_calls: usize,
    relays: BTreeMap<Id, Relay>,
}

impl Probes {
    /// Peers that others wait to hear from by us.
    pub(super) fn relays(&self) -> usize {
        self.relays.len()
    }

    /// When the next contact is probed, in µs.
    pub(super) fn next_at_us(&self) -> u64 {
        self.at_us
    }

    fn suspect(&mut self, id: Id) {
        if !self.suspects.contains(&id) {
            self.suspects.push(id);
        }
    }

    /// A contact is no suspect any more, or no contact.
    pub(super) fn forget(&mut self, id: Id) {
        if let Some(place) = self.suspects.iter().position(|suspect| *suspect == id) {
            self.suspects.swap_remove(place);
        }
    }
}

/// How long to wait for the answer to a PING, in µs: as long as the round trips measured say that
/// it may take, and as a peer may be busy for a moment. A PING_REQ takes two of these round trips,
/// of the three that this allows for.
pub(in crate::node) fn ping_timeout_us(rtt: Rtt) -> u64 {
    let smoothed_us = rtt.smoothed_us().unwrap_or_default();
    (rtt.timeout_us(0) + 2 * smoothed_us).clamp(PING_US_MIN, PING_US_MAX)
}

/// How many places farther to go in a ring of `len` from slot to slot, so that neighbours are not
/// probed one after the other, and all are reached: about the golden ratio, and coprime to `len`.
fn stride(len: u64) -> u64 {
    let coprime = |stride: &u64| {
        let (mut a, mut b) = (len, *stride);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    (len * 618 / 1000 + 1..len).find(coprime).unwrap_or(1)
}

fn life(contact: &Contact) -> Life {
    Life { address: contact.address, incarnation: contact.incarnation }
}

impl Node {
    /// Probes the contact whose turn it is, if it is time. One that is fresh, or that all suspect
    /// already, needs none.
    pub(in crate::node) fn probe(&mut self) {
        if self.now_us < self.membership.probes.at_us {
            return;
        }
        let interval_us = us(self.config.probe_interval);
        let slot = self.unix_us() / interval_us;
        let next_us = ((slot + 1) * interval_us).saturating_sub(self.started_unix_us);
        // The answers should not all come at the same moment.
        let jitter_us = self.rng.random_range(0..=interval_us / 5);
        self.membership.probes.at_us = next_us.max(self.now_us + 1) + jitter_us;
        let due = |c: &&Contact| !c.accused && self.now_us >= c.heard_at_us + FRESH_US;
        if let Some(id) = self.in_turn(slot).filter(due).map(|contact| contact.id) {
            self.count(Counter::ProbesSent);
            self.ping(id, Purpose::Probe);
        }
    }

    /// The contact whose turn it is in a slot: the nodes are a ring in the order of their ids, and
    /// all probe the one that is as many places farther. So in each slot each node is probed once,
    /// as far as clocks and tables agree, and each contact once in as many slots as there are.
    fn in_turn(&self, slot: u64) -> Option<&Contact> {
        let len = self.table.len() as u64;
        let farther = slot.checked_rem(len)? * stride(len) % len;
        self.table.farther(farther as usize)
    }

    /// Pings a suspect, or one that may be.
    pub(super) fn check(&mut self, id: Id) {
        self.count(Counter::ChecksSent);
        self.ping(id, Purpose::Check);
    }

    /// Pings a contact, but not again and again.
    pub(in crate::node) fn check_soon(&mut self, id: Id) {
        let contact = self.table.get(id);
        if contact.is_some_and(|c| c.pinged_at_us + CHECK_US <= self.now_us) {
            self.check(id);
        }
    }

    fn ping(&mut self, id: Id, purpose: Purpose) {
        let next_us = self.soon_us(CHECK_SPREAD_US) + CHECK_US;
        if let Some(contact) = self.table.get_mut(id) {
            contact.pinged_at_us = self.now_us;
            contact.ping_at_us = next_us;
            let address = contact.address;
            self.request(address, purpose);
        }
    }

    /// A request to a peer that was sent at `sent_at_us` was not answered in time.
    pub(in crate::node) fn missed(&mut self, peer: Id, sent_at_us: u64) {
        if sent_at_us < self.membership.woke_at_us {
            return;
        }
        if self.table.missed(self.now_us, peer, sent_at_us) == Missed::Suspect {
            self.watch(peer, 0);
        }
    }

    /// A contact has become suspect: it will be pinged soon, and then again and again, until it
    /// is heard or dead.
    fn watch(&mut self, suspect: Id, spread_us: u64) {
        self.count(Counter::PeersSuspected);
        self.membership.probes.suspect(suspect);
        let soon_us = self.soon_us(spread_us);
        if let Some(contact) = self.table.get_mut(suspect) {
            contact.ping_at_us = soon_us.max(contact.pinged_at_us + CHECK_US);
        }
    }

    /// A suspect has proved to be none.
    pub(super) fn cleared(&mut self, peer: Id) {
        self.count(Counter::PeersCleared);
        self.membership.probes.forget(peer);
    }

    /// A PING was not answered in time.
    pub(in crate::node) fn ping_missed(&mut self, purpose: Purpose, peer: Id, sent_at_us: u64) {
        let Some(contact) = self.table.get(peer) else {
            return;
        };
        if sent_at_us < contact.alive_at_us || sent_at_us < self.membership.woke_at_us {
            return;
        }
        let silent_us = self.now_us.saturating_sub(contact.silent_since_us());
        let last_call = 4 * silent_us >= us(self.config.dead_after);
        match purpose {
            Purpose::Probe => {
                // The PING may have been lost on its way, or the answer.
                self.check(peer);
                self.ask_others(Purpose::Vouch(peer), peer);
            }
            _ if last_call && self.membership.probes.last_calls < LAST_CALLS_PER_TURN => {
                self.membership.probes.last_calls += VOUCHERS;
                self.ask_others(Purpose::LastCall(peer), peer);
            }
            _ if last_call => self.count(Counter::PingReqsRefused),
            _ => {}
        }
    }

    /// Asks some random contacts whether one answers them.
    fn ask_others(&mut self, purpose: Purpose, suspect: Id) {
        let mut others: SmallVec<[SocketAddr; VOUCHERS]> = SmallVec::new();
        let contacts = self.table.contacts();
        // Most are no suspects, unless we are cut off from most.
        for _ in 0..4 * VOUCHERS {
            let contact = &contacts[self.rng.random_range(0..contacts.len())];
            let fit = contact.id != suspect && !contact.is_suspect();
            if fit && others.len() < VOUCHERS && !others.contains(&contact.address) {
                others.push(contact.address);
            }
        }
        if others.is_empty() {
            return self.count(Counter::PingReqsRefused);
        }
        for address in others {
            self.count(Counter::PingReqsSent);
            self.request(address, purpose);
        }
    }

    /// The PING_REQ for this purpose; PING when it is about no contact any more.
    pub(in crate::node) fn ping_req(&self, purpose: Purpose) -> Message {
        let (suspect, within_us) = match purpose {
            Purpose::Vouch(suspect) => (suspect, FRESH_US),
            Purpose::LastCall(suspect) => (suspect, LAST_CALL_US),
            _ => return Message::Ping,
        };
        let ping_req = |contact| {
            let within_us = within_us as u32;
            Message::PingReq { life: life(contact), within_us }
        };
        self.table.get(suspect).map_or(Message::Ping, ping_req)
    }

    /// Another node says that a contact answered it so long ago. That keeps it alive, but it
    /// still does not answer us.
    pub(in crate::node) fn vouched_for(&mut self, suspect: Id, incarnation: u64, ago_us: u32) {
        self.count(Counter::PeersVouchedFor);
        let alive_at_us = self.now_us.saturating_sub(ago_us.into());
        if let Some(contact) = self.table.get_mut(suspect)
            && contact.incarnation <= incarnation
        {
            contact.alive_at_us = contact.alive_at_us.max(alive_at_us);
        }
    }

    /// One of those asked at `sent_at_us` has not heard from a contact: unless another has, all
    /// are told.
    pub(in crate::node) fn not_vouched_for(&mut self, suspect: Id, sent_at_us: u64) {
        let Some(contact) = self.table.get(suspect) else {
            return;
        };
        let silent = contact.alive_at_us < sent_at_us && self.membership.woke_at_us <= sent_at_us;
        if silent && contact.failures > 0 && !contact.told {
            let life = life(contact);
            self.table.accuse(self.now_us, suspect);
            if let Some(contact) = self.table.get_mut(suspect) {
                contact.told = true;
            }
            self.spread_suspicion(suspect, life);
        }
    }

    /// Another node says that one is suspect.
    pub(in crate::node) fn hear_suspicion(&mut self, suspect: Life) {
        self.count(Counter::SuspicionsHeard);
        let Life { address, incarnation } = suspect;
        if address.ip() == self.own.locator {
            if incarnation <= self.own.incarnation {
                self.refute();
            }
            return;
        }
        let id = self.hasher.node(address.ip());
        let believable = |c: &&Contact| {
            let since = self.now_us < c.heard_at_us + HEARSAY_US;
            c.address == address && c.incarnation <= incarnation && !since
        };
        if self.table.get(id).filter(believable).is_none() {
            return self.count(Counter::SuspicionsIgnored);
        }
        if self.table.accuse(self.now_us, id) {
            self.watch(id, HEARSAY_SPREAD_US);
        }
    }

    /// Another node asks whether one answered us within some time. If not, the answer waits until
    /// that one is heard; when it is not, there is none.
    pub(in crate::node) fn serve_ping_req(
        &mut self,
        from: SocketAddr,
        asked: u64,
        life: Life,
        within_us: u32,
    ) {
        self.count(Counter::PingReqsReceived);
        let now_us = self.now_us;
        let id = self.hasher.node(life.address.ip());
        let contact = self.table.get(id).filter(|c| c.address == life.address);
        if let Some(contact) = contact.filter(|c| c.incarnation >= life.incarnation) {
            let ago_us = now_us - contact.heard_at_us;
            if ago_us <= within_us.into() {
                return self.send_relayed(from, asked, contact.incarnation, ago_us as u32);
            }
        }
        let known = contact.is_some();
        let possible = self.is_possible_peer(life.address);
        let relays = &mut self.membership.probes.relays;
        let room = relays.len() < RELAYS_MAX || relays.contains_key(&id);
        if !possible || !room {
            return self.count(Counter::PingReqsIgnored);
        }
        let relay = relays
            .entry(id)
            .or_insert_with(|| Relay { asked_at_us: now_us, waiters: ArrayVec::new() });
        let first = relay.waiters.is_empty();
        if relay.waiters.try_push((from, asked)).is_err() {
            return self.count(Counter::PingReqsIgnored);
        }
        match (first, known) {
            (false, _) => {}
            (true, true) => self.check(id),
            (true, false) => {
                self.count(Counter::ChecksSent);
                self.request(life.address, Purpose::Check);
            }
        }
    }

    /// A peer was heard: tells those who asked.
    pub(super) fn relay_pong(&mut self, sender: &Sender) {
        if let Some(relay) = self.membership.probes.relays.remove(&sender.id) {
            for (to, asked) in relay.waiters {
                self.send_relayed(to, asked, sender.incarnation, 0);
            }
        }
    }

    fn send_relayed(&mut self, to: SocketAddr, asked: u64, incarnation: u64, ago_us: u32) {
        self.count(Counter::PongsRelayed);
        self.send(to, asked, Message::PongRelayed { incarnation, ago_us });
    }

    /// Gives up the suspects that are dead, and pings those that are due.
    pub(super) fn keep_suspects(&mut self) {
        let now_us = self.now_us;
        let probes = &mut self.membership.probes;
        probes.last_calls = 0;
        // Whoever asked does not wait any longer.
        probes.relays.retain(|_, relay| now_us < relay.asked_at_us + CHECK_US);
        let mut pings = 0;
        let mut left = probes.suspects.len();
        while left > 0 && pings < CHECKS_PER_TURN && !self.membership.probes.suspects.is_empty() {
            left -= 1;
            let probes = &mut self.membership.probes;
            probes.cursor = (probes.cursor + 1) % probes.suspects.len();
            let id = probes.suspects[probes.cursor];
            let Some(contact) = self.table.get(id) else {
                self.membership.probes.forget(id);
                continue;
            };
            if self.table.is_dead(now_us, contact) {
                self.lost(id);
            } else if contact.ping_at_us <= now_us {
                pings += 1;
                self.check(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_stride_reaches_all() {
        for len in 1..500 {
            let stride = stride(len);
            let reached: BTreeSet<u64> = (0..len).map(|slot| slot * stride % len).collect();
            assert_eq!(reached.len() as u64, len, "{len}: {stride}");
        }
        assert_eq!((stride(2), stride(3), stride(1000)), (1, 2, 619));
    }
}
