//! Keeps the records of this server's sessions at the nodes closest to them, and deletes them
//! when the sessions end. Never gives up the record of a live session, and never touches one
//! that a newer session has superseded (R3, R8, R12).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use holdfast_handoff::{Announcement, Answer, Version};
use holdfast_net::FlowKey;
use rand::RngExt;
use smallvec::SmallVec;

use super::{Action, Node};
use crate::batch::{Outcome, Request};
use crate::config::us;
use crate::id::Id;
use crate::link::{Class, Op};
use crate::lookup::{Lookup, Progress};
use crate::message::Message;
use crate::peer_slots::Slot;
use crate::placement::Rank;
use crate::publish::{Entry, Phase, Slots};
use crate::record::Claim;
use crate::stats::Counter;

/// Operations that wait to be sent, beyond which no entry is worked on and no announcement taken.
pub(super) const QUEUED_MAX: usize = 16_384;
/// Entries that wait to be worked on, beyond which no announcement is taken.
const URGENT_MAX: usize = 4_096;
/// Entries worked on in one call of [`Node::handle`]: lookups wait for no more than these.
const AT_ONCE: usize = 64;
/// Entries that are no news (moves, refreshes, retries) in one turn of housekeeping: some
/// 20,000 a second.
const BACKGROUND_PER_TURN: usize = 512;
/// Entries looked after in one turn of housekeeping.
const WALK_PER_TURN: usize = 4096;
/// Pause before unanswered STOREs are tried again, in µs, and those that were refused because
/// the replica is full.
const RETRY_US: u64 = 1_000_000;
const RETRY_FRESH_US: u64 = 200_000;
const RETRY_REFUSED_US: u64 = 30_000_000;
/// Pause before a deletion is looked after again when all replicas that miss it are dead, in µs;
/// it is looked after at once when one of them comes back.
const RETRY_DEAD_US: u64 = 5_000_000;
/// Pause before moving records after the closest nodes have changed, at most, in µs: other
/// servers see the same change at the same moment.
const MOVE_JITTER_US: u64 = 200_000;
/// How long a withdrawn session is remembered, in µs: workers' rings have no order between
/// them, so its publish may still be on its way to us.
const LINGER_US: u64 = 2_000_000;
/// A STALE answer to a publish this fresh, in µs, can mean that our clock is behind; later it
/// means that the session is old.
const FRESH_US: u64 = 2_000_000;
/// A claim that is further ahead of our clock, in µs, says that the clock is behind: less may pass
/// between the two clocks' readings on one machine.
const BEHIND_US: u64 = 10_000;
/// How often a fresh publish is raised above what it meets.
const RAISES_MAX: u8 = 4;
/// Control messages that wait to be sent, beyond which no NOT_MINE for all joins them.
pub(super) const NOT_MINE_QUEUE_MAX: usize = 4096;
/// Servers that are told for which flow a rewritten segment came, at most.
const NOT_MINE_PEERS_MAX: usize = 256;
/// How often a deletion is tried at least, in rounds of retransmissions.
const DELETE_ROUNDS_MIN: u8 = 3;

/// The work that waits.
#[derive(Debug, Clone, Default)]
pub(super) struct Queues {
    urgent: VecDeque<Id>,
    background: VecDeque<Id>,
    background_budget: usize,
    /// Entries that are live, and those of them that are settled.
    pub(super) live: usize,
    pub(super) settled: usize,
    /// Live entries that former replicas still hold.
    pub(super) moving: usize,
    /// Entries to look after in this turn.
    due: Vec<Id>,
    /// Grows when the routing table changes.
    epoch: u64,
    /// When to act on that.
    moves_at_us: u64,
}

impl Node {
    pub(super) fn announcement(&mut self, announcement: Announcement) {
        match announcement {
            Announcement::Publish { flow, version } => self.publish(flow, version),
            Announcement::Withdraw { flow, version } => self.withdraw(flow, version),
            Announcement::NotMine { flow, sender } => self.refuse(flow, sender),
            Announcement::Doubtful { flow, sender } => self.tell_not_mine(flow, sender),
        }
    }

