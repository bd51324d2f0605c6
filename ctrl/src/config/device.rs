//! The forms in which a configuration names a network device, and what the EAL calls them. Never
//! looks whether the device exists.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Longest name of a network interface (`IFNAMSIZ` without its zero byte).
const INTERFACE_NAME_MAX: usize = 15;

/// A device that becomes a DPDK port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A PCI function that is bound to a driver for user space, with its domain:
    /// `0000:3b:02.0`.
    Pci(String),
    /// A DPDK virtual device.
    Vdev {
        /// The driver with a suffix that makes it unique, as in `net_ring0`.
        name: String,
        /// What follows the first comma; may be empty.
        args: String,
    },
    /// A network interface of the kernel, driven through AF_XDP.
    Interface(String),
    /// A TAP interface, which is made with this name.
    Tap {
        /// Name of the interface.
        name: String,
    },
    /// A kernel interface by vhost-net, which is made with this name: the kernel copies, not the worker.
    Vhost {
        /// Name of the interface.
        name: String,
    },
    /// No port of its own: the uplink's, and the NIC's switch behind it. Only for the host port.
    Switch,
}

/// Descriptors of a queue that vhost-net serves: the most that it takes.
const VHOST_QUEUE: u16 = 1024;

/// What [`Device::Switch`] is called.
const SWITCH: &str = "switch";

/// Why a text names no device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "expected a PCI address (\"0000:3b:02.0\"), a DPDK virtual device (\"net_ring0,ARGUMENTS\"), \
     a TAP (\"tap:NAME\"), vhost-net (\"vhost:NAME\"), a network interface (\"eth1\") of at most 15 characters or, for the host \
     port, \"switch\""
)]
pub struct DeviceError;

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Device, DeviceError> {
        if text == SWITCH {
            return Ok(Device::Switch);
        }
        if let Some(name) = text.strip_prefix("tap:") {
            let name = interface_name(name).ok_or(DeviceError)?;
            return Ok(Device::Tap { name });
        }
        if let Some(name) = text.strip_prefix("vhost:") {
            let name = interface_name(name).ok_or(DeviceError)?;
            return Ok(Device::Vhost { name });
        }
        if text.starts_with("net_") || text.starts_with("virtio_user") {
            return vdev(text).ok_or(DeviceError);
        }
        if let Some(address) = pci_address(text) {
            return Ok(Device::Pci(address));
        }
        interface_name(text).map(Device::Interface).ok_or(DeviceError)
    }
}

fn vdev(text: &str) -> Option<Device> {
    let (name, args) = text.split_once(',').unwrap_or((text, ""));
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let sound = name.chars().all(word) && !text.contains(char::is_whitespace);
    sound.then(|| Device::Vdev { name: name.to_owned(), args: args.to_owned() })
}

fn interface_name(text: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | ',' | '=' | '"');
    let sound = !text.is_empty() && text.len() <= INTERFACE_NAME_MAX && text.chars().all(allowed);
    (sound && text != "." && text != "..").then(|| text.to_owned())
}

/// `DDDD:BB:DD.F` or `BB:DD.F`, in hexadecimal; gives the form with the domain.
fn pci_address(text: &str) -> Option<String> {
    let (bus_device, function) = text.rsplit_once('.')?;
    let mut parts = bus_device.rsplit(':');
    let (device, bus, domain) = (parts.next()?, parts.next()?, parts.next().unwrap_or("0000"));
    let hex = |part: &str, digits: usize, max: u32| {
        part.len() == digits && u32::from_str_radix(part, 16).is_ok_and(|number| number <= max)
    };
    let sound = parts.next().is_none()
        && hex(domain, 4, 0xffff)
        && hex(bus, 2, 0xff)
        && hex(device, 2, 0x1f)
        && hex(function, 1, 7);
    sound.then(|| format!("{domain}:{bus}:{device}.{function}").to_lowercase())
}

impl fmt::Display for Device {
    /// The form that [`Device::from_str`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Pci(address) => f.write_str(address),
            Device::Vdev { name, args } if args.is_empty() => f.write_str(name),
            Device::Vdev { name, args } => write!(f, "{name},{args}"),
            Device::Interface(name) => f.write_str(name),
            Device::Tap { name } => write!(f, "tap:{name}"),
            Device::Vhost { name } => write!(f, "vhost:{name}"),
            Device::Switch => f.write_str(SWITCH),
        }
    }
}

impl Device {
    /// The name that DPDK knows the port by: for finding its port number. `index` tells the
    /// devices of one process apart.
    #[must_use]
    pub fn port_name(&self, index: usize) -> String {
        match self {
            Device::Pci(address) => address.clone(),
            Device::Vdev { name, .. } => name.clone(),
            Device::Interface(_) => format!("net_af_xdp{index}"),
            Device::Tap { .. } => format!("net_tap{index}"),
            Device::Vhost { .. } => format!("virtio_user{index}"),
            Device::Switch => SWITCH.to_owned(),
        }
    }

