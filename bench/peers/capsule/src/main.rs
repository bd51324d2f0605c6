//! capsule's packet path beside direct calls that do the same work: receive a burst, parse,
//! match the service, look the flow up, encapsulate, transmit. Prints one JSON document.
//! It never measures holdfast's own worker.

mod clock;
mod direct;
mod driver;
mod outer;
mod packets;
mod report;
mod table;
mod with_capsule;

use anyhow::{Context, Result};
use capsule::Runtime;
use capsule::config::RuntimeConfig;
use clap::Parser;

use crate::driver::Driver;

/// Packets of a slice, about: whole groups are measured.
const SLICE_PACKETS: usize = 128 * 1024;

/// More than capsule passes to the EAL: no file or device of the machine is touched.
const EAL: &str = "--no-pci --no-telemetry --log-level=*:warning";

/// Measures capsule's path and the direct one in turn, in this process, on one core.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// The core that the packets are on.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// The core of capsule's first thread, which then only waits. The same core is allowed.
    #[arg(long, default_value_t = 0)]
    master_core: usize,
    /// Rounds; in each, every path gets a slice of 128 k packets.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(3..=1000))]
    rounds: u32,
    /// Ordinary pages, for machines without huge ones: slower, and more so the larger the table.
    #[arg(long)]
    no_huge: bool,
}

/// Where the threads are.
#[derive(Debug, Clone, Copy)]
struct Cores {
    packets: usize,
    master: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut runtime = Runtime::build(config(&options)?).context("capsule's runtime")?;
    let rounds = options.rounds as usize;
    let cores = Cores { packets: options.core, master: options.master_core };
    runtime
        .add_pipeline_to_port("loop", move |queue| Driver::new(queue, cores, rounds))
        .context("the pipeline")?;
    // Ends at SIGTERM, which the driver raises when it has printed its result.
    runtime.execute().context("capsule's runtime")
}

/// One port: DPDK's ring driver, what is sent to it is received from it.
fn config(options: &Options) -> Result<RuntimeConfig> {
    let Options { core, master_core, .. } = options;
    let pages = if options.no_huge { "--no-shconf --no-huge -m 256" } else { "--in-memory" };
    let text = format!(
        r#"
        app_name = "capsule-path"
        master_core = {master_core}
        dpdk_args = "{EAL} {pages}"

        [mempool]
            capacity = 4095
            cache_size = 256

        [[ports]]
            name = "loop"
            device = "net_ring0"
            cores = [{core}]
            rxd = 1024
            txd = 1024
        "#
    );
    toml::from_str(&text).context("capsule's configuration")
}
