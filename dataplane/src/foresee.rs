//! What would become of a client's next segment, for those who explain a flow: the worker's
//! decision without its effects. Never looks anything up itself.

use std::net::IpAddr;

use holdfast_handoff::Resolution;

use crate::session::Session;
use crate::stats::Counter;

/// What becomes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// To the host's kernel.
    Host,
    /// Into the tunnel to the server with this locator.
    Tunnel(IpAddr),
    /// Dropped, for this reason.
    Drop(Counter),
}

/// What becomes of a segment that is neither SYN, FIN nor RST and comes from the network as it is
/// (R4, R5), when the table has `found` of its flow and the DHT would answer `resolution` at each
/// time that it is asked. `locator` is this server's; `is_member` tells whose locators are
/// members'.
#[must_use]
pub fn fate(
    found: Option<&Session>,
    resolution: &Resolution,
    locator: IpAddr,
    is_member: impl Fn(IpAddr) -> bool,
) -> Fate {
    match (found, resolution) {
        (Some(Session::Local { .. }), _) => Fate::Host,
        (Some(Session::Redirect { owner }), _) => Fate::Tunnel(*owner),
        (None, Resolution::Owner { locator: owner, .. }) if *owner == locator => Fate::Host,
        (None, Resolution::Owner { locator: owner, .. }) if is_member(*owner) => {
            Fate::Tunnel(*owner)
        }
        (None, Resolution::Owner { .. }) => Fate::Drop(Counter::ResolvedStranger),
        (None, Resolution::NotFound | Resolution::Orphaned) => Fate::Host,
        (None, Resolution::TimedOut) => Fate::Drop(Counter::DroppedTimedOut),
    }
}
