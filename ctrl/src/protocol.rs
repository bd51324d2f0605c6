//! What holdfastctl and the daemon say to each other: version 1 of the control protocol, as
//! `docs/specification/control-protocol.md` specifies it. Never reads or writes a socket.

mod health;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use holdfast_net::FlowKey;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

pub use health::*;

/// The protocol's version: it changes when an old client would misread an answer. New keys in
/// an answer do not change it; clients skip keys that they do not know.
pub const PROTOCOL_VERSION: u64 = 1;
/// Longest request line in bytes, without its newline.
pub const REQUEST_MAX: usize = 64 * 1024;
/// Entries in an answer when the request does not say how many.
pub const LIMIT_DEFAULT: usize = 100;
/// Most entries in an answer.
pub const LIMIT_MAX: usize = 10_000;
/// Commands of version 1.
pub const COMMANDS: &[&str] = &[
    "show_stats",
    "show_workers",
    "show_sessions",
    "show_peers",
    "show_lookups",
    "show_version",
    "lookup",
];

/// Counters or gauges by name. A name ends in its unit, when it has one.
pub type Counters = BTreeMap<String, u64>;

/// A request, without its version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Counters and gauges. Answered by [`StatsReply`].
    ShowStats {},
    /// How busy the workers are. Answered by [`WorkersReply`].
    ShowWorkers {},
    /// Entries of the session table. Answered by [`SessionsReply`].
    ShowSessions {
        /// Only sessions of this kind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<SessionKind>,
        /// Only sessions in this state, named as in [`SessionEntry::state`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<String>,
        /// Only sessions of these clients.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<ClientFilter>,
        /// Only sessions to this service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<ServiceFilter>,
        /// Only sessions that the server with this locator owns.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<IpAddr>,
        /// Most entries to list, 1 to [`LIMIT_MAX`].
        #[serde(default)]
        limit: Limit,
    },
    /// The DHT's members that this server knows. Answered by [`PeersReply`].
    ShowPeers {},
    /// The journal of the last lookups. Answered by [`LookupsReply`].
    ShowLookups {
        /// Most entries to list, 1 to [`LIMIT_MAX`].
        #[serde(default)]
        limit: Limit,
    },
    /// Who answers. Answered by [`VersionReply`].
    ShowVersion {},
    /// Who owns a flow, as this server's table and the DHT say. Answered by [`LookupReply`].
    Lookup {
        /// The flow.
        #[serde(with = "flow_text")]
        flow: FlowKey,
    },
}

/// A successful answer's `ok` object.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To [`Request::ShowStats`].
    Stats(Box<StatsReply>),
    /// To [`Request::ShowWorkers`].
    Workers(WorkersReply),
    /// To [`Request::ShowSessions`].
    Sessions(SessionsReply),
    /// To [`Request::ShowPeers`].
    Peers(PeersReply),
    /// To [`Request::ShowLookups`].
    Lookups(LookupsReply),
    /// To [`Request::ShowVersion`].
    Version(VersionReply),
    /// To [`Request::Lookup`].
    Lookup(LookupReply),
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("{message} ({code})")]
pub struct ProtocolError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what is wrong, and what would be right.
    pub message: String,
}

impl ProtocolError {
    /// A refusal with this code and message.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ProtocolError {
        ProtocolError { code, message: message.into() }
    }
}

/// Why a request was refused. A code never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The line is no request: no JSON object, an unknown key, a value out of range.
    BadRequest,
    /// The command is none of this version.
    UnknownCommand,
    /// The version is not the daemon's.
    UnsupportedVersion,
    /// The flow is no flow.
    BadFlow,
    /// The request line is too long.
    TooLarge,
    /// Too many clients, or the daemon could not look in time; try again.
    Busy,
    /// The part of the daemon that could answer is not up.
    Unavailable,
    /// A fault of the daemon; its log says more.
    Internal,
    /// A code of a later daemon.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::UnknownCommand => "unknown_command",
            ErrorCode::UnsupportedVersion => "unsupported_version",
            ErrorCode::BadFlow => "bad_flow",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::Busy => "busy",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Internal => "internal",
            ErrorCode::Unknown => "unknown",
        })
    }
}

/// How many entries an answer lists at most: 1 to [`LIMIT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "usize")]
pub struct Limit(usize);

impl Limit {
    /// The number.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }
}

impl Default for Limit {
    fn default() -> Limit {
        Limit(LIMIT_DEFAULT)
    }
}

