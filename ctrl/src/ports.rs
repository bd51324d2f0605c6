//! Turns the devices of the configuration into started DPDK ports, with a queue pair of each per
//! worker. Never touches a packet.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use holdfast_dataplane::port::DpdkPort;
use holdfast_dataplane::switch::Switch;
use holdfast_dataplane::worker::PortLimits;
use holdfast_dpdk::{self as dpdk, Eal, HeldTap, Loss, Mempool, MempoolConfig, Port, PortConfig};
use rustix::thread::{CpuSet, sched_getaffinity};
use tracing::{info, warn};

use crate::config::{Config, Device, HugePages, MacAddress, NEXT_HOPS_MAX};
use crate::multicast::MulticastRelay;
use crate::uplink::{self, DeviceLost, Link, Progress};

/// The EAL's arguments: ours, then the configuration's own.
///
/// # Errors
/// When huge pages are demanded and there are too few, or the system does not say which CPUs
/// we may run on.
pub fn eal_arguments(config: &Config) -> anyhow::Result<Vec<String>> {
    let mut arguments = vec![
        format!("--file-prefix={}", config.dpdk.file_prefix),
        // One lcore that may run on any CPU: workers are threads of ours and pin themselves.
        format!("--lcores=0@({})", allowed_cpus()?),
        // The first that matches counts. The TAP driver calls it an error that it need not
        // start its signal handling.
        "--log-level=pmd.net.tap:critical".to_owned(),
        "--log-level=*:warning".to_owned(),
        "-m".to_owned(),
        config.dpdk.memory_mib.to_string(),
    ];
    let huge_pages = use_huge_pages(config)?;
    arguments.push(if huge_pages { "--in-memory" } else { "--no-huge" }.to_owned());
    let pci: Vec<_> = [&config.uplink.device, &config.host_port.device]
        .into_iter()
        .filter_map(|device| match device {
            Device::Pci(address) => Some(format!("--allow={address}")),
            _ => None,
        })
        .collect();
    if pci.is_empty() {
        arguments.push("--no-pci".to_owned());
    }
    arguments.extend(pci);
    arguments.extend(config.dpdk.eal_args.iter().cloned());
    Ok(arguments)
}

fn allowed_cpus() -> anyhow::Result<String> {
    let allowed = sched_getaffinity(None).context("reading the CPU affinity")?;
    let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    Ok(cpus.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(","))
}

fn use_huge_pages(config: &Config) -> anyhow::Result<bool> {
    let free_mib = free_huge_pages_mib();
    let wanted_mib = u64::from(config.dpdk.memory_mib);
    Ok(match config.dpdk.huge_pages {
        HugePages::Off => false,
        HugePages::Auto => free_mib >= wanted_mib,
        HugePages::On if free_mib >= wanted_mib => true,
        HugePages::On => bail!(
            "dpdk.huge_pages is \"on\", but {free_mib} MiB of huge pages are free and \
             dpdk.memory_mib asks for {wanted_mib}: echo {} > /proc/sys/vm/nr_hugepages",
            wanted_mib.div_ceil(2)
        ),
    })
}

/// MiB in free huge pages of the default size; 0 when the kernel does not say.
fn free_huge_pages_mib() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    value("HugePages_Free:") * value("Hugepagesize:") / 1024
}

/// The DPDK ports of a server, started. An AF_XDP interface is one port per queue, every other
/// device is one port.
#[derive(Debug)]
pub struct Ports {
    /// The uplink.
    pub uplink: Vec<Port>,
    /// The host port; none when it is behind the NIC's switch.
    pub host_port: Vec<Port>,
    /// The NIC's switch, when the host is behind it.
    pub switch: Option<Switch>,
    /// Each worker's packet buffers.
    pub mempools: Vec<Mempool>,
    /// The uplink's link.
    pub link: Link,
    host_mac: Option<MacAddress>,
    uplink_interface: Option<PathBuf>,
    is_uplink_pci: bool,
}

/// A worker's queue pairs.
#[derive(Debug)]
pub struct QueuePairs {
    /// Of the uplink.
    pub uplink: DpdkPort,
    /// Of the host port; none when it is behind the NIC's switch.
    pub host_port: Option<DpdkPort>,
}

