//! The host behind the NIC's switch, as dialogues: the test is the NIC, with its wire, its other
//! functions and the DHT core. Sessions in IPv4 and in IPv6.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use holdfast_dataplane::session::{Session, State};
use holdfast_dataplane::stats::Counter;
use holdfast_dataplane::switch::Switch;
use holdfast_dataplane::worker::NEIGHBOUR_ANSWERS_PER_SECOND;
use holdfast_handoff::{Announcement, Resolution};
use support::{ACK, Bench, FIN_ACK, Net, Options, SYN, inside, nets, owner};

/// Our own address, the kernel's, a router's and a station's that has nothing to do with us.
const OURS: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const KERNEL: [u8; 6] = [0x02, 0, 0, 0, 0, 0x4e];
const ROUTER: [u8; 6] = [0x02, 0, 0, 0, 0, 0xaa];
const OTHER: [u8; 6] = [0x02, 0, 0, 0, 0, 0xbb];
const BROADCAST: [u8; 6] = [0xff; 6];

const ROUTER_V4: [u8; 4] = [10, 1, 0, 1];
const NEXT_HOP_V4: [u8; 4] = [10, 1, 0, 11];
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xaa);
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x1234, 0x5678);
const SOLICITED_NODE: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff34, 0x5678);
const SOLICITED_NODE_LINK: [u8; 6] = [0x33, 0x33, 0xff, 0x34, 0x56, 0x78];

fn switch() -> Switch {
    let next_hops = [IpAddr::from(NEXT_HOP_V4), IpAddr::from(NEXT_HOP_V6)];
    Switch { ours: OURS, kernel: KERNEL, next_hops: next_hops.into_iter().collect() }
}

fn bench(net: Net) -> Bench {
    Bench::with(net, &Options { switch: Some(switch()), ..Options::default() })
}

fn any() -> Bench {
    bench(nets()[0])
}

/// `frame` between other stations.
fn between(frame: &[u8], source: [u8; 6], destination: [u8; 6]) -> Vec<u8> {
    [&destination, &source, &frame[12..]].concat()
}

/// `frame` as the kernel gets it from us.
fn to_kernel(frame: &[u8]) -> Vec<u8> {
    between(frame, OURS, KERNEL)
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00, 0x60, 0x07], &frame[12..]].concat()
}

/// The frame is dropped, and counted as this.
fn dropped(bench: &mut Bench, frame: &[u8], counter: Counter) {
    let before = bench.count(counter);
    bench.uplink_brings(frame);
    assert_eq!(bench.uplink_gets(), None, "{counter:?}: {frame:02x?}");
    assert_eq!(bench.count(counter), before + 1, "{counter:?}: {frame:02x?}");
    bench.check_books();
}

#[test]
fn r2_r3_r4_a_session_goes_to_the_kernel_by_its_address() {
    for net in nets() {
        let mut bench = bench(net);
        let segments = [(SYN, &b""[..]), (ACK, b""), (ACK, b"request")];
        for (flags, payload) in segments {
            let segment = net.client_segment(1000, flags, payload);
            bench.uplink_brings(&segment);
            assert_eq!(bench.uplink_gets(), Some(to_kernel(&segment)));
        }
        let Some(Announcement::Publish { flow, version }) = bench.announces() else {
            panic!("inbound-only the SYN publishes");
        };
        assert_eq!(flow, net.flow(1000));
        let established = Session::Local { state: State::Established, version, published: true };
        assert_eq!(bench.session(1000), Some(established));
        assert_eq!((bench.count(Counter::HostSent), bench.count(Counter::UplinkSent)), (3, 0));
        assert_eq!(bench.host_gets(), None, "there is no other port");
        bench.check_books();
    }
}

