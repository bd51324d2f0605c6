//! The servers of a run: real DHT services on loopback addresses of this process, a thread each,
//! and the rings that a worker would have. It drives nothing by itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_dht::{Config, Distribution, Error, Gauges, Handle, HandleError, Keys};
use holdfast_dht::{Counter, LookupReport, Service, Stats, auth};
use holdfast_handoff::{Clock, WorkerEnd, rings};
use holdfast_net::FlowKey;

const PORT: u16 = 7000;
/// The same in every run: ids, and with them the places of records, do not change.
const KEY: [u8; 32] = *b"a bench's key, which all know...";
/// Announcements that can wait in a ring, as in `holdfastd`.
const ANNOUNCEMENTS: usize = 16 * 1024;
/// How long a service may leave a command unanswered, and a cluster take to form.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all servers of a run are configured with.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many there are at the start.
    pub servers: usize,
    /// Lookups that each has in flight at most.
    pub in_flight: usize,
    /// Sessions that each publishes at most.
    pub published_max: usize,
    /// Records that each holds at most.
    pub records_max: usize,
}

/// One server: a service in a thread, and its one worker's ends.
#[derive(Debug)]
pub struct Server {
    /// Its locator.
    pub locator: IpAddr,
    /// The worker's end of its rings.
    pub worker: WorkerEnd,
    handle: Handle,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

/// All servers of a run.
#[derive(Debug)]
pub struct Cluster {
    /// They, in the order in which they were started.
    pub servers: Vec<Server>,
    plan: Plan,
    replicas: usize,
}

impl Cluster {
    /// Starts the servers and waits until each knows all others.
    pub fn start(plan: Plan) -> Result<Cluster> {
        let replicas = config(0, plan).replicas;
        let mut cluster = Cluster { servers: Vec::new(), plan, replicas };
        for _ in 0..plan.servers {
            cluster.add()?;
        }
        cluster.wait_complete()?;
        Ok(cluster)
    }

    /// Starts one more server. It has not joined yet when this returns.
    pub fn add(&mut self) -> Result<()> {
        let index = self.servers.len();
        self.servers.push(Server::start(index, self.plan)?);
        Ok(())
    }

    /// Waits until each server knows all others.
    pub fn wait_complete(&self) -> Result<()> {
        let started = Instant::now();
        for server in &self.servers {
            while !self.is_complete(server.stats()?.gauges) {
                ensure!(
                    started.elapsed() < PATIENCE,
                    "{} does not know all others",
                    server.locator
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    fn is_complete(&self, gauges: Gauges) -> bool {
        gauges.joined && gauges.peers + 1 == self.servers.len() as u64
    }

    /// Replicas that a record has in a cluster of this size.
    pub fn replicas(&self) -> usize {
        self.replicas.min(self.servers.len())
    }

    /// Lookups that each server has in flight at most.
    pub fn in_flight(&self) -> usize {
        self.plan.in_flight
    }

    /// Statistics of all servers, in their order.
    pub fn stats(&self) -> Result<Vec<Stats>> {
        self.servers.iter().map(Server::stats).collect()
    }

    /// Gauges of all servers, in their order.
    pub fn gauges(&self) -> Result<Vec<Gauges>> {
        Ok(self.stats()?.iter().map(|stats| stats.gauges).collect())
    }

    /// Index of the server with this locator.
    pub fn index(&self, locator: IpAddr) -> Option<usize> {
        self.servers.iter().position(|server| server.locator == locator)
    }

    /// Stops all servers. An error of one is an error here.
    pub fn stop(mut self) -> Result<()> {
        self.servers.iter().for_each(|server| server.handle.stop());
        for server in &mut self.servers {
            let Some(thread) = server.thread.take() else { continue };
            match thread.join() {
                Ok(ended) => ended.with_context(|| format!("{}", server.locator))?,
                Err(_) => bail!("the service of {} panicked", server.locator),
            }
        }
        Ok(())
    }
}

impl Server {
    fn start(index: usize, plan: Plan) -> Result<Server> {
        let config = config(index, plan);
        let locator = config.locator;
        let service = Service::bind(config, keys(), Arc::new(Clock::default()))?;
        let (worker, core) = rings(plan.in_flight.max(64), ANNOUNCEMENTS, service.doorbell());
        let handle = service.handle();
        let thread = std::thread::Builder::new()
            .name(format!("dht-{}", index + 1))
            .spawn(move || service.run(vec![core]))?;
        Ok(Server { locator, worker, handle, thread: Some(thread) })
    }

    /// The service's statistics; it is asked again while it is too busy to answer.
    pub fn stats(&self) -> Result<Stats> {
        self.ask(Handle::stats)
    }

    /// What each replica of a flow holds.
    pub fn survey(&self, flow: FlowKey) -> Result<LookupReport> {
        self.ask(|handle| handle.lookup(flow))
    }

    fn ask<T>(&self, question: impl Fn(&Handle) -> Result<T, HandleError>) -> Result<T> {
        let started = Instant::now();
        loop {
            match question(&self.handle) {
                Err(HandleError::TimedOut | HandleError::Busy) if started.elapsed() < PATIENCE => {}
                answer => return answer.with_context(|| format!("asking {}", self.locator)),
            }
        }
    }
}

/// The sum of one counter over all servers.
pub fn total(stats: &[Stats], counter: Counter) -> u64 {
    stats.iter().map(|stats| stats.counters.get(counter)).sum()
}

/// All counters that are not 0 in the sum over all servers, with their names.
pub fn totals(stats: &[Stats]) -> Vec<(&'static str, u64)> {
    let sums = Counter::ALL.map(|counter| (counter.name(), total(stats, counter)));
    sums.into_iter().filter(|(_, sum)| *sum > 0).collect()
}

/// What a distribution holds now that it did not hold before, as values and counts.
pub fn growth(before: &Distribution, after: &Distribution) -> Vec<(u64, u64)> {
    let known = |value| {
        let found = before.buckets.binary_search_by_key(&value, |(value, _)| *value);
        found.map_or(0, |at| before.buckets[at].1)
    };
    after.buckets.iter().map(|(value, count)| (*value, count - known(*value))).collect()
}

fn keys() -> Keys {
    Keys::single(1, auth::Secret(KEY))
}

fn config(index: usize, plan: Plan) -> Config {
    let mut config = Config::new(locator(index), address(index));
    config.bootstrap = vec![address(0)];
    config.members = vec![ipnet("127.77.0.0/16")];
    config.id_key = keys().id_key();
    config.published_max = config.published_max.max(plan.published_max);
    config.records_max = config.records_max.max(plan.records_max);
    config.lookups_max = config.lookups_max.max(2 * plan.in_flight);
    config
}

fn ipnet(text: &str) -> holdfast_dht::IpNet {
    text.parse().expect("a constant network")
}

fn locator(index: usize) -> IpAddr {
    let [.., high, low] = (index as u32 + 1).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 77, high, low))
}

fn address(index: usize) -> SocketAddr {
    SocketAddr::new(locator(index), PORT)
}
