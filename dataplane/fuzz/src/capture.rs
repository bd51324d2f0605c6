//! An input as a capture: a pcap file, which wireshark and tcpdump open. Never fails: whatever is
//! broken in a capture is read as far as it goes.
//!
//! Reads and writes the classic format (draft-ietf-opsawg-pcap) in little-endian order with
//! microseconds and Ethernet frames; reads it in any order, with nanoseconds too.

/// Magic number of a capture with microseconds, and with nanoseconds.
const MAGIC_US: u32 = 0xa1b2_c3d4;
const MAGIC_NS: u32 = 0xa1b2_3c4d;
const HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;
/// Bytes of a frame, at most: what is longer is read as two.
const SNAP_LEN: usize = 16384;
const LINKTYPE_ETHERNET: u32 = 1;

/// A capture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capture {
    /// What pcap calls `sigfigs`, which nobody sets or reads: here the worker's configuration.
    pub shape: u32,
    /// Its frames, in order.
    pub records: Vec<Record>,
}

/// A frame of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When it was seen, in microseconds.
    pub at_us: u64,
    /// Its bytes.
    pub frame: Vec<u8>,
}

impl Capture {
    /// Reads a capture.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Capture {
        let Some((header, mut rest)) = bytes.split_at_checked(HEADER_LEN) else {
            return Capture::default();
        };
        let magic = word(header, 0, false);
        let is_big = [MAGIC_US, MAGIC_NS].contains(&magic.swap_bytes());
        let fractions = if word(header, 0, is_big) == MAGIC_NS { 1000 } else { 1 };
        let mut capture = Capture { shape: word(header, 12, is_big), records: Vec::new() };
        while let Some((header, frames)) = rest.split_at_checked(RECORD_HEADER_LEN) {
            let fraction = word(header, 4, is_big) / fractions;
            let at_us = u64::from(word(header, 0, is_big)) * 1_000_000 + u64::from(fraction);
            let length = (word(header, 8, is_big) as usize).min(SNAP_LEN).min(frames.len());
            let (frame, after) = frames.split_at(length);
            capture.records.push(Record { at_us, frame: frame.to_vec() });
            rest = after;
        }
        capture
    }

    /// Writes it.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC_US.to_le_bytes());
        bytes.extend([2u16, 4].map(u16::to_le_bytes).concat());
        bytes.extend(
            [0, self.shape, SNAP_LEN as u32, LINKTYPE_ETHERNET].map(u32::to_le_bytes).concat(),
        );
        for Record { at_us, frame } in &self.records {
            let (seconds, fraction) = ((at_us / 1_000_000) as u32, (at_us % 1_000_000) as u32);
            let length = frame.len() as u32;
            bytes.extend([seconds, fraction, length, length].map(u32::to_le_bytes).concat());
            bytes.extend(frame);
        }
        bytes
    }
}

fn word(bytes: &[u8], at: usize, is_big: bool) -> u32 {
    let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    if is_big { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
}
