//! The sessions whose peer is `session-serve`: echoes, half-closed connections, resets.

use std::thread;
use std::time::{Duration, Instant};

use holdfast_bench::pattern;
use holdfast_bench::serve_protocol::{Answer, LINE_BYTES_MAX, Request, Verdict};
use sha2::{Digest, Sha256};

use crate::connection::Connection;
use crate::control::Woken;
use crate::report::Failure;
use crate::session::Session;

/// What a half-close session sends before its FIN.
const HALF_CLOSE_SENT_BYTES: usize = 64 * 1024;
/// Between two connections that ask for a verdict.
const VERDICT_PAUSE: Duration = Duration::from_millis(50);
/// A reset that did not come by then may be lost: the next byte brings another one.
const RESET_GRACE: Duration = Duration::from_secs(1);

impl Session<'_> {
    /// Echoes at a fixed pace until the run ends.
    pub fn live_echo(&mut self) -> Result<(), Failure> {
        let connection = &mut self.open()?;
        loop {
            self.echo(connection)?;
            if self.pause(self.plan.request_interval)? {
                return self.echo(connection);
            }
        }
    }

    /// One block there and back.
    fn echo(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        self.limit(connection)?;
        let (seed, bytes) = (self.seed(self.report.responses), self.plan.echo_bytes);
        let mut since = Instant::now();
        self.ask_server(connection, &Request::Echo { bytes }, &pattern::of(seed, bytes))?;
        self.report.bytes_sent += bytes as u64;
        self.expect_answer(connection, "")?;
        self.read_pattern(connection, seed, bytes as u64, &mut since)?;
        connection.expect_nothing_more()?;
        self.report.responses += 1;
        Ok(())
    }

    /// Sends, closes its direction, and receives for a while.
    pub fn live_half_close(&mut self) -> Result<(), Failure> {
        let connection = &mut self.open()?;
        let (seed, bytes) = (self.seed(0), self.half_close_bytes());
        let ms = u64::try_from(self.plan.half_close.as_millis()).unwrap_or(u64::MAX);
        let sent = pattern::of(self.seed(1), HALF_CLOSE_SENT_BYTES);
        let digest: String = Sha256::digest(&sent).iter().map(|b| format!("{b:02x}")).collect();
        let mut since = Instant::now();
        self.ask_server(connection, &Request::Half { seed, bytes, ms }, &sent)?;
        connection.send_fin()?;
        self.report.bytes_sent += sent.len() as u64;
        self.expect_answer(connection, &digest)?;
        self.meter.progress(since, self.control);
        since = Instant::now();
        self.read_pattern(connection, seed, bytes, &mut since)?;
        connection.expect_fin()?;
        self.report.responses += 1;
        Ok(())
    }

    /// The server closes its direction; this end sends for a while, and closes. Only
    /// the server knows what came.
    pub fn live_host_close(&mut self) -> Result<(), Failure> {
        let connection = &mut self.open()?;
        let (seed, bytes) = (self.seed(0), self.half_close_bytes());
        let token = format!("{:x}-{}", self.plan.run, self.id);
        let since = Instant::now();
        self.ask_server(connection, &Request::Close { token: token.clone(), seed, bytes }, &[])?;
        self.expect_answer(connection, "")?;
        connection.expect_fin()?;
        self.meter.progress(since, self.control);
        let duration = self.plan.half_close;
        pattern::send_paced(&mut connection.writer(), seed, bytes, duration, |since| {
            self.meter.progress(since, self.control);
            self.check_time()
        })?;
        self.report.bytes_sent += bytes;
        let since = Instant::now();
        connection.send_fin()?;
        self.expect_good_verdict(&token)?;
        self.meter.progress(since, self.control);
        self.report.responses += 1;
        Ok(())
    }

    /// Asks on new connections, until one comes to the server that knows: they may be
    /// led to any server of the service.
    fn expect_good_verdict(&self, token: &str) -> Result<(), Failure> {
        let (start, longest) = (Instant::now(), self.time_left());
        let mut last = format!("no connection came to {}", self.report.server);
        while start.elapsed() < longest {
            match self.ask_verdict(token) {
                Ok(Some(Verdict::Good)) => return Ok(()),
                Ok(Some(Verdict::Bad(what))) => {
                    return Err(Failure::Corrupted(format!("the server: {what}")));
                }
                Ok(Some(Verdict::Unknown)) => {
                    return Err(Failure::Corrupted("the server knows nothing of it".into()));
                }
                Ok(Some(Verdict::Pending)) => last = "the server saw no end of it".into(),
                // Another server's. And a failed question says nothing of the session.
                Ok(None) | Err(_) => {}
            }
            thread::sleep(VERDICT_PAUSE);
        }
        Err(Failure::Other(format!("no verdict: {last}")))
    }

    /// `None`: another server answered.
    fn ask_verdict(&self, token: &str) -> Result<Option<Verdict>, Failure> {
        let target = self.plan.serve_target.unwrap_or(self.plan.target);
        let mut connection = Connection::open(&self.dial_from(target, None))?;
        self.limit(&connection)?;
        let question = Request::Verdict { token: token.to_owned() };
        self.ask_server(&mut connection, &question, &[])?;
        let answer = read_answer(&mut connection)?;
        if answer.server != self.report.server {
            return Ok(None);
        }
        Verdict::parse(&answer.rest)
            .map(Some)
            .ok_or_else(|| Failure::Corrupted(format!("the verdict '{}'", answer.rest)))
    }

    /// The server's RST at its time is the good end; any other one is not.
    pub fn live_server_reset(&mut self) -> Result<(), Failure> {
        let connection = &mut self.open()?;
        self.echo(connection)?;
        let ms = u64::try_from(self.plan.server_reset.as_millis()).unwrap_or(u64::MAX);
        // The server's time begins later than this.
        let due = Instant::now() + self.plan.server_reset;
        self.ask_server(connection, &Request::Reset { ms }, &[])?;
        self.expect_answer(connection, "")?;
        let till_late = due.saturating_duration_since(Instant::now()) + RESET_GRACE;
        connection.limit(till_late.min(self.control.left()))?;
        let mut end = expect_reset(connection, due);
        if end == Err(Failure::TimedOut) {
            // RST is sent once; if it was lost, the peer answers a byte with another.
            self.check_time()?;
            self.limit(connection)?;
            self.report.reset_after_probe = true;
            end = match connection.send(b"\n") {
                Ok(()) => expect_reset(connection, due),
                Err(Failure::Reset) => Ok(()),
                Err(failure) => Err(failure),
            };
        }
        end?;
        self.meter.progress(due, self.control);
        self.report.responses += 1;
        Ok(())
    }

    /// One echo, silence until a mark or the end, RST.
    pub fn live_client_reset(&mut self) -> Result<(), Failure> {
        let mut connection = self.open()?;
        self.echo(&mut connection)?;
        match self.control.wait(Some(0), self.control.left()) {
            Woken::Mark(_) | Woken::Finish => connection.reset(),
            Woken::Elapsed => Err(Failure::TimedOut),
        }
    }

    fn half_close_bytes(&self) -> u64 {
        let bytes = self.plan.half_close.as_millis() * u128::from(self.plan.half_close_rate) / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// The request's line and what follows it in one write.
    fn ask_server(
        &self,
        connection: &mut Connection,
        request: &Request,
        body: &[u8],
    ) -> Result<(), Failure> {
        let mut bytes = request.to_string().into_bytes();
        bytes.extend_from_slice(body);
        connection.send(&bytes)
    }

    fn expect_answer(&mut self, connection: &mut Connection, rest: &str) -> Result<(), Failure> {
        let answer = read_answer(connection)?;
        self.meet(&answer.server)?;
        if answer.rest != rest {
            let text = answer.rest.escape_debug();
            return Err(Failure::Corrupted(format!("answered '{text}' instead of '{rest}'")));
        }
        Ok(())
    }
}

fn read_answer(connection: &mut Connection) -> Result<Answer, Failure> {
    let line = connection.read_line(LINE_BYTES_MAX)?;
    Answer::parse(&line)
        .ok_or_else(|| Failure::Corrupted(format!("answered '{}'", line.escape_debug())))
}

/// Waits for RST, which must not come before `due`.
fn expect_reset(connection: &mut Connection, due: Instant) -> Result<(), Failure> {
    connection.expect_nothing_more()?;
    match connection.fill() {
        Ok(()) => connection.expect_nothing_more(),
        Err(Failure::Reset) if Instant::now() >= due => Ok(()),
        Err(failure) => Err(failure),
    }
}
