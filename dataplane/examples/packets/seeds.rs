//! The seeds: small captures that go through everything that is parsed and decided. Frames are
//! built with etherparse, and then broken by hand.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader, UdpHeader};

use crate::fuzz::capture::{Capture, Record};
use crate::fuzz::switched::{KERNEL_MAC, NEXT_HOPS};
use crate::fuzz::world::{
    CORE_ETHERTYPE, CORE_MAC, HOST_MAC, MEMBERS, Order, REFLECTED_MAC, SERVICES, STRANGER,
};

const ROUTER: [u8; 6] = [0x02, 0, 0, 0, 0, 0xaa];

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A capture while it is written.
struct Tape {
    at_us: u64,
    capture: Capture,
}

impl Tape {
    fn new(shape: u32) -> Tape {
        Tape { at_us: 0, capture: Capture { shape, records: Vec::new() } }
    }

    fn frame(&mut self, frame: Vec<u8>) -> &mut Tape {
        self.capture.records.push(Record { at_us: self.at_us, frame });
        self
    }

    /// A frame a millisecond after the one before, so that it comes alone.
    fn alone(&mut self, frame: Vec<u8>) -> &mut Tape {
        self.at_us += 1000;
        self.frame(frame)
    }

    fn order(&mut self, order: Order, which: u8, whom: u8) -> &mut Tape {
        let order = [order as u8, which, whom];
        self.alone([&[0xff; 6][..], &CORE_MAC, &CORE_ETHERTYPE.to_be_bytes(), &order].concat())
    }

    fn pause(&mut self, us: u64) -> &mut Tape {
        self.at_us += us;
        self
    }
}

/// Addresses of one family.
#[derive(Clone, Copy)]
struct Net {
    v6: bool,
    client: IpAddr,
    service: IpAddr,
    locator: IpAddr,
    member: IpAddr,
}

fn nets() -> [Net; 2] {
    let v4 = |d: [u8; 4]| IpAddr::from(d);
    let v6 = |text: &str| IpAddr::from(text.parse::<Ipv6Addr>().expect("an address"));
    [
        Net {
            v6: false,
            client: v4([20, 1, 1, 1]),
            service: SERVICES[0].0,
            locator: v4([10, 0, 0, 1]),
            member: MEMBERS[0],
        },
        Net {
            v6: true,
            client: v6("2001:db8::1"),
            service: SERVICES[2].0,
            locator: v6("fd00::1"),
            member: MEMBERS[1],
        },
    ]
}

// --- frames ------------------------------------------------------------------------------

/// An IP packet with this payload.
fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let length = payload.len() as u16;
            let mut header =
                Ipv4Header::new(length, 60, IpNumber(protocol), s.octets(), d.octets())
                    .expect("short");
            header.dont_fragment = true;
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut bytes).expect("memory");
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let header = Ipv6Header {
                payload_length: payload.len() as u16,
                next_header: IpNumber(protocol),
                hop_limit: 60,
                source: s.octets(),
                destination: d.octets(),
                ..Ipv6Header::default()
            };
            header.write(&mut bytes).expect("memory");
        }
        _ => unreachable!("one family"),
    }
    bytes.extend(payload);
    bytes
}

/// A TCP segment with a sound checksum.
fn tcp(
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    flags: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut header = TcpHeader::new(source.1, destination.1, 1000, 4096);
    (header.fin, header.syn, header.rst) = (flags & FIN != 0, flags & SYN != 0, flags & RST != 0);
    (header.psh, header.ack, header.urg) = (flags & 8 != 0, flags & ACK != 0, flags & 0x20 != 0);
    (header.ece, header.cwr) = (flags & 0x40 != 0, flags & 0x80 != 0);
    header.set_options_raw(options).expect("short");
    header.checksum = match (source.0, destination.0) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            header.calc_checksum_ipv4_raw(s.octets(), d.octets(), payload).expect("short")
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            header.calc_checksum_ipv6_raw(s.octets(), d.octets(), payload).expect("short")
        }
        _ => unreachable!("one family"),
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(payload);
    bytes
}

fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let header = UdpHeader { source_port, destination_port, length, checksum: 0 };
    [&header.to_bytes()[..], payload].concat()
}

fn ethertype(packet: &[u8]) -> [u8; 2] {
    if packet.first().is_some_and(|byte| byte >> 4 == 6) { [0x86, 0xdd] } else { [0x08, 0x00] }
}

/// A frame from the router.
fn from_router(packet: &[u8]) -> Vec<u8> {
    [&HOST_MAC[..], &ROUTER, &ethertype(packet), packet].concat()
}

/// The same with tags: their EtherTypes and contents.
fn tagged(tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat());
    let tags: Vec<u8> = tags.collect();
    [&HOST_MAC[..], &ROUTER, &tags, &ethertype(packet), packet].concat()
}

fn from_host(packet: &[u8]) -> Vec<u8> {
    [&ROUTER[..], &HOST_MAC, &ethertype(packet), packet].concat()
}

/// `bytes` with others in this place.
fn with(mut bytes: Vec<u8>, at: usize, others: &[u8]) -> Vec<u8> {
    bytes[at..at + others.len()].copy_from_slice(others);
    bytes
}

fn cut(mut bytes: Vec<u8>, length: usize) -> Vec<u8> {
    bytes.truncate(length);
    bytes
}

impl Net {
    fn client_packet(&self, port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        let segment = tcp((self.client, port), (self.service, 80), flags, &[], payload);
        ip(self.client, self.service, TCP, &segment)
    }

    fn client(&self, port: u16, flags: u8) -> Vec<u8> {
        from_router(&self.client_packet(port, flags, b"hello"))
    }

