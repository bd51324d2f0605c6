//! The sweep over the session table: a slice per housekeeping turn, each worker over its own
//! share of the buckets. Never runs inside a lookup.

use std::ops::Range;

use arrayvec::ArrayVec;

use super::State;
use super::table::{Entry, SessionTable};
use super::word::Kind;
use crate::time::Tick;

/// Entries that one slice can find due; what it finds beyond that waits for the next sweep.
pub const DUE_MAX: usize = 64;

/// Slices of a whole sweep, at most: with one a millisecond a sweep takes four seconds.
const SLICES: usize = 4096;
/// Buckets in a slice, at least.
const SLICE_MIN: usize = 128;

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
    /// How long a local session in this state may be idle, in milliseconds.
    #[must_use]
    pub fn of_local(&self, state: State) -> u64 {
        match state {
            State::HalfOpen => self.half_open_ms,
            state if state.is_lingering() => self.linger_ms,
            _ => self.established_ms,
        }
    }
}

/// Something to do about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It was idle for too long: withdraw and remove it.
    Expire(Entry),
    /// Its service is none any more: withdraw and remove it, idle or not.
    Retire(Entry),
    /// Its publication was put off: try again.
    Publish(Entry),
}

/// Where a worker's sweep has come to.
#[derive(Debug)]
pub struct Sweep {
    share: Range<usize>,
    next: usize,
    slice: usize,
}

impl Sweep {
    /// The sweep of worker `worker` of `workers`.
    #[must_use]
    pub fn new(table: &SessionTable, worker: usize, workers: usize) -> Sweep {
        let buckets = table.buckets();
        let share = buckets * worker / workers..buckets * (worker + 1) / workers;
        let slice = share.len().div_ceil(SLICES).max(SLICE_MIN).min(share.len());
        Sweep { next: share.start, share, slice }
    }

    /// Looks at the next slice and gathers what is due.
    pub fn slice(&mut self, table: &SessionTable, now: Tick, due: &mut ArrayVec<Due, DUE_MAX>) {
        let retired = table.retired();
        let is_retired = |entry: &Entry| retired.as_ref().is_some_and(|retired| retired(entry));
        for _ in 0..self.slice {
            table.visit(self.next, |entry| {
                let found = if is_retired(&entry) {
                    Due::Retire(entry)
                } else if table.is_due(&entry, now) {
                    Due::Expire(entry)
                } else if wants_publishing(&entry) {
                    Due::Publish(entry)
                } else {
                    return;
                };
                // Full: it is found again on the next round.
                let _ = due.try_push(found);
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
fn wants_publishing(entry: &Entry) -> bool {
    let is_open = |state: State| state != State::HalfOpen && !state.is_lingering();
    entry.is_unpublished() && matches!(entry.kind(), Kind::Local(state) if is_open(state))
}
