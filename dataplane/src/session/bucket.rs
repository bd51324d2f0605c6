//! One bucket of the session table: a cache line of eight words, and the protocol by which
//! readers and writers share it without locks. Knows nothing of sessions, hashes or other lines.
//!
//! ```text
//! word 0       sixteen counters of four bits: entries that passed by this full bucket
//! IPv4         words 1 to 7, an entry each
//!              remainder of the key 37 | probe 5 | meta 22
//! IPv6         words 1 and 4, each with the client's address in the two words behind it
//!              service and port 22 | generation 20 | meta 22
//! ```
//!
//! *IPv4.* The word is the whole entry: the key's other bits are the bucket's own index
//! ([`super::table`]). It is published, changed and taken away by a compare-and-swap of one word,
//! so it cannot be read half.
//!
//! *IPv6.* A writer claims a free slot (state 0) by a compare-and-swap to the next generation,
//! marked busy; writes the address; then publishes the word. A reader that has read the address
//! looks at the word again: a slot that was given away meanwhile has another generation.
//!
//! *Passing by.* An entry whose home bucket is full goes to the next of its probes and is counted
//! in each bucket that it passed, before it is published, in one of sixteen counters chosen by its
//! hash. A lookup that does not find a flow in a bucket looks further only where the flow's
//! counter is not zero. A counter that has reached 15 stays there.

use super::sync::{Line, Ordering, matching_words};

/// Words of a bucket.
pub const WORDS: usize = 8;
/// Bits of a word that say what the entry means; those above say whose it is.
pub const META_BITS: u32 = 22;
/// The meta bits of a word.
pub const META: u64 = (1 << META_BITS) - 1;
/// The state, within the meta bits; 0 is a free slot.
pub const STATE: u64 = 7;

const PROBE_BITS: u32 = 5;
/// Bits of an IPv4 key that a word has room for.
pub const REMAINDER_BITS: u32 = 64 - META_BITS - PROBE_BITS;

const GENERATION_BITS: u32 = 20;
const GENERATION: u64 = ((1 << GENERATION_BITS) - 1) << META_BITS;
const TAIL_SHIFT: u32 = META_BITS + GENERATION_BITS;
/// Meta of a slot that is being filled: state 0, so no entry.
const BUSY: u64 = STATE + 1;

const COUNTER_MAX: u64 = 15;

/// How entries of one address family lie in a bucket.
pub trait Layout {
    /// What tells the entries of a bucket apart.
    type Key: Copy + PartialEq;
    /// Where in the line entries begin.
    const POSITIONS: &'static [usize];
    /// Buckets that an entry can be in, numbered from 1: so many that at a load of 0.8 there is
    /// always one with room.
    const PROBES: u32;
    /// Which of the two families.
    const IS_V6: bool;

    /// Where in the line entries of `key` are that came by its `probe`-th bucket: bit n for
    /// position n.
    fn matches(line: &Line, key: &Self::Key, probe: u32) -> u32;

    /// The entry of `key` at `position`.
    fn check(line: &Line, position: usize, key: &Self::Key, probe: u32) -> Option<u64>;

    /// The first entry of `key` in the line: its position and word.
    #[inline(always)]
    fn find(line: &Line, key: &Self::Key, probe: u32) -> Option<(usize, u64)> {
        let position = first(Self::matches(line, key, probe))?;
        // Else it went in this moment, and we looked before it did.
        Some((position, Self::check(line, position, key, probe)?))
    }

    /// Publishes an entry in a free slot: its position and word. `None` when all are taken.
    fn claim(line: &Line, key: &Self::Key, probe: u32, meta: u64) -> Option<(usize, u64)>;

    /// Takes away the entry whose word is `word`.
    ///
    /// # Errors
    /// The word that is there instead.
    fn release(line: &Line, position: usize, word: u64) -> Result<(), u64>;

    /// The entry at `position`: its word and key.
    fn read(line: &Line, position: usize) -> Option<(u64, Self::Key)>;
}

