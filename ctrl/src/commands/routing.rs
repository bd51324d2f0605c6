//! Answers `show_routing`.

use super::peers::{absent_peer, peer};
use super::{Commands, unavailable};
use crate::protocol::{Limit, ProtocolError, RoutingBucket, RoutingReply};

impl Commands {
    pub(super) fn routing(&self, limit: Limit) -> Result<RoutingReply, ProtocolError> {
        let routing = self.appliance.dht.routing(limit.get()).map_err(unavailable)?;
        let buckets: Vec<RoutingBucket> = routing
            .buckets
            .iter()
            .map(|bucket| RoutingBucket {
                prefix: bucket.prefix.to_string(),
                prefix_bits: bucket.prefix_bits,
                contacts: bucket.contacts as u64,
                suspect: bucket.suspect as u64,
                full: bucket.is_full,
                waiting: bucket.waiting as u64,
                peers: bucket.peers.iter().map(peer).collect(),
            })
            .collect();
        let absent = routing.absent.iter().take(limit.get()).map(absent_peer);
        let absent: Vec<_> = absent.collect();
        Ok(RoutingReply {
            id: routing.own.to_string(),
            k: routing.k as u64,
            bucket_bits: routing.bucket_bits,
            truncated: buckets.iter().any(|bucket| bucket.peers.len() < bucket.contacts as usize)
                || absent.len() < routing.absent.len(),
            buckets,
            absent,
        })
    }
}
