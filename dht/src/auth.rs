//! Seals what a server sends to the control ports of others and opens what it receives: AES-128-GCM
//! under a key of the sender's own, derived from the cluster's. Never reads a file, a clock or a
//! socket, never allocates for a datagram, and keeps nothing about a sender that has not proved
//! that it knows the cluster's key.
//!
//! ```text
//!  0        1         2        3             11     19        27
//!  ┌────────┬─────────┬────────┬─────────────┬──────┬─────────┬─────────────────┬───────┐
//!  │ 0xd4   │ version │ key id │ sender's    │ salt │ counter │ datagram,       │ tag   │
//!  │        │ 1       │        │ incarnation │      │         │ encrypted       │ 16    │
//!  └────────┴─────────┴────────┴─────────────┴──────┴─────────┴─────────────────┴───────┘
//! ```
//! Numbers are in network order. The tag also covers the 27 clear bytes and the locators of sender
//! and receiver. `docs/specification/security.md` says what this promises and what it does not.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::net::IpAddr;

use arrayvec::ArrayVec;
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{self, HKDF_SHA256, KeyType, Prk};
use thiserror::Error;

use crate::message::DATAGRAM_MAX;
use crate::stats::Counter;

/// What every sealed datagram begins with.
pub const MAGIC: u8 = 0xd4;
/// Version of this framing.
pub const VERSION: u8 = 1;
/// Bytes in the clear ahead of the datagram.
pub const HEADER_LEN: usize = 27;
/// Bytes of the tag behind it.
pub const TAG_LEN: usize = 16;
/// Bytes that sealing adds.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// Bytes of the largest sealed datagram: fits every path of a data centre unfragmented.
pub const SEALED_MAX: usize = DATAGRAM_MAX + OVERHEAD;
const _: () = assert!(SEALED_MAX == 1400);
const AAD_LEN: usize = HEADER_LEN + 32;

/// Senders whose state is kept; beyond, the longest silent one is forgotten. About 1.2 KiB each.
pub const SENDERS_MAX: usize = 16_384;
/// How far behind a sender's greatest counter a datagram may arrive. The counter runs over all
/// that a server sends to anybody, so this is 20 ms of 200,000 datagrams a second.
pub const WINDOW: u64 = (WINDOW_WORDS as u64 - 1) * 64;
const WINDOW_WORDS: usize = 64;
/// After this much silence, in µs, a sender may come back with an older incarnation: its clock
/// was set back, or was ahead before.
pub const SILENCE_US: u64 = 60_000_000;

/// Keys are derived at the expense of who asks, so there are limits by a hash of the sender's
/// address: this many limits,
const LIMITS: usize = 1024;
/// each of which allows this many derivations at once
const DERIVATIONS_AT_ONCE: u32 = 16;
/// and one more after this many µs. All together allow 8,192 a second, about 1 % of a CPU.
const DERIVATION_EVERY_US: u64 = 125_000;

/// Datagrams that a sender may send us at once: a burst,
pub const SENDER_BURST: u32 = 10_000;
/// and one more after this many µs: 50,000 a second.
const SENDER_DATAGRAM_EVERY_US: u64 = 20;

/// Sets these derivations apart from those of anybody else who uses the same secret.
const HKDF_SALT: &[u8] = b"holdfast dht 1";

/// 32 secret bytes. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    fn prk(&self) -> Prk {
        hkdf::Salt::new(HKDF_SHA256, HKDF_SALT).extract(&self.0)
    }
}

/// A key of the cluster and the id that datagrams name it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKey {
    /// Its id.
    pub id: u8,
    /// The key itself.
    pub secret: Secret,
}

/// The secrets of a cluster. While a key is being replaced there are two, with different ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// Seals what we send, and opens.
    pub sealing: ClusterKey,
    /// Opens as well.
    pub opening: Option<ClusterKey>,
    /// What the hash that makes ids is keyed from. Stays when the others are replaced: other ids
    /// are other places for all records.
    pub ids: Secret,
}

