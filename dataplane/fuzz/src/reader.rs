//! What a frame is, read as plainly as the rules say it: the worker's reader must come to the same.
//! Never shares code with that.

use std::net::IpAddr;
use std::ops::Range;

use holdfast_net::FlowKey;

use super::world::{Form, REFLECTED_MAC, World};

/// What a frame is to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// None of ours, sound or not.
    Other,
    /// None of ours, to all or many, and the host has sent it itself.
    Reflected,
    /// A fragment of what may be a service's TCP, or, rewritten, ours (R10): where its IP packet
    /// lies, and the segment, if it is the first with all of TCP's header.
    Fragment(Range<usize>, Option<Segment>),
    /// A segment of a service's flow.
    Segment(Segment),
    /// A tunnel packet to our locator: who sent it, and what is inside, if that may be there.
    Tunnel(IpAddr, Option<Inside>),
    /// By the NIC's switch, and not for us: ends here, or, from a neighbour that asks for us, is
    /// answered.
    Switched,
    /// A segment or an ICMP error whose destination was this service's address before it was
    /// rewritten to our locator.
    Rewritten(Segment, IpAddr),
}

/// A segment, or an ICMP error about one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its flow.
    pub flow: FlowKey,
    /// Its control bits; none of an ICMP error.
    pub flags: u8,
    /// Whether it is an ICMP error.
    pub is_error: bool,
    /// Where its IP packet lies in the frame.
    pub packet: Range<usize>,
    /// Where its TCP or ICMP header begins in the frame.
    pub transport: usize,
}

/// What a tunnel packet brings: a segment, an ICMP error, or a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// Where its IP packet lies in the frame.
    pub packet: Range<usize>,
    /// Where the link header of the frame ends.
    pub link: usize,
    /// The segment or ICMP error; none of a fragment behind the first.
    pub segment: Option<Segment>,
}

impl Segment {
    /// Whether it opens a connection: SYN and no ACK.
    pub fn is_syn(&self) -> bool {
        !self.is_error && self.flags & 0x12 == 0x02
    }

    /// Whether it answers one that does.
    pub fn is_syn_ack(&self) -> bool {
        self.flags & 0x12 == 0x12
    }

    /// Whether it resets one.
    pub fn is_rst(&self) -> bool {
        self.flags & 0x04 != 0
    }

    /// Whether it resets one for want of a socket: RST without ACK.
    pub fn is_bare_rst(&self) -> bool {
        self.flags & 0x14 == 0x04
    }

    /// Whether its sender ends the session: FIN or RST.
    pub fn is_last(&self) -> bool {
        self.flags & 0x05 != 0
    }
}

/// A sound IP packet.
struct Packet {
    range: Range<usize>,
    transport: usize,
    source: IpAddr,
    destination: IpAddr,
    content: Content,
}

enum Content {
    /// With this offset; the first header of what was fragmented; and what the packet carries, as
    /// far as this fragment tells.
    Fragment(u16, u8, u8),
    Protocol(u8),
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn address(bytes: &[u8], at: usize, is_v6: bool) -> Option<IpAddr> {
    let octets = bytes.get(at..)?;
    Some(match is_v6 {
        false => IpAddr::from(*octets.first_chunk::<4>()?),
        true => IpAddr::from(*octets.first_chunk::<16>()?),
    })
}

/// Where the link header ends and which IP version it announces.
fn link(frame: &[u8]) -> Option<(usize, u8)> {
    let (end, ethertype) = match u16_at(frame, 12)? {
        0x8100 => (18, u16_at(frame, 16)?),
        ethertype => (14, ethertype),
    };
    match ethertype {
        0x0800 => Some((end, 4)),
        0x86dd => Some((end, 6)),
        _ => None,
    }
}

/// The sound IP packet of this version at `at`.
fn packet(bytes: &[u8], at: usize, version: u8) -> Option<Packet> {
    if bytes.get(at)? >> 4 != version {
        return None;
    }
    let packet = if version == 4 { packet_v4(bytes, at)? } else { packet_v6(bytes, at)? };
    let payload = &bytes[packet.transport..packet.range.end];
    let sound = match packet.content {
        Content::Fragment(..) => true,
        Content::Protocol(6) => {
            let length = usize::from(payload.get(12)? >> 4) * 4;
            length >= 20 && payload.len() >= 20 && length <= payload.len()
        }
        Content::Protocol(17) => {
            let length = usize::from(u16_at(payload, 4)?);
            payload.len() >= 8 && (8..=payload.len()).contains(&length)
        }
        Content::Protocol(_) => true,
    };
    sound.then_some(packet)
}

fn packet_v4(bytes: &[u8], at: usize) -> Option<Packet> {
    bytes.get(at..at + 20)?;
    let header = usize::from(bytes[at] & 0x0f) * 4;
    let total = usize::from(u16_at(bytes, at + 2)?);
    if header < 20 || total < header || at + total > bytes.len() || at + total > 0xffff {
        return None;
    }
    let (field, protocol) = (u16_at(bytes, at + 6)?, bytes[at + 9]);
    let content = match field & 0x3fff {
        0 => Content::Protocol(protocol),
        _ => Content::Fragment(field & 0x1fff, protocol, protocol),
    };
    Some(Packet {
        range: at..at + total,
        transport: at + header,
        source: address(bytes, at + 12, false)?,
        destination: address(bytes, at + 16, false)?,
        content,
    })
}

fn packet_v6(bytes: &[u8], at: usize) -> Option<Packet> {
    bytes.get(at..at + 40)?;
    let end = at + 40 + usize::from(u16_at(bytes, at + 4)?);
    if end > bytes.len() || end > 0xffff {
        return None;
    }
    let (mut next, mut transport, mut headers, mut is_first) = (bytes[at + 6], at + 40, 0, false);
    let (mut offset, mut fragmented) = (0, 0);
    while [0, 43, 60].contains(&next) || next == 44 && !is_first {
        headers += 1;
        let is_fragment = next == 44;
        if headers > 9 || transport + if is_fragment { 8 } else { 2 } > end {
            return None;
        }
        next = bytes[transport];
        if is_fragment {
            let field = u16_at(bytes, transport + 2)?;
            transport += 8;
            fragmented = next;
            offset = field >> 3;
            // One that is whole is none (RFC 6946).
            is_first = offset == 0 && field & 1 != 0;
            if offset != 0 {
                break;
            }
        } else {
            transport += 8 * (usize::from(bytes[transport + 1]) + 1);
        }
        if transport > end {
            return None;
        }
    }
    if headers > 8 && offset == 0 {
        return None;
    }
    Some(Packet {
        range: at..end,
        transport,
        source: address(bytes, at + 8, true)?,
        destination: address(bytes, at + 24, true)?,
        content: match is_first || offset != 0 {
            true => Content::Fragment(offset, fragmented, next),
            false => Content::Protocol(next),
        },
    })
}

/// Which end of a flow a packet's source is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Client,
    Service,
}

