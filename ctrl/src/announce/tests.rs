//! Announcers: what they are told, and that it arrives. FRR itself is in `tests/announce.rs`.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};

use super::*;
use crate::config::tests::minimal_config;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn all() -> Vec<(IpNet, Route)> {
    vec![
        (prefix("192.168.0.1/32"), Route::Announced),
        (prefix("2001:db8::1/128"), Route::GracefulShutdown),
        (prefix("192.168.1.0/24"), Route::Withdrawn),
    ]
}

fn wanted(routes: &[(IpNet, Route)]) -> Routes {
    routes.iter().map(|(prefix, route)| (*prefix, Some(*route))).collect()
}

fn config(announcer: Announcer, directory: &Path) -> Announce {
    Announce {
        announcer,
        prefixes: Vec::new(),
        timeout: LONG,
        refresh: Duration::from_secs(3600),
        publish_within: LONG,
        settle: Duration::ZERO,
        state_directory: directory.join("state"),
    }
}

fn shell(script: &str) -> Announcer {
    Announcer::ExaBgp(Lines::Command(["sh", "-c", script].map(str::to_owned).into()))
}

fn now(config: &Announce, routes: &[(IpNet, Route)]) -> Result<(), AnnounceError> {
    tell(config, routes, &AtomicBool::new(false))
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn mkfifo(path: &Path) {
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

#[test]
fn vtysh_is_told_each_prefix_once_whatever_was_before() {
    let arguments = frr_arguments(&all(), "65001 vrf red").join("\n");
    let expected = "\
-d
bgpd
-c
configure terminal
-c
route-map holdfast-announce permit 10
-c
exit
-c
route-map holdfast-graceful-shutdown permit 10
-c
set community graceful-shutdown
-c
exit
-c
route-map holdfast-withdraw deny 10
-c
exit
-c
router bgp 65001 vrf red
-c
address-family ipv4 unicast
-c
network 192.168.0.1/32 route-map holdfast-announce
-c
network 192.168.1.0/24 route-map holdfast-withdraw
-c
exit-address-family
-c
address-family ipv6 unicast
-c
network 2001:db8::1/128 route-map holdfast-graceful-shutdown
-c
exit-address-family";
    assert_eq!(arguments, expected);
    let only_v6 = frr_arguments(&all()[1..2], "");
    assert!(only_v6.contains(&"router bgp".to_owned()), "{only_v6:?}");
    assert!(!only_v6.contains(&"address-family ipv4 unicast".to_owned()), "{only_v6:?}");
}

const EXABGP: &str = "\
announce route 192.168.0.1/32 next-hop self
announce route 2001:db8::1/128 next-hop self community [65535:0]
withdraw route 192.168.1.0/24 next-hop self
";

#[test]
fn exabgps_lines_come_out_of_the_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("exabgp.in");
    mkfifo(&pipe);
    let config = config(Announcer::ExaBgp(Lines::Pipe(pipe.clone())), directory.path());
    let error = now(&config, &all()).unwrap_err();
    assert!(matches!(error, AnnounceError::NoReader(_)), "{error}");
    assert!(error.to_string().contains("exabgp.in: nobody reads from it"), "{error}");

    std::thread::scope(|scope| {
        let reader = scope.spawn(|| std::fs::read_to_string(&pipe).unwrap());
        until("it is read", || now(&config, &all()).is_ok());
        assert_eq!(reader.join().unwrap(), EXABGP);
    });
}

#[test]
fn a_pipe_that_is_none_or_full_is_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let config = |path: &Path| {
        let announcer = Announcer::ExaBgp(Lines::Pipe(path.to_owned()));
        Announce { timeout: SHORT, ..config(announcer, directory.path()) }
    };
    let missing = now(&config(&directory.path().join("none")), &all()).unwrap_err();
    assert!(missing.to_string().contains("none: No such file"), "{missing}");
    let file = directory.path().join("file");
    std::fs::write(&file, "as it was").unwrap();
    let error = now(&config(&file), &all()).unwrap_err();
    assert!(matches!(error, AnnounceError::NoPipe(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "as it was");

    // A reader that does not read.
    let pipe = directory.path().join("full");
    mkfifo(&pipe);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut reader = File::from(rustix::fs::open(&pipe, flags, Mode::empty()).unwrap());
    let mut writes = 0;
    let error = loop {
        match now(&config(&pipe), &all()) {
            Ok(()) => writes += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AnnounceError::TimedOut { .. }), "{error}");
    // What it got are whole lines.
    let mut text = Vec::new();
    reader.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(writes > 0 && text.ends_with('\n'));
    assert!(text.lines().all(|line| EXABGP.lines().any(|known| known == line)));
}

#[test]
fn exabgps_lines_come_to_a_programs_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines");
    let config = config(shell(&format!("cat > {}", file.display())), directory.path());
    now(&config, &all()).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), EXABGP);
    let failing = Announce { announcer: shell("echo no neighbour; exit 1"), ..config };
    let error = now(&failing, &all()).unwrap_err().to_string();
    assert_eq!(error, "sh: no neighbour (exit status: 1)");
}

