//! Observations: how a worker makes them and how they are read. Between the two is a ring of bytes, into
//! which an observation goes as a whole or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rtrb::{Consumer, Producer, RingBuffer};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CounterSet, Counts, HEADERS_MAX, Needle, SNAPLEN_MAX, Switch, read_all};
use crate::frame::Frame;
use crate::stats::{Counter, WorkerCounters};
use crate::time::Now;

/// Frames sent for one packet of which an observation can hold bytes, at most.
pub const SENT_MAX: usize = 16;
/// Bytes of an observation, at most: of what does not fit only the length is kept.
const OBSERVATION_MAX: usize = 4 * SNAPLEN_MAX;

/// Where a packet came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The uplink.
    Uplink,
    /// The host.
    Host,
    /// It had waited in the worker: parked, or for the first fragment of its datagram.
    Waited,
}

/// Which way a frame left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// To the uplink.
    Uplink,
    /// To the host.
    Host,
}

/// A frame, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The frame's length in bytes.
    pub length: usize,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// What a worker did with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// When: the beginning of the worker's turn.
    pub at: Now,
    /// Where the packet came from.
    pub origin: Origin,
    /// The counters that it moved, without those of ports.
    pub counters: CounterSet,
    /// The frame as it came, or as it was when its wait ended.
    pub came: Image,
    /// The frames that left for it, as they left, at most [`SENT_MAX`].
    pub sent: Vec<(Out, Image)>,
    /// Frames that left for it, observed or not.
    pub sent_total: usize,
}

/// What an observation in a ring begins with.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Head {
    /// Number of the capture.
    number: u64,
    at_us: u64,
    counters: [u64; 2],
    /// Length of the observation in bytes, with this.
    bytes: u32,
    /// Frames that left.
    sent_total: u32,
    /// Frames that left and are in the observation.
    sent: u32,
    /// 0 uplink, 1 host, 2 waited.
    origin: u32,
}

/// What a frame in an observation begins with. Its bytes follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct ImageHead {
    /// Length of the frame in bytes.
    length: u32,
    /// Bytes that are observed.
    kept: u32,
    /// 0 to the uplink, 1 to the host; 0 of the frame that came.
    out: u32,
}

/// A worker's end. What it has to write into is there from the start.
#[derive(Debug)]
pub struct Observer {
    switch: Arc<Switch>,
    ring: Producer<u8>,
    missed: Arc<AtomicU64>,
    /// Of the capture that the following is about.
    number: u64,
    snaplen: usize,
    counters: CounterSet,
    needle: Needle,
    /// The observation that is being made; never grows beyond its capacity.
    bytes: Vec<u8>,
    /// The counters before the packet. Apart, so that the worker stays small.
    counters_before: Box<Counts>,
    /// What else stood how before the packet; `None` between packets.
    before: Option<Before>,
}

#[derive(Debug, Clone, Copy)]
struct Before {
    at: Now,
    origin: Origin,
    /// Frames that waited to be sent to the uplink and to the host.
    queued: [usize; 2],
}

/// The two ends of one worker's watch, with a ring of so many bytes between them.
pub(super) fn observer(switch: &Arc<Switch>, ring_bytes: usize) -> (Observer, Reader) {
    let (mut producer, mut consumer) = RingBuffer::new(ring_bytes);
    // Written and read once, so that the worker never is the first to touch a page.
    if producer.push_entire_slice(&vec![0xff; ring_bytes]).is_ok()
        && let Ok(chunk) = consumer.read_chunk(ring_bytes)
    {
        chunk.commit_all();
    }
    let missed = Arc::<AtomicU64>::default();
    let mut bytes = vec![0xff; OBSERVATION_MAX];
    bytes.clear();
    let observer = Observer {
        switch: Arc::clone(switch),
        ring: producer,
        missed: Arc::clone(&missed),
        number: 0,
        snaplen: HEADERS_MAX,
        counters: CounterSet::default(),
        needle: Needle::new(),
        bytes,
        counters_before: Box::new([0; Counter::ALL.len()]),
        before: None,
    };
    let reader = Reader { ring: consumer, missed, missed_before: 0, number: 0, pending: None };
    (observer, reader)
}

impl Observer {
    /// An observer that nobody reads and that is never asked to observe.
    #[must_use]
    pub fn unread() -> Observer {
        observer(&Arc::default(), 0).0
    }

