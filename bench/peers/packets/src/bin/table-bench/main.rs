//! `table-bench`: the session table beside rte_hash, hashbrown, dashmap and the machine's limit,
//! in one process on one core, slice by slice in turn. It prints one JSON object and progress on
//! stderr; it judges no speed, but a wrong answer of any table ends it.

mod beside;
mod contender;

use std::hint::black_box;

use anyhow::{Result, ensure};
use clap::Parser;
use holdfast_bench_packets::flows::{Family, Walk, flow};
use holdfast_bench_packets::machine::{describe, huge_pages_free, pin, start_eal};
use holdfast_bench_packets::meter::{Spread, Taken, measure, round};
use holdfast_bench_packets::ours::Ours;
use holdfast_bench_packets::pages::{HugePages, allocated, only_small};
use holdfast_dataplane::service::SessionKey;
use holdfast_dpdk::Eal;
use holdfast_net::FlowKey;
use serde_json::{Map, Value, json};

use beside::{Plan, SharedHash, measure_beside};
use contender::{Contender, Dashmap, Drive, Hashbrown, Key4, Key6, Limit, OurTable, RteHash, fill};

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

/// The session table beside its peers, on one core.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Sessions in each table, by commas: 1M is 2^20
    #[arg(long, value_delimiter = ',', default_value = "1M,8M", value_parser = sessions)]
    sizes: Vec<Size>,
    /// Address families, by commas: 4, 6
    #[arg(long, value_delimiter = ',', default_value = "4,6", value_parser = family)]
    families: Vec<Family>,
    /// Slices of each kind for each contender
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Lookups in a slice
    #[arg(long, default_value_t = 1 << 18)]
    lookups: usize,
    /// Insertions, and removals, in a slice
    #[arg(long, default_value_t = 1 << 17)]
    updates: usize,
    /// A smoke test: 1M, few rounds, small slices
    #[arg(long)]
    quick: bool,
    /// Work without reserved huge pages
    #[arg(long)]
    no_huge: bool,
    /// Only look this many flows of each family up in a small table, for callgrind to count
    #[arg(long, value_name = "LOOKUPS")]
    callgrind_target: Option<usize>,
}

#[derive(Debug, Clone)]
struct Size {
    name: String,
    sessions: usize,
}

fn sessions(text: &str) -> Result<Size, String> {
    let (number, shift) = match text.strip_suffix('M') {
        Some(number) => (number, 20),
        None => (text.strip_suffix('k').ok_or("a size is such as 64k or 1M")?, 10),
    };
    let number: usize = number.parse().map_err(|_| format!("'{text}' is no size"))?;
    if number == 0 || number << shift > 64 << 20 {
        return Err("a size is from 1k to 64M".to_owned());
    }
    Ok(Size { name: text.to_owned(), sessions: number << shift })
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
    if let Some(lookups) = args.callgrind_target {
        return args.families.iter().try_for_each(|family| callgrind_target(lookups, *family));
    }
    if args.quick {
        args.sizes = vec![sessions("1M").map_err(anyhow::Error::msg)?];
        args.rounds = args.rounds.min(5);
        args.lookups = args.lookups.min(1 << 17);
        args.updates = args.updates.min(1 << 16);
    }
    ensure!(args.lookups >= 64 && args.lookups.is_multiple_of(32), "slices are multiples of 32");
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
            "lookups_per_slice": args.lookups,
            "updates_per_slice": args.updates,
            "reserved_huge_pages": !args.no_huge && huge_pages_free() > 0,
        }),
    );
    for size in &args.sizes {
        let mut of_size = Map::new();
        for &family in &args.families {
            eprintln!("table-bench: {} sessions, {}", size.name, family.name());
            let group = Group { eal: &eal, args: &args, size, family };
            of_size.insert(family.name().to_owned(), group.measure()?);
        }
        shortcuts(&mut of_size);
        result.insert(size.name.clone(), Value::Object(of_size));
    }
    let (huge, advised) = allocated();
    result.insert(
        "allocated".to_owned(),
        json!({ "huge_page_bytes": huge, "advised_page_bytes": advised }),
    );
    println!("{}", serde_json::to_string_pretty(&Value::Object(result))?);
    Ok(())
}

/// A walk over each one's flows. They start at different flows, so that nobody finds in the cache
/// what another brought there.
fn walks(contenders: &[Box<dyn Contender>]) -> Vec<Walk> {
    let count = contenders.len();
    let start = |(at, one): (usize, &Box<dyn Contender>)| {
        let mut walk = Walk::new(one.sessions() as u32);
        walk.nth(at * one.sessions() / count);
        walk
    };
    contenders.iter().enumerate().map(start).collect()
}

/// The medians for IPv4, where a reader in a hurry looks.
fn shortcuts(of_size: &mut Map<String, Value>) {
    let Some(Value::Object(ipv4)) = of_size.get("ipv4").cloned() else {
        return;
    };
    for (name, value) in &ipv4 {
        if name.contains("_over_")
            && let Some(median) = value.get("median")
        {
            of_size.insert(name.clone(), median.clone());
        }
    }
}

