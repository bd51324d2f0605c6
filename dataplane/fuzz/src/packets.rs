//! A worker, and the network, the host and the DHT core around it. After each turn the books must
//! balance, and every frame that was sent must be one that came, where and as it may be sent.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use holdfast_dataplane::capture::{self, Accountant, Observations, Observer, Wanted};
use holdfast_dataplane::fragments;
use holdfast_dataplane::frame::{Frame, HEADROOM};
use holdfast_dataplane::session::expiry::Timeouts;
use holdfast_dataplane::session::table::SessionTable;
use holdfast_dataplane::session::{Session, State};
use holdfast_dataplane::stats::{Counter, WorkerCounters};
use holdfast_dataplane::time::Now;
use holdfast_dataplane::worker::{Shared, Worker};
use holdfast_handoff::{
    Announcement, Answer, Clock, CoreEnd, Doorbell, Resolution, StrayFate, StrayReport,
    StrayReports, Version, rings, stray_reports,
};
use holdfast_net::{FlowKey, HashKey};

use super::Tally;
use super::books::balance;
use super::capture::Capture;
use super::ports::{MemPort, Origin, Side, TracedFrame};
use super::reader::{self, Reading, Segment};
use super::sent::{self, Covered};
use super::switched::{self, KERNEL_MAC, OUR_MAC};
use super::world::{CORE_ETHERTYPE, CORE_MAC, Form, HOST_MAC, MEMBERS, Order, STRANGER, World};

/// Frames of an input, at most: the others are left out.
const RECORDS_MAX: usize = 400;
/// Longest time between two frames: longer than any session is idle.
const PAUSE_US_MAX: u64 = 4_000_000_000;
/// Searches of the whole table, at most: they take long.
const SWEEPS_MAX: usize = 3;
/// The table is not searched for redirects to the dead in shorter pauses.
const SEARCH_US_MIN: u64 = 150_000;
/// No entry of the table is idle for too long before.
const IDLE_US_MIN: u64 = TIMEOUTS.linger_ms * 1000;
/// Flows that are remembered, so that orders can name them.
const FLOWS_MAX: usize = 64;
/// Frames that may wait to be sent, at both ports together.
const WAITING_MAX: u64 = 2 * 128;
/// Room in front of a frame when there is little: enough for IP in IP over IPv4 alone.
const HEADROOM_LITTLE: usize = 20;

const TIMEOUTS: Timeouts = Timeouts {
    half_open_ms: 10_000,
    established_ms: 3_600_000,
    linger_ms: 5_000,
    redirect_ms: 60_000,
};

thread_local! {
    /// Empty session tables from runs before, of tight worlds and of others: a table has megabytes,
    /// and to make one takes longer than all else.
    static TABLES: RefCell<[Option<Arc<SessionTable>>; 2]> = const { RefCell::new([None, None]) };
    /// The core never sleeps, so nobody ever listens.
    static DOORBELL: (mio::Poll, Arc<Doorbell>) = {
        let poll = mio::Poll::new().expect("a poll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("a waker");
        (poll, Arc::new(Doorbell::new(waker)))
    };
}

/// What a segment is counted as whose session is another server's, or may be (R12).
const OF_OTHERS: [Counter; 5] = [
    Counter::RedirectEnded,
    Counter::HostSuperseded,
    Counter::HostWithheld,
    Counter::RstWithheld,
    Counter::TunnelSuperseded,
];

/// Strays that were dropped before their owner was known, or as it has none.
const STRAYS_DROPPED: [Counter; 7] = [
    Counter::ParkFull,
    Counter::ParkFlowFull,
    Counter::ParkExpired,
    Counter::LookupRefusedWorker,
    Counter::LookupRefusedSource,
    Counter::ResolvedStranger,
    Counter::DroppedTimedOut,
];
/// Those, and others, that were not sent to the owner; and questions that found the ring full, of
/// which only a flow's first drops a stray.
const STRAYS_UNSENT: [Counter; 6] = [
    Counter::LookupRingFull,
    Counter::TooBigAnswered,
    Counter::TunnelTooBig,
    Counter::TunnelNoFrame,
    Counter::TunnelOtherFamily,
    Counter::TunnelNoHeadroom,
];

/// What a segment that comes alone leads to, by what the table says before.
struct Foretold {
    flow: FlowKey,
    /// Its flow has no redirect after it.
    is_no_redirect: bool,
    /// Its flow has no local session after it.
    is_not_local: bool,
    /// Which of [`OF_OTHERS`] counts it.
    counter: Option<Counter>,
    /// What those were before.
    before: [u64; OF_OTHERS.len()],
}

/// What is observed of all packets, and said of them.
struct Watch<'a> {
    capture: capture::Capture<'a>,
    accountant: Accountant,
    /// Packets observed, by where they came from, and those that waited.
    origins: [u64; 3],
    missed: u64,
}

