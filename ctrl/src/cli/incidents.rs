//! `incidents …`.

use clap::{Args, Subcommand};

use super::{Daemon, Failure};
use crate::protocol::{Limit, Request};
use crate::show;

/// Show what bursts of strays did to sessions: the ledger. Without a command, list them.
#[derive(Debug, Args)]
pub struct Incidents {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the last incidents, the newest first.
    List {
        /// Most incidents to list, 1 to 10000.
        #[arg(long, value_name = "N", default_value = "100")]
        limit: Limit,
    },
    /// Show all of one incident.
    Show {
        /// Its id, as the list has it.
        id: u64,
    },
}

impl Incidents {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        match self.verb {
            Some(Verb::Show { id }) => daemon.show(&Request::IncidentsShow { id }, show::incident),
            Some(Verb::List { limit }) => list(daemon, limit),
            None => list(daemon, Limit::default()),
        }
    }
}

fn list(daemon: &Daemon, limit: Limit) -> Result<(), Failure> {
    daemon.show(&Request::IncidentsList { limit }, show::incidents)
}
