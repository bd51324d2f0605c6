//! What the runs are made of: shares of hits, redirects and misses, drawn packet by packet. Never
//! sends one.

use clap::ValueEnum;

use crate::flows::{Class, Flow};

/// The runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RunName {
    /// 90 % hits, 9 % redirects, 1 % misses.
    Mix,
    /// Packets of local sessions.
    Hits,
    /// Packets of sessions that another server owns.
    Redirects,
    /// Packets of flows that nobody owns, each of another one.
    Misses,
}

impl RunName {
    /// Its name in results.
    pub const fn as_str(self) -> &'static str {
        match self {
            RunName::Mix => "mix",
            RunName::Hits => "hits",
            RunName::Redirects => "redirects",
            RunName::Misses => "misses",
        }
    }

    /// Shares of hits and redirects in percent; the rest are misses.
    const fn shares(self) -> (u32, u32) {
        match self {
            RunName::Mix => (90, 9),
            RunName::Hits => (100, 0),
            RunName::Redirects => (0, 100),
            RunName::Misses => (0, 0),
        }
    }
}

/// Draws the flows of packets.
#[derive(Debug)]
pub struct Draw {
    sessions: u32,
    redirects: u32,
    /// Number of the next miss; no flow is missed twice, or the daemon would remember it.
    next_miss: u32,
    state: u64,
}

impl Draw {
    /// Of so many sessions and redirects.
    pub fn new(sessions: u32, redirects: u32) -> Draw {
        Draw { sessions, redirects, next_miss: 0, state: 0x9e37_79b9_7f4a_7c15 }
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        // SplitMix64: one multiplication after another, no state to speak of.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z >> 32) * u64::from(limit)) >> 32) as u32
    }

    /// The flow of the next packet of a run.
    pub fn flow(&mut self, run: RunName) -> Flow {
        let (hits, redirects) = run.shares();
        let drawn = self.below(100);
        if drawn < hits {
            Flow { class: Class::Local, index: self.below(self.sessions) }
        } else if drawn < hits + redirects {
            Flow { class: Class::Redirect, index: self.below(self.redirects) }
        } else {
            let index = self.next_miss;
            self.next_miss = index.wrapping_add(1);
            Flow { class: Class::Miss, index }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(run: RunName) -> [u32; Class::COUNT] {
        let mut draw = Draw::new(1000, 100);
        let mut counts = [0; Class::COUNT];
        for _ in 0..100_000 {
            let flow = draw.flow(run);
            counts[flow.class as usize] += 1;
            assert!(flow.class != Class::Local || flow.index < 1000);
            assert!(flow.class != Class::Redirect || flow.index < 100);
        }
        counts
    }

    #[test]
    fn shares_are_kept() {
        let [local, redirect, miss, churn] = counts(RunName::Mix);
        assert!((89_500..90_500).contains(&local), "{local}");
        assert!((8_700..9_300).contains(&redirect), "{redirect}");
        assert!((850..1_150).contains(&miss), "{miss}");
        assert_eq!(churn, 0);
        assert_eq!(counts(RunName::Hits)[0], 100_000);
        assert_eq!(counts(RunName::Redirects)[1], 100_000);
        assert_eq!(counts(RunName::Misses)[2], 100_000);
    }

    #[test]
    fn every_session_gets_packets() {
        let mut draw = Draw::new(64, 1);
        let mut seen = 0u64;
        for _ in 0..2000 {
            seen |= 1 << draw.flow(RunName::Hits).index;
        }
        assert_eq!(seen, u64::MAX);
    }
}
