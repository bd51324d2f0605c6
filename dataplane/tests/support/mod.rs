//! A worker with its ports in memory, and the frames that tests send through it.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod fragments;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrayvec::ArrayVec;
use etherparse::PacketBuilder;
use holdfast_dataplane::admission::AdmissionLimits;
use holdfast_dataplane::capture::{
    Account, Accountant, Capture, Observation, Observations, Observer, Verdict, Wanted,
};
use holdfast_dataplane::classify::Classifier;
use holdfast_dataplane::encap::{Encapsulation, Tunnel};
use holdfast_dataplane::frame::{Frame, MemFrame};
use holdfast_dataplane::idle::IdleStrategy;
use holdfast_dataplane::kernel::{Comparison, Findings, Held, HeldSession, Kernel};
use holdfast_dataplane::parking::ParkingLimits;
use holdfast_dataplane::port::{BURST, Port};
use holdfast_dataplane::service::Services;
use holdfast_dataplane::session::Session;
use holdfast_dataplane::session::expiry::Timeouts;
use holdfast_dataplane::session::table::SessionTable;
use holdfast_dataplane::stats::{Counter, WorkerCounters};
use holdfast_dataplane::switch::Switch;
use holdfast_dataplane::time::Now;
use holdfast_dataplane::too_big::answer as answer_too_big;
use holdfast_dataplane::worker::{PortLimits, Settings, Shared, Worker};
use holdfast_handoff::{
    Announcement, Answer, Clock, CoreEnd, Doorbell, Resolution, StrayReport, StrayReports, Version,
    rings, stray_reports,
};
use holdfast_net::headers::TcpFlags;
use holdfast_net::{FlowKey, HashKey, Packet};

pub const SYN: u8 = 0x02;
pub const SYN_ACK: u8 = 0x12;
pub const ACK: u8 = 0x10;
pub const FIN_ACK: u8 = 0x11;
pub const RST: u8 = 0x04;
pub const RST_ACK: u8 = RST | ACK;

/// Addresses of one family.
#[derive(Debug, Clone, Copy)]
pub struct Net {
    pub client: IpAddr,
    pub service: IpAddr,
    pub me: IpAddr,
    pub other: IpAddr,
    pub stranger: IpAddr,
    /// Somebody captures everything.
    pub is_observed: bool,
}

pub fn nets() -> [Net; 2] {
    let net = |client: &str, service: &str, me: &str, other: &str, stranger: &str| Net {
        client: client.parse().unwrap(),
        service: service.parse().unwrap(),
        me: me.parse().unwrap(),
        other: other.parse().unwrap(),
        stranger: stranger.parse().unwrap(),
        is_observed: false,
    };
    [
        net("20.1.1.1", "192.168.0.1", "10.0.0.1", "10.0.0.2", "10.9.9.9"),
        net("2001:db8::1", "2001:db8:80::1", "fd00::1", "fd00::2", "fd99::9"),
    ]
}

impl Net {
    pub fn flow(&self, port: u16) -> FlowKey {
        FlowKey::tcp(SocketAddr::new(self.client, port), SocketAddr::new(self.service, 80)).unwrap()
    }

    /// A client's segment, as the router brings it.
    pub fn client_segment(&self, port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        tcp(
            [0x02, 0, 0, 0, 0, 0xaa],
            [0x02, 0, 0, 0, 0, 0x01],
            self.client,
            port,
            self.service,
            80,
            flags,
            payload,
        )
    }

    /// A service's segment, as the host sends it.
    pub fn host_segment(&self, port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        tcp(
            [0x02, 0, 0, 0, 0, 0x01],
            [0x02, 0, 0, 0, 0, 0xaa],
            self.service,
            80,
            self.client,
            port,
            flags,
            payload,
        )
    }

    /// A router's "does not fit" to the service, about `frame`.
    pub fn icmp_error(&self, frame: &[u8]) -> Vec<u8> {
        let mut answer = MemFrame::new(frame);
        let packet = Packet::from_ethernet(frame).unwrap().unwrap();
        answer_too_big(&mut answer, &packet, 1300).unwrap();
        answer.data().to_vec()
    }

    /// The same addresses, as the other server sees them.
    pub fn of_the_other(&self) -> Net {
        Net { me: self.other, other: self.me, ..*self }
    }

