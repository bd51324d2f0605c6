//! Memory, limits, sysctls, addresses and the clock.

use std::net::{IpAddr, Ipv6Addr};

use super::Check;
use super::machine::Machine;
use crate::config::{Config, HugePages};

pub(super) fn examine(machine: &Machine, config: &Config, checks: &mut Vec<Check>) {
    checks.push(examine_huge_pages(machine, config));
    checks.push(examine_memlock(machine, config));
    checks.extend(examine_sysctls(machine));
    let locator = config.node.locator;
    checks.push(if has_address(machine, locator) {
        Check::ok("locator", format!("{locator} is this machine's"))
    } else {
        Check::fail("locator", format!("{locator} is not on this machine"), add(locator))
    });
    for service in &config.services {
        let address = service.address;
        checks.push(if has_address(machine, address) {
            Check::ok("service", format!("{address} is on this machine"))
        } else {
            let found = format!("{address} is not on this machine, unless in another namespace");
            Check::warn("service", found, add(address))
        });
    }
}

fn add(address: IpAddr) -> String {
    format!("ip address add {address}/{} dev lo", if address.is_ipv4() { 32 } else { 128 })
}

fn examine_huge_pages(machine: &Machine, config: &Config) -> Check {
    let name = "huge pages";
    let page_kib = machine.meminfo("Hugepagesize").max(1);
    let mib = |pages: u64| pages * page_kib / 1024;
    let (total, free) =
        (mib(machine.meminfo("HugePages_Total")), mib(machine.meminfo("HugePages_Free")));
    let wanted = u64::from(config.dpdk.memory_mib);
    let pages = (wanted * 1024).div_ceil(page_kib);
    let reserve = format!(
        "echo {pages} > /proc/sys/vm/nr_hugepages (at boot: vm.nr_hugepages in /etc/sysctl.d)"
    );
    let too_few = format!("{total} MiB of them, and dpdk.memory_mib is {wanted}");
    match config.dpdk.huge_pages {
        HugePages::Off => {
            let mend = format!("dpdk.huge_pages = \"auto\", and {reserve}");
            Check::warn(name, "off by dpdk.huge_pages: the packet path is slower by a factor", mend)
        }
        HugePages::On if total < wanted => Check::fail(name, too_few, reserve),
        HugePages::Auto if total < wanted => {
            Check::warn(name, format!("{too_few}: done without, slower by a factor"), reserve)
        }
        // A daemon that runs has them.
        _ if free < wanted && machine.daemons().is_empty() => {
            let found =
                format!("{total} MiB of them, {free} MiB free, and dpdk.memory_mib is {wanted}");
            Check::warn(name, found, "grep -l hugepages /proc/*/numa_maps says who has them")
        }
        _ => Check::ok(name, format!("{total} MiB of them, {free} MiB free, {wanted} wanted")),
    }
}

/// How much memory a process may lock: a running daemon, or what is started from here.
fn examine_memlock(machine: &Machine, config: &Config) -> Check {
    let name = "memlock";
    let process = machine.daemons().into_iter().next();
    let (whose, process) = match process {
        Some(process) => ("the daemon's", process),
        None => ("this shell's", "self".to_owned()),
    };
    let limits = machine.read(&format!("proc/{process}/limits"));
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = soft.and_then(|rest| rest.split_whitespace().next()).unwrap_or("unknown");
    let enough = match soft.parse::<u64>() {
        Ok(bytes) => bytes >= u64::from(config.dpdk.memory_mib) << 20,
        Err(_) => soft == "unlimited",
    };
    if enough {
        return Check::ok(name, format!("{whose} limit is {soft}"));
    }
    let found = format!(
        "{whose} limit is {soft} bytes, and devices reach {} MiB: only root may pass it",
        config.dpdk.memory_mib
    );
    Check::warn(
        name,
        found,
        "ulimit -l unlimited (under systemd: LimitMEMLOCK=infinity, as the unit has it)",
    )
}

fn examine_sysctls(machine: &Machine) -> Vec<Check> {
    let name = "sysctl";
    let mut checks = Vec::new();
    if machine.number("proc/sys/vm/overcommit_memory") == Some(2) {
        let found = "vm.overcommit_memory is 2: all that the DHT core and the table reserve is taken at once";
        checks.push(Check::warn(name, found, "sysctl -w vm.overcommit_memory=0"));
    }
    let nodes = machine.names("sys/devices/system/node");
    let nodes = nodes
        .iter()
        .filter(|node| node.strip_prefix("node").is_some_and(|n| n.parse::<u16>().is_ok()));
    if nodes.count() > 1 && machine.number("proc/sys/kernel/numa_balancing").unwrap_or(0) > 0 {
        let found = "kernel.numa_balancing is on: workers stand still while it moves their memory";
        checks.push(Check::warn(name, found, "sysctl -w kernel.numa_balancing=0"));
    }
    if checks.is_empty() {
        checks.push(Check::ok(name, "nothing in the way"));
    }
    checks
}

/// Whether an address is on an interface of this network namespace.
pub(super) fn has_address(machine: &Machine, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            // Below each leaf stands what it is: an own address is "host LOCAL".
            let table = machine.read("proc/net/fib_trie");
            let (own, mut here) = (address.to_string(), false);
            table.lines().any(|line| {
                let line = line.trim();
                if let Some(leaf) = line.strip_prefix("|-- ") {
                    here = leaf == own;
                }
                here && line.ends_with("host LOCAL")
            })
        }
        IpAddr::V6(address) => machine.read("proc/net/if_inet6").lines().any(|line| {
            let digits = line.split_whitespace().next().unwrap_or_default();
            u128::from_str_radix(digits, 16).is_ok_and(|bits| Ipv6Addr::from(bits) == address)
        }),
    }
}

/// Versions of sessions are clocks.
pub(super) fn examine_clock(machine: &Machine, checks: &mut Vec<Check>) {
    let name = "clock";
    let synchronised =
        machine.ask("timedatectl", &["show", "--property=NTPSynchronized", "--value"]);
    checks.push(match synchronised.as_deref().map(str::trim) {
        Some("yes") => Check::ok(name, "synchronised"),
        Some("no") => {
            let found = "not synchronised: a clock that is hours ahead is not believed";
            Check::warn(name, found, "apt-get install chrony (or: timedatectl set-ntp true)")
        }
        _ => {
            let found = "cannot tell whether it is synchronised: timedatectl does not answer";
            Check::warn(name, found, "chronyc tracking, or ntpq -p")
        }
    });
}