    fn host_packet(&self, port: u16, flags: u8, options: &[u8]) -> Vec<u8> {
        let segment = tcp((self.service, 80), (self.client, port), flags, options, b"");
        ip(self.service, self.client, TCP, &segment)
    }

    fn host(&self, port: u16, flags: u8) -> Vec<u8> {
        from_host(&self.host_packet(port, flags, &[]))
    }

    fn header(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    /// An ICMP message to the service, or to another address.
    fn icmp(&self, to: IpAddr, kind: u8, rest: &[u8]) -> Vec<u8> {
        let router = if self.v6 {
            "2001:db8::ff".parse().expect("an address")
        } else {
            IpAddr::from([20, 9, 9, 9])
        };
        let message = [&[kind, 0, 0, 0, 0, 0, 0x05, 0x00], rest].concat();
        ip(router, to, if self.v6 { ICMPV6 } else { ICMP }, &message)
    }

    /// A GUE packet to us.
    fn gue(&self, from: IpAddr, header: [u8; 4], inner: &[u8]) -> Vec<u8> {
        ip(from, self.locator, UDP, &udp(0xc001, 6080, &[&header[..], inner].concat()))
    }

    fn protocol(&self) -> u8 {
        if self.v6 { 41 } else { 4 }
    }
}

/// Bits of a capture's shape.
const IPIP: u32 = 1;
const REWRITE: u32 = 2;
const LOCATOR_V6: u32 = 4;
const SLOW_CORE: u32 = 8;
const TIGHT: u32 = 16;
const NO_HEADROOM: u32 = 32;
const JUMBO: u32 = 64;
const INBOUND_ONLY: u32 = 128;
const SWITCHED: u32 = 512;

// --- the captures ---------------------------------------------------------------------------

/// All seeds and their names.
pub fn all() -> Vec<(String, Capture)> {
    let mut seeds: Vec<(String, Tape)> = Vec::new();
    for net in nets() {
        let family = if net.v6 { "ipv6" } else { "ipv4" };
        let locator = if net.v6 { LOCATOR_V6 } else { 0 };
        let mut add = |name: &str, tape: Tape| seeds.push((format!("{name}-{family}"), tape));
        add("session", session(net, 0));
        add("tcp-flags", tcp_flags(net));
        add("tcp-options", tcp_options(net));
        add("resolve", resolve(net));
        add("superseded", superseded(net));
        add("limits", limits(net));
        add("parking", parking(net));
        add("truncated", truncated(net));
        add("lying-lengths", lying_lengths(net));
        add("fragments", fragments(net));
        add("inbound-only", session(net, INBOUND_ONLY));
        add("switched-session", session(net, SWITCHED));
        add("switched-redirect", redirect(net, SWITCHED | locator));
        add("icmp-errors", icmp_errors(net));
        add("passing", passing(net));
        add("tunnel-of-nothing", tunnel_of_nothing(net, locator));
        for (form, name) in [(0, "gue"), (IPIP, "ipip"), (REWRITE, "rewrite")] {
            for outer in [0, LOCATOR_V6] {
                let over = if outer == 0 { "ipv4" } else { "ipv6" };
                add(&format!("redirect-{name}-over-{over}"), redirect(net, form | outer));
                if form != REWRITE || (outer == 0) != net.v6 {
                    add(&format!("tunnel-end-{name}-over-{over}"), tunnel_end(net, form | outer));
                }
            }
            add(&format!("too-big-{name}"), too_big(net, form | locator));
            add(&format!("fragments-moved-{name}"), fragments_moved(net, form | locator));
            add(&format!("fragments-in-{name}"), fragments_in_tunnels(net, form | locator));
        }
        add("jumbo", jumbo(net, locator));
        add("no-headroom", redirect(net, NO_HEADROOM | locator));
    }
    seeds.push(("extensions-ipv6".to_owned(), extensions(nets()[1])));
    seeds.push(("options-ipv4".to_owned(), options(nets()[0])));
    seeds.push(("neighbours".to_owned(), neighbours()));
    seeds.push(("too-long".to_owned(), too_long(nets()[0])));
    seeds.into_iter().map(|(name, tape)| (name, tape.capture)).collect()
}

/// From SYN to the end of the linger; another one that is reset; one that the host knew before.
fn session(net: Net, shape: u32) -> Tape {
    let mut tape = Tape::new(shape);
    tape.alone(net.client(1, SYN)).alone(net.host(1, SYN | ACK)).alone(net.host(1, SYN | ACK));
    tape.alone(net.client(1, ACK)).frame(net.client(1, ACK)).frame(net.client(1, ACK));
    tape.alone(tagged(&[(0x8100, 5)], &net.client_packet(1, ACK, b"tagged")));
    tape.alone(net.client(1, FIN | ACK)).alone(net.host(1, FIN | ACK)).alone(net.client(1, ACK));
    tape.alone(net.client(2, SYN)).alone(net.host(2, SYN | ACK)).alone(net.client(2, RST));
    tape.alone(net.host(3, ACK)).alone(net.client(3, ACK)).alone(net.host(3, RST));
    tape.alone(net.host(4, SYN | ACK)).alone(net.host(5, RST | ACK));
    tape.pause(12_000_000).alone(net.client(1, SYN)).alone(net.host(1, SYN | ACK));
    tape.pause(3_700_000_000).alone(net.client(1, ACK));
    tape
}

/// Frames that are longer than the other side takes: 1,280 bytes to the host, 1,500 to the network.
fn too_long(net: Net) -> Tape {
    let mut tape = Tape::new(TIGHT);
    tape.alone(from_router(&net.client_packet(1, SYN, &[7; 1260])));
    let segment = tcp((net.service, 80), (net.client, 1), ACK, &[], &[7; 1500]);
    tape.alone(from_host(&ip(net.service, net.client, TCP, &segment)));
    tape
}

/// By the NIC's switch: stations, and neighbours that ask, tell or lie.
fn neighbours() -> Tape {
    let mut tape = Tape::new(SWITCHED);
    let net = nets()[0];
    let syn = net.client_packet(1, SYN, b"");
    let stations = [HOST_MAC, KERNEL_MAC, ROUTER, [0xff; 6]];
    for destination in stations {
        for source in stations {
            tape.alone([&destination[..], &source, &ethertype(&syn), &syn].concat());
        }
    }
    tape.alone(vec![0xff; 13]);

    let [IpAddr::V4(next_hop), IpAddr::V6(next_hop_v6)] = NEXT_HOPS else { unreachable!("these") };
    let arp = |operation: u8, sender: [u8; 4], target: [u8; 4]| {
        let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation];
        [&[0xff; 6], &ROUTER[..], &head, &ROUTER, &sender, &[0; 6], &target].concat()
    };
    let asked = arp(1, [10, 1, 0, 1], next_hop.octets());
    tape.alone(asked.clone()).alone(arp(1, [10, 1, 0, 1], [10, 1, 0, 2]));
    tape.alone(arp(2, next_hop.octets(), [10, 1, 0, 1])).alone(cut(asked.clone(), 30));
    tape.alone([&asked[..12], &[0x81, 0, 0, 5], &asked[12..]].concat());
    // More than are answered at once.
    for _ in 0..66 {
        tape.frame(asked.clone());
    }
    tape.pause(1_000_000);

