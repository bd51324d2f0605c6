//! Sessions as the protocol lists them, and filters that choose among them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use holdfast_net::FlowKey;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::flow_text;

/// Which clients: an address or a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientFilter(pub IpNet);

/// Why a text is no client filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected a client's address or a prefix, as in 20.1.1.1 or 20.1.0.0/16")]
pub struct ClientFilterError;

impl FromStr for ClientFilter {
    type Err = ClientFilterError;

    fn from_str(text: &str) -> Result<ClientFilter, ClientFilterError> {
        let prefix = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| IpNet::from(ip)));
        prefix.map(ClientFilter).map_err(|_| ClientFilterError)
    }
}

/// Which service: an address, and a port or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceFilter {
    /// The anycast address.
    pub address: IpAddr,
    /// The port; `None` means all.
    pub port: Option<u16>,
}

/// Why a text is no service filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected a service as ADDRESS or ADDRESS:PORT, as in 192.168.0.1:80 or [2001:db8::80]:80")]
pub struct ServiceFilterError;

impl FromStr for ServiceFilter {
    type Err = ServiceFilterError;

    fn from_str(text: &str) -> Result<ServiceFilter, ServiceFilterError> {
        if let Ok(address) = text.parse() {
            return Ok(ServiceFilter { address, port: None });
        }
        let socket: SocketAddr = text.parse().map_err(|_| ServiceFilterError)?;
        Ok(ServiceFilter { address: socket.ip(), port: Some(socket.port()) })
    }
}

impl fmt::Display for ClientFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ServiceFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => self.address.fmt(f),
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
        }
    }
}

macro_rules! as_text {
    ($($filter:ty),*) => {$(
        impl TryFrom<String> for $filter {
            type Error = <$filter as FromStr>::Err;

            fn try_from(text: String) -> Result<$filter, Self::Error> {
                text.parse()
            }
        }

        impl From<$filter> for String {
            fn from(filter: $filter) -> String {
                filter.to_string()
            }
        }
    )*};
}
as_text!(ClientFilter, ServiceFilter);

impl ClientFilter {
    /// Whether the flow's client is one of them.
    #[must_use]
    pub fn admits(&self, flow: &FlowKey) -> bool {
        self.0.contains(&flow.client().ip())
    }
}

impl ServiceFilter {
    /// Whether the flow's service is the one.
    #[must_use]
    pub fn admits(&self, flow: &FlowKey) -> bool {
        let service = flow.service();
        service.ip() == self.address && self.port.is_none_or(|port| port == service.port())
    }
}

/// Entries of the session table.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SessionsReply {
    /// The entries, in no order.
    pub sessions: Vec<SessionEntry>,
    /// How many match, listed or not.
    pub total: u64,
    /// Whether some that match are not listed.
    pub truncated: bool,
}

/// One entry of the session table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionEntry {
    /// The flow.
    #[serde(with = "flow_text")]
    pub flow: FlowKey,
    /// Whether this server owns it.
    pub kind: SessionKind,
    /// State of the session: `half_open`, `established`, `host_closed` and `client_closed` (FIN
    /// one way), `closed` (FIN both ways) or `reset`; of a redirect, `redirected`.
    pub state: String,
    /// Locator of its owner.
    pub owner: IpAddr,
    /// Its version; `None` for a redirect, for which only the DHT knows it.
    pub version: Option<u64>,
    /// Time since its last packet, in milliseconds.
    pub idle_ms: u64,
}

/// Who owns a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionKind {
    /// This server.
    Local,
    /// Another server, to which the flow's packets are tunnelled.
    Redirect,
}

impl fmt::Display for SessionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SessionKind::Local => "local",
            SessionKind::Redirect => "redirect",
        })
    }
}

/// Why a text is no kind of session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected local or redirect")]
pub struct SessionKindError;

impl FromStr for SessionKind {
    type Err = SessionKindError;

    fn from_str(text: &str) -> Result<SessionKind, SessionKindError> {
        match text {
            "local" => Ok(SessionKind::Local),
            "redirect" => Ok(SessionKind::Redirect),
            _ => Err(SessionKindError),
        }
    }
}
