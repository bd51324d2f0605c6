//! Why a flow's segments go where they go, as the protocol shows it.

use std::fmt;
use std::net::IpAddr;

use holdfast_net::FlowKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LookupReport, SessionEntry, flow_text};

/// What would become of a flow's next segment, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainReply {
    /// The flow.
    #[serde(with = "flow_text")]
    #[schemars(with = "String")]
    pub flow: FlowKey,
    /// What becomes of the next segment that is neither SYN, FIN nor RST and reaches this server.
    pub verdict: Verdict,
    /// Locator of the server that it is tunnelled to.
    pub tunnel_to: Option<IpAddr>,
    /// Step by step, what leads to the verdict.
    pub steps: Vec<ExplainStep>,
    /// This server's entry, if it has one.
    pub table: Option<SessionEntry>,
    /// What this server's kernel holds of the flow.
    pub kernel: KernelHolds,
    /// What the DHT says now; `None` when the flow is none of a service.
    pub dht: Option<LookupReport>,
    /// The servers that have to do with the flow, by locator.
    pub members: Vec<ExplainMember>,
}

/// What becomes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is no service's: it passes to the host untouched.
    Pass,
    /// To the host's kernel.
    Host,
    /// Into the tunnel to the flow's owner.
    Tunnel,
    /// Dropped: TCP repeats it.
    Drop,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Pass => "pass",
            Verdict::Host => "host",
            Verdict::Tunnel => "tunnel",
            Verdict::Drop => "drop",
        })
    }
}

/// One step of an explanation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainStep {
    /// The rule that it follows from, `R1` to `R13`, as the specification has them.
    pub rule: Option<String>,
    /// What was found, and what follows: for people.
    pub text: String,
}

/// What the kernel holds of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KernelHolds {
    /// A session.
    Session,
    /// A handshake that is not complete.
    Handshake,
    /// No session; a socket listens for the service, or what is left of the session is over.
    Nothing,
    /// No session, and no socket listens for the service: it is in another network namespace, or
    /// does not run.
    NoListener,
    /// It was not asked, or did not answer.
    Unknown,
}

/// A server that has to do with a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainMember {
    /// Its locator.
    pub locator: IpAddr,
    /// What it is to the flow: `owner`, `replica`.
    pub roles: Vec<String>,
    /// `self`, a state as in [`Peer::state`](super::Peer::state), or `unknown`.
    pub state: String,
}
