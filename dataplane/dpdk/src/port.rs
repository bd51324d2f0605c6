//! Ports: found or attached as a `Device`, started as a `Port` with its queues, stopped and
//! closed with the last handle. Never touches a packet.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_dpdk_sys as sys;

use crate::eal::{Eal, EalInner};
use crate::error::{Error, c_string, check, strerror};
use crate::events::{Listener, Loss};
use crate::mbuf::HEADROOM;
use crate::mempool::Mempool;
use crate::port_info::{
    Checksums, DeviceInfo, Link, MacAddress, Offloads, PortInfo, PortStats, Refusal, Vlan,
};
use crate::queue::{RxQueue, TxQueue};
use crate::ring::Rings;

/// Ethernet header, one VLAN tag and the frame check sequence: what a frame is longer than
/// its MTU, bytes.
const FRAME_OVERHEAD: u32 = 14 + 4 + 4;
/// Linux's ENOTSUP.
const ENOTSUP: i32 = 95;

/// How to start a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortConfig {
    /// Receive queues, one per worker.
    pub rx_queues: u16,
    /// Transmit queues, one per worker.
    pub tx_queues: u16,
    /// Descriptors of each receive queue; the device may round it.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue; the device may round it.
    pub tx_descriptors: u16,
    /// Bytes of the largest IP packet, or `None` to leave it at what DPDK takes it to be.
    pub mtu: Option<u16>,
    /// Spread IP and TCP flows over the receive queues, if the device can.
    pub rss: bool,
    /// Receive frames to any unicast address.
    pub promiscuous: bool,
    /// Receive frames to any multicast address.
    pub all_multicast: bool,
    /// Have the device say by itself that its link has changed, if it can.
    pub link_interrupt: bool,
    /// Have the device do what it offers with 802.1Q tags and IPv4 checksums. A tag that it takes off
    /// stays with its mbuf, and whatever port sends that puts it back, or has its device do so.
    pub offloads: bool,
    /// The VLAN that the physical function has put this virtual one in, 1 to 4094: devices that show
    /// its tag take it off, whatever `offloads` says, and nobody puts it back.
    pub port_vlan: Option<u16>,
}

impl Default for PortConfig {
    /// One queue each way, 1,024 descriptors, RSS, promiscuous and all-multicast, no link interrupt
    /// and no offloads.
    fn default() -> Self {
        PortConfig {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1_024,
            tx_descriptors: 1_024,
            mtu: None,
            rss: true,
            promiscuous: true,
            all_multicast: true,
            link_interrupt: false,
            offloads: false,
            port_vlan: None,
        }
    }
}

/// A port that this process has claimed and not started. Dropping it gives the claim back,
/// and removes the device if it was attached.
#[derive(Debug)]
pub struct Device {
    inner: PortInner,
}

/// A started port. Clones are the same port; it is stopped and closed with the last clone
/// and queue.
#[derive(Clone, Debug)]
pub struct Port {
    inner: Arc<PortInner>,
    info: Arc<PortInfo>,
}

/// A claimed DPDK port, from claim to close.
#[derive(Debug)]
pub(crate) struct PortInner {
    id: u16,
    name: String,
    state: State,
    /// Present on what `Device::attach` or `ring_pair` brought; removed with its last port.
    attached: Option<Arc<Attached>>,
    /// Whether `start` switched promiscuous mode on. Kernel interfaces keep it otherwise.
    promiscuous: bool,
    /// What the receive queues allocate from.
    pools: Vec<Mempool>,
    /// Frames that came in several mbufs.
    scattered: AtomicU64,
    /// What a ring port's queues are made of.
    rings: Option<Arc<Rings>>,
    /// What the device says of itself, from before its start.
    listener: Option<Listener>,
    eal: Arc<EalInner>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Claimed,
    Configured,
    Started,
}

/// A device that leaves with its ports.
#[derive(Debug)]
struct Attached(*mut sys::rte_device);

