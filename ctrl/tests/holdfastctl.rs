//! The real holdfastctl against a real socket whose answers are known.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use holdfast::protocol::{
    AnnouncerReport, COMMANDS, Cause, CauseKind, CheckReport, ConfigChange, ConfigReply,
    ControlStats, Counters, DhtStats, Distribution, DrainMode, DrainReport, ErrorCode,
    ExplainMember, ExplainReply, ExplainStep, HealthReply, HealthState, HealthStats, Incident,
    IncidentState, IncidentStats, IncidentSummary, IncidentsReply, JournalEntry, KernelCheckStats,
    KernelHolds, LimitEntry, LimitScope, LimitsReply, LoadPeriod, LookupOutcome, LookupReply,
    LookupReport, LookupsReply, LossReason, LostSession, OwnerCount, Peer, PeersReply, PortStats,
    PrefixReport, ProtocolError, ReloadReply, ReloadStats, ReplicaAnswer, Reply, Request,
    RoutingBucket, RoutingReply, SessionChange, SessionCounts, SessionEntry, SessionEvent,
    SessionFilter, SessionKind, SessionState, SessionsCountReply, SessionsDeleteReply,
    SessionsReply, StatsReply, StreamBounds, UnconfirmedReload, Verdict, VersionReply, WorkerLoad,
    WorkerStats, WorkersReply, answer_line, request_line,
};
use holdfast::socket::{ControlSocket, Handler, Permissions, Stream};
use holdfast_net::FlowKey;
use serde_json::{Value, json};
use support::schema;

struct Daemon {
    path: PathBuf,
    asked: Arc<Mutex<Vec<Request>>>,
    _socket: ControlSocket,
    _directory: tempfile::TempDir,
}

fn open(path: &Path, handler: Handler) -> ControlSocket {
    ControlSocket::open(path, Permissions::default(), Arc::default(), handler).unwrap()
}

/// A daemon that answers every request with `answer`.
fn daemon(answer: Result<Reply, ProtocolError>) -> Daemon {
    daemon_of(move |_| answer.clone())
}

