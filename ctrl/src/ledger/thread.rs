//! Runs the ledger on a thread of its own: takes the workers' reports from their rings, looks for
//! causes, and keeps what is over. Never keeps a worker waiting, and never stops because the journal
//! cannot be written: that is counted, and logged when it changes.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_dht::{AbsentPeer, Peer};
use holdfast_handoff::{StrayReports, unix_us};
use tracing::{info, warn};

use super::{FindPlace, Journal, Ledger, Limits, Moment};
use crate::protocol::{Cause, CauseKind, Incident, IncidentState, IncidentStats, IncidentSummary};

/// Pause between two turns: how late a report is taken, at most.
const PAUSE: Duration = Duration::from_millis(50);
/// Changes of our own that are remembered.
const EVENTS_MAX: usize = 32;

/// The incidents, for whoever wants to see them. Clones share them.
#[derive(Debug, Clone)]
pub struct Incidents(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Locked before the ledger, so that an incident that is closed is always in one of them.
    journal: Mutex<Kept>,
    ledger: Mutex<Ledger>,
    now: Mutex<Moment>,
}

#[derive(Debug)]
struct Kept {
    journal: Journal,
    /// What could not be written to the file.
    errors: u64,
    /// Files that were set aside at the start.
    set_aside: u64,
    trouble: Option<String>,
}

/// A panic elsewhere leaves nothing half done that matters here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Incidents {
    /// None yet, but for those in the file `journal`, if there is one to be. `find` looks a flow up
    /// in the session table.
    #[must_use]
    pub fn start(
        limits: Limits,
        (journal, keep): (Option<&Path>, usize),
        find: FindPlace,
    ) -> Incidents {
        let kept = Kept::open(journal, keep);
        let ledger = Ledger::new(limits, kept.journal.next_id(), find);
        let now = Moment { us: 0, unix_us: unix_us() };
        Incidents(Arc::new(Inner {
            journal: Mutex::new(kept),
            ledger: Mutex::new(ledger),
            now: Mutex::new(now),
        }))
    }

    /// The last `limit` incidents, the newest first.
    #[must_use]
    pub fn list(&self, limit: usize) -> Vec<IncidentSummary> {
        let kept = lock(&self.0.journal);
        let open = self.open_incident();
        let all = open.as_ref().into_iter().chain(kept.journal.newest());
        all.take(limit).map(IncidentSummary::from).collect()
    }

    /// The incident with this id.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Incident> {
        let kept = lock(&self.0.journal);
        let open = self.open_incident().filter(|incident| incident.id == id);
        open.or_else(|| kept.journal.get(id).cloned())
    }

    fn open_incident(&self) -> Option<Incident> {
        let now = *lock(&self.0.now);
        lock(&self.0.ledger).open_incident(now)
    }

    /// Flows that are followed, incidents that are kept, and reports on flows above those that can
    /// be followed.
    #[must_use]
    pub fn usage(&self) -> (usize, usize, u64) {
        let kept = lock(&self.0.journal).journal.newest().count();
        let (followed, untracked) = lock(&self.0.ledger).usage();
        (followed, kept, untracked)
    }

    /// What was counted since the start.
    #[must_use]
    pub fn stats(&self) -> IncidentStats {
        let mut stats = lock(&self.0.ledger).stats();
        let kept = lock(&self.0.journal);
        let counters = [("journal_errors", kept.errors), ("journal_set_aside", kept.set_aside)];
        stats.counters.extend(counters.map(|(name, value)| (name.to_owned(), value)));
        stats
    }
}

impl Kept {
    fn open(path: Option<&Path>, keep: usize) -> Kept {
        let mut kept =
            Kept { journal: Journal::in_memory(keep), errors: 0, set_aside: 0, trouble: None };
        let Some(path) = path else {
            return kept;
        };
        match Journal::open(path, keep) {
            Ok((journal, set_aside)) => {
                kept.journal = journal;
                if let Some(aside) = set_aside {
                    kept.set_aside = 1;
                    warn!(
                        "{}: {}; set aside as {}, {} incidents of it are kept",
                        path.display(),
                        aside.why,
                        aside.path.display(),
                        aside.read
                    );
                }
            }
            Err(error) => {
                kept.errors = 1;
                warn!("{}: {error}: incidents are kept in memory alone", path.display());
            }
        }
        kept
    }

