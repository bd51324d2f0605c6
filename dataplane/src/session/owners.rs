//! The owners that redirects point to, by number, so that an entry of the table has room for
//! one. Only grows: an owner keeps its number while the process lives.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::OnceLock;

use siphasher::sip::SipHasher13;

/// The number of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerId(pub u16);

impl OwnerId {
    /// Bits of a number.
    pub const BITS: u32 = 13;
    /// Owners, at most: more servers than one cluster is made for.
    pub const COUNT: usize = 1 << Self::BITS;
}

/// Places looked at for an owner before there is no room for it.
const PLACES: usize = 64;

/// All owners that redirects ever pointed to.
#[derive(Debug)]
pub struct Owners(Box<[OnceLock<IpAddr>]>);

impl Default for Owners {
    fn default() -> Owners {
        Owners((0..OwnerId::COUNT).map(|_| OnceLock::new()).collect())
    }
}

impl Owners {
    /// The number of the server with this locator, a new one if need be; `None` when there is
    /// no room. Only for when a redirect is made, not for each packet.
    #[must_use]
    pub fn number(&self, locator: IpAddr) -> Option<OwnerId> {
        Owners::places(locator).find(|id| {
            let place = self.0.get(usize::from(id.0));
            place.is_some_and(|place| *place.get_or_init(|| locator) == locator)
        })
    }

    /// The number that the server with this locator has already.
    #[must_use]
    pub fn known(&self, locator: IpAddr) -> Option<OwnerId> {
        Owners::places(locator).find(|id| self.locator(*id) == Some(locator))
    }

    fn places(locator: IpAddr) -> impl Iterator<Item = OwnerId> {
        // Owners are members: none of them chooses its locator to collide with another's.
        let mut hasher = SipHasher13::new();
        locator.hash(&mut hasher);
        let first = hasher.finish() as usize;
        (0..PLACES).map(move |step| OwnerId((first.wrapping_add(step) % OwnerId::COUNT) as u16))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().filter(|place| place.get().is_some()).count()
    }

    /// The locator of an owner.
    #[inline]
    #[must_use]
    pub fn locator(&self, id: OwnerId) -> Option<IpAddr> {
        self.0.get(usize::from(id.0))?.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_keep_their_numbers() {
        let owners = Owners::default();
        assert_eq!(owners.count(), 0);
        let locator = |n: u32| match n % 2 {
            0 => IpAddr::from(n.to_be_bytes()),
            _ => IpAddr::from((u128::from(n) << 64).to_be_bytes()),
        };
        let numbers: Vec<_> = (0..5000).map(|n| owners.number(locator(n)).expect("room")).collect();
        assert_eq!(owners.count(), 5000);
        for (n, id) in (0..).zip(numbers) {
            assert_eq!(owners.number(locator(n)), Some(id));
            assert_eq!(owners.locator(id), Some(locator(n)));
            assert_eq!(owners.known(locator(n)), Some(id));
        }
    }

    #[test]
    fn there_is_a_limit() {
        let owners = Owners::default();
        let placed =
            (0..20_000u32).filter(|n| owners.number(IpAddr::from(n.to_be_bytes())).is_some());
        let placed = placed.count();
        assert!((OwnerId::COUNT * 9 / 10..=OwnerId::COUNT).contains(&placed), "{placed}");
    }
}