// SAFETY: the pointer is only given to `rte_dev_remove`, once, under the lock of
// `EalInner::ports`.
unsafe impl Send for Attached {}
// SAFETY: as above; `&Attached` offers nothing.
unsafe impl Sync for Attached {}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: the device was found after it was attached, and every port that this
        // process uses of it is closed. The caller holds the lock of `EalInner::ports`.
        unsafe { sys::rte_dev_remove(self.0) };
    }
}

impl Device {
    /// Claims the port that DPDK knows by `name`: `net_tap0`, `0000:03:00.0`.
    ///
    /// # Errors
    /// [`Error::UnknownPort`] with the names there are; [`Error::PortInUse`].
    pub fn by_name(eal: &Eal, name: &str) -> Result<Device, Error> {
        let c_name = c_string(name)?;
        let mut ports = eal.inner.ports();
        let mut id = 0;
        // SAFETY: a NUL-terminated text and room for the answer.
        if unsafe { sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &raw mut id) } != 0 {
            return Err(unknown(name));
        }
        Device::claim(eal, &mut ports, id, None)
    }

    /// Claims the port with DPDK's index `id`.
    ///
    /// # Errors
    /// As [`by_name`](Self::by_name).
    pub fn by_index(eal: &Eal, id: u16) -> Result<Device, Error> {
        let mut ports = eal.inner.ports();
        // SAFETY: takes any number.
        if unsafe { sys::rte_eth_dev_is_valid_port(id) } == 0 {
            return Err(unknown(&id.to_string()));
        }
        Device::claim(eal, &mut ports, id, None)
    }

    /// The names of all ports of this process, claimed or not.
    #[must_use]
    pub fn names(eal: &Eal) -> Vec<String> {
        let _ports = eal.inner.ports();
        known_names()
    }

    /// Adds a device by its DPDK arguments, such as `net_af_xdp0,iface=eth1` or
    /// `0000:03:00.0`, and claims its ports, mostly one. It is removed again with them.
    ///
    /// # Errors
    /// [`Error::PortInUse`] when there is such a device, also one from the EAL's arguments;
    /// [`Error::Call`] when no driver takes it: the driver's reason is in its log lines.
    pub fn attach(eal: &Eal, arguments: &str) -> Result<Vec<Device>, Error> {
        let (name, _) = arguments.split_once(',').unwrap_or((arguments, ""));
        let (c_arguments, c_name) = (c_string(arguments)?, c_string(name)?);
        // Declared before the lock, to be dropped after it: a dropped device takes it.
        let mut devices = Vec::new();
        let mut ports = eal.inner.ports();
        // DPDK calls it a success to probe what is there already, and it is not ours.
        if !matching_ports(&c_name).is_empty() {
            let port = name.to_owned();
            return Err(Error::PortInUse { port });
        }
        // SAFETY: a NUL-terminated text that DPDK copies; the lock makes this the only
        // thread that adds a device.
        let code = unsafe { sys::rte_dev_probe(c_arguments.as_ptr()) };
        check("rte_dev_probe", arguments, code)?;

        let mut attached: Option<Arc<Attached>> = None;
        for id in matching_ports(&c_name) {
            let device = match &attached {
                Some(attached) => Arc::clone(attached),
                None => Arc::new(Attached(raw_info(id, arguments)?.device)),
            };
            attached = Some(Arc::clone(&device));
            devices.push(Device::claim(eal, &mut ports, id, Some(device))?);
        }
        if devices.is_empty() {
            return Err(unknown(arguments));
        }
        Ok(devices)
    }

    /// Claims a port that `rte_eth_from_rings` just made.
    pub(crate) fn from_rings(
        eal: &Eal,
        ports: &mut BTreeSet<u16>,
        id: u16,
        rings: Arc<Rings>,
    ) -> Result<Device, Error> {
        let attached = Arc::new(Attached(raw_info(id, "net_ring")?.device));
        let mut device = Device::claim(eal, ports, id, Some(attached))?;
        device.inner.rings = Some(rings);
        Ok(device)
    }

    fn claim(
        eal: &Eal,
        ports: &mut BTreeSet<u16>,
        id: u16,
        attached: Option<Arc<Attached>>,
    ) -> Result<Device, Error> {
        let name = name_of(id).unwrap_or_else(|| id.to_string());
        if !ports.insert(id) {
            return Err(Error::PortInUse { port: name });
        }
        Ok(Device {
            inner: PortInner {
                id,
                name,
                state: State::Claimed,
                attached,
                promiscuous: false,
                pools: Vec::new(),
                scattered: AtomicU64::new(0),
                rings: None,
                listener: None,
                eal: Arc::clone(&eal.inner),
            },
        })
    }

    /// The port's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What the device is and offers.
    ///
    /// # Errors
    /// [`Error::Call`] when the driver does not answer, as after a surprise removal.
    pub fn info(&self) -> Result<DeviceInfo, Error> {
        self.inner.device_info()
    }

    /// Configures and starts the port, with one mempool for each receive queue (which may be
    /// the same pool). The queues come in the order of their numbers. On an error the port
    /// is closed.
    ///
    /// # Errors
    /// [`Error::TooFewQueues`], [`Error::InvalidConfig`], [`Error::BufferTooSmall`] before
    /// anything is done; [`Error::Call`] when the driver refuses.
    pub fn start(
        self,
        config: &PortConfig,
        pools: &[Mempool],
    ) -> Result<(Port, Vec<RxQueue>, Vec<TxQueue>), Error> {
        let mut inner = self.inner;
        let device = inner.device_info()?;
        check_config(&device, config, pools)?;
        inner.pools = pools.to_vec();
        let info = inner.configure_and_start(device, config)?;

        let inner = Arc::new(inner);
        let (vlan, port_vlan) = (info.offloads.vlan, config.port_vlan);
        if vlan.strip {
            inner.eal.strip_tags();
        }
        // SAFETY: the port runs with these queues, and this is the one place that makes them.
        let rx = |queue| unsafe { RxQueue::new(Arc::clone(&inner), queue, vlan.strip, port_vlan) };
        let rx = (0..config.rx_queues).map(rx).collect();
        // SAFETY: as above.
        let tx = |queue| unsafe { TxQueue::new(Arc::clone(&inner), queue, vlan.insert) };
        let tx = (0..config.tx_queues).map(tx).collect();
        let info = Arc::new(info);
        Ok((Port { inner, info }, rx, tx))
    }
}