    fn push(&mut self, incident: Incident) {
        let outcome: io::Result<()> = self.journal.push(incident);
        let trouble = outcome.err().map(|error| error.to_string());
        self.errors += u64::from(trouble.is_some());
        match (&self.trouble, &trouble) {
            (old, Some(new)) if old.as_ref() != Some(new) => {
                warn!("the journal of incidents cannot be written: {new}");
            }
            (Some(_), None) => info!("the journal of incidents is written again"),
            _ => {}
        }
        self.trouble = trouble;
    }
}

/// Where the ledger's thread gets what it needs.
pub struct Sources {
    /// A ring from each worker.
    pub reports: Vec<StrayReports>,
    /// How many reports the workers could not make so far.
    pub missed: Box<dyn Fn() -> u64 + Send>,
    /// The time.
    pub now: Box<dyn Fn() -> Moment + Send>,
    /// What other servers did lately; called now and then while an incident is open.
    pub peers: Box<dyn Fn() -> Vec<Cause> + Send>,
    /// Whether the uplink's link is up.
    pub is_uplink_up: Box<dyn Fn() -> bool + Send>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("reports", &self.reports.len()).finish_non_exhaustive()
    }
}

/// What others did, from the DHT's members: those that left or died, and when those that are there
/// started.
#[must_use]
pub fn causes_of_peers(unix_us: u64, present: &[Peer], absent: &[AbsentPeer]) -> Vec<Cause> {
    let of = |kind, locator, at| Cause { kind, locator: Some(locator), at_unix_us: Some(at) };
    let started =
        present.iter().map(|peer| of(CauseKind::PeerStarted, peer.locator, peer.incarnation));
    let gone = absent.iter().map(|peer| {
        let (kind, ago_us) = match peer.away {
            true => (CauseKind::PeerLeft, peer.absent_us),
            false => (CauseKind::PeerDied, peer.silent_us),
        };
        of(kind, peer.locator, unix_us.saturating_sub(ago_us))
    });
    started.chain(gone).collect()
}

/// What the thread does.
struct Keeper {
    incidents: Incidents,
    sources: Sources,
    /// What happened to this server itself.
    events: VecDeque<Cause>,
    is_uplink_up: bool,
}

impl Keeper {
    fn new(incidents: Incidents, sources: Sources) -> Keeper {
        let is_uplink_up = (sources.is_uplink_up)();
        let mut keeper = Keeper { incidents, sources, events: VecDeque::new(), is_uplink_up };
        keeper.happened(CauseKind::Started, (keeper.sources.now)());
        keeper
    }

    fn happened(&mut self, kind: CauseKind, now: Moment) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Cause { kind, locator: None, at_unix_us: Some(now.unix_us) });
    }

    fn turn(&mut self) {
        let now = (self.sources.now)();
        let is_up = (self.sources.is_uplink_up)();
        if std::mem::replace(&mut self.is_uplink_up, is_up) != is_up {
            self.happened(if is_up { CauseKind::UplinkUp } else { CauseKind::UplinkDown }, now);
        }
        self.take_reports(now);
        let inner = Arc::clone(&self.incidents.0);
        if lock(&inner.ledger).wants_causes(now) {
            let mut causes = (self.sources.peers)();
            causes.extend(&self.events);
            lock(&inner.ledger).learn(now, &causes);
        }
        let mut kept = lock(&inner.journal);
        let closed = lock(&inner.ledger).close(now);
        if let Some(incident) = closed {
            say(&incident);
            kept.push(incident);
        }
    }

    fn take_reports(&mut self, now: Moment) {
        let inner = Arc::clone(&self.incidents.0);
        *lock(&inner.now) = now;
        let mut ledger = lock(&inner.ledger);
        let before = ledger.open_incident_id();
        for ring in &mut self.sources.reports {
            // What comes meanwhile is the next turn's.
            for _ in 0..ring.slots() {
                if let Ok(report) = ring.pop() {
                    ledger.take(&report);
                }
            }
        }
        ledger.advance(now, (self.sources.missed)());
        if let Some(id) = ledger.open_incident_id().filter(|id| before != Some(*id)) {
            info!("incident {id} is open: strays of many sessions came");
        }
    }

    /// The daemon stops: what is open is kept as it stands.
    fn stop(mut self) {
        self.turn();
        let inner = Arc::clone(&self.incidents.0);
        let mut kept = lock(&inner.journal);
        let stopped = lock(&inner.ledger).stop((self.sources.now)());
        if let Some(incident) = stopped {
            say(&incident);
            kept.push(incident);
        }
    }
}

