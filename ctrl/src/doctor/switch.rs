//! The host port through the NIC's switch: the kernel's function, and who answers for the next hops.

use std::net::IpAddr;

use super::Check;
use super::machine::Machine;
use super::system::has_address;
use crate::config::{Config, Device};

const NAME: &str = "host port";

/// The network interface of the kernel's function, if it is there.
pub(super) fn interface(machine: &Machine, config: &Config) -> Option<String> {
    let mac = config.host_port.mac?.to_string();
    let mut interfaces = machine.names("sys/class/net").into_iter();
    // A bond or a VLAN has the address of what it is made of.
    interfaces.find(|name| {
        machine.read(&format!("sys/class/net/{name}/address")) == mac
            && machine.has(&format!("sys/class/net/{name}/device"))
    })
}

pub(super) fn examine(machine: &Machine, config: &Config, checks: &mut Vec<Check>) {
    let Some(mac) = config.host_port.mac else {
        return;
    };
    let Some(interface) = interface(machine, config) else {
        let found =
            format!("no network interface has {mac} (host_port.mac), so the kernel gets nothing");
        let mend = "/usr/lib/holdfast/sriov bind PF VF --driver kernel, and ip link";
        checks.push(Check::fail(NAME, found, mend));
        return;
    };
    checks.push(examine_interface(machine, config, &interface));
    checks.extend(examine_mode(machine, config));
    for next_hop in &config.host_port.next_hops {
        checks.extend(examine_next_hop(machine, &interface, *next_hop));
    }
}

fn examine_interface(machine: &Machine, config: &Config, interface: &str) -> Check {
    if machine.read(&format!("sys/class/net/{interface}/operstate")) == "down" {
        let found = format!("{interface}, the kernel's function, is down");
        return Check::fail(NAME, found, format!("ip link set {interface} up"));
    }
    let nic = |device: &str| {
        let pf = machine.link(&format!("{device}/physfn"));
        pf.or_else(|| machine.link(device)).unwrap_or_default()
    };
    if let Device::Pci(address) = &config.uplink.device {
        let uplink = format!("sys/bus/pci/devices/{address}");
        let pf = machine.link(&format!("{uplink}/physfn")).unwrap_or_else(|| address.clone());
        let kernels = nic(&format!("sys/class/net/{interface}/device"));
        if kernels != pf {
            let found = format!("{interface} is a function of {kernels}, the uplink one of {pf}");
            let mend = "host_port.mac: choose a function of the uplink's own NIC";
            return Check::fail(NAME, found, mend);
        }
    }
    Check::ok(NAME, format!("{interface}, through the NIC's switch"))
}

/// A switch that sends everything to the wire delivers nothing between functions.
fn examine_mode(machine: &Machine, config: &Config) -> Option<Check> {
    let Device::Pci(address) = &config.uplink.device else {
        return None;
    };
    let net = format!("sys/bus/pci/devices/{address}/physfn/net");
    let pf = machine.names(&net).into_iter().next()?;
    // Not every driver says it.
    let shown = machine.ask("bridge", &["link", "show", "dev", &pf])?;
    shown.contains("VEPA").then(|| {
        let found =
            format!("the switch of {pf} is in mode VEPA: it delivers nothing to the kernel");
        Check::fail("sr-iov", found, format!("bridge link set dev {pf} hwmode veb"))
    })
}

/// The kernel answers for all addresses that it has, on any interface, unless told otherwise.
fn examine_next_hop(machine: &Machine, interface: &str, next_hop: IpAddr) -> Option<Check> {
    let name = "next hop";
    if !has_address(machine, next_hop) {
        return Some(Check::ok(name, format!("{next_hop} is the appliance's alone")));
    }
    let ignores =
        |of: &str| machine.number(&format!("proc/sys/net/ipv4/conf/{of}/arp_ignore")).unwrap_or(0);
    if next_hop.is_ipv4() && ignores("all").max(ignores(interface)) > 0 {
        return Some(Check::ok(name, format!("{next_hop}: {interface} does not answer for it")));
    }
    let found = format!("the kernel has {next_hop} as well, and answers for it");
    let mend = if next_hop.is_ipv4() {
        format!(
            "sysctl -w net.ipv4.conf.{interface}.arp_ignore=1, if it is on the loopback interface alone"
        )
    } else {
        format!("ip address del {next_hop}/64 dev {interface}")
    };
    Some(Check::fail(name, found, mend))
}
