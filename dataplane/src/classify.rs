//! Tells a service's TCP and the cluster's tunnel packets from everything else. Never looks at
//! sessions, never changes a frame.
//!
//! Nearly all packets are TCP with plain headers: those are read by [`Classifier::plain_segment`], in
//! a few instructions. What it does not know goes the whole way, through [`Packet`].

use std::net::IpAddr;

use holdfast_net::headers::{
    Gue, NEXT_DESTINATION, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_IPV4, PROTOCOL_IPV6,
    PROTOCOL_TCP, TcpFlags, Udp,
};
use holdfast_net::packet::TCP_CHECKSUM;
use holdfast_net::{self as net, Headers, Malformed, Network, Packet, Transport};
use zerocopy::FromBytes;

use crate::encap::Encapsulation;
use crate::fragments::Datagram;
use crate::service::{Services, SessionKey};

/// A TCP segment of a service's flow, or an ICMP error about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its flow.
    pub key: SessionKey,
    /// Its control bits; an ICMP error's are all clear.
    pub flags: TcpFlags,
    /// Where its headers are.
    pub headers: Headers,
}

/// What a frame from the uplink is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromUplink {
    /// None of ours: pass it on.
    Other,
    /// Claims to be IP and is not sound: pass it on, the kernel judges.
    Malformed(Malformed),
    /// A fragment of what is, or may be, TCP to a service's address or rewritten (R10).
    Fragment(Fragment),
    /// A fragment of anything else to a service's address: pass it on.
    OtherFragment,
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
    /// A segment to a service whose destination was rewritten to our locator: turn it back.
    Rewritten {
        /// What it is once it is turned back.
        segment: Segment,
        /// The service's address.
        service: IpAddr,
    },
}

/// A fragment of what may be TCP to a service (R10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// What it is a fragment of.
    pub datagram: Datagram,
    /// Where its headers are.
    pub headers: Headers,
    /// What it says of the datagram.
    pub part: Part,
}

/// What a fragment says of its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first fragment: a client's segment to a service.
    First(Segment),
    /// The same with its destination rewritten to our locator: what the segment is and the
    /// service's address, once it is turned back.
    FirstRewritten(Segment, IpAddr),
    /// The first fragment of TCP to a port of no service, or of no TCP.
    FirstOfOther,
    /// The first fragment without the whole TCP header (RFC 1858 §3).
    FirstTiny,
    /// A fragment behind the first, which has no ports.
    Later,
}

/// What a tunnel brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inside {
    /// A client's segment to a service or its first fragment, or an ICMP error.
    Segment(Segment),
    /// A fragment behind the first, to a service's address.
    LaterFragment,
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
    /// How strays travel. GUE is taken always, the others only when they are the form: they look
    /// like the host's own traffic.
    pub encapsulation: Encapsulation,
}

/// Which way a segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToService,
    FromService,
}

impl Classifier {
    /// Reads a frame from the uplink if it is a client's plain segment; otherwise
    /// [`Classifier::read_uplink`] knows.
    #[inline(always)]
    #[must_use]
    pub fn plain_segment(&self, frame: &[u8]) -> Option<Segment> {
        self.plain_tcp(frame, Direction::ToService)
    }

    /// Reads a frame from the uplink.
    #[inline(never)]
    #[must_use]
    pub fn read_uplink(&self, frame: &[u8]) -> FromUplink {
        let packet = match Packet::from_ethernet(frame) {
            Ok(Some(packet)) => packet,
            Ok(None) => return FromUplink::Other,
            Err(malformed) => return FromUplink::Malformed(malformed),
        };
        let destination = packet.network.destination();
        let tunnel = FromUplink::Tunnel { outer: packet, sender: packet.network.source() };
        match packet.transport {
            Transport::Tcp { .. } => match self.segment(&packet, Direction::ToService) {
                Some(segment) => FromUplink::Segment(segment),
                None => match self.rewritten(&packet) {
                    Some((segment, service)) => FromUplink::Rewritten { segment, service },
                    None => FromUplink::Other,
                },
            },
            Transport::Udp { destination_port, .. }
                if destination_port == self.tunnel_port && destination == self.locator =>
            {
                tunnel
            }
            // Otherwise it is the host's own business.
            Transport::Other(PROTOCOL_IPV4 | PROTOCOL_IPV6)
                if self.encapsulation == Encapsulation::Ipip && destination == self.locator =>
            {
                tunnel
            }
            Transport::Other(PROTOCOL_ICMP | PROTOCOL_ICMPV6) => {
                match self.icmp_error(frame, packet) {
                    Some((segment, service)) if self.is_rewritten(&packet) => {
                        FromUplink::Rewritten { segment, service }
                    }
                    Some((segment, _)) => FromUplink::IcmpError(segment),
                    None => FromUplink::Other,
                }
            }
            Transport::Fragment(fragment) => self.fragment(frame, packet, fragment),
            _ => FromUplink::Other,
        }
    }

