//! The session table: fixed capacity, shared by all workers, lock-free for readers and writers.
//! Never allocates after start, never evicts, never stalls: a full table is an outcome.
//!
//! Two arrays. A *bucket* is one cache line of eight words; a word that is not 0 publishes an
//! *entry* (also one cache line) under sixteen bits of the flow's hash:
//!
//! ```text
//! word    tag 16 | generation 16 | entry index + 1  32
//! entry   flow key 5 words | meta | value 2 words
//! meta    generation 16 | state 8 | flags 8 | last seen 32
//! ```
//!
//! An entry is written while nobody can see it, then published by one compare-and-swap of a free
//! word in one of the flow's two buckets; it is taken away by swapping the word back to 0. What
//! identifies a session (flow, owner, version) never changes while it is published; state, flags
//! and last-seen stamp share the meta word and change by compare-and-swap. An entry is reused
//! under another generation: a reader that was overtaken sees that the word or the generation
//! has changed and looks again.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use holdfast_dpdk::prefetch;
use holdfast_handoff::Version;
use holdfast_net::{FlowKey, HashKey};

use super::{Listed, Session, State, address_from_words, address_to_words};
use crate::time::Tick;

const SLOTS: usize = 8;
/// Looks at a flow's buckets before a lookup that is overtaken every time counts as a miss.
const ATTEMPTS: usize = 8;

const STATE_REDIRECT: u8 = 0;
const FLAG_UNPUBLISHED: u64 = 1 << 32;

#[repr(align(64))]
#[derive(Default)]
struct Bucket([AtomicU64; SLOTS]);

#[repr(align(64))]
#[derive(Default)]
struct Entry {
    key: [AtomicU64; 5],
    meta: AtomicU64,
    value: [AtomicU64; 2],
}

/// A published entry as it was when it was looked up. Using it after the entry has gone does no
/// harm: it is then refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    place: Place,
    word: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    bucket: usize,
    slot: usize,
}

/// What a lookup found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// For changing the entry.
    pub handle: Handle,
    /// What it says.
    pub session: Session,
    /// When its last packet was seen.
    pub last_seen: Tick,
}

/// How an insertion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    /// The entry is in the table.
    Inserted(Handle),
    /// The flow was already there; nothing was changed.
    Exists(Found),
    /// There is no room; nothing was changed.
    Full,
}

/// How a replacement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// The new entry is in the table, in the place of the old one.
    Replaced(Handle),
    /// The old entry has gone; nothing was changed.
    Gone,
    /// There is no room for the new one beside the old one; nothing was changed.
    Full,
}

/// How many entries of each kind there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Local sessions, half-open ones included.
    pub local: u64,
    /// Half-open local sessions.
    pub half_open: u64,
    /// Redirects.
    pub redirects: u64,
    /// Entries that the table can hold.
    pub capacity: u64,
}

/// The table.
pub struct SessionTable {
    buckets: Box<[Bucket]>,
    entries: Box<[Entry]>,
    free: ArrayQueue<u32>,
    hash_key: HashKey,
    local: CachePadded<AtomicI64>,
    half_open: CachePadded<AtomicI64>,
    redirects: CachePadded<AtomicI64>,
}

impl SessionTable {
    /// A table for `capacity` entries (1 to 2^31), hashed under `hash_key`, which must be random
    /// and secret.
    ///
    /// # Panics
    /// If `capacity` is out of range.
    #[must_use]
    pub fn new(capacity: usize, hash_key: HashKey) -> SessionTable {
        assert!((1..=1 << 31).contains(&capacity), "capacity out of range");
        let free = ArrayQueue::new(capacity);
        for index in 0..capacity as u32 {
            // Cannot fail: the queue holds `capacity` indices.
            let _ = free.push(index);
        }
        // Half full at most, so that two buckets of eight have room until the entries run out.
        let buckets = (2 * capacity).div_ceil(SLOTS).next_power_of_two().max(2);
        SessionTable {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            entries: (0..capacity).map(|_| Entry::default()).collect(),
            free,
            hash_key,
            local: CachePadded::default(),
            half_open: CachePadded::default(),
            redirects: CachePadded::default(),
        }
    }

