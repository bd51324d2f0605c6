//! A record of the DHT: who owns a flow, since which version. Never holds the session itself; a
//! record is a hint that leads to it (R1).

use std::net::IpAddr;

use holdfast_handoff::Version;

/// "I own this flow since this version." Claims are ordered by version, then by owner: the
/// greater wins everywhere (R12), so all servers choose alike in whatever order they hear them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// Version of the session.
    pub version: Version,
    /// Locator of the server that owns it.
    pub owner: IpAddr,
}

/// Whether the claim still stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It does.
    Live,
    /// Its owner deleted it; kept so that a late STORE cannot bring it back (R8).
    Tombstone,
}

/// What a replica holds under a record id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Who owns the flow.
    pub claim: Claim,
    /// Whether that still stands.
    pub state: State,
}
