//! Counters of the packet path: every outcome of a packet, every refusal and every limit has one.
//! Never a lock: each worker writes its own, anyone reads.

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_net::Malformed;

macro_rules! counters {
    ($($variant:ident $name:literal $help:literal)*) => {
        /// What is counted, per worker, since the start.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Counter { $(#[doc = $help] $variant,)* }

        impl Counter {
            /// All counters.
            pub const ALL: &[Counter] = &[$(Counter::$variant,)*];

            /// The counter's name in listings and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)* }
            }

            /// What it counts, in a sentence.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Counter::$variant => $help,)* }
            }
        }
    };
}

counters! {
    UplinkReceived "uplink_received" "Frames received from the uplink."
    UplinkSent "uplink_sent" "Frames sent to the uplink."
    UplinkUnsent "uplink_unsent" "Frames dropped because the uplink's transmit queue stayed full."
    UplinkTooBig "uplink_too_big" "Frames of the host dropped because they are longer than the uplink's MTU allows."
    HostReceived "host_received" "Frames received from the host."
    HostSent "host_sent" "Frames sent to the host."
    HostUnsent "host_unsent" "Frames dropped because the host port's transmit queue stayed full."
    HostTooBig "host_too_big" "Frames dropped because they are longer than the host port's MTU allows."
    HostReflected "host_reflected" "Broadcasts and multicasts from the uplink dropped because the host sent them itself, and the NIC's switch gave them back."
    SwitchReflected "switch_reflected" "Through the NIC's switch: frames dropped because we sent them ourselves, which the NIC gave back."
    SwitchNotOurs "switch_not_ours" "Through the NIC's switch: frames dropped because they are for another station, or have no Ethernet header."
    SwitchGroup "switch_group" "Through the NIC's switch: broadcasts and multicasts dropped, because the kernel's function gets them itself."
    SwitchFromHost "switch_from_host" "Through the NIC's switch: frames dropped because the kernel sent them to us, which would get them back: a route of its own leads through the appliance."
    NeighbourAnswered "neighbour_answered" "ARP requests and Neighbour Solicitations for next hops of ours, answered."
    NeighbourOther "neighbour_other" "ARP and Neighbour Discovery dropped that asks for no next hop of ours: the kernel's function gets its own."
    NeighbourConflict "neighbour_conflict" "ARP and Neighbour Discovery of other stations that say they have a next hop of ours, dropped: the address is used twice."
    NeighbourMalformed "neighbour_malformed" "ARP and Neighbour Discovery dropped because they are not sound (RFC 826, RFC 4861 7.1)."
    NeighbourUnanswered "neighbour_unanswered" "ARP requests and Neighbour Solicitations for next hops of ours, dropped: more than are answered in a second, or the pool had no frame for the answer."
    Passed "passed" "Frames from the uplink that are no service's TCP, passed to the host."
    MalformedTruncated "malformed_truncated" "Frames that claim to be IP and end inside a header, passed on for the kernel to judge."
    MalformedVersion "malformed_version" "Frames whose IP version is not their EtherType's, passed on for the kernel to judge."
    MalformedLength "malformed_length" "Frames with an IP, TCP or UDP header that claims an impossible length, passed on for the kernel to judge."
    MalformedExtensions "malformed_extensions" "Frames with more IPv6 extension headers than are walked, passed on for the kernel to judge."
    IcmpError "icmp_error" "ICMP errors about services' segments, taken to the session's owner (R9)."
    FragmentPassed "fragment_passed" "Fragments to a service's address that are of another protocol or port than a service's, passed to the host."
    FragmentToHost "fragment_to_host" "Fragments behind the first of a service's segment, given to the host as the first was (R10)."
    FragmentToTunnel "fragment_to_tunnel" "Fragments behind the first of a service's segment, tunnelled to its owner as the first was (R10)."
    FragmentWaited "fragment_waited" "Fragments that came before the first of their segment and waited for it; what became of them is counted as well (R10)."
    FragmentExpired "fragment_expired" "Fragments dropped because the first of their segment did not come in time."
    FragmentFull "fragment_full" "Fragments dropped because the first of their segment is not known and there is no room to wait for it."
    FragmentTiny "fragment_tiny" "First fragments dropped because they have not the whole TCP header (RFC 1858)."
    FragmentDropped "fragment_dropped" "Fragments behind the first of a segment, dropped because the first was."
    SynClosing "syn_closing" "SYNs dropped because the daemon was about to stop: clients repeat them."
    SynToHost "syn_to_host" "SYNs to a service, given to the host (R2)."
    LocalHit "local_hit" "Segments of local sessions, given to the host (R4)."
    RedirectHit "redirect_hit" "Segments tunnelled to their owner by a redirect in the table (R4)."
    Miss "miss" "Stray segments and fragments of them: no SYN, and no session or redirect in the table (R5)."
    NegativeHit "negative_hit" "Strays given to the host because the DHT just said that nobody owns the flow."
    Parked "parked" "Strays parked while the owner is looked up."
    ParkFull "park_full" "Strays dropped because the parking has no room."
    ParkFlowFull "park_flow_full" "Strays dropped because their flow has as many parked as it may."
    ParkExpired "park_expired" "Parked segments dropped because no answer came in time."
    LookupAsked "lookup_asked" "Lookups asked of the DHT core."
    LookupRingFull "lookup_ring_full" "Lookups not asked because the ring to the DHT core was full: the stray is dropped, or, when it was to be asked a second time, waits for its deadline."
    LookupRefusedWorker "lookup_refused_worker" "Strays dropped because the worker asks as many lookups as it may."
    LookupRefusedSource "lookup_refused_source" "Strays dropped because their source prefix asks as many lookups as it may."
    ResolvedOwner "resolved_owner" "Lookups that found another server as owner."
    ResolvedSelf "resolved_self" "Lookups that found this server as owner."
    ResolvedAgain "resolved_again" "Lookups that found nobody and are asked again after the grace."
    ResolvedNobody "resolved_nobody" "Lookups that found nobody twice: the host answers."
    ResolvedTimedOut "resolved_timed_out" "Lookups that too few replicas answered in time."
    ResolvedStranger "resolved_stranger" "Lookups whose owner is no member of the cluster: not followed."
    AnswerLate "answer_late" "Answers for flows that no packet waits for any more."
    ReleasedTunnel "released_tunnel" "Parked segments sent to their owner."
    ReleasedHost "released_host" "Parked segments given to the host."
    DroppedTimedOut "dropped_timed_out" "Parked segments dropped because the lookup timed out; TCP retransmits."
    MssClamped "mss_clamped" "SYN-ACKs whose MSS was lowered, so that segments fit a tunnel (R11)."
    TunnelSent "tunnel_sent" "Segments encapsulated and sent to their owner."
    TooBigAnswered "too_big_answered" "Segments too big for the tunnel, answered with the MTU that fits (R11)."
    TunnelTooBig "tunnel_too_big" "Segments too big for the tunnel that were dropped unanswered: above the limit of answers, or such that nobody may be told of, as fragments behind the first and ICMP errors."
    TooBigFragments "too_big_fragments" "Further fragments made of segments without DF that are too big for the tunnel: each is a frame more than came (R11)."
    TunnelNoFrame "tunnel_no_frame" "Segments, or what was left of them, dropped because the pool had no frame for a further fragment."
    TunnelOtherFamily "tunnel_other_family" "Segments dropped because their owner's locator is of the other address family, which a rewritten packet cannot reach."
    TunnelNoHeadroom "tunnel_no_headroom" "Segments dropped because the frame has no room in front for the tunnel header."
    TunnelReceived "tunnel_received" "Tunnelled segments taken from members and given to the host (R6)."
    TunnelStranger "tunnel_stranger" "Tunnel packets dropped because their source is no member of the cluster (R6)."
    TunnelTruncated "tunnel_truncated" "Tunnel packets dropped because they end inside a header."
    TunnelVersion "tunnel_version" "Tunnel packets dropped because of their GUE version, a control message, or an inside that is not the IP version it is said to be."
    TunnelLength "tunnel_length" "Tunnel packets dropped because a header inside claims an impossible length."
    TunnelExtensions "tunnel_extensions" "Tunnel packets dropped because the inside has more IPv6 extension headers than are walked."
    TunnelSuperseded "tunnel_superseded" "Tunnelled segments dropped because another server has a later session on their flow; the sender is told (R6, R12)."
    TunnelNotService "tunnel_not_service" "Tunnel packets dropped because the inside is no service's TCP."
    NotMineSent "not_mine_sent" "Segments tunnelled to us whose session we do not hold: the sender is told (R6)."
    NotMineUnsent "not_mine_unsent" "The same, but the ring to the DHT core was full, or too many rewritten ones came."
    NotMineReceived "not_mine_received" "Owners that told us they do not hold a flow."
    RedirectInstalled "redirect_installed" "Redirects put into the table."
    RedirectDropped "redirect_dropped" "Redirects dropped because their owner does not hold the flow."
    RedirectEnded "redirect_ended" "Redirects that ended with the client's FIN or RST: what follows is looked up again (R12)."
    RedirectOrphaned "redirect_orphaned" "Redirects dropped because their owner is dead (R13)."
    OwnerDead "owner_dead" "Owners that the DHT core reported dead (R13)."
    RedirectSuperseded "redirect_superseded" "Redirects superseded by a SYN or by the host itself (R2, R7)."
    RedirectExpired "redirect_expired" "Redirects that were idle for too long."
    SessionOpened "session_opened" "Sessions opened: the host answered SYN-ACK or, inbound-only, a client sent SYN (R3)."
    SessionLearnt "session_learnt" "Sessions learnt from what the host sends (R7)."
    SessionSuperseded "session_superseded" "Sessions whose client has begun a later one on the same flow at another server: redirects now (R12)."
    HostSuperseded "host_superseded" "Segments that the host sent on a flow whose later session is another server's, passed on: nothing is learnt from them (R12)."
    HostWithheld "host_withheld" "SYN-ACKs and RSTs of the host dropped because its client has a later session on the flow at another server (R12)."
    RstWithheld "rst_withheld" "RSTs of the host dropped because what they answer may be of a later session on the flow, or because the client has been told just before (R12)."
    SessionClosed "session_closed" "Sessions withdrawn after FIN both ways or RST, and a linger (R8)."
    SessionExpired "session_expired" "Sessions withdrawn because they were idle or half-open for too long."
    EntryRetired "entry_retired" "Entries taken out of the table because their service is none any more; the sessions among them are withdrawn."
    HalfOpenOverLimit "half_open_over_limit" "Half-open sessions above the limit: published only when their handshake completes or, inbound-only, not kept (R3)."
    PublishQueued "publish_queued" "Sessions handed to the DHT core to be published."
    PublishDeferred "publish_deferred" "Publications put off because the ring to the DHT core was full; the sweep repeats them."
    WithdrawQueued "withdraw_queued" "Sessions handed to the DHT core to be withdrawn."
    WithdrawDeferred "withdraw_deferred" "Withdrawals put off because the ring to the DHT core was full; the sweep repeats them."
    TableFull "table_full" "Sessions or redirects that found no room in the table."
    TableContended "table_contended" "Table updates given up because another worker changed the entry; the next packet repeats them."
    StrayUnreported "stray_unreported" "Reports on strays that the ledger of incidents did not get: the ring to it was full, or kept free by half for reports on lookups."
    OwnersFull "owners_full" "Segments dropped because there is no number left for their owner: more owners than a cluster has servers."
    Turns "turns" "Turns of the worker's loop that found something to do."
    TurnsIdle "turns_idle" "Turns that found nothing to do."
    CyclesBusy "cycles_busy" "Cycles of the time stamp counter spent in turns that found something to do."
    CyclesIdle "cycles_idle" "Cycles of the time stamp counter spent in turns that found nothing to do, and waiting after them."
}

