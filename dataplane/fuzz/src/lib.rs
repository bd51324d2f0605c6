//! What the fuzz target of the packet path does with an input, apart from libFuzzer:
//! `dataplane/tests/fuzz_corpus.rs` replays the corpus through the same functions.
//!
//! An input is a capture ([`capture`]): frames from the uplink, from the host, and some that stand
//! for what the DHT core says ([`world`]). [`packets::run`] sends them through a worker and panics
//! when something is wrong.
#![forbid(unsafe_code)]

pub mod books;
pub mod capture;
pub mod packets;
pub mod ports;
pub mod reader;
pub mod sent;
pub mod switched;
pub mod world;

/// What was met, and how often: names of counters. Only put together, so that the fuzzer does not
/// take the names for something that an input should contain.
#[derive(Debug, Default)]
pub struct Tally(Vec<(&'static str, u64)>);

impl Tally {
    /// It was met so many times more.
    pub fn add(&mut self, name: &'static str, times: u64) {
        self.0.push((name, times));
    }

    /// What was met; the same name may come again.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().copied()
    }
}

/// A target: its name, which is that of its corpus too, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]) -> Tally);

/// All targets.
pub const TARGETS: [Target; 1] = [("packets", packets::run)];