    /// Reads a frame from the host.
    #[inline(always)]
    #[must_use]
    pub fn read_host(&self, frame: &[u8]) -> FromHost {
        match self.plain_tcp(frame, Direction::FromService) {
            Some(segment) => FromHost::Segment(segment),
            None => self.read_host_whole(frame),
        }
    }

    #[inline(never)]
    fn read_host_whole(&self, frame: &[u8]) -> FromHost {
        let Ok(Some(packet)) = Packet::from_ethernet(frame) else {
            return FromHost::Other;
        };
        match self.segment(&packet, Direction::FromService) {
            Some(segment) => FromHost::Segment(segment),
            None => FromHost::Other,
        }
    }

    /// The service's segment in an untagged frame with neither IP options nor extension headers.
    /// `None` says nothing: it may be something else, or need the whole way.
    #[inline(always)]
    fn plain_tcp(&self, frame: &[u8], direction: Direction) -> Option<Segment> {
        // The shortest there is: Ethernet, IPv4 and TCP without options.
        let (head, _) = frame.split_first_chunk::<54>()?;
        // EtherType, version, and IPv4's header length or the upper half of IPv6's class.
        let start = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
        if start & 0xffff_ff00 == 0x0800_4500 {
            self.plain_tcp_v4(frame, head, direction)
        } else if start & 0xffff_f000 == 0x86dd_6000 {
            self.plain_tcp_v6(frame, direction)
        } else {
            None
        }
    }

    #[inline(always)]
    fn plain_tcp_v4(&self, frame: &[u8], head: &[u8; 54], direction: Direction) -> Option<Segment> {
        let total_length = usize::from(u16::from_be_bytes([head[16], head[17]]));
        let is_fragment = u16::from_be_bytes([head[20], head[21]]) & 0x3fff != 0;
        let tcp_length = usize::from(head[46] >> 4) * 4;
        let is_plain = (head[23] == PROTOCOL_TCP)
            & !is_fragment
            & (tcp_length >= 20)
            & (20 + tcp_length <= total_length)
            & (14 + total_length <= frame.len().min(usize::from(u16::MAX)));
        if !is_plain {
            return None;
        }
        let source = [head[26], head[27], head[28], head[29]];
        let destination = [head[30], head[31], head[32], head[33]];
        let source_port = u16::from_be_bytes([head[34], head[35]]);
        let destination_port = u16::from_be_bytes([head[36], head[37]]);
        let services = &self.services;
        let key = match direction {
            Direction::ToService => {
                services.key_v4(source, source_port, destination, destination_port)?
            }
            Direction::FromService => {
                services.key_v4(destination, destination_port, source, source_port)?
            }
        };
        let end = 14 + total_length as u16;
        let headers = Headers {
            network_offset: 14,
            transport_offset: 34,
            end,
            is_ipv6: false,
            address_checksum: TCP_CHECKSUM,
        };
        Some(Segment { key, flags: TcpFlags(head[47]), headers })
    }