impl Ports {
    /// Starts both, and gives each worker its queue pairs.
    ///
    /// # Errors
    /// When a device is missing, has too few queues, or DPDK refuses.
    pub fn start(eal: &Eal, config: &Config) -> anyhow::Result<(Ports, Vec<QueuePairs>)> {
        let workers = u16::try_from(config.workers.cores.len())?;
        let pools = (0..workers)
            .map(|worker| mempool(eal, config, worker))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let is_switch = config.host_port.device == Device::Switch;
        let port_config = PortConfig {
            rx_descriptors: config.uplink.rx_descriptors,
            tx_descriptors: config.uplink.tx_descriptors,
            promiscuous: config.uplink.promiscuous,
            // What is asked for one by one instead: see `MulticastRelay`, and `switch` below.
            all_multicast: !is_switch && MulticastRelay::new(config).is_none(),
            ..PortConfig::default()
        };
        let is_interface = matches!(config.uplink.device, Device::Interface(_));
        // Of an interface of its own the kernel knows best.
        let link_interrupt = !is_interface;
        let mtu = config.uplink.mtu_for(&config.uplink.device);
        let offloads = config.uplink.offloads;
        let port_vlan = config.uplink.port_vlan;
        let uplink_config = PortConfig { link_interrupt, mtu, offloads, port_vlan, ..port_config };
        let uplink = &config.uplink.device;
        let (uplink_ports, uplink_queues) = start(eal, uplink, 0, None, &uplink_config, &pools)
            .with_context(|| format!("starting the uplink {uplink}"))?;
        let host = &config.host_port.device;
        let (switch, (host_ports, host_queues)) = match host {
            Device::Switch => (Some(switch(config, &uplink_ports)?), (Vec::new(), Vec::new())),
            _ => {
                let mtu = config.uplink.mtu_for(host);
                let port_config = PortConfig { mtu, ..port_config };
                let started = start(eal, host, 1, Some(host_mac(config)), &port_config, &pools);
                (None, started.with_context(|| format!("starting the host port {host}"))?)
            }
        };
        for (role, ports) in [("uplink", &uplink_ports), ("host port", &host_ports)] {
            for port in ports {
                info!("{role}: {}", port.info());
                for refusal in port.info().lacks() {
                    warn!("{role}: {} has {refusal}", port.name());
                }
            }
        }
        let uplink_interface = match uplink {
            Device::Interface(name) => Some(interface_path(name)),
            _ => None,
        };
        let mut host_queues = host_queues.into_iter();
        let queues = uplink_queues.into_iter();
        let queues = queues.map(|uplink| QueuePairs { uplink, host_port: host_queues.next() });
        let queues = queues.collect();
        let (uplink, host_port) = (uplink_ports, host_ports);
        let carrier = uplink_interface.as_ref().map(|interface| interface.join("carrier"));
        let link = Link::new(carrier);
        link.look(&uplink, Instant::now());
        let mempools = pools;
        let is_uplink_pci = matches!(config.uplink.device, Device::Pci(_));
        let is_own_interface = matches!(host, Device::Tap { .. } | Device::Vhost { .. });
        let host_mac = is_own_interface.then(|| host_mac(config));
        let ports = Ports {
            uplink,
            host_port,
            switch,
            mempools,
            link,
            host_mac,
            uplink_interface,
            is_uplink_pci,
        };
        Ok((ports, queues))
    }

    /// Whether the uplink's link is up, as of the last look.
    #[must_use]
    pub fn is_uplink_up(&self) -> bool {
        self.link.is_up()
    }

    /// Looks at the uplink's link and at all devices. Returns whether the link is up.
    ///
    /// # Errors
    /// [`DeviceLost`] when a device is.
    pub fn look(&self, now: Instant) -> Result<bool, DeviceLost> {
        uplink::is_there("uplink", &self.uplink)?;
        uplink::is_there("host port", &self.host_port)?;
        Ok(self.link.look(&self.uplink, now))
    }

    /// Looks whether the uplink's device sends what workers have handed over, `handed` frames since
    /// the start. Only of a PCI device: another one's counters may be of any kind.
    ///
    /// # Errors
    /// [`DeviceLost`] when it does not.
    pub fn check_progress(
        &self,
        progress: &mut Progress,
        handed: u64,
        now: Instant,
    ) -> Result<(), DeviceLost> {
        let [port] = &self.uplink[..] else { return Ok(()) };
        if !self.is_uplink_pci || !progress.is_time(now) {
            return Ok(());
        }
        let Ok(stats) = port.stats() else { return Ok(()) };
        if !progress.is_stuck(handed, stats.tx_packets, self.is_uplink_up(), now) {
            return Ok(());
        }
        let device = port.name().to_owned();
        Err(DeviceLost { role: "uplink", device, loss: Loss::Stuck })
    }

