//! Memory in huge pages: for the array that the limit reads, and for every large allocation of
//! the process, so that no contender pays for TLB misses that another is spared.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A huge page, bytes.
pub const HUGE: usize = 2 << 20;
/// Allocations of this many bytes and more get pages of their own.
const LARGE: usize = HUGE;

static IN_HUGE_PAGES: AtomicU64 = AtomicU64::new(0);
static IN_ADVISED_PAGES: AtomicU64 = AtomicU64::new(0);

/// Bytes of all large allocations so far in reserved huge pages, and in others, which the kernel
/// was asked to join.
#[must_use]
pub fn allocated() -> (u64, u64) {
    (IN_HUGE_PAGES.load(Ordering::Relaxed), IN_ADVISED_PAGES.load(Ordering::Relaxed))
}

unsafe extern "C" {
    fn peer_refuse_huge_pages() -> std::ffi::c_int;
}

/// From now on nobody in this process gets huge pages, whether it asks for them or not.
///
/// # Errors
/// When the kernel cannot be told so.
pub fn only_small() -> Result<()> {
    // SAFETY: changes what the kernel answers to later mappings, nothing that exists.
    let refused = unsafe { peer_refuse_huge_pages() };
    ensure!(refused == 0, "huge pages cannot be refused: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The allocator of the benches.
#[derive(Debug)]
pub struct HugePages;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= HUGE
}

fn rounded(size: usize) -> usize {
    size.next_multiple_of(HUGE)
}

fn map(size: usize) -> *mut u8 {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let private = MapFlags::PRIVATE;
    let huge = private | MapFlags::HUGETLB | MapFlags::HUGE_2MB | MapFlags::POPULATE;
    // SAFETY: a new mapping where nothing was.
    if let Ok(memory) = unsafe { mmap_anonymous(null_mut(), size, protection, huge) } {
        IN_HUGE_PAGES.fetch_add(size as u64, Ordering::Relaxed);
        return memory.cast();
    }
    // One huge page more than is needed, so that there is an aligned place in it.
    // SAFETY: as above.
    let Ok(memory) = (unsafe { mmap_anonymous(null_mut(), size + HUGE, protection, private) })
    else {
        return null_mut();
    };
    let front = memory.cast::<u8>().align_offset(HUGE);
    // SAFETY: within the mapping, which is one huge page longer than `size`.
    let aligned = unsafe { memory.cast::<u8>().add(front) };
    // SAFETY: the parts before and behind belong to the mapping, and nobody uses them.
    unsafe {
        if front > 0 {
            let _ = munmap(memory, front);
        }
        if front < HUGE {
            let _ = munmap(aligned.add(size).cast(), HUGE - front);
        }
        // Only a wish: small pages do as well.
        let _ = madvise(aligned.cast(), size, Advice::LinuxHugepage);
    }
    IN_ADVISED_PAGES.fetch_add(size as u64, Ordering::Relaxed);
    aligned
}

// SAFETY: large blocks are mappings of their own, aligned to a huge page and as long as asked
// for; all others are the system allocator's. Which it is follows from the layout alone.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(rounded(layout.size()));
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            // New mappings are zero.
            return map(rounded(layout.size()));
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: `alloc` mapped it with this length.
            let _ = unsafe { munmap(block.cast(), rounded(layout.size())) };
            return;
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Page size of the mapping around `address`, as the kernel tells it, and whether its pages were
/// joined to huge ones: bytes of the page, and bytes in joined pages.
#[must_use]
pub fn page_bytes_at(address: NonNull<u8>) -> Option<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let wanted = address.as_ptr() as u64;
    let mut inside = false;
    let mut page = None;
    for line in smaps.lines() {
        if let Some((start, rest)) = line.split_once('-')
            && let Ok(start) = u64::from_str_radix(start, 16)
        {
            let end = rest.split(' ').next().and_then(|end| u64::from_str_radix(end, 16).ok())?;
            inside = (start..end).contains(&wanted);
        } else if inside && let Some(kib) = field(line, "KernelPageSize:") {
            page = Some(kib * 1024);
        } else if inside && let Some(kib) = field(line, "AnonHugePages:") {
            // Joined pages: the mapping's own page size stays 4 KiB.
            return if kib > 0 { Some(HUGE as u64) } else { page };
        }
    }
    page
}

fn field(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()
}