    let router: Ipv6Addr = "fe80::aa".parse().expect("an address");
    let group: Ipv6Addr = "ff02::1:ff00:11".parse().expect("an address");
    let own_address = [&[1, 1], &ROUTER[..]].concat();
    for (kind, source, options) in [
        (135, router, &own_address[..]),
        (135, Ipv6Addr::UNSPECIFIED, &[]),
        (135, Ipv6Addr::UNSPECIFIED, &own_address),
        (135, router, &[1, 0, 0, 0, 0, 0, 0, 0]),
        (135, next_hop_v6, &own_address),
        (136, router, &own_address),
        (134, router, &own_address),
    ] {
        let payload = [&next_hop_v6.octets()[..], options].concat();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(ROUTER, [0x33, 0x33, 0xff, 0, 0, 0x11])
            .ipv6(source.octets(), group.octets(), 255)
            .icmpv6_raw(kind, 0, [0; 4])
            .write(&mut frame, &payload)
            .expect("memory");
        tape.alone(frame);
    }
    tape
}

fn tcp_flags(net: Net) -> Tape {
    let mut tape = Tape::new(0);
    for flags in (0..=0x1f).chain([0x28, 0x30, 0x3f, 0x52, 0xc2, 0xd2, 0xff]) {
        tape.frame(net.client(1, flags));
    }
    tape.pause(1000);
    for flags in [0, FIN, SYN | RST, SYN | FIN, 0xff, SYN | ACK | RST] {
        tape.alone(net.host(6, flags));
    }
    tape
}

/// SYN-ACKs with an MSS in all places, and with options that lie.
fn tcp_options(net: Net) -> Tape {
    let mut tape = Tape::new(0);
    let rows: [&[u8]; 12] = [
        &[2, 4, 0x23, 0x28],
        &[1, 2, 4, 0x23, 0x28, 0],
        &[1, 1, 2, 4, 0x23, 0x28],
        &[2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7],
        &[2, 4, 0x01, 0x00],
        &[0, 2, 4, 0x23, 0x28],
        &[2, 0, 0x23, 0x28],
        &[2, 3, 0x23, 0x28],
        &[8, 40, 2, 4, 0x23, 0x28],
        &[30, 1, 2, 4, 0x23, 0x28],
        &[1, 1, 1, 2],
        &[2, 4, 0x23, 0x28, 2, 4, 0x23, 0x28],
    ];
    for (port, options) in (1..).zip(rows) {
        tape.alone(from_host(&net.host_packet(port, SYN | ACK, options)));
        tape.alone(from_host(&net.host_packet(port, SYN, options)));
    }
    let tagged = net.host_packet(20, SYN | ACK, rows[0]);
    let tags = [0x81, 0x00, 0x00, 0x05];
    tape.alone([&ROUTER[..], &HOST_MAC, &tags, &ethertype(&tagged), &tagged].concat());
    tape
}

/// All answers to a question, and what comes with none.
fn resolve(net: Net) -> Tape {
    let mut tape = Tape::new(if net.v6 { LOCATOR_V6 } else { 0 });
    let member = u8::from(net.v6);
    tape.frame(net.client(1, ACK)).frame(net.client(1, ACK)).frame(net.client(1, ACK));
    tape.order(Order::Owner, 0, member).alone(net.client(1, ACK));
    tape.order(Order::NotMine, 0, member).alone(net.client(1, ACK));
    tape.order(Order::Ourselves, 0, 0).alone(net.client(1, ACK));
    // For a second it is looked up again and again.
    for pause_us in [2_200_000, 1000] {
        tape.alone(net.client(2, ACK)).order(Order::Nobody, 0, 0).pause(50_000);
        tape.order(Order::Nobody, 0, 0).alone(net.host(2, RST)).pause(pause_us);
    }
    tape.alone(net.client(2, ACK)).alone(net.client(2, SYN));
    // Its owner has died for good.
    tape.alone(net.client(11, ACK)).order(Order::Nobody, 0, 1).alone(net.host(11, RST));
    tape.alone(net.client(3, ACK)).order(Order::TimedOut, 0, 0);
    tape.alone(net.client(4, ACK)).order(Order::Stranger, 0, 0);
    tape.alone(net.client(5, ACK)).pause(1_500_000).order(Order::Owner, 0, member);
    tape.alone(net.client(6, ACK)).order(Order::Owner, 0, 2 + member);
    tape.order(Order::OwnerDead, 0, 2 + member).pause(200_000).alone(net.client(6, ACK));
    tape.order(Order::Unasked, 0, member).alone(net.client(7, ACK)).alone(net.host(7, ACK));
    tape.order(Order::Owner, 0, member).order(Order::Owner, 0, member).alone(net.client(7, ACK));
    tape.alone(net.client(8, ACK)).order(Order::Owner, 0, member).alone(net.client(8, SYN));
    tape.alone(net.client(9, ACK)).order(Order::Owner, 0, member).alone(net.host(9, ACK));
    tape.alone(net.client(10, ACK)).order(Order::Owner, 0, member).pause(70_000_000);
    tape.alone(net.client(10, ACK));
    tape
}

