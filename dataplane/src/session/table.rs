//! The session table: fixed capacity, shared by all workers, lock-free for readers and writers.
//! Never allocates after start, never evicts, never stalls: a full table is an outcome.
//!
//! A table of *buckets*, each one cache line ([`super::bucket`] draws it), for each address
//! family. A hit reads one line, and so does a miss but for a few in a hundred.
//!
//! *Exact in few bits.* The key of an IPv4 flow is 54 bits ([`SessionKey`]). It is split: the low
//! bits, combined by exclusive or with a keyed hash of the others, choose the bucket, and only the
//! others are stored. Bucket and stored bits together give the whole key back, so an entry fits
//! one word beside its state, its time stamp and its owner, and no two flows are ever taken for
//! each other. Flows that differ only in the low bits, as all of one client do, never meet in one
//! bucket. An IPv6 entry keeps its whole key, in three words.
//!
//! *Where entries lie.* In their home bucket, or in the first of some more that had room when
//! they came. They are never moved. What of an entry is seldom needed, its version, lies
//! outside of the line.

use std::hash::Hasher;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use arrayvec::ArrayVec;
use crossbeam::utils::CachePadded;
use holdfast_dpdk::{Line, Lines, prefetch, tsc};
use holdfast_handoff::Version;
use holdfast_net::{FlowKey, HashKey};
use siphasher::sip::SipHasher13;

use super::bucket::{self, KeyV6, Layout, META, REMAINDER_BITS, STATE, V4, V6};
use super::changes::{Change, Changes};
use super::expiry::Timeouts;
use super::owners::Owners;
use super::sync::settle_fence;
use super::word::{self, Ageing, Kind, PUBLICATION, PUBLISHED, VERSIONED};
use super::{Listed, Session, State};
use crate::service::{KEY_BITS_V4, Services, SessionKey};
use crate::session::recent::Recent;
use crate::time::Tick;

/// Lookups that the memory is asked for before the first of them is looked at.
pub const AHEAD: usize = 32;
/// Entries that a table can have, at most.
pub const CAPACITY_MAX: usize = 1 << 27;

/// The part of the slots that a table's capacity takes up at most, in percent: of IPv4's and
/// IPv6's, whose buckets have fewer.
const LOAD_PERCENT: (usize, usize) = (60, 40);
/// So many low bits of an IPv4 key the bucket's index must hold, for the others to fit a word.
const INDEX_BITS_MIN_V4: u32 = KEY_BITS_V4 - REMAINDER_BITS;
/// As many buckets as an entry has to choose from, so that all differ.
const INDEX_BITS_MIN_V6: u32 = V6::PROBES.ilog2();
/// Flows remembered that are unknown, and that open: at a million SYNs a second, those of 60 ms.
const UNKNOWN_PLACES: usize = 4096;
const OPENING_PLACES: usize = 65_536;
const WORDS: u32 = bucket::WORDS as u32;

/// An entry as a lookup saw it. Using it after the entry has changed or gone does no harm: it is
/// then refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    place: Place,
    word: u64,
}

/// Family, bucket and position in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(NonZeroU32);

impl Place {
    const V6: u32 = 1 << 31;
    /// Set in all of them, so that none is 0 and an `Option` of one is no larger.
    const SOME: u32 = 1 << 30;

    #[inline(always)]
    fn new<L: Layout>(bucket: u32, position: usize) -> Place {
        let family = if L::IS_V6 { Place::V6 } else { 0 };
        let place = family | bucket << bucket::WORDS.ilog2() | position as u32;
        Place(NonZeroU32::new(Place::SOME | place).unwrap_or(NonZeroU32::MIN))
    }

    #[inline(always)]
    fn is_v6(self) -> bool {
        self.0.get() & Place::V6 != 0
    }

    #[inline(always)]
    fn position(self) -> usize {
        (self.0.get() % WORDS) as usize
    }

    #[inline(always)]
    fn bucket(self) -> u32 {
        (self.0.get() & !(Place::V6 | Place::SOME)) / WORDS
    }
}

impl Entry {
    /// What it is.
    #[inline(always)]
    #[must_use]
    pub fn kind(&self) -> Kind {
        word::kind(self.word)
    }

    /// Whether it is a local session of which the DHT core has been told.
    #[inline]
    #[must_use]
    pub fn is_published(&self) -> bool {
        word::is_published(self.word)
    }

    /// Whether it is a local session of which the DHT core could be told and has not been.
    #[inline]
    #[must_use]
    pub fn is_unpublished(&self) -> bool {
        word::is_versioned(self.word) && !word::is_published(self.word)
    }
}

/// What a lookup by flow found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// For changing the entry.
    pub entry: Entry,
    /// What it says.
    pub session: Session,
    /// How long ago its last packet was seen, in milliseconds and to within a part of the
    /// timeout of its state.
    pub idle_ms: u64,
}

/// How an insertion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    /// The entry is in the table.
    Inserted(Entry),
    /// The flow was already there; nothing was changed.
    Exists(Entry),
    /// There is no room, neither in all nor near the flow's bucket; nothing was changed.
    Full,
}

