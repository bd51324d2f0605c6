//! The atomics that the session table is made of, in one place, so that a model checker can put
//! its own there (`dataplane/tests/slot_protocol.rs`).

pub use std::sync::atomic::Ordering;

pub use holdfast_dpdk::{Line, matching_words};

/// Orders what this thread has published before what it reads next. What publishes is a
/// sequentially consistent read-modify-write and what reads then is a sequentially consistent
/// load, which are ordered by themselves: nothing is left to do at run time.
#[inline(always)]
pub fn settle_fence() {}
