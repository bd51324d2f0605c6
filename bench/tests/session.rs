//! session-load against session-serve, a web server, and a network with faults, all
//! over loopback.

#[path = "session/peers.rs"]
mod peers;
#[path = "session/programs.rs"]
mod programs;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use peers::{Fault, Way, proxy, proxy_in_turn, web_server};
use programs::{Load, Serve};
use serde_json::Value;

const FAMILIES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const IP: IpAddr = FAMILIES[0];
/// A target that none of a test's kinds uses.
const NOWHERE: SocketAddr = SocketAddr::new(IP, 1);

#[test]
fn sessions_of_every_kind_live_to_their_end() {
    for ip in FAMILIES {
        let (web, endings) = web_server(ip, |_| {});
        let serve = Serve::start(ip, "server7", &[]);
        let mut load = Load::start(
            web,
            Some(serve.address),
            "--idle 1 --request 1 --upload 2 --upload-bytes 150000 --upload-rate-kib 0 --echo 3 \
             --half-close 2 --host-close 2 --server-reset 2 --client-reset 2 --churn 2",
        );
        let ready = load.until("ready");
        assert_eq!((&ready["open"], &ready["failed_to_open"]), (&17.into(), &0.into()));
        assert_eq!(ready["by_server"]["server7"]["half_close"], 2);
        load.tell("status");
        let status = load.until("status");
        let of = |name: &str| status[name].as_u64().expect("a count");
        assert_eq!((of("open") + of("done"), of("failed")), (17, 0));
        let count = |ending: &std::sync::atomic::AtomicUsize| ending.load(Ordering::Relaxed);
        while count(&endings.client_reset) < 2 {
            thread::sleep(Duration::from_millis(5));
        }
        load.tell("mark");
        load.tell("finish");
        let result = load.until("result");
        assert_eq!((&result["ok"], &result["failed"]), (&17.into(), &0.into()), "{result}");
        for (kind, sessions) in [
            ("idle", 1),
            ("request", 1),
            ("upload", 2),
            ("echo", 3),
            ("half_close", 2),
            ("host_close", 2),
            ("server_reset", 2),
            ("client_reset", 2),
            ("churn", 2),
        ] {
            assert_eq!(result["by_kind"][kind]["ok"], sessions, "{kind}");
        }
        assert_eq!(result["by_server"]["server7"], 11);
        while !ask_raw(serve.address, b"COUNTS\n").ends_with(" resets=2\n") {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(count(&endings.client_fin) > 0 && count(&endings.server_fin) > 0);
        let connections = result["connections"].as_u64().expect("a count");
        assert!(connections >= 6, "{connections}");
        for session in result["per_session"].as_array().expect("sessions") {
            let bytes = |name: &str| session[name].as_u64().expect("a count");
            match session["kind"].as_str().expect("a kind") {
                // Whatever went up came back.
                "upload" => assert!(
                    bytes("bytes") >= 150_000 && bytes("bytes") == bytes("bytes_sent"),
                    "{session}"
                ),
                "echo" => assert!(
                    bytes("bytes") >= 2 * 16384 && bytes("bytes") == bytes("bytes_sent"),
                    "{session}"
                ),
                "half_close" => {
                    assert_eq!((bytes("bytes"), bytes("bytes_sent")), (32768, 65536));
                }
                "host_close" => assert_eq!((bytes("bytes"), bytes("bytes_sent")), (0, 32768)),
                "server_reset" => assert!(session["reset_after_probe"].is_boolean()),
                _ => {}
            }
        }
    }
}

/// The outcomes of the load's sessions against session-serve behind the fault.
fn outcomes_behind(fault: Fault, kinds: &str) -> Value {
    let serve = Serve::start(IP, "server1", &[]);
    let mut load = Load::start(NOWHERE, Some(proxy(serve.address, fault)), kinds);
    load.until("ready");
    load.until("result")
}

#[test]
fn a_wrong_or_missing_byte_is_found_in_either_direction() {
    for (kind, fault) in [
        ("echo", Fault::Flip(Way::Down, 20_000)),
        ("echo", Fault::Flip(Way::Up, 20_000)),
        ("half-close", Fault::Flip(Way::Up, 40_000)),
        ("half-close", Fault::Lose(Way::Up, 40_000)),
        ("half-close", Fault::Flip(Way::Down, 2000)),
        ("host-close", Fault::Flip(Way::Up, 2000)),
        ("host-close", Fault::Lose(Way::Up, 2000)),
    ] {
        let result = outcomes_behind(fault, &format!("--{kind} 1"));
        assert_eq!((&result["corrupted"], &result["failed"]), (&1.into(), &1.into()), "{result}");
        let detail = result["per_session"][0]["detail"].as_str().expect("a detail");
        assert!(!detail.is_empty());
    }
    // A missing byte at the end of the stream is an early end of it.
    let result = outcomes_behind(Fault::Lose(Way::Down, 32_000), "--half-close 1");
    assert_eq!((&result["failed"], &result["ok"]), (&1.into(), &0.into()), "{result}");
}

#[test]
fn an_end_too_early_is_counted_as_what_it_is() {
    for (kind, fault, class) in [
        ("echo", Fault::CutByReset(30_000), "reset"),
        ("echo", Fault::CutByFin(30_000), "eof"),
        ("half-close", Fault::CutByReset(1000), "reset"),
        ("half-close", Fault::CutByFin(1000), "eof"),
        // Just after the echo, within or after the answer to the request for the RST.
        ("server-reset", Fault::CutByReset(16_400), "reset"),
        ("server-reset", Fault::CutByFin(16_400), "eof"),
        ("client-reset", Fault::CutByReset(1), "reset"),
    ] {
        let result = outcomes_behind(fault, &format!("--{kind} 2 --server-reset-ms 60000"));
        assert_eq!((&result[class], &result["failed"]), (&2.into(), &2.into()), "{result}");
    }
}

#[test]
fn a_reset_that_was_lost_comes_after_a_probe() {
    let result = outcomes_behind(Fault::LoseReset, "--server-reset 1");
    assert_eq!(result["ok"], 1, "{result}");
    assert_eq!(result["per_session"][0]["reset_after_probe"], true);
}

#[test]
fn a_verdict_is_the_own_servers() {
    let behind = |names: [&str; 3], kinds| {
        let servers = names.map(|name| Serve::start(IP, name, &[]));
        let targets = servers.iter().map(|server| server.address).collect();
        Load::start(NOWHERE, Some(proxy_in_turn(targets, Fault::None)), kinds).until("result")
    };
    let result = behind(["server1", "server2", "server3"], "--host-close 2");
    assert_eq!(result["ok"], 2, "{result}");
    // As when a server started anew: it must know of the session, and does not.
    let result = behind(["server1", "server1", "server1"], "--host-close 1");
    assert_eq!(result["corrupted"], 1, "{result}");
}

#[test]
fn an_upload_that_comes_back_changed_or_short_is_corrupted() {
    let spoilers: [fn(&mut Vec<u8>); 2] =
        [|bytes| bytes[70_000] ^= 0x80, |bytes| bytes.truncate(70_000)];
    for spoil in spoilers {
        let (web, _) = web_server(IP, spoil);
        let mut load = Load::start(web, None, "--upload 2 --upload-bytes 100000");
        let result = load.until("result");
        assert_eq!((&result["corrupted"], &result["failed"]), (&2.into(), &2.into()), "{result}");
    }
}

#[test]
fn a_loop_ends_at_the_connection_that_fails_and_says_where() {
    let listener = TcpListener::bind((IP, 0)).expect("a listener");
    let closed = listener.local_addr().expect("its address");
    drop(listener);
    let (web, _) = web_server(IP, |_| {});
    for (target, phase) in [
        (closed, "connect"),
        (proxy(web, Fault::CutByReset(10)), "request"),
        // The answer is complete: a head of 54 bytes and `holdfast lab 0-0`.
        (proxy(web, Fault::CutByReset(54 + 17)), "close"),
    ] {
        let result = Load::start(target, None, "--churn 1").until("result");
        assert_eq!((&result["reset"], &result["failed"]), (&1.into(), &1.into()), "{result}");
        let session = &result["per_session"][0];
        assert_eq!((&session["phase"], &session["connections"]), (&phase.into(), &0.into()));
    }
}

#[test]
fn a_server_that_is_not_there_is_a_failure_of_the_opening() {
    let closed = TcpListener::bind((IP, 0)).and_then(|l| l.local_addr()).expect("a free port");
    let mut load = Load::start(NOWHERE, Some(closed), "--echo 2");
    let ready = load.until("ready");
    assert_eq!((&ready["open"], &ready["failed_to_open"]), (&0.into(), &2.into()));
    assert_eq!(load.until("result")["other"], 2);
}

/// The first of three ports in a row that nobody uses, below the kernel's own choice.
fn three_free_ports() -> u16 {
    (20_000..30_000)
        .step_by(3)
        .find(|first| (0..3).all(|more| TcpListener::bind((IP, first + more)).is_ok()))
        .expect("free ports")
}

#[test]
fn sessions_come_from_their_own_ports_and_address() {
    let serve = Serve::start(IP, "server1", &[]);
    let first = three_free_ports();
    let options =
        format!("--echo 3 --source-port-first {first} --source-address 127.0.0.9 --data-with-ack");
    let mut load = Load::start(NOWHERE, Some(serve.address), &options);
    load.until("ready");
    load.tell("finish");
    let result = load.until("result");
    assert_eq!(result["ok"], 3, "{result}");
    for (number, session) in (0..).zip(result["per_session"].as_array().expect("sessions")) {
        assert_eq!(session["local_port"], first + number);
    }
}

/// Sends `request` and reads to the end of the connection.
fn ask_raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let mut answer = String::new();
    // The server may end the connection at any time, by RST if it left bytes unread:
    // what it answered before is what counts.
    let _ = stream
        .write_all(request)
        .and_then(|()| stream.shutdown(Shutdown::Write))
        .and_then(|()| stream.read_to_string(&mut answer));
    answer
}

