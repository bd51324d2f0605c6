//! A real service in a thread on a loopback address, with the rings of one worker.
#![allow(dead_code)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_dht::{Config, Counter, Error, Handle, Keys, Service, Stats};
use holdfast_handoff::{
    Announcement, Answer, Clock, Resolution, Resolve, Version, WorkerEnd, rings, unix_us,
};
use holdfast_net::FlowKey;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server: a service in a thread, and its one worker's rings.
pub struct Server {
    pub locator: IpAddr,
    pub clock: Arc<Clock>,
    pub handle: Handle,
    pub worker: WorkerEnd,
    pub thread: Option<JoinHandle<Result<(), Error>>>,
}

/// Locator of a test's `n`-th server. Runs of this test at the same time do not meet.
pub fn locator(test: u8, n: u8) -> IpAddr {
    let run = 20 + (std::process::id() % 200) as u8;
    IpAddr::from(Ipv4Addr::new(127, run, test, n))
}

impl Server {
    pub fn start(config: Config, keys: Keys) -> Server {
        Server::with_rings(config, keys, 64)
    }

    pub fn with_rings(config: Config, keys: Keys, resolves: usize) -> Server {
        let clock = Arc::new(Clock::default());
        let locator = config.locator;
        let service = Service::bind(config, keys, clock.clone()).expect("bind");
        let (worker, core) = rings(resolves, 4096, service.doorbell());
        let handle = service.handle();
        let thread = Some(std::thread::spawn(move || service.run(vec![core])));
        Server { locator, clock, handle, worker, thread }
    }

    pub fn announce(&mut self, announcement: Announcement) {
        self.worker.announce(announcement).expect("room");
        self.worker.ring_doorbell();
    }

    pub fn publish(&mut self, flow: FlowKey) -> Version {
        let version = self.clock.next();
        self.announce(Announcement::Publish { flow, version });
        version
    }

    pub fn answer(&mut self) -> Answer {
        let mut answer = None;
        until("an answer", || {
            answer = self.worker.answer();
            answer.is_some()
        });
        answer.expect("waited for")
    }

    /// What this server finds out about a flow; the next answer must be that.
    pub fn resolve(&mut self, flow: FlowKey) -> Resolution {
        let resolve = Resolve { flow, asked_at_unix_us: unix_us() };
        self.worker.resolve(resolve).expect("room");
        self.worker.ring_doorbell();
        match self.answer() {
            Answer::Resolved { flow: answered, resolution, .. } => {
                assert_eq!(answered, flow);
                resolution
            }
            other => panic!("expected a resolution, got {other:?}"),
        }
    }

    pub fn stats(&self) -> Stats {
        self.handle.stats().expect("running")
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.stats().counters.get(counter)
    }

    /// Tells the others that it stops, and ends.
    pub fn stop(&mut self) {
        self.handle.stop();
        let thread = self.thread.take().expect("stopped once");
        thread.join().expect("no panic").expect("no error");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || matches!(ended, Ok(Ok(()))));
        }
    }
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until each of them knows all others.
pub fn until_complete(servers: &[Server]) {
    until("all to know all", || {
        servers.iter().all(|server| {
            let gauges = server.stats().gauges;
            gauges.joined && gauges.peers == servers.len() as u64 - 1
        })
    });
}
