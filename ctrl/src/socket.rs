//! The daemon's control socket: accepts clients, reads request lines, has them handled and
//! answers. Never trusts a client: every line, answer and time is bounded.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, listen, shutdown,
    socket_with,
};
use thiserror::Error;
use tracing::{debug, warn};

use crate::protocol::{
    ErrorCode, ProtocolError, REQUEST_MAX, Reply, Request, answer_line, parse_request,
};

/// Clients that are served at once; one more is told `busy`.
pub const CLIENTS_MAX: usize = 16;
/// Longest time for a request line to arrive, and for an answer to be taken.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Who may talk to the daemon: its user and its group.
const MODE: u32 = 0o660;
/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 32;
/// How soon a waiting thread sees that the socket closes.
const TURN: Duration = Duration::from_millis(200);
/// Pause after a failed accept, as when no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What carries a request out. It is called from several threads at once.
pub type Handler = Arc<dyn Fn(Request) -> Result<Reply, ProtocolError> + Send + Sync>;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error("{}: a daemon answers here already", .0.display())]
    InUse(PathBuf),
    /// Something else is in the way; it is left as it is.
    #[error("{}: is there, but is no socket; remove it or set another node.control_socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{}: {action}: {error}", path.display())]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

/// The open control socket. Dropping it ends all connections, waits for requests under way and
/// removes the file.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    /// Device and inode of the file: another daemon's is never removed.
    file: (u64, u64),
    listener: UnixListener,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlSocket {
    /// Opens the socket at `path` and serves it from a thread of its own. The directory is made
    /// when it is missing, and the file of a daemon that crashed is replaced.
    ///
    /// # Errors
    /// When a daemon answers at `path`, something else is there, or the system refuses.
    pub fn open(path: &Path, handler: Handler) -> Result<ControlSocket, SocketError> {
        let failed = |action| {
            move |error: io::Error| SocketError::Io { path: path.to_owned(), action, error }
        };
        if let Some(directory) = path.parent().filter(|parent| !parent.exists()) {
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o755).create(directory);
            made.map_err(failed("cannot make its directory"))?;
        }
        remove_stale(path)?;
        let listener = listen_at(path).map_err(failed("cannot listen"))?;
        let metadata = std::fs::symlink_metadata(path).map_err(failed("cannot look at it"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let accepting = listener.try_clone().map_err(failed("cannot listen"))?;
        let server = Server { handler, stop: Arc::clone(&stop), clients: AtomicUsize::new(0) };
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || server.serve(&accepting))
            .map_err(failed("cannot start a thread"))?;
        Ok(ControlSocket {
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
            listener,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread out of its accept.
        if let Err(error) = shutdown(self.listener.as_fd(), Shutdown::Both) {
            warn!(%error, "control socket: cannot be shut down");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("control socket: its thread panicked");
        }
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            warn!(%error, path = %self.path.display(), "control socket: cannot be removed");
        }
    }
}

/// Removes the socket of a daemon that is gone.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let refused = match UnixStream::connect(path) {
        Ok(_) => return Err(SocketError::InUse(path.to_owned())),
        Err(error) => error,
    };
    let failed = |action, error| SocketError::Io { path: path.to_owned(), action, error };
    if refused.kind() != ErrorKind::ConnectionRefused {
        return Err(failed("cannot tell whether a daemon answers here", refused));
    }
    std::fs::remove_file(path).map_err(|error| failed("cannot remove the stale socket", error))
}

/// A listening socket that nobody but its user and group could ever open: the mode is set before
/// the file is there (where the umask may take bits away) and after.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

struct Server {
    handler: Handler,
    stop: Arc<AtomicBool>,
    clients: AtomicUsize,
}