impl Port {
    /// The port's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// How it was started.
    #[must_use]
    pub fn info(&self) -> &PortInfo {
        &self.info
    }

    /// Why the device is lost, if it is: the port can only be closed then.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        self.inner.listener.as_ref().and_then(|listener| listener.events().loss())
    }

    /// How often the device said that its link has changed.
    #[must_use]
    pub fn link_changes(&self) -> u64 {
        self.inner.listener.as_ref().map_or(0, |listener| listener.events().link_changes())
    }

    /// Counters since the start.
    ///
    /// # Errors
    /// [`Error::Call`] when the driver does not answer.
    pub fn stats(&self) -> Result<PortStats, Error> {
        let mut raw = sys::rte_eth_stats::default();
        // Drivers keep what they read last, and threads ask at the same time.
        let _ports = self.inner.eal.ports();
        // SAFETY: a valid port and room for the answer.
        let code = unsafe { sys::rte_eth_stats_get(self.inner.id, &raw mut raw) };
        check("rte_eth_stats_get", &self.inner.name, code)?;
        Ok(PortStats {
            rx_packets: raw.ipackets,
            tx_packets: raw.opackets,
            rx_bytes: raw.ibytes,
            tx_bytes: raw.obytes,
            rx_missed: raw.imissed,
            rx_errors: raw.ierrors + self.inner.scattered.load(Ordering::Relaxed),
            tx_errors: raw.oerrors,
            rx_no_mbuf: raw.rx_nombuf,
        })
    }

    /// Replaces the list of multicast addresses that are received. Without all-multicast mode these
    /// are the only ones; drivers lose the list when the port stops.
    ///
    /// # Errors
    /// [`Error::Call`] when the driver refuses or cannot.
    pub fn set_multicast(&self, addresses: &[MacAddress]) -> Result<(), Error> {
        let mut raw: Vec<_> =
            addresses.iter().map(|address| sys::rte_ether_addr { addr_bytes: address.0 }).collect();
        let count = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        // SAFETY: a valid port and `count` addresses, which DPDK copies.
        let code =
            unsafe { sys::rte_eth_dev_set_mc_addr_list(self.inner.id, raw.as_mut_ptr(), count) };
        check("rte_eth_dev_set_mc_addr_list", &self.inner.name, code)
    }

    /// Receives frames to any multicast address.
    ///
    /// # Errors
    /// [`Error::Call`] when the driver refuses or cannot.
    pub fn receive_all_multicast(&self) -> Result<(), Error> {
        // SAFETY: a valid port.
        let code = unsafe { sys::rte_eth_allmulticast_enable(self.inner.id) };
        check("rte_eth_allmulticast_enable", &self.inner.name, code)
    }

    /// The link's state now, without waiting for a negotiation to end. `net_af_xdp` says "up"
    /// for ever; the interface's `/sys/class/net/NAME/carrier` knows better.
    ///
    /// # Errors
    /// [`Error::Call`] when the driver does not answer.
    pub fn link(&self) -> Result<Link, Error> {
        let mut raw = sys::rte_eth_link::default();
        // SAFETY: a valid port and room for the answer.
        let code = unsafe { sys::rte_eth_link_get_nowait(self.inner.id, &raw mut raw) };
        check("rte_eth_link_get_nowait", &self.inner.name, code)?;
        let speed = raw.link_speed;
        Ok(Link {
            up: raw.link_status() != 0,
            speed_mbps: (speed != 0 && speed != u32::MAX).then_some(speed),
            full_duplex: raw.link_duplex() != 0,
        })
    }

    /// Takes the link administratively up or down. On a TAP this is the interface's own
    /// up and down, and the kernel drops the routes through one that is down. Writing 0 or 1
    /// to its `/sys/class/net/NAME/carrier` keeps them.
    ///
    /// # Errors
    /// [`Error::Call`] when the driver refuses or cannot.
    pub fn set_link(&self, up: bool) -> Result<(), Error> {
        let (call, code) = if up {
            // SAFETY: a valid port.
            let code = unsafe { sys::rte_eth_dev_set_link_up(self.inner.id) };
            ("rte_eth_dev_set_link_up", code)
        } else {
            // SAFETY: a valid port.
            let code = unsafe { sys::rte_eth_dev_set_link_down(self.inner.id) };
            ("rte_eth_dev_set_link_down", code)
        };
        check(call, &self.inner.name, code)
    }
}