fn daemon_of(
    answer: impl Fn(&Request) -> Result<Reply, ProtocolError> + Send + Sync + 'static,
) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let handler: Handler = Arc::new(move |request, _: &mut Stream<'_>| {
        let answer = answer(&request);
        log.lock().unwrap().push(request);
        answer
    });
    let socket = open(&path, handler);
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
        published: local.then_some(true),
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
            link_downs: 2,
            lacks: vec!["no RSS".to_owned(), "no link interrupt".to_owned()],
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
        reload: ReloadStats {
            counters: counters(&[("applied", 2), ("refused", 0)]),
            gauges: counters(&[("unconfirmed_ms", 0)]),
        },
        dht: DhtStats {
            counters: counters(&[("lookups", 9), ("stores_refused", 0)]),
            gauges: counters(&[("peers", 3), ("records", 0)]),
            distributions: BTreeMap::from([
                ("setting_time_us".to_owned(), measured),
                ("lookup_time_us".to_owned(), Distribution::default()),
            ]),
        },
        incidents: IncidentStats {
            counters: counters(&[("incidents", 2), ("journal_errors", 0)]),
            sessions: SessionCounts { at_risk: 57, saved: 57, ..SessionCounts::default() },
            ..IncidentStats::default()
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
ROLE    NAME         DRIVER      MAC                LINK  DOWNS   MTU
uplink  net_af_xdp0  net_af_xdp  02:00:00:00:00:01  DOWN      2  1500

ROLE    NAME         RX PACKETS  MISSED  ERRORS  NO MBUF  TX PACKETS  ERRORS
uplink  net_af_xdp0           5       0       0        0           0       0

ROLE    LACKS
uplink  no RSS
uplink  no link interrupt

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

INCIDENTS
incidents        2
sessions_saved  57

CONTROL SOCKET
clients now   1
clients      12
show_peers  4

RELOADS
unconfirmed_ms  0
applied         2

DISTRIBUTIONS
              COUNT    MIN     P50     P90    P99    MAX
lookup_time       0      -       -       -      -      -
setting_time     15  90 µs  312 µs  1.5 ms  2.0 s  2.0 s

12 counters are 0 and not shown; --all shows them.
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
CORE     BUSY  PACKETS/BURST  CYCLES/PACKET  UPLINK PPS  HOST PPS  DROPS  DROPS/S  TURNS/S
   2  100.0 %           32.0          151.0    14880952    880000     40       39   493000
   3    0.0 %              -              -           0         0      0        0  9000000
  11        -              -              -           -         -      0        -        -
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

/// All options that choose sessions, and the filter that they make.
const FILTERS: &str = "--kind redirect --state established --client 20.1.0.0/16 \
    --client-port 1234 --service 192.168.0.1:80 --owner 10.0.0.2";

fn filter() -> SessionFilter {
    SessionFilter {
        kind: Some(SessionKind::Redirect),
        state: Some(SessionState::Established),
        client: Some("20.1.0.0/16".parse().unwrap()),
        client_port: Some(1234),
        service: Some("192.168.0.1:80".parse().unwrap()),
        owner: Some("10.0.0.2".parse().unwrap()),
        ..SessionFilter::default()
    }
}

fn idle_filter() -> SessionFilter {
    SessionFilter {
        idle_over_ms: Some(300_000),
        idle_under_ms: Some(7_200_000),
        published: Some(false),
        ..filter()
    }
}

#[test]
fn lists_sessions_and_passes_filters_on() {
    let reply = SessionsReply {
        sessions: vec![session(SessionKind::Local), session(SessionKind::Redirect)],
        total: 5234,
        truncated: true,
    };
    let expected = "\
KIND      STATE        OWNER          IDLE           VERSION  PUBLISHED  FLOW
local     established  10.0.0.1  1 min 1 s  1470182400000000  yes        20.1.1.1:1234-192.168.0.1:80
redirect  redirected   10.0.0.2  1 min 1 s                 -  -          20.1.1.1:1234-192.168.0.1:80

2 of 5234 sessions; --limit shows more
";
    for verb in ["sessions list", "show sessions"] {
        let daemon = daemon(Ok(Reply::Sessions(reply.clone())));
        let arguments =
            format!("{verb} {FILTERS} --idle-over 5m --idle-under 2h --published false --limit 2");
        let output = run(&daemon, &arguments);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        let limit = 2.try_into().unwrap();
        let asked = daemon.asked.lock().unwrap();
        assert_eq!(*asked, [Request::SessionsList { filter: idle_filter(), limit }]);
    }
}

#[test]
fn gets_and_counts_sessions() {
    let expected = "\
flow   20.1.1.1:1234-192.168.0.1:80
table  local, established, version 1470182400000000, published, idle for 1 min 1 s
";
    let get = "sessions get 20.1.1.1:1234-192.168.0.1:80";
    assert_eq!(shown(Reply::Session(session(SessionKind::Local)), get), expected);
    let refusal = ProtocolError::new(ErrorCode::NotFound, "no entry");
    let output = run(&daemon(Err(refusal)), get);
    assert_eq!(output.status.code(), Some(1));

    let daemon = daemon(Ok(Reply::SessionsCount(count())));
    let output = run(&daemon, &format!("sessions count {FILTERS}"));
    let expected = "\
STATE        SESSIONS
established        40
redirected          2

SERVICE         SESSIONS
192.168.0.1:80        42

OWNER     SESSIONS
10.0.0.1        40
10.0.0.2         2

42 sessions
";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(*daemon.asked.lock().unwrap(), [Request::SessionsCount { filter: filter() }]);
    let none = shown(Reply::SessionsCount(SessionsCountReply::default()), "sessions count");
    assert_eq!(none, "0 sessions\n");
}

fn count() -> SessionsCountReply {
    SessionsCountReply {
        total: 42,
        by_state: counters(&[("established", 40), ("redirected", 2)]),
        by_service: counters(&[("192.168.0.1:80", 42)]),
        by_owner: counters(&[("10.0.0.1", 40), ("10.0.0.2", 2)]),
    }
}

fn deleted() -> SessionsDeleteReply {
    SessionsDeleteReply { sessions: vec![session(SessionKind::Local)], left: 3, withdrawn: 1 }
}

/// A daemon with as many sessions that match as are counted.
fn deleting(total: u64) -> Daemon {
    let count = SessionsCountReply { total, ..count() };
    daemon_of(move |request| match request {
        Request::SessionsCount { .. } => Ok(Reply::SessionsCount(count.clone())),
        _ => Ok(Reply::SessionsDelete(deleted())),
    })
}

#[test]
fn deletes_one_flow_at_once_and_more_only_when_that_is_said() {
    let one = "sessions delete 20.1.1.1:1234-192.168.0.1:80";
    let daemon = deleting(1);
    let output = run(&daemon, one);
    let expected = "\
KIND   STATE        OWNER          IDLE           VERSION  PUBLISHED  FLOW
local  established  10.0.0.1  1 min 1 s  1470182400000000  yes        20.1.1.1:1234-192.168.0.1:80

1 session deleted, 1 record withdrawn; 3 more match
";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    let of_flow = SessionFilter { flow: Some(flow()), ..SessionFilter::default() };
    let delete =
        |filter, limit: usize| Request::SessionsDelete { filter, limit: limit.try_into().unwrap() };
    assert_eq!(*daemon.asked.lock().unwrap(), [delete(of_flow, 1)]);

    let many = format!("sessions delete {FILTERS}");
    let daemon = deleting(5000);
    let output = run(&daemon, &many);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error, "holdfastctl: 5000 sessions match; --yes deletes 100 of them\n");
    assert_eq!(*daemon.asked.lock().unwrap(), [Request::SessionsCount { filter: filter() }]);

    // One that matches alone, and never more, should another come meanwhile.
    let daemon = deleting(1);
    assert!(run(&daemon, &many).status.success());
    assert_eq!(daemon.asked.lock().unwrap()[1..], [delete(filter(), 1)]);

    let daemon = deleting(5000);
    assert!(run(&daemon, &format!("{many} --yes --limit 7000")).status.success());
    assert_eq!(*daemon.asked.lock().unwrap(), [delete(filter(), 7000)]);

    let daemon = deleting(5000);
    for wrong in [
        "sessions delete".to_owned(),
        "sessions delete --yes".to_owned(),
        format!("{one} --kind local"),
    ] {
        let output = run(&daemon, &wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
    assert!(daemon.asked.lock().unwrap().is_empty());
}

fn change(event: SessionEvent, before: Option<&str>, after: Option<&str>) -> SessionChange {
    SessionChange {
        at_unix_us: 1_470_182_400_123_456,
        event,
        flow: flow(),
        before: before.map(str::to_owned),
        after: after.map(str::to_owned),
        owner: Some("10.0.0.1".parse().unwrap()),
        version: Some(7),
    }
}

/// A daemon whose answer to everything is a stream of two changes and a gap.
fn streaming() -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let handler: Handler = Arc::new(move |request, stream: &mut Stream<'_>| {
        log.lock().unwrap().push(request);
        let reply = stream.run(StreamBounds::default(), |items| {
            items.send(&change(SessionEvent::Opened, None, Some("half_open")))?;
            items.missed(17)?;
            items.send(&change(SessionEvent::Established, Some("half_open"), Some("established")))
        });
        reply.map(Reply::Stream)
    });
    let socket = open(&path, handler);
    Daemon { path, asked, _socket: socket, _directory: directory }
}

