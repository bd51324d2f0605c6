//! The uplink and the host port: drivers, IOMMU, virtual functions, MTU, offloads, addresses.

use std::net::IpAddr;

use serde_json::Value;

use super::machine::Machine;
use super::{Check, switch};
use crate::config::{Config, Device, Encapsulation};

/// Drivers that leave a device to a program.
const USER_DRIVERS: &[&str] = &["vfio-pci", "uio_pci_generic", "igb_uio"];
/// Drivers of the kernel that DPDK works beside.
const SHARED_DRIVERS: &[&str] = &["mlx4_core", "mlx5_core"];
const IOMMU: &str = "turn VT-d or AMD-Vi on in the firmware, and boot with intel_iommu=on iommu=pt \
                     (AMD: iommu=pt)";
/// What a TAP takes, until somebody changes it.
const TAP_MTU: u64 = 1500;

pub(super) fn examine(machine: &Machine, config: &Config, checks: &mut Vec<Check>) {
    for (name, device) in
        [("uplink", &config.uplink.device), ("host port", &config.host_port.device)]
    {
        match device {
            Device::Pci(address) => examine_pci(machine, config, (name, address), checks),
            Device::Interface(interface) => {
                examine_interface(machine, config, (name, interface), checks);
            }
            Device::Tap { .. } => checks.push(examine_tap(machine, name)),
            Device::Vhost { .. } => checks.push(examine_vhost(machine, name)),
            Device::Vdev { .. } => checks.push(Check::ok(name, device.to_string())),
            Device::Switch => switch::examine(machine, config, checks),
        }
    }
    checks.push(examine_mtu(machine, config));
    checks.extend(examine_rp_filter(machine, config));
}

