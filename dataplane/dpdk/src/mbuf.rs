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

    /// An empty mbuf of this one's pool, with [`HEADROOM`] bytes in front and the tag, if a device
    /// took one off; `None` when the pool is empty.
    #[must_use]
    pub fn alloc_like(&self) -> Option<Mbuf> {
        // SAFETY: pools with mbufs out are not freed, so this one's lives.
        let raw = unsafe { sys::rte_pktmbuf_alloc(self.header().pool) };
        // SAFETY: a fresh mbuf belongs to nobody else.
        let mut new = NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })?;
        let (flags, tag) = (self.header().ol_flags, self.header().vlan_tci);
        let header = new.header_mut();
        header.ol_flags |= flags & sys::HOLDFAST_MBUF_RX_VLAN_STRIPPED;
        header.vlan_tci = tag;
        Some(new)
    }

    /// Has the device that sends the frame fill in the checksum of the IPv4 header of `length` bytes
    /// that begins behind `link` bytes. Only for ports that do ([`Offloads`]), and frames that have
    /// the header.
    ///
    /// [`Offloads`]: crate::Offloads
    #[inline]
    pub fn request_ipv4_checksum(&mut self, link: usize, length: usize) {
        // Devices want it to be zero, and have 7 and 9 bits for the lengths.
        if let Some(checksum) = self.data_mut().get_mut(link + 10..link + 12) {
            checksum.fill(0);
        }
        let header = self.header_mut();
        header.ol_flags |= sys::HOLDFAST_MBUF_TX_IP_CKSUM;
        header.__bindgen_anon_3.tx_offload = link as u64 & 0x7f | (length as u64 & 0x1ff) << 7;
    }

    /// A tag that a device took off and that is no part of the frame, as of the VLAN that a virtual
    /// function is in: it was put in on the way here.
    #[inline]
    pub(crate) fn forget_tag(&mut self, vlan: u16) {
        let header = self.header_mut();
        if header.vlan_tci & 0xfff == vlan {
            header.ol_flags &= !sys::HOLDFAST_MBUF_RX_VLAN_STRIPPED;
        }
    }

    /// The outer of two tags that a device took off is put back: what is left must not look like a
    /// frame with one.
    #[inline]
    pub(crate) fn keep_outer_of_two_tags(&mut self) {
        if self.header().ol_flags & sys::HOLDFAST_MBUF_RX_VLAN_STRIPPED != 0
            && matches!(self.data().get(12..14), Some([0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00]))
        {
            self.put_tag_back();
        }
    }

    /// A tag that a device took off is put in by the one that sends the frame, or here.
    #[inline]
    pub(crate) fn give_tag_back(&mut self, inserts: bool) {
        let header = self.header_mut();
        if header.ol_flags & sys::HOLDFAST_MBUF_RX_VLAN_STRIPPED == 0 {
            return;
        }
        if inserts {
            header.ol_flags &= !sys::HOLDFAST_MBUF_RX_VLAN_STRIPPED;
            header.ol_flags |= sys::HOLDFAST_MBUF_TX_VLAN;
        } else {
            self.put_tag_back();
        }
    }

    fn put_tag_back(&mut self) {
        let tag = self.header().vlan_tci.to_be_bytes();
        // Encapsulations leave half of the headroom free.
        if self.prepend(4).is_none() {
            return;
        }
        let data = self.data_mut();
        data.copy_within(4..16, 0);
        data[12..16].copy_from_slice(&[0x81, 0x00, tag[0], tag[1]]);
        let header = self.header_mut();
        header.ol_flags &= !sys::HOLDFAST_MBUF_RX_VLAN_STRIPPED;
        if header.ol_flags & sys::HOLDFAST_MBUF_TX_IP_CKSUM != 0 {
            // SAFETY: set together with the flag; its lowest bits are the link header's length.
            header.__bindgen_anon_3.tx_offload = unsafe { header.__bindgen_anon_3.tx_offload } + 4;
        }
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
