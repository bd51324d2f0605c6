//! What the sessions must know of the run: marks, the end, the time limit. It knows
//! nothing of any session.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970; 0 if the clock stands before that.
pub fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[derive(Debug, Default)]
struct State {
    marks_unix_us: Vec<u64>,
    finish: bool,
}

/// Shared by all sessions; the main thread and the reader of commands write it.
#[derive(Debug)]
pub struct Control {
    start: Instant,
    limit: Duration,
    state: Mutex<State>,
    changed: Condvar,
    /// Time of the first mark in microseconds after `start`, plus one; 0: none yet.
    first_mark_us: AtomicU64,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The time asked for is over.
    Elapsed,
    /// There are now so many marks, more than the caller had seen.
    Mark(usize),
    /// The run ends.
    Finish,
}

impl Control {
    /// A run that may last no longer than `limit`.
    pub fn new(limit: Duration) -> Self {
        Self {
            start: Instant::now(),
            limit,
            state: Mutex::default(),
            changed: Condvar::new(),
            first_mark_us: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked leaves the state whole: each change is one step.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The network changes now. Returns the wall clock in microseconds.
    pub fn mark(&self) -> u64 {
        let now = unix_us();
        let since_start = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
        let mut state = self.lock();
        if state.marks_unix_us.is_empty() {
            self.first_mark_us.store(since_start + 1, Ordering::Release);
        }
        state.marks_unix_us.push(now);
        self.changed.notify_all();
        now
    }

    /// All sessions are to come to their end.
    pub fn finish(&self) {
        self.lock().finish = true;
        self.changed.notify_all();
    }

    /// Wall clock of every mark, in microseconds.
    pub fn marks(&self) -> Vec<u64> {
        self.lock().marks_unix_us.clone()
    }

    /// When the first mark was made.
    pub fn first_mark(&self) -> Option<Instant> {
        match self.first_mark_us.load(Ordering::Acquire) {
            0 => None,
            us => Some(self.start + Duration::from_micros(us - 1)),
        }
    }

    /// What is left of the run's limit.
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed())
    }

    /// Waits for the end, for a mark beyond the `seen` first ones, or for `longest`.
    pub fn wait(&self, seen: Option<usize>, longest: Duration) -> Woken {
        let deadline = Instant::now() + longest.min(self.left());
        let mut state = self.lock();
        loop {
            if state.finish {
                return Woken::Finish;
            }
            let marks = state.marks_unix_us.len();
            if seen.is_some_and(|seen| marks > seen) {
                return Woken::Mark(marks);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::Elapsed;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_end_for_their_reason() {
        let control = Control::new(Duration::from_secs(60));
        let moment = Duration::from_millis(1);
        assert_eq!(control.wait(Some(0), moment), Woken::Elapsed);
        assert_eq!(control.first_mark(), None);
        control.mark();
        assert!(control.first_mark().is_some());
        assert_eq!(control.wait(Some(0), moment), Woken::Mark(1));
        assert_eq!(control.wait(Some(1), moment), Woken::Elapsed);
        assert_eq!(control.wait(None, moment), Woken::Elapsed);
        control.finish();
        assert_eq!(control.wait(Some(0), moment), Woken::Finish);
    }

    #[test]
    fn the_limit_bounds_every_wait() {
        let control = Control::new(Duration::from_millis(5));
        assert_eq!(control.wait(None, Duration::from_secs(3600)), Woken::Elapsed);
        assert_eq!(control.left(), Duration::ZERO);
    }
}
