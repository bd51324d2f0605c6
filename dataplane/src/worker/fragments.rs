//! What a worker does with fragments (R10), and with packets that it has to fragment (R11). They
//! are rare: nothing here is on a plain segment's way.

use std::net::IpAddr;

use holdfast_net::Packet;
use holdfast_net::headers::TcpFlags;

use super::{Arrival, Verdict, Way, Worker};
use crate::capture::Origin;
use crate::classify::{Fragment, FromUplink, Part, Segment};
use crate::encap::{self, EncapError};
use crate::fragmentation::{self, SplitError};
use crate::fragments::{Datagram, Later};
use crate::frame::Frame;
use crate::port::Port;
use crate::session::owners::OwnerId;
use crate::session::table::Located;
use crate::stats::Counter;
use crate::time::Now;

/// Datagrams whose time is over, forgotten in a turn of housekeeping: half a million a second.
const EXPIRED_MAX: usize = 512;

/// What became of a segment's first fragment, and so becomes of those behind it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    /// To the host, counted so.
    Host(Counter),
    /// Into the tunnel to its flow's owner.
    Tunnel(OwnerId, Located),
    /// It waits for the lookup of its flow.
    Lookup(Located),
    /// To the host, its destination turned back into that of this service.
    TurnBack(IpAddr),
    /// Dropped.
    Drop,
}

impl Fate {
    fn of(verdict: Verdict, at: Located) -> Fate {
        match verdict {
            Verdict::Host => Fate::Host(Counter::FragmentToHost),
            Verdict::Tunnel(owner) => Fate::Tunnel(owner, at),
            Verdict::Park => Fate::Lookup(at),
            Verdict::Drop(_) => Fate::Drop,
        }
    }
}

impl<U: Port, H: Port<Frame = U::Frame>> Worker<U, H> {
    /// R10: the first fragment of a segment gets the segment's verdict, the others follow it.
    #[inline(never)]
    pub(super) fn fragment(&mut self, mut frame: U::Frame, now: Now) {
        let read = self.shared.settings.classifier.read_uplink(frame.data());
        let FromUplink::Fragment(Fragment { datagram, part, .. }) = read else {
            // It was one when its burst was read.
            return self.pass(frame, Counter::Passed);
        };
        let fate = match part {
            Part::Later => return self.later_fragment(frame, datagram, now),
            Part::FirstTiny => return self.count(Counter::FragmentTiny),
            Part::FirstOfOther => {
                let counter = self.passed(&datagram);
                self.pass(frame, counter);
                Fate::Host(counter)
            }
            Part::First(segment) => {
                let arrival = self.arrival_of_fragment(&segment, Way::Direct);
                let found = self.shared.table.find(&arrival.at);
                let verdict = self.verdict(&arrival, found, now);
                self.act(verdict, frame, &arrival, now);
                Fate::of(verdict, arrival.at)
            }
            Part::FirstRewritten(segment, service) => {
                if encap::turn_back(&mut frame, &segment.headers, service).is_none() {
                    return self.count(Counter::TunnelLength);
                }
                self.count(Counter::TunnelReceived);
                let arrival = self.arrival_of_fragment(&segment, Way::Rewritten);
                let found = self.shared.table.find(&arrival.at);
                let verdict = self.verdict_tunnelled(&arrival, found, &[], now);
                self.act(verdict, frame, &arrival, now);
                Fate::TurnBack(service)
            }
        };
        self.settle(datagram, fate, now);
    }

    fn arrival_of_fragment(&self, segment: &Segment, way: Way) -> Arrival {
        let Segment { key, flags, headers } = *segment;
        Arrival { at: self.shared.table.locate(&key), flags, headers, way }
    }

    /// How a fragment is counted that is none of a service's.
    fn passed(&self, datagram: &Datagram) -> Counter {
        let to_us = datagram.network.destination() == self.shared.settings.classifier.locator;
        if to_us { Counter::Passed } else { Counter::FragmentPassed }
    }

    fn later_fragment(&mut self, frame: U::Frame, datagram: Datagram, now: Now) {
        match self.fragments.later(datagram, frame, now) {
            Later::Follows(frame, fate) => self.follow(frame, fate, now),
            Later::Waits => self.count(Counter::FragmentWaited),
            Later::Full(frame) => self.give_up(frame, &datagram, Counter::FragmentFull),
        }
    }

    /// A fragment whose first is not known and that cannot wait. One to our locator may be the
    /// host's own traffic rather than a rewritten one: the host gets it.
    fn give_up(&mut self, frame: U::Frame, datagram: &Datagram, counter: Counter) {
        match self.passed(datagram) {
            Counter::Passed => self.pass(frame, Counter::Passed),
            _ => self.count(counter),
        }
    }

