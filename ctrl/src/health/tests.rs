//! A server's way from its start to its end, with hours for seconds: what is announced when.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::check::{CheckError, Hysteresis};
use super::thread::Driver;
use super::*;
use crate::announce::AnnounceThread;
use crate::announce::mark::tests::taken;
use crate::config::tests::minimal_config;
use crate::config::{Announcer, Check, CheckKind, Lines, Service};

const HOUR: Duration = Duration::from_secs(3600);

/// A server that knows of itself what it is told.
#[derive(Debug)]
struct Told {
    kernel_read: AtomicBool,
    publishing: Mutex<Option<Publishing>>,
    carrier: AtomicBool,
    left: AtomicU64,
}

impl Server for Told {
    fn kernel_read(&self) -> bool {
        self.kernel_read.load(Ordering::Relaxed)
    }

    fn publishing(&self) -> Option<Publishing> {
        *self.publishing.lock().unwrap()
    }

    fn has_carrier(&self) -> bool {
        self.carrier.load(Ordering::Relaxed)
    }

    fn sessions_left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}

/// The configuration's two services, and the check of each.
const SERVICES: [&str; 2] = ["192.168.0.1:80", "[2001:db8::80]:80"];

fn prefixes() -> [IpNet; 2] {
    ["192.168.0.1/32", "2001:db8::80/128"].map(|prefix| prefix.parse().unwrap())
}

/// A server whose announcer writes what it is told into a file.
struct Bench {
    config: Config,
    lines: PathBuf,
    server: Arc<Told>,
    health: Arc<Health>,
    driver: Option<Driver<Told>>,
    start: Instant,
    hours: u32,
    _directory: Arc<tempfile::TempDir>,
}

fn config(directory: &tempfile::TempDir) -> Config {
    let lines = directory.path().join("lines");
    let mut config = minimal_config();
    let service = SERVICES.map(|service| service.parse().unwrap());
    config.services = service
        .iter()
        .map(|service: &std::net::SocketAddr| Service {
            address: service.ip(),
            ports: vec![service.port()],
        })
        .collect();
    config.checks = service
        .map(|service| Check {
            service,
            target: service,
            kind: CheckKind::Tcp,
            interval: HOUR,
            timeout: HOUR,
            rise: 1,
            fall: 1,
        })
        .into();
    let script = format!("cat >> {}", lines.display());
    config.announce.announcer =
        Announcer::ExaBgp(Lines::Command(["sh", "-c", &script].map(str::to_owned).into()));
    config.announce.publish_within = 3 * HOUR;
    config.announce.settle = 2 * HOUR;
    config.announce.state_directory = directory.path().join("state");
    config
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory);
        Bench::start(config, Arc::new(directory))
    }

    fn start(config: Config, directory: Arc<tempfile::TempDir>) -> Bench {
        let start = Instant::now();
        let health = Arc::new(Health::new(&config, start));
        let server = Arc::new(Told {
            kernel_read: true.into(),
            publishing: Mutex::new(Some(Publishing { joined: true, unpublished: 0 })),
            carrier: true.into(),
            left: 7.into(),
        });
        let announcer = AnnounceThread::start(&config.announce).unwrap();
        let (known, seen) = (Arc::clone(&health), Arc::clone(&server));
        let driver = Driver::new(known, seen, announcer, 5 * HOUR, start);
        let lines = directory.path().join("lines");
        let (driver, hours) = (Some(driver), 0);
        Bench { config, lines, server, health, driver, start, hours, _directory: directory }
    }

    /// The daemon dies, and another one is started.
    fn restart(mut self) -> Bench {
        self.driver.take();
        std::fs::write(&self.lines, "").unwrap();
        Bench::start(self.config.clone(), Arc::clone(&self._directory))
    }

    fn now(&self) -> Instant {
        self.start + self.hours * HOUR
    }

    /// Time passes, and the thread looks; then the announcer has its say.
    fn hours(&mut self, hours: u32) {
        self.hours += hours;
        let now = self.now();
        // What another test starts has a copy of the mark, until it is another program.
        let waits = |bench: &Bench| bench.because().iter().any(|why| why.contains("in hand"));
        self.driver.as_mut().unwrap().turn(now);
        while waits(self) {
            std::thread::sleep(Duration::from_millis(1));
            self.driver.as_mut().unwrap().turn(now);
        }
        let driver = self.driver.as_ref().unwrap();
        let start = Instant::now();
        while driver.announcer.standing().since.is_none() {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", driver.announcer);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn checked(&self, index: usize, outcome: Result<(), CheckError>) {
        let checked = &self.health.checks[index];
        let mut hysteresis = Hysteresis { up: checked.found().up, streak: 0 };
        checked.note(&mut hysteresis, outcome, Instant::now());
    }

    /// Joined, published, and all services up.
    fn ready() -> Bench {
        let mut bench = Bench::new();
        [0, 1].into_iter().for_each(|index| bench.checked(index, Ok(())));
        bench.hours(0);
        bench.hours(0);
        assert_eq!(bench.states(), [State::Ready; 2]);
        bench
    }

    fn states(&self) -> [State; 2] {
        let prefixes = self.health.report(0, self.now()).prefixes;
        [prefixes[0].state, prefixes[1].state]
    }

    /// What the announcer was told since the last call: of each prefix in turn `+` announced, `~`
    /// announced with GRACEFUL_SHUTDOWN, `-` withdrawn.
    fn told(&self) -> String {
        let lines = std::fs::read_to_string(&self.lines).unwrap_or_default();
        std::fs::write(&self.lines, "").unwrap();
        let sign = |line: &str| {
            let family = if line.contains("192.168.0.1/32") { '4' } else { '6' };
            let sign = match line.split_once(' ').unwrap().0 {
                "withdraw" => '-',
                _ if line.contains("community") => '~',
                _ => '+',
            };
            [sign, family]
        };
        lines.lines().flat_map(sign).collect()
    }

    fn drain(&self, mode: DrainMode, timeout: Duration, persist: bool) {
        let order = Drain { mode, timeout, persist, since: self.now() };
        self.health.drain(order).unwrap();
    }

    fn because(&self) -> Vec<String> {
        self.health.report(0, self.now()).prefixes[0].because.clone()
    }

    fn counter(&self, name: &str) -> u64 {
        self.health.stats(0, self.now()).counters[name]
    }
}

