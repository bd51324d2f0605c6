//! The ways to the other nodes: operations queue here, leave in batches, and wait for their
//! results. Never carries an operation out and never decides to send one again.
//!
//! Lookups leave before stores, stores before deletes, and those before what is no news. Each way
//! has a credit of operations in flight, which losses halve. A batch that is full leaves at once;
//! one that is not leaves at once as long as there are few of those, and else waits for more
//! operations: with *n* nodes to send to for *n* / [`PARTIAL_PER_S`] seconds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;

use crate::batch::{Header, Outcome, Request, Writer};
use crate::id::Id;
use crate::message::DATAGRAM_MAX;
use crate::rtt::Rtt;

/// Batches that are not full which may leave in a second, and at once.
pub const PARTIAL_PER_S: u64 = 20_000;
const PARTIAL_US: u64 = 1_000_000 / PARTIAL_PER_S;
const PARTIAL_BURST: u64 = 64;

/// Operations in flight to one node: at first, at least, and at most.
const CREDIT_FIRST: usize = 512;
const CREDIT_MIN: usize = 64;
const CREDIT_MAX: usize = 8192;
/// Numbers that wait for results, at most: those between unanswered ones are kept.
const WINDOW_MAX: usize = 4 * CREDIT_MAX;
/// Operations that can queue for one node, of each class but lookups, which are bounded already.
pub(crate) const QUEUE_MAX: usize = 8192;
/// Results that can queue for one node: beyond, operations are dropped, and sent again.
pub(crate) const RESULTS_MAX: usize = 16_384;
/// Nodes that can have a way.
const LINKS_MAX: usize = 1 << 16;
/// How often an operation is sent, at most.
pub(crate) const TRANSMISSIONS_MAX: u8 = 5;
/// Roughly what an item takes of a batch, in bytes: to tell whether one is full.
const RESULT_LEN: usize = 14;
const LOOKUP_LEN: usize = 16;
const STORE_LEN: usize = 24;

/// Which of the operations that wait leave first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Lookup,
    Store,
    Delete,
    /// Records that move or are refreshed.
    Background,
}

const CLASSES: usize = 4;

/// An operation on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) request: Request,
    /// What the sender knows it by.
    pub(crate) token: u64,
    pub(crate) class: Class,
    /// How often it was sent.
    pub(crate) transmissions: u8,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    op: Op,
    sent_at_us: u64,
}

/// What the node at the other end has told of its side.
#[derive(Debug, Clone, Copy, Default)]
struct Other {
    base: u32,
    life: u32,
}

/// The way to one node.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    address: SocketAddr,
    /// The node's incarnation; 0 when it is not known.
    incarnation: u64,
    queues: [VecDeque<Op>; CLASSES],
    queued: usize,
    /// By number, from `next` - `window.len()`; `None` when there is a result.
    window: VecDeque<Option<Flight>>,
    next: u32,
    in_flight: usize,
    credit: usize,
    /// Number from which lookups were not hedged yet.
    unhedged: u32,
    /// Losses in a row.
    losses: u32,
    lost_at_us: u64,
    rtt: Rtt,
    other: Other,
    results: VecDeque<(u32, Outcome)>,
    /// When the links' timers will look at it.
    timer_us: Option<u64>,
    /// In which of the links' queues it is.
    is_full: bool,
    is_urgent: bool,
    is_waiting: bool,
}

impl Link {
    fn new(address: SocketAddr) -> Link {
        Link {
            address,
            incarnation: 0,
            queues: Default::default(),
            queued: 0,
            window: VecDeque::new(),
            next: 0,
            in_flight: 0,
            credit: CREDIT_FIRST,
            unhedged: 0,
            losses: 0,
            lost_at_us: 0,
            rtt: Rtt::default(),
            other: Other::default(),
            results: VecDeque::new(),
            timer_us: None,
            is_full: false,
            is_urgent: false,
            is_waiting: false,
        }
    }

    fn base(&self) -> u32 {
        self.next.wrapping_sub(self.window.len() as u32)
    }

    /// How long a lookup waits for the next replica to be asked as well.
    fn hedge_us(&self) -> u64 {
        self.rtt.hedge_us()
    }

    fn timeout_us(&self) -> u64 {
        self.rtt.timeout_us(self.losses)
    }

    fn may_send(&self, class: usize) -> bool {
        // A part of the credit is kept for lookups.
        let credit = if class == Class::Lookup as usize { 2 * self.credit } else { self.credit };
        self.in_flight < credit && self.window.len() < WINDOW_MAX && self.incarnation != 0
    }

    /// The first class of which an operation may be sent now.
    fn class(&self) -> Option<usize> {
        let class = self.queues.iter().position(|queue| !queue.is_empty())?;
        self.may_send(class).then_some(class)
    }

    fn has_something(&self) -> bool {
        !self.results.is_empty() || self.class().is_some()
    }