impl Counter {
    /// The counter of frames that are passed on because they are malformed in this way.
    #[must_use]
    pub const fn malformed(reason: Malformed) -> Counter {
        match reason {
            Malformed::Truncated => Counter::MalformedTruncated,
            Malformed::Version => Counter::MalformedVersion,
            Malformed::Length => Counter::MalformedLength,
            Malformed::Extensions => Counter::MalformedExtensions,
        }
    }

    /// The counter of tunnel packets that are dropped because they are malformed in this way.
    #[must_use]
    pub const fn tunnel_malformed(reason: Malformed) -> Counter {
        match reason {
            Malformed::Truncated => Counter::TunnelTruncated,
            Malformed::Version => Counter::TunnelVersion,
            Malformed::Length => Counter::TunnelLength,
            Malformed::Extensions => Counter::TunnelExtensions,
        }
    }

    /// Whether each one that it counts is a frame that the worker dropped. What a port dropped is
    /// in the port's own counters. A second question that finds the ring full drops nothing and
    /// is in `lookup_ring_full` all the same.
    #[must_use]
    pub const fn is_drop(self) -> bool {
        matches!(
            self,
            Counter::SynClosing
                | Counter::UplinkUnsent
                | Counter::UplinkTooBig
                | Counter::HostUnsent
                | Counter::HostTooBig
                | Counter::HostReflected
                | Counter::SwitchReflected
                | Counter::SwitchNotOurs
                | Counter::SwitchGroup
                | Counter::SwitchFromHost
                | Counter::NeighbourOther
                | Counter::NeighbourConflict
                | Counter::NeighbourMalformed
                | Counter::NeighbourUnanswered
                | Counter::FragmentExpired
                | Counter::FragmentFull
                | Counter::FragmentTiny
                | Counter::FragmentDropped
                | Counter::ParkFull
                | Counter::ParkFlowFull
                | Counter::ParkExpired
                | Counter::LookupRingFull
                | Counter::LookupRefusedWorker
                | Counter::LookupRefusedSource
                | Counter::ResolvedStranger
                | Counter::DroppedTimedOut
                | Counter::TunnelTooBig
                | Counter::TunnelNoFrame
                | Counter::TunnelOtherFamily
                | Counter::TunnelNoHeadroom
                | Counter::TunnelStranger
                | Counter::TunnelTruncated
                | Counter::TunnelVersion
                | Counter::TunnelLength
                | Counter::TunnelExtensions
                | Counter::TunnelSuperseded
                | Counter::TunnelNotService
                | Counter::HostWithheld
                | Counter::RstWithheld
                | Counter::OwnersFull
        )
    }
}