impl Keys {
    /// One key for everything.
    #[must_use]
    pub fn single(id: u8, secret: Secret) -> Keys {
        Keys { ids: secret.clone(), sealing: ClusterKey { id, secret }, opening: None }
    }

    /// Zeros instead of a key, for a cluster that says openly that it does without: everybody
    /// knows them, so they prove nothing and hide nothing.
    #[must_use]
    pub fn insecure() -> Keys {
        Keys::single(0, Secret([0; 32]))
    }

    /// Key of the hash that makes ids ([`crate::Config::id_key`]).
    #[must_use]
    pub fn id_key(&self) -> [u8; 16] {
        let mut key = [0; 16];
        let prk = self.ids.prk();
        let okm = prk.expand(&[b"ids"], IdKeyLen).expect("HKDF-SHA256 has 16 bytes");
        okm.fill(&mut key).expect("as long as asked for");
        key
    }
}

struct IdKeyLen;

impl KeyType for IdKeyLen {
    fn len(&self) -> usize {
        16
    }
}

/// One run of one sender: what its key is derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    key_id: u8,
    incarnation: u64,
    salt: u64,
}

impl Run {
    fn key(&self, prk: &Prk, sender: [u8; 16]) -> LessSafeKey {
        let (incarnation, salt) = (self.incarnation.to_be_bytes(), self.salt.to_be_bytes());
        let info = [&b"seal"[..], &sender, &incarnation, &salt];
        let okm = prk.expand(&info, &AES_128_GCM).expect("HKDF-SHA256 has 16 bytes");
        LessSafeKey::new(UnboundKey::from(okm))
    }
}

/// The clear part of a sealed datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    run: Run,
    counter: u64,
}

impl Header {
    fn write(&self, bytes: &mut [u8; HEADER_LEN]) {
        bytes[..3].copy_from_slice(&[MAGIC, VERSION, self.run.key_id]);
        bytes[3..11].copy_from_slice(&self.run.incarnation.to_be_bytes());
        bytes[11..19].copy_from_slice(&self.run.salt.to_be_bytes());
        bytes[19..].copy_from_slice(&self.counter.to_be_bytes());
    }

