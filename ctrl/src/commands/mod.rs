//! Answers the control socket's requests from what the running appliance shows; a file for each
//! group of commands. Never keeps a worker waiting: tables and counters are read while they are
//! written.

mod health;
mod lookups;
mod peers;
mod sessions;
mod stats;
mod workers;

use std::sync::Arc;

use holdfast_dataplane::time::Tick;
use holdfast_dht::HandleError;
use holdfast_dpdk as dpdk;

use crate::appliance::Appliance;
use crate::protocol::{ErrorCode, ProtocolError, Reply, Request};
use crate::socket::Stream;

/// Answers requests about one appliance.
#[derive(Debug)]
pub struct Commands {
    appliance: Arc<Appliance>,
}

impl Commands {
    /// Answers about `appliance`.
    #[must_use]
    pub fn new(appliance: Arc<Appliance>) -> Commands {
        Commands { appliance }
    }

    /// Answers one request; `stream` takes the items of a command whose answer is a stream.
    ///
    /// # Errors
    /// The refusal to send back.
    pub fn answer(
        &self,
        request: Request,
        _stream: &mut Stream<'_>,
    ) -> Result<Reply, ProtocolError> {
        Ok(match request {
            Request::ShowStats {} => Reply::Stats(Box::new(self.stats()?)),
            Request::ShowWorkers {} => Reply::Workers(self.workers()),
            Request::ShowSessions { .. } => Reply::Sessions(self.sessions(&request)),
            Request::ShowPeers {} => Reply::Peers(self.peers()?),
            Request::ShowLookups { limit } => Reply::Lookups(self.lookups(limit.get())?),
            Request::ShowVersion {} => Reply::Version(self.version()),
            Request::Lookup { flow } => Reply::Lookup(self.lookup(flow)?),
            Request::ShowHealth {} => Reply::Health(Box::new(self.health())),
            Request::Drain { timeout, mode, persist } => {
                Reply::Health(Box::new(self.drain(timeout, mode, persist)?))
            }
            Request::Undrain {} => Reply::Health(Box::new(self.undrain()?)),
        })
    }

    /// The time as the table keeps it.
    fn now(&self) -> Tick {
        self.appliance.clock.at(dpdk::tsc()).tick()
    }
}

fn unavailable(error: HandleError) -> ProtocolError {
    let code = match error {
        HandleError::Busy => ErrorCode::Busy,
        HandleError::Stopped | HandleError::TimedOut => ErrorCode::Unavailable,
    };
    ProtocolError::new(code, error.to_string())
}

fn as_u64(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