#[test]
fn r5_a_stray_goes_back_to_its_router_in_a_tunnel() {
    for net in nets() {
        let mut bench = bench(net);
        let stray = net.client_segment(1000, ACK, b"stray");
        bench.uplink_brings(&stray);
        assert_eq!(bench.asks(), Some(net.flow(1000)));
        bench.core_answers(net.flow(1000), owner(net.other));
        let sent = bench.uplink_gets().unwrap();
        assert_eq!((&sent[..6], &sent[6..12]), (&ROUTER[..], &OURS[..]));
        assert_eq!(inside(&sent), (net.me, net.other, stray[14..].to_vec()));
        bench.check_books();
    }
}

#[test]
fn r5_a_stray_of_nobody_goes_to_the_kernel() {
    for net in nets() {
        let mut bench = bench(net);
        let stray = net.client_segment(1000, ACK, b"stray");
        bench.uplink_brings(&stray);
        bench.core_answers(net.flow(1000), Resolution::Orphaned);
        assert_eq!(bench.uplink_gets(), Some(to_kernel(&stray)));
        bench.check_books();
    }
}

#[test]
fn r6_what_a_tunnel_brings_goes_to_the_kernel() {
    for net in nets() {
        let mut bench = bench(net);
        let segment = net.client_segment(1000, FIN_ACK, b"moved");
        bench.uplink_brings(&net.tunnelled(&segment, net.other));
        assert_eq!(bench.uplink_gets(), Some(to_kernel(&segment)));
        bench.check_books();
    }
}

/// The locator's other traffic, as of the DHT, is the kernel's as before.
#[test]
fn what_is_no_services_goes_to_the_kernel() {
    let mut bench = any();
    let mut datagram = Vec::new();
    PacketBuilder::ethernet2(ROUTER, OURS)
        .ipv4([10, 0, 0, 2], [10, 0, 0, 1], 60)
        .udp(7000, 7000)
        .write(&mut datagram, b"dht")
        .unwrap();
    for frame in [datagram.clone(), tagged(&datagram)] {
        bench.uplink_brings(&frame);
        assert_eq!(bench.uplink_gets(), Some(to_kernel(&frame)));
    }
    assert_eq!(bench.count(Counter::Passed), 2);
    bench.check_books();
}

/// When the uplink is full, what is for the host waits with the rest, and goes in its order.
#[test]
fn a_full_uplink_delays_the_host() {
    let net = nets()[0];
    let mut bench = bench(net);
    bench.uplink.0.borrow_mut().room = Some(0);
    let segments = [net.client_segment(1, SYN, b""), net.client_segment(1, ACK, b"x")];
    segments.iter().for_each(|segment| bench.uplink_brings(segment));
    assert_eq!(bench.uplink_gets(), None);
    bench.uplink.0.borrow_mut().room = None;
    bench.turn();
    assert_eq!(bench.uplink_gets_all(), segments.map(|segment| to_kernel(&segment)));
    bench.check_books();
}

/// A NIC gives broadcasts and multicasts to all functions, the sender's and the kernel's too.
#[test]
fn nothing_goes_round() {
    let mut bench = any();
    let net = bench.net;
    let segment = net.client_segment(1000, SYN, b"");
    let group = [0x01, 0, 0x5e, 0, 0, 5];
    for (source, destination, counter) in [
        (OURS, BROADCAST, Counter::SwitchReflected),
        (OURS, OURS, Counter::SwitchReflected),
        (OURS, KERNEL, Counter::SwitchReflected),
        (ROUTER, BROADCAST, Counter::SwitchGroup),
        (ROUTER, group, Counter::SwitchGroup),
        (KERNEL, BROADCAST, Counter::SwitchGroup),
        (ROUTER, KERNEL, Counter::SwitchNotOurs),
        (ROUTER, OTHER, Counter::SwitchNotOurs),
        (KERNEL, OURS, Counter::SwitchFromHost),
    ] {
        dropped(&mut bench, &between(&segment, source, destination), counter);
        dropped(&mut bench, &tagged(&between(&segment, source, destination)), counter);
    }
    let to_us = between(&segment, ROUTER, OURS);
    for length in 0..14 {
        dropped(&mut bench, &to_us[..length], Counter::SwitchNotOurs);
    }
    assert_eq!(bench.session(1000), None, "nothing was learnt of it");
    assert_eq!(bench.count(Counter::SynToHost), 0);
}

