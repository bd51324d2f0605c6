//! Checks a frame once and remembers where its headers are. Never changes it, never trusts a
//! length that the frame claims for itself.

use std::net::IpAddr;

use thiserror::Error;
use zerocopy::FromBytes;

use crate::headers::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, Ethernet, Ipv4, Ipv6, Ipv6Fragment,
    NEXT_DESTINATION, NEXT_FRAGMENT, NEXT_HOP_BY_HOP, NEXT_ROUTING, PROTOCOL_ICMP, PROTOCOL_ICMPV6,
    PROTOCOL_TCP, PROTOCOL_UDP, Tcp, TcpFlags, Udp, Vlan,
};

/// IPv6 extension headers that are walked before a packet counts as malformed.
const EXTENSION_HEADERS_MAX: usize = 8;

/// Bytes of a frame, at most: what an mbuf can hold.
const FRAME_MAX: usize = u16::MAX as usize;

/// Why a frame that claims to be IP is none. Such frames are passed on untouched: judging them
/// is the kernel's job.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The frame ends inside a header.
    #[error("frame ends inside a header")]
    Truncated,
    /// The IP version is not the EtherType's.
    #[error("IP version and EtherType disagree")]
    Version,
    /// A header claims a length that is impossible or longer than the frame.
    #[error("header claims an impossible length")]
    Length,
    /// More IPv6 extension headers than are walked.
    #[error("too many IPv6 extension headers")]
    Extensions,
}

/// The network header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// IPv4.
    Ipv4 {
        /// Source address.
        source: [u8; 4],
        /// Destination address.
        destination: [u8; 4],
    },
    /// IPv6.
    Ipv6 {
        /// Source address.
        source: [u8; 16],
        /// Destination address.
        destination: [u8; 16],
    },
}

impl Network {
    /// Source address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match *self {
            Network::Ipv4 { source, .. } => IpAddr::from(source),
            Network::Ipv6 { source, .. } => IpAddr::from(source),
        }
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        match *self {
            Network::Ipv4 { destination, .. } => IpAddr::from(destination),
            Network::Ipv6 { destination, .. } => IpAddr::from(destination),
        }
    }
}

/// What an IP packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment.
    Tcp {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
        /// Control bits.
        flags: TcpFlags,
    },
    /// A UDP datagram.
    Udp {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
    },
    /// A fragment of a packet, the first one included ([`Packet::first_fragment`]).
    Fragment(Fragment),
    /// Another protocol.
    Other(u8),
}

/// A fragment (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// What fragments of one packet have in common, beside their addresses: 16 bits over IPv4.
    pub identification: u32,
    /// Where its payload belongs in the whole packet's, in bytes; 0 of the first fragment.
    pub offset: u16,
    /// The first header of what was fragmented, as this fragment names it: over IPv4 the protocol.
    pub next_header: u8,
    /// What the whole packet carries. Over IPv6 only the first fragment says that; of those behind
    /// it this is `next_header`.
    pub protocol: u8,
}

/// A checked IP packet in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Offset of the IP header in the frame, in bytes: 0 for a bare packet, 14 or 18 (one
    /// 802.1Q tag) behind Ethernet.
    pub network_offset: usize,
    /// Offset of the transport header in the frame, in bytes.
    pub transport_offset: usize,
    /// Where the IP packet ends in the frame, in bytes; Ethernet padding may follow.
    pub end: usize,
    /// The network header.
    pub network: Network,
    /// The transport header.
    pub transport: Transport,
}

/// Where the headers of a checked IP packet are, and nothing of what they say: what the packet
/// path carries along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// As [`Packet::network_offset`].
    pub network_offset: u16,
    /// As [`Packet::transport_offset`].
    pub transport_offset: u16,
    /// As [`Packet::end`].
    pub end: u16,
    /// Whether it is IPv6.
    pub is_ipv6: bool,
    /// Where in the transport header the checksum stands that covers the addresses as well, in
    /// bytes: [`TCP_CHECKSUM`] or [`ICMPV6_CHECKSUM`]; 0 when there is none, as in ICMP and in
    /// fragments behind the first.
    pub address_checksum: u8,
}

/// Where a TCP header keeps its checksum, in bytes (RFC 9293 §3.1).
pub const TCP_CHECKSUM: u8 = 16;
/// Where an ICMPv6 header keeps its checksum, in bytes (RFC 4443 §2.1).
pub const ICMPV6_CHECKSUM: u8 = 2;

impl Headers {
    /// Length of the IP packet in bytes.
    #[inline]
    #[must_use]
    pub fn packet_length(&self) -> usize {
        usize::from(self.end.saturating_sub(self.network_offset))
    }
}

