//! Wire headers as `zerocopy` structs, each under the RFC that draws it. Never checks values:
//! [`crate::packet`] does.

use std::net::{Ipv4Addr, Ipv6Addr};

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;

/// IP protocol number of ICMP (RFC 792).
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of ICMPv6 (RFC 4443).
pub const PROTOCOL_ICMPV6: u8 = 58;
/// IP protocol number of IPv4 in IP (RFC 2003).
pub const PROTOCOL_IPV4: u8 = 4;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of IPv6 in IP (RFC 2473).
pub const PROTOCOL_IPV6: u8 = 41;
/// IPv6 next header: hop-by-hop options (RFC 8200 §4.3).
pub const NEXT_HOP_BY_HOP: u8 = 0;
/// IPv6 next header: routing (RFC 8200 §4.4).
pub const NEXT_ROUTING: u8 = 43;
/// IPv6 next header: fragment (RFC 8200 §4.5).
pub const NEXT_FRAGMENT: u8 = 44;
/// IPv6 next header: destination options (RFC 8200 §4.6).
pub const NEXT_DESTINATION: u8 = 60;

/// An Ethernet II header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Ethernet {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// EtherType of what follows.
    pub ethertype: U16,
}

/// An 802.1Q tag, as it stands behind the EtherType 0x8100.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Vlan {
    /// Priority, drop eligibility and VLAN id.
    pub tci: U16,
    /// EtherType of what follows.
    pub ethertype: U16,
}

/// An IPv4 header without options (RFC 791 §3.1).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv4 {
    /// Version (4) and header length in 32-bit words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload in bytes.
    pub total_length: U16,
    /// Identification, for fragments.
    pub identification: U16,
    /// Flags (bit 14: don't fragment, bit 13: more fragments) and offset in 8-byte units.
    pub flags_fragment: U16,
    /// Hops left.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Internet checksum of the header.
    pub checksum: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Ipv4 {
    /// Header length in bytes, as the header claims it.
    #[must_use]
    pub fn header_length(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }

    /// Whether this is a fragment: more follow, or it does not start at 0.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.flags_fragment.get() & 0x3fff != 0
    }

    /// Where a fragment's payload belongs in the whole packet's, in bytes.
    #[must_use]
    pub fn offset(&self) -> u16 {
        (self.flags_fragment.get() & 0x1fff) << 3
    }

    /// Source address.
    #[must_use]
    pub fn source_addr(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.source)
    }

    /// Destination address.
    #[must_use]
    pub fn destination_addr(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.destination)
    }
}

/// An IPv6 header (RFC 8200 §3).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv6 {
    /// Version (6), traffic class and flow label.
    pub version_class_label: U32,
    /// Length of all that follows this header, in bytes.
    pub payload_length: U16,
    /// Protocol of the next header.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Ipv6 {
    /// Source address.
    #[must_use]
    pub fn source_addr(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.source)
    }

    /// Destination address.
    #[must_use]
    pub fn destination_addr(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.destination)
    }
}

/// An IPv6 fragment header (RFC 8200 §4.5).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv6Fragment {
    /// Protocol of the first header of the part that is fragmented.
    pub next_header: u8,
    /// Reserved.
    pub reserved: u8,
    /// Offset in 8-byte units (13 bits), two reserved bits, and whether more fragments follow.
    pub offset_more: U16,
    /// Identification.
    pub identification: U32,
}

impl Ipv6Fragment {
    /// Where the fragment's payload belongs in the whole packet's, in bytes.
    #[must_use]
    pub fn offset(&self) -> u16 {
        self.offset_more.get() & 0xfff8
    }

    /// Whether this is no fragment at all but a whole packet with a fragment header (RFC 6946).
    #[must_use]
    pub fn is_atomic(&self) -> bool {
        self.offset_more.get() & 0xfff9 == 0
    }
}

/// A TCP header without options (RFC 9293 §3.1).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub source_port: U16,
    /// Destination port.
    pub destination_port: U16,
    /// Sequence number.
    pub sequence: U32,
    /// Acknowledgement number.
    pub acknowledgement: U32,
    /// Header length in 32-bit words, in the upper four bits.
    pub data_offset: u8,
    /// The control bits.
    pub flags: TcpFlags,
    /// Window.
    pub window: U16,
    /// Internet checksum of pseudo-header, header and payload.
    pub checksum: U16,
    /// Urgent pointer.
    pub urgent: U16,
}

/// TCP control bits (RFC 9293 §3.1).
#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq,
)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: TcpFlags = TcpFlags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: TcpFlags = TcpFlags(0x02);
    /// Reset the connection.
    pub const RST: TcpFlags = TcpFlags(0x04);
    /// Push.
    pub const PSH: TcpFlags = TcpFlags(0x08);
    /// The acknowledgement number counts.
    pub const ACK: TcpFlags = TcpFlags(0x10);

    /// Whether every bit of `other` is set.
    #[must_use]
    pub const fn contains(self, other: TcpFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn and(self, other: TcpFlags) -> TcpFlags {
        TcpFlags(self.0 | other.0)
    }
}

/// A UDP header (RFC 768).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub source_port: U16,
    /// Destination port.
    pub destination_port: U16,
    /// Length of header and payload in bytes.
    pub length: U16,
    /// Internet checksum; 0 means none.
    pub checksum: U16,
}

/// A GUE header, version 0, without extension fields
/// (draft-ietf-intarea-gue-09 §3.1; UDP port 6080). The same as Linux's `struct guehdr`
/// (`include/net/gue.h`): its `gue_udp_recv` (`net/ipv4/fou_core.c`) takes what we send, version,
/// control bit, length and flags 0, protocol 4 or 41, and its `__gue_build_header` writes the same
/// when it does not offload checksums remotely.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Gue {
    /// Version (2 bits, 0), control bit, length of the extensions in 32-bit words (5 bits).
    pub version_control_hlen: u8,
    /// IP protocol of the payload: 4 or 41.
    pub protocol: u8,
    /// Extension flags.
    pub flags: U16,
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Arp {
    /// Kind of hardware: 1 is Ethernet.
    pub hardware: U16,
    /// EtherType of the protocol.
    pub protocol: U16,
    /// Bytes of a hardware address.
    pub hardware_length: u8,
    /// Bytes of a protocol address.
    pub protocol_length: u8,
    /// 1 asks, 2 answers.
    pub operation: U16,
    /// The sender's Ethernet address.
    pub sender_hardware: [u8; 6],
    /// The sender's IPv4 address; unspecified when it only probes (RFC 5227).
    pub sender_protocol: [u8; 4],
    /// The target's Ethernet address.
    pub target_hardware: [u8; 6],
    /// The target's IPv4 address.
    pub target_protocol: [u8; 4],
}

/// A Neighbour Solicitation or Advertisement without its options (RFC 4861 §4.3, §4.4).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Neighbour {
    /// 135 asks, 136 answers.
    pub kind: u8,
    /// 0.
    pub code: u8,
    /// Internet checksum of pseudo-header and message.
    pub checksum: U16,
    /// Of an answer: from a router (bit 31), asked for (30), and to be believed in the place of what
    /// is known (29).
    pub flags: U32,
    /// The address that is asked for.
    pub target: [u8; 16],
}

/// UDP destination port of GUE, unless configured otherwise.
pub const GUE_PORT: u16 = 6080;
