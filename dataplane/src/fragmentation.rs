//! Makes fragments of an IPv4 packet that does not fit the tunnel and may be fragmented (R11,
//! RFC 791 §3.2). Never answers anybody: that is for packets that may not ([`crate::too_big`]).

use arrayvec::ArrayVec;
use holdfast_net::checksum::checksum;
use holdfast_net::headers::Ipv4;
use holdfast_net::{Network, Packet};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::encap::LINK_HEADER_MAX;
use crate::frame::Frame;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
/// The greatest offset of a fragment, in units.
const OFFSET_MAX: u16 = 0x1fff;
/// Fragments begin at multiples of as many bytes.
const UNIT: usize = 8;
/// Longest IPv4 header, in bytes.
const HEADER_MAX: usize = 60;
/// IPv4 options (RFC 791 §3.1): the two without a length, and the bit of those that every
/// fragment has.
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_COPIED: u8 = 0x80;

/// Why a packet was not split. It is then unchanged.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum SplitError {
    /// It is IPv6, has DF, or is no packet that could be split.
    #[error("the packet may not be fragmented")]
    NotAllowed,
    /// There is no frame for the rest.
    #[error("there is no frame for the second fragment")]
    NoFrame,
}

/// Whether `packet` of `frame` may be fragmented on its way: IPv4 without DF.
#[must_use]
pub fn is_allowed(frame: &[u8], packet: &Packet) -> bool {
    header(frame, packet).is_some_and(|ip| ip.flags_fragment.get() & DONT_FRAGMENT == 0)
}

/// Makes `packet` of `frame`, which may be a fragment itself, a fragment of at most `mtu` bytes,
/// and returns the rest as another one. That may still be longer. `None` when all fits.
///
/// # Errors
/// [`SplitError`]
pub fn split<F: Frame>(
    frame: &mut F,
    packet: &Packet,
    mtu: usize,
) -> Result<Option<F>, SplitError> {
    let Packet { network_offset, transport_offset, end, .. } = *packet;
    if end - network_offset <= mtu {
        return Ok(None);
    }
    let bytes = frame.data();
    let mut ip = *header(bytes, packet).ok_or(SplitError::NotAllowed)?;
    let flags = ip.flags_fragment.get();
    let units = mtu.saturating_sub(transport_offset - network_offset) / UNIT;
    let rest_units = usize::from(flags & OFFSET_MAX) + units;
    let is_possible = units > 0 && rest_units <= usize::from(OFFSET_MAX);
    if flags & DONT_FRAGMENT != 0 || !is_possible {
        return Err(SplitError::NotAllowed);
    }
    let kept = transport_offset + units * UNIT;
    let payload = bytes.get(kept..end).ok_or(SplitError::NotAllowed)?;

    let options = bytes.get(network_offset + size_of::<Ipv4>()..transport_offset);
    let options = copied(options.unwrap_or_default());
    let header_length = size_of::<Ipv4>() + options.len();
    let mut rest_ip = ip;
    rest_ip.version_ihl = 0x40 | (header_length / 4) as u8;
    rest_ip.total_length = ((header_length + payload.len()) as u16).into();
    rest_ip.flags_fragment = (flags & !OFFSET_MAX | rest_units as u16).into();
    rest_ip.checksum = 0.into();
    let mut rest_head = ArrayVec::<u8, { LINK_HEADER_MAX + HEADER_MAX }>::new();
    let link = bytes.get(..network_offset).ok_or(SplitError::NotAllowed)?;
    for part in [link, rest_ip.as_bytes(), &options] {
        rest_head.try_extend_from_slice(part).map_err(|_| SplitError::NotAllowed)?;
    }
    let sum = checksum(&rest_head[network_offset..]);
    rest_head[network_offset + 10..network_offset + 12].copy_from_slice(&sum.to_be_bytes());
    let rest = frame.new_like(&[&rest_head, payload]).ok_or(SplitError::NoFrame)?;

    ip.total_length = ((kept - network_offset) as u16).into();
    ip.flags_fragment = (flags | MORE_FRAGMENTS).into();
    ip.checksum = 0.into();
    frame.truncate(kept);
    let own_header = &mut frame.data_mut()[network_offset..transport_offset];
    own_header[..size_of::<Ipv4>()].copy_from_slice(ip.as_bytes());
    let sum = checksum(own_header);
    own_header[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(Some(rest))
}

fn header<'a>(frame: &'a [u8], packet: &Packet) -> Option<&'a Ipv4> {
    let Network::Ipv4 { .. } = packet.network else { return None };
    let (ip, _) = Ipv4::ref_from_prefix(frame.get(packet.network_offset..)?).ok()?;
    Some(ip)
}

