//! The control socket against clients that behave, that do not, and that are too many.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast::client::{self, AskError, StreamLine, ask};
use holdfast::protocol::{
    AnswerError, ErrorCode, JournalEntry, LookupOutcome, LookupsReply, ProtocolError, REQUEST_MAX,
    Reply, Request, StreamBounds, StreamEnd, StreamReply, VersionReply,
};
use holdfast::socket::{
    CLIENT_TIMEOUT, CLIENTS_MAX, CLIENTS_PRIVILEGED, ControlCounters, ControlSocket, Handler,
    ITEMS_PER_S_MAX, Permissions, STREAMS_MAX, SocketError,
};
use serde_json::{Value, json};
use support::is_root;

const SHOW_VERSION: &[u8] = b"{\"version\":1,\"command\":\"show_version\"}\n";

/// Answers versions and as many lookups as asked for; nothing else is up.
fn handler() -> Handler {
    Arc::new(|request, _| match request {
        Request::ShowVersion {} => Ok(Reply::Version(VersionReply {
            version: "0.1.0".to_owned(),
            dpdk_version: "DPDK 22.11.7".to_owned(),
            locator: "10.0.0.1".parse().unwrap(),
            pid: 7,
            uptime_ms: 1000,
        })),
        Request::ShowLookups { limit } => {
            let lookup = JournalEntry {
                flow: "20.1.1.1:1234-192.168.0.1:80".parse().unwrap(),
                asked_at_unix_us: 0,
                duration_us: 1,
                outcome: LookupOutcome::NotFound,
                owner: None,
            };
            Ok(Reply::Lookups(LookupsReply { lookups: vec![lookup; limit.get()] }))
        }
        _ => Err(ProtocolError::new(ErrorCode::Unavailable, "not up")),
    })
}

fn open(path: &Path, handler: Handler) -> Result<ControlSocket, SocketError> {
    ControlSocket::open(path, Permissions::default(), Arc::default(), handler)
}

struct Daemon {
    counters: Arc<ControlCounters>,
    socket: Option<ControlSocket>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

fn daemon() -> Daemon {
    daemon_of(handler())
}

fn daemon_of(handler: Handler) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/holdfastd.sock");
    let counters = Arc::<ControlCounters>::default();
    let socket = ControlSocket::open(&path, Permissions::default(), Arc::clone(&counters), handler);
    Daemon { counters, socket: Some(socket.unwrap()), path, _directory: directory }
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn read_line(stream: &mut UnixStream) -> Value {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "a whole line");
        line.push(byte[0]);
    }
    serde_json::from_slice(&line).unwrap()
}

fn code(stream: &mut UnixStream) -> String {
    read_line(stream)["error"]["code"].as_str().unwrap().to_owned()
}

/// Whether the daemon has hung up; a reset counts, for it may have left bytes of ours unread.
fn hung_up(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
}

fn version_ok(path: &Path) -> bool {
    ask(path, &Request::ShowVersion {}).is_ok_and(|answer| answer["pid"] == 7)
}

#[test]
fn answers_line_by_line_on_one_connection() {
    let daemon = daemon();
    let mut stream = connect(&daemon.path);
    for _ in 0..3 {
        stream.write_all(SHOW_VERSION).unwrap();
        assert_eq!(read_line(&mut stream)["ok"]["locator"], "10.0.0.1");
    }
    stream.write_all(b"{\"version\":1,\"command\":\"show_peers\"}\n\n{}\nnonsense\n").unwrap();
    assert_eq!(code(&mut stream), "unavailable");
    assert_eq!(code(&mut stream), "bad_request");
    assert_eq!(code(&mut stream), "bad_request");
    stream.write_all(b"{\"version\":1,\"command\":\"dance\"}\n").unwrap();
    assert_eq!(code(&mut stream), "unknown_command");
    stream.write_all(b"{\"version\":9,\"command\":\"show_version\"}\n").unwrap();
    assert_eq!(code(&mut stream), "unsupported_version");
    stream.write_all(SHOW_VERSION.trim_ascii()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_line(&mut stream)["ok"]["pid"], 7, "the last line needs no newline");
    assert!(hung_up(&mut stream));
}

