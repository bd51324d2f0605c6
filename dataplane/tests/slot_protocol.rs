//! The protocol of the session table's buckets under every interleaving and every reordering that
//! the memory model allows, as far as a model of two or three threads goes. It is the code that
//! runs (`session/bucket.rs`), on loom's atomics.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../src/session/bucket.rs"]
#[allow(dead_code)]
mod bucket;

mod sync {
    use loom::sync::atomic::AtomicU64;
    pub use loom::sync::atomic::Ordering;

    /// As `holdfast_dpdk::Line`.
    #[derive(Debug, Default)]
    pub struct Line(pub [AtomicU64; 8]);

    pub fn matching_words(line: &Line, mask: u64, wanted: u64) -> u32 {
        let is_it = |word: &AtomicU64| word.load(Ordering::Relaxed) & mask == wanted;
        let words = line.0.iter().enumerate();
        words.map(|(index, word)| u32::from(is_it(word)) << index).sum()
    }

    /// loom takes sequentially consistent accesses for acquire and release, and knows only
    /// fences as more.
    pub fn settle_fence() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

use std::sync::atomic::Ordering;

use bucket::{KeyV6, Layout, META, STATE, V4, V6};
use loom::sync::Arc;
use loom::thread;
use sync::Line;

/// Meta bits of an entry: a state, and a number that names it.
const fn meta(number: u64) -> u64 {
    2 | number << 5
}

const fn key(client: [u64; 2]) -> KeyV6 {
    KeyV6 { client, tail: 7 }
}

/// Runs `threads` in every interleaving with up to three preemptions:
/// without a bound it takes minutes.
fn model(threads: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(threads);
}

/// All slots taken but the first `free`, so that few interleavings remain.
fn line<L: Layout>(other: &L::Key, free: usize) -> Line {
    let line = Line::default();
    for _ in L::POSITIONS {
        L::claim(&line, other, 1, meta(9)).unwrap();
    }
    for &position in &L::POSITIONS[..free] {
        let word = line.0[position].load(Ordering::Relaxed);
        L::release(&line, position, word).unwrap();
    }
    line
}

fn places<L: Layout>(line: &Line, key: &L::Key) -> Vec<usize> {
    let matches = L::matches(line, key, 1);
    L::POSITIONS.iter().filter(|position| matches >> **position & 1 == 1).copied().collect()
}

/// Two workers insert one flow: at least one of them sees both entries, so one can go.
fn one_of_two_sees_both<L: Layout + 'static>(flow: L::Key, other: L::Key)
where
    L::Key: Send + Sync + 'static,
{
    model(move || {
        let line = Arc::new(line::<L>(&other, 2));
        let insert = move |line: &Line, number| {
            L::claim(line, &flow, 1, meta(number)).unwrap();
            sync::settle_fence();
            places::<L>(line, &flow).len()
        };
        let there = Arc::clone(&line);
        let worker = thread::spawn(move || insert(&there, 1));
        let here = insert(&line, 2);
        let there = worker.join().unwrap();
        assert_eq!(here.max(there), 2);
        assert_eq!(places::<L>(&line, &flow).len(), 2);
    });
}

#[test]
fn of_two_that_insert_a_flow_one_sees_both_v4() {
    one_of_two_sees_both::<V4>(5, 6);
}

#[test]
fn of_two_that_insert_a_flow_one_sees_both_v6() {
    one_of_two_sees_both::<V6>(key([1, 1]), key([3, 3]));
}

/// A slot is given to another flow while `look` looks at it.
fn while_a_slot_changes_hands(look: impl Fn(&Line) + Send + Sync + 'static) {
    model(move || {
        let line = Arc::new(line::<V6>(&key([3, 3]), 1));
        let (position, word) = V6::claim(&line, &OLD, 1, meta(1)).unwrap();
        let writer = {
            let line = Arc::clone(&line);
            thread::spawn(move || {
                V6::release(&line, position, word).unwrap();
                V6::claim(&line, &NEW, 1, meta(2)).unwrap();
            })
        };
        look(&line);
        writer.join().unwrap();
        assert_eq!(V6::find(&line, &OLD, 1), None);
        assert_eq!(V6::find(&line, &NEW, 1).unwrap().1 & META, meta(2));
    });
}

const OLD: KeyV6 = key([1, 1]);
const NEW: KeyV6 = key([2, 2]);

/// A reader finds what it looks for or nothing, and never a flow that was not there, made of
/// halves of two.
#[test]
fn a_reader_never_sees_halves() {
    for wanted in [[1, 2], [2, 1]] {
        while_a_slot_changes_hands(move |line| {
            assert_eq!(V6::find(line, &key(wanted), 1), None);
        });
    }
}

#[test]
fn what_a_reader_finds_is_its_flows() {
    for (wanted, number) in [(OLD, 1), (NEW, 2)] {
        while_a_slot_changes_hands(move |line| {
            if let Some((_, word)) = V6::find(line, &wanted, 1) {
                assert_eq!(word & META, meta(number));
            }
        });
    }
}

#[test]
fn what_a_listing_reads_is_whole() {
    while_a_slot_changes_hands(|line| {
        if let Some((word, found)) = V6::read(line, V6::POSITIONS[0]) {
            let is = |key, number| found == key && word & META == meta(number);
            assert!(is(OLD, 1) || is(NEW, 2));
        }
    });
}

/// An entry is stamped by one worker and taken away by another: it is gone or as it was stamped,
/// and a slot that was given to another flow meanwhile is not touched.
fn a_late_change_does_no_harm<L: Layout + 'static>(flow: L::Key, next: L::Key, other: L::Key)
where
    L::Key: Send + Sync + std::fmt::Debug + 'static,
{
    model(move || {
        let line = Arc::new(line::<L>(&other, 1));
        let (position, word) = L::claim(&line, &flow, 1, meta(1)).unwrap();
        let remover = {
            let line = Arc::clone(&line);
            thread::spawn(move || {
                let gone = L::release(&line, position, word).is_ok();
                if gone {
                    L::claim(&line, &next, 1, meta(3)).unwrap();
                }
                gone
            })
        };
        let stamped = bucket::update(&line, position, word, meta(2)).is_ok();
        let gone = remover.join().unwrap();
        assert!(stamped != gone, "one of them was first, and the other is told");
        let (word, found) = L::read(&line, position).unwrap();
        let expected = if gone { (next, meta(3)) } else { (flow, meta(2)) };
        assert_eq!((found, word & META), expected);
        assert_ne!(word & STATE, 0);
    });
}

#[test]
fn a_late_change_does_no_harm_v4() {
    a_late_change_does_no_harm::<V4>(5, 6, 7);
}

#[test]
fn a_late_change_does_no_harm_v6() {
    a_late_change_does_no_harm::<V6>(key([1, 1]), key([2, 2]), key([3, 3]));
}

/// An entry that passes by a full bucket is found by whoever sees it where it went, while others
/// pass by and go: their counts do not disturb each other.
#[test]
fn who_passed_by_is_found() {
    model(|| {
        let (home, next) = (Arc::new(line::<V4>(&7, 0)), Arc::new(line::<V4>(&7, 1)));
        bucket::pass(&home, 3);
        let inserter = {
            let (home, next) = (Arc::clone(&home), Arc::clone(&next));
            thread::spawn(move || {
                bucket::pass(&home, 3);
                V4::claim(&next, &5, 2, meta(1)).unwrap();
            })
        };
        let other = {
            let home = Arc::clone(&home);
            thread::spawn(move || bucket::unpass(&home, 3))
        };
        if V4::find(&next, &5, 2).is_some() {
            assert!(bucket::may_have_passed(&home, 3));
        }
        inserter.join().unwrap();
        other.join().unwrap();
        assert!(bucket::may_have_passed(&home, 3));
        bucket::unpass(&home, 3);
        assert!(!bucket::may_have_passed(&home, 3));
    });
}
