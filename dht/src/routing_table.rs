//! The nodes that this one knows, in k-buckets (sections 2.2, 2.4 and 4.2 of the Kademlia
//! paper). Never holds a node that did not answer us, and never forgets one that answers.
//!
//! A bucket holds the nodes whose ids begin with one prefix: at level *l* the first *l·b* bits
//! of our own id, then *b* bits that differ from ours. Nodes of one bucket are neighbours in the
//! order of ids, so the table is one sorted list of ids and a bucket a range of it.

use std::collections::{BTreeMap, VecDeque};
use std::hint::select_unpredictable;
use std::net::SocketAddr;
use std::ops::Range;

use arrayvec::ArrayVec;
use smallvec::SmallVec;

use crate::config::REPLICAS_MAX;
use crate::id::{ID_BITS, Id};
use crate::peer_slots::Slot;
use crate::placement::{Placement, Rank, WEIGHT_BITS, weight};
use crate::rtt::Rtt;

/// Nodes that wait for a place in a full bucket.
const REPLACEMENTS_MAX: usize = 8;

/// Contacts of a table at most: with ourselves as many as 16 bits can count.
pub(crate) const CONTACTS_MAX: usize = u16::MAX as usize;

/// Index of our own node; for a slot it means nobody.
const OWN: u16 = 0;

/// Leading bits of the ids that [`RoutingTable::cells`] tells apart.
const CELL_BITS: u32 = 8;

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
    /// Which life of it this is: another number each time that it enters the table, never 0.
    pub life: u32,
    /// Round-trip time to it.
    pub rtt: Rtt,
    /// When it last answered us, in µs of the node's time.
    pub heard_at_us: u64,
    /// When it last gave a sign of life: an answer, another datagram of its own, or an answer to
    /// another node that relayed it to us.
    pub alive_at_us: u64,
    /// Requests in a row that it missed.
    pub failures: u8,
    /// When the last miss was noted; requests sent before do not count again.
    pub missed_at_us: u64,
    /// Whether it was suspected before all, by us or by another.
    pub accused: bool,
    /// Whether it was us who told all.
    pub told: bool,
    /// When it became suspect, if it is.
    pub suspected_at_us: u64,
    /// When it was last pinged, and when to ping it again as long as it is suspect.
    pub pinged_at_us: u64,
    /// See [`Contact::pinged_at_us`].
    pub ping_at_us: u64,
}

impl Contact {
    /// A node that has answered at this moment; `life` says which of its lives it is.
    #[must_use]
    pub fn new(
        now_us: u64,
        id: Id,
        address: SocketAddr,
        incarnation: u64,
        slot: Slot,
        life: u32,
    ) -> Contact {
        Contact {
            id,
            address,
            incarnation,
            slot,
            life,
            rtt: Rtt::default(),
            heard_at_us: now_us,
            alive_at_us: now_us,
            failures: 0,
            missed_at_us: 0,
            accused: false,
            told: false,
            suspected_at_us: 0,
            pinged_at_us: 0,
            ping_at_us: 0,
        }
    }

    /// Whether it missed the last request, or another node says that it did. Others are asked
    /// before it.
    #[must_use]
    pub const fn is_suspect(&self) -> bool {
        self.failures > 0 || self.accused
    }

    /// Since when it has been suspect without a sign of life, in µs of the node's time. Means
    /// nothing when it is not suspect.
    #[must_use]
    pub fn silent_since_us(&self) -> u64 {
        self.suspected_at_us.max(self.alive_at_us)
    }

    fn trust(&mut self) {
        (self.failures, self.accused, self.told) = (0, false, false);
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

/// A node that is to hold a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    /// Its id.
    pub id: Id,
    /// Its name; [`Slot::OWN`] is our own node.
    pub slot: Slot,
    /// Its control socket.
    pub address: SocketAddr,
    /// Whether it missed the last request.
    pub suspect: bool,
}

/// A bucket that is not empty, as a listing shows it.
#[derive(Debug, Clone)]
pub struct Bucket<'a> {
    /// The bits that its contacts' ids have in common, the others 0.
    pub prefix: Id,
    /// How many bits that are.
    pub prefix_bits: u32,
    /// Its contacts, in the order of ids.
    pub contacts: Vec<&'a Contact>,
    /// Whether it has no room for another one.
    pub is_full: bool,
    /// Nodes that wait for a place in it.
    pub waiting: usize,
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
    /// It was in the table, or it is ourselves, or the table has reached its limit of 65,535.
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
}

/// What an answer means for its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is no contact.
    Unknown,
    /// It was no suspect.
    Trusted,
    /// It was a suspect, and is none any more.
    Cleared,
}

