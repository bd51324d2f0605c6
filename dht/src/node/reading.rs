//! Lookups: the workers' questions who owns a flow, the control thread's, and our own search for
//! nodes. Never asks twice for the same thing at the same time.
//!
//! A worker's question is a read of the record's replicas, one hop ([`crate::read`]). Where we may
//! not know who they are, and for all else, it is a walk ([`crate::lookup`]).

use std::net::{IpAddr, SocketAddr};

use holdfast_handoff::{Answer, Resolution, Resolve, Version};
use holdfast_net::FlowKey;
use smallvec::SmallVec;

use super::{Action, Node};
use crate::batch::{Outcome, Request};
use crate::config::{REPLICAS_MAX, us};
use crate::id::Id;
use crate::link::{Class, Op};
use crate::lookup::{Candidate, Goal, Lookup, Progress, Said, Verdict};
use crate::message::{Message, NODES_MAX};
use crate::peer_slots::Slot;
use crate::read::{Next, Read, Replica, Replicas, Standing, Token};
use crate::record::{Claim, Record, State};
use crate::request::{LookupKey, Purpose};
use crate::stats::{self, Counter, LookupRecord};

/// Nodes that a search for nodes must have heard from before it ends.
const NODES_WIDTH: usize = 8;
/// Contacts that a lookup begins with, beyond its width.
const CANDIDATES_MORE: usize = 4;
/// Askers that can wait for the same lookup.
const ASKERS_MAX: usize = 64;

/// Who waits for a lookup.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asker {
    Worker { ring: usize, resolve: Resolve, arrived_at_us: u64 },
    Control { token: u64, flow: FlowKey },
    Membership,
    Publisher,
}

/// A lookup in flight.
#[derive(Debug, Clone)]
pub(super) struct Running {
    lookup: Lookup,
    started_at_us: u64,
    /// When its first request was sent.
    sent_at_us: Option<u64>,
    askers: SmallVec<[Asker; 1]>,
}

/// What one replica said of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// This server owns it.
    Holds(Claim),
    /// This server did, and deleted the record.
    Deleted(Claim),
    /// This server did, and has died for good (R13).
    Orphaned(Claim),
    /// Nothing is known of it.
    NotHeld,
    /// There was no answer.
    NoAnswer,
}

/// A replica and what it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaReport {
    /// The replica's locator; may be our own.
    pub locator: IpAddr,
    /// What it said.
    pub said: Statement,
    /// From the request to its answer, in microseconds; `None` without an answer, and of ourselves.
    pub rtt_us: Option<u64>,
}

/// What the replicas of a flow say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupReport {
    /// The flow.
    pub flow: FlowKey,
    /// Id of its record.
    pub id: Id,
    /// What a worker would be told.
    pub outcome: stats::Outcome,
    /// Locator of the owner.
    pub owner: Option<IpAddr>,
    /// Version of its record.
    pub version: Option<Version>,
    /// How long all this took, in µs.
    pub duration_us: u64,
    /// The replicas, closest to the record first.
    pub replicas: Vec<ReplicaReport>,
}

/// The request that a lookup sends.
pub(super) fn message(key: LookupKey) -> Message {
    match key.goal {
        Goal::Nodes | Goal::Replicas => {
            Message::FindNode { target: key.target, want: NODES_MAX as u8 }
        }
        Goal::Owner | Goal::Survey => Message::FindValue { id: key.target },
    }
}

/// Whether a message answers that request.
pub(super) fn answers(message: &Message, key: LookupKey) -> bool {
    match key.goal {
        Goal::Nodes | Goal::Replicas => matches!(message, Message::Nodes(_)),
        Goal::Owner | Goal::Survey => {
            matches!(message, Message::Found(_) | Message::Gone(_) | Message::NotHeld(_))
        }
    }
}

impl Node {
    /// A worker asks who owns a flow.
    pub(super) fn resolve(&mut self, ring: usize, resolve: Resolve) {
        self.count(Counter::LookupsAsked);
        let asker = Asker::Worker { ring, resolve, arrived_at_us: self.now_us };
        let target = self.hasher.flow(&resolve.flow);
        if let Some(version) = self.published_version(target) {
            self.count(Counter::LookupsLocal);
            let found = Verdict::Found(self.claim(version));
            return self.tell_worker(ring, resolve, self.now_us, (found, None));
        }
        if !self.read(target, asker) {
            self.refuse_lookup(ring, resolve);
        }
    }

