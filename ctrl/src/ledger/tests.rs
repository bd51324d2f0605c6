//! The ledger against workers' reports, by a clock that the tests turn.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;

pub const LIMITS: Limits = Limits { flows: 3, window_us: 1_000_000, quiet_us: 10_000_000 };
const MS: u64 = 1000;
const SECOND: u64 = 1_000_000;
/// When the daemon's clock stood at 0.
const EPOCH: u64 = 1_700_000_000_000_000;

pub fn flow(n: u16) -> FlowKey {
    FlowKey::tcp_v4([20, 1, (n >> 8) as u8, n as u8], 1234, [192, 168, 0, 1], 80)
}

fn locator(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

fn report(flow: FlowKey, came_us: u64, waited_us: u64, lost: u32, fate: StrayFate) -> StrayReport {
    StrayReport { flow, came_us, waited_us, lookup_us: Some(waited_us), lost, fate }
}

/// Tunnelled to 10.0.0.2.
pub fn saved(flow: FlowKey, came_us: u64, waited_us: u64) -> StrayReport {
    report(flow, came_us, waited_us, 0, StrayFate::Tunnelled { owner: locator(2) })
}

fn nobodys(flow: FlowKey, came_us: u64) -> StrayReport {
    report(flow, came_us, 0, 0, StrayFate::Nobody { given_up: None })
}

fn reset(flow: FlowKey, came_us: u64) -> StrayReport {
    StrayReport { lookup_us: None, ..report(flow, came_us, 0, 0, StrayFate::Reset) }
}

fn dropped(flow: FlowKey, came_us: u64, loss: StrayLoss) -> StrayReport {
    report(flow, came_us, 0, 1, StrayFate::Dropped(loss))
}

/// An incident with this id and something in every list.
pub fn incident(id: u64) -> Incident {
    let mut bench = Bench::new();
    bench.ledger.next_id = id;
    bench.burst(SECOND);
    bench.ledger.take(&dropped(flow(3), SECOND, StrayLoss::RefusedSource));
    let cause = cause(CauseKind::PeerLeft, Some(9), SECOND - 20 * MS);
    bench.ledger.learn(at(2 * SECOND), &[cause]);
    bench.closed_at(20 * SECOND).unwrap()
}

fn cause(kind: CauseKind, n: Option<u8>, at_us: u64) -> Cause {
    Cause { kind, locator: n.map(locator), at_unix_us: Some(EPOCH + at_us) }
}

fn at(us: u64) -> Moment {
    Moment { us, unix_us: EPOCH + us }
}

struct Bench {
    ledger: Ledger,
    /// What the session table says.
    table: Arc<Mutex<HashMap<FlowKey, Place>>>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(LIMITS)
    }

    fn with(limits: Limits) -> Bench {
        let table = Arc::<Mutex<HashMap<FlowKey, Place>>>::default();
        let looked_at = Arc::clone(&table);
        let find = move |flow: &FlowKey| {
            looked_at.lock().unwrap().get(flow).copied().unwrap_or(Place::Nowhere)
        };
        Bench { ledger: Ledger::new(limits, 1, Box::new(find)), table }
    }

    fn put(&self, flow: FlowKey, place: Place) {
        self.table.lock().unwrap().insert(flow, place);
    }

    /// As many new flows as open an incident.
    fn burst(&mut self, us: u64) {
        for n in 0..LIMITS.flows as u16 {
            self.ledger.take(&saved(flow(n), us, 500));
        }
    }

    fn open(&self, us: u64) -> Option<Incident> {
        self.ledger.open_incident(at(us))
    }

    /// A turn as the thread makes it.
    fn closed_at(&mut self, us: u64) -> Option<Incident> {
        // Resets wait for a turn.
        self.ledger.advance(at(us), 0);
        self.ledger.advance(at(us), 0);
        self.ledger.close(at(us))
    }
}