fn failed() -> Result<(), CheckError> {
    Err(CheckError::Closed)
}

#[test]
fn is_announced_when_it_has_joined_and_published_and_all_is_up_and_not_before() {
    let mut bench = Bench::new();
    let publishing = |joined, unpublished| Some(Publishing { joined, unpublished });
    bench.server.kernel_read.store(false, Ordering::Relaxed);
    *bench.server.publishing.lock().unwrap() = None;
    bench.hours(0);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Starting; 2], "-4-6"));
    assert_eq!(bench.because()[0], "the kernel's sockets are being read");
    bench.server.kernel_read.store(true, Ordering::Relaxed);
    bench.hours(0);
    assert_eq!(bench.states(), [State::Joining; 2]);
    assert_eq!(bench.because()[0], "the DHT core does not answer");
    *bench.server.publishing.lock().unwrap() = publishing(false, 0);
    bench.hours(9);
    assert_eq!(bench.because()[0], "this server has not joined the DHT");
    *bench.server.publishing.lock().unwrap() = publishing(true, 5);
    bench.hours(0);
    assert_eq!(bench.because()[0], "5 sessions not published yet");
    assert_eq!(bench.because()[1], "192.168.0.1:80: it is being checked");
    // Once could be by chance.
    *bench.server.publishing.lock().unwrap() = publishing(true, 0);
    bench.hours(0);
    *bench.server.publishing.lock().unwrap() = publishing(true, 1);
    bench.hours(0);
    assert_eq!(bench.because()[0], "1 session not published yet");
    *bench.server.publishing.lock().unwrap() = publishing(true, 0);
    bench.hours(0);
    bench.hours(0);
    assert_eq!(bench.because(), ["192.168.0.1:80: it is being checked"]);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Joining; 2], ""));
    // Each prefix goes by its own services.
    bench.checked(1, Ok(()));
    bench.hours(0);
    assert_eq!(bench.states(), [State::Joining, State::Ready]);
    bench.checked(0, failed());
    bench.hours(0);
    assert_eq!(bench.states(), [State::Unhealthy, State::Ready]);
    assert_eq!(bench.because(), ["192.168.0.1:80: closed without an answer"]);
    assert_eq!(bench.health.report(0, bench.now()).state, State::Unhealthy);
    bench.checked(0, Ok(()));
    bench.hours(0);
    assert_eq!(bench.states(), [State::Ready; 2]);
    assert!(bench.because().is_empty());
    assert!(bench.told().ends_with("+4+6"));
    // The other servers are lost: no reason to take this one away too.
    *bench.server.publishing.lock().unwrap() = publishing(false, 9);
    bench.hours(9);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Ready; 2], ""));
    assert_eq!(bench.counter("ready_unpublished"), 0);
}

