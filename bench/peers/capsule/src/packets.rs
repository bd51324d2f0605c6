//! The packets that go round: written anew, outside of the measured time, from a bijection of
//! the flows. Also the services, which both paths ask.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use capsule::batch::PacketTx;
use capsule::{Mbuf, PortQueue};
use capsule_ffi::{_rte_eth_rx_burst, _rte_eth_tx_burst, RTE_PKTMBUF_HEADROOM, rte_mbuf};

use crate::outer::checksum;
use crate::table::{FLOWS, Key};

/// What capsule receives at once.
pub const BURST: usize = 32;
/// Bursts between two rewritings. DPDK's ring driver holds 1,023 packets.
pub const GROUP_BURSTS: usize = 31;
pub const GROUP_PACKETS: usize = GROUP_BURSTS * BURST;
/// capsule numbers ports from 0, and this is the only one.
pub const PORT: u16 = 0;
pub const QUEUE: u16 = 0;

pub const ETHERNET_LENGTH: usize = 14;
pub const HEADERS_LENGTH: usize = ETHERNET_LENGTH + 20 + 20;
const FRAME_MAX: usize = 1500 + ETHERNET_LENGTH;

const SERVICE: (u32, u16) = (u32::from_be_bytes([192, 0, 2, 80]), 443);
const OWNERS: u32 = 16;

/// Sockets of services: a few, looked through in turn.
#[derive(Debug, Clone, Copy)]
pub struct Services([(u32, u16); 4]);

impl Services {
    /// The packets' service is the last of them.
    pub fn new() -> Services {
        let (address, port) = SERVICE;
        Services([(address, 80), (address, 8443), (address + 1, port), SERVICE])
    }

    #[inline(always)]
    pub fn contains(&self, address: u32, port: u16) -> bool {
        self.0.contains(&(address, port))
    }
}

/// The flow of this number, and the locator of its owner.
pub fn flow(number: usize) -> (Key, u32) {
    let number = number as u32;
    let key = Key {
        source: u32::from_be_bytes([20, 0, 0, 0]) + (number >> 4),
        destination: SERVICE.0,
        source_port: 1024 + (number & 15) as u16 * 3,
        destination_port: SERVICE.1,
    };
    (key, u32::from_be_bytes([10, 0, 0, 1]) + number % OWNERS)
}

/// All packets there are, and what the next of them are to be.
#[derive(Debug)]
pub struct Packets {
    mbufs: Vec<*mut rte_mbuf>,
    template: Vec<u8>,
    /// Flows in use: a power of two, at most [`FLOWS`].
    flows: usize,
    next: usize,
}

impl Packets {
    /// Puts [`GROUP_PACKETS`] packets of capsule's pool into the port's ring.
    pub fn feed(queue: &mut PortQueue) -> Result<Packets> {
        let mut mbufs = Vec::new();
        for _ in 0..GROUP_BURSTS {
            let fresh = (0..BURST).map(|_| Mbuf::from_bytes(&[0; 64])).collect::<Result<_>>()?;
            PacketTx::transmit(queue, fresh);
        }
        for _ in 0..GROUP_BURSTS {
            let mut burst = [std::ptr::null_mut(); BURST];
            // SAFETY: the port is started and `burst` has room for this many.
            let received =
                unsafe { _rte_eth_rx_burst(PORT, QUEUE, burst.as_mut_ptr(), BURST as u16) };
            ensure!(usize::from(received) == BURST, "the ring gave {received} packets");
            // SAFETY: these were received, and are given back once.
            unsafe { _rte_eth_tx_burst(PORT, QUEUE, burst.as_mut_ptr(), received) };
            mbufs.extend(burst);
        }
        Ok(Packets { mbufs, template: Vec::new(), flows: FLOWS, next: 0 })
    }

    /// From now on frames of this length, of the first so many flows.
    pub fn set(&mut self, frame_length: usize, flows: usize) {
        assert!((HEADERS_LENGTH..=FRAME_MAX).contains(&frame_length));
        assert!(flows.is_power_of_two() && flows <= FLOWS);
        self.template = template(frame_length);
        self.flows = flows;
    }

    /// Writes every packet anew, where it lies in the ring.
    pub fn rewrite(&mut self) {
        for &mbuf in &self.mbufs {
            // An odd factor makes it a bijection of the flows in use.
            let number = self.next.wrapping_mul(0x9e37_79b1) % self.flows;
            self.next += 1;
            // SAFETY: the packet lies in the ring, where nothing touches it: this thread is
            // the only one. A buffer of capsule's pool holds FRAME_MAX bytes.
            let frame = unsafe {
                let mbuf = &mut *mbuf;
                mbuf.data_off = RTE_PKTMBUF_HEADROOM as u16;
                mbuf.data_len = self.template.len() as u16;
                mbuf.pkt_len = self.template.len() as u32;
                let data = mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off));
                std::slice::from_raw_parts_mut(data, self.template.len())
            };
            frame.copy_from_slice(&self.template);
            let (key, _) = flow(number);
            frame[26..30].copy_from_slice(&key.source.to_be_bytes());
            frame[34..36].copy_from_slice(&key.source_port.to_be_bytes());
            let sum = checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Whether every frame has grown by `grown` bytes.
    pub fn have_grown(&self, grown: usize) -> bool {
        let length = self.template.len() + grown;
        // SAFETY: as in `rewrite`; only read.
        self.mbufs.iter().all(|&mbuf| unsafe { usize::from((*mbuf).data_len) == length })
    }

    /// Lets the same packets come again.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// Copies of all frames.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let copy = |&mbuf: &*mut rte_mbuf| {
            // SAFETY: as in `rewrite`; only read, and within the frame's length.
            unsafe {
                let mbuf = &*mbuf;
                let data = mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off));
                std::slice::from_raw_parts(data, usize::from(mbuf.data_len)).to_vec()
            }
        };
        self.mbufs.iter().map(copy).collect()
    }
}

/// A TCP segment to the service with all but its source filled in.
fn template(length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|at| at as u8).collect();
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].fill(0);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&((length - ETHERNET_LENGTH) as u16).to_be_bytes());
    frame[20] = 0x40;
    frame[22] = 64;
    frame[23] = 6;
    frame[30..34].copy_from_slice(&Ipv4Addr::from(SERVICE.0).octets());
    frame[36..38].copy_from_slice(&SERVICE.1.to_be_bytes());
    frame[46] = 5 << 4;
    frame[47] = 0x10;
    frame
}
