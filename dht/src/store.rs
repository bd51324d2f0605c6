//! The records that this node holds as a replica. Never evicts a live record: a full store says
//! so. Greater claims win, and a deleted record never comes back (R8, R12).

use std::collections::VecDeque;

use crate::id::Id;
use crate::id_map::IdMap;
use crate::record::{Claim, Record, State};

/// The answer to a STORE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Held now, or held already.
    Yes,
    /// A greater claim is held, live or deleted.
    Stale(Claim),
    /// There is no room.
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

/// Records by id, bounded in number.
#[derive(Debug, Clone)]
pub struct Store {
    records: IdMap<Record>,
    records_max: usize,
    tombstones: usize,
    tombstone_ttl_us: u64,
    /// When which tombstone may go: all live equally long, so this is in order.
    buried: VecDeque<(u64, Id)>,
}

impl Store {
    /// A store of at most `records_max` records, tombstones included, which remembers a delete
    /// for `tombstone_ttl_us`.
    #[must_use]
    pub fn new(records_max: usize, tombstone_ttl_us: u64) -> Store {
        Store {
            records: IdMap::new(),
            records_max,
            tombstones: 0,
            tombstone_ttl_us,
            buried: VecDeque::new(),
        }
    }

    /// Live records, expired ones that were not swept yet included.
    #[must_use]
    pub fn live(&self) -> usize {
        self.records.len() - self.tombstones
    }

