//! The peer of the session table in C: DPDK's rte_hash, lock-free for readers.

use std::ffi::{CString, c_char};
use std::ptr::NonNull;

use anyhow::{Context, Result};
use holdfast_dpdk::Eal;
use holdfast_net::FlowKey;

use crate::flows::Family;

/// Keys looked up in one call; slices are multiples of it.
pub const BULK: usize = 32;
/// Bytes of an IPv4 key, padding included; as in c/peers.h.
const KEY4_BYTES: usize = 16;
/// Bytes of an IPv6 key, padding included; as in c/peers.h.
const KEY6_BYTES: usize = 48;

#[repr(C)]
struct RteHash {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn peer_hash_create(name: *const c_char, entries: u32, key_bytes: u32) -> *mut RteHash;
    fn peer_hash_free(hash: *mut RteHash);
    fn peer_hash_hits(
        hash: *const RteHash,
        keys: *const u8,
        key_bytes: u32,
        count: u32,
        sum: *mut u64,
    ) -> u64;
    fn peer_hash_insert(
        hash: *mut RteHash,
        keys: *const u8,
        key_bytes: u32,
        count: u32,
        value: u64,
    ) -> u32;
    fn peer_hash_remove(hash: *mut RteHash, keys: *const u8, key_bytes: u32, count: u32) -> u32;
}

/// Keys in the form that rte_hash takes, one behind the other.
#[derive(Debug)]
pub struct Keys {
    bytes: Vec<u8>,
    key_bytes: usize,
}

impl Keys {
    /// No keys yet.
    #[must_use]
    pub fn new(family: Family) -> Keys {
        let key_bytes = match family {
            Family::V4 => KEY4_BYTES,
            Family::V6 => KEY6_BYTES,
        };
        Keys { bytes: Vec::new(), key_bytes }
    }

    /// Holds these flows from now on.
    pub fn set(&mut self, flows: &[FlowKey]) {
        self.bytes.clear();
        for flow in flows {
            let (client, service) = (flow.client(), flow.service());
            let end = self.bytes.len() + self.key_bytes;
            for address in [client.ip(), service.ip()] {
                match address {
                    std::net::IpAddr::V4(v4) => self.bytes.extend(v4.octets()),
                    std::net::IpAddr::V6(v6) => self.bytes.extend(v6.octets()),
                }
            }
            self.bytes.extend(client.port().to_be_bytes());
            self.bytes.extend(service.port().to_be_bytes());
            self.bytes.resize(end, 0);
        }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.key_bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn parts(&self) -> (*const u8, u32, u32) {
        (self.bytes.as_ptr(), self.key_bytes as u32, self.len() as u32)
    }
}

/// An rte_hash.
#[derive(Debug)]
pub struct HashPeer {
    hash: NonNull<RteHash>,
    _eal: Eal,
}

// SAFETY: any thread may use an rte_hash, one at a time writing: `&mut` below and the promise of
// `write_beside_readers` see to that.
unsafe impl Send for HashPeer {}
// SAFETY: with lock-free concurrency, lookups run beside each other and beside one writer.
unsafe impl Sync for HashPeer {}

impl HashPeer {
    /// An empty table with room for `entries`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(eal: &Eal, name: &str, entries: usize, family: Family) -> Result<HashPeer> {
        let c_name = CString::new(name)?;
        let key_bytes = Keys::new(family).key_bytes as u32;
        // SAFETY: the EAL runs, and the name is copied.
        let hash = unsafe { peer_hash_create(c_name.as_ptr(), entries as u32, key_bytes) };
        let hash = NonNull::new(hash)
            .with_context(|| format!("no memory for an rte_hash of {entries} entries"))?;
        Ok(HashPeer { hash, _eal: eal.clone() })
    }

    /// The table, for the path in C.
    #[must_use]
    pub fn as_ptr(&self) -> *mut std::ffi::c_void {
        self.hash.as_ptr().cast()
    }

    /// Looks all up; how many are there, and the sum of their values.
    #[must_use]
    pub fn hits(&self, keys: &Keys) -> (u64, u64) {
        let (bytes, key_bytes, count) = keys.parts();
        let mut sum = 0;
        // SAFETY: `count` keys of `key_bytes` bytes; the table lives.
        let found =
            unsafe { peer_hash_hits(self.hash.as_ptr(), bytes, key_bytes, count, &raw mut sum) };
        (found, sum)
    }

    /// Inserts all, with values from `value` on; how many it took.
    pub fn insert(&mut self, keys: &Keys, value: u64) -> usize {
        // SAFETY: `&mut`: no other writer.
        unsafe { self.insert_beside_readers(keys, value) }
    }

    /// Removes all; how many were there.
    pub fn remove(&mut self, keys: &Keys) -> usize {
        // SAFETY: `&mut`: no other writer.
        unsafe { self.remove_beside_readers(keys) }
    }

    /// As [`HashPeer::insert`].
    ///
    /// # Safety
    /// No other thread writes meanwhile.
    pub unsafe fn insert_beside_readers(&self, keys: &Keys, value: u64) -> usize {
        let (bytes, key_bytes, count) = keys.parts();
        // SAFETY: `count` keys of `key_bytes` bytes; the caller is the only writer.
        unsafe { peer_hash_insert(self.hash.as_ptr(), bytes, key_bytes, count, value) as usize }
    }

    /// As [`HashPeer::remove`].
    ///
    /// # Safety
    /// No other thread writes meanwhile.
    pub unsafe fn remove_beside_readers(&self, keys: &Keys) -> usize {
        let (bytes, key_bytes, count) = keys.parts();
        // SAFETY: `count` keys of `key_bytes` bytes; the caller is the only writer.
        unsafe { peer_hash_remove(self.hash.as_ptr(), bytes, key_bytes, count) as usize }
    }
}

impl Drop for HashPeer {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { peer_hash_free(self.hash.as_ptr()) };
    }
}
