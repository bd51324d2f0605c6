//! Flows made from numbers by a bijection, so that any of millions can be made again without
//! being kept. Never random: every run sees the same flows.

use holdfast_net::FlowKey;

/// Address family of the flows of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }
}

/// Service that all flows go to.
pub const SERVICE_V4: [u8; 4] = [192, 168, 0, 1];
/// Service that all flows go to.
pub const SERVICE_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Its port.
pub const SERVICE_PORT: u16 = 80;

/// The client's side of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// IPv4 address.
    pub v4: [u8; 4],
    /// IPv6 address.
    pub v6: [u8; 16],
    /// TCP port.
    pub port: u16,
}

/// A bijection on the numbers below 2^`bits` (2 to 32) that leaves no order.
#[must_use]
pub fn permute(number: u32, bits: u32) -> u32 {
    let mask = u32::MAX >> (32 - bits);
    let half = bits.div_ceil(2);
    let mut x = number & mask;
    for odd in [0x85eb_ca6b, 0xc2b2_ae35, 0x27d4_eb2f] {
        x ^= x >> half;
        x = x.wrapping_mul(odd) & mask;
    }
    x ^ (x >> half)
}

/// The client of flow `number`; another one for every number.
#[must_use]
pub fn client(number: u32) -> Client {
    let bits = permute(number, 32);
    let [a, b, c, d] = bits.to_be_bytes();
    let more = bits.wrapping_mul(0x9e37_79b1).to_be_bytes();
    let mut v6 = [0; 16];
    v6[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
    v6[4..8].copy_from_slice(&more);
    v6[12..].copy_from_slice(&[0, more[0], a, b]);
    Client { v4: [20, a, b, more[1]], v6, port: u16::from_be_bytes([c, d]) }
}

/// Flow `number`.
#[must_use]
pub fn flow(number: u32, family: Family) -> FlowKey {
    let Client { v4, v6, port } = client(number);
    match family {
        Family::V4 => FlowKey::tcp_v4(v4, port, SERVICE_V4, SERVICE_PORT),
        Family::V6 => FlowKey::tcp_v6(v6, port, SERVICE_V6, SERVICE_PORT),
    }
}

/// Walks over the numbers below a limit in an order that no prefetcher follows. Within one walk
/// over all of them each comes once.
#[derive(Debug)]
pub struct Walk {
    limit: u32,
    bits: u32,
    step: u32,
}

impl Walk {
    /// Over the numbers below `limit` (at least 2, at most 2^31).
    #[must_use]
    pub fn new(limit: u32) -> Walk {
        Walk { limit, bits: limit.next_power_of_two().trailing_zeros().max(2), step: 0 }
    }
}

impl Iterator for Walk {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let number = permute(self.step, self.bits);
            self.step = self.step.wrapping_add(1);
            if number < self.limit {
                return Some(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_walk_meets_every_number_once() {
        for limit in [3, 1000, 1024] {
            let seen: HashSet<u32> = Walk::new(limit).take(limit as usize).collect();
            assert_eq!(seen.len(), limit as usize);
        }
    }

    #[test]
    fn flows_differ() {
        for family in [Family::V4, Family::V6] {
            let seen: HashSet<FlowKey> = (0..200_000).map(|n| flow(n, family)).collect();
            assert_eq!(seen.len(), 200_000);
        }
    }
}
