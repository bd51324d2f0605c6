//! Datagrams as they come from the socket, to the opener of a server that several senders speak to.
//! What is opened was sealed by one of them for this server and comes for the first time; what is
//! refused is refused for a reason that holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use holdfast_dht::Keys;
use holdfast_dht::auth::{
    ClusterKey, MAGIC, OVERHEAD, Opener, Refusal, SEALED_MAX, SENDER_BURST, SENDERS_MAX,
    SILENCE_US, Sealer, Secret, VERSION, WINDOW,
};
use holdfast_dht::message::DATAGRAM_MAX;

use super::Tally;
use super::input::Input;

/// The server whose opener it is, and another one.
const OWN: IpAddr = v4(1);
const OTHER: IpAddr = v4(9);
const SENDERS: usize = 6;
/// Datagrams kept to be delivered later.
const KEPT_MAX: usize = 128;
/// Senders' incarnations begin here.
const EPOCH_US: u64 = 1_700_000_000_000_000;

const fn v4(n: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, n))
}

fn locator(sender: usize) -> IpAddr {
    match sender {
        5 => [0xfd00, 0, 0, 0, 0, 0, 0, 5].into(),
        n => v4(n as u8 + 2),
    }
}

/// The key of a sender. Number 3 has one that the opener never has, number 4 a wrong one.
fn key(sender: usize) -> ClusterKey {
    let (id, secret) = match sender {
        2 => (2, 2),
        3 => (3, 3),
        4 => (1, 4),
        _ => (1, 1),
    };
    ClusterKey { id, secret: Secret([secret; 32]) }
}

/// The opener's keys in the phases of a replacement.
fn keys(phase: u8) -> Keys {
    let (one, two) = (key(0), key(2));
    let (sealing, opening) = match phase % 4 {
        0 => (one, Some(two)),
        1 => (two, Some(one)),
        2 => (one, None),
        _ => (two, None),
    };
    Keys { sealing, opening, ids: Secret([0; 32]) }
}

/// A start of a sender: which of the cluster's keys, incarnation and salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    key_id: u8,
    incarnation: u64,
    salt: u64,
}

struct Sender {
    run: Run,
    sealer: Sealer,
    counter: u64,
}

impl Sender {
    fn new(sender: usize, incarnation: u64, salt: u64) -> Sender {
        let key = key(sender);
        let run = Run { key_id: key.id, incarnation, salt };
        let keys = Keys { ids: key.secret.clone(), sealing: key, opening: None };
        let sealer = Sealer::new(&keys, locator(sender), incarnation, salt);
        Sender { run, sealer, counter: 0 }
    }
}

/// A datagram that a sender has sealed.
#[derive(Debug, Clone)]
struct Sealed {
    sender: usize,
    to: IpAddr,
    run: Run,
    counter: u64,
    body: Vec<u8>,
    bytes: Vec<u8>,
}

/// What the opener must know of a sender by now, said as plainly as possible.
#[derive(Debug)]
struct Known {
    run: Run,
    greatest: u64,
    seen: BTreeSet<u64>,
    heard_us: u64,
    verified: u64,
}

struct Bench {
    now_us: u64,
    phase: u8,
    opener: Opener,
    senders: Vec<Sender>,
    kept: Vec<Sealed>,
    /// Datagrams that may yet be sealed as a crowd.
    crowd_left: usize,
    known: BTreeMap<IpAddr, Known>,
    tally: Tally,
}

/// Does what the input says, and tells how often what was opened or refused.
pub fn run(bytes: &[u8]) -> Tally {
    let mut input = Input::new(bytes);
    let phase = input.byte();
    let mut bench = Bench {
        now_us: 0,
        phase,
        opener: Opener::new(&keys(phase), OWN),
        senders: (0..SENDERS).map(|n| Sender::new(n, EPOCH_US, n as u64)).collect(),
        kept: Vec::new(),
        crowd_left: crowd_max(phase),
        known: BTreeMap::new(),
        tally: Tally::default(),
    };
    while !input.is_empty() {
        bench.step(&mut input);
        let (senders, _) = bench.opener.senders();
        assert!(senders <= SENDERS_MAX);
        assert_eq!(senders, bench.known.len(), "remembers who has not proved anything");
    }
    bench.tally
}

/// How many datagrams may be sealed as a crowd. That takes time, so few inputs have enough of them
/// for the windows, or for the limits, to matter.
const fn crowd_max(choice: u8) -> usize {
    match choice {
        0..=127 => 256,
        128..=191 => 5_000,
        192.. => 12_000,
    }
}

