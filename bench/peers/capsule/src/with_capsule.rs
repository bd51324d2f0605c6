//! The path written with capsule: its combinators, its typed packets. It has no room in front
//! of a frame, so every header pushed moves the rest of the frame towards the tail.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use anyhow::Result;
use capsule::batch::{Batch, Disposition, Either, Pipeline, Poll};
use capsule::packets::ip::ProtocolNumber;
use capsule::packets::ip::v4::Ipv4;
use capsule::packets::{Ethernet, Internal, Packet, Tcp4, Udp4};
use capsule::{Mbuf, PortQueue, SizeOf};

use crate::outer::{self, GUE, GUE_PORT, LOCAL, PROTOCOL_IPV4, TTL, Tunnel};
use crate::packets::{BURST, ETHERNET_LENGTH, Services};
use crate::table::{Found, Key, Order, Table};

pub type AnyPipeline = Box<dyn Pipeline + Unpin>;

/// What both paths have in common.
#[derive(Clone)]
pub struct Setting {
    pub queue: PortQueue,
    pub tunnel: Tunnel,
    pub order: Order,
    pub table: Table,
    pub services: Services,
}

/// Every header through its type: `push`, setters, `reconcile`.
pub fn typed(setting: &Setting) -> AnyPipeline {
    let segments = segments(setting);
    match setting.order {
        Order::Each => typed_of(segments, setting),
        Order::Ahead => typed_of(Ahead::new(segments, setting.table), setting),
    }
}

fn typed_of(segments: impl Batch<Item = Tcp4> + Unpin + 'static, setting: &Setting) -> AnyPipeline {
    let Setting { queue, tunnel, table, .. } = setting.clone();
    match tunnel {
        Tunnel::Ipip => Box::new(
            segments
                .filter_map(move |tcp| match table.lookup(&key(&tcp)) {
                    Some(found) => Ok(Either::Keep(push_ipip(tcp, found)?)),
                    None => Ok(Either::Drop(tcp.reset())),
                })
                .send(queue),
        ),
        Tunnel::Gue => Box::new(
            segments
                .filter_map(move |tcp| match table.lookup(&key(&tcp)) {
                    Some(found) => Ok(Either::Keep(push_gue(tcp, found)?)),
                    None => Ok(Either::Drop(tcp.reset())),
                })
                .send(queue),
        ),
    }
}

/// Parsed through the types; then all outer headers at once: one `extend`, one write.
pub fn one_extend(setting: &Setting) -> AnyPipeline {
    let segments = segments(setting);
    match setting.order {
        Order::Each => one_extend_of(segments, setting),
        Order::Ahead => one_extend_of(Ahead::new(segments, setting.table), setting),
    }
}

fn one_extend_of(
    segments: impl Batch<Item = Tcp4> + Unpin + 'static,
    setting: &Setting,
) -> AnyPipeline {
    let Setting { queue, tunnel, table, .. } = setting.clone();
    Box::new(
        segments
            .filter_map(move |tcp| {
                let Some(found) = table.lookup(&key(&tcp)) else {
                    return Ok(Either::Drop(tcp.reset()));
                };
                let dscp = tcp.envelope().dscp();
                let mut ethernet = tcp.deparse().deparse();
                ethernet.swap_addresses();
                let inner_length = ethernet.payload_len();
                let mut mbuf = ethernet.deparse();
                match tunnel {
                    Tunnel::Ipip => insert(&mut mbuf, &outer::ipip(found, dscp, inner_length))?,
                    Tunnel::Gue => insert(&mut mbuf, &outer::gue(found, dscp, inner_length))?,
                }
                Ok(Either::Keep(mbuf))
            })
            .send(queue),
    )
}

/// A combinator that capsule does not have: it takes in the whole burst and prefetches, before
/// it hands out the first packet.
struct Ahead<B> {
    batch: B,
    table: Table,
    burst: VecDeque<Disposition<Tcp4>>,
}

impl<B> Ahead<B> {
    fn new(batch: B, table: Table) -> Ahead<B> {
        Ahead { batch, table, burst: VecDeque::with_capacity(BURST) }
    }
}

impl<B: Batch<Item = Tcp4>> Batch for Ahead<B> {
    type Item = Tcp4;

    #[inline(always)]
    fn replenish(&mut self) {
        self.batch.replenish();
        while let Some(disposition) = self.batch.next() {
            if let Disposition::Act(tcp) = &disposition {
                self.table.prefetch(&key(tcp));
            }
            self.burst.push_back(disposition);
        }
    }

    #[inline(always)]
    fn next(&mut self) -> Option<Disposition<Tcp4>> {
        self.burst.pop_front()
    }
}

