//! What is explained of flows in all states: the verdict, and the rules that it names.
#![allow(clippy::unwrap_used)]

use super::*;
use holdfast_dht::{Claim, Id, Outcome};

const CONFIG: &str = "[node]\nlocator = \"10.0.0.1\"\n[uplink]\ndevice = \"eth1\"\n[[service]]\n\
     address = \"192.168.0.1\"\nports = [80]\n[cluster]\nmembers = [\"10.0.0.0/24\"]\n\
     insecure = true\n";

fn me() -> IpAddr {
    [10, 0, 0, 1].into()
}

fn other() -> IpAddr {
    [10, 0, 0, 2].into()
}

fn holds(owner: IpAddr, version: u64) -> Statement {
    Statement::Holds(Claim { owner, version: Version(version) })
}

fn local(state: State, version: u64, published: bool) -> Option<Session> {
    Some(Session::Local { state, version: Version(version), published })
}

/// A flow as the table, the kernel and the replicas 10.0.0.2, 10.0.0.3 and so on have it.
struct Case {
    found: Option<Session>,
    kernel: Result<Held, String>,
    outcome: Outcome,
    said: Vec<Statement>,
    absent: Option<bool>,
}

impl Default for Case {
    fn default() -> Case {
        Case {
            found: None,
            kernel: Ok(Held::Over),
            outcome: Outcome::NotFound,
            said: vec![Statement::NotHeld; 2],
            absent: None,
        }
    }
}

fn explained(case: Case) -> ExplainReply {
    let config = Config::parse("c.toml", CONFIG).unwrap();
    let flow: FlowKey = "20.1.1.1:1234-192.168.0.1:80".parse().unwrap();
    let claims = case.said.iter().filter_map(|said| match said {
        Statement::Holds(claim) => Some((claim.version, claim.owner)),
        _ => None,
    });
    let greatest = claims.max().filter(|_| case.outcome == Outcome::Owner);
    let replicas = case.said.iter().zip(2u8..);
    let report = dht::LookupReport {
        flow,
        id: Id(1),
        outcome: case.outcome,
        owner: greatest.map(|(_, owner)| owner),
        version: greatest.map(|(version, _)| version),
        duration_us: 312,
        replicas: replicas
            .map(|(said, last)| dht::ReplicaReport {
                locator: [10, 0, 0, last].into(),
                said: *said,
                rtt_us: None,
            })
            .collect(),
    };
    let peer = |last: u8| dht::Peer {
        id: Id(last.into()),
        locator: [10, 0, 0, last].into(),
        address: ([10, 0, 0, last], 7000).into(),
        incarnation: 7,
        srtt_us: None,
        heard_ago_us: 0,
        failures: 0,
        suspect: last == 3,
        life: 1,
    };
    let absent = case.absent.map(|away| dht::AbsentPeer {
        id: Id(2),
        locator: other(),
        address: (other(), 7000).into(),
        incarnation: 7,
        away,
        absent_us: 3_500_000,
        silent_us: 5_500_000,
    });
    let present = (2..5).filter(|last| *last != 2 || absent.is_none()).map(peer).collect();
    let entry = case.found.map(|session| {
        let (kind, state, owner, version, published) = match session {
            Session::Local { state, version, published } => {
                (SessionKind::Local, state.name(), me(), Some(version.0), Some(published))
            }
            Session::Redirect { owner } => (SessionKind::Redirect, "redirected", owner, None, None),
        };
        let state = state.to_owned();
        SessionEntry { flow, kind, state, owner, version, published, idle_ms: 61_000 }
    });
    let facts = Facts {
        config: &config,
        locator: me(),
        found: case.found,
        entry,
        kernel: case.kernel,
        report,
        present,
        absent: absent.into_iter().collect(),
    };
    facts.explain()
}

/// Whether there is a step of this rule that says this.
fn says(reply: &ExplainReply, rule: &str, text: &str) -> bool {
    reply.steps.iter().any(|step| step.rule.as_deref() == Some(rule) && step.text.contains(text))
}

fn check(case: Case, verdict: (Verdict, Option<IpAddr>), steps: &[(&str, &str)]) {
    let reply = explained(case);
    assert_eq!((reply.verdict, reply.tunnel_to), verdict, "{reply:#?}");
    for (rule, text) in steps {
        assert!(says(&reply, rule, text), "{rule} {text}: {reply:#?}");
    }
    assert!(says(&reply, "R2", "A SYN goes to this server's host"));
}

#[test]
fn r4_a_local_session_goes_to_the_host() {
    check(
        Case {
            found: local(State::Established, 5, true),
            kernel: Ok(Held::Session(State::Established)),
            outcome: Outcome::Owner,
            said: vec![holds(me(), 5), Statement::NoAnswer],
            ..Case::default()
        },
        (Verdict::Host, None),
        &[
            ("R1", "holds the session's socket, established"),
            ("R4", "local session, established, version 5, idle for 1m 1s"),
            ("R3", "10.0.0.2 has the record with owner 10.0.0.1, version 5"),
            ("R3", "10.0.0.3 has not answered"),
            ("R4", "a hit of a local session"),
        ],
    );
}

#[test]
fn r12_a_local_session_that_a_later_one_supersedes() {
    check(
        Case {
            found: local(State::Established, 5, true),
            outcome: Outcome::Owner,
            said: vec![holds(me(), 5), holds(other(), 9)],
            ..Case::default()
        },
        (Verdict::Host, None),
        &[
            ("R8", "two kernel checks in a row"),
            ("R12", "They differ: the greatest version counts, 9 of 10.0.0.2"),
            ("R12", "later session on this flow, at 10.0.0.2"),
            ("R13", "10.0.0.2 is alive"),
        ],
    );
}

