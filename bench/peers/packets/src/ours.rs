//! The session table and the worker under the benches: the one place that knows their interface.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use holdfast_dataplane::admission::AdmissionLimits;
use holdfast_dataplane::classify::Classifier;
use holdfast_dataplane::encap::Encapsulation;
use holdfast_dataplane::idle::IdleStrategy;
use holdfast_dataplane::parking::ParkingLimits;
use holdfast_dataplane::port::DpdkPort;
use holdfast_dataplane::service::{Services, SessionKey};
use holdfast_dataplane::session::expiry::Timeouts;
use holdfast_dataplane::session::table::{Insert, Located, SessionTable};
use holdfast_dataplane::session::{Session, State};
use holdfast_dataplane::stats::WorkerCounters;
use holdfast_dataplane::time::Tick;
use holdfast_dataplane::worker::{PortLimits, Settings, Shared, Worker};
use holdfast_handoff::{CoreEnd, Doorbell, Version, rings};
use holdfast_net::{FlowKey, HashKey};

use crate::flows::{Family, SERVICE_PORT, SERVICE_V4, SERVICE_V6};
use crate::frames::Tunnel;

/// Lookups that are asked of the memory before the first of them is looked at.
pub const AHEAD: usize = 32;
/// Insertions whose lines are asked for before the first of them.
const INSERTS_AHEAD: usize = 8;
const HASH_KEY: HashKey = HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
/// When all sessions were seen last.
const SEEN: Tick = Tick(1);
/// As holdfast's defaults, but for redirects: none may end while the bench runs.
const TIMEOUTS: Timeouts = Timeouts {
    half_open_ms: 65_000,
    established_ms: 5 * 24 * 3_600_000,
    linger_ms: 60_000,
    redirect_ms: 30 * 60_000,
};
/// A redirect's stamp changes every 2^11 ticks with these timeouts; peers' stamps do as well.
pub const STAMP_SHIFT: u32 = 11;

/// UDP port of tunnels.
pub const TUNNEL_PORT: u16 = 6080;
/// Our locator, for tunnels of IPv4.
pub const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The first of the owners that flows are redirected to.
pub const FIRST_OWNER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const LOCAL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
/// Owners are few, as in a cluster.
const OWNERS: u32 = 8;
/// Frames that may wait for an answer.
const PARKED_MAX: usize = 1024;

/// The owner of flow `number`.
#[must_use]
pub fn owner(number: u32) -> IpAddr {
    let [a, b, c, d] = FIRST_OWNER.octets();
    Ipv4Addr::new(a, b, c, d + (number % OWNERS) as u8).into()
}

/// The owner of flow `number` where locators are IPv6.
#[must_use]
pub fn owner_v6(number: u32) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2 + (number % OWNERS) as u16).into()
}

/// A session of the host's own.
#[must_use]
pub fn local() -> Session {
    Session::Local { state: State::Established, version: Version(1), published: true }
}

/// The table, of flows of one family.
#[derive(Debug, Clone)]
pub struct Ours(pub Arc<SessionTable>);

