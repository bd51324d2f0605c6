//! Which of the nodes close to a record hold it: those that win a draw which every server can
//! repeat, the highest random weight (Thaler and Ravishankar 1998), held among the nodes closest
//! by XOR. Never asks anyone and keeps no state.
//!
//! By distance alone the load is uneven: a node that has few neighbours in the id space is the
//! closest to much of it. Weights depend on the pair of record and node, so that each of the
//! nodes that take part in a draw wins its share (`docs/adr/0007`).

#[cfg(test)]
mod tests;

use crate::id::Id;

/// Bits of a weight. The other 16 bits of a word hold a node's place in the routing table while
/// the nodes are compared.
pub(crate) const WEIGHT_BITS: u32 = 48;

/// How replicas are chosen; the same on all servers of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    spread: usize,
    replicas: usize,
}

/// A node's place among those that take part in the draw for a record: the least holds it first.
/// To be compared with ranks for the same record and under the same [`Placement`] only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u128);

impl Placement {
    /// The closest nodes, however many.
    pub const PLAIN: Placement = Placement { spread: 0, replicas: 0 };

    /// Replicas are drawn among the `spread` nodes closest to a record. With `spread` ≤
    /// `replicas` there is nothing to draw: this is plain Kademlia.
    #[must_use]
    pub const fn new(spread: usize, replicas: usize) -> Placement {
        Placement { spread, replicas }
    }

    /// Whether replicas are the closest nodes, in the order of distance.
    #[must_use]
    pub const fn is_plain(self) -> bool {
        self.spread <= self.replicas
    }

    /// How many of the nodes closest to a record have to be known to know its replicas.
    #[must_use]
    pub const fn width(self) -> usize {
        if self.is_plain() { self.replicas } else { self.spread }
    }

    /// The rank of a node for a record, among the [`width`](Self::width) nodes closest to it.
    #[must_use]
    pub fn rank(self, target: Id, node: Id) -> Rank {
        if self.is_plain() {
            return Rank(target.distance(node).0);
        }
        let lightness = !weight(target, node) << (u64::BITS - WEIGHT_BITS);
        // Of two nodes of one weight the one with the lesser id is first.
        Rank(u128::from(lightness) << 64 | node.0 >> WEIGHT_BITS)
    }

    /// Leaves of `candidates` the `count` best, best first: what
    /// [`RoutingTable::replicas`](crate::routing_table::RoutingTable::replicas) does, for nodes
    /// found by a walk. `id` says a candidate's id.
    pub fn retain_best<T>(
        self,
        target: Id,
        candidates: &mut Vec<T>,
        count: usize,
        id: impl Fn(&T) -> Id,
    ) {
        if !self.is_plain() && candidates.len() > self.spread {
            candidates.select_nth_unstable_by_key(self.spread, |c| target.distance(id(c)));
            candidates.truncate(self.spread);
        }
        candidates.sort_unstable_by_key(|c| (self.rank(target, id(c)), id(c)));
        candidates.truncate(count);
    }
}

/// The weight of a node for a record, below 2^[`WEIGHT_BITS`]; the greatest wins. Both ids are
/// keyed hashes already: one multiplication folded (as in wyhash) suffices to mix them. Halves
/// are crossed, so that what a node near the record has in common with it does not cancel out.
pub(crate) fn weight(target: Id, node: Id) -> u64 {
    let low = |id: u128| id as u64;
    let high = |id: u128| (id >> 64) as u64;
    let one = low(target.0) ^ high(node.0);
    let other = high(target.0) ^ low(node.0);
    let product = u128::from(one).wrapping_mul(u128::from(other));
    (low(product) ^ high(product)) >> (u64::BITS - WEIGHT_BITS)
}
