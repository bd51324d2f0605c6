//! `holdfastctl top`: its frames as text (`HOLDFAST_UPDATE_FRAMES=1` writes them anew), and the real
//! program on a terminal, at a real control socket.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use holdfast::client::Connection;
use holdfast::protocol::{
    AnnouncerReport, Cause, CauseKind, Counters, DhtStats, Distribution, DrainMode, DrainReport,
    ErrorCode, HealthReply, HealthState, IncidentState, IncidentSummary, IncidentsReply,
    LoadPeriod, Peer, PeersReply, PortStats, PrefixReport, ProtocolError, ReloadStats, Reply,
    Request, SessionCounts, SessionEntry, SessionKind, SessionsReply, StatsReply, VersionReply,
    WorkerLoad, WorkerStats, WorkersReply,
};
use holdfast::socket::{ControlCounters, ControlSocket, Permissions, Stream};
use holdfast::top::data::{Recent, Round, Rounds};
use holdfast::top::{Key, Screen, Subject, frame, render};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

const PATIENCE: Duration = Duration::from_secs(60);
/// 2026-04-10 14:03:07 UTC.
const NOW_US: u64 = 1_775_829_787_000_000;

const GUIDE: &str = include_str!("../../docs/commands/top.md");

fn at(us: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(us)
}

