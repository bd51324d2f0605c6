//! Short names for the peers that hold records of ours: millions of published records name three
//! peers each. Never gives two lives of a peer the same name, or not before 65,536 others.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

use hashbrown::HashTable;

/// Addresses that can have a name.
pub(crate) const SLOTS_MAX: usize = 1 << 16;

/// One life of a peer, from entering the routing table to leaving it or restarting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Number of the peer's address.
    index: u16,
    /// Number of its life. When it comes round, a life's name is used again; nothing is left
    /// from that life but perhaps the memory of a former replica.
    generation: u16,
}

impl Slot {
    /// This node itself.
    pub const OWN: Slot = Slot { index: 0, generation: 0 };

    /// Number of the peer's address, the same in all its lives: they are given from 0, which is
    /// this node's own, without gaps.
    pub(crate) const fn index(self) -> usize {
        self.index as usize
    }

    /// The name as a number.
    pub(crate) const fn token(self) -> u64 {
        (self.generation as u64) << 16 | self.index as u64
    }

    /// The name that has this number.
    pub(crate) const fn from_token(token: u64) -> Slot {
        Slot { index: token as u16, generation: (token >> 16) as u16 }
    }
}

/// The names that were given.
#[derive(Debug, Clone)]
pub(crate) struct PeerSlots {
    /// By index: the address, and the generation of its latest life.
    slots: Vec<(SocketAddr, u16)>,
    /// Indexes by address.
    index: HashTable<u16>,
    hasher: RandomState,
}

impl PeerSlots {
    /// Addresses that have a name.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// No names but [`Slot::OWN`], which is this node's.
    pub(crate) fn new(own: SocketAddr) -> PeerSlots {
        let mut slots =
            PeerSlots { slots: Vec::new(), index: HashTable::new(), hasher: RandomState::new() };
        slots.add(own);
        slots
    }

    /// A new name for the peer with this address; `None` when there are too many.
    pub(crate) fn begin(&mut self, address: SocketAddr) -> Option<Slot> {
        let Some(index) = self.find(address) else {
            return self.add(address);
        };
        let generation = &mut self.slots[usize::from(index)].1;
        *generation = generation.wrapping_add(1);
        Some(Slot { index, generation: *generation })
    }

    /// The name that the peer with this address has, or a new one.
    pub(crate) fn of(&mut self, address: SocketAddr) -> Option<Slot> {
        let Some(index) = self.find(address) else {
            return self.add(address);
        };
        let generation = self.slots[usize::from(index)].1;
        Some(Slot { index, generation })
    }

    /// Whether this life of the peer is its last.
    pub(crate) fn is_current(&self, slot: Slot) -> bool {
        self.slots[slot.index()].1 == slot.generation
    }

    /// The address of the peer with this name.
    pub(crate) fn address(&self, slot: Slot) -> SocketAddr {
        self.slots[slot.index()].0
    }

    fn find(&self, address: SocketAddr) -> Option<u16> {
        let same = |index: &u16| self.slots[usize::from(*index)].0 == address;
        self.index.find(self.hasher.hash_one(address), same).copied()
    }

    fn add(&mut self, address: SocketAddr) -> Option<Slot> {
        if self.slots.len() == SLOTS_MAX {
            return None;
        }
        let index = self.slots.len() as u16;
        let hash = self.hasher.hash_one(address);
        self.slots.push((address, 0));
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hash, index, |i| hasher.hash_one(slots[usize::from(*i)].0));
        Some(Slot { index, generation: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lives_have_two_names() {
        let (own, peer) = (([10, 0, 0, 1], 7000).into(), ([10, 0, 0, 2], 7000).into());
        let mut slots = PeerSlots::new(own);
        let first = slots.begin(peer).expect("room");
        let second = slots.begin(peer).expect("room");
        assert_ne!(first, second);
        assert_eq!(slots.of(peer), Some(second));
        assert_ne!(first, Slot::OWN);
        assert_eq!(slots.address(first), peer);
        assert_eq!(slots.address(second), peer);
        assert_eq!(slots.address(Slot::OWN), own);
    }

    #[test]
    fn names_are_small_and_numbered_without_gaps() {
        assert_eq!(size_of::<Slot>(), 4);
        let mut slots = PeerSlots::new(([10, 0, 0, 1], 7000).into());
        for n in 1..300u16 {
            let peer = ([10, 1, (n >> 8) as u8, n as u8], 7000).into();
            assert_eq!(slots.begin(peer).map(Slot::index), Some(n.into()));
            assert_eq!(slots.begin(peer).map(Slot::index), Some(n.into()));
        }
    }

    #[test]
    fn the_addresses_are_bounded() {
        let address = |n: usize| SocketAddr::from((std::net::Ipv4Addr::from(n as u32), 7000));
        let mut slots = PeerSlots::new(address(0));
        for n in 1..SLOTS_MAX {
            assert_eq!(slots.of(address(n)).map(Slot::index), Some(n));
        }
        assert_eq!(slots.begin(address(SLOTS_MAX)), None);
        assert_eq!(slots.of(address(SLOTS_MAX)), None);
        let known = slots.begin(address(1)).expect("known");
        assert_eq!(slots.address(known), address(1));
    }
}