impl Ours {
    /// A table for `sessions`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(sessions: usize, family: Family) -> Result<Ours> {
        let table = SessionTable::new(services(family)?, sessions, &TIMEOUTS, HASH_KEY)?;
        Ok(Ours(Arc::new(table)))
    }

    /// A table that holds `sessions` when so many percent of its slots are taken, or fewer.
    ///
    /// # Errors
    /// When memory is short.
    pub fn with_load(sessions: usize, family: Family, percent: usize) -> Result<Ours> {
        let load = (percent, percent);
        let services = services(family)?;
        let table = SessionTable::with_load(services, sessions, &TIMEOUTS, HASH_KEY, load)?;
        Ok(Ours(Arc::new(table)))
    }

    /// Slots for entries of `family`.
    #[must_use]
    pub fn slots(&self, family: Family) -> usize {
        let (v4, v6) = self.0.slots();
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// Bytes of the lines that a lookup reads.
    #[must_use]
    pub fn hot_bytes(&self) -> usize {
        self.0.buckets() * 64
    }

    /// Size of its pages.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.0.page_bytes()
    }

    /// The flow's short key, as the worker's classifier makes it.
    ///
    /// # Panics
    /// If it is of another service or family.
    #[must_use]
    pub fn key(&self, flow: &FlowKey) -> SessionKey {
        self.0.services().key(flow).expect("a flow of the service")
    }

    /// Looks all up; how many are there. Each is asked of the memory 32 others before it is
    /// looked at.
    #[inline(never)]
    #[must_use]
    pub fn hits(&self, keys: &[SessionKey]) -> usize {
        let mut count = 0;
        self.0.find_all(keys, |_, found| {
            if let Some(entry) = found {
                black_box(entry);
                count += 1;
            }
        });
        count
    }

    /// As [`Ours::hits`], but burst by burst as the worker does: 32 are asked for, then looked
    /// at.
    #[inline(never)]
    #[must_use]
    pub fn hits_in_bursts(&self, keys: &[SessionKey]) -> usize {
        self.each_burst(keys, |located| self.find(located))
    }

    /// Room for a burst's places.
    #[inline(always)]
    fn room(&self, keys: &[SessionKey; AHEAD]) -> [Located; AHEAD] {
        [self.0.locate(&keys[0]); AHEAD]
    }

    #[inline(always)]
    fn locate(&self, keys: &[SessionKey; AHEAD], located: &mut [Located; AHEAD]) {
        for (key, at) in keys.iter().zip(located) {
            *at = self.0.locate(key);
            self.0.prefetch(at);
        }
    }

    /// The sum of what `act` makes of each burst, located.
    #[inline(always)]
    fn each_burst(&self, keys: &[SessionKey], act: impl Fn(&[Located; AHEAD]) -> usize) -> usize {
        let chunks = keys.as_chunks::<AHEAD>().0;
        let Some(first) = chunks.first() else {
            return 0;
        };
        let mut located = self.room(first);
        let mut count = 0;
        for chunk in chunks {
            self.locate(chunk, &mut located);
            count += act(&located);
        }
        count
    }

    #[inline(always)]
    fn find(&self, located: &[Located; AHEAD]) -> usize {
        let mut count = 0;
        for at in located {
            if let Some(entry) = self.0.find(at) {
                black_box(entry);
                count += 1;
            }
        }
        count
    }

    /// Inserts a session of the host's for each, one by one; how many it took.
    pub fn insert(&self, keys: &[SessionKey]) -> usize {
        keys.iter().filter(|key| self.insert_at(&self.0.locate(key))).count()
    }

    /// As [`Ours::insert`], in bursts whose lines are asked for first.
    pub fn insert_in_bursts(&self, keys: &[SessionKey]) -> usize {
        self.each_burst(keys, |located| {
            // A few ahead, not all at once: that is more than memory can have under way.
            let (first, _) = located.split_at(INSERTS_AHEAD);
            first.iter().for_each(|at| self.0.prefetch_insert(at));
            let insert = |number: &usize| {
                if let Some(ahead) = located.get(number + INSERTS_AHEAD) {
                    self.0.prefetch_insert(ahead);
                }
                self.insert_at(&located[*number])
            };
            (0..located.len()).filter(insert).count()
        })
    }

    fn insert_at(&self, at: &Located) -> bool {
        matches!(self.0.insert(at, local(), SEEN), Insert::Inserted(_))
    }

    /// Removes all, one by one; how many were there.
    pub fn remove(&self, keys: &[SessionKey]) -> usize {
        keys.iter().filter(|key| self.remove_at(&self.0.locate(key))).count()
    }

    /// As [`Ours::remove`], in bursts whose lines are asked for first.
    pub fn remove_in_bursts(&self, keys: &[SessionKey]) -> usize {
        self.each_burst(keys, |located| located.iter().filter(|at| self.remove_at(at)).count())
    }

    fn remove_at(&self, at: &Located) -> bool {
        self.0.find(at).is_some_and(|entry| self.0.remove(&entry))
    }

    /// Puts one session in; whether it took it.
    #[must_use]
    pub fn put(&self, flow: &FlowKey, session: Session) -> bool {
        let located = self.0.locate_flow(flow);
        located.is_some_and(|at| matches!(self.0.insert(&at, session, SEEN), Insert::Inserted(_)))
    }
}

fn services(family: Family) -> Result<Services> {
    let service = match family {
        Family::V4 => SocketAddr::from((SERVICE_V4, SERVICE_PORT)),
        Family::V6 => SocketAddr::from((SERVICE_V6, SERVICE_PORT)),
    };
    Ok(Services::new([service])?)
}

/// How our worker sends redirected packets on, in all the ways it can.
pub const TUNNELS: [Tunnel; 3] = [Tunnel::Gue { port: TUNNEL_PORT }, Tunnel::Ipip, Tunnel::Rewrite];

/// Whether flows of `family` go to owners with locators of IPv6 by this tunnel: all others have
/// IPv4 outside.
#[must_use]
pub fn has_v6_locators(tunnel: Tunnel, family: Family) -> bool {
    tunnel == Tunnel::Rewrite && family == Family::V6
}

/// The redirect of flow `number` by this tunnel.
#[must_use]
pub fn redirect(number: u32, tunnel: Tunnel, family: Family) -> Session {
    let v6 = has_v6_locators(tunnel, family);
    Session::Redirect { owner: if v6 { owner_v6(number) } else { owner(number) } }
}

/// What workers share: no limit is met, and no session ends.
///
/// # Errors
/// When the settings are refused.
pub fn shared(table: &Ours, tunnel: Tunnel, family: Family) -> Result<Shared> {
    let encapsulation = match tunnel {
        Tunnel::Gue { .. } => Encapsulation::Gue,
        Tunnel::Ipip => Encapsulation::Ipip,
        Tunnel::Rewrite => Encapsulation::Rewrite,
    };
    let v6 = has_v6_locators(tunnel, family);
    let settings = Settings {
        classifier: Classifier {
            services: Services::clone(&table.0.services()),
            locator: if v6 { LOCAL_V6.into() } else { LOCAL.into() },
            tunnel_port: TUNNEL_PORT,
            encapsulation,
        },
        members: vec!["10.0.0.0/24".parse()?, "fd00::/64".parse()?],
        ports: PortLimits {
            uplink_mtu: 1500,
            host_mtu: 1500,
            offloads_checksum: false,
            host_mac: None,
        },
        half_open_max: 1 << 20,
        inbound_only: false,
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
    Ok(Shared {
        settings: Arc::new(settings),
        table: Arc::clone(&table.0),
        clock: Arc::default(),
        closing: Arc::default(),
    })
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
    let poll = mio::Poll::new().context("no epoll")?;
    let waker = mio::Waker::new(poll.registry(), mio::Token(0)).context("no eventfd")?;
    let (end, core) = rings(2 * PARKED_MAX, 1024, Arc::new(Doorbell::new(waker)));
    let counters = Arc::new(WorkerCounters::default());
    Ok((Worker::new(shared, place, counters, end, uplink, host), core, poll))
}
