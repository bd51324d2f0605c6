//! Which way the fragments of a datagram go: where the first went, which alone has the ports
//! (R10). Those that come before it wait here. Bounded in datagrams, in waiting frames of each and
//! of all, and in time; never allocates after start, never reassembles.
//!
//! One table per worker is enough, for all fragments of a datagram reach the same worker: no
//! fragment is hashed by its ports, neither by RSS, which takes the addresses alone, nor by a
//! router, which had to do the same with those behind the first. A device that does otherwise
//! shows in `fragment_expired`.
//!
//! Duplicates and fragments that overlap go where all others go; the kernel judges them.

use std::collections::{HashMap, VecDeque};

use arrayvec::ArrayVec;
use holdfast_net::Network;

use crate::time::Now;

/// Fragments that wait for the first of their datagram, at most: 64 KB over an MTU of 9,000.
pub const WAITING_PER_DATAGRAM_MAX: usize = 8;
/// Fragments that wait in all, at most. Each holds a frame of the worker's pool.
pub const WAITING_MAX: usize = 256;

/// Limits of one worker's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Datagrams remembered.
    pub datagrams: usize,
    /// Fragments that wait in all. As a datagram whose first fragment did not come has at least
    /// one, they take no more places than these from the others.
    pub waiting: usize,
    /// How long a datagram is remembered, and its fragments wait, in microseconds.
    pub lifetime_us: u64,
}

/// The limits that workers have. A second: fragments leave their sender, or the router that made
/// them, back to back, so what comes a second later comes no more, and TCP has sent it again by
/// then (RFC 6298 §2). Identifications of 16 bits come round in a second at 65,536 datagrams
/// (RFC 6864), so longer is no better.
pub const LIMITS: Limits = Limits { datagrams: 4096, waiting: WAITING_MAX, lifetime_us: 1_000_000 };

/// What fragments of one datagram have in common (RFC 791 §3.2, RFC 8200 §4.5). Over IPv4 the
/// protocol tells datagrams apart as well, but only TCP comes here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Datagram {
    /// Source and destination.
    pub network: Network,
    /// Identification.
    pub identification: u32,
}

/// The fragments of a datagram that wait, in order of arrival.
pub type Waiting<F> = ArrayVec<F, WAITING_PER_DATAGRAM_MAX>;

/// What becomes of a fragment behind the first.
#[derive(Debug, PartialEq, Eq)]
pub enum Later<F, T> {
    /// It follows the first, whose fate is known; here is the fragment back.
    Follows(F, T),
    /// It waits for the first.
    Waits,
    /// It would wait, but there is no room; here is the fragment back.
    Full(F),
}

#[derive(Debug)]
struct Place<F, T> {
    datagram: Datagram,
    until: Now,
    /// What became of the first fragment; `None` until it comes.
    fate: Option<T>,
    waiting: Waiting<F>,
}

/// The table: frames `F` wait, and `T` is what can become of one.
#[derive(Debug)]
pub struct Fragments<F, T> {
    limits: Limits,
    /// In the order in which they were taken, which is that in which their time ends.
    places: VecDeque<Place<F, T>>,
    /// The number of the first of `places`, counted from the start.
    oldest: u64,
    /// The numbers of places. Keyed hash (SipHash, random at start): senders choose the
    /// identifications.
    numbers: HashMap<Datagram, u64>,
    waiting: usize,
}

impl<F, T: Copy> Fragments<F, T> {
    /// An empty table.
    #[must_use]
    pub fn new(limits: Limits) -> Fragments<F, T> {
        Fragments {
            limits,
            places: VecDeque::with_capacity(limits.datagrams),
            oldest: 0,
            // Twice the room, so that the map never has to grow for the places of those removed.
            numbers: HashMap::with_capacity(2 * limits.datagrams),
            waiting: 0,
        }
    }

