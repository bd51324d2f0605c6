//! The frames that the generator sends, and what it makes of those that come back. Never sends or
//! receives, never keeps one.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use holdfast_net::headers::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Gue, Ipv4, Ipv6, PROTOCOL_IPV4, PROTOCOL_IPV6,
    PROTOCOL_TCP, Tcp, TcpFlags, Udp,
};
use holdfast_net::{Network, Packet, Transport, checksum};
use zerocopy::IntoBytes;

use crate::flows::Flow;

const ETHERNET: usize = size_of::<Ethernet>();
/// Where a TCP header keeps its ports, control bits and checksum, in bytes.
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
/// Where an IPv4 header keeps its checksum, in bytes.
const IPV4_CHECKSUM: usize = 10;
/// The payload begins with this word and the measurement's number, then the time stamp.
const MAGIC: u32 = 0x4846_4c44;
const STAMP: usize = 16;
/// A NIC sends nothing shorter, the frame check sequence not counted.
const FRAME_MIN: usize = 60;
/// The longest frame that is made.
pub const FRAME_MAX: usize = 1400;

/// What is in the payload of a measured packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The measurement that it belongs to.
    pub run: u32,
    /// When it was sent, in ticks; 0 for one whose latency is not measured.
    pub ticks: u64,
}

/// A segment of a flow: all that its frame is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its flow.
    pub flow: Flow,
    /// Whether the host sent it, and not the client.
    pub from_host: bool,
    /// Its control bits.
    pub flags: TcpFlags,
    /// Its payload; a handshake's segments have none.
    pub stamp: Option<Stamp>,
}

/// What a frame that came back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A segment as it is.
    Plain(Segment),
    /// A client's segment in a GUE tunnel; the frame's bytes before it are not its own.
    Tunnelled {
        /// The segment inside.
        segment: Segment,
        /// Where its IP header is in the frame, in bytes.
        at: usize,
        /// Whether the outer header is what it has to be: from the appliance to the owner.
        sound: bool,
    },
    /// None of ours.
    Foreign,
}

/// The addresses of a test.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Ethernet address of the appliance's uplink.
    pub near_mac: [u8; 6],
    /// Ethernet address of the generator on the network's side.
    pub own_mac: [u8; 6],
    /// The service.
    pub service: SocketAddr,
    /// Locator of the appliance under test.
    pub near: IpAddr,
    /// Locator of the redirects' owner.
    pub far: IpAddr,
    /// UDP port of tunnels.
    pub tunnel_port: u16,
}

/// Writes frames from a template each way and length, and reads them back.
pub struct Frames {
    addresses: Addresses,
    is_v4: bool,
    /// From client and from host, each without payload and with it.
    templates: [[Template; 2]; 2],
}

struct Template {
    bytes: Vec<u8>,
    /// Sum of the IPv4 header without the client's address.
    ip_sum: u16,
    /// Sum of pseudo-header and segment without what differs between segments.
    tcp_sum: u16,
}

impl Frames {
    /// Frames with payload are `length` bytes long, the frame check sequence not counted.
    pub fn new(addresses: Addresses, length: usize) -> Result<Frames> {
        let is_v4 = addresses.service.is_ipv4();
        let headers = headers(is_v4);
        let (least, most) = (headers + STAMP, FRAME_MAX);
        ensure!(
            (least..=most).contains(&length),
            "a frame of {length} bytes: expected {least} to {most}"
        );
        let both = |from_host| {
            [headers, length].map(|length| Template::new(&addresses, from_host, length))
        };
        Ok(Frames { addresses, is_v4, templates: [both(false), both(true)] })
    }

    fn template(&self, segment: &Segment) -> &Template {
        &self.templates[usize::from(segment.from_host)][usize::from(segment.stamp.is_some())]
    }

    /// Bytes of the segment's frame.
    pub fn len(&self, segment: &Segment) -> usize {
        self.template(segment).bytes.len()
    }

