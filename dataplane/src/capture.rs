//! What workers observe of packets while somebody traces or captures: the frame as it came, the
//! frames that left for it, and the counters that moved meanwhile, which tell its verdict and why.
//!
//! A worker that nobody asks pays one load for a burst. One that is asked never waits, allocates
//! or makes a system call: what finds no room in its ring is counted, and missed. One capture at a
//! time: who reads has [`Observations`] for himself.
//!
//! ```text
//!             Switch: number of the capture, 0 for none; what is wanted
//!            ┌───────────────────────────────────────────────────────────┐
//!   worker ◄─┤                                                           ├── Observations
//!            └─ Observer ── ring of bytes, an observation at a time ── Reader ─►┘    (trace, capture)
//! ```

mod account;
mod observation;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use ipnet::IpNet;

use crate::stats::{Counter, WorkerCounters};

pub use account::{Account, Accountant, Ends, Kind, Verdict, Way};
pub use observation::{Image, Observation, Observer, Origin, Out, SENT_MAX};
use observation::{Reader, observer};

/// Bytes of a frame that an observation can hold, at most.
pub const SNAPLEN_MAX: usize = 16_384;
/// Bytes of a frame that are observed at least: in them are all headers that a verdict depends on,
/// the longest being those that an ICMP error quotes in a tunnel, all of it IPv6.
pub const HEADERS_MAX: usize = 256;
/// Bytes of a worker's ring: 1,500 observations or more of headers only.
const RING_BYTES: usize = 1 << 20;

/// A set of counters.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CounterSet(u128);

const _: () = assert!(Counter::ALL.len() <= u128::BITS as usize);

impl CounterSet {
    /// The set of these.
    #[must_use]
    pub const fn of(counters: &[Counter]) -> CounterSet {
        let mut bits = 0;
        let mut index = 0;
        while index < counters.len() {
            bits |= 1 << counters[index] as u32;
            index += 1;
        }
        CounterSet(bits)
    }

    /// The counters whose every count is a frame dropped.
    #[must_use]
    pub const fn drops() -> CounterSet {
        let mut bits = 0;
        let mut index = 0;
        while index < Counter::ALL.len() {
            if Counter::ALL[index].is_drop() {
                bits |= 1 << index;
            }
            index += 1;
        }
        CounterSet(bits)
    }

    /// Whether there is none in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this one is in it.
    #[must_use]
    pub const fn contains(self, counter: Counter) -> bool {
        self.0 >> counter as u32 & 1 != 0
    }

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: CounterSet) -> CounterSet {
        CounterSet(self.0 & other.0)
    }

    /// Those in either.
    #[must_use]
    pub const fn or(self, other: CounterSet) -> CounterSet {
        CounterSet(self.0 | other.0)
    }

    /// Its counters, in the order of [`Counter::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Counter> {
        Counter::ALL.iter().copied().filter(move |counter| self.contains(*counter))
    }

    const fn from_words([high, low]: [u64; 2]) -> CounterSet {
        CounterSet((high as u128) << 64 | low as u128)
    }

    const fn to_words(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }
}

impl fmt::Debug for CounterSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What is to be observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Bytes of each frame that are kept, [`HEADERS_MAX`] to [`SNAPLEN_MAX`]: what is outside is
    /// brought inside.
    pub snaplen: usize,
    /// Packets that moved one of these counters; when it is empty, all.
    pub counters: CounterSet,
    /// Packets that may be of these clients. The others cost next to nothing. Some that are not of
    /// these clients are observed all the same: who reads looks again.
    pub clients: Option<IpNet>,
}

/// The first bytes of the clients' addresses: every frame of theirs has them somewhere, as it is,
/// in a tunnel, from the host, in fragments, and quoted in ICMP errors.
type Needle = ArrayVec<u8, 16>;

fn needle(clients: IpNet) -> Needle {
    let whole_bytes = usize::from(clients.prefix_len()) / 8;
    let mut needle = Needle::new();
    match clients.network() {
        IpAddr::V4(address) => needle.extend(address.octets()),
        IpAddr::V6(address) => needle.extend(address.octets()),
    }
    needle.truncate(whole_bytes);
    needle
}

/// Whether a capture is under way, and what it wants. Written by who reads the observations, read by
/// all workers. What is wanted changes while nothing is, so that a worker that is amid a burst can
/// mix up two captures only in observations that nobody reads.
#[derive(Debug, Default)]
struct Switch {
    /// The capture's number; 0 when there is none.
    armed: AtomicU64,
    snaplen: AtomicUsize,
    counters: [AtomicU64; 2],
    needle: [AtomicU64; 2],
    needle_length: AtomicUsize,
}

impl Switch {
    fn set(&self, wanted: &Wanted) {
        let needle = wanted.clients.map(needle).unwrap_or_default();
        let mut bytes = [0; 16];
        bytes[..needle.len()].copy_from_slice(&needle);
        let bits = u128::from_be_bytes(bytes);
        self.snaplen.store(wanted.snaplen.clamp(HEADERS_MAX, SNAPLEN_MAX), Ordering::Relaxed);
        store(&self.counters, wanted.counters.to_words());
        store(&self.needle, [(bits >> 64) as u64, bits as u64]);
        self.needle_length.store(needle.len(), Ordering::Relaxed);
    }

