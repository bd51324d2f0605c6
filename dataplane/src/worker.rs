//! The worker: one poll-mode core, its queue pair of each port, and a packet's whole way through
//! them. Read from [`Worker::turn`] downwards. Never waits: not for a packet, a lookup, a ring or
//! another worker.
//!
//! The rules (R1 to R13) are those of `docs/specification/rules.md`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Cache};
use arrayvec::ArrayVec;
use holdfast_dpdk::tsc;
use holdfast_handoff::{
    Announcement, Answer, Clock, Resolution, Resolve, StrayFate, StrayLoss, StrayReporter, Version,
    WorkerEnd, unix_us,
};
use holdfast_net::headers::TcpFlags;
use holdfast_net::{FlowKey, Headers, Packet};
use ipnet::IpNet;

use crate::admission::{Admission, AdmissionLimits, Refusal, TokenBucket, source_prefix};
use crate::capture::{Observer, Origin};
use crate::classify::{self, Classifier, FromHost, FromUplink, Inside, Segment};
use crate::encap::{self, EncapError, LINK_HEADER_MAX, Tunnel};
use crate::fragments::{Fragments, LIMITS};
use crate::frame::Frame;
use crate::idle::{Idle, IdleStrategy};
use crate::mss;
use crate::parking::{self, Park, Parking, ParkingLimits};
use crate::port::{BURST, Port};
use crate::session::expiry::{self, Sweep};
use crate::session::owners::OwnerId;
use crate::session::state::Event;
use crate::session::table::{Entry, Insert, Located, SessionTable};
use crate::session::word::Kind;
use crate::session::{Session, State};
use crate::stats::{Counter, Gauge, WorkerCounters};
use crate::switch::{HostPort, Switch};
use crate::time::{Now, Tick, TscClock};
use crate::too_big;

mod capture;
mod fragments;
mod strays;
mod switch;

use fragments::Fate;
use switch::NEIGHBOUR_ANSWERS_BURST;
pub use switch::NEIGHBOUR_ANSWERS_PER_SECOND;

/// Frames that wait to be sent out of one port, at most.
pub const OUT_MAX: usize = 4 * BURST;
/// Segments whose lines of the table are asked for together: closely, so that the walks through
/// the page table overlap, and before the whole burst is classified.
const GROUP: usize = 16;
/// Answers of the DHT core taken in a turn, at most, so that packets never wait for them.
const ANSWERS_PER_TURN: usize = 64;
/// Time between two turns of housekeeping, in microseconds.
const HOUSEKEEPING_US: u64 = 1000;
/// Waiting flows whose time has come, dealt with in a turn of housekeeping: half a million second
/// questions a second.
const PARKED_DUE_MAX: usize = 512;
/// Dead owners whose redirects are looked for at the same time; those of more end by being idle.
const DEAD_OWNERS_MAX: usize = 16;
/// Buckets looked at for redirects to one dead owner in a turn of housekeeping.
const ORPHANS_SLICE: usize = 1024;
/// Answers to packets too big for the tunnel: per second, and at once.
pub const TOO_BIG_PER_SECOND: u32 = 1000;
const TOO_BIG_BURST: u32 = 256;
/// Rewritten segments for which all servers are told that their session is not here: per second,
/// and at once.
pub const NOT_MINE_TO_ALL_PER_SECOND: u32 = 100;
const NOT_MINE_TO_ALL_BURST: u32 = 1000;
/// For so long the host's RSTs for a half-open session are doubted, in milliseconds.
const HALF_OPEN_DOUBT_MS: u64 = 2000;
/// For so long since the first RST or segment of a flow that nobody seems to have, the host's RSTs
/// are doubted, in milliseconds: its record may be on the way, even when the network has just
/// changed.
const DOUBT_MS: u64 = 2000;
/// How long it is until the host's RSTs are doubted anew, when the flow may be of another session:
/// one that the table knows, and one of which nothing is known. A client repeats its segment
/// between the two, after two minutes at the latest (RFC 6298 §5). In milliseconds.
const KNOWN_AGAIN_MS: u64 = 10_000;
const UNKNOWN_AGAIN_MS: u64 = 150_000;
/// A SYN-ACK of the host answers the last SYN if that came so recently, in milliseconds; else the
/// host repeats it, which it does after a second at the earliest (RFC 6298 §2.1).
const SYN_ACK_MS: u64 = 900;
/// Looks at an entry that another worker keeps changing, before the update is given up.
const ATTEMPTS: usize = 4;

/// What all workers of a server are told. Never changes; others may take its place
/// ([`Worker::set_settings`]), in which only what says so differs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Our locator, our services, our tunnels' port. Its services may differ.
    pub classifier: Classifier,
    /// Prefixes of the members' locators, of our locator's family: who may tunnel to us and be
    /// tunnelled to (R6). May differ.
    pub members: Vec<IpNet>,
    /// What the ports carry.
    pub ports: PortLimits,
    /// Half-open sessions that are published; those above wait for their handshake (R3).
    /// Inbound-only, those that are kept at all. May differ.
    pub half_open_max: u64,
    /// What the host sends does not come by: sessions follow from what clients send, and their
    /// ends from what the kernel holds ([`crate::kernel`]).
    pub inbound_only: bool,
    /// Limits of the parking, per worker. May differ, but for `packets_max`.
    pub parking: ParkingLimits,
    /// Limits on lookups, per worker. May differ.
    pub admission: AdmissionLimits,
    /// What to do when there is nothing to do. May differ.
    pub idle: IdleStrategy,
}

/// What the ports carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortLimits {
    /// The uplink's MTU: bytes of IP packet in a frame.
    pub uplink_mtu: usize,
    /// The MTU of the way to the host: a driver may refuse a longer frame for ever.
    pub host_mtu: usize,
    /// The uplink's device fills in the checksums of outer IPv4 headers.
    pub offloads_checksum: bool,
    /// The host's Ethernet address, where the host port is an interface of the kernel's that we make.
    pub host_mac: Option<[u8; 6]>,
}

/// What workers share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// What holds for the turn.
    pub settings: Arc<Settings>,
    /// The session table.
    pub table: Arc<SessionTable>,
    /// The clock that versions come from.
    pub clock: Arc<Clock>,
    /// Set when the daemon is about to stop: nothing new begins here, for nobody would publish it
    /// any more. A client repeats its SYN after a second.
    pub closing: Arc<AtomicBool>,
}

/// A worker with its queue pairs and all that is its own.
pub struct Worker<U: Port, H: Port<Frame = U::Frame>> {
    shared: Shared,
    counters: Arc<WorkerCounters>,
    core: WorkerEnd,
    /// The way to the ledger of incidents, if there is one.
    reporter: Option<StrayReporter>,
    uplink: U,
    host: HostPort<H>,
    to_uplink: ArrayVec<U::Frame, OUT_MAX>,
    to_host: ArrayVec<U::Frame, OUT_MAX>,
    parking: Parking<U::Frame>,
    fragments: Fragments<U::Frame, Fate>,
    /// Observes packets while somebody traces or captures.
    observer: Observer,
    admission: Admission,
    sweep: Sweep,
    /// The tunnels to owners, by their numbers, made when they are first used.
    tunnels: Box<[Option<Tunnel>]>,
    /// Dead owners, and the bucket that the search for redirects to them has come to.
    dead_owners: ArrayVec<(OwnerId, usize), DEAD_OWNERS_MAX>,
    too_big_answers: TokenBucket,
    not_mine_to_all: TokenBucket,
    neighbour_answers: TokenBucket,
    housekeeping_next: Now,
}

