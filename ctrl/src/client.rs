//! Asks a daemon over its control socket. Never retries: a person or a script decides that.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use crate::protocol::{AnswerError, Request, parse_answer, request_line};

/// Longest pause in an answer: more than any request takes in the daemon.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Longest answer in bytes; the longest listing has about 3 MiB.
const ANSWER_MAX: u64 = 64 << 20;

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
    let line = exchange(path, request)
        .map_err(|error| AskError::Unreachable { path: path.to_owned(), error })?;
    Ok(parse_answer(&line)?)
}

fn exchange(path: &Path, request: &Request) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = request_line(request)?;
    line.push('\n');
    // A daemon that has no time for us answers before it reads: look for its answer even when
    // it has hung up. No more lines will come, so that it hangs up after its answer.
    let sent = stream.write_all(line.as_bytes());
    let sent = sent.and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_MAX).read_to_end(&mut answer);
    if answer.ends_with(b"\n") {
        return Ok(answer);
    }
    sent?;
    read?;
    Err(io::Error::new(ErrorKind::UnexpectedEof, "it hung up without an answer"))
}