#[test]
fn r3_r8_what_is_not_published_and_what_is_over() {
    let host = (Verdict::Host, None);
    let half_open = Case {
        found: local(State::HalfOpen, 5, false),
        kernel: Ok(Held::Opening),
        ..Case::default()
    };
    check(half_open, host, &[("R1", "not complete"), ("R3", "waits for the handshake's end")]);
    let deferred = Case { found: local(State::Established, 5, false), ..Case::default() };
    check(deferred, host, &[("R3", "the ring to the DHT core was full")]);
    let over = Case { found: local(State::Closed, 5, true), ..Case::default() };
    check(over, host, &[("R8", "It lingers for 1m")]);
    let lost = Case { found: local(State::Established, 5, true), ..Case::default() };
    check(lost, host, &[("R3", "No replica that answered has the record")]);
}

#[test]
fn r4_a_redirect_goes_into_the_tunnel() {
    let redirect = Some(Session::Redirect { owner: other() });
    check(
        Case {
            found: redirect,
            kernel: Ok(Held::Session(State::Established)),
            outcome: Outcome::Owner,
            said: vec![holds([10, 0, 0, 4].into(), 9)],
            ..Case::default()
        },
        (Verdict::Tunnel, Some(other())),
        &[
            ("R4", "a redirect to 10.0.0.2, idle for 1m 1s"),
            ("R12", "counts for more than the kernel's socket"),
            ("R6", "names another owner than the redirect"),
            ("R4", "into the tunnel to 10.0.0.2 (gue)"),
            ("R2", "supersedes the redirect"),
        ],
    );
}

#[test]
fn r5_strays_are_looked_up() {
    let owned = |owner| Case {
        outcome: Outcome::Owner,
        said: vec![holds(owner, 5), Statement::NotHeld],
        ..Case::default()
    };
    check(
        owned(other()),
        (Verdict::Tunnel, Some(other())),
        &[("R4", "no entry"), ("R5", "names 10.0.0.2; a redirect is made")],
    );
    check(owned(me()), (Verdict::Host, None), &[("R5", "names this server")]);
    check(
        Case { kernel: Ok(Held::Session(State::Established)), ..Case::default() },
        (Verdict::Host, None),
        &[("R7", "It learns the session"), ("R5", "asked twice, 30ms apart")],
    );
    let deleted = Statement::Deleted(Claim { owner: other(), version: Version(5) });
    check(
        Case { said: vec![deleted, Statement::NotHeld], ..Case::default() },
        (Verdict::Host, None),
        &[("R3", "a deleted record of owner 10.0.0.2, version 5"), ("R5", "Nobody owns it")],
    );
    check(
        Case { outcome: Outcome::TimedOut, said: vec![Statement::NoAnswer; 2], ..Case::default() },
        (Verdict::Drop, None),
        &[("R3", "10.0.0.2, 10.0.0.3 have not answered"), ("R5", "dropped_timed_out")],
    );
    let stranger = [11, 0, 0, 9].into();
    check(
        owned(stranger),
        (Verdict::Drop, None),
        &[("R13", "no member that this server knows"), ("R5", "resolved_stranger")],
    );
}

#[test]
fn r13_owners_that_are_dead_or_away() {
    let lost = |away| Case {
        outcome: Outcome::TimedOut,
        said: vec![Statement::NoAnswer, holds(other(), 5)],
        absent: Some(away),
        ..Case::default()
    };
    let drop = (Verdict::Drop, None);
    check(lost(false), drop, &[("R13", "is dead for 3s"), ("R13", "for 10s (dht.restart_within)")]);
    check(lost(true), drop, &[("R13", "is away for 3s"), ("R13", "for 1m (dht.lease)")]);
    let reply = explained(lost(false));
    let states: Vec<_> =
        reply.members.iter().map(|m| (m.locator.to_string(), m.state.as_str())).collect();
    assert_eq!(states, [("10.0.0.2".to_owned(), "dead"), ("10.0.0.3".to_owned(), "suspect")]);
    assert_eq!(reply.members[0].roles, ["owner", "replica"]);
}

#[test]
fn r13_owners_that_died_for_good() {
    let orphaned = |version| {
        let claim = Claim { owner: other(), version: Version(version) };
        let deleted = Claim { owner: [10, 0, 0, 4].into(), version: Version(7) };
        Case {
            said: vec![Statement::Orphaned(claim), Statement::Deleted(deleted)],
            absent: Some(false),
            ..Case::default()
        }
    };
    check(
        orphaned(8),
        (Verdict::Host, None),
        &[
            ("R3", "10.0.0.2 has a record of owner 10.0.0.2, version 8, which has died for good"),
            ("R13", "10.0.0.2 is dead for 3s"),
            ("R5", "Its owner has died for good"),
        ],
    );
    check(orphaned(6), (Verdict::Host, None), &[("R5", "asked twice, 30ms apart")]);
}

#[test]
fn r1_kernels_that_say_nothing() {
    let host = (Verdict::Host, None);
    let elsewhere = Case { kernel: Ok(Held::NoService), ..Case::default() };
    check(elsewhere, host, &[("R1", "No socket listens for 192.168.0.1:80")]);
    let silent = Case { kernel: Err("no answer".to_owned()), ..Case::default() };
    check(silent, host, &[("R1", "does not say what it holds: no answer")]);
    let alone = Case { said: Vec::new(), ..Case::default() };
    check(alone, host, &[("R3", "this server is alone")]);
}

#[test]
fn other_flows_pass() {
    let reply = not_a_services("20.1.1.1:1234-192.168.0.9:80".parse().unwrap());
    assert_eq!(reply.verdict, Verdict::Pass);
    assert!(reply.steps[0].text.contains("192.168.0.9:80 is no service"));
}
