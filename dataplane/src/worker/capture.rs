//! What a worker does while somebody traces or captures: the same as ever with each packet that may
//! be wanted, but one after the other, so that what moves meanwhile is that packet's. Nothing here
//! is on the way of a burst while nobody does.

use arrayvec::ArrayVec;

use super::{Burst, Worker};
use crate::capture::Origin;
use crate::frame::Frame;
use crate::port::{BURST, Port};
use crate::time::Now;

impl<U: Port, H: Port<Frame = U::Frame>> Worker<U, H> {
    /// A burst of which some may be wanted. Those go last: all of a flow are wanted, or none, so
    /// their order does not change.
    #[cold]
    #[inline(never)]
    pub(super) fn observed(&mut self, burst: &mut Burst<U>, origin: Origin, now: Now) {
        let mut wanted = Burst::<U>::new();
        let mut others = Burst::<U>::new();
        for frame in burst.drain(..) {
            let is_wanted = self.observer.wants(frame.data());
            if is_wanted { wanted.push(frame) } else { others.push(frame) }
        }
        self.deal_with(&mut others, origin, now);
        for frame in wanted {
            self.begin_observation(origin, &frame, now);
            let mut one = ArrayVec::<_, BURST>::new();
            one.push(frame);
            self.deal_with(&mut one, origin, now);
        }
        self.end_observation();
    }

    fn deal_with(&mut self, burst: &mut Burst<U>, origin: Origin, now: Now) {
        match origin {
            Origin::Uplink => self.uplink_burst(burst, now),
            Origin::Host => self.host_burst(burst, now),
            // What waited is let go by the worker itself.
            Origin::Waited => {}
        }
    }

    /// What happens from now on is this frame's. Ends the observation of the one before, which has
    /// nothing more to say: when a fragment lets others go that waited, that is the last it does.
    pub(super) fn begin_observation(&mut self, origin: Origin, frame: &U::Frame, now: Now) {
        if self.observer.is_armed() {
            self.begin_observation_armed(origin, frame.data(), now);
        }
    }

    #[cold]
    #[inline(never)]
    fn begin_observation_armed(&mut self, origin: Origin, frame: &[u8], now: Now) {
        self.end_observation();
        if self.observer.wants(frame) {
            let queued = [self.to_uplink.len(), self.to_host.len()];
            self.observer.begin(origin, frame, now, &self.counters, queued);
        }
    }

    /// What happens from now on is no longer of the frame whose observation was begun.
    pub(super) fn end_observation(&mut self) {
        self.observer.end(&self.counters, &self.to_uplink, &self.to_host);
    }
}