/// The RSS hash functions to ask for, and the receive offload that delivers the hash.
struct Rss {
    functions: u64,
    offload: u64,
}

impl PortInner {
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the driver may deliver a frame in several mbufs that nobody asked it for: virtio does,
    /// as its buffers can be merged. All others fill one, or drop.
    pub(crate) fn scatters(&self) -> bool {
        raw_info(self.id, &self.name).is_ok_and(|raw| text(raw.driver_name).contains("virtio"))
    }

    pub(crate) fn count_scattered(&self, frames: usize) {
        if frames > 0 {
            self.scattered.fetch_add(frames as u64, Ordering::Relaxed);
        }
    }

    /// Whether any port of this process takes tags off.
    pub(crate) fn may_lack_tags(&self) -> bool {
        self.eal.strips_tags()
    }

    fn check(&self, call: &'static str, code: i32) -> Result<(), Error> {
        check(call, &self.name, code)
    }

    fn device_info(&self) -> Result<DeviceInfo, Error> {
        let raw = raw_info(self.id, &self.name)?;
        let (rx, tx) = (raw.rx_offload_capa, raw.tx_offload_capa);
        // SAFETY: takes any number; -1 when the socket is not known.
        let socket = unsafe { sys::rte_eth_dev_socket_id(self.id) };
        Ok(DeviceInfo {
            name: self.name.clone(),
            index: self.id,
            driver: text(raw.driver_name),
            mac: self.mac()?,
            socket: u32::try_from(socket).ok(),
            max_rx_queues: raw.max_rx_queues,
            max_tx_queues: raw.max_tx_queues,
            min_mtu: raw.min_mtu,
            max_mtu: max_mtu(&raw),
            rss_supported: raw.flow_type_rss_offloads & WANTED_RSS != 0,
            rx_checksums: Checksums {
                ipv4: rx & sys::HOLDFAST_RX_OFFLOAD_IPV4_CKSUM != 0,
                tcp: rx & sys::HOLDFAST_RX_OFFLOAD_TCP_CKSUM != 0,
                udp: rx & sys::HOLDFAST_RX_OFFLOAD_UDP_CKSUM != 0,
            },
            tx_checksums: Checksums {
                ipv4: tx & sys::HOLDFAST_TX_OFFLOAD_IPV4_CKSUM != 0,
                tcp: tx & sys::HOLDFAST_TX_OFFLOAD_TCP_CKSUM != 0,
                udp: tx & sys::HOLDFAST_TX_OFFLOAD_UDP_CKSUM != 0,
            },
            vlan: Vlan {
                strip: rx & sys::HOLDFAST_RX_OFFLOAD_VLAN_STRIP != 0,
                insert: tx & sys::HOLDFAST_TX_OFFLOAD_VLAN_INSERT != 0,
            },
            link_interrupt: flags(&raw) & sys::HOLDFAST_DEV_INTR_LSC != 0,
        })
    }

