//! `explain FLOW`.

use clap::Args;
use holdfast_net::FlowKey;

use super::{Daemon, Failure};
use crate::protocol::Request;
use crate::show;

/// Explain where a flow's next segment would go from this server, and why.
#[derive(Debug, Args)]
pub struct Explain {
    /// CLIENT-SERVICE, as in 20.1.1.1:1234-192.168.0.1:80.
    flow: FlowKey,
}

impl Explain {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        daemon.show(&Request::Explain { flow: self.flow }, show::explain)
    }
}
