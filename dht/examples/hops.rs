//! Prints T(n): the mean number of hops of a lookup, and its mean time, against the number of
//! servers, for the parameters of the paper and for ours; `--svg FILE` draws them.
//!
//! A datagram takes the same time from any server to any other, and a server answers at once: so a
//! hop, there and back, takes L = 200 µs, and a lookup's time is L times its hops (the paper's
//! T(n) = L·log n). Nodes join by the real protocol, one network growing from size to size; then
//! random servers ask for sessions of other servers. Lookups answered at home are not counted.
//!
//! ```text
//! hops [--max N] [--lookups L] [--svg FILE]
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fmt::Write;
use std::time::{Duration, Instant};

use common::{MS, Network, SECOND, Weather, config, flow};
use holdfast_dht::{Config, Counter};
use holdfast_handoff::Resolution;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// From any server to any other, in µs.
const ONE_WAY_US: u64 = 100;
/// Where all know all, this many servers do at most: each knows all others, but the others only
/// serve, with the small tables of plain Kademlia. 10,000 full tables are 100 million contacts.
const FULL_TABLES_MAX: usize = 200;
/// New servers start this far apart.
const START_EVERY_US: u64 = 500;

#[derive(Clone, Copy)]
struct Parameters {
    name: &'static str,
    k: usize,
    bucket_bits: u8,
    /// Servers with other tables than these.
    full_tables_max: usize,
}

const PAPER: Parameters = Parameters {
    name: "the paper's: k=20, b=1",
    k: 20,
    bucket_bits: 1,
    full_tables_max: usize::MAX,
};
const OURS: Parameters = Parameters {
    name: "ours: k=128, b=8",
    k: 128,
    bucket_bits: 8,
    full_tables_max: FULL_TABLES_MAX,
};

/// One size.
struct Point {
    servers: usize,
    lookups: usize,
    found: usize,
    local: usize,
    /// Mean, and the most that 99 in 100 took.
    hops: f64,
    hops_p99: u64,
    time_us: f64,
    contacts: f64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let place = arguments.iter().position(|a| a == name)?;
        arguments.get(place + 1).cloned()
    };
    let max = value("--max").map_or(Ok(10_000), |v| v.parse())?;
    let lookups = value("--lookups").map_or(Ok(4000), |v| v.parse())?;
    let sizes = || (2..).map(|power| 1 << power).take_while(move |n| *n < max).chain([max]);
    println!(
        "| servers | parameters | contacts, mean | lookups | found | answered at home | hops, mean \
         | hops, p99 | time, µs |\n|---:|---|---:|---:|---:|---:|---:|---:|---:|"
    );
    let curves = [PAPER, OURS].map(|parameters| {
        let mut network = Network::new(1, Weather::even(ONE_WAY_US));
        network.inspects = false;
        network.collect();
        let points: Vec<Point> =
            sizes().map(|n| measure(&mut network, parameters, n, lookups)).collect();
        (parameters, points)
    });
    if let Some(file) = value("--svg") {
        std::fs::write(file, svg(&curves)?)?;
    }
    Ok(())
}

/// Grows the network to `servers`, and asks.
fn measure(network: &mut Network, parameters: Parameters, servers: usize, lookups: usize) -> Point {
    let started = Instant::now();
    for n in network.alive()..servers {
        network.start(parameters.config(n));
        network.run(START_EVERY_US);
    }
    let full = servers.min(parameters.full_tables_max);
    let mut rng = Pcg64::seed_from_u64(servers as u64);
    let mut point = joined(network, parameters, servers, full);
    let sessions = lookups.min(2000);
    let publish = |s: usize| {
        let n = rng.random_range(0..full);
        (n, flow(s), network.publish(n, flow(s)))
    };
    let published: Vec<_> = (0..sessions).map(publish).collect();
    network.until("all to be acknowledged", 60, |network| network.is_settled());
    let mut times_us: Vec<u64> = Vec::new();
    while point.lookups < lookups {
        ask_some(network, &mut point, &mut times_us, full, sessions, &mut rng);
    }
    for (n, flow, version) in published {
        network.withdraw(n, flow, version);
    }
    network.until("all to be deleted", 60, |network| network.is_settled());
    point.take(times_us);
    point.print(parameters, started.elapsed());
    point
}

/// Some lookups at the same moment; they share nothing but the time that passes.
fn ask_some(
    network: &mut Network,
    point: &mut Point,
    times_us: &mut Vec<u64>,
    full: usize,
    sessions: usize,
    rng: &mut Pcg64,
) {
    const AT_ONCE: usize = 50;
    let asked_us = network.now_us;
    let mut asked = 0;
    for _ in 0..AT_ONCE {
        let (asker, s) = (rng.random_range(0..full), rng.random_range(0..sessions));
        let local = network.counter(asker, Counter::LookupsLocal);
        network.ask(asker, flow(s));
        point.lookups += 1;
        if network.counter(asker, Counter::LookupsLocal) > local {
            point.local += 1;
        } else {
            asked += 1;
        }
    }
    // At home is at once.
    let local = network.take_resolved().len();
    point.found += local;
    network.run(20 * MS);
    for resolved in network.take_resolved() {
        asked -= 1;
        if matches!(resolved.resolution, Resolution::Owner { .. }) {
            point.found += 1;
            times_us.push(resolved.at_us - asked_us);
        }
    }
    assert_eq!(asked, 0, "all are answered within 20 ms");
}

