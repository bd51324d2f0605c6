//! One packet in DPDK's memory, with one owner. Never copied or cloned; dropping it gives
//! it back to its pool.

use std::ptr::NonNull;

use holdfast_dpdk_sys as sys;

/// Bytes free in front of a frame in a fresh or received mbuf, where an encapsulation goes.
pub const HEADROOM: u16 = sys::RTE_PKTMBUF_HEADROOM as u16;

/// An owned packet buffer. It has the layout of a non-null `rte_mbuf` pointer, so an array
/// of them is what drivers take and fill. Lengths are in bytes.
///
/// A driver may hand over a frame in several segments ([`is_contiguous`](Self::is_contiguous)
/// is false); `data`, `prepend` and `trim_front` then work on the first one, and what
/// changes the end of the frame refuses.
///
/// One owner means that it cannot be sent twice:
///
/// ```compile_fail,E0382
/// # fn example(mbuf: holdfast_dpdk::Mbuf, burst: &mut arrayvec::ArrayVec<holdfast_dpdk::Mbuf, 8>) {
/// burst.push(mbuf);
/// burst.push(mbuf);
/// # }
/// ```
#[repr(transparent)]
#[derive(Debug)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

const _: () = assert!(size_of::<Mbuf>() == size_of::<*mut sys::rte_mbuf>());

// SAFETY: an mbuf has one owner and its pool takes it back from any thread.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// Takes ownership of a DPDK mbuf.
    ///
    /// # Safety
    /// `raw` is a valid mbuf, direct and with reference count 1, and nobody else uses it.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: NonNull<sys::rte_mbuf>) -> Mbuf {
        Mbuf(raw)
    }

    /// An empty mbuf of this one's pool, with [`HEADROOM`] bytes in front; `None` when the pool is
    /// empty.
    #[must_use]
    pub fn alloc_like(&self) -> Option<Mbuf> {
        // SAFETY: pools with mbufs out are not freed, so this one's lives.
        let raw = unsafe { sys::rte_pktmbuf_alloc(self.header().pool) };
        // SAFETY: a fresh mbuf belongs to nobody else.
        NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })
    }

    #[inline]
    fn header(&self) -> &sys::rte_mbuf {
        // SAFETY: the mbuf is valid while owned, and only its owner writes to it.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn header_mut(&mut self) -> &mut sys::rte_mbuf {
        // SAFETY: as in `header`, and `&mut self` excludes every other reference.
        unsafe { self.0.as_mut() }
    }

    /// Where the first segment's data starts.
    #[inline]
    fn start(&self) -> *mut u8 {
        let header = self.header();
        let buffer = header.buf_addr.cast::<u8>();
        // SAFETY: `data_off` ≤ `buf_len` is DPDK's invariant, kept by the methods below.
        unsafe { buffer.add(usize::from(header.data_off)) }
    }

    /// The bytes of the first segment: the whole frame if [`is_contiguous`](Self::is_contiguous).
    #[inline]
    #[must_use]
    pub fn data(&self) -> &[u8] {
        let length = usize::from(self.header().data_len);
        // SAFETY: `data_off + data_len` ≤ `buf_len`, in memory that the pool zeroed at its
        // creation and that only the owner of the mbuf writes to.
        unsafe { std::slice::from_raw_parts(self.start(), length) }
    }

    /// As [`data`](Self::data), to write to.
    #[inline]
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let length = usize::from(self.header().data_len);
        // SAFETY: as in `data`, and `&mut self` excludes every other reference.
        unsafe { std::slice::from_raw_parts_mut(self.start(), length) }
    }

    /// Length of the whole frame, all segments.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.header().pkt_len as usize
    }

    /// Whether the frame has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the whole frame is in one segment.
    #[inline]
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.header().nb_segs == 1
    }

    /// Bytes free in front of the data.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> usize {
        usize::from(self.header().data_off)
    }

    /// Bytes free behind the first segment's data.
    #[inline]
    #[must_use]
    pub fn tailroom(&self) -> usize {
        let header = self.header();
        usize::from(header.buf_len - header.data_off - header.data_len)
    }

    /// Makes the frame `count` bytes longer at its front and returns them, unwritten; `None`,
    /// and nothing changed, when the headroom is smaller.
    #[inline]
    #[must_use]
    pub fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        let short = u16::try_from(count).ok()?;
        let header = self.header_mut();
        let data_off = header.data_off.checked_sub(short)?;
        // Cannot overflow while `data_off + data_len` ≤ `buf_len`, a u16.
        let data_len = header.data_len.checked_add(short)?;
        header.data_off = data_off;
        header.data_len = data_len;
        header.pkt_len += u32::from(short);
        Some(&mut self.data_mut()[..count])
    }

    /// Cuts `count` bytes off the front of the frame; `None`, and nothing changed, when the
    /// first segment is shorter.
    #[inline]
    #[must_use]
    pub fn trim_front(&mut self, count: usize) -> Option<()> {
        let short = u16::try_from(count).ok()?;
        let header = self.header_mut();
        header.data_len = header.data_len.checked_sub(short)?;
        header.data_off += short;
        header.pkt_len -= u32::from(short);
        Some(())
    }

    /// Makes the frame `count` bytes longer at its end and returns them, unwritten; `None`,
    /// and nothing changed, when the tailroom is smaller or the frame is not contiguous.
    #[inline]
    #[must_use]
    pub fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        if !self.is_contiguous() || count > self.tailroom() {
            return None;
        }
        let short = u16::try_from(count).ok()?;
        let header = self.header_mut();
        let old = usize::from(header.data_len);
        header.data_len += short;
        header.pkt_len += u32::from(short);
        Some(&mut self.data_mut()[old..])
    }

    /// Cuts `count` bytes off the end of the frame; `None`, and nothing changed, when it is
    /// shorter or not contiguous.
    #[inline]
    #[must_use]
    pub fn trim_back(&mut self, count: usize) -> Option<()> {
        if !self.is_contiguous() {
            return None;
        }
        let short = u16::try_from(count).ok()?;
        let header = self.header_mut();
        header.data_len = header.data_len.checked_sub(short)?;
        header.pkt_len -= u32::from(short);
        Some(())
    }

    /// Appends a copy of `bytes`; `None`, and nothing changed, where [`append`](Self::append)
    /// refuses.
    #[must_use]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> Option<()> {
        self.append(bytes.len())?.copy_from_slice(bytes);
        Some(())
    }

    /// The hash by which the device chose the receive queue, if it delivered one.
    #[inline]
    #[must_use]
    pub fn rss_hash(&self) -> Option<u32> {
        let header = self.header();
        if header.ol_flags & sys::HOLDFAST_MBUF_RX_RSS_HASH == 0 {
            return None;
        }
        // SAFETY: the union's only member.
        let hash = unsafe { &header.__bindgen_anon_2.hash };
        // SAFETY: the flag says that the driver wrote the `rss` member; any bits are a u32.
        Some(unsafe { hash.rss })
    }

    /// Asks the CPU to bring the start of the frame into its cache.
    #[inline]
    pub fn prefetch_data(&self) {
        crate::cpu::prefetch_address(self.start());
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the owner gives the mbuf, all segments, back; its pool still exists, as
        // pools with mbufs out are not freed.
        unsafe { sys::rte_pktmbuf_free(self.0.as_ptr()) };
    }
}
