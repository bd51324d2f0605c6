//! Puts a server's appliance together and keeps it running: ports, workers, DHT core, control
//! socket. Never touches a packet.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use holdfast_dataplane::admission::AdmissionLimits;
use holdfast_dataplane::capture::{Observations, Observer};
use holdfast_dataplane::classify::Classifier;
use holdfast_dataplane::encap;
use holdfast_dataplane::idle::IdleStrategy;
use holdfast_dataplane::kernel::{Comparison, Findings};
use holdfast_dataplane::parking::ParkingLimits;
use holdfast_dataplane::port::DpdkPort;
use holdfast_dataplane::service::Services;
use holdfast_dataplane::session::Session;
use holdfast_dataplane::session::expiry::Timeouts;
use holdfast_dataplane::session::table::SessionTable;
use holdfast_dataplane::stats::{Counter, WorkerCounters};
use holdfast_dataplane::time::TscClock;
use holdfast_dataplane::worker::{PortLimits, Settings, Shared, Worker};
use holdfast_dht::{Handle, Keys, Service, auth};
use holdfast_dpdk::{self as dpdk, Eal};
use holdfast_handoff::{
    Clock, CoreEnd, Doorbell, StrayReporter, StrayReports, WorkerEnd, rings, stray_reports, unix_us,
};
use holdfast_net::HashKey;
use rustix::thread::{CpuSet, sched_setaffinity};
use tracing::{info, warn};

use crate::commands::Commands;
use crate::config::{self, ClusterKey, Config, Encapsulation, Idle, Secret};
use crate::health::{Health, HealthThread};
use crate::kernel_check::{CheckThread, KernelCheck, Plan, Totals};
use crate::kernel_sockets::{KernelSockets, WithoutOwn};
use crate::ledger::{self, Incidents, LedgerThread, Limits, Moment, Place, Sources};
use crate::lifecycle::{Hangup, Shutdown};
use crate::load::Samples;
use crate::metrics::Readings;
use crate::metrics::http::MetricsServer;
use crate::multicast::MulticastRelay;
use crate::ports::{self, CarrierRelay, Ports, QueuePairs};
use crate::reload::{Live, Reload};
use crate::socket::{ControlCounters, ControlSocket, Permissions, Stream};
use crate::systemd;
use crate::uplink::Progress;
use crate::watchdog::Watch;

/// Announcements that a worker can have queued for the DHT core.
pub const ANNOUNCEMENTS: usize = 16 * 1024;
/// Reports on strays that a worker can have queued for the ledger: more than it may ask at once, by
/// default.
pub const STRAY_REPORTS: usize = 8 * 1024;
/// How often the main thread looks whether all threads are alive and the uplink has carrier.
const SUPERVISION: Duration = Duration::from_millis(50);
/// How long the DHT core may take to stop, and how long the workers go on after it: what it sent
/// last is in the host port's queue.
const STOP: Duration = Duration::from_secs(2);
const DRAIN: Duration = Duration::from_millis(20);
/// How long what was published last may take to reach its replicas before the DHT core stops.
const SETTLE: Duration = Duration::from_millis(200);

/// What the control socket shows of a running appliance.
#[derive(Debug)]
pub struct Appliance {
    /// What it was told at its start. Keys that a reload changes are in [`Appliance::reload`].
    pub config: Config,
    /// What it is told by now, and how that changes.
    pub reload: Reload,
    /// The session table.
    pub table: Arc<SessionTable>,
    /// What comparing it with the kernel's sockets found.
    pub kernel_check: Totals,
    /// Each worker's counters, in the order of the configuration.
    pub counters: Vec<Arc<WorkerCounters>>,
    /// What workers observe of packets while somebody traces or captures: one at a time.
    pub observations: Mutex<Observations>,
    /// The same as they were in the last seconds.
    pub samples: Samples,
    /// The uplink's and the host port's DPDK ports.
    pub ports: Ports,
    /// Set when the workers are to begin nothing new.
    pub closing: Arc<AtomicBool>,
    /// The DHT core.
    pub dht: Handle,
    /// What bursts of strays did to sessions.
    pub incidents: Incidents,
    /// Whether the server takes traffic.
    pub health: Arc<Health>,
    /// What the control socket counts.
    pub control: Arc<ControlCounters>,
    /// When it started.
    pub started: Instant,
    /// The clock that the workers read.
    pub clock: TscClock,
    /// Cycles of the time stamp counter in a second.
    pub tsc_hz: u64,
}

