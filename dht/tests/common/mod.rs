//! A network of nodes in memory, and what is tried on it: the sessions' truth to compare with,
//! the matrix of deaths and losses, storms and churn. Shared by tests and examples; never runs by
//! itself.
#![allow(dead_code, unused_imports)]

pub mod air;
pub mod churn;
pub mod matrix;
pub mod network;
pub mod sessions;
pub mod storms;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use holdfast_dht::Config;
use holdfast_handoff::{Resolution, Version};
use holdfast_net::FlowKey;

pub use air::{Air, Weather};
pub use network::{Network, Resolved, Skew};

pub const MS: u64 = 1000;
pub const SECOND: u64 = 1_000_000;
/// Microseconds since the Unix epoch at the network's time 0.
pub const EPOCH_US: u64 = 1_700_000_000_000_000;

/// Key of the ids of all networks here.
pub const ID_KEY: [u8; 16] = *b"a test's id key.";

pub fn locator(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, (n / 250) as u8, (n % 250 + 1) as u8))
}

/// The `n` that [`locator`] made this of.
pub fn number(locator: IpAddr) -> usize {
    match locator {
        IpAddr::V4(v4) => usize::from(v4.octets()[2]) * 250 + usize::from(v4.octets()[3]) - 1,
        IpAddr::V6(_) => panic!("{locator} has no number"),
    }
}

pub fn address(n: usize) -> SocketAddr {
    SocketAddr::new(locator(n), 7000)
}

pub fn flow(n: usize) -> FlowKey {
    let client = SocketAddr::from(([20, (n >> 16) as u8, (n >> 8) as u8, n as u8], 1234));
    FlowKey::tcp(client, ([192, 168, 0, 1], 80).into()).expect("IPv4")
}

/// Node `n` joins by node 0.
pub fn config(n: usize) -> Config {
    let mut config = Config::new(locator(n), address(n));
    config.bootstrap = vec![address(0)];
    config.members = vec!["10.0.0.0/16".parse().expect("net")];
    config.id_key = ID_KEY;
    config
}

pub fn owner(n: usize, version: Version) -> Resolution {
    Resolution::Owner { locator: locator(n), version }
}
