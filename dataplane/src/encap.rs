//! GUE encapsulation into the headroom of a frame, and back. Never copies the packet: only the
//! Ethernet header moves.
//!
//! ```text
//! before              Ethernet | IP TCP …
//! after   Ethernet' | IP UDP GUE | IP TCP …
//! ```
//!
//! The outer frame goes back to the router that brought the stray (Ethernet' has its addresses
//! swapped): that router has a route to every locator, so no next hop is ever resolved.

use std::net::IpAddr;

use holdfast_net::checksum::checksum;
use holdfast_net::headers::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Gue, Ipv4, Ipv6, PROTOCOL_IPV4, PROTOCOL_IPV6,
    PROTOCOL_UDP, Udp,
};
use holdfast_net::{Network, Packet};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::frame::Frame;

/// Ethernet header and one 802.1Q tag.
pub(crate) const LINK_HEADER_MAX: usize = 18;
/// Hops a tunnel packet may take.
const TTL: u8 = 64;
/// Lowest source port of tunnel packets: the dynamic range (RFC 6335), 14 bits of entropy.
const SOURCE_PORT_MIN: u16 = 0xc000;

/// Why a segment could not be put into a tunnel.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum EncapError {
    /// The tunnel packet would exceed the uplink's MTU.
    #[error("tunnel packet exceeds the uplink's MTU")]
    TooBig,
    /// The frame has no room in front.
    #[error("frame has no room in front for the tunnel header")]
    NoHeadroom,
}

/// The two ends of a tunnel, of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// Our locator.
    pub local: IpAddr,
    /// The owner's locator.
    pub remote: IpAddr,
    /// UDP destination port.
    pub port: u16,
}

/// Bytes that a tunnel to `remote` adds to a packet.
#[must_use]
pub fn overhead(remote: IpAddr) -> usize {
    let network = if remote.is_ipv4() { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    network + size_of::<Udp>() + size_of::<Gue>()
}

/// Puts the IP packet in `frame` into a GUE tunnel. `entropy` (of the flow) becomes the UDP source port, so that RSS and ECMP spread
/// tunnels. `mtu` is the uplink's, in bytes of IP packet.
///
/// # Errors
/// [`EncapError`]; the frame is then unchanged.
pub fn encapsulate<F: Frame>(
    frame: &mut F,
    packet: &Packet,
    Tunnel { local, remote, port }: Tunnel,
    entropy: u16,
    mtu: usize,
) -> Result<(), EncapError> {
    let inner_length = packet.end - packet.network_offset;
    let overhead = overhead(remote);
    if overhead + inner_length > mtu {
        return Err(EncapError::TooBig);
    }
    let (link, link_length) = link_header(frame.data(), packet.network_offset);
    let inner_class = traffic_class(&frame.data()[packet.network_offset..]);
    frame.prepend(overhead).ok_or(EncapError::NoHeadroom)?;

    let front = &mut frame.data_mut()[..link_length + overhead];
    let (outer_link, outer) = front.split_at_mut(link_length);
    outer_link.copy_from_slice(&link[..link_length]);
    outer_link[..6].copy_from_slice(&link[6..12]);
    outer_link[6..12].copy_from_slice(&link[..6]);
    let ethertype = if remote.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    outer_link[link_length - 2..].copy_from_slice(&ethertype.to_be_bytes());

    let (network, rest) = outer.split_at_mut(overhead - size_of::<Udp>() - size_of::<Gue>());
    let udp_length = size_of::<Udp>() + size_of::<Gue>() + inner_length;
    write_network(network, local, remote, udp_length, inner_class);
    let udp = Udp {
        source_port: (SOURCE_PORT_MIN | entropy).into(),
        destination_port: port.into(),
        length: (udp_length as u16).into(),
        // No checksum: the inner packet has its own (RFC 6935 §5 allows it for IPv6 tunnels).
        checksum: 0.into(),
    };
    let protocol = match packet.network {
        Network::Ipv4 { .. } => PROTOCOL_IPV4,
        Network::Ipv6 { .. } => PROTOCOL_IPV6,
    };
    let gue = Gue { version_control_hlen: 0, protocol, flags: 0.into() };
    rest[..size_of::<Udp>()].copy_from_slice(udp.as_bytes());
    rest[size_of::<Udp>()..].copy_from_slice(gue.as_bytes());
    Ok(())
}

/// Takes the packet at `inner` out of its tunnel: the frame becomes link header and inner packet.
/// Returns where that is then. `None`, and the frame unchanged, if it is too short to be what
/// `inner` says.
pub fn decapsulate<F: Frame>(frame: &mut F, outer: &Packet, inner: &Packet) -> Option<Packet> {
    let (mut link, link_length) = link_header(frame.data(), outer.network_offset);
    let ethertype = match inner.network {
        Network::Ipv4 { .. } => ETHERTYPE_IPV4,
        Network::Ipv6 { .. } => ETHERTYPE_IPV6,
    };
    link[link_length - 2..link_length].copy_from_slice(&ethertype.to_be_bytes());
    let trimmed = inner.network_offset - link_length;
    frame.trim_front(trimmed)?;
    frame.data_mut()[..link_length].copy_from_slice(&link[..link_length]);
    Some(Packet {
        network_offset: link_length,
        transport_offset: inner.transport_offset - trimmed,
        end: inner.end - trimmed,
        ..*inner
    })
}

/// The bytes in front of the IP header, which [`Packet`] found to be 14 or 18.
pub(crate) fn link_header(frame: &[u8], network_offset: usize) -> ([u8; LINK_HEADER_MAX], usize) {
    let length = network_offset.clamp(size_of::<Ethernet>(), LINK_HEADER_MAX);
    let mut link = [0; LINK_HEADER_MAX];
    link[..length].copy_from_slice(&frame[..length]);
    (link, length)
}

/// DSCP of an IP packet. ECN is left out: outer packets are Not-ECT, the compatibility mode of
/// RFC 6040 §4.3, so that no mark is lost when the far end takes the tunnel off.
fn traffic_class(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[1] & 0xfc,
        _ => ((packet[0] << 4) | (packet[1] >> 4)) & 0xfc,
    }
}

