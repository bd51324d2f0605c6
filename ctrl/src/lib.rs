//! The control of holdfast: configuration, control socket and the life of the daemon. Never
//! touches a packet: `holdfast-dataplane` does.
#![forbid(unsafe_code)]

#[cfg(feature = "daemon")]
pub mod announce;
#[cfg(feature = "daemon")]
pub mod appliance;
pub mod cli;
pub mod client;
#[cfg(feature = "daemon")]
pub mod commands;
pub mod config;
pub mod doctor;
#[cfg(feature = "daemon")]
pub mod drain;
#[cfg(feature = "daemon")]
pub mod health;
#[cfg(feature = "daemon")]
pub mod kernel_check;
#[cfg(feature = "daemon")]
pub mod kernel_sockets;
#[cfg(feature = "daemon")]
pub mod ledger;
pub mod lifecycle;
#[cfg(feature = "daemon")]
pub mod load;
#[cfg(feature = "daemon")]
pub mod log;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod multicast;
pub mod pcapng;
#[cfg(feature = "daemon")]
pub mod ports;
pub mod protocol;
#[cfg(feature = "daemon")]
pub mod reload;
pub mod show;
pub mod socket;
#[cfg(feature = "daemon")]
pub mod systemd;
pub mod top;
#[cfg(feature = "daemon")]
pub mod uplink;
#[cfg(feature = "daemon")]
pub mod watchdog;
