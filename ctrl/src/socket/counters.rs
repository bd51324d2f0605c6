//! What the control socket counts: clients, requests, and what was refused to whom. Never a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::{COMMANDS, ControlStats, Request};

/// Counters of a control socket since the daemon's start, and gauges of now.
#[derive(Debug, Default)]
pub struct ControlCounters {
    /// Clients that were served.
    pub clients: AtomicU64,
    /// Clients that were sent away, for there were too many.
    pub refused: AtomicU64,
    /// Clients that were sent away as they sent no whole request, or took no answer, in time.
    pub too_slow: AtomicU64,
    /// Clients that were sent away for too long a line.
    pub too_large: AtomicU64,
    /// Lines that were no request of this version.
    pub bad_requests: AtomicU64,
    /// Changing commands of clients that may only read.
    pub forbidden: AtomicU64,
    /// Requests that had to wait, for those of unprivileged clients were too many.
    pub paced: AtomicU64,
    /// Streams that were begun.
    pub streams: AtomicU64,
    /// Streams that were refused, for there were too many.
    pub streams_refused: AtomicU64,
    /// Items sent in streams.
    pub items: AtomicU64,
    /// Items that streams lacked, as their clients were told.
    pub items_missed: AtomicU64,
    /// Clients that are being served.
    pub clients_now: AtomicU64,
    /// Streams under way.
    pub streams_now: AtomicU64,
    /// Requests, by the place of their command in [`COMMANDS`].
    requests: [AtomicU64; COMMANDS.len()],
}

impl ControlCounters {
    /// Counts a request.
    pub fn request(&self, request: &Request) {
        let place = COMMANDS.iter().position(|(name, _)| *name == request.command());
        if let Some(count) = place.and_then(|place| self.requests.get(place)) {
            add(count, 1);
        }
    }

    /// The same for `show stats`.
    #[must_use]
    pub fn stats(&self) -> ControlStats {
        let named = |(name, value): (&str, &AtomicU64)| (name.to_owned(), read(value));
        let counters = [
            ("clients", &self.clients),
            ("refused", &self.refused),
            ("too_slow", &self.too_slow),
            ("too_large", &self.too_large),
            ("bad_requests", &self.bad_requests),
            ("forbidden", &self.forbidden),
            ("paced", &self.paced),
            ("streams", &self.streams),
            ("streams_refused", &self.streams_refused),
            ("items", &self.items),
            ("items_missed", &self.items_missed),
        ];
        let gauges = [("clients", &self.clients_now), ("streams", &self.streams_now)];
        let requests = COMMANDS.iter().zip(&self.requests);
        ControlStats {
            counters: counters.map(named).into(),
            gauges: gauges.map(named).into(),
            requests: requests.map(|((name, _), count)| named((name, count))).collect(),
        }
    }
}

pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// One of a number of places; given back when dropped.
pub(super) struct Seat<'a>(&'a AtomicU64);

impl Seat<'_> {
    /// Takes a place if fewer than `most` are taken.
    pub(super) fn take(taken: &AtomicU64, most: u64) -> Option<Seat<'_>> {
        let free = |count| (count < most).then_some(count + 1);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok().map(|_| Seat(taken))
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
