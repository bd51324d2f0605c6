//! The machine: its description for results, a place on one of its cores, and the EAL.

use anyhow::{Context, Result};
use holdfast_dpdk::Eal;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

/// Keeps the calling thread on this core.
///
/// # Errors
/// When there is no such core.
pub fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).with_context(|| format!("no core {core} for this thread"))
}

/// Starts DPDK on core 0, in huge pages if `mib_without_huge` is `None`.
///
/// # Errors
/// When DPDK refuses.
pub fn start_eal(mib_without_huge: Option<usize>) -> Result<Eal> {
    let mut arguments: Vec<String> =
        ["--no-pci", "--no-telemetry", "--no-shconf", "--lcores=0@0", "--log-level=*:error"]
            .map(str::to_owned)
            .to_vec();
    arguments.push(format!("--file-prefix=holdfast-bench-{}", std::process::id()));
    match mib_without_huge {
        None => arguments.extend(["--in-memory".to_owned(), "--iova-mode=va".to_owned()]),
        Some(mib) => arguments.extend(["--no-huge".to_owned(), "-m".to_owned(), mib.to_string()]),
    }
    Ok(Eal::init(&arguments)?)
}

/// Free huge pages of 2 MiB.
#[must_use]
pub fn huge_pages_free() -> u64 {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// What the numbers were measured on.
#[must_use]
pub fn describe(eal: Option<&Eal>) -> Value {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("", |(_, name)| name);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cpu": cpu,
        "cores": info.lines().filter(|line| line.starts_with("processor")).count(),
        "kernel": kernel.trim(),
        "tsc_hz": eal.map(Eal::tsc_hz),
        "dpdk": holdfast_dpdk::version(),
        "load_average_before": load_average(),
    })
}

fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
