//! Which multicast addresses the uplink receives: those that the kernel listens to on the host port's
//! interface, as it would have told the NIC itself. A virtual function may be allowed these and not
//! all. Never touches a packet.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::time::{Duration, Instant};

use anyhow::Context;
use holdfast_dpdk::{MacAddress, Port};
use tracing::{info, warn};

use crate::config::{Config, Device};

/// The kernel's list, of all interfaces of this network namespace.
const LIST: &str = "/proc/net/dev_mcast";
/// Between two looks: a new address of the kernel's is found by its neighbours so much later.
const PAUSE: Duration = Duration::from_millis(250);

/// Passes the host port's multicast addresses on to the uplink.
#[derive(Debug)]
pub struct MulticastRelay {
    interface: String,
    told: BTreeSet<[u8; 6]>,
    next: Instant,
    /// The device takes no list: it was told to receive all.
    all: bool,
}

impl MulticastRelay {
    /// A relay for this configuration; `None` when the uplink is no PCI device, or the kernel has no
    /// interface at the host port.
    #[must_use]
    pub fn new(config: &Config) -> Option<MulticastRelay> {
        let Device::Pci(_) = config.uplink.device else { return None };
        let interface = kernel_interface(&config.host_port.device)?.to_owned();
        let (told, next) = (BTreeSet::new(), Instant::now());
        Some(MulticastRelay { interface, told, next, all: false })
    }

    /// Looks, if it is time, and passes a change on.
    ///
    /// # Errors
    /// When the kernel does not say, or the device takes neither a list nor all.
    pub fn relay(&mut self, uplink: &[Port], now: Instant) -> anyhow::Result<()> {
        if self.all || now < self.next {
            return Ok(());
        }
        self.next = now + PAUSE;
        let list = read_to_string(LIST).with_context(|| format!("reading {LIST}"))?;
        let groups = groups_of(&list, &self.interface);
        if groups == self.told {
            return Ok(());
        }
        let addresses: Vec<_> = groups.iter().copied().map(MacAddress).collect();
        // Tried once per change: an error that stays must not fill the log.
        self.told = groups;
        for port in uplink {
            let Err(refused) = port.set_multicast(&addresses) else { continue };
            self.all = true;
            warn!("{refused}: the uplink receives all multicast");
            port.receive_all_multicast()?;
        }
        if !self.all {
            info!("the uplink receives the host port's {} multicast addresses", self.told.len());
        }
        Ok(())
    }
}

/// The kernel's side of a host port that is an interface of the kernel's.
fn kernel_interface(host_port: &Device) -> Option<&str> {
    match host_port {
        Device::Tap { name } | Device::Vhost { name } => Some(name),
        Device::Vdev { args, .. } => args.split(',').find_map(|arg| arg.strip_prefix("iface=")),
        Device::Pci(_) | Device::Interface(_) | Device::Switch => None,
    }
}

/// The Ethernet addresses of an interface in the kernel's list: lines of index, name, two counts and
/// the address in hexadecimal.
fn groups_of(list: &str, interface: &str) -> BTreeSet<[u8; 6]> {
    let address = |line: &str| {
        let [_, name, _, _, address] = line.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
            return None;
        };
        let bits = u64::from_str_radix(address, 16).ok().filter(|_| address.len() == 12)?;
        let [_, _, mac @ ..] = bits.to_be_bytes();
        (name == interface).then_some(mac)
    };
    list.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "\
1    lo              1     0     333300000001
4    host0           1     0     333300000001
4    host0           2     0     01005e000001
4    host0           1     0     3333ff000002
5    host00          1     0     3333ff000003
6    ib0             1     0     00ffffffff12401bffff000000000000ffffffff
";

    #[test]
    fn groups_are_those_of_the_interface() {
        let groups = groups_of(KERNEL, "host0");
        let expected =
            [[0x33, 0x33, 0, 0, 0, 1], [0x01, 0x00, 0x5e, 0, 0, 1], [0x33, 0x33, 0xff, 0, 0, 2]];
        assert_eq!(groups, BTreeSet::from(expected));
        assert!(groups_of(KERNEL, "host").is_empty());
        assert!(groups_of(KERNEL, "ib0").is_empty());
        assert!(
            groups_of("host0\n4 host0 1 0 3333\n4 host0 1 0 zzzz00000001\n", "host0").is_empty()
        );
    }

    #[test]
    fn the_kernel_has_an_interface_at_a_tap_and_at_vhost() {
        let device = |text: &str| text.parse::<Device>().expect("a device");
        for (text, interface) in [
            ("tap:host0", Some("host0")),
            ("vhost:host2", Some("host2")),
            ("virtio_user0,path=/dev/vhost-net,iface=host1,queues=2", Some("host1")),
            ("vhost:host2", Some("host2")),
            ("virtio_user0,path=/run/vhost.sock", None),
            ("net_ring0", None),
            ("0000:3b:02.1", None),
            ("switch", None),
        ] {
            assert_eq!(kernel_interface(&device(text)), interface, "{text}");
        }
    }
}