    fn mac(&self) -> Result<MacAddress, Error> {
        let mut raw = sys::rte_ether_addr::default();
        // SAFETY: a valid port and room for the answer.
        let code = unsafe { sys::rte_eth_macaddr_get(self.id, &raw mut raw) };
        self.check("rte_eth_macaddr_get", code)?;
        Ok(MacAddress(raw.addr_bytes))
    }

    fn mtu(&self) -> Result<u16, Error> {
        let mut mtu = 0;
        // SAFETY: a valid port and room for the answer.
        let code = unsafe { sys::rte_eth_dev_get_mtu(self.id, &raw mut mtu) };
        self.check("rte_eth_dev_get_mtu", code)?;
        Ok(mtu)
    }

    fn configure_and_start(
        &mut self,
        device: DeviceInfo,
        config: &PortConfig,
    ) -> Result<PortInfo, Error> {
        let mut refused = Vec::new();
        let rss = self.rss(config, &mut refused)?;
        if config.link_interrupt && !device.link_interrupt {
            refused.push(Refusal::LinkInterrupt);
        }
        let offloads = Offloads {
            ipv4_checksum: config.offloads && device.tx_checksums.ipv4,
            vlan: Vlan {
                strip: device.vlan.strip && (config.offloads || config.port_vlan.is_some()),
                insert: device.vlan.insert && config.offloads,
            },
        };
        self.configure(config, &rss, offloads)?;
        let (rx_descriptors, tx_descriptors) = self.set_up_queues(config)?;
        if let Some(mtu) = config.mtu {
            self.set_mtu(mtu, &mut refused)?;
        }
        self.listener = Some(Listener::new(self.id, raw_info(self.id, &self.name)?.device));
        // SAFETY: a configured port whose queues are set up.
        let code = unsafe { sys::rte_eth_dev_start(self.id) };
        self.check("rte_eth_dev_start", code)?;
        self.state = State::Started;
        self.open_filters(config, &mut refused);
        Ok(PortInfo {
            device,
            rx_queues: config.rx_queues,
            tx_queues: config.tx_queues,
            rx_descriptors,
            tx_descriptors,
            mtu: self.mtu()?,
            rss: rss.functions != 0,
            offloads,
            refused,
        })
    }

