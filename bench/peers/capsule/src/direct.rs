//! The path written with direct calls: one loop over the burst, headers read where they lie,
//! outer headers into the headroom. No templates, nothing that capsule's side could not have.

use std::ptr;

use capsule_ffi::{
    _rte_eth_rx_burst, _rte_eth_tx_burst, _rte_pktmbuf_free, RTE_PKTMBUF_HEADROOM, rte_mbuf,
};

use crate::outer::{self, GUE_LENGTH, IPIP_LENGTH, Tunnel};
use crate::packets::{BURST, ETHERNET_LENGTH, HEADERS_LENGTH, PORT, QUEUE, Services};
use crate::table::{Key, Order, Table};

#[derive(Debug)]
pub struct Direct {
    pub tunnel: Tunnel,
    pub order: Order,
    pub table: Table,
    pub services: Services,
}

/// What is needed of a segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    key: Key,
    dscp: u8,
    /// Of the IP packet, in bytes.
    length: u16,
}

/// Packets to be sent at the end of the burst.
struct Outgoing {
    mbufs: [*mut rte_mbuf; BURST],
    count: usize,
}

impl Direct {
    /// Receives a burst, and sends what can be redirected.
    pub fn run_once(&mut self) {
        let mut received = [ptr::null_mut(); BURST];
        // SAFETY: the port is started and `received` has room for this many.
        let count = unsafe { _rte_eth_rx_burst(PORT, QUEUE, received.as_mut_ptr(), BURST as u16) };
        let received = &received[..usize::from(count)];
        let mut outgoing = Outgoing { mbufs: [ptr::null_mut(); BURST], count: 0 };
        match self.order {
            Order::Each => self.each(received, &mut outgoing),
            Order::Ahead => self.ahead(received, &mut outgoing),
        }
        outgoing.send();
    }

    #[inline(always)]
    fn each(&self, received: &[*mut rte_mbuf], outgoing: &mut Outgoing) {
        for &mbuf in received {
            // SAFETY: just received, so ours until sent or freed.
            let packet = unsafe { &mut *mbuf };
            let redirected = self.parse(packet).and_then(|segment| self.redirect(packet, segment));
            outgoing.push_or_free(mbuf, redirected);
        }
    }

    #[inline(always)]
    fn ahead(&self, received: &[*mut rte_mbuf], outgoing: &mut Outgoing) {
        let mut segments = [None; BURST];
        for (segment, &mbuf) in segments.iter_mut().zip(received) {
            // SAFETY: just received, so ours until sent or freed.
            *segment = self.parse(unsafe { &*mbuf });
            if let Some(segment) = segment {
                self.table.prefetch(&segment.key);
            }
        }
        for (segment, &mbuf) in segments.into_iter().zip(received) {
            // SAFETY: as above.
            let packet = unsafe { &mut *mbuf };
            let redirected = segment.and_then(|segment| self.redirect(packet, segment));
            outgoing.push_or_free(mbuf, redirected);
        }
    }

    /// The segment in this frame, if it is a service's.
    #[inline(always)]
    fn parse(&self, mbuf: &rte_mbuf) -> Option<Segment> {
        // SAFETY: the frame's bytes, in one segment, which only we hold.
        let frame = unsafe {
            let data = mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off));
            std::slice::from_raw_parts(data, usize::from(mbuf.data_len))
        };
        let headers: &[u8; HEADERS_LENGTH] = frame.first_chunk()?;
        if headers[12..14] != [0x08, 0x00] || headers[14] != 0x45 || headers[23] != 6 {
            return None;
        }
        if u16::from_be_bytes([headers[20], headers[21]]) & 0x3fff != 0 {
            return None;
        }
        let key = Key {
            source: u32::from_be_bytes([headers[26], headers[27], headers[28], headers[29]]),
            destination: u32::from_be_bytes([headers[30], headers[31], headers[32], headers[33]]),
            source_port: u16::from_be_bytes([headers[34], headers[35]]),
            destination_port: u16::from_be_bytes([headers[36], headers[37]]),
        };
        let length = mbuf.data_len - ETHERNET_LENGTH as u16;
        self.services.contains(key.destination, key.destination_port).then_some(Segment {
            key,
            dscp: headers[15] >> 2,
            length,
        })
    }

    #[inline(always)]
    fn redirect(&self, mbuf: &mut rte_mbuf, segment: Segment) -> Option<()> {
        let Segment { key, dscp, length } = segment;
        let found = self.table.lookup(&key)?;
        match self.tunnel {
            Tunnel::Ipip => prepend(mbuf, outer::ipip(found, dscp, length.into())),
            Tunnel::Gue => prepend(mbuf, outer::gue(found, dscp, length.into())),
        }
    }
}

impl Outgoing {
    #[inline(always)]
    fn push_or_free(&mut self, mbuf: *mut rte_mbuf, redirected: Option<()>) {
        if redirected.is_some() {
            self.mbufs[self.count] = mbuf;
            self.count += 1;
        } else {
            // SAFETY: received, and neither sent nor freed so far.
            unsafe { _rte_pktmbuf_free(mbuf) };
        }
    }

    fn send(mut self) {
        let count = self.count as u16;
        // SAFETY: so many packets of ours are there; what is sent is no longer ours.
        let sent = unsafe { _rte_eth_tx_burst(PORT, QUEUE, self.mbufs.as_mut_ptr(), count) };
        for &mbuf in &self.mbufs[usize::from(sent)..self.count] {
            // SAFETY: not taken by the port, so still ours.
            unsafe { _rte_pktmbuf_free(mbuf) };
        }
    }
}

/// Puts `outer` between the Ethernet header, which moves forward with its addresses swapped,
/// and the packet, which stays.
#[inline(always)]
fn prepend<const LENGTH: usize>(mbuf: &mut rte_mbuf, outer: [u8; LENGTH]) -> Option<()> {
    const { assert!(LENGTH == IPIP_LENGTH || LENGTH == GUE_LENGTH) };
    const { assert!(LENGTH <= RTE_PKTMBUF_HEADROOM as usize) };
    mbuf.data_off = mbuf.data_off.checked_sub(LENGTH as u16)?;
    mbuf.data_len += LENGTH as u16;
    mbuf.pkt_len += LENGTH as u32;
    // SAFETY: `data_off` bytes of headroom were there, so this is inside the buffer; the frame
    // had an Ethernet header, so the slice ends where the inner packet begins.
    let front = unsafe {
        let data = mbuf.buf_addr.cast::<u8>().add(usize::from(mbuf.data_off));
        std::slice::from_raw_parts_mut(data, LENGTH + ETHERNET_LENGTH)
    };
    let mut link = [0; ETHERNET_LENGTH];
    link.copy_from_slice(&front[LENGTH..]);
    front[..6].copy_from_slice(&link[6..12]);
    front[6..12].copy_from_slice(&link[..6]);
    front[12..14].copy_from_slice(&link[12..]);
    front[ETHERNET_LENGTH..].copy_from_slice(&outer);
    Some(())
}