impl Server {
    /// Accepts until told to stop; returns when the last client is gone.
    fn serve(&self, listener: &UnixListener) {
        thread::scope(|scope| {
            while !self.stopping() {
                let client = match listener.accept() {
                    Ok((client, _)) => client,
                    Err(_) if self.stopping() => break,
                    Err(error) => {
                        warn!(%error, "control socket: cannot accept");
                        thread::sleep(ACCEPT_PAUSE);
                        continue;
                    }
                };
                let Some(seat) = Seat::take(&self.clients) else {
                    refuse(&client);
                    continue;
                };
                let serve = move || {
                    let _seat = seat;
                    if let Err(error) = self.converse(&client) {
                        debug!(%error, "control socket: client lost");
                    }
                };
                let builder = thread::Builder::new().name("control-client".to_owned());
                if let Err(error) = builder.spawn_scoped(scope, serve) {
                    warn!(%error, "control socket: cannot start a thread");
                }
            }
        });
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Answers a client's lines until it leaves, is too slow, or sends too long a line.
    fn converse(&self, client: &UnixStream) -> io::Result<()> {
        client.set_read_timeout(Some(TURN))?;
        client.set_write_timeout(Some(TURN))?;
        let mut lines = Lines::default();
        loop {
            let line = match self.next_line(client, &mut lines)? {
                Next::Line(line) => line,
                Next::End => return Ok(()),
                Next::TooLong => {
                    let message = format!("expected a line of at most {REQUEST_MAX} bytes");
                    let error = ProtocolError::new(ErrorCode::TooLarge, message);
                    return self.answer(client, &Err(error));
                }
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            let answer = parse_request(&line).and_then(|request| (self.handler)(request));
            self.answer(client, &answer)?;
        }
    }

    fn next_line(&self, mut client: &UnixStream, lines: &mut Lines) -> io::Result<Next> {
        let deadline = Instant::now() + CLIENT_TIMEOUT;
        let mut chunk = [0; 4096];
        loop {
            if let Some(next) = lines.next() {
                return Ok(next);
            }
            match client.read(&mut chunk) {
                Ok(0) => return Ok(lines.rest()),
                Ok(length) => lines.extend(&chunk[..length]),
                Err(error) => self.go_on(error, deadline)?,
            }
            if Instant::now() >= deadline {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    fn answer(
        &self,
        mut client: &UnixStream,
        answer: &Result<Reply, ProtocolError>,
    ) -> io::Result<()> {
        let mut line = answer_line(answer).into_bytes();
        line.push(b'\n');
        let deadline = Instant::now() + CLIENT_TIMEOUT;
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match client.write(rest) {
                Ok(length) => rest = &rest[length..],
                Err(error) => self.go_on(error, deadline)?,
            }
            if Instant::now() >= deadline && !rest.is_empty() {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// `Ok` when the error only means that nothing happened for a turn, and there is time left.
    fn go_on(&self, error: io::Error, deadline: Instant) -> io::Result<()> {
        let idle = matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
        );
        let go_on = idle && !self.stopping() && Instant::now() < deadline;
        if go_on { Ok(()) } else { Err(error) }
    }
}

/// Tells a client that there are too many. Its line is short and the first: it fits into the
/// socket's buffer, so that this never waits.
fn refuse(mut client: &UnixStream) {
    let message = format!("{CLIENTS_MAX} clients are being served; try again");
    let mut line = answer_line(&Err(ProtocolError::new(ErrorCode::Busy, message)));
    line.push('\n');
    let written = client.set_nonblocking(true).and_then(|()| client.write_all(line.as_bytes()));
    if let Err(error) = written {
        debug!(%error, "control socket: client lost");
    }
}

/// One of the places for clients; given back when dropped.
struct Seat<'a>(&'a AtomicUsize);

impl Seat<'_> {
    fn take(clients: &AtomicUsize) -> Option<Seat<'_>> {
        let free = |taken| (taken < CLIENTS_MAX).then_some(taken + 1);
        let taken = clients.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
        taken.ok().map(|_| Seat(clients))
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, PartialEq)]
enum Next {
    Line(Vec<u8>),
    TooLong,
    End,
}

/// Cuts what a client sends into lines.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Bytes at the front that hold no newline.
    searched: usize,
}

impl Lines {
    fn extend(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
    }

    /// The next whole line without its newline, if there is one.
    fn next(&mut self) -> Option<Next> {
        let newline = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let length = newline.map_or(self.bytes.len(), |newline| self.searched + newline);
        if length > REQUEST_MAX {
            return Some(Next::TooLong);
        }
        if newline.is_none() {
            self.searched = length;
            return None;
        }
        let rest = self.bytes.split_off(length + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.truncate(length);
        self.searched = 0;
        Some(Next::Line(line))
    }

    /// What came without a newline before the client said that no more will come.
    fn rest(&mut self) -> Next {
        self.searched = 0;
        match std::mem::take(&mut self.bytes) {
            line if line.is_empty() => Next::End,
            line => Next::Line(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cuts_lines_wherever_the_chunks_end() {
        let mut lines = Lines::default();
        lines.extend(b"on");
        assert_eq!(lines.next(), None);
        lines.extend(b"e\ntwo\nthr");
        assert_eq!(lines.next(), Some(Next::Line(b"one".to_vec())));
        assert_eq!(lines.next(), Some(Next::Line(b"two".to_vec())));
        assert_eq!(lines.next(), None);
        assert_eq!(lines.rest(), Next::Line(b"thr".to_vec()));
        assert_eq!(lines.rest(), Next::End);
    }

    #[test]
    fn a_line_may_have_64_kib_but_not_a_byte_more() {
        let mut lines = Lines::default();
        lines.extend(&vec![b'x'; REQUEST_MAX]);
        assert_eq!(lines.next(), None);
        lines.extend(b"\n");
        assert_eq!(lines.next(), Some(Next::Line(vec![b'x'; REQUEST_MAX])));
        lines.extend(&vec![b'x'; REQUEST_MAX + 1]);
        assert_eq!(lines.next(), Some(Next::TooLong));
    }

    proptest! {
        #[test]
        fn lines_are_those_of_a_split(chunks in prop::collection::vec("[ab\n]{0,5}", 0..20)) {
            let mut lines = Lines::default();
            let mut got = Vec::new();
            for chunk in &chunks {
                lines.extend(chunk.as_bytes());
                while let Some(Next::Line(line)) = lines.next() {
                    got.push(line);
                }
            }
            let text = chunks.concat();
            let mut whole: Vec<&[u8]> = text.as_bytes().split(|byte| *byte == b'\n').collect();
            let rest = whole.pop().unwrap_or_default().to_vec();
            prop_assert_eq!(&got, &whole);
            let expected = if rest.is_empty() { Next::End } else { Next::Line(rest) };
            prop_assert_eq!(lines.rest(), expected);
        }
    }
}
