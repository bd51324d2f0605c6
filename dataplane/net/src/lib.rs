//! Packet headers, the flow key and checksums. Never does I/O and never holds a packet.
//!
//! Headers are `zerocopy` structs laid over the bytes of a frame; [`packet::Packet`] checks
//! a frame once and afterwards only remembers where things are.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod flow;
pub mod headers;
pub mod packet;

pub use flow::{FlowKey, FlowKeyError, HashKey};
pub use packet::{Fragment, Headers, Malformed, Network, Packet, Quoted, Transport};