/// When a suspect is given up.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Requests of our own that it missed in a row.
    pub failures_max: u8,
    /// And this long without a sign of life since it is a suspect, in µs.
    pub dead_after_us: u64,
}

/// The table.
#[derive(Debug, Clone)]
pub struct RoutingTable {
    own: Id,
    k: usize,
    bucket_bits: u32,
    patience: Patience,
    placement: Placement,
    /// All nodes known, ourselves among them, sorted. Apart from what else is known of them, as
    /// every lookup and every STORE runs over some 128 of them.
    ids: Vec<Id>,
    /// Beside `ids`: indexes into `nodes`.
    order: Vec<u16>,
    /// Ourselves, then the contacts in no order: they stay where they are when others come.
    nodes: Vec<Contact>,
    /// By [`Slot::index`]: indexes into `nodes`, or [`OWN`].
    by_slot: Vec<u16>,
    /// By the first [`CELL_BITS`] bits of an id: where in `ids` the ids begin that begin so.
    cells: [u32; (1 << CELL_BITS) + 1],
    /// The full buckets, and who waits for a place there; the most recently heard last.
    full: BTreeMap<Prefix, VecDeque<Contact>>,
}

impl RoutingTable {
    /// An empty table around `own`, whose control socket is `address`, with `k` contacts in a
    /// bucket, at least 1, and `bucket_bits` bits a level.
    #[must_use]
    pub fn new(
        own: Id,
        address: SocketAddr,
        k: usize,
        bucket_bits: u8,
        patience: Patience,
        placement: Placement,
    ) -> RoutingTable {
        let mut table = RoutingTable {
            own,
            k,
            bucket_bits: u32::from(bucket_bits),
            patience,
            placement,
            ids: Vec::new(),
            order: Vec::new(),
            nodes: Vec::new(),
            by_slot: Vec::new(),
            cells: [0; (1 << CELL_BITS) + 1],
            full: BTreeMap::new(),
        };
        table.add(0, Contact::new(0, own, address, 0, Slot::OWN, 0));
        table
    }

