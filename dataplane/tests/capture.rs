//! What workers observe while somebody traces or captures: every packet once, with its verdict and
//! the counters that say why, and nothing while nobody does.
#![allow(clippy::unwrap_used)]

mod support;

use holdfast_dataplane::capture::{
    Account, Capture, CounterSet, HEADERS_MAX, Image, Kind, Observation, Observations, Origin, Out,
    Verdict, Wanted, Way,
};
use holdfast_dataplane::encap::Encapsulation;
use holdfast_dataplane::frame::MemFrame;
use holdfast_dataplane::stats::Counter;
use holdfast_handoff::{Answer, Resolution, Version};
use support::fragments::{cut, piece, with_flags};
use support::{ACK, Bench, FIN_ACK, Net, Options, RST, SYN, SYN_ACK, inside, nets, owner};

fn both(dialogue: impl Fn(Net)) {
    nets().into_iter().for_each(|net| dialogue(Net { is_observed: true, ..net }));
}

/// An observation in a line: where the packet came from and how, what it was, what became of it, and the
/// counters that it moved.
fn line(net: &Net, (observation, account): &(Observation, Account)) -> String {
    let origin = match (observation.origin, account.way) {
        (Origin::Uplink, Way::Direct) => "uplink",
        (Origin::Uplink, Way::Tunnel(sender)) if sender == net.other => "tunnel",
        (Origin::Uplink, Way::Tunnel(_)) => "tunnel of a stranger",
        (Origin::Uplink, Way::Rewritten) => "rewritten",
        (Origin::Host, _) => "host",
        (Origin::Waited, _) => "waited",
    };
    let owner = match account.owner {
        Some(owner) if owner == net.other => " to the other",
        Some(_) => " to nobody known",
        None => "",
    };
    let reason = account.reason.map(|reason| format!(" {}", reason.name())).unwrap_or_default();
    let rules: Vec<_> = account.rules().iter().map(|rule| format!("R{rule}")).collect();
    let counters: Vec<_> = observation.counters.iter().map(Counter::name).collect();
    format!(
        "{origin} {:?}: {:?}{owner}{reason} [{}] {}",
        account.kind,
        account.verdict,
        counters.join(" "),
        rules.join(" "),
    )
    .trim_end()
    .to_owned()
}

fn assert_told(bench: &mut Bench, expected: &[&str]) {
    let net = bench.net;
    let lines: Vec<_> = bench.accounts().iter().map(|told| line(&net, told)).collect();
    assert_eq!(lines, expected);
}

#[test]
fn a_session_of_ours() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        bench.uplink_brings(&net.client_segment(1000, ACK, b"GET /"));
        bench.host_sends(&net.host_segment(1000, ACK, b"200 OK"));
        let told = bench.accounts();
        let flows: Vec<_> = told.iter().map(|(_, account)| account.ends.unwrap().flow()).collect();
        assert_eq!(flows, [Some(net.flow(1000)); 5]);
        let flags: Vec<_> = told.iter().map(|(_, account)| account.flags.unwrap().0).collect();
        assert_eq!(flags, [SYN, SYN_ACK, ACK, ACK, ACK]);
        let lines: Vec<_> = told.iter().map(|told| line(&net, told)).collect();
        let expected = [
            "uplink Segment: ToHost [syn_to_host] R2",
            "host Segment: ToUplink [session_opened publish_queued] R3",
            "uplink Segment: ToHost [local_hit] R4",
            "uplink Segment: ToHost [local_hit] R4",
            "host Segment: ToUplink []",
        ];
        assert_eq!(lines, expected);
        // What came and what left.
        let (observation, _) = &told[0];
        let image =
            Image { length: observation.came.length, bytes: net.client_segment(1000, SYN, b"") };
        assert_eq!(observation.came, image);
        assert_eq!(observation.sent, [(Out::Host, image)]);
    });
}