/// Why a number is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected a limit from 1 to {LIMIT_MAX}")]
pub struct LimitError;

impl TryFrom<usize> for Limit {
    type Error = LimitError;

    fn try_from(limit: usize) -> Result<Limit, LimitError> {
        let sound = (1..=LIMIT_MAX).contains(&limit);
        if sound { Ok(Limit(limit)) } else { Err(LimitError) }
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Limit, LimitError> {
        text.parse().map_err(|_| LimitError).and_then(|limit: usize| limit.try_into())
    }
}

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

/// Flows as their text, `CLIENT-SERVICE`.
mod flow_text {
    use holdfast_net::FlowKey;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(flow: &FlowKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(flow)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FlowKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Counters and gauges of the whole daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatsReply {
    /// Who answers.
    #[serde(flatten)]
    pub daemon: VersionReply,
    /// Each worker, in the order of the configuration.
    pub workers: Vec<WorkerStats>,
    /// The workers' counters added up.
    pub totals: Counters,
    /// The DPDK ports: uplink, then host port.
    pub ports: Vec<PortStats>,
    /// Gauges of the session table: at least `capacity`, `local` and `redirect`, in entries.
    pub table: Counters,
    /// The comparison of the table with the kernel's sockets.
    #[serde(default)]
    pub kernel_check: KernelCheckStats,
    /// The health checks, announcing and drain.
    #[serde(default)]
    pub health: HealthStats,
    /// The DHT core.
    pub dht: DhtStats,
}

/// The comparison of the session table with the kernel's sockets.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct KernelCheckStats {
    /// Since the daemon's start, as the specification lists them.
    pub counters: Counters,
    /// Of the last check: `held` and `duration_us`.
    pub gauges: Counters,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkerStats {
    /// Its CPU.
    pub core: u32,
    /// Its counters since the daemon's start.
    pub counters: Counters,
}

/// How busy the workers are.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkersReply {
    /// Cycles of the time stamp counter in a second.
    pub tsc_hz: u64,
    /// Size of the pages that the session table lies in, in bytes.
    pub table_page_bytes: u64,
    /// The last second that the daemon measured; `None` before it has measured one.
    pub last_second: Option<LoadPeriod>,
    /// From the daemon's start until now.
    pub since_start: LoadPeriod,
}

/// What the workers did in a period.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LoadPeriod {
    /// How long it was, in microseconds.
    pub duration_us: u64,
    /// Each worker, in the order of the configuration.
    pub workers: Vec<WorkerLoad>,
}

/// What one worker did in a period. Figures are rounded, ratios to one decimal; `None` where
/// there is nothing to divide by.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkerLoad {
    /// Its CPU.
    pub core: u32,
    /// Share of its time spent in turns that found something to do, 0 to 100.
    pub busy_percent: Option<f64>,
    /// Packets received per turn that found something to do.
    pub packets_per_burst: Option<f64>,
    /// Cycles of the time stamp counter spent in such turns, per packet received.
    pub cycles_per_packet: Option<f64>,
    /// Packets received from the uplink in a second.
    pub uplink_packets_per_s: Option<u64>,
    /// Packets received from the host in a second.
    pub host_packets_per_s: Option<u64>,
    /// Packets that it dropped in the period: a mean hides the few that a long one has.
    pub drops: u64,
    /// The same in a second.
    pub drops_per_s: Option<u64>,
    /// Turns of its loop in a second, those that found nothing too.
    pub turns_per_s: Option<u64>,
}

/// One DPDK port. Counters run since the daemon's start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PortStats {
    /// `uplink` or `host_port`.
    pub role: String,
    /// DPDK's name of the device.
    pub name: String,
    /// DPDK's name of the driver.
    pub driver: String,
    /// Ethernet address, as in `02:00:00:00:00:01`.
    pub mac: String,
    /// Whether the link is up.
    pub link_up: bool,
    /// Speed of the link in Mbit/s, if it has one.
    pub speed_mbps: Option<u32>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets that the device dropped since no descriptor was free.
    pub rx_missed: u64,
    /// Broken packets received.
    pub rx_errors: u64,
    /// Packets for which there was no mbuf.
    pub rx_no_mbuf: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that the device failed to send.
    pub tx_errors: u64,
}

