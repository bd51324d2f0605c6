//! Ports in memory, whose frames remember what they came as, so that nothing that becomes of one
//! goes unseen.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use arrayvec::ArrayVec;
use holdfast_dataplane::frame::{DATA_ROOM, Frame, HEADROOM};
use holdfast_dataplane::port::{BURST, Port};

use super::reader::{Reading, Segment};

/// A port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// To the network.
    Uplink,
    /// To the host.
    Host,
}

/// How a frame came.
#[derive(Debug)]
pub struct Origin {
    /// From which port.
    pub side: Side,
    /// As which bytes.
    pub bytes: Vec<u8>,
    /// What it was, of a frame from the uplink.
    pub reading: Reading,
    /// The service's segment that a frame from the host was.
    pub spoken: Option<Segment>,
    /// Where it must not go, by what the table said when it came.
    pub forbidden: Cell<Option<Side>>,
    /// How many frames were sent that were this one once, or were made of it.
    pub sent: Cell<u64>,
    /// How many frames were made of it beside it: fragments.
    pub made: Cell<u64>,
}

/// A frame in memory that knows its origin.
#[derive(Debug)]
pub struct TracedFrame {
    buffer: Vec<u8>,
    start: usize,
    /// How it came.
    pub origin: Rc<Origin>,
}

impl TracedFrame {
    /// A frame with so many bytes of room in front.
    pub fn new(origin: Rc<Origin>, headroom: usize) -> TracedFrame {
        let buffer = [&vec![0; headroom], &origin.bytes[..]].concat();
        TracedFrame { buffer, start: headroom, origin }
    }
}

impl Frame for TracedFrame {
    fn data(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..]
    }

    fn prepend(&mut self, count: usize) -> Option<()> {
        self.start = self.start.checked_sub(count)?;
        Some(())
    }

    fn trim_front(&mut self, count: usize) -> Option<()> {
        self.start = self.start.checked_add(count).filter(|start| *start <= self.buffer.len())?;
        Some(())
    }

    fn truncate(&mut self, length: usize) {
        self.buffer.truncate(self.start + length);
    }

    fn new_like(&self, parts: &[&[u8]]) -> Option<TracedFrame> {
        let (headroom, bytes) = (vec![0; HEADROOM], parts.concat());
        if bytes.len() > DATA_ROOM {
            return None;
        }
        let origin = Rc::clone(&self.origin);
        origin.made.set(origin.made.get() + 1);
        Some(TracedFrame { buffer: [headroom, bytes].concat(), start: HEADROOM, origin })
    }
}

/// What the two ends of a port share.
#[derive(Debug, Default)]
pub struct Wire {
    /// Frames that the worker will receive.
    pub to_worker: VecDeque<TracedFrame>,
    /// Frames that it sent.
    pub from_worker: VecDeque<TracedFrame>,
    /// Frames that the port still takes; `None` is as many as come.
    pub room: Option<usize>,
}

/// A port in memory.
#[derive(Debug, Clone, Default)]
pub struct MemPort(pub Rc<RefCell<Wire>>);

impl Port for MemPort {
    type Frame = TracedFrame;

    fn receive(&mut self, burst: &mut ArrayVec<TracedFrame, BURST>) {
        let mut wire = self.0.borrow_mut();
        let count = wire.to_worker.len().min(burst.remaining_capacity());
        burst.extend(wire.to_worker.drain(..count));
    }

    fn transmit<const N: usize>(&mut self, frames: &mut ArrayVec<TracedFrame, N>) {
        let mut wire = self.0.borrow_mut();
        let count = wire.room.unwrap_or(usize::MAX).min(frames.len());
        if let Some(room) = &mut wire.room {
            *room -= count;
        }
        wire.from_worker.extend(frames.drain(..count));
    }
}