    /// Starts a read or waits for the one in flight. Returns whether that was possible.
    fn read(&mut self, target: Id, asker: Asker) -> bool {
        if let Some(read) = self.reads.of(target) {
            if read.askers.len() == ASKERS_MAX {
                return false;
            }
            read.askers.push(asker);
            self.count(Counter::LookupsShared);
            return true;
        }
        let Some(replicas) = self.read_replicas(target) else {
            self.count(Counter::LookupsWalked);
            return self.look_up(LookupKey { goal: Goal::Owner, target }, asker);
        };
        if self.reads.len() + self.lookups.len() >= self.config.lookups_max {
            return false;
        }
        let own = replicas.iter().any(|replica| replica.link.is_none());
        let refuser = self.refusals.of(target, self.now_us);
        let mut read = Read::new(target, asker, replicas, refuser);
        if own {
            read.said(None, self.replica_statement(target));
        }
        let token = self.reads.insert(read);
        let deadline_us = self.now_us + us(self.config.lookup_timeout);
        self.read_deadlines.push_back((deadline_us, token));
        self.read_on(token);
        true
    }

    /// The replicas of a record, best first; `None` when we may not know them.
    fn read_replicas(&mut self, target: Id) -> Option<Replicas> {
        if !self.table.knows_replicas(target) {
            return None;
        }
        let mut replicas = Replicas::new();
        for replica in self.table.replicas(target, self.config.replicas) {
            let link = match replica.slot {
                Slot::OWN => None,
                _ => Some(self.links.of(replica.address)?),
            };
            replicas.push(Replica { link, suspect: replica.suspect, standing: Standing::New });
        }
        Some(replicas)
    }

    /// Asks whom the read wants asked, and ends it when it has its result.
    fn read_on(&mut self, token: Token) {
        while let Some(read) = self.reads.get(token) {
            match read.next() {
                Next::Wait => return,
                Next::Ask(link) => self.ask_replica(token, link),
                Next::Over(verdict) => return self.end_read(token, verdict),
                Next::Walk => return self.walk_on(token),
            }
        }
    }

    fn ask_replica(&mut self, token: Token, link: u32) {
        let now_us = self.now_us;
        let Some(read) = self.reads.get(token) else {
            return;
        };
        read.asked_at_us.get_or_insert(now_us);
        self.counters.count(Counter::RequestsSent);
        let request = Request::Lookup(read.id);
        let op = Op { request, token, class: Class::Lookup, transmissions: 0 };
        self.links.push(link, op);
    }

    /// A lookup has waited for a replica for long: asks the next as well.
    pub(super) fn hedge(&mut self, token: Token) {
        if let Some(link) = self.reads.get(token).and_then(Read::hedge) {
            self.count(Counter::LookupsHedged);
            self.ask_replica(token, link);
        }
    }

    /// A replica has answered a lookup.
    pub(super) fn replica_said(&mut self, token: Token, link: u32, outcome: Outcome) {
        let said = match outcome {
            Outcome::Found(claim) => Some(self.judge(claim)),
            Outcome::Gone(claim) => Some(Said::Deleted(claim)),
            Outcome::NotHeld => Some(Said::NotHeld),
            _ => None,
        };
        if let Some(read) = self.reads.get(token) {
            match said {
                Some(said) => read.said(Some(link), said),
                None => read.stands(Some(link), Standing::NotReplica),
            }
            self.read_on(token);
        }
    }

    /// A replica does not answer.
    pub(super) fn replica_failed(&mut self, token: Token, link: u32) {
        if let Some(read) = self.reads.get(token) {
            read.stands(Some(link), Standing::Failed);
            self.read_on(token);
        }
    }

    fn end_read(&mut self, token: Token, verdict: Verdict) {
        let Some(read) = self.reads.remove(token) else {
            return;
        };
        let verdict = self.believable(verdict);
        self.measure(read.asked_at_us, verdict);
        for asker in &read.askers {
            if let Asker::Worker { ring, resolve, arrived_at_us } = *asker {
                self.tell_worker(ring, resolve, arrived_at_us, (verdict, read.heard()));
            }
        }
    }

    /// The replicas of a record are not who we thought: looks for them.
    fn walk_on(&mut self, token: Token) {
        let Some(read) = self.reads.remove(token) else {
            return;
        };
        self.count(Counter::LookupsWalked);
        for asker in read.askers {
            let Asker::Worker { ring, resolve, arrived_at_us } = asker else {
                continue;
            };
            if !self.look_up(LookupKey { goal: Goal::Owner, target: read.id }, asker) {
                self.count(Counter::LookupsRefused);
                self.tell_worker(ring, resolve, arrived_at_us, (Verdict::Unknown, None));
            }
        }
    }