    /// Splits a sealed datagram into header, its clear bytes, and the rest.
    fn read(sealed: &mut [u8]) -> Result<(Header, &[u8; HEADER_LEN], &mut [u8]), Refusal> {
        match &*sealed {
            [] => return Err(Refusal::Malformed),
            [magic, ..] if *magic != MAGIC => return Err(Refusal::NotOurs),
            [_, version, ..] if *version != VERSION => {
                return Err(Refusal::UnknownVersion(*version));
            }
            _ if !(OVERHEAD..=SEALED_MAX).contains(&sealed.len()) => {
                return Err(Refusal::Malformed);
            }
            _ => {}
        }
        let (clear, body) = sealed.split_first_chunk_mut().ok_or(Refusal::Malformed)?;
        let (words, _) = clear[3..].as_chunks::<8>();
        let run = Run {
            key_id: clear[2],
            incarnation: u64::from_be_bytes(words[0]),
            salt: u64::from_be_bytes(words[1]),
        };
        Ok((Header { run, counter: u64::from_be_bytes(words[2]) }, clear, body))
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.counter.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

/// What the tag covers besides the datagram: a copy sent to another server, or from another
/// address, does not verify there.
fn aad(clear: &[u8; HEADER_LEN], sender: [u8; 16], receiver: [u8; 16]) -> Aad<[u8; AAD_LEN]> {
    let mut aad = [0; AAD_LEN];
    aad[..HEADER_LEN].copy_from_slice(clear);
    aad[HEADER_LEN..HEADER_LEN + 16].copy_from_slice(&sender);
    aad[HEADER_LEN + 16..].copy_from_slice(&receiver);
    Aad::from(aad)
}

/// A locator as the derivation and the tag know it; IPv4 is mapped into IPv6.
fn octets(locator: IpAddr) -> [u8; 16] {
    match locator {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Why a datagram was not sealed.
#[derive(Debug, Clone, Copy, Error, PartialEq, Eq)]
pub enum SealError {
    /// It is longer than [`DATAGRAM_MAX`].
    #[error("a datagram of {0} bytes, of which {DATAGRAM_MAX} can be sealed")]
    TooLong(usize),
    /// All 2^64 counters are used up. Another start has others.
    #[error("no counter is left")]
    Exhausted,
}

/// The state of what we seal: one key and its counter, for all receivers.
#[derive(Debug)]
pub struct Sealer {
    key: LessSafeKey,
    run: Run,
    /// Of the next datagram; `None` when there is none left.
    counter: Option<u64>,
    own: [u8; 16],
}

impl Sealer {
    /// For the server with this locator and incarnation. `salt` must be random: it keeps the key
    /// of this run apart from all others even when the clock gave two runs one incarnation.
    #[must_use]
    pub fn new(keys: &Keys, locator: IpAddr, incarnation: u64, salt: u64) -> Sealer {
        let run = Run { key_id: keys.sealing.id, incarnation, salt };
        let own = octets(locator);
        Sealer { key: run.key(&keys.sealing.secret.prk(), own), run, counter: Some(0), own }
    }

    /// Where the datagram goes before [`Sealer::seal`].
    pub fn body(sealed: &mut [u8; SEALED_MAX]) -> &mut [u8; DATAGRAM_MAX] {
        let (_, rest) = sealed.split_at_mut(HEADER_LEN);
        rest.first_chunk_mut().expect("SEALED_MAX has room for it")
    }

    /// Seals the datagram of `len` bytes in [`Sealer::body`] for the server with locator `to`.
    /// Returns how many bytes to send, at most [`SEALED_MAX`].
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(
        &mut self,
        to: IpAddr,
        sealed: &mut [u8; SEALED_MAX],
        len: usize,
    ) -> Result<usize, SealError> {
        if len > DATAGRAM_MAX {
            return Err(SealError::TooLong(len));
        }
        let counter = self.counter.ok_or(SealError::Exhausted)?;
        self.counter = counter.checked_add(1);
        let header = Header { run: self.run, counter };
        let (clear, rest) = sealed.split_first_chunk_mut().expect("SEALED_MAX has room for it");
        header.write(clear);
        let aad = aad(clear, self.own, octets(to));
        let (body, rest) = rest.split_at_mut(len);
        let tag = self
            .key
            .seal_in_place_separate_tag(header.nonce(), aad, body)
            .map_err(|_| SealError::TooLong(len))?;
        rest[..TAG_LEN].copy_from_slice(tag.as_ref());
        Ok(OVERHEAD + len)
    }
}

/// Why a datagram is dropped. Nothing is ever answered.
#[derive(Debug, Clone, Copy, Error, PartialEq, Eq)]
pub enum Refusal {
    /// It does not begin with [`MAGIC`].
    #[error("not a sealed datagram of the holdfast DHT")]
    NotOurs,
    /// Another [`VERSION`].
    #[error("version {0} of the framing, expected {VERSION}")]
    UnknownVersion(u8),
    /// Too short or too long.
    #[error("malformed")]
    Malformed,
    /// Sealed with a key that we do not have.
    #[error("key {0} is unknown")]
    UnknownKey(u8),
    /// From an older run of the sender than the last that was verified.
    #[error("of an older incarnation")]
    OlderIncarnation,
    /// A new run of the sender, and too many of those were looked into already.
    #[error("too many new runs from this sender")]
    TooManyRuns,
    /// This very datagram was opened before.
    #[error("replayed")]
    Replayed,
    /// More than [`WINDOW`] behind, so that nobody can tell.
    #[error("too far behind to tell whether it was replayed")]
    TooOld,
    /// It verifies, but its sender sends more than [`SENDER_BURST`] at once and 50,000 a second.
    #[error("too many datagrams from this sender")]
    TooMany,
    /// The tag is not right: forged, damaged, sealed with another key of the same id, or sent
    /// to or from another server than it is now.
    #[error("does not verify")]
    Unverified,
}

impl Refusal {
    /// What counts it.
    #[must_use]
    pub const fn counter(self) -> Counter {
        match self {
            Refusal::NotOurs => Counter::NotOurs,
            Refusal::UnknownVersion(_) => Counter::UnknownVersion,
            Refusal::Malformed => Counter::Malformed,
            Refusal::UnknownKey(_) => Counter::UnknownKey,
            Refusal::OlderIncarnation => Counter::OlderIncarnation,
            Refusal::TooManyRuns => Counter::TooManyRuns,
            Refusal::Replayed => Counter::Replayed,
            Refusal::TooOld => Counter::TooOld,
            Refusal::TooMany => Counter::SenderLimited,
            Refusal::Unverified => Counter::Unverified,
        }
    }
}

/// The state of what we open: for each sender, the key of its newest run and what was seen of it.
pub struct Opener {
    keys: ArrayVec<(u8, Prk), 2>,
    own: [u8; 16],
    senders: HashMap<IpAddr, Opened>,
    senders_max: usize,
    limits: Limits,
    evicted: u64,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("senders", &self.senders.len()).finish_non_exhaustive()
    }
}

/// A run of a sender, of which at least one datagram was verified.
struct Opened {
    run: Run,
    key: LessSafeKey,
    window: Window,
    /// Of the sender, so its next run inherits it.
    allowance: Allowance<SENDER_BURST, SENDER_DATAGRAM_EVERY_US>,
    /// When the last datagram was verified.
    heard_us: u64,
}

impl Opened {
    /// Notes a datagram that was verified, and takes it from the sender's allowance. Only now:
    /// what a forger sends under another's address must not use up that one's.
    fn verified(&mut self, now_us: u64, counter: u64) -> Result<(), Refusal> {
        self.window.mark(counter);
        self.heard_us = now_us;
        if self.allowance.take(now_us) { Ok(()) } else { Err(Refusal::TooMany) }
    }
}

impl Opener {
    /// For the server with this locator.
    #[must_use]
    pub fn new(keys: &Keys, locator: IpAddr) -> Opener {
        Opener::with_senders_max(keys, locator, SENDERS_MAX)
    }

    fn with_senders_max(keys: &Keys, locator: IpAddr, senders_max: usize) -> Opener {
        let all = std::iter::once(&keys.sealing).chain(&keys.opening);
        Opener {
            keys: all.map(|key| (key.id, key.secret.prk())).collect(),
            own: octets(locator),
            senders: HashMap::new(),
            senders_max,
            limits: Limits::new(),
            evicted: 0,
        }
    }

    /// Opens what came from the address `from`, in place, and returns the datagram in it. `now_us`
    /// is any clock's time in µs that does not go back. When it refuses, `sealed` is of no use.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn open<'a>(
        &mut self,
        now_us: u64,
        from: IpAddr,
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], Refusal> {
        let (header, clear, body) = Header::read(sealed)?;
        let aad = aad(clear, octets(from), self.own);
        let Some(known) = self.senders.get_mut(&from) else {
            return self.open_first(now_us, from, header, aad, body);
        };
        if known.run == header.run {
            known.window.check(header.counter)?;
            let opened = known.key.open_in_place(header.nonce(), aad, body);
            let datagram = opened.map_err(|_| Refusal::Unverified)?;
            known.verified(now_us, header.counter)?;
            return Ok(datagram);
        }
        let is_silent = now_us.saturating_sub(known.heard_us) >= SILENCE_US;
        if header.run.incarnation <= known.run.incarnation && !is_silent {
            return Err(Refusal::OlderIncarnation);
        }
        self.open_first(now_us, from, header, aad, body)
    }

    /// Opens what may be the first datagram of a run; only if it is, the run is remembered.
    fn open_first<'a>(
        &mut self,
        now_us: u64,
        from: IpAddr,
        header: Header,
        aad: Aad<[u8; AAD_LEN]>,
        body: &'a mut [u8],
    ) -> Result<&'a mut [u8], Refusal> {
        let run = header.run;
        let prk = self.keys.iter().find(|(id, _)| *id == run.key_id);
        let (_, prk) = prk.ok_or(Refusal::UnknownKey(run.key_id))?;
        if !self.limits.allow(now_us, from) {
            return Err(Refusal::TooManyRuns);
        }
        let key = run.key(prk, octets(from));
        let opened = key.open_in_place(header.nonce(), aad, body);
        let datagram = opened.map_err(|_| Refusal::Unverified)?;
        self.make_room(from);
        let before = self.senders.get(&from);
        let allowance = before.map_or_else(Allowance::full, |before| before.allowance);
        let mut opened =
            Opened { run, key, window: Window::default(), allowance, heard_us: now_us };
        let verified = opened.verified(now_us, header.counter);
        self.senders.insert(from, opened);
        verified.map(|()| datagram)
    }

