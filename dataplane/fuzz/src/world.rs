//! The server that an input is about: its addresses and its configuration, which the input chooses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use holdfast_dataplane::admission::AdmissionLimits;
use holdfast_dataplane::classify::Classifier;
use holdfast_dataplane::encap::Encapsulation;
use holdfast_dataplane::idle::IdleStrategy;
use holdfast_dataplane::parking::ParkingLimits;
use holdfast_dataplane::service::Services;
use holdfast_dataplane::switch::Switch;
use holdfast_dataplane::worker::{PortLimits, Settings};
use holdfast_net::FlowKey;
use ipnet::IpNet;

use super::switched::{KERNEL_MAC, NEXT_HOPS, OUR_MAC};

/// How strays travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In GUE.
    Gue,
    /// In IP.
    Ipip,
    /// With another destination.
    Rewrite,
}

/// What an input chooses once: the bits of [`super::capture::Capture::shape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// Bits 0 and 1: 1 is IP in IP, 2 is rewriting.
    pub form: Form,
    /// Bit 2: our locator is an IPv6 address.
    pub is_v6: bool,
    /// Bit 3: the DHT core takes messages only when it says something, and its rings are short.
    pub is_core_slow: bool,
    /// Bit 4: room for a few packets, sessions and lookups only.
    pub is_tight: bool,
    /// Bit 5: frames have little room in front.
    pub is_without_headroom: bool,
    /// Bit 6: the uplink takes packets of 9000 bytes.
    pub is_jumbo: bool,
    /// Bit 7: what the host sends does not come by.
    pub is_inbound_only: bool,
    /// Bit 8: somebody captures everything.
    pub is_observed: bool,
    /// Bit 9: the host is behind the NIC's switch, and inbound-only.
    pub is_switched: bool,
}

/// The bit of [`World::is_observed`].
pub const OBSERVED_BIT: u32 = 8;

/// The source address of frames that the host sends. All others but the core's come from the
/// uplink.
pub const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The host's address as the worker knows it: such frames come from the uplink, where the NIC's switch
/// has given them back.
pub const REFLECTED_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// The source address of frames that stand for what the DHT core says.
pub const CORE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xc0];
/// EtherType of those: "local experimental" (IEEE 802). Behind it are the bytes of an order.
pub const CORE_ETHERTYPE: u16 = 0x88b5;

/// What the DHT core says, the ports do, or happens: the first byte of an order. The others are
/// `which` and `whom`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// The `which`-th question is answered: the `whom`-th member owns it.
    Owner,
    /// This server owns it.
    Ourselves,
    /// Nobody owns it.
    Nobody,
    /// No answer came in time.
    TimedOut,
    /// A server owns it that is no member.
    Stranger,
    /// The `whom`-th member does not hold the `which`-th flow.
    NotMine,
    /// The `whom`-th member is dead.
    OwnerDead,
    /// The `which`-th flow, asked for or not: the `whom`-th member owns it.
    Unasked,
    /// The uplink takes `which` frames more, and the host `whom`; 255 is as many as come.
    Room,
    /// The `which`-th flow has a session of another server: of the `whom`-th member, and of our
    /// version. With 4 more to `whom` it is older, with 8 it is a stranger's, with 12 our own.
    Superseded,
}

impl Order {
    /// All orders, in the order of their numbers.
    pub const ALL: [Order; 10] = [
        Order::Owner,
        Order::Ourselves,
        Order::Nobody,
        Order::TimedOut,
        Order::Stranger,
        Order::NotMine,
        Order::OwnerDead,
        Order::Unasked,
        Order::Room,
        Order::Superseded,
    ];
}

/// Locators of other members.
pub const MEMBERS: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3)),
];

/// No member's locator.
pub const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9));

const LOCATORS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
];

/// Addresses and ports of the services.
pub const SERVICES: [(IpAddr, u16); 4] = [
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1)), 80),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 2)), 443),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 1)), 80),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 2)), 443),
];

impl World {
    /// UDP destination port of tunnels.
    pub const TUNNEL_PORT: u16 = 6080;

    /// The world that these bits choose.
    #[must_use]
    pub fn new(shape: u32) -> World {
        let bit = |n: u32| shape >> n & 1 != 0;
        World {
            form: match shape & 3 {
                1 => Form::Ipip,
                2 => Form::Rewrite,
                _ => Form::Gue,
            },
            is_v6: bit(2),
            is_core_slow: bit(3),
            is_tight: bit(4),
            is_without_headroom: bit(5),
            is_jumbo: bit(6),
            is_inbound_only: bit(7) || bit(9),
            is_switched: bit(9),
            is_observed: bit(OBSERVED_BIT),
        }
    }

    /// Our locator.
    #[must_use]
    pub fn locator(&self) -> IpAddr {
        LOCATORS[usize::from(self.is_v6)]
    }