/// Another server's session is later than ours: ours becomes a redirect, and that one ends.
fn superseded(net: Net) -> Tape {
    let mut tape = Tape::new(if net.v6 { LOCATOR_V6 } else { 0 });
    let member = u8::from(net.v6);
    tape.alone(net.client(1, SYN)).order(Order::Superseded, 0, member);
    tape.alone(net.host(1, SYN | ACK)).alone(net.client(1, ACK));
    // What is older, or no member's, changes nothing.
    for kind in [4, 8, 12] {
        tape.order(Order::Superseded, 0, kind + member);
    }
    tape.alone(net.client(1, ACK)).order(Order::Superseded, 0, member);
    tape.order(Order::Superseded, 0, 2 + member);
    tape.alone(net.host(1, ACK)).frame(net.host(1, SYN | ACK)).frame(net.host(1, RST));
    tape.alone(net.host(1, SYN | ACK));
    let inner = net.client_packet(1, ACK, b"moved");
    tape.alone(from_router(&net.gue(net.member, [0, net.protocol(), 0, 0], &inner)));
    tape.alone(net.client(1, ACK)).alone(net.client(1, FIN | ACK)).alone(net.client(1, ACK));
    // A stray that ends its session leaves no redirect.
    tape.frame(net.client(1, RST)).order(Order::Owner, 0, member);
    // A SYN makes ours the later one again.
    tape.alone(net.client(1, ACK)).order(Order::Owner, 0, member).alone(net.client(1, SYN));
    tape.alone(net.host(1, SYN | ACK)).order(Order::Superseded, 0, member);
    tape.alone(net.client(1, RST));
    // What is tunnelled to a closed session may be of the next one: a RST is withheld, but not when
    // the client repeats what it answers.
    tape.alone(net.host(2, FIN)).alone(net.client(2, FIN));
    for flags in [ACK, ACK, RST] {
        let inner = net.client_packet(2, flags, b"");
        tape.alone(from_router(&net.gue(net.member, [0, net.protocol(), 0, 0], &inner)));
        tape.alone(net.host(2, RST)).pause(200_000).alone(net.host(2, RST)).pause(1_500_000);
    }
    // Nor is the first one that answers what the table knows nothing of.
    let inner = net.client_packet(3, ACK, b"");
    tape.alone(from_router(&net.gue(net.member, [0, net.protocol(), 0, 0], &inner)));
    tape.alone(net.host(3, RST)).pause(200_000).alone(net.host(3, RST));
    tape
}

/// More than there is room for.
fn limits(net: Net) -> Tape {
    let mut tape = Tape::new(SLOW_CORE | TIGHT);
    // More packets of a flow than it may have parked; more questions than the ring takes.
    tape.order(Order::Room, 3, 2);
    for port in 1..8 {
        tape.frame(net.client(port, ACK)).frame(net.client(port, ACK)).frame(net.client(port, ACK));
        tape.order(Order::Room, 3, 2);
    }
    tape.order(Order::Nobody, 0, 0).pause(40_000).order(Order::Room, 0, 0);
    // The same for what is announced; and more sessions than the table takes.
    for port in 10..16 {
        tape.frame(net.client(port, SYN)).frame(net.host(port, SYN | ACK));
    }
    tape.pause(1000);
    let inner = net.client_packet(20, ACK, b"");
    tape.frame(from_router(&net.gue(net.member, [0, net.protocol(), 0, 0], &inner)));
    for port in 10..16 {
        tape.frame(net.client(port, ACK));
    }
    tape.order(Order::Room, 0, 0);
    // The shortest frames that there are, until the ports' queues are full.
    for _ in 0..if net.v6 { 0 } else { 140 } {
        tape.frame(Vec::new()).frame([[0; 6], HOST_MAC].concat());
    }
    // Strays from so many prefixes that the worker's limit is met.
    tape.pause(1_200_000).order(Order::Room, 255, 255);
    for prefix in 20..40 {
        let packet = net.client_packet(1, ACK, b"");
        let at = if net.v6 { 8 + 3 } else { 12 };
        tape.alone(from_router(&with(packet, at, &[prefix])));
    }
    // Publications that were put off are repeated; withdrawals are put off, and repeated.
    for pause_us in [12_000_000, 3_700_000_000, 12_000_000] {
        tape.pause(pause_us).order(Order::Room, 255, 255);
    }
    tape
}

/// One packet each of more flows than may be parked.
fn parking(net: Net) -> Tape {
    let mut tape = Tape::new(TIGHT);
    for prefix in 20..28 {
        let packet = net.client_packet(1, ACK, b"");
        let at = if net.v6 { 8 + 3 } else { 12 };
        tape.frame(from_router(&with(packet, at, &[prefix])));
    }
    tape.order(Order::Owner, 0, u8::from(net.v6)).order(Order::Ourselves, 0, 0);
    tape
}

