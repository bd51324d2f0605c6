//! One session from its opening to its end: what all kinds have in common, and the
//! kinds that only ask a web server. A session that failed stays failed: it is never
//! opened again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use holdfast_bench::pattern;
use sha2::{Digest, Sha256};

use crate::connection::{Connection, Dial};
use crate::control::{Control, Woken, unix_us};
use crate::meter::Meter;
use crate::report::{Failure, Kind, SessionReport};

/// Idle sessions do not all ask in one moment, but over this time.
const PROBE_SPREAD: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 16 * 1024;
const BULK_READ_BYTES: usize = 64 * 1024;
/// A host-close session only writes: with a large send buffer it would not see that
/// nothing goes out.
const HOST_CLOSE_SEND_BYTES: usize = 16 * 1024;

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
    /// session-serve; it is there if any session needs it.
    pub serve_target: Option<SocketAddr>,
    /// Address that sessions come from.
    pub source_address: Option<IpAddr>,
    /// Port of session 0, from which the others' follow.
    pub source_port_first: Option<u16>,
    /// As in [`Dial`].
    pub data_with_ack: bool,
    /// Length of an upload.
    pub upload_bytes: u64,
    /// Bytes per second of an upload; 0: as fast as it goes.
    pub upload_rate: u64,
    /// Path of an upload, before the session's number.
    pub upload_path: String,
    /// Length of an echo's block.
    pub echo_bytes: usize,
    /// How long a session goes on after the first FIN.
    pub half_close: Duration,
    /// Bytes per second meanwhile.
    pub half_close_rate: u64,
    /// How long after the request the server is to send RST.
    pub server_reset: Duration,
    /// Between two connections of a churn loop.
    pub churn_pause: Duration,
    /// Differs between runs: their patterns and tokens do, too.
    pub run: u64,
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

/// A session and all that it uses.
pub struct Session<'a> {
    /// Its number.
    pub id: usize,
    kind: Kind,
    /// What it has in common with the others.
    pub plan: &'a Plan,
    /// The run.
    pub control: &'a Control,
    events: &'a Sender<Event>,
    /// Its stalls.
    pub meter: Meter,
    /// What will be said of it.
    pub report: SessionReport,
}