impl Appliance {
    /// How often each worker, and after them the DHT core, went round its loop.
    fn turns(&self) -> impl Iterator<Item = u64> {
        let turns = |counters: &Arc<WorkerCounters>| {
            counters.get(Counter::Turns).wrapping_add(counters.get(Counter::TurnsIdle))
        };
        self.counters.iter().map(turns).chain([self.dht.turns()])
    }

    /// One line for `systemctl status`.
    fn status(&self) -> String {
        let gauges = self.table.gauges();
        format!("running: {} local sessions, {} redirects", gauges.local, gauges.redirects)
    }
}

/// Runs the appliance with `config`, from the file at `path`, until `shutdown` is requested. The
/// file is read again at each `hangup`.
///
/// # Errors
/// When it cannot start, or a part of it cannot go on.
pub fn run(
    config: Config,
    path: PathBuf,
    shutdown: &Shutdown,
    hangup: Hangup,
) -> anyhow::Result<()> {
    let eal = Eal::init(&ports::eal_arguments(&config)?).context("starting DPDK")?;
    info!("{} started", dpdk::version());

    let clock = Arc::new(Clock::default());
    let (dht, keys) = dht_config(&config);
    let core = Service::bind(dht, keys, Arc::clone(&clock)).context("starting the DHT core")?;
    let (ports, queues) = Ports::start(&eal, &config)?;
    let shared = shared(&config, &ports, clock)?;
    let tsc_clock = TscClock::start(dpdk::tsc(), eal.tsc_hz());

    let workers = config.workers.cores.len();
    let (mut worker_ends, core_ends) = all_rings(&config, workers + 1, &core.doorbell());
    // The last pair of rings is the kernel check's.
    let check_end = worker_ends.pop().context("no rings")?;
    let (reporters, reports): (Vec<_>, Vec<_>) =
        (0..workers).map(|_| stray_reports(STRAY_REPORTS)).unzip();

    let counters: Vec<_> = (0..workers).map(|_| Arc::default()).collect();
    let (observers, observations) = Observations::of_workers(workers);
    let started = Instant::now();
    let live = Live {
        table: Arc::clone(&shared.table),
        settings: Arc::new(ArcSwap::new(Arc::clone(&shared.settings))),
        kernel_check: Plan::new(config.sessions.kernel_check),
        dht: core.handle(),
        health: Arc::new(Health::new(&config, started)),
    };
    let health = Arc::clone(&live.health);
    let (settings, plan) = (Arc::clone(&live.settings), live.kernel_check.clone());
    let appliance = Arc::new(Appliance {
        reload: Reload::new(path, config.clone(), hangup, live),
        table: Arc::clone(&shared.table),
        closing: Arc::clone(&shared.closing),
        kernel_check: Totals::default(),
        samples: Samples::start(&counters, started),
        counters,
        observations: Mutex::new(observations),
        ports,
        dht: core.handle(),
        incidents: incidents(&config, &shared, tsc_clock),
        health,
        control: Arc::default(),
        started,
        clock: tsc_clock,
        tsc_hz: eal.tsc_hz(),
        config,
    });
    let mut threads = Threads {
        dht: spawn("dht", move || core.run(core_ends))?,
        workers: Vec::new(),
        health: None,
        kernel_check: None,
        ledger: None,
        stop: Arc::default(),
    };
    let told = reporters.into_iter().zip(observers);
    let ends = worker_ends.into_iter().zip(told).collect();
    let shared = (&shared, &settings);
    let outcome = start_workers(&mut threads, &eal, &appliance, shared, queues, ends)
        .and_then(|()| start_ledger(&mut threads, &appliance, reports))
        .and_then(|()| start_health(&mut threads, &appliance))
        .and_then(|()| start_kernel_check(&mut threads, &appliance, shared.0, check_end, plan))
        .and_then(|()| serve(&appliance, &threads, shutdown));
    info!("stopping");
    systemd::stopping();
    threads.stop(&appliance.dht).and(outcome)
}

