//! One TCP session's socket and what was read from it. It never opens a connection a
//! second time, and knows no protocol above TCP but lines.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::report::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How a connection is opened.
#[derive(Debug, Clone, Copy)]
pub struct Dial {
    /// Where to.
    pub target: SocketAddr,
    /// Where from; port 0: any; `None`: the kernel chooses both.
    pub source: Option<SocketAddr>,
    /// The ACK of the handshake travels with the first data, if they come within the
    /// kernel's time of a delayed ACK (40 to 200 ms), instead of alone.
    pub data_with_ack: bool,
    /// Size of the kernel's send buffer in bytes; `None`: the kernel chooses.
    pub send_buffer: Option<usize>,
    /// Size of the read buffer here, in bytes.
    pub read_buffer: usize,
}

/// One TCP session.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What was read and not yet taken.
    filled: std::ops::Range<usize>,
}

impl Connection {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// Those of the socket; `ConnectionRefused` among them is no [`Failure`] class yet.
    pub fn open(dial: &Dial) -> io::Result<Self> {
        let domain = Domain::for_address(dial.target);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = dial.source {
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
        }
        if dial.data_with_ack {
            socket.set_tcp_quickack(false)?;
        }
        if let Some(bytes) = dial.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        socket.connect_timeout(&dial.target.into(), CONNECT_TIMEOUT)?;
        socket.set_tcp_nodelay(true)?;
        Ok(Self { stream: socket.into(), buffer: vec![0; dial.read_buffer], filled: 0..0 })
    }

    /// The client's port.
    pub fn local_port(&self) -> u16 {
        self.stream.local_addr().map_or(0, |address| address.port())
    }

    /// Any single read or write fails when it makes no progress for so long.
    pub fn limit(&self, timeout: Duration) -> Result<(), Failure> {
        // Zero would mean "no limit".
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        self.stream.set_read_timeout(timeout)?;
        Ok(self.stream.set_write_timeout(timeout)?)
    }

    /// Sends all of it.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// For a writer that takes its time.
    pub fn writer(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends FIN; what comes can still be read.
    pub fn send_fin(&self) -> Result<(), Failure> {
        match self.stream.shutdown(Shutdown::Write) {
            // It has ended already: why, the socket knows.
            Err(error) if error.kind() == ErrorKind::NotConnected => {
                Err(self.stream.take_error()?.map_or(Failure::Reset, Failure::from))
            }
            result => Ok(result?),
        }
    }

    /// Ends it with RST.
    pub fn reset(self) -> Result<(), Failure> {
        Ok(SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?)
    }

    /// What was read and not yet taken.
    pub fn have(&self) -> &[u8] {
        &self.buffer[self.filled.clone()]
    }

    /// Takes the first `count` bytes of what was read.
    pub fn take(&mut self, count: usize) {
        self.filled.start = self.filled.end.min(self.filled.start + count);
    }

    /// The next bytes of a body of which `left` bytes are still to come; at least one.
    pub fn read_piece(&mut self, left: u64) -> Result<&[u8], Failure> {
        if self.filled.is_empty() {
            self.fill()?;
        }
        let take = self.filled.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let start = self.filled.start;
        self.filled.start += take;
        Ok(&self.buffer[start..start + take])
    }

    /// The next line, without its LF; at most `max` bytes.
    pub fn read_line(&mut self, max: usize) -> Result<String, Failure> {
        loop {
            let have = self.have();
            if let Some(end) = have.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&have[..end]).into_owned();
                self.take(end + 1);
                return Ok(line);
            }
            if have.len() >= max {
                return Err(Failure::Corrupted("a line has no end".into()));
            }
            self.fill()?;
        }
    }

    /// Nothing may follow a response that was the last one asked for.
    pub fn expect_nothing_more(&self) -> Result<(), Failure> {
        if self.filled.is_empty() {
            return Ok(());
        }
        Err(Failure::Corrupted(format!("{} bytes after the end of a response", self.filled.len())))
    }

    /// The peer's FIN, and nothing else, must come next.
    pub fn expect_fin(&mut self) -> Result<(), Failure> {
        self.expect_nothing_more()?;
        match self.fill() {
            Err(Failure::Closed) => Ok(()),
            Err(failure) => Err(failure),
            Ok(()) => self.expect_nothing_more(),
        }
    }

    /// Reads what there is, at least one byte.
    pub fn fill(&mut self) -> Result<(), Failure> {
        if self.filled.start > 0 {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        loop {
            match self.stream.read(&mut self.buffer[self.filled.end..]) {
                Ok(0) => return Err(Failure::Closed),
                Ok(count) => {
                    self.filled.end += count;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                Self::Reset
            }
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Other(error.to_string()),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A connection to a peer at `ip` that writes `pieces` one by one and closes.
    pub fn answered_with(ip: &str, pieces: &'static [&'static [u8]]) -> Connection {
        let listener = TcpListener::bind((ip, 0)).expect("a listener");
        let target = listener.local_addr().expect("its address");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a session");
            stream.set_nodelay(true).expect("an option");
            for piece in pieces {
                stream.write_all(piece).expect("a write");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Connection::open(&plainly_to(target)).expect("a session")
    }

    fn plainly_to(target: SocketAddr) -> Dial {
        Dial {
            target,
            source: None,
            data_with_ack: false,
            send_buffer: None,
            read_buffer: 16 * 1024,
        }
    }

    #[test]
    fn lines_and_ends_are_told_apart_wherever_they_are_cut() {
        let mut connection = answered_with("::1", &[b"on", b"e\ntwo\nthr", b"ee"]);
        assert_eq!(connection.read_line(10), Ok("one".into()));
        assert_eq!(connection.read_line(10), Ok("two".into()));
        assert!(matches!(connection.read_line(3), Err(Failure::Corrupted(_))));
        assert!(matches!(connection.expect_fin(), Err(Failure::Corrupted(_))));
        while connection.have() != b"three" {
            connection.fill().expect("more");
        }
        connection.take(5);
        assert_eq!(connection.expect_fin(), Ok(()));
    }

    #[test]
    fn silence_is_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let target = listener.local_addr().expect("its address");
        let mut connection = Connection::open(&plainly_to(target)).expect("a session");
        connection.limit(Duration::from_millis(20)).expect("a limit");
        assert_eq!(connection.fill(), Err(Failure::TimedOut));
    }

    #[test]
    fn options_of_the_opening_reach_the_socket() {
        for ip in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((ip, 0)).expect("a listener");
            let target = listener.local_addr().expect("its address");
            let free = TcpListener::bind((ip, 0)).expect("a free port");
            let source = free.local_addr().expect("its address");
            drop(free);
            let dial = Dial {
                source: Some(source),
                data_with_ack: true,
                send_buffer: Some(8192),
                ..plainly_to(target)
            };
            let connection = Connection::open(&dial).expect("a session");
            assert_eq!(connection.local_port(), source.port());
            let (peer, from) = listener.accept().expect("the session");
            assert_eq!(from, source);
            // The kernel doubles what is asked for.
            let bytes = SockRef::from(&connection.stream).send_buffer_size().expect("a size");
            assert_eq!(bytes, 16384);
            connection.reset().expect("a reset");
            let error = (&peer).read(&mut [0]).expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn a_fin_after_a_reset_is_refused_as_one() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let target = listener.local_addr().expect("its address");
        let connection = Connection::open(&plainly_to(target)).expect("a session");
        let (peer, _) = listener.accept().expect("the session");
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(peer);
        assert_eq!(connection.send_fin(), Err(Failure::Reset));
    }
}