#[test]
fn what_cannot_be_published_holds_it_back_for_a_while_only() {
    let mut bench = Bench::new();
    [0, 1].into_iter().for_each(|index| bench.checked(index, Ok(())));
    *bench.server.publishing.lock().unwrap() = Some(Publishing { joined: false, unpublished: 0 });
    bench.hours(0);
    *bench.server.publishing.lock().unwrap() = Some(Publishing { joined: true, unpublished: 5 });
    bench.hours(9);
    bench.hours(2);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Joining; 2], "-4-6"));
    bench.hours(1);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Ready; 2], "+4+6"));
    assert_eq!(bench.counter("ready_unpublished"), 1);
}

#[test]
fn is_withdrawn_while_a_service_is_down_or_the_uplink_has_no_carrier() {
    let mut bench = Bench::ready();
    bench.told();
    bench.checked(1, failed());
    bench.hours(1);
    assert_eq!(bench.states(), [State::Ready, State::Unhealthy]);
    assert!(bench.told().ends_with("-6"));
    bench.server.carrier.store(false, Ordering::Relaxed);
    bench.checked(1, Ok(()));
    bench.hours(1);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Unhealthy; 2], "-4-6"));
    assert_eq!(bench.because(), ["the uplink has no carrier"]);
    bench.server.carrier.store(true, Ordering::Relaxed);
    bench.hours(1);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Ready; 2], "+4+6"));
    let stats = bench.health.stats(7, bench.now());
    // Starting, joining, ready; unhealthy and ready; the second once more.
    assert_eq!(stats.counters["transitions"], 4 + 3 + 1);
    assert_eq!(stats.counters["health_changes"], 2);
    assert_eq!((stats.gauges["state"], stats.gauges["sessions_left"]), (2, 7));
    bench.hours(0);
    let gauges = bench.health.stats(7, bench.now()).gauges;
    assert_eq!((gauges["prefixes"], gauges["prefixes_announced"]), (2, 2));
}

#[test]
fn a_drain_ends_with_the_last_session() {
    let mut bench = Bench::ready();
    bench.told();
    bench.drain(DrainMode::GracefulShutdown, 100 * HOUR, false);
    bench.hours(0);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Draining; 2], "~4~6"));
    for _ in 0..5 {
        bench.hours(1);
        assert_eq!((bench.states(), bench.told().as_str()), ([State::Draining; 2], ""));
    }
    bench.server.left.store(0, Ordering::Relaxed);
    bench.hours(1);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Drained; 2], "-4-6"));
    // Whatever becomes of the services: that is the operator's business now.
    bench.checked(0, failed());
    bench.hours(200);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Drained; 2], ""));
    bench.checked(0, Ok(()));
    bench.health.undrain().unwrap();
    bench.hours(0);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Ready; 2], "+4+6"));
    assert!(bench.health.report(0, bench.now()).drain.is_none());
}

/// New sessions may come until all routers have heard.
#[test]
fn a_drain_without_a_session_lasts_until_routing_has_followed() {
    let mut bench = Bench::ready();
    bench.server.left.store(0, Ordering::Relaxed);
    bench.drain(DrainMode::Withdraw, 100 * HOUR, false);
    for _ in 0..2 {
        bench.hours(1);
        assert_eq!(bench.states(), [State::Draining; 2]);
    }
    assert!(bench.told().ends_with("-4-6"));
    bench.hours(2);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Drained; 2], ""));
}

#[test]
fn a_drain_ends_with_its_time_and_says_what_is_left() {
    let mut bench = Bench::ready();
    bench.drain(DrainMode::GracefulShutdown, 10 * HOUR, false);
    bench.hours(9);
    assert_eq!(bench.states(), [State::Draining; 2]);
    bench.hours(1);
    assert_eq!(bench.states(), [State::Drained; 2]);
    assert!(bench.told().ends_with("-4-6"));
    let report = bench.health.report(bench.server.sessions_left(), bench.now());
    assert_eq!((report.state, report.sessions_left), (State::Drained, 7));
    // No time at all.
    let mut bench = Bench::ready();
    bench.told();
    bench.drain(DrainMode::GracefulShutdown, Duration::ZERO, false);
    bench.hours(0);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Drained; 2], "-4-6"));
}