/// The threads of a running appliance.
struct Threads {
    dht: JoinHandle<Result<(), holdfast_dht::Error>>,
    workers: Vec<JoinHandle<anyhow::Result<()>>>,
    health: Option<HealthThread>,
    kernel_check: Option<CheckThread>,
    ledger: Option<LedgerThread>,
    /// Ends the workers.
    stop: Arc<AtomicBool>,
}

impl Threads {
    /// Ends all threads, the DHT core first: it tells the other servers that this one stops, and
    /// the workers carry that from the host port to the network.
    fn stop(self, dht: &Handle) -> anyhow::Result<()> {
        dht.stop();
        drop(self.health);
        if let Some(check) = self.kernel_check {
            check.stop();
        }
        let deadline = Instant::now() + STOP;
        while !self.dht.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(DRAIN);
        self.stop.store(true, Ordering::Relaxed);
        let joined = |worker| join(worker).flatten().context("a worker failed");
        // All of them, also when one has failed.
        let outcomes: Vec<_> = self.workers.into_iter().map(joined).collect();
        // Now that nobody reports any more.
        if let Some(ledger) = self.ledger {
            ledger.stop();
        }
        if !self.dht.is_finished() {
            warn!("the DHT core did not end within {STOP:?}");
        } else {
            join(self.dht)?.context("the DHT core failed")?;
        }
        outcomes.into_iter().collect()
    }
}

fn start_workers(
    threads: &mut Threads,
    eal: &Eal,
    appliance: &Appliance,
    (shared, settings): (&Shared, &Arc<ArcSwap<Settings>>),
    queues: Vec<QueuePairs>,
    ends: Vec<(WorkerEnd, (StrayReporter, Observer))>,
) -> anyhow::Result<()> {
    let count = ends.len();
    for (index, (queues, (end, (reporter, observer)))) in queues.into_iter().zip(ends).enumerate() {
        let (shared, place) = (shared.clone(), (index, count));
        let counters = Arc::clone(&appliance.counters[index]);
        let worker = match (queues.host_port, &appliance.ports.switch) {
            (Some(host), _) => Worker::new(shared, place, counters, end, queues.uplink, host),
            (None, Some(switch)) => {
                let switch = switch.clone();
                Worker::through_switch(shared, place, counters, end, queues.uplink, switch)
            }
            (None, None) => bail!("worker {index} has no way to the host"),
        };
        let mut worker = worker.reporting_to(reporter);
        worker.set_observer(observer);
        let (eal, stop, clock) = (eal.clone(), Arc::clone(&threads.stop), appliance.clock);
        let (cpu, settings) = (appliance.config.workers.cores[index], Arc::clone(settings));
        let run = move || work(&eal, cpu, worker, clock, &settings, &stop);
        threads.workers.push(spawn(&format!("worker {index}"), run)?);
    }
    Ok(())
}

fn start_health(threads: &mut Threads, appliance: &Arc<Appliance>) -> anyhow::Result<()> {
    let (health, server) = (Arc::clone(&appliance.health), Arc::clone(appliance));
    let restart_within = appliance.config.dht.restart_within;
    let thread = HealthThread::start(health, server, restart_within);
    threads.health = Some(thread.context("starting the health checks")?);
    Ok(())
}

/// The ledger, with the incidents of earlier runs if they were kept.
fn incidents(config: &Config, shared: &Shared, clock: TscClock) -> Incidents {
    let microseconds = |duration: Duration| duration.as_micros().try_into().unwrap_or(u64::MAX);
    let config::Incidents { flows, window, quiet, keep, ref journal } = config.incidents;
    let (window_us, quiet_us) = (microseconds(window), microseconds(quiet));
    let table = Arc::clone(&shared.table);
    let find = move |flow: &_| {
        let found = table.lookup(flow, clock.at(dpdk::tsc()).tick());
        match found.map(|found| found.session) {
            None => Place::Nowhere,
            Some(Session::Local { .. }) => Place::Local,
            Some(Session::Redirect { .. }) => Place::Redirected,
        }
    };
    let limits = Limits { flows, window_us, quiet_us };
    Incidents::start(limits, (journal.as_deref(), keep), Box::new(find))
}

