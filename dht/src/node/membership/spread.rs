//! Telling all contacts something: that one is suspect, that we are alive, that we leave. Never
//! sends more than a few hundred datagrams at once, and never passes on what it was told.

use std::collections::VecDeque;

use crate::id::Id;
use crate::message::{Life, Message};
use crate::node::Node;
use crate::routing_table::RoutingTable;
use crate::stats::Counter;

/// Messages to all contacts that wait.
pub(super) const BROADCASTS_MAX: usize = 256;
/// Datagrams sent in this time, in µs, at most.
const PORTION: usize = 256;
const PORTION_US: u64 = 2_000;
/// When a LEAVE is sent to each contact, in µs from the beginning, and a SUSPECT: nobody confirms
/// them, and some may be lost.
const LEAVE_ROUNDS_US: [u64; 3] = [0, 30_000, 60_000];
const SUSPECT_ROUNDS_US: [u64; 3] = [0, 100_000, 300_000];
/// Pause between two refutations, in µs.
const REFUTE_US: u64 = 500_000;

/// A message that goes to all contacts, in the order of their ids.
#[derive(Debug, Clone)]
struct Broadcast {
    message: Message,
    /// Not sent any more when this contact is gone or gave a sign of life since.
    suspect: Option<Id>,
    /// When to begin, and when it was decided to.
    at_us: u64,
    since_us: u64,
    /// The last contact that it was sent to.
    after: Option<Id>,
}

impl Broadcast {
    fn is_wanted(&self, table: &RoutingTable) -> bool {
        self.suspect.is_none_or(|suspect| {
            table.get(suspect).is_some_and(|contact| contact.alive_at_us <= self.since_us)
        })
    }
}

/// The messages that go to all contacts.
#[derive(Debug, Clone, Default)]
pub(super) struct Broadcasts {
    queue: VecDeque<Broadcast>,
    /// When the next portion may be sent, and what is left of this one.
    portion_at_us: u64,
    portion: usize,
    /// When we last refuted a suspicion, and whether there was another since.
    refuted_at_us: Option<u64>,
    refute: bool,
}

impl Broadcasts {
    /// Messages that wait.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// When there is next something to send, in µs.
    pub(super) fn next_at_us(&self) -> Option<u64> {
        let refute = self.refute.then(|| self.refuted_at_us.map_or(0, |at_us| at_us + REFUTE_US));
        let portion_at_us = if self.portion > 0 { 0 } else { self.portion_at_us };
        let broadcast = self.queue.iter().map(|b| b.at_us.max(portion_at_us)).min();
        [refute, broadcast].into_iter().flatten().min()
    }
}

impl Node {
    /// Sends a message to all contacts, `after_us` from now.
    fn broadcast(&mut self, message: Message, suspect: Option<Id>, after_us: u64) {
        let queue = &mut self.membership.broadcasts.queue;
        if queue.len() == BROADCASTS_MAX {
            return self.count(Counter::BroadcastsRefused);
        }
        let (at_us, since_us) = (self.now_us + after_us, self.now_us);
        queue.push_back(Broadcast { message, suspect, at_us, since_us, after: None });
        self.spread();
    }

    /// Sends what goes to all contacts, as far as it is time and the portion allows.
    pub(in crate::node) fn spread(&mut self) {
        self.refute_if_due();
        let now_us = self.now_us;
        let broadcasts = &mut self.membership.broadcasts;
        if now_us >= broadcasts.portion_at_us {
            broadcasts.portion_at_us = now_us + PORTION_US;
            broadcasts.portion = PORTION;
        }
        while self.membership.broadcasts.portion > 0 {
            let queue = &mut self.membership.broadcasts.queue;
            let Some(place) = queue.iter().position(|b| b.at_us <= now_us) else {
                return;
            };
            let broadcast = &mut queue[place];
            let contact = self.table.next(broadcast.after);
            let wanted = broadcast.is_wanted(&self.table);
            let Some(contact) = contact.filter(|_| wanted) else {
                queue.remove(place);
                continue;
            };
            broadcast.after = Some(contact.id);
            let (to, message) = (contact.address, broadcast.message.clone());
            self.membership.broadcasts.portion -= 1;
            self.send(to, 0, message);
        }
    }

    /// Tells all contacts, the suspect among them, that one is suspect.
    pub(super) fn spread_suspicion(&mut self, id: Id, suspect: Life) {
        self.count(Counter::SuspicionsSpread);
        for after_us in SUSPECT_ROUNDS_US {
            self.broadcast(Message::Suspect(suspect), Some(id), after_us);
        }
    }

    /// Somebody suspects us: tells all that we live, now or when the last time is long enough
    /// ago.
    pub(super) fn refute(&mut self) {
        self.membership.broadcasts.refute = true;
        self.refute_if_due();
    }

    fn refute_if_due(&mut self) {
        let broadcasts = &mut self.membership.broadcasts;
        let waits = broadcasts.refuted_at_us.is_some_and(|at_us| self.now_us < at_us + REFUTE_US);
        if waits || !std::mem::take(&mut broadcasts.refute) {
            return;
        }
        broadcasts.refuted_at_us = Some(self.now_us);
        self.count(Counter::Refutations);
        self.broadcast(Message::Alive, None, 0);
    }

    /// This server stops: tells all contacts, and nothing else any more.
    pub(in crate::node) fn leave(&mut self) {
        if std::mem::replace(&mut self.membership.leaving, true) {
            return;
        }
        self.membership.broadcasts.queue.clear();
        self.membership.broadcasts.refute = false;
        for after_us in LEAVE_ROUNDS_US {
            self.broadcast(Message::Leave, None, after_us);
        }
    }

    /// Whether all contacts have been told that this server stops: it may be dropped now.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let told = self.membership.broadcasts.queue.is_empty() && self.outbox.is_empty();
        self.membership.leaving && told
    }
}