    #[inline(always)]
    fn plain_tcp_v6(&self, frame: &[u8], direction: Direction) -> Option<Segment> {
        let (head, _) = frame.split_first_chunk::<74>()?;
        let payload_length = usize::from(u16::from_be_bytes([head[18], head[19]]));
        let tcp_length = usize::from(head[66] >> 4) * 4;
        let is_plain = head[20] == PROTOCOL_TCP
            && tcp_length >= 20
            && tcp_length <= payload_length
            && 54 + payload_length <= frame.len().min(usize::from(u16::MAX));
        if !is_plain {
            return None;
        }
        let source = *head[22..].first_chunk::<16>()?;
        let destination = *head[38..].first_chunk::<16>()?;
        let source_port = u16::from_be_bytes([head[54], head[55]]);
        let destination_port = u16::from_be_bytes([head[56], head[57]]);
        let services = &self.services;
        let key = match direction {
            Direction::ToService => {
                services.key_v6(source, source_port, destination, destination_port)?
            }
            Direction::FromService => {
                services.key_v6(destination, destination_port, source, source_port)?
            }
        };
        let end = 54 + payload_length as u16;
        let headers = Headers {
            network_offset: 14,
            transport_offset: 54,
            end,
            is_ipv6: true,
            address_checksum: TCP_CHECKSUM,
        };
        Some(Segment { key, flags: TcpFlags(head[67]), headers })
    }

    /// The flow of the service's segment that an ICMP error is about, the quoted one, reversed
    /// (R9), and the service's address.
    fn icmp_error(&self, frame: &[u8], packet: Packet) -> Option<(Segment, IpAddr)> {
        let quoted = packet.quoted_tcp(frame)?;
        let ports = (quoted.source_port, quoted.destination_port);
        let key = self.key(&quoted.network, ports, Direction::FromService)?;
        let segment = Segment { key, flags: TcpFlags(0), headers: packet.headers() };
        Some((segment, quoted.network.source()))
    }

    /// What a tunnel may bring in the packet at `inner` of `frame`: a client's segment to a
    /// service, a fragment of one, or an ICMP error about a service's segment.
    #[must_use]
    pub fn inside(&self, frame: &[u8], inner: Packet) -> Option<Inside> {
        if let Transport::Fragment(fragment) = inner.transport {
            let to_service = self.services.has_address(inner.network.destination());
            return match self.fragment(frame, inner, fragment) {
                FromUplink::Fragment(Fragment { part: Part::First(segment), .. }) => {
                    Some(Inside::Segment(segment))
                }
                FromUplink::Fragment(Fragment { part: Part::Later, .. }) if to_service => {
                    Some(Inside::LaterFragment)
                }
                _ => None,
            };
        }
        let segment = self.segment(&inner, Direction::ToService);
        let segment = segment.or_else(|| self.icmp_error(frame, inner).map(|(segment, _)| segment));
        segment.map(Inside::Segment)
    }

    /// What the `fragment` in the packet at `packet` of `frame` is to us.
    fn fragment(&self, frame: &[u8], packet: Packet, fragment: net::Fragment) -> FromUplink {
        let is_first = fragment.offset == 0;
        // Over IPv6 options may stand between.
        let may_be_tcp = match fragment.next_header {
            PROTOCOL_TCP => true,
            NEXT_DESTINATION => packet.headers().is_ipv6,
            _ => false,
        };
        let is_rewritten = self.is_rewritten(&packet);
        if !is_rewritten && !self.services.has_address(packet.network.destination()) {
            return FromUplink::Other;
        }
        if !may_be_tcp {
            return if is_rewritten { FromUplink::Other } else { FromUplink::OtherFragment };
        }
        let whole = packet.first_fragment(frame).map(|transport| Packet { transport, ..packet });
        let part = match whole {
            _ if !is_first => Part::Later,
            None if fragment.protocol != PROTOCOL_TCP => Part::FirstOfOther,
            // A server rewrites those that have the whole header: this is the host's own.
            None if is_rewritten => Part::FirstOfOther,
            None => Part::FirstTiny,
            Some(whole) if is_rewritten => match self.rewritten(&whole) {
                Some((segment, service)) => Part::FirstRewritten(segment, service),
                None => Part::FirstOfOther,
            },
            Some(whole) => match self.segment(&whole, Direction::ToService) {
                Some(segment) => Part::First(segment),
                None => Part::FirstOfOther,
            },
        };
        let datagram =
            Datagram { network: packet.network, identification: fragment.identification };
        FromUplink::Fragment(Fragment { datagram, headers: packet.headers(), part })
    }

    /// The service's segment in `packet`, if that is what it is.
    fn segment(&self, packet: &Packet, direction: Direction) -> Option<Segment> {
        let Transport::Tcp { source_port, destination_port, flags } = packet.transport else {
            return None;
        };
        let key = self.key(&packet.network, (source_port, destination_port), direction)?;
        Some(Segment { key, flags, headers: packet.headers() })
    }

