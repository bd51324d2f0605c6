//! The worker's counters as books: which have to add up to which. `packet-load` in the bench
//! crate keeps the same for a whole daemon.

use holdfast_dataplane::stats::{Counter, WorkerCounters};

/// What came from the uplink and goes to the host as it is.
const PASSED: [Counter; 6] = [
    Counter::Passed,
    Counter::MalformedTruncated,
    Counter::MalformedVersion,
    Counter::MalformedLength,
    Counter::MalformedExtensions,
    Counter::FragmentPassed,
];

/// Each frame from the uplink has one of these outcomes, or is passed, or is a fragment that waits
/// for the first.
const OUTCOMES: [Counter; 19] = [
    Counter::HostReflected,
    Counter::FragmentToHost,
    Counter::FragmentToTunnel,
    Counter::FragmentExpired,
    Counter::FragmentFull,
    Counter::FragmentTiny,
    Counter::FragmentDropped,
    Counter::SynToHost,
    Counter::SynClosing,
    Counter::LocalHit,
    Counter::RedirectHit,
    Counter::Miss,
    Counter::TunnelReceived,
    Counter::TunnelStranger,
    Counter::TunnelTruncated,
    Counter::TunnelVersion,
    Counter::TunnelLength,
    Counter::TunnelExtensions,
    Counter::TunnelNotService,
];

/// What comes by the NIC's switch and ends here. What is answered is given back, and an answer sent.
const SWITCHED: [Counter; 9] = [
    Counter::SwitchReflected,
    Counter::SwitchNotOurs,
    Counter::SwitchGroup,
    Counter::SwitchFromHost,
    Counter::NeighbourAnswered,
    Counter::NeighbourOther,
    Counter::NeighbourConflict,
    Counter::NeighbourMalformed,
    Counter::NeighbourUnanswered,
];

const STRAYS: [Counter; 6] = [
    Counter::NegativeHit,
    Counter::Parked,
    Counter::ParkFull,
    Counter::ParkFlowFull,
    Counter::LookupRefusedWorker,
    Counter::LookupRefusedSource,
];

/// What becomes of a parked packet; and `LookupRingFull`, when that is why it is not parked.
const UNPARKED: [Counter; 5] = [
    Counter::ReleasedHost,
    Counter::ReleasedTunnel,
    Counter::ParkExpired,
    Counter::DroppedTimedOut,
    Counter::ResolvedStranger,
];

const TO_HOST: [Counter; 6] = [
    Counter::FragmentToHost,
    Counter::SynToHost,
    Counter::LocalHit,
    Counter::NegativeHit,
    Counter::ReleasedHost,
    Counter::TunnelReceived,
];

const TUNNELLED: [Counter; 7] = [
    Counter::TunnelNoFrame,
    Counter::TunnelSent,
    Counter::TunnelNoHeadroom,
    Counter::TunnelOtherFamily,
    Counter::OwnersFull,
    Counter::TunnelTooBig,
    Counter::TooBigAnswered,
];

/// What the books say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// Fragments that wait for the first.
    pub fragments: u64,
    /// Packets parked now, or up to `unsure` fewer.
    pub parked: u64,
    /// Frames that wait for the host port and for the uplink.
    pub waiting: u64,
    /// Frames dropped, or up to `unsure` fewer.
    pub dropped: u64,
    /// `LookupRingFull` drops a packet, but not when it is a second question.
    pub unsure: u64,
}

/// Checks what has to be equal between two turns, and says what is on the way.
pub fn balance(counters: &WorkerCounters) -> Balance {
    let get = |counter: Counter| counters.get(counter);
    let sum = |counters: &[Counter]| counters.iter().map(|counter| get(*counter)).sum::<u64>();
    let equal = |what: &str, left: u64, right: u64| assert_eq!(left, right, "{what}");

    let left = |what: &str, came: u64, went: u64| {
        came.checked_sub(went).unwrap_or_else(|| panic!("{what}: {came} came, {went} went"))
    };
    let passed = sum(&PASSED);
    let outcomes = passed + sum(&OUTCOMES) + sum(&SWITCHED);
    let fragments = left("from the uplink", get(Counter::UplinkReceived), outcomes);
    assert!(fragments <= get(Counter::FragmentWaited), "{fragments} frames have no outcome");
    equal("each stray has an outcome", get(Counter::Miss), sum(&STRAYS));
    // Fragments that the worker makes are packets more than came.
    let others = get(Counter::RedirectHit)
        + get(Counter::ReleasedTunnel)
        + get(Counter::FragmentToTunnel)
        + get(Counter::TooBigFragments);
    equal("each packet of another owner is tunnelled or dropped", others, sum(&TUNNELLED));

    let to_host = passed + sum(&TO_HOST);
    let at_host = sum(&[
        Counter::HostSent,
        Counter::HostUnsent,
        Counter::HostTooBig,
        Counter::TunnelSuperseded,
    ]);
    let to_uplink = get(Counter::HostReceived)
        + get(Counter::TunnelSent)
        + get(Counter::TooBigAnswered)
        + get(Counter::NeighbourAnswered);
    let at_uplink = get(Counter::UplinkSent)
        + get(Counter::UplinkUnsent)
        + get(Counter::UplinkTooBig)
        + get(Counter::HostWithheld)
        + get(Counter::RstWithheld);
    let ring_full = get(Counter::LookupRingFull);
    let unsure = ring_full.min(get(Counter::ResolvedAgain));
    let drops = Counter::ALL.iter().filter(|counter| counter.is_drop());
    Balance {
        fragments,
        parked: left("parked", get(Counter::Parked) + unsure, sum(&UNPARKED) + ring_full),
        waiting: left("host", to_host, at_host) + left("uplink", to_uplink, at_uplink),
        dropped: drops.map(|counter| get(*counter)).sum::<u64>() + get(Counter::NeighbourAnswered),
        unsure,
    }
}
