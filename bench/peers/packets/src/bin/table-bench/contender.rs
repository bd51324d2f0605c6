//! What is measured on the same flows: the machine's limit, tables of others, and ours. Each
//! keeps the flows of a slice in the form that it takes, made before the clock starts.

use std::hash::Hash;
use std::hint::black_box;
use std::ptr::NonNull;

use anyhow::{Result, ensure};
use foldhash::fast::FixedState;
use holdfast_bench_packets::flows::{Family, flow};
use holdfast_bench_packets::hash_peer::{HashPeer, Keys};
use holdfast_bench_packets::ours::Ours;
use holdfast_bench_packets::pages::page_bytes_at;
use holdfast_dataplane::service::SessionKey;
use holdfast_dpdk::Eal;
use holdfast_net::FlowKey;

/// A table, or what stands for one.
pub trait Contender {
    /// Its name in results.
    fn name(&self) -> &'static str;
    /// Sessions in it.
    fn sessions(&self) -> usize;
    /// Takes the flows of the next slice.
    fn prepare(&mut self, flows: &[FlowKey]);
    /// Looks the slice's flows up; how many are there.
    fn hits(&mut self) -> usize;
    /// Inserts them; how many it took. `None`: it cannot.
    fn insert(&mut self) -> Option<usize>;
    /// Removes them; how many were there. `None`: it cannot.
    fn remove(&mut self) -> Option<usize>;
    /// Size of the pages that its largest block of memory lies in.
    fn page_bytes(&self) -> Option<u64>;
}

/// Puts flows 0 to `sessions` into a table.
pub fn fill(contender: &mut dyn Contender, sessions: usize, family: Family) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    for start in (0..sessions).step_by(CHUNK) {
        let end = sessions.min(start + CHUNK);
        let flows: Vec<FlowKey> = (start..end).map(|n| flow(n as u32, family)).collect();
        contender.prepare(&flows);
        if let Some(inserted) = contender.insert() {
            let name = contender.name();
            ensure!(inserted == flows.len(), "{name}: took {inserted} of {}", flows.len());
        }
    }
    Ok(())
}

/// The limit: reads of random cache lines, each asked for 32 to 64 reads ahead.
pub struct Limit {
    lines: Box<[Line]>,
    keys: Vec<Prepared>,
    sessions: usize,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

#[derive(Clone, Copy)]
struct Prepared([u64; 2]);

const AHEAD: usize = 32;

impl Limit {
    /// Over as many bytes as our table's lines have.
    pub fn new(bytes: usize, sessions: usize) -> Limit {
        let lines = (0..bytes / 64).map(|n| Line([n as u64; 8])).collect();
        Limit { lines, keys: Vec::new(), sessions }
    }

    /// A multiplication to mix, another to scale: as little as any table could do.
    #[inline(always)]
    fn line(&self, key: &Prepared) -> usize {
        let product = u128::from(key.0[0] ^ 0x9e37_79b9_7f4a_7c15)
            * u128::from(key.0[1] ^ 0xc2b2_ae3d_27d4_eb4f);
        let mixed = (product >> 64) as u64 ^ product as u64;
        ((u128::from(mixed) * self.lines.len() as u128) >> 64) as usize
    }

    #[inline(always)]
    fn ask(&self, keys: &[Prepared], indices: &mut [usize; AHEAD]) {
        for (index, key) in indices.iter_mut().zip(keys) {
            *index = self.line(key);
            holdfast_dpdk::prefetch(&self.lines[*index]);
        }
    }

    #[inline(always)]
    fn read(&self, indices: &[usize; AHEAD]) -> u64 {
        let mut sum = 0u64;
        for &index in indices {
            let words = &self.lines[index].0;
            sum ^= words.iter().fold(0, |all, word| all ^ word);
        }
        sum
    }
}

impl Contender for Limit {
    fn name(&self) -> &'static str {
        "limit"
    }

    fn sessions(&self) -> usize {
        self.sessions
    }