#[test]
fn opens_with_many_new_flows_at_once_and_closes_when_nothing_comes() {
    let mut bench = Bench::new();
    for n in 0..2 {
        bench.ledger.take(&saved(flow(n), 5 * SECOND, 700));
    }
    // One of them again: no new flow.
    bench.ledger.take(&saved(flow(1), 5 * SECOND + 500 * MS, 700));
    assert_eq!(bench.open(6 * SECOND), None);
    bench.ledger.take(&saved(flow(2), 6 * SECOND, 900));
    let open = bench.open(6 * SECOND + MS).unwrap();
    assert_eq!((open.id, open.state), (1, IncidentState::Open));
    assert_eq!(
        (open.began_unix_us, open.ended_unix_us),
        (EPOCH + 5 * SECOND, EPOCH + 6 * SECOND + 900)
    );
    assert_eq!((open.sessions.at_risk, open.sessions.saved), (3, 3));
    assert_eq!(open.owners, [OwnerCount { locator: locator(2), sessions: 3 }]);
    assert_eq!((open.forward_time_us.count, open.forward_time_us.min), (3, 700));

    bench.ledger.take(&saved(flow(7), 9 * SECOND, 0));
    assert_eq!(bench.closed_at(19 * SECOND - 1), None);
    let closed = bench.closed_at(19 * SECOND).unwrap();
    assert_eq!((closed.state, closed.sessions.saved), (IncidentState::Closed, 4));
    assert_eq!(closed.ended_unix_us, EPOCH + 9 * SECOND);
    assert_eq!(bench.closed_at(20 * SECOND), None, "once");
    let stats = bench.ledger.stats();
    assert_eq!((stats.counters["incidents"], stats.sessions.saved), (1, 4));
    assert_eq!(stats.counters["sessions_outside"], 0);
}

#[test]
fn a_trickle_of_strays_is_no_incident() {
    let mut bench = Bench::new();
    for n in 0..50 {
        bench.ledger.take(&saved(flow(n), u64::from(n) * 600 * MS, 500));
        bench.ledger.advance(at(u64::from(n) * 600 * MS + MS), 0);
        assert_eq!(bench.open(u64::from(n) * 600 * MS), None);
    }
    bench.ledger.advance(at(60 * SECOND), 0);
    let stats = bench.ledger.stats();
    assert_eq!((stats.counters["incidents"], stats.counters["sessions_outside"]), (0, 50));
    assert_eq!((stats.sessions.at_risk, stats.sessions.saved), (50, 50), "but counted");
}

#[test]
fn what_came_before_the_burst_is_no_part_of_it() {
    let mut bench = Bench::new();
    bench.ledger.take(&dropped(flow(100), SECOND, StrayLoss::TimedOut));
    bench.burst(5 * SECOND);
    let open = bench.open(5 * SECOND).unwrap();
    assert_eq!((open.sessions.at_risk, open.sessions.dropped), (3, 0));
    assert_eq!(open.began_unix_us, EPOCH + 5 * SECOND);
    assert_eq!(bench.ledger.stats().open.unwrap().at_risk, 3);
    // It goes on, and the incident does not for that.
    bench.ledger.take(&saved(flow(100), 12 * SECOND, 500));
    let closed = bench.closed_at(15 * SECOND + 500).unwrap();
    assert_eq!(closed.sessions.at_risk, 3);
    let stats = bench.ledger.stats();
    assert_eq!((stats.counters["sessions_outside"], stats.sessions.saved), (1, 4));
}

#[test]
fn each_outcome_counts_once_with_its_reason() {
    let mut bench = Bench::new();
    let (other, given_up) = (locator(4), Some(locator(5)));
    let rows = [
        saved(flow(0), SECOND, 500),
        report(flow(1), SECOND, 600, 2, StrayFate::Tunnelled { owner: other }),
        report(flow(2), SECOND, 0, 0, StrayFate::Kept),
        nobodys(flow(3), SECOND),
        report(flow(4), SECOND, 0, 0, StrayFate::Nobody { given_up }),
        nobodys(flow(5), SECOND),
        dropped(flow(6), SECOND, StrayLoss::OwnerDead(other)),
        dropped(flow(7), SECOND, StrayLoss::RefusedSource),
        dropped(flow(8), SECOND, StrayLoss::ParkingFull),
    ];
    rows.iter().for_each(|report| bench.ledger.take(report));
    for n in [3, 4] {
        bench.ledger.take(&reset(flow(n), SECOND + MS));
    }
    let incident = bench.closed_at(20 * SECOND).unwrap();
    let expected =
        SessionCounts { at_risk: 9, saved: 2, kept: 1, reset: 2, dropped: 3, unanswered: 1 };
    assert_eq!(incident.sessions, expected);
    let losses = ["admission_source", "not_found", "owner_dead", "owner_given_up", "parking_full"];
    assert_eq!(incident.losses, losses.map(|reason| (reason.to_owned(), 1)).into());
    assert_eq!(incident.strays_dropped, 5);
    let owners = [(2, 1), (4, 1)].map(|(n, sessions)| OwnerCount { locator: locator(n), sessions });
    assert_eq!(incident.owners, owners);
    let lost: Vec<_> =
        incident.lost.iter().map(|lost| (lost.flow, lost.reason, lost.owner)).collect();
    let expected = [
        (flow(3), LossReason::NotFound, None),
        (flow(4), LossReason::OwnerGivenUp, given_up),
        (flow(6), LossReason::OwnerDead, Some(other)),
        (flow(7), LossReason::AdmissionSource, None),
        (flow(8), LossReason::ParkingFull, None),
    ];
    assert_eq!(lost, expected);
    assert_eq!(bench.ledger.stats().losses.values().sum::<u64>(), 5);
}

