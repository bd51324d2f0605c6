//! What the appliance knows of this server that bears on whether it may take traffic. Only reads.

use holdfast_dataplane::session::State;
use holdfast_dataplane::session::word::Kind;
use holdfast_handoff::unix_us;

use crate::appliance::Appliance;

/// Sessions younger than this, in µs, are expected to be on their way into the DHT.
const YOUNG_US: u64 = 1_000_000;

/// This server, as far as its health goes.
pub trait Server: Send + Sync {
    /// Whether the kernel's sockets have been read, or could not be.
    fn kernel_read(&self) -> bool;

    /// How far the sessions are published; `None` when the DHT core does not say.
    fn publishing(&self) -> Option<Publishing>;

    /// Whether the uplink has carrier.
    fn has_carrier(&self) -> bool;

    /// Local sessions that are not over.
    fn sessions_left(&self) -> u64;
}

/// How far the sessions of this server are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publishing {
    /// The server has joined the DHT, or stands alone by configuration.
    pub joined: bool,
    /// Sessions that not all replicas have, without those that began just now.
    pub unpublished: u64,
}

/// Half-open sessions above the limit wait for their handshake before they are published (R3).
fn is_open(state: State) -> bool {
    state != State::HalfOpen && !state.is_lingering()
}

impl Server for Appliance {
    fn kernel_read(&self) -> bool {
        self.kernel_check.has_run()
    }

    fn publishing(&self) -> Option<Publishing> {
        let gauges = self.dht.stats().ok()?.gauges;
        if !gauges.joined {
            return Some(Publishing { joined: false, unpublished: 0 });
        }
        let young_from = unix_us().saturating_sub(YOUNG_US);
        let (mut untold, mut young) = (0, 0);
        for bucket in 0..self.table.buckets() {
            self.table.visit(bucket, |entry| {
                let Kind::Local(state) = entry.kind() else {
                    return;
                };
                let is_young = self.table.version(&entry).is_none_or(|v| v.0 >= young_from);
                if is_young {
                    young += 1;
                } else if is_open(state) && !entry.is_published() {
                    untold += 1;
                }
            });
        }
        let unacked = gauges.published_unacked.saturating_sub(young);
        Some(Publishing { joined: true, unpublished: untold + unacked })
    }

    fn has_carrier(&self) -> bool {
        self.ports.is_uplink_up()
    }

    fn sessions_left(&self) -> u64 {
        let gauges = self.table.gauges();
        gauges.local.saturating_sub(gauges.lingering)
    }
}