impl Session<'_> {
    fn live(&mut self) -> Result<(), Failure> {
        match self.kind {
            Kind::Idle => self.live_idle(),
            Kind::Request => self.live_request(),
            Kind::Bulk => self.live_bulk(),
            Kind::Upload => self.live_upload(),
            Kind::Echo => self.live_echo(),
            Kind::HalfClose => self.live_half_close(),
            Kind::HostClose => self.live_host_close(),
            Kind::ServerReset => self.live_server_reset(),
            Kind::ClientReset => self.live_client_reset(),
            Kind::Churn => self.live_churn(),
        }
    }

    /// Opens the session's own connection.
    pub fn open(&mut self) -> Result<Connection, Failure> {
        let connection = Connection::open(&self.dial())?;
        self.report.local_port = connection.local_port();
        self.limit(&connection)?;
        Ok(connection)
    }

    /// How this session's own connection is opened.
    fn dial(&self) -> Dial {
        let plan = self.plan;
        let serve = plan.serve_target.filter(|_| self.kind.needs_session_serve());
        // main has made sure that all ports are below 65536.
        let own_port = |first: u16| first.saturating_add(u16::try_from(self.id).unwrap_or(0));
        Dial {
            read_buffer: if self.kind == Kind::Bulk { BULK_READ_BYTES } else { READ_BYTES },
            ..self.dial_from(serve.unwrap_or(plan.target), plan.source_port_first.map(own_port))
        }
    }

    /// How any connection is opened; `None`: from a port that the kernel chooses.
    pub fn dial_from(&self, target: SocketAddr, port: Option<u16>) -> Dial {
        let any = match target {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let source = match (self.plan.source_address, port) {
            (None, None) => None,
            (address, port) => Some(SocketAddr::new(address.unwrap_or(any), port.unwrap_or(0))),
        };
        Dial {
            target,
            source,
            data_with_ack: self.plan.data_with_ack,
            send_buffer: (self.kind == Kind::HostClose).then_some(HOST_CLOSE_SEND_BYTES),
            read_buffer: READ_BYTES,
        }
    }

    /// Of a pattern that no other session, round or run has.
    pub fn seed(&self, round: u64) -> u64 {
        pattern::mix(pattern::mix(self.plan.run ^ pattern::mix(self.id as u64)) ^ round)
    }

    /// Until when the session may make no progress.
    pub fn limit(&self, connection: &Connection) -> Result<(), Failure> {
        connection.limit(self.time_left())
    }

    /// The timeout, or what is left of the run.
    pub fn time_left(&self) -> Duration {
        self.plan.timeout.min(self.control.left())
    }

    /// An error when the run's time is over.
    pub fn check_time(&self) -> io::Result<()> {
        if self.control.left().is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// A pause between two rounds; `true`: the run ends.
    pub fn pause(&self, pause: Duration) -> Result<bool, Failure> {
        let finish = self.control.wait(None, pause) == Woken::Finish;
        if !finish {
            self.check_time()?;
        }
        Ok(finish)
    }

    /// Silence; a request some time after each mark, and a last one at the end.
    fn live_idle(&mut self) -> Result<(), Failure> {
        let connection = &mut self.open()?;
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

    fn live_request(&mut self) -> Result<(), Failure> {
        let connection = &mut self.open()?;
        loop {
            self.exchange(connection)?;
            if self.pause(self.plan.request_interval)? {
                return self.exchange(connection);
            }
        }
    }

    fn live_bulk(&mut self) -> Result<(), Failure> {
        let connection = &mut self.open()?;
        let mut since = Instant::now();
        connection.ask(&self.plan.bulk_path)?;
        let head = connection.read_head(&[200])?;
        self.meet(&head.server)?;
        self.report.bytes_expected = head.length;
        let mut hash = Sha256::new();
        while self.report.bytes < head.length {
            let piece = connection.read_piece(head.length - self.report.bytes)?;
            hash.update(piece);
            self.report.bytes += piece.len() as u64;
            self.meter.progress(since, self.control);
            since = Instant::now();
            self.note_under_way(since);
            self.check_time()?;
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
        let name = format!("{}-{}", self.id, self.report.responses);
        let request = format!("GET /?id={name} HTTP/1.1\r\nHost: service\r\n\r\n");
        let since = Instant::now();
        let server = self.exchange_as(connection, &name, &request)?;
        self.meter.progress(since, self.control);
        self.meet(&server)
    }

    /// Sends `request`, which asks for `name`; returns who answered.
    pub fn exchange_as(
        &mut self,
        connection: &mut Connection,
        name: &str,
        request: &str,
    ) -> Result<String, Failure> {
        self.limit(connection)?;
        connection.send(request.as_bytes())?;
        let head = connection.read_head(&[200])?;
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
        self.report.bytes += body.len() as u64;
        self.report.responses += 1;
        Ok(head.server)
    }

    /// One session, one server: the first answer names it, all others must agree.
    pub fn meet(&mut self, server: &str) -> Result<(), Failure> {
        if !self.report.opened {
            self.greet(server);
        } else if self.report.server != server {
            return Err(Failure::Corrupted(format!(
                "began at {}, answered by {server}",
                self.report.server
            )));
        }
        Ok(())
    }

    /// The first answer came.
    pub fn greet(&mut self, server: &str) {
        self.report.opened = true;
        server.clone_into(&mut self.report.server);
        // The main thread is gone only when the program ends.
        let _ = self.events.send(Event::Opened { kind: self.kind, server: server.to_owned() });
    }

    fn own_part_of(&self, spread: Duration) -> Duration {
        // A session's place in the spread: any fixed scatter does.
        let place = u32::try_from(self.id * 37 % 100).unwrap_or(0);
        spread * place / 100
    }
}
