//! What workers and the DHT core say to each other, and the rings it crosses. Never blocks:
//! a full ring is an answer, and the caller counts it.
//!
//! Each worker has three bounded single-producer single-consumer rings of its own to the core:
//! lookups, which packets wait for, are never queued behind announcements. A fourth one goes to the
//! ledger of incidents.
//!
//! ```text
//!            Resolve      ─────────────►
//!   worker   Announcement ─────────────►   DHT core
//!            Answer       ◄─────────────
//!            StrayReport  ─────────────►   ledger
//! ```
#![forbid(unsafe_code)]

mod clock;
mod doorbell;
mod strays;

use std::net::IpAddr;
use std::sync::Arc;

use holdfast_net::FlowKey;
use rtrb::{Consumer, Producer, RingBuffer};

pub use clock::{Clock, Version, unix_us};
pub use doorbell::Doorbell;
pub use strays::{StrayFate, StrayLoss, StrayReport, StrayReporter, StrayReports, stray_reports};

/// A worker asks who owns a flow. Answered by exactly one [`Answer::Resolved`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolve {
    /// The flow of the stray packet.
    pub flow: FlowKey,
    /// When the worker asked, in microseconds since the Unix epoch: the end of the paper's
    /// detection time.
    pub asked_at_unix_us: u64,
}

/// A worker tells the core what it learnt. Nothing is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// This server owns the flow (R3, R7).
    Publish {
        /// The flow.
        flow: FlowKey,
        /// The session's version; a greater one is a newer session on the same 5-tuple.
        version: Version,
    },
    /// The session has ended (R8).
    Withdraw {
        /// The flow.
        flow: FlowKey,
        /// The version that it was published with.
        version: Version,
    },
    /// `sender` tunnelled a packet of a flow to us that we do not hold (R6): tell it.
    NotMine {
        /// The flow.
        flow: FlowKey,
        /// Locator of the server that sent it; `None` when the tunnel does not tell, and all
        /// servers are told.
        sender: Option<IpAddr>,
    },
    /// `sender` tunnelled a packet of a flow to us of which we hold a session, but that may be of a
    /// later one (R12): it is to look the flow up again. Our record stays.
    Doubtful {
        /// The flow.
        flow: FlowKey,
        /// Locator of the server that sent it; `None` when the tunnel does not tell, and all
        /// servers are told.
        sender: Option<IpAddr>,
    },
}

/// Who owns a flow, as the DHT says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The server with this locator; it may be our own.
    Owner {
        /// The owner's locator.
        locator: IpAddr,
        /// Version of the record.
        version: Version,
    },
    /// Nobody, as enough replicas say. A record may be on its way to them.
    NotFound,
    /// Nobody any more: its owner has died for good (R13).
    Orphaned,
    /// Too few replicas answered in time to say anything, or the owner is dead and may be back soon.
    TimedOut,
}

/// The core tells a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The answer to a [`Resolve`].
    Resolved {
        /// The flow asked for.
        flow: FlowKey,
        /// Who owns it.
        resolution: Resolution,
        /// The server whose death is why nobody owns it, or why nothing can be said (R13).
        dead: Option<IpAddr>,
    },
    /// `owner` says that it does not hold the flow: drop a redirect to it.
    NotMine {
        /// The flow.
        flow: FlowKey,
        /// Locator of the server that refused it.
        owner: IpAddr,
    },
    /// A server has died: drop all redirects to it (R13).
    OwnerDead {
        /// Its locator.
        owner: IpAddr,
    },
    /// Another server holds a newer session on the flow, with this version: the client has used its
    /// 5-tuple again, and its segments belong to `owner` from now on (R12). The core does not
    /// publish our session any more.
    Superseded {
        /// The flow.
        flow: FlowKey,
        /// Version of the newer session. Never less than the version of the session that it is
        /// about; one of a session that began here meanwhile may be greater.
        version: Version,
        /// Locator of the server that holds it: a member other than ourselves, not known to be dead.
        owner: IpAddr,
    },
}

/// A worker's end of its rings.
#[derive(Debug)]
pub struct WorkerEnd {
    resolves: Producer<Resolve>,
    announcements: Producer<Announcement>,
    answers: Consumer<Answer>,
    doorbell: Arc<Doorbell>,
    rung: bool,
}