    /// `frame` in a tunnel from `from` to us.
    pub fn tunnelled(&self, frame: &[u8], from: IpAddr) -> Vec<u8> {
        let mut outer = MemFrame::new(frame);
        let packet = Packet::from_ethernet(frame).unwrap().unwrap();
        let tunnel = Tunnel::new(Encapsulation::Gue, from, self.me, 6080);
        tunnel.encapsulate(&mut outer, &packet.headers(), 1, 1600).unwrap();
        // The encapsulation has turned the link addresses round; turn them back.
        let bytes = outer.data_mut();
        let (left, right) = bytes[..12].split_at_mut(6);
        left.swap_with_slice(right);
        bytes.to_vec()
    }
}

#[allow(clippy::too_many_arguments)]
fn tcp(
    from: [u8; 6],
    to: [u8; 6],
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(from, to);
    let ip = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => ethernet.ipv4(s.octets(), d.octets(), 60),
        (IpAddr::V6(s), IpAddr::V6(d)) => ethernet.ipv6(s.octets(), d.octets(), 60),
        _ => unreachable!("one family"),
    };
    let mut builder = ip.tcp(source_port, destination_port, 1000, 4096);
    let flags = TcpFlags(flags);
    if flags.contains(TcpFlags::SYN) {
        builder = builder.syn();
    }
    if flags.contains(TcpFlags::ACK) {
        builder = builder.ack(2000);
    }
    if flags.contains(TcpFlags::FIN) {
        builder = builder.fin();
    }
    if flags.contains(TcpFlags::RST) {
        builder = builder.rst();
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// What the two ends of a port in memory share.
#[derive(Default)]
pub struct Wire {
    pub to_worker: VecDeque<MemFrame>,
    pub from_worker: VecDeque<MemFrame>,
    /// Frames that the port still takes.
    pub room: Option<usize>,
}

#[derive(Clone, Default)]
pub struct MemPort(pub Rc<RefCell<Wire>>);

impl Port for MemPort {
    type Frame = MemFrame;

    fn receive(&mut self, burst: &mut ArrayVec<MemFrame, BURST>) {
        let mut wire = self.0.borrow_mut();
        while !burst.is_full() {
            let Some(frame) = wire.to_worker.pop_front() else { return };
            burst.push(frame);
        }
    }

    fn transmit<const N: usize>(&mut self, frames: &mut ArrayVec<MemFrame, N>) {
        let mut wire = self.0.borrow_mut();
        let count = wire.room.unwrap_or(usize::MAX).min(frames.len());
        if let Some(room) = &mut wire.room {
            *room -= count;
        }
        wire.from_worker.extend(frames.drain(..count));
    }
}

/// When the clients of [`MemKernel`] were last heard.
pub const HEARD: Version = Version(7);

/// The host's kernel in memory.
#[derive(Default)]
pub struct MemKernel {
    /// What it holds, beside what it listens for.
    pub sockets: BTreeMap<FlowKey, Held>,
    /// Its listing and its answers fail.
    pub is_broken: bool,
    /// No socket listens for the service.
    pub is_elsewhere: bool,
}

impl MemKernel {
    pub fn with(flow: FlowKey, held: Held) -> MemKernel {
        MemKernel { sockets: BTreeMap::from([(flow, held)]), ..MemKernel::default() }
    }
}

impl Kernel for MemKernel {
    type Error = &'static str;

    fn list(&mut self, see: &mut dyn FnMut(HeldSession)) -> Result<(), &'static str> {
        for (flow, held) in &self.sockets {
            if let Held::Session(state) = *held {
                see(HeldSession { flow: *flow, state, heard: HEARD });
            }
        }
        if self.is_broken { Err("broken") } else { Ok(()) }
    }

    fn holds(&mut self, flow: &FlowKey) -> Result<Held, &'static str> {
        let nothing = if self.is_elsewhere { Held::NoService } else { Held::Over };
        Ok(self.sockets.get(flow).copied().unwrap_or(nothing))
    }
}