#[test]
fn what_comes_again_and_is_found_was_not_lost() {
    let mut bench = Bench::new();
    bench.burst(SECOND);
    bench.ledger.take(&dropped(flow(9), SECOND, StrayLoss::TimedOut));
    assert_eq!(bench.open(SECOND).unwrap().sessions.dropped, 1);
    bench.ledger.take(&saved(flow(9), SECOND + 400 * MS, 2 * MS));
    let incident = bench.closed_at(20 * SECOND).unwrap();
    assert_eq!((incident.sessions.saved, incident.sessions.dropped), (4, 0));
    // From its first stray on.
    assert!((402 * MS..=406 * MS).contains(&incident.forward_time_us.max));
    assert_eq!(incident.strays_dropped, 1);
    assert_eq!(incident.lost, []);
}

#[test]
fn a_reset_counts_for_what_was_given_to_the_host_alone() {
    let mut bench = Bench::new();
    bench.burst(SECOND);
    bench.ledger.take(&reset(flow(0), SECOND));
    bench.ledger.take(&reset(flow(99), SECOND));
    let open = bench.open(2 * SECOND).unwrap();
    assert_eq!((open.sessions.at_risk, open.sessions.reset), (3, 0));
    // Another worker was the first to tell.
    bench.ledger.take(&reset(flow(5), 2 * SECOND));
    bench.ledger.advance(at(2 * SECOND), 0);
    bench.ledger.take(&nobodys(flow(5), 2 * SECOND - MS));
    bench.ledger.advance(at(2 * SECOND), 0);
    assert_eq!(bench.open(2 * SECOND).unwrap().sessions.reset, 1);
}

#[test]
fn the_last_strays_of_what_the_client_has_ended_are_no_sessions_at_risk() {
    let ended =
        |flow, us| StrayReport { lookup_us: None, ..report(flow, us, 0, 0, StrayFate::Ended) };
    let mut bench = Bench::new();
    bench.burst(SECOND);
    assert!(bench.closed_at(20 * SECOND).is_some());
    // All of them end at once, and repeat their last segment.
    for n in 0..LIMITS.flows as u16 {
        bench.ledger.take(&ended(flow(n), 30 * SECOND));
    }
    bench.burst(30 * SECOND + 20);
    bench.ledger.take(&nobodys(flow(0), 31 * SECOND));
    bench.ledger.take(&reset(flow(0), 31 * SECOND));
    bench.ledger.advance(at(32 * SECOND), 0);
    assert_eq!(bench.open(32 * SECOND), None);
    let stats = bench.ledger.stats();
    assert_eq!((stats.sessions.at_risk, stats.counters["reports_after_end"]), (3, 4));
    // The flows are used again.
    bench.ledger.advance(at(61 * SECOND), 0);
    assert!(bench.ledger.ended.is_empty());
    bench.burst(61 * SECOND);
    assert_eq!(bench.open(61 * SECOND).unwrap().sessions.saved, 3);
}

#[test]
fn what_strayed_before_its_end_was_at_risk() {
    let mut bench = Bench::new();
    for n in 0..3 {
        let ended = StrayReport {
            lookup_us: None,
            ..report(flow(n), SECOND + 900, 0, 0, StrayFate::Ended)
        };
        bench.ledger.take(&ended);
    }
    bench.burst(SECOND);
    assert_eq!(bench.open(SECOND).unwrap().sessions.saved, 3);
}

