//! How long a session stood still. It measures one session and reads no socket.
//!
//! A *stall* is the time without progress while progress was due: for an idle or a
//! request session from the request's writing to the last byte of its response, for
//! a bulk session from one read that brought bytes to the next (the server's rate
//! limit makes some tens of milliseconds of it). The other kinds have both sorts:
//! writes that block, waits for an answer, gaps between two reads (a half-close
//! session's are 100 ms by its stream's pace). A host-close session sees only writes
//! that block on a full send buffer of 32 KiB, and the wait for the verdict; a churn
//! loop's connection has the wait from its SYN to the whole answer, and that for the
//! server's FIN; of a reset, what it came late is a stall. A stall belongs to the network
//! change when it ends after the first mark, even if it began before. A session that
//! failed has no last stall: it is counted as failed instead.

use std::time::{Duration, Instant};

use crate::control::{Control, unix_us};

/// The longest stalls of one session, before and after the first mark.
#[derive(Debug, Default, Clone, Copy)]
pub struct Meter {
    /// Longest that ended before the first mark.
    pub before_mark: Duration,
    /// Longest that ended after it.
    pub after_mark: Duration,
    /// Wall clock at the end of `after_mark`, in microseconds; 0: there was none.
    pub after_mark_ended_unix_us: u64,
}

impl Meter {
    /// Progress now; it was due since `since`.
    pub fn progress(&mut self, since: Instant, control: &Control) {
        let now = Instant::now();
        let stall = now.saturating_duration_since(since);
        match control.first_mark() {
            Some(mark) if now >= mark => {
                if stall > self.after_mark {
                    self.after_mark = stall;
                    self.after_mark_ended_unix_us = unix_us();
                }
            }
            _ => self.before_mark = self.before_mark.max(stall),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_where_it_ends() {
        let control = Control::new(Duration::from_secs(60));
        let mut meter = Meter::default();
        let since = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        meter.progress(since, &control);
        assert!(meter.before_mark >= Duration::from_millis(2));
        assert_eq!(meter.after_mark, Duration::ZERO);
        control.mark();
        meter.progress(since, &control);
        assert!(meter.after_mark >= Duration::from_millis(2));
        assert!(meter.after_mark_ended_unix_us > 0);
    }
}