    /// Whether what may be sent now fills a batch.
    fn fills_batch(&self) -> bool {
        let mut len = self.results.len() * RESULT_LEN;
        if self.class().is_some() {
            let free = (2 * self.credit).saturating_sub(self.in_flight);
            let lookups = self.queues[Class::Lookup as usize].len();
            let others = self.queued - lookups;
            let others_free = self.credit.saturating_sub(self.in_flight + lookups.min(free));
            len += lookups.min(free) * LOOKUP_LEN + others.min(others_free) * STORE_LEN;
        }
        len >= DATAGRAM_MAX
    }

    /// Writes as much as fits, and returns how many bytes that are; 0 when there is nothing.
    fn write(&mut self, now_us: u64, header: &Header, body: &mut [u8; DATAGRAM_MAX]) -> usize {
        let mut writer = Writer::new(header, body);
        while let Some((number, outcome)) = self.results.front()
            && writer.result(*number, outcome)
        {
            self.results.pop_front();
        }
        while let Some(class) = self.class()
            && let Some(op) = self.queues[class].front()
            && writer.request(self.next, &op.request)
        {
            self.send(now_us, class);
        }
        if writer.is_empty() { 0 } else { writer.len() }
    }

    fn send(&mut self, now_us: u64, class: usize) {
        let Some(mut op) = self.queues[class].pop_front() else {
            return;
        };
        self.queued -= 1;
        op.transmissions += 1;
        self.window.push_back(Some(Flight { op, sent_at_us: now_us }));
        self.next = self.next.wrapping_add(1);
        self.in_flight += 1;
    }

    /// Takes the operation with this number out of flight.
    fn take(&mut self, number: u32) -> Option<Flight> {
        let place = number.wrapping_sub(self.base()) as usize;
        let flight = self.window.get_mut(place)?.take()?;
        self.in_flight -= 1;
        while let Some(None) = self.window.front() {
            self.window.pop_front();
        }
        Some(flight)
    }

    /// Takes out the oldest operation in flight when its time is over.
    fn expire(&mut self, now_us: u64) -> Option<Flight> {
        let flight = (*self.window.front()?)?;
        if flight.sent_at_us + self.timeout_us() > now_us {
            return None;
        }
        self.take(self.base())
    }

    /// A batch was lost: less may be in flight, and what is may take longer.
    fn lost(&mut self, now_us: u64, sent_at_us: u64) {
        // Those that were sent before the last loss was seen are part of it.
        if sent_at_us >= self.lost_at_us {
            self.lost_at_us = now_us;
            self.losses += 1;
            self.credit = (self.credit / 2).max(CREDIT_MIN);
        }
    }

    /// The next lookup in flight that has waited for long enough.
    fn hedge(&mut self, now_us: u64) -> Option<u64> {
        let (token, at_us) = self.next_hedge()?;
        if at_us > now_us {
            return None;
        }
        self.unhedged = self.unhedged.wrapping_add(1);
        Some(token)
    }

    /// Token of the next lookup to hedge, and when.
    fn next_hedge(&mut self) -> Option<(u64, u64)> {
        let base = self.base();
        if (self.unhedged.wrapping_sub(base) as i32) < 0 {
            self.unhedged = base;
        }
        loop {
            let place = self.unhedged.wrapping_sub(base) as usize;
            match self.window.get(place)? {
                Some(flight) if flight.op.class == Class::Lookup => {
                    return Some((flight.op.token, flight.sent_at_us + self.hedge_us()));
                }
                _ => self.unhedged = self.unhedged.wrapping_add(1),
            }
        }
    }

    fn deadline_us(&mut self) -> Option<u64> {
        let expires = self.window.front().copied().flatten();
        let expires_us = expires.map(|flight| flight.sent_at_us + self.timeout_us());
        let hedge_us = self.next_hedge().map(|(_, at_us)| at_us);
        [expires_us, hedge_us].into_iter().flatten().min()
    }
}

/// What has come due.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Due {
    /// This operation was not answered in time; it was sent at this moment.
    Expired(Op, u64),
    /// The lookup with this token waits for long.
    Hedge(u64),
}

/// What the header of a batch tells beyond the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    /// Nothing new.
    Known,
    /// The sender has a new incarnation: it holds nothing of ours.
    Restarted,
    /// The sender had taken us for dead: it may hold nothing of ours, and we may hold what it has
    /// deleted since.
    Forgotten,
    /// It is of an older incarnation than the sender has now.
    Older,
}

/// All ways.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    links: Vec<Link>,
    index: HashMap<SocketAddr, u32>,
    /// Those that can fill a batch, those with lookups or results, and all with anything, in the
    /// order in which they are served.
    full: VecDeque<u32>,
    urgent: VecDeque<u32>,
    waiting: VecDeque<u32>,
    /// When the next batch that is not full could leave if they came evenly.
    pace_us: u64,
    timers: BinaryHeap<Reverse<(u64, u32)>>,
    in_flight: usize,
    queued: usize,
}

