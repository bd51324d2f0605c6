//! What an observation says: whose packet it was, what became of it, and by which rules. Reads the bytes
//! of frames and the names of counters; knows nothing of sessions.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use holdfast_net::headers::TcpFlags;
use holdfast_net::{FlowKey, Packet, Transport};

use super::{CounterSet, Image, Observation, Origin, Out};
use crate::classify::{
    Classifier, Fragment, FromHost, FromUplink, Inside, Part, Segment, tunnelled,
};
use crate::fragments::Datagram;
use crate::stats::Counter;

/// Datagrams whose first fragment was seen, remembered for those behind it.
const DATAGRAMS_MAX: usize = 256;

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A segment of a service's flow.
    Segment,
    /// An ICMP error about one.
    IcmpError,
    /// A fragment of what is, or may be, one.
    Fragment,
    /// Anything else.
    Other,
}

/// How a packet from the uplink came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As it is.
    Direct,
    /// In a tunnel from the server with this locator.
    Tunnel(IpAddr),
    /// With its destination rewritten: by whom cannot be told.
    Rewritten,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To the host.
    ToHost,
    /// To the uplink, as the host sent it or with a lower MSS.
    ToUplink,
    /// Into the tunnel to its flow's owner.
    Tunnelled,
    /// Its sender was told what fits the tunnel, or where a next hop of ours is.
    Answered,
    /// It waits until its flow's owner is known.
    Parked,
    /// It waits for the first fragment of its datagram.
    Waits,
    /// Dropped.
    Dropped,
    /// From the host, and must not reach the client.
    Withheld,
}

/// A flow, as far as a packet tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The client's address.
    pub client: IpAddr,
    /// The service's address; not known of fragments with a rewritten destination.
    pub service: Option<IpAddr>,
    /// The client's and the service's port; not known of fragments without their first.
    pub ports: Option<(u16, u16)>,
}

impl Ends {
    /// The flow, if it is known.
    #[must_use]
    pub fn flow(&self) -> Option<FlowKey> {
        let (client_port, service_port) = self.ports?;
        let client = SocketAddr::new(self.client, client_port);
        FlowKey::tcp(client, SocketAddr::new(self.service?, service_port))
    }

    /// Whether it is this flow, or may be.
    #[must_use]
    pub fn may_be(&self, flow: &FlowKey) -> bool {
        let (client, service) = (flow.client(), flow.service());
        self.client == client.ip()
            && self.service.is_none_or(|address| address == service.ip())
            && self.ports.is_none_or(|ports| ports == (client.port(), service.port()))
    }
}

impl From<FlowKey> for Ends {
    fn from(flow: FlowKey) -> Ends {
        let (client, service) = (flow.client(), flow.service());
        Ends {
            client: client.ip(),
            service: Some(service.ip()),
            ports: Some((client.port(), service.port())),
        }
    }
}

/// What an observation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// What the packet is.
    pub kind: Kind,
    /// How it came, if from the uplink.
    pub way: Way,
    /// Its flow, if it is a service's.
    pub ends: Option<Ends>,
    /// Its control bits, if it shows some.
    pub flags: Option<TcpFlags>,
    /// What became of it.
    pub verdict: Verdict,
    /// Where the tunnel leads into which it went.
    pub owner: Option<IpAddr>,
    /// The counter that says why it was dropped or withheld.
    pub reason: Option<Counter>,
    counters: CounterSet,
}

impl Account {
    /// The numbers of the rules that had a say, in order.
    #[must_use]
    pub fn rules(&self) -> Vec<u8> {
        let mut rules: Vec<u8> = self.counters.iter().flat_map(rules).copied().collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }
}

/// Gives account of observations in the order in which they were made.
#[derive(Debug)]
pub struct Accountant {
    classifier: Classifier,
    /// Flows of datagrams whose first fragment was seen, the oldest first.
    datagrams: VecDeque<(Datagram, FlowKey)>,
}

/// What is read from a frame.
#[derive(Clone, Copy)]
struct Reading {
    kind: Kind,
    way: Way,
    ends: Option<Ends>,
    flags: Option<TcpFlags>,
}

impl Reading {
    const OTHER: Reading = Reading { kind: Kind::Other, way: Way::Direct, ends: None, flags: None };
}

impl Accountant {
    /// An account of what workers with this classifier observe.
    #[must_use]
    pub fn new(classifier: Classifier) -> Accountant {
        Accountant { classifier, datagrams: VecDeque::with_capacity(DATAGRAMS_MAX) }
    }

    /// What an observation says.
    pub fn account(&mut self, observation: &Observation) -> Account {
        let frame = whole(&observation.came);
        let Reading { kind, way, ends, flags } = match observation.origin {
            Origin::Host => self.read_host(&frame),
            Origin::Uplink | Origin::Waited => self.read_uplink(&frame),
        };
        let counters = observation.counters;
        let reason = counters.and(CounterSet::drops()).iter().next();
        let verdict = verdict(observation, reason);
        let owner = (verdict == Verdict::Tunnelled).then(|| leads_to(observation)).flatten();
        Account { kind, way, ends, flags, verdict, owner, reason, counters }
    }

