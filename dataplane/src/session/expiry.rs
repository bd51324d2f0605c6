//! The sweep over the session table: a slice per housekeeping turn, each worker over its own
//! share of the buckets. Never runs inside a lookup.

use std::ops::Range;

use arrayvec::ArrayVec;

use super::table::{Handle, SessionTable};
use super::{Listed, Session, State};
use crate::time::Tick;

/// Entries that one slice can find due; what it finds beyond that waits for the next sweep.
pub const DUE_MAX: usize = 64;

/// Buckets in a slice.
const SLICE: usize = 32;

/// How long an entry may be idle, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// A half-open session: longer than the kernel retransmits SYN-ACKs.
    pub half_open_ms: u64,
    /// A session in any state between open and closed.
    pub established_ms: u64,
    /// A closed or reset session: longer than the kernel's TIME_WAIT (R8).
    pub linger_ms: u64,
    /// A redirect.
    pub redirect_ms: u64,
}

impl Timeouts {
    /// How long an entry like this may be idle.
    #[must_use]
    pub fn of(&self, session: &Session) -> u64 {
        match session {
            Session::Redirect { .. } => self.redirect_ms,
            Session::Local { state: State::HalfOpen, .. } => self.half_open_ms,
            Session::Local { state, .. } if state.is_lingering() => self.linger_ms,
            Session::Local { .. } => self.established_ms,
        }
    }
}

/// Something to do about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It was idle for too long: withdraw and remove it.
    Expire(Handle, Listed),
    /// Its publication was put off: try again.
    Publish(Handle, Listed),
}

/// Where a worker's sweep has come to.
#[derive(Debug)]
pub struct Sweep {
    share: Range<usize>,
    next: usize,
}

impl Sweep {
    /// The sweep of worker `worker` of `workers`.
    #[must_use]
    pub fn new(table: &SessionTable, worker: usize, workers: usize) -> Sweep {
        let buckets = table.buckets();
        let share = buckets * worker / workers..buckets * (worker + 1) / workers;
        Sweep { next: share.start, share }
    }

    /// Looks at the next slice and gathers what is due.
    pub fn slice(
        &mut self,
        table: &SessionTable,
        timeouts: &Timeouts,
        now: Tick,
        due: &mut ArrayVec<Due, DUE_MAX>,
    ) {
        for _ in 0..SLICE.min(self.share.len()) {
            table.visit(self.next, |handle, listed| {
                let idle_ms = now.ms_since(listed.last_seen);
                let found = if idle_ms >= timeouts.of(&listed.session) {
                    Some(Due::Expire(handle, listed))
                } else if wants_publishing(&listed.session) {
                    Some(Due::Publish(handle, listed))
                } else {
                    None
                };
                if let Some(found) = found {
                    // Full: it is found again on the next round.
                    let _ = due.try_push(found);
                }
            });
            self.next += 1;
            if self.next == self.share.end {
                self.next = self.share.start;
            }
        }
    }
}

/// Half-open sessions above the limit wait for their handshake (R3), all others only for room in
/// the ring.
fn wants_publishing(session: &Session) -> bool {
    matches!(session, Session::Local { state, published: false, .. } if *state != State::HalfOpen && !state.is_lingering())
}
