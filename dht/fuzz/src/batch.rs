//! Any bytes as a datagram that was opened: as a batch, and as a control message. Reading ends, says
//! what another reader says too, and what was read is written back as the same.

use std::net::IpAddr;

use holdfast_dht::batch::{Header, Item, MAGIC, Outcome, Reader, Request, VERSION, Writer};
use holdfast_dht::message::{DATAGRAM_MAX, Datagram};
use holdfast_dht::{Claim, Id};
use holdfast_handoff::Version;

use super::Tally;

/// Bytes of a batch ahead of its groups.
const HEADER_LEN: usize = 29;
/// Items of a group at most, which may take no bytes.
const GROUP_ITEMS_MAX: usize = 255;

/// Reads the bytes as they are, and behind a batch's first bytes.
pub fn run(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    read_control(bytes, &mut tally);
    read_batch(bytes, &mut tally);
    read_batch(&[&MAGIC[..], &[VERSION], bytes].concat(), &mut tally);
    tally
}

fn read_control(bytes: &[u8], tally: &mut Tally) {
    let name = match Datagram::decode(bytes) {
        Ok(datagram) => {
            let mut written = [0; DATAGRAM_MAX];
            let len = datagram.encode(&mut written).expect("was one");
            assert_eq!(&written[..len], bytes, "{datagram:?} comes back as other bytes");
            "control message"
        }
        Err(_) => "no control message",
    };
    tally.add(name, 1);
}

fn read_batch(bytes: &[u8], tally: &mut Tally) {
    let name = match Reader::new(bytes) {
        None => {
            assert!(!bytes.starts_with(&MAGIC));
            "no batch"
        }
        Some(Err(_)) => "batch without a header",
        Some(Ok((header, reader))) => {
            let (items, whole) = items(reader, bytes.len());
            let (expected, as_expected) = read_plainly(&bytes[HEADER_LEN..]);
            assert_eq!((&items, whole), (&expected, as_expected));
            writes_back(&header, &items);
            for item in &items {
                tally.add(name(item), 1);
            }
            if whole { "whole batch" } else { "broken batch" }
        }
    };
    tally.add(name, 1);
}

/// What a batch says before it ends, and whether it ends as it should.
fn items(mut reader: Reader<'_>, len: usize) -> (Vec<Item>, bool) {
    let mut items = Vec::new();
    let end = loop {
        match reader.next() {
            Some(Ok(item)) => items.push(item),
            end => break end,
        }
        assert!(items.len() <= len * GROUP_ITEMS_MAX, "goes on and on");
    };
    for _ in 0..3 {
        assert_eq!(reader.next(), None, "goes on after its end");
    }
    (items, end.is_none())
}

/// The groups of a batch, read as plainly as possible: the items, and whether it ends as it should.
fn read_plainly(groups: &[u8]) -> (Vec<Item>, bool) {
    let (mut rest, mut items) = (groups, Vec::new());
    while !rest.is_empty() {
        let Some([kind, count, number @ ..]) = take::<6>(&mut rest) else {
            return (items, false);
        };
        if count == 0 {
            return (items, false);
        }
        let first = u32::from_be_bytes(number);
        for place in 0..count {
            let Some(item) = item(kind, first.wrapping_add(place.into()), &mut rest) else {
                return (items, false);
            };
            items.push(item);
        }
    }
    (items, true)
}

fn item(kind: u8, number: u32, rest: &mut &[u8]) -> Option<Item> {
    if kind == 5 {
        return Some(Item::Result(number, outcome(rest)?));
    }
    if kind == 6 {
        return Some(Item::Result(number, Outcome::Done));
    }
    let id = Id(u128::from_be_bytes(take(rest)?));
    if kind == 1 {
        return Some(Item::Request(number, Request::Lookup(id)));
    }
    let version = Version(u64::from_be_bytes(take(rest)?));
    let request = match kind {
        2 => Request::Store(id, version),
        3 => Request::Delete(id, version),
        4 => Request::Release(id, version),
        _ => return None,
    };
    Some(Item::Request(number, request))
}

fn outcome(rest: &mut &[u8]) -> Option<Outcome> {
    let [code] = take(rest)?;
    let mut claim = || {
        let version = Version(u64::from_be_bytes(take(rest)?));
        let owner = match take(rest)? {
            [4] => IpAddr::from(take::<4>(rest)?),
            [6] => IpAddr::from(take::<16>(rest)?),
            _ => return None,
        };
        Some(Claim { version, owner })
    };
    Some(match code {
        0 => Outcome::Done,
        1 => Outcome::Full,
        2 => Outcome::Ahead,
        3 => Outcome::Stale(claim()?),
        4 => Outcome::Found(claim()?),
        5 => Outcome::Gone(claim()?),
        6 => Outcome::NotHeld,
        7 => Outcome::NotReplica,
        _ => return None,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*taken)
}

/// The items are the same in the batches that we write of them.
fn writes_back(header: &Header, items: &[Item]) {
    let mut left = items;
    while !left.is_empty() {
        let mut body = [0; DATAGRAM_MAX];
        let mut writer = Writer::new(header, &mut body);
        let written = left.iter().take_while(|item| write(&mut writer, item)).count();
        let len = writer.len();
        assert!(written > 0, "an item that fits no batch: {:?}", left[0]);
        let (again, reader) = Reader::new(&body[..len]).expect("a batch").expect("a header");
        assert_eq!(again, *header);
        let (read, whole) = self::items(reader, len);
        assert!(whole, "a batch of ours is broken");
        assert_eq!(read, left[..written]);
        left = &left[written..];
    }
}

fn write(writer: &mut Writer<'_>, item: &Item) -> bool {
    match item {
        Item::Request(number, request) => writer.request(*number, request),
        Item::Result(number, outcome) => writer.result(*number, outcome),
    }
}

const fn name(item: &Item) -> &'static str {
    match item {
        Item::Request(_, Request::Lookup(..)) => "LOOKUP",
        Item::Request(_, Request::Store(..)) => "STORE",
        Item::Request(_, Request::Delete(..)) => "DELETE",
        Item::Request(_, Request::Release(..)) => "RELEASE",
        Item::Result(_, Outcome::Done) => "done",
        Item::Result(_, Outcome::Full) => "full",
        Item::Result(_, Outcome::Ahead) => "ahead",
        Item::Result(_, Outcome::Stale(_)) => "stale",
        Item::Result(_, Outcome::Found(_)) => "found",
        Item::Result(_, Outcome::Gone(_)) => "gone",
        Item::Result(_, Outcome::NotHeld) => "not held",
        Item::Result(_, Outcome::NotReplica) => "not replica",
    }
}