    fn prepare(&mut self, flows: &[FlowKey]) {
        self.keys.clear();
        self.keys.extend(flows.iter().map(|flow| {
            let words = flow.to_words();
            Prepared([words[0] << 32 ^ words[1] ^ words[2], words[4]])
        }));
    }

    #[inline(never)]
    fn hits(&mut self) -> usize {
        let mut indices = [[0; AHEAD]; 2];
        let mut sum = 0;
        let mut chunks = self.keys.chunks_exact(AHEAD).enumerate();
        if let Some((_, first)) = chunks.next() {
            self.ask(first, &mut indices[0]);
        }
        for (number, chunk) in chunks {
            let [even, odd] = &mut indices;
            let (next, now) = if number % 2 == 1 { (odd, even) } else { (even, odd) };
            self.ask(chunk, next);
            sum ^= self.read(now);
        }
        let last = (self.keys.len() / AHEAD).saturating_sub(1) % 2;
        black_box(sum ^ self.read(&indices[last]));
        self.keys.len()
    }

    fn insert(&mut self) -> Option<usize> {
        None
    }

    fn remove(&mut self) -> Option<usize> {
        None
    }

    fn page_bytes(&self) -> Option<u64> {
        page_bytes_at(NonNull::from(self.lines.first()?).cast())
    }
}

/// rte_hash, in bulks of 32.
pub struct RteHash {
    table: HashPeer,
    keys: Keys,
    sessions: usize,
}

impl RteHash {
    /// Half full with `sessions`, as ours is.
    pub fn new(eal: &Eal, name: &str, sessions: usize, family: Family) -> Result<RteHash> {
        let table = HashPeer::new(eal, name, 2 * sessions, family)?;
        Ok(RteHash { table, keys: Keys::new(family), sessions })
    }

    /// The table.
    pub fn table(&self) -> &HashPeer {
        &self.table
    }
}

impl Contender for RteHash {
    fn name(&self) -> &'static str {
        "rte_hash"
    }

    fn sessions(&self) -> usize {
        self.sessions
    }

    fn prepare(&mut self, flows: &[FlowKey]) {
        self.keys.set(flows);
    }

    fn hits(&mut self) -> usize {
        let (found, sum) = self.table.hits(&self.keys);
        black_box(sum);
        found as usize
    }

    fn insert(&mut self) -> Option<usize> {
        Some(self.table.insert(&self.keys, 1))
    }

    fn remove(&mut self) -> Option<usize> {
        Some(self.table.remove(&self.keys))
    }

    fn page_bytes(&self) -> Option<u64> {
        page_bytes_at(NonNull::new(self.table.as_ptr().cast())?)
    }
}

/// A key without padding, as a user of a map would write it.
pub trait MapKey: Copy + Eq + Hash {
    /// Of a flow.
    fn of(flow: &FlowKey) -> Self;
}

/// Client, service, ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key4(u64, u32);

/// Client, service, ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key6([u64; 5]);

impl MapKey for Key4 {
    fn of(flow: &FlowKey) -> Key4 {
        let words = flow.to_words();
        Key4(words[0] << 32 | words[2], (words[4] >> 32) as u32)
    }
}

impl MapKey for Key6 {
    fn of(flow: &FlowKey) -> Key6 {
        Key6(flow.to_words())
    }
}

/// hashbrown: not to be shared, so without that cost.
pub struct Hashbrown<K> {
    map: hashbrown::HashMap<K, u32, FixedState>,
    keys: Vec<K>,
}

impl<K: MapKey> Hashbrown<K> {
    /// With room for `sessions`.
    pub fn new(sessions: usize) -> Hashbrown<K> {
        let map = hashbrown::HashMap::with_capacity_and_hasher(sessions, FixedState::default());
        Hashbrown { map, keys: Vec::new() }
    }
}