/// Changes an entry's meta bits.
///
/// # Errors
/// The word that is there instead of `word`.
#[inline]
pub fn update(line: &Line, position: usize, word: u64, meta: u64) -> Result<u64, u64> {
    let new = word & !META | meta;
    line.0[position].compare_exchange(word, new, Ordering::SeqCst, Ordering::Acquire).map(|_| new)
}

/// IPv4: the key's remainder.
#[derive(Debug, Clone, Copy)]
pub enum V4 {}

#[inline(always)]
fn identity_v4(remainder: u64, probe: u32) -> u64 {
    remainder << (META_BITS + PROBE_BITS) | u64::from(probe) << META_BITS
}

/// Words that may be entries, as [`Layout::matches`] counts: all but that of the counters.
const SLOTS: u32 = 0xfe;

/// The first of these positions.
#[inline(always)]
pub fn first(matches: u32) -> Option<usize> {
    (matches != 0).then(|| matches.trailing_zeros() as usize % WORDS)
}

impl V4 {
    /// By which probe the entry with this word came to its bucket.
    pub fn probe(word: u64) -> u32 {
        (word >> META_BITS) as u32 & V4::PROBES
    }
}

impl Layout for V4 {
    type Key = u64;
    const POSITIONS: &'static [usize] = &[1, 2, 3, 4, 5, 6, 7];
    // Never 0, so that no entry's word looks like that of a free slot.
    const PROBES: u32 = (1 << PROBE_BITS) - 1;
    const IS_V6: bool = false;

    /// All words at once: which of them it is cannot be guessed.
    #[inline(always)]
    fn matches(line: &Line, key: &u64, probe: u32) -> u32 {
        matching_words(line, !META, identity_v4(*key, probe)) & SLOTS
    }

    #[inline(always)]
    fn check(line: &Line, position: usize, key: &u64, probe: u32) -> Option<u64> {
        let word = line.0[position].load(Ordering::Acquire);
        (word & !META == identity_v4(*key, probe)).then_some(word)
    }

    #[inline(always)]
    fn claim(line: &Line, key: &u64, probe: u32, meta: u64) -> Option<(usize, u64)> {
        let word = identity_v4(*key, probe) | meta;
        while let Some(position) = first(matching_words(line, !0, 0) & SLOTS) {
            let claimed =
                line.0[position].compare_exchange(0, word, Ordering::SeqCst, Ordering::Relaxed);
            if claimed.is_ok() {
                return Some((position, word));
            }
        }
        None
    }

    fn release(line: &Line, position: usize, word: u64) -> Result<(), u64> {
        line.0[position].compare_exchange(word, 0, Ordering::SeqCst, Ordering::Acquire).map(|_| ())
    }

    fn read(line: &Line, position: usize) -> Option<(u64, u64)> {
        let word = line.0[position].load(Ordering::Acquire);
        (word != 0).then_some((word, word >> (META_BITS + PROBE_BITS)))
    }
}

/// IPv6: the client's address, service and port.
#[derive(Debug, Clone, Copy)]
pub enum V6 {}

/// What tells IPv6 entries apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyV6 {
    /// The client's address.
    pub client: [u64; 2],
    /// Service and client's port, 22 bits.
    pub tail: u32,
}

impl V6 {
    /// The word and the address at `position`, and the word once more. Were any part of the
    /// address a later entry's than the first word, the second would be at least that of the
    /// claim which was made before it was written: it pairs with the stores in `claim`.
    #[inline(always)]
    fn words(line: &Line, position: usize) -> (u64, [u64; 2], u64) {
        let load = |index: usize| line.0[index].load(Ordering::Acquire);
        let word = load(position);
        let client = [load(position + 1), load(position + 2)];
        (word, client, load(position))
    }