    fn make_room(&mut self, from: IpAddr) {
        if self.senders.len() < self.senders_max || self.senders.contains_key(&from) {
            return;
        }
        let silent = self.senders.iter().min_by_key(|(_, sender)| sender.heard_us);
        if let Some(address) = silent.map(|(address, _)| *address) {
            self.senders.remove(&address);
            self.evicted += 1;
        }
    }

    /// Senders whose runs are remembered, and how many were forgotten for want of room.
    #[must_use]
    pub fn senders(&self) -> (usize, u64) {
        (self.senders.len(), self.evicted)
    }
}

/// Which of a run's last counters were seen: a ring of bits (RFC 6479), of which the words behind
/// the greatest counter's are cleared when it reaches them.
struct Window {
    greatest: u64,
    words: [u64; WINDOW_WORDS],
}

impl Default for Window {
    fn default() -> Window {
        Window { greatest: 0, words: [0; WINDOW_WORDS] }
    }
}

impl Window {
    fn check(&self, counter: u64) -> Result<(), Refusal> {
        if counter > self.greatest {
            return Ok(());
        }
        if self.greatest - counter >= WINDOW {
            return Err(Refusal::TooOld);
        }
        let (word, bit) = place(counter);
        if self.words[word] & bit == 0 { Ok(()) } else { Err(Refusal::Replayed) }
    }

