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
}

/// The names that were given.
#[derive(Debug, Clone)]
pub(crate) struct PeerSlots {
    slots: Vec<(SocketAddr, u32)>,
    index: HashMap<SocketAddr, u32>,
}

impl PeerSlots {
    /// No names but [`Slot::OWN`], which is this node's.
    pub(crate) fn new(own: SocketAddr) -> PeerSlots {
        PeerSlots { slots: vec![(own, 0)], index: HashMap::from([(own, 0)]) }
    }

    /// A new name for the peer with this address; `None` when there are too many.
    pub(crate) fn begin(&mut self, address: SocketAddr) -> Option<Slot> {
        if let Some(&index) = self.index.get(&address) {
            let generation = &mut self.slots[index as usize].1;
            *generation = generation.wrapping_add(1);
            return Some(Slot { index, generation: *generation });
        }
        if self.slots.len() == SLOTS_MAX {
            return None;
        }
        let index = self.slots.len() as u32;
        self.slots.push((address, 0));
        self.index.insert(address, index);
        Some(Slot { index, generation: 0 })
    }

    /// The name that the peer with this address has, or a new one.
    pub(crate) fn of(&mut self, address: SocketAddr) -> Option<Slot> {
        let Some(&index) = self.index.get(&address) else {
            return self.begin(address);
        };
        let generation = self.slots[index as usize].1;
        Some(Slot { index, generation })
    }

    /// The address of the peer with this name.
    pub(crate) fn address(&self, slot: Slot) -> SocketAddr {
        self.slots[slot.index as usize].0
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
