//! What a worker tells the ledger of incidents: what became of a flow's strays, once for each time
//! that they were parked, or could not be. Strays are rare: nothing here is on a plain segment's way.

use holdfast_handoff::{StrayFate, StrayLoss, StrayReport};
use holdfast_net::FlowKey;
use holdfast_net::headers::TcpFlags;

use super::Worker;
use crate::parking::Waiting;
use crate::port::Port;
use crate::session::owners::OwnerId;
use crate::session::table::Located;
use crate::stats::Counter;
use crate::time::Now;

impl<U: Port, H: Port<Frame = U::Frame>> Worker<U, H> {
    /// What becomes of strays that go to an owner; `fate` if that has no locator.
    pub(super) fn fate_of(&self, owner: OwnerId, fate: StrayFate) -> StrayFate {
        let owner = self.shared.table.owners().locator(owner);
        owner.map_or(fate, |owner| StrayFate::Tunnelled { owner })
    }

    /// A flow's strays were let go: of those that were parked, so many went into the tunnel.
    pub(super) fn report_released(
        &mut self,
        flow: FlowKey,
        waiting: &Waiting<U::Frame>,
        fate: StrayFate,
        (parked, sent): (u64, u64),
        now: Now,
    ) {
        let (fate, dropped) = match fate {
            StrayFate::Tunnelled { owner } if sent == 0 => {
                (StrayFate::Redirected { owner }, parked)
            }
            StrayFate::Tunnelled { .. } => (fate, parked.saturating_sub(sent)),
            StrayFate::Dropped(_) => (fate, parked),
            _ => (fate, 0),
        };
        self.report(StrayReport {
            flow,
            came_us: waiting.came.us,
            waited_us: now.us.saturating_sub(waiting.came.us),
            lookup_us: Some(now.us.saturating_sub(waiting.asked.us)),
            lost: waiting.refused.saturating_add(dropped as u32),
            fate,
        });
    }

    /// A flow's strays have waited for too long.
    pub(super) fn report_expired(&mut self, flow: FlowKey, waiting: &Waiting<U::Frame>, now: Now) {
        self.report(StrayReport {
            flow,
            came_us: waiting.came.us,
            waited_us: now.us.saturating_sub(waiting.came.us),
            lookup_us: None,
            lost: waiting.refused.saturating_add(waiting.frames.len() as u32),
            fate: StrayFate::Dropped(StrayLoss::Expired),
        });
    }

    /// A stray was dropped before it could wait.
    pub(super) fn report_refused(&mut self, flow: FlowKey, loss: StrayLoss, now: Now) {
        let (came_us, fate) = (now.us, StrayFate::Dropped(loss));
        self.report(StrayReport { flow, came_us, waited_us: 0, lookup_us: None, lost: 1, fate });
    }

    /// The host resets a flow that it does not hold, and the client hears it. A RST that bears an ACK
    /// answers a SYN (RFC 9293, 3.5.2): nobody's session ends with that.
    #[inline(never)]
    pub(super) fn report_reset(&mut self, at: &Located, flags: TcpFlags, now: Now) {
        if !flags.contains(TcpFlags::ACK) {
            self.report_passing(at, StrayFate::Reset, now);
        }
    }

    /// Something passed that says what becomes of a flow's strays.
    pub(super) fn report_passing(&mut self, at: &Located, fate: StrayFate, now: Now) {
        if let Some(flow) = self.shared.table.flow(at) {
            let came_us = now.us;
            self.report(StrayReport {
                flow,
                came_us,
                waited_us: 0,
                lookup_us: None,
                lost: 0,
                fate,
            });
        }
    }

    #[inline(never)]
    fn report(&mut self, report: StrayReport) {
        if let Some(reporter) = &mut self.reporter
            && reporter.report(report).is_err()
        {
            self.count(Counter::StrayUnreported);
        }
    }
}
