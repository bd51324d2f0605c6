//! The packet path of holdfast: poll, classify, look up, decide, act. Start at [`worker`] and
//! read down. Never waits for anything: what it does not know it asks over a ring
//! ([`holdfast_handoff`]), and the packet is parked meanwhile.
//!
//! Only [`port`] and [`frame`] name DPDK; the rest works on any frame, so tests run the code that
//! runs on the NIC.
#![forbid(unsafe_code)]

pub mod admission;
pub mod capture;
pub mod classify;
pub mod encap;
pub mod foresee;
pub mod fragmentation;
pub mod fragments;
pub mod frame;
pub mod idle;
pub mod kernel;
pub mod mss;
pub mod parking;
pub mod port;
pub mod service;
pub mod session;
pub mod stats;
pub mod switch;
pub mod time;
pub mod too_big;
pub mod worker;
