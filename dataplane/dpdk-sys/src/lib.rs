//! Raw bindings to libdpdk, made from `wrapper.h` at build time. Nothing here is safe,
//! nothing here is hand-written; only `holdfast-dpdk` imports it.
//!
//! Inline functions of DPDK (`rte_eth_rx_burst`, `rte_pktmbuf_alloc`, ...) are reached
//! through a C shim compiled beside the bindings: one direct call each, correct with and
//! without link-time optimisation.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
