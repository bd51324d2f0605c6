//! What a frame may have become when it is sent. Outer headers are read by etherparse, which knows
//! nothing of ours.

use std::net::IpAddr;
use std::ops::Range;

use etherparse::{
    Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice, icmpv4::DestUnreachableHeader,
};

use super::reader::{self, Inside, Segment};
use super::world::{Form, World};

/// The bytes' sum in one's complement, where 0 and 0xffff are the same.
fn residue(bytes: &[u8]) -> u32 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or_default()));
    words.fold(0, |sum, word| (sum + word) % 0xffff)
}

/// Where the source address lies in an IP packet that begins at `at`, and the destination address.
fn addresses(frame: &[u8], at: usize) -> (Range<usize>, Range<usize>) {
    match frame[at] >> 4 {
        4 => (at + 12..at + 16, at + 16..at + 20),
        _ => (at + 8..at + 24, at + 24..at + 40),
    }
}

/// The link header of `sent` is that of `came` on its way back, with the EtherType of this version.
fn goes_back(came: &[u8], sent: &[u8], link: usize, is_v4: bool) {
    assert_eq!(sent[..6], came[6..12], "not to where it came from");
    assert_eq!(sent[6..12], came[..6]);
    assert_eq!(sent[12..link - 2], came[12..link - 2], "another tag");
    assert_eq!(sent[link - 2..link], if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
}

/// A packet on its way to its owner in a tunnel: where the tunnel leads.
pub fn tunnelled(world: &World, came: &[u8], packet: &Range<usize>, sent: &[u8]) -> IpAddr {
    let whole = &came[packet.clone()];
    let protocol = if whole[0] >> 4 == 4 { 4 } else { 41 };
    let link = packet.start;
    let sliced = SlicedPacket::from_ethernet(sent).expect("a tunnel packet that is not sound");
    let (source, destination, carried, payload, length) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "outer checksum");
            assert!(header.dont_fragment && header.time_to_live > 1);
            assert_eq!(u8::from(header.dscp), dscp(whole), "DSCP");
            (
                IpAddr::from(header.source),
                IpAddr::from(header.destination),
                header.protocol.0,
                ip.payload().payload,
                usize::from(header.total_len),
            )
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            assert!(header.hop_limit > 1);
            assert_eq!(header.traffic_class >> 2, dscp(whole), "DSCP");
            (
                IpAddr::from(header.source),
                IpAddr::from(header.destination),
                header.next_header.0,
                ip.payload().payload,
                40 + usize::from(header.payload_length),
            )
        }
        _ => panic!("no IP"),
    };
    goes_back(came, sent, link, source.is_ipv4());
    assert_eq!(source, world.locator(), "from another locator");
    assert!(length <= world.mtu(), "a tunnel packet of {length} bytes");
    let inner = match world.form {
        Form::Ipip => {
            assert_eq!(carried, protocol);
            payload
        }
        _ => {
            assert_eq!(carried, 17);
            let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("no UDP") };
            assert_eq!(udp.destination_port(), World::TUNNEL_PORT);
            assert_eq!(udp.checksum(), 0);
            assert_eq!(usize::from(udp.length()), payload.len());
            assert_eq!(udp.payload()[..4], [0, protocol, 0, 0], "GUE header");
            &payload[12..]
        }
    };
    assert_eq!(length, inner.len() + world.overhead(destination));
    if whole.len() <= world.mtu() - world.overhead(destination) {
        assert_eq!(inner, whole, "another packet inside");
    } else {
        assert_eq!(residue(&inner[..header_length(inner)]), 0, "checksum of a fragment");
        fragment(whole, inner);
    }
    destination
}

fn header_length(packet: &[u8]) -> usize {
    usize::from(packet[0] & 0x0f) * 4
}

fn field(packet: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]))
}