    fn publish(&mut self, flow: FlowKey, version: Version) {
        self.count(Counter::Published);
        let id = self.hasher.flow(&flow);
        let now_us = self.now_us;
        match self.published.get(id) {
            // What is learnt of a flow whose session was withdrawn a moment ago lives after all.
            Some(entry)
                if entry.session >= version
                    && (entry.phase == Phase::Live || version != Version::UNKNOWN) =>
            {
                self.count(Counter::PublishesRepeated);
            }
            Some(_) => {
                self.change(id, |entry| entry.renew(version, Phase::Live, now_us));
                self.queue(id, true);
            }
            None => {
                let entry = Entry::new(flow, version, Phase::Live, now_us);
                if !self.add(id, entry) {
                    self.count(Counter::PublishesRefused);
                }
            }
        }
    }

    fn withdraw(&mut self, flow: FlowKey, version: Version) {
        let id = self.hasher.flow(&flow);
        let now_us = self.now_us;
        match self.published.get(id) {
            Some(entry) if entry.session > version => self.count(Counter::WithdrawsIgnored),
            Some(entry) if entry.phase == Phase::Withdrawn && entry.session == version => {}
            Some(_) => {
                self.count(Counter::Withdrawn);
                self.change(id, |entry| entry.renew(version, Phase::Withdrawn, now_us));
                self.queue(id, true);
            }
            // Its publish may come after it from another worker's ring, or was lost when that
            // ring was full, or was before we restarted: delete it all the same.
            None => {
                let entry = Entry::new(flow, version, Phase::Withdrawn, now_us);
                match self.add(id, entry) {
                    true => self.count(Counter::Withdrawn),
                    false => self.count(Counter::WithdrawsRefused),
                }
            }
        }
    }

    /// A worker does not hold a flow that `sender` tunnelled to us (R6).
    fn refuse(&mut self, flow: FlowKey, sender: Option<IpAddr>) {
        let id = self.hasher.flow(&flow);
        let settled_in = |entry: &&Entry| entry.announced_at_us + LINGER_US < self.now_us;
        let live = |entry: &&Entry| entry.phase == Phase::Live;
        if let Some(entry) = self.published.get(id).filter(live).filter(settled_in) {
            let session = entry.session;
            self.count(Counter::PublishesRepaired);
            self.withdraw(flow, session);
        }
        self.tell_not_mine(flow, sender);
    }

    /// `sender` looks a flow up again that it tunnelled to us; who has no redirect to us takes no
    /// notice.
    fn tell_not_mine(&mut self, flow: FlowKey, sender: Option<IpAddr>) {
        let Some(sender) = sender else {
            return self.tell_all_not_mine(flow);
        };
        let to = self.control_socket(sender);
        if self.is_possible_peer(to) {
            self.count(Counter::NotMineSent);
            self.send(to, 0, Message::NotMine(flow));
        }
    }

    /// For a rewritten segment, which does not tell who sent it.
    fn tell_all_not_mine(&mut self, flow: FlowKey) {
        if self.outbox.len() >= NOT_MINE_QUEUE_MAX {
            return self.count(Counter::NotMineUnsent);
        }
        self.count(Counter::NotMineToAll);
        let mut after = None;
        for _ in 0..NOT_MINE_PEERS_MAX {
            let Some(contact) = self.table.next(after) else {
                return;
            };
            after = Some(contact.id);
            let to = contact.address;
            self.send(to, 0, Message::NotMine(flow));
        }
    }

    /// The control socket of the server with this locator: of one that is no contact, the port is
    /// ours.
    pub(super) fn control_socket(&self, locator: IpAddr) -> SocketAddr {
        let contact = self.table.get(self.hasher.node(locator));
        contact.map_or(SocketAddr::new(locator, self.config.listen.port()), |c| c.address)
    }

    fn add(&mut self, id: Id, entry: Entry) -> bool {
        if self.published.len() >= self.config.published_max {
            return false;
        }
        self.publishing.live += usize::from(entry.phase == Phase::Live);
        self.published.insert(id, entry);
        self.queue(id, true);
        true
    }

    fn queue(&mut self, id: Id, urgent: bool) {
        let queued = self.change(id, |entry| std::mem::replace(&mut entry.queued, true));
        match (queued, urgent) {
            (Some(false), true) => self.publishing.urgent.push_back(id),
            (Some(false), false) => self.publishing.background.push_back(id),
            _ => {}
        }
    }

    /// Changes an entry, and keeps the gauges right.
    fn change<R>(&mut self, id: Id, change: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let entry = self.published.get_mut(id)?;
        let before = weight(entry);
        let result = change(entry);
        let after = weight(entry);
        self.publishing.live = self.publishing.live + after.0 - before.0;
        self.publishing.settled = self.publishing.settled + after.1 - before.1;
        self.publishing.moving = self.publishing.moving + after.2 - before.2;
        Some(result)
    }