/// How many entries of each kind there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Local sessions, half-open ones included.
    pub local: u64,
    /// Half-open local sessions.
    pub half_open: u64,
    /// Local sessions that are over and only linger.
    pub lingering: u64,
    /// Redirects.
    pub redirects: u64,
    /// Entries outside of their home bucket, which a hit needs more than one line for.
    pub displaced: u64,
    /// Entries that the table can hold.
    pub capacity: u64,
}

/// Where a flow is looked for: its buckets.
#[derive(Debug, Clone, Copy)]
struct At<K> {
    key: K,
    home: u32,
    hash: u64,
}

impl<K> At<K> {
    /// Between one probe and the next; odd, so that all probes differ.
    #[inline]
    fn step(&self) -> u32 {
        (self.hash >> 32) as u32 | 1
    }

    /// Which of a bucket's counters its passing by is counted in.
    #[inline(always)]
    fn counter(&self) -> u32 {
        (self.hash >> 60) as u32
    }

    fn without_key(&self) -> At<()> {
        At { key: (), home: self.home, hash: self.hash }
    }
}

/// A flow's place in the table, found out by hashing it: what [`SessionTable::locate`] makes and
/// all else takes.
#[derive(Debug, Clone, Copy)]
pub struct Located(AtFamily);

#[derive(Debug, Clone, Copy)]
enum AtFamily {
    V4(At<u64>),
    V6(At<KeyV6>),
}

impl Located {
    /// 16 bits that are the same for all packets of the flow and spread flows evenly.
    #[inline]
    #[must_use]
    pub fn entropy(&self) -> u16 {
        match &self.0 {
            AtFamily::V4(at) => at.home as u16 ^ (at.hash >> 40) as u16,
            AtFamily::V6(at) => (at.hash >> 40) as u16,
        }
    }
}

/// The table.
pub struct SessionTable {
    /// Whoever sets other services writes it. Never read on the way of a segment whose flow has an
    /// entry.
    services: ArcSwap<Services>,
    /// Families that there is memory for.
    families: (bool, bool),
    owners: Owners,
    unknown: Recent,
    opening: Recent,
    ageing: Ageing,
    v4: Family,
    v6: Family,
    capacity: u64,
    hash_key: HashKey,
    local: CachePadded<AtomicI64>,
    half_open: CachePadded<AtomicI64>,
    lingering: CachePadded<AtomicI64>,
    redirects: CachePadded<AtomicI64>,
    displaced: CachePadded<AtomicI64>,
    changes: Changes,
}

/// The entries of one address family.
struct Family {
    /// Buckets; a power of two of them.
    lines: Lines,
    /// The versions of local sessions, `2^version_shift` to a bucket.
    versions: Lines,
    version_shift: u32,
    index_mask: u32,
    keys: [u64; 4],
}

/// There is not enough memory for the table.
pub type NoMemory = holdfast_dpdk::Error;

/// Of several threads that count, one can be ahead: never below 0.
fn read(gauge: &AtomicI64) -> u64 {
    u64::try_from(gauge.load(Ordering::Relaxed)).unwrap_or(0)
}

impl SessionTable {
    /// A table for `capacity` entries (1 to [`CAPACITY_MAX`]) of flows of `services`, hashed
    /// under `hash_key`, which must be random and secret. Takes memory for the families that
    /// there are services of, so much that nearly all entries are in their home bucket.
    ///
    /// # Errors
    /// [`NoMemory`].
    ///
    /// # Panics
    /// If `capacity` is out of range.
    pub fn new(
        services: Services,
        capacity: usize,
        timeouts: &Timeouts,
        hash_key: HashKey,
    ) -> Result<SessionTable, NoMemory> {
        SessionTable::with_load(services, capacity, timeouts, hash_key, LOAD_PERCENT)
    }

    /// [`SessionTable::new`] in which the capacity takes up another part of the slots at most:
    /// `load`, in percent, of those of IPv4 and of IPv6. Up to 80 none is refused for want of a
    /// slot near its bucket.
    ///
    /// # Errors
    /// [`NoMemory`].
    ///
    /// # Panics
    /// If `capacity` or `load` is out of range.
    pub fn with_load(
        services: Services,
        capacity: usize,
        timeouts: &Timeouts,
        hash_key: HashKey,
        load: (usize, usize),
    ) -> Result<SessionTable, NoMemory> {
        assert!((1..=CAPACITY_MAX).contains(&capacity), "capacity out of range");
        assert!([load.0, load.1].iter().all(|percent| (20..=100).contains(percent)), "load");
        let families @ (has_v4, has_v6) = services.families();
        let slots = |has: bool, percent| if has { capacity * 100 / percent } else { 1 };
        Ok(SessionTable {
            services: ArcSwap::from_pointee(services),
            families,
            owners: Owners::default(),
            unknown: Recent::new(UNKNOWN_PLACES),
            opening: Recent::new(OPENING_PLACES),
            ageing: Ageing::new(timeouts),
            v4: Family::new::<V4>(slots(has_v4, load.0), INDEX_BITS_MIN_V4, 3, &hash_key)?,
            v6: Family::new::<V6>(slots(has_v6, load.1), INDEX_BITS_MIN_V6, 1, &hash_key)?,
            capacity: capacity as u64,
            hash_key,
            local: CachePadded::default(),
            half_open: CachePadded::default(),
            lingering: CachePadded::default(),
            redirects: CachePadded::default(),
            displaced: CachePadded::default(),
            changes: Changes::default(),
        })
    }

