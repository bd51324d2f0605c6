//! What is bounded, as the protocol shows it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// All limits.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LimitsReply {
    /// Those of the packet path first, then those of the DHT core and of the control socket.
    pub limits: Vec<LimitEntry>,
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LimitEntry {
    /// What is limited: its part of the daemon, a dot, and its name, in snake case.
    pub name: String,
    /// The key of the configuration that sets it; `None` when it is built in.
    pub key: Option<String>,
    /// What it is for: each of these has as much for itself.
    pub scope: LimitScope,
    /// How much there can be, in `unit`.
    pub value: u64,
    /// What is counted: `entries`, `packets`, `per_second` …
    pub unit: String,
    /// How much there is now: of workers, at the one that has the most. `None` when it is not
    /// known.
    pub used: Option<u64>,
    /// How often it was reached since the daemon's start.
    pub hits: u64,
    /// The counters that `hits` is the sum of, as `show_stats` has them.
    pub counters: Vec<String>,
}

/// What each of has a limit's value for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitScope {
    /// The server.
    Server,
    /// A worker.
    Worker,
    /// A flow.
    Flow,
    /// A source prefix, at a worker.
    SourcePrefix,
    /// A datagram that came in fragments.
    Datagram,
    /// Another server.
    Peer,
    /// A bucket of the routing table.
    Bucket,
    /// A stream of the control socket.
    Stream,
}

impl fmt::Display for LimitScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LimitScope::Server => "server",
            LimitScope::Worker => "worker",
            LimitScope::Flow => "flow",
            LimitScope::SourcePrefix => "prefix",
            LimitScope::Datagram => "datagram",
            LimitScope::Peer => "peer",
            LimitScope::Bucket => "bucket",
            LimitScope::Stream => "stream",
        })
    }
}