fn counters(pairs: &[(&str, u64)]) -> Counters {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

fn distribution(buckets: &[(u64, u64)]) -> Distribution {
    let count = buckets.iter().map(|(_, count)| count).sum();
    Distribution { count, buckets: buckets.to_vec(), ..Distribution::default() }
}

fn port(role: &str, packets: u64) -> PortStats {
    PortStats {
        role: role.to_owned(),
        link_up: true,
        rx_packets: 3 * packets,
        rx_bytes: 3000 * packets,
        tx_packets: 2 * packets,
        tx_bytes: 200 * packets,
        ..PortStats::default()
    }
}

/// A daemon that has just begun.
fn fresh() -> Round {
    Round {
        at: at(NOW_US),
        stats: StatsReply {
            daemon: VersionReply {
                version: "0.1.0".to_owned(),
                dpdk_version: "DPDK 22.11.7".to_owned(),
                locator: "10.0.0.1".parse().unwrap(),
                pid: 77,
                uptime_ms: 900,
            },
            workers: vec![WorkerStats { core: 2, counters: Counters::new() }],
            totals: Counters::new(),
            ports: vec![port("uplink", 0), port("host_port", 0)],
            table: counters(&[("local", 0), ("redirect", 0), ("capacity", 1_000_000)]),
            kernel_check: Default::default(),
            health: Default::default(),
            reload: Default::default(),
            dht: DhtStats { gauges: counters(&[("joined", 0)]), ..DhtStats::default() },
            control: Default::default(),
            incidents: Default::default(),
        },
        workers: WorkersReply::default(),
        peers: PeersReply::default(),
        health: HealthReply {
            state: HealthState::Starting,
            sessions_left: 0,
            awaited: vec!["the kernel's sockets are being read".to_owned()],
            prefixes: vec![prefix("192.168.0.1/32", HealthState::Starting, "unknown")],
            checks: Vec::new(),
            drain: None,
            announcer: AnnouncerReport {
                kind: "frr".to_owned(),
                trouble: None,
                state_file_trouble: None,
            },
        },
        incidents: IncidentsReply::default(),
        sessions: None,
    }
}

fn prefix(prefix: &str, state: HealthState, route: &str) -> PrefixReport {
    PrefixReport {
        prefix: prefix.parse().unwrap(),
        state,
        since_ms: 5000,
        route: route.to_owned(),
        because: Vec::new(),
    }
}

fn peer(locator: &str, state: &str, n: u64) -> Peer {
    let locator: IpAddr = locator.parse().unwrap();
    let is_here = state == "alive" || state == "suspect";
    Peer {
        id: format!("{n:032x}"),
        locator,
        address: (locator, 7000).into(),
        state: state.to_owned(),
        srtt_us: Some(180 + 31 * n),
        last_seen_ms: is_here.then_some(200 * n),
        absent_ms: (!is_here).then_some(61_000),
        missed: is_here.then_some(n / 2),
        started_unix_us: Some(NOW_US - 86_400_000_000),
        life: is_here.then_some(n),
    }
}

fn session(flow: &str, state: &str, owner: Option<&str>, idle_ms: u64) -> SessionEntry {
    SessionEntry {
        flow: flow.parse().unwrap(),
        kind: if owner.is_some() { SessionKind::Redirect } else { SessionKind::Local },
        state: state.to_owned(),
        owner: owner.unwrap_or("10.0.0.1").parse().unwrap(),
        version: None,
        published: None,
        idle_ms,
    }
}

fn incident(id: u64, began_ago_s: u64, state: IncidentState, lost: u64) -> IncidentSummary {
    let began_unix_us = NOW_US - began_ago_s * 1_000_000;
    let cause = |kind, locator: Option<&str>| Cause {
        kind,
        locator: locator.map(|locator| locator.parse().unwrap()),
        at_unix_us: None,
    };
    IncidentSummary {
        id,
        state,
        began_unix_us,
        ended_unix_us: began_unix_us + 1_240_000,
        sessions: SessionCounts {
            at_risk: 81,
            saved: 81 - lost,
            reset: lost,
            ..SessionCounts::default()
        },
        causes: match id % 2 {
            0 => vec![cause(CauseKind::PathChange, None)],
            _ => {
                vec![cause(CauseKind::PeerDied, Some("10.0.0.3")), cause(CauseKind::UplinkUp, None)]
            }
        },
        detection_time_us: (id % 2 == 1).then_some(2_312_000),
        forward_time_p50_us: Some(412),
        forward_time_max_us: Some(9000),
    }
}

/// A daemon at work, this long after [`fresh`]; with what a second brings when `seconds` is one
/// more.
fn busy(seconds: u64) -> Round {
    let mut round = fresh();
    let packets = 4120 * seconds;
    round.at = at(NOW_US + 1_000_000 * seconds);
    round.stats.daemon.uptime_ms = 11_520_000 + 1000 * seconds;
    let worker = |core: u32, share: u64| WorkerStats {
        core,
        counters: counters(&[("tunnel_sent", packets * share / 10)]),
    };
    round.stats.workers = vec![worker(2, 7), worker(3, 3), worker(10, 0)];
    let totals = [
        ("tunnel_sent", packets),
        ("tunnel_received", packets / 100),
        ("session_opened", 12 * seconds),
        ("miss", 3 * seconds),
        ("redirect_installed", seconds),
    ];
    round.stats.totals = counters(&totals);
    round.stats.ports = vec![port("uplink", 4120 * seconds), port("host_port", 100)];
    round.stats.table = counters(&[("local", 41_200), ("redirect", 88), ("capacity", 1_000_000)]);
    let gauges = [
        ("joined", 1),
        ("peers", 3),
        ("peers_suspect", 1),
        ("peers_dead", 1),
        ("records", 123_456),
        ("published_unacked", 7),
        ("requests_in_flight", 2),
    ];
    let dht = &mut round.stats.dht;
    dht.gauges = counters(&gauges);
    dht.counters = counters(&[("lookups_asked", 220 * seconds), ("lookups_timed_out", seconds)]);
    let lookups = distribution(&[(90, 5), (312, 97 * seconds), (1500, 2 * seconds), (9000, 1)]);
    dht.distributions.insert("lookup_time_us".to_owned(), lookups);
    dht.distributions.insert("setting_time_us".to_owned(), distribution(&[(500, 10)]));
    let load = |core, busy: f64, drops| WorkerLoad {
        core,
        busy_percent: Some(busy),
        packets_per_burst: Some(busy / 10.0),
        cycles_per_packet: Some(1312.5),
        uplink_packets_per_s: Some((busy * 1000.0) as u64),
        host_packets_per_s: Some((busy * 700.0) as u64),
        drops,
        drops_per_s: Some(drops),
        turns_per_s: Some(2_000_000),
    };
    let workers = vec![load(2, 12.4, 0), load(3, 99.0, 3), load(10, 0.0, 0)];
    round.workers.last_second = Some(LoadPeriod { duration_us: 1_000_000, workers });
    round.peers.peers = vec![
        peer("10.0.0.10", "alive", 1),
        peer("10.0.0.2", "suspect", 2),
        peer("10.0.0.3", "dead", 3),
    ];
    round.health.state = HealthState::Ready;
    round.health.awaited.clear();
    round.health.prefixes = vec![
        prefix("192.168.0.1/32", HealthState::Ready, "announced"),
        prefix("2001:db8::80/128", HealthState::Ready, "announced"),
    ];
    round.incidents.incidents = vec![
        incident(12, 2, IncidentState::Open, 0),
        incident(11, 4000, IncidentState::Closed, 2),
        incident(10, 90_000, IncidentState::Closed, 0),
    ];
    round
}

/// With sessions, those of IPv6 as long as can be.
fn with_sessions(mut round: Round) -> Round {
    let sessions = vec![
        session("20.1.1.1:1234-192.168.0.1:80", "established", None, 61_000),
        session("220.101.231.121:65535-192.168.100.200:65535", "redirected", Some("10.0.0.2"), 30),
        session(
            "[2001:db8:1234:5678:9abc:def0:1234:5678]:65535-[2001:db8:fedc:ba98:7654:3210:fedc:ba98]:65535",
            "client_closed",
            None,
            312_000,
        ),
        session(
            "[2001:db8::1]:4242-[2001:db8::80]:443",
            "redirected",
            Some("2001:db8:1234:5678:9abc:def0:1234:9999"),
            4,
        ),
    ];
    round.sessions = Some(SessionsReply { sessions, total: 41_288, truncated: true });
    round
}

/// Names and texts as long as they get, and all that can be wrong.
fn troubled(seconds: u64) -> Round {
    let mut round = busy(seconds);
    round.stats.daemon.version = "0.1.0-rc.1+long".to_owned();
    round.stats.daemon.locator = "2001:db8:1234:5678:9abc:def0:1234:5678".parse().unwrap();
    round.peers.peers = vec![
        peer("2001:db8:1234:5678:9abc:def0:1234:9999", "alive", 1),
        peer("2001:db8:1234:5678:9abc:def0:1234:5679", "away", 22),
    ];
    round.stats.ports[0].link_up = false;
    round.stats.ports[0].rx_missed = 99 * seconds;
    round.stats.reload =
        ReloadStats { counters: Counters::new(), gauges: counters(&[("unconfirmed_ms", 43_000)]) };
    round.stats.table.insert("local".to_owned(), 999_912);
    let health = &mut round.health;
    health.state = HealthState::Draining;
    health.prefixes[0].route = "graceful_shutdown".to_owned();
    health.prefixes[0].because = vec!["[2001:db8::80]:443: no connection within 1s".to_owned()];
    health.drain = Some(DrainReport {
        mode: DrainMode::GracefulShutdown,
        since_ms: 1000,
        timeout_ms: 600_000,
        persist: false,
    });
    health.announcer.trouble = Some("vtysh: exit status 1: % Unknown command".to_owned());
    round
}

fn screen(rounds: impl IntoIterator<Item = Round>) -> Screen {
    let mut screen = Screen::new(Path::new("/run/holdfast/holdfastd.sock"));
    for round in rounds {
        screen.take(Ok(round));
    }
    screen
}

fn press(screen: &mut Screen, keys: &str) {
    for key in keys.chars() {
        let key = match key {
            '\t' => Key::Next,
            '\n' => Key::Enter,
            '\u{1b}' => Key::Escape,
            '\u{8}' => Key::Backspace,
            typed => Key::Char(typed),
        };
        assert!(!screen.press(key), "{key:?} ends it");
    }
}

/// What is drawn 5 s after the first round, as a terminal shows it.
fn drawn(screen: &Screen, width: u16, height: u16) -> String {
    let now = at(NOW_US + 6_000_000);
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| render(screen, now, frame.area(), frame.buffer_mut())).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    let lines = (0..height).map(row);
    let text: String = lines.map(|line| line.trim_end().to_owned() + "\n").collect();
    assert_eq!(frame(screen, now, width, height), text, "--once shows the same");
    text
}

