//! Clamps the MSS that a host announces in its SYN-ACK, so that the client's segments fit a
//! tunnel when their session is moved (R11). Never touches anything else of the segment.

use holdfast_net::checksum;
use holdfast_net::headers::Tcp;
use holdfast_net::{Network, Packet};

/// TCP option kinds (RFC 9293 §3.1).
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// Where a TCP header without options keeps its checksum, in bytes.
const CHECKSUM_OFFSET: usize = 16;

/// The greatest MSS with which a segment of `network`'s family fits an uplink of `uplink_mtu`
/// bytes behind a tunnel header of `overhead` bytes. The MSS counts neither IP nor TCP options
/// (RFC 6691), so there is no room for them to reckon with.
#[must_use]
pub fn limit(network: &Network, uplink_mtu: usize, overhead: usize) -> u16 {
    let headers = match network {
        Network::Ipv4 { .. } => 20 + size_of::<Tcp>(),
        Network::Ipv6 { .. } => 40 + size_of::<Tcp>(),
    };
    let room = uplink_mtu.saturating_sub(overhead + headers);
    u16::try_from(room).unwrap_or(u16::MAX)
}

/// Lowers the MSS option of the TCP segment in `frame` to `limit`, and corrects the checksum.
/// Returns whether it did: not when there is no such option (or no sound one), or it is low
/// enough.
pub fn clamp(frame: &mut [u8], packet: &Packet, limit: u16) -> bool {
    let Some(segment) = frame.get_mut(packet.transport_offset..packet.end) else {
        return false;
    };
    let Some(at) = mss_offset(segment) else { return false };
    let old = u16::from_be_bytes([segment[at], segment[at + 1]]);
    if old <= limit {
        return false;
    }
    segment[at..at + 2].copy_from_slice(&limit.to_be_bytes());
    let sum = u16::from_be_bytes([segment[CHECKSUM_OFFSET], segment[CHECKSUM_OFFSET + 1]]);
    // The checksum is one of 16-bit words: an option at an odd offset lies across two of them,
    // which is the same as both values with their bytes swapped (RFC 1071 §2).
    let sum = if at.is_multiple_of(2) {
        checksum::update(sum, old, limit)
    } else {
        checksum::update(sum, old.swap_bytes(), limit.swap_bytes())
    };
    segment[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Offset of the MSS option's value in the segment.
fn mss_offset(segment: &[u8]) -> Option<usize> {
    let header_length = usize::from(segment.get(12)? >> 4) * 4;
    let header = segment.get(..header_length)?;
    let mut at = size_of::<Tcp>();
    while let Some(&kind) = header.get(at) {
        match kind {
            OPTION_END => return None,
            OPTION_NOP => at += 1,
            _ => {
                let length = usize::from(*header.get(at + 1)?);
                if kind == OPTION_MSS && length == 4 && at + 4 <= header.len() {
                    return Some(at + 2);
                }
                if length < 2 {
                    return None;
                }
                at += length;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
    use proptest::prelude::*;

    fn syn_ack(v6: bool, options: &[TcpOptionElement]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([1; 6], [2; 6]);
        let ip = if v6 {
            ethernet.ipv6([3; 16], [4; 16], 64)
        } else {
            ethernet.ipv4([192, 168, 0, 1], [20, 1, 1, 1], 64)
        };
        let tcp = ip.tcp(80, 1234, 7, 1000).syn().ack(9).options(options).expect("they fit");
        let mut frame = Vec::new();
        tcp.write(&mut frame, b"").expect("fits");
        frame
    }

    /// The MSS in a frame whose checksum an independent reader finds right.
    fn mss(frame: &[u8]) -> Option<u16> {
        let sliced = SlicedPacket::from_ethernet(frame).expect("sound");
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("no TCP") };
        let header = tcp.to_header();
        let right = match sliced.net.as_ref().expect("IP") {
            etherparse::NetSlice::Ipv4(ip) => {
                header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload())
            }
            etherparse::NetSlice::Ipv6(ip) => {
                header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())
            }
            _ => panic!("no IP"),
        };
        assert_eq!(header.checksum, right.expect("short enough"));
        tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        })
    }

    #[test]
    fn r11_the_mss_is_lowered_and_never_raised() {
        use TcpOptionElement::{MaximumSegmentSize, Noop, SelectiveAcknowledgementPermitted};
        let rows: [(&[TcpOptionElement], Option<u16>); 5] = [
            (&[MaximumSegmentSize(1460)], Some(1400)),
            (&[Noop, MaximumSegmentSize(1460)], Some(1400)),
            (&[SelectiveAcknowledgementPermitted, MaximumSegmentSize(1460)], Some(1400)),
            (&[MaximumSegmentSize(536)], Some(536)),
            (&[SelectiveAcknowledgementPermitted], None),
        ];
        for (options, expected) in rows {
            for v6 in [false, true] {
                let mut frame = syn_ack(v6, options);
                let packet = Packet::from_ethernet(&frame).expect("sound").expect("IP");
                let before = mss(&frame);
                assert_eq!(clamp(&mut frame, &packet, 1400), before != expected, "{options:?}");
                assert_eq!(mss(&frame), expected, "{options:?}");
            }
        }
    }

    #[test]
    fn r11_the_limit_leaves_room_for_the_tunnel() {
        let v4 = Network::Ipv4 { source: [0; 4], destination: [0; 4] };
        let v6 = Network::Ipv6 { source: [0; 16], destination: [0; 16] };
        assert_eq!(limit(&v4, 1500, 32), 1428);
        assert_eq!(limit(&v6, 1500, 52), 1388);
        assert_eq!(limit(&v4, 1600, 32), 1528, "nothing to lower from 1460");
        assert_eq!(limit(&v4, 50, 32), 0);
    }

    proptest! {
        #[test]
        fn hostile_options_never_panic(options in proptest::collection::vec(any::<u8>(), 40)) {
            let mut frame = syn_ack(false, &[const { TcpOptionElement::Noop }; 40]);
            let options_at = frame.len() - 40;
            frame[options_at..].copy_from_slice(&options);
            let packet = Packet::from_ethernet(&frame).expect("sound").expect("IP");
            clamp(&mut frame, &packet, 500);
        }
    }
}