impl Links {
    pub(crate) fn new() -> Links {
        Links {
            links: Vec::new(),
            index: HashMap::new(),
            full: VecDeque::new(),
            urgent: VecDeque::new(),
            waiting: VecDeque::new(),
            pace_us: 0,
            timers: BinaryHeap::new(),
            in_flight: 0,
            queued: 0,
        }
    }

    /// Operations in flight, and those that wait to be sent.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// The way to this address; `None` when there are too many.
    pub(crate) fn of(&mut self, address: SocketAddr) -> Option<u32> {
        if let Some(link) = self.index.get(&address) {
            return Some(*link);
        }
        if self.links.len() == LINKS_MAX {
            return None;
        }
        let link = self.links.len() as u32;
        self.links.push(Link::new(address));
        self.index.insert(address, link);
        Some(link)
    }

    pub(crate) fn address(&self, link: u32) -> SocketAddr {
        self.links[link as usize].address
    }

    /// Queues an operation. Returns whether there was room.
    pub(crate) fn push(&mut self, link: u32, op: Op) -> bool {
        let way = &mut self.links[link as usize];
        let queue = &mut way.queues[op.class as usize];
        if op.class != Class::Lookup && queue.len() >= QUEUE_MAX {
            return false;
        }
        queue.push_back(op);
        way.queued += 1;
        self.queued += 1;
        self.schedule(link);
        true
    }

    /// Queues a result. Returns whether there was room.
    pub(crate) fn push_result(&mut self, link: u32, number: u32, outcome: Outcome) -> bool {
        let results = &mut self.links[link as usize].results;
        if results.len() >= RESULTS_MAX {
            return false;
        }
        results.push_back((number, outcome));
        self.schedule(link);
        true
    }

    /// Puts a way in the queues where it belongs.
    fn schedule(&mut self, link: u32) {
        let way = &mut self.links[link as usize];
        if !way.has_something() {
            return;
        }
        if !way.is_full && way.fills_batch() {
            way.is_full = true;
            self.full.push_back(link);
        }
        let urgent = !way.results.is_empty() || !way.queues[Class::Lookup as usize].is_empty();
        if urgent && !way.is_urgent {
            way.is_urgent = true;
            self.urgent.push_back(link);
        }
        if !way.is_waiting {
            way.is_waiting = true;
            self.waiting.push_back(link);
        }
    }

    /// Writes the next batch that is due, and says to whom. `header` gives the incarnation of
    /// ours and the life of the node with this address.
    pub(crate) fn transmit(
        &mut self,
        now_us: u64,
        body: &mut [u8; DATAGRAM_MAX],
        own: u64,
        life: impl Fn(SocketAddr) -> u32,
    ) -> Option<(SocketAddr, usize)> {
        while let Some(link) = self.next(now_us) {
            let way = &mut self.links[link as usize];
            let header = Header {
                incarnation: own,
                receiver: way.incarnation,
                base: way.base(),
                life: life(way.address),
            };
            let in_flight = way.in_flight;
            let len = way.write(now_us, &header, body);
            let sent = way.in_flight - in_flight;
            let address = way.address;
            self.in_flight += sent;
            self.queued -= sent;
            self.schedule(link);
            if sent > 0 {
                self.set_timer(link);
            }
            if len > 0 {
                return Some((address, len));
            }
        }
        None
    }

    /// Whose turn it is.
    fn next(&mut self, now_us: u64) -> Option<u32> {
        while let Some(link) = self.full.pop_front() {
            let way = &mut self.links[link as usize];
            way.is_full = false;
            if way.fills_batch() {
                return Some(link);
            }
        }
        if self.paced_until_us() > now_us {
            return None;
        }
        let link = self.next_partial()?;
        self.pace_us = self.pace_us.max(now_us) + PARTIAL_US;
        Some(link)
    }

    fn next_partial(&mut self) -> Option<u32> {
        while let Some(link) = self.urgent.pop_front() {
            let way = &mut self.links[link as usize];
            way.is_urgent = false;
            if way.has_something() {
                return Some(link);
            }
        }
        while let Some(link) = self.waiting.pop_front() {
            let way = &mut self.links[link as usize];
            way.is_waiting = false;
            if way.has_something() {
                return Some(link);
            }
        }
        None
    }

    /// When the next batch that is not full may leave.
    fn paced_until_us(&self) -> u64 {
        self.pace_us.saturating_sub(PARTIAL_BURST * PARTIAL_US)
    }

    fn set_timer(&mut self, link: u32) {
        let way = &mut self.links[link as usize];
        if let Some(at_us) = way.deadline_us()
            && way.timer_us.is_none_or(|timer_us| at_us < timer_us)
        {
            way.timer_us = Some(at_us);
            self.timers.push(Reverse((at_us, link)));
        }
    }