/// A fragment of an IPv4 packet that had no DF, but for the checksums (RFC 791 §3.2).
fn fragment(whole: &[u8], piece: &[u8]) {
    assert!(whole[0] >> 4 == 4 && whole[6] & 0x40 == 0, "a packet that may not be is fragmented");
    for at in [1, 4, 5, 8, 9, 12, 13, 14, 15] {
        assert_eq!(piece[at], whole[at], "byte {at} of a fragment's header");
    }
    let flags = |packet: &[u8]| (field(packet, 6) & 0x2000 != 0, (field(packet, 6) & 0x1fff) * 8);
    let ((more, offset), (last_more, begins)) = (flags(piece), flags(whole));
    let payload = &whole[header_length(whole)..];
    let part = &piece[header_length(piece)..];
    let start = offset - begins;
    let end = start + part.len();
    assert!(end <= payload.len() && !part.is_empty(), "a fragment of what is not there");
    assert_eq!(more, last_more || end < payload.len(), "more fragments");
    assert!(end == payload.len() || part.len().is_multiple_of(8));
    // TCP's checksum follows the destination.
    let kept = |at: &usize| begins != 0 || !(16..18).contains(&(start + at));
    let differs = (0..part.len()).filter(kept).find(|at| part[*at] != payload[start + at]);
    assert_eq!(differs, None, "another byte in a fragment");
}

fn dscp(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[1] >> 2,
        _ => (packet[0] & 0x0f) << 2 | packet[1] >> 6,
    }
}

/// What of a packet is covered by a checksum that covers its addresses as well.
#[derive(Debug, Clone)]
pub struct Covered {
    /// Where its IP packet lies in the frame.
    pub packet: Range<usize>,
    /// Where that checksum stands, and what it covers beside the addresses begins, if it is there.
    pub checksum: Option<(usize, usize)>,
}

impl Covered {
    /// Of a fragment: of the first of a TCP segment the checksum is there.
    pub fn of_fragment(frame: &[u8], packet: &Range<usize>) -> Covered {
        let begin = reader::first_tcp(frame, packet);
        Covered { packet: packet.clone(), checksum: begin.map(|at| (at + 16, at)) }
    }
}

impl From<&Segment> for Covered {
    fn from(segment: &Segment) -> Covered {
        let Segment { packet, transport, is_error, flow, .. } = segment;
        let checksum = match (flow.is_ipv4(), is_error) {
            (_, false) => Some((transport + 16, *transport)),
            (false, true) => Some((transport + 2, *transport)),
            // ICMP's covers no addresses.
            (true, true) => None,
        };
        Covered { packet: packet.clone(), checksum }
    }
}

/// A packet whose destination was changed: to what.
pub fn rewritten(came: &[u8], covered: &Covered, sent: &[u8]) -> IpAddr {
    let Covered { packet, checksum } = covered;
    let is_v4 = came[packet.start] >> 4 == 4;
    let (source, destination) = addresses(came, packet.start);
    let mut expected = came.to_vec();
    expected[destination.clone()].copy_from_slice(&sent[destination.clone()]);
    let header = is_v4.then_some(packet.start + 10);
    for at in [checksum.map(|(at, _)| at), header].into_iter().flatten() {
        expected[at..at + 2].copy_from_slice(&sent[at..at + 2]);
    }
    assert_eq!(sent[12..], expected[12..], "more than the destination is another");
    if let Some((_, begin)) = checksum {
        let sum = |bytes: &[u8]| {
            let pseudo = [&bytes[source.clone()], &bytes[destination.clone()]].concat();
            (residue(&pseudo) + residue(&bytes[*begin..packet.end])) % 0xffff
        };
        assert_eq!(sum(sent), sum(came), "the transport's checksum");
    }
    if is_v4 {
        let header_length = header_length(&came[packet.start..]);
        let header = |bytes: &[u8]| residue(&bytes[packet.start..packet.start + header_length]);
        assert_eq!(header(sent), header(came), "the header's checksum");
    }
    match is_v4 {
        true => IpAddr::from(*sent[destination].first_chunk::<4>().expect("four")),
        false => IpAddr::from(*sent[destination].first_chunk::<16>().expect("sixteen")),
    }
}

/// A fragment of a packet, whose destination was changed as well: to what.
pub fn rewritten_fragment(
    world: &World,
    came: &[u8],
    packet: &Range<usize>,
    sent: &[u8],
) -> IpAddr {
    let (whole, link) = (&came[packet.clone()], packet.start);
    let piece = &sent[link..link + field(sent, link + 2)];
    assert!(whole.len() > world.mtu() && piece.len() <= world.mtu());
    assert_eq!(residue(&piece[..header_length(piece)]), 0, "checksum of a fragment");
    fragment(whole, piece);
    IpAddr::from([piece[16], piece[17], piece[18], piece[19]])
}

