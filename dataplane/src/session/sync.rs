//! The atomics that the session table is made of, in one place, so that a model checker can put
//! its own there (`dataplane/tests/slot_protocol.rs`).

pub use std::sync::atomic::Ordering;

pub use holdfast_dpdk::{Line, matching_words};

/// Orders the read-modify-write by which this thread has published an entry before what it reads
/// next.
#[inline(always)]
pub fn settle_fence() {
    // On x86 the read-modify-write is a full barrier by itself.
    if cfg!(target_arch = "x86_64") {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}