    /// What they carry.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn limits(&self) -> anyhow::Result<PortLimits> {
        let uplink_mtu = self.uplink_mtu()?;
        let host_mtu = self.host_port.iter().map(|port| port.info().mtu).min();
        Ok(PortLimits {
            uplink_mtu,
            // Behind the NIC's switch it is the uplink's.
            host_mtu: host_mtu.map_or(uplink_mtu, usize::from),
            offloads_checksum: self.uplink.iter().all(|port| port.info().offloads.ipv4_checksum),
            host_mac: self.host_mac.map(|mac| mac.0),
        })
    }

    /// Bytes of IP packet that the uplink takes. Of an AF_XDP interface the kernel knows, not
    /// DPDK.
    ///
    /// # Errors
    /// When the kernel does not say.
    fn uplink_mtu(&self) -> anyhow::Result<usize> {
        match &self.uplink_interface {
            Some(interface) => {
                let path = interface.join("mtu");
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                Ok(text.trim().parse()?)
            }
            None => {
                let smallest = self.uplink.iter().map(|port| port.info().mtu).min();
                Ok(smallest.context("there is no uplink")?.into())
            }
        }
    }
}

/// The stations that the NIC's switch tells apart. Solicitations for our next hops come to multicast
/// addresses, which the uplink's function is told to receive.
fn switch(config: &Config, uplink: &[Port]) -> anyhow::Result<Switch> {
    let ours = uplink.first().context("there is no uplink")?.info().device.mac;
    let kernel = config.host_port.mac.context("host_port.mac is missing")?;
    ensure!(
        ours.0 != kernel.0,
        "host_port.mac = \"{kernel}\" is the uplink's own address: expected that of the kernel's \
         function of the same NIC (ip link)"
    );
    const { assert!(NEXT_HOPS_MAX == holdfast_dataplane::switch::NEXT_HOPS_MAX) };
    let next_hops = config.host_port.next_hops.iter().copied().take(NEXT_HOPS_MAX).collect();
    let switch = Switch { ours: ours.0, kernel: kernel.0, next_hops };
    let groups: Vec<_> = switch.groups().into_iter().map(dpdk::MacAddress).collect();
    if !groups.is_empty() {
        for port in uplink {
            let Err(refused) = port.set_multicast(&groups) else { continue };
            if let Err(all_refused) = port.receive_all_multicast() {
                warn!(
                    "{refused}; {all_refused}: Neighbour Solicitations for our next hops may not \
                     come by, and the fabric not find them"
                );
            }
        }
    }
    info!("the host is {kernel} behind the NIC's switch; ours is {ours}");
    Ok(switch)
}

/// Holds the TAP that is the host port, apart from the daemon: while that is started again, the TAP
/// keeps its carrier, and a routing daemon behind it notices nothing. Makes the TAP when it is not
/// there.
///
/// # Errors
/// When the host port is no TAP, or the kernel refuses.
pub fn hold_host_port(config: &Config) -> anyhow::Result<HeldTap> {
    let Device::Tap { name } = &config.host_port.device else {
        bail!("host_port.device is {}: only a TAP is held", config.host_port.device);
    };
    Ok(HeldTap::hold(name, dpdk::MacAddress(host_mac(config).0))?)
}

/// Passes the uplink's carrier on to the interface that we make for the host port: a routing daemon behind it
/// sees a failed link at once, and addresses and routes stay where they are.
#[derive(Debug)]
pub struct CarrierRelay {
    host_port: PathBuf,
    up: bool,
}

impl CarrierRelay {
    /// A relay for this configuration; `None` when its host port is no interface that we make.
    #[must_use]
    pub fn new(config: &Config) -> Option<CarrierRelay> {
        let (Device::Tap { name } | Device::Vhost { name }) = &config.host_port.device else {
            return None;
        };
        Some(CarrierRelay { host_port: interface_path(name).join("carrier"), up: true })
    }