/// Waits until who asks knows whom it can know.
fn joined(network: &mut Network, parameters: Parameters, servers: usize, full: usize) -> Point {
    let knows_all = parameters.bucket_bits == 8;
    let contacts =
        |network: &Network| -> u64 { (0..full).map(|n| network.node(n).gauges().peers).sum() };
    let mut before = 0;
    for _ in 0..120 {
        network.run(SECOND);
        let now = contacts(network);
        let all = (full * (servers - 1)) as u64;
        if (knows_all && now == all) || (!knows_all && now.saturating_sub(before) <= now / 1000) {
            break;
        }
        before = now;
    }
    Point {
        servers,
        lookups: 0,
        found: 0,
        local: 0,
        hops: 0.0,
        hops_p99: 0,
        time_us: 0.0,
        contacts: contacts(network) as f64 / full as f64,
    }
}

impl Parameters {
    /// Pings are left out: nobody dies here, and a million contacts would ask each other all the
    /// time.
    fn config(self, n: usize) -> Config {
        let mut config = config(n);
        let full = n < self.full_tables_max;
        config.k = if full { self.k } else { PAPER.k };
        config.bucket_bits = if full { self.bucket_bits } else { PAPER.bucket_bits };
        if full && self.full_tables_max < usize::MAX {
            // Who shall know all looks for them more often than it needs to.
            config.refresh_interval = Duration::from_secs(4);
        }
        config.probe_interval = Duration::from_secs(60);
        config.dead_after = Duration::from_secs(3600);
        config
    }
}

impl Point {
    fn take(&mut self, mut times_us: Vec<u64>) {
        let hop_us = 2 * ONE_WAY_US;
        times_us.sort_unstable();
        let count = times_us.len().max(1);
        self.time_us = times_us.iter().sum::<u64>() as f64 / count as f64;
        self.hops = self.time_us / hop_us as f64;
        self.hops_p99 = times_us.get(count * 99 / 100).map_or(0, |us| us / hop_us);
    }

    fn print(&self, parameters: Parameters, took: Duration) {
        println!(
            "| {} | {} | {:.0} | {} | {} | {} | {:.2} | {} | {:.0} |",
            self.servers,
            parameters.name,
            self.contacts,
            self.lookups,
            self.found,
            self.local,
            self.hops,
            self.hops_p99,
            self.time_us,
        );
        eprintln!("{} servers after {} s", self.servers, took.as_secs());
    }
}

// --- the plot ------------------------------------------------------------------------------------

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const MARGIN: f64 = 60.0;
const HOPS_MAX: f64 = 6.0;

/// Hops against servers, with the number of servers on a logarithmic axis.
fn svg(curves: &[(Parameters, Vec<Point>)]) -> Result<String, std::fmt::Error> {
    let most = curves.iter().flat_map(|(_, points)| points).map(|p| p.servers).max().unwrap_or(4);
    let log = |n: usize| (n as f64).log2();
    let x = |n: usize| MARGIN + (log(n) - 2.0) / (log(most) - 2.0) * (WIDTH - 2.0 * MARGIN);
    let y = |hops: f64| HEIGHT - MARGIN - hops / HOPS_MAX * (HEIGHT - 2.0 * MARGIN);
    let (left, right, bottom) = (x(4), x(most), y(0.0));
    let mut s = String::new();
    writeln!(
        s,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">
<title>Hops of a lookup against the number of servers</title>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="{}" y="28" text-anchor="middle" font-size="16">T(n): hops of a lookup; a hop takes L = {} µs</text>
<text x="{}" y="{}" text-anchor="middle">servers n (logarithmic)</text>
<text transform="translate(18 {}) rotate(-90)" text-anchor="middle">hops, mean</text>"##,
        WIDTH / 2.0,
        2 * ONE_WAY_US,
        WIDTH / 2.0,
        HEIGHT - 14.0,
        HEIGHT / 2.0,
    )?;
    for hops in 0..=HOPS_MAX as u32 {
        let at = y(f64::from(hops));
        writeln!(
            s,
            r##"<path d="M{left:.1} {at:.1}H{right:.1}" stroke="#ddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{hops}</text>"##,
            left - 8.0,
            at + 4.0
        )?;
    }
    for point in &curves[0].1 {
        let (at, n) = (x(point.servers), point.servers);
        let label = if n.ilog2() % 2 == 0 || n == most { n.to_string() } else { String::new() };
        writeln!(
            s,
            r##"<path d="M{at:.1} {bottom:.1}v5" stroke="#000"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{label}</text>"##,
            bottom + 20.0
        )?;
    }
    writeln!(
        s,
        r##"<path d="M{left:.1} {:.1}V{bottom:.1}H{right:.1}" fill="none" stroke="#000"/>"##,
        y(HOPS_MAX)
    )?;
    for ((parameters, points), (nth, colour)) in
        curves.iter().zip(["#c0392b", "#1f6fb2"].into_iter().enumerate())
    {
        let line: Vec<String> =
            points.iter().map(|p| format!("{:.1},{:.1}", x(p.servers), y(p.hops))).collect();
        writeln!(
            s,
            r##"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"##,
            line.join(" ")
        )?;
        for p in points {
            writeln!(
                s,
                r##"<circle cx="{:.1}" cy="{:.1}" r="3.5" fill="{colour}"><title>{} servers: {:.2} hops</title></circle>"##,
                x(p.servers),
                y(p.hops),
                p.servers,
                p.hops
            )?;
        }
        let at = 60.0 + 22.0 * nth as f64;
        writeln!(
            s,
            r##"<path d="M{:.1} {at:.1}h28" stroke="{colour}" stroke-width="2"/><text x="{:.1}" y="{:.1}">{}</text>"##,
            left + 16.0,
            left + 52.0,
            at + 4.0,
            parameters.name
        )?;
    }
    writeln!(s, "</svg>")?;
    Ok(s)
}
