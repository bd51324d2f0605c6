//! As much HTTP/1.1 as the load needs: a GET on a kept connection, a head, a body of
//! known length. It never opens a connection a second time and follows nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::report::Failure;

const BUFFER_BYTES: usize = 64 * 1024;
const HEAD_BYTES_MAX: usize = 8 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the head of a response says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `X-Server`: who answers.
    pub server: String,
    /// `Content-Length`, in bytes.
    pub length: u64,
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
    pub fn open(target: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER_BYTES], filled: 0..0 })
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

    /// Sends a request.
    pub fn ask(&mut self, path: &str) -> Result<(), Failure> {
        Ok(self
            .stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: service\r\n\r\n").as_bytes())?)
    }

    /// Reads up to the end of a response's head.
    pub fn read_head(&mut self) -> Result<Head, Failure> {
        loop {
            let have = &self.buffer[self.filled.clone()];
            if let Some(end) = have.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = parse_head(&have[..end])?;
                self.filled.start += end + 4;
                return Ok(head);
            }
            if have.len() >= HEAD_BYTES_MAX {
                return Err(Failure::Corrupted("a response's head has no end".into()));
            }
            self.fill()?;
        }
    }

    /// The next bytes of a body of which `left` bytes are still to come; at least one.
    pub fn read_piece(&mut self, left: u64) -> Result<&[u8], Failure> {
        if self.filled.is_empty() {
            self.filled = 0..0;
            self.fill()?;
        }
        let take = self.filled.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let start = self.filled.start;
        self.filled.start += take;
        Ok(&self.buffer[start..start + take])
    }

    /// Nothing may follow a response that was the last one asked for.
    pub fn expect_nothing_more(&self) -> Result<(), Failure> {
        if self.filled.is_empty() {
            return Ok(());
        }
        Err(Failure::Corrupted(format!("{} bytes after the end of a response", self.filled.len())))
    }

    fn fill(&mut self) -> Result<(), Failure> {
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

fn parse_head(bytes: &[u8]) -> Result<Head, Failure> {
    let corrupted = |what: &str| Failure::Corrupted(format!("{what} in a response's head"));
    let text = std::str::from_utf8(bytes).map_err(|_| corrupted("no text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or("");
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(Failure::Corrupted(format!("status line '{}'", status.escape_debug())));
    }
    let (mut server, mut length) = (None, None);
    for line in lines {
        let (name, value) =
            line.split_once(':').ok_or_else(|| corrupted("a line without a colon"))?;
        match name.to_ascii_lowercase().as_str() {
            "x-server" => server = Some(value.trim().to_owned()),
            "content-length" => length = value.trim().parse().ok(),
            _ => {}
        }
    }
    Ok(Head {
        server: server.ok_or_else(|| corrupted("no X-Server"))?,
        length: length.ok_or_else(|| corrupted("no Content-Length"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A connection to a peer that writes `pieces` one by one and closes.
    fn answered_with(pieces: &'static [&'static [u8]]) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a session");
            stream.set_nodelay(true).expect("an option");
            for piece in pieces {
                stream.write_all(piece).expect("a write");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Connection::open(address).expect("a session")
    }

    #[test]
    fn heads_and_bodies_are_told_apart_wherever_they_are_cut() {
        let mut connection = answered_with(&[
            b"HTTP/1.1 200 OK\r\nX-Ser",
            b"ver: server3\r\nContent-Length: 5\r\n\r",
            b"\nhel",
            b"loHTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Server: server4\r\n\r\n",
        ]);
        let head = connection.read_head().expect("a head");
        assert_eq!(head, Head { server: "server3".into(), length: 5 });
        let mut body = Vec::new();
        while body.len() < 5 {
            let left = 5 - body.len() as u64;
            body.extend_from_slice(connection.read_piece(left).expect("a piece"));
        }
        assert_eq!(body, b"hello");
        assert_eq!(connection.read_head().expect("another head").server, "server4");
        connection.expect_nothing_more().expect("nothing more");
        assert_eq!(connection.read_head(), Err(Failure::Closed));
    }

    #[test]
    fn what_is_no_good_answer_is_corruption() {
        for head in [
            "HTTP/1.1 404 Not Found\r\nX-Server: a\r\nContent-Length: 0",
            "HTTP/1.1 200 OK\r\nX-Server: a",
            "x",
        ] {
            assert!(matches!(parse_head(head.as_bytes()), Err(Failure::Corrupted(_))), "{head}");
        }
    }

    #[test]
    fn silence_is_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut connection =
            Connection::open(listener.local_addr().expect("its address")).expect("a session");
        connection.limit(Duration::from_millis(20)).expect("a limit");
        assert_eq!(connection.read_head(), Err(Failure::TimedOut));
    }
}