/// What a tunnel packet brought, taken out of it.
pub fn taken_out(came: &[u8], inside: &Inside, sent: &[u8]) {
    let Inside { packet, link, .. } = inside;
    let packet = &came[packet.clone()];
    assert_eq!(sent[..link - 2], came[..link - 2], "another link header");
    let ethertype = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    assert_eq!(sent[link - 2..*link], ethertype);
    assert_eq!(&sent[*link..link + packet.len()], packet, "another packet");
}

/// A packet that was too big for the tunnel, answered.
pub fn too_big_answer(world: &World, came: &[u8], packet: &Range<usize>, sent: &[u8]) {
    let (source, destination) = addresses(came, packet.start);
    let link = packet.start;
    let packet = &came[packet.clone()];
    assert!(packet.len() > world.mtu() - 52, "it was not too big");
    goes_back(came, sent, link, packet[0] >> 4 == 4);
    let sliced = SlicedPacket::from_ethernet(sent).expect("an answer that is not sound");
    let quoted = match (&sliced.net, &sliced.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(header.source, came[destination]);
            assert_eq!(header.destination, came[source]);
            assert!(header.total_len <= 576);
            assert_eq!(residue(icmp.slice()), 0, "ICMP checksum");
            let Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            }) = icmp.icmp_type()
            else {
                panic!("{:?}", icmp.icmp_type())
            };
            let fits = [20, 40].map(|ip| mtu_inside(world, ip));
            assert!(fits.contains(&usize::from(next_hop_mtu)), "MTU {next_hop_mtu}");
            icmp.payload().to_vec()
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            let header = ip.header().to_header();
            assert_eq!(header.source, came[destination]);
            assert_eq!(header.destination, came[source]);
            assert!(header.payload_length <= 1240);
            assert!(icmp.is_checksum_valid(header.source, header.destination));
            let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else {
                panic!("{:?}", icmp.icmp_type())
            };
            let fits = [20, 40].map(|ip| mtu_inside(world, ip));
            assert!(fits.contains(&(mtu as usize)), "MTU {mtu}");
            icmp.payload().to_vec()
        }
        _ => panic!("no ICMP"),
    };
    assert!(packet.starts_with(&quoted) && quoted.len() >= 28, "quotes something else");
}

fn mtu_inside(world: &World, outer: usize) -> usize {
    world.mtu()
        - match world.form {
            Form::Gue => outer + 12,
            Form::Ipip => outer,
            Form::Rewrite => 0,
        }
}

/// A frame from the host: as it came, or with a lower MSS.
pub fn from_host(world: &World, came: &[u8], spoken: Option<&Segment>, sent: &[u8]) -> bool {
    if sent == came {
        return false;
    }
    let segment = spoken.filter(|segment| segment.flags & 0x02 != 0);
    let segment = segment.expect("a frame of the host's that is no SYN was changed");
    let Segment { packet, transport, .. } = segment;
    let options = transport + 20..transport + usize::from(came[transport + 12] >> 4) * 4;
    let mut places = (options.start..options.end.saturating_sub(3))
        .filter(|at| came[*at..at + 2] == [2, 4] && sent[at + 2..at + 4] != came[at + 2..at + 4]);
    let mss = places.next().expect("no MSS was changed") + 2;
    let (old, new) = ([came[mss], came[mss + 1]], [sent[mss], sent[mss + 1]]);
    let headers = if came[packet.start] >> 4 == 4 { 40 } else { 60 };
    let limit = world.mtu() - world.overhead(world.locator()) - headers;
    assert_eq!(usize::from(u16::from_be_bytes(new)), limit);
    assert!(u16::from_be_bytes(old) > u16::from_be_bytes(new), "a greater MSS");
    let mut expected = came.to_vec();
    expected[mss..mss + 2].copy_from_slice(&new);
    expected[transport + 16..transport + 18].copy_from_slice(&sent[transport + 16..transport + 18]);
    assert_eq!(sent, expected, "more than the MSS is another");
    let covered = |bytes: &[u8]| residue(&bytes[*transport..packet.end]);
    assert_eq!(covered(sent), covered(came), "the checksum");
    true
}
