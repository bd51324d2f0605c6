//! The network and the server's kernel in one thread: sends what it is told to, takes what comes
//! out, and answers handshakes as their other end would. Never blocks.

use anyhow::Result;
use arrayvec::ArrayVec;
use holdfast_dpdk::{Mbuf, tsc};
use holdfast_net::headers::TcpFlags;

use crate::door::{BURST, Door};
use crate::flows::{Class, Flow};
use crate::frames::{Frames, Seen, Segment, Stamp, describe};
use crate::latency::Latencies;

const SYN: TcpFlags = TcpFlags::SYN;
const SYN_ACK: TcpFlags = TcpFlags::SYN.and(TcpFlags::ACK);
const ACK: TcpFlags = TcpFlags::ACK;
const FIN_ACK: TcpFlags = TcpFlags::FIN.and(TcpFlags::ACK);
const DATA: TcpFlags = TcpFlags::PSH.and(TcpFlags::ACK);

/// The sides of the appliance that the generator plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Network,
    Host,
    FarHost,
}

/// What came out in a measurement.
pub struct Tally {
    /// Measured packets that came out where they should, by class.
    pub delivered: [u64; Class::COUNT],
    /// Measured packets that came out somewhere else, by class.
    pub misplaced: [u64; Class::COUNT],
    /// Of those that were looked at byte for byte, the ones that had changed.
    pub damaged: u64,
    /// Packets that were looked at byte for byte.
    pub checked: u64,
    /// Measured packets of an earlier measurement.
    pub late: u64,
    /// Frames that are none of ours.
    pub foreign: u64,
    /// The first frame that was misplaced, damaged or foreign.
    pub first_wrong: Option<String>,
    /// Latencies of packets that came out where they should, by class.
    pub latencies: [Latencies; Class::COUNT],
}

/// What became of sessions since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handshakes {
    /// Of [`Class::Local`]: the host got the ACK.
    pub local_open: u64,
    /// Of [`Class::Churn`]: the host got the ACK.
    pub churn_open: u64,
    /// Of [`Class::Churn`]: the host got the client's FIN.
    pub churn_closed: u64,
}

/// The generator with its doors.
pub struct Generator {
    frames: Frames,
    /// To the uplink of the appliance under test.
    pub uplink: Door,
    /// To its host port.
    pub host: Door,
    /// To the other appliance's host port.
    pub far_host: Door,
    /// What came out since the last [`Generator::begin`].
    pub tally: Tally,
    /// What became of sessions.
    pub handshakes: Handshakes,
    hz: u64,
    sample: u32,
    countdown: u32,
    run: u32,
    next_churn: u32,
}

impl Tally {
    fn new(hz: u64) -> Result<Tally> {
        Ok(Tally {
            delivered: [0; Class::COUNT],
            misplaced: [0; Class::COUNT],
            damaged: 0,
            checked: 0,
            late: 0,
            foreign: 0,
            first_wrong: None,
            latencies: [
                Latencies::new(hz)?,
                Latencies::new(hz)?,
                Latencies::new(hz)?,
                Latencies::new(hz)?,
            ],
        })
    }

    /// Measured packets that came out, wherever.
    pub fn seen(&self) -> u64 {
        self.delivered.iter().chain(&self.misplaced).sum()
    }

    /// Packets that are wrong, whatever the load.
    pub fn wrong(&self) -> u64 {
        self.misplaced.iter().sum::<u64>() + self.damaged
    }
}

impl Generator {
    /// Of these doors; one measured packet in `sample` is time-stamped.
    pub fn new(
        frames: Frames,
        [uplink, host, far_host]: [Door; 3],
        hz: u64,
        sample: u32,
    ) -> Result<Generator> {
        Ok(Generator {
            frames,
            uplink,
            host,
            far_host,
            tally: Tally::new(hz)?,
            handshakes: Handshakes::default(),
            hz,
            sample,
            countdown: 0,
            run: 0,
            next_churn: 0,
        })
    }

    /// Ticks of the clock per second.
    pub fn hz(&self) -> u64 {
        self.hz
    }

    /// Begins a measurement: what comes out of earlier ones counts as late.
    pub fn begin(&mut self) -> Result<()> {
        self.run += 1;
        self.tally = Tally::new(self.hz)?;
        Ok(())
    }

    /// A measured packet of a client's.
    pub fn send_data(&mut self, flow: Flow, now: u64) {
        let ticks = match self.countdown.checked_sub(1) {
            Some(left) => {
                self.countdown = left;
                0
            }
            None => {
                self.countdown = self.sample - 1;
                now
            }
        };
        let stamp = Some(Stamp { run: self.run, ticks });
        let segment = Segment { flow, from_host: false, flags: DATA, stamp };
        self.uplink.send(&self.frames, &segment);
    }