/// An ARP packet, field by field.
fn arp(operation: u8, sender: ([u8; 6], [u8; 4]), target: ([u8; 6], [u8; 4])) -> Vec<u8> {
    let head = [0, 1, 0x08, 0x00, 6, 4, 0, operation];
    [&head[..], &sender.0, &sender.1, &target.0, &target.1].concat()
}

fn arp_frame(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &[0x08, 0x06], packet].concat()
}

#[test]
fn arp_for_a_next_hop_is_answered() {
    let mut bench = any();
    let asked = arp(1, (ROUTER, ROUTER_V4), ([0; 6], NEXT_HOP_V4));
    let probe = arp(1, (ROUTER, [0; 4]), ([0; 6], NEXT_HOP_V4));
    for (packet, sender) in [(&asked, ROUTER_V4), (&probe, [0; 4])] {
        for destination in [BROADCAST, OURS] {
            let mut expected =
                arp_frame(OURS, ROUTER, &arp(2, (OURS, NEXT_HOP_V4), (ROUTER, sender)));
            expected.resize(60, 0);
            let request = arp_frame(ROUTER, destination, packet);
            bench.uplink_brings(&request);
            assert_eq!(bench.uplink_gets(), Some(expected.clone()));

            // In its VLAN.
            bench.uplink_brings(&tagged(&request));
            let mut expected = tagged(&expected);
            expected.truncate(60);
            assert_eq!(bench.uplink_gets(), Some(expected));
        }
    }
    // The kernel may look for it as any other.
    let packet = arp(1, (KERNEL, [10, 1, 0, 2]), ([0; 6], NEXT_HOP_V4));
    bench.uplink_brings(&arp_frame(KERNEL, BROADCAST, &packet));
    assert_eq!(bench.uplink_gets().unwrap()[..6], KERNEL);
    assert_eq!(bench.count(Counter::NeighbourAnswered), 9);
    bench.check_books();
}

#[test]
fn other_arp_is_dropped() {
    let mut bench = any();
    let (router, asked) = ((ROUTER, ROUTER_V4), ([0; 6], NEXT_HOP_V4));
    let sound = arp(1, router, asked);
    let changed = |at: usize, value: u8| {
        let mut packet = sound.clone();
        packet[at] = value;
        packet
    };
    let rows = [
        // Of others, and answers.
        (arp(1, router, ([0; 6], [10, 1, 0, 2])), Counter::NeighbourOther),
        (arp(1, router, ([0; 6], ROUTER_V4)), Counter::NeighbourOther),
        (arp(2, router, (OURS, NEXT_HOP_V4)), Counter::NeighbourOther),
        (arp(3, router, asked), Counter::NeighbourOther),
        // Somebody else says that he has our address.
        (arp(1, (OTHER, NEXT_HOP_V4), ([0; 6], NEXT_HOP_V4)), Counter::NeighbourConflict),
        (arp(2, (OTHER, NEXT_HOP_V4), (ROUTER, ROUTER_V4)), Counter::NeighbourConflict),
        // Not Ethernet, not IPv4, lengths of neither, and senders that are no station.
        (changed(1, 6), Counter::NeighbourMalformed),
        (changed(2, 0x86), Counter::NeighbourMalformed),
        (changed(4, 8), Counter::NeighbourMalformed),
        (changed(5, 16), Counter::NeighbourMalformed),
        (changed(8, 0x03), Counter::NeighbourMalformed),
        (arp(1, ([0; 6], ROUTER_V4), asked), Counter::NeighbourMalformed),
    ];
    for (packet, counter) in rows {
        dropped(&mut bench, &arp_frame(ROUTER, BROADCAST, &packet), counter);
    }
    for length in 0..sound.len() {
        let frame = arp_frame(ROUTER, BROADCAST, &sound[..length]);
        dropped(&mut bench, &frame, Counter::NeighbourMalformed);
        dropped(&mut bench, &tagged(&frame), Counter::NeighbourMalformed);
    }
    let frame = arp_frame([0x03, 0, 0, 0, 0, 1], BROADCAST, &sound);
    dropped(&mut bench, &frame, Counter::NeighbourMalformed);
    // A frame that ends inside its tag is no ARP.
    let cut = &tagged(&arp_frame(ROUTER, BROADCAST, &sound))[..17];
    dropped(&mut bench, cut, Counter::SwitchGroup);
}