    /// Whether the entry at `position` is that of `key`, and its word.
    #[inline(always)]
    fn look(line: &Line, position: usize, key: &KeyV6) -> (bool, u64) {
        let (word, client, again) = V6::words(line, position);
        let difference = (word >> TAIL_SHIFT ^ u64::from(key.tail))
            | (client[0] ^ key.client[0])
            | (client[1] ^ key.client[1])
            | ((word ^ again) & !META);
        ((difference == 0) & (again & STATE != 0), again)
    }
}

impl Layout for V6 {
    type Key = KeyV6;
    const POSITIONS: &'static [usize] = &[1, 4];
    const PROBES: u32 = 64;
    const IS_V6: bool = true;

    #[inline(always)]
    fn matches(line: &Line, key: &KeyV6, _: u32) -> u32 {
        let is_it = |position| u32::from(V6::look(line, position, key).0) << position;
        is_it(1) | is_it(4)
    }

    #[inline(always)]
    fn check(line: &Line, position: usize, key: &KeyV6, _: u32) -> Option<u64> {
        let (is_it, word) = V6::look(line, position, key);
        is_it.then_some(word)
    }

    /// Both slots without a branch: which of them it is cannot be guessed.
    #[inline(always)]
    fn find(line: &Line, key: &KeyV6, _: u32) -> Option<(usize, u64)> {
        let ((is_first, first), (is_second, second)) =
            (V6::look(line, 1, key), V6::look(line, 4, key));
        let (position, word) = if is_first { (1, first) } else { (4, second) };
        (is_first | is_second).then_some((position, word))
    }

    fn claim(line: &Line, key: &KeyV6, _: u32, meta: u64) -> Option<(usize, u64)> {
        Self::POSITIONS.iter().find_map(|&position| {
            let free = line.0[position].load(Ordering::Relaxed);
            if free & META != 0 {
                return None;
            }
            let generation = free.wrapping_add(1 << META_BITS) & GENERATION;
            line.0[position]
                .compare_exchange(free, generation | BUSY, Ordering::AcqRel, Ordering::Relaxed)
                .ok()?;
            line.0[position + 1].store(key.client[0], Ordering::Release);
            line.0[position + 2].store(key.client[1], Ordering::Release);
            let word = u64::from(key.tail) << TAIL_SHIFT | generation | meta;
            line.0[position].swap(word, Ordering::SeqCst);
            Some((position, word))
        })
    }

    fn release(line: &Line, position: usize, word: u64) -> Result<(), u64> {
        line.0[position]
            .compare_exchange(word, word & GENERATION, Ordering::SeqCst, Ordering::Acquire)
            .map(|_| ())
    }

    fn read(line: &Line, position: usize) -> Option<(u64, KeyV6)> {
        let (word, client, again) = V6::words(line, position);
        let is_whole = (word ^ again) & !META == 0 && again & STATE != 0;
        is_whole.then_some((again, KeyV6 { client, tail: (word >> TAIL_SHIFT) as u32 }))
    }
}

/// Whether an entry with this counter (0 to 15) may have passed by the bucket.
#[inline(always)]
pub fn may_have_passed(line: &Line, counter: u32) -> bool {
    line.0[0].load(Ordering::Acquire) >> (4 * counter) & COUNTER_MAX != 0
}

/// Counts an entry that passes by.
pub fn pass(line: &Line, counter: u32) {
    step(line, counter, |count| count + 1);
}

/// An entry that had passed by has gone, or did not go on.
pub fn unpass(line: &Line, counter: u32) {
    step(line, counter, |count| count - 1);
}

fn step(line: &Line, counter: u32, next: impl Fn(u64) -> u64) {
    let shift = 4 * counter;
    let mut word = line.0[0].load(Ordering::Relaxed);
    loop {
        let count = word >> shift & COUNTER_MAX;
        if count == COUNTER_MAX {
            // How many there are is no longer known.
            return;
        }
        let new = word & !(COUNTER_MAX << shift) | next(count) << shift;
        let swapped =
            line.0[0].compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed);
        match swapped {
            Ok(_) => return,
            Err(newer) => word = newer,
        }
    }
}