/// The DHT core.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DhtStats {
    /// Since the daemon's start.
    pub counters: Counters,
    /// Now, as the specification lists them: at least `peers` and `records`.
    pub gauges: Counters,
    /// At least `setting_time_us` (STORE sent until all replicas acknowledged it),
    /// `lookup_time_us` (first request sent until the owner is known) and
    /// `lookup_time_not_found_us` (until it is known that there is none).
    pub distributions: BTreeMap<String, Distribution>,
}

/// How a measured value is distributed; its unit is at the end of its name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Distribution {
    /// How many were measured. When none, all values below are 0.
    pub count: u64,
    /// Least.
    pub min: u64,
    /// Median.
    pub p50: u64,
    /// Nine of ten are not above.
    pub p90: u64,
    /// 99 of 100 are not above.
    pub p99: u64,
    /// Greatest.
    pub max: u64,
    /// `[value, count]`: a value, exact to two digits, and how many had it; ascending, at most
    /// some 2,500. Distributions of several servers merge by adding the counts of equal values.
    pub buckets: Vec<(u64, u64)>,
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

/// The DHT's members that this server knows, or knew lately.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PeersReply {
    /// By locator.
    pub peers: Vec<Peer>,
}

/// One member of the DHT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id, 32 hexadecimal digits.
    pub id: String,
    /// Its locator.
    pub locator: IpAddr,
    /// Its UDP socket.
    pub address: SocketAddr,
    /// Its state, in lower case: `alive`; `suspect`, it missed a request or others say so;
    /// `away`, it said that it stops, and its lease has not ended; `dead`.
    pub state: String,
    /// Smoothed round-trip time in microseconds, once measured.
    pub srtt_us: Option<u64>,
    /// Time since it last answered in milliseconds; `None` when it is away or dead.
    pub last_seen_ms: Option<u64>,
    /// Time since it left, or was given up, in milliseconds; only when it is away or dead.
    pub absent_ms: Option<u64>,
    /// Requests in a row that it missed; `None` when it is away or dead.
    pub missed: Option<u64>,
    /// When its last known incarnation started, by its own clock, in microseconds since the Unix
    /// epoch.
    pub started_unix_us: Option<u64>,
    /// Which of its lives this is: another number each time that it enters this server's routing
    /// table. `None` when it is away or dead.
    pub life: Option<u64>,
}

/// Who owns a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LookupReply {
    /// The flow.
    #[serde(with = "flow_text")]
    pub flow: FlowKey,
    /// This server's own entry, if it has one.
    pub table: Option<SessionEntry>,
    /// What the DHT said.
    pub dht: LookupReport,
}

/// What the DHT said about a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LookupReport {
    /// How the lookup ended.
    pub outcome: LookupOutcome,
    /// Locator of the owner, when found.
    pub owner: Option<IpAddr>,
    /// Version of the record, when found.
    pub version: Option<u64>,
    /// From the question to the answer, in microseconds.
    pub duration_us: u64,
    /// Each server that was asked.
    pub replicas: Vec<ReplicaAnswer>,
}

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LookupOutcome {
    /// The flow has an owner.
    Owner,
    /// Nobody owns it: enough replicas said so.
    NotFound,
    /// Too few replicas answered in time.
    TimedOut,
}

impl fmt::Display for LookupOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LookupOutcome::Owner => "owner",
            LookupOutcome::NotFound => "not_found",
            LookupOutcome::TimedOut => "timed_out",
        })
    }
}

/// What one server said about a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaAnswer {
    /// Locator of the server that was asked.
    pub locator: IpAddr,
    /// What it said, in lower case, as in `owner`, `deleted`, `not_found` or `no_answer`.
    pub answer: String,
    /// The owner that it named.
    pub owner: Option<IpAddr>,
    /// The record's version that it named.
    pub version: Option<u64>,
    /// Time to its answer in microseconds.
    pub rtt_us: Option<u64>,
}

/// The last lookups.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LookupsReply {
    /// The newest first.
    pub lookups: Vec<JournalEntry>,
}

/// One lookup that the DHT core made for a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The flow.
    #[serde(with = "flow_text")]
    pub flow: FlowKey,
    /// When the worker asked, in microseconds since the Unix epoch.
    pub asked_at_unix_us: u64,
    /// From the question to the answer, in microseconds.
    pub duration_us: u64,
    /// How it ended.
    pub outcome: LookupOutcome,
    /// Locator of the owner, when found.
    pub owner: Option<IpAddr>,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionReply {
    /// Version of holdfast.
    pub version: String,
    /// Version of DPDK, as it names itself.
    pub dpdk_version: String,
    /// The server's locator.
    pub locator: IpAddr,
    /// The daemon's process id.
    pub pid: u32,
    /// Time since the daemon's start, in milliseconds.
    pub uptime_ms: u64,
}

