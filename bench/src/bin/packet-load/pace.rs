//! When a packet is due at a given rate, and at which rate to try next. Knows no clock: ticks are
//! passed in.

/// Packets at a constant rate. What falls due while the generator is held up is made up for only
/// within bounds: a burst of everything that is late would measure the hold-up, not the appliance.
#[derive(Debug)]
pub struct Pace {
    start: u64,
    /// Packets per tick, as a 64-bit fixed-point fraction.
    per_tick: u128,
    given: u64,
    behind_max: u64,
    skipped: u64,
}

impl Pace {
    /// `per_second` packets a second from `start` on, of a clock with `hz` ticks a second; at most
    /// `behind_max` packets are made up for.
    pub fn new(start: u64, hz: u64, per_second: u64, behind_max: u64) -> Pace {
        let per_tick = (u128::from(per_second) << 64) / u128::from(hz.max(1));
        Pace { start, per_tick, given: 0, behind_max, skipped: 0 }
    }

    /// Takes up to `most` of the packets that are due at `now`.
    pub fn take(&mut self, now: u64, most: u64) -> u64 {
        let elapsed = u128::from(now.saturating_sub(self.start));
        let due = ((elapsed * self.per_tick) >> 64) as u64 - self.given - self.skipped;
        let late = due.saturating_sub(self.behind_max);
        self.skipped += late;
        let taken = (due - late).min(most);
        self.given += taken;
        taken
    }

    /// Packets that were due and never sent, because the generator was held up for too long.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

/// The search for the highest rate that goes well: doubled until it does not, then halved intervals.
#[derive(Debug)]
pub struct Search {
    next: u64,
    good: Option<u64>,
    bad: Option<u64>,
}

impl Search {
    /// Begins at `first` packets a second.
    pub fn new(first: u64) -> Search {
        Search { next: first.max(1), good: None, bad: None }
    }

    /// The rate to try now; `None` when good and bad lie close together.
    pub fn rate(&self) -> Option<u64> {
        match (self.good, self.bad) {
            (Some(good), Some(bad)) if bad - good <= good / 10 => None,
            _ => Some(self.next),
        }
    }

    /// Says how the last rate went.
    pub fn went(&mut self, good: bool) {
        if good {
            self.good = self.good.max(Some(self.next));
        } else {
            self.bad = Some(self.bad.map_or(self.next, |bad| bad.min(self.next)));
        }
        self.next = match (self.good, self.bad) {
            (Some(good), Some(bad)) => good + bad.saturating_sub(good) / 2,
            (Some(good), None) => good * 2,
            (None, Some(bad)) => (bad / 2).max(1),
            (None, None) => self.next,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 2_000_000_000;

    #[test]
    fn the_rate_is_kept() {
        let mut pace = Pace::new(5, HZ, 1_000_000, 1000);
        let mut sent = 0;
        for step in 0..=10_000 {
            sent += pace.take(5 + step * (HZ / 10_000), 1000);
        }
        assert!((999_999..=1_000_000).contains(&sent), "{sent}");
        assert_eq!(pace.skipped(), 0);
    }

    #[test]
    fn what_does_not_fit_a_burst_stays_due() {
        let mut pace = Pace::new(0, HZ, 1_000_000, 1000);
        let now = HZ / 10_000 + 1;
        assert_eq!((pace.take(now, 32), pace.take(now, 32), pace.take(now, 64)), (32, 32, 36));
        assert_eq!(pace.take(now, 32), 0);
    }

    #[test]
    fn a_long_hold_up_is_not_made_up_for() {
        let mut pace = Pace::new(0, HZ, 1_000_000, 1000);
        let sent = pace.take(HZ + 1, u64::MAX);
        assert_eq!((sent, pace.skipped()), (1000, 999_000));
        assert_eq!(pace.take(HZ + 1, 32), 0);
        assert_eq!(pace.take(HZ + HZ / 1000 + 1, 2000), 1000);
    }

    /// The highest of the rates that a search finds good when all up to `limit` are.
    fn found(first: u64, limit: u64) -> (u64, u32) {
        let (mut search, mut best, mut steps) = (Search::new(first), 0, 0);
        while let Some(rate) = search.rate() {
            steps += 1;
            let good = rate <= limit;
            best = if good { best.max(rate) } else { best };
            search.went(good);
        }
        (best, steps)
    }

    #[test]
    fn the_search_comes_close_from_both_sides() {
        for (first, limit) in [(100, 1_234_567), (10_000_000, 4321), (1000, 1000), (1000, 1999)] {
            let (best, steps) = found(first, limit);
            assert!(best <= limit && best >= limit - limit / 10, "{first} {limit}: {best}");
            assert!(steps < 24, "{steps} steps");
        }
    }
}
