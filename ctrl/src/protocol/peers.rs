//! Members of the DHT as the protocol shows them.

use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The DHT's members that this server knows, or knew lately.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PeersReply {
    /// By locator.
    pub peers: Vec<Peer>,
}

/// One member of the DHT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    /// Its id, 32 hexadecimal digits.
    pub id: String,
    /// Its locator.
    pub locator: IpAddr,
    /// Its UDP socket.
    pub address: SocketAddr,
    /// Its state, in lower case: `alive`; `suspect`, it missed a request or others say so;
    /// `away`, it said that it stops, and its lease has not ended; `dead`.
    pub state: String,
    /// Smoothed round-trip time in microseconds, once measured.
    pub srtt_us: Option<u64>,
    /// Time since it last answered in milliseconds; `None` when it is away or dead.
    pub last_seen_ms: Option<u64>,
    /// Time since it left, or was given up, in milliseconds; only when it is away or dead.
    pub absent_ms: Option<u64>,
    /// Requests in a row that it missed; `None` when it is away or dead.
    pub missed: Option<u64>,
    /// When its last known incarnation started, by its own clock, in microseconds since the Unix
    /// epoch.
    pub started_unix_us: Option<u64>,
    /// Which of its lives this is: another number each time that it enters this server's routing
    /// table. `None` when it is away or dead.
    pub life: Option<u64>,
}
