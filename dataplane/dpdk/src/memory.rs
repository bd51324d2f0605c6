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
    count: usize,
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
    /// Maps `count` lines: in reserved huge pages when enough of them are free (all are then
    /// touched at once, so that no packet ever waits for a page), else in pages of the ordinary
    /// size that the kernel is asked to merge.
    ///
    /// # Errors
    /// [`Error::Memory`] when there is not that much.
    pub fn new(count: usize) -> Result<Lines, Error> {
        let error = || Error::Memory { mib: count / ((1 << 20) / size_of::<Line>()) };
        let bytes = count.checked_mul(size_of::<Line>()).ok_or_else(error)?;
        let huge_bytes = bytes.checked_next_multiple_of(HUGE_PAGE_BYTES).ok_or_else(error)?;
        // Less than a page of it would be waste.
        if bytes >= HUGE_PAGE_BYTES
            && let Some(mapping) = Mapping::new(huge_bytes, MapFlags::HUGETLB | MapFlags::POPULATE)
        {
            let lines = mapping.start.cast();
            return Ok(Lines { lines, count, _mapping: mapping, page_bytes: HUGE_PAGE_BYTES });
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
        Ok(Lines { lines: start.cast(), count, _mapping: mapping, page_bytes })
    }

    /// Size in bytes of the pages that were reserved for it: 2 MiB, or the ordinary size.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
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
            assert_eq!(lines.len(), count);
            let zero = |line: &Line| line.0.iter().all(|word| word.load(Ordering::Relaxed) == 0);
            assert!(lines.iter().all(zero));
            if let Some(last) = lines.last() {
                last.0[7].store(7, Ordering::Relaxed);
                assert_eq!(lines[count - 1].0[7].load(Ordering::Relaxed), 7);
            }
        }
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(matches!(Lines::new(usize::MAX / 64), Err(Error::Memory { .. })));
        assert!(matches!(Lines::new(usize::MAX), Err(Error::Memory { .. })));
    }
}