    fn read_uplink(&mut self, frame: &[u8]) -> Reading {
        match self.classifier.read_uplink(frame) {
            FromUplink::Segment(segment) => self.reading(Kind::Segment, Way::Direct, &segment),
            FromUplink::IcmpError(segment) => self.reading(Kind::IcmpError, Way::Direct, &segment),
            FromUplink::Rewritten { segment, .. } => {
                let packet = Packet::from_ethernet(frame).ok().flatten();
                let is_tcp = packet.is_some_and(|p| matches!(p.transport, Transport::Tcp { .. }));
                let kind = if is_tcp { Kind::Segment } else { Kind::IcmpError };
                self.reading(kind, Way::Rewritten, &segment)
            }
            FromUplink::Tunnel { outer, sender } => {
                let inside = tunnelled(frame, &outer).ok();
                let inside = inside.map(|inner| self.read_inside(frame, inner));
                Reading { way: Way::Tunnel(sender), ..inside.unwrap_or(Reading::OTHER) }
            }
            FromUplink::Fragment(Fragment { datagram, part, .. }) => {
                self.read_fragment(datagram, part)
            }
            FromUplink::Other | FromUplink::OtherFragment | FromUplink::Malformed(_) => {
                Reading::OTHER
            }
        }
    }

    fn read_inside(&mut self, frame: &[u8], inner: Packet) -> Reading {
        let Some(inside) = self.classifier.inside(frame, inner) else {
            return Reading::OTHER;
        };
        match (inner.transport, inside) {
            (Transport::Fragment(fragment), inside) => {
                let datagram =
                    Datagram { network: inner.network, identification: fragment.identification };
                let part = match inside {
                    Inside::Segment(segment) => Part::First(segment),
                    Inside::LaterFragment => Part::Later,
                };
                self.read_fragment(datagram, part)
            }
            (Transport::Tcp { .. }, Inside::Segment(segment)) => {
                self.reading(Kind::Segment, Way::Direct, &segment)
            }
            (_, Inside::Segment(segment)) => self.reading(Kind::IcmpError, Way::Direct, &segment),
            (_, Inside::LaterFragment) => Reading::OTHER,
        }
    }

    fn read_fragment(&mut self, datagram: Datagram, part: Part) -> Reading {
        let (way, segment) = match part {
            Part::First(segment) => (Way::Direct, segment),
            Part::FirstRewritten(segment, _) => (Way::Rewritten, segment),
            Part::FirstOfOther => return Reading::OTHER,
            Part::FirstTiny | Part::Later => {
                return Reading { kind: Kind::Fragment, ..self.without_ports(&datagram) };
            }
        };
        let reading = self.reading(Kind::Fragment, way, &segment);
        if let Some(flow) = reading.ends.and_then(|ends| ends.flow()) {
            self.datagrams.retain(|(other, _)| *other != datagram);
            if self.datagrams.len() == DATAGRAMS_MAX {
                self.datagrams.pop_front();
            }
            self.datagrams.push_back((datagram, flow));
        }
        reading
    }

    /// A fragment that does not name its ports: of its datagram's first, if that was seen.
    fn without_ports(&self, datagram: &Datagram) -> Reading {
        let destination = datagram.network.destination();
        let is_rewritten = destination == self.classifier.locator;
        let known = self.datagrams.iter().rev().find(|(other, _)| other == datagram);
        let ends = known.map_or_else(
            || Ends {
                client: datagram.network.source(),
                service: (!is_rewritten).then_some(destination),
                ports: None,
            },
            |(_, flow)| Ends::from(*flow),
        );
        let way = if is_rewritten { Way::Rewritten } else { Way::Direct };
        Reading { way, ends: Some(ends), ..Reading::OTHER }
    }

    fn read_host(&self, frame: &[u8]) -> Reading {
        if let FromHost::Segment(segment) = self.classifier.read_host(frame) {
            return self.reading(Kind::Segment, Way::Direct, &segment);
        }
        let Ok(Some(packet)) = Packet::from_ethernet(frame) else {
            return Reading::OTHER;
        };
        let service = packet.network.source();
        if !matches!(packet.transport, Transport::Fragment(_))
            || !self.classifier.services.has_address(service)
        {
            return Reading::OTHER;
        }
        let (ports, flags) = match packet.first_fragment(frame) {
            Some(Transport::Tcp { source_port, destination_port, flags }) => {
                (Some((destination_port, source_port)), Some(flags))
            }
            _ => (None, None),
        };
        let ends = Ends { client: packet.network.destination(), service: Some(service), ports };
        Reading { kind: Kind::Fragment, way: Way::Direct, ends: Some(ends), flags }
    }

