//! Answers a packet that does not fit the tunnel with the MTU that would (R11): ICMP
//! "fragmentation needed" (RFC 792, RFC 1191 §4) or ICMPv6 "packet too big" (RFC 4443 §3.2).
//! Turns the packet itself into the answer; never allocates.

use std::net::Ipv6Addr;

use holdfast_net::checksum::{add, checksum, sum};
use holdfast_net::headers::{Ethernet, Ipv4, Ipv6, PROTOCOL_ICMP, PROTOCOL_ICMPV6};
use holdfast_net::{Fragment, Network, Packet, Transport};
use zerocopy::IntoBytes;

use crate::encap::{LINK_HEADER_MAX, link_header};
use crate::frame::Frame;

/// Type, code, checksum, unused or MTU: 8 bytes in both families.
const ICMP_HEADER: usize = 8;
/// Longest answer over IPv4 in bytes (RFC 1812 §4.3.2.3).
const ANSWER_MAX_IPV4: usize = 576;
/// Longest answer over IPv6 in bytes: its minimum MTU (RFC 4443 §2.4).
const ANSWER_MAX_IPV6: usize = 1280;
const TTL: u8 = 64;

/// Turns `frame`, whose IP packet is `packet`, into the answer to its sender that at most `mtu`
/// bytes fit. `None`, and the frame unchanged, when it may not be answered so: over IPv4 without
/// DF it is to be fragmented, some are never answered, or there is no room in front.
pub fn answer<F: Frame>(frame: &mut F, packet: &Packet, mtu: usize) -> Option<()> {
    if !may_be_answered(frame.data(), packet) {
        return None;
    }
    let (header_length, answer_max) = match packet.network {
        Network::Ipv4 { .. } if !has_dont_fragment(frame.data(), packet) => return None,
        Network::Ipv4 { .. } => (size_of::<Ipv4>(), ANSWER_MAX_IPV4),
        Network::Ipv6 { .. } => (size_of::<Ipv6>(), ANSWER_MAX_IPV6),
    };
    let overhead = header_length + ICMP_HEADER;
    let quoted = (packet.end - packet.network_offset).min(answer_max - overhead);
    let (link, link_length) = link_header(frame.data(), packet.network_offset);
    frame.prepend(overhead)?;
    frame.truncate(link_length + overhead + quoted);

    let (outer_link, answer) = frame.data_mut().split_at_mut(link_length);
    write_link(outer_link, &link);
    let (network, icmp) = answer.split_at_mut(header_length);
    let mtu = u32::try_from(mtu).unwrap_or(u32::MAX);
    match packet.network {
        Network::Ipv4 { source, destination } => {
            let length = overhead + quoted;
            write_ipv4(network, destination, source, length);
            // Type 3, code 4; the MTU stands in the last two bytes of the header.
            icmp[..ICMP_HEADER].copy_from_slice(&[3, 4, 0, 0, 0, 0, (mtu >> 8) as u8, mtu as u8]);
            let sum = checksum(icmp);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        Network::Ipv6 { source, destination } => {
            let length = ICMP_HEADER + quoted;
            write_ipv6(network, destination, source, length);
            icmp[..4].copy_from_slice(&[2, 0, 0, 0]);
            icmp[4..8].copy_from_slice(&mtu.to_be_bytes());
            let pseudo = [0, 0, (length >> 8) as u8, length as u8, 0, 0, 0, PROTOCOL_ICMPV6];
            let addresses = add(sum(&source), sum(&destination));
            let sum = !add(add(addresses, sum(&pseudo)), sum(icmp));
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        }
    }
    Some(())
}

/// Whether there may be an ICMP error about a packet at all (RFC 1122 §3.2.2, RFC 1812 §4.3.2.7,
/// RFC 4443 §2.4 e): not about an ICMP error, nor to what is not one host. Nor about a fragment
/// behind the first: IPv6 does not forbid that, but it has no ports, so its sender could not tell
/// whom it is about. Destinations need no look: they are services' addresses.
fn may_be_answered(frame: &[u8], packet: &Packet) -> bool {
    // The lowest bit of an Ethernet address: not to one station.
    let is_to_many = frame.first().is_none_or(|byte| byte & 1 != 0);
    let is_from_a_host = match packet.network {
        // 0/8, 127/8, multicast, class E and the broadcast address in it.
        Network::Ipv4 { source: [first, ..], .. } => !matches!(first, 0 | 127 | 224..),
        Network::Ipv6 { source, .. } => {
            let source = Ipv6Addr::from(source);
            !(source.is_unspecified() || source.is_loopback() || source.is_multicast())
        }
    };
    let is_later = matches!(packet.transport, Transport::Fragment(Fragment { offset: 1.., .. }));
    !is_to_many && is_from_a_host && !is_later && !packet.is_icmp_error(frame)
}

fn has_dont_fragment(frame: &[u8], packet: &Packet) -> bool {
    // Flags stand in the upper bits of byte 6.
    frame.get(packet.network_offset + 6).is_some_and(|flags| flags & 0x40 != 0)
}

/// Back to where the packet came from, the EtherType as it was.
fn write_link(bytes: &mut [u8], link: &[u8; LINK_HEADER_MAX]) {
    let length = bytes.len();
    bytes.copy_from_slice(&link[..length]);
    bytes[..6].copy_from_slice(&link[6..12]);
    bytes[6..12].copy_from_slice(&link[..6]);
    debug_assert!(length >= size_of::<Ethernet>());
}

fn write_ipv4(bytes: &mut [u8], source: [u8; 4], destination: [u8; 4], length: usize) {
    let mut header = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: (length as u16).into(),
        identification: 0.into(),
        flags_fragment: 0x4000.into(),
        ttl: TTL,
        protocol: PROTOCOL_ICMP,
        checksum: 0.into(),
        source,
        destination,
    };
    header.checksum = checksum(header.as_bytes()).into();
    bytes.copy_from_slice(header.as_bytes());
}

