//! Compares the session table with the host's kernel again and again (R1, R7, R8), on a thread of
//! its own. Never stops because the kernel does not answer: that is counted, and logged when it
//! changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_dataplane::kernel::{Comparison, Findings, Kernel};
use holdfast_dataplane::session::expiry::Timeouts;
use holdfast_dataplane::time::TscClock;
use holdfast_dpdk as dpdk;
use tracing::{info, warn};

use crate::protocol::KernelCheckStats;

/// What was found by all checks since the start, and by the last one. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Totals(Arc<Mutex<Sums>>);

#[derive(Debug, Default)]
struct Sums {
    checks: u64,
    failures: u64,
    /// Added up over all checks, but for `held`, which is of the last one.
    findings: Findings,
    duration_us: u64,
}

impl Totals {
    fn add(&self, found: Option<&Findings>, took: Duration) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sums.duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let Some(found) = found else {
            sums.failures += 1;
            return;
        };
        sums.checks += 1;
        // All of them: a new one does not compile before it is here.
        let Findings { held, learnt, table_full, kept_alive, established, revived, ended, asked } =
            &mut sums.findings;
        *held = found.held;
        for (sum, found) in [
            (learnt, found.learnt),
            (table_full, found.table_full),
            (kept_alive, found.kept_alive),
            (established, found.established),
            (revived, found.revived),
            (ended, found.ended),
            (asked, found.asked),
        ] {
            *sum += found;
        }
    }

    /// Whether a check was made, or failed.
    #[must_use]
    pub fn has_run(&self) -> bool {
        let sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sums.checks + sums.failures > 0
    }

    /// The same for `show stats`.
    #[must_use]
    pub fn stats(&self) -> KernelCheckStats {
        let sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let findings = sums.findings;
        let named = |(name, value): (&str, u64)| (name.to_owned(), value);
        let counters = [
            ("checks", sums.checks),
            ("failures", sums.failures),
            ("learnt", findings.learnt),
            ("table_full", findings.table_full),
            ("kept_alive", findings.kept_alive),
            ("established", findings.established),
            ("revived", findings.revived),
            ("ended", findings.ended),
            ("asked", findings.asked),
        ];
        let gauges = [("held", findings.held), ("duration_us", sums.duration_us)];
        KernelCheckStats { counters: counters.map(named).into(), gauges: gauges.map(named).into() }
    }
}

/// The check of one table against one kernel.
#[derive(Debug)]
pub struct KernelCheck<K> {
    comparison: Comparison,
    kernel: K,
    clock: TscClock,
    totals: Totals,
    /// What the kernel's last answer lacked.
    trouble: Option<String>,
}

impl<K: Kernel<Error = anyhow::Error>> KernelCheck<K> {
    /// Checks `comparison`'s table against `kernel`; `clock` is the workers'.
    pub fn new(comparison: Comparison, kernel: K, clock: TscClock, totals: Totals) -> Self {
        KernelCheck { comparison, kernel, clock, totals, trouble: None }
    }

    /// Makes one check. Returns what it found, if the kernel answered.
    pub fn check(&mut self) -> Option<Findings> {
        let began = Instant::now();
        let clock = self.clock;
        let outcome = self.comparison.check(&mut self.kernel, || clock.at(dpdk::tsc()).tick());
        self.totals.add(outcome.as_ref().ok(), began.elapsed());
        let trouble = outcome.as_ref().err().map(|error| format!("{error:#}"));
        match (&self.trouble, &trouble) {
            (old, Some(new)) if old.as_ref() != Some(new) => {
                warn!("sessions are not compared with the kernel's: {new}");
            }
            (Some(_), None) => info!("sessions are compared with the kernel's again"),
            _ => {}
        }
        self.trouble = trouble;
        outcome.ok()
    }

    /// Checks until `stop` is set and the thread is woken. Between two checks passes the plan's
    /// interval, or as much time as the last one took: it works for half of the time at most. With
    /// other timeouts it checks at once.
    fn run(mut self, plan: &Plan, stop: &AtomicBool) {
        let mut took = Duration::ZERO;
        while let Some(timeouts) = plan.wait(took, stop) {
            if let Some(timeouts) = timeouts {
                self.comparison.set_timeouts(&timeouts);
            }
            let began = Instant::now();
            self.check();
            took = began.elapsed();
        }
    }
}

