//! Sessions as the protocol lists them, and filters that choose among them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use holdfast_net::FlowKey;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Counters, flow_text, optional_flow_text};

/// Which clients: an address or a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SessionsReply {
    /// The entries, in no order.
    pub sessions: Vec<SessionEntry>,
    /// How many match, listed or not.
    pub total: u64,
    /// Whether some that match are not listed.
    pub truncated: bool,
}

/// One entry of the session table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionEntry {
    /// The flow.
    #[serde(with = "flow_text")]
    #[schemars(with = "String")]
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
    /// Whether the DHT core has been told of it; `None` for a redirect.
    #[serde(default)]
    pub published: Option<bool>,
    /// Time since its last packet, in milliseconds.
    pub idle_ms: u64,
}

/// Who owns a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// State of a session, as [`SessionEntry::state`] names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// The host has answered SYN-ACK.
    HalfOpen,
    /// The handshake is complete.
    Established,
    /// The host has sent FIN.
    HostClosed,
    /// The client has sent FIN.
    ClientClosed,
    /// FIN went both ways.
    Closed,
    /// RST was seen.
    Reset,
    /// Of a redirect.
    Redirected,
}

impl SessionState {
    /// All of them, and their names.
    pub(super) const NAMES: [(SessionState, &'static str); 7] = [
        (SessionState::HalfOpen, "half_open"),
        (SessionState::Established, "established"),
        (SessionState::HostClosed, "host_closed"),
        (SessionState::ClientClosed, "client_closed"),
        (SessionState::Closed, "closed"),
        (SessionState::Reset, "reset"),
        (SessionState::Redirected, "redirected"),
    ];

    /// The name in listings.
    #[must_use]
    pub fn name(self) -> &'static str {
        let of = SessionState::NAMES.iter().find(|(state, _)| *state == self);
        of.map_or("", |(_, name)| name)
    }
}

/// Why a text is no state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected half_open, established, host_closed, client_closed, closed, reset or redirected")]
pub struct SessionStateError;

impl FromStr for SessionState {
    type Err = SessionStateError;

    fn from_str(text: &str) -> Result<SessionState, SessionStateError> {
        let of = SessionState::NAMES.iter().find(|(_, name)| *name == text);
        of.map(|(state, _)| *state).ok_or(SessionStateError)
    }
}

/// Which entries of the session table: those that all of it is true of.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionFilter {
    /// Only of this flow.
    #[serde(default, with = "optional_flow_text", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub flow: Option<FlowKey>,
    /// Only of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SessionKind>,
    /// Only in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SessionState>,
    /// Only of these clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientFilter>,
    /// Only of clients at this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_port: Option<u16>,
    /// Only to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceFilter>,
    /// Only those that the server with this locator owns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<IpAddr>,
    /// Only those that are idle for longer than this, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_over_ms: Option<u64>,
    /// Only those that are idle for less than this, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_under_ms: Option<u64>,
    /// Only local sessions of which the DHT core has been told, or only those of which it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<bool>,
}

impl SessionFilter {
    /// Whether it admits everything, for it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == SessionFilter::default()
    }

    /// Whether it admits an entry.
    #[must_use]
    pub fn admits(&self, entry: &SessionEntry) -> bool {
        let SessionFilter { idle_over_ms, idle_under_ms, published, .. } = self;
        self.admits_session(&entry.flow, entry.kind, &entry.state, Some(entry.owner))
            && idle_over_ms.is_none_or(|ms| entry.idle_ms > ms)
            && idle_under_ms.is_none_or(|ms| entry.idle_ms < ms)
            && published.is_none_or(|published| entry.published == Some(published))
    }

    /// Whether it admits a session, as far as what does not change by itself is concerned.
    #[must_use]
    pub fn admits_session(
        &self,
        flow: &FlowKey,
        kind: SessionKind,
        state: &str,
        owner: Option<IpAddr>,
    ) -> bool {
        self.flow.is_none_or(|wanted| wanted == *flow)
            && self.kind.is_none_or(|wanted| wanted == kind)
            && self.state.is_none_or(|wanted| wanted.name() == state)
            && self.client.is_none_or(|client| client.admits(flow))
            && self.client_port.is_none_or(|port| port == flow.client().port())
            && self.service.is_none_or(|service| service.admits(flow))
            && self.owner.is_none_or(|wanted| Some(wanted) == owner)
    }
}