/// A size and a family: all contenders on the same flows.
struct Group<'a> {
    eal: &'a Eal,
    args: &'a Args,
    size: &'a Size,
    family: Family,
}

/// Speeds of the slices of one kind, by contender.
struct Speeds {
    measure: &'static str,
    /// M/s of each round, and cycles per operation.
    of: Vec<(&'static str, Vec<f64>, Vec<f64>)>,
}

impl Speeds {
    fn new(measure: &'static str, contenders: &[Box<dyn Contender>]) -> Speeds {
        let of = contenders.iter().map(|one| (one.name(), Vec::new(), Vec::new()));
        Speeds { measure, of: of.collect() }
    }

    fn add(&mut self, contender: usize, taken: Taken, operations: usize) {
        self.of[contender].1.push(taken.millions_per_second(operations));
        self.of[contender].2.push(taken.cycles / operations as f64);
    }

    /// Speeds, cycles, and our speed over each other's.
    fn report(&self, into: &mut Map<String, Value>) {
        let mut speeds = Map::new();
        let mut cycles = Map::new();
        for (name, speed, cycle) in &self.of {
            if let Some(spread) = Spread::of(speed.iter().copied()) {
                speeds.insert((*name).to_owned(), spread.json());
            }
            if let Some(spread) = Spread::of(cycle.iter().copied()) {
                cycles.insert((*name).to_owned(), spread.json());
            }
        }
        let measure = self.measure;
        into.insert(measure.to_owned(), Value::Object(speeds));
        into.insert(format!("{measure}_cycles"), Value::Object(cycles));
        let is_ours = |name: &str| name.strip_prefix("ours").map(str::to_owned);
        for (name, ours, _) in &self.of {
            let Some(variant) = is_ours(name) else { continue };
            for (other, speed, _) in self.of.iter().filter(|(name, ..)| is_ours(name).is_none()) {
                if let Some(spread) = Spread::of_ratio(ours, speed) {
                    into.insert(format!("{measure}{variant}_over_{other}"), spread.json());
                }
            }
        }
    }
}

impl Group<'_> {
    fn measure(&self) -> Result<Value> {
        let mut result = Map::new();
        let ours = Ours::new(self.size.sessions, self.family)?;
        let rte_hash = self.rte_hash()?;
        let mut contenders = self.contenders(&ours, rte_hash)?;
        let pages = contenders.iter().map(|one| (one.name().to_owned(), json!(one.page_bytes())));
        result.insert("page_bytes".to_owned(), Value::Object(pages.collect()));
        result.insert("hot_bytes".to_owned(), json!(ours.hot_bytes()));
        let load = self.size.sessions as f64 / ours.slots(self.family) as f64;
        result.insert("load".to_owned(), json!(round(load)));
        self.lookups(&mut contenders, &mut result)?;
        self.updates(&mut contenders, &mut result)?;
        drop(contenders);
        self.beside(&ours, &mut result)?;
        Ok(Value::Object(result))
    }

    fn rte_hash(&self) -> Result<RteHash> {
        let name = format!("table_{}_{}", self.size.name, self.family.name());
        RteHash::new(self.eal, &name, self.size.sessions, self.family)
    }

    /// All, filled.
    fn contenders(&self, ours: &Ours, rte_hash: RteHash) -> Result<Vec<Box<dyn Contender>>> {
        let (sessions, family) = (self.size.sessions, self.family);
        let mut all: Vec<Box<dyn Contender>> =
            vec![Box::new(Limit::new(ours.hot_bytes(), sessions)), Box::new(rte_hash)];
        match family {
            Family::V4 => {
                all.push(Box::new(Hashbrown::<Key4>::new(sessions)));
                all.push(Box::new(Dashmap::<Key4>::new(sessions)));
            }
            Family::V6 => {
                all.push(Box::new(Hashbrown::<Key6>::new(sessions)));
                all.push(Box::new(Dashmap::<Key6>::new(sessions)));
            }
        }
        all.push(Box::new(OurTable::new("ours", ours.clone(), Drive::Pipelined, sessions)));
        // As full as their names say: the slots of the smallest table for as many sessions.
        let slots = Ours::with_load(sessions, family, 80)?.slots(family);
        for (name, percent) in [("ours_load_50", 50), ("ours_load_80", 80)] {
            let filled = slots * percent / 100;
            let table = Ours::with_load(filled, family, percent)?;
            ensure!(table.slots(family) == slots, "{name}: {} slots", table.slots(family));
            all.push(Box::new(OurTable::new(name, table, Drive::Pipelined, filled)));
        }
        for contender in &mut all {
            // A map says how many it has, which is none yet.
            let wanted = match contender.sessions() {
                0 => sessions,
                wanted => wanted,
            };
            fill(contender.as_mut(), wanted, family)?;
        }
        // The same table as ours, so it is full already.
        all.push(Box::new(OurTable::new("ours_bursts", ours.clone(), Drive::Bursts, sessions)));
        Ok(all)
    }

