//! The worker: one poll-mode core, its queue pair of each port, and a packet's whole way through
//! them. Read from [`Worker::turn`] downwards. Never waits: not for a packet, a lookup, a ring or
//! another worker.
//!
//! The rules (R1 to R8, R12) are those of `docs/specification/rules.md`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use holdfast_handoff::{
    Announcement, Answer, Clock, Resolution, Resolve, Version, WorkerEnd, unix_us,
};
use holdfast_net::headers::TcpFlags;
use holdfast_net::{FlowKey, Packet};
use ipnet::IpNet;

use crate::admission::{Admission, AdmissionLimits, Refusal, TokenBucket, source_prefix};
use crate::classify::{self, Classifier, FromHost, FromUplink, Segment};
use crate::encap::{self, EncapError, Tunnel};
use crate::frame::Frame;
use crate::idle::{Idle, IdleStrategy};
use crate::mss;
use crate::parking::{self, Park, Parking, ParkingLimits};
use crate::port::{BURST, Port};
use crate::session::expiry::{self, Sweep, Timeouts};
use crate::session::state::Event;
use crate::session::table::{Found, Insert, Replace, SessionTable};
use crate::session::{Session, State};
use crate::stats::{Counter, WorkerCounters};
use crate::time::{Now, Tick};
use crate::too_big;

/// Frames that wait to be sent out of one port, at most.
const OUT_MAX: usize = 4 * BURST;
/// Answers of the DHT core taken in a turn, at most, so that packets never wait for them.
const ANSWERS_PER_TURN: usize = 64;
/// Time between two turns of housekeeping, in microseconds.
const HOUSEKEEPING_US: u64 = 1000;
/// Dead owners whose redirects are looked for at the same time; those of more end by being idle.
const DEAD_OWNERS_MAX: usize = 16;
/// Buckets looked at for redirects to one dead owner in a turn of housekeeping.
const ORPHANS_SLICE: usize = 1024;
/// Answers to packets too big for the tunnel: per second, and at once.
const TOO_BIG_PER_SECOND: u32 = 1000;
const TOO_BIG_BURST: u32 = 256;
/// Looks at an entry that another worker keeps changing, before the update is given up.
const ATTEMPTS: usize = 4;

/// What all workers of a server have in common and never changes while they run.
#[derive(Debug)]
pub struct Settings {
    /// Our locator, our services, our tunnels' port.
    pub classifier: Classifier,
    /// Prefixes of the members' locators: who may tunnel to us and be tunnelled to (R6).
    pub members: Vec<IpNet>,
    /// The uplink's MTU: bytes of IP packet in a frame.
    pub uplink_mtu: usize,
    /// Half-open sessions that are published; those above wait for their handshake (R3).
    pub half_open_max: u64,
    /// How long entries of the table may be idle.
    pub timeouts: Timeouts,
    /// Limits of the parking, per worker.
    pub parking: ParkingLimits,
    /// Limits on lookups, per worker.
    pub admission: AdmissionLimits,
    /// What to do when there is nothing to do.
    pub idle: IdleStrategy,
}

/// What workers share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// What never changes.
    pub settings: Arc<Settings>,
    /// The session table.
    pub table: Arc<SessionTable>,
    /// The clock that versions come from.
    pub clock: Arc<Clock>,
}

/// A worker with its queue pairs and all that is its own.
pub struct Worker<U: Port, H: Port<Frame = U::Frame>> {
    shared: Shared,
    counters: Arc<WorkerCounters>,
    core: WorkerEnd,
    uplink: U,
    host: H,
    to_uplink: ArrayVec<U::Frame, OUT_MAX>,
    to_host: ArrayVec<U::Frame, OUT_MAX>,
    parking: Parking<U::Frame>,
    admission: Admission,
    sweep: Sweep,
    /// Dead owners, and the bucket that the search for redirects to them has come to.
    dead_owners: ArrayVec<(IpAddr, usize), DEAD_OWNERS_MAX>,
    too_big_answers: TokenBucket,
    housekeeping_next: Now,
}

/// A client's segment that came in a burst, and the member that tunnelled it, if one did.
struct Arrival<F> {
    frame: F,
    segment: Segment,
    sender: Option<IpAddr>,
}