/// A Neighbour Discovery message with its checksum, etherparse's.
struct Message {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    to: [u8; 6],
    hops: u8,
    kind: u8,
    code: u8,
    target: Ipv6Addr,
    options: Vec<u8>,
}

impl Message {
    /// A router's question for our next hop.
    fn solicitation() -> Message {
        Message {
            source: ROUTER_V6,
            destination: SOLICITED_NODE,
            to: SOLICITED_NODE_LINK,
            hops: 255,
            kind: 135,
            code: 0,
            target: NEXT_HOP_V6,
            options: [&[1, 1], &ROUTER[..]].concat(),
        }
    }

    fn frame(&self) -> Vec<u8> {
        let payload = [&self.target.octets()[..], &self.options].concat();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(ROUTER, self.to)
            .ipv6(self.source.octets(), self.destination.octets(), self.hops)
            .icmpv6_raw(self.kind, self.code, [0; 4])
            .write(&mut frame, &payload)
            .unwrap();
        frame
    }
}

/// What an answer says: to whom it is, with which flags, and for what.
fn advertisement(frame: &[u8]) -> ([u8; 6], Ipv6Addr, u8) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("no IPv6") };
    let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else { panic!("no ICMPv6") };
    let header = ip.header().to_header();
    assert_eq!(frame[6..12], OURS);
    assert_eq!(header.hop_limit, 255);
    assert_eq!(header.source, NEXT_HOP_V6.octets());
    assert!(icmp.is_checksum_valid(header.source, header.destination));
    let message = icmp.slice();
    assert_eq!((message[0], message[1]), (136, 0));
    assert_eq!(message[5..8], [0; 3]);
    assert_eq!(message[8..24], NEXT_HOP_V6.octets());
    assert_eq!(message[24..], [&[2, 1], &OURS[..]].concat());
    (frame[..6].try_into().unwrap(), header.destination.into(), message[4])
}

#[test]
fn a_solicitation_for_a_next_hop_is_answered() {
    let asked = Message::solicitation;
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let rows = [
        ("with its address", asked(), (ROUTER, ROUTER_V6, 0x60)),
        ("without", Message { options: Vec::new(), ..asked() }, (ROUTER, ROUTER_V6, 0x60)),
        (
            "whether we are there still",
            Message { destination: NEXT_HOP_V6, to: OURS, ..asked() },
            (ROUTER, ROUTER_V6, 0x60),
        ),
        (
            "whether the address is free",
            Message { source: Ipv6Addr::UNSPECIFIED, options: Vec::new(), ..asked() },
            ([0x33, 0x33, 0, 0, 0, 1], all_nodes, 0x20),
        ),
        (
            "with an option that nobody knows",
            Message { options: [&[1, 1], &ROUTER[..], &[200, 2], &[0; 14]].concat(), ..asked() },
            (ROUTER, ROUTER_V6, 0x60),
        ),
    ];
    let mut bench = any();
    for (what, message, expected) in rows {
        bench.uplink_brings(&message.frame());
        let answer = bench.uplink_gets().unwrap_or_else(|| panic!("{what}"));
        assert_eq!(advertisement(&answer), expected, "{what}");
        // In its VLAN.
        bench.uplink_brings(&tagged(&message.frame()));
        assert_eq!(bench.uplink_gets(), Some(tagged(&answer)), "{what}");
    }
    assert_eq!(bench.count(Counter::NeighbourAnswered), 10);
    bench.check_books();
}

