//! `holdfastctl show health`, `drain` and `undrain` against a real socket whose answers are known.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::protocol::{
    AnnouncerReport, CheckReport, DrainMode, DrainReport, DrainTimeout, ErrorCode, HealthReply,
    HealthState, PrefixReport, ProtocolError, Reply, Request,
};
use holdfast::socket::{ControlSocket, Permissions};
use serde_json::Value;

/// A server with two prefixes, one of which is down.
fn reply() -> HealthReply {
    let prefix = |prefix: &str, state, route: &str| PrefixReport {
        prefix: prefix.parse().unwrap(),
        state,
        since_ms: 11_520_000,
        route: route.to_owned(),
        because: Vec::new(),
    };
    let trouble = Some("no connection within 1s".to_owned());
    let check = |service: &str, kind: &str| CheckReport {
        service: service.parse().unwrap(),
        target: service.parse().unwrap(),
        kind: kind.to_owned(),
        up: Some(true),
        since_ms: Some(11_520_000),
        checks: 5760,
        failures: 2,
        changes: 0,
        duration_us: 412,
        trouble: None,
    };
    let down = PrefixReport {
        since_ms: 41_200,
        because: vec!["[2001:db8::80]:443: no connection within 1s".to_owned()],
        ..prefix("2001:db8::80/128", HealthState::Unhealthy, "withdrawn")
    };
    let failing = CheckReport {
        up: Some(false),
        target: "[2001:db8::80]:8443".parse().unwrap(),
        since_ms: Some(41_200),
        failures: 23,
        changes: 1,
        duration_us: 1_000_000,
        trouble,
        ..check("[2001:db8::80]:443", "tcp")
    };
    HealthReply {
        state: HealthState::Unhealthy,
        sessions_left: 412,
        awaited: Vec::new(),
        prefixes: vec![prefix("192.168.0.1/32", HealthState::Ready, "announced"), down],
        checks: vec![check("192.168.0.1:80", "http"), failing],
        drain: None,
        announcer: AnnouncerReport {
            kind: "frr".to_owned(),
            trouble: None,
            state_file_trouble: None,
        },
    }
}

fn draining(state: HealthState, sessions_left: u64) -> HealthReply {
    let mut reply = HealthReply { state, sessions_left, ..reply() };
    let mode = DrainMode::GracefulShutdown;
    reply.drain = Some(DrainReport { mode, since_ms: 2_000, timeout_ms: 600_000, persist: true });
    reply.prefixes.truncate(1);
    reply.prefixes[0].state = state;
    let withdrawn = state == HealthState::Drained;
    reply.prefixes[0].route = if withdrawn { "withdrawn" } else { "graceful_shutdown" }.to_owned();
    reply.checks.clear();
    reply
}

struct Daemon {
    path: PathBuf,
    asked: Arc<Mutex<Vec<Request>>>,
    _socket: ControlSocket,
    _directory: tempfile::TempDir,
}

/// A daemon that gives one answer after the other, and the last one again and again.
fn daemon(answers: Vec<Result<HealthReply, ProtocolError>>) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let handler = Arc::new(move |request, _: &mut holdfast::socket::Stream<'_>| {
        let mut asked = log.lock().unwrap();
        asked.push(request);
        let answer = answers[(asked.len() - 1).min(answers.len() - 1)].clone();
        answer.map(|reply| Reply::Health(Box::new(reply)))
    });
    let socket = ControlSocket::open(&path, Permissions::default(), Arc::default(), handler);
    Daemon { path, asked, _socket: socket.unwrap(), _directory: directory }
}

fn run(daemon: &Daemon, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfastctl"));
    command.arg("--socket").arg(&daemon.path).args(arguments.split_whitespace());
    command.output().unwrap()
}