    /// Contacts in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len() - 1
    }

    /// Whether nobody is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All contacts, in no order.
    #[must_use]
    pub fn contacts(&self) -> &[Contact] {
        &self.nodes[1..]
    }

    /// The buckets that are not empty, in the order of ids.
    #[must_use]
    pub fn buckets(&self) -> Vec<Bucket<'_>> {
        let mut buckets: Vec<Bucket<'_>> = Vec::new();
        for place in 0..self.ids.len() {
            let contact = self.node_at(place);
            let Some(prefix) = self.bucket(contact.id) else {
                continue;
            };
            match buckets.last_mut() {
                Some(last) if (last.prefix.0, last.prefix_bits) == (prefix.value, prefix.bits) => {
                    last.contacts.push(contact);
                }
                _ => buckets.push(Bucket {
                    prefix: Id(prefix.value),
                    prefix_bits: prefix.bits,
                    contacts: vec![contact],
                    is_full: self.full.contains_key(&prefix),
                    waiting: self.full.get(&prefix).map_or(0, VecDeque::len),
                }),
            }
        }
        buckets
    }

    /// The contact with this id.
    #[must_use]
    pub fn get(&self, id: Id) -> Option<&Contact> {
        let index = self.order[self.place(id).ok()?];
        (index != OWN).then(|| &self.nodes[usize::from(index)])
    }

    /// The contact with this id, to change; its id and its slot stay ([`renew`](Self::renew)).
    pub fn get_mut(&mut self, id: Id) -> Option<&mut Contact> {
        let index = self.order[self.place(id).ok()?];
        (index != OWN).then(|| &mut self.nodes[usize::from(index)])
    }

    /// The contact with this slot, unless that was another life of it.
    #[must_use]
    pub fn by_slot(&self, slot: Slot) -> Option<&Contact> {
        let index = usize::from(*self.by_slot.get(slot.index())?);
        self.nodes[1..].get(index.checked_sub(1)?).filter(|contact| contact.slot == slot)
    }

    fn node_at(&self, place: usize) -> &Contact {
        &self.nodes[usize::from(self.order[place])]
    }

    /// Takes a node that has answered.
    pub fn insert(&mut self, contact: Contact) -> Inserted {
        let Err(place) = self.place(contact.id) else {
            return Inserted::No;
        };
        let Some(prefix) = self.bucket(contact.id) else {
            return Inserted::No;
        };
        if self.full.contains_key(&prefix) {
            let oldest = self.oldest(prefix);
            self.replace_later(prefix, contact);
            return Inserted::BucketFull { oldest };
        }
        if self.len() == CONTACTS_MAX {
            return Inserted::No;
        }
        self.add(place, contact);
        if self.range(prefix).len() >= self.k {
            self.full.insert(prefix, VecDeque::new());
        }
        Inserted::Yes
    }

    /// The least recently heard node of a bucket.
    fn oldest(&self, prefix: Prefix) -> Id {
        let contacts = self.range(prefix).map(|place| self.node_at(place));
        let oldest = contacts.map(|c| (c.heard_at_us, c.id)).min();
        oldest.map_or(self.own, |(_, id)| id)
    }

    fn replace_later(&mut self, prefix: Prefix, contact: Contact) {
        let waiting = self.full.entry(prefix).or_default();
        waiting.retain(|c| c.id != contact.id);
        if waiting.len() == REPLACEMENTS_MAX {
            waiting.pop_front();
        }
        waiting.push_back(contact);
    }

    /// Drops a node. Returns it, and the one that has taken its place if one waited.
    pub fn remove(&mut self, id: Id) -> Option<(Contact, Option<Id>)> {
        let prefix = self.bucket(id)?;
        let gone = self.take(self.place(id).ok()?);
        let next = self.full.get_mut(&prefix).and_then(VecDeque::pop_back);
        let Some(next) = next else {
            self.full.remove(&prefix);
            return Some((gone, None));
        };
        let successor = next.id;
        if let Err(place) = self.place(successor) {
            self.add(place, next);
        }
        Some((gone, Some(successor)))
    }

    /// A contact has begun another life, or is to be found at another address.
    pub fn renew(
        &mut self,
        now_us: u64,
        id: Id,
        incarnation: u64,
        address: SocketAddr,
        slot: Slot,
    ) {
        let Ok(place) = self.place(id) else {
            return;
        };
        let index = self.order[place];
        if index == OWN {
            return;
        }
        let contact = &mut self.nodes[usize::from(index)];
        let before = std::mem::replace(&mut contact.slot, slot);
        contact.trust();
        contact.alive_at_us = now_us;
        contact.incarnation = incarnation;
        contact.address = address;
        self.reindex(before, index, OWN);
        self.index(slot, index);
    }

    fn add(&mut self, place: usize, node: Contact) {
        let index = self.nodes.len() as u16;
        reserve(&mut self.ids);
        reserve(&mut self.order);
        reserve(&mut self.nodes);
        self.ids.insert(place, node.id);
        self.order.insert(place, index);
        self.cells[cell(node.id) + 1..].iter_mut().for_each(|start| *start += 1);
        self.index(node.slot, index);
        self.nodes.push(node);
    }

    /// Takes a contact out. The last one gets its index.
    fn take(&mut self, place: usize) -> Contact {
        let index = self.order.remove(place);
        let id = self.ids.remove(place);
        self.cells[cell(id) + 1..].iter_mut().for_each(|start| *start -= 1);
        let gone = self.nodes.swap_remove(usize::from(index));
        self.reindex(gone.slot, index, OWN);
        if let Some((id, slot)) = self.nodes.get(usize::from(index)).map(|c| (c.id, c.slot)) {
            self.reindex(slot, self.nodes.len() as u16, index);
            if let Ok(place) = self.place(id) {
                self.order[place] = index;
            }
        }
        gone
    }

    fn index(&mut self, slot: Slot, index: u16) {
        if self.by_slot.len() <= slot.index() {
            let more = slot.index() + 1 - self.by_slot.len();
            self.by_slot.reserve_exact(more.max(self.by_slot.len() / 8));
            self.by_slot.resize(slot.index() + 1, OWN);
        }
        self.by_slot[slot.index()] = index;
    }

    fn reindex(&mut self, slot: Slot, from: u16, to: u16) {
        if let Some(index) = self.by_slot.get_mut(slot.index()).filter(|index| **index == from) {
            *index = to;
        }
    }

    /// Whether a node that is unknown would enter the table at once.
    #[must_use]
    pub fn has_room(&self, id: Id) -> bool {
        self.bucket(id).is_some_and(|prefix| !self.full.contains_key(&prefix))
    }

    /// Whether there is a place for a node that is unknown, in its bucket or to wait for one.
    #[must_use]
    pub fn wants(&self, id: Id) -> bool {
        let Some(prefix) = self.bucket(id) else {
            return false;
        };
        let can_wait = self.full.get(&prefix).is_none_or(|waiting| {
            waiting.len() < REPLACEMENTS_MAX && waiting.iter().all(|contact| contact.id != id)
        });
        can_wait && self.place(id).is_err()
    }

    /// Notes that a node answered one of our requests: that clears it of all suspicion.
    pub fn heard(&mut self, now_us: u64, id: Id, rtt_us: Option<u64>) -> Heard {
        let Some(contact) = self.get_mut(id) else {
            return Heard::Unknown;
        };
        contact.heard_at_us = now_us;
        contact.alive_at_us = now_us;
        if let Some(rtt_us) = rtt_us {
            contact.rtt.measured(rtt_us);
        }
        match contact.is_suspect() {
            true => {
                contact.trust();
                Heard::Cleared
            }
            false => Heard::Trusted,
        }
    }

    /// Notes that a node sent us something that answers nothing. It is alive, which clears it of
    /// what others say of it, but not of not answering ourselves.
    pub fn seen(&mut self, now_us: u64, id: Id) -> Heard {
        let Some(contact) = self.get_mut(id) else {
            return Heard::Unknown;
        };
        contact.alive_at_us = now_us;
        match contact.accused && contact.failures == 0 {
            true => {
                contact.trust();
                Heard::Cleared
            }
            false => Heard::Trusted,
        }
    }

    /// Notes that a node is suspect before all, because we or another told them. Returns whether
    /// it was no suspect before.
    pub fn accuse(&mut self, now_us: u64, id: Id) -> bool {
        let Some(contact) = self.get_mut(id) else {
            return false;
        };
        let news = !contact.is_suspect();
        contact.accused = true;
        if news {
            contact.suspected_at_us = now_us;
        }
        news
    }

    /// Notes that a request sent at `sent_at_us` was not answered in time. A burst of requests
    /// lost together counts once.
    pub fn missed(&mut self, now_us: u64, id: Id, sent_at_us: u64) -> Missed {
        let Some(contact) = self.get_mut(id) else {
            return Missed::Nothing;
        };
        let counted = contact.failures > 0 && sent_at_us < contact.missed_at_us;
        if sent_at_us < contact.heard_at_us || counted {
            return Missed::Nothing;
        }
        let news = !contact.is_suspect();
        contact.failures = contact.failures.saturating_add(1);
        contact.missed_at_us = now_us;
        if news {
            contact.suspected_at_us = now_us;
            return Missed::Suspect;
        }
        Missed::StillSuspect
    }

    /// Whether a contact is to be given up: it missed enough requests of our own, and gave no
    /// sign of life for long enough since it is suspect. What others say of it is not enough.
    #[must_use]
    pub fn is_dead(&self, now_us: u64, contact: &Contact) -> bool {
        let silent_us = now_us.saturating_sub(contact.silent_since_us());
        contact.failures >= self.patience.failures_max && silent_us >= self.patience.dead_after_us
    }

    /// The contact that follows an id in the order of ids; the first of all for `None`.
    #[must_use]
    pub fn next(&self, after: Option<Id>) -> Option<&Contact> {
        let place = after.map_or(0, |after| self.ids.partition_point(|id| *id <= after));
        let mut following = self.order[place..].iter().filter(|index| **index != OWN);
        following.next().map(|index| &self.nodes[usize::from(*index)])
    }

    /// The contact `farther` places behind our next neighbour in the ring of all nodes known, in
    /// the order of their ids; `None` when there are not as many.
    #[must_use]
    pub fn farther(&self, farther: usize) -> Option<&Contact> {
        if farther >= self.len() {
            return None;
        }
        let own_place = self.place(self.own).ok()?;
        Some(self.node_at((own_place + 1 + farther) % self.ids.len()))
    }

    /// The `limit` contacts closest to an id, closest first.
    #[must_use]
    pub fn closest(&self, target: Id, limit: usize) -> SmallVec<[&Contact; 8]> {
        let mut closest = SmallVec::new();
        self.visit(0..self.ids.len(), target, &mut |place| {
            let node = self.node_at(place);
            if node.id != self.own {
                closest.push(node);
            }
            closest.len() < limit
        });
        closest
    }

    /// The nodes that are to hold a record, best first, as far as we know: the `count` best of
    /// those that take part in the draw, at most [`REPLICAS_MAX`]. We may be one of them. The
    /// first ones do not depend on `count`.
    #[must_use]
    pub fn replicas(&self, target: Id, count: usize) -> ArrayVec<Replica, REPLICAS_MAX> {
        let count = count.min(REPLICAS_MAX);
        match count {
            _ if self.placement.is_plain() => self.nearest(target, count),
            0 | 1 => self.best::<1>(target, count),
            2 => self.best::<2>(target, count),
            3 => self.best::<3>(target, count),
            _ => self.best::<REPLICAS_MAX>(target, count),
        }
    }

    /// The order of replicas: see [`Placement::rank`].
    #[must_use]
    pub fn rank(&self, target: Id, node: Id) -> Rank {
        self.placement.rank(target, node)
    }

    /// How replicas are chosen.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    fn nearest(&self, target: Id, count: usize) -> ArrayVec<Replica, REPLICAS_MAX> {
        let mut replicas = ArrayVec::new();
        if count > 0 {
            self.visit(0..self.ids.len(), target, &mut |place| {
                replicas.push(self.replica(place));
                replicas.len() < count
            });
        }
        replicas
    }

    /// The `count` ≤ N nodes of greatest weight.
    fn best<const N: usize>(&self, target: Id, count: usize) -> ArrayVec<Replica, REPLICAS_MAX> {
        let mut best = Best { words: [u64::MAX; N] };
        let mut known = 0_usize;
        self.closest_ranges(target, self.placement.width(), |range| {
            known += range.len();
            best = best.among(target, &self.ids[range.clone()], range.start as u64);
        });
        let mut replicas = ArrayVec::new();
        for word in best.words.iter().take(count.min(known)) {
            replicas.push(self.replica(usize::from(*word as u16)));
        }
        replicas
    }

    fn replica(&self, place: usize) -> Replica {
        let node = self.node_at(place);
        Replica { id: node.id, slot: node.slot, address: node.address, suspect: node.is_suspect() }
    }

    /// Calls `take` with ranges of places that together hold the `limit` ≥ 1 ids closest to
    /// `target`, our own among them, closer ranges first.
    fn closest_ranges(&self, target: Id, limit: usize, mut take: impl FnMut(Range<usize>)) {
        let mut range = 0..self.ids.len();
        let mut missing = limit;
        while range.len() > missing {
            let (near, far) = self.halves(range, target);
            if near.len() > missing {
                range = near;
                continue;
            }
            missing -= near.len();
            take(near);
            if missing == 0 {
                return;
            }
            range = far;
        }
        take(range);
    }

    /// Splits a range of two ids or more into the half that is closer to `target` and the other.
    /// Ids that begin alike are neighbours: it is cut where the ids first differ.
    fn halves(&self, range: Range<usize>, target: Id) -> (Range<usize>, Range<usize>) {
        let last = self.ids[range.end - 1];
        let alike = (self.ids[range.start].0 ^ last.0).leading_zeros();
        let bit = 1 << (ID_BITS - 1 - alike);
        let middle = if alike < CELL_BITS {
            let unlike = CELL_BITS - 1 - alike;
            self.cells[cell(last) >> unlike << unlike] as usize
        } else {
            range.start + self.ids[range.clone()].partition_point(|id| id.0 & bit == 0)
        };
        let (low, high) = (range.start..middle, middle..range.end);
        if target.0 & bit == 0 { (low, high) } else { (high, low) }
    }

    /// Visits the places of a range in the order of their ids' distance to `target`, until
    /// `next` says no.
    fn visit(&self, range: Range<usize>, target: Id, next: &mut impl FnMut(usize) -> bool) -> bool {
        if range.len() < 2 {
            return range.is_empty() || next(range.start);
        }
        let (near, far) = self.halves(range, target);
        self.visit(near, target, next) && self.visit(far, target, next)
    }

    /// Whether all nodes are known that there are: every bucket has room left.
    #[must_use]
    pub fn knows_all(&self) -> bool {
        self.full.is_empty()
    }

    /// Whether [`replicas`](Self::replicas) are the ones that a node which knows all would name.
    #[must_use]
    pub fn knows_replicas(&self, target: Id) -> bool {
        self.covers(target, self.placement.width())
    }

    /// Whether the `limit` known nodes closest to an id, ourselves among them, are the closest
    /// there are: a bucket with room left holds all nodes of its range that there are to know.
    #[must_use]
    pub fn covers(&self, target: Id, limit: usize) -> bool {
        self.knows_all() || self.covers_slowly(target, limit)
    }

    fn covers_slowly(&self, target: Id, limit: usize) -> bool {
        // A full bucket has unknown nodes among the closest only if it has known ones there: of
        // two buckets one is closer as a whole, or one contains the target.
        let mut covers = true;
        self.closest_ranges(target, limit.max(1), |range| {
            let shares = |prefix: &Prefix| {
                let bucket = self.range(*prefix);
                bucket.start < range.end && range.start < bucket.end
            };
            covers = covers && !self.full.keys().any(shares);
        });
        covers
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
        let start = self.place(Id(prefix.value)).unwrap_or_else(|place| place);
        let end = self.place(Id(prefix.last())).map_or_else(|place| place, |place| place + 1);
        start..end
    }

    /// Where in `ids` an id is, or would be.
    fn place(&self, id: Id) -> Result<usize, usize> {
        let start = self.cells[cell(id)] as usize;
        let end = self.cells[cell(id) + 1] as usize;
        let place = self.ids[start..end].binary_search(&id);
        place.map(|place| start + place).map_err(|place| start + place)
    }
}