#[test]
fn watches_sessions() {
    let daemon = streaming();
    let arguments =
        format!("sessions watch {FILTERS} --event opened,established --for 30s --count 9");
    let output = run(&daemon, &arguments);
    let expected = "\
2016-08-03T00:00:00.123Z  opened         10.0.0.1         20.1.1.1:1234-192.168.0.1:80
(17 missed: they came faster than they were read)
2016-08-03T00:00:00.123Z  established    10.0.0.1         20.1.1.1:1234-192.168.0.1:80
";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error, "2 shown, 17 missed: there are no more\n");
    let asked = daemon.asked.lock().unwrap();
    let expected = Request::SessionsWatch {
        filter: filter(),
        events: vec![SessionEvent::Opened, SessionEvent::Established],
        for_ms: 30_000.try_into().unwrap(),
        count: 9.try_into().unwrap(),
    };
    assert_eq!(*asked, [expected]);
}

fn routing() -> RoutingReply {
    let peers = vec![peer(2, "alive"), peer(3, "suspect")];
    let bucket = RoutingBucket {
        prefix: "01000000000000000000000000000000".to_owned(),
        prefix_bits: 8,
        contacts: 3,
        suspect: 1,
        full: true,
        waiting: 2,
        peers,
    };
    RoutingReply {
        id: "ff".repeat(16),
        k: 128,
        bucket_bits: 8,
        buckets: vec![bucket],
        absent: vec![peer(13, "dead")],
        truncated: true,
    }
}

#[test]
fn shows_routing() {
    let expected = "\
this server  ffffffffffffffffffffffffffffffff
buckets      128 contacts in each at most, 8 bits a level

BUCKET  CONTACTS  SUSPECT  FULL  WAITING
01/8           3        1  yes         2

LOCATOR    PORT  STATE       RTT  MISSED    LAST SEEN  STARTED (UTC)             LIFE  ID
10.0.0.2   7000  alive    120 µs       0  40.0 ms ago  2016-08-03T00:00:00.123Z     2  01234567
10.0.0.3   7000  suspect  120 µs       1  40.0 ms ago  2016-08-03T00:00:00.123Z     3  01234567
10.0.0.13  7000  dead          -       -  gone 12.5 s  2016-08-03T00:00:00.123Z     -  01234567

3 contacts, 1 suspect, 1 absent; --limit shows more
";
    assert_eq!(shown(Reply::Routing(routing()), "show routing"), expected);
}