impl World {
    /// What a frame from the uplink is.
    pub fn read_uplink(&self, frame: &[u8]) -> Reading {
        let is_reflected = frame.len() >= 12 && frame[0] & 1 != 0 && frame[6..12] == REFLECTED_MAC;
        let other = if is_reflected { Reading::Reflected } else { Reading::Other };
        self.uplink(frame).unwrap_or(other)
    }

    /// The service's segment that a frame from the host is.
    pub fn read_host(&self, frame: &[u8]) -> Option<Segment> {
        let (at, version) = link(frame)?;
        let packet = packet(frame, at, version)?;
        self.segment(frame, &packet, From::Service)
    }

    fn uplink(&self, frame: &[u8]) -> Option<Reading> {
        let (at, version) = link(frame)?;
        let packet = packet(frame, at, version)?;
        let is_ours = packet.destination == self.locator();
        let protocol = match packet.content {
            Content::Fragment(..) => {
                let may =
                    self.is_service(packet.destination) || is_ours && self.form == Form::Rewrite;
                let (range, first) = (packet.range.clone(), self.first(frame, &packet));
                return (may && packet.may_be_tcp()).then_some(Reading::Fragment(range, first));
            }
            Content::Protocol(protocol) => protocol,
        };
        if let Some(segment) = self.segment(frame, &packet, From::Client) {
            return Some(Reading::Segment(segment));
        }
        let payload = &frame[packet.transport..packet.range.end];
        if is_ours && protocol == 17 && u16_at(payload, 2)? == World::TUNNEL_PORT {
            return Some(Reading::Tunnel(packet.source, self.inside_gue(frame, at, &packet)));
        }
        if is_ours && self.form == Form::Ipip && (protocol == 4 || protocol == 41) {
            let end = packet.range.end;
            let inside = self.inside(&frame[..end], at, packet.transport, protocol);
            return Some(Reading::Tunnel(packet.source, inside));
        }
        if is_ours && self.form == Form::Rewrite && protocol == 6 {
            let (client, port) = (u16_at(payload, 0)?, u16_at(payload, 2)?);
            let service = self.service_of_port(port, version == 6)?;
            let flow = self.flow((packet.source, client), (service, port))?;
            let segment = segment(flow, payload[13], false, &packet);
            return Some(Reading::Rewritten(segment, service));
        }
        let (error, service) = self.error(frame, &packet)?;
        Some(if is_ours && self.form == Form::Rewrite {
            Reading::Rewritten(error, service)
        } else {
            Reading::Segment(error)
        })
    }

    fn inside_gue(&self, frame: &[u8], link: usize, outer: &Packet) -> Option<Inside> {
        let udp_length = usize::from(u16_at(frame, outer.transport + 4)?);
        let datagram = &frame[..outer.transport + udp_length];
        let gue = datagram.get(outer.transport + 8..outer.transport + 12)?;
        // Version, control bit, flags.
        if gue[0] & 0xe0 != 0 || gue[2] != 0 || gue[3] != 0 {
            return None;
        }
        let fields = usize::from(gue[0] & 0x1f) * 4;
        self.inside(datagram, link, outer.transport + 12 + fields, gue[1])
    }