impl<K: MapKey> Contender for Hashbrown<K> {
    fn name(&self) -> &'static str {
        "hashbrown"
    }

    fn sessions(&self) -> usize {
        self.map.len()
    }

    fn prepare(&mut self, flows: &[FlowKey]) {
        self.keys.clear();
        self.keys.extend(flows.iter().map(K::of));
    }

    #[inline(never)]
    fn hits(&mut self) -> usize {
        let (mut count, mut sum) = (0, 0u32);
        for key in &self.keys {
            if let Some(value) = self.map.get(key) {
                count += 1;
                sum ^= value;
            }
        }
        black_box(sum);
        count
    }

    fn insert(&mut self) -> Option<usize> {
        let insert = |key: &&K| self.map.insert(**key, 1).is_none();
        Some(self.keys.iter().filter(insert).count())
    }

    fn remove(&mut self) -> Option<usize> {
        Some(self.keys.iter().filter(|key| self.map.remove(*key).is_some()).count())
    }

    fn page_bytes(&self) -> Option<u64> {
        page_bytes_at(NonNull::from(self.map.values().next()?).cast())
    }
}

/// dashmap: hashbrown in locked shards.
pub struct Dashmap<K> {
    map: dashmap::DashMap<K, u32, FixedState>,
    keys: Vec<K>,
}

impl<K: MapKey> Dashmap<K> {
    /// With room for `sessions`.
    pub fn new(sessions: usize) -> Dashmap<K> {
        let map = dashmap::DashMap::with_capacity_and_hasher(sessions, FixedState::default());
        Dashmap { map, keys: Vec::new() }
    }
}

impl<K: MapKey> Contender for Dashmap<K> {
    fn name(&self) -> &'static str {
        "dashmap"
    }

    fn sessions(&self) -> usize {
        self.map.len()
    }

    fn prepare(&mut self, flows: &[FlowKey]) {
        self.keys.clear();
        self.keys.extend(flows.iter().map(K::of));
    }

    #[inline(never)]
    fn hits(&mut self) -> usize {
        let (mut count, mut sum) = (0, 0u32);
        for key in &self.keys {
            if let Some(value) = self.map.get(key) {
                count += 1;
                sum ^= *value;
            }
        }
        black_box(sum);
        count
    }

    fn insert(&mut self) -> Option<usize> {
        let insert = |key: &&K| self.map.insert(**key, 1).is_none();
        Some(self.keys.iter().filter(insert).count())
    }

    fn remove(&mut self) -> Option<usize> {
        Some(self.keys.iter().filter(|key| self.map.remove(*key).is_some()).count())
    }

    fn page_bytes(&self) -> Option<u64> {
        page_bytes_at(NonNull::from(self.map.iter().next()?.value()).cast())
    }
}

/// How our table is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// Lookups with 32 under way all the time, insertions and removals one by one.
    Pipelined,
    /// Everything in bursts of 32, as the worker does.
    Bursts,
}

/// Our session table.
pub struct OurTable {
    name: &'static str,
    table: Ours,
    drive: Drive,
    keys: Vec<SessionKey>,
    sessions: usize,
}

impl OurTable {
    /// `table`, which has or is to have `sessions`.
    pub fn new(name: &'static str, table: Ours, drive: Drive, sessions: usize) -> OurTable {
        OurTable { name, table, drive, keys: Vec::new(), sessions }
    }
}

impl Contender for OurTable {
    fn name(&self) -> &'static str {
        self.name
    }

    fn sessions(&self) -> usize {
        self.sessions
    }

    fn prepare(&mut self, flows: &[FlowKey]) {
        self.keys.clear();
        self.keys.extend(flows.iter().map(|flow| self.table.key(flow)));
    }

    fn hits(&mut self) -> usize {
        match self.drive {
            Drive::Pipelined => self.table.hits(&self.keys),
            Drive::Bursts => self.table.hits_in_bursts(&self.keys),
        }
    }

    fn insert(&mut self) -> Option<usize> {
        Some(match self.drive {
            Drive::Pipelined => self.table.insert(&self.keys),
            Drive::Bursts => self.table.insert_in_bursts(&self.keys),
        })
    }

    fn remove(&mut self) -> Option<usize> {
        Some(match self.drive {
            Drive::Pipelined => self.table.remove(&self.keys),
            Drive::Bursts => self.table.remove_in_bursts(&self.keys),
        })
    }

    fn page_bytes(&self) -> Option<u64> {
        Some(self.table.page_bytes() as u64)
    }
}
