//! What the packet path needs of a port: bursts in, bursts out. Never blocks.

use arrayvec::ArrayVec;
use holdfast_dpdk::{Mbuf, RxQueue, TxQueue};

use crate::frame::Frame;

/// Frames received at once, at most.
pub const BURST: usize = 32;

/// A queue pair of an uplink or host port, owned by one worker.
pub trait Port {
    /// The frames it carries.
    type Frame: Frame;
    /// Receives frames into `burst` until it is full or none are left.
    fn receive(&mut self, burst: &mut ArrayVec<Self::Frame, BURST>);
    /// Sends frames from the front of `frames`; those that did not fit stay, in order.
    fn transmit<const N: usize>(&mut self, frames: &mut ArrayVec<Self::Frame, N>);
}

/// A queue pair of a DPDK port.
#[derive(Debug)]
pub struct DpdkPort {
    /// Frames come from here.
    pub receive: RxQueue,
    /// Frames go here.
    pub transmit: TxQueue,
}

impl Port for DpdkPort {
    type Frame = Mbuf;

    fn receive(&mut self, burst: &mut ArrayVec<Mbuf, BURST>) {
        self.receive.receive(burst);
    }

    fn transmit<const N: usize>(&mut self, frames: &mut ArrayVec<Mbuf, N>) {
        self.transmit.transmit(frames);
    }
}
