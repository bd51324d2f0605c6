//! The thread that looks at everything again and again, and what follows from it. Time is a
//! parameter.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{info, warn};

use super::check::CheckThreads;
use super::state::{Draining, Facts};
use super::{Health, Publishing, Server};
use crate::announce::{AnnounceThread, Mark, Route, Routes, Standing};
use crate::config::Announcer;
use crate::drain::Drain;
use crate::show::count;

/// How often the thread looks, when nothing wakes it.
const TURN: Duration = Duration::from_millis(200);
/// Looks in a row that must find nothing unpublished: what is on its way from a worker to the DHT
/// core is seen in neither.
const LOOKS: u32 = 2;

/// The thread, and those of the checks and the announcer.
#[derive(Debug)]
pub struct HealthThread {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl HealthThread {
    /// Starts it. `restart_within` is for how long the daemon may have been away without a change
    /// of what is announced: that much time it has until it is ready again.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(
        health: Arc<Health>,
        server: Arc<dyn Server>,
        restart_within: Duration,
    ) -> io::Result<HealthThread> {
        let woken = Arc::clone(&health);
        let checks = CheckThreads::start(&health.checks, Arc::new(move || woken.wake()))?;
        let announcer = AnnounceThread::start(&health.announce)?;
        let driver = Driver::new(health, server, announcer, restart_within, Instant::now());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("health".to_owned());
        let thread = thread.spawn(move || driver.run(&checks, &stopped))?;
        Ok(HealthThread { thread: Some(thread), stop })
    }

    /// Whether it, or a thread of its own, has ended by itself.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for HealthThread {
    /// Ends it; what is announced stays, for the next daemon or for `holdfastd withdraw`.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

/// Whether what is announced can be written down.
#[derive(Debug)]
enum Marking {
    /// The file is another process's: a daemon that ends, or `holdfastd withdraw`.
    Waits { said: bool },
    /// It is ours.
    Ours(Mark),
    /// It is not needed, or cannot be had.
    Without,
}

/// What the thread remembers from one look to the next.
#[derive(Debug)]
pub(super) struct Driver<S: ?Sized = dyn Server> {
    health: Arc<Health>,
    pub(super) announcer: AnnounceThread,
    marking: Marking,
    /// What the file says; at first what the daemon before has left.
    marked: Routes,
    /// What that daemon has left announced, until it does not count any more.
    left: Routes,
    /// When that is.
    keep_until: Instant,
    joined_at: Option<Instant>,
    /// Looks in a row that found nothing unpublished.
    looks: u32,
    published: bool,
    /// The drain at the last look.
    drain: Option<Drain>,
    server: Arc<S>,
}

impl<S: Server + ?Sized> Driver<S> {
    pub(super) fn new(
        health: Arc<Health>,
        server: Arc<S>,
        announcer: AnnounceThread,
        restart_within: Duration,
        now: Instant,
    ) -> Driver<S> {
        let marking = match health.announce.announcer {
            Announcer::None => Marking::Without,
            _ => Marking::Waits { said: false },
        };
        Driver {
            health,
            server,
            announcer,
            marking,
            marked: Routes::new(),
            left: Routes::new(),
            keep_until: now + restart_within,
            joined_at: None,
            looks: 0,
            published: false,
            drain: None,
        }
    }

    fn run(mut self, checks: &CheckThreads, stop: &AtomicBool) {
        let _ = self.health.thread.set(std::thread::current());
        while !stop.load(Ordering::Relaxed) {
            if checks.is_finished() || self.announcer.is_finished() {
                return;
            }
            self.turn(Instant::now());
            std::thread::park_timeout(TURN);
        }
        self.stop(Instant::now());
    }

    /// One look at everything, and what follows from it.
    pub(super) fn turn(&mut self, now: Instant) {
        let has_begun = self.take_mark();
        let awaited = match has_begun {
            true => self.look_at_publishing(now),
            false => vec!["another process has what is announced in hand".to_owned()],
        };
        let standing = self.announcer.standing();
        let (order, ordered) = {
            let inner = self.health.inner();
            (inner.drain, inner.ordered)
        };
        let drain = order.map(|order| self.look_at_drain(&order, &standing, now));
        let facts = Facts {
            kernel_read: has_begun && self.server.kernel_read(),
            published: self.published,
            up: None,
            carrier: self.server.has_carrier(),
            drain,
            stopping: false,
        };
        self.health.inner().announcer = standing;
        let routes = self.follow(&facts, &awaited, now);
        if has_begun {
            self.write_mark(&routes);
            self.announcer.want(&routes);
        }
        self.drain = order;
        self.health.inner().followed = ordered;
        self.health.followed.notify_all();
    }

    /// The end: what is announced stays.
    pub(super) fn stop(&mut self, now: Instant) {
        let facts = Facts {
            kernel_read: true,
            published: self.published,
            up: None,
            carrier: true,
            drain: None,
            stopping: true,
        };
        self.follow(&facts, &[], now);
    }

    /// Moves each prefix on; `facts` is what all share. Gives how each is to be announced.
    fn follow(&mut self, facts: &Facts, awaited: &[String], now: Instant) -> Routes {
        let mut routes = self.left_over();
        let mut inner = self.health.inner();
        for index in 0..inner.prefixes.len() {
            let (up, down) = self.health.are_up(&inner.prefixes[index].checks);
            let facts = Facts { up, ..*facts };
            let no_carrier = (!facts.carrier).then(|| "the uplink has no carrier".to_owned());
            let because = awaited.iter().cloned().chain(down).chain(no_carrier).collect();
            inner.follow(index, &facts, because, now);
            let (prefix, state) = (inner.prefixes[index].prefix, inner.prefixes[index].state);
            let keep = now < self.keep_until && is_announced(&self.left, prefix);
            routes.push((prefix, state.route(&facts, keep)));
        }
        inner.awaited = awaited.to_vec();
        routes
    }

