//! The rules of `docs/specification/rules.md`, one dialogue each: the test is the network, the
//! host and the DHT core of one worker. Every dialogue is held in IPv4 and in IPv6, and the same while
//! somebody captures everything: that changes nothing, and misses nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::IpAddr;

use holdfast_dataplane::encap::Encapsulation;
use holdfast_dataplane::kernel::{Findings, Held, HeldSession, Kernel};
use holdfast_dataplane::session::table::SessionTable;
use holdfast_dataplane::session::{Session, State};
use holdfast_dataplane::stats::Counter;
use holdfast_handoff::{Announcement, Answer, Clock, Resolution, Version};
use holdfast_net::{FlowKey, Packet, Transport};
use support::fragments::{cut, payload, piece, reassembled, with_flags};
use support::{
    ACK, Bench, FIN_ACK, HEARD, HOST_MAC, MemKernel, Net, Options, RST, RST_ACK, SYN, SYN_ACK,
    TIMEOUTS, inside, nets, owner,
};

const ENCAPSULATIONS: [Encapsulation; 3] =
    [Encapsulation::Gue, Encapsulation::Ipip, Encapsulation::Rewrite];

fn both(dialogue: impl Fn(Net)) {
    for net in nets() {
        dialogue(net);
        dialogue(Net { is_observed: true, ..net });
    }
}

fn local_state(bench: &Bench, port: u16) -> Option<State> {
    match bench.session(port)? {
        Session::Local { state, .. } => Some(state),
        Session::Redirect { .. } => None,
    }
}

#[test]
fn r2_a_syn_goes_to_the_host_and_supersedes_a_redirect() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        bench.uplink_brings(&net.client_segment(1000, SYN, b""));
        assert_eq!(bench.host_gets(), Some(net.client_segment(1000, SYN, b"")));
        assert_eq!(bench.asks(), None);
        assert_eq!(bench.session(1000), None);
        assert_eq!(bench.count(Counter::RedirectSuperseded), 1);
    });
}

#[test]
fn r3_a_syn_ack_publishes_once_and_the_ack_establishes() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.uplink_brings(&net.client_segment(1000, SYN, b""));
        assert_eq!(bench.announces(), None, "a SYN alone proves nothing");
        bench.host_sends(&net.host_segment(1000, SYN_ACK, b""));
        bench.host_sends(&net.host_segment(1000, SYN_ACK, b""));
        assert!(
            matches!(bench.announces(), Some(Announcement::Publish { flow, .. }) if flow == net.flow(1000))
        );
        assert_eq!(bench.announces(), None, "a retransmission is no new session");
        assert_eq!(local_state(&bench, 1000), Some(State::HalfOpen));
        bench.uplink_brings(&net.client_segment(1000, ACK, b""));
        assert_eq!(local_state(&bench, 1000), Some(State::Established));
        assert_eq!(bench.announces(), None);
    });
}

#[test]
fn r3_above_the_half_open_limit_publishing_waits_for_the_handshake() {
    both(|net| {
        let mut bench = Bench::with(net, &Options { half_open_max: 1, ..Options::default() });
        bench.host_sends(&net.host_segment(1, SYN_ACK, b""));
        bench.host_sends(&net.host_segment(2, SYN_ACK, b""));
        assert!(
            matches!(bench.announces(), Some(Announcement::Publish { flow, .. }) if flow == net.flow(1))
        );
        assert_eq!(bench.announces(), None);
        assert_eq!(bench.count(Counter::HalfOpenOverLimit), 1);
        bench.pass_ms(2000);
        assert_eq!(bench.announces(), None, "the sweep does not publish it either");
        bench.uplink_brings(&net.client_segment(2, ACK, b""));
        assert!(
            matches!(bench.announces(), Some(Announcement::Publish { flow, .. }) if flow == net.flow(2))
        );
    });
}

#[test]
fn r3_half_open_sessions_end_by_themselves() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.host_sends(&net.host_segment(1, SYN_ACK, b""));
        let Some(Announcement::Publish { version, .. }) = bench.announces() else { panic!() };
        bench.pass_ms(11_000);
        assert_eq!(bench.session(1), None);
        assert_eq!(bench.announces(), Some(Announcement::Withdraw { flow: net.flow(1), version }));
    });
}

#[test]
fn r4_local_sessions_reach_the_host_untouched_both_ways() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let request = net.client_segment(1000, ACK, b"GET /");
        bench.uplink_brings(&request);
        assert_eq!(bench.host_gets(), Some(request));
        let response = net.host_segment(1000, ACK, b"200 OK");
        bench.host_sends(&response);
        assert_eq!(bench.uplink_gets(), Some(response));
        assert_eq!(bench.asks(), None);
    });
}

#[test]
fn r4_r5_a_stray_is_looked_up_once_and_tunnelled_from_then_on() {
    both(|net| {
        let mut bench = Bench::new(net);
        let strays: Vec<_> =
            [&b"one"[..], b"two"].iter().map(|p| net.client_segment(1000, ACK, p)).collect();
        bench.uplink_brings(&strays[0]);
        bench.uplink_brings(&strays[1]);
        assert_eq!(bench.asks(), Some(net.flow(1000)));
        assert_eq!(bench.asks(), None, "one lookup, however many packets wait");
        assert_eq!(bench.uplink_gets(), None);

        bench.core_answers(net.flow(1000), owner(net.other));
        for stray in &strays {
            let frame = bench.uplink_gets().expect("released in order");
            assert_eq!(inside(&frame), (net.me, net.other, stray[14..].to_vec()));
            assert_eq!(frame[..6], stray[6..12], "back to the router that brought it");
            assert_eq!(frame[6..12], stray[..6]);
        }
        let third = net.client_segment(1000, ACK, b"three");
        bench.uplink_brings(&third);
        assert_eq!(inside(&bench.uplink_gets().unwrap()).2, third[14..]);
        assert_eq!(bench.asks(), None);
        assert_eq!(bench.host_gets(), None, "the host never sees a stray: it would reset it");
    });
}

#[test]
fn r5_a_session_of_our_own_is_taken_up_again() {
    both(|net| {
        let mut bench = Bench::new(net);
        let stray = net.client_segment(1000, ACK, b"hello");
        bench.uplink_brings(&stray);
        assert_eq!(bench.asks(), Some(net.flow(1000)));
        bench.core_answers(net.flow(1000), owner(net.me));
        assert_eq!(bench.host_gets(), Some(stray));
        assert_eq!(local_state(&bench, 1000), Some(State::Established));
        // The record is of a life before a restart: nobody would tell us that another server has
        // the flow by now (R12).
        let published = bench.announces();
        assert!(
            matches!(published, Some(Announcement::Publish { flow, .. }) if flow == net.flow(1000)),
            "{published:?}"
        );
    });
}

#[test]
fn r5_nobodys_flow_is_asked_for_twice_and_then_the_host_answers() {
    both(|net| {
        let mut bench = Bench::new(net);
        let stray = net.client_segment(1000, ACK, b"who?");
        bench.uplink_brings(&stray);
        assert_eq!(bench.asks(), Some(net.flow(1000)));
        bench.core_answers(net.flow(1000), Resolution::NotFound);
        assert_eq!(bench.host_gets(), None, "its record may be on its way");
        assert_eq!(bench.asks(), None);
        bench.pass_ms(100);
        assert_eq!(bench.asks(), Some(net.flow(1000)));
        bench.core_answers(net.flow(1000), Resolution::NotFound);
        assert_eq!(bench.host_gets(), Some(stray.clone()));
        let rst = net.host_segment(1000, RST, b"");
        bench.host_sends(&rst);
        assert_eq!(bench.uplink_gets(), None, "for two seconds nobody is sure");
        bench.pass_ms(2000);
        bench.uplink_brings(&stray);
        for _ in 0..2 {
            assert_eq!(bench.asks(), Some(net.flow(1000)));
            bench.core_answers(net.flow(1000), Resolution::NotFound);
            bench.pass_ms(100);
        }
        assert_eq!(bench.host_gets(), Some(stray.clone()));
        bench.host_sends(&rst);
        assert_eq!(bench.uplink_gets(), Some(rst));
        bench.uplink_brings(&stray);
        assert_eq!(bench.host_gets(), Some(stray.clone()), "remembered");
        assert_eq!(bench.asks(), None);
        bench.pass_ms(1100);
        bench.uplink_brings(&stray);
        assert_eq!(bench.asks(), Some(net.flow(1000)), "but not for long");
    });
}

/// No record of a later session is on its way: clients are to fail fast.
#[test]
fn r13_a_dead_servers_session_is_reset_at_once() {
    both(|net| {
        let mut bench = Bench::new(net);
        let stray = net.client_segment(1000, ACK, b"who?");
        bench.uplink_brings(&stray);
        assert_eq!(bench.asks(), Some(net.flow(1000)));
        bench.core_answers(net.flow(1000), Resolution::Orphaned);
        assert_eq!(bench.host_gets(), Some(stray));
        let rst = net.host_segment(1000, RST, b"");
        bench.host_sends(&rst);
        assert_eq!(bench.uplink_gets(), Some(rst));
    });
}

#[test]
fn r5_found_after_the_grace() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.uplink_brings(&net.client_segment(1000, ACK, b"early"));
        bench.asks();
        bench.core_answers(net.flow(1000), Resolution::NotFound);
        bench.pass_ms(100);
        assert_eq!(bench.asks(), Some(net.flow(1000)));
        bench.core_answers(net.flow(1000), owner(net.other));
        assert_eq!(inside(&bench.uplink_gets().unwrap()).1, net.other);
    });
}

#[test]
fn r5_without_an_answer_the_packet_is_dropped_and_never_reset() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.uplink_brings(&net.client_segment(1000, ACK, b"lost"));
        assert_eq!(bench.asks(), Some(net.flow(1000)));
        bench.core_answers(net.flow(1000), Resolution::TimedOut);
        assert_eq!(bench.count(Counter::DroppedTimedOut), 1);
        bench.uplink_brings(&net.client_segment(1000, ACK, b"lost"));
        assert_eq!(bench.asks(), Some(net.flow(1000)), "a retransmission asks again");
        bench.pass_ms(1100);
        assert_eq!(bench.count(Counter::ParkExpired), 1);
        assert_eq!((bench.host_gets(), bench.uplink_gets()), (None, None));
        bench.core_answers(net.flow(1000), owner(net.other));
        assert_eq!(bench.count(Counter::AnswerLate), 1);
    });
}

