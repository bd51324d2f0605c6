//! A Kademlia DHT that says which server owns a TCP session. Made for one data centre: with the
//! default buckets every node knows all others and a lookup is one hop.
//!
//! [`Service`] runs a [`Node`] on a UDP socket and the rings of the dataplane's workers; the
//! node itself does no input or output, so that a simulator can run thousands of them. The crate
//! never touches packets of sessions and imports nothing of the dataplane.
#![forbid(unsafe_code)]

pub mod auth;
pub mod batch;
pub mod config;
pub mod id;
mod id_map;
mod lease;
mod link;
pub mod lookup;
pub mod message;
pub mod node;
mod peer_slots;
mod place_index;
pub mod placement;
mod publish;
mod read;
pub mod record;
mod refusals;
mod request;
pub mod routing_table;
pub mod rtt;
mod service;
pub mod stats;
pub mod store;

pub use auth::Keys;
pub use config::{Config, ConfigError, REPLICAS_MAX};
pub use id::Id;
pub use ipnet::IpNet;
pub use node::{
    AbsentPeer, Action, Event, Limit, LookupReport, Node, Peer, ReplicaReport, Routing,
    RoutingBucket, Statement, Transmit,
};
pub use peer_slots::Slot;
pub use placement::{Placement, Rank};
pub use record::Claim;
pub use service::{Error, Handle, HandleError, Service};
pub use stats::{Counter, Counters, Distribution, Gauges, LookupRecord, Outcome, Stats};
