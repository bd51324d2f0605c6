//! Any bytes as a datagram that was opened: as a batch, and as a control message. Reading ends, says
//! no more than the bytes have room for, and what was read is written back as the same.

use holdfast_dht::batch::{Header, Item, MAGIC, Outcome, Reader, VERSION, Writer};
use holdfast_dht::message::{DATAGRAM_MAX, Datagram};

use super::Tally;

/// Bytes of a batch ahead of its groups, and of a group ahead of its items.
const HEADER_LEN: usize = 29;
const GROUP_LEN: usize = 6;
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
            let fit = fit(&items, bytes.len());
            assert!(fit, "{} items from {} bytes", items.len(), bytes.len());
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

/// Whether so many bytes have room for these items.
fn fit(items: &[Item], len: usize) -> bool {
    let (mut needed, mut done) = (HEADER_LEN, 0);
    for item in items {
        match item {
            Item::Request(_, holdfast_dht::batch::Request::Lookup(_)) => needed += 16,
            Item::Request(..) => needed += 24,
            Item::Result(_, Outcome::Done) => done += 1,
            Item::Result(_, Outcome::Stale(_) | Outcome::Found(_) | Outcome::Gone(_)) => {
                needed += 1 + 8 + 5;
            }
            Item::Result(..) => needed += 1,
        }
    }
    needed + done_len(done) <= len
}

/// Bytes that this many operations take at least that were carried out.
const fn done_len(done: usize) -> usize {
    done.div_ceil(GROUP_ITEMS_MAX) * GROUP_LEN
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
    use holdfast_dht::batch::Request;
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
