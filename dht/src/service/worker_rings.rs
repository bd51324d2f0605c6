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
