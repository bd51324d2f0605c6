//! What the fuzz targets do with an input, apart from libFuzzer: `dht/tests/fuzz_corpus.rs` replays
//! the corpus through the same functions. Never reads a clock or any other source of chance, so
//! that an input that fails fails again.
//!
//! Each target is one function from bytes to a [`Tally`] of what was met on the way. It panics when
//! something is wrong.
#![forbid(unsafe_code)]

pub mod batch;
pub mod input;
pub mod network;
pub mod opened;
pub mod sealed;

/// What was met, and how often: names of counters and the like. Only put together, so that the
/// fuzzer does not take the names for something that an input should contain.
#[derive(Debug, Default)]
pub struct Tally(Vec<(&'static str, u64)>);

impl Tally {
    /// It was met so many times more.
    pub fn add(&mut self, name: &'static str, times: u64) {
        self.0.push((name, times));
    }

    /// What was met, in the order in which it was; the same name may come again.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().copied()
    }
}

/// A target: its name, which is that of its corpus too, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]) -> Tally);

/// All targets.
pub const TARGETS: [Target; 3] =
    [("sealed", sealed::run), ("opened", opened::run), ("batch", batch::run)];
