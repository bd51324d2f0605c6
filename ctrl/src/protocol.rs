//! What holdfastctl and the daemon say to each other: version 1 of the control protocol, as
//! `docs/specification/control-protocol.md` specifies it. Never reads or writes a socket.
//!
//! A command has its line in [`Request`], in [`Request::command`] and in [`COMMANDS`], and what
//! answers it a line in [`Reply`]; what these hold is in a file for each group of commands.

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
pub mod schema;
mod sessions;
mod stats;
mod stream;
mod workers;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use holdfast_net::FlowKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

pub use config::*;
pub use explain::*;
pub use health::*;
pub use incidents::*;
pub use limits::*;
pub use lookups::*;
pub use packets::*;
pub use peers::*;
pub use reload::*;
pub use routing::*;
pub use sessions::*;
pub use stats::*;
pub use stream::*;
pub use workers::*;

/// The protocol's version: it changes when an old client would misread an answer. New keys in
/// an answer do not change it; clients skip keys that they do not know.
pub const PROTOCOL_VERSION: u64 = 1;
/// Longest request line in bytes, without its newline.
pub const REQUEST_MAX: usize = 64 * 1024;
/// Entries in an answer when the request does not say how many.
pub const LIMIT_DEFAULT: usize = 100;
/// Most entries in an answer.
pub const LIMIT_MAX: usize = 10_000;
/// Commands of version 1, and what each does.
pub const COMMANDS: &[(&str, Access)] = &[
    ("show_stats", Access::Read),
    ("show_workers", Access::Read),
    ("show_peers", Access::Read),
    ("show_lookups", Access::Read),
    ("show_version", Access::Read),
    ("show_routing", Access::Read),
    ("show_limits", Access::Read),
    ("show_config", Access::Read),
    ("sessions_list", Access::Read),
    ("sessions_get", Access::Read),
    ("sessions_count", Access::Read),
    ("sessions_delete", Access::Change),
    ("sessions_watch", Access::Read),
    ("explain", Access::Read),
    ("lookup", Access::Read),
    ("incidents_list", Access::Read),
    ("incidents_show", Access::Read),
    ("show_health", Access::Read),
    ("drain", Access::Change),
    ("undrain", Access::Change),
    ("trace", Access::Read),
    ("capture", Access::Change),
    ("reload", Access::Change),
    ("reload_confirm", Access::Change),
    ("reload_roll_back", Access::Change),
];

/// Who may give a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It only reads: whoever may open the socket.
    Read,
    /// It changes something, or shows what clients send: root and the daemon's own user.
    Change,
}

/// Counters or gauges by name. A name ends in its unit, when it has one.
pub type Counters = BTreeMap<String, u64>;

