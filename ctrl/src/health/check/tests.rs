//! Checks of real services on this machine's loopback interface.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::channel;

use super::*;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

/// A listener for each family that this machine has.
fn listeners() -> Vec<TcpListener> {
    let bound = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(|address| {
        let listener = TcpListener::bind((address, 0));
        if listener.is_err() {
            println!("SKIPPED: no {address} on this machine");
        }
        listener.ok()
    });
    bound.into_iter().flatten().collect()
}

fn check(target: SocketAddr, kind: CheckKind, timeout: Duration) -> Check {
    Check { service: target, target, kind, interval: LONG, timeout, rise: 2, fall: 3 }
}

fn http() -> CheckKind {
    CheckKind::Http { path: "/up?now".to_owned(), status: 200, host: "example.org".to_owned() }
}

fn run(check: &Check) -> Result<(), CheckError> {
    probe(check, &AtomicBool::new(false))
}

fn error_of(check: &Check) -> String {
    run(check).unwrap_err().to_string()
}

/// Serves one client with `serve`, and makes one HTTP check meanwhile.
fn served(
    listener: &TcpListener,
    timeout: Duration,
    serve: impl FnOnce(TcpStream) + Send,
) -> Result<(), CheckError> {
    let check = check(listener.local_addr().unwrap(), http(), timeout);
    std::thread::scope(|scope| {
        scope.spawn(|| serve(listener.accept().unwrap().0));
        run(&check)
    })
}

/// What a service reads of a request: all of it, as it has no body.
fn request_of(mut stream: &TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    String::from_utf8(request).unwrap()
}

/// The outcome when the service answers with `answer` and closes.
fn answered(listener: &TcpListener, answer: &[u8]) -> Result<(), CheckError> {
    served(listener, LONG, |mut stream| {
        request_of(&stream);
        // The check may have seen enough, and be gone.
        let _ = stream.write_all(answer);
    })
}

#[test]
fn a_service_that_listens_is_up_by_tcp() {
    for listener in listeners() {
        run(&check(listener.local_addr().unwrap(), CheckKind::Tcp, LONG)).unwrap();
    }
}

#[test]
fn a_closed_port_is_down() {
    for listener in listeners() {
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = error_of(&check(address, CheckKind::Tcp, LONG));
        assert!(error.starts_with("Connection refused"), "{error}");
        let error = error_of(&check(address, http(), LONG));
        assert!(error.starts_with("Connection refused"), "{error}");
    }
}

/// Somewhere in the network there may be one who has it: nothing is sent there.
#[test]
fn an_address_that_this_server_does_not_have_is_down() {
    for address in ["192.0.2.1:80", "[2001:db8::1]:80"] {
        let target: SocketAddr = address.parse().unwrap();
        let error = error_of(&check(target, CheckKind::Tcp, LONG));
        if target.is_ipv6() && !error.starts_with("this server") {
            println!("SKIPPED: no IPv6 on this machine: {error}");
            continue;
        }
        assert_eq!(error, format!("this server does not have the address {}", target.ip()));
    }
}

/// The kernel answers for a service until its backlog is full.
#[test]
fn a_service_that_accepts_nobody_is_down_by_tcp() {
    for listener in listeners() {
        let address = listener.local_addr().unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, SHORT) {
            waiting.push(stream);
            assert!(waiting.len() < 10);
        }
        let error = error_of(&check(address, CheckKind::Tcp, SHORT));
        assert_eq!(error, "no connection within 200ms");
    }
}

#[test]
fn http_asks_as_it_is_told_and_takes_the_right_status() {
    for listener in listeners() {
        let (sender, requests) = channel();
        let outcome = served(&listener, LONG, move |mut stream| {
            sender.send(request_of(&stream)).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        });
        outcome.unwrap();
        let expected = "GET /up?now HTTP/1.1\r\nHost: example.org\r\nUser-Agent: holdfastd\r\n\
                        Accept: */*\r\nConnection: close\r\n\r\n";
        assert_eq!(requests.recv().unwrap(), expected);
    }
}

