//! Time as the packet path sees it: read once a turn and passed down, never asked for.

/// A point in time, counted from an arbitrary start that all workers of a process share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Microseconds since the start.
    pub us: u64,
}

/// Coarse time in units of 100 ms, as session entries keep it (13 years in 32 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(pub u32);

const TICK_US: u64 = 100_000;

impl Now {
    /// The point in time `us` microseconds after the start.
    #[must_use]
    pub const fn from_us(us: u64) -> Now {
        Now { us }
    }

    /// The coarse time.
    #[must_use]
    pub const fn tick(self) -> Tick {
        Tick((self.us / TICK_US) as u32)
    }
}

impl Tick {
    /// Milliseconds of a tick.
    pub const MS: u64 = TICK_US / 1000;
}

/// The time-stamp counter as a clock: reading it is no system call.
#[derive(Debug, Clone, Copy)]
pub struct TscClock {
    start: u64,
    /// Microseconds per cycle, as a 64-bit fixed-point fraction.
    us_per_cycle: u64,
}

impl TscClock {
    /// A clock that starts now, for a counter of `hz` cycles a second. Copies agree.
    #[must_use]
    pub fn start(tsc: u64, hz: u64) -> TscClock {
        let us_per_cycle = ((1_000_000u128 << 64) / u128::from(hz.max(1_000_001))) as u64;
        TscClock { start: tsc, us_per_cycle }
    }

    /// The time when the counter stood at `tsc`.
    #[must_use]
    pub fn at(&self, tsc: u64) -> Now {
        let cycles = tsc.saturating_sub(self.start);
        Now { us: ((u128::from(cycles) * u128::from(self.us_per_cycle)) >> 64) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_become_microseconds() {
        let clock = TscClock::start(1000, 2_500_000_000);
        assert_eq!(clock.at(1000).us, 0);
        let second = clock.at(1000 + 2_500_000_000).us;
        assert!((999_999..=1_000_000).contains(&second), "{second}");
        assert_eq!(clock.at(0).us, 0);
    }
}