#[test]
fn the_file_is_for_user_and_group_and_goes_with_the_daemon() {
    let mut daemon = daemon();
    let metadata = std::fs::symlink_metadata(&daemon.path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let mut idle = connect(&daemon.path);
    let start = Instant::now();
    drop(daemon.socket.take());
    assert!(!daemon.path.exists());
    assert!(hung_up(&mut idle));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let error = ask(&daemon.path, &Request::ShowVersion {}).expect_err("gone");
    assert!(matches!(error, AskError::Unreachable { .. }), "{error}");
}

#[test]
fn a_line_that_is_too_long_is_refused() {
    let daemon = daemon();
    let mut stream = connect(&daemon.path);
    let mut line = SHOW_VERSION.trim_ascii().to_vec();
    line.resize(REQUEST_MAX, b' ');
    line.push(b'\n');
    stream.write_all(&line).unwrap();
    assert_eq!(read_line(&mut stream)["ok"]["pid"], 7, "64 KiB is not too long");
    // The daemon may hang up before it has read all.
    let _ = stream.write_all(&vec![b'x'; REQUEST_MAX + 1]);
    assert_eq!(code(&mut stream), "too_large");
    assert!(hung_up(&mut stream));
    assert!(version_ok(&daemon.path));
}

#[test]
fn a_slow_client_is_sent_away_and_delays_nobody() {
    let daemon = daemon();
    let mut slow = connect(&daemon.path);
    let start = Instant::now();
    let mut sent = 0;
    // A byte now and then does not prolong its time.
    while start.elapsed() < CLIENT_TIMEOUT + Duration::from_secs(2) {
        if slow.write_all(&SHOW_VERSION[sent % 8..=sent % 8]).is_err() {
            break;
        }
        sent += 1;
        assert!(version_ok(&daemon.path));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(start.elapsed() > CLIENT_TIMEOUT - Duration::from_millis(500));
    assert!(start.elapsed() < CLIENT_TIMEOUT + Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(hung_up(&mut slow));
}

#[test]
fn a_client_that_takes_no_answer_is_sent_away() {
    let daemon = daemon();
    let mut greedy = connect(&daemon.path);
    greedy.write_all(b"{\"version\":1,\"command\":\"show_lookups\",\"limit\":10000}\n").unwrap();
    assert!(version_ok(&daemon.path));
    until("it is too slow", || counter(&daemon, "too_slow") == 1);
    let mut taken = Vec::new();
    // Ends, with or without an error, since the daemon has hung up.
    let _ = greedy.read_to_end(&mut taken);
    assert!(!taken.ends_with(b"\n"), "{} bytes", taken.len());
    assert!(version_ok(&daemon.path));
}

#[test]
fn one_client_too_many_is_told_to_come_back() {
    let daemon = daemon();
    let mut seated: Vec<UnixStream> = (0..CLIENTS_MAX).map(|_| connect(&daemon.path)).collect();
    for stream in &mut seated {
        stream.write_all(SHOW_VERSION).unwrap();
        assert_eq!(read_line(stream)["ok"]["pid"], 7);
    }
    let mut late = connect(&daemon.path);
    assert_eq!(code(&mut late), "busy");
    assert!(hung_up(&mut late));
    let error = ask(&daemon.path, &Request::ShowVersion {}).expect_err("busy");
    let busy = matches!(&error, AskError::Answer(AnswerError::Refused(refusal))
        if refusal.code == ErrorCode::Busy);
    assert!(busy, "{error}");
    drop(seated.pop());
    let start = Instant::now();
    while !version_ok(&daemon.path) {
        assert!(start.elapsed() < Duration::from_secs(5), "the free seat is given away");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn requests_run_side_by_side() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (count, peak) = (Arc::clone(&running), Arc::clone(&most));
    let slow: Handler = Arc::new(move |_, _| {
        peak.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        count.fetch_sub(1, Ordering::SeqCst);
        Err(ProtocolError::new(ErrorCode::Unavailable, "not up"))
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let socket = open(&path, slow).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ask(&path, &Request::ShowPeers {}).expect_err("not up"));
        }
    });
    assert!(most.load(Ordering::SeqCst) > 1);
    // A request that is under way is finished before the socket is gone.
    let mut stream = connect(&path);
    stream.write_all(SHOW_VERSION).unwrap();
    while running.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(socket);
    assert_eq!(running.load(Ordering::SeqCst), 0);
    assert_eq!(code(&mut stream), "unavailable");
}

#[test]
fn the_socket_of_a_crashed_daemon_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("holdfastd.sock");
    // A listener that is closed without removing its file: what a crash leaves.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _socket = open(&path, handler()).unwrap();
    assert!(version_ok(&path));
}

#[test]
fn a_live_daemon_is_left_alone() {
    let daemon = daemon();
    let error = open(&daemon.path, handler()).expect_err("in use");
    assert!(matches!(error, SocketError::InUse(_)), "{error}");
    assert!(version_ok(&daemon.path));
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes");
    std::fs::write(&path, "keep").unwrap();
    let error = open(&path, handler()).expect_err("no socket");
    assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "keep");
}

