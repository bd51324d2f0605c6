//! What the benches of the session table and of the packet path share: flows, frames, peers,
//! clocks, memory in huge pages and the numbers they report.

pub mod flows;
pub mod frames;
pub mod hash_peer;
pub mod machine;
pub mod meter;
pub mod ours;
pub mod pages;
pub mod path_peer;