/// The services' segments in what the port receives. capsule looks neither at the version nor
/// at the length of an IPv4 header, nor at fragments.
fn segments(setting: &Setting) -> impl Batch<Item = Tcp4> + Unpin + use<> {
    let Setting { queue, services, .. } = setting.clone();
    Poll::new(queue).map(|mbuf| mbuf.parse::<Ethernet>()?.parse::<Ipv4>()?.parse::<Tcp4>()).filter(
        move |tcp| {
            let ipv4 = tcp.envelope();
            ipv4.version() == 4
                && ipv4.ihl() == 5
                && !ipv4.more_fragments()
                && ipv4.fragment_offset() == 0
                && services.contains(ipv4.dst().into(), tcp.dst_port())
        },
    )
}

#[inline(always)]
fn key(tcp: &Tcp4) -> Key {
    Key {
        source: tcp.envelope().src().into(),
        destination: tcp.envelope().dst().into(),
        source_port: tcp.src_port(),
        destination_port: tcp.dst_port(),
    }
}

#[inline(always)]
fn push_ipip(tcp: Tcp4, found: Found) -> Result<Ipv4> {
    let dscp = tcp.envelope().dscp();
    let mut ethernet = tcp.deparse().deparse();
    ethernet.swap_addresses();
    let mut ipv4 = ethernet.push::<Ipv4>()?;
    set_outer(&mut ipv4, found, dscp);
    ipv4.set_protocol(ProtocolNumber::new(PROTOCOL_IPV4));
    ipv4.reconcile();
    Ok(ipv4)
}

#[inline(always)]
fn push_gue(tcp: Tcp4, found: Found) -> Result<Gue> {
    let dscp = tcp.envelope().dscp();
    let mut ethernet = tcp.deparse().deparse();
    ethernet.swap_addresses();
    let mut gue = ethernet.push::<Ipv4>()?.push::<Udp4>()?.push::<Gue>()?;
    let udp = gue.envelope_mut();
    udp.set_src_port(outer::gue_source_port(found));
    udp.set_dst_port(GUE_PORT);
    // The only way to set the length, which is private: it sums up the payload as well.
    udp.reconcile();
    udp.no_checksum();
    let ipv4 = udp.envelope_mut();
    set_outer(ipv4, found, dscp);
    ipv4.reconcile();
    Ok(gue)
}

#[inline(always)]
fn set_outer(ipv4: &mut Ipv4, found: Found, dscp: u8) {
    ipv4.set_src(Ipv4Addr::from(LOCAL));
    ipv4.set_dst(Ipv4Addr::from(found.owner));
    ipv4.set_ttl(TTL);
    ipv4.set_dscp(dscp);
    ipv4.set_dont_fragment();
}

/// Bytes that capsule's buffer can take in one piece.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bytes<const LENGTH: usize>([u8; LENGTH]);

impl<const LENGTH: usize> SizeOf for Bytes<LENGTH> {
    fn size_of() -> usize {
        LENGTH
    }
}

#[inline(always)]
fn insert<const LENGTH: usize>(mbuf: &mut Mbuf, outer: &[u8; LENGTH]) -> Result<()> {
    mbuf.extend(ETHERNET_LENGTH, LENGTH)?;
    mbuf.write_data(ETHERNET_LENGTH, &Bytes(*outer))?;
    Ok(())
}

/// The GUE header as a packet type of capsule's kind.
struct Gue {
    envelope: Udp4,
    offset: usize,
}

impl Packet for Gue {
    type Envelope = Udp4;

    #[inline(always)]
    fn envelope(&self) -> &Udp4 {
        &self.envelope
    }

    #[inline(always)]
    fn envelope_mut(&mut self) -> &mut Udp4 {
        &mut self.envelope
    }

    #[inline(always)]
    fn offset(&self) -> usize {
        self.offset
    }

    #[inline(always)]
    fn header_len(&self) -> usize {
        GUE.len()
    }

    #[inline(always)]
    unsafe fn clone(&self, internal: Internal) -> Gue {
        // SAFETY: the caller keeps capsule's promise not to outlive the original.
        let envelope = unsafe { self.envelope.clone(internal) };
        Gue { envelope, offset: self.offset }
    }

    #[inline(always)]
    fn try_parse(envelope: Udp4, _internal: Internal) -> Result<Gue> {
        let offset = envelope.payload_offset();
        envelope.mbuf().read_data::<Bytes<{ GUE.len() }>>(offset)?;
        Ok(Gue { envelope, offset })
    }

    #[inline(always)]
    fn try_push(mut envelope: Udp4, _internal: Internal) -> Result<Gue> {
        let offset = envelope.payload_offset();
        let mbuf = envelope.mbuf_mut();
        mbuf.extend(offset, GUE.len())?;
        mbuf.write_data(offset, &Bytes(GUE))?;
        Ok(Gue { envelope, offset })
    }

    #[inline(always)]
    fn deparse(self) -> Udp4 {
        self.envelope
    }
}