/// A worker on a bench: the test is the network, the host and the DHT core.
pub struct Bench {
    pub net: Net,
    pub worker: Worker<MemPort, MemPort>,
    pub core: CoreEnd,
    /// What compares the table with the kernel, and the DHT core's end of its rings.
    pub comparison: Comparison,
    pub comparison_core: CoreEnd,
    /// What the worker tells the ledger.
    pub reports: StrayReports,
    pub clock: Arc<Clock>,
    pub closing: Arc<AtomicBool>,
    pub table: Arc<SessionTable>,
    pub counters: Arc<WorkerCounters>,
    pub uplink: MemPort,
    pub host: MemPort,
    pub now: Now,
    watch: Option<Watch>,
    _poll: mio::Poll,
}

/// What a bench observes of everything.
struct Watch {
    capture: Capture<'static>,
    accountant: Accountant,
    told: Vec<(Observation, Account)>,
    /// Observations, by where their packets came from: uplink, host, waited.
    origins: [u64; 3],
    /// Observations that a counter moved in, by its place in [`Counter::ALL`].
    moved: [u64; Counter::ALL.len()],
}

impl Watch {
    fn start(observations: Observations, settings: &Settings) -> Watch {
        let accountant = Accountant::new(settings.classifier.clone());
        // Once a bench: a test's process ends soon.
        let capture = Box::leak(Box::new(observations)).start(&Wanted::default());
        let (told, origins, moved) = (Vec::new(), [0; 3], [0; Counter::ALL.len()]);
        Watch { capture, accountant, told, origins, moved }
    }

    fn take_all(&mut self) {
        while let Some((_, observation)) = self.capture.next_observation() {
            let account = self.accountant.account(&observation);
            assert!(
                account.verdict != Verdict::Dropped || account.reason.is_some(),
                "{observation:?}"
            );
            self.origins[observation.origin as usize] += 1;
            observation.counters.iter().for_each(|counter| self.moved[counter as usize] += 1);
            self.told.push((observation, account));
        }
        assert_eq!(self.capture.missed(), 0);
    }
}

/// Every packet that came was observed once, and every one that was dropped under the counter that
/// says so.
impl Drop for Bench {
    fn drop(&mut self) {
        let Some(watch) = self.watch.take().filter(|_| !std::thread::panicking()) else {
            return;
        };
        let came = [Counter::UplinkReceived, Counter::HostReceived].map(|c| self.count(c));
        assert_eq!(watch.origins[..2], came);
        for counter in Counter::ALL.iter().filter(|counter| counter.is_drop()) {
            let (moved, count) = (watch.moved[*counter as usize], self.count(*counter));
            match counter {
                // A second question is no packet's.
                Counter::LookupRingFull => {}
                // Of one packet there can be several fragments.
                Counter::UplinkUnsent => assert_eq!(moved > 0, count > 0),
                _ => assert_eq!(moved, count, "{counter:?}"),
            }
        }
    }
}

/// Bytes of what a bench observes between two turns.
const RING_BYTES: usize = 256 * 1024;

pub struct Options {
    pub capacity: usize,
    pub half_open_max: u64,
    pub resolves: usize,
    pub announcements: usize,
    pub reports: usize,
    pub encapsulation: Encapsulation,
    pub inbound_only: bool,
    /// The host is behind the NIC's switch; inbound-only, then.
    pub switch: Option<Switch>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            capacity: 64,
            half_open_max: 16,
            resolves: 16,
            announcements: 16,
            reports: 64,
            encapsulation: Encapsulation::Gue,
            inbound_only: false,
            switch: None,
        }
    }
}

/// What the host's kernel sends from.
pub const HOST_MAC: [u8; 6] = [2, 0x68, 10, 0, 0, 1];

pub const TIMEOUTS: Timeouts = Timeouts {
    half_open_ms: 10_000,
    established_ms: 3_600_000,
    linger_ms: 5_000,
    redirect_ms: 60_000,
};

pub fn settings(net: &Net, half_open_max: u64) -> Settings {
    let member = |address: IpAddr| {
        ipnet::IpNet::new(address, if address.is_ipv4() { 24 } else { 64 }).unwrap()
    };
    Settings {
        classifier: Classifier {
            services: Services::new([SocketAddr::new(net.service, 80)]).unwrap(),
            locator: net.me,
            tunnel_port: 6080,
            encapsulation: Encapsulation::Gue,
        },
        members: vec![member(net.me)],
        ports: PortLimits {
            uplink_mtu: 1500,
            host_mtu: 1500,
            offloads_checksum: false,
            host_mac: Some(HOST_MAC),
        },
        half_open_max,
        inbound_only: false,
        parking: ParkingLimits {
            packets_max: 16,
            packets_per_flow_max: 4,
            timeout_us: 1_000_000,
            grace_us: 30_000,
        },
        admission: AdmissionLimits {
            per_second: 1000,
            burst: 64,
            per_source_per_second: 1000,
            per_source_burst: 64,
            negative_us: 1_000_000,
        },
        idle: IdleStrategy::Busy,
    }
}

