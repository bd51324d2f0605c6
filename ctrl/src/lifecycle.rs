//! What signals ask of the daemon: SIGTERM and SIGINT its end, which a second one forces, and SIGHUP
//! that it reads its configuration again. Never does it itself.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Exit status of a daemon that a second signal ended.
const FORCED: i32 = 1;

/// Whether the daemon is asked to end. Clones share the answer.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requested: Arc<AtomicBool>,
    /// Readable from the first request on; nobody reads it.
    wake: UnixStream,
    waker: UnixStream,
}

impl Shutdown {
    /// Takes over SIGTERM and SIGINT: the first one asks the daemon to end, the second one ends
    /// the process at once. Call it once.
    ///
    /// # Errors
    /// When the system gives no socket pair or no signal handler.
    pub fn install() -> io::Result<Shutdown> {
        let (wake, waker) = UnixStream::pair()?;
        // A signal handler must not wait: one byte is as good as many.
        waker.set_nonblocking(true)?;
        let requested = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: the second signal finds the flag that the first one set.
            flag::register_conditional_shutdown(signal, FORCED, Arc::clone(&requested))?;
            flag::register(signal, Arc::clone(&requested))?;
            low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        Ok(Shutdown(Arc::new(Inner { requested, wake, waker })))
    }

    /// Whether the daemon is asked to end.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.requested.load(Ordering::Relaxed)
    }

    /// Asks for the end from within, as when a part of the daemon cannot go on.
    pub fn request(&self) {
        self.0.requested.store(true, Ordering::Relaxed);
        // Full means that waiters are awake already.
        let _ = (&self.0.waker).write(&[0]);
    }

    /// Waits for the request, at most for `timeout`; tells whether it came. Any number of
    /// threads may wait.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.requested() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(left) = Timespec::try_from(left) else {
                return false;
            };
            let mut wake = [PollFd::new(&self.0.wake, PollFlags::IN)];
            match poll(&mut wake, Some(&left)) {
                Ok(0) => return self.requested(),
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                // Out of memory for a moment: not a reason to spin.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        true
    }
}

/// Whether SIGHUP has come. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Hangup(Arc<AtomicBool>);

impl Hangup {
    /// Takes over SIGHUP, which would end the process otherwise.
    ///
    /// # Errors
    /// When the system gives no signal handler.
    pub fn install() -> io::Result<Hangup> {
        let hangup = Hangup::default();
        flag::register(SIGHUP, Arc::clone(&hangup.0))?;
        Ok(hangup)
    }

    /// Whether it has come since the last call, however often.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}
