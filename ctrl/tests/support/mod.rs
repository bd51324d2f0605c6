//! What several test files share. Never anything that only one of them is about: what a test's lab
//! looks like is read there.
// Each test file is a crate of its own and uses a part of it.
#![allow(dead_code)]
#![allow(clippy::unwrap_used)]

#[cfg(feature = "daemon")]
pub mod daemon;
pub mod markdown;
pub mod namespace;
pub mod schema;
#[cfg(feature = "daemon")]
pub mod session;

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long anything may take that has to come. Nothing waits longer than it has to: this is for
/// machines that have much else to do.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A name that no other test has, whatever runs at the same time.
pub fn unique(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (test_file, process) = (env!("CARGO_CRATE_NAME"), std::process::id());
    format!("holdfast-{test_file}-{process}-{number}-{what}")
}

/// Says loudly what is not tested, and what it lacks.
pub fn skipped(what: &str) {
    // Not by a macro, whose words the test harness keeps to itself.
    let line = format!("********** SKIPPED: {what} **********\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Whether this is root; says what is not tested when not.
pub fn is_root(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skipped(&format!("{what} needs root"));
    }
    is_root
}