/// What becomes of a client's segment.
#[derive(Clone, Copy)]
enum Verdict {
    /// To the host's kernel.
    Host,
    /// Into the tunnel to its owner.
    Tunnel(IpAddr),
    /// Wait until its owner is known.
    Park,
    /// Drop, for this reason.
    Drop(Counter),
}

impl<U: Port, H: Port<Frame = U::Frame>> Worker<U, H> {
    /// Worker `index` of `count`.
    #[must_use]
    pub fn new(
        shared: Shared,
        (index, count): (usize, usize),
        counters: Arc<WorkerCounters>,
        core: WorkerEnd,
        uplink: U,
        host: H,
    ) -> Worker<U, H> {
        Worker {
            counters,
            core,
            uplink,
            host,
            to_uplink: ArrayVec::new(),
            to_host: ArrayVec::new(),
            parking: Parking::new(shared.settings.parking),
            admission: Admission::new(shared.settings.admission),
            sweep: Sweep::new(&shared.table, index, count),
            dead_owners: ArrayVec::new(),
            too_big_answers: TokenBucket::full(TOO_BIG_BURST),
            housekeeping_next: Now::default(),
            shared,
        }
    }

    /// Turns until `stop` is set. `now` reads the clock that all workers share.
    pub fn run(mut self, now: impl Fn() -> Now, stop: &AtomicBool) {
        let mut idle = Idle::new(self.shared.settings.idle);
        while !stop.load(Ordering::Relaxed) {
            let busy = self.turn(now());
            idle.after_turn(busy);
        }
    }

    /// One turn: a burst from each port, what the DHT core answered, housekeeping when it is
    /// time. Returns whether there was anything to do.
    pub fn turn(&mut self, now: Now) -> bool {
        let mut busy = self.poll_uplink(now);
        busy |= self.poll_host(now);
        busy |= self.poll_core(now);
        if self.housekeeping_next <= now {
            self.housekeeping(now);
        }
        busy |= self.flush();
        self.core.ring_doorbell();
        self.count(if busy { Counter::Turns } else { Counter::TurnsIdle });
        busy
    }

    /// A burst from the network: classify all, look up all, then decide and act one by one.
    fn poll_uplink(&mut self, now: Now) -> bool {
        let mut burst = ArrayVec::<_, BURST>::new();
        self.uplink.receive(&mut burst);
        if burst.is_empty() {
            return false;
        }
        self.counters.add(Counter::UplinkReceived, burst.len() as u64);

        let mut arrivals = ArrayVec::<_, BURST>::new();
        let mut flows = ArrayVec::<_, BURST>::new();
        for frame in burst {
            if let Some(arrival) = self.arrival(frame) {
                flows.push(arrival.segment.flow);
                arrivals.push(arrival);
            }
        }
        let mut found = ArrayVec::new();
        self.shared.table.lookup_batch(&flows, &mut found);

        for (arrival, found) in arrivals.into_iter().zip(found) {
            let Arrival { frame, segment, sender } = arrival;
            let verdict = match sender {
                None => self.verdict(&segment, found, now),
                Some(sender) => self.verdict_tunnelled(&segment, found, sender, now),
            };
            self.act(verdict, frame, &segment, now);
        }
        true
    }

    /// Reads a frame from the network. What is no service's segment goes its way at once.
    fn arrival(&mut self, frame: U::Frame) -> Option<Arrival<U::Frame>> {
        match self.shared.settings.classifier.read_uplink(frame.data()) {
            FromUplink::Segment(segment) => Some(Arrival { frame, segment, sender: None }),
            FromUplink::IcmpError(segment) => {
                self.count(Counter::IcmpError);
                Some(Arrival { frame, segment, sender: None })
            }
            FromUplink::Tunnel { outer, sender } => self.take_out_of_tunnel(frame, outer, sender),
            FromUplink::Other => self.pass(frame, Counter::Passed),
            FromUplink::Malformed(_) => self.pass(frame, Counter::MalformedPassed),
            FromUplink::Fragment => self.pass(frame, Counter::FragmentPassed),
        }
    }

    fn pass<T>(&mut self, frame: U::Frame, counter: Counter) -> Option<T> {
        self.count(counter);
        self.send_host(frame);
        None
    }

