//! The control socket against clients that behave, that do not, and that are too many.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast::client::{AskError, ask};
use holdfast::protocol::{
    AnswerError, ErrorCode, JournalEntry, LookupOutcome, LookupsReply, ProtocolError, REQUEST_MAX,
    Reply, Request, VersionReply,
};
use holdfast::socket::{CLIENT_TIMEOUT, CLIENTS_MAX, ControlSocket, Handler, SocketError};
use serde_json::Value;

const SHOW_VERSION: &[u8] = b"{\"version\":1,\"command\":\"show_version\"}\n";

/// Answers versions and as many lookups as asked for; nothing else is up.
fn handler() -> Handler {
    Arc::new(|request| match request {
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

struct Daemon {
    socket: Option<ControlSocket>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

fn daemon() -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/holdfastd.sock");
    let socket = ControlSocket::open(&path, handler()).unwrap();
    Daemon { socket: Some(socket), path, _directory: directory }
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
    std::thread::sleep(CLIENT_TIMEOUT + Duration::from_secs(1));
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
    let slow: Handler = Arc::new(move |_| {
        peak.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        count.fetch_sub(1, Ordering::SeqCst);
        Err(ProtocolError::new(ErrorCode::Unavailable, "not up"))
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let socket = ControlSocket::open(&path, slow).unwrap();
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
    let _socket = ControlSocket::open(&path, handler()).unwrap();
    assert!(version_ok(&path));
}

#[test]
fn a_live_daemon_is_left_alone() {
    let daemon = daemon();
    let error = ControlSocket::open(&daemon.path, handler()).expect_err("in use");
    assert!(matches!(error, SocketError::InUse(_)), "{error}");
    assert!(version_ok(&daemon.path));
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes");
    std::fs::write(&path, "keep").unwrap();
    let error = ControlSocket::open(&path, handler()).expect_err("no socket");
    assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "keep");
}

#[test]
fn the_socket_of_a_successor_is_not_removed() {
    let mut daemon = daemon();
    std::fs::remove_file(&daemon.path).unwrap();
    let successor = ControlSocket::open(&daemon.path, handler()).unwrap();
    drop(daemon.socket.take());
    assert!(version_ok(&daemon.path));
    drop(successor);
    assert!(!daemon.path.exists());
}