#[test]
fn the_thread_tells_what_is_wanted_when_it_is_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines");
    let config = config(shell(&format!("cat >> {}", file.display())), directory.path());
    let thread = AnnounceThread::start(&config).unwrap();
    let said = || std::fs::read_to_string(&file).unwrap_or_default();
    let routes = wanted(&all());
    thread.want(&routes);
    until("it is told", || thread.standing().since.is_some());
    assert_eq!((said().as_str(), thread.standing().told), (EXABGP, routes.clone()));
    // The same again is nothing new.
    thread.want(&routes);
    std::thread::sleep(SHORT);
    assert_eq!(thread.standing().runs, 1);
    // What is to stay as it is is not said.
    let mut fewer = routes.clone();
    fewer[0].1 = None;
    fewer[1].1 = Some(Route::Withdrawn);
    thread.want(&fewer);
    until("it is told", || thread.standing().since.is_some());
    assert_eq!(said().lines().count(), 5);
    assert!(!said().lines().skip(3).any(|line| line.contains("192.168.0.1")), "{}", said());
    let told = thread.standing().told;
    assert_eq!(told[..2], [routes[0], (routes[1].0, Some(Route::Withdrawn))]);
    let Standing { runs, failures, trouble, .. } = thread.standing();
    assert_eq!((runs, failures, trouble), (2, 0, None));
}

/// ExaBGP was restarted, and knows nothing.
#[test]
fn what_is_announced_is_said_again_after_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("exabgp.in");
    mkfifo(&pipe);
    let announcer = Announcer::ExaBgp(Lines::Pipe(pipe.clone()));
    let refresh = Duration::from_millis(50);
    let config = Announce { refresh, ..config(announcer, directory.path()) };
    // Open for writing as well: there is no end of file between two writers.
    let reader = File::options().read(true).write(true).open(&pipe).unwrap();
    let thread = AnnounceThread::start(&config).unwrap();
    thread.want(&wanted(&all()));
    let lines: Vec<_> = BufReader::new(reader).lines().take(7).map(Result::unwrap).collect();
    let all: Vec<&str> = EXABGP.lines().collect();
    // It takes no withdrawing of what is not announced.
    assert_eq!(lines, [&all[..], &all[..2], &all[..2]].concat());
}

#[test]
fn an_announcer_that_fails_is_told_again_until_it_takes_it() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("exabgp.in");
    let announcer = Announcer::ExaBgp(Lines::Pipe(pipe.clone()));
    let config = config(announcer, directory.path());
    let thread = AnnounceThread::start(&config).unwrap();
    let routes = wanted(&all());
    thread.want(&routes);
    until("it fails again", || thread.standing().failures >= 2);
    let standing = thread.standing();
    assert!(standing.trouble.unwrap().contains("exabgp.in: No such file"));
    assert!(standing.since.is_none() && standing.told.iter().all(|(_, route)| route.is_none()));
    mkfifo(&pipe);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| std::fs::read_to_string(&pipe).unwrap());
        until("it is told", || thread.standing().since.is_some());
        assert_eq!(reader.join().unwrap(), EXABGP);
    });
    let standing = thread.standing();
    assert_eq!((standing.trouble, standing.told), (None, routes));
    assert_eq!(standing.runs, standing.failures + 1);
}