    /// What is attached to get this device with `queues` queue pairs; nothing for a PCI device,
    /// which the EAL finds by itself (`--allow`), and for a switch, which is no device. AF_XDP is one device per queue: veth has no
    /// "combined" channels, which the driver wants for more. `mac` is the address of a TAP, or of
    /// vhost-net's interface; the other devices have theirs. A TAP outlives the daemon: without carrier, but with its
    /// addresses and routes, for the next daemon to take over. `role` tells the devices of a
    /// server apart.
    #[must_use]
    pub fn eal_vdevs(&self, role: u16, queues: u16, mac: Option<MacAddress>) -> Vec<String> {
        match self {
            Device::Pci(_) | Device::Switch => Vec::new(),
            Device::Vdev { .. } => vec![self.to_string()],
            Device::Interface(interface) => (0..queues)
                .map(|queue| {
                    let index = role * queues + queue;
                    format!("net_af_xdp{index},iface={interface},start_queue={queue}")
                })
                .collect(),
            Device::Tap { name: interface } => {
                let mac = mac.map(|mac| format!(",mac={mac}")).unwrap_or_default();
                vec![format!("net_tap{role},iface={interface}{mac},persist")]
            }
            Device::Vhost { name: interface } => {
                let mac = mac.map(|mac| format!(",mac={mac}")).unwrap_or_default();
                vec![format!(
                    "virtio_user{role},path=/dev/vhost-net,iface={interface}{mac},queues={queues},\
                     queue_size={VHOST_QUEUE}"
                )]
            }
        }
    }

    /// The interface of the kernel that stands behind the device, as far as the text tells.
    #[must_use]
    pub fn interface(&self) -> Option<&str> {
        match self {
            Device::Pci(_) | Device::Switch => None,
            Device::Interface(name) | Device::Tap { name } | Device::Vhost { name } => Some(name),
            Device::Vdev { args, .. } => args.split(',').find_map(|arg| arg.strip_prefix("iface=")),
        }
    }
}

/// An Ethernet address of one station (never a group address).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no address of a station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected the Ethernet address of one station, as in \"02:00:00:00:00:01\"")]
pub struct MacAddressError;

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<MacAddress, MacAddressError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(MacAddressError)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacAddressError)?;
        }
        let group = bytes[0] & 1 == 1;
        if parts.next().is_some() || group || bytes == [0; 6] {
            return Err(MacAddressError);
        }
        Ok(MacAddress(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vdev(name: &str, args: &str) -> Device {
        Device::Vdev { name: name.to_owned(), args: args.to_owned() }
    }

    #[test]
    fn knows_the_forms_of_a_device() {
        let tap = Device::Tap { name: "host0".to_owned() };
        let rows = [
            ("0000:3b:02.0", Device::Pci("0000:3b:02.0".to_owned())),
            ("3B:02.0", Device::Pci("0000:3b:02.0".to_owned())),
            ("net_ring0", vdev("net_ring0", "")),
            ("net_tap0,iface=host0", vdev("net_tap0", "iface=host0")),
            ("virtio_user0,path=/dev/vhost-net", vdev("virtio_user0", "path=/dev/vhost-net")),
            ("eth1", Device::Interface("eth1".to_owned())),
            ("eth1.100", Device::Interface("eth1.100".to_owned())),
            ("tap:host0", tap),
            ("vhost:host0", Device::Vhost { name: "host0".to_owned() }),
            ("switch", Device::Switch),
            ("switch1", Device::Interface("switch1".to_owned())),
        ];
        for (text, device) in rows {
            assert_eq!(text.parse(), Ok(device), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_device() {
        let rows = [
            "",
            "tap:",
            "vhost:",
            "a name",
            "interface-too-long",
            "eth1,x",
            "net_ring 0",
            "00:3b:02.0.1",
        ];
        for text in rows.iter().chain(&["0000:3b:20.0", "0000:3b:02.8", "..", "tap:a/b"]) {
            assert_eq!(text.parse::<Device>(), Err(DeviceError), "{text}");
        }
    }

    #[test]
    fn says_what_the_eal_wants_to_hear() {
        let vdev = |text: &str, mac: Option<&str>| {
            let device: Device = text.parse().expect("a device");
            device.eal_vdevs(1, 2, mac.map(|mac| mac.parse().expect("an address")))
        };
        let rows: [(_, _, &[&str]); 6] = [
            ("0000:3b:02.0", None, &[]),
            ("net_ring0", None, &["net_ring0"]),
            (
                "eth1",
                None,
                &["net_af_xdp2,iface=eth1,start_queue=0", "net_af_xdp3,iface=eth1,start_queue=1"],
            ),
            ("tap:host0", None, &["net_tap1,iface=host0,persist"]),
            (
                "vhost:host0",
                Some("02:00:00:00:00:0a"),
                &["virtio_user1,path=/dev/vhost-net,iface=host0,mac=02:00:00:00:00:0a,queues=2,\
                   queue_size=1024"],
            ),
            (
                "tap:host0",
                Some("02:00:00:00:00:0A"),
                &["net_tap1,iface=host0,mac=02:00:00:00:00:0a,persist"],
            ),
        ];
        for (text, mac, expected) in rows {
            assert_eq!(vdev(text, mac), expected, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_station() {
        for text in ["", "02:00:00:00:00", "2:0:0:0:0:1", "01:00:5e:00:00:01", "00:00:00:00:00:00"]
        {
            assert_eq!(text.parse::<MacAddress>(), Err(MacAddressError), "{text}");
        }
    }
}