    /// What of RSS the device offers and the configuration asks for. With one receive queue
    /// there is nothing to spread, and a device without RSS has refused nothing.
    fn rss(&self, config: &PortConfig, refused: &mut Vec<Refusal>) -> Result<Rss, Error> {
        let raw = raw_info(self.id, &self.name)?;
        let functions = if config.rss { raw.flow_type_rss_offloads & WANTED_RSS } else { 0 };
        if config.rss && functions == 0 && config.rx_queues > 1 {
            refused.push(Refusal::Rss);
        }
        let mut offload = 0;
        if functions != 0 {
            offload = raw.rx_offload_capa & sys::HOLDFAST_RX_OFFLOAD_RSS_HASH;
            if offload == 0 {
                refused.push(Refusal::RssHash);
            }
        }
        Ok(Rss { functions, offload })
    }

    fn configure(
        &mut self,
        config: &PortConfig,
        rss: &Rss,
        offloads: Offloads,
    ) -> Result<(), Error> {
        let offered = flags(&raw_info(self.id, &self.name)?);
        let mut raw = sys::rte_eth_conf::default();
        let has = |flag: u32| u32::from(offered & flag != 0);
        if config.link_interrupt {
            raw.intr_conf.set_lsc(has(sys::HOLDFAST_DEV_INTR_LSC));
        }
        raw.intr_conf.set_rmv(has(sys::HOLDFAST_DEV_INTR_RMV));
        // 0 lets DPDK choose.
        raw.rxmode.mtu = config.mtu.map_or(0, u32::from);
        let chosen = |is_used: bool, flag: u64| if is_used { flag } else { 0 };
        raw.rxmode.offloads =
            rss.offload | chosen(offloads.vlan.strip, sys::HOLDFAST_RX_OFFLOAD_VLAN_STRIP);
        raw.txmode.offloads = chosen(offloads.ipv4_checksum, sys::HOLDFAST_TX_OFFLOAD_IPV4_CKSUM)
            | chosen(offloads.vlan.insert, sys::HOLDFAST_TX_OFFLOAD_VLAN_INSERT);
        if rss.functions != 0 {
            raw.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            raw.rx_adv_conf.rss_conf.rss_hf = rss.functions;
        }
        // From here on the port must be closed, even when this call fails half-way.
        self.state = State::Configured;
        let (rx, tx) = (config.rx_queues, config.tx_queues);
        // SAFETY: a valid, stopped port; DPDK copies the configuration, whose pointers are
        // null.
        let code = unsafe { sys::rte_eth_dev_configure(self.id, rx, tx, &raw const raw) };
        self.check("rte_eth_dev_configure", code)
    }

