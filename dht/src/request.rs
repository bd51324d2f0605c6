//! The requests that wait for an answer. Never sends them and never counts an answer that comes
//! from another address than the request went to.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;

use crate::id::Id;
use crate::lookup::Goal;

/// The most transmissions of one request.
pub(crate) const TRANSMISSIONS_MAX: usize = 5;
/// The last bits of a transaction say which transmission it is, so that the answer tells its
/// round-trip time although the request was sent again (what Karn's algorithm cannot).
const TRANSMISSION_BITS: u64 = 7;

/// Names a lookup: there is one in flight for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LookupKey {
    pub(crate) goal: Goal,
    pub(crate) target: Id,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// PING: is a contact alive? It is its turn.
    Probe,
    /// PING: is a suspect alive?
    Check,
    /// PING_REQ: does the contact with this id answer the peer? When it answers nobody asked, all
    /// are told.
    Vouch(Id),
    /// PING_REQ: the same about a suspect that all were told of, before it is given up.
    LastCall(Id),
    /// PING: is there a node at this address? We heard of it.
    Meet,
    /// FIND_NODE or FIND_VALUE of a lookup.
    Find(LookupKey),
}

/// A request in flight.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) to: SocketAddr,
    pub(crate) peer: Id,
    pub(crate) purpose: Purpose,
    /// When which transmission was sent, and how many were.
    sent_at_us: [u64; TRANSMISSIONS_MAX],
    pub(crate) transmissions: usize,
    deadline_us: u64,
}

impl Request {
    pub(crate) fn new(to: SocketAddr, peer: Id, purpose: Purpose) -> Request {
        Request {
            to,
            peer,
            purpose,
            sent_at_us: [0; TRANSMISSIONS_MAX],
            transmissions: 0,
            deadline_us: 0,
        }
    }

    /// When the last transmission was sent.
    pub(crate) fn last_sent_at_us(&self) -> u64 {
        self.sent_at_us[self.transmissions.saturating_sub(1)]
    }
}

/// All requests in flight, with their deadlines.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests {
    by_transaction: HashMap<u64, Request>,
    /// Deadline and transaction; also of requests that are answered by now.
    deadlines: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Requests {
    pub(crate) fn len(&self) -> usize {
        self.by_transaction.len()
    }

    /// Takes a request that is sent now for the first time or again, and returns its
    /// transaction. `random` is the transaction, or the one it had.
    pub(crate) fn sent(
        &mut self,
        now_us: u64,
        random: u64,
        mut request: Request,
        timeout_us: u64,
    ) -> u64 {
        let key = random & !TRANSMISSION_BITS;
        let transmission = request.transmissions.min(TRANSMISSIONS_MAX - 1);
        request.sent_at_us[transmission] = now_us;
        request.transmissions = transmission + 1;
        request.deadline_us = now_us + timeout_us;
        self.deadlines.push(Reverse((request.deadline_us, key)));
        self.by_transaction.insert(key, request);
        key | transmission as u64
    }

    /// The request that a datagram from `from` with this transaction may answer.
    pub(crate) fn get(&self, transaction: u64, from: SocketAddr) -> Option<&Request> {
        self.by_transaction
            .get(&(transaction & !TRANSMISSION_BITS))
            .filter(|request| request.to == from)
    }

    /// Ends a request that was answered, and tells the round-trip time.
    pub(crate) fn answered(&mut self, now_us: u64, transaction: u64) -> Option<(Request, u64)> {
        let key = transaction & !TRANSMISSION_BITS;
        let request = self.by_transaction.remove(&key)?;
        let transmission = (transaction & TRANSMISSION_BITS) as usize;
        let last = request.transmissions.saturating_sub(1);
        let sent_at_us = request.sent_at_us[transmission.min(last)];
        Some((request, now_us.saturating_sub(sent_at_us)))
    }

    /// When the next request may time out; may be earlier.
    pub(crate) fn next_deadline_us(&self) -> Option<u64> {
        self.deadlines.peek().map(|Reverse((at_us, _))| *at_us)
    }

    /// Takes out a request whose time is over: send it again, or give it up.
    pub(crate) fn timed_out(&mut self, now_us: u64) -> Option<(u64, Request)> {
        while self.next_deadline_us().is_some_and(|at_us| at_us <= now_us) {
            let Reverse((deadline_us, key)) = self.deadlines.pop()?;
            let current = self.by_transaction.get(&key);
            if current.is_some_and(|request| request.deadline_us == deadline_us) {
                return self.by_transaction.remove(&key).map(|r| (key, r));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_round_trip_of_the_transmission_that_was_answered() {
        let to = ([10, 0, 0, 2], 7000).into();
        let mut requests = Requests::default();
        let first = requests.sent(100, u64::MAX, Request::new(to, Id(1), Purpose::Check), 50);
        assert!(requests.timed_out(149).is_none());
        let (key, request) = requests.timed_out(150).expect("over");
        let second = requests.sent(150, key, request, 100);
        assert_ne!(first, second);
        assert!(requests.get(first, to).is_some());
        assert!(requests.get(first, ([10, 0, 0, 3], 7000).into()).is_none());
        assert!(requests.get(first ^ (1 << 40), to).is_none());
        let mut other = Requests::default();
        other.sent(100, 1 << 20, Request::new(to, Id(1), Purpose::Check), 50);
        assert_eq!(requests.answered(180, first).expect("known").1, 80);
        assert!(requests.answered(180, second).is_none());
        assert!(requests.timed_out(u64::MAX).is_none());
        assert_eq!(requests.len(), 0);
    }
}
