//! Who watches sessions come, change and go. While nobody does, a change costs one load of a flag;
//! while somebody does, it is put into a bounded queue, and what finds no room there is counted.
//! Never keeps a worker waiting.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use holdfast_handoff::Version;
use holdfast_net::FlowKey;

use super::word::Kind;

/// Changes that wait for a watcher to fetch them, at most.
pub const QUEUE_MAX: usize = 16_384;
/// Changes that are kept for the slowest watcher, at most.
pub const LOG_MAX: usize = 65_536;

/// A change of an entry of the session table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// When: the time stamp counter.
    pub tsc: u64,
    /// The flow.
    pub flow: FlowKey,
    /// What the table had of it.
    pub before: Option<Kind>,
    /// What the table has of it.
    pub after: Option<Kind>,
    /// The version of the session, if it is a local one: of the one after, else of the one before.
    pub version: Option<Version>,
    /// Whether it goes because it was idle for its time.
    pub is_idle: bool,
}

/// What a watcher sees next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A change.
    Change(Change),
    /// So many changes were lost to this watcher here.
    Missed(u64),
}

/// The changes of one table on their way to those who watch.
#[derive(Debug)]
pub struct Changes {
    /// Written when a watcher comes or goes, read at each change.
    watchers: CachePadded<AtomicUsize>,
    queue: ArrayQueue<Change>,
    /// Changes that found the queue full, since it was last emptied, and in all.
    lost: AtomicU64,
    lost_total: AtomicU64,
    log: Mutex<Log>,
}

/// What was taken from the queue, for all watchers.
#[derive(Debug, Default)]
struct Log {
    /// Each with its number. What was lost has numbers too, so a gap tells how many.
    changes: VecDeque<(u64, Change)>,
    /// The number of the next one.
    next: u64,
}

impl Default for Changes {
    fn default() -> Changes {
        Changes::new(QUEUE_MAX)
    }
}

impl Changes {
    /// A queue for `capacity` changes, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Changes {
        Changes {
            watchers: CachePadded::default(),
            queue: ArrayQueue::new(capacity.max(1)),
            lost: AtomicU64::new(0),
            lost_total: AtomicU64::new(0),
            log: Mutex::default(),
        }
    }

    /// Whether anybody watches: else nothing need be told.
    #[inline(always)]
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Tells the watchers of a change.
    pub fn tell(&self, change: Change) {
        if self.queue.push(change).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.lost_total.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many changes wait, how many can, and how many found no room since the start.
    #[must_use]
    pub fn usage(&self) -> (usize, usize, u64) {
        (self.queue.len(), self.queue.capacity(), self.lost_total.load(Ordering::Relaxed))
    }

    /// Begins to watch: what happens from now on.
    #[must_use]
    pub fn watch(&self) -> Watcher<'_> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        self.watchers.fetch_add(1, Ordering::Relaxed);
        self.fetch(&mut log);
        Watcher { changes: self, next: log.next }
    }

    /// Moves what waits into the log.
    fn fetch(&self, log: &mut Log) {
        // As many as there can be: workers that tell faster than we fetch do not keep us here.
        for _ in 0..self.queue.capacity() {
            let Some(change) = self.queue.pop() else {
                break;
            };
            if log.changes.len() == LOG_MAX {
                log.changes.pop_front();
            }
            log.changes.push_back((log.next, change));
            log.next += 1;
        }
        // They were lost while the queue was full, so behind what was in it.
        log.next += self.lost.swap(0, Ordering::Relaxed);
    }
}

/// Sees all changes from when it began; each watcher sees all of them.
#[derive(Debug)]
pub struct Watcher<'a> {
    changes: &'a Changes,
    next: u64,
}

