//! What the DHT says of a flow, now and before, as the protocol shows it.

use std::fmt;
use std::net::IpAddr;

use holdfast_net::FlowKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SessionEntry, flow_text};

/// Who owns a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LookupReply {
    /// The flow.
    #[serde(with = "flow_text")]
    #[schemars(with = "String")]
    pub flow: FlowKey,
    /// This server's own entry, if it has one.
    pub table: Option<SessionEntry>,
    /// What the DHT said.
    pub dht: LookupReport,
}

/// What the DHT said about a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaAnswer {
    /// Locator of the server that was asked.
    pub locator: IpAddr,
    /// What it said, in lower case, as in `owner`, `deleted`, `orphaned`, `not_found` or
    /// `no_answer`.
    pub answer: String,
    /// The owner that it named.
    pub owner: Option<IpAddr>,
    /// The record's version that it named.
    pub version: Option<u64>,
    /// Time to its answer in microseconds.
    pub rtt_us: Option<u64>,
}

/// The last lookups.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LookupsReply {
    /// The newest first.
    pub lookups: Vec<JournalEntry>,
}

/// One lookup that the DHT core made for a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JournalEntry {
    /// The flow.
    #[serde(with = "flow_text")]
    #[schemars(with = "String")]
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
