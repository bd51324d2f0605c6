//! Answers the requests of other nodes: at most one answer to each, and nothing to anybody who
//! did not ask, but to the owner of a record that has lost its place (R12).

use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayVec;
use holdfast_handoff::{Answer, Version};

use super::{Action, Node};
use crate::batch::{Outcome, Request};
use crate::config::REPLICAS_MAX;
use crate::id::Id;
use crate::message::{CLOSER_MAX, Contacts, Datagram, Message, NODES_MAX, Sender};
use crate::peer_slots::Slot;
use crate::publish::Phase;
use crate::record::{Claim, Record, State};
use crate::stats::Counter;
use crate::store::{Deleted, Stored};

/// Records and tombstones swept in one turn of housekeeping.
const SWEEP_AT_ONCE: usize = 2048;
/// Control messages that wait to be sent, beyond which no SUPERSEDED joins them: probes must not
/// wait behind a storm of these.
pub(super) const SUPERSEDED_QUEUE_MAX: usize = 4096;

impl Node {
    /// Serves a control message.
    pub(super) fn serve(&mut self, from: SocketAddr, datagram: Datagram) {
        let Datagram { sender, transaction, message } = datagram;
        if message == Message::Leave {
            return self.left(sender, from);
        }
        self.seen(sender, from);
        let answer = match message {
            Message::Ping => {
                self.count(Counter::PingsReceived);
                Message::Pong
            }
            Message::FindNode { target, want } => {
                self.count(Counter::FindNodesReceived);
                let want = usize::from(want).min(NODES_MAX);
                Message::Nodes(Box::new(self.closest_but(sender.id, target, want)))
            }
            Message::FindValue { id } => {
                self.count(Counter::FindValuesReceived);
                match self.serve_lookup(id) {
                    Outcome::Found(claim) => Message::Found(claim),
                    Outcome::Gone(claim) => Message::Gone(claim),
                    _ => Message::NotHeld(Box::new(self.replicas_but(sender.id, id))),
                }
            }
            Message::NotMine(flow) => {
                self.count(Counter::NotMineReceived);
                let owner = sender.locator;
                self.refusals.note(self.hasher.flow(&flow), owner, self.now_us);
                let answer = Answer::NotMine { flow, owner };
                self.actions.push(Action::Answer { ring: 0, answer });
                return;
            }
            Message::Superseded { id, claim } => {
                self.count(Counter::SupersededReceived);
                return self.superseded(id, claim);
            }
            Message::PingReq { life, within_us } => {
                return self.serve_ping_req(from, transaction, life, within_us);
            }
            Message::Suspect(life) => return self.hear_suspicion(life),
            Message::Alive => return self.count(Counter::AlivesReceived),
            // Answers, which `Message::is_answer` keeps from here.
            _ => return,
        };
        self.send(from, transaction, answer);
    }

    /// Carries out an operation of a batch.
    pub(super) fn carry_out(&mut self, sender: &Sender, request: Request) -> Outcome {
        match request {
            Request::Lookup(id) => {
                self.count(Counter::LookupsReceived);
                self.serve_lookup(id)
            }
            Request::Store(id, version) => self.serve_store(sender, id, version),
            Request::Delete(id, version) => self.serve_delete(sender, id, version),
            Request::Release(id, version) => self.serve_release(sender, id, version),
        }
    }

    pub(super) fn serve_store(&mut self, sender: &Sender, id: Id, version: Version) -> Outcome {
        self.count(Counter::StoresReceived);
        if !self.observe(version) {
            self.count(Counter::StoresAhead);
            return Outcome::Ahead;
        }
        let Sender { locator, incarnation, .. } = *sender;
        match self.store.store(self.now_us, id, version, locator, incarnation) {
            Stored::Yes => Outcome::Done,
            Stored::Replaced(old) => {
                self.tell_superseded(id, old.owner, Claim { version, owner: locator });
                Outcome::Done
            }
            Stored::Stale(held) => {
                self.count(Counter::StoresStale);
                Outcome::Stale(held)
            }
            Stored::Full => {
                self.count(Counter::StoresFull);
                Outcome::Full
            }
        }
    }

