//! The datagrams of the control port and their bytes. Never reads beyond a datagram's end and
//! never allocates more than a datagram's limit, whatever the bytes say.
//!
//! ```text
//!  0        4         5          21        +1+4|16   +8            +8
//!  ┌────────┬─────────┬──────────┬─────────┬─────────────┬─────────────┬─────────┐
//!  │ "hdht" │ version │ sender's │ sender's│ sender's    │ transaction │ message │
//!  │        │ 1       │ id       │ locator │ incarnation │             │         │
//!  └────────┴─────────┴──────────┴─────────┴─────────────┴─────────────┴─────────┘
//! ```
//! Numbers are in network order and of fixed size; an address is its family (4 or 6) and its
//! octets; a message is its kind in 32 bits and its fields.

use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayVec;
use bincode::config::{BigEndian, Configuration, Fixint, Limit};
use bincode::de::{Decode, Decoder};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};
use holdfast_handoff::Version;
use holdfast_net::FlowKey;
use thiserror::Error;

use crate::id::Id;
use crate::record::Claim;

/// What every datagram begins with.
pub const MAGIC: [u8; 4] = *b"hdht";
/// Version of this protocol.
pub const VERSION: u8 = 1;
/// Bytes of the largest datagram before it is sealed ([`crate::auth`]): 1,400 with that.
pub const DATAGRAM_MAX: usize = 1400 - crate::auth::OVERHEAD;
/// Contacts in an answer to FIND_NODE.
pub const NODES_MAX: usize = 64;
/// Contacts in an answer to FIND_VALUE.
pub const CLOSER_MAX: usize = 8;

const PREFIX_LEN: usize = MAGIC.len() + 1;

pub(crate) const CODEC: Configuration<BigEndian, Fixint, Limit<DATAGRAM_MAX>> =
    bincode::config::standard()
        .with_big_endian()
        .with_fixed_int_encoding()
        .with_limit::<DATAGRAM_MAX>();

/// Contacts as they travel: control sockets. Ids follow from the addresses.
pub type Contacts<const N: usize> = ArrayVec<SocketAddr, N>;

/// A datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub sender: Sender,
    /// Random; an answer bears the one of its request.
    pub transaction: u64,
    /// What it says.
    pub message: Message,
}

/// Who sent a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// Id of the node: the hash of its locator.
    pub id: Id,
    /// Its locator; the datagram's source address is the same.
    pub locator: IpAddr,
    /// When the node started, in microseconds since the Unix epoch: another value means that it
    /// has restarted and holds nothing of what it held.
    pub incarnation: u64,
}

/// What a datagram says. A request's answer is named below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Are you there?
    Ping,
    /// Answer to PING.
    Pong,
    /// Which nodes do you know that are closest to this id?
    FindNode {
        /// The id.
        target: Id,
        /// How many at most.
        want: u8,
    },
    /// Answer to FIND_NODE, closest first.
    Nodes(Box<Contacts<NODES_MAX>>),
    /// Who owns the record with this id?
    FindValue {
        /// Id of the record.
        id: Id,
    },
    /// Answer to FIND_VALUE: this claim.
    Found(Claim),
    /// Answer to FIND_VALUE: nobody, this claim was deleted.
    Gone(Claim),
    /// Answer to FIND_VALUE: I know nothing; these nodes are closest to it.
    NotHeld(Box<Contacts<CLOSER_MAX>>),
    /// You tunnelled this flow to me, but I do not hold it (R6). Has no answer.
    NotMine(FlowKey),
    /// This server does not answer me: does it answer you? ("ping-req" of SWIM.)
    PingReq {
        /// The server.
        life: Life,
        /// An answer of it that you had this long ago at most is good enough, in µs.
        within_us: u32,
    },
    /// Answer to PING_REQ: it does; not sent when it does not.
    PongRelayed {
        /// Incarnation of the server asked for.
        incarnation: u64,
        /// How long ago it answered, in µs.
        ago_us: u32,
    },
    /// This server answers neither me nor those I asked: see for yourself. Has no answer.
    Suspect(Life),
    /// I, the sender, heard that I am suspect, and live. Has no answer.
    Alive,
    /// I, the sender, stop: this incarnation of mine will send nothing more. Has no answer.
    Leave,
    /// Another server's claim has taken the place of your record here (R12). Has no answer.
    Superseded {
        /// Id of the record.
        id: Id,
        /// The claim that is held now.
        claim: Claim,
    },
}

/// One life of a server, as another one names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Its control socket.
    pub address: SocketAddr,
    /// Its incarnation.
    pub incarnation: u64,
}