    /// Whether something is to be observed.
    #[inline(always)]
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.switch.armed.load(Ordering::Relaxed) != 0
    }

    /// Whether this frame may be of a packet that is wanted.
    pub fn wants(&mut self, frame: &[u8]) -> bool {
        let number = self.switch.armed.load(Ordering::Acquire);
        if number == 0 {
            return false;
        }
        if number != self.number {
            self.number = number;
            self.snaplen = self.switch.snaplen.load(Ordering::Relaxed);
            self.counters = self.switch.counters();
            self.needle = self.switch.needle();
        }
        let headers = &frame[..frame.len().min(HEADERS_MAX)];
        self.needle.is_empty() || headers.windows(self.needle.len()).any(|at| *at == *self.needle)
    }

    /// A packet is taken up; so many frames wait to be sent to the uplink and to the host.
    pub fn begin(
        &mut self,
        origin: Origin,
        frame: &[u8],
        now: Now,
        counters: &WorkerCounters,
        queued: [usize; 2],
    ) {
        self.bytes.clear();
        self.bytes.extend_from_slice(&[0; size_of::<Head>()]);
        self.image(0, frame);
        *self.counters_before = read_all(counters);
        self.before = Some(Before { at: now, origin, queued });
    }

    /// The packet has been dealt with: what waits to be sent now, and the counters, say how. Does
    /// nothing when none was taken up.
    pub fn end<F: Frame>(&mut self, counters: &WorkerCounters, to_uplink: &[F], to_host: &[F]) {
        let Some(before) = self.before.take() else {
            return;
        };
        let moved = moved(&self.counters_before, counters);
        if !self.counters.is_empty() && self.counters.and(moved).is_empty() {
            return;
        }
        let flushed =
            |counter| counters.get(counter).wrapping_sub(self.counters_before[counter as usize]);
        let lanes = [
            (Out::Uplink, to_uplink, flushed(Counter::UplinkSent)),
            (Out::Host, to_host, flushed(Counter::HostSent)),
        ];
        let (mut sent, mut sent_total) = (0, 0);
        for ((out, queue, flushed), queued) in lanes.into_iter().zip(before.queued) {
            // Of those that a full queue made the worker send at once, the bytes are gone.
            let count = (queue.len() + flushed as usize).saturating_sub(queued);
            for frame in &queue[queue.len().saturating_sub(count)..] {
                if sent < SENT_MAX && self.image(out as u32, frame.data()) {
                    sent += 1;
                }
            }
            sent_total += count;
        }
        let head = Head {
            number: self.number,
            at_us: before.at.us,
            counters: moved.to_words(),
            bytes: self.bytes.len() as u32,
            sent_total: sent_total as u32,
            sent: sent as u32,
            origin: before.origin as u32,
        };
        self.bytes[..size_of::<Head>()].copy_from_slice(head.as_bytes());
        if self.ring.push_entire_slice(&self.bytes).is_err() {
            // One writer: a load and a store do.
            let missed = self.missed.load(Ordering::Relaxed);
            self.missed.store(missed.wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// Whether there was room for it, bytes or none.
    fn image(&mut self, out: u32, frame: &[u8]) -> bool {
        let room = self.bytes.capacity() - self.bytes.len();
        let Some(room) = room.checked_sub(size_of::<ImageHead>()) else {
            return false;
        };
        let kept = frame.len().min(self.snaplen).min(room);
        let head = ImageHead { length: frame.len() as u32, kept: kept as u32, out };
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(&frame[..kept]);
        true
    }
}

/// The counters that have moved, but for those that say what went through a port and when.
fn moved(before: &Counts, counters: &WorkerCounters) -> CounterSet {
    const PORTS: CounterSet = CounterSet::of(&[Counter::UplinkSent, Counter::HostSent]);
    let mut moved = CounterSet::default();
    for (before, counter) in before.iter().zip(Counter::ALL) {
        if *before != counters.get(*counter) && !PORTS.contains(*counter) {
            moved = moved.or(CounterSet::of(&[*counter]));
        }
    }
    moved
}

/// The end that reads what one worker observes.
#[derive(Debug)]
pub(super) struct Reader {
    ring: Consumer<u8>,
    missed: Arc<AtomicU64>,
    missed_before: u64,
    /// Of the capture that is read.
    number: u64,
    /// The observation that comes next, when it has been looked at.
    pending: Option<Observation>,
}

impl Reader {
    /// Reads this capture from now on.
    pub(super) fn begin(&mut self, number: u64) {
        while self.pop().is_some() {}
        self.number = number;
        self.pending = None;
        self.missed_before = self.missed.load(Ordering::Relaxed);
    }

    /// The observation that comes next.
    pub(super) fn peek(&mut self) -> Option<&Observation> {
        while self.pending.is_none() {
            let (number, observation) = self.pop()?;
            // Others are of a capture before, from a worker that was amid a burst.
            self.pending = observation.filter(|_| number == self.number);
        }
        self.pending.as_ref()
    }

    pub(super) fn take(&mut self) -> Option<Observation> {
        self.peek()?;
        self.pending.take()
    }

    pub(super) fn missed(&mut self) -> u64 {
        let missed = self.missed.load(Ordering::Relaxed);
        missed.wrapping_sub(std::mem::replace(&mut self.missed_before, missed))
    }

    /// The next observation of the ring and the number of its capture. `None` when there is none, for
    /// one comes as a whole.
    fn pop(&mut self) -> Option<(u64, Option<Observation>)> {
        let mut head = [0; size_of::<Head>()];
        self.ring.pop_entire_slice(&mut head).ok()?;
        let head = Head::read_from_bytes(&head).ok()?;
        let mut rest = vec![0; (head.bytes as usize).checked_sub(size_of::<Head>())?];
        self.ring.pop_entire_slice(&mut rest).ok()?;
        Some((head.number, observation(&head, &rest)))
    }
}

fn observation(head: &Head, mut rest: &[u8]) -> Option<Observation> {
    let (_, came) = image(&mut rest)?;
    let sent: Option<Vec<_>> = (0..head.sent).map(|_| image(&mut rest)).collect();
    Some(Observation {
        at: Now::from_us(head.at_us),
        origin: match head.origin {
            0 => Origin::Uplink,
            1 => Origin::Host,
            _ => Origin::Waited,
        },
        counters: CounterSet::from_words(head.counters),
        came,
        sent: sent?,
        sent_total: head.sent_total as usize,
    })
}

fn image(rest: &mut &[u8]) -> Option<(Out, Image)> {
    let (head, behind) = ImageHead::read_from_prefix(rest).ok()?;
    let (bytes, behind) = behind.split_at_checked(head.kept as usize)?;
    *rest = behind;
    let out = if head.out == Out::Uplink as u32 { Out::Uplink } else { Out::Host };
    Some((out, Image { length: head.length as usize, bytes: bytes.to_vec() }))
}
