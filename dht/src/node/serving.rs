//! Answers the requests of other nodes: at most one answer to a datagram, and never a larger one
//! than was asked for.

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use holdfast_handoff::{Answer, Version};

use super::{Action, Node};
use crate::id::Id;
use crate::message::{CLOSER_MAX, Contacts, Datagram, Message, NODES_MAX};
use crate::publish::Phase;
use crate::record::{Claim, State};
use crate::stats::Counter;
use crate::store::{Deleted, Stored};

/// Records and tombstones swept in one turn of housekeeping.
const SWEEP_AT_ONCE: usize = 4096;
/// The longest time that a record is held for without a refresh, in seconds: a week.
const TTL_S_MAX: u32 = 604_800;

impl Node {
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
            Message::Store { id, version, ttl_s } => {
                let owner = sender.locator;
                self.serve_store(id, Claim { version, owner }, ttl_s)
            }
            Message::Delete { id, version } => {
                let owner = sender.locator;
                self.serve_delete(id, Claim { version, owner })
            }
            Message::FindNode { target, want } => {
                self.count(Counter::FindNodesReceived);
                let want = usize::from(want).min(NODES_MAX);
                Message::Nodes(Box::new(self.closest_but(sender.id, target, want)))
            }
            Message::FindValue { id } => self.serve_find_value(sender.id, id),
            Message::NotMine(flow) => {
                self.count(Counter::NotMineReceived);
                let owner = sender.locator;
                let answer = Answer::NotMine { flow, owner };
                self.actions.push(Action::Answer { ring: 0, answer });
                return;
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

    pub(super) fn serve_store(&mut self, id: Id, claim: Claim, ttl_s: u32) -> Message {
        self.count(Counter::StoresReceived);
        if !self.observe(claim.version) {
            self.count(Counter::StoresAhead);
            return Message::Ahead;
        }
        let ttl_us = u64::from(ttl_s.min(TTL_S_MAX)) * 1_000_000;
        let expires_at_us = self.now_us + ttl_us;
        match self.store.store(self.now_us, id, claim, expires_at_us) {
            Stored::Yes => Message::Stored,
            Stored::Stale(held) => {
                self.count(Counter::StoresStale);
                Message::Stale(held)
            }
            Stored::Full => {
                self.count(Counter::StoresFull);
                Message::Full
            }
        }
    }

    pub(super) fn serve_delete(&mut self, id: Id, claim: Claim) -> Message {
        self.count(Counter::DeletesReceived);
        if !self.observe(claim.version) {
            self.count(Counter::StoresAhead);
            return Message::Ahead;
        }
        match self.store.delete(self.now_us, id, claim) {
            Deleted::Yes => Message::Deleted,
            Deleted::NotRemembered => {
                self.count(Counter::TombstonesRefused);
                Message::Deleted
            }
            Deleted::Stale(held) => {
                self.count(Counter::StoresStale);
                Message::Stale(held)
            }
        }
    }

    fn serve_find_value(&mut self, asker: Id, id: Id) -> Message {
        self.count(Counter::FindValuesReceived);
        match self.store.get(self.now_us, id) {
            Some(record) if record.state == State::Live => Message::Found(record.claim),
            Some(record) => Message::Gone(record.claim),
            None => match self.published_version(id) {
                Some(version) => Message::Found(self.claim(version)),
                None => Message::NotHeld(Box::new(self.closest_but(asker, id, CLOSER_MAX))),
            },
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

    pub(super) fn keep_records(&mut self) {
        for _ in 0..self.store.sweep(self.now_us, SWEEP_AT_ONCE) {
            self.count(Counter::RecordsExpired);
        }
    }
}