/// Compares with the file of this name.
fn expect(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/top/{name}.txt"));
    if std::env::var_os("HOLDFAST_UPDATE_FRAMES").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} is:\n{text}", path.display());
}

#[test]
fn all_is_on_one_screen() {
    let screen = screen([busy(0), busy(1)]);
    let text = drawn(&screen, 80, 24);
    expect("overview-80x24", &text);
    assert!(GUIDE.contains(&format!("top --once\n{text}```")), "the guide shows it");
    expect("overview-120x40", &drawn(&screen, 120, 40));
    expect("overview-60x15", &drawn(&screen, 60, 15));
}

#[test]
fn a_small_terminal_is_told_how_large_it_must_be() {
    let screen = screen([busy(0)]);
    for (width, height) in [(49, 24), (80, 11), (20, 5), (1, 1)] {
        let text = drawn(&screen, width, height);
        assert!(!text.contains("PACKETS"), "{text}");
    }
    let text = drawn(&screen, 49, 11);
    assert!(text.contains("50 columns and 12 lines are needed"), "{text}");
    assert!(drawn(&screen, 50, 12).contains("PACKETS/S"));
}

#[test]
fn without_figures_there_are_none() {
    expect("fresh-80x24", &drawn(&screen([fresh()]), 80, 24));
    expect("asking-80x24", &drawn(&screen([]), 80, 24));
}

