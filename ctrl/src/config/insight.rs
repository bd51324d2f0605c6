//! `[incidents]` and `[metrics]`: what an operator wants to know afterwards, and all the time.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::Reader;
use super::{MINUTE, millis, seconds, unicast};

/// `[incidents]`
#[derive(Debug, Clone, PartialEq)]
pub struct Incidents {
    /// An incident opens when strays of so many new flows come within [`Incidents::window`].
    pub flows: usize,
    /// See [`Incidents::flows`].
    pub window: Duration,
    /// It closes when nothing comes for this long.
    pub quiet: Duration,
    /// How many are kept.
    pub keep: usize,
    /// The file in which they are kept over a restart; absolute. `None`: in memory alone.
    pub journal: Option<PathBuf>,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Where Prometheus reads; `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

impl Metrics {
    /// What a person should know about where they can be read.
    pub(super) fn warning(&self) -> Option<String> {
        let listen = self.listen.filter(|listen| !listen.ip().is_loopback())?;
        Some(format!(
            "metrics.listen = \"{listen}\": whoever reaches that address can read them; there is no \
             password"
        ))
    }
}

pub(super) fn incidents(reader: &mut Reader<'_>) -> Incidents {
    let mut section = reader.section("incidents");
    let incidents = Incidents {
        flows: section.number("flows", 10, 1..=10_000),
        window: section.duration("window", seconds(1), millis(100)..=seconds(MINUTE)),
        quiet: section.duration("quiet", seconds(10), seconds(1)..=seconds(10 * MINUTE)),
        keep: section.number("keep", 256, 1..=10_000),
        journal: section.optional("journal", "an absolute path", |text| {
            text.starts_with('/').then(|| PathBuf::from(text))
        }),
    };
    section.finish();
    incidents
}

pub(super) fn metrics(reader: &mut Reader<'_>) -> Metrics {
    let mut section = reader.section("metrics");
    let expected = "ADDRESS:PORT with one address of this server, as in \"127.0.0.1:9464\"";
    let listen = section.optional("listen", expected, |text| {
        let socket: SocketAddr = text.parse().ok()?;
        let is_one = unicast(&socket.ip().to_string()).is_some();
        (socket.port() > 0 && is_one).then_some(socket)
    });
    section.finish();
    Metrics { listen }
}
