//! What the peers' drivers share. It is of no use to holdfast itself.
#![forbid(unsafe_code)]

pub mod flood;