fn start_ledger(
    threads: &mut Threads,
    appliance: &Arc<Appliance>,
    reports: Vec<StrayReports>,
) -> anyhow::Result<()> {
    let [counting, asking, watching] = [(); 3].map(|()| Arc::clone(appliance));
    let clock = appliance.clock;
    let sources = Sources {
        reports,
        missed: Box::new(move || {
            let missed = |counters: &Arc<WorkerCounters>| counters.get(Counter::StrayUnreported);
            counting.counters.iter().map(missed).sum()
        }),
        now: Box::new(move || Moment { us: clock.at(dpdk::tsc()).us, unix_us: unix_us() }),
        // Without an answer the causes stay unknown.
        peers: Box::new(move || match asking.dht.peers() {
            Ok((present, absent)) => ledger::causes_of_peers(unix_us(), &present, &absent),
            Err(_) => Vec::new(),
        }),
        is_uplink_up: Box::new(move || watching.ports.is_uplink_up()),
    };
    let thread = LedgerThread::start(appliance.incidents.clone(), sources);
    threads.ledger = Some(thread.context("starting the ledger")?);
    Ok(())
}

fn start_kernel_check(
    threads: &mut Threads,
    appliance: &Appliance,
    shared: &Shared,
    core: WorkerEnd,
    plan: Plan,
) -> anyhow::Result<()> {
    let stop = Arc::<AtomicBool>::default();
    let check = adopt_kernel_sessions(appliance, shared, core, Arc::clone(&stop));
    let thread = CheckThread::start(check, plan, stop).context("starting the kernel check")?;
    threads.kernel_check = Some(thread);
    Ok(())
}

/// Answers the control socket until the end.
fn serve(appliance: &Arc<Appliance>, threads: &Threads, shutdown: &Shutdown) -> anyhow::Result<()> {
    let commands = Commands::new(Arc::clone(appliance));
    let handler =
        Arc::new(move |request, stream: &mut Stream<'_>| commands.answer(request, stream));
    let node = &appliance.config.node;
    let path = &node.control_socket;
    let group = node.control_group.as_ref().map(|group| group.id);
    let permissions = Permissions { mode: node.control_mode, group };
    let _control = ControlSocket::open(path, permissions, Arc::clone(&appliance.control), handler)?;
    info!(
        locator = %appliance.config.node.locator,
        workers = threads.workers.len(),
        "running; control socket {}",
        path.display()
    );
    let _metrics = serve_metrics(appliance);
    systemd::ready(&appliance.status());
    let carrier = CarrierRelay::new(&appliance.config);
    let multicast = MulticastRelay::new(&appliance.config);
    let outcome = supervise(appliance, shutdown, threads, carrier, multicast);
    settle(appliance);
    // Before the control socket closes, which waits for requests under way.
    appliance.dht.stop();
    outcome
}

/// Serves metrics, if that is wanted. No session is to be lost because they cannot be.
fn serve_metrics(appliance: &Arc<Appliance>) -> Option<MetricsServer> {
    let address = appliance.config.metrics.listen?;
    match MetricsServer::start(address, Arc::new(Readings::new(appliance))) {
        Ok(server) => {
            info!("metrics at http://{}/metrics", server.address());
            Some(server)
        }
        Err(error) => {
            warn!("no metrics: metrics.listen = \"{address}\": {error}");
            None
        }
    }
}

/// Before the DHT core stops, the last sessions that began here are to be found in the DHT: nothing
/// new begins, and what is being stored gets a moment for it.
fn settle(appliance: &Appliance) {
    appliance.closing.store(true, Ordering::Relaxed);
    std::thread::sleep(DRAIN);
    let deadline = Instant::now() + SETTLE;
    let is_settled = || match appliance.dht.stats() {
        Ok(stats) => stats.gauges.published_unacked == 0,
        Err(_) => true,
    };
    while !is_settled() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Frames that workers have handed to the uplink: behind the NIC's switch, the host's as well.
fn handed_to_uplink(appliance: &Appliance) -> u64 {
    let is_switch = appliance.ports.switch.is_some();
    let handed = |worker: &Arc<WorkerCounters>| {
        let to_host = if is_switch { worker.get(Counter::HostSent) } else { 0 };
        worker.get(Counter::UplinkSent) + to_host
    };
    appliance.counters.iter().map(handed).sum()
}

/// Waits for the end; meanwhile passes the uplink's carrier on, samples what the workers do,
/// reloads the configuration when that is due and feeds the service manager's watchdog. An error
/// when a thread ended before, or a device is lost.
fn supervise(
    appliance: &Appliance,
    shutdown: &Shutdown,
    threads: &Threads,
    mut carrier: Option<CarrierRelay>,
    mut multicast: Option<MulticastRelay>,
) -> anyhow::Result<()> {
    let names = (0..threads.workers.len()).zip(&appliance.config.workers.cores);
    let names = names.map(|(worker, core)| format!("worker {worker} on core {core}"));
    let names = names.chain(["the DHT core".to_owned()]);
    let mut watch = Watch::start(names, systemd::watchdog(), Instant::now());
    let mut progress = Progress::default();
    while !shutdown.wait(SUPERVISION) {
        let now = Instant::now();
        let is_up = appliance.ports.look(now)?;
        if let Some(Err(error)) = carrier.as_mut().map(|carrier| carrier.relay(is_up)) {
            warn!("{error:#}");
        }
        let handed = handed_to_uplink(appliance);
        appliance.ports.check_progress(&mut progress, handed, now)?;
        let uplink = &appliance.ports.uplink;
        if let Some(Err(error)) = multicast.as_mut().map(|relay| relay.relay(uplink, now)) {
            warn!("the uplink's multicast addresses: {error:#}");
        }
        appliance.samples.take(&appliance.counters, now);
        appliance.reload.look(now);
        watch.look(appliance.turns(), now, || appliance.status());
        if threads.workers.iter().any(JoinHandle::is_finished) {
            bail!("a worker ended by itself");
        }
        if threads.dht.is_finished() {
            bail!("the DHT core ended by itself");
        }
        if threads.kernel_check.as_ref().is_some_and(CheckThread::is_finished) {
            bail!("the kernel check ended by itself");
        }
        if threads.ledger.as_ref().is_some_and(LedgerThread::is_finished) {
            bail!("the ledger ended by itself");
        }
        if threads.health.as_ref().is_some_and(HealthThread::is_finished) {
            bail!("the health checks ended by themselves");
        }
    }
    Ok(())
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).with_context(|| format!("starting thread {name}"))
}

fn join<T>(thread: JoinHandle<T>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))
}