/// Why bytes are no datagram of ours.
#[derive(Debug, Clone, Copy, Error, PartialEq, Eq)]
pub enum MessageError {
    /// They do not begin with [`MAGIC`].
    #[error("not a datagram of the holdfast DHT")]
    NotOurs,
    /// Another [`VERSION`].
    #[error("version {0} of the protocol, expected {VERSION}")]
    UnknownVersion(u8),
    /// Too short, too long, or nonsense.
    #[error("malformed datagram")]
    Malformed,
}

impl Datagram {
    /// Writes the datagram to the start of `bytes` and returns its length.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] when it does not fit, which no datagram does that this
    /// module can express.
    pub fn encode(&self, bytes: &mut [u8; DATAGRAM_MAX]) -> Result<usize, MessageError> {
        bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        bytes[MAGIC.len()] = VERSION;
        let rest = (self.sender, self.transaction, &self.message);
        bincode::encode_into_slice(rest, &mut bytes[PREFIX_LEN..], CODEC)
            .map(|len| PREFIX_LEN + len)
            .map_err(|_| MessageError::Malformed)
    }

    /// Reads the datagram that `bytes` are.
    ///
    /// # Errors
    /// [`MessageError`] when they are none.
    pub fn decode(bytes: &[u8]) -> Result<Datagram, MessageError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(MessageError::NotOurs)?;
        let (&version, rest) = rest.split_first().ok_or(MessageError::Malformed)?;
        if version != VERSION {
            return Err(MessageError::UnknownVersion(version));
        }
        let ((sender, transaction, message), len): ((Sender, u64, Message), usize) =
            bincode::decode_from_slice(rest, CODEC).map_err(|_| MessageError::Malformed)?;
        if len != rest.len() {
            return Err(MessageError::Malformed);
        }
        Ok(Datagram { sender, transaction, message })
    }
}

impl Message {
    /// Whether it is the answer to a request.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        match self {
            Message::Ping
            | Message::FindNode { .. }
            | Message::FindValue { .. }
            | Message::NotMine(_)
            | Message::PingReq { .. }
            | Message::Suspect(_)
            | Message::Alive
            | Message::Leave
            | Message::Superseded { .. } => false,
            Message::Pong
            | Message::Nodes(_)
            | Message::Found(_)
            | Message::Gone(_)
            | Message::NotHeld(_)
            | Message::PongRelayed { .. } => true,
        }
    }
}

// The numbers are the protocol: never change one, only add.
const PING: u32 = 0;
const PONG: u32 = 1;
const FIND_NODE: u32 = 7;
const NODES: u32 = 8;
const FIND_VALUE: u32 = 9;
const FOUND: u32 = 10;
const GONE: u32 = 11;
const NOT_HELD: u32 = 12;
const NOT_MINE: u32 = 15;
const PING_REQ: u32 = 16;
const PONG_RELAYED: u32 = 17;
const SUSPECT: u32 = 18;
const ALIVE: u32 = 19;
const LEAVE: u32 = 20;
const SUPERSEDED: u32 = 21;

impl Encode for Message {
    fn encode<E: Encoder>(&self, e: &mut E) -> Result<(), EncodeError> {
        match self {
            Message::Ping => PING.encode(e),
            Message::Pong => PONG.encode(e),
            Message::FindNode { target, want } => (FIND_NODE, target.0, *want).encode(e),
            Message::Nodes(contacts) => encode_contacts(NODES, contacts, e),
            Message::FindValue { id } => (FIND_VALUE, id.0).encode(e),
            Message::Found(claim) => (FOUND, Wire(*claim)).encode(e),
            Message::Gone(claim) => (GONE, Wire(*claim)).encode(e),
            Message::NotHeld(contacts) => encode_contacts(NOT_HELD, contacts, e),
            Message::NotMine(flow) => (NOT_MINE, flow.to_words()).encode(e),
            Message::PingReq { life, within_us } => (PING_REQ, Wire(*life), *within_us).encode(e),
            Message::PongRelayed { incarnation, ago_us } => {
                (PONG_RELAYED, *incarnation, *ago_us).encode(e)
            }
            Message::Suspect(life) => (SUSPECT, Wire(*life)).encode(e),
            Message::Alive => ALIVE.encode(e),
            Message::Leave => LEAVE.encode(e),
            Message::Superseded { id, claim } => (SUPERSEDED, id.0, Wire(*claim)).encode(e),
        }
    }
}

