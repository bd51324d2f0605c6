//! Load makers and benches for holdfast: programs (`src/bin`) and criterion benches.
//! This library holds only what two of the programs must agree on. No other crate
//! imports it.

#![forbid(unsafe_code)]

pub mod pattern;
pub mod serve_protocol;
