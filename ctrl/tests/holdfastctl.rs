//! The real holdfastctl against a real socket whose answers are known.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use holdfast::protocol::{
    ControlStats, Counters, DhtStats, Distribution, ErrorCode, HealthStats, JournalEntry,
    KernelCheckStats, LoadPeriod, LookupOutcome, LookupReply, LookupReport, LookupsReply, Peer,
    PeersReply, PortStats, ProtocolError, ReplicaAnswer, Reply, Request, SessionEntry, SessionKind,
    SessionsReply, StatsReply, VersionReply, WorkerLoad, WorkerStats, WorkersReply,
};
use holdfast::socket::{ControlSocket, Handler, Permissions, Stream};
use holdfast_net::FlowKey;
use serde_json::Value;

struct Daemon {
    path: PathBuf,
    asked: Arc<Mutex<Vec<Request>>>,
    _socket: ControlSocket,
    _directory: tempfile::TempDir,
}

/// A daemon that answers every request with `answer`.
fn daemon(answer: Result<Reply, ProtocolError>) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let handler: Handler = Arc::new(move |request, _: &mut Stream<'_>| {
        log.lock().unwrap().push(request);
        answer.clone()
    });
    let socket =
        ControlSocket::open(&path, Permissions::default(), Arc::default(), handler).unwrap();
    Daemon { path, asked, _socket: socket, _directory: directory }
}

fn command(socket: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
    command.arg("--socket").arg(socket).args(arguments.split_whitespace());
    command
}

fn run(daemon: &Daemon, arguments: &str) -> Output {
    command(&daemon.path, arguments).output().unwrap()
}