    /// R6: a tunnel packet is taken only from a member, and only with a service's segment inside.
    fn take_out_of_tunnel(
        &mut self,
        mut frame: U::Frame,
        outer: Packet,
        sender: IpAddr,
    ) -> Option<Arrival<U::Frame>> {
        if !self.is_member(sender) {
            return self.refuse(Counter::TunnelStranger);
        }
        let Ok(inner) = classify::tunnelled(frame.data(), &outer) else {
            return self.refuse(Counter::TunnelMalformed);
        };
        let Some(segment) = self.shared.settings.classifier.inside(frame.data(), inner) else {
            return self.refuse(Counter::TunnelNotService);
        };
        let Some(packet) = encap::decapsulate(&mut frame, &outer, &inner) else {
            return self.refuse(Counter::TunnelMalformed);
        };
        self.count(Counter::TunnelReceived);
        Some(Arrival { frame, segment: Segment { packet, ..segment }, sender: Some(sender) })
    }

    fn refuse<T>(&self, counter: Counter) -> Option<T> {
        self.count(counter);
        None
    }

    /// R2, R4, R5: what becomes of a segment that came from the network as it is.
    fn verdict(&mut self, segment: &Segment, found: Option<Found>, now: Now) -> Verdict {
        let is_syn =
            segment.flags.contains(TcpFlags::SYN) && !segment.flags.contains(TcpFlags::ACK);
        if is_syn {
            self.supersede(&segment.flow, found);
            self.count(Counter::SynToHost);
            return Verdict::Host;
        }
        match found {
            Some(found) => match found.session {
                Session::Local { .. } => {
                    self.count(Counter::LocalHit);
                    self.hear_client(segment, found, now);
                    Verdict::Host
                }
                Session::Redirect { owner } => {
                    self.count(Counter::RedirectHit);
                    self.shared.table.touch(&found, now.tick());
                    Verdict::Tunnel(owner)
                }
            },
            None => {
                self.count(Counter::Miss);
                self.verdict_on_stray(&segment.flow, now)
            }
        }
    }

    /// R6: a segment out of a tunnel goes to the host, whatever we know of it. It is never looked
    /// up and never tunnelled again, so loops cannot happen.
    fn verdict_tunnelled(
        &mut self,
        segment: &Segment,
        found: Option<Found>,
        sender: IpAddr,
        now: Now,
    ) -> Verdict {
        match found {
            Some(found) if matches!(found.session, Session::Local { .. }) => {
                self.hear_client(segment, found, now);
            }
            _ => {
                let not_mine = Announcement::NotMine { flow: segment.flow, sender };
                let sent = self.core.announce(not_mine).is_ok();
                self.count(if sent { Counter::NotMineSent } else { Counter::NotMineUnsent });
            }
        }
        Verdict::Host
    }

    /// What a client's segment means to our session. An ICMP error means nothing to it (R9), and
    /// nor does a segment without any control bit, which no TCP sends.
    fn hear_client(&mut self, segment: &Segment, found: Found, now: Now) {
        if segment.flags != TcpFlags(0) {
            self.advance(&segment.flow, found, Event::from_client(segment.flags), now);
        }
    }

    /// R2: a SYN supersedes what was known of the flow's earlier life.
    fn supersede(&mut self, flow: &FlowKey, found: Option<Found>) {
        self.admission.forget(flow, self.shared.table.hash(flow));
        if let Some(found) = found
            && matches!(found.session, Session::Redirect { .. })
            && self.shared.table.remove(found.handle)
        {
            self.count(Counter::RedirectSuperseded);
        }
    }

    /// R5: nothing is known of the flow. Ask for its owner, unless somebody asks too much.
    fn verdict_on_stray(&mut self, flow: &FlowKey, now: Now) -> Verdict {
        let Shared { table, .. } = &self.shared;
        if self.admission.is_nobodys(flow, table.hash(flow), now) {
            self.count(Counter::NegativeHit);
            return Verdict::Host;
        }
        if self.parking.is_waiting(flow) {
            return Verdict::Park;
        }
        match self.admission.admit(table.hash(&source_prefix(flow)), now) {
            Ok(()) => Verdict::Park,
            Err(Refusal::Worker) => Verdict::Drop(Counter::LookupRefusedWorker),
            Err(Refusal::Source) => Verdict::Drop(Counter::LookupRefusedSource),
        }
    }

