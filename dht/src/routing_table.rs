//! The nodes that this one knows, in k-buckets (sections 2.2, 2.4 and 4.2 of the Kademlia
//! paper). Never holds a node that did not answer us, and never forgets one that answers.
//!
//! A bucket holds the nodes whose ids begin with one prefix: at level *l* the first *l·b* bits
//! of our own id, then *b* bits that differ from ours. Nodes of one bucket are neighbours in the
//! order of ids, so the table is one sorted list and a bucket a range of it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;

use smallvec::SmallVec;

use crate::id::{ID_BITS, Id};
use crate::peer_slots::Slot;
use crate::rtt::Rtt;

/// Nodes that wait for a place in a full bucket.
const REPLACEMENTS_MAX: usize = 8;

/// A node that has answered us.
#[derive(Debug, Clone)]
pub struct Contact {
    /// Its id.
    pub id: Id,
    /// Its control socket.
    pub address: SocketAddr,
    /// When it started, as it says.
    pub incarnation: u64,
    /// Its place in the list of peers that hold records of ours.
    pub slot: Slot,
    /// Round-trip time to it.
    pub rtt: Rtt,
    /// When it last answered, in µs of the node's time.
    pub heard_at_us: u64,
    /// Requests in a row that it missed.
    pub failures: u8,
    /// When the last miss was noted; requests sent before do not count again.
    pub missed_at_us: u64,
    /// When to ping it.
    pub ping_at_us: u64,
}

impl Contact {
    /// Whether it missed the last request.
    #[must_use]
    pub const fn is_suspect(&self) -> bool {
        self.failures > 0
    }
}

/// Where an id belongs: the prefix that a bucket's ids have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    bits: u32,
    value: u128,
}

impl Prefix {
    fn of(id: Id, bits: u32) -> Prefix {
        let mask = u128::MAX.checked_shl(ID_BITS - bits).unwrap_or(0);
        Prefix { bits, value: id.0 & mask }
    }

    fn last(self) -> u128 {
        self.value | u128::MAX.checked_shr(self.bits).unwrap_or(0)
    }
}

/// What became of a node that was to be inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is in the table.
    Yes,
    /// Its bucket is full: it waits. Ping the bucket's least recently heard node, which is
    /// dropped only if it does not answer.
    BucketFull {
        /// That node.
        oldest: Id,
    },
    /// It was in the table, or it is ourselves.
    No,
}

/// What a missed request means for its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// Nothing: it was heard since, or it is no contact, or the miss was counted already.
    Nothing,
    /// It is a suspect now.
    Suspect,
    /// It was one before.
    StillSuspect,
    /// It has to go.
    Dead,
}

/// When a node is given up.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Misses in a row.
    pub failures_max: u8,
    /// And this long not heard, in µs.
    pub dead_after_us: u64,
}

/// The table.
#[derive(Debug, Clone)]
pub struct RoutingTable {
    own: Id,
    k: usize,
    bucket_bits: u32,
    patience: Patience,
    /// Sorted by id.
    contacts: Vec<Contact>,
    /// Of full buckets only; the most recently heard last.
    replacements: BTreeMap<Prefix, VecDeque<Contact>>,
}

impl RoutingTable {
    /// An empty table around `own`, with `k` contacts in a bucket and `bucket_bits` bits a
    /// level.
    #[must_use]
    pub fn new(own: Id, k: usize, bucket_bits: u8, patience: Patience) -> RoutingTable {
        RoutingTable {
            own,
            k,
            bucket_bits: u32::from(bucket_bits),
            patience,
            contacts: Vec::new(),
            replacements: BTreeMap::new(),
        }
    }