    /// Passes a change on: whether the uplink is up.
    ///
    /// # Errors
    /// When the kernel does not take the interface's carrier; said once per change.
    pub fn relay(&mut self, up: bool) -> anyhow::Result<()> {
        if up == self.up {
            return Ok(());
        }
        // Tried once per change: an error that stays must not fill the log.
        self.up = up;
        std::fs::write(&self.host_port, if up { "1" } else { "0" })
            .with_context(|| format!("writing {}", self.host_port.display()))?;
        info!("the host port's carrier is {}, as the uplink's", if up { "up" } else { "down" });
        Ok(())
    }
}

/// One pool per worker for both ports: what came in by one goes out by the other, and AF_XDP
/// sends without a copy what lies in its own pool.
fn mempool(eal: &Eal, config: &Config, worker: u16) -> anyhow::Result<Mempool> {
    let mbufs = config.dpdk.mbufs_per_worker;
    let data_room = config.uplink.mbuf_room();
    let pool = MempoolConfig { mbufs, data_room, ..MempoolConfig::default() };
    Mempool::new(eal, &format!("worker{worker}"), &pool).with_context(|| {
        format!(
            "{mbufs} mbufs of {data_room} bytes for each worker (dpdk.mbufs_per_worker) do not fit {} MiB \
             (dpdk.memory_mib)",
            config.dpdk.memory_mib
        )
    })
}

/// Starts a device with a queue pair per pool. `role` tells the devices of a server apart.
fn start(
    eal: &Eal,
    device: &Device,
    role: u16,
    mac: Option<MacAddress>,
    config: &PortConfig,
    pools: &[Mempool],
) -> anyhow::Result<(Vec<Port>, Vec<DpdkPort>)> {
    let workers = u16::try_from(pools.len())?;
    if let Device::Interface(name) = device {
        check_queues(name, workers)?;
    }
    let vdevs = device.eal_vdevs(role, workers, mac);
    let claimed = if vdevs.is_empty() {
        vec![dpdk::Device::by_name(eal, &device.port_name(role.into()))?]
    } else {
        let attach = |vdev: &String| Ok(dpdk::Device::attach(eal, vdev)?.remove(0));
        vdevs.iter().map(attach).collect::<anyhow::Result<Vec<_>>>()?
    };
    let queues_each = workers / u16::try_from(claimed.len())?;
    let config = PortConfig { rx_queues: queues_each, tx_queues: queues_each, ..*config };
    let (mut ports, mut pairs) = (Vec::new(), Vec::new());
    for (device, pools) in claimed.into_iter().zip(pools.chunks(queues_each.into())) {
        let (port, rx, tx) = device.start(&config, pools)?;
        ports.push(port);
        let queues = rx.into_iter().zip(tx);
        pairs.extend(queues.map(|(receive, transmit)| DpdkPort { receive, transmit }));
    }
    Ok((ports, pairs))
}

/// The TAP's Ethernet address: the configured one, or one made of the locator. It is the same
/// after every start, so that neighbours need not learn a new one.
fn host_mac(config: &Config) -> MacAddress {
    config.host_port.mac.unwrap_or_else(|| {
        let tail = match config.node.locator {
            IpAddr::V4(locator) => locator.to_bits(),
            // The interface identifier is what tells servers of one prefix apart.
            IpAddr::V6(locator) => locator.to_bits() as u32,
        };
        let [a, b, c, d] = tail.to_be_bytes();
        // Locally administered (IEEE 802).
        MacAddress([0x02, 0x68, a, b, c, d])
    })
}

/// What an AF_XDP interface receives on a queue that no worker has would go to the kernel and be
/// lost, so there must be as many queues as workers. DPDK would not say so.
fn check_queues(interface: &str, workers: u16) -> anyhow::Result<()> {
    let path = interface_path(interface);
    ensure!(path.exists(), "there is no network interface {interface} (see: ip link)");
    let entries = std::fs::read_dir(path.join("queues"))
        .with_context(|| format!("reading the queues of {interface}"))?;
    let is_rx = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("rx-");
    let queues = entries.flatten().filter(|entry| is_rx(&entry.file_name())).count();
    ensure!(
        queues == usize::from(workers),
        "{interface} has {queues} receive queues and there are {workers} workers: they must be as \
         many (ethtool -L {interface} combined {workers}; a veth: rx {workers} tx {workers})"
    );
    Ok(())
}

fn interface_path(interface: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface)
}
