//! Writes the seeds of the packet path's fuzz target, and replays captures through that.
//!
//! ```text
//! cargo run -p holdfast-dataplane --example packets -- seeds
//! cargo run -p holdfast-dataplane --example packets -- replay FILE...
//! ```
//!
//! Any capture of Ethernet frames (pcap, not pcapng) can be replayed. Addresses, and what comes from
//! where, are those of `dataplane/fuzz/src/world.rs`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

#[path = "../../fuzz/src/lib.rs"]
#[allow(dead_code)]
mod fuzz;
mod seeds;

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["seeds"] => write_seeds(),
        ["replay", ref files @ ..] if !files.is_empty() => files.iter().try_for_each(|f| replay(f)),
        _ => Err("usage: packets seeds | packets replay FILE...".into()),
    }
}

fn write_seeds() -> Result<(), Box<dyn Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    std::fs::create_dir_all(&directory)?;
    for (name, capture) in seeds::all() {
        std::fs::write(directory.join(format!("{name}.pcap")), capture.write())?;
    }
    Ok(())
}

fn replay(file: &str) -> Result<(), Box<dyn Error>> {
    println!("{file}");
    for (name, value) in fuzz::packets::run(&std::fs::read(file)?).iter() {
        println!("  {name} {value}");
    }
    Ok(())
}