#[test]
fn a_daemon_that_does_not_answer_is_told_of() {
    let trouble = "cannot reach holdfastd at /run/holdfast/holdfastd.sock: No such file or directory \
                   (os error 2)\nIs holdfastd running on this server? If its node.control_socket is \
                   another path, give that with --socket.";
    let mut never = screen([]);
    never.take(Err(trouble.to_owned()));
    expect("never-answered-80x24", &drawn(&never, 80, 24));

    let mut gone = screen([busy(0), busy(1)]);
    gone.take(Err(trouble.to_owned()));
    let text = drawn(&gone, 80, 24);
    expect("gone-80x24", &text);
    // It is back, as another process.
    let mut again = busy(0);
    again.stats.daemon.pid += 1;
    gone.take(Ok(again));
    let text = drawn(&gone, 80, 24);
    assert!(!text.contains("AS IT WAS") && text.contains("PACKETS/S  - in"), "{text}");
}

#[test]
fn long_names_and_all_troubles_fit() {
    let screen = screen([troubled(0), troubled(1)]);
    expect("troubled-80x24", &drawn(&screen, 80, 24));
    expect("troubled-120x40", &drawn(&screen, 120, 40));
    expect("troubled-60x15", &drawn(&screen, 60, 15));
}

#[test]
fn sessions_are_listed_with_the_focus_and_long_flows_give_way() {
    let mut screen = screen([busy(0), with_sessions(busy(1))]);
    assert!(!screen.wants_sessions());
    press(&mut screen, "\t\t");
    assert!(screen.wants_sessions() && screen.focus == Subject::Sessions);
    expect("sessions-80x24", &drawn(&screen, 80, 24));
    press(&mut screen, "\n");
    expect("sessions-alone-80x24", &drawn(&screen, 80, 24));
    expect("sessions-alone-120x40", &drawn(&screen, 120, 40));
    press(&mut screen, "/REDIRECTED");
    expect("sessions-filter-80x24", &drawn(&screen, 80, 24));
    press(&mut screen, "\n");
    let text = drawn(&screen, 80, 24);
    assert!(
        text.contains("1-2 of 2, 41288 in all") && text.contains("/ filter: REDIRECTED"),
        "{text}"
    );
}

