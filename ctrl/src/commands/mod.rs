//! Answers the control socket's requests from what the running appliance shows; a file for each
//! group of commands. Never keeps a worker waiting: tables and counters are read while they are
//! written.

mod config;
mod explain;
mod health;
mod incidents;
mod limits;
mod lookups;
mod packets;
mod peers;
mod reload;
mod routing;
mod sessions;
pub(crate) mod stats;
mod workers;

use std::sync::{Arc, Mutex};

use holdfast_dataplane::time::Tick;
use holdfast_dht::HandleError;
use holdfast_dpdk as dpdk;

use crate::appliance::Appliance;
use crate::protocol::{ErrorCode, ProtocolError, Reply, Request, StreamBounds};
use crate::socket::Stream;

/// Answers requests about one appliance.
#[derive(Debug)]
pub struct Commands {
    appliance: Arc<Appliance>,
    /// Held by who walks over the session table.
    walking: Mutex<()>,
}

impl Commands {
    /// Answers about `appliance`.
    #[must_use]
    pub fn new(appliance: Arc<Appliance>) -> Commands {
        Commands { appliance, walking: Mutex::default() }
    }

    /// Answers one request; `stream` takes the items of a command whose answer is a stream.
    ///
    /// # Errors
    /// The refusal to send back.
    pub fn answer(
        &self,
        request: Request,
        stream: &mut Stream<'_>,
    ) -> Result<Reply, ProtocolError> {
        Ok(match request {
            Request::ShowStats {} => Reply::Stats(Box::new(self.stats()?)),
            Request::ShowWorkers {} => Reply::Workers(self.workers()),
            Request::ShowPeers {} => Reply::Peers(self.peers()?),
            Request::ShowLookups { limit } => Reply::Lookups(self.lookups(limit.get())?),
            Request::ShowVersion {} => Reply::Version(self.version()),
            Request::ShowRouting { limit } => Reply::Routing(self.routing(limit)?),
            Request::ShowLimits {} => Reply::Limits(self.limits()?),
            Request::ShowConfig {} => Reply::Config(self.config()),
            Request::SessionsList { filter, limit } => {
                Reply::Sessions(self.sessions_list(&filter, limit))
            }
            Request::SessionsGet { flow } => Reply::Session(self.sessions_get(&flow)?),
            Request::SessionsCount { filter } => Reply::SessionsCount(self.sessions_count(&filter)),
            Request::SessionsDelete { filter, limit } => {
                Reply::SessionsDelete(self.sessions_delete(&filter, limit)?)
            }
            Request::SessionsWatch { filter, events, for_ms: time, count } => {
                let bounds = StreamBounds { time, count };
                Reply::Stream(self.sessions_watch(&filter, &events, bounds, stream)?)
            }
            Request::Explain { flow } => Reply::Explain(Box::new(self.explain(flow)?)),
            Request::Lookup { flow } => Reply::Lookup(self.lookup(flow)?),
            Request::IncidentsList { limit } => Reply::Incidents(self.incidents(limit.get())),
            Request::IncidentsShow { id } => Reply::Incident(self.incident(id)?),
            Request::ShowHealth {} => Reply::Health(Box::new(self.health())),
            Request::Drain { timeout, mode, persist } => {
                Reply::Health(Box::new(self.drain(timeout, mode, persist)?))
            }
            Request::Undrain {} => Reply::Health(Box::new(self.undrain()?)),
            Request::Trace { flow, for_ms: time, count } => {
                Reply::Stream(self.trace(flow, StreamBounds { time, count }, stream)?)
            }
            Request::Capture { filter, snaplen, bytes, for_ms: time, count } => {
                let bounds = StreamBounds { time, count };
                Reply::Stream(self.capture(&filter, snaplen, bytes, bounds, stream)?)
            }
            Request::Reload { dry_run, confirm_ms } => {
                Reply::Reload(self.reload(dry_run, confirm_ms)?)
            }
            Request::ReloadConfirm {} => Reply::Reload(self.reload_confirm()?),
            Request::ReloadRollBack {} => Reply::Reload(self.reload_roll_back()?),
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