    /// The uplink's MTU.
    #[must_use]
    pub fn mtu(&self) -> usize {
        if self.is_jumbo { 9000 } else { 1500 }
    }

    /// Bytes that a tunnel to this locator adds.
    #[must_use]
    pub fn overhead(&self, locator: IpAddr) -> usize {
        let ip = if locator.is_ipv4() { 20 } else { 40 };
        match self.form {
            Form::Gue => ip + 8 + 4,
            Form::Ipip => ip,
            Form::Rewrite => 0,
        }
    }

    /// Whether it is a member's locator: all are of one family.
    #[must_use]
    pub fn is_member(&self, locator: IpAddr) -> bool {
        match locator {
            IpAddr::V4(v4) => !self.is_v6 && v4.octets()[..3] == [10, 0, 0],
            IpAddr::V6(v6) => self.is_v6 && v6.segments()[..4] == [0xfd00, 0, 0, 0],
        }
    }

    /// Whether it is a service's address.
    #[must_use]
    pub fn is_service(&self, address: IpAddr) -> bool {
        SERVICES.iter().any(|(service, _)| *service == address)
    }

    /// The address of the service at this port.
    #[must_use]
    pub fn service_of_port(&self, port: u16, is_v6: bool) -> Option<IpAddr> {
        let mut services = SERVICES.iter().filter(|(address, _)| address.is_ipv6() == is_v6);
        Some(services.find(|(_, other)| *other == port)?.0)
    }

    /// The flow between these ends, if the second is a service's.
    #[must_use]
    pub fn flow(&self, client: (IpAddr, u16), service: (IpAddr, u16)) -> Option<FlowKey> {
        let is_service = SERVICES.contains(&service);
        let (client, service) = (SocketAddr::from(client), SocketAddr::from(service));
        is_service.then(|| FlowKey::tcp(client, service))?
    }

    /// The way to the host takes packets of so many bytes.
    #[must_use]
    pub fn host_mtu(&self) -> usize {
        if self.is_tight { 1280 } else { self.mtu() }
    }

    /// Packets that may be parked.
    #[must_use]
    pub fn parked_max(&self) -> usize {
        if self.is_tight { 6 } else { 64 }
    }

    /// Entries of the session table.
    #[must_use]
    pub fn capacity(&self) -> usize {
        if self.is_tight { 4 } else { 64 }
    }

    /// Bytes of the ring of what is observed: there is room for what a turn brings, but for tight
    /// worlds.
    #[must_use]
    pub fn observed_bytes(&self) -> usize {
        match (self.is_observed, self.is_tight) {
            (false, _) => 0,
            (true, true) => 4096,
            (true, false) => 1 << 20,
        }
    }

    /// Messages that each ring to the core takes.
    #[must_use]
    pub fn ring(&self) -> usize {
        if self.is_core_slow { 2 } else { 1024 }
    }

    /// The NIC's switch.
    #[must_use]
    pub fn switch(&self) -> Option<Switch> {
        self.is_switched.then(|| Switch {
            ours: OUR_MAC,
            kernel: KERNEL_MAC,
            next_hops: NEXT_HOPS.into_iter().collect(),
        })
    }

    /// The worker's settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let sockets = SERVICES.map(SocketAddr::from);
        let net = |address: IpAddr, bits| IpNet::new(address, bits).expect("few bits");
        Settings {
            classifier: Classifier {
                services: Services::new(sockets).expect("few"),
                locator: self.locator(),
                tunnel_port: World::TUNNEL_PORT,
                encapsulation: match self.form {
                    Form::Gue => Encapsulation::Gue,
                    Form::Ipip => Encapsulation::Ipip,
                    Form::Rewrite => Encapsulation::Rewrite,
                },
            },
            members: vec![net(self.locator(), if self.is_v6 { 64 } else { 24 })],
            ports: PortLimits {
                uplink_mtu: self.mtu(),
                host_mtu: self.host_mtu(),
                offloads_checksum: self.is_jumbo,
                host_mac: Some(REFLECTED_MAC),
            },
            half_open_max: if self.is_tight { 2 } else { 16 },
            inbound_only: self.is_inbound_only,
            parking: ParkingLimits {
                packets_max: self.parked_max(),
                packets_per_flow_max: if self.is_tight { 2 } else { 4 },
                timeout_us: 1_000_000,
                grace_us: 30_000,
            },
            admission: AdmissionLimits {
                per_second: if self.is_tight { 5 } else { 1000 },
                burst: if self.is_tight { 8 } else { 64 },
                per_source_per_second: if self.is_tight { 2 } else { 1000 },
                per_source_burst: if self.is_tight { 4 } else { 64 },
                negative_us: 1_000_000,
            },
            idle: IdleStrategy::Busy,
        }
    }
}