#[test]
fn the_end_does_not_wait_for_an_announcer_that_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let started = directory.path().join("started");
    let script = format!("touch {}; sleep 1000", started.display());
    let config =
        Announce { timeout: Duration::from_secs(60), ..config(shell(&script), directory.path()) };
    let thread = AnnounceThread::start(&config).unwrap();
    thread.want(&wanted(&all()));
    until("it hangs", || started.exists());
    let start = Instant::now();
    drop(thread);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn nobody_is_told_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(Announcer::None, directory.path());
    let thread = AnnounceThread::start(&config).unwrap();
    thread.want(&wanted(&all()));
    let standing = thread.standing();
    assert!(standing.since.is_some() && !thread.is_finished());
    assert_eq!((standing.told, standing.runs), (wanted(&all()), 0));
}

/// A server's configuration with one service, 192.168.0.1.
fn server(announce: Announce) -> Config {
    Config { announce, ..minimal_config() }
}

/// `withdraw` when no daemon is there to stay.
fn withdrawn(config: &Config, patience: Duration) -> anyhow::Result<String> {
    drop(mark::tests::taken(&config.announce.state_directory));
    loop {
        match withdraw(config, patience) {
            // What another test starts has a copy of the lock for a moment.
            Ok(done) if done.starts_with("a daemon runs") => {}
            outcome => return outcome,
        }
    }
}

#[test]
fn withdraw_does_nothing_without_an_announcer() {
    let directory = tempfile::tempdir().unwrap();
    let config = server(config(Announcer::None, directory.path()));
    let done = withdraw(&config, LONG).unwrap();
    assert_eq!(done, "announce.announcer is none: nothing is withdrawn");
    assert!(!config.announce.state_directory.exists());
}

#[test]
fn withdraw_waits_for_a_daemon_and_withdraws_when_none_comes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines");
    let announce = config(shell(&format!("cat >> {}", file.display())), directory.path());
    let config = server(announce);
    let state = &config.announce.state_directory;
    let [service, former] = [prefix("192.168.0.1/32"), prefix("192.168.9.1/32")];
    let announced = vec![(service, Some(Route::Announced)), (former, Some(Route::Announced))];

    // A daemon is back in time.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| withdraw(&config, LONG).unwrap());
        std::thread::sleep(SHORT);
        let mut mark = None;
        until("the daemon has its mark", || {
            mark = Mark::take(state).unwrap();
            mark.is_some()
        });
        mark.as_mut().unwrap().write(&announced).unwrap();
        assert_eq!(waiting.join().unwrap(), "a daemon runs: nothing is withdrawn");
    });
    assert!(!file.exists());

    // None is: what the last one announced is withdrawn, whatever the configuration says by now.
    let done = withdrawn(&config, SHORT).unwrap();
    assert_eq!(done, "withdrawn: 192.168.0.1/32 192.168.9.1/32");
    let expected = "withdraw route 192.168.0.1/32 next-hop self\n\
                    withdraw route 192.168.9.1/32 next-hop self\n";
    assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
    assert_eq!(withdrawn(&config, Duration::ZERO).unwrap(), "nothing is announced");
    // Nobody knows what is announced.
    std::fs::write(state.join("announced"), "?").unwrap();
    assert_eq!(withdrawn(&config, Duration::ZERO).unwrap(), "withdrawn: 192.168.0.1/32");
}

#[test]
fn withdraw_says_when_the_announcer_fails_and_can_be_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = server(config(shell("echo no; exit 1"), directory.path()));
    let error = withdrawn(&config, Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "sh: no (exit status: 1)");
    config.announce.announcer = shell("true");
    assert_eq!(withdrawn(&config, Duration::ZERO).unwrap(), "withdrawn: 192.168.0.1/32");
}
