//! Strays that wait for the answer to a lookup. Bounded per flow and in all, for a bounded time;
//! never allocates after start.

use std::collections::HashMap;

use arrayvec::ArrayVec;
use holdfast_net::FlowKey;

use crate::time::Now;

/// Packets that one flow may have parked, at most.
pub const PACKETS_PER_FLOW_MAX: usize = 8;

/// Limits of the parking of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkingLimits {
    /// Packets parked in all. As every waiting flow has at least one, this bounds flows too.
    pub packets_max: usize,
    /// Packets parked per flow, 1 to [`PACKETS_PER_FLOW_MAX`].
    pub packets_per_flow_max: usize,
    /// How long a packet may wait, in microseconds.
    pub timeout_us: u64,
    /// How long to wait before asking a second time, in microseconds (R5).
    pub grace_us: u64,
}

/// How parking a packet ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Park<F> {
    /// Parked; its flow is being looked up already.
    Joined,
    /// Parked as the first of its flow: ask for the owner.
    First,
    /// The flow has as many packets parked as it may; here is the packet back.
    FlowFull(F),
    /// The parking is full; here is the packet back.
    Full(F),
}

/// What a waiting flow that was found due wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// The grace is over: ask again.
    AskAgain(FlowKey),
    /// No answer came in time: drop.
    Expired(FlowKey),
}

/// The packets of a flow, in order of arrival.
pub type Parked<F> = ArrayVec<F, PACKETS_PER_FLOW_MAX>;

/// A flow whose packets wait, or have waited.
#[derive(Debug)]
pub struct Waiting<F> {
    /// Its packets.
    pub frames: Parked<F>,
    /// When the first of them came.
    pub came: Now,
    /// When the core was last asked.
    pub asked: Now,
    /// How many more came that found no room.
    pub refused: u32,
    deadline: Now,
    /// When to ask a second time, once nobody was found.
    again: Option<Now>,
    asked_again: bool,
}

/// The parking of one worker.
#[derive(Debug)]
pub struct Parking<F> {
    limits: ParkingLimits,
    flows: HashMap<FlowKey, Waiting<F>>,
    packets: usize,
}

impl<F> Parking<F> {
    /// An empty parking.
    #[must_use]
    pub fn new(limits: ParkingLimits) -> Parking<F> {
        // Twice the room, so that the map never has to grow for the places of removed flows.
        Parking { limits, flows: HashMap::with_capacity(2 * limits.packets_max), packets: 0 }
    }

    /// Goes on with other limits, whose `packets_max` is not above the first ones': no more is
    /// ever allocated. What is parked stays for as long as it was to.
    pub fn set_limits(&mut self, limits: ParkingLimits) {
        self.limits = limits;
    }

