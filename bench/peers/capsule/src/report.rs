//! What is made of the samples: medians, p10, p90, ratios. It measures nothing.

use std::ffi::CStr;

use serde_json::{Map, Value, json};

use crate::Cores;
use crate::clock::Spent;
use crate::outer::Tunnel;
use crate::packets::GROUP_PACKETS;
use crate::table::Order;

/// The path that all others are compared with.
pub const DIRECT: &str = "direct";

/// What a path does; only paths of the same kind are compared.
pub type Kind = (Tunnel, Order);

pub const KINDS: [Kind; 4] = [
    (Tunnel::Ipip, Order::Each),
    (Tunnel::Ipip, Order::Ahead),
    (Tunnel::Gue, Order::Each),
    (Tunnel::Gue, Order::Ahead),
];

/// One number per round.
#[derive(Debug, Default)]
pub struct Samples {
    cpu_ns: Vec<f64>,
    tsc_cycles: Vec<f64>,
}

impl Samples {
    /// A slice of so many groups, less what the clocks took.
    pub fn add(&mut self, spent: Spent, clock: Spent, groups: usize) {
        let packets = (groups * GROUP_PACKETS) as f64;
        let per_packet =
            |all: u64, clock: u64| (all as f64 - (clock * groups as u64) as f64) / packets;
        self.cpu_ns.push(per_packet(spent.cpu_ns, clock.cpu_ns));
        self.tsc_cycles.push(per_packet(spent.tsc_cycles, clock.tsc_cycles));
    }
}

pub fn scenario<'a>(
    frame_length: usize,
    flows: usize,
    paths: impl Iterator<Item = (&'static str, Kind, &'a Samples)>,
) -> Value {
    let paths: Vec<_> = paths.collect();
    let mut kinds = Map::new();
    for (tunnel, order) in KINDS {
        let of_kind = || paths.iter().filter(|(_, kind, _)| *kind == (tunnel, order));
        let direct = of_kind().find(|(name, ..)| *name == DIRECT).map(|(.., samples)| *samples);
        let mut figures = Map::new();
        for (name, _, samples) in of_kind() {
            let mut figure = json!({
                "cpu_ns_per_packet": spread(&samples.cpu_ns),
                "tsc_cycles_per_packet": spread(&samples.tsc_cycles),
            });
            if let Some(direct) = direct.filter(|_| *name != DIRECT) {
                figure["by_direct"] = by(&samples.cpu_ns, &direct.cpu_ns);
                figure["by_direct_tsc"] = by(&samples.tsc_cycles, &direct.tsc_cycles);
            }
            figures.insert((*name).to_owned(), figure);
        }
        let kind = format!("{tunnel:?}_{order:?}").to_lowercase();
        kinds.insert(kind, Value::Object(figures));
    }
    json!({ "frame_bytes": frame_length, "flows_in_use": flows, "paths": kinds })
}

pub fn machine(cores: Cores, load: String, page_kb: Option<u64>) -> Value {
    // SAFETY: returns a string of DPDK's that lives as long as the process.
    let dpdk = unsafe { CStr::from_ptr(capsule_ffi::rte_version()) };
    // SAFETY: the EAL runs, so the frequency is known.
    let tsc_hz = unsafe { capsule_ffi::rte_get_tsc_hz() };
    json!({
        "cpu": cpu(),
        "core": cores.packets,
        "master_core": cores.master,
        "dpdk": dpdk.to_string_lossy(),
        "tsc_hz": tsc_hz,
        "table_page_kb": page_kb,
        "load_average_before": load,
    })
}

pub fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

fn cpu() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(": ")?.1.to_owned())
}

fn by(path: &[f64], direct: &[f64]) -> Value {
    let ratios: Vec<f64> = path.iter().zip(direct).map(|(path, direct)| path / direct).collect();
    json!({
        "ratio_of_medians": rounded(quantile(path, 0.5) / quantile(direct, 0.5)),
        "ratio_per_round": spread(&ratios),
    })
}

fn spread(samples: &[f64]) -> Value {
    json!({
        "p10": rounded(quantile(samples, 0.1)),
        "median": rounded(quantile(samples, 0.5)),
        "p90": rounded(quantile(samples, 0.9)),
    })
}

fn quantile(samples: &[f64], quantile: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * quantile).round() as usize]
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
