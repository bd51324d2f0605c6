//! Finds libdpdk with pkg-config, binds the small part of it that holdfast uses
//! and compiles the shim that gives DPDK's inline functions a linkable symbol.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest DPDK with the API used here (`rte_eth_rxmode.mtu`, `RTE_ETH_*` names,
/// `rte_thread_register` without the experimental mark).
const DPDK_MIN: &str = "22.11";

/// Linked by name instead of pkg-config's whole list: these are all that the bindings
/// call; each pulls its own dependencies in, and drivers are loaded by the EAL.
const LIBRARIES: &[&str] =
    &["rte_net_ring", "rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_eal"];

const FUNCTIONS: &[&str] = &[
    "holdfast_(hold_tap|ignore_realtime_signals|log_to_stderr|rte_errno)",
    "rte_dev_(name|probe|remove)",
    "rte_dev_event_callback_(register|unregister)",
    "rte_eal_(init|cleanup)",
    "rte_eth_(allmulticast_enable|promiscuous_(disable|enable))",
    "rte_eth_dev_callback_(register|unregister)",
    "rte_eth_dev_(adjust_nb_rx_tx_desc|close|configure|get_mtu|get_name_by_port)",
    "rte_eth_dev_(get_port_by_name|info_get|is_valid_port|set_link_(down|up))",
    "rte_eth_dev_(set_mc_addr_list|set_mtu|socket_id|start|stop)",
    "rte_eth_(find_next|from_rings)",
    "rte_eth_iterator_(init|next|cleanup)",
    "rte_eth_link_get_nowait",
    "rte_eth_macaddr_get",
    "rte_eth_(rx|tx)_burst",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_stats_get",
    "rte_get_tsc_hz",
    "rte_lcore_id",
    "rte_mempool_(avail_count|free)",
    "rte_pktmbuf_(alloc|alloc_bulk|free|free_bulk|pool_create)",
    "rte_rdtsc",
    "rte_ring_(create|dequeue|free)",
    "rte_strerror",
    "rte_thread_(register|unregister)",
    "rte_version",
];

const CONSTANTS: &[&str] = &[
    "HOLDFAST_.*",
    "RTE_ETH_NAME_MAX_LEN",
    "RTE_MAX_ETHPORTS",
    "RTE_MAX_QUEUES_PER_PORT",
    "RTE_MEMPOOL_CACHE_MAX_SIZE",
    "RTE_PKTMBUF_HEADROOM",
    "RING_F_(SP_ENQ|SC_DEQ|EXACT_SZ)",
    "SOCKET_ID_ANY",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=wrapper.h");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");

    let cflags = dpdk_cflags();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let header = manifest.join("wrapper.h");

    let shim = bind(&header, &cflags, &out);
    compile(&shim, &cflags);
    // After the shim: the linker reads left to right and the shim needs these.
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
}

/// The compiler flags of the installed DPDK, `-march` and `-include` among them; the
/// search path of its libraries goes to cargo on the way. Ends the build with advice
/// when DPDK is missing or too old.
fn dpdk_cflags() -> Vec<String> {
    let probe =
        pkg_config::Config::new().atleast_version(DPDK_MIN).cargo_metadata(false).probe("libdpdk");
    let library = match probe {
        Ok(library) => library,
        Err(error) => {
            println!(
                "cargo::error=DPDK {DPDK_MIN} or newer with its development files is needed; \
                 on Debian 12: apt-get install libdpdk-dev libclang-dev pkg-config; elsewhere: \
                 let PKG_CONFIG_PATH name the directory of libdpdk.pc"
            );
            panic!("{error}");
        }
    };
    for path in &library.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }

    // The pkg-config crate keeps only -I and -D; -march and -include matter as well.
    let pkg_config = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(pkg_config)
        .args(["--cflags", "libdpdk"])
        .output()
        .expect("pkg-config ran a moment ago");
    assert!(output.status.success(), "pkg-config --cflags libdpdk failed");
    let flags = String::from_utf8(output.stdout).expect("pkg-config prints UTF-8");
    flags.split_whitespace().map(str::to_owned).collect()
}

/// Writes `bindings.rs` and returns the C file with a symbol per inline function.
fn bind(header: &Path, cflags: &[String], out: &Path) -> PathBuf {
    let shim = out.join("shim");
    let mut builder = bindgen::Builder::default()
        .header(header.to_str().expect("the source path is UTF-8"))
        .clang_args(cflags)
        .wrap_static_fns(true)
        .wrap_static_fns_path(&shim)
        .derive_default(true)
        .generate_comments(false)
        .prepend_enum_name(false)
        .formatter(bindgen::Formatter::None);
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    for constant in CONSTANTS {
        builder = builder.allowlist_var(constant);
    }
    let bindings = builder.generate().expect("bindgen binds wrapper.h");
    bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is writable");
    shim.with_extension("c")
}

fn compile(shim: &Path, cflags: &[String]) {
    let mut build = cc::Build::new();
    build.file(shim).opt_level(3).warnings(false);
    for flag in cflags {
        build.flag(flag);
    }
    build.compile("holdfast_dpdk_shim");
}