#[test]
fn http_takes_answers_of_every_sound_form() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-Header: value\r\n".repeat(100));
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(2 * ANSWER_MAX));
    let rows = ["HTTP/1.0 200\r\n\r\n", "HTTP/1.1 200 Everything is well\r\n", &many, &long];
    for listener in listeners() {
        for answer in rows {
            answered(&listener, answer.as_bytes()).unwrap();
        }
        // Byte by byte.
        let outcome = served(&listener, LONG, |mut stream| {
            request_of(&stream);
            for byte in b"HTTP/1.1 200 OK\r\n\r\n" {
                stream.write_all(&[*byte]).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        outcome.unwrap();
        // It stays open: what was said in time counts.
        let outcome = served(&listener, SHORT, |mut stream| {
            request_of(&stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            let _ = stream.read(&mut [0]);
        });
        outcome.unwrap();
    }
}

#[test]
fn http_refuses_what_is_wrong_and_says_what() {
    let endless = format!("HTTP/1.1 {}", "2".repeat(9000));
    let head = format!("HTTP/1.1 200 {}", "x".repeat(2 * HEAD_MAX));
    let rows: [(&[u8], &str); 8] = [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503 instead of 200"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "status 204 instead of 200"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "the answer is no HTTP: invalid HTTP version"),
        (b"\x16\x03\x01\x00\x00\x00\x00\x00\x00", "the answer is no HTTP: "),
        (b"", "closed without an answer"),
        (b"HTTP/1.1 2", "closed without an answer"),
        (endless.as_bytes(), "the answer is no HTTP: invalid response status"),
        (head.as_bytes(), "the answer has no status in its first 8192 bytes"),
    ];
    for listener in listeners() {
        for (answer, expected) in rows {
            let error = answered(&listener, answer).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

#[test]
fn a_service_that_is_slow_is_down() {
    for listener in listeners() {
        for answer in ["", "HTTP/1.1 200"] {
            let error = served(&listener, SHORT, |mut stream| {
                request_of(&stream);
                stream.write_all(answer.as_bytes()).unwrap();
                // Until the check is gone.
                let _ = stream.read(&mut [0]);
            });
            assert_eq!(error.unwrap_err().to_string(), "no answer within 200ms");
        }
    }
}

#[test]
fn a_service_that_resets_is_down() {
    for listener in listeners() {
        let error = served(&listener, LONG, |stream| {
            request_of(&stream);
            sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        });
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("Connection reset"), "{error}");
    }
}

#[test]
fn rise_and_fall() {
    // What is checked (+ success, - failure), and what it says after each (U up, D down).
    let rows = [
        ("+", "U"),
        ("-", "D"),
        ("+--+--+---+", "UUUUUUUUUDD"),
        ("---", "DDD"),
        ("-+-+-++", "DDDDDDU"),
        ("+---++---", "UUUDDUUUD"),
    ];
    for (outcomes, expected) in rows {
        let mut hysteresis = Hysteresis::default();
        let mut up = None;
        let after = |outcome| {
            let changed = hysteresis.note(outcome == '+', 2, 3);
            assert_eq!(changed, hysteresis.up != up, "{outcomes}");
            up = hysteresis.up;
            if up == Some(true) { 'U' } else { 'D' }
        };
        let states: String = outcomes.chars().map(after).collect();
        assert_eq!(states, expected, "{outcomes}");
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "not so: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_thread_follows_a_service_down_and_up() {
    for listener in listeners() {
        let address = listener.local_addr().unwrap();
        let interval = Duration::from_millis(5);
        let check = Check { interval, ..check(address, CheckKind::Tcp, LONG) };
        let checked = Arc::new(Checked::new(check));
        assert_eq!(checked.found().up, None);
        let changes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&changes);
        let count = move || {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let threads = CheckThreads::start(&[Arc::clone(&checked)], Arc::new(count)).unwrap();
        until("it is up", || checked.found().up == Some(true));
        drop(listener);
        until("it is down", || checked.found().up == Some(false));
        let found = checked.found();
        assert!(found.trouble.unwrap().starts_with("Connection refused"));
        assert!(found.failures >= 3 && found.checks > found.failures);
        let listener = TcpListener::bind(address).unwrap();
        until("it is up again", || checked.found().up == Some(true));
        drop(threads);
        let found = checked.found();
        assert_eq!((found.changes, found.trouble), (2, None));
        assert_eq!(changes.load(Ordering::Relaxed), 3, "the first one counts here");
        std::thread::sleep(interval * 5);
        assert_eq!(checked.found().checks, found.checks, "it has stopped");
        drop(listener);
    }
}

#[test]
fn neither_a_pause_nor_a_check_under_way_is_an_obstacle_to_the_end() {
    let mut listeners = listeners();
    let silent = listeners.remove(0);
    let hour = Duration::from_secs(3600);
    let silent = Check {
        interval: hour,
        ..check(silent.local_addr().unwrap(), http(), Duration::from_secs(60))
    };
    let closed =
        Check { interval: hour, ..check(([127, 0, 0, 1], 1).into(), CheckKind::Tcp, LONG) };
    let checks = [silent, closed].map(|check| Arc::new(Checked::new(check)));
    let threads = CheckThreads::start(&checks, Arc::new(|| ())).unwrap();
    until("one waits for its next check", || checks[1].found().checks == 1);
    let start = Instant::now();
    drop(threads);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(checks[0].found().checks, 0, "one that was broken off says nothing");
}
