//! Answers `trace` and `capture`: has the workers observe packets, and streams what they say. The
//! workers are read while they work; what they have no room for is told as missed.

use std::sync::TryLockError;
use std::time::Duration;

use holdfast_dataplane::capture::{
    Account, Accountant, CounterSet, Ends, HEADERS_MAX, Image, Kind, Observation, Origin, Out,
    Verdict, Wanted, Way,
};
use holdfast_dataplane::stats::Counter;
use holdfast_dpdk as dpdk;
use holdfast_handoff::unix_us;
use holdfast_net::FlowKey;
use holdfast_net::headers::TcpFlags;

use super::Commands;
use crate::protocol::{
    CaptureBytes, CaptureFilter, CapturedFrame, ErrorCode, FramePort, PacketItem, PacketKind,
    PacketOrigin, PacketVerdict, ProtocolError, Snaplen, StreamBounds, StreamEnd, StreamReply,
    TrafficKind,
};
use crate::socket::{Items, Stream};

/// How often the workers' rings are read.
const PAUSE: Duration = Duration::from_millis(10);
/// Observations read before the stream's end is thought of.
const BATCH: usize = 1024;

const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

impl Commands {
    /// Every packet of a flow.
    pub(super) fn trace(
        &self,
        flow: FlowKey,
        bounds: StreamBounds,
        stream: &mut Stream<'_>,
    ) -> Result<StreamReply, ProtocolError> {
        let wanted = Wanted {
            snaplen: HEADERS_MAX,
            clients: Some(flow.client().ip().into()),
            ..Wanted::default()
        };
        self.packets(&wanted, bounds, stream, |items, _, account, item| {
            let is_of_it = account.ends.is_some_and(|ends| ends.may_be(&flow));
            if is_of_it { items.send(item()) } else { Ok(()) }
        })
    }

    /// Packets with their frames.
    pub(super) fn capture(
        &self,
        filter: &CaptureFilter,
        snaplen: Snaplen,
        bytes: CaptureBytes,
        bounds: StreamBounds,
        stream: &mut Stream<'_>,
    ) -> Result<StreamReply, ProtocolError> {
        let snaplen = u64::from(snaplen) as usize;
        let mut bytes_left = u64::from(bytes);
        let wanted = Wanted {
            snaplen,
            counters: counters(filter)?,
            clients: filter.client.map(|client| client.0),
        };
        self.packets(&wanted, bounds, stream, |items, observation, account, item| {
            if !admits(filter, observation, account) {
                return Ok(());
            }
            let frames = frames(observation, snaplen);
            let bytes: usize = frames.iter().map(|frame| frame.data.len()).sum();
            items.send(PacketItem { frames, ..item() })?;
            bytes_left = bytes_left.saturating_sub(bytes as u64);
            if bytes_left == 0 { Err(StreamEnd::Bytes) } else { Ok(()) }
        })
    }

    /// Streams what the workers observe; `take` is given each observation, what it says, and what makes an
    /// item of it.
    fn packets(
        &self,
        wanted: &Wanted,
        bounds: StreamBounds,
        stream: &mut Stream<'_>,
        mut take: impl FnMut(
            &mut Numbered<'_, '_>,
            &Observation,
            &Account,
            &dyn Fn() -> PacketItem,
        ) -> Result<(), StreamEnd>,
    ) -> Result<StreamReply, ProtocolError> {
        let mut observations = match self.appliance.observations.try_lock() {
            Ok(observations) => observations,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let message = "another trace or capture is under way; try again";
                return Err(ProtocolError::new(ErrorCode::Busy, message));
            }
        };
        let cores = &self.appliance.config.workers.cores;
        let start_unix_us = unix_us().saturating_sub(self.appliance.clock.at(dpdk::tsc()).us);
        stream.run(bounds, |items| {
            let mut accountant = Accountant::new(self.appliance.reload.classifier());
            let mut items = Numbered { items, number: 0 };
            let mut capture = observations.start(wanted);
            loop {
                let mut read = 0;
                while read < BATCH
                    && let Some((worker, observation)) = capture.next_observation()
                {
                    read += 1;
                    let account = accountant.account(&observation);
                    let item = || {
                        let at_unix_us = start_unix_us.saturating_add(observation.at.us);
                        packet_item(&observation, &account, at_unix_us, cores[worker])
                    };
                    take(&mut items, &observation, &account, &item)?;
                }
                items.items.missed(capture.missed())?;
                items.items.wait(if read < BATCH { PAUSE } else { Duration::ZERO })?;
            }
        })
    }
}