impl<C> Decode<C> for Message {
    fn decode<D: Decoder<Context = C>>(d: &mut D) -> Result<Message, DecodeError> {
        Ok(match u32::decode(d)? {
            PING => Message::Ping,
            PONG => Message::Pong,
            FIND_NODE => Message::FindNode { target: Id(u128::decode(d)?), want: u8::decode(d)? },
            NODES => Message::Nodes(Box::new(decode_contacts(d)?)),
            FIND_VALUE => Message::FindValue { id: Id(u128::decode(d)?) },
            FOUND => Message::Found(Wire::decode(d)?.0),
            GONE => Message::Gone(Wire::decode(d)?.0),
            NOT_HELD => Message::NotHeld(Box::new(decode_contacts(d)?)),
            NOT_MINE => Message::NotMine(
                FlowKey::from_words(Decode::decode(d)?).ok_or(DecodeError::Other("no flow"))?,
            ),
            PING_REQ => Message::PingReq { life: Wire::decode(d)?.0, within_us: u32::decode(d)? },
            PONG_RELAYED => {
                Message::PongRelayed { incarnation: u64::decode(d)?, ago_us: u32::decode(d)? }
            }
            SUSPECT => Message::Suspect(Wire::decode(d)?.0),
            ALIVE => Message::Alive,
            LEAVE => Message::Leave,
            SUPERSEDED => {
                Message::Superseded { id: Id(u128::decode(d)?), claim: Wire::decode(d)?.0 }
            }
            _ => return Err(DecodeError::Other("no message")),
        })
    }
}

impl Encode for Sender {
    fn encode<E: Encoder>(&self, e: &mut E) -> Result<(), EncodeError> {
        (self.id.0, Wire(self.locator), self.incarnation).encode(e)
    }
}

impl<C> Decode<C> for Sender {
    fn decode<D: Decoder<Context = C>>(d: &mut D) -> Result<Sender, DecodeError> {
        Ok(Sender {
            id: Id(u128::decode(d)?),
            locator: Wire::decode(d)?.0,
            incarnation: u64::decode(d)?,
        })
    }
}

/// The wire's form of a type that has another one in bincode, or none.
pub(crate) struct Wire<T>(pub(crate) T);

const FAMILY_IPV4: u8 = 4;
const FAMILY_IPV6: u8 = 6;

impl Encode for Wire<IpAddr> {
    fn encode<E: Encoder>(&self, e: &mut E) -> Result<(), EncodeError> {
        match self.0 {
            IpAddr::V4(v4) => (FAMILY_IPV4, v4.octets()).encode(e),
            IpAddr::V6(v6) => (FAMILY_IPV6, v6.octets()).encode(e),
        }
    }
}

impl<C> Decode<C> for Wire<IpAddr> {
    fn decode<D: Decoder<Context = C>>(d: &mut D) -> Result<Self, DecodeError> {
        match u8::decode(d)? {
            FAMILY_IPV4 => Ok(Wire(<[u8; 4]>::decode(d)?.into())),
            FAMILY_IPV6 => Ok(Wire(<[u8; 16]>::decode(d)?.into())),
            _ => Err(DecodeError::Other("no address family")),
        }
    }
}

impl Encode for Wire<Claim> {
    fn encode<E: Encoder>(&self, e: &mut E) -> Result<(), EncodeError> {
        (self.0.version.0, Wire(self.0.owner)).encode(e)
    }
}

impl<C> Decode<C> for Wire<Claim> {
    fn decode<D: Decoder<Context = C>>(d: &mut D) -> Result<Self, DecodeError> {
        Ok(Wire(Claim { version: Version(u64::decode(d)?), owner: Wire::decode(d)?.0 }))
    }
}

impl Encode for Wire<SocketAddr> {
    fn encode<E: Encoder>(&self, e: &mut E) -> Result<(), EncodeError> {
        (Wire(self.0.ip()), self.0.port()).encode(e)
    }
}

impl<C> Decode<C> for Wire<SocketAddr> {
    fn decode<D: Decoder<Context = C>>(d: &mut D) -> Result<Self, DecodeError> {
        let ip: IpAddr = Wire::decode(d)?.0;
        Ok(Wire(SocketAddr::new(ip, u16::decode(d)?)))
    }
}

impl Encode for Wire<Life> {
    fn encode<E: Encoder>(&self, e: &mut E) -> Result<(), EncodeError> {
        (Wire(self.0.address), self.0.incarnation).encode(e)
    }
}

