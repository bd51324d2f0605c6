//! Checks of the local services, each on a thread of its own. Never leaves this server: a check's
//! socket has the service's own address at both ends, which the kernel delivers to itself.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
use thiserror::Error;
use tracing::{info, warn};

use crate::config::{Check, CheckKind};

/// Longest head of an answer that is read for its status, in bytes.
const HEAD_MAX: usize = 8192;
/// Bytes of an answer that are read, so that the service can end it in its own way.
const ANSWER_MAX: usize = 64 * 1024;
/// Header lines in it.
const HEADERS_MAX: usize = 64;
/// How soon a check under way sees that it is to stop.
const TURN: Duration = Duration::from_millis(100);

/// Why a check failed.
#[derive(Debug, Error)]
pub enum CheckError {
    /// This server does not have the service's address.
    #[error("this server does not have the address {0}")]
    NoAddress(std::net::IpAddr),
    /// The kernel refused, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("no {awaited} within {timeout:?}")]
    TimedOut {
        /// What did not come.
        awaited: &'static str,
        /// The check's timeout.
        timeout: Duration,
    },
    /// The connection ended before there was a status.
    #[error("closed without an answer")]
    Closed,
    /// The answer is no HTTP.
    #[error("the answer is no HTTP: {0}")]
    NotHttp(httparse::Error),
    /// The answer's head is too long.
    #[error("the answer has no status in its first {HEAD_MAX} bytes")]
    TooLong,
    /// Another status than the right one.
    #[error("status {got} instead of {expected}")]
    Status {
        /// The answer's.
        got: u16,
        /// The right one.
        expected: u16,
    },
    /// The daemon ends; says nothing about the service.
    #[error("the daemon ends")]
    Stopped,
}

/// When a check under way must be done.
struct Deadline<'a> {
    at: Instant,
    timeout: Duration,
    stop: &'a AtomicBool,
}

impl Deadline<'_> {
    /// Waits until `socket` can be read or written.
    fn wait(
        &self,
        socket: &impl AsFd,
        flags: PollFlags,
        awaited: &'static str,
    ) -> Result<(), CheckError> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(CheckError::Stopped);
            }
            let left = self.at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CheckError::TimedOut { awaited, timeout: self.timeout });
            }
            let turn = Timespec::try_from(left.min(TURN)).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(socket, flags)], Some(&turn)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(CheckError::Io(error.into())),
            }
        }
    }
}

