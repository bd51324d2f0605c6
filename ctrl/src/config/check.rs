//! `[[check]]`: how this server finds out whether its services answer. Never makes a check.

use std::net::SocketAddr;
use std::time::Duration;

use toml::de::DeTable;

use super::reader::{Reader, Section};
use super::{Config, MINUTE, millis, seconds};

/// Most checks: each has a thread.
pub const CHECKS_MAX: usize = 64;
/// Longest path of an HTTP check in bytes, and longest host.
const PATH_MAX: usize = 1024;
const HOST_MAX: usize = 255;
const STATUS: u16 = 200;
const ROOT: &str = "/";

/// `[[check]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The service that is checked; one of the configuration's.
    pub service: SocketAddr,
    /// Where to: the service's address, and its port or another one.
    pub target: SocketAddr,
    /// What is asked.
    pub kind: CheckKind,
    /// From the begin of one check to that of the next.
    pub interval: Duration,
    /// How long a check may take; at most `interval`.
    pub timeout: Duration,
    /// Successes in a row after which a service that was down is up; at least 1.
    pub rise: u32,
    /// Failures in a row after which a service that was up is down; at least 1.
    pub fall: u32,
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckKind {
    /// That the kernel accepts a connection.
    Tcp,
    /// That a GET is answered with a status.
    Http {
        /// The request's target, from its `/` on.
        path: String,
        /// The status that is right.
        status: u16,
        /// The Host header.
        host: String,
    },
}

impl CheckKind {
    /// The word in the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            CheckKind::Tcp => "tcp",
            CheckKind::Http { .. } => "http",
        }
    }
}

const KINDS: &[(&str, bool)] = &[("tcp", false), ("http", true)];

fn graphic(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic())
}

pub(super) fn checks(reader: &mut Reader<'_>) -> Vec<Check> {
    let tables = reader.tables("check");
    if tables.len() > CHECKS_MAX {
        let right = format_args!("{} checks: expected at most {CHECKS_MAX}", tables.len());
        reader.refuse("check", right);
    }
    let mut checks = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        checks.push(check(reader, &format!("check[{index}]"), table));
    }
    checks
}

fn check<'a>(reader: &mut Reader<'a>, name: &str, table: DeTable<'a>) -> Check {
    let mut section = Section::new(reader, name.to_owned(), table);
    let service = section.required(
        "service",
        "ADDRESS:PORT of a [[service]], as in \"192.168.0.1:80\" or \"[2001:db8::80]:80\"",
        SocketAddr::from(([0; 4], 0)),
        |text| text.parse().ok(),
    );
    let port: u16 = section.number("port", 0, 0..=65535);
    let target = SocketAddr::new(service.ip(), if port == 0 { service.port() } else { port });
    let is_http = section.choice("kind", KINDS);
    let path = section.text(
        "path",
        "a path of at most 1024 printable ASCII characters that begins with \"/\"",
        (ROOT, ROOT.to_owned()),
        |text| (text.starts_with('/') && graphic(text, PATH_MAX)).then(|| text.to_owned()),
    );
    let status = section.number("status", STATUS, 100..=599);
    let host = section.optional(
        "host",
        "a name, or a name and a port, of at most 255 printable ASCII characters",
        |text| graphic(text, HOST_MAX).then(|| text.to_owned()),
    );
    let interval = section.duration("interval", seconds(2), millis(100)..=seconds(5 * MINUTE));
    let timeout = section.duration("timeout", seconds(1), millis(10)..=seconds(MINUTE));
    let (rise, fall) = (section.number("rise", 2, 1..=100), section.number("fall", 3, 1..=100));
    section.finish();
    if !is_http {
        for (key, is_set) in
            [("path", path != ROOT), ("status", status != STATUS), ("host", host.is_some())]
        {
            if is_set {
                reader.refuse(&format!("{name}.{key}"), "expected only with kind = \"http\"");
            }
        }
    }
    let host = host.unwrap_or_else(|| target.to_string());
    let kind = if is_http { CheckKind::Http { path, status, host } } else { CheckKind::Tcp };
    Check { service, target, kind, interval, timeout, rise, fall }
}

pub(super) fn check_checks(reader: &mut Reader<'_>, config: &Config) {
    for (index, check) in config.checks.iter().enumerate() {
        let key = |key: &str| format!("check[{index}].{key}");
        if !config.service_sockets().any(|service| service == check.service)
            && reader.sound(&[&key("service"), "service"])
        {
            reader.refuse(&key("service"), "expected an address and a port of a [[service]]");
        }
        if check.timeout > check.interval && reader.sound(&[&key("timeout"), &key("interval")]) {
            reader.refuse(&key("timeout"), format_args!("expected at most {}", key("interval")));
        }
    }
}