    fn act(&mut self, verdict: Verdict, frame: U::Frame, segment: &Segment, now: Now) {
        match verdict {
            Verdict::Host => self.send_host(frame),
            Verdict::Tunnel(owner) => self.send_tunnel(frame, segment, owner, now),
            Verdict::Park => self.park(frame, segment.flow, now),
            // Dropping the frame gives its buffer back.
            Verdict::Drop(counter) => self.count(counter),
        }
    }

    /// R5: the packet waits; the first of its flow asks.
    fn park(&mut self, frame: U::Frame, flow: FlowKey, now: Now) {
        match self.parking.park(flow, frame, now) {
            Park::Joined => self.count(Counter::Parked),
            Park::First => {
                self.count(Counter::Parked);
                if !self.ask(flow) {
                    self.parking.release(&flow);
                }
            }
            Park::FlowFull(_) => self.count(Counter::ParkFlowFull),
            Park::Full(_) => self.count(Counter::ParkFull),
        }
    }

    fn ask(&mut self, flow: FlowKey) -> bool {
        let asked = self.core.resolve(Resolve { flow, asked_at_unix_us: unix_us() }).is_ok();
        self.count(if asked { Counter::LookupAsked } else { Counter::LookupRingFull });
        asked
    }

    /// A burst from the host: it all goes out, and we learn from what services send.
    fn poll_host(&mut self, now: Now) -> bool {
        let mut burst = ArrayVec::<_, BURST>::new();
        self.host.receive(&mut burst);
        if burst.is_empty() {
            return false;
        }
        self.counters.add(Counter::HostReceived, burst.len() as u64);

        let mut segments = ArrayVec::<Segment, BURST>::new();
        let mut flows = ArrayVec::<_, BURST>::new();
        for frame in &mut burst {
            let read = self.shared.settings.classifier.read_host(frame.data());
            if let FromHost::Segment(segment) = read {
                if segment.flags.contains(TcpFlags::SYN) {
                    self.clamp_mss(frame, &segment.packet);
                }
                flows.push(segment.flow);
                segments.push(segment);
            }
        }
        let mut found = ArrayVec::new();
        self.shared.table.lookup_batch(&flows, &mut found);
        for (segment, found) in segments.iter().zip(found) {
            self.learn_from_host(segment, found, now);
        }
        for frame in burst {
            self.send_uplink(frame);
        }
        true
    }

    /// R11: the client's segments are to fit a tunnel, should their session move.
    fn clamp_mss(&self, frame: &mut U::Frame, packet: &Packet) {
        let Settings { classifier, uplink_mtu, .. } = &*self.shared.settings;
        let overhead = encap::overhead(classifier.locator);
        let limit = mss::limit(&packet.network, *uplink_mtu, overhead);
        if mss::clamp(frame.data_mut(), packet, limit) {
            self.count(Counter::MssClamped);
        }
    }

    /// R3, R7, R8: what a service sends tells the truth about its session.
    fn learn_from_host(&mut self, segment: &Segment, found: Option<Found>, now: Now) {
        let Segment { flow, flags, .. } = segment;
        let event = Event::from_host(*flags);
        if flags.contains(TcpFlags::SYN.and(TcpFlags::ACK)) {
            return self.open(flow, found, now);
        }
        match found {
            Some(found) if matches!(found.session, Session::Local { .. }) => {
                self.advance(flow, found, event, now);
            }
            // A host resets what it does not hold: that is no session (R7).
            _ if event == Event::HostRst => {}
            other => {
                self.count(Counter::SessionLearnt);
                self.enter(flow, other, State::Established.after(event), true, now.tick());
            }
        }
    }

    /// R3: the host answered SYN-ACK. A retransmitted one changes nothing; one for a flow that
    /// had got further begins a new session on the same 5-tuple, with a newer version (R12).
    fn open(&mut self, flow: &FlowKey, found: Option<Found>, now: Now) {
        if let Some(found) = found
            && matches!(found.session, Session::Local { state: State::HalfOpen, .. })
        {
            return self.shared.table.touch(&found, now.tick());
        }
        self.count(Counter::SessionOpened);
        let within_limit =
            self.shared.table.gauges().half_open < self.shared.settings.half_open_max;
        if !within_limit {
            self.count(Counter::HalfOpenOverLimit);
        }
        self.enter(flow, found, State::HalfOpen, within_limit, now.tick());
    }

