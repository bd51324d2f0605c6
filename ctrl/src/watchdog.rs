//! Watches whether the threads that carry packets and records still turn, and feeds the service
//! manager's watchdog while all of them do. Never waits for any of them: it reads their counts.

use std::time::{Duration, Instant};

use tracing::{error, info};

use crate::systemd;

/// The watchdog is fed so many times in the time that it waits.
const FEEDS: u32 = 4;
/// A thread that has not turned for this long hangs, where no service manager says how long it
/// waits; where one does, for half of that.
const PATIENCE: Duration = Duration::from_secs(5);

/// The watch over the threads of a running appliance.
#[derive(Debug)]
pub struct Watch {
    threads: Vec<Watched>,
    patience: Duration,
    /// Between two feeds; `None` when nobody wants any.
    interval: Option<Duration>,
    fed: Instant,
}

#[derive(Debug)]
struct Watched {
    name: String,
    turns: u64,
    turned: Instant,
    hangs: bool,
}

impl Watch {
    /// Watches threads with these names, that turn now. `watchdog` is how long the service manager
    /// waits for a sign of life.
    #[must_use]
    pub fn start(
        names: impl IntoIterator<Item = String>,
        watchdog: Option<Duration>,
        now: Instant,
    ) -> Watch {
        let threads =
            names.into_iter().map(|name| Watched { name, turns: 0, turned: now, hangs: false });
        Watch {
            threads: threads.collect(),
            patience: watchdog.map_or(PATIENCE, |watchdog| watchdog / 2),
            interval: watchdog.map(|watchdog| watchdog / FEEDS),
            fed: now,
        }
    }

    /// Takes the count of each thread's turns, in the order of their names. Logs the name of each
    /// that has begun to hang or turns again, and feeds the watchdog when that is due, none hangs
    /// and each has turned since the last time; `status` is what people are told with it. Call it
    /// at least as often as the watchdog is to be fed.
    pub fn look(
        &mut self,
        turns: impl IntoIterator<Item = u64>,
        now: Instant,
        status: impl FnOnce() -> String,
    ) {
        for (thread, turns) in self.threads.iter_mut().zip(turns) {
            match thread.look(turns, now, self.patience) {
                Some(Change::Hangs { since }) => {
                    let text = format!("{} hangs: it has not turned for {since:?}", thread.name);
                    error!("{text}");
                    systemd::status(&text);
                }
                Some(Change::TurnsAgain { after }) => {
                    info!("{} turns again, after {after:?}", thread.name);
                }
                None => {}
            }
        }
        if self.is_due(now) {
            self.fed = now;
            systemd::feed_watchdog(&status());
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let due = |interval| now.saturating_duration_since(self.fed) >= interval;
        // One that turned after the last feed can hang all the same, when this look is a late one.
        let turns = |thread: &Watched| thread.turned > self.fed && !thread.hangs;
        self.interval.is_some_and(due) && self.threads.iter().all(turns)
    }
}

/// What a look at a thread can find.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Hangs { since: Duration },
    TurnsAgain { after: Duration },
}

impl Watched {
    fn look(&mut self, turns: u64, now: Instant, patience: Duration) -> Option<Change> {
        let since = now.saturating_duration_since(self.turned);
        if turns != self.turns {
            (self.turns, self.turned) = (turns, now);
            let hung = std::mem::take(&mut self.hangs);
            return hung.then_some(Change::TurnsAgain { after: since });
        }
        let begins = !self.hangs && since >= patience;
        self.hangs |= begins;
        begins.then_some(Change::Hangs { since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch(watchdog: Option<Duration>, now: Instant) -> Watch {
        Watch::start(["worker 0", "the DHT core"].map(str::to_owned), watchdog, now)
    }

    /// Looks, and says whether the watchdog was fed.
    fn fed(watch: &mut Watch, turns: [u64; 2], now: Instant) -> bool {
        let mut fed = false;
        watch.look(turns, now, || {
            fed = true;
            String::new()
        });
        fed
    }

    #[test]
    fn it_is_fed_four_times_in_its_time_and_only_when_all_have_turned_since() {
        let start = Instant::now();
        let mut watch = watch(Some(8 * SECOND), start);
        let rows = [
            (1, [1, 1], false, "not due yet"),
            (2, [2, 2], true, "due, and both have turned"),
            (3, [2, 3], false, "not due yet"),
            (4, [2, 4], false, "the worker has not turned since"),
            (5, [2, 5], false, "the worker has not turned since"),
            (6, [3, 5], true, "overdue, and both have turned"),
            (8, [4, 5], false, "the core has not turned since"),
            (20, [9, 6], true, "both have turned"),
            (22, [10, 7], true, "due, and both have turned"),
            (23, [11, 8], false, "not due yet"),
            (27, [11, 9], false, "due, but the worker hangs, though it has turned since"),
            (28, [12, 9], true, "it turns again"),
        ];
        for (at, turns, expected, why) in rows {
            assert_eq!(fed(&mut watch, turns, start + at * SECOND), expected, "{at} s: {why}");
        }
    }

    #[test]
    fn nobody_is_fed_where_nobody_waits() {
        let start = Instant::now();
        let mut watch = watch(None, start);
        assert!((1..100).all(|at| !fed(&mut watch, [at, at], start + SECOND)));
    }

    #[test]
    fn a_thread_that_hangs_is_said_once_and_so_is_that_it_turns_again() {
        let start = Instant::now();
        let mut thread = Watched { name: String::new(), turns: 7, turned: start, hangs: false };
        let mut look = |at, turns| thread.look(turns, start + at * SECOND, 4 * SECOND);
        assert_eq!(look(1, 8), None);
        assert_eq!(look(4, 8), None);
        assert_eq!(look(5, 8), Some(Change::Hangs { since: 4 * SECOND }));
        assert_eq!(look(6, 8), None);
        assert_eq!(look(9, 9), Some(Change::TurnsAgain { after: 8 * SECOND }));
        assert_eq!(look(10, 10), None);
        // Counts wrap.
        assert_eq!(look(13, 0), None);
        assert_eq!(look(17, 0), Some(Change::Hangs { since: 4 * SECOND }));
    }
}
