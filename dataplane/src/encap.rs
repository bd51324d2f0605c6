//! How a stray travels to its owner: encapsulated into the headroom of its frame (GUE or IP in
//! IP), or with its destination rewritten; and back. Never copies the packet: only the Ethernet
//! header moves. What is the same for all packets to an owner is made once ([`Tunnel::new`]).
//!
//! ```text
//! before   Ethernet | IP TCP …
//! gue      Ethernet' | IP UDP GUE | IP TCP …
//! ipip     Ethernet' | IP | IP TCP …
//! rewrite  Ethernet' | IP' TCP' …                destination: the owner's locator
//! ```
//!
//! The outer frame goes back to the router that brought the stray (Ethernet' has its addresses
//! swapped): that router has a route to every locator, so no next hop is ever resolved.

use std::net::IpAddr;

use holdfast_net::checksum::{checksum, sum, update};
use holdfast_net::headers::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Gue, Ipv4, Ipv6, PROTOCOL_IPV4, PROTOCOL_IPV6,
    PROTOCOL_UDP, Udp,
};
use holdfast_net::{Headers, Network, Packet};
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::frame::Frame;

const LINK_HEADER: usize = size_of::<Ethernet>();
/// Ethernet header and one 802.1Q tag.
pub(crate) const LINK_HEADER_MAX: usize = 18;
/// Hops a tunnel packet may take.
const TTL: u8 = 64;
/// Lowest source port of tunnel packets: the dynamic range (RFC 6335), 14 bits of entropy.
const SOURCE_PORT_MIN: u16 = 0xc000;
/// UDP and GUE header.
const GUE_LENGTH: usize = size_of::<Udp>() + size_of::<Gue>();

/// How strays travel to their owner; the same on every member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encapsulation {
    /// IP, UDP and GUE (draft-ietf-intarea-gue-09) in front: routers and NICs spread tunnels by
    /// their UDP source port.
    #[default]
    Gue,
    /// IP in front (RFC 2003, RFC 2473, RFC 4213): the smallest.
    Ipip,
    /// Nothing in front: the destination becomes the owner's locator, and there the service
    /// again. Every port must belong to one service, and locators be of the services' family.
    Rewrite,
}

/// Why a segment could not be put into a tunnel.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum EncapError {
    /// The tunnel packet would exceed the uplink's MTU.
    #[error("tunnel packet exceeds the uplink's MTU")]
    TooBig,
    /// The frame has no room in front.
    #[error("frame has no room in front for the tunnel header")]
    NoHeadroom,
    /// A destination of the other address family cannot be written in its place.
    #[error("a packet cannot be rewritten to a locator of the other address family")]
    OtherFamily,
}

/// The way to one owner: its outer header but for what differs from packet to packet.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub struct Tunnel {
    header: Header,
    /// The uplink's device fills in the checksums of outer IPv4 headers.
    is_checksum_offloaded: bool,
}

#[derive(Debug, Clone, Copy)]
enum Header {
    Gue4([u8; size_of::<Ipv4>() + GUE_LENGTH]),
    Gue6([u8; size_of::<Ipv6>() + GUE_LENGTH]),
    Ipip4([u8; size_of::<Ipv4>()]),
    Ipip6([u8; size_of::<Ipv6>()]),
    Rewrite4([u8; 4]),
    Rewrite6([u8; 16]),
}

/// Bytes that a tunnel to a locator of this family adds to a packet.
#[must_use]
pub fn overhead(encapsulation: Encapsulation, is_ipv4: bool) -> usize {
    let network = if is_ipv4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    match encapsulation {
        Encapsulation::Gue => network + GUE_LENGTH,
        Encapsulation::Ipip => network,
        Encapsulation::Rewrite => 0,
    }
}

