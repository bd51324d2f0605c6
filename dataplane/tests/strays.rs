//! What a worker tells the ledger of incidents, as dialogues in IPv4 and IPv6: one report for each
//! time that a flow's strays were parked, whatever became of them.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::IpAddr;

use holdfast_dataplane::stats::Counter;
use holdfast_handoff::{Answer, Resolution, StrayFate, StrayLoss, StrayReport};
use support::{ACK, Bench, FIN_ACK, Net, Options, RST, SYN, SYN_ACK, nets, owner};

fn both(dialogue: impl Fn(Net)) {
    nets().into_iter().for_each(dialogue);
}

/// The report on a flow whose first stray came at the bench's first moment.
fn report(
    net: &Net,
    waited_ms: u64,
    lookup_ms: Option<u64>,
    lost: u32,
    fate: StrayFate,
) -> StrayReport {
    StrayReport {
        flow: net.flow(1000),
        came_us: 1_000_000,
        waited_us: 1000 * waited_ms,
        lookup_us: lookup_ms.map(|ms| 1000 * ms),
        lost,
        fate,
    }
}

fn stray(bench: &mut Bench, port: u16) {
    let frame = bench.net.client_segment(port, ACK, b"stray");
    bench.uplink_brings(&frame);
}

/// A stray of flow 1000, and the core's answer to it after 4 ms.
fn answered(
    bench: &mut Bench,
    resolution: Resolution,
    dead: Option<IpAddr>,
) -> Option<StrayReport> {
    stray(bench, 1000);
    assert_eq!(bench.told(), None, "nothing is known yet");
    bench.pass_ms(4);
    let flow = bench.net.flow(1000);
    bench.core_says(Answer::Resolved { flow, resolution, dead });
    bench.told()
}

#[test]
fn a_flow_that_is_tunnelled_is_reported_once() {
    both(|net| {
        let mut bench = Bench::new(net);
        for _ in 0..6 {
            stray(&mut bench, 1000);
        }
        bench.pass_ms(4);
        bench.core_answers(net.flow(1000), owner(net.other));
        let fate = StrayFate::Tunnelled { owner: net.other };
        // Four may wait.
        assert_eq!(bench.told(), Some(report(&net, 4, Some(4), 2, fate)));
        stray(&mut bench, 1000);
        assert_eq!(bench.told(), None, "the redirect's packets are not reported");
    });
}

#[test]
fn what_the_table_says_by_then_counts() {
    both(|net| {
        let mut bench = Bench::new(net);
        stray(&mut bench, 1000);
        bench.uplink_brings(&net.client_segment(1000, SYN, b""));
        bench.host_sends(&net.host_segment(1000, SYN_ACK, b""));
        bench.pass_ms(4);
        bench.core_answers(net.flow(1000), owner(net.other));
        assert_eq!(bench.told(), Some(report(&net, 4, Some(4), 0, StrayFate::Kept)));
    });
}

#[test]
fn each_answer_has_its_fate() {
    both(|net| {
        let dropped = StrayFate::Dropped;
        let rows = [
            (owner(net.me), None, StrayFate::Kept, 0),
            (owner(net.stranger), None, dropped(StrayLoss::Stranger), 1),
            (Resolution::TimedOut, None, dropped(StrayLoss::TimedOut), 1),
            (Resolution::TimedOut, Some(net.other), dropped(StrayLoss::OwnerDead(net.other)), 1),
        ];
        for (resolution, dead, fate, lost) in rows {
            let told = answered(&mut Bench::new(net), resolution, dead);
            assert_eq!(told, Some(report(&net, 4, Some(4), lost, fate)));
        }
    });
}

/// Answers both questions of flow 1000, 30 ms apart, and each after 10 ms.
fn nobodys(bench: &mut Bench, dead: Option<IpAddr>) {
    let (flow, resolution) = (bench.net.flow(1000), Resolution::NotFound);
    for pause_ms in [10, 40] {
        bench.pass_ms(pause_ms);
        assert_eq!(bench.told(), None);
        bench.core_says(Answer::Resolved { flow, resolution, dead });
    }
}

#[test]
fn nobodys_flow_is_reported_after_the_second_answer_and_its_reset_when_it_passes() {
    both(|net| {
        for given_up in [None, Some(net.other)] {
            let mut bench = Bench::new(net);
            stray(&mut bench, 1000);
            nobodys(&mut bench, given_up);
            let fate = StrayFate::Nobody { given_up };
            let told = report(&net, 50, Some(10), 0, fate);
            assert_eq!(bench.told(), Some(told));
            // R5: doubted for two seconds.
            bench.host_sends(&net.host_segment(1000, RST, b""));
            assert_eq!((bench.uplink_gets(), bench.told()), (None, None));

            bench.pass_ms(2100);
            let came_us = bench.now.us;
            stray(&mut bench, 1000);
            nobodys(&mut bench, given_up);
            assert_eq!(bench.told(), Some(StrayReport { came_us, ..told }));
            bench.host_sends(&net.host_segment(1000, RST, b""));
            assert!(bench.uplink_gets().is_some());
            let came_us = bench.now.us;
            let reset = StrayReport { came_us, ..report(&net, 0, None, 0, StrayFate::Reset) };
            assert_eq!(bench.told(), Some(reset));
        }
    });
}