    fn forget(&mut self, id: Id) {
        if let Some(entry) = self.published.remove(id) {
            let (live, settled, moving) = weight(&entry);
            self.publishing.live -= live;
            self.publishing.settled -= settled;
            self.publishing.moving -= moving;
        }
    }

    /// Whether there is something to send now.
    pub(super) fn is_publishing_due(&self) -> bool {
        let queues = &self.publishing;
        let background = !queues.background.is_empty() && queues.background_budget > 0;
        self.membership.is_joined()
            && self.links.queued() < QUEUED_MAX
            && (background || !queues.urgent.is_empty())
    }

    /// Whether the workers' announcements should be taken now. When not, they wait in the
    /// workers' rings; a worker whose ring is full says it again later.
    #[must_use]
    pub fn wants_announcements(&self) -> bool {
        !self.membership.is_joined()
            || self.links.queued() < QUEUED_MAX && self.publishing.urgent.len() < URGENT_MAX
    }

    /// Sends what waits, news first, as far as the limits allow. A node that has not joined
    /// does not know who is closest: it waits.
    pub(super) fn send_published(&mut self) {
        for _ in 0..AT_ONCE {
            if !self.is_publishing_due() {
                return;
            }
            let urgent = self.publishing.urgent.pop_front();
            let id = urgent.or_else(|| {
                self.publishing.background_budget -= 1;
                self.publishing.background.pop_front()
            });
            let Some(id) = id else { return };
            self.settle(id, urgent.is_none());
        }
    }

    /// Sends a record, or its deletion, to all who miss it. When we may not know the nodes
    /// closest to it, they are searched for first.
    fn settle(&mut self, id: Id, background: bool) {
        let epoch = self.publishing.epoch;
        let due_at_us = self.now_us + self.jittered(RETRY_US);
        self.change(id, |entry| {
            entry.queued = false;
            entry.epoch = epoch;
            entry.due_at_us = due_at_us;
        });
        match self.placed(id) {
            Some(slots) => self.settle_among(id, &slots, background),
            None => self.locate(id),
        }
    }

    /// The replicas of a record, best first; `None` when we may not know them.
    fn placed(&self, id: Id) -> Option<Slots> {
        if !self.table.knows_replicas(id) {
            return None;
        }
        let replicas = self.table.replicas(id, self.config.replicas);
        Some(replicas.iter().map(|replica| replica.slot).collect())
    }

    /// The nodes closest to a record of ours were searched for.
    pub(super) fn located(&mut self, id: Id, lookup: &Lookup) {
        let placement = self.table.placement();
        let own = (placement.rank(id, self.own.id), Slot::OWN);
        let mut replicas: SmallVec<[(Rank, Slot); 8]> = SmallVec::from_iter([own]);
        for candidate in lookup.closest() {
            if let Progress::Said(_) = candidate.progress
                && let Some(slot) = self.slots.of(candidate.address)
            {
                replicas.push((placement.rank(id, candidate.id), slot));
            }
        }
        if replicas.len() > 1 {
            replicas.sort_unstable_by_key(|(rank, _)| *rank);
            let slots = replicas.iter().map(|(_, slot)| *slot);
            let slots: Slots = slots.take(self.config.replicas).collect();
            self.settle_among(id, &slots, false);
        }
    }

    /// Sends a record, or its deletion, to those of its replicas who miss it.
    fn settle_among(&mut self, id: Id, closest: &[Slot], background: bool) {
        let planned =
            self.change(id, |entry| (entry.plan(closest), entry.phase, entry.version, entry.fresh));
        let Some((plan, phase, version, fresh)) = planned else {
            return;
        };
        for _ in 0..plan.forgotten {
            self.count(Counter::HoldersForgotten);
        }
        if phase == Phase::Live && !fresh {
            for _ in 0..plan.new {
                self.count(Counter::RecordsMoved);
            }
        }
        if plan.send.is_empty() {
            self.settled_if_complete(id);
        }
        let (request, class) = match (phase, background) {
            (Phase::Live, false) => (Request::Store(id, version), Class::Store),
            (Phase::Live, true) => (Request::Store(id, version), Class::Background),
            (Phase::Withdrawn, _) => (Request::Delete(id, version), Class::Delete),
        };
        for slot in plan.send {
            // An earlier replica's answer may have changed the plan.
            if self.is_current(&request) {
                self.settle_at(slot, request, class);
            }
        }
    }