/// A frame cut at each boundary and in the middle of each header.
fn truncated(net: Net) -> Tape {
    let mut tape = Tape::new(0);
    let frame = net.client(1, ACK);
    for length in [0, 1, 6, 12, 13, 14, 15, 33, 34, 35, 47, 53, 54, 55, 60, 73, 74, 75] {
        tape.alone(cut(frame.clone(), length));
    }
    let frame = tagged(&[(0x8100, 5)], &net.client_packet(1, ACK, b""));
    for length in [14, 15, 16, 17, 18, 19, 37, 38] {
        tape.alone(cut(frame.clone(), length));
    }
    // The IP packet ends inside its transport header, and the frame where the packet does.
    for length in [0, 1, 4, 12, 13, 19] {
        let segment = tcp((net.client, 1), (net.service, 80), ACK, &[], b"");
        tape.alone(from_router(&ip(net.client, net.service, TCP, &segment[..length])));
    }
    for length in [0, 1, 7] {
        tape.alone(from_router(&ip(net.client, net.service, UDP, &udp(1, 2, b"")[..length])));
    }
    let mut padded = from_router(&net.client_packet(1, ACK, b""));
    padded.resize(padded.len() + 6, 0xee);
    tape.alone(padded);
    tape
}

fn lying_lengths(net: Net) -> Tape {
    let mut tape = Tape::new(0);
    let frame = net.client(1, ACK);
    let tcp_at = 14 + net.header();
    if net.v6 {
        for length in [0u16, 1, 19, 20, 24, 26, 255, 0xffff] {
            tape.alone(with(frame.clone(), 18, &length.to_be_bytes()));
        }
    } else {
        for length in [0u16, 1, 19, 20, 39, 40, 46, 255, 0xffff] {
            tape.alone(with(frame.clone(), 16, &length.to_be_bytes()));
        }
        for ihl in [0, 4, 6, 10, 15] {
            tape.alone(with(frame.clone(), 14, &[0x40 | ihl]));
        }
    }
    for version in [0x00, 0x45, 0x60, 0x50, 0xf5] {
        tape.alone(with(frame.clone(), 14, &[version]));
    }
    for offset in [0, 0x40, 0x50, 0x60, 0x70, 0xf0] {
        tape.alone(with(frame.clone(), tcp_at + 12, &[offset]));
    }
    for length in [0u16, 7, 8, 9, 12, 13, 0xffff] {
        let datagram = with(udp(1, 2, b"hello"), 4, &length.to_be_bytes());
        tape.alone(from_router(&ip(net.client, net.service, UDP, &datagram)));
    }
    tape
}

impl Net {
    /// A fragment of a client's segment that begins at `offset` (in units of 8 bytes), has `length`
    /// bytes, and is the last or not.
    fn piece(&self, port: u16, id: u16, offset: u16, length: usize, more: bool) -> Vec<u8> {
        let segment = tcp((self.client, port), (self.service, 80), ACK, &[], &[7; 60]);
        let start = usize::from(offset) * 8;
        let part: Vec<u8> = segment.iter().copied().cycle().skip(start).take(length).collect();
        self.fragment(TCP, id, offset, more, &part)
    }

    fn fragment(&self, protocol: u8, id: u16, offset: u16, more: bool, part: &[u8]) -> Vec<u8> {
        from_router(&if self.v6 {
            let field = offset << 3 | u16::from(more);
            let id = u32::from(id).to_be_bytes();
            let header = [&[protocol, 0], &field.to_be_bytes()[..], &id].concat();
            ip(self.client, self.service, 44, &[&header, part].concat())
        } else {
            let field = offset | u16::from(more) << 13;
            let packet = ip(self.client, self.service, protocol, part);
            let packet = with(with(packet, 6, &field.to_be_bytes()), 4, &id.to_be_bytes());
            with_header_checksum(packet)
        })
    }
}

/// An IPv4 packet whose header was changed.
fn with_header_checksum(packet: Vec<u8>) -> Vec<u8> {
    let (mut header, _) = Ipv4Header::from_slice(&packet).expect("sound");
    header.header_checksum = header.calc_header_checksum();
    let length = header.header_len();
    let mut bytes = Vec::new();
    header.write(&mut bytes).expect("memory");
    [&bytes, &packet[length..]].concat()
}

/// A segment to the service in pieces, in order and not, twice and overlapping.
fn fragments(net: Net) -> Tape {
    let mut tape = Tape::new(0);
    let piece = |id, offset, length, more| net.piece(1, id, offset, length, more);
    tape.alone(piece(1, 0, 40, true)).alone(piece(1, 5, 40, false));
    tape.alone(piece(2, 5, 40, false)).alone(piece(2, 0, 40, true));
    // Tiny first fragments (RFC 1858), and overlapping ones.
    tape.alone(piece(3, 0, 8, true)).alone(piece(3, 1, 8, true)).alone(piece(3, 2, 64, false));
    tape.alone(piece(4, 0, 40, true)).alone(piece(4, 3, 40, true)).alone(piece(4, 0, 40, false));
    tape.alone(piece(5, 0, 80, false)).alone(piece(6, 0x1fff, 40, false));
    tape.alone(piece(7, 5, 40, true)).alone(piece(7, 10, 0, false)).alone(piece(8, 0, 0, true));
    tape.alone(net.host(1, ACK)).alone(piece(9, 0, 40, true)).alone(piece(9, 5, 40, false));
    tape.alone(cut(piece(11, 0, 40, true), 14 + net.header() + 4));
    // Of UDP, of ICMP and of TCP to another port; more that wait than may.
    for (id, protocol) in [(12, UDP), (13, if net.v6 { ICMPV6 } else { ICMP })] {
        tape.alone(net.fragment(protocol, id, 0, true, &[7; 16]));
        tape.alone(net.fragment(protocol, id, 2, false, &[7; 16]));
    }
    let other = tcp((net.client, 1), (net.service, 81), ACK, &[], b"1234");
    tape.alone(net.fragment(TCP, 14, 0, true, &other));
    tape.alone(net.fragment(TCP, 14, 3, false, &[7; 16]));
    for offset in 5..15 {
        tape.alone(piece(15, offset, 8, true));
    }
    tape.pause(5_000_000).alone(piece(2, 10, 8, false));
    tape
}

