//! Holding a TAP interface for the processes that work on it one after the other. Needs no EAL, and
//! never reads or writes a frame.

use std::os::fd::{FromRawFd, OwnedFd};

use holdfast_dpdk_sys as sys;

use crate::error::{Error, c_string, strerror};
use crate::port_info::MacAddress;

/// Longest name of a network interface (`IFNAMSIZ` without its zero byte).
const NAME_MAX: usize = 15;

/// Keeps a TAP interface and its carrier for as long as it is not dropped, also while no process
/// has a `net_tap` port on it. What the kernel sends meanwhile is lost; addresses, routes and
/// routing sessions through the interface stay.
///
/// It is a queue of the interface that is detached: the kernel takes the carrier away with the last
/// queue, attached or not.
#[derive(Debug)]
pub struct HeldTap {
    _queue: OwnedFd,
}

impl HeldTap {
    /// Makes the interface, down, or takes it if it is there, and gives it this Ethernet address.
    ///
    /// # Errors
    /// [`Error::Tap`] when the kernel refuses: another kind of interface has the name, or there is
    /// no `/dev/net/tun`, or CAP_NET_ADMIN is missing.
    pub fn hold(interface: &str, mac: MacAddress) -> Result<HeldTap, Error> {
        let refused = |reason| Error::Tap { interface: interface.to_owned(), reason };
        if interface.is_empty() || interface.len() > NAME_MAX {
            return Err(refused(format!("a name has 1 to {NAME_MAX} characters")));
        }
        let name = c_string(interface)?;
        // SAFETY: reads a NUL-terminated text and the 6 bytes of an address, and keeps neither.
        let queue = unsafe { sys::holdfast_hold_tap(name.as_ptr(), mac.0.as_ptr()) };
        if queue < 0 {
            return Err(refused(strerror(queue.saturating_abs())));
        }
        // SAFETY: opened just now, and nobody else has it.
        Ok(HeldTap { _queue: unsafe { OwnedFd::from_raw_fd(queue) } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_refused() {
        for name in ["", "0123456789abcdef", "a\0b"] {
            assert!(HeldTap::hold(name, MacAddress([2, 0, 0, 0, 0, 1])).is_err(), "{name:?}");
        }
    }
}