    /// Returns the descriptors of each receive and transmit queue.
    fn set_up_queues(&self, config: &PortConfig) -> Result<(u16, u16), Error> {
        let (mut rx, mut tx) = (config.rx_descriptors, config.tx_descriptors);
        // SAFETY: a valid port and room for the answers.
        let code =
            unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.id, &raw mut rx, &raw mut tx) };
        self.check("rte_eth_dev_adjust_nb_rx_tx_desc", code)?;

        // SAFETY: takes any number.
        let socket = unsafe { sys::rte_eth_dev_socket_id(self.id) }.cast_unsigned();
        let default = std::ptr::null();
        for (queue, pool) in (0..config.rx_queues).zip(&self.pools) {
            let raw = pool.as_ptr();
            // SAFETY: a configured port, a queue below its count, the driver's defaults for
            // NULL, and a pool that `self` keeps until the port is closed.
            let code =
                unsafe { sys::rte_eth_rx_queue_setup(self.id, queue, rx, socket, default, raw) };
            if code < 0 {
                return Err(self.rx_queue_error(queue, code, pool));
            }
        }
        let default = std::ptr::null();
        for queue in 0..config.tx_queues {
            // SAFETY: as above.
            let code = unsafe { sys::rte_eth_tx_queue_setup(self.id, queue, tx, socket, default) };
            self.check("rte_eth_tx_queue_setup", code)?;
        }
        Ok((rx, tx))
    }

    /// Drivers do not say so when a receive queue fails for want of mbufs.
    fn rx_queue_error(&self, queue: u16, code: i32, pool: &Mempool) -> Error {
        Error::RxQueue {
            port: self.name.clone(),
            queue,
            reason: strerror(code.saturating_abs()),
            pool: pool.name().to_owned(),
            available: pool.available(),
        }
    }

    /// Tells the device its MTU; some have learned it with the configuration already.
    fn set_mtu(&self, mtu: u16, refused: &mut Vec<Refusal>) -> Result<(), Error> {
        // SAFETY: a configured port.
        let code = unsafe { sys::rte_eth_dev_set_mtu(self.id, mtu) };
        if code == -ENOTSUP {
            refused.push(Refusal::Mtu(strerror(ENOTSUP)));
            return Ok(());
        }
        self.check("rte_eth_dev_set_mtu", code)
    }

    fn open_filters(&mut self, config: &PortConfig, refused: &mut Vec<Refusal>) {
        if config.promiscuous {
            // SAFETY: a valid port.
            let code = unsafe { sys::rte_eth_promiscuous_enable(self.id) };
            self.promiscuous = code == 0;
            if code != 0 {
                refused.push(Refusal::Promiscuous(strerror(code.saturating_abs())));
            }
        }
        if config.all_multicast {
            // SAFETY: a valid port.
            let code = unsafe { sys::rte_eth_allmulticast_enable(self.id) };
            // Promiscuous, it receives them all the same.
            if code != 0 && !self.promiscuous {
                refused.push(Refusal::AllMulticast(strerror(code.saturating_abs())));
            }
        }
    }
}

impl Drop for PortInner {
    fn drop(&mut self) {
        // DPDK has logged what goes wrong here, and there is nothing left to do about it.
        let mut ports = self.eal.ports();
        if self.promiscuous {
            // SAFETY: a valid port.
            unsafe { sys::rte_eth_promiscuous_disable(self.id) };
        }
        if self.state == State::Started {
            // SAFETY: queues hold this object, so none is in use.
            unsafe { sys::rte_eth_dev_stop(self.id) };
        }
        // It says nothing more that anybody hears.
        drop(self.listener.take());
        if self.state != State::Claimed {
            // SAFETY: a stopped port that nobody uses. Its pools are dropped afterwards.
            unsafe { sys::rte_eth_dev_close(self.id) };
        }
        drop(self.attached.take());
        ports.remove(&self.id);
    }
}

/// IP and TCP, so that a flow stays on one queue; UDP, so that tunnels spread by their
/// entropy.
const WANTED_RSS: u64 = sys::HOLDFAST_RSS_IP | sys::HOLDFAST_RSS_TCP | sys::HOLDFAST_RSS_UDP;

fn check_config(device: &DeviceInfo, config: &PortConfig, pools: &[Mempool]) -> Result<(), Error> {
    let port = || device.name.clone();
    let (rx, tx) = (config.rx_queues, config.tx_queues);
    let directions =
        [("receive", rx, device.max_rx_queues), ("transmit", tx, device.max_tx_queues)];
    for (direction, wanted, available) in directions {
        if wanted == 0 {
            let why = format!("it needs at least one {direction} queue");
            return Err(Error::InvalidConfig { port: port(), why });
        }
        if wanted > available {
            return Err(Error::TooFewQueues { port: port(), direction, wanted, available });
        }
    }
    if pools.len() != usize::from(rx) {
        let why = format!("{rx} receive queues need {rx} mempools, not {}", pools.len());
        return Err(Error::InvalidConfig { port: port(), why });
    }
    let (smallest, largest) = (device.min_mtu, device.max_mtu);
    if let Some(mtu) = config.mtu.filter(|mtu| !(smallest..=largest).contains(mtu)) {
        let why = format!("MTU {mtu} is not within the device's {smallest} to {largest} bytes");
        return Err(Error::InvalidConfig { port: port(), why });
    }
    let mtu = config.mtu.unwrap_or(largest.min(1_500));
    let frame_bytes = u32::from(mtu) + FRAME_OVERHEAD;
    for pool in pools {
        let room_bytes = u32::from(pool.data_room());
        if frame_bytes > room_bytes {
            return Err(Error::BufferTooSmall { port: port(), mtu, frame_bytes, room_bytes });
        }
    }
    Ok(())
}