/// The line, without newline, that asks for `request`.
///
/// # Errors
/// None for a request of this module; JSON's, should there be one.
pub fn request_line(request: &Request) -> Result<String, serde_json::Error> {
    let mut object = Map::new();
    object.insert("version".to_owned(), PROTOCOL_VERSION.into());
    if let Value::Object(fields) = serde_json::to_value(request)? {
        object.extend(fields);
    }
    serde_json::to_string(&object)
}

/// Reads a request line.
///
/// # Errors
/// The refusal to send back.
pub fn parse_request(line: &[u8]) -> Result<Request, ProtocolError> {
    let bad = |message: String| ProtocolError::new(ErrorCode::BadRequest, message);
    let mut object: Map<String, Value> = serde_json::from_slice(line)
        .map_err(|error| bad(format!("expected a JSON object on one line: {error}")))?;
    check_version(object.remove("version"))?;
    let Some(command) = object.get("command").and_then(Value::as_str) else {
        return Err(bad("expected a key \"command\" with a text".to_owned()));
    };
    if !COMMANDS.contains(&command) {
        let message = format!("expected one of the commands {}", COMMANDS.join(", "));
        return Err(ProtocolError::new(ErrorCode::UnknownCommand, message));
    }
    if let (true, Some(Value::String(flow))) = (command == "lookup", object.get("flow")) {
        let check: Result<FlowKey, _> = flow.parse();
        check.map_err(|error| ProtocolError::new(ErrorCode::BadFlow, error.to_string()))?;
    }
    serde_json::from_value(Value::Object(object)).map_err(|error| bad(error.to_string()))
}

fn check_version(version: Option<Value>) -> Result<(), ProtocolError> {
    match version.as_ref().and_then(Value::as_u64) {
        Some(PROTOCOL_VERSION) => Ok(()),
        Some(other) => Err(ProtocolError::new(
            ErrorCode::UnsupportedVersion,
            format!("version {other} was asked for, but this daemon speaks {PROTOCOL_VERSION}"),
        )),
        None => Err(ProtocolError::new(
            ErrorCode::BadRequest,
            format!("expected a key \"version\" with the number {PROTOCOL_VERSION}"),
        )),
    }
}

/// The line, without newline, that answers a request.
#[must_use]
pub fn answer_line(answer: &Result<Reply, ProtocolError>) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        version: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        ok: Option<&'a Reply>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a ProtocolError>,
    }
    let line = serde_json::to_string(&Answer {
        version: PROTOCOL_VERSION,
        ok: answer.as_ref().ok(),
        error: answer.as_ref().err(),
    });
    // Maps with text keys and numbers always have a form in JSON; should that ever change, the
    // client still gets a refusal that it can read.
    line.unwrap_or_else(|_| {
        r#"{"version":1,"error":{"code":"internal","message":"the answer has no JSON form"}}"#
            .to_owned()
    })
}

/// Why an answer line says nothing to this client.
#[derive(Debug, Error)]
pub enum AnswerError {
    /// The daemon refused the request.
    #[error(transparent)]
    Refused(#[from] ProtocolError),
    /// Not a line of this protocol.
    #[error("the daemon's answer is not understood: {0}")]
    NotUnderstood(String),
}

/// Reads an answer line; gives its `ok` object.
///
/// # Errors
/// The daemon's refusal, or what is wrong with the line.
pub fn parse_answer(line: &[u8]) -> Result<Value, AnswerError> {
    let mut object: Map<String, Value> = serde_json::from_slice(line)
        .map_err(|error| AnswerError::NotUnderstood(error.to_string()))?;
    if let Some(error) = object.remove("error") {
        let error: ProtocolError = serde_json::from_value(error)
            .map_err(|error| AnswerError::NotUnderstood(error.to_string()))?;
        return Err(error.into());
    }
    if object.get("version").and_then(Value::as_u64) != Some(PROTOCOL_VERSION) {
        return Err(AnswerError::NotUnderstood(format!("not of version {PROTOCOL_VERSION}")));
    }
    let missing = || AnswerError::NotUnderstood("neither ok nor error in it".to_owned());
    object.remove("ok").ok_or_else(missing)
}

#[cfg(test)]
mod tests;