/// A worker's thread: pinned, known to the EAL so that it has caches of the mempools.
fn work(
    eal: &Eal,
    cpu: u16,
    worker: Worker<DpdkPort, DpdkPort>,
    clock: TscClock,
    settings: &ArcSwap<Settings>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(usize::from(cpu));
    sched_setaffinity(None, &cpus).with_context(|| format!("pinning a worker to core {cpu}"))?;
    let _registration = eal.register_thread().context("registering a worker with DPDK")?;
    worker.run(clock, settings, stop);
    Ok(())
}

/// How long entries of the session table may be idle.
pub(crate) fn timeouts(config: &Config) -> Timeouts {
    let milliseconds = |duration: Duration| duration.as_millis().try_into().unwrap_or(u64::MAX);
    Timeouts {
        half_open_ms: milliseconds(config.sessions.half_open_timeout),
        established_ms: milliseconds(config.sessions.established_idle),
        linger_ms: milliseconds(config.sessions.linger),
        redirect_ms: milliseconds(config.sessions.redirect_idle),
    }
}

/// What the workers are told. `services` are those of `config`.
pub(crate) fn settings(config: &Config, services: Services, ports: PortLimits) -> Settings {
    let microseconds = |duration: Duration| duration.as_micros().try_into().unwrap_or(u64::MAX);
    Settings {
        classifier: Classifier {
            services,
            locator: config.node.locator,
            tunnel_port: config.tunnel.port,
            encapsulation: match config.tunnel.encapsulation {
                Encapsulation::Gue => encap::Encapsulation::Gue,
                Encapsulation::Ipip => encap::Encapsulation::Ipip,
                Encapsulation::Rewrite => encap::Encapsulation::Rewrite,
            },
        },
        members: config.cluster.members.clone(),
        ports,
        half_open_max: config.sessions.half_open_max as u64,
        inbound_only: config.host_port.inbound_only,
        parking: ParkingLimits {
            packets_max: config.parking.packets_max,
            packets_per_flow_max: config.parking.packets_per_flow_max,
            timeout_us: microseconds(config.parking.timeout),
            grace_us: microseconds(config.parking.grace),
        },
        admission: AdmissionLimits {
            per_second: config.admission.lookups_per_second,
            burst: config.admission.burst,
            per_source_per_second: config.admission.per_source_per_second,
            per_source_burst: config.admission.per_source_burst,
            negative_us: microseconds(config.admission.negative_ttl),
        },
        idle: match config.workers.idle {
            Idle::Busy => IdleStrategy::Busy,
            Idle::Adaptive => IdleStrategy::Adaptive,
        },
    }
}