    /// A worker's question cannot be looked into.
    pub(super) fn refuse_lookup(&mut self, ring: usize, resolve: Resolve) {
        self.count(Counter::LookupsRefused);
        self.tell_worker(ring, resolve, self.now_us, (Verdict::Unknown, None));
    }

    /// The control thread asks what each replica says of a flow.
    pub(super) fn survey(&mut self, token: u64, flow: FlowKey) {
        let target = self.hasher.flow(&flow);
        let goal = Goal::Survey;
        let asker = Asker::Control { token, flow };
        if !self.look_up(LookupKey { goal, target }, asker) {
            self.count(Counter::CommandsRefused);
            let placement = self.table.placement();
            let nothing = Lookup::new(target, goal, placement, self.config.replicas, 1);
            self.tell_control(token, flow, &nothing, Verdict::Unknown, 0);
        }
    }

    /// Searches for the nodes closest to an id. Returns whether the search is under way.
    pub(super) fn search(&mut self, target: Id) -> bool {
        let goal = Goal::Nodes;
        self.look_up(LookupKey { goal, target }, Asker::Membership)
    }

    /// Searches for the nodes closest to a record of ours.
    pub(super) fn locate(&mut self, target: Id) {
        let goal = Goal::Replicas;
        // When there are too many lookups, the record is looked after again later.
        self.look_up(LookupKey { goal, target }, Asker::Publisher);
    }

    /// What we say of a record as one of its replicas.
    fn replica_statement(&self, target: Id) -> Said {
        match self.store.get(self.now_us, target) {
            Some(Record { claim, state: State::Live }) => {
                match self.membership.is_given_up(claim.owner) {
                    true => Said::Orphaned(claim),
                    false => Said::Holds(claim),
                }
            }
            Some(Record { claim, state: State::Tombstone }) => Said::Deleted(claim),
            None => Said::NotHeld,
        }
    }

    pub(super) fn is_replica(&self, target: Id) -> bool {
        let replicas = self.table.replicas(target, self.config.replicas);
        replicas.iter().any(|replica| replica.slot == Slot::OWN)
    }

    /// Starts a lookup or waits for the one in flight. Returns whether that was possible.
    fn look_up(&mut self, key: LookupKey, asker: Asker) -> bool {
        if let Some(running) = self.lookups.get_mut(&key) {
            if running.askers.len() == ASKERS_MAX {
                return false;
            }
            running.askers.push(asker);
            self.count(Counter::LookupsShared);
            return true;
        }
        if self.reads.len() + self.lookups.len() >= self.config.lookups_max {
            return false;
        }
        let running = Running {
            lookup: self.begin(key),
            started_at_us: self.now_us,
            sent_at_us: None,
            askers: SmallVec::from_iter([asker]),
        };
        self.lookups.insert(key, running);
        let deadline_us = self.now_us + us(self.config.lookup_timeout);
        self.lookup_deadlines.push_back((deadline_us, key));
        self.advance(key);
        true
    }

    /// A lookup that knows what we know: our closest contacts, and ourselves.
    fn begin(&self, key: LookupKey) -> Lookup {
        let placement = self.table.placement();
        let width = match key.goal {
            Goal::Nodes => NODES_WIDTH,
            Goal::Replicas | Goal::Owner | Goal::Survey => self.config.replicas,
        };
        let mut lookup = Lookup::new(key.target, key.goal, placement, width, self.config.alpha);
        for contact in self.table.closest(key.target, width + CANDIDATES_MORE) {
            lookup.learn(Candidate::new(contact.id, contact.address, contact.is_suspect()));
        }
        // With very many servers we are not always one of those that can hold the record.
        let mut own = placement.is_plain();
        for replica in self.table.replicas(key.target, REPLICAS_MAX) {
            match replica.slot {
                Slot::OWN => own = true,
                _ => lookup.learn(Candidate::new(replica.id, replica.address, replica.suspect)),
            }
        }
        if own && matches!(key.goal, Goal::Owner | Goal::Survey) {
            let progress = Progress::Said(self.own_statement(key.target));
            let own = Candidate::new(self.own.id, self.config.listen, false);
            lookup.learn(Candidate { progress, ..own });
        }
        lookup
    }

    fn own_statement(&self, target: Id) -> Said {
        match self.published_version(target) {
            Some(version) => Said::Holds(self.claim(version)),
            None if self.is_replica(target) => self.replica_statement(target),
            None => Said::NotHeld,
        }
    }