impl<C> Decode<C> for Wire<Life> {
    fn decode<D: Decoder<Context = C>>(d: &mut D) -> Result<Self, DecodeError> {
        Ok(Wire(Life { address: Wire::decode(d)?.0, incarnation: u64::decode(d)? }))
    }
}

fn encode_contacts<E: Encoder>(
    kind: u32,
    contacts: &[SocketAddr],
    e: &mut E,
) -> Result<(), EncodeError> {
    // Never more than NODES_MAX.
    (kind, contacts.len() as u8).encode(e)?;
    contacts.iter().try_for_each(|contact| Wire(*contact).encode(e))
}

fn decode_contacts<D: Decoder, const N: usize>(d: &mut D) -> Result<Contacts<N>, DecodeError> {
    let len = usize::from(u8::decode(d)?);
    if len > N {
        return Err(DecodeError::Other("too many contacts"));
    }
    let mut contacts = Contacts::new();
    for _ in 0..len {
        contacts.push(Wire::decode(d)?.0);
    }
    Ok(contacts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|a| Ipv4Addr::from(a).into()),
            any::<u128>().prop_map(|a| Ipv6Addr::from(a).into()),
        ]
    }

    fn contacts<const N: usize>() -> impl Strategy<Value = Box<Contacts<N>>> {
        let contact = (addresses(), any::<u16>()).prop_map(SocketAddr::from);
        prop::collection::vec(contact, 0..=N).prop_map(|c| Box::new(c.into_iter().collect()))
    }

    fn messages() -> impl Strategy<Value = Message> {
        let claim = || {
            (any::<u64>().prop_map(Version), addresses())
                .prop_map(|(version, owner)| Claim { version, owner })
        };
        let life = || {
            (addresses(), any::<(u16, u64)>()).prop_map(|(ip, (port, incarnation))| Life {
                address: SocketAddr::new(ip, port),
                incarnation,
            })
        };
        let flow = any::<([u8; 16], u16, [u8; 16], u16)>()
            .prop_map(|(c, cp, s, sp)| FlowKey::tcp_v6(c, cp, s, sp));
        prop_oneof![
            Just(Message::Ping),
            Just(Message::Pong),
            (any::<u128>().prop_map(Id), any::<u8>())
                .prop_map(|(target, want)| Message::FindNode { target, want }),
            contacts().prop_map(Message::Nodes),
            any::<u128>().prop_map(|id| Message::FindValue { id: Id(id) }),
            claim().prop_map(Message::Found),
            claim().prop_map(Message::Gone),
            contacts().prop_map(Message::NotHeld),
            flow.prop_map(Message::NotMine),
            (life(), any::<u32>())
                .prop_map(|(life, within_us)| Message::PingReq { life, within_us }),
            any::<(u64, u32)>()
                .prop_map(|(incarnation, ago_us)| Message::PongRelayed { incarnation, ago_us }),
            life().prop_map(Message::Suspect),
            Just(Message::Alive),
            Just(Message::Leave),
            (any::<u128>().prop_map(Id), claim())
                .prop_map(|(id, claim)| Message::Superseded { id, claim }),
        ]
    }

    fn datagrams() -> impl Strategy<Value = Datagram> {
        (any::<(u128, u64, u64)>(), addresses(), messages()).prop_map(
            |((id, incarnation, transaction), locator, message)| Datagram {
                sender: Sender { id: Id(id), locator, incarnation },
                transaction,
                message,
            },
        )
    }

    fn bytes(datagram: &Datagram) -> Vec<u8> {
        let mut bytes = [0; DATAGRAM_MAX];
        let len = datagram.encode(&mut bytes).expect("fits");
        bytes[..len].to_vec()
    }

    proptest! {
        #[test]
        fn comes_back_as_it_was(datagram in datagrams()) {
            prop_assert_eq!(Datagram::decode(&bytes(&datagram)), Ok(datagram));
        }

        #[test]
        fn hostile_bytes_are_refused(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
            // Whatever is accepted is exactly what we would have sent.
            let mut framed = [&MAGIC[..], &[VERSION], &noise].concat();
            for bytes_in in [&noise[..], &framed] {
                if let Ok(datagram) = Datagram::decode(bytes_in) {
                    prop_assert_eq!(bytes(&datagram), bytes_in);
                }
            }
            framed[4] = 2;
            prop_assert_eq!(Datagram::decode(&framed), Err(MessageError::UnknownVersion(2)));
        }

        #[test]
        fn damaged_datagrams_are_refused_or_other_ones(
            datagram in datagrams(),
            place in any::<prop::sample::Index>(),
            damage in 1..=255u8,
        ) {
            let mut damaged = bytes(&datagram);
            let cut = place.index(damaged.len());
            prop_assert!(Datagram::decode(&damaged[..cut]).is_err());
            let long = [&damaged[..], &[damage]].concat();
            prop_assert_eq!(Datagram::decode(&long), Err(MessageError::Malformed));
            damaged[cut] ^= damage;
            if let Ok(other) = Datagram::decode(&damaged) {
                prop_assert_eq!(bytes(&other), damaged);
            }
        }
    }

    fn datagram(locator: IpAddr, message: Message) -> Datagram {
        Datagram {
            sender: Sender {
                id: Id(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
                locator,
                incarnation: 0x0102_0304_0506_0708,
            },
            transaction: 0xa1a2_a3a4_a5a6_a7a8,
            message,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_largest_answers_fit_a_datagram() {
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 7000);
        let nodes = Message::Nodes(Box::new([v6; NODES_MAX].into()));
        let len = bytes(&datagram(v6.ip(), nodes)).len();
        assert!(len <= DATAGRAM_MAX, "{len}");
    }

    #[test]
    fn bytes_are_pinned() {
        // Change these only together with VERSION.
        const HEAD: &str = concat!(
            "68646874",
            "01",                               // "hdht", version
            "00112233445566778899aabbccddeeff", // sender's id
            "04",
            "0a000001",         // IPv4, sender's locator
            "0102030405060708", // incarnation
            "a1a2a3a4a5a6a7a8", // transaction
        );
        const ID: &str = "000000000000000000000000000000ab";
        const CLAIM: &str = concat!("0006000000000001", "04", "0a000002");
        const LIFE: &str = concat!("04", "0a000003", "1b58", "00000000000000ab");
        let id = Id(0xab);
        let version = Version(0x0006_0000_0000_0001);
        let owner = [10, 0, 0, 2].into();
        let claim = Claim { version, owner };
        let v4 = SocketAddr::from(([10, 0, 0, 3], 7000));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 7001));
        let life = Life { address: v4, incarnation: 0xab };
        let two = "02040a0000031b5806000000000000000000000000000000011b59";
        let flow = FlowKey::tcp_v4([20, 1, 1, 1], 1234, [192, 168, 0, 1], 80);
        let words = concat!(
            "0000000014010101",
            "0000000000000000",
            "00000000c0a80001",
            "0000000000000000",
            "04d2005000000604",
        );
        let rows = [
            (Message::Ping, "00000000".to_owned()),
            (Message::Pong, "00000001".to_owned()),
            (Message::FindNode { target: id, want: 64 }, format!("00000007{ID}40")),
            (Message::Nodes(Box::new([v4, v6].into_iter().collect())), format!("00000008{two}")),
            (Message::FindValue { id }, format!("00000009{ID}")),
            (Message::Found(claim), format!("0000000a{CLAIM}")),
            (Message::Gone(claim), format!("0000000b{CLAIM}")),
            (Message::NotHeld(Box::new([v4, v6].into_iter().collect())), format!("0000000c{two}")),
            (Message::NotMine(flow), format!("0000000f{words}")),
            (Message::PingReq { life, within_us: 7 }, format!("00000010{LIFE}00000007")),
            (
                Message::PongRelayed { incarnation: 0xab, ago_us: 7 },
                "0000001100000000000000ab00000007".to_owned(),
            ),
            (Message::Suspect(life), format!("00000012{LIFE}")),
            (Message::Alive, "00000013".to_owned()),
            (Message::Leave, "00000014".to_owned()),
            (Message::Superseded { id, claim }, format!("00000015{ID}{CLAIM}")),
        ];
        for (message, expected) in rows {
            let datagram = datagram([10, 0, 0, 1].into(), message);
            assert_eq!(hex(&bytes(&datagram)), format!("{HEAD}{expected}"));
        }
        let v6_locator = bytes(&datagram(Ipv6Addr::LOCALHOST.into(), Message::Ping));
        assert_eq!(hex(&v6_locator[21..38]), "0600000000000000000000000000000001");
    }

    #[test]
    fn words_that_are_no_flow_are_refused() {
        let flow = FlowKey::tcp_v4([20, 1, 1, 1], 1234, [192, 168, 0, 1], 80);
        let mut bytes = bytes(&datagram([10, 0, 0, 1].into(), Message::NotMine(flow)));
        assert!(Datagram::decode(&bytes).is_ok());
        let last = bytes.len() - 1;
        bytes[last] = 5;
        assert_eq!(Datagram::decode(&bytes), Err(MessageError::Malformed));
    }
}
