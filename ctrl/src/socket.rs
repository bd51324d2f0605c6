//! The daemon's control socket: accepts clients, reads request lines, has them handled and
//! answers. Never trusts a client: every line, answer, time and rate is bounded, and who may only
//! read changes nothing.

mod counters;
mod stream;

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::fs::{Gid, Mode};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, listen, shutdown,
    socket_with,
};
use thiserror::Error;
use tracing::{debug, info, warn};

use crate::protocol::{
    Access, ErrorCode, ProtocolError, REQUEST_MAX, Reply, Request, answer_line, parse_request,
    request_line,
};

pub use counters::ControlCounters;
use counters::{Seat, add};
pub use stream::{ITEMS_PER_S_MAX, Items, STREAMS_MAX, Stream};

/// Clients that are served at once; one more is told `busy`.
pub const CLIENTS_MAX: u64 = 32;
/// Of these, the ones that are left for root and the daemon's user, whoever else comes.
pub const CLIENTS_PRIVILEGED: u64 = 8;
/// Requests in a second of all clients together that are neither root nor the daemon's user; more
/// have to wait.
pub const REQUESTS_PER_S_MAX: u32 = 200;
/// Longest time for a request line to arrive, and for an answer to be taken.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 32;
/// How soon a waiting thread sees that the socket closes.
const TURN: Duration = Duration::from_millis(200);
/// Pause after a failed accept, as when no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Requests of unprivileged clients may come in bursts of so much time at the greatest rate.
const BURST: Duration = Duration::from_secs(1);

/// What carries a request out. It is called from several threads at once, and only with requests
/// that the client may make.
pub type Handler =
    Arc<dyn Fn(Request, &mut Stream<'_>) -> Result<Reply, ProtocolError> + Send + Sync>;

/// Who may open the socket's file, and so read what the daemon knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    /// Mode of the file.
    pub mode: u32,
    /// Id of the group that it is given to; `None` leaves it to the daemon's.
    pub group: Option<u32>,
}