#[test]
fn strays_and_what_becomes_of_them() {
    both(|net| {
        let stray = net.client_segment(1000, ACK, b"stray");
        let parked = "uplink Segment: Parked [miss parked lookup_asked] R5";
        let rows = [
            (
                owner(net.other),
                "waited Segment: Tunnelled to the other [released_tunnel tunnel_sent] R5",
                "uplink Segment: Tunnelled to the other [redirect_hit tunnel_sent] R4",
            ),
            (
                owner(net.me),
                "waited Segment: ToHost [released_host] R5",
                "uplink Segment: ToHost [local_hit] R4",
            ),
            (
                Resolution::TimedOut,
                "waited Segment: Dropped dropped_timed_out [dropped_timed_out] R5",
                parked,
            ),
            (
                owner(net.stranger),
                "waited Segment: Dropped resolved_stranger [resolved_stranger] R5",
                parked,
            ),
        ];
        for (resolution, expected, then) in rows {
            let mut bench = Bench::new(net);
            bench.uplink_brings(&stray);
            bench.core_answers(net.flow(1000), resolution);
            bench.uplink_brings(&stray);
            assert_told(&mut bench, &[parked, expected, then]);
        }

        // Only after two seconds of it is nobody's flow remembered.
        let mut bench = Bench::new(net);
        for pause_ms in [0, 2000] {
            bench.pass_ms(pause_ms);
            bench.uplink_brings(&stray);
            for _ in 0..2 {
                bench.core_answers(net.flow(1000), Resolution::NotFound);
                bench.pass_ms(100);
            }
            let released = "waited Segment: ToHost [released_host] R5";
            assert_told(&mut bench, &[parked, released]);
        }
        bench.uplink_brings(&stray);
        assert_told(&mut bench, &["uplink Segment: ToHost [miss negative_hit] R5"]);

        let mut bench = Bench::new(net);
        bench.uplink_brings(&stray);
        bench.uplink_brings(&stray);
        bench.pass_ms(1001);
        let joined = "uplink Segment: Parked [miss parked] R5";
        let expired = "waited Segment: Dropped park_expired [park_expired] R5";
        assert_told(&mut bench, &[parked, joined, expired, expired]);
    });
}

#[test]
fn refused_strays() {
    both(|net| {
        let dropped = |bench: &mut Bench| {
            let told = bench.accounts();
            let reasons = told.iter().filter(|(_, account)| account.verdict == Verdict::Dropped);
            reasons.map(|(_, account)| account.reason.unwrap().name()).collect::<Vec<_>>()
        };
        let stray = |port| net.client_segment(port, ACK, b"stray");

        let mut bench = Bench::new(net);
        (0..5).for_each(|_| bench.uplink_brings(&stray(1)));
        assert_eq!(dropped(&mut bench), ["park_flow_full"]);
        (2..15).for_each(|port| bench.uplink_brings(&stray(port)));
        assert_eq!(dropped(&mut bench), ["park_full"]);

        let mut bench = Bench::with(net, &Options { resolves: 1, ..Options::default() });
        bench.uplink_brings(&stray(1));
        bench.uplink_brings(&stray(2));
        assert_eq!(dropped(&mut bench), ["lookup_ring_full"]);

        let mut bench = Bench::with(net, &Options { resolves: 128, ..Options::default() });
        for port in 0..65 {
            bench.uplink_brings(&stray(port));
            bench.core_answers(net.flow(port), Resolution::TimedOut);
        }
        let dropped = dropped(&mut bench);
        assert_eq!(dropped[..64], ["dropped_timed_out"; 64]);
        assert!(dropped[64].starts_with("lookup_refused_"), "{}", dropped[64]);
    });
}

#[test]
fn out_of_a_tunnel() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        bench.accounts();
        let segment = net.client_segment(1000, ACK, b"moved");
        let tunnelled = net.tunnelled(&segment, net.other);
        bench.uplink_brings(&tunnelled);
        let told = bench.accounts();
        let expected = "tunnel Segment: ToHost [tunnel_received] R6";
        assert_eq!(line(&net, &told[0]), expected);
        let (observation, account) = &told[0];
        assert_eq!(account.ends.unwrap().flow(), Some(net.flow(1000)));
        assert_eq!(observation.came.bytes, tunnelled, "as it came");
        assert_eq!(observation.sent[0].1.bytes, segment, "and as it left");

        bench.redirect(3);
        bench.accounts();
        bench.uplink_brings(&net.tunnelled(&net.client_segment(3, ACK, b"x"), net.other));
        let superseded = "tunnel Segment: Dropped tunnel_superseded \
                          [tunnel_received tunnel_superseded not_mine_sent] R6 R12";
        assert_told(&mut bench, &[superseded]);
    });
}