impl Bench {
    pub fn new(net: Net) -> Bench {
        Bench::with(net, &Options::default())
    }

    pub fn with(net: Net, options: &Options) -> Bench {
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let doorbell = Arc::new(Doorbell::new(waker));
        let (worker_end, core) =
            rings(options.resolves, options.announcements, Arc::clone(&doorbell));
        let (comparison_end, comparison_core) = rings(1, options.announcements, doorbell);
        let mut settings = settings(&net, options.half_open_max);
        settings.classifier.encapsulation = options.encapsulation;
        settings.inbound_only = options.inbound_only || options.switch.is_some();
        let services = settings.classifier.services.clone();
        let table =
            SessionTable::new(services, options.capacity, &TIMEOUTS, HashKey([3, 4])).unwrap();
        let table = Arc::new(table);
        let clock = Arc::<Clock>::default();
        let comparison =
            Comparison::new(Arc::clone(&table), Arc::clone(&clock), comparison_end, &TIMEOUTS);
        let closing = Arc::<AtomicBool>::default();
        let shared = Shared {
            settings: Arc::new(settings),
            table: Arc::clone(&table),
            clock: Arc::clone(&clock),
            closing: Arc::clone(&closing),
        };
        let counters = Arc::<WorkerCounters>::default();
        let (uplink, host) = (MemPort::default(), MemPort::default());
        let (counted, near) = (Arc::clone(&counters), uplink.clone());
        let mut worker = match options.switch.clone() {
            None => Worker::new(shared.clone(), (0, 1), counted, worker_end, near, host.clone()),
            Some(switch) => {
                Worker::through_switch(shared.clone(), (0, 1), counted, worker_end, near, switch)
            }
        };
        let (reporter, reports) = stray_reports(options.reports);
        let mut watch = None;
        if net.is_observed {
            let (mut observers, observations) = Observations::with_rings(1, RING_BYTES);
            worker.set_observer(observers.pop().unwrap());
            watch = Some(Watch::start(observations, &shared.settings));
        }
        Bench {
            net,
            worker: worker.reporting_to(reporter),
            core,
            comparison,
            comparison_core,
            reports,
            clock,
            closing,
            table,
            counters,
            uplink,
            host,
            now: Now::from_us(1_000_000),
            watch,
            _poll: poll,
        }
    }

    /// What the table says of a flow.
    pub fn session(&self, port: u16) -> Option<Session> {
        let found = self.table.lookup(&self.net.flow(port), self.now.tick())?;
        Some(found.session)
    }

    pub fn turn(&mut self) {
        self.worker.turn(self.now);
        if let Some(watch) = &mut self.watch {
            watch.take_all();
        }
    }

    /// Gives the worker another observer.
    pub fn set_observer(&mut self, observer: Observer) {
        self.worker.set_observer(observer);
    }

    /// What was observed since this was asked last, and what it says.
    pub fn accounts(&mut self) -> Vec<(Observation, Account)> {
        self.watch.as_mut().map(|watch| std::mem::take(&mut watch.told)).unwrap()
    }