#[test]
fn resets_of_what_was_no_stray_are_not_reported() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.host_sends(&net.host_segment(1000, RST | ACK, b""));
        assert!(bench.uplink_gets().is_some(), "answers a SYN to a port where nobody listens");
        assert_eq!(bench.told(), None);
        bench.open(1000);
        bench.host_sends(&net.host_segment(1000, RST, b""));
        assert_eq!(bench.told(), None, "the end of a session of ours");
    });
}

#[test]
fn the_end_of_a_redirected_session_is_reported() {
    both(|net| {
        for last in [FIN_ACK, RST] {
            let mut bench = Bench::new(net);
            bench.redirect(1000);
            assert!(matches!(bench.told().unwrap().fate, StrayFate::Tunnelled { .. }));
            bench.uplink_brings(&net.client_segment(1000, last, b""));
            assert_eq!(bench.told(), Some(report(&net, 0, None, 0, StrayFate::Ended)));
            // A stray may be the end itself.
            bench.uplink_brings(&net.client_segment(1000, last, b""));
            bench.core_answers(net.flow(1000), owner(net.other));
            let fates = [bench.told(), bench.told()].map(|told| told.unwrap().fate);
            assert_eq!(fates, [StrayFate::Tunnelled { owner: net.other }, StrayFate::Ended]);
        }
    });
}

#[test]
fn without_an_answer_the_flow_expires() {
    both(|net| {
        let mut bench = Bench::new(net);
        stray(&mut bench, 1000);
        stray(&mut bench, 1000);
        bench.pass_ms(1000);
        let fate = StrayFate::Dropped(StrayLoss::Expired);
        assert_eq!(bench.told(), Some(report(&net, 1000, None, 2, fate)));
        assert_eq!(bench.told(), None);
    });
}

#[test]
fn a_stray_too_big_for_the_tunnel_leaves_a_redirect_behind() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.uplink_brings(&net.client_segment(1000, ACK, &[7; 1440]));
        bench.core_answers(net.flow(1000), owner(net.other));
        let fate = StrayFate::Redirected { owner: net.other };
        assert_eq!(bench.told(), Some(report(&net, 0, Some(0), 1, fate)));
        assert_eq!(bench.count(Counter::TooBigAnswered), 1);
    });
}

#[test]
fn what_finds_no_room_is_reported_with_its_reason() {
    both(|net| {
        let fates = |bench: &mut Bench| {
            std::iter::from_fn(|| bench.told())
                .map(|told| (told.flow, told.fate))
                .collect::<Vec<_>>()
        };
        // The ring to the core takes two questions.
        let mut bench = Bench::with(net, &Options { resolves: 2, ..Options::default() });
        for port in 0..3 {
            stray(&mut bench, port);
        }
        let dropped = |port, loss| (net.flow(port), StrayFate::Dropped(loss));
        assert_eq!(fates(&mut bench), [dropped(2, StrayLoss::RingFull)]);

        // The parking takes 16.
        let mut bench = Bench::with(net, &Options { resolves: 64, ..Options::default() });
        for port in (0..17).chain([3]) {
            stray(&mut bench, port);
        }
        assert_eq!(fates(&mut bench), [dropped(16, StrayLoss::ParkingFull)]);
        bench.core_answers(net.flow(3), Resolution::TimedOut);
        assert_eq!(bench.told().unwrap().lost, 2, "one of them found no room");

        // Of one prefix and of all 64 lookups at once are admitted.
        let mut bench =
            Bench::with(net, &Options { resolves: 64, reports: 256, ..Options::default() });
        for port in 0..65 {
            stray(&mut bench, port);
            bench.core_answers(net.flow(port), owner(net.other));
        }
        assert_eq!(fates(&mut bench).last(), Some(&dropped(64, StrayLoss::RefusedSource)));
    });
}

#[test]
fn what_the_ledger_does_not_take_is_counted() {
    both(|net| {
        let mut bench = Bench::with(net, &Options { reports: 2, ..Options::default() });
        for port in 0..3 {
            stray(&mut bench, port);
            bench.core_answers(net.flow(port), owner(net.other));
        }
        assert_eq!(bench.count(Counter::StrayUnreported), 1);
        assert_eq!(bench.uplink_gets_all().len(), 3, "and changes nothing");
        assert_eq!(
            (bench.told().unwrap().flow, bench.told().unwrap().flow),
            (net.flow(0), net.flow(1))
        );
    });
}
