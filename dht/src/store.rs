//! The records that this node holds as a replica. All memory is reserved when it is made, and
//! pages of it are touched as they are used: nothing is allocated for a record, and no call is
//! slow because of how many there are. Never evicts a live record: a full store says so. Greater
//! claims win, and a deleted record never comes back (R8, R12).

use std::net::IpAddr;

use holdfast_handoff::Version;

use crate::id::Id;
use crate::id_map::{IdMap, Place};
use crate::lease::{Leases, OWNERS_MAX, OwnerSlot, Role};
use crate::record::{Claim, Record, State};

/// The answer to a STORE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Held now, or held already.
    Yes,
    /// Held now, in the place of this lesser claim of another owner, which stood until now.
    Replaced(Claim),
    /// A greater claim is held, live or deleted.
    Stale(Claim),
    /// There is no room for the record, or no name for its owner.
    Full,
}

/// The answer to a DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// The claim stands no more, and a tombstone remembers it.
    Yes,
    /// The claim stands no more, but there was no room for a tombstone.
    NotRemembered,
    /// A greater claim is held: the delete has no effect.
    Stale(Claim),
}

/// How long a store keeps what.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The records of an incarnation after its server was last known to live, in µs.
    pub lease_us: u64,
    /// The same when the server is no contact and the last that is known of it is a STORE.
    pub record_ttl_us: u64,
    /// A tombstone, in µs.
    pub tombstone_ttl_us: u64,
}

/// Records removed in a slice of [`Store::sweep`] are few among those looked at, which costs
/// much less: this many times more are.
const LOOKS_PER_REMOVAL: usize = 8;
/// Records removed at most to make room for one in a full store.
const RECLAIM_AT_ONCE: usize = 8;

/// What is held under an id: with the id 32 bytes.
#[derive(Debug, Clone, Copy)]
struct Held {
    version: Version,
    /// Whether it is a record or a tombstone, too.
    owner: OwnerSlot,
    /// When it was deleted, if it was.
    deleted_at: Moment,
}

/// A time in units of about a thousandth of a tombstone's life. It comes round, after millions of
/// these lives.
#[derive(Debug, Clone, Copy)]
struct Moment(u32);

/// How long tombstones live.
#[derive(Debug, Clone, Copy)]
struct TombstoneLife {
    unit_us: u64,
    units: u32,
}

impl TombstoneLife {
    fn new(tombstone_ttl_us: u64) -> TombstoneLife {
        let unit_us = (tombstone_ttl_us / 1024).max(1);
        // Below 2048, by the unit.
        TombstoneLife { unit_us, units: tombstone_ttl_us.div_ceil(unit_us) as u32 }
    }

    /// A moment not before `now_us`.
    fn begin(self, now_us: u64) -> Moment {
        Moment(now_us.div_ceil(self.unit_us) as u32)
    }

    fn is_over(self, now_us: u64, began: Moment) -> bool {
        let age = ((now_us / self.unit_us) as u32).wrapping_sub(began.0);
        // Negative in the unit of the deletion.
        age.cast_signed() >= self.units.cast_signed()
    }

    /// What something held is, and whether it has ended.
    fn standing(self, leases: &Leases, now_us: u64, held: &Held) -> (State, bool) {
        let owner = leases.get(held.owner);
        match owner.role {
            Role::Tombstones => (State::Tombstone, self.is_over(now_us, held.deleted_at)),
            Role::Incarnation { .. } | Role::Free => (State::Live, owner.has_ended(now_us)),
        }
    }
}

/// Records by id, bounded in number.
#[derive(Debug, Clone)]
pub struct Store {
    held: IdMap<Held>,
    leases: Leases,
    tombstone_life: TombstoneLife,
    tombstones: usize,
    /// Live records dropped since the last sweep because their lease has ended.
    expired: usize,
}

impl Store {
    /// Bytes that are reserved for a record, at most: 32 in the slab and the rest in the index.
    pub const BYTES_PER_RECORD_MAX: usize = 43;

    /// A store of at most `records_max` records, tombstones included; below 2^30. The `seed` is
    /// best known to nobody: it keeps a member from choosing ids that are slow to find.
    #[must_use]
    pub fn new(records_max: usize, terms: Terms, seed: u64) -> Store {
        let Terms { lease_us, record_ttl_us, tombstone_ttl_us } = terms;
        Store {
            held: IdMap::new(records_max, seed),
            leases: Leases::new(OWNERS_MAX, lease_us, record_ttl_us, seed),
            tombstone_life: TombstoneLife::new(tombstone_ttl_us),
            tombstones: 0,
            expired: 0,
        }
    }

