//! What is said of a session and of all of them. It counts; it does not judge.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::control::unix_us;

/// How a session behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Kept alive and silent.
    Idle,
    /// Asks at a fixed pace.
    Request,
    /// Downloads one large file.
    Bulk,
    /// Uploads a file and downloads it, again and again.
    Upload,
    /// Sends blocks and gets them back, at a fixed pace.
    Echo,
    /// Sends FIN first, then receives.
    HalfClose,
    /// Gets FIN first, then sends.
    HostClose,
    /// Is to be ended by the server's RST.
    ServerReset,
    /// Ends itself with RST.
    ClientReset,
    /// Opens and closes connections, one after another.
    Churn,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Idle,
        Self::Request,
        Self::Bulk,
        Self::Upload,
        Self::Echo,
        Self::HalfClose,
        Self::HostClose,
        Self::ServerReset,
        Self::ClientReset,
        Self::Churn,
    ];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Request => "request",
            Self::Bulk => "bulk",
            Self::Upload => "upload",
            Self::Echo => "echo",
            Self::HalfClose => "half_close",
            Self::HostClose => "host_close",
            Self::ServerReset => "server_reset",
            Self::ClientReset => "client_reset",
            Self::Churn => "churn",
        }
    }

    /// Its peer is session-serve, not the web server.
    pub fn needs_session_serve(self) -> bool {
        matches!(
            self,
            Self::Echo | Self::HalfClose | Self::HostClose | Self::ServerReset | Self::ClientReset
        )
    }
}

/// Why a session failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The peer answered RST (ECONNRESET, or EPIPE when it came before a write).
    Reset,
    /// The peer ended the session in the midst of it.
    Closed,
    /// No progress for the whole timeout.
    TimedOut,
    /// Wrong content, wrong hash, or another server in the same session.
    Corrupted(String),
    /// Anything else, e.g. it could not be opened.
    Other(String),
}

impl Failure {
    /// The classes as they are printed, in order.
    const CLASSES: [&'static str; 5] = ["reset", "eof", "timeout", "corrupted", "other"];

    /// Class and detail.
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Reset => ("reset", ""),
            Self::Closed => ("eof", ""),
            Self::TimedOut => ("timeout", ""),
            Self::Corrupted(detail) => ("corrupted", detail),
            Self::Other(detail) => ("other", detail),
        }
    }
}

/// One session, as it was.
#[derive(Debug, Clone)]
pub struct SessionReport {
    /// Its number.
    pub id: usize,
    /// Its kind.
    pub kind: Kind,
    /// The client's port, of its last connection; 0: never opened.
    pub local_port: u16,
    /// It was established and had its first response.
    pub opened: bool,
    /// Who gave the first response (`X-Server` over HTTP); empty: there was none.
    pub server: String,
    /// `None`: it lived to its end.
    pub failure: Option<Failure>,
    /// Wall clock at its end, in microseconds.
    pub ended_unix_us: u64,
    /// Whole responses.
    pub responses: u64,
    /// Bytes of bodies that came.
    pub bytes: u64,
    /// Bytes of bodies that were sent.
    pub bytes_sent: u64,
    /// Churn: connections that were opened, used and closed as they should.
    pub connections: u64,
    /// Churn: what the connection was at when it failed: connect, request or close.
    pub phase: Option<&'static str>,
    /// How long the handshake of that connection took, of churn: a second says that a SYN or
    /// its answer was repeated.
    pub connect: Duration,
    /// Server reset: the RST came only when the client had sent once more, after
    /// the time, as it does when the server's RST was lost.
    pub reset_after_probe: bool,
    /// Length of the download, for a bulk session.
    pub bytes_expected: u64,
    /// Of those, how many came before the first mark.
    pub bytes_before_mark: u64,
    /// Bulk: bytes came both before and after the first mark.
    pub under_way_at_mark: bool,
    /// Longest stall before the first mark.
    pub stalled_before_mark: Duration,
    /// Longest stall that ended after it.
    pub stalled: Duration,
    /// Wall clock at that stall's end, in microseconds.
    pub stalled_until_unix_us: u64,
}