#[test]
fn r5_limits_drop_and_count() {
    both(|net| {
        let mut bench = Bench::with(net, &Options { resolves: 2, ..Options::default() });
        for port in 0..3 {
            bench.uplink_brings(&net.client_segment(port, ACK, b""));
        }
        assert_eq!(bench.count(Counter::LookupRingFull), 1);
        for _ in 0..4 {
            bench.uplink_brings(&net.client_segment(0, ACK, b""));
        }
        assert_eq!(bench.count(Counter::ParkFlowFull), 1);
        while bench.asks().is_some() {}
        for port in 10..40 {
            bench.uplink_brings(&net.client_segment(port, ACK, b""));
            bench.asks();
        }
        assert!(bench.count(Counter::ParkFull) > 0);
        assert_eq!((bench.host_gets(), bench.uplink_gets()), (None, None));
    });
}

#[test]
fn r5_an_owner_outside_the_cluster_is_not_followed() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.uplink_brings(&net.client_segment(1000, ACK, b""));
        bench.asks();
        bench.core_answers(net.flow(1000), owner(net.stranger));
        assert_eq!((bench.host_gets(), bench.uplink_gets()), (None, None));
        assert_eq!(bench.count(Counter::ResolvedStranger), 1);
    });
}

#[test]
fn r6_a_members_tunnel_reaches_the_host() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let segment = net.client_segment(1000, ACK, b"by another way");
        bench.uplink_brings(&net.tunnelled(&segment, net.other));
        assert_eq!(bench.host_gets(), Some(segment));
        assert_eq!(bench.announces(), None);
        assert_eq!(bench.count(Counter::TunnelReceived), 1);
    });
}

/// What one server's worker sends, the owner's takes, however strays travel: segments and ICMP
/// errors, and also what the owner does not hold goes to its host and no further.
#[test]
fn r4_r6_what_one_worker_sends_the_owners_takes() {
    for encapsulation in ENCAPSULATIONS {
        both(|net| {
            let options = || Options { encapsulation, ..Options::default() };
            let mut here = Bench::with(net, &options());
            let mut there = Bench::with(net.of_the_other(), &options());
            there.open(1000);
            here.redirect(1000);
            let strays = [
                net.client_segment(1000, ACK, b"by another way"),
                net.icmp_error(&net.host_segment(1000, ACK, &[7; 1000])),
            ];
            for stray in strays {
                here.uplink_brings(&stray);
                let sent = here.uplink_gets().unwrap();
                assert_ne!(sent, stray, "{encapsulation:?}");
                let packet = Packet::from_ethernet(&sent).unwrap().unwrap();
                assert_eq!(packet.network.destination(), net.other);
                there.uplink_brings(&sent);
                assert_eq!(there.host_gets().unwrap()[12..], stray[12..], "{encapsulation:?}");
            }
            assert_eq!(there.count(Counter::TunnelReceived), 2);
            assert_eq!(local_state(&there, 1000), Some(State::Established));

            here.redirect(2000);
            here.uplink_brings(&net.client_segment(2000, ACK, b"whose?"));
            there.uplink_brings(&here.uplink_gets().unwrap());
            assert!(there.host_gets().is_some());
            assert_eq!((there.asks(), there.uplink_gets()), (None, None), "never tunnelled again");
            // A rewritten one has no sender: all are told.
            let sender = (encapsulation != Encapsulation::Rewrite).then_some(net.me);
            let told = Announcement::NotMine { flow: net.flow(2000), sender };
            assert_eq!(there.announces(), Some(told));
        });
    }
}

/// A NIC's switch may give a function its own broadcasts and multicasts back; another station's are the
/// host's to see.
#[test]
fn what_the_host_sent_to_all_does_not_come_back_to_it() {
    let mut bench = Bench::new(nets()[0]);
    let neighbour = [2, 0, 0, 0, 0, 9];
    let rows = [
        (HOST_MAC, [0xff; 6], false),
        (HOST_MAC, [0x33, 0x33, 0, 0, 0, 1], false),
        (neighbour, [0xff; 6], true),
        (neighbour, HOST_MAC, true),
        (HOST_MAC, neighbour, true),
    ];
    for (from, to, passes) in rows {
        let mut frame = [to, from].concat();
        frame.extend_from_slice(&[0x08, 0x06]);
        frame.resize(60, 0);
        bench.uplink_brings(&frame);
        assert_eq!(bench.host_gets(), passes.then_some(frame), "{from:x?} to {to:x?}");
    }
    assert_eq!(bench.count(Counter::HostReflected), 2);
    assert_eq!(bench.count(Counter::Passed), 3);
    // Cut off within the addresses: as before.
    bench.uplink_brings(&[0xff; 8]);
    assert_eq!(bench.host_gets(), Some(vec![0xff; 8]));
    bench.check_books();
}

/// Without the form of its configuration a server leaves the host's own traffic alone.
#[test]
fn r6_other_forms_of_tunnel_are_the_hosts_own() {
    both(|net| {
        for encapsulation in [Encapsulation::Ipip, Encapsulation::Rewrite] {
            let options = Options { encapsulation, ..Options::default() };
            let mut here = Bench::with(net, &options);
            here.redirect(1000);
            here.uplink_brings(&net.client_segment(1000, ACK, b"stray"));
            let sent = here.uplink_gets().unwrap();
            let mut there = Bench::new(net.of_the_other());
            there.uplink_brings(&sent);
            assert_eq!(there.host_gets(), Some(sent));
            assert_eq!(there.count(Counter::Passed), 1);
        }
    });
}

#[test]
fn r6_strangers_and_nonsense_are_refused() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let segment = net.client_segment(1000, ACK, b"let me in");
        bench.uplink_brings(&net.tunnelled(&segment, net.stranger));
        assert_eq!(bench.count(Counter::TunnelStranger), 1);
        // Not a service's: the host's own answer, tunnelled.
        bench.uplink_brings(&net.tunnelled(&net.host_segment(1000, ACK, b""), net.other));
        assert_eq!(bench.count(Counter::TunnelNotService), 1);
        let mut broken = net.tunnelled(&segment, net.other);
        let gue = broken.len() - (segment.len() - 14) - 4;
        broken[gue] = 0x20; // a control message
        bench.uplink_brings(&broken);
        assert_eq!(bench.count(Counter::TunnelVersion), 1);
        assert_eq!(bench.host_gets(), None);
    });
}

/// Nobody would publish it.
#[test]
fn r2_nothing_begins_while_the_daemon_is_about_to_stop() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        bench.closing.store(true, std::sync::atomic::Ordering::Relaxed);
        bench.uplink_brings(&net.client_segment(2000, SYN, b""));
        assert_eq!((bench.host_gets(), bench.count(Counter::SynClosing)), (None, 1));
        let segment = net.client_segment(1000, ACK, b"goes on");
        bench.uplink_brings(&segment);
        assert_eq!(bench.host_gets(), Some(segment));
    });
}

#[test]
fn r6_what_we_do_not_hold_is_never_tunnelled_again_and_the_sender_is_told() {
    both(|net| {
        let mut bench = Bench::new(net);
        let segment = net.client_segment(1000, ACK, b"round and round");
        bench.uplink_brings(&net.tunnelled(&segment, net.other));
        assert_eq!(bench.host_gets(), Some(segment));
        assert_eq!(bench.uplink_gets(), None);
        assert_eq!(bench.asks(), None);
        let told = Announcement::NotMine { flow: net.flow(1000), sender: Some(net.other) };
        assert_eq!(bench.announces(), Some(told));
    });
}

/// The sender's redirect may be older than the session: the client has used its port again.
#[test]
fn r12_rsts_for_what_was_tunnelled_and_is_not_held_are_withheld_for_two_seconds() {
    both(|net| {
        let mut bench = Bench::new(net);
        let segment = net.tunnelled(&net.client_segment(1000, ACK, b"whose?"), net.other);
        let rst = net.host_segment(1000, RST, b"");
        bench.uplink_brings(&segment);
        bench.host_sends(&net.host_segment(2000, RST, b""));
        assert!(bench.uplink_gets().is_some(), "another flow's");
        bench.host_sends(&rst);
        assert_eq!((bench.uplink_gets(), bench.count(Counter::RstWithheld)), (None, 1));
        bench.pass_ms(200);
        bench.uplink_brings(&segment);
        bench.host_sends(&rst);
        assert_eq!(bench.uplink_gets(), None, "within two seconds");
        // The client has repeated it, and the sender has heard the same again and again.
        bench.pass_ms(1900);
        bench.uplink_brings(&segment);
        bench.host_sends(&rst);
        assert_eq!(bench.uplink_gets(), Some(rst));
        // The host does hold it, and says so.
        let segment = net.tunnelled(&net.client_segment(3000, ACK, b"whose?"), net.other);
        bench.uplink_brings(&segment);
        bench.host_sends(&net.host_segment(3000, ACK, b""));
        assert_eq!(local_state(&bench, 3000), Some(State::Established));
        // What arrived without a tunnel is answered as TCP says.
        let rst = net.host_segment(4000, RST, b"");
        bench.uplink_brings(&net.client_segment(4000, SYN, b""));
        bench.host_sends(&rst);
        assert!(std::iter::from_fn(|| bench.uplink_gets()).any(|sent| sent == rst));
    });
}

/// Nobody need hear all of it.
#[test]
fn r6_all_servers_are_told_of_a_bounded_number_of_rewritten_segments() {
    for net in nets() {
        let (mut here, mut there) = here_and_there(net, Encapsulation::Rewrite);
        here.redirect(2000);
        here.uplink_brings(&net.client_segment(2000, ACK, b""));
        let rewritten = here.uplink_gets().unwrap();
        let mut told = 0;
        for _ in 0..1200 {
            there.uplink_brings(&rewritten);
            told += u64::from(there.announces().is_some());
        }
        assert!((1000..1200).contains(&told), "{told}");
        assert_eq!(there.count(Counter::NotMineUnsent), 1200 - told);
    }
}

