//! What a DHT node is told at start, and what is wrong with it. Never reads files or the
//! environment.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

/// The most replicas a record can have.
pub const REPLICAS_MAX: usize = 6;

/// The configuration of a node. [`Config::new`] gives the defaults named here.
#[derive(Debug, Clone)]
pub struct Config {
    /// This server's locator: its unique address, which peers and tunnels know it by.
    pub locator: IpAddr,
    /// UDP socket of the control port; its address is the locator.
    pub listen: SocketAddr,
    /// Control sockets of nodes to join by; our own may be among them, and then this node may
    /// stand alone when no other answers. Empty: stands alone at once and waits to be found.
    pub bootstrap: Vec<SocketAddr>,
    /// Networks of the cluster's locators. Datagrams from elsewhere are dropped unread.
    pub members: Vec<IpNet>,
    /// Key of the hash that makes ids; the same on all servers of a cluster.
    pub id_key: [u8; 16],
    /// Contacts in a k-bucket: 128.
    pub k: usize,
    /// Bits of the id that one level of k-buckets tells apart, 1 to 8: 8.
    pub bucket_bits: u8,
    /// Requests of one lookup in flight, 1 to 16: 3.
    pub alpha: usize,
    /// Servers that hold a record, 1 to [`REPLICAS_MAX`]: 3.
    pub replicas: usize,
    /// Nodes closest to a record's id among which its replicas are drawn, 1 to 4,096: 128. The
    /// more, the more even the load over the servers; with no more than [`Config::replicas`] the
    /// closest hold it, as in plain Kademlia. The same on all servers of a cluster.
    pub spread: usize,
    /// How long the records of an incarnation are kept after its server was last known to live:
    /// 60 s. Long enough to find its sessions after a restart of the daemon, or a partition.
    pub lease: Duration,
    /// The same for a server that is none of our contacts and says by each STORE that it lives:
    /// 1 h. Its owner refreshes a record twice in this time.
    pub record_ttl: Duration,
    /// How long a replica remembers that a record was deleted: 10 s.
    pub tombstone_ttl: Duration,
    /// How long a lookup may take in all: 500 ms.
    pub lookup_timeout: Duration,
    /// Records that this node holds for others and itself, tombstones included: 4 Mi.
    pub records_max: usize,
    /// Records that this node publishes: 1 Mi.
    pub published_max: usize,
    /// Lookups in flight: 65,536.
    pub lookups_max: usize,
    /// Pause between two probes, whatever the number of peers: 50 ms. As all servers probe, each
    /// is probed by someone this often.
    pub probe_interval: Duration,
    /// A peer that missed [`Config::failures_max`] requests is dead when there was no sign of
    /// life of it for this long since it is a suspect: 2 s.
    pub dead_after: Duration,
    /// For how long since its last sign of life the sessions of a dead server stay its own: 10 s.
    /// A daemon that crashed and is started again must be back within this time; the clients of a
    /// server that died for good are told when it is over. Without effect below
    /// [`Config::dead_after`], and beyond [`Config::lease`].
    pub restart_within: Duration,
    /// Consecutive missed requests after which a peer can be dead: 3.
    pub failures_max: u8,
    /// How often the whole id space is looked through for unknown nodes: 60 s.
    pub refresh_interval: Duration,
}

impl Config {
    /// The defaults, for a node with this locator and control socket.
    #[must_use]
    pub fn new(locator: IpAddr, listen: SocketAddr) -> Config {
        Config {
            locator,
            listen,
            bootstrap: Vec::new(),
            members: Vec::new(),
            id_key: [0; 16],
            k: 128,
            bucket_bits: 8,
            alpha: 3,
            replicas: 3,
            spread: 128,
            record_ttl: Duration::from_secs(3600),
            tombstone_ttl: Duration::from_secs(10),
            lookup_timeout: Duration::from_millis(500),
            records_max: 4 << 20,
            published_max: 1 << 20,
            lookups_max: 1 << 16,
            probe_interval: Duration::from_millis(50),
            dead_after: Duration::from_secs(2),
            restart_within: Duration::from_secs(10),
            lease: Duration::from_secs(60),
            failures_max: 3,
            refresh_interval: Duration::from_secs(60),
        }
    }

    /// Whether an address belongs to the cluster.
    #[must_use]
    pub fn is_member(&self, address: IpAddr) -> bool {
        self.members.iter().any(|net| net.contains(&address))
    }

