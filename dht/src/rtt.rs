//! The round-trip time to a peer, smoothed as RFC 6298 says. Never measures anything itself.

/// The least retransmission timeout: a peer may be busy for a moment.
const RTO_US_MIN: u64 = 20_000;
/// The greatest, and with it the greatest pause between retransmissions.
const RTO_US_MAX: u64 = 400_000;
/// The timeout towards a peer that was never measured.
const RTO_US_UNKNOWN: u64 = 100_000;
/// The least time before a lookup is hedged, and that towards a peer that was never measured.
const HEDGE_US_MIN: u64 = 500;
const HEDGE_US_UNKNOWN: u64 = 1_000;

/// What is known of the round-trip time to one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rtt {
    /// Smoothed time and its variation in µs (RFC 6298 section 2).
    smoothed: Option<(u64, u64)>,
}

impl Rtt {
    /// The smoothed round-trip time in µs, if there was an answer yet.
    #[must_use]
    pub fn smoothed_us(&self) -> Option<u64> {
        self.smoothed.map(|(srtt, _)| srtt)
    }

    /// Takes a measurement.
    pub fn measured(&mut self, rtt_us: u64) {
        let rtt_us = rtt_us.min(10 * RTO_US_MAX);
        self.smoothed = Some(match self.smoothed {
            None => (rtt_us, rtt_us / 2),
            Some((srtt, variation)) => {
                ((7 * srtt + rtt_us) / 8, (3 * variation + srtt.abs_diff(rtt_us)) / 4)
            }
        });
    }

    /// How long a lookup waits for an answer before the next replica is asked as well, in µs:
    /// three times the usual, and not so short that a busy peer's turn is missed.
    #[must_use]
    pub fn hedge_us(&self) -> u64 {
        let usual = self.smoothed.map_or(HEDGE_US_UNKNOWN, |(srtt, _)| 3 * srtt);
        usual.clamp(HEDGE_US_MIN, RTO_US_MAX)
    }

    /// How long to wait for an answer before transmission `transmission` (from 0) counts as
    /// lost, in µs: doubles each time (RFC 6298 section 5.5).
    #[must_use]
    pub fn timeout_us(&self, transmission: u32) -> u64 {
        let first = self.smoothed.map_or(RTO_US_UNKNOWN, |(srtt, variation)| srtt + 4 * variation);
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