#[test]
fn r6_not_mine_drops_the_redirect_to_that_owner_only() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        bench.core_says(Answer::NotMine { flow: net.flow(1000), owner: net.stranger });
        bench.uplink_brings(&net.client_segment(1000, ACK, b"again"));
        assert!(bench.uplink_gets().is_some());
        bench.core_says(Answer::NotMine { flow: net.flow(1000), owner: net.other });
        bench.uplink_brings(&net.client_segment(1000, ACK, b"and again"));
        assert_eq!(bench.asks(), Some(net.flow(1000)));
    });
}

#[test]
fn r7_what_the_host_sends_proves_a_session() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.host_sends(&net.host_segment(1000, ACK, b"still here"));
        // The kernel acknowledges in TIME_WAIT as well: any session of the DHT counts for more.
        let published = Announcement::Publish { flow: net.flow(1000), version: Version::UNKNOWN };
        assert_eq!(bench.announces(), Some(published));
        assert_eq!(local_state(&bench, 1000), Some(State::Established));
        bench.host_sends(&net.host_segment(2000, RST, b""));
        assert_eq!(bench.announces(), None, "a RST proves the opposite");
        assert_eq!(bench.session(2000), None);
        assert!(bench.uplink_gets().is_some() && bench.uplink_gets().is_some());
    });
}

#[test]
fn r1_r12_a_redirect_is_a_later_session_than_what_the_host_has_left() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        let left_over = net.host_segment(1000, ACK, b"old");
        bench.host_sends(&left_over);
        assert_eq!(bench.uplink_gets(), Some(left_over));
        assert_eq!(bench.announces(), None, "nothing is learnt from it");
        assert_eq!(bench.count(Counter::HostSuperseded), 1);
        bench.host_sends(&net.host_segment(1000, SYN_ACK, b""));
        assert_eq!(bench.uplink_gets(), None, "the client got on with another server");
        assert_eq!(bench.count(Counter::HostWithheld), 1);
        let segment = net.client_segment(1000, ACK, b"new");
        bench.uplink_brings(&segment);
        assert_eq!(inside(&bench.uplink_gets().unwrap()).2, segment[14..]);
    });
}

#[test]
fn r12_a_syn_to_the_host_makes_its_session_the_later_one_again() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        bench.uplink_brings(&net.client_segment(1000, SYN, b""));
        let syn_ack = net.host_segment(1000, SYN_ACK, b"");
        bench.host_sends(&syn_ack);
        assert_eq!(bench.uplink_gets(), Some(syn_ack));
        assert!(matches!(bench.announces(), Some(Announcement::Publish { .. })));
    });
}

#[test]
fn r12_a_redirect_ends_with_the_clients_fin_or_rst() {
    both(|net| {
        for flags in [FIN_ACK, RST] {
            let mut bench = Bench::new(net);
            bench.redirect(1000);
            let last = net.client_segment(1000, flags, b"");
            bench.uplink_brings(&last);
            assert_eq!(
                inside(&bench.uplink_gets().unwrap()).2,
                last[14..],
                "it is tunnelled still"
            );
            assert_eq!(bench.session(1000), None);
            assert_eq!(bench.count(Counter::RedirectEnded), 1);
            bench.uplink_brings(&net.client_segment(1000, ACK, b"new"));
            assert_eq!(bench.asks(), Some(net.flow(1000)), "its port may be used again");
        }
    });
}

#[test]
fn r12_no_redirect_is_left_of_a_stray_that_ends_its_session() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.uplink_brings(&net.client_segment(1000, FIN_ACK, b""));
        bench.core_answers(net.flow(1000), owner(net.other));
        assert_eq!(inside(&bench.uplink_gets().unwrap()).1, net.other);
        assert_eq!(bench.session(1000), None);
    });
}

#[test]
fn r12_a_superseded_session_is_a_redirect_to_the_later_one() {
    both(|net| {
        let mut bench = Bench::new(net);
        let ours = bench.open(1000);
        let superseded = |version| Answer::Superseded {
            flow: net.flow(1000),
            version: Version(version),
            owner: net.other,
        };
        bench.core_says(superseded(ours.0 - 1));
        assert!(local_state(&bench, 1000).is_some(), "it is not later than ours");
        bench.core_says(superseded(ours.0));
        assert_eq!(bench.session(1000), Some(Session::Redirect { owner: net.other }));
        assert_eq!(bench.count(Counter::SessionSuperseded), 1);
        let segment = net.client_segment(1000, ACK, b"new");
        bench.uplink_brings(&segment);
        assert_eq!(inside(&bench.uplink_gets().unwrap()).2, segment[14..]);
    });
}

#[test]
fn r12_what_is_tunnelled_to_a_superseded_session_is_dropped_and_its_sender_told() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        bench.uplink_brings(&net.tunnelled(&net.client_segment(1000, ACK, b"new"), net.other));
        assert_eq!((bench.host_gets(), bench.uplink_gets()), (None, None));
        assert_eq!(bench.count(Counter::TunnelSuperseded), 1);
        assert!(matches!(bench.announces(), Some(Announcement::NotMine { .. })));
    });
}

#[test]
fn r12_a_closed_session_doubts_what_is_tunnelled_to_it_and_withholds_rsts_for_two_seconds() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        bench.uplink_brings(&net.client_segment(1000, FIN_ACK, b""));
        bench.host_sends(&net.host_segment(1000, FIN_ACK, b""));
        assert_eq!(local_state(&bench, 1000), Some(State::Closed));
        bench.host_gets_all();
        bench.uplink_gets_all();
        let next = net.client_segment(1000, ACK, b"next");
        bench.uplink_brings(&net.tunnelled(&next, net.other));
        assert_eq!(bench.host_gets(), Some(next), "it may be the last ACK");
        let told = Announcement::Doubtful { flow: net.flow(1000), sender: Some(net.other) };
        assert_eq!(bench.announces(), Some(told));
        let rst = net.host_segment(1000, RST, b"");
        bench.host_sends(&rst);
        assert_eq!(bench.uplink_gets(), None);
        assert_eq!(bench.count(Counter::RstWithheld), 1);
        bench.host_gets_all();
        bench.uplink_brings(&net.tunnelled(&net.client_segment(1000, ACK, b"more"), net.other));
        bench.host_sends(&rst);
        assert_eq!(bench.uplink_gets(), None, "it was on its way already");
        bench.pass_ms(2000);
        bench.uplink_brings(&net.tunnelled(&net.client_segment(1000, ACK, b"next"), net.other));
        bench.host_sends(&rst);
        assert_eq!(bench.uplink_gets(), Some(rst), "the client repeats it, and is told");
    });
}

/// The client got on with another server, and this one's redirect has ended since.
#[test]
fn r12_a_syn_ack_that_the_host_repeats_begins_no_later_session() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.uplink_brings(&net.client_segment(1000, SYN, b""));
        bench.pass_ms(1000);
        bench.host_sends(&net.host_segment(1000, SYN_ACK, b""));
        let published = Announcement::Publish { flow: net.flow(1000), version: Version::UNKNOWN };
        assert_eq!(bench.announces(), Some(published));
        bench.host_gets_all();
        bench.uplink_gets_all();
        // Nor one in the place of a session that got further.
        let version = bench.open(2000);
        bench.pass_ms(1000);
        bench.host_sends(&net.host_segment(2000, SYN_ACK, b""));
        assert_eq!(bench.announces(), None);
        let expected = Session::Local { state: State::Established, version, published: true };
        assert_eq!(bench.session(2000), Some(expected));
    });
}

/// A session whose end did not come by here looks alive: the host has no socket any more.
#[test]
fn r12_rsts_that_answer_segments_of_a_live_session_are_withheld_for_two_seconds() {
    both(|net| {
        let mut bench = Bench::new(net);
        let version = bench.open(1000);
        bench.uplink_gets_all();
        let rst = net.host_segment(1000, RST, b"");
        bench.uplink_brings(&net.client_segment(1000, ACK, b"of the next session?"));
        bench.host_sends(&rst);
        assert_eq!((bench.uplink_gets(), bench.count(Counter::RstWithheld)), (None, 1));
        // It is over in any case, and what comes next is looked up.
        let withdrawn = Announcement::Withdraw { flow: net.flow(1000), version };
        assert_eq!((bench.announces(), bench.session(1000)), (Some(withdrawn), None));
        bench.pass_ms(2000);
        bench.uplink_brings(&net.client_segment(1000, ACK, b"no, again"));
        bench.host_sends(&rst);
        assert_eq!(bench.uplink_gets(), Some(rst));
    });
}

#[test]
fn r12_a_session_reset_some_time_ago_doubts_as_well() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let reset = net.host_segment(1000, RST_ACK, b"");
        bench.host_sends(&reset);
        assert_eq!(bench.uplink_gets(), Some(reset), "the service's own");
        let rst = net.host_segment(1000, RST, b"");
        let segment = net.client_segment(1000, ACK, b"again");
        for (pause_ms, expected, why) in [
            (10_000, None, "it may be of the next session on the flow"),
            (300, None, "the client asks again"),
            (1800, Some(&rst), "and again, and nobody has told us otherwise"),
            (4000, Some(&rst), "the RST was lost"),
        ] {
            bench.pass_ms(pause_ms);
            bench.uplink_brings(&net.tunnelled(&segment, net.other));
            bench.host_sends(&rst);
            assert_eq!(bench.uplink_gets().as_ref(), expected, "{why}");
        }
    });
}