impl Tunnel {
    /// The tunnel from `local`, our locator, to `remote`, the owner's, which are of one address
    /// family. `port` is the UDP destination port of GUE.
    #[must_use]
    pub fn new(encapsulation: Encapsulation, local: IpAddr, remote: IpAddr, port: u16) -> Tunnel {
        let udp = Udp {
            source_port: 0.into(),
            destination_port: port.into(),
            length: 0.into(),
            // No checksum: the inner packet has its own (RFC 6935 §5 allows it for IPv6 tunnels).
            checksum: 0.into(),
        };
        let gue = Gue { version_control_hlen: 0, protocol: 0, flags: 0.into() };
        let header = match (encapsulation, remote) {
            (Encapsulation::Rewrite, IpAddr::V4(remote)) => Header::Rewrite4(remote.octets()),
            (Encapsulation::Rewrite, IpAddr::V6(remote)) => Header::Rewrite6(remote.octets()),
            (Encapsulation::Ipip, IpAddr::V4(_)) => Header::Ipip4(ipv4(local, remote, 0)),
            (Encapsulation::Ipip, IpAddr::V6(_)) => Header::Ipip6(ipv6(local, remote, 0)),
            (Encapsulation::Gue, IpAddr::V4(_)) => Header::Gue4(joined(
                &ipv4(local, remote, PROTOCOL_UDP),
                [udp.as_bytes(), gue.as_bytes()],
            )),
            (Encapsulation::Gue, IpAddr::V6(_)) => Header::Gue6(joined(
                &ipv6(local, remote, PROTOCOL_UDP),
                [udp.as_bytes(), gue.as_bytes()],
            )),
        };
        Tunnel { header, is_checksum_offloaded: false }
    }

    /// The same, whose checksums of outer IPv4 headers the uplink's device fills in, or not.
    #[must_use]
    pub fn with_checksum_offload(self, is_checksum_offloaded: bool) -> Tunnel {
        Tunnel { is_checksum_offloaded, ..self }
    }

    /// Puts the IP packet at `headers` of `frame` on its way. `entropy` (of the flow) becomes the
    /// UDP source port or the flow label, so that RSS and ECMP spread tunnels. `mtu` is the
    /// uplink's, in bytes of IP packet.
    ///
    /// # Errors
    /// [`EncapError`]; the frame is then unchanged.
    #[inline(always)]
    pub fn encapsulate<F: Frame>(
        &self,
        frame: &mut F,
        headers: &Headers,
        entropy: u16,
        mtu: usize,
    ) -> Result<(), EncapError> {
        match &self.header {
            // The usual form without a call.
            Header::Gue4(header) if !self.is_checksum_offloaded => {
                gue4(frame, headers, header, entropy, mtu)
            }
            _ => self.encapsulate_other(frame, headers, entropy, mtu),
        }
    }

    #[inline(never)]
    fn encapsulate_other<F: Frame>(
        &self,
        frame: &mut F,
        headers: &Headers,
        entropy: u16,
        mtu: usize,
    ) -> Result<(), EncapError> {
        let inner = Inner::read(frame.data(), headers, entropy);
        let encapsulated = match &self.header {
            Header::Gue4(header) => gue4(frame, headers, header, entropy, mtu),
            Header::Gue6(header) => push(frame, headers, header, ETHERTYPE_IPV6, mtu, |outer| {
                inner.write_ipv6(outer, GUE_LENGTH);
                inner.write_gue(&mut outer[size_of::<Ipv6>()..]);
            }),
            Header::Ipip4(header) => push(frame, headers, header, ETHERTYPE_IPV4, mtu, |outer| {
                outer[9] = inner.protocol;
                inner.write_ipv4(outer, header, size_of::<Ipv4>());
            }),
            Header::Ipip6(header) => push(frame, headers, header, ETHERTYPE_IPV6, mtu, |outer| {
                outer[6] = inner.protocol;
                inner.write_ipv6(outer, 0);
            }),
            Header::Rewrite4(locator) => rewrite(frame, headers, locator, mtu),
            Header::Rewrite6(locator) => rewrite(frame, headers, locator, mtu),
        };
        let is_ipv4 = matches!(&self.header, Header::Gue4(_) | Header::Ipip4(_));
        if self.is_checksum_offloaded && is_ipv4 && encapsulated.is_ok() {
            frame.request_ipv4_checksum(usize::from(headers.network_offset), size_of::<Ipv4>());
        }
        encapsulated
    }
}