#[test]
fn broken_input_ends_its_connection_alone() {
    let serve = Serve::start(IP, "server1", &[]);
    let mut other = TcpStream::connect(serve.address).expect("a connection");
    let mut echo = || {
        other.write_all(b"ECHO 3\nabc").expect("a write");
        let mut answer = [0; 14];
        other.read_exact(&mut answer).expect("an echo");
        assert_eq!(&answer, b"OK server1\nabc");
    };
    echo();
    assert_eq!(ask_raw(serve.address, b"VERDICT a\n"), "OK server1 unknown\n");
    assert_eq!(ask_raw(serve.address, b"GET / HTTP/1.1\n"), "ERROR server1\n");
    assert_eq!(ask_raw(serve.address, b"\xff\n"), "ERROR server1\n");
    assert_eq!(ask_raw(serve.address, b"ECHO 99999999\n"), "ERROR server1\n");
    assert_eq!(ask_raw(serve.address, b"half a line"), "ERROR server1\n");
    assert_eq!(ask_raw(serve.address, b"ECHO 5\nabc"), "");
    assert_eq!(ask_raw(serve.address, b""), "");
    ask_raw(serve.address, &[b'a'; 10_000]);
    assert_eq!(ask_raw(serve.address, b"CLOSE t 1 8\n1234"), "OK server1\n");
    let verdict = ask_raw(serve.address, b"VERDICT t\n");
    assert!(verdict.starts_with("OK server1 bad "), "{verdict}");
    let counts = ask_raw(serve.address, b"COUNTS\n");
    assert!(counts.starts_with("OK server1 accepted=12 "), "{counts}");
    assert!(counts.ends_with(" refused=0 bad_requests=5 resets=0\n"), "{counts}");
    echo();
}

#[test]
fn a_connection_too_many_is_refused() {
    let serve = Serve::start(IP, "server1", &["--connections-max", "2"]);
    let mut load = Load::start(NOWHERE, Some(serve.address), "--echo 2");
    load.until("ready");
    assert_eq!(ask_raw(serve.address, b"COUNTS\n"), "");
    load.tell("finish");
    assert_eq!(load.until("result")["ok"], 2);
    let counts = loop {
        // Its threads see the ends of the load's connections in their own time.
        let counts = ask_raw(serve.address, b"COUNTS\n");
        if !counts.is_empty() {
            break counts;
        }
    };
    assert!(counts.starts_with("OK server1 accepted=3 "), "{counts}");
    assert!(!counts.contains("refused=0"), "{counts}");
}