    fn settle_at(&mut self, slot: Slot, request: Request, class: Class) {
        let id = request.id();
        if slot == Slot::OWN {
            let outcome = self.settle_here(request);
            return self.settled(request, slot, outcome);
        }
        let address = self.slots.address(slot);
        if class == Class::Delete && self.membership.is_dead(address.ip()) {
            // It may come back with the record, until our lease there has ended.
            let due_at_us = self.now_us + self.jittered(RETRY_DEAD_US);
            self.change(id, |entry| entry.due_at_us = due_at_us);
            return;
        }
        if self.send_op(slot, request, class) {
            let now_us = self.now_us;
            self.change(id, |entry| {
                entry.sent(slot);
                entry.first_sent_at_us.get_or_insert(now_us);
            });
        }
    }

    /// Queues an operation for the peer with this slot. Returns whether there was room; if not,
    /// the entry is looked after again later.
    fn send_op(&mut self, slot: Slot, request: Request, class: Class) -> bool {
        let Some(link) = self.links.of(self.slots.address(slot)) else {
            return false;
        };
        let op = Op { request, token: slot.token(), class, transmissions: 0 };
        let pushed = self.links.push(link, op);
        self.count(match pushed {
            true => Counter::RequestsSent,
            false => Counter::OperationsRefused,
        });
        pushed
    }

    fn settle_here(&mut self, request: Request) -> Outcome {
        let own = self.own;
        self.carry_out(&own, request)
    }

    /// A replica has carried out a STORE, DELETE or RELEASE, or not.
    pub(super) fn settled(&mut self, request: Request, slot: Slot, outcome: Outcome) {
        let id = request.id();
        if matches!(request, Request::Release(..)) {
            return self.released(id, slot);
        }
        if !self.is_current(&request) {
            return;
        }
        match outcome {
            Outcome::Done => self.acknowledged(id, slot),
            Outcome::Stale(claim) => self.stale(&request, slot, claim),
            // Full, or its clock is behind: tried again later.
            _ => {
                self.count(Counter::StoresRefusedByPeer);
                let due_at_us = self.now_us + self.jittered(RETRY_REFUSED_US);
                self.change(id, |entry| {
                    entry.unanswered(slot);
                    entry.due_at_us = due_at_us;
                });
            }
        }
    }

    /// Former replicas need not hold the record any more. One that is dead may come back with
    /// it, until our lease there has ended: it is told then.
    fn release_former(&mut self, id: Id) {
        let Some(entry) = self.published.get(id) else {
            return;
        };
        let former = entry.former();
        if entry.phase != Phase::Live || !entry.settled || former.is_empty() {
            return;
        }
        let (request, refresh_at_us) = (Request::Release(id, entry.version), entry.refresh_at_us);
        let mut waits = false;
        for slot in former {
            let locator = self.slots.address(slot).ip();
            let absent_us = self.membership.absent_for_us(self.now_us, locator);
            if slot == Slot::OWN {
                self.settle_here(request);
                self.change(id, |entry| entry.released(slot));
            } else if absent_us.is_some_and(|absent_us| absent_us > us(self.config.lease)) {
                self.change(id, |entry| entry.released(slot));
            } else if absent_us.is_none() && self.send_op(slot, request, Class::Background) {
                self.change(id, |entry| entry.releasing(slot));
            } else {
                waits = true;
            }
        }
        let retry_at_us = self.now_us + self.jittered(RETRY_DEAD_US);
        let due_at_us = if waits { retry_at_us.min(refresh_at_us) } else { refresh_at_us };
        self.change(id, |entry| entry.due_at_us = due_at_us);
    }

    fn released(&mut self, id: Id, slot: Slot) {
        self.change(id, |entry| entry.released(slot));
        // It may be wanted again by now.
        if self.published.get(id).is_some_and(|entry| !entry.settled && !entry.in_flight()) {
            self.queue(id, false);
        }
    }

    fn acknowledged(&mut self, id: Id, slot: Slot) {
        if self.change(id, |entry| entry.acknowledged(slot)) == Some(true) {
            self.settled_if_complete(id);
        }
    }