#[test]
fn out_of_a_tunnel_and_refused() {
    both(|net| {
        let mut bench = Bench::new(net);
        let segment = net.client_segment(1, ACK, b"x");
        bench.uplink_brings(&net.tunnelled(&segment, net.other));
        bench.uplink_brings(&net.tunnelled(&segment, net.stranger));
        let mut nonsense = net.tunnelled(&segment, net.other);
        let gue = nonsense.len() - segment[14..].len() - 4;
        nonsense[gue] = 0x40;
        bench.uplink_brings(&nonsense);
        assert_told(
            &mut bench,
            &[
                "tunnel Segment: ToHost [tunnel_received not_mine_sent] R6",
                "tunnel of a stranger Segment: Dropped tunnel_stranger [tunnel_stranger] R6",
                "tunnel Other: Dropped tunnel_version [tunnel_version] R6",
            ],
        );
    });
}

#[test]
fn rewritten_segments_and_errors() {
    both(|net| {
        let options = Options { encapsulation: Encapsulation::Rewrite, ..Options::default() };
        let mut sender = Bench::with(net.of_the_other(), &options);
        sender.redirect(1000);
        sender.uplink_brings(&net.client_segment(1000, ACK, b"moved"));
        let told = sender.accounts();
        let (observation, account) = told.last().unwrap();
        assert_eq!((account.verdict, account.owner), (Verdict::Tunnelled, Some(net.me)));
        let rewritten = observation.sent[0].1.bytes.clone();

        let mut bench = Bench::with(net, &options);
        bench.open(1000);
        bench.accounts();
        bench.uplink_brings(&rewritten);
        let told = bench.accounts();
        assert_eq!(line(&net, &told[0]), "rewritten Segment: ToHost [tunnel_received] R6");
        assert_eq!(told[0].1.ends.unwrap().flow(), Some(net.flow(1000)));
    });
}

#[test]
fn icmp_errors() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        bench.redirect(2000);
        bench.accounts();
        for port in [1000, 2000] {
            bench.uplink_brings(&net.icmp_error(&net.host_segment(port, ACK, &[0; 1400])));
        }
        let told = bench.accounts();
        let flows: Vec<_> = told.iter().map(|(_, account)| account.ends.unwrap().flow()).collect();
        assert_eq!(flows, [1000, 2000].map(|port| Some(net.flow(port))));
        assert!(told.iter().all(|(_, account)| account.flags.is_none()));
        let lines: Vec<_> = told.iter().map(|told| line(&net, told)).collect();
        let expected = [
            "uplink IcmpError: ToHost [icmp_error local_hit] R4 R9",
            "uplink IcmpError: Tunnelled to the other \
             [icmp_error redirect_hit tunnel_sent] R4 R9",
        ];
        assert_eq!(lines, expected);

        // At the owner, out of its tunnel.
        let mut brought = bench.uplink_gets_all().pop().unwrap();
        let mut owner = Bench::new(net.of_the_other());
        owner.open(2000);
        owner.accounts();
        let (left, right) = brought[..12].split_at_mut(6);
        left.swap_with_slice(right);
        owner.uplink_brings(&brought);
        let of_owner = owner.net;
        let told = owner.accounts();
        assert_eq!(line(&of_owner, &told[0]), "tunnel IcmpError: ToHost [tunnel_received] R6");
        assert_eq!(told[0].1.ends.unwrap().flow(), Some(net.flow(2000)));
    });
}

#[test]
fn fragments() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        bench.accounts();
        let fragments = cut(&net.client_segment(1000, ACK, &[7; 100]), 9, &[40, 80]);
        bench.uplink_brings(&fragments[1]);
        let told = bench.accounts();
        let waits = "uplink Fragment: Waits [fragment_waited] R10";
        assert_eq!(line(&net, &told[0]), waits);
        let ends = told[0].1.ends.unwrap();
        assert_eq!(ends.flow(), None, "nobody knows yet");
        assert!(ends.may_be(&net.flow(1000)) && ends.may_be(&net.flow(7)));

        bench.uplink_brings(&fragments[0]);
        bench.uplink_brings(&fragments[2]);
        let told = bench.accounts();
        let lines: Vec<_> = told.iter().map(|told| line(&net, told)).collect();
        let expected = [
            "uplink Fragment: ToHost [local_hit] R4",
            "waited Fragment: ToHost [fragment_to_host] R10",
            "uplink Fragment: ToHost [fragment_to_host] R10",
        ];
        assert_eq!(lines, expected);
        for (_, account) in &told {
            assert_eq!(account.ends.unwrap().flow(), Some(net.flow(1000)));
        }
        assert_eq!(told[1].0.sent[0].1.bytes, fragments[1]);
    });
}