    /// The services whose flows it holds.
    #[must_use]
    pub fn services(&self) -> Arc<Services> {
        self.services.load_full()
    }

    /// The families, IPv4 and IPv6, that it has memory for: of other services it holds nothing.
    #[must_use]
    pub fn families(&self) -> (bool, bool) {
        self.families
    }

    /// Goes on with other services, which must have been made by [`Services::followed_by`] of the
    /// ones until now. The workers' sweeps take away the entries of those that are none any more.
    pub fn set_services(&self, services: Services) {
        self.services.store(Arc::new(services));
    }

    /// Goes on with other timeouts, none longer than [`SessionTable::timeouts_max`] says. Entries
    /// that are idle for longer go with the next sweep.
    pub fn set_timeouts(&self, timeouts: &Timeouts) {
        self.ageing.set_timeouts(timeouts);
    }

    /// The longest timeouts that it can keep: its entries' time stamps are made for those that it
    /// began with.
    #[must_use]
    pub fn timeouts_max(&self) -> Timeouts {
        self.ageing.timeouts_max()
    }

    /// The owners that its redirects point to.
    #[must_use]
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// Flows of which neither it nor the DHT knew anything a moment ago.
    #[must_use]
    pub fn unknown(&self) -> &Recent {
        &self.unknown
    }

    /// Flows of which a SYN came a moment ago.
    #[must_use]
    pub fn opening(&self) -> &Recent {
        &self.opening
    }

    /// Its changes, for those who watch them.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// How many half-open local sessions there are; one cache line, unlike [`SessionTable::gauges`].
    #[must_use]
    pub fn half_open(&self) -> u64 {
        read(&self.half_open)
    }

