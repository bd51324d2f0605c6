//! The datagrams that carry many operations: what they look like, and how they are written and
//! read. Never reads beyond a datagram's end and never allocates, whatever the bytes say.
//!
//! ```text
//!  0        4         5             13           21     25     29
//!  ┌────────┬─────────┬─────────────┬────────────┬──────┬──────┬───────┬───────┬───
//!  │ "hdhb" │ version │ sender's    │ receiver's │ base │ life │ group │ group │ …
//!  │        │ 1       │ incarnation │ incarnation│      │      │       │       │
//!  └────────┴─────────┴─────────────┴────────────┴──────┴──────┴───────┴───────┴───
//!  group of operations:  kind 1 │ count 1 │ number of the first 4 │ items
//!    LOOKUP                      id 16
//!    STORE, DELETE, RELEASE      id 16 │ version 8
//!    RESULTS                     code 1 │ for some codes: version 8 │ owner 5 or 17
//!    DONE                        nothing: `count` operations were carried out
//! ```
//! Numbers are in network order and of fixed size. A sender numbers the operations that it sends
//! to one receiver, and a result bears the number of its operation; one sent again has a new
//! number. `base` is the least number that the sender still waits for: a late copy of what it has
//! sent again, or given up, must not be carried out any more. `life` counts how often the receiver
//! entered the sender's routing table, 0 when it is not in there: a new life says that the sender
//! took the receiver for dead, and may have dropped its records.

use bincode::de::{Decode, Decoder};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};
use holdfast_handoff::Version;

use crate::id::Id;
use crate::message::{CODEC, DATAGRAM_MAX, MessageError, Wire};
use crate::record::Claim;

/// What a batch begins with.
pub const MAGIC: [u8; 4] = *b"hdhb";
/// Version of this format.
pub const VERSION: u8 = 1;

const HEADER_LEN: usize = 29;
const GROUP_LEN: usize = 6;
const PREFIX_LEN: usize = MAGIC.len() + 1;

/// What precedes the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// When the sender started, in microseconds since the Unix epoch.
    pub incarnation: u64,
    /// The incarnation that the receiver is to have.
    pub receiver: u64,
    /// The least number of an operation that the sender still waits for.
    pub base: u32,
    /// How often the receiver entered the sender's routing table; 0: it is not in there.
    pub life: u32,
}

/// What an operation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Who owns the record with this id?
    Lookup(Id),
    /// Hold this record: I, the sender, own it.
    Store(Id, Version),
    /// I do not own this record any more: it has ended.
    Delete(Id, Version),
    /// You need not hold this record of mine any more: others do.
    Release(Id, Version),
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// STORE, DELETE, RELEASE: carried out.
    Done,
    /// STORE: there is no room.
    Full,
    /// STORE, DELETE: the version is too far in the future to be believed.
    Ahead,
    /// STORE, DELETE: a greater claim is held, or was deleted.
    Stale(Claim),
    /// LOOKUP: this claim stands.
    Found(Claim),
    /// LOOKUP: nobody, this claim was deleted.
    Gone(Claim),
    /// LOOKUP: nobody; I would know.
    NotHeld,
    /// LOOKUP: I am none of the record's replicas, as far as I know the others.
    NotReplica,
}

/// Kinds of groups. The numbers are the protocol: never change one, only add.
const LOOKUP: u8 = 1;
const STORE: u8 = 2;
const DELETE: u8 = 3;
const RELEASE: u8 = 4;
const RESULTS: u8 = 5;
const DONE: u8 = 6;

impl Request {
    const fn kind(&self) -> u8 {
        match self {
            Request::Lookup(..) => LOOKUP,
            Request::Store(..) => STORE,
            Request::Delete(..) => DELETE,
            Request::Release(..) => RELEASE,
        }
    }

    /// Id of the record it is about.
    #[must_use]
    pub const fn id(&self) -> Id {
        match *self {
            Request::Lookup(id)
            | Request::Store(id, _)
            | Request::Delete(id, _)
            | Request::Release(id, _) => id,
        }
    }

    /// Bytes of it in a group.
    const fn wire_len(&self) -> usize {
        match self {
            Request::Lookup(..) => 16,
            Request::Store(..) | Request::Delete(..) | Request::Release(..) => 24,
        }
    }
}

