//! Flows that came out of a tunnel though the table knows nothing of them: what the host answers
//! to the first such segment may concern another server's session. Shared by all workers and
//! lock-free: each place remembers one flow, the last one that fell into it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Tick;

/// Flows remembered at the same time, at most.
const PLACES: usize = 4096;
/// For so long the host's RST counts as the answer to the segment before it, in milliseconds: a
/// client waits longer before it repeats anything (RFC 6298 §2.4, as it is on Linux).
const ANSWER_MS: u64 = 150;
/// A flow that comes again within this time is doubted no more, in milliseconds: its sender has
/// asked again and heard the same.
const AGAIN_MS: u64 = 60_000;

/// The flows, by a keyed hash of theirs.
#[derive(Debug)]
pub struct Doubts(Box<[AtomicU64]>);

impl Default for Doubts {
    fn default() -> Doubts {
        Doubts((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Doubts {
    /// Notes that a segment of the flow with this keyed hash goes to the host.
    pub fn note(&self, hash: u64, now: Tick) {
        let place = self.place(hash);
        if age_ms(place.load(Ordering::Relaxed), hash, now).is_none_or(|age| age >= AGAIN_MS) {
            place.store(hash & FINGERPRINT | u64::from(now.0), Ordering::Relaxed);
        }
    }

    /// Whether what the host says of the flow now is its answer to a segment that was noted.
    #[must_use]
    pub fn is_answer(&self, hash: u64, now: Tick) -> bool {
        let noted = self.place(hash).load(Ordering::Relaxed);
        age_ms(noted, hash, now).is_some_and(|age| age < ANSWER_MS)
    }

    fn place(&self, hash: u64) -> &AtomicU64 {
        &self.0[hash as usize % PLACES]
    }
}

/// The bits of a hash that are kept; the others hold the time.
const FINGERPRINT: u64 = !(u32::MAX as u64);

/// How long ago the flow was noted, if it was, to within a tick.
fn age_ms(noted: u64, hash: u64, now: Tick) -> Option<u64> {
    let is_same = noted != 0 && (noted ^ hash) & FINGERPRINT == 0;
    is_same.then(|| u64::from(now.0.wrapping_sub(noted as u32)) * Tick::MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: u64 = 0x1234_5678_9abc_def0;

    #[test]
    fn r12_the_first_answer_is_doubted_and_no_later_one() {
        let doubts = Doubts::default();
        let at = |ms: u64| Tick((ms / Tick::MS) as u32);
        assert!(!doubts.is_answer(FLOW, at(0)));
        doubts.note(FLOW, at(1000));
        assert!(doubts.is_answer(FLOW, at(1000)));
        assert!(doubts.is_answer(FLOW, at(1100)));
        assert!(!doubts.is_answer(FLOW, at(1200)), "the client has repeated its segment");
        doubts.note(FLOW, at(1200));
        assert!(!doubts.is_answer(FLOW, at(1200)), "it came again");
        doubts.note(FLOW, at(61_000));
        assert!(doubts.is_answer(FLOW, at(61_000)));
    }

    #[test]
    fn a_flow_is_not_taken_for_another_in_its_place() {
        let doubts = Doubts::default();
        let other = FLOW ^ 1 << 60;
        doubts.note(FLOW, Tick(7));
        assert!(!doubts.is_answer(other, Tick(7)));
        doubts.note(other, Tick(7));
        assert!(doubts.is_answer(other, Tick(7)) && !doubts.is_answer(FLOW, Tick(7)));
    }
}