fn examine_pci(
    machine: &Machine,
    config: &Config,
    (name, address): (&'static str, &str),
    checks: &mut Vec<Check>,
) {
    let device = format!("sys/bus/pci/devices/{address}");
    if !machine.has(&device) {
        let found = format!("there is no PCI device {address}");
        checks.push(Check::fail(name, found, "lspci -D (a VF: /usr/lib/holdfast/sriov create PF)"));
        return;
    }
    let driver = machine.link(&format!("{device}/driver")).unwrap_or_default();
    let bind = format!(
        "modprobe vfio-pci && echo vfio-pci > /{device}/driver_override && \
         {{ [ ! -e /{device}/driver ] || echo {address} > /{device}/driver/unbind; }} && \
         echo {address} > /sys/bus/pci/drivers_probe"
    );
    checks.push(match driver.as_str() {
        "vfio-pci" => Check::ok(name, format!("{address} is bound to vfio-pci")),
        shared if SHARED_DRIVERS.contains(&shared) => {
            Check::ok(name, format!("{address} has driver {shared}, which DPDK works beside"))
        }
        uio if USER_DRIVERS.contains(&uio) => {
            let found =
                format!("{address} is bound to {uio}: without an IOMMU it can write anywhere");
            Check::warn(name, found, bind)
        }
        "" => Check::fail(name, format!("{address} has no driver"), bind),
        other => {
            let found = format!("{address} is bound to the kernel's driver {other}");
            Check::fail(name, found, bind)
        }
    });
    if !SHARED_DRIVERS.contains(&driver.as_str()) {
        checks.push(examine_iommu(machine, address));
    }
    checks.extend(examine_vf(machine, config, address));
    checks.extend(examine_arp(machine, address));
    checks.extend(examine_node(machine, config, address));
}

fn examine_iommu(machine: &Machine, address: &str) -> Check {
    let name = "iommu";
    let group = format!("sys/bus/pci/devices/{address}/iommu_group");
    let Some(number) = machine.link(&group) else {
        let unsafe_mode = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
        if machine.read(unsafe_mode) == "Y" {
            let found = "vfio runs without one: the NIC can write to all memory";
            return Check::warn(name, found, IOMMU);
        }
        return Check::fail(name, format!("{address} is in no IOMMU group"), IOMMU);
    };
    let others = machine.names(&format!("{group}/devices"));
    let taken = others.iter().find_map(|other| {
        let driver = machine.link(&format!("sys/bus/pci/devices/{other}/driver"))?;
        let harmless = other == address || driver == "vfio-pci" || driver == "pcieport";
        (!harmless).then(|| format!("{other} ({driver})"))
    });
    match taken {
        None => Check::ok(name, format!("{address} is in group {number}")),
        Some(other) => {
            let found = format!("{address} shares group {number} with {other}: vfio refuses it");
            Check::fail(name, found, "bind that one to vfio-pci as well, or use another slot")
        }
    }
}

/// Of a virtual function: what its physical function lets it do.
fn examine_vf(machine: &Machine, config: &Config, address: &str) -> Option<Check> {
    let name = "sr-iov";
    // It sends with its own address then, and takes only what is for that.
    let is_switch = config.host_port.device == Device::Switch;
    let pf = format!("sys/bus/pci/devices/{address}/physfn");
    let pf_address = machine.link(&pf)?;
    let Some(interface) = machine.names(&format!("{pf}/net")).into_iter().next() else {
        let found = format!("{address} is a VF of {pf_address}, which has no network interface");
        return Some(Check::warn(name, found, "lspci -k: bind the PF to the kernel's driver"));
    };
    let number = machine.names(&pf).into_iter().find_map(|entry| {
        let number = entry.strip_prefix("virtfn")?.parse::<u64>().ok()?;
        (machine.link(&format!("{pf}/{entry}")).as_deref() == Some(address)).then_some(number)
    });
    let number = number.unwrap_or_default();
    if machine.read(&format!("sys/class/net/{interface}/operstate")) == "down" {
        let found = format!("{address} is VF {number} of {interface}, which is down: no link");
        return Some(Check::fail(name, found, format!("ip link set {interface} up")));
    }
    let shown = machine.ask("ip", &["-json", "link", "show", "dev", &interface]);
    let shown: Option<Value> = shown.and_then(|text| serde_json::from_str(&text).ok());
    let vfs = shown.as_ref().and_then(|shown| shown[0]["vfinfo_list"].as_array());
    let vf = vfs.and_then(|vfs| vfs.iter().find(|vf| vf["vf"].as_u64() == Some(number)));
    let vlan = vf.and_then(|vf| vf["vlan_list"][0]["vlan"].as_u64()).unwrap_or(0);
    let set = |what: &str| format!("ip link set {interface} vf {number} {what}");
    Some(match vf {
        None => {
            let found = format!("{interface} does not say what VF {number} may do");
            Check::warn(name, found, format!("ip link show dev {interface}"))
        }
        Some(_) if vlan != config.uplink.port_vlan.map_or(0, u64::from) => {
            let found = format!(
                "VF {number} of {interface} is in VLAN {vlan}, and uplink.port_vlan is {}: some NICs \
                 leave the tag on what the VF receives",
                config.uplink.port_vlan.unwrap_or(0)
            );
            Check::fail(name, found, format!("port_vlan = {vlan} in [uplink]"))
        }
        Some(vf) if is_deaf(config, vf["address"].as_str()) => {
            let address = vf["address"].as_str().unwrap_or_default();
            let found = format!(
                "VF {number} of {interface} has the address {address}, and the host port another \
                 one: with uplink.promiscuous = false nothing for that arrives"
            );
            Check::fail(name, found, format!("mac = \"{address}\" in [host_port]"))
        }
        Some(_) if is_switch => Check::ok(name, format!("{address} is VF {number} of {interface}")),
        Some(vf) if vf["spoofchk"] == true => {
            let found = format!(
                "VF {number} of {interface} is checked for spoofing: what the kernel sends with \
                 the host port's address is dropped"
            );
            Check::fail(name, found, set("spoofchk off"))
        }
        Some(vf) if vf["trust"] == false => {
            let found =
                format!("VF {number} of {interface} is not trusted: promiscuous mode is refused");
            Check::warn(name, found, set("trust on"))
        }
        Some(_) => Check::ok(name, format!("{address} is VF {number} of {interface}, trusted")),
    })
}

/// Whether the host port has another address than the uplink's function, which takes nothing else.
fn is_deaf(config: &Config, function: Option<&str>) -> bool {
    // Without one it is made of the locator.
    let host = config.host_port.mac.map(|mac| mac.to_string());
    let is_interface = matches!(config.host_port.device, Device::Tap { .. } | Device::Vhost { .. });
    is_interface && !config.uplink.promiscuous && function.is_some() && function != host.as_deref()
}

/// The kernel's interface of the PF is on the same link, and answers there for any address that the
/// kernel has, the host port's too, unless told otherwise.
fn examine_arp(machine: &Machine, address: &str) -> Option<Check> {
    let pf = format!("sys/bus/pci/devices/{address}/physfn/net");
    let interface = machine.names(&pf).into_iter().next()?;
    let ignored =
        |interface: &str| machine.number(&format!("proc/sys/net/ipv4/conf/{interface}/arp_ignore"));
    // The greater of the two holds.
    if ignored(&interface)?.max(ignored("all").unwrap_or(0)) > 0 {
        return None;
    }
    let found =
        format!("{interface} answers ARP for the host port's addresses, past the appliance");
    let mend = format!("sysctl -w net.ipv4.conf.{interface}.arp_ignore=1");
    Some(Check::warn("arp", found, mend))
}

/// Workers and the device's memory belong on one NUMA node.
fn examine_node(machine: &Machine, config: &Config, address: &str) -> Option<Check> {
    let name = "numa";
    // -1, where there is one node.
    let node = machine.number(&format!("sys/bus/pci/devices/{address}/numa_node"))?;
    let near = machine.cpus(&format!("sys/devices/system/node/node{node}/cpulist"));
    let far: Vec<_> = config.workers.cores.iter().filter(|core| !near.contains(core)).collect();
    if far.is_empty() {
        return Some(Check::ok(name, format!("device and workers are on node {node}")));
    }
    let found = format!("{address} is on node {node}, and workers' cores {far:?} are not");
    let mend =
        format!("workers.cores: choose among those of /sys/devices/system/node/node{node}/cpulist");
    Some(Check::warn(name, found, mend))
}

fn examine_interface(
    machine: &Machine,
    config: &Config,
    (name, interface): (&'static str, &str),
    checks: &mut Vec<Check>,
) {
    let folder = format!("sys/class/net/{interface}");
    if !machine.has(&folder) {
        let found = format!("there is no network interface {interface}");
        checks.push(Check::fail(name, found, "ip link"));
        return;
    }
    if !machine.read("proc/net/protocols").lines().any(|line| line.starts_with("XDP ")) {
        let found = "the kernel has no AF_XDP (CONFIG_XDP_SOCKETS)";
        checks.push(Check::fail(name, found, "boot a kernel that has it: Debian's own does"));
    }
    let (workers, queues) =
        (config.workers.cores.len(), machine.names(&format!("{folder}/queues")));
    let queues = queues.iter().filter(|queue| queue.starts_with("rx-")).count();
    checks.push(if queues == workers {
        Check::ok(name, format!("{interface}, by AF_XDP, a queue for each of {workers} workers"))
    } else {
        let found = format!("{interface} has {queues} receive queues for {workers} workers");
        Check::fail(name, found, format!("ethtool -L {interface} combined {workers}"))
    });
    if machine.read(&format!("{folder}/operstate")) == "down" {
        let found = format!("{interface} is down, or has no carrier");
        checks.push(Check::fail(name, found, format!("ip link set {interface} up")));
    }
    let has_address = |line: &str| line.split_whitespace().nth(5) == Some(interface);
    if machine.read("proc/net/if_inet6").lines().any(has_address) {
        let found = format!("the kernel speaks IPv6 on {interface} itself, beside the appliance");
        let mend = format!("sysctl -w net.ipv6.conf.{interface}.disable_ipv6=1");
        checks.push(Check::warn(name, found, mend));
    }
    checks.push(examine_offloads(machine, interface));
}

/// Segments that the NIC joins are longer than a buffer, and AF_XDP drivers refuse it.
fn examine_offloads(machine: &Machine, interface: &str) -> Check {
    let name = "offloads";
    let Some(text) = machine.ask("ethtool", &["--show-features", interface]) else {
        let found = format!("cannot tell those of {interface}: ethtool is missing, or fails");
        return Check::warn(name, found, "apt-get install ethtool");
    };
    let features = [
        ("large-receive-offload", "lro"),
        ("rx-gro-hw", "rx-gro-hw"),
        ("generic-receive-offload", "gro"),
    ];
    let is_on = |feature: &str| {
        text.lines().any(|line| {
            line.trim().strip_prefix(feature).is_some_and(|rest| rest.starts_with(": on"))
        })
    };
    let on: Vec<_> =
        features.iter().filter(|(name, _)| is_on(name)).map(|(_, flag)| *flag).collect();
    if on.is_empty() {
        return Check::ok(name, format!("{interface} joins no segments"));
    }
    let off: Vec<_> = on.iter().map(|flag| format!("{flag} off")).collect();
    let found = format!("{interface} joins segments ({})", on.join(", "));
    Check::warn(name, found, format!("ethtool -K {interface} {}", off.join(" ")))
}

fn examine_tap(machine: &Machine, name: &'static str) -> Check {
    if machine.has("dev/net/tun") {
        Check::ok(name, "a TAP")
    } else {
        Check::fail(name, "there is no /dev/net/tun", "modprobe tun")
    }
}

fn examine_vhost(machine: &Machine, name: &'static str) -> Check {
    if !machine.has("dev/net/tun") {
        return Check::fail(name, "there is no /dev/net/tun", "modprobe tun");
    }
    if machine.has("dev/vhost-net") {
        Check::ok(name, "a kernel interface by vhost-net")
    } else {
        let found = "there is no /dev/vhost-net";
        Check::fail(name, found, "modprobe vhost_net, or host_port.device = \"tap:NAME\"")
    }
}

/// A device's MTU, where a file tells it.
fn mtu(machine: &Machine, device: &Device) -> Option<u64> {
    let of = |interface: &str| machine.number(&format!("sys/class/net/{interface}/mtu"));
    match device {
        // A VF's is the one of its physical function, as far as the kernel knows.
        Device::Pci(address) => {
            let pf = format!("sys/bus/pci/devices/{address}/physfn/net");
            of(machine.names(&pf).first()?)
        }
        _ => of(device.interface()?),
    }
}

fn examine_mtu(machine: &Machine, config: &Config) -> Check {
    let name = "mtu";
    let ip = if config.node.locator.is_ipv4() { 20 } else { 40 };
    let overhead = match config.tunnel.encapsulation {
        // UDP and GUE.
        Encapsulation::Gue => ip + 8 + 4,
        Encapsulation::Ipip => ip,
        Encapsulation::Rewrite => 0,
    };
    let host = match &config.host_port.device {
        Device::Switch => {
            let kernels = switch::interface(machine, config);
            kernels.and_then(|name| machine.number(&format!("sys/class/net/{name}/mtu")))
        }
        device => mtu(machine, device),
    };
    let host = host.unwrap_or(TAP_MTU);
    let Some(uplink) = mtu(machine, &config.uplink.device) else {
        return Check::ok(
            name,
            format!(
                "the uplink's cannot be told; {} takes {overhead} bytes",
                config.tunnel.encapsulation.name()
            ),
        );
    };
    if uplink >= host + overhead {
        return Check::ok(
            name,
            format!(
                "the uplink's {uplink} leaves room for {overhead} bytes more than the host's {host}"
            ),
        );
    }
    let found = format!(
        "the uplink's is {uplink}, the host's {host}, and a tunnel takes {overhead}: segments are \
         kept smaller (MSS), and what is too big is answered so or fragmented"
    );
    let mend = match config.uplink.device.interface() {
        Some(interface) => {
            format!("ip link set {interface} mtu {} (and all over the fabric)", host + overhead)
        }
        None => format!("raise the fabric's and the uplink's MTU to {}", host + overhead),
    };
    Check::warn(name, found, mend)
}

/// Whether the kernel drops what comes by the host port for want of a route back there.
fn examine_rp_filter(machine: &Machine, config: &Config) -> Option<Check> {
    let name = "rp_filter";
    let host = match &config.host_port.device {
        Device::Switch => switch::interface(machine, config)?,
        device => device.interface()?.to_owned(),
    };
    let host = host.as_str();
    let services = config.services.iter().any(|service| matches!(service.address, IpAddr::V4(_)));
    if !services {
        return None;
    }
    let of = |interface: &str| {
        machine.number(&format!("proc/sys/net/ipv4/conf/{interface}/rp_filter")).unwrap_or(0)
    };
    // The kernel takes the greater one; 2 is content with any route back.
    let (all, own) = (of("all"), of(host));
    let strict = all.max(own) == 1;
    Some(if strict && config.host_port.inbound_only {
        let found = format!("{host} drops what clients send: the way back is by another interface");
        let mend =
            format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{host}.rp_filter=0");
        Check::fail(name, found, mend)
    } else {
        Check::ok(name, format!("{} on {host}", all.max(own)))
    })
}
