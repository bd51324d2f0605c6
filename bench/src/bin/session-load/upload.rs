//! The upload session: puts a file and gets it back, round after round, on one
//! connection. Each round's bytes are new, under the same path.

use std::thread;
use std::time::{Duration, Instant};

use holdfast_bench::pattern;

use crate::connection::Connection;
use crate::report::Failure;
use crate::session::Session;

/// So much goes out in one write, as full segments and one more.
const PIECE_BYTES: u64 = 64 * 1024;

impl Session<'_> {
    /// Rounds until the run ends.
    pub fn live_upload(&mut self) -> Result<(), Failure> {
        let connection = &mut self.open()?;
        let path = format!("{}{}", self.plan.upload_path, self.id);
        for round in 0.. {
            let start = Instant::now();
            let seed = self.seed(round);
            self.put(connection, &path, seed)?;
            self.get_back(connection, &path, seed)?;
            let next = self.paced(self.plan.upload_bytes).saturating_sub(start.elapsed());
            if self.pause(next)? {
                break;
            }
        }
        Ok(())
    }

    /// When, after the first, so many bytes may have been sent.
    fn paced(&self, bytes: u64) -> Duration {
        match self.plan.upload_rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(bytes as f64 / rate as f64),
        }
    }

    fn put(&mut self, connection: &mut Connection, path: &str, seed: u64) -> Result<(), Failure> {
        let length = self.plan.upload_bytes;
        self.limit(connection)?;
        let start = Instant::now();
        // The head travels with the first bytes.
        let mut piece =
            format!("PUT {path} HTTP/1.1\r\nHost: service\r\nContent-Length: {length}\r\n\r\n")
                .into_bytes();
        let mut sent = 0;
        loop {
            let take = (length - sent).min(PIECE_BYTES);
            let body = piece.len();
            piece.resize(body + take as usize, 0);
            pattern::fill(seed, sent, &mut piece[body..]);
            let since = Instant::now();
            connection.send(&piece)?;
            self.meter.progress(since, self.control);
            self.report.bytes_sent += take;
            sent += take;
            if sent == length {
                break;
            }
            piece.clear();
            let next = self.paced(sent).saturating_sub(start.elapsed());
            thread::sleep(next.min(self.control.left()));
            self.check_time()?;
        }
        let since = Instant::now();
        let head = connection.read_head(&[201, 204])?;
        let mut left = head.length;
        while left > 0 {
            left -= connection.read_piece(left)?.len() as u64;
        }
        connection.expect_nothing_more()?;
        self.meter.progress(since, self.control);
        self.report.responses += 1;
        self.meet(&head.server)
    }

    /// What comes must be what was sent, in length and in every byte.
    fn get_back(
        &mut self,
        connection: &mut Connection,
        path: &str,
        seed: u64,
    ) -> Result<(), Failure> {
        let length = self.plan.upload_bytes;
        self.limit(connection)?;
        let mut since = Instant::now();
        connection.ask(path)?;
        let head = connection.read_head(&[200])?;
        self.meet(&head.server)?;
        if head.length != length {
            let got = head.length;
            return Err(Failure::Corrupted(format!("{length} bytes went up, {got} came back")));
        }
        self.read_pattern(connection, seed, length, &mut since)?;
        connection.expect_nothing_more()?;
        self.report.responses += 1;
        Ok(())
    }

    /// Reads `length` bytes, which must be those of the pattern. Progress is due
    /// since `since`.
    pub fn read_pattern(
        &mut self,
        connection: &mut Connection,
        seed: u64,
        length: u64,
        since: &mut Instant,
    ) -> Result<(), Failure> {
        let mut got = 0;
        while got < length {
            let piece = connection.read_piece(length - got)?;
            if let Some(at) = pattern::first_difference(seed, got, piece) {
                return Err(Failure::Corrupted(format!("byte {at} of {length} is wrong")));
            }
            got += piece.len() as u64;
            self.report.bytes += piece.len() as u64;
            self.meter.progress(*since, self.control);
            *since = Instant::now();
            self.check_time()?;
        }
        Ok(())
    }
}
