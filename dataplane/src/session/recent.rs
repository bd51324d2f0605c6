//! Flows of which something came a moment ago. Shared by all workers, lock-free and bounded: each
//! place remembers one flow, the last one that fell into it, by a keyed hash.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Tick;

/// The bits of a hash that are kept; the others hold the time.
const FINGERPRINT: u64 = !(u32::MAX as u64);

/// The flows.
#[derive(Debug)]
pub struct Recent(Box<[AtomicU64]>);

impl Recent {
    /// Room for `places` flows, at least one.
    #[must_use]
    pub fn new(places: usize) -> Recent {
        Recent((0..places.max(1)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Notes that something came of the flow with this keyed hash.
    pub fn note(&self, hash: u64, now: Tick) {
        self.place(hash).store(hash & FINGERPRINT | u64::from(now.0), Ordering::Relaxed);
    }

    /// How long ago that was, in milliseconds and to within a tick, if it is remembered.
    #[must_use]
    pub fn age_ms(&self, hash: u64, now: Tick) -> Option<u64> {
        let noted = self.place(hash).load(Ordering::Relaxed);
        let is_same = noted != 0 && (noted ^ hash) & FINGERPRINT == 0;
        is_same.then(|| u64::from(now.0.wrapping_sub(noted as u32)) * Tick::MS)
    }

    fn place(&self, hash: u64) -> &AtomicU64 {
        &self.0[hash as usize % self.0.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: u64 = 0x1234_5678_9abc_def0;

    #[test]
    fn r12_remembers_the_last_time() {
        let recent = Recent::new(16);
        assert_eq!(recent.age_ms(FLOW, Tick(0)), None);
        recent.note(FLOW, Tick(10));
        assert_eq!(recent.age_ms(FLOW, Tick(12)), Some(200));
        recent.note(FLOW, Tick(12));
        assert_eq!(recent.age_ms(FLOW, Tick(12)), Some(0));
    }

    #[test]
    fn a_flow_is_not_taken_for_another_in_its_place() {
        let recent = Recent::new(16);
        let other = FLOW ^ 1 << 60;
        recent.note(FLOW, Tick(7));
        assert_eq!(recent.age_ms(other, Tick(7)), None);
        recent.note(other, Tick(7));
        assert_eq!((recent.age_ms(FLOW, Tick(7)), recent.age_ms(other, Tick(7))), (None, Some(0)));
    }
}
