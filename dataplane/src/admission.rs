//! What keeps a flood of strays from becoming a flood of lookups: token buckets per worker and
//! per source prefix, and a memory of flows that nobody owns. Fixed memory; never allocates
//! after start.

use std::net::IpAddr;

use holdfast_net::FlowKey;

use crate::time::Now;

/// Source prefixes told apart. Two that fall into one place share its tokens.
const SOURCES: usize = 4096;
/// Flows remembered as owned by nobody. Two that fall into one place: the later is remembered.
const NEGATIVES: usize = 4096;

/// Limits on lookups of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Lookups a second.
    pub per_second: u32,
    /// Lookups at once after a pause.
    pub burst: u32,
    /// Lookups a second for clients of one prefix (IPv4 /24, IPv6 /56).
    pub per_source_per_second: u32,
    /// Lookups at once for clients of one prefix after a pause.
    pub per_source_burst: u32,
    /// How long a flow that nobody owns is remembered, in microseconds.
    pub negative_us: u64,
}

/// Why a lookup is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The worker asks as many as it may.
    Worker,
    /// The source prefix asks as many as it may.
    Source,
}

/// Tokens that come at a rate, in millionths, so that a microsecond's worth at one a second is
/// whole.
#[derive(Debug, Clone, Copy)]
pub struct TokenBucket {
    tokens: u64,
    filled: Now,
}

const TOKEN: u64 = 1_000_000;

impl TokenBucket {
    /// A bucket with `burst` tokens.
    #[must_use]
    pub fn full(burst: u32) -> TokenBucket {
        TokenBucket { tokens: u64::from(burst) * TOKEN, filled: Now::from_us(0) }
    }

    fn refill(&mut self, now: Now, per_second: u32, burst: u32) -> bool {
        let elapsed_us = now.us.saturating_sub(self.filled.us);
        let gained = elapsed_us.saturating_mul(u64::from(per_second));
        self.tokens = self.tokens.saturating_add(gained).min(u64::from(burst) * TOKEN);
        self.filled = now;
        self.tokens >= TOKEN
    }
}

impl TokenBucket {
    /// Takes a token, if there is one by now.
    pub fn take(&mut self, now: Now, per_second: u32, burst: u32) -> bool {
        let any = self.refill(now, per_second, burst);
        if any {
            self.tokens -= TOKEN;
        }
        any
    }
}

/// The admission of one worker.
#[derive(Debug)]
pub struct Admission {
    limits: AdmissionLimits,
    worker: TokenBucket,
    sources: Box<[TokenBucket]>,
    negatives: Box<[Option<(FlowKey, Now)>]>,
}

impl Admission {
    /// An admission with full buckets.
    #[must_use]
    pub fn new(limits: AdmissionLimits) -> Admission {
        Admission {
            limits,
            worker: TokenBucket::full(limits.burst),
            sources: vec![TokenBucket::full(limits.per_source_burst); SOURCES].into(),
            negatives: vec![None; NEGATIVES].into(),
        }
    }

    /// Goes on with other limits: what has been used stays used.
    pub fn set_limits(&mut self, limits: AdmissionLimits) {
        self.limits = limits;
    }

    /// Takes a token for a lookup of `flow`. `source_hash` is a keyed hash of
    /// [`source_prefix`].
    ///
    /// # Errors
    /// [`Refusal`] when there is none; no token is taken then.
    pub fn admit(&mut self, source_hash: u64, now: Now) -> Result<(), Refusal> {
        let limits = self.limits;
        let source = &mut self.sources[source_hash as usize % SOURCES];
        if !source.refill(now, limits.per_source_per_second, limits.per_source_burst) {
            return Err(Refusal::Source);
        }
        if !self.worker.refill(now, limits.per_second, limits.burst) {
            return Err(Refusal::Worker);
        }
        source.tokens -= TOKEN;
        self.worker.tokens -= TOKEN;
        Ok(())
    }

    /// How many lookups it has let through that are not made up for by time.
    #[must_use]
    pub fn used(&self, now: Now) -> usize {
        let mut worker = self.worker;
        worker.refill(now, self.limits.per_second, self.limits.burst);
        self.limits.burst.saturating_sub((worker.tokens / TOKEN) as u32) as usize
    }

    /// Remembers that nobody owns `flow`.
    pub fn remember_nobody(&mut self, flow: FlowKey, flow_hash: u64, now: Now) {
        let until = Now::from_us(now.us + self.limits.negative_us);
        self.negatives[flow_hash as usize % NEGATIVES] = Some((flow, until));
    }

    /// Whether nobody owned `flow` a moment ago.
    #[must_use]
    pub fn is_nobodys(&self, flow: &FlowKey, flow_hash: u64, now: Now) -> bool {
        self.negatives[flow_hash as usize % NEGATIVES]
            .is_some_and(|(nobodys, until)| nobodys == *flow && now < until)
    }