/// What it prints when all is well.
fn shown(answer: HealthReply, arguments: &str) -> String {
    let output = run(&daemon(vec![Ok(answer)]), arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn shows_health() {
    let expected = "\
server     unhealthy, 412 local sessions
announcer  frr

PREFIX            STATE      SINCE       ROUTE      BECAUSE
192.168.0.1/32    ready      3 h 12 min  announced  -
2001:db8::80/128  unhealthy  41.2 s      withdrawn  [2001:db8::80]:443: no connection within 1s

CHECK      SERVICE             STATE  SINCE       CHECKS  FAILED  LAST    TROUBLE
http       192.168.0.1:80      up     3 h 12 min    5760       2  412 µs  -
tcp :8443  [2001:db8::80]:443  DOWN   41.2 s        5760      23  1.0 s   no connection within 1s
";
    assert_eq!(shown(reply(), "show health"), expected);
    let json: Value = serde_json::from_str(&shown(reply(), "--json show health")).unwrap();
    assert_eq!(json, serde_json::to_value(reply()).unwrap());
}

#[test]
fn shows_what_the_announcer_lacks() {
    let mut reply = HealthReply { state: HealthState::Joining, sessions_left: 1, ..reply() };
    reply.prefixes.truncate(1);
    reply.prefixes[0].route = "unknown".to_owned();
    reply.checks.truncate(1);
    reply.checks[0].up = None;
    reply.checks[0].since_ms = None;
    reply.announcer.trouble = Some("vtysh: failed to connect (exit status: 1)".to_owned());
    reply.announcer.state_file_trouble = Some("/s/announced: Read-only file system".to_owned());
    let expected = "\
server     joining, 1 local session
announcer  frr
           vtysh: failed to connect (exit status: 1)
           /s/announced: Read-only file system

PREFIX          STATE  SINCE       ROUTE    BECAUSE
192.168.0.1/32  ready  3 h 12 min  unknown  -

CHECK  SERVICE         STATE  SINCE  CHECKS  FAILED  LAST    TROUBLE
http   192.168.0.1:80  -      -        5760       2  412 µs  -
";
    assert_eq!(shown(reply, "show health"), expected);
}

#[test]
fn drain_and_undrain_order_what_they_are_told() {
    use DrainMode::{GracefulShutdown, Withdraw};
    let drain = |timeout: &str, mode, persist| Request::Drain {
        timeout: timeout.parse().unwrap(),
        mode,
        persist,
    };
    let rows = [
        ("drain", drain("10m", GracefulShutdown, false)),
        ("drain --graceful-shutdown --timeout 1m30s", drain("90s", GracefulShutdown, false)),
        ("drain --withdraw --timeout 0s --persist", drain("0s", Withdraw, true)),
        ("undrain", Request::Undrain {}),
    ];
    for (arguments, expected) in rows {
        let daemon = daemon(vec![Ok(draining(HealthState::Draining, 412))]);
        let output = run(&daemon, arguments);
        assert!(output.status.success(), "{output:?}");
        let expected_text = "\
server     draining, 412 local sessions
drain      by graceful shutdown, also after a restart, 9 min 58 s to go
announcer  frr

PREFIX          STATE     SINCE       ROUTE              BECAUSE
192.168.0.1/32  draining  3 h 12 min  graceful shutdown  -
";
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected_text);
        assert_eq!(*daemon.asked.lock().unwrap(), [expected]);
    }
    assert_eq!(DrainTimeout::default(), "10m".parse().unwrap());
    assert_eq!(DrainTimeout::default().get(), Duration::from_secs(600));
}

#[test]
fn a_drain_without_an_announcer_says_so() {
    let mut reply = draining(HealthState::Drained, 0);
    reply.announcer.kind = "none".to_owned();
    let text = shown(reply, "drain");
    assert!(
        text.contains("drain      by graceful shutdown, also after a restart, ordered 2.0 s ago\n"),
        "{text}"
    );
    assert!(text.ends_with("There is no announcer: withdraw the prefixes yourself.\n"), "{text}");
}

#[test]
fn drain_waits_and_says_how_far_it_is() {
    let with = |last: HealthReply| {
        let draining = |left| Ok(draining(HealthState::Draining, left));
        daemon(vec![draining(412), draining(57), draining(57), Ok(last)])
    };
    let drained = |left| draining(HealthState::Drained, left);
    // Over, and routing is not told yet.
    let announced = |since_ms| {
        let mut reply = drained(0);
        reply.prefixes[0].route = "graceful_shutdown".to_owned();
        reply.prefixes[0].since_ms = since_ms;
        reply
    };
    // Side by side: each waits a second between two looks.
    let runs = [
        (with(drained(0)), "drain --wait"),
        (with(drained(1)), "drain --wait"),
        (with(drained(0)), "--json drain --wait"),
        (daemon(vec![Ok(announced(59_999)), Ok(drained(0))]), "drain --wait"),
        (with(announced(60_000)), "drain --wait"),
        (with(reply()), "drain --wait"),
    ];
    let outputs = std::thread::scope(|scope| {
        let started =
            runs.each_ref().map(|(daemon, arguments)| scope.spawn(|| run(daemon, arguments)));
        started.map(|run| run.join().unwrap())
    });
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let error = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let [all_gone, one_left, json, late, too_late, undrained] = &outputs;

    assert_eq!(all_gone.status.code(), Some(0));
    let expected = "\
draining: 412 local sessions left, 9 min 58 s to go
draining: 57 local sessions left, 9 min 58 s to go
drained: no session is left
";
    assert_eq!(text(all_gone), expected);
    let asked = runs[0].0.asked.lock().unwrap();
    assert!(
        matches!(asked[0], Request::Drain { .. }) && asked[1..] == vec![Request::ShowHealth {}; 3]
    );

    assert_eq!(one_left.status.code(), Some(4));
    let last = "drained: the time is over, 1 local session left\n";
    assert!(text(one_left).ends_with(last), "{}", text(one_left));
    assert_eq!(error(one_left), "holdfastctl: the drain's time is over: 1 session left\n");

    // For programs, only how it ended.
    let json: HealthReply = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json, drained(0));

    // It waits on, but not for ever.
    assert_eq!(late.status.code(), Some(0));
    let expected = "drained: the prefixes are being withdrawn\ndrained: no session is left\n";
    assert_eq!(text(late), expected);
    assert_eq!(too_late.status.code(), Some(5));
    let announced = "192.168.0.1/32 may still be announced";
    assert!(error(too_late).contains(announced), "{}", error(too_late));

    assert_eq!(undrained.status.code(), Some(1));
    let not_any_more = "not to be drained any more";
    assert!(error(undrained).contains(not_any_more), "{}", error(undrained));
}

#[test]
fn bad_input_and_refusals_are_said() {
    let refusal = ProtocolError::new(ErrorCode::Forbidden, "only root may change something");
    let daemon = daemon(vec![Err(refusal)]);
    let rows = [
        (
            "drain --timeout 10",
            "expected a time with its unit, as in 90s or 10m, of at most one day",
        ),
        ("drain --timeout 25h", "expected a time with its unit"),
        ("drain --withdraw --graceful-shutdown", "cannot be used with"),
        ("undrain now", "unexpected argument 'now'"),
    ];
    for (arguments, expected) in rows {
        let output = run(&daemon, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(expected), "{error}");
    }
    assert!(daemon.asked.lock().unwrap().is_empty());
    for arguments in ["drain", "drain --wait", "undrain"] {
        let output = run(&daemon, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("only root may change something (forbidden)"), "{error}");
    }
}