    /// How many entries of each kind there are.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let read = |gauge: &AtomicI64| u64::try_from(gauge.load(Ordering::Relaxed)).unwrap_or(0);
        Gauges {
            local: read(&self.local),
            half_open: read(&self.half_open),
            redirects: read(&self.redirects),
            capacity: self.entries.len() as u64,
        }
    }

    /// The keyed hash of a flow, for those who want to spread by it.
    #[must_use]
    pub fn hash(&self, flow: &FlowKey) -> u64 {
        flow.hash(&self.hash_key)
    }

    /// Looks up a batch: all hashes first, then all buckets, then all entries, so that the cache
    /// misses of a batch overlap. `found` gets one answer per flow, in order.
    pub fn lookup_batch<const N: usize>(
        &self,
        flows: &ArrayVec<FlowKey, N>,
        found: &mut ArrayVec<Option<Found>, N>,
    ) {
        found.clear();
        let mut hashes = ArrayVec::<u64, N>::new();
        for flow in flows {
            let hash = self.hash(flow);
            let [first, second] = self.bucket_indices(hash);
            prefetch(&self.buckets[first]);
            prefetch(&self.buckets[second]);
            hashes.push(hash);
        }
        for &hash in &hashes {
            if let Some((_, word)) = self.candidates(hash).next() {
                prefetch(self.entry(word));
            }
        }
        for (flow, &hash) in flows.iter().zip(&hashes) {
            found.push(self.lookup_hashed(flow, hash));
        }
    }

    /// Looks up one flow.
    #[must_use]
    pub fn lookup(&self, flow: &FlowKey) -> Option<Found> {
        self.lookup_hashed(flow, self.hash(flow))
    }

    fn lookup_hashed(&self, flow: &FlowKey, hash: u64) -> Option<Found> {
        'again: for _ in 0..ATTEMPTS {
            for (place, word) in self.candidates(hash) {
                match self.read(place, word) {
                    Some((key, found)) if key == *flow => return Some(found),
                    Some(_) => {}
                    None => continue 'again,
                }
            }
            return None;
        }
        None
    }

    /// Puts a session into the table unless the flow is there already.
    pub fn insert(&self, flow: &FlowKey, session: Session, now: Tick) -> Insert {
        let hash = self.hash(flow);
        if let Some(found) = self.lookup_hashed(flow, hash) {
            return Insert::Exists(found);
        }
        let Some((index, generation)) = self.prepare(flow, session, now) else {
            return Insert::Full;
        };
        let word = pack_word(hash, generation, index);
        let Some(place) = self.publish(hash, word) else {
            self.release(index);
            return Insert::Full;
        };
        self.gauge(&session, 1);
        self.settle(flow, hash, Handle { place, word })
    }

    /// Puts `session` in the place of what `handle` stands for, in one step: no lookup finds
    /// neither.
    pub fn replace(&self, flow: &FlowKey, handle: Handle, session: Session, now: Tick) -> Replace {
        let Some((index, generation)) = self.prepare(flow, session, now) else {
            return Replace::Full;
        };
        let new = pack_word(self.hash(flow), generation, index);
        let word = self.word(handle.place);
        if word.compare_exchange(handle.word, new, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            self.release(index);
            return Replace::Gone;
        }
        self.gauge(&session, 1);
        self.retire(handle.word);
        Replace::Replaced(Handle { place: handle.place, word: new })
    }

    /// Takes an entry out of the table. `false` when it has gone already.
    pub fn remove(&self, handle: Handle) -> bool {
        let word = self.word(handle.place);
        if word.compare_exchange(handle.word, 0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return false;
        }
        self.retire(handle.word);
        true
    }

    /// Stamps an entry as seen at `now`. Writes only when the stamp changes.
    pub fn touch(&self, found: &Found, now: Tick) {
        if found.last_seen != now {
            self.change(found.handle, |meta| (meta & !0xffff_ffff) | u64::from(now.0));
        }
    }

    /// Moves a local session from `from` to `to` and stamps it. `false` when its state was not
    /// `from` (any more): look again.
    pub fn transition(&self, handle: Handle, from: State, to: State, now: Tick) -> bool {
        let moved = self.change(handle, |meta| {
            if meta_state(meta) == from as u8 {
                (meta & !(0xff << 40) & !0xffff_ffff) | u64::from(to as u8) << 40 | u64::from(now.0)
            } else {
                meta
            }
        });
        let moved = moved.is_some_and(|before| meta_state(before) == from as u8);
        if moved && from != to {
            if from == State::HalfOpen {
                self.half_open.fetch_sub(1, Ordering::Relaxed);
            }
            if to == State::HalfOpen {
                self.half_open.fetch_add(1, Ordering::Relaxed);
            }
        }
        moved
    }

    /// Notes whether the DHT core has been told of a local session.
    pub fn set_published(&self, handle: Handle, published: bool) {
        self.change(handle, |meta| {
            if published { meta & !FLAG_UNPUBLISHED } else { meta | FLAG_UNPUBLISHED }
        });
    }

    /// Number of buckets: what [`SessionTable::visit`] counts in.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Shows every entry of one bucket (below [`SessionTable::buckets`]) to `see`, for sweeps and
    /// listings. Others may write meanwhile: an entry inserted or removed during a walk over all
    /// buckets may or may not be seen, all others are seen once.
    pub fn visit(&self, bucket: usize, mut see: impl FnMut(Handle, Listed)) {
        for slot in 0..SLOTS {
            let place = Place { bucket, slot };
            for _ in 0..ATTEMPTS {
                let word = self.word(place).load(Ordering::Acquire);
                if word == 0 {
                    break;
                }
                if let Some((flow, found)) = self.read(place, word) {
                    let Found { handle, session, last_seen } = found;
                    see(handle, Listed { flow, session, last_seen });
                    break;
                }
            }
        }
    }

    fn bucket_indices(&self, hash: u64) -> [usize; 2] {
        let mask = self.buckets.len() - 1;
        let first = hash as usize & mask;
        // Odd, so that the two buckets differ.
        let step = ((hash >> 32) as usize).wrapping_mul(0x9e37_79b1) | 1;
        [first, (first ^ step) & mask]
    }

    /// The published words of the flow's buckets that carry its tag, in the order in which
    /// duplicates are settled.
    fn candidates(&self, hash: u64) -> impl Iterator<Item = (Place, u64)> + '_ {
        self.places(hash).filter_map(move |place| {
            let word = self.word(place).load(Ordering::Acquire);
            (word != 0 && word >> 48 == hash >> 48).then_some((place, word))
        })
    }

    fn places(&self, hash: u64) -> impl Iterator<Item = Place> {
        self.bucket_indices(hash)
            .into_iter()
            .flat_map(|bucket| (0..SLOTS).map(move |slot| Place { bucket, slot }))
    }

    fn word(&self, place: Place) -> &AtomicU64 {
        &self.buckets[place.bucket].0[place.slot]
    }

    fn entry(&self, word: u64) -> &Entry {
        // A published word's index is that of an entry plus one.
        &self.entries[(word as u32).wrapping_sub(1) as usize]
    }

    /// Reads the entry that `word` at `place` publishes; `None` when it changed meanwhile.
    fn read(&self, place: Place, word: u64) -> Option<(FlowKey, Found)> {
        let entry = self.entry(word);
        let meta = entry.meta.load(Ordering::Acquire);
        let mut key = [0; 5];
        for (word, atomic) in key.iter_mut().zip(&entry.key) {
            *word = atomic.load(Ordering::Relaxed);
        }
        let value =
            [entry.value[0].load(Ordering::Relaxed), entry.value[1].load(Ordering::Relaxed)];
        // Pairs with the fence in `prepare`: if any load above saw the entry's next life, the
        // load below sees that the word was taken away before it.
        fence(Ordering::Acquire);
        if self.word(place).load(Ordering::Relaxed) != word || meta >> 48 != word_generation(word) {
            return None;
        }
        let found = Found {
            handle: Handle { place, word },
            session: unpack_session(meta, value),
            last_seen: Tick(meta as u32),
        };
        Some((FlowKey::from_trusted_words(key), found))
    }

    /// Takes a free entry and fills it, unseen. Its index and generation.
    fn prepare(&self, flow: &FlowKey, session: Session, now: Tick) -> Option<(u32, u64)> {
        let index = self.free.pop()?;
        let entry = &self.entries[index as usize];
        let generation = entry.meta.load(Ordering::Relaxed) >> 48;
        fence(Ordering::Release);
        let (meta, value) = pack_session(session);
        entry.meta.store(generation << 48 | meta | u64::from(now.0), Ordering::Relaxed);
        for (atomic, word) in entry.key.iter().zip(flow.to_words()) {
            atomic.store(word, Ordering::Relaxed);
        }
        for (atomic, word) in entry.value.iter().zip(value) {
            atomic.store(word, Ordering::Relaxed);
        }
        Some((index, generation))
    }

    /// Puts `word` into a free place of the emptier of the flow's two buckets.
    fn publish(&self, hash: u64, word: u64) -> Option<Place> {
        let load = |bucket: usize| {
            let words = self.buckets[bucket].0.iter();
            words.filter(|word| word.load(Ordering::Relaxed) != 0).count()
        };
        let [first, second] = self.bucket_indices(hash);
        let order = if load(second) < load(first) { [second, first] } else { [first, second] };
        for bucket in order {
            for slot in 0..SLOTS {
                let place = Place { bucket, slot };
                let swap =
                    self.word(place).compare_exchange(0, word, Ordering::SeqCst, Ordering::Relaxed);
                if swap.is_ok() {
                    return Some(place);
                }
            }
        }
        None
    }

    /// Two workers may have inserted one flow at the same time. Each looks again after it has
    /// published, so at least one sees both; whoever does takes the later place away.
    fn settle(&self, flow: &FlowKey, hash: u64, mine: Handle) -> Insert {
        fence(Ordering::SeqCst);
        let mut mine_is_first = false;
        for (place, word) in self.candidates(hash) {
            if place == mine.place {
                mine_is_first = true;
                continue;
            }
            let Some((key, found)) = self.read(place, word) else {
                continue;
            };
            if key != *flow {
                continue;
            }
            if mine_is_first {
                self.remove(found.handle);
            } else if self.remove(mine) {
                return Insert::Exists(found);
            }
        }
        Insert::Inserted(mine)
    }

    /// Gives back the entry of a word that was just taken away.
    fn retire(&self, word: u64) {
        let entry = self.entry(word);
        // The next generation begins: whoever still holds a handle is refused from here on, so
        // what the entry was last is known exactly and leaves the gauges as it came.
        let meta = entry.meta.fetch_add(1 << 48, Ordering::AcqRel);
        let value =
            [entry.value[0].load(Ordering::Relaxed), entry.value[1].load(Ordering::Relaxed)];
        self.gauge(&unpack_session(meta, value), -1);
        self.release((word as u32).wrapping_sub(1));
    }

    fn release(&self, index: u32) {
        // Cannot fail: the queue has room for every index, and each is in it at most once.
        let _ = self.free.push(index);
    }

    fn gauge(&self, session: &Session, by: i64) {
        match session {
            Session::Local { state, .. } => {
                self.local.fetch_add(by, Ordering::Relaxed);
                if *state == State::HalfOpen {
                    self.half_open.fetch_add(by, Ordering::Relaxed);
                }
            }
            Session::Redirect { .. } => {
                self.redirects.fetch_add(by, Ordering::Relaxed);
            }
        }
    }

    /// Changes the meta word of the entry that `handle` stands for; what it was before, or
    /// `None` when the entry has gone.
    fn change(&self, handle: Handle, new: impl Fn(u64) -> u64) -> Option<u64> {
        let entry = self.entry(handle.word);
        let mut meta = entry.meta.load(Ordering::Acquire);
        loop {
            if meta >> 48 != word_generation(handle.word) {
                return None;
            }
            let wanted = new(meta);
            if wanted == meta {
                return Some(meta);
            }
            match entry.meta.compare_exchange_weak(
                meta,
                wanted,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(meta),
                Err(newer) => meta = newer,
            }
        }
    }
}