    /// How many entries of each kind there are.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            local: read(&self.local),
            half_open: self.half_open(),
            lingering: read(&self.lingering),
            redirects: read(&self.redirects),
            displaced: read(&self.displaced),
            capacity: self.capacity,
        }
    }

    /// Size in bytes of the pages that buckets lie in: the smaller where families differ.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        let (has_v4, has_v6) = self.families;
        let families = [(has_v4, &self.v4), (has_v6, &self.v6)].into_iter();
        let pages = families.filter(|(has, _)| *has).map(|(_, family)| family.lines.page_bytes());
        pages.min().unwrap_or_default()
    }

    /// Slots for entries, of IPv4 and of IPv6.
    #[must_use]
    pub fn slots(&self) -> (usize, usize) {
        (self.v4.lines.len() * V4::POSITIONS.len(), self.v6.lines.len() * V6::POSITIONS.len())
    }

    /// A keyed hash of a flow, for those who want to spread by it.
    #[must_use]
    pub fn hash(&self, flow: &FlowKey) -> u64 {
        flow.hash(&self.hash_key)
    }

    /// Finds out where a flow is looked for.
    #[inline(always)]
    #[must_use]
    pub fn locate(&self, key: &SessionKey) -> Located {
        Located(match *key {
            SessionKey::V4(word) => AtFamily::V4(self.v4.locate_v4(word)),
            SessionKey::V6 { client, tail } => {
                AtFamily::V6(self.v6.locate_v6(KeyV6 { client, tail }))
            }
        })
    }

    /// Asks memory for the line of a flow's bucket. To be done for many flows, one close after
    /// the other, before the first [`SessionTable::find`].
    #[inline(always)]
    pub fn prefetch(&self, at: &Located) {
        prefetch(match &at.0 {
            AtFamily::V4(at) => self.v4.line(at.home),
            AtFamily::V6(at) => self.v6.line(at.home),
        });
    }

    /// [`SessionTable::locate`] for a flow; `None` when it is of no service of ours.
    #[must_use]
    pub fn locate_flow(&self, flow: &FlowKey) -> Option<Located> {
        Some(self.locate(&self.services.load().key(flow)?))
    }

    /// The flow that was located.
    #[must_use]
    pub fn flow(&self, at: &Located) -> Option<FlowKey> {
        let key = match &at.0 {
            AtFamily::V4(at) => SessionKey::V4(self.v4.key_at(at)),
            AtFamily::V6(at) => SessionKey::V6 { client: at.key.client, tail: at.key.tail },
        };
        self.services.load().flow(&key)
    }

    /// [`SessionTable::prefetch`], and for what an insertion writes beside the bucket.
    #[inline]
    pub fn prefetch_insert(&self, at: &Located) {
        let (family, home) = match &at.0 {
            AtFamily::V4(at) => (&self.v4, at.home),
            AtFamily::V6(at) => (&self.v6, at.home),
        };
        prefetch(family.line(home));
        prefetch(family.version(home, 0));
    }

    /// Looks a located flow up.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, at: &Located) -> Option<Entry> {
        match &at.0 {
            AtFamily::V4(at) => self.v4.find::<V4>(at),
            AtFamily::V6(at) => self.v6.find::<V6>(at),
        }
    }

    /// Looks up as many as there are: `found` gets each one's index and entry, in order.
    #[inline(always)]
    pub fn find_all(&self, keys: &[SessionKey], found: impl FnMut(usize, Option<Entry>)) {
        match keys.first() {
            // Larger tables of which each lookup reads more: their walks through the page table
            // overlap best when they are begun together.
            Some(SessionKey::V6 { .. }) => self.find_in_bursts(keys, found),
            _ => self.find_in_stream(keys, found),
        }
    }

    /// [`AHEAD`] lines are asked for, then as many looked at.
    #[inline(always)]
    fn find_in_bursts(&self, keys: &[SessionKey], mut found: impl FnMut(usize, Option<Entry>)) {
        let mut index = 0;
        for burst in keys.chunks(AHEAD) {
            let located: ArrayVec<Located, AHEAD> = burst.iter().map(|key| self.ask(key)).collect();
            for at in &located {
                found(index, self.find(at));
                index += 1;
            }
        }
    }

    /// One line is asked for, and the one asked for [`AHEAD`] flows before looked at: memory has
    /// no more to do at once than it can.
    #[inline(always)]
    fn find_in_stream(&self, keys: &[SessionKey], mut found: impl FnMut(usize, Option<Entry>)) {
        let (first, rest) = keys.split_at(AHEAD.min(keys.len()));
        let mut located: ArrayVec<Located, AHEAD> = first.iter().map(|key| self.ask(key)).collect();
        let mut index = 0;
        for (key, at) in rest.iter().zip((0..AHEAD).cycle()) {
            let next = self.ask(key);
            found(index, self.find(&located[at]));
            located[at] = next;
            index += 1;
        }
        let (newest, oldest) = located.split_at(rest.len() % AHEAD);
        for at in oldest.iter().chain(newest) {
            found(index, self.find(at));
            index += 1;
        }
    }

    #[inline(always)]
    fn ask(&self, key: &SessionKey) -> Located {
        let at = self.locate(key);
        self.prefetch(&at);
        at
    }

    /// Looks up one flow, with all that is known of it.
    #[must_use]
    pub fn lookup(&self, flow: &FlowKey, now: Tick) -> Option<Found> {
        self.view(&self.find(&self.locate_flow(flow)?)?, now)
    }

    /// What an entry says, if it is still there.
    #[must_use]
    pub fn view(&self, entry: &Entry, now: Tick) -> Option<Found> {
        let entry = self.again(entry)?;
        let session = match entry.kind() {
            Kind::Local(state) => Session::Local {
                state,
                version: self.version(&entry).unwrap_or(Version(0)),
                published: entry.is_published(),
            },
            Kind::Redirect(owner) => Session::Redirect { owner: self.owners.locator(owner)? },
        };
        Some(Found { entry, session, idle_ms: self.ageing.idle_ms(entry.word, now) })
    }

    /// The version of a local session; `None` when the entry has changed, or while the worker
    /// that made it has not put its version there.
    #[must_use]
    pub fn version(&self, entry: &Entry) -> Option<Version> {
        if !word::is_versioned(entry.word) {
            return None;
        }
        let version = self.version_cell(entry.place).load(Ordering::Acquire);
        // Nobody has begun another session in its place, whose version this would be.
        let again = self.word(entry.place).load(Ordering::Acquire);
        word::same_but_stamp(entry.word, again).then_some(Version(version))
    }

    /// Puts a session into the table unless the flow is there already.
    #[inline]
    pub fn insert(&self, at: &Located, session: Session, now: Tick) -> Insert {
        let Some(meta) = self.meta(session, now) else {
            return Insert::Full;
        };
        let insert = match &at.0 {
            AtFamily::V4(at) => self.insert_in::<V4>(&self.v4, at, meta),
            AtFamily::V6(at) => self.insert_in::<V6>(&self.v6, at, meta),
        };
        let Insert::Inserted(entry) = insert else {
            return insert;
        };
        match self.complete(entry, session) {
            Some(entry) => {
                self.tell(None, Some(entry));
                Insert::Inserted(entry)
            }
            // Another worker's came first.
            None => self.find(at).map_or(Insert::Full, Insert::Exists),
        }
    }

    /// Puts `session` in the place of an entry of the same flow, in one step: no lookup finds
    /// neither. `None` when the entry is another by now; nothing was changed then.
    #[must_use]
    pub fn replace(&self, old: &Entry, session: Session, now: Tick) -> Option<Entry> {
        if word::is_local(old.word) && !word::is_versioned(old.word) {
            return None;
        }
        let meta = self.meta(session, now)?;
        let entry = self.change(old, |_| meta).and_then(|entry| self.complete(entry, session))?;
        self.tell(Some(*old), Some(entry));
        Some(entry)
    }

    /// Takes an entry out of the table. `false` when it is another by now.
    pub fn remove(&self, entry: &Entry) -> bool {
        let goes = self.going(entry, false);
        let mut entry = *entry;
        loop {
            if word::is_local(entry.word) && !word::is_versioned(entry.word) {
                return false;
            }
            match self.take_away(&entry) {
                Ok(()) => {
                    self.gone(goes);
                    return true;
                }
                Err(word) if word::same_but_stamp(entry.word, word) => entry.word = word,
                Err(_) => return false,
            }
        }
    }

    /// Takes an idle entry out of the table. `false` when it has been seen or changed meanwhile.
    pub fn remove_idle(&self, entry: &Entry) -> bool {
        let goes = self.going(entry, true);
        let has_gone = (word::is_redirect(entry.word) || word::is_versioned(entry.word))
            && self.take_away(entry).is_ok();
        if has_gone {
            self.gone(goes);
        }
        has_gone
    }

    /// Stamps an entry as seen at `now`. Writes only when the stamp changes.
    #[inline(always)]
    pub fn touch(&self, entry: &Entry, now: Tick) {
        let meta = self.ageing.stamped(entry.word, now);
        if meta != entry.word & META {
            // Whoever changed it meanwhile has stamped it.
            let _ = self.update(entry, meta);
        }
    }

    /// Moves a local session on to `to` and stamps it; the entry as it is then. `None` when its
    /// state is another by now: look again.
    pub fn transition(&self, entry: &Entry, to: State, now: Tick) -> Option<Entry> {
        let moved = self.change(entry, |word| self.ageing.local(to, word & PUBLICATION, now))?;
        self.tell(Some(*entry), Some(moved));
        Some(moved)
    }

    /// Notes that the DHT core has been told of a local session.
    pub fn set_published(&self, entry: &Entry) {
        let mut entry = *entry;
        loop {
            if !word::is_versioned(entry.word) {
                return;
            }
            match self.update(&entry, entry.word & META | PUBLISHED) {
                Ok(_) => return,
                // Its state has moved on.
                Err(word) if word::same_local(entry.word, word) => entry.word = word,
                Err(_) => return,
            }
        }
    }

    /// Number of buckets: what [`SessionTable::visit`] counts in.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.v4.lines.len() + self.v6.lines.len()
    }

    /// Shows every entry of one bucket (below [`SessionTable::buckets`]) to `see`, for sweeps and
    /// listings. Others may write meanwhile: an entry inserted or removed during a walk over all
    /// buckets may or may not be seen, all others are seen once.
    pub fn visit(&self, bucket: usize, see: impl FnMut(Entry)) {
        match bucket.checked_sub(self.v4.lines.len()) {
            None => self.v4.visit::<V4>(bucket as u32, see),
            Some(bucket) if bucket < self.v6.lines.len() => {
                self.v6.visit::<V6>(bucket as u32, see);
            }
            Some(_) => {}
        }
    }

    /// Whether an entry has been idle for longer than its state may be.
    #[inline]
    #[must_use]
    pub fn is_due(&self, entry: &Entry, now: Tick) -> bool {
        self.ageing.is_due(entry.word, now)
    }

    /// How long ago an entry's last packet was seen, in milliseconds, as [`Found::idle_ms`].
    #[must_use]
    pub fn idle_ms(&self, entry: &Entry, now: Tick) -> u64 {
        self.ageing.idle_ms(entry.word, now)
    }

    /// Where an entry lies: its bucket, as [`SessionTable::visit`] counts them, and its position
    /// in it, below [`bucket::WORDS`].
    #[must_use]
    pub fn place(&self, entry: &Entry) -> (usize, usize) {
        let first = if entry.place.is_v6() { self.v4.lines.len() } else { 0 };
        (first + entry.place.bucket() as usize, entry.place.position())
    }

    /// An entry with its flow, as a listing shows it; `None` when it has gone.
    #[must_use]
    pub fn listed(&self, entry: &Entry, now: Tick) -> Option<Listed> {
        let flow = self.flow_of(entry)?;
        let Found { session, idle_ms, .. } = self.view(entry, now)?;
        Some(Listed { flow, session, idle_ms })
    }

    /// The key of an entry; of another one when that is there by now.
    fn key(&self, entry: &Entry) -> Option<SessionKey> {
        if entry.place.is_v6() {
            let KeyV6 { client, tail } = self.v6.key_v6(entry)?;
            return Some(SessionKey::V6 { client, tail });
        }
        Some(SessionKey::V4(self.v4.key_at(&self.v4.placed_v4(entry).1)))
    }

    /// Tells entries of services that are none any more; `None` when there are no such services.
    #[must_use]
    pub fn retired(&self) -> Option<impl Fn(&Entry) -> bool> {
        let services = self.services.load();
        if !services.any_retired() {
            return None;
        }
        let is_retired = move |key: &SessionKey| services.is_retired(key);
        Some(move |entry: &Entry| self.key(entry).as_ref().is_some_and(&is_retired))
    }

    /// The flow of an entry; of another one when that is there by now.
    fn flow_of(&self, entry: &Entry) -> Option<FlowKey> {
        self.services.load().flow(&self.key(entry)?)
    }

    /// Tells those who watch of an entry that is new or has changed.
    #[inline(always)]
    fn tell(&self, before: Option<Entry>, after: Option<Entry>) {
        if self.changes.is_watched() {
            self.told(before, after);
        }
    }

    #[cold]
    fn told(&self, before: Option<Entry>, after: Option<Entry>) {
        let change = after.or(before).and_then(|entry| self.changed(&entry));
        if let Some(change) = change {
            let [before, after] = [before, after].map(|entry| entry.map(|entry| entry.kind()));
            self.changes.tell(Change { before, after, ..change });
        }
    }

    /// What those who watch are to be told when an entry goes; nothing when nobody does.
    #[inline(always)]
    fn going(&self, entry: &Entry, is_idle: bool) -> Option<Change> {
        if !self.changes.is_watched() {
            return None;
        }
        let change = self.changed(entry)?;
        Some(Change { before: Some(entry.kind()), is_idle, ..change })
    }

    #[inline(always)]
    fn gone(&self, change: Option<Change>) {
        if let Some(change) = change {
            self.changes.tell(change);
        }
    }

    #[cold]
    fn changed(&self, entry: &Entry) -> Option<Change> {
        let (flow, version) = (self.flow_of(entry)?, self.version(entry));
        Some(Change { tsc: tsc(), flow, before: None, after: None, version, is_idle: false })
    }

    /// The meta bits of a session that has no version yet; `None` when there is no number left
    /// for its owner.
    #[inline]
    fn meta(&self, session: Session, now: Tick) -> Option<u64> {
        Some(match session {
            Session::Local { state, .. } => self.ageing.local(state, 0, now),
            Session::Redirect { owner } => self.ageing.redirect(self.owners.number(owner)?, now),
        })
    }

    /// Puts a new entry's version in its place, and only then says in its word that it is there.
    /// `None` when another entry of the flow came first.
    #[inline]
    fn complete(&self, mut entry: Entry, session: Session) -> Option<Entry> {
        let Session::Local { version, published, .. } = session else {
            return Some(entry);
        };
        self.version_cell(entry.place).store(version.0, Ordering::Release);
        let flags = if published { PUBLICATION } else { VERSIONED };
        loop {
            if entry.word & PUBLICATION == PUBLISHED {
                match self.take_away(&entry) {
                    Ok(()) => return None,
                    Err(word) => entry.word = word,
                }
                continue;
            }
            match self.update(&entry, entry.word & META | flags) {
                Ok(word) => return Some(Entry { word, ..entry }),
                // Its state has moved on, or it is to go; it is still ours.
                Err(word) => entry.word = word,
            }
        }
    }

    fn insert_in<L: Layout>(&self, family: &Family, at: &At<L::Key>, meta: u64) -> Insert {
        if let Some(entry) = family.find::<L>(at) {
            return Insert::Exists(entry);
        }
        let taken = self.local.load(Ordering::Relaxed) + self.redirects.load(Ordering::Relaxed);
        if taken >= self.capacity as i64 {
            return Insert::Full;
        }
        let Some((mine, probe)) = family.claim::<L>(at, meta) else {
            return Insert::Full;
        };
        self.gauge(0, mine.word);
        if probe > 1 {
            self.displaced.fetch_add(1, Ordering::Relaxed);
        }
        match self.settle::<L>(family, at, mine) {
            None => Insert::Inserted(mine),
            Some(other) => Insert::Exists(other),
        }
    }

    /// Two workers may have inserted one flow at the same time. Each looks again after it has
    /// published, so at least one sees both, and the later place goes. Gives the other entry when
    /// ours was the later.
    #[inline]
    fn settle<L: Layout>(&self, family: &Family, at: &At<L::Key>, mine: Entry) -> Option<Entry> {
        settle_fence();
        let mut mine_is_first = false;
        for probe in 1..=L::PROBES {
            let bucket = family.bucket(at, probe);
            let line = family.line(bucket);
            let mut matches = L::matches(line, &at.key, probe);
            while let Some(position) = bucket::first(matches) {
                matches &= matches - 1;
                let place = Place::new::<L>(bucket, position);
                if place == mine.place {
                    mine_is_first = true;
                } else if let Some(word) = L::check(line, position, &at.key, probe) {
                    let other = Entry { place, word };
                    if !mine_is_first {
                        self.withdraw(mine);
                        return Some(other);
                    }
                    self.give_way(other);
                }
            }
            if !bucket::may_have_passed(line, at.counter()) {
                break;
            }
        }
        None
    }

    /// Makes the later of two entries of a flow go: at once, or by the worker that made it as
    /// long as that has not put its version there.
    #[cold]
    fn give_way(&self, mut entry: Entry) {
        loop {
            let done = if word::is_local(entry.word) && !word::is_versioned(entry.word) {
                self.update(&entry, entry.word & META | PUBLISHED).map(|_| ())
            } else {
                self.take_away(&entry)
            };
            match done {
                Err(word) if (word ^ entry.word) & !META == 0 && word & STATE != 0 => {
                    entry.word = word;
                }
                _ => return,
            }
        }
    }

    /// Takes our own entry away again, that nobody else may.
    #[cold]
    fn withdraw(&self, mut entry: Entry) {
        while let Err(word) = self.take_away(&entry) {
            if (word ^ entry.word) & !META != 0 || word & STATE == 0 {
                return;
            }
            entry.word = word;
        }
    }

    #[inline(always)]
    fn update(&self, entry: &Entry, meta: u64) -> Result<u64, u64> {
        bucket::update(self.line(entry.place), entry.place.position(), entry.word, meta)
    }

    /// Changes an entry's meta bits, however its stamp may change meanwhile.
    fn change(&self, entry: &Entry, meta: impl Fn(u64) -> u64) -> Option<Entry> {
        let mut entry = *entry;
        loop {
            match self.update(&entry, meta(entry.word)) {
                Ok(word) => {
                    self.gauge(entry.word, word);
                    return Some(Entry { word, ..entry });
                }
                Err(word) if word::same_but_stamp(entry.word, word) => entry.word = word,
                Err(_) => return None,
            }
        }
    }

    /// Takes exactly this entry away; else gives the word that is there instead.
    fn take_away(&self, entry: &Entry) -> Result<(), u64> {
        let (line, position) = (self.line(entry.place), entry.place.position());
        let gone = || line.0[position].load(Ordering::Acquire);
        let (family, probe, at) = if entry.place.is_v6() {
            let at = self.v6.locate_v6(self.v6.key_v6(entry).ok_or_else(gone)?);
            let bucket = entry.place.bucket();
            let probe = (1..=V6::PROBES).find(|&probe| self.v6.bucket(&at, probe) == bucket);
            V6::release(line, position, entry.word)?;
            (&self.v6, probe.unwrap_or(1), at.without_key())
        } else {
            let (probe, at) = self.v4.placed_v4(entry);
            V4::release(line, position, entry.word)?;
            (&self.v4, probe, at.without_key())
        };
        self.gauge(entry.word, 0);
        if probe > 1 {
            self.displaced.fetch_sub(1, Ordering::Relaxed);
            family.unpass(&at, probe);
        }
        Ok(())
    }

    /// Counts what an entry's word was before and is now; 0 is none.
    #[inline]
    fn gauge(&self, before: u64, now: u64) {
        let count = |gauge: &AtomicI64, is: fn(u64) -> bool| {
            let by = i64::from(is(now)) - i64::from(is(before));
            if by != 0 {
                gauge.fetch_add(by, Ordering::Relaxed);
            }
        };
        // First: of `local - lingering`, read meanwhile, nothing that lives is missing.
        count(&self.lingering, word::is_lingering);
        count(&self.local, word::is_local);
        count(&self.half_open, |word| word & STATE == State::HalfOpen as u64);
        count(&self.redirects, word::is_redirect);
    }

    /// The entry as it is now, if it is still the flow's.
    fn again(&self, entry: &Entry) -> Option<Entry> {
        let word = self.word(entry.place).load(Ordering::Acquire);
        let same = (word ^ entry.word) & !META == 0 && word & STATE != 0;
        same.then_some(Entry { word, ..*entry })
    }

    #[inline(always)]
    fn family(&self, place: Place) -> &Family {
        if place.is_v6() { &self.v6 } else { &self.v4 }
    }

    #[inline(always)]
    fn line(&self, place: Place) -> &Line {
        self.family(place).line(place.bucket())
    }

    fn word(&self, place: Place) -> &AtomicU64 {
        &self.line(place).0[place.position()]
    }

    #[inline(always)]
    fn version_cell(&self, place: Place) -> &AtomicU64 {
        self.family(place).version(place.bucket(), place.position())
    }
}