/// A request, without its version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Counters and gauges. Answered by [`StatsReply`].
    ShowStats {},
    /// How busy the workers are. Answered by [`WorkersReply`].
    ShowWorkers {},
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
    /// The DHT's routing table. Answered by [`RoutingReply`].
    ShowRouting {
        /// Most contacts to list, 1 to [`LIMIT_MAX`].
        #[serde(default)]
        limit: Limit,
    },
    /// What is bounded, and how near it is to its bounds. Answered by [`LimitsReply`].
    ShowLimits {},
    /// The configuration in effect, without keys. Answered by [`ConfigReply`].
    ShowConfig {},
    /// Entries of the session table. Answered by [`SessionsReply`].
    SessionsList {
        /// Which.
        #[serde(default)]
        filter: SessionFilter,
        /// Most entries to list, 1 to [`LIMIT_MAX`].
        #[serde(default)]
        limit: Limit,
    },
    /// One entry of the session table. Answered by [`SessionEntry`].
    SessionsGet {
        /// Its flow.
        #[serde(with = "flow_text")]
        #[schemars(with = "String")]
        flow: FlowKey,
    },
    /// How many entries of the session table there are. Answered by [`SessionsCountReply`].
    SessionsCount {
        /// Which.
        #[serde(default)]
        filter: SessionFilter,
    },
    /// Takes entries out of the session table, and withdraws the records of local sessions.
    /// Answered by [`SessionsDeleteReply`].
    SessionsDelete {
        /// Which; it says something.
        filter: SessionFilter,
        /// Most entries to delete, 1 to [`LIMIT_MAX`].
        #[serde(default)]
        limit: Limit,
    },
    /// Changes of the session table as they happen: a stream of [`SessionChange`].
    SessionsWatch {
        /// Of which sessions; neither how long they are idle nor whether they are published.
        #[serde(default)]
        filter: SessionFilter,
        /// Which changes; all when empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        events: Vec<SessionEvent>,
        /// How long, in milliseconds.
        #[serde(default)]
        for_ms: StreamTime,
        /// How many changes.
        #[serde(default)]
        count: StreamCount,
    },
    /// What would become of a flow's next segment here, and why. Answered by [`ExplainReply`].
    Explain {
        /// The flow.
        #[serde(with = "flow_text")]
        #[schemars(with = "String")]
        flow: FlowKey,
    },
    /// Who owns a flow, as this server's table and the DHT say. Answered by [`LookupReply`].
    Lookup {
        /// The flow.
        #[serde(with = "flow_text")]
        #[schemars(with = "String")]
        flow: FlowKey,
    },
    /// What bursts of strays did to sessions. Answered by [`IncidentsReply`].
    IncidentsList {
        /// Most entries to list, 1 to [`LIMIT_MAX`].
        #[serde(default)]
        limit: Limit,
    },
    /// All of one of them. Answered by [`Incident`].
    IncidentsShow {
        /// Its id.
        id: u64,
    },
    /// Checks, prefixes and drain. Answered by [`HealthReply`].
    ShowHealth {},
    /// Takes the server out of traffic. Answered by [`HealthReply`], before it is.
    Drain {
        /// How long sessions may go on.
        #[serde(default, rename = "timeout_ms")]
        timeout: DrainTimeout,
        /// How new sessions are sent elsewhere.
        #[serde(default)]
        mode: DrainMode,
        /// Whether the order outlives the daemon.
        #[serde(default)]
        persist: bool,
    },
    /// Takes the order to drain back. Answered by [`HealthReply`].
    Undrain {},
    /// What becomes of every packet of a flow. Answered by a stream of [`PacketItem`]s.
    Trace {
        /// The flow.
        #[serde(with = "flow_text")]
        #[schemars(with = "String")]
        flow: FlowKey,
        /// How long.
        #[serde(default = "packets::packets_time")]
        for_ms: StreamTime,
        /// Most packets.
        #[serde(default = "packets::trace_count")]
        count: StreamCount,
    },
    /// Packets with their frames. Answered by a stream of [`PacketItem`]s.
    Capture {
        /// Which packets.
        #[serde(default)]
        filter: CaptureFilter,
        /// Bytes of each frame.
        #[serde(default)]
        snaplen: Snaplen,
        /// Most bytes of frames in all.
        #[serde(default)]
        bytes: CaptureBytes,
        /// How long.
        #[serde(default = "packets::packets_time")]
        for_ms: StreamTime,
        /// Most packets.
        #[serde(default = "packets::capture_count")]
        count: StreamCount,
    },
    /// Read the configuration file again and go by it. Answered by [`ReloadReply`].
    Reload {
        /// Only say what would change.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
        /// Roll it back after this time, unless it is confirmed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confirm_ms: Option<ConfirmTime>,
    },
    /// Keep what was reloaded and waits for its confirmation. Answered by [`ReloadReply`].
    ReloadConfirm {},
    /// Go back to what was before it. Answered by [`ReloadReply`].
    ReloadRollBack {},
}

impl Request {
    /// The command's name.
    #[must_use]
    pub const fn command(&self) -> &'static str {
        match self {
            Request::ShowStats {} => "show_stats",
            Request::ShowWorkers {} => "show_workers",
            Request::ShowPeers {} => "show_peers",
            Request::ShowLookups { .. } => "show_lookups",
            Request::ShowVersion {} => "show_version",
            Request::ShowRouting { .. } => "show_routing",
            Request::ShowLimits {} => "show_limits",
            Request::ShowConfig {} => "show_config",
            Request::SessionsList { .. } => "sessions_list",
            Request::SessionsGet { .. } => "sessions_get",
            Request::SessionsCount { .. } => "sessions_count",
            Request::SessionsDelete { .. } => "sessions_delete",
            Request::SessionsWatch { .. } => "sessions_watch",
            Request::Explain { .. } => "explain",
            Request::Lookup { .. } => "lookup",
            Request::IncidentsList { .. } => "incidents_list",
            Request::IncidentsShow { .. } => "incidents_show",
            Request::ShowHealth {} => "show_health",
            Request::Drain { .. } => "drain",
            Request::Undrain {} => "undrain",
            Request::Trace { .. } => "trace",
            Request::Capture { .. } => "capture",
            Request::Reload { .. } => "reload",
            Request::ReloadConfirm {} => "reload_confirm",
            Request::ReloadRollBack {} => "reload_roll_back",
        }
    }

    /// Who may give it. One that is in no list changes things, for all that is known.
    #[must_use]
    pub fn access(&self) -> Access {
        let listed = COMMANDS.iter().find(|(name, _)| *name == self.command());
        listed.map_or(Access::Change, |(_, access)| *access)
    }
}

