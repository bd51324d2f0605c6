//! Answers about members of the DHT.

use holdfast_dht as dht;

use super::{Commands, unavailable};
use crate::protocol::{Peer, PeersReply, ProtocolError};

impl Commands {
    pub(super) fn peers(&self) -> Result<PeersReply, ProtocolError> {
        let (present, absent) = self.appliance.dht.peers().map_err(unavailable)?;
        let present = present.iter().map(peer);
        let mut peers: Vec<Peer> = present.chain(absent.iter().map(absent_peer)).collect();
        peers.sort_by_key(|peer| peer.locator);
        Ok(PeersReply { peers })
    }
}

pub(super) fn peer(peer: &dht::Peer) -> Peer {
    Peer {
        id: peer.id.to_string(),
        locator: peer.locator,
        address: peer.address,
        state: if peer.suspect { "suspect" } else { "alive" }.to_owned(),
        srtt_us: peer.srtt_us,
        last_seen_ms: Some(peer.heard_ago_us / 1000),
        absent_ms: None,
        missed: Some(peer.failures.into()),
        started_unix_us: Some(peer.incarnation),
        life: Some(peer.life.into()),
    }
}

pub(super) fn absent_peer(peer: &dht::AbsentPeer) -> Peer {
    Peer {
        id: peer.id.to_string(),
        locator: peer.locator,
        address: peer.address,
        state: if peer.away { "away" } else { "dead" }.to_owned(),
        srtt_us: None,
        last_seen_ms: None,
        absent_ms: Some(peer.absent_us / 1000),
        missed: None,
        started_unix_us: Some(peer.incarnation),
        life: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_alive_suspect_away_or_dead() {
        let present = |suspect| dht::Peer {
            id: dht::Id(1),
            locator: [10, 0, 0, 2].into(),
            address: ([10, 0, 0, 2], 7000).into(),
            incarnation: 7,
            srtt_us: Some(90),
            heard_ago_us: 1_500,
            failures: u8::from(suspect),
            suspect,
            life: 3,
        };
        let absent = |away| dht::AbsentPeer {
            id: dht::Id(1),
            locator: [10, 0, 0, 2].into(),
            address: ([10, 0, 0, 2], 7000).into(),
            incarnation: 7,
            away,
            absent_us: 2_500,
            silent_us: 3_500,
        };
        let peers = [
            peer(&present(false)),
            peer(&present(true)),
            absent_peer(&absent(true)),
            absent_peer(&absent(false)),
        ];
        let states = peers.each_ref().map(|peer| peer.state.as_str());
        assert_eq!(states, ["alive", "suspect", "away", "dead"]);
        assert_eq!(peers.each_ref().map(|p| p.last_seen_ms), [Some(1), Some(1), None, None]);
        assert_eq!(peers.each_ref().map(|p| p.absent_ms), [None, None, Some(2), Some(2)]);
        assert_eq!(peers.each_ref().map(|p| p.missed), [Some(0), Some(1), None, None]);
        assert!(peers.iter().all(|peer| peer.started_unix_us == Some(7)));
    }
}