    /// Tombstones, as above.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.tombstones
    }

    /// All live records, in no order.
    pub fn iter(&self, now_us: u64) -> impl Iterator<Item = (Id, Claim)> + '_ {
        let live = move |r: &Record| r.state == State::Live && !r.is_expired(now_us);
        self.records.iter().filter(move |(_, r)| live(r)).map(|(id, r)| (id, r.claim))
    }

    /// The record under an id, live or a tombstone.
    #[must_use]
    pub fn get(&self, now_us: u64, id: Id) -> Option<&Record> {
        self.records.get(id).filter(|r| !r.is_expired(now_us))
    }

    /// Takes a claim until `expires_at_us`. The claim held already is only made to live longer.
    pub fn store(&mut self, now_us: u64, id: Id, claim: Claim, expires_at_us: u64) -> Stored {
        let held = self.get(now_us, id).copied();
        match held {
            Some(held) if held.claim > claim => return Stored::Stale(held.claim),
            Some(held) if held.claim == claim && held.state == State::Tombstone => {
                return Stored::Stale(held.claim);
            }
            None if !self.has_room(now_us, id) => return Stored::Full,
            _ => {}
        }
        self.put(id, Record { claim, state: State::Live, expires_at_us });
        Stored::Yes
    }

    /// Ends a claim and all lesser ones.
    pub fn delete(&mut self, now_us: u64, id: Id, claim: Claim) -> Deleted {
        match self.get(now_us, id).copied() {
            Some(held) if held.claim > claim => return Deleted::Stale(held.claim),
            None if !self.has_room(now_us, id) => return Deleted::NotRemembered,
            _ => {}
        }
        let expires_at_us = now_us.saturating_add(self.tombstone_ttl_us);
        self.put(id, Record { claim, state: State::Tombstone, expires_at_us });
        self.buried.push_back((expires_at_us, id));
        Deleted::Yes
    }

    /// Drops what has expired: all tombstones in turn and a slice of the live records, at most
    /// `limit` of each. Returns how many live ones were dropped.
    pub fn sweep(&mut self, now_us: u64, limit: usize) -> usize {
        self.sweep_tombstones(now_us, limit);
        let expired =
            self.records.walk(limit, |_, r| r.state == State::Live && r.is_expired(now_us));
        for id in &expired {
            self.records.remove(*id);
        }
        expired.len()
    }

    fn sweep_tombstones(&mut self, now_us: u64, limit: usize) {
        for _ in 0..limit {
            match self.buried.front() {
                Some((expires_at_us, _)) if *expires_at_us <= now_us => {}
                _ => return,
            }
            let Some((_, id)) = self.buried.pop_front() else {
                return;
            };
            // It may have been superseded, or deleted again and live longer.
            let record = self.records.get(id);
            if record.is_some_and(|r| r.state == State::Tombstone && r.is_expired(now_us)) {
                self.records.remove(id);
                self.tombstones -= 1;
            }
        }
    }

    /// Whether a record can be added under an id that holds none, or only an expired one.
    fn has_room(&mut self, now_us: u64, id: Id) -> bool {
        const AT_ONCE: usize = 64;
        if self.records.len() < self.records_max || self.records.get(id).is_some() {
            return true;
        }
        self.sweep(now_us, AT_ONCE);
        self.records.len() < self.records_max
    }

    fn put(&mut self, id: Id, record: Record) {
        let held = self.records.get(id);
        self.tombstones -= usize::from(held.is_some_and(|r| r.state == State::Tombstone));
        self.tombstones += usize::from(record.state == State::Tombstone);
        self.records.insert(id, record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_handoff::Version;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const TOMBSTONE_TTL_US: u64 = 50;

    fn claim(version: u64, owner: u8) -> Claim {
        Claim { version: Version(version), owner: [10, 0, 0, owner].into() }
    }

    /// A STORE or DELETE.
    #[derive(Debug, Clone, Copy)]
    struct Step {
        stores: bool,
        id: Id,
        claim: Claim,
        after_us: u64,
        ttl_us: u64,
    }

    fn steps(ids: u128, versions: u64) -> impl Strategy<Value = Vec<Step>> {
        let step = (any::<bool>(), 0..ids, 0..versions, 0..3u8, 0..20u64, 1..200u64).prop_map(
            |(stores, id, version, owner, after_us, ttl_us)| Step {
                stores,
                id: Id(id),
                claim: claim(version, owner),
                after_us,
                ttl_us,
            },
        );
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn r12_behaves_as_a_plain_map(steps in steps(6, 8), sweeps in any::<bool>()) {
            let mut store = Store::new(4, TOMBSTONE_TTL_US);
            let mut model: BTreeMap<Id, Record> = BTreeMap::new();
            let mut now_us = 0;
            for Step { stores, id, claim, after_us, ttl_us } in steps {
                now_us += after_us;
                model.retain(|_, record| now_us < record.expires_at_us);
                if sweeps {
                    store.sweep(now_us, usize::MAX);
                    prop_assert_eq!(store.live() + store.tombstones(), model.len());
                }
                let held = model.get(&id).copied();
                let greater = held.filter(|h| {
                    h.claim > claim || (stores && h.claim == claim && h.state == State::Tombstone)
                });
                let room = held.is_some() || model.len() < 4;
                let record = Record {
                    claim,
                    state: if stores { State::Live } else { State::Tombstone },
                    expires_at_us: now_us + if stores { ttl_us } else { TOMBSTONE_TTL_US },
                };
                if greater.is_none() && room {
                    model.insert(id, record);
                }
                if stores {
                    let expected = match greater {
                        Some(held) => Stored::Stale(held.claim),
                        None if room => Stored::Yes,
                        None => Stored::Full,
                    };
                    prop_assert_eq!(store.store(now_us, id, claim, now_us + ttl_us), expected);
                } else {
                    let expected = match greater {
                        Some(held) => Deleted::Stale(held.claim),
                        None if room => Deleted::Yes,
                        None => Deleted::NotRemembered,
                    };
                    prop_assert_eq!(store.delete(now_us, id, claim), expected);
                }
                for id in (0..6).map(Id) {
                    prop_assert_eq!(store.get(now_us, id), model.get(&id));
                }
                prop_assert!(store.records.len() <= 4);
            }
        }

        #[test]
        fn r8_r12_the_order_of_arrival_does_not_matter(
            steps in steps(1, 20),
            order in any::<prop::sample::Index>(),
        ) {
            // As long as tombstones last: whatever arrives when, the greatest claim stands, and
            // it is deleted if it was deleted at all.
            let run = |steps: &[Step]| {
                let mut store = Store::new(4, 1_000_000);
                for step in steps {
                    match step.stores {
                        true => drop(store.store(0, step.id, step.claim, 1_000_000)),
                        false => drop(store.delete(0, step.id, step.claim)),
                    }
                }
                store.get(0, Id(0)).map(|r| (r.claim, r.state))
            };
            let mut shuffled = steps.clone();
            shuffled.reverse();
            if !shuffled.is_empty() {
                let turn = order.index(shuffled.len());
                shuffled.rotate_left(turn);
            }
            let greatest = steps.iter().map(|s| s.claim).max();
            let expected = greatest.map(|greatest| {
                let deleted = steps.iter().any(|s| !s.stores && s.claim == greatest);
                (greatest, if deleted { State::Tombstone } else { State::Live })
            });
            prop_assert_eq!(run(&steps), expected);
            prop_assert_eq!(run(&shuffled), expected);
        }
    }

    #[test]
    fn r8_a_deleted_record_does_not_come_back() {
        let mut store = Store::new(4, TOMBSTONE_TTL_US);
        let id = Id(1);
        // The DELETE overtakes the STORE.
        assert_eq!(store.delete(0, id, claim(5, 1)), Deleted::Yes);
        assert_eq!(store.store(1, id, claim(5, 1), 1000), Stored::Stale(claim(5, 1)));
        assert_eq!(store.store(1, id, claim(4, 2), 1000), Stored::Stale(claim(5, 1)));
        assert_eq!(store.store(1, id, claim(6, 2), 1000), Stored::Yes);
        assert_eq!(store.delete(2, id, claim(5, 1)), Deleted::Stale(claim(6, 2)));
        assert_eq!(store.get(2, id).map(|r| r.state), Some(State::Live));
        assert_eq!((store.live(), store.tombstones()), (1, 0));
    }

    #[test]
    fn a_full_store_keeps_its_live_records() {
        let mut store = Store::new(2, TOMBSTONE_TTL_US);
        assert_eq!(store.store(0, Id(1), claim(1, 1), 1000), Stored::Yes);
        assert_eq!(store.delete(0, Id(2), claim(1, 1)), Deleted::Yes);
        assert_eq!(store.store(0, Id(3), claim(1, 1), 1000), Stored::Full);
        assert_eq!(store.delete(0, Id(3), claim(1, 1)), Deleted::NotRemembered);
        // The tombstone has expired by now, and makes room although nobody swept.
        assert_eq!(store.store(TOMBSTONE_TTL_US, Id(3), claim(1, 1), 1000), Stored::Yes);
        assert!(store.get(TOMBSTONE_TTL_US, Id(1)).is_some());
    }
}
