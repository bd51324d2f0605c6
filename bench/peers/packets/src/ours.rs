//! The session table and the worker under the benches: the one place that knows their interface.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::Result;
use arrayvec::ArrayVec;
use holdfast_dataplane::admission::AdmissionLimits;
use holdfast_dataplane::classify::{Classifier, Services};
use holdfast_dataplane::idle::IdleStrategy;
use holdfast_dataplane::parking::ParkingLimits;
use holdfast_dataplane::port::DpdkPort;
use holdfast_dataplane::session::expiry::Timeouts;
use holdfast_dataplane::session::table::{Insert, SessionTable};
use holdfast_dataplane::session::{Session, State};
use holdfast_dataplane::stats::WorkerCounters;
use holdfast_dataplane::time::Tick;
use holdfast_dataplane::worker::{Settings, Shared, Worker};
use holdfast_handoff::{CoreEnd, Doorbell, Version, rings};
use holdfast_net::{FlowKey, HashKey};

use crate::flows::{SERVICE_PORT, SERVICE_V4, SERVICE_V6};
use crate::frames::Tunnel;

/// Lookups that are under way at the same time.
pub const AHEAD: usize = 32;
const HASH_KEY: HashKey = HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);

/// A flow as the table takes it.
pub type Key = FlowKey;

/// A flow as the table takes it.
#[must_use]
pub fn key(flow: &FlowKey) -> Key {
    *flow
}

/// Our locator.
pub const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The first of the owners that flows are redirected to.
pub const FIRST_OWNER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// UDP port of tunnels.
pub const TUNNEL_PORT: u16 = 6080;
/// Frames that may wait for an answer.
const PARKED_MAX: usize = 1024;

/// A session of the host's own.
#[must_use]
pub fn local() -> Session {
    Session::Local { state: State::Established, version: Version(1), published: true }
}

/// The session that the benches put in: a redirect to one of a few owners.
#[must_use]
pub fn session(number: u32) -> Session {
    Session::Redirect { owner: owner(number) }
}

/// Owners are few, as in a cluster.
#[must_use]
pub fn owner(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2 + (number % 8) as u8))
}

/// The table.
#[derive(Debug, Clone)]
pub struct Ours(pub Arc<SessionTable>);

impl Ours {
    /// A table for `sessions`.
    #[must_use]
    pub fn new(sessions: usize) -> Ours {
        Ours(Arc::new(SessionTable::new(sessions, HASH_KEY)))
    }

    /// Bytes of the lines that a lookup may read first.
    #[must_use]
    pub fn hot_bytes(&self) -> usize {
        self.0.buckets() * 64
    }

    /// An address in its memory, to ask the kernel for its pages.
    #[must_use]
    pub fn address(&self) -> Option<NonNull<u8>> {
        None
    }

    /// Looks all up, so that the cache misses of 32 overlap; how many are there.
    #[inline(never)]
    #[must_use]
    pub fn hits(&self, keys: &[Key]) -> usize {
        let mut count = 0;
        let mut found = ArrayVec::new();
        for chunk in keys.chunks_exact(AHEAD) {
            let mut flows = ArrayVec::<Key, AHEAD>::new();
            flows.extend(chunk.iter().copied());
            self.0.lookup_batch(&flows, &mut found);
            for found in &found {
                if let Some(found) = found {
                    black_box(found.session);
                    count += 1;
                }
            }
        }
        count
    }

    /// Inserts all, one by one; how many it took.
    pub fn insert(&self, keys: &[Key]) -> usize {
        let insert = |(number, key): (u32, &Key)| {
            matches!(self.0.insert(key, session(number), Tick(1)), Insert::Inserted(_))
        };
        (0..).zip(keys).map(insert).filter(|&inserted| inserted).count()
    }

    /// Puts one session in; whether it took it.
    pub fn put(&self, flow: &FlowKey, session: Session) -> bool {
        matches!(self.0.insert(flow, session, Tick(1)), Insert::Inserted(_))
    }

    /// Removes all, one by one; how many were there.
    pub fn remove(&self, keys: &[Key]) -> usize {
        let remove =
            |key: &&Key| self.0.lookup(key).is_some_and(|found| self.0.remove(found.handle));
        keys.iter().filter(remove).count()
    }
}

/// How our worker sends redirected packets on, and in which ways it can.
#[must_use]
pub fn tunnels() -> Vec<Tunnel> {
    vec![Tunnel::Gue { port: TUNNEL_PORT }]
}

/// What workers share: no limit is met, and no session ends.
///
/// # Errors
/// When the settings are refused.
pub fn shared(table: &Ours, tunnel: Tunnel) -> Result<Shared> {
    let services = [
        SocketAddr::from((SERVICE_V4, SERVICE_PORT)),
        SocketAddr::from((SERVICE_V6, SERVICE_PORT)),
    ];
    let long_ms = 24 * 3_600_000;
    let Tunnel::Gue { port } = tunnel else {
        anyhow::bail!("no such tunnel");
    };
    let settings = Settings {
        classifier: Classifier {
            services: Services::new(services)?,
            locator: LOCAL.into(),
            tunnel_port: port,
        },
        members: vec!["10.0.0.0/24".parse()?],
        uplink_mtu: 1500,
        half_open_max: 1 << 20,
        timeouts: Timeouts {
            half_open_ms: long_ms,
            established_ms: long_ms,
            linger_ms: long_ms,
            redirect_ms: long_ms,
        },
        parking: ParkingLimits {
            packets_max: PARKED_MAX,
            packets_per_flow_max: 8,
            timeout_us: 60_000_000,
            grace_us: 0,
        },
        admission: AdmissionLimits {
            per_second: u32::MAX,
            burst: u32::MAX,
            per_source_per_second: u32::MAX,
            per_source_burst: u32::MAX,
            negative_us: 1,
        },
        idle: IdleStrategy::Busy,
    };
    Ok(Shared { settings: Arc::new(settings), table: Arc::clone(&table.0), clock: Arc::default() })
}

/// A worker, and the DHT core's end of its rings. Keep the poll: the doorbell rings it.
///
/// # Errors
/// When there is no file descriptor for the doorbell.
pub fn worker(
    shared: Shared,
    place: (usize, usize),
    uplink: DpdkPort,
    host: DpdkPort,
) -> Result<(Worker<DpdkPort, DpdkPort>, CoreEnd, mio::Poll)> {
    let poll = mio::Poll::new()?;
    let waker = mio::Waker::new(poll.registry(), mio::Token(0))?;
    let (end, core) = rings(2 * PARKED_MAX, 1024, Arc::new(Doorbell::new(waker)));
    let counters = Arc::new(WorkerCounters::default());
    Ok((Worker::new(shared, place, counters, end, uplink, host), core, poll))
}