    /// Sends what the lookup wants sent, and ends it when it has its result.
    fn advance(&mut self, key: LookupKey) {
        while let Some(running) = self.lookups.get_mut(&key) {
            if let Some(verdict) = running.lookup.verdict() {
                return self.finish(key, verdict);
            }
            let Some((id, address)) = running.lookup.ask() else {
                return;
            };
            running.sent_at_us.get_or_insert(self.now_us);
            if !self.request(address, Purpose::Find(key))
                && let Some(running) = self.lookups.get_mut(&key)
            {
                running.lookup.failed(id);
            }
        }
    }

    /// A node has answered a lookup.
    pub(super) fn found(&mut self, key: LookupKey, peer: Id, message: Message, rtt_us: u64) {
        let said = match message {
            Message::Found(claim) => self.judge(claim),
            Message::Gone(claim) => Said::Deleted(claim),
            Message::NotHeld(contacts) => {
                self.learn(key, &contacts);
                Said::NotHeld
            }
            Message::Nodes(contacts) => {
                self.learn(key, &contacts);
                Said::NotHeld
            }
            _ => Said::NotHeld,
        };
        if let Some(running) = self.lookups.get_mut(&key) {
            running.lookup.measured(peer, rtt_us);
            running.lookup.answered(peer, said);
            self.advance(key);
        }
    }

    /// What a claim that was told to us is worth. Packets are tunnelled to its owner.
    fn judge(&mut self, claim: Claim) -> Said {
        if !self.config.is_member(claim.owner) {
            self.count(Counter::OwnersForeign);
            return Said::NotHeld;
        }
        self.observe(claim.version);
        if self.membership.is_given_up(claim.owner) {
            self.count(Counter::OwnersDead);
            return Said::Orphaned(claim);
        }
        Said::Holds(claim)
    }

    /// Tells a lookup, and the membership, of nodes that were named to us.
    fn learn(&mut self, key: LookupKey, contacts: &[SocketAddr]) {
        for &address in contacts {
            if !self.is_possible_peer(address) || self.membership.is_dead(address.ip()) {
                continue;
            }
            let id = self.hasher.node(address.ip());
            let contact = self.table.get(id);
            let known = contact.map_or(address, |c| c.address);
            let candidate = Candidate::new(id, known, contact.is_some_and(|c| c.is_suspect()));
            self.heard_of(id, address);
            if let Some(running) = self.lookups.get_mut(&key) {
                running.lookup.learn(candidate);
            }
        }
    }

    /// A node did not answer a lookup.
    pub(super) fn not_found_out(&mut self, key: LookupKey, peer: Id) {
        if let Some(running) = self.lookups.get_mut(&key) {
            running.lookup.failed(peer);
            self.advance(key);
        }
    }

    pub(super) fn time_out_lookups(&mut self, limit: usize) {
        for _ in 0..limit {
            match self.read_deadlines.front() {
                Some((at_us, _)) if *at_us <= self.now_us => {}
                _ => break,
            }
            if let Some((_, token)) = self.read_deadlines.pop_front()
                && let Some(read) = self.reads.get(token)
            {
                let verdict = read.final_verdict();
                self.end_read(token, verdict);
            }
        }
        for _ in 0..limit {
            match self.lookup_deadlines.front() {
                Some((at_us, _)) if *at_us <= self.now_us => {}
                _ => return,
            }
            let Some((at_us, key)) = self.lookup_deadlines.pop_front() else {
                return;
            };
            // The same thing may have been asked again since.
            let started_at_us = at_us - us(self.config.lookup_timeout);
            let over = |running: &&Running| running.started_at_us == started_at_us;
            if let Some(running) = self.lookups.get(&key).filter(over) {
                let verdict = running.lookup.final_verdict();
                self.finish(key, verdict);
            }
        }
    }

    fn finish(&mut self, key: LookupKey, verdict: Verdict) {
        let Some(running) = self.lookups.remove(&key) else {
            return;
        };
        let verdict = match key.goal {
            Goal::Nodes | Goal::Replicas => verdict,
            Goal::Owner | Goal::Survey => self.believable(verdict),
        };
        if key.goal == Goal::Owner {
            self.measure(running.sent_at_us, verdict);
        }
        for asker in &running.askers {
            match *asker {
                Asker::Worker { ring, resolve, arrived_at_us } => {
                    let heard = running.lookup.heard();
                    self.tell_worker(ring, resolve, arrived_at_us, (verdict, heard))
                }
                Asker::Control { token, flow } => {
                    let duration_us = self.now_us - running.started_at_us;
                    self.tell_control(token, flow, &running.lookup, verdict, duration_us);
                }
                Asker::Membership => self.search_ended(key.target),
                Asker::Publisher => self.located(key.target, &running.lookup),
            }
        }
    }