impl Encode for Request {
    fn encode<E: Encoder>(&self, e: &mut E) -> Result<(), EncodeError> {
        match *self {
            Request::Lookup(id) => id.0.encode(e),
            Request::Store(id, version)
            | Request::Delete(id, version)
            | Request::Release(id, version) => (id.0, version.0).encode(e),
        }
    }
}

impl Encode for Outcome {
    fn encode<E: Encoder>(&self, e: &mut E) -> Result<(), EncodeError> {
        match *self {
            Outcome::Done => 0u8.encode(e),
            Outcome::Full => 1u8.encode(e),
            Outcome::Ahead => 2u8.encode(e),
            Outcome::Stale(claim) => (3u8, Wire(claim)).encode(e),
            Outcome::Found(claim) => (4u8, Wire(claim)).encode(e),
            Outcome::Gone(claim) => (5u8, Wire(claim)).encode(e),
            Outcome::NotHeld => 6u8.encode(e),
            Outcome::NotReplica => 7u8.encode(e),
        }
    }
}

impl<C> Decode<C> for Outcome {
    fn decode<D: Decoder<Context = C>>(d: &mut D) -> Result<Outcome, DecodeError> {
        Ok(match u8::decode(d)? {
            0 => Outcome::Done,
            1 => Outcome::Full,
            2 => Outcome::Ahead,
            3 => Outcome::Stale(Wire::decode(d)?.0),
            4 => Outcome::Found(Wire::decode(d)?.0),
            5 => Outcome::Gone(Wire::decode(d)?.0),
            6 => Outcome::NotHeld,
            7 => Outcome::NotReplica,
            _ => return Err(DecodeError::Other("unknown outcome")),
        })
    }
}

/// Bytes of the largest outcome: a claim of an owner on IPv6.
const OUTCOME_LEN_MAX: usize = 1 + 8 + 17;

/// A datagram that is being written.
#[derive(Debug)]
pub struct Writer<'a> {
    body: &'a mut [u8; DATAGRAM_MAX],
    len: usize,
    /// Where the group at hand begins, its kind, and the number that would come next in it.
    group: Option<(usize, u8, u32)>,
}

impl<'a> Writer<'a> {
    /// Begins a datagram.
    #[must_use]
    pub fn new(header: &Header, body: &'a mut [u8; DATAGRAM_MAX]) -> Writer<'a> {
        let mut writer = Writer { body, len: PREFIX_LEN, group: None };
        writer.body[..MAGIC.len()].copy_from_slice(&MAGIC);
        writer.body[MAGIC.len()] = VERSION;
        let Header { incarnation, receiver, base, life } = *header;
        writer.put((incarnation, receiver, base, life));
        debug_assert_eq!(writer.len, HEADER_LEN);
        writer
    }

    /// Adds an operation. Returns whether there was room for it.
    pub fn request(&mut self, number: u32, request: &Request) -> bool {
        let fits = self.begin(request.kind(), number, request.wire_len());
        if fits {
            self.put(request);
            self.end();
        }
        fits
    }

    /// Adds a result. Returns whether there was room for it.
    pub fn result(&mut self, number: u32, outcome: &Outcome) -> bool {
        let done = *outcome == Outcome::Done;
        let (kind, len_max) = if done { (DONE, 0) } else { (RESULTS, OUTCOME_LEN_MAX) };
        let fits = self.begin(kind, number, len_max);
        if fits {
            if !done {
                self.put(outcome);
            }
            self.end();
        }
        fits
    }

    /// Whether nothing was added.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == HEADER_LEN
    }

    /// Bytes written.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Goes on with the group at hand or begins another, if an item of `len` bytes fits.
    fn begin(&mut self, kind: u8, number: u32, len: usize) -> bool {
        if let Some((at, at_hand, next)) = self.group
            && at_hand == kind
            && next == number
            && self.body[at + 1] < u8::MAX
        {
            return self.len + len <= DATAGRAM_MAX;
        }
        if self.len + GROUP_LEN + len > DATAGRAM_MAX {
            return false;
        }
        self.group = Some((self.len, kind, number));
        self.put((kind, 0u8, number));
        true
    }

