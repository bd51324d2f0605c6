//! The services that this server announces, and the short name of a flow that they make
//! possible: a service's number in place of its address and port. A set of them never changes;
//! one that comes after it gives no number a second meaning.

use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayVec;
use holdfast_net::FlowKey;
use thiserror::Error;

/// Service sockets, at most.
pub const SERVICES_MAX: usize = 64;

/// The sockets of the services: what the appliance is for. All else passes through it.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// Address and port in one word, see [`v4_word`]; a service's number is its place.
    v4: ArrayVec<u64, SERVICES_MAX>,
    /// The same for IPv6; the port has [`RETIRED_V6`] above it.
    v6: ArrayVec<([u64; 2], u32), SERVICES_MAX>,
}

/// Set in the word of a service that is none any more: no packet's word has it, so nothing is
/// taken for that service's, but its keys still have a flow.
const RETIRED_V4: u64 = 1 << 48;
const RETIRED_V6: u32 = 1 << 16;

/// More service sockets than [`SERVICES_MAX`], those of former services included.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("at most {SERVICES_MAX} pairs of service address and port are possible")]
pub struct TooManyServices;

/// A service's flow, exactly, in as few bits as there can be: the client's socket and the
/// service's number. Two different flows never have the same key; a key means something only
/// together with the [`Services`] that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKey {
    /// `service 6 | client address 32 | client port 16`, 54 bits.
    V4(u64),
    /// An IPv6 flow.
    V6 {
        /// The client's address.
        client: [u64; 2],
        /// `service 6 | client port 16`, 22 bits.
        tail: u32,
    },
}

/// Bits of [`SessionKey::V4`].
pub const KEY_BITS_V4: u32 = 54;
/// Bits of [`SessionKey::V6`]'s `tail`.
pub const TAIL_BITS_V6: u32 = 22;

const _: () = assert!(SERVICES_MAX <= 1 << 6);

impl Services {
    /// The set of these sockets, each once.
    ///
    /// # Errors
    /// [`TooManyServices`].
    pub fn new(sockets: impl IntoIterator<Item = SocketAddr>) -> Result<Services, TooManyServices> {
        Services::default().followed_by(sockets)
    }

