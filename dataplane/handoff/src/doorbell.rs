//! Wakes the DHT core when it sleeps in its poll. Never makes a system call while it is awake.

use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Shared by all workers (who ring) and the core (who answers).
#[derive(Debug)]
pub struct Doorbell {
    asleep: AtomicBool,
    waker: mio::Waker,
}

impl Doorbell {
    /// A doorbell over the waker of the core's poll.
    #[must_use]
    pub fn new(waker: mio::Waker) -> Doorbell {
        Doorbell { asleep: AtomicBool::new(false), waker }
    }

    /// Called after something was queued: wakes the core if it sleeps.
    pub fn ring(&self) {
        // Pairs with the fence in `sleep`: either we see that the core is about to sleep, or it
        // sees what we queued.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            // A failed write to an eventfd means that its counter is full: the core wakes anyway.
            let _ = self.waker.wake();
        }
    }

    /// The core is about to sleep. It must look into its rings once more after this call.
    pub fn sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The core is awake again.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}