/// The N best nodes found so far, the best first. Each is one word, the complement of its weight
/// above its place: of two nodes of one weight the one with the lesser id is the better.
#[derive(Clone, Copy)]
struct Best<const N: usize> {
    words: [u64; N],
}

impl<const N: usize> Best<N> {
    /// The best of these and the nodes with `ids`, which are at the places from `first` on.
    #[inline]
    fn among(self, target: Id, ids: &[Id], first: u64) -> Best<N> {
        let mut words = self.words;
        let mut place = first;
        for id in ids {
            let mut word = !weight(target, *id) << (u64::BITS - WEIGHT_BITS) | place;
            place = place.wrapping_add(1);
            for kept in &mut words {
                // Nobody can predict who is better: no branch.
                let better = word < *kept;
                let lesser = select_unpredictable(better, word, *kept);
                word = select_unpredictable(better, *kept, word);
                *kept = lesser;
            }
        }
        Best { words }
    }
}

fn cell(id: Id) -> usize {
    (id.0 >> (ID_BITS - CELL_BITS)) as usize
}

/// Makes room for one more by an eighth when there is none: a simulation holds thousands of
/// tables, and doubling would waste half of them.
fn reserve<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 8 + 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer_slots::PeerSlots;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PLAIN: Placement = Placement::new(1, 1);
    const PATIENCE: Patience = Patience { failures_max: 3, dead_after_us: 2_000_000 };

    fn own_address() -> SocketAddr {
        ([10, 0, 0, 1], 7000).into()
    }

    fn contact(id: u128, heard_at_us: u64) -> Contact {
        let address = ([10, 0, 0, 1], 7000).into();
        Contact::new(heard_at_us, Id(id), address, 0, Slot::OWN, 1)
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

    fn assert_consistent(table: &RoutingTable) {
        assert!(table.ids.is_sorted_by(|a, b| a < b));
        assert_eq!(table.ids.len(), table.nodes.len());
        assert!((0..table.ids.len()).all(|place| table.node_at(place).id == table.ids[place]));
        assert_eq!((table.nodes[0].id, table.nodes[0].slot), (table.own, Slot::OWN));
        let begins = |c| table.ids.partition_point(|id| cell(*id) < c);
        assert!(table.cells.iter().enumerate().all(|(c, start)| *start as usize == begins(c)));
        for contact in table.contacts() {
            assert_eq!(table.by_slot(contact.slot).map(|c| c.id), Some(contact.id));
            assert_eq!(table.get(contact.id).map(|c| c.slot), Some(contact.slot));
            let prefix = table.bucket(contact.id).expect("not ourselves");
            assert_eq!(table.range(prefix).len() >= table.k, table.full.contains_key(&prefix));
        }
        let listed: Vec<Id> =
            table.buckets().iter().flat_map(|bucket| &bucket.contacts).map(|c| c.id).collect();
        let all: Vec<Id> = table.ids.iter().copied().filter(|id| *id != table.own).collect();
        assert_eq!(listed, all, "each contact is in one bucket");
        for bucket in table.buckets() {
            for contact in &bucket.contacts {
                let prefix = table.bucket(contact.id).expect("not ourselves");
                assert_eq!((prefix.value, prefix.bits), (bucket.prefix.0, bucket.prefix_bits));
            }
        }
        let named = table.by_slot.iter().filter(|index| **index != OWN).count();
        assert_eq!(named, table.len());
        assert!(table.get(table.own).is_none() && table.by_slot(Slot::OWN).is_none());
        let waiting = |prefix, c: &Contact| {
            table.bucket(c.id) == Some(prefix) && table.get(c.id).is_none() && !table.wants(c.id)
        };
        for (prefix, queue) in &table.full {
            assert_eq!(table.range(*prefix).len(), table.k);
            let listed = table.buckets().into_iter().find(|b| b.prefix.0 == prefix.value);
            let listed = listed.map(|b| (b.contacts.len(), b.is_full, b.waiting));
            assert_eq!(listed, Some((table.k, true, queue.len())));
            assert!(queue.len() <= REPLACEMENTS_MAX && queue.iter().all(|c| waiting(*prefix, c)));
        }
    }

    proptest! {
        #[test]
        fn is_made_of_buckets(
            own in any::<u128>(),
            bits in 1..=8u8,
            k in 1..5usize,
            steps in prop::collection::vec((any::<u8>(), any::<u128>(), 0..128u32), 1..300),
        ) {
            let mut table = RoutingTable::new(Id(own), own_address(), k, bits, PATIENCE, PLAIN);
            let mut model: BTreeMap<(u32, u128), Vec<Id>> = BTreeMap::new();
            let mut seen = Vec::new();
            let mut slots = PeerSlots::new(own_address());
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
                    let port = 7001 + now_us as u16;
                    let mut contact = contact(id.0, now_us as u64);
                    contact.address.set_port(port);
                    contact.slot = slots.begin(contact.address).expect("room");
                    prop_assert_eq!(table.insert(contact), expected);
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
                } else if let Some(address) = table.get(id).map(|contact| contact.address) {
                    let slot = slots.begin(address).expect("known");
                    table.renew(now_us as u64, id, now_us as u64, address, slot);
                }
                assert_consistent(&table);
            }
            let mut all: Vec<Id> = model.into_values().flatten().collect();
            all.sort();
            let mut ids: Vec<Id> = table.contacts().iter().map(|c| c.id).collect();
            ids.sort();
            prop_assert_eq!(&ids, &all);
        }

        #[test]
        fn closest_is_closest(
            own in any::<u128>(),
            target in any::<u128>(),
            others in prop::collection::vec((any::<u128>(), 0..128u32), 0..100),
            limit in 1..20usize,
        ) {
            let mut table = RoutingTable::new(Id(own), own_address(), 4, 3, PATIENCE, PLAIN);
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
        fn covers_what_it_can_know(
            own in any::<u128>(),
            (random, depth) in (any::<u128>(), 0..14u32),
            others in prop::collection::vec((any::<u128>(), 0..14u32), 0..80),
            k in 1..12usize,
            bits in 1..=4u8,
            limit in 1..20usize,
        ) {
            // Far from us there are full buckets, near us there is room.
            let target = own ^ (random >> depth);
            let placement = Placement::new(limit, 0);
            let mut table = RoutingTable::new(Id(own), own_address(), k, bits, PATIENCE, placement);
            let mut all = vec![Id(own)];
            for (random, depth) in others {
                let id = Id(own ^ (random >> depth));
                table.insert(contact(id.0, 0));
                if !all.contains(&id) {
                    all.push(id);
                }
            }
            prop_assert_eq!(table.knows_all(), table.full.is_empty());
            prop_assert!(!table.knows_all() || table.len() + 1 == all.len());
            let nearest = |mut ids: Vec<Id>| {
                ids.sort_by_key(|id| id.distance(Id(target)));
                ids.truncate(limit);
                ids
            };
            let known = nearest(table.ids.clone());
            // By the words of the definition: every bucket that matters has room left.
            let has_room = |id: Id| table.bucket(id).is_none_or(|b| table.range(b).len() < k);
            let covers = has_room(Id(target)) && known.iter().all(|id| has_room(*id));
            prop_assert_eq!(table.covers(Id(target), limit), covers);
            prop_assert_eq!(table.knows_replicas(Id(target)), covers);
            // And then nobody who was turned away is among the closest.
            prop_assert!(!covers || known == nearest(all));
        }

        #[test]
        fn an_id_at_a_level_is_of_that_level(
            own in any::<u128>(), bits in 1..=8u8, level in 0..16u32, random in any::<u128>(),
        ) {
            let table = RoutingTable::new(Id(own), own_address(), 20, bits, PATIENCE, PLAIN);
            prop_assert_eq!(table.level(table.id_at_level(level, random)), level);
        }
    }

    #[test]
    fn the_contacts_are_bounded() {
        let own = Id(0);
        let mut table = RoutingTable::new(own, own_address(), 4096, 8, PATIENCE, PLAIN);
        let id = |n: usize| (n as u128) << 112;
        for n in 1..=CONTACTS_MAX {
            assert_eq!(table.insert(contact(id(n), 0)), Inserted::Yes);
        }
        assert_eq!(table.insert(contact(id(CONTACTS_MAX) | 1, 0)), Inserted::No);
        assert_eq!(table.len(), CONTACTS_MAX);
        assert!(table.remove(Id(id(1))).is_some());
        assert_eq!(table.insert(contact(id(CONTACTS_MAX) | 1, 0)), Inserted::Yes);
        let last = table.replicas(Id(id(CONTACTS_MAX) | 1), 1);
        assert_eq!(last[0].id, Id(id(CONTACTS_MAX) | 1));
    }

    #[test]
    fn a_contact_is_small() {
        assert_eq!(size_of::<Contact>(), 128);
    }

    #[test]
    fn gives_up_a_node_only_after_misses_and_time_without_a_sign_of_life() {
        let mut table = RoutingTable::new(Id(0), own_address(), 20, 1, PATIENCE, PLAIN);
        table.insert(contact(7, 1_000_000));
        let id = Id(7);
        let is_dead = |table: &RoutingTable, now_us| {
            table.get(id).is_some_and(|contact| table.is_dead(now_us, contact))
        };
        assert_eq!(table.missed(1_100_000, Id(8), 1_050_000), Missed::Nothing);
        // Sent before the node was last heard.
        assert_eq!(table.missed(1_100_000, id, 900_000), Missed::Nothing);
        assert_eq!(table.missed(1_100_000, id, 1_050_000), Missed::Suspect);
        // A burst that was lost together counts once.
        assert_eq!(table.missed(1_100_001, id, 1_060_000), Missed::Nothing);
        assert_eq!(table.missed(1_200_000, id, 1_150_000), Missed::StillSuspect);
        // Time alone does not kill it.
        assert!(!is_dead(&table, 9_000_000));
        assert_eq!(table.missed(1_300_000, id, 1_250_000), Missed::StillSuspect);
        assert!(!is_dead(&table, 3_099_999));
        assert!(is_dead(&table, 3_100_000));
        // Neither does it die while others hear of it, but it stays suspect.
        assert_eq!(table.seen(2_000_000, id), Heard::Trusted);
        assert!(!is_dead(&table, 3_999_999));
        assert!(is_dead(&table, 4_000_000));
        assert!(table.get(id).is_some_and(Contact::is_suspect));
        assert_eq!(table.heard(4_000_000, id, Some(70)), Heard::Cleared);
        assert!(!table.get(id).is_some_and(Contact::is_suspect));
        assert!(!is_dead(&table, 9_000_000));
    }

    #[test]
    fn the_word_of_others_does_not_kill() {
        let mut table = RoutingTable::new(Id(0), own_address(), 20, 1, PATIENCE, PLAIN);
        table.insert(contact(7, 1_000_000));
        let id = Id(7);
        assert!(!table.accuse(1_000_000, Id(8)));
        assert!(table.accuse(1_100_000, id));
        assert!(!table.accuse(1_200_000, id));
        assert!(table.get(id).is_some_and(Contact::is_suspect));
        assert!(table.get(id).is_some_and(|contact| !table.is_dead(99_000_000, contact)));
        // A datagram of its own proves them wrong, as long as it misses nothing of ours.
        assert_eq!(table.seen(1_300_000, id), Heard::Cleared);
        assert!(table.accuse(1_400_000, id));
        assert_eq!(table.missed(1_500_000, id, 1_400_000), Missed::StillSuspect);
        assert_eq!(table.seen(1_600_000, id), Heard::Trusted);
        assert!(table.get(id).is_some_and(Contact::is_suspect));
        table.renew(1_700_000, id, 5, ([10, 0, 0, 1], 7000).into(), Slot::OWN);
        assert!(table.get(id).is_some_and(|c| !c.is_suspect() && c.incarnation == 5));
    }

    #[test]
    fn contacts_follow_each_other() {
        let mut table = RoutingTable::new(Id(0), own_address(), 20, 1, PATIENCE, PLAIN);
        assert!(table.next(None).is_none());
        for id in [9, 3, 7] {
            table.insert(contact(id, 0));
        }
        let mut after = None;
        for id in [3, 7, 9] {
            after = table.next(after).map(|contact| contact.id);
            assert_eq!(after, Some(Id(id)));
        }
        assert!(table.next(after).is_none());
        assert_eq!(table.next(Some(Id(4))).map(|c| c.id), Some(Id(7)));
    }

    #[test]
    fn the_nodes_are_a_ring() {
        for (own, ring) in [(0, [3, 7, 9]), (5, [7, 9, 3]), (10, [3, 7, 9])] {
            let mut table = RoutingTable::new(Id(own), own_address(), 20, 1, PATIENCE, PLAIN);
            assert!(table.farther(0).is_none());
            for id in [9, 3, 7] {
                table.insert(contact(id, 0));
            }
            let found = (0..3).filter_map(|farther| table.farther(farther)).map(|c| c.id);
            assert_eq!(found.collect::<Vec<_>>(), ring.map(Id), "from {own}");
            assert!(table.farther(3).is_none());
        }
    }
}