impl Family {
    fn new<L: Layout>(
        slots: usize,
        index_bits_min: u32,
        version_shift: u32,
        hash_key: &HashKey,
    ) -> Result<Family, NoMemory> {
        let buckets = slots.div_ceil(L::POSITIONS.len()).next_power_of_two();
        let buckets = buckets.max(1 << index_bits_min);
        let versions = (buckets << version_shift) / bucket::WORDS;
        let mut keys = [0; 4];
        for (number, key) in (0u64..).zip(&mut keys) {
            let mut hasher = SipHasher13::new_with_keys(hash_key.0[0], hash_key.0[1]);
            hasher.write_u64(number);
            // Odd: no factor of the hash is ever 0.
            *key = hasher.finish() | 1;
        }
        Ok(Family {
            lines: Lines::new(buckets)?,
            versions: Lines::new(versions.max(1))?,
            version_shift,
            index_mask: (buckets - 1) as u32,
            keys,
        })
    }

    #[inline(always)]
    fn line(&self, bucket: u32) -> &Line {
        self.lines.line(bucket as usize)
    }

    /// The version of the entry at `position` of a bucket.
    #[inline(always)]
    fn version(&self, bucket: u32, position: usize) -> &AtomicU64 {
        // One for each position, or for each four of them.
        let slot = position >> (bucket::WORDS.ilog2() - self.version_shift);
        let index = ((bucket as usize) << self.version_shift) + slot;
        &self.versions.line(index / bucket::WORDS).0[index % bucket::WORDS]
    }

