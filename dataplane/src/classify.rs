//! Tells a service's TCP and the cluster's tunnel packets from everything else. Never looks at
//! sessions, never changes a frame.

use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayVec;
use holdfast_net::headers::{
    Gue, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_IPV4, PROTOCOL_IPV6, TcpFlags, Udp,
};
use holdfast_net::{FlowKey, Malformed, Network, Packet, Transport};
use thiserror::Error;
use zerocopy::FromBytes;

/// Service sockets, at most.
pub const SERVICES_MAX: usize = 64;

/// The sockets of the services that this server announces: what the appliance is for. All else
/// passes through it.
#[derive(Debug, Clone, Default)]
pub struct Services(ArrayVec<SocketAddr, SERVICES_MAX>);

/// More service sockets than [`SERVICES_MAX`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("at most {SERVICES_MAX} pairs of service address and port are possible")]
pub struct TooManyServices;

impl Services {
    /// The set of these sockets.
    ///
    /// # Errors
    /// [`TooManyServices`].
    pub fn new(sockets: impl IntoIterator<Item = SocketAddr>) -> Result<Services, TooManyServices> {
        let mut services = Services::default();
        for socket in sockets {
            services.0.try_push(socket).map_err(|_| TooManyServices)?;
        }
        Ok(services)
    }

    /// Whether this socket is a service's.
    #[must_use]
    pub fn contains(&self, address: IpAddr, port: u16) -> bool {
        self.0.iter().any(|socket| socket.port() == port && socket.ip() == address)
    }

    /// Whether this address is a service's, whatever the port.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.0.iter().any(|socket| socket.ip() == address)
    }
}

/// A TCP segment of a service's flow, or an ICMP error about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its flow.
    pub flow: FlowKey,
    /// Its control bits; an ICMP error's are all clear.
    pub flags: TcpFlags,
    /// Where its headers are.
    pub packet: Packet,
}

/// What a frame from the uplink is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromUplink {
    /// None of ours: pass it on.
    Other,
    /// Claims to be IP and is not sound: pass it on, the kernel judges.
    Malformed(Malformed),
    /// A fragment to a service's address.
    Fragment,
    /// A client's segment to a service.
    Segment(Segment),
    /// An ICMP error about a service's segment to a client (R9).
    IcmpError(Segment),
    /// A tunnel packet to our locator.
    Tunnel {
        /// Where the outer headers are.
        outer: Packet,
        /// Its source: the locator of the server that sent it.
        sender: IpAddr,
    },
}

/// What a frame from the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromHost {
    /// None of ours: pass it on.
    Other,
    /// A service's segment to a client.
    Segment(Segment),
}

/// What tells this server's traffic from what only passes through.
#[derive(Debug, Clone)]
pub struct Classifier {
    /// The services' sockets.
    pub services: Services,
    /// Our own locator: where tunnels to us end.
    pub locator: IpAddr,
    /// UDP destination port of tunnels.
    pub tunnel_port: u16,
}

impl Classifier {
    /// Reads a frame from the uplink.
    #[must_use]
    pub fn read_uplink(&self, frame: &[u8]) -> FromUplink {
        let packet = match Packet::from_ethernet(frame) {
            Ok(Some(packet)) => packet,
            Ok(None) => return FromUplink::Other,
            Err(malformed) => return FromUplink::Malformed(malformed),
        };
        let destination = packet.network.destination();
        match packet.transport {
            Transport::Tcp { .. } => match self.inbound_segment(packet) {
                Some(segment) => FromUplink::Segment(segment),
                None => FromUplink::Other,
            },
            Transport::Udp { destination_port, .. }
                if destination_port == self.tunnel_port && destination == self.locator =>
            {
                FromUplink::Tunnel { outer: packet, sender: packet.network.source() }
            }
            Transport::Other(PROTOCOL_ICMP | PROTOCOL_ICMPV6) => {
                match self.icmp_error(frame, packet) {
                    Some(segment) => FromUplink::IcmpError(segment),
                    None => FromUplink::Other,
                }
            }
            Transport::Fragment if self.services.has_address(destination) => FromUplink::Fragment,
            _ => FromUplink::Other,
        }
    }

