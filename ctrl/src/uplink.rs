//! Whether the uplink's link is up, how often it went down, and whether a port's device is lost. The
//! main thread looks, everybody else reads.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_dpdk::{Loss, Port};
use thiserror::Error;
use tracing::{info, warn};

/// How often a device is asked for its link that does not say by itself that it has changed. One that
/// does is asked at once, and as often all the same: an interrupt can be lost.
pub const POLL: Duration = Duration::from_secs(1);

/// A device that a port works on is no more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the {role}'s device {device} {}", said(*.loss))]
pub struct DeviceLost {
    /// `uplink` or `host port`.
    pub role: &'static str,
    /// DPDK's name of it.
    pub device: String,
    /// Why.
    pub loss: Loss,
}

fn said(loss: Loss) -> &'static str {
    match loss {
        Loss::Removed => {
            "is gone, or the kernel wants it back: the daemon ends, to be started again"
        }
        Loss::Reset => "was reset, and its queues with it: the daemon ends, to be started again",
        Loss::Stuck => {
            "takes frames and sends none: it was reset, or hangs; the daemon ends, to be started again"
        }
    }
}

/// Whether a port's device is lost.
///
/// # Errors
/// When it is.
pub fn is_there(role: &'static str, ports: &[Port]) -> Result<(), DeviceLost> {
    for port in ports {
        if let Some(loss) = port.loss() {
            return Err(DeviceLost { role, device: port.name().to_owned(), loss });
        }
    }
    Ok(())
}

/// How long a device may have frames to send, with its link up, and send none. Flow control holds a
/// frame for some milliseconds.
pub const STUCK: Duration = Duration::from_secs(5);

/// Finds a device that was reset behind its driver's back: its queues take frames and nothing comes
/// of it.
#[derive(Debug, Default)]
pub struct Progress {
    /// At the last look at which all was well: frames handed over and sent, and when that was.
    well: Option<(u64, u64, Instant)>,
    looked: Option<Instant>,
}

impl Progress {
    /// Whether it is time for a look; then the next one is a second later.
    pub fn is_time(&mut self, now: Instant) -> bool {
        let is_time = self.looked.is_none_or(|at| now.saturating_duration_since(at) >= POLL);
        if is_time {
            self.looked = Some(now);
        }
        is_time
    }

    /// Notes what workers have handed over and what the device says that it sent, since the start.
    /// Returns whether it is stuck.
    pub fn is_stuck(&mut self, handed: u64, sent: u64, link_up: bool, now: Instant) -> bool {
        match self.well {
            Some((was_handed, was_sent, since))
                if link_up && handed != was_handed && sent == was_sent =>
            {
                now.saturating_duration_since(since) >= STUCK
            }
            _ => {
                self.well = Some((handed, sent, now));
                false
            }
        }
    }
}

/// The uplink's link.
#[derive(Debug)]
pub struct Link {
    up: AtomicBool,
    downs: AtomicU64,
    look: Mutex<Look>,
}

/// How it is looked at, and when it was last.
#[derive(Debug)]
struct Look {
    /// Where the kernel says it, of an interface of its own: the driver says "up" for ever.
    carrier: Option<PathBuf>,
    /// How often the device had said that it has changed.
    changes: u64,
    at: Option<Instant>,
    /// How it was at the first look is no change.
    is_first: bool,
}

impl Link {
    /// The link of a port that was just started: up, until somebody looks.
    #[must_use]
    pub fn new(carrier: Option<PathBuf>) -> Link {
        Link {
            up: AtomicBool::new(true),
            downs: AtomicU64::new(0),
            look: Mutex::new(Look { carrier, changes: 0, at: None, is_first: true }),
        }
    }

    /// Whether frames can pass, as of the last look.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// How often it went down since the start.
    #[must_use]
    pub fn downs(&self) -> u64 {
        self.downs.load(Ordering::Relaxed)
    }

    /// Looks, when it is time or a port said that something has changed. Returns whether frames can
    /// pass, and logs a change.
    pub fn look(&self, ports: &[Port], now: Instant) -> bool {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = ports.iter().map(Port::link_changes).sum();
        let is_time = look.at.is_none_or(|at| now.saturating_duration_since(at) >= POLL);
        let up = match &look.carrier {
            // An interface that is gone or administratively down has no readable carrier.
            Some(carrier) => fs::read_to_string(carrier).unwrap_or_default().trim() == "1",
            None if is_time || changes != look.changes => {
                (look.changes, look.at) = (changes, Some(now));
                ports.iter().all(|port| port.link().is_ok_and(|link| link.up))
            }
            None => return self.is_up(),
        };
        let is_first = std::mem::take(&mut look.is_first);
        if up != self.up.swap(up, Ordering::Relaxed) {
            if up {
                info!("the uplink's link is up");
            } else {
                self.downs.fetch_add(u64::from(!is_first), Ordering::Relaxed);
                warn!("the uplink's link is down: nothing passes until it is up again");
            }
        }
        up
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_kernel_interface_s_carrier_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let carrier = directory.path().join("carrier");
        let link = Link::new(Some(carrier.clone()));
        let looks = |said: Option<&str>| {
            match said {
                Some(said) => fs::write(&carrier, said).unwrap(),
                None => fs::remove_file(&carrier).unwrap(),
            }
            (link.look(&[], Instant::now()), link.is_up(), link.downs())
        };
        assert_eq!(looks(Some("0\n")), (false, false, 0), "it did not go down");
        assert_eq!(looks(Some("1\n")), (true, true, 0));
        assert_eq!(looks(Some("0\n")), (false, false, 1));
        assert_eq!(looks(Some("0\n")), (false, false, 1), "counted once");
        assert_eq!(looks(Some("1\n")), (true, true, 1));
        assert_eq!(looks(None), (false, false, 2), "gone, or administratively down");
    }

    #[test]
    fn a_device_is_stuck_when_it_sends_nothing_of_what_it_was_given() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut progress = Progress::default();
        assert!(!progress.is_stuck(7, 7, true, at(0)));
        assert!(!progress.is_stuck(7, 7, true, at(60)), "nothing to send");
        assert!(!progress.is_stuck(8, 7, true, at(61)), "a moment ago");
        assert!(!progress.is_stuck(9, 8, true, at(66)), "late, and sent");
        assert!(!progress.is_stuck(10, 8, true, at(67)));
        assert!(!progress.is_stuck(20, 8, false, at(80)), "the link is down");
        assert!(!progress.is_stuck(21, 8, true, at(84)));
        assert!(progress.is_stuck(22, 8, true, at(85)));
    }

    #[test]
    fn a_lost_device_is_named() {
        let lost = |loss| {
            DeviceLost { role: "uplink", device: "0000:3b:02.0".to_owned(), loss }.to_string()
        };
        assert!(lost(Loss::Removed).starts_with("the uplink's device 0000:3b:02.0 is gone"));
        assert!(lost(Loss::Reset).contains("was reset"));
    }
}