/// Fragments of segments that are another server's, or nobody's.
fn fragments_moved(net: Net, shape: u32) -> Tape {
    let mut tape = Tape::new(shape);
    let member = u8::from(shape & LOCATOR_V6 != 0);
    // The first and the second wait for the answer, and the third comes after it.
    tape.alone(net.piece(1, 1, 0, 40, true)).alone(net.piece(1, 1, 5, 16, true));
    tape.order(Order::Owner, 0, member).alone(net.piece(1, 1, 7, 24, false));
    tape.alone(net.piece(1, 2, 5, 40, false)).alone(net.piece(1, 2, 0, 40, true));
    // The first waits for too long, or in vain.
    tape.alone(net.piece(3, 3, 0, 40, true)).pause(900_000).alone(net.piece(3, 4, 0, 40, true));
    tape.pause(500_000).alone(net.piece(3, 4, 5, 40, false)).pause(100_000);
    tape.alone(net.piece(4, 5, 0, 40, true)).order(Order::TimedOut, 0, 0);
    tape.alone(net.piece(4, 5, 5, 40, false));
    if !net.v6 {
        // What a tunnel does not take becomes two, but what a frame does not take is dropped.
        let lengths: &[usize] = if shape & 3 == 0 { &[1460, 4000] } else { &[1460] };
        for &length in lengths {
            let packet = with(net.client_packet(1, ACK, &vec![7; length]), 6, &[0, 0]);
            tape.alone(from_router(&with_header_checksum(packet)));
        }
    }
    // Nobody may be told of a fragment behind the first, nor of an error, that is too big.
    let later = net.fragment(TCP, 1, 8, true, &[7; 1472]);
    tape.alone(if net.v6 { later } else { with(later, 14 + 6, &[0x40]) });
    let kind = if net.v6 { 2 } else { 3 };
    let quoted = [net.host_packet(1, ACK, &[]), vec![7; 1440 - 2 * net.header()]].concat();
    tape.alone(from_router(&net.icmp(net.service, kind, &quoted)));
    tape
}

/// Fragments in tunnels to us, and of segments that were rewritten.
fn fragments_in_tunnels(net: Net, shape: u32) -> Tape {
    let mut tape = Tape::new(shape);
    tape.alone(net.host(1, ACK));
    for frame in [
        net.piece(1, 1, 0, 40, true),
        net.piece(1, 1, 5, 40, false),
        net.piece(2, 2, 5, 40, false),
        net.piece(2, 2, 0, 40, true),
        net.piece(1, 3, 0, 8, true),
        net.fragment(UDP, 4, 2, false, &[7; 16]),
    ] {
        let inner = &frame[14..];
        tape.alone(from_router(&match shape & 3 {
            IPIP => ip(net.member, net.locator, net.protocol(), inner),
            REWRITE => to_locator(net, inner.to_vec()),
            _ => net.gue(net.member, [0, net.protocol(), 0, 0], inner),
        }));
    }
    tape
}

/// A packet to us instead of to the service. Its checksums are then wrong, which nobody looks at.
fn to_locator(net: Net, packet: Vec<u8>) -> Vec<u8> {
    match net.locator {
        IpAddr::V4(v4) => with(packet, 16, &v4.octets()),
        IpAddr::V6(v6) => with(packet, 24, &v6.octets()),
    }
}

/// Errors of all types, about a service's segment and about others, with all of it quoted or less.
fn icmp_errors(net: Net) -> Tape {
    let mut tape = Tape::new(0);
    tape.alone(net.host(1, SYN | ACK)).alone(net.client(1, ACK));
    let quoted = net.host_packet(1, ACK, &[]);
    for kind in 0..=18 {
        tape.alone(from_router(&net.icmp(net.service, kind, &quoted)));
    }
    let kind = if net.v6 { 2 } else { 3 };
    for length in [0, 1, 4, 19, 20, 23, 24, 28, 39, 40, 43, 44, 48] {
        tape.alone(from_router(&net.icmp(net.service, kind, &quoted[..length.min(quoted.len())])));
    }
    // The client's own segment, a datagram, a fragment, another version, a stray's.
    for other in [
        net.client_packet(1, ACK, b""),
        ip(net.service, net.client, UDP, &udp(80, 1, b"")),
        with(quoted.clone(), 6, &[0x20]),
        with(quoted.clone(), 0, &[0x00]),
        with(quoted.clone(), 0, &[if net.v6 { 0x6f } else { 0x4f }]),
        net.host_packet(2, ACK, &[]),
    ] {
        tape.alone(from_router(&net.icmp(net.service, kind, &other)));
    }
    tape.order(Order::Owner, 0, u8::from(net.v6)).alone(from_router(&net.icmp(
        net.service,
        kind,
        &net.host_packet(2, ACK, &[]),
    )));
    // A message that is shorter than ICMP's header.
    let message = net.icmp(net.service, kind, &quoted);
    tape.alone(from_router(&ip(
        net.client,
        net.service,
        if net.v6 { ICMPV6 } else { ICMP },
        &message[net.header()..][..5],
    )));
    tape
}

