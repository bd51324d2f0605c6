//! What a worker does when there is nothing to do. Never sleeps in a busy worker, and never for
//! longer than a bound.

use std::time::Duration;

/// How a worker waits for packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleStrategy {
    /// Polls without pause: lowest latency, one whole core per worker.
    Busy,
    /// Polls, then pauses, then sleeps shortly: for cores that are shared.
    Adaptive,
}

/// Empty turns in a row before an adaptive worker pauses between polls.
const SPIN_TURNS: u32 = 64;
/// Empty turns in a row before an adaptive worker sleeps between polls.
const PAUSE_TURNS: u32 = 256;
/// The longest sleep: bounds the latency that sleeping adds.
const SLEEP_MAX_US: u64 = 100;
/// The first sleep, doubled with every further empty turn.
const SLEEP_MIN_US: u64 = 10;

/// Counts empty turns and waits accordingly.
#[derive(Debug)]
pub struct Idle {
    strategy: IdleStrategy,
    empty_turns: u32,
}

impl Idle {
    /// Waits by this strategy.
    #[must_use]
    pub fn new(strategy: IdleStrategy) -> Idle {
        Idle { strategy, empty_turns: 0 }
    }

    /// Called after each turn of the worker with whether it found work.
    pub fn after_turn(&mut self, busy: bool) {
        if busy {
            self.empty_turns = 0;
            return;
        }
        self.empty_turns = self.empty_turns.saturating_add(1);
        if self.strategy == IdleStrategy::Busy || self.empty_turns < SPIN_TURNS {
            return;
        }
        if self.empty_turns < PAUSE_TURNS {
            std::hint::spin_loop();
            return;
        }
        let doublings = (self.empty_turns - PAUSE_TURNS).min(8);
        std::thread::sleep(Duration::from_micros((SLEEP_MIN_US << doublings).min(SLEEP_MAX_US)));
    }
}