fn limits() -> LimitsReply {
    let limit = |name: &str, key: Option<&str>, value, used, hits| LimitEntry {
        name: name.to_owned(),
        key: key.map(str::to_owned),
        scope: LimitScope::Server,
        value,
        unit: "per_second".to_owned(),
        used,
        hits,
        counters: vec!["table_full".to_owned()],
    };
    LimitsReply {
        limits: vec![
            limit("table.entries", Some("sessions.capacity"), 1_000_000, Some(950_000), 3),
            limit("control.requests", None, 200, None, 0),
        ],
    }
}

#[test]
fn shows_limits() {
    let expected = "\
LIMIT               VALUE  UNIT        PER       USED  HIT  SET BY
table.entries     1000000  per second  server  950000    3  sessions.capacity
control.requests      200  per second  server       -    0  -

2 limits, 1 of them reached since the start
table.entries is used by more than nine tenths now
";
    assert_eq!(shown(Reply::Limits(limits()), "show limits"), expected);
}

fn config() -> ConfigReply {
    let config = json!({
        "node": {"locator": "10.0.0.1"},
        "cluster": {"insecure": false, "keys": {"sealing": 1, "opening": 0}},
        "service": [{"address": "192.168.0.1", "ports": [80, 443]}],
    });
    ConfigReply {
        config: config.as_object().unwrap().clone(),
        warnings: vec!["too bold".to_owned()],
        unconfirmed: None,
    }
}

#[test]
fn shows_the_configuration() {
    let expected = "\
# warning: too bold

[node]
locator = \"10.0.0.1\"

[[service]]
address = \"192.168.0.1\"
ports = [80, 443]

[cluster]
insecure = false
# key 1 seals, key 0 opens as well
";
    assert_eq!(shown(Reply::Config(config()), "show config"), expected);

    let unconfirmed = Some(UnconfirmedReload { left_ms: 43_000, changes: changes() });
    let text = shown(Reply::Config(ConfigReply { unconfirmed, ..config() }), "show config");
    let expected = "\
# warning: too bold
# rolled back in 43.0 s unless `holdfastctl reload --confirmed` comes before
# KEY              BEFORE                                        AFTER
# admission.burst  4096                                          8192
# node.log         info                                          debug
# service          [{\"address\":\"192.168.0.1\",\"ports\":[80,443]}]  -

[node]
";
    assert!(text.starts_with(expected), "{text}");
}

fn changes() -> Vec<ConfigChange> {
    let change = |key: &str, before: Value, after: Value| ConfigChange {
        key: key.to_owned(),
        before,
        after,
    };
    vec![
        change("admission.burst", 4096.into(), 8192.into()),
        change("node.log", "info".into(), "debug".into()),
        change("service", config().config["service"].clone(), Value::Null),
    ]
}

fn reloaded(applied: bool, confirm_within_ms: Option<u64>) -> ReloadReply {
    ReloadReply {
        path: "/etc/h.toml".to_owned(),
        changes: changes()[..2].to_vec(),
        applied,
        confirm_within_ms,
        warnings: vec!["too bold".to_owned()],
    }
}

/// What of `reload` asks what, what is answered, and how that begins and ends.
#[test]
fn reloads() {
    let plain = Request::Reload { dry_run: false, confirm_ms: None };
    let rows = [
        (
            "reload",
            plain.clone(),
            reloaded(true, None),
            "/etc/h.toml: 2 keys changed\n\nKEY",
            "bold\n",
        ),
        (
            "reload --dry-run",
            Request::Reload { dry_run: true, confirm_ms: None },
            reloaded(false, None),
            "/etc/h.toml: 2 keys would change\n\nKEY",
            "bold\n",
        ),
        (
            "reload --confirm 1m",
            Request::Reload { dry_run: false, confirm_ms: Some(60_000.try_into().unwrap()) },
            reloaded(true, Some(60_000)),
            "/etc/h.toml: 2 keys changed\n\nKEY",
            "\nrolled back in 1 min 0 s unless `holdfastctl reload --confirmed` comes before\n",
        ),
        (
            "reload --confirmed",
            Request::ReloadConfirm {},
            reloaded(true, None),
            "confirmed: /etc/h.toml stays\n\nKEY",
            "bold\n",
        ),
        (
            "reload --roll-back",
            Request::ReloadRollBack {},
            reloaded(true, None),
            "rolled back to what was before /etc/h.toml\n\nKEY",
            "bold\n",
        ),
        (
            "reload",
            plain,
            ReloadReply { changes: Vec::new(), warnings: Vec::new(), ..reloaded(true, None) },
            "/etc/h.toml: nothing changed\n",
            "changed\n",
        ),
    ];
    for (arguments, request, reply, begins, ends) in rows {
        let daemon = daemon(Ok(Reply::Reload(reply)));
        let output = run(&daemon, arguments);
        assert_eq!(*daemon.asked.lock().unwrap(), [request]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with(begins) && text.ends_with(ends), "{arguments}:\n{text}");
        assert_eq!(
            text.contains("admission.burst  4096    8192\n"),
            text.contains("KEY"),
            "{text}"
        );
    }
}

