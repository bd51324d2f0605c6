//! Those who watch the session table are told of every change of a session, and of nothing else.
#![allow(clippy::unwrap_used)]

mod support;

use holdfast_dataplane::kernel::Held;
use holdfast_dataplane::session::State;
use holdfast_dataplane::session::changes::{Change, QUEUE_MAX, Seen, Watcher};
use holdfast_dataplane::session::word::Kind;
use holdfast_dataplane::stats::Counter;
use holdfast_handoff::{Answer, Version};
use support::{ACK, Bench, FIN_ACK, MemKernel, RST, SYN, SYN_ACK, nets, owner};

/// What a watcher sees: what was there, what is there, and whether it went for being idle.
fn seen(watcher: &mut Watcher<'_>) -> Vec<(String, String, bool)> {
    let name = |kind: Option<Kind>| match kind {
        None => "-",
        Some(Kind::Local(state)) => state.name(),
        Some(Kind::Redirect(_)) => "redirect",
    };
    let row = |seen| match seen {
        Seen::Change(Change { before, after, is_idle, .. }) => {
            (name(before).to_owned(), name(after).to_owned(), is_idle)
        }
        Seen::Missed(count) => panic!("{count} missed"),
    };
    watcher.take(usize::MAX).into_iter().map(row).collect()
}

fn rows(rows: &[(&str, &str, bool)]) -> Vec<(String, String, bool)> {
    let row = |(before, after, is_idle): &(&str, &str, bool)| {
        ((*before).to_owned(), (*after).to_owned(), *is_idle)
    };
    rows.iter().map(row).collect()
}

#[test]
fn a_sessions_life_is_told_whole() {
    for net in nets() {
        let mut bench = Bench::new(net);
        let table = bench.table.clone();
        let mut watcher = table.changes().watch();
        bench.uplink_brings(&net.client_segment(4000, SYN, b""));
        bench.host_sends(&net.host_segment(4000, SYN_ACK, b""));
        bench.uplink_brings(&net.client_segment(4000, ACK, b""));
        // Data changes nothing.
        for _ in 0..10 {
            bench.uplink_brings(&net.client_segment(4000, ACK, b"data"));
            bench.host_sends(&net.host_segment(4000, ACK, b"data"));
        }
        bench.uplink_brings(&net.client_segment(4000, FIN_ACK, b""));
        bench.host_sends(&net.host_segment(4000, FIN_ACK, b""));
        let taken = watcher.take(usize::MAX);
        let version = bench.clock.next();
        for seen in &taken {
            let Seen::Change(change) = seen else { panic!("{seen:?}") };
            assert_eq!(change.flow, net.flow(4000));
            assert!(change.version.is_some_and(|found| found < version && found.0 > 1));
            assert!(change.tsc > 0);
        }
        assert_eq!(taken.len(), 4);
        bench.pass_ms(20_000);
        assert_eq!(seen(&mut watcher), rows(&[("closed", "-", true)]));
        assert_eq!(bench.count(Counter::SessionClosed), 1);
    }
}

#[test]
fn redirects_come_and_go_before_those_who_watch() {
    for net in nets() {
        let mut bench = Bench::new(net);
        let table = bench.table.clone();
        let mut watcher = table.changes().watch();
        bench.uplink_brings(&net.client_segment(4000, ACK, b"data"));
        bench.core_answers(net.flow(4000), owner(net.other));
        assert_eq!(seen(&mut watcher), rows(&[("-", "redirect", false)]));
        bench.uplink_brings(&net.client_segment(4000, RST, b""));
        assert_eq!(seen(&mut watcher), rows(&[("redirect", "-", false)]));
        // A session of ours that a later one at another server takes the place of (R12).
        bench.uplink_gets_all();
        bench.host_gets_all();
        let version = bench.open(4001);
        seen(&mut watcher);
        let later = Version(version.0 + 1);
        let flow = net.flow(4001);
        bench.core_says(Answer::Superseded { flow, version: later, owner: net.other });
        assert_eq!(seen(&mut watcher), rows(&[("established", "redirect", false)]));
        bench.skip_ms(120_000);
        bench.pass_ms(5000);
        assert_eq!(seen(&mut watcher), rows(&[("redirect", "-", true)]));
    }
}

#[test]
fn what_the_kernel_check_finds_is_told_too() {
    let net = nets()[0];
    let mut bench = Bench::new(net);
    let table = bench.table.clone();
    let mut watcher = table.changes().watch();
    let mut kernel = MemKernel::with(net.flow(4000), Held::Session(State::Established));
    bench.check(&mut kernel);
    assert_eq!(seen(&mut watcher), rows(&[("-", "established", false)]));
    kernel.sockets.clear();
    for _ in 0..3 {
        bench.check(&mut kernel);
    }
    assert_eq!(seen(&mut watcher), rows(&[("established", "closed", false)]));
}

#[test]
fn a_flood_is_counted_and_stops_no_worker() {
    let net = nets()[0];
    let mut bench = Bench::new(net);
    let table = bench.table.clone();
    let mut watcher = table.changes().watch();
    bench.uplink_brings(&net.client_segment(4000, ACK, b"data"));
    bench.core_answers(net.flow(4000), owner(net.other));
    let at = table.locate_flow(&net.flow(4001)).unwrap();
    let session = bench.session(4000).unwrap();
    for _ in 0..QUEUE_MAX {
        table.insert(&at, session, bench.now.tick());
        table.remove(&table.find(&at).unwrap());
    }
    let (waiting, capacity, lost) = table.changes().usage();
    assert_eq!((waiting, capacity), (QUEUE_MAX, QUEUE_MAX));
    assert_eq!(lost, QUEUE_MAX as u64 + 1);
    let taken = watcher.take(usize::MAX);
    assert_eq!(taken.last(), Some(&Seen::Missed(lost)));
    assert_eq!(taken.len(), QUEUE_MAX + 1);
    drop(watcher);
    table.insert(&at, session, bench.now.tick());
    assert_eq!(table.changes().usage().0, 0, "nobody watches");
}
