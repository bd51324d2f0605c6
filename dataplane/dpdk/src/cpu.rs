//! The CPU's own helpers for the packet path: prefetch, time stamp counter. Never pins,
//! sleeps or blocks.

/// Asks the CPU to bring `value`'s first cache line into all cache levels.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    prefetch_address(std::ptr::from_ref(value).cast());
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch_address(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch of any address, valid or not, is only a hint.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn prefetch_address(address: *const u8) {
    // SAFETY: a prefetch of any address, valid or not, is only a hint.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address,
            options(nostack, preserves_flags, readonly));
    }
}

/// The CPU's time stamp counter, ticks of [`Eal::tsc_hz`](crate::Eal::tsc_hz).
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU that Linux runs on in user mode has RDTSC.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The CPU's time stamp counter, ticks of [`Eal::tsc_hz`](crate::Eal::tsc_hz).
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: reads a counter register.
    unsafe { holdfast_dpdk_sys::rte_rdtsc() }
}
