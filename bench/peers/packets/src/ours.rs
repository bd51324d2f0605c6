//! The session table under the benches: the one place that knows its interface.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::ptr::NonNull;
use std::sync::Arc;

use arrayvec::ArrayVec;
use holdfast_dataplane::session::Session;
use holdfast_dataplane::session::table::{Insert, SessionTable};
use holdfast_dataplane::time::Tick;
use holdfast_net::{FlowKey, HashKey};

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

    /// Removes all, one by one; how many were there.
    pub fn remove(&self, keys: &[Key]) -> usize {
        let remove =
            |key: &&Key| self.0.lookup(key).is_some_and(|found| self.0.remove(found.handle));
        keys.iter().filter(remove).count()
    }
}
