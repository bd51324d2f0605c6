//! The control of holdfast: configuration, control socket and the life of the daemon. Never
//! touches a packet: `holdfast-dataplane` does.
#![forbid(unsafe_code)]

#[cfg(feature = "daemon")]
pub mod appliance;
pub mod cli;
pub mod client;
#[cfg(feature = "daemon")]
pub mod commands;
pub mod config;
#[cfg(feature = "daemon")]
pub mod kernel_check;
#[cfg(feature = "daemon")]
pub mod kernel_sockets;
pub mod lifecycle;
#[cfg(feature = "daemon")]
pub mod load;
pub mod pcapng;
#[cfg(feature = "daemon")]
pub mod ports;
pub mod protocol;
pub mod show;
pub mod socket;
