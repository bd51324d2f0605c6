//! The HTTP server of the metrics: `GET /metrics` and `GET /healthz`, one request a connection.
//! Never trusts a client: so many are served at once, and each for a bounded time.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::{Format, Writer, help};

/// Clients that are served at once; others wait in the kernel's queue.
pub const CLIENTS_MAX: usize = 8;
/// Longest time for a request to arrive, and for its answer to be taken.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const HEAD_MAX: usize = 8 * 1024;
/// Header fields of a request.
const FIELDS_MAX: usize = 64;
/// Bytes that are read and thrown away behind an answer, so that it is not lost with them.
const REST_MAX: usize = 64 * 1024;
/// How soon a waiting thread sees that the server stops.
const TURN: Duration = Duration::from_millis(200);
/// Pause after a failed accept, as when no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is nothing to read now: a sentence.
pub type Unavailable = String;

/// Where the server gets what it answers with. Called from several threads at once.
pub trait Source: Send + Sync + 'static {
    /// The metrics, written; `counts` are the server's own.
    ///
    /// # Errors
    /// Why there are none now.
    fn metrics(&self, format: Format, counts: Counts) -> Result<String, Unavailable>;

    /// Whether the daemon works.
    ///
    /// # Errors
    /// What does not.
    fn health(&self) -> Result<(), Unavailable>;
}

/// How many requests were answered with each status, and how many connections without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    answered: [u64; Status::ALL.len()],
    lost: u64,
}

impl Counts {
    pub(super) fn write(&self, to: &mut Writer<'_>) -> fmt::Result {
        let answered = Status::ALL.iter().zip(self.answered);
        let answered =
            answered.map(|(status, count)| (vec![("code", status.code().to_string())], count));
        to.counter("http_requests", help::HTTP, None, answered)?;
        to.counter("http_connections_lost", help::HTTP_LOST, None, [(vec![], self.lost)])
    }
}

#[derive(Debug, Default)]
struct Counters {
    answered: [AtomicU64; Status::ALL.len()],
    lost: AtomicU64,
}

impl Counters {
    fn get(&self) -> Counts {
        Counts {
            answered: self.answered.each_ref().map(|count| count.load(Ordering::Relaxed)),
            lost: self.lost.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLarge,
    Unavailable,
}

impl Status {
    const ALL: [Status; 6] = [
        Status::Ok,
        Status::BadRequest,
        Status::NotFound,
        Status::MethodNotAllowed,
        Status::TooLarge,
        Status::Unavailable,
    ];

    const fn code(self) -> u16 {
        match self {
            Status::Ok => 200,
            Status::BadRequest => 400,
            Status::NotFound => 404,
            Status::MethodNotAllowed => 405,
            Status::TooLarge => 431,
            Status::Unavailable => 503,
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::BadRequest => "Bad Request",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::TooLarge => "Request Header Fields Too Large",
            Status::Unavailable => "Service Unavailable",
        }
    }
}

struct Answer {
    status: Status,
    content_type: &'static str,
    body: String,
}

impl Answer {
    fn text(status: Status, body: impl Into<String>) -> Answer {
        let mut body = body.into();
        body.push('\n');
        Answer { status, content_type: "text/plain; charset=utf-8", body }
    }
}

/// The running server. Dropping it ends all connections and waits for answers under way.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl MetricsServer {
    /// Listens on `address` and serves from threads of its own.
    ///
    /// # Errors
    /// When the address cannot be had, or no more threads.
    pub fn start(address: SocketAddr, source: Arc<dyn Source>) -> io::Result<MetricsServer> {
        let listener = TcpListener::bind(address)?;
        let mut server = MetricsServer {
            address: listener.local_addr()?,
            listener,
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let counters = Arc::<Counters>::default();
        for _ in 0..CLIENTS_MAX {
            let listener = server.listener.try_clone()?;
            let client = Server {
                source: Arc::clone(&source),
                counters: Arc::clone(&counters),
                stop: Arc::clone(&server.stop),
            };
            let thread = thread::Builder::new().name("metrics".to_owned());
            server.threads.push(thread.spawn(move || client.serve(&listener))?);
        }
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the threads out of their accepts.
        if let Err(error) =
            rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both)
        {
            warn!(%error, "metrics: cannot be shut down");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                warn!("metrics: a thread panicked");
            }
        }
    }
}

