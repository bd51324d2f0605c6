//! Makes a thread of the caller known to the EAL. Never starts or pins threads.

use std::marker::PhantomData;
use std::sync::Arc;

use holdfast_dpdk_sys as sys;

use crate::eal::{Eal, EalInner};
use crate::error::Error;

/// While it lives, the thread that made it has an lcore id and with it a cache in every
/// [`Mempool`](crate::Mempool). It stays on that thread:
///
/// ```compile_fail,E0277
/// fn moved<T: Send>() {}
/// moved::<holdfast_dpdk::ThreadRegistration>();
/// ```
#[derive(Debug)]
pub struct ThreadRegistration {
    /// False on a thread that had its id before, from the EAL or another registration.
    ours: bool,
    _eal: Arc<EalInner>,
    _not_send: PhantomData<*const ()>,
}

impl Eal {
    /// Registers the calling thread; one that the EAL knows already is left as it is. A
    /// registered process cannot have DPDK secondary processes.
    ///
    /// # Errors
    /// [`Error::Call`] with ENOMEM when all lcore ids (128 on Debian 12) are taken.
    pub fn register_thread(&self) -> Result<ThreadRegistration, Error> {
        let ours = lcore() == NO_LCORE;
        // SAFETY: the EAL runs; concerns the calling thread only, which has no id yet.
        if ours && unsafe { sys::rte_thread_register() } != 0 {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("unnamed thread").to_owned();
            return Err(Error::from_rte_errno("rte_thread_register", &name));
        }
        Ok(ThreadRegistration { ours, _eal: Arc::clone(&self.inner), _not_send: PhantomData })
    }
}

impl ThreadRegistration {
    /// The thread's lcore id.
    #[must_use]
    pub fn lcore(&self) -> u32 {
        lcore()
    }
}

/// `LCORE_ID_ANY`, the id of threads that the EAL does not know.
const NO_LCORE: u32 = u32::MAX;

fn lcore() -> u32 {
    // SAFETY: reads a thread-local integer.
    unsafe { sys::rte_lcore_id() }
}

impl Drop for ThreadRegistration {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        // SAFETY: the EAL still runs (`_eal`), and this is the registered thread (not Send).
        unsafe { sys::rte_thread_unregister() };
    }
}