impl SessionReport {
    /// Of a session that has not begun.
    pub fn new(id: usize, kind: Kind) -> Self {
        Self {
            id,
            kind,
            local_port: 0,
            opened: false,
            server: String::new(),
            failure: None,
            ended_unix_us: 0,
            responses: 0,
            bytes: 0,
            bytes_sent: 0,
            connections: 0,
            phase: None,
            connect: Duration::ZERO,
            reset_after_probe: false,
            bytes_expected: 0,
            bytes_before_mark: 0,
            under_way_at_mark: false,
            stalled_before_mark: Duration::ZERO,
            stalled: Duration::ZERO,
            stalled_until_unix_us: 0,
        }
    }

    fn outcome(&self) -> &'static str {
        self.failure.as_ref().map_or("ok", |failure| failure.words().0)
    }

    fn to_json(&self) -> Value {
        let mut value = json!({
            "session": self.id, "kind": self.kind.name(), "local_port": self.local_port, "server": self.server,
            "outcome": self.outcome(), "ended_unix_us": self.ended_unix_us,
            "responses": self.responses, "bytes": self.bytes, "bytes_sent": self.bytes_sent,
            "stalled_before_mark_ms": whole_ms(self.stalled_before_mark),
            "stalled_ms": whole_ms(self.stalled), "stalled_until_unix_us": self.stalled_until_unix_us,
        });
        if let Some((_, detail)) =
            self.failure.as_ref().map(Failure::words).filter(|(_, detail)| !detail.is_empty())
        {
            value["detail"] = detail.into();
        }
        match self.kind {
            Kind::Bulk => {
                value["bytes_expected"] = self.bytes_expected.into();
                value["under_way_at_mark"] = self.under_way_at_mark.into();
            }
            Kind::Churn => {
                value["connections"] = self.connections.into();
                if let (Some(phase), Some(_)) = (self.phase, &self.failure) {
                    value["phase"] = phase.into();
                    value["connect_ms"] = whole_ms(self.connect).into();
                }
            }
            Kind::ServerReset => value["reset_after_probe"] = self.reset_after_probe.into(),
            _ => {}
        }
        value
    }
}

/// How many sessions are what, at any time.
#[derive(Debug, Default)]
pub struct Counts {
    /// Established and not ended.
    pub open: AtomicUsize,
    /// Ended by a failure.
    pub failed: AtomicUsize,
    /// Ended as they should.
    pub done: AtomicUsize,
}

