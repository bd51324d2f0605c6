//! What is foretold of a client's next segment is what the worker does, whatever the table and the
//! DHT say.
#![allow(clippy::unwrap_used)]

mod support;

use holdfast_dataplane::foresee::{Fate, fate};
use holdfast_dataplane::session::table::Insert;
use holdfast_dataplane::session::{Session, State};
use holdfast_dataplane::stats::{Counter, Gauge};
use holdfast_handoff::{Resolution, Version};
use support::{ACK, Bench, inside, nets};

#[test]
fn r4_r5_the_worker_does_what_was_foretold() {
    for net in nets() {
        let locals = State::ALL
            .map(|state| Some(Session::Local { state, version: Version(5), published: true }));
        let redirect = Some(Session::Redirect { owner: net.other });
        let tables = locals.into_iter().chain([redirect, None]);
        let owner = |locator| Resolution::Owner { locator, version: Version(9) };
        let resolutions = [
            owner(net.me),
            owner(net.other),
            owner(net.stranger),
            Resolution::NotFound,
            Resolution::TimedOut,
        ];
        for table in tables {
            for resolution in resolutions {
                let mut bench = Bench::new(net);
                let flow = net.flow(4000);
                if let Some(session) = table {
                    let at = bench.table.locate_flow(&flow).unwrap();
                    let inserted = bench.table.insert(&at, session, bench.now.tick());
                    assert!(matches!(inserted, Insert::Inserted(_)));
                }
                let len = if net.me.is_ipv4() { 24 } else { 64 };
                let members = ipnet::IpNet::new(net.me, len).unwrap();
                let is_member = |locator| members.contains(&locator);
                let foretold = fate(table.as_ref(), &resolution, net.me, is_member);

                bench.uplink_brings(&net.client_segment(4000, ACK, b"data"));
                // Nobody is found twice before the host is told.
                for _ in 0..2 {
                    if bench.asks().is_some() {
                        bench.core_answers(flow, resolution);
                    }
                    bench.pass_ms(40);
                }
                let to_host = bench.host_gets().is_some();
                let tunnelled = bench.uplink_gets().map(|frame| inside(&frame).1);
                let done = match (to_host, tunnelled) {
                    (true, None) => Fate::Host,
                    (false, Some(to)) => Fate::Tunnel(to),
                    (false, None) => {
                        let drops = Counter::ALL.iter().filter(|counter| counter.is_drop());
                        let mut counted = drops.filter(|counter| bench.count(**counter) > 0);
                        Fate::Drop(*counted.next().unwrap())
                    }
                    (true, Some(_)) => panic!("both"),
                };
                assert_eq!(done, foretold, "{table:?} {resolution:?}");
            }
        }
    }
}

#[test]
fn gauges_follow_what_waits() {
    let net = nets()[0];
    let mut bench = Bench::new(net);
    let gauge = |bench: &Bench, gauge| bench.counters.gauge(gauge);
    for port in [4000, 4000, 4001] {
        bench.uplink_brings(&net.client_segment(port, ACK, b"data"));
    }
    bench.pass_ms(2);
    assert_eq!(gauge(&bench, Gauge::Parked), 3);
    assert_eq!(gauge(&bench, Gauge::ResolvesQueued), 2);
    // Tokens come back meanwhile.
    assert!(gauge(&bench, Gauge::AdmissionUsed) <= 2);
    assert_eq!(gauge(&bench, Gauge::AnnouncementsQueued), 0);
    while let Some(flow) = bench.asks() {
        bench.core_answers(flow, Resolution::TimedOut);
    }
    bench.pass_ms(200);
    assert_eq!(gauge(&bench, Gauge::Parked), 0);
    assert_eq!(gauge(&bench, Gauge::ResolvesQueued), 0);
    assert_eq!(gauge(&bench, Gauge::AdmissionUsed), 0);
    bench.open(4002);
    bench.pass_ms(2);
    let queued = gauge(&bench, Gauge::AnnouncementsQueued);
    let mut announced = 0;
    while bench.announces().is_some() {
        announced += 1;
    }
    assert!(queued >= announced, "{queued} {announced}");
}