#[inline(always)]
fn gue4<F: Frame>(
    frame: &mut F,
    headers: &Headers,
    header: &[u8; size_of::<Ipv4>() + GUE_LENGTH],
    entropy: u16,
    mtu: usize,
) -> Result<(), EncapError> {
    let inner = Inner::read(frame.data(), headers, entropy);
    push(frame, headers, header, ETHERTYPE_IPV4, mtu, |outer| {
        inner.write_ipv4(outer, header, size_of::<Ipv4>() + GUE_LENGTH);
        inner.write_gue(&mut outer[size_of::<Ipv4>()..]);
    })
}

/// What the outer header says of the packet inside.
struct Inner {
    length: usize,
    class: u8,
    protocol: u8,
    entropy: u16,
}

impl Inner {
    #[inline(always)]
    fn read(frame: &[u8], headers: &Headers, entropy: u16) -> Inner {
        let offset = usize::from(headers.network_offset);
        let head = frame.get(offset..offset + 2).unwrap_or_default();
        // DSCP. ECN is left out: outer packets are Not-ECT, the compatibility mode of RFC 6040
        // §4.3, so that no mark is lost when the far end takes the tunnel off.
        let class = match *head {
            [first, second] if headers.is_ipv6 => ((first << 4) | (second >> 4)) & 0xfc,
            [_, second] => second & 0xfc,
            _ => 0,
        };
        let protocol = if headers.is_ipv6 { PROTOCOL_IPV6 } else { PROTOCOL_IPV4 };
        Inner { length: headers.packet_length(), class, protocol, entropy }
    }

    /// What differs in an outer IPv4 header of a packet whose other headers, this one included,
    /// have `length` bytes. The template's checksum is the sum of what does not differ.
    #[inline(always)]
    fn write_ipv4(&self, outer: &mut [u8], template: &[u8], length: usize) {
        let total_length = (length + self.length) as u16;
        outer[1] = self.class;
        outer[2..4].copy_from_slice(&total_length.to_be_bytes());
        let constant = u16::from_be_bytes([template[10], template[11]]);
        let protocol = if length == size_of::<Ipv4>() { self.protocol } else { 0 };
        let total = u32::from(constant)
            + u32::from(self.class)
            + u32::from(total_length)
            + u32::from(protocol);
        let total = (total & 0xffff) + (total >> 16);
        let total = (total & 0xffff) + (total >> 16);
        outer[10..12].copy_from_slice(&(!total as u16).to_be_bytes());
    }

    /// The same for an outer IPv6 header with `length` bytes of other headers behind it.
    #[inline(always)]
    fn write_ipv6(&self, outer: &mut [u8], length: usize) {
        // Version, class, and the flow label's lower 16 bits (RFC 6438).
        let first = 0x6000_0000 | u32::from(self.class) << 20 | u32::from(self.entropy);
        outer[..4].copy_from_slice(&first.to_be_bytes());
        let payload_length = (length + self.length) as u16;
        outer[4..6].copy_from_slice(&payload_length.to_be_bytes());
    }

    #[inline(always)]
    fn write_gue(&self, outer: &mut [u8]) {
        let source_port = SOURCE_PORT_MIN | self.entropy;
        outer[..2].copy_from_slice(&source_port.to_be_bytes());
        let length = (GUE_LENGTH + self.length) as u16;
        outer[4..6].copy_from_slice(&length.to_be_bytes());
        outer[size_of::<Udp>() + 1] = self.protocol;
    }
}

/// Puts `template` between link header and packet and lets `fill` write what differs.
#[inline(always)]
fn push<F: Frame, const N: usize>(
    frame: &mut F,
    headers: &Headers,
    template: &[u8; N],
    ethertype: u16,
    mtu: usize,
    fill: impl FnOnce(&mut [u8; N]),
) -> Result<(), EncapError> {
    if N + headers.packet_length() > mtu {
        return Err(EncapError::TooBig);
    }
    // Lengths that are known are written without a call.
    if usize::from(headers.network_offset) == LINK_HEADER {
        push_behind::<F, N, LINK_HEADER>(frame, template, ethertype, fill)
    } else {
        push_behind::<F, N, LINK_HEADER_MAX>(frame, template, ethertype, fill)
    }
}