/// A stream whose items are numbered.
struct Numbered<'a, 'b> {
    items: &'a mut Items<'b>,
    number: u64,
}

impl Numbered<'_, '_> {
    fn send(&mut self, mut item: PacketItem) -> Result<(), StreamEnd> {
        self.number += 1;
        item.number = self.number;
        self.items.send(&item)
    }
}

/// The counters of which a packet that a filter admits has moved one; none when it may move any.
/// Workers observe what moves one of them only, so that they need not observe all.
fn counters(filter: &CaptureFilter) -> Result<CounterSet, ProtocolError> {
    if let Some(name) = &filter.counter {
        let counter = Counter::ALL.iter().find(|counter| counter.name() == name);
        let counter = counter.ok_or_else(|| {
            let message =
                format!("no counter of workers is named '{name}'; show stats --all lists them");
            ProtocolError::new(ErrorCode::BadRequest, message)
        })?;
        return Ok(CounterSet::of(&[*counter]));
    }
    let of_verdict = filter.verdict.map_or(CounterSet::default(), of_verdict);
    let of_kind = filter.kind.map_or(CounterSet::default(), of_kind);
    Ok(if of_verdict.is_empty() { of_kind } else { of_verdict })
}

fn of_kind(kind: TrafficKind) -> CounterSet {
    match kind {
        TrafficKind::All => CounterSet::default(),
        TrafficKind::Strays => CounterSet::of(&[
            Counter::Miss,
            Counter::ReleasedTunnel,
            Counter::ReleasedHost,
            Counter::ParkExpired,
            Counter::DroppedTimedOut,
            Counter::ResolvedStranger,
        ]),
        TrafficKind::Redirected => CounterSet::of(&[
            Counter::RedirectHit,
            Counter::ReleasedTunnel,
            Counter::FragmentToTunnel,
        ]),
        TrafficKind::Tunnelled => CounterSet::of(&[
            Counter::TunnelSent,
            Counter::TunnelReceived,
            Counter::TunnelStranger,
            Counter::TunnelTruncated,
            Counter::TunnelVersion,
            Counter::TunnelLength,
            Counter::TunnelExtensions,
            Counter::TunnelNotService,
        ]),
        TrafficKind::Dropped => CounterSet::drops(),
    }
}

fn of_verdict(verdict: PacketVerdict) -> CounterSet {
    match verdict {
        PacketVerdict::ToHost | PacketVerdict::ToUplink => CounterSet::default(),
        PacketVerdict::Tunnelled => CounterSet::of(&[Counter::TunnelSent]),
        PacketVerdict::Answered => CounterSet::of(&[Counter::TooBigAnswered]),
        PacketVerdict::Parked => CounterSet::of(&[Counter::Parked]),
        PacketVerdict::Waits => CounterSet::of(&[Counter::FragmentWaited]),
        PacketVerdict::Dropped | PacketVerdict::Withheld => CounterSet::drops(),
    }
}

fn admits(filter: &CaptureFilter, observation: &Observation, account: &Account) -> bool {
    let CaptureFilter { kind, verdict, counter, client, client_port, service } = filter;
    let moved_one = |counters: CounterSet| {
        counters.is_empty() || !counters.and(observation.counters).is_empty()
    };
    let is_of_flows = |what: &dyn Fn(&Ends) -> bool| account.ends.is_some_and(|ends| what(&ends));
    kind.is_none_or(|kind| moved_one(of_kind(kind)))
        && verdict.is_none_or(|wanted| wanted == packet_verdict(account.verdict))
        && counter.as_ref().is_none_or(|name| observation.counters.iter().any(|c| c.name() == name))
        && client.is_none_or(|client| is_of_flows(&|ends| client.0.contains(&ends.client)))
        && client_port.is_none_or(|port| {
            is_of_flows(&|ends| ends.ports.is_some_and(|(client_port, _)| client_port == port))
        })
        && service.is_none_or(|service| {
            is_of_flows(&|ends| {
                ends.service == Some(service.address)
                    && service.port.is_none_or(|port| {
                        ends.ports.is_some_and(|(_, service_port)| service_port == port)
                    })
            })
        })
}