    /// Checks everything that a node relies on.
    ///
    /// # Errors
    /// [`ConfigError`] names the field and says what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_addresses()?;
        within("k", self.k, 1, 4096)?;
        within("bucket_bits", usize::from(self.bucket_bits), 1, 8)?;
        within("alpha", self.alpha, 1, 16)?;
        within("replicas", self.replicas, 1, REPLICAS_MAX)?;
        within("spread", self.spread, 1, 4096)?;
        within("records_max", self.records_max, 1, 1 << 30)?;
        within("published_max", self.published_max, 1, 1 << 30)?;
        within("lookups_max", self.lookups_max, 1, 1 << 24)?;
        within("failures_max", usize::from(self.failures_max), 1, 100)?;
        let ms = Duration::from_millis;
        lasts("record_ttl", self.record_ttl, ms(2000), ms(604_800_000))?;
        lasts("tombstone_ttl", self.tombstone_ttl, ms(100), ms(3_600_000))?;
        lasts("lookup_timeout", self.lookup_timeout, ms(20), ms(60_000))?;
        lasts("probe_interval", self.probe_interval, ms(1), ms(3_600_000))?;
        lasts("dead_after", self.dead_after, ms(50), ms(3_600_000))?;
        lasts("lease", self.lease, ms(1000), ms(3_600_000))?;
        lasts("restart_within", self.restart_within, ms(0), ms(3_600_000))?;
        lasts("refresh_interval", self.refresh_interval, ms(100), ms(86_400_000))
    }

    fn check_addresses(&self) -> Result<(), ConfigError> {
        if self.listen.ip() != self.locator {
            return Err(ConfigError::ListenIsNotLocator {
                listen: self.listen,
                locator: self.locator,
            });
        }
        if self.locator.is_unspecified() || self.locator.is_multicast() {
            return Err(ConfigError::NoLocator(self.locator));
        }
        let bootstrap = self.bootstrap.iter().map(SocketAddr::ip);
        for address in std::iter::once(self.locator).chain(bootstrap) {
            if !self.is_member(address) {
                return Err(ConfigError::NotMember(address));
            }
        }
        let families_differ = |a: &&SocketAddr| a.is_ipv4() != self.locator.is_ipv4();
        match self.bootstrap.iter().find(families_differ) {
            Some(address) => Err(ConfigError::OtherFamily(*address)),
            None => Ok(()),
        }
    }
}

fn within(field: &'static str, value: usize, min: usize, max: usize) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        field,
        value: value.to_string(),
        min: min.to_string(),
        max: max.to_string(),
    })
}

fn lasts(
    field: &'static str,
    value: Duration,
    min: Duration,
    max: Duration,
) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        field,
        value: format!("{value:?}"),
        min: format!("{min:?}"),
        max: format!("{max:?}"),
    })
}

/// Why a [`Config`] cannot work.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Peers could not tell the node by its source address.
    #[error("the DHT must listen on the locator {locator}, not on {listen}")]
    ListenIsNotLocator {
        /// The control socket.
        listen: SocketAddr,
        /// The locator.
        locator: IpAddr,
    },
    /// The locator is no address of one server.
    #[error("locator {0} is not the address of one server: give a unicast address of its own")]
    NoLocator(IpAddr),
    /// An address is outside of the members' networks.
    #[error("{0} is in none of the members' networks: add one that contains it")]
    NotMember(IpAddr),
    /// A bootstrap node that our socket cannot reach.
    #[error("bootstrap node {0} is not of the locator's address family")]
    OtherFamily(SocketAddr),
    /// A number or a duration is out of its range.
    #[error("{field} is {value}: it must be from {min} to {max}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The least.
        min: String,
        /// The greatest.
        max: String,
    },
}

/// A duration in microseconds.
pub(crate) fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new([10, 0, 0, 1].into(), ([10, 0, 0, 1], 7000).into());
        config.members = vec!["10.0.0.0/24".parse().expect("net")];
        config
    }

    #[test]
    fn defaults_are_right() {
        assert_eq!(config().check(), Ok(()));
    }

    #[test]
    fn names_what_is_wrong() {
        let mut listen = config();
        listen.listen = ([0, 0, 0, 0], 7000).into();
        let mut members = config();
        members.members.clear();
        let mut bootstrap = config();
        bootstrap.bootstrap = vec![([10, 0, 1, 1], 7000).into()];
        let mut alpha = config();
        alpha.alpha = 0;
        let mut spread = config();
        spread.spread = 4097;
        let mut ttl = config();
        ttl.record_ttl = Duration::ZERO;
        let mut lease = config();
        lease.lease = Duration::from_secs(3601);
        for (config, text) in [
            (listen, "listen on the locator 10.0.0.1"),
            (members, "10.0.0.1 is in none"),
            (bootstrap, "10.0.1.1 is in none"),
            (alpha, "alpha is 0: it must be from 1 to 16"),
            (spread, "spread is 4097: it must be from 1 to 4096"),
            (ttl, "record_ttl is 0ns: it must be from 2s"),
            (lease, "lease is 3601s: it must be from 1s to 3600s"),
        ] {
            let error = config.check().expect_err("wrong").to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