fn explained() -> ExplainReply {
    let step = |rule: Option<&str>, text: &str| ExplainStep {
        rule: rule.map(str::to_owned),
        text: text.to_owned(),
    };
    ExplainReply {
        flow: flow(),
        verdict: Verdict::Tunnel,
        tunnel_to: Some("10.0.0.2".parse().unwrap()),
        steps: vec![step(Some("R4"), "There is a redirect."), step(None, &"word ".repeat(30))],
        table: Some(session(SessionKind::Redirect)),
        kernel: KernelHolds::Nothing,
        dht: Some(lookup_reply().dht),
        members: vec![ExplainMember {
            locator: "10.0.0.2".parse().unwrap(),
            roles: vec!["owner".to_owned(), "replica".to_owned()],
            state: "alive".to_owned(),
        }],
    }
}

#[test]
fn explains_a_flow() {
    let (words, rest) = (["word"; 18].join(" "), ["word"; 12].join(" "));
    let expected = format!(
        "\
flow     20.1.1.1:1234-192.168.0.1:80
verdict  into the tunnel to 10.0.0.2

 1. R4   There is a redirect.
 2.      {words}
         {rest}

table    redirect to 10.0.0.2, idle for 1 min 1 s

dht      owner 10.0.0.2, version 7; took 312 µs

ASKED     ANSWER     OWNER     VERSION    RTT
10.0.0.3  owner      10.0.0.2        7  99 µs
10.0.0.4  no_answer  -               -      -

SERVER    ROLE            STATE
10.0.0.2  owner, replica  alive
"
    );
    let text = shown(Reply::Explain(Box::new(explained())), "explain 20.1.1.1:1234-192.168.0.1:80");
    assert_eq!(text, expected, "\n{text}");
}

fn peer(last: u8, state: &str) -> Peer {
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
}

