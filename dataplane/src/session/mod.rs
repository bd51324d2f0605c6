//! Sessions: their states, their table, and the sweep that ends them.

pub mod expiry;
pub mod state;
pub mod table;

use std::net::{IpAddr, Ipv6Addr};

use holdfast_handoff::Version;
use holdfast_net::FlowKey;

use crate::time::Tick;
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
    /// When its last packet was seen.
    pub last_seen: Tick,
}

/// A locator as two words; IPv4 as a mapped address, which no locator is.
fn address_to_words(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

fn address_from_words(words: [u64; 2]) -> IpAddr {
    Ipv6Addr::from_bits(u128::from(words[0]) << 64 | u128::from(words[1])).to_canonical()
}
