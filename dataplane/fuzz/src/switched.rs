//! The host behind the NIC's switch: which frames are for us, and what may answer a neighbour. Read
//! plainly, and answers by etherparse: nothing here is the worker's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::world::HOST_MAC;

/// Our own address: seeds bring to it what is the host's elsewhere.
pub const OUR_MAC: [u8; 6] = HOST_MAC;
/// The kernel's.
pub const KERNEL_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x4e];
/// What we answer for.
pub const NEXT_HOPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 1, 0, 11)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x11)),
];

/// Whether a frame that comes from the NIC is for us to go on with.
#[must_use]
pub fn is_for_us(frame: &[u8]) -> bool {
    frame.len() >= 14
        && frame[..6] == OUR_MAC
        && frame[6..12] != OUR_MAC
        && frame[6..12] != KERNEL_MAC
        && !is_neighbour(frame)
}

/// Whether it is ARP or Neighbour Discovery.
fn is_neighbour(frame: &[u8]) -> bool {
    let is_tagged = frame.len() >= 18 && frame[12..14] == [0x81, 0x00];
    let link = if is_tagged { 18 } else { 14 };
    match frame[link - 2..link] {
        [0x08, 0x06] => true,
        [0x86, 0xdd] => {
            frame.len() > link + 40
                && frame[link + 6] == 58
                && (133..=137).contains(&frame[link + 40])
        }
        _ => false,
    }
}

/// A frame that was answered instead of passed on.
pub fn answer(came: &[u8], sent: &[u8]) {
    assert!(is_neighbour(came), "what is no question is answered");
    assert!(came[..6] == OUR_MAC || came[0] & 1 == 1, "a question to somebody else");
    assert_eq!(sent[6..12], OUR_MAC);
    let link = if came[12..14] == [0x81, 0x00] { 18 } else { 14 };
    assert_eq!(sent[12..link], came[12..link], "another tag, or another protocol");
    if sent[link - 2..link] == [0x08, 0x06] {
        let (asked, told) = (&came[link..], &sent[link..]);
        assert_eq!(sent[..6], came[6..12]);
        assert_eq!(asked[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(told[..8], [0, 1, 8, 0, 6, 4, 0, 2]);
        assert_eq!(told[8..14], OUR_MAC);
        assert_eq!(told[14..18], asked[24..28]);
        assert_eq!(told[18..28], asked[8..18]);
        assert_eq!(NEXT_HOPS[0], IpAddr::from([told[14], told[15], told[16], told[17]]));
        assert!(told[28..].iter().all(|byte| *byte == 0));
        return;
    }
    let told = SlicedPacket::from_ethernet(sent).expect("an answer that is not sound");
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) =
        (&told.net, &told.transport)
    else {
        panic!("no ICMPv6")
    };
    let header = ip.header().to_header();
    let asker = &came[link + 8..link + 24];
    let is_probe = asker.iter().all(|byte| *byte == 0);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    assert_eq!(
        sent[..6],
        if is_probe { [0x33, 0x33, 0, 0, 0, 1] } else { came[6..12].try_into().expect("six") }
    );
    assert_eq!(header.destination, if is_probe { &all_nodes[..] } else { asker });
    assert_eq!(header.hop_limit, 255);
    assert_eq!(NEXT_HOPS[1], IpAddr::from(header.source));
    assert!(icmp.is_checksum_valid(header.source, header.destination));
    let message = icmp.slice();
    assert_eq!(message[..2], [136, 0]);
    assert_eq!(message[4], if is_probe { 0x20 } else { 0x60 });
    assert_eq!(message[8..24], header.source);
    assert_eq!(message[8..24], came[link + 48..link + 64]);
    assert_eq!(message[24..], [&[2, 1], &OUR_MAC[..]].concat());
    assert_eq!(came[link + 40], 135);
}
