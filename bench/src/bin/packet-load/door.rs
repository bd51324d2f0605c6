//! The generator's ends of the appliance's ports, and what went through them. Never waits for room:
//! what the appliance's ring does not take is lost, as at a NIC without a free descriptor, and
//! counted; what a NIC of the generator's own does not take was never offered.

use anyhow::{Context, Result};
use arrayvec::ArrayVec;
use holdfast_dpdk::{
    Device, Eal, Mbuf, Mempool, MempoolConfig, Port, PortConfig, PortStats, RxQueue, TxQueue,
};

use crate::flows::Class;
use crate::frames::{Frames, Segment};

/// Frames that are sent or received at once.
pub const BURST: usize = 32;
/// Mbufs of a door: what two rings of descriptors hold, and bursts.
const MBUFS: u32 = 8_191;
/// Descriptors of each queue of a NIC. Of a memif its own arguments decide.
const DESCRIPTORS: u16 = 1024;

/// Frames of one class, with payload or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Frames handed to the port.
    pub offered: u64,
    /// Of these, the ones that its ring had no room for.
    pub refused: u64,
}

impl Sent {
    /// Frames that went out.
    pub fn put(&self) -> u64 {
        self.offered - self.refused
    }
}

/// A port of the generator's.
pub struct Door {
    port: Port,
    /// Whether the ring is the appliance's own, and a full one its loss.
    shares_ring: bool,
    rx: RxQueue,
    tx: TxQueue,
    pool: Mempool,
    fresh: ArrayVec<Mbuf, BURST>,
    out: ArrayVec<Mbuf, BURST>,
    out_data: ArrayVec<Option<Class>, BURST>,
    /// All frames.
    pub sent: Sent,
    /// Those with a payload, by class.
    pub data: [Sent; Class::COUNT],
    /// Frames that came in.
    pub received: u64,
}

impl Door {
    /// Opens `device`, a DPDK device with its arguments or a PCI address.
    pub fn open(eal: &Eal, name: &str, device: &str) -> Result<Door> {
        let config = MempoolConfig { mbufs: MBUFS, ..MempoolConfig::default() };
        let pool =
            Mempool::new(eal, name, &config).with_context(|| format!("memory for {name}"))?;
        let shares_ring = is_virtual(device);
        let claimed = if shares_ring {
            Device::attach(eal, device)?.into_iter().next()
        } else {
            Some(Device::by_name(eal, device)?)
        };
        let claimed = claimed.with_context(|| format!("{device} has no port"))?;
        let config = PortConfig {
            rx_descriptors: DESCRIPTORS,
            tx_descriptors: DESCRIPTORS,
            rss: false,
            ..PortConfig::default()
        };
        let (port, rx, tx) = claimed
            .start(&config, std::slice::from_ref(&pool))
            .with_context(|| format!("starting {device}"))?;
        let rx = rx.into_iter().next().context("no receive queue")?;
        let tx = tx.into_iter().next().context("no transmit queue")?;
        Ok(Door {
            port,
            shares_ring,
            rx,
            tx,
            pool,
            fresh: ArrayVec::new(),
            out: ArrayVec::new(),
            out_data: ArrayVec::new(),
            sent: Sent::default(),
            data: Default::default(),
            received: 0,
        })
    }

    /// Its Ethernet address.
    pub fn mac(&self) -> [u8; 6] {
        self.port.info().device.mac.0
    }

    /// Whether something is at the other end. Asking also makes a memif try again.
    pub fn is_up(&self) -> Result<bool> {
        Ok(self.port.link()?.up)
    }

    /// DPDK's own counters.
    pub fn stats(&self) -> Result<PortStats> {
        Ok(self.port.stats()?)
    }

    /// Queues the segment's frame, and sends what is queued when that is a burst.
    pub fn send(&mut self, frames: &Frames, segment: &Segment) {
        let class = segment.stamp.is_some().then_some(segment.flow.class);
        self.sent.offered += 1;
        if let Some(class) = class {
            self.data[class as usize].offered += 1;
        }
        if self.fresh.is_empty() {
            self.pool.alloc_bulk(&mut self.fresh);
        }
        let mbuf = self.fresh.pop().and_then(|mut mbuf| {
            frames.write(segment, mbuf.append(frames.len(segment))?);
            Some(mbuf)
        });
        match mbuf {
            Some(mbuf) => {
                self.out.push(mbuf);
                self.out_data.push(class);
                if self.out.is_full() {
                    self.flush();
                }
            }
            // All mbufs lie in a ring that nobody empties.
            None => self.refuse(class),
        }
    }

    /// Sends what is queued; what the ring does not take is dropped.
    pub fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let taken = self.tx.transmit(&mut self.out);
        for at in taken..self.out_data.len() {
            self.refuse(self.out_data[at]);
        }
        self.out.clear();
        self.out_data.clear();
    }

    fn refuse(&mut self, class: Option<Class>) {
        let data = class.map(|class| &mut self.data[class as usize]);
        for sent in [Some(&mut self.sent), data].into_iter().flatten() {
            if self.shares_ring {
                sent.refused += 1;
            } else {
                sent.offered -= 1;
            }
        }
    }

    /// Receives a burst.
    pub fn receive(&mut self, burst: &mut ArrayVec<Mbuf, BURST>) {
        self.received += self.rx.receive(burst) as u64;
    }
}

/// Whether this is a DPDK virtual device, and not a PCI address.
pub fn is_virtual(device: &str) -> bool {
    device.starts_with("net_")
}