    /// The record of a server has lost its place here to the claim of another one, whose session is
    /// the newer one (R12). Said once: the other replicas say it too, and the owner hears it at the
    /// latest when it stores again.
    fn tell_superseded(&mut self, id: Id, old_owner: IpAddr, claim: Claim) {
        if old_owner == self.own.locator {
            return self.superseded(id, claim);
        }
        let to = self.control_socket(old_owner);
        if !self.is_possible_peer(to) {
            return;
        }
        if self.outbox.len() >= SUPERSEDED_QUEUE_MAX {
            return self.count(Counter::SupersededUnsent);
        }
        self.count(Counter::SupersededSent);
        self.send(to, 0, Message::Superseded { id, claim });
    }

    pub(super) fn serve_release(&mut self, sender: &Sender, id: Id, version: Version) -> Outcome {
        self.count(Counter::ReleasesReceived);
        self.store.release(self.now_us, id, version, sender.locator);
        Outcome::Done
    }

    pub(super) fn serve_delete(&mut self, sender: &Sender, id: Id, version: Version) -> Outcome {
        self.count(Counter::DeletesReceived);
        if !self.observe(version) {
            self.count(Counter::StoresAhead);
            return Outcome::Ahead;
        }
        match self.store.delete(self.now_us, id, version, sender.locator) {
            Deleted::Yes => Outcome::Done,
            Deleted::NotRemembered => {
                self.count(Counter::TombstonesRefused);
                Outcome::Done
            }
            Deleted::Stale(held) => {
                self.count(Counter::StoresStale);
                Outcome::Stale(held)
            }
        }
    }

    /// Who owns a record, as far as we have to know it. What is left from when we were a replica
    /// may be out of date, so it is not told.
    pub(super) fn serve_lookup(&self, id: Id) -> Outcome {
        if !self.is_replica(id) {
            return Outcome::NotReplica;
        }
        let held = self.store.get(self.now_us, id);
        if let Some(Record { claim, state: State::Live }) = held {
            return Outcome::Found(claim);
        }
        // A replica that had no room for a record of its own still knows it.
        match (self.published_version(id), held) {
            (Some(version), _) => Outcome::Found(self.claim(version)),
            (None, Some(tombstone)) => Outcome::Gone(tombstone.claim),
            (None, None) => Outcome::NotHeld,
        }
    }

    /// Version of the record that we publish under this id, if we do.
    pub(super) fn published_version(&self, id: Id) -> Option<Version> {
        let entry = self.published.get(id)?;
        (entry.phase == Phase::Live).then_some(entry.version)
    }

    /// The contacts closest to an id that answer, without the one who asks.
    fn closest_but<const N: usize>(&self, asker: Id, target: Id, want: usize) -> Contacts<N> {
        let closest = self.table.closest(target, (want + 1).min(N + 1));
        let told = closest.iter().filter(|c| c.id != asker && !c.is_suspect());
        told.take(want).map(|c| c.address).collect::<ArrayVec<_, N>>()
    }

    /// The nodes that are to hold a record, as far as we know them, and which answer.
    fn replicas_but(&self, asker: Id, target: Id) -> Contacts<CLOSER_MAX> {
        if self.table.placement().is_plain() {
            return self.closest_but(asker, target, CLOSER_MAX);
        }
        let replicas = self.table.replicas(target, REPLICAS_MAX);
        let others = replicas.iter().filter(|r| r.slot != Slot::OWN && r.id != asker);
        others.filter(|replica| !replica.suspect).map(|replica| replica.address).collect()
    }

    pub(super) fn keep_records(&mut self) {
        for _ in 0..self.store.sweep(self.now_us, SWEEP_AT_ONCE) {
            self.count(Counter::RecordsExpired);
        }
        self.counters.set(Counter::OwnersRefused, self.store.owners_refused());
    }
}