    fn reading(&self, kind: Kind, way: Way, segment: &Segment) -> Reading {
        let ends = self.classifier.services.flow(&segment.key).map(Ends::from);
        let flags = (kind != Kind::IcmpError).then_some(segment.flags);
        Reading { kind, way, ends, flags }
    }
}

/// The frame as long as it was, with zeros for what was not observed: lengths in headers are right
/// then.
fn whole(image: &Image) -> Vec<u8> {
    let mut bytes = image.bytes.clone();
    bytes.resize(image.length, 0);
    bytes
}

fn verdict(observation: &Observation, reason: Option<Counter>) -> Verdict {
    let moved = |counter| observation.counters.contains(counter);
    let went_to = |out| observation.sent.iter().any(|(way, _)| *way == out);
    match reason {
        Some(Counter::HostWithheld | Counter::RstWithheld) => Verdict::Withheld,
        Some(_) => Verdict::Dropped,
        None if moved(Counter::TunnelSent) => Verdict::Tunnelled,
        None if moved(Counter::TooBigAnswered) || moved(Counter::NeighbourAnswered) => {
            Verdict::Answered
        }
        None if went_to(Out::Host) => Verdict::ToHost,
        None if went_to(Out::Uplink) => Verdict::ToUplink,
        None if moved(Counter::Parked) => Verdict::Parked,
        None if moved(Counter::FragmentWaited) => Verdict::Waits,
        // Its queue was sent at once, and the bytes are gone.
        None if observation.sent_total > 0 && observation.origin == Origin::Host => {
            Verdict::ToUplink
        }
        None if observation.sent_total > 0 => Verdict::ToHost,
        None => Verdict::Dropped,
    }
}

/// The owner to which the tunnel leads that a packet was sent into: in each form it is the
/// destination of what was sent.
fn leads_to(observation: &Observation) -> Option<IpAddr> {
    let (_, sent) = observation.sent.iter().find(|(out, _)| *out == Out::Uplink)?;
    let packet = Packet::from_ethernet(&whole(sent)).ok().flatten()?;
    Some(packet.network.destination())
}

/// The numbers of the rules that a counter is about.
fn rules(counter: Counter) -> &'static [u8] {
    match counter {
        Counter::SynToHost => &[2],
        Counter::SessionOpened | Counter::HalfOpenOverLimit => &[3],
        Counter::LocalHit | Counter::RedirectHit => &[4],
        Counter::Miss
        | Counter::NegativeHit
        | Counter::Parked
        | Counter::ParkFull
        | Counter::ParkFlowFull
        | Counter::ParkExpired
        | Counter::LookupAsked
        | Counter::LookupRingFull
        | Counter::LookupRefusedWorker
        | Counter::LookupRefusedSource
        | Counter::ResolvedStranger
        | Counter::ReleasedTunnel
        | Counter::ReleasedHost
        | Counter::DroppedTimedOut => &[5],
        Counter::TunnelReceived
        | Counter::TunnelStranger
        | Counter::TunnelTruncated
        | Counter::TunnelVersion
        | Counter::TunnelLength
        | Counter::TunnelExtensions
        | Counter::TunnelNotService
        | Counter::NotMineSent
        | Counter::NotMineUnsent => &[6],
        Counter::SessionLearnt => &[7],
        Counter::IcmpError => &[9],
        Counter::FragmentToHost
        | Counter::FragmentToTunnel
        | Counter::FragmentWaited
        | Counter::FragmentExpired
        | Counter::FragmentFull
        | Counter::FragmentTiny
        | Counter::FragmentDropped => &[10],
        Counter::MssClamped
        | Counter::TooBigAnswered
        | Counter::TooBigFragments
        | Counter::TunnelTooBig
        | Counter::TunnelNoFrame => &[11],
        Counter::TunnelSuperseded => &[6, 12],
        Counter::RedirectEnded
        | Counter::HostSuperseded
        | Counter::HostWithheld
        | Counter::RstWithheld => &[12],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter whose help ends in rules has them here, if they can be told: of "(R2, R7)" either
    /// may be meant.
    #[test]
    fn rules_are_those_of_the_counters_help() {
        let mut named = 0;
        for counter in Counter::ALL {
            let help = counter.help().trim_end_matches(['.', ')']);
            let Some((_, list)) = help.rsplit_once("(R") else { continue };
            let numbers: Result<Vec<u8>, _> = list.split(", R").map(str::parse).collect();
            // "(RFC 1858)" is none.
            let Ok(numbers) = numbers else { continue };
            named += 1;
            if !rules(*counter).is_empty() {
                assert_eq!(rules(*counter), numbers, "{}", counter.name());
            }
        }
        assert!(named > 20, "{named}");
    }
}
