//! The service's side of one worker's rings. Never drops the answer to a lookup: it takes only
//! lookups that there is room to answer.

use holdfast_handoff::{Announcement, Answer, CoreEnd, Resolve};

use crate::stats::Counter;

/// The rings of one worker.
#[derive(Debug)]
pub(super) struct WorkerRings {
    end: CoreEnd,
    /// Lookups taken and not answered. The ring of answers has at least as many vacant slots:
    /// only we fill it, and neither a lookup is taken nor anything else told when there are no more
    /// than that.
    owed: usize,
}

impl WorkerRings {
    pub(super) fn new(end: CoreEnd) -> WorkerRings {
        WorkerRings { end, owed: 0 }
    }

    /// The next lookup, if there is one that can be answered. The others wait in their ring until
    /// the worker has taken answers, or find it full.
    pub(super) fn resolve(&mut self) -> Option<Resolve> {
        if !self.has_room() {
            return None;
        }
        let resolve = self.end.resolves.pop().ok()?;
        self.owed += 1;
        Some(resolve)
    }

    /// The next announcement.
    pub(super) fn announcement(&mut self) -> Option<Announcement> {
        self.end.announcements.pop().ok()
    }

    /// Tells the worker.
    ///
    /// # Errors
    /// What counts it, when the worker was not told because it is behind: never the answer to a
    /// lookup, unless it is one too many.
    pub(super) fn answer(&mut self, answer: Answer) -> Result<(), Counter> {
        let counter = match answer {
            Answer::Resolved { .. } => Counter::AnswersDropped,
            Answer::NotMine { .. } => Counter::NotMineDropped,
            Answer::OwnerDead { .. } => Counter::OwnerDeadDropped,
            Answer::Superseded { .. } => Counter::SupersededDropped,
        };
        if matches!(answer, Answer::Resolved { .. }) {
            self.owed = self.owed.saturating_sub(1);
        }
        if !self.has_room() {
            return Err(counter);
        }
        self.end.answers.push(answer).map_err(|_| counter)
    }

    /// Whether there is something to take now.
    pub(super) fn is_queued(&self, wants_announcements: bool) -> bool {
        (!self.end.resolves.is_empty() && self.has_room())
            || (wants_announcements && !self.end.announcements.is_empty())
    }

    /// Whether the worker can be told more than the answers that it is owed.
    fn has_room(&self) -> bool {
        self.end.answers.slots() > self.owed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_handoff::{Doorbell, Resolution, WorkerEnd, rings};
    use holdfast_net::FlowKey;
    use proptest::prelude::*;

    use super::*;

    const RESOLVES: usize = 4;

    fn pair() -> (WorkerEnd, WorkerRings) {
        let poll = mio::Poll::new().expect("epoll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("eventfd");
        let (worker, core) = rings(RESOLVES, RESOLVES, Arc::new(Doorbell::new(waker)));
        (worker, WorkerRings::new(core))
    }

    fn flow(n: u16) -> FlowKey {
        FlowKey::tcp_v4([20, 1, 1, 1], n, [192, 168, 0, 1], 80)
    }

    fn resolved(flow: FlowKey) -> Answer {
        Answer::Resolved { flow, resolution: Resolution::NotFound, dead: None }
    }

    #[test]
    fn what_cannot_be_answered_waits_and_does_not_keep_us_awake() {
        let (mut worker, mut rings) = pair();
        let not_mine = Answer::NotMine { flow: flow(0), owner: [10, 0, 0, 1].into() };
        for n in 0..2 * RESOLVES as u16 {
            let resolve = Resolve { flow: flow(n), asked_at_unix_us: 0 };
            assert_eq!(worker.resolve(resolve), Ok(()));
            assert_eq!(rings.resolve(), Some(resolve));
        }
        let last = Resolve { flow: flow(99), asked_at_unix_us: 0 };
        assert_eq!(worker.resolve(last), Ok(()));
        assert_eq!(rings.resolve(), None, "all of the ring is owed");
        assert!(!rings.is_queued(true));
        assert_eq!(rings.answer(not_mine), Err(Counter::NotMineDropped));
        let (version, owner) = (holdfast_handoff::Version(1), [10, 0, 0, 1].into());
        let superseded = Answer::Superseded { flow: flow(0), version, owner };
        assert_eq!(rings.answer(superseded), Err(Counter::SupersededDropped));
        for n in 0..2 * RESOLVES as u16 {
            assert_eq!(rings.answer(resolved(flow(n))), Ok(()));
            assert_eq!(rings.resolve(), None, "the worker has taken nothing");
        }
        assert_eq!(rings.answer(resolved(flow(0))), Err(Counter::AnswersDropped), "one too many");
        assert_eq!(worker.answer(), Some(resolved(flow(0))));
        assert!(rings.is_queued(true));
        assert_eq!(rings.resolve(), Some(last));
    }

    #[test]
    fn announcements_that_are_not_wanted_do_not_keep_us_awake() {
        let (mut worker, mut rings) = pair();
        let version = holdfast_handoff::Version(1);
        let publish = Announcement::Publish { flow: flow(1), version };
        worker.announce(publish).expect("room");
        assert!(rings.is_queued(true) && !rings.is_queued(false));
        assert_eq!(rings.announcement(), Some(publish));
        assert!(!rings.is_queued(true));
    }

    proptest! {
        #[test]
        fn the_answer_to_a_lookup_always_has_room(
            steps in prop::collection::vec(0..5u8, 1..500),
        ) {
            let (mut worker, mut rings) = pair();
            let (mut asked, mut taken, mut answered) = (0, 0, 0);
            for step in steps {
                match step {
                    0 => {
                        let resolve = Resolve { flow: flow(asked), asked_at_unix_us: 0 };
                        asked += u16::from(worker.resolve(resolve).is_ok());
                    }
                    1 => taken += u16::from(rings.resolve().is_some()),
                    2 if answered < taken => {
                        prop_assert_eq!(rings.answer(resolved(flow(answered))), Ok(()));
                        answered += 1;
                    }
                    3 => {
                        let _ = rings.answer(Answer::OwnerDead { owner: [10, 0, 0, 1].into() });
                    }
                    _ => {
                        let _ = worker.answer();
                    }
                }
            }
            while answered < taken {
                prop_assert_eq!(rings.answer(resolved(flow(answered))), Ok(()));
                answered += 1;
            }
        }
    }
}