    /// Puts a local session into the table, in the place of what was there, and publishes it.
    fn enter(
        &mut self,
        flow: &FlowKey,
        mut found: Option<Found>,
        state: State,
        publish: bool,
        now: Tick,
    ) {
        let version = self.shared.clock.next();
        // Marked as published only once the DHT core has been told.
        let session = Session::Local { state, version, published: false };
        for _ in 0..ATTEMPTS {
            match self.place(flow, found, session, now) {
                Replace::Replaced(handle) => {
                    if publish && self.publish(flow, version) {
                        self.shared.table.set_published(handle, true);
                    }
                    return;
                }
                Replace::Gone => found = self.shared.table.lookup(flow),
                Replace::Full => return self.count(Counter::TableFull),
            }
        }
        self.count(Counter::TableContended);
    }

    /// Replaces what was found of a flow, or inserts a session where nothing was.
    fn place(&self, flow: &FlowKey, found: Option<Found>, session: Session, now: Tick) -> Replace {
        let table = &self.shared.table;
        let Some(old) = found else {
            return match table.insert(flow, session, now) {
                Insert::Inserted(handle) => Replace::Replaced(handle),
                Insert::Exists(_) => Replace::Gone,
                Insert::Full => Replace::Full,
            };
        };
        let outcome = table.replace(flow, old.handle, session, now);
        if matches!(outcome, Replace::Replaced(_))
            && matches!(old.session, Session::Redirect { .. })
        {
            self.count(Counter::RedirectSuperseded);
        }
        outcome
    }

    fn publish(&mut self, flow: &FlowKey, version: Version) -> bool {
        let queued = self.core.announce(Announcement::Publish { flow: *flow, version }).is_ok();
        self.count(if queued { Counter::PublishQueued } else { Counter::PublishDeferred });
        queued
    }

    /// Moves a local session on by `event`, and publishes it if that waited for the handshake.
    fn advance(&mut self, flow: &FlowKey, found: Found, event: Event, now: Now) {
        let mut found = found;
        for _ in 0..ATTEMPTS {
            let Session::Local { state, version, published } = found.session else {
                return;
            };
            let next = state.after(event);
            if next == state {
                return self.shared.table.touch(&found, now.tick());
            }
            if self.shared.table.transition(found.handle, state, next, now.tick()) {
                if !published && !next.is_lingering() && self.publish(flow, version) {
                    self.shared.table.set_published(found.handle, true);
                }
                return;
            }
            match self.shared.table.lookup(flow) {
                Some(newer) => found = newer,
                None => return,
            }
        }
        self.count(Counter::TableContended);
    }

    /// What the DHT core says.
    fn poll_core(&mut self, now: Now) -> bool {
        for taken in 0..ANSWERS_PER_TURN {
            match self.core.answer() {
                Some(Answer::Resolved { flow, resolution }) => {
                    self.resolved(&flow, resolution, now);
                }
                Some(Answer::NotMine { flow, owner }) => self.not_mine(&flow, owner),
                Some(Answer::OwnerDead { owner }) => self.owner_dead(owner),
                None => return taken > 0,
            }
        }
        true
    }

    /// R5: the answer to a lookup.
    fn resolved(&mut self, flow: &FlowKey, resolution: Resolution, now: Now) {
        if !self.parking.is_waiting(flow) {
            return self.count(Counter::AnswerLate);
        }
        match resolution {
            Resolution::Owner { locator, version }
                if locator == self.shared.settings.classifier.locator =>
            {
                self.count(Counter::ResolvedSelf);
                let session =
                    Session::Local { state: State::Established, version, published: true };
                self.install(flow, session, now);
                self.release(flow, Verdict::Host, now);
            }
            Resolution::Owner { locator, .. } if self.is_member(locator) => {
                self.count(Counter::ResolvedOwner);
                if self.install(flow, Session::Redirect { owner: locator }, now) {
                    self.count(Counter::RedirectInstalled);
                }
                self.release(flow, Verdict::Tunnel(locator), now);
            }
            Resolution::Owner { .. } => {
                self.release(flow, Verdict::Drop(Counter::ResolvedStranger), now);
            }
            Resolution::NotFound if self.parking.wait_for_grace(flow, now) => {
                self.count(Counter::ResolvedAgain);
            }
            Resolution::NotFound => {
                self.count(Counter::ResolvedNobody);
                let hash = self.shared.table.hash(flow);
                self.admission.remember_nobody(*flow, hash, now);
                self.release(flow, Verdict::Host, now);
            }
            Resolution::TimedOut => {
                self.count(Counter::ResolvedTimedOut);
                self.release(flow, Verdict::Drop(Counter::DroppedTimedOut), now);
            }
        }
    }

