//! `lookup FLOW`.

use clap::Args;
use holdfast_net::FlowKey;

use super::{Daemon, Failure};
use crate::protocol::Request;
use crate::show;

/// Look up who owns a flow, in the session table and in the DHT.
#[derive(Debug, Args)]
pub struct Lookup {
    /// CLIENT-SERVICE, as in 20.1.1.1:1234-192.168.0.1:80.
    flow: FlowKey,
}

impl Lookup {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        daemon.show(&Request::Lookup { flow: self.flow }, show::lookup)
    }
}