#[test]
fn fragments_of_strays() {
    both(|net| {
        let mut bench = Bench::new(net);
        let fragments = cut(&net.client_segment(1000, ACK, &[7; 100]), 9, &[40, 80]);
        bench.uplink_brings(&fragments[2]);
        bench.uplink_brings(&fragments[0]);
        bench.uplink_brings(&fragments[1]);
        bench.core_answers(net.flow(1000), owner(net.other));
        let late = piece(&net.client_segment(1000, ACK, &[7; 100]), 9, 80, 120);
        bench.uplink_brings(&late);
        let released = "waited Fragment: Tunnelled to the other [released_tunnel tunnel_sent] R5";
        assert_told(
            &mut bench,
            &[
                "uplink Fragment: Waits [fragment_waited] R10",
                "uplink Fragment: Parked [miss parked lookup_asked] R5",
                "waited Fragment: Parked [miss parked] R5",
                "uplink Fragment: Parked [miss parked] R5",
                released,
                released,
                released,
                "uplink Fragment: Tunnelled to the other [fragment_to_tunnel tunnel_sent] R10",
            ],
        );
    });
}

#[test]
fn fragments_that_are_dropped() {
    both(|net| {
        let mut bench = Bench::new(net);
        let segment = net.client_segment(1000, ACK, &[7; 100]);
        let fragments = cut(&segment, 9, &[40]);
        bench.uplink_brings(&fragments[1]);
        bench.pass_ms(1001);
        bench.uplink_brings(&piece(&segment, 10, 0, 8));
        for n in 0..9 {
            bench.uplink_brings(&piece(&segment, 11, 8 + 8 * n, 16 + 8 * n));
        }
        let told = bench.accounts();
        let lines: Vec<_> = told.iter().map(|told| line(&net, told)).collect();
        assert_eq!(lines[1], "waited Fragment: Dropped fragment_expired [fragment_expired] R10");
        assert_eq!(lines[2], "uplink Fragment: Dropped fragment_tiny [fragment_tiny] R10");
        let full = "uplink Fragment: Dropped fragment_full [fragment_full] R10";
        assert_eq!(lines.last().unwrap(), full);
    });
}

#[test]
fn too_big_for_the_tunnel() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1000);
        bench.accounts();
        let large = net.client_segment(1000, ACK, &[7; 1440]);
        bench.uplink_brings(&large);
        let told = bench.accounts();
        let answered = "uplink Segment: Answered [redirect_hit too_big_answered] R4 R11";
        assert_eq!(line(&net, &told[0]), answered);
        let (observation, _) = &told[0];
        assert_eq!(
            (observation.came.length, observation.came.bytes.len()),
            (large.len(), HEADERS_MAX)
        );
        assert_eq!(observation.came.bytes, large[..HEADERS_MAX]);
        assert_eq!(
            Some(observation.sent[0].1.length),
            bench.uplink_gets_all().last().map(Vec::len)
        );
        if !net.client.is_ipv4() {
            return;
        }
        bench.uplink_brings(&with_flags(&large, 0));
        let told = bench.accounts();
        let fragmented = "uplink Segment: Tunnelled to the other \
                          [redirect_hit tunnel_sent too_big_fragments] R4 R11";
        assert_eq!(line(&net, &told[0]), fragmented);
        assert_eq!((told[0].0.sent.len(), told[0].0.sent_total), (2, 2));
    });
}