    /// A node that has not joined cannot say that nobody owns a flow, nor can one right after
    /// servers have come, gone or restarted (R5). Nor can anybody say who owns one of a dead server
    /// that may be back at once: neither may others tunnel to it, nor reset its sessions (R13).
    fn believable(&mut self, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::NotFound | Verdict::Orphaned if !self.membership.is_joined() => {
                self.count(Counter::LookupsNotJoined);
                Verdict::Unknown
            }
            Verdict::NotFound if self.membership.is_unsettled(self.now_us) => {
                self.count(Counter::LookupsUnsettled);
                Verdict::Unknown
            }
            Verdict::Found(claim) if self.membership.is_awaited(claim.owner) => {
                self.count(Counter::OwnersAwaited);
                Verdict::Unknown
            }
            verdict => verdict,
        }
    }

    fn measure(&mut self, sent_at_us: Option<u64>, verdict: Verdict) {
        let Some(sent_at_us) = sent_at_us else {
            return self.count(Counter::LookupsLocal);
        };
        let time_us = self.now_us - sent_at_us;
        match verdict {
            Verdict::Found(_) => {
                self.count(Counter::LookupsFound);
                self.lookup_time_found.record(time_us);
            }
            Verdict::NotFound | Verdict::Orphaned => {
                self.count(Counter::LookupsNotFound);
                self.lookup_time_not_found.record(time_us);
            }
            Verdict::Unknown => self.count(Counter::LookupsTimedOut),
        }
    }

    /// Answers a worker; with the verdict comes the greatest claim that was heard.
    fn tell_worker(
        &mut self,
        ring: usize,
        resolve: Resolve,
        arrived_at_us: u64,
        (verdict, heard): (Verdict, Option<Claim>),
    ) {
        let flow = resolve.flow;
        let resolution = match verdict {
            Verdict::Found(claim) => {
                Resolution::Owner { locator: claim.owner, version: claim.version }
            }
            Verdict::NotFound => Resolution::NotFound,
            Verdict::Orphaned => Resolution::Orphaned,
            Verdict::Unknown => Resolution::TimedOut,
        };
        let answer = Answer::Resolved { flow, resolution, dead: self.dead(verdict, heard) };
        self.actions.push(Action::Answer { ring, answer });
        let (outcome, claim) = outcome(verdict);
        self.journal.push(LookupRecord {
            flow,
            asked_at_unix_us: resolve.asked_at_unix_us,
            duration_us: self.now_us - arrived_at_us,
            outcome,
            owner: claim.map(|c| c.owner),
        });
    }

    /// Whose death is why a lookup that heard this claim found nobody, or nothing (R13).
    fn dead(&self, verdict: Verdict, heard: Option<Claim>) -> Option<IpAddr> {
        let owner = heard?.owner;
        let is_why = match verdict {
            Verdict::Found(_) => false,
            Verdict::NotFound | Verdict::Orphaned => self.membership.is_given_up(owner),
            Verdict::Unknown => self.membership.is_awaited(owner),
        };
        is_why.then_some(owner)
    }

    fn tell_control(
        &mut self,
        token: u64,
        flow: FlowKey,
        lookup: &Lookup,
        verdict: Verdict,
        duration_us: u64,
    ) {
        let replica = |candidate: &Candidate| ReplicaReport {
            locator: candidate.address.ip(),
            said: match candidate.progress {
                Progress::Said(Said::Holds(claim)) => Statement::Holds(claim),
                Progress::Said(Said::Deleted(claim)) => Statement::Deleted(claim),
                Progress::Said(Said::Orphaned(claim)) => Statement::Orphaned(claim),
                Progress::Said(Said::NotHeld) => Statement::NotHeld,
                Progress::New | Progress::Asked | Progress::Failed => Statement::NoAnswer,
            },
            rtt_us: candidate.rtt_us,
        };
        let (outcome, claim) = outcome(verdict);
        let report = Box::new(LookupReport {
            flow,
            id: self.hasher.flow(&flow),
            outcome,
            owner: claim.map(|c| c.owner),
            version: claim.map(|c| c.version),
            duration_us,
            replicas: lookup.closest().map(replica).collect(),
        });
        self.actions.push(Action::Report { token, report });
    }
}

fn outcome(verdict: Verdict) -> (stats::Outcome, Option<Claim>) {
    match verdict {
        Verdict::Found(claim) => (stats::Outcome::Owner, Some(claim)),
        Verdict::NotFound | Verdict::Orphaned => (stats::Outcome::NotFound, None),
        Verdict::Unknown => (stats::Outcome::TimedOut, None),
    }
}