impl Packet {
    /// Where its headers are.
    #[must_use]
    pub fn headers(&self) -> Headers {
        // No frame is longer: those that claim to be are malformed.
        Headers {
            network_offset: self.network_offset as u16,
            transport_offset: self.transport_offset as u16,
            end: self.end as u16,
            is_ipv6: matches!(self.network, Network::Ipv6 { .. }),
            address_checksum: match self.transport {
                Transport::Tcp { .. } => TCP_CHECKSUM,
                Transport::Fragment(Fragment { offset: 0, protocol: PROTOCOL_TCP, .. }) => {
                    TCP_CHECKSUM
                }
                Transport::Other(PROTOCOL_ICMPV6) => ICMPV6_CHECKSUM,
                _ => 0,
            },
        }
    }

    /// Reads an Ethernet frame with at most one 802.1Q tag.
    ///
    /// `Ok(None)`: not IP (ARP, LLDP, doubly tagged …), nothing is wrong with it.
    ///
    /// # Errors
    /// [`Malformed`] when the frame claims to be IP and is not.
    pub fn from_ethernet(frame: &[u8]) -> Result<Option<Packet>, Malformed> {
        let Ok((ethernet, rest)) = Ethernet::ref_from_prefix(frame) else {
            return Ok(None);
        };
        let mut ethertype = ethernet.ethertype.get();
        let mut offset = size_of::<Ethernet>();
        if ethertype == ETHERTYPE_VLAN {
            let Ok((tag, _)) = Vlan::ref_from_prefix(rest) else {
                return Ok(None);
            };
            ethertype = tag.ethertype.get();
            offset += size_of::<Vlan>();
        }
        match ethertype {
            ETHERTYPE_IPV4 => ipv4(frame, offset).map(Some),
            ETHERTYPE_IPV6 => ipv6(frame, offset).map(Some),
            _ => Ok(None),
        }
    }

    /// Reads the IP packet that starts at `offset` of `frame`: the inside of a tunnel.
    ///
    /// # Errors
    /// [`Malformed`] when there is no sound IP packet.
    pub fn from_ip(frame: &[u8], offset: usize) -> Result<Packet, Malformed> {
        match frame.get(offset).map(|byte| byte >> 4) {
            Some(4) => ipv4(frame, offset),
            Some(6) => ipv6(frame, offset),
            Some(_) => Err(Malformed::Version),
            None => Err(Malformed::Truncated),
        }
    }
}

impl Packet {
    /// The [`Transport::Tcp`] of the segment whose first fragment this packet of `frame` is.
    /// `None` when it is no such fragment, or one without the whole TCP header, which only serves
    /// to hide it from filters (RFC 1858 §3).
    #[must_use]
    pub fn first_fragment(&self, frame: &[u8]) -> Option<Transport> {
        let Transport::Fragment(Fragment { offset: 0, protocol: PROTOCOL_TCP, .. }) =
            self.transport
        else {
            return None;
        };
        transport(PROTOCOL_TCP, frame.get(self.transport_offset..self.end)?).ok()
    }

    /// Whether this packet of `frame` is an ICMP error, whatever it is about.
    #[must_use]
    pub fn is_icmp_error(&self, frame: &[u8]) -> bool {
        let Some(kind) = frame.get(self.transport_offset) else { return false };
        match self.transport {
            Transport::Other(PROTOCOL_ICMP) => ICMP_ERRORS.contains(kind),
            Transport::Other(PROTOCOL_ICMPV6) => ICMPV6_ERRORS.contains(kind),
            _ => false,
        }
    }
}

/// Types of ICMP errors that quote the packet they are about: destination unreachable (among
/// them "fragmentation needed"), time exceeded, parameter problem (RFC 792).
const ICMP_ERRORS: [u8; 3] = [3, 11, 12];
/// The same of ICMPv6 (RFC 4443 §3): unreachable, too big, time exceeded, parameter problem.
const ICMPV6_ERRORS: std::ops::RangeInclusive<u8> = 1..=4;
/// What stands in front of the quoted packet, in both families.
const ICMP_HEADER: usize = 8;

/// The TCP segment that an ICMP error is about, as far as it is sure to be quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Its addresses.
    pub network: Network,
    /// Its source port.
    pub source_port: u16,
    /// Its destination port.
    pub destination_port: u16,
}

