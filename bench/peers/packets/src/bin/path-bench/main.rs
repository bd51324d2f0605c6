//! `path-bench`: a packet's whole way through a worker, beside testpmd's macswap and the same way
//! in C around rte_hash, in one process on one core, slice by slice in turn. Frames come from
//! rings in memory; what comes out is checked. It prints one JSON object and progress on stderr;
//! it judges no speed, but a wrong frame ends it.

mod feed;
mod lane;
mod two;

use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use holdfast_bench_packets::flows::{Family, flow};
use holdfast_bench_packets::frames::{Kind, Tunnel};
use holdfast_bench_packets::hash_peer::{HashPeer, Keys};
use holdfast_bench_packets::machine::{describe, huge_pages_free, pin, start_eal};
use holdfast_bench_packets::meter::{Spread, overhead, round};
use holdfast_bench_packets::ours::{self, Ours};
use holdfast_bench_packets::pages::{HugePages, allocated, only_small};
use holdfast_bench_packets::path_peer::{PathPeer, QueuePair};
use holdfast_dataplane::session::Session;
use holdfast_dataplane::time::TscClock;
use holdfast_dpdk::{Device, Eal, Mempool, MempoolConfig, Port, PortConfig, tsc};
use holdfast_net::FlowKey;
use serde_json::{Map, Value, json};

use feed::{BATCH, Expect, Feed, Frames, Rings};
use lane::{Engine, Lane, OurWorker};

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

/// The packet path beside its peers, on one core.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Sessions in each table, by commas: 1M is 2^20
    #[arg(long, value_delimiter = ',', default_value = "1M", value_parser = sessions)]
    sizes: Vec<Size>,
    /// Address families, by commas: 4, 6
    #[arg(long, value_delimiter = ',', default_value = "4,6", value_parser = family)]
    families: Vec<Family>,
    /// Slices of each path
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Packets in a slice
    #[arg(long, default_value_t = 1 << 17)]
    packets: usize,
    /// 2: measure one worker and two, on two cores, instead
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    workers: u8,
    /// A smoke test: 1M, few rounds, small slices
    #[arg(long)]
    quick: bool,
    /// Work without reserved huge pages
    #[arg(long)]
    no_huge: bool,
}

#[derive(Debug, Clone)]
struct Size {
    name: String,
    sessions: usize,
}

fn sessions(text: &str) -> Result<Size, String> {
    let number = text.strip_suffix('M').and_then(|number| number.parse::<usize>().ok());
    match number {
        Some(number @ 1..=64) => Ok(Size { name: text.to_owned(), sessions: number << 20 }),
        _ => Err("a size is from 1M to 64M".to_owned()),
    }
}

fn family(text: &str) -> Result<Family, String> {
    match text {
        "4" => Ok(Family::V4),
        "6" => Ok(Family::V6),
        _ => Err("a family is 4 or 6".to_owned()),
    }
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        args.sizes = vec![sessions("1M").map_err(anyhow::Error::msg)?];
        args.rounds = args.rounds.min(5);
        args.packets = args.packets.min(1 << 15);
    }
    ensure!(args.packets.is_multiple_of(BATCH) && args.packets > 0, "slices are in 512s");
    pin(0)?;
    if args.no_huge {
        only_small()?;
    }
    let eal = start_eal(args.no_huge.then_some(4096))?;
    let mut result = Map::new();
    result.insert("machine".to_owned(), describe(Some(&eal)));
    result.insert(
        "settings".to_owned(),
        json!({
            "rounds": args.rounds,
            "packets_per_slice": args.packets,
            "reserved_huge_pages": !args.no_huge && huge_pages_free() > 0,
        }),
    );
    let bench = Bench::new(eal, args)?;
    for size in &bench.args.sizes {
        for &family in &bench.args.families {
            eprintln!("path-bench: {} sessions, {}", size.name, family.name());
            if bench.args.workers == 2 {
                let name = name_of("two_workers", family, size);
                result.insert(name, two::measure(&bench, size, family)?);
            } else {
                bench.group(size, family, &mut result)?;
            }
        }
    }
    let (huge, advised) = allocated();
    result.insert(
        "allocated".to_owned(),
        json!({ "huge_page_bytes": huge, "advised_page_bytes": advised }),
    );
    println!("{}", serde_json::to_string_pretty(&Value::Object(result))?);
    Ok(())
}