#[test]
fn keys_are_explained() {
    let mut screen = screen([busy(0), busy(1)]);
    press(&mut screen, "?");
    expect("help-80x24", &drawn(&screen, 80, 24));
    expect("help-60x15", &drawn(&screen, 60, 15));
    press(&mut screen, "s");
    assert!(!drawn(&screen, 80, 24).contains("any key"), "and that key does nothing else");
    assert!(drawn(&screen, 80, 24).contains("WORKER▲"));
}

/// The first cells of a table's rows, in their order.
fn firsts(screen: &Screen) -> Vec<String> {
    let text = drawn(screen, 120, 24);
    let name = ["WORKER", "PEER", "SESSION", "INCIDENT"][screen.focus as usize];
    let table = text.lines().skip_while(|line| !line.starts_with(name) || line.contains(" local"));
    let rows = table.skip(1).take_while(|line| !line.is_empty() && !line.starts_with("q quit"));
    rows.map(|line| line.split("  ").next().unwrap().to_owned()).collect()
}

#[test]
fn tables_are_sorted_by_what_the_columns_mean() {
    let mut screen = screen([busy(0), with_sessions(busy(1))]);
    press(&mut screen, "\n");
    assert_eq!(firsts(&screen), ["core 2", "core 3", "core 10"], "as numbers");
    press(&mut screen, "s");
    assert_eq!(firsts(&screen), ["core 10", "core 2", "core 3"], "by BUSY");
    press(&mut screen, "r");
    assert_eq!(firsts(&screen), ["core 3", "core 2", "core 10"]);
    assert!(drawn(&screen, 80, 24).contains("BUSY▼"));
    // Eight columns later it is the first again.
    press(&mut screen, "sssssssr");
    assert_eq!(firsts(&screen), ["core 2", "core 3", "core 10"]);

    press(&mut screen, "\t");
    assert_eq!(firsts(&screen), ["10.0.0.2", "10.0.0.3", "10.0.0.10"], "as addresses");
    press(&mut screen, "ssss");
    assert_eq!(firsts(&screen), ["10.0.0.10", "10.0.0.2", "10.0.0.3"], "by LAST SEEN");

    press(&mut screen, "\t");
    assert!(firsts(&screen)[0].starts_with("[2001:db8::1]:4242"), "the least idle one first");
    press(&mut screen, "\t");
    assert_eq!(firsts(&screen), ["12 open", "11", "10"], "the newest first");
    press(&mut screen, "\t");
    assert_eq!(screen.focus, Subject::Workers);
    screen.press(Key::Previous);
    assert_eq!(screen.focus, Subject::Incidents);
}

#[test]
fn a_filter_is_typed_kept_and_dropped() {
    let mut screen = screen([busy(0), busy(1)]);
    press(&mut screen, "/dq\u{8}ead");
    assert!(screen.is_typing && screen.filter == "dead", "q is a letter now");
    press(&mut screen, "\n");
    assert!(!screen.is_typing);
    let text = drawn(&screen, 80, 24);
    assert!(text.contains("10.0.0.3") && !text.contains("10.0.0.10"), "{text}");
    assert!(!text.contains("core 2"), "it is for all tables");
    press(&mut screen, "\u{1b}");
    assert!(drawn(&screen, 80, 24).contains("10.0.0.10"));
    press(&mut screen, "/x\u{1b}");
    assert!(screen.filter.is_empty() && !screen.is_typing);
    press(&mut screen, &format!("/{}", "x".repeat(100)));
    assert_eq!(screen.filter.len(), 64);
    assert!(screen.press(Key::Quit), "but this ends it at any time");
}