#[test]
fn the_session_table_says_what_came_of_the_doubtful() {
    let mut bench = Bench::new();
    for n in 0..2 {
        bench.ledger.take(&report(
            flow(n),
            SECOND,
            0,
            1,
            StrayFate::Redirected { owner: locator(2) },
        ));
        bench.ledger.take(&nobodys(flow(10 + n), SECOND));
    }
    bench.put(flow(0), Place::Redirected);
    bench.put(flow(10), Place::Local);
    assert_eq!(bench.open(SECOND).unwrap().sessions.saved, 2);
    let incident = bench.closed_at(20 * SECOND).unwrap();
    let expected =
        SessionCounts { at_risk: 4, saved: 1, kept: 1, reset: 0, dropped: 1, unanswered: 1 };
    assert_eq!(incident.sessions, expected);
    assert_eq!(incident.losses, [("not_sent".to_owned(), 1)].into());
    assert_eq!(incident.forward_time_us.count, 0, "nothing was seen to go");
}

#[test]
fn causes_are_what_happened_in_the_last_minutes() {
    let mut bench = Bench::new();
    assert!(!bench.ledger.wants_causes(at(SECOND)));
    let began = 1000 * SECOND;
    bench.burst(began);
    assert!(bench.ledger.wants_causes(at(began + MS)));
    let causes = [
        cause(CauseKind::PeerLeft, Some(7), began - 40 * MS),
        cause(CauseKind::PeerStarted, Some(8), began - 31 * SECOND),
        cause(CauseKind::UplinkUp, None, began - 30 * SECOND),
        cause(CauseKind::PeerDied, Some(6), began - 170 * SECOND),
        cause(CauseKind::PeerDied, Some(5), began - 181 * SECOND),
    ];
    bench.ledger.learn(at(began + MS), &causes);
    assert!(!bench.ledger.wants_causes(at(began + MS)), "not at once again");
    assert!(bench.ledger.wants_causes(at(began + 6 * SECOND)));
    // The clocks were read a little later.
    let again = [
        cause(CauseKind::PeerLeft, Some(7), began - 40 * MS + 3),
        cause(CauseKind::PeerDied, Some(9), began + SECOND),
    ];
    bench.ledger.learn(at(began + 6 * SECOND), &again);
    assert!(bench.ledger.wants_causes(at(began + 10 * SECOND + MS)), "a last time");
    let incident = bench.closed_at(began + 20 * SECOND).unwrap();
    assert_eq!(incident.causes, [causes[3], causes[2], causes[0], again[1]]);
    assert_eq!(incident.detection_time_us, Some(40 * MS));
    assert_eq!(bench.ledger.stats().detection_time_us.count, 1);
}

#[test]
fn without_another_cause_the_network_changed_a_path() {
    let mut bench = Bench::new();
    bench.burst(SECOND);
    let incident = bench.closed_at(20 * SECOND).unwrap();
    let path_change = Cause { kind: CauseKind::PathChange, locator: None, at_unix_us: None };
    assert_eq!((incident.causes, incident.detection_time_us), (vec![path_change], None));
}

#[test]
fn an_incident_that_does_not_end_is_cut_and_the_next_one_opens() {
    let mut bench = Bench::new();
    let mut ends = Vec::new();
    for second in 1..4000 {
        for n in 0..3 {
            let stray = flow((second * 3 + n) as u16);
            bench.ledger.take(&saved(stray, second * SECOND, 500));
        }
        ends.extend(bench.closed_at(second * SECOND + MS));
    }
    assert_eq!(ends.len(), 1);
    assert_eq!((ends[0].state, ends[0].id), (IncidentState::TooLong, 1));
    assert_eq!(bench.open(4000 * SECOND).unwrap().id, 2);
    let stopped = bench.ledger.stop(at(4000 * SECOND)).unwrap();
    assert_eq!(stopped.state, IncidentState::Stopped);
}

#[test]
fn a_flood_is_bounded_and_what_is_left_out_is_counted() {
    let mut bench = Bench::new();
    let more = 1000;
    let flows = (0..FLOWS_MAX as u32 + more).map(|n| {
        let [a, b, c, d] = n.to_be_bytes();
        FlowKey::tcp_v4([20, b, c, d], 1000 + u16::from(a), [192, 168, 0, 1], 80)
    });
    for flow in flows {
        bench.ledger.take(&dropped(flow, SECOND, StrayLoss::RefusedWorker));
    }
    bench.ledger.advance(at(2 * SECOND), 77);
    let incident = bench.open(2 * SECOND).unwrap();
    assert_eq!(incident.sessions.at_risk, FLOWS_MAX as u64);
    assert_eq!((incident.reports_untracked, incident.reports_missed), (u64::from(more), 77));
    assert_eq!(incident.lost.len(), LOST_MAX);
    let closed = bench.closed_at(20 * SECOND).unwrap();
    assert_eq!(closed.losses["admission_worker"], FLOWS_MAX as u64);
    assert!(bench.ledger.flows.is_empty());
}

