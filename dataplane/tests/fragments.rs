//! Whatever a client's segment is cut into, and in whatever order that comes: through one server's
//! redirect, the tunnel and the other server's end it becomes the same segment again (R10, R11).
//! The reassembly is etherparse's.
#![allow(clippy::unwrap_used)]

mod support;

use holdfast_dataplane::encap::Encapsulation;
use holdfast_dataplane::stats::Counter;
use holdfast_net::Packet;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use support::fragments::{cut, payload, reassembled, with_flags};
use support::{ACK, Bench, Options, nets, owner};

const ENCAPSULATIONS: [Encapsulation; 3] =
    [Encapsulation::Gue, Encapsulation::Ipip, Encapsulation::Rewrite];

/// A segment and what becomes of it on its way.
#[derive(Debug)]
struct Case {
    family: usize,
    encapsulation: Encapsulation,
    payload: Vec<u8>,
    identification: u32,
    /// Where its sender or a router cuts it.
    cuts: Vec<Index>,
    /// Which fragments come twice.
    twice: Vec<Index>,
    /// In which order they come at the first server, and at the second.
    orders: [u64; 2],
    /// Whether the first server knows the owner, or learns it when this many have come.
    answer_after: Option<usize>,
}

fn cases() -> impl Strategy<Value = Case> {
    let payload = prop_oneof![0usize..64, 0usize..1440, 1400usize..1440]
        .prop_flat_map(|length| prop::collection::vec(any::<u8>(), length));
    let indices = |most| prop::collection::vec(any::<Index>(), 0..most);
    let numbers = (any::<u32>(), any::<[u64; 2]>(), prop::option::of(0usize..6));
    (0usize..2, select(&ENCAPSULATIONS[..]), payload, indices(4), indices(3), numbers).prop_map(
        |(family, encapsulation, payload, cuts, twice, numbers)| {
            let (identification, orders, answer_after) = numbers;
            let orders = orders.map(|order| order | 1);
            Case {
                family,
                encapsulation,
                payload,
                identification,
                cuts,
                twice,
                orders,
                answer_after,
            }
        },
    )
}

/// Puts `frames` into the order that `seed` stands for (xorshift and Fisher-Yates).
fn shuffle(frames: &mut [Vec<u8>], mut seed: u64) {
    for last in (1..frames.len()).rev() {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        frames.swap(last, (seed % (last as u64 + 1)) as usize);
    }
}

proptest! {
    #[test]
    fn r10_r11_every_fragmentation_gives_the_segment_back(case in cases()) {
        let net = nets()[case.family];
        let options = || Options { encapsulation: case.encapsulation, ..Options::default() };
        let mut here = Bench::with(net, &options());
        let mut there = Bench::with(net.of_the_other(), &options());
        there.open(1000);

        let segment = if net.client.is_ipv4() {
            with_flags(&net.client_segment(1000, ACK, &case.payload), 0)
        } else {
            // A packet of IPv6 that does not fit the tunnel is answered, not fragmented.
            let fitting = case.payload.len().min(1380);
            net.client_segment(1000, ACK, &case.payload[..fitting])
        };
        let bytes = payload(&segment).to_vec();
        // Not in the TCP header, and not at the end.
        let units = (bytes.len() - 1) / 8;
        let mut cuts: Vec<_> =
            case.cuts.iter().filter(|_| units >= 3).map(|cut| 8 * (3 + cut.index(units - 2))).collect();
        cuts.sort_unstable();
        cuts.dedup();
        // A packet in one piece is no fragment in IPv4; in IPv6 it is an atomic one.
        let mut fragments = cut(&segment, case.identification, &cuts);
        for index in &case.twice {
            fragments.push(fragments[index.index(fragments.len())].clone());
        }
        shuffle(&mut fragments, case.orders[0]);

        let mut answer_after = case.answer_after;
        if answer_after.is_none() {
            here.redirect(1000);
        }
        for fragment in &fragments {
            if answer_after == Some(0) && here.asks().is_some() {
                here.core_answers(net.flow(1000), owner(net.other));
                answer_after = None;
            }
            here.uplink_brings(fragment);
            answer_after = answer_after.map(|count| count.saturating_sub(1));
        }
        if here.asks().is_some() {
            here.core_answers(net.flow(1000), owner(net.other));
        }
        prop_assert_eq!(here.host_gets(), None);
        here.check_books();
        // The bench's parking takes four of a flow, the table eight of a datagram that wait.
        prop_assume!(here.count(Counter::ParkFlowFull) == 0);

        let mut sent = here.uplink_gets_all();
        shuffle(&mut sent, case.orders[1]);
        for frame in &sent {
            let packet = Packet::from_ethernet(frame).unwrap().unwrap();
            prop_assert!(packet.end - packet.network_offset <= 1500);
            there.uplink_brings(frame);
        }
        there.check_books();
        prop_assert_eq!((there.uplink_gets(), there.asks()), (None, None));
        let got = there.host_gets_all();
        prop_assert_eq!(got.len(), sent.len());
        prop_assert_eq!(reassembled(&got, net.client, net.service), Some(bytes));
    }

    /// Whatever claims to be a fragment, from the network or in a tunnel, is passed, kept for a
    /// while or dropped, and counted.
    #[test]
    fn r10_hostile_fragments_are_accounted_for(
        family in 0usize..2,
        encapsulation in select(&ENCAPSULATIONS[..]),
        frames in prop::collection::vec(
            (any::<[u8; 4]>(), any::<Index>(), any::<u8>(), 0usize..120, 0u8..4), 1..60,
        ),
    ) {
        let net = nets()[family];
        let mut bench = Bench::with(net, &Options { encapsulation, ..Options::default() });
        bench.open(1000);
        for (place, index, value, length, kind) in frames {
            let segment = net.client_segment(1000 + u16::from(kind & 1), ACK, &[7; 200]);
            let mut frame = cut(&segment, u32::from(place[0] % 4), &[40]).swap_remove(kind.min(1).into());
            if kind > 1 {
                let at = 14 + index.index(frame.len() - 14);
                frame[at] = value;
            }
            if kind > 2 {
                frame.truncate(14 + length);
            }
            if value & 1 == 0 && matches!(Packet::from_ethernet(&frame), Ok(Some(_))) {
                frame = net.tunnelled(&frame, net.other);
            }
            bench.uplink_brings(&frame);
        }
        bench.pass_ms(1010);
        bench.check_books();
    }
}
