//! Sessions: their states, their table, and the sweep that ends them.

pub mod bucket;
pub mod changes;
pub mod expiry;
pub mod owners;
pub mod recent;
pub mod state;
mod sync;
pub mod table;
pub mod word;

use std::net::IpAddr;

use holdfast_handoff::Version;
use holdfast_net::FlowKey;

pub use state::State;

/// What the table knows of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// The host's kernel holds the socket (R1).
    Local {
        /// Where its life has come to.
        state: State,
        /// Its version in the DHT.
        version: Version,
        /// Whether the DHT core has been told of it.
        published: bool,
    },
    /// Another server owns it.
    Redirect {
        /// The owner's locator.
        owner: IpAddr,
    },
}

/// An entry of the table as a listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// The flow.
    pub flow: FlowKey,
    /// What is known of it.
    pub session: Session,
    /// How long ago its last packet was seen, in milliseconds and to within a part of the
    /// timeout of its state.
    pub idle_ms: u64,
}