#[test]
fn a_pause_is_seen() {
    let mut screen = screen([busy(0), busy(1)]);
    press(&mut screen, " ");
    assert!(screen.is_paused);
    let text = drawn(&screen, 80, 24);
    assert!(text.lines().next().unwrap().ends_with("PAUSED  14:03:08 UTC"), "{text}");
    assert!(text.contains("space go on"));
    press(&mut screen, "p");
    assert!(!screen.is_paused);
    assert!(screen.press(Key::Char('q')));
}

#[test]
fn rows_that_do_not_fit_are_reached() {
    let mut round = busy(1);
    let peers = (0..200).map(|n| peer(&format!("10.0.1.{n}"), "alive", n));
    round.peers.peers = peers.collect();
    let mut screen = screen([round]);
    press(&mut screen, "\t");
    let text = drawn(&screen, 80, 24);
    assert!(text.contains("PEER▲ 1-") && text.contains(" of 200"), "{text}");
    assert!(text.contains("core 3") && text.contains("11 "), "the other tables keep theirs");
    press(&mut screen, "\n");
    screen.press(Key::Scroll(10));
    screen.press(Key::Scroll(-1));
    assert_eq!(firsts(&screen)[0], "10.0.1.9");
    screen.press(Key::End);
    assert_eq!(firsts(&screen).last().unwrap(), "10.0.1.199");
    screen.press(Key::Scroll(-1));
    screen.press(Key::Scroll(isize::MAX));
    screen.press(Key::Home);
    screen.press(Key::Scroll(isize::MIN));
    assert_eq!(firsts(&screen)[0], "10.0.1.0");
}

#[test]
fn rates_are_those_between_two_rounds_of_one_daemon() {
    let mut rounds = Rounds::default();
    let rate =
        |rounds: &Rounds| rounds.per_second(|stats| stats.totals.get("session_opened").copied());
    assert!(rate(&rounds).is_none());
    rounds.push(busy(0));
    assert!(rate(&rounds).is_none());
    rounds.push(busy(4));
    assert_eq!(rate(&rounds), Some(12.0));
    assert_eq!(rounds.per_second(|stats| stats.totals.get("unheard_of").copied()), None);
    rounds.push(busy(4));
    assert_eq!(rate(&rounds), None, "no time has passed");
    let mut other = busy(9);
    other.stats.daemon.pid += 1;
    rounds.push(other);
    assert_eq!(rate(&rounds), None);
    assert_eq!(
        rounds.recent("lookup_time_us").map(|times| times.p50),
        Some(312),
        "since its start"
    );
}

#[test]
fn times_are_those_of_the_last_rounds() {
    let round = |seconds: u64, buckets: &[(u64, u64)]| {
        let mut round = busy(seconds);
        let times = distribution(buckets);
        round.stats.dht.distributions.insert("lookup_time_us".to_owned(), times);
        round
    };
    let mut rounds = Rounds::default();
    let recent = |rounds: &Rounds| rounds.recent("lookup_time_us");
    rounds.push(round(0, &[(10, 1000), (500, 1)]));
    assert_eq!(recent(&rounds), Some(Recent { p50: 10, p99: 10 }));
    rounds.push(round(1, &[(10, 1000), (300, 90), (500, 11)]));
    assert_eq!(recent(&rounds), Some(Recent { p50: 300, p99: 500 }));
    for seconds in 2..12 {
        rounds.push(round(seconds, &[(10, 1000), (300, 90), (500, 11)]));
    }
    assert_eq!(recent(&rounds), None, "none came in the last ten");
    assert_eq!(rounds.recent("unheard_of"), None);
}

