//! Runs a node: one UDP socket, the workers' rings and the control thread's commands in one
//! thread with mio. Never decides anything and never blocks but in its poll.
//!
//! It goes in turns, and each takes what is there, up to a limit: with little to do turns are
//! short and nothing waits, with much to do they are long and the batches of a turn are large.

mod socket;
mod worker_rings;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel,
};
use std::time::{Duration, Instant};

use holdfast_handoff::{Announcement, Clock, CoreEnd, Doorbell, Version, unix_us};
use holdfast_net::FlowKey;
use ipnet::IpNet;
use mio::net::UdpSocket;
use mio::{Events, Poll, Token, Waker};
use rustix::event::{PollFd, PollFlags, Timespec};
use thiserror::Error;

use crate::auth::{Keys, Opener, Refusal, SENDERS_MAX, Sealer};
use crate::config::{Config, ConfigError};
use crate::node::{AbsentPeer, Action, Event, Limit, LookupReport, Node, Peer, Routing};
use crate::stats::{Counter, Counters, LookupRecord, Stats};

use socket::{BATCH, ControlSocket, SocketInode};
use worker_rings::WorkerRings;

const SOCKET: Token = Token(0);
const DOORBELL: Token = Token(1);

/// What one turn does of each kind at most, so that nothing starves: for each ring, lookups come
/// before announcements.
const BATCHES_PER_TURN: usize = 256 / BATCH;
const RESOLVES_PER_TURN: usize = 256;
const ANNOUNCEMENTS_PER_TURN: usize = 128;
const COMMANDS_PER_TURN: usize = 8;
/// Commands that can wait.
const COMMANDS_MAX: usize = 64;
/// How long the control thread waits for an answer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the others are told that this server stops, in µs.
const LEAVE_US_MAX: u64 = 500_000;
const LEAVE_PAUSE: Duration = Duration::from_millis(1);
/// The shortest sleep, in µs: waking up takes about as long, so a nearer deadline is waited for
/// awake.
const SLEEP_US_MIN: u64 = 20;
/// The shortest sleep, in µs, while the socket takes nothing; it wakes us when it does.
const BLOCKED_SLEEP_US_MIN: u64 = 1000;
/// The longest sleep.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Why the service cannot run.
#[derive(Debug, Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("DHT: {0}")]
    Config(#[from] ConfigError),
    /// The control socket cannot be bound.
    #[error("DHT: cannot bind {address}/udp: {source}{}", hint(*address, source))]
    Bind {
        /// The control socket's address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The poll failed.
    #[error("DHT: poll: {0}")]
    Poll(#[source] io::Error),
}

fn hint(address: SocketAddr, source: &io::Error) -> String {
    if source.kind() != io::ErrorKind::AddrNotAvailable {
        return String::new();
    }
    let len = if address.is_ipv4() { 32 } else { 128 };
    format!("; this machine does not have the locator: `ip addr add {}/{len} dev lo`", address.ip())
}

/// A node on its socket, ready to run.
#[derive(Debug)]
pub struct Service {
    config: Config,
    keys: Keys,
    clock: Arc<Clock>,
    poll: Poll,
    socket: UdpSocket,
    doorbell: Arc<Doorbell>,
    handle: Handle,
    commands: Receiver<Command>,
}

/// The control thread's way to a running service. Its calls wait for at most two seconds.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: SyncSender<Command>,
    doorbell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    /// Written by the service, a count a turn.
    turns: Arc<AtomicU64>,
    socket: Option<SocketInode>,
}

/// Why a call of [`Handle`] has no result.
#[derive(Debug, Clone, Copy, Error, PartialEq, Eq)]
pub enum HandleError {
    /// The service has ended.
    #[error("the DHT service is not running")]
    Stopped,
    /// Too many calls wait already.
    #[error("the DHT service is busy: too many commands wait")]
    Busy,
    /// There was no answer within two seconds.
    #[error("the DHT service did not answer within {COMMAND_TIMEOUT:?}")]
    TimedOut,
}

#[derive(Debug)]
enum Command {
    Peers(SyncSender<(Vec<Peer>, Vec<AbsentPeer>)>),
    Lookup(FlowKey, SyncSender<LookupReport>),
    Stats(SyncSender<Stats>),
    RecentLookups(usize, SyncSender<Vec<LookupRecord>>),
    Routing(usize, SyncSender<Routing>),
    Limits(SyncSender<Vec<Limit>>),
    Withdraw { flow: FlowKey, version: Version, reply: SyncSender<()> },
    SetCluster(Vec<IpNet>, Vec<SocketAddr>, SyncSender<Result<(), ConfigError>>),
}

impl Handle {
    /// The nodes in the routing table, in the order of their ids, and those that were in it and
    /// are looked out for, by their locators.
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn peers(&self) -> Result<(Vec<Peer>, Vec<AbsentPeer>), HandleError> {
        self.ask(Command::Peers)
    }

    /// Asks all replicas of a flow what they hold. Takes as long as the lookup timeout when one
    /// of them does not answer.
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn lookup(&self, flow: FlowKey) -> Result<LookupReport, HandleError> {
        self.ask(|reply| Command::Lookup(flow, reply))
    }

    /// Counters, gauges and distributions.
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn stats(&self) -> Result<Stats, HandleError> {
        let mut stats = self.ask(Command::Stats)?;
        let dropped = self.socket.and_then(SocketInode::datagrams_dropped);
        stats.counters.set(Counter::ReceiveDropped, dropped.unwrap_or(0));
        Ok(stats)
    }

    /// The last `limit` lookups that workers asked for, the newest first, at most
    /// [`crate::stats::JOURNAL_MAX`].
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn recent_lookups(&self, limit: usize) -> Result<Vec<LookupRecord>, HandleError> {
        self.ask(|reply| Command::RecentLookups(limit, reply))
    }

    /// Turns of the service since its start. It turns ten times a second and more, also when there
    /// is nothing to do: a count that stays the same for longer is that of a service that hangs.
    /// Never waits.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// The routing table, with at most `contacts_max` contacts in all.
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn routing(&self, contacts_max: usize) -> Result<Routing, HandleError> {
        self.ask(|reply| Command::Routing(contacts_max, reply))
    }

    /// The limits of the node and its service.
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn limits(&self) -> Result<Vec<Limit>, HandleError> {
        self.ask(Command::Limits)
    }

    /// Withdraws the record of a session that the operator has deleted, as a worker does of one
    /// that has ended (R8).
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn withdraw(&self, flow: FlowKey, version: Version) -> Result<(), HandleError> {
        self.ask(|reply| Command::Withdraw { flow, version, reply })
    }

    /// Goes on with other networks of members and other bootstrap nodes ([`Config::members`],
    /// [`Config::bootstrap`]): what servers send that are no members any more is dropped, so that
    /// they are dead before long.
    ///
    /// # Errors
    /// [`HandleError`], and inside what is wrong with them; nothing has changed then, unless that
    /// is [`HandleError::TimedOut`]: it may still.
    pub fn set_cluster(
        &self,
        members: Vec<IpNet>,
        bootstrap: Vec<SocketAddr>,
    ) -> Result<Result<(), ConfigError>, HandleError> {
        self.ask(|reply| Command::SetCluster(members, bootstrap, reply))
    }

    /// Makes [`Service::run`] return soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.doorbell.ring();
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, HandleError> {
        let (reply, answer) = sync_channel(1);
        self.commands.try_send(command(reply)).map_err(|error| match error {
            TrySendError::Full(_) => HandleError::Busy,
            TrySendError::Disconnected(_) => HandleError::Stopped,
        })?;
        self.doorbell.ring();
        answer.recv_timeout(COMMAND_TIMEOUT).map_err(|error| match error {
            RecvTimeoutError::Timeout => HandleError::TimedOut,
            RecvTimeoutError::Disconnected => HandleError::Stopped,
        })
    }
}

impl Service {
    /// Checks the configuration and binds the control socket. `keys` seal and open all that goes
    /// through it; `clock` is the one that the server's workers take versions from.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Bind`]; [`Error::Poll`] when the kernel has no file
    /// descriptors left.
    pub fn bind(config: Config, keys: Keys, clock: Arc<Clock>) -> Result<Service, Error> {
        config.check()?;
        let address = config.listen;
        let socket = socket::bind(address).map_err(|source| Error::Bind { address, source })?;
        let poll = Poll::new().map_err(Error::Poll)?;
        let waker = Waker::new(poll.registry(), DOORBELL).map_err(Error::Poll)?;
        let doorbell = Arc::new(Doorbell::new(waker));
        let (sender, commands) = sync_channel(COMMANDS_MAX);
        let handle = Handle {
            commands: sender,
            doorbell: doorbell.clone(),
            stop: Arc::new(AtomicBool::new(false)),
            turns: Arc::default(),
            socket: SocketInode::of(&socket).ok(),
        };
        Ok(Service { config, keys, clock, poll, socket, doorbell, handle, commands })
    }

    /// The doorbell for the workers' rings.
    #[must_use]
    pub fn doorbell(&self) -> Arc<Doorbell> {
        self.doorbell.clone()
    }

    /// A handle for the control thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs the node in this thread until [`Handle::stop`]. `rings` are the core's ends of the
    /// workers' rings.
    ///
    /// # Errors
    /// [`Error::Poll`] when the poll fails. Errors of the socket are counted, not returned.
    pub fn run(self, rings: Vec<CoreEnd>) -> Result<(), Error> {
        let (locator, incarnation) = (self.config.locator, unix_us());
        let sealer = Sealer::new(&self.keys, locator, incarnation, rand::random());
        let opener = Opener::new(&self.keys, locator);
        let config = self.config.clone();
        let node = Node::new(self.config, rand::random(), incarnation)?;
        let socket = ControlSocket::new(self.socket, self.poll.registry(), SOCKET);
        let socket = socket.map_err(Error::Poll)?;
        let [receive_buffer_bytes, send_buffer_bytes] =
            socket.buffer_sizes().unwrap_or_default().map(|bytes| bytes as u64);
        tracing::info!(
            id = %node.id(),
            locator = %node.locator(),
            receive_buffer_bytes,
            send_buffer_bytes,
            "DHT node runs"
        );
        let core = Core {
            node,
            config,
            sealer,
            opener,
            poll: self.poll,
            socket,
            local: Local {
                rings: rings.into_iter().map(WorkerRings::new).collect(),
                clock: self.clock,
                surveys: HashMap::new(),
            },
            commands: self.commands,
            started: Instant::now(),
            now_us: 0,
            next_token: 0,
            counters: Counters::default(),
        };
        core.run(&self.doorbell, &self.handle.stop, &self.handle.turns)
    }
}

/// The running service.
struct Core {
    node: Node,
    config: Config,
    sealer: Sealer,
    opener: Opener,
    poll: Poll,
    socket: ControlSocket,
    local: Local,
    commands: Receiver<Command>,
    started: Instant,
    /// Time of the events at hand, in µs since `started`: read once for a batch of them, because
    /// reading it costs as much as a short event.
    now_us: u64,
    next_token: u64,
    /// What only the service sees; the node counts the rest.
    counters: Counters,
}

/// Who hears from the node on this server.
struct Local {
    rings: Vec<WorkerRings>,
    clock: Arc<Clock>,
    /// Who waits for the report with which token.
    surveys: HashMap<u64, SyncSender<LookupReport>>,
}

impl Core {
    fn run(
        mut self,
        doorbell: &Doorbell,
        stop: &AtomicBool,
        turns: &AtomicU64,
    ) -> Result<(), Error> {
        // The kernel may end a sleep this much late, 50 µs by default; a hedge waits for 500 µs.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut events = Events::with_capacity(8);
        while !stop.load(Ordering::Acquire) {
            turns.fetch_add(1, Ordering::Relaxed);
            if self.turn() {
                continue;
            }
            doorbell.sleep();
            let queued = self.take_commands() || self.is_queued();
            let slept = if queued || stop.load(Ordering::Acquire) {
                Ok(())
            } else {
                self.sleep(&mut events)
            };
            doorbell.awake();
            slept.map_err(Error::Poll)?;
        }
        self.leave();
        Ok(())
    }

    /// Tells the others that this server stops, as far as that is quickly done.
    fn leave(&mut self) {
        self.read_clock();
        let give_up_us = self.now_us + LEAVE_US_MAX;
        self.handle(Event::Leave);
        self.transmit();
        while !self.node.has_left() && self.now_us < give_up_us {
            std::thread::sleep(LEAVE_PAUSE);
            self.read_clock();
            self.handle(Event::Tick);
            self.transmit();
        }
    }

    /// Does a bounded amount of everything. Returns whether there was anything: when there was
    /// not, the socket was read until it was empty, as an edge-triggered poll needs.
    fn turn(&mut self) -> bool {
        let mut busy = self.receive();
        self.read_clock();
        for ring in 0..self.local.rings.len() {
            busy |= self.take_resolves(ring);
        }
        for ring in 0..self.local.rings.len() {
            busy |= self.take_announcements(ring);
        }
        busy |= self.take_commands();
        self.read_clock();
        if self.node.next_deadline_us() <= self.now_us {
            self.handle(Event::Tick);
            // What cannot be sent stays due: no reason to turn again at once.
            busy |= !self.socket.is_blocked();
        }
        self.transmit();
        busy
    }

    /// Receives and opens batches, and passes them on to the node. The moment of a batch is the one
    /// when it was received: what it waits for here is no part of a round trip.
    fn receive(&mut self) -> bool {
        for batch in 0..BATCHES_PER_TURN {
            match self.socket.receive() {
                Ok(received) => {
                    self.read_clock();
                    for place in 0..received {
                        self.datagram(place);
                    }
                    if received < BATCH {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return batch > 0,
                // Such as the ICMP error that an earlier datagram caused: the socket lives on.
                Err(_) => self.counters.count(Counter::ReceiveErrors),
            }
        }
        true
    }

    /// Passes a datagram on to the node when it is from a member and verifies; never answers one
    /// that does not.
    fn datagram(&mut self, place: usize) {
        let (from, sealed) = self.socket.received(place);
        let opened = if self.config.is_member(from.ip()) {
            self.opener.open(self.now_us, from.ip(), sealed).map_err(Refusal::counter)
        } else {
            Err(Counter::NotMember)
        };
        match opened {
            Ok(bytes) => {
                let actions = self.node.handle(self.now_us, Event::Datagram { from, bytes });
                self.local.perform(actions, &mut self.counters);
            }
            Err(counter) => {
                self.counters.count(Counter::DatagramsReceived);
                self.counters.count(counter);
            }
        }
    }

    /// Seals and sends all that is due, as long as the socket takes it; what it does not take waits,
    /// the rest in the node. A lost datagram is retransmitted like any other, sealed anew.
    fn transmit(&mut self) {
        while self.flush() {
            if !self.seal_batch() {
                self.flush();
                return;
            }
            self.read_clock();
        }
    }

    /// Seals what is due until there is no room. Returns whether there may be more.
    fn seal_batch(&mut self) -> bool {
        while let Some(sealed) = self.socket.vacant() {
            let Some(transmit) = self.node.transmit(self.now_us, Sealer::body(sealed)) else {
                return false;
            };
            match self.sealer.seal(transmit.to.ip(), sealed, transmit.len) {
                Ok(len) => self.socket.queue(transmit.to, len),
                Err(_) => self.counters.count(Counter::SendErrors),
            }
        }
        true
    }

    fn flush(&mut self) -> bool {
        self.socket.flush(self.poll.registry(), &mut self.counters)
    }

    fn take_resolves(&mut self, ring: usize) -> bool {
        for taken in 0..RESOLVES_PER_TURN {
            match self.local.rings[ring].resolve() {
                Some(resolve) => self.handle(Event::Resolve { ring, resolve }),
                None => return taken > 0,
            }
        }
        true
    }

    /// What the node does not want now stays in the rings: workers find them full, mark their
    /// sessions and say it again later.
    fn take_announcements(&mut self, ring: usize) -> bool {
        for taken in 0..ANNOUNCEMENTS_PER_TURN {
            if !self.node.wants_announcements() {
                return taken > 0;
            }
            match self.local.rings[ring].announcement() {
                Some(announcement) => self.handle(Event::Announcement(announcement)),
                None => return taken > 0,
            }
        }
        true
    }

    fn take_commands(&mut self) -> bool {
        for taken in 0..COMMANDS_PER_TURN {
            match self.commands.try_recv() {
                Ok(command) => self.command(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return taken > 0,
            }
        }
        true
    }

    /// Answers a command. Whoever asked may have stopped waiting: then there is nobody to tell.
    fn command(&mut self, command: Command) {
        match command {
            Command::Peers(reply) => {
                let _ = reply.try_send((self.node.peers(), self.node.absent_peers()));
            }
            Command::Stats(reply) => {
                let mut stats = self.node.stats();
                stats.counters.add(&self.counters);
                stats.counters.set(Counter::SendersForgotten, self.opener.senders().1);
                let [receive, send] = self.socket.buffer_sizes().unwrap_or_default();
                stats.gauges.receive_buffer_bytes = receive as u64;
                stats.gauges.send_buffer_bytes = send as u64;
                let _ = reply.try_send(stats);
            }
            Command::RecentLookups(limit, reply) => {
                let _ = reply.try_send(self.node.recent_lookups(limit));
            }
            Command::Routing(contacts_max, reply) => {
                let _ = reply.try_send(self.node.routing(contacts_max));
            }
            Command::Limits(reply) => {
                let _ = reply.try_send(self.limits());
            }
            Command::Withdraw { flow, version, reply } => {
                self.handle(Event::Announcement(Announcement::Withdraw { flow, version }));
                let _ = reply.try_send(());
            }
            Command::SetCluster(members, bootstrap, reply) => {
                let _ = reply.try_send(self.set_cluster(members, bootstrap));
            }
            Command::Lookup(flow, reply) => {
                let token = self.next_token;
                self.next_token += 1;
                self.local.surveys.insert(token, reply);
                self.handle(Event::Survey { token, flow });
            }
        }
    }

    /// The node's limits, and those of what is around it.
    fn limits(&self) -> Vec<Limit> {
        let (senders, _) = self.opener.senders();
        let limit =
            |name, value: usize, used, hits| Limit { name, value: value as u64, used, hits };
        let mut limits = self.node.limits();
        limits.extend([limit(
            "senders",
            SENDERS_MAX,
            Some(senders as u64),
            &[Counter::SendersForgotten],
        )]);
        limits
    }

    fn set_cluster(
        &mut self,
        members: Vec<IpNet>,
        bootstrap: Vec<SocketAddr>,
    ) -> Result<(), ConfigError> {
        let config = Config { members, bootstrap, ..self.config.clone() };
        config.check()?;
        self.node.set_cluster(&config);
        self.config = config;
        Ok(())
    }

    /// Tells the node of an event and does what it wants done.
    fn handle(&mut self, event: Event<'_>) {
        let actions = self.node.handle(self.now_us, event);
        self.local.perform(actions, &mut self.counters);
    }

    fn read_clock(&mut self) {
        self.now_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
    }

    /// Whether a ring holds what the next turn would take.
    fn is_queued(&self) -> bool {
        let wants_announcements = self.node.wants_announcements();
        self.local.rings.iter().any(|rings| rings.is_queued(wants_announcements))
    }

    /// Sleeps until something happens or the node's deadline, whichever is first. To the
    /// microsecond: timeouts of mio's poll are whole milliseconds, rounded up.
    fn sleep(&mut self, events: &mut Events) -> io::Result<()> {
        self.read_clock();
        let mut left_us = self.node.next_deadline_us().saturating_sub(self.now_us);
        if self.socket.is_blocked() {
            left_us = left_us.max(BLOCKED_SLEEP_US_MIN);
        }
        if left_us < SLEEP_US_MIN {
            return Ok(());
        }
        let left = Duration::from_micros(left_us).min(SLEEP_MAX);
        let timeout = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        let mut polls = [PollFd::new(self.poll.registry(), PollFlags::IN)];
        let polled = match rustix::event::poll(&mut polls, Some(&timeout)) {
            Ok(0) => return Ok(()),
            Ok(_) => self.poll.poll(events, Some(Duration::ZERO)),
            Err(error) => Err(error.into()),
        };
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            polled => polled,
        }
    }
}

impl Local {
    /// Does what the node wants done. Whoever asked for a report may have stopped waiting.
    fn perform(&mut self, actions: impl Iterator<Item = Action>, counters: &mut Counters) {
        for action in actions {
            match action {
                Action::Answer { ring, answer } => {
                    let told = self.rings.get_mut(ring).map(|ring| ring.answer(answer));
                    if let Some(Err(counter)) = told {
                        counters.count(counter);
                    }
                }
                Action::Observe(version) => {
                    self.clock.observe(version);
                }
                Action::Report { token, report } => {
                    if let Some(reply) = self.surveys.remove(&token) {
                        let _ = reply.try_send(*report);
                    }
                }
            }
        }
    }
}
