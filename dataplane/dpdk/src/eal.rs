//! The environment abstraction layer: started once per process, and the token without
//! which no pool or port can be made. Never decides on arguments; the caller composes
//! them.

use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_dpdk_sys as sys;

use crate::error::{Error, c_string, rte_errno, strerror};

static STARTED: AtomicBool = AtomicBool::new(false);

/// The running EAL. Clones are the same EAL; pools, ports, queues and thread
/// registrations keep it alive. With the last of them `rte_eal_cleanup` runs, unless an
/// [`Mbuf`](crate::Mbuf) is still somewhere: then the memory stays until the process ends.
#[derive(Clone, Debug)]
pub struct Eal {
    pub(crate) inner: Arc<EalInner>,
}

#[derive(Debug)]
pub(crate) struct EalInner {
    /// Ports held by a `Device` or `Port`. The lock is also held while devices come and
    /// go, which DPDK wants done by one thread at a time.
    ports: Mutex<BTreeSet<u16>>,
    /// Set once a port takes tags off what it receives.
    strips_tags: AtomicBool,
    /// Pools whose last handle is gone while some of their mbufs are still out.
    orphans: Mutex<Vec<OrphanPool>>,
}

#[derive(Debug)]
struct OrphanPool(NonNull<sys::rte_mempool>);

// SAFETY: nothing but `rte_mempool_avail_count` and `rte_mempool_free` is done with the
// pointer, which DPDK allows from any thread, and the list's lock orders them.
unsafe impl Send for OrphanPool {}

impl Eal {
    /// Starts DPDK with `arguments` (without a program name; the crate's documentation
    /// says which go together). The calling thread becomes the main lcore and takes that
    /// lcore's CPU affinity.
    ///
    /// Real-time signals that have their default action are ignored from here on. The TAP
    /// driver would otherwise take one of them and be sent it for every frame, which
    /// interrupts system calls, costs half the throughput, and ends the process by SIGIO
    /// when the signals are blocked and their queue is full. Without one it polls.
    ///
    /// # Errors
    /// [`Error::AlreadyInitialised`] on any call after the first, whatever became of that;
    /// [`Error::EalInit`] when DPDK refuses; [`Error::EalArgument`] for what it left over.
    pub fn init<S: AsRef<str>>(arguments: &[S]) -> Result<Eal, Error> {
        let mut texts = vec![CString::from(c"holdfast")];
        for argument in arguments {
            texts.push(c_string(argument.as_ref())?);
        }
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(Error::AlreadyInitialised);
        }

        // DPDK and getopt write to the array and keep pointers into the texts for as long
        // as the process lives, and so do they: both are given away.
        let mut argv: Vec<*mut c_char> = texts.into_iter().map(CString::into_raw).collect();
        let argc = argv.len();
        argv.push(std::ptr::null_mut());
        let argv = argv.leak();

        // SAFETY: changes only the disposition of signals that nothing handles.
        unsafe { sys::holdfast_ignore_realtime_signals() };
        // Once is enough: under a service manager both end in the same journal.
        // SAFETY: stores a stream that is open for as long as the process lives.
        unsafe { sys::holdfast_log_to_stderr() };
        let parsed = init_raw(argc, argv);
        let Ok(parsed) = usize::try_from(parsed) else {
            return Err(Error::EalInit {
                reason: strerror(rte_errno()),
                arguments: join(arguments),
            });
        };
        let eal = Eal {
            inner: Arc::new(EalInner {
                ports: Mutex::new(BTreeSet::new()),
                strips_tags: AtomicBool::new(false),
                orphans: Mutex::new(Vec::new()),
            }),
        };
        // getopt moved what it did not understand behind what it did.
        if let Some(&left) = argv[..argc].get(parsed + 1) {
            // SAFETY: all `argc` entries are texts made by `CString::into_raw` above.
            let left = unsafe { std::ffi::CStr::from_ptr(left) };
            return Err(Error::EalArgument { argument: left.to_string_lossy().into_owned() });
        }
        Ok(eal)
    }

    /// Frequency of [`tsc`](crate::tsc), ticks per second.
    #[must_use]
    pub fn tsc_hz(&self) -> u64 {
        // SAFETY: reads a value that `rte_eal_init` stored.
        unsafe { sys::rte_get_tsc_hz() }
    }
}

fn init_raw(argc: usize, argv: &mut [*mut c_char]) -> c_int {
    let argc = c_int::try_from(argc).unwrap_or(c_int::MAX);
    // SAFETY: `argv` holds `argc` texts and a final NULL, none of which is ever freed, and
    // `STARTED` lets only one thread come here, once.
    unsafe { sys::rte_eal_init(argc, argv.as_mut_ptr()) }
}

fn join<S: AsRef<str>>(arguments: &[S]) -> String {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    arguments.join(" ")
}

/// The version of the DPDK library in use, such as `DPDK 22.11.4`.
#[must_use]
pub fn version() -> String {
    // SAFETY: returns a static NUL-terminated text; needs no EAL.
    let text = unsafe { sys::rte_version() };
    // SAFETY: `text` is such a text.
    let text = unsafe { std::ffi::CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

impl EalInner {
    /// The ports in use; hold it while a device comes or goes.
    pub(crate) fn ports(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether mbufs may come without their tags.
    pub(crate) fn strips_tags(&self) -> bool {
        self.strips_tags.load(Ordering::Relaxed)
    }

    /// From now on they may.
    pub(crate) fn strip_tags(&self) {
        self.strips_tags.store(true, Ordering::Relaxed);
    }

    /// Takes a pool whose last handle is gone and frees it once all its mbufs are back.
    pub(crate) fn retire(&self, pool: NonNull<sys::rte_mempool>) {
        let mut orphans = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        orphans.push(OrphanPool(pool));
        free_full(&mut orphans);
    }
}

/// Frees the pools that all mbufs have come back to. Mbufs carry no handle to their pool,
/// so this count is what stands between `Mbuf::drop` and freed memory. It is exact in the
/// one direction that matters: nobody can allocate from an orphan, so objects only move
/// from mbufs to caches to the ring, and DPDK counts the ring before the caches.
fn free_full(orphans: &mut Vec<OrphanPool>) {
    orphans.retain(|orphan| {
        let pool = orphan.0.as_ptr();
        // SAFETY: a pool in this list has not been freed.
        let size = unsafe { (*pool).size };
        // SAFETY: as above.
        let available = unsafe { sys::rte_mempool_avail_count(pool) };
        if available < size {
            return true;
        }
        // SAFETY: no handle and no mbuf of this pool exists any more.
        unsafe { sys::rte_mempool_free(pool) };
        false
    });
}

impl Drop for EalInner {
    fn drop(&mut self) {
        let orphans = self.orphans.get_mut();
        let orphans = orphans.unwrap_or_else(PoisonError::into_inner);
        free_full(orphans);
        if !orphans.is_empty() {
            return;
        }
        // SAFETY: pools, ports, queues and thread registrations hold this object, so none
        // exists; mbufs do not, but each would keep its pool in `orphans`.
        unsafe { sys::rte_eal_cleanup() };
    }
}