    #[inline(always)]
    fn locate_v4(&self, key: u64) -> At<u64> {
        let low = key as u32 & self.index_mask;
        let remainder = key >> self.index_mask.trailing_ones();
        let hash = self.hash_v4(remainder);
        self.at(remainder, low, hash)
    }

    #[inline(always)]
    fn locate_v6(&self, key: KeyV6) -> At<KeyV6> {
        let [k0, k1, k2, k3] = self.keys;
        let hash = fold(key.client[0] ^ k0, key.client[1] ^ k1);
        let hash = fold(hash ^ k2 ^ u64::from(key.tail), k3);
        self.at(key, 0, hash)
    }

    /// A keyed hash that is cheap: two multiplications. No client sees any of its values, so it
    /// need not withstand one who does; the fabric sees a few bits mixed ([`Located::entropy`]).
    #[inline(always)]
    fn hash_v4(&self, remainder: u64) -> u64 {
        let [k0, k1, k2, k3] = self.keys;
        fold(fold(remainder ^ k0, k1) ^ k2, k3)
    }

    #[inline(always)]
    fn at<K>(&self, key: K, low: u32, hash: u64) -> At<K> {
        At { key, home: low ^ hash as u32 & self.index_mask, hash }
    }

    /// The bucket that a flow's `probe`-th try falls into; the first is its home.
    #[inline(always)]
    fn bucket<K>(&self, at: &At<K>, probe: u32) -> u32 {
        at.home ^ at.step().wrapping_mul(probe - 1) & self.index_mask
    }