/// A client's segment that came in a burst: where its session is in the table, its control bits
/// (none of an ICMP error), where its headers are, and how it came.
#[derive(Clone, Copy)]
struct Arrival {
    at: Located,
    flags: TcpFlags,
    headers: Headers,
    way: Way,
}

/// How a client's segment came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As it is.
    Direct,
    /// In a tunnel, from one of the burst's senders.
    Tunnelled(u8),
    /// With its destination rewritten: by whom cannot be told.
    Rewritten,
}

/// What a frame from the network was read as.
enum Reading {
    /// A client's segment.
    Segment(Arrival),
    /// A fragment of what may be a client's segment (R10).
    Fragment,
    /// None of ours: to the host, and count it.
    Pass(Counter),
    /// Drop, for this reason.
    Refuse(Counter),
}

/// Frames that came at once.
type Burst<U> = ArrayVec<<U as Port>::Frame, BURST>;
/// Locators of the members that tunnelled some of a burst.
type Senders = ArrayVec<IpAddr, BURST>;

/// What becomes of a client's segment.
#[derive(Clone, Copy)]
enum Verdict {
    /// To the host's kernel.
    Host,
    /// Into the tunnel to its owner.
    Tunnel(OwnerId),
    /// Wait until its owner is known.
    Park,
    /// Drop, for this reason.
    Drop(Counter),
}

impl<U: Port, H: Port<Frame = U::Frame>> Worker<U, H> {
    /// Worker `index` of `count`, with a port to the host.
    #[must_use]
    pub fn new(
        shared: Shared,
        place: (usize, usize),
        counters: Arc<WorkerCounters>,
        core: WorkerEnd,
        uplink: U,
        host: H,
    ) -> Worker<U, H> {
        Worker::with_host(shared, place, counters, core, uplink, HostPort::Port(host))
    }

    /// The same with the host behind the NIC's switch; `shared` says inbound-only then.
    #[must_use]
    pub fn through_switch(
        shared: Shared,
        place: (usize, usize),
        counters: Arc<WorkerCounters>,
        core: WorkerEnd,
        uplink: U,
        switch: Switch,
    ) -> Worker<U, H> {
        Worker::with_host(shared, place, counters, core, uplink, HostPort::Switch(switch))
    }

    fn with_host(
        shared: Shared,
        (index, count): (usize, usize),
        counters: Arc<WorkerCounters>,
        core: WorkerEnd,
        uplink: U,
        host: HostPort<H>,
    ) -> Worker<U, H> {
        Worker {
            counters,
            core,
            reporter: None,
            uplink,
            host,
            to_uplink: ArrayVec::new(),
            to_host: ArrayVec::new(),
            parking: Parking::new(shared.settings.parking),
            fragments: Fragments::new(LIMITS),
            observer: Observer::unread(),
            admission: Admission::new(shared.settings.admission),
            sweep: Sweep::new(&shared.table, index, count),
            tunnels: vec![None; OwnerId::COUNT].into(),
            dead_owners: ArrayVec::new(),
            too_big_answers: TokenBucket::full(TOO_BIG_BURST),
            not_mine_to_all: TokenBucket::full(NOT_MINE_TO_ALL_BURST),
            neighbour_answers: TokenBucket::full(NEIGHBOUR_ANSWERS_BURST),
            housekeeping_next: Now::default(),
            shared,
        }
    }

    /// Makes the worker report what becomes of strays.
    #[must_use]
    pub fn reporting_to(mut self, reporter: StrayReporter) -> Worker<U, H> {
        self.reporter = Some(reporter);
        self
    }

    /// Gives the worker an observer that somebody reads.
    pub fn set_observer(&mut self, observer: Observer) {
        self.observer = observer;
    }

    /// Turns until `stop` is set. All workers share `clock`, and before each turn look whether
    /// there are other `settings`: whoever puts them there keeps the former ones until all workers
    /// have turned, so that none has to free them.
    pub fn run(mut self, clock: TscClock, settings: &ArcSwap<Settings>, stop: &AtomicBool) {
        let mut settings = Cache::new(settings);
        let mut idle = Idle::new(self.shared.settings.idle);
        let mut began = tsc();
        while !stop.load(Ordering::Relaxed) {
            // One load and one comparison, unless they are others.
            let latest = settings.load();
            if !Arc::ptr_eq(latest, &self.shared.settings) {
                self.set_settings(latest);
                idle = Idle::new(latest.idle);
            }
            let busy = self.turn(clock.at(began));
            idle.after_turn(busy);
            let ended = tsc();
            let cycles = if busy { Counter::CyclesBusy } else { Counter::CyclesIdle };
            self.counters.add(cycles, ended.saturating_sub(began));
            began = ended;
        }
    }