    /// Puts what a lookup said into the table, unless the flow got there meanwhile.
    fn install(&mut self, flow: &FlowKey, session: Session, now: Now) -> bool {
        match self.shared.table.insert(flow, session, now.tick()) {
            Insert::Inserted(_) => true,
            Insert::Exists(_) => false,
            Insert::Full => {
                self.count(Counter::TableFull);
                false
            }
        }
    }

    /// Lets a flow's parked packets go: where the table says by now, else by `otherwise`.
    fn release(&mut self, flow: &FlowKey, otherwise: Verdict, now: Now) {
        let verdict = match self.shared.table.lookup(flow).map(|found| found.session) {
            Some(Session::Local { .. }) => Verdict::Host,
            Some(Session::Redirect { owner }) => Verdict::Tunnel(owner),
            None => otherwise,
        };
        for frame in self.parking.release(flow).into_iter().flatten() {
            let read = self.shared.settings.classifier.read_uplink(frame.data());
            let (FromUplink::Segment(segment) | FromUplink::IcmpError(segment)) = read else {
                continue;
            };
            match verdict {
                Verdict::Host => self.count(Counter::ReleasedHost),
                Verdict::Tunnel(_) => self.count(Counter::ReleasedTunnel),
                Verdict::Park | Verdict::Drop(_) => {}
            }
            self.act(verdict, frame, &segment, now);
        }
    }

    /// R6: an owner says that it does not hold a flow. The next packet asks again.
    fn not_mine(&mut self, flow: &FlowKey, owner: IpAddr) {
        self.count(Counter::NotMineReceived);
        if let Some(found) = self.shared.table.lookup(flow)
            && found.session == (Session::Redirect { owner })
            && self.shared.table.remove(found.handle)
        {
            self.count(Counter::RedirectDropped);
        }
    }

    /// R13: nobody tunnels into the void. The search for redirects to a dead server is begun;
    /// housekeeping goes on with it.
    fn owner_dead(&mut self, owner: IpAddr) {
        self.count(Counter::OwnerDead);
        self.dead_owners.retain(|(dead, _)| *dead != owner);
        // Full: redirects to this one end when they are idle.
        let _ = self.dead_owners.try_push((owner, 0));
    }

    /// R13: drops a slice of the redirects to dead servers. Their strays are looked up again, and
    /// the DHT says that nobody owns them.
    fn drop_orphans(&mut self) {
        let Shared { table, .. } = &self.shared;
        for (owner, next) in &mut self.dead_owners {
            let end = (*next + ORPHANS_SLICE).min(table.buckets());
            for bucket in *next..end {
                table.visit(bucket, |handle, listed| {
                    let orphan = listed.session == Session::Redirect { owner: *owner };
                    if orphan && table.remove(handle) {
                        self.counters.count(Counter::RedirectOrphaned);
                    }
                });
            }
            *next = end;
        }
        self.dead_owners.retain(|(_, next)| *next < table.buckets());
    }

    /// What is not urgent: parked packets whose time has come, and a slice of the table's sweep.
    fn housekeeping(&mut self, now: Now) {
        self.housekeeping_next = Now::from_us(now.us + HOUSEKEEPING_US);
        if !self.parking.is_empty() {
            let mut due = ArrayVec::<_, 64>::new();
            self.parking.due(now, &mut due);
            for due in due {
                self.parking_due(due);
            }
        }
        self.drop_orphans();
        let mut due = ArrayVec::new();
        let Shared { settings, table, .. } = &self.shared;
        self.sweep.slice(table, &settings.timeouts, now.tick(), &mut due);
        for due in due {
            self.session_due(due);
        }
    }