    #[inline(always)]
    fn find<L: Layout>(&self, at: &At<L::Key>) -> Option<Entry> {
        let line = self.line(at.home);
        if let Some((position, word)) = L::find(line, &at.key, 1) {
            return Some(Entry { place: Place::new::<L>(at.home, position), word });
        }
        if !bucket::may_have_passed(line, at.counter()) {
            return None;
        }
        self.find_displaced::<L>(at)
    }

    #[cold]
    fn find_displaced<L: Layout>(&self, at: &At<L::Key>) -> Option<Entry> {
        for probe in 2..=L::PROBES {
            let bucket = self.bucket(at, probe);
            let line = self.line(bucket);
            if let Some((position, word)) = L::find(line, &at.key, probe) {
                return Some(Entry { place: Place::new::<L>(bucket, position), word });
            }
            if !bucket::may_have_passed(line, at.counter()) {
                break;
            }
        }
        None
    }

    /// Publishes an entry in the first of its buckets that has room: the entry and its probe.
    #[inline]
    fn claim<L: Layout>(&self, at: &At<L::Key>, meta: u64) -> Option<(Entry, u32)> {
        for probe in 1..=L::PROBES {
            let bucket = self.bucket(at, probe);
            let line = self.line(bucket);
            if let Some((position, word)) = L::claim(line, &at.key, probe, meta) {
                return Some((Entry { place: Place::new::<L>(bucket, position), word }, probe));
            }
            bucket::pass(line, at.counter());
        }
        self.unpass(at, L::PROBES + 1);
        None
    }