impl Watcher<'_> {
    /// What has come since the last call, at most `most`.
    #[must_use]
    pub fn take(&mut self, most: usize) -> Vec<Seen> {
        let mut log = self.changes.log.lock().unwrap_or_else(PoisonError::into_inner);
        self.changes.fetch(&mut log);
        let first = log.changes.partition_point(|(number, _)| *number < self.next);
        let mut seen = Vec::new();
        for (number, change) in log.changes.range(first..).take(most) {
            self.miss(*number, &mut seen);
            seen.push(Seen::Change(*change));
            self.next = number + 1;
        }
        if log.changes.len() - first <= most {
            self.miss(log.next, &mut seen);
        }
        seen
    }

    /// Goes on to a number, and notes what was lost before it.
    fn miss(&mut self, number: u64, seen: &mut Vec<Seen>) {
        if number > self.next {
            seen.push(Seen::Missed(number - self.next));
            self.next = number;
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let mut log = self.changes.log.lock().unwrap_or_else(PoisonError::into_inner);
        if self.changes.watchers.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.changes.fetch(&mut log);
            log.changes = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::State;

    fn change(number: u64) -> Change {
        Change {
            tsc: number,
            flow: FlowKey::tcp_v4([20, 1, 1, 1], 1, [192, 168, 0, 1], 80),
            before: None,
            after: Some(Kind::Local(State::HalfOpen)),
            version: Some(Version(number)),
            is_idle: false,
        }
    }

    fn seen(number: u64) -> Seen {
        Seen::Change(change(number))
    }

    #[test]
    fn each_watcher_sees_all_from_when_it_began() {
        let changes = Changes::new(8);
        assert!(!changes.is_watched());
        let mut one = changes.watch();
        assert!(changes.is_watched());
        changes.tell(change(1));
        let mut other = changes.watch();
        changes.tell(change(2));
        assert_eq!(one.take(1), [seen(1)]);
        assert_eq!(other.take(8), [seen(2)]);
        assert_eq!(one.take(8), [seen(2)]);
        assert_eq!(one.take(8), []);
        drop(one);
        assert!(changes.is_watched());
        drop(other);
        assert!(!changes.is_watched());
    }

    #[test]
    fn what_finds_the_queue_full_is_missed_where_it_is_missing() {
        let changes = Changes::new(2);
        let mut watcher = changes.watch();
        for number in 1..=5 {
            changes.tell(change(number));
        }
        assert_eq!(changes.usage(), (2, 2, 3));
        assert_eq!(watcher.take(8), [seen(1), seen(2), Seen::Missed(3)]);
        changes.tell(change(6));
        assert_eq!(watcher.take(8), [seen(6)]);
        // It tells so between others, too.
        for number in 7..=9 {
            changes.tell(change(number));
        }
        let mut late = changes.watch();
        changes.tell(change(10));
        assert_eq!(late.take(8), [seen(10)], "what was lost before it began is not missed");
        assert_eq!(watcher.take(8), [seen(7), seen(8), Seen::Missed(1), seen(10)]);
    }

    #[test]
    fn a_watcher_that_falls_behind_misses_the_oldest() {
        let changes = Changes::new(LOG_MAX);
        let (mut slow, mut quick) = (changes.watch(), changes.watch());
        let total = LOG_MAX as u64 + 10;
        for number in 0..total {
            changes.tell(change(number));
            if number % 1000 == 0 {
                assert!(quick.take(2000).iter().all(|seen| matches!(seen, Seen::Change(_))));
            }
        }
        assert!(quick.take(2000).iter().all(|seen| matches!(seen, Seen::Change(_))));
        let first = slow.take(2);
        assert_eq!(first, [Seen::Missed(10), seen(10), seen(11)]);
        let rest = slow.take(usize::MAX);
        assert_eq!((rest.len(), rest.last()), (LOG_MAX - 2, Some(&seen(total - 1))));
    }

    #[test]
    fn what_happened_before_nobody_watched_is_forgotten() {
        let changes = Changes::new(8);
        let first = changes.watch();
        changes.tell(change(1));
        drop(first);
        // Told by a worker that had looked at the flag just before.
        changes.tell(change(2));
        let mut second = changes.watch();
        changes.tell(change(3));
        assert_eq!(second.take(8), [seen(3)]);
    }
}