#[test]
fn the_socket_of_a_successor_is_not_removed() {
    let mut daemon = daemon();
    std::fs::remove_file(&daemon.path).unwrap();
    let successor = open(&daemon.path, handler()).unwrap();
    drop(daemon.socket.take());
    assert!(version_ok(&daemon.path));
    drop(successor);
    assert!(!daemon.path.exists());
}

/// A daemon whose `show_peers` is a stream of numbers, 1 to `count`, with a pause before each.
fn counting(count: u64, pause: Duration) -> Daemon {
    let handler: Handler = Arc::new(move |request, stream| match request {
        Request::ShowPeers {} => {
            let bounds = StreamBounds {
                time: 60_000.try_into().unwrap(),
                count: 1_000_000.try_into().unwrap(),
            };
            let reply = stream.run(bounds, |items| {
                for number in 1..=count {
                    if !pause.is_zero() {
                        items.wait(pause)?;
                    }
                    items.send(&number)?;
                }
                Ok(())
            });
            reply.map(Reply::Stream)
        }
        request => handler()(request, stream),
    });
    daemon_of(handler)
}

const SHOW_PEERS: &[u8] = b"{\"version\":1,\"command\":\"show_peers\"}\n";

fn counter(daemon: &Daemon, name: &str) -> u64 {
    let stats = daemon.counters.stats();
    stats.counters.get(name).copied().unwrap_or_else(|| panic!("no counter {name}"))
}

fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_stream_is_items_and_a_last_line_and_the_connection_goes_on() {
    let daemon = counting(3, Duration::ZERO);
    let mut stream = connect(&daemon.path);
    stream.write_all(&[SHOW_PEERS, SHOW_VERSION].concat()).unwrap();
    for number in 1..=3 {
        assert_eq!(read_line(&mut stream), json!({"version": 1, "item": number}));
    }
    let end = json!({"version": 1, "ok": {"items": 3, "missed": 0, "ended": "done"}});
    assert_eq!(read_line(&mut stream), end);
    assert_eq!(read_line(&mut stream)["ok"]["pid"], 7);
    assert_eq!((counter(&daemon, "streams"), counter(&daemon, "items")), (1, 3));
    assert_eq!(daemon.counters.stats().gauges["streams"], 0);

    let mut items = client::stream(&daemon.path, &Request::ShowPeers {}).unwrap();
    for number in 1..=3 {
        assert_eq!(items.next().unwrap(), StreamLine::Item(json!(number)));
    }
    let end = StreamReply { items: 3, missed: 0, ended: StreamEnd::Done };
    assert_eq!(items.next().unwrap(), StreamLine::End(end));
}