/// Makes one check.
///
/// # Errors
/// Why it failed.
pub fn probe(check: &Check, stop: &AtomicBool) -> Result<(), CheckError> {
    let timeout = check.timeout;
    let deadline = Deadline { at: Instant::now() + timeout, timeout, stop };
    let stream = open(check.target, &deadline)?;
    match &check.kind {
        CheckKind::Tcp => Ok(()),
        CheckKind::Http { path, status, host } => {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: holdfastd\r\n\
                 Accept: */*\r\nConnection: close\r\n\r\n"
            );
            send(&stream, request.as_bytes(), &deadline)?;
            let got = read_status(&stream, &deadline)?;
            if got == *status { Ok(()) } else { Err(CheckError::Status { got, expected: *status }) }
        }
    }
}

/// Connects to a service of this server from the service's own address.
fn open(target: SocketAddr, deadline: &Deadline<'_>) -> Result<TcpStream, CheckError> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None).map_err(io::Error::from)?;
    // Whatever routes say, the kernel delivers to itself what comes from an address that it has
    // and goes to the same.
    match bind(&socket, &SocketAddr::new(target.ip(), 0)) {
        Err(Errno::ADDRNOTAVAIL) => return Err(CheckError::NoAddress(target.ip())),
        bound => bound.map_err(io::Error::from)?,
    }
    match connect(&socket, &target) {
        Err(Errno::INPROGRESS) => {
            deadline.wait(&socket, PollFlags::OUT, "connection")?;
            let outcome = sockopt::socket_error(&socket).map_err(io::Error::from)?;
            outcome.map_err(io::Error::from)?;
        }
        connected => connected.map_err(io::Error::from)?,
    }
    let stream = TcpStream::from(socket);
    if stream.local_addr()? == target {
        // Nobody listens, and the kernel chose this port for our end: we met ourselves.
        return Err(CheckError::Io(ErrorKind::ConnectionRefused.into()));
    }
    Ok(stream)
}

fn send(
    mut stream: &TcpStream,
    mut bytes: &[u8],
    deadline: &Deadline<'_>,
) -> Result<(), CheckError> {
    while !bytes.is_empty() {
        deadline.wait(stream, PollFlags::OUT, "room for the request")?;
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The answer's status; then what is left of the answer is read too, as far as it comes in time.
fn read_status(stream: &TcpStream, deadline: &Deadline<'_>) -> Result<u16, CheckError> {
    let mut head = Vec::new();
    let status = loop {
        if receive(stream, &mut head, deadline)? == 0 {
            return Err(CheckError::Closed);
        }
        if let Some(status) = status_of(&head)? {
            break status;
        }
        if head.len() > HEAD_MAX {
            return Err(CheckError::TooLong);
        }
    };
    let mut rest = head;
    while rest.len() < ANSWER_MAX && matches!(receive(stream, &mut rest, deadline), Ok(1..)) {}
    Ok(status)
}

fn receive(
    mut stream: &TcpStream,
    bytes: &mut Vec<u8>,
    deadline: &Deadline<'_>,
) -> Result<usize, CheckError> {
    let mut chunk = [0; 4096];
    loop {
        deadline.wait(stream, PollFlags::IN, "answer")?;
        match stream.read(&mut chunk) {
            Ok(length) => {
                bytes.extend_from_slice(&chunk[..length]);
                return Ok(length);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The status in the head of an answer, when its status line is whole.
fn status_of(head: &[u8]) -> Result<Option<u16>, CheckError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    match answer.parse(head) {
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            Ok(answer.code.filter(|_| head.contains(&b'\n')))
        }
        Err(error) => Err(CheckError::NotHttp(error)),
    }
}

/// When a service's state follows its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Hysteresis {
    /// `None` until the first check.
    pub(super) up: Option<bool>,
    /// Checks in a row that say otherwise.
    pub(super) streak: u32,
}

impl Hysteresis {
    /// Takes one check's outcome; the first one counts at once. Returns whether `up` has changed.
    fn note(&mut self, success: bool, rise: u32, fall: u32) -> bool {
        if self.up == Some(success) {
            self.streak = 0;
            return false;
        }
        self.streak += 1;
        let enough = if success { rise } else { fall };
        let changes = self.up.is_none() || self.streak >= enough;
        if changes {
            *self = Hysteresis { up: Some(success), streak: 0 };
        }
        changes
    }
}

/// What the checks of one service have found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Whether it is up; `None` until the first check.
    pub up: Option<bool>,
    /// Since when.
    pub since: Option<Instant>,
    /// Checks that were made.
    pub checks: u64,
    /// Of these, the ones that failed.
    pub failures: u64,
    /// Times that it went down or came up, without the first.
    pub changes: u64,
    /// Why the last check failed, if it did.
    pub trouble: Option<String>,
    /// How long the last check took.
    pub duration: Duration,
}

/// One check, and what it has found.
#[derive(Debug)]
pub struct Checked {
    /// The check.
    pub check: Check,
    found: Mutex<Found>,
}

impl Checked {
    /// Nothing has been found yet.
    #[must_use]
    pub fn new(check: Check) -> Checked {
        Checked { check, found: Mutex::default() }
    }

    /// What has been found until now.
    #[must_use]
    pub fn found(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes an outcome. Returns whether the service's state has changed.
    pub(super) fn note(
        &self,
        hysteresis: &mut Hysteresis,
        outcome: Result<(), CheckError>,
        began: Instant,
    ) -> bool {
        let Check { rise, fall, .. } = self.check;
        let changed = hysteresis.note(outcome.is_ok(), rise, fall);
        let first = self.found().up.is_none();
        let trouble = outcome.err().map(|error| error.to_string());
        if changed {
            self.log(trouble.as_deref());
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.up = hysteresis.up;
        found.checks += 1;
        found.failures += u64::from(trouble.is_some());
        found.trouble = trouble;
        found.duration = began.elapsed();
        if changed {
            found.since = Some(Instant::now());
            found.changes += u64::from(!first);
        }
        changed
    }

    fn log(&self, trouble: Option<&str>) {
        let Check { service, kind, .. } = &self.check;
        match trouble {
            Some(trouble) => warn!("{service} is down, by its {} check: {trouble}", kind.name()),
            None => info!("{service} is up, by its {} check", kind.name()),
        }
    }

    /// Checks until `stop` is set and the thread is woken; `changed` is called when the service
    /// goes down or comes up.
    fn run(&self, stop: &AtomicBool, changed: &dyn Fn()) {
        let mut hysteresis = Hysteresis::default();
        loop {
            let began = Instant::now();
            match probe(&self.check, stop) {
                Err(CheckError::Stopped) => return,
                outcome => {
                    if self.note(&mut hysteresis, outcome, began) {
                        changed();
                    }
                }
            }
            let next = began + self.check.interval;
            while let left = next.saturating_duration_since(Instant::now())
                && !left.is_zero()
            {
                std::thread::park_timeout(left);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }
}

/// The threads of some checks.
#[derive(Debug)]
pub struct CheckThreads {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl CheckThreads {
    /// Starts a thread for each; `changed` is called when a service goes down or comes up.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(
        checks: &[Arc<Checked>],
        changed: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<CheckThreads> {
        let mut started = CheckThreads { threads: Vec::new(), stop: Arc::default() };
        for (index, checked) in checks.iter().enumerate() {
            let thread = std::thread::Builder::new().name(format!("check {index}"));
            let (checked, changed) = (Arc::clone(checked), Arc::clone(&changed));
            let stop = Arc::clone(&started.stop);
            started.threads.push(thread.spawn(move || checked.run(&stop, &*changed))?);
        }
        Ok(started)
    }

    /// Whether one has ended by itself.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for CheckThreads {
    /// Ends them, within a tenth of a second.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in &self.threads {
            thread.thread().unpark();
        }
        for thread in self.threads.drain(..) {
            // A panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
