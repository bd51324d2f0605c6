//! Sealing and opening: golden bytes, round trips, and everything that must be refused.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const INCARNATION: u64 = 0x0102_0304_0506_0708;
const SALT: u64 = 0x1112_1314_1516_1718;
const SECOND: u64 = 1_000_000;

fn secret() -> Secret {
    Secret(std::array::from_fn(|place| place as u8))
}

fn keys() -> Keys {
    Keys::single(7, secret())
}

fn ip(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + n).into()
}

fn seal(sealer: &mut Sealer, to: IpAddr, datagram: &[u8]) -> Vec<u8> {
    let mut sealed = [0xee; SEALED_MAX];
    Sealer::body(&mut sealed)[..datagram.len()].copy_from_slice(datagram);
    let len = sealer.seal(to, &mut sealed, datagram.len()).unwrap();
    sealed[..len].to_vec()
}

fn open(opener: &mut Opener, now_us: u64, from: IpAddr, sealed: &[u8]) -> Result<Vec<u8>, Refusal> {
    opener.open(now_us, from, &mut sealed.to_vec()).map(|datagram| datagram.to_vec())
}

/// Sender 1 and receiver 2.
fn pair() -> (Sealer, Opener) {
    (Sealer::new(&keys(), ip(1), INCARNATION, SALT), Opener::new(&keys(), ip(2)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Made with another implementation of HKDF and AES-GCM (the Python package `cryptography`) from
/// the words of `docs/specification/security.md`. Change these only together with [`VERSION`].
#[test]
fn bytes_are_pinned() {
    const HEAD: &str = "d40107010203040506070811121314151617180000000000000";
    let v6 = |n: u128| IpAddr::from(Ipv6Addr::from((0x2001_0db8 << 96) + n));
    for (own, to, bytes) in [
        (
            ip(1),
            ip(2),
            [
                "0009ed1200e9f7fc49915d12d6e0f1547732452b2fba32201aa6ff8",
                "001795481e7d524770579cf70afc7a041cd14948931b87e56f260c3",
            ],
        ),
        (
            v6(1),
            v6(2),
            [
                "00045967bc08aeee9d81cf661288abc618107f8a32cbf372bc631f2",
                "00196f61dc3583c1e42bdfaf44242707c544295cdc3039dc4be99c0",
            ],
        ),
    ] {
        let mut sealer = Sealer::new(&keys(), own, INCARNATION, SALT);
        for expected in bytes {
            let sealed = seal(&mut sealer, to, b"a datagram");
            assert_eq!(hex(&sealed), format!("{HEAD}{expected}"));
        }
    }
    assert_eq!(hex(&keys().id_key()), "7bc07f8836a0653e231b8f927881d8bb");
}

proptest! {
    #[test]
    fn comes_back_as_it_was_once(datagram in prop::collection::vec(any::<u8>(), 0..=DATAGRAM_MAX)) {
        let (mut sealer, mut opener) = pair();
        let sealed = seal(&mut sealer, ip(2), &datagram);
        prop_assert_eq!(sealed.len(), datagram.len() + OVERHEAD);
        prop_assert_eq!(open(&mut opener, 0, ip(1), &sealed), Ok(datagram));
        prop_assert_eq!(open(&mut opener, 0, ip(1), &sealed), Err(Refusal::Replayed));
    }

    #[test]
    fn hostile_bytes_are_refused(noise in prop::collection::vec(any::<u8>(), 0..1500)) {
        let (mut sealer, mut opener) = pair();
        let run = seal(&mut sealer, ip(2), b"");
        prop_assert!(open(&mut opener, 0, ip(1), &run).is_ok());
        for head in [&[][..], &[MAGIC, VERSION], &[MAGIC, VERSION, 7], &run[..19]] {
            let bytes = [head, &noise].concat();
            prop_assert!(open(&mut opener, 0, ip(1), &bytes).is_err());
            prop_assert!(open(&mut opener, 0, ip(3), &bytes).is_err());
        }
    }

    #[test]
    fn the_window_agrees_with_a_plain_model(
        steps in prop::collection::vec((0..5u8, 0..2 * WINDOW), 1..400),
    ) {
        let (mut window, mut seen) = (Window::default(), BTreeSet::new());
        let mut greatest = 0u64;
        for (kind, distance) in steps {
            let counter = match kind {
                0 => greatest + 1,
                1 => greatest + distance,
                2 => greatest + 64 * WINDOW * distance,
                _ => greatest.saturating_sub(distance),
            };
            let expected = if counter + WINDOW <= greatest {
                Err(Refusal::TooOld)
            } else if seen.contains(&counter) {
                Err(Refusal::Replayed)
            } else {
                Ok(())
            };
            prop_assert_eq!(window.check(counter), expected, "{} of {}", counter, greatest);
            if expected.is_ok() {
                window.mark(counter);
                seen.insert(counter);
                greatest = greatest.max(counter);
            }
        }
    }
}

#[test]
fn any_flipped_bit_is_refused() {
    let (mut sealer, mut known) = pair();
    let first = seal(&mut sealer, ip(2), b"the first");
    assert!(open(&mut known, 0, ip(1), &first).is_ok());
    let sealed = seal(&mut sealer, ip(2), b"a datagram");
    for bit in 0..8 * sealed.len() {
        let mut damaged = sealed.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let mut unknown = Opener::new(&keys(), ip(2));
        assert!(open(&mut known, 0, ip(1), &damaged).is_err(), "bit {bit}");
        assert!(open(&mut unknown, 0, ip(1), &damaged).is_err(), "bit {bit}");
        assert_eq!(unknown.senders().0, 0, "nothing is kept of bit {bit}");
    }
    for len in 0..sealed.len() {
        assert!(open(&mut known, 0, ip(1), &sealed[..len]).is_err(), "{len} bytes");
    }
    assert!(open(&mut known, 0, ip(1), &sealed).is_ok(), "damage leaves no trace");
}

#[test]
fn only_who_it_was_sealed_by_and_for_counts() {
    let (mut sealer, mut opener) = pair();
    let sealed = seal(&mut sealer, ip(2), b"a datagram");
    assert_eq!(open(&mut opener, 0, ip(3), &sealed), Err(Refusal::Unverified), "other sender");
    let mut other = Opener::new(&keys(), ip(3));
    assert_eq!(open(&mut other, 0, ip(1), &sealed), Err(Refusal::Unverified), "other receiver");
    let mut other = Opener::new(&Keys::single(7, Secret([7; 32])), ip(2));
    assert_eq!(open(&mut other, 0, ip(1), &sealed), Err(Refusal::Unverified), "other key");
    let mut other = Opener::new(&Keys::single(8, secret()), ip(2));
    assert_eq!(open(&mut other, 0, ip(1), &sealed), Err(Refusal::UnknownKey(7)), "other id");
    let mut back = Opener::new(&keys(), ip(1));
    assert_eq!(open(&mut back, 0, ip(2), &sealed), Err(Refusal::Unverified), "reflected");
    assert!(open(&mut opener, 0, ip(1), &sealed).is_ok());
}

#[test]
fn what_is_no_sealed_datagram_is_told_apart() {
    let mut opener = pair().1;
    let of = |len| [&[MAGIC, VERSION, 7][..], &vec![0; len - 3]].concat();
    for (bytes, expected) in [
        (vec![], Refusal::Malformed),
        (b"hdht".to_vec(), Refusal::NotOurs),
        (vec![MAGIC], Refusal::Malformed),
        (vec![MAGIC, 2], Refusal::UnknownVersion(2)),
        (of(OVERHEAD - 1), Refusal::Malformed),
        (of(SEALED_MAX + 1), Refusal::Malformed),
        (of(OVERHEAD), Refusal::Unverified),
        (of(SEALED_MAX), Refusal::Unverified),
    ] {
        assert_eq!(open(&mut opener, 0, ip(1), &bytes), Err(expected));
    }
}

#[test]
fn datagrams_may_overtake_each_other_within_the_window() {
    let (mut sealer, mut opener) = pair();
    let mut sealed: Vec<Vec<u8>> =
        (0..=WINDOW).map(|n| seal(&mut sealer, ip(2), &n.to_be_bytes())).collect();
    let newest = sealed.pop().unwrap();
    assert!(open(&mut opener, 0, ip(1), &newest).is_ok());
    assert_eq!(open(&mut opener, 0, ip(1), &sealed[0]), Err(Refusal::TooOld));
    for early in sealed[1..].iter().rev() {
        assert!(open(&mut opener, 0, ip(1), early).is_ok());
    }
    for seen in &sealed[1..] {
        assert_eq!(open(&mut opener, 0, ip(1), seen), Err(Refusal::Replayed));
    }
}

#[test]
fn an_older_run_is_refused_until_the_newer_one_is_silent() {
    let (mut old, mut opener) = pair();
    let mut new = Sealer::new(&keys(), ip(1), INCARNATION + 1, 5);
    let mut twin = Sealer::new(&keys(), ip(1), INCARNATION + 1, 6);
    let captured = seal(&mut old, ip(2), b"captured");
    assert!(open(&mut opener, 0, ip(1), &seal(&mut old, ip(2), b"old")).is_ok());
    assert!(open(&mut opener, SECOND, ip(1), &seal(&mut new, ip(2), b"new")).is_ok());
    let older = Err(Refusal::OlderIncarnation);
    assert_eq!(open(&mut opener, SECOND, ip(1), &captured), older);
    let not_newer = seal(&mut twin, ip(2), b"the same moment, other salt");
    assert_eq!(open(&mut opener, SECOND, ip(1), &not_newer), older);
    // A clock that was set back must not lock a server out for good.
    let back = seal(&mut old, ip(2), b"back");
    assert_eq!(open(&mut opener, SECOND + SILENCE_US - 1, ip(1), &back), older);
    assert!(open(&mut opener, SECOND + SILENCE_US, ip(1), &back).is_ok());
}

#[test]
fn a_second_key_opens_and_never_seals() {
    let [a, b] = [(1, [0xaa; 32]), (2, [0xbb; 32])]
        .map(|(id, bytes)| ClusterKey { id, secret: Secret(bytes) });
    let both = |sealing: &ClusterKey, opening: &ClusterKey| Keys {
        sealing: sealing.clone(),
        opening: Some(opening.clone()),
        ids: secret(),
    };
    let alone = |key: &ClusterKey| Keys { sealing: key.clone(), opening: None, ids: secret() };
    let (old, first, second, new) = (alone(&a), both(&a, &b), both(&b, &a), alone(&b));
    let phases = [&old, &first, &second, &new];
    for (n, sending) in phases.iter().enumerate() {
        for (m, receiving) in phases.iter().enumerate() {
            let mut sealer = Sealer::new(sending, ip(1), INCARNATION, SALT);
            let mut opener = Opener::new(receiving, ip(2));
            let opened = open(&mut opener, 0, ip(1), &seal(&mut sealer, ip(2), b"x"));
            let neighbours = n.abs_diff(m) <= 1;
            assert!(opened.is_ok() || !neighbours, "from phase {n} to {m}: {opened:?}");
        }
        assert_eq!(sending.id_key(), old.id_key(), "records stay where they are");
    }
    let mut opener = Opener::new(&new, ip(2));
    let mut sealer = Sealer::new(&first, ip(1), INCARNATION, SALT);
    let sealed = seal(&mut sealer, ip(2), b"x");
    assert_eq!(open(&mut opener, 0, ip(1), &sealed), Err(Refusal::UnknownKey(1)));
}

#[test]
fn a_flood_evicts_nobody_and_derives_little() {
    let (mut sealer, mut opener) = pair();
    assert!(open(&mut opener, 0, ip(1), &seal(&mut sealer, ip(2), b"here")).is_ok());
    let mut forged = seal(&mut sealer, ip(2), b"forged");
    let mut derived = 0;
    for n in 0..200_000u32 {
        // Another run each time, from all members' addresses, also the verified one's.
        forged[3..11].copy_from_slice(&(INCARNATION + 1 + u64::from(n)).to_be_bytes());
        match open(&mut opener, u64::from(n) * 5, ip(1 + n % 5000), &forged) {
            Err(Refusal::Unverified) => derived += 1,
            Err(Refusal::TooManyRuns) => {}
            other => panic!("{other:?}"),
        }
        if n % 1000 == 0 {
            let sealed = seal(&mut sealer, ip(2), b"still here");
            assert!(open(&mut opener, u64::from(n) * 5, ip(1), &sealed).is_ok());
        }
    }
    // A second's flood: what the limits hold at first, and one more each 125 ms.
    let most = LIMITS * (DERIVATIONS_AT_ONCE as usize + 8);
    assert!(derived > LIMITS && derived <= most, "{derived}");
    assert_eq!(opener.senders(), (1, 0));
}

#[test]
fn a_flood_from_one_address_leaves_newcomers_their_limits() {
    let (mut sealer, mut opener) = pair();
    let mut forged = seal(&mut sealer, ip(2), b"forged");
    forged[12] ^= 1;
    for _ in 0..10_000 {
        let _ = open(&mut opener, 0, ip(9), &forged);
    }
    assert_eq!(open(&mut opener, 0, ip(9), &forged), Err(Refusal::TooManyRuns));
    assert_eq!(open(&mut opener, DERIVATION_EVERY_US, ip(9), &forged), Err(Refusal::Unverified));
    let welcome = (100..1100)
        .filter(|&n| {
            let mut sealer = Sealer::new(&keys(), ip(n), INCARNATION, SALT);
            let sealed = seal(&mut sealer, ip(2), b"new");
            open(&mut opener, DERIVATION_EVERY_US, ip(n), &sealed).is_ok()
        })
        .count();
    // All but those, about one, that share a limit with the flood.
    assert!(welcome > 980, "{welcome}");
}

#[test]
fn a_sender_is_limited_and_only_by_what_is_its_own() {
    let (mut sealer, mut opener) = pair();
    let mut send = |opener: &mut Opener, at_us: u64, forged: bool| {
        let mut sealed = seal(&mut sealer, ip(2), b"x");
        sealed[HEADER_LEN] ^= u8::from(forged);
        open(opener, at_us, ip(1), &sealed).map(|_| ())
    };
    let burst = u64::from(SENDER_BURST);
    assert_eq!(send(&mut opener, 0, false), Ok(()));
    // Forged datagrams under its address cost it nothing, nor do copies.
    for _ in 0..2 * burst {
        assert_eq!(send(&mut opener, 0, true), Err(Refusal::Unverified));
    }
    for _ in 1..burst {
        assert_eq!(send(&mut opener, 0, false), Ok(()));
    }
    for _ in 0..burst {
        assert_eq!(send(&mut opener, SENDER_DATAGRAM_EVERY_US - 1, false), Err(Refusal::TooMany));
    }
    // 50,000 a second, and never more than a burst at once.
    let mut passed = 0;
    for n in 0..100_000u64 {
        match send(&mut opener, SENDER_DATAGRAM_EVERY_US + n * 10, false) {
            Ok(()) => passed += 1,
            Err(refusal) => assert_eq!(refusal, Refusal::TooMany),
        }
    }
    assert!((49_999..=50_001).contains(&passed), "{passed}");
    let rested_us = 3600 * SECOND;
    let passed = (0..2 * burst).filter(|_| send(&mut opener, rested_us, false).is_ok()).count();
    assert_eq!(passed as u64, burst);
    // Another sender is not concerned; another run of the same one is.
    let mut next = Sealer::new(&keys(), ip(1), INCARNATION + 1, SALT);
    let mut other = Sealer::new(&keys(), ip(3), INCARNATION, SALT);
    let sealed = seal(&mut next, ip(2), b"next run");
    assert_eq!(open(&mut opener, rested_us, ip(1), &sealed), Err(Refusal::TooMany));
    assert_eq!(open(&mut opener, rested_us, ip(1), &sealed), Err(Refusal::Replayed));
    assert!(open(&mut opener, rested_us, ip(3), &seal(&mut other, ip(2), b"other")).is_ok());
    let sealed = seal(&mut next, ip(2), b"later");
    assert!(open(&mut opener, rested_us + SECOND, ip(1), &sealed).is_ok());
}

#[test]
fn the_longest_silent_sender_makes_room() {
    let mut opener = Opener::with_senders_max(&keys(), ip(2), 3);
    let mut sealers: Vec<Sealer> =
        (10..14).map(|n| Sealer::new(&keys(), ip(n), INCARNATION, SALT)).collect();
    let mut hear = |n: usize, at_us: u64| {
        let sealed = seal(&mut sealers[n], ip(2), b"x");
        open(&mut opener, at_us, ip(10 + n as u32), &sealed).unwrap();
        let mut kept: Vec<IpAddr> = opener.senders.keys().copied().collect();
        kept.sort();
        (kept, opener.senders().1)
    };
    for (at_us, n) in [(1, 0), (2, 1), (3, 2), (4, 0)] {
        assert_eq!(hear(n, at_us).1, 0);
    }
    assert_eq!(hear(3, 5), (vec![ip(10), ip(12), ip(13)], 1));
}

#[test]
fn counters_end_and_never_repeat() {
    let mut sealer = pair().0;
    sealer.counter = Some(u64::MAX);
    let mut sealed = [0; SEALED_MAX];
    assert_eq!(sealer.seal(ip(2), &mut sealed, 5), Ok(OVERHEAD + 5));
    assert_eq!(sealer.seal(ip(2), &mut sealed, 5), Err(SealError::Exhausted));
    let mut sealer = pair().0;
    let too_long = DATAGRAM_MAX + 1;
    assert_eq!(sealer.seal(ip(2), &mut sealed, too_long), Err(SealError::TooLong(too_long)));
    assert_eq!(sealer.seal(ip(2), &mut sealed, DATAGRAM_MAX), Ok(SEALED_MAX));
}

#[test]
fn secrets_do_not_show_themselves() {
    let shown = format!("{:?} {:?} {:?}", keys(), pair().0, pair().1);
    assert!(shown.contains("Secret(…)"), "{shown}");
    assert!(!shown.contains("0, 1, 2, 3"), "{shown}");
}