#[test]
fn many_owners_are_added_up() {
    let mut bench = Bench::new();
    for n in 0..40 {
        // The first of them has most.
        let owner = locator(if n < 10 { 1 } else { n as u8 });
        bench.ledger.take(&report(flow(n), SECOND, 500, 0, StrayFate::Tunnelled { owner }));
    }
    let incident = bench.open(SECOND).unwrap();
    assert_eq!(incident.owners.len(), OWNERS_MAX);
    assert_eq!(incident.owners[0], OwnerCount { locator: locator(1), sessions: 10 });
    assert_eq!(incident.sessions_of_other_owners, 40 - 10 - 15);
}

#[test]
fn an_incident_goes_through_json_unchanged() {
    let incident = incident(7);
    let text = serde_json::to_string(&incident).unwrap();
    assert_eq!(serde_json::from_str::<Incident>(&text).unwrap(), incident);
}

/// What one flow went through.
#[derive(Debug, Clone)]
struct Life {
    came_us: u64,
    fates: Vec<u8>,
    is_in_table: bool,
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let life = (0..40 * SECOND, prop::collection::vec(0..8u8, 1..4), any::<bool>());
    let life = life.prop_map(|(came_us, fates, is_in_table)| Life { came_us, fates, is_in_table });
    prop::collection::vec(life, 0..60)
}

proptest! {
    /// Whatever comes, each session counts once, in one incident or outside of all.
    #[test]
    fn every_session_counts_once(lives in lives()) {
        let mut reports = Vec::new();
        for (n, life) in lives.iter().enumerate() {
            let flow = flow(n as u16);
            for (again, fate) in life.fates.iter().enumerate() {
                // Sooner than it is forgotten.
                let us = life.came_us + again as u64 * SECOND;
                reports.push((us, match fate {
                    0 => saved(flow, us, 500),
                    1 => report(flow, us, 500, 1, StrayFate::Redirected { owner: locator(3) }),
                    2 => report(flow, us, 500, 0, StrayFate::Kept),
                    3 => nobodys(flow, us),
                    4 => dropped(flow, us, StrayLoss::TimedOut),
                    5 => dropped(flow, us, StrayLoss::RingFull),
                    6 => report(flow, us, 9, 0, StrayFate::Nobody { given_up: Some(locator(4)) }),
                    _ => reset(flow, us),
                }));
            }
        }
        reports.sort_by_key(|(us, _)| *us);
        let mut bench = Bench::new();
        for (n, life) in lives.iter().enumerate() {
            if life.is_in_table {
                let place = if n % 2 == 0 { Place::Local } else { Place::Redirected };
                bench.put(flow(n as u16), place);
            }
        }
        let closed = Rc::new(RefCell::new(Vec::<Incident>::new()));
        let mut next = reports.iter().peekable();
        for tenth in 0..800u64 {
            let now_us = tenth * SECOND / 10;
            while let Some((_, report)) = next.next_if(|(us, _)| *us <= now_us) {
                bench.ledger.take(report);
            }
            bench.ledger.advance(at(now_us), 0);
            closed.borrow_mut().extend(bench.ledger.close(at(now_us)));
        }
        let stats = bench.ledger.stats();
        let sum: u64 = stats.sessions.outcomes().iter().map(|(_, count)| count).sum();
        prop_assert_eq!(sum, stats.sessions.at_risk);
        prop_assert_eq!(stats.losses.values().sum::<u64>(), stats.sessions.lost());
        let inside: u64 = closed.borrow().iter().map(|incident| incident.sessions.at_risk).sum();
        prop_assert_eq!(inside + stats.counters["sessions_outside"], stats.sessions.at_risk);
        // A reset alone is of no session that we know.
        let known = lives.iter().filter(|life| life.fates.iter().any(|fate| *fate < 7)).count();
        prop_assert_eq!(stats.sessions.at_risk, known as u64);
        for incident in closed.borrow().iter() {
            prop_assert!(incident.sessions.at_risk >= LIMITS.flows as u64);
            prop_assert_eq!(incident.losses.values().sum::<u64>(), incident.sessions.lost());
            prop_assert_eq!(incident.lost.len() as u64, incident.sessions.lost());
        }
    }
}
