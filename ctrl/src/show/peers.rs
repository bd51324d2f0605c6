//! The text of `show peers`.

use crate::protocol::{Peer, PeersReply};

use super::{NONE, Table, count, micros, millis, or_none, utc};

/// `show peers`.
#[must_use]
pub fn peers(reply: &PeersReply) -> String {
    format!("{}\n{}\n", peer_table(&reply.peers), count_of(&reply.peers))
}

/// A member's address is its locator, and of its id the beginning tells it apart: `--json` has
/// all of it.
pub(super) fn peer_table(peers: &[Peer]) -> String {
    let head =
        ["LOCATOR", "PORT", "STATE", "RTT", "MISSED", "LAST SEEN", "STARTED (UTC)", "LIFE", "ID"];
    let mut table = Table::new(&head, &[1, 3, 4, 5, 7]);
    for peer in peers {
        table.row(vec![
            peer.locator.to_string(),
            peer.address.port().to_string(),
            peer.state.clone(),
            or_none(peer.srtt_us.map(micros)),
            or_none(peer.missed),
            last_seen(peer),
            or_none(peer.started_unix_us.map(utc)),
            or_none(peer.life),
            peer.id.chars().take(8).collect(),
        ]);
    }
    table.render()
}

fn last_seen(peer: &Peer) -> String {
    match (peer.last_seen_ms, peer.absent_ms) {
        (Some(ms), _) => millis(ms) + " ago",
        (None, Some(ms)) => format!("gone {}", millis(ms)),
        (None, None) => NONE.to_owned(),
    }
}

/// How many there are, and how many of them not simply alive.
fn count_of(peers: &[Peer]) -> String {
    let mut text = count(peers.len() as u64, "peer");
    for state in ["suspect", "away", "dead"] {
        let count = peers.iter().filter(|peer| peer.state == state).count();
        if count > 0 {
            text += &format!(", {count} {state}");
        }
    }
    text
}
