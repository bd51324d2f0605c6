//! One connection, from its acceptance to its end. Broken input ends it, and it alone.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_bench::pattern;
use holdfast_bench::serve_protocol::{
    Answer, HALF_SENT_BYTES_MAX, LINE_BYTES_MAX, Request, Verdict,
};
use sha2::{Digest, Sha256};
use socket2::SockRef;

use crate::verdicts::Verdicts;

const READ_BYTES: usize = 16 * 1024;
/// A silent client is kept so long, as the lab's nginx does.
const SILENCE_MAX: Duration = Duration::from_secs(3600);
/// A write without progress for so long ends the connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);

/// What all connections have in common.
#[derive(Debug)]
pub struct Server {
    /// Its name in every answer.
    pub name: String,
    /// On the sessions that it half closed.
    pub verdicts: Verdicts,
    /// Connections that are open now.
    pub open: AtomicUsize,
    /// Connections that were accepted.
    pub accepted: AtomicU64,
    /// Connections that were closed at once, for there were too many.
    pub refused: AtomicU64,
    /// Connections that ended for a request that is none.
    pub bad_requests: AtomicU64,
    /// Connections that the client ended with RST.
    pub resets: AtomicU64,
}

impl Server {
    /// Answers the connection's requests until it ends.
    ///
    /// # Errors
    ///
    /// Those of the socket; `InvalidData` for what is no request.
    pub fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let mut session =
            Session { server: self, stream, reader: BufReader::with_capacity(READ_BYTES, stream) };
        let result = session.answer_all();
        match result.as_ref().map_err(io::Error::kind) {
            Err(ErrorKind::InvalidData) => {
                self.bad_requests.fetch_add(1, Ordering::Relaxed);
                // For whoever looks; the connection ends anyway.
                let _ = (&mut { stream }).write_all(format!("ERROR {}\n", self.name).as_bytes());
            }
            Err(ErrorKind::ConnectionReset) => {
                self.resets.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        result
    }

    fn counts(&self) -> String {
        format!(
            "accepted={} open={} refused={} bad_requests={} resets={}",
            self.accepted.load(Ordering::Relaxed),
            self.open.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
            self.bad_requests.load(Ordering::Relaxed),
            self.resets.load(Ordering::Relaxed),
        )
    }
}

struct Session<'a> {
    server: &'a Server,
    stream: &'a TcpStream,
    reader: BufReader<&'a TcpStream>,
}

impl Session<'_> {
    fn answer_all(&mut self) -> io::Result<()> {
        while let Some(line) = self.read_line()? {
            match Request::parse(&line).ok_or(ErrorKind::InvalidData)? {
                Request::Echo { bytes } => self.echo(bytes)?,
                Request::Verdict { token } => {
                    self.answer(&self.server.verdicts.get(&token).to_string(), &[])?;
                }
                Request::Counts => self.answer(&self.server.counts(), &[])?,
                Request::Half { seed, bytes, ms } => {
                    return self.half(seed, bytes, Duration::from_millis(ms));
                }
                Request::Close { token, seed, bytes } => return self.close(&token, seed, bytes),
                Request::Reset { ms } => return self.reset(Duration::from_millis(ms)),
            }
        }
        Ok(())
    }

    /// `None`: the client ended the connection between two requests.
    fn read_line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        (&mut self.reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        match line.pop() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(String::from_utf8(line).map_err(|_| ErrorKind::InvalidData)?)),
            Some(_) => Err(ErrorKind::InvalidData.into()),
        }
    }

    /// The first line and what follows in one write.
    fn answer(&mut self, rest: &str, body: &[u8]) -> io::Result<()> {
        let answer = Answer { server: self.server.name.clone(), rest: rest.to_owned() };
        let mut bytes = answer.to_string().into_bytes();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes)
    }

    fn echo(&mut self, bytes: usize) -> io::Result<()> {
        // Grows with what comes, not with what was promised.
        let mut block = Vec::new();
        (&mut self.reader).take(bytes as u64).read_to_end(&mut block)?;
        if block.len() < bytes {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.answer("", &block)
    }

    /// The client's FIN comes first, then a paced stream to it.
    fn half(&mut self, seed: u64, bytes: u64, duration: Duration) -> io::Result<()> {
        let mut hash = Sha256::new();
        let mut got = 0;
        self.read_to_end(|piece| {
            hash.update(piece);
            got += piece.len() as u64;
            if got > HALF_SENT_BYTES_MAX { Err(ErrorKind::InvalidData.into()) } else { Ok(()) }
        })?;
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.answer(&digest, &[])?;
        pattern::send_paced(&mut { self.stream }, seed, bytes, duration, |_| Ok(()))
    }

    /// This end's FIN comes first, then the client's stream, on which there is a verdict.
    fn close(&mut self, token: &str, seed: u64, bytes: u64) -> io::Result<()> {
        if !self.server.verdicts.begin(token) {
            return Err(ErrorKind::InvalidData.into());
        }
        let result = self.check_stream(seed, bytes);
        let verdict = match &result {
            Ok(verdict) => verdict.clone(),
            Err(error) => Verdict::Bad(format!("the connection failed: {error}")),
        };
        self.server.verdicts.end(token, verdict);
        result.map(|_| ())
    }

    fn check_stream(&mut self, seed: u64, bytes: u64) -> io::Result<Verdict> {
        self.answer("", &[])?;
        self.stream.shutdown(Shutdown::Write)?;
        let (mut got, mut wrong) = (0, None);
        self.read_to_end(|piece| {
            wrong = wrong.or_else(|| pattern::first_difference(seed, got, piece));
            got += piece.len() as u64;
            Ok(())
        })?;
        Ok(match wrong {
            Some(at) => Verdict::Bad(format!("byte {at} is wrong")),
            None if got != bytes => Verdict::Bad(format!("{got} bytes came instead of {bytes}")),
            None => Verdict::Good,
        })
    }

    /// The RST itself comes when the socket is dropped.
    fn reset(&mut self, after: Duration) -> io::Result<()> {
        let due = Instant::now() + after;
        self.answer("", &[])?;
        if !self.reader.buffer().is_empty() {
            return Err(ErrorKind::InvalidData.into());
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        SockRef::from(self.stream).set_linger(Some(Duration::ZERO))
    }

    /// Gives everything up to the client's FIN to `take`.
    fn read_to_end(&mut self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        loop {
            let piece = match self.reader.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                piece => piece?,
            };
            if piece.is_empty() {
                return Ok(());
            }
            let length = piece.len();
            take(piece)?;
            self.reader.consume(length);
        }
    }
}
