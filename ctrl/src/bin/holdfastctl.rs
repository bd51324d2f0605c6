//! holdfastctl: shows people and scripts what a holdfastd knows. Never links DPDK.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use holdfast::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