/// What a worker has of something that is bounded, as of its last turn of housekeeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// Packets that are parked.
    Parked,
    /// Lookups that wait for the DHT core to take them.
    ResolvesQueued,
    /// Announcements that wait for the DHT core to take them.
    AnnouncementsQueued,
    /// Fragments that wait for the first of their datagram.
    FragmentsWaiting,
    /// Datagrams whose fragments are remembered.
    FragmentDatagrams,
    /// Lookups that were let through of those that may come at once.
    AdmissionUsed,
}

impl Gauge {
    const COUNT: usize = Gauge::AdmissionUsed as usize + 1;
}

/// One worker's counters and gauges: written by it alone, read by anyone.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerCounters([AtomicU64; Counter::ALL.len()], [AtomicU64; Gauge::COUNT]);

impl Default for WorkerCounters {
    fn default() -> Self {
        WorkerCounters(
            [const { AtomicU64::new(0) }; Counter::ALL.len()],
            [const { AtomicU64::new(0) }; Gauge::COUNT],
        )
    }
}

impl WorkerCounters {
    /// The counter's value.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// How much there was of something at the last turn of housekeeping.
    #[must_use]
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.1[gauge as usize].load(Ordering::Relaxed)
    }

    /// Says how much there is of something. Only for the worker that owns these counters.
    pub fn set_gauge(&self, gauge: Gauge, value: usize) {
        self.1[gauge as usize].store(value as u64, Ordering::Relaxed);
    }

    /// Adds one. Only for the worker that owns these counters.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `amount`. Only for the worker that owns these counters: with one writer a load and a
    /// store do, without the price of an atomic addition.
    pub fn add(&self, counter: Counter, amount: u64) {
        let value = &self.0[counter as usize];
        value.store(value.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_these() {
        let drops = Counter::ALL.iter().filter(|counter| counter.is_drop());
        let names: Vec<_> = drops.map(|counter| counter.name()).collect();
        let expected = [
            "uplink_unsent",
            "uplink_too_big",
            "host_unsent",
            "host_too_big",
            "host_reflected",
            "switch_reflected",
            "switch_not_ours",
            "switch_group",
            "switch_from_host",
            "neighbour_other",
            "neighbour_conflict",
            "neighbour_malformed",
            "neighbour_unanswered",
            "fragment_expired",
            "fragment_full",
            "fragment_tiny",
            "fragment_dropped",
            "syn_closing",
            "park_full",
            "park_flow_full",
            "park_expired",
            "lookup_ring_full",
            "lookup_refused_worker",
            "lookup_refused_source",
            "resolved_stranger",
            "dropped_timed_out",
            "tunnel_too_big",
            "tunnel_no_frame",
            "tunnel_other_family",
            "tunnel_no_headroom",
            "tunnel_stranger",
            "tunnel_truncated",
            "tunnel_version",
            "tunnel_length",
            "tunnel_extensions",
            "tunnel_superseded",
            "tunnel_not_service",
            "host_withheld",
            "rst_withheld",
            "owners_full",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_counter_that_says_dropped_is_a_drop() {
        for counter in Counter::ALL {
            // Redirects are dropped from the table, and no frame with them.
            let says_so = counter.help().contains("dropped");
            let of_frames = says_so && !counter.help().starts_with("Redirects");
            assert!(!of_frames || counter.is_drop(), "{}", counter.name());
        }
    }
}