#[test]
fn r8_fin_both_ways_lingers_and_withdraws_with_its_version() {
    both(|net| {
        let mut bench = Bench::new(net);
        let version = bench.open(1000);
        bench.uplink_brings(&net.client_segment(1000, FIN_ACK, b""));
        assert_eq!(local_state(&bench, 1000), Some(State::ClientClosed));
        bench.pass_ms(20_000);
        assert_eq!(
            local_state(&bench, 1000),
            Some(State::ClientClosed),
            "half-closed is not closed"
        );
        bench.host_sends(&net.host_segment(1000, FIN_ACK, b""));
        assert_eq!(local_state(&bench, 1000), Some(State::Closed));
        bench.pass_ms(3000);
        bench.host_gets();
        let late = net.client_segment(1000, ACK, b"");
        bench.uplink_brings(&late);
        assert_eq!(bench.host_gets(), Some(late), "late segments find the host");
        assert_eq!(bench.announces(), None);
        bench.pass_ms(7000);
        assert_eq!(
            bench.announces(),
            Some(Announcement::Withdraw { flow: net.flow(1000), version })
        );
        assert_eq!(bench.session(1000), None);
    });
}

#[test]
fn r8_rst_ends_a_session_unless_the_host_goes_on() {
    both(|net| {
        let mut bench = Bench::new(net);
        let version = bench.open(1000);
        bench.uplink_brings(&net.client_segment(1000, RST, b""));
        assert_eq!(local_state(&bench, 1000), Some(State::Reset));
        bench.host_sends(&net.host_segment(1000, ACK, b"that RST was forged"));
        assert_eq!(local_state(&bench, 1000), Some(State::Established));
        bench.host_sends(&net.host_segment(1000, RST, b""));
        bench.pass_ms(7000);
        assert_eq!(
            bench.announces(),
            Some(Announcement::Withdraw { flow: net.flow(1000), version })
        );
    });
}

#[test]
fn r8_a_full_ring_loses_no_publication_and_no_withdrawal() {
    both(|net| {
        let mut bench = Bench::with(net, &Options { announcements: 1, ..Options::default() });
        bench.host_sends(&net.host_segment(1, ACK, b""));
        bench.host_sends(&net.host_segment(2, ACK, b""));
        assert_eq!(bench.count(Counter::PublishDeferred), 1);
        let published = |bench: &mut Bench| match bench.announces() {
            Some(Announcement::Publish { flow, version }) => (flow, version),
            other => panic!("{other:?}"),
        };
        let first = published(&mut bench);
        bench.pass_ms(2000);
        let second = published(&mut bench);
        assert_eq!((first.0, second.0), (net.flow(1), net.flow(2)));

        for port in [1, 2] {
            bench.host_sends(&net.host_segment(port, RST, b""));
        }
        bench.pass_ms(7000);
        assert!(bench.count(Counter::WithdrawDeferred) > 0);
        let mut withdrawn = Vec::new();
        for _ in 0..2 {
            match bench.announces() {
                Some(Announcement::Withdraw { flow, version }) => withdrawn.push((flow, version)),
                other => panic!("{other:?}"),
            }
            bench.pass_ms(2000);
        }
        withdrawn.sort();
        let mut expected = vec![first, second];
        expected.sort();
        assert_eq!(withdrawn, expected);
    });
}

#[test]
fn r12_reuse_of_a_5_tuple_gets_a_greater_version() {
    both(|net| {
        let mut bench = Bench::new(net);
        let first = bench.open(1000);
        // The client has crashed and comes back with the same port.
        bench.uplink_brings(&net.client_segment(1000, SYN, b""));
        bench.host_gets();
        bench.host_sends(&net.host_segment(1000, SYN_ACK, b""));
        let Some(Announcement::Publish { version: second, .. }) = bench.announces() else {
            panic!()
        };
        assert!(second > first);
        assert_eq!(local_state(&bench, 1000), Some(State::HalfOpen));
        bench.pass_ms(2000);
        assert_eq!(bench.announces(), None, "nothing withdraws the new session");
    });
}

#[test]
fn r13_redirects_to_a_dead_owner_are_dropped_and_no_others() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        bench.open(2000);
        bench.core_says(Answer::OwnerDead { owner: net.stranger });
        bench.pass_ms(200);
        assert_eq!(bench.count(Counter::RedirectOrphaned), 0);
        bench.core_says(Answer::OwnerDead { owner: net.other });
        bench.pass_ms(200);
        assert_eq!(bench.session(1000), None);
        assert_eq!(local_state(&bench, 2000), Some(State::Established));

        let stray = net.client_segment(1000, ACK, b"anybody?");
        bench.uplink_brings(&stray);
        assert_eq!(bench.asks(), Some(net.flow(1000)), "no more into the void");
        bench.core_answers(net.flow(1000), Resolution::NotFound);
        bench.pass_ms(100);
        bench.asks();
        bench.core_answers(net.flow(1000), Resolution::NotFound);
        assert_eq!(bench.host_gets(), Some(stray), "so that the client fails fast");
    });
}

#[test]
fn all_else_passes_untouched_both_ways() {
    let arp = {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06]);
        frame.resize(60, 7);
        frame
    };
    both(|net| {
        let mut other_port = net.client_segment(1000, ACK, b"ssh");
        let offset = if net.client.is_ipv4() { 14 + 20 } else { 14 + 40 };
        other_port[offset + 2..offset + 4].copy_from_slice(&22u16.to_be_bytes());
        let mut broken = net.client_segment(1000, ACK, b"broken");
        broken.truncate(40);
        let mut icmp = net.client_segment(1000, ACK, b"ping");
        icmp[if net.client.is_ipv4() { 14 + 9 } else { 14 + 6 }] =
            if net.client.is_ipv4() { 1 } else { 58 };
        let bgp = net.host_segment(179, ACK, b"keepalive");
        for frame in [&arp, &other_port, &broken, &icmp, &vec![0; 5]] {
            let mut bench = Bench::new(net);
            bench.uplink_brings(frame);
            assert_eq!(bench.host_gets().as_ref(), Some(frame));
            bench.host_sends(frame);
            assert_eq!(bench.uplink_gets().as_ref(), Some(frame));
            assert_eq!((bench.asks(), bench.announces()), (None, None));
        }
        let mut bench = Bench::new(net);
        bench.host_sends(&bgp);
        assert_eq!(bench.uplink_gets(), Some(bgp));
    });
}

#[test]
fn a_full_table_still_carries_traffic() {
    both(|net| {
        let mut bench = Bench::with(net, &Options { capacity: 1, ..Options::default() });
        bench.open(1);
        bench.host_sends(&net.host_segment(2, SYN_ACK, b""));
        assert_eq!(bench.count(Counter::TableFull), 1);
        bench.uplink_gets().expect("the SYN-ACK goes out all the same");
        bench.uplink_brings(&net.client_segment(3, ACK, b""));
        bench.asks();
        bench.core_answers(net.flow(3), owner(net.other));
        assert_eq!(
            inside(&bench.uplink_gets().unwrap()).1,
            net.other,
            "tunnelled without a redirect"
        );
    });
}

#[test]
fn frames_wait_for_a_full_port_and_are_counted_when_too_many_do() {
    let net = nets()[0];
    let mut bench = Bench::new(net);
    bench.open(1000);
    bench.host.0.borrow_mut().room = Some(0);
    for _ in 0..4 {
        for _ in 0..32 {
            let frame = net.client_segment(1000, ACK, b"x");
            bench
                .uplink
                .0
                .borrow_mut()
                .to_worker
                .push_back(holdfast_dataplane::frame::MemFrame::new(&frame));
        }
        bench.turn();
    }
    assert_eq!(bench.count(Counter::HostUnsent), 0);
    bench.uplink_brings(&net.client_segment(1000, ACK, b"one too many"));
    assert_eq!(bench.count(Counter::HostUnsent), 1);
    bench.host.0.borrow_mut().room = None;
    bench.turn();
    assert_eq!(bench.host.0.borrow().from_worker.len(), 128);
}

#[test]
fn r9_an_icmp_error_goes_where_the_session_is() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1);
        let mine = net.icmp_error(&net.host_segment(1, ACK, &[7; 1000]));
        bench.uplink_brings(&mine);
        assert_eq!(bench.host_gets(), Some(mine));

        bench.redirect(2);
        let theirs = net.icmp_error(&net.host_segment(2, ACK, &[7; 1000]));
        bench.uplink_brings(&theirs);
        assert_eq!(
            inside(&bench.uplink_gets().unwrap()),
            (net.me, net.other, theirs[14..].to_vec())
        );

        let strays = net.icmp_error(&net.host_segment(3, ACK, &[7; 1000]));
        bench.uplink_brings(&strays);
        assert_eq!(bench.asks(), Some(net.flow(3)), "looked up like a segment of the flow");
        bench.core_answers(net.flow(3), owner(net.other));
        assert_eq!(inside(&bench.uplink_gets().unwrap()).2, strays[14..]);

        let tunnelled = net.icmp_error(&net.host_segment(1, ACK, &[8; 1000]));
        bench.uplink_brings(&net.tunnelled(&tunnelled, net.other));
        assert_eq!(bench.host_gets(), Some(tunnelled));
        assert_eq!(local_state(&bench, 1), Some(State::Established));
        assert_eq!(bench.count(Counter::IcmpError), 3);
    });
}

#[test]
fn r9_an_icmp_error_completes_no_handshake_and_other_icmp_passes() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.host_sends(&net.host_segment(1, SYN_ACK, b""));
        bench.uplink_brings(&net.icmp_error(&net.host_segment(1, SYN_ACK, &[7; 100])));
        assert_eq!(local_state(&bench, 1), Some(State::HalfOpen));
        bench.host_gets();
        // About a segment of no service: the client's own.
        let other = net.icmp_error(&net.client_segment(9, ACK, &[7; 100]));
        bench.uplink_brings(&other);
        assert_eq!(bench.host_gets(), Some(other));
        assert_eq!(bench.asks(), None);
    });
}

/// The orders of three fragments.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// Two servers of one cluster; flow 1000 is the second one's, and the first one knows that.
fn here_and_there(net: Net, encapsulation: Encapsulation) -> (Bench, Bench) {
    let options = || Options { encapsulation, ..Options::default() };
    let mut here = Bench::with(net, &options());
    let mut there = Bench::with(net.of_the_other(), &options());
    there.open(1000);
    here.redirect(1000);
    (here, there)
}

