//! What may differ while workers run: settings, services and timeouts take effect, and what was
//! there before them stays or goes as it must. Every dialogue is held in IPv4 and in IPv6.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use holdfast_dataplane::kernel::{Findings, Held};
use holdfast_dataplane::session::State;
use holdfast_dataplane::session::expiry::Timeouts;
use holdfast_dataplane::stats::Counter;
use holdfast_dataplane::worker::Settings;
use holdfast_handoff::Announcement;
use holdfast_net::FlowKey;
use support::{ACK, Bench, MemKernel, Net, RST, SYN, SYN_ACK, TIMEOUTS, nets, settings};

fn both(dialogue: impl Fn(Net)) {
    nets().into_iter().for_each(dialogue);
}

/// Has table and worker go on with services at these ports, as a reload does.
fn serve(bench: &mut Bench, ports: &[u16]) {
    let net = bench.net;
    let sockets = ports.iter().map(|port| SocketAddr::new(net.service, *port));
    let services = bench.table.services().followed_by(sockets).unwrap();
    let mut settings = settings(&net, 16);
    settings.classifier.services = services.clone();
    bench.table.set_services(services);
    bench.worker.set_settings(&Arc::new(settings));
}

#[test]
fn r2_a_service_that_is_added_opens_sessions_and_those_that_there_were_go_on() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        serve(&mut bench, &[443, 80]);
        let segment = net.client_segment(1000, ACK, b"goes on");
        bench.uplink_brings(&segment);
        assert_eq!(bench.host_gets(), Some(segment));
        assert_eq!((bench.count(Counter::LocalHit), bench.asks()), (2, None));
        // As if the flow above were to port 443 in the first place.
        let on_443 = Net { service: net.service, ..net };
        let flow = FlowKey::tcp(
            SocketAddr::new(on_443.client, 1000),
            SocketAddr::new(on_443.service, 443),
        );
        let at = bench.table.locate_flow(&flow.unwrap()).unwrap();
        assert_eq!(bench.table.find(&at), None, "another number, another entry");
        bench.open(1001);
        assert_eq!(bench.table.gauges().local, 2);
    });
}

#[test]
fn a_service_that_is_removed_passes_and_its_sessions_are_withdrawn_alive_or_not() {
    both(|net| {
        let mut bench = Bench::new(net);
        let version = bench.open(1000);
        bench.redirect(1001);
        serve(&mut bench, &[443]);
        let segment = net.client_segment(1000, ACK, b"for the host alone");
        bench.uplink_brings(&segment);
        assert_eq!(bench.host_gets(), Some(segment));
        assert_eq!((bench.count(Counter::Passed), bench.asks()), (1, None));
        assert_eq!(bench.session(1000), None, "its flow is no service's");

        bench.pass_ms(2000);
        let withdraw = Announcement::Withdraw { flow: net.flow(1000), version };
        assert_eq!(bench.announces(), Some(withdraw));
        assert_eq!(bench.announces(), None);
        assert_eq!((bench.table.gauges().local, bench.table.gauges().redirects), (0, 0));
        assert_eq!(bench.count(Counter::EntryRetired), 2);

        // What the kernel still holds of it is learnt only when the service is back.
        let mut kernel = MemKernel::with(net.flow(1000), Held::Session(State::Established));
        assert_eq!(bench.check(&mut kernel), Findings::default());
        serve(&mut bench, &[80]);
        assert_eq!(bench.check(&mut kernel).learnt, 1);
        bench.pass_ms(2000);
        assert!(bench.session(1000).is_some());
        assert_eq!(bench.count(Counter::EntryRetired), 2);
    });
}

#[test]
fn r5_strays_that_wait_while_their_service_goes_are_dropped_and_counted() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.uplink_brings(&net.client_segment(1000, ACK, b"stray"));
        assert_eq!(bench.asks(), Some(net.flow(1000)));
        serve(&mut bench, &[443]);
        bench.core_answers(net.flow(1000), support::owner(net.other));
        bench.pass_ms(2000);
        assert_eq!(bench.count(Counter::ParkExpired), 1);
        bench.check_books();
    });
}

#[test]
fn r3_r6_another_limit_and_other_members_hold_from_the_next_packet_on() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.host_sends(&net.host_segment(1, SYN_ACK, b""));
        assert!(bench.announces().is_some());
        let tunnelled = net.tunnelled(&net.client_segment(5, ACK, b"x"), net.stranger);
        bench.uplink_brings(&tunnelled);
        assert_eq!(bench.count(Counter::TunnelStranger), 1);

        let mut others: Settings = settings(&net, 1);
        let bits = if net.stranger.is_ipv4() { 24 } else { 64 };
        others.members.push(ipnet::IpNet::new(net.stranger, bits).unwrap());
        bench.worker.set_settings(&Arc::new(others));
        bench.host_sends(&net.host_segment(2, SYN_ACK, b""));
        assert_eq!((bench.announces(), bench.count(Counter::HalfOpenOverLimit)), (None, 1));
        bench.uplink_brings(&tunnelled);
        assert_eq!(bench.count(Counter::TunnelReceived), 1);
    });
}

#[test]
fn r8_shorter_timeouts_forget_no_session_that_the_kernel_holds() {
    both(|net| {
        let mut bench = Bench::new(net);
        bench.open(1000);
        let gone = bench.open(1001);
        let mut kernel = MemKernel::with(net.flow(1000), Held::Session(State::Established));
        bench.skip_ms(600_000);
        bench.comparison.set_timeouts(&Timeouts { established_ms: 60_000, ..TIMEOUTS });
        bench.pass_ms(2000);
        assert_eq!(bench.announces(), None, "not before a check");
        assert_eq!(bench.check(&mut kernel).kept_alive, 1);
        bench.pass_ms(2000);
        // By the new timeout, though the kernel was asked for it but once.
        let withdraw = Announcement::Withdraw { flow: net.flow(1001), version: gone };
        assert_eq!(bench.announces(), Some(withdraw));
        assert!(bench.session(1000).is_some());
        assert_eq!(bench.session(1001), None);
    });
}

#[test]
fn r8_a_longer_linger_holds_for_those_that_linger() {
    both(|net| {
        let mut bench = Bench::new(net);
        let version = bench.open(1000);
        bench.uplink_brings(&net.client_segment(1000, RST, b""));
        bench.comparison.set_timeouts(&Timeouts { linger_ms: 50_000, ..TIMEOUTS });
        bench.check(&mut MemKernel::default());
        bench.skip_ms(40_000);
        assert!(bench.session(1000).is_some());
        bench.skip_ms(10_000);
        let withdraw = Announcement::Withdraw { flow: net.flow(1000), version };
        assert_eq!(bench.announces(), Some(withdraw));
        // R2: nor does any of it keep a new one from beginning.
        bench.uplink_brings(&net.client_segment(1000, SYN, b""));
        assert_eq!(bench.count(Counter::SynToHost), 2);
    });
}