fn say(incident: &Incident) {
    let Incident { id, state, sessions, .. } = incident;
    let why = match state {
        IncidentState::Closed => "",
        IncidentState::Stopped => " when the daemon stopped",
        _ => " as it lasted too long",
    };
    let text = format!(
        "incident {id} is over{why}: of {} sessions {} were saved, {} kept, {} lost, {} unanswered",
        sessions.at_risk,
        sessions.saved,
        sessions.kept,
        sessions.lost(),
        sessions.unanswered,
    );
    if sessions.lost() > 0 { warn!("{text}") } else { info!("{text}") }
}

/// The thread that keeps the ledger.
#[derive(Debug)]
pub struct LedgerThread {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl LedgerThread {
    /// Starts it.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(incidents: Incidents, sources: Sources) -> io::Result<LedgerThread> {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("ledger".to_owned());
        let thread = thread.spawn(move || {
            let mut keeper = Keeper::new(incidents, sources);
            while !stopped.load(Ordering::Relaxed) {
                keeper.turn();
                std::thread::park_timeout(PAUSE);
            }
            keeper.stop();
        })?;
        Ok(LedgerThread { thread, stop })
    }

    /// Whether it has ended by itself.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it. What workers report after this is lost.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        // A panic has been reported where it happened.
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::Place;
    use crate::ledger::tests::{LIMITS, flow, saved};
    use holdfast_dht::Id;
    use holdfast_handoff::{StrayReporter, stray_reports};
    use std::sync::atomic::AtomicU64;

    const START_UNIX_US: u64 = 1_700_000_000_000_000;

    /// A keeper, a worker's end of its ring, and what its sources say.
    struct Bench {
        keeper: Keeper,
        incidents: Incidents,
        worker: StrayReporter,
        now_us: Arc<AtomicU64>,
        is_up: Arc<AtomicBool>,
    }

    fn bench(journal: Option<&Path>) -> Bench {
        let (worker, reports) = stray_reports(64);
        let (now_us, is_up) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let (clock, link) = (Arc::clone(&now_us), Arc::clone(&is_up));
        let incidents = Incidents::start(LIMITS, (journal, 8), Box::new(|_| Place::Nowhere));
        let sources = Sources {
            reports: vec![reports],
            missed: Box::new(|| 0),
            now: Box::new(move || {
                let us = clock.load(Ordering::Relaxed);
                Moment { us, unix_us: START_UNIX_US + us }
            }),
            peers: Box::new(Vec::new),
            is_uplink_up: Box::new(move || link.load(Ordering::Relaxed)),
        };
        let keeper = Keeper::new(incidents.clone(), sources);
        Bench { keeper, incidents, worker, now_us, is_up }
    }

    impl Bench {
        fn turn_at(&mut self, us: u64) {
            self.now_us.store(us, Ordering::Relaxed);
            self.keeper.turn();
        }

        fn burst_at(&mut self, us: u64) {
            for n in 0..LIMITS.flows as u16 {
                self.worker.report(saved(flow(n), us, 500)).unwrap();
            }
            self.turn_at(us + 1000);
        }
    }

    const HOUR_US: u64 = 3_600_000_000;