    /// The group at hand has one item more.
    fn end(&mut self) {
        if let Some((at, _, next)) = &mut self.group {
            self.body[*at + 1] += 1;
            *next = next.wrapping_add(1);
        }
    }

    fn put(&mut self, value: impl Encode) {
        // There is room: `begin` has looked.
        let written = bincode::encode_into_slice(value, &mut self.body[self.len..], CODEC);
        debug_assert!(written.is_ok());
        self.len += written.unwrap_or(0);
    }
}

/// What a batch says, one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// An operation to carry out.
    Request(u32, Request),
    /// The result of an operation of ours.
    Result(u32, Outcome),
}

/// A datagram that is being read.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    kind: u8,
    left: u8,
    number: u32,
}

impl<'a> Reader<'a> {
    /// Begins to read; `None` when `bytes` are no batch.
    ///
    /// # Errors
    /// [`MessageError`] when they are one that cannot be read.
    pub fn new(bytes: &'a [u8]) -> Option<Result<(Header, Reader<'a>), MessageError>> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        Some(Reader::after_magic(rest))
    }

    fn after_magic(rest: &'a [u8]) -> Result<(Header, Reader<'a>), MessageError> {
        let (&version, rest) = rest.split_first().ok_or(MessageError::Malformed)?;
        if version != VERSION {
            return Err(MessageError::UnknownVersion(version));
        }
        let mut reader = Reader { rest, kind: 0, left: 0, number: 0 };
        let (incarnation, receiver, base, life) = reader.take()?;
        Ok((Header { incarnation, receiver, base, life }, reader))
    }

    /// The next item.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] at the first one that is none; nothing follows it.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Result<Item, MessageError>> {
        while self.left == 0 {
            if self.rest.is_empty() {
                return None;
            }
            match self.take::<(u8, u8, u32)>() {
                Ok((kind @ LOOKUP..=DONE, left @ 1.., number)) => {
                    (self.kind, self.left, self.number) = (kind, left, number);
                }
                Ok(_) | Err(_) => return Some(Err(self.malformed())),
            }
        }
        let number = self.number;
        self.left -= 1;
        self.number = number.wrapping_add(1);
        let item = self.item(number);
        Some(item.map_err(|_| self.malformed()))
    }

    fn item(&mut self, number: u32) -> Result<Item, MessageError> {
        if self.kind == LOOKUP {
            return Ok(Item::Request(number, Request::Lookup(Id(self.take()?))));
        }
        if self.kind == DONE {
            return Ok(Item::Result(number, Outcome::Done));
        }
        if self.kind == RESULTS {
            return Ok(Item::Result(number, self.take()?));
        }
        let (id, version) = self.take()?;
        let (id, version) = (Id(id), Version(version));
        let request = match self.kind {
            STORE => Request::Store(id, version),
            DELETE => Request::Delete(id, version),
            _ => Request::Release(id, version),
        };
        Ok(Item::Request(number, request))
    }

    fn malformed(&mut self) -> MessageError {
        self.rest = &[];
        self.left = 0;
        MessageError::Malformed
    }

    fn take<T: Decode<()>>(&mut self) -> Result<T, MessageError> {
        let (value, len) =
            bincode::decode_from_slice(self.rest, CODEC).map_err(|_| MessageError::Malformed)?;
        self.rest = self.rest.get(len..).ok_or(MessageError::Malformed)?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    const HEADER: Header = Header { incarnation: 1, receiver: 2, base: 3, life: 4 };

    fn claims() -> impl Strategy<Value = Claim> {
        (any::<u64>(), any::<IpAddr>())
            .prop_map(|(version, owner)| Claim { version: Version(version), owner })
    }

    fn items() -> impl Strategy<Value = Item> {
        let record = || (any::<u128>(), any::<u64>()).prop_map(|(id, v)| (Id(id), Version(v)));
        let request = prop_oneof![
            any::<u128>().prop_map(|id| Request::Lookup(Id(id))),
            record().prop_map(|(id, version)| Request::Store(id, version)),
            record().prop_map(|(id, version)| Request::Delete(id, version)),
            record().prop_map(|(id, version)| Request::Release(id, version)),
        ];
        let outcome = prop_oneof![
            Just(Outcome::Done),
            Just(Outcome::Full),
            Just(Outcome::Ahead),
            claims().prop_map(Outcome::Stale),
            claims().prop_map(Outcome::Found),
            claims().prop_map(Outcome::Gone),
            Just(Outcome::NotHeld),
            Just(Outcome::NotReplica),
        ];
        // Small numbers: consecutive ones make long groups.
        let number = || prop_oneof![Just(7u32), Just(8), Just(u32::MAX), Just(0)];
        prop_oneof![
            (number(), request).prop_map(|(n, request)| Item::Request(n, request)),
            (number(), outcome).prop_map(|(n, outcome)| Item::Result(n, outcome)),
        ]
    }

    fn write(writer: &mut Writer<'_>, item: &Item) -> bool {
        match item {
            Item::Request(number, request) => writer.request(*number, request),
            Item::Result(number, outcome) => writer.result(*number, outcome),
        }
    }

    fn read(bytes: &[u8]) -> Result<(Header, Vec<Item>), MessageError> {
        let (header, mut reader) = Reader::new(bytes).ok_or(MessageError::NotOurs)??;
        let mut items = Vec::new();
        while let Some(item) = reader.next() {
            items.push(item?);
        }
        Ok((header, items))
    }

    proptest! {
        #[test]
        fn is_read_as_it_was_written(items in prop::collection::vec(items(), 0..120)) {
            let mut body = [0; DATAGRAM_MAX];
            let mut writer = Writer::new(&HEADER, &mut body);
            let written = items.iter().take_while(|item| write(&mut writer, item)).count();
            prop_assert_eq!(writer.is_empty(), written == 0);
            let len = writer.len();
            prop_assert_eq!(read(&body[..len]), Ok((HEADER, items[..written].to_vec())));
            for cut in 0..len {
                // A shorter one is another batch or none.
                let _ = read(&body[..cut]);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut batch = [&MAGIC[..], &[VERSION]].concat();
            batch.extend(bytes);
            let _ = read(&batch);
        }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut body = [0; DATAGRAM_MAX];
        let mut writer = Writer::new(&HEADER, &mut body);
        let claim = Claim { version: Version(9), owner: [10, 0, 0, 1].into() };
        assert!(writer.result(5, &Outcome::Done));
        assert!(writer.result(6, &Outcome::Done));
        assert!(writer.result(7, &Outcome::Found(claim)));
        assert!(writer.request(1, &Request::Lookup(Id(0xab))));
        assert!(writer.request(2, &Request::Release(Id(1), Version(2))));
        let len = writer.len();
        let hex: String = body[..len].iter().map(|b| format!("{b:02x}")).collect();
        let expected = [
            "6864686201",
            "0000000000000001",
            "0000000000000002",
            "00000003",
            "00000004",
            "0602",
            "00000005",
            "0501",
            "00000007",
            "04",
            "0000000000000009",
            "040a000001",
            "0101",
            "00000001",
            "000000000000000000000000000000ab",
            "0401",
            "00000002",
            "00000000000000000000000000000001",
            "0000000000000002",
        ];
        assert_eq!(hex, expected.concat());
    }

    #[test]
    fn eighty_lookups_or_fifty_stores_fill_a_datagram() {
        let count = |request: Request| {
            let mut body = [0; DATAGRAM_MAX];
            let mut writer = Writer::new(&HEADER, &mut body);
            (0..).take_while(|number| writer.request(*number, &request)).count()
        };
        assert_eq!(count(Request::Lookup(Id(1))), 82);
        assert_eq!(count(Request::Store(Id(1), Version(1))), 55);
    }

    #[test]
    fn nonsense_ends_a_batch() {
        let mut body = [0; DATAGRAM_MAX];
        let len = Writer::new(&HEADER, &mut body).len();
        for group in [[0, 1, 0, 0, 0, 0], [7, 1, 0, 0, 0, 0], [DONE, 0, 0, 0, 0, 0]] {
            let bytes = [&body[..len], &group].concat();
            assert_eq!(read(&bytes), Err(MessageError::Malformed), "{group:?}");
        }
        assert!(Reader::new(b"hdht\x01").is_none());
        assert_eq!(read(b"hdhb\x02"), Err(MessageError::UnknownVersion(2)));
    }
}