    /// Contacts in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.contacts.len()
    }

    /// Whether nobody is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contacts.is_empty()
    }

    /// All contacts, in the order of their ids.
    #[must_use]
    pub fn contacts(&self) -> &[Contact] {
        &self.contacts
    }

    /// The contact with this id.
    #[must_use]
    pub fn get(&self, id: Id) -> Option<&Contact> {
        let place = self.place(id).ok()?;
        Some(&self.contacts[place])
    }

    /// The contact with this id, to change.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut Contact> {
        let place = self.place(id).ok()?;
        Some(&mut self.contacts[place])
    }

    /// The contact at this place of the order of ids, to change.
    pub fn get_at(&mut self, place: usize) -> Option<&mut Contact> {
        self.contacts.get_mut(place)
    }

    /// Takes a node that has answered.
    pub fn insert(&mut self, contact: Contact) -> Inserted {
        let Err(place) = self.place(contact.id) else {
            return Inserted::No;
        };
        let Some(prefix) = self.bucket(contact.id) else {
            return Inserted::No;
        };
        let bucket = self.range(prefix);
        let oldest = self.contacts[bucket.clone()].iter().min_by_key(|c| (c.heard_at_us, c.id));
        match oldest {
            Some(oldest) if bucket.len() >= self.k => {
                let oldest = oldest.id;
                self.replace_later(prefix, contact);
                Inserted::BucketFull { oldest }
            }
            _ => {
                self.contacts.insert(place, contact);
                Inserted::Yes
            }
        }
    }

    fn replace_later(&mut self, prefix: Prefix, contact: Contact) {
        let waiting = self.replacements.entry(prefix).or_default();
        waiting.retain(|c| c.id != contact.id);
        if waiting.len() == REPLACEMENTS_MAX {
            waiting.pop_front();
        }
        waiting.push_back(contact);
    }

    /// Drops a node. Returns it, and the one that has taken its place if one waited.
    pub fn remove(&mut self, id: Id) -> Option<(Contact, Option<Id>)> {
        let place = self.place(id).ok()?;
        let gone = self.contacts.remove(place);
        let prefix = self.bucket(id)?;
        let next = self.replacements.get_mut(&prefix).and_then(VecDeque::pop_back);
        if self.replacements.get(&prefix).is_some_and(VecDeque::is_empty) {
            self.replacements.remove(&prefix);
        }
        let next = next.filter(|contact| self.insert(contact.clone()) == Inserted::Yes);
        Some((gone, next.map(|contact| contact.id)))
    }

    /// Whether there is a place for a node that is unknown, in its bucket or to wait for one.
    #[must_use]
    pub fn wants(&self, id: Id) -> bool {
        let Some(prefix) = self.bucket(id) else {
            return false;
        };
        let waiting = self.replacements.get(&prefix);
        let can_wait = waiting
            .is_none_or(|w| w.len() < REPLACEMENTS_MAX && w.iter().all(|contact| contact.id != id));
        self.get(id).is_none() && (self.range(prefix).len() < self.k || can_wait)
    }

    /// Notes that a node answered, and when to ping it next. Returns whether it is a contact.
    pub fn heard(&mut self, now_us: u64, id: Id, rtt_us: Option<u64>, ping_at_us: u64) -> bool {
        let Some(contact) = self.get_mut(id) else {
            return false;
        };
        contact.heard_at_us = now_us;
        contact.failures = 0;
        contact.ping_at_us = ping_at_us;
        if let Some(rtt_us) = rtt_us {
            contact.rtt.measured(rtt_us);
        }
        true
    }

    /// Notes that a request sent at `sent_at_us` was not answered in time. A burst of requests
    /// lost together counts once.
    pub fn missed(&mut self, now_us: u64, id: Id, sent_at_us: u64) -> Missed {
        let patience = self.patience;
        let Some(contact) = self.get_mut(id) else {
            return Missed::Nothing;
        };
        let counted = contact.is_suspect() && sent_at_us < contact.missed_at_us;
        if sent_at_us < contact.heard_at_us || counted {
            return Missed::Nothing;
        }
        contact.failures = contact.failures.saturating_add(1);
        contact.missed_at_us = now_us;
        let unheard_us = now_us.saturating_sub(contact.heard_at_us);
        if contact.failures >= patience.failures_max && unheard_us >= patience.dead_after_us {
            Missed::Dead
        } else if contact.failures == 1 {
            Missed::Suspect
        } else {
            Missed::StillSuspect
        }
    }

    /// The `limit` contacts closest to an id, closest first.
    #[must_use]
    pub fn closest(&self, target: Id, limit: usize) -> SmallVec<[&Contact; 8]> {
        let mut closest = SmallVec::new();
        self.visit(0..self.contacts.len(), target, &mut |contact| {
            closest.push(contact);
            closest.len() < limit
        });
        closest
    }

    /// Visits the contacts of a range in the order of their distance to `target`, until `next`
    /// says no. Ids that begin alike are neighbours: halve the range where they first differ
    /// and begin with the half on the target's side.
    fn visit<'a>(
        &'a self,
        range: Range<usize>,
        target: Id,
        next: &mut impl FnMut(&'a Contact) -> bool,
    ) -> bool {
        let contacts = &self.contacts[range.clone()];
        let [first, .., last] = contacts else {
            return contacts.first().is_none_or(next);
        };
        let bit = 1 << (ID_BITS - 1 - (first.id.0 ^ last.id.0).leading_zeros());
        let middle = range.start + contacts.partition_point(|c| c.id.0 & bit == 0);
        let (low, high) = (range.start..middle, middle..range.end);
        let (near, far) = match target.0 & bit {
            0 => (low, high),
            _ => (high, low),
        };
        self.visit(near, target, next) && self.visit(far, target, next)
    }

    /// Whether the contacts closest to an id are the closest nodes there are: a bucket with room
    /// left holds all nodes of its range that there are to know.
    #[must_use]
    pub fn covers(&self, target: Id, limit: usize) -> bool {
        let has_room = |id| match self.bucket(id) {
            Some(prefix) => self.range(prefix).len() < self.k,
            None => true,
        };
        let closest = self.closest(target, limit);
        has_room(target) && closest.iter().all(|contact| has_room(contact.id))
    }

    /// Levels of the table down to the deepest that holds a contact.
    #[must_use]
    pub fn levels(&self) -> u32 {
        let neighbour = self.closest(self.own, 1).first().map(|c| c.id);
        neighbour.map_or(0, |id| self.level(id) + 1)
    }

    /// The id that begins with the first `level`·b bits of our own, then has a bit that differs
    /// from ours, then follows `random`.
    #[must_use]
    pub fn id_at_level(&self, level: u32, random: u128) -> Id {
        let bits = (level * self.bucket_bits).min(ID_BITS - 1);
        let own = Prefix::of(self.own, bits);
        let differing = 1 << (ID_BITS - 1 - bits);
        let id = own.value | random & (own.last() ^ own.value);
        Id(id & !differing | !self.own.0 & differing)
    }

    fn level(&self, id: Id) -> u32 {
        (self.own.0 ^ id.0).leading_zeros() / self.bucket_bits
    }

    fn bucket(&self, id: Id) -> Option<Prefix> {
        let bits = (self.level(id) + 1) * self.bucket_bits;
        (id != self.own).then(|| Prefix::of(id, bits.min(ID_BITS)))
    }

    fn range(&self, prefix: Prefix) -> Range<usize> {
        let start = self.contacts.partition_point(|c| c.id.0 < prefix.value);
        let end = self.contacts.partition_point(|c| c.id.0 <= prefix.last());
        start..end
    }

    fn place(&self, id: Id) -> Result<usize, usize> {
        self.contacts.binary_search_by_key(&id, |c| c.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PATIENCE: Patience = Patience { failures_max: 3, dead_after_us: 2_000_000 };

    fn contact(id: u128, heard_at_us: u64) -> Contact {
        Contact {
            id: Id(id),
            address: ([10, 0, 0, 1], 7000).into(),
            incarnation: 0,
            slot: Slot::OWN,
            rtt: Rtt::default(),
            heard_at_us,
            failures: 0,
            missed_at_us: 0,
            ping_at_us: 0,
        }
    }

    /// The bucket of an id, as the paper draws it: the level where it first differs from our
    /// own, in groups of `bits` bits, and the group there.
    fn model_bucket(own: u128, id: u128, bits: u32) -> (u32, u128) {
        let group = |id: u128, level: u32| {
            let rest = id << (level * bits);
            rest >> (ID_BITS - bits.min(ID_BITS - level * bits))
                << bits.saturating_sub(ID_BITS - level * bits)
        };
        let mut level = 0;
        while group(own, level) == group(id, level) {
            level += 1;
        }
        (level, group(id, level))
    }

    proptest! {
        #[test]
        fn is_made_of_buckets(
            own in any::<u128>(),
            bits in 1..=8u8,
            k in 1..5usize,
            steps in prop::collection::vec((any::<u8>(), any::<u128>(), 0..128u32), 1..300),
        ) {
            let mut table = RoutingTable::new(Id(own), k, bits, PATIENCE);
            let mut model: BTreeMap<(u32, u128), Vec<Id>> = BTreeMap::new();
            let mut seen = Vec::new();
            for (now_us, (kind, random, depth)) in steps.into_iter().enumerate() {
                // Near and far ids alike.
                let id = Id(own ^ (random >> depth));
                if id == Id(own) {
                    prop_assert_eq!(table.insert(contact(own, 0)), Inserted::No);
                    continue;
                }
                let bucket = model.entry(model_bucket(own, id.0, bits.into())).or_default();
                if kind % 4 > 0 {
                    seen.push(id);
                    let expected = if bucket.contains(&id) {
                        Inserted::No
                    } else if bucket.len() < k {
                        bucket.push(id);
                        Inserted::Yes
                    } else {
                        Inserted::BucketFull { oldest: bucket[0] }
                    };
                    prop_assert_eq!(table.insert(contact(id.0, now_us as u64)), expected);
                } else if let Some(&id) = seen.get(usize::from(kind)) {
                    let bucket = model.entry(model_bucket(own, id.0, bits.into())).or_default();
                    let removed = table.remove(id);
                    prop_assert_eq!(removed.is_some(), bucket.contains(&id));
                    bucket.retain(|other| *other != id);
                    if let Some((_, Some(successor))) = removed {
                        prop_assert!(seen.contains(&successor));
                        prop_assert!(!bucket.contains(&successor));
                        // It was heard before some that came later.
                        let heard = |id: &Id| table.get(*id).map(|c| c.heard_at_us);
                        bucket.push(successor);
                        bucket.sort_by_key(heard);
                    }
                }
            }
            let mut all: Vec<Id> = model.into_values().flatten().collect();
            all.sort();
            let ids: Vec<Id> = table.contacts().iter().map(|c| c.id).collect();
            prop_assert_eq!(&ids, &all);
            prop_assert!(table.replacements.values().all(|w| w.len() <= REPLACEMENTS_MAX));
        }

        #[test]
        fn closest_is_closest(
            own in any::<u128>(),
            target in any::<u128>(),
            others in prop::collection::vec((any::<u128>(), 0..128u32), 0..100),
            limit in 1..20usize,
        ) {
            let mut table = RoutingTable::new(Id(own), 4, 3, PATIENCE);
            for (random, depth) in others {
                table.insert(contact(target ^ (random >> depth), 0));
            }
            let mut expected: Vec<Id> = table.contacts().iter().map(|c| c.id).collect();
            expected.sort_by_key(|id| id.distance(Id(target)));
            expected.truncate(limit);
            let closest: Vec<Id> = table.closest(Id(target), limit).iter().map(|c| c.id).collect();
            prop_assert_eq!(closest, expected);
        }

        #[test]
        fn an_id_at_a_level_is_of_that_level(
            own in any::<u128>(), bits in 1..=8u8, level in 0..16u32, random in any::<u128>(),
        ) {
            let table = RoutingTable::new(Id(own), 20, bits, PATIENCE);
            prop_assert_eq!(table.level(table.id_at_level(level, random)), level);
        }
    }

    #[test]
    fn gives_up_a_node_only_after_time_and_misses() {
        let mut table = RoutingTable::new(Id(0), 20, 1, PATIENCE);
        table.insert(contact(7, 1_000_000));
        let id = Id(7);
        assert_eq!(table.missed(1_100_000, Id(8), 1_050_000), Missed::Nothing);
        // Sent before the node was last heard.
        assert_eq!(table.missed(1_100_000, id, 900_000), Missed::Nothing);
        assert_eq!(table.missed(1_100_000, id, 1_050_000), Missed::Suspect);
        // A burst that was lost together counts once.
        assert_eq!(table.missed(1_100_001, id, 1_060_000), Missed::Nothing);
        assert_eq!(table.missed(1_200_000, id, 1_150_000), Missed::StillSuspect);
        assert_eq!(table.missed(1_300_000, id, 1_250_000), Missed::StillSuspect);
        assert!(table.get(id).is_some_and(Contact::is_suspect));
        assert!(table.heard(1_400_000, id, Some(70), 0));
        assert!(!table.get(id).is_some_and(Contact::is_suspect));
        for sent_at_us in [1_500_000, 2_500_000] {
            let missed = table.missed(sent_at_us + 200_000, id, sent_at_us);
            assert!(matches!(missed, Missed::Suspect | Missed::StillSuspect));
        }
        assert_eq!(table.missed(3_400_000, id, 3_200_000), Missed::Dead);
    }
}