/// A control socket that answers what is asked as a daemon at work does.
struct Daemon {
    socket: Option<ControlSocket>,
    path: PathBuf,
    asked: Arc<Mutex<Vec<Request>>>,
    counters: Arc<ControlCounters>,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let counters = Arc::default();
        let mut daemon =
            Daemon { socket: None, path, asked: Arc::default(), counters, _directory: directory };
        daemon.open();
        daemon
    }

    fn open(&mut self) {
        let asked = Arc::clone(&self.asked);
        let began = Instant::now();
        let handler = move |request: Request, _: &mut Stream<'_>| {
            asked.lock().unwrap().push(request.clone());
            let round = with_sessions(busy(1 + began.elapsed().as_secs()));
            Ok(match request {
                Request::ShowStats {} => Reply::Stats(Box::new(round.stats)),
                Request::ShowWorkers {} => Reply::Workers(round.workers),
                Request::ShowPeers {} => Reply::Peers(round.peers),
                Request::ShowHealth {} => Reply::Health(Box::new(round.health)),
                Request::IncidentsList { .. } => Reply::Incidents(round.incidents),
                Request::SessionsList { .. } => Reply::Sessions(round.sessions.unwrap()),
                _ => return Err(ProtocolError::new(ErrorCode::Unavailable, "not asked by top")),
            })
        };
        self.counters = Arc::default();
        let counters = Arc::clone(&self.counters);
        let permissions = Permissions::default();
        let socket = ControlSocket::open(&self.path, permissions, counters, Arc::new(handler));
        self.socket = Some(socket.unwrap());
    }

    fn clients(&self) -> u64 {
        self.counters.stats().counters["clients"]
    }

    fn sessions_asked(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|request| matches!(request, Request::SessionsList { .. })).count()
    }

    fn top(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
        command.arg("--socket").arg(&self.path).arg("top").args(arguments.split_whitespace());
        command
    }
}

#[test]
fn rounds_are_asked_for_over_one_connection_which_is_made_anew_when_it_is_lost() {
    let mut daemon = Daemon::start();
    let mut connection = Connection::new(&daemon.path);
    for _ in 0..3 {
        let round = Round::ask(&mut connection, false).unwrap();
        assert!(round.sessions.is_none() && round.peers.peers.len() == 3);
    }
    assert_eq!((daemon.clients(), daemon.sessions_asked()), (1, 0));
    assert!(Round::ask(&mut connection, true).unwrap().sessions.is_some());
    daemon.socket.take();
    let error = Round::ask(&mut connection, false).unwrap_err().to_string();
    assert!(error.starts_with("cannot reach holdfastd at "), "{error}");
    daemon.open();
    Round::ask(&mut connection, false).unwrap();
    // A refusal does not end it.
    assert!(
        connection.ask(&Request::ShowVersion {}).unwrap_err().to_string().contains("not asked")
    );
    Round::ask(&mut connection, false).unwrap();
    assert_eq!(daemon.clients(), 1);
}

#[test]
fn one_frame_goes_to_a_file() {
    let daemon = Daemon::start();
    let output = daemon.top("--once").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 24);
    assert!(text.lines().all(|line| line.chars().count() <= 80) && !text.contains('\u{1b}'));
    assert!(text.contains("12.4k in") || text.contains("k in  "), "{text}");
    assert_eq!((daemon.clients(), daemon.sessions_asked()), (1, 0));

    let output =
        daemon.top("--once --size 120x30 --table sessions --filter 220.").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 30);
    assert!(text.contains("220.101.231.121:65535-192.168.100.200:65535"), "{text}");
    assert!(!text.contains("20.1.1.1:1234") && !text.contains("WORKER"), "{text}");
    assert_eq!(daemon.sessions_asked(), 2);
}