/// What the network gets of one server, and the other's host then.
fn carry(here: &mut Bench, there: &mut Bench) -> Vec<Vec<u8>> {
    for frame in here.uplink_gets_all() {
        let packet = Packet::from_ethernet(&frame).unwrap().unwrap();
        assert_eq!(packet.network.destination(), here.net.other);
        assert!(packet.end - packet.network_offset <= 1500, "it fits the uplink");
        there.uplink_brings(&frame);
    }
    assert_eq!((there.uplink_gets(), there.asks()), (None, None), "never tunnelled again");
    there.host_gets_all()
}

#[test]
fn r10_fragments_of_a_local_session_reach_the_host_in_any_order() {
    both(|net| {
        for order in ORDERS {
            let mut bench = Bench::new(net);
            bench.open(1000);
            let fragments = cut(&net.client_segment(1000, FIN_ACK, &[7; 100]), 9, &[40, 80]);
            for index in order {
                bench.uplink_brings(&fragments[index]);
                let first_came = bench.count(Counter::LocalHit) > 1;
                assert_eq!(bench.host.0.borrow().from_worker.is_empty(), !first_came);
            }
            let mut got = bench.host_gets_all();
            assert_eq!(got.len(), 3);
            got.sort_by_key(|frame| fragments.iter().position(|fragment| fragment == frame));
            assert_eq!(got, fragments, "untouched");
            assert_eq!(local_state(&bench, 1000), Some(State::ClientClosed), "the first has flags");
            assert_eq!(bench.count(Counter::FragmentToHost), 2);
            let waited = order.iter().position(|index| *index == 0).unwrap();
            assert_eq!(bench.count(Counter::FragmentWaited), waited as u64);
            bench.check_books();
        }
    });
}

#[test]
fn r10_fragments_of_a_moved_session_reach_the_owners_host_in_any_order() {
    for encapsulation in ENCAPSULATIONS {
        both(|net| {
            for order in ORDERS {
                let (mut here, mut there) = here_and_there(net, encapsulation);
                let segment = net.client_segment(1000, ACK, &[7; 100]);
                let fragments = cut(&segment, 9, &[40, 80]);
                for index in order {
                    here.uplink_brings(&fragments[index]);
                }
                assert_eq!((here.host_gets(), here.asks()), (None, None));
                let got = carry(&mut here, &mut there);
                assert_eq!(got.len(), 3, "{encapsulation:?} {order:?}");
                let whole = reassembled(&got, net.client, net.service);
                assert_eq!(whole.as_deref(), Some(payload(&segment)));
                assert_eq!(here.count(Counter::FragmentToTunnel), 2);
                assert_eq!(there.count(Counter::TunnelReceived), 3);
                assert_eq!(there.announces(), None, "it holds the session");
                here.check_books();
                there.check_books();
            }
        });
    }
}

/// The way from server to server has an order of its own.
#[test]
fn r10_rewritten_fragments_are_turned_back_in_any_order() {
    both(|net| {
        for order in ORDERS {
            let (mut here, mut there) = here_and_there(net, Encapsulation::Rewrite);
            let segment = net.client_segment(1000, ACK, &[7; 100]);
            for fragment in cut(&segment, 9, &[40, 80]) {
                here.uplink_brings(&fragment);
            }
            let sent = here.uplink_gets_all();
            let rewritten = reassembled(&sent, net.client, net.other).unwrap();
            let tcp = etherparse::TcpSlice::from_slice(&rewritten).unwrap();
            let sum = match (net.client, net.other) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    tcp.calc_checksum_ipv4(from.octets(), to.octets())
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    tcp.calc_checksum_ipv6(from.octets(), to.octets())
                }
                _ => panic!("one family"),
            };
            assert_eq!(sum.unwrap(), tcp.checksum(), "sound on its way");
            for index in order {
                there.uplink_brings(&sent[index]);
            }
            let got = there.host_gets_all();
            let whole = reassembled(&got, net.client, net.service);
            assert_eq!(whole.as_deref(), Some(payload(&segment)));
            assert_eq!(local_state(&there, 1000), Some(State::Established));
            there.check_books();
        }
    });
}

#[test]
fn r10_the_owner_tells_of_the_first_fragment_that_it_does_not_hold_the_session() {
    both(|net| {
        let (mut here, mut there) = here_and_there(net, Encapsulation::Gue);
        here.redirect(2000);
        for fragment in cut(&net.client_segment(2000, ACK, &[7; 100]), 9, &[40, 80]) {
            here.uplink_brings(&fragment);
        }
        assert_eq!(carry(&mut here, &mut there).len(), 3, "the host answers");
        let told = Announcement::NotMine { flow: net.flow(2000), sender: Some(net.me) };
        assert_eq!((there.announces(), there.announces()), (Some(told), None));
    });
}

#[test]
fn r10_r6_fragments_are_taken_out_of_members_tunnels_only_and_only_to_a_service() {
    both(|net| {
        let mut bench = Bench::new(net);
        let later = piece(&net.client_segment(1000, ACK, &[7; 100]), 9, 40, 120);
        bench.uplink_brings(&net.tunnelled(&later, net.stranger));
        assert_eq!(bench.count(Counter::TunnelStranger), 1);
        let other = piece(&net.host_segment(1000, ACK, &[7; 100]), 9, 40, 120);
        bench.uplink_brings(&net.tunnelled(&other, net.other));
        assert_eq!(bench.count(Counter::TunnelNotService), 1);
        let tiny = piece(&net.client_segment(1000, ACK, &[7; 100]), 9, 0, 16);
        bench.uplink_brings(&net.tunnelled(&tiny, net.other));
        assert_eq!(bench.count(Counter::TunnelNotService), 2);
        assert_eq!(bench.host_gets(), None);
        bench.uplink_brings(&net.tunnelled(&later, net.other));
        assert_eq!(bench.host_gets(), Some(later));
    });
}

#[test]
fn r10_r2_fragments_of_a_syn_go_to_the_host() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        let fragments = cut(&net.client_segment(1000, SYN, &[7; 100]), 9, &[40, 80]);
        for index in [2, 0, 1] {
            bench.uplink_brings(&fragments[index]);
        }
        assert_eq!(bench.host_gets_all().len(), 3);
        assert_eq!(bench.session(1000), None, "the redirect is superseded");
        assert_eq!((bench.uplink_gets(), bench.asks()), (None, None));
    });
}

#[test]
fn r10_r5_fragments_of_a_stray_wait_for_its_lookup() {
    both(|net| {
        let segment = net.client_segment(1000, ACK, &[7; 100]);
        let fragments = cut(&segment, 9, &[40, 80]);
        let before_the_answer = || {
            let mut bench = Bench::new(net);
            bench.uplink_brings(&fragments[1]);
            assert_eq!(bench.asks(), None, "it has no ports");
            bench.uplink_brings(&fragments[0]);
            assert_eq!(bench.asks(), Some(net.flow(1000)));
            bench
        };

        let mut bench = before_the_answer();
        bench.core_answers(net.flow(1000), owner(net.other));
        bench.uplink_brings(&fragments[2]);
        assert_eq!(bench.asks(), None);
        let sent = bench.uplink_gets_all();
        let inner = sent.iter().map(|frame| [&segment[..14], &inside(frame).2].concat());
        let whole = reassembled(&inner.collect::<Vec<_>>(), net.client, net.service);
        assert_eq!(whole.as_deref(), Some(payload(&segment)));
        assert_eq!(bench.count(Counter::ReleasedTunnel), 2);
        bench.check_books();

        let mut bench = before_the_answer();
        bench.core_answers(net.flow(1000), Resolution::NotFound);
        bench.pass_ms(100);
        bench.core_answers(net.flow(1000), Resolution::NotFound);
        bench.uplink_brings(&fragments[2]);
        let whole = reassembled(&bench.host_gets_all(), net.client, net.service);
        assert_eq!(whole.as_deref(), Some(payload(&segment)), "so that the host can answer");
        bench.check_books();

        let mut bench = before_the_answer();
        bench.core_answers(net.flow(1000), Resolution::TimedOut);
        bench.uplink_brings(&fragments[2]);
        assert_eq!(bench.count(Counter::DroppedTimedOut), 2);
        assert_eq!(bench.count(Counter::FragmentDropped), 1);
        assert_eq!((bench.host_gets(), bench.uplink_gets()), (None, None));
        bench.check_books();

        let mut bench = before_the_answer();
        bench.pass_ms(999);
        bench.uplink_brings(&fragments[2]);
        bench.pass_ms(2);
        assert_eq!(bench.count(Counter::ParkExpired), 3);
        bench.check_books();
    });
}

#[test]
fn r10_fragments_of_a_refused_stray_are_dropped_with_it() {
    both(|net| {
        let mut bench = Bench::with(net, &Options { resolves: 1, ..Options::default() });
        bench.uplink_brings(&net.client_segment(1, ACK, b"fills the ring"));
        for fragment in cut(&net.client_segment(1000, ACK, &[7; 100]), 9, &[40, 80]) {
            bench.uplink_brings(&fragment);
        }
        assert_eq!(bench.count(Counter::LookupRingFull), 1);
        assert_eq!(bench.count(Counter::FragmentDropped), 2);
        assert_eq!((bench.host_gets(), bench.uplink_gets()), (None, None));
    });
}

#[test]
fn r10_without_the_first_fragment_the_others_wait_for_a_second_and_no_longer() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let fragments = cut(&net.client_segment(1000, ACK, &[7; 100]), 9, &[40, 80]);
        bench.uplink_brings(&fragments[1]);
        bench.uplink_brings(&fragments[2]);
        bench.pass_ms(999);
        assert_eq!(bench.count(Counter::FragmentExpired), 0);
        bench.pass_ms(2);
        assert_eq!(bench.count(Counter::FragmentExpired), 2);
        bench.check_books();
        bench.uplink_brings(&fragments[0]);
        assert_eq!(bench.host_gets_all(), [fragments[0].clone()], "the host never sees the others");
        bench.pass_ms(1001);
        bench.uplink_brings(&fragments[1]);
        assert_eq!(bench.host_gets(), None, "what became of the first is forgotten as well");
    });
}