    /// The set of these sockets, in the place of this set: a socket that was a service's has the
    /// number that it had, and no other one gets it.
    ///
    /// # Errors
    /// [`TooManyServices`].
    pub fn followed_by(
        &self,
        sockets: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<Services, TooManyServices> {
        let mut services = self.clone();
        services.v4.iter_mut().for_each(|word| *word |= RETIRED_V4);
        services.v6.iter_mut().for_each(|(_, port)| *port |= RETIRED_V6);
        for socket in sockets {
            services.add(socket)?;
        }
        Ok(services)
    }

    fn add(&mut self, socket: SocketAddr) -> Result<(), TooManyServices> {
        let is_full = self.numbers() == SERVICES_MAX;
        match socket.ip() {
            IpAddr::V4(address) => {
                let new = v4_word(address.octets(), socket.port());
                match self.v4.iter_mut().find(|word| **word & !RETIRED_V4 == new) {
                    Some(word) => *word = new,
                    None if is_full => return Err(TooManyServices),
                    None => self.v4.push(new),
                }
            }
            IpAddr::V6(address) => {
                let new = (v6_words(address.octets()), u32::from(socket.port()));
                match self.v6.iter_mut().find(|(a, port)| (*a, port & !RETIRED_V6) == new) {
                    Some(service) => *service = new,
                    None if is_full => return Err(TooManyServices),
                    None => self.v6.push(new),
                }
            }
        }
        Ok(())
    }

    /// Whether there are services of IPv4, and of IPv6; or were.
    #[must_use]
    pub fn families(&self) -> (bool, bool) {
        (!self.v4.is_empty(), !self.v6.is_empty())
    }

    /// How many sockets have a number, those of former services too: [`SERVICES_MAX`] at most.
    #[must_use]
    pub fn numbers(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are services that are none any more.
    #[must_use]
    pub fn any_retired(&self) -> bool {
        self.v4.iter().any(|word| word & RETIRED_V4 != 0)
            || self.v6.iter().any(|(_, port)| port & RETIRED_V6 != 0)
    }

    /// Whether a key is of a service that is none any more.
    #[must_use]
    pub fn is_retired(&self, key: &SessionKey) -> bool {
        match *key {
            SessionKey::V4(word) => {
                let service = self.v4.get((word >> 48) as usize);
                service.is_some_and(|word| word & RETIRED_V4 != 0)
            }
            SessionKey::V6 { tail, .. } => {
                let service = self.v6.get((tail >> 16) as usize);
                service.is_some_and(|(_, port)| port & RETIRED_V6 != 0)
            }
        }
    }

    /// Whether this socket is a service's.
    #[must_use]
    pub fn contains(&self, address: IpAddr, port: u16) -> bool {
        match address {
            IpAddr::V4(address) => self.number_v4(address.octets(), port).is_some(),
            IpAddr::V6(address) => self.number_v6(v6_words(address.octets()), port).is_some(),
        }
    }

    /// Whether this address is a service's, whatever the port.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let wanted = v4_word(v4.octets(), 0);
                self.v4.iter().any(|word| word & !0xffff == wanted)
            }
            IpAddr::V6(v6) => {
                let wanted = v6_words(v6.octets());
                self.v6.iter().any(|(words, port)| *words == wanted && port & RETIRED_V6 == 0)
            }
        }
    }

    /// The address of the first service at this port, of IPv4 or IPv6.
    #[must_use]
    pub fn address_of_port(&self, port: u16, is_ipv4: bool) -> Option<IpAddr> {
        if is_ipv4 {
            let is = |word: &&u64| **word & RETIRED_V4 == 0 && **word as u16 == port;
            let word = self.v4.iter().find(is)?;
            Some(IpAddr::from(((word >> 16) as u32).to_be_bytes()))
        } else {
            let (address, _) = self.v6.iter().find(|(_, other)| *other == u32::from(port))?;
            Some(IpAddr::from(octets(*address)))
        }
    }

    /// The key of an IPv4 flow; `None` when its service is none of ours.
    #[inline]
    #[must_use]
    pub fn key_v4(
        &self,
        client: [u8; 4],
        client_port: u16,
        service: [u8; 4],
        service_port: u16,
    ) -> Option<SessionKey> {
        let number = self.number_v4(service, service_port)? as u64;
        let client = u64::from(u32::from_be_bytes(client));
        Some(SessionKey::V4(number << 48 | client << 16 | u64::from(client_port)))
    }

    /// The key of an IPv6 flow; `None` when its service is none of ours.
    #[inline]
    #[must_use]
    pub fn key_v6(
        &self,
        client: [u8; 16],
        client_port: u16,
        service: [u8; 16],
        service_port: u16,
    ) -> Option<SessionKey> {
        let number = self.number_v6(v6_words(service), service_port)? as u32;
        Some(SessionKey::V6 {
            client: v6_words(client),
            tail: number << 16 | u32::from(client_port),
        })
    }

    /// The key of `flow`; `None` when its service is none of ours.
    #[must_use]
    pub fn key(&self, flow: &FlowKey) -> Option<SessionKey> {
        let (client, service) = (flow.client(), flow.service());
        match (client.ip(), service.ip()) {
            (IpAddr::V4(c), IpAddr::V4(s)) => {
                self.key_v4(c.octets(), client.port(), s.octets(), service.port())
            }
            (IpAddr::V6(c), IpAddr::V6(s)) => {
                self.key_v6(c.octets(), client.port(), s.octets(), service.port())
            }
            _ => None,
        }
    }

    /// The flow of a key that these services made, or those before them; `None` when they did not.
    #[must_use]
    pub fn flow(&self, key: &SessionKey) -> Option<FlowKey> {
        match *key {
            SessionKey::V4(word) => {
                let service = self.v4.get((word >> 48) as usize)?;
                let client = ((word >> 16) as u32).to_be_bytes();
                let address = ((service >> 16) as u32).to_be_bytes();
                Some(FlowKey::tcp_v4(client, word as u16, address, *service as u16))
            }
            SessionKey::V6 { client, tail } => {
                let (service, port) = self.v6.get((tail >> 16) as usize)?;
                Some(FlowKey::tcp_v6(octets(client), tail as u16, octets(*service), *port as u16))
            }
        }
    }

    #[inline]
    fn number_v4(&self, address: [u8; 4], port: u16) -> Option<usize> {
        let wanted = v4_word(address, port);
        self.v4.iter().position(|word| *word == wanted)
    }

    #[inline]
    fn number_v6(&self, address: [u64; 2], port: u16) -> Option<usize> {
        self.v6.iter().position(|service| *service == (address, u32::from(port)))
    }
}

/// `address 32 | port 16`.
#[inline]
fn v4_word(address: [u8; 4], port: u16) -> u64 {
    u64::from(u32::from_be_bytes(address)) << 16 | u64::from(port)
}