    fn key(
        &self,
        network: &Network,
        (source_port, destination_port): (u16, u16),
        direction: Direction,
    ) -> Option<SessionKey> {
        let services = &self.services;
        match (*network, direction) {
            (Network::Ipv4 { source, destination }, Direction::ToService) => {
                services.key_v4(source, source_port, destination, destination_port)
            }
            (Network::Ipv4 { source, destination }, Direction::FromService) => {
                services.key_v4(destination, destination_port, source, source_port)
            }
            (Network::Ipv6 { source, destination }, Direction::ToService) => {
                services.key_v6(source, source_port, destination, destination_port)
            }
            (Network::Ipv6 { source, destination }, Direction::FromService) => {
                services.key_v6(destination, destination_port, source, source_port)
            }
        }
    }

    /// Whether a packet to a service may come with our locator as destination, and this does.
    fn is_rewritten(&self, packet: &Packet) -> bool {
        self.encapsulation == Encapsulation::Rewrite && packet.network.destination() == self.locator
    }

    /// The segment to a service that `packet` was before its destination was rewritten to our
    /// locator, if that is what happened to it, and the service's address: the port tells.
    fn rewritten(&self, packet: &Packet) -> Option<(Segment, IpAddr)> {
        if !self.is_rewritten(packet) {
            return None;
        }
        let Transport::Tcp { source_port, destination_port, flags } = packet.transport else {
            return None;
        };
        let service = self.services.address_of_port(destination_port, self.locator.is_ipv4())?;
        let network = match (packet.network, service) {
            (Network::Ipv4 { source, .. }, IpAddr::V4(service)) => {
                Network::Ipv4 { source, destination: service.octets() }
            }
            (Network::Ipv6 { source, .. }, IpAddr::V6(service)) => {
                Network::Ipv6 { source, destination: service.octets() }
            }
            _ => return None,
        };
        let key = self.key(&network, (source_port, destination_port), Direction::ToService)?;
        let segment = Segment { key, flags, headers: packet.headers() };
        Some((segment, service))
    }
}