/// A successful answer's `ok` object.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To [`Request::ShowStats`].
    Stats(Box<StatsReply>),
    /// To [`Request::ShowWorkers`].
    Workers(WorkersReply),
    /// To [`Request::ShowPeers`].
    Peers(PeersReply),
    /// To [`Request::ShowLookups`].
    Lookups(LookupsReply),
    /// To [`Request::ShowVersion`].
    Version(VersionReply),
    /// To [`Request::Lookup`].
    Lookup(LookupReply),
    /// To [`Request::IncidentsList`].
    Incidents(IncidentsReply),
    /// To [`Request::IncidentsShow`].
    Incident(Box<Incident>),
    /// To [`Request::ShowRouting`].
    Routing(RoutingReply),
    /// To [`Request::ShowLimits`].
    Limits(LimitsReply),
    /// To [`Request::ShowConfig`].
    Config(ConfigReply),
    /// To [`Request::SessionsList`].
    Sessions(SessionsReply),
    /// To [`Request::SessionsGet`].
    Session(SessionEntry),
    /// To [`Request::SessionsCount`].
    SessionsCount(SessionsCountReply),
    /// To [`Request::SessionsDelete`].
    SessionsDelete(SessionsDeleteReply),
    /// To [`Request::Explain`].
    Explain(Box<ExplainReply>),
    /// To [`Request::ShowHealth`], [`Request::Drain`] and [`Request::Undrain`].
    Health(Box<HealthReply>),
    /// To [`Request::Reload`], [`Request::ReloadConfirm`] and [`Request::ReloadRollBack`].
    Reload(ReloadReply),
    /// The last line of a stream.
    Stream(StreamReply),
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// What is asked for is not there.
    NotFound,
    /// The command changes something, and this client may only read.
    Forbidden,
    /// The configuration file is wrong, or cannot be read.
    BadConfig,
    /// What is to change cannot, while the daemon runs.
    NeedsRestart,
    /// What the daemon is about allows it not now.
    Conflict,
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
            ErrorCode::NotFound => "not_found",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::BadConfig => "bad_config",
            ErrorCode::NeedsRestart => "needs_restart",
            ErrorCode::Conflict => "conflict",
            ErrorCode::Busy => "busy",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Internal => "internal",
            ErrorCode::Unknown => "unknown",
        })
    }
}

/// How many entries an answer lists at most: 1 to [`LIMIT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "usize")]
#[schemars(extend("minimum" = 1, "maximum" = LIMIT_MAX))]
pub struct Limit(usize);

impl Limit {
    /// One entry.
    pub const ONE: Limit = Limit(1);

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

/// Flows as their text, or nothing.
mod optional_flow_text {
    use holdfast_net::FlowKey;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(
        flow: &Option<FlowKey>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match flow {
            Some(flow) => serializer.collect_str(flow),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<FlowKey>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
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
    if !COMMANDS.iter().any(|(name, _)| *name == command) {
        let names: Vec<&str> = COMMANDS.iter().map(|(name, _)| *name).collect();
        let message = format!("expected one of the commands {}", names.join(", "));
        return Err(ProtocolError::new(ErrorCode::UnknownCommand, message));
    }
    let in_filter = || object.get("filter").and_then(|filter| filter.get("flow"));
    if let Some(Value::String(flow)) = object.get("flow").or_else(in_filter) {
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

/// A line of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// An item of a stream; more lines follow.
    Item(Value),
    /// So many items of a stream were missed here; more lines follow.
    Missed(u64),
    /// The last line, or the only one: its `ok` object.
    End(Value),
}

/// Reads a line of an answer.
///
/// # Errors
/// The daemon's refusal, or what is wrong with the line.
pub fn parse_line(line: &[u8]) -> Result<Line, AnswerError> {
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
    if let Some(item) = object.remove("item") {
        return Ok(Line::Item(item));
    }
    if let Some(count) = object.get("missed").and_then(Value::as_u64) {
        return Ok(Line::Missed(count));
    }
    let missing = || AnswerError::NotUnderstood("neither ok nor error in it".to_owned());
    object.remove("ok").map(Line::End).ok_or_else(missing)
}

/// Reads an answer of one line; gives its `ok` object.
///
/// # Errors
/// The daemon's refusal, or what is wrong with the line.
pub fn parse_answer(line: &[u8]) -> Result<Value, AnswerError> {
    match parse_line(line)? {
        Line::End(ok) => Ok(ok),
        Line::Item(_) | Line::Missed(_) => {
            Err(AnswerError::NotUnderstood("a stream where one line was expected".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests;
