//! The interface that capsule 0.1.5 expects of `capsule-ffi`, on DPDK 22.11: bindings made
//! at build time, the names that DPDK has renamed since 19.11, and a kernel NIC interface
//! that is not there; capsule's `pcap-dump` is not served. It exists to measure capsule; holdfast
//! never links it.

#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all
)]

mod kni;

mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

use std::ffi::{CStr, c_char, c_int};

pub use bindings::*;
pub use kni::*;

// Renamed in DPDK 21.11.
pub const DEV_TX_OFFLOAD_MBUF_FAST_FREE: u64 = SHIM_TX_OFFLOAD_MBUF_FAST_FREE;
pub const ETH_RSS_IP: u64 = SHIM_RSS_IP;
pub const ETH_RSS_TCP: u64 = SHIM_RSS_TCP;
pub const ETH_RSS_UDP: u64 = SHIM_RSS_UDP;
pub const ETH_RSS_SCTP: u64 = SHIM_RSS_SCTP;

impl rte_eth_rx_mq_mode {
    /// Renamed in DPDK 21.11.
    pub const ETH_MQ_RX_RSS: Self = Self::RTE_ETH_MQ_RX_RSS;
}

/// Options of the EAL that capsule passes and DPDK 22.11 has under another name.
const OPTIONS_RENAMED: [(&CStr, &CStr); 2] =
    [(c"--master-lcore", c"--main-lcore"), (c"--pci-whitelist", c"--allow")];

/// `rte_eal_init` with the option names of DPDK 22.11 in place of those of 19.11.
///
/// # Safety
/// As of DPDK's: `argv` holds `argc` strings that outlive the EAL.
pub unsafe fn rte_eal_init(argc: c_int, argv: *mut *mut c_char) -> c_int {
    for index in 0..argc as usize {
        // SAFETY: the caller promises `argc` strings.
        let argument = unsafe { &mut *argv.add(index) };
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(*argument) };
        if let Some((_, new)) = OPTIONS_RENAMED.iter().find(|(old, _)| *old == text) {
            *argument = new.as_ptr().cast_mut();
        }
    }
    // SAFETY: the caller keeps DPDK's contract; the EAL does not write into its options here:
    // getopt permutes the pointers, and options given as two words are not cut.
    unsafe { bindings::rte_eal_init(argc, argv) }
}
