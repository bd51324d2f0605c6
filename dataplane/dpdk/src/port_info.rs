//! What a port is, can do and has counted, as plain data for logs, metrics and listings.
//! Never calls DPDK.

use std::fmt;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// For which checksums a device offers offload in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksums {
    /// The IPv4 header checksum.
    pub ipv4: bool,
    /// TCP over IPv4 and IPv6.
    pub tcp: bool,
    /// UDP over IPv4 and IPv6.
    pub udp: bool,
}

impl fmt::Display for Checksums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [(self.ipv4, "ipv4"), (self.tcp, "tcp"), (self.udp, "udp")];
        let names: Vec<&str> = named.iter().filter(|n| n.0).map(|n| n.1).collect();
        if names.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&names.join("+"))
    }
}

/// What a device does with 802.1Q tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vlan {
    /// Takes the tag off what it receives.
    pub strip: bool,
    /// Puts one into what it sends.
    pub insert: bool,
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.strip, self.insert) {
            (true, true) => "strip+insert",
            (true, false) => "strip",
            (false, true) => "insert",
            (false, false) => "none",
        })
    }
}

/// What a device does for us, of what it offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Fills in the checksum of IPv4 headers ([`Mbuf::request_ipv4_checksum`]).
    ///
    /// [`Mbuf::request_ipv4_checksum`]: crate::Mbuf::request_ipv4_checksum
    pub ipv4_checksum: bool,
    /// 802.1Q tags.
    pub vlan: Vlan,
}

/// What a device is and could do, before it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// DPDK's name of the port: `net_tap0`, `0000:03:00.0`.
    pub name: String,
    /// DPDK's index of the port.
    pub index: u16,
    /// The driver: `net_af_xdp`.
    pub driver: String,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// The NUMA socket it is attached to, where that is known.
    pub socket: Option<u32>,
    /// Receive queues it offers.
    pub max_rx_queues: u16,
    /// Transmit queues it offers.
    pub max_tx_queues: u16,
    /// Smallest MTU, bytes.
    pub min_mtu: u16,
    /// Largest MTU, bytes.
    pub max_mtu: u16,
    /// Whether it spreads IP or TCP flows over its receive queues by RSS.
    pub rss_supported: bool,
    /// Receive checksums it can verify. Holdfast asks for none.
    pub rx_checksums: Checksums,
    /// Transmit checksums it can fill in. Holdfast asks for IPv4's, of outer headers.
    pub tx_checksums: Checksums,
    /// Whether it takes 802.1Q tags off what it receives, and puts them into what it sends.
    pub vlan: Vlan,
    /// Whether it says by itself that its link has changed.
    pub link_interrupt: bool,
}

/// Link state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether frames can pass.
    pub up: bool,
    /// Mbit/s, where known.
    pub speed_mbps: Option<u32>,
    /// Full duplex.
    pub full_duplex: bool,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.up { "up" } else { "down" })?;
        if let Some(speed) = self.speed_mbps {
            write!(f, " {speed} Mbit/s")?;
        }
        Ok(())
    }
}

/// Something a port was asked for and did not do, and started without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// RSS was asked for; the device has no hash of IP or TCP flows. With several receive
    /// queues it depends on the device which frames come by which queue.
    Rss,
    /// RSS runs, but without the hash in the mbuf: `Mbuf::rss_hash` is `None`.
    RssHash,
    /// Promiscuous mode; the reason.
    Promiscuous(String),
    /// All-multicast mode; the reason.
    AllMulticast(String),
    /// The device itself could not be told its MTU; only DPDK knows of it.
    Mtu(String),
    /// It does not say by itself that its link has changed: whoever wants to know must look.
    LinkInterrupt,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Rss => f.write_str("no RSS"),
            Refusal::RssHash => f.write_str("no RSS hash in mbufs"),
            Refusal::Promiscuous(why) => write!(f, "no promiscuous mode: {why}"),
            Refusal::AllMulticast(why) => write!(f, "no all-multicast mode: {why}"),
            Refusal::Mtu(why) => write!(f, "MTU not set in the device: {why}"),
            Refusal::LinkInterrupt => f.write_str("no link interrupt"),
        }
    }
}

/// How a port was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    /// The device.
    pub device: DeviceInfo,
    /// Receive queues in use.
    pub rx_queues: u16,
    /// Transmit queues in use.
    pub tx_queues: u16,
    /// Descriptors of each receive queue, as the device adjusted them.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue, as the device adjusted them.
    pub tx_descriptors: u16,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// Whether RSS spreads flows over the receive queues.
    pub rss: bool,
    /// What the device does for us.
    pub offloads: Offloads,
    /// What it was asked for and does not do.
    pub refused: Vec<Refusal>,
}

impl PortInfo {
    /// What it was asked for and does not do, as far as an operator may want to know: by the hash in
    /// mbufs nothing is decided.
    pub fn lacks(&self) -> impl Iterator<Item = &Refusal> {
        self.refused.iter().filter(|refusal| **refusal != Refusal::RssHash)
    }
}

impl fmt::Display for PortInfo {
    /// One line for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        write!(f, "{} ({}) mac {}", device.name, device.driver, device.mac)?;
        write!(f, ", mtu {}", self.mtu)?;
        let (rx, tx) = (self.rx_queues, self.tx_queues);
        write!(f, ", rx {rx}x{} tx {tx}x{}", self.rx_descriptors, self.tx_descriptors)?;
        let (rx, tx) = (device.max_rx_queues, device.max_tx_queues);
        write!(f, " of {rx}/{tx} queues, rss {}", if self.rss { "on" } else { "off" })?;
        let (rx, tx) = (device.rx_checksums, device.tx_checksums);
        write!(f, ", offered: checksums rx {rx} tx {tx}, tags {}", device.vlan)?;
        let Offloads { ipv4_checksum, vlan } = self.offloads;
        write!(f, "; used: {}, tags {vlan}", if ipv4_checksum { "ipv4" } else { "none" })?;
        match device.socket {
            Some(socket) => write!(f, ", socket {socket}")?,
            None => f.write_str(", socket any")?,
        }
        for refusal in &self.refused {
            write!(f, "; {refusal}")?;
        }
        Ok(())
    }
}

/// Counters of a port since it started. What a driver does not count stays 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames transmitted.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes transmitted.
    pub tx_bytes: u64,
    /// Frames the device dropped because no descriptor was free: too slow a worker.
    pub rx_missed: u64,
    /// Damaged frames received, and frames that do not fit an mbuf.
    pub rx_errors: u64,
    /// Frames that could not be transmitted.
    pub tx_errors: u64,
    /// Receive buffers that the mempool could not give.
    pub rx_no_mbuf: u64,
}
