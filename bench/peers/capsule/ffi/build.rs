//! Finds DPDK with pkg-config, binds what capsule uses of it, compiles the shim.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The drivers that the measurement needs come with `rte_net_ring`; the rest is called.
const LIBRARIES: &[&str] =
    &["rte_net_ring", "rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_eal", "numa"];

const FUNCTIONS: &[&str] = &[
    "_rte_(errno|eth_rx_burst|eth_tx_burst|mempool_put_bulk)",
    "_rte_pktmbuf_(alloc|alloc_bulk|free)",
    "numa_node_of_cpu",
    "rte_eal_(init|cleanup)",
    "rte_eth_(allmulticast|promiscuous)_(disable|enable)",
    "rte_eth_dev_(adjust_nb_rx_tx_desc|close|configure|get_port_by_name)",
    "rte_eth_dev_(info_get|socket_id|start|stop)",
    "rte_eth_(macaddr_get|rx_queue_setup|tx_queue_setup|stats_get)",
    "rte_mempool_(free|in_use_count)",
    "rte_pktmbuf_pool_create",
    "rte_socket_(count|id|id_by_idx)",
    "rte_strerror",
    "rte_thread_set_affinity",
    // Only of the measurement:
    "rte_get_tsc_hz",
    "rte_malloc_socket",
    "rte_version",
];

const VARIABLES: &[&str] = &["SHIM_.*", "RTE_MBUF_DEFAULT_BUF_SIZE", "RTE_PKTMBUF_HEADROOM"];

fn main() {
    for file in ["build.rs", "wrapper.h", "shim.c"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let dpdk = pkg_config::Config::new()
        .atleast_version("22.11")
        .cargo_metadata(false)
        .probe("libdpdk")
        .expect("DPDK 22.11 with its development files: apt-get install libdpdk-dev");
    for path in &dpdk.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    // The pkg-config crate keeps only -I and -D; -march and -include matter as well.
    let output = Command::new("pkg-config")
        .args(["--cflags", "libdpdk"])
        .output()
        .expect("pkg-config ran a moment ago");
    let flags = String::from_utf8(output.stdout).expect("pkg-config prints UTF-8");
    let flags: Vec<&str> = flags.split_whitespace().collect();

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(&flags)
        .derive_default(true)
        .generate_comments(false)
        // capsule writes `rte_eth_rx_mq_mode::…`, and wants Default of what holds one.
        .rustified_enum("rte_eth_rx_mq_mode");
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    for variable in VARIABLES {
        builder = builder.allowlist_var(variable);
    }
    builder
        .generate()
        .expect("bindgen binds wrapper.h")
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR is writable");

    let mut build = cc::Build::new();
    build.file("shim.c").opt_level(3).warnings(false);
    for flag in &flags {
        build.flag(flag);
    }
    // After pkg-config's flags, which carry -march=corei7: DPDK's inline code as C gets it.
    build.flag("-march=native").compile("capsule_ffi_shim");
    // After the shim: the linker reads left to right and the shim needs these.
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
}
