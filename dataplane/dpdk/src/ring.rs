//! Two ports joined by rings in memory, for tests and benches: what one transmits the
//! other receives on the queue of the same number. Never touches a network device.

use std::ptr::NonNull;
use std::sync::Arc;

use holdfast_dpdk_sys as sys;

use crate::eal::Eal;
use crate::error::{Error, c_string};
use crate::port::Device;

/// Frames that each direction of each queue of a ring pair holds; one more is refused.
const RING_FRAMES: u32 = 512;

/// Makes two devices, `net_ring_<name>a` and `net_ring_<name>b`, back to back with `queues`
/// queues (at most 16). Each direction of a queue holds 512 frames. `name` has at most 11
/// bytes.
///
/// # Errors
/// [`Error::InvalidConfig`] for zero or too many queues, [`Error::Call`] when the name is
/// taken or too long or memory is short.
pub fn ring_pair(eal: &Eal, name: &str, queues: u16) -> Result<(Device, Device), Error> {
    if queues == 0 || queues > 16 {
        return Err(Error::InvalidConfig {
            port: name.to_owned(),
            why: format!("a ring pair has 1 to 16 queues, not {queues}"),
        });
    }
    let mut rings = Rings::default();
    for queue in 0..queues {
        rings.add(&format!("{name}_ab{queue}"))?;
    }
    for queue in 0..queues {
        rings.add(&format!("{name}_ba{queue}"))?;
    }
    let rings = Arc::new(rings);
    let (a_to_b, b_to_a) = rings.0.split_at(usize::from(queues));
    let a = device(eal, &format!("{name}a"), b_to_a, a_to_b, &rings)?;
    let b = device(eal, &format!("{name}b"), a_to_b, b_to_a, &rings)?;
    Ok((a, b))
}

fn device(
    eal: &Eal,
    name: &str,
    rx: &[Ring],
    tx: &[Ring],
    rings: &Arc<Rings>,
) -> Result<Device, Error> {
    let c_name = c_string(name)?;
    let count = u32::try_from(rx.len()).unwrap_or(u32::MAX);
    let rx: Vec<*mut sys::rte_ring> = rx.iter().map(|ring| ring.0.as_ptr()).collect();
    let tx: Vec<*mut sys::rte_ring> = tx.iter().map(|ring| ring.0.as_ptr()).collect();

    let mut ports = eal.inner.ports();
    // SAFETY: both arrays hold `count` rings, which the device keeps alive (`rings`); DPDK
    // copies arrays and name; the lock makes this the only thread that adds a device.
    let id = unsafe {
        sys::rte_eth_from_rings(c_name.as_ptr(), rx.as_ptr(), count, tx.as_ptr(), count, 0)
    };
    let id = u16::try_from(id).map_err(|_| Error::from_rte_errno("rte_eth_from_rings", name))?;
    Device::from_rings(eal, &mut ports, id, Arc::clone(rings))
}

/// The rings under a pair of ports; freed when both are closed.
#[derive(Debug, Default)]
pub(crate) struct Rings(Vec<Ring>);

#[derive(Debug)]
struct Ring(NonNull<sys::rte_ring>);

// SAFETY: the rings are used by drivers, each end by the one owner of its queue; `Ring`
// itself only frees them.
unsafe impl Send for Ring {}
// SAFETY: as above; `&Ring` offers nothing.
unsafe impl Sync for Ring {}

impl Rings {
    fn add(&mut self, name: &str) -> Result<(), Error> {
        let c_name = c_string(name)?;
        // One thread at either end. DPDK rounds up to a power of two, less one.
        let flags = sys::RING_F_SP_ENQ | sys::RING_F_SC_DEQ | sys::RING_F_EXACT_SZ;
        // SAFETY: the name is NUL-terminated and copied.
        let ring = unsafe {
            sys::rte_ring_create(c_name.as_ptr(), RING_FRAMES, sys::SOCKET_ID_ANY, flags)
        };
        let ring =
            NonNull::new(ring).ok_or_else(|| Error::from_rte_errno("rte_ring_create", name))?;
        self.0.push(Ring(ring));
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let ring = self.0.as_ptr();
        let mut frame = std::ptr::null_mut();
        // SAFETY: no port uses the ring any more; it holds mbufs that drivers were given.
        while unsafe { sys::rte_ring_dequeue(ring, &mut frame) } == 0 {
            // SAFETY: the frame was taken out of the ring and has no other owner.
            unsafe { sys::rte_pktmbuf_free(frame.cast()) };
        }
        // SAFETY: as above; this is the ring's only owner.
        unsafe { sys::rte_ring_free(ring) };
    }
}