struct Bench<'a> {
    world: World,
    worker: Worker<MemPort, MemPort>,
    core: CoreEnd,
    /// What the worker tells the ledger.
    reports: StrayReports,
    /// Strays that were dropped, by what it told.
    lost: u64,
    table: Arc<SessionTable>,
    counters: Arc<WorkerCounters>,
    uplink: MemPort,
    host: MemPort,
    now: Now,
    /// Of frames that were not sent or dropped yet.
    origins: Vec<Rc<Origin>>,
    sweeps_left: usize,
    is_owner_dead: bool,
    dropped: u64,
    /// Of those, frames that nothing but a full port may drop, from the uplink and from the host.
    dropped_by_ports: [u64; 2],
    sent: [u64; 2],
    watch: Option<Watch<'a>>,
    /// What the worker asked and was not answered.
    questions: Vec<FlowKey>,
    flows: Vec<FlowKey>,
    /// Those that there may be entries of.
    entered: BTreeSet<FlowKey>,
    /// Flows whose segments the host may get: it has spoken, or the DHT said so.
    for_host: BTreeSet<FlowKey>,
    /// Flows that may be published or withdrawn.
    ours: BTreeSet<FlowKey>,
    /// Versions that flows were published with, or that another server's session is later than.
    versions: BTreeMap<FlowKey, Version>,
    /// Whom the DHT said to own a flow.
    owners: BTreeMap<FlowKey, BTreeSet<IpAddr>>,
}

/// Sends a capture's frames through a worker, and tells what it counted.
pub fn run(bytes: &[u8]) -> Tally {
    let capture = Capture::read(bytes);
    let world = World::new(capture.shape);
    let (mut observers, mut observations) = Observations::with_rings(1, world.observed_bytes());
    let mut bench = Bench::new(world);
    if world.is_observed
        && let Some(observer) = observers.pop()
    {
        bench.observe(observer, &mut observations);
    }
    let mut before_us = capture.records.first().map_or(0, |record| record.at_us);
    for record in capture.records.iter().take(RECORDS_MAX) {
        if record.at_us > before_us {
            bench.turn();
            bench.wait((record.at_us - before_us).min(PAUSE_US_MAX));
            before_us = record.at_us;
        }
        bench.bring(&record.frame);
    }
    bench.finish();
    bench.tally()
}

/// What the DHT core says or happens in a frame that stands for an order.
fn order(frame: &[u8]) -> Option<(Order, usize, usize)> {
    let [number, which, whom, ..] = *frame.get(14..)? else { return None };
    let is_order = frame[6..12] == CORE_MAC && frame[12..14] == CORE_ETHERTYPE.to_be_bytes();
    let order = Order::ALL[usize::from(number) % Order::ALL.len()];
    is_order.then_some((order, usize::from(which), usize::from(whom)))
}

