#![allow(clippy::unwrap_used)]
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const KEY: HashKey = HashKey([1, 2]);
const TIMEOUTS: Timeouts = Timeouts {
    half_open_ms: 10_000,
    established_ms: 3_600_000,
    linger_ms: 5_000,
    redirect_ms: 60_000,
};
const NOW: Tick = Tick(7);

fn table(capacity: usize) -> SessionTable {
    let sockets = ["192.168.0.1:80", "[909:909:909:909:909:909:909:909]:80"];
    let services = Services::new(sockets.map(|s| s.parse::<SocketAddr>().unwrap())).unwrap();
    SessionTable::new(services, capacity, &TIMEOUTS, KEY).unwrap()
}

/// Flows of both families, by turns.
fn flow(number: u32) -> FlowKey {
    if number.is_multiple_of(2) { v4(number) } else { v6(number) }
}

fn v4(number: u32) -> FlowKey {
    FlowKey::tcp_v4(number.to_be_bytes(), 1000, [192, 168, 0, 1], 80)
}

fn v6(number: u32) -> FlowKey {
    let mut client = [0; 16];
    client[12..].copy_from_slice(&number.to_be_bytes());
    FlowKey::tcp_v6(client, 1000, [9; 16], 80)
}

fn at(table: &SessionTable, flow: &FlowKey) -> Located {
    table.locate_flow(flow).unwrap()
}

fn local(state: State, version: u64) -> Session {
    Session::Local { state, version: Version(version), published: false }
}

fn redirect(owner: u8) -> Session {
    Session::Redirect { owner: IpAddr::from([10, 0, 0, owner]) }
}

fn inserted(outcome: &Insert) -> bool {
    matches!(outcome, Insert::Inserted(_))
}

fn session(table: &SessionTable, flow: &FlowKey) -> Option<Session> {
    table.lookup(flow, NOW).map(|found| found.session)
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u32, Session),
    Replace(u32, Session),
    Remove(u32),
    Transition(u32, State),
    Publish(u32),
    Touch(u32, u32),
}

