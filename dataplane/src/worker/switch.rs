//! The worker's side of the NIC's switch: what of a burst is for us, and answers to neighbours.

use arrayvec::ArrayVec;

use super::Worker;
use crate::frame::Frame;
use crate::port::{BURST, Port};
use crate::stats::Counter;
use crate::switch::{Arriving, HostPort};
use crate::time::Now;

/// Answers to ARP and Neighbour Discovery: per second, and at once.
pub const NEIGHBOUR_ANSWERS_PER_SECOND: u32 = 1000;
pub(super) const NEIGHBOUR_ANSWERS_BURST: u32 = 64;

impl<U: Port, H: Port<Frame = U::Frame>> Worker<U, H> {
    /// Leaves in a burst from the uplink what is for us, or for the host through us.
    #[inline(never)]
    pub(super) fn sort_out(&mut self, burst: &mut ArrayVec<U::Frame, BURST>, now: Now) {
        let HostPort::Switch(switch) = &self.host else {
            return;
        };
        let (mut ours, mut neighbours) = (ArrayVec::new(), ArrayVec::<_, BURST>::new());
        for frame in burst.drain(..) {
            match switch.sort(frame.data()) {
                Arriving::Ours => ours.push(frame),
                Arriving::Neighbour => neighbours.push(frame),
                // Dropping the frame gives its buffer back.
                Arriving::Drop(counter) => self.counters.count(counter),
            }
        }
        *burst = ours;
        for frame in neighbours {
            self.answer_neighbour(&frame, now);
        }
    }

    fn answer_neighbour(&mut self, frame: &U::Frame, now: Now) {
        let HostPort::Switch(switch) = &self.host else {
            return;
        };
        let answer = match switch.answer(frame.data()) {
            Ok(answer) => answer,
            Err(reason) => return self.count(reason),
        };
        let may =
            self.neighbour_answers.take(now, NEIGHBOUR_ANSWERS_PER_SECOND, NEIGHBOUR_ANSWERS_BURST);
        match may.then(|| frame.new_like(&[&answer])).flatten() {
            Some(answer) => {
                self.count(Counter::NeighbourAnswered);
                self.send_uplink(answer);
            }
            None => self.count(Counter::NeighbourUnanswered),
        }
    }
}