#[test]
fn from_the_host() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.host_sends(&net.host_segment(1, ACK, b"learnt"));
        bench.host_sends(&net.host_segment(2, RST, b""));
        bench.redirect(3);
        bench.accounts();
        bench.host_sends(&net.host_segment(3, ACK, b"old"));
        bench.host_sends(&net.host_segment(3, RST, b""));
        bench.host_sends(&net.host_segment(1, RST, b""));
        let fragments = cut(&net.host_segment(1, ACK, &[7; 100]), 9, &[40]);
        fragments.iter().for_each(|fragment| bench.host_sends(fragment));
        let told = bench.accounts();
        let lines: Vec<_> = told.iter().map(|told| line(&net, told)).collect();
        let expected = [
            "host Segment: ToUplink [host_superseded] R12",
            "host Segment: Withheld host_withheld [host_withheld] R12",
            "host Segment: Withheld rst_withheld [rst_withheld session_closed withdraw_queued] R12",
            "host Fragment: ToUplink []",
            "host Fragment: ToUplink []",
        ];
        assert_eq!(lines, expected);
        assert_eq!(told[3].1.ends.unwrap().flow(), Some(net.flow(1)));
        let later = told[4].1.ends.unwrap();
        assert!(later.flow().is_none() && later.may_be(&net.flow(1)));
    });
}

#[test]
fn a_syn_ack_before_and_after_its_mss_was_lowered() {
    both(|net| {
        let mut bench = Bench::new(net);
        // An MSS of 1460 in the place of an option of its own.
        let mut syn_ack = net.host_segment(1, SYN_ACK, b"");
        let tcp = syn_ack.len() - 20;
        syn_ack[tcp + 12] = 6 << 4;
        syn_ack.extend([2, 4, 0x05, 0xb4]);
        let length = if net.client.is_ipv4() { 16 } else { 18 };
        let old = u16::from_be_bytes([syn_ack[length], syn_ack[length + 1]]);
        syn_ack[length..length + 2].copy_from_slice(&(old + 4).to_be_bytes());
        bench.host_sends(&syn_ack);
        let told = bench.accounts();
        let (observation, account) = &told[0];
        assert_eq!(account.rules(), [3, 11]);
        assert!(observation.counters.contains(Counter::MssClamped));
        assert_eq!(observation.came.bytes, syn_ack);
        let mss = |image: &Image| u16::from_be_bytes(*image.bytes.last_chunk::<2>().unwrap());
        assert_eq!(mss(&observation.came), 1460);
        assert!(mss(&observation.sent[0].1) < 1460);
    });
}

#[test]
fn what_passes() {
    both(|net| {
        let mut bench = Bench::new(net);
        let mut arp = vec![0xff; 12];
        arp.extend([0x08, 0x06]);
        arp.resize(60, 7);
        bench.uplink_brings(&arp);
        bench.host_sends(&arp);
        let mut cut_short = net.client_segment(1, ACK, b"");
        cut_short.truncate(30);
        bench.uplink_brings(&cut_short);
        bench.uplink_brings(&[1, 2, 3]);
        let told = bench.accounts();
        assert!(told.iter().all(|(_, account)| account.ends.is_none()));
        let lines: Vec<_> = told.iter().map(|told| line(&net, told)).collect();
        let expected = [
            "uplink Other: ToHost [passed]",
            "host Other: ToUplink []",
            "uplink Other: ToHost [malformed_truncated]",
            "uplink Other: ToHost [passed]",
        ];
        assert_eq!(lines, expected);
    });
}

#[test]
fn a_port_that_takes_nothing() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.redirect(1);
        bench.open(2);
        bench.accounts();
        bench.uplink.0.borrow_mut().room = Some(0);
        bench.host.0.borrow_mut().room = Some(0);
        for port in [1, 2] {
            (0..129).for_each(|_| bench.uplink_brings(&net.client_segment(port, ACK, b"x")));
            let told = bench.accounts();
            assert_eq!(told.len(), 129);
            let (observation, account) = told.last().unwrap();
            let unsent = if port == 1 { Counter::UplinkUnsent } else { Counter::HostUnsent };
            assert_eq!((account.verdict, account.reason), (Verdict::Dropped, Some(unsent)));
            assert_eq!((observation.sent.len(), observation.sent_total), (0, 0));
            assert!(told[..128].iter().all(|(observation, _)| observation.sent_total == 1));
        }
        // The next finds both queues full, and the ports take all of them at once.
        bench.uplink.0.borrow_mut().room = None;
        bench.host.0.borrow_mut().room = None;
        bench.uplink_brings(&net.client_segment(1, ACK, b"last"));
        bench.uplink_brings(&net.client_segment(2, ACK, b"last"));
        for (observation, account) in bench.accounts() {
            assert!(account.verdict != Verdict::Dropped);
            assert_eq!((observation.sent.len(), observation.sent_total), (1, 1));
        }
    });
}