/// The IP packet inside a tunnel packet: behind a GUE header (draft-ietf-intarea-gue-09 §3:
/// version 0, no control message; extension fields are skipped) or directly behind the outer IP
/// header (RFC 2003, RFC 2473, RFC 4213).
///
/// A GUE flag says that a field changes what the packet means. We know none, and an unknown one
/// is a reason to drop, as Linux does (`validate_gue_flags` in its `include/net/gue.h`).
///
/// # Errors
/// [`Malformed`] when there is none.
pub fn tunnelled(frame: &[u8], outer: &Packet) -> Result<Packet, Malformed> {
    let bytes = frame.get(..outer.end).ok_or(Malformed::Length)?;
    let (bytes, inner_offset, protocol) = match outer.transport {
        Transport::Other(protocol) => (bytes, outer.transport_offset, protocol),
        _ => {
            let rest = bytes.get(outer.transport_offset..).ok_or(Malformed::Truncated)?;
            let (udp, _) = Udp::ref_from_prefix(rest).map_err(|_| Malformed::Truncated)?;
            // The datagram may end before the packet does, and with it what is inside.
            let end = outer.transport_offset + usize::from(udp.length.get());
            let bytes = bytes.get(..end).ok_or(Malformed::Length)?;
            let gue_offset = outer.transport_offset + size_of::<Udp>();
            let rest = bytes.get(gue_offset..).ok_or(Malformed::Truncated)?;
            let (gue, _) = Gue::ref_from_prefix(rest).map_err(|_| Malformed::Truncated)?;
            if gue.version_control_hlen >> 5 != 0 || gue.flags.get() != 0 {
                return Err(Malformed::Version);
            }
            let extensions = usize::from(gue.version_control_hlen & 0x1f) * 4;
            (bytes, gue_offset + size_of::<Gue>() + extensions, gue.protocol)
        }
    };
    let inner = Packet::from_ip(bytes, inner_offset)?;
    let expected = match inner.network {
        Network::Ipv4 { .. } => PROTOCOL_IPV4,
        Network::Ipv6 { .. } => PROTOCOL_IPV6,
    };
    if protocol == expected { Ok(inner) } else { Err(Malformed::Version) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn classifier() -> Classifier {
        let services = ["192.168.0.1:80", "[2001:db8::80]:80"];
        Classifier {
            services: Services::new(services.map(|s| s.parse().expect("a socket"))).expect("few"),
            locator: [10, 0, 0, 1].into(),
            tunnel_port: 6080,
            encapsulation: Encapsulation::Gue,
        }
    }

    fn segment(v6: bool, tag: bool, reverse: bool, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([1; 6], [2; 6]);
        let vlan = 7.try_into().expect("a VLAN id");
        let (mut v4, mut v6s) = ([[20, 1, 1, 1], [192, 168, 0, 1]], [[3; 16], [0; 16]]);
        v6s[1] = "2001:db8::80".parse::<std::net::Ipv6Addr>().expect("an address").octets();
        let mut ports = [1234, 80];
        if reverse {
            (v4, v6s, ports) = ([v4[1], v4[0]], [v6s[1], v6s[0]], [80, 1234]);
        }
        let ip = match (tag, v6) {
            (false, false) => ethernet.ipv4(v4[0], v4[1], 60),
            (false, true) => ethernet.ipv6(v6s[0], v6s[1], 60),
            (true, false) => ethernet.single_vlan(vlan).ipv4(v4[0], v4[1], 60),
            (true, true) => ethernet.single_vlan(vlan).ipv6(v6s[0], v6s[1], 60),
        };
        let mut frame = Vec::new();
        ip.tcp(ports[0], ports[1], 1, 2).ack(3).write(&mut frame, payload).expect("fits");
        frame
    }

    /// A tunnel packet with this GUE header, whose UDP header claims `excess` bytes fewer.
    fn tunnel_packet(gue: [u8; 4], excess: u16) -> Result<Packet, Malformed> {
        let inner = segment(false, false, false, b"hello");
        let mut frame = Vec::new();
        let payload = [&gue[..], &inner[14..]].concat();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
            .udp(50000, 6080)
            .write(&mut frame, &payload)
            .expect("fits");
        let length = 8 + payload.len() as u16 - excess;
        frame[38..40].copy_from_slice(&length.to_be_bytes());
        let outer = Packet::from_ethernet(&frame).expect("sound").expect("IP");
        tunnelled(&frame, &outer)
    }

    #[test]
    fn r6_gue_that_means_something_else_is_refused() {
        assert!(tunnel_packet([0, 4, 0, 0], 0).is_ok());
        for gue in [[0x20, 4, 0, 0], [0x40, 4, 0, 0], [0, 41, 0, 0], [0, 4, 0, 1], [0, 4, 0x80, 0]]
        {
            assert_eq!(tunnel_packet(gue, 0), Err(Malformed::Version), "{gue:?}");
        }
    }

    #[test]
    fn r6_the_inside_ends_where_the_datagram_does() {
        assert_eq!(tunnel_packet([0, 4, 0, 0], 1), Err(Malformed::Length));
    }

    proptest! {
        /// The short way says what the long one says, or nothing: for sound segments, for those
        /// with a byte changed, and for those cut short.
        #[test]
        fn the_short_way_agrees_with_the_long_one(
            v6: bool, tag: bool, reverse: bool,
            payload in proptest::collection::vec(any::<u8>(), 0..32),
            change in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let mut frame = segment(v6, tag, reverse, &payload);
            if let Some((at, value)) = change {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len()));
            }
            let classifier = classifier();
            let short = classifier.plain_tcp(&frame, Direction::ToService);
            let long = classifier.read_uplink(&frame);
            if let Some(short) = short {
                prop_assert_eq!(long, FromUplink::Segment(short));
            } else if change.is_none() && cut.is_none() && !tag && !reverse {
                prop_assert!(false, "a plain segment goes the long way");
            }
            let short = classifier.plain_tcp(&frame, Direction::FromService);
            if let Some(short) = short {
                prop_assert_eq!(classifier.read_host_whole(&frame), FromHost::Segment(short));
            } else if change.is_none() && cut.is_none() && !tag && reverse {
                prop_assert!(false, "a plain segment goes the long way");
            }
        }
    }
}
