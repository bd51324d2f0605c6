//! What a device says of itself: its link has changed, it was reset, it is gone. Only notes it, for
//! whoever asks; DPDK tells it on a thread of its own.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_dpdk_sys as sys;

/// What was told of a device since its port was started.
#[derive(Debug, Default)]
pub(crate) struct Events {
    link_changes: AtomicU64,
    reset: AtomicBool,
    removed: AtomicBool,
}

/// Why a device is lost to its port, which can only be closed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It is gone, or the kernel wants it back.
    Removed,
    /// It was reset, as by its physical function: its queues are no more.
    Reset,
    /// It takes frames and sends none: it was reset without saying so, or hangs.
    Stuck,
}

impl Events {
    /// How often the device said that its link has changed.
    pub(crate) fn link_changes(&self) -> u64 {
        self.link_changes.load(Ordering::Acquire)
    }

    /// Why it is lost, if it is.
    pub(crate) fn loss(&self) -> Option<Loss> {
        if self.removed.load(Ordering::Acquire) {
            return Some(Loss::Removed);
        }
        self.reset.load(Ordering::Acquire).then_some(Loss::Reset)
    }
}

const OF_PORT: [sys::rte_eth_event_type; 3] =
    [sys::RTE_ETH_EVENT_INTR_LSC, sys::RTE_ETH_EVENT_INTR_RMV, sys::RTE_ETH_EVENT_INTR_RESET];

/// DPDK tells `events` of a port while this is there.
#[derive(Debug)]
pub(crate) struct Listener {
    port: u16,
    /// DPDK's name of the device behind it, where it has one.
    device: Option<CString>,
    /// DPDK holds a pointer into it.
    events: Arc<Events>,
}

impl Listener {
    /// Listens to a port and to the device that it is on, null where there is none. What cannot be
    /// listened to is never told.
    pub(crate) fn new(port: u16, device: *const sys::rte_device) -> Listener {
        let events = Arc::new(Events::default());
        let argument = Arc::as_ptr(&events).cast_mut().cast::<c_void>();
        for event in OF_PORT {
            // SAFETY: a valid port, a function that lives as long as the process, and an argument
            // that lives until `drop` has taken the function back.
            unsafe {
                sys::rte_eth_dev_callback_register(port, event, Some(on_port_event), argument);
            }
        }
        let device = device_name(device);
        if let Some(name) = &device {
            // SAFETY: as above; DPDK copies the name.
            unsafe {
                sys::rte_dev_event_callback_register(
                    name.as_ptr(),
                    Some(on_device_event),
                    argument,
                );
            }
        }
        Listener { port, device, events }
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        const EAGAIN: c_int = 11;
        let argument = Arc::as_ptr(&self.events).cast_mut().cast::<c_void>();
        for event in OF_PORT {
            // The function runs at this moment: a few instructions, and it is over.
            // SAFETY: the same values as were registered.
            while unsafe {
                sys::rte_eth_dev_callback_unregister(
                    self.port,
                    event,
                    Some(on_port_event),
                    argument,
                )
            } == -EAGAIN
            {
                std::hint::spin_loop();
            }
        }
        if let Some(name) = &self.device {
            // SAFETY: as above.
            while unsafe {
                sys::rte_dev_event_callback_unregister(
                    name.as_ptr(),
                    Some(on_device_event),
                    argument,
                )
            } == -EAGAIN
            {
                std::hint::spin_loop();
            }
        }
    }
}

fn device_name(device: *const sys::rte_device) -> Option<CString> {
    if device.is_null() {
        return None;
    }
    // SAFETY: the device of a valid port.
    let name = unsafe { sys::rte_dev_name(device) };
    // SAFETY: NULL, or a NUL-terminated text of DPDK's.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_owned())
}

/// # Safety
/// Registered with a pointer to [`Events`] that outlives the registration.
unsafe extern "C" fn on_port_event(
    _port: u16,
    event: sys::rte_eth_event_type,
    argument: *mut c_void,
    _result: *mut c_void,
) -> c_int {
    // SAFETY: what was registered.
    let events = unsafe { &*argument.cast::<Events>() };
    match event {
        sys::RTE_ETH_EVENT_INTR_LSC => {
            events.link_changes.fetch_add(1, Ordering::AcqRel);
        }
        sys::RTE_ETH_EVENT_INTR_RMV => events.removed.store(true, Ordering::Release),
        sys::RTE_ETH_EVENT_INTR_RESET => events.reset.store(true, Ordering::Release),
        _ => {}
    }
    0
}

/// # Safety
/// As [`on_port_event`].
unsafe extern "C" fn on_device_event(
    _name: *const c_char,
    event: sys::rte_dev_event_type,
    argument: *mut c_void,
) {
    // SAFETY: what was registered.
    let events = unsafe { &*argument.cast::<Events>() };
    if event == sys::RTE_DEV_EVENT_REMOVE {
        events.removed.store(true, Ordering::Release);
    }
}