impl Packet {
    /// The TCP segment that this packet of `frame` quotes, if it is an ICMP error about one. Its
    /// header may be cut off behind the ports: that is all a router has to quote (RFC 792).
    #[must_use]
    pub fn quoted_tcp(&self, frame: &[u8]) -> Option<Quoted> {
        let icmp = frame.get(self.transport_offset..self.end)?;
        let quoted = icmp.get(ICMP_HEADER..)?;
        match (self.transport, self.network) {
            (Transport::Other(PROTOCOL_ICMP), Network::Ipv4 { .. })
                if ICMP_ERRORS.contains(&icmp[0]) =>
            {
                let (header, _) = Ipv4::ref_from_prefix(quoted).ok()?;
                let first = header.flags_fragment.get() & 0x1fff == 0;
                let sound = header.version_ihl >> 4 == 4 && header.header_length() >= 20;
                if !sound || header.protocol != PROTOCOL_TCP || !first {
                    return None;
                }
                let network =
                    Network::Ipv4 { source: header.source, destination: header.destination };
                quoted_ports(network, quoted.get(header.header_length()..)?)
            }
            (Transport::Other(PROTOCOL_ICMPV6), Network::Ipv6 { .. })
                if ICMPV6_ERRORS.contains(&icmp[0]) =>
            {
                let (header, rest) = Ipv6::ref_from_prefix(quoted).ok()?;
                if header.version_class_label.get() >> 28 != 6 || header.next_header != PROTOCOL_TCP
                {
                    return None;
                }
                let network =
                    Network::Ipv6 { source: header.source, destination: header.destination };
                quoted_ports(network, rest)
            }
            _ => None,
        }
    }
}