    /// Writes the segment's frame into `out`, which has [`Frames::len`] bytes.
    pub fn write(&self, segment: &Segment, out: &mut [u8]) {
        let template = self.template(segment);
        out.copy_from_slice(&template.bytes);
        let tcp = headers(self.is_v4) - size_of::<Tcp>();
        let address_at = client_address_at(self.is_v4, segment.from_host);
        let (address_sum, port) = if self.is_v4 {
            let (address, port) = segment.flow.client_v4();
            out[address_at..address_at + 4].copy_from_slice(&address);
            let sum = checksum::sum(&address);
            let at = ETHERNET + IPV4_CHECKSUM;
            let ip_sum = !checksum::add(template.ip_sum, sum);
            out[at..at + 2].copy_from_slice(&ip_sum.to_be_bytes());
            (sum, port)
        } else {
            let (address, port) = segment.flow.client_v6();
            out[address_at..address_at + 16].copy_from_slice(&address);
            (checksum::sum(&address), port)
        };
        let port_at = tcp + if segment.from_host { 2 } else { 0 };
        out[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
        out[tcp + TCP_FLAGS] = segment.flags.0;
        let mut sum = checksum::add(template.tcp_sum, address_sum);
        sum = checksum::add(sum, port);
        sum = checksum::add(sum, u16::from(segment.flags.0));
        if let Some(stamp) = segment.stamp {
            let at = tcp + size_of::<Tcp>();
            out[at + 4..at + 8].copy_from_slice(&stamp.run.to_be_bytes());
            out[at + 8..at + 16].copy_from_slice(&stamp.ticks.to_be_bytes());
            sum = checksum::add(sum, checksum::sum(&out[at + 4..at + 16]));
        }
        let at = tcp + TCP_CHECKSUM;
        out[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
    }

    /// What `frame` is.
    pub fn read(&self, frame: &[u8]) -> Seen {
        let Ok(Some(packet)) = Packet::from_ethernet(frame) else { return Seen::Foreign };
        match packet.transport {
            Transport::Udp { destination_port, .. }
                if destination_port == self.addresses.tunnel_port =>
            {
                self.tunnelled(frame, &packet)
            }
            _ => self.segment(frame, &packet).map_or(Seen::Foreign, Seen::Plain),
        }
    }

    fn tunnelled(&self, frame: &[u8], outer: &Packet) -> Seen {
        let at = outer.transport_offset + size_of::<Udp>() + size_of::<Gue>();
        let Ok(inner) = Packet::from_ip(frame, at) else { return Seen::Foreign };
        let Some(segment) = self.segment(frame, &inner) else { return Seen::Foreign };
        let protocol = if self.is_v4 { PROTOCOL_IPV4 } else { PROTOCOL_IPV6 };
        let gue = &frame[at - size_of::<Gue>()..at];
        let sound = outer.network.source() == self.addresses.near
            && outer.network.destination() == self.addresses.far
            && gue == [0, protocol, 0, 0]
            // Back to the router that brought it.
            && frame[..6] == self.addresses.own_mac
            && frame[6..12] == self.addresses.near_mac
            && outer.end == inner.end;
        Seen::Tunnelled { segment, at, sound }
    }

    fn segment(&self, frame: &[u8], packet: &Packet) -> Option<Segment> {
        let Transport::Tcp { source_port, destination_port, flags } = packet.transport else {
            return None;
        };
        let (source, destination) = (packet.network.source(), packet.network.destination());
        let source = SocketAddr::new(source, source_port);
        let destination = SocketAddr::new(destination, destination_port);
        let from_host = source == self.addresses.service;
        let client = match from_host {
            true => destination,
            false if destination == self.addresses.service => source,
            false => return None,
        };
        let flow = Flow::of_client(client.ip(), client.port())?;
        let payload = frame.get(packet.transport_offset + size_of::<Tcp>()..packet.end)?;
        Some(Segment { flow, from_host, flags, stamp: stamp(payload) })
    }

    /// Whether `frame`, seen as `seen`, is byte for byte what was sent, tunnel and all.
    pub fn is_unchanged(&self, frame: &[u8], seen: &Seen) -> bool {
        let (segment, at, sound) = match seen {
            Seen::Plain(segment) => (segment, 0, true),
            Seen::Tunnelled { segment, at, sound } => (segment, *at, *sound),
            Seen::Foreign => return false,
        };
        let mut scratch = [0; FRAME_MAX];
        let sent = &mut scratch[..self.len(segment)];
        self.write(segment, sent);
        let sent = if at == 0 { &*sent } else { &sent[ETHERNET..] };
        sound && frame.get(at..) == Some(sent)
    }
}

fn stamp(payload: &[u8]) -> Option<Stamp> {
    let (head, _) = payload.split_at_checked(STAMP)?;
    let (words, _) = head.as_chunks::<4>();
    let word = |at: usize| u32::from_be_bytes(words[at]);
    (word(0) == MAGIC)
        .then(|| Stamp { run: word(1), ticks: u64::from(word(2)) << 32 | u64::from(word(3)) })
}

/// Bytes of all headers.
const fn headers(is_v4: bool) -> usize {
    let network = if is_v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    ETHERNET + network + size_of::<Tcp>()
}

fn client_address_at(is_v4: bool, from_host: bool) -> usize {
    match (is_v4, from_host) {
        (true, false) => ETHERNET + 12,
        (true, true) => ETHERNET + 16,
        (false, false) => ETHERNET + 8,
        (false, true) => ETHERNET + 24,
    }
}

impl Template {
    fn new(addresses: &Addresses, from_host: bool, length: usize) -> Template {
        let is_v4 = addresses.service.is_ipv4();
        // The router is the generator, and the host's side has the uplink's address.
        let (source, destination) = match from_host {
            false => (addresses.own_mac, addresses.near_mac),
            true => (addresses.near_mac, addresses.own_mac),
        };
        let ethertype = if is_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let ethernet = Ethernet { destination, source, ethertype: ethertype.into() };
        let ip_length = length - ETHERNET;
        let network = network_header(addresses.service.ip(), from_host, ip_length);
        let tcp_length = ip_length - network.len();
        let service_port = addresses.service.port();
        let tcp = Tcp {
            source_port: if from_host { service_port } else { 0 }.into(),
            destination_port: if from_host { 0 } else { service_port }.into(),
            sequence: 1000.into(),
            acknowledgement: 2000.into(),
            data_offset: 5 << 4,
            flags: TcpFlags(0),
            window: 512.into(),
            checksum: 0.into(),
            urgent: 0.into(),
        };
        let mut segment = tcp.as_bytes().to_vec();
        if length > headers(is_v4) {
            segment.extend_from_slice(&MAGIC.to_be_bytes());
        }
        segment.resize(tcp_length, 0);
        // Of the addresses only the service's is there yet; both families sum alike.
        let service = match addresses.service.ip() {
            IpAddr::V4(v4) => checksum::sum(&v4.octets()),
            IpAddr::V6(v6) => checksum::sum(&v6.octets()),
        };
        let pseudo = checksum::add(u16::from(PROTOCOL_TCP), tcp_length as u16);
        let tcp_sum = checksum::add(checksum::add(service, pseudo), checksum::sum(&segment));
        let ip_sum = checksum::sum(&network);
        let mut bytes = [ethernet.as_bytes(), &network, &segment].concat();
        bytes.resize(bytes.len().max(FRAME_MIN), 0);
        Template { bytes, ip_sum, tcp_sum }
    }
}

/// The IP header with the service's address and zeros for the client's.
fn network_header(service: IpAddr, from_host: bool, ip_length: usize) -> Vec<u8> {
    match service {
        IpAddr::V4(service) => {
            let (service, none) = (service.octets(), [0; 4]);
            let (source, destination) = if from_host { (service, none) } else { (none, service) };
            let header = Ipv4 {
                version_ihl: 0x45,
                tos: 0,
                total_length: (ip_length as u16).into(),
                identification: 0.into(),
                flags_fragment: 0x4000.into(),
                ttl: 60,
                protocol: PROTOCOL_TCP,
                checksum: 0.into(),
                source,
                destination,
            };
            header.as_bytes().to_vec()
        }
        IpAddr::V6(service) => {
            let (service, none) = (service.octets(), [0; 16]);
            let (source, destination) = if from_host { (service, none) } else { (none, service) };
            let header = Ipv6 {
                version_class_label: 0x6000_0000.into(),
                payload_length: ((ip_length - size_of::<Ipv6>()) as u16).into(),
                next_header: PROTOCOL_TCP,
                hop_limit: 60,
                source,
                destination,
            };
            header.as_bytes().to_vec()
        }
    }
}

/// The addresses of a packet's network header, for messages.
pub fn describe(frame: &[u8]) -> String {
    match Packet::from_ethernet(frame) {
        Ok(Some(packet)) => {
            let Packet { network, transport, .. } = packet;
            let (Network::Ipv4 { .. } | Network::Ipv6 { .. }) = network;
            format!("{} to {}, {transport:?}", network.source(), network.destination())
        }
        Ok(None) => "not IP".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Class;

    fn addresses(v6: bool) -> Addresses {
        let (service, near, far) = match v6 {
            false => ("192.168.0.1:80", "10.99.0.1", "10.99.0.2"),
            true => ("[2001:db8:192:168::1]:80", "fd00:99::1", "fd00:99::2"),
        };
        Addresses {
            near_mac: [2, 0, 0, 0, 0, 1],
            own_mac: [2, 0, 0, 0, 0, 2],
            service: service.parse().expect("a socket"),
            near: near.parse().expect("an address"),
            far: far.parse().expect("an address"),
            tunnel_port: 6080,
        }
    }

    fn segments() -> impl Iterator<Item = Segment> {
        (0..64).map(|n| Segment {
            flow: Flow { class: Class::ALL[n as usize % 4], index: n * 7919 },
            from_host: n & 4 != 0,
            flags: TcpFlags(0x10 | (n as u8 & 2)),
            stamp: (n & 8 != 0).then_some(Stamp { run: n, ticks: u64::from(n) << 35 | 5 }),
        })
    }

    fn frame_of(frames: &Frames, segment: &Segment) -> Vec<u8> {
        let mut frame = vec![0xff; frames.len(segment)];
        frames.write(segment, &mut frame);
        frame
    }

    /// A whole sum over pseudo-header and segment is all ones when the checksum is right.
    fn tcp_is_right(frame: &[u8]) -> bool {
        let packet = Packet::from_ethernet(frame).expect("sound").expect("IP");
        let segment = &frame[packet.transport_offset..packet.end];
        let address = |address: IpAddr| match address {
            IpAddr::V4(v4) => checksum::sum(&v4.octets()),
            IpAddr::V6(v6) => checksum::sum(&v6.octets()),
        };
        let addresses =
            checksum::add(address(packet.network.source()), address(packet.network.destination()));
        let pseudo = checksum::add(addresses, u16::from(PROTOCOL_TCP) + segment.len() as u16);
        checksum::add(pseudo, checksum::sum(segment)) == 0xffff
    }

    #[test]
    fn what_is_written_is_read_again_with_right_checksums() {
        for v6 in [false, true] {
            let frames = Frames::new(addresses(v6), 128).expect("frames");
            for segment in segments() {
                let frame = frame_of(&frames, &segment);
                assert_eq!(frame.len(), if segment.stamp.is_some() { 128 } else { frame.len() });
                let seen = frames.read(&frame);
                assert_eq!(seen, Seen::Plain(segment));
                assert!(frames.is_unchanged(&frame, &seen));
                assert!(tcp_is_right(&frame), "{segment:?}");
                assert!(v6 || checksum::sum(&frame[14..34]) == 0xffff, "IPv4 header checksum");
            }
        }
    }

    #[test]
    fn a_changed_byte_is_seen() {
        let frames = Frames::new(addresses(false), 128).expect("frames");
        let segment = segments().find(|segment| segment.stamp.is_some()).expect("one");
        for at in 0..128 {
            let mut frame = frame_of(&frames, &segment);
            frame[at] ^= 1;
            let seen = frames.read(&frame);
            // Control bits and time stamp tell what was sent; the checksum still tells on them.
            assert!(!frames.is_unchanged(&frame, &seen), "byte {at}");
        }
    }

    /// Puts a frame into a tunnel as the appliance does.
    fn into_tunnel(addresses: &Addresses, frame: &[u8]) -> Vec<u8> {
        let is_v4 = addresses.near.is_ipv4();
        let inner = &frame[ETHERNET..];
        let udp_length = (12 + inner.len()) as u16;
        let mut out = [&addresses.own_mac[..], &addresses.near_mac, &frame[12..14]].concat();
        match (addresses.near, addresses.far) {
            (IpAddr::V4(near), IpAddr::V4(far)) => {
                let total = (20 + udp_length).to_be_bytes();
                out.extend([0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 17, 0, 0]);
                out.extend(near.octets().into_iter().chain(far.octets()));
            }
            (IpAddr::V6(near), IpAddr::V6(far)) => {
                let length = udp_length.to_be_bytes();
                out.extend([0x60, 0, 0, 0, length[0], length[1], 17, 64]);
                out.extend(near.octets().into_iter().chain(far.octets()));
            }
            _ => panic!("two families"),
        }
        let length = udp_length.to_be_bytes();
        out.extend([0xc0, 0, 0x17, 0xc0, length[0], length[1], 0, 0]);
        out.extend([0, if is_v4 { 4 } else { 41 }, 0, 0]);
        out.extend(inner);
        out
    }

    #[test]
    fn a_tunnelled_segment_is_checked_inside_and_outside() {
        for v6 in [false, true] {
            let addresses = addresses(v6);
            let frames = Frames::new(addresses, 128).expect("frames");
            let segment = segments().find(|s| s.stamp.is_some() && !s.from_host).expect("one");
            let frame = into_tunnel(&addresses, &frame_of(&frames, &segment));
            let seen = frames.read(&frame);
            assert!(
                matches!(seen, Seen::Tunnelled { segment: s, sound: true, .. } if s == segment)
            );
            assert!(frames.is_unchanged(&frame, &seen));

            let elsewhere = Addresses { far: addresses.near, ..addresses };
            let seen = Frames::new(elsewhere, 128).expect("frames").read(&frame);
            assert!(matches!(seen, Seen::Tunnelled { sound: false, .. }));
            let mut changed = frame.clone();
            *changed.last_mut().expect("bytes") ^= 1;
            assert!(!frames.is_unchanged(&changed, &frames.read(&changed)));
        }
    }

    #[test]
    fn a_length_without_room_for_the_stamp_is_refused() {
        assert!(Frames::new(addresses(true), 80).is_err());
        assert!(Frames::new(addresses(false), FRAME_MAX + 1).is_err());
    }
}