    /// Nothing is missing any more: measures that, and says when to look again.
    fn settled_if_complete(&mut self, id: Id) {
        let half_ttl_us = us(self.config.record_ttl) / 2;
        let refresh_at_us = self.now_us + half_ttl_us - self.rng.random_range(0..=half_ttl_us / 5);
        let now_us = self.now_us;
        let time_us = self.change(id, |entry| {
            if !entry.settled {
                return None;
            }
            let fresh = std::mem::replace(&mut entry.fresh, false);
            if entry.refresh_at_us <= now_us {
                entry.refresh_at_us = refresh_at_us;
            }
            entry.due_at_us = match entry.phase {
                Phase::Live => entry.refresh_at_us,
                Phase::Withdrawn => entry.announced_at_us + LINGER_US,
            };
            let live = entry.phase == Phase::Live;
            let sent_at_us = entry.first_sent_at_us.filter(|_| fresh && live);
            sent_at_us.map(|sent_at_us| now_us - sent_at_us)
        });
        if let Some(time_us) = time_us.flatten() {
            self.setting_time.record(time_us);
        }
        self.release_former(id);
    }

    /// A replica holds a greater claim than ours.
    fn stale(&mut self, request: &Request, slot: Slot, claim: Claim) {
        let id = request.id();
        if matches!(request, Request::Delete(..)) && claim.owner != self.own.locator {
            // A newer session has the flow: there is nothing of ours to delete (R12).
            return self.acknowledged(id, slot);
        }
        self.count(Counter::PublishesStale);
        self.outdone(id, claim);
    }

    /// A replica has given the place of our record to another server's claim: as if it had answered
    /// a STORE of ours with STALE. All replicas say so, and the first one counts.
    pub(super) fn superseded(&mut self, id: Id, claim: Claim) {
        let ours = self.published_version(id).map(|version| self.claim(version));
        let is_news = claim.owner != self.own.locator && ours.is_some_and(|ours| claim > ours);
        if !is_news || !self.config.is_member(claim.owner) || !self.observe(claim.version) {
            return self.count(Counter::SupersededIgnored);
        }
        self.outdone(id, claim);
    }

    /// The record of a live session of ours meets a greater claim.
    fn outdone(&mut self, id: Id, claim: Claim) {
        // One of our own is of an earlier life, whose clock was ahead of this one's.
        let Some(entry) = self.published.get(id) else {
            return;
        };
        let sent_at_us = entry.first_sent_at_us.unwrap_or(self.now_us);
        let unix_us = self.unix_us();
        // One that was learnt began some time ago, or nobody knows when.
        let began_now = entry.session.0 + FRESH_US > unix_us;
        let fresh = entry.fresh && began_now && self.now_us < sent_at_us + FRESH_US;
        let (flow, raises) = (entry.flow, entry.raises);
        // A version that our clock has not reached yet says that the clock is behind. One that
        // it has passed is of a session that began after ours, while ours was being stored.
        let behind = claim.version.0 > unix_us + BEHIND_US;
        if claim.owner != self.own.locator && !(fresh && behind) {
            self.count(Counter::PublishesSuperseded);
            self.tell_workers_superseded(flow, claim);
            return self.recall(id);
        }
        if raises == RAISES_MAX || !self.observe(claim.version) {
            self.count(Counter::PublishesGivenUp);
            return self.recall(id);
        }
        self.count(Counter::PublishesRaised);
        self.change(id, |entry| entry.raise(claim.version));
        self.queue(id, true);
    }

    /// The workers still take the session for ours. They are not told of an owner to which they
    /// must not tunnel.
    fn tell_workers_superseded(&mut self, flow: FlowKey, claim: Claim) {
        let Claim { version, owner } = claim;
        if !self.config.is_member(owner) {
            return self.count(Counter::OwnersForeign);
        }
        if self.membership.is_dead(owner) || !self.observe(version) {
            return;
        }
        let answer = Answer::Superseded { flow, version, owner };
        self.actions.push(Action::Answer { ring: 0, answer });
    }

    /// Another server has the flow: our claim is deleted wherever it is still held.
    fn recall(&mut self, id: Id) {
        let now_us = self.now_us;
        self.change(id, |entry| entry.renew(entry.session, Phase::Withdrawn, now_us));
        self.queue(id, false);
    }

