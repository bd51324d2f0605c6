//! `sessions …`.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Subcommand};
use holdfast_net::FlowKey;
use humantime_serde::re::humantime::parse_duration;

use super::{Daemon, Failure};
use crate::protocol::{
    ClientFilter, Limit, Request, ServiceFilter, SessionChange, SessionEvent, SessionFilter,
    SessionKind, SessionState, SessionsCountReply, StreamCount, StreamTime,
};
use crate::show;

#[derive(Debug, Subcommand)]
pub enum Sessions {
    /// List entries of the session table; `show sessions` is the same.
    List(List),
    /// Show the entry of one flow.
    Get {
        /// CLIENT-SERVICE, as in 20.1.1.1:1234-192.168.0.1:80.
        flow: FlowKey,
    },
    /// Count entries by state, service and owner.
    Count(Filter),
    /// Take entries out of the session table, and withdraw the records of local sessions.
    ///
    /// The kernel's sockets stay: what it holds comes back with the next segment that the host
    /// sends, or with the next kernel check. `ss --kill` ends those.
    Delete(Delete),
    /// Show changes as they happen, until it is interrupted.
    Watch(Watch),
}

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    idle: IdleFilter,
    /// Most sessions to list, 1 to 10000.
    #[arg(long, value_name = "N", default_value = "100")]
    limit: Limit,
}

/// Which sessions; those that all of it is true of.
#[derive(Debug, Args)]
pub struct Filter {
    /// Only sessions of this kind: local or redirect.
    #[arg(long)]
    kind: Option<SessionKind>,
    /// Only sessions in this state, as in established.
    #[arg(long)]
    state: Option<SessionState>,
    /// Only sessions of these clients: an address or a prefix.
    #[arg(long, value_name = "PREFIX")]
    client: Option<ClientFilter>,
    /// Only sessions of clients at this port.
    #[arg(long, value_name = "PORT")]
    client_port: Option<u16>,
    /// Only sessions to this service: ADDRESS or ADDRESS:PORT.
    #[arg(long)]
    service: Option<ServiceFilter>,
    /// Only sessions of the server with this locator.
    #[arg(long, value_name = "LOCATOR")]
    owner: Option<IpAddr>,
}

/// What changes by itself.
#[derive(Debug, Args)]
pub struct IdleFilter {
    /// Only sessions that are idle for longer than this, as in 5m.
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    idle_over: Option<u64>,
    /// Only sessions that are idle for less than this, as in 30s.
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    idle_under: Option<u64>,
    /// Only local sessions that are published (true), or are not (false).
    #[arg(long, value_name = "BOOL")]
    published: Option<bool>,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// CLIENT-SERVICE, as in 20.1.1.1:1234-192.168.0.1:80; without it, all that the options choose.
    #[arg(conflicts_with_all = ["kind", "state", "client", "client_port", "service", "owner",
        "idle_over", "idle_under", "published", "limit"])]
    flow: Option<FlowKey>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    idle: IdleFilter,
    /// Most sessions to delete, 1 to 10000.
    #[arg(long, value_name = "N", default_value = "100")]
    limit: Limit,
    /// Delete although it is more than one.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub struct Watch {
    #[command(flatten)]
    filter: Filter,
    /// Only these changes, as in opened,redirected,expired.
    #[arg(long, value_name = "EVENTS", value_delimiter = ',')]
    event: Vec<SessionEvent>,
    /// How long, as in 30s; an hour at most.
    #[arg(long = "for", value_name = "TIME", default_value = "1h")]
    time: StreamTime,
    /// How many changes, 1 to 10000000.
    #[arg(long, value_name = "N", default_value = "10000000")]
    count: StreamCount,
}

fn milliseconds(text: &str) -> Result<u64, String> {
    let time: Duration =
        parse_duration(text).map_err(|error| format!("expected a time, as in 5m: {error}"))?;
    u64::try_from(time.as_millis()).map_err(|_| "expected a shorter time".to_owned())
}

impl Filter {
    fn with(&self, idle: Option<&IdleFilter>) -> SessionFilter {
        SessionFilter {
            flow: None,
            kind: self.kind,
            state: self.state,
            client: self.client,
            client_port: self.client_port,
            service: self.service,
            owner: self.owner,
            idle_over_ms: idle.and_then(|idle| idle.idle_over),
            idle_under_ms: idle.and_then(|idle| idle.idle_under),
            published: idle.and_then(|idle| idle.published),
        }
    }
}

impl Sessions {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        match self {
            Sessions::List(list) => list.run(daemon),
            Sessions::Get { flow } => {
                daemon.show(&Request::SessionsGet { flow: *flow }, show::session)
            }
            Sessions::Count(filter) => {
                let filter = filter.with(None);
                daemon.show(&Request::SessionsCount { filter }, show::sessions_count)
            }
            Sessions::Delete(delete) => delete.run(daemon),
            Sessions::Watch(watch) => watch.run(daemon),
        }
    }
}

impl List {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        let filter = self.filter.with(Some(&self.idle));
        daemon.show(&Request::SessionsList { filter, limit: self.limit }, show::sessions)
    }
}

impl Delete {
    fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        let filter = SessionFilter { flow: self.flow, ..self.filter.with(Some(&self.idle)) };
        if filter.is_empty() {
            return Err(Failure::Usage(
                "sessions delete needs a FLOW, or options that choose sessions: see --help".into(),
            ));
        }
        if self.flow.is_none() && !self.yes {
            let reply: SessionsCountReply =
                daemon.ask(&Request::SessionsCount { filter: filter.clone() })?;
            if reply.total > 1 {
                return Err(Failure::Usage(format!(
                    "{} sessions match; --yes deletes {}",
                    reply.total,
                    if reply.total > self.limit.get() as u64 {
                        format!("{} of them", self.limit.get())
                    } else {
                        "them".to_owned()
                    }
                )));
            }
        }
        let limit = if self.yes { self.limit } else { Limit::ONE };
        daemon.show(&Request::SessionsDelete { filter, limit }, show::sessions_delete)
    }
}

impl Watch {
    fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        let request = Request::SessionsWatch {
            filter: self.filter.with(None),
            events: self.event.clone(),
            for_ms: self.time,
            count: self.count,
        };
        let reply = daemon.follow::<SessionChange>(&request, show::session_change)?;
        daemon.end(&reply)
    }
}