    fn parking_due(&mut self, due: parking::Due) {
        match due {
            parking::Due::AskAgain(flow) => {
                // If the ring is full the packets wait for their deadline.
                self.ask(flow);
            }
            parking::Due::Expired(flow) => {
                let frames = self.parking.release(&flow).map_or(0, |frames| frames.len());
                self.counters.add(Counter::ParkExpired, frames as u64);
            }
        }
    }

    /// R8: an entry whose time has come leaves the table, and its record the DHT.
    fn session_due(&mut self, due: expiry::Due) {
        let (handle, listed) = match due {
            expiry::Due::Expire(handle, listed) => (handle, listed),
            expiry::Due::Publish(handle, listed) => {
                if let Session::Local { version, .. } = listed.session
                    && self.publish(&listed.flow, version)
                {
                    self.shared.table.set_published(handle, true);
                }
                return;
            }
        };
        let counter = match listed.session {
            Session::Redirect { .. } => Counter::RedirectExpired,
            Session::Local { state, .. } if state.is_lingering() => Counter::SessionClosed,
            Session::Local { .. } => Counter::SessionExpired,
        };
        if let Session::Local { version, published: true, .. } = listed.session {
            let withdraw = Announcement::Withdraw { flow: listed.flow, version };
            if self.core.announce(withdraw).is_err() {
                return self.count(Counter::WithdrawDeferred);
            }
            self.count(Counter::WithdrawQueued);
        }
        if self.shared.table.remove(handle) {
            self.count(counter);
        }
    }

    fn is_member(&self, locator: IpAddr) -> bool {
        self.shared.settings.members.iter().any(|prefix| prefix.contains(&locator))
    }

    fn send_host(&mut self, frame: U::Frame) {
        if self.to_host.is_full() {
            self.flush();
        }
        if self.to_host.try_push(frame).is_err() {
            self.count(Counter::HostUnsent);
        }
    }

    fn send_uplink(&mut self, frame: U::Frame) {
        if self.to_uplink.is_full() {
            self.flush();
        }
        if self.to_uplink.try_push(frame).is_err() {
            self.count(Counter::UplinkUnsent);
        }
    }

    fn send_tunnel(&mut self, mut frame: U::Frame, segment: &Segment, owner: IpAddr, now: Now) {
        let Settings { classifier, uplink_mtu, .. } = &*self.shared.settings;
        let tunnel =
            Tunnel { local: classifier.locator, remote: owner, port: classifier.tunnel_port };
        let entropy = self.shared.table.hash(&segment.flow) as u16;
        match encap::encapsulate(&mut frame, &segment.packet, tunnel, entropy, *uplink_mtu) {
            Ok(()) => {
                self.count(Counter::TunnelSent);
                self.send_uplink(frame);
            }
            Err(EncapError::TooBig) => self.answer_too_big(frame, &segment.packet, tunnel, now),
            Err(EncapError::NoHeadroom) => self.count(Counter::TunnelNoHeadroom),
        }
    }

    /// R11: the tunnel is no black hole. The sender learns what fits, and TCP sends it again.
    fn answer_too_big(&mut self, mut frame: U::Frame, packet: &Packet, tunnel: Tunnel, now: Now) {
        let mtu = self.shared.settings.uplink_mtu.saturating_sub(encap::overhead(tunnel.remote));
        let may = self.too_big_answers.take(now, TOO_BIG_PER_SECOND, TOO_BIG_BURST);
        if may && too_big::answer(&mut frame, packet, mtu).is_some() {
            self.count(Counter::TooBigAnswered);
            self.send_uplink(frame);
        } else {
            self.count(Counter::TunnelTooBig);
        }
    }

    /// Sends what waits. Frames that a full queue leaves wait for the next turn; only when
    /// more come than can wait are any dropped. Returns whether anything was sent.
    fn flush(&mut self) -> bool {
        let (uplink, host) = (self.to_uplink.len(), self.to_host.len());
        if uplink > 0 {
            self.uplink.transmit(&mut self.to_uplink);
        }
        if host > 0 {
            self.host.transmit(&mut self.to_host);
        }
        let (uplink, host) = (uplink - self.to_uplink.len(), host - self.to_host.len());
        self.counters.add(Counter::UplinkSent, uplink as u64);
        self.counters.add(Counter::HostSent, host as u64);
        uplink + host > 0
    }

    fn count(&self, counter: Counter) {
        self.counters.count(counter);
    }
}
