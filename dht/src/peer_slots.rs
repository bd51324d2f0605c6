//! Short names for the peers that hold records of ours: millions of published records name three
//! peers each. Never gives two lives of a peer the same name.

use std::collections::HashMap;
use std::net::SocketAddr;

/// Addresses that can have a name.
const SLOTS_MAX: usize = 1 << 16;

/// One life of a peer, from entering the routing table to leaving it or restarting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    index: u32,
    generation: u32,
}

impl Slot {
    /// This node itself.
    pub const OWN: Slot = Slot { index: 0, generation: 0 };

    /// The name as a number.
    pub(crate) const fn token(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The name that has this number.
    pub(crate) const fn from_token(token: u64) -> Slot {
        Slot { index: token as u32, generation: (token >> 32) as u32 }
    }
}

/// The names that were given.
#[derive(Debug)]
pub(crate) struct PeerSlots {
    slots: Vec<Place>,
    index: HashMap<SocketAddr, u32>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    address: SocketAddr,
    generation: u32,
}

impl Place {
    fn new(address: SocketAddr) -> Place {
        Place { address, generation: 0 }
    }
}

impl PeerSlots {
    /// No names but [`Slot::OWN`], which is this node's.
    pub(crate) fn new(own: SocketAddr) -> PeerSlots {
        PeerSlots { slots: vec![Place::new(own)], index: HashMap::from([(own, 0)]) }
    }

    /// A new name for the peer with this address; `None` when there are too many.
    pub(crate) fn begin(&mut self, address: SocketAddr) -> Option<Slot> {
        if let Some(&index) = self.index.get(&address) {
            let generation = &mut self.slots[index as usize].generation;
            *generation = generation.wrapping_add(1);
            return Some(Slot { index, generation: *generation });
        }
        if self.slots.len() == SLOTS_MAX {
            return None;
        }
        let index = self.slots.len() as u32;
        self.slots.push(Place::new(address));
        self.index.insert(address, index);
        Some(Slot { index, generation: 0 })
    }

    /// The name that the peer with this address has, or a new one.
    pub(crate) fn of(&mut self, address: SocketAddr) -> Option<Slot> {
        let Some(&index) = self.index.get(&address) else {
            return self.begin(address);
        };
        let generation = self.slots[index as usize].generation;
        Some(Slot { index, generation })
    }

    /// Whether this life of the peer is its last.
    pub(crate) fn is_current(&self, slot: Slot) -> bool {
        self.slots[slot.index as usize].generation == slot.generation
    }

    /// The address of the peer with this name.
    pub(crate) fn address(&self, slot: Slot) -> SocketAddr {
        self.slots[slot.index as usize].address
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
}
