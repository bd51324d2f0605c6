//! Where in a slab a key's value is: open addressing with linear probing in one array, made at
//! its full size at the start. Never allocates afterwards, never rehashes and never leaves marks
//! where something was removed, so that no call is much slower than another however much has
//! come and gone. Never holds a key: the slab's owner compares them.
//!
//! An entry is 32 bits of the key's hash and the place, so that a search looks at the slab for
//! (almost) no other key than its own. The 32 bits also say where the entry's search begins:
//! removing one needs no look at the slab.

/// Places by the hash of what they hold.
#[derive(Debug, Clone)]
pub(crate) struct PlaceIndex {
    /// Never full; an entry is `tag << 32 | place + 1`, and [`EMPTY`] is none.
    entries: Box<[u64]>,
    secrets: [u64; 2],
}

/// Zero, so that the pages of the array are the kernel's untouched ones until they are used.
const EMPTY: u64 = 0;

/// 32 bits of a key's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(u32);

impl PlaceIndex {
    /// An index of at most `places_max` places, below 2^30: 10⅔ bytes for each, as a quarter of
    /// the entries stays empty to keep searches short. The `seed` keeps whoever chooses
    /// keys from choosing them so that all searches begin at one entry.
    pub(crate) fn new(places_max: usize, seed: u64) -> PlaceIndex {
        let entries = vec![EMPTY; places_max + places_max / 3 + 1];
        let secrets = [scrambled(seed), scrambled(seed.wrapping_add(1))];
        PlaceIndex { entries: entries.into_boxed_slice(), secrets }
    }

    /// The tag of a key: a folded multiplication under the index's secrets. Keys are no secrets
    /// and no untrusted text, but hashes and addresses: this need not be a strong hash, only one
    /// that nobody can foresee.
    pub(crate) fn tag(&self, key: u128) -> Tag {
        let low = key as u64 ^ self.secrets[0];
        let high = (key >> 64) as u64 ^ self.secrets[1];
        let product = u128::from(low) * u128::from(high);
        Tag(((product as u64 ^ (product >> 64) as u64) >> 32) as u32)
    }

    /// The place under a tag of which `is_it` says yes.
    pub(crate) fn find(&self, tag: Tag, mut is_it: impl FnMut(usize) -> bool) -> Option<usize> {
        let mut at = self.home(tag);
        loop {
            let entry = self.entries[at];
            if entry == EMPTY {
                return None;
            }
            if tag_of(entry) == tag && is_it(place_of(entry)) {
                return Some(place_of(entry));
            }
            at = self.after(at);
        }
    }

    /// The entry at which the search for a tag begins, whatever it is: reads memory and decides
    /// nothing, so that a processor reads for many tags at the same time.
    pub(crate) fn glance(&self, tag: Tag) -> u64 {
        self.entries[self.home(tag)]
    }

    /// Adds a place that is not in the index. The caller keeps to `places_max`.
    pub(crate) fn insert(&mut self, tag: Tag, place: usize) {
        let mut at = self.home(tag);
        while self.entries[at] != EMPTY {
            at = self.after(at);
        }
        self.entries[at] = entry_of(tag, place);
    }

    /// What was in place `old` is in place `new` now.
    pub(crate) fn moved(&mut self, tag: Tag, old: usize, new: usize) {
        if let Some(at) = self.position(tag, old) {
            self.entries[at] = entry_of(tag, new);
        }
    }

    /// Removes a place, and closes the gap: entries after it that a search would not find beyond
    /// the gap move up (Knuth, The Art of Computer Programming, vol. 3, algorithm 6.4 R).
    pub(crate) fn remove(&mut self, tag: Tag, place: usize) {
        let Some(mut gap) = self.position(tag, place) else {
            return;
        };
        let mut at = self.after(gap);
        while self.entries[at] != EMPTY {
            let home = self.home(tag_of(self.entries[at]));
            if self.steps(home, at) >= self.steps(gap, at) {
                self.entries[gap] = self.entries[at];
                gap = at;
            }
            at = self.after(at);
        }
        self.entries[gap] = EMPTY;
    }

    fn position(&self, tag: Tag, place: usize) -> Option<usize> {
        let mut at = self.home(tag);
        while self.entries[at] != entry_of(tag, place) {
            if self.entries[at] == EMPTY {
                return None;
            }
            at = self.after(at);
        }
        Some(at)
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.entries)
    }

    /// Where the search for a tag begins.
    fn home(&self, tag: Tag) -> usize {
        ((u64::from(tag.0) * self.entries.len() as u64) >> 32) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.entries.len() { 0 } else { at + 1 }
    }

    /// Steps forward from one entry to another.
    fn steps(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.entries.len() - from }
    }
}

fn entry_of(tag: Tag, place: usize) -> u64 {
    u64::from(tag.0) << 32 | (place as u64 + 1)
}

fn tag_of(entry: u64) -> Tag {
    Tag((entry >> 32) as u32)
}

fn place_of(entry: u64) -> usize {
    (entry as u32 - 1) as usize
}

/// A step of SplitMix64 (Steele, Lea and Flood 2014).
fn scrambled(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn is_a_map_however_full(
            steps in prop::collection::vec((0..3u8, any::<prop::sample::Index>()), 0..400),
            places_max in 1..24usize,
            seed in any::<u64>(),
        ) {
            // Few homes, so that runs are long and go round the end.
            let mut index = PlaceIndex::new(places_max, seed);
            let mut model: BTreeMap<usize, Tag> = BTreeMap::new();
            for (what, which) in steps {
                let place = which.index(2 * places_max);
                let tag = Tag(((which.index(7) as u32) << 29) | u32::MAX >> 4);
                match model.get(&place).copied() {
                    None if model.len() < places_max => {
                        index.insert(tag, place);
                        model.insert(place, tag);
                    }
                    Some(tag) if what == 0 => {
                        let free = (0..).find(|p| !model.contains_key(p)).expect("free");
                        index.moved(tag, place, free);
                        model.remove(&place);
                        model.insert(free, tag);
                    }
                    Some(tag) => {
                        index.remove(tag, place);
                        model.remove(&place);
                    }
                    None => {
                        // Not there: changes nothing.
                        index.remove(tag, place);
                        index.moved(tag, place, 0);
                    }
                }
                for (place, tag) in &model {
                    prop_assert_eq!(index.find(*tag, |p| p == *place), Some(*place));
                }
                let used = index.entries.iter().filter(|e| **e != EMPTY).count();
                prop_assert_eq!(used, model.len());
            }
        }
    }

    #[test]
    fn keys_in_a_row_spread() {
        // Locators and test ids are such keys. With 2^16 of them in 2^16·4/3 entries, a search
        // looks at (1 + 1/(1−¾))/2 = 2.5 entries on average.
        for seed in 0..4 {
            let mut index = PlaceIndex::new(1 << 16, seed);
            for key in 0..1 << 16 {
                index.insert(index.tag(key), key as usize);
            }
            let steps = |key: u128| {
                let tag = index.tag(key);
                let at = index.position(tag, key as usize).expect("inserted");
                index.steps(index.home(tag), at)
            };
            let total: usize = (0..1 << 16).map(steps).sum();
            assert!(total < 3 << 16, "seed {seed}: {total}");
        }
    }
}