#[test]
fn a_stream_ends_after_its_count_and_its_time_and_says_what_was_missed() {
    let handler: Handler = Arc::new(|request, stream| {
        let (time, count) = match request {
            Request::ShowPeers {} => (60_000, 5),
            _ => (300, 1_000_000),
        };
        let bounds =
            StreamBounds { time: time.try_into().unwrap(), count: count.try_into().unwrap() };
        let reply = stream.run(bounds, |items| {
            loop {
                items.missed(0)?;
                items.missed(2)?;
                items.send(&"item")?;
                items.wait(Duration::from_millis(1))?;
            }
        });
        reply.map(Reply::Stream)
    });
    let daemon = daemon_of(handler);
    let read_all = |request| {
        let mut items = client::stream(&daemon.path, &request).unwrap();
        let (mut sent, mut missed) = (0, 0);
        loop {
            match items.next().unwrap() {
                StreamLine::Item(_) => sent += 1,
                StreamLine::Missed(count) => missed += count,
                StreamLine::End(end) => {
                    assert_eq!((end.items, end.missed), (sent, missed));
                    return end;
                }
            }
        }
    };
    let end = read_all(Request::ShowPeers {});
    assert_eq!((end.items, end.missed, end.ended), (5, 10, StreamEnd::Count));
    let start = Instant::now();
    let end = read_all(Request::ShowVersion {});
    assert_eq!(end.ended, StreamEnd::Time);
    assert!(end.items > 0);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(counter(&daemon, "items_missed"), 10 + end.missed);
}

#[test]
fn a_stream_ends_when_its_client_closes_and_with_the_daemon() {
    let mut daemon = counting(u64::MAX, Duration::from_millis(5));
    let streams = |daemon: &Daemon| daemon.counters.stats().gauges["streams"];
    let mut stream = connect(&daemon.path);
    stream.write_all(SHOW_PEERS).unwrap();
    read_line(&mut stream);
    assert_eq!(streams(&daemon), 1);
    // One that only sends no more is still there.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..10 {
        read_line(&mut stream);
    }
    drop(stream);
    until("the stream has ended", || streams(&daemon) == 0);

    // With a source that has nothing to say, too.
    let silent = counting(u64::MAX, Duration::from_secs(60));
    let mut stream = connect(&silent.path);
    stream.write_all(SHOW_PEERS).unwrap();
    until("the stream has begun", || streams(&silent) == 1);
    drop(stream);
    until("the stream has ended", || streams(&silent) == 0);

    let mut stream = connect(&daemon.path);
    stream.write_all(SHOW_PEERS).unwrap();
    read_line(&mut stream);
    drop(daemon.socket.take());
    let mut rest = String::new();
    let _ = stream.read_to_string(&mut rest);
    assert!(!rest.is_empty(), "its items until then");
}

#[test]
fn streams_leave_seats_to_others() {
    let daemon = counting(u64::MAX, Duration::from_millis(50));
    let mut streams: Vec<UnixStream> = (0..STREAMS_MAX)
        .map(|_| {
            let mut stream = connect(&daemon.path);
            stream.write_all(SHOW_PEERS).unwrap();
            read_line(&mut stream);
            stream
        })
        .collect();
    let mut late = connect(&daemon.path);
    late.write_all(SHOW_PEERS).unwrap();
    assert_eq!(code(&mut late), "busy");
    assert_eq!(counter(&daemon, "streams_refused"), 1);
    assert!(version_ok(&daemon.path));
    drop(streams.pop());
    until("the free place is given away", || {
        let mut stream = connect(&daemon.path);
        stream.write_all(SHOW_PEERS).unwrap();
        read_line(&mut stream).get("item").is_some()
    });
}