    /// Notes a counter that [`Window::check`] let through.
    fn mark(&mut self, counter: u64) {
        if counter > self.greatest {
            let (from, to) = (self.greatest / 64, counter / 64);
            let passed = (to - from).min(WINDOW_WORDS as u64);
            for step in 0..passed {
                self.words[place((to - step) * 64).0] = 0;
            }
            self.greatest = counter;
        }
        let (word, bit) = place(counter);
        self.words[word] |= bit;
    }
}

/// Word and bit of a counter in the ring.
const fn place(counter: u64) -> (usize, u64) {
    ((counter / 64 % WINDOW_WORDS as u64) as usize, 1 << (counter % 64))
}

/// How many keys may be derived for senders of unknown runs: anybody can ask for one with a forged
/// source address. A flood from some addresses uses up the limits of these alone.
struct Limits {
    hasher: RandomState,
    slots: Box<[Allowance<DERIVATIONS_AT_ONCE, DERIVATION_EVERY_US>; LIMITS]>,
}

impl Limits {
    fn new() -> Limits {
        Limits { hasher: RandomState::new(), slots: Box::new([Allowance::full(); LIMITS]) }
    }

    fn allow(&mut self, now_us: u64, from: IpAddr) -> bool {
        let slot = self.hasher.hash_one(from) % LIMITS as u64;
        self.slots[slot as usize].take(now_us)
    }
}

/// A token bucket: `BURST` at once, and one more after every `EVERY_US` µs.
#[derive(Clone, Copy)]
struct Allowance<const BURST: u32, const EVERY_US: u64> {
    left: u32,
    since_us: u64,
}

impl<const BURST: u32, const EVERY_US: u64> Allowance<BURST, EVERY_US> {
    fn full() -> Self {
        Allowance { left: BURST, since_us: 0 }
    }

    /// Takes one, if one is left.
    fn take(&mut self, now_us: u64) -> bool {
        let more = now_us.saturating_sub(self.since_us) / EVERY_US;
        self.since_us += more * EVERY_US;
        let left = u64::from(self.left).saturating_add(more).min(BURST.into());
        self.left = (left as u32).saturating_sub(1);
        left > 0
    }
}

#[cfg(test)]
mod tests;
