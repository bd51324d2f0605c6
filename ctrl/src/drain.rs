//! The operator's order to take a server out of traffic, and the file that keeps it over
//! restarts. Never carries it out: `health` does.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::protocol::DrainMode;

/// Name of the file.
const NAME: &str = "drained";

/// An order to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// How new sessions are sent elsewhere.
    pub mode: DrainMode,
    /// How long sessions may go on before the routes are withdrawn.
    pub timeout: Duration,
    /// Whether it outlives the daemon.
    pub persist: bool,
    /// When it was given.
    pub since: Instant,
}

impl Drain {
    /// Whether there is no more time.
    #[must_use]
    pub fn has_timed_out(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= self.timeout
    }
}

/// Why a drained server cannot be kept so, or is not any more.
#[derive(Debug, Error)]
#[error("{}: {error}", path.display())]
pub struct PersistError {
    path: PathBuf,
    error: io::Error,
}

/// Whether a drain was ordered for good, before this start.
#[must_use]
pub fn is_persisted(directory: &Path) -> bool {
    directory.join(NAME).exists()
}

/// Has the server start drained from now on, or not any more.
///
/// # Errors
/// When the system refuses; nothing has changed then.
pub fn persist(directory: &Path, drained: bool) -> Result<(), PersistError> {
    let path = directory.join(NAME);
    let outcome = if drained { create(directory, &path) } else { remove(&path) };
    outcome.map_err(|error| PersistError { path, error })
}

fn create(directory: &Path, path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut file = std::fs::File::create(path)?;
    file.write_all(b"holdfastctl undrain removes this, and the server takes traffic again.\n")?;
    file.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn is_kept_until_it_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        assert!(!is_persisted(&state));
        persist(&state, false).unwrap();
        for _ in 0..2 {
            persist(&state, true).unwrap();
            assert!(is_persisted(&state));
        }
        for _ in 0..2 {
            persist(&state, false).unwrap();
            assert!(!is_persisted(&state));
        }
        std::fs::create_dir(state.join(NAME)).unwrap();
        let error = persist(&state, true).unwrap_err();
        assert!(error.to_string().contains("state/drained: "), "{error}");
        persist(&state, false).unwrap_err();
    }

    #[test]
    fn has_an_end() {
        let now = Instant::now();
        let timeout = Duration::from_secs(2);
        let drain = Drain { mode: DrainMode::default(), timeout, persist: false, since: now };
        assert!(!drain.has_timed_out(now + Duration::from_secs(1)));
        assert!(drain.has_timed_out(now + Duration::from_secs(2)));
        assert!(Drain { timeout: Duration::ZERO, ..drain }.has_timed_out(now));
    }
}