    /// The fate of a datagram's first fragment is known: those that waited follow it.
    fn settle(&mut self, datagram: Datagram, fate: Fate, now: Now) {
        for frame in self.fragments.settle(datagram, fate, now) {
            self.begin_observation(Origin::Waited, &frame, now);
            self.follow(frame, fate, now);
        }
        self.end_observation();
    }

    /// R10: a fragment goes where the first of its segment went.
    fn follow(&mut self, mut frame: U::Frame, fate: Fate, now: Now) {
        let Ok(Some(packet)) = Packet::from_ethernet(frame.data()) else {
            // It was one when it was read first.
            return self.pass(frame, Counter::Passed);
        };
        let headers = packet.headers();
        match fate {
            Fate::Host(counter) => self.pass(frame, counter),
            Fate::Tunnel(owner, at) => {
                self.count(Counter::FragmentToTunnel);
                let flags = TcpFlags(0);
                let arrival = Arrival { at, flags, headers, way: Way::Direct };
                self.send_tunnel(frame, &arrival, owner, now);
            }
            Fate::Lookup(at) => match self.shared.table.flow(&at) {
                Some(flow) if self.parking.is_waiting(&flow) => {
                    self.count(Counter::Miss);
                    self.park(frame, flow, now);
                }
                // The first found no room, or waited for too long.
                _ => self.count(Counter::FragmentDropped),
            },
            Fate::TurnBack(service) => match encap::turn_back(&mut frame, &headers, service) {
                Some(()) => self.pass(frame, Counter::TunnelReceived),
                None => self.count(Counter::TunnelLength),
            },
            Fate::Drop => self.count(Counter::FragmentDropped),
        }
    }

    /// R10: the lookup that `fragment` waited for has led to `verdict`: fragments of its datagram
    /// that are still to come share it.
    pub(super) fn settle_released(
        &mut self,
        fragment: &Fragment,
        verdict: Verdict,
        at: Located,
        now: Now,
    ) {
        self.settle(fragment.datagram, Fate::of(verdict, at), now);
    }

    /// Forgets datagrams whose time is over.
    pub(super) fn expire_fragments(&mut self, now: Now) {
        for _ in 0..EXPIRED_MAX {
            let Some((datagram, waiting)) = self.fragments.expire(now) else {
                return;
            };
            for frame in waiting {
                self.begin_observation(Origin::Waited, &frame, now);
                self.give_up(frame, &datagram, Counter::FragmentExpired);
            }
            self.end_observation();
        }
    }

    /// R11: whether a packet too big for the tunnel is to be fragmented.
    pub(super) fn may_fragment(frame: &U::Frame) -> bool {
        let packet = Packet::from_ethernet(frame.data());
        matches!(packet, Ok(Some(packet)) if fragmentation::is_allowed(frame.data(), &packet))
    }

    /// R11: sends a packet of the flow `at` that is too big for the tunnel in fragments, each in a
    /// tunnel packet of its own, so that the owner's host reassembles what the client sent.
    pub(super) fn send_fragmented(&mut self, frame: U::Frame, at: &Located, owner: OwnerId) {
        let mtu = self.tunnel_mtu(owner);
        let mut next = Some(frame);
        // Each round takes at least 8 bytes off.
        while let Some(mut frame) = next {
            let Ok(Some(packet)) = Packet::from_ethernet(frame.data()) else {
                return self.count(Counter::TunnelTooBig);
            };
            next = match fragmentation::split(&mut frame, &packet, mtu) {
                Ok(rest) => rest,
                Err(SplitError::NoFrame) => return self.count(Counter::TunnelNoFrame),
                Err(SplitError::NotAllowed) => return self.count(Counter::TunnelTooBig),
            };
            if next.is_some() {
                self.count(Counter::TooBigFragments);
            }
            self.send_fragment(frame, at, owner);
        }
    }

    fn send_fragment(&mut self, mut frame: U::Frame, at: &Located, owner: OwnerId) {
        let mtu = self.shared.settings.ports.uplink_mtu;
        let packet = Packet::from_ethernet(frame.data()).ok().flatten();
        let (Some(packet), Some(tunnel)) = (packet, self.tunnel(owner)) else {
            return self.count(Counter::OwnersFull);
        };
        match tunnel.encapsulate(&mut frame, &packet.headers(), at.entropy(), mtu) {
            Ok(()) => {
                self.count(Counter::TunnelSent);
                self.send_uplink(frame);
            }
            Err(EncapError::TooBig) => self.count(Counter::TunnelTooBig),
            Err(EncapError::NoHeadroom) => self.count(Counter::TunnelNoHeadroom),
            Err(EncapError::OtherFamily) => self.count(Counter::TunnelOtherFamily),
        }
    }
}
