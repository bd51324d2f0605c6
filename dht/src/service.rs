//! Runs a node: one UDP socket, the workers' rings and the control thread's commands in one
//! thread with mio. Never decides anything and never blocks but in its poll.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel,
};
use std::time::{Duration, Instant};

use holdfast_handoff::{Answer, Clock, CoreEnd, Doorbell, unix_us};
use holdfast_net::FlowKey;
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::auth::{Keys, Opener, Refusal, SEALED_MAX, Sealer};
use crate::config::{Config, ConfigError};
use crate::node::{Action, Event, LookupReport, Node, Peer};
use crate::stats::{Counter, Counters, LookupRecord, Stats};

const SOCKET: Token = Token(0);
const DOORBELL: Token = Token(1);

/// What one turn does of each kind at most, so that nothing starves: for each ring, lookups come
/// before announcements.
const DATAGRAMS_PER_TURN: usize = 256;
const RESOLVES_PER_TURN: usize = 256;
const ANNOUNCEMENTS_PER_TURN: usize = 128;
const COMMANDS_PER_TURN: usize = 8;
/// Commands that can wait.
const COMMANDS_MAX: usize = 64;
/// How long the control thread waits for an answer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);
/// Buffers of the socket, as far as the kernel grants them.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// How long the others are told that this server stops, in µs.
const LEAVE_US_MAX: u64 = 500_000;
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
    Peers(SyncSender<Vec<Peer>>),
    Lookup(FlowKey, SyncSender<LookupReport>),
    Stats(SyncSender<Stats>),
    RecentLookups(usize, SyncSender<Vec<LookupRecord>>),
}

impl Handle {
    /// The nodes in the routing table, in the order of their ids.
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn peers(&self) -> Result<Vec<Peer>, HandleError> {
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
        self.ask(Command::Stats)
    }