fn shared(config: &Config, ports: &Ports, clock: Arc<Clock>) -> anyhow::Result<Shared> {
    let services = Services::new(config.service_sockets())?;
    let settings = settings(config, services.clone(), ports.limits()?);
    let hash_key = HashKey(random_words()?);
    let table = SessionTable::new(services, config.sessions.capacity, &timeouts(config), hash_key)
        .context("allocating the session table: lower sessions.capacity")?;
    info!(
        capacity = config.sessions.capacity,
        page_kib = table.page_bytes() / 1024,
        "the session table is there"
    );
    Ok(Shared {
        settings: Arc::new(settings),
        table: Arc::new(table),
        clock,
        closing: Arc::default(),
    })
}

/// Two random words from the kernel.
fn random_words() -> anyhow::Result<[u64; 2]> {
    let mut bytes = [0; 16];
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::rand::getrandom(&mut bytes, flags).context("reading random bytes")?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok([u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])])
}

/// Rings between `count` threads and the core.
fn all_rings(
    config: &Config,
    count: usize,
    doorbell: &Arc<Doorbell>,
) -> (Vec<WorkerEnd>, Vec<CoreEnd>) {
    // A flow that waits has a packet parked, so this is all that can be asked at once.
    let resolves = config.parking.packets_max;
    (0..count).map(|_| rings(resolves, ANNOUNCEMENTS, Arc::clone(doorbell))).unzip()
}

/// What the DHT core is told, and the keys that it seals with.
pub(crate) fn dht_config(config: &Config) -> (holdfast_dht::Config, Keys) {
    let secret = |secret: &Secret| auth::Secret(secret.0);
    let key = |key: &ClusterKey| auth::ClusterKey { id: key.id, secret: secret(&key.secret) };
    let keys = config.cluster.keys.as_ref().map_or_else(Keys::insecure, |keys| Keys {
        sealing: key(&keys.sealing),
        opening: keys.opening.as_ref().map(key),
        ids: secret(&keys.ids),
    });
    let dht = holdfast_dht::Config {
        bootstrap: config.dht.bootstrap.clone(),
        members: config.cluster.members.clone(),
        id_key: keys.id_key(),
        k: config.dht.k,
        bucket_bits: config.dht.bucket_bits,
        alpha: config.dht.alpha,
        replicas: config.dht.replicas,
        spread: config.dht.spread,
        lease: config.dht.lease,
        record_ttl: config.dht.record_ttl,
        probe_interval: config.dht.probe_interval,
        dead_after: config.dht.dead_after,
        restart_within: config.dht.restart_within,
        lookup_timeout: config.dht.lookup_timeout,
        records_max: config.dht.records_max,
        published_max: config.sessions.capacity,
        ..holdfast_dht::Config::new(config.node.locator, config.dht.listen)
    };
    (dht, keys)
}

/// R7: the sessions that the host's kernel holds already are ours; publish them. Gives what goes
/// on comparing.
fn adopt_kernel_sessions(
    appliance: &Appliance,
    shared: &Shared,
    core: WorkerEnd,
    stop: Arc<AtomicBool>,
) -> KernelCheck<WithoutOwn<KernelSockets>> {
    let (table, clock) = (Arc::clone(&shared.table), Arc::clone(&shared.clock));
    let comparison = Comparison::new(table, clock, core, &timeouts(&appliance.config));
    let totals = appliance.kernel_check.clone();
    let kernel = WithoutOwn(KernelSockets::new(stop));
    let mut check = KernelCheck::new(comparison, kernel, appliance.clock, totals);
    if let Some(Findings { learnt, table_full, .. }) = check.check() {
        info!(adopted = learnt, "the kernel's sessions are known");
        if table_full > 0 {
            warn!("{table_full} of the kernel's sessions found no room: raise sessions.capacity");
        }
    }
    check
}
