//! `sessions …`.

use std::net::IpAddr;

use clap::Args;

use super::{Daemon, Failure};
use crate::protocol::{ClientFilter, Limit, Request, ServiceFilter, SessionKind};
use crate::show;

#[derive(Debug, Args)]
pub struct List {
    /// Only sessions of this kind: local or redirect.
    #[arg(long)]
    kind: Option<SessionKind>,
    /// Only sessions in this state, as in established.
    #[arg(long)]
    state: Option<String>,
    /// Only sessions of these clients: an address or a prefix.
    #[arg(long, value_name = "PREFIX")]
    client: Option<ClientFilter>,
    /// Only sessions to this service: ADDRESS or ADDRESS:PORT.
    #[arg(long)]
    service: Option<ServiceFilter>,
    /// Only sessions of the server with this locator.
    #[arg(long, value_name = "LOCATOR")]
    owner: Option<IpAddr>,
    /// Most sessions to list, 1 to 10000.
    #[arg(long, value_name = "N", default_value = "100")]
    limit: Limit,
}

impl List {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        let request = Request::ShowSessions {
            kind: self.kind,
            state: self.state.clone(),
            client: self.client,
            service: self.service,
            owner: self.owner,
            limit: self.limit,
        };
        daemon.show(&request, show::sessions)
    }
}