    /// Lets time pass, with a turn of housekeeping in each millisecond: in a second the whole
    /// table is swept.
    pub fn pass_ms(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = Now::from_us(self.now.us + 1000);
            self.turn();
        }
    }

    /// Lets time pass at once, and two seconds of turns after it, for a whole sweep.
    pub fn skip_ms(&mut self, ms: u64) {
        self.now = Now::from_us(self.now.us + 1000 * ms);
        self.pass_ms(2000);
    }

    /// Compares the table with the kernel.
    pub fn check<K: Kernel>(&mut self, kernel: &mut K) -> Findings
    where
        K::Error: std::fmt::Debug,
    {
        let now = self.now.tick();
        self.comparison.check(kernel, || now).unwrap()
    }

    /// What the comparison tells the DHT core.
    pub fn comparison_announces(&mut self) -> Option<Announcement> {
        self.comparison_core.announcements.pop().ok()
    }

    pub fn uplink_brings(&mut self, frame: &[u8]) {
        self.uplink.0.borrow_mut().to_worker.push_back(MemFrame::new(frame));
        self.turn();
    }

    pub fn host_sends(&mut self, frame: &[u8]) {
        self.host.0.borrow_mut().to_worker.push_back(MemFrame::new(frame));
        self.turn();
    }

    pub fn host_gets(&mut self) -> Option<Vec<u8>> {
        self.host.0.borrow_mut().from_worker.pop_front().map(|frame| frame.data().to_vec())
    }

    pub fn uplink_gets(&mut self) -> Option<Vec<u8>> {
        self.uplink.0.borrow_mut().from_worker.pop_front().map(|frame| frame.data().to_vec())
    }

    /// All that the host gets.
    pub fn host_gets_all(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.host_gets()).collect()
    }

    /// All that the uplink gets.
    pub fn uplink_gets_all(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.uplink_gets()).collect()
    }

    /// The flow that the worker asks the DHT core for.
    pub fn asks(&mut self) -> Option<FlowKey> {
        self.core.resolves.pop().ok().map(|resolve| resolve.flow)
    }

    pub fn announces(&mut self) -> Option<Announcement> {
        self.core.announcements.pop().ok()
    }

    /// What the worker tells the ledger.
    pub fn told(&mut self) -> Option<StrayReport> {
        self.reports.pop().ok()
    }

    pub fn core_answers(&mut self, flow: FlowKey, resolution: Resolution) {
        self.core_says(Answer::Resolved { flow, resolution, dead: None });
    }

    pub fn core_says(&mut self, answer: Answer) {
        self.core.answers.push(answer).unwrap();
        self.turn();
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.counters.get(counter)
    }

    /// Opens a session of ours: the handshake, all three segments. Gives its version.
    pub fn open(&mut self, port: u16) -> Version {
        let net = self.net;
        self.uplink_brings(&net.client_segment(port, SYN, b""));
        assert_eq!(self.host_gets(), Some(net.client_segment(port, SYN, b"")));
        self.host_sends(&net.host_segment(port, SYN_ACK, b""));
        assert_eq!(self.uplink_gets(), Some(net.host_segment(port, SYN_ACK, b"")));
        let Some(Announcement::Publish { flow, version }) = self.announces() else {
            panic!("SYN-ACK publishes");
        };
        assert_eq!(flow, net.flow(port));
        self.uplink_brings(&net.client_segment(port, ACK, b""));
        assert_eq!(self.host_gets(), Some(net.client_segment(port, ACK, b"")));
        version
    }

    /// Every frame that came is accounted for: it was sent, or dropped by a counter; those that a
    /// packet was fragmented into came as well. Not while any wait.
    pub fn check_books(&self) {
        let sum = |counters: &[Counter]| counters.iter().map(|c| self.count(*c)).sum::<u64>();
        let came = sum(&[Counter::UplinkReceived, Counter::HostReceived, Counter::TooBigFragments]);
        let drops: Vec<_> = Counter::ALL.iter().filter(|c| c.is_drop()).copied().collect();
        let went = sum(&[Counter::UplinkSent, Counter::HostSent]) + sum(&drops);
        assert_eq!(came, went);
    }

    /// Makes a redirect to the other server by a stray and its lookup.
    pub fn redirect(&mut self, port: u16) {
        let net = self.net;
        self.uplink_brings(&net.client_segment(port, ACK, b"stray"));
        assert_eq!(self.asks(), Some(net.flow(port)));
        self.core_answers(net.flow(port), owner(net.other));
        assert!(self.uplink_gets().is_some(), "the parked packet goes into the tunnel");
    }
}

pub fn owner(locator: IpAddr) -> Resolution {
    Resolution::Owner { locator, version: Version(1) }
}

/// The packet inside a tunnel packet, from its IP header on, and where the tunnel leads.
pub fn inside(frame: &[u8]) -> (IpAddr, IpAddr, Vec<u8>) {
    let outer = Packet::from_ethernet(frame).unwrap().unwrap();
    let inner = holdfast_dataplane::classify::tunnelled(frame, &outer).unwrap();
    let bytes = frame[inner.network_offset..inner.end].to_vec();
    (outer.network.source(), outer.network.destination(), bytes)
}
