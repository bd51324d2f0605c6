//! One session from its opening to its end, of one of three kinds. It never opens a
//! connection twice: a session that failed stays failed.

use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::control::{Control, Woken, unix_us};
use crate::http::{Connection, Head};
use crate::meter::Meter;
use crate::report::{Failure, Kind, SessionReport};

/// Idle sessions do not all ask in one moment, but over this time.
const PROBE_SPREAD: Duration = Duration::from_secs(1);

/// What all sessions have in common.
#[derive(Debug)]
pub struct Plan {
    /// The service.
    pub target: SocketAddr,
    /// Longest time without progress.
    pub timeout: Duration,
    /// Pause of a request session.
    pub request_interval: Duration,
    /// From a mark to the idle sessions' next request.
    pub probe_delay: Duration,
    /// Path of the large file.
    pub bulk_path: String,
    /// What its content hashes to.
    pub bulk_sha256: [u8; 32],
}

/// What a session tells the main thread.
#[derive(Debug)]
pub enum Event {
    /// It is established and had its first response.
    Opened {
        /// Its kind.
        kind: Kind,
        /// Who answered.
        server: String,
    },
    /// It ended, well or not.
    Done(Box<SessionReport>),
}

/// Runs a session and reports on it.
pub fn run(id: usize, kind: Kind, plan: &Plan, control: &Control, events: &Sender<Event>) {
    let mut session = Session {
        id,
        kind,
        plan,
        control,
        events,
        meter: Meter::default(),
        report: SessionReport::new(id, kind),
    };
    let failure = session.live().err();
    let report = SessionReport {
        failure,
        ended_unix_us: unix_us(),
        stalled_before_mark: session.meter.before_mark,
        stalled: session.meter.after_mark,
        stalled_until_unix_us: session.meter.after_mark_ended_unix_us,
        ..session.report
    };
    // The main thread is gone only when the program ends.
    let _ = events.send(Event::Done(Box::new(report)));
}

struct Session<'a> {
    id: usize,
    kind: Kind,
    plan: &'a Plan,
    control: &'a Control,
    events: &'a Sender<Event>,
    meter: Meter,
    report: SessionReport,
}

impl Session<'_> {
    fn live(&mut self) -> Result<(), Failure> {
        let mut connection = Connection::open(self.plan.target)?;
        self.report.local_port = connection.local_port();
        match self.kind {
            Kind::Idle => self.live_idle(&mut connection),
            Kind::Request => self.live_request(&mut connection),
            Kind::Bulk => self.live_bulk(&mut connection),
        }
    }

    /// Silence; a request some time after each mark, and a last one at the end.
    fn live_idle(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        self.exchange(connection)?;
        let mut seen = 0;
        loop {
            match self.control.wait(Some(seen), self.control.left()) {
                Woken::Mark(marks) => {
                    seen = marks;
                    self.control.wait(None, self.plan.probe_delay + self.own_part_of(PROBE_SPREAD));
                    self.exchange(connection)?;
                }
                Woken::Finish => {
                    std::thread::sleep(self.own_part_of(PROBE_SPREAD));
                    return self.exchange(connection);
                }
                Woken::Elapsed => return Err(Failure::TimedOut),
            }
        }
    }

    fn live_request(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        loop {
            self.exchange(connection)?;
            match self.control.wait(None, self.plan.request_interval) {
                Woken::Finish => return self.exchange(connection),
                _ if self.control.left().is_zero() => return Err(Failure::TimedOut),
                _ => {}
            }
        }
    }

    fn live_bulk(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        connection.limit(self.plan.timeout.min(self.control.left()))?;
        let mut since = Instant::now();
        connection.ask(&self.plan.bulk_path)?;
        let head = connection.read_head()?;
        self.meet(&head)?;
        self.report.bytes_expected = head.length;
        let mut hash = Sha256::new();
        while self.report.bytes < head.length {
            let piece = connection.read_piece(head.length - self.report.bytes)?;
            hash.update(piece);
            self.report.bytes += piece.len() as u64;
            self.meter.progress(since, self.control);
            since = Instant::now();
            self.note_under_way(since);
            if self.control.left().is_zero() {
                return Err(Failure::TimedOut);
            }
        }
        connection.expect_nothing_more()?;
        if hash.finalize()[..] != self.plan.bulk_sha256 {
            return Err(Failure::Corrupted("the download's SHA-256 is wrong".into()));
        }
        self.report.responses += 1;
        Ok(())
    }

    /// A download counts as under way when bytes came before the first mark and after.
    fn note_under_way(&mut self, now: Instant) {
        match self.control.first_mark() {
            None => self.report.bytes_before_mark = self.report.bytes,
            Some(mark) => {
                self.report.under_way_at_mark |= now > mark && self.report.bytes_before_mark > 0;
            }
        }
    }

    /// One small request and its whole response, which must be the one to it.
    fn exchange(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        connection.limit(self.plan.timeout.min(self.control.left()))?;
        let name = format!("{}-{}", self.id, self.report.responses);
        let since = Instant::now();
        connection.ask(&format!("/?id={name}"))?;
        let head = connection.read_head()?;
        let mut body = Vec::new();
        while (body.len() as u64) < head.length {
            let left = head.length - body.len() as u64;
            body.extend_from_slice(connection.read_piece(left)?);
        }
        connection.expect_nothing_more()?;
        if body != format!("holdfast lab {name}\n").as_bytes() {
            let text =
                String::from_utf8_lossy(&body[..body.len().min(80)]).escape_debug().to_string();
            return Err(Failure::Corrupted(format!("asked for {name}, got '{text}'")));
        }
        self.meter.progress(since, self.control);
        self.report.bytes += body.len() as u64;
        self.meet(&head)?;
        self.report.responses += 1;
        Ok(())
    }

    /// One session, one server: the first answer names it, all others must agree.
    fn meet(&mut self, head: &Head) -> Result<(), Failure> {
        if self.report.server.is_empty() {
            self.report.server.clone_from(&head.server);
            let _ =
                self.events.send(Event::Opened { kind: self.kind, server: head.server.clone() });
        } else if self.report.server != head.server {
            let server = &self.report.server;
            return Err(Failure::Corrupted(format!(
                "began at {server}, answered by {}",
                head.server
            )));
        }
        Ok(())
    }

    fn own_part_of(&self, spread: Duration) -> Duration {
        // A session's place in the spread: any fixed scatter does.
        let place = u32::try_from(self.id * 37 % 100).unwrap_or(0);
        spread * place / 100
    }
}