    /// Prefixes that the daemon before announced, or this one, and that are not in the
    /// configuration any more.
    fn left_over(&self) -> Routes {
        let inner = self.health.inner();
        let is_known = |prefix| inner.prefixes.iter().any(|known| known.prefix == prefix);
        let told = &inner.announcer.told;
        let told = told.iter().filter(|(prefix, _)| is_announced(told, *prefix));
        let left = self.left.iter().chain(told).map(|(prefix, _)| *prefix);
        let mut left: Vec<IpNet> = left.filter(|prefix| !is_known(*prefix)).collect();
        left.sort_unstable();
        left.dedup();
        left.into_iter().map(|prefix| (prefix, Some(Route::Withdrawn))).collect()
    }

    /// Says what keeps the server from being announced, for as long as it has not joined or not
    /// published what the kernel held. Once it has, that is so for good.
    fn look_at_publishing(&mut self, now: Instant) -> Vec<String> {
        if !self.server.kernel_read() {
            return vec!["the kernel's sockets are being read".to_owned()];
        }
        if self.published {
            return Vec::new();
        }
        let unpublished = match self.server.publishing() {
            None => return vec!["the DHT core does not answer".to_owned()],
            Some(Publishing { joined: false, .. }) => {
                return vec!["this server has not joined the DHT".to_owned()];
            }
            Some(Publishing { unpublished, .. }) => unpublished,
        };
        let joined_at = *self.joined_at.get_or_insert(now);
        self.looks = if unpublished == 0 { self.looks + 1 } else { 0 };
        self.published = self.looks >= LOOKS;
        if !self.published && now >= joined_at + self.health.announce.publish_within {
            let unpublished = count(unpublished, "session");
            warn!("{unpublished} not published: the server is announced all the same");
            self.health.inner().unpublished += 1;
            self.published = true;
        }
        match (self.published, unpublished) {
            (true, _) => Vec::new(),
            (false, 0) => vec!["whether all sessions are published is being looked at".to_owned()],
            (false, _) => vec![format!("{} not published yet", count(unpublished, "session"))],
        }
    }

    /// Whether a drain is over: nothing new can come, and no session is left, or no time.
    fn look_at_drain(&mut self, order: &Drain, standing: &Standing, now: Instant) -> Draining {
        let is_new = self.drain != Some(*order);
        let settle = self.health.announce.settle;
        // The announcer was told what follows from the order at the last look, or later.
        let told_at = standing.since.filter(|_| !is_new).map(|since| since.max(order.since));
        let has_settled = told_at.is_some_and(|at| now.saturating_duration_since(at) >= settle);
        let over = order.has_timed_out(now) || has_settled && self.server.sessions_left() == 0;
        Draining { mode: order.mode, over }
    }

    /// Takes the file in hand that says what is announced. Returns whether it is ours, or not needed,
    /// or cannot be had at all.
    fn take_mark(&mut self) -> bool {
        let Marking::Waits { said } = self.marking else {
            return true;
        };
        match Mark::take(&self.health.announce.state_directory) {
            Ok(None) => {
                if !said {
                    info!("another process has what is announced in hand: waiting for it");
                }
                self.marking = Marking::Waits { said: true };
                return false;
            }
            Ok(Some(mut mark)) => {
                self.marked = mark.read().unwrap_or_default();
                self.left.clone_from(&self.marked);
                self.left.retain(|(prefix, _)| is_announced(&self.marked, *prefix));
                self.marking = Marking::Ours(mark);
            }
            Err(error) => {
                self.state_file_failed(&error.to_string());
                self.marking = Marking::Without;
            }
        }
        true
    }

    /// Writes down what is or may be announced, before it is: whoever finds it withdraws rather too
    /// much than too little.
    fn write_mark(&mut self, wanted: &Routes) {
        let Marking::Ours(mark) = &mut self.marking else {
            return;
        };
        let told = self.announcer.standing().told;
        let of = |routes: &Routes, prefix| {
            let found = routes.iter().find(|(other, _)| *other == prefix);
            found.and_then(|(_, route)| *route)
        };
        let line = |(prefix, wanted): &(IpNet, Option<Route>)| {
            let route = match wanted {
                Some(Route::Withdrawn) if of(&told, *prefix) == *wanted => *wanted,
                Some(Route::Withdrawn) | None => of(&self.marked, *prefix),
                announced => *announced,
            };
            (*prefix, route)
        };
        let routes: Routes = wanted.iter().map(line).collect();
        if routes == self.marked {
            return;
        }
        let outcome = mark.write(&routes);
        self.marked = routes;
        match outcome {
            Ok(()) => self.health.inner().state_file_trouble = None,
            Err(error) => self.state_file_failed(&error.to_string()),
        }
    }

    fn state_file_failed(&self, trouble: &str) {
        let mut inner = self.health.inner();
        inner.state_file_failures += 1;
        if inner.state_file_trouble.as_deref() != Some(trouble) {
            warn!("what is announced cannot be written down: {trouble}");
            inner.state_file_trouble = Some(trouble.to_owned());
        }
    }
}

/// Whether a prefix is, or may be, announced.
fn is_announced(routes: &Routes, prefix: IpNet) -> bool {
    routes.iter().any(|(other, route)| *other == prefix && *route != Some(Route::Withdrawn))
}