    /// Forgets `flow`: something new is known of it.
    pub fn forget(&mut self, flow: &FlowKey, flow_hash: u64) {
        let place = &mut self.negatives[flow_hash as usize % NEGATIVES];
        if place.is_some_and(|(nobodys, _)| nobodys == *flow) {
            *place = None;
        }
    }
}

/// The flow with the client's port and host bits taken off, so that all clients of an IPv4 /24
/// or IPv6 /56 share it.
#[must_use]
pub fn source_prefix(flow: &FlowKey) -> FlowKey {
    match flow.client().ip() {
        IpAddr::V4(client) => {
            let prefix = (client.to_bits() & 0xffff_ff00).to_be_bytes();
            FlowKey::tcp_v4(prefix, 0, [0; 4], 0)
        }
        IpAddr::V6(client) => {
            let prefix = (client.to_bits() >> 72 << 72).to_be_bytes();
            FlowKey::tcp_v6(prefix, 0, [0; 16], 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AdmissionLimits = AdmissionLimits {
        per_second: 10,
        burst: 4,
        per_source_per_second: 5,
        per_source_burst: 2,
        negative_us: 1000,
    };

    #[test]
    fn r5_limits_per_source_and_per_worker() {
        let mut admission = Admission::new(LIMITS);
        let start = Now::from_us(0);
        assert_eq!(admission.admit(1, start), Ok(()));
        assert_eq!(admission.admit(1, start), Ok(()));
        assert_eq!(admission.admit(1, start), Err(Refusal::Source));
        assert_eq!(admission.admit(2, start), Ok(()));
        assert_eq!(admission.admit(2, start), Ok(()));
        assert_eq!(admission.admit(3, start), Err(Refusal::Worker));
        // A tenth of a second later the worker has one token again.
        assert_eq!(admission.admit(3, Now::from_us(100_000)), Ok(()));
        assert_eq!(admission.admit(4, Now::from_us(100_000)), Err(Refusal::Worker));
    }

    #[test]
    fn other_limits_hold_from_the_next_lookup_on() {
        let mut admission = Admission::new(LIMITS);
        let start = Now::from_us(0);
        assert_eq!(admission.admit(1, start), Ok(()));
        // Fewer than there are tokens left: at once no more than that.
        admission.set_limits(AdmissionLimits { burst: 1, per_source_burst: 1, ..LIMITS });
        assert_eq!(admission.admit(2, start), Ok(()));
        assert_eq!(admission.admit(3, start), Err(Refusal::Worker));
        // More: they come with time.
        admission.set_limits(AdmissionLimits { per_second: 1000, burst: 8, ..LIMITS });
        assert_eq!(admission.admit(3, start), Err(Refusal::Worker));
        for source in 3..11 {
            assert_eq!(admission.admit(source, Now::from_us(8_000)), Ok(()), "{source}");
        }
        assert_eq!(admission.admit(11, Now::from_us(8_000)), Err(Refusal::Worker));
    }

    #[test]
    fn r5_negatives_are_exact_and_end() {
        let mut admission = Admission::new(LIMITS);
        let flow = |port| FlowKey::tcp_v4([20, 1, 1, 1], port, [192, 168, 0, 1], 80);
        admission.remember_nobody(flow(1), 7, Now::from_us(0));
        assert!(admission.is_nobodys(&flow(1), 7, Now::from_us(999)));
        assert!(!admission.is_nobodys(&flow(2), 7, Now::from_us(999)));
        assert!(!admission.is_nobodys(&flow(1), 7, Now::from_us(1000)));
        admission.remember_nobody(flow(1), 7, Now::from_us(0));
        admission.forget(&flow(1), 7);
        assert!(!admission.is_nobodys(&flow(1), 7, Now::from_us(1)));
    }

    #[test]
    fn prefixes_group_neighbours() {
        let v4 = |client, port| source_prefix(&FlowKey::tcp_v4(client, port, [192, 168, 0, 1], 80));
        assert_eq!(v4([20, 1, 1, 1], 5), v4([20, 1, 1, 200], 6));
        assert_ne!(v4([20, 1, 1, 1], 5), v4([20, 1, 2, 1], 5));
        let v6 = |byte_6: u8, byte_7: u8| {
            let client = [0x20, 1, 0xd, 0xb8, 0, 0, byte_6, byte_7, 0, 0, 0, 0, 0, 0, 0, 1];
            source_prefix(&FlowKey::tcp_v6(client, 5, [9; 16], 80))
        };
        assert_eq!(v6(1, 1), v6(1, 2));
        assert_ne!(v6(1, 1), v6(2, 1));
    }
}
