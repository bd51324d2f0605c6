//! Safe ownership over DPDK: the EAL, mempools, mbufs, ports and their queues. Knows
//! nothing of packets' contents, of sessions or of configuration files.
//!
//! ```no_run
//! use arrayvec::ArrayVec;
//! use holdfast_dpdk::{Device, Eal, Mbuf, Mempool, MempoolConfig, PortConfig};
//!
//! # fn main() -> Result<(), holdfast_dpdk::Error> {
//! let eal = Eal::init(&["--no-huge", "-m64", "--no-pci", "--no-shconf"])?;
//! let pool = Mempool::new(&eal, "example", &MempoolConfig::default())?;
//! let device = Device::attach(&eal, "net_tap0,iface=tap0")?.remove(0);
//! let (port, mut rx, mut tx) = device.start(&PortConfig::default(), &[pool])?;
//! println!("{}", port.info());
//! let mut burst = ArrayVec::<Mbuf, 32>::new();
//! rx[0].receive(&mut burst);
//! tx[0].transmit(&mut burst); // what stays in `burst` was not sent
//! # Ok(())
//! # }
//! ```
//!
//! # Ownership
//!
//! [`Eal`] comes first and is started once per process. Everything else is made with it and
//! keeps it alive. A [`Device`] is a port that this process has claimed; [`Device::start`]
//! turns it into a [`Port`] and its [`RxQueue`]s and [`TxQueue`]s, one of each per worker.
//! The port is stopped and closed when the last of these is dropped. An [`Mbuf`] has one
//! owner: it is sent, or it goes back to its [`Mempool`] when dropped.
//!
//! # EAL arguments
//!
//! - Without huge pages: `--no-huge -m MEGABYTES --no-shconf`. Each mbuf then takes a page of
//!   4 KiB, so `-m` is at least the number of mbufs / 250, and all of it is resident.
//! - With huge pages: `--in-memory`, which needs no hugetlbfs mount and takes pages as pools
//!   are made (2.4 KiB per mbuf of 2,048 bytes). DPDK refuses it together with `--no-huge`.
//! - Both leave no files behind. Without `--no-shconf` or `--in-memory`, `--file-prefix NAME`
//!   must differ for every process on the host, network namespaces or not.
//! - `--no-pci` when no physical NIC is used; else `-a 0000:03:00.0` for each one that is:
//!   without either, DPDK takes every NIC that is bound to a user-space driver.
//! - `--lcores 0@(0-1)`: one EAL lcore, number 0, that may run on CPUs 0 and 1. The thread
//!   that calls [`Eal::init`] is that lcore. With no such argument DPDK starts a thread for
//!   every CPU and pins the caller to the first one. Workers are the caller's own threads,
//!   made known with [`Eal::register_thread`].
//! - `--no-telemetry`: no telemetry thread and socket.
//! - Logs go to stderr and syslog. Of several `--log-level=PATTERN:LEVEL` the *first* that
//!   matches a component decides: `--log-level=pmd.net.tap:critical --log-level=*:warning`.
//!
//! # Devices
//!
//! Devices can be named among those arguments (`--vdev`) or, better, attached afterwards with
//! [`Device::attach`], whose errors name the device.
//!
//! - `net_af_xdp0,iface=eth1`: takes frames from a kernel interface's receive queue 0. Each
//!   queue needs 2,048 mbufs for itself, and as many as it has transmit descriptors. Both
//!   ports of a bump should share one pool, else every frame is copied once more.
//!   `queue_count=N` needs an interface with combined channels; on a veth, which has none,
//!   attach one device per queue instead: `net_af_xdp1,iface=eth1,start_queue=1`. Set
//!   `LIBXDP_SKIP_DISPATCHER=1` in the environment, so that nothing is pinned in a BPF file
//!   system. A process that is killed leaves its XDP program on the interface; it passes all
//!   frames to the kernel, and the next process takes it over.
//! - `net_tap0,iface=tap0,mac=02:00:00:00:00:01`: makes a kernel interface, MTU at most 1,504.
//!   It goes with the process, with its addresses and routes; with `,persist` it stays,
//!   without carrier, and the next process takes it over. While a [`HeldTap`] of another process
//!   holds it, it keeps its carrier as well. Unknown keys make the driver ignore
//!   all of them, the name included.

mod cpu;
mod eal;
mod error;
mod events;
mod mbuf;
mod memory;
mod mempool;
mod port;
mod port_info;
mod queue;
mod ring;
mod tap;
mod thread;

pub use cpu::{prefetch, tsc};
pub use eal::{Eal, version};
pub use error::Error;
pub use events::Loss;
pub use mbuf::{HEADROOM, Mbuf};
pub use memory::{LINE_WORDS, Line, Lines, matching_words};
pub use mempool::{Mempool, MempoolConfig};
pub use port::{Device, Port, PortConfig};
pub use port_info::{
    Checksums, DeviceInfo, Link, MacAddress, Offloads, PortInfo, PortStats, Refusal, Vlan,
};
pub use queue::{RxQueue, TxQueue};
pub use ring::ring_pair;
pub use std::hint::spin_loop as pause;
pub use tap::HeldTap;
pub use thread::ThreadRegistration;