fn write_ipv6(bytes: &mut [u8], source: [u8; 16], destination: [u8; 16], length: usize) {
    let header = Ipv6 {
        version_class_label: 0x6000_0000.into(),
        payload_length: (length as u16).into(),
        next_header: PROTOCOL_ICMPV6,
        hop_limit: TTL,
        source,
        destination,
    };
    bytes.copy_from_slice(header.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::MemFrame;
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, TransportSlice};
    use etherparse::{NetSlice, icmpv4::DestUnreachableHeader};

    fn segment(v6: bool, payload: usize) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([0xaa; 6], [0xba; 6]);
        let ip = if v6 {
            ethernet.ipv6([3; 16], [4; 16], 64)
        } else {
            ethernet.ipv4([20, 1, 1, 1], [192, 168, 0, 1], 64)
        };
        let mut frame = Vec::new();
        ip.tcp(1234, 80, 7, 1000).ack(9).write(&mut frame, &vec![7; payload]).expect("fits");
        frame
    }

    fn answered(bytes: &[u8], mtu: usize) -> Option<Vec<u8>> {
        let packet = Packet::from_ethernet(bytes).expect("sound").expect("IP");
        let mut frame = MemFrame::new(bytes);
        let outcome = answer(&mut frame, &packet, mtu);
        assert!(outcome.is_some() || frame.data() == bytes, "unchanged when not answered");
        outcome.map(|()| frame.data().to_vec())
    }

    #[test]
    fn r11_fragmentation_needed_names_the_mtu_and_quotes_the_packet() {
        let bytes = segment(false, 1400);
        let answer = answered(&bytes, 1468).expect("answered");
        assert_eq!(answer[..12], [&[0xaa; 6][..], &[0xba; 6]].concat(), "back where it came from");
        let sliced = SlicedPacket::from_ethernet(&answer).expect("sound");
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4") };
        let header = ip.header().to_header();
        assert_eq!((header.source, header.destination), ([192, 168, 0, 1], [20, 1, 1, 1]));
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else { panic!("no ICMP") };
        let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1468 };
        assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(needed));
        assert_eq!(checksum(icmp.slice()), 0);
        assert_eq!(icmp.payload(), &bytes[14..14 + 576 - 28]);
    }

    #[test]
    fn r11_packet_too_big_names_the_mtu_and_quotes_the_packet() {
        let bytes = segment(true, 1400);
        let answer = answered(&bytes, 1448).expect("answered");
        let sliced = SlicedPacket::from_ethernet(&answer).expect("sound");
        let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("no IPv6") };
        let header = ip.header().to_header();
        assert_eq!((header.source, header.destination), ([4; 16], [3; 16]));
        let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else { panic!("no ICMPv6") };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1448 });
        assert!(icmp.is_checksum_valid(header.source, header.destination));
        assert_eq!(icmp.payload(), &bytes[14..14 + 1280 - 48]);
    }

    #[test]
    fn r11_without_dont_fragment_there_is_no_answer() {
        let mut bytes = segment(false, 1400);
        bytes[20] &= !0x40;
        assert_eq!(answered(&bytes, 1468), None);
    }

    /// With these flags and offset of a fragment.
    fn with_flags(bytes: &[u8], flags: u16) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[20..22].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    #[test]
    fn r11_fragments_are_answered_only_if_they_are_the_first() {
        let bytes = segment(false, 1400);
        let first = with_flags(&bytes, 0x6000);
        let answer = answered(&first, 1468).expect("the first has the ports");
        assert_eq!(answer[14 + 28..], first[14..14 + 548]);
        for later in [0x6001, 0x4001] {
            assert_eq!(answered(&with_flags(&bytes, later), 1468), None);
        }
        // In IPv6: a fragment header between, the next header in front of it.
        let mut v6 = segment(true, 1400);
        let length = v6.len() as u16 - 54 + 8;
        v6[18..20].copy_from_slice(&length.to_be_bytes());
        v6[20] = 44;
        v6.splice(54..54, [6, 0, 0, 1, 0, 0, 0, 9]);
        assert!(answered(&v6, 1448).is_some());
        v6[57] = 9;
        assert_eq!(answered(&v6, 1448), None);
    }

    #[test]
    fn r11_an_icmp_error_is_never_answered() {
        for v6 in [false, true] {
            let error = answered(&segment(v6, 1400), 1300).expect("answered");
            assert_eq!(answered(&error, 500), None);
        }
    }

    #[test]
    fn r11_what_is_not_from_one_host_or_not_to_one_station_is_never_answered() {
        for source in [[0; 4], [127, 0, 0, 1], [224, 0, 0, 5], [240, 1, 1, 1], [255; 4]] {
            let mut bytes = segment(false, 1400);
            bytes[26..30].copy_from_slice(&source);
            assert_eq!(answered(&bytes, 1468), None, "{source:?}");
        }
        for source in
            [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, [0xff02, 0, 0, 0, 0, 0, 0, 1].into()]
        {
            let mut bytes = segment(true, 1400);
            bytes[22..38].copy_from_slice(&source.octets());
            assert_eq!(answered(&bytes, 1448), None, "{source}");
        }
        for v6 in [false, true] {
            for station in [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
                let mut bytes = segment(v6, 1400);
                bytes[..6].copy_from_slice(&station);
                assert_eq!(answered(&bytes, 1448), None, "{station:?}");
            }
        }
    }

    #[test]
    fn a_short_packet_is_quoted_whole() {
        for v6 in [false, true] {
            let bytes = segment(v6, 10);
            let answer = answered(&bytes, 1300).expect("answered");
            assert!(answer.ends_with(&bytes[14..]));
        }
    }
}
