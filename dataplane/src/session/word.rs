//! What the meta bits of an entry's word say, and time as they keep it. Never touches the table.
//!
//! ```text
//! local      stamp 17 | publication 2 | state 3
//! redirect   stamp  6 |       owner 13 | state 3
//! ```
//!
//! A *stamp* is the time of the last packet in units that fit the timeout of the entry's state:
//! fine where timeouts are short, coarse where they are long, so that few bits serve seconds and
//! days, and a busy session's line is written once a unit.

use std::sync::atomic::{AtomicU32, Ordering};

use super::bucket::{META, STATE};
use super::expiry::Timeouts;
use super::owners::OwnerId;
use super::state::State;
use crate::time::Tick;

/// State of a redirect's word, next to those of [`State`].
const REDIRECT: u64 = 7;
const OWNER_SHIFT: u32 = 3;
const OWNER_MASK: u64 = (1 << OwnerId::BITS) - 1;
const REDIRECT_STAMP_SHIFT: u32 = OWNER_SHIFT + OwnerId::BITS;
/// The entry's version is in its place. Until then it belongs to the worker that made it, which
/// alone may take it away or put another in its place.
pub const VERSIONED: u64 = 1 << 3;
/// The DHT core has been told of it. Without [`VERSIONED`]: another entry of the flow came first,
/// and the worker that made this one is to take it away.
pub const PUBLISHED: u64 = 1 << 4;
/// Where a local session's publication has come to.
pub const PUBLICATION: u64 = VERSIONED | PUBLISHED;
const LOCAL_STAMP_SHIFT: u32 = 5;

const _: () = assert!(META >> REDIRECT_STAMP_SHIFT == (1 << 6) - 1);

/// What an entry is, as its word alone says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The host's kernel holds the socket (R1).
    Local(State),
    /// Another server owns it.
    Redirect(OwnerId),
}

/// What a word says.
#[inline(always)]
pub fn kind(word: u64) -> Kind {
    match State::from_u8((word & STATE) as u8) {
        Some(state) => Kind::Local(state),
        None => Kind::Redirect(OwnerId((word >> OWNER_SHIFT & OWNER_MASK) as u16)),
    }
}

/// Whether it is a redirect's word.
#[inline]
pub fn is_redirect(word: u64) -> bool {
    word & STATE == REDIRECT
}

/// Whether it is a local session's word.
#[inline]
pub fn is_local(word: u64) -> bool {
    word & STATE != 0 && !is_redirect(word)
}

/// Whether it is the word of a local session that is over.
#[inline]
pub fn is_lingering(word: u64) -> bool {
    matches!(kind(word), Kind::Local(state) if state.is_lingering())
}

/// Whether it is a local session's word whose version is in its place.
#[inline]
pub fn is_versioned(word: u64) -> bool {
    is_local(word) && word & VERSIONED != 0
}

/// Whether it is a local session's word and the DHT core has been told of it.
#[inline]
pub fn is_published(word: u64) -> bool {
    is_local(word) && word & PUBLICATION == PUBLICATION
}

/// Whether both are a local session of the same flow.
pub fn same_local(one: u64, other: u64) -> bool {
    (one ^ other) & !META == 0 && is_local(one) && is_local(other)
}

/// Whether two words say the same but for the stamp.
pub fn same_but_stamp(one: u64, other: u64) -> bool {
    let shift = stamp_shift(one & STATE);
    (one ^ other) & !(META >> shift << shift) == 0
}

#[inline(always)]
fn stamp_shift(state: u64) -> u32 {
    if state == REDIRECT { REDIRECT_STAMP_SHIFT } else { LOCAL_STAMP_SHIFT }
}

/// Time as stamps keep it: what entries of each state may be idle for, and their unit.
#[derive(Debug)]
pub struct Ageing {
    /// A unit of each state's stamp is 2 to the power of this, in ticks.
    unit_shift: [u8; 8],
    /// Units after which an entry of each state is due. Whoever sets other timeouts writes it,
    /// workers read it.
    due_units: [AtomicU32; 8],
}