fn write_network(bytes: &mut [u8], local: IpAddr, remote: IpAddr, udp_length: usize, class: u8) {
    match (local, remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let header = Ipv4 {
                version_ihl: 0x45,
                tos: class,
                total_length: ((size_of::<Ipv4>() + udp_length) as u16).into(),
                // With DF an identification has no meaning (RFC 6864 §4.1).
                identification: 0.into(),
                flags_fragment: 0x4000.into(),
                ttl: TTL,
                protocol: PROTOCOL_UDP,
                checksum: 0.into(),
                source: local.octets(),
                destination: remote.octets(),
            };
            bytes.copy_from_slice(header.as_bytes());
            let sum = checksum(bytes);
            if let Ok(header) = Ipv4::mut_from_bytes(bytes) {
                header.checksum = sum.into();
            }
        }
        (local, remote) => {
            let header = Ipv6 {
                version_class_label: (0x6000_0000 | u32::from(class) << 20).into(),
                payload_length: (udp_length as u16).into(),
                next_header: PROTOCOL_UDP,
                hop_limit: TTL,
                source: octets(local),
                destination: octets(remote),
            };
            bytes.copy_from_slice(header.as_bytes());
        }
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::tunnelled;
    use crate::frame::MemFrame;
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn segment(v6: bool, tag: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let ethernet = PacketBuilder::ethernet2([0xaa; 6], [0xbb; 6]);
        let vlan = 7.try_into().expect("a VLAN id");
        let builder = match (tag, v6) {
            (false, false) => ethernet.ipv4([20, 1, 1, 1], [192, 168, 0, 1], 60),
            (false, true) => ethernet.ipv6([1; 16], [2; 16], 60),
            (true, false) => ethernet.single_vlan(vlan).ipv4([20, 1, 1, 1], [192, 168, 0, 1], 60),
            (true, true) => ethernet.single_vlan(vlan).ipv6([1; 16], [2; 16], 60),
        };
        builder.tcp(1234, 80, 1, 2).ack(3).write(&mut frame, payload).expect("fits");
        frame
    }

    const LOCATORS: [(&str, &str); 2] = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")];

    proptest! {
        /// What goes into a tunnel comes out again, in every combination of families and tags.
        #[test]
        fn round_trip(
            v6 in any::<bool>(),
            tag in any::<bool>(),
            outer in 0usize..2,
            entropy in any::<u16>(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let before = segment(v6, tag, &payload);
            let packet = Packet::from_ethernet(&before).expect("sound").expect("IP");
            let (local, remote) = LOCATORS[outer];
            let (local, remote) = (local.parse().expect("address"), remote.parse().expect("address"));
            let mut frame = MemFrame::new(&before);
            encapsulate(&mut frame, &packet, Tunnel { local, remote, port: 6080 }, entropy, 1500).expect("fits");
            prop_assert_eq!(frame.data().len(), before.len() + overhead(remote));

            let outer = Packet::from_ethernet(frame.data()).expect("sound").expect("IP");
            prop_assert_eq!(outer.network.source(), local);
            prop_assert_eq!(outer.network.destination(), remote);
            let inner = tunnelled(frame.data(), &outer).expect("a packet inside");
            prop_assert_eq!(inner.network, packet.network);
            let moved = decapsulate(&mut frame, &outer, &inner).expect("long enough");
            prop_assert_eq!(Packet::from_ethernet(frame.data()), Ok(Some(moved)));
            prop_assert_eq!(&frame.data()[12..], &before[12..]);
        }

        #[test]
        fn hostile_insides_never_panic(inside in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2([1; 6], [2; 6])
                .ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
                .udp(50000, 6080)
                .write(&mut frame, &inside)
                .expect("fits");
            let outer = Packet::from_ethernet(&frame).expect("sound").expect("IP");
            let mut memory = MemFrame::new(&frame);
            if let Ok(inner) = tunnelled(&frame, &outer) {
                decapsulate(&mut memory, &outer, &inner);
            }
        }
    }

    /// An independent decoder agrees with the outer headers, checksum included.
    #[test]
    fn etherparse_reads_the_outer_headers() {
        let before = segment(false, false, b"hello");
        let packet = Packet::from_ethernet(&before).expect("sound").expect("IP");
        let mut frame = MemFrame::new(&before);
        let (local, remote) = ("10.0.0.1".parse().expect("v4"), "10.0.0.2".parse().expect("v4"));
        encapsulate(&mut frame, &packet, Tunnel { local, remote, port: 6080 }, 0x1234, 1500)
            .expect("fits");
        let sliced = SlicedPacket::from_ethernet(frame.data()).expect("a sound packet");
        let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("no IPv4") };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(header.source, [10, 0, 0, 1]);
        assert_eq!(header.destination, [10, 0, 0, 2]);
        assert!(header.dont_fragment);
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
        assert_eq!(udp.destination_port(), 6080);
        assert_eq!(udp.source_port(), 0xc000 | 0x1234);
        assert_eq!(&udp.payload()[..4], &[0, 4, 0, 0]);
        assert_eq!(&udp.payload()[4..], &before[14..]);
        assert_eq!(
            &frame.data()[..12],
            &[0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb]
        );
    }

    #[test]
    fn too_big_or_no_room_leaves_the_frame_alone() {
        let before = segment(false, false, &[0; 100]);
        let packet = Packet::from_ethernet(&before).expect("sound").expect("IP");
        let (local, remote) = ("10.0.0.1".parse().expect("v4"), "10.0.0.2".parse().expect("v4"));
        let mut frame = MemFrame::new(&before);
        let length = packet.end - packet.network_offset;
        let mtu = length + overhead(remote);
        assert_eq!(
            encapsulate(&mut frame, &packet, Tunnel { local, remote, port: 6080 }, 0, mtu - 1),
            Err(EncapError::TooBig)
        );
        assert_eq!(frame.data(), before);
        while frame.prepend(16).is_some() {}
        let used_up = frame.clone();
        let packet = Packet { network_offset: 14, ..packet };
        assert_eq!(
            encapsulate(&mut frame, &packet, Tunnel { local, remote, port: 6080 }, 0, 1500),
            Err(EncapError::NoHeadroom)
        );
        assert_eq!(frame, used_up);
    }
}