impl Bench {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(10) {
            0 => {
                let sealed = self.seal(input);
                self.deliver_as_it_was(&sealed);
            }
            1 => {
                let sealed = self.seal(input);
                if self.kept.len() < KEPT_MAX {
                    self.kept.push(sealed);
                }
            }
            2 => {
                if let Some(sealed) = self.a_kept_one(input) {
                    self.deliver_as_it_was(&sealed);
                }
            }
            3 => self.deliver_altered(input),
            4 => {
                let (sender, len) = (input.below(SENDERS), input.u16());
                let bytes = input.take(usize::from(len));
                self.deliver(locator(sender), bytes, None);
            }
            5 => self.deliver_forged(input),
            6 => self.restart_sender(input),
            7 => self.seal_many(input),
            8 => {
                let pause_us = u64::from(input.byte());
                self.now_us += [pause_us, pause_us * 10_000, SILENCE_US][input.below(3)];
            }
            _ => {
                self.phase = input.byte();
                self.opener = Opener::new(&keys(self.phase), OWN);
                self.known.clear();
            }
        }
    }

    /// Has a sender seal what the input says.
    fn seal(&mut self, input: &mut Input<'_>) -> Sealed {
        let choice = input.byte();
        let sender = usize::from(choice & 0x0f) % SENDERS;
        let to = if choice & 0x80 == 0 { OWN } else { OTHER };
        let len = if choice & 0x40 == 0 { input.below(48) } else { usize::from(input.u16()) };
        let mut body = input.take(len.min(64)).to_vec();
        body.resize(len.min(DATAGRAM_MAX), 0x5a);
        self.seal_body(sender, to, body)
    }

    fn seal_body(&mut self, sender: usize, to: IpAddr, body: Vec<u8>) -> Sealed {
        let Sender { run, sealer, counter } = &mut self.senders[sender];
        let mut room = [0; SEALED_MAX];
        Sealer::body(&mut room)[..body.len()].copy_from_slice(&body);
        let len = sealer.seal(to, &mut room, body.len()).expect("short enough");
        assert_eq!(len, body.len() + OVERHEAD);
        let bytes = room[..len].to_vec();
        *counter += 1;
        Sealed { sender, to, run: *run, counter: *counter - 1, body, bytes }
    }

    fn a_kept_one(&self, input: &mut Input<'_>) -> Option<Sealed> {
        let choice = usize::from(input.byte());
        let place = choice.checked_rem(self.kept.len())?;
        Some(self.kept[place].clone())
    }

    fn deliver_as_it_was(&mut self, sealed: &Sealed) {
        self.deliver(locator(sealed.sender), &sealed.bytes, Some(sealed));
    }

    /// One that was sealed, with other bytes, or from another address, or both.
    fn deliver_altered(&mut self, input: &mut Input<'_>) {
        let Some(sealed) = self.a_kept_one(input) else {
            return;
        };
        let mut bytes = sealed.bytes.clone();
        let choice = input.byte();
        let from = match choice & 0x80 {
            0 => locator(sealed.sender),
            _ => locator(usize::from(choice & 0x0f) % SENDERS),
        };
        if choice & 0x40 == 0 {
            input.alter(&mut bytes);
        }
        // It may be as it was, or have become another one that was sealed.
        let genuine = |s: &&Sealed| s.bytes == bytes && locator(s.sender) == from;
        let genuine = self.kept.iter().find(genuine).cloned();
        self.deliver(from, &bytes, genuine.as_ref());
    }

    /// One that looks like the next of a sender's, by somebody who has no key.
    fn deliver_forged(&mut self, input: &mut Input<'_>) {
        let sender = input.below(SENDERS);
        let Sender { run, counter, .. } = &self.senders[sender];
        let mut bytes = vec![MAGIC, VERSION, input.number(run.key_id.into()) as u8];
        for usual in [run.incarnation, run.salt, *counter] {
            bytes.extend(input.number(usual).to_be_bytes());
        }
        let len = input.below(64);
        bytes.extend_from_slice(input.take(len));
        self.deliver(locator(sender), &bytes, None);
    }

    /// A sender begins anew. Its clock may have gone back, and the salt may come again.
    fn restart_sender(&mut self, input: &mut Input<'_>) {
        let sender = input.below(SENDERS);
        let incarnation = input.number(self.senders[sender].run.incarnation);
        let salt = input.below(4) as u64;
        let before = self.senders[sender].run;
        let after = Sender::new(sender, incarnation, salt);
        // The same key and counters for other datagrams: random salts see to it that this does not
        // happen.
        if after.run != before && self.kept.iter().all(|sealed| sealed.run != after.run) {
            self.senders[sender] = after;
        }
    }

    /// A sender seals many. They get lost, or all arrive.
    fn seal_many(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let sender = usize::from(choice & 0x0f) % SENDERS;
        for _ in 0..1 << input.below(13) {
            let Some(left) = self.crowd_left.checked_sub(1) else {
                return;
            };
            self.crowd_left = left;
            let sealed = self.seal_body(sender, OWN, Vec::new());
            if choice & 0x80 == 0 {
                self.deliver_as_it_was(&sealed);
            }
        }
    }

    /// Opens a datagram; `genuine` is the one that it is, if it is one that was sealed and comes
    /// from its sender.
    fn deliver(&mut self, from: IpAddr, bytes: &[u8], genuine: Option<&Sealed>) {
        let genuine = genuine.filter(|sealed| {
            let keys = keys(self.phase);
            let mut keys = std::iter::once(&keys.sealing).chain(&keys.opening);
            sealed.to == OWN && keys.any(|k| *k == key(sealed.sender))
        });
        let mut room = bytes.to_vec();
        let outcome = self.opener.open(self.now_us, from, &mut room).map(|body| body.to_vec());
        let name = match outcome {
            Ok(body) => {
                let genuine = genuine.expect("opened, but nobody sealed it");
                assert_eq!(body, genuine.body);
                self.verified(from, genuine);
                "opened"
            }
            Err(refusal) => {
                self.check_refusal(from, bytes, refusal, genuine);
                refusal.counter().name()
            }
        };
        self.tally.add(name, 1);
    }

    /// A genuine datagram has verified: it must be new.
    fn verified(&mut self, from: IpAddr, sealed: &Sealed) {
        let Sealed { run, counter, .. } = *sealed;
        let now_us = self.now_us;
        let known = self.known.entry(from).or_insert_with(|| Known {
            run,
            greatest: 0,
            seen: BTreeSet::new(),
            heard_us: now_us,
            verified: 0,
        });
        if known.run != run {
            let newer = run.incarnation > known.run.incarnation;
            assert!(newer || now_us - known.heard_us >= SILENCE_US, "an older run is back");
            (known.run, known.greatest) = (run, 0);
            known.seen.clear();
        }
        assert!(known.seen.insert(counter), "opened twice");
        assert!(known.greatest < counter + WINDOW, "opened, but nobody can tell that it is new");
        known.greatest = known.greatest.max(counter);
        known.heard_us = now_us;
        known.verified += 1;
    }

    /// A datagram was refused: the reason must hold.
    fn check_refusal(
        &mut self,
        from: IpAddr,
        bytes: &[u8],
        refusal: Refusal,
        genuine: Option<&Sealed>,
    ) {
        let framing = framing(bytes);
        if framing.is_some() {
            return assert_eq!(framing, Some(refusal));
        }
        let (run, counter) = header(bytes);
        let known = self.known.get(&from);
        let same_run = known.filter(|known| known.run == run);
        match refusal {
            Refusal::NotOurs | Refusal::UnknownVersion(_) | Refusal::Malformed => {
                panic!("{refusal:?} of a datagram that is well framed");
            }
            Refusal::UnknownKey(id) => {
                let keys = keys(self.phase);
                assert!(id == run.key_id && id != keys.sealing.id);
                assert!(keys.opening.is_none_or(|key| id != key.id));
            }
            Refusal::OlderIncarnation => {
                let known = known.expect("there is no newer one");
                assert!(known.run != run && known.run.incarnation >= run.incarnation);
                assert!(self.now_us - known.heard_us < SILENCE_US);
            }
            Refusal::TooManyRuns => assert!(same_run.is_none(), "its run is known"),
            Refusal::Replayed => {
                let known = same_run.expect("the first of its run");
                assert!(known.seen.contains(&counter), "it is new");
            }
            Refusal::TooOld => {
                let known = same_run.expect("the first of its run");
                assert!(known.greatest - counter >= WINDOW, "it is not so old");
            }
            Refusal::Unverified => assert!(genuine.is_none(), "it is genuine"),
            Refusal::TooMany => {
                let genuine = genuine.expect("it cannot have verified");
                self.verified(from, genuine);
                assert!(self.known[&from].verified > SENDER_BURST.into());
            }
        }
    }
}

/// What is wrong with a datagram before anything is computed.
fn framing(bytes: &[u8]) -> Option<Refusal> {
    match bytes {
        [] => Some(Refusal::Malformed),
        [magic, ..] if *magic != MAGIC => Some(Refusal::NotOurs),
        [_, version, ..] if *version != VERSION => Some(Refusal::UnknownVersion(*version)),
        _ if bytes.len() < OVERHEAD || bytes.len() > SEALED_MAX => Some(Refusal::Malformed),
        _ => None,
    }
}

/// Run and counter, as a well framed datagram's clear bytes tell them.
fn header(bytes: &[u8]) -> (Run, u64) {
    let number = |at: usize| {
        let bytes = bytes[at..at + 8].try_into().expect("eight");
        u64::from_be_bytes(bytes)
    };
    (Run { key_id: bytes[2], incarnation: number(3), salt: number(11) }, number(19))
}