/// The DHT core's end of one worker's rings.
#[derive(Debug)]
pub struct CoreEnd {
    /// Lookups that the worker asks for.
    pub resolves: Consumer<Resolve>,
    /// What the worker learnt.
    pub announcements: Consumer<Announcement>,
    /// What the core tells the worker.
    pub answers: Producer<Answer>,
}

/// The ring was full; nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Makes the rings between one worker and the core.
///
/// `resolves` and `announcements` are capacities in messages. There is room for an answer to
/// every lookup that can be queued or, up to `resolves` more, under way.
#[must_use]
pub fn rings(
    resolves: usize,
    announcements: usize,
    doorbell: Arc<Doorbell>,
) -> (WorkerEnd, CoreEnd) {
    let (resolve_producer, resolve_consumer) = RingBuffer::new(resolves);
    let (announcement_producer, announcement_consumer) = RingBuffer::new(announcements);
    let (answer_producer, answer_consumer) = RingBuffer::new(2 * resolves);
    let worker = WorkerEnd {
        resolves: resolve_producer,
        announcements: announcement_producer,
        answers: answer_consumer,
        doorbell,
        rung: false,
    };
    let core = CoreEnd {
        resolves: resolve_consumer,
        announcements: announcement_consumer,
        answers: answer_producer,
    };
    (worker, core)
}

impl WorkerEnd {
    /// Queues a lookup.
    ///
    /// # Errors
    /// [`Full`] when the ring is full: the packet cannot wait, drop and count it.
    pub fn resolve(&mut self, resolve: Resolve) -> Result<(), Full> {
        self.resolves.push(resolve).map_err(|_| Full)?;
        self.rung = true;
        Ok(())
    }

    /// Queues an announcement.
    ///
    /// # Errors
    /// [`Full`] when the ring is full: mark the session, and say it again later.
    pub fn announce(&mut self, announcement: Announcement) -> Result<(), Full> {
        self.announcements.push(announcement).map_err(|_| Full)?;
        self.rung = true;
        Ok(())
    }

    /// Whether there is room for an announcement. Only this end fills the ring, so the next one
    /// is then not refused.
    #[must_use]
    pub fn can_announce(&self) -> bool {
        !self.announcements.is_full()
    }

    /// Lookups and announcements that wait for the core to take them.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        let resolves = self.resolves.buffer().capacity() - self.resolves.slots();
        let announcements = self.announcements.buffer().capacity() - self.announcements.slots();
        (resolves, announcements)
    }

    /// The next answer, if there is one.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answers.pop().ok()
    }

    /// Wakes the core if it sleeps and something was queued since the last call. Once per turn
    /// of the worker: the only system call a turn can cause, and only when the core is idle.
    pub fn ring_doorbell(&mut self) {
        if std::mem::take(&mut self.rung) {
            self.doorbell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_is_an_answer() {
        let poll = mio::Poll::new().expect("epoll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("eventfd");
        let (mut worker, mut core) = rings(1, 1, Arc::new(Doorbell::new(waker)));
        let flow = FlowKey::tcp_v4([20, 1, 1, 1], 1234, [192, 168, 0, 1], 80);
        let resolve = Resolve { flow, asked_at_unix_us: 1 };
        assert_eq!(worker.resolve(resolve), Ok(()));
        assert_eq!(worker.resolve(resolve), Err(Full));
        assert_eq!(worker.queued(), (1, 0));
        let publish = Announcement::Publish { flow, version: Version(1) };
        assert!(worker.can_announce());
        assert_eq!(worker.announce(publish), Ok(()));
        assert!(!worker.can_announce());
        assert_eq!(worker.announce(publish), Err(Full));
        assert_eq!(core.resolves.pop(), Ok(resolve));
        assert_eq!(worker.queued(), (0, 1));
        let answer = Answer::Resolved { flow, resolution: Resolution::NotFound, dead: None };
        core.answers.push(answer).expect("room for every answer");
        assert_eq!(worker.answer(), Some(answer));
        assert_eq!(worker.answer(), None);
    }
}