/// One of the server's threads.
struct Server {
    source: Arc<dyn Source>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn serve(&self, listener: &TcpListener) {
        while !self.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((client, _)) => {
                    if let Err(error) = self.converse(&client) {
                        self.counters.lost.fetch_add(1, Ordering::Relaxed);
                        debug!(%error, "metrics: client lost");
                    }
                }
                Err(_) if self.stop.load(Ordering::Relaxed) => return,
                Err(error) => {
                    warn!(%error, "metrics: cannot accept");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Answers a client's request.
    fn converse(&self, client: &TcpStream) -> io::Result<()> {
        let deadline = Instant::now() + CLIENT_TIMEOUT;
        let mut client = Timed { client, deadline, stop: &self.stop };
        let answer = match read_head(&mut client)? {
            Head::Request(request) => self.answer(&request),
            Head::Refused(answer) => answer,
        };
        let Answer { status, content_type, body } = answer;
        let (code, reason) = (status.code(), status.reason());
        let allow = if status == Status::MethodNotAllowed { "Allow: GET\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {code} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             {allow}Connection: close\r\n\r\n",
            body.len()
        );
        client.deadline = Instant::now() + CLIENT_TIMEOUT;
        client.write_all(head.as_bytes())?;
        client.write_all(body.as_bytes())?;
        let place = Status::ALL.iter().position(|known| *known == status);
        if let Some(count) = place.and_then(|place| self.counters.answered.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // The answer is out: what becomes of the rest is no loss.
        let _ = client.throw_away();
        Ok(())
    }

    fn answer(&self, request: &Request) -> Answer {
        if request.method != "GET" {
            return Answer::text(Status::MethodNotAllowed, "expected GET");
        }
        match request.path.split('?').next().unwrap_or_default() {
            "/metrics" => match self.source.metrics(request.format, self.counters.get()) {
                Ok(body) => {
                    Answer { status: Status::Ok, content_type: request.format.content_type(), body }
                }
                Err(why) => Answer::text(Status::Unavailable, why),
            },
            "/healthz" => match self.source.health() {
                Ok(()) => Answer::text(Status::Ok, "ok"),
                Err(why) => Answer::text(Status::Unavailable, why),
            },
            _ => Answer::text(Status::NotFound, "expected /metrics or /healthz"),
        }
    }
}

/// What matters of a request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    format: Format,
}

enum Head {
    Request(Request),
    Refused(Answer),
}

/// Reads until the end of the request's head.
fn read_head(client: &mut Timed<'_>) -> io::Result<Head> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let length = client.read(&mut chunk)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&chunk[..length]);
        match parse(&head) {
            Ok(Some(request)) => return Ok(Head::Request(request)),
            Ok(None) if head.len() < HEAD_MAX => {}
            Ok(None) | Err(httparse::Error::TooManyHeaders) => {
                let most = format!("expected at most {HEAD_MAX} bytes and {FIELDS_MAX} fields");
                return Ok(Head::Refused(Answer::text(Status::TooLarge, most)));
            }
            Err(error) => {
                let why = format!("expected a request of HTTP/1.1: {error}");
                return Ok(Head::Refused(Answer::text(Status::BadRequest, why)));
            }
        }
    }
}

/// `None` while it has not ended.
fn parse(head: &[u8]) -> Result<Option<Request>, httparse::Error> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    if request.parse(head)?.is_partial() {
        return Ok(None);
    }
    let accepts = |media: &str| {
        request.headers.iter().any(|field| {
            let is_accept = field.name.eq_ignore_ascii_case("accept");
            is_accept && String::from_utf8_lossy(field.value).contains(media)
        })
    };
    // Who names neither gets what this server is for.
    let is_old = accepts("text/plain") && !accepts("application/openmetrics-text");
    Ok(Some(Request {
        method: request.method.unwrap_or_default().to_owned(),
        path: request.path.unwrap_or_default().to_owned(),
        format: if is_old { Format::Text } else { Format::OpenMetrics },
    }))
}

/// A connection that has time until the deadline.
struct Timed<'a> {
    client: &'a TcpStream,
    deadline: Instant,
    stop: &'a AtomicBool,
}

impl Timed<'_> {
    /// Does what takes as long as `operation` is told, again and again while nothing happens.
    fn until_deadline(
        &self,
        mut operation: impl FnMut(&TcpStream, Duration) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stop.load(Ordering::Relaxed) {
                return Err(ErrorKind::TimedOut.into());
            }
            match operation(self.client, left.min(TURN)) {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                outcome => return outcome,
            }
        }
    }

    /// Reads what the client still sends, until it closes: closing before it would reset the
    /// connection, and the answer with it.
    fn throw_away(&mut self) -> io::Result<()> {
        self.client.shutdown(Shutdown::Write)?;
        let mut chunk = [0; 4096];
        let mut read = 0;
        while read < REST_MAX {
            match self.read(&mut chunk)? {
                0 => return Ok(()),
                length => read += length,
            }
        }
        Ok(())
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.until_deadline(|mut client, timeout| {
            client.set_read_timeout(Some(timeout))?;
            client.read(buffer)
        })
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.until_deadline(|mut client, timeout| {
            client.set_write_timeout(Some(timeout))?;
            client.write(buffer)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