impl Ageing {
    /// Stamps for these timeouts.
    #[must_use]
    pub fn new(timeouts: &Timeouts) -> Ageing {
        let due_units = [const { AtomicU32::new(u32::MAX) }; 8];
        let mut ageing = Ageing { unit_shift: [0; 8], due_units };
        for (state, timeout_ms) in by_state(timeouts) {
            let ticks = timeout_ms.div_ceil(Tick::MS);
            let shift = &mut ageing.unit_shift[state as usize];
            while ticks.div_ceil(1 << *shift) > units_max(state) {
                *shift += 1;
            }
        }
        ageing.set_timeouts(timeouts);
        ageing
    }

    /// Entries may be idle for other times from now on. The units stay, for stamps are in them:
    /// no time may be longer than [`Ageing::timeouts_max`] says.
    pub fn set_timeouts(&self, timeouts: &Timeouts) {
        for (state, timeout_ms) in by_state(timeouts) {
            let ticks = timeout_ms.div_ceil(Tick::MS);
            let units = ticks.div_ceil(1 << self.unit_shift[state as usize]);
            debug_assert!(units <= units_max(state), "{timeouts:?}");
            // One more: the stamp says in which unit the last packet came, not when in it.
            self.due_units[state as usize].store(units as u32 + 1, Ordering::Relaxed);
        }
    }

    /// The longest timeouts that stamps can count in these units.
    #[must_use]
    pub fn timeouts_max(&self) -> Timeouts {
        let of = |state| (units_max(state) << self.unit_shift[state as usize]) * Tick::MS;
        Timeouts {
            half_open_ms: of(State::HalfOpen as u64),
            established_ms: of(State::Established as u64),
            linger_ms: of(State::Closed as u64),
            redirect_ms: of(REDIRECT),
        }
    }

    /// Meta bits of a local session that was seen at `now`.
    #[inline]
    pub fn local(&self, state: State, flags: u64, now: Tick) -> u64 {
        self.stamped(state as u64 | flags, now)
    }

    /// Meta bits of a redirect that was seen at `now`.
    #[inline]
    pub fn redirect(&self, owner: OwnerId, now: Tick) -> u64 {
        self.stamped(REDIRECT | u64::from(owner.0) << OWNER_SHIFT, now)
    }

    /// The meta bits of `word`, seen at `now`.
    #[inline(always)]
    pub fn stamped(&self, word: u64, now: Tick) -> u64 {
        let shift = stamp_shift(word & STATE);
        let unit = u64::from(now.0 >> self.unit_shift[(word & STATE) as usize]);
        (word & ((1 << shift) - 1) | unit << shift) & META
    }

    /// Units since the entry was seen; 0 when another worker's clock was ahead of ours.
    #[inline]
    fn idle_units(&self, word: u64, now: Tick) -> u32 {
        let state = word & STATE;
        let stamp = (word & META) >> stamp_shift(state);
        let unit = u64::from(now.0 >> self.unit_shift[state as usize]);
        let modulus = 1 << stamp_bits(state);
        let units = unit.wrapping_sub(stamp) & (modulus - 1);
        if units >= modulus / 2 { 0 } else { units as u32 }
    }

    /// Milliseconds since the entry's last packet, to within a unit of its state.
    #[must_use]
    pub fn idle_ms(&self, word: u64, now: Tick) -> u64 {
        let units = u64::from(self.idle_units(word, now));
        (units << self.unit_shift[(word & STATE) as usize]) * Tick::MS
    }

    /// Whether the entry has been idle for its timeout: never before it, and at most two units
    /// of its state after it.
    #[inline]
    #[must_use]
    pub fn is_due(&self, word: u64, now: Tick) -> bool {
        let due_units = &self.due_units[(word & STATE) as usize];
        self.idle_units(word, now) >= due_units.load(Ordering::Relaxed)
    }
}

/// How long an entry of each state may be idle, in milliseconds.
fn by_state(timeouts: &Timeouts) -> impl Iterator<Item = (u64, u64)> {
    let local = State::ALL.into_iter().map(|state| (state as u64, timeouts.of_local(state)));
    local.chain([(REDIRECT, timeouts.redirect_ms)])
}

/// Units of a timeout, at most: a quarter of what the stamp can count. Twice that must pass between
/// two sweeps before an idle entry looks like one of the future.
fn units_max(state: u64) -> u64 {
    1 << (stamp_bits(state) - 2)
}