    /// When something is to be sent or comes due; may be earlier.
    pub(crate) fn next_deadline_us(&self) -> Option<u64> {
        let timer = self.timers.peek().map(|Reverse((at_us, _))| *at_us);
        let paced =
            (!self.urgent.is_empty() || !self.waiting.is_empty()).then(|| self.paced_until_us());
        let full = (!self.full.is_empty()).then_some(0);
        [timer, paced, full].into_iter().flatten().min()
    }

    /// The next thing that has come due, and on which way.
    pub(crate) fn due(&mut self, now_us: u64) -> Option<(u32, Due)> {
        while let Some(Reverse((at_us, link))) = self.timers.peek().copied() {
            if at_us > now_us {
                return None;
            }
            let way = &mut self.links[link as usize];
            if way.timer_us == Some(at_us) {
                if let Some(due) = self.due_on(now_us, link) {
                    return Some((link, due));
                }
                self.links[link as usize].timer_us = None;
                self.timers.pop();
                self.set_timer(link);
            } else {
                self.timers.pop();
            }
        }
        None
    }

    fn due_on(&mut self, now_us: u64, link: u32) -> Option<Due> {
        let way = &mut self.links[link as usize];
        if let Some(token) = way.hedge(now_us) {
            return Some(Due::Hedge(token));
        }
        let flight = way.expire(now_us)?;
        way.lost(now_us, flight.sent_at_us);
        self.in_flight -= 1;
        self.schedule(link);
        Some(Due::Expired(flight.op, flight.sent_at_us))
    }

    /// A batch has come on this way.
    pub(crate) fn begin(&mut self, link: u32, header: &Header) -> Begun {
        let way = &mut self.links[link as usize];
        if header.incarnation < way.incarnation {
            return Begun::Older;
        }
        let other = Other { base: header.base, life: header.life };
        if header.incarnation > way.incarnation {
            let known = way.incarnation != 0;
            self.incarnate(link, header.incarnation);
            self.links[link as usize].other = other;
            return if known { Begun::Restarted } else { Begun::Known };
        }
        let forgot = way.other.life != 0 && other.life > way.other.life;
        if (other.base.wrapping_sub(way.other.base) as i32) > 0 {
            way.other.base = other.base;
        }
        way.other.life = way.other.life.max(other.life);
        if forgot { Begun::Forgotten } else { Begun::Known }
    }

    /// The node at the other end is of this incarnation now.
    pub(crate) fn incarnate(&mut self, link: u32, incarnation: u64) {
        let way = &mut self.links[link as usize];
        if way.incarnation != incarnation {
            way.incarnation = incarnation;
            way.other = Other::default();
            way.results.clear();
            self.schedule(link);
        }
    }

    /// Whether an operation that came in a batch on this way is still to be carried out.
    pub(crate) fn is_wanted(&self, link: u32, number: u32) -> bool {
        number.wrapping_sub(self.links[link as usize].other.base) as i32 >= 0
    }

    /// Id of the record that an operation in flight is about, unless it is a lookup.
    pub(crate) fn record_of(&self, link: u32, number: u32) -> Option<Id> {
        let way = &self.links[link as usize];
        let flight = (*way.window.get(number.wrapping_sub(way.base()) as usize)?)?;
        (flight.op.class != Class::Lookup).then(|| flight.op.request.id())
    }

    /// Takes the operation that has this result out of flight, and tells when it was sent.
    pub(crate) fn answered(&mut self, link: u32, number: u32) -> Option<(Op, u64)> {
        let way = &mut self.links[link as usize];
        let flight = way.take(number)?;
        self.in_flight -= 1;
        Some((flight.op, flight.sent_at_us))
    }

    /// Results have come on this way, after this time.
    pub(crate) fn measured(&mut self, link: u32, rtt_us: u64, results: usize) {
        let way = &mut self.links[link as usize];
        way.rtt.measured(rtt_us);
        way.losses = 0;
        way.credit = (way.credit + results / 2).min(CREDIT_MAX);
        self.schedule(link);
        self.set_timer(link);
    }

    /// Takes out one operation of all that wait or are in flight on this way: nothing that was
    /// sent before will have a result. Call until `None`.
    pub(crate) fn give_up(&mut self, link: u32) -> Option<Op> {
        let way = &mut self.links[link as usize];
        if let Some(flight) = way.window.front().copied().flatten() {
            way.take(way.base());
            self.in_flight -= 1;
            return Some(flight.op);
        }
        let queue = way.queues.iter_mut().find(|queue| !queue.is_empty())?;
        let op = queue.pop_front()?;
        way.queued -= 1;
        self.queued -= 1;
        Some(op)
    }
}