    /// An entry at its `probe`-th bucket has gone from there.
    fn unpass<K>(&self, at: &At<K>, probe: u32) {
        for passed in 1..probe {
            bucket::unpass(self.line(self.bucket(at, passed)), at.counter());
        }
    }

    fn visit<L: Layout>(&self, bucket: u32, mut see: impl FnMut(Entry)) {
        let line = self.line(bucket);
        for &position in L::POSITIONS {
            if let Some((word, _)) = L::read(line, position) {
                see(Entry { place: Place::new::<L>(bucket, position), word });
            }
        }
    }

    /// By which probe an entry came to its bucket, and its flow's place.
    fn placed_v4(&self, entry: &Entry) -> (u32, At<u64>) {
        let remainder = entry.word >> (64 - REMAINDER_BITS);
        let probe = V4::probe(entry.word);
        let at = self.at(remainder, 0, self.hash_v4(remainder));
        let home = entry.place.bucket() ^ self.bucket(&At { home: 0, ..at }, probe);
        (probe, At { home, ..at })
    }

    /// The whole key: its low bits are in the home bucket's index.
    fn key_at(&self, at: &At<u64>) -> u64 {
        let low = at.home ^ self.hash_v4(at.key) as u32 & self.index_mask;
        at.key << self.index_mask.trailing_ones() | u64::from(low)
    }

    fn key_v6(&self, entry: &Entry) -> Option<KeyV6> {
        let line = self.line(entry.place.bucket());
        let (word, key) = V6::read(line, entry.place.position())?;
        ((word ^ entry.word) & !META == 0).then_some(key)
    }
}

/// The two halves of a product, combined.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a).wrapping_mul(u128::from(b));
    product as u64 ^ (product >> 64) as u64
}

impl std::fmt::Debug for SessionTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionTable").field("gauges", &self.gauges()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