fn raw_info(id: u16, name: &str) -> Result<sys::rte_eth_dev_info, Error> {
    let mut raw = sys::rte_eth_dev_info::default();
    // SAFETY: takes any number, and there is room for the answer.
    let code = unsafe { sys::rte_eth_dev_info_get(id, &raw mut raw) };
    check("rte_eth_dev_info_get", name, code)?;
    Ok(raw)
}

/// `RTE_ETH_DEV_…` flags of a device.
fn flags(raw: &sys::rte_eth_dev_info) -> u32 {
    if raw.dev_flags.is_null() {
        return 0;
    }
    // SAFETY: points into DPDK's own data of a valid port.
    unsafe { *raw.dev_flags }
}

/// The largest MTU that DPDK accepts for the device. Drivers such as TAP leave `max_mtu` open
/// and limit the frame: header and frame check sequence, 18 bytes, then count with it.
fn max_mtu(raw: &sys::rte_eth_dev_info) -> u16 {
    if raw.max_mtu != u16::MAX {
        return raw.max_mtu;
    }
    u16::try_from(raw.max_rx_pktlen.saturating_sub(18)).unwrap_or(u16::MAX)
}

/// The ports of the device `name`. No arguments with it: the iterator would take a `mac=`
/// among them for a condition.
fn matching_ports(name: &CStr) -> Vec<u16> {
    // SAFETY: plain integers and pointers, for which zero is a value.
    let mut iterator: sys::rte_dev_iterator = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated text that outlives the iterator.
    if unsafe { sys::rte_eth_iterator_init(&raw mut iterator, name.as_ptr()) } != 0 {
        return Vec::new();
    }
    let mut ids = Vec::new();
    loop {
        // SAFETY: initialised above; at its end the iterator frees itself.
        let id = unsafe { sys::rte_eth_iterator_next(&raw mut iterator) };
        if u32::from(id) >= sys::RTE_MAX_ETHPORTS {
            return ids;
        }
        ids.push(id);
    }
}

fn unknown(wanted: &str) -> Error {
    Error::UnknownPort { wanted: wanted.to_owned(), known: known_names() }
}

fn known_names() -> Vec<String> {
    let mut names = Vec::new();
    let mut id = 0;
    loop {
        // SAFETY: takes any number.
        let found = unsafe { sys::rte_eth_find_next(id) };
        if u32::from(found) >= sys::RTE_MAX_ETHPORTS {
            return names;
        }
        names.extend(name_of(found));
        id = found + 1;
    }
}

fn name_of(id: u16) -> Option<String> {
    let mut name = [0 as c_char; sys::RTE_ETH_NAME_MAX_LEN as usize];
    // SAFETY: room for the longest name DPDK allows, its NUL included.
    let code = unsafe { sys::rte_eth_dev_get_name_by_port(id, name.as_mut_ptr()) };
    (code == 0).then(|| text(name.as_ptr()))
}

/// A copy of a text of DPDK's; empty for NULL.
fn text(raw: *const c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: DPDK's names and our own buffers are NUL-terminated.
    let text = unsafe { CStr::from_ptr(raw) };
    text.to_string_lossy().into_owned()
}

const _: () = assert!(HEADROOM >= 64, "an encapsulation fits the headroom");