    /// Whether nothing is parked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Packets that are parked.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.packets
    }

    /// Whether packets of this flow wait.
    #[must_use]
    pub fn is_waiting(&self, flow: &FlowKey) -> bool {
        self.flows.contains_key(flow)
    }

    /// Parks a packet.
    pub fn park(&mut self, flow: FlowKey, frame: F, now: Now) -> Park<F> {
        let is_full = self.packets >= self.limits.packets_max;
        let limit = self.limits.packets_per_flow_max.min(PACKETS_PER_FLOW_MAX);
        let outcome = match self.flows.get_mut(&flow) {
            Some(waiting) if is_full || waiting.frames.len() >= limit => {
                waiting.refused = waiting.refused.saturating_add(1);
                return if is_full { Park::Full(frame) } else { Park::FlowFull(frame) };
            }
            Some(waiting) => {
                waiting.frames.push(frame);
                Park::Joined
            }
            None if is_full => return Park::Full(frame),
            None => {
                let mut frames = ArrayVec::new();
                frames.push(frame);
                let deadline = Now::from_us(now.us + self.limits.timeout_us);
                let waiting = Waiting {
                    frames,
                    came: now,
                    asked: now,
                    refused: 0,
                    deadline,
                    again: None,
                    asked_again: false,
                };
                self.flows.insert(flow, waiting);
                Park::First
            }
        };
        self.packets += 1;
        outcome
    }

    /// Takes a flow out, and its packets with it.
    pub fn release(&mut self, flow: &FlowKey) -> Option<Waiting<F>> {
        let waiting = self.flows.remove(flow)?;
        self.packets -= waiting.frames.len();
        Some(waiting)
    }

    /// Nobody was found: whether to ask again after the grace. `false` when that was the second
    /// time, or nothing waits.
    pub fn wait_for_grace(&mut self, flow: &FlowKey, now: Now) -> bool {
        let Some(waiting) = self.flows.get_mut(flow) else {
            return false;
        };
        if waiting.asked_again {
            return false;
        }
        waiting.asked_again = true;
        waiting.again = Some(Now::from_us(now.us + self.limits.grace_us));
        true
    }

    /// Gathers flows whose time has come, as many as fit; the rest is found the next time.
    /// A walk over all waiting flows: call it every millisecond or so, not every turn.
    pub fn due<const N: usize>(&mut self, now: Now, due: &mut ArrayVec<Due, N>) {
        for (flow, waiting) in &mut self.flows {
            if due.is_full() {
                return;
            }
            if waiting.deadline <= now {
                due.push(Due::Expired(*flow));
            } else if waiting.again.is_some_and(|again| again <= now) {
                waiting.again = None;
                waiting.asked = now;
                due.push(Due::AskAgain(*flow));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ParkingLimits =
        ParkingLimits { packets_max: 4, packets_per_flow_max: 2, timeout_us: 1000, grace_us: 100 };

    fn flow(n: u16) -> FlowKey {
        FlowKey::tcp_v4([20, 1, 1, 1], n, [192, 168, 0, 1], 80)
    }

    #[test]
    fn r5_one_lookup_per_flow_however_many_packets_wait() {
        let mut parking = Parking::new(LIMITS);
        assert_eq!(parking.park(flow(1), 'a', Now::from_us(0)), Park::First);
        assert_eq!(parking.park(flow(1), 'b', Now::from_us(0)), Park::Joined);
        assert_eq!(parking.park(flow(1), 'c', Now::from_us(0)), Park::FlowFull('c'));
        let released = parking.release(&flow(1)).expect("waits");
        assert_eq!((released.frames.as_slice(), released.refused), (&['a', 'b'][..], 1));
        assert!(parking.is_empty());
    }

    #[test]
    fn r5_bounded_in_all() {
        let mut parking = Parking::new(LIMITS);
        for n in 0..4 {
            assert_eq!(parking.park(flow(n), n, Now::from_us(0)), Park::First);
        }
        assert_eq!(parking.park(flow(9), 9, Now::from_us(0)), Park::Full(9));
        assert_eq!(parking.park(flow(0), 9, Now::from_us(0)), Park::Full(9));
        assert_eq!(parking.release(&flow(0)).expect("waits").refused, 1);
        assert_eq!(parking.park(flow(9), 9, Now::from_us(0)), Park::First);
    }

    #[test]
    fn r5_asks_again_once_after_the_grace_and_gives_up_at_the_deadline() {
        let mut parking = Parking::new(LIMITS);
        parking.park(flow(1), 'a', Now::from_us(0));
        assert!(parking.wait_for_grace(&flow(1), Now::from_us(50)));
        let mut due = ArrayVec::<_, 8>::new();
        parking.due(Now::from_us(149), &mut due);
        assert!(due.is_empty());
        parking.due(Now::from_us(150), &mut due);
        assert_eq!(due.as_slice(), &[Due::AskAgain(flow(1))]);
        assert!(!parking.wait_for_grace(&flow(1), Now::from_us(200)));
        due.clear();
        parking.due(Now::from_us(1000), &mut due);
        assert_eq!(due.as_slice(), &[Due::Expired(flow(1))]);
        let released = parking.release(&flow(1)).expect("waits");
        assert_eq!((released.came.us, released.asked.us), (0, 150));
    }

    #[test]
    fn other_limits_are_for_what_comes_after_them() {
        let mut parking = Parking::new(LIMITS);
        parking.park(flow(1), 'a', Now::from_us(0));
        parking.park(flow(1), 'b', Now::from_us(0));
        let limits = ParkingLimits { packets_per_flow_max: 1, timeout_us: 10, ..LIMITS };
        parking.set_limits(limits);
        assert_eq!(parking.park(flow(1), 'c', Now::from_us(0)), Park::FlowFull('c'));
        assert_eq!(parking.park(flow(2), 'd', Now::from_us(0)), Park::First);
        let mut due = ArrayVec::<_, 8>::new();
        parking.due(Now::from_us(10), &mut due);
        assert_eq!(due.as_slice(), &[Due::Expired(flow(2))]);
        assert_eq!(parking.release(&flow(1)).expect("waits").frames.as_slice(), &['a', 'b']);
    }
}