#[test]
fn r10_duplicates_and_overlaps_follow_like_all_others() {
    for encapsulation in ENCAPSULATIONS {
        both(|net| {
            let (mut here, mut there) = here_and_there(net, encapsulation);
            let segment = net.client_segment(1000, ACK, &[7; 100]);
            let [first, middle, last] = &cut(&segment, 9, &[40, 80])[..] else { panic!() };
            let overlap = piece(&segment, 9, 16, 96);
            for fragment in [last, last, &overlap, first, middle, first, &overlap, last] {
                here.uplink_brings(fragment);
            }
            let got = carry(&mut here, &mut there);
            assert_eq!(got.len(), 8, "the kernel judges");
            let whole = reassembled(&got, net.client, net.service);
            assert_eq!(whole.as_deref(), Some(payload(&segment)));
            here.check_books();
            there.check_books();
        });
    }
}

#[test]
fn r10_a_first_fragment_without_the_whole_tcp_header_is_dropped() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let segment = net.client_segment(1000, ACK, &[7; 100]);
        for end in [8, 16] {
            bench.uplink_brings(&piece(&segment, 9, 0, end));
        }
        assert_eq!(bench.count(Counter::FragmentTiny), 2);
        bench.uplink_brings(&piece(&segment, 9, 16, 120));
        assert_eq!((bench.host_gets(), bench.uplink_gets()), (None, None));
        assert_eq!(bench.count(Counter::FragmentWaited), 1);
    });
}

#[test]
fn r10_a_flood_of_fragments_is_bounded() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let segment = net.client_segment(1000, ACK, &[7; 100]);
        // Without a first fragment they take all that waits in all, and no more places.
        for id in 0..1000 {
            bench.uplink_brings(&piece(&segment, id, 40, 120));
        }
        assert_eq!(bench.count(Counter::FragmentWaited), 256);
        assert_eq!(bench.count(Counter::FragmentFull), 744);
        for fragment in cut(&segment, 5000, &[40, 80]) {
            bench.uplink_brings(&fragment);
        }
        assert_eq!(bench.host_gets_all().len(), 3, "in order they need no place to wait");

        // With one they fill the table; what is not remembered cannot be followed.
        for id in 6000..11_000 {
            bench.uplink_brings(&piece(&segment, id, 0, 40));
        }
        assert_eq!(bench.host_gets_all().len(), 5000);
        bench.uplink_brings(&piece(&segment, 10_999, 40, 120));
        assert_eq!(bench.count(Counter::FragmentFull), 745);
        assert_eq!(bench.host_gets(), None);

        bench.pass_ms(1010);
        assert_eq!(bench.count(Counter::FragmentExpired), 256);
        bench.check_books();
        for index in [2, 1, 0] {
            bench.uplink_brings(&cut(&segment, 12_000, &[40, 80])[index]);
        }
        assert_eq!(bench.host_gets_all().len(), 3, "and all is well again");
    });
}

#[test]
fn r10_many_fragments_of_one_datagram_are_bounded() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let segment = net.client_segment(1000, ACK, &[7; 100]);
        for _ in 0..20 {
            bench.uplink_brings(&piece(&segment, 9, 40, 120));
        }
        assert_eq!(bench.count(Counter::FragmentWaited), 8);
        assert_eq!(bench.count(Counter::FragmentFull), 12);
        bench.uplink_brings(&piece(&segment, 9, 0, 40));
        assert_eq!(bench.host_gets_all().len(), 9);
        bench.check_books();
    });
}

#[test]
fn r10_an_identification_that_comes_again_follows_its_new_first_fragment() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        bench.redirect(2000);
        for (port, to_host) in [(1000, true), (2000, false), (1000, true)] {
            for fragment in cut(&net.client_segment(port, ACK, &[7; 100]), 9, &[40, 80]) {
                bench.uplink_brings(&fragment);
            }
            let counts = (bench.host_gets_all().len(), bench.uplink_gets_all().len());
            assert_eq!(counts, if to_host { (3, 0) } else { (0, 3) });
        }
    });
}

#[test]
fn r10_fragments_of_other_traffic_pass() {
    for encapsulation in ENCAPSULATIONS {
        both(|net| {
            let mut bench = Bench::with(net, &Options { encapsulation, ..Options::default() });
            let mut ssh = net.client_segment(1000, ACK, &[7; 100]);
            let transport = ssh.len() - payload(&ssh).len();
            ssh[transport + 2..transport + 4].copy_from_slice(&22u16.to_be_bytes());
            let mut udp = ssh.clone();
            udp[if net.client.is_ipv4() { 23 } else { 20 }] = 17;
            let mut to_us = ssh.clone();
            let locator = match net.me {
                IpAddr::V4(me) => me.octets().to_vec(),
                IpAddr::V6(me) => me.octets().to_vec(),
            };
            to_us[transport - locator.len()..transport].copy_from_slice(&locator);
            for (index, packet) in [&ssh, &udp, &to_us].into_iter().enumerate() {
                for order in ORDERS {
                    let fragments = cut(packet, 9, &[40, 80]);
                    for index in order {
                        bench.uplink_brings(&fragments[index]);
                    }
                    let mut got = bench.host_gets_all();
                    got.sort_by_key(|frame| fragments.iter().position(|f| f == frame));
                    assert_eq!(got, fragments, "{index} {encapsulation:?}");
                    bench.pass_ms(1010);
                }
            }
            assert_eq!(bench.count(Counter::FragmentPassed), 36);
            assert_eq!(bench.count(Counter::Passed), 18);

            // The host's own traffic is never dropped for want of a first fragment.
            for id in 0..300 {
                bench.uplink_brings(&piece(&to_us, id, 40, 120));
            }
            bench.pass_ms(1010);
            assert_eq!(bench.host_gets_all().len(), 300);
            assert_eq!((bench.asks(), bench.announces()), (None, None));
            bench.check_books();
        });
    }
}

/// Over IPv6 only the first fragment tells what is behind the options in front of it.
#[test]
fn r10_fragments_with_options_follow_what_the_first_carries() {
    let net = nets()[1];
    for (protocol, is_ours) in [(6, true), (17, false)] {
        for order in ORDERS {
            let mut bench = Bench::new(net);
            bench.redirect(1000);
            let mut packet = net.client_segment(1000, ACK, &[7; 100]);
            let length = packet.len() as u16 - 54 + 8;
            packet[18..20].copy_from_slice(&length.to_be_bytes());
            packet[20] = 60;
            packet.splice(54..54, [protocol, 0, 1, 4, 0, 0, 0, 0]);
            let fragments = cut(&packet, 9, &[40, 80]);
            for index in order {
                bench.uplink_brings(&fragments[index]);
            }
            let counts = (bench.host_gets_all().len(), bench.uplink_gets_all().len());
            assert_eq!(counts, if is_ours { (0, 3) } else { (3, 0) });
            bench.check_books();
        }
    }
}

#[test]
fn r10_what_the_host_sends_in_fragments_goes_out_as_it_is() {
    both(|net| {
        let mut bench = Bench::new(net);
        let fragments = cut(&net.host_segment(1000, ACK, &[7; 100]), 9, &[40, 80]);
        for fragment in fragments.iter().rev() {
            bench.host_sends(fragment);
            assert_eq!(bench.uplink_gets().as_ref(), Some(fragment));
        }
        assert_eq!(bench.announces(), None);
    });
}

#[test]
fn r10_an_atomic_fragment_is_the_segment_it_is() {
    let net = nets()[1];
    for encapsulation in ENCAPSULATIONS {
        let (mut here, mut there) = here_and_there(net, encapsulation);
        let segment = net.client_segment(1000, ACK, &[7; 100]);
        let atomic = piece(&segment, 9, 0, 120);
        here.uplink_brings(&atomic);
        let got = carry(&mut here, &mut there);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0][12..], atomic[12..], "{encapsulation:?}");
        assert_eq!(here.count(Counter::RedirectHit), 1);
        there.uplink_brings(&atomic);
        assert_eq!(there.host_gets(), Some(atomic));
        assert_eq!(there.count(Counter::LocalHit), 2);
    }
}

#[test]
fn r11_a_stray_without_dont_fragment_is_fragmented_and_reaches_the_owners_host() {
    let net = nets()[0];
    for encapsulation in ENCAPSULATIONS {
        // By lookup and by redirect; a frame longer than the uplink's MTU if nothing is added.
        for (length, port) in [(1450, 1000), (1450, 3000), (2600, 1000), (2960, 3000)] {
            let (mut here, mut there) = here_and_there(net, encapsulation);
            let length = length + if encapsulation == Encapsulation::Rewrite { 100 } else { 0 };
            let whole = net.client_segment(port, ACK, &vec![7; length]);
            here.uplink_brings(&with_flags(&whole, 0));
            if port == 3000 {
                assert_eq!(here.asks(), Some(net.flow(3000)));
                here.core_answers(net.flow(3000), owner(net.other));
            }
            let made = here.count(Counter::TooBigFragments);
            let got = carry(&mut here, &mut there);
            assert_eq!(got.len() as u64, 1 + made);
            assert!(made > 0);
            let again = reassembled(&got, net.client, net.service);
            assert_eq!(again.as_deref(), Some(payload(&whole)), "{encapsulation:?} {length}");
            let identification = |frame: &[u8]| [frame[18], frame[19]];
            assert!(got.iter().all(|frame| identification(frame) == identification(&whole)));
            assert_eq!(here.count(Counter::TooBigAnswered), 0);
            here.check_books();
            there.check_books();
        }
    }
}

