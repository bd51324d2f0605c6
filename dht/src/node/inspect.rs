//! The node as its operator sees it: its routing table bucket by bucket, and how near it is to each
//! of its limits. Never changes anything.

use super::publishing::{NOT_MINE_QUEUE_MAX, QUEUED_MAX};
use super::serving::SUPERSEDED_QUEUE_MAX;
use super::{AbsentPeer, Node, OUTBOX_MAX, Peer, REQUESTS_MAX};
use crate::id::Id;
use crate::lease::OWNERS_MAX;
use crate::link::{QUEUE_MAX, RESULTS_MAX};
use crate::peer_slots::SLOTS_MAX;
use crate::routing_table::CONTACTS_MAX;
use crate::stats::Counter;

/// The routing table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// Id of this node.
    pub own: Id,
    /// Contacts that a bucket has room for.
    pub k: usize,
    /// Bits of the id that a bucket's level stands for.
    pub bucket_bits: u8,
    /// The buckets that are not empty, in the order of ids.
    pub buckets: Vec<RoutingBucket>,
    /// Nodes that were in the table and are looked out for, by their locators.
    pub absent: Vec<AbsentPeer>,
}

/// A bucket of the routing table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingBucket {
    /// The first bits of its contacts' ids, the others 0.
    pub prefix: Id,
    /// How many bits that are.
    pub prefix_bits: u32,
    /// Contacts in it.
    pub contacts: usize,
    /// Of these, suspects.
    pub suspect: usize,
    /// The contacts, in the order of ids, as far as was asked for.
    pub peers: Vec<Peer>,
    /// Whether it has no room for another one.
    pub is_full: bool,
    /// Nodes that wait for a place in it.
    pub waiting: usize,
}

/// A limit of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What is limited, in snake case.
    pub name: &'static str,
    /// How many there can be.
    pub value: u64,
    /// How many there are; `None` when that is counted for each peer.
    pub used: Option<u64>,
    /// What is counted when it is reached.
    pub hits: &'static [Counter],
}

impl Node {
    /// The routing table, with at most `contacts_max` contacts in all.
    #[must_use]
    pub fn routing(&self, contacts_max: usize) -> Routing {
        let mut left = contacts_max;
        let bucket = |bucket: crate::routing_table::Bucket<'_>| {
            let shown = bucket.contacts.len().min(left);
            left -= shown;
            RoutingBucket {
                prefix: bucket.prefix,
                prefix_bits: bucket.prefix_bits,
                contacts: bucket.contacts.len(),
                suspect: bucket.contacts.iter().filter(|c| c.is_suspect()).count(),
                peers: bucket.contacts.iter().take(shown).map(|c| self.describe(c)).collect(),
                is_full: bucket.is_full,
                waiting: bucket.waiting,
            }
        };
        Routing {
            own: self.own.id,
            k: self.config.k,
            bucket_bits: self.config.bucket_bits,
            buckets: self.table.buckets().into_iter().map(bucket).collect(),
            absent: self.absent_peers(),
        }
    }

    /// Its limits: those of the configuration, and those that are built in.
    #[must_use]
    pub fn limits(&self) -> Vec<Limit> {
        let gauges = self.gauges();
        let limit = |name, value: usize, used: u64, hits| Limit {
            name,
            value: value as u64,
            used: Some(used),
            hits,
        };
        let per_peer =
            |name, value: usize, hits| Limit { name, value: value as u64, used: None, hits };
        let mut limits = vec![
            limit(
                "records",
                self.store.capacity(),
                gauges.records + gauges.tombstones,
                &[Counter::StoresFull, Counter::TombstonesRefused],
            ),
            limit("owners", OWNERS_MAX, gauges.owners, &[Counter::OwnersRefused]),
            limit(
                "published",
                self.config.published_max,
                gauges.published + gauges.withdrawing,
                &[Counter::PublishesRefused, Counter::WithdrawsRefused],
            ),
            limit(
                "lookups_in_flight",
                self.config.lookups_max,
                gauges.lookups_in_flight,
                &[Counter::LookupsRefused, Counter::CommandsRefused],
            ),
            limit(
                "requests_in_flight",
                REQUESTS_MAX,
                self.requests.len() as u64,
                &[Counter::RequestsRefused],
            ),
            limit(
                "operations_queued",
                QUEUED_MAX,
                gauges.operations_queued,
                // Announcements wait in the workers' rings then.
                &[],
            ),
            per_peer("operations_per_peer", QUEUE_MAX, &[Counter::OperationsRefused]),
            per_peer("results_per_peer", RESULTS_MAX, &[Counter::ResultsDropped]),
            limit(
                "messages_queued",
                OUTBOX_MAX,
                self.outbox.len() as u64,
                &[Counter::MessagesDropped],
            ),
            limit(
                "not_mine_queued",
                NOT_MINE_QUEUE_MAX,
                self.outbox.len() as u64,
                &[Counter::NotMineUnsent],
            ),
            limit(
                "superseded_queued",
                SUPERSEDED_QUEUE_MAX,
                self.outbox.len() as u64,
                &[Counter::SupersededUnsent],
            ),
            limit("contacts", CONTACTS_MAX, gauges.peers, &[]),
            per_peer("contacts_per_bucket", self.config.k, &[Counter::BucketsFull]),
            limit("addresses_seen", SLOTS_MAX, self.slots.len() as u64, &[Counter::PeersRefused]),
        ];
        for (name, value, used, hits) in self.membership.limits() {
            limits.push(limit(name, value, used as u64, hits));
        }
        limits
    }
}
