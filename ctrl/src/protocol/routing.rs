//! The DHT's routing table as the protocol shows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Peer;

/// The routing table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RoutingReply {
    /// Id of this server, 32 hexadecimal digits.
    pub id: String,
    /// Contacts that a bucket has room for: `dht.k`.
    pub k: u64,
    /// Bits of the id that a bucket's level stands for: `dht.bucket_bits`.
    pub bucket_bits: u8,
    /// The buckets that are not empty, in the order of ids.
    pub buckets: Vec<RoutingBucket>,
    /// Members that were in the table and are looked out for, by locator: `away` or `dead`.
    pub absent: Vec<Peer>,
    /// Whether some contacts are not listed.
    pub truncated: bool,
}

/// One bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RoutingBucket {
    /// What the ids of its contacts begin with: 32 hexadecimal digits, of which the first
    /// `prefix_bits` bits count.
    pub prefix: String,
    /// See there.
    pub prefix_bits: u32,
    /// Contacts in it.
    pub contacts: u64,
    /// Of these, suspects.
    pub suspect: u64,
    /// Whether it has no room for another one.
    pub full: bool,
    /// Members that wait for a place in it.
    pub waiting: u64,
    /// The contacts, in the order of ids, as far as the limit allows.
    pub peers: Vec<Peer>,
}
