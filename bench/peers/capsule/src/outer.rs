//! The outer headers, as bytes. Both tunnels are IPv4.

use crate::table::Found;

/// The kinds of tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// RFC 2003.
    Ipip,
    /// draft-ietf-intarea-gue-09, variant 0 without extensions, UDP checksum 0.
    Gue,
}

/// Our own locator.
pub const LOCAL: u32 = u32::from_be_bytes([10, 0, 0, 250]);
pub const TTL: u8 = 64;
pub const PROTOCOL_IPV4: u8 = 4;
pub const PROTOCOL_UDP: u8 = 17;
pub const GUE_PORT: u16 = 6080;
/// Version 0, no control message, no extensions; then the inner protocol; then flags.
pub const GUE: [u8; 4] = [0, PROTOCOL_IPV4, 0, 0];

pub const IPIP_LENGTH: usize = 20;
pub const GUE_LENGTH: usize = 20 + 8 + 4;

/// Source port of a flow's GUE packets: in the dynamic range.
#[inline(always)]
pub fn gue_source_port(found: Found) -> u16 {
    0xc000 | found.entropy
}

#[inline(always)]
pub fn ipip(found: Found, dscp: u8, inner_length: usize) -> [u8; IPIP_LENGTH] {
    ipv4(found.owner, PROTOCOL_IPV4, dscp, IPIP_LENGTH + inner_length)
}

#[inline(always)]
pub fn gue(found: Found, dscp: u8, inner_length: usize) -> [u8; GUE_LENGTH] {
    let length = GUE_LENGTH + inner_length;
    let mut outer = [0; GUE_LENGTH];
    outer[..20].copy_from_slice(&ipv4(found.owner, PROTOCOL_UDP, dscp, length));
    outer[20..22].copy_from_slice(&gue_source_port(found).to_be_bytes());
    outer[22..24].copy_from_slice(&GUE_PORT.to_be_bytes());
    outer[24..26].copy_from_slice(&((length - 20) as u16).to_be_bytes());
    outer[28..].copy_from_slice(&GUE);
    outer
}

/// With DF and without an identification.
#[inline(always)]
fn ipv4(remote: u32, protocol: u8, dscp: u8, length: usize) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[1] = dscp << 2;
    header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    header[6] = 0x40;
    header[8] = TTL;
    header[9] = protocol;
    header[12..16].copy_from_slice(&LOCAL.to_be_bytes());
    header[16..20].copy_from_slice(&remote.to_be_bytes());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// RFC 1071, of an even number of bytes, its own field being zero.
#[inline(always)]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