/// What is none of ours.
fn passing(net: Net) -> Tape {
    let mut tape = Tape::new(0);
    let mut arp = Vec::new();
    PacketBuilder::ethernet2(ROUTER, [0xff; 6])
        .arp(
            etherparse::ArpPacket::new(
                etherparse::ArpHardwareId(1),
                etherparse::EtherType(0x0800),
                etherparse::ArpOperation(1),
                &ROUTER,
                &[10, 0, 0, 254],
                &[0; 6],
                &[10, 0, 0, 1],
            )
            .expect("sound"),
        )
        .write(&mut arp)
        .expect("memory");
    tape.alone(arp.clone()).alone(cut(arp.clone(), 20));
    // Given back by the NIC's switch: whole, cut, and to one station alone.
    arp[6..12].copy_from_slice(&REFLECTED_MAC);
    tape.alone(arp.clone()).alone(cut(arp.clone(), 20));
    arp[..6].copy_from_slice(&HOST_MAC);
    tape.alone(arp);
    // LLDP, a length instead of an EtherType, BGP both ways, the DHT, another port, another tunnel port.
    tape.alone([&HOST_MAC[..], &ROUTER, &[0x88, 0xcc, 2, 7, 4]].concat());
    tape.alone([&HOST_MAC[..], &ROUTER, &[0x00, 0x26, 0x42, 0x42, 3]].concat());
    let bgp = tcp((net.client, 179), (net.locator, 179), ACK, &[], b"bgp");
    tape.alone(from_router(&ip(net.client, net.locator, TCP, &bgp)));
    tape.alone(from_host(&ip(net.locator, net.client, TCP, &bgp)));
    for port in [7000, 6080, 6081] {
        tape.alone(from_router(&ip(net.member, net.service, UDP, &udp(1, port, b"dht"))));
        tape.alone(from_host(&ip(net.locator, net.member, UDP, &udp(1, port, b"dht"))));
    }
    let other = tcp((net.client, 1), (net.service, 81), SYN, &[], b"");
    tape.alone(from_router(&ip(net.client, net.service, TCP, &other)));
    // Neighbour solicitation and advertisement, echo, router advertisement.
    for kind in [135, 136, 128, 134, 8, 0] {
        tape.alone(from_router(&net.icmp(net.service, kind, &[0x20; 24])));
    }
    // QinQ in all spellings, and a priority tag.
    let packet = net.client_packet(1, ACK, b"");
    for tags in [
        &[(0x88a8, 5), (0x8100, 6)][..],
        &[(0x8100, 5), (0x8100, 6)],
        &[(0x9100, 5)],
        &[(0x8100, 0xe000)],
    ] {
        tape.alone(tagged(tags, &packet));
    }
    for protocol in [0, 2, 47, 50, 51, 59, 132, 255] {
        tape.alone(from_router(&ip(net.client, net.service, protocol, b"something")));
    }
    tape.alone(from_host(&cut(packet, 30))).alone(from_host(&[])).alone(vec![0; 13]);
    tape
}

/// Tunnel packets to us with nothing that may come out of one.
fn tunnel_of_nothing(net: Net, locator: u32) -> Tape {
    let mut tape = Tape::new(locator);
    let inner = net.client_packet(1, ACK, b"hello");
    let protocol = net.protocol();
    let other_family = if net.v6 { 4 } else { 41 };
    for header in [
        [0x00, protocol, 0, 0],
        [0x20, protocol, 0, 0],
        [0x40, protocol, 0, 0],
        [0x80, protocol, 0, 0],
        [0xc0, protocol, 0, 0],
        [0x1f, protocol, 0, 0],
        [0x01, protocol, 0, 0],
        [0x00, other_family, 0, 0],
        [0x00, 0, 0, 0],
        [0x00, 59, 0, 0],
        [0x00, protocol, 0x80, 0x00],
        [0x02, protocol, 0x00, 0x01],
    ] {
        tape.alone(from_router(&net.gue(net.member, header, &inner)));
    }
    let header = [0, protocol, 0, 0];
    // With an extension field that is skipped.
    let field = [&[0xaa; 4][..], &inner].concat();
    tape.alone(from_router(&net.gue(net.member, [0x01, protocol, 0, 0], &field)));
    tape.alone(from_router(&net.gue(net.service, header, &inner)));
    for length in [0, 1, net.header() - 1, net.header(), net.header() + 1, net.header() + 19] {
        tape.alone(from_router(&net.gue(net.member, header, &inner[..length])));
    }
    for length in [0, 1, 3] {
        let datagram = udp(1, 6080, &header[..length]);
        tape.alone(from_router(&ip(net.member, net.locator, UDP, &datagram)));
    }
    for length in [8u16, 11, 12, 13, 30, 0xffff] {
        let sound = net.gue(net.member, header, &inner);
        tape.alone(from_router(&with(sound, net.header() + 4, &length.to_be_bytes())));
    }
    // What is no segment to a service: the host's, a datagram, a tunnel in a tunnel, a fragment.
    for inner in [
        net.host_packet(1, ACK, &[]),
        ip(net.client, net.service, UDP, &udp(1, 80, b"")),
        net.gue(net.member, header, &inner),
        ip(net.client, net.service, 44, &[TCP, 0, 0, 1, 0, 0, 0, 1]),
    ] {
        tape.alone(from_router(&net.gue(net.member, header, &inner)));
    }
    if !net.v6 {
        let fragment = with(inner.clone(), 6, &[0x20, 0x00]);
        tape.alone(from_router(&net.gue(net.member, header, &fragment)));
    }
    let chain = ip(net.client, net.service, 60, &[[60, 0, 1, 4, 0, 0, 0, 0]; 9].concat());
    tape.alone(from_router(&net.gue(net.member, header, &chain)));
    if !net.v6 {
        tape.alone(from_router(&net.gue(STRANGER, header, &inner)));
    }
    tape
}

