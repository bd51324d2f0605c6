//! The host port through the NIC's own switch: the kernel has another virtual function of the same
//! physical one, and the uplink is the only port. A frame for the host is one to the kernel's
//! Ethernet address; for our next hops we answer ARP and Neighbour Discovery, as nobody else does.
//! Knows nothing of sessions, allocates nothing.
//!
//! ```text
//!              wire
//!               │
//!      ┌────────┴─────────┐
//!      │  the NIC's switch│
//!      └──┬────────────┬──┘
//!    ours │            │ the kernel's
//!     appliance ─────► kernel ─────► wire     its answers do not come by here (inbound only)
//! ```
//!
//! The NIC gives broadcasts and multicasts to every function, the sender's too. So none is ever
//! sent on: the kernel has its own copy, and what came from ourselves would go round for ever.

use std::net::{IpAddr, Ipv6Addr};

use arrayvec::ArrayVec;
use holdfast_net::checksum::{add, checksum, sum};
use holdfast_net::headers::{
    Arp, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, Ethernet, Ipv6, Neighbour,
    PROTOCOL_ICMPV6,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::encap::LINK_HEADER_MAX;
use crate::port::Port;
use crate::stats::Counter;

/// Most next hops of a server.
pub const NEXT_HOPS_MAX: usize = 8;
/// Longest answer: a tagged Neighbour Advertisement with one option, in bytes.
pub const ANSWER_MAX: usize =
    LINK_HEADER_MAX + size_of::<Ipv6>() + size_of::<Neighbour>() + LINK_OPTION;
/// Shortest frame on the wire, without its checksum, in bytes (IEEE 802.3 §4A.4.2).
const FRAME_MIN: usize = 60;
/// Bytes of an option that has an Ethernet address (RFC 4861 §4.6.1).
const LINK_OPTION: usize = 8;

const ARP_ETHERNET: u16 = 1;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// Types of ICMPv6 that are Neighbour Discovery, Router Solicitation to Redirect (RFC 4861 §4).
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Flags of an advertisement: it was asked for; it counts more than what is known.
const SOLICITED: u32 = 1 << 30;
const OVERRIDE: u32 = 1 << 29;
/// Options that tell an Ethernet address: the sender's, the target's.
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
/// Only a neighbour's packet has all of its hops left (RFC 4861 §7.1).
const HOPS: u8 = 255;

/// The stations that the NIC's switch tells apart, and the addresses that are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// The uplink's Ethernet address.
    pub ours: [u8; 6],
    /// The Ethernet address of the kernel's function.
    pub kernel: [u8; 6],
    /// Addresses on the uplink's link that we answer for: the fabric's next hop for the services.
    pub next_hops: ArrayVec<IpAddr, NEXT_HOPS_MAX>,
}

/// What a frame is by its Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arriving {
    /// To us: go on with it.
    Ours,
    /// ARP or Neighbour Discovery: see [`Switch::answer`].
    Neighbour,
    /// Drop it, for this reason.
    Drop(Counter),
}

/// An answer, as a whole frame.
pub type Answer = ArrayVec<u8, ANSWER_MAX>;

impl Switch {
    /// The Ethernet multicast addresses that Neighbour Solicitations for our next hops come to: those
    /// of their solicited-node addresses (RFC 4291 §2.7.1, RFC 2464 §7).
    #[must_use]
    pub fn groups(&self) -> Vec<[u8; 6]> {
        let group = |address: &IpAddr| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => {
                let [.., a, b, c] = address.octets();
                Some([0x33, 0x33, 0xff, a, b, c])
            }
        };
        let mut groups: Vec<_> = self.next_hops.iter().filter_map(group).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Tells by a frame's addresses whether it is for us.
    #[inline(always)]
    #[must_use]
    pub fn sort(&self, frame: &[u8]) -> Arriving {
        let Some((link, _)) = frame.split_first_chunk::<{ size_of::<Ethernet>() }>() else {
            return Arriving::Drop(Counter::SwitchNotOurs);
        };
        let is_ours = link[..6] == self.ours;
        let is_plain = link[12..] == ETHERTYPE_IPV4.to_be_bytes();
        if is_ours && is_plain && link[6..12] != self.kernel && link[6..12] != self.ours {
            return Arriving::Ours;
        }
        self.sort_other(frame)
    }

    #[inline(never)]
    fn sort_other(&self, frame: &[u8]) -> Arriving {
        let (destination, source) = (&frame[..6], &frame[6..12]);
        let (is_ours, is_group) = (destination == self.ours, destination[0] & 1 == 1);
        if source == self.ours {
            return Arriving::Drop(Counter::SwitchReflected);
        }
        if !is_ours && !is_group {
            return Arriving::Drop(Counter::SwitchNotOurs);
        }
        if is_neighbour(frame) {
            return Arriving::Neighbour;
        }
        if is_group {
            return Arriving::Drop(Counter::SwitchGroup);
        }
        if source == self.kernel {
            return Arriving::Drop(Counter::SwitchFromHost);
        }
        Arriving::Ours
    }

