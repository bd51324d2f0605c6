//! The packet path's two doors: bursts in, bursts out. Each queue belongs to one thread at
//! a time. Never blocks, never allocates.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use arrayvec::ArrayVec;
use holdfast_dpdk_sys as sys;

use crate::mbuf::Mbuf;
use crate::port::PortInner;

/// A receive queue. It keeps its port running. It may move to another thread, but two
/// threads cannot share it:
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<holdfast_dpdk::RxQueue>();
/// ```
#[derive(Debug)]
pub struct RxQueue {
    port: Arc<PortInner>,
    port_id: u16,
    queue: u16,
    /// The device takes 802.1Q tags off.
    strips: bool,
    /// The VLAN whose tag is no part of a frame.
    port_vlan: Option<u16>,
    /// The driver may deliver a frame in several mbufs, whoever asks for it or not.
    scatters: bool,
    _not_sync: PhantomData<Cell<()>>,
}

/// A transmit queue. It keeps its port running. As with [`RxQueue`], it may move to another
/// thread, but two threads cannot share it:
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<holdfast_dpdk::TxQueue>();
/// ```
#[derive(Debug)]
pub struct TxQueue {
    port: Arc<PortInner>,
    port_id: u16,
    queue: u16,
    /// The device puts 802.1Q tags in.
    inserts: bool,
    _not_sync: PhantomData<Cell<()>>,
}

impl RxQueue {
    /// # Safety
    /// The port is started with more than `queue` receive queues, and no other `RxQueue`
    /// for this one exists.
    pub(crate) unsafe fn new(
        port: Arc<PortInner>,
        queue: u16,
        strips: bool,
        port_vlan: Option<u16>,
    ) -> RxQueue {
        let (port_id, scatters) = (port.id(), port.scatters());
        RxQueue { port, port_id, queue, strips, port_vlan, scatters, _not_sync: PhantomData }
    }

    /// The queue's number in its port.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.queue
    }

    /// The name of its port.
    #[must_use]
    pub fn port_name(&self) -> &str {
        self.port.name()
    }

    /// Receives what waits, at most what is free in `burst`, and returns how many frames
    /// were added to it. A frame that does not fit an mbuf is dropped, and counts as an error. Vector drivers want room for a multiple of 4 to 32 frames and
    /// deliver nothing into less.
    #[inline]
    pub fn receive<const N: usize>(&mut self, burst: &mut ArrayVec<Mbuf, N>) -> usize {
        let have = burst.len();
        let room = u16::try_from(burst.remaining_capacity()).unwrap_or(u16::MAX);
        // `Mbuf` is a transparent, never-null pointer to an `rte_mbuf`.
        let array = burst.as_mut_ptr().cast::<*mut sys::rte_mbuf>();
        // SAFETY: `have` ≤ the capacity of `burst`.
        let free = unsafe { array.add(have) };
        // SAFETY: `free` has room for `room` pointers; the queue exists and its port runs
        // (`port`), and `&mut self` of a type that is neither Sync nor Clone keeps every
        // other thread out of it.
        let received = unsafe { sys::rte_eth_rx_burst(self.port_id, self.queue, free, room) };
        let mut received = usize::from(received);
        // SAFETY: the driver wrote `received` ≤ `room` mbufs that are now ours.
        unsafe { burst.set_len(have + received) };
        if self.scatters {
            burst.retain(|mbuf| mbuf.is_contiguous());
            self.port.count_scattered(have + received - burst.len());
            received = burst.len() - have;
        }
        if self.strips {
            if let Some(vlan) = self.port_vlan {
                burst[have..].iter_mut().for_each(|mbuf| mbuf.forget_tag(vlan));
            }
            burst[have..].iter_mut().for_each(Mbuf::keep_outer_of_two_tags);
        }
        received
    }
}

impl TxQueue {
    /// # Safety
    /// The port is started with more than `queue` transmit queues, and no other `TxQueue`
    /// for this one exists.
    pub(crate) unsafe fn new(port: Arc<PortInner>, queue: u16, inserts: bool) -> TxQueue {
        let port_id = port.id();
        TxQueue { port, port_id, queue, inserts, _not_sync: PhantomData }
    }

    /// The queue's number in its port.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.queue
    }

    /// The name of its port.
    #[must_use]
    pub fn port_name(&self) -> &str {
        self.port.name()
    }

    /// Hands `burst` to the device and returns how many frames it took. Those leave the
    /// front of `burst`; the others stay, in order, to be tried again or dropped.
    #[inline]
    pub fn transmit<const N: usize>(&mut self, burst: &mut ArrayVec<Mbuf, N>) -> usize {
        let have = burst.len();
        if self.port.may_lack_tags() {
            burst.iter_mut().for_each(|mbuf| mbuf.give_tag_back(self.inserts));
        }
        let count = u16::try_from(have).unwrap_or(u16::MAX);
        // `Mbuf` is a transparent, never-null pointer to an `rte_mbuf`.
        let array = burst.as_mut_ptr().cast::<*mut sys::rte_mbuf>();
        // SAFETY: `array` holds `count` mbufs that are ours; the queue exists and its port
        // runs (`port`), and `&mut self` of a type that is neither Sync nor Clone keeps
        // every other thread out of it.
        let sent = unsafe { sys::rte_eth_tx_burst(self.port_id, self.queue, array, count) };
        let sent = usize::from(sent);
        // SAFETY: `sent` ≤ `count` ≤ `have`.
        let rest = unsafe { array.add(sent) };
        // SAFETY: both ranges lie in the first `have` entries; `copy` allows an overlap.
        unsafe { std::ptr::copy(rest, array, have - sent) };
        // SAFETY: the first `have - sent` entries are the mbufs that the driver left to us;
        // the others are no longer ours and are forgotten, not dropped.
        unsafe { burst.set_len(have - sent) };
        sent
    }
}
