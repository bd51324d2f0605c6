//! The fuzz target of `dataplane/fuzz` on its seeds and its committed corpus, without libFuzzer: what
//! was found once is not lost again, and the target still reaches what it is for.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;
#[path = "../examples/packets/seeds.rs"]
mod seeds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes of all captures at most.
const CAPTURES_BYTES_MAX: u64 = 220 << 10;

fn captures(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(directory);
    let files = std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path());
    let mut captures: Vec<PathBuf> = files.collect();
    captures.sort();
    assert!(!captures.is_empty(), "{} is empty", directory.display());
    captures
}

fn all() -> Vec<PathBuf> {
    [captures("seeds"), captures("corpus/packets")].concat()
}

/// What the captures meet, and how often. Fails with all that fail.
fn replay(captures: &[PathBuf]) -> BTreeMap<&'static str, u64> {
    let (_, run) = fuzz::TARGETS[0];
    let (mut met, mut failed) = (BTreeMap::new(), Vec::new());
    for capture in captures {
        let bytes = std::fs::read(capture).unwrap();
        // Once more while all is observed.
        let mut observed = fuzz::capture::Capture::read(&bytes);
        observed.shape ^= 1 << fuzz::world::OBSERVED_BIT;
        let observed = observed.write();
        match std::panic::catch_unwind(|| [run(&bytes), run(&observed)]) {
            Ok(tallies) => {
                let met_by = tallies.iter().flat_map(fuzz::Tally::iter);
                met_by.for_each(|(name, n)| *met.entry(name).or_default() += n);
            }
            Err(_) => failed.push(capture),
        }
    }
    assert!(failed.is_empty(), "see above: {failed:#?}");
    met
}

#[test]
fn packets() {
    use holdfast_dataplane::stats::Counter;

    // Only these are out of reach: one worker changes no entry behind its own back, a cluster of
    // five has numbers enough, time is not measured, the daemon never stops, and its services stay.
    let unmet = [
        Counter::TableContended,
        Counter::OwnersFull,
        Counter::CyclesBusy,
        Counter::CyclesIdle,
        Counter::SynClosing,
        Counter::EntryRetired,
    ];
    let met = replay(&all());
    let expected = Counter::ALL.iter().filter(|counter| !unmet.contains(counter));
    let missed = expected.map(|counter| counter.name()).filter(|name| !met.contains_key(name));
    let missed: Vec<_> = missed.collect();
    assert!(missed.is_empty(), "no capture meets {missed:?}: {met:?}");
}

#[test]
fn the_seeds_are_what_their_generator_writes() {
    let seeds: BTreeMap<_, _> =
        seeds::all().into_iter().map(|(name, seed)| (format!("{name}.pcap"), seed)).collect();
    let names: Vec<_> = captures("seeds")
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, seeds.keys().cloned().collect::<Vec<_>>());
    for (path, seed) in captures("seeds").iter().zip(seeds.values()) {
        let written = std::fs::read(path).unwrap();
        assert!(written == seed.write(), "write {} anew: see examples/packets", path.display());
    }
}

#[test]
fn the_captures_are_small_and_are_captures() {
    let mut bytes = 0;
    for path in all() {
        assert_eq!(path.extension().unwrap(), "pcap", "{}", path.display());
        let content = std::fs::read(&path).unwrap();
        bytes += content.len() as u64;
        let capture = fuzz::capture::Capture::read(&content);
        assert_eq!(capture.write(), content, "{} is no pcap file", path.display());
    }
    assert!(bytes <= CAPTURES_BYTES_MAX, "{bytes} bytes");
}
