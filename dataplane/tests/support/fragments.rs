//! Cuts packets into fragments and puts them together again, by means of its own and of
//! etherparse's: nothing here is the code under test.

use std::net::IpAddr;

use etherparse::defrag::IpDefragPool;
use etherparse::{NetSlice, SlicedPacket};
use holdfast_net::checksum::checksum;

/// Link and IP header of a plain packet, in bytes.
fn head_length(frame: &[u8]) -> usize {
    if frame[14] >> 4 == 4 { 14 + 20 } else { 14 + 40 }
}

/// The payload of a plain packet in an Ethernet frame.
pub fn payload(frame: &[u8]) -> &[u8] {
    &frame[head_length(frame)..]
}

/// The fragment with bytes `start..end` of the payload of `frame`, a plain packet. It is the last
/// one if it reaches the payload's end.
pub fn piece(frame: &[u8], identification: u32, start: usize, end: usize) -> Vec<u8> {
    assert!(start.is_multiple_of(8));
    let (head, payload) = frame.split_at(head_length(frame));
    let more = end < payload.len();
    assert!(!more || end.is_multiple_of(8));
    let mut fragment = head.to_vec();
    if frame[14] >> 4 == 4 {
        let length = (20 + end - start) as u16;
        fragment[16..18].copy_from_slice(&length.to_be_bytes());
        fragment[18..20].copy_from_slice(&(identification as u16).to_be_bytes());
        let flags = (start / 8) as u16 | if more { 0x2000 } else { 0 };
        fragment[20..22].copy_from_slice(&flags.to_be_bytes());
        with_checksum(&mut fragment);
    } else {
        let length = (8 + end - start) as u16;
        fragment[18..20].copy_from_slice(&length.to_be_bytes());
        let next = std::mem::replace(&mut fragment[20], 44);
        fragment.extend([next, 0]);
        fragment.extend((start as u16 | u16::from(more)).to_be_bytes());
        fragment.extend(identification.to_be_bytes());
    }
    fragment.extend(&payload[start..end]);
    fragment
}

/// The fragments of `frame`, a plain packet, cut at these places of its payload.
pub fn cut(frame: &[u8], identification: u32, places: &[usize]) -> Vec<Vec<u8>> {
    let starts = [&[0], places].concat();
    let ends = [places, &[payload(frame).len()]].concat();
    let pieces = starts.iter().zip(&ends);
    pieces.map(|(start, end)| piece(frame, identification, *start, *end)).collect()
}

/// An IPv4 packet with these flags and this offset, in 8-byte units.
pub fn with_flags(frame: &[u8], flags: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[20..22].copy_from_slice(&flags.to_be_bytes());
    with_checksum(&mut frame);
    frame
}

fn with_checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// What a kernel makes of the frames it gets: the payload of the packet from `source` to
/// `destination` whose fragments, or whole, they are. `None` when one is missing.
pub fn reassembled(frames: &[Vec<u8>], source: IpAddr, destination: IpAddr) -> Option<Vec<u8>> {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut whole = None;
    for frame in frames {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let addresses: (IpAddr, IpAddr) = match sliced.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                (header.source.into(), header.destination.into())
            }
            NetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            NetSlice::Arp(_) => panic!("no IP"),
        };
        assert_eq!(addresses, (source, destination));
        let is_whole = !sliced.is_ip_payload_fragmented();
        let payload = if is_whole {
            sliced.ip_payload().map(|ip| ip.payload.to_vec())
        } else {
            pool.process_sliced_packet(&sliced, (), ()).unwrap().map(|whole| whole.payload)
        };
        whole = whole.or(payload);
    }
    whole
}