#[test]
fn other_neighbour_discovery_is_dropped() {
    use Counter::{NeighbourConflict, NeighbourMalformed, NeighbourOther};

    let asked = Message::solicitation;
    let multicast = "ff02::5".parse().unwrap();
    let unspecified = Ipv6Addr::UNSPECIFIED;
    let rows = [
        (Message { target: ROUTER_V6, ..asked() }, NeighbourOther),
        (Message { kind: 133, ..asked() }, NeighbourOther),
        (Message { kind: 134, ..asked() }, NeighbourOther),
        (Message { kind: 137, ..asked() }, NeighbourOther),
        (Message { kind: 136, target: ROUTER_V6, ..asked() }, NeighbourOther),
        (Message { kind: 136, ..asked() }, NeighbourConflict),
        (Message { source: NEXT_HOP_V6, ..asked() }, NeighbourConflict),
        (Message { hops: 254, ..asked() }, NeighbourMalformed),
        (Message { code: 1, ..asked() }, NeighbourMalformed),
        (Message { target: multicast, ..asked() }, NeighbourMalformed),
        (Message { source: multicast, ..asked() }, NeighbourMalformed),
        (Message { source: unspecified, ..asked() }, NeighbourMalformed),
        (
            Message {
                source: unspecified,
                destination: NEXT_HOP_V6,
                options: Vec::new(),
                ..asked()
            },
            NeighbourMalformed,
        ),
        (Message { options: vec![1, 0, 0, 0, 0, 0, 0, 0], ..asked() }, NeighbourMalformed),
        (Message { options: vec![1, 2, 0, 0, 0, 0, 0, 0], ..asked() }, NeighbourMalformed),
        (Message { options: vec![1], ..asked() }, NeighbourMalformed),
    ];
    let mut bench = any();
    for (message, counter) in rows {
        dropped(&mut bench, &message.frame(), counter);
    }
    let sound = asked().frame();
    for at in 14 + 40 + 1..sound.len() {
        let mut frame = sound.clone();
        frame[at] ^= 0x10;
        bench.uplink_brings(&frame);
        assert_eq!(bench.uplink_gets(), None, "byte {at} is another, and the checksum is wrong");
    }
    for length in 14 + 40 + 1..sound.len() {
        dropped(&mut bench, &sound[..length], NeighbourMalformed);
        // The IP header says so, too; the checksum is that of the whole.
        let mut frame = sound[..length].to_vec();
        frame[19] = (length - 54) as u8;
        dropped(&mut bench, &frame, NeighbourMalformed);
    }
    // Too short to be Neighbour Discovery, or even IPv6.
    for length in 14..=14 + 40 {
        dropped(&mut bench, &sound[..length], Counter::SwitchGroup);
    }
}

/// A flood of questions is answered at a bounded rate.
#[test]
fn answers_have_a_limit() {
    let mut bench = any();
    let request = arp_frame(ROUTER, BROADCAST, &arp(1, (ROUTER, ROUTER_V4), ([0; 6], NEXT_HOP_V4)));
    for _ in 0..100 {
        bench.uplink_brings(&request);
    }
    let (answered, left) =
        (bench.count(Counter::NeighbourAnswered), bench.count(Counter::NeighbourUnanswered));
    assert_eq!((answered, left), (64, 36));
    assert_eq!(bench.uplink_gets_all().len(), 64);
    bench.pass_ms(1);
    bench.uplink_brings(&request);
    assert_eq!(bench.uplink_gets_all().len() as u32, NEIGHBOUR_ANSWERS_PER_SECOND / 1000);
    bench.check_books();
}

#[test]
fn solicitations_come_by_these_groups() {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut switch = switch();
    assert_eq!(switch.groups(), [SOLICITED_NODE_LINK]);
    let next_hops = ["2001:db8::34:5678", "2001:db8::1", "10.1.0.11"].map(address);
    switch.next_hops.extend(next_hops);
    // Two addresses share one.
    let expected = [[0x33, 0x33, 0xff, 0, 0, 1], SOLICITED_NODE_LINK];
    assert_eq!(switch.groups(), expected);
    switch.next_hops = [IpAddr::from(Ipv4Addr::LOCALHOST)].into_iter().collect();
    assert!(switch.groups().is_empty());
}