    /// A client's SYN of this session.
    pub fn open(&mut self, flow: Flow) {
        self.uplink.send(&self.frames, &client(flow, SYN));
    }

    /// A client's SYN of the next session that comes and goes.
    pub fn open_churn(&mut self) {
        let flow = Flow { class: Class::Churn, index: self.next_churn };
        self.next_churn = self.next_churn.wrapping_add(1);
        self.open(flow);
    }

    /// A packet of a session that the other server's host holds.
    pub fn speak_at_far(&mut self, flow: Flow) {
        self.far_host.send(&self.frames, &host(flow, ACK));
    }

    /// Sends what is queued, and takes a burst from each side. Returns whether anything came.
    pub fn poll(&mut self) -> bool {
        self.uplink.flush();
        self.host.flush();
        self.far_host.flush();
        let mut busy = false;
        for side in [Side::Host, Side::Network, Side::FarHost] {
            let mut burst = ArrayVec::<Mbuf, BURST>::new();
            match side {
                Side::Network => self.uplink.receive(&mut burst),
                Side::Host => self.host.receive(&mut burst),
                Side::FarHost => self.far_host.receive(&mut burst),
            }
            busy |= !burst.is_empty();
            let now = tsc();
            for mbuf in &burst {
                self.take(side, mbuf.data(), now);
            }
        }
        busy
    }

    fn take(&mut self, side: Side, frame: &[u8], now: u64) {
        let seen = self.frames.read(frame);
        let (segment, tunnelled) = match &seen {
            Seen::Plain(segment) => (*segment, false),
            Seen::Tunnelled { segment, .. } => (*segment, true),
            Seen::Foreign => {
                self.tally.foreign += 1;
                return self.note("foreign", side, frame);
            }
        };
        match segment.stamp {
            Some(stamp) => self.take_data(side, frame, &seen, (segment, tunnelled), stamp, now),
            None if tunnelled => {}
            None => self.answer(side, &segment),
        }
    }

    fn take_data(
        &mut self,
        side: Side,
        frame: &[u8],
        seen: &Seen,
        (segment, tunnelled): (Segment, bool),
        stamp: Stamp,
        now: u64,
    ) {
        if stamp.run != self.run {
            self.tally.late += 1;
            return;
        }
        let class = segment.flow.class;
        let expected = match class {
            Class::Redirect => (Side::Network, true),
            _ => (Side::Host, false),
        };
        if (side, tunnelled) != expected {
            self.tally.misplaced[class as usize] += 1;
            return self.note("misplaced", side, frame);
        }
        self.tally.delivered[class as usize] += 1;
        if stamp.ticks == 0 {
            return;
        }
        self.tally.latencies[class as usize].record(stamp.ticks, now);
        self.tally.checked += 1;
        if !self.frames.is_unchanged(frame, seen) {
            self.tally.damaged += 1;
            self.note("changed", side, frame);
        }
    }

    /// What the other end of a handshake does.
    fn answer(&mut self, side: Side, segment: &Segment) {
        let flow = segment.flow;
        match (side, segment.from_host, segment.flags, flow.class) {
            (Side::Host, false, SYN, _) => self.host.send(&self.frames, &host(flow, SYN_ACK)),
            (Side::Network, true, SYN_ACK, _) => {
                self.uplink.send(&self.frames, &client(flow, ACK));
            }
            (Side::Host, false, ACK, Class::Local) => self.handshakes.local_open += 1,
            (Side::Host, false, ACK, Class::Churn) => {
                self.handshakes.churn_open += 1;
                self.host.send(&self.frames, &host(flow, FIN_ACK));
            }
            (Side::Network, true, FIN_ACK, Class::Churn) => {
                self.uplink.send(&self.frames, &client(flow, FIN_ACK));
            }
            (Side::Host, false, FIN_ACK, Class::Churn) => self.handshakes.churn_closed += 1,
            _ => {}
        }
    }

    fn note(&mut self, what: &str, side: Side, frame: &[u8]) {
        self.tally.first_wrong.get_or_insert_with(|| {
            format!("{what} at {side:?}: {} bytes, {}", frame.len(), describe(frame))
        });
    }
}

fn client(flow: Flow, flags: TcpFlags) -> Segment {
    Segment { flow, from_host: false, flags, stamp: None }
}

fn host(flow: Flow, flags: TcpFlags) -> Segment {
    Segment { flow, from_host: true, flags, stamp: None }
}
