//! Compiles the peers in C with the flags of the installed DPDK, for the CPU of this machine.

use std::process::Command;

const SOURCES: &[&str] = &["c/table.c", "c/path.c", "c/pages.c"];
/// What the sources call beyond what holdfast's own bindings link.
const LIBRARIES: &[&str] =
    &["rte_hash", "rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_eal"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=c");
    println!("cargo::rerun-if-env-changed=HOLDFAST_BENCH_CPU");
    let output = Command::new("pkg-config")
        .args(["--cflags", "libdpdk"])
        .output()
        .expect("pkg-config is installed");
    assert!(output.status.success(), "libdpdk-dev is installed: scripts/setup does it");
    let flags = String::from_utf8(output.stdout).expect("pkg-config prints UTF-8");

    let mut build = cc::Build::new();
    build.files(SOURCES).opt_level(3).warnings(true).extra_warnings(true);
    build.flag("-Wno-unused-parameter").flag("-Wno-deprecated-declarations");
    for flag in flags.split_whitespace() {
        build.flag(flag);
    }
    // After DPDK's flags: they carry -march=corei7, and the last one counts.
    let cpu = std::env::var("HOLDFAST_BENCH_CPU").unwrap_or_else(|_| "native".to_owned());
    build.flag(format!("-march={cpu}"));
    build.compile("holdfast_bench_peers");
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
}