    /// Goes on with other settings. What is parked, admitted or being looked up stays.
    #[cold]
    pub fn set_settings(&mut self, settings: &Arc<Settings>) {
        self.parking.set_limits(settings.parking);
        self.admission.set_limits(settings.admission);
        self.shared.settings = Arc::clone(settings);
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

    /// A burst from the network, if there is one.
    fn poll_uplink(&mut self, now: Now) -> bool {
        let mut burst = Burst::<U>::new();
        self.uplink.receive(&mut burst);
        if burst.is_empty() {
            return false;
        }
        self.counters.add(Counter::UplinkReceived, burst.len() as u64);
        if self.observer.is_armed() {
            self.observed(&mut burst, Origin::Uplink, now);
        } else {
            self.uplink_burst(&mut burst, now);
        }
        true
    }

    /// A burst from the network's way: classify all, ask for the table's lines in groups, then look up,
    /// decide and act one by one, when memory has answered.
    #[inline(always)]
    fn uplink_burst(&mut self, burst: &mut Burst<U>, now: Now) {
        if matches!(self.host, HostPort::Switch(_)) {
            self.sort_out(burst, now);
        }
        let mut senders = Senders::new();
        let mut readings = ArrayVec::<Reading, BURST>::new();
        for group in burst.chunks_mut(GROUP) {
            let first = readings.len();
            for frame in group {
                // Written once, to where it stays: a copy would wait for what was just written.
                match self.shared.settings.classifier.plain_segment(frame.data()) {
                    Some(segment) => readings.push(self.arrival(&segment, Way::Direct)),
                    None => readings.push(self.read(frame, &mut senders)),
                }
            }
            self.prefetch(&readings[first..]);
        }
        // Drained, not moved: what a burst needs is kilobytes.
        for (frame, reading) in burst.drain(..).zip(&readings) {
            match reading {
                Reading::Segment(arrival) => self.decide(frame, arrival, &senders, now),
                Reading::Fragment => self.fragment(frame, now),
                Reading::Pass(counter) => self.pass(frame, *counter),
                // Dropping the frame gives its buffer back.
                Reading::Refuse(counter) => self.count(*counter),
            }
        }
    }

    #[inline(always)]
    fn prefetch(&self, readings: &[Reading]) {
        for reading in readings {
            if let Reading::Segment(arrival) = reading {
                self.shared.table.prefetch(&arrival.at);
            }
        }
    }

    /// Looks a segment's flow up, decides and acts.
    #[inline(always)]
    fn decide(&mut self, frame: U::Frame, arrival: &Arrival, senders: &Senders, now: Now) {
        let found = self.shared.table.find(&arrival.at);
        let verdict = if arrival.way == Way::Direct {
            self.verdict(arrival, found, now)
        } else {
            self.verdict_tunnelled(arrival, found, senders, now)
        };
        self.act(verdict, frame, arrival, now);
    }

    #[inline(always)]
    fn arrival(&self, segment: &Segment, way: Way) -> Reading {
        let Segment { key, flags, headers } = *segment;
        let at = self.shared.table.locate(&key);
        Reading::Segment(Arrival { at, flags, headers, way })
    }

    /// Reads a frame from the network that is no plain segment, and takes it out of its tunnel if
    /// it is in one.
    #[inline(never)]
    fn read(&self, frame: &mut U::Frame, senders: &mut Senders) -> Reading {
        match self.shared.settings.classifier.read_uplink(frame.data()) {
            FromUplink::Segment(segment) => self.arrival(&segment, Way::Direct),
            FromUplink::IcmpError(segment) => {
                self.count(Counter::IcmpError);
                self.arrival(&segment, Way::Direct)
            }
            FromUplink::Tunnel { outer, sender } => {
                match self.take_out_of_tunnel(frame, outer, sender) {
                    Ok(Inside::Segment(segment)) => {
                        self.count(Counter::TunnelReceived);
                        let way = Way::Tunnelled(senders.len() as u8);
                        senders.push(sender);
                        self.arrival(&segment, way)
                    }
                    Ok(Inside::LaterFragment) => Reading::Pass(Counter::TunnelReceived),
                    Err(refusal) => Reading::Refuse(refusal),
                }
            }
            FromUplink::Rewritten { segment, service } => {
                match encap::turn_back(frame, &segment.headers, service) {
                    Some(()) => {
                        self.count(Counter::TunnelReceived);
                        self.arrival(&segment, Way::Rewritten)
                    }
                    None => Reading::Refuse(Counter::TunnelLength),
                }
            }
            FromUplink::Other | FromUplink::Malformed(_) | FromUplink::OtherFragment
                if self.is_reflected(frame.data()) =>
            {
                Reading::Refuse(Counter::HostReflected)
            }
            FromUplink::Other => Reading::Pass(Counter::Passed),
            FromUplink::Malformed(reason) => Reading::Pass(Counter::malformed(reason)),
            FromUplink::Fragment(_) => Reading::Fragment,
            FromUplink::OtherFragment => Reading::Pass(Counter::FragmentPassed),
        }
    }

    /// Whether it is a broadcast or multicast of the host's own: a NIC's switch may give it back, as
    /// kernel drivers of virtual functions know. The host would take it for a station with its address.
    fn is_reflected(&self, frame: &[u8]) -> bool {
        let sent_by_host = |mac: [u8; 6]| frame.get(6..12) == Some(&mac[..]);
        frame.first().is_some_and(|first| first & 1 != 0)
            && self.shared.settings.ports.host_mac.is_some_and(sent_by_host)
    }

    fn pass(&mut self, frame: U::Frame, counter: Counter) {
        self.count(counter);
        self.send_host(frame);
    }

    /// R6: a tunnel packet is taken only from a member, and only with a service's segment inside,
    /// or with a fragment to its address, which goes where the sender's table of fragments says.
    fn take_out_of_tunnel(
        &self,
        frame: &mut U::Frame,
        outer: Packet,
        sender: IpAddr,
    ) -> Result<Inside, Counter> {
        if !self.is_member(sender) {
            return Err(Counter::TunnelStranger);
        }
        let inner = classify::tunnelled(frame.data(), &outer).map_err(Counter::tunnel_malformed)?;
        let inside = self.shared.settings.classifier.inside(frame.data(), inner);
        let inside = inside.ok_or(Counter::TunnelNotService)?;
        let packet = encap::decapsulate(frame, &outer, &inner).ok_or(Counter::TunnelLength)?;
        Ok(match inside {
            Inside::Segment(segment) => {
                Inside::Segment(Segment { headers: packet.headers(), ..segment })
            }
            Inside::LaterFragment => Inside::LaterFragment,
        })
    }

    /// R2, R4, R5: what becomes of a segment that came from the network as it is.
    #[inline(always)]
    fn verdict(&mut self, arrival: &Arrival, found: Option<Entry>, now: Now) -> Verdict {
        let is_syn = arrival.flags.0 & (TcpFlags::SYN.0 | TcpFlags::ACK.0) == TcpFlags::SYN.0;
        if is_syn {
            return self.verdict_on_syn(&arrival.at, found, now);
        }
        match found.map(|entry| (entry, entry.kind())) {
            Some((entry, Kind::Local(state))) => {
                self.count(Counter::LocalHit);
                self.hear_client(arrival, &entry, state, now);
                Verdict::Host
            }
            Some((entry, Kind::Redirect(owner))) => {
                self.count(Counter::RedirectHit);
                if arrival.flags.0 & (TcpFlags::FIN.0 | TcpFlags::RST.0) == 0 {
                    self.shared.table.touch(&entry, now.tick());
                } else {
                    self.end_redirect(&arrival.at, &entry, now);
                }
                Verdict::Tunnel(owner)
            }
            None => {
                self.count(Counter::Miss);
                self.verdict_on_stray(&arrival.at, now)
            }
        }
    }

    /// R12: the client ends its session, and may use its port again at once; the next session's
    /// SYN need not come by here. What follows is looked up again.
    #[inline(never)]
    fn end_redirect(&mut self, at: &Located, entry: &Entry, now: Now) {
        if self.shared.table.remove(entry) {
            self.count(Counter::RedirectEnded);
            self.report_passing(at, StrayFate::Ended, now);
        }
    }

    /// R6: a segment out of a tunnel goes to the host, unless we know that another server has a
    /// later session on its flow (R12). It is never looked up and never tunnelled again, so loops
    /// cannot happen.
    #[inline(never)]
    fn verdict_tunnelled(
        &mut self,
        arrival: &Arrival,
        found: Option<Entry>,
        senders: &[IpAddr],
        now: Now,
    ) -> Verdict {
        match found.map(|entry| (entry, entry.kind())) {
            Some((entry, Kind::Local(state)))
                if state.is_lingering() || state == State::HalfOpen =>
            {
                self.tell_sender(arrival, senders, now, |flow, sender| Announcement::Doubtful {
                    flow,
                    sender,
                });
                self.doubt(arrival, &entry, state, now);
                Verdict::Host
            }
            Some((entry, Kind::Local(state))) => {
                self.hear_client(arrival, &entry, state, now);
                Verdict::Host
            }
            // The host has no session or an older one, and would reset or mislead the client.
            Some((_, Kind::Redirect(_))) => {
                self.tell_sender(arrival, senders, now, |flow, sender| Announcement::NotMine {
                    flow,
                    sender,
                });
                Verdict::Drop(Counter::TunnelSuperseded)
            }
            None => {
                self.tell_sender(arrival, senders, now, |flow, sender| Announcement::NotMine {
                    flow,
                    sender,
                });
                if arrival.flags != TcpFlags(0) {
                    self.doubt_unknown(&arrival.at, now);
                }
                Verdict::Host
            }
        }
    }

    /// R12: the host may hold a session that the table lacks. If it does not, it resets what may be
    /// another server's, to which an outdated redirect no longer leads ([`Worker::is_doubted`]).
    fn doubt_unknown(&self, at: &Located, now: Now) {
        if let Some(flow) = self.shared.table.flow(at) {
            self.is_sure(&flow, UNKNOWN_AGAIN_MS, now);
        }
    }

    /// R5, R12: whether a flow has been nobody's for two seconds, as far as is known here. Begins to
    /// count when asked, and anew after `again_ms`.
    fn is_sure(&self, flow: &FlowKey, again_ms: u64, now: Now) -> bool {
        let table = &self.shared.table;
        let (hash, now) = (table.hash(flow), now.tick());
        match table.unknown().age_ms(hash, now) {
            Some(age_ms) if age_ms < again_ms => age_ms >= DOUBT_MS,
            _ => {
                table.unknown().note(hash, now);
                false
            }
        }
    }

    /// R5, R12: whether a RST of the host answers a segment of a flow of which nothing has been
    /// known for less than two seconds. What comes of it next is looked up again.
    #[inline(never)]
    fn is_doubted(&self, at: &Located, now: Now) -> bool {
        let table = &self.shared.table;
        let age_ms =
            table.flow(at).and_then(|flow| table.unknown().age_ms(table.hash(&flow), now.tick()));
        age_ms.is_some_and(|age_ms| age_ms < DOUBT_MS)
    }

    /// R6: the sender of a tunnelled segment looks its flow up again. Whoever it was that rewrote a
    /// segment: all servers are told, and one of them has the redirect.
    fn tell_sender(
        &mut self,
        arrival: &Arrival,
        senders: &[IpAddr],
        now: Now,
        announcement: fn(FlowKey, Option<IpAddr>) -> Announcement,
    ) {
        let sender = match arrival.way {
            Way::Tunnelled(index) => senders.get(usize::from(index)).copied(),
            Way::Direct | Way::Rewritten => None,
        };
        let may = sender.is_some()
            || self.not_mine_to_all.take(now, NOT_MINE_TO_ALL_PER_SECOND, NOT_MINE_TO_ALL_BURST);
        let sent = may
            && self
                .shared
                .table
                .flow(&arrival.at)
                .is_some_and(|flow| self.core.announce(announcement(flow, sender)).is_ok());
        self.count(if sent { Counter::NotMineSent } else { Counter::NotMineUnsent });
    }

    /// R12: a tunnelled segment for a session that is over, or has not begun, may be of a later one
    /// on its flow, whose record its sender had not met yet. So only the host itself says that a
    /// handshake is complete.
    fn doubt(&mut self, arrival: &Arrival, entry: &Entry, state: State, now: Now) {
        let is_end = arrival.flags.0 & (TcpFlags::FIN.0 | TcpFlags::RST.0) != 0;
        if state != State::HalfOpen || is_end {
            self.hear_client(arrival, entry, state, now);
        }
    }

    /// How long ago an entry changed or was touched; 0 when it is gone.
    fn idle_ms(&self, entry: &Entry, now: Now) -> u64 {
        self.shared.table.listed(entry, now.tick()).map_or(0, |listed| listed.idle_ms)
    }

    /// R12: whether a RST of the host must not reach the client, as it may answer a segment of a
    /// later session on the flow, which came here because that one's record is still on its way. The
    /// session is over in any case, and a client whose session it was repeats its segment.
    ///
    /// Only a RST without ACK answers a segment: there is no socket for it (RFC 9293 §3.5.2). With
    /// ACK the service resets its session itself, and the client must hear that.
    #[inline(never)]
    fn withholds(
        &mut self,
        at: &Located,
        entry: &Entry,
        state: State,
        flags: TcpFlags,
        now: Now,
    ) -> bool {
        if flags.contains(TcpFlags::ACK) {
            return false;
        }
        let withheld = match state {
            // Its client answers a SYN-ACK at once, or the one that the host repeats after a second.
            State::HalfOpen => self.idle_ms(entry, now) < HALF_OPEN_DOUBT_MS,
            _ => {
                let flow = self.shared.table.flow(at);
                flow.is_some_and(|flow| !self.is_sure(&flow, KNOWN_AGAIN_MS, now))
            }
        };
        if withheld {
            if state != State::HalfOpen {
                self.forget_session(at, entry, now);
            }
            self.count(Counter::RstWithheld);
        }
        withheld
    }

    /// R8, R12: the host has no socket for this session any more. Its flow is looked up when
    /// something comes of it again, and its record does not lead here.
    fn forget_session(&mut self, at: &Located, entry: &Entry, now: Now) {
        let version = self.shared.table.version(entry);
        let (Some(flow), Some(version)) = (self.shared.table.flow(at), version) else {
            return;
        };
        if !self.core.can_announce() {
            // It lingers, and the sweep withdraws it.
            return self.move_on(at, *entry, Event::HostRst, now);
        }
        if self.shared.table.remove(entry) {
            self.count(Counter::SessionClosed);
            if entry.is_published()
                && self.core.announce(Announcement::Withdraw { flow, version }).is_ok()
            {
                self.count(Counter::WithdrawQueued);
            }
        }
    }

    /// What a client's segment means to our session. An ICMP error means nothing to it (R9), and
    /// nor does a segment without any control bit, which no TCP sends.
    #[inline(always)]
    fn hear_client(&mut self, arrival: &Arrival, entry: &Entry, state: State, now: Now) {
        if arrival.flags != TcpFlags(0) {
            self.advance(&arrival.at, entry, state, Event::from_client(arrival.flags), now);
        }
    }

    /// R2: a SYN goes to the host, always, unless the daemon is about to stop.
    #[inline(never)]
    fn verdict_on_syn(&mut self, at: &Located, found: Option<Entry>, now: Now) -> Verdict {
        if self.shared.closing.load(Ordering::Relaxed) {
            return Verdict::Drop(Counter::SynClosing);
        }
        self.supersede(at, found, now);
        self.count(Counter::SynToHost);
        Verdict::Host
    }

    /// R2: a SYN supersedes what was known of the flow's earlier life.
    fn supersede(&mut self, at: &Located, found: Option<Entry>, now: Now) {
        let table = &self.shared.table;
        if let Some(flow) = table.flow(at) {
            let hash = table.hash(&flow);
            table.opening().note(hash, now.tick());
            self.admission.forget(&flow, hash);
        }
        if self.shared.settings.inbound_only && self.open_by_syn(at, found, now) {
            return;
        }
        if let Some(entry) = found
            && matches!(entry.kind(), Kind::Redirect(_))
            && self.shared.table.remove(&entry)
        {
            self.count(Counter::RedirectSuperseded);
        }
    }

    /// R3 where the host's SYN-ACK does not come by: the SYN makes a half-open session, which the
    /// client's ACK publishes. Returns whether the flow has a local session now.
    fn open_by_syn(&mut self, at: &Located, found: Option<Entry>, now: Now) -> bool {
        match found.map(|entry| (entry, entry.kind())) {
            Some((entry, Kind::Local(State::HalfOpen))) => {
                self.shared.table.touch(&entry, now.tick());
                return true;
            }
            // Anybody can send a SYN: the kernel challenges it, and a client that does begin anew
            // answers with RST.
            Some((_, Kind::Local(state))) if !state.is_lingering() => return true,
            _ => {}
        }
        if self.shared.table.half_open() >= self.shared.settings.half_open_max {
            self.count(Counter::HalfOpenOverLimit);
            return false;
        }
        self.count(Counter::SessionOpened);
        // The host's SYN-ACK will not be seen, and the client's ACK may reach another server: it
        // must find the record there (R3), as it would if the SYN-ACK had published it.
        let version = self.shared.clock.next();
        self.enter(at, found, State::HalfOpen, version, true, now.tick());
        true
    }

    /// R5: nothing is known of the flow. Ask for its owner, unless somebody asks too much.
    #[inline(never)]
    fn verdict_on_stray(&mut self, at: &Located, now: Now) -> Verdict {
        let Shared { table, .. } = &self.shared;
        let Some(flow) = table.flow(at) else {
            return Verdict::Host;
        };
        if self.admission.is_nobodys(&flow, table.hash(&flow), now) {
            self.count(Counter::NegativeHit);
            return Verdict::Host;
        }
        if self.parking.is_waiting(&flow) {
            return Verdict::Park;
        }
        match self.admission.admit(table.hash(&source_prefix(&flow)), now) {
            Ok(()) => Verdict::Park,
            Err(Refusal::Worker) => {
                self.report_refused(flow, StrayLoss::RefusedWorker, now);
                Verdict::Drop(Counter::LookupRefusedWorker)
            }
            Err(Refusal::Source) => {
                self.report_refused(flow, StrayLoss::RefusedSource, now);
                Verdict::Drop(Counter::LookupRefusedSource)
            }
        }
    }

    #[inline(always)]
    fn act(&mut self, verdict: Verdict, frame: U::Frame, arrival: &Arrival, now: Now) {
        match verdict {
            Verdict::Host => self.send_host(frame),
            Verdict::Tunnel(owner) => self.send_tunnel(frame, arrival, owner, now),
            Verdict::Park => match self.shared.table.flow(&arrival.at) {
                Some(flow) => self.park(frame, flow, now),
                None => self.pass(frame, Counter::Passed),
            },
            // Dropping the frame gives its buffer back.
            Verdict::Drop(counter) => self.count(counter),
        }
    }

    /// R5: the packet waits; the first of its flow asks.
    #[inline(never)]
    fn park(&mut self, frame: U::Frame, flow: FlowKey, now: Now) {
        match self.parking.park(flow, frame, now) {
            Park::Joined => self.count(Counter::Parked),
            Park::First => {
                self.count(Counter::Parked);
                if !self.ask(flow) {
                    self.parking.release(&flow);
                    self.report_refused(flow, StrayLoss::RingFull, now);
                }
            }
            Park::FlowFull(_) => self.count(Counter::ParkFlowFull),
            Park::Full(_) => {
                self.count(Counter::ParkFull);
                // What waits already reports its flow.
                if !self.parking.is_waiting(&flow) {
                    self.report_refused(flow, StrayLoss::ParkingFull, now);
                }
            }
        }
    }

    fn ask(&mut self, flow: FlowKey) -> bool {
        let asked = self.core.resolve(Resolve { flow, asked_at_unix_us: unix_us() }).is_ok();
        self.count(if asked { Counter::LookupAsked } else { Counter::LookupRingFull });
        asked
    }

    /// A burst from the host, if there is one.
    fn poll_host(&mut self, now: Now) -> bool {
        let HostPort::Port(host) = &mut self.host else {
            return false;
        };
        let mut burst = Burst::<U>::new();
        host.receive(&mut burst);
        if burst.is_empty() {
            return false;
        }
        self.counters.add(Counter::HostReceived, burst.len() as u64);
        if self.observer.is_armed() {
            self.observed(&mut burst, Origin::Host, now);
        } else {
            self.host_burst(&mut burst, now);
        }
        true
    }

    /// A burst from the host's way: it all goes out, and we learn from what services send.
    #[inline(always)]
    fn host_burst(&mut self, burst: &mut Burst<U>, now: Now) {
        let mut segments = ArrayVec::<_, BURST>::new();
        for (index, frame) in burst.iter_mut().enumerate() {
            let read = self.shared.settings.classifier.read_host(frame.data());
            if let FromHost::Segment(Segment { key, flags, .. }) = read {
                let at = self.shared.table.locate(&key);
                if flags.contains(TcpFlags::SYN) {
                    self.clamp_mss(frame);
                    self.shared.table.prefetch_insert(&at);
                } else {
                    self.shared.table.prefetch(&at);
                }
                segments.push((index, at, flags));
            }
        }
        // A bit for each frame of the burst.
        let mut superseded = 0u32;
        for (index, at, flags) in &segments {
            let found = self.shared.table.find(at);
            if !self.learn_from_host(at, *flags, found, now) {
                superseded |= 1 << index;
            }
        }
        let longest = self.shared.settings.ports.uplink_mtu + LINK_HEADER_MAX;
        for (index, frame) in burst.drain(..).enumerate() {
            if superseded & (1 << index) != 0 {
                continue;
            }
            if frame.data().len() <= longest {
                self.send_uplink(frame);
            } else {
                self.count(Counter::UplinkTooBig);
            }
        }
    }

    /// R11: the client's segments are to fit a tunnel, should their session move.
    #[inline(never)]
    fn clamp_mss(&self, frame: &mut U::Frame) {
        let Settings { classifier, ports, .. } = &*self.shared.settings;
        let Ok(Some(packet)) = Packet::from_ethernet(frame.data()) else {
            return;
        };
        let limit =
            mss::limit(&packet.network, ports.uplink_mtu, self.overhead(classifier.locator));
        if mss::clamp(frame.data_mut(), &packet, limit) {
            self.count(Counter::MssClamped);
        }
    }

    /// Bytes that a tunnel to a locator adds.
    fn overhead(&self, locator: IpAddr) -> usize {
        encap::overhead(self.shared.settings.classifier.encapsulation, locator.is_ipv4())
    }

    /// R3, R7, R8: what a service sends tells the truth about its session. `false`: it must not
    /// reach the client.
    #[inline(always)]
    fn learn_from_host(
        &mut self,
        at: &Located,
        flags: TcpFlags,
        found: Option<Entry>,
        now: Now,
    ) -> bool {
        let event = Event::from_host(flags);
        let is_syn_ack = flags.contains(TcpFlags::SYN.and(TcpFlags::ACK));
        match found.map(|entry| (entry, entry.kind())) {
            Some((_, Kind::Redirect(_))) => {
                return !self.is_superseded(is_syn_ack || event == Event::HostRst);
            }
            Some((entry, Kind::Local(state)))
                if event == Event::HostRst && self.withholds(at, &entry, state, flags, now) =>
            {
                return false;
            }
            _ if is_syn_ack => self.open(at, found, now),
            Some((entry, Kind::Local(state))) => self.advance(at, &entry, state, event, now),
            // A host resets what it does not hold: that is no session (R7).
            None if event == Event::HostRst => {
                let is_doubted = !flags.contains(TcpFlags::ACK) && self.is_doubted(at, now);
                if is_doubted {
                    self.count(Counter::RstWithheld);
                } else {
                    self.report_reset(at, flags, now);
                }
                return !is_doubted;
            }
            // It may be left over from a client that vanished, or be over: any other session on
            // the flow counts for more (R12).
            None => {
                self.count(Counter::SessionLearnt);
                let state = State::Established.after(event);
                self.enter(at, found, state, Version::UNKNOWN, true, now.tick());
            }
        }
        true
    }

    /// R12: the host speaks on a flow whose session is another server's. That one is the later
    /// one, for a SYN to this host would have ended the redirect (R2): the host's is left over from
    /// a client that vanished, and is not learnt. Whether it must not reach the client: RSTs and
    /// repeated SYN-ACKs are, which would end or confuse the client's session; of the rest it takes
    /// no notice.
    #[inline(never)]
    fn is_superseded(&self, is_harmful: bool) -> bool {
        self.count(if is_harmful { Counter::HostWithheld } else { Counter::HostSuperseded });
        is_harmful
    }

    /// R3: the host answered SYN-ACK. A retransmitted one changes nothing; one for a flow that
    /// had got further begins a new session on the same 5-tuple, with a newer version (R12).
    #[inline(never)]
    fn open(&mut self, at: &Located, found: Option<Entry>, now: Now) {
        let is_repeated = !self.answers_a_syn(at, now);
        if let Some(entry) = found
            && let Kind::Local(state) = entry.kind()
            && (is_repeated || state == State::HalfOpen)
        {
            return self.shared.table.touch(&entry, now.tick());
        }
        self.count(Counter::SessionOpened);
        let within_limit = self.shared.table.half_open() < self.shared.settings.half_open_max;
        if !within_limit {
            self.count(Counter::HalfOpenOverLimit);
        }
        // Of a handshake that began long ago, and that the client may have had with another server.
        let version = if is_repeated { Version::UNKNOWN } else { self.shared.clock.next() };
        self.enter(at, found, State::HalfOpen, version, within_limit, now.tick());
    }

    /// Whether a SYN-ACK of the host is its first answer to a SYN.
    fn answers_a_syn(&self, at: &Located, now: Now) -> bool {
        let table = &self.shared.table;
        let age_ms =
            table.flow(at).and_then(|flow| table.opening().age_ms(table.hash(&flow), now.tick()));
        age_ms.is_some_and(|age_ms| age_ms < SYN_ACK_MS)
    }

    /// Puts a local session into the table, in the place of what was there, and publishes it.
    #[inline(never)]
    fn enter(
        &mut self,
        at: &Located,
        mut found: Option<Entry>,
        state: State,
        version: Version,
        publish: bool,
        now: Tick,
    ) {
        // Marked as published only once the DHT core has been told.
        let session = Session::Local { state, version, published: false };
        for _ in 0..ATTEMPTS {
            let table = &self.shared.table;
            let entered = match found {
                None => match table.insert(at, session, now) {
                    Insert::Inserted(entry) => Some(entry),
                    Insert::Exists(_) => None,
                    Insert::Full => return self.count(Counter::TableFull),
                },
                Some(old) => self.replace(&old, session, now),
            };
            if let Some(entry) = entered {
                if publish {
                    self.publish(at, &entry, version);
                }
                return;
            }
            found = self.shared.table.find(at);
        }
        self.count(Counter::TableContended);
    }

    fn replace(&self, old: &Entry, session: Session, now: Tick) -> Option<Entry> {
        let entry = self.shared.table.replace(old, session, now)?;
        if matches!(old.kind(), Kind::Redirect(_)) {
            self.count(Counter::RedirectSuperseded);
        }
        Some(entry)
    }

    /// Tells the DHT core of a session, and notes that.
    fn publish(&mut self, at: &Located, entry: &Entry, version: Version) {
        let Some(flow) = self.shared.table.flow(at) else {
            return;
        };
        if self.announce(flow, version) {
            self.shared.table.set_published(entry);
        }
    }

    fn announce(&mut self, flow: FlowKey, version: Version) -> bool {
        let queued = self.core.announce(Announcement::Publish { flow, version }).is_ok();
        self.count(if queued { Counter::PublishQueued } else { Counter::PublishDeferred });
        queued
    }

    /// Moves a local session on by `event`, and publishes it if that waited for the handshake.
    #[inline(always)]
    fn advance(&mut self, at: &Located, entry: &Entry, state: State, event: Event, now: Now) {
        let next = state.after(event);
        if next != state {
            self.move_on(at, *entry, event, now);
        } else {
            self.shared.table.touch(entry, now.tick());
        }
    }

    #[inline(never)]
    fn move_on(&mut self, at: &Located, mut entry: Entry, event: Event, now: Now) {
        for _ in 0..ATTEMPTS {
            let Kind::Local(state) = entry.kind() else {
                return;
            };
            let next = state.after(event);
            if next == state {
                return self.shared.table.touch(&entry, now.tick());
            }
            if let Some(entry) = self.shared.table.transition(&entry, next, now.tick()) {
                if entry.is_unpublished()
                    && !next.is_lingering()
                    && let Some(version) = self.shared.table.version(&entry)
                {
                    self.publish(at, &entry, version);
                }
                return;
            }
            match self.shared.table.find(at) {
                Some(newer) => entry = newer,
                None => return,
            }
        }
        self.count(Counter::TableContended);
    }

    /// What the DHT core says.
    #[inline(never)]
    fn poll_core(&mut self, now: Now) -> bool {
        for taken in 0..ANSWERS_PER_TURN {
            match self.core.answer() {
                Some(Answer::Resolved { flow, resolution, dead }) => {
                    self.resolved(&flow, resolution, dead, now);
                }
                Some(Answer::NotMine { flow, owner }) => self.not_mine(&flow, owner),
                Some(Answer::OwnerDead { owner }) => self.owner_dead(owner),
                Some(Answer::Superseded { flow, version, owner }) => {
                    self.superseded(&flow, version, owner, now);
                }
                None => return taken > 0,
            }
        }
        true
    }

    /// R5: the answer to a lookup.
    fn resolved(&mut self, flow: &FlowKey, resolution: Resolution, dead: Option<IpAddr>, now: Now) {
        if !self.parking.is_waiting(flow) {
            return self.count(Counter::AnswerLate);
        }
        match resolution {
            Resolution::Owner { locator, version }
                if locator == self.shared.settings.classifier.locator =>
            {
                self.count(Counter::ResolvedSelf);
                self.adopt(flow, version, now);
                self.release(flow, Verdict::Host, StrayFate::Kept, now);
            }
            Resolution::Owner { locator, .. } if self.is_member(locator) => {
                self.count(Counter::ResolvedOwner);
                let Some(owner) = self.shared.table.owners().number(locator) else {
                    let fate = StrayFate::Dropped(StrayLoss::OwnersFull);
                    return self.release(flow, Verdict::Drop(Counter::OwnersFull), fate, now);
                };
                let redirect = Session::Redirect { owner: locator };
                if self.install(flow, redirect, now).is_some() {
                    self.count(Counter::RedirectInstalled);
                }
                let fate = StrayFate::Tunnelled { owner: locator };
                self.release(flow, Verdict::Tunnel(owner), fate, now);
            }
            Resolution::Owner { .. } => {
                let fate = StrayFate::Dropped(StrayLoss::Stranger);
                self.release(flow, Verdict::Drop(Counter::ResolvedStranger), fate, now);
            }
            Resolution::NotFound if self.parking.wait_for_grace(flow, now) => {
                self.count(Counter::ResolvedAgain);
            }
            Resolution::NotFound | Resolution::Orphaned => {
                self.count(Counter::ResolvedNobody);
                let is_orphaned = resolution == Resolution::Orphaned;
                if is_orphaned || self.is_sure(flow, UNKNOWN_AGAIN_MS, now) {
                    let hash = self.shared.table.hash(flow);
                    self.admission.remember_nobody(*flow, hash, now);
                }
                self.release(flow, Verdict::Host, StrayFate::Nobody { given_up: dead }, now);
            }
            Resolution::TimedOut => {
                self.count(Counter::ResolvedTimedOut);
                // What comes of it next is doubted anew: whoever has it may just be out of reach.
                let hash = self.shared.table.hash(flow);
                self.shared.table.unknown().note(hash, now.tick());
                let fate =
                    StrayFate::Dropped(dead.map_or(StrayLoss::TimedOut, StrayLoss::OwnerDead));
                self.release(flow, Verdict::Drop(Counter::DroppedTimedOut), fate, now);
            }
        }
    }

    /// Puts what a lookup said into the table, unless the flow got there meanwhile.
    fn install(&mut self, flow: &FlowKey, session: Session, now: Now) -> Option<(Located, Entry)> {
        let table = &self.shared.table;
        let at = table.locate_flow(flow)?;
        match table.insert(&at, session, now.tick()) {
            Insert::Inserted(entry) => Some((at, entry)),
            Insert::Exists(_) => None,
            Insert::Full => {
                self.count(Counter::TableFull);
                None
            }
        }
    }

    /// R5: a record of ours that the table lacks: it is of a life before this one. Published anew,
    /// for only then are we told of a later session on the flow (R12).
    fn adopt(&mut self, flow: &FlowKey, version: Version, now: Now) {
        let session = Session::Local { state: State::Established, version, published: false };
        if let Some((at, entry)) = self.install(flow, session, now) {
            self.publish(&at, &entry, version);
        }
    }

    /// Lets a flow's parked packets go: where the table says by now, else by `otherwise`, whose fate
    /// comes with it.
    fn release(&mut self, flow: &FlowKey, otherwise: Verdict, fate: StrayFate, now: Now) {
        let Some(at) = self.shared.table.locate_flow(flow) else {
            return;
        };
        let Some(mut waiting) = self.parking.release(flow) else {
            return;
        };
        let (verdict, fate) = match self.shared.table.find(&at).map(|entry| entry.kind()) {
            Some(Kind::Local(_)) => (Verdict::Host, StrayFate::Kept),
            Some(Kind::Redirect(owner)) => (Verdict::Tunnel(owner), self.fate_of(owner, fate)),
            None => (otherwise, fate),
        };
        let (parked, sent_before) = (waiting.frames.len(), self.counters.get(Counter::TunnelSent));
        let mut ends = false;
        for frame in waiting.frames.drain(..) {
            self.begin_observation(Origin::Waited, &frame, now);
            let mut first_fragment = None;
            let headers = match self.shared.settings.classifier.read_uplink(frame.data()) {
                FromUplink::Segment(segment) | FromUplink::IcmpError(segment) => {
                    ends |= segment.flags.0 & (TcpFlags::FIN.0 | TcpFlags::RST.0) != 0;
                    segment.headers
                }
                FromUplink::Fragment(fragment) => {
                    first_fragment = Some(fragment);
                    fragment.headers
                }
                _ => {
                    // It was one when it was parked.
                    self.pass(frame, Counter::Passed);
                    continue;
                }
            };
            match verdict {
                Verdict::Host => self.count(Counter::ReleasedHost),
                Verdict::Tunnel(_) => self.count(Counter::ReleasedTunnel),
                Verdict::Park | Verdict::Drop(_) => {}
            }
            let arrival = Arrival { at, flags: TcpFlags(0), headers, way: Way::Direct };
            self.act(verdict, frame, &arrival, now);
            if let Some(fragment) = first_fragment {
                self.settle_released(&fragment, verdict, at, now);
            }
        }
        self.end_observation();
        let sent = self.counters.get(Counter::TunnelSent) - sent_before;
        self.report_released(*flow, &waiting, fate, (parked as u64, sent), now);
        if ends
            && let Some(entry) = self.shared.table.find(&at)
            && matches!(entry.kind(), Kind::Redirect(_))
        {
            self.end_redirect(&at, &entry, now);
        }
    }

    /// R6: an owner says that it does not hold a flow. The next packet asks again.
    fn not_mine(&mut self, flow: &FlowKey, owner: IpAddr) {
        self.count(Counter::NotMineReceived);
        let table = &self.shared.table;
        let (Some(at), Some(owner)) = (table.locate_flow(flow), table.owners().known(owner)) else {
            return;
        };
        if let Some(entry) = table.find(&at)
            && entry.kind() == Kind::Redirect(owner)
            && table.remove(&entry)
        {
            self.count(Counter::RedirectDropped);
        }
    }

    /// R12: another server has a later session on the flow of one of ours: what is left of ours
    /// gets no segment any more.
    fn superseded(&mut self, flow: &FlowKey, version: Version, owner: IpAddr, now: Now) {
        if owner == self.shared.settings.classifier.locator || !self.is_member(owner) {
            return;
        }
        let table = &self.shared.table;
        let Some(at) = table.locate_flow(flow) else {
            return;
        };
        for _ in 0..ATTEMPTS {
            let Some(entry) = table.find(&at) else {
                return;
            };
            // One of a greater version has begun here since. Between equals the greater owner wins.
            let is_older = table.version(&entry).is_some_and(|ours| ours <= version);
            if !matches!(entry.kind(), Kind::Local(_)) || !is_older {
                return;
            }
            if table.replace(&entry, Session::Redirect { owner }, now.tick()).is_some() {
                return self.count(Counter::SessionSuperseded);
            }
        }
        self.count(Counter::TableContended);
    }

    /// R13: nobody tunnels into the void. The search for redirects to a dead server is begun;
    /// housekeeping goes on with it.
    fn owner_dead(&mut self, owner: IpAddr) {
        self.count(Counter::OwnerDead);
        // Without a number it never was a redirect's owner.
        let Some(owner) = self.shared.table.owners().known(owner) else {
            return;
        };
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
                table.visit(bucket, |entry| {
                    if entry.kind() == Kind::Redirect(*owner) && table.remove(&entry) {
                        self.counters.count(Counter::RedirectOrphaned);
                    }
                });
            }
            *next = end;
        }
        self.dead_owners.retain(|(_, next)| *next < table.buckets());
    }

    /// What is not urgent: parked packets whose time has come, and a slice of the table's sweep.
    #[inline(never)]
    fn housekeeping(&mut self, now: Now) {
        self.housekeeping_next = Now::from_us(now.us + HOUSEKEEPING_US);
        if !self.parking.is_empty() {
            let mut due = ArrayVec::<_, PARKED_DUE_MAX>::new();
            self.parking.due(now, &mut due);
            for due in due {
                self.parking_due(due, now);
            }
        }
        self.expire_fragments(now);
        self.set_gauges(now);
        self.drop_orphans();
        let mut due = ArrayVec::new();
        self.sweep.slice(&self.shared.table, now.tick(), &mut due);
        for due in due {
            self.session_due(due, now.tick());
        }
    }

    /// How much there is of what is bounded, for `show limits`.
    fn set_gauges(&self, now: Now) {
        let (resolves, announcements) = self.core.queued();
        let (datagrams, waiting) = self.fragments.len();
        for (gauge, value) in [
            (Gauge::Parked, self.parking.packets()),
            (Gauge::ResolvesQueued, resolves),
            (Gauge::AnnouncementsQueued, announcements),
            (Gauge::FragmentsWaiting, waiting),
            (Gauge::FragmentDatagrams, datagrams),
            (Gauge::AdmissionUsed, self.admission.used(now)),
        ] {
            self.counters.set_gauge(gauge, value);
        }
    }

    fn parking_due(&mut self, due: parking::Due, now: Now) {
        match due {
            parking::Due::AskAgain(flow) => {
                // If the ring is full the packets wait for their deadline.
                self.ask(flow);
            }
            parking::Due::Expired(flow) => {
                if let Some(waiting) = self.parking.release(&flow) {
                    for frame in &waiting.frames {
                        self.begin_observation(Origin::Waited, frame, now);
                        self.count(Counter::ParkExpired);
                    }
                    self.end_observation();
                    self.report_expired(flow, &waiting, now);
                }
            }
        }
    }

    /// R8: an entry whose time has come, or whose service is none any more, leaves the table, and
    /// its record the DHT.
    fn session_due(&mut self, due: expiry::Due, now: Tick) {
        let (expiry::Due::Expire(entry) | expiry::Due::Retire(entry) | expiry::Due::Publish(entry)) =
            due;
        let Some(listed) = self.shared.table.listed(&entry, now) else {
            return;
        };
        if matches!(due, expiry::Due::Publish(_)) {
            if let Some(version) = self.shared.table.version(&entry)
                && self.announce(listed.flow, version)
            {
                self.shared.table.set_published(&entry);
            }
            return;
        }
        let is_retired = matches!(due, expiry::Due::Retire(_));
        let counter = match entry.kind() {
            _ if is_retired => Counter::EntryRetired,
            Kind::Redirect(_) => Counter::RedirectExpired,
            Kind::Local(state) if state.is_lingering() => Counter::SessionClosed,
            Kind::Local(_) => Counter::SessionExpired,
        };
        if entry.is_published() && !self.core.can_announce() {
            return self.count(Counter::WithdrawDeferred);
        }
        let version = self.shared.table.version(&entry);
        // First out of the table, which refuses if the session lives after all.
        let table = &self.shared.table;
        let has_gone = if is_retired { table.remove(&entry) } else { table.remove_idle(&entry) };
        if !has_gone {
            return;
        }
        self.count(counter);
        if entry.is_published()
            && let Some(version) = version
        {
            let withdraw = Announcement::Withdraw { flow: listed.flow, version };
            if self.core.announce(withdraw).is_ok() {
                self.count(Counter::WithdrawQueued);
            }
        }
    }

    fn is_member(&self, locator: IpAddr) -> bool {
        self.shared.settings.members.iter().any(|prefix| prefix.contains(&locator))
    }

    fn send_host(&mut self, mut frame: U::Frame) {
        if let HostPort::Switch(switch) = &self.host {
            switch.address(frame.data_mut());
        }
        if frame.data().len() > self.shared.settings.ports.host_mtu + LINK_HEADER_MAX {
            return self.count(Counter::HostTooBig);
        }
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

    #[inline(always)]
    fn send_tunnel(&mut self, mut frame: U::Frame, arrival: &Arrival, owner: OwnerId, now: Now) {
        let Arrival { at, headers, .. } = arrival;
        let mtu = self.shared.settings.ports.uplink_mtu;
        let Some(tunnel) = self.tunnel(owner) else {
            return self.count(Counter::OwnersFull);
        };
        match tunnel.encapsulate(&mut frame, headers, at.entropy(), mtu) {
            Ok(()) => {
                self.count(Counter::TunnelSent);
                self.send_uplink(frame);
            }
            Err(error) => self.not_sent(frame, error, arrival, owner, now),
        }
    }

    /// The tunnel to an owner.
    #[inline(always)]
    fn tunnel(&mut self, owner: OwnerId) -> Option<&Tunnel> {
        let place = self.tunnels.get_mut(usize::from(owner.0))?;
        if place.is_none() {
            let Settings { classifier, ports, .. } = &*self.shared.settings;
            let Classifier { encapsulation, locator, tunnel_port, .. } = classifier;
            let remote = self.shared.table.owners().locator(owner)?;
            let tunnel = Tunnel::new(*encapsulation, *locator, remote, *tunnel_port);
            *place = Some(tunnel.with_checksum_offload(ports.offloads_checksum));
        }
        place.as_ref()
    }

    #[cold]
    fn not_sent(
        &mut self,
        frame: U::Frame,
        error: EncapError,
        arrival: &Arrival,
        owner: OwnerId,
        now: Now,
    ) {
        match error {
            EncapError::TooBig if Self::may_fragment(&frame) => {
                self.send_fragmented(frame, &arrival.at, owner);
            }
            EncapError::TooBig => self.answer_too_big(frame, owner, now),
            EncapError::NoHeadroom => self.count(Counter::TunnelNoHeadroom),
            EncapError::OtherFamily => self.count(Counter::TunnelOtherFamily),
        }
    }

    /// Bytes of IP packet that fit the tunnel to an owner.
    fn tunnel_mtu(&self, owner: OwnerId) -> usize {
        let Shared { settings, table, .. } = &self.shared;
        let remote = table.owners().locator(owner).unwrap_or(settings.classifier.locator);
        settings.ports.uplink_mtu.saturating_sub(self.overhead(remote))
    }

    /// R11: the tunnel is no black hole. The sender learns what fits, and TCP sends it again.
    fn answer_too_big(&mut self, mut frame: U::Frame, owner: OwnerId, now: Now) {
        let mtu = self.tunnel_mtu(owner);
        let may = self.too_big_answers.take(now, TOO_BIG_PER_SECOND, TOO_BIG_BURST);
        let packet = Packet::from_ethernet(frame.data()).ok().flatten();
        let answered =
            packet.filter(|_| may).and_then(|packet| too_big::answer(&mut frame, &packet, mtu));
        if answered.is_some() {
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
            self.host.transmit(&mut self.to_host, &mut self.uplink);
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