/// A bench, and what observations it, unread as yet.
fn unread(net: Net, ring_bytes: usize) -> (Bench, Observations) {
    let mut bench = Bench::new(net);
    let (mut observers, observations) = Observations::with_rings(1, ring_bytes);
    bench.set_observer(observers.pop().unwrap());
    (bench, observations)
}

#[test]
fn nothing_is_observed_before_and_after_a_capture() {
    let [net, _] = nets();
    let (mut bench, mut observations) = unread(net, 1 << 18);
    let segment = |payload: &[u8]| net.client_segment(1, SYN, payload);
    bench.uplink_brings(&segment(b"before"));
    {
        let mut capture = observations.start(&Wanted::default());
        assert_eq!(capture.next_observation(), None);
        bench.uplink_brings(&segment(b"first"));
        bench.uplink_brings(&segment(b"second"));
        let (worker, observation) = capture.next_observation().unwrap();
        assert_eq!((worker, observation.came.bytes), (0, segment(b"first")));
        // The second is left in the ring.
    }
    bench.uplink_brings(&segment(b"between"));
    let mut capture = observations.start(&Wanted::default());
    bench.uplink_brings(&segment(b"third"));
    let (_, observation) = capture.next_observation().unwrap();
    assert_eq!(observation.came.bytes, segment(b"third"));
    assert_eq!(observation.at, bench.now);
    assert_eq!(capture.next_observation(), None);
    assert_eq!(capture.missed(), 0);
}

#[test]
fn what_finds_no_room_is_counted() {
    let [net, _] = nets();
    let (mut bench, mut observations) = unread(net, 1000);
    let mut capture = observations.start(&Wanted::default());
    let frame = net.client_segment(1, SYN, b"");
    (0..100).for_each(|_| bench.uplink_brings(&frame));
    assert_eq!(bench.host_gets_all().len(), 100, "whoever reads or not");
    let observations = |capture: &mut Capture<'_>| {
        std::iter::from_fn(|| capture.next_observation()).count() as u64
    };
    let read = observations(&mut capture);
    assert!((2..10).contains(&read), "{read}");
    assert_eq!(capture.missed(), 100 - read);
    assert_eq!(capture.missed(), 0, "each is told once");
    bench.uplink_brings(&frame);
    assert_eq!((observations(&mut capture), capture.missed()), (1, 0), "there is room again");
}

#[test]
fn only_what_is_wanted() {
    for net in nets() {
        let (mut bench, mut observations) = unread(net, 1 << 18);
        bench.redirect(1);
        let counters = CounterSet::of(&[Counter::RedirectHit, Counter::TunnelStranger]);
        let wanted = Wanted { counters, ..Wanted::default() };
        let mut capture = observations.start(&wanted);
        bench.uplink_brings(&net.client_segment(1, ACK, b"wanted"));
        bench.uplink_brings(&net.client_segment(1, SYN, b"not wanted"));
        bench.uplink_brings(&net.tunnelled(&net.client_segment(2, ACK, b"x"), net.stranger));
        let reasons: Vec<_> = std::iter::from_fn(|| capture.next_observation())
            .map(|(_, observation)| observation.counters.and(counters).iter().next().unwrap())
            .collect();
        assert_eq!(reasons, [Counter::RedirectHit, Counter::TunnelStranger]);
    }
}