#[inline]
fn v6_words(octets: [u8; 16]) -> [u64; 2] {
    let bits = u128::from_be_bytes(octets);
    [(bits >> 64) as u64, bits as u64]
}

fn octets([high, low]: [u64; 2]) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn services() -> Services {
        let sockets = ["192.168.0.1:80", "192.168.0.1:443", "[2001:db8::1]:80", "192.168.0.2:80"];
        Services::new(sockets.map(|socket| socket.parse().expect("a socket"))).expect("few")
    }

    proptest! {
        /// A key stands for one flow, and back.
        #[test]
        fn keys_and_flows_correspond(v4 in any::<[u8; 4]>(), v6 in any::<[u8; 16]>(), port: u16) {
            let services = services();
            for flow in [
                FlowKey::tcp_v4(v4, port, [192, 168, 0, 1], 443),
                FlowKey::tcp_v4(v4, port, [192, 168, 0, 2], 80),
                FlowKey::tcp_v6(v6, port, "2001:db8::1".parse::<std::net::Ipv6Addr>().expect("v6").octets(), 80),
            ] {
                let key = services.key(&flow).expect("a service's flow");
                prop_assert_eq!(services.flow(&key), Some(flow));
                if let SessionKey::V4(word) = key {
                    prop_assert!(word < 1 << KEY_BITS_V4);
                }
            }
        }
    }

    #[test]
    fn other_flows_have_no_key() {
        let services = services();
        assert_eq!(services.key(&FlowKey::tcp_v4([1; 4], 1, [192, 168, 0, 1], 81)), None);
        assert_eq!(services.key(&FlowKey::tcp_v6([1; 16], 1, [9; 16], 80)), None);
        assert_eq!(services.flow(&SessionKey::V4(3 << 48)), None);
        assert!(services.has_address([192, 168, 0, 2].into()));
        assert!(!services.has_address([192, 168, 0, 3].into()));
    }

    #[test]
    fn there_is_a_limit() {
        let socket = |port| SocketAddr::from(([192, 168, 0, 1], port));
        assert!(Services::new((1..=64).chain(1..=64).map(socket)).is_ok(), "each counts once");
        assert_eq!(Services::new((1..=65).map(socket)).err(), Some(TooManyServices));
    }

    fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("a socket")).collect()
    }

    #[test]
    fn a_number_never_gets_a_second_meaning() {
        let first = services();
        let flows = [
            FlowKey::tcp_v4([1; 4], 1, [192, 168, 0, 1], 443),
            FlowKey::tcp_v6(
                [1; 16],
                1,
                "2001:db8::1".parse::<std::net::Ipv6Addr>().expect("v6").octets(),
                80,
            ),
        ];
        let keys = flows.map(|flow| first.key(&flow).expect("a service's flow"));
        assert!(!first.any_retired() && keys.iter().all(|key| !first.is_retired(key)));

        let left = sockets(&["192.168.0.9:65535", "192.168.0.2:80", "[2001:db8::9]:80"]);
        let second = first.followed_by(left).expect("few");
        assert!(second.any_retired());
        for (flow, key) in flows.iter().zip(&keys) {
            assert_eq!(second.key(flow), None, "none of its packets is a service's");
            assert_eq!(second.flow(key), Some(*flow), "its entries still have a flow");
            assert!(second.is_retired(key));
            assert!(!second.contains(flow.service().ip(), flow.service().port()));
            assert!(!second.has_address(flow.service().ip()));
        }
        assert_eq!(second.address_of_port(443, true), None);
        assert_eq!(second.address_of_port(80, false), Some("2001:db8::9".parse().expect("v6")));
        // The second service of IPv4 comes at the place after all that there were.
        let new = FlowKey::tcp_v4([1; 4], 1, [192, 168, 0, 9], 65535);
        assert_eq!(second.key(&new), Some(SessionKey::V4(3 << 48 | 0x0101_0101 << 16 | 1)));

        let back = ["192.168.0.1:443", "[2001:db8::1]:80"];
        let third = second.followed_by(sockets(&back)).expect("few");
        assert_eq!(flows.map(|flow| third.key(&flow)), keys.map(Some));
        assert!(!third.is_retired(&keys[0]) && !third.is_retired(&keys[1]));
        assert_eq!(third.key(&new), None);
    }

    #[test]
    fn former_services_count_as_well() {
        let socket = |port| SocketAddr::from(([192, 168, 0, 1], port));
        let full = Services::new((1..=64).map(socket)).expect("just so many");
        assert!(full.followed_by((1..=10).map(socket)).is_ok());
        assert_eq!(full.followed_by([socket(65)]).err(), Some(TooManyServices));
    }
}