    /// Reads a frame from the host.
    #[must_use]
    pub fn read_host(&self, frame: &[u8]) -> FromHost {
        let Ok(Some(packet)) = Packet::from_ethernet(frame) else {
            return FromHost::Other;
        };
        let Transport::Tcp { source_port, destination_port, flags } = packet.transport else {
            return FromHost::Other;
        };
        if !self.services.contains(packet.network.source(), source_port) {
            return FromHost::Other;
        }
        let flow = match packet.network {
            Network::Ipv4 { source, destination } => {
                FlowKey::tcp_v4(destination, destination_port, source, source_port)
            }
            Network::Ipv6 { source, destination } => {
                FlowKey::tcp_v6(destination, destination_port, source, source_port)
            }
        };
        FromHost::Segment(Segment { flow, flags, packet })
    }

    /// The flow of the service's segment that an ICMP error is about: the quoted one, reversed
    /// (R9).
    #[must_use]
    pub fn icmp_error(&self, frame: &[u8], packet: Packet) -> Option<Segment> {
        let quoted = packet.quoted_tcp(frame)?;
        let service = SocketAddr::new(quoted.network.source(), quoted.source_port);
        let client = SocketAddr::new(quoted.network.destination(), quoted.destination_port);
        if !self.services.contains(service.ip(), service.port()) {
            return None;
        }
        let flow = FlowKey::tcp(client, service)?;
        Some(Segment { flow, flags: TcpFlags(0), packet })
    }

    /// What a tunnel may bring in the packet at `inner` of `frame`: a client's segment to a
    /// service, or an ICMP error about a service's segment.
    #[must_use]
    pub fn inside(&self, frame: &[u8], inner: Packet) -> Option<Segment> {
        self.inbound_segment(inner).or_else(|| self.icmp_error(frame, inner))
    }

    /// The client's segment to a service in `packet`, if that is what it is.
    #[must_use]
    pub fn inbound_segment(&self, packet: Packet) -> Option<Segment> {
        let Transport::Tcp { source_port, destination_port, flags } = packet.transport else {
            return None;
        };
        if !self.services.contains(packet.network.destination(), destination_port) {
            return None;
        }
        let flow = match packet.network {
            Network::Ipv4 { source, destination } => {
                FlowKey::tcp_v4(source, source_port, destination, destination_port)
            }
            Network::Ipv6 { source, destination } => {
                FlowKey::tcp_v6(source, source_port, destination, destination_port)
            }
        };
        Some(Segment { flow, flags, packet })
    }
}

/// The IP packet inside a GUE packet (draft-ietf-intarea-gue-09 §3): version 0, no control
/// message; extension fields are skipped.
///
/// # Errors
/// [`Malformed`] when there is none.
pub fn tunnelled(frame: &[u8], outer: &Packet) -> Result<Packet, Malformed> {
    let bytes = frame.get(..outer.end).ok_or(Malformed::Length)?;
    let gue_offset = outer.transport_offset + size_of::<Udp>();
    let rest = bytes.get(gue_offset..).ok_or(Malformed::Truncated)?;
    let (gue, _) = Gue::ref_from_prefix(rest).map_err(|_| Malformed::Truncated)?;
    if gue.version_control_hlen >> 5 != 0 {
        return Err(Malformed::Version);
    }
    let extensions = usize::from(gue.version_control_hlen & 0x1f) * 4;
    let inner = Packet::from_ip(bytes, gue_offset + size_of::<Gue>() + extensions)?;
    let protocol = match inner.network {
        Network::Ipv4 { .. } => PROTOCOL_IPV4,
        Network::Ipv6 { .. } => PROTOCOL_IPV6,
    };
    if gue.protocol == protocol { Ok(inner) } else { Err(Malformed::Version) }
}