/// `redirect_gue_1M`, `redirect_gue_ipv6_1M`.
fn name_of(path: &str, family: Family, size: &Size) -> String {
    match family {
        Family::V4 => format!("{path}_{}", size.name),
        Family::V6 => format!("{path}_ipv6_{}", size.name),
    }
}

/// What all groups share.
pub struct Bench {
    eal: Eal,
    args: Args,
    pool: Mempool,
    null: Port,
    null_queues: Mutex<Option<QueuePair>>,
    clock: TscClock,
}

/// Queues of each pair of rings: one for each path.
const QUEUES: u16 = 12;

impl Bench {
    fn new(eal: Eal, args: Args) -> Result<Bench> {
        let config = MempoolConfig { mbufs: 4095, ..MempoolConfig::default() };
        let pool = Mempool::new(&eal, "frames", &config)?;
        let null_pool = Mempool::new(&eal, "null", &config)?;
        let device = Device::attach(&eal, "net_null0,size=64")?.pop().context("no net_null0")?;
        let (null, mut rx, mut tx) = device.start(&PortConfig::default(), &[null_pool])?;
        let queues = rx.pop().zip(tx.pop()).context("no queue of net_null0")?;
        let null_queues = Mutex::new(Some(QueuePair::new(&null, queues)));
        let clock = TscClock::start(tsc(), eal.tsc_hz());
        Ok(Bench { eal, args, pool, null, null_queues, clock })
    }

    /// The frames that go round.
    fn frames(&self) -> Result<Frames> {
        let mut frames = Frames::new();
        ensure!(self.pool.alloc_bulk(&mut frames) == BATCH, "too few mbufs");
        Ok(frames)
    }

    /// Our table with flows 0 to `sessions`.
    fn table(&self, size: &Size, family: Family, session: impl Fn(u32) -> Session) -> Result<Ours> {
        let table = Ours::new(size.sessions, family)?;
        for number in 0..size.sessions as u32 {
            let put = table.put(&flow(number, family), session(number));
            ensure!(put, "our table took {number} of {} sessions", size.sessions);
        }
        Ok(table)
    }

    /// The peer's table with the same.
    fn peer_table(&self, size: &Size, family: Family) -> Result<HashPeer> {
        let name = format!("path_{}_{}", size.name, family.name());
        let mut table = HashPeer::new(&self.eal, &name, 2 * size.sessions, family)?;
        let mut keys = Keys::new(family);
        for_each_chunk(size, family, |flows, first| {
            keys.set(flows);
            ensure!(table.insert(&keys, u64::from(first)) == flows.len(), "rte_hash is full");
            Ok(())
        })?;
        Ok(table)
    }

    /// All paths over tables of one size, with packets of one family.
    fn group(&self, size: &Size, family: Family, result: &mut Map<String, Value>) -> Result<()> {
        let mut group = Group::new(self, size, family)?;
        group.add_peers()?;
        group.add_ours()?;
        let measured = group.measure();
        *self.null_queues.lock().unwrap_or_else(PoisonError::into_inner) = group.give_back();
        report(&measured?, size, family, result);
        Ok(())
    }
}

fn for_each_chunk(
    size: &Size,
    family: Family,
    mut see: impl FnMut(&[FlowKey], u32) -> Result<()>,
) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    for first in (0..size.sessions).step_by(CHUNK) {
        let last = size.sessions.min(first + CHUNK);
        let flows: Vec<FlowKey> = (first..last).map(|n| flow(n as u32, family)).collect();
        see(&flows, first as u32)?;
    }
    Ok(())
}

/// The paths of one size and family.
struct Group<'a> {
    bench: &'a Bench,
    size: &'a Size,
    family: Family,
    uplink: Rings,
    host: Rings,
    lanes: Vec<Lane>,
}

/// What a path took in each round.
struct Measured {
    name: String,
    ns: Vec<f64>,
    cycles: Vec<f64>,
    checked: u64,
}