    #[test]
    fn reports_become_an_incident_that_is_listed_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("incidents.jsonl");
        let mut bench = bench(Some(&path));
        bench.is_up.store(false, Ordering::Relaxed);
        bench.turn_at(HOUR_US);
        bench.burst_at(HOUR_US + 30_000);
        let open = bench.incidents.get(1).unwrap();
        assert_eq!((open.state, open.sessions.saved), (IncidentState::Open, 3));
        assert_eq!(open.began_unix_us, START_UNIX_US + HOUR_US + 30_000);
        assert_eq!(open.causes[0].kind, CauseKind::UplinkDown);
        assert_eq!((open.causes.len(), open.detection_time_us), (1, Some(30_000)));
        assert_eq!(bench.incidents.stats().open.unwrap().at_risk, 3);

        bench.turn_at(HOUR_US + 20_000_000);
        let list = bench.incidents.list(10);
        assert_eq!((list.len(), list[0].id, list[0].state), (1, 1, IncidentState::Closed));
        assert_eq!(bench.incidents.get(1).unwrap().state, IncidentState::Closed);
        assert_eq!(bench.incidents.get(2), None);
        assert_eq!(bench.incidents.stats().open, None);

        // The next daemon.
        let mut bench = self::bench(Some(&path));
        assert_eq!(bench.incidents.list(10), list);
        bench.burst_at(1_000_000);
        assert_eq!(bench.incidents.list(1)[0].id, 2);
        let open = bench.incidents.get(2).unwrap();
        assert_eq!(open.causes[0].kind, CauseKind::Started);
        bench.keeper.stop();
        let list = bench.incidents.list(10);
        assert_eq!(
            list.iter().map(|i| i.state).collect::<Vec<_>>(),
            [IncidentState::Stopped, IncidentState::Closed]
        );
    }

    #[test]
    fn a_journal_that_cannot_be_is_counted() {
        let bench = bench(Some(Path::new("/dev/null")));
        assert_eq!(bench.incidents.stats().counters["journal_errors"], 1);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("incidents.jsonl");
        std::fs::write(&path, "nonsense\n").unwrap();
        let bench = self::bench(Some(&path));
        assert_eq!(bench.incidents.stats().counters["journal_set_aside"], 1);
        assert_eq!(bench.incidents.stats().counters["journal_errors"], 0);
    }

    #[test]
    fn the_thread_ends_when_told() {
        let (_worker, reports) = stray_reports(4);
        let incidents = Incidents::start(LIMITS, (None, 8), Box::new(|_| Place::Nowhere));
        let sources = Sources {
            reports: vec![reports],
            missed: Box::new(|| 0),
            now: Box::new(|| Moment { us: 0, unix_us: 0 }),
            peers: Box::new(Vec::new),
            is_uplink_up: Box::new(|| true),
        };
        let thread = LedgerThread::start(incidents, sources).unwrap();
        assert!(!thread.is_finished());
        thread.stop();
    }

    #[test]
    fn members_that_came_left_or_died_are_causes() {
        let locator = |n: u8| [10, 0, 0, n].into();
        let present = Peer {
            id: Id(1),
            locator: locator(1),
            address: ([10, 0, 0, 1], 7000).into(),
            incarnation: 500,
            srtt_us: None,
            heard_ago_us: 0,
            failures: 0,
            suspect: false,
            life: 1,
        };
        let absent = |n, away| AbsentPeer {
            id: Id(2),
            locator: locator(n),
            address: ([10, 0, 0, n], 7000).into(),
            incarnation: 7,
            away,
            absent_us: 100,
            silent_us: 300,
        };
        let causes = causes_of_peers(1000, &[present], &[absent(2, true), absent(3, false)]);
        let expected = [
            (CauseKind::PeerStarted, 1, 500),
            (CauseKind::PeerLeft, 2, 900),
            (CauseKind::PeerDied, 3, 700),
        ];
        let expected = expected.map(|(kind, n, at)| Cause {
            kind,
            locator: Some(locator(n)),
            at_unix_us: Some(at),
        });
        assert_eq!(causes, expected);
    }
}
