//! The kernel NIC interface, which Debian's DPDK 22.11 is built without (and which DPDK has
//! removed since): the types that capsule names, and functions that refuse. A capsule whose
//! ports have `kni = false` never calls them.

use std::ffi::{c_char, c_int, c_uint};

use crate::{rte_mbuf, rte_mempool};

const NAME_LENGTH: usize = 32;

/// An interface; there is never one.
#[repr(C)]
pub struct rte_kni {
    _private: [u8; 0],
}

#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct rte_kni_conf {
    pub name: [c_char; NAME_LENGTH],
    pub group_id: u16,
    pub mbuf_size: u32,
    pub mac_addr: [u8; 6],
}

#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct rte_kni_ops {
    pub port_id: u16,
    pub change_mtu: Option<unsafe extern "C" fn(port: u16, mtu: c_uint) -> c_int>,
    pub config_network_if: Option<unsafe extern "C" fn(port: u16, up: u8) -> c_int>,
    pub config_mac_address: Option<unsafe extern "C" fn(port: u16, address: *mut u8) -> c_int>,
    pub config_promiscusity: Option<unsafe extern "C" fn(port: u16, on: u8) -> c_int>,
}

/// Refuses: `-ENOTSUP`.
const REFUSED: c_int = -95;

pub unsafe fn rte_kni_init(_interfaces_max: c_uint) -> c_int {
    REFUSED
}

pub unsafe fn rte_kni_alloc(
    _pool: *mut rte_mempool,
    _conf: *const rte_kni_conf,
    _ops: *mut rte_kni_ops,
) -> *mut rte_kni {
    std::ptr::null_mut()
}

pub unsafe fn rte_kni_release(_kni: *mut rte_kni) -> c_int {
    REFUSED
}

pub unsafe fn rte_kni_get_name(_kni: *const rte_kni) -> *const c_char {
    c"".as_ptr()
}

pub unsafe fn rte_kni_handle_request(_kni: *mut rte_kni) -> c_int {
    REFUSED
}

pub unsafe fn rte_kni_rx_burst(
    _kni: *mut rte_kni,
    _mbufs: *mut *mut rte_mbuf,
    _count: c_uint,
) -> c_uint {
    0
}

pub unsafe fn rte_kni_tx_burst(
    _kni: *mut rte_kni,
    _mbufs: *mut *mut rte_mbuf,
    _count: c_uint,
) -> c_uint {
    0
}

pub unsafe fn rte_kni_close() {}