#[test]
fn a_stream_that_nobody_reads_is_given_up_and_delays_nobody() {
    let daemon = counting(u64::MAX, Duration::ZERO);
    let mut greedy = connect(&daemon.path);
    greedy.write_all(SHOW_PEERS).unwrap();
    until("the socket is full, and its client too slow", || {
        assert!(version_ok(&daemon.path));
        std::thread::sleep(Duration::from_millis(50));
        counter(&daemon, "too_slow") == 1
    });
    assert_eq!(daemon.counters.stats().gauges["streams"], 0);
    // What the kernel had room for, and no end of it.
    let mut taken = Vec::new();
    let _ = greedy.read_to_end(&mut taken);
    assert!(!taken.is_empty() && taken.len() < 4 << 20, "{} bytes", taken.len());
}

#[test]
fn a_stream_is_no_faster_than_its_rate() {
    let daemon = counting(ITEMS_PER_S_MAX, Duration::ZERO);
    let start = Instant::now();
    let mut items = client::stream(&daemon.path, &Request::ShowPeers {}).unwrap();
    while let StreamLine::Item(_) = items.next().unwrap() {}
    assert!(start.elapsed() > Duration::from_millis(850), "{:?}", start.elapsed());
}

/// holdfastctl as another user than the daemon's: `nobody`, and of its group.
fn as_nobody(path: &Path, arguments: &str) -> Output {
    // Where everybody finds it.
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("holdfastctl");
    std::fs::copy(env!("CARGO_BIN_EXE_holdfastctl"), &program).unwrap();
    for path in [directory.path(), &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&program);
    command.uid(65_534).gid(65_534).arg("--socket").arg(path).args(arguments.split(' '));
    command.output().unwrap()
}

fn open_to_nobody(mode: u32, group: Option<u32>) -> Daemon {
    let mut daemon = daemon();
    drop(daemon.socket.take());
    for directory in [daemon.path.parent().unwrap(), daemon._directory.path()] {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (permissions, counters) = (Permissions { mode, group }, Arc::clone(&daemon.counters));
    let socket = ControlSocket::open(&daemon.path, permissions, counters, handler());
    daemon.socket = Some(socket.unwrap());
    daemon
}

#[test]
fn mode_and_group_say_who_may_read() {
    if !is_root("control_socket.rs") {
        return;
    }
    let rows = [
        (0o660, None, false),
        (0o660, Some(65_534), true),
        (0o600, Some(65_534), false),
        (0o666, None, true),
    ];
    for (mode, group, may) in rows {
        let daemon = open_to_nobody(mode, group);
        let metadata = std::fs::symlink_metadata(&daemon.path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode);
        let output = as_nobody(&daemon.path, "show version");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), may, "{mode:o} {group:?}: {error}");
        if !may {
            assert_eq!(output.status.code(), Some(3));
            assert!(error.contains("Become root, or a member of the group"), "{error}");
        }
    }
}

#[test]
fn unprivileged_clients_leave_seats_to_root_and_wait_when_they_ask_too_much() {
    if !is_root("control_socket.rs") {
        return;
    }
    let daemon = open_to_nobody(0o666, None);
    // As many connections as it gets, which it keeps open; and requests without a pause.
    let script = "import socket, sys
clients = []
for _ in range(40):
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    clients.append(client)
clients[0].sendall(b'{\"version\":1,\"command\":\"show_version\"}\\n' * 500)
lines = clients[0].makefile()
for _ in range(500):
    assert '\"pid\":7' in lines.readline()
print('done', flush=True)
sys.stdin.read()
";
    let start = Instant::now();
    let mut python = Command::new("python3");
    python.uid(65_534).gid(65_534).args(["-c", script]).arg(&daemon.path);
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "done\n");
    assert_eq!(counter(&daemon, "refused"), 40 - (CLIENTS_MAX - CLIENTS_PRIVILEGED));
    // All but the first second's worth had to wait.
    assert!(start.elapsed() > Duration::from_millis(1400), "{:?}", start.elapsed());
    let mut seated: Vec<UnixStream> =
        (0..CLIENTS_PRIVILEGED).map(|_| connect(&daemon.path)).collect();
    for stream in &mut seated {
        stream.write_all(SHOW_VERSION).unwrap();
        assert_eq!(read_line(stream)["ok"]["pid"], 7);
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
