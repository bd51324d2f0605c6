//! The hybrid logical clock that gives sessions their versions. Never goes backwards, also when
//! the wall clock does, and is never behind a version seen from another server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The version of a session: microseconds since the Unix epoch, or one more than the greatest
/// version known. Greater wins everywhere (R12); between equals the greater owner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// Of a session of which nobody saw the beginning, and whose time is not known: it yields to
    /// every other one on its flow.
    pub const UNKNOWN: Version = Version(1);
}

/// A version that is further ahead of the wall clock than this (an hour, in microseconds) is not
/// followed: one broken or hostile clock must not drag the cluster's into the far future.
const AHEAD_MAX_US: u64 = 3_600_000_000;

/// The clock, shared by all workers and the DHT core of a server; lock-free.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// A version greater than every one given or observed before.
    pub fn next(&self) -> Version {
        self.next_at(unix_us())
    }

    fn next_at(&self, now_us: u64) -> Version {
        let mut last = self.0.load(Ordering::Relaxed);
        loop {
            let next = now_us.max(last + 1);
            match self.0.compare_exchange_weak(last, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Version(next),
                Err(newer) => last = newer,
            }
        }
    }

    /// Takes note of a version seen from another server. Returns whether it was believed:
    /// one too far in the future is not.
    pub fn observe(&self, version: Version) -> bool {
        self.observe_at(version, unix_us())
    }

    fn observe_at(&self, version: Version, now_us: u64) -> bool {
        if version.0 > now_us.saturating_add(AHEAD_MAX_US) {
            return false;
        }
        self.0.fetch_max(version.0, Ordering::Relaxed);
        true
    }
}

/// Microseconds since the Unix epoch; 0 when the clock stands before it.
#[must_use]
pub fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r12_versions_grow_though_the_wall_clock_goes_back() {
        let clock = Clock::default();
        let first = clock.next_at(1000);
        let second = clock.next_at(500);
        assert_eq!(first, Version(1000));
        assert!(second > first);
    }

    #[test]
    fn r12_next_is_greater_than_what_was_observed() {
        let clock = Clock::default();
        assert!(clock.observe_at(Version(2000), 1000));
        assert!(clock.next_at(1000) > Version(2000));
    }

    #[test]
    fn a_clock_from_the_far_future_is_not_followed() {
        let clock = Clock::default();
        assert!(!clock.observe_at(Version(u64::MAX), 1000));
        assert_eq!(clock.next_at(1000), Version(1000));
    }
}