    /// An operation was not answered, however often it was sent.
    pub(super) fn unanswered(&mut self, request: Request, slot: Slot) {
        let id = request.id();
        if self.is_current(&request) {
            self.count(Counter::StoresRetried);
            // A session that has just begun is known to nobody yet, and its strays wait.
            let is_fresh = self.published.get(id).is_some_and(|entry| entry.fresh);
            let pause_us = if is_fresh { RETRY_FRESH_US } else { RETRY_US };
            let due_at_us = self.now_us + self.jittered(pause_us);
            self.change(id, |entry| {
                entry.unanswered(slot);
                entry.due_at_us = due_at_us;
            });
        }
    }

    /// Whether an operation is about the entry as it is now.
    pub(super) fn is_current(&self, request: &Request) -> bool {
        let (phase, id, version) = match *request {
            Request::Store(id, version) => (Phase::Live, id, version),
            Request::Delete(id, version) => (Phase::Withdrawn, id, version),
            Request::Release(..) => return true,
            Request::Lookup(_) => return false,
        };
        let entry = self.published.get(id);
        entry.is_some_and(|entry| entry.phase == phase && entry.version == version)
    }

    /// The routing table has changed: records may have to move.
    pub(super) fn table_changed(&mut self) {
        self.membership.changed(self.now_us);
        let waits = self.publishing.moves_at_us > self.now_us;
        self.publishing.epoch += 1;
        if !waits {
            self.publishing.moves_at_us = self.now_us + self.rng.random_range(0..=MOVE_JITTER_US);
        }
    }

    /// Looks after a slice of the entries.
    pub(super) fn keep_published(&mut self) {
        self.publishing.background_budget = BACKGROUND_PER_TURN;
        let now_us = self.now_us;
        let epoch = self.publishing.epoch;
        let moves = now_us >= self.publishing.moves_at_us;
        let mut due = std::mem::take(&mut self.publishing.due);
        self.published.walk(WALK_PER_TURN, |id, entry| {
            let moved = moves && entry.epoch != epoch;
            if (entry.due_at_us <= now_us || moved) && !entry.queued && !entry.in_flight() {
                due.push(id);
            }
        });
        for id in due.drain(..) {
            self.look_after(id);
        }
        self.publishing.due = due;
    }

    fn look_after(&mut self, id: Id) {
        let Some(entry) = self.published.get(id) else {
            return;
        };
        let due = entry.due_at_us <= self.now_us;
        match (entry.phase, entry.settled) {
            (Phase::Live, true) if entry.refresh_at_us <= self.now_us => {
                self.count(Counter::RecordsRefreshed);
                self.change(id, Entry::unsettle);
            }
            (Phase::Live, true) => return self.look_after_settled(id),
            (Phase::Withdrawn, true) if due => return self.forget(id),
            (Phase::Withdrawn, false) if due && self.is_given_up(entry) => {
                for _ in 0..entry.missing() {
                    self.count(Counter::DeletesGivenUp);
                }
                return self.forget(id);
            }
            (Phase::Withdrawn, false) if due => {
                self.change(id, |entry| entry.rounds = entry.rounds.saturating_add(1));
            }
            // Only the routing table has changed. Where it does not say who is closest, that
            // is found out at the next refresh.
            _ if !due && !self.has_moved(id) => return,
            _ => {}
        }
        self.queue(id, false);
    }

    /// Nothing is missing, but the record may have other replicas by now, or may still be held by
    /// former ones.
    fn look_after_settled(&mut self, id: Id) {
        match self.has_moved(id) {
            true => self.queue(id, false),
            false => self.release_former(id),
        }
    }

    /// Whether a deletion was tried for long enough: whoever has not heard of it by now has not
    /// heard of us for a lease, and believes no record of ours any more.
    fn is_given_up(&self, entry: &Entry) -> bool {
        let age_us = self.now_us - entry.announced_at_us;
        entry.rounds >= DELETE_ROUNDS_MIN && age_us > us(self.config.lease)
    }

    /// Whether the record has other replicas than when it was stored last.
    fn has_moved(&mut self, id: Id) -> bool {
        let Some(slots) = self.placed(id) else {
            return false;
        };
        let epoch = self.publishing.epoch;
        let moved = self.change(id, |entry| {
            let moved = !entry.is_planned_for(&slots);
            if !moved {
                entry.epoch = epoch;
            }
            moved
        });
        moved == Some(true)
    }
}

/// How much an entry counts as live, as live and settled, and as held by former replicas.
fn weight(entry: &Entry) -> (usize, usize, usize) {
    let live = entry.phase == Phase::Live;
    let moving = live && entry.has_former();
    (usize::from(live), usize::from(live && entry.settled), usize::from(moving))
}