    fn inside(&self, bytes: &[u8], link: usize, at: usize, protocol: u8) -> Option<Inside> {
        let version = match protocol {
            4 => 4,
            41 => 6,
            _ => return None,
        };
        let packet = packet(bytes, at, version)?;
        let is_fragment = matches!(packet.content, Content::Fragment(1.., ..));
        let segment = if is_fragment {
            let may = self.is_service(packet.destination) && packet.may_be_tcp();
            may.then_some(None)?
        } else {
            let first = self.first(bytes, &packet).filter(|_| packet.may_be_tcp());
            let segment = first.or_else(|| self.segment(bytes, &packet, From::Client));
            Some(segment.or_else(|| Some(self.error(bytes, &packet)?.0))?)
        };
        Some(Inside { packet: packet.range, link, segment })
    }

    /// The segment to a service whose first fragment a packet is.
    fn first(&self, frame: &[u8], packet: &Packet) -> Option<Segment> {
        let Content::Fragment(0, _, 6) = packet.content else { return None };
        let tcp = &frame[packet.transport..packet.range.end];
        let length = usize::from(tcp.get(12)? >> 4) * 4;
        if length < 20 || length > tcp.len() || tcp.len() < 20 {
            return None;
        }
        let (client, service) = (u16_at(tcp, 0)?, u16_at(tcp, 2)?);
        let flow = self.flow((packet.source, client), (packet.destination, service))?;
        Some(segment(flow, tcp[13], false, packet))
    }

    fn segment(&self, frame: &[u8], packet: &Packet, from: From) -> Option<Segment> {
        let Content::Protocol(6) = packet.content else { return None };
        let ports = (u16_at(frame, packet.transport)?, u16_at(frame, packet.transport + 2)?);
        let ends = ((packet.source, ports.0), (packet.destination, ports.1));
        let flow = match from {
            From::Client => self.flow(ends.0, ends.1)?,
            From::Service => self.flow(ends.1, ends.0)?,
        };
        Some(segment(flow, frame[packet.transport + 13], false, packet))
    }

    /// An ICMP error about a service's segment, and the service's address.
    fn error(&self, frame: &[u8], packet: &Packet) -> Option<(Segment, IpAddr)> {
        let icmp = &frame[packet.transport..packet.range.end];
        let quoted = icmp.get(8..)?;
        let (source, destination, tcp) = match (packet.content_protocol(), packet.source) {
            (1, IpAddr::V4(_)) if [3, 11, 12].contains(&icmp[0]) => {
                quoted.get(..20)?;
                let header = usize::from(quoted[0] & 0x0f) * 4;
                let is_first = u16_at(quoted, 6)? & 0x1fff == 0;
                if quoted[0] >> 4 != 4 || header < 20 || quoted[9] != 6 || !is_first {
                    return None;
                }
                (address(quoted, 12, false)?, address(quoted, 16, false)?, quoted.get(header..)?)
            }
            (58, IpAddr::V6(_)) if (1..=4).contains(&icmp[0]) => {
                quoted.get(..40)?;
                if quoted[0] >> 4 != 6 || quoted[6] != 6 {
                    return None;
                }
                (address(quoted, 8, true)?, address(quoted, 24, true)?, &quoted[40..])
            }
            _ => return None,
        };
        let (service_port, client_port) = (u16_at(tcp, 0)?, u16_at(tcp, 2)?);
        let flow = self.flow((destination, client_port), (source, service_port))?;
        Some((segment(flow, 0, true, packet), source))
    }
}

impl Packet {
    fn content_protocol(&self) -> u8 {
        match self.content {
            Content::Protocol(protocol) => protocol,
            Content::Fragment(..) => 44,
        }
    }

    /// Whether a fragment may be one of a TCP segment: over IPv6 there may be options in front.
    fn may_be_tcp(&self) -> bool {
        match self.content {
            Content::Fragment(_, 6, _) => true,
            Content::Fragment(_, 60, _) => self.source.is_ipv6(),
            _ => false,
        }
    }
}

fn segment(flow: FlowKey, flags: u8, is_error: bool, packet: &Packet) -> Segment {
    Segment { flow, flags, is_error, packet: packet.range.clone(), transport: packet.transport }
}

/// Source and destination of the IP packet that lies there.
pub fn ends(frame: &[u8], packet: &Range<usize>) -> (IpAddr, IpAddr) {
    let (is_v6, at) = (frame[packet.start] >> 4 == 6, packet.start);
    let places = if is_v6 { (at + 8, at + 24) } else { (at + 12, at + 16) };
    let end = |place| address(frame, place, is_v6).expect("a packet was read there");
    (end(places.0), end(places.1))
}

/// Where TCP's header begins in the IP packet that lies there, if it is a first fragment of TCP.
pub fn first_tcp(frame: &[u8], range: &Range<usize>) -> Option<usize> {
    let read = packet(frame, range.start, frame[range.start] >> 4)?;
    matches!(read.content, Content::Fragment(0, _, 6)).then_some(read.transport)
}