impl<'a> Group<'a> {
    fn new(bench: &'a Bench, size: &'a Size, family: Family) -> Result<Group<'a>> {
        let rings = |side: &str| {
            let name = format!("{side}{}{}", size.name, family.name());
            Rings::new(&bench.eal, &name, QUEUES, &bench.pool)
        };
        let (uplink, host) = (rings("u")?, rings("h")?);
        Ok(Group { bench, size, family, uplink, host, lanes: Vec::new() })
    }

    fn feed(&mut self, kind: Kind, expect: Expect, offset: u32) -> Result<Feed> {
        let queue = self.lanes.len();
        let uplink = self.uplink.far(queue).context("too few queues")?;
        let host = self.host.far(queue).context("too few queues")?;
        let what = (self.family, kind, expect);
        let mut feed = Feed::new(uplink, host, what, self.size.sessions as u32, offset);
        // So that no path finds in the cache what the one before it brought there.
        feed.skip(queue * self.size.sessions / usize::from(QUEUES));
        Ok(feed)
    }

    fn peer_queues(&mut self) -> Result<QueuePair> {
        let queue = self.lanes.len();
        let queues = self.uplink.near_queues.get_mut(queue).and_then(Option::take);
        Ok(QueuePair::new(&self.uplink.near, queues.context("too few queues")?))
    }

    fn add(&mut self, name: &str, engine: Engine, feed: Option<Feed>) {
        self.lanes.push(Lane { name: name.to_owned(), engine, feed });
    }

    fn add_peers(&mut self) -> Result<()> {
        let null = self
            .bench
            .null_queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .context("net_null0 is in use")?;
        ensure!(self.bench.null.info().tx_queues == 1, "net_null0 has one queue");
        self.add("macswap_null", Engine::Macswap(null), None);
        let queues = self.peer_queues()?;
        let feed = self.feed(Kind::Segment, Expect::Swapped, 0)?;
        self.add("macswap_ring", Engine::Macswap(queues), Some(feed));

        let table = Rc::new(self.bench.peer_table(self.size, self.family)?);
        let gue = Tunnel::Gue { port: ours::TUNNEL_PORT };
        for (name, tunnel) in [("rte_hash_gue", gue), ("rte_hash_ipip", Tunnel::Ipip)] {
            let queues = self.peer_queues()?;
            let mut path = PathPeer::new(
                &self.bench.eal,
                Rc::clone(&table),
                queues,
                self.family == Family::V6,
                tunnel == gue,
                ours::LOCAL,
                ours::FIRST_OWNER,
                ours::TUNNEL_PORT,
            )?;
            let mut keys = Keys::new(self.family);
            for_each_chunk(self.size, self.family, |flows, first| {
                path.fill(flows, first, &mut keys)
            })?;
            let feed = self.feed(Kind::Segment, Expect::Tunnelled(tunnel), 0)?;
            self.add(name, Engine::Peer(path, self.bench.clock), Some(feed));
        }
        Ok(())
    }

    fn add_ours(&mut self) -> Result<()> {
        let mut redirects: Option<(bool, Ours)> = None;
        for tunnel in ours::TUNNELS {
            let name = match tunnel {
                Tunnel::Gue { .. } => "redirect_gue",
                Tunnel::Ipip => "redirect_ipip",
                Tunnel::Rewrite => "redirect_rewrite",
            };
            let v6 = ours::has_v6_locators(tunnel, self.family);
            let table = match redirects.take() {
                Some((of_v6, table)) if of_v6 == v6 => table,
                _ => self.bench.table(self.size, self.family, |number| {
                    ours::redirect(number, tunnel, self.family)
                })?,
            };
            let worker = self.worker(&table, tunnel)?;
            redirects = Some((v6, table));
            let feed = self.feed(Kind::Segment, Expect::Tunnelled(tunnel), 0)?;
            self.add(name, Engine::Ours(worker), Some(feed));
        }
        let locals = self.bench.table(self.size, self.family, |_| ours::local())?;
        let tunnel = ours::TUNNELS[0];
        let worker = self.worker(&locals, tunnel)?;
        let feed = self.feed(Kind::Segment, Expect::ToHost, 0)?;
        self.add("local_hit", Engine::Ours(worker), Some(feed));

        let worker = self.worker(&locals, tunnel)?;
        let feed = self.feed(Kind::Datagram, Expect::ToHost, 0)?;
        self.add("pass_through", Engine::Ours(worker), Some(feed));

        let worker = self.worker(&locals, tunnel)?;
        let strays = 2 * self.size.sessions as u32;
        let feed = self.feed(Kind::Segment, Expect::ToHost, strays)?;
        self.add("miss_not_found", Engine::OursAsking(worker), Some(feed));
        Ok(())
    }

    fn worker(&mut self, table: &Ours, tunnel: Tunnel) -> Result<Box<OurWorker>> {
        let queue = self.lanes.len();
        let uplink = self.uplink.port(queue).context("too few queues")?;
        let host = self.host.port(queue).context("too few queues")?;
        our_worker(self.bench, table, (tunnel, self.family), (0, 1), uplink, host)
    }

    fn measure(&mut self) -> Result<Vec<Measured>> {
        let overhead = overhead();
        let mut frames = self.bench.frames()?;
        let batches = self.bench.args.packets / BATCH;
        let named = |lane: &Lane| Measured {
            name: lane.name.clone(),
            ns: Vec::new(),
            cycles: Vec::new(),
            checked: 0,
        };
        let mut measured: Vec<Measured> = self.lanes.iter().map(named).collect();
        for round in 0..self.bench.args.rounds as usize {
            for turn in 0..self.lanes.len() {
                let at = (round + turn) % self.lanes.len();
                let lane = &mut self.lanes[at];
                let taken = lane
                    .slice(&mut frames, batches, overhead)
                    .with_context(|| format!("path {}", lane.name))?;
                let packets = (batches * BATCH) as f64;
                measured[at].ns.push(taken.cpu_ns / packets);
                measured[at].cycles.push(taken.cycles / packets);
            }
        }
        for (measured, lane) in measured.iter_mut().zip(&self.lanes) {
            measured.checked = lane.feed.as_ref().map_or(0, Feed::checked);
        }
        Ok(measured)
    }

    fn give_back(&mut self) -> Option<QueuePair> {
        let at = self.lanes.iter().position(|lane| lane.feed.is_none())?;
        match self.lanes.swap_remove(at).engine {
            Engine::Macswap(queues) => Some(queues),
            _ => None,
        }
    }
}

