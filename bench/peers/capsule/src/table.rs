//! The flow table of both paths: cache lines of four slots, linear probing from line to line,
//! half full, in DPDK's memory (huge pages). A hit takes no branch that depends on where in its
//! line the flow is. Plain apart from that: it is to be the same for both, not to win.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use anyhow::{Result, ensure};

/// Flows in the table.
pub const FLOWS: usize = 1 << 20;
const LINE_SLOTS: usize = 4;
/// Room for twice as many, so that few lines overflow.
const LINES: usize = 2 * FLOWS / LINE_SLOTS;

/// The TCP flow's addresses and ports, as numbers in the host's order.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Key {
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Key {
    /// Equality without a branch in between. No flow has source 0, so no free slot is equal.
    #[inline(always)]
    fn is(&self, other: &Key) -> bool {
        let addresses = (self.source ^ other.source) | (self.destination ^ other.destination);
        let ports = (self.source_port ^ other.source_port)
            | (self.destination_port ^ other.destination_port);
        addresses | u32::from(ports) == 0
    }
}

/// What the table knows of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The locator of the flow's owner.
    pub owner: u32,
    /// Bits of the flow's hash.
    pub entropy: u16,
}

/// When the flows of a burst are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Each packet from end to end before the next.
    Each,
    /// All packets are parsed and their slots asked for, then looked up: misses overlap.
    Ahead,
}

/// Owner 0 means that the slot is free.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Slot {
    key: Key,
    owner: u32,
}

/// Filled from the front.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([Slot; LINE_SLOTS]);

const _: () = assert!(size_of::<Line>() == 64);

/// Never freed: both paths hold copies of this handle until the process ends.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    lines: &'static [Line],
}

impl Table {
    /// A table of [`FLOWS`] flows: `flow` tells the key and owner of each.
    pub fn build(flow: impl Fn(usize) -> (Key, u32)) -> Result<Table> {
        let bytes = LINES * size_of::<Line>();
        // SAFETY: the EAL runs: capsule's runtime was built before any pipeline.
        let memory = unsafe { capsule_ffi::rte_malloc_socket(c"flows".as_ptr(), bytes, 64, -1) };
        ensure!(!memory.is_null(), "no {bytes} bytes of DPDK's memory for the flow table");
        let free = Slot { key: Key::default(), owner: 0 };
        let first = memory.cast::<Line>();
        for index in 0..LINES {
            // SAFETY: within the memory just allocated, which is aligned to 64.
            unsafe { first.add(index).write(Line([free; LINE_SLOTS])) };
        }
        // SAFETY: all lines are initialised, nobody else has the pointer, it is never freed.
        let lines = unsafe { std::slice::from_raw_parts_mut(first, LINES) };
        for (key, owner) in (0..FLOWS).map(flow) {
            let mut index = hash(&key) as usize % LINES;
            let free = loop {
                if let Some(slot) = lines[index].0.iter_mut().find(|slot| slot.owner == 0) {
                    break slot;
                }
                index = (index + 1) % LINES;
            };
            *free = Slot { key, owner };
        }
        Ok(Table { lines })
    }

    /// Asks for the line that a lookup of this key reads first.
    #[inline(always)]
    pub fn prefetch(&self, key: &Key) {
        let line: *const Line = &self.lines[hash(key) as usize % LINES];
        // SAFETY: a hint, valid for any address; every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }

    #[inline(always)]
    pub fn lookup(&self, key: &Key) -> Option<Found> {
        let hash = hash(key);
        let mut index = hash as usize % LINES;
        loop {
            let Line(slots) = &self.lines[index];
            let hits =
                (0..LINE_SLOTS).fold(0, |hits, at| hits | u32::from(slots[at].key.is(key)) << at);
            if hits != 0 {
                let owner = slots[hits.trailing_zeros() as usize % LINE_SLOTS].owner;
                return Some(Found { owner, entropy: (hash >> 48) as u16 });
            }
            if slots[LINE_SLOTS - 1].owner == 0 {
                return None;
            }
            index = (index + 1) % LINES;
        }
    }

    /// Size in kB of the pages that hold the table.
    pub fn page_kb(&self) -> Option<u64> {
        let address = self.lines.as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next()?.split_once('-');
            if let Some((start, end)) = range {
                let start = usize::from_str_radix(start, 16);
                let end = usize::from_str_radix(end, 16);
                if let (Ok(start), Ok(end)) = (start, end) {
                    inside = (start..end).contains(&address);
                }
            } else if inside && line.starts_with("KernelPageSize:") {
                return line.split_whitespace().nth(1)?.parse().ok();
            }
        }
        None
    }
}

/// The upper and the lower half of a product of both halves of the key.
#[inline(always)]
fn hash(key: &Key) -> u64 {
    let addresses = (u64::from(key.source) << 32) | u64::from(key.destination);
    let ports = (u64::from(key.source_port) << 16) | u64::from(key.destination_port);
    let product =
        u128::from(addresses ^ 0x9e37_79b9_7f4a_7c15) * u128::from(ports ^ 0xd1b5_4a32_d192_ed03);
    (product >> 64) as u64 ^ product as u64
}