/// What it prints for people when all is well.
fn shown(answer: Reply, arguments: &str) -> String {
    let output = run(&daemon(Ok(answer)), arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

fn flow() -> FlowKey {
    "20.1.1.1:1234-192.168.0.1:80".parse().unwrap()
}

fn version() -> VersionReply {
    VersionReply {
        version: "0.1.0".to_owned(),
        dpdk_version: "DPDK 22.11.7".to_owned(),
        locator: "10.0.0.1".parse().unwrap(),
        pid: 77,
        uptime_ms: 11_520_000,
    }
}

fn counters(pairs: &[(&str, u64)]) -> Counters {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

fn session(kind: SessionKind) -> SessionEntry {
    let local = kind == SessionKind::Local;
    SessionEntry {
        flow: flow(),
        kind,
        state: if local { "established" } else { "redirected" }.to_owned(),
        owner: if local { "10.0.0.1" } else { "10.0.0.2" }.parse().unwrap(),
        version: local.then_some(1_470_182_400_000_000),
        idle_ms: 61_000,
    }
}

fn stats(workers: u32) -> StatsReply {
    let measured = Distribution {
        count: 15,
        min: 90,
        p50: 312,
        p90: 1_500,
        p99: 2_000_000,
        max: 2_000_000,
        buckets: vec![(90, 1), (312, 14)],
    };
    let worker = |core| WorkerStats { core, counters: counters(&[("hits", 21), ("parked", 0)]) };
    StatsReply {
        daemon: version(),
        workers: (0..workers).map(worker).collect(),
        totals: counters(&[("hits", 21 * u64::from(workers)), ("parked", 0)]),
        ports: vec![PortStats {
            role: "uplink".to_owned(),
            name: "net_af_xdp0".to_owned(),
            driver: "net_af_xdp".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            link_up: false,
            mtu: 1500,
            rx_packets: 5,
            ..PortStats::default()
        }],
        table: counters(&[("capacity", 1000), ("local", 0), ("redirect", 3)]),
        kernel_check: KernelCheckStats {
            counters: counters(&[("checks", 7), ("ended", 0)]),
            gauges: counters(&[("held", 0)]),
        },
        health: HealthStats {
            counters: counters(&[("transitions", 3), ("announcer_failures", 0)]),
            gauges: counters(&[("sessions_left", 412)]),
            checks: Vec::new(),
        },
        dht: DhtStats {
            counters: counters(&[("lookups", 9), ("stores_refused", 0)]),
            gauges: counters(&[("peers", 3), ("records", 0)]),
            distributions: BTreeMap::from([
                ("setting_time_us".to_owned(), measured),
                ("lookup_time_us".to_owned(), Distribution::default()),
            ]),
        },
        control: ControlStats {
            counters: counters(&[("clients", 12), ("forbidden", 0)]),
            gauges: counters(&[("clients", 1)]),
            requests: counters(&[("show_peers", 4), ("lookup", 0)]),
        },
    }
}

#[test]
fn shows_stats() {
    let text = shown(Reply::Stats(Box::new(stats(1))), "show stats");
    let expected = "\
holdfastd    0.1.0 at 10.0.0.1, up 3 h 12 min, process 77, DPDK 22.11.7

PORTS
ROLE    NAME         DRIVER      MAC                LINK   MTU  RX PACKETS  MISSED  ERRORS  NO MBUF  TX PACKETS  ERRORS
uplink  net_af_xdp0  net_af_xdp  02:00:00:00:00:01  DOWN  1500           5       0       0        0           0       0

SESSION TABLE
capacity  1000
local        0
redirect     3

KERNEL CHECK
held    0
checks  7

HEALTH
sessions_left  412
transitions      3

WORKERS
hits  21

DHT
peers    3
records  0
lookups  9

CONTROL SOCKET
clients now   1
clients      12
show_peers  4

DISTRIBUTIONS
              COUNT    MIN     P50     P90    P99    MAX
lookup_time       0      -       -       -      -      -
setting_time     15  90 µs  312 µs  1.5 ms  2.0 s  2.0 s

6 counters are 0 and not shown; --all shows them.
";
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn shows_each_worker_and_all_counters_when_asked() {
    let text = shown(Reply::Stats(Box::new(stats(2))), "show stats --all");
    let workers = "\
WORKERS
        TOTAL  CORE 0  CORE 1
hits       42      21      21
parked      0       0       0
";
    assert!(text.contains(workers), "{text}");
    assert!(text.contains("stores_refused"), "{text}");
    assert!(!text.contains("not shown"), "{text}");
}

/// What a busy worker, an idle one and one that has not had a turn did in this time.
fn load(duration_us: u64) -> LoadPeriod {
    let busy = WorkerLoad {
        core: 2,
        busy_percent: Some(100.0),
        packets_per_burst: Some(31.96),
        cycles_per_packet: Some(151.0),
        uplink_packets_per_s: Some(14_880_952),
        host_packets_per_s: Some(880_000),
        drops: 40,
        drops_per_s: Some(39),
        turns_per_s: Some(493_000),
    };
    let idle = WorkerLoad {
        core: 3,
        busy_percent: Some(0.0),
        uplink_packets_per_s: Some(0),
        host_packets_per_s: Some(0),
        drops_per_s: Some(0),
        turns_per_s: Some(9_000_000),
        ..WorkerLoad::default()
    };
    let none = WorkerLoad { core: 11, ..WorkerLoad::default() };
    LoadPeriod { duration_us, workers: vec![busy, idle, none] }
}

fn workers() -> WorkersReply {
    WorkersReply {
        tsc_hz: 2_499_998_000,
        table_page_bytes: 2 << 20,
        last_second: Some(load(1_020_000)),
        since_start: load(11_520_000_000),
    }
}

#[test]
fn shows_workers() {
    let daemon = daemon(Ok(Reply::Workers(workers())));
    let output = run(&daemon, "show workers");
    let table = "\
CORE     BUSY  PACKETS/BURST  CYCLES/PACKET  UPLINK PACKETS/S  HOST PACKETS/S  DROPS  DROPS/S  TURNS/S
   2  100.0 %           32.0          151.0          14880952          880000     40       39   493000
   3    0.0 %              -              -                 0               0      0        0  9000000
  11        -              -              -                 -               -      0        -        -
";
    let expected = format!(
        "LAST SECOND (1.0 s)\n{table}\nSINCE THE START (3 h 12 min)\n{table}\n\
         time stamp counter 2.500 GHz, session table on pages of 2 MiB\n"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, expected, "\n{text}");
    assert_eq!(*daemon.asked.lock().unwrap(), [Request::ShowWorkers {}]);
}

#[test]
fn shows_workers_of_a_daemon_that_has_just_started() {
    let reply = WorkersReply { last_second: None, ..workers() };
    let text = shown(Reply::Workers(reply), "show workers");
    let head = "LAST SECOND\nnot measured yet\n\nSINCE THE START (3 h 12 min)\nCORE  ";
    assert!(text.starts_with(head), "{text}");
}

#[test]
fn shows_workers_of_a_daemon_that_counts_without_measure() {
    let most = WorkerLoad {
        core: u32::MAX,
        busy_percent: Some(f64::MAX),
        packets_per_burst: Some(-0.0),
        cycles_per_packet: Some(-1e300),
        uplink_packets_per_s: Some(u64::MAX),
        host_packets_per_s: Some(u64::MAX),
        drops: u64::MAX,
        drops_per_s: Some(u64::MAX),
        turns_per_s: Some(u64::MAX),
    };
    let reply = WorkersReply {
        tsc_hz: u64::MAX,
        table_page_bytes: u64::MAX,
        last_second: Some(LoadPeriod::default()),
        since_start: LoadPeriod { duration_us: u64::MAX, workers: vec![most] },
    };
    let text = shown(Reply::Workers(reply), "show workers");
    assert!(text.contains("18446744073709551615"), "{text}");
}

#[test]
fn figures_of_workers_are_numbers_in_json() {
    let text = shown(Reply::Workers(workers()), "show workers --json");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["last_second"]["workers"][0]["busy_percent"], 100.0);
    assert_eq!(value["last_second"]["workers"][1]["packets_per_burst"], Value::Null);
    assert_eq!(serde_json::from_value::<WorkersReply>(value).unwrap(), workers());
}

#[test]
fn shows_sessions_and_passes_filters_on() {
    let reply = SessionsReply {
        sessions: vec![session(SessionKind::Local), session(SessionKind::Redirect)],
        total: 5234,
        truncated: true,
    };
    let daemon = daemon(Ok(Reply::Sessions(reply)));
    let arguments = "show sessions --kind redirect --state established --client 20.1.0.0/16 \
                     --service 192.168.0.1:80 --owner 10.0.0.2 --limit 2";
    let output = run(&daemon, arguments);
    let expected = "\
FLOW                          KIND      STATE        OWNER          IDLE           VERSION
20.1.1.1:1234-192.168.0.1:80  local     established  10.0.0.1  1 min 1 s  1470182400000000
20.1.1.1:1234-192.168.0.1:80  redirect  redirected   10.0.0.2  1 min 1 s                 -

2 of 5234 sessions; --limit shows more
";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    let asked = daemon.asked.lock().unwrap();
    let expected = Request::ShowSessions {
        kind: Some(SessionKind::Redirect),
        state: Some("established".to_owned()),
        client: Some("20.1.0.0/16".parse().unwrap()),
        service: Some("192.168.0.1:80".parse().unwrap()),
        owner: Some("10.0.0.2".parse().unwrap()),
        limit: 2.try_into().unwrap(),
    };
    assert_eq!(*asked, [expected]);
}

#[test]
fn shows_peers() {
    let peer = |last: u8, state: &str| {
        let present = state == "alive" || state == "suspect";
        Peer {
            id: "0123456789abcdef0123456789abcdef".to_owned(),
            locator: [10, 0, 0, last].into(),
            address: ([10, 0, 0, last], 7000).into(),
            state: state.to_owned(),
            srtt_us: present.then_some(120),
            last_seen_ms: present.then_some(40),
            absent_ms: (!present).then_some(12_500),
            missed: present.then_some(u64::from(state == "suspect")),
            started_unix_us: Some(1_470_182_400_123_456),
            life: present.then_some(last.into()),
        }
    };
    let peers = vec![peer(2, "alive"), peer(3, "suspect"), peer(4, "away"), peer(13, "dead")];
    let expected = "\
LOCATOR    STATE       RTT  MISSED    LAST SEEN  STARTED (UTC)             LIFE  ADDRESS         ID
10.0.0.2   alive    120 µs       0  40.0 ms ago  2016-08-03T00:00:00.123Z     2  10.0.0.2:7000   0123456789abcdef0123456789abcdef
10.0.0.3   suspect  120 µs       1  40.0 ms ago  2016-08-03T00:00:00.123Z     3  10.0.0.3:7000   0123456789abcdef0123456789abcdef
10.0.0.4   away          -       -  gone 12.5 s  2016-08-03T00:00:00.123Z     -  10.0.0.4:7000   0123456789abcdef0123456789abcdef
10.0.0.13  dead          -       -  gone 12.5 s  2016-08-03T00:00:00.123Z     -  10.0.0.13:7000  0123456789abcdef0123456789abcdef

4 peers, 1 suspect, 1 away, 1 dead
";
    assert_eq!(shown(Reply::Peers(PeersReply { peers }), "show peers"), expected);
}

#[test]
fn shows_lookups() {
    let entry = |outcome, owner| JournalEntry {
        flow: flow(),
        asked_at_unix_us: 1_470_182_400_123_456,
        duration_us: 4_240,
        outcome,
        owner,
    };
    let found = entry(LookupOutcome::Owner, Some("10.0.0.2".parse().unwrap()));
    let lookups = vec![found, entry(LookupOutcome::TimedOut, None)];
    let expected = "\
ASKED (UTC)                 TOOK  OUTCOME    OWNER     FLOW
2016-08-03T00:00:00.123Z  4.2 ms  owner      10.0.0.2  20.1.1.1:1234-192.168.0.1:80
2016-08-03T00:00:00.123Z  4.2 ms  timed_out  -         20.1.1.1:1234-192.168.0.1:80

2 lookups, the newest first
";
    assert_eq!(shown(Reply::Lookups(LookupsReply { lookups }), "show lookups"), expected);
}

#[test]
fn looks_a_flow_up() {
    let replica = |last: u8, answer: &str, found: bool| ReplicaAnswer {
        locator: [10, 0, 0, last].into(),
        answer: answer.to_owned(),
        owner: found.then(|| [10, 0, 0, 2].into()),
        version: found.then_some(7),
        rtt_us: found.then_some(99),
    };
    let reply = LookupReply {
        flow: flow(),
        table: Some(session(SessionKind::Redirect)),
        dht: LookupReport {
            outcome: LookupOutcome::Owner,
            owner: Some([10, 0, 0, 2].into()),
            version: Some(7),
            duration_us: 312,
            replicas: vec![replica(3, "owner", true), replica(4, "no_answer", false)],
        },
    };
    let expected = "\
flow   20.1.1.1:1234-192.168.0.1:80
table  redirect to 10.0.0.2, idle for 1 min 1 s
dht    owner 10.0.0.2, version 7; took 312 µs

ASKED     ANSWER     OWNER     VERSION    RTT
10.0.0.3  owner      10.0.0.2        7  99 µs
10.0.0.4  no_answer  -               -      -
";
    let arguments = "lookup 20.1.1.1:1234-192.168.0.1:80";
    assert_eq!(shown(Reply::Lookup(reply.clone()), arguments), expected);

    let local = LookupReply { table: Some(session(SessionKind::Local)), ..reply.clone() };
    let expected = "table  local, established, version 1470182400000000, idle for 1 min 1 s\n";
    let text = shown(Reply::Lookup(local), arguments);
    assert!(text.contains(expected), "{text}");

    let outcome = LookupOutcome::NotFound;
    let dht = LookupReport { outcome, owner: None, version: None, ..reply.dht.clone() };
    let text = shown(Reply::Lookup(LookupReply { table: None, dht, ..reply }), arguments);
    assert!(text.contains("table  no entry\ndht    nobody owns it; took 312 µs\n"), "{text}");
}

#[test]
fn shows_versions() {
    let expected = format!(
        "holdfastctl  {}\nholdfastd    0.1.0 at 10.0.0.1, up 3 h 12 min, process 77, DPDK 22.11.7\n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(shown(Reply::Version(version()), "show version"), expected);
}

#[test]
fn json_is_the_ok_object_on_one_line() {
    let text = shown(Reply::Stats(Box::new(stats(1))), "show stats --json");
    assert_eq!(text.matches('\n').count(), 1);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["locator"], "10.0.0.1");
    assert_eq!(value["dht"]["distributions"]["setting_time_us"]["buckets"][1][1], 14);
    let back: StatsReply = serde_json::from_value(value).unwrap();
    assert_eq!(back, stats(1));
}

#[test]
fn a_refusal_ends_with_1() {
    let refusal = ProtocolError::new(ErrorCode::Unavailable, "the DHT core is not up");
    let output = run(&daemon(Err(refusal)), "show peers");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error, "holdfastctl: the DHT core is not up (unavailable)\n");
    assert!(output.stdout.is_empty());
}

#[test]
fn an_answer_of_another_kind_ends_with_1() {
    let output = run(&daemon(Ok(Reply::Version(version()))), "show peers");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("is not understood: missing field `peers`"), "{error}");
}

#[test]
fn wrong_usage_ends_with_2() {
    let daemon = daemon(Ok(Reply::Version(version())));
    for arguments in [
        "",
        "show",
        "show everything",
        "show workers 1",
        "lookup",
        "lookup a-b",
        "show sessions --limit 0",
        "show sessions --limit 10001",
        "show sessions --kind both",
        "show sessions --client 20.1",
        "show sessions --service :80",
    ] {
        let output = run(&daemon, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(!output.stderr.is_empty(), "{arguments}");
    }
    assert!(daemon.asked.lock().unwrap().is_empty());
}

#[test]
fn an_unreachable_daemon_ends_with_3_and_says_what_to_check() {
    let directory = tempfile::tempdir().unwrap();
    let nothing = directory.path().join("nothing");
    let stale = directory.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for (path, advice) in [(nothing, "Is holdfastd running"), (stale, "is gone")] {
        let output = command(&path, "show version").output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(path.to_str().unwrap()) && error.contains(advice), "{error}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let sessions = vec![session(SessionKind::Local); 10_000];
    let daemon =
        daemon(Ok(Reply::Sessions(SessionsReply { sessions, total: 10_000, truncated: false })));
    let mut child = command(&daemon.path, "show sessions")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