impl Default for Permissions {
    fn default() -> Permissions {
        Permissions { mode: 0o660, group: None }
    }
}

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
    /// Opens the socket at `path` for whom `permissions` lets in, and serves it from a thread of
    /// its own. The directory is made when it is missing, and the file of a daemon that crashed
    /// is replaced.
    ///
    /// # Errors
    /// When a daemon answers at `path`, something else is there, or the system refuses.
    pub fn open(
        path: &Path,
        permissions: Permissions,
        counters: Arc<ControlCounters>,
        handler: Handler,
    ) -> Result<ControlSocket, SocketError> {
        let failed = |action| {
            move |error: io::Error| SocketError::Io { path: path.to_owned(), action, error }
        };
        if let Some(directory) = path.parent().filter(|parent| !parent.exists()) {
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o755).create(directory);
            made.map_err(failed("cannot make its directory"))?;
        }
        remove_stale(path)?;
        let listener = listen_at(path, permissions).map_err(failed("cannot listen"))?;
        let metadata = std::fs::symlink_metadata(path).map_err(failed("cannot look at it"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let accepting = listener.try_clone().map_err(failed("cannot listen"))?;
        let server = Server {
            handler,
            counters,
            stop: Arc::clone(&stop),
            user: rustix::process::geteuid().as_raw(),
            next_unprivileged: Mutex::new(Instant::now()),
        };
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

/// A listening socket that nobody but those who are meant could ever open: until it has its group
/// it is the user's alone.
fn listen_at(path: &Path, permissions: Permissions) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    if let Some(group) = permissions.group {
        rustix::fs::chown(path, None, Some(Gid::from_raw(group)))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(permissions.mode))?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Who a client is, as the kernel says: its user and process when it connected.
#[derive(Debug, Clone, Copy)]
struct Client {
    uid: u32,
    pid: i32,
    /// Root, or the daemon's own user: may change things.
    is_privileged: bool,
}

struct Server {
    handler: Handler,
    counters: Arc<ControlCounters>,
    stop: Arc<AtomicBool>,
    /// The daemon's own user.
    user: u32,
    /// When the next request of an unprivileged client may be carried out; in the past when there
    /// were few.
    next_unprivileged: Mutex<Instant>,
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
                let who = match self.identify(&client) {
                    Ok(who) => who,
                    Err(error) => {
                        warn!(%error, "control socket: cannot tell who a client is");
                        continue;
                    }
                };
                let reserved = if who.is_privileged { 0 } else { CLIENTS_PRIVILEGED };
                let most = CLIENTS_MAX - reserved;
                let Some(seat) = Seat::take(&self.counters.clients_now, most) else {
                    add(&self.counters.refused, 1);
                    refuse(&client, most);
                    continue;
                };
                add(&self.counters.clients, 1);
                let serve = move || {
                    let _seat = seat;
                    if let Err(error) = self.converse(&client, who) {
                        if error.kind() == ErrorKind::TimedOut {
                            add(&self.counters.too_slow, 1);
                        }
                        debug!(%error, uid = who.uid, pid = who.pid, "control socket: client lost");
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

    fn identify(&self, client: &UnixStream) -> io::Result<Client> {
        let peer = getsockopt(client, sockopt::PeerCredentials)?;
        let uid = peer.uid();
        let is_privileged = uid == 0 || uid == self.user;
        Ok(Client { uid, pid: peer.pid(), is_privileged })
    }

    /// Answers a client's lines until it leaves, is too slow, or sends too long a line.
    fn converse(&self, client: &UnixStream, who: Client) -> io::Result<()> {
        client.set_read_timeout(Some(TURN))?;
        client.set_write_timeout(Some(TURN))?;
        let mut lines = Lines::default();
        loop {
            let line = match self.next_line(client, &mut lines)? {
                Next::Line(line) => line,
                Next::End => return Ok(()),
                Next::TooLong => {
                    add(&self.counters.too_large, 1);
                    let message = format!("expected a line of at most {REQUEST_MAX} bytes");
                    let error = ProtocolError::new(ErrorCode::TooLarge, message);
                    return self.answer(client, &Err(error));
                }
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            let mut stream =
                Stream { client, stop: &self.stop, counters: &self.counters, lost: None };
            let answer = self.carry_out(&line, who, &mut stream);
            if let Some(error) = stream.lost {
                return Err(error);
            }
            self.answer(client, &answer)?;
        }
    }

    /// Has a request handled, if it is one and the client may make it.
    fn carry_out(
        &self,
        line: &[u8],
        who: Client,
        stream: &mut Stream<'_>,
    ) -> Result<Reply, ProtocolError> {
        let Client { uid, pid, is_privileged } = who;
        if !is_privileged {
            self.pace();
        }
        let request = parse_request(line).inspect_err(|_| add(&self.counters.bad_requests, 1))?;
        self.counters.request(&request);
        if request.access() == Access::Read {
            return (self.handler)(request, stream);
        }
        if !is_privileged {
            add(&self.counters.forbidden, 1);
            debug!(uid, pid, command = request.command(), "control socket: forbidden");
            let message = format!(
                "{} changes things, or shows what clients send: only root and the daemon's own user \
                 may",
                request.command()
            );
            return Err(ProtocolError::new(ErrorCode::Forbidden, message));
        }
        let what = request_line(&request).unwrap_or_default();
        let answer = (self.handler)(request, stream);
        match &answer {
            Ok(_) => info!(uid, pid, "control socket: done: {what}"),
            Err(error) => info!(uid, pid, "control socket: not done, {error}: {what}"),
        }
        answer
    }

    /// Waits until one more request of an unprivileged client may be carried out.
    fn pace(&self) {
        let now = Instant::now();
        let at = {
            let mut next = self.next_unprivileged.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*next).max(now.checked_sub(BURST).unwrap_or(now));
            *next = at + Duration::from_secs(1) / REQUESTS_PER_S_MAX;
            at
        };
        if at > now {
            add(&self.counters.paced, 1);
            thread::sleep(at - now);
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
                Err(error) => go_on(error, deadline, &self.stop)?,
            }
            if Instant::now() >= deadline {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    fn answer(&self, client: &UnixStream, answer: &Result<Reply, ProtocolError>) -> io::Result<()> {
        let mut line = answer_line(answer).into_bytes();
        line.push(b'\n');
        write_line(client, &line, &self.stop)
    }
}

/// Writes `bytes`, as fast as the client takes them; it has [`CLIENT_TIMEOUT`].
fn write_line(mut client: &UnixStream, bytes: &[u8], stop: &AtomicBool) -> io::Result<()> {
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let mut rest = bytes;
    while !rest.is_empty() {
        match client.write(rest) {
            Ok(length) => rest = &rest[length..],
            Err(error) => go_on(error, deadline, stop)?,
        }
        if Instant::now() >= deadline && !rest.is_empty() {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// `Ok` when the error only means that nothing happened for a turn, and there is time left.
fn go_on(error: io::Error, deadline: Instant, stop: &AtomicBool) -> io::Result<()> {
    let idle = matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    );
    if !idle || stop.load(Ordering::Relaxed) {
        return Err(error);
    }
    if Instant::now() < deadline { Ok(()) } else { Err(ErrorKind::TimedOut.into()) }
}

/// Tells a client that there are too many. Its line is short and the first: it fits into the
/// socket's buffer, so that this never waits.
fn refuse(mut client: &UnixStream, most: u64) {
    let message = format!("{most} clients are being served; try again");
    let mut line = answer_line(&Err(ProtocolError::new(ErrorCode::Busy, message)));
    line.push('\n');
    let written = client.set_nonblocking(true).and_then(|()| client.write_all(line.as_bytes()));
    if let Err(error) = written {
        debug!(%error, "control socket: client lost");
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