    /// Addresses a frame to the kernel.
    pub fn address(&self, frame: &mut [u8]) {
        if let Some(link) = frame.first_chunk_mut::<12>() {
            link[..6].copy_from_slice(&self.kernel);
            link[6..].copy_from_slice(&self.ours);
        }
    }

    /// The answer to ARP or Neighbour Discovery that asks for a next hop of ours.
    ///
    /// # Errors
    /// Why there is none, as the counter of what is dropped.
    #[inline(never)]
    pub fn answer(&self, frame: &[u8]) -> Result<Answer, Counter> {
        let link = link_length(frame);
        match ethertype(frame, link) {
            Some(ETHERTYPE_ARP) => self.answer_arp(frame, link),
            _ => self.answer_solicitation(frame, link),
        }
    }

    fn is_next_hop(&self, address: impl Into<IpAddr>) -> bool {
        self.next_hops.contains(&address.into())
    }

    fn answer_arp(&self, frame: &[u8], link: usize) -> Result<Answer, Counter> {
        let malformed = Counter::NeighbourMalformed;
        let (asked, _) = Arp::ref_from_prefix(&frame[link..]).map_err(|_| malformed)?;
        let is_sound = asked.hardware.get() == ARP_ETHERNET
            && asked.protocol.get() == ETHERTYPE_IPV4
            && (asked.hardware_length, asked.protocol_length) == (6, 4)
            && is_station(&asked.sender_hardware)
            && is_station(&frame[6..12]);
        if !is_sound {
            return Err(malformed);
        }
        if self.is_next_hop(asked.sender_protocol) {
            return Err(Counter::NeighbourConflict);
        }
        if asked.operation.get() != ARP_REQUEST || !self.is_next_hop(asked.target_protocol) {
            return Err(Counter::NeighbourOther);
        }
        let reply = Arp {
            operation: ARP_REPLY.into(),
            sender_hardware: self.ours,
            sender_protocol: asked.target_protocol,
            target_hardware: asked.sender_hardware,
            target_protocol: asked.sender_protocol,
            ..*asked
        };
        let mut answer =
            self.answer_link(frame, link, frame[6..12].try_into().map_err(|_| malformed)?);
        extend(&mut answer, reply.as_bytes());
        while answer.len() < FRAME_MIN {
            answer.push(0);
        }
        Ok(answer)
    }

    /// RFC 4861 §7.1.1 says which solicitations are sound, §7.2.4 how they are answered.
    fn answer_solicitation(&self, frame: &[u8], link: usize) -> Result<Answer, Counter> {
        let malformed = Counter::NeighbourMalformed;
        let (network, rest) = Ipv6::ref_from_prefix(&frame[link..]).map_err(|_| malformed)?;
        let message = rest.get(..network.payload_length.get().into()).ok_or(malformed)?;
        if !matches!(message.first(), Some(&(SOLICITATION | ADVERTISEMENT))) {
            return Err(Counter::NeighbourOther);
        }
        let (asked, options) = Neighbour::ref_from_prefix(message).map_err(|_| malformed)?;
        let (source, destination) = (network.source_addr(), network.destination_addr());
        let has_source_option = options_have(options, OPTION_SOURCE).ok_or(malformed)?;
        // Who looks whether an address is free has none yet, and asks all who may have it.
        let is_probe = source.is_unspecified();
        let is_probe_sound = !has_source_option && is_solicited_node(destination);
        let is_sound = network.version_class_label.get() >> 28 == 6
            && network.hop_limit == HOPS
            && asked.code == 0
            && message_sum(network, message) == 0xffff
            && !Ipv6Addr::from(asked.target).is_multicast()
            && !source.is_multicast()
            && is_station(&frame[6..12])
            && (asked.kind != SOLICITATION || !is_probe || is_probe_sound);
        if !is_sound {
            return Err(malformed);
        }
        match (asked.kind, self.is_next_hop(asked.target)) {
            (SOLICITATION, true) if self.is_next_hop(source) => Err(Counter::NeighbourConflict),
            (SOLICITATION, true) => Ok(self.advertise(frame, link, asked.target, source)),
            (_, true) => Err(Counter::NeighbourConflict),
            _ => Err(Counter::NeighbourOther),
        }
    }

