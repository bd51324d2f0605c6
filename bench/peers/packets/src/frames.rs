//! The frames of the path's bench: made from a flow's number, and checked again when they come
//! out. Never inside the timed part.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, bail, ensure};
use holdfast_net::checksum::checksum;

use crate::flows::{Client, Family, SERVICE_PORT, SERVICE_V4, SERVICE_V6, client};

/// Router's and server's Ethernet addresses.
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0xaa];
/// Ethernet header.
const LINK: usize = 14;
/// An IPv4 segment with ten bytes of payload: 64 bytes of frame. An IPv6 segment has no payload.
const FRAME_V4: usize = 64;
const FRAME_V6: usize = 74;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPIP: u8 = 4;
const IPV6: u8 = 41;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A client's ACK to the service.
    Segment,
    /// A datagram to the service's address, which only passes through.
    Datagram,
}

/// How a redirected packet is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// In UDP, behind a GUE header.
    Gue {
        /// Destination port.
        port: u16,
    },
    /// In IP alone.
    Ipip,
    /// With its destination rewritten.
    Rewrite,
}

impl Tunnel {
    /// Bytes in front of the packet.
    #[must_use]
    pub fn overhead(self) -> usize {
        match self {
            Tunnel::Gue { .. } => 32,
            Tunnel::Ipip => 20,
            Tunnel::Rewrite => 0,
        }
    }
}

/// Bytes of a frame.
#[must_use]
pub fn length(family: Family) -> usize {
    match family {
        Family::V4 => FRAME_V4,
        Family::V6 => FRAME_V6,
    }
}