#[test]
fn r11_a_fragment_too_big_for_the_tunnel_is_fragmented_further() {
    let net = nets()[0];
    for encapsulation in ENCAPSULATIONS {
        for order in [[0, 1, 2], [2, 1, 0]] {
            let (mut here, mut there) = here_and_there(net, encapsulation);
            let segment = net.client_segment(1000, ACK, &[7; 4000]);
            let size = if encapsulation == Encapsulation::Rewrite { 1600 } else { 1480 };
            let fragments = cut(&segment, 9, &[size, 2 * size]);
            for index in order {
                here.uplink_brings(&fragments[index]);
            }
            let got = carry(&mut here, &mut there);
            assert_eq!(got.len(), 5, "two of them are split");
            let again = reassembled(&got, net.client, net.service);
            assert_eq!(again.as_deref(), Some(payload(&segment)), "{encapsulation:?}");
            assert_eq!(here.count(Counter::TooBigFragments), 2);
            here.check_books();
            there.check_books();
        }
    }
}

#[test]
fn r11_of_fragments_that_may_not_be_fragmented_only_the_first_is_answered() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        let mut fragments = cut(&net.client_segment(1000, ACK, &[7; 4000]), 9, &[1440, 2880]);
        if net.client.is_ipv4() {
            fragments = cut(&net.client_segment(1000, ACK, &[7; 4000]), 9, &[1480, 2960]);
            fragments[0] = with_flags(&fragments[0], 0x6000);
            fragments[1] = with_flags(&fragments[1], 0x6000 | 185);
        }
        bench.uplink_brings(&fragments[0]);
        bench.uplink_brings(&fragments[1]);
        let answers = bench.uplink_gets_all();
        assert_eq!(answers.len(), 1);
        let packet = Packet::from_ethernet(&answers[0]).unwrap().unwrap();
        assert!(matches!(packet.transport, Transport::Other(1 | 58)));
        assert_eq!(packet.network.destination(), net.client);
        assert_eq!(bench.count(Counter::TooBigAnswered), 1);
        assert_eq!(bench.count(Counter::TunnelTooBig), 1);
    });
}

#[test]
fn r11_an_icmp_error_too_big_for_the_tunnel_is_not_answered() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        let mut error = net.icmp_error(&net.host_segment(1000, ACK, &[7; 1480]));
        // Longer than any router makes it, so that it does not fit.
        error.resize(14 + 1500, 0);
        let length = 14 + if net.client.is_ipv4() { 2 } else { 4 };
        let bytes = if net.client.is_ipv4() { 1500u16 } else { 1460 };
        error[length..length + 2].copy_from_slice(&bytes.to_be_bytes());
        bench.uplink_brings(&error);
        assert_eq!(bench.count(Counter::IcmpError), 1);
        assert_eq!(bench.count(Counter::TunnelTooBig), 1);
        assert_eq!((bench.host_gets(), bench.uplink_gets()), (None, None));
    });
}

#[test]
fn r11_without_a_frame_for_the_rest_the_stray_is_dropped() {
    let net = nets()[0];
    let mut bench = Bench::new(net);
    bench.redirect(1000);
    // The rest is longer than a new frame holds.
    let stray = with_flags(&net.client_segment(1000, ACK, &[7; 3600]), 0);
    bench.uplink_brings(&stray);
    assert_eq!(bench.count(Counter::TunnelNoFrame), 1);
    assert_eq!(bench.uplink_gets(), None);
    bench.check_books();
}

#[test]
fn r11_a_segment_too_big_for_the_tunnel_is_answered_with_the_mtu_that_fits() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        bench.uplink_brings(&net.client_segment(1000, ACK, &[0; 1440]));
        let answer = bench.uplink_gets().expect("an answer");
        let packet = Packet::from_ethernet(&answer).unwrap().unwrap();
        assert_eq!(
            (packet.network.source(), packet.network.destination()),
            (net.service, net.client)
        );
        let (protocol, mtu_at, mtu) =
            if net.client.is_ipv4() { (1, 6, 1468) } else { (58, 6, 1448) };
        assert_eq!(packet.transport, Transport::Other(protocol));
        let at = packet.transport_offset + mtu_at;
        assert_eq!(u16::from_be_bytes([answer[at], answer[at + 1]]), mtu);
        assert_eq!(bench.count(Counter::TooBigAnswered), 1);
        for _ in 0..300 {
            bench.uplink_brings(&net.client_segment(1000, ACK, &[0; 1440]));
        }
        assert!(bench.count(Counter::TunnelTooBig) > 0, "answers have a limit");
    });
}

#[test]
fn r11_the_mss_of_a_syn_ack_leaves_room_for_the_tunnel() {
    both(|net| {
        let mut bench = Bench::new(net);
        let syn_ack = |mss| {
            let mut frame = net.host_segment(1000, SYN_ACK, &[2, 4, (mss >> 8) as u8, mss as u8]);
            // The payload becomes an option, whose kind, length and value it is.
            let offset = if net.client.is_ipv4() { 14 + 20 } else { 14 + 40 };
            frame[offset + 12] = 6 << 4;
            frame
        };
        bench.host_sends(&syn_ack(1460u16));
        let sent = bench.uplink_gets().unwrap();
        let limit = if net.client.is_ipv4() { 1428 } else { 1388 };
        let mss = sent.len() - 2;
        assert_eq!(sent[mss..], syn_ack(limit)[mss..]);
        assert_eq!(bench.count(Counter::MssClamped), 1);
    });
}

/// A server whose host's segments do not come by.
fn inbound_only(net: Net) -> Bench {
    Bench::with(net, &Options { inbound_only: true, ..Options::default() })
}

/// The client's two segments of a handshake; the session's version.
fn open_inbound(bench: &mut Bench, port: u16) -> Version {
    let net = bench.net;
    for flags in [SYN, ACK] {
        let segment = net.client_segment(port, flags, b"");
        bench.uplink_brings(&segment);
        assert_eq!(bench.host_gets(), Some(segment));
    }
    match bench.announces() {
        Some(Announcement::Publish { flow, version }) if flow == net.flow(port) => version,
        other => panic!("{other:?}"),
    }
}

#[test]
fn r3_inbound_only_a_syn_opens_and_publishes_once() {
    both(|net| {
        let mut bench = inbound_only(net);
        let syn = net.client_segment(1000, SYN, b"");
        for _ in 0..2 {
            bench.uplink_brings(&syn);
            assert_eq!(bench.host_gets().as_ref(), Some(&syn));
            assert_eq!(local_state(&bench, 1000), Some(State::HalfOpen));
        }
        assert!(
            matches!(bench.announces(), Some(Announcement::Publish { flow, .. }) if flow == net.flow(1000)),
            "its ACK may reach another server"
        );
        bench.uplink_brings(&net.client_segment(1000, ACK, b""));
        assert_eq!(local_state(&bench, 1000), Some(State::Established));
        bench.pass_ms(2000);
        assert_eq!(bench.announces(), None);
        assert_eq!(bench.asks(), None);
        assert_eq!(bench.count(Counter::SessionOpened), 1, "a retransmission is no new session");
    });
}

#[test]
fn r3_inbound_only_a_handshake_that_fails_is_withdrawn() {
    both(|net| {
        let mut bench = inbound_only(net);
        for port in [1, 2] {
            bench.uplink_brings(&net.client_segment(port, SYN, b""));
        }
        let published = [bench.announces(), bench.announces()];
        bench.uplink_brings(&net.client_segment(1, RST, b""));
        assert_eq!(local_state(&bench, 1), Some(State::Reset));
        bench.pass_ms(11_000);
        assert_eq!((bench.session(1), bench.session(2)), (None, None));
        let withdrawn = [bench.announces(), bench.announces()];
        for publish in published {
            let Some(Announcement::Publish { flow, version }) = publish else { panic!() };
            assert!(withdrawn.contains(&Some(Announcement::Withdraw { flow, version })));
        }
    });
}

#[test]
fn r3_inbound_only_above_the_half_open_limit_the_kernel_tells() {
    both(|net| {
        let options = Options { half_open_max: 1, inbound_only: true, ..Options::default() };
        let mut bench = Bench::with(net, &options);
        for port in [1, 2] {
            bench.uplink_brings(&net.client_segment(port, SYN, b""));
            assert!(bench.host_gets().is_some());
        }
        assert_eq!(bench.session(2), None);
        assert_eq!(bench.count(Counter::HalfOpenOverLimit), 1);

        let ack = net.client_segment(2, ACK, b"");
        bench.uplink_brings(&ack);
        for _ in 0..2 {
            assert_eq!(bench.asks(), Some(net.flow(2)));
            bench.core_answers(net.flow(2), Resolution::NotFound);
            bench.pass_ms(100);
        }
        assert_eq!(bench.host_gets(), Some(ack));
        let mut kernel = MemKernel::with(net.flow(2), Held::Session(State::Established));
        assert_eq!(bench.check(&mut kernel).learnt, 1);
        assert!(
            matches!(bench.comparison_announces(), Some(Announcement::Publish { flow, .. }) if flow == net.flow(2))
        );
    });
}

#[test]
fn r2_inbound_only_a_syn_makes_a_redirected_flow_our_own() {
    both(|net| {
        let mut bench = inbound_only(net);
        bench.redirect(1000);
        open_inbound(&mut bench, 1000);
        assert_eq!(local_state(&bench, 1000), Some(State::Established));
        assert_eq!(bench.count(Counter::RedirectSuperseded), 1);
        assert_eq!(bench.uplink_gets(), None);
    });
}

#[test]
fn r12_inbound_only_a_syn_begins_anew_only_what_is_over() {
    both(|net| {
        let mut bench = inbound_only(net);
        let first = open_inbound(&mut bench, 1000);
        let syn = net.client_segment(1000, SYN, b"");
        bench.uplink_brings(&syn);
        assert_eq!(local_state(&bench, 1000), Some(State::Established), "it may be a blind one");
        // The client's answer to the kernel's challenge.
        bench.uplink_brings(&net.client_segment(1000, RST, b""));
        assert_eq!(local_state(&bench, 1000), Some(State::Reset));
        assert_eq!(bench.announces(), None);
        bench.uplink_brings(&syn);
        assert_eq!(local_state(&bench, 1000), Some(State::HalfOpen));
        let Some(Announcement::Publish { version: second, .. }) = bench.announces() else {
            panic!("the record that is still there is taken over")
        };
        assert!(second > first);
        bench.uplink_brings(&net.client_segment(1000, ACK, b""));
        bench.pass_ms(7000);
        assert_eq!(bench.announces(), None, "nothing withdraws the new session");
        assert_eq!(local_state(&bench, 1000), Some(State::Established));
    });
}

