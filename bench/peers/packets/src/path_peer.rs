//! The peers of the packet path in C: testpmd's macswap, and the redirect path around rte_hash.

use std::net::Ipv4Addr;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use holdfast_dpdk::{Eal, Port};
use holdfast_net::FlowKey;

use crate::flows::{SERVICE_PORT, SERVICE_V4, SERVICE_V6};
use crate::hash_peer::{HashPeer, Keys};

#[repr(C)]
struct PeerPath {
    _private: [u8; 0],
}

/// As in c/path.c.
#[repr(C)]
struct Plan {
    hash: *mut std::ffi::c_void,
    service4: [u8; 4],
    service6: [u8; 16],
    local: [u8; 4],
    first_owner: [u8; 4],
    service_port: u16,
    tunnel_port: u16,
    port: u16,
    queue: u16,
    gue: u32,
}

unsafe extern "C" {
    fn peer_macswap_turn(port: u16, queue: u16) -> u32;
    fn peer_path_create(plan: *const Plan) -> *mut PeerPath;
    fn peer_path_free(path: *mut PeerPath);
    fn peer_path_fill(
        path: *mut PeerPath,
        keys: *const u8,
        key_bytes: u32,
        count: u32,
        first: u32,
    ) -> u32;
    fn peer_path_tick(path: *mut PeerPath, tick: u32);
    fn peer_path_turn(path: *mut PeerPath, v6: u32) -> u32;
}

/// A queue pair of a port for a peer in C, which nobody else may use.
#[derive(Debug)]
pub struct QueuePair {
    /// Keeps the port running.
    port: Port,
    queue: u16,
    /// Held, so that nobody else has them.
    _queues: (holdfast_dpdk::RxQueue, holdfast_dpdk::TxQueue),
}

impl QueuePair {
    /// Takes a port's queues of one number.
    #[must_use]
    pub fn new(port: &Port, queues: (holdfast_dpdk::RxQueue, holdfast_dpdk::TxQueue)) -> QueuePair {
        QueuePair { port: port.clone(), queue: queues.0.index(), _queues: queues }
    }

    fn id(&self) -> u16 {
        self.port.info().device.index
    }

    /// A burst in, addresses swapped, a burst out; how many frames.
    pub fn macswap_turn(&mut self) -> usize {
        // SAFETY: the port runs, and only this object uses the queues.
        unsafe { peer_macswap_turn(self.id(), self.queue) as usize }
    }
}

/// The redirect path in C.
#[derive(Debug)]
pub struct PathPeer {
    path: NonNull<PeerPath>,
    v6: bool,
    // Dropped after the path, which uses them.
    _queues: QueuePair,
    hash: std::rc::Rc<HashPeer>,
    _eal: Eal,
}

impl PathPeer {
    /// Over this table, whose flow `number` is redirected to owner `number % 8` from
    /// `first_owner` on.
    ///
    /// # Errors
    /// When memory is short.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        eal: &Eal,
        hash: std::rc::Rc<HashPeer>,
        queues: QueuePair,
        v6: bool,
        gue: bool,
        local: Ipv4Addr,
        first_owner: Ipv4Addr,
        tunnel_port: u16,
    ) -> Result<PathPeer> {
        let plan = Plan {
            hash: hash.as_ptr(),
            service4: SERVICE_V4,
            service6: SERVICE_V6,
            local: local.octets(),
            first_owner: first_owner.octets(),
            service_port: SERVICE_PORT,
            tunnel_port,
            port: queues.id(),
            queue: queues.queue,
            gue: u32::from(gue),
        };
        // SAFETY: the EAL runs, and hash and port outlive the path: this object holds them.
        let path = unsafe { peer_path_create(&raw const plan) };
        let path = NonNull::new(path).context("no memory for the peer's sessions")?;
        Ok(PathPeer { path, v6, _queues: queues, hash, _eal: eal.clone() })
    }

    /// Gives the flows from number `first` on their owners.
    ///
    /// # Errors
    /// When one of them is not in the table.
    pub fn fill(&mut self, flows: &[FlowKey], first: u32, keys: &mut Keys) -> Result<()> {
        keys.set(flows);
        let (bytes, key_bytes, count) = keys.parts();
        // SAFETY: `count` keys of `key_bytes` bytes; the path lives.
        let done = unsafe { peer_path_fill(self.path.as_ptr(), bytes, key_bytes, count, first) };
        ensure!(done == count, "the peer's table lacks {} flows", count - done);
        Ok(())
    }

    /// Sets the time that sessions are stamped with.
    pub fn set_tick(&mut self, tick: u32) {
        // SAFETY: the path lives.
        unsafe { peer_path_tick(self.path.as_ptr(), tick) };
    }

    /// A burst in, redirected, a burst out; how many frames.
    pub fn turn(&mut self) -> usize {
        // SAFETY: the path lives, and only it uses its queues.
        unsafe { peer_path_turn(self.path.as_ptr(), u32::from(self.v6)) as usize }
    }

    /// Its table.
    #[must_use]
    pub fn table(&self) -> &HashPeer {
        &self.hash
    }
}

impl Drop for PathPeer {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { peer_path_free(self.path.as_ptr()) };
    }
}
