//! The churn loop: opens a connection, asks once, closes it, in turn in three ways.
//! The first connection that fails ends the loop.

use std::io::ErrorKind;
use std::time::Instant;

use crate::connection::Connection;
use crate::report::Failure;
use crate::session::Session;

/// Who ends a connection, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    ClientFin,
    ServerFin,
    ClientReset,
}

impl Session<'_> {
    /// Connections, one after another, until the run ends. Their ports are free: one
    /// that closed first would stay in TIME-WAIT.
    pub fn live_churn(&mut self) -> Result<(), Failure> {
        let endings = [Ending::ClientFin, Ending::ServerFin, Ending::ClientReset];
        for ending in endings.into_iter().cycle() {
            self.open_and_close(ending)?;
            self.report.connections += 1;
            self.report.phase = None;
            if self.pause(self.plan.churn_pause)? {
                break;
            }
        }
        Ok(())
    }

    fn open_and_close(&mut self, ending: Ending) -> Result<(), Failure> {
        self.report.phase = Some("connect");
        let since = Instant::now();
        let dial = self.dial_from(self.plan.target, None);
        let connection = Connection::open(&dial);
        self.report.connect = since.elapsed();
        let mut connection = connection.map_err(|error| match error.kind() {
            // The answer to the SYN was RST.
            ErrorKind::ConnectionRefused => Failure::Reset,
            _ => error.into(),
        })?;
        self.report.local_port = connection.local_port();

        self.report.phase = Some("request");
        let name = format!("{}-{}", self.id, self.report.responses);
        let close = if ending == Ending::ServerFin { "Connection: close\r\n" } else { "" };
        let request = format!("GET /?id={name} HTTP/1.1\r\nHost: service\r\n{close}\r\n");
        let server = self.exchange_as(&mut connection, &name, &request)?;
        self.meter.progress(since, self.control);
        // Each connection may be another server's; the report names the first one's.
        if !self.report.opened {
            self.greet(&server);
        }

        self.report.phase = Some("close");
        let since = Instant::now();
        match ending {
            Ending::ClientReset => return connection.reset(),
            Ending::ClientFin => connection.send_fin()?,
            Ending::ServerFin => {}
        }
        connection.expect_fin()?;
        self.meter.progress(since, self.control);
        Ok(())
    }
}