/// How many entries of the session table match.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SessionsCountReply {
    /// All that match.
    pub total: u64,
    /// Of these, by state.
    pub by_state: Counters,
    /// Of these, by service.
    pub by_service: Counters,
    /// Of these, by the locator of their owner.
    pub by_owner: Counters,
}

/// What was deleted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SessionsDeleteReply {
    /// The entries that were deleted, in no order, as they were.
    pub sessions: Vec<SessionEntry>,
    /// How many match that were not deleted: above the limit, or changed at this moment.
    pub left: u64,
    /// Records that are being deleted at their replicas.
    pub withdrawn: u64,
}

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionEvent {
    /// The host has answered SYN-ACK; inbound-only, the client has sent SYN.
    Opened,
    /// It was there already, and its server has found that out (R7).
    Learnt,
    /// Its handshake is complete, or it lives after all.
    Established,
    /// The host has sent FIN.
    HostClosed,
    /// The client has sent FIN.
    ClientClosed,
    /// FIN went both ways, or the kernel does not hold it any more.
    Closed,
    /// RST was seen.
    Reset,
    /// Another server owns it: its segments are tunnelled.
    Redirected,
    /// It was idle, or half-open, for too long.
    Expired,
    /// It is not in the table any more for another reason: it was over and has lingered, its
    /// redirect has ended, or an operator has deleted it.
    Removed,
}

impl SessionEvent {
    /// All of them, and their names.
    pub(super) const NAMES: [(SessionEvent, &'static str); 10] = [
        (SessionEvent::Opened, "opened"),
        (SessionEvent::Learnt, "learnt"),
        (SessionEvent::Established, "established"),
        (SessionEvent::HostClosed, "host_closed"),
        (SessionEvent::ClientClosed, "client_closed"),
        (SessionEvent::Closed, "closed"),
        (SessionEvent::Reset, "reset"),
        (SessionEvent::Redirected, "redirected"),
        (SessionEvent::Expired, "expired"),
        (SessionEvent::Removed, "removed"),
    ];
}

/// Why a text is no event of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "expected opened, learnt, established, host_closed, client_closed, closed, reset, redirected, \
     expired or removed"
)]
pub struct SessionEventError;

impl FromStr for SessionEvent {
    type Err = SessionEventError;

    fn from_str(text: &str) -> Result<SessionEvent, SessionEventError> {
        let of = SessionEvent::NAMES.iter().find(|(_, name)| *name == text);
        of.map(|(event, _)| *event).ok_or(SessionEventError)
    }
}

impl fmt::Display for SessionEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = SessionEvent::NAMES.iter().find(|(event, _)| event == self);
        f.write_str(of.map_or("", |(_, name)| name))
    }
}

/// A change of the session table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionChange {
    /// When, in microseconds since the Unix epoch.
    pub at_unix_us: u64,
    /// What happened.
    pub event: SessionEvent,
    /// The flow.
    #[serde(with = "flow_text")]
    #[schemars(with = "String")]
    pub flow: FlowKey,
    /// The state that the flow's entry had, as in [`SessionEntry::state`]; `None` when there was
    /// none.
    pub before: Option<String>,
    /// The state that it has; `None` when there is none any more.
    pub after: Option<String>,
    /// Locator of its owner, now or before.
    pub owner: Option<IpAddr>,
    /// Its version; `None` for a redirect.
    pub version: Option<u64>,
}