/// When the next check is due, and by which timeouts. Clones share it.
#[derive(Debug, Clone)]
pub struct Plan(Arc<(Mutex<Planned>, Condvar)>);

#[derive(Debug)]
struct Planned {
    interval: Duration,
    /// Other ones, that no check was made by yet.
    timeouts: Option<Timeouts>,
}

impl Plan {
    /// A check after each pause of `interval`.
    #[must_use]
    pub fn new(interval: Duration) -> Plan {
        Plan(Arc::new((Mutex::new(Planned { interval, timeouts: None }), Condvar::new())))
    }

    /// Checks after other pauses from now on, by these timeouts, which the session table then goes
    /// by too: the next check is at once.
    pub fn change(&self, interval: Duration, timeouts: Timeouts) {
        let (planned, changed) = &*self.0;
        let timeouts = Some(timeouts);
        *planned.lock().unwrap_or_else(PoisonError::into_inner) = Planned { interval, timeouts };
        changed.notify_all();
    }

    /// Has the thread look whether it is to stop, even if it is just about to wait.
    fn wake(&self) {
        let (planned, changed) = &*self.0;
        drop(planned.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    /// Waits until the next check is due after one that took so long, and says by which timeouts
    /// it is to be made, if by others; `None` when there is to be none.
    fn wait(&self, took: Duration, stop: &AtomicBool) -> Option<Option<Timeouts>> {
        let (planned, changed) = &*self.0;
        let mut planned = planned.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let left = planned.interval.max(took).saturating_sub(began.elapsed());
            if planned.timeouts.is_some() || left.is_zero() {
                return Some(planned.timeouts.take());
            }
            let waited = changed.wait_timeout(planned, left);
            planned = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }
}

/// The thread that checks.
#[derive(Debug)]
pub struct CheckThread {
    thread: JoinHandle<()>,
    plan: Plan,
    stop: Arc<AtomicBool>,
}

impl CheckThread {
    /// Starts it; `stop` is what `check`'s kernel looks at as well.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start<K: Kernel<Error = anyhow::Error> + Send + 'static>(
        check: KernelCheck<K>,
        plan: Plan,
        stop: Arc<AtomicBool>,
    ) -> std::io::Result<CheckThread> {
        let thread = std::thread::Builder::new().name("kernel check".to_owned());
        let (planned, stopped) = (plan.clone(), Arc::clone(&stop));
        let thread = thread.spawn(move || check.run(&planned, &stopped))?;
        Ok(CheckThread { thread, plan, stop })
    }

    /// Whether it has ended by itself.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it; a check under way ends with the kernel's next answer.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.plan.wake();
        // A panic has been reported where it happened.
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout)]
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::sync::atomic::AtomicU64;

    use anyhow::bail;
    use holdfast_dataplane::kernel::{Held, HeldSession};
    use holdfast_dataplane::service::Services;
    use holdfast_dataplane::session::expiry::Timeouts;
    use holdfast_dataplane::session::table::SessionTable;
    use holdfast_dataplane::session::{Session, State};
    use holdfast_dataplane::time::Tick;
    use holdfast_handoff::{Announcement, CoreEnd, Doorbell, rings};
    use holdfast_net::{FlowKey, HashKey};

    use crate::kernel_sockets::KernelSockets;

    const TIMEOUTS: Timeouts = Timeouts {
        half_open_ms: 10_000,
        established_ms: 60_000,
        linger_ms: 8_000,
        redirect_ms: 60_000,
    };
    const SECOND: u32 = 10;

    /// A comparison for one service, its table, and the DHT core's end of its rings.
    struct Bench {
        comparison: Comparison,
        table: Arc<SessionTable>,
        core: CoreEnd,
        _poll: mio::Poll,
    }

    fn bench(service: SocketAddr) -> Bench {
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let (end, core) = rings(1, 16, Arc::new(Doorbell::new(waker)));
        let services = Services::new([service]).unwrap();
        let table = SessionTable::new(services, 1024, &TIMEOUTS, HashKey([1, 2])).unwrap();
        let table = Arc::new(table);
        let comparison = Comparison::new(Arc::clone(&table), Arc::default(), end, &TIMEOUTS);
        Bench { comparison, table, core, _poll: poll }
    }

    impl Bench {
        fn state(&self, flow: &FlowKey) -> Option<State> {
            match self.table.lookup(flow, Tick(0))?.session {
                Session::Local { state, .. } => Some(state),
                Session::Redirect { .. } => None,
            }
        }

        /// Moves the session on, as a worker does that reads a segment of it.
        fn hear(&self, flow: &FlowKey, state: State, now: Tick) {
            let entry = self.table.lookup(flow, now).unwrap().entry;
            self.table.transition(&entry, state, now).unwrap();
        }
    }

    /// The whole life of a session, as the kernel of this machine tells it.
    #[test]
    fn r7_r8_the_table_follows_the_kernels_sockets() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(listen) else {
                println!("SKIPPED: no {listen} on this machine");
                continue;
            };
            let service = listener.local_addr().unwrap();
            let client = TcpStream::connect(service).unwrap();
            let flow = FlowKey::tcp(client.local_addr().unwrap(), service).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let mut bench = bench(service);
            let mut kernel = KernelSockets::new(Arc::default());
            let mut check = |bench: &mut Bench, seconds: u32| {
                bench.comparison.check(&mut kernel, || Tick(seconds * SECOND)).unwrap()
            };
            let held = Findings { held: 1, ..Findings::default() };

            assert_eq!(check(&mut bench, 0), Findings { learnt: 1, ..held });
            assert_eq!(bench.state(&flow), Some(State::Established));
            let published = bench.core.announcements.pop();
            assert!(matches!(published, Ok(Announcement::Publish { flow: f, .. }) if f == flow));

            assert_eq!(check(&mut bench, 20), held);
            assert_eq!(check(&mut bench, 40), Findings { kept_alive: 1, ..held });
            assert_eq!(check(&mut bench, 60), held, "as if seen just before");

            // A RST goes by that is outside of the kernel's window.
            bench.hear(&flow, State::Reset, Tick(60 * SECOND));
            assert_eq!(check(&mut bench, 61), held);
            assert_eq!(check(&mut bench, 64), Findings { revived: 1, asked: 1, ..held });
            assert_eq!(bench.state(&flow), Some(State::Established));
            bench.hear(&flow, State::HalfOpen, Tick(64 * SECOND));
            assert_eq!(check(&mut bench, 65), Findings { established: 1, asked: 1, ..held });

            // The client is first: the service's socket leaves no TIME_WAIT behind.
            drop(client);
            drop(accepted);
            let end = Instant::now() + Duration::from_secs(5);
            while bench.state(&flow) != Some(State::Closed) {
                assert!(Instant::now() < end, "{:?}", bench.state(&flow));
                check(&mut bench, 66);
                std::thread::sleep(Duration::from_millis(10));
            }
            // Over: nothing revives it, and its time goes on.
            for seconds in [70, 80] {
                assert_eq!(check(&mut bench, seconds), Findings::default());
            }
            let entry = bench.table.lookup(&flow, Tick(80 * SECOND)).unwrap().entry;
            assert!(bench.table.is_due(&entry, Tick(80 * SECOND)));
            assert!(bench.core.announcements.pop().is_err(), "workers withdraw it");
        }
    }

    /// As of a service in another network namespace.
    #[test]
    fn r8_without_a_listening_socket_nothing_is_ended() {
        let service: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let flow = FlowKey::tcp(([127, 0, 0, 1], 9).into(), service).unwrap();
        let mut bench = bench(service);
        let at = bench.table.locate_flow(&flow).unwrap();
        let session = Session::Local {
            state: State::Established,
            version: holdfast_handoff::Version(1),
            published: true,
        };
        bench.table.insert(&at, session, Tick(0));
        let mut kernel = KernelSockets::new(Arc::default());
        let mut asked = 0;
        for _ in 0..3 {
            let findings = bench.comparison.check(&mut kernel, || Tick(1)).unwrap();
            assert_eq!(findings.ended, 0);
            asked += findings.asked;
        }
        assert_eq!(asked, 2);
        assert_eq!(bench.state(&flow), Some(State::Established));
        // It was not the flow: now somebody listens.
        let _listener = TcpListener::bind(service).unwrap();
        assert_eq!(bench.comparison.check(&mut kernel, || Tick(1)).unwrap().ended, 1);
    }

    /// A kernel that answers every other time.
    #[derive(Clone, Default)]
    struct Moody(Arc<AtomicU64>);

    impl Kernel for Moody {
        type Error = anyhow::Error;

        fn list(&mut self, _see: &mut dyn FnMut(HeldSession)) -> anyhow::Result<()> {
            match self.0.fetch_add(1, Ordering::Relaxed) % 2 {
                0 => Ok(()),
                _ => bail!("not now"),
            }
        }

        fn holds(&mut self, _flow: &FlowKey) -> anyhow::Result<Held> {
            bail!("never")
        }
    }

    #[test]
    fn checks_go_on_whatever_the_kernel_says_until_they_are_stopped() {
        let (kernel, totals, stop) = (Moody::default(), Totals::default(), Arc::default());
        let bench = bench(([127, 0, 0, 1], 80).into());
        let clock = TscClock::start(dpdk::tsc(), 1_000_000_000);
        let check = KernelCheck::new(bench.comparison, kernel.clone(), clock, totals.clone());
        let thread = CheckThread::start(check, Plan::new(Duration::from_millis(1)), stop).unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while kernel.0.load(Ordering::Relaxed) < 10 {
            assert!(Instant::now() < end && !thread.is_finished());
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.stop();
        let lists = kernel.0.load(Ordering::Relaxed);
        let KernelCheckStats { counters, .. } = totals.stats();
        assert_eq!(counters["checks"] + counters["failures"], lists);
        assert!(counters["checks"].abs_diff(counters["failures"]) <= 1, "{counters:?}");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(kernel.0.load(Ordering::Relaxed), lists, "it has stopped");
    }

    #[test]
    fn an_hours_pause_is_no_obstacle_to_the_end() {
        let bench = bench(([127, 0, 0, 1], 80).into());
        let clock = TscClock::start(dpdk::tsc(), 1_000_000_000);
        let check = KernelCheck::new(bench.comparison, Moody::default(), clock, Totals::default());
        let plan = Plan::new(Duration::from_secs(3600));
        let thread = CheckThread::start(check, plan, Arc::default()).unwrap();
        let began = Instant::now();
        thread.stop();
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn other_timeouts_are_checked_by_at_once_and_other_pauses_follow() {
        let (kernel, bench) = (Moody::default(), bench(([127, 0, 0, 1], 80).into()));
        let clock = TscClock::start(dpdk::tsc(), 1_000_000_000);
        let check = KernelCheck::new(bench.comparison, kernel.clone(), clock, Totals::default());
        let plan = Plan::new(Duration::from_secs(3600));
        let thread = CheckThread::start(check, plan.clone(), Arc::default()).unwrap();
        let lists_until = |least: u64| {
            let end = Instant::now() + Duration::from_secs(5);
            while kernel.0.load(Ordering::Relaxed) < least {
                assert!(Instant::now() < end && !thread.is_finished());
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let session = Session::Redirect { owner: [10, 0, 0, 2].into() };
        let flow = FlowKey::tcp_v4([20, 1, 1, 1], 1, [127, 0, 0, 1], 80);
        bench.table.insert(&bench.table.locate_flow(&flow).unwrap(), session, Tick(0));
        let entry = bench.table.lookup(&flow, Tick(0)).unwrap().entry;
        assert!(!bench.table.is_due(&entry, Tick(20 * SECOND)));

        let shorter = Timeouts { redirect_ms: 5_000, ..TIMEOUTS };
        plan.change(Duration::from_secs(3600), shorter);
        lists_until(1);
        let end = Instant::now() + Duration::from_secs(5);
        while !bench.table.is_due(&entry, Tick(20 * SECOND)) {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        plan.change(Duration::from_millis(1), shorter);
        lists_until(5);
        thread.stop();
    }
}