fn error(output: &Output) -> String {
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_it_cannot_do_is_said() {
    let mut daemon = Daemon::start();
    let rows = [
        ("", "holdfastctl: top needs a terminal; --once prints one frame without one\n"),
        (
            "--json --once",
            "holdfastctl: top is for people: `show stats` and the others have --json\n",
        ),
        ("--once --size 80", "expected columns and lines from 1 to 500 each, as in 80x24"),
        ("--once --size 0x24", "expected columns and lines from 1 to 500 each, as in 80x24"),
        ("--once --size 80x501", "expected columns and lines from 1 to 500 each, as in 80x24"),
        ("--size 80x24", "--once"),
        ("--table dht", "expected workers, peers, sessions or incidents"),
        ("--interval 1s", "--interval"),
    ];
    for (arguments, message) in rows {
        let output = daemon.top(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(error(&output).contains(message), "{arguments}: {}", error(&output));
    }
    daemon.socket.take();
    let output = daemon.top("--once").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(error(&output).contains("cannot reach holdfastd at "));
}

/// The program on a terminal of its own.
struct Live {
    process: Child,
    master: File,
    /// What is on it.
    screen: Arc<Mutex<vt100::Parser>>,
    /// The terminal's other end, and how it was.
    slave: File,
    before: Termios,
}

impl Live {
    fn start(daemon: &Daemon, arguments: &str) -> Live {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        let before = tcgetattr(&slave).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        // Its controlling terminal is that one, whatever this test has.
        let top = daemon.top(arguments);
        let process = Command::new("setsid")
            .arg("--ctty")
            .arg(top.get_program())
            .args(top.get_args())
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(24, 80, 0)));
        let (mut output, seen) = (master.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                seen.lock().unwrap().process(&bytes[..length]);
            }
        });
        Live { process, master, screen, slave, before }
    }

    /// Waits until this is on it.
    fn until(&self, text: &str) {
        self.until_screen(text, |screen| screen.contents().contains(text));
    }

    fn until_screen(&self, what: &str, is_so: impl Fn(&vt100::Screen) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(self.screen.lock().unwrap().screen()) {
            let seen = self.screen.lock().unwrap().screen().contents();
            assert!(Instant::now() < end, "not so: {what}:\n{seen}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// It ends well, and the terminal is as it was.
    fn ends(mut self) {
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}");
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(after, self.before);
        self.until_screen("it is as it was", |screen| {
            !screen.alternate_screen() && !screen.hide_cursor() && screen.contents().is_empty()
        });
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn on_a_terminal_keys_do_what_they_say_and_q_leaves_it_as_it_was() {
    let mut daemon = Daemon::start();
    let mut live = Live::start(&daemon, "");
    live.until("PACKETS/S");
    assert_ne!(tcgetattr(&live.slave).unwrap(), live.before, "it takes each key");
    live.press("?");
    live.until("any key closes this");
    live.press(" ");
    live.until_screen("all but the help", |screen| {
        let text = screen.contents();
        text.contains("core 10") && !text.contains("any key") && screen.alternate_screen()
    });
    assert!(live.screen.lock().unwrap().screen().contents().starts_with("holdfastd 0.1.0 at"));
    live.press("\t\t");
    live.until("[2001:db8::1]:4242");
    assert!(daemon.sessions_asked() > 0);
    live.press("\u{1b}[Z");
    live.until("only with the focus");
    // The arrow keys' codes begin with that of escape: here is one alone.
    live.press("/dead\r");
    live.until("/ filter: dead");
    live.press("\u{1b}");
    live.until("core 3");
    assert_eq!(daemon.clients(), 1);

    daemon.socket.take();
    live.until("AS IT WAS");
    daemon.open();
    let end = Instant::now() + PATIENCE;
    while daemon.clients() == 0 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
    live.press("p");
    live.until("PAUSED");
    live.press("q");
    live.ends();
}

#[test]
fn signals_and_the_interrupt_key_leave_the_terminal_as_it_was() {
    let daemon = Daemon::start();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let live = Live::start(&daemon, "--table peers");
        live.until("10.0.0.10");
        kill(Pid::from_raw(live.process.id().try_into().unwrap()), signal).unwrap();
        live.ends();
    }
    let mut live = Live::start(&daemon, "");
    live.until("core 2");
    live.press("/q\u{3}");
    live.ends();
}

#[test]
fn a_daemon_that_hangs_keeps_nobody_from_leaving() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut daemon = Daemon::start();
    daemon.path = path;
    let mut live = Live::start(&daemon, "");
    live.until("asking");
    live.press("q");
    live.ends();
}