/// Writes the frame of flow `number` into `frame`, which has its length. The flow's number
/// travels in it as TCP's sequence number, or the datagram's first bytes.
pub fn write(frame: &mut [u8], number: u32, family: Family, kind: Kind) {
    let Client { v4, v6, port } = client(number);
    frame.fill(0);
    frame[..12].copy_from_slice(&MACS);
    let protocol = if kind == Kind::Segment { TCP } else { UDP };
    let at = match family {
        Family::V4 => {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            let ip = &mut frame[LINK..LINK + 20];
            ip[..4].copy_from_slice(&[0x45, 0, 0, (FRAME_V4 - LINK) as u8]);
            ip[6..10].copy_from_slice(&[0x40, 0, 60, protocol]);
            ip[12..16].copy_from_slice(&v4);
            ip[16..20].copy_from_slice(&SERVICE_V4);
            let sum = checksum(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            LINK + 20
        }
        Family::V6 => {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            let ip = &mut frame[LINK..LINK + 40];
            ip[0] = 0x60;
            ip[5] = (FRAME_V6 - LINK - 40) as u8;
            ip[6..8].copy_from_slice(&[protocol, 60]);
            ip[8..24].copy_from_slice(&v6);
            ip[24..40].copy_from_slice(&SERVICE_V6);
            LINK + 40
        }
    };
    let length = frame.len() - at;
    let transport = &mut frame[at..];
    transport[..2].copy_from_slice(&port.to_be_bytes());
    transport[2..4].copy_from_slice(&SERVICE_PORT.to_be_bytes());
    match kind {
        Kind::Segment => {
            transport[4..8].copy_from_slice(&number.to_be_bytes());
            transport[12] = 0x50;
            transport[13] = 0x10;
            transport[14..16].copy_from_slice(&[0x10, 0]);
            let sum = tcp_checksum(frame, family);
            frame[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
        }
        Kind::Datagram => {
            transport[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            transport[8..12].copy_from_slice(&number.to_be_bytes());
        }
    }
}

/// The checksum of the TCP segment in `frame`, its own field included: 0 when it is right.
fn tcp_checksum(frame: &[u8], family: Family) -> u16 {
    let (addresses, transport) = match family {
        Family::V4 => (LINK + 12, LINK + 20),
        Family::V6 => (LINK + 8, LINK + 40),
    };
    let mut covered = frame[addresses..].to_vec();
    covered.extend([0, TCP]);
    covered.extend(((frame.len() - transport) as u16).to_be_bytes());
    checksum(&covered)
}

/// Checks that `out` is the segment of some flow whose destination became its owner's locator,
/// with the checksums that this needs.
///
/// # Errors
/// When it is not.
pub fn check_rewritten(out: &[u8], family: Family, owner: impl Fn(u32) -> IpAddr) -> Result<()> {
    let length = length(family);
    ensure!(out.len() == length, "a frame of {} bytes came out", out.len());
    let transport = LINK + if family == Family::V4 { 20 } else { 40 };
    ensure!(tcp_checksum(out, family) == 0, "TCP checksum of {out:02x?}");
    let at = transport + 4;
    let number = u32::from_be_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
    let destination = &out[transport - if family == Family::V4 { 4 } else { 16 }..transport];
    let is_owner = match owner(number) {
        IpAddr::V4(owner) => destination == owner.octets(),
        IpAddr::V6(owner) => destination == owner.octets(),
    };
    ensure!(is_owner, "flow {number} went to {destination:?}");
    ensure!(
        family == Family::V6 || checksum(&out[LINK..transport]) == 0,
        "IPv4 checksum of {out:02x?}"
    );
    // All else is as it was.
    let mut expected = [0; FRAME_V6];
    let expected = &mut expected[..length];
    write(expected, number, family, Kind::Segment);
    expected[..12].rotate_left(6);
    let mut masked = out.to_vec();
    for same in [&mut masked[..], &mut expected[..]] {
        same[transport - destination.len()..transport].fill(0);
        same[transport + 16..transport + 18].fill(0);
        if family == Family::V4 {
            same[LINK + 10..LINK + 12].fill(0);
        }
    }
    ensure!(masked == expected, "flow {number}: {out:02x?} came out");
    Ok(())
}

/// Checks that `out` is the frame of some flow, unchanged but for what `swapped` says of its
/// Ethernet addresses. Returns the flow's number.
///
/// # Errors
/// When it is not.
pub fn check(out: &[u8], family: Family, kind: Kind, swapped: bool) -> Result<u32> {
    ensure!(out.len() == length(family), "a frame of {} bytes came out", out.len());
    let transport = LINK + if family == Family::V4 { 20 } else { 40 };
    let at = transport + if kind == Kind::Segment { 4 } else { 8 };
    let number = u32::from_be_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
    let mut expected = [0; FRAME_V6];
    let expected = &mut expected[..length(family)];
    write(expected, number, family, kind);
    if swapped {
        expected[..12].rotate_left(6);
    }
    ensure!(out == expected, "flow {number}: {out:02x?} came out, not {expected:02x?}");
    Ok(number)
}

/// Checks that `out` is the segment of some flow in a tunnel from `local` to the flow's owner,
/// the packet inside untouched.
///
/// # Errors
/// When it is not.
pub fn check_tunnelled(
    out: &[u8],
    family: Family,
    tunnel: Tunnel,
    local: Ipv4Addr,
    owner: impl Fn(u32) -> IpAddr,
) -> Result<()> {
    let overhead = tunnel.overhead();
    let inner_length = length(family) - LINK;
    ensure!(out.len() == LINK + overhead + inner_length, "{} bytes came out", out.len());
    let (ip, rest) = out[LINK..].split_at(20);
    let mut inner = out[..LINK].to_vec();
    inner[12..].copy_from_slice(if family == Family::V4 { &[8, 0] } else { &[0x86, 0xdd] });
    inner.extend_from_slice(&rest[overhead - 20..]);
    let number = check(&inner, family, Kind::Segment, true)?;

    let inside = if family == Family::V4 { IPIP } else { IPV6 };
    let protocol = if tunnel == Tunnel::Ipip { inside } else { UDP };
    ensure!(out[12..14] == [8, 0], "the outer packet is no IPv4: {out:02x?}");
    ensure!(ip[0] == 0x45 && ip[8] > 1 && ip[9] == protocol, "outer header {ip:02x?}");
    let total = u16::from_be_bytes([ip[2], ip[3]]);
    ensure!(usize::from(total) == overhead + inner_length, "outer length {total}");
    ensure!(checksum(ip) == 0, "outer checksum of {ip:02x?}");
    ensure!(ip[12..16] == local.octets(), "outer source of {ip:02x?}");
    match owner(number) {
        IpAddr::V4(owner) => ensure!(ip[16..20] == owner.octets(), "flow {number}: {ip:02x?}"),
        IpAddr::V6(_) => bail!("owners are IPv4 here"),
    }
    if let Tunnel::Gue { port } = tunnel {
        let udp = &rest[..12];
        ensure!(udp[2..4] == port.to_be_bytes(), "outer port of {udp:02x?}");
        let length = u16::from_be_bytes([udp[4], udp[5]]);
        ensure!(usize::from(length) == 12 + inner_length, "outer UDP length {length}");
        ensure!(udp[8..] == [0, inside, 0, 0], "GUE header of {udp:02x?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_shows() {
        for family in [Family::V4, Family::V6] {
            let mut frame = vec![0; length(family)];
            write(&mut frame, 77, family, Kind::Segment);
            assert_eq!(check(&frame, family, Kind::Segment, false).ok(), Some(77));
            for at in 0..frame.len() {
                frame[at] ^= 1;
                assert!(check(&frame, family, Kind::Segment, false).is_err(), "byte {at}");
                frame[at] ^= 1;
            }
        }
    }
}