#[test]
fn an_order_can_be_changed_and_taken_back() {
    let mut bench = Bench::ready();
    bench.told();
    bench.drain(DrainMode::GracefulShutdown, 10 * HOUR, false);
    bench.hours(1);
    assert_eq!(bench.told(), "~4~6");
    bench.drain(DrainMode::Withdraw, 10 * HOUR, false);
    bench.hours(9);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Draining; 2], "-4-6"));
    let drain = bench.health.report(0, bench.now()).drain.unwrap();
    assert_eq!((drain.mode, drain.since_ms), (DrainMode::Withdraw, 9 * 3_600_000));
    bench.health.undrain().unwrap();
    bench.hours(1);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Ready; 2], "+4+6"));
    // A service that is down is not announced for a drain's sake.
    bench.checked(0, failed());
    bench.hours(0);
    bench.told();
    bench.drain(DrainMode::GracefulShutdown, 10 * HOUR, false);
    bench.hours(0);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Draining; 2], "-4~6"));
}

#[test]
fn a_restart_changes_nothing_that_is_announced() {
    let mut bench = Bench::ready().restart();
    bench.server.kernel_read.store(false, Ordering::Relaxed);
    bench.hours(1);
    bench.server.kernel_read.store(true, Ordering::Relaxed);
    bench.hours(1);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Joining; 2], ""));
    assert_eq!(bench.health.report(0, bench.now()).prefixes[0].route, "unknown");
    [0, 1].into_iter().for_each(|index| bench.checked(index, Ok(())));
    bench.hours(1);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Ready; 2], "+4+6"));

    // It must be ready as soon as a restart may take.
    let mut bench = bench.restart();
    bench.hours(4);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Joining; 2], ""));
    bench.hours(1);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Joining; 2], "-4-6"));

    // Then the next one knows that nothing is announced.
    bench.hours(0);
    let mut bench = bench.restart();
    bench.hours(0);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Joining; 2], "-4-6"));
}

/// `holdfastd withdraw` came before the next daemon.
#[test]
fn what_was_withdrawn_meanwhile_is_announced_when_it_is_ready() {
    let mut bench = Bench::ready();
    bench.driver.take();
    let waits = || crate::announce::withdraw(&bench.config, Duration::ZERO).unwrap();
    while waits().starts_with("a daemon runs") {}
    let mut bench = bench.restart();
    bench.hours(0);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Joining; 2], "-4-6"));
}

#[test]
fn a_drain_outlives_the_daemon_if_it_is_told_to() {
    for persist in [false, true] {
        let mut bench = Bench::ready();
        bench.drain(DrainMode::GracefulShutdown, 100 * HOUR, persist);
        bench.hours(1);
        assert_eq!(bench.health.report(0, bench.now()).drain.unwrap().persist, persist);
        let mut bench = bench.restart();
        [0, 1].into_iter().for_each(|index| bench.checked(index, Ok(())));
        bench.hours(0);
        bench.hours(0);
        let expected = if persist { (State::Drained, "-4-6") } else { (State::Ready, "+4+6") };
        assert_eq!((bench.states()[1], bench.told().as_str()), expected);
        if persist {
            bench.health.undrain().unwrap();
            bench.hours(0);
            bench.hours(0);
            assert_eq!(bench.states(), [State::Ready; 2]);
            let mut bench = bench.restart();
            bench.hours(0);
            assert_eq!(bench.states(), [State::Joining; 2]);
        }
    }
}

#[test]
fn an_order_that_cannot_be_kept_is_refused() {
    let mut bench = Bench::ready();
    let obstacle = bench.config.announce.state_directory.join("drained");
    std::fs::create_dir(&obstacle).unwrap();
    let order =
        Drain { mode: DrainMode::Withdraw, timeout: HOUR, persist: true, since: bench.now() };
    let error = bench.health.drain(order).unwrap_err();
    assert!(error.to_string().contains("state/drained: "), "{error}");
    bench.hours(0);
    assert_eq!(bench.states(), [State::Ready; 2]);
    bench.health.undrain().unwrap_err();
    std::fs::remove_dir(&obstacle).unwrap();
    bench.health.drain(order).unwrap();
    bench.hours(0);
    assert_eq!(bench.states(), [State::Draining; 2]);
}

#[test]
fn a_prefix_that_is_not_configured_any_more_is_withdrawn() {
    let bench = Bench::ready();
    let mut bench = bench;
    bench.driver.take();
    bench.config.services.pop();
    bench.config.checks.pop();
    let mut bench = bench.restart();
    bench.driver.as_mut().unwrap().turn(bench.start);
    bench.hours(0);
    assert_eq!(bench.told(), "-6");
}