    fn advertise(&self, frame: &[u8], link: usize, target: [u8; 16], asker: Ipv6Addr) -> Answer {
        const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        const ALL_NODES_LINK: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
        let (destination, to, flags) = if asker.is_unspecified() {
            (ALL_NODES, ALL_NODES_LINK, OVERRIDE)
        } else {
            let mut to = [0; 6];
            to.copy_from_slice(&frame[6..12]);
            (asker, to, SOLICITED | OVERRIDE)
        };
        let network = Ipv6 {
            version_class_label: (6 << 28).into(),
            payload_length: ((size_of::<Neighbour>() + LINK_OPTION) as u16).into(),
            next_header: PROTOCOL_ICMPV6,
            hop_limit: HOPS,
            source: target,
            destination: destination.octets(),
        };
        let neighbour = Neighbour {
            kind: ADVERTISEMENT,
            code: 0,
            checksum: 0.into(),
            flags: flags.into(),
            target,
        };
        let [a, b, c, d, e, f] = self.ours;
        let option = [OPTION_TARGET, 1, a, b, c, d, e, f];
        let mut message = [0; size_of::<Neighbour>() + LINK_OPTION];
        let (head, tail) = message.split_at_mut(size_of::<Neighbour>());
        head.copy_from_slice(neighbour.as_bytes());
        tail.copy_from_slice(&option);
        let checksum = !message_sum(&network, &message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());

        let mut answer = self.answer_link(frame, link, to);
        extend(&mut answer, network.as_bytes());
        extend(&mut answer, &message);
        answer
    }

    /// The link header of an answer to `frame`: its tag stays.
    fn answer_link(&self, frame: &[u8], link: usize, to: [u8; 6]) -> Answer {
        let mut answer = Answer::new();
        extend(&mut answer, &to);
        extend(&mut answer, &self.ours);
        extend(&mut answer, &frame[12..link]);
        answer
    }
}

fn extend(answer: &mut Answer, bytes: &[u8]) {
    // All parts together are no longer than the longest answer.
    let fits = answer.try_extend_from_slice(bytes);
    debug_assert!(fits.is_ok());
}

/// Length of the link header: with an 802.1Q tag, if there is one.
fn link_length(frame: &[u8]) -> usize {
    let is_tagged = ethertype(frame, size_of::<Ethernet>()) == Some(ETHERTYPE_VLAN)
        && frame.len() >= LINK_HEADER_MAX;
    if is_tagged { LINK_HEADER_MAX } else { size_of::<Ethernet>() }
}

/// The last two bytes of a link header of this length.
fn ethertype(frame: &[u8], link: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*frame.get(link - 2..)?.first_chunk()?))
}

/// Whether a frame is ARP or, by its first header, Neighbour Discovery, which has no extension
/// headers in practice.
fn is_neighbour(frame: &[u8]) -> bool {
    let link = link_length(frame);
    match ethertype(frame, link) {
        Some(ETHERTYPE_ARP) => true,
        Some(ETHERTYPE_IPV6) => match Ipv6::ref_from_prefix(&frame[link..]) {
            Ok((network, message)) => {
                network.next_header == PROTOCOL_ICMPV6
                    && message.first().is_some_and(|kind| NEIGHBOUR_DISCOVERY.contains(kind))
            }
            Err(_) => false,
        },
        _ => false,
    }
}

/// Whether it can be the Ethernet address of one station.
fn is_station(address: &[u8]) -> bool {
    address[0] & 1 == 0 && address.iter().any(|byte| *byte != 0)
}

/// Whether an address is one that all ask who look for another (RFC 4291 §2.7.1).
fn is_solicited_node(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [0xff02, 0, 0, 0, 0, 1, high, _] if high >> 8 == 0xff)
}

/// Whether there is an option of this kind; `None` when they are not sound.
fn options_have(mut options: &[u8], wanted: u8) -> Option<bool> {
    let mut found = false;
    while let [kind, length, ..] = *options {
        // In units of 8 bytes, and never 0.
        let length = usize::from(length) * 8;
        options = options.get(length..).filter(|_| length > 0)?;
        found |= kind == wanted;
    }
    options.is_empty().then_some(found)
}

/// The sum of an ICMPv6 message and its pseudo-header (RFC 8200 §8.1): 0xffff when its checksum is
/// right.
fn message_sum(network: &Ipv6, message: &[u8]) -> u16 {
    let length = network.payload_length.get().to_be_bytes();
    let pseudo = [0, 0, length[0], length[1], 0, 0, 0, PROTOCOL_ICMPV6];
    let addresses = add(sum(&network.source), sum(&network.destination));
    add(add(addresses, sum(&pseudo)), !checksum(message))
}

/// How frames reach the host's kernel.
#[derive(Debug)]
pub enum HostPort<H> {
    /// By a port of their own, both ways.
    Port(H),
    /// By the uplink and the NIC's switch; nothing comes back.
    Switch(Switch),
}

impl<H: Port> HostPort<H> {
    /// Sends frames to the host from the front of `frames`; those that did not fit stay, in order.
    pub(crate) fn transmit<const N: usize>(
        &mut self,
        frames: &mut ArrayVec<H::Frame, N>,
        uplink: &mut impl Port<Frame = H::Frame>,
    ) {
        match self {
            HostPort::Port(port) => port.transmit(frames),
            HostPort::Switch(_) => uplink.transmit(frames),
        }
    }
}