/// A stray, its owner, and what follows it, in each link header.
fn redirect(net: Net, shape: u32) -> Tape {
    let mut tape = Tape::new(shape);
    let member = u8::from(shape & LOCATOR_V6 != 0);
    tape.frame(net.client(1, ACK))
        .frame(tagged(&[(0x8100, 5)], &net.client_packet(1, ACK, b"tag")));
    tape.order(Order::Owner, 0, member);
    let class = if net.v6 {
        with(net.client_packet(1, ACK, b"EF"), 0, &[0x6b, 0x83])
    } else {
        with(net.client_packet(1, ACK, b"EF"), 1, &[0xbb])
    };
    tape.alone(from_router(&class))
        .alone(tagged(&[(0x8100, 5)], &net.client_packet(1, FIN | ACK, b"")));
    let mut padded = net.client(1, ACK);
    padded.resize(100, 0xee);
    tape.alone(padded);
    let kind = if net.v6 { 2 } else { 3 };
    tape.alone(from_router(&net.icmp(net.service, kind, &net.host_packet(1, ACK, &[]))));
    if net.v6 {
        let segment = tcp((net.client, 1), (net.service, 80), ACK, &[], b"behind options");
        let behind = [&[TCP, 0, 1, 4, 0, 0, 0, 0], &segment[..]].concat();
        tape.alone(from_router(&ip(net.client, net.service, 60, &behind)));
    }
    tape.order(Order::NotMine, 0, member).alone(net.client(1, ACK)).order(
        Order::Owner,
        0,
        1 - member,
    );
    tape.alone(net.client(1, SYN));
    tape
}

/// Packets that other servers send us, of sessions that we hold and of others.
fn tunnel_end(net: Net, shape: u32) -> Tape {
    let mut tape = Tape::new(shape);
    tape.alone(net.host(1, ACK));
    // What we would tunnel ourselves is not tunnelled again.
    let member = u8::from(shape & LOCATOR_V6 != 0);
    tape.alone(net.client(2, ACK)).order(Order::Owner, 0, member);
    let outer = nets()[usize::from(shape & LOCATOR_V6 != 0)];
    let kind = if net.v6 { 2 } else { 3 };
    for port in [1, 2] {
        let error = net.icmp(net.service, kind, &net.host_packet(port, ACK, &[]));
        for inner in
            [net.client_packet(port, ACK, b"moved"), net.client_packet(port, SYN, b""), error]
        {
            let packet = match shape & 3 {
                IPIP => ip(outer.member, outer.locator, net.protocol(), &inner),
                REWRITE if outer.v6 == net.v6 => to_locator(net, inner),
                _ => outer.gue(outer.member, [0, net.protocol(), 0, 0], &inner),
            };
            tape.alone(from_router(&packet)).alone(tagged(&[(0x8100, 5)], &packet));
        }
    }
    tape
}

/// Segments that fit alone and not in a tunnel.
fn too_big(net: Net, shape: u32) -> Tape {
    let mut tape = Tape::new(shape);
    tape.alone(net.client(1, ACK)).order(Order::Owner, 0, u8::from(net.v6));
    let length = 1500 - net.header() - 20;
    tape.alone(from_router(&net.client_packet(1, ACK, &vec![7; length])));
    tape
}

fn jumbo(net: Net, shape: u32) -> Tape {
    let mut tape = Tape::new(shape | JUMBO);
    tape.alone(net.client(1, ACK)).order(Order::Owner, 0, u8::from(net.v6));
    for length in if net.v6 { [2000] } else { [8990] } {
        tape.alone(from_router(&net.client_packet(1, ACK, &vec![7; length])));
    }
    tape
}

/// Extension headers in front of TCP: each, many, too many, and some that lie.
fn extensions(net: Net) -> Tape {
    let mut tape = Tape::new(0);
    let segment = tcp((net.client, 1), (net.service, 80), ACK, &[], b"");
    let options = |next: u8, length: u8| [next, length, 1, 4, 0, 0, 0, 0];
    let chain = |first: u8, headers: &[[u8; 8]]| {
        from_router(&ip(
            net.client,
            net.service,
            first,
            &[&headers.concat()[..], &segment].concat(),
        ))
    };
    for first in [0, 43, 60, 44, 51, 59, 135] {
        tape.alone(chain(first, &[options(TCP, 0)]));
    }
    for count in [2, 7, 8, 9, 12] {
        let mut headers = vec![options(60, 0); count];
        headers[count - 1] = options(TCP, 0);
        tape.alone(chain(60, &headers));
    }
    for length in [1, 2, 3, 4, 255] {
        tape.alone(chain(60, &[options(TCP, length)]));
    }
    for length in [0, 1, 2, 7] {
        tape.alone(from_router(&ip(net.client, net.service, 0, &options(TCP, 0)[..length])));
    }
    tape.alone(chain(
        0,
        &[options(43, 0), options(60, 0), options(44, 0), [TCP, 0, 0, 1, 0, 0, 0, 9]],
    ));
    tape
}

/// IPv4 options in front of TCP.
fn options(net: Net) -> Tape {
    let mut tape = Tape::new(0);
    let segment = tcp((net.client, 1), (net.service, 80), ACK, &[], b"");
    for words in [1u8, 5, 10] {
        let options = vec![1; usize::from(words) * 4];
        let packet = ip(net.client, net.service, TCP, &[&options[..], &segment].concat());
        tape.alone(from_router(&with(packet, 0, &[0x45 + words])));
    }
    tape.order(Order::Owner, 0, 0);
    let packet = ip(net.client, net.service, TCP, &[&[7, 4, 4, 0][..], &segment].concat());
    tape.alone(from_router(&with(packet, 0, &[0x46])));
    tape
}