    /// Datagrams that are remembered, and fragments that wait for the first of theirs.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.places.len(), self.waiting)
    }

    /// A fragment behind the first of `datagram` has come.
    pub fn later(&mut self, datagram: Datagram, frame: F, now: Now) -> Later<F, T> {
        let all_full = self.waiting >= self.limits.waiting;
        let place = match self.known(&datagram) {
            Some(place) => place,
            None if all_full => return Later::Full(frame),
            None => match self.take(datagram, now) {
                Some(place) => place,
                None => return Later::Full(frame),
            },
        };
        if let Some(fate) = place.fate {
            return Later::Follows(frame, fate);
        }
        if all_full || place.waiting.is_full() {
            return Later::Full(frame);
        }
        place.waiting.push(frame);
        self.waiting += 1;
        Later::Waits
    }

    /// The first fragment of `datagram` has met its fate, which those behind it share; of two
    /// firsts they follow the latter, for identifications are used again. Returns those that
    /// waited. A full table forgets its oldest datagram for it, or, while that has some that
    /// wait, does not remember this one.
    pub fn settle(&mut self, datagram: Datagram, fate: T, now: Now) -> Waiting<F> {
        let place = match self.known(&datagram) {
            Some(place) => Some(place),
            None => self.take(datagram, now),
        };
        let Some(place) = place else {
            return Waiting::new();
        };
        place.fate = Some(fate);
        let frames = std::mem::take(&mut place.waiting);
        self.waiting -= frames.len();
        frames
    }

    /// Forgets the next datagram whose time is over, if there is one, and gives those of its
    /// fragments that still wait.
    pub fn expire(&mut self, now: Now) -> Option<(Datagram, Waiting<F>)> {
        if self.places.front()?.until > now {
            return None;
        }
        let Place { datagram, waiting, .. } = self.places.pop_front()?;
        self.oldest += 1;
        self.numbers.remove(&datagram);
        self.waiting -= waiting.len();
        Some((datagram, waiting))
    }

    fn known(&mut self, datagram: &Datagram) -> Option<&mut Place<F, T>> {
        let number = self.numbers.get(datagram)?;
        self.places.get_mut((number - self.oldest) as usize)
    }

    fn take(&mut self, datagram: Datagram, now: Now) -> Option<&mut Place<F, T>> {
        if self.places.len() >= self.limits.datagrams {
            // The oldest whose first has come has most likely all it will get: fragments come back
            // to back. One that others wait for keeps its place.
            self.places.front().filter(|oldest| oldest.fate.is_some())?;
            let oldest = self.places.pop_front()?;
            self.oldest += 1;
            self.numbers.remove(&oldest.datagram);
        }
        let until = Now::from_us(now.us + self.limits.lifetime_us);
        self.numbers.insert(datagram, self.oldest + self.places.len() as u64);
        self.places.push_back(Place { datagram, until, fate: None, waiting: Waiting::new() });
        self.places.back_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::rc::Rc;

    const LIMITS: Limits = Limits { datagrams: 4, waiting: 3, lifetime_us: 1000 };

    fn datagram(identification: u32) -> Datagram {
        let network = Network::Ipv4 { source: [20, 1, 1, 1], destination: [192, 168, 0, 1] };
        Datagram { network, identification }
    }

    fn at(us: u64) -> Now {
        Now::from_us(us)
    }

    #[test]
    fn r10_later_fragments_follow_and_early_ones_wait() {
        let mut fragments = Fragments::new(LIMITS);
        assert_eq!(fragments.later(datagram(1), 'c', at(0)), Later::Waits);
        assert_eq!(fragments.later(datagram(1), 'b', at(1)), Later::Waits);
        assert_eq!(fragments.settle(datagram(1), "host", at(2)).as_slice(), ['c', 'b']);
        assert_eq!(fragments.later(datagram(1), 'd', at(3)), Later::Follows('d', "host"));
        assert_eq!(fragments.later(datagram(2), 'x', at(4)), Later::Waits, "another datagram");
        assert!(fragments.settle(datagram(1), "tunnel", at(5)).is_empty());
        assert_eq!(fragments.later(datagram(1), 'e', at(6)), Later::Follows('e', "tunnel"));
    }

    #[test]
    fn r10_the_time_to_wait_ends() {
        let mut fragments = Fragments::new(LIMITS);
        fragments.later(datagram(1), 'b', at(0));
        fragments.settle(datagram(2), "host", at(10));
        assert_eq!(fragments.expire(at(999)), None);
        let (expired, frames) = fragments.expire(at(1000)).expect("its time is over");
        assert_eq!((expired, frames.as_slice()), (datagram(1), &['b'][..]));
        assert_eq!(fragments.expire(at(1000)), None);
        assert_eq!(fragments.expire(at(1010)), Some((datagram(2), Waiting::new())));
        assert_eq!(fragments.later(datagram(2), 'b', at(1010)), Later::Waits, "forgotten");
    }

    #[test]
    fn r10_waiting_is_bounded_in_all_and_takes_no_place_without_room() {
        let mut fragments = Fragments::<_, ()>::new(LIMITS);
        for id in 0..3 {
            assert_eq!(fragments.later(datagram(id), 'b', at(0)), Later::Waits);
        }
        assert_eq!(fragments.later(datagram(0), 'c', at(0)), Later::Full('c'));
        assert_eq!(fragments.later(datagram(9), 'b', at(0)), Later::Full('b'));
        fragments.settle(datagram(8), (), at(0));
        assert_eq!(fragments.later(datagram(8), 'b', at(0)), Later::Follows('b', ()));
        assert_eq!(fragments.settle(datagram(1), (), at(0)).as_slice(), ['b']);
        assert_eq!(fragments.later(datagram(0), 'c', at(0)), Later::Waits, "there is room again");
    }

    #[test]
    fn r10_waiting_is_bounded_per_datagram() {
        let mut fragments = Fragments::<_, ()>::new(Limits { waiting: 100, ..LIMITS });
        for n in 0..WAITING_PER_DATAGRAM_MAX {
            assert_eq!(fragments.later(datagram(1), n, at(0)), Later::Waits);
        }
        assert_eq!(fragments.later(datagram(1), 99, at(0)), Later::Full(99));
        assert_eq!(fragments.later(datagram(2), 99, at(0)), Later::Waits);
    }

    #[test]
    fn r10_a_full_table_forgets_the_oldest_that_nobody_waits_for() {
        let mut fragments = Fragments::new(LIMITS);
        for id in 0..4 {
            fragments.settle(datagram(id), (), at(0));
        }
        fragments.settle(datagram(9), (), at(0));
        assert_eq!(fragments.later(datagram(9), 'b', at(0)), Later::Follows('b', ()));
        assert_eq!(fragments.later(datagram(1), 'b', at(0)), Later::Follows('b', ()));
        assert_eq!(fragments.later(datagram(0), 'b', at(0)), Later::Waits, "forgotten");
    }

    #[test]
    fn r10_a_full_table_keeps_those_that_wait() {
        let mut fragments = Fragments::new(LIMITS);
        fragments.later(datagram(0), 'b', at(0));
        for id in 1..4 {
            fragments.settle(datagram(id), (), at(0));
        }
        assert!(fragments.settle(datagram(9), (), at(0)).is_empty());
        assert_eq!(fragments.later(datagram(9), 'c', at(0)), Later::Full('c'));
        assert_eq!(fragments.settle(datagram(0), (), at(0)).as_slice(), ['b']);
    }

    proptest! {
        /// Whatever comes, in whatever order: frames are given back or wait, never more than may,
        /// none is lost, and nothing is allocated for more datagrams than there may be.
        #[test]
        fn r10_no_frame_is_lost_and_the_bounds_hold(
            events in proptest::collection::vec((0u8..3, 0u32..8, 0u64..400), 0..200),
        ) {
            let mut fragments = Fragments::new(LIMITS);
            let capacity = (fragments.places.capacity(), fragments.numbers.capacity());
            let frame = Rc::new(());
            let mut now = 0;
            for (kind, id, pause) in events {
                now += pause;
                match kind {
                    0 => drop(fragments.settle(datagram(id), id, at(now))),
                    1 => {
                        let outcome = fragments.later(datagram(id), Rc::clone(&frame), at(now));
                        if let Later::Follows(_, fate) = outcome {
                            prop_assert_eq!(fate, id);
                        }
                    }
                    _ => while fragments.expire(at(now)).is_some() {},
                }
                let waiting: usize = fragments.places.iter().map(|place| place.waiting.len()).sum();
                prop_assert_eq!(waiting, fragments.waiting);
                prop_assert_eq!(Rc::strong_count(&frame), 1 + waiting);
                prop_assert!(waiting <= LIMITS.waiting && fragments.places.len() <= LIMITS.datagrams);
                prop_assert_eq!(fragments.places.len(), fragments.numbers.len());
            }
            prop_assert_eq!((fragments.places.capacity(), fragments.numbers.capacity()), capacity);
            while fragments.expire(at(now + 1000)).is_some() {}
            prop_assert_eq!(Rc::strong_count(&frame), 1);
        }
    }
}