fn quoted_ports(network: Network, segment: &[u8]) -> Option<Quoted> {
    let [a, b, c, d, ..] = *segment else { return None };
    let (source_port, destination_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(Quoted { network, source_port, destination_port })
}

fn ipv4(frame: &[u8], offset: usize) -> Result<Packet, Malformed> {
    let bytes = frame.get(offset..).ok_or(Malformed::Truncated)?;
    let (header, _) = Ipv4::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
    if header.version_ihl >> 4 != 4 {
        return Err(Malformed::Version);
    }
    let header_length = header.header_length();
    let total_length = usize::from(header.total_length.get());
    if header_length < size_of::<Ipv4>() || total_length < header_length {
        return Err(Malformed::Length);
    }
    if total_length > bytes.len() || offset + total_length > FRAME_MAX {
        return Err(Malformed::Length);
    }
    let transport_offset = offset + header_length;
    let end = offset + total_length;
    let transport = if header.is_fragment() {
        let (identification, offset) = (header.identification.get().into(), header.offset());
        let (next_header, protocol) = (header.protocol, header.protocol);
        Transport::Fragment(Fragment { identification, offset, next_header, protocol })
    } else {
        transport(header.protocol, &frame[transport_offset..end])?
    };
    let network = Network::Ipv4 { source: header.source, destination: header.destination };
    Ok(Packet { network_offset: offset, transport_offset, end, network, transport })
}

fn ipv6(frame: &[u8], offset: usize) -> Result<Packet, Malformed> {
    let bytes = frame.get(offset..).ok_or(Malformed::Truncated)?;
    let (header, _) = Ipv6::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
    if header.version_class_label.get() >> 28 != 6 {
        return Err(Malformed::Version);
    }
    let end = offset + size_of::<Ipv6>() + usize::from(header.payload_length.get());
    if end > frame.len().min(FRAME_MAX) {
        return Err(Malformed::Length);
    }
    let network = Network::Ipv6 { source: header.source, destination: header.destination };
    let packet = |transport_offset, transport| {
        Ok(Packet { network_offset: offset, transport_offset, end, network, transport })
    };
    let mut transport_offset = offset + size_of::<Ipv6>();
    let mut next = header.next_header;
    let mut first_fragment = None;
    for _ in 0..=EXTENSION_HEADERS_MAX {
        let rest = frame.get(transport_offset..end).ok_or(Malformed::Length)?;
        match next {
            NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_DESTINATION => {
                let [following, length, ..] = *rest else {
                    return Err(Malformed::Truncated);
                };
                next = following;
                transport_offset += (usize::from(length) + 1) * 8;
            }
            NEXT_FRAGMENT if first_fragment.is_none() => {
                let (header, _) =
                    Ipv6Fragment::ref_from_prefix(rest).map_err(|_| Malformed::Truncated)?;
                next = header.next_header;
                transport_offset += size_of::<Ipv6Fragment>();
                let (identification, offset) = (header.identification.get(), header.offset());
                let fragment =
                    Fragment { identification, offset, next_header: next, protocol: next };
                if offset != 0 {
                    return packet(transport_offset, Transport::Fragment(fragment));
                }
                // An atomic fragment is the whole packet that it is (RFC 6946), and the first of
                // several has all headers (RFC 7112).
                first_fragment = (!header.is_atomic()).then_some(fragment);
            }
            protocol => {
                let transport = match first_fragment {
                    Some(fragment) => Transport::Fragment(Fragment { protocol, ..fragment }),
                    None => transport(protocol, rest)?,
                };
                return packet(transport_offset, transport);
            }
        }
    }
    Err(Malformed::Extensions)
}

fn transport(protocol: u8, bytes: &[u8]) -> Result<Transport, Malformed> {
    match protocol {
        PROTOCOL_TCP => {
            let (tcp, _) = Tcp::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
            let header_length = usize::from(tcp.data_offset >> 4) * 4;
            if header_length < size_of::<Tcp>() || header_length > bytes.len() {
                return Err(Malformed::Length);
            }
            Ok(Transport::Tcp {
                source_port: tcp.source_port.get(),
                destination_port: tcp.destination_port.get(),
                flags: tcp.flags,
            })
        }
        PROTOCOL_UDP => {
            let (udp, _) = Udp::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
            let length = usize::from(udp.length.get());
            if length < size_of::<Udp>() || length > bytes.len() {
                return Err(Malformed::Length);
            }
            Ok(Transport::Udp {
                source_port: udp.source_port.get(),
                destination_port: udp.destination_port.get(),
            })
        }
        other => Ok(Transport::Other(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn v4(payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([20, 1, 1, 1], [192, 168, 0, 1], 64)
            .tcp(1234, 80, 7, 1000)
            .ack(9);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).expect("fits");
        frame
    }

    fn v6(payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
            .single_vlan(5.try_into().expect("a VLAN id"))
            .ipv6([3; 16], [4; 16], 64)
            .udp(1234, 6080);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).expect("fits");
        frame
    }

    #[test]
    fn reads_tcp_over_ipv4() {
        let packet = Packet::from_ethernet(&v4(b"hello")).expect("sound").expect("IP");
        assert_eq!(packet.network_offset, 14);
        assert_eq!(packet.transport_offset, 34);
        assert_eq!(packet.end, 14 + 20 + 20 + 5);
        assert_eq!(packet.network.source(), IpAddr::from([20, 1, 1, 1]));
        assert_eq!(
            packet.transport,
            Transport::Tcp { source_port: 1234, destination_port: 80, flags: TcpFlags::ACK }
        );
    }

    #[test]
    fn reads_tagged_udp_over_ipv6() {
        let packet = Packet::from_ethernet(&v6(b"x")).expect("sound").expect("IP");
        assert_eq!(packet.network_offset, 18);
        assert_eq!(packet.transport, Transport::Udp { source_port: 1234, destination_port: 6080 });
    }

    #[test]
    fn ethernet_padding_is_not_payload() {
        let mut frame = v4(b"");
        let end = frame.len();
        frame.resize(60.max(end), 0);
        assert_eq!(Packet::from_ethernet(&frame).expect("sound").expect("IP").end, end);
    }

    #[test]
    fn r10_the_first_fragment_has_the_ports_and_a_later_one_has_not() {
        let mut frame = v4(b"hello");
        frame[18..20].copy_from_slice(&[7, 8]);
        frame[20] |= 0x20; // more fragments
        let packet = Packet::from_ethernet(&frame).expect("sound").expect("IP");
        let first = Fragment { identification: 0x0708, offset: 0, next_header: 6, protocol: 6 };
        assert_eq!(packet.transport, Transport::Fragment(first));
        assert_eq!(packet.headers().address_checksum, TCP_CHECKSUM);
        let ports =
            Transport::Tcp { source_port: 1234, destination_port: 80, flags: TcpFlags::ACK };
        assert_eq!(packet.first_fragment(&frame), Some(ports));

        frame[21] = 0xff;
        let packet = Packet::from_ethernet(&frame).expect("sound").expect("IP");
        assert_eq!(packet.transport, Transport::Fragment(Fragment { offset: 0x7f8, ..first }));
        assert_eq!(packet.headers().address_checksum, 0);
        assert_eq!(packet.first_fragment(&frame), None);
    }

    /// IPv6 with headers in front of a segment's 20 bytes, each with what follows and its rest.
    fn v6_chain(first: u8, chain: &[(u8, [u8; 7])], segment: &[u8]) -> Vec<u8> {
        let mut payload: Vec<u8> =
            chain.iter().flat_map(|(next, rest)| [&[*next][..], rest].concat()).collect();
        payload.extend_from_slice(segment);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv6([3; 16], [4; 16], 64)
            .write(&mut frame, 253.into(), &payload)
            .expect("fits");
        frame[20] = first;
        frame
    }

    #[test]
    fn r10_ipv6_fragments_behind_and_in_front_of_other_headers() {
        let segment = &v4(b"")[34..54];
        let options = [0, 1, 4, 0, 0, 0, 0];
        let place = |low: u8| [0, 0x02, low, 0xa, 0xb, 0xc, 0xd];
        let read = |frame: &[u8]| Packet::from_ethernet(frame).expect("sound").expect("IP");
        let of = |offset, next_header, protocol| {
            let identification = 0x0a0b_0c0d;
            Transport::Fragment(Fragment { identification, offset, next_header, protocol })
        };
        let frame = v6_chain(0, &[(44, options), (6, place(0))], segment);
        assert_eq!((read(&frame).transport, read(&frame).transport_offset), (of(0x200, 6, 6), 70));
        assert_eq!(read(&frame).first_fragment(&frame), None);

        let first = [0, 0, 1, 0xa, 0xb, 0xc, 0xd];
        let frame = v6_chain(44, &[(60, first), (6, options)], segment);
        assert_eq!((read(&frame).transport, read(&frame).transport_offset), (of(0, 60, 6), 70));
        assert!(read(&frame).first_fragment(&frame).is_some());
        let tiny = v6_chain(44, &[(6, first)], &segment[..16]);
        assert_eq!(read(&tiny).first_fragment(&tiny), None, "RFC 1858");
        // A second fragment header is no transport of ours.
        let twice = v6_chain(44, &[(44, first), (6, first)], segment);
        assert_eq!(read(&twice).transport, of(0, 44, 44));
    }

    #[test]
    fn r10_an_atomic_fragment_is_the_segment_it_is() {
        let frame = v6_chain(44, &[(6, [0, 0, 6, 1, 2, 3, 4])], &v4(b"")[34..54]);
        let packet = Packet::from_ethernet(&frame).expect("sound").expect("IP");
        assert!(matches!(packet.transport, Transport::Tcp { source_port: 1234, .. }));
        assert_eq!(packet.transport_offset, 62);
    }

    #[test]
    fn r9_an_icmp_error_names_the_segment_it_is_about() {
        let segment = v4(b"hello");
        for (kind, quoted, expected) in [(3u8, 28usize, true), (3, 23, false), (8, 28, false)] {
            let mut frame = Vec::new();
            let icmp = etherparse::Icmpv4Type::Unknown {
                type_u8: kind,
                code_u8: 4,
                bytes5to8: [0, 0, 5, 120],
            };
            PacketBuilder::ethernet2([1; 6], [2; 6])
                .ipv4([10, 1, 1, 1], [20, 1, 1, 1], 64)
                .icmpv4(icmp)
                .write(&mut frame, &segment[14..14 + quoted])
                .expect("fits");
            let packet = Packet::from_ethernet(&frame).expect("sound").expect("IP");
            let quoted = packet.quoted_tcp(&frame);
            assert_eq!(quoted.is_some(), expected, "type {kind}, {quoted:?}");
            if let Some(quoted) = quoted {
                assert_eq!(quoted.network.source(), IpAddr::from([20, 1, 1, 1]));
                assert_eq!((quoted.source_port, quoted.destination_port), (1234, 80));
            }
        }
    }

    #[test]
    fn arp_is_not_ip() {
        let mut frame = vec![0u8; 42];
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(Packet::from_ethernet(&frame), Ok(None));
    }

    #[test]
    fn every_truncation_is_refused_or_not_ip() {
        for frame in [v4(b"hello"), v6(b"hello")] {
            for length in 0..frame.len() {
                assert!(
                    !matches!(Packet::from_ethernet(&frame[..length]), Ok(Some(_))),
                    "{length}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn offsets_stay_inside_hostile_frames(
            mut frame in proptest::collection::vec(any::<u8>(), 0..200),
            ethertype in prop_oneof![Just(0x0800u16), Just(0x86dd), any::<u16>()],
            version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        ) {
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
                frame[14] = version;
            }
            if let Ok(Some(packet)) = Packet::from_ethernet(&frame) {
                prop_assert!(packet.network_offset < packet.transport_offset);
                prop_assert!(packet.transport_offset <= packet.end);
                prop_assert!(packet.end <= frame.len());
                let _ = packet.quoted_tcp(&frame);
                let _ = packet.first_fragment(&frame);
                let _ = packet.is_icmp_error(&frame);
            }
        }
    }
}
