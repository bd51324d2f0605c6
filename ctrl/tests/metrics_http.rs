//! The metrics' HTTP server against clients that behave, that do not, and that are too many.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use holdfast::metrics::Format;
use holdfast::metrics::http::{CLIENTS_MAX, Counts, MetricsServer, Source, Unavailable};

/// Metrics that are the server's own counts, large ones when asked for, and a health.
struct Readings {
    is_well: bool,
    body: usize,
}

impl Source for Readings {
    fn metrics(&self, format: Format, counts: Counts) -> Result<String, Unavailable> {
        Ok(format!("{format:?} {counts:?}{}", "x".repeat(self.body)))
    }

    fn health(&self) -> Result<(), Unavailable> {
        if self.is_well { Ok(()) } else { Err("the DHT service is not running".to_owned()) }
    }
}

fn server(is_well: bool, body: usize) -> MetricsServer {
    let address = "127.0.0.1:0".parse().unwrap();
    MetricsServer::start(address, Arc::new(Readings { is_well, body })).unwrap()
}

/// The whole answer to what is sent.
fn say(address: SocketAddr, request: &[u8]) -> String {
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(request).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

fn get(server: &MetricsServer, target: &str) -> String {
    say(server.address(), format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
}

/// Status, header fields and body.
fn parts(answer: &str) -> (&str, &str, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (status, fields) = head.split_once("\r\n").unwrap();
    let length = format!("Content-Length: {}", body.len());
    assert!(fields.contains(&length) && fields.contains("Connection: close"), "{fields}");
    (status, fields, body)
}

#[test]
fn metrics_and_health_and_nothing_else() {
    let server = server(true, 0);
    let answer = get(&server, "/metrics");
    let (status, fields, body) = parts(&answer);
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(fields.starts_with(
        "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
    ));
    assert!(body.starts_with("OpenMetrics "), "{body}");
    assert_eq!(parts(&get(&server, "/metrics?name[]=x")).0, "HTTP/1.1 200 OK");
    let answer = get(&server, "/healthz");
    assert_eq!((parts(&answer).0, parts(&answer).2), ("HTTP/1.1 200 OK", "ok\n"));
    for target in ["/", "/metrics/", "/metric", "/healthz/x", "*"] {
        assert_eq!(parts(&get(&server, target)).0, "HTTP/1.1 404 Not Found", "{target}");
    }
    for method in ["POST", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        let request = format!("{method} /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
        let answer = say(server.address(), request.as_bytes());
        let (status, fields, _) = parts(&answer);
        assert_eq!(status, "HTTP/1.1 405 Method Not Allowed");
        assert!(fields.contains("\r\nAllow: GET\r\n"), "{fields}");
    }
    let counts = get(&server, "/metrics");
    assert!(counts.contains("answered: [3, 0, 5, 5, 0, 0], lost: 0"), "{counts}");
}

#[test]
fn a_reader_of_the_older_text_gets_it() {
    let server = server(true, 0);
    let format_of = |accept: &str| {
        let request = format!("GET /metrics HTTP/1.1\r\nACCEPT: {accept}\r\n\r\n");
        let answer = say(server.address(), request.as_bytes());
        parts(&answer).2.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(format_of("text/plain"), "Text");
    assert_eq!(format_of("*/*"), "OpenMetrics");
    let both = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5";
    assert_eq!(format_of(both), "OpenMetrics");
}

#[test]
fn a_daemon_that_is_not_well_says_so() {
    let server = server(false, 0);
    let answer = get(&server, "/healthz");
    let expected = ("HTTP/1.1 503 Service Unavailable", "the DHT service is not running\n");
    assert_eq!((parts(&answer).0, parts(&answer).2), expected);
}

#[test]
fn what_is_no_request_is_refused() {
    let server = server(true, 0);
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    ] {
        let answer = say(server.address(), request);
        assert_eq!(parts(&answer).0, "HTTP/1.1 400 Bad Request", "{request:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    for request in [long, many] {
        let answer = say(server.address(), request.as_bytes());
        assert_eq!(parts(&answer).0, "HTTP/1.1 431 Request Header Fields Too Large");
    }
}

#[test]
fn a_request_may_come_in_pieces() {
    let server = server(true, 0);
    let mut client = TcpStream::connect(server.address()).unwrap();
    client.set_nodelay(true).unwrap();
    for byte in b"GET /healthz HTTP/1.0\r\n\r\n" {
        client.write_all(&[*byte]).unwrap();
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(parts(&answer).2, "ok\n");
}

/// Those who say nothing, those who leave, and those who do not read: the others are served.
#[test]
fn clients_that_do_not_behave_harm_nobody() {
    // More than the sockets' buffers take.
    let server = server(true, 32 << 20);
    let gone = TcpStream::connect(server.address()).unwrap();
    drop(gone);
    let silent: Vec<_> =
        (0..CLIENTS_MAX / 2).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let deaf: Vec<_> = (0..CLIENTS_MAX / 2 + 3)
        .map(|_| {
            let mut client = TcpStream::connect(server.address()).unwrap();
            client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
            client
        })
        .collect();
    // It waits until they had their time.
    let answer = get(&server, "/healthz");
    assert_eq!(parts(&answer).2, "ok\n");
    drop((silent, deaf));
    let counts = get(&server, "/metrics");
    let lost: usize =
        counts.split("lost: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(lost > CLIENTS_MAX / 2, "{lost}");
}

#[test]
fn it_stops_though_clients_are_there_and_gives_its_address_back() {
    let first = server(true, 0);
    let address = first.address();
    let _silent = TcpStream::connect(address).unwrap();
    assert!(MetricsServer::start(address, Arc::new(Readings { is_well: true, body: 0 })).is_err());
    drop(first);
    let again =
        MetricsServer::start(address, Arc::new(Readings { is_well: true, body: 0 })).unwrap();
    assert_eq!(parts(&get(&again, "/healthz")).2, "ok\n");
}