fn pack_word(hash: u64, generation: u64, index: u32) -> u64 {
    (hash >> 48) << 48 | generation << 32 | u64::from(index + 1)
}

fn word_generation(word: u64) -> u64 {
    (word >> 32) & 0xffff
}

fn meta_state(meta: u64) -> u8 {
    (meta >> 40) as u8
}

fn pack_session(session: Session) -> (u64, [u64; 2]) {
    match session {
        Session::Local { state, version, published } => {
            let flags = if published { 0 } else { FLAG_UNPUBLISHED };
            (u64::from(state as u8) << 40 | flags, [version.0, 0])
        }
        Session::Redirect { owner } => (u64::from(STATE_REDIRECT) << 40, address_to_words(owner)),
    }
}

fn unpack_session(meta: u64, value: [u64; 2]) -> Session {
    match State::from_u8(meta_state(meta)) {
        Some(state) => Session::Local {
            state,
            version: Version(value[0]),
            published: meta & FLAG_UNPUBLISHED == 0,
        },
        None => Session::Redirect { owner: address_from_words(value) },
    }
}

impl std::fmt::Debug for SessionTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionTable").field("gauges", &self.gauges()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::net::IpAddr;
    use std::sync::atomic::AtomicBool;

    const KEY: HashKey = HashKey([1, 2]);

    fn flow(number: u32) -> FlowKey {
        if number.is_multiple_of(2) {
            FlowKey::tcp_v4(number.to_be_bytes(), 1000, [192, 168, 0, 1], 80)
        } else {
            let mut client = [0; 16];
            client[12..].copy_from_slice(&number.to_be_bytes());
            FlowKey::tcp_v6(client, 1000, [9; 16], 80)
        }
    }

    fn local(state: State, version: u64) -> Session {
        Session::Local { state, version: Version(version), published: true }
    }

    fn redirect(owner: IpAddr) -> Session {
        Session::Redirect { owner }
    }

    fn inserted(outcome: &Insert) -> bool {
        matches!(outcome, Insert::Inserted(_))
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u32, u64),
        InsertRedirect(u32, u8),
        Replace(u32, u64),
        Remove(u32),
        Close(u32),
        Unpublish(u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        let number = 0u32..24;
        prop_oneof![
            (number.clone(), any::<u64>()).prop_map(|(n, v)| Op::Insert(n, v)),
            (number.clone(), any::<u8>()).prop_map(|(n, o)| Op::InsertRedirect(n, o)),
            (number.clone(), any::<u64>()).prop_map(|(n, v)| Op::Replace(n, v)),
            number.clone().prop_map(Op::Remove),
            number.clone().prop_map(Op::Close),
            number.prop_map(Op::Unpublish),
        ]
    }

    proptest! {
        /// The table does what a `HashMap` of bounded size does.
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec(op(), 0..200)) {
            const CAPACITY: usize = 16;
            let table = SessionTable::new(CAPACITY, KEY);
            let mut model: HashMap<u32, Session> = HashMap::new();
            let now = Tick(7);
            for op in ops {
                match op {
                    Op::Insert(n, v) | Op::Replace(n, v) if !model.contains_key(&n) => {
                        let session = local(State::HalfOpen, v);
                        let expected = model.len() < CAPACITY;
                        prop_assert_eq!(inserted(&table.insert(&flow(n), session, now)), expected);
                        if expected { model.insert(n, session); }
                    }
                    Op::Insert(n, v) => {
                        let outcome = table.insert(&flow(n), local(State::HalfOpen, v), now);
                        let Insert::Exists(found) = outcome else { panic!("{outcome:?}") };
                        prop_assert_eq!(found.session, model[&n]);
                    }
                    Op::InsertRedirect(n, o) => {
                        let session = redirect(IpAddr::from([10, 0, 0, o]));
                        let expected = !model.contains_key(&n) && model.len() < CAPACITY;
                        prop_assert_eq!(inserted(&table.insert(&flow(n), session, now)), expected);
                        if expected { model.insert(n, session); }
                    }
                    Op::Replace(n, v) => {
                        let session = local(State::Established, v);
                        let found = table.lookup(&flow(n)).unwrap();
                        let room = model.len() < CAPACITY;
                        let outcome = table.replace(&flow(n), found.handle, session, now);
                        prop_assert_eq!(matches!(outcome, Replace::Replaced(_)), room);
                        prop_assert_eq!(outcome == Replace::Full, !room);
                        prop_assert!(!room || !table.remove(found.handle), "the old handle is dead");
                        if room { model.insert(n, session); }
                    }
                    Op::Remove(n) => {
                        let found = table.lookup(&flow(n));
                        prop_assert_eq!(found.is_some(), model.remove(&n).is_some());
                        if let Some(found) = found {
                            prop_assert!(table.remove(found.handle));
                            prop_assert!(!table.remove(found.handle));
                            let session = local(State::Established, 0);
                            let again = table.replace(&flow(n), found.handle, session, now);
                            prop_assert_eq!(again, Replace::Gone);
                            prop_assert!(!table.transition(found.handle, State::HalfOpen, State::Closed, now));
                        }
                    }
                    Op::Close(n) => {
                        if let Some(found) = table.lookup(&flow(n)) {
                            let moved = table.transition(found.handle, State::HalfOpen, State::Closed, Tick(9));
                            if let Some(Session::Local { state, .. }) = model.get_mut(&n) {
                                prop_assert_eq!(moved, *state == State::HalfOpen);
                                if moved { *state = State::Closed; }
                            } else {
                                prop_assert!(!moved);
                            }
                        }
                    }
                    Op::Unpublish(n) => {
                        if let Some(found) = table.lookup(&flow(n))
                            && let Some(Session::Local { published, .. }) = model.get_mut(&n)
                        {
                            table.set_published(found.handle, false);
                            *published = false;
                        }
                    }
                }
            }
            let mut flows = ArrayVec::<FlowKey, 32>::new();
            flows.extend((0..24).map(flow));
            let mut found = ArrayVec::new();
            table.lookup_batch(&flows, &mut found);
            for (n, found) in (0u32..).zip(found) {
                prop_assert_eq!(found.map(|f| f.session), model.get(&n).copied());
            }
            let mut seen = 0;
            for bucket in 0..table.buckets() {
                table.visit(bucket, |_, listed| {
                    seen += 1;
                    assert!(model.iter().any(|(n, s)| flow(*n) == listed.flow && *s == listed.session));
                });
            }
            prop_assert_eq!(seen, model.len());
            let gauges = table.gauges();
            let count = |wanted: fn(&Session) -> bool| model.values().filter(|s| wanted(s)).count() as u64;
            prop_assert_eq!(gauges.redirects, count(|s| matches!(s, Session::Redirect { .. })));
            prop_assert_eq!(gauges.local, count(|s| matches!(s, Session::Local { .. })));
            prop_assert_eq!(gauges.half_open, count(|s| matches!(s, Session::Local { state: State::HalfOpen, .. })));
        }

        #[test]
        fn owners_survive(octets in any::<[u8; 16]>(), v4 in any::<[u8; 4]>()) {
            let v6 = std::net::Ipv6Addr::from(octets);
            prop_assume!(v6.to_ipv4_mapped().is_none());
            for owner in [IpAddr::from(v4), IpAddr::V6(v6)] {
                let table = SessionTable::new(1, KEY);
                prop_assert!(inserted(&table.insert(&flow(1), redirect(owner), Tick(0))));
                prop_assert_eq!(table.lookup(&flow(1)).unwrap().session, redirect(owner));
            }
        }
    }

    /// Every entry can be used before the first refusal.
    #[test]
    fn fills_to_its_capacity() {
        let table = SessionTable::new(10_000, KEY);
        for n in 0..10_000 {
            assert!(
                inserted(&table.insert(&flow(n), local(State::Established, 1), Tick(0))),
                "{n}"
            );
        }
        assert_eq!(
            table.insert(&flow(10_000), local(State::Established, 1), Tick(0)),
            Insert::Full
        );
        assert_eq!(table.gauges().local, 10_000);
        assert!(table.remove(table.lookup(&flow(3)).unwrap().handle));
        assert!(inserted(&table.insert(&flow(10_000), local(State::Established, 1), Tick(0))));
    }

    /// Two writers on the same few flows: nothing is ever read that belongs to another flow, and
    /// afterwards each flow is there at most once and the gauges are right.
    #[test]
    fn writers_at_odds_leave_a_sound_table() {
        const FLOWS: u32 = 12;
        let table = SessionTable::new(16, KEY);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in 0..2u32 {
                let (table, stop) = (&table, &stop);
                scope.spawn(move || {
                    let mut random = u64::from(writer) + 1;
                    while !stop.load(Ordering::Relaxed) {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let n = (random >> 33) as u32 % FLOWS;
                        // The version names the flow, so that a wrong read shows.
                        let session = local(State::Established, u64::from(n));
                        match (random >> 60, table.lookup(&flow(n))) {
                            (0..8, _) => {
                                table.insert(&flow(n), session, Tick(n));
                            }
                            (8..10, Some(found)) => {
                                table.replace(&flow(n), found.handle, session, Tick(n));
                            }
                            (_, Some(found)) => {
                                table.remove(found.handle);
                            }
                            (_, None) => {}
                        }
                    }
                });
            }
            let end = std::time::Instant::now() + std::time::Duration::from_millis(500);
            while std::time::Instant::now() < end {
                for n in 0..FLOWS {
                    if let Some(found) = table.lookup(&flow(n)) {
                        assert_eq!(found.session, local(State::Established, u64::from(n)));
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let mut seen = HashMap::new();
        for bucket in 0..table.buckets() {
            table.visit(bucket, |_, listed| *seen.entry(listed.flow).or_insert(0) += 1);
        }
        assert!(seen.values().all(|&times| times == 1), "{seen:?}");
        assert_eq!(table.gauges().local, seen.len() as u64);
        assert_eq!(table.free.len(), 16 - seen.len());
    }
}
