//! The harness's side of the rings: puts frames in, takes them out, checks some and makes them
//! new. Never inside the timed part.

use anyhow::{Result, ensure};
use arrayvec::ArrayVec;
use holdfast_bench_packets::flows::{Family, Walk};
use holdfast_bench_packets::frames::{self, Kind, Tunnel};
use holdfast_bench_packets::ours;
use holdfast_dataplane::port::DpdkPort;
use holdfast_dpdk::{Eal, Mbuf, Mempool, Port, PortConfig, RxQueue, TxQueue, ring_pair};

/// Frames in the rings at once: what they hold.
pub const BATCH: usize = 512;
/// One frame of so many is checked.
const CHECKED: usize = 61;

/// The frames of a batch, while the harness has them.
pub type Frames = ArrayVec<Mbuf, BATCH>;

/// What is to come out, and where.
#[derive(Debug, Clone, Copy)]
pub enum Expect {
    /// Out of the uplink, in a tunnel to the flow's owner.
    Tunnelled(Tunnel),
    /// Out of the uplink, Ethernet addresses swapped.
    Swapped,
    /// To the host, as it came.
    ToHost,
}

/// A port of rings: the worker's queues by number, and the harness's.
pub struct Rings {
    /// The worker's side.
    pub near: Port,
    /// Its queues, until somebody takes them.
    pub near_queues: Vec<Option<(RxQueue, TxQueue)>>,
    far: Vec<Option<(RxQueue, TxQueue)>>,
    _far_port: Port,
}

impl Rings {
    /// A pair of ports with this many queues.
    pub fn new(eal: &Eal, name: &str, queues: u16, pool: &Mempool) -> Result<Rings> {
        let (near, far) = ring_pair(eal, name, queues)?;
        let config = PortConfig { rx_queues: queues, tx_queues: queues, ..PortConfig::default() };
        let pools = vec![pool.clone(); usize::from(queues)];
        let (near, rx, tx) = near.start(&config, &pools)?;
        let near_queues = rx.into_iter().zip(tx).map(Some).collect();
        let (far_port, rx, tx) = far.start(&config, &pools)?;
        let far = rx.into_iter().zip(tx).map(Some).collect();
        Ok(Rings { near, near_queues, far, _far_port: far_port })
    }

    /// The worker's end of a queue pair.
    pub fn port(&mut self, queue: usize) -> Option<DpdkPort> {
        let (receive, transmit) = self.near_queues.get_mut(queue)?.take()?;
        Some(DpdkPort { receive, transmit })
    }

    /// The harness's end of a queue pair.
    pub fn far(&mut self, queue: usize) -> Option<(RxQueue, TxQueue)> {
        self.far.get_mut(queue)?.take()
    }
}

/// The harness's ends of one worker's queues, and the flows that go through them.
pub struct Feed {
    uplink: (RxQueue, TxQueue),
    host: (RxQueue, TxQueue),
    family: Family,
    kind: Kind,
    expect: Expect,
    flows: Walk,
    /// Added to the walk's numbers: flows that the table does not hold.
    offset: u32,
    checked: u64,
}

impl Feed {
    /// Flows `offset..offset + flows`, in no order.
    pub fn new(
        uplink: (RxQueue, TxQueue),
        host: (RxQueue, TxQueue),
        (family, kind, expect): (Family, Kind, Expect),
        flows: u32,
        offset: u32,
    ) -> Feed {
        let flows = Walk::new(flows);
        Feed { uplink, host, family, kind, expect, flows, offset, checked: 0 }
    }

    /// Passes over flows, so that two feeds are not in step.
    pub fn skip(&mut self, count: usize) {
        if let Some(last) = count.checked_sub(1) {
            self.flows.nth(last);
        }
    }

    /// Frames checked so far.
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// Makes the frames new, and puts them into the ring.
    pub fn put(&mut self, frames: &mut Frames) -> Result<()> {
        let length = frames::length(self.family);
        for (frame, number) in frames.iter_mut().zip(&mut self.flows) {
            fit(frame, length)?;
            frames::write(frame.data_mut(), number + self.offset, self.family, self.kind);
        }
        let count = frames.len();
        let sent = self.uplink.1.transmit(frames);
        ensure!(sent == count, "the ring took {sent} of {count} frames");
        Ok(())
    }

    /// How many frames have come out; they are added to `frames`.
    pub fn take(&mut self, frames: &mut Frames) -> usize {
        match self.expect {
            Expect::ToHost => self.host.0.receive(frames),
            Expect::Tunnelled(_) | Expect::Swapped => self.uplink.0.receive(frames),
        }
    }

    /// Checks some of a batch, and takes the outer headers off all.
    pub fn check(&mut self, frames: &mut Frames) -> Result<()> {
        ensure!(frames.len() == BATCH, "{} of {BATCH} frames came out", frames.len());
        let start = (self.checked as usize).wrapping_mul(7) % CHECKED;
        for frame in frames.iter().skip(start).step_by(CHECKED) {
            let data = frame.data();
            match self.expect {
                Expect::Tunnelled(Tunnel::Rewrite) => {
                    let v6 = ours::has_v6_locators(Tunnel::Rewrite, self.family);
                    let owner = if v6 { ours::owner_v6 } else { ours::owner };
                    frames::check_rewritten(data, self.family, owner)?;
                }
                Expect::Tunnelled(tunnel) => {
                    frames::check_tunnelled(data, self.family, tunnel, ours::LOCAL, ours::owner)?;
                }
                Expect::Swapped => {
                    frames::check(data, self.family, self.kind, true)?;
                }
                Expect::ToHost => {
                    frames::check(data, self.family, self.kind, false)?;
                }
            }
            self.checked += 1;
        }
        if let Expect::Tunnelled(tunnel) = self.expect {
            for frame in frames.iter_mut() {
                let trimmed = frame.trim_front(tunnel.overhead());
                ensure!(trimmed.is_some(), "a frame shorter than its outer header came out");
            }
        }
        Ok(())
    }
}

/// Gives a frame its length, at its end: the frames of the other family were longer or shorter.
fn fit(frame: &mut Mbuf, length: usize) -> Result<()> {
    let now = frame.len();
    let fits = if now < length {
        frame.append(length - now).is_some()
    } else {
        frame.trim_back(now - length).is_some()
    };
    ensure!(fits, "a frame of {now} bytes cannot have {length}");
    Ok(())
}
