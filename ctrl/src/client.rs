//! Asks a daemon over its control socket. Never retries: a person or a script decides that.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use crate::protocol::{
    AnswerError, Line, Request, StreamReply, parse_answer, parse_line, request_line,
};

/// Longest pause in an answer: more than any request takes in the daemon.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Longest answer in bytes; the longest listing has about 3 MiB.
const ANSWER_MAX: u64 = 64 << 20;
/// Longest line of a stream in bytes.
const LINE_MAX: u64 = 1 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody answers at the socket.
    #[error("cannot reach holdfastd at {}: {error}\n{}", path.display(), advice(error))]
    Unreachable {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The daemon refused the request, or its answer is not understood.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => {
            "Is holdfastd running on this server? \
             If its node.control_socket is another path, give that with --socket."
        }
        ErrorKind::ConnectionRefused => {
            "The daemon that made this socket is gone: look into its log and start it again."
        }
        ErrorKind::PermissionDenied => {
            "Become root, or a member of the group that the socket belongs to."
        }
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            "The daemon runs but does not answer: look into its log."
        }
        _ => "Look into the daemon's log.",
    }
}

/// Sends `request` to the daemon whose socket is at `path`; gives the answer's `ok` object.
///
/// # Errors
/// When nobody answers, the daemon refuses, or the answer is not understood.
pub fn ask(path: &Path, request: &Request) -> Result<Value, AskError> {
    let line = exchange(path, request).map_err(unreachable(path))?;
    Ok(parse_answer(&line)?)
}

fn unreachable(path: &Path) -> impl Fn(io::Error) -> AskError {
    |error| AskError::Unreachable { path: path.to_owned(), error }
}

/// Connects and sends `request`; gives the connection, and whether all was sent.
fn send(path: &Path, request: &Request) -> io::Result<(UnixStream, io::Result<()>)> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = request_line(request)?;
    line.push('\n');
    // A daemon that has no time for us answers before it reads: look for its answer even when
    // it has hung up. No more lines will come, so that it hangs up after its answer.
    let sent = stream.write_all(line.as_bytes());
    let sent = sent.and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    Ok((stream, sent))
}

fn exchange(path: &Path, request: &Request) -> io::Result<Vec<u8>> {
    let (stream, sent) = send(path, request)?;
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_MAX).read_to_end(&mut answer);
    if answer.ends_with(b"\n") {
        return Ok(answer);
    }
    sent?;
    read?;
    Err(io::Error::new(ErrorKind::UnexpectedEof, "it hung up without an answer"))
}

/// A connection on which one request follows the other. Made when it is needed, and made anew when
/// the daemon has closed it, as it does when nothing is asked for a while or when it ends.
#[derive(Debug)]
pub struct Connection {
    path: PathBuf,
    lines: Option<BufReader<UnixStream>>,
}

impl Connection {
    /// To the daemon whose socket is at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Connection {
        Connection { path: path.to_owned(), lines: None }
    }

    /// [`ask`] for a request that only reads: it may be sent twice.
    ///
    /// # Errors
    /// As [`ask`].
    pub fn ask(&mut self, request: &Request) -> Result<Value, AskError> {
        let kept = self.lines.take().map(|lines| next_answer(lines, request));
        let answered = match kept {
            Some(Err(error)) if has_closed(&error) => None,
            kept => kept,
        };
        let answered = answered.unwrap_or_else(|| {
            let stream = UnixStream::connect(&self.path)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            next_answer(BufReader::new(stream), request)
        });
        let (answer, lines) = answered.map_err(unreachable(&self.path))?;
        self.lines = Some(lines);
        Ok(parse_answer(&answer)?)
    }
}

fn has_closed(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Sends `request` and reads its answer; gives the connection back.
fn next_answer(
    mut lines: BufReader<UnixStream>,
    request: &Request,
) -> io::Result<(Vec<u8>, BufReader<UnixStream>)> {
    let mut line = request_line(request)?;
    line.push('\n');
    // As in `send`.
    let sent = lines.get_mut().write_all(line.as_bytes());
    let mut answer = Vec::new();
    let read = (&mut lines).take(ANSWER_MAX).read_until(b'\n', &mut answer);
    if answer.ends_with(b"\n") {
        return Ok((answer, lines));
    }
    sent?;
    read?;
    Err(io::Error::new(ErrorKind::UnexpectedEof, "it hung up without an answer"))
}

/// A stream of items that the daemon sends.
#[derive(Debug)]
pub struct Stream {
    path: PathBuf,
    lines: BufReader<UnixStream>,
}

/// What comes next in a stream.
#[derive(Debug, PartialEq)]
pub enum StreamLine {
    /// An item.
    Item(Value),
    /// So many items were missed here, as they were not read in time.
    Missed(u64),
    /// The end.
    End(StreamReply),
}

/// Sends `request`, whose answer is a stream, to the daemon whose socket is at `path`.
///
/// # Errors
/// When nobody answers.
pub fn stream(path: &Path, request: &Request) -> Result<Stream, AskError> {
    let (stream, _) = send(path, request).map_err(unreachable(path))?;
    // Items come when something happens.
    stream.set_read_timeout(None).map_err(unreachable(path))?;
    Ok(Stream { path: path.to_owned(), lines: BufReader::new(stream) })
}

impl Stream {
    /// Waits for what comes next. Nothing comes behind [`StreamLine::End`].
    ///
    /// # Errors
    /// When the daemon is gone, refuses, or is not understood.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<StreamLine, AskError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.lines).take(LINE_MAX);
        limited.read_until(b'\n', &mut line).map_err(unreachable(&self.path))?;
        if !line.ends_with(b"\n") {
            let error = io::Error::new(ErrorKind::UnexpectedEof, "it hung up amid a stream");
            return Err(unreachable(&self.path)(error));
        }
        Ok(match parse_line(&line)? {
            Line::Item(item) => StreamLine::Item(item),
            Line::Missed(count) => StreamLine::Missed(count),
            Line::End(end) => StreamLine::End(serde_json::from_value(end).map_err(|error| {
                AnswerError::NotUnderstood(format!("its stream's last line: {error}"))
            })?),
        })
    }
}
