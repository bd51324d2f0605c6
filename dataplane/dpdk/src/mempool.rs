//! Pools of mbufs, allocated once. Never grows; an empty pool is `None`.

use std::ptr::NonNull;
use std::sync::Arc;

use arrayvec::ArrayVec;
use holdfast_dpdk_sys as sys;

use crate::eal::{Eal, EalInner};
use crate::error::{Error, c_string};
use crate::mbuf::{HEADROOM, Mbuf};

/// What a [`Mempool`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MempoolConfig {
    /// How many mbufs; `2^n - 1` wastes no memory.
    pub mbufs: u32,
    /// Mbufs kept ready per lcore, at most 512 and `mbufs / 1.5`. Only threads that hold a
    /// [`ThreadRegistration`](crate::ThreadRegistration) and the EAL's own threads have one.
    pub cache: u32,
    /// Bytes of frame that an mbuf holds, the headroom of [`HEADROOM`] bytes not counted.
    /// AF_XDP needs `data_room` ≤ 3,500 or so: an mbuf with all that belongs to it must fit
    /// a page of 4,096 bytes.
    pub data_room: u16,
    /// NUMA socket, or `None` for any.
    pub socket: Option<u32>,
}

impl Default for MempoolConfig {
    fn default() -> Self {
        MempoolConfig { mbufs: 8_191, cache: 256, data_room: 2_048, socket: None }
    }
}

/// A pool of mbufs. Clones are the same pool; any thread may allocate from it and give
/// mbufs back. Its memory is freed when no handle, port or mbuf of it is left.
#[derive(Clone, Debug)]
pub struct Mempool {
    inner: Arc<MempoolInner>,
}

#[derive(Debug)]
struct MempoolInner {
    raw: NonNull<sys::rte_mempool>,
    name: String,
    data_room: u16,
    eal: Arc<EalInner>,
}

// SAFETY: DPDK's default pools are multi-producer, multi-consumer; threads without an lcore
// id bypass the per-lcore caches.
unsafe impl Send for MempoolInner {}
// SAFETY: as above; all operations go through DPDK's own synchronisation.
unsafe impl Sync for MempoolInner {}

impl Mempool {
    /// Allocates the pool. `name` is unique in the process, at most 25 bytes.
    ///
    /// # Errors
    /// [`Error::Call`] with ENOMEM when the EAL's memory (`-m`, huge pages) does not hold it,
    /// EEXIST for a name in use, EINVAL for a cache too large for the pool.
    pub fn new(eal: &Eal, name: &str, config: &MempoolConfig) -> Result<Mempool, Error> {
        let c_name = c_string(name)?;
        let room = config.data_room.saturating_add(HEADROOM);
        let socket = match config.socket {
            Some(socket) => i32::try_from(socket).unwrap_or(sys::SOCKET_ID_ANY),
            None => sys::SOCKET_ID_ANY,
        };
        let (mbufs, cache) = (config.mbufs, config.cache);
        // SAFETY: the EAL runs; the name is NUL-terminated and copied by DPDK.
        let raw =
            unsafe { sys::rte_pktmbuf_pool_create(c_name.as_ptr(), mbufs, cache, 0, room, socket) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| Error::from_rte_errno("rte_pktmbuf_pool_create", name))?;
        Ok(Mempool {
            inner: Arc::new(MempoolInner {
                raw,
                name: name.to_owned(),
                data_room: room - HEADROOM,
                eal: Arc::clone(&eal.inner),
            }),
        })
    }

    /// An empty mbuf with [`HEADROOM`] bytes in front; `None` when the pool is empty.
    #[inline]
    #[must_use]
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool lives as long as this handle.
        let raw = unsafe { sys::rte_pktmbuf_alloc(self.as_ptr()) };
        // SAFETY: a fresh mbuf belongs to nobody else.
        NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })
    }

    /// An mbuf holding a copy of `frame`; `None` when the pool is empty or `frame` is larger
    /// than [`data_room`](Self::data_room).
    #[must_use]
    pub fn alloc_copy(&self, frame: &[u8]) -> Option<Mbuf> {
        let mut mbuf = self.alloc()?;
        mbuf.extend_from_slice(frame)?;
        Some(mbuf)
    }

    /// Fills what is free of `mbufs`, all of it or, when the pool does not hold that many,
    /// nothing. Returns how many were added.
    pub fn alloc_bulk<const N: usize>(&self, mbufs: &mut ArrayVec<Mbuf, N>) -> usize {
        let have = mbufs.len();
        let wanted = mbufs.remaining_capacity();
        // `Mbuf` is a transparent, never-null pointer to an `rte_mbuf`.
        let array = mbufs.as_mut_ptr().cast::<*mut sys::rte_mbuf>();
        // SAFETY: `have` ≤ the capacity of `mbufs`.
        let free = unsafe { array.add(have) };
        let count = u32::try_from(wanted).unwrap_or(u32::MAX);
        // SAFETY: `free` has room for `wanted` pointers; the pool lives.
        if unsafe { sys::rte_pktmbuf_alloc_bulk(self.as_ptr(), free, count) } != 0 {
            return 0;
        }
        // SAFETY: DPDK wrote `wanted` fresh mbufs behind the first `have`.
        unsafe { mbufs.set_len(have + wanted) };
        wanted
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// How many mbufs the pool was made with.
    #[must_use]
    pub fn count(&self) -> u32 {
        // SAFETY: the pool lives as long as this handle; `size` never changes.
        unsafe { (*self.as_ptr()).size }
    }

    /// How many mbufs are free, caches included. Exact only while nobody allocates or frees;
    /// walks all lcores, so it is for statistics, not for the packet path.
    #[must_use]
    pub fn available(&self) -> u32 {
        // SAFETY: the pool lives as long as this handle.
        unsafe { sys::rte_mempool_avail_count(self.as_ptr()) }
    }

    /// Bytes of frame an mbuf of this pool holds behind its headroom.
    #[must_use]
    pub fn data_room(&self) -> u16 {
        self.inner.data_room
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.inner.raw.as_ptr()
    }
}

impl Drop for MempoolInner {
    fn drop(&mut self) {
        self.eal.retire(self.raw);
    }
}