fn packet_item(
    observation: &Observation,
    account: &Account,
    at_unix_us: u64,
    core: u16,
) -> PacketItem {
    let (origin, sender) = match (observation.origin, account.way) {
        (Origin::Waited, _) => (PacketOrigin::Waited, None),
        (Origin::Host, _) => (PacketOrigin::Host, None),
        (Origin::Uplink, Way::Direct) => (PacketOrigin::Uplink, None),
        (Origin::Uplink, Way::Tunnel(sender)) => (PacketOrigin::Tunnel, Some(sender)),
        (Origin::Uplink, Way::Rewritten) => (PacketOrigin::Tunnel, None),
    };
    PacketItem {
        number: 0,
        at_unix_us,
        core,
        origin,
        sender,
        kind: match account.kind {
            Kind::Segment => PacketKind::Segment,
            Kind::IcmpError => PacketKind::IcmpError,
            Kind::Fragment => PacketKind::Fragment,
            Kind::Other => PacketKind::Other,
        },
        flow: account.ends.and_then(|ends| ends.flow()),
        length: observation.came.length as u64,
        flags: account.flags.map(flags),
        verdict: packet_verdict(account.verdict),
        owner: account.owner,
        counter: account.reason.map(|counter| counter.name().to_owned()),
        rules: account.rules().iter().map(|rule| format!("R{rule}")).collect(),
        counters: observation.counters.iter().map(|counter| counter.name().to_owned()).collect(),
        sent: observation.sent_total as u64,
        frames: Vec::new(),
    }
}

fn packet_verdict(verdict: Verdict) -> PacketVerdict {
    match verdict {
        Verdict::ToHost => PacketVerdict::ToHost,
        Verdict::ToUplink => PacketVerdict::ToUplink,
        Verdict::Tunnelled => PacketVerdict::Tunnelled,
        Verdict::Answered => PacketVerdict::Answered,
        Verdict::Parked => PacketVerdict::Parked,
        Verdict::Waits => PacketVerdict::Waits,
        Verdict::Dropped => PacketVerdict::Dropped,
        Verdict::Withheld => PacketVerdict::Withheld,
    }
}

fn flags(flags: TcpFlags) -> Vec<String> {
    let set = FLAGS.iter().enumerate().filter(|(bit, _)| flags.0 >> bit & 1 != 0);
    set.map(|(_, name)| (*name).to_owned()).collect()
}

fn frames(observation: &Observation, snaplen: usize) -> Vec<CapturedFrame> {
    let frame = |port, image: &Image| CapturedFrame {
        port,
        length: image.length as u64,
        data: image.bytes[..image.bytes.len().min(snaplen)].to_vec(),
    };
    let came = match observation.origin {
        Origin::Uplink => FramePort::UplinkIn,
        Origin::Host => FramePort::HostIn,
        Origin::Waited => FramePort::Waited,
    };
    let sent = observation.sent.iter().map(|(out, image)| {
        let port = match out {
            Out::Uplink => FramePort::UplinkOut,
            Out::Host => FramePort::HostOut,
        };
        frame(port, image)
    });
    std::iter::once(frame(came, &observation.came)).chain(sent).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::protocol::SNAPLEN_MAX;

    #[test]
    fn workers_observe_as_much_of_a_frame_as_can_be_asked_for() {
        assert_eq!(SNAPLEN_MAX, holdfast_dataplane::capture::SNAPLEN_MAX as u64);
    }

    #[test]
    fn flags_have_their_names() {
        assert_eq!(flags(TcpFlags::SYN.and(TcpFlags::ACK)), ["syn", "ack"]);
        assert_eq!(flags(TcpFlags(0xff)), FLAGS);
        assert!(flags(TcpFlags(0)).is_empty());
    }

    #[test]
    fn workers_observe_what_a_filter_can_admit() {
        let of = |text: &str| counters(&text.parse().unwrap());
        assert_eq!(of("all"), Ok(CounterSet::default()));
        assert_eq!(of("verdict=to_host"), Ok(CounterSet::default()));
        assert_eq!(of("verdict=to_host,dropped"), Ok(CounterSet::drops()));
        assert_eq!(of("verdict=withheld"), Ok(CounterSet::drops()));
        assert_eq!(of("strays,counter=park_full"), Ok(CounterSet::of(&[Counter::ParkFull])));
        let error = of("counter=parkfull").unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(error.message.contains("no counter of workers is named 'parkfull'"), "{error}");
    }
}