impl Counts {
    /// A session opened.
    pub fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// A session ended.
    pub fn ended(&self, report: &SessionReport) {
        if report.opened {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
        let outcome = if report.failure.is_some() { &self.failed } else { &self.done };
        outcome.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer to `status`.
    pub fn to_json(&self) -> Value {
        json!({
            "event": "status", "unix_us": unix_us(), "open": self.open.load(Ordering::Relaxed),
            "failed": self.failed.load(Ordering::Relaxed), "done": self.done.load(Ordering::Relaxed),
        })
    }
}

/// All sessions.
#[derive(Debug)]
pub struct Summary {
    sessions: Vec<SessionReport>,
    marks_unix_us: Vec<u64>,
}

impl Summary {
    /// Orders the reports by session.
    pub fn new(mut sessions: Vec<SessionReport>, marks_unix_us: Vec<u64>) -> Self {
        sessions.sort_by_key(|session| session.id);
        Self { sessions, marks_unix_us }
    }

    /// The line that ends a run.
    pub fn to_json(&self) -> Value {
        let by_kind: BTreeMap<_, _> = Kind::ALL
            .iter()
            .map(|kind| {
                (kind.name(), tally(self.sessions.iter().filter(|session| session.kind == *kind)))
            })
            .collect();
        let mut result = tally(self.sessions.iter());
        result["event"] = "result".into();
        result["marks_unix_us"] = self.marks_unix_us.clone().into();
        result["bulk_under_way_at_mark"] =
            self.sessions.iter().filter(|s| s.under_way_at_mark).count().into();
        result["by_kind"] = json!(by_kind);
        result["by_server"] = json!(self.by_server());
        result["per_session"] = self.sessions.iter().map(SessionReport::to_json).collect();
        result
    }

    fn by_server(&self) -> BTreeMap<&str, usize> {
        let mut count = BTreeMap::new();
        for session in self.sessions.iter().filter(|session| !session.server.is_empty()) {
            *count.entry(session.server.as_str()).or_default() += 1;
        }
        count
    }
}

/// Counts by outcome, and the longest stalls.
fn tally<'a>(sessions: impl Iterator<Item = &'a SessionReport> + Clone) -> Value {
    let count =
        |outcome: &str| sessions.clone().filter(|session| session.outcome() == outcome).count();
    let longest = |stall: fn(&SessionReport) -> Duration| {
        whole_ms(sessions.clone().map(stall).max().unwrap_or_default())
    };
    let total = sessions.clone().count();
    let mut value = json!({
        "sessions": total, "ok": count("ok"), "failed": total - count("ok"),
        "connections": sessions.clone().map(|session| session.connections).sum::<u64>(),
        "stalled_max_ms": longest(|session| session.stalled),
        "stalled_before_mark_max_ms": longest(|session| session.stalled_before_mark),
    });
    for class in Failure::CLASSES {
        value[class] = count(class).into();
    }
    value
}

/// In milliseconds.
pub fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_is_counted_once_and_under_its_cause() {
        let failures = [
            None,
            Some(Failure::Reset),
            Some(Failure::Closed),
            Some(Failure::TimedOut),
            Some(Failure::Corrupted("x".into())),
            Some(Failure::Other("y".into())),
            Some(Failure::Reset),
        ];
        let reports = failures.into_iter().enumerate().map(|(id, failure)| {
            let kind = if id == 1 { Kind::Bulk } else { Kind::Idle };
            let stalled = Duration::from_millis(10 * id as u64);
            SessionReport {
                failure,
                stalled,
                server: "server1".into(),
                ..SessionReport::new(id, kind)
            }
        });
        let result = Summary::new(reports.collect(), vec![7]).to_json();
        for (name, count) in [
            ("sessions", 7),
            ("ok", 1),
            ("failed", 6),
            ("reset", 2),
            ("eof", 1),
            ("timeout", 1),
            ("corrupted", 1),
            ("other", 1),
        ] {
            assert_eq!(result[name], count, "{name}");
        }
        assert_eq!(result["by_kind"]["bulk"]["reset"], 1);
        assert_eq!(result["by_kind"]["idle"]["reset"], 1);
        assert_eq!(result["by_kind"]["request"]["sessions"], 0);
        assert_eq!(result["stalled_max_ms"], 60);
        assert_eq!(result["by_server"]["server1"], 7);
        assert_eq!(result["per_session"][4]["detail"], "x");
    }

    #[test]
    fn status_counts_each_session_once() {
        let counts = Counts::default();
        let mut report = SessionReport::new(0, Kind::Echo);
        report.failure = Some(Failure::Reset);
        counts.ended(&report);
        counts.opened();
        counts.opened();
        counts.opened();
        report.opened = true;
        counts.ended(&report);
        report.failure = None;
        counts.ended(&report);
        let status = counts.to_json();
        assert_eq!((&status["open"], &status["failed"]), (&json!(1), &json!(2)));
        assert_eq!((&status["event"], &status["done"]), (&json!("status"), &json!(1)));
    }

    #[test]
    fn loops_say_how_many_connections_and_where_they_failed() {
        let churn = |failure, phase| SessionReport {
            failure,
            connections: 4,
            phase,
            ..SessionReport::new(0, Kind::Churn)
        };
        let sessions =
            vec![churn(Some(Failure::Reset), Some("close")), churn(None, Some("request"))];
        let result = Summary::new(sessions, vec![]).to_json();
        assert_eq!(result["connections"], 8);
        assert_eq!(result["by_kind"]["churn"]["connections"], 8);
        assert_eq!(result["by_kind"]["idle"]["connections"], 0);
        assert_eq!(result["per_session"][0]["phase"], "close");
        assert_eq!(result["per_session"][1]["phase"], Value::Null);
    }
}