    /// Flows that are in the table, then flows that are not.
    fn lookups(
        &self,
        contenders: &mut [Box<dyn Contender>],
        result: &mut Map<String, Value>,
    ) -> Result<()> {
        let mut hit = Speeds::new("hit", contenders);
        let mut miss = Speeds::new("miss", contenders);
        let mut walks = walks(contenders);
        // Past all that any table holds.
        let misses_from = 4 * self.size.sessions as u32;
        for round in 0..self.args.rounds as usize {
            for turn in 0..contenders.len() {
                let at = (round + turn) % contenders.len();
                let numbers: Vec<u32> = walks[at].by_ref().take(self.args.lookups).collect();
                for (speeds, offset) in [(&mut hit, 0), (&mut miss, misses_from)] {
                    let contender = contenders[at].as_mut();
                    contender.prepare(&self.flows(&numbers, offset));
                    let (found, taken) = measure(|| contender.hits());
                    let expected = if offset == 0 || at == 0 { numbers.len() } else { 0 };
                    let name = contender.name();
                    ensure!(found == expected, "{name}: found {found} instead of {expected}");
                    speeds.add(at, taken, numbers.len());
                }
            }
        }
        // The limit has no misses; and its hits are as good for both.
        hit.report(result);
        miss.of.remove(0);
        miss.report(result);
        Ok(())
    }

    /// Removes flows, and inserts them again: the tables stay as full as they are.
    fn updates(
        &self,
        contenders: &mut [Box<dyn Contender>],
        result: &mut Map<String, Value>,
    ) -> Result<()> {
        let mut insert = Speeds::new("insert", contenders);
        let mut remove = Speeds::new("remove", contenders);
        let mut walks = walks(contenders);
        for round in 0..self.args.rounds as usize {
            for turn in 0..contenders.len() {
                let at = (round + turn) % contenders.len();
                let numbers: Vec<u32> = walks[at].by_ref().take(self.args.updates).collect();
                let contender = contenders[at].as_mut();
                contender.prepare(&self.flows(&numbers, 0));
                let (removed, taken) = measure(|| contender.remove());
                let Some(removed) = removed else { continue };
                remove.add(at, taken, numbers.len());
                let (inserted, taken) = measure(|| contender.insert());
                insert.add(at, taken, numbers.len());
                let name = contender.name();
                let expected = (numbers.len(), Some(numbers.len()));
                ensure!(
                    (removed, inserted) == expected,
                    "{name}: removed {removed}, inserted {inserted:?} of {}",
                    numbers.len()
                );
            }
        }
        insert.report(result);
        remove.report(result);
        Ok(())
    }

    fn beside(&self, ours: &Ours, result: &mut Map<String, Value>) -> Result<()> {
        let plan = Plan {
            family: self.family,
            sessions: self.size.sessions,
            slice: self.args.lookups,
            rounds: self.args.rounds as usize,
            tsc_hz: self.eal.tsc_hz(),
        };
        let reading = measure_beside(ours, &plan)?;
        result.insert("reader_beside_writer".to_owned(), reading.clone());
        result.insert(
            "reader_loss_percent".to_owned(),
            json!(reading["loss_percent"]["median"].as_f64().map(round)),
        );
        let mut rte_hash = self.rte_hash()?;
        fill(&mut rte_hash, self.size.sessions, self.family)?;
        let reading = measure_beside(&SharedHash(rte_hash.table(), self.family), &plan)?;
        result.insert("reader_beside_writer_rte_hash".to_owned(), reading);
        Ok(())
    }

    fn flows(&self, numbers: &[u32], offset: u32) -> Vec<FlowKey> {
        numbers.iter().map(|number| flow(number + offset, self.family)).collect()
    }
}

/// A small table, so that the count is of instructions and not of the machine's caches.
fn callgrind_target(lookups: usize, family: Family) -> Result<()> {
    const SESSIONS: usize = 1 << 13;
    let table = Ours::new(SESSIONS, family)?;
    let keys: Vec<SessionKey> = (0..SESSIONS as u32).map(|n| table.key(&flow(n, family))).collect();
    ensure!(table.insert(&keys) == keys.len(), "the table is too small");
    for _ in 0..lookups / keys.len() {
        ensure!(callgrind_lookups(&table, &keys) == keys.len(), "a flow is missing");
    }
    println!("{} {}", family.name(), lookups / keys.len() * keys.len());
    Ok(())
}

/// What callgrind counts the instructions of, by this name.
#[inline(never)]
#[unsafe(no_mangle)]
fn callgrind_lookups(table: &Ours, keys: &[SessionKey]) -> usize {
    black_box(table.hits(keys))
}