fn any_session() -> impl Strategy<Value = Session> {
    prop_oneof![
        (prop::sample::select(&State::ALL[..]), any::<u64>()).prop_map(|(s, v)| local(s, v)),
        any::<u8>().prop_map(redirect),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let number = 0u32..48;
    prop_oneof![
        3 => (number.clone(), any_session()).prop_map(|(n, s)| Op::Insert(n, s)),
        1 => (number.clone(), any_session()).prop_map(|(n, s)| Op::Replace(n, s)),
        2 => number.clone().prop_map(Op::Remove),
        1 => (number.clone(), prop::sample::select(&State::ALL[..])).prop_map(|(n, s)| Op::Transition(n, s)),
        1 => number.clone().prop_map(Op::Publish),
        1 => (number, 0u32..1000).prop_map(|(n, t)| Op::Touch(n, t)),
    ]
}

proptest! {
    /// The table does what a `HashMap` of bounded size does.
    #[test]
    fn behaves_like_a_map(ops in proptest::collection::vec(op(), 0..300)) {
        const CAPACITY: usize = 32;
        let table = table(CAPACITY);
        let mut model: HashMap<u32, Session> = HashMap::new();
        for op in ops {
            let (Op::Insert(n, _) | Op::Replace(n, _) | Op::Remove(n) | Op::Transition(n, _)
                | Op::Publish(n) | Op::Touch(n, _)) = op;
            let place = at(&table, &flow(n));
            let found = table.find(&place);
            prop_assert_eq!(found.is_some(), model.contains_key(&n));
            match (op, found) {
                (Op::Insert(_, session), Some(entry)) => {
                    prop_assert_eq!(table.insert(&place, session, NOW), Insert::Exists(entry));
                }
                (Op::Insert(_, session), None) => {
                    let room = model.len() < CAPACITY;
                    let outcome = table.insert(&place, session, NOW);
                    prop_assert_eq!(inserted(&outcome), room);
                    prop_assert_eq!(outcome == Insert::Full, !room);
                    if room { model.insert(n, session); }
                }
                (Op::Replace(_, session), Some(entry)) => {
                    prop_assert!(table.replace(&entry, session, NOW).is_some());
                    model.insert(n, session);
                }
                (Op::Remove(_), Some(entry)) => {
                    prop_assert!(table.remove(&entry));
                    prop_assert!(!table.remove(&entry), "the old entry is dead");
                    prop_assert!(table.replace(&entry, redirect(1), NOW).is_none());
                    prop_assert!(table.transition(&entry, State::Closed, NOW).is_none());
                    prop_assert_eq!(table.version(&entry), None);
                    model.remove(&n);
                }
                (Op::Transition(_, to), Some(entry)) => {
                    if let Some(Session::Local { state, .. }) = model.get_mut(&n) {
                        prop_assert!(table.transition(&entry, to, NOW).is_some());
                        *state = to;
                    }
                }
                (Op::Publish(_), Some(entry)) => {
                    table.set_published(&entry);
                    if let Some(Session::Local { published, .. }) = model.get_mut(&n) {
                        *published = true;
                    }
                }
                (Op::Touch(_, tick), Some(entry)) => table.touch(&entry, Tick(tick)),
                (_, None) => {}
            }
            prop_assert_eq!(session(&table, &flow(n)), model.get(&n).copied());
        }
        for count in [0, 1, 31, 32, 33, 48, 100, 128] {
            for first in 0..2 {
                let numbers: Vec<u32> = (first..first + count).map(|n| n % 48).collect();
                let key = |n: &u32| table.services().key(&flow(*n)).unwrap();
                let keys: Vec<_> = numbers.iter().map(key).collect();
                let mut next = 0;
                table.find_all(&keys, |index, found| {
                    assert_eq!(index, next);
                    next += 1;
                    let view = found.and_then(|entry| table.view(&entry, NOW));
                    assert_eq!(view.map(|f| f.session), model.get(&numbers[index]).copied());
                });
                prop_assert_eq!(next, keys.len());
            }
        }
        let mut listed = HashMap::new();
        for bucket in 0..table.buckets() {
            table.visit(bucket, |entry| {
                let entry = table.listed(&entry, NOW).unwrap();
                assert_eq!(listed.insert(entry.flow, entry.session), None);
            });
        }
        let expected: HashMap<_, _> = model.iter().map(|(n, s)| (flow(*n), *s)).collect();
        prop_assert_eq!(listed, expected);
        let count = |wanted: fn(&Session) -> bool| model.values().filter(|s| wanted(s)).count() as u64;
        let gauges = table.gauges();
        prop_assert_eq!(gauges.redirects, count(|s| matches!(s, Session::Redirect { .. })));
        prop_assert_eq!(gauges.local, count(|s| matches!(s, Session::Local { .. })));
        prop_assert_eq!(gauges.lingering, count(|s| matches!(s, Session::Local { state, .. } if state.is_lingering())));
        prop_assert_eq!(gauges.half_open, count(|s| matches!(s, Session::Local { state: State::HalfOpen, .. })));
    }

    /// Located flows, and entries, give their flow back.
    #[test]
    fn flows_survive(client in any::<[u8; 4]>(), client6 in any::<[u8; 16]>(), port in any::<u16>(), capacity in 1usize..1 << 20) {
        let table = table(capacity);
        for flow in [
            FlowKey::tcp_v4(client, port, [192, 168, 0, 1], 80),
            FlowKey::tcp_v6(client6, port, [9; 16], 80),
        ] {
            let at = at(&table, &flow);
            prop_assert_eq!(table.flow(&at), Some(flow));
            // One of the two where only one has room.
            if let Insert::Inserted(entry) = table.insert(&at, redirect(1), NOW) {
                prop_assert_eq!(table.listed(&entry, NOW).map(|listed| listed.flow), Some(flow));
            }
        }
    }
}

/// Every entry can be used before the first refusal.
#[test]
fn fills_to_its_capacity() {
    let table = table(10_000);
    for n in 0..10_000 {
        let outcome = table.insert(&at(&table, &flow(n)), local(State::Established, 1), NOW);
        assert!(inserted(&outcome), "{n}");
    }
    let outcome = table.insert(&at(&table, &flow(10_000)), redirect(1), NOW);
    assert_eq!(outcome, Insert::Full);
    assert_eq!(table.gauges().local, 10_000);
    assert!(table.remove(&table.find(&at(&table, &flow(3))).unwrap()));
    assert!(inserted(&table.insert(&at(&table, &flow(10_000)), redirect(1), NOW)));
}

/// No flow is refused for want of a slot near its bucket below a load of 0.8, whether clients
/// are random, in sequence or one client with all its ports; and all entries are found, the
/// counters of what passes by and the gauges are right again when they have gone.
#[test]
fn takes_a_load_of_four_fifths() {
    const BUCKETS: usize = 1 << 17;
    let scattered = |n: u32| {
        FlowKey::tcp_v4(n.wrapping_mul(0x9e37_79b1).to_be_bytes(), n as u16, [192, 168, 0, 1], 80)
    };
    let ports = |n: u32| {
        FlowKey::tcp_v4((n >> 16 | 0x1401_0000).to_be_bytes(), n as u16, [192, 168, 0, 1], 80)
    };
    // Buckets of two slots overflow more often than those of seven.
    for (slots, displaced_max, flow) in [
        (7, 0.12, &v4 as &dyn Fn(u32) -> FlowKey),
        (7, 0.12, &scattered),
        (7, 0.12, &ports),
        (2, 0.30, &v6),
    ] {
        let capacity = BUCKETS * slots * 80 / 100;
        let services = Services::new([flow(0).service()]).unwrap();
        let table = SessionTable::with_load(services, capacity, &TIMEOUTS, KEY, (80, 80)).unwrap();
        let all = 0..capacity as u32;
        for n in all.clone() {
            let outcome = table.insert(&at(&table, &flow(n)), local(State::Established, 1), NOW);
            assert!(inserted(&outcome), "{slots} slots: {n} of {capacity}");
        }
        let displaced = table.gauges().displaced as f64 / capacity as f64;
        assert!(displaced < displaced_max, "{slots} slots: {displaced}");
        for n in all {
            let entry = table.find(&at(&table, &flow(n))).unwrap();
            assert!(table.remove(&entry));
        }
        assert_eq!(table.gauges(), Gauges { capacity: capacity as u64, ..Gauges::default() });
        let mut lines = table.v4.lines.iter().chain(&*table.v6.lines);
        assert!(lines.all(|line| line.0[0].load(Ordering::Relaxed) == 0));
    }
}

/// Flows that an attacker picks without knowing the key spread like any others: every
/// arithmetic pattern of addresses and ports, under several keys.
#[test]
fn patterns_of_flows_spread() {
    for key in 0..8 {
        let services = Services::new(["192.168.0.1:80".parse().unwrap()]).unwrap();
        for stride in [1, 3, 256, 257, 65_536, 0x0100_0001] {
            let table =
                SessionTable::new(services.clone(), 50_000, &TIMEOUTS, HashKey([key, 7])).unwrap();
            for n in 0..50_000u32 {
                let client = n.wrapping_mul(stride).to_be_bytes();
                let flow = FlowKey::tcp_v4(client, 443, [192, 168, 0, 1], 80);
                assert!(inserted(&table.insert(&at(&table, &flow), redirect(1), NOW)));
            }
            // 0.11 entries a slot: with a random hash about one in 10^6 is displaced.
            let displaced = table.gauges().displaced;
            assert!(displaced < 50, "key {key}, stride {stride}: {displaced}");
        }
    }
}

#[test]
fn idle_entries_are_due_and_touched_ones_are_not() {
    for flow in [v4(1), v6(1)] {
        let table = table(16);
        let place = at(&table, &flow);
        let Insert::Inserted(entry) = table.insert(&place, redirect(1), Tick(0)) else { panic!() };
        assert!(!table.is_due(&entry, Tick(600)), "60 s is its timeout");
        assert!(table.is_due(&entry, Tick(800)));
        table.touch(&entry, Tick(500));
        assert!(!table.remove_idle(&entry), "it has been seen");
        let entry = table.find(&place).unwrap();
        assert!(!table.is_due(&entry, Tick(800)));
        let idle_ms = table.lookup(&flow, Tick(800)).unwrap().idle_ms;
        assert!(idle_ms.abs_diff(30_000) <= 6_400, "{idle_ms}");
        assert!(table.remove_idle(&entry));
        assert_eq!(table.find(&place), None);
    }
}

/// A session's version is never another's: not while it is being made, and not after another has
/// taken its place.
#[test]
fn r12_versions_belong_to_their_session() {
    let table = table(16);
    let place = at(&table, &v4(1));
    let Insert::Inserted(old) = table.insert(&place, local(State::Established, 1), NOW) else {
        panic!()
    };
    assert_eq!(table.version(&old), Some(Version(1)));
    let new = table.replace(&old, local(State::HalfOpen, 2), NOW).unwrap();
    assert_eq!(table.version(&old), None);
    assert_eq!(table.version(&new), Some(Version(2)));
    assert!(!table.remove(&old));
    assert!(table.transition(&old, State::Closed, NOW).is_none());
    assert!(new.is_unpublished());
    table.set_published(&new);
    assert!(table.find(&place).unwrap().is_published());
}

/// Two workers have inserted one flow: whichever of them looks, the later place goes, and its
/// maker, which alone may take it away before its version is there, is told.
fn the_later_of_two_goes<L: Layout>(table: &SessionTable, family: &Family, at: &At<L::Key>) {
    let session = local(State::HalfOpen, 7);
    let claim = || {
        let (entry, _) = family.claim::<L>(at, table.meta(session, NOW).unwrap()).unwrap();
        table.gauge(0, entry.word);
        entry
    };
    let (first, second) = (claim(), claim());
    assert_ne!(first.place, second.place);
    assert_eq!(table.settle::<L>(family, at, second), Some(first), "the later one looks");
    assert_eq!(table.gauges().local, 1);

    let second = claim();
    assert_eq!(table.settle::<L>(family, at, first), None, "the first one looks");
    assert_eq!(table.gauges().local, 2, "only its maker may take it away");
    assert!(!table.remove(&second) && table.replace(&second, session, NOW).is_none());
    assert_eq!(table.complete(second, session), None);
    assert_eq!(table.gauges().local, 1);

    let first = table.complete(first, session).unwrap();
    assert_eq!(table.version(&first), Some(Version(7)));
    assert_eq!(family.find::<L>(at), Some(first));
    // One that is complete goes at once.
    let second = table.complete(claim(), session).unwrap();
    assert_eq!(table.settle::<L>(family, at, first), None);
    assert_eq!((table.gauges().local, table.version(&second)), (1, None));
}

#[test]
fn of_two_entries_of_a_flow_the_later_goes() {
    let table = table(16);
    let AtFamily::V4(place) = at(&table, &v4(1)).0 else { panic!() };
    the_later_of_two_goes::<V4>(&table, &table.v4, &place);
    assert!(table.remove(&table.find(&at(&table, &v4(1))).unwrap()));
    let AtFamily::V6(place) = at(&table, &v6(1)).0 else { panic!() };
    the_later_of_two_goes::<V6>(&table, &table.v6, &place);
}

/// Writers on the same few flows: nothing is ever read that belongs to another flow, and
/// afterwards each flow is there at most once and all books balance. Set
/// `HOLDFAST_STRESS_SECONDS` for a long one.
#[test]
fn writers_at_odds_leave_a_sound_table() {
    let seconds = std::env::var("HOLDFAST_STRESS_SECONDS").ok().and_then(|text| text.parse().ok());
    stress(seconds.map_or(Duration::from_millis(700), Duration::from_secs));
}

fn stress(time: Duration) {
    // So small, and with flows whose homes are so few, that they pass by full buckets.
    let table = &table(60);
    let flows = crowded(table);
    let flows = &flows;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let stop = &stop;
            scope.spawn(move || {
                let mut random = writer + 1;
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let n = (random >> 33) as usize % flows.len();
                    write(table, &flows[n], n as u64, random >> 60);
                }
            });
        }
        let end = Instant::now() + time;
        while Instant::now() < end {
            for (n, flow) in (0u64..).zip(flows) {
                if let Some(session) = session(table, flow) {
                    check(n, &session);
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut seen = HashMap::new();
    for bucket in 0..table.buckets() {
        table.visit(bucket, |entry| {
            let listed = table.listed(&entry, NOW).unwrap();
            *seen.entry(listed.flow).or_insert(0) += 1;
            assert!(table.remove(&entry));
        });
    }
    assert!(seen.values().all(|&times| times == 1), "{seen:?}");
    assert_eq!(table.gauges(), Gauges { capacity: 60, ..Gauges::default() });
    let mut lines = table.v4.lines.iter().chain(&*table.v6.lines);
    let saturated = |word: u64| (0..16).any(|counter| word >> (4 * counter) & 15 == 15);
    assert!(lines.all(|line| {
        let word = line.0[0].load(Ordering::Relaxed);
        word == 0 || saturated(word)
    }));
}

/// 40 flows of IPv4 whose homes are three buckets of 21 slots, and 24 of IPv6 in as many as have
/// 16.
fn crowded(table: &SessionTable) -> Vec<FlowKey> {
    let v4 =
        (0..).map(v4).filter(|flow| matches!(at(table, flow).0, AtFamily::V4(at) if at.home < 3));
    let v6 =
        (0..).map(v6).filter(|flow| matches!(at(table, flow).0, AtFamily::V6(at) if at.home < 8));
    v4.take(40).chain(v6.take(24)).collect()
}

/// The version, and the owner, name the flow, so that a wrong read shows.
fn check(n: u64, session: &Session) {
    match session {
        Session::Local { version: Version(0), .. } => {} // being made
        Session::Local { version, .. } => assert_eq!(version.0, n + 1),
        Session::Redirect { owner } => assert_eq!(*owner, IpAddr::from([10, 0, 0, n as u8])),
    }
}

fn write(table: &SessionTable, flow: &FlowKey, n: u64, what: u64) {
    let place = at(table, flow);
    let session = local(State::Established, n + 1);
    match (what, table.find(&place)) {
        (0..6, _) => {
            table.insert(&place, session, NOW);
        }
        (6..8, _) => {
            table.insert(&place, redirect(n as u8), NOW);
        }
        (8..10, Some(entry)) => {
            let _ = table.replace(&entry, session, NOW);
        }
        (10, Some(entry)) => {
            table.touch(&entry, Tick(n as u32 * 1000));
            table.set_published(&entry);
        }
        (11, Some(entry)) => {
            if let Some(version) = table.version(&entry) {
                assert_eq!(version.0, n + 1);
            }
            if matches!(entry.kind(), Kind::Local(_)) {
                table.transition(&entry, State::HalfOpen, NOW);
            }
        }
        (_, Some(entry)) => {
            table.remove(&entry);
        }
        (_, None) => {}
    }
}
