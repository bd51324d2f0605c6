//! `show …`.

use clap::Subcommand;

use super::sessions::List;
use super::{Daemon, Failure};
use crate::protocol::{Limit, Request};
use crate::show;

#[derive(Debug, Subcommand)]
pub enum Show {
    /// Counters and gauges of ports, workers, session table, health, DHT and control socket.
    Stats {
        /// Show counters that are 0 as well.
        #[arg(long)]
        all: bool,
    },
    /// How busy each worker is: in the last second, and since the start.
    Workers,
    /// Entries of the session table, as `sessions list`.
    Sessions(List),
    /// Members of the DHT.
    Peers,
    /// The DHT's routing table: buckets and their contacts, and who is absent.
    Routing {
        /// Most contacts to list, 1 to 10000.
        #[arg(long, value_name = "N", default_value = "100")]
        limit: Limit,
    },
    /// What is bounded: its limit, how much there is, how often the limit was reached.
    Limits,
    /// The configuration in effect, without keys.
    Config,
    /// The last lookups in the DHT.
    Lookups {
        /// Most lookups to list, 1 to 10000.
        #[arg(long, value_name = "N", default_value = "100")]
        limit: Limit,
    },
    /// Checks of the services, what is announced, and drain.
    Health,
    /// Versions of this program and of the daemon.
    Version,
}

impl Show {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        match self {
            Show::Stats { all } => {
                daemon.show(&Request::ShowStats {}, |reply| show::stats(reply, *all))
            }
            Show::Workers => daemon.show(&Request::ShowWorkers {}, show::workers),
            Show::Sessions(list) => list.run(daemon),
            Show::Peers => daemon.show(&Request::ShowPeers {}, show::peers),
            Show::Lookups { limit } => {
                daemon.show(&Request::ShowLookups { limit: *limit }, show::lookups)
            }
            Show::Routing { limit } => {
                daemon.show(&Request::ShowRouting { limit: *limit }, show::routing)
            }
            Show::Limits => daemon.show(&Request::ShowLimits {}, show::limits),
            Show::Config => daemon.show(&Request::ShowConfig {}, show::config),
            Show::Health => daemon.show(&Request::ShowHealth {}, show::health),
            Show::Version => daemon.show(&Request::ShowVersion {}, show::version),
        }
    }
}