#[test]
fn only_of_some_clients_and_all_others_go_on() {
    for net in nets() {
        let (mut bench, mut observations) = unread(net, 1 << 18);
        let neighbour = match net.client {
            std::net::IpAddr::V4(_) => "20.1.9.9".parse().unwrap(),
            std::net::IpAddr::V6(_) => "2001:db8:9::1".parse().unwrap(),
        };
        let theirs = Net { client: neighbour, ..net };
        let wanted = Wanted { clients: Some(net.client.into()), ..Wanted::default() };
        let mut capture = observations.start(&wanted);
        bench.redirect(5);
        while capture.next_observation().is_some() {}
        // In one burst, and from the host as well.
        let burst = [
            net.client_segment(1, SYN, b"ours"),
            theirs.client_segment(1, SYN, b"theirs"),
            net.tunnelled(&net.client_segment(2, ACK, b"in a tunnel"), net.other),
            net.icmp_error(&net.host_segment(5, ACK, &[0; 1400])),
            piece(&net.client_segment(3, ACK, &[7; 100]), 9, 40, 80),
        ];
        for frame in &burst {
            bench.uplink.0.borrow_mut().to_worker.push_back(MemFrame::new(frame));
        }
        for segment in [net.host_segment(1, SYN_ACK, b""), theirs.host_segment(1, SYN_ACK, b"")] {
            bench.host.0.borrow_mut().to_worker.push_back(MemFrame::new(&segment));
        }
        bench.turn();
        let came: Vec<_> = std::iter::from_fn(|| capture.next_observation())
            .map(|(_, observation)| observation.came.bytes)
            .collect();
        let head = |frame: &[u8]| frame[..frame.len().min(HEADERS_MAX)].to_vec();
        let mut expected: Vec<_> =
            [0, 2, 3, 4].into_iter().map(|index| head(&burst[index])).collect();
        expected.push(net.host_segment(1, SYN_ACK, b""));
        assert_eq!(came, expected);
        let hosts = bench.host_gets_all();
        assert_eq!(hosts.len(), 3, "both SYNs and the tunnelled segment");
        assert!(hosts.contains(&burst[1]));
        assert!(bench.uplink_gets_all().contains(&theirs.host_segment(1, SYN_ACK, b"")));
    }
}

#[test]
fn frames_are_kept_up_to_the_length_that_is_asked_for() {
    let [net, _] = nets();
    let (mut bench, mut observations) = unread(net, 1 << 18);
    let frame = net.client_segment(1, SYN, &[9; 1400]);
    for (snaplen, kept) in [(0, HEADERS_MAX), (1000, 1000), (usize::MAX, frame.len())] {
        let mut capture = observations.start(&Wanted { snaplen, ..Wanted::default() });
        bench.uplink_brings(&frame);
        let (_, observation) = capture.next_observation().unwrap();
        for image in [&observation.came, &observation.sent[0].1] {
            assert_eq!((image.length, &image.bytes), (frame.len(), &frame[..kept].to_vec()));
        }
    }
}

#[test]
fn observations_of_several_workers_come_in_order() {
    let [net, _] = nets();
    let (mut observers, mut observations) = Observations::with_rings(2, 1 << 18);
    let mut benches = [Bench::new(net), Bench::new(net)];
    for bench in &mut benches {
        bench.set_observer(observers.remove(0));
    }
    let mut capture = observations.start(&Wanted::default());
    for (bench, pause) in [(1, 10), (0, 20), (0, 30), (1, 40)] {
        let bench = &mut benches[bench];
        bench.now.us = 1_000_000 + pause;
        bench.uplink_brings(&net.client_segment(1, SYN, b""));
    }
    let order: Vec<_> = std::iter::from_fn(|| capture.next_observation())
        .map(|(worker, observation)| (worker, observation.at.us - 1_000_000))
        .collect();
    assert_eq!(order, [(1, 10), (0, 20), (0, 30), (1, 40)]);
}

#[test]
fn a_session_that_another_server_has_taken_over() {
    both(|net| {
        let mut bench = Bench::new(net);
        let version = bench.open(1);
        let version = Version(version.0 + 1);
        bench.core_says(Answer::Superseded { flow: net.flow(1), version, owner: net.other });
        bench.accounts();
        bench.uplink_brings(&net.client_segment(1, FIN_ACK, b""));
        let expected = "uplink Segment: Tunnelled to the other \
                        [redirect_hit tunnel_sent redirect_ended] R4 R12";
        let told = bench.accounts();
        assert_eq!(line(&net, &told[0]), expected);
        assert_eq!(inside(&told[0].0.sent[0].1.bytes).1, net.other);
        assert_eq!(told[0].1.kind, Kind::Segment);
    });
}
