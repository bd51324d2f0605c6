//! Cache lines of atomic words in the largest pages there are: what a table of millions of
//! entries is made of, where a miss of the TLB costs as much as one of the cache. Mapped once,
//! zeroed, never grown.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::error::Error;

/// Words of a cache line.
pub const LINE_WORDS: usize = 8;

/// One cache line of words that any thread may change.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Line(pub [AtomicU64; LINE_WORDS]);

const _: () = assert!(size_of::<Line>() == 64 && align_of::<Line>() == 64);

/// x86-64 and aarch64 with pages of 4 KiB have huge pages of this size.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A fixed number of [`Line`]s, all zero at first.
#[derive(Debug)]
pub struct Lines {
    lines: NonNull<Line>,
    /// At least 1.
    count: usize,
    /// Less than `count`, all bits below its highest set.
    mask: usize,
    _mapping: Mapping,
    page_bytes: usize,
}

#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this object alone and is not bound to a thread.
unsafe impl Send for Lines {}
// SAFETY: shared access offers nothing but atomic words.
unsafe impl Sync for Lines {}

impl Lines {
    /// Maps `count` lines, at least one: in reserved huge pages when enough of them are free (all are then
    /// touched at once, so that no packet ever waits for a page), else in pages of the ordinary
    /// size that the kernel is asked to merge.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is not that much.
    pub fn new(count: usize) -> Result<Lines, Error> {
        let count = count.max(1);
        let mask = (1 << count.ilog2()) - 1;
        let error = || Error::Memory { mib: count / ((1 << 20) / size_of::<Line>()) };
        let bytes = count.checked_mul(size_of::<Line>()).ok_or_else(error)?;
        let huge_bytes = bytes.checked_next_multiple_of(HUGE_PAGE_BYTES).ok_or_else(error)?;
        // Less than a page of it would be waste.
        if bytes >= HUGE_PAGE_BYTES
            && let Some(mapping) = Mapping::new(huge_bytes, MapFlags::HUGETLB | MapFlags::POPULATE)
        {
            let lines = mapping.start.cast();
            return Ok(Lines {
                lines,
                count,
                mask,
                _mapping: mapping,
                page_bytes: HUGE_PAGE_BYTES,
            });
        }
        // The kernel merges only pages that start at a multiple of the large one.
        let spare = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { size_of::<Line>() };
        let mapping = Mapping::new(bytes.checked_add(spare).ok_or_else(error)?, MapFlags::empty())
            .ok_or_else(error)?;
        let offset = mapping.start.align_offset(spare);
        // SAFETY: `offset` < `spare`, and the mapping has that much more than `bytes`.
        let start = unsafe { mapping.start.add(offset) };
        // SAFETY: the advice changes how the kernel backs our own mapping, nothing else.
        let _ = unsafe { madvise(start.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
        let page_bytes = rustix::param::page_size();
        Ok(Lines { lines: start.cast(), count, mask, _mapping: mapping, page_bytes })
    }

    /// The line at `index`, counted round: modulo the number of lines, which must be a power of
    /// two for all of them to be reached. Without a branch.
    #[inline(always)]
    #[must_use]
    pub fn line(&self, index: usize) -> &Line {
        // SAFETY: the mask is less than `count`, so the line is one of the mapping's.
        let line = unsafe { self.lines.add(index & self.mask) };
        // SAFETY: the kernel has zeroed it, which is a valid `AtomicU64`, and it lives as long as
        // this object.
        unsafe { line.as_ref() }
    }

    /// Size in bytes of the pages that were reserved for it: 2 MiB, or the ordinary size.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }
}

/// Which words of `line` equal `wanted` in the bits of `mask`: bit n for word n. Each word is
/// read once, all of them in no order, so it is a hint where others write meanwhile: read the word
/// again before you believe it.
#[inline(always)]
#[must_use]
pub fn matching_words(line: &Line, mask: u64, wanted: u64) -> u32 {
    matching::words(line, mask, wanted)
}

// Both forms for x86 are assembly, so that writers on other cores are no data race as they would
// be with Rust's own reads: the CPU reads each 8 aligned bytes at once. And both use the encoding
// that the compiler uses around them: mixing them costs hundreds of cycles.

#[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
mod matching {
    use std::arch::asm;

    use super::Line;

    /// Twice four words at a time.
    #[inline(always)]
    pub(super) fn words(line: &Line, mask: u64, wanted: u64) -> u32 {
        let (low, high): (u32, u32);
        // SAFETY: reads the 64 bytes of `line`, which are aligned and initialised.
        unsafe {
            asm!(
                "vmovq {mask:x}, {m}",
                "vmovq {wanted:x}, {w}",
                "vpbroadcastq {mask:y}, {mask:x}",
                "vpbroadcastq {wanted:y}, {wanted:x}",
                "vpand {a:y}, {mask:y}, ymmword ptr [{line}]",
                "vpand {b:y}, {mask:y}, ymmword ptr [{line} + 32]",
                "vpcmpeqq {a:y}, {a:y}, {wanted:y}",
                "vpcmpeqq {b:y}, {b:y}, {wanted:y}",
                "vmovmskpd {low:e}, {a:y}",
                "vmovmskpd {high:e}, {b:y}",
                line = in(reg) line,
                m = in(reg) mask,
                w = in(reg) wanted,
                mask = out(ymm_reg) _,
                wanted = out(ymm_reg) _,
                a = out(ymm_reg) _,
                b = out(ymm_reg) _,
                low = lateout(reg) low,
                high = lateout(reg) high,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        low | high << 4
    }
}

#[cfg(all(target_arch = "x86_64", not(target_feature = "avx2")))]
mod matching {
    use std::arch::asm;

    use super::Line;

    /// Four times two words at a time, by instructions of SSE 4.1, which DPDK itself needs.
    #[inline(always)]
    pub(super) fn words(line: &Line, mask: u64, wanted: u64) -> u32 {
        let found: u32;
        // SAFETY: reads the 64 bytes of `line`, which are aligned and initialised.
        unsafe {
            asm!(
                "movq {mask}, {m}",
                "movq {wanted}, {w}",
                "punpcklqdq {mask}, {mask}",
                "punpcklqdq {wanted}, {wanted}",
                "movdqa {a}, xmmword ptr [{line}]",
                "movdqa {b}, xmmword ptr [{line} + 16]",
                "movdqa {c}, xmmword ptr [{line} + 32]",
                "movdqa {d}, xmmword ptr [{line} + 48]",
                "pand {a}, {mask}",
                "pand {b}, {mask}",
                "pand {c}, {mask}",
                "pand {d}, {mask}",
                "pcmpeqq {a}, {wanted}",
                "pcmpeqq {b}, {wanted}",
                "pcmpeqq {c}, {wanted}",
                "pcmpeqq {d}, {wanted}",
                "packssdw {a}, {b}",
                "packssdw {c}, {d}",
                "packssdw {a}, {c}",
                "packsswb {a}, {a}",
                "pmovmskb {found:e}, {a}",
                line = in(reg) line,
                m = in(reg) mask,
                w = in(reg) wanted,
                mask = out(xmm_reg) _,
                wanted = out(xmm_reg) _,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                d = out(xmm_reg) _,
                found = lateout(reg) found,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        found & 0xff
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod matching {
    use std::sync::atomic::Ordering;

    use super::Line;

    #[inline(always)]
    pub(super) fn words(line: &Line, mask: u64, wanted: u64) -> u32 {
        let mut found = 0;
        for (index, word) in line.0.iter().enumerate() {
            let is_it = word.load(Ordering::Relaxed) & mask == wanted;
            found |= u32::from(is_it) << index;
        }
        found
    }
}

impl Deref for Lines {
    type Target = [Line];

    #[inline(always)]
    fn deref(&self) -> &[Line] {
        // SAFETY: the mapping holds `count` lines, aligned and zeroed by the kernel (which is a
        // valid `AtomicU64`), for as long as this object lives.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr(), self.count) }
    }
}

impl Mapping {
    fn new(bytes: usize, flags: MapFlags) -> Option<Mapping> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping wherever there is room replaces nothing.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes.max(1),
                protection,
                flags | MapFlags::PRIVATE,
            )
        };
        let start = NonNull::new(start.ok()?.cast())?;
        Some(Mapping { start, bytes: bytes.max(1) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; only the `Lines` that is dropped with it refers to it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn lines_are_zero_and_keep_what_is_written() {
        for count in [0, 1, 1000, 100_000] {
            let lines = Lines::new(count).expect("memory");
            assert_eq!(lines.len(), count.max(1));
            let zero = |line: &Line| line.0.iter().all(|word| word.load(Ordering::Relaxed) == 0);
            assert!(lines.iter().all(zero));
            if let Some(last) = lines.last() {
                last.0[7].store(7, Ordering::Relaxed);
                assert_eq!(lines[lines.len() - 1].0[7].load(Ordering::Relaxed), 7);
            }
            let last = lines.line(usize::MAX);
            assert!(lines.iter().any(|line| std::ptr::eq(line, last)));
        }
    }

    #[test]
    fn matching_words_are_found() {
        let line = Line::default();
        for (index, word) in line.0.iter().enumerate() {
            word.store((index as u64 / 2) << 22 | 5, Ordering::Relaxed);
        }
        let mask = !0 << 22;
        assert_eq!(matching_words(&line, mask, 0), 0b11);
        assert_eq!(matching_words(&line, mask, 3 << 22), 0b11 << 6);
        assert_eq!(matching_words(&line, mask, 4 << 22), 0);
        assert_eq!(matching_words(&line, !0, 3 << 22 | 5), 0b11 << 6);
        line.0[3].store(u64::MAX, Ordering::Relaxed);
        assert_eq!(matching_words(&line, mask, mask), 1 << 3);
        assert_eq!(matching_words(&line, !0, u64::MAX >> 1), 0);
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(matches!(Lines::new(usize::MAX / 64), Err(Error::Memory { .. })));
        assert!(matches!(Lines::new(usize::MAX), Err(Error::Memory { .. })));
    }
}