#[inline(always)]
fn push_behind<F: Frame, const N: usize, const LINK: usize>(
    frame: &mut F,
    template: &[u8; N],
    ethertype: u16,
    fill: impl FnOnce(&mut [u8; N]),
) -> Result<(), EncapError> {
    // The packet that `headers` describes is there, so neither is ever missing.
    let mut link = *frame.data().first_chunk::<LINK>().ok_or(EncapError::NoHeadroom)?;
    link[LINK - 2..].copy_from_slice(&ethertype.to_be_bytes());
    let link = turned_round(link);
    frame.prepend(N).ok_or(EncapError::NoHeadroom)?;
    let front = frame.data_mut().split_first_chunk_mut::<LINK>();
    let (new_link, rest) = front.ok_or(EncapError::NoHeadroom)?;
    let outer = rest.first_chunk_mut::<N>().ok_or(EncapError::NoHeadroom)?;
    *new_link = link;
    *outer = *template;
    fill(outer);
    Ok(())
}

/// The packet goes back to where it came from: the Ethernet addresses swap places. In registers:
/// what was just written byte by byte is slow to read.
#[inline(always)]
fn turned_round<const LINK: usize>(link: [u8; LINK]) -> [u8; LINK] {
    let word = |at: usize| u32::from_le_bytes([link[at], link[at + 1], link[at + 2], link[at + 3]]);
    let half = |at: usize| u16::from_le_bytes([link[at], link[at + 1]]);
    let (destination, source) = ((word(0), half(4)), (word(6), half(10)));
    let mut turned = link;
    turned[..4].copy_from_slice(&source.0.to_le_bytes());
    turned[4..6].copy_from_slice(&source.1.to_le_bytes());
    turned[6..10].copy_from_slice(&destination.0.to_le_bytes());
    turned[10..12].copy_from_slice(&destination.1.to_le_bytes());
    turned
}

/// Sends a segment to the owner's locator instead of to the service.
#[inline(always)]
fn rewrite<F: Frame, const N: usize>(
    frame: &mut F,
    headers: &Headers,
    locator: &[u8; N],
    mtu: usize,
) -> Result<(), EncapError> {
    if headers.packet_length() > mtu {
        return Err(EncapError::TooBig);
    }
    let bytes = frame.data_mut();
    write_destination(bytes, headers, locator).ok_or(EncapError::OtherFamily)?;
    if let Some(link) = bytes.first_chunk_mut::<12>() {
        *link = turned_round(*link);
    }
    Ok(())
}

/// A rewritten segment becomes one to `service` again. `None`, and the frame unchanged, when it
/// is too short or of the other family.
pub fn turn_back<F: Frame>(frame: &mut F, headers: &Headers, service: IpAddr) -> Option<()> {
    match service {
        IpAddr::V4(service) => write_destination(frame.data_mut(), headers, &service.octets()),
        IpAddr::V6(service) => write_destination(frame.data_mut(), headers, &service.octets()),
    }
}