impl<'a> Bench<'a> {
    fn new(world: World) -> Bench<'a> {
        let doorbell = DOORBELL.with(|(_, doorbell)| Arc::clone(doorbell));
        let (worker_end, core) = rings(world.ring(), world.ring(), doorbell);
        let settings = world.settings();
        let services = settings.classifier.services.clone();
        let table = TABLES.with_borrow_mut(|tables| tables[usize::from(world.is_tight)].take());
        let table = table.unwrap_or_else(|| {
            let table = SessionTable::new(services, world.capacity(), &TIMEOUTS, HashKey([3, 4]));
            Arc::new(table.expect("a small table"))
        });
        let shared = Shared {
            settings: Arc::new(settings),
            table: Arc::clone(&table),
            clock: Arc::new(Clock::default()),
            closing: Arc::default(),
        };
        let counters = Arc::<WorkerCounters>::default();
        let (uplink, host) = (MemPort::default(), MemPort::default());
        let ports = (uplink.clone(), host.clone());
        let (place, counted) = ((0, 1), Arc::clone(&counters));
        let worker = match world.switch() {
            None => Worker::new(shared, place, counted, worker_end, ports.0, ports.1),
            Some(switch) => {
                Worker::through_switch(shared, place, counted, worker_end, ports.0, switch)
            }
        };
        let (reporter, reports) = stray_reports(world.ring());
        Bench {
            world,
            worker: worker.reporting_to(reporter),
            core,
            reports,
            lost: 0,
            table,
            counters,
            uplink,
            host,
            now: Now::from_us(1_000_000),
            origins: Vec::new(),
            sweeps_left: SWEEPS_MAX,
            is_owner_dead: false,
            dropped: 0,
            dropped_by_ports: [0; 2],
            sent: [0; 2],
            watch: None,
            questions: Vec::new(),
            flows: Vec::new(),
            entered: BTreeSet::new(),
            for_host: BTreeSet::new(),
            ours: BTreeSet::new(),
            versions: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    /// Has everything observed from now on.
    fn observe(&mut self, observer: Observer, observations: &'a mut Observations) {
        self.worker.set_observer(observer);
        self.watch = Some(Watch {
            capture: observations.start(&Wanted::default()),
            accountant: Accountant::new(self.world.settings().classifier),
            origins: [0; 3],
            missed: 0,
        });
    }

    /// Every packet that came was observed once, and something can be said of it.
    fn check_observations(&mut self) {
        let Some(Watch { capture, accountant, origins, missed }) = &mut self.watch else {
            return;
        };
        while let Some((_, observation)) = capture.next_observation() {
            let account = accountant.account(&observation);
            let is_lost = account.verdict == capture::Verdict::Dropped && account.reason.is_none();
            assert!(!is_lost, "nobody counted {observation:?}");
            origins[observation.origin as usize] += 1;
        }
        *missed += capture.missed();
        let [uplink, host, _] = *origins;
        let came = [Counter::UplinkReceived, Counter::HostReceived].map(|c| self.counters.get(c));
        let is_all = uplink <= came[0] && host <= came[1];
        assert!(is_all && uplink + host + *missed >= came[0] + came[1], "{origins:?} of {came:?}");
    }

    /// A frame comes from the network, from the host or, as an order, from the core.
    fn bring(&mut self, frame: &[u8]) {
        if let Some((order, which, whom)) = order(frame) {
            self.turn();
            self.hear();
            self.obey(order, which, whom);
            return self.turn();
        }
        let is_hosts = !self.world.is_switched && frame.get(6..12) == Some(&HOST_MAC);
        let side = if is_hosts { Side::Host } else { Side::Uplink };
        let (reading, spoken) = match side {
            Side::Uplink if self.world.is_switched && !switched::is_for_us(frame) => {
                (Reading::Switched, None)
            }
            Side::Uplink => (self.world.read_uplink(frame), None),
            Side::Host => (Reading::Other, self.world.read_host(frame)),
        };
        if let Some(Segment { flow, flags, .. }) = &spoken {
            self.entered.insert(*flow);
            // A reset proves nothing (R7).
            if flags & 0x04 == 0 || flags & 0x12 == 0x12 {
                self.for_host.insert(*flow);
                self.ours.insert(*flow);
            }
        }
        if let Reading::Segment(Segment { flow, .. })
        | Reading::Fragment(_, Some(Segment { flow, .. })) = &reading
        {
            self.entered.insert(*flow);
            let is_syn = match &reading {
                Reading::Segment(segment) | Reading::Fragment(_, Some(segment)) => segment.is_syn(),
                _ => false,
            };
            // There is no SYN-ACK to see: the SYN opens the session (R3).
            if self.world.is_inbound_only && is_syn {
                self.for_host.insert(*flow);
                self.ours.insert(*flow);
            }
            if self.flows.len() < FLOWS_MAX && !self.flows.contains(flow) {
                self.flows.push(*flow);
            }
        }
        let origin = Rc::new(Origin {
            side,
            bytes: frame.to_vec(),
            reading,
            spoken,
            forbidden: None.into(),
            sent: 0.into(),
            made: 0.into(),
        });
        let headroom = if self.world.is_without_headroom { HEADROOM_LITTLE } else { HEADROOM };
        let traced = TracedFrame::new(Rc::clone(&origin), headroom);
        self.origins.push(origin);
        let port = if is_hosts { &self.host } else { &self.uplink };
        port.0.borrow_mut().to_worker.push_back(traced);
    }

    /// The core speaks, or a port changes.
    fn obey(&mut self, order: Order, which: usize, whom: usize) {
        let member = MEMBERS[whom % MEMBERS.len()];
        let known = |flows: &[FlowKey]| Some(flows[which.checked_rem(flows.len())?]);
        let version = Version(u64::from(which as u8) + 1);
        let answer = match order {
            Order::Owner | Order::Ourselves | Order::Nobody | Order::TimedOut | Order::Stranger => {
                let Some(place) = which.checked_rem(self.questions.len()) else { return };
                let flow = self.questions.remove(place);
                let owner = |locator| Resolution::Owner { locator, version };
                let resolution = match order {
                    Order::Owner => {
                        self.owners.entry(flow).or_default().insert(member);
                        owner(member)
                    }
                    Order::Ourselves => {
                        self.for_host.insert(flow);
                        self.ours.insert(flow);
                        owner(self.world.locator())
                    }
                    Order::Nobody => {
                        self.for_host.insert(flow);
                        if whom.is_multiple_of(2) {
                            Resolution::NotFound
                        } else {
                            Resolution::Orphaned
                        }
                    }
                    Order::TimedOut => Resolution::TimedOut,
                    _ => owner(STRANGER),
                };
                Answer::Resolved { flow, resolution, dead: None }
            }
            Order::NotMine => match known(&self.flows) {
                Some(flow) => Answer::NotMine { flow, owner: member },
                None => return,
            },
            Order::OwnerDead => {
                self.is_owner_dead = true;
                Answer::OwnerDead { owner: member }
            }
            Order::Unasked => {
                let Some(flow) = known(&self.flows) else { return };
                self.owners.entry(flow).or_default().insert(member);
                let resolution = Resolution::Owner { locator: member, version };
                Answer::Resolved { flow, resolution, dead: None }
            }
            Order::Superseded => {
                let Some(flow) = known(&self.flows) else { return };
                return self.supersede(flow, member, whom / MEMBERS.len() % 4);
            }
            Order::Room => {
                let room = |count: usize| (count < 255).then_some(count);
                self.uplink.0.borrow_mut().room = room(which);
                self.host.0.borrow_mut().room = room(whom);
                return;
            }
        };
        self.core.answers.push(answer).expect("the worker takes every answer at once");
    }

    /// R12: another server's session, if it is no older than ours and the server a member, is what is
    /// left of ours: a redirect. Nothing else changes.
    fn supersede(&mut self, flow: FlowKey, member: IpAddr, kind: usize) {
        let before = self.session(&flow);
        let owner = match kind {
            2 => STRANGER,
            3 => self.world.locator(),
            _ => member,
        };
        let ours = match before {
            Some(Session::Local { version, .. }) => Some(version),
            _ => None,
        };
        let version = Version(ours.map_or(1, |ours| ours.0 - u64::from(kind == 1)));
        let after = match ours {
            Some(ours) if kind == 0 && self.world.is_member(owner) => {
                self.owners.entry(flow).or_default().insert(owner);
                let before = self.versions.entry(flow).or_insert(ours);
                *before = ours.max(*before);
                Some(Session::Redirect { owner })
            }
            _ => before,
        };
        let answer = Answer::Superseded { flow, version, owner };
        self.core.answers.push(answer).expect("the worker takes every answer at once");
        self.turn();
        assert_eq!(self.session(&flow), after, "{owner} has {version:?} of {flow:?}: {before:?}");
    }

    /// What the table says of a flow.
    fn session(&self, flow: &FlowKey) -> Option<Session> {
        Some(self.table.lookup(flow, self.now.tick())?.session)
    }

    /// Time passes, with as many turns of housekeeping as it takes to search the table for what is
    /// due: redirects to the dead, and, when entries can have been idle for too long, all of it.
    fn wait(&mut self, pause_us: u64) {
        let gauges = self.table.gauges();
        let has_entries = gauges.local > 0 || gauges.redirects > 0;
        let buckets = self.table.buckets() as u64;
        let turns = if has_entries && pause_us >= IDLE_US_MIN && self.sweeps_left > 0 {
            self.sweeps_left -= 1;
            2 + buckets / 128
        } else if has_entries && pause_us >= SEARCH_US_MIN && self.is_owner_dead {
            self.is_owner_dead = false;
            2 + buckets / 1024
        } else {
            2
        };
        // Housekeeping is once a millisecond.
        let step_us = (pause_us / turns).min(1000);
        self.now = Now::from_us(self.now.us + pause_us - turns * step_us);
        for _ in 0..turns {
            self.now = Now::from_us(self.now.us + step_us);
            self.turn();
        }
    }

    /// Turns until nothing is left to receive, and looks at what was sent.
    fn turn(&mut self) {
        let foretold = self.foretell();
        loop {
            self.worker.turn(self.now);
            self.check_observations();
            self.look(Side::Uplink);
            self.look(Side::Host);
            let left = [&self.uplink, &self.host].map(|port| port.0.borrow().to_worker.len());
            if left == [0, 0] {
                break;
            }
        }
        if let Some(foretold) = foretold {
            self.check_foretold(&foretold);
        }
        if !self.world.is_core_slow {
            self.hear();
        }
        self.check_books();
    }

    /// R2, R4, R12: where a segment that comes alone must not go, by what the table says before, and
    /// what that leads to.
    fn foretell(&self) -> Option<Foretold> {
        // The uplink's frames are received before the host's.
        let frames = [&self.uplink, &self.host].map(|port| port.0.borrow().to_worker.len());
        let port = match frames {
            [1, _] => &self.uplink,
            [0, 1] => &self.host,
            _ => return None,
        };
        let origin = Rc::clone(&port.0.borrow().to_worker.front()?.origin);
        let (segment, is_direct) = match (&origin.reading, &origin.spoken) {
            (_, Some(segment)) => (segment, false),
            (Reading::Segment(segment) | Reading::Fragment(_, Some(segment)), _) => (segment, true),
            (Reading::Tunnel(sender, Some(inside)), _) if self.world.is_member(*sender) => {
                (inside.segment.as_ref()?, false)
            }
            (Reading::Rewritten(segment, _), _) => (segment, false),
            _ => return None,
        };
        let found = self.table.lookup(&segment.flow, self.now.tick());
        let idle_ms = found.as_ref().map_or(0, |found| found.idle_ms);
        let session = found.map(|found| found.session);
        let is_opening = is_direct && segment.is_syn();
        let (forbidden, counter) = match session {
            _ if is_opening => (Some(Side::Uplink), None),
            Some(Session::Local { .. }) if is_direct => (Some(Side::Uplink), None),
            Some(Session::Redirect { .. }) => match origin.side {
                Side::Uplink if is_direct => {
                    (Some(Side::Host), segment.is_last().then_some(Counter::RedirectEnded))
                }
                Side::Uplink => (Some(Side::Host), Some(Counter::TunnelSuperseded)),
                Side::Host if segment.is_syn_ack() || segment.is_rst() => {
                    (Some(Side::Uplink), Some(Counter::HostWithheld))
                }
                Side::Host => (None, Some(Counter::HostSuperseded)),
            },
            Some(Session::Local { state, .. })
                if origin.side == Side::Host
                    && segment.is_bare_rst()
                    && self.withholds(&segment.flow, state, idle_ms) =>
            {
                (Some(Side::Uplink), Some(Counter::RstWithheld))
            }
            None if origin.side == Side::Host
                && segment.is_bare_rst()
                && self.is_doubted(&segment.flow) =>
            {
                (Some(Side::Uplink), Some(Counter::RstWithheld))
            }
            _ => (None, None),
        };
        origin.forbidden.set(forbidden);
        let is_redirect = matches!(session, Some(Session::Redirect { .. }));
        (frames[0] + frames[1] == 1).then_some(Foretold {
            flow: segment.flow,
            is_no_redirect: is_opening || counter == Some(Counter::RedirectEnded),
            is_not_local: is_redirect && !is_opening,
            counter,
            before: OF_OTHERS.map(|counter| self.counters.get(counter)),
        })
    }

    fn withholds(&self, flow: &FlowKey, state: State, idle_ms: u64) -> bool {
        let unknown = self.table.unknown();
        match state {
            State::HalfOpen => idle_ms < 2000,
            _ => !unknown
                .age_ms(self.table.hash(flow), self.now.tick())
                .is_some_and(|age_ms| (2000..10_000).contains(&age_ms)),
        }
    }

    fn is_doubted(&self, flow: &FlowKey) -> bool {
        let unknown = self.table.unknown();
        unknown.age_ms(self.table.hash(flow), self.now.tick()).is_some_and(|age_ms| age_ms < 2000)
    }

    fn check_foretold(&self, foretold: &Foretold) {
        let Foretold { flow, is_no_redirect, is_not_local, counter, before } = foretold;
        for (of_others, before) in OF_OTHERS.iter().zip(before) {
            let times = u64::from(*counter == Some(*of_others));
            assert_eq!(self.counters.get(*of_others) - before, times, "{of_others:?} of {flow:?}");
        }
        let is_wrong = match self.session(flow) {
            Some(Session::Redirect { .. }) => *is_no_redirect,
            Some(Session::Local { .. }) => *is_not_local,
            None => false,
        };
        assert!(!is_wrong, "{flow:?} has {:?} then, {counter:?}", self.session(flow));
    }

    /// Takes what the worker tells the core and the ledger.
    fn hear(&mut self) {
        self.hear_reports();
        while let Ok(question) = self.core.resolves.pop() {
            assert!(!question.flow.service().ip().is_unspecified());
            if self.questions.len() == FLOWS_MAX {
                self.questions.remove(0);
            }
            self.questions.push(question.flow);
        }
        while let Ok(announcement) = self.core.announcements.pop() {
            match announcement {
                Announcement::Publish { flow, version } => {
                    assert!(self.ours.contains(&flow), "publishes {flow:?}: the host never spoke");
                    let before = self.versions.insert(flow, version);
                    let grows = before < Some(version) || version == Version::UNKNOWN;
                    assert!(grows, "{flow:?}: {version:?} after {before:?} (R12)");
                }
                Announcement::Withdraw { flow, .. } => {
                    assert!(self.ours.contains(&flow), "withdraws {flow:?} of another");
                }
                Announcement::NotMine { sender, .. } | Announcement::Doubtful { sender, .. } => {
                    let is_member = sender.is_none_or(|sender| self.world.is_member(sender));
                    assert!(is_member, "tells {sender:?}, a stranger");
                }
            }
        }
    }

    /// Takes what the worker tells the ledger: of each flow what the DHT or the host said.
    fn hear_reports(&mut self) {
        while let Ok(StrayReport { flow, fate, lost, .. }) = self.reports.pop() {
            let is_so = match fate {
                StrayFate::Tunnelled { owner } | StrayFate::Redirected { owner } => {
                    self.owners.get(&flow).is_some_and(|owners| owners.contains(&owner))
                }
                StrayFate::Kept | StrayFate::Nobody { .. } => self.for_host.contains(&flow),
                StrayFate::Dropped(_) => lost > 0,
                StrayFate::Reset | StrayFate::Ended => lost == 0,
            };
            assert!(is_so, "{flow:?}: {fate:?}");
            self.lost += u64::from(lost);
        }
    }

    /// All strays that were dropped are in a report, unless the ledger's ring was full.
    fn check_reports(&self) {
        if self.counters.get(Counter::StrayUnreported) > 0 {
            return;
        }
        let sum =
            |counters: &[Counter]| counters.iter().map(|c| self.counters.get(*c)).sum::<u64>();
        let least = sum(&STRAYS_DROPPED);
        let most = least + sum(&STRAYS_UNSENT);
        assert!((least..=most).contains(&self.lost), "{least} to {most} lost, told {}", self.lost);
    }

    fn look(&mut self, to: Side) {
        let port = if to == Side::Uplink { &self.uplink } else { &self.host };
        let frames = std::mem::take(&mut port.0.borrow_mut().from_worker);
        for mut frame in frames {
            let to = self.station(&mut frame).unwrap_or(to);
            self.sent[to as usize] += 1;
            let origin = &frame.origin;
            origin.sent.set(origin.sent.get() + 1);
            assert!(origin.sent.get() <= 1 + origin.made.get(), "sent twice: {origin:?}");
            assert_ne!(origin.forbidden.get(), Some(to), "sent to the wrong side: {origin:?}");
            let mtu = if to == Side::Uplink { self.world.mtu() } else { self.world.host_mtu() };
            assert!(frame.data().len() <= mtu + 18, "longer than may be: {origin:?}");
            match (origin.side, to) {
                (Side::Host, Side::Uplink) => {
                    let Origin { bytes, spoken, .. } = &**origin;
                    sent::from_host(&self.world, bytes, spoken.as_ref(), frame.data());
                }
                (Side::Host, Side::Host) => panic!("the host's frame comes back: {origin:?}"),
                (Side::Uplink, Side::Host) => self.look_at_hosts(origin, frame.data()),
                (Side::Uplink, Side::Uplink) => self.look_at_uplinks(origin, frame.data()),
            }
        }
    }

    /// Whether a frame to the NIC's switch is for the host, by its addresses; those are then what they
    /// were when it came.
    fn station(&self, frame: &mut TracedFrame) -> Option<Side> {
        let is_hosts =
            frame.data().starts_with(&KERNEL_MAC) && frame.origin.reading != Reading::Switched;
        if !self.world.is_switched || !is_hosts {
            return None;
        }
        assert_eq!(frame.data()[6..12], OUR_MAC);
        let origin = Rc::clone(&frame.origin);
        frame.data_mut()[..12].copy_from_slice(&origin.bytes[..12]);
        Some(Side::Host)
    }

    /// A frame that came from the network was given to the host.
    fn look_at_hosts(&self, origin: &Origin, sent: &[u8]) {
        match &origin.reading {
            Reading::Switched => panic!("what is not for us is the host's: {origin:?}"),
            Reading::Reflected => panic!("came back to the host: {origin:?}"),
            Reading::Other => assert_eq!(sent, origin.bytes, "was changed"),
            Reading::Fragment(packet, first) => {
                self.look_at_hosts_fragment(origin, packet, first, sent)
            }
            Reading::Segment(segment) => {
                assert_eq!(sent, origin.bytes, "was changed");
                let may = segment.is_syn() || self.for_host.contains(&segment.flow);
                assert!(may, "a stray whose owner nobody told is the host's: {origin:?}");
            }
            Reading::Tunnel(sender, inside) => {
                assert!(self.world.is_member(*sender), "from a stranger: {origin:?}");
                let inside = inside.as_ref().expect("nothing inside may come out");
                sent::taken_out(&origin.bytes, inside, sent);
            }
            Reading::Rewritten(segment, service) => {
                let destination = sent::rewritten(&origin.bytes, &segment.into(), sent);
                assert_eq!(destination, *service);
                assert_eq!(sent[..12], origin.bytes[..12]);
            }
        }
    }

    /// The same of a fragment: as it came, or, when it was rewritten, turned back.
    fn look_at_hosts_fragment(
        &self,
        origin: &Origin,
        packet: &Range<usize>,
        first: &Option<Segment>,
        sent: &[u8],
    ) {
        if let Some(segment) = first {
            let may = segment.is_syn() || self.for_host.contains(&segment.flow);
            assert!(may, "a stray's first fragment is the host's: {origin:?}");
        }
        if sent == origin.bytes {
            return;
        }
        assert_eq!(self.world.form, Form::Rewrite, "was changed: {origin:?}");
        let covered = Covered::of_fragment(&origin.bytes, packet);
        let destination = sent::rewritten(&origin.bytes, &covered, sent);
        assert!(self.world.is_service(destination));
        assert_eq!(sent[..12], origin.bytes[..12]);
    }

    /// A frame that came from the network goes back there.
    fn look_at_uplinks(&self, origin: &Origin, sent: &[u8]) {
        let (world, bytes) = (&self.world, &origin.bytes[..]);
        // Among others what came out of a tunnel: it is never tunnelled again (R6).
        let (packet, flow) = match &origin.reading {
            Reading::Switched => return switched::answer(bytes, sent),
            Reading::Segment(segment) => (&segment.packet, Some(segment)),
            Reading::Fragment(packet, first) => (packet, first.as_ref()),
            _ => panic!("goes back: {origin:?}"),
        };
        assert!(!flow.is_some_and(Segment::is_syn), "a SYN goes back: {origin:?}");
        let is_rewritten = world.form == Form::Rewrite && sent.len() == bytes.len();
        if is_icmp(sent, packet) && !is_rewritten {
            return sent::too_big_answer(world, bytes, packet, sent);
        }
        let owner = match world.form {
            Form::Rewrite => {
                assert_eq!(sent[..6], bytes[6..12], "not to where it came from");
                assert_eq!(sent[6..12], bytes[..6]);
                if is_rewritten {
                    let covered = match &origin.reading {
                        Reading::Segment(segment) => segment.into(),
                        _ => Covered::of_fragment(bytes, packet),
                    };
                    sent::rewritten(bytes, &covered, sent)
                } else {
                    sent::rewritten_fragment(world, bytes, packet, sent)
                }
            }
            _ => sent::tunnelled(world, bytes, packet, sent),
        };
        assert!(world.is_member(owner), "tunnelled to {owner}, a stranger: {origin:?}");
        let ends = reader::ends(bytes, packet);
        let mut owners = self.owners.iter().filter(|(known, _)| match flow {
            Some(segment) => segment.flow == **known,
            // A fragment behind the first has no ports.
            None => ends == (known.client().ip(), known.service().ip()),
        });
        let known = owners.any(|(_, owners)| owners.contains(&owner));
        assert!(known, "tunnelled to {owner}, of whom nobody told: {origin:?}");
    }

    /// Every frame is accounted for: it was sent, waits, is parked, or was dropped by a counter.
    fn check_books(&mut self) {
        let (mut kept, mut dropped_of_kept) = (0, 0);
        let (dropped, by_ports) = (&mut self.dropped, &mut self.dropped_by_ports);
        self.origins.retain(|origin| {
            // One is the bench's own.
            let frames = Rc::strong_count(origin) as u64 - 1;
            let lost = 1 + origin.made.get() - origin.sent.get() - frames;
            if frames > 0 {
                kept += frames;
                dropped_of_kept += lost;
                return true;
            }
            *dropped += lost;
            let is_passing = match (&origin.reading, &origin.spoken) {
                // These may be of another server's session (R12).
                (_, Some(segment)) => !segment.is_syn_ack() && !segment.is_rst(),
                (Reading::Other, None) => true,
                (Reading::Segment(segment), None) => segment.is_syn(),
                _ => false,
            };
            by_ports[origin.side as usize] += if is_passing { lost } else { 0 };
            false
        });
        let books = balance(&self.counters);
        let count = |counter| self.counters.get(counter);
        assert_eq!(self.sent[Side::Uplink as usize], count(Counter::UplinkSent));
        assert_eq!(self.sent[Side::Host as usize], count(Counter::HostSent));
        let between = |what: &str, is: u64, most: u64| {
            assert!(is <= most && most - is <= books.unsure, "{what}: {is}, counted {books:?}");
        };
        between("dropped", self.dropped + dropped_of_kept, books.dropped);
        between("kept", kept, books.parked + books.waiting + books.fragments);
        assert!(books.parked <= self.world.parked_max() as u64 + books.unsure, "{books:?}");
        assert!(books.waiting <= WAITING_MAX, "{books:?}");
        assert!(books.fragments <= fragments::WAITING_MAX as u64, "{books:?}");
        let [from_uplink, from_host] = self.dropped_by_ports;
        let (host, uplink) = (
            [Counter::HostUnsent, Counter::HostTooBig],
            [Counter::UplinkUnsent, Counter::UplinkTooBig],
        );
        let most = |ways: [Counter; 2]| ways.map(count).iter().sum::<u64>();
        assert!(from_uplink <= most(host), "a frame that passes was dropped");
        assert!(from_host <= most(uplink), "a frame of the host's was dropped");
    }

    /// Nothing is kept for ever.
    fn finish(&mut self) {
        self.turn();
        self.uplink.0.borrow_mut().room = None;
        self.host.0.borrow_mut().room = None;
        for _ in 0..2 {
            self.now = Now::from_us(self.now.us + 2_000_000);
            self.turn();
        }
        self.hear();
        self.check_reports();
        assert!(self.origins.is_empty(), "kept: {:?}", self.origins);
        self.clear_table();
    }

    /// Leaves an empty table for the next run.
    fn clear_table(&self) {
        let table = &self.table;
        for flow in &self.entered {
            let at = table.locate_flow(flow).expect("a service's");
            while let Some(entry) = table.find(&at) {
                table.remove(&entry);
            }
        }
        let gauges = table.gauges();
        assert_eq!((gauges.local, gauges.redirects), (0, 0), "entries of flows that never came");
        TABLES.with_borrow_mut(|tables| {
            tables[usize::from(self.world.is_tight)] = Some(Arc::clone(table));
        });
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for counter in Counter::ALL {
            match self.counters.get(*counter) {
                0 => {}
                value => tally.add(counter.name(), value),
            }
        }
        tally
    }
}

/// R12: whether a RST of the host does not reach the client of a session that is in this state for so
/// long.
/// Whether the IP packet that was sent in the place of `packet` carries ICMP, and is whole.
fn is_icmp(sent: &[u8], packet: &Range<usize>) -> bool {
    let at = packet.start;
    match sent.get(at).map(|byte| byte >> 4) {
        Some(4) => sent.get(at + 9) == Some(&1) && sent[at + 6] & 0x3f == 0 && sent[at + 7] == 0,
        _ => sent.get(at + 6) == Some(&58),
    }
}