    fn counters(&self) -> CounterSet {
        CounterSet::from_words(load(&self.counters))
    }

    fn needle(&self) -> Needle {
        let [high, low] = load(&self.needle);
        let mut needle = Needle::from((u128::from(high) << 64 | u128::from(low)).to_be_bytes());
        needle.truncate(self.needle_length.load(Ordering::Relaxed));
        needle
    }
}

fn store(words: &[AtomicU64; 2], values: [u64; 2]) {
    for (word, value) in words.iter().zip(values) {
        word.store(value, Ordering::Relaxed);
    }
}

fn load(words: &[AtomicU64; 2]) -> [u64; 2] {
    [words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)]
}

/// What all workers observe, for one reader.
#[derive(Debug)]
pub struct Observations {
    switch: Arc<Switch>,
    readers: Vec<Reader>,
    /// Of the last capture; the first is 1.
    number: u64,
}

impl Observations {
    /// Observers for so many workers, in their order, and what reads them.
    #[must_use]
    pub fn of_workers(workers: usize) -> (Vec<Observer>, Observations) {
        Observations::with_rings(workers, RING_BYTES)
    }

    /// The same with rings of so many bytes.
    #[must_use]
    pub fn with_rings(workers: usize, bytes: usize) -> (Vec<Observer>, Observations) {
        let switch = Arc::<Switch>::default();
        let (observers, readers) = (0..workers).map(|_| observer(&switch, bytes)).unzip();
        (observers, Observations { switch, readers, number: 0 })
    }

    /// Begins to observe. It ends when what is returned is dropped.
    pub fn start(&mut self, wanted: &Wanted) -> Capture<'_> {
        self.number += 1;
        for reader in &mut self.readers {
            reader.begin(self.number);
        }
        self.switch.set(wanted);
        // What is wanted is there before the number that says so.
        self.switch.armed.store(self.number, Ordering::Release);
        Capture { observations: self }
    }
}

/// A capture that is under way.
#[derive(Debug)]
pub struct Capture<'a> {
    observations: &'a mut Observations,
}

impl Capture<'_> {
    /// The next observation, the oldest of those that the workers have made, and the place of its
    /// worker. `None` when there is none now.
    pub fn next_observation(&mut self) -> Option<(usize, Observation)> {
        let readers = &mut self.observations.readers;
        let oldest = readers.iter_mut().enumerate().filter_map(|(worker, reader)| {
            let came = reader.peek()?.at;
            Some((came, worker))
        });
        let (_, worker) = oldest.min()?;
        Some((worker, readers[worker].take()?))
    }

    /// Packets that found no room in a worker's ring since this was asked last.
    pub fn missed(&mut self) -> u64 {
        self.observations.readers.iter_mut().map(Reader::missed).sum()
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        self.observations.switch.armed.store(0, Ordering::Relaxed);
    }
}

/// A value of each counter.
type Counts = [u64; Counter::ALL.len()];

/// All counters as they are.
fn read_all(counters: &WorkerCounters) -> Counts {
    std::array::from_fn(|index| counters.get(Counter::ALL[index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_counters() {
        let set = CounterSet::of(&[Counter::CyclesIdle, Counter::Miss]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Counter::Miss, Counter::CyclesIdle]);
        assert_eq!(CounterSet::from_words(set.to_words()), set);
        assert!(set.and(CounterSet::of(&[Counter::Passed])).is_empty());
        let drops = CounterSet::drops();
        for counter in Counter::ALL {
            assert_eq!(drops.contains(*counter), counter.is_drop());
        }
    }

    #[test]
    fn clients_are_told_by_the_whole_bytes_of_their_prefix() {
        let rows: [(&str, &[u8]); 5] = [
            ("20.1.2.3/32", &[20, 1, 2, 3]),
            ("20.1.0.0/23", &[20, 1]),
            ("20.0.0.0/7", &[]),
            ("2001:db8::/32", &[0x20, 0x01, 0x0d, 0xb8]),
            ("::/0", &[]),
        ];
        for (prefix, expected) in rows {
            let clients = prefix.parse().expect("a prefix");
            assert_eq!(needle(clients).as_slice(), expected, "{prefix}");
            let switch = Switch::default();
            switch.set(&Wanted { clients: Some(clients), ..Wanted::default() });
            assert_eq!(switch.needle().as_slice(), expected, "{prefix}");
        }
    }

    #[test]
    fn lengths_have_bounds() {
        let switch = Switch::default();
        for (asked, given) in [(0, 256), (300, 300), (usize::MAX, SNAPLEN_MAX)] {
            switch.set(&Wanted { snaplen: asked, ..Wanted::default() });
            assert_eq!(switch.snaplen.load(Ordering::Relaxed), given);
        }
    }
}