#[test]
fn r8_inbound_only_the_kernel_tells_the_end() {
    both(|net| {
        let mut bench = inbound_only(net);
        let version = open_inbound(&mut bench, 1000);
        bench.uplink_brings(&net.client_segment(1000, FIN_ACK, b""));
        assert_eq!(local_state(&bench, 1000), Some(State::ClientClosed));
        let mut kernel = MemKernel::with(net.flow(1000), Held::Session(State::ClientClosed));
        for _ in 0..3 {
            assert_eq!(bench.check(&mut kernel), Findings { held: 1, ..Findings::default() });
        }
        kernel.sockets.insert(net.flow(1000), Held::Over);
        assert_eq!(bench.check(&mut kernel), Findings::default(), "a list can pass one by");
        let ended = Findings { asked: 1, ended: 1, ..Findings::default() };
        assert_eq!(bench.check(&mut kernel), ended);
        assert_eq!(local_state(&bench, 1000), Some(State::Closed));
        assert_eq!(bench.announces(), None, "it lingers");
        bench.pass_ms(7000);
        let withdraw = Announcement::Withdraw { flow: net.flow(1000), version };
        assert_eq!(bench.announces(), Some(withdraw));
        assert_eq!(bench.session(1000), None);
    });
}

#[test]
fn r8_what_the_kernel_does_not_hold_ends_when_it_listens_for_the_service() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1);
        bench.open(2);
        bench.host_sends(&net.host_segment(3, SYN_ACK, b""));
        let mut kernel = MemKernel { is_elsewhere: true, ..MemKernel::default() };
        kernel.sockets.insert(net.flow(2), Held::Opening);
        for _ in 0..3 {
            assert_eq!(bench.check(&mut kernel).ended, 0);
        }
        kernel.is_elsewhere = false;
        assert_eq!(bench.check(&mut kernel).ended, 1);
        let states = [1, 2, 3].map(|port| local_state(&bench, port));
        let expected = [State::Closed, State::Established, State::HalfOpen];
        assert_eq!(states, expected.map(Some));
    });
}

#[test]
fn r8_a_session_is_ended_only_by_two_checks_that_it_was_there_for() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let mut kernel = MemKernel::default();
        bench.check(&mut kernel);
        // Another one comes into its place.
        bench.host_sends(&net.host_segment(1000, SYN_ACK, b""));
        bench.uplink_brings(&net.client_segment(1000, ACK, b""));
        assert_eq!(bench.check(&mut kernel).asked, 0);
        assert_eq!(bench.check(&mut kernel).ended, 1);
    });
}

/// A kernel that is asked for a flow, and while it says that this is over a new session of the
/// flow comes as far as the old one was.
struct Reused<'a> {
    table: &'a SessionTable,
    clock: &'a Clock,
}

impl Kernel for Reused<'_> {
    type Error = &'static str;

    fn list(&mut self, _see: &mut dyn FnMut(HeldSession)) -> Result<(), &'static str> {
        Ok(())
    }

    fn holds(&mut self, flow: &FlowKey) -> Result<Held, &'static str> {
        let entry = self.table.find(&self.table.locate_flow(flow).unwrap()).unwrap();
        let version = self.clock.next();
        let session = Session::Local { state: State::Established, version, published: true };
        let now = holdfast_dataplane::time::Tick(10);
        self.table.replace(&entry, session, now).unwrap();
        Ok(Held::Over)
    }
}

#[test]
fn r12_a_check_does_not_end_the_next_session_of_the_flow() {
    both(|net| {
        let mut bench = Bench::new(net);
        let first = bench.open(1000);
        let (table, clock) = (bench.table.clone(), bench.clock.clone());
        let mut kernel = Reused { table: &table, clock: &clock };
        bench.check(&mut kernel);
        assert_eq!(bench.check(&mut kernel), Findings { asked: 1, ..Findings::default() });
        let Some(Session::Local { state, version, .. }) = bench.session(1000) else { panic!() };
        assert!(version > first);
        assert_eq!(state, State::Established);
    });
}

#[test]
fn r7_a_check_learns_what_the_table_lacks() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(2);
        let mut kernel = MemKernel::with(net.flow(1), Held::Session(State::ClientClosed));
        kernel.sockets.insert(net.flow(2), Held::Session(State::Established));
        kernel.sockets.insert(net.flow(3), Held::Opening);
        kernel.sockets.insert(net.flow(4), Held::Over);
        let findings = bench.check(&mut kernel);
        assert_eq!(findings, Findings { held: 2, learnt: 1, ..Findings::default() });
        let published = Announcement::Publish { flow: net.flow(1), version: HEARD };
        assert_eq!(bench.comparison_announces(), Some(published), "as old as its last segment");
        assert_eq!(bench.comparison_announces(), None);
        assert_eq!(local_state(&bench, 1), Some(State::ClientClosed));
        assert!(matches!(bench.session(2), Some(Session::Redirect { .. })), "a later session's");
        assert_eq!((bench.session(3), bench.session(4)), (None, None));
        assert_eq!(bench.check(&mut kernel), Findings { held: 2, ..Findings::default() });
    });
}

#[test]
fn r7_what_a_check_cannot_publish_the_sweep_does_and_a_full_table_is_counted() {
    both(|net| {
        let options = Options { capacity: 2, announcements: 1, ..Options::default() };
        let mut bench = Bench::with(net, &options);
        let mut kernel = MemKernel::default();
        for port in 1..=3 {
            kernel.sockets.insert(net.flow(port), Held::Session(State::Established));
        }
        let findings = bench.check(&mut kernel);
        assert_eq!((findings.learnt, findings.table_full), (2, 1));
        assert!(bench.comparison_announces().is_some());
        assert_eq!(bench.comparison_announces(), None);
        bench.pass_ms(2000);
        assert!(matches!(bench.announces(), Some(Announcement::Publish { .. })));
    });
}

#[test]
fn r7_a_session_that_the_kernel_holds_never_expires() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1);
        bench.open(2);
        let mut kernel = MemKernel::with(net.flow(1), Held::Session(State::Established));
        kernel.is_elsewhere = true;
        let third = TIMEOUTS.established_ms / 3;
        bench.skip_ms(third);
        assert_eq!(bench.check(&mut kernel).kept_alive, 0, "it is young");
        bench.skip_ms(third);
        assert_eq!(bench.check(&mut kernel).kept_alive, 1);
        for _ in 0..6 {
            bench.skip_ms(third);
            bench.check(&mut kernel);
        }
        assert_eq!(local_state(&bench, 1), Some(State::Established));
        assert_eq!(bench.session(2), None, "one that it does not hold does");
        assert_eq!(bench.count(Counter::SessionExpired), 1);
        assert!(
            matches!(bench.announces(), Some(Announcement::Withdraw { flow, .. }) if flow == net.flow(2))
        );
        assert_eq!(bench.announces(), None);
    });
}

#[test]
fn r8_a_reset_that_the_kernel_ignored_ends_nothing() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1);
        bench.open(2);
        for port in [1, 2] {
            bench.uplink_brings(&net.client_segment(port, RST, b""));
        }
        let mut kernel = MemKernel::with(net.flow(1), Held::Session(State::Established));
        assert_eq!(bench.check(&mut kernel).revived, 0, "the kernel may not have read it yet");
        bench.pass_ms(2000);
        assert_eq!(bench.check(&mut kernel).revived, 1);
        let states = [1, 2].map(|port| local_state(&bench, port));
        assert_eq!(states, [Some(State::Established), Some(State::Reset)]);
        bench.pass_ms(7000);
        assert!(
            matches!(bench.announces(), Some(Announcement::Withdraw { flow, .. }) if flow == net.flow(2))
        );
        assert_eq!(bench.announces(), None);
        assert_eq!(local_state(&bench, 1), Some(State::Established));
    });
}

/// A client's FIN can be forged as well; when the host's own follows, both have gone by.
#[test]
fn r8_fin_both_ways_ends_nothing_that_the_kernel_holds_half_closed() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        bench.uplink_brings(&net.client_segment(1000, FIN_ACK, b""));
        bench.host_sends(&net.host_segment(1000, FIN_ACK, b""));
        assert_eq!(local_state(&bench, 1000), Some(State::Closed));
        bench.pass_ms(2000);
        let mut kernel = MemKernel::with(net.flow(1000), Held::Session(State::HostClosed));
        assert_eq!(bench.check(&mut kernel).revived, 1);
        assert_eq!(local_state(&bench, 1000), Some(State::HostClosed));
        // And when its time has come, it is over.
        kernel.sockets.clear();
        bench.check(&mut kernel);
        assert_eq!(bench.check(&mut kernel).ended, 1);
    });
}

#[test]
fn r7_a_half_open_session_that_the_kernel_holds_is_established_and_published() {
    both(|net| {
        let mut bench = Bench::with(net, &Options { half_open_max: 0, ..Options::default() });
        bench.host_sends(&net.host_segment(1000, SYN_ACK, b""));
        assert_eq!(bench.announces(), None);
        let mut kernel = MemKernel::with(net.flow(1000), Held::Session(State::Established));
        assert_eq!(bench.check(&mut kernel).established, 1);
        assert_eq!(local_state(&bench, 1000), Some(State::Established));
        bench.pass_ms(2000);
        assert!(
            matches!(bench.announces(), Some(Announcement::Publish { flow, .. }) if flow == net.flow(1000))
        );
    });
}

#[test]
fn r7_a_kernel_that_does_not_answer_ends_nothing() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let mut kernel = MemKernel::default();
        bench.check(&mut kernel);
        kernel.is_broken = true;
        let now = bench.now.tick();
        assert_eq!(bench.comparison.check(&mut kernel, || now), Err("broken"));
        kernel.is_broken = false;
        assert_eq!(bench.check(&mut kernel).ended, 0, "two answers in a row are needed");
        assert_eq!(local_state(&bench, 1000), Some(State::Established));
        assert_eq!(bench.check(&mut kernel).ended, 1);
    });
}
