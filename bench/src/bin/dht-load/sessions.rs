//! The sessions of a run: numbers, from which flow, owner and version follow, so that every
//! answer can be checked without a table. It never keeps a session.

use std::net::SocketAddr;

use holdfast_handoff::Version;
use holdfast_net::FlowKey;

/// Bits of a session's number: client address and port hold as many.
const NUMBER_BITS: u32 = 48;
const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;
/// Odd, so that multiplying by them modulo 2^48 can be undone.
const SPREAD: [u64; 2] = [0x9e37_79b9_7f4b, 0x6c62_272e_07bb];
const GATHER: [u64; 2] = [inverse(SPREAD[0]), inverse(SPREAD[1])];

const SERVICE: [u8; 4] = [192, 168, 0, 1];
const SERVICE_PORT: u16 = 80;

/// A block of sessions with numbers of its own, owned by the servers in turn.
#[derive(Debug, Clone, Copy)]
pub struct Sessions {
    first: u64,
    count: u64,
    owners: u64,
    version_first: u64,
}

impl Sessions {
    /// `count` sessions numbered from `first`, of `owners` servers. The versions of each
    /// server's sessions grow from `version_first`.
    pub fn new(first: u64, count: u64, owners: usize, version_first: Version) -> Sessions {
        Sessions { first, count, owners: owners as u64, version_first: version_first.0 }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many servers own them.
    pub fn owners(&self) -> usize {
        self.owners as usize
    }

    /// The number after the last.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// How many of them the server with this index owns.
    pub fn owned_by(&self, server: usize) -> u64 {
        let (whole, rest) = (self.count / self.owners, self.count % self.owners);
        let server = server as u64;
        if server < self.owners { whole + u64::from(server < rest) } else { 0 }
    }

    /// Index of the `nth` session of a server.
    pub fn nth_of(&self, server: usize, nth: u64) -> u64 {
        nth * self.owners + server as u64
    }

    /// Index of the server that owns the session `at` this index.
    pub fn owner(&self, at: u64) -> usize {
        (at % self.owners) as usize
    }

    /// The version it is published with.
    pub fn version(&self, at: u64) -> Version {
        Version(self.version_first + at / self.owners)
    }

    /// Its flow.
    pub fn flow(&self, at: u64) -> FlowKey {
        flow(self.first + at)
    }

    /// The index of a flow; `None` when it is of no session of these.
    pub fn at(&self, flow: FlowKey) -> Option<u64> {
        let at = number(flow)?.checked_sub(self.first)?;
        (at < self.count).then_some(at)
    }
}

fn flow(number: u64) -> FlowKey {
    let mut bits = number.wrapping_mul(SPREAD[0]) & NUMBER_MASK;
    bits ^= bits >> (NUMBER_BITS / 2);
    bits = bits.wrapping_mul(SPREAD[1]) & NUMBER_MASK;
    FlowKey::tcp_v4(((bits >> 16) as u32).to_be_bytes(), bits as u16, SERVICE, SERVICE_PORT)
}

fn number(flow: FlowKey) -> Option<u64> {
    let SocketAddr::V4(client) = flow.client() else { return None };
    let bits = u64::from(client.ip().to_bits()) << 16 | u64::from(client.port());
    let mut bits = bits.wrapping_mul(GATHER[1]) & NUMBER_MASK;
    bits ^= bits >> (NUMBER_BITS / 2);
    bits = bits.wrapping_mul(GATHER[0]) & NUMBER_MASK;
    (self::flow(bits) == flow).then_some(bits)
}

/// Inverse of an odd number modulo 2^64, by Newton's method: the right bits double each time.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut turn = 0;
    while turn < 6 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        turn += 1;
    }
    inverse
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_flow_leads_back_to_its_session() {
        let sessions = Sessions::new(70_000, 10_000, 16, Version(5));
        let flows: HashSet<FlowKey> = (0..10_000).map(|at| sessions.flow(at)).collect();
        assert_eq!(flows.len(), 10_000);
        for at in 0..10_000 {
            assert_eq!(sessions.at(sessions.flow(at)), Some(at));
        }
        assert_eq!(sessions.at(flow(69_999)), None);
        assert_eq!(sessions.at(flow(80_000)), None);
        assert_eq!(sessions.at(FlowKey::tcp_v4([1, 2, 3, 4], 5, [192, 168, 0, 2], 80)), None);
        assert_eq!(number(flow(NUMBER_MASK)), Some(NUMBER_MASK));
    }

    #[test]
    fn every_session_has_one_owner() {
        let sessions = Sessions::new(0, 103, 16, Version(5));
        let mut seen = HashSet::new();
        for server in 0..17 {
            for nth in 0..sessions.owned_by(server) {
                let at = sessions.nth_of(server, nth);
                assert_eq!(sessions.owner(at), server);
                assert_eq!(sessions.version(at), Version(5 + nth));
                assert!(seen.insert(at));
            }
        }
        assert_eq!(seen.len(), 103);
        assert!(seen.iter().all(|at| *at < 103));
    }
}
