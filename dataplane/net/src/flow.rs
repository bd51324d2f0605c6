//! The flow key: the full 5-tuple of a TCP session, for IPv4 and IPv6. Behind NAT one client
//! socket can talk to two services, so the paper's client socket alone is not unique.

use std::fmt;
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use siphasher::sip::SipHasher13;
use thiserror::Error;

use crate::headers::PROTOCOL_TCP;

const FAMILY_IPV4: u64 = 4;
const FAMILY_IPV6: u64 = 6;

/// A flow: protocol, client address and port, service address and port.
///
/// Kept as five words, so that it can be compared, hashed and stored without looking at the
/// family: client address (two words), service address (two words), then ports, protocol and
/// family. The same five words on every machine: they are what the DHT hashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey([u64; 5]);

/// Secret key of [`FlowKey::hash`]: attackers choose the 5-tuples, so it is random per boot.
#[derive(Clone, Copy)]
pub struct HashKey(pub [u64; 2]);

impl FlowKey {
    /// The TCP flow of `client` to `service`; `None` when their families differ.
    #[must_use]
    pub fn tcp(client: SocketAddr, service: SocketAddr) -> Option<FlowKey> {
        match (client.ip(), service.ip()) {
            (IpAddr::V4(c), IpAddr::V4(s)) => {
                Some(FlowKey::tcp_v4(c.octets(), client.port(), s.octets(), service.port()))
            }
            (IpAddr::V6(c), IpAddr::V6(s)) => {
                Some(FlowKey::tcp_v6(c.octets(), client.port(), s.octets(), service.port()))
            }
            _ => None,
        }
    }

    /// The TCP flow over IPv4 with these addresses and ports.
    #[must_use]
    pub fn tcp_v4(
        client: [u8; 4],
        client_port: u16,
        service: [u8; 4],
        service_port: u16,
    ) -> FlowKey {
        FlowKey([
            u64::from(u32::from_be_bytes(client)),
            0,
            u64::from(u32::from_be_bytes(service)),
            0,
            tail(client_port, service_port, FAMILY_IPV4),
        ])
    }

    /// The TCP flow over IPv6 with these addresses and ports.
    #[must_use]
    pub fn tcp_v6(
        client: [u8; 16],
        client_port: u16,
        service: [u8; 16],
        service_port: u16,
    ) -> FlowKey {
        let client = u128::from_be_bytes(client);
        let service = u128::from_be_bytes(service);
        FlowKey([
            (client >> 64) as u64,
            client as u64,
            (service >> 64) as u64,
            service as u64,
            tail(client_port, service_port, FAMILY_IPV6),
        ])
    }

    /// The client's socket.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.address(self.0[0], self.0[1]), (self.0[4] >> 48) as u16)
    }

    /// The service's socket.
    #[must_use]
    pub fn service(&self) -> SocketAddr {
        SocketAddr::new(self.address(self.0[2], self.0[3]), (self.0[4] >> 32) as u16)
    }

    /// Whether the flow runs over IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.0[4] & 0xff == FAMILY_IPV4
    }

    fn address(&self, high: u64, low: u64) -> IpAddr {
        if self.is_ipv4() {
            IpAddr::V4(Ipv4Addr::from(high as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)))
        }
    }

    /// The key as words, for tables and for the wire.
    #[must_use]
    pub const fn to_words(self) -> [u64; 5] {
        self.0
    }

    /// The key that [`FlowKey::to_words`] gave; `None` when the words are no flow key.
    #[must_use]
    pub fn from_words(words: [u64; 5]) -> Option<FlowKey> {
        let key = FlowKey(words);
        let rebuilt = FlowKey::tcp(key.client(), key.service())?;
        (rebuilt == key).then_some(key)
    }

    /// The key from words that [`FlowKey::to_words`] wrote into memory of ours. Unlike
    /// [`FlowKey::from_words`] it does not check them: never use it on bytes from a peer.
    #[must_use]
    pub const fn from_trusted_words(words: [u64; 5]) -> FlowKey {
        FlowKey(words)
    }

    /// A keyed hash (SipHash-1-3) of the flow.
    #[must_use]
    pub fn hash(&self, key: &HashKey) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(key.0[0], key.0[1]);
        if self.is_ipv4() {
            hasher.write_u64(self.0[0] << 32 | self.0[2]);
        } else {
            for word in &self.0[..4] {
                hasher.write_u64(*word);
            }
        }
        hasher.write_u64(self.0[4]);
        hasher.finish()
    }
}

fn tail(client_port: u16, service_port: u16, family: u64) -> u64 {
    u64::from(client_port) << 48
        | u64::from(service_port) << 32
        | u64::from(PROTOCOL_TCP) << 8
        | family
}

impl fmt::Display for FlowKey {
    /// `CLIENT-SERVICE`, as in `20.1.1.1:1234-192.168.0.1:80` or
    /// `[2001:db8::1]:1234-[2001:db8::80]:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.client(), self.service())
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no flow.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' is no flow: expected CLIENT-SERVICE of one address family, \
     as in 20.1.1.1:1234-192.168.0.1:80 or [2001:db8::1]:1234-[2001:db8::80]:80"
)]
pub struct FlowKeyError(pub String);

impl FromStr for FlowKey {
    type Err = FlowKeyError;

    fn from_str(text: &str) -> Result<FlowKey, FlowKeyError> {
        let error = || FlowKeyError(text.to_owned());
        let (client, service) = text.split_once('-').ok_or_else(error)?;
        let client = client.trim().parse().map_err(|_| error())?;
        let service = service.trim().parse().map_err(|_| error())?;
        FlowKey::tcp(client, service).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sockets() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = any::<([u8; 4], u16, [u8; 4], u16)>()
            .prop_map(|(c, cp, s, sp)| (SocketAddr::from((c, cp)), SocketAddr::from((s, sp))));
        let v6 = any::<([u8; 16], u16, [u8; 16], u16)>()
            .prop_map(|(c, cp, s, sp)| (SocketAddr::from((c, cp)), SocketAddr::from((s, sp))));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn keeps_both_sockets((client, service) in sockets()) {
            let key = FlowKey::tcp(client, service).expect("one family");
            prop_assert_eq!(key.client(), client);
            prop_assert_eq!(key.service(), service);
            prop_assert_eq!(FlowKey::from_words(key.to_words()), Some(key));
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }

        #[test]
        fn hostile_words_never_panic(words in any::<[u64; 5]>()) {
            if let Some(key) = FlowKey::from_words(words) {
                prop_assert_eq!(key.to_words(), words);
            }
        }
    }

    #[test]
    fn a_mapped_address_is_another_flow() {
        let v4 = FlowKey::tcp_v4([1, 2, 3, 4], 5, [6, 7, 8, 9], 80);
        let mapped = |a: [u8; 4]| Ipv4Addr::from(a).to_ipv6_mapped().octets();
        let v6 = FlowKey::tcp_v6(mapped([1, 2, 3, 4]), 5, mapped([6, 7, 8, 9]), 80);
        assert_ne!(v4, v6);
    }

    #[test]
    fn refuses_what_is_no_flow() {
        for text in ["", "1.2.3.4:5", "1.2.3.4:5-[::1]:80", "1.2.3.4-5.6.7.8:80", "a-b"] {
            assert!(text.parse::<FlowKey>().is_err(), "{text}");
        }
    }
}