fn stamp_bits(state: u64) -> u32 {
    super::bucket::META_BITS - stamp_shift(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1000;
    const DAY: u64 = 86_400 * SECOND;

    fn ageing(timeout_ms: u64) -> Ageing {
        Ageing::new(&Timeouts {
            half_open_ms: timeout_ms,
            established_ms: timeout_ms,
            linger_ms: timeout_ms,
            redirect_ms: timeout_ms,
        })
    }

    proptest! {
        /// Nothing is due before its timeout, and all is soon after: from a second to a month.
        #[test]
        fn due_after_the_timeout_and_soon(
            timeout_ms in SECOND..30 * DAY,
            seen in 0u32..1 << 30,
            owner in 0u16..1 << OwnerId::BITS,
        ) {
            let ageing = ageing(timeout_ms);
            for word in [
                ageing.redirect(OwnerId(owner), Tick(seen)),
                ageing.local(State::Established, VERSIONED | PUBLISHED, Tick(seen)),
            ] {
                let slack_ms = (2 * Tick::MS) << ageing.unit_shift[(word & STATE) as usize];
                let after = |ms: u64| Tick(seen + (ms / Tick::MS) as u32);
                prop_assert!(!ageing.is_due(word, after(timeout_ms - Tick::MS)));
                prop_assert!(ageing.is_due(word, after(timeout_ms + slack_ms)));
                prop_assert!(slack_ms <= 2 * Tick::MS || slack_ms <= timeout_ms / 2);
                prop_assert!(!ageing.is_due(word, Tick(seen.saturating_sub(1))), "a clock behind");
                let idle_ms = ageing.idle_ms(word, after(timeout_ms));
                prop_assert!(idle_ms.abs_diff(timeout_ms) <= slack_ms);
                let later = ageing.stamped(word, after(timeout_ms));
                prop_assert!(same_but_stamp(word, later));
                prop_assert_eq!(kind(word), kind(later));
            }
        }
    }

    proptest! {
        /// Whatever the units were made for, other timeouts hold as well, up to the longest: never
        /// too soon, and at most two units late.
        #[test]
        fn other_timeouts_hold_in_the_same_units(
            first_ms in SECOND..30 * DAY,
            part in 1u64..=1000,
            seen in 0u32..1 << 30,
        ) {
            let ageing = ageing(first_ms);
            let Timeouts { established_ms, redirect_ms, .. } = ageing.timeouts_max();
            prop_assert!(established_ms >= first_ms && redirect_ms >= first_ms);
            let words = [
                (ageing.redirect(OwnerId(5), Tick(seen)), redirect_ms),
                (ageing.local(State::Established, VERSIONED, Tick(seen)), established_ms),
            ];
            for (word, max_ms) in words {
                let timeout_ms = (max_ms * part / 1000).max(SECOND);
                ageing.set_timeouts(&Timeouts {
                    half_open_ms: SECOND,
                    established_ms: timeout_ms.min(established_ms),
                    linger_ms: SECOND,
                    redirect_ms: timeout_ms.min(redirect_ms),
                });
                let slack_ms = (2 * Tick::MS) << ageing.unit_shift[(word & STATE) as usize];
                let after = |ms: u64| Tick(seen.wrapping_add((ms / Tick::MS) as u32));
                prop_assert!(!ageing.is_due(word, after(timeout_ms - Tick::MS)));
                prop_assert!(ageing.is_due(word, after(timeout_ms + slack_ms)));
            }
        }
    }

    #[test]
    fn short_states_have_room_for_all_that_can_be_configured() {
        let minutes_10 = 600 * SECOND;
        let max = ageing(SECOND).timeouts_max();
        assert!(max.half_open_ms > minutes_10 && max.linger_ms > minutes_10, "{max:?}");
    }

    #[test]
    fn words_say_what_was_put_in() {
        let ageing = ageing(SECOND);
        for state in State::ALL {
            let word = ageing.local(state, VERSIONED, Tick(5));
            assert_eq!(kind(word), Kind::Local(state));
            assert!(is_versioned(word) && !is_published(word));
        }
        let word = ageing.redirect(OwnerId(0x1fff), Tick(5));
        assert_eq!(kind(word), Kind::Redirect(OwnerId(0x1fff)));
        assert!(!is_published(word) && !is_versioned(word), "an owner's bits are no flags");
        assert!(!same_but_stamp(word, ageing.redirect(OwnerId(0x1ffe), Tick(5))));
    }
}
