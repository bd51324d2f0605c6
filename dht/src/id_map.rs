//! A map by id of a fixed capacity, reserved at the start and touched as it is used, that can be
//! walked in slices in an order that depends on nothing random. Never allocates after it was
//! made, and never walks all of itself unless told so.

use std::hint::black_box;
use std::ops::{Index, IndexMut};

use crate::id::Id;
use crate::place_index::PlaceIndex;

/// Values by id, one behind the other without gaps: a removed one's place is taken by the last.
#[derive(Debug, Clone)]
pub(crate) struct IdMap<T> {
    places: Vec<(Id, T)>,
    capacity: usize,
    index: PlaceIndex,
    /// The walk goes on below this place. It goes down, as what a removal moves comes from above:
    /// nothing that is there all the time is missed.
    cursor: usize,
}

/// Where a value is until the next insertion or removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(usize);

impl<T> IdMap<T> {
    /// A map for `capacity` values, below 2^30. The `seed` need be known to nobody who chooses
    /// ids; it changes nothing that can be seen but time.
    pub(crate) fn new(capacity: usize, seed: u64) -> IdMap<T> {
        IdMap {
            places: Vec::with_capacity(capacity),
            capacity,
            index: PlaceIndex::new(capacity, seed),
            cursor: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn is_full(&self) -> bool {
        self.places.len() == self.capacity
    }

    pub(crate) fn place(&self, id: Id) -> Option<Place> {
        let tag = self.index.tag(id.0);
        self.index.find(tag, |place| self.places[place].0 == id).map(Place)
    }

    pub(crate) fn get(&self, id: Id) -> Option<&T> {
        self.place(id).map(|place| &self[place])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.places.iter().map(|(id, value)| (*id, value))
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        self.place(id).map(|place| &mut self[place])
    }

    /// Brings what calls about these ids look at into the caches. Each of them would wait for
    /// the memory twice, for the index and the slab; for many ids one waits little longer.
    pub(crate) fn warm(&self, ids: impl Iterator<Item = Id> + Clone) {
        let glance = |seen, id: Id| seen ^ self.index.glance(self.index.tag(id.0));
        black_box(ids.clone().fold(0, glance));
        let look = |seen, id: Id| {
            let place = self.index.find(self.index.tag(id.0), |_| true);
            seen ^ place.map_or(0, |place| self.places[place].0.0)
        };
        black_box(ids.fold(0, look));
    }

    /// Puts a value in the place of the one there was, if there was one. Returns whether there
    /// was room.
    pub(crate) fn insert(&mut self, id: Id, value: T) -> bool {
        match self.place(id) {
            Some(place) => self[place] = value,
            None if self.is_full() => return false,
            None => self.add(id, value),
        }
        true
    }

    /// Puts a value under an id that has none, when there is room.
    pub(crate) fn add(&mut self, id: Id, value: T) {
        debug_assert!(!self.is_full());
        self.index.insert(self.index.tag(id.0), self.places.len());
        self.places.push((id, value));
    }

    pub(crate) fn remove(&mut self, id: Id) -> Option<T> {
        let place = self.place(id)?;
        Some(self.remove_at(place))
    }

    pub(crate) fn remove_at(&mut self, place: Place) -> T {
        let Place(place) = place;
        let (id, value) = self.places.swap_remove(place);
        self.index.remove(self.index.tag(id.0), place);
        if let Some((moved, _)) = self.places.get(place) {
            self.index.moved(self.index.tag(moved.0), self.places.len(), place);
        }
        value
    }

    /// The next place of the walk.
    fn next(&mut self) -> Place {
        if self.cursor == 0 || self.cursor > self.places.len() {
            self.cursor = self.places.len();
        }
        self.cursor -= 1;
        Place(self.cursor)
    }

    /// How many places the next slice of the walk visits: a slice of everything is a round.
    fn slice(&mut self, limit: usize) -> usize {
        if limit >= self.places.len() {
            self.cursor = 0;
        }
        limit.min(self.places.len())
    }

    /// Goes on with the walk by at most `limit` values and at most one round.
    pub(crate) fn walk(&mut self, limit: usize, mut visit: impl FnMut(Id, &mut T)) {
        for _ in 0..self.slice(limit) {
            let Place(place) = self.next();
            let (id, value) = &mut self.places[place];
            visit(*id, value);
        }
    }

    /// Goes on with the walk as [`IdMap::walk`] does, and removes those
    /// that `keep` says no to, at most `removals_max`.
    pub(crate) fn retain(
        &mut self,
        limit: usize,
        removals_max: usize,
        mut keep: impl FnMut(&T) -> bool,
    ) {
        let mut removals = 0;
        for _ in 0..self.slice(limit) {
            if removals == removals_max {
                return;
            }
            let place = self.next();
            if !keep(&self[place]) {
                self.remove_at(place);
                removals += 1;
            }
        }
    }
}

impl<T> Index<Place> for IdMap<T> {
    type Output = T;

    fn index(&self, Place(place): Place) -> &T {
        &self.places[place].1
    }
}

impl<T> IndexMut<Place> for IdMap<T> {
    fn index_mut(&mut self, Place(place): Place) -> &mut T {
        &mut self.places[place].1
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;
    use std::collections::{BTreeMap, BTreeSet};

    impl<T> IdMap<T> {
        /// Where the slab is.
        pub(crate) fn slab(&self) -> *const (Id, T) {
            self.places.as_ptr()
        }

        pub(crate) fn bytes_reserved(&self) -> usize {
            self.places.capacity() * size_of::<(Id, T)>() + self.index.bytes()
        }
    }

    /// Ids as a hash makes them.
    pub(crate) fn ids(seed: u64) -> impl Iterator<Item = Id> {
        let mut rng = Pcg64::seed_from_u64(seed);
        std::iter::from_fn(move || Some(Id(rng.random())))
    }

    proptest! {
        #[test]
        fn is_a_map(
            steps in prop::collection::vec((0..3u8, 0..40u128, any::<u8>()), 0..400),
            seed in any::<u64>(),
        ) {
            let mut map = IdMap::new(20, seed);
            let mut model = BTreeMap::new();
            for (step, id, value) in steps {
                match step {
                    0 | 1 => {
                        let room = model.len() < 20 || model.contains_key(&Id(id));
                        prop_assert_eq!(map.insert(Id(id), value), room);
                        if room {
                            model.insert(Id(id), value);
                        }
                    }
                    _ => prop_assert_eq!(map.remove(Id(id)), model.remove(&Id(id))),
                }
                prop_assert_eq!(map.len(), model.len());
                for id in (0..40).map(Id) {
                    prop_assert_eq!(map.get(id), model.get(&id));
                }
            }
            let mut all = Vec::new();
            map.walk(usize::MAX, |id, value| {
                assert_eq!(model[&id], *value);
                all.push(id);
            });
            all.sort();
            prop_assert_eq!(&all, &model.keys().copied().collect::<Vec<_>>());
            // Also when it begins in the middle of a round.
            map.walk(seed as usize % 10, |_, _| ());
            map.retain(usize::MAX, usize::MAX, |value| value % 2 == 0);
            model.retain(|_, value| *value % 2 == 0);
            let mut left = 0;
            map.walk(usize::MAX, |_, _| left += 1);
            prop_assert_eq!(left, model.len());
            prop_assert!(model.keys().all(|id| map.get(*id).is_some()));
        }

        #[test]
        fn a_round_of_slices_misses_nothing_that_stays(
            steps in prop::collection::vec((0..30u128, 1..6usize), 1..60),
            stay in prop::collection::btree_set(100..140u128, 1..30),
        ) {
            // Others come and go between the slices of one round, which begins at the top.
            let mut map = IdMap::new(70, 1);
            for id in &stay {
                map.insert(Id(*id), ());
            }
            let mut seen: BTreeSet<Id> = BTreeSet::new();
            let mut top = usize::MAX;
            for (id, slice) in steps.iter().cycle() {
                if map.remove(Id(*id)).is_none() {
                    map.insert(Id(*id), ());
                }
                map.walk(*slice, |id, ()| {
                    seen.insert(id);
                });
                if map.cursor == 0 || map.cursor > top {
                    break;
                }
                top = map.cursor;
            }
            prop_assert!(stay.iter().all(|id| seen.contains(&Id(*id))), "{seen:?} of {stay:?}");
        }
    }

    #[test]
    fn walks_in_slices() {
        let mut map = IdMap::new(10, 1);
        for id in 0..10 {
            map.insert(Id(id), ());
        }
        let mut seen = Vec::new();
        for _ in 0..5 {
            map.walk(2, |id, ()| seen.push(id));
        }
        seen.sort();
        assert_eq!(seen, (0..10).map(Id).collect::<Vec<_>>());
    }
}