#[test]
fn shows_peers() {
    let peers = vec![peer(2, "alive"), peer(3, "suspect"), peer(4, "away"), peer(13, "dead")];
    let expected = "\
LOCATOR    PORT  STATE       RTT  MISSED    LAST SEEN  STARTED (UTC)             LIFE  ID
10.0.0.2   7000  alive    120 µs       0  40.0 ms ago  2016-08-03T00:00:00.123Z     2  01234567
10.0.0.3   7000  suspect  120 µs       1  40.0 ms ago  2016-08-03T00:00:00.123Z     3  01234567
10.0.0.4   7000  away          -       -  gone 12.5 s  2016-08-03T00:00:00.123Z     -  01234567
10.0.0.13  7000  dead          -       -  gone 12.5 s  2016-08-03T00:00:00.123Z     -  01234567

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

fn lookup_reply() -> LookupReply {
    let replica = |last: u8, answer: &str, found: bool| ReplicaAnswer {
        locator: [10, 0, 0, last].into(),
        answer: answer.to_owned(),
        owner: found.then(|| [10, 0, 0, 2].into()),
        version: found.then_some(7),
        rtt_us: found.then_some(99),
    };
    LookupReply {
        flow: flow(),
        table: Some(session(SessionKind::Redirect)),
        dht: LookupReport {
            outcome: LookupOutcome::Owner,
            owner: Some([10, 0, 0, 2].into()),
            version: Some(7),
            duration_us: 312,
            replicas: vec![replica(3, "owner", true), replica(4, "no_answer", false)],
        },
    }
}

#[test]
fn looks_a_flow_up() {
    let reply = lookup_reply();
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
    let expected =
        "table  local, established, version 1470182400000000, published, idle for 1 min 1 s\n";
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

fn health_reply() -> HealthReply {
    HealthReply {
        state: HealthState::Draining,
        sessions_left: 412,
        awaited: Vec::new(),
        prefixes: vec![PrefixReport {
            prefix: "192.168.0.1/32".parse().unwrap(),
            state: HealthState::Draining,
            since_ms: 41_200,
            route: "graceful_shutdown".to_owned(),
            because: vec!["192.168.0.1:80: no connection within 1s".to_owned()],
        }],
        checks: vec![CheckReport {
            service: "192.168.0.1:80".parse().unwrap(),
            target: "192.168.0.1:8080".parse().unwrap(),
            kind: "http".to_owned(),
            up: Some(false),
            since_ms: Some(11_520_000),
            checks: 5760,
            failures: 23,
            changes: 1,
            duration_us: 412,
            trouble: Some("no connection within 1s".to_owned()),
        }],
        drain: Some(DrainReport {
            mode: DrainMode::Withdraw,
            since_ms: 2_000,
            timeout_ms: 600_000,
            persist: false,
        }),
        announcer: AnnouncerReport {
            kind: "frr".to_owned(),
            trouble: None,
            state_file_trouble: None,
        },
    }
}

/// What answers each command, and how it is asked for.
fn answers() -> Vec<(&'static str, Reply, String)> {
    let health = || Reply::Health(Box::new(health_reply()));
    let of_flow = |verb: &str| format!("{verb} {}", flow());
    let list = SessionsReply {
        sessions: vec![session(SessionKind::Local), session(SessionKind::Redirect)],
        total: 2,
        truncated: false,
    };
    let lookup = JournalEntry {
        flow: flow(),
        asked_at_unix_us: 7,
        duration_us: 4,
        outcome: LookupOutcome::TimedOut,
        owner: None,
    };
    let peers = vec![peer(2, "alive"), peer(13, "dead")];
    let incidents = IncidentsReply { incidents: vec![IncidentSummary::from(&incident())] };
    vec![
        ("show_stats", Reply::Stats(Box::new(stats(2))), "show stats".to_owned()),
        ("show_workers", Reply::Workers(workers()), "show workers".to_owned()),
        ("show_peers", Reply::Peers(PeersReply { peers }), "show peers".to_owned()),
        (
            "show_lookups",
            Reply::Lookups(LookupsReply { lookups: vec![lookup] }),
            "show lookups".to_owned(),
        ),
        ("show_version", Reply::Version(version()), "show version".to_owned()),
        ("show_routing", Reply::Routing(routing()), "show routing".to_owned()),
        ("show_limits", Reply::Limits(limits()), "show limits".to_owned()),
        ("show_config", Reply::Config(config()), "show config".to_owned()),
        ("sessions_list", Reply::Sessions(list), "sessions list".to_owned()),
        ("sessions_get", Reply::Session(session(SessionKind::Local)), of_flow("sessions get")),
        ("sessions_count", Reply::SessionsCount(count()), "sessions count".to_owned()),
        ("sessions_delete", Reply::SessionsDelete(deleted()), of_flow("sessions delete")),
        ("explain", Reply::Explain(Box::new(explained())), of_flow("explain")),
        ("lookup", Reply::Lookup(lookup_reply()), of_flow("lookup")),
        ("incidents_list", Reply::Incidents(incidents), "incidents".to_owned()),
        ("incidents_show", Reply::Incident(Box::new(incident())), "incidents show 12".to_owned()),
        ("show_health", health(), "show health".to_owned()),
        ("drain", health(), "drain".to_owned()),
        ("undrain", health(), "undrain".to_owned()),
        ("reload", Reply::Reload(reloaded(true, Some(60_000))), "reload --confirm 60s".to_owned()),
        ("reload_confirm", Reply::Reload(reloaded(true, None)), "reload --confirmed".to_owned()),
        ("reload_roll_back", Reply::Reload(reloaded(true, None)), "reload --roll-back".to_owned()),
    ]
}

#[test]
fn json_of_every_command_is_as_the_schema_says() {
    let mut documents = Vec::new();
    let mut commands = Vec::new();
    for (command, reply, arguments) in answers() {
        let daemon = daemon(Ok(reply.clone()));
        let output = run(&daemon, &format!("{arguments} --json"));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        documents.push((format!("{command}.ok"), serde_json::from_str(&text).unwrap()));
        let line = serde_json::from_str(&answer_line(&Ok(reply))).unwrap();
        documents.push(("answer".to_owned(), line));
        for request in &*daemon.asked.lock().unwrap() {
            assert_eq!(request.command(), command);
            let line = serde_json::from_str(&request_line(request).unwrap()).unwrap();
            documents.push(("request".to_owned(), line));
        }
        commands.push(command);
    }
    let output = run(&streaming(), "sessions watch --json");
    commands.push("sessions_watch");
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[1], json!({ "missed": 17 }));
    for item in [&lines[0], &lines[2]] {
        documents.push(("sessions_watch.item".to_owned(), item["item"].clone()));
    }
    documents.push(("sessions_watch.ok".to_owned(), lines[3]["ok"].clone()));
    for code in ["bad_request", "forbidden", "not_found"] {
        let line = json!({"version": 1, "error": {"code": code, "message": "no"}});
        documents.push(("answer".to_owned(), line));
    }
    // `packets.rs` has these.
    commands.extend(["trace", "capture"]);
    for (command, _) in COMMANDS {
        assert!(commands.contains(command), "{command} has no row here");
    }
    schema::assert_valid(&documents);

    // A judge that says yes to everything is none.
    let wrong = [
        ("show_version.ok", json!({ "pid": 7 })),
        ("request", json!({"version": 1, "command": "lookup"})),
        ("request", json!({"version": 1, "command": "show_stats", "limit": 7})),
        ("request", json!({"version": 1, "command": "show_lookups", "limit": 10_001})),
        ("request", json!({"version": 2, "command": "show_stats"})),
        ("answer", json!({"version": 1})),
    ];
    for (name, value) in wrong {
        let complaints = schema::complaints(&[(name.to_owned(), value.clone())]);
        assert!(!complaints.is_empty() || schema::judge().is_none(), "{name} {value}");
    }
}

/// Lines of IPv4 and of the names that servers have fit a terminal; those of the list of incidents
/// say more than that.
#[test]
fn text_fits_100_columns() {
    for (command, reply, arguments) in answers() {
        // A line with a flow, or with an incident's causes, is as long as these.
        if ["incidents_list", "sessions_list", "sessions_get"].contains(&command) {
            continue;
        }
        let text = shown(reply, &arguments);
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{command}: {line}");
        }
    }
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
        "reload now",
        "reload --confirm 0s",
        "reload --confirm 2h",
        "reload --confirm 60",
        "reload --confirm 60s --dry-run",
        "reload --confirmed --roll-back",
        "show sessions --state open",
        "show sessions --client-port 65536",
        "show routing --limit 0",
        "show limits now",
        "show config --keys",
        "sessions",
        "sessions list --idle-over long",
        "sessions list --published maybe",
        "sessions get",
        "sessions get a-b",
        "sessions count --limit 5",
        "sessions watch --event moved",
        "sessions watch --for 2h",
        "sessions watch --count 0",
        "sessions watch --idle-over 5m",
        "explain",
        "explain 20.1.1.1-192.168.0.1:80",
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

/// Two sessions of 55 were lost when a server died.
fn incident() -> Incident {
    let locator = |n: u8| [10, 0, 0, n].into();
    let began_unix_us: u64 = 1_470_182_400_000_000;
    let cause = |kind, n, at_us: i64| Cause {
        kind,
        locator: Some(locator(n)),
        at_unix_us: began_unix_us.checked_add_signed(at_us),
    };
    Incident {
        id: 12,
        state: IncidentState::Closed,
        began_unix_us,
        ended_unix_us: began_unix_us + 2_300_000,
        sessions: SessionCounts {
            at_risk: 55,
            saved: 53,
            reset: 1,
            dropped: 1,
            ..SessionCounts::default()
        },
        losses: counters(&[("admission_source", 1), ("owner_given_up", 1)]),
        strays_dropped: 9,
        owners: vec![
            OwnerCount { locator: locator(2), sessions: 50 },
            OwnerCount { locator: locator(4), sessions: 2 },
        ],
        sessions_of_other_owners: 1,
        causes: vec![
            cause(CauseKind::PeerLeft, 5, -31_000),
            cause(CauseKind::PeerDied, 3, -12_000),
            cause(CauseKind::PeerDied, 6, 500_000),
        ],
        detection_time_us: Some(12_000),
        forward_time_us: Distribution {
            count: 53,
            min: 430,
            p50: 480,
            p90: 900,
            p99: 3_100,
            max: 3_100,
            buckets: vec![(430, 20), (480, 20), (900, 12), (3_100, 1)],
        },
        lookup_time_us: Distribution::default(),
        lost: vec![LostSession {
            flow: flow(),
            came_unix_us: began_unix_us + 1_000,
            reason: LossReason::OwnerGivenUp,
            owner: Some(locator(3)),
        }],
        reports_untracked: 3,
        reports_missed: 7,
    }
}

#[test]
fn shows_an_incident() {
    let text = shown(Reply::Incident(Box::new(incident())), "incidents show 12");
    let expected = "\
incident   12, is over
began      2016-08-03T00:00:00.000Z
last seen  2016-08-03T00:00:02.300Z, after 2.3 s
detection  12.0 ms
cause      peer left 10.0.0.5, 31.0 ms before
cause      peer died 10.0.0.3, 12.0 ms before
cause      peer died 10.0.0.6, 500.0 ms after
sessions   55 at risk: 53 saved, 0 kept, 1 reset, 1 dropped, 0 unanswered
strays     9 dropped
not seen   7 reports of workers, and 3 of flows above those that are followed

              COUNT     MIN     P50     P90     P99     MAX
forward time     53  430 µs  480 µs  900 µs  3.1 ms  3.1 ms
lookup time       0       -       -       -       -       -

FIRST STRAY TO FIRST FORWARD
to 500 µs  40  ########################################
to 1.0 ms  12  ############
to 2.0 ms   0
to 5.0 ms   1  #

OWNER     SESSIONS
10.0.0.2        50
10.0.0.4         2
others           1

LOST BECAUSE      SESSIONS
admission_source         1
owner_given_up           1

LOST                           FIRST STRAY (UTC)         BECAUSE         OWNER
20.1.1.1:1234-192.168.0.1:80  2016-08-03T00:00:00.001Z  owner_given_up  10.0.0.3
the first 1 of 2
";
    assert_eq!(
        text,
        expected
            .replace("LOST                           FIRST", "LOST                          FIRST"),
        "\n{text}"
    );
}

#[test]
fn an_open_incident_of_which_little_is_known_is_shown() {
    let open = Incident {
        state: IncidentState::Open,
        causes: Vec::new(),
        detection_time_us: None,
        forward_time_us: Distribution::default(),
        owners: Vec::new(),
        sessions: SessionCounts { at_risk: 3, unanswered: 3, ..SessionCounts::default() },
        ..incident()
    };
    let text = shown(Reply::Incident(Box::new(open)), "incidents show 12");
    assert!(text.starts_with("incident   12, goes on\n"), "{text}");
    assert!(
        text.contains("\ndetection  the moment of the cause is not known here\nsessions "),
        "{text}"
    );
    assert!(text.ends_with("lookup time       0    -    -    -    -    -\n"), "{text}");
}

#[test]
fn lists_incidents() {
    let one = IncidentSummary::from(&incident());
    let path_change = Cause { kind: CauseKind::PathChange, locator: None, at_unix_us: None };
    let other = IncidentSummary {
        id: 7,
        state: IncidentState::Stopped,
        causes: vec![path_change],
        detection_time_us: None,
        forward_time_p50_us: None,
        forward_time_max_us: None,
        ..one.clone()
    };
    let daemon = daemon(Ok(Reply::Incidents(IncidentsReply { incidents: vec![one, other] })));
    let expected = "\
ID  BEGAN (UTC)               LASTED  STATE    SESSIONS  SAVED  KEPT  RESET  DROPPED  UNANSWERED  DETECTED  FORWARDED  CAUSE
12  2016-08-03T00:00:00.000Z   2.3 s  closed         55     53     0      1        1           0   12.0 ms     480 µs  peer left 10.0.0.5, peer died (2)
 7  2016-08-03T00:00:00.000Z   2.3 s  stopped        55     53     0      1        1           0         -          -  path change

2 incidents, the newest first
";
    for arguments in ["incidents", "incidents list", "incidents list --limit 100"] {
        let output = run(&daemon, arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, expected, "\n{text}");
    }
    let limit = 100.try_into().unwrap();
    let asked = vec![Request::IncidentsList { limit }; 3];
    assert_eq!(*daemon.asked.lock().unwrap(), asked);
}

#[test]
fn an_incident_as_json_is_the_daemons_own() {
    let daemon = daemon(Ok(Reply::Incident(Box::new(incident()))));
    let output = run(&daemon, "--json incidents show 12");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer, serde_json::to_value(incident()).unwrap());
    assert_eq!(*daemon.asked.lock().unwrap(), [Request::IncidentsShow { id: 12 }]);
}

#[test]
fn wrong_words_about_incidents_are_refused() {
    let daemon = daemon(Err(ProtocolError::new(ErrorCode::NotFound, "there is no incident 9")));
    let refused = run(&daemon, "incidents show 9");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(refused.stderr, b"holdfastctl: there is no incident 9 (not_found)\n");
    for arguments in
        ["incidents show", "incidents show x", "incidents list --limit 0", "incidents x"]
    {
        assert_eq!(run(&daemon, arguments).status.code(), Some(2), "{arguments}");
    }
}