/// Those of the options that every fragment has, filled up to whole words.
fn copied(options: &[u8]) -> ArrayVec<u8, { HEADER_MAX - size_of::<Ipv4>() }> {
    let mut copied = ArrayVec::new();
    let mut left = options;
    while let [kind, behind @ ..] = left {
        let length = match (*kind, behind.first()) {
            (OPTION_END, _) => break,
            (OPTION_NOP, _) => 1,
            (_, Some(&length)) if length >= 2 => usize::from(length),
            // What has no sound length ends the options.
            _ => break,
        };
        let Some((option, following)) = left.split_at_checked(length) else { break };
        // Never more than there were, so there is room for all.
        if kind & OPTION_COPIED != 0 && copied.try_extend_from_slice(option).is_err() {
            break;
        }
        left = following;
    }
    while copied.len() % 4 != 0 && copied.try_push(OPTION_END).is_ok() {}
    copied
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{DATA_ROOM, MemFrame};
    use etherparse::defrag::IpDefragPool;
    use etherparse::{Ipv4Header, Ipv4Options, NetSlice, PacketBuilder, SlicedPacket};
    use proptest::prelude::*;

    fn ipv4(options: &[u8], payload: &[u8], tag: bool) -> Vec<u8> {
        let mut ip = Ipv4Header::new(
            payload.len() as u16,
            60,
            etherparse::IpNumber::TCP,
            [20, 1, 1, 1],
            [192, 168, 0, 1],
        )
        .expect("short");
        ip.identification = 0x1234;
        ip.dont_fragment = false;
        ip.options = Ipv4Options::try_from(options).expect("whole words");
        let ethernet = PacketBuilder::ethernet2([0xaa; 6], [0xbb; 6]);
        let vlan = 7.try_into().expect("a VLAN id");
        let ip = etherparse::IpHeaders::Ipv4(ip, Default::default());
        let builder = if tag { ethernet.single_vlan(vlan).ip(ip) } else { ethernet.ip(ip) };
        let mut frame = Vec::new();
        builder.write(&mut frame, 6.into(), payload).expect("fits");
        frame
    }

    fn read(frame: &[u8]) -> Packet {
        Packet::from_ethernet(frame).expect("sound").expect("IP")
    }

    /// All fragments of at most `mtu` bytes.
    fn fragments(frame: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, SplitError> {
        let (mut done, mut next) = (Vec::new(), Some(MemFrame::new(frame)));
        while let Some(mut frame) = next {
            let packet = read(frame.data());
            next = split(&mut frame, &packet, mtu)?;
            done.push(frame.data().to_vec());
        }
        Ok(done)
    }

    fn ip_of(frame: &[u8]) -> Ipv4Header {
        let sliced = SlicedPacket::from_ethernet(frame).expect("sound");
        let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("no IPv4") };
        ip.header().to_header()
    }

    /// A TCP header's 20 bytes and as many more.
    fn segment(payload: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..20 + payload).map(|n| (n % 251) as u8).collect();
        bytes[12] = 5 << 4;
        bytes
    }

    proptest! {
        /// An independent reassembly gives the packet back, whatever its length, MTU and options.
        #[test]
        fn r11_fragments_make_the_packet_again(
            length in 0usize..1900,
            mtu in 68usize..1600,
            tag: bool,
            options in prop::sample::select(vec![vec![], vec![1, 1, 1, 0], vec![0x94, 4, 0, 0]]),
        ) {
            let payload = segment(length);
            let frame = ipv4(&options, &payload, tag);
            let link = if tag { 18 } else { 14 };
            let fragments = fragments(&frame, mtu).expect("may be fragmented");
            if fragments.len() == 1 {
                prop_assert_eq!(&fragments[0], &frame);
                return Ok(());
            }
            let mut pool = IpDefragPool::<(), ()>::new();
            let mut whole = None;
            for fragment in &fragments {
                prop_assert!(fragment.len() - link <= mtu);
                prop_assert_eq!(&fragment[..link], &frame[..link]);
                let ip = ip_of(fragment);
                prop_assert_eq!(ip.identification, 0x1234);
                prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                prop_assert_eq!((ip.time_to_live, ip.source), (60, [20, 1, 1, 1]));
                let sliced = SlicedPacket::from_ethernet(fragment).expect("sound");
                whole = pool.process_sliced_packet(&sliced, (), ()).expect("in order");
            }
            prop_assert_eq!(whole.expect("complete with the last one").payload, payload);
        }

        #[test]
        fn hostile_packets_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 34..120), mtu in 0usize..80,
        ) {
            let header_words = 5 + bytes[14] % 11;
            bytes[12..15].copy_from_slice(&[8, 0, 0x40 | header_words]);
            let length = bytes.len() as u16 - 14;
            bytes[16..18].copy_from_slice(&length.to_be_bytes());
            bytes[20] &= !0x40;
            bytes[23] = 253;
            let before = Packet::from_ethernet(&bytes);
            if let Ok(Some(packet)) = before {
                let mut frame = MemFrame::new(&bytes);
                if let Ok(Some(rest)) = split(&mut frame, &packet, mtu) {
                    let sum = packet.end - packet.transport_offset;
                    let [head, rest] = [read(frame.data()), read(rest.data())];
                    let parts = [head, rest].map(|packet| packet.end - packet.transport_offset);
                    prop_assert_eq!(parts[0] + parts[1], sum);
                }
            }
        }
    }

    /// The example of RFC 791: every fragment but the last says that more follow; of a fragment
    /// that is fragmented further the last one says what the whole said.
    #[test]
    fn r11_a_fragment_is_fragmented_further_with_the_right_offsets() {
        let mut middle = ipv4(&[], &segment(276), false);
        middle[20..22].copy_from_slice(&(MORE_FRAGMENTS | 100).to_be_bytes());
        let mut last = middle.clone();
        last[20..22].copy_from_slice(&100u16.to_be_bytes());
        for (frame, more) in [(middle, true), (last, false)] {
            let offsets = fragments(&frame, 128).expect("may be fragmented");
            let offsets = offsets.iter().map(|fragment| {
                let ip = ip_of(fragment);
                (ip.fragment_offset.value(), ip.more_fragments)
            });
            assert_eq!(offsets.collect::<Vec<_>>(), [(100, true), (113, true), (126, more)]);
        }
    }

    #[test]
    fn r11_options_with_the_copied_flag_are_in_every_fragment() {
        // A security option (copied), no-operation, record route (not copied), stream id (copied).
        let security = [0x82, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9];
        let options = [&security[..], &[1, 7, 7, 4, 0, 0, 0, 0], &[0x88, 4, 1, 2, 0]].concat();
        let fragments = fragments(&ipv4(&options, &segment(200), false), 120).expect("allowed");
        assert!(fragments.len() > 2);
        assert_eq!(ip_of(&fragments[0]).options.as_slice(), options);
        for later in &fragments[1..] {
            let expected = [&security[..], &[0x88, 4, 1, 2, 0]].concat();
            assert_eq!(ip_of(later).options.as_slice(), expected);
        }
        assert_eq!(copied(&[0x82, 0, 0x88, 4]).as_slice(), [], "no sound length");
        assert_eq!(copied(&[0x82, 3, 9, 0x88, 99, 1, 1, 1]).as_slice(), [0x82, 3, 9, 0]);
    }

    #[test]
    fn r11_what_may_not_be_fragmented_stays_as_it_was() {
        let plain = ipv4(&[], &segment(1000), false);
        let with = |flags: u16| {
            let mut frame = plain.clone();
            frame[20..22].copy_from_slice(&flags.to_be_bytes());
            frame
        };
        let mut v6 = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv6([3; 16], [4; 16], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut v6, &[0; 1000])
            .expect("fits");
        let too_far = with(OFFSET_MAX - 5);
        for (bytes, mtu) in [(&with(DONT_FRAGMENT), 500), (&v6, 500), (&too_far, 500), (&plain, 27)]
        {
            let mut frame = MemFrame::new(bytes);
            let packet = read(bytes);
            assert_eq!(split(&mut frame, &packet, mtu).err(), Some(SplitError::NotAllowed));
            assert_eq!(frame.data(), bytes);
        }
        assert!(is_allowed(&plain, &read(&plain)) && !is_allowed(&v6, &read(&v6)));
        let forbidden = with(DONT_FRAGMENT);
        assert!(!is_allowed(&forbidden, &read(&forbidden)));

        let large = ipv4(&[], &segment(DATA_ROOM + 1000), false);
        let mut frame = MemFrame::new(&large);
        let outcome = split(&mut frame, &read(&large), 500);
        assert_eq!(outcome.err(), Some(SplitError::NoFrame));
        assert_eq!(frame.data(), large);
    }
}
