//! A map by id that can be walked in slices, in an order that depends on nothing random.
//! Grows as needed; never shrinks and never walks all of itself in one call.

use std::collections::HashMap;

use crate::id::Id;

/// Values by id, in numbered places that a walk visits in turn.
#[derive(Debug, Clone)]
pub(crate) struct IdMap<T> {
    places: Vec<Option<(Id, T)>>,
    free: Vec<u32>,
    index: HashMap<Id, u32>,
    cursor: usize,
}

impl<T> IdMap<T> {
    pub(crate) fn new() -> IdMap<T> {
        IdMap { places: Vec::new(), free: Vec::new(), index: HashMap::new(), cursor: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn get(&self, id: Id) -> Option<&T> {
        let place = *self.index.get(&id)?;
        self.places[place as usize].as_ref().map(|(_, value)| value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.places.iter().flatten().map(|(id, value)| (*id, value))
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let place = *self.index.get(&id)?;
        self.places[place as usize].as_mut().map(|(_, value)| value)
    }

    /// Puts a value in the place of the one there was, if there was one.
    pub(crate) fn insert(&mut self, id: Id, value: T) {
        if let Some(old) = self.get_mut(id) {
            *old = value;
            return;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            // Config::check keeps every map's limit below 2^30.
            (self.places.len() - 1) as u32
        });
        self.places[place as usize] = Some((id, value));
        self.index.insert(id, place);
    }

    pub(crate) fn remove(&mut self, id: Id) -> Option<T> {
        let place = self.index.remove(&id)?;
        self.free.push(place);
        self.places[place as usize].take().map(|(_, value)| value)
    }

    /// Goes on with the walk over all places, by at most `limit` of them and at most one round,
    /// and returns the ids of the values that `wanted` says yes to.
    pub(crate) fn walk(
        &mut self,
        limit: usize,
        mut wanted: impl FnMut(Id, &mut T) -> bool,
    ) -> Vec<Id> {
        let mut found = Vec::new();
        for _ in 0..limit.min(self.places.len()) {
            self.cursor = (self.cursor + 1) % self.places.len();
            if let Some((id, value)) = &mut self.places[self.cursor]
                && wanted(*id, value)
            {
                found.push(*id);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn is_a_map(steps in prop::collection::vec((any::<bool>(), 0..20u128, any::<u8>()), 0..200)) {
            let mut map = IdMap::new();
            let mut model = BTreeMap::new();
            for (insert, id, value) in steps {
                if insert {
                    map.insert(Id(id), value);
                    model.insert(Id(id), value);
                } else {
                    prop_assert_eq!(map.remove(Id(id)), model.remove(&Id(id)));
                }
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.get(Id(id)), model.get(&Id(id)));
            }
            let mut all = map.walk(usize::MAX, |id, value| model[&id] == *value);
            all.sort();
            prop_assert_eq!(all, model.into_keys().collect::<Vec<_>>());
            prop_assert!(map.places.len() <= 20);
        }
    }

    #[test]
    fn walks_in_slices() {
        let mut map = IdMap::new();
        for id in 0..10 {
            map.insert(Id(id), ());
        }
        let mut seen: Vec<Id> = (0..5).flat_map(|_| map.walk(2, |_, ()| true)).collect();
        seen.sort();
        assert_eq!(seen, (0..10).map(Id).collect::<Vec<_>>());
    }
}