    /// The last `limit` lookups that workers asked for, the newest first, at most
    /// [`crate::stats::JOURNAL_MAX`].
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn recent_lookups(&self, limit: usize) -> Result<Vec<LookupRecord>, HandleError> {
        self.ask(|reply| Command::RecentLookups(limit, reply))
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
        let mut socket = bind(address).map_err(|source| Error::Bind { address, source })?;
        let poll = Poll::new().map_err(Error::Poll)?;
        poll.registry().register(&mut socket, SOCKET, Interest::READABLE).map_err(Error::Poll)?;
        let waker = Waker::new(poll.registry(), DOORBELL).map_err(Error::Poll)?;
        let doorbell = Arc::new(Doorbell::new(waker));
        let (sender, commands) = sync_channel(COMMANDS_MAX);
        let handle = Handle {
            commands: sender,
            doorbell: doorbell.clone(),
            stop: Arc::new(AtomicBool::new(false)),
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
        tracing::info!(id = %node.id(), locator = %node.locator(), "DHT node runs");
        let core = Core {
            node,
            config,
            sealer,
            opener,
            clock: self.clock,
            socket: self.socket,
            rings,
            commands: self.commands,
            started: Instant::now(),
            surveys: HashMap::new(),
            next_token: 0,
            counters: Counters::default(),
        };
        core.run(self.poll, &self.doorbell, &self.handle.stop)
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The kernel grants what it may; less is slower under load, not wrong.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(UdpSocket::from_std(socket.into()))
}

/// The running service.
struct Core {
    node: Node,
    config: Config,
    sealer: Sealer,
    opener: Opener,
    clock: Arc<Clock>,
    socket: UdpSocket,
    rings: Vec<CoreEnd>,
    commands: Receiver<Command>,
    started: Instant,
    /// Who waits for the report with which token.
    surveys: HashMap<u64, SyncSender<LookupReport>>,
    next_token: u64,
    /// What only the service sees; the node counts the rest.
    counters: Counters,
}

impl Core {
    fn run(mut self, mut poll: Poll, doorbell: &Doorbell, stop: &AtomicBool) -> Result<(), Error> {
        let mut events = Events::with_capacity(8);
        while !stop.load(Ordering::Acquire) {
            if self.turn() {
                continue;
            }
            doorbell.sleep();
            let queued = self.take_commands() || self.is_queued();
            let polled = if queued || stop.load(Ordering::Acquire) {
                Ok(())
            } else {
                poll.poll(&mut events, Some(self.sleep_time()))
            };
            doorbell.awake();
            match polled {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(Error::Poll(error));
                }
                _ => {}
            }
        }
        self.leave();
        Ok(())
    }

    /// Tells the others that this server stops, as far as that is quickly done.
    fn leave(&mut self) {
        let give_up_us = self.now_us() + LEAVE_US_MAX;
        self.handle(Event::Leave);
        self.transmit();
        while !self.node.has_left() && self.now_us() < give_up_us {
            std::thread::sleep(self.sleep_time());
            self.handle(Event::Tick);
            self.transmit();
        }
    }

    /// Does a bounded amount of everything. Returns whether there was anything: when there was
    /// not, the socket was read until it was empty, as an edge-triggered poll needs.
    fn turn(&mut self) -> bool {
        let mut busy = self.receive();
        for ring in 0..self.rings.len() {
            busy |= self.take_resolves(ring);
        }
        for ring in 0..self.rings.len() {
            busy |= self.take_announcements(ring);
        }
        busy |= self.take_commands();
        if self.node.next_deadline_us() <= self.now_us() {
            self.handle(Event::Tick);
            busy = true;
        }
        self.transmit();
        busy
    }

    /// Seals and sends all that is due. A lost datagram is retransmitted like any other, sealed
    /// anew.
    fn transmit(&mut self) {
        let mut sealed = [0; SEALED_MAX];
        loop {
            let now_us = self.now_us();
            let Some(transmit) = self.node.transmit(now_us, Sealer::body(&mut sealed)) else {
                return;
            };
            let counter = match self.sealer.seal(transmit.to.ip(), &mut sealed, transmit.len) {
                Ok(len) => send(&self.socket, transmit.to, &sealed[..len]),
                Err(_) => Counter::SendErrors,
            };
            self.counters.count(counter);
        }
    }

    fn receive(&mut self) -> bool {
        // One byte more than a datagram may have, so that a longer one is seen to be too long.
        let mut sealed = [0; SEALED_MAX + 1];
        for received in 0..DATAGRAMS_PER_TURN {
            match self.socket.recv_from(&mut sealed) {
                Ok((len, from)) => self.datagram(from, &mut sealed[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return received > 0,
                // Such as the ICMP error that an earlier datagram caused: the socket lives on.
                Err(_) => self.counters.count(Counter::ReceiveErrors),
            }
        }
        true
    }

    /// Passes a datagram on to the node when it is from a member and verifies; never answers one
    /// that does not.
    fn datagram(&mut self, from: SocketAddr, sealed: &mut [u8]) {
        let now_us = self.now_us();
        let opened = if self.config.is_member(from.ip()) {
            self.opener.open(now_us, from.ip(), sealed).map_err(Refusal::counter)
        } else {
            Err(Counter::NotMember)
        };
        match opened {
            Ok(bytes) => self.handle(Event::Datagram { from, bytes }),
            Err(counter) => {
                self.counters.count(Counter::DatagramsReceived);
                self.counters.count(counter);
            }
        }
    }

    fn take_resolves(&mut self, ring: usize) -> bool {
        for taken in 0..RESOLVES_PER_TURN {
            match self.rings[ring].resolves.pop() {
                Ok(resolve) => self.handle(Event::Resolve { ring, resolve }),
                Err(_) => return taken > 0,
            }
        }
        true
    }

    fn take_announcements(&mut self, ring: usize) -> bool {
        for taken in 0..ANNOUNCEMENTS_PER_TURN {
            match self.rings[ring].announcements.pop() {
                Ok(announcement) => self.handle(Event::Announcement(announcement)),
                Err(_) => return taken > 0,
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
                let _ = reply.try_send(self.node.peers());
            }
            Command::Stats(reply) => {
                let mut stats = self.node.stats();
                stats.counters.add(&self.counters);
                stats.counters.set(Counter::SendersForgotten, self.opener.senders().1);
                let _ = reply.try_send(stats);
            }
            Command::RecentLookups(limit, reply) => {
                let _ = reply.try_send(self.node.recent_lookups(limit));
            }
            Command::Lookup(flow, reply) => {
                let token = self.next_token;
                self.next_token += 1;
                self.surveys.insert(token, reply);
                self.handle(Event::Survey { token, flow });
            }
        }
    }

    /// Tells the node of an event and does what it wants done.
    fn handle(&mut self, event: Event<'_>) {
        let now_us = self.now_us();
        for action in self.node.handle(now_us, event) {
            match action {
                Action::Answer { ring, answer } => {
                    let ring = self.rings.get_mut(ring);
                    if ring.is_none_or(|ring| ring.answers.push(answer).is_err()) {
                        self.counters.count(match answer {
                            Answer::Resolved { .. } => Counter::AnswersDropped,
                            Answer::NotMine { .. } => Counter::NotMineDropped,
                            Answer::OwnerDead { .. } => Counter::OwnerDeadDropped,
                        });
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

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn is_queued(&self) -> bool {
        let queued = |ring: &CoreEnd| !ring.resolves.is_empty() || !ring.announcements.is_empty();
        self.rings.iter().any(queued)
    }

    fn sleep_time(&self) -> Duration {
        let deadline_us = self.node.next_deadline_us();
        Duration::from_micros(deadline_us.saturating_sub(self.now_us())).min(SLEEP_MAX)
    }
}

/// Sends a sealed datagram, and says what became of it.
fn send(socket: &UdpSocket, to: SocketAddr, sealed: &[u8]) -> Counter {
    match socket.send_to(sealed, to) {
        Ok(_) => Counter::DatagramsSent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Counter::SendWouldBlock,
        Err(_) => Counter::SendErrors,
    }
}
