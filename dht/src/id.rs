//! Ids of nodes and records, and the XOR metric between them. Never random: an id is a keyed
//! hash of what it names, so every server computes the same one and nobody can choose theirs.

use std::fmt;
use std::net::IpAddr;

use holdfast_net::FlowKey;
use siphasher::sip128::SipHasher24;

/// Bits of an id.
pub const ID_BITS: u32 = 128;

/// A point of the 128-bit id space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u128);

/// How far two ids are apart: their XOR (section 2.1 of the Kademlia paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance(pub u128);

impl Id {
    /// The distance to another id; 0 only to itself, and the same in both directions.
    #[must_use]
    pub const fn distance(self, other: Id) -> Distance {
        Distance(self.0 ^ other.0)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes ids: SipHash-2-4 with 128 bits of output under the cluster's key.
#[derive(Clone)]
pub struct IdHasher(SipHasher24);

impl IdHasher {
    /// The hasher of the cluster with this key.
    #[must_use]
    pub fn new(key: &[u8; 16]) -> IdHasher {
        IdHasher(SipHasher24::new_with_key(key))
    }

    /// Id of the node with this locator: hash of `n`, then the address in network order.
    #[must_use]
    pub fn node(&self, locator: IpAddr) -> Id {
        let mut bytes = [0; 17];
        bytes[0] = b'n';
        let len = match locator {
            IpAddr::V4(v4) => {
                bytes[1..5].copy_from_slice(&v4.octets());
                5
            }
            IpAddr::V6(v6) => {
                bytes[1..].copy_from_slice(&v6.octets());
                17
            }
        };
        Id(self.0.hash(&bytes[..len]).into())
    }

    /// Id of the record of this flow: hash of `f`, then the key's five words in network order.
    #[must_use]
    pub fn flow(&self, flow: &FlowKey) -> Id {
        let mut bytes = [0; 41];
        bytes[0] = b'f';
        for (word, chunk) in flow.to_words().iter().zip(bytes[1..].chunks_exact_mut(8)) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        Id(self.0.hash(&bytes).into())
    }
}

impl fmt::Debug for IdHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdHasher(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn xor_is_a_metric(a in any::<u128>(), b in any::<u128>(), c in any::<u128>()) {
            let (x, y, z) = (Id(a), Id(b), Id(c));
            prop_assert_eq!(x.distance(y), y.distance(x));
            prop_assert_eq!(x.distance(y).0 == 0, x == y);
            let direct = x.distance(z).0;
            prop_assert!(x.distance(y).0.checked_add(y.distance(z).0).is_none_or(|d| d >= direct));
        }
    }

    #[test]
    fn ids_are_pinned() {
        // Servers of different builds must agree on them.
        let hasher = IdHasher::new(b"0123456789abcdef");
        let flow = FlowKey::tcp_v4([20, 1, 1, 1], 1234, [192, 168, 0, 1], 80);
        assert_eq!(
            [
                hasher.node([10, 0, 0, 1].into()).to_string(),
                hasher.node("2001:db8::1".parse().expect("address")).to_string(),
                hasher.flow(&flow).to_string(),
            ],
            [
                "40a558f065ccacb6abdac6c2c59e0f96",
                "6e380c329210817c2eedc16cbff89776",
                "0299b8519a11c4a8335463e445e57359",
            ]
        );
    }

    #[test]
    fn another_key_makes_other_ids() {
        let locator = IpAddr::from([10, 0, 0, 1]);
        let one = IdHasher::new(&[1; 16]).node(locator);
        let two = IdHasher::new(&[2; 16]).node(locator);
        assert_ne!(one, two);
    }
}
