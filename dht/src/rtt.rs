//! The round-trip time to a peer, smoothed as RFC 6298 says. Never measures anything itself.

use std::num::NonZero;

/// The least retransmission timeout: a peer may be busy for a moment.
const RTO_US_MIN: u64 = 20_000;
/// The greatest, and with it the greatest pause between retransmissions.
const RTO_US_MAX: u64 = 400_000;
/// The timeout towards a peer that was never measured.
const RTO_US_UNKNOWN: u64 = 100_000;
/// The least time before a lookup is hedged, and that towards a peer that was never measured.
const HEDGE_US_MIN: u64 = 500;
const HEDGE_US_UNKNOWN: u64 = 1_000;
/// A longer round trip counts as this.
const RTT_US_MAX: u64 = 10 * RTO_US_MAX;

/// What is known of the round-trip time to one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rtt {
    /// Smoothed time and its variation in µs (RFC 6298 section 2). Both are below 2^32, and the
    /// time at least 1: tables hold thousands of these.
    smoothed: Option<(NonZero<u32>, u32)>,
}

impl Rtt {
    /// The smoothed round-trip time in µs, if there was an answer yet.
    #[must_use]
    pub fn smoothed_us(&self) -> Option<u64> {
        self.smoothed.map(|(srtt, _)| u64::from(srtt.get()))
    }

    /// Takes a measurement.
    pub fn measured(&mut self, rtt_us: u64) {
        let rtt_us = rtt_us.min(RTT_US_MAX) as u32;
        let (srtt, variation) = match self.smoothed {
            None => (rtt_us, rtt_us / 2),
            Some((srtt, variation)) => {
                let srtt = srtt.get();
                ((7 * srtt + rtt_us) / 8, (3 * variation + srtt.abs_diff(rtt_us)) / 4)
            }
        };
        self.smoothed = Some((NonZero::new(srtt).unwrap_or(NonZero::<u32>::MIN), variation));
    }

    /// How long a lookup waits for an answer before the next replica is asked as well, in µs:
    /// three times the usual, and not so short that a busy peer's turn is missed.
    #[must_use]
    pub fn hedge_us(&self) -> u64 {
        let usual = self.smoothed.map_or(HEDGE_US_UNKNOWN, |(srtt, _)| 3 * u64::from(srtt.get()));
        usual.clamp(HEDGE_US_MIN, RTO_US_MAX)
    }

    /// How long to wait for an answer before transmission `transmission` (from 0) counts as
    /// lost, in µs: doubles each time (RFC 6298 section 5.5).
    #[must_use]
    pub fn timeout_us(&self, transmission: u32) -> u64 {
        let timeout = |(srtt, variation): (NonZero<u32>, u32)| srtt.get() + 4 * variation;
        let first = self.smoothed.map_or(RTO_US_UNKNOWN, |smoothed| timeout(smoothed).into());
        let first = first.clamp(RTO_US_MIN, RTO_US_MAX);
        (first << transmission.min(8)).min(RTO_US_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_measurements() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.smoothed_us(), None);
        assert_eq!(rtt.timeout_us(0), RTO_US_UNKNOWN);
        rtt.measured(80_000);
        assert_eq!(rtt.timeout_us(0), 80_000 + 4 * 40_000);
        for _ in 0..100 {
            rtt.measured(100);
        }
        assert!(rtt.smoothed_us().is_some_and(|srtt| srtt < 120));
        assert_eq!(rtt.timeout_us(0), RTO_US_MIN);
        assert_eq!(rtt.timeout_us(2), 4 * RTO_US_MIN);
        assert_eq!(rtt.timeout_us(99), RTO_US_MAX);
    }
}