    /// Records at most, tombstones included.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.held.capacity()
    }

    /// Live records, those included whose lease has ended but which were not swept yet.
    #[must_use]
    pub fn live(&self) -> usize {
        self.held.len() - self.tombstones
    }

    /// Tombstones, as above.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.tombstones
    }

    /// Owners that are remembered: incarnations of servers that are contacts or whose records
    /// are held, and servers whose tombstones are.
    #[must_use]
    pub fn owners(&self) -> usize {
        self.leases.in_use()
    }

    /// How often an owner was refused because there were too many, in all or with one locator.
    #[must_use]
    pub fn owners_refused(&self) -> u64 {
        self.leases.refused()
    }

    /// This incarnation of the server has become a contact: its records live until
    /// [`Store::end_lease`], and those of its earlier incarnations for a lease from now. A lease
    /// that has not ended is taken up again.
    pub fn begin_lease(&mut self, now_us: u64, locator: IpAddr, incarnation: u64) {
        self.leases.begin(now_us, locator, incarnation);
    }

    /// The server had taken us for dead, and did not tell us what it deleted since: what we hold of
    /// it lives for a lease from now, in which it stores again what is left.
    pub fn supersede_leases(&mut self, now_us: u64, locator: IpAddr) {
        self.leases.supersede(now_us, locator);
    }

    /// The server is a contact no more: its records live for a lease from now.
    pub fn end_lease(&mut self, now_us: u64, locator: IpAddr) {
        self.leases.end(now_us, locator);
    }

    /// Brings what calls about these ids look at into the processor's caches: to be called with
    /// the ids of a batch before its operations, which take a half or a third of the time then.
    pub fn warm(&self, ids: impl Iterator<Item = Id> + Clone) {
        self.held.warm(ids);
    }

    /// All live records, in no order.
    pub fn iter(&self, now_us: u64) -> impl Iterator<Item = (Id, Claim)> + '_ {
        self.held.iter().filter_map(move |(id, _)| {
            let record = self.get(now_us, id)?;
            (record.state == State::Live).then_some((id, record.claim))
        })
    }

    /// The record under an id, live or a tombstone.
    #[must_use]
    pub fn get(&self, now_us: u64, id: Id) -> Option<Record> {
        self.record(now_us, self.held.place(id)?)
    }

    /// Takes the claim of a server's incarnation. A claim held already is the latest
    /// incarnation's.
    pub fn store(
        &mut self,
        now_us: u64,
        id: Id,
        version: Version,
        locator: IpAddr,
        incarnation: u64,
    ) -> Stored {
        let claim = Claim { version, owner: locator };
        let place = self.held.place(id);
        let record = place.and_then(|place| self.record(now_us, place));
        match (place, record) {
            (_, Some(record)) if record.claim > claim => return Stored::Stale(record.claim),
            (_, Some(record)) if record.claim == claim && record.state == State::Tombstone => {
                return Stored::Stale(claim);
            }
            (Some(place), Some(record))
                if record.claim == claim && self.incarnation_at(place) > Some(incarnation) =>
            {
                return Stored::Yes;
            }
            (None, _) if !self.has_room(now_us) => return Stored::Full,
            _ => {}
        }
        let Some(owner) = self.leases.storing(now_us, locator, incarnation) else {
            return Stored::Full;
        };
        self.put(now_us, place, id, Held { version, owner, deleted_at: Moment(0) });
        match record {
            Some(Record { claim, state: State::Live }) if claim.owner != locator => {
                Stored::Replaced(claim)
            }
            _ => Stored::Yes,
        }
    }

    /// Ends a claim and all lesser ones.
    pub fn delete(&mut self, now_us: u64, id: Id, version: Version, locator: IpAddr) -> Deleted {
        let claim = Claim { version, owner: locator };
        let place = self.held.place(id);
        let record = place.and_then(|place| self.record(now_us, place));
        if let Some(record) = record.filter(|record| record.claim > claim) {
            return Deleted::Stale(record.claim);
        }
        let has_room = place.is_some() || self.has_room(now_us);
        let owner = if has_room { self.leases.deleting(now_us, locator) } else { None };
        if let Some(owner) = owner {
            let deleted_at = self.tombstone_life.begin(now_us);
            self.put(now_us, place, id, Held { version, owner, deleted_at });
            return Deleted::Yes;
        }
        if let Some(place) = place {
            self.remove(now_us, place);
        }
        Deleted::NotRemembered
    }

    /// The owner has moved its record elsewhere: forgets it, without a tombstone, if what is
    /// held is a record of this owner and of no greater version. Returns whether it was.
    pub fn release(&mut self, now_us: u64, id: Id, version: Version, locator: IpAddr) -> bool {
        let claim = Claim { version, owner: locator };
        let Some(place) = self.held.place(id) else {
            return false;
        };
        let its =
            |r: &Record| r.state == State::Live && r.claim.owner == locator && r.claim <= claim;
        let released = self.record(now_us, place).as_ref().is_some_and(its);
        if released {
            self.remove(now_us, place);
        }
        released
    }

    /// Drops what has ended: goes on through all records by a slice, in which at most `limit`
    /// are dropped. Returns how many live ones were dropped because their lease has ended since
    /// the last call.
    pub fn sweep(&mut self, now_us: u64, limit: usize) -> usize {
        self.reclaim(now_us, limit);
        self.leases.sweep(now_us, limit);
        std::mem::take(&mut self.expired)
    }

    fn reclaim(&mut self, now_us: u64, removals_max: usize) {
        let Store { held, leases, tombstone_life, tombstones, expired } = self;
        let looks = removals_max.saturating_mul(LOOKS_PER_REMOVAL);
        held.retain(looks, removals_max, |held| {
            let (state, ended) = tombstone_life.standing(leases, now_us, held);
            if ended {
                *tombstones -= usize::from(state == State::Tombstone);
                *expired += usize::from(state == State::Live);
                leases.let_go(held.owner);
            }
            !ended
        });
    }

    /// Whether a record can be added.
    fn has_room(&mut self, now_us: u64) -> bool {
        if self.held.is_full() {
            self.reclaim(now_us, RECLAIM_AT_ONCE);
        }
        !self.held.is_full()
    }

    /// What is held in a place, as far as it has not ended.
    fn record(&self, now_us: u64, place: Place) -> Option<Record> {
        let held = &self.held[place];
        let (state, ended) = self.tombstone_life.standing(&self.leases, now_us, held);
        let claim = Claim { version: held.version, owner: self.leases.get(held.owner).locator };
        (!ended).then_some(Record { claim, state })
    }

    fn incarnation_at(&self, place: Place) -> Option<u64> {
        match self.leases.get(self.held[place].owner).role {
            Role::Incarnation { incarnation, .. } => Some(incarnation),
            Role::Tombstones | Role::Free => None,
        }
    }

    /// Puts something in a place of the id's, or a new one for which there is room.
    fn put(&mut self, now_us: u64, place: Option<Place>, id: Id, held: Held) {
        self.leases.take(held.owner);
        let is_tombstone = self.leases.get(held.owner).role == Role::Tombstones;
        self.tombstones += usize::from(is_tombstone);
        match place {
            Some(place) => {
                let old = std::mem::replace(&mut self.held[place], held);
                self.let_go(now_us, old);
            }
            None => self.held.add(id, held),
        }
    }

    fn remove(&mut self, now_us: u64, place: Place) {
        let old = self.held.remove_at(place);
        self.let_go(now_us, old);
    }

    fn let_go(&mut self, now_us: u64, old: Held) {
        let (state, ended) = self.tombstone_life.standing(&self.leases, now_us, &old);
        self.tombstones -= usize::from(state == State::Tombstone);
        self.expired += usize::from(state == State::Live && ended);
        self.leases.let_go(old.owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const TOMBSTONE_TTL_US: u64 = 50;
    const LEASE_US: u64 = 100;
    const RECORD_TTL_US: u64 = 300;
    const TERMS: Terms = Terms {
        lease_us: LEASE_US,
        record_ttl_us: RECORD_TTL_US,
        tombstone_ttl_us: TOMBSTONE_TTL_US,
    };

    fn locator(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    fn claim(version: u64, owner: u8) -> Claim {
        Claim { version: Version(version), owner: locator(owner) }
    }

    /// A server's incarnation: in the model, and in all these tests, numbers.
    type Server = (u8, u64);

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Store(Id, u64, Server),
        Delete(Id, u64, u8),
        Release(Id, u64, u8),
        Begin(Server),
        End(u8),
        Sweep(usize),
        Wait(u64),
    }

    fn steps(ids: u128, versions: u64) -> impl Strategy<Value = Vec<Step>> {
        let id = move || (0..ids).prop_map(Id);
        let server = || (0..3u8, 0..3u64);
        let step = prop_oneof![
            6 => (id(), 0..versions, server()).prop_map(|(id, v, s)| Step::Store(id, v, s)),
            3 => (id(), 0..versions, 0..3u8).prop_map(|(id, v, o)| Step::Delete(id, v, o)),
            2 => (id(), 0..versions, 0..3u8).prop_map(|(id, v, o)| Step::Release(id, v, o)),
            2 => server().prop_map(Step::Begin),
            2 => (0..3u8).prop_map(Step::End),
            1 => (0..3usize).prop_map(Step::Sweep),
            4 => (0..60u64).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// What a store should do, said as plainly as possible: nothing is shared, reused or swept.
    #[derive(Debug, Default)]
    struct Model {
        now_us: u64,
        records: BTreeMap<Id, ModelRecord>,
        leases: Vec<ModelLease>,
    }

    #[derive(Debug, Clone, Copy)]
    struct ModelRecord {
        claim: Claim,
        /// Place of a record's lease.
        lease: Option<usize>,
        /// End of a tombstone.
        ends_at_us: u64,
    }

    #[derive(Debug, Clone, Copy)]
    struct ModelLease {
        server: Server,
        ends_at_us: Option<u64>,
    }

    impl Model {
        fn record(&self, id: Id) -> Option<ModelRecord> {
            self.records.get(&id).copied().filter(|r| match r.lease {
                Some(lease) => self.is_alive(lease),
                None => r.ends_at_us > self.now_us,
            })
        }

        fn get(&self, id: Id) -> Option<Record> {
            self.record(id).map(|ModelRecord { claim, lease, .. }| Record {
                claim,
                state: if lease.is_some() { State::Live } else { State::Tombstone },
            })
        }

        fn is_alive(&self, lease: usize) -> bool {
            self.leases[lease].ends_at_us.is_none_or(|at_us| at_us > self.now_us)
        }

        /// The living lease of an incarnation, which is made if there is none.
        fn lease(&mut self, server: Server) -> &mut ModelLease {
            let alive = |l: &usize| self.leases[*l].server == server && self.is_alive(*l);
            let found = (0..self.leases.len()).find(alive);
            let lease = found.unwrap_or_else(|| {
                self.leases.push(ModelLease { server, ends_at_us: Some(0) });
                self.leases.len() - 1
            });
            &mut self.leases[lease]
        }

        fn begin(&mut self, server: Server) {
            let until_us = self.now_us + LEASE_US;
            for lease in self.leases.iter_mut().filter(|l| l.server.0 == server.0) {
                if lease.server != server {
                    lease.ends_at_us = Some(lease.ends_at_us.map_or(until_us, |e| e.min(until_us)));
                }
            }
            self.lease(server).ends_at_us = None;
        }

        fn end(&mut self, owner: u8) {
            for lease in self.leases.iter_mut().filter(|l| l.server.0 == owner) {
                lease.ends_at_us.get_or_insert(self.now_us + LEASE_US);
            }
        }

        fn store(&mut self, id: Id, version: u64, server: Server) -> Stored {
            let new = claim(version, server.0);
            let held = self.record(id);
            if let Some(held) = held {
                if held.claim > new || (held.claim == new && held.lease.is_none()) {
                    return Stored::Stale(held.claim);
                }
                let latest = held.lease.map(|lease| self.leases[lease].server.1);
                if held.claim == new && latest > Some(server.1) {
                    return Stored::Yes;
                }
            } else if !self.has_room() {
                return Stored::Full;
            }
            let later = |l: &ModelLease| l.server.0 == server.0 && l.server.1 > server.1;
            let is_over = self.leases.iter().any(|l| later(l) && l.ends_at_us.is_none());
            let until_us = self.now_us + if is_over { LEASE_US } else { RECORD_TTL_US };
            let lease = self.lease(server);
            lease.ends_at_us = lease.ends_at_us.map(|at_us| at_us.max(until_us));
            let alive = |l: &usize| self.leases[*l].server == server && self.is_alive(*l);
            let lease = (0..self.leases.len()).find(alive);
            self.records.insert(id, ModelRecord { claim: new, lease, ends_at_us: 0 });
            match held {
                Some(held) if held.lease.is_some() && held.claim.owner != new.owner => {
                    Stored::Replaced(held.claim)
                }
                _ => Stored::Yes,
            }
        }

        fn delete(&mut self, id: Id, version: u64, owner: u8) -> Deleted {
            let new = claim(version, owner);
            match self.record(id) {
                Some(held) if held.claim > new => return Deleted::Stale(held.claim),
                None if !self.has_room() => return Deleted::NotRemembered,
                _ => {}
            }
            let ends_at_us = self.now_us + TOMBSTONE_TTL_US;
            self.records.insert(id, ModelRecord { claim: new, lease: None, ends_at_us });
            Deleted::Yes
        }

        fn release(&mut self, id: Id, version: u64, owner: u8) -> bool {
            let releases = |held: ModelRecord| {
                held.lease.is_some()
                    && held.claim.owner == locator(owner)
                    && held.claim.version <= Version(version)
            };
            let released = self.record(id).is_some_and(releases);
            if released {
                self.records.remove(&id);
            }
            released
        }

        fn has_room(&self) -> bool {
            self.records.keys().filter(|id| self.record(**id).is_some()).count() < 4
        }
    }

    /// Does a step to both, and compares what they answer.
    fn step(store: &mut Store, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
        let now_us = model.now_us;
        match step {
            Step::Store(id, version, server) => {
                let (owner, incarnation) = (locator(server.0), server.1);
                let stored = store.store(now_us, id, Version(version), owner, incarnation);
                prop_assert_eq!(stored, model.store(id, version, server));
            }
            Step::Delete(id, version, owner) => {
                let deleted = store.delete(now_us, id, Version(version), locator(owner));
                prop_assert_eq!(deleted, model.delete(id, version, owner));
            }
            Step::Release(id, version, owner) => {
                let released = store.release(now_us, id, Version(version), locator(owner));
                prop_assert_eq!(released, model.release(id, version, owner));
            }
            Step::Begin(server) => {
                store.begin_lease(now_us, locator(server.0), server.1);
                model.begin(server);
            }
            Step::End(owner) => {
                store.end_lease(now_us, locator(owner));
                model.end(owner);
            }
            Step::Sweep(limit) => drop(store.sweep(now_us, limit)),
            Step::Wait(time_us) => model.now_us += time_us,
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn r8_r12_behaves_as_a_plain_map(steps in steps(6, 6), seed in any::<u64>()) {
            let mut store = Store::new(4, TERMS, seed);
            let mut model = Model::default();
            for s in steps {
                step(&mut store, &mut model, s)?;
                for id in (0..6).map(Id) {
                    prop_assert_eq!(store.get(model.now_us, id), model.get(id));
                }
                prop_assert!(store.live() + store.tombstones() <= 4);
            }
            // What is over costs nothing once it was swept.
            store.sweep(model.now_us, usize::MAX);
            let left: Vec<Record> = (0..6).filter_map(|id| model.get(Id(id))).collect();
            let live = left.iter().filter(|r| r.state == State::Live).count();
            prop_assert_eq!((store.live(), store.tombstones()), (live, left.len() - live));
            (0..3).for_each(|owner| store.end_lease(model.now_us, locator(owner)));
            store.sweep(model.now_us + RECORD_TTL_US, usize::MAX);
            prop_assert_eq!((store.live(), store.tombstones(), store.owners()), (0, 0, 0));
            prop_assert_eq!(store.owners_refused(), 0);
        }

        #[test]
        fn r8_r12_the_order_of_arrival_does_not_matter(
            steps in steps(1, 20),
            order in any::<prop::sample::Index>(),
        ) {
            // As long as tombstones and leases last: whatever arrives when, the greatest claim
            // stands for its latest incarnation, and it is deleted if it was deleted at all.
            type Arrival = (Claim, Option<u64>);
            let arrival = |step: &Step| match *step {
                Step::Store(_, version, server) => Some((claim(version, server.0), Some(server.1))),
                Step::Delete(_, version, owner) => Some((claim(version, owner), None)),
                _ => None,
            };
            let arrivals: Vec<Arrival> = steps.iter().filter_map(arrival).collect();
            let run = |arrivals: &[Arrival]| {
                let mut store = Store::new(4, TERMS, 1);
                for (Claim { version, owner }, incarnation) in arrivals {
                    match incarnation {
                        Some(i) => drop(store.store(0, Id(0), *version, *owner, *i)),
                        None => drop(store.delete(0, Id(0), *version, *owner)),
                    }
                }
                let place = store.held.place(Id(0));
                let incarnation = place.and_then(|place| store.incarnation_at(place));
                store.get(0, Id(0)).map(|r| (r.claim, r.state, incarnation))
            };
            let mut shuffled = arrivals.clone();
            shuffled.reverse();
            if !shuffled.is_empty() {
                let turn = order.index(shuffled.len());
                shuffled.rotate_left(turn);
            }
            let greatest = arrivals.iter().map(|(claim, _)| *claim).max();
            let expected = greatest.map(|greatest| {
                let its = || arrivals.iter().filter(|(claim, _)| *claim == greatest);
                match its().any(|(_, incarnation)| incarnation.is_none()) {
                    true => (greatest, State::Tombstone, None),
                    false => (greatest, State::Live, its().filter_map(|a| a.1).max()),
                }
            });
            prop_assert_eq!(run(&arrivals), expected);
            prop_assert_eq!(run(&shuffled), expected);
        }
    }

    /// A store, and two servers.
    fn store_of(records_max: usize) -> (Store, IpAddr, IpAddr) {
        (Store::new(records_max, TERMS, 1), locator(1), locator(2))
    }

    #[test]
    fn r12_says_whose_record_gave_its_place() {
        let (mut store, one, two) = store_of(4);
        let (id, v) = (Id(1), Version);
        assert_eq!(store.store(0, id, v(5), one, 1), Stored::Yes);
        assert_eq!(store.store(0, id, v(6), one, 2), Stored::Yes, "its own");
        assert_eq!(store.store(0, id, v(7), two, 1), Stored::Replaced(claim(6, 1)));
        assert_eq!(store.store(0, id, v(7), two, 1), Stored::Yes, "once");
        assert_eq!(store.delete(0, id, v(7), two), Deleted::Yes);
        assert_eq!(store.store(0, id, v(8), one, 2), Stored::Yes, "nobody's");
        // A record whose lease has ended is nobody's either.
        assert_eq!(store.store(RECORD_TTL_US, id, v(9), two, 1), Stored::Yes);
    }

    #[test]
    fn r8_a_deleted_record_does_not_come_back() {
        let (mut store, one, two) = store_of(4);
        let (id, v) = (Id(1), Version);
        // The DELETE overtakes the STORE.
        assert_eq!(store.delete(0, id, v(5), one), Deleted::Yes);
        assert_eq!(store.store(1, id, v(5), one, 1), Stored::Stale(claim(5, 1)));
        assert_eq!(store.store(1, id, v(4), two, 1), Stored::Stale(claim(5, 1)));
        assert_eq!(store.store(1, id, v(6), two, 1), Stored::Yes);
        assert_eq!(store.delete(2, id, v(5), one), Deleted::Stale(claim(6, 2)));
        assert_eq!(store.get(2, id).map(|r| r.state), Some(State::Live));
        assert_eq!((store.live(), store.tombstones()), (1, 0));
    }

    #[test]
    fn a_tombstone_lives_as_long_as_it_should() {
        for ttl_us in [1, 50, 1023, 1024, 100_000, 10_000_000, 3_600_000_000] {
            let terms = Terms { tombstone_ttl_us: ttl_us, ..TERMS };
            let unit_us = (ttl_us / 1024).max(1);
            // Also when the time, in its units, comes round within the tombstone's life.
            for now_us in [0, 1, 12_345_678, (unit_us << 32) - 1, (unit_us << 32) - ttl_us / 2] {
                let mut store = Store::new(4, terms, 1);
                store.delete(now_us, Id(1), Version(1), locator(1));
                assert!(store.get(now_us, Id(1)).is_some());
                assert!(store.get(now_us + ttl_us - 1, Id(1)).is_some(), "{ttl_us} {now_us}");
                let late_us = now_us + ttl_us + 2 * unit_us;
                assert!(store.get(late_us, Id(1)).is_none(), "{ttl_us} {now_us}");
            }
        }
    }

    #[test]
    fn release_leaves_no_tombstone_and_touches_nothing_newer() {
        let (mut store, one, two) = store_of(4);
        let (id, v) = (Id(1), Version);
        assert!(!store.release(0, id, v(5), one));
        store.store(0, id, v(5), one, 1);
        assert!(!store.release(0, id, v(4), one));
        assert!(!store.release(0, id, v(9), two));
        assert!(store.release(0, id, v(5), one));
        assert_eq!((store.live(), store.tombstones()), (0, 0));
        // It may come back: the record has only moved.
        assert_eq!(store.store(0, id, v(5), one, 1), Stored::Yes);
        store.delete(0, id, v(5), one);
        assert!(!store.release(0, id, v(5), one));
        assert_eq!(store.tombstones(), 1);
    }

    #[test]
    fn r13_the_records_of_a_dead_server_end_with_its_lease_all_at_once() {
        let (mut store, one, two) = store_of(1000);
        store.begin_lease(0, one, 7);
        store.begin_lease(0, two, 8);
        for n in 0..1000 {
            let (owner, incarnation) = if n % 2 == 0 { (one, 7) } else { (two, 8) };
            assert_eq!(store.store(0, Id(n), Version(1), owner, incarnation), Stored::Yes);
        }
        let late_us = 1_000_000_000;
        assert!(store.get(late_us, Id(0)).is_some(), "as long as the server is a contact");
        store.end_lease(late_us, one);
        let ends_at_us = late_us + LEASE_US;
        assert!(store.get(ends_at_us - 1, Id(0)).is_some());
        let found = |store: &Store| {
            let held = |n: &u128| store.get(ends_at_us, Id(*n)).is_some();
            (0..1000).filter(held).count()
        };
        assert_eq!(found(&store), 500);
        assert_eq!((store.live(), store.owners()), (1000, 2));
        // A slice at a time, and then the owner is forgotten too.
        let slices: Vec<usize> = (0..20).map(|_| store.sweep(ends_at_us, 10)).collect();
        assert!(slices.iter().all(|dropped| *dropped <= 10), "{slices:?}");
        while store.sweep(ends_at_us, 10) > 0 {}
        assert_eq!((store.live(), store.owners()), (500, 1));
        assert_eq!(found(&store), 500);
    }

    #[test]
    fn a_healed_partition_revives_all_records() {
        let (mut store, one, _) = store_of(4);
        store.begin_lease(0, one, 7);
        store.store(0, Id(1), Version(1), one, 7);
        store.end_lease(0, one);
        store.begin_lease(LEASE_US - 1, one, 7);
        assert!(store.get(u64::MAX - 1, Id(1)).is_some());
        // An end is final: what is left of the records may not be all of them.
        store.end_lease(1000, one);
        store.begin_lease(1000 + LEASE_US, one, 7);
        assert!(store.get(1000 + LEASE_US, Id(1)).is_none());
        assert_eq!(store.store(1000 + LEASE_US, Id(1), Version(1), one, 7), Stored::Yes);
        assert_eq!(store.sweep(1000 + LEASE_US, 10), 1);
        assert_eq!((store.live(), store.owners()), (1, 1));
    }

    #[test]
    fn a_restarted_server_has_a_lease_to_store_its_records_again() {
        let (mut store, one, _) = store_of(4);
        store.begin_lease(0, one, 7);
        store.store(0, Id(1), Version(1), one, 7);
        store.store(0, Id(2), Version(1), one, 7);
        store.begin_lease(1000, one, 8);
        let ends_at_us = 1000 + LEASE_US;
        assert!(store.get(ends_at_us - 1, Id(1)).is_some());
        // The same claim, by the new incarnation; and a copy of the old STORE, which comes late.
        assert_eq!(store.store(1050, Id(1), Version(1), one, 8), Stored::Yes);
        assert_eq!(store.store(1060, Id(1), Version(1), one, 7), Stored::Yes);
        assert!(store.get(ends_at_us, Id(1)).is_some());
        assert!(store.get(ends_at_us, Id(2)).is_none());
    }

    #[test]
    fn a_store_of_the_overtaken_incarnation_does_not_outlive_a_lease() {
        let (mut store, one, _) = store_of(4);
        store.begin_lease(0, one, 8);
        assert_eq!(store.store(0, Id(1), Version(1), one, 7), Stored::Yes);
        assert!(store.get(LEASE_US - 1, Id(1)).is_some());
        assert!(store.get(LEASE_US, Id(1)).is_none());
    }

    #[test]
    fn the_records_of_a_server_that_is_no_contact_live_from_store_to_store() {
        let (mut store, one, _) = store_of(4);
        store.store(0, Id(1), Version(1), one, 7);
        store.store(RECORD_TTL_US - 1, Id(2), Version(1), one, 7);
        let ends_at_us = 2 * RECORD_TTL_US - 1;
        assert!(store.get(ends_at_us - 1, Id(1)).is_some());
        assert!(store.get(ends_at_us, Id(1)).is_none());
    }

    #[test]
    fn a_full_store_keeps_its_live_records() {
        let (mut store, one, _) = store_of(2);
        let v = Version(1);
        assert_eq!(store.store(0, Id(1), v, one, 1), Stored::Yes);
        assert_eq!(store.delete(0, Id(2), v, one), Deleted::Yes);
        assert_eq!(store.store(0, Id(3), v, one, 1), Stored::Full);
        assert_eq!(store.delete(0, Id(3), v, one), Deleted::NotRemembered);
        // What is held can be changed all the same.
        assert_eq!(store.store(0, Id(1), Version(2), one, 1), Stored::Yes);
        // The tombstone has ended by now, and makes room although nobody swept.
        assert_eq!(store.store(TOMBSTONE_TTL_US, Id(3), v, one, 1), Stored::Yes);
        assert!(store.get(TOMBSTONE_TTL_US, Id(1)).is_some());
    }

    #[test]
    fn a_full_store_of_dead_records_takes_living_ones() {
        let (mut store, dead, alive) = store_of(1000);
        for n in 0..1000 {
            store.store(0, Id(n), Version(1), dead, 1);
        }
        let now_us = RECORD_TTL_US;
        for n in 1000..2000 {
            assert_eq!(store.store(now_us, Id(n), Version(1), alive, 1), Stored::Yes);
        }
        assert_eq!(store.store(now_us, Id(2000), Version(1), alive, 1), Stored::Full);
        assert!((1000..2000).all(|n| store.get(now_us, Id(n)).is_some()));
        // Those that made room were counted, too.
        assert_eq!(store.sweep(now_us, 1), 1000);
    }

    #[test]
    fn owners_are_bounded_in_all_and_for_one_locator() {
        let (mut store, one, two) = store_of(1 << 18);
        // A member that pretends to restart all the time.
        let mut taken = 0;
        for incarnation in 0..100 {
            let stored = store.store(0, Id(incarnation), Version(1), one, incarnation as u64);
            taken += usize::from(stored == Stored::Yes);
        }
        assert_eq!((taken, store.owners(), store.owners_refused()), (32, 32, 68));
        assert_eq!(store.store(0, Id(200), Version(1), two, 1), Stored::Yes);
        // It can no more leave a tombstone; what it deletes is gone all the same.
        assert_eq!(store.delete(0, Id(1), Version(1), one), Deleted::NotRemembered);
        assert_eq!(store.get(0, Id(1)), None);
        let v6 = |n: u32| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, (n >> 16) as u16, n as u16]);
        let mut refused = 0;
        for n in 0..1 << 16 {
            let id = Id(1000 + u128::from(n));
            refused += usize::from(store.store(0, id, Version(1), v6(n), 1) == Stored::Full);
        }
        assert_eq!((refused, store.owners()), (33, OWNERS_MAX));
        // Names are given anew when those who bore them are gone.
        assert_eq!(store.store(RECORD_TTL_US, Id(0), Version(1), two, 2), Stored::Full);
        store.sweep(RECORD_TTL_US, usize::MAX);
        assert_eq!(store.owners(), 0);
        assert_eq!(store.store(RECORD_TTL_US, Id(0), Version(1), two, 2), Stored::Yes);
    }

    #[test]
    fn a_million_records_fit_in_the_bytes_promised_and_move_nothing() {
        assert_eq!(size_of::<(Id, Held)>(), 32);
        let records_max = 1 << 20;
        let mut store = Store::new(records_max, TERMS, 1);
        let reserved = store.held.bytes_reserved();
        assert!(reserved <= records_max * Store::BYTES_PER_RECORD_MAX, "{reserved}");
        let slab = store.held.slab();
        let mut ids = crate::id_map::tests::ids(1);
        let mut all: Vec<Id> = ids.by_ref().take(records_max).collect();
        for id in &all {
            assert_eq!(store.store(0, *id, Version(1), locator(1), 1), Stored::Yes);
        }
        assert_eq!(store.store(0, Id(0), Version(1), locator(1), 1), Stored::Full);
        // As many more come and go, in a store that stays full.
        for place in 0..records_max {
            let new = ids.next().expect("endless");
            let old = std::mem::replace(&mut all[(place * 7919) % records_max], new);
            assert!(store.release(0, old, Version(1), locator(1)));
            assert_eq!(store.store(0, new, Version(1), locator(1), 1), Stored::Yes);
        }
        assert!(all.iter().all(|id| store.get(0, *id).is_some()));
        assert_eq!((store.live(), store.capacity()), (records_max, records_max));
        assert_eq!((store.held.slab(), store.held.bytes_reserved()), (slab, reserved));
    }
}
