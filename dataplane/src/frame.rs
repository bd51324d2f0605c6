//! What the packet path needs of a frame, so that DPDK's mbufs and plain memory both serve.
//! Copies one only where a packet becomes two ([`Frame::new_like`]).

use holdfast_net::checksum::checksum;

/// An Ethernet frame in one piece, with room in front for headers.
pub trait Frame: Sized {
    /// The frame's bytes.
    fn data(&self) -> &[u8];
    /// The frame's bytes.
    fn data_mut(&mut self) -> &mut [u8];
    /// Grows the frame by `count` bytes in front. `None`, and nothing changed, when the headroom
    /// does not suffice.
    fn prepend(&mut self, count: usize) -> Option<()>;
    /// Takes `count` bytes off the front. `None`, and nothing changed, when there are fewer.
    fn trim_front(&mut self, count: usize) -> Option<()>;
    /// Cuts the frame to `length` bytes, if it is longer.
    fn truncate(&mut self, length: usize);
    /// Has the checksum of the IPv4 header of `length` bytes, behind `link` bytes, filled in when the
    /// frame is sent, by a device that does so. Memory has none: it is done at once.
    fn request_ipv4_checksum(&mut self, link: usize, length: usize) {
        if let Some(header) = self.data_mut().get_mut(link..link + length) {
            header[10..12].fill(0);
            let checksum = checksum(header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
    }
    /// A new frame from where this one is from, of these bytes, one part after the other. `None`
    /// when there is none left, or they do not fit one.
    fn new_like(&self, parts: &[&[u8]]) -> Option<Self>;
}

impl Frame for holdfast_dpdk::Mbuf {
    #[inline(always)]
    fn data(&self) -> &[u8] {
        holdfast_dpdk::Mbuf::data(self)
    }

    #[inline(always)]
    fn data_mut(&mut self) -> &mut [u8] {
        holdfast_dpdk::Mbuf::data_mut(self)
    }

    #[inline(always)]
    fn prepend(&mut self, count: usize) -> Option<()> {
        holdfast_dpdk::Mbuf::prepend(self, count).map(|_| ())
    }

    #[inline(always)]
    fn trim_front(&mut self, count: usize) -> Option<()> {
        holdfast_dpdk::Mbuf::trim_front(self, count)
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) {
        let excess = self.len().saturating_sub(length);
        // Only a frame in one piece comes here, so all of the excess is in its last segment.
        let _ = self.trim_back(excess);
    }

    #[inline]
    fn request_ipv4_checksum(&mut self, link: usize, length: usize) {
        holdfast_dpdk::Mbuf::request_ipv4_checksum(self, link, length);
    }

    #[inline(never)]
    fn new_like(&self, parts: &[&[u8]]) -> Option<Self> {
        let mut new = self.alloc_like()?;
        for part in parts {
            new.extend_from_slice(part)?;
        }
        Some(new)
    }
}

/// A frame in memory, for tests and tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemFrame {
    buffer: Vec<u8>,
    start: usize,
}

/// Headroom of a [`MemFrame`], in bytes; the same as DPDK's default.
pub const HEADROOM: usize = 128;

/// Bytes that [`Frame::new_like`] of a [`MemFrame`] holds, at most; the same as DPDK's default.
pub const DATA_ROOM: usize = 2048;

impl MemFrame {
    /// A frame of these bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> MemFrame {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend_from_slice(bytes);
        MemFrame { buffer, start: HEADROOM }
    }
}

impl Frame for MemFrame {
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
        if count > self.data().len() {
            return None;
        }
        self.start += count;
        Some(())
    }

    fn truncate(&mut self, length: usize) {
        self.buffer.truncate(self.start + length);
    }

    fn new_like(&self, parts: &[&[u8]]) -> Option<Self> {
        let bytes = parts.concat();
        (bytes.len() <= DATA_ROOM).then(|| MemFrame::new(&bytes))
    }
}
