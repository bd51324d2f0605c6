//! What workers tell the ledger of incidents: what became of a flow's strays. Once for each time
//! that strays of a flow were parked, and never more than the ring takes.

use std::net::IpAddr;

use holdfast_net::FlowKey;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::Full;

/// What became of a flow's strays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrayReport {
    /// The flow.
    pub flow: FlowKey,
    /// When the first of them came, in microseconds of the workers' clock; of a reset, or an end,
    /// when it passed.
    pub came_us: u64,
    /// From then until it was known what becomes of them, in microseconds.
    pub waited_us: u64,
    /// From the last question to the DHT core to its answer, in microseconds, if there was one.
    pub lookup_us: Option<u64>,
    /// How many of them were dropped.
    pub lost: u32,
    /// What became of them.
    pub fate: StrayFate,
}

/// What becomes of strays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrayFate {
    /// At least one was sent to the session's owner.
    Tunnelled {
        /// The owner's locator.
        owner: IpAddr,
    },
    /// The owner is known, but none was sent: they are too big for the tunnel, for one. What comes
    /// next goes to the owner.
    Redirected {
        /// The owner's locator.
        owner: IpAddr,
    },
    /// The session is this server's own: given to the host.
    Kept,
    /// Nobody owns the session: given to the host, which answers as TCP says.
    Nobody {
        /// The owner that the DHT knew of, which has died and is given up.
        given_up: Option<IpAddr>,
    },
    /// Dropped.
    Dropped(StrayLoss),
    /// They were nobody's, or of a flow that never was: the host's RST that answers one of them
    /// went out to the client.
    Reset,
    /// None came: the client has ended a session that had a redirect, which ends with it. Strays
    /// that follow are the last of it.
    Ended,
}

/// Why strays were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrayLoss {
    /// Too few replicas answered in time, or could say anything.
    TimedOut,
    /// The owner is dead, and may be back soon.
    OwnerDead(IpAddr),
    /// The DHT core did not answer for as long as a stray may wait.
    Expired,
    /// The owner that was found is no member of the cluster.
    Stranger,
    /// There is no number left for the owner.
    OwnersFull,
    /// The worker asks as many lookups as it may.
    RefusedWorker,
    /// The source prefix asks as many lookups as it may.
    RefusedSource,
    /// The parking is full.
    ParkingFull,
    /// The ring to the DHT core is full.
    RingFull,
}

impl StrayReport {
    /// Whether strays of any number of flows, at any rate, can cause reports like this: a flood of
    /// them must not keep out what became of sessions that were looked up.
    const fn is_cheap(&self) -> bool {
        matches!(
            self.fate,
            StrayFate::Reset
                | StrayFate::Ended
                | StrayFate::Dropped(
                    StrayLoss::RefusedWorker
                        | StrayLoss::RefusedSource
                        | StrayLoss::ParkingFull
                        | StrayLoss::RingFull
                )
        )
    }
}

/// A worker's end of its ring to the ledger.
#[derive(Debug)]
pub struct StrayReporter(Producer<StrayReport>);

/// The ledger's end of it.
pub type StrayReports = Consumer<StrayReport>;

/// Makes a ring for `capacity` reports from one worker to the ledger.
#[must_use]
pub fn stray_reports(capacity: usize) -> (StrayReporter, StrayReports) {
    let (producer, consumer) = RingBuffer::new(capacity);
    (StrayReporter(producer), consumer)
}

impl StrayReporter {
    /// Queues a report.
    ///
    /// # Errors
    /// [`Full`] when the ring is full, or half full and the report is one that a flood can cause:
    /// count it.
    pub fn report(&mut self, report: StrayReport) -> Result<(), Full> {
        let capacity = self.0.buffer().capacity();
        if report.is_cheap() && 2 * self.0.slots() <= capacity {
            return Err(Full);
        }
        self.0.push(report).map_err(|_| Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(fate: StrayFate) -> StrayReport {
        StrayReport {
            flow: FlowKey::tcp_v4([20, 1, 1, 1], 1234, [192, 168, 0, 1], 80),
            came_us: 1,
            waited_us: 2,
            lookup_us: Some(1),
            lost: 0,
            fate,
        }
    }

    #[test]
    fn a_flood_leaves_half_of_the_ring_to_what_was_looked_up() {
        let refused = report(StrayFate::Dropped(StrayLoss::RefusedSource));
        let kept = report(StrayFate::Kept);
        let (mut reporter, mut ledger) = stray_reports(4);
        assert_eq!(reporter.report(refused), Ok(()));
        assert_eq!(reporter.report(report(StrayFate::Reset)), Ok(()));
        assert_eq!(reporter.report(refused), Err(Full));
        assert_eq!(reporter.report(report(StrayFate::Reset)), Err(Full));
        assert_eq!(reporter.report(kept), Ok(()));
        assert_eq!(reporter.report(kept), Ok(()));
        assert_eq!(reporter.report(kept), Err(Full));
        assert_eq!(ledger.pop(), Ok(refused));
        assert_eq!(reporter.report(kept), Ok(()), "there is room again");
        assert_eq!(reporter.report(refused), Err(Full), "but not for a flood");
    }
}
