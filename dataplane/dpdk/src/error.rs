//! What can go wrong below the dataplane, told so that an operator can act on it. Never
//! a bare errno.

use std::ffi::{CStr, CString, c_int};

use holdfast_dpdk_sys as sys;

/// A refusal by DPDK, by a driver, or by this crate on their behalf.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// `Eal::init` was called before; DPDK cannot be started twice in a process.
    #[error("the EAL was already initialised in this process; it starts only once")]
    AlreadyInitialised,

    /// `rte_eal_init` failed. What it printed on stderr says more.
    #[error("the EAL did not start: {reason} (arguments: {arguments})")]
    EalInit {
        /// The text of `rte_errno`.
        reason: String,
        /// The arguments it was given.
        arguments: String,
    },

    /// `rte_eal_init` left an argument unread.
    #[error("EAL argument not understood: {argument:?}")]
    EalArgument {
        /// The first argument that was left.
        argument: String,
    },

    /// The kernel does not give that much memory.
    #[error("{mib} MiB of memory are not to be had")]
    Memory {
        /// How much was asked for, in MiB.
        mib: usize,
    },

    /// A TAP interface cannot be held.
    #[error("cannot make or take the TAP {interface:?}: {reason}")]
    Tap {
        /// Its name.
        interface: String,
        /// The kernel's error.
        reason: String,
    },

    /// No port has this name or index.
    #[error("no DPDK port {wanted:?}; there are: {}", list(.known))]
    UnknownPort {
        /// The name or index asked for.
        wanted: String,
        /// The names of the ports there are.
        known: Vec<String>,
    },

    /// The port is already held by another `Device` or `Port` of this process, or a device
    /// that exists was to be attached.
    #[error("DPDK port {port:?} exists already in this process and is in use")]
    PortInUse {
        /// The port's name.
        port: String,
    },

    /// More queues asked for than the device has.
    #[error(
        "DPDK port {port:?} has {available} {direction} queue(s), {wanted} are wanted; \
         use fewer workers or a device with more queues"
    )]
    TooFewQueues {
        /// The port's name.
        port: String,
        /// `receive` or `transmit`.
        direction: &'static str,
        /// How many the configuration asks for.
        wanted: u16,
        /// How many the device offers.
        available: u16,
    },

    /// A queue count of zero, not one mempool for each receive queue, or an MTU outside the
    /// device's range.
    #[error("DPDK port {port:?}: {why}")]
    InvalidConfig {
        /// The port's name.
        port: String,
        /// What is wrong with it.
        why: String,
    },

    /// A frame of the port's MTU does not fit an mbuf of the pool.
    #[error(
        "DPDK port {port:?} with MTU {mtu} receives frames of {frame_bytes} bytes, but an \
         mbuf holds {room_bytes}; make the pool's data room larger or the MTU smaller"
    )]
    BufferTooSmall {
        /// The port's name.
        port: String,
        /// The MTU, bytes.
        mtu: u16,
        /// The largest frame at that MTU, bytes.
        frame_bytes: u32,
        /// What an mbuf of the pool holds, bytes.
        room_bytes: u32,
    },

    /// A receive queue could not be set up; often its mempool has too few mbufs left.
    #[error(
        "DPDK port {port:?} receive queue {queue} could not be set up: {reason}; its mempool \
         {pool:?} has {available} mbufs left, and drivers take one per receive descriptor \
         (net_af_xdp always 2048)"
    )]
    RxQueue {
        /// The port's name.
        port: String,
        /// The queue's number.
        queue: u16,
        /// The driver's error.
        reason: String,
        /// The queue's mempool.
        pool: String,
        /// Mbufs left in it.
        available: u32,
    },

    /// A text given to DPDK holds a NUL byte.
    #[error("{text:?} holds a NUL byte")]
    NulByte {
        /// The text.
        text: String,
    },

    /// A call into DPDK failed.
    #[error("{call} failed for {subject:?}: {reason}")]
    Call {
        /// The DPDK function.
        call: &'static str,
        /// The port, pool or device it was about.
        subject: String,
        /// The positive errno.
        errno: i32,
        /// Its text.
        reason: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(", ")
}

impl Error {
    /// The error of `call` from a negative return value.
    pub(crate) fn from_code(call: &'static str, subject: &str, code: c_int) -> Error {
        let errno = code.saturating_abs();
        let mut reason = strerror(errno);
        if errno == 1 {
            // Drivers return a bare -1 for anything; it reads as EPERM.
            reason.push_str(" (or the driver gave no reason; see its log lines)");
        }
        Error::Call { call, subject: subject.to_owned(), errno, reason }
    }

    /// The error of `call` from this thread's `rte_errno`.
    pub(crate) fn from_rte_errno(call: &'static str, subject: &str) -> Error {
        Error::from_code(call, subject, rte_errno())
    }
}

/// Turns DPDK's "zero or negative errno" into a `Result`.
pub(crate) fn check(call: &'static str, subject: &str, code: c_int) -> Result<(), Error> {
    if code < 0 {
        return Err(Error::from_code(call, subject, code));
    }
    Ok(())
}

/// This thread's `rte_errno`.
pub(crate) fn rte_errno() -> c_int {
    // SAFETY: reads a thread-local integer of libdpdk.
    unsafe { sys::holdfast_rte_errno() }
}

/// DPDK's text of a positive errno.
pub(crate) fn strerror(errno: c_int) -> String {
    // SAFETY: takes any integer, returns a NUL-terminated text in a thread-local buffer.
    let text = unsafe { sys::rte_strerror(errno) };
    // SAFETY: `text` is such a text, and is copied before this thread's next call.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

/// `text` for C.
pub(crate) fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::NulByte { text: text.to_owned() })
}