/// Changes the destination address of a TCP segment, of a fragment of one or of an ICMP error, and
/// the checksums that cover it (RFC 1624): of a segment in fragments the first has TCP's.
#[inline(always)]
fn write_destination<const N: usize>(
    frame: &mut [u8],
    headers: &Headers,
    new: &[u8; N],
) -> Option<()> {
    if headers.is_ipv6 != (N == 16) {
        return None;
    }
    let (network, transport) =
        (usize::from(headers.network_offset), usize::from(headers.transport_offset));
    let (destination, network_checksum) =
        if headers.is_ipv6 { (network + 24, None) } else { (network + 16, Some(network + 10)) };
    let address_checksum = usize::from(headers.address_checksum);
    let checksums =
        [network_checksum, (address_checksum != 0).then_some(transport + address_checksum)];
    // All there is to write is inside.
    frame.get(..checksums[1].map_or(transport, |at| at + 2))?;
    let address = frame.get_mut(destination..)?.first_chunk_mut::<N>()?;
    let (before, after) = (sum(address), sum(new));
    *address = *new;
    for at in checksums.into_iter().flatten() {
        let field = frame.get_mut(at..)?.first_chunk_mut::<2>()?;
        *field = update(u16::from_be_bytes(*field), before, after).to_be_bytes();
    }
    Some(())
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
#[inline(always)]
pub(crate) fn link_header(frame: &[u8], network_offset: usize) -> ([u8; LINK_HEADER_MAX], usize) {
    // An IP header follows, so there are as many as the longer form has.
    if let Some(link) = frame.first_chunk::<LINK_HEADER_MAX>() {
        let tagged = network_offset != size_of::<Ethernet>();
        return (*link, if tagged { LINK_HEADER_MAX } else { size_of::<Ethernet>() });
    }
    ([0; LINK_HEADER_MAX], size_of::<Ethernet>())
}

fn joined<const N: usize>(network: &[u8], rest: [&[u8]; 2]) -> [u8; N] {
    let mut bytes = [0; N];
    let parts = network.iter().chain(rest[0]).chain(rest[1]);
    for (byte, part) in bytes.iter_mut().zip(parts) {
        *byte = *part;
    }
    bytes
}

/// An outer IPv4 header with the sum of what it says so far in the place of its checksum.
fn ipv4(local: IpAddr, remote: IpAddr, protocol: u8) -> [u8; size_of::<Ipv4>()] {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let mut header = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: 0.into(),
        // With DF an identification has no meaning (RFC 6864 §4.1).
        identification: 0.into(),
        flags_fragment: 0x4000.into(),
        ttl: TTL,
        protocol,
        checksum: 0.into(),
        source: octets(local),
        destination: octets(remote),
    };
    header.checksum = (!checksum(header.as_bytes())).into();
    let mut bytes = [0; size_of::<Ipv4>()];
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

fn ipv6(local: IpAddr, remote: IpAddr, next_header: u8) -> [u8; size_of::<Ipv6>()] {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let header = Ipv6 {
        version_class_label: 0.into(),
        payload_length: 0.into(),
        next_header,
        hop_limit: TTL,
        source: octets(local),
        destination: octets(remote),
    };
    let mut bytes = [0; size_of::<Ipv6>()];
    bytes.copy_from_slice(header.as_bytes());
    bytes
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
    const TUNNELS: [Encapsulation; 2] = [Encapsulation::Gue, Encapsulation::Ipip];

    fn gue4() -> Tunnel {
        tunnel(Encapsulation::Gue, 0)
    }

    fn tunnel(encapsulation: Encapsulation, family: usize) -> Tunnel {
        let (local, remote) = LOCATORS[family];
        let address = |text: &str| text.parse().expect("an address");
        Tunnel::new(encapsulation, address(local), address(remote), 6080)
    }

    proptest! {
        /// What goes into a tunnel comes out again, in every combination of families and tags.
        #[test]
        fn round_trip(
            v6 in any::<bool>(),
            tag in any::<bool>(),
            family in 0usize..2,
            encapsulation in prop::sample::select(&TUNNELS[..]),
            entropy in any::<u16>(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let before = segment(v6, tag, &payload);
            let packet = Packet::from_ethernet(&before).expect("sound").expect("IP");
            let (local, remote) = LOCATORS[family];
            let (local, remote): (IpAddr, IpAddr) = (local.parse().expect("address"), remote.parse().expect("address"));
            let mut frame = MemFrame::new(&before);
            tunnel(encapsulation, family).encapsulate(&mut frame, &packet.headers(), entropy, 1500).expect("fits");
            prop_assert_eq!(frame.data().len(), before.len() + overhead(encapsulation, family == 0));

            let outer = Packet::from_ethernet(frame.data()).expect("sound").expect("IP");
            prop_assert_eq!(outer.network.source(), local);
            prop_assert_eq!(outer.network.destination(), remote);
            let inner = tunnelled(frame.data(), &outer).expect("a packet inside");
            prop_assert_eq!(inner.network, packet.network);
            let moved = decapsulate(&mut frame, &outer, &inner).expect("long enough");
            prop_assert_eq!(Packet::from_ethernet(frame.data()), Ok(Some(moved)));
            prop_assert_eq!(&frame.data()[12..], &before[12..]);
        }

        /// What is rewritten has sound checksums, and is what it was once it is turned back.
        #[test]
        fn rewritten_and_turned_back(
            v6 in any::<bool>(),
            tag in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let before = segment(v6, tag, &payload);
            let packet = Packet::from_ethernet(&before).expect("sound").expect("IP");
            let mut frame = MemFrame::new(&before);
            let to = tunnel(Encapsulation::Rewrite, usize::from(v6));
            to.encapsulate(&mut frame, &packet.headers(), 1, 1500).expect("fits");
            let moved = Packet::from_ethernet(frame.data()).expect("sound").expect("IP");
            prop_assert_eq!(moved.network.source(), packet.network.source());
            prop_assert_eq!(moved.network.destination().to_string(), LOCATORS[usize::from(v6)].1);
            let rewritten = frame.data().to_vec();
            let sliced = SlicedPacket::from_ethernet(&rewritten).expect("sound");
            let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
            let header = tcp.to_header();
            match sliced.net.expect("IP") {
                NetSlice::Ipv4(ip) => {
                    let ip = ip.header().to_header();
                    prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                    prop_assert_eq!(header.checksum, header.calc_checksum_ipv4(&ip, tcp.payload()).expect("short"));
                }
                NetSlice::Ipv6(ip) => {
                    let ip = ip.header().to_header();
                    prop_assert_eq!(header.checksum, header.calc_checksum_ipv6(&ip, tcp.payload()).expect("short"));
                }
                NetSlice::Arp(_) => panic!("no IP"),
            }
            turn_back(&mut frame, &moved.headers(), packet.network.destination()).expect("long enough");
            prop_assert_eq!(&frame.data()[12..], &before[12..]);
            let other = tunnel(Encapsulation::Rewrite, usize::from(!v6));
            let refused = other.encapsulate(&mut frame, &packet.headers(), 1, 1500);
            prop_assert_eq!(refused, Err(EncapError::OtherFamily));
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
        gue4().encapsulate(&mut frame, &packet.headers(), 0x1234, 1500).expect("fits");
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

    /// An independent decoder agrees with IP in IP, checksum included.
    #[test]
    fn etherparse_reads_ip_in_ip() {
        for v6 in [false, true] {
            let before = segment(v6, false, b"hello");
            let packet = Packet::from_ethernet(&before).expect("sound").expect("IP");
            let mut frame = MemFrame::new(&before);
            let ipip = tunnel(Encapsulation::Ipip, 0);
            ipip.encapsulate(&mut frame, &packet.headers(), 0x1234, 1500).expect("fits");
            let sliced = SlicedPacket::from_ethernet(frame.data()).expect("a sound packet");
            let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("no IPv4") };
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(header.protocol.0, if v6 { 41 } else { 4 });
            assert_eq!(ip.payload().payload, &before[14..]);
        }
    }

    #[test]
    fn too_big_or_no_room_leaves_the_frame_alone() {
        let before = segment(false, false, &[0; 100]);
        let headers = Packet::from_ethernet(&before).expect("sound").expect("IP").headers();
        for encapsulation in [Encapsulation::Gue, Encapsulation::Ipip, Encapsulation::Rewrite] {
            let mut frame = MemFrame::new(&before);
            let mtu = headers.packet_length() + overhead(encapsulation, true);
            let outcome = tunnel(encapsulation, 0).encapsulate(&mut frame, &headers, 0, mtu - 1);
            assert_eq!(outcome, Err(EncapError::TooBig));
            assert_eq!(frame.data(), before);
        }
        let mut frame = MemFrame::new(&before);
        while frame.prepend(16).is_some() {}
        let used_up = frame.clone();
        assert_eq!(gue4().encapsulate(&mut frame, &headers, 0, 1500), Err(EncapError::NoHeadroom));
        assert_eq!(frame, used_up);
    }
}
