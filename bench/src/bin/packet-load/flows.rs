//! Which client has which flow: a bijection between an index and the client's address and port, so
//! that a million flows are known without storing one. Never looks at a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a flow is to the appliance under test. Each class has clients of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A session of the appliance's own host.
    Local,
    /// A session of the other server.
    Redirect,
    /// Nobody's.
    Miss,
    /// A session that is opened and closed while others are measured.
    Churn,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub const ALL: [Class; 4] = [Class::Local, Class::Redirect, Class::Miss, Class::Churn];
    /// How many there are.
    pub const COUNT: usize = Class::ALL.len();
}

/// A flow, by its class and its number in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// What it is.
    pub class: Class,
    /// Its number.
    pub index: u32,
}

/// Clients live in 20.0.0.0/8 or 2001:db8:14::/48; the class has two bits of the 24 that are left,
/// the scrambled index 18.
const CLASS_SHIFT: u32 = 22;
const CLIENT_BITS: u32 = 18;
/// The other bits of the scrambled index: ports 16,384 to 32,767.
const PORT_BITS: u32 = 32 - CLIENT_BITS;
const PORT_BASE: u16 = 1 << PORT_BITS;

impl Flow {
    /// The client's 24 bits and its port.
    fn client(self) -> (u32, u16) {
        let mixed = scramble(self.index);
        let host = (self.class as u32) << CLASS_SHIFT | mixed >> PORT_BITS;
        let port = PORT_BASE | (mixed as u16 & (PORT_BASE - 1));
        (host, port)
    }

    /// The client's socket over IPv4.
    pub fn client_v4(self) -> ([u8; 4], u16) {
        let (host, port) = self.client();
        ((20 << 24 | host).to_be_bytes(), port)
    }

    /// The client's socket over IPv6.
    pub fn client_v6(self) -> ([u8; 16], u16) {
        let (host, port) = self.client();
        let [_, a, b, c] = host.to_be_bytes();
        ([0x20, 1, 0x0d, 0xb8, 0, 0x14, 0, a, 0, 0, 0, 0, 0, 0, b, c], port)
    }

    /// The flow of this client; `None` when no flow has it.
    pub fn of_client(address: IpAddr, port: u16) -> Option<Flow> {
        let host = match address {
            IpAddr::V4(v4) => v4.to_bits().checked_sub(20 << 24)?,
            IpAddr::V6(v6) => {
                let [.., b, c] = v6.octets();
                u32::from_be_bytes([0, v6.octets()[7], b, c])
            }
        };
        let class = Class::ALL.get((host >> CLASS_SHIFT) as usize).copied()?;
        let mixed = (host & ((1 << CLIENT_BITS) - 1)) << PORT_BITS | u32::from(port ^ PORT_BASE);
        let flow = Flow { class, index: unscramble(mixed) };
        // Addresses and ports that are not exactly what the flow would have are not its.
        let own: (IpAddr, u16) = match address {
            IpAddr::V4(_) => {
                let (address, port) = flow.client_v4();
                (Ipv4Addr::from(address).into(), port)
            }
            IpAddr::V6(_) => {
                let (address, port) = flow.client_v6();
                (Ipv6Addr::from(address).into(), port)
            }
        };
        (own == (address, port)).then_some(flow)
    }
}

/// A bijection on 32 bits that leaves no pattern: neighbours in number are none in the tables.
const fn scramble(index: u32) -> u32 {
    let x = index ^ index >> 16;
    let x = x.wrapping_mul(0x7feb_352d);
    let x = x ^ x >> 15;
    let x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// The way back: each step of [`scramble`] undone; the factors are the inverses modulo 2^32.
const fn unscramble(mixed: u32) -> u32 {
    let x = mixed ^ mixed >> 16;
    let x = x.wrapping_mul(0x4302_1123);
    let x = x ^ x >> 15 ^ x >> 30;
    let x = x.wrapping_mul(0x1d69_e2a5);
    x ^ x >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn some_indices() -> impl Iterator<Item = u32> {
        (0..2000).chain([u32::MAX, u32::MAX - 1, 1 << 31]).chain((0..32).map(|bit| 1 << bit))
    }

    #[test]
    fn every_flow_is_found_again_by_its_client() {
        for class in Class::ALL {
            for index in some_indices() {
                let flow = Flow { class, index };
                let (address, port) = flow.client_v4();
                assert_eq!(Flow::of_client(IpAddr::from(address), port), Some(flow));
                let (address, port) = flow.client_v6();
                assert_eq!(Flow::of_client(IpAddr::from(address), port), Some(flow));
            }
        }
    }

    #[test]
    fn no_two_flows_share_a_client() {
        let clients: HashSet<_> = (0..200_000)
            .map(|n| Flow { class: Class::ALL[n as usize % 4], index: n / 4 }.client_v4())
            .collect();
        assert_eq!(clients.len(), 200_000);
    }

    #[test]
    fn strangers_have_no_flow() {
        let (address, port) = Flow { class: Class::Local, index: 7 }.client_v4();
        assert_eq!(Flow::of_client(IpAddr::from(address), port ^ PORT_BASE), None);
        for stranger in ["192.168.0.1", "10.0.0.1", "21.0.0.1", "20.4.0.1", "2001:db8:15::1"] {
            let stranger: IpAddr = stranger.parse().expect("an address");
            assert_eq!(Flow::of_client(stranger, PORT_BASE), None, "{stranger}");
        }
    }
}