/// A worker over `table`, and the DHT core beside it.
fn our_worker(
    bench: &Bench,
    table: &Ours,
    (tunnel, family): (Tunnel, Family),
    place: (usize, usize),
    uplink: holdfast_dataplane::port::DpdkPort,
    host: holdfast_dataplane::port::DpdkPort,
) -> Result<Box<OurWorker>> {
    let shared = ours::shared(table, tunnel, family)?;
    let (worker, core, poll) = ours::worker(shared, place, uplink, host)?;
    Ok(Box::new(OurWorker { worker, core, clock: bench.clock, ahead_us: 0, _poll: poll }))
}

/// Each path's figures, and our paths over the peers' of the same rounds.
fn report(measured: &[Measured], size: &Size, family: Family, result: &mut Map<String, Value>) {
    let ns_of = |name: &str| measured.iter().find(|one| one.name == name).map(|one| &one.ns);
    for one in measured {
        let mut figures = Map::new();
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        if let Some(ns) = spread(&one.ns) {
            figures.insert("ns".to_owned(), ns.json());
            figures.insert("mpps".to_owned(), json!(round(1000.0 / ns.median)));
        }
        figures.insert("cycles".to_owned(), json!(spread(&one.cycles).map(Spread::json)));
        figures.insert("frames_checked".to_owned(), json!(one.checked));
        let same_path = match one.name.as_str() {
            "redirect_gue" => "rte_hash_gue",
            "redirect_ipip" => "rte_hash_ipip",
            _ => "",
        };
        let peers = [
            ("over_macswap_null", "macswap_null"),
            ("over_macswap_ring", "macswap_ring"),
            ("over_rte_hash_path", same_path),
        ];
        for (key, peer) in peers {
            if peer != one.name
                && let Some(peer) = ns_of(peer)
                && let Some(ratio) = Spread::of_ratio(&one.ns, peer)
            {
                figures.insert(key.to_owned(), ratio.json());
            }
        }
        result.insert(name_of(&one.name, family, size), Value::Object(figures));
    }
}