/// As at a reload.
#[test]
fn prefixes_come_and_go_and_the_others_stand_where_they_stood() {
    let mut bench = Bench::ready();
    bench.told();
    let [v4, v6] = prefixes();
    bench.health.set_prefixes(vec![v4], bench.now());
    bench.hours(1);
    let report = bench.health.report(0, bench.now());
    assert_eq!((report.prefixes.len(), report.prefixes[0].state), (1, State::Ready));
    assert_eq!(report.prefixes[0].since_ms, 3_600_000, "it has not moved");
    assert!(bench.told().contains("-6"));
    // It is written down that this was done.
    bench.hours(0);
    let mut bench = bench.restart();
    [0, 1].into_iter().for_each(|index| bench.checked(index, Ok(())));
    bench.health.set_prefixes(vec![v4], bench.now());
    bench.hours(0);
    bench.hours(0);
    let told = bench.told();
    assert!(told.ends_with("+4") && !told.contains('6'), "the other is not left over: {told}");

    bench.checked(1, failed());
    bench.health.set_prefixes(vec![v4, v6], bench.now());
    bench.hours(1);
    assert_eq!(bench.states(), [State::Ready, State::Unhealthy], "it has its check");
    bench.checked(1, Ok(()));
    bench.hours(0);
    assert_eq!(bench.states(), [State::Ready; 2]);
    bench.hours(0);
    assert!(bench.told().ends_with("+4+6"));
}

/// As while `holdfastd withdraw` is at work.
#[test]
fn nothing_is_announced_while_another_process_has_it_in_hand() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&directory);
    let mark = taken(&config.announce.state_directory);
    let mut bench = Bench::start(config, Arc::new(directory));
    [0, 1].into_iter().for_each(|index| bench.checked(index, Ok(())));
    for _ in 0..3 {
        let now = bench.now();
        bench.driver.as_mut().unwrap().turn(now);
    }
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Starting; 2], ""));
    assert_eq!(bench.because(), ["another process has what is announced in hand"]);
    drop(mark);
    bench.hours(0);
    bench.hours(0);
    assert_eq!(bench.states(), [State::Ready; 2]);
    assert!(bench.told().ends_with("+4+6"));
}

#[test]
fn a_state_directory_that_cannot_be_written_is_a_counter_and_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory);
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    config.announce.state_directory = file.join("state");
    let mut bench = Bench::start(config, Arc::new(directory));
    [0, 1].into_iter().for_each(|index| bench.checked(index, Ok(())));
    bench.hours(0);
    bench.hours(0);
    assert_eq!(bench.states(), [State::Ready; 2]);
    assert_eq!(bench.counter("state_file_failures"), 1);
    let trouble = bench.health.report(0, bench.now()).announcer.state_file_trouble.unwrap();
    assert!(trouble.contains("file/state/announced"), "{trouble}");
}

#[test]
fn the_end_leaves_everything_announced() {
    let mut bench = Bench::ready();
    bench.told();
    let now = bench.now();
    bench.driver.as_mut().unwrap().stop(now);
    assert_eq!((bench.states(), bench.told().as_str()), ([State::Stopping; 2], ""));
    bench.driver.take();
    let mut mark = taken(&bench.config.announce.state_directory);
    let announced = prefixes().map(|prefix| (prefix, Some(Route::Announced)));
    assert_eq!(mark.read().unwrap(), announced);
}

/// With its threads: a check that fails wakes it, and it ends at once.
#[test]
fn the_thread_follows_its_checks() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory);
    config.announce.announcer = Announcer::None;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let service = listener.local_addr().unwrap();
    config.services = vec![Service { address: service.ip(), ports: vec![service.port()] }];
    config.checks.truncate(1);
    let check = &mut config.checks[0];
    (check.service, check.target) = (service, service);
    (check.interval, check.timeout) = (Duration::from_millis(20), Duration::from_secs(20));
    let bench = Bench::start(config, Arc::new(directory));
    let health = Arc::clone(&bench.health);
    let server: Arc<dyn Server> = bench.server.clone();
    let thread = HealthThread::start(Arc::clone(&health), server, HOUR).unwrap();
    let until = |expected| {
        let start = Instant::now();
        while health.report(0, Instant::now()).state != expected {
            assert!(start.elapsed() < Duration::from_secs(20), "not {expected}");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    until(State::Ready);
    drop(listener);
    until(State::Unhealthy);
    let order = Drain {
        mode: DrainMode::Withdraw,
        timeout: Duration::ZERO,
        persist: false,
        since: Instant::now(),
    };
    health.drain(order).unwrap();
    until(State::Drained);
    assert!(!thread.is_finished());
    drop(thread);
    assert_eq!(health.report(0, Instant::now()).state, State::Stopping);
}
