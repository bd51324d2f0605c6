//! The fuzz targets of `dht/fuzz` on their committed corpus, without libFuzzer: what was found once
//! is not lost again, and the targets still reach what they are for.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;
use holdfast_dht::Counter;

/// Bytes of all inputs at most.
const CORPUS_BYTES_MAX: u64 = 200 << 10;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let directory = corpus().join(target);
    let files = std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path());
    let mut inputs: Vec<PathBuf> = files.collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", directory.display());
    inputs
}

/// What the corpus of a target meets, and how often. Fails with all inputs that fail.
fn replay(target: &str) -> BTreeMap<&'static str, u64> {
    let (_, run) = TARGETS.into_iter().find(|(name, _)| *name == target).expect("a target");
    let (mut met, mut failed) = (BTreeMap::new(), Vec::new());
    for input in inputs(target) {
        let bytes = std::fs::read(&input).unwrap();
        match std::panic::catch_unwind(|| run(&bytes)) {
            Ok(tally) => tally.iter().for_each(|(name, n)| *met.entry(name).or_default() += n),
            Err(_) => failed.push(input),
        }
    }
    assert!(failed.is_empty(), "see above: {failed:#?}");
    met
}

/// Replays a corpus, and fails when that does not meet all that is expected: then the targets or
/// what they are about have changed so much that `scripts/fuzz --keep` must find other inputs.
fn meets(target: &str, expected: &[&str]) {
    let met = replay(target);
    let missed = expected.iter().filter(|name| met.get(*name).is_none_or(|n| *n == 0));
    let missed: Vec<_> = missed.collect();
    assert!(missed.is_empty(), "the corpus of {target} misses {missed:?}: {met:?}");
}

#[test]
fn sealed() {
    let refusals = [
        Counter::NotOurs,
        Counter::UnknownVersion,
        Counter::Malformed,
        Counter::UnknownKey,
        Counter::OlderIncarnation,
        Counter::TooManyRuns,
        Counter::Replayed,
        Counter::TooOld,
        Counter::SenderLimited,
        Counter::Unverified,
    ];
    let mut expected = refusals.map(Counter::name).to_vec();
    expected.push("opened");
    meets("sealed", &expected);
}

#[test]
fn opened() {
    // Both sides of each exchange, and the limits.
    let counters = [
        Counter::NotMember,
        Counter::NotOurs,
        Counter::Malformed,
        Counter::ForgedLocator,
        Counter::Reflected,
        Counter::OlderIncarnation,
        Counter::OtherIncarnation,
        Counter::OperationsLate,
        Counter::UnmatchedAnswers,
        Counter::AfterLeave,
        Counter::StoresReceived,
        Counter::StoresStale,
        Counter::StoresFull,
        Counter::StoresAhead,
        Counter::DeletesReceived,
        Counter::ReleasesReceived,
        Counter::TombstonesRefused,
        Counter::RecordsExpired,
        Counter::RecordsMoved,
        Counter::LookupsReceived,
        Counter::LookupsFound,
        Counter::LookupsNotFound,
        Counter::LookupsTimedOut,
        Counter::LookupsRefused,
        Counter::LookupsHedged,
        Counter::LookupsWalked,
        Counter::OwnersForeign,
        Counter::PublishesRefused,
        Counter::PublishesRaised,
        Counter::PublishesSuperseded,
        Counter::PeersSuspected,
        Counter::PeersCleared,
        Counter::PeersDead,
        Counter::PeersLeft,
        Counter::PeersRestarted,
        Counter::PongsRelayed,
        Counter::BucketsFull,
        Counter::Refutations,
        Counter::NotMineReceived,
        Counter::SupersededSent,
        Counter::SupersededReceived,
        Counter::SupersededIgnored,
    ];
    meets("opened", &counters.map(Counter::name));
}

#[test]
fn batch() {
    let requests = ["LOOKUP", "STORE", "DELETE", "RELEASE"];
    let outcomes = ["done", "full", "ahead", "stale", "found", "gone", "not held", "not replica"];
    let wholes = ["whole batch", "broken batch", "batch without a header", "control message"];
    meets("batch", &[&requests[..], &outcomes, &wholes].concat());
}

#[test]
fn the_corpus_is_small_and_has_no_strangers() {
    let mut bytes = 0;
    for directory in std::fs::read_dir(corpus()).unwrap() {
        let name = directory.unwrap().file_name();
        let target = TARGETS.into_iter().find(|(target, _)| name == *target);
        let (target, _) = target.unwrap_or_else(|| panic!("{name:?} is the corpus of no target"));
        bytes += inputs(target).iter().map(|input| input.metadata().unwrap().len()).sum::<u64>();
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}
